"""Resample and smooth curves, and fill polygons. K: points of a curve; points are (x, y)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FloatArray = NDArray[np.float64]


def resampled(points: FloatArray, count: int) -> FloatArray:
    """Return `count` points at equal distances along a polyline (K, 2)."""
    run = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    at = np.linspace(0, run[-1], count)
    return np.stack([np.interp(at, run, points[:, axis]) for axis in (0, 1)], axis=1)


def normals(points: FloatArray, away_from: FloatArray) -> FloatArray:
    """Return the unit normals (K, 2) of a curve that point away from a point."""
    tangent = np.gradient(points, axis=0)
    normal = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
    normal /= np.maximum(np.hypot(*normal.T), 1e-9)[:, None]
    return -normal if np.sum(normal * (points - away_from)) < 0 else normal


def smoothed(points: FloatArray, width: float) -> FloatArray:
    """Return a curve (K, 2) without corners finer than `width` points."""
    return ndimage.gaussian_filter1d(points, width, axis=0, mode="nearest")


def fill_polygon(rows: FloatArray, columns: FloatArray, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels whose centre lies inside a closed polygon (even-odd rule); polygons that share an edge share no pixel.

    Args:
        rows, columns: corners, (K,), in pixels; the centre of the first pixel is (0, 0).
        shape: (H, W).
    """
    next_rows, next_columns = np.roll(rows, -1), np.roll(columns, -1)
    lines = np.arange(shape[0])[:, None]
    row, edge = np.nonzero((rows <= lines) != (next_rows <= lines))
    slope = (next_columns - columns)[edge] / (next_rows - rows)[edge]
    first = np.clip(np.ceil(columns[edge] + (row - rows[edge]) * slope), 0, shape[1]).astype(np.int64)
    toggles = np.bincount(row * (shape[1] + 1) + first, minlength=shape[0] * (shape[1] + 1))
    return np.cumsum(toggles.reshape(shape[0], -1)[:, : shape[1]], axis=1) % 2 == 1
