"""Ultrasound images: from a file to the network's square and back to the file's own grid.

Display order: rows run from the probe downwards, columns from left to right, as on the screen. Files store (x, y); reading
transposes, writing transposes back. S: structures, one mask each. H, W: native rows and columns. N: side of the square.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from synboost_monai.io import (
    METAIMAGE_SUFFIXES,
    NIFTI_SUFFIXES,
    Plane,
    atomic_path,
    image_stem,
    image_suffix,
    read_plane,
)
from synboost_monai.labels import BACKGROUND_INDEX, NUM_CLASSES, STRUCTURES

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Per colour channel, intensities in [0, 1]: what CLIPSeg's published input is normalised with."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Per colour channel, intensities in [0, 1]: what CRIS's published input is normalised with."""
OUTPUT_FORMATS = ("same", "nifti")
"""How label maps are written: in the image's own format, or always as NIfTI."""

logger = logging.getLogger(__name__)


# --- files -----------------------------------------------------------------------------------------------------------


def load_echo(path: str | os.PathLike[str]) -> tuple[MetaTensor, tuple[float, float]]:
    """Read one image or label map in display order.

    Its meta data is what MONAI's readers give (`filename_or_obj`, `affine` of the stored array, `spatial_shape`), so MONAI Label
    can write a label map back; `spatial_shape` is always the volume of one plane, (W, H, 1).

    Args:
        path: NIfTI or MetaImage of one plane, or PNG (colours become grey; its spacing is taken as 1 mm).
    Returns:
        pixels (1, H, W), float32, the file's own values; spacing_mm (row, column).
    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not an image of one plane.
    """
    path = Path(path)
    plane = _read_png(path) if image_suffix(path) == ".png" else read_plane(path)
    height, width = plane.pixels.shape
    affine = _affine(path, plane.spacing_mm)
    meta = {
        "filename_or_obj": str(path),
        "original_affine": affine.copy(),
        "spatial_shape": np.array([width, height, 1]),
    }
    pixels = torch.from_numpy(np.ascontiguousarray(plane.pixels, dtype=np.float32))[None]
    return MetaTensor(pixels, affine=torch.from_numpy(affine), meta=meta), plane.spacing_mm


def write_label_map(
    label_map: NDArray[Any] | Tensor,
    image_path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    output_format: str = "same",
) -> Path:
    """Write a label map that overlays its image exactly: same stored order, shape, spacing, origin and orientation; uint8.

    Args:
        label_map: (H, W) in display order.
        image_path: the image that it belongs to; its header is copied.
        target: where to write, without a suffix; the format decides it: .nii.gz for NIfTI, .mha for MetaImage (header and
            pixels in one file, so that it appears whole or not at all), .png for PNG.
        output_format: "same" as the image, or "nifti".
    Returns:
        path of the file.
    Raises:
        ValueError: if the format is unknown or the sizes differ.
    """
    image_path, pixels = Path(image_path), np.ascontiguousarray(np.asarray(label_map), dtype=np.uint8)
    if output_format not in OUTPUT_FORMATS:
        raise ValueError(f"array.py: output_format must be one of {', '.join(OUTPUT_FORMATS)}, got {output_format!r}")
    suffix = image_suffix(image_path)
    if suffix in NIFTI_SUFFIXES:
        return _write_nifti_like(pixels, image_path, Path(f"{target}.nii.gz"))
    if output_format == "nifti":
        return _write_nifti(pixels, _affine(image_path), Path(f"{target}.nii.gz"))
    if suffix in METAIMAGE_SUFFIXES:
        return _write_metaimage_like(pixels, image_path, Path(f"{target}.mha"))
    from PIL import Image

    path = Path(f"{target}.png")
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary)
    return path


