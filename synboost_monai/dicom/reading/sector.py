"""Find the ultrasound sector in a picture, and say whether there may be text within it.

Pixels outside the sector may be burned-in text, so no exported picture shows them; text within the sector is not removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_SAMPLES = 24
"""Most frames that are examined, spread over the clip."""
MAX_SAMPLE_PIXELS = 1 << 27
"""Most pixels of all these frames together; fewer frames are examined if the pictures are so large that they would have more."""
MAX_SIDE = 2048
"""Longest side in pixels; of larger pictures, which no ultrasound system makes, only every second, third ... row and column is used."""
LEAST_CHANGE = 6
"""Grey levels between the darkest and the brightest moment of a pixel that shows tissue; text does not change."""
LEAST_GREY = 12
"""Least grey level of a pixel that is not background; used if there is only one frame."""
LEAST_SHARE = 0.02
"""Least share of the picture that a sector fills; a smaller one is not believed."""
LEAST_SAMPLES = 8
"""Fewest frames with which still parts of a clip can be told from moving ones."""
STROKE_PIXELS, STROKE_LENGTH = 4, 4
"""Size of a letter's stroke: it stands out from the pixels up to STROKE_PIXELS left and right of it, over STROKE_LENGTH rows."""
STROKE_CONTRAST, STROKE_STEADINESS = 5.0, 1.5
"""Least contrast of a stroke in the mean of the frames: in grey levels, and in multiples of its own standard deviation over time."""


def sample_indices(num_frames: int, num_pixels: int = 1) -> list[int]:
    """Return the indices of the frames to give to `find_sector`, if each has `num_pixels`."""
    most = min(MAX_SAMPLES, max(2, MAX_SAMPLE_PIXELS // num_pixels))
    return sorted({int(i) for i in np.linspace(0, num_frames - 1, min(num_frames, most)).round()})


def moves(frames: NDArray[Any]) -> bool:
    """Return whether a part of the frames (T, H, W) as large as a sector changes; only then can motion tell it from text."""
    return len(frames) > 1 and bool((np.ptp(frames, axis=0) >= LEAST_CHANGE).mean() >= LEAST_SHARE)


def find_sector(frames: NDArray[Any], within: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Return the sector of a clip: the convex hull of the largest part of the picture that moves.

    In a still with regions, it is the hull of the largest part that is not dark. In a still without regions no sector is found, since
    nothing distinguishes its tissue from its text.

    Parts are separated before the largest is taken, so that text, scales and the ECG, which do not touch the sector, stay outside.
    Text that touches the sector cannot be told from it.

    Args:
        frames: (T, H, W) grey, the samples of a clip.
        within: (H, W), the header's regions (all True for frames cropped to one); pixels outside of them are ignored.
            None: no region is known.
    Returns:
        (H, W); all False if no sector is found.
    """
    from scipy import ndimage

    step = -(-max(frames.shape[1:]) // MAX_SIDE)
    if step > 1:
        coarse = find_sector(frames[:, ::step, ::step], None if within is None else within[::step, ::step])
        rows, columns = frames.shape[1:]
        whole = coarse.repeat(step, axis=0)[:rows].repeat(step, axis=1)[:, :columns]
        return whole if within is None else whole & within
    empty = np.zeros(frames.shape[1:], dtype=bool)
    if moves(frames):
        is_shown = np.ptp(frames, axis=0) >= LEAST_CHANGE
    elif within is not None:
        is_shown = frames.max(axis=0) >= LEAST_GREY
    else:
        return empty
    if within is not None:
        is_shown &= within
    size = 5 if min(is_shown.shape) >= 300 else 3  # in a small picture, text is near
    density = ndimage.uniform_filter(is_shown.astype(np.float32), size)
    pieces, count = ndimage.label(density > 0.3)  # speckle grows together; thin lines and single pixels go
    if not count:
        return empty
    sizes = np.bincount(pieces.ravel())[1:]
    piece = pieces == 1 + int(sizes.argmax())
    # parts that hang on by a thread are cut off
    opened = ndimage.binary_opening(piece, iterations=max(2, min(piece.shape) // 100))
    pieces, count = ndimage.label(opened)
    if count:
        piece = pieces == 1 + int(np.bincount(pieces.ravel())[1:].argmax())
    if piece.mean() < LEAST_SHARE:
        return empty
    hull = _convex_hull(piece)
    return hull if within is None else hull & within


def has_text(frames: NDArray[Any], sector: NDArray[np.bool_]) -> bool | None:
    """Return whether there may be text within the sector: strokes at the same place in every frame, while tissue and its speckle move.

    Only vertical strokes count, which all writing has; reverberations of the probe, which do not move either, are horizontal. Faint or
    tiny text, and text that only some of the frames show, is not found (docs/hospital.md has figures).

    Args:
        frames: (T, H, W) grey, samples from the whole clip.
        sector: (H, W), True where pixels are shown.
    Returns:
        True if there are such strokes (text or marks), False if not, None if the frames are too few or too still to tell.
    """
    from scipy import ndimage

    if len(frames) < LEAST_SAMPLES or not moves(frames):
        return None
    total, squares = np.zeros((2, *frames.shape[1:]), np.float32)
    for frame in frames:  # one at a time: all frames as floats would take much memory
        total += frame
        squares += frame.astype(np.float32) ** 2
    mean = total / len(frames)
    deviation = np.sqrt(np.maximum(squares / len(frames) - mean**2, 0))
    contrast = np.maximum(_ridge(mean), _ridge(-mean))  # bright strokes, and dark ones
    is_stroke = (contrast >= STROKE_CONTRAST) & (contrast >= STROKE_STEADINESS * deviation)
    is_stroke &= ndimage.binary_erosion(sector, iterations=2)  # the sector's own edge does not move
    return bool(ndimage.binary_opening(is_stroke, np.ones((STROKE_LENGTH, 1))).any())


def _ridge(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how far each pixel is above the lowest near it on the left, and on the right; the smaller of the two."""
    sides = []
    for sign in (1, -1):
        lowest = np.minimum.reduce([np.roll(picture, sign * step, axis=1) for step in range(1, STROKE_PIXELS + 1)])
        sides.append(picture - lowest)
    return np.minimum(*sides)


def _convex_hull(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask of all pixels within the convex hull of a mask."""
    from scipy.spatial import ConvexHull, QhullError

    rows = np.flatnonzero(mask.any(axis=1))
    left = mask.argmax(axis=1)[rows]
    right = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)[rows]
    points = np.concatenate([np.stack([rows, left], axis=1), np.stack([rows, right], axis=1)])
    try:
        hull = ConvexHull(points)
    except QhullError:  # a line
        return mask
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    inside = np.ones(mask.shape, dtype=bool)
    for a, b, c in hull.equations:
        inside &= a * y + b * x + c <= 1e-6
    return inside
