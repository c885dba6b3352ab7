"""Provide the transforms of `label_map_array` for MONAI pipelines: label maps and sectors.

Items hold channel-first tensors in display order; `label` is a segmentation label map (1, H, W).
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform, Transform
from monai.utils import convert_to_dst_type, convert_to_numpy

from synboost_monai.structures import NUM_SECTOR_CLASSES, SECTOR_OUTSIDE_INDEX
from synboost_monai.transforms.label_map_array import (
    LabelMapPerturbation,
    default_sector_mask,
    sector_label_map,
    sector_mask,
)

MIN_LABEL_FRACTION_IN_SECTOR = 0.5
"""Smallest share of the labelled pixels in the default sector, without an image; below it the geometry must be wrong."""


class SectorMaskd(Transform):
    """Add the mask of the ultrasound sector: the item's own mask, else one found in its image, else the default geometry.

    `sector` is (1, H, W) uint8, with the meta data of its source. An item that already has one, loaded from a file (1, H, W), keeps it:
    non-zero is inside. `image`, (1, H, W), is on its native grid and before its intensities are changed. The default geometry takes the
    shape of `label`, (1, H, W), and the item's `spacing_mm`.

    Args:
        threshold: brightest image value that still counts as dark.
    Raises:
        ValueError: in a call, if an item's own sector was not loaded, is empty, or has another shape than the label map; or if
            the default geometry does not fit the label map.
    """

    def __init__(self, threshold: float = 0.0) -> None:
        self.threshold = threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if "sector" in item:
            source = item["sector"]
            sector = _own_sector(source, item.get("label"))
        elif "image" in item:
            source = item["image"]
            sector = sector_mask(_plane(source), self.threshold)
        else:
            source = item["label"]
            row, column = (float(step) for step in item.get("spacing_mm", (1.0, 1.0)))
            sector = default_sector_mask(tuple(source.shape[1:]), (row, column))
            labelled = _plane(source) > 0
            if labelled.any() and sector[labelled].mean() < MIN_LABEL_FRACTION_IN_SECTOR:
                raise ValueError(
                    f"SectorMaskd: {sector[labelled].mean():.0%} of the labelled pixels of {_file_name(source)} lie in the default "
                    "sector (apex at the top centre); give the images beside the label maps, the sector is then taken from them"
                )
        item["sector"] = convert_to_dst_type(sector[None].astype(np.uint8), source, dtype=torch.uint8)[0]
        return item


def _own_sector(source: Any, label: Any | None) -> np.ndarray:
    """Return the sector that an item already has, (H, W) bool, on the grid of its label map."""
    if isinstance(source, (str, os.PathLike)):
        raise ValueError(f"SectorMaskd: {source} is not loaded; name the key 'sector' in LoadEchod")
    sector = _plane(source) > 0
    if not sector.any():
        raise ValueError(f"SectorMaskd: {_file_name(source, 'the sector')} is empty; expected 1 inside the sector")
    if label is not None and tuple(label.shape[1:]) != sector.shape:
        raise ValueError(
            f"SectorMaskd: {_file_name(source, 'the sector')} is {sector.shape} but label map is "
            f"{tuple(label.shape[1:])}; the sector must be on the label map's grid"
        )
    return sector


class SectorLabelMapd(Transform):
    """Add `sector_label_map`, (1, H, W) uint8, of an item's `label` and `sector`, and its one-hot form; cut off labels outside the sector.

    Args:
        onehot_key: key for the one-hot form, (K, H, W) uint8: a quarter of the memory of floats in a cache.
    """

    def __init__(self, onehot_key: str = "label_onehot") -> None:
        self.onehot_key = onehot_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        label_map = torch.from_numpy(sector_label_map(_plane(data["label"]), _plane(data["sector"]) > 0))[None]
        class_indices = torch.arange(NUM_SECTOR_CLASSES)[:, None, None]
        return {
            **data,
            "sector_label_map": label_map,
            self.onehot_key: (label_map == class_indices).to(torch.uint8),
        }


class PerturbLabelMapd(MapTransform):
    """Perturb label maps by the `perturbation_seed` in their item, so that neither order nor workers matter.

    Args:
        keys: label maps, (1, H, W). All get the same perturbation.
        perturbation: ranges of the perturbation; None: the published ones.
    """

    def __init__(self, keys: KeysCollection, perturbation: LabelMapPerturbation | None = None) -> None:
        super().__init__(keys)
        self.perturbation = perturbation or LabelMapPerturbation()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            label_map = _plane(item[key])
            perturbed = self.perturbation(label_map, int(item["perturbation_seed"]))
            item[key] = convert_to_dst_type(np.ascontiguousarray(perturbed[None]), item[key])[0]
        return item


class RandAffineSectord(RandomizableTransform):
    """Warp `image` (C, H, W) with `label_onehot` (K, H, W) by a random affine map, so that few patients yield more different hearts.

    A diffusion model trained on few images memorises them and then draws them whatever the label map; warped pairs make it
    follow the label map. Pixels from beyond the border are outside the sector, and dark.

    Args:
        probability: probability of warping an item; 0 switches it off.
        rotate_degrees: largest rotation, either way.
        scale: largest change of size, as a share; up as much as down on a logarithmic scale.
        aspect: largest change of width against height, likewise.
        shear_degrees: largest shear.
        shift: largest shift, as a share of the side.
        dark: darkest value of the image; pixels from beyond the border get it.
    """

    def __init__(
        self,
        probability: float = 1.0,
        rotate_degrees: float = 10.0,
        scale: float = 0.15,
        aspect: float = 0.08,
        shear_degrees: float = 5.0,
        shift: float = 0.05,
        dark: float = -1.0,
    ) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"RandAffineSectord: probability must be 0 ... 1, got {probability}")
        super().__init__(probability)
        self.ranges = (math.radians(rotate_degrees), math.log1p(scale), math.log1p(aspect), math.radians(shear_degrees))
        self.shift = 2 * shift  # the grid's coordinates go from -1 to 1
        self.dark = dark

    def randomize(self, data: Any = None) -> None:
        super().randomize(None)
        angle, scale, aspect, shear = (self.R.uniform(-limit, limit) for limit in self.ranges)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        stretch = np.diag(np.exp([scale + aspect / 2, scale - aspect / 2]))
        linear = turn @ np.array([[1.0, math.tan(shear)], [0.0, 1.0]]) @ stretch
        self.theta = np.concatenate([linear, self.R.uniform(-self.shift, self.shift, (2, 1))], axis=1)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        self.randomize()
        if not self._do_transform:
            return item
        image = torch.as_tensor(item["image"]).as_subclass(torch.Tensor).float()
        onehot = torch.as_tensor(item["label_onehot"]).as_subclass(torch.Tensor)
        theta = torch.from_numpy(self.theta).float()[None]
        grid = torch.nn.functional.affine_grid(theta, [1, 1, *image.shape[1:]], align_corners=False)
        warp = lambda x, mode: torch.nn.functional.grid_sample(x[None], grid, mode, "zeros", align_corners=False)[0]  # noqa: E731
        label_onehot = warp(onehot.float(), "nearest").to(onehot.dtype)
        is_outside = label_onehot[1:].sum(dim=0, keepdim=True) == 0
        label_onehot[:1] = is_outside.to(onehot.dtype)
        warped = warp(image - self.dark, "bilinear") + self.dark  # zeros from beyond the border are dark
        warped = torch.where(is_outside, torch.full_like(warped, self.dark), warped)
        # same type as in the branch without a warp: a batch holds items of both
        item["image"] = convert_to_dst_type(warped, item["image"])[0]
        item["label_onehot"] = convert_to_dst_type(label_onehot, item["label_onehot"])[0]
        return item


class DarkOutsideSectord(MapTransform):
    """Set images (C, H, W) to 0 outside the sector, according to the item's `sector_label_map`, (1, H, W)."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            is_outside = torch.as_tensor(item["sector_label_map"]) == SECTOR_OUTSIDE_INDEX
            item[key] = torch.where(is_outside.to(item[key].device), torch.zeros_like(item[key]), item[key])
        return item


def _plane(image: Any) -> np.ndarray:
    """Convert a (1, H, W) tensor to an (H, W) array."""
    return convert_to_numpy(image)[0]


def _file_name(image: Any, otherwise: str = "the label map") -> str:
    return str(getattr(image, "meta", {}).get("filename_or_obj", otherwise))