def check_label_map(label_map: Tensor, image_shape: Sequence[int] | None, path: str) -> None:
    """Refuse a label map that is not one of this project, or not one of this image.

    Args:
        label_map: (1, H, W).
        image_shape: shape of the image, (1, H, W); None leaves the size unchecked.
        path: the label map's file, for the message.
    Raises:
        ValueError: if a class is not 0..3, a value is a fraction, or the shapes differ.
    """
    if image_shape is not None and tuple(label_map.shape[-2:]) != tuple(image_shape[-2:]):
        raise ValueError(
            f"{path}: image is {tuple(image_shape[-2:])} but label map is {tuple(label_map.shape[-2:])} (rows, columns); "
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
    items: Sequence[Mapping[str, Any]], *, needs_label: bool = False, check_labels: bool = True
) -> list[dict[str, Any]]:
    """Open every file of a datalist's items before work begins, so that a bad one stops the run while nothing is written.

    Args:
        items: of `data.list_images` or `data.read_datalist`.
        needs_label: each item must have a label map (evaluation).
        check_labels: look at the label maps that are there.
    Returns:
        the items, each with `case`: its file's name without suffix, or with its folders where names repeat.
    Raises:
        FileNotFoundError, ValueError: of the first bad file.
    """
    paths = [os.path.abspath(item["image"]) for item in items]
    stems = [image_stem(path) for path in paths]
    root = os.path.commonpath([os.path.dirname(p) for p in paths]) if paths else ""
    checked = []
    for item, path, stem in zip(items, paths, stems):
        image, _ = load_echo(path)
        if needs_label and not item.get("label"):
            raise ValueError(f"{path}: has no label map in the datalist; evaluation needs one for each image")
        if check_labels and item.get("label"):
            check_label_map(load_echo(item["label"])[0], image.shape, str(item["label"]))
        is_unique = stems.count(stem) == 1
        relative = os.path.relpath(os.path.dirname(path), root).replace(os.sep, "_")
        checked.append({**item, "case": stem if is_unique else f"{relative}_{stem}"})
    cases = [item["case"] for item in checked]
    if len(set(cases)) < len(cases):
        twice = next(case for case in cases if cases.count(case) > 1)
        raise ValueError(
            f"array.py: two images are both called {twice}; their label maps would overwrite each other, rename one"
        )
    return checked


# --- geometry --------------------------------------------------------------------------------------------------------


class LetterboxGeometry(NamedTuple):
    """Where an image lies in the network's square; all in pixels."""

    native_height: int
    native_width: int
    inner_height: int
    """Rows that the image takes in the square."""
    inner_width: int
    top: int
    """Rows of padding above."""
    left: int
    size: int
    """Side of the square."""


def letterbox_geometry(
    shape: Sequence[int], spacing_mm: Sequence[float], size: int, keep_aspect: bool = True
) -> LetterboxGeometry:
    """Fit an image into a square.

    Args:
        shape: (H, W).
        spacing_mm: (row, column); both axes get the same millimetres a pixel (to less than one pixel of the square).
        size: side of the square.
        keep_aspect: False squashes the image to fill the square, as the published experiments did.
    """
    height, width = int(shape[-2]), int(shape[-1])
    if not keep_aspect:
        return LetterboxGeometry(height, width, size, size, 0, 0, size)
    height_mm, width_mm = height * float(spacing_mm[0]), width * float(spacing_mm[1])
    pixels_per_mm = size / max(height_mm, width_mm)
    inner_height = min(max(round(height_mm * pixels_per_mm), 1), size)
    inner_width = min(max(round(width_mm * pixels_per_mm), 1), size)
    top, left = (size - inner_height) // 2, (size - inner_width) // 2
    return LetterboxGeometry(height, width, inner_height, inner_width, top, left, size)


def letterbox_image(image: Tensor, geometry: LetterboxGeometry) -> Tensor:
    """Image (1, H, W) -> (1, N, N) uint8, 0..255, black around: bilinear, smoothed where it shrinks."""
    inner = resize(scale_to_bytes(image), geometry.inner_height, geometry.inner_width)
    return _pad(inner, geometry).round().clamp(0, 255).to(torch.uint8)


def letterbox_label_map(label_map: Tensor, geometry: LetterboxGeometry) -> Tensor:
    """Label map (1, H, W) -> (1, N, N) uint8: each class is resized by itself, then the largest share wins."""
    onehot = torch.stack([(label_map[0] == k).float() for k in range(NUM_CLASSES)])  # (K, H, W)
    inner = resize(onehot, geometry.inner_height, geometry.inner_width).argmax(dim=0, keepdim=True)
    return _pad(inner, geometry, BACKGROUND_INDEX).to(torch.uint8)


def scale_to_bytes(image: Tensor) -> Tensor:
    """Grey values -> 0..255, float32.

    Values within 0..255 that are not all within 0..1 stay as they are (8-bit images, whatever type stores them), values within
    0..1 are multiplied by 255, others are stretched between their smallest and largest (a constant image becomes black).
    """
    image = image.float()
    low, high = image.min(), image.max()
    if low >= 0 and high <= 1:
        return image * 255
    if low >= 0 and high <= 255:
        return image
    return (image - low) * (255 / (high - low)) if high > low else torch.zeros_like(image)


def masks_of_label_map(label_map: Tensor) -> Tensor:
    """Label map (1, H, W) -> one mask a structure, (S, H, W) float32."""
    indices = torch.tensor([s.class_index for s in STRUCTURES], dtype=label_map.dtype, device=label_map.device)
    return (label_map == indices[:, None, None]).float()


