"""Load ultrasound DICOM objects as other files are loaded, and restore label maps to the whole frame.

Display order, H, W, T: as in `array.py`; here H and W are those of the tissue region, a part of a larger frame.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

from synboost_monai.formats.grid import AS_STORED, DisplayOrder
from synboost_monai.transforms.array import plain

if TYPE_CHECKING:
    from synboost_monai.dicom.reading.read import ClipFacts, UltrasoundClip
    from synboost_monai.dicom.reading.regions import Region

Item = Mapping[Hashable, Any]

REGION_KEY, FULL_SHAPE_KEY = "region", "full_shape"
"""Meta keys: [first row, first column, rows, columns] of the region, and [rows, columns] of the frame around it."""
ORDER_KEY = "display_order"
"""Meta key: how the file stores the displayed image, `formats.grid.DisplayOrder` as four numbers; absent: (x, y)."""
CALIBRATED_KEY = "is_calibrated"
"""Meta key, and key of an item: whether the spacing is the file's own, in mm."""


def load_ultrasound(path: str | os.PathLike[str], sequences: bool = False) -> tuple[MetaTensor, ClipFacts]:
    """Read an ultrasound DICOM object: its tissue region in grey, in display order.

    Args:
        path: path of a regular file.
        sequences: take several frames; without it, more than one is an error.
    Returns:
        pixels (T, H, W), 0..255, uint8 with `sequences`, else float32; and the facts in the header. Meta data: `filename_or_obj`,
        `affine` (of the region within the frame), `original_affine`, `spatial_shape` (W, H, T), `sop_instance_uid`, `frame_times_ms`
        (empty if unknown, and without `sequences`), `region`, `full_shape`, `decoder`, `is_calibrated`, `calibration_problem` (a
        sentence; empty if there is none). Without a calibration a pixel counts as 1 mm x 1 mm: the image can be segmented, not measured.
    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: with the file's name and the reason, if it cannot be used.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with _opened(path) as clip:
        if clip.num_frames > 1 and not sequences:
            raise ValueError(
                f"{path}: expected one frame, got {clip.num_frames}; set sequences: true (--sequences true) to take every one of them"
            )
        pixels = clip.read_frames(range(clip.num_frames))
    return _meta_tensor(path, clip.facts, pixels if sequences else pixels.astype(np.float32), sequences), clip.facts


def frame_geometry(path: str | os.PathLike[str]) -> tuple[tuple[int, int], NDArray[np.float64]]:
    """Return (rows, columns) and the 4 x 4 affine of an ultrasound DICOM object's whole frame, as in `load_ultrasound`.

    Raises:
        ValueError: if the object cannot be used.
    """
    with _opened(path) as clip:
        facts = clip.facts
    affine = _affine(facts.region)
    affine[:2, 3] = 0
    return (facts.rows, facts.columns), affine


def stored_order(meta: Mapping[str, Any]) -> DisplayOrder:
    """Return how the image's file stores the displayed image: its `display_order`; (x, y) without one."""
    if ORDER_KEY not in meta:
        return AS_STORED
    column_axis, row_axis, is_column_flipped, is_row_flipped = (int(n) for n in meta[ORDER_KEY])
    return DisplayOrder(column_axis, row_axis, bool(is_column_flipped), bool(is_row_flipped))


def crop_to_region(label_map: MetaTensor, image_meta: Mapping[str, Any]) -> MetaTensor:
    """Crop a label map (T, rows, columns) of a whole frame to an image's region; a label map of the region's size stays as it is.

    Args:
        label_map: label map from `load_echo`.
        image_meta: meta data of its image.
    """
    first_row, first_column, rows, columns = (int(n) for n in image_meta[REGION_KEY])
    if tuple(label_map.shape[-2:]) != tuple(int(n) for n in image_meta[FULL_SHAPE_KEY]):
        return label_map
    part = plain(label_map)[..., first_row : first_row + rows, first_column : first_column + columns]
    return MetaTensor(part.contiguous(), meta=dict(label_map.meta))


