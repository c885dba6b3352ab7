"""Write a phantom's clip as DICOM: an Ultrasound Multi-frame Image as scanners write it, with a region of tissue in a larger screen.

A made-up patient's name is burned into the picture beside the sector, as many scanners do: readers have to leave it out.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from synboost_monai import __version__
from synboost_monai.dicom.uids import ULTRASOUND_CLIP
from synboost_monai.dicom.writing.image import (
    CODE_OF_VIEW,
    GREY_PIXELS,
    LETTER_OF_SEX,
    NAMESPACE,
    coded,
    dataset_of,
    tissue_region,
)
from synboost_monai.files import atomic_path
from synboost_monai.records import EchoRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

MARGIN_TOP, MARGIN_SIDE, MARGIN_BOTTOM = 24, 16, 8
"""Margins of the screen around the sector, in pixels."""
NO_DATE, NO_TIME = "20000101", "120000"
"""Date and time of the made-up study."""


def write_clip(
    record: EchoRecord,
    frames: NDArray[np.uint8],
    spacing_mm: tuple[float, float],
    *,
    study: str,
    frame_time_ms: float,
    overrides: Mapping[str, Any] | None = None,
) -> str:
    """Write an uncompressed clip of a made-up patient; the same arguments give the same bytes.

    Args:
        record: the file (`image`), written whole or not at all; the view; the name of a phantom as patient, which goes into Patient
            Name and ID, and onto the screen; and sex and age if known.
        frames: (T, H, W), display order, the sector alone.
        spacing_mm: (row, column).
        study: name of the study; clips of one patient and study share its UID.
        frame_time_ms: time from one frame to the next.
        overrides: keyword -> value that is written in place of ours; None leaves the attribute out.
    Returns:
        The SOP Instance UID.
    Raises:
        ValueError: if the frames are not uint8 (T, H, W), or the record names no file or no apical view.
    """
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    if frames.ndim != 3 or frames.dtype != np.uint8:
        raise ValueError(f"clip.py: expected uint8 frames (T, H, W), got {frames.shape} {frames.dtype}")

    path, patient, view = record.image, record.patient, record.view
    if path is None or view not in CODE_OF_VIEW:
        raise ValueError(
            f"clip.py: expected a record of a file in view {' or '.join(CODE_OF_VIEW)}, got {path}, {view}"
        )

    def uid(*words: str) -> str:
        return f"2.25.{uuid.uuid5(NAMESPACE, '/'.join(words)).int}"

    screen = _screen(frames, f"{patient} ID-{patient}")
    values: dict[str, Any] = {
        **GREY_PIXELS,
        "SpecificCharacterSet": "ISO_IR 192",
        "ImageType": ["ORIGINAL", "PRIMARY", "TTE", "0001"],
        "SOPClassUID": ULTRASOUND_CLIP,
        "SOPInstanceUID": uid("clip", patient, study, view),
        "StudyDate": NO_DATE,
        "ContentDate": NO_DATE,
        "StudyTime": NO_TIME,
        "ContentTime": NO_TIME,
        "AccessionNumber": "",
        "Modality": "US",
        "Manufacturer": "SynBoost-MONAI",
        "ManufacturerModelName": "phantom",
        "SoftwareVersions": __version__,
        "ReferringPhysicianName": "",
        "StudyDescription": "Phantom echocardiogram, not of a patient",
        "SeriesDescription": "Phantom clip",
        "PatientName": f"Phantom^{patient}",
        "PatientID": f"ID-{patient}",
        "PatientBirthDate": "",
        "PatientSex": LETTER_OF_SEX.get(record.sex or "", ""),
        "StudyInstanceUID": uid("study", patient, study),
        "SeriesInstanceUID": uid("series", patient, study),
        "StudyID": "1",
        "SeriesNumber": 1,
        "InstanceNumber": 1 + list(CODE_OF_VIEW).index(view),
        "PatientOrientation": "",
        "BurnedInAnnotation": "YES",
        "LossyImageCompression": "00",
        "FrameTime": f"{frame_time_ms:.3f}",
        "FrameIncrementPointer": 0x00181063,  # Frame Time
        "UltrasoundColorDataPresent": 0,
        "ViewCodeSequence": [coded(*CODE_OF_VIEW[view])],
        "AnatomicRegionSequence": [coded("80891009", "Heart")],
        "SequenceOfUltrasoundRegions": [tissue_region(MARGIN_SIDE, MARGIN_TOP, frames.shape[1:], spacing_mm)],
        "NumberOfFrames": len(frames),
        "Rows": screen.shape[1],
        "Columns": screen.shape[2],
    }
    if record.age is not None:
        values["PatientAge"] = f"{record.age:03d}Y"
    values |= overrides or {}
    dataset = dataset_of(**{keyword: value for keyword, value in values.items() if value is not None})
    pixels = screen.tobytes()
    dataset.add_new(0x7FE00010, "OB", pixels + bytes(len(pixels) % 2))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = UID(str(dataset.SOPClassUID))
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(str(dataset.SOPInstanceUID))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)
    return str(dataset.SOPInstanceUID)


def _screen(frames: NDArray[np.uint8], words: str) -> NDArray[np.uint8]:
    """Return the sector in a larger dark screen, with words above it."""
    from PIL import Image, ImageDraw

    height, width = frames.shape[1] + MARGIN_TOP + MARGIN_BOTTOM, frames.shape[2] + 2 * MARGIN_SIDE
    banner = Image.new("L", (width, MARGIN_TOP))
    ImageDraw.Draw(banner).text((4, 6), words, fill=220)
    screen = np.zeros((len(frames), height, width), np.uint8)
    screen[:, :MARGIN_TOP] = np.asarray(banner)
    screen[:, MARGIN_TOP : MARGIN_TOP + frames.shape[1], MARGIN_SIDE : MARGIN_SIDE + frames.shape[2]] = frames
    return screen
