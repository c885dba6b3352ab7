"""Draw pictures without an apical view of a heart, by the same acoustics: the ones that a network must learn to refuse.

Other windows show the same heart from elsewhere: its ventricle is across the beam (parasternal long axis, subcostal) or cut across
(parasternal short axis). Other ultrasound is tissue without a heart (abdomen, vessels), a curve over time (M-mode, spectral Doppler), or an
apical view the wrong way up. The other pictures are not ultrasound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from synboost_monai.heart.geometry import FloatArray, normals, smoothed
from synboost_monai.simulation.acoustics import Scene
from synboost_monai.simulation.anatomy import NUM_ENDO, Outlines, Place
from synboost_monai.simulation.display import Display
from synboost_monai.simulation.draw import Draw
from synboost_monai.simulation.grid import GRID_SHAPE, Grid
from synboost_monai.simulation.hearts import VIEWS, draw_heart

Pixels = NDArray[np.uint8]
STRANGER_SEED = 1
"""Third part of a stranger's seed, so that its draws differ from those of the hearts."""


@dataclass(frozen=True)
class Stranger:
    """Hold a picture (H, W) and its kind."""

    image: Pixels
    kind: str


def simulate_stranger(seed: int, index: int, *, longer_side: int = 160, kind: str | None = None) -> Stranger:
    """Return a picture without an apical view; the same seed, index and kind give the same picture.

    Args:
        seed, index: whole numbers of 0 or more.
        longer_side: pixels of the picture's longer side.
        kind: one of `KINDS`; None: drawn.
    Raises:
        ValueError: if the kind is unknown.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"strangers.py: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    names = tuple(KINDS)
    kind = kind or names[Draw(seed, index, STRANGER_SEED).count(0, len(names) - 1)]
    draw = Draw(seed, index, STRANGER_SEED + 1 + names.index(kind))
    return Stranger(KINDS[kind](draw, longer_side), kind)


# ------------------------------------------------------------------------------------------------------------ other windows


def _imaged(draw: Draw, outlines: Outlines, depth_mm: float, longer_side: int) -> Pixels:
    """Draw outlines as a sector image."""
    half_angle = float(np.radians(draw.uniform(28, 50)))
    fineness = max(1.0, longer_side / GRID_SHAPE[0])
    grid = Grid(depth_mm, half_angle, (round(GRID_SHAPE[0] * fineness), round(GRID_SHAPE[1] * fineness)))
    return Display(draw, grid, longer_side)(Scene(draw, grid, outlines).power(outlines))


def _across_the_beam(
    draw: Draw, longer_side: int, tilt_degrees: tuple[float, float], centre_mm: tuple[float, float]
) -> Pixels:
    """Draw a heart whose axis is across the beam; its cavity's middle is at the given depth."""
    heart = draw_heart(draw, VIEWS[int(draw.chance(0.5))])
    systole = draw.uniform(0, 1)
    angle = np.radians(draw.uniform(*tilt_degrees)) * draw.choice(-1, 1)
    place = Place(tilt=(angle, angle), shear=draw.normal(0, 0.06), apex_mm=((0.0, 0.0), (0.0, 0.0)))
    middle = replace(heart, place=place).at(systole).cavity.mean(axis=0)
    x, y = draw.normal(0, 8) - middle[0], draw.uniform(*centre_mm) - middle[1]
    outlines = replace(heart, place=replace(place, apex_mm=((x, x), (y, y)))).at(systole)
    return _imaged(draw, outlines, draw.uniform(110, 200), longer_side)


def _parasternal_long_axis(draw: Draw, longer_side: int) -> Pixels:
    return _across_the_beam(draw, longer_side, (65, 115), (55, 95))


def _subcostal(draw: Draw, longer_side: int) -> Pixels:
    return _across_the_beam(draw, longer_side, (45, 75), (85, 130))


