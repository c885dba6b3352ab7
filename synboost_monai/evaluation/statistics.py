"""Compute statistics of evaluated runs: the published paired tests, and patient-level tests and intervals beside them.

The published tests treat every row (a structure of an image) as independent. The twelve rows of one patient are not independent: they
share the heart, the machine and the examiner, so p-values are too small and intervals too narrow. This module adds tests on means of
patients, and intervals from a bootstrap that draws whole patients.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from synboost_monai.structures import STRUCTURES

OVERALL = "overall"
"""Name for all structures together, beside the names of the structures."""
SMALLER_IS_BETTER = ("hd_mm", "hd95_mm", "asd_mm", "hausdorff_512")
"""Distances, for which a run is better where its values are smaller; for every other metric larger is better."""
ALTERNATIVES = ("greater", "less", "two-sided")
"""Alternatives of a test to "no difference", in scipy's words."""
P_VALUES = ("wilcoxon_p", "t_p", "patient_wilcoxon_p", "patient_t_p")
"""p-values in a record of `compare_pairs`; each also occurs with `_holm`."""

_ENDS = np.array([(1 - 0.95) / 2, (1 + 0.95) / 2])  # quantile levels of a 95 % interval
_DECIMALS = 10  # of differences: 0.3 - 0.2 and 0.2 - 0.1 are tied, which binary fractions would hide
_FLIPPED = {"greater": "less", "less": "greater", "two-sided": "two-sided"}
_SIGNS = {"greater": "a > b", "less": "a < b", "two-sided": "a != b"}
_KEY = ["case", "structure"]
_UNDEFINED = (
    *("num_patients", "mean_a", "mean_b", "std_a", "std_b", "difference", "std_difference", "ci_low", "ci_high"),
    *P_VALUES,
    *("cohens_dz", "rank_biserial", "hodges_lehmann"),
)

Floats = NDArray[np.float64]


def paired_tests(a: ArrayLike, b: ArrayLike, *, alternative: str = "greater") -> dict[str, Any]:
    """Test the difference a - b of pairs with Wilcoxon's signed-rank test (Wilcoxon 1945) and Student's paired t-test.

    Wilcoxon's test is scipy's: zero differences are left out; p is exact up to 50 differences without ties, otherwise from the normal
    approximation without continuity correction (or over all patterns of signs, for very few differences with ties). This reproduces the
    published p-values.

    Args:
        a, b: (n,), paired.
        alternative: greater (a > b, as published), less or two-sided.
    Returns:
        num_pairs; mean_difference; std_difference (ddof 1, 0 for a single pair); wilcoxon_p, 1 if no pair differs; t_p, 1 if no pair
        differs and None where it is undefined (one pair, or all differences equal).
    Raises:
        ValueError: if the values are not pairs of finite numbers.
    """
    _check_alternative(alternative)
    difference = np.round(_difference(a, b), _DECIMALS)
    std = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    out: dict[str, Any] = {
        "num_pairs": len(difference),
        "mean_difference": float(difference.mean()),
        "std_difference": std,
        "wilcoxon_p": 1.0,
        "t_p": 1.0,
    }
    changed = difference[difference != 0]
    if len(changed):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy < 1.13 warns about few pairs
            out["wilcoxon_p"] = float(stats.wilcoxon(changed, alternative=alternative).pvalue)
        is_defined = len(difference) > 1 and np.ptp(difference) > 0
        out["t_p"] = float(stats.ttest_1samp(difference, 0.0, alternative=alternative).pvalue) if is_defined else None
    return out


def patient_means(frame: pd.DataFrame, value: str) -> pd.Series:
    """Return the mean of a column over each patient's rows, sorted by patient; rows without a value are left out.

    Patients without any value are left out, too.

    Raises:
        ValueError: if a column is missing or a row has no patient.
    """
    for column in (value, "patient"):
        if column not in frame:
            raise ValueError(f"statistics.py: expected a column {column}, got {', '.join(map(str, frame.columns))}")
    num_unknown = int(frame["patient"].isna().sum())
    if num_unknown:
        raise ValueError(f"statistics.py: {num_unknown} rows have no patient; evaluate with a datalist")
    return pd.to_numeric(frame[value]).groupby(frame["patient"]).mean().dropna()


