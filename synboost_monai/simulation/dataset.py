"""Provide simulated echocardiograms as a dataset: made during training, new in each epoch, and reproducible.

T: frames, here 1. H, W: rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from monai.data import Dataset, MetaTensor
from torch import Tensor

from synboost_monai.simulation.simulator import SimulatedEcho, simulate
from synboost_monai.simulation.strangers import simulate_stranger
from synboost_monai.structures import BACKGROUND_INDEX, VIEW_CLASSES


def simulated_items(num_images: int, seed: int, stranger_share: float = 0.0) -> list[dict[str, int]]:
    """Return the items of a `SimulatedEchoDataset`: seed and number of each image, and whether it shows a stranger.

    Args:
        num_images: number of hearts and strangers together.
        seed: seed of the simulator.
        stranger_share: share of pictures without an apical view (`simulate_stranger`), evenly spread.
    Raises:
        ValueError: if there would be no image, the seed is negative, or the share is not in [0, 1).
    """
    if num_images < 1 or seed < 0:
        raise ValueError(f"dataset.py: num_images must be 1 or more and seed 0 or more, got {num_images} and {seed}")
    if not 0 <= stranger_share < 1:
        raise ValueError(f"dataset.py: stranger_share must be at least 0 and below 1, got {stranger_share}")
    strangers = [int((n + 1) * stranger_share) - int(n * stranger_share) for n in range(int(num_images))]
    return [{"seed": int(seed), "number": n, "is_stranger": found} for n, found in enumerate(strangers)]


class SimulatedEchoDataset(Dataset):
    """Return items as `LoadEchod` does, without files: image and label map (1, H, W), `spacing_mm`, attributes.

    It adds `view_class`, index in `structures.VIEW_CLASSES`, and `systole`, the moment of the beat: 0 end-diastole, 1 end-systole. A
    stranger has an empty label map and no attributes.

    Item i of epoch e is image e * N + i of its seed, so each epoch has new hearts. The randomness of `transform` is seeded from that
    number too: an item does not depend on the number of workers or on the items before it.

    Args:
        data: N items from `simulated_items`.
        longer_side: pixels of the longer side, equal to the `image_size` of the training.
        transform: applied to each item.
        is_endless: False returns the same images in every epoch, as needed for validation.
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
        make = self._stranger if self.data[index].get("is_stranger") else self._heart
        item = make(seed, number)
        if self.transform is None:
            return item
        if hasattr(self.transform, "set_random_state"):
            self.transform.set_random_state(seed=(seed * 2**20 + number) % 2**32)
        return self.transform(item)

    def _heart(self, seed: int, number: int) -> dict[str, Any]:
        echo = simulate(seed, number, longer_side=self.longer_side)
        images, label_maps = torch.from_numpy(echo.images), torch.from_numpy(echo.label_maps)
        item = _item(images, label_maps, f"simulated heart {number} of seed {seed}", echo.spacing_mm)
        view = VIEW_CLASSES.index(echo.attributes["view"])
        return {
            **item,
            "shape": _Shapes(echo),
            **echo.attributes,
            "view_class": view,
            "systole": torch.tensor(echo.systole[0]),
        }

    def _stranger(self, seed: int, number: int) -> dict[str, Any]:
        images = torch.tensor(simulate_stranger(seed, number, longer_side=self.longer_side).image)[None]
        label_maps = torch.full_like(images, BACKGROUND_INDEX)
        item = _item(images, label_maps, f"simulated stranger {number} of seed {seed}", 1.0)
        return {**item, "shape": {}, "view_class": VIEW_CLASSES.index("no_apical_view"), "systole": torch.tensor(0.0)}


class _Shapes(Mapping[str, str]):
    """A mapping like `SimulatedEcho.shapes`, computed only if a prompt mentions a shape, as it takes half as long as a heart."""

    def __init__(self, echo: SimulatedEcho) -> None:
        self._echo = echo

    def __getitem__(self, name: str) -> str:
        return self._echo.shapes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._echo.shapes)

    def __len__(self) -> int:
        return len(self._echo.shapes)


def _item(images: Tensor, label_maps: Tensor, name: str, spacing_mm: float) -> dict[str, Any]:
    """Return the part of an item that hearts and strangers share, from images and label maps (T, H, W)."""
    return {
        "image": MetaTensor(images.float(), meta={"filename_or_obj": name}),
        "label": MetaTensor(label_maps.float(), meta={"filename_or_obj": name}),
        "spacing_mm": torch.tensor([spacing_mm] * 2, dtype=torch.float64),
        "is_calibrated": True,
        "is_synthetic": False,
    }
