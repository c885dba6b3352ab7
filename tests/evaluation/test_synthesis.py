"""Test distances between sets of images against MONAI's, closed forms and numbers worked out by hand."""

from itertools import combinations

import numpy as np
import pytest
import torch
from monai.metrics import MMDMetric, MultiScaleSSIMMetric
from scipy import linalg

from synboost_monai.evaluation.synthesis import (
    MS_SSIM_WEIGHTS,
    frechet_distance,
    median_distance,
    memorisation,
    mmd_chance_level,
    mmd_squared,
    ms_ssim,
    nearest,
)


def gaussian(seed: int, shape: tuple[int, int], mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, shape)


# ---- Fréchet distance


def test_frechet_distance_is_that_of_the_covariances() -> None:
    """The root of the product is that of MONAI's FIDMetric, which calls SciPy in a way that SciPy 1.18 ends."""
    mix = gaussian(0, (6, 6))
    x, y = gaussian(1, (50, 6)) @ mix, gaussian(2, (70, 6), 0.3)
    covariances = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(sum(covariances) - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_one_feature_is_the_closed_form() -> None:
    x, y = gaussian(3, (40, 1)), 2 * gaussian(4, (60, 1), 1.0)
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_fewer_images_than_features_are_exact() -> None:
    """Features that do not vary add nothing, though they make both covariances singular."""
    x, y = gaussian(5, (12, 4)), gaussian(6, (15, 4), 0.5)
    turn = np.linalg.qr(gaussian(7, (30, 30)))[0]
    wide_x, wide_y = (np.pad(z, ((0, 0), (0, 26))) @ turn for z in (x, y))
    assert frechet_distance(wide_x, wide_y) == pytest.approx(frechet_distance(x, y), rel=1e-9)
    assert frechet_distance(wide_x, wide_x) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_falls_with_the_number_of_images() -> None:
    """This is why the floor must have as many images."""
    reference = gaussian(8, (400, 20))
    few, many = (frechet_distance(gaussian(9, (n, 20)), reference) for n in (25, 400))
    assert few > 5 * many


def test_float32_features_are_computed_in_float64() -> None:
    x, y = gaussian(10, (30, 5), 1000.0), gaussian(11, (30, 5), 1000.0)
    low = frechet_distance(x.astype(np.float32), y.astype(np.float32))
    assert low == pytest.approx(frechet_distance(x, y), rel=1e-3)


@pytest.mark.parametrize(
    ("features", "reference", "message"),
    [
        (np.ones((1, 3)), np.ones((5, 3)), "at least 2 images"),
        (np.ones((5, 3)), np.ones((5, 4)), "differ in length"),
        (np.full((5, 3), np.nan), np.ones((5, 3)), "NaN or infinity"),
    ],
)
def test_unsuitable_features_are_refused(features: np.ndarray, reference: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(features, reference)


# ---- maximum mean discrepancy


def test_wide_kernel_is_monais_linear_mmd() -> None:
    """exp(-d^2 / 2b^2) is 1 - d^2 / 2b^2 for wide b, whose mean discrepancy is the linear kernel's / b^2."""
    x, y = gaussian(0, (30, 4)), gaussian(1, (30, 4), 0.5)
    linear = MMDMetric()(torch.from_numpy(y), torch.from_numpy(x)).item()
    assert mmd_squared(x, y, 1e3) * 1e6 == pytest.approx(linear, rel=1e-3)


def test_mmd_by_hand() -> None:
    x, y = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]])
    k = lambda d: np.exp(-(d**2) / 2)  # noqa: E731
    expected = k(1) + k(2) - 2 * (k(0) + k(2) + k(1) + k(1)) / 4
    assert mmd_squared(x, y, 1.0) == pytest.approx(expected)


def test_mmd_in_blocks_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = gaussian(2, (20, 3)), gaussian(3, (33, 3), 0.4)
    whole = mmd_squared(x, y, 2.0)
    monkeypatch.setattr("synboost_monai.evaluation.synthesis._BLOCK", 7)
    assert mmd_squared(x, y, 2.0) == pytest.approx(whole, rel=1e-12)


