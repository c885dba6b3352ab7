"""Test writing a synthetic pair as DICOM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from synboost_monai.dicom import write_dicom_pair
from synboost_monai.records import EchoRecord
from synboost_monai.structures import STRUCTURES
from tests.dicom import writing_fixtures as fixtures

SHAPE = (33, 31)  # odd, so that neither bytes nor bits are aligned
ABOUT = {"view": "apical_four_chamber", "phase": "end_systole", "sex": "female", "age": 7}


def random_pair(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, SHAPE).astype(np.uint8), generator.integers(0, 4, SHAPE).astype(np.uint8)


def write(folder: Path, name: str = "case_v0", seed: int = 0, **about) -> tuple[Path, Path]:
    image_path, label_path = folder / f"{name}.dcm", folder / f"{name}_label.dcm"
    record = EchoRecord(image_path, label_path, **{"patient": "patient0042", **about})
    write_dicom_pair(record, *random_pair(seed), (0.5, 0.25), name=name)
    return image_path, label_path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Dataset, Dataset]:
    image_path, label_path = write(tmp_path, **ABOUT)
    return pydicom.dcmread(image_path), pydicom.dcmread(label_path)


def test_image_keeps_every_pixel_and_the_spacing(pair: tuple[Dataset, Dataset]):
    image, _ = pair
    np.testing.assert_array_equal(image.pixel_array, random_pair()[0])
    assert image.SOPClassUID == image.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.6.1"
    assert (image.PhotometricInterpretation, image.BitsAllocated, image.Modality) == ("MONOCHROME2", 8, "US")
    (region,) = image.SequenceOfUltrasoundRegions
    assert (region.RegionSpatialFormat, region.RegionDataType) == (1, 1)
    assert (region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection) == (3, 3)  # cm
    assert (region.PhysicalDeltaX, region.PhysicalDeltaY) == (0.025, 0.05)  # x is along the columns
    box = [region[f"RegionLocation{edge}"].value for edge in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
    assert box == [0, 0, SHAPE[1] - 1, SHAPE[0] - 1]


def test_segmentation_keeps_every_pixel_of_every_structure(pair: tuple[Dataset, Dataset]):
    image, segmentation = pair
    label_map = random_pair()[1]
    assert segmentation.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.4" and segmentation.SegmentationType == "BINARY"
    frames = segmentation.pixel_array
    assert frames.shape == (3, *SHAPE)
    for frame, structure, segment in zip(frames, STRUCTURES, segmentation.SegmentSequence, strict=True):
        np.testing.assert_array_equal(frame, label_map == structure.class_index)
        assert segment.SegmentNumber == structure.class_index and segment.SegmentLabel == structure.name
    numbers = [
        frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for frame in segmentation.PerFrameFunctionalGroupsSequence
    ]
    assert numbers == [1, 2, 3]
    codes = [s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in segmentation.SegmentSequence]
    assert codes == [structure.code[0] for structure in STRUCTURES]
    source = segmentation.SharedFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    series = segmentation.ReferencedSeriesSequence[0]
    for reference in (source, series.ReferencedInstanceSequence[0]):
        assert reference.ReferencedSOPInstanceUID == image.SOPInstanceUID
        assert reference.ReferencedSOPClassUID == image.SOPClassUID
    assert series.SeriesInstanceUID == image.SeriesInstanceUID != segmentation.SeriesInstanceUID
    assert segmentation.StudyInstanceUID == image.StudyInstanceUID


def test_what_is_known_is_coded_and_the_patient_is_synthetic(pair: tuple[Dataset, Dataset]):
    for dataset in pair:
        assert str(dataset.PatientName).startswith("Synthetic^") and dataset[0x0008001C].value == "YES"
        assert (dataset.PatientSex, dataset.PatientAge) == ("F", "007Y")
        assert "patient0042" not in str(dataset)
    view = pair[0].ViewCodeSequence[0]
    assert (view.CodeValue, view.CodingSchemeDesignator, view.CodeMeaning) == (
        "399214001",
        "SCT",
        "Apical four chamber",
    )
    assert pair[0].SeriesDescription == "Synthetic apical_four_chamber end_systole"


def test_what_is_not_known_is_left_open(tmp_path: Path):
    image = pydicom.dcmread(write(tmp_path)[0])
    assert image.PatientSex == "" and "PatientAge" not in image and "ViewCodeSequence" not in image


def test_files_depend_on_nothing_else(tmp_path: Path):
    once, again = write(tmp_path / "once", **ABOUT), write(tmp_path / "again", **ABOUT)
    assert [p.read_bytes() for p in once] == [p.read_bytes() for p in again]


def test_uids_belong_to_the_content(tmp_path: Path):
    keys = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
    files = [*write(tmp_path), *write(tmp_path, "case_v1"), *write(tmp_path / "other_model", seed=1)]
    datasets = [pydicom.dcmread(path) for path in files]
    for number, key in enumerate(keys):
        values = {str(dataset[key].value) for dataset in datasets}
        assert len(values) == (3 if key == "StudyInstanceUID" else 6), number
        assert all(value.startswith("2.25.") and len(value) <= 64 for value in values)


def test_pair_that_does_not_fit_is_refused(tmp_path: Path):
    image, label_map = random_pair()
    record = EchoRecord(tmp_path / "i", tmp_path / "l", "p")
    for bad_image, bad_label_map in ((image, label_map[1:]), (image.astype(float), label_map)):
        with pytest.raises(ValueError, match="case: expected a uint8 image"):
            write_dicom_pair(record, bad_image, bad_label_map, (1, 1), name="case")
    with pytest.raises(ValueError, match="case: expected a record of an image and its label map"):
        write_dicom_pair(EchoRecord(None, tmp_path / "l", "p"), image, label_map, (1, 1), name="case")
    assert not list(tmp_path.iterdir())


@fixtures.needs_dciodvfy
@pytest.mark.parametrize("about", [ABOUT, {}])
def test_dciodvfy_finds_nothing_wrong(tmp_path: Path, about: dict):
    for path in write(tmp_path, **about):
        assert fixtures.errors_of(path, ("Error", "Warning")) == []
