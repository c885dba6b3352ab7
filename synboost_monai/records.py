"""Describe one echocardiogram by its files and its known attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

VIEWS = {"2CH": "apical_two_chamber", "4CH": "apical_four_chamber"}
"""View in CAMUS's file names -> our name."""
PHASES = {"ED": "end_diastole", "ES": "end_systole"}
"""Cardiac phase in CAMUS's file names -> our name."""
IMAGE_QUALITIES = ("good", "medium", "poor")
"""Grades of image quality in CAMUS."""
SHAPES = ("circle", "triangle", "oval", "square", "rectangle")
"""The paper's words for the shape of a structure."""


@dataclass(frozen=True)
class EchoRecord:
    """Hold one labelled (or unlabelled) echocardiogram; unknown attributes are None.

    `image` is None for a label map without image, as `synboost label-maps` makes them. `shape` maps a structure's name
    to one of `SHAPES`. `ejection_fraction` is in percent. `sequence` is the file of the half heart cycle (end diastole
    to end systole or back) that the image was taken from, `sequence_label` the file of its label maps. `sector` is the file
    of the ultrasound sector's mask (0 and 1) on the grid of image and label map. `labelled_structures` names the structures in the
    label map if an expert did not draw all of them; None: all.
    """

    image: Path | None
    label: Path | None
    patient: str
    view: str | None = None
    phase: str | None = None
    sex: str | None = None
    age: int | None = None
    image_quality: str | None = None
    ejection_fraction: float | None = None
    shape: Mapping[str, str] = field(default_factory=dict)
    is_synthetic: bool = False
    sequence: Path | None = None
    sequence_label: Path | None = None
    sector: Path | None = None
    labelled_structures: tuple[str, ...] | None = None
