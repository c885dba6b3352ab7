"""Turn hand drawings into label maps: brush strokes in the structures' colours, on an empty sector, become classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from synboost_monai.serving.demo.sources import LabelSource
from synboost_monai.structures import BLOOD, NUM_CLASSES, STRUCTURES
from synboost_monai.synthesis.writers import write_nifti
from synboost_monai.transforms.label_map_array import (
    SECTOR_HALF_ANGLE_DEG,
    colour_sector_label_map,
    default_sector_mask,
    sector_label_map,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

CANVAS_HEIGHT = 320
"""Pixels from the probe to the deepest point."""
CANVAS_SHAPE = (CANVAS_HEIGHT, round(2 * CANVAS_HEIGHT * float(np.sin(np.deg2rad(SECTOR_HALF_ANGLE_DEG)))))
"""(H, W) of the canvas, which the default sector fills."""
CANVAS_DEPTH_MM = 150.0
"""Depth of every drawing, that of a usual apical view."""
CANVAS_SPACING_MM = (CANVAS_DEPTH_MM / CANVAS_HEIGHT,) * 2
"""(row, column)."""
SMOOTHING_PIXELS = 5
"""Side of the neighbourhood whose most frequent class a pixel gets: the mixed colours of a stroke's border vanish."""
HALF_OPAQUE = 128
"""Opacity, of 255, from which a layer's pixel counts as drawn."""


def canvas() -> NDArray[np.uint8]:
    """Return the empty sector, RGB (H, W, 3)."""
    return colour_sector_label_map(
        sector_label_map(np.zeros(CANVAS_SHAPE, np.uint8), default_sector_mask(CANVAS_SHAPE))
    )


def brush_colours() -> list[str]:
    """Return the structures' colours as `#rrggbb`."""
    return ["#{:02x}{:02x}{:02x}".format(*structure.colour) for structure in STRUCTURES]


def drawn_label_map(layers: Sequence[NDArray[Any]]) -> NDArray[np.uint8]:
    """Convert brush strokes to classes.

    A pixel that is at least half opaque gets the structure of the nearest colour, later layers above earlier ones; then the most
    frequent class around it. Closed outlines of the ventricle's cavity and of the atrium are filled, where nothing else is drawn.

    Args:
        layers: RGBA, (h, w, 4) uint8 each; resized to `CANVAS_SHAPE` where the size differs.
    Returns:
        (H, W), classes 0..3.
    Raises:
        ValueError: if a layer is not an RGBA picture, or nothing is drawn.
    """
    label_map = np.zeros(CANVAS_SHAPE, np.uint8)
    colours = np.array([structure.colour for structure in STRUCTURES], dtype=np.int32)  # (S, 3)
    indices = np.array([structure.class_index for structure in STRUCTURES], dtype=np.uint8)
    for layer in layers:
        pixels = _on_canvas(np.asarray(layer))
        is_drawn = pixels[..., 3] >= HALF_OPAQUE
        distance = ((pixels[is_drawn][:, None, :3].astype(np.int32) - colours) ** 2).sum(axis=-1)
        label_map[is_drawn] = indices[distance.argmin(axis=-1)]
    if not label_map.any():
        raise ValueError("nothing is drawn yet: paint the structures in their colours, or outline them")
    shares = [ndimage.uniform_filter((label_map == k).astype(np.float32), SMOOTHING_PIXELS) for k in range(NUM_CLASSES)]
    label_map = np.argmax(shares, axis=0).astype(np.uint8)
    for structure in (s for s in STRUCTURES if s.tissue == BLOOD):
        mask = label_map == structure.class_index
        label_map[ndimage.binary_fill_holes(mask) & (label_map == 0)] = structure.class_index
    return label_map


def write_drawing(label_map: NDArray[np.uint8], path: Path) -> LabelSource:
    """Write a drawing as a label map to synthesise from, with the canvas's spacing."""
    write_nifti(label_map, CANVAS_SPACING_MM, path, "SynBoost-MONAI drawing")
    return LabelSource(path)


def _on_canvas(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Resize a layer to the canvas's grid by nearest pixel: colours must not mix."""
    if pixels.ndim != 3 or pixels.shape[2] != 4:
        raise ValueError(f"drawing.py: expected layers (h, w, 4), RGBA, got {pixels.shape}")
    rows, columns = (
        ((np.arange(n) + 0.5) * have / n).astype(np.int64) for n, have in zip(CANVAS_SHAPE, pixels.shape[:2])
    )
    return pixels[np.ix_(rows, columns)].astype(np.uint8)
