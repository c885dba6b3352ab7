"""Hold what `synboost label-maps` can be asked for: each field is a flag of the command line."""

from __future__ import annotations

from dataclasses import dataclass

METHODS = ("shape_model", "interpolate")
"""Draw from the model, or average two training label maps of one view and phase."""
EXPLAINED_VARIANCE = 0.995
"""Share of the variance that the modes keep. With the usual 0.98 the wall is too even: on CAMUS the Kolmogorov-Smirnov distance
of the thinnest wall to the experts' is 0.19 with 0.98 (12 modes), 0.11 with 0.995 (21 modes)."""


@dataclass(frozen=True)
class LabelMapOptions:
    """Options of a set of new label maps.

    Args:
        num_maps: number of label maps; a larger set begins with a smaller one of the same seed.
        method: shape_model (statistical shape model), or interpolate (between two label maps of the data set).
        seed: seed of the draws; the same seed gives the same label maps.
        section: section of the datalist to learn from; several joined by +.
        view: learn from apical_two_chamber or apical_four_chamber alone; both by default.
        phase: learn from end_diastole or end_systole alone; both by default.
        variance_scale: factor of the shapes' variance; below 1 is closer to the mean.
        explained_variance: share of the shapes' variance that the model keeps; more is finer detail.
    Raises:
        ValueError: if a value is out of range.
    """

    num_maps: int = 200
    method: str = "shape_model"
    seed: int = 0
    section: str = "training"
    view: str | None = None
    phase: str | None = None
    variance_scale: float = 1.0
    explained_variance: float = EXPLAINED_VARIANCE

    def __post_init__(self) -> None:
        if self.num_maps < 1:
            raise ValueError(f"num_maps must be at least 1, got {self.num_maps}")
        if self.method not in METHODS:
            raise ValueError(f"method must be {' or '.join(METHODS)}, got {self.method!r}")
        if self.variance_scale < 0:
            raise ValueError(f"variance_scale must be 0 or more, got {self.variance_scale}")
