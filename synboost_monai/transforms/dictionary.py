"""Provide `array`'s transforms for MONAI pipelines: they turn a datalist's item into the network's input."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from synboost_monai.files import is_dicom
from synboost_monai.letterbox import letterbox_geometry
from synboost_monai.records import PHASES, VIEWS, EchoRecord
from synboost_monai.transforms.array import (
    letterbox_image,
    letterbox_label_map,
    masks_of_label_map,
    normalise_image,
    plain,
)
from synboost_monai.transforms.files import check_image_size, check_label_map, load_echo
from synboost_monai.transforms.ultrasound_dicom import CALIBRATED_KEY, crop_to_region, load_ultrasound

Item = Mapping[Hashable, Any]


class LoadEchod(MapTransform):
    """Load a path as MetaTensor (T, H, W) in display order (see `load_echo`); add `spacing_mm` and `is_calibrated` of the first key.

    From an ultrasound DICOM object the tissue region is loaded (see `load_ultrasound`), and the item gets `sex`, `age` and `view` (only
    views that there are prompts for) if the object has them and the item does not; label maps of its whole frame are cropped to the
    region.

    Args:
        keys: images and label maps; the first must have at least `files.MIN_IMAGE_SIDE` pixels per side.
        sequences: take files of several planes over time; the item gets `is_sequence`, also for a single plane, so that all later
            transforms know that T comes first. Without it T is 1 (the channel), and a file of several planes is an error.
    """

    def __init__(self, keys: KeysCollection, sequences: bool = False, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.sequences = sequences

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        item = dict(data)
        first: MetaTensor | None = None
        first_path = None
        for key in self.key_iterator(item):
            path = str(item[key])
            if first is not None:
                item[key] = crop_to_region(load_echo(path, self.sequences, like=first_path)[0], first.meta)
                continue
            first_path = path
            if is_dicom(path):
                first, facts = load_ultrasound(path, self.sequences)
                spacing_mm = facts.spacing_mm or (1.0, 1.0)
                view = facts.view if facts.view in VIEWS.values() else None
                for name, value in (("sex", facts.sex), ("age", facts.age), ("view", view)):
                    if value is not None and item.get(name) is None:
                        item[name] = value
            else:
                first, spacing_mm = load_echo(path, self.sequences)
            item[key] = first
            item["spacing_mm"] = torch.tensor(spacing_mm, dtype=torch.float64)
            item[CALIBRATED_KEY] = first.meta[CALIBRATED_KEY]
            check_image_size(first, path)
        if self.sequences:
            item["is_sequence"] = True
        return item


class EchoInMemoryd(MapTransform):
    """Convert an image of one plane that is already in memory, in stored order (W, H) or (W, H, 1), to `LoadEchod`'s (1, H, W).

    MONAI Deploy passes images like this. Its `row_pixel_spacing` and `col_pixel_spacing` (mm) become `spacing_mm`; without them a
    pixel is taken as 1 mm and `is_calibrated` is false.

    Args:
        keys: images, MetaTensors or arrays.
    Raises:
        ValueError: in the call, if there are several planes or colours.
    """

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            stored = item[key]
            meta = dict(stored.meta) if isinstance(stored, MetaTensor) else {}
            pixels = plain(torch.as_tensor(stored))
            if pixels.ndim == 3 and pixels.shape[-1] == 1:
                pixels = pixels[..., 0]
            if pixels.ndim != 2:
                raise ValueError(
                    f"dictionary.py: expected one grey plane (W, H) or (W, H, 1) as {key}, got {tuple(pixels.shape)}; "
                    "give the planes of a volume or clip one at a time"
                )
            width, height = pixels.shape
            spacing_mm = [meta.get("row_pixel_spacing"), meta.get("col_pixel_spacing")]
            is_calibrated = None not in spacing_mm
            item["spacing_mm"] = torch.tensor(spacing_mm if is_calibrated else [1.0, 1.0], dtype=torch.float64)
            item[CALIBRATED_KEY] = is_calibrated
            meta |= {"spatial_shape": np.array([width, height, 1]), CALIBRATED_KEY: is_calibrated}
            item[key] = MetaTensor(pixels.T[None].float().contiguous(), meta=meta)
            check_image_size(item[key], str(meta.get("filename_or_obj", key)))
        return item


class CheckLabelMapd(MapTransform):
    """Refuse label maps with other classes than 0..3 or of another shape than the item's `image` (see `check_label_map`)."""

    def __init__(self, keys: KeysCollection = "label", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            path = str(item[key].meta.get("filename_or_obj", key)) if isinstance(item[key], MetaTensor) else str(key)
            image = item.get("image")
            check_label_map(item[key], None if image is None else image.shape, path)
        return item


class Letterboxd(MapTransform):
    """Fit image and label map into the network's square (see `letterbox_geometry`); the item's `geometry` says how to go back.

    Args:
        keys: images (1, H, W) or sequences (T, H, W); they become uint8 0..255.
        size: side of the square.
        label_keys: label maps; they keep their classes. Missing ones, and paths, are left alone.
        keep_aspect: False stretches the image to the square, as published.
        keep_meta: keep the image a MetaTensor, so that results can be written back; training does without.
    """

    def __init__(
        self,
        keys: KeysCollection,
        size: int,
        label_keys: Sequence[str] = ("label",),
        keep_aspect: bool = True,
        keep_meta: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if size < 1:
            raise ValueError(f"dictionary.py: size is the side of a square in pixels, got {size}; set image_size")
        self.size = size
        self.label_keys = tuple(label_keys)
        self.keep_aspect = keep_aspect
        self.keep_meta = keep_meta

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        item = dict(data)
        first = next(iter(self.key_iterator(item)), None)
        reference = item[first if first is not None else self.label_keys[0]]
        geometry = letterbox_geometry(reference.shape, item["spacing_mm"].tolist(), self.size, self.keep_aspect)
        for key in self.key_iterator(item):
            boxed = letterbox_image(plain(item[key]), geometry)
            item[key] = MetaTensor(boxed, meta=item[key].meta) if self.keep_meta else boxed
        for key in self.label_keys:
            if isinstance(item.get(key), torch.Tensor):
                item[key] = letterbox_label_map(plain(item[key]), geometry)
        item["geometry"] = torch.tensor(geometry)
        return item


class ViewPhaseClassd(Transform):
    """Add `class_label`, the class of an item's `view` and `phase`, for a diffusion model conditioned on them.

    It is 0 if either is unknown, else 1 + 2 view index + phase index: 1 apical two-chamber at end-diastole, 2 at end-systole,
    3 apical four-chamber at end-diastole, 4 at end-systole (5 in all).

    Raises:
        ValueError: if the item has an unsupported view or phase.
    """

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        indices = []
        for key, words in (("view", tuple(VIEWS.values())), ("phase", tuple(PHASES.values()))):
            word = data.get(key)
            if word is not None and word not in words:
                raise ValueError(
                    f"dictionary.py: {key} must be {' or '.join(words)}, got {word!r}; correct the datalist, or leave it out"
                )
            indices.append(None if word is None else words.index(word))
        view, phase = indices
        return {**data, "class_label": 0 if view is None or phase is None else 1 + len(PHASES) * view + phase}


class MasksOfLabelMapd(MapTransform):
    """Split a label map (1, N, N) into one mask per structure, (S, N, N) float32."""

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = masks_of_label_map(item[key])
        return item


class NormaliseEchod(MapTransform):
    """Normalise an image (1, N, N), uint8 0..255 or float [0, 1], channel by channel, to (3, N, N) float32.

    For an item that `LoadEchod(sequences=True)` has read: (T, N, N) -> (T, 3, N, N).
    """

    def __init__(
        self, keys: KeysCollection, mean: Sequence[float], std: Sequence[float], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            image, pixels = item[key], plain(item[key])
            normalised = normalise_image(pixels[:, None] if item.get("is_sequence") else pixels, self.mean, self.std)
            item[key] = MetaTensor(normalised, meta=image.meta) if isinstance(image, MetaTensor) else normalised
        return item


class DropAttributesd(Transform):
    """Remove the attributes and the label map from an item: some items lack some of them, so a batch cannot hold them."""

    ATTRIBUTES = frozenset(field.name for field in fields(EchoRecord)) - {"image"}

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        return {key: value for key, value in data.items() if key not in self.ATTRIBUTES}
