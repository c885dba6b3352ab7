"""Turn echo power into a scanner's image: grey levels, a sector, and burned-in graphics."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from synboost_monai.heart.geometry import fill_polygon
from synboost_monai.simulation.anatomy import Outlines
from synboost_monai.simulation.draw import Draw
from synboost_monai.simulation.grid import FloatArray, Grid
from synboost_monai.structures import LEFT_ATRIUM, LEFT_VENTRICULAR_CAVITY, MYOCARDIUM


@dataclass(frozen=True)
class Frame:
    """Hold the place of the sector in the image: H, W, mm per pixel, and the probe's position in mm from the upper left corner."""

    shape: tuple[int, int]
    spacing_mm: float
    probe_mm: tuple[float, float]

    @property
    def x(self) -> FloatArray:
        """Return (1, W) mm from the probe, to the right."""
        return ((np.arange(self.shape[1], dtype=np.float32) + 0.5) * self.spacing_mm - self.probe_mm[0])[None, :]

    @property
    def y(self) -> FloatArray:
        """Return (H, 1) mm from the probe, downwards."""
        return ((np.arange(self.shape[0], dtype=np.float32) + 0.5) * self.spacing_mm - self.probe_mm[1])[:, None]


class Display:
    """A Display turns echo power into an image; everything random is drawn once, so that the frames of a clip look alike.

    Args:
        draw: source of all randomness.
        grid: grid of the echo power.
        longer_side: pixels of the image's longer side.
    """

    def __init__(self, draw: Draw, grid: Grid, longer_side: int) -> None:
        self.grid = grid
        self.frame = _draw_frame(draw, grid, longer_side)
        self._range_db = draw.uniform(34, 78)
        self._grey = draw.normal(116, 32, 50, 215)
        self._floor = draw.uniform(0, 45) if draw.chance(0.75) else 0.0  # grey level without an echo
        self._gamma = float(np.exp(draw.normal(0, 0.35)))
        self._reference_share = draw.uniform(50, 90)
        self._smoothing = (draw.uniform(0, 0.9), draw.uniform(0, 1.4)) if draw.chance(0.6) else None
        # pixels coarser than the grid average the cells that they cover
        self._averaging = max(0.0, 0.45 * (self.frame.spacing_mm / grid.range_step_mm - 1))
        self._has_median = draw.chance(0.15)
        self._blur = draw.uniform(0.35, 0.75)
        self._edges = draw.uniform(0.2, 0.9) if draw.chance(0.25) else 0.0
        self._persistence = draw.uniform(0.1, 0.6) if draw.chance(0.5) else 0.0
        self._near_mm = draw.uniform(0, 6) if draw.chance(0.3) else 0.0
        self._quality = draw.count(35, 95) if draw.chance(0.3) else None
        self._graphics = _draw_graphics(draw, self.frame) if draw.chance(0.2) else None
        self._reference_db: float | None = None
        self._last: FloatArray | None = None

        frame = self.frame
        radius, angle = np.hypot(frame.x, frame.y), np.arctan2(frame.x, np.maximum(frame.y, 1e-3))
        self.inside = (
            (radius <= grid.depth_mm) & (np.abs(angle) <= grid.half_angle) & (frame.y > 0) & (radius >= self._near_mm)
        )
        row = np.clip(radius / grid.range_step_mm - 0.5, 0, grid.shape[0] - 1.001)[self.inside]
        column = np.clip(angle / grid.angle_step + grid.shape[1] / 2 - 0.5, 0, grid.shape[1] - 1.001)[self.inside]
        i, j = row.astype(np.intp), column.astype(np.intp)
        self._cell, self._down, self._right = (
            i * grid.shape[1] + j,
            (row - i).astype(np.float32),
            (column - j).astype(np.float32),
        )

    def __call__(self, power: FloatArray) -> NDArray[np.uint8]:
        """Return the image (H, W) of one frame's echo power (R, A)."""
        decibels = 10 * np.log10(power + np.float32(1e-7))
        if self._smoothing is not None or self._averaging:
            smoothing = np.hypot(self._smoothing or 0.0, self._averaging)
            decibels = ndimage.gaussian_filter(decibels, tuple(np.broadcast_to(smoothing, 2)))
        if self._has_median:
            decibels = ndimage.median_filter(decibels, 3)
        if self._edges:
            decibels = decibels + self._edges * (decibels - ndimage.uniform_filter(decibels, 5))
        if self._last is not None and self._persistence:
            decibels = self._persistence * self._last + (1 - self._persistence) * decibels
        self._last = decibels
        if self._reference_db is None:
            self._reference_db = float(np.percentile(decibels, self._reference_share))
        grey = self._grey + (decibels - self._reference_db) * (255 / self._range_db)
        grey = self._floor + (255 - self._floor) * np.clip(grey / 255, 0, 1) ** self._gamma
        image = self._scan_converted(grey.astype(np.float32))
        if self._blur:
            image = ndimage.gaussian_filter(image, self._blur)
        picture = Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8))
        if self._graphics is not None:
            self._graphics(picture)
        if self._quality is not None:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=self._quality)
            picture = Image.open(buffer)
        return np.asarray(picture)

    def label_map(self, outlines: Outlines) -> NDArray[np.uint8]:
        """Return the label map (H, W) of a frame, as experts draw it.

        Wall and cavity continue beside the sector, within its bounding box; the atrium ends with the sector.
        """
        frame, half_width = self.frame, self.grid.depth_mm * np.sin(self.grid.half_angle)

        def fill(outline: NDArray[np.float64]) -> NDArray[np.bool_]:
            rows = (outline[:, 1] + frame.probe_mm[1]) / frame.spacing_mm - 0.5
            return fill_polygon(rows, (outline[:, 0] + frame.probe_mm[0]) / frame.spacing_mm - 0.5, frame.shape)

        label_map = np.zeros(frame.shape, np.uint8)
        label_map[fill(outlines.left_atrium) & self.inside] = LEFT_ATRIUM.class_index
        label_map[fill(outlines.wall_outline)] = MYOCARDIUM.class_index
        label_map[fill(outlines.cavity)] = LEFT_VENTRICULAR_CAVITY.class_index
        label_map[(frame.y > self.grid.depth_mm) | (frame.y < 0) | (np.abs(frame.x) > half_width)] = 0
        return label_map

    def _scan_converted(self, grey: FloatArray) -> FloatArray:
        flat, width = grey.ravel(), self.grid.shape[1]
        upper = flat[self._cell] * (1 - self._right) + flat[self._cell + 1] * self._right
        lower = flat[self._cell + width] * (1 - self._right) + flat[self._cell + width + 1] * self._right
        image = np.zeros(self.frame.shape, np.float32)
        image[self.inside] = upper + (lower - upper) * self._down
        return image


