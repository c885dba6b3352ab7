"""Measure how well two measurements of the same quantity agree: bias, limits of agreement, error, correlation, intraclass correlation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

MIN_PAIRS = 3
"""Fewest pairs for which a deviation, a correlation or an interval is computed."""
UPPER_TAIL = 0.975
"""Upper end of every interval (`_low`, `_high`), which holds 95 %."""
STATISTICS = (
    "num_pairs",
    "bias",
    "bias_low",
    "bias_high",
    "std_difference",
    "lower_limit",
    "lower_limit_low",
    "lower_limit_high",
    "upper_limit",
    "upper_limit_low",
    "upper_limit_high",
    "mae",
    "pearson_r",
    "icc",
    "icc_low",
    "icc_high",
)
"""Keys of the result of `agreement`."""


def agreement(first: ArrayLike, second: ArrayLike) -> dict[str, Any]:
    """Return the agreement of pairs of measurements, such as predicted and expert.

    - bias: mean of first - second; its interval is Student's.
    - lower_limit, upper_limit: bias -+ 1.96 std_difference, between which 95 % of the differences are expected (Bland and Altman,
      Lancet 1986;1:307-310). Their intervals are Student's with the variance (1 / n + 1.96^2 / (2 (n - 1))) std_difference^2 (Bland
      and Altman, Stat Methods Med Res 1999;8:135-160).
    - mae: mean absolute difference. pearson_r: correlation. icc: `intraclass_correlation`.

    Args:
        first, second: (n,), finite.
    Returns:
        `STATISTICS`. Undefined values are None: with fewer than `MIN_PAIRS` pairs everything but num_pairs, bias and mae (these two
        only if there is no pair at all), and a correlation where one side does not vary.
    Raises:
        ValueError: if the lengths differ or a value is not finite.
    """
    a, b = _checked_pairs(first, second)
    found: dict[str, Any] = dict.fromkeys(STATISTICS)
    n = found["num_pairs"] = len(a)
    if n == 0:
        return found
    difference = a - b
    bias = found["bias"] = float(difference.mean())
    found["mae"] = float(np.abs(difference).mean())
    if n < MIN_PAIRS:
        return found
    std = found["std_difference"] = float(difference.std(ddof=1))
    z = float(stats.norm.ppf(UPPER_TAIL))  # 1.96
    quantile = float(stats.t.ppf(UPPER_TAIL, n - 1))
    limit_half_width = quantile * std * math.sqrt(1 / n + z**2 / (2 * (n - 1)))
    for name, value, half_width in (
        ("bias", bias, quantile * std / math.sqrt(n)),
        ("lower_limit", bias - z * std, limit_half_width),
        ("upper_limit", bias + z * std, limit_half_width),
    ):
        found |= {name: value, f"{name}_low": value - half_width, f"{name}_high": value + half_width}
    found["pearson_r"] = _pearson_r(a, b)
    found |= intraclass_correlation(np.stack([a, b], axis=1))
    return found


def intraclass_correlation(ratings: ArrayLike) -> dict[str, float | None]:
    """Return ICC(2,1): two-way random effects, absolute agreement, a single rater (Shrout and Fleiss, Psychol Bull 1979;86:420-428).

    With the mean squares of subjects (B), raters (J) and residual (E), n subjects and k raters:

        ICC(2,1) = (B - E) / (B + (k - 1) E + k (J - E) / n)

    The interval is that of the same paper, from the F distribution.

    Args:
        ratings: (n, k), one row per subject, one column per rater; finite.
    Returns:
        icc, icc_low, icc_high; None with fewer than `MIN_PAIRS` subjects or 2 raters, or if no rater's ratings vary.
    Raises:
        ValueError: if `ratings` is not (n, k) or a value is not finite.
    """
    x = np.asarray(ratings, dtype=np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"agreement.py: ratings must be finite numbers (subjects, raters), got shape {x.shape}")
    n, k = x.shape
    nothing: dict[str, float | None] = {"icc": None, "icc_low": None, "icc_high": None}
    if n < MIN_PAIRS or k < 2 or not np.ptp(x, axis=0).any():
        return nothing
    x = x - x.mean()
    subjects, raters = x.mean(axis=1), x.mean(axis=0)
    between = k * float(subjects @ subjects) / (n - 1)
    of_raters = n * float(raters @ raters) / (k - 1)
    residual = float(((x - subjects[:, None] - raters) ** 2).sum()) / ((n - 1) * (k - 1))
    denominator = between + (k - 1) * residual + k * (of_raters - residual) / n
    if not denominator > 0:
        return nothing
    icc = (between - residual) / denominator
    low, high = _icc_interval(icc, between, of_raters, residual, n, k)
    return {"icc": icc, "icc_low": low, "icc_high": high}


def _icc_interval(icc: float, between: float, of_raters: float, residual: float, n: int, k: int) -> tuple[float, float]:
    """Return the interval of ICC(2,1) from its mean squares."""
    if between + of_raters + residual == between:  # all raters give the same ratings
        return icc, icc
    if residual <= 1e-12 * of_raters:  # they differ by a constant: the limit of what follows
        degrees = float(k - 1)
    else:
        ratio = of_raters / residual
        spread = n * (1 + (k - 1) * icc) - k * icc
        degrees = (k - 1) * (n - 1) * (k * icc * ratio + spread) ** 2
        degrees /= (n - 1) * k**2 * icc**2 * ratio**2 + spread**2
    f_low = float(stats.f.ppf(UPPER_TAIL, n - 1, degrees))
    f_high = float(stats.f.ppf(UPPER_TAIL, degrees, n - 1))
    rest = k * of_raters + (k * n - k - n) * residual
    part = between / f_low  # 0 where few degrees of freedom make F infinite
    low = n * (part - residual) / (rest + n * part)
    high = n * (f_high * between - residual) / (rest + n * f_high * between)
    return low, high


def _pearson_r(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Return the correlation; None if one side does not vary."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    r = float(stats.pearsonr(a, b).statistic)
    return r if math.isfinite(r) else None


def _checked_pairs(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both sides as float64, (n,)."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(
            f"agreement.py: expected two lists of equally many numbers, got shapes {a.shape} and {b.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("agreement.py: expected finite numbers; leave out pairs of which one is missing")
    return a, b