def bootstrap_means(
    values: Sequence[float], clusters: Sequence[Hashable], num_bootstrap: int, seed: int
) -> NDArray[np.float64]:
    """Return means of samples drawn with replacement by cluster, as the images of a patient are not independent.

    Args:
        values: values of the images.
        clusters: patient of each image.
        num_bootstrap: number of samples.
        seed: seed of the drawing.
    Returns:
        (num_bootstrap,).
    """
    if num_bootstrap < 1:
        raise ValueError(f"statistics.py: num_bootstrap is {num_bootstrap}; expected at least 1, such as 2000")
    of_cluster = _codes(clusters)
    totals = np.bincount(of_cluster, weights=np.asarray(values, dtype=np.float64))
    counts = np.bincount(of_cluster)
    drawn = np.random.default_rng(seed).integers(len(counts), size=(num_bootstrap, len(counts)))
    return totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1)


def interval(draws: NDArray[Any]) -> tuple[float, float]:
    """Return the 95 % percentile interval of bootstrap draws."""
    low, high = np.quantile(draws, _ENDS)
    return float(low), float(high)


def draw_by_cluster(clusters: Sequence[Hashable], count: int, seed: int) -> list[int]:
    """Return the indices of `count` images, drawn cluster by cluster in random order, so that a patient's images stay together.

    Args:
        clusters: patient of each image.
        count: number of images; all if there are fewer.
    Returns:
        indices in increasing order.
    """
    of_cluster = _codes(clusters)
    order = np.random.default_rng(seed).permutation(of_cluster.max() + 1)
    drawn = np.concatenate([np.flatnonzero(of_cluster == cluster) for cluster in order])
    return sorted(drawn[:count].tolist())