def test_chance_level_separates_equal_from_different_sets() -> None:
    reference, same, other = gaussian(4, (80, 5)), gaussian(5, (40, 5)), gaussian(6, (40, 5), 1.0)
    width = median_distance(reference)
    level = mmd_chance_level(same, reference, width, seed=0)
    assert mmd_squared(same, reference, width) < level < mmd_squared(other, reference, width) / 5
    draws = [mmd_squared(gaussian(s, (40, 5)), reference, width) for s in range(10, 50)]
    assert np.mean(np.array(draws) < level) > 0.8 and np.mean(draws) == pytest.approx(0, abs=level / 2)
    assert mmd_chance_level(same, reference, width, seed=0) == level


def test_permuted_discrepancy_is_that_of_mmd_squared() -> None:
    """With sets of 1 point against all others every permutation is one of a few: the quantile must be one of them."""
    pool = gaussian(7, (5, 2))
    pairs = [list(pair) for pair in combinations(range(5), 2)]
    values = [mmd_squared(pool[pair], np.delete(pool, pair, axis=0), 1.0) for pair in pairs]
    level = mmd_chance_level(pool[:2], pool[2:], 1.0, seed=0, level=1.0, num_permutations=400)
    assert level == pytest.approx(max(values), rel=1e-9)


def test_bandwidth_is_the_median_distance() -> None:
    assert median_distance(np.array([[0.0], [1.0], [3.0]])) == pytest.approx(2.0)
    many = gaussian(8, (2500, 3))
    assert median_distance(many) == pytest.approx(median_distance(many[:900]), rel=0.05)
    with pytest.raises(ValueError, match="all feature vectors are equal"):
        median_distance(np.ones((4, 2)))


# ---- neighbours


def test_nearest_row_and_its_distance() -> None:
    distances, indices = nearest(np.array([[0.0, 0.0], [9.0, 9.0]]), np.array([[10.0, 10.0], [0.0, 2.0]]))
    np.testing.assert_array_equal(indices, [1, 0])
    np.testing.assert_allclose(distances, [np.sqrt(2), 1.0])  # root mean square


def test_copies_are_found_among_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synboost_monai.evaluation.synthesis._BLOCK", 4)
    reference = gaussian(0, (50, 8), 1e4)
    distances, indices = nearest(reference[[7, 3, 40, 40, 2, 1]], reference)
    np.testing.assert_array_equal(indices, [7, 3, 40, 40, 2, 1])
    np.testing.assert_array_equal(distances, 0)


def test_memorisation_tells_copies_from_new_images() -> None:
    real = np.linspace(1, 2, 101)
    new, copied = memorisation(real, real), memorisation(np.r_[np.zeros(50), np.ones(50) * 1.5], real)
    assert new["ratio"] == 1 and new["share_nearer"] == pytest.approx(0.01, abs=0.005)
    assert copied["share_nearer"] == 0.5 and copied["ratio"] < 1
    assert (new["median_synthetic"], new["median_real"]) == (1.5, 1.5)


# ---- MS-SSIM


@pytest.mark.parametrize("side", [16, 32, 64, 128, 256])
def test_ms_ssim_works_at_every_size(side: int) -> None:
    images = torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ms_ssim(images, images), torch.ones(2), atol=1e-5)
    others = torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(1))
    assert (ms_ssim(images, others) < 0.5).all()
    near = (images + 0.02 * others).clamp(0, 1)
    assert (ms_ssim(images, near) > ms_ssim(images, (images + 0.3 * others).clamp(0, 1))).all()


def test_large_images_have_the_published_scales() -> None:
    pair = torch.rand(2, 1, 1, 192, 192, generator=torch.Generator().manual_seed(2))
    one, other = pair[0], (pair[0] + 0.1 * pair[1]).clamp(0, 1)
    expected = MultiScaleSSIMMetric(spatial_dims=2, data_range=1.0, weights=MS_SSIM_WEIGHTS)(one, other)
    # the published weights sum to 1.0001
    assert ms_ssim(one, other).item() == pytest.approx(expected.item(), rel=1e-4)


def test_too_small_images_are_refused() -> None:
    with pytest.raises(ValueError, match="images are 8 px"):
        ms_ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
