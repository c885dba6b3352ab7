"""Test checks of anatomy on a heart whose measures are known, damaged in every way, and on the phantom's label maps."""

from __future__ import annotations

import numpy as np
import pytest

from synboost_monai.heart.anatomy import (
    ADULT_RANGES,
    MEASURES,
    anatomy_ranges,
    check_anatomy,
    examine_anatomy,
    long_axis,
)
from synboost_monai.simulation.phantom_anatomy import draw_label_map, draw_patient


def make_heart(spacing_mm: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """Draw a heart in a 170 x 160 mm image: half a cavity of 36 x 70 mm cut off at the base, 10 mm of wall, an atrium of 36 mm.

    The base is the line y = 100; the apex of the cavity lies at (80, 30), that of the epicardium 10 mm above.
    """
    rows, columns = round(170 / spacing_mm[0]), round(160 / spacing_mm[1])
    y = (np.arange(rows)[:, None] + 0.5) * spacing_mm[0]
    x = (np.arange(columns)[None, :] + 0.5) * spacing_mm[1] - 80
    label_map = np.zeros((rows, columns), np.uint8)
    label_map[((y - 100) / 80) ** 2 + (x / 28) ** 2 < 1] = 2
    label_map[((y - 100) / 70) ** 2 + (x / 18) ** 2 < 1] = 1
    label_map[np.broadcast_to(y > 100, label_map.shape)] = 0
    label_map[(np.hypot(x, (y - 118) * 1.0) < 18) & (y > 100) | (np.abs(x) < 16) & (y > 100) & (y < 112)] = 3
    return label_map


def codes(label_map: np.ndarray, **options) -> list[tuple[str, str]]:
    return [(p.code, p.subject) for p in check_anatomy(label_map, (1.0, 1.0), **options)]


# ---- what is sound


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0), (0.5, 0.8), (0.31, 0.31)])
def test_a_sound_heart_passes_at_any_spacing(spacing_mm):
    assert check_anatomy(make_heart(spacing_mm), spacing_mm) == []


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0), (0.5, 0.8)])
def test_measures_are_those_of_the_drawing(spacing_mm):
    _, found = examine_anatomy(make_heart(spacing_mm), spacing_mm)
    assert list(found) and set(found) == set(MEASURES)
    cavity, heart = np.pi * 18 * 70 / 2, np.pi * 28 * 80 / 2
    assert found["cavity_area_mm2"] == pytest.approx(cavity, rel=0.02)
    assert found["myocardium_area_mm2"] == pytest.approx(heart - cavity, rel=0.02)
    assert found["myocardium_to_cavity_area"] == pytest.approx(heart / cavity - 1, rel=0.03)
    assert found["cavity_length_mm"] == pytest.approx(70, abs=1.5)
    assert found["cavity_elongation"] == pytest.approx(70**2 / cavity, rel=0.05)
    angle = np.linspace(0, np.pi, 2001)
    inner, outer = (np.stack([a * np.cos(angle), b * np.sin(angle)], 1) for a, b in ((18, 70), (28, 80)))
    thickness = np.array([np.linalg.norm(outer - point, axis=1).min() for point in inner[inner[:, 1] > 0.2 * 70][::20]])
    assert found["thinnest_wall_mm"] == pytest.approx(thickness.min(), abs=max(spacing_mm))
    assert found["wall_thickness_mm"] == pytest.approx(np.median(thickness), abs=max(spacing_mm))
    assert found["axis_tilt_deg"] == pytest.approx(0, abs=1.5)  # a pixel at the apex is worth 0.8 degrees
    assert found["atrium_position"] == pytest.approx(1 + 17.5 / 70, abs=0.03)
    assert found["atrium_elongation"] == pytest.approx(1, abs=0.1)
    # along pixel edges: the base of 36 mm, of an outline as long as that of its bounding box
    assert found["opening_fraction"] == pytest.approx(36 / (2 * 36 + 2 * 70), abs=0.01)


def test_long_axis_runs_from_the_base_to_the_apex():
    base, apex = long_axis(make_heart(), (1.0, 1.0))
    np.testing.assert_allclose(base, [99, 79.5], atol=1.0)
    np.testing.assert_allclose(apex, [30, 79.5], atol=1.5)
    assert long_axis(np.zeros((5, 5), int), (1.0, 1.0)) is None


