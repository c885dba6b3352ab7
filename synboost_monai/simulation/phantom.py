"""Make a phantom data set in CAMUS's layout: beating hearts with exact label maps and simulated ultrasound.

It needs no download and no licence, its label maps are correct by construction and its ejection fraction is exact, so
every stage of the project can be run and tested on it. Anatomy is drawn in `phantom_anatomy.py`, ultrasound in
`phantom_ultrasound.py`. It is a test pattern, not a model of disease: results on it say nothing about patients.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from synboost_monai.files import atomic_path, atomic_write_text
from synboost_monai.records import IMAGE_QUALITIES, VIEWS
from synboost_monai.simulation.phantom_anatomy import PatientAnatomy, draw_label_map, draw_patient
from synboost_monai.simulation.phantom_ultrasound import UltrasoundView

SPLIT_FRACTIONS = {"training": 0.70, "validation": 0.15, "testing": 0.15}
"""Share of the patients in each split."""
MIN_IMAGE_HEIGHT, MAX_IMAGE_HEIGHT = 32, 2048
"""Pixels from the probe to the deepest point."""


@dataclass(frozen=True)
class PhantomPatient:
    """Hold one patient: the content of `Info_*.cfg`, and the heart."""

    number: int
    sex: str
    """`female` or `male`."""
    age: int
    image_quality: dict[str, str]
    """Image quality by CAMUS's name of the view."""
    frame_rate: float
    anatomy: PatientAnatomy

    @property
    def name(self) -> str:
        return f"patient{self.number:04d}"


