"""Find landmarks in a label map of an apical view, and draw a label map from landmarks.

The `NUM_LANDMARKS` points are spread by arc length between anchors that every heart has: the hinges of the mitral valve (where
cavity, myocardium and the outside meet), the apex of the cavity and of the epicardium, the corners of the myocardium's basal ends,
the ends of the left atrium at the ventricle and its roof.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from synboost_monai.heart.anatomy import long_axis
from synboost_monai.heart.geometry import fill_polygon
from synboost_monai.structures import LEFT_ATRIUM, LEFT_VENTRICULAR_CAVITY, MYOCARDIUM, STRUCTURES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Points = NDArray[np.float64]

HALF_ENDOCARDIUM = 24
"""Steps between landmarks from a hinge to the apex of the cavity."""
HALF_EPICARDIUM = 24
"""Steps from a corner of the myocardium to the apex of the epicardium."""
BASAL_STEPS = 4
"""Steps from a hinge to the corner of the myocardium beside it."""
HALF_ATRIUM = 16
"""Steps from an end of the left atrium to its roof."""

ENDOCARDIUM = slice(0, 2 * HALF_ENDOCARDIUM + 1)
"""Landmarks from the left hinge over the apex to the right hinge."""
EPICARDIUM = slice(ENDOCARDIUM.stop, ENDOCARDIUM.stop + 2 * (HALF_EPICARDIUM + BASAL_STEPS) - 1)
"""Landmarks from next to the left hinge over the left corner, the apex and the right corner to next to the right hinge."""
ATRIUM = slice(EPICARDIUM.stop, EPICARDIUM.stop + 2 * HALF_ATRIUM + 1)
"""Landmarks from the left end of the left atrium over its roof to the right end."""
VENTRICLE = slice(0, EPICARDIUM.stop)
"""Landmarks of cavity and myocardium, by which hearts are aligned."""
NUM_LANDMARKS = ATRIUM.stop


class LandmarkError(ValueError):
    """Raised if a label map lacks landmarks of an apical view; the message says which."""


def find_landmarks(label_map: NDArray[Any], spacing_mm: Sequence[float]) -> Points:
    """Find the landmarks of a label map.

    Args:
        label_map: (H, W), classes 0..3.
        spacing_mm: (row, column).
    Returns:
        (NUM_LANDMARKS, 2), (x, y) in mm from the centre of the first pixel.
    Raises:
        LandmarkError: if a structure is missing or the structures are not arranged as in an apical view.
    """
    absent = [s.name.replace("_", " ") for s in STRUCTURES if not (label_map == s.class_index).any()]
    if absent:
        raise LandmarkError(f"no {' and no '.join(absent)}")
    rows, columns = np.flatnonzero(label_map.any(axis=1)), np.flatnonzero(label_map.any(axis=0))
    part = np.pad(label_map[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 2)
    offset = np.array([columns[0] - 2, rows[0] - 2])
    step = np.array([spacing_mm[1], spacing_mm[0]], dtype=np.float64)  # (x, y)

    axis = long_axis(part, spacing_mm)
    if axis is None:
        raise LandmarkError("the left ventricular cavity has no opening at its base")
    down = (axis[0] - axis[1])[::-1] / np.linalg.norm(axis[0] - axis[1])  # (x, y), from the apex to the base
    right = np.array([down[1], -down[0]])

    cavity_mask, wall = part == LEFT_VENTRICULAR_CAVITY.class_index, part == MYOCARDIUM.class_index
    cavity = _outline(cavity_mask)
    wall_side = _longest_run(_distance(wall, cavity) <= _TOUCH_PX, cavity)
    endocardium = (
        wall_side * step if wall_side[0] @ (step * right) < wall_side[-1] @ (step * right) else wall_side[::-1] * step
    )
    hinges = endocardium[[0, -1]]
    middle = hinges.mean(axis=0)

    outer = _outline(cavity_mask | wall) * step
    epicardium = _arc(outer, *hinges, away_from=middle)
    apex = _farthest(epicardium, middle)
    is_basal = (epicardium - middle) @ down > -_BASAL_REACH * np.ptp(endocardium @ down)
    corners = []
    for side, lo, hi in ((-1, 0, apex), (1, apex + 1, len(epicardium))):
        reach = np.where(is_basal, (epicardium - middle) @ (down + side * right), -np.inf)[lo:hi]
        corners.append(lo + int(reach.argmax()))
    left, right_corner = corners
    if not 0 < left < apex < right_corner < len(epicardium) - 1:
        raise LandmarkError("the myocardium's basal ends were not found")

    atrium = _outline(part == LEFT_ATRIUM.class_index)
    distance = _distance(cavity_mask | wall, atrium)
    free = _longest_run(distance > max(_TOUCH_PX, distance.min() + 0.5), atrium) * step
    if free[0] @ right > free[-1] @ right:
        free = free[::-1]
    inner_apex, roof = _farthest(endocardium, middle), _farthest(free, middle)
    pieces = [
        _spread(endocardium, inner_apex, HALF_ENDOCARDIUM, HALF_ENDOCARDIUM),
        _resample(epicardium[: left + 1], BASAL_STEPS)[1:-1],
        _spread(epicardium[left : right_corner + 1], apex - left, HALF_EPICARDIUM, HALF_EPICARDIUM),
        _resample(epicardium[right_corner:], BASAL_STEPS)[1:-1],
        _spread(free, roof, HALF_ATRIUM, HALF_ATRIUM),
    ]
    return np.concatenate(pieces) + offset * step


def draw_landmarks(points: Points, shape: tuple[int, int], spacing_mm: Sequence[float]) -> NDArray[np.uint8]:
    """Draw the label map of landmarks: atrium first, myocardium over it, cavity last, so that no gap can be between them.

    Args:
        points: (NUM_LANDMARKS, 2), (x, y) in mm from the centre of the first pixel.
        shape: (H, W).
        spacing_mm: (row, column).
    """

    def fill(polygon: Points) -> NDArray[np.bool_]:
        return fill_polygon(polygon[:, 1] / spacing_mm[0], polygon[:, 0] / spacing_mm[1], shape)

    endocardium, epicardium, atrium = points[ENDOCARDIUM], points[EPICARDIUM], points[ATRIUM]
    hinge_middle = endocardium[[0, -1]].mean(axis=0)
    inside = hinge_middle + _OVERLAP * (endocardium[HALF_ENDOCARDIUM] - hinge_middle)
    label_map = np.zeros(shape, np.uint8)
    label_map[fill(np.concatenate([atrium, inside[None]]))] = LEFT_ATRIUM.class_index
    cavity = fill(endocardium)
    heart = fill(np.concatenate([endocardium[:1], epicardium, endocardium[-1:]])) | cavity
    label_map[heart] = MYOCARDIUM.class_index
    label_map[cavity] = LEFT_VENTRICULAR_CAVITY.class_index
    # a wedge between the ends of the muscle and of the atrium can be closed off
    label_map[ndimage.binary_fill_holes(label_map) & (label_map == 0)] = LEFT_ATRIUM.class_index
    return label_map


_TOUCH_PX = 1.2
"""Distance in pixels up to which an outline touches a mask: an outline runs half a pixel from its neighbour, 0.7 at a corner."""
_BASAL_REACH = 0.35
"""Basal share of the cavity's length in which the corners of the myocardium lie."""
_OVERLAP = 0.2
"""How far the drawn atrium reaches into the cavity, which is drawn over it, as a share of the cavity's length."""


