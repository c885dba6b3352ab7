"""Test the known facts of an ultrasound object, and its frames of the tissue region."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from synboost_monai.dicom.limits import Limits
from synboost_monai.dicom.reading.read import ClipFacts, open_ultrasound
from synboost_monai.dicom.reading.view import view_of_header, view_of_text
from synboost_monai.dicom.reasons import NotUsableError
from tests.dicom.conftest import dataset, moving_frames, real_file, tissue_region


def facts(path, **limits: Any) -> ClipFacts:
    with open_ultrasound(path, Limits(**limits)) as clip:
        return clip.facts


def code_of_view(value: str, scheme: str = "SCT", meaning: str = "", modifiers: tuple[Dataset, ...] = ()) -> Dataset:
    about = {"CodeValue": value, "CodingSchemeDesignator": scheme, "CodeMeaning": meaning}
    return dataset(**about, ViewModifierCodeSequence=list(modifiers) or None)


def test_frames_are_those_of_the_region(make_ultrasound):
    frames = moving_frames(5, 60, 80)
    path = make_ultrasound(frames, regions=[tissue_region(10, 4, 69, 53, (0.05, 0.1))])
    with open_ultrasound(path) as clip:
        np.testing.assert_array_equal(clip.read_frames(range(1, 4)), frames[1:4, 4:54, 10:70])
        np.testing.assert_array_equal(clip.read_frames([4, 0]), frames[[4, 0], 4:54, 10:70])
        assert clip.facts.spacing_mm == pytest.approx((1.0, 0.5)) and clip.facts.calibration_problem is None
        assert (clip.num_frames, clip.facts.rows, clip.facts.columns) == (5, 60, 80)
        assert clip.facts.decoder == "none"


def test_facts_are_plain_and_hold_no_text_of_the_file(make_ultrasound):
    path = make_ultrasound(moving_frames(3), regions=[], SeriesDescription="A4C Mustermann")
    found = facts(path)
    assert pickle.loads(pickle.dumps(found)).region == found.region or found.region.problem is not None
    assert (found.view, found.sex, found.age) == ("apical_four_chamber", "female", 61)
    assert found.calibration_problem is not None and found.calibration_problem.reason.code == "no_regions"
    again = pickle.loads(pickle.dumps(found))
    assert str(again.calibration_problem) == str(found.calibration_problem)
    assert not any(word in repr(found) for word in ("Mustermann", "Erika", "4711", "20240229"))
    assert found.sop_instance_uid.startswith("1.2.826") and found.study_uid == "1.2.826.0.1.3680043.10.2"


def test_a_blank_clip_is_refused(make_ultrasound):
    frames = np.full((4, 40, 40), 7, np.uint8)
    with pytest.raises(NotUsableError, match="every frame is blank"):
        open_ultrasound(make_ultrasound(frames))
    frames[3, 5, 5] = 8
    assert facts(make_ultrasound(frames)).num_frames == 4


def test_too_small_an_image_is_refused(make_ultrasound):
    with pytest.raises(NotUsableError, match="15 x 64 pixels; an image needs at least 16 x 16"):
        open_ultrasound(make_ultrasound(moving_frames(1, 15, 64)))


def test_a_refused_file_is_closed_again(make_ultrasound):
    import os

    path = make_ultrasound(moving_frames(1), NumberOfFrames=9)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        with pytest.raises(NotUsableError):
            open_ultrasound(path)
    assert not before or len(os.listdir("/proc/self/fd")) == before


# --- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"FrameTime": 40}, (0, 40, 80, 120)),
        ({"FrameTime": None, "CineRate": 50}, (0, 20, 40, 60)),
        ({"FrameTime": 0, "RecommendedDisplayFrameRate": 25}, (0, 40, 80, 120)),
        ({"FrameTimeVector": [0, 30, 40, 35]}, (0, 30, 70, 105)),
        ({"FrameTimeVector": [0, 30, 40], "FrameTime": 20}, (0, 20, 40, 60)),  # of another number of frames
        ({"FrameTimeVector": [0, 30, -40, 35], "FrameTime": 20}, (0, 20, 40, 60)),
        ({"FrameTime": None}, None),
        ({"FrameTime": -3}, None),
        ({"FrameTime": 90000}, None),
        ({"FrameTime": None, "CineRate": 0}, None),
    ],
)
def test_frame_times(make_ultrasound, header: dict[str, Any], expected: tuple[float, ...] | None):
    found = facts(make_ultrasound(moving_frames(4), **header)).frame_times_ms
    assert found == (None if expected is None else pytest.approx(expected))


def test_a_still_has_no_frame_times(make_ultrasound):
    assert facts(make_ultrasound(moving_frames(1), FrameTime=25)).frame_times_ms is None


def test_heart_beat(make_ultrasound):
    found = facts(make_ultrasound(moving_frames(2), HeartRate=72, RWaveTimeVector=[820.0, 12.5]))
    assert (found.heart_rate, found.r_wave_times_ms) == (72.0, (12.5, 820.0))
    found = facts(make_ultrasound(moving_frames(2), HeartRate=0))
    assert (found.heart_rate, found.r_wave_times_ms) == (None, ())


# --- patient ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "age"),
    [
        ({"PatientAge": "061Y"}, 61),
        ({"PatientAge": "018M"}, 1),
        ({"PatientAge": "010D"}, 0),
        ({"PatientAge": "104W"}, 1),
        ({"PatientAge": "300Y"}, None),
        ({"PatientAge": None, "PatientBirthDate": "19500301", "StudyDate": "20240229"}, 73),
        ({"PatientAge": None, "PatientBirthDate": "1950.02.28", "StudyDate": "2024.02.29"}, 74),
        ({"PatientAge": None, "PatientBirthDate": "20300301", "StudyDate": "20240229"}, None),
        ({"PatientAge": None, "PatientBirthDate": "19501301"}, None),
        ({"PatientAge": None, "PatientBirthDate": "18000101"}, None),
        ({"PatientAge": None}, None),
    ],
)
def test_age(make_ultrasound, header: dict[str, Any], age: int | None):
    assert facts(make_ultrasound(moving_frames(1), **header)).age == age


@pytest.mark.parametrize(("letter", "sex"), [("M", "male"), ("F", "female"), ("O", None), ("", None), (None, None)])
def test_sex(make_ultrasound, letter: str | None, sex: str | None):
    assert facts(make_ultrasound(moving_frames(1), PatientSex=letter)).sex == sex


# --- view ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("A4C", "apical_four_chamber"),
        ("ap 4 chamber", "apical_four_chamber"),
        ("Apical four-chamber view", "apical_four_chamber"),
        ("REST_4CH_LV", "apical_four_chamber"),
        ("2CH", "apical_two_chamber"),
        ("AP2", "apical_two_chamber"),
        ("Apical 2 Chamber", "apical_two_chamber"),
        ("Subcostal 4 chamber", "subcostal"),
        ("TEE 4 chamber", "transesophageal"),
        ("PLAX", "parasternal_long_axis"),
        ("PSAX mid", "parasternal_short_axis"),
        ("A3C", "apical_long_axis"),
        ("A5C", "apical_five_chamber"),
        ("A4C RV focused", "apical_four_chamber_right_ventricle"),
        ("A4C A2C biplane", None),
        ("Adult Echo", None),
        ("clip 4 of 20", None),
        ("", None),
    ],
)
def test_view_of_text(text: str, view: str | None):
    assert view_of_text(text) == view


@pytest.mark.parametrize(
    ("header", "view"),
    [
        ({"ViewCodeSequence": [code_of_view("399214001")]}, "apical_four_chamber"),
        ({"ViewCodeSequence": [code_of_view("G-A19B", "SRT")], "SeriesDescription": "A4C"}, "apical_two_chamber"),
        ({"ViewCodeSequence": [code_of_view("399139001")], "SeriesDescription": "A4C"}, "parasternal_long_axis"),
        ({"ViewCodeSequence": [code_of_view("AP4", "99VENDOR", "Apical 4 chamber")]}, "apical_four_chamber"),
        ({"ViewCodeSequence": [code_of_view("399214001", "99VENDOR")]}, None),
        ({"ViewCodeSequence": [code_of_view("X", "SCT", "", (code_of_view("399232001"),))]}, "apical_two_chamber"),
        ({"ViewCodeSequence": [code_of_view("399214001"), code_of_view("399232001")]}, None),
        ({"ViewName": "A2C", "ProtocolName": "A4C"}, "apical_two_chamber"),
        ({"ProtocolName": "Echo A2C"}, "apical_two_chamber"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "A4C"]}, "apical_four_chamber"),
        ({}, None),
    ],
)
def test_view_of_header(header: dict[str, Any], view: str | None):
    assert view_of_header(dataset(**header)) == view


# --- real files ------------------------------------------------------------------------------------------------------


def test_real_clip():
    with open_ultrasound(real_file("color3d_jpeg_baseline.dcm")) as clip:
        assert clip.facts.num_frames == 120 and clip.read_frames([118, 119]).shape == (2, 384, 512)
        assert clip.facts.spacing_mm == pytest.approx((0.5105, 0.5105), abs=1e-4)
        assert clip.facts.frame_times_ms is not None and clip.facts.frame_times_ms[1] == pytest.approx(33.333)
        assert (clip.facts.heart_rate, clip.facts.sex, clip.facts.age, clip.facts.view) == (None,) * 4


@pytest.mark.parametrize(
    ("name", "code", "shape"),
    [
        ("examples_ybr_color.dcm", "region_outside", (240, 320)),
        ("gdcm-US-ALOKA-16.dcm", "several_tissue_regions", (392, 304)),
        ("US1_J2KI.dcm", "no_regions", (480, 640)),
        ("OBXXXX1A.dcm", None, (459, 680)),  # its region ends one column after the image
    ],
)
def test_calibration_of_real_files(name: str, code: str | None, shape: tuple[int, int]):
    with open_ultrasound(real_file(name)) as clip:
        problem = clip.facts.calibration_problem
        assert (problem and problem.reason.code) == code
        assert clip.read_frames([0]).shape == (1, *shape)
