"""Gather the images that a study learns from without label maps: those of its data set, and those of another folder.

A stage of the study, `python -m synboost_monai.study.unlabelled REAL IMAGES OUT`, writes OUT/datalist.json, and frames of the clips.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from synboost_monai.adaptation.frames import take_frames
from synboost_monai.data import list_images, read_datalist, write_datalist
from synboost_monai.errors import in_one_line
from synboost_monai.processes import private_files
from synboost_monai.prompts import IMAGE_ATTRIBUTES
from synboost_monai.records import EchoRecord
from synboost_monai.training.frozen_features import file_hash

SECTION = "training"
"""The one section of the data set that is written."""
_LEARNT_FROM = ("training", "validation")


def gather_unlabelled(
    real: str | os.PathLike[str], images: str | os.PathLike[str], output_dir: str | os.PathLike[str]
) -> Path:
    """Write a data set of all images to learn from without label maps, without patients and files that are tested on.

    Args:
        real: folder of the study's data set, whose images for training and validation are taken.
        images: folder of images and clips, or of a data set (training and validation); eight frames are taken from each clip.
        output_dir: folder to write to.
    Returns:
        path of datalist.json; how many images were taken and left out is written to stderr.
    Raises:
        FileNotFoundError, ValueError: as `take_frames` and `list_images`; or if no image of the folder is left.
    """
    out, section = Path(output_dir), "+".join(_LEARNT_FROM)
    folder, its_section = take_frames(images, section, out / "frames")
    own, others = read_datalist(real, section), list_images(folder, its_section, exclude=out)
    tested = read_datalist(real, "testing")
    known = {file_hash(item["image"]) for item in (*own, *tested)}
    patients = {item["patient"] for item in tested if item.get("patient")}
    left = [i for i in others if i.get("patient") not in patients and file_hash(i["image"]) not in known]
    if not left:
        raise ValueError(
            f"{images}: all {len(others)} images are of the study's data set, or of patients that it tests on; give other images"
        )
    told = f"{len(own)} images of the data set, and {len(left)} of {images}"
    if len(left) < len(others):
        told += f"; {len(others) - len(left)} left out: of the data set, or of patients that are tested on"
    print(told, file=sys.stderr, flush=True)
    records = [_record(item, number) for number, item in enumerate((*own, *left))]
    return write_datalist(out, {SECTION: records}, name="unlabelled", description="images without label maps")


def _record(item: dict[str, Any], number: int) -> EchoRecord:
    """Return an image without its label map; one whose patient is not known counts as a patient."""
    known = {key: item[key] for key in IMAGE_ATTRIBUTES if item.get(key) is not None}
    return EchoRecord(Path(item["image"]), None, str(item.get("patient") or f"image{number:05d}"), **known)


if __name__ == "__main__":
    # frames of clips are patients' images
    with in_one_line("images without label maps", str(Path.cwd())), private_files():
        gather_unlabelled(*sys.argv[1:4])