def _draw_frame(draw: Draw, grid: Grid, longer_side: int) -> Frame:
    """Draw the place of the sector: mostly filling the image, else with margins or cut off."""
    width, height = 2 * grid.depth_mm * np.sin(grid.half_angle), grid.depth_mm
    left = right = top = bottom = 0.0
    if draw.chance(0.4):
        left, right = (draw.uniform(-0.04, 0.2) * width for _ in range(2))
        top, bottom = draw.uniform(0, 0.15) * height, draw.uniform(-0.04, 0.2) * height
    width_mm, height_mm = width + left + right, height + top + bottom
    spacing = max(width_mm, height_mm) / longer_side
    shape = (max(round(height_mm / spacing), 8), max(round(width_mm / spacing), 8))
    return Frame(shape, spacing, (width / 2 + left, top))


def _draw_graphics(draw: Draw, frame: Frame) -> Graphics:
    """Draw a scanner's marks on its images: ruler, trace of the heartbeat, grey scale, text."""
    return Graphics(
        frame=frame,
        level=draw.count(110, 255),
        has_ruler=draw.chance(0.6),
        trace_place=draw.uniform(0.82, 0.97) if draw.chance(0.6) else None,
        beats=(draw.uniform(0, 1), draw.uniform(0.2, 0.6)),
        grey_scale=draw.chance(0.4),
        texts=tuple((draw.uniform(0, 0.8), draw.uniform(0, 0.95), _words(draw)) for _ in range(draw.count(0, 4))),
    )


def _words(draw: Draw) -> str:
    letters = "ABCDEFGHIKLMNOPRSTUVXYZ0123456789 .:/-"
    return "".join(letters[draw.count(0, len(letters) - 1)] for _ in range(draw.count(2, 14)))


@dataclass(frozen=True)
class Graphics:
    """Hold the marks of a scanner; called with a picture, it draws them into it."""

    frame: Frame
    level: int
    """Grey level."""
    has_ruler: bool
    trace_place: float | None
    """Height of the heartbeat's trace, as a share of the image; None: no trace."""
    beats: tuple[float, float]
    """First beat and distance between beats, as shares of the width."""
    grey_scale: bool
    texts: tuple[tuple[float, float, str], ...]
    """Place (x, y) as shares of the image, and the text."""

    def __call__(self, picture: Image.Image) -> None:
        height, width = self.frame.shape
        pen = ImageDraw.Draw(picture)
        if self.has_ruler:  # one tick per centimetre
            for tick in range(0, int(height * self.frame.spacing_mm), 10):
                y = (self.frame.probe_mm[1] + tick) / self.frame.spacing_mm
                pen.line([(width - 3, y), (width - 1, y)], fill=self.level)
        if self.trace_place is not None:
            x = np.arange(width)
            since = ((x / width - self.beats[0]) / self.beats[1]) % 1
            wave = np.exp(-(((since - 0.2) / 0.02) ** 2)) + 0.25 * np.exp(-(((since - 0.5) / 0.06) ** 2))
            trace = height * self.trace_place - 0.08 * height * wave
            pen.line([(float(a), float(b)) for a, b in zip(x, trace)], fill=self.level)
        if self.grey_scale:
            for i in range(height // 3):
                pen.line([(1, height // 3 + i), (3, height // 3 + i)], fill=255 - int(255 * i / (height / 3)))
        for x_share, y_share, text in self.texts:
            pen.text((x_share * width, y_share * height), text, fill=self.level)
