"""Test the structured report: it holds only values that have codes and that a heart can have."""

from __future__ import annotations

import pytest

from synboost_monai.hospital.measures import StudyMeasure
from synboost_monai.hospital.results import report_measurements

INSTANCES = {"clip": ("1.2.840.10008.5.1.4.1.1.3.1", "1.2.3")}


def measure(name: str, value: float | None, method: str = "four_chamber") -> StudyMeasure:
    reason = "no calibration" if value is None else ""
    return StudyMeasure(name, method, value, reason, (), (("clip", (4, 11)),))


def reported(*measures: StudyMeasure) -> dict[tuple[str, str], float]:
    return {(m.quantity, m.method): m.value for m in report_measurements(measures, INSTANCES)}


def test_volumes_and_fraction_are_reported_with_frames_from_one() -> None:
    volumes = [measure("end_diastolic_volume_ml", 100.0), measure("end_systolic_volume_ml", 40.0)]
    found = report_measurements([*volumes, measure("ejection_fraction", 60.0)], INSTANCES)
    assert [m.quantity for m in found] == ["end_diastolic_volume_ml", "end_systolic_volume_ml", "ejection_fraction"]
    assert found[0].sources[0].frame_numbers == (5, 12)


@pytest.mark.parametrize("volume", [None, -3.0, 5000.0])
def test_no_ejection_fraction_without_both_volumes(volume: float | None) -> None:
    found = reported(
        measure("end_diastolic_volume_ml", volume),
        measure("end_systolic_volume_ml", 40.0),
        measure("ejection_fraction", 60.0),
    )
    assert found == {("end_systolic_volume_ml", "four_chamber"): 40.0}


def test_negative_fraction_is_not_reported() -> None:
    found = reported(
        measure("end_diastolic_volume_ml", 40.0),
        measure("end_systolic_volume_ml", 50.0),
        measure("ejection_fraction", -25.0),
    )
    assert set(quantity for quantity, _ in found) == {"end_diastolic_volume_ml", "end_systolic_volume_ml"}


def test_what_has_no_code_is_left_out() -> None:
    assert reported(measure("end_diastolic_atrial_volume_ml", 40.0)) == {}
    assert reported(measure("end_systolic_atrial_area_cm2", 20.0, "biplane")) == {}
