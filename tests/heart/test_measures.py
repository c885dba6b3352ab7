"""Test measures of a patient: what each method needs, and the reasons for missing measures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from synboost_monai.heart.measures import MEASURES, METHODS, ClinicalMeasure, body_surface_m2, measure_patient
from synboost_monai.heart.volumes import CannotMeasureError, camus_volumes_ml, disk_volume_ml, measure_ventricle
from synboost_monai.quantities import QUANTITIES
from synboost_monai.records import PHASES, VIEWS
from synboost_monai.simulation.phantom_anatomy import draw_label_map, draw_patient

PATIENT = draw_patient(np.random.default_rng(5), is_female=True)
HEIGHT = 160
SPACING = PATIENT.depth_mm / HEIGHT, PATIENT.depth_mm / HEIGHT
TWO, FOUR = "apical_two_chamber", "apical_four_chamber"
DIASTOLE, SYSTOLE = "end_diastole", "end_systole"


def make_frames() -> dict:
    """Return the four label maps of a phantom patient."""
    shape = (HEIGHT, int(2 * HEIGHT * math.sin(PATIENT.half_angle)) + 1)
    return {
        (VIEWS[view], PHASES[phase]): (
            draw_label_map(anatomy.contours(systole), PATIENT.depth_mm, shape, SPACING[0]),
            SPACING,
        )
        for view, anatomy in PATIENT.views.items()
        for phase, systole in (("ED", 0.0), ("ES", 1.0))
    }


def found(frames: dict) -> dict[tuple[str, str], ClinicalMeasure]:
    return {(m.measure, m.method): m for m in measure_patient(frames)}


def test_a_whole_patient_has_every_measure_by_every_method():
    measures = found(make_frames())
    assert [m.measure for m in measures.values()] == sorted(
        (m.measure for m in measures.values()), key=list(MEASURES).index
    )
    assert {method for _, method in measures} == set(METHODS)
    assert (
        len(measures) == 3 * 4 + 2 * 2 + 2 * 3
    )  # volumes and fraction, lengths of single views, atrium without CAMUS's rule
    assert all(m.value is not None and m.reason == "" and m.warning == "" for m in measures.values())
    views = {key: measure_ventricle(*frame) for key, frame in make_frames().items()}
    biplane = [disk_volume_ml(views[TWO, phase], views[FOUR, phase]) for phase in (DIASTOLE, SYSTOLE)]
    camus = camus_volumes_ml(*((views[TWO, phase], views[FOUR, phase]) for phase in (DIASTOLE, SYSTOLE)))
    for method, volumes in (("biplane", biplane), ("biplane_camus", camus)):
        values = [measures[name, method].value for name in ("end_diastolic_volume_ml", "end_systolic_volume_ml")]
        assert values == pytest.approx(list(volumes))
        assert measures["ejection_fraction", method].value == pytest.approx(100 * (1 - volumes[1] / volumes[0]))
    assert measures["ejection_fraction", "biplane"].value == pytest.approx(PATIENT.ejection_fraction, abs=2)
    assert measures["end_diastolic_length_mm", "two_chamber"].value == pytest.approx(views[TWO, DIASTOLE].length_mm)


def test_one_view_has_its_own_measures_and_no_biplane():
    measures = found({key: frame for key, frame in make_frames().items() if key[0] == FOUR})
    assert all((m.value is not None) == (method == "four_chamber") for (_, method), m in measures.items())
    assert measures["end_diastolic_volume_ml", "biplane"].reason == "two-chamber view, end-diastole: no image"
    assert measures["ejection_fraction", "two_chamber"].reason == (
        "two-chamber view, end-diastole: no image; two-chamber view, end-systole: no image"
    )


def test_one_phase_has_volumes_and_no_ejection_fraction():
    measures = found({key: frame for key, frame in make_frames().items() if key[1] == DIASTOLE})
    assert measures["end_diastolic_volume_ml", "biplane"].value is not None
    assert measures["end_diastolic_volume_ml", "biplane_camus"].value is None  # its height needs both phases
    for method in METHODS:
        fraction = measures["ejection_fraction", method]
        assert fraction.value is None and "end-systole: no image" in fraction.reason


def test_an_empty_mask_gives_no_number_where_it_is_needed():
    frames = make_frames()
    label_map, spacing = frames[FOUR, SYSTOLE]
    frames[FOUR, SYSTOLE] = (np.where(label_map == 1, 0, label_map), spacing)
    measures = found(frames)
    missing = {key for key, m in measures.items() if m.value is None}
    assert missing == {
        ("end_systolic_volume_ml", "biplane"),
        ("end_systolic_volume_ml", "four_chamber"),
        ("end_diastolic_volume_ml", "biplane_camus"),
        ("end_systolic_volume_ml", "biplane_camus"),
        ("ejection_fraction", "biplane"),
        ("ejection_fraction", "biplane_camus"),
        ("ejection_fraction", "four_chamber"),
        ("end_systolic_length_mm", "four_chamber"),
        ("end_systolic_atrial_volume_ml", "biplane"),  # no annulus to hang from
        ("end_systolic_atrial_volume_ml", "four_chamber"),
    }
    assert {measures[key].reason for key in missing} == {"four-chamber view, end-systole: no left ventricular cavity"}


def test_no_spacing_and_no_label_map_give_no_number():
    frames = make_frames()
    unknown = {key: (label_map, None) for key, (label_map, _) in frames.items()}
    assert all(m.value is None and "the pixel spacing is not known" in m.reason for m in measure_patient(unknown))
    whole, ratios = (
        found(frames),
        {m.method: m for m in measure_patient(unknown, is_one_clip=True) if m.value is not None},
    )
    assert ratios.keys() == {"four_chamber", "two_chamber"}  # of one view, where the scale cancels out
    assert {m.measure for m in ratios.values()} == {"ejection_fraction"}
    square = all(row_mm == column_mm for _, (row_mm, column_mm) in frames.values())
    assert square and all(m.value == pytest.approx(whole["ejection_fraction", k].value) for k, m in ratios.items())
    one = unknown | {(FOUR, SYSTOLE): frames[FOUR, SYSTOLE]}  # nothing says that both have one scale
    assert "four_chamber" not in {
        m.method for m in measure_patient(one, is_one_clip=True) if "fraction" in m.measure and m.value
    }
    lost = found(frames | {(TWO, SYSTOLE): "the label map was not kept"})
    assert (
        lost["end_systolic_volume_ml", "two_chamber"].reason
        == "two-chamber view, end-systole: the label map was not kept"
    )


def test_axes_that_differ_and_a_growing_ventricle_are_warned_of():
    frames = make_frames()
    label_map, (row_mm, column_mm) = frames[TWO, DIASTOLE]
    frames[TWO, DIASTOLE] = (label_map, (0.8 * row_mm, column_mm))
    measures = found(frames)
    warning = measures["end_diastolic_volume_ml", "biplane"].warning
    assert warning == "the views' long axes differ by more than 10 % at end-diastole"
    assert measures["ejection_fraction", "biplane"].warning == warning
    assert measures["end_systolic_volume_ml", "biplane"].warning == ""
    frames = make_frames()
    swapped = found({(view, {DIASTOLE: SYSTOLE, SYSTOLE: DIASTOLE}[phase]): f for (view, phase), f in frames.items()})
    fraction = swapped["ejection_fraction", "four_chamber"]
    assert fraction.value < 0 and fraction.warning == "the end-systolic volume is the larger one"


def test_an_unknown_view_is_refused():
    with pytest.raises(ValueError, match="got .*'4CH', 'ED'"):
        measure_patient({("4CH", "ED"): "no image"})


def test_more_measures_of_a_patient_follow_from_its_views():
    frames = make_frames()
    measures = {(m.measure, m.method): m for m in measure_patient(frames, more=True)}
    assert "biplane_camus" not in {method for _, method in measures}
    assert [m.measure for m in measures.values()] == sorted((m for m, _ in measures), key=list(QUANTITIES).index)
    views = {key: measure_ventricle(*frame) for key, frame in frames.items()}
    for method in ("biplane", "four_chamber", "two_chamber"):
        diastolic, systolic, stroke = (
            measures[name, method].value
            for name in ("end_diastolic_volume_ml", "end_systolic_volume_ml", "stroke_volume_ml")
        )
        assert stroke == pytest.approx(diastolic - systolic)
    length = max(views[view, DIASTOLE].length_mm for view in (TWO, FOUR))
    assert measures["sphericity", "biplane"].value == pytest.approx(
        measures["end_diastolic_volume_ml", "biplane"].value * 1000 / (math.pi / 6 * length**3)
    )
    strains = [100 * (views[v, SYSTOLE].contour_mm / views[v, DIASTOLE].contour_mm - 1) for v in (TWO, FOUR)]
    assert measures["longitudinal_strain", "biplane"].value == pytest.approx(sum(strains) / 2)
    assert measures["end_systolic_atrial_area_cm2", "four_chamber"].value == pytest.approx(
        (frames[FOUR, SYSTOLE][0] == 3).sum() * math.prod(SPACING) / 100, rel=0.02
    )


def test_what_is_missing_is_missing_in_every_measure_that_needs_it():
    frames = make_frames()
    label_map, spacing = frames[FOUR, DIASTOLE]
    frames[FOUR, DIASTOLE] = (np.where(label_map == 2, 0, label_map), spacing)
    measures = {(m.measure, m.method): m for m in measure_patient(frames, more=True)}
    assert measures["mass_g", "two_chamber"].value is not None
    for method in ("four_chamber", "biplane"):
        mass = measures["mass_g", method]
        assert mass.value is None
        assert (
            mass.reason
            == "four-chamber view, end-diastole: the myocardium does not surround the left ventricular cavity"
        )
    del frames[FOUR, SYSTOLE]
    measures = {(m.measure, m.method): m for m in measure_patient(frames, more=True)}
    for name in ("stroke_volume_ml", "longitudinal_strain"):
        assert measures[name, "biplane"].reason == "four-chamber view, end-systole: no image"
        assert measures[name, "two_chamber"].value is not None


def test_body_surface_of_dubois_table_and_of_what_cannot_be_right():
    assert body_surface_m2(1.70, 70.0) == pytest.approx(1.81, abs=0.005)  # DuBois and DuBois 1916, figure 1
    assert body_surface_m2(1.50, 50.0) == pytest.approx(1.43, abs=0.005)
    for height, weight, message in (
        (None, 70.0, "the header gives no height"),
        (0.0, 70.0, "the header gives no height"),
        (1.7, None, "the header gives no weight"),
        (170.0, 70.0, "height is not plausible: 0.4 to 2.5 m"),
        (1.7, 7000.0, "weight is not plausible: 2 to 400 kg"),
    ):
        with pytest.raises(CannotMeasureError, match=message):
            body_surface_m2(height, weight)
