"""Test de-identified copies: they hold nothing of the patient, and still all that a study needs."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Set
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from synboost_monai.dicom.identity.deidentify import (
    CODED_WORDS,
    basic_profile,
    deidentify,
    deidentify_header,
    pseudonymous_uid,
)
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.dicom.writing.objects import save
from tests.dicom import writing_fixtures as fixtures

KEY, OTHER_KEY = (hashlib.sha256(name).digest() for name in (b"key", b"other key"))
CLIP = fixtures.moving_clip()
SECTOR = fixtures.fan()


def source(number: int = 1, **changes) -> Dataset:
    return fixtures.ultrasound(*CLIP.shape, number=number, identified=True, **changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return fixtures.save_source(source(), CLIP, tmp_path / "original.dcm")


def traces(content: bytes, *secrets: str) -> list[str]:
    """Find secrets in a file in any case, in the encodings of DICOM."""
    text = content.lower()
    return [
        secret for secret in secrets for encoding in ("utf-8", "utf-16-le") if secret.lower().encode(encoding) in text
    ]


def test_no_trace_of_the_patient_is_in_the_file(tmp_path: Path, path: Path):
    out = tmp_path / "copy.dcm"
    original = path.read_bytes()
    uid = deidentify(path, out, KEY)
    assert traces(original, *fixtures.SECRETS) == list(fixtures.SECRETS) and path.read_bytes() == original
    assert traces(out.read_bytes(), *fixtures.SECRETS, fixtures.ROOT) == []
    dataset = pydicom.dcmread(out)
    assert dataset.SOPInstanceUID == uid == dataset.file_meta.MediaStorageSOPInstanceUID
    assert (dataset.PatientIdentityRemoved, dataset.BurnedInAnnotation) == ("YES", "NO")
    assert dataset.PatientID.startswith("ANON-") and str(dataset.PatientName).startswith("Anonymous^")
    assert dataset.PatientBirthDate == "" and not any(element.tag.is_private for element in dataset)
    assert ("PatientAge" in dataset, dataset.PatientSex) == (False, "")


def test_pixels_are_the_sectors_alone(tmp_path: Path, path: Path):
    deidentify(path, tmp_path / "copy.dcm", KEY)
    frames = pydicom.dcmread(tmp_path / "copy.dcm").pixel_array
    assert frames.shape == CLIP.shape and not frames[:, :14, :50].any() and not frames[:, :, -8:].any()
    shown = SECTOR.copy()
    shown[:, :2] = shown[:, -1:] = shown[:1] = shown[-1:] = False  # outside the region of the header
    agree = (frames == CLIP)[:, shown]
    assert agree.mean() > 0.97 and not frames[(frames != CLIP)].any()


def lettered(
    frames: np.ndarray, text: str, size: int, place: tuple[int, int], grey: int, opacity: float = 1.0
) -> np.ndarray:
    """Return frames with a text burned in at a place (column, row)."""
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.new("L", frames.shape[:0:-1])
    ImageDraw.Draw(canvas).text(place, text, fill=255, font=ImageFont.load_default(size))
    share = np.asarray(canvas) / 255 * opacity
    return (frames * (1 - share) + grey * share).round().astype(np.uint8)


def claims(path: Path) -> tuple[str, bool]:
    """Return what a copy states about burned-in annotation, and whether it calls its pixels clean."""
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    codes = [item.CodeValue for item in dataset.DeidentificationMethodCodeSequence]
    return dataset.BurnedInAnnotation, "113101" in codes


@pytest.mark.parametrize("place", [(62, 60), (70, 80), (84, 30)])
@pytest.mark.parametrize(("size", "grey", "opacity"), [(10, 255, 1), (14, 0, 1), (18, 160, 1), (24, 255, 0.6)])
def test_text_within_the_sector_is_not_called_clean(tmp_path: Path, place, size: int, grey: int, opacity: float):
    frames = lettered(fixtures.moving_clip(24), "OTTO", size, place, grey, opacity)
    path = fixtures.save_source(fixtures.ultrasound(*frames.shape), frames, tmp_path / "a.dcm")
    deidentify(path, tmp_path / "copy.dcm", KEY)
    assert claims(tmp_path / "copy.dcm") == ("YES", False)


def test_pixels_that_cannot_be_judged_are_not_called_clean(tmp_path: Path):
    for number, num_frames in enumerate((1, 7, 8)):
        path = tmp_path / f"{number}.dcm"
        fixtures.save_source(fixtures.ultrasound(*CLIP[:num_frames].shape), CLIP[:num_frames], path)
        deidentify(path, tmp_path / "copy.dcm", KEY)
        assert claims(tmp_path / "copy.dcm") == (("NO", True) if num_frames == 8 else ("YES", False))
    frozen = np.repeat(CLIP[:1], 12, axis=0)
    path = fixtures.save_source(fixtures.ultrasound(*frozen.shape), frozen, tmp_path / "frozen.dcm")
    deidentify(path, tmp_path / "copy.dcm", KEY)
    assert claims(tmp_path / "copy.dcm") == ("YES", False)


def test_text_in_a_real_clip():
    from synboost_monai.dicom.limits import Limits
    from synboost_monai.dicom.reading.decode import frame_reader
    from synboost_monai.dicom.reading.sector import find_sector, has_text, sample_indices

    with frame_reader(fixtures.real_clip(), limits=Limits()) as reader:
        frames = reader.read_frames(sample_indices(reader.num_frames, 480 * 640))
    assert has_text(frames, find_sector(frames)) is False
    for size, grey, opacity in ((9, 255, 1), (12, 160, 1), (16, 90, 1), (24, 255, 0.3), (48, 255, 1)):
        for place in ((300, 150), (230, 280)):  # in the ventricle, and over tissue
            found = lettered(frames, "Otto Q., 1961", size, place, grey, opacity)
            assert has_text(found, find_sector(found)) is True, (size, grey, opacity, place)


def test_what_a_study_needs_is_still_there(tmp_path: Path, path: Path):
    deidentify(path, tmp_path / "copy.dcm", KEY)
    dataset = pydicom.dcmread(tmp_path / "copy.dcm")
    assert dataset.ViewCodeSequence[0].CodeValue == "399214001" and float(dataset.FrameTime) == 33.3
    assert dataset.SequenceOfUltrasoundRegions[0].PhysicalDeltaX == 0.05
    assert [item.CodeMeaning for item in dataset.AnatomicRegionSequence] == ["Heart"]  # the private scheme's is gone
    assert (dataset.Modality, dataset.Manufacturer, "SoftwareVersions" in dataset) == ("US", "", False)
    assert (dataset.PhotometricInterpretation, dataset.NumberOfFrames) == ("MONOCHROME2", len(CLIP))
    codes = [item.CodeValue for item in dataset.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113101", "113107"]


@fixtures.needs_dciodvfy
def test_dciodvfy_finds_no_error(tmp_path: Path, path: Path):
    deidentify(path, tmp_path / "copy.dcm", KEY)
    assert fixtures.errors_of(tmp_path / "copy.dcm") == []


def test_the_header_that_was_read_is_not_changed():
    header = source()
    before = copy.deepcopy(header)
    deidentify_header(header, KEY)
    assert header == before


def test_copies_of_one_key_belong_together():
    first, second = (deidentify_header(source(number), KEY) for number in (1, 2))
    assert first.PatientID == second.PatientID and first.StudyInstanceUID == second.StudyInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.ReferencedImageSequence[0].ReferencedSOPInstanceUID == second.SOPInstanceUID
    assert deidentify_header(source(), KEY) == first

    other = deidentify_header(source(), OTHER_KEY)
    for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "StudyDate"):
        assert other[keyword].value != first[keyword].value
    stranger = deidentify_header(source(PatientID="MRN000"), KEY)
    assert stranger.PatientID != first.PatientID and stranger.StudyDate != first.StudyDate


def test_patients_without_a_name_or_number_do_not_become_one():
    nobody = {"PatientID": "", "PatientName": ""}
    one, two = (deidentify_header(source(StudyInstanceUID=uid, **nobody), KEY) for uid in ("1.2.3", "1.2.4"))
    assert one.PatientID != two.PatientID


def test_dates_of_a_patient_keep_their_distance_and_times_stay():
    first = deidentify_header(source(StudyDate="20240301", ContentDate="20240229"), KEY)
    second = deidentify_header(source(StudyDate="20240311"), KEY)
    days = [np.datetime64(f"{d[:4]}-{d[4:6]}-{d[6:]}") for d in (first.StudyDate, first.ContentDate, second.StudyDate)]
    assert (days[0] - days[1], days[2] - days[0]) == (np.timedelta64(1, "D"), np.timedelta64(10, "D"))
    assert days[0] < np.datetime64("2024-03-01") and first.StudyTime == "101112"
    assert first.LongitudinalTemporalInformationModified == "MODIFIED"


@pytest.mark.parametrize("time", ["999999", "10111", "246060"])
def test_times_that_are_none_go(time: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = source(StudyTime=time, ContentTime=f"{time}.5", AcquisitionDateTime=f"20240229{time}")
    copy_ = deidentify_header(original, KEY)
    assert copy_.StudyTime == "" and "ContentTime" not in copy_ and len(copy_.AcquisitionDateTime) == 8


def test_uids_are_hashes_under_the_key_and_those_of_the_standard_stay():
    uid = f"{fixtures.ROOT}.3.1"
    header = deidentify_header(source(), KEY)
    assert header.SOPInstanceUID == pseudonymous_uid(KEY, uid) != pseudonymous_uid(OTHER_KEY, uid)
    assert header.SOPInstanceUID.startswith("2.25.") and len(header.SOPInstanceUID) <= 64
    assert header.SOPClassUID == fixtures.ULTRASOUND_CLIP


def test_elements_that_nobody_thought_of_go():
    header = source()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header.add_new(0x00181030, "LO", "protocol of Ottokar")
        header.add_new(0x00189004, "CS", "MRN7741902")  # a coded word that is the patient's number
        header.add_new(0x00200011, "IS", "12")
        header.AnatomicRegionSequence.append(
            fixtures.code("80891009", "Ottokar's heart")
        )  # a known code, a text of their own: the standard's takes its place
        header.AnatomicRegionSequence.append(fixtures.code("T-Ottokar", "Heart", "SRT"))
        header.add_new(0x0040A160, "UT", "free text")
        header.add_new(0x00420011, "OB", b"document")
        header.add_new(0x00189999, "UN", b"Ottokar")
        header.add_new(0x00720064, "IS", "7")
    cleaned = deidentify_header(header, KEY)
    for tag in (0x00181030, 0x00189004, 0x0040A160, 0x00420011, 0x00189999, 0x00180010, 0x00180015, 0x00081090):
        assert tag not in cleaned, hex(tag)
    assert cleaned.SeriesNumber == 12 and [item.CodeMeaning for item in cleaned.AnatomicRegionSequence] == ["Heart"] * 2


TEXTS = ("LO", "SH", "ST", "LT", "UT", "UC", "UR")
"""Kinds of text that a person may type."""


def fill(header: Dataset, values: dict[str, object], kept: Set[int] = frozenset()) -> None:
    """Put a value of its kind into every element of the dictionary, at the top and within a sequence, but into none of `kept`."""
    item = Dataset()
    for tag, (vr, *_) in pydicom.datadict.DicomDictionary.items():
        kind = vr.split(" ")[0]
        if kind in values and tag >> 16 not in (0, 2, 0x7FE0, 0xFFFC, 0xFFFE) and tag not in kept:
            header.add_new(tag, kind, values[kind])
            item.add_new(tag, kind, values[kind])
    header.ReferencedSeriesSequence = [item]


def test_the_patients_name_survives_in_no_element_of_the_dictionary(tmp_path: Path):
    header = source()
    values = {"PN": "Quastenflosser^Ottokar", "CS": "OTTOKAR", "AE": "OTTOKAR", "UI": f"{fixtures.ROOT}.9"}
    values |= dict.fromkeys(TEXTS, "of Ottokar") | dict.fromkeys(("OB", "UN"), b"Ottokar ")
    values |= {"DA": "19610814", "DT": "19610814101112", "IS": "7", "DS": "7.5", "US": 7}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fill(header, values, kept=set(header.keys()))
        assert len(header) > 2500
        header.save_as(tmp_path / "all.dcm", enforce_file_format=True)
        save(deidentify_header(header, KEY), tmp_path / "copy.dcm")
    secrets = ("Ottokar", "Quastenflosser", "19610814", f"{fixtures.ROOT}.9")
    assert traces((tmp_path / "all.dcm").read_bytes(), *secrets) == list(secrets)
    assert traces((tmp_path / "copy.dcm").read_bytes(), *secrets) == []


@pytest.mark.parametrize(
    ("text", "maker"),
    [
        ("Philips Medical Systems", "Philips"),
        ("GE Vingmed Ultrasound of Dr. Huber", "GE"),
        ("Huber's machine", ""),
        ("GEHuber", ""),
        (None, ""),
    ],
)
def test_of_the_device_only_a_makers_known_name_stays(text: str | None, maker: str):
    keywords = "ManufacturerModelName SoftwareVersions DeviceSerialNumber StationName ProtocolName TransducerData ProcessingFunction"
    device = dict.fromkeys(keywords.split(), "Huber")
    cleaned = deidentify_header(source(Manufacturer=text, **device), KEY)
    assert (cleaned.Manufacturer or "") == maker and not any(keyword in cleaned for keyword in device)


@pytest.mark.parametrize("patient_id", ["123456", "0123456", "AB-123.456/X", "X123456Y"])
def test_numbers_that_repeat_an_id_go(tmp_path: Path, patient_id: str):
    """They go from every kind of number, from codes, coded words and UIDs."""
    numbers = {"AcquisitionNumber": "123456", "HeartRate": "0123456", "FrameDelay": "12345.60", "StudyTime": "123456"}
    numbers |= {"DepthOfScanField": "99123456", "MechanicalIndex": "1.23456", "CineRate": "60"}
    numbers |= {"PositionMeasuringDeviceUsed": "TRACKED"}
    header = source(PatientID=patient_id, **numbers, LossyImageCompression="01")
    header.LossyImageCompressionMethod, header.LossyImageCompressionRatio = "X123456", "123456"
    header.SOPInstanceUID, header.SeriesInstanceUID = "1.2.3.123456", "1.2.840.10008.1.123456"
    header.ViewCodeSequence.append(fixtures.code("123456", "a code"))
    header.SequenceOfUltrasoundRegions[0].ReferencePixelX0 = 123456
    header.SequenceOfUltrasoundRegions[0].TransducerFrequency = 4123456
    header.SequenceOfUltrasoundRegions[0].PhysicalDeltaX = 0.123456
    deidentify(fixtures.save_source(header, CLIP, tmp_path / "a.dcm"), tmp_path / "copy.dcm", KEY)
    content = (tmp_path / "copy.dcm").read_bytes()
    copied = pydicom.dcmread(tmp_path / "copy.dcm")
    assert traces(content, "123456", "12345.6", "1.23456") == [] and copied.CineRate == 60
    region = copied.SequenceOfUltrasoundRegions[0]
    for keyword in ("ReferencePixelX0", "TransducerFrequency", "PhysicalDeltaX"):
        assert keyword not in region, keyword
    assert region.PhysicalDeltaY == 0.05 and region.RegionLocationMinX0 == 2


def test_dates_go_as_numbers_too():
    for number in ("19610814", "14081961", "08141961", "610814"):
        assert "AcquisitionNumber" not in deidentify_header(source(AcquisitionNumber=number), KEY), number
    assert deidentify_header(source(AcquisitionNumber="61"), KEY).AcquisitionNumber == 61


def test_meanings_are_the_standards():
    view, private = fixtures.code("G-A19C", "4ch, Mrs Huber", "SRT"), fixtures.code("399214001", "Huber", "99HUBER")
    view.CodingSchemeVersion, view.ViewModifierCodeSequence = "of Huber", [fixtures.code("R-40B0E", "Huber", "SRT")]
    header = source(
        ViewCodeSequence=[view, private, fixtures.code("Huber", "Huber"), fixtures.code("Huber", "Huber", "DCM")]
    )
    (item,) = deidentify_header(header, KEY).ViewCodeSequence
    assert (item.CodeValue, item.CodeMeaning, "CodingSchemeVersion" in item) == ("G-A19C", "Four chamber", False)
    assert "uber" not in str(item)


def test_word_of_a_stranger_survives_in_no_element_of_the_dictionary(tmp_path: Path):
    """The name is not in an attribute for names, but in every kind of text that a person may type."""
    header = fixtures.ultrasound()
    coded = {pydicom.datadict.tag_for_keyword(keyword) for keyword in CODED_WORDS | {"SpecificCharacterSet"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fill(header, dict.fromkeys(TEXTS, "of Huber") | dict.fromkeys(("CS", "AE"), "HUBER"), kept=coded)
        save(deidentify_header(header, KEY), tmp_path / "copy.dcm")
    assert traces((tmp_path / "copy.dcm").read_bytes(), "Huber") == []


def test_body_part_that_somebody_typed_goes():
    heart, typed = (fixtures.ultrasound(BodyPartExamined=text) for text in ("HEART", "HEART MRS HUBER"))
    assert deidentify_header(heart, KEY).BodyPartExamined == "HEART"
    assert "BodyPartExamined" not in deidentify_header(typed, KEY)


def test_values_of_the_wrong_kind_go(tmp_path: Path):
    header = source()
    header.add_new(0x00080070, "OB", b"Ottokar ")  # Manufacturer as bytes, as a reader gives what its VR does not allow
    header.add_new(0x00101010, "OB", b"Ottokar ")
    cleaned = deidentify_header(header, KEY)
    assert not cleaned.Manufacturer and "PatientAge" not in cleaned


def test_sequences_are_cleaned_to_their_depth():
    inner, outer = Dataset(), Dataset()
    inner.ReferencedSOPInstanceUID, inner.PatientName, inner.TextString = "1.2.3", "Ottokar", "Ottokar"
    inner.ReferencedFrameNumber = 3
    outer.ReferencedSOPSequence = [inner]
    header = source(ReferencedSeriesSequence=[outer])
    item = deidentify_header(header, KEY).ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert item.ReferencedSOPInstanceUID == pseudonymous_uid(KEY, "1.2.3") and item.ReferencedFrameNumber == 3
    assert str(item.get("PatientName", "")) == "" and "TextString" not in item


def test_the_profile_is_the_standards():
    profile = basic_profile()
    assert len(profile) == 652
    expected = {
        0x00100010: "Z",
        0x00080018: "U",
        0x00080080: "X/Z/D",
        0x00104000: "X",
        0x00080050: "Z",
        0x0020000D: "U",
    }
    assert {tag: profile[tag] for tag in expected} == expected


def test_what_does_not_fit_is_refused_and_leaves_no_file(tmp_path: Path, path: Path):
    out = tmp_path / "copy.dcm"
    with pytest.raises(ValueError, match="the key has 3 bytes, 32 random ones are needed; make one with: head"):
        deidentify(path, out, b"key")
    with pytest.raises(NotUsableError, match="StudyInstanceUID is missing"):
        deidentify_header(source(StudyInstanceUID=None), KEY)
    still = fixtures.save_source(source(), np.zeros_like(CLIP), tmp_path / "blank.dcm")
    with pytest.raises(NotUsableError, match="no ultrasound sector is found"):
        deidentify(still, out, KEY)
    nowhere = source(SequenceOfUltrasoundRegions=None, NumberOfFrames=1)
    with pytest.raises(NotUsableError, match="no ultrasound sector is found"):
        deidentify(fixtures.save_source(nowhere, CLIP[:1], tmp_path / "still.dcm"), out, KEY)
    assert not out.exists() and len(list(tmp_path.iterdir())) == 3


def test_a_panel_outside_the_regions_is_not_taken_for_the_sector(tmp_path: Path):
    frames = CLIP[:1].copy()
    frames[:, :30] = 120  # wider than the sector
    header = source(NumberOfFrames=1)
    header.SequenceOfUltrasoundRegions[0].RegionLocationMinY0 = 32
    path = fixtures.save_source(header, frames, tmp_path / "still.dcm")
    deidentify(path, tmp_path / "copy.dcm", KEY)
    copied = pydicom.dcmread(tmp_path / "copy.dcm").pixel_array.reshape(CLIP.shape[1:])
    assert not copied[:32].any() and (copied == frames[0])[40:90, 70:90].all()


def test_a_second_run_writes_the_same_bytes(tmp_path: Path, path: Path):
    for name in ("a.dcm", "b.dcm"):
        deidentify(path, tmp_path / name, KEY)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()


def test_a_real_clip(tmp_path: Path):
    original = fixtures.real_clip()
    deidentify(original, tmp_path / "copy.dcm", KEY)
    header, dataset = fixtures.header_of(original), pydicom.dcmread(tmp_path / "copy.dcm")
    for secret in (header.StudyDate, header.SOPInstanceUID, header.PerformedProcedureStepID, "1.2.840.114340"):
        assert traces((tmp_path / "copy.dcm").read_bytes(), secret) == []
    frames = dataset.pixel_array
    assert frames.shape == (120, 480, 640) and not frames[:, :40, :80].any() and not frames[:, :, 600:].any()
    assert frames[:, 200, 300].any() and dataset.LossyImageCompression == "01"
    assert claims(tmp_path / "copy.dcm") == ("NO", True)
