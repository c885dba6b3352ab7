"""Simulated echocardiograms as a dataset: made while a network trains, never the same twice, always the same again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.data import Dataset, MetaTensor

from synboost_monai.simulation.simulator import simulate


def simulated_items(num_images: int, seed: int) -> list[dict[str, int]]:
    """Return the items of a `SimulatedEchoDataset`: seed and number of each image.

    Raises:
        ValueError: if there would be no image, or the seed is negative.
    """
    if num_images < 1 or seed < 0:
        raise ValueError(f"dataset.py: num_images must be 1 or more and seed 0 or more, got {num_images} and {seed}")
    return [{"seed": int(seed), "number": number} for number in range(int(num_images))]


class SimulatedEchoDataset(Dataset):
    """Gives items as `LoadEchod` does, without a file: image and label map (1, H, W), `spacing_mm` and attributes.

    Item i of epoch e is image e * N + i of its seed, so each epoch has new hearts. What is random in `transform` is seeded from that
    number too: an item depends neither on the number of workers nor on the items before it.

    Args:
        data: N items of `simulated_items`.
        longer_side: pixels of the longer side, the `image_size` of the training.
        transform: of an item.
        is_endless: False gives the same images in every epoch, as validation wants them.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, int]],
        longer_side: int = 160,
        transform: Callable[..., Any] | None = None,
        is_endless: bool = True,
    ) -> None:
        super().__init__(data, transform)
        self.longer_side, self.is_endless = longer_side, is_endless
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the hearts of an epoch; `handlers.EpochSeed` calls this."""
        self.epoch = epoch if self.is_endless else 0

    def _transform(self, index: int) -> Any:
        seed, number = self.data[index]["seed"], self.epoch * len(self.data) + self.data[index]["number"]
        echo = simulate(seed, number, longer_side=self.longer_side)
        name = f"simulated heart {number} of seed {seed}"
        item = {
            "image": MetaTensor(torch.from_numpy(echo.images).float(), meta={"filename_or_obj": name}),
            "label": MetaTensor(torch.from_numpy(echo.label_maps).float(), meta={"filename_or_obj": name}),
            "spacing_mm": torch.tensor([echo.spacing_mm] * 2, dtype=torch.float64),
            "is_calibrated": True,
            "is_synthetic": False,
            "shape": echo.shapes,
            **echo.attributes,
        }
        if self.transform is None:
            return item
        if hasattr(self.transform, "set_random_state"):
            self.transform.set_random_state(seed=(seed * 2**20 + number) % 2**32)
        return self.transform(item)