class RestoreFullFramed(MapTransform):
    """Place a label map of the region into the whole frame, with background around it.

    The output of `RestoreLabelMapd`, (1, W, H, T), becomes (1, columns, rows, T), with the frame's affine. The image's meta data then
    describe the whole frame too, since MONAI Label resizes any label map that does not have their `spatial_shape`. Items whose image
    is the whole frame, all except those from DICOM, stay as they are.

    Args:
        keys: label maps, or anything else of their shape; the meta data of `image` say where the region is.
    Raises:
        ValueError: in the call, if a label map does not have the region's size.
    """

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        item = dict(data)
        image = item["image"]
        meta = image.meta if isinstance(image, MetaTensor) else {}
        if REGION_KEY not in meta:
            return item
        first_row, first_column, rows, columns = (int(n) for n in meta[REGION_KEY])
        full_rows, full_columns = (int(n) for n in meta[FULL_SHAPE_KEY])
        if (rows, columns) == (full_rows, full_columns):
            return item
        for key in self.key_iterator(item):
            label_map = item[key]
            shown = plain(label_map).transpose(1, 2)  # (1, H, W, T)
            if tuple(shown.shape[1:3]) != (rows, columns):
                raise ValueError(
                    f"ultrasound_dicom.py: {key} is {tuple(shown.shape[1:3])} but the region of its image is {(rows, columns)} "
                    "(rows, columns); restore it to the image's own grid first"
                )
            full = shown.new_zeros(shown.shape[0], full_rows, full_columns, *shown.shape[3:])
            full[:, first_row : first_row + rows, first_column : first_column + columns] = shown
            full = full.transpose(1, 2).contiguous()
            is_meta = isinstance(label_map, MetaTensor)
            item[key] = MetaTensor(full, meta=_full_meta(label_map.meta, image.meta)) if is_meta else full
        item["image"] = MetaTensor(image.as_tensor(), meta=_full_meta(image.meta, image.meta))
        return item


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[UltrasoundClip]:
    """Open an ultrasound DICOM object; a reason why it is not usable becomes an error with its path."""
    from synboost_monai.dicom.reading.read import open_ultrasound
    from synboost_monai.dicom.reasons import NotUsableError

    try:
        with open_ultrasound(path) as clip:
            yield clip
    except NotUsableError as error:
        raise ValueError(f"{path}: {error}") from error


def _meta_tensor(path: Path, facts: ClipFacts, pixels: NDArray[Any], sequences: bool) -> MetaTensor:
    """Combine frames (T, H, W) with their meta data; no value is None, which a batch could not hold."""
    region = facts.region
    affine = torch.from_numpy(_affine(region))
    # still images are batched: arrays must have one length
    times = facts.frame_times_ms if sequences and facts.frame_times_ms else ()
    meta = {
        "filename_or_obj": str(path),
        "original_affine": affine.numpy().copy(),
        "spatial_shape": np.array([region.columns, region.rows, len(pixels)]),
        "sop_instance_uid": facts.sop_instance_uid,
        "frame_times_ms": np.array(times, dtype=np.float64),
        REGION_KEY: np.array([region.first_row, region.first_column, region.rows, region.columns]),
        FULL_SHAPE_KEY: np.array([facts.rows, facts.columns]),
        "decoder": facts.decoder,
        CALIBRATED_KEY: region.spacing_mm is not None,
        "calibration_problem": str(region.problem or ""),
    }
    return MetaTensor(torch.from_numpy(pixels), affine=affine, meta=meta)


def _affine(region: Region) -> NDArray[np.float64]:
    """Map pixel (x, y, t) of the region to mm from the frame's first pixel; signs as for any image without a position in space."""
    row_mm, column_mm = region.spacing_mm or (1.0, 1.0)
    affine = np.diag([-column_mm, -row_mm, 1.0, 1.0])
    affine[:2, 3] = -column_mm * region.first_column, -row_mm * region.first_row
    return affine


def _full_meta(meta: Mapping[str, Any], image_meta: Mapping[str, Any]) -> dict[str, Any]:
    """Change meta data of the region's label map to those of the whole frame."""
    full = dict(meta)
    rows, columns = (int(n) for n in image_meta[FULL_SHAPE_KEY])
    for key in ("affine", "original_affine"):
        if key in full:
            affine = torch.as_tensor(full[key]).clone()
            affine[:2, 3] = 0
            full[key] = affine if isinstance(full[key], torch.Tensor) else affine.numpy()
    full["spatial_shape"] = np.array([columns, rows, int(image_meta["spatial_shape"][2])])
    full[REGION_KEY] = np.array([0, 0, rows, columns])
    return full