def test_tilt_is_positive_when_the_base_lies_to_the_right():
    rows, columns = np.mgrid[:170, :160]
    angle = np.deg2rad(20)
    y, x = rows - 30, columns - 60
    source_y, source_x = 30 + y * np.cos(angle) + x * np.sin(angle), 80 - y * np.sin(angle) + x * np.cos(angle)
    inside = (source_y >= 0) & (source_y < 170) & (source_x >= 0) & (source_x < 160)
    turned = np.where(
        inside, make_heart()[np.clip(source_y, 0, 169).astype(int), np.clip(source_x, 0, 159).astype(int)], 0
    )
    assert examine_anatomy(turned, (1.0, 1.0))[1]["axis_tilt_deg"] == pytest.approx(20, abs=2)


def test_label_maps_of_the_phantom_pass():
    generator = np.random.default_rng(3)
    for number in range(6):
        patient = draw_patient(generator, is_female=bool(number % 2))
        for view in patient.views.values():
            for systole in (0.0, 1.0):
                shape = (round(patient.depth_mm), round(2 * patient.depth_mm * np.sin(patient.half_angle)))
                label_map = draw_label_map(view.contours(systole), patient.depth_mm, shape, 1.0)
                found = [p.message for p in check_anatomy(label_map, (1.0, 1.0)) if p.subject != "axis_tilt_deg"]
                assert found == [], (number, view.view, systole)


# ---- what is damaged


def test_a_missing_structure_is_named():
    label_map = make_heart()
    label_map[label_map == 3] = 0
    (problem,) = check_anatomy(label_map, (1.0, 1.0))
    assert (problem.code, problem.subject) == ("missing", "left_atrium")
    assert problem.message == "the left atrium is missing"
    assert [c for c, _ in codes(np.zeros((20, 20), int))] == ["missing"] * 3


def test_a_second_piece_is_found_and_a_slip_of_the_pen_is_not():
    label_map = make_heart()
    label_map[5:9, 5:9] = 3
    assert codes(label_map) == [("pieces", "left_atrium")]
    assert "in 2 pieces, the second of 16.0 mm²" in check_anatomy(label_map, (1.0, 1.0))[0].message
    label_map[5:9, 5:9] = 0
    label_map[5, 5] = 3  # 1 mm² is 0.1 % of the atrium
    assert codes(label_map) == []


@pytest.mark.parametrize(
    ("rows", "columns", "subject", "words"),
    [
        (slice(70, 74), slice(78, 82), "left_ventricular_cavity", "in the left ventricular cavity"),
        (slice(22, 25), slice(78, 82), "myocardium", "in the myocardium"),
        (
            slice(28, 34),
            slice(78, 82),
            "left_ventricular_cavity",
            "between the left ventricular cavity and the myocardium",
        ),
        (slice(118, 122), slice(78, 82), "left_atrium", "in the left atrium"),
    ],
)
def test_a_hole_is_found_wherever_it_is(rows, columns, subject, words):
    label_map = make_heart()
    label_map[rows, columns] = 0
    assert ("hole", subject) in codes(label_map)
    assert any(words in p.message for p in check_anatomy(label_map, (1.0, 1.0)))


def test_a_breach_of_the_wall_is_a_second_opening():
    label_map = make_heart()
    breach = label_map[60:68, :80]
    breach[breach == 2] = 0
    found = codes(label_map)
    assert ("opening", "left_ventricular_cavity") in found
    assert "is open in 2 places" in next(p.message for p in check_anatomy(label_map, (1.0, 1.0)) if p.code == "opening")


def test_a_cavity_without_opening_is_closed():
    label_map = make_heart()
    label_map[98:101, 60:100] = 2
    assert ("closed", "left_ventricular_cavity") in codes(label_map)


def test_an_atrium_that_is_not_beyond_the_base_is_found():
    label_map = make_heart()
    label_map[label_map == 3] = 0
    label_map[60:90, 110:140] = 3  # beside the ventricle
    found = codes(label_map, ranges={})
    assert ("order", "left_atrium") in found and ("apart", "left_atrium") in found


def test_an_atrium_that_lies_apart_is_found():
    label_map = make_heart()
    label_map[100:108][label_map[100:108] == 3] = 0
    (problem,) = check_anatomy(label_map, (1.0, 1.0))
    assert problem.code == "apart" and "7.6 mm away" in problem.message
    near = make_heart()
    near[100:102][near[100:102] == 3] = 0  # thin leaflets between them
    assert codes(near) == []


