"""Find the images and label maps that the page works on, with their attributes; draw phantoms on demand."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synboost_monai.data import list_images, list_label_maps
from synboost_monai.files import IMAGE_SUFFIXES, image_suffix, is_dicom
from synboost_monai.predictor import ATTRIBUTES
from synboost_monai.records import PHASES, VIEWS
from synboost_monai.simulation.phantom import draw_phantom_frames, draw_phantom_patient
from synboost_monai.synthesis.writers import write_nifti

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SESSION_PREFIX = "synboost-demo-"
"""Prefix of the folder that holds uploads and results while the page is served."""
PHANTOM_HEIGHT = 320
"""Pixels of a phantom from the probe to the deepest point, as `synboost phantom` draws it."""


@dataclass(frozen=True)
class Source:
    """Hold an image to segment."""

    path: Path
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Key of `predictor.ATTRIBUTES`, or `is_synthetic` -> value that is known apart from the file."""
    label_map: NDArray[np.uint8] | None = None
    """(H, W), classes 0..3, that the image was drawn from, where it is known."""


@dataclass(frozen=True)
class LabelSource:
    """Hold a label map to synthesise from."""

    path: Path
    image_path: Path | None = None
    """Its image, whose sector is taken; None for the default sector."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """`view` and `phase`, where known; some models take them."""


@dataclass(frozen=True)
class Phantom:
    """Hold one phantom image with its label map, in files."""

    image_path: Path
    label_path: Path
    label_map: NDArray[np.uint8]
    attributes: Mapping[str, Any]

    def source(self) -> Source:
        """Return the image to segment."""
        return Source(self.image_path, self.attributes, self.label_map)

    def label_source(self) -> LabelSource:
        """Return the label map to synthesise from."""
        known = {key: self.attributes[key] for key in ("view", "phase")}
        return LabelSource(self.label_path, self.image_path, known)


def draw_phantom(seed: int, view: str, phase: str, folder: Path, image_height: int = PHANTOM_HEIGHT) -> Phantom:
    """Draw the phantom of a seed: patient 1 of `synboost phantom --seed SEED`, pixel for pixel.

    Args:
        seed: 0 or more.
        view, phase: words of `records.VIEWS` and `records.PHASES`.
        folder: for its two files.
        image_height: pixels.
    Raises:
        ValueError: if the seed, view or phase is not one of these.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"the phantom's seed must be a whole number from 0, got {seed!r}")
    name = {long: short for short, long in VIEWS.items()}.get(view)
    if name is None or phase not in PHASES.values():
        raise ValueError(
            f"a phantom has the views {', '.join(VIEWS.values())} and the phases {', '.join(PHASES.values())}, "
            f"got {view!r} and {phase!r}"
        )
    patient = draw_phantom_patient(seed, 1)
    images, label_maps, spacing_mm = draw_phantom_frames(patient, name, seed, image_height)
    index = list(PHASES.values()).index(phase)
    stem = f"phantom{seed}_{name}_{list(PHASES)[index]}"
    paths = folder / f"{stem}.nii.gz", folder / f"{stem}_gt.nii.gz"
    for path, pixels in zip(paths, (images[index], label_maps[index])):
        write_nifti(pixels, (spacing_mm, spacing_mm), path, "SynBoost-MONAI phantom")
    attributes = {
        "view": view,
        "phase": phase,
        "sex": patient.sex,
        "age": patient.age,
        "image_quality": patient.image_quality[name],
    }
    return Phantom(*paths, label_maps[index], attributes)


def checked_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the real path of a folder whose files may be opened.

    Raises:
        FileNotFoundError: if the folder does not exist.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; --folders names those whose files the page may open")
    return path.resolve()


def file_source(path: str | os.PathLike[str], folders: Sequence[Path]) -> Source:
    """Return an image file of any kind that the project reads; its name may give view and phase, as CAMUS's names do.

    Args:
        path: of the file.
        folders: from `checked_folder`; the file's real path must be in one of them.
    Raises:
        FileNotFoundError, ValueError: if it is not such a file.
    """
    (item,) = list_images(_checked(path, folders), sequences=True)
    return Source(Path(item["image"]), {key: item[key] for key in ATTRIBUTES if key in item})


def file_label_source(path: str | os.PathLike[str], folders: Sequence[Path]) -> LabelSource:
    """Return a label map in a file (NIfTI, MetaImage or PNG); NAME_gt goes with the image NAME beside it.

    Args:
        path, folders: as in `file_source`.
    Raises:
        FileNotFoundError, ValueError: if it is not such a file.
    """
    (item,) = list_label_maps(_checked(path, folders))
    image = item.get("image")
    if image is not None and not _lies_in(Path(image), folders):
        image = None
    known = {key: item[key] for key in ("view", "phase") if key in item}
    return LabelSource(Path(item["label"]), None if image is None else Path(image), known)


def _lies_in(path: Path, folders: Sequence[Path]) -> bool:
    """Return whether a path, links followed, is below one of the folders."""
    really = Path(os.path.realpath(path))
    return any(really.is_relative_to(folder) for folder in folders)


def _checked(path: str | os.PathLike[str], folders: Sequence[Path]) -> Path:
    """Check the path of one image file; refuse a folder, and a datalist, which would name other files."""
    path = Path(path).expanduser()
    if not _lies_in(path, folders):  # checked first: no message may reveal even whether such a file exists
        raise ValueError(f"{path.name}: lies in no folder of --folders, with which this page was started; upload it")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path}: expected one image file, got a folder; name a file in it")
    if image_suffix(path) is None and not is_dicom(path):
        raise ValueError(f"{path.name}: not an image by its name or content; expected {', '.join(IMAGE_SUFFIXES)}")
    return path.absolute()
