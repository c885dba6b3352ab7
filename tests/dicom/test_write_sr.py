"""Test measurements of a study as DICOM Structured Report."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path

import pydicom
import pytest

from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.dicom.writing.sr import NEEDS_REVIEW, UCUM, Measurement, SourceFrames, write_report
from synboost_monai.quantities import BIPLANE, FOUR_CHAMBER, PRIVATE_SCHEME, QUANTITIES, TWO_CHAMBER
from tests.dicom import writing_fixtures as fixtures

highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed")


A4C = SourceFrames(fixtures.ULTRASOUND_CLIP, f"{fixtures.ROOT}.3.1", (2, 4))
ATRIUM = "end_systolic_atrial_volume_ml"
A2C = SourceFrames(fixtures.ULTRASOUND_CLIP, f"{fixtures.ROOT}.3.2", (1, 3))


def ventricle(method: str = FOUR_CHAMBER, *sources: SourceFrames, ef: float = 60.0) -> list[Measurement]:
    frames = sources or ((A4C, A2C) if method == BIPLANE else (A4C,))
    return [
        Measurement("end_diastolic_volume_ml", method, 120.0, frames),
        Measurement("end_systolic_volume_ml", method, 48.0, frames),
        Measurement("ejection_fraction", method, ef, frames),
    ]


def both_sources() -> list:
    return [fixtures.ultrasound(number=1), fixtures.ultrasound(number=2)]


def write(path: Path, measurements=None, sources=None, **options) -> Path:
    measurements = ventricle() if measurements is None else measurements
    sources = both_sources() if sources is None else sources
    write_report(sources, measurements, path, **{"provenance": fixtures.PROVENANCE, **options})
    return path


def numbers_of(path: Path) -> list[tuple[str, float, str, list]]:
    """Return (code, value, unit, frames) of each number, as highdicom reads them."""
    report = highdicom.sr.srread(str(path))
    return [
        (m.name.value, m.value, m.unit.value, [(r.referenced_sop_instance_uid, r.referenced_frame_numbers) for r in m.referenced_images])
        for group in report.content.get_image_measurement_groups()
        for m in group.get_measurements()
    ]  # fmt: skip


def test_values_codes_and_frames_come_back(tmp_path: Path):
    expected_frames = [(A4C.sop_instance_uid, [2, 4]), (A2C.sop_instance_uid, [1, 3])]
    assert numbers_of(write(tmp_path / "sr.dcm", ventricle(BIPLANE))) == [
        ("79996-5", 120.0, "mL", expected_frames),
        ("80001-1", 48.0, "mL", expected_frames),
        ("79991-6", 60.0, "%", expected_frames),
    ]


def every_quantity() -> list[Measurement]:
    """Return each quantity by each method, with its normal range and a comment, and the volumes of a beat."""
    measurements = [m for method in (BIPLANE, FOUR_CHAMBER, TWO_CHAMBER) for m in ventricle(method)]
    measurements += [dataclasses.replace(m, beat=2) for m in ventricle()]
    known = {m.quantity for m in measurements}
    for name, quantity in QUANTITIES.items():
        if name not in known:
            value, normal = sum(quantity.limits) / 4, quantity.reference and quantity.reference.of("female")
            measurements += [
                Measurement(name, method, value, (A4C,), comments=("In doubt: it is a test",), reference=normal)
                for method in quantity.codes
            ]
    return measurements


@pytest.fixture(scope="module")
def whole_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report of every quantity: do not change it."""
    return write(tmp_path_factory.mktemp("report") / "sr.dcm", every_quantity())


@fixtures.needs_dciodvfy
def test_dciodvfy_finds_no_error_in_any_quantity(tmp_path: Path, whole_report: Path):
    doubtful = write(tmp_path / "sr.dcm", needs_review=True, review_reasons=["the axes differ by 14 %"])
    assert fixtures.errors_of(whole_report) == fixtures.errors_of(doubtful) == []
    assert len(numbers_of(whole_report)) == len(every_quantity())


def test_each_number_says_how_where_and_by_what(whole_report: Path):
    report = highdicom.sr.srread(str(whole_report))
    methods = {}
    for group in report.content.get_image_measurement_groups():
        assert group.tracking_uid.startswith("2.25.")
        text = group[0].to_json()
        assert "echo_cris" in text and "weights_sha256=" + "cd" * 32 in text and "prompt_1=Segment the left" in text
        for m in group.get_measurements():
            sites = [site.value.value for site in m.finding_sites]
            assert sites == ([] if group.finding_type is None else [group.finding_type.value])
            methods[m.name.meaning] = m.method.value if m.method else None
    assert methods["Left ventricular ejection fraction biplane (MOD)"] == "125207"
    assert methods["Left ventricular ejection fraction single plane 4C (MOD)"] == "125208"
    assert methods["Left atrial end systolic volume biplane (area-length)"] == "125204"
    assert methods["Left Atrium Systolic Volume"] == "125205"
    assert methods["Left atrial end systolic area 2C"] is None
    assert methods["Left Ventricle Mass"] == "WALL_DISKS"


