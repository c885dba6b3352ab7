"""Read and check images and label maps for the pipelines, and write label maps back in the frame of the image's file.

Display order: rows run from the probe downwards, columns from left to right, as on the screen. Files store (x, y); reading
transposes, writing transposes back. H, W: native rows and columns. T: frames of a sequence (1 for a single image).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from synboost_monai.files import (
    CLIP_SUFFIXES,
    METAIMAGE_SUFFIXES,
    NIFTI_SUFFIXES,
    UNCALIBRATED_SUFFIXES,
    atomic_path,
    image_stem,
    image_suffix,
    is_dicom,
    read_frames,
    read_grid,
)
from synboost_monai.formats.grid import to_stored
from synboost_monai.formats.metaimage import read_metaimage_header
from synboost_monai.formats.nifti import read_nifti_header
from synboost_monai.paths import result_names
from synboost_monai.structures import NUM_CLASSES, STRUCTURES
from synboost_monai.transforms.ultrasound_dicom import (
    CALIBRATED_KEY,
    FULL_SHAPE_KEY,
    ORDER_KEY,
    REGION_KEY,
    frame_geometry,
    load_ultrasound,
)

OUTPUT_FORMATS = ("same", "nifti")
"""Formats of written label maps: the image's own format, or always NIfTI."""
MIN_IMAGE_SIDE = 16
"""Fewest rows or columns of an image: a smaller one is not an echocardiogram, and a network would see mostly interpolated pixels."""


def load_echo(
    path: str | os.PathLike[str], sequences: bool = False, like: str | os.PathLike[str] | None = None
) -> tuple[MetaTensor, tuple[float, float]]:
    """Read one image or label map, or a sequence, in display order.

    Its meta data are those of MONAI's readers (`filename_or_obj`, `affine` in mm of the stored array, `spatial_shape`), so MONAI Label
    can write a label map back; `spatial_shape` is always a volume with T planes, (W, H, T) if the file stores (x, y).
    `display_order` says how that volume is displayed (see `formats.grid`): a volume that is turned or mirrored according to its affine
    is turned back.

    `region` and `full_shape` say what part of the file's frame the pixels are: the tissue region of ultrasound DICOM, all of others.

    Args:
        path: NIfTI, MetaImage, PNG, JPEG, BMP, AVI or MP4 of any number type, or an ultrasound DICOM object (see
            `load_ultrasound`); colours become grey (see `files.read_frames`); the spacing of a picture (PNG, JPEG, BMP) or clip (AVI,
            MP4), and of DICOM without a calibration, is taken as 1 mm (`is_calibrated` false).
        sequences: take a file of several planes over time; without it, such a file is an error.
        like: the image whose label map this is; the label map is oriented like it if its own header does not say how.
    Returns:
        pixels (T, H, W), the file's own values, float32 (a sequence of bytes stays uint8, which is a quarter of the memory);
        spacing_mm (row, column).
    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not an image of one plane (or of a sequence), or has pixels that are NaN or infinite.
    """
    path = Path(path)
    if is_dicom(path):
        image, facts = load_ultrasound(path, sequences=sequences)
        return image, facts.spacing_mm or (1.0, 1.0)
    frames = read_frames(path, sequences, like)
    grid = frames.grid
    meta = {
        "filename_or_obj": str(path),
        "original_affine": grid.affine.copy(),
        "spatial_shape": np.array(grid.volume_shape),
        ORDER_KEY: np.array(grid.order, dtype=np.int64),
        REGION_KEY: np.array([0, 0, *grid.frames_shape[1:]]),
        FULL_SHAPE_KEY: np.array(grid.frames_shape[1:]),
        CALIBRATED_KEY: image_suffix(path) not in UNCALIBRATED_SUFFIXES,
    }
    dtype = np.uint8 if sequences and frames.pixels.dtype == np.uint8 else np.float32
    pixels = torch.from_numpy(np.require(frames.pixels, dtype, ["C", "W"]))  # copied only where it must be
    return MetaTensor(pixels, affine=torch.from_numpy(grid.affine), meta=meta), grid.spacing_mm


