"""Draw random numbers for the simulator, and curves made from them.

K: points of a curve, N: corners of a polygon; points are (x, y) in mm.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FloatArray = NDArray[np.float64]
Range = tuple[float, float]
"""Lowest and highest value of a uniform draw."""


class Draw:
    """A Draw makes all random draws of one simulated heart, its ultrasound and its display.

    Args:
        seed: one number or several, such as a seed and an index: the same give the same draws.
    """

    def __init__(self, *seed: int) -> None:
        self.generator = np.random.default_rng(list(seed))

    def uniform(self, low: float, high: float) -> float:
        """Return a number between `low` and `high`."""
        return float(self.generator.uniform(low, high))

    def normal(self, mean: float, deviation: float, low: float = -np.inf, high: float = np.inf) -> float:
        """Return a normally distributed number, clipped to `low` ... `high`."""
        return float(np.clip(self.generator.normal(mean, deviation), low, high))

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return bool(self.generator.uniform() < probability)

    def count(self, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`, both included."""
        return int(self.generator.integers(low, high + 1))

    def choice(self, *values: float) -> float:
        """Return one of the values, all equally likely."""
        return values[int(self.generator.integers(len(values)))]

    def curve(self, num_points: int, num_waves: int, deviation: float) -> FloatArray:
        """Return (K,) random values around 0 that vary smoothly, with about `num_waves` independent ones along the curve."""
        knots = self.generator.normal(0, 1, num_waves)
        values = np.interp(np.linspace(0, num_waves - 1, num_points), np.arange(num_waves), knots)
        if num_waves >= 4:
            values = ndimage.gaussian_filter1d(values, num_points / num_waves / 2.5, mode="nearest")
        return deviation * values

    def blob(self, centre: FloatArray, radii_mm: Range, angle: float, roughness: float = 0.08) -> FloatArray:
        """Return the outline (48, 2) of an uneven ellipse with the given half axes, turned by `angle` radians."""
        theta = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        radius = np.ones(48)
        for wave in (2, 3, 4):
            radius += self.normal(0, roughness / wave) * np.cos(wave * theta + self.uniform(0, 2 * np.pi))
        x, y = radii_mm[0] * radius * np.cos(theta), radii_mm[1] * radius * np.sin(theta)
        cos, sin = np.cos(angle), np.sin(angle)
        return centre + np.stack([cos * x - sin * y, sin * x + cos * y], axis=1)
