"""Compute where an image is in a network's square, and how its grey values are scaled, for code with and without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class LetterboxGeometry(NamedTuple):
    """Hold where an image is in the network's square, in pixels."""

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
        spacing_mm: (row, column); both axes get the same millimetres per pixel (to less than one pixel of the square).
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


def byte_scale(low: float, high: float) -> tuple[float, float]:
    """Return (offset, factor) for an image with values from low to high: (value - offset) * factor is within 0..255.

    See `transforms.array.scale_to_bytes`.
    """
    if low >= 0 and high <= 1:
        return 0.0, 255.0
    if low >= 0 and high <= 255:
        return 0.0, 1.0
    return low, 255 / (high - low) if high > low else 0.0
