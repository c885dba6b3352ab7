"""Hold the options of `synboost adapt`; importing them must stay cheap."""

from __future__ import annotations

from dataclasses import dataclass

from synboost_monai.options import SegmenterOptions


@dataclass(frozen=True)
class AdaptOptions(SegmenterOptions):
    """Options of `synboost adapt`.

    Args:
        updates: steps of the training, each of 16 images.
        seed: seed of the training; the same images and seed give the same weights.
        section: sections of a data set to learn from, joined by `+`; of a folder of images all are taken.
    """

    updates: int = 400
    seed: int = 0
    section: str = "training+validation"

    def __post_init__(self) -> None:
        if isinstance(self.updates, bool) or not isinstance(self.updates, int) or self.updates < 1:
            raise ValueError(f"adapt: updates must be a whole number of at least 1, got {self.updates!r}")
