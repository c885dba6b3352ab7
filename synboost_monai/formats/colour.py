"""Convert colours to grey."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LUMA_WEIGHTS = (19595, 38470, 7471)
"""Red, green, blue: 0.299, 0.587, 0.114 of ITU-R BT.601 as parts of 2^16 (what PIL's conversion to grey takes)."""


def luma(colours: NDArray[Any]) -> NDArray[Any]:
    """Convert colours to grey by ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B.

    Args:
        colours: (..., 3), or (..., 4) with alpha (0 is transparent and becomes black).
    Returns:
        (...), uint8 (rounded) for uint8, else float32.
    """
    if colours.dtype == np.uint8:
        grey = np.full(colours.shape[:-1], 1 << 15, np.uint32)  # a half, for rounding
        for i, weight in enumerate(_LUMA_WEIGHTS):
            grey += colours[..., i].astype(np.uint32) * np.uint32(weight)
        grey >>= 16
        if colours.shape[-1] == 4:
            grey = (grey * colours[..., 3] + 127) // 255
        return grey.astype(np.uint8)
    brightness = np.zeros(colours.shape[:-1], np.float32)
    for i, weight in enumerate(_LUMA_WEIGHTS):
        brightness += colours[..., i].astype(np.float32) * np.float32(weight / (1 << 16))
    if colours.shape[-1] == 4:
        opaque = np.iinfo(colours.dtype).max if colours.dtype.kind in "iu" else 1.0
        brightness *= colours[..., 3].astype(np.float32) / np.float32(opaque)
    return brightness
