"""Simulate echocardiograms: image, label map and attributes of an invented heart, by seed and index."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synboost_monai.prompts.attributes import shape_of_mask
from synboost_monai.simulation.acoustics import Scene
from synboost_monai.simulation.anatomy import Heart, Outlines
from synboost_monai.simulation.display import Display
from synboost_monai.simulation.draw import Draw
from synboost_monai.simulation.grid import GRID_SHAPE, Grid
from synboost_monai.simulation.hearts import VIEWS, draw_heart, draw_place
from synboost_monai.structures import LEFT_VENTRICULAR_CAVITY, MYOCARDIUM, STRUCTURES

MAX_CUT_SHARE = 0.03
"""Largest share of the endocardium that may be outside the sector."""
MIN_APEX_DEPTH_MM = 3.0
GOOD_CONTRAST, POOR_CONTRAST = 0.88, 0.7
"""Thresholds of `quality_of`."""


@dataclass(frozen=True)
class SimulatedEcho:
    """Hold one image or clip, its truth, and its attributes for prompts."""

    images: NDArray[np.uint8]
    """Grey levels (T, H, W)."""
    label_maps: NDArray[np.uint8]
    """(T, H, W), classes 0..3."""
    spacing_mm: float
    systole: tuple[float, ...]
    """Moment of each frame, 0 (end-diastole) to 1 (end-systole)."""
    volumes_ml: tuple[float, ...]
    """Volume of the left ventricular cavity in each frame, by disks of this view."""
    attributes: dict[str, Any]
    """Keys of a datalist's item: view, phase (for a single image at end-diastole or end-systole), sex, age, image_quality,
    ejection_fraction; and diagnosis."""

    @cached_property
    def shapes(self) -> dict[str, str]:
        """Return the paper's word for the shape of each structure in the first frame."""
        spacing = (self.spacing_mm, self.spacing_mm)
        words = {s.name: shape_of_mask(self.label_maps[0] == s.class_index, spacing) for s in STRUCTURES}
        return {name: word for name, word in words.items() if word}


def simulate(
    seed: int, index: int, *, longer_side: int = 160, systole: tuple[float, ...] | None = None
) -> SimulatedEcho:
    """Return the simulated echocardiogram of a seed and index; the same numbers give the same images in any process.

    Args:
        seed, index: whole numbers of 0 or more.
        longer_side: pixels of the images' longer side.
        systole: moments of the frames of a clip, 0 ... 1; None: one image at a random moment, mostly end-diastole or end-systole.
    Raises:
        ValueError: if a moment is not in 0 ... 1.
    """
    if systole is not None and not all(0 <= moment <= 1 for moment in systole):
        raise ValueError(f"simulator.py: systole must be moments from 0 to 1, got {systole}")
    draw = Draw(seed, index)
    view = VIEWS[int(draw.chance(0.6))]
    ends = draw.uniform(0, 1)
    moments = systole or (0.0 if ends < 0.35 else 1.0 if ends < 0.7 else draw.uniform(0, 1),)
    heart, half_angle = _draw_visible(draw, view, moments[0])
    outlines = [heart.at(moment) for moment in moments]
    fineness = max(1.0, longer_side / GRID_SHAPE[0])
    shape = (round(GRID_SHAPE[0] * fineness), round(GRID_SHAPE[1] * fineness))
    grid = Grid(_draw_depth(draw, outlines[0]), half_angle, shape)
    scene = Scene(draw, grid, outlines[0])
    display = Display(draw, grid, longer_side)
    images = [display(scene.power(frame, is_moved=len(outlines) > 1)) for frame in outlines]
    label_maps = [display.label_map(frame) for frame in outlines]
    attributes = {"view": view, **heart.attributes, "image_quality": quality_of(images[0], label_maps[0])}
    if len(moments) == 1 and moments[0] in (0.0, 1.0):
        attributes["phase"] = "end_systole" if moments[0] else "end_diastole"
    return SimulatedEcho(
        images=np.stack(images),
        label_maps=np.stack(label_maps),
        spacing_mm=display.frame.spacing_mm,
        systole=moments,
        volumes_ml=tuple(heart.ventricle.volume_ml(moment) for moment in moments),
        attributes=attributes,
    )


def quality_of(image: NDArray[np.uint8], label_map: NDArray[np.uint8]) -> str:
    """Return the grade of an image, by how well grey levels alone separate the wall from the cavity.

    The measure is the probability that a pixel of the brighter one exceeds a pixel of the other (the area under the ROC curve):
    good from `GOOD_CONTRAST` on, poor below `POOR_CONTRAST`.
    """
    cavity, wall = (image[label_map == s.class_index] for s in (LEFT_VENTRICULAR_CAVITY, MYOCARDIUM))
    if not len(cavity) or not len(wall):
        return "poor"
    counts = [np.bincount(pixels, minlength=256) / len(pixels) for pixels in (cavity, wall)]
    below = np.cumsum(counts[0]) - counts[0] / 2
    share = float(np.sum(counts[1] * below))
    contrast = max(share, 1 - share)
    return "good" if contrast >= GOOD_CONTRAST else "poor" if contrast < POOR_CONTRAST else "medium"


def _draw_visible(draw: Draw, view: str, moment: float) -> tuple[Heart, float]:
    """Return a heart, placed so that enough of it is inside the sector, and half the sector's opening angle."""
    heart = draw_heart(draw, view)
    half_angle = float(np.radians(draw.uniform(28, 50) if draw.chance(0.4) else draw.normal(37.5, 2)))
    for _ in range(40):
        cavity = heart.cavity_at(moment)
        beside = np.mean(np.abs(np.arctan2(cavity[:, 0], cavity[:, 1])) > half_angle)
        if beside < MAX_CUT_SHARE and cavity[:, 1].min() > MIN_APEX_DEPTH_MM:
            break
        heart = replace(heart, place=draw_place(draw, view))  # a wide heart is moved, not rejected
    return heart, half_angle


def _draw_depth(draw: Draw, outlines: Outlines) -> float:
    """Return the depth of the image: mostly beyond the atrium, else the atrium is cut off by the image."""
    bottom = outlines.left_atrium[:, 1].max()
    share = draw.uniform(0.95, 1.25) if draw.chance(0.6) else draw.uniform(0.74, 0.95)
    return float(max(bottom * share, outlines.hinges[:, 1].mean() + 6))
