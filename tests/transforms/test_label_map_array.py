"""Test perturbation, sector and sector label map."""

import numpy as np
import pytest

from synboost_monai.transforms.label_map_array import (
    DrawnPerturbation,
    LabelMapPerturbation,
    apply_perturbation,
    colour_sector_label_map,
    default_sector_mask,
    displacement_field,
    sector_label_map,
    sector_mask,
)

NO_ELASTIC = np.zeros((2, 10, 10))


def drawn(**changes) -> DrawnPerturbation:
    numbers = dict(rotation_deg=0.0, translation=(0.0, 0.0), scale=1.0, shear_deg=0.0, control_points=NO_ELASTIC)
    return DrawnPerturbation(**{**numbers, **changes})


@pytest.fixture
def heart() -> np.ndarray:
    """Draw a heart (64, 64) with four classes."""
    row, column = np.mgrid[:64, :64]
    label_map = np.zeros((64, 64), np.uint8)
    label_map[((row - 28) / 17) ** 2 + ((column - 32) / 11) ** 2 < 1] = 2
    label_map[((row - 28) / 13) ** 2 + ((column - 32) / 7) ** 2 < 1] = 1
    label_map[((row - 49) / 6) ** 2 + ((column - 32) / 8) ** 2 < 1] = 3
    return label_map


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


# ---- perturbation


def test_nothing_drawn_changes_nothing(heart):
    np.testing.assert_array_equal(apply_perturbation(heart, drawn()), heart)


def test_translation_moves_right_and_down(heart):
    moved = apply_perturbation(heart, drawn(translation=(0.125, 0.25)))  # 8 columns, 16 rows of 64
    np.testing.assert_array_equal(moved[16:, 8:], heart[:-16, :-8])
    assert not moved[:16].any() and not moved[:, :8].any()


def test_positive_rotation_is_clockwise():
    label_map = np.zeros((9, 9), np.uint8)
    label_map[0, 4] = 1  # top centre
    turned = apply_perturbation(label_map, drawn(rotation_deg=90.0))
    assert turned[4, 8] == 1 and turned.sum() == 1  # right centre


def test_scale_changes_the_area_by_its_square(heart):
    half = apply_perturbation(heart, drawn(scale=0.8))
    assert (half > 0).sum() / (heart > 0).sum() == pytest.approx(0.64, rel=0.03)


def test_shear_leans_rows_against_each_other():
    column_line = np.zeros((33, 33), np.uint8)
    column_line[:, 16] = 1
    sheared = apply_perturbation(column_line, drawn(shear_deg=45.0))  # x -> x - y tan(45 deg) around the centre
    np.testing.assert_array_equal(sheared, np.fliplr(np.eye(33, dtype=np.uint8)))


def test_bspline_value_worked_out_by_hand():
    control_points = np.zeros((2, 5, 5))
    control_points[0, 2, 2] = 0.3  # down
    field = displacement_field((3, 3), control_points)
    assert field[0, 1, 1] == pytest.approx(0.3 * 3 * (2 / 3) ** 2)  # a cubic B-spline is 2/3 at its knot
    assert np.all(field[1] == 0)


def test_equal_control_points_move_all_pixels_alike():
    field = displacement_field((20, 30), np.full((2, 10, 10), 0.1))
    np.testing.assert_allclose(field[0], 2.0)  # 0.1 of 20 rows
    np.testing.assert_allclose(field[1], 3.0)


def test_outermost_control_points_stay_put_by_default():
    w = LabelMapPerturbation().draw(3).control_points
    assert not w[:, [0, -1]].any() and not w[:, :, [0, -1]].any()
    assert np.all(w[:, 1:-1, 1:-1] != 0)


def test_three_locked_rings_fix_the_image_border():
    control_points = LabelMapPerturbation(locked_borders=3).draw(3).control_points
    field = displacement_field((256, 256), control_points)
    border = np.concatenate([field[:, [0, -1]].ravel(), field[:, :, [0, -1]].ravel()])
    assert np.abs(border).max() < 1e-3  # px; pixel centres lie half a pixel within the border
    assert np.abs(field).max() > 3


@pytest.mark.parametrize("seed", range(5))
def test_elastic_displacement_stays_within_30_px_at_256(seed):
    field = displacement_field((256, 256), LabelMapPerturbation().draw(seed).control_points)
    assert 3 < np.abs(field).max() <= 30


def test_displacement_scales_with_the_image():
    control_points = LabelMapPerturbation().draw(0).control_points
    small, large = displacement_field((32, 32), control_points), displacement_field((96, 96), control_points)
    np.testing.assert_allclose(large[:, 1::3, 1::3], 3 * small, rtol=1e-9, atol=1e-9)


def test_draws_cover_the_published_ranges():
    draws = [LabelMapPerturbation().draw(seed) for seed in range(300)]
    ranges = {
        "rotation_deg": (-5, 5),
        "scale": (0.8, 1.05),
        "shear_deg": (-5, 5),
    }
    for name, (low, high) in ranges.items():
        values = [getattr(draw, name) for draw in draws]
        assert low <= min(values) < low + 0.05 * (high - low) and high >= max(values) > high - 0.05 * (high - low)
    assert {draw.translation[0] for draw in draws} == {0.0}
    assert 0.045 < max(draw.translation[1] for draw in draws) <= 0.05
    assert 0.99 * 30 / 256 < max(np.abs(draw.control_points).max() for draw in draws) <= 30 / 256


