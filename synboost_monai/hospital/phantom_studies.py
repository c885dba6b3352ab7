"""Write phantom patients as a hospital's studies: a four- and a two-chamber DICOM clip each, with known volumes.

T: frames. H, W: rows and columns of the sector.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from synboost_monai.dicom.writing.clip import write_clip
from synboost_monai.files import atomic_write_text
from synboost_monai.records import VIEWS, EchoRecord
from synboost_monai.simulation.phantom import draw_phantom_patient
from synboost_monai.simulation.phantom_anatomy import draw_label_map
from synboost_monai.simulation.phantom_ultrasound import UltrasoundView

if TYPE_CHECKING:
    from numpy.typing import NDArray

TRUTH_NAME = "truth.json"
"""File in the output's folder with the patients' true volumes and ejection fractions."""
SYSTOLE_SHARE = 0.4
"""Share of a beat from end-diastole to end-systole."""


@dataclass(frozen=True)
class PhantomClip:
    """Hold one clip before it is written."""

    patient: str
    view: str
    images: NDArray[np.uint8]
    """(T, H, W)."""
    label_maps: NDArray[np.uint8]
    """(T, H, W), classes 0..3."""
    spacing_mm: float
    frame_time_ms: float
    sex: str
    age: int
    ejection_fraction: float
    """Percent."""
    volumes_ml: tuple[float, float]
    """Volumes at end-diastole and end-systole."""


def phantom_clips(
    number: int, *, seed: int = 0, image_height: int = 320, num_frames: int = 60, num_beats: float = 2.0
) -> Iterator[PhantomClip]:
    """Yield the clips of one phantom patient, which begin in the middle of a diastole so that they contain whole beats.

    Args:
        number: number of the patient, from 1.
        seed: seed of all patients.
        image_height: pixels.
        num_frames: T.
        num_beats: beats in the clip.
    """
    patient = draw_phantom_patient(seed, number)
    anatomy = patient.anatomy
    for view_index, (name, view) in enumerate(anatomy.views.items()):
        generator = np.random.default_rng([seed, number, 11 + view_index])
        ultrasound = UltrasoundView(anatomy, view, patient.image_quality[name], image_height, generator)
        shape, spacing = ultrasound.convert.shape, ultrasound.convert.spacing_mm
        moments = [systole_at(0.7 + num_beats * frame / num_frames) for frame in range(num_frames)]
        contours = [view.contours(moment) for moment in moments]
        yield PhantomClip(
            patient.name,
            VIEWS[name],
            np.stack([ultrasound.image(c) for c in contours]),
            np.stack([draw_label_map(c, anatomy.depth_mm, shape, spacing) for c in contours]),
            spacing,
            1000 / patient.frame_rate,
            patient.sex,
            patient.age,
            anatomy.ejection_fraction,
            (anatomy.volume_ml(0.0), anatomy.volume_ml(1.0)),
        )


def systole_at(beats: float) -> float:
    """Return how far the heart has contracted, 0 (end-diastole) to 1 (end-systole), `beats` beats after an end-diastole."""
    phase = beats % 1.0
    if phase < SYSTOLE_SHARE:
        return float(0.5 - 0.5 * np.cos(np.pi * phase / SYSTOLE_SHARE))
    return float(0.5 + 0.5 * np.cos(np.pi * (phase - SYSTOLE_SHARE) / (1 - SYSTOLE_SHARE)))


def write_phantom_studies(
    output_dir: str | os.PathLike[str],
    *,
    num_studies: int = 3,
    seed: int = 0,
    image_height: int = 320,
    num_frames: int = 60,
) -> Path:
    """Write studies, one folder each, and truth.json; the same arguments give the same files, byte for byte on one kind of processor.

    Args:
        output_dir: made if missing.
        num_studies: patients, numbered from 1.
        seed, image_height, num_frames: as for `phantom_clips`.
    Returns:
        `output_dir`.
    Raises:
        ValueError: if a number is out of range.
    """
    for name, value, lowest in (
        ("num_studies", num_studies, 1),
        ("num_frames", num_frames, 8),
        ("image_height", image_height, 32),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise ValueError(f"phantom_studies.py: {name} must be a whole number of at least {lowest}, got {value!r}")
    output_dir = Path(output_dir)
    truth = {}
    for number in range(1, num_studies + 1):
        for clip in phantom_clips(number, seed=seed, image_height=image_height, num_frames=num_frames):
            path = output_dir / clip.patient / f"{clip.view}.dcm"
            write_clip(
                EchoRecord(path, None, clip.patient, clip.view, sex=clip.sex, age=clip.age),
                clip.images,
                (clip.spacing_mm, clip.spacing_mm),
                study=f"seed {seed}, {image_height} px, {num_frames} frames",
                frame_time_ms=clip.frame_time_ms,
            )
            truth[clip.patient] = {
                "ejection_fraction": round(clip.ejection_fraction, 2),
                "end_diastolic_volume_ml": round(clip.volumes_ml[0], 2),
                "end_systolic_volume_ml": round(clip.volumes_ml[1], 2),
            }
    atomic_write_text(output_dir / TRUTH_NAME, json.dumps(truth, indent=1) + "\n")
    return output_dir