def test_a_number_has_its_doubts_its_beat_and_the_normal_range_as_children(tmp_path: Path):
    doubtful = [
        dataclasses.replace(m, beat=3, comments=("In doubt: a segmentation needs review",), reference=(54.0, 74.0))
        for m in ventricle()
    ]
    path = write(tmp_path / "sr.dcm", [*ventricle(), *doubtful])
    of_study, of_beat = highdicom.sr.srread(str(path)).content.get_image_measurement_groups()
    assert (of_study.tracking_identifier, of_beat.tracking_identifier) == (
        "left_ventricular_cavity four_chamber",
        "left_ventricular_cavity four_chamber beat 3",
    )
    for group, comments, numbers in ((of_study, [], {}), (of_beat, [doubtful[0].comments[0]], {"122149": 3})):
        for m in group.get_measurements():
            children = m[0].ContentSequence
            assert [i.TextValue for i in children if i.name.value == "121106"] == comments
            found = {i.name.value: i.MeasuredValueSequence[0].NumericValue for i in children if i.ValueType == "NUM"}
            assert found == {**numbers, **({"385524004": 54, "371933006": 74} if numbers else {})}


def test_codes_are_those_of_the_standard_or_our_own():
    """A code is in pydicom's tables of DICOM PS3.16 with that meaning, or belongs to the private scheme."""
    from pydicom.sr._concepts_dict import concepts

    known = {
        (scheme, code, meaning)
        for scheme, names in concepts.items()
        for codes in names.values()
        for code, (meaning, _) in codes.items()
    }
    for quantity in QUANTITIES.values():
        assert quantity.unit in UCUM
        assert len(quantity.words) == 2 and all(quantity.words)
        for code in (*quantity.codes.values(), *quantity.methods.values(), *filter(None, [quantity.derivation])):
            assert len(code.value) <= 16 and len(code.meaning) <= 64, code
            assert code.scheme == PRIVATE_SCHEME or (code.scheme, code.value, code.meaning) in known, code


