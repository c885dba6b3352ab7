"""Ultrasound of a simulated heart by cheap physics on a polar grid: what each tissue echoes, what the beam makes of it, what gets lost.

    tissue classes and thin layers on (range, angle) -> echo amplitude x complex noise (speckle)
    -> pulse and beam -> transmission (shadows, dropout, gain by depth) + haze + noise -> power, averaged over looks

Speckle arises as in a scanner: a cell with many scatterers echoes a complex normal number, the beam adds cells up, the envelope is Rayleigh
distributed (Wagner et al., IEEE Trans. Sonics Ultrason. 1983). Brightness is drawn over ranges far wider than one scanner shows, contrasts
turned round included: a network that has met all of them takes a real image for one more (domain randomisation, Tobin et al. 2017; of label
maps: Billot et al., SynthSeg, Med. Image Anal. 2023).

Everything random is drawn once, in `Scene`; its `power(outlines)` then images the heart at any moment of the beat. Speckle and brightness
of tissue move with it, blood is new in each frame, what lies in front of the heart stands still.

R: ranges, A: angles (beams).
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import fft, ndimage

from synboost_monai.simulation.draw import Draw
from synboost_monai.simulation.geometry import FloatArray as Points
from synboost_monai.simulation.geometry import normals
from synboost_monai.simulation.hearts import NUM_ENDO, Outlines, between

FloatArray = NDArray[np.float32]
ComplexArray = NDArray[np.complex64]

GRID_SHAPE = (160, 128)
"""Ranges and angles of the grid for images of up to 160 pixels."""
NO_LAYER_DB = -99.0
"""Where no thin layer lies."""


class Tissue(enum.IntEnum):
    """What a cell of the grid is made of."""

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
    """Inner part of the wall, which experts count to it and which looks like blood."""
    EFFUSION = 11


SOLID = (Tissue.OUTSIDE, Tissue.MYOCARDIUM, Tissue.PAPILLARY, Tissue.BRIGHT_BODY, Tissue.RIGHT_WALL)
"""Tissues that do not flow."""
BLOOD = (Tissue.RIGHT_VENTRICLE, Tissue.RIGHT_ATRIUM, Tissue.LEFT_ATRIUM, Tissue.CAVITY, Tissue.EFFUSION)


@dataclass(frozen=True)
class Grid:
    """Ranges and angles at which echoes are computed, somewhat beyond the sector to both sides."""

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
        """(R, 1) in mm."""
        return ((np.arange(self.shape[0], dtype=np.float32) + 0.5) * self.range_step_mm)[:, None]

    @functools.cached_property
    def angles(self) -> FloatArray:
        """(1, A) in radians, 0 is straight down."""
        places = np.arange(self.shape[1], dtype=np.float32) + 0.5 - self.shape[1] / 2
        return (places * np.float32(self.angle_step))[None, :]

    def position(self, points: Points) -> Points:
        """Return points (K, 2) in mm as fractional (beam, range) indices (K, 2)."""
        beam = np.arctan2(points[:, 0], np.maximum(points[:, 1], 0.3)) / self.angle_step + self.shape[1] / 2 - 0.5
        return np.stack([beam, np.hypot(points[:, 0], points[:, 1]) / self.range_step_mm - 0.5], axis=1)

    def smooth_field(self, draw: Draw, range_mm: float, lateral_mm: float, deviation: float) -> FloatArray:
        """Return a random field (R, A) around 0 that varies over the given lengths."""
        width = 2 * self.half_angle * 0.6 * self.depth_mm
        knots = (max(2, int(self.depth_mm / range_mm) + 2), max(2, int(width / lateral_mm) + 2))
        field = draw.generator.standard_normal(knots, dtype=np.float32) * np.float32(deviation)
        return np.asarray(Image.fromarray(field).resize(self.shape[::-1], Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Layer:
    """A thin echoing layer along a line of the heart."""

    line: str
    """Name in `Outlines.lines`, or `pericardium`, `septum_right`, `endocardium`, `septum_core`."""
    span: tuple[int, int]
    """Points of the line that it covers."""
    level_db: Points
    """(K,) echo along it; below -40 there is a gap."""
    specular: float
    """How much it loses where the beam does not meet it squarely."""
    width_mm: Points
    """(K,)"""
    offset_mm: float
    depth_share: float = 0.0
    """`septum_core`: where between endocardium and outer border it lies."""


class Scene:
    """How one heart looks through one scanner: everything random but the blood's speckle, drawn once.

    Args:
        draw: source of all randomness, also of each frame's blood and noise.
        grid: where echoes are computed.
        outlines: of the frame in which tissue is drawn; it moves from there.
    """

    def __init__(self, draw: Draw, grid: Grid, outlines: Outlines) -> None:
        self.draw, self.grid, self._reference = draw, grid, outlines
        self._levels = self._draw_levels()
        self._trabeculae = self._draw_trabeculae()
        self._surroundings = self._draw_surroundings(outlines)
        self._fields = self._draw_fields(outlines)
        self._layers = self._draw_layers(outlines)
        self._spots = self._draw_spots(outlines)
        self._num_looks = int(draw.choice(1, 2, 3, 4))
        self._speckle = [self._noise() for _ in range(self._num_looks)]
        self._pulse, self._beams, self._padded = self._draw_beam()
        self._transmission = self._draw_transmission()
        haze, self._noise_level = self._draw_haze()
        self.haze = [self._receive(haze * self._noise()) for _ in range(self._num_looks)]
        """Echoes (R, A) of reverberations in front of the heart, which stand still."""

    # ------------------------------------------------------------------------------------------------------------ a frame

    def power(self, outlines: Outlines, is_moved: bool = False) -> FloatArray:
        """Return the echo power (R, A) of the heart at a moment.

        Args:
            outlines: of `Heart.at`.
            is_moved: the moment is another than that of the reference: tissue's speckle and brightness are carried along.
        """
        source = self._displacement(outlines) if is_moved else None
        tissue = self._tissue(outlines)
        level = self._brightness(tissue, outlines, source)
        layers = self._draw_lines(outlines)
        amplitude = np.power(10, np.maximum(level, layers) / 20).astype(np.float32)
        flows = np.isin(tissue, BLOOD) & (layers < -40)
        power: FloatArray = np.zeros(self.grid.shape, np.float32)
        for drawn, haze in zip(self._speckle, self.haze):
            speckle = _carried(drawn, source)
            speckle = np.where(flows, self._noise(), speckle) if is_moved else speckle
            echo = self._receive(amplitude * speckle) * self._transmission
            echo += haze + self._noise_level * self._noise()
            power += echo.real**2 + echo.imag**2
        return (power / np.float32(self._num_looks)).astype(np.float32)

    def _tissue(self, outlines: Outlines) -> NDArray[np.uint8]:
        """Return the class of each cell, (R, A)."""
        image = Image.new("L", self.grid.shape[::-1], int(Tissue.OUTSIDE))
        pen = ImageDraw.Draw(image)

        def fill(outline: Points | None, tissue: Tissue) -> None:
            if outline is not None:
                pen.polygon([tuple(p) for p in self.grid.position(outline)], fill=int(tissue))

        for outline, tissue in self._surroundings:
            fill(outline, tissue)
        fill(outlines.bodies.get("effusion"), Tissue.EFFUSION)
        fill(outlines.right_wall, Tissue.RIGHT_WALL)
        fill(outlines.right_ventricle, Tissue.RIGHT_VENTRICLE)
        fill(outlines.right_atrium, Tissue.RIGHT_ATRIUM)
        fill(outlines.left_atrium, Tissue.LEFT_ATRIUM)
        fill(outlines.bodies.get("vein"), Tissue.LEFT_ATRIUM)
        fill(outlines.wall_outline, Tissue.MYOCARDIUM)
        if self._trabeculae is not None:
            share = between(self._trabeculae, outlines.systole)[:, None]
            fill(outlines.cavity * (1 - share) + outlines.epicardium * share, Tissue.TRABECULAE)
        fill(outlines.cavity, Tissue.CAVITY)
        for name, body in outlines.bodies.items():
            if name.startswith("papillary"):
                fill(body, Tissue.PAPILLARY)
        return np.asarray(image)

    def _brightness(self, tissue: NDArray[np.uint8], outlines: Outlines, source: FloatArray | None) -> FloatArray:
        """Return the echo level (R, A) in decibels against myocardium, without thin layers."""
        level = self._levels[tissue]
        solid, blood_field, outside, wall, septum_and_sides, glow = (_carried(field, source) for field in self._fields)
        level += np.where(np.isin(tissue, SOLID), solid, blood_field)
        is_outside = tissue == Tissue.OUTSIDE
        level += np.where(is_outside, outside, 0)
        level += np.where(tissue == Tissue.MYOCARDIUM, wall, 0)
        level += np.where((tissue == Tissue.MYOCARDIUM) | (tissue == Tissue.RIGHT_WALL), septum_and_sides, 0)
        level += np.where(np.isin(tissue, BLOOD), 0, glow)
        return level

    def _draw_lines(self, outlines: Outlines) -> FloatArray:
        """Return the level (R, A) of the thin layers in decibels; `NO_LAYER_DB` elsewhere."""
        image = Image.new("F", self.grid.shape[::-1], NO_LAYER_DB)
        pen = ImageDraw.Draw(image)
        for layer in self._layers:
            line = self._line_of(layer, outlines)[layer.span[0] : layer.span[1]]
            normal = normals(line, line.mean(axis=0) + [0, 1e-3])
            squareness = np.abs(np.sum(line * normal, axis=1)) / np.maximum(np.hypot(*line.T), 1)
            level = layer.level_db + layer.specular * 20 * np.log10(np.maximum(squareness, 0.15))
            half = layer.width_mm[:, None] / 2
            outer = self.grid.position(line + normal * (layer.offset_mm + half))
            inner = self.grid.position(line + normal * (layer.offset_mm - half))
            for i in range(len(line) - 1):
                if level[i] > -40:
                    pen.polygon(
                        [tuple(outer[i]), tuple(outer[i + 1]), tuple(inner[i + 1]), tuple(inner[i])],
                        fill=float(level[i]),
                    )
        shift = outlines.hinges.mean(axis=0) - self._reference.hinges.mean(axis=0)
        for spot, level_db, moves in self._spots:
            pen.polygon([tuple(p) for p in self.grid.position(spot + moves * shift)], fill=level_db)
        return np.asarray(image)

    @staticmethod
    def _line_of(layer: Layer, outlines: Outlines) -> Points:
        if layer.line in ("pericardium", "septum_right"):
            return outlines.epicardium
        if layer.line == "endocardium":
            return outlines.cavity
        if layer.line == "septum_core":
            return outlines.cavity * (1 - layer.depth_share) + outlines.epicardium * layer.depth_share
        return outlines.lines[layer.line]

    def _displacement(self, outlines: Outlines) -> FloatArray:
        """Return where each cell's tissue lay in the reference, (2, R, A) fractional (range, beam) indices.

        Displacements of the landmarks, spread by Gaussian weights (Nadaraya 1964) on a coarse grid; far from the heart nothing moves.
        """
        at, was = outlines.landmarks[::3], self._reference.landmarks[::3]
        rows, columns = np.linspace(0, self.grid.shape[0] - 1, 28), np.linspace(0, self.grid.shape[1] - 1, 22)
        radius = (rows[:, None] + 0.5) * self.grid.range_step_mm
        angle = (columns[None, :] + 0.5 - self.grid.shape[1] / 2) * self.grid.angle_step
        nodes = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=-1)  # (28, 22, 2)
        square = np.sum((nodes[:, :, None] - at) ** 2, axis=-1)
        weight = np.exp(-square / (2 * 6.0**2))
        total = weight.sum(axis=-1, keepdims=True)
        moved = nodes + weight @ (was - at) / (total + 0.05)
        position = self.grid.position(moved.reshape(-1, 2)).reshape(*moved.shape)  # beam, range
        size = self.grid.shape[::-1]
        fields = [position[..., axis].astype(np.float32) for axis in (1, 0)]
        return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BILINEAR)) for f in fields])

    def _noise(self) -> ComplexArray:
        """Return echoes of power 1 of cells with many scatterers each: complex normal by the central limit theorem."""
        pairs = self.draw.generator.standard_normal((*self.grid.shape, 2), dtype=np.float32) * np.float32(np.sqrt(0.5))
        return pairs.view(np.complex64)[..., 0]

    def _receive(self, field: ComplexArray) -> ComplexArray:
        """Return the field (R, A) as the pulse and the beam see it; a uniform field keeps its mean power."""
        field = fft.ifft(fft.fft(field, self._padded[0], axis=0) * self._pulse, axis=0)[: self.grid.shape[0]]
        return fft.ifft(fft.fft(field, self._padded[1], axis=1) * self._beams, axis=1)[:, : self.grid.shape[1]]

    # ------------------------------------------------------------------------------------------------------------- drawing

    def _draw_levels(self) -> FloatArray:
        """Return the echo of each class in decibels against myocardium."""
        uniform, normal, chance = self.draw.uniform, self.draw.normal, self.draw.chance
        is_wild = chance(0.12)  # contrasts that no scanner shows, such as blood brighter than muscle
        blood, spread = (uniform(-25, 12), 6) if is_wild else (-uniform(5, 32), 2)
        level = np.zeros(len(Tissue), np.float32)
        level[Tissue.OUTSIDE] = uniform(-12, 12)
        for chamber in (Tissue.RIGHT_VENTRICLE, Tissue.RIGHT_ATRIUM, Tissue.LEFT_ATRIUM):
            level[chamber] = blood + normal(0, spread)
        for chamber, probability, highest in (
            (Tissue.LEFT_ATRIUM, 0.65, -0.3),
            (Tissue.RIGHT_ATRIUM, 0.4, 0.0),
            (Tissue.RIGHT_VENTRICLE, 0.6, 0.0),
        ):
            if chance(
                probability
            ):  # filled with clutter: brighter than the left ventricle, a deep atrium than the wall
                level[chamber] = blood * uniform(highest, 0.95)
        level[Tissue.CAVITY] = blood
        level[Tissue.PAPILLARY] = normal(-1, 4)
        level[Tissue.DARK_BODY] = blood + uniform(-2, 12)
        level[Tissue.BRIGHT_BODY] = uniform(0, 16)
        level[Tissue.RIGHT_WALL] = uniform(-6, 8)
        level[Tissue.TRABECULAE] = blood * uniform(0.3, 1)
        level[Tissue.EFFUSION] = blood + uniform(-6, 1)
        return level

    def _draw_trabeculae(self) -> tuple[Points, Points] | None:
        """Return which inner share (K,) of the wall looks like blood, at end-diastole and at end-systole, or None.

        Wider at the apex and beside the lateral wall, and wider in systole, when trabeculae and papillary muscles close up.
        """
        if not self.draw.chance(0.8):
            return None
        s = np.linspace(-1, 1, NUM_ENDO)
        sides = np.where(s < 0, self.draw.uniform(0.2, 1.1), self.draw.uniform(0.45, 1.3))
        sides = sides + self.draw.uniform(0, 0.9) * np.exp(-((s / 0.25) ** 2))
        share = self.draw.uniform(0.1, 0.6) * sides * np.exp(self.draw.curve(NUM_ENDO, 8, 0.4))
        return np.clip(share, 0, 0.75), np.clip(share * self.draw.uniform(1, 2.2), 0, 0.85)

    def _draw_surroundings(self, outlines: Outlines) -> list[tuple[Points, Tissue]]:
        """Return bodies around the heart (lung, liver, fat): outlines and whether they are bright or dark."""
        draw, grid, bodies = self.draw, self.grid, []
        for _ in range(draw.count(0, 3)):
            radius, angle = draw.uniform(0.1, 1.05) * grid.depth_mm, draw.uniform(-1, 1) * grid.half_angle
            centre = radius * np.array([np.sin(angle), np.cos(angle)])
            outline = draw.blob(centre, (draw.uniform(4, 25), draw.uniform(3, 14)), draw.uniform(0, np.pi), 0.15)
            bodies.append((outline, Tissue.DARK_BODY if draw.chance(0.5) else Tissue.BRIGHT_BODY))
        return bodies

    def _draw_fields(self, outlines: Outlines) -> list[FloatArray]:
        """Return smooth variations (R, A) in decibels: of solid tissue, blood, surroundings, wall, its regions; the glow outside."""
        draw, grid = self.draw, self.grid
        uniform = draw.uniform
        bottom = outlines.left_atrium[:, 1].max()
        solid = grid.smooth_field(draw, uniform(8, 40), uniform(8, 40), uniform(0, 6))
        blood = grid.smooth_field(draw, uniform(10, 50), uniform(10, 50), uniform(0, 3))
        outside = grid.smooth_field(draw, uniform(8, 30), uniform(8, 60), uniform(0, 6))
        outside = outside + uniform(-6, 16) * _rises(grid.ranges, bottom * uniform(0.75, 1.05), uniform(3, 12))
        outside = outside + uniform(-3, 19) * _rises(-grid.ranges, -bottom * uniform(0.2, 0.6), uniform(5, 20))
        if draw.chance(0.6):  # the deep corners see lung
            corner = _rises(np.abs(grid.angles) / np.float32(grid.half_angle), uniform(0.4, 0.9), uniform(0.05, 0.2))
            outside = outside - uniform(0, 18) * corner * _rises(
                grid.ranges, bottom * uniform(0.5, 0.8), uniform(5, 15)
            )
        wall = np.zeros(grid.shape, np.float32)
        if draw.chance(0.5):
            wall = grid.smooth_field(draw, uniform(6, 15), uniform(6, 15), uniform(1, 6))
        middle = outlines.cavity.mean(axis=0)
        side = grid.angles - np.float32(np.arctan2(middle[0], middle[1]))
        apex = outlines.cavity[NUM_ENDO // 2, 1]
        regions = uniform(-1, 14) * _rises(-side, 0.05, 0.06)
        if draw.chance(0.5):
            regions = regions - uniform(0, 9) * _rises(side, 0.05, 0.06)
        if draw.chance(0.6):
            regions = regions - uniform(0, 10) * _rises(-grid.ranges, -apex - uniform(0, 20), 6)
        regions = np.broadcast_to(regions, grid.shape).astype(np.float32)
        return [solid, blood, outside.astype(np.float32), wall, regions, self._draw_glow(outlines, bottom)]

    def _draw_glow(self, outlines: Outlines, bottom: float) -> FloatArray:
        """Return the glow (R, A) of the pericardium and lung around the heart in decibels, which decays with the distance to it."""
        draw, grid = self.draw, self.grid
        if not draw.chance(0.9):
            return np.zeros(grid.shape, np.float32)
        outside = np.isin(self._tissue(outlines), (Tissue.OUTSIDE, Tissue.DARK_BODY, Tissue.BRIGHT_BODY))[::2, ::2]
        sampling = (2 * grid.range_step_mm, 2 * grid.angle_step * outlines.hinges[:, 1].mean())

        def distance_to(cells: NDArray[np.bool_]) -> FloatArray:
            """Return the distance (R, A) in mm, computed at every second cell."""
            distance = ndimage.distance_transform_edt(~cells, sampling=sampling).astype(np.float32)
            return distance.repeat(2, 0).repeat(2, 1)[: grid.shape[0], : grid.shape[1]]

        distance = distance_to(~outside)
        side = _rises(grid.ranges, draw.uniform(0.1, 0.85) * bottom, draw.uniform(5, 15))
        side = side * _rises(grid.angles / grid.half_angle * draw.choice(-1, 0, 1, 1, 1), draw.uniform(-0.8, 0.3), 0.15)
        decay = np.exp(-np.maximum(distance - draw.uniform(0, 4), 0) / draw.uniform(3, 20))
        if draw.chance(0.6):  # it blooms over the outer part of the wall: no edge where experts draw one
            decay = decay * np.exp(-distance_to(outside) / draw.uniform(1, 6))
        else:
            decay = decay * (distance > 0)
        return (draw.uniform(8, 34) * side * decay).astype(np.float32)

    def _draw_layers(self, outlines: Outlines) -> list[Layer]:
        """Return the thin layers: pericardium, borders and core of the septum, walls of the atria, valves, strands."""
        draw, layers = self.draw, []
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
                offset_mm=uniform(-3, 3),
            )
        if chance(0.3):
            add("septum_right", (0, 50), uniform(1, 4), uniform(-2, 10), uniform(0, 1.2), uniform(0, 0.6))
        if chance(0.35):
            add("endocardium", (0, NUM_ENDO), uniform(1, 3), uniform(-3, 10), uniform(0, 1.5), uniform(0, 0.7))
        if chance(0.75):  # the core of the septum is brighter than its borders
            width = float(np.mean(np.hypot(*(outlines.epicardium[8:36] - outlines.cavity[8:36]).T)))
            add(
                "septum_core",
                (0, int(uniform(28, 48))),
                width * uniform(0.2, 0.8),
                uniform(0, 13),
                uniform(0, 0.5),
                uniform(0, 0.3),
                depth_share=uniform(0.25, 0.7),
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

    def _draw_spots(self, outlines: Outlines) -> list[tuple[Points, float, float]]:
        """Return small bright spots: outline, level in decibels, and whether they move with the annulus (0 or 1)."""
        draw, grid = self.draw, self.grid
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
        if draw.chance(0.12):  # a calcified or prosthetic ring and its echoes behind the valve
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

    def _draw_beam(self) -> tuple[FloatArray, FloatArray, tuple[int, int]]:
        """Return the transfer functions of the pulse (R', 1) and of the beam at each range (R, A'), and the padded sizes R', A'."""
        draw, grid = self.draw, self.grid
        fine = (grid.shape[0] / GRID_SHAPE[0], grid.shape[1] / GRID_SHAPE[1])  # a finer grid has the same beam
        padded = (
            fft.next_fast_len(int(grid.shape[0] + 16 * fine[0])),
            fft.next_fast_len(int(grid.shape[1] + 24 * fine[1])),
        )
        frequency = [2 * np.pi * f * fft.fftfreq(size).astype(np.float32) for f, size in zip(fine, padded)]
        pulse = np.exp(-0.5 * (frequency[0] * draw.uniform(0.45, 1.4)) ** 2)[:, None]
        width = np.clip(
            draw.uniform(0.5, 1.6) * (1 + draw.uniform(0, 25) / np.maximum(grid.ranges, 6)), 0.4, 6
        )  # beams
        main = np.exp(-0.5 * (frequency[1] * width) ** 2)
        broad = np.exp(-0.5 * (frequency[1] * np.minimum(5 * width, 14)) ** 2)  # side lobes
        main /= np.sqrt(np.mean(main**2, axis=1, keepdims=True))
        broad /= np.sqrt(np.mean(broad**2, axis=1, keepdims=True))
        beams = main + 10 ** (draw.uniform(-30, -12) / 20) * broad
        beams /= np.sqrt(np.mean(beams**2, axis=1, keepdims=True))
        return (pulse / np.sqrt(np.mean(pulse**2))).astype(np.float32), beams.astype(np.float32), padded

    def _draw_transmission(self) -> FloatArray:
        """Return the share of the amplitude (R, A) that comes through: dropout of the sides, shadows of ribs and lung, gain by depth."""
        draw, grid = self.draw, self.grid
        uniform, depth = draw.uniform, grid.depth_mm
        loss = np.zeros(grid.shape, np.float32)
        for side in (-1, 1):
            if draw.chance(0.4):
                across = _rises(side * grid.angles / grid.half_angle, uniform(0.25, 0.95), uniform(0.04, 0.2))
                loss += uniform(2, 18) * across * _rises(grid.ranges, uniform(0, 0.7) * depth, uniform(4, 15))
        for _ in range(draw.count(0, 3)):
            centre, width = uniform(-1, 1) * grid.half_angle, np.radians(uniform(1.5, 8))
            across = np.exp(-(((grid.angles - centre) / width) ** 2))
            loss += uniform(2, 22) * across * _rises(grid.ranges, uniform(0, 0.8) * depth, uniform(2, 10))
        gain = np.interp(grid.ranges, np.linspace(0, depth, 6), draw.generator.normal(0, uniform(0, 5), 6))
        gain = gain - uniform(-0.5, 0.7) * (grid.ranges - depth / 2) / 10
        gain = gain + grid.smooth_field(draw, 200, uniform(3, 15), uniform(0, 1.5))
        return np.power(10, (gain - loss) / 20).astype(np.float32)

    def _draw_haze(self) -> tuple[FloatArray, FloatArray]:
        """Return the amplitudes (R, A) of reverberations in front of the heart, and (R, 1) of the receiver's noise."""
        draw, grid = self.draw, self.grid
        uniform, r = draw.uniform, grid.ranges
        haze = (
            uniform(-30, 2)
            - r * uniform(0.05, 0.5)
            + grid.smooth_field(draw, uniform(10, 60), uniform(10, 60), uniform(0, 5))
        )
        if draw.chance(0.5):  # a cloud
            down = ((r - uniform(0, 0.4) * grid.depth_mm) / uniform(8, 35)) ** 2
            across = ((grid.angles - draw.normal(0, 0.2)) / uniform(0.1, 0.6)) ** 2
            haze = np.maximum(haze, uniform(-18, 2) - 4 * down - 4 * across)
        if draw.chance(0.6):  # rings of the near field
            haze = haze + uniform(4, 25) * np.exp(-r / uniform(3, 10)) * (
                1 + 0.6 * np.cos(2 * np.pi * r / uniform(2, 5))
            )
        if draw.chance(0.25):
            haze = haze + uniform(2, 7) * np.cos(2 * np.pi * r / uniform(4, 14) + uniform(0, 6)) * np.exp(
                -r / uniform(20, 80)
            )
        noise = uniform(-38, -14) + uniform(0, 0.14) * (r - 80)
        return np.power(10, haze / 20).astype(np.float32), np.power(10, noise / 20).astype(np.float32)


def _rises(x: FloatArray, at: float, over: float) -> FloatArray:
    """Return a smooth step from 0 to 1 at a place."""
    return 1 / (1 + np.exp(np.clip((at - x) / np.float32(over), -30, 30)))


def _arc(radii_mm: Points, middle: float, half: float, thick_mm: float) -> Points:
    """Return the outline of a band around the probe: its radii (K,) from angle `middle - half` to `middle + half`, and its thickness."""
    angle = middle + np.linspace(-half, half, len(radii_mm))
    ray = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    return np.concatenate([(radii_mm + thick_mm / 2)[:, None] * ray, ((radii_mm - thick_mm / 2)[:, None] * ray)[::-1]])


def _carried(field: NDArray[Any], source: FloatArray | None) -> NDArray[Any]:
    """Return a field (R, A) read where each cell's tissue came from; as it is without displacement."""
    if source is None:
        return field
    rows = np.clip(np.rint(source[0]), 0, field.shape[0] - 1).astype(np.intp)
    columns = np.clip(np.rint(source[1]), 0, field.shape[1] - 1).astype(np.intp)
    return field[rows, columns]