def normalise_image(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Image (1, N, N), uint8 0..255 or float [0, 1] -> the network's three channels, (3, N, N) float32."""
    grey = image.float() / 255 if image.dtype == torch.uint8 else image
    return (grey - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


# --- helpers ---------------------------------------------------------------------------------------------------------


def plain(tensor: Tensor) -> Tensor:
    """Without meta data: MetaTensors cost time in each operation."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """(C, H, W) float -> (C, height, width): bilinear, pixel centres kept, smoothed where it shrinks."""
    return F.interpolate(image[None], size=(height, width), mode="bilinear", align_corners=False, antialias=True)[0]


def _pad(image: Tensor, geometry: LetterboxGeometry, value: float = 0) -> Tensor:
    g = geometry
    right, bottom = g.size - g.inner_width - g.left, g.size - g.inner_height - g.top
    return F.pad(image, (g.left, right, g.top, bottom), value=value)


def _read_png(path: Path) -> Plane:
    """A PNG as one grey plane of 1 mm."""
    from PIL import Image

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with Image.open(path) as image:
            image.load()
            is_deep = (
                image.mode.startswith("I") or image.mode == "F"
            )  # 16 and 32 bits a pixel: conversion to "L" would clip
            pixels = np.asarray(image if is_deep else image.convert("L"))
    except Exception as error:  # PIL raises many kinds for a file that is no PNG
        raise ValueError(
            f"{path}: not a readable PNG image ({str(error).splitlines()[0] if str(error) else type(error).__name__}); fetch it again"
        ) from error
    if pixels.ndim != 2 or pixels.size == 0:
        raise ValueError(f"{path}: expected one grey image (H, W), got an array of shape {pixels.shape}")
    return Plane(pixels, (1.0, 1.0))


def _affine(path: Path, spacing_mm: Sequence[float] | None = None) -> NDArray[np.float64]:
    """Voxel (x, y, z) of the stored array -> millimetres (right, anterior, superior), 4 x 4, as nibabel and MONAI use it."""
    suffix = image_suffix(path)
    if suffix in NIFTI_SUFFIXES:
        import nibabel as nib

        return np.asarray(nib.load(path).affine, dtype=np.float64)
    if suffix in METAIMAGE_SUFFIXES:
        return _metaimage_affine(path)
    row, column = spacing_mm or (1.0, 1.0)
    return np.diag([-column, -row, 1.0, 1.0])


def _metaimage_affine(path: Path) -> NDArray[np.float64]:
    """Affine of a MetaImage header; ITK's axes are left, posterior, superior."""
    import itk

    image = itk.imread(str(path))
    dimension = image.GetImageDimension()
    affine = np.eye(4)
    direction = itk.array_from_matrix(image.GetDirection())
    affine[:dimension, :dimension] = direction @ np.diag(list(image.GetSpacing()))
    affine[:dimension, 3] = list(image.GetOrigin())
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _write_nifti_like(pixels: NDArray[np.uint8], image_path: Path, path: Path) -> Path:
    """A label map with its image's NIfTI header: shape of the stored array, affine, codes and units stay."""
    import nibabel as nib

    image = nib.load(image_path)
    header = image.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_min"], header["cal_max"] = 0, 0
    _check_size(pixels, image.shape[:2][::-1], image_path)
    with atomic_path(path) as temporary:
        nib.save(type(image)(pixels.T.reshape(image.shape), None, header), temporary)
    return path


def _write_nifti(pixels: NDArray[np.uint8], affine: NDArray[np.float64], path: Path) -> Path:
    import nibabel as nib

    with atomic_path(path) as temporary:
        nib.save(nib.Nifti1Image(pixels.T, affine), temporary)
    return path


def _write_metaimage_like(pixels: NDArray[np.uint8], image_path: Path, path: Path) -> Path:
    """A label map with its MetaImage's size, spacing, origin and direction."""
    import itk

    image = itk.imread(str(image_path))
    shape = itk.array_view_from_image(image).shape  # (H, W) or (1, H, W)
    _check_size(pixels, shape[-2:], image_path)
    label_map = itk.image_from_array(pixels.reshape(shape))
    label_map.SetSpacing(image.GetSpacing())
    label_map.SetOrigin(image.GetOrigin())
    label_map.SetDirection(image.GetDirection())
    with atomic_path(path) as temporary:
        itk.imwrite(label_map, str(temporary), compression=True)
    return path


def _check_size(pixels: NDArray[np.uint8], shape: Sequence[int], image_path: Path) -> None:
    if pixels.shape != tuple(shape):
        raise ValueError(
            f"{image_path}: image is {tuple(shape)} but the label map to write is {pixels.shape} (rows, columns)"
        )
