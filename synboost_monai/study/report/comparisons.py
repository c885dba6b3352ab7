"""Strategies compared, paired by image and structure, with the published tests and those that repeated images of a patient demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from synboost_monai.evaluation.statistics import OVERALL, add_holm, compare_pairs
from synboost_monai.pages.words import STRATEGY_TITLES
from synboost_monai.study.report.evaluations import Evaluation, Run, Setting

PAIRS = (
    ("real", "synthetic", "greater"),
    ("synthetic_then_real", "real", "greater"),
    ("real_and_synthetic", "real", "greater"),
    ("synthetic_then_real", "synthetic", "greater"),
    ("synthetic_then_real", "real_and_synthetic", "two-sided"),
    ("real", "simulated", "greater"),
    ("simulated_then_real", "real", "greater"),
    ("simulated_then_real", "simulated", "greater"),
    ("simulated_then_real", "synthetic_then_real", "two-sided"),
    ("simulated", "synthetic", "two-sided"),
)
"""Strategies that are compared, and what is tested: the first two as the paper did; each direction is fixed beforehand."""
METRICS = ("dice", "hd95_mm")
"""Metrics that are compared."""
MAX_COMPARISONS, NUM_RESAMPLES, FEW_RESAMPLES = 60, 10000, 1000
"""Of more comparisons each bootstrap takes fewer resamples, so that the report stays a matter of minutes."""

AGAINST_REAL = (
    "Against real: percentage points, paired by image and structure; interval: bootstrap of patients. p: one-sided Wilcoxon test of "
    "patients’ means, whether better (real images and others) or worse (no real ones) than real; Holm’s correction over the tests of this "
    "table."
)
"""Note of tables with the columns of `Differences.against_real`."""
AGAINST_REAL_JOINED = {"difference": "{difference} [{low}, {high}]", "patient_p": "{tested}: {patient_p}"}
"""How they are shown."""


@dataclass(frozen=True)
class Difference:
    """One comparison: of two strategies in a setting, or of two settings of a strategy."""

    setting: Setting
    first: str
    second: str
    record: Mapping[str, Any]
    """Of `compare_pairs`, shares in percent; and run_low, run_high, the lowest and highest difference of a single seed and fold."""


@dataclass(frozen=True)
class Differences:
    """All comparisons of a study."""

    found: list[Difference]
    problems: list[str]
    """Why some could not be made."""
    num_resamples: int

    def against_real(self, settings: Sequence[Setting]) -> dict[tuple[Setting, str], dict[str, Any]]:
        """(setting, strategy) -> its mean Dice less that of real: difference, low, high, tested (better or worse than real), patient_p.

        p is of the one-sided Wilcoxon test over patients, with Holm's correction over these tests alone: one family a table.
        """
        chosen = [d for d in self.found if d.setting in settings and "real" in (d.first, d.second)]
        chosen = [d for d in chosen if (d.record["metric"], d.record["structure"]) == ("dice", OVERALL)]
        found = {}
        for d, record in zip(chosen, add_holm([d.record for d in chosen])):
            is_first = d.second == "real"
            sign = 1 if is_first else -1
            ends = [record["ci_low"], record["ci_high"]]
            low, high = ends if None in ends else sorted(sign * end for end in ends)
            found[d.setting, d.first if is_first else d.second] = {
                "difference": sign * record["difference"],
                "low": low,
                "high": high,
                "tested": "better" if is_first else "worse",
                "patient_p": record["patient_wilcoxon_p_holm"],
            }
        return found


def compare_strategies(run: Run) -> Differences:
    """Every pair of `PAIRS` in every setting."""
    wanted = [
        (setting, pair[:2], pair[2], (group[pair[0]], group[pair[1]]))
        for setting, group in run.groups.items()
        for pair in PAIRS
        if pair[0] in group and pair[1] in group
    ]
    return _compare(run, wanted, NUM_RESAMPLES if len(wanted) <= MAX_COMPARISONS else FEW_RESAMPLES, METRICS)


def compare_encoders(run: Run, num_resamples: int) -> Differences:
    """Encoders trained less frozen, of each strategy and otherwise equal setting; two-sided, Dice."""
    wanted = []
    for setting, group in run.groups.items():
        of_frozen = run.groups.get(replace(setting, frozen=True), {})
        if not setting.frozen:
            both = [s for s in group if s in of_frozen and s != "simulated"]  # which is not trained here
            pairs = [(s, (group[s], of_frozen[s])) for s in both]
            wanted += [(setting, (s, s), "two-sided", pair) for s, pair in pairs]
    return _compare(run, wanted, num_resamples, ("dice",))


def compare_runs(
    run: Run,
    first: Sequence[Evaluation],
    second: Sequence[Evaluation],
    *,
    alternative: str,
    num_resamples: int,
    metrics: Sequence[str],
) -> list[dict[str, Any]]:
    """`compare_pairs` of what two groups of runs give on average, over the seeds and folds that both have.

    Each metric is averaged over the runs before it is compared, so that an image counts once; run_low and run_high tell what single seeds
    and folds say.

    Raises:
        ValueError: if they share no seed and fold, or are not of the same images.
    """
    sides = [{(e.segmenter.fold, e.segmenter.seed): e for e in side} for side in (first, second)]
    common = [key for key in sides[0] if key in sides[1]]
    if not common:
        raise ValueError("no seed and fold is evaluated in both")
    pairs = [[side[key] for key in common] for side in sides]
    frames = [_in_percent(run.mean_rows(side)) for side in pairs]
    known = [m for m in metrics if all(frame[m].notna().any() for frame in frames)]
    records = compare_pairs(*frames, metrics=known, alternative=alternative, num_resamples=num_resamples)
    single = [_mean_differences(a, b, known) for a, b in zip(*pairs)]
    for record in records:
        found = [differences[record["metric"], record["structure"]] for differences in single]
        record |= {"run_low": min(found), "run_high": max(found), "num_runs": len(common)}
    return records


# ---- helpers


def _compare(
    run: Run,
    wanted: Sequence[tuple[Setting, tuple[str, str], str, tuple[Sequence[Evaluation], Sequence[Evaluation]]]],
    num_resamples: int,
    metrics: Sequence[str],
) -> Differences:
    """Comparisons of setting, names of both sides, alternative and evaluations of both sides; those that fail are told."""
    found, problems = [], []
    for setting, (first, second), alternative, pair in wanted:
        try:
            records = compare_runs(run, *pair, alternative=alternative, num_resamples=num_resamples, metrics=metrics)
            found += [Difference(setting, first, second, record) for record in records]
        except ValueError as error:
            against = f"{STRATEGY_TITLES[first]} against {STRATEGY_TITLES[second]}" if first != second else first
            problems.append(f"{run.title(setting)}: {against}: {error}")
    return Differences(_with_holm(found), problems, num_resamples)


def _in_percent(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(dice=100 * frame["dice"])


def _mean_differences(a: Evaluation, b: Evaluation, metrics: Sequence[str]) -> dict[tuple[str, str], float]:
    """(metric, structure) -> difference of one seed and fold, over the rows that are defined in both."""
    sides = [_in_percent(e.frame).set_index(["case", "structure"])[list(metrics)] for e in (a, b)]
    difference = sides[0] - sides[1]
    of_structures = difference.groupby(level="structure").mean()
    found = {(m, str(s)): float(value) for m in metrics for s, value in of_structures[m].items()}
    return found | {(m, OVERALL): float(difference[m].mean()) for m in metrics}


def _with_holm(found: Sequence[Difference]) -> list[Difference]:
    """Corrected over all tests of a metric over all structures, and over all of single structures: one family a table."""
    records = add_holm([d.record for d in found], lambda r: (r["metric"], r["structure"] == OVERALL))
    return [Difference(d.setting, d.first, d.second, record) for d, record in zip(found, records)]
