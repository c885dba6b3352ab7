"""Simulate the ultrasound of a heart with cheap physics on a polar grid: echoes of each tissue, the beam's effect, and losses.

    tissue classes and thin layers on (range, angle) -> echo amplitude x complex noise (speckle)
    -> pulse and beam -> transmission (shadows, dropout, gain by depth) + haze + noise -> power, averaged over looks

Speckle arises as in a scanner: a cell with many scatterers echoes a complex normal number, the beam adds cells up, the envelope is Rayleigh
distributed (Wagner et al., IEEE Trans. Sonics Ultrason. 1983). The echoes of tissues are drawn in `echogenicity`, the effects of the
sound's path in `beam`.

Everything random is drawn once, in `Scene`; its `power(outlines)` then images the heart at any moment of the beat. Tissue carries its
speckle and brightness along, blood is new in each frame, reverberations in front of the heart do not move.

R: ranges, A: angles (beams).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import fft

from synboost_monai.heart.geometry import FloatArray as Points
from synboost_monai.heart.geometry import normals
from synboost_monai.simulation.anatomy import NUM_ENDO, Outlines, between
from synboost_monai.simulation.beam import draw_beam, draw_haze, draw_transmission
from synboost_monai.simulation.draw import Draw
from synboost_monai.simulation.echogenicity import (
    BLOOD,
    NO_LAYER_DB,
    SOLID,
    Layer,
    Tissue,
    draw_deep_clutter,
    draw_fields,
    draw_glow,
    draw_layers,
    draw_levels,
    draw_right_trabeculae,
    draw_spots,
    draw_surroundings,
    draw_trabeculae,
)
from synboost_monai.simulation.grid import FloatArray, Grid

ComplexArray = NDArray[np.complex64]


class Scene:
    """A Scene holds the look of one heart through one scanner: everything random except the blood's speckle and noise, drawn once.

    Args:
        draw: source of all randomness, including each frame's blood and noise.
        grid: grid on which echoes are computed.
        outlines: outlines in the frame in which tissue is drawn; it moves from there.
    """

    def __init__(self, draw: Draw, grid: Grid, outlines: Outlines) -> None:
        self.draw, self.grid, self._reference = draw, grid, outlines
        self._levels = draw_levels(draw)
        self._trabeculae = draw_trabeculae(draw)
        self._right_trabeculae = draw_right_trabeculae(draw)
        self._surroundings = draw_surroundings(draw, grid)
        self._fields = draw_fields(draw, grid, outlines)
        outside = np.isin(self._tissue(outlines), (Tissue.OUTSIDE, Tissue.DARK_BODY, Tissue.BRIGHT_BODY))
        self._fields.append(draw_glow(draw, grid, outlines, outside))
        self._deep_clutter = draw_deep_clutter(draw, grid, outlines)
        self._layers = draw_layers(draw, outlines)
        self._spots = draw_spots(draw, grid, outlines)
        self._num_looks = int(draw.choice(1, 2, 2, 3, 4, 5))
        self._speckle = [self._noise() for _ in range(self._num_looks)]
        self._pulse, self._beams, self._padded = draw_beam(draw, grid)
        self._transmission = draw_transmission(draw, grid)
        haze, self._noise_level = draw_haze(draw, grid)
        self.haze = [self._receive(haze * self._noise()) for _ in range(self._num_looks)]
        """Echoes (R, A) of reverberations in front of the heart, which do not move."""

    # ------------------------------------------------------------------------------------------------------------ a frame

    def power(self, outlines: Outlines, is_moved: bool = False) -> FloatArray:
        """Return the echo power (R, A) of the heart at a moment.

        Args:
            outlines: result of `Heart.at`.
            is_moved: whether the moment differs from that of the reference, so that tissue's speckle and brightness have to be moved.
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
        if self._right_trabeculae is not None and outlines.right_ventricle is not None:
            share = self._right_trabeculae[:, None]
            inner = outlines.epicardium * (1 - share) + outlines.cavity * share
            septum = slice(0, NUM_ENDO // 2)
            fill(np.concatenate([outlines.epicardium[septum], inner[septum][::-1]]), Tissue.TRABECULAE)
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
        return np.maximum(level, _carried(self._deep_clutter, source))

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
        """Return where each cell's tissue was in the reference, (2, R, A) fractional (range, beam) indices.

        The landmarks' displacements are spread by Gaussian weights (Nadaraya 1964) on a coarse grid; far from the heart nothing moves.
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
        """Return echoes of power 1 from cells with many scatterers each: complex normal by the central limit theorem."""
        pairs = self.draw.generator.standard_normal((*self.grid.shape, 2), dtype=np.float32) * np.float32(np.sqrt(0.5))
        return pairs.view(np.complex64)[..., 0]

    def _receive(self, field: ComplexArray) -> ComplexArray:
        """Return the field (R, A) as the pulse and the beam see it; a uniform field keeps its mean power."""
        field = fft.ifft(fft.fft(field, self._padded[0], axis=0) * self._pulse, axis=0)[: self.grid.shape[0]]
        return fft.ifft(fft.fft(field, self._padded[1], axis=1) * self._beams, axis=1)[:, : self.grid.shape[1]]


def _carried(field: NDArray[Any], source: FloatArray | None) -> NDArray[Any]:
    """Return a field (R, A) read where each cell's tissue came from; unchanged without displacement."""
    if source is None:
        return field
    rows = np.clip(np.rint(source[0]), 0, field.shape[0] - 1).astype(np.intp)
    columns = np.clip(np.rint(source[1]), 0, field.shape[1] - 1).astype(np.intp)
    return field[rows, columns]