@pytest.mark.parametrize(
    ("scale", "names"),
    [(0.4, {"cavity_area_mm2", "cavity_length_mm"}), (2.0, {"cavity_length_mm", "wall_thickness_mm"})],
)
def test_a_heart_of_impossible_size_is_out_of_range(scale, names):
    problems = check_anatomy(make_heart(), (scale, scale))
    out = {p.subject for p in problems if p.code == "range"}
    assert {p.code for p in problems} == {"range"} and names & out


def test_a_range_problem_tells_numbers_and_unit():
    (problem,) = check_anatomy(make_heart(), (1.0, 1.0), {"cavity_length_mm": (90.0, 100.0)})
    assert problem.code == "range"
    assert problem.message == "length of the cavity from base to apex is 69 mm; expected 90 to 100"


def test_upside_down_is_out_of_the_range_of_tilt():
    assert ("range", "axis_tilt_deg") in codes(make_heart()[::-1])


def test_the_sector_cuts_off_too_much():
    label_map = make_heart()
    sector = np.ones(label_map.shape, bool)
    assert codes(label_map, sector=sector) == []
    sector[:, :75] = False
    found = check_anatomy(label_map, (1.0, 1.0), sector=sector)
    assert {p.subject for p in found} == {"left_ventricular_cavity", "myocardium", "left_atrium"}
    assert any("of the left atrium lies outside the sector; expected at most 25%" in p.message for p in found)


# ---- ranges


def test_ranges_hold_what_they_were_taken_from_and_widen_with_few_maps():
    measures = [examine_anatomy(make_heart(), (s, s))[1] for s in np.linspace(0.9, 1.1, 40)]
    ranges = anatomy_ranges(measures)
    assert set(ranges) == set(MEASURES)
    assert all(low <= m[name] <= high for m in measures for name, (low, high) in ranges.items())
    assert check_anatomy(make_heart(), (1.5, 1.5), ranges) != []
    low, high = anatomy_ranges(measures[::10])["cavity_length_mm"]
    assert low < ranges["cavity_length_mm"][0] and high > ranges["cavity_length_mm"][1]
    assert low > 0


def test_a_known_range():
    values = [{"cavity_length_mm": 50.0}] * 2 + [{"cavity_length_mm": 100.0}] * 2
    low, high = anatomy_ranges(values, tail=0.0, margin=0.5)["cavity_length_mm"]
    # in the logarithm: half of log 2, and 0.5 * 2 / sqrt(4)
    assert low == pytest.approx(50 / 2**0.5 / np.exp(0.5)) and high == pytest.approx(100 * 2**0.5 * np.exp(0.5))


def test_adult_ranges_name_all_measures():
    assert set(ADULT_RANGES) == set(MEASURES) and all(low < high for low, high in ADULT_RANGES.values())


# ---- bad input


@pytest.mark.parametrize(
    ("label_map", "spacing_mm", "options", "message"),
    [
        (np.zeros((2, 3, 4), int), (1, 1), {}, r"expected a label map \(H, W\), got shape \(2, 3, 4\)"),
        (np.full((3, 3), 4), (1, 1), {}, r"expected the classes 0..3 as integers, got \[4\]"),
        (np.full((3, 3), -1), (1, 1), {}, r"got \[-1\]"),
        (np.full((3, 3), 0.5), (1, 1), {}, r"as integers, got \[0.5\]"),
        (np.zeros((3, 3), int), (1, 0), {}, "two positive millimetres"),
        (np.zeros((3, 3), int), (1,), {}, "two positive millimetres"),
        (np.zeros((3, 3), int), (1, 1), {"ranges": {"length": (0, 1)}}, "ranges has length; the measures are"),
        (np.zeros((3, 3), int), (1, 1), {"sector": np.ones((3, 4))}, r"\(3, 3\) but sector is \(3, 4\)"),
    ],
)
def test_bad_input_is_refused(label_map, spacing_mm, options, message):
    with pytest.raises(ValueError, match=message):
        check_anatomy(label_map, spacing_mm, **options)
    with pytest.raises(ValueError, match="no label maps"):
        anatomy_ranges([])


def test_examining_gives_problems_and_measures_at_once():
    problems, measures = examine_anatomy(make_heart(), (1.0, 1.0))
    assert problems == [] and set(measures) == set(MEASURES)
