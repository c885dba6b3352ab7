"""Draw the echoes of a heart and its surroundings: brightness of each tissue, its variation, thin layers, and bright spots.

Brightness is drawn from ranges far wider than those of one scanner, inverted contrasts included: a network that has seen all of them
treats a real image as one more (domain randomisation, Tobin et al. 2017; of label maps: Billot et al., SynthSeg, Med. Image Anal. 2023).

R: ranges, A: angles (beams), K: points of a line.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synboost_monai.heart.geometry import FloatArray as Points
from synboost_monai.simulation.anatomy import NUM_ENDO, Outlines
from synboost_monai.simulation.draw import Draw
from synboost_monai.simulation.grid import FloatArray, Grid, rises

NO_LAYER_DB = -99.0
"""Level where there is no thin layer."""


class Tissue(enum.IntEnum):
    """Name the tissue that a cell of the grid consists of."""

    OUTSIDE = 0
    RIGHT_VENTRICLE = 1
    RIGHT_ATRIUM = 2
    LEFT_ATRIUM = 3
    MYOCARDIUM = 4
    CAVITY = 5
    PAPILLARY = 6
    DARK_BODY = 7
    BRIGHT_BODY = 8
    RIGHT_WALL = 9
    TRABECULAE = 10
    """Inner part of the wall, which experts include in it and which looks like blood."""
    EFFUSION = 11


SOLID = (Tissue.OUTSIDE, Tissue.MYOCARDIUM, Tissue.PAPILLARY, Tissue.BRIGHT_BODY, Tissue.RIGHT_WALL)
"""Tissues that do not flow."""
BLOOD = (Tissue.RIGHT_VENTRICLE, Tissue.RIGHT_ATRIUM, Tissue.LEFT_ATRIUM, Tissue.CAVITY, Tissue.EFFUSION)


@dataclass(frozen=True)
class Layer:
    """Hold a thin echoing layer along a line of the heart."""

    line: str
    """Name in `Outlines.lines`, or `pericardium`, `septum_right`, `endocardium`, `septum_core`."""
    span: tuple[int, int]
    """Points of the line that the layer covers."""
    level_db: Points
    """(K,) echo level along the line; below -40 there is a gap."""
    specular: float
    """Loss where the beam does not meet the layer at a right angle."""
    width_mm: Points
    """(K,) width along the line."""
    offset_mm: float
    depth_share: float = 0.0
    """For `septum_core`: relative position of the layer between endocardium and outer border."""


def draw_levels(draw: Draw) -> FloatArray:
    """Return the echo of each class in decibels relative to myocardium."""
    uniform, normal, chance = draw.uniform, draw.normal, draw.chance
    is_wild = chance(0.06)  # contrasts that no scanner shows, such as blood brighter than muscle
    blood, spread = (uniform(-25, 12), 6) if is_wild else (-uniform(9, 32), 2)
    level = np.zeros(len(Tissue), np.float32)
    level[Tissue.OUTSIDE] = uniform(-14, 10)
    for chamber in (Tissue.RIGHT_VENTRICLE, Tissue.RIGHT_ATRIUM, Tissue.LEFT_ATRIUM):
        level[chamber] = blood + normal(0, spread)
    for chamber, probability, highest in (
        (Tissue.LEFT_ATRIUM, 0.65, -0.3),
        (Tissue.RIGHT_ATRIUM, 0.4, 0.0),
        (Tissue.RIGHT_VENTRICLE, 0.6, 0.0),
    ):
        if chance(probability):  # clutter fills it: brighter than the left ventricle, a deep atrium also than the wall
            level[chamber] = blood * uniform(highest, 0.95)
    if chance(0.12):  # filled with reverberations: as bright as its surroundings
        level[Tissue.LEFT_ATRIUM] = uniform(-2, 14)
    level[Tissue.CAVITY] = blood
    level[Tissue.PAPILLARY] = normal(-1, 4)
    level[Tissue.DARK_BODY] = blood + uniform(-2, 12)
    level[Tissue.BRIGHT_BODY] = uniform(0, 16)
    level[Tissue.RIGHT_WALL] = uniform(-6, 8)
    if chance(0.35):  # the right heart is not visible: only the septum indicates it
        for tissue in (Tissue.RIGHT_VENTRICLE, Tissue.RIGHT_ATRIUM, Tissue.RIGHT_WALL):
            level[tissue] = level[Tissue.OUTSIDE] + normal(-2, 3)
    level[Tissue.TRABECULAE] = blood * uniform(0.3, 1)
    level[Tissue.EFFUSION] = blood + uniform(-6, 1)
    return level


def draw_trabeculae(draw: Draw) -> tuple[Points, Points] | None:
    """Return the inner share (K,) of the wall that looks like blood, at end-diastole and at end-systole, or None.

    It is wider at the apex and beside the lateral wall, and wider in systole, when trabeculae and papillary muscles close up.
    """
    if not draw.chance(0.8):
        return None
    s = np.linspace(-1, 1, NUM_ENDO)
    sides = np.where(s < 0, draw.uniform(0.0, 0.6), draw.uniform(0.45, 1.3))
    sides = sides + draw.uniform(0, 0.9) * np.exp(-((s / 0.25) ** 2))
    share = draw.uniform(0.02, 0.45) * sides * np.exp(draw.curve(NUM_ENDO, 8, 0.4))
    return np.clip(share, 0, 0.75), np.clip(share * draw.uniform(1.4, 3) + draw.uniform(0, 0.25), 0, 0.85)


def draw_right_trabeculae(draw: Draw) -> Points | None:
    """Return the share (K,) of the septum, from its right side, that looks like the blood beside it, or None."""
    if not draw.chance(0.75):
        return None
    septum = np.clip(-np.linspace(-1, 1, NUM_ENDO) * 5 - 0.5, 0, 1)  # none at the apex and beside the lateral wall
    return np.clip(draw.uniform(0, 0.5) * septum * np.exp(draw.curve(NUM_ENDO, 8, 0.4)), 0, 0.6)


def draw_surroundings(draw: Draw, grid: Grid) -> list[tuple[Points, Tissue]]:
    """Return bodies around the heart (lung, liver, fat): their outlines and whether they are bright or dark."""
    bodies = []
    for _ in range(draw.count(0, 3)):
        radius, angle = draw.uniform(0.1, 1.05) * grid.depth_mm, draw.uniform(-1, 1) * grid.half_angle
        centre = radius * np.array([np.sin(angle), np.cos(angle)])
        outline = draw.blob(centre, (draw.uniform(4, 25), draw.uniform(3, 14)), draw.uniform(0, np.pi), 0.15)
        bodies.append((outline, Tissue.DARK_BODY if draw.chance(0.5) else Tissue.BRIGHT_BODY))
    return bodies


def draw_fields(draw: Draw, grid: Grid, outlines: Outlines) -> list[FloatArray]:
    """Return smooth variations (R, A) in decibels: of solid tissue, blood, surroundings, wall, and its regions."""
    uniform = draw.uniform
    bottom = outlines.left_atrium[:, 1].max()
    solid = grid.smooth_field(draw, uniform(8, 40), uniform(8, 40), uniform(0, 6))
    blood = grid.smooth_field(draw, uniform(10, 50), uniform(10, 50), uniform(0, 3))
    outside = grid.smooth_field(draw, uniform(8, 30), uniform(8, 60), uniform(0, 6))
    outside = outside + uniform(-6, 16) * rises(grid.ranges, bottom * uniform(0.75, 1.05), uniform(3, 12))
    outside = outside + uniform(-3, 19) * rises(-grid.ranges, -bottom * uniform(0.2, 0.6), uniform(5, 20))
    if draw.chance(0.75):  # the chest wall in front of the apex
        border = outlines.epicardium[NUM_ENDO // 2, 1] + uniform(0, 6)
        outside = outside + uniform(2, 18) * rises(-grid.ranges, -border, uniform(1, 4))
    if draw.chance(0.6):  # the deep corners contain lung
        corner = rises(np.abs(grid.angles) / np.float32(grid.half_angle), uniform(0.4, 0.9), uniform(0.05, 0.2))
        outside = outside - uniform(0, 18) * corner * rises(grid.ranges, bottom * uniform(0.5, 0.8), uniform(5, 15))
    wall = np.zeros(grid.shape, np.float32)
    if draw.chance(0.5):
        wall = grid.smooth_field(draw, uniform(6, 15), uniform(6, 15), uniform(1, 6))
    middle = outlines.cavity.mean(axis=0)
    side = grid.angles - np.float32(np.arctan2(middle[0], middle[1]))
    apex = outlines.cavity[NUM_ENDO // 2, 1]
    has_septum = outlines.right_ventricle is not None  # a septum is brighter than the lateral wall
    regions = (uniform(2, 17) if has_septum else uniform(-9, 4)) * rises(-side, 0.05, 0.06)
    if draw.chance(0.5):
        regions = regions - uniform(0, 9) * rises(side, 0.05, 0.06)
    if draw.chance(0.8):
        regions = regions - uniform(0, 16) * rises(-grid.ranges, -apex - uniform(0, 20), 6)
    regions = np.broadcast_to(regions, grid.shape).astype(np.float32)
    return [solid, blood, outside.astype(np.float32), wall, regions]


def draw_deep_clutter(draw: Draw, grid: Grid, outlines: Outlines) -> FloatArray:
    """Return the level (R, A) in decibels of clutter that covers everything beyond the mitral annulus, chambers included."""
    if not draw.chance(0.25):
        return np.full(grid.shape, NO_LAYER_DB, np.float32)
    start = float(np.hypot(*outlines.hinges.mean(axis=0))) + draw.normal(0, 6)
    ranges = grid.ranges + grid.smooth_field(draw, 25, 25, 3.0)
    share = rises(ranges, start, draw.uniform(2, 8)) * rises(
        -ranges, -start - draw.uniform(15, 70), draw.uniform(3, 15)
    )
    share = share * rises(grid.angles * draw.choice(-1, 0, 0, 1) / grid.half_angle, draw.uniform(-0.8, -0.1), 0.2)
    return (draw.uniform(2, 22) + 20 * np.log10(share + np.float32(1e-4))).astype(np.float32)


def draw_glow(draw: Draw, grid: Grid, outlines: Outlines, outside: NDArray[np.bool_]) -> FloatArray:
    """Return the glow (R, A) of the pericardium and lung around the heart in decibels, which decays with distance from it."""
    if not draw.chance(0.9):
        return np.zeros(grid.shape, np.float32)
    outside, bottom = outside[::2, ::2], outlines.left_atrium[:, 1].max()
    sampling = (2 * grid.range_step_mm, 2 * grid.angle_step * outlines.hinges[:, 1].mean())

    def distance_to(cells: NDArray[np.bool_]) -> FloatArray:
        """Return the distance (R, A) in mm, computed at every second cell."""
        distance = ndimage.distance_transform_edt(~cells, sampling=sampling).astype(np.float32)
        return distance.repeat(2, 0).repeat(2, 1)[: grid.shape[0], : grid.shape[1]]

    distance = distance_to(~outside)
    sides = (-1, 0, 1, 1, 1) if outlines.right_ventricle is not None else (-1, -1, 0, 1, 1)
    side = rises(grid.ranges, draw.uniform(0.1, 0.85) * bottom, draw.uniform(5, 15))
    side = side * rises(grid.angles / grid.half_angle * draw.choice(*sides), draw.uniform(-0.8, 0.3), 0.15)
    decay = np.exp(-np.maximum(distance - draw.uniform(0, 6), 0) / draw.uniform(3, 20))
    if draw.chance(0.6):  # the glow covers the outer part of the wall: no edge where experts draw one
        decay = decay * np.exp(-distance_to(outside) / draw.uniform(2, 10))
    else:
        decay = decay * (distance > 0)
    return (draw.uniform(8, 34) * side * decay).astype(np.float32)


def draw_layers(draw: Draw, outlines: Outlines) -> list[Layer]:
    """Return the thin layers: pericardium, borders and core of the septum, walls of the atria, valves, strands."""
    layers: list[Layer] = []
    uniform, chance = draw.uniform, draw.chance

    def add(
        line: str,
        span: tuple[int, int],
        width_mm: float,
        level_db: float,
        specular: float,
        gaps: float,
        **more: float,
    ) -> None:
        count = span[1] - span[0]
        level = level_db + draw.curve(count, 6, uniform(1, 6))
        if gaps > 0:
            quiet = ndimage.gaussian_filter1d(draw.generator.normal(0, 1, count), count / 10, mode="nearest")
            level = np.where(quiet * np.sqrt(count / 2.8) < draw.normal(-1, 0.5) + 2 * gaps, NO_LAYER_DB, level)
        width = width_mm * np.exp(draw.curve(count, 4, 0.25))
        layers.append(
            Layer(line, span, level, specular, width, more.get("offset_mm", 0.0), more.get("depth_share", 0.0))
        )

    if chance(0.85):
        add(
            "pericardium",
            (int(uniform(40, 60)), NUM_ENDO),
            uniform(1.5, 8),
            uniform(4, 20),
            uniform(0, 1.2),
            uniform(0, 0.5),
            offset_mm=uniform(-2, 4.5),
        )
    has_septum = outlines.right_ventricle is not None
    if not has_septum and chance(0.85):  # the inferior wall of the two-chamber view has a pericardium too
        span = (0, int(uniform(37, 57)))
        add(
            "pericardium",
            span,
            uniform(1.5, 8),
            uniform(4, 20),
            uniform(0, 1.2),
            uniform(0, 0.5),
            offset_mm=uniform(-2, 4.5),
        )
    if has_septum and chance(0.3):
        add("septum_right", (0, 50), uniform(1, 4), uniform(-2, 10), uniform(0, 1.2), uniform(0, 0.6))
    if chance(0.35):
        add("endocardium", (0, NUM_ENDO), uniform(1, 3), uniform(-3, 10), uniform(0, 1.5), uniform(0, 0.7))
    if has_septum and chance(0.85):  # the core of the septum is brighter than its borders
        width = float(np.mean(np.hypot(*(outlines.epicardium[8:36] - outlines.cavity[8:36]).T)))
        add(
            "septum_core",
            (0, int(uniform(28, 48))),
            width * uniform(0.2, 0.8),
            uniform(4, 18),
            uniform(0, 0.5),
            uniform(0, 0.3),
            depth_share=uniform(0.2, 0.55),
        )
    walls = (
        ("left_atrial_wall", 0.8, 14.0, 1.5),
        ("right_atrial_wall", 0.7, 14.0, 1.5),
        ("right_free_wall", 0.7, 12.0, 1.2),
    )
    for name, probability, loudest, specular in walls:
        if name in outlines.lines and chance(probability):
            add(
                name,
                (0, len(outlines.lines[name])),
                uniform(1.2, 5),
                uniform(-4, loudest),
                uniform(0, specular),
                uniform(0, 0.6),
                offset_mm=uniform(0, 2),
            )
    if "atrial_septum" in outlines.lines:
        add(
            "atrial_septum",
            (0, len(outlines.lines["atrial_septum"])),
            uniform(1.5, 5),
            uniform(-8, 10),
            uniform(0, 1),
            uniform(0, 0.6),
        )
    valves = uniform(-4, 15)
    for name, line in outlines.lines.items():
        if name.startswith(("mitral", "tricuspid")) and chance(0.93):
            level = valves + draw.normal(-2 if name.startswith("tricuspid") else 0, 3)
            add(
                name,
                (0, len(line)),
                uniform(0.8, 3.2),
                level,
                uniform(0, 1),
                uniform(0, 0.5) if chance(0.5) else 0.0,
            )
        elif name == "pacing_lead":
            add(name, (0, len(line)), uniform(0.8, 2.5), uniform(6, 20), 0.0, uniform(0, 0.3))
        elif name.startswith("strand"):
            add(name, (0, len(line)), uniform(0.8, 2), uniform(-4, 8), 0.0, 0.0)
    return layers


def draw_spots(draw: Draw, grid: Grid, outlines: Outlines) -> list[tuple[Points, float, float]]:
    """Return small bright spots: outline, level in decibels, and whether they move with the annulus (0 or 1)."""
    spots = []
    for hinge in outlines.hinges:  # the fibrous ring
        if draw.chance(0.5):
            centre = hinge + [draw.normal(0, 2), draw.normal(0, 2)]
            spots.append(
                (draw.blob(centre, (draw.uniform(1.5, 5), draw.uniform(1.5, 5)), 0.0), draw.uniform(0, 16), 1.0)
            )
    if draw.chance(0.4):  # chordae, trabeculae, calcium in the cavity
        for _ in range(draw.count(1, 8)):
            share = draw.uniform(0.1, 1.0)
            edge = outlines.cavity[draw.count(0, NUM_ENDO - 1)]
            centre = edge * share + outlines.cavity.mean(axis=0) * (1 - share)
            radii = (draw.uniform(0.8, 3), draw.uniform(0.8, 5))
            spots.append((draw.blob(centre, radii, draw.uniform(-0.8, 0.8)), draw.uniform(-8, 12), 1.0))
    if draw.chance(0.12):  # a calcified or prosthetic ring and its echoes beyond the valve
        middle, half = np.arctan2(*outlines.hinges.mean(axis=0)), draw.uniform(0.08, 0.35)
        radius, thick = np.hypot(*outlines.hinges.mean(axis=0)) + draw.uniform(2, 25), draw.uniform(3, 18)
        spots.append((_arc(np.full(16, radius), middle, half, thick), draw.uniform(2, 16), 1.0))
    for _ in range(draw.count(0, 2)):  # arcs: diaphragm, ribs, fat
        bottom, depth = outlines.left_atrium[:, 1].max(), grid.depth_mm
        radius = (
            draw.uniform(0.3, 1.05) * depth
            if draw.chance(0.4)
            else draw.uniform(0.98 * bottom, 1.1 * max(depth, bottom))
        )
        middle, half = draw.uniform(-1, 1) * grid.half_angle, draw.uniform(0.1, 0.6)
        along = np.linspace(-1, 1, 16)
        bent = radius + draw.uniform(-15, 15) * along**2 + draw.uniform(-8, 8) * along
        spots.append((_arc(bent, middle, half, draw.uniform(1, 6)), draw.uniform(0, 14), 0.0))
    return spots


def _arc(radii_mm: Points, middle: float, half: float, thick_mm: float) -> Points:
    """Return the outline of a band around the probe: its radii (K,) from angle `middle - half` to `middle + half`, and its thickness."""
    angle = middle + np.linspace(-half, half, len(radii_mm))
    ray = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    return np.concatenate([(radii_mm + thick_mm / 2)[:, None] * ray, ((radii_mm - thick_mm / 2)[:, None] * ray)[::-1]])