def test_seed_fixes_the_perturbation(heart):
    perturbation = LabelMapPerturbation()
    once, again, other = perturbation(heart, 7), perturbation(heart, 7), perturbation(heart, 8)
    np.testing.assert_array_equal(once, again)
    assert (once != other).any() and (once != heart).any()


def test_strength_zero_changes_nothing(heart):
    for seed in range(5):
        np.testing.assert_array_equal(LabelMapPerturbation(strength=0)(heart, seed), heart)


def test_strength_scales_one_deformation():
    whole, half = LabelMapPerturbation().draw(3), LabelMapPerturbation(strength=0.5).draw(3)
    assert half.rotation_deg == whole.rotation_deg / 2 and half.shear_deg == whole.shear_deg / 2
    assert half.translation == (whole.translation[0] / 2, whole.translation[1] / 2)
    assert half.scale - 1 == pytest.approx((whole.scale - 1) / 2)
    np.testing.assert_array_equal(half.control_points, whole.control_points / 2)


def test_strength_one_is_what_is_drawn():
    generator = np.random.default_rng(11)  # the order of the draws is part of every published seed
    drawn_numbers = [generator.uniform(-5, 5), generator.uniform(0, 0), generator.uniform(-0.05, 0.05)]
    drawn_numbers += [generator.uniform(0.8, 1.05), generator.uniform(-5, 5)]
    draw = LabelMapPerturbation().draw(11)
    assert [draw.rotation_deg, *draw.translation, draw.scale, draw.shear_deg] == drawn_numbers


@pytest.mark.parametrize("strength", [-0.1, 5.0, float("nan")])
def test_senseless_strength_is_refused(strength):
    with pytest.raises(ValueError, match=r"strength \(perturbation_strength\) is .* at least 0 and below 5"):
        LabelMapPerturbation(strength=strength)


def test_only_known_classes_come_out(heart):
    for seed in range(20):
        perturbed = LabelMapPerturbation()(heart, seed)
        assert perturbed.dtype == heart.dtype and perturbed.shape == heart.shape
        assert set(np.unique(perturbed)) <= {0, 1, 2, 3}
        assert {1, 2, 3} <= set(np.unique(perturbed))


def test_description_is_plain_json_numbers():
    assert drawn().describe() == {
        "rotation_deg": 0.0,
        "translation": [0.0, 0.0],
        "scale": 1.0,
        "shear_deg": 0.0,
        "largest_control_point_displacement": 0.0,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_control_points": (10, 3)}, "at least 4"), ({"scale_range": (1.2, 0.8)}, "lowest <= highest")],
)
def test_impossible_ranges_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LabelMapPerturbation(**arguments)


# ---- sector


@pytest.fixture
def fan() -> np.ndarray:
    """Return a sector that fills an image of (120, 146)."""
    return default_sector_mask((120, 146))


def test_default_sector_is_a_fan_from_the_top_centre(fan):
    assert np.flatnonzero(fan[1]).tolist() == [72, 73]  # the apex itself is narrower than a pixel
    np.testing.assert_array_equal(fan, fan[:, ::-1])
    radius = 120
    assert fan.sum() == pytest.approx(np.deg2rad(37.2) * radius**2, rel=0.01)  # area of a circular sector: angle r^2
    assert not fan[-1, 0] and not fan[-1, -1] and fan[-1, 73]


def test_default_sector_follows_the_spacing():
    wide = default_sector_mask((120, 73), spacing_mm=(1.0, 2.0))
    assert wide.sum() * 2 == pytest.approx(default_sector_mask((120, 146)).sum(), rel=0.02)


def test_sector_is_found_despite_cavities_dropout_and_text(fan):
    generator = np.random.default_rng(0)
    image = np.where(fan, generator.integers(1, 200, fan.shape), 0)
    image[50:90, 60:85] = 0  # a black cavity
    image[generator.random(fan.shape) < 0.3] = 0  # dark speckle
    image[4:10, 4:40] = 255 * (generator.random((6, 36)) < 0.5)  # burnt-in text
    image[110:116, 130:142] = 255
    assert dice(sector_mask(image), fan) > 0.98


def test_sector_of_a_full_fan_is_exact(fan):
    np.testing.assert_array_equal(sector_mask(fan.astype(np.uint8) * 9), fan)


def test_threshold_ignores_a_dark_grey_surround(fan):
    image = np.where(fan, 80, 3)
    np.testing.assert_array_equal(sector_mask(image, threshold=5), fan)


def test_black_image_has_no_sector():
    with pytest.raises(ValueError, match="no pixel of the .* image is brighter than 0"):
        sector_mask(np.zeros((8, 8)))


# ---- sector label map


def test_sector_label_map_recodes_and_cuts():
    label_map = np.array([[0, 1, 2, 3], [0, 1, 2, 3]])
    sector = np.array([[True] * 4, [False] * 4])
    np.testing.assert_array_equal(sector_label_map(label_map, sector), [[2, 1, 3, 4], [0, 0, 0, 0]])


def test_fifth_class_is_refused():
    with pytest.raises(ValueError, match=r"classes 0..3, the label map also has \[4, 7\]"):
        sector_label_map(np.array([[0, 4, 7]]), np.ones((1, 3), bool))


def test_other_shape_is_refused():
    with pytest.raises(ValueError, match=r"label map is \(2, 2\) but sector is \(3, 2\)"):
        sector_label_map(np.zeros((2, 2)), np.ones((3, 2), bool))


def test_colours_tell_the_classes_apart():
    colours = colour_sector_label_map(np.arange(5)[None])
    assert colours.shape == (1, 5, 3) and len(np.unique(colours[0], axis=0)) == 5
    assert not colours[0, 0].any()