_TIE = 0.002
"""Distances that differ by less than this share are equal within a pixel."""


def _outline(mask: NDArray[np.bool_]) -> Points:
    """Return the longest outline of a mask that does not touch the border: a closed line (M, 2), (x, y) in pixels."""
    from contourpy import contour_generator

    lines = [np.asarray(line, np.float64) for line in contour_generator(z=mask.astype(np.float32)).lines(0.5)]
    return max(lines, key=len)[:-1]


def _distance(mask: NDArray[np.bool_], points: Points) -> NDArray[np.float64]:
    """Return the distance of points (x, y) outside a mask to its nearest pixel's centre, in pixels."""
    edge = mask & ~ndimage.binary_erosion(mask)
    return np.asarray(cKDTree(np.argwhere(edge)[:, ::-1]).query(points)[0])


def _longest_run(keep: NDArray[np.bool_], line: Points) -> Points:
    """Return the longest part of a closed line whose points are kept, in the line's order; single dropouts are bridged."""
    keep = ndimage.binary_closing(np.tile(keep, 3), np.ones(7))[len(keep) : 2 * len(keep)]
    if keep.all() or not keep.any():
        raise LandmarkError("cavity, myocardium and left atrium do not touch as in an apical view")
    start = int(np.flatnonzero(~keep)[0])
    keep, line = np.roll(keep, -start), np.roll(line, -start, axis=0)
    runs, count = ndimage.label(keep)
    longest = 1 + int(np.bincount(runs)[1:].argmax())
    if (runs == longest).sum() < 8:
        raise LandmarkError("cavity, myocardium and left atrium do not touch as in an apical view")
    return line[runs == longest]


def _arc(line: Points, start: Points, end: Points, *, away_from: Points) -> Points:
    """Return the part of a closed line between its points next to `start` and `end` that goes farthest away from a point."""
    first, last = (int(np.linalg.norm(line - point, axis=1).argmin()) for point in (start, end))
    forward = np.roll(line, -first, axis=0)[: (last - first) % len(line) + 1]
    backward = np.roll(line[::-1], first + 1, axis=0)[: (first - last) % len(line) + 1]
    arc = max((forward, backward), key=lambda part: np.linalg.norm(part - away_from, axis=1).max())
    return np.concatenate([start[None], arc, end[None]])


def _farthest(line: Points, point: Points) -> int:
    """Return the index of a line's point farthest from a point; the middle one where pixels make several nearly equal."""
    distance = np.linalg.norm(line - point, axis=1)
    top = int(distance.argmax())
    is_tied = np.abs(np.arange(len(line)) - top) < 0.05 * len(line)
    is_tied &= distance > (1 - _TIE) * distance[top]
    return int(np.median(np.flatnonzero(is_tied)))


def _resample(line: Points, num_steps: int) -> Points:
    """Return num_steps + 1 points at equal arc lengths along an open line, ends included."""
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    wanted = np.linspace(0.0, length[-1], num_steps + 1)
    return np.stack([np.interp(wanted, length, line[:, axis]) for axis in (0, 1)], 1)


def _spread(line: Points, anchor: int, before: int, after: int) -> Points:
    """Apply `_resample` on both sides of an anchor."""
    return np.concatenate([_resample(line[: anchor + 1], before), _resample(line[anchor:], after)[1:]])