def _parasternal_short_axis(draw: Draw, longer_side: int) -> Pixels:
    """Draw the ventricle cut across: a ring of wall, with the right ventricle as a crescent at its side."""
    radius, wall = draw.uniform(14, 32), draw.uniform(7, 17)
    centre = np.array([draw.normal(4, 10), draw.uniform(50, 95)])
    theta = np.linspace(0, 2 * np.pi, NUM_ENDO, endpoint=False) + draw.uniform(0, 2 * np.pi)
    uneven = np.exp(draw.curve(NUM_ENDO, 7, 0.05))
    uneven += (uneven[0] - uneven[-1]) * np.linspace(0, 1, NUM_ENDO)  # close the outline
    ring = np.stack([np.cos(theta), np.sin(theta) * draw.uniform(0.85, 1.15)], axis=1) * uneven[:, None]
    cavity, epicardium = centre + radius * ring, centre + (radius + wall) * ring
    left = np.sort(np.argsort(epicardium[:, 0])[: NUM_ENDO // 2])
    septum = epicardium[left[np.argsort(epicardium[left, 1])]]
    bulge = draw.uniform(10, 32) * np.sin(np.linspace(0, np.pi, len(septum)))
    free_wall = smoothed(septum - np.stack([bulge, 0.4 * bulge], axis=1), 2)
    outside = centre + np.array([0.0, 300.0]) + 0.01 * ring  # there is no atrium
    right_wall = free_wall + draw.uniform(2, 6) * normals(free_wall, septum.mean(axis=0))
    outlines = Outlines(
        cavity=cavity,
        epicardium=epicardium,
        wall_outline=epicardium,
        left_atrium=outside,
        right_ventricle=np.concatenate([septum, free_wall[::-1]]),
        right_atrium=None,
        right_wall=np.concatenate([septum, right_wall[::-1]]),
        bodies={},
        lines={"right_free_wall": free_wall},
        hinges=cavity[[0, NUM_ENDO // 2]],
    )
    return _imaged(draw, outlines, draw.uniform(110, 190), longer_side)


def _wrong_way_up(draw: Draw, longer_side: int) -> Pixels:
    """Draw an apical view upside down or on its side."""
    heart = draw_heart(draw, VIEWS[int(draw.chance(0.6))])
    outlines = heart.at(draw.uniform(0, 1))
    image = _imaged(draw, outlines, float(outlines.left_atrium[:, 1].max()) * draw.uniform(0.9, 1.2), longer_side)
    return np.ascontiguousarray(np.rot90(image, int(draw.choice(1, 2, 2, 3))))


# --------------------------------------------------------------------------------------------------------- other ultrasound


def _tissue(draw: Draw, shape: tuple[int, int], grain: tuple[float, float]) -> FloatArray:
    """Return speckle (H, W) in decibels, over brightness that varies smoothly and in layers."""
    noise = draw.generator.standard_normal((2, *shape))
    smooth = [ndimage.gaussian_filter(part, grain) for part in noise]
    speckle = 10 * np.log10(smooth[0] ** 2 + smooth[1] ** 2 + 1e-12)
    knots = draw.generator.normal(0, draw.uniform(1, 8), (draw.count(2, 9), draw.count(2, 5))).astype(np.float32)
    field = np.asarray(Image.fromarray(knots).resize(shape[::-1], Image.Resampling.BICUBIC))
    return speckle - np.median(speckle) + field


def _grey(draw: Draw, decibels: FloatArray, inside: NDArray[np.bool_] | None = None) -> Pixels:
    """Return decibels as grey levels, black outside."""
    grey = draw.normal(100, 30) + decibels * 255 / draw.uniform(35, 75)
    grey = 255 * np.clip(grey / 255, 0, 1) ** np.exp(draw.normal(0, 0.3))
    return np.where(True if inside is None else inside, grey, 0).astype(np.uint8)


def _bodies(draw: Draw, decibels: FloatArray, count: int) -> FloatArray:
    """Return tissue with round bodies in it, dark as fluid or bright, some with a bright wall."""
    height, width = decibels.shape
    levels = Image.new("F", (width, height), 0.0)
    pen = ImageDraw.Draw(levels)
    for _ in range(count):
        centre = np.array([draw.uniform(0, width), draw.uniform(0.1 * height, height)])
        outline = draw.blob(
            centre, (draw.uniform(0.03, 0.3) * width, draw.uniform(0.03, 0.2) * width), draw.uniform(0, 3), 0.12
        )
        corners = [tuple(p) for p in outline]
        if draw.chance(0.5):
            pen.line([*corners, corners[0]], fill=draw.uniform(3, 15), width=draw.count(1, 5))
        pen.polygon(corners, fill=draw.choice(-draw.uniform(8, 35), draw.uniform(2, 14)))
    return decibels + np.asarray(levels)


def _abdomen(draw: Draw, longer_side: int) -> Pixels:
    """Draw liver, kidney, vessels or a fetus: bodies in tissue, seen by a curved probe."""
    shape = (round(longer_side * draw.uniform(0.7, 1)), longer_side)
    decibels = _bodies(draw, _tissue(draw, shape, (draw.uniform(0.5, 1.5), draw.uniform(0.8, 2.5))), draw.count(1, 9))
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    start, half = draw.uniform(0.1, 0.6) * shape[0], np.radians(draw.uniform(22, 40))
    x, y = x - shape[1] / 2, y + start
    radius = np.hypot(x, y)
    inside = (radius >= start) & (radius <= start + shape[0]) & (np.abs(np.arctan2(x, y)) <= half)
    return _grey(draw, decibels, inside)


def _vessel(draw: Draw, longer_side: int) -> Pixels:
    """Draw a vessel, thyroid or muscle under a straight probe: layers across a rectangle."""
    shape = (round(longer_side * draw.uniform(0.6, 1)), round(longer_side * draw.uniform(0.7, 1)))
    decibels = _tissue(draw, shape, (draw.uniform(0.4, 1), draw.uniform(0.8, 3)))
    x, y = np.arange(shape[1]), np.arange(shape[0])[:, None]
    for _ in range(draw.count(2, 7)):
        line = (
            shape[0] * draw.uniform(0.05, 0.95)
            + draw.uniform(-0.3, 0.3) * (x - shape[1] / 2)
            + draw.curve(shape[1], 5, 3)
        )
        decibels = decibels + draw.uniform(3, 16) * np.exp(-(((y - line) / draw.uniform(0.8, 3)) ** 2))
    if draw.chance(0.8):
        middle = (
            shape[0] * draw.uniform(0.25, 0.75)
            + draw.uniform(-0.3, 0.3) * (x - shape[1] / 2)
            + draw.curve(shape[1], 4, 3)
        )
        half = shape[0] * draw.uniform(0.05, 0.2)
        decibels = decibels - draw.uniform(10, 35) * (np.abs(y - middle) < half)
        decibels = decibels + draw.uniform(2, 14) * (np.abs(np.abs(y - middle) - half) < draw.uniform(0.7, 2))
    return _grey(draw, decibels)


def _m_mode(draw: Draw, longer_side: int) -> Pixels:
    """Draw walls over time along one line of sight."""
    shape = (round(longer_side * draw.uniform(0.5, 1)), longer_side)
    decibels = _tissue(draw, shape, (draw.uniform(0.4, 1), draw.uniform(0.5, 2)))
    x, y = np.arange(shape[1]), np.arange(shape[0])[:, None]
    beat = np.sin(2 * np.pi * (x / shape[1] * draw.uniform(2, 9) + draw.uniform(0, 1)))
    beat = np.sign(beat) * np.abs(beat) ** draw.uniform(0.5, 2)
    for _ in range(draw.count(3, 9)):
        line = shape[0] * draw.uniform(0.1, 0.95) + draw.normal(0, 0.06) * shape[0] * beat
        decibels = decibels + draw.uniform(4, 20) * np.exp(-(((y - line) / draw.uniform(0.8, 5)) ** 2))
    depth = draw.uniform(0.3, 0.7) * shape[0]
    decibels = decibels - draw.uniform(0, 30) * (
        np.abs(y - depth - 0.05 * shape[0] * beat) < draw.uniform(0.05, 0.2) * shape[0]
    )
    return _with_sector(draw, _grey(draw, decibels))


def _spectral_doppler(draw: Draw, longer_side: int) -> Pixels:
    """Draw velocities over time: filled waves on a base line, on black."""
    shape = (round(longer_side * draw.uniform(0.5, 1)), longer_side)
    x, y = np.arange(shape[1]), np.arange(shape[0])[:, None]
    base = shape[0] * draw.uniform(0.3, 0.8)
    decibels = np.full(shape, -60.0)
    for _ in range(draw.count(1, 3)):
        phase = (x / shape[1] * draw.uniform(2, 7) + draw.uniform(0, 1)) % 1
        wave = np.exp(-(((phase - draw.uniform(0.2, 0.8)) / draw.uniform(0.05, 0.2)) ** 2)) * draw.choice(-1, 1)
        top = base - wave * shape[0] * draw.uniform(0.1, 0.5)
        filled = (y - base) * (y - top) <= 0
        decibels = np.maximum(decibels, np.where(filled, draw.uniform(-12, 10), -60))
    speckle = _tissue(draw, shape, (draw.uniform(0.4, 1.2), draw.uniform(0.3, 0.8)))
    grey = _grey(draw, decibels + speckle)
    grey[int(base)] = draw.count(60, 220)
    return _with_sector(draw, grey)


def _with_sector(draw: Draw, trace: Pixels) -> Pixels:
    """Return a trace over time, in half of the cases below the small sector from which it was taken."""
    if draw.chance(0.5):
        return trace
    small = simulate_stranger(draw.count(0, 2**31), 0, longer_side=max(trace.shape[1] // 3, 32), kind="abdomen").image
    canvas = np.zeros((trace.shape[0] + small.shape[0], trace.shape[1]), np.uint8)
    left = draw.count(0, trace.shape[1] - small.shape[1])
    canvas[: small.shape[0], left : left + small.shape[1]] = small
    canvas[small.shape[0] :] = trace
    return canvas


# ----------------------------------------------------------------------------------------------------------- not ultrasound


def _scenery(draw: Draw, longer_side: int) -> Pixels:
    """Draw flat bodies and gradients, like those of photographs and drawings."""
    shape = (round(longer_side * draw.uniform(0.6, 1)), longer_side)
    knots = draw.generator.uniform(0, 255, (draw.count(2, 6), draw.count(2, 6))).astype(np.float32)
    picture = Image.fromarray(knots).resize(shape[::-1], Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(draw.count(2, 20)):
        centre = np.array([draw.uniform(0, shape[1]), draw.uniform(0, shape[0])])
        radii = (draw.uniform(0.02, 0.4) * longer_side, draw.uniform(0.02, 0.3) * longer_side)
        corners = draw.blob(centre, radii, draw.uniform(0, 3), draw.uniform(0, 0.4))[:: draw.count(1, 12)]
        pen.polygon([tuple(p) for p in corners], fill=draw.uniform(0, 255))
    pixels = np.asarray(picture) + draw.generator.normal(0, draw.uniform(0, 20), shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _noise(draw: Draw, longer_side: int) -> Pixels:
    """Draw noise of any grain, or a uniform picture."""
    shape = (round(longer_side * draw.uniform(0.6, 1)), longer_side)
    pixels = ndimage.gaussian_filter(draw.generator.standard_normal(shape), draw.uniform(0, 6))
    pixels = pixels / max(pixels.std(), 1e-6) * draw.choice(0, draw.uniform(5, 90)) + draw.uniform(0, 255)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _page(draw: Draw, longer_side: int) -> Pixels:
    """Draw a page or screen of text and lines."""
    shape = (longer_side, round(longer_side * draw.uniform(0.6, 1)))
    paper, ink = (
        (draw.count(200, 255), draw.count(0, 80)) if draw.chance(0.5) else (draw.count(0, 40), draw.count(150, 255))
    )
    picture = Image.new("L", shape[::-1], paper)
    pen = ImageDraw.Draw(picture)
    for row in range(4, shape[0] - 8, draw.count(9, 16)):
        if draw.chance(0.8):
            letters = "".join(chr(draw.count(97, 122)) if draw.chance(0.85) else " " for _ in range(draw.count(3, 24)))
            pen.text((draw.count(2, shape[1] // 2), row), letters, fill=ink)
        else:
            pen.line([(2, row), (draw.count(8, shape[1]), row)], fill=ink)
    return np.asarray(picture)


KINDS: dict[str, Callable[[Draw, int], Pixels]] = {
    "parasternal long axis": _parasternal_long_axis,
    "parasternal short axis": _parasternal_short_axis,
    "subcostal": _subcostal,
    "wrong way up": _wrong_way_up,
    "abdomen": _abdomen,
    "vessel": _vessel,
    "M-mode": _m_mode,
    "spectral Doppler": _spectral_doppler,
    "scenery": _scenery,
    "noise": _noise,
    "page": _page,
}
"""Kind of a stranger -> function that draws it."""
