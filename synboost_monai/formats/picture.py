"""Read pictures (PNG, JPEG, BMP), which have no position or scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synboost_monai.formats.bounded import check_sizes
from synboost_monai.formats.colour import luma
from synboost_monai.formats.grid import Grid

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
"""File name suffixes of pictures."""
_FORMATS = ("PNG", "JPEG", "BMP")
"""Formats that are read, whatever the file's name: PIL knows forty others, and runs programs for some."""


def read_picture(path: Path) -> NDArray[Any]:
    """Read a picture as one grey plane (H, W), uint8 or as deep as stored; a JPEG is rotated by its orientation tag.

    Args:
        path: path of a regular file.
    Raises:
        ValueError: if it is not such a picture, is damaged, too large, or has several pictures.
    """
    from PIL import Image, ImageOps

    try:
        image = Image.open(path, formats=_FORMATS)
    except Exception as error:  # PIL raises many kinds for a file that is not a picture
        raise ValueError(_unreadable(path, error)) from error
    with image:
        check_sizes(path, image.size, image.size)  # before it is decoded
        num_pictures = getattr(image, "n_frames", 1) if image.format == "PNG" else 1
        if num_pictures > 1:
            raise ValueError(f"{path}: expected one plane, got an animation of {num_pictures}; export one of them")
        try:
            image.load()
            pixels = _grey(ImageOps.exif_transpose(image) if image.format != "PNG" else image)
        except Exception as error:
            raise ValueError(_unreadable(path, error)) from error
    if pixels.ndim != 2 or pixels.size == 0:
        raise ValueError(f"{path}: expected one image (H, W), got an array of shape {pixels.shape}")
    return pixels


def picture_grid(shape: tuple[int, ...]) -> Grid:
    """Return the grid of a picture (H, W): a pixel counts as 1 mm, and the orientation is unknown."""
    return Grid((shape[1], shape[0]), (1.0, 1.0), np.diag([-1.0, -1.0, 1.0, 1.0]), is_oriented=False)


def _grey(image: Any) -> NDArray[Any]:
    """Return the grey values of a decoded picture."""
    if image.mode.startswith("I") or image.mode == "F":  # 16 and 32 bits a pixel: conversion to "L" would clip
        return np.asarray(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return luma(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("L"))  # colours by the weights of `luma`


def _unreadable(path: Path, error: Exception) -> str:
    kind = path.suffix[1:].upper().replace("JPG", "JPEG")
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{path}: not a readable {kind} image ({first}); fetch it again"
