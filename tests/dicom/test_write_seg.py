"""Test label maps of clips as DICOM Segmentation."""

from __future__ import annotations

import copy
import dataclasses
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest

from synboost_monai.dicom.network.send import write_decompressed
from synboost_monai.dicom.quiet import quiet
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.dicom.uids import DEFLATED
from synboost_monai.dicom.writing import objects, seg
from synboost_monai.dicom.writing.seg import SEGMENTATION_TYPES, write_segmentation
from synboost_monai.structures import STRUCTURES
from tests.dicom import writing_fixtures as fixtures

pytest.importorskip("highdicom", reason="highdicom is not installed")

both_types = pytest.mark.parametrize("kind", SEGMENTATION_TYPES)


def write(path: Path, source=None, label_maps=None, numbers=None, **options) -> Path:
    source = fixtures.ultrasound() if source is None else source
    label_maps = fixtures.random_label_maps() if label_maps is None else label_maps
    numbers = range(1, 6) if numbers is None else numbers
    write_segmentation(source, label_maps, numbers, path, **{"provenance": fixtures.PROVENANCE, **options})
    return path


def read_back(path: Path, source, numbers) -> np.ndarray:
    """Return (T, Rows, Columns) as highdicom finds them by the frames of the source."""
    import highdicom

    segmentation = highdicom.seg.segread(str(path))
    return segmentation.get_pixels_by_source_frame(
        source.SOPInstanceUID, list(numbers), ignore_spatial_locations=True, combine_segments=True
    )


@both_types
@pytest.mark.parametrize("numbers", [range(1, 6), (2, 5)])
def test_every_pixel_comes_back_for_its_source_frame(tmp_path: Path, kind: str, numbers):
    source = fixtures.ultrasound()
    label_maps = fixtures.random_label_maps(len(numbers))
    path = write(tmp_path / "seg.dcm", source, label_maps, numbers, segmentation_type=kind)
    np.testing.assert_array_equal(read_back(path, source, numbers), label_maps)

    dataset = pydicom.dcmread(path)
    frames = dataset.pixel_array
    for i, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        position = group.FrameContentSequence[0].TemporalPositionIndex
        assert image.ReferencedSOPClassUID == fixtures.ULTRASOUND_CLIP
        assert image.ReferencedFrameNumber == list(numbers)[position - 1]
        expected = label_maps[position - 1]
        if kind == "BINARY":
            segment = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            assert list(group.FrameContentSequence[0].DimensionIndexValues) == [segment, position]
            expected = expected == segment
        np.testing.assert_array_equal(frames[i], expected)


@both_types
def test_a_source_of_one_frame_is_named_without_frame_number(tmp_path: Path, kind: str):
    source = fixtures.ultrasound(num_frames=None)
    path = write(tmp_path / "seg.dcm", source, fixtures.random_label_maps(1), [1], segmentation_type=kind)
    dataset = pydicom.dcmread(path)
    image = dataset.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert image.ReferencedSOPClassUID == fixtures.ULTRASOUND_IMAGE and "ReferencedFrameNumber" not in image
    frames = dataset.pixel_array.reshape(-1, 33, 31)
    if kind == "BINARY":
        frames = sum(frame * number for number, frame in enumerate(frames, start=1))[None]
    np.testing.assert_array_equal(frames, fixtures.random_label_maps(1))


@fixtures.needs_dciodvfy
@both_types
@pytest.mark.parametrize("num_frames", [None, 5])
def test_dciodvfy_finds_no_error(tmp_path: Path, kind: str, num_frames: int | None):
    maps = fixtures.random_label_maps(num_frames or 1)
    path = write(
        tmp_path / "s.dcm", fixtures.ultrasound(num_frames), maps, range(1, len(maps) + 1), segmentation_type=kind
    )
    assert fixtures.errors_of(path) == []


