"""Where the ultrasound sector is in a picture: what lies outside of it may be burned-in text, and no exported picture shows it. And whether
text may stand within it, which nothing takes away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_SAMPLES = 24
"""Frames that are looked at, spread over the clip."""
MAX_SAMPLE_PIXELS = 1 << 27
"""Of all these frames; fewer are looked at of pictures so large that they would be more."""
MAX_SIDE = 2048
"""Pixels; of larger pictures, which no ultrasound system makes, every second, third ... row and column is looked at."""
LEAST_CHANGE = 6
"""Grey levels between the darkest and the brightest moment of a pixel that shows tissue; text does not change."""
LEAST_GREY = 12
"""Of a pixel that is not background, where there is one frame only."""
LEAST_SHARE = 0.02
"""Of the picture; a smaller sector is not believed."""
LEAST_SAMPLES = 8
"""Frames from which on what stands still in a clip is told from what moves."""
STROKE_PIXELS, STROKE_LENGTH = 4, 4
"""Width and length of a stroke of a letter: it stands out from what is up to so many pixels left and right of it, over so many rows."""
STROKE_CONTRAST, STROKE_STEADINESS = 5.0, 1.5
"""Grey levels by which a stroke stands out in the mean of the frames, and how many times its own standard deviation over time that is."""


def sample_indices(num_frames: int, num_pixels: int = 1) -> list[int]:
    """Indices of the frames that `find_sector` should see, where each has so many pixels."""
    most = min(MAX_SAMPLES, max(2, MAX_SAMPLE_PIXELS // num_pixels))
    return sorted({int(i) for i in np.linspace(0, num_frames - 1, min(num_frames, most)).round()})


def moves(frames: NDArray[Any]) -> bool:
    """Whether a part of the picture (T, H, W) changes that is as large as a sector; only then is it told from text by its motion."""
    return len(frames) > 1 and bool((np.ptp(frames, axis=0) >= LEAST_CHANGE).mean() >= LEAST_SHARE)


def find_sector(frames: NDArray[Any], within: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """The sector of a clip: the largest piece of the picture that moves, and its convex hull. Of a still within a region of the header:
    the largest piece that is not dark; of a still without regions nothing, as nothing tells its tissue from its text.

    Pieces are separated before the largest is taken, so that text, scales and the ECG, which do not touch the sector, stay outside.
    Text that touches the sector cannot be told from it.

    Args:
        frames: (T, H, W) grey, the samples of a clip.
        within: (H, W), the header's regions (all True for frames that were cut to one); nothing outside of them is looked at or found.
            None: no region is known.
    Returns:
        (H, W); all False where no sector is found.
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
    opened = ndimage.binary_opening(
        piece, iterations=max(2, min(piece.shape) // 100)
    )  # cuts off what hangs on by a thread
    pieces, count = ndimage.label(opened)
    if count:
        piece = pieces == 1 + int(np.bincount(pieces.ravel())[1:].argmax())
    if piece.mean() < LEAST_SHARE:
        return empty
    hull = _convex_hull(piece)
    return hull if within is None else hull & within


def has_text(frames: NDArray[Any], sector: NDArray[np.bool_]) -> bool | None:
    """Whether there may be text within the sector: strokes at the same place in every frame, while tissue and its speckle move.

    Only strokes that go up and down count, which all writing has; reverberations of the probe, which stand still too, lie flat. Faint or
    tiny text, and text that only some of the frames show, is not found (docs/hospital.md has figures).

    Args:
        frames: (T, H, W) grey, samples from the whole clip.
        sector: (H, W), what is shown.
    Returns:
        True: there are such strokes (text, marks, a picture that stands still); False: there are none; None: too few frames to tell.
    """
    from scipy import ndimage

    if len(frames) < LEAST_SAMPLES or not moves(frames):
        return None
    total, squares = np.zeros((2, *frames.shape[1:]), np.float32)
    for frame in frames:  # one at a time: as numbers with a fraction all together would be large
        total += frame
        squares += frame.astype(np.float32) ** 2
    mean = total / len(frames)
    deviation = np.sqrt(np.maximum(squares / len(frames) - mean**2, 0))
    contrast = np.maximum(_ridge(mean), _ridge(-mean))  # bright strokes, and dark ones
    is_stroke = (contrast >= STROKE_CONTRAST) & (contrast >= STROKE_STEADINESS * deviation)
    is_stroke &= ndimage.binary_erosion(sector, iterations=2)  # its own edge stands still
    return bool(ndimage.binary_opening(is_stroke, np.ones((STROKE_LENGTH, 1))).any())


def _ridge(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """By how much each pixel is above the lowest one near it on the left, and on the right; the smaller of the two."""
    sides = []
    for sign in (1, -1):
        lowest = np.minimum.reduce([np.roll(picture, sign * step, axis=1) for step in range(1, STROKE_PIXELS + 1)])
        sides.append(picture - lowest)
    return np.minimum(*sides)


def _convex_hull(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """All pixels within the convex hull of a mask."""
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
