"""Test agreement against published examples, closed forms and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from synboost_monai.evaluation.agreement import STATISTICS, agreement, intraclass_correlation

SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
"""Six subjects, four raters (Shrout and Fleiss 1979, table 2)."""


def mean_squares(ratings: np.ndarray) -> tuple[float, float, float]:
    """Return the mean squares of subjects, raters and residual."""
    n, k = ratings.shape
    total = ((ratings - ratings.mean()) ** 2).sum()
    subjects = k * ((ratings.mean(axis=1) - ratings.mean()) ** 2).sum()
    raters = n * ((ratings.mean(axis=0) - ratings.mean()) ** 2).sum()
    return subjects / (n - 1), raters / (k - 1), (total - subjects - raters) / ((n - 1) * (k - 1))


def test_intraclass_correlation_of_the_published_example():
    found = intraclass_correlation(SHROUT_FLEISS)
    assert found["icc"] == pytest.approx(0.29, abs=0.005)
    # the interval as R's psych::ICC documents it
    assert found["icc_low"] == pytest.approx(0.019, abs=0.0005)
    assert found["icc_high"] == pytest.approx(0.761, abs=0.0005)


def test_intraclass_correlation_is_that_of_its_mean_squares():
    ratings = np.random.default_rng(0).normal(50, 10, (12, 1)) + np.random.default_rng(1).normal(2, 4, (12, 2))
    n, k = ratings.shape
    b, j, e = mean_squares(ratings)
    found = intraclass_correlation(ratings)
    assert found["icc"] == pytest.approx((b - e) / (b + (k - 1) * e + k * (j - e) / n), rel=1e-12)
    assert found["icc_low"] < found["icc"] < found["icc_high"]


def test_a_constant_difference_lowers_absolute_agreement_but_not_the_correlation():
    a = np.array([40.0, 50.0, 55.0, 62.0, 70.0])
    same, shifted = agreement(a, a), agreement(a + 10, a)
    assert (same["icc"], same["icc_low"], same["icc_high"], same["bias"], same["mae"]) == (1, 1, 1, 0, 0)
    assert shifted["pearson_r"] == pytest.approx(1)
    variance = a.var(ddof=1)
    assert shifted["icc"] == pytest.approx(variance / (variance + 50))  # raters' variance: 10^2 / 2
    # the limit of a residual that vanishes
    noise = 1e-5 * np.array([1, -1, 0, 1, -1])
    nearly = agreement(a + 10 + noise, a)
    assert [shifted[k] for k in ("icc_low", "icc_high")] == pytest.approx(
        [nearly[k] for k in ("icc_low", "icc_high")], rel=1e-3
    )


def test_limits_of_agreement_and_their_intervals_by_hand():
    a, b = np.array([10.0, 12.0, 9.0, 14.0, 11.0]), np.array([9.0, 13.0, 9.0, 11.0, 10.0])
    found = agreement(a, b)
    assert list(found) == list(STATISTICS)
    differences = np.array([1, -1, 0, 3, 1])
    s, t = differences.std(ddof=1), stats.t.ppf(0.975, 4)
    assert found["num_pairs"] == 5
    assert found["bias"] == pytest.approx(0.8)
    assert found["mae"] == pytest.approx(6 / 5)
    assert found["std_difference"] == pytest.approx(s)
    interval = stats.ttest_1samp(differences, 0).confidence_interval()
    assert (found["bias_low"], found["bias_high"]) == pytest.approx((interval.low, interval.high))
    assert found["lower_limit"] == pytest.approx(0.8 - 1.96 * s, abs=1e-3)
    assert found["upper_limit"] == pytest.approx(0.8 + 1.96 * s, abs=1e-3)
    half = t * s * math.sqrt(1 / 5 + 1.96**2 / (2 * 4))
    assert found["upper_limit_high"] - found["upper_limit"] == pytest.approx(half, abs=1e-3)
    assert found["lower_limit"] - found["lower_limit_low"] == pytest.approx(half, abs=1e-3)
    assert found["pearson_r"] == pytest.approx(stats.pearsonr(a, b).statistic)


def test_interval_is_finite_where_f_is_not():
    """Predictions that fall where the experts' values rise leave the F distribution a hundredth of a degree of freedom."""
    ratings = np.array([[-6.65721, 41.3481], [18.2011, 18.2596], [-13.6932, 52.3498]])
    found = intraclass_correlation(ratings)
    n, k = ratings.shape
    _, of_raters, residual = mean_squares(ratings)
    limit = -n * residual / (k * of_raters + (k * n - k - n) * residual)
    assert found["icc_low"] == pytest.approx(limit, rel=1e-6)
    assert found["icc_low"] < found["icc"] < 0


def test_what_is_undefined_is_none_and_never_nan():
    assert agreement([], []) == dict.fromkeys(STATISTICS) | {"num_pairs": 0}
    two = agreement([1.0, 2.0], [1.5, 1.0])
    assert {k: v for k, v in two.items() if v is not None} == {"num_pairs": 2, "bias": 0.25, "mae": 0.75}
    constant = agreement([5.0, 5.0, 5.0], [1.0, 2.0, 3.0])
    assert constant["pearson_r"] is None and constant["std_difference"] == pytest.approx(1)
    assert agreement([5.0] * 4, [4.0] * 4)["icc"] is None
    assert intraclass_correlation([[1.0], [2.0], [3.0]])["icc"] is None
    for found in (two, constant):
        assert not any(isinstance(v, float) and math.isnan(v) for v in found.values())


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="equally many numbers, got shapes"):
        agreement([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="leave out pairs of which one is missing"):
        agreement([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="finite numbers"):
        intraclass_correlation([[1.0, math.inf], [2.0, 3.0]])
