"""How a file stores its planes, and the way between that and the screen.

Display order: rows run from the probe downwards, columns from left to right, as on the screen. Files store (x, y, ...).

A 2-D echocardiogram has no true place in the body, but its affine says how its stored axes lie to each other and to the screen. The
rule is that of CAMUS, and of any image that ITK writes with the identity as its direction: on the screen x (columns) grows to the
patient's left, y (rows) towards the back, z towards the head; a plane without x has y as columns. An image whose affine says that an
axis runs the other way, or that axes are exchanged, is turned back. What says nothing stays as it is stored: no affine, or one that
somebody typed as spacing alone (positive numbers on the diagonal and no offset, such as the identity).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SCREEN_SIGNS = (-1, -1, 1)
"""Direction on the screen along right, anterior and superior: to the left, to the back, to the head."""


class DisplayOrder(NamedTuple):
    """Which axes of a stored volume (X, Y, Z) are shown, and which way round; the axis left over is that of the frames."""

    column_axis: int = 0
    row_axis: int = 1
    is_column_flipped: bool = False
    is_row_flipped: bool = False

    @property
    def frame_axis(self) -> int:
        return 3 - self.column_axis - self.row_axis


AS_STORED = DisplayOrder()
"""The order of (x, y): transposing shows it."""


def to_display(volume: Any, order: DisplayOrder) -> Any:
    """Stored volume (X, Y, Z) -> frames (T, H, W) in display order; an array or a tensor, views where possible."""
    frames = _permuted(volume, (order.frame_axis, order.row_axis, order.column_axis))
    return _flipped(frames, order)


def to_stored(frames: Any, order: DisplayOrder) -> Any:
    """Frames (T, H, W) in display order -> stored volume (X, Y, Z); the way back from `to_display`."""
    axes = (order.frame_axis, order.row_axis, order.column_axis)
    return _permuted(_flipped(frames, order), tuple(axes.index(i) for i in range(3)))


@dataclass(frozen=True)
class Grid:
    """How a file stores its planes."""

    shape: tuple[int, ...]
    """Sizes as stored, (x, y, ...), without colours."""
    steps: tuple[float, ...]
    """Spacing along each axis, mm (of time in the file's unit)."""
    affine: NDArray[np.float64]
    """Voxel of the stored array (its first three axes) -> mm (right, anterior, superior), 4 x 4."""
    order: DisplayOrder = AS_STORED
    is_oriented: bool = True
    """Whether the affine says how the image lies; if not, it is shown as it is stored."""

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """(row, column)."""
        return self.steps[self.order.row_axis], self.steps[self.order.column_axis]

    @property
    def volume_shape(self) -> tuple[int, int, int]:
        """(X, Y, Z): the frames of a sequence along the axis that has no place in a plane."""
        sizes = [*self.shape[:3], 1][:3]
        sizes[self.order.frame_axis] *= math.prod(self.shape[3:])
        return sizes[0], sizes[1], sizes[2]

    @property
    def frames_shape(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        sizes = self.volume_shape
        return sizes[self.order.frame_axis], sizes[self.order.row_axis], sizes[self.order.column_axis]

    def to_display(self, stored: NDArray[Any]) -> NDArray[Any]:
        """The file's array (x, y, ...) -> frames (T, H, W)."""
        if stored.ndim > 3:  # time moves to where the frames of a volume are
            stored = stored.reshape(*stored.shape[:3], -1, order="F")
            axis = self.order.frame_axis if stored.shape[3] > 1 else 3
            stored = np.moveaxis(stored[(slice(None),) * axis + (0,)], -1, axis if axis < 3 else 2)
        return to_display(stored.reshape(self.volume_shape, order="A"), self.order)

    def to_stored(self, frames: NDArray[Any]) -> NDArray[Any]:
        """Frames (T, H, W) -> the file's array, of `shape`."""
        volume = to_stored(frames.reshape(self.frames_shape), self.order)
        if len(self.shape) > 3 and math.prod(self.shape[3:]) > 1:
            volume = np.expand_dims(np.moveaxis(volume, self.order.frame_axis, -1), self.order.frame_axis)
        return volume.reshape(self.shape, order="F")


def plane_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """The two axes of a stored array (x, y, ...) that are its planes; None if it is neither a plane nor planes over time.

    x and y, unless one of the two has a size of 1 and z has more: a slice may lie along any axis. Time is last.
    """
    sizes, num_times = [*shape[:3], 1][:3], math.prod(shape[3:])
    alone = [axis for axis in range(3) if sizes[axis] == 1]
    axes = (1, 2) if alone == [0] else (0, 2) if alone == [1] else (0, 1)
    is_plane = len(shape) >= 2 and min(sizes[3 - sum(axes)], num_times) == 1
    return axes if is_plane and sum(n > 1 for n in shape[3:]) <= 1 else None


def display_order(axes: tuple[int, int], affine: NDArray[np.float64]) -> tuple[DisplayOrder, bool]:
    """How a plane is shown by its affine, and whether the affine says anything (see the top of this file).

    Args:
        axes: of the stored plane, of `plane_axes`.
        affine: voxel -> mm (right, anterior, superior).
    """
    order = DisplayOrder(*axes)
    vectors = affine[:3, list(axes)]
    lengths = np.linalg.norm(vectors, axis=0)
    if not np.isfinite(affine).all() or not lengths.all():
        return order, False
    linear = affine[:3, :3]
    if not affine[:3, 3].any() and (np.diag(linear) > 0).all() and not (linear - np.diag(np.diag(linear))).any():
        return order, False
    cosines = vectors / lengths
    first, second = max(itertools.permutations(range(3), 2), key=lambda world: _agreement(cosines, world))
    flips = [bool(cosines[world, i] * _SCREEN_SIGNS[world] < 0) for i, world in enumerate((first, second))]
    if first < second:
        return DisplayOrder(axes[0], axes[1], flips[0], flips[1]), True
    return DisplayOrder(axes[1], axes[0], flips[1], flips[0]), True


def shown_affine(affine: NDArray[np.float64], volume_shape: Sequence[int], order: DisplayOrder) -> NDArray[np.float64]:
    """Affine of a stored volume (X, Y, Z) -> that of what is shown, (column, row, frame) -> mm."""
    shown = affine[:, [order.column_axis, order.row_axis, order.frame_axis, 3]].copy()
    flips = (order.column_axis, order.is_column_flipped), (order.row_axis, order.is_row_flipped)
    for i, (axis, is_flipped) in enumerate(flips):
        if is_flipped:
            shown[:3, 3] += shown[:3, i] * (volume_shape[axis] - 1)
            shown[:3, i] *= -1
    return shown


def _agreement(cosines: NDArray[np.float64], world: tuple[int, int]) -> float:
    """How well two axes lie along two directions in space."""
    return float(abs(cosines[world[0], 0]) + abs(cosines[world[1], 1]))


def _permuted(volume: Any, axes: tuple[int, ...]) -> Any:
    """Axes of an array or tensor in another order."""
    return volume.permute(axes) if hasattr(volume, "permute") else volume.transpose(axes)


def _flipped(frames: Any, order: DisplayOrder) -> Any:
    """(T, H, W) with its rows and columns turned round as an order says."""
    axes = tuple(axis for axis, flip in ((1, order.is_row_flipped), (2, order.is_column_flipped)) if flip)
    if not axes:
        return frames
    return frames.flip(axes) if hasattr(frames, "flip") else np.flip(frames, axes)
