"""Test volumes of ellipsoids at any rotation and spacing, of the phantom's hearts, and of label maps with faults."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad

from synboost_monai.heart.volumes import (
    NUM_DISKS,
    Atrium,
    CannotMeasureError,
    Ventricle,
    area_length_volume_ml,
    camus_volumes_ml,
    disk_volume_ml,
    ejection_fraction,
    length_difference,
    longitudinal_strain,
    measure_atrium,
    measure_epicardium,
    measure_ventricle,
    sphericity_index,
    wall_mass_g,
)
from synboost_monai.simulation.phantom_anatomy import draw_label_map, draw_patient

SPACINGS = [(0.3, 0.3), (0.5, 0.5), (0.3, 0.5), (0.5, 0.31)]


def make_view(
    long_mm: float,
    wide_mm: float,
    spacing_mm: tuple[float, float],
    angle: float = 0.0,
    cut: float = 1.0,
    gap_mm: float = 0.0,
) -> np.ndarray:
    """Draw an ellipse as cavity, cut off at `cut` of its half axis beyond its middle; 10 mm of wall; an atrium at the base.

    The atrium is an ellipse of half axes 17 and 20 mm whose middle lies 15 mm beyond the base. At angle 0 the apex is up.
    """
    half_side = long_mm + 45
    rows, columns = round(2 * half_side / spacing_mm[0]), round(2 * half_side / spacing_mm[1])
    y = (np.arange(rows)[:, None] + 0.5) * spacing_mm[0] - half_side + 0.13
    x = (np.arange(columns)[None, :] + 0.5) * spacing_mm[1] - half_side + 0.21
    turn = math.radians(angle)
    z, w = y * math.cos(turn) + x * math.sin(turn), x * math.cos(turn) - y * math.sin(turn)
    cavity = ((z / long_mm) ** 2 + (w / wide_mm) ** 2 < 1) & (z < cut * long_mm)
    base = (0.97 if cut == 1 else cut) * long_mm
    label_map = np.zeros((rows, columns), np.uint8)
    label_map[((z / (long_mm + 10)) ** 2 + (w / (wide_mm + 10)) ** 2 < 1) & (z < base)] = 2
    label_map[(((z - cut * long_mm - 15) / 17) ** 2 + (w / 20) ** 2 < 1) & (z >= base + gap_mm)] = 3
    label_map[cavity] = 1
    return label_map


def ellipsoid_ml(a: float, b: float, c: float, cut: float = 1.0) -> float:
    """Return the volume of an ellipsoid from one end of its axis c to `cut` c beyond the middle."""
    return math.pi * a * b * c * (2 / 3 + cut - cut**3 / 3) / 1000


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize(
    ("semi_axes", "cut"), [((20, 23, 42), 1.0), ((26, 24, 38), 1.0), ((14, 17, 35), 1.0), ((20, 23, 42), 0.4)]
)
def test_ellipsoid_is_within_one_percent_at_any_rotation(semi_axes, cut, spacing_mm):
    a, b, c = semi_axes
    for angle in (0, 7, 45, 133, 261):
        first, second = (measure_ventricle(make_view(c, wide, spacing_mm, angle, cut), spacing_mm) for wide in (a, b))
        assert disk_volume_ml(first, second) == pytest.approx(ellipsoid_ml(a, b, c, cut), rel=0.01)
        assert disk_volume_ml(first) == pytest.approx(ellipsoid_ml(a, a, c, cut), rel=0.01)
        assert first.length_mm == pytest.approx((1 + cut) * c, rel=0.01)


def test_axis_and_diameters_are_those_of_the_drawing():
    ventricle = measure_ventricle(make_view(40, 20, (0.4, 0.5), cut=0.5), (0.4, 0.5))
    # the middle of the ellipse lies at 85 mm less the drawing's shift, less half a pixel
    np.testing.assert_allclose(ventricle.base_mm, [105 - 0.13 - 0.2, 85 - 0.21 - 0.25], atol=0.3)
    np.testing.assert_allclose(ventricle.apex_mm, [45 - 0.13 - 0.2, 85 - 0.21 - 0.25], atol=0.5)
    height = 60 / NUM_DISKS
    z = 20 - height * (np.arange(NUM_DISKS)[:, None] + (np.arange(100) + 0.5) / 100)  # from the base up
    expected = (2 * 20 * np.sqrt(1 - (z / 40) ** 2)).mean(axis=1)
    np.testing.assert_allclose(ventricle.diameters_mm, expected, atol=0.5)
    begins = 2 * 20 * np.sqrt(1 - ((20 - height * np.arange(NUM_DISKS)) / 40) ** 2)
    np.testing.assert_allclose(ventricle.camus_diameters_mm, begins, atol=0.7)


def test_number_of_disks_hardly_matters(monkeypatch):
    label_map = make_view(42, 22, (0.3, 0.3))
    volume = disk_volume_ml(measure_ventricle(label_map, (0.3, 0.3)))
    monkeypatch.setattr("synboost_monai.heart.volumes.NUM_DISKS", 200)
    assert volume == pytest.approx(disk_volume_ml(measure_ventricle(label_map, (0.3, 0.3))), rel=0.003)


@pytest.mark.parametrize("image_height", [320, 160])
def test_phantom_has_the_ejection_fraction_that_it_was_drawn_with(image_height):
    for seed in range(4):
        patient = draw_patient(np.random.default_rng(seed), is_female=seed % 2 == 0)
        spacing = patient.depth_mm / image_height
        shape = (image_height, int(2 * image_height * math.sin(patient.half_angle)) + 1)
        views = {
            (name, systole): measure_ventricle(
                draw_label_map(view.contours(systole), patient.depth_mm, shape, spacing), (spacing, spacing)
            )
            for name, view in patient.views.items()
            for systole in (0.0, 1.0)
        }
        biplane = [disk_volume_ml(views["2CH", s], views["4CH", s]) for s in (0.0, 1.0)]
        assert biplane == pytest.approx([patient.volume_ml(0.0), patient.volume_ml(1.0)], rel=0.02)
        assert ejection_fraction(*biplane) == pytest.approx(patient.ejection_fraction, abs=1.0)
        for name in patient.views:
            single = [disk_volume_ml(views[name, s]) for s in (0.0, 1.0)]
            assert ejection_fraction(*single) == pytest.approx(patient.ejection_fraction, abs=2.0)


# ---- the rules


def make_ventricle(length_mm: float, diameter_mm: float, camus_mm: float | None = None) -> Ventricle:
    """Draw a cylinder."""
    return Ventricle(
        length_mm,
        np.full(NUM_DISKS, diameter_mm),
        np.full(NUM_DISKS, camus_mm or diameter_mm),
        np.zeros(2),
        np.array([length_mm, 0.0]),
    )


def test_biplane_takes_the_longer_axis_and_both_diameters():
    volume = disk_volume_ml(make_ventricle(80, 40), make_ventricle(90, 50))
    assert volume == pytest.approx(math.pi / 4 * 40 * 50 * 90 / 1000)
    assert disk_volume_ml(make_ventricle(80, 40)) == pytest.approx(math.pi / 4 * 40**2 * 80 / 1000)
    assert length_difference(make_ventricle(80, 40), make_ventricle(100, 40)) == pytest.approx(0.2)


def test_camus_rule_has_one_height_for_both_phases_so_that_shortening_does_not_count():
    diastole = make_ventricle(80, 39, 40), make_ventricle(90, 49, 50)
    systole = make_ventricle(60, 29, 30), make_ventricle(70, 39, 40)
    volumes = camus_volumes_ml(diastole, systole)
    assert volumes == pytest.approx([math.pi / 4 * 40 * 50 * 90 / 1000, math.pi / 4 * 30 * 40 * 90 / 1000])
    assert ejection_fraction(*volumes) == pytest.approx(100 * (1 - 30 * 40 / (40 * 50)))


def test_area_length_takes_the_shorter_length():
    first, second = Atrium(1500.0, 45.0), Atrium(1800.0, 50.0)
    assert area_length_volume_ml(first, second) == pytest.approx(0.85 * 1500 * 1800 / 45 / 1000)
    assert area_length_volume_ml(first) == pytest.approx(0.85 * 1500**2 / 45 / 1000)


def test_ejection_fraction_of_a_growing_ventricle_is_negative():
    assert ejection_fraction(80, 30) == pytest.approx(62.5)
    assert ejection_fraction(80, 100) == pytest.approx(-25)


# ---- the atrium


@pytest.mark.parametrize("angle", [0, 30, 200])
@pytest.mark.parametrize("spacing_mm", [(0.4, 0.4), (0.3, 0.5)])
def test_atrium_has_the_area_and_length_of_the_drawing(angle, spacing_mm):
    atrium = measure_atrium(make_view(42, 22, spacing_mm, angle, cut=0.4), spacing_mm)
    assert atrium.length_mm == pytest.approx(15 + 17, abs=0.6)
    below = (math.acos(15 / 17) - 15 / 17 * math.sqrt(1 - (15 / 17) ** 2)) * 17 * 20  # cut off by the base
    assert atrium.area_mm2 == pytest.approx(math.pi * 17 * 20 - below, rel=0.01)


# ---- label maps of a model


def test_gaps_between_predicted_structures_do_not_move_the_base():
    spacing = (0.4, 0.4)
    whole = make_view(42, 22, spacing, 20, cut=0.4)
    touching = measure_ventricle(whole, spacing)
    apart = make_view(42, 22, spacing, 20, cut=0.4, gap_mm=2.5)
    apart[np.roll(whole == 1, 2, axis=1) & (apart == 2)] = 0  # and two pixels of gap on one side of the wall
    found = measure_ventricle(apart, spacing)
    np.testing.assert_allclose(found.base_mm, touching.base_mm, atol=0.6)
    assert disk_volume_ml(found) == pytest.approx(disk_volume_ml(touching), rel=0.01)


@pytest.mark.parametrize("lost", [2, 3])
def test_base_is_found_without_atrium_or_without_myocardium(lost):
    spacing = (0.4, 0.4)
    whole = make_view(42, 22, spacing, -15, cut=0.4)
    found = measure_ventricle(np.where(whole == lost, 0, whole), spacing)
    np.testing.assert_allclose(found.base_mm, measure_ventricle(whole, spacing).base_mm, atol=0.8)


def test_stray_pieces_change_nothing():
    spacing = (0.5, 0.5)
    label_map = make_view(42, 22, spacing, cut=0.4)
    expected = measure_ventricle(label_map, spacing), measure_atrium(label_map, spacing)
    label_map[2:6, 2:6], label_map[2:6, 10:14], label_map[80:90, 170] = 1, 3, 0
    label_map[100, 172] = 0  # a hole in the cavity
    found = measure_ventricle(label_map, spacing), measure_atrium(label_map, spacing)
    assert disk_volume_ml(found[0]) == pytest.approx(disk_volume_ml(expected[0]), rel=1e-9)
    assert found[1].length_mm == pytest.approx(expected[1].length_mm, rel=1e-9)


def test_a_cavity_at_the_border_of_the_image_is_measured():
    spacing = (0.5, 0.5)
    label_map = make_view(42, 22, spacing, cut=0.4)
    first_row = int(np.flatnonzero((label_map == 1).any(axis=1))[0])
    cropped = measure_ventricle(label_map[first_row:], spacing)
    assert disk_volume_ml(cropped) == pytest.approx(disk_volume_ml(measure_ventricle(label_map, spacing)), rel=1e-6)


@pytest.mark.parametrize(
    ("classes", "spacing_mm", "message"),
    [
        ((0, 0, 2, 3), (0.5, 0.5), "no left ventricular cavity"),
        ((0, 0, 0, 0), (0.5, 0.5), "no left ventricular cavity"),
        ((0, 1, 0, 0), (0.5, 0.5), "neither left atrium nor myocardium"),
        ((2, 1, 2, 2), (0.5, 0.5), "no opening at its base"),
        ((3, 1, 3, 3), (0.5, 0.5), "most of the left ventricular cavity's border is open"),
        ((0, 1, 2, 3), None, "the pixel spacing is not known"),
        ((0, 1, 2, 3), (0.5, 0.0), "the pixel spacing is not two positive numbers"),
    ],
)
def test_what_cannot_be_measured_says_why(classes, spacing_mm, message):
    label_map = np.array(classes, np.uint8)[make_view(42, 22, (0.5, 0.5), cut=0.4)]
    with pytest.raises(CannotMeasureError, match=message):
        measure_ventricle(label_map, spacing_mm)
    with pytest.raises(CannotMeasureError):
        measure_atrium(label_map, spacing_mm)


def test_atrium_of_an_empty_mask_has_no_size():
    label_map = make_view(42, 22, (0.5, 0.5), cut=0.4)
    with pytest.raises(CannotMeasureError, match="no left atrium"):
        measure_atrium(np.where(label_map == 3, 0, label_map), (0.5, 0.5))


def test_a_sliver_beside_the_annulus_is_no_atrium():
    """Area squared over a length near zero would be an arbitrary volume."""
    label_map = make_view(42, 22, (0.5, 0.5), cut=0.4)
    rows = np.flatnonzero((label_map == 3).any(axis=1))
    sliver = np.where((label_map == 3) & (np.arange(len(label_map))[:, None] > rows[0] + 3), 0, label_map)
    with pytest.raises(CannotMeasureError, match="a few pixels only"):
        measure_atrium(sliver, (0.5, 0.5))


def test_a_few_pixels_are_no_ventricle():
    label_map = np.zeros((20, 20), np.uint8)
    label_map[4:9, 5:8], label_map[5:8, 6], label_map[8:12, 4:9] = 2, 1, 3
    with pytest.raises(CannotMeasureError, match="a few pixels only"):
        measure_ventricle(label_map, (0.3, 0.3))


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        (np.zeros((2, 8, 8), np.uint8), "expected a label map"),
        (np.zeros((8, 8)), "of integers, got float64"),
        (np.full((8, 8), 7), r"expected the classes 0..3, got \[7\]"),
    ],
)
def test_what_is_no_label_map_is_refused(label_map, message):
    with pytest.raises(ValueError, match=message):
        measure_ventricle(label_map, (1.0, 1.0))


@pytest.mark.parametrize("angle", [0.0, 33.0, 90.0])
@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_mass_of_a_shell_between_two_ellipsoids(spacing_mm: tuple[float, float], angle: float) -> None:
    """Cavity of half axes 26 x 48 mm within an ellipsoid that is 10 mm larger, both cut off in the plane of the annulus."""
    label_map = make_view(48, 26, spacing_mm, angle, cut=0.8)
    cavity, epicardium = measure_ventricle(label_map, spacing_mm), measure_epicardium(label_map, spacing_mm)
    wall_ml = ellipsoid_ml(36, 36, 58, 0.8 * 48 / 58) - ellipsoid_ml(26, 26, 48, 0.8)
    assert wall_mass_g([cavity], [epicardium]) == pytest.approx(1.05 * wall_ml, rel=0.02)
    assert wall_mass_g([cavity] * 2, [epicardium] * 2) == pytest.approx(wall_mass_g([cavity], [epicardium]))


@pytest.mark.parametrize("angle", [0.0, 33.0, 77.0])
@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_contour_of_an_ellipse_has_its_arc_length(spacing_mm: tuple[float, float], angle: float) -> None:
    cut = 0.932  # where the cavity is as wide as the atrium that hangs there
    arc = 2 * quad(lambda t: math.hypot(26 * math.cos(t), 48 * math.sin(t)), 0, math.acos(-cut))[0]
    found = measure_ventricle(make_view(48, 26, spacing_mm, angle, cut=cut), spacing_mm)
    assert found.contour_mm == pytest.approx(arc, rel=0.015)


def test_strain_is_the_share_by_which_the_contours_shorten() -> None:
    diastole, systole = (replace(make_ventricle(80, 40), contour_mm=length) for length in (200.0, 160.0))
    other = replace(make_ventricle(80, 40), contour_mm=180.0)
    assert longitudinal_strain([diastole], [systole]) == pytest.approx(-20)
    assert longitudinal_strain([diastole, diastole], [systole, other]) == pytest.approx(-15)


def test_sphericity_of_a_ball_is_one() -> None:
    assert sphericity_index(math.pi / 6 * 60**3 / 1000, make_ventricle(50, 1), make_ventricle(60, 1)) == pytest.approx(
        1
    )


def test_a_wall_with_a_large_gap_has_no_mass() -> None:
    label_map = make_view(48, 26, (0.5, 0.5), cut=0.8)
    half = label_map.copy()
    half[:, half.shape[1] // 2 :][half[:, half.shape[1] // 2 :] == 2] = 0
    assert measure_epicardium(label_map, (0.5, 0.5)).length_mm > 80
    with pytest.raises(CannotMeasureError, match="the myocardium does not surround"):
        measure_epicardium(half, (0.5, 0.5))
