"""Take frames out of clips, so that a training, which learns from single images, can learn from them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from synboost_monai.data import list_images, write_datalist
from synboost_monai.data.datalist import DATALIST_NAME, load_datalist
from synboost_monai.dicom.identity.identifiers import patient_text
from synboost_monai.dicom.reading.header import read_header
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.files import CLIP_SUFFIXES, atomic_path, image_stem, image_suffix, is_dicom
from synboost_monai.prompts import IMAGE_ATTRIBUTES
from synboost_monai.records import EchoRecord
from synboost_monai.simulation.phantom import write_frames
from synboost_monai.transforms.array import plain, scale_to_bytes
from synboost_monai.transforms.files import load_echo
from synboost_monai.transforms.ultrasound_dicom import CALIBRATED_KEY

FRAMES_OF_CLIP = 8
"""Frames that are taken from each clip, evenly spread over it: neighbours look alike."""


def take_frames(images: str | os.PathLike[str], section: str, output_dir: str | os.PathLike[str]) -> tuple[str, str]:
    """Write frames of the clips of a folder as images of their own, beside the single images, which stay where they are.

    Only the tissue region of a DICOM clip is written, without what is burned in around it.

    Args:
        images: folder of images and clips, one file, or a data set.
        section: sections of a data set.
        output_dir: folder for the frames and a datalist.json of everything. A clip's patient is the one that the data set or its file name
            tells, or the one in its DICOM header, who gets a number, unless all headers name the same; else the clip counts as a patient.
    Returns:
        folder and section of a data set of single images; those that were given if there is no clip.
    Raises:
        FileNotFoundError, ValueError: as `list_images` and `load_echo`; or if output_dir holds frames of other clips.
    """
    out = Path(output_dir)
    items = list_images(images, section, sequences=True, exclude=out.parent)
    if not any(_may_be_clip(Path(item["image"])) for item in items):
        return str(images), section
    about = f"frames of the clips in {Path(images).name}, {_digest(items)}"
    if (out / DATALIST_NAME).is_file():
        if load_datalist(out / DATALIST_NAME).get("description") != about:
            raise ValueError(f"{out}: holds frames of other clips than those of {images}; give another output folder")
        return str(out), "training"
    records: list[EchoRecord] = []
    in_headers = _patients_of_headers([Path(item["image"]) for item in items if not item.get("patient")])
    for number, item in enumerate(tqdm(items, desc="clips", unit="file")):
        path = Path(item["image"])
        known = {key: item[key] for key in IMAGE_ATTRIBUTES if item.get(key) is not None}
        files = _frames_of(path, out / f"clip{number:05d}") if _may_be_clip(path) else [path]
        of_clip = {"phase": None} if len(files) > 1 else {}  # it shows all of the beat
        kind = "clip" if files != [path] else "image"
        patient = str(item.get("patient") or in_headers.get(path) or f"{kind}{number:05d}")
        records += [EchoRecord(file, None, patient, **{**known, **of_clip}) for file in files]
    write_datalist(out, {"training": records}, name="frames", description=about)
    return str(out), "training"


def _digest(items: Sequence[Mapping[str, Any]]) -> str:
    """Return a word that changes with the files and their sizes."""
    files = [(item["image"], os.stat(item["image"]).st_size) for item in items]
    return hashlib.sha256(repr(files).encode()).hexdigest()[:16]


def _may_be_clip(path: Path) -> bool:
    """Return whether a file has, or may have, several frames."""
    return image_suffix(path) in CLIP_SUFFIXES or image_stem(path).endswith("_sequence") or is_dicom(path)


def _patients_of_headers(paths: Sequence[Path]) -> dict[Path, str]:
    """Return a number for each DICOM file's patient; none if all headers name the same, as after some removals of identities."""
    texts = {}
    for path in filter(is_dicom, paths):
        with contextlib.suppress(NotUsableError):  # whoever reads the file says what is wrong with it
            texts[path] = patient_text(read_header(path))
    numbers = {text: f"dicom_patient{n:05d}" for n, text in enumerate(dict.fromkeys(filter(None, texts.values())))}
    return {path: numbers[text] for path, text in texts.items() if text and len(numbers) > 1}


def _frames_of(path: Path, target: Path) -> list[Path]:
    """Write frames of a clip, evenly spread, and return their files; a file of one frame stays where it is."""
    pixels, spacing_mm = load_echo(path, sequences=True)
    if len(pixels) == 1:
        return [path]
    chosen = np.unique(np.linspace(0, len(pixels) - 1, FRAMES_OF_CLIP + 1).round().astype(int)[:-1])
    grey = scale_to_bytes(plain(pixels))[chosen].round().to(torch.uint8).numpy()
    suffix = ".nii.gz" if pixels.meta[CALIBRATED_KEY] else ".png"  # a picture has no spacing, and is not measured in mm
    files = [target.with_name(f"{target.name}_frame{index:04d}{suffix}") for index in chosen.tolist()]
    for file, frame in zip(files, grey):
        if suffix == ".png":
            with atomic_path(file) as temporary:
                Image.fromarray(frame).save(temporary, format="PNG")
        else:
            write_frames(file, frame[None], spacing_mm)
    return files
