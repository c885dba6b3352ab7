"""Describe how a file stores its planes, and convert between stored and display order.

Display order: rows run from the probe downwards, columns from left to right, as on the screen. Files store (x, y, ...).

A 2-D echocardiogram has no true position in the body, but its affine relates its stored axes to each other and to the screen. The
rule is that of CAMUS, and of any image that ITK writes with the identity as its direction: on the screen x (columns) grows to the
patient's left, y (rows) towards the back, z towards the head; a plane without x has y as columns. If the affine says that an
axis runs the other way, or that axes are exchanged, the image is turned back. Without such information it stays as it is stored: if
there is no affine, or only one that gives the spacing (positive numbers on the diagonal and no offset, such as the identity).
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
"""Signs of the screen's directions along right, anterior and superior: to the left, to the back, to the head."""


class DisplayOrder(NamedTuple):
    """Name the axes of a stored volume (X, Y, Z) that are shown, and which are flipped; the third axis is that of the frames."""

    column_axis: int = 0
    row_axis: int = 1
    is_column_flipped: bool = False
    is_row_flipped: bool = False

    @property
    def frame_axis(self) -> int:
        return 3 - self.column_axis - self.row_axis


AS_STORED = DisplayOrder()
"""Order of (x, y), which only needs transposing for display."""


def to_display(volume: Any, order: DisplayOrder) -> Any:
    """Convert a stored volume (X, Y, Z), array or tensor, to frames (T, H, W) in display order, as views where possible."""
    frames = _permuted(volume, (order.frame_axis, order.row_axis, order.column_axis))
    return _flipped(frames, order)


def to_stored(frames: Any, order: DisplayOrder) -> Any:
    """Convert frames (T, H, W) in display order to a stored volume (X, Y, Z), the inverse of `to_display`."""
    axes = (order.frame_axis, order.row_axis, order.column_axis)
    return _permuted(_flipped(frames, order), tuple(axes.index(i) for i in range(3)))


@dataclass(frozen=True)
class Grid:
    """Describe how a file stores its planes."""

    shape: tuple[int, ...]
    """Sizes as stored, (x, y, ...), without colours."""
    steps: tuple[float, ...]
    """Spacing along each axis in mm (along time in the file's unit)."""
    affine: NDArray[np.float64]
    """Matrix from voxel of the stored array (its first three axes) to mm (right, anterior, superior), 4 x 4."""
    order: DisplayOrder = AS_STORED
    is_oriented: bool = True
    """Whether the affine gives the image's orientation; if not, the image is shown as it is stored."""

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """Spacing of a plane, (row, column)."""
        return self.steps[self.order.row_axis], self.steps[self.order.column_axis]

    @property
    def volume_shape(self) -> tuple[int, int, int]:
        """Shape (X, Y, Z) of the volume, with the frames of a sequence along the axis outside the plane."""
        sizes = [*self.shape[:3], 1][:3]
        sizes[self.order.frame_axis] *= math.prod(self.shape[3:])
        return sizes[0], sizes[1], sizes[2]

    @property
    def frames_shape(self) -> tuple[int, int, int]:
        """Shape of the frames, (T, H, W)."""
        sizes = self.volume_shape
        return sizes[self.order.frame_axis], sizes[self.order.row_axis], sizes[self.order.column_axis]

    def to_display(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Convert the file's array (x, y, ...) to frames (T, H, W)."""
        if stored.ndim > 3:  # time moves to the axis of a volume's frames
            stored = stored.reshape(*stored.shape[:3], -1, order="F")
            axis = self.order.frame_axis if stored.shape[3] > 1 else 3
            stored = np.moveaxis(stored[(slice(None),) * axis + (0,)], -1, axis if axis < 3 else 2)
        return to_display(stored.reshape(self.volume_shape, order="A"), self.order)

    def to_stored(self, frames: NDArray[Any]) -> NDArray[Any]:
        """Convert frames (T, H, W) to the file's array, of `shape`."""
        volume = to_stored(frames.reshape(self.frames_shape), self.order)
        if len(self.shape) > 3 and math.prod(self.shape[3:]) > 1:
            volume = np.expand_dims(np.moveaxis(volume, self.order.frame_axis, -1), self.order.frame_axis)
        return volume.reshape(self.shape, order="F")


def plane_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """Return the two axes of a stored array (x, y, ...) that span its planes; None if it is neither a plane nor planes over time.

    They are x and y, unless one of the two has size 1 and z is larger, since a slice may be along any axis. Time is last.
    """
    sizes, num_times = [*shape[:3], 1][:3], math.prod(shape[3:])
    alone = [axis for axis in range(3) if sizes[axis] == 1]
    axes = (1, 2) if alone == [0] else (0, 2) if alone == [1] else (0, 1)
    is_plane = len(shape) >= 2 and min(sizes[3 - sum(axes)], num_times) == 1
    return axes if is_plane and sum(n > 1 for n in shape[3:]) <= 1 else None


def display_order(axes: tuple[int, int], affine: NDArray[np.float64]) -> tuple[DisplayOrder, bool]:
    """Return the display order of a plane by its affine, and whether the affine gives one (see the top of this file).

    Args:
        axes: axes of the stored plane, from `plane_axes`.
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
    """Convert the affine of a stored volume (X, Y, Z) to that of the shown frames, (column, row, frame) -> mm."""
    shown = affine[:, [order.column_axis, order.row_axis, order.frame_axis, 3]].copy()
    flips = (order.column_axis, order.is_column_flipped), (order.row_axis, order.is_row_flipped)
    for i, (axis, is_flipped) in enumerate(flips):
        if is_flipped:
            shown[:3, 3] += shown[:3, i] * (volume_shape[axis] - 1)
            shown[:3, i] *= -1
    return shown


def _agreement(cosines: NDArray[np.float64], world: tuple[int, int]) -> float:
    """Return how well two axes align with two directions in space."""
    return float(abs(cosines[world[0], 0]) + abs(cosines[world[1], 1]))


def _permuted(volume: Any, axes: tuple[int, ...]) -> Any:
    """Permute the axes of an array or tensor."""
    return volume.permute(axes) if hasattr(volume, "permute") else volume.transpose(axes)


def _flipped(frames: Any, order: DisplayOrder) -> Any:
    """Flip the rows and columns of frames (T, H, W) as an order says."""
    axes = tuple(axis for axis, flip in ((1, order.is_row_flipped), (2, order.is_column_flipped)) if flip)
    if not axes:
        return frames
    return frames.flip(axes) if hasattr(frames, "flip") else np.flip(frames, axes)