def write_phantom(
    output_dir: str | os.PathLike[str],
    *,
    num_patients: int = 10,
    seed: int = 0,
    image_height: int = 320,
    num_frames: int = 10,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write phantom patients as a CAMUS folder: `database_nifti/` and `database_split/`.

    The same seed, height and number of frames give the same files, byte for byte (with the same NumPy and SciPy, on one
    kind of processor): a patient does not depend on how many others there are, nor on the number of workers. Files are
    written whole or not at all, the splits last. End-diastole and end-systole are the first and the last frame of the half sequence.

    Args:
        output_dir: folder to make if missing; it may hold the same phantoms, such as those of an interrupted run.
        num_patients: number of patients, numbered from 1.
        seed: whole number of 0 or more.
        image_height: pixels; the width follows from the opening angle, the spacing from the depth (120 to 210 mm).
        num_frames: frames of a half sequence, end-diastole first, end-systole last.
        workers: threads; None: one per processor.
        progress: show a progress bar on stderr.
    Returns:
        `output_dir`.
    Raises:
        ValueError: for an argument out of range, or if `output_dir` holds other patients already.
    """
    output_dir = Path(output_dir)
    _check_whole_number("num_patients", num_patients, 1, 9999)
    _check_whole_number("seed", seed, 0, 2**63 - 1)
    _check_whole_number("image_height", image_height, MIN_IMAGE_HEIGHT, MAX_IMAGE_HEIGHT)
    _check_whole_number("num_frames", num_frames, 2, 200)
    if workers is None:
        workers = os.cpu_count() or 1
    _check_whole_number("workers", workers, 1, 1024)
    _check_output_dir(output_dir, num_patients, seed, num_frames)

    def write(number: int) -> str:
        patient = draw_phantom_patient(seed, number)
        _write_patient(output_dir / "database_nifti" / patient.name, patient, seed, image_height, num_frames)
        return patient.name

    # threads suffice: most time is spent in FFTs, random numbers and gzip, which release the interpreter
    with ThreadPoolExecutor(workers) as pool:
        written = pool.map(write, range(1, num_patients + 1))
        names = list(tqdm(written, total=num_patients, desc="phantom patients", unit="patient", disable=not progress))
    for split, members in _split(names).items():
        atomic_write_text(
            output_dir / "database_split" / f"subgroup_{split}.txt", "".join(f"{member}\n" for member in members)
        )
    return output_dir


def draw_phantom_patient(seed: int, number: int) -> PhantomPatient:
    """Draw patient `number` (from 1) of a seed.

    Sex alternates and image quality cycles through its three grades from patient to patient, so that every split has
    variety; one view in three has a different grade.
    """
    order = np.random.default_rng([seed, 0])
    first_sex, grades = int(order.integers(2)), order.permutation(IMAGE_QUALITIES)
    generator = np.random.default_rng([seed, number, 0])
    sex = ("female", "male")[(number + first_sex) % 2]
    age = int(np.clip(np.rint(generator.normal(64, 15)), 18, 95))
    quality = {view: str(grades[(number + (generator.uniform() < 1 / 3)) % 3]) for view in VIEWS}
    frame_rate = float(np.round(generator.uniform(40, 70), 1))
    return PhantomPatient(number, sex, age, quality, frame_rate, draw_patient(generator, is_female=sex == "female"))


def systole_at(frame: int, num_frames: int) -> float:
    """Return the moment of frame 0 ... num_frames - 1 of a half sequence, 0 (end-diastole) to 1 (end-systole): a half cosine."""
    return float(0.5 - 0.5 * np.cos(np.pi * frame / (num_frames - 1)))


def draw_phantom_frames(
    patient: PhantomPatient, view_name: str, seed: int, image_height: int = 320, num_frames: int = 2
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], float]:
    """Draw the half sequence of one view, as `write_phantom` writes it: end-diastole first, end-systole last.

    Args:
        patient: result of `draw_phantom_patient`.
        view_name: CAMUS's name of the view: 2CH or 4CH.
        seed: seed that the patient was drawn with.
        image_height, num_frames: as `write_phantom`.
    Returns:
        images (T, H, W) and label maps (T, H, W), classes 0..3; millimetres per pixel, in both directions.
    """
    view = patient.anatomy.views[view_name]
    generator = np.random.default_rng([seed, patient.number, 1 + list(patient.anatomy.views).index(view_name)])
    ultrasound = UltrasoundView(patient.anatomy, view, patient.image_quality[view_name], image_height, generator)
    shape, spacing_mm = ultrasound.convert.shape, ultrasound.convert.spacing_mm
    contours = [view.contours(systole_at(frame, num_frames)) for frame in range(num_frames)]
    images = np.stack([ultrasound.image(frame) for frame in contours])
    label_maps = np.stack([draw_label_map(frame, patient.anatomy.depth_mm, shape, spacing_mm) for frame in contours])
    return images, label_maps, spacing_mm


def _write_patient(folder: Path, patient: PhantomPatient, seed: int, image_height: int, num_frames: int) -> None:
    for view_name in patient.anatomy.views:
        images, label_maps, spacing_mm = draw_phantom_frames(patient, view_name, seed, image_height, num_frames)
        stem = f"{patient.name}_{view_name}"
        for name, frames in {"ED": slice(0, 1), "ES": slice(-1, None), "half_sequence": slice(None)}.items():
            write_frames(folder / f"{stem}_{name}.nii.gz", images[frames], spacing_mm)
            write_frames(folder / f"{stem}_{name}_gt.nii.gz", label_maps[frames], spacing_mm)
        atomic_write_text(folder / f"Info_{view_name}.cfg", _info(patient, view_name, num_frames))


def _info(patient: PhantomPatient, view_name: str, num_frames: int) -> str:
    """Return the text of a view's Info_*.cfg."""
    info = {
        "ED": 1,
        "ES": num_frames,
        "NbFrame": num_frames,
        "Sex": patient.sex[0].upper(),
        "Age": patient.age,
        "ImageQuality": patient.image_quality[view_name].capitalize(),
        "EF": f"{patient.anatomy.ejection_fraction:.2f}",
        "FrameRate": patient.frame_rate,
    }
    return "".join(f"{key}: {value}\n" for key, value in info.items())


def write_frames(path: Path, frames: NDArray[np.uint8], spacing_mm: float | tuple[float, float]) -> None:
    """Write frames (T, H, W) as CAMUS does: stored (x, y) or (x, y, t), the affine negative in x and y; the same bytes each time.

    Args:
        path: path of the .nii.gz file.
        frames: grey levels or classes.
        spacing_mm: (row, column), or one number for both.
    """
    import nibabel as nib

    stored = np.ascontiguousarray(frames.T)
    if stored.shape[2] == 1:
        stored = stored[..., 0]
    row, column = spacing_mm if isinstance(spacing_mm, tuple) else (spacing_mm, spacing_mm)
    image = nib.Nifti1Image(stored, np.diag([-column, -row, 1.0, 1.0]))
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        temporary.write_bytes(
            gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
        )  # no time, no name: same bytes again


def _split(names: Sequence[str]) -> dict[str, list[str]]:
    """Divide patients into consecutive parts; with three or more, none is empty."""
    num_held_out = [max(1, round(SPLIT_FRACTIONS[split] * len(names))) for split in ("validation", "testing")]
    if len(names) < 3:
        num_held_out = [0, len(names) - 1]
    num_training = len(names) - sum(num_held_out)
    return {
        "training": list(names[:num_training]),
        "validation": list(names[num_training : num_training + num_held_out[0]]),
        "testing": list(names[num_training + num_held_out[0] :]),
    }


def _check_whole_number(name: str, value: int, lowest: int, highest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not lowest <= value <= highest:
        raise ValueError(
            f"phantom.py: {name} must be a whole number from {lowest} to {highest}, got {value!r}; change {name}"
        )


def _check_output_dir(output_dir: Path, num_patients: int, seed: int, num_frames: int) -> None:
    """Refuse to mix with patients that this run does not write, or to replace other patients of the same names, such as CAMUS's."""
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"phantom.py: {output_dir} is a file, expected a folder to write to; give another output_dir")
    mine = {f"patient{number:04d}" for number in range(1, num_patients + 1)}
    others = sorted(p.name for p in output_dir.glob("database_nifti/patient*") if p.name not in mine)
    if others:
        raise ValueError(
            f"phantom.py: {output_dir} already holds {len(others)} patients beside the {num_patients} to write "
            f"(first: {others[0]}); give an empty output_dir"
        )
    for number in range(1, num_patients + 1):
        folder = output_dir / "database_nifti" / f"patient{number:04d}"
        there = sorted(folder.glob("Info_*.cfg"))
        if there:
            patient = draw_phantom_patient(seed, number)
            known = {f"Info_{view}.cfg": _info(patient, view, num_frames) for view in patient.anatomy.views}
            if any(path.read_bytes() != known.get(path.name, "").encode() for path in there):
                raise ValueError(
                    f"phantom.py: {folder} is another patient than that of seed {seed}, and would be replaced; give an empty output_dir"
                )