def test_a_doubtful_report_says_so(tmp_path: Path):
    path = write(tmp_path / "sr.dcm", needs_review=True, review_reasons=["the base of the ventricle was not found"])
    report = pydicom.dcmread(path)
    assert (report.CompletionFlag, report.VerificationFlag) == ("PARTIAL", "UNVERIFIED")
    assert report.SeriesDescription.startswith(NEEDS_REVIEW) and report.CompletionFlagDescription == NEEDS_REVIEW
    comments = [item.TextValue for item in report.ContentSequence[-1].ContentSequence]
    assert comments[0] == f"{NEEDS_REVIEW}; the base of the ventricle was not found"
    assert "not verified by a physician" in comments[1]

    report = pydicom.dcmread(write(tmp_path / "good.dcm"))
    assert (report.CompletionFlag, report.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    (comment,) = (item.TextValue for item in report.ContentSequence[-1].ContentSequence)
    assert "not verified by a physician" in comment and NEEDS_REVIEW not in str(report)


def test_a_second_run_writes_the_same_bytes(tmp_path: Path):
    assert write(tmp_path / "a.dcm").read_bytes() == write(tmp_path / "b.dcm").read_bytes()


def test_report_belongs_to_the_patient_and_lists_its_evidence(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    sources = [fixtures.ultrasound(number=number, identified=True) for number in (1, 2)]
    report = pydicom.dcmread(write(tmp_path / "sr.dcm", ventricle(BIPLANE), sources))
    assert (report.PatientID, str(report.PatientName)) == ("MRN7741902", "Quastenflosser^Ottokar")
    assert (report.StudyInstanceUID, report.ContentDate) == (sources[0].StudyInstanceUID, "20240229")
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    referenced = [item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence]
    assert sorted(referenced) == [A4C.sop_instance_uid, A2C.sop_instance_uid]
    assert not fixtures.holds_strangers(tmp_path / "sr.dcm")
    assert "".join(capfd.readouterr()) == ""


def test_single_frame_sources_are_named_without_frame_numbers(tmp_path: Path):
    sources = [fixtures.ultrasound(None, number=number) for number in (1, 2)]
    frames = tuple(SourceFrames(s.SOPClassUID, s.SOPInstanceUID, (1,)) for s in sources)
    path = write(tmp_path / "sr.dcm", ventricle(FOUR_CHAMBER, *frames), sources)
    assert all(not number for *_, images in numbers_of(path) for _, number in images)
    if fixtures.DCIODVFY is not None:
        assert fixtures.errors_of(path) == []


def one(quantity: str = ATRIUM, value: float = 40.0, method: str = FOUR_CHAMBER, frames=(A4C,)):
    return [Measurement(quantity, method, value, frames)]


@pytest.mark.parametrize(
    ("measurements", "message"),
    [
        ([], "at least one source and one measurement"),
        (one(value=math.nan), "end_systolic_atrial_volume_ml of nan ml cannot be right"),
        (one(value=math.inf), "cannot be right"),
        (one(value=-1.0), "end_systolic_atrial_volume_ml of -1.0 ml cannot be right"),
        (one(value=5000.0), "cannot be right"),
        (one(quantity="wall_motion"), "no code for 'wall_motion'"),
        (one("end_diastolic_atrial_volume_ml"), "no code for 'end_diastolic_atrial_volume_ml'"),
        (
            one("end_systolic_atrial_area_cm2", method=BIPLANE),
            "no code for 'end_systolic_atrial_area_cm2' by 'biplane'",
        ),
        (one("end_diastolic_length_mm", 400.0), "cannot be right"),
        (one() + one(value=41.0), "end_systolic_atrial_volume_ml by four_chamber comes twice"),
        (ventricle()[:2] + [dataclasses.replace(ventricle()[2], beat=1)], "needs both volumes in the report"),
        (one(frames=()), "names no frame"),
        (one(frames=(SourceFrames(A4C.sop_class_uid, A4C.sop_instance_uid, ()),)), "names no frame"),
        (one(frames=(SourceFrames(A4C.sop_class_uid, A4C.sop_instance_uid, (0,)),)), "frame numbers begin at 1"),
        (one(frames=(SourceFrames(A4C.sop_class_uid, "1.2.3", (1,)),)), "an object that is not among the sources"),
        (one(frames=(SourceFrames(fixtures.ULTRASOUND_IMAGE, A4C.sop_instance_uid, (1,)),)), "another SOP class"),
        (ventricle()[::2], "needs both volumes in the report"),
        (ventricle()[1:], "needs both volumes in the report"),
        (
            ventricle(FOUR_CHAMBER, SourceFrames(A4C.sop_class_uid, A4C.sop_instance_uid, (2,))),
            "frames of end diastole and end",
        ),
        (ventricle(BIPLANE, A4C), "frames of end diastole and end systole of each view"),
        (ventricle(ef=55.0), r"55.0 % does not follow from 120.0 mL and 48.0 mL"),
        (ventricle()[:2] + one("ejection_fraction", 60.0, TWO_CHAMBER), "by two_chamber needs both"),
    ],
)
def test_what_cannot_be_right_is_refused(tmp_path: Path, measurements: list, message: str):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "sr.dcm", measurements)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"PatientID": "another"},
        {"StudyInstanceUID": "1.2.3"},
        {"PatientName": "B^C"},
        {"PatientBirthDate": "19880101"},
    ],
)
def test_sources_of_two_patients_or_studies_are_refused(tmp_path: Path, change: dict):
    sources = [fixtures.ultrasound(number=1), fixtures.ultrasound(number=2, **change)]
    with pytest.raises(NotUsableError, match="name different patients"):
        write(tmp_path / "sr.dcm", sources=sources)


@pytest.mark.parametrize(
    "change",
    [
        {"PatientName": "QUASTENFLOSSER^OTTOKAR^^^"},
        {"PatientName": "Quastenflosser^Ottokar=="},
        {"PatientBirthDate": None},
        {"PatientBirthDate": "1961.08.14"},
    ],
)
def test_sources_of_one_patient_may_write_him_in_several_ways(tmp_path: Path, change: dict):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sources = [fixtures.ultrasound(number=1), fixtures.ultrasound(number=2, **change)]
    assert len(numbers_of(write(tmp_path / "sr.dcm", ventricle(BIPLANE), sources))) == 3


def test_a_real_clip(tmp_path: Path):
    source = fixtures.header_of(fixtures.real_clip())
    frames = SourceFrames(str(source.SOPClassUID), str(source.SOPInstanceUID), (9, 24))
    path = write(tmp_path / "sr.dcm", ventricle(FOUR_CHAMBER, frames), [source])
    assert [value for _, value, *_ in numbers_of(path)] == [120.0, 48.0, 60.0]
    if fixtures.DCIODVFY is not None:
        assert fixtures.errors_of(path) == []
