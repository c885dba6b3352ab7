"""Apply the effects of the sound's path to an echo: pulse, beam, shadows and gain by depth, reverberations, and receiver noise.

R: ranges, A: angles (beams).
"""

from __future__ import annotations

import numpy as np
from scipy import fft

from synboost_monai.simulation.draw import Draw
from synboost_monai.simulation.grid import GRID_SHAPE, FloatArray, Grid, rises


def draw_beam(draw: Draw, grid: Grid) -> tuple[FloatArray, FloatArray, tuple[int, int]]:
    """Return the transfer functions of the pulse (R', 1) and of the beam at each range (R, A'), and the padded sizes R', A'."""
    fine = (grid.shape[0] / GRID_SHAPE[0], grid.shape[1] / GRID_SHAPE[1])  # a finer grid has the same beam
    padded = (
        fft.next_fast_len(int(grid.shape[0] + 16 * fine[0])),
        fft.next_fast_len(int(grid.shape[1] + 24 * fine[1])),
    )
    frequency = [2 * np.pi * f * fft.fftfreq(size).astype(np.float32) for f, size in zip(fine, padded)]
    pulse = np.exp(-0.5 * (frequency[0] * draw.uniform(0.45, 1.1)) ** 2)[:, None]
    width = np.clip(draw.uniform(0.5, 1.6) * (1 + draw.uniform(0, 25) / np.maximum(grid.ranges, 6)), 0.4, 6)  # beams
    main = np.exp(-0.5 * (frequency[1] * width) ** 2)
    broad = np.exp(-0.5 * (frequency[1] * np.minimum(5 * width, 14)) ** 2)  # side lobes
    main /= np.sqrt(np.mean(main**2, axis=1, keepdims=True))
    broad /= np.sqrt(np.mean(broad**2, axis=1, keepdims=True))
    beams = main + 10 ** (draw.uniform(-30, -12) / 20) * broad
    beams /= np.sqrt(np.mean(beams**2, axis=1, keepdims=True))
    return (pulse / np.sqrt(np.mean(pulse**2))).astype(np.float32), beams.astype(np.float32), padded


def draw_transmission(draw: Draw, grid: Grid) -> FloatArray:
    """Return the share of the amplitude (R, A) that is transmitted: dropout at the sides, shadows of ribs and lung, gain by depth."""
    uniform, depth = draw.uniform, grid.depth_mm
    loss = np.zeros(grid.shape, np.float32)
    for side in (-1, 1):
        if draw.chance(0.4):
            across = rises(side * grid.angles / grid.half_angle, uniform(0.25, 0.95), uniform(0.04, 0.2))
            loss += uniform(2, 18) * across * rises(grid.ranges, uniform(0, 0.7) * depth, uniform(4, 15))
    for _ in range(draw.count(0, 3)):
        centre, width = uniform(-1, 1) * grid.half_angle, np.radians(uniform(1.5, 8))
        across = np.exp(-(((grid.angles - centre) / width) ** 2))
        loss += uniform(2, 22) * across * rises(grid.ranges, uniform(0, 0.8) * depth, uniform(2, 10))
    gain = np.interp(grid.ranges, np.linspace(0, depth, 6), draw.generator.normal(0, uniform(0, 5), 6))
    gain = gain - uniform(-0.5, 0.7) * (grid.ranges - depth / 2) / 10
    gain = gain + grid.smooth_field(draw, 200, uniform(3, 15), uniform(0, 1.5))
    return np.power(10, (gain - loss) / 20).astype(np.float32)


def draw_haze(draw: Draw, grid: Grid) -> tuple[FloatArray, FloatArray]:
    """Return the amplitudes (R, A) of reverberations in front of the heart, and (R, 1) of the receiver's noise."""
    uniform, r = draw.uniform, grid.ranges
    haze = (
        uniform(-34, -3)
        - r * uniform(0.05, 0.5)
        + grid.smooth_field(draw, uniform(10, 60), uniform(10, 60), uniform(0, 5))
    )
    if draw.chance(0.5):  # a cloud
        down = ((r - uniform(0, 0.4) * grid.depth_mm) / uniform(8, 35)) ** 2
        across = ((grid.angles - draw.normal(0, 0.2)) / uniform(0.1, 0.6)) ** 2
        haze = np.maximum(haze, uniform(-20, 0) - 4 * down - 4 * across)
    if draw.chance(0.45):  # clutter of the near field covers chest wall and apex, so no border between them is visible
        clutter = uniform(-12, 8) + grid.smooth_field(draw, uniform(10, 40), uniform(10, 40), uniform(0, 3))
        haze = np.maximum(haze, clutter - ((r - uniform(0, 20)) / uniform(10, 70)).clip(0) ** 2 * 12)
    if draw.chance(0.6):  # rings of the near field
        haze = haze + uniform(4, 25) * np.exp(-r / uniform(3, 10)) * (1 + 0.6 * np.cos(2 * np.pi * r / uniform(2, 5)))
    if draw.chance(0.25):
        haze = haze + uniform(2, 7) * np.cos(2 * np.pi * r / uniform(4, 14) + uniform(0, 6)) * np.exp(
            -r / uniform(20, 80)
        )
    noise = uniform(-40, -18) + uniform(0, 0.14) * (r - 80)
    return np.power(10, haze / 20).astype(np.float32), np.power(10, noise / 20).astype(np.float32)
