"""Test the phantom's hearts: label maps, and volumes recomputed from them."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from synboost_monai.heart.geometry import fill_polygon
from synboost_monai.simulation.phantom import draw_phantom_patient
from synboost_monai.simulation.phantom_anatomy import PatientAnatomy, draw_label_map
from synboost_monai.simulation.phantom_ultrasound import sector_width

HEIGHT = 256
NUMBERS = range(1, 9)
EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


@functools.cache
def anatomy(number: int) -> PatientAnatomy:
    return draw_phantom_patient(3, number).anatomy


@functools.cache
def label_map(number: int, view: str, systole: float) -> NDArray[np.uint8]:
    patient = anatomy(number)
    shape = (HEIGHT, sector_width(HEIGHT, patient.half_angle))
    return draw_label_map(patient.views[view].contours(systole), patient.depth_mm, shape, patient.depth_mm / HEIGHT)


def all_label_maps() -> list[NDArray[np.uint8]]:
    return [label_map(n, view, systole) for n in NUMBERS for view in ("2CH", "4CH") for systole in (0.0, 1.0)]


def disks(label_map: NDArray[np.uint8], spacing_mm: float, count: int = 40) -> tuple[float, NDArray[np.float64]]:
    """Return length and widths of the cavity in mm, as clinicians take them: axis from the annulus' middle to the far end."""
    cavity = label_map == 1
    points = np.argwhere(cavity) + 0.5
    middle = (np.argwhere(cavity & ndimage.binary_dilation(label_map == 3, iterations=2)) + 0.5).mean(axis=0)
    distance = np.linalg.norm(points - middle, axis=1)
    apex, length = points[distance.argmax()], distance.max()
    t = (points - apex) @ (middle - apex) / length**2
    areas = np.bincount(np.clip((t * count).astype(int), 0, count - 1), minlength=count)
    return length * spacing_mm, areas / (length / count) * spacing_mm


def measured_volume_ml(number: int, systole: float) -> float:
    spacing_mm = anatomy(number).depth_mm / HEIGHT
    (length_2, widths_2), (length_4, widths_4) = (
        disks(label_map(number, view, systole), spacing_mm) for view in ("2CH", "4CH")
    )
    return np.pi / 4 * (length_2 + length_4) / 2 * float(np.mean(widths_2 * widths_4)) / 1000


def test_fill_polygon_of_a_rectangle_worked_out_by_hand() -> None:
    mask = fill_polygon(np.array([0.5, 0.5, 2.5, 2.5]), np.array([1.2, 3.1, 3.1, 1.2]), (4, 5))
    expected = np.zeros((4, 5), bool)
    expected[1:3, 2:4] = True
    np.testing.assert_array_equal(mask, expected)


def test_polygons_that_share_an_edge_share_no_pixel_and_leave_none() -> None:
    rows, columns = np.array([-1.0, -1.0, 9.0, 9.0]), np.array([-1.0, 4.3, 5.7, -1.0])
    left = fill_polygon(rows, columns, (8, 10))
    right = fill_polygon(rows, np.array([10.0, 4.3, 5.7, 10.0]), (8, 10))
    assert not (left & right).any() and (left | right).all()


@pytest.mark.parametrize("number", NUMBERS)
def test_volumes_from_label_maps_are_those_by_construction(number: int) -> None:
    patient = anatomy(number)
    for systole in (0.0, 0.5, 1.0):
        assert measured_volume_ml(number, systole) == pytest.approx(patient.volume_ml(systole), rel=0.03)
    measured = 100 * (1 - measured_volume_ml(number, 1.0) / measured_volume_ml(number, 0.0))
    assert measured == pytest.approx(patient.ejection_fraction, abs=1.0)


def test_ejection_fraction_is_exact_and_varied() -> None:
    fractions = []
    for number in range(1, 31):
        patient = anatomy(number)
        fractions.append(100 * (1 - patient.volume_ml(1.0) / patient.volume_ml(0.0)))
        assert fractions[-1] == pytest.approx(patient.ejection_fraction, abs=1e-9)
    assert min(fractions) < 45 and max(fractions) > 60


def test_hearts_have_the_size_of_adults() -> None:
    end_diastolic = [anatomy(number).volume_ml(0.0) for number in range(1, 31)]
    assert 75 < np.mean(end_diastolic) < 130 and min(end_diastolic) > 40 and max(end_diastolic) < 220
    for number in NUMBERS:
        pixel_cm2 = (anatomy(number).depth_mm / HEIGHT) ** 2 / 100
        for view in ("2CH", "4CH"):
            cavity, wall, atrium = (np.sum(label_map(number, view, 0.0) == c) * pixel_cm2 for c in (1, 2, 3))
            assert 15 < cavity < 50 and 12 < wall < 36 and 5 < atrium < 28


def test_exactly_the_four_classes_each_in_one_piece() -> None:
    for labels in all_label_maps():
        assert set(np.unique(labels)) == {0, 1, 2, 3}
        for class_index in (1, 2, 3):
            assert ndimage.label(labels == class_index)[1] == 1


def test_cavity_touches_wall_and_atrium_alone() -> None:
    for labels in all_label_maps():
        cavity = labels == 1
        rim = labels[ndimage.binary_dilation(cavity, EIGHT_NEIGHBOURS) & ~cavity]
        assert set(np.unique(rim)) == {2, 3}
        assert np.mean(rim == 2) > 0.6  # a horseshoe, open at the mitral valve


def test_wall_is_a_horseshoe_open_downwards_with_the_atrium_below() -> None:
    for labels in all_label_maps():
        rows = [np.nonzero((labels == c).any(axis=1))[0] for c in (1, 2, 3)]
        assert rows[1][0] < rows[0][0]  # wall above the apex
        assert rows[2][-1] > rows[0][-1]  # atrium below
        assert not ndimage.binary_fill_holes(labels == 2)[labels == 1].any()


def test_cavity_is_in_the_sector_and_some_anatomy_is_cut() -> None:
    num_wall_cut = num_atrium_cut = 0
    for number in range(1, 21):
        patient = anatomy(number)
        spacing_mm = patient.depth_mm / HEIGHT
        for view in ("2CH", "4CH"):
            labels = label_map(number, view, 0.0)
            y = (np.arange(HEIGHT)[:, None] + 0.5) * spacing_mm
            x = (np.arange(labels.shape[1])[None] + 0.5 - labels.shape[1] / 2) * spacing_mm
            outside = (np.hypot(x, y) > patient.depth_mm) | (np.abs(np.arctan2(x, y)) > patient.half_angle)
            assert not (outside & (labels == 1)).any()
            num_wall_cut += bool((outside & (labels == 2)).any())
            atrium_bottom = patient.views[view].contours(0.0).left_atrium
            num_atrium_cut += bool((np.hypot(*atrium_bottom.T) > patient.depth_mm).any())
    assert 5 <= num_wall_cut < 40 and 3 <= num_atrium_cut < 40


def test_ventricle_shrinks_and_wall_thickens_from_frame_to_frame() -> None:
    view = anatomy(1).views["4CH"]
    frames = [view.contours(systole) for systole in np.linspace(0, 1, 6)]
    assert (np.diff([anatomy(1).volume_ml(systole) for systole in np.linspace(0, 1, 6)]) < 0).all()
    assert (np.diff([frame.wall.thickness.mean() for frame in frames]) > 0).all()
    steps = [np.linalg.norm(b.cavity - a.cavity, axis=1).max() for a, b in zip(frames, frames[1:], strict=False)]
    assert max(steps) < 6  # mm a fifth of the way: no jump
