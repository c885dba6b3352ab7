"""Fit ultrasound images into the network's square and normalise them.

Display order: rows run from the probe downwards, columns from left to right, as on the screen. S: structures, one mask
each. H, W: native rows and columns. N: side of the square. T: frames of a sequence (1 for a single image).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import Tensor

from synboost_monai.letterbox import LetterboxGeometry, byte_scale
from synboost_monai.structures import BACKGROUND_INDEX, NUM_CLASSES, STRUCTURES

# --- geometry --------------------------------------------------------------------------------------------------------


def letterbox_image(image: Tensor, geometry: LetterboxGeometry) -> Tensor:
    """Fit an image (T, H, W) into (T, N, N) uint8, 0..255, with black around it: bilinear, smoothed where it shrinks.

    The frames of a sequence share one scale of brightness; they are resized one at a time, so that no second copy of a long
    sequence is made.
    """
    return _letterbox(image, geometry, *_byte_scale(image))


def letterbox_frames(frames: Tensor, geometry: LetterboxGeometry) -> Tensor:
    """Fit frames of a clip (T, H, W), 0..255, into (T, N, N) uint8 as `letterbox_image` does, but keep each frame's grey values.

    A frame therefore gives the same result in every window of its clip.
    """
    return _letterbox(frames, geometry, 0.0, 1.0)


def _letterbox(image: Tensor, geometry: LetterboxGeometry, low: float, factor: float) -> Tensor:
    boxed = torch.empty((len(image), geometry.size, geometry.size), dtype=torch.uint8)
    for i, frame in enumerate(image.split(1)):
        inner = resize((frame.float() - low) * factor, geometry.inner_height, geometry.inner_width)
        boxed[i] = _pad(inner, geometry)[0].round().clamp(0, 255).to(torch.uint8)
    return boxed


def letterbox_label_map(label_map: Tensor, geometry: LetterboxGeometry) -> Tensor:
    """Fit a label map (1, H, W) into (1, N, N) uint8: each class is resized by itself, then the largest share wins."""
    onehot = torch.stack([(label_map[0] == k).float() for k in range(NUM_CLASSES)])  # (K, H, W)
    inner = resize(onehot, geometry.inner_height, geometry.inner_width).argmax(dim=0, keepdim=True)
    return _pad(inner, geometry, BACKGROUND_INDEX).to(torch.uint8)


def scale_to_bytes(image: Tensor) -> Tensor:
    """Scale grey values to 0..255, float32, by the range of the whole image or sequence.

    | values | become | such as |
    |---|---|---|
    | all within 0..1 | times 255 | float in [0, 1], masks |
    | all within 0..255 | as they are | 8 bits, whatever type stores them |
    | others | smallest -> 0, largest -> 255, straight between | int16 with negative values, uint16 of 12 bits, float in [-1, 1] |
    | one value outside 0..255 | 0 | a blank image |

    The third row depends on each image's darkest and brightest pixel, and one outlier darkens the rest: if a fixed window is
    known, save images in 8 bits.

    Args:
        image: any shape and number type.
    """
    low, factor = _byte_scale(image)
    return (image.float() - low) * factor


def _byte_scale(image: Tensor) -> tuple[float, float]:
    """Return (low, factor) of `scale_to_bytes`: (value - low) * factor is within 0..255."""
    return byte_scale(float(image.min()), float(image.max()))


def masks_of_label_map(label_map: Tensor) -> Tensor:
    """Split a label map (1, H, W) into one mask per structure, (S, H, W) float32."""
    indices = torch.tensor([s.class_index for s in STRUCTURES], dtype=label_map.dtype, device=label_map.device)
    return (label_map == indices[:, None, None]).float()


def normalise_image(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalise an image (..., 1, N, N), uint8 0..255 or float [0, 1], to the network's three channels, (..., 3, N, N) float32."""
    grey = image.float() / 255 if image.dtype == torch.uint8 else image
    return (grey - torch.tensor(mean)[:, None, None]).div_(torch.tensor(std)[:, None, None])


# --- helpers ---------------------------------------------------------------------------------------------------------


def plain(tensor: Tensor) -> Tensor:
    """Return the tensor without meta data: MetaTensors cost time in each operation."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize (C, H, W) float to (C, height, width): bilinear, pixel centres kept, smoothed where it shrinks."""
    return F.interpolate(image[None], size=(height, width), mode="bilinear", align_corners=False, antialias=True)[0]


def _pad(image: Tensor, geometry: LetterboxGeometry, value: float = 0) -> Tensor:
    g = geometry
    right, bottom = g.size - g.inner_width - g.left, g.size - g.inner_height - g.top
    return F.pad(image, (g.left, right, g.top, bottom), value=value)