def cluster_bootstrap(
    values: Sequence[float] | Floats,
    clusters: Sequence[Hashable] | NDArray[Any],
    *,
    num_resamples: int = 10000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return a 95 % confidence interval of the mean over rows when rows come in clusters, such as the images of a patient.

    Clusters are drawn with replacement, as many as there are, each with all its rows (Davison and Hinkley 1997, section 3.8; Field and
    Welsh 2007). The interval is BCa (Efron 1987), with the acceleration from leaving out one cluster at a time. Plain percentiles would
    not do, because differences of Dice are skewed by a few failures. With patients drawn from the published results (CRIS, real and
    synthetic, 95 %, 50 patients), the true mean lay below and above the interval in 1.5 and 3.8 % of samples by percentiles, in 2.0
    and 2.7 % by BCa. With ten patients both are too narrow: they miss in 10 to 18 % of samples.

    Args:
        values: (n,) finite.
        clusters: (n,), the cluster of each value.
        num_resamples: number of samples that are drawn.
        seed: seed of the drawing.
    Returns:
        low, high.
    Raises:
        ValueError: if there are fewer than two clusters, or the arguments do not fit.
    """
    numbers = np.asarray(values, dtype=np.float64)
    names = list(clusters)
    if numbers.ndim != 1 or len(numbers) != len(names):
        raise ValueError(f"statistics.py: {numbers.shape} values do not fit {len(names)} clusters; expected one each")
    if not np.isfinite(numbers).all():
        raise ValueError("statistics.py: values hold NaN or infinity; leave these rows out first")
    if num_resamples < 1:
        raise ValueError(f"statistics.py: expected num_resamples of at least 1, got {num_resamples}")
    codes = pd.factorize(np.array(names, dtype=object))[0]
    counts = np.bincount(codes)
    if len(counts) < 2:
        raise ValueError(f"statistics.py: a cluster bootstrap needs at least two clusters, got {len(counts)}")
    draws = bootstrap_means(numbers, names, num_resamples, seed)  # type: ignore[arg-type]
    totals = np.bincount(codes, weights=numbers)
    left_out = (totals.sum() - totals) / (counts.sum() - counts)
    low, high = np.quantile(draws, _bca_levels(draws, float(numbers.mean()), left_out))
    return float(low), float(high)


def _bca_levels(draws: Floats, estimate: float, left_out: Floats) -> Floats:
    """Return the quantile levels of a BCa interval's ends (Efron 1987, eq. 2.3); plain ones where it is undefined.

    Args:
        left_out: the estimate without each cluster.
    """
    slack = 1e-9 * np.ptp(draws)  # a draw of every cluster once is a tie, except for rounding in its sum
    below = (np.mean(draws < estimate - slack) + np.mean(draws <= estimate + slack)) / 2
    influence = left_out.mean() - left_out
    squares = float(np.sum(influence**2))
    if not 0 < below < 1 or squares <= 1e-20 * estimate**2:  # all clusters are alike
        return _ENDS
    acceleration = float(np.sum(influence**3)) / (6 * squares**1.5)
    bias = stats.norm.ppf(below)
    shifted = bias + stats.norm.ppf(_ENDS)
    scale = 1 - acceleration * shifted
    return np.asarray(stats.norm.cdf(bias + shifted / scale)) if (scale > 0).all() else _ENDS


def holm(p_values: Sequence[float] | Floats) -> Floats:
    """Adjust the p-values of a family of tests so that the chance of any false finding in the family is kept (Holm 1979).

    The i-th smallest of m is multiplied by m - i + 1, is at least the adjusted one before it, and at most 1. The adjustment also holds
    for tests that depend on each other.

    Args:
        p_values: (m,), in [0, 1].
    Returns:
        (m,), in the same order.
    Raises:
        ValueError: if a value is not a number in [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"statistics.py: p-values must be numbers in [0, 1], got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def effect_sizes(a: ArrayLike, b: ArrayLike) -> dict[str, float | None]:
    """Return the size of the difference a - b of pairs, whatever their number.

    Args:
        a, b: (n,), paired. Memory grows with n^2: 6,000 pairs take half a gigabyte.
    Returns:
        cohens_dz: mean over standard deviation of the differences (Cohen 1988, section 2.3.5); None if they do not vary.
        rank_biserial: rank-biserial correlation of matched pairs, from -1 to 1: share of the ranks of |a - b| where a > b, minus the
            share where a < b (Kerby 2014); None if no pair differs.
        hodges_lehmann: median of the means of any two differences, each also paired with itself: the shift that belongs to Wilcoxon's
            test (Hodges and Lehmann 1963), in the unit of a.
    Raises:
        ValueError: if the values are not pairs of finite numbers.
    """
    difference = np.round(_difference(a, b), _DECIMALS)
    is_varied = len(difference) > 1 and np.ptp(difference) > 0
    changed = difference[difference != 0]
    rank_biserial = None
    if len(changed):
        ranks = stats.rankdata(np.abs(changed))
        rank_biserial = float(np.sum(ranks * np.sign(changed)) / np.sum(ranks))
    pair_means = np.concatenate([(difference[i:] + difference[i]) / 2 for i in range(len(difference))])
    return {
        "cohens_dz": float(difference.mean() / difference.std(ddof=1)) if is_varied else None,
        "rank_biserial": rank_biserial,
        "hodges_lehmann": float(np.median(pair_means)),
    }


def updates_to_reach(history: pd.DataFrame, dice: float) -> int | None:
    """Return the iteration of the first validation whose mean Dice is at least `dice`; None if there is none.

    Args:
        history: a training's log with columns iteration (updates so far) and val_mean_dice; rows without a validation are left out.
        dice: in [0, 1]; no values are interpolated between validations.
    Raises:
        ValueError: if a column is missing or `dice` is not in [0, 1].
    """
    missing = [c for c in ("iteration", "val_mean_dice") if c not in history]
    if missing:
        raise ValueError(f"statistics.py: the history lacks the columns {', '.join(missing)}; take a training's log")
    if not 0 <= dice <= 1:
        raise ValueError(f"statistics.py: dice must be in [0, 1], got {dice}")
    reached = pd.to_numeric(history["val_mean_dice"]) >= dice
    return int(history.loc[reached, "iteration"].min()) if reached.any() else None


def patients_to_reach(counts: Sequence[int], dice: Sequence[float], level: float) -> str:
    """Return how many labelled patients a learning curve needs for a Dice: `41`; `< 5` or `> 399` beyond the curve's ends.

    Between two counts the Dice is taken as linear in the logarithm of the count; where more patients made it worse, the best Dice so far
    counts.

    Args:
        counts: numbers of patients, increasing.
        dice: mean Dice with so many patients, in the unit of `level`.
        level: the Dice to reach.
    Raises:
        ValueError: if there is no count, the counts do not increase, or there are not as many Dice as counts.
    """
    if not counts or len(counts) != len(dice) or np.any(np.diff(counts) <= 0):
        raise ValueError(
            f"statistics.py: a curve has increasing numbers of patients and a Dice for each, got {list(counts)} and {list(dice)}"
        )
    best = np.maximum.accumulate(np.asarray(dice, dtype=float))
    if level > best[-1]:
        return f"> {counts[-1]}"
    i = int(np.argmax(best >= level))  # the first
    if i == 0:
        return str(counts[0]) if level == best[0] else f"< {counts[0]}"
    share = (level - best[i - 1]) / (best[i] - best[i - 1])
    return str(round(counts[i - 1] * (counts[i] / counts[i - 1]) ** share))


def lowest_tenth(values: Sequence[float]) -> float:
    """Return the mean of the lowest tenth of the values, at least of one of them.

    Raises:
        ValueError: if there are no values.
    """
    if len(values) == 0:
        raise ValueError("statistics.py: the lowest tenth of no values was asked for; give at least one")
    return float(np.sort(np.asarray(values, dtype=float))[: max(1, round(len(values) / 10))].mean())


def compare_pairs(
    frame_a: pd.DataFrame,
    frame_b: pd.DataFrame,
    *,
    metrics: Sequence[str],
    alternative: str = "greater",
    num_resamples: int = 10000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Compare two runs over the same images, paired by case and structure: tests, intervals and effect sizes.

    Each structure and overall has a record. A row where either run's value is undefined is left out and counted. Patient-level tests
    compare each patient's means over the remaining rows. The family of Holm's correction is all tests of one metric, here each structure
    and overall: whoever looks at several metrics for one that differs must correct over these too (`add_holm` does it for several runs).

    Args:
        frame_a, frame_b: results of `per_case.read_metrics`; patients may be known to only one of them, or to neither.
        metrics: columns, such as dice.
        alternative: greater: a is better than b (for `SMALLER_IS_BETTER` the tests then ask whether a < b); less: a is worse; two-sided.
        num_resamples, seed: number of samples and seed of the bootstrap.
    Returns:
        a record for each metric and structure (`OVERALL` last): metric, structure, better (larger or smaller), tested (such as
        `a < b`), num_pairs, num_left_out, num_patients, mean_a, std_a, mean_b, std_b (ddof 1), difference (a - b), std_difference,
        ci_low, ci_high (95 %, of the difference), `P_VALUES` and each with `_holm`, num_family, cohens_dz, rank_biserial,
        hodges_lehmann. Values that need patients are None where patients are unknown or fewer than two; all values but counts are
        None where no pair is defined.
    Raises:
        ValueError: if the runs are not of the same cases and structures, or a run has no value of a metric.
    """
    _check_alternative(alternative)
    pairs = _paired(frame_a, frame_b, metrics)
    known = list(dict.fromkeys(pairs["structure"]))
    ordered = [s.name for s in STRUCTURES if s.name in known]
    groups = [*ordered, *(name for name in known if name not in ordered), OVERALL]
    records = []
    for metric in metrics:
        for side, which in (("a", "first"), ("b", "second")):
            if pairs[f"{metric}_{side}"].isna().all():
                raise ValueError(
                    f"statistics.py: the {which} run has no value of {metric}; leave it out or evaluate the run again"
                )
        for structure in groups:
            part = pairs if structure == OVERALL else pairs[pairs["structure"] == structure]
            numbers = _compare(part, metric, alternative, num_resamples, seed)
            records.append({"metric": metric, "structure": structure, **numbers})
    return add_holm(records)


def add_holm(
    records: Sequence[Mapping[str, Any]], family: Callable[[Mapping[str, Any]], Hashable] = lambda r: r["metric"]
) -> list[dict[str, Any]]:
    """Return records with each of `P_VALUES` adjusted over its family (`holm`), and num_family, the number of tests in it.

    Args:
        records: records of `compare_pairs`, of one comparison or several; a p-value that is None stays None and does not count.
        family: function that returns a record's family; by default all tests of one metric.
    """
    out = [dict(record) for record in records]
    for name in dict.fromkeys(map(family, out)):
        members = [record for record in out if family(record) == name]
        for key in P_VALUES:
            tested = [record for record in members if record[key] is not None]
            for record in members:
                record[f"{key}_holm"] = None
            for record, adjusted in zip(tested, holm([record[key] for record in tested])):
                record[f"{key}_holm"] = float(adjusted)
        for record in members:
            record["num_family"] = sum(r["wilcoxon_p"] is not None for r in members)
    return out


# ---- helpers


def _codes(names: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return the number of each name, in the order in which different names first occur."""
    place = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([place[name] for name in names])


def _check_alternative(alternative: str) -> None:
    if alternative not in ALTERNATIVES:
        raise ValueError(f"statistics.py: alternative must be one of {', '.join(ALTERNATIVES)}, got {alternative!r}")


def _difference(a: ArrayLike, b: ArrayLike) -> Floats:
    """Return a - b of pairs, (n,), checked."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(f"statistics.py: expected pairs, got values of shapes {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("statistics.py: pairs hold NaN or infinity; leave out the pairs that are undefined first")
    return first - second


def _paired(frame_a: pd.DataFrame, frame_b: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Return the rows of both runs joined: case, structure, patient, METRIC_a, METRIC_b."""
    for which, frame in (("first", frame_a), ("second", frame_b)):
        missing = [c for c in [*_KEY, *metrics] if c not in frame]
        if missing:
            raise ValueError(f"statistics.py: the {which} run has no column {', '.join(missing)}")
        twice = frame[frame.duplicated(_KEY)]
        if len(twice):
            raise ValueError(
                f"statistics.py: the {which} run has more than one row of {_names(twice)}; compare single evaluations"
            )
    joined = frame_a.merge(frame_b, on=_KEY, how="outer", suffixes=("_a", "_b"), indicator=True, sort=True)
    gaps = [
        f"the {which} run lacks {_names(joined[joined['_merge'] == side])}"
        for which, side in (("first", "right_only"), ("second", "left_only"))
        if (joined["_merge"] == side).any()
    ]
    if gaps:
        raise ValueError(
            f"statistics.py: {'; '.join(gaps)}; runs are compared on the same images: evaluate both on one section"
        )
    pairs = joined[_KEY].copy()
    pairs["patient"] = _patients(joined)
    for metric in metrics:
        for side in "ab":
            pairs[f"{metric}_{side}"] = pd.to_numeric(joined[f"{metric}_{side}"])
    return pairs


def _patients(joined: pd.DataFrame) -> pd.Series | None:
    """Return the patient of each pair; None if neither run knows the patients."""
    known = [joined[c] for c in ("patient_a", "patient_b", "patient") if c in joined and joined[c].notna().any()]
    if not known:
        return None
    first, last = known[0], known[-1]
    wrong = joined[first.notna() & last.notna() & (first.astype(str) != last.astype(str))]
    if len(wrong):
        raise ValueError(
            f"statistics.py: the runs name different patients for {_names(wrong)}; are they of one data set?"
        )
    patients = first.fillna(last)
    if patients.isna().any():
        raise ValueError(
            f"statistics.py: no run tells the patient of {_names(joined[patients.isna()])}; name all patients or none"
        )
    return patients.astype(str)


def _names(rows: pd.DataFrame) -> str:
    """Return case and structure of the first rows, and the number of further ones."""
    first = [f"{case} {structure}" for case, structure in rows[_KEY].head(3).itertuples(index=False)]
    return ", ".join(first) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")


def _compare(pairs: pd.DataFrame, metric: str, alternative: str, num_resamples: int, seed: int) -> dict[str, Any]:
    """Return one record of `compare_pairs` without the values that Holm's correction adds."""
    is_smaller = metric in SMALLER_IS_BETTER
    tested = _FLIPPED[alternative] if is_smaller else alternative
    part = pairs.dropna(subset=[f"{metric}_a", f"{metric}_b"])
    head = {
        "better": "smaller" if is_smaller else "larger",
        "tested": _SIGNS[tested],
        "num_left_out": len(pairs) - len(part),
    }
    if part.empty:
        return {**dict.fromkeys(_UNDEFINED), **head, "num_pairs": 0}
    a, b = (part[f"{metric}_{side}"].to_numpy(dtype=np.float64) for side in "ab")
    record = {
        **dict.fromkeys(_UNDEFINED),
        **head,
        "mean_a": float(a.mean()),
        "mean_b": float(b.mean()),
        "std_a": float(a.std(ddof=1)) if len(a) > 1 else 0.0,
        "std_b": float(b.std(ddof=1)) if len(b) > 1 else 0.0,
        **paired_tests(a, b, alternative=tested),
        **effect_sizes(a, b),
    }
    record["difference"] = record.pop("mean_difference")
    if part["patient"].isna().all():
        return record
    means = [patient_means(part, f"{metric}_{side}") for side in "ab"]
    record["num_patients"] = len(means[0])
    if len(means[0]) > 1:
        of_patients = paired_tests(*means, alternative=tested)
        record |= {f"patient_{key}": of_patients[key] for key in ("wilcoxon_p", "t_p")}
        ends = cluster_bootstrap(a - b, part["patient"].tolist(), num_resamples=num_resamples, seed=seed)
        record["ci_low"], record["ci_high"] = ends
    return record