def echo_of_array(pixels: Any, spacing_mm: Sequence[float] | None = None) -> tuple[MetaTensor, Tensor]:
    """Convert an image or clip in memory, in display order, to the form that `load_echo` returns.

    Args:
        pixels: (H, W), or (T, H, W); grey levels of any number type.
        spacing_mm: (row, column); None: a pixel is taken as 1 mm.
    Returns:
        pixels (T, H, W), float32 (bytes stay uint8); spacing_mm (2,).
    Raises:
        ValueError: if it has other axes, is empty or too small, a value is NaN or infinite, or `spacing_mm` is not two lengths above 0.
    """
    array = np.asarray(pixels)
    if array.ndim not in (2, 3) or array.size == 0 or array.dtype.kind not in "buif":
        raise ValueError(
            f"expected grey levels (H, W), or (T, H, W) of a clip, got an array {array.shape} of {array.dtype}"
        )
    if array.ndim == 3 and array.shape[-1] <= 4:
        raise ValueError(
            f"expected grey levels (H, W), or (T, H, W) of a clip, got an array {array.shape}: a colour image is to be made grey"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("expected grey levels, got an array with NaN or infinite values")
    frames = array[None] if array.ndim == 2 else array
    spacing = (1.0, 1.0) if spacing_mm is None else tuple(float(s) for s in spacing_mm)
    if len(spacing) != 2 or not all(0 < s < math.inf for s in spacing):
        raise ValueError(f"spacing_mm is (row, column), two lengths above 0, got {spacing_mm}")
    affine = torch.diag(torch.tensor([-spacing[1], -spacing[0], 1.0, 1.0], dtype=torch.float64))
    meta = {
        "filename_or_obj": "array",
        "original_affine": affine.numpy(),
        "spatial_shape": np.array([*frames.shape[:0:-1], len(frames)]),
        REGION_KEY: np.array([0, 0, *frames.shape[1:]]),
        FULL_SHAPE_KEY: np.array(frames.shape[1:]),
        CALIBRATED_KEY: spacing_mm is not None,
    }
    dtype = np.uint8 if frames.dtype == np.uint8 else np.float32
    image = MetaTensor(torch.from_numpy(np.array(frames, dtype, order="C")), affine=affine, meta=meta)
    check_image_size(image, "array")
    return image, torch.tensor(spacing, dtype=torch.float64)


def check_image_size(image: Tensor, path: str) -> None:
    """Refuse an image that is too small to show a heart.

    Args:
        image: (T, H, W).
        path: its file, for the message.
    Raises:
        ValueError: if it has fewer than `MIN_IMAGE_SIDE` rows or columns.
    """
    height, width = image.shape[-2:]
    if min(height, width) < MIN_IMAGE_SIDE:
        raise ValueError(
            f"{path}: expected an image of at least {MIN_IMAGE_SIDE} x {MIN_IMAGE_SIDE} pixels, got {height} rows and {width} "
            "columns; is this a thumbnail or a broken export? take it out of the folder or datalist"
        )


def write_label_map(
    label_map: NDArray[Any] | Tensor,
    image_path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    output_format: str = "same",
) -> Path:
    """Write a label map that overlays its image exactly: same stored order, shape, spacing, origin and orientation; uint8.

    The label map of a sequence has the sequence's stored shape, (x, y, t) or (x, y, 1, t), and its time spacing; that of a colour
    image is grey.

    Args:
        label_map: (H, W), or (T, H, W) of a sequence, in display order.
        image_path: the image that it belongs to; its header is copied.
        target: path to write to, without a suffix; the format decides it: .nii.gz for NIfTI and for DICOM (of the whole frame), .mha
            for MetaImage (header and pixels in one file, so that it appears whole or not at all), .png for PNG, JPEG and BMP,
            .nii.gz of (x, y, t) for AVI and MP4.
        output_format: "same" as the image, or "nifti".
    Returns:
        path of the written file.
    Raises:
        ValueError: if the format is unknown or the sizes differ.
    """
    image_path, pixels = Path(image_path), np.ascontiguousarray(np.asarray(label_map), dtype=np.uint8)
    frames = pixels[None] if pixels.ndim == 2 else pixels
    if output_format not in OUTPUT_FORMATS:
        raise ValueError(f"files.py: output_format must be one of {', '.join(OUTPUT_FORMATS)}, got {output_format!r}")
    suffix = image_suffix(image_path)
    path = label_map_path(image_path, target, output_format)
    if suffix in NIFTI_SUFFIXES:
        return _write_nifti_like(frames, image_path, path)
    if is_dicom(image_path):
        full_shape, affine = frame_geometry(image_path)
        _check_size(frames, (len(frames), *full_shape), image_path)
        return _write_nifti(frames.T, affine, path)
    if suffix in METAIMAGE_SUFFIXES:
        grid = read_grid(image_path)
        _check_size(frames, grid.frames_shape, image_path)
        if output_format == "nifti":
            return _write_nifti(to_stored(frames, grid.order), grid.affine, path)
        return _write_metaimage_like(frames, image_path, path)
    if output_format == "nifti" or suffix in CLIP_SUFFIXES:
        return _write_nifti(frames.T, np.diag([-1.0, -1.0, 1.0, 1.0]), path)
    from PIL import Image

    if len(frames) != 1:
        raise ValueError(f"{image_path}: a PNG holds one plane, but the label map to write has {len(frames)} frames")
    with atomic_path(path) as temporary:
        Image.fromarray(frames[0]).save(temporary)
    return path


def label_map_path(
    image_path: str | os.PathLike[str], target: str | os.PathLike[str], output_format: str = "same"
) -> Path:
    """Return the path that `write_label_map` writes to: the format decides the suffix."""
    suffix = image_suffix(image_path)
    if output_format == "nifti" or suffix in NIFTI_SUFFIXES + CLIP_SUFFIXES or is_dicom(image_path):
        return Path(f"{target}.nii.gz")
    return Path(f"{target}.mha" if suffix in METAIMAGE_SUFFIXES else f"{target}.png")


def check_label_map(label_map: Tensor, image_shape: Sequence[int] | None, path: str) -> None:
    """Refuse a label map that has other classes or does not belong to this image.

    Args:
        label_map: (1, H, W), or (T, H, W) of a sequence.
        image_shape: shape of the image, (1, H, W) or (T, H, W); None leaves the size unchecked.
        path: the label map's file, for the message.
    Raises:
        ValueError: if a class is not 0..3, a value is a fraction, or the shapes differ.
    """
    if image_shape is not None and tuple(label_map.shape[-2:]) != tuple(image_shape[-2:]):
        raise ValueError(
            f"{path}: image is {tuple(image_shape[-2:])} but label map is {tuple(label_map.shape[-2:])} (rows, columns); "
            "fetch this pair again or correct the datalist"
        )
    if image_shape is not None and len(image_shape) == label_map.ndim == 3 and image_shape[0] != label_map.shape[0]:
        raise ValueError(
            f"{path}: the image has {image_shape[0]} frames but the label map has {label_map.shape[0]}; "
            "fetch this pair again or correct the datalist"
        )
    classes = torch.unique(label_map.as_tensor() if isinstance(label_map, MetaTensor) else label_map).tolist()
    unknown = [int(c) if float(c).is_integer() else c for c in classes if c not in range(NUM_CLASSES)]
    if unknown:
        names = ", ".join(f"{s.class_index} {s.name}" for s in STRUCTURES)
        raise ValueError(
            f"{path}: expected a label map with classes 0 background, {names}; got {unknown[:5]}; "
            "is this an image, or a label map of another data set?"
        )


def checked_items(
    items: Sequence[Mapping[str, Any]],
    *,
    needs_label: bool = False,
    sequences: bool = False,
) -> list[dict[str, Any]]:
    """Open every file of a datalist's items before work begins, so that a bad one stops the run before anything is written.

    Args:
        items: items from `data.list_images` or `data.read_datalist`.
        needs_label: each item must have a label map (evaluation).
        sequences: a file may hold several planes over time, and so may its label map.
    Returns:
        the items, each with `case`: its file's name without suffix, with its folders if names repeat (see `result_names`).
    Raises:
        FileNotFoundError, ValueError: for the first bad file.
    """
    paths = [os.path.abspath(item["image"]) for item in items]
    stems = [image_stem(path) for path in paths]
    checked = []
    for item, path, case in zip(items, paths, result_names(paths, stems)):
        image, _ = load_echo(path, sequences)
        check_image_size(image, path)
        if needs_label and not item.get("label"):
            raise ValueError(f"{path}: has no label map in the datalist; evaluation needs one for each image")
        if item.get("label"):
            full_shape = [len(image), *(int(n) for n in image.meta[FULL_SHAPE_KEY])]
            check_label_map(load_echo(item["label"], sequences, like=path)[0], full_shape, str(item["label"]))
        checked.append({**item, "case": case})
    return checked


# --- helpers ---


def _write_nifti_like(frames: NDArray[np.uint8], image_path: Path, path: Path) -> Path:
    """Write a label map with its image's NIfTI header: shape of the stored array, affine, codes, units and time spacing stay."""
    import nibabel as nib

    grid = read_grid(image_path)
    _check_size(frames, grid.frames_shape, image_path)
    header = read_nifti_header(image_path, with_extensions=True).header
    header.set_data_shape(grid.shape)  # without colours; keeps the spacing of the axes that stay
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header.set_intent("none")
    header["cal_min"], header["cal_max"] = 0, 0
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    with atomic_path(path) as temporary:
        nib.save(kind(grid.to_stored(frames), None, header), temporary)
    return path


def _write_nifti(volume: NDArray[np.uint8], affine: NDArray[np.float64], path: Path) -> Path:
    """Write a stored volume (X, Y, Z); a single plane (X, Y, 1) is written as (X, Y)."""
    import nibabel as nib

    with atomic_path(path) as temporary:
        nib.save(nib.Nifti1Image(volume[..., 0] if volume.shape[2] == 1 else volume, affine), temporary)
    return path


def _write_metaimage_like(frames: NDArray[np.uint8], image_path: Path, path: Path) -> Path:
    """Write a label map with its MetaImage's size, spacing, origin and direction."""
    import itk

    image = read_metaimage_header(image_path)
    label_map = itk.image_from_array(np.ascontiguousarray(read_grid(image_path).to_stored(frames).T))
    label_map.SetSpacing(image.spacing)
    label_map.SetOrigin(image.origin)
    label_map.SetDirection(itk.matrix_from_array(image.direction))
    with atomic_path(path) as temporary:
        itk.imwrite(label_map, str(temporary), compression=True)
    return path


def _check_size(frames: NDArray[np.uint8], shape: tuple[int, ...], image_path: Path) -> None:
    """Refuse a label map (T, H, W) that does not have the image's `shape`."""
    if frames.shape != shape:
        raise ValueError(
            f"{image_path}: image is {shape} but the label map to write is {frames.shape} (frames, rows, columns)"
        )
