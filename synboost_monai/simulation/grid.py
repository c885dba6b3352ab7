"""Define the polar grid on which echoes are computed: ranges from the probe and angles of its beams.

R: ranges, A: angles (beams).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synboost_monai.heart.geometry import FloatArray as Points
from synboost_monai.simulation.draw import Draw

FloatArray = NDArray[np.float32]

GRID_SHAPE = (160, 128)
"""Ranges and angles of the grid for images of up to 160 pixels."""


@dataclass(frozen=True)
class Grid:
    """Hold the ranges and angles at which echoes are computed, slightly beyond the sector on both sides."""

    depth_mm: float
    half_angle: float
    """Half the sector's opening angle in radians."""
    shape: tuple[int, int] = GRID_SHAPE

    @functools.cached_property
    def range_step_mm(self) -> float:
        return self.depth_mm / self.shape[0]

    @functools.cached_property
    def angle_step(self) -> float:
        return 2.06 * self.half_angle / self.shape[1]

    @functools.cached_property
    def ranges(self) -> FloatArray:
        """Return (R, 1) in mm."""
        return ((np.arange(self.shape[0], dtype=np.float32) + 0.5) * self.range_step_mm)[:, None]

    @functools.cached_property
    def angles(self) -> FloatArray:
        """Return (1, A) in radians, 0 is straight down."""
        places = np.arange(self.shape[1], dtype=np.float32) + 0.5 - self.shape[1] / 2
        return (places * np.float32(self.angle_step))[None, :]

    def position(self, points: Points) -> Points:
        """Convert points (K, 2) in mm to fractional (beam, range) indices (K, 2)."""
        beam = np.arctan2(points[:, 0], np.maximum(points[:, 1], 0.3)) / self.angle_step + self.shape[1] / 2 - 0.5
        return np.stack([beam, np.hypot(points[:, 0], points[:, 1]) / self.range_step_mm - 0.5], axis=1)

    def smooth_field(self, draw: Draw, range_mm: float, lateral_mm: float, deviation: float) -> FloatArray:
        """Return a random field (R, A) around 0 that varies over the given lengths."""
        width = 2 * self.half_angle * 0.6 * self.depth_mm
        knots = (max(2, int(self.depth_mm / range_mm) + 2), max(2, int(width / lateral_mm) + 2))
        field = draw.generator.standard_normal(knots, dtype=np.float32) * np.float32(deviation)
        return np.asarray(Image.fromarray(field).resize(self.shape[::-1], Image.Resampling.BICUBIC))


def rises(x: FloatArray, at: float, over: float) -> FloatArray:
    """Return a smooth step from 0 to 1 at a place."""
    return 1 / (1 + np.exp(np.clip((at - x) / np.float32(over), -30, 30)))