def test_segments_say_what_they_are_and_who_drew_them(tmp_path: Path):
    dataset = pydicom.dcmread(write(tmp_path / "seg.dcm"))
    for segment, structure in zip(dataset.SegmentSequence, STRUCTURES, strict=True):
        assert segment.SegmentNumber == structure.class_index
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
        assert "cd" * 32 in algorithm.AlgorithmParameters and "left ventricular cavity" in algorithm.AlgorithmParameters
        assert segment.TrackingUID.startswith("2.25.")
    codes = [s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in dataset.SegmentSequence]
    assert codes == [structure.code[0] for structure in STRUCTURES]
    (series,) = dataset.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == fixtures.ultrasound().SeriesInstanceUID
    assert series.ReferencedInstanceSequence[0].ReferencedSOPClassUID == fixtures.ULTRASOUND_CLIP


@both_types
def test_large_segmentations_are_deflated_and_hold_the_same(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    plain = write(tmp_path / "plain.dcm", segmentation_type=kind)
    monkeypatch.setattr(seg, "MAX_PLAIN_BYTES", 100)
    path = write(tmp_path / "seg.dcm", segmentation_type=kind)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == DEFLATED and path.stat().st_size % 2 == 0
    assert pydicom.dcmread(path) == pydicom.dcmread(plain)
    np.testing.assert_array_equal(read_back(path, fixtures.ultrasound(), range(1, 6)), fixtures.random_label_maps())
    write_decompressed(path, tmp_path / "inflated.dcm")
    inflated, expected = (tmp_path / "inflated.dcm").read_bytes(), plain.read_bytes()
    assert inflated[: len(expected)] == expected and len(inflated) - len(expected) in (0, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inflated.dcm", "plain.dcm", "seg.dcm"]


@both_types
@pytest.mark.parametrize("spacing_mm", [None, (0.4, 0.51051234567891)])
def test_no_place_is_made_up_unless_it_is_asked_for(tmp_path: Path, kind: str, spacing_mm):
    path = write(tmp_path / "seg.dcm", segmentation_type=kind, nominal_spacing_mm=spacing_mm)
    dataset = pydicom.dcmread(path)
    (shared,) = dataset.SharedFunctionalGroupsSequence
    if spacing_mm is None:
        assert len(shared) == 0
    else:
        (measures,), (orientation,) = shared.PixelMeasuresSequence, shared.PlaneOrientationSequence
        np.testing.assert_allclose([float(side) for side in measures.PixelSpacing], spacing_mm, rtol=1e-9)
        assert 0 < measures.SliceThickness < 0.01  # no volume can come from it
        assert [float(part) for part in orientation.ImageOrientationPatient] == [1, 0, 0, 0, 1, 0]
    geometry = ("PlanePositionSequence", "FrameOfReferenceUID")
    assert not any(keyword in item for keyword in geometry for item in (dataset, shared))
    assert not any(keyword in item for keyword in geometry for item in dataset.PerFrameFunctionalGroupsSequence)
    np.testing.assert_array_equal(read_back(path, fixtures.ultrasound(), range(1, 6)), fixtures.random_label_maps())
    if fixtures.DCIODVFY is not None:
        assert fixtures.errors_of(path) == []


@pytest.mark.parametrize("spacing_mm", [None, (0.4, 0.5)])
def test_itk_reads_every_frame(tmp_path: Path, spacing_mm):
    import itk

    path = write(tmp_path / "seg.dcm", nominal_spacing_mm=spacing_mm)
    found = np.asarray(itk.imread(str(path))) > 0  # (frames x structures, H, W)
    expected = np.stack([maps == s.class_index for maps in fixtures.random_label_maps() for s in STRUCTURES])
    whole_bytes = expected.size // 8 * 8  # ITK misreads a last byte that is not full
    np.testing.assert_array_equal(found.ravel()[:whole_bytes], expected.ravel()[:whole_bytes])


def test_patient_and_study_are_the_sources_and_nothing_else_is(tmp_path: Path):
    source = fixtures.ultrasound(identified=True)
    dataset = pydicom.dcmread(write(tmp_path / "seg.dcm", source))
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber", "StudyDate"):
        assert dataset[keyword].value == source[keyword].value
    assert (dataset.ContentDate, dataset.ContentTime) == ("20240229", "101314.5")
    assert not fixtures.holds_strangers(tmp_path / "seg.dcm")


def test_windows_give_the_same_bytes_as_one_array_and_so_does_a_second_run(tmp_path: Path):
    maps = fixtures.random_label_maps()
    once = write(tmp_path / "once.dcm").read_bytes()
    assert write(tmp_path / "again.dcm", label_maps=iter([maps[:2], maps[2:3], maps[3:]])).read_bytes() == once


def test_another_model_settings_or_frames_make_another_object(tmp_path: Path):
    others = [
        {},
        {"provenance": dataclasses.replace(fixtures.PROVENANCE, weights_sha256="00" * 32)},
        {"provenance": dataclasses.replace(fixtures.PROVENANCE, prompts=())},
        {"segmentation_type": "LABELMAP"},
        {"source": fixtures.ultrasound(number=2)},
        {"numbers": range(1, 5), "label_maps": fixtures.random_label_maps(4)},
    ]
    datasets = [pydicom.dcmread(write(tmp_path / f"{i}.dcm", **other)) for i, other in enumerate(others)]
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        uids = {dataset[keyword].value for dataset in datasets}
        assert len(uids) == len(others) and all(uid.startswith("2.25.") and len(uid) <= 64 for uid in uids)


def test_the_source_is_not_changed(tmp_path: Path):
    source = fixtures.ultrasound(identified=True)
    before = copy.deepcopy(source)
    write(tmp_path / "seg.dcm", source)
    assert source == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"label_maps": fixtures.random_label_maps(5, 32, 31)},
            r"expected integer label maps of the whole frame, \(T, 33, 31\)",
        ),
        ({"label_maps": fixtures.random_label_maps().astype(float)}, "expected integer label maps"),
        ({"label_maps": fixtures.random_label_maps() + 1}, "classes 0 to 3 were expected, got 1 to 4"),
        ({"label_maps": fixtures.random_label_maps(4)}, "5 frame numbers, but 4 label maps came"),
        ({"label_maps": fixtures.random_label_maps(6)}, "5 frame numbers, but more label maps came"),
        ({"numbers": (1, 2, 3, 3, 4)}, "expected rising frame numbers from 1 to 5"),
        ({"numbers": range(5)}, "expected rising frame numbers from 1 to 5, got 5 numbers from 0 to 4"),
        ({"numbers": range(2, 7)}, "expected rising frame numbers from 1 to 5"),
        ({"numbers": ()}, "got 0 numbers"),
        ({"segmentation_type": "FRACTIONAL"}, "expected one of BINARY, LABELMAP"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_no_file(tmp_path: Path, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "seg.dcm", **change)
    assert list(tmp_path.iterdir()) == []


def test_an_identifier_that_is_missing_is_a_reason(tmp_path: Path):
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        with pytest.raises(NotUsableError, match=f"{keyword} is missing"):
            write(tmp_path / "seg.dcm", fixtures.ultrasound(**{keyword: None}))
    with pytest.raises(NotUsableError, match="SeriesInstanceUID is not a valid identifier"):
        write(tmp_path / "seg.dcm", fixtures.ultrasound(SeriesInstanceUID="../../etc"))


def test_a_full_disk_is_a_reason_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(objects.os, "fsync", full)
    with pytest.raises(NotUsableError, match="the results cannot be written: No space left on device"):
        write(tmp_path / "seg.dcm")
    assert list(tmp_path.iterdir()) == []


@fixtures.needs_dciodvfy
def test_odd_headers_still_give_a_valid_object(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = fixtures.ultrasound(
            PatientName="Einzelwort",
            PatientID=None,
            PatientBirthDate="14.08.1961",
            PatientSex="männlich",
            PatientAge="62",
            StudyDate="2024-02-29",
            StudyTime="10:11",
            ContentDate="",
            AcquisitionDateTime="20240301111213.25+0100",
            StudyID=None,
            AccessionNumber=None,
            ReferringPhysicianName=None,
        )
    capfd.readouterr()
    caplog.clear()
    path = write(tmp_path / "seg.dcm", source)
    assert fixtures.errors_of(path) == []
    dataset = pydicom.dcmread(path)
    assert (dataset.PatientID, dataset.PatientSex, dataset.PatientBirthDate) == ("", "", "")
    assert (dataset.ContentDate, dataset.ContentTime) == ("20240301", "111213.25")
    assert "".join(capfd.readouterr()) + caplog.text == ""  # no warning, which would print the name


def test_nothing_is_said_of_identifiers_that_pydicom_does_not_like(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    caplog.set_level("DEBUG")  # whatever the program that calls us logs
    with quiet():
        source = fixtures.ultrasound(StudyInstanceUID=f"{fixtures.ROOT}.007", SeriesInstanceUID=f"{fixtures.ROOT}.008")
    write(tmp_path / "seg.dcm", source)
    assert "".join(capfd.readouterr()) + caplog.text == ""


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 192", "山田^太郎"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 100", "Müller^Jörg"),
        (None, "Mueller^Joerg"),
    ],
)
def test_names_keep_their_characters(tmp_path: Path, charset, name: str):
    source = fixtures.ultrasound(SpecificCharacterSet=charset, PatientName=name)
    fixtures.save_source(source, np.zeros((5, 33, 31)), tmp_path / "source.dcm")
    dataset = pydicom.dcmread(write(tmp_path / "seg.dcm", fixtures.header_of(tmp_path / "source.dcm")))
    assert str(dataset.PatientName) == name


