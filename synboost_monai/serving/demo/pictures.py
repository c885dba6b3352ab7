"""Draw the page's pictures with square pixels: an image, its masks, and where the prompts disagree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from synboost_monai.pages.pictures import overlay
from synboost_monai.serving.demo.segmenting import OpenImage, Segmentation

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZE = 560
"""Longer side of a picture, in pixels."""
FILL_OPACITY = 0.35
MOST_SPREAD = 0.25
"""Spread that is shown brightest: half of the largest possible one."""


def image_picture(image: OpenImage, frame_index: int = 0) -> NDArray[np.uint8]:
    """Draw the frame alone, (h, w, 3)."""
    return overlay(image.frames[frame_index], None, image.aspect, SIZE)


def mask_picture(segmentation: Segmentation, is_filled: bool = False) -> NDArray[np.uint8]:
    """Draw the frame with the masks as outlines, or filled too, (h, w, 3)."""
    opacity = FILL_OPACITY if is_filled else 0.0
    return overlay(segmentation.grey, segmentation.label_map, segmentation.image.aspect, SIZE, opacity)


def spread_picture(segmentation: Segmentation) -> NDArray[np.uint8] | None:
    """Draw the darkened frame, glowing where prompts that mean the same disagree, (h, w, 3); None with one prompt."""
    if segmentation.spread is None:
        return None
    from matplotlib import colormaps
    from PIL import Image

    frame = overlay(segmentation.grey, None, segmentation.image.aspect, SIZE).astype(np.float32)
    height, width = frame.shape[:2]
    share = np.clip(segmentation.spread / MOST_SPREAD, 0, 1).astype(np.float32)
    resized = np.asarray(Image.fromarray(share).resize((width, height), Image.Resampling.BILINEAR))
    glow = colormaps["inferno"](resized)[..., :3] * 255
    opacity = np.sqrt(resized)[..., None]
    return ((1 - opacity) * 0.55 * frame + opacity * glow).round().astype(np.uint8)


def stretched(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Enlarge the pixels of a small square picture, grey or RGB, by a whole number."""
    factor = max(1, round(SIZE / picture.shape[0]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)
