"""Draw pictures of images and label maps, and embed them in a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synboost_monai.structures import STRUCTURES

PICTURE_SIZE = 288
"""Longer side of a picture, in pixels."""


def overlay(
    image: NDArray[Any],
    label_map: NDArray[Any] | None,
    spacing_mm: Sequence[float],
    size: int = PICTURE_SIZE,
    opacity: float = 0.22,
) -> NDArray[np.uint8]:
    """Draw a grey image with square pixels, with the structures filled lightly and outlined in their colours.

    Args:
        image: (H, W), any grey values.
        label_map: (H, W), classes 0..3; None shows the image alone.
        spacing_mm: (row, column).
        size: longer side of the picture.
        opacity: opacity of the fill; 0 draws only the outlines.
    Returns:
        RGB, (h, w, 3).
    """
    from PIL import Image
    from scipy.ndimage import binary_erosion

    low, high = float(image.min()), float(image.max())
    grey = ((image - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
    height, width = _shape(image, spacing_mm, size)
    picture = np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    picture = np.repeat(picture[..., None], 3, axis=-1)
    if label_map is not None:
        shown = np.asarray(
            Image.fromarray(label_map.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        )
        for structure in STRUCTURES:
            mask = shown == structure.class_index
            edge = mask & ~binary_erosion(mask, iterations=max(1, size // 128))
            picture[mask] = (1 - opacity) * picture[mask] + opacity * np.array(structure.colour)
            picture[edge] = structure.colour
    return picture.astype(np.uint8)


def colour_label_map(
    label_map: NDArray[Any], spacing_mm: Sequence[float], size: int = PICTURE_SIZE
) -> NDArray[np.uint8]:
    """Draw a label map in flat colours on a dark background, with square pixels."""
    from PIL import Image

    palette = np.full((256, 3), 24, dtype=np.uint8)
    for structure in STRUCTURES:
        palette[structure.class_index] = structure.colour
    height, width = _shape(label_map, spacing_mm, size)
    shown = Image.fromarray(label_map.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    return palette[np.asarray(shown)]


def picture_cell(
    picture: NDArray[np.uint8],
    alt: str,
    caption: str,
    is_missing: bool = False,
    starts_line: bool = False,
    jpeg: bool = False,
) -> dict[str, Any]:
    """Return one picture of a row.

    Args:
        picture: RGB, (h, w, 3).
        alt: text for readers who do not see the picture.
        caption: text under the picture.
        is_missing: whether the label map that should be on the picture was not kept.
        starts_line: whether the picture begins a new line.
        jpeg: use JPEG, with small losses and a quarter of the size, for many pictures of speckle.
    """
    from PIL import Image

    buffer = io.BytesIO()
    if jpeg:  # full colour resolution: thin outlines stay sharp
        Image.fromarray(picture).save(buffer, format="JPEG", quality=88, subsampling=0, optimize=True)
    else:
        Image.fromarray(picture).save(buffer, format="PNG")
    note = " (label map not kept)" if is_missing else ""
    height, width = picture.shape[:2]
    source = picture_source(buffer.getvalue())
    size = {"width": width, "height": height}
    return {"source": source, "alt": alt, "caption": caption + note, "starts_line": starts_line, **size}


def picture_source(content: bytes) -> str:
    """Return a PNG or JPEG as the source of an HTML image."""
    kind = "jpeg" if content.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def _shape(pixels: NDArray[Any], spacing_mm: Sequence[float], size: int) -> tuple[int, int]:
    """Return the height and width of the picture, with square pixels."""
    extent = np.array(pixels.shape) * np.asarray(spacing_mm, dtype=float)
    height, width = np.maximum(1, np.round(extent / extent.max() * size)).astype(int)
    return int(height), int(width)