def test_a_character_set_that_nobody_knows_does_no_harm(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = fixtures.ultrasound(SpecificCharacterSet="KLINGON", PatientName="Mueller^Joerg")
        fixtures.save_source(source, np.zeros((5, 33, 31)), tmp_path / "source.dcm")
        dataset = pydicom.dcmread(write(tmp_path / "seg.dcm", fixtures.header_of(tmp_path / "source.dcm")))
        assert str(dataset.PatientName) == "Mueller^Joerg"


def test_memory_does_not_grow_with_the_clip(tmp_path: Path):
    def peak(num_frames: int) -> int:
        source = fixtures.ultrasound(num_frames, 240, 320)
        one = fixtures.random_label_maps(10, 240, 320)
        windows = (one for _ in range(num_frames // 10))
        tracemalloc.start()
        try:
            write(tmp_path / "seg.dcm", source, windows, range(1, num_frames + 1))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)  # imports
    short, long = peak(20), peak(400)
    assert long < short + 1_000_000, (short, long)


@both_types
def test_a_real_clip(tmp_path: Path, kind: str):
    source = fixtures.header_of(fixtures.real_clip())
    label_maps = np.zeros((120, 480, 640), np.uint8)
    label_maps[:, 100:300, 200:400] = fixtures.random_label_maps(1, 200, 200)
    windows = (label_maps[start : start + 32] for start in range(0, 120, 32))
    path = write(tmp_path / "seg.dcm", source, windows, range(1, 121), segmentation_type=kind)
    np.testing.assert_array_equal(read_back(path, source, range(1, 121)), label_maps)
    assert pydicom.dcmread(path, stop_before_pixels=True).LossyImageCompression == "01"
    assert path.stat().st_size < fixtures.real_clip().stat().st_size / 3  # though deflated speckle is no heart
    if fixtures.DCIODVFY is not None:  # which does not inflate
        write_decompressed(path, tmp_path / "inflated.dcm")
        assert fixtures.errors_of(tmp_path / "inflated.dcm") == []
