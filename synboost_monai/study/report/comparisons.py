"""Compare strategies, paired by image and structure, with the published tests and with tests over patients."""

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
"""Strategies that are compared, and the alternative tested: the first two as in the paper; each direction was fixed beforehand."""
METRICS = ("dice", "hd95_mm")
"""Metrics that are compared."""
MAX_COMPARISONS, NUM_RESAMPLES, FEW_RESAMPLES = 60, 10000, 1000
"""With more than MAX_COMPARISONS comparisons each bootstrap takes FEW_RESAMPLES, so that the report takes only minutes."""

AGAINST_REAL = (
    "Against real: percentage points, paired by image and structure; interval: bootstrap of patients. p: one-sided Wilcoxon test of "
    "patients’ means, whether better (real images and others) or worse (no real ones) than real; Holm’s correction over the tests of this "
    "table."
)
"""Note of tables with the columns of `Differences.against_real`."""
AGAINST_REAL_JOINED = {"difference": "{difference} [{low}, {high}]", "patient_p": "{tested}: {patient_p}"}
"""Column -> pattern in which it is shown."""


@dataclass(frozen=True)
class Difference:
    """Hold one comparison: of two strategies in a setting, or of two settings of a strategy."""

    setting: Setting
    first: str
    second: str
    record: Mapping[str, Any]
    """Record of `compare_pairs`, shares in percent; and run_low, run_high, the lowest and highest difference of a single seed and fold."""


@dataclass(frozen=True)
class Differences:
    """Hold all comparisons of a study."""

    found: list[Difference]
    problems: list[str]
    """Reasons why some comparisons could not be made."""
    num_resamples: int

    def against_real(self, settings: Sequence[Setting]) -> dict[tuple[Setting, str], dict[str, Any]]:
        """Return (setting, strategy) -> difference of its mean Dice from that of real.

        The entries are difference, low, high, tested (better or worse than real) and patient_p, the p of the one-sided Wilcoxon test over
        patients, with Holm's correction over these tests alone: one family per table.
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
    """Compare every pair of `PAIRS` in every setting."""
    wanted = [
        (setting, pair[:2], pair[2], (group[pair[0]], group[pair[1]]))
        for setting, group in run.groups.items()
        for pair in PAIRS
        if pair[0] in group and pair[1] in group
    ]
    return _compare(run, wanted, NUM_RESAMPLES if len(wanted) <= MAX_COMPARISONS else FEW_RESAMPLES, METRICS)


def compare_encoders(run: Run, num_resamples: int) -> Differences:
    """Compare trained with frozen encoders, for each strategy in otherwise equal settings; two-sided, Dice."""
    wanted = []
    for setting, group in run.groups.items():
        of_frozen = run.groups.get(replace(setting, frozen=True), {})
        if not setting.frozen:
            both = [s for s in group if s in of_frozen and s != "simulated"]  # which is not trained by the study
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
    """Apply `compare_pairs` to the mean results of two groups of runs, over the seeds and folds that both have.

    Each metric is averaged over the runs before it is compared, so that an image counts once; run_low and run_high are the lowest and
    highest difference of a single seed and fold.

    Raises:
        ValueError: if the groups share no seed and fold, or are not of the same images.
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
    """Compare both sides of each setting, names, alternative and evaluations; comparisons that fail become problems."""
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
    """Return (metric, structure) -> difference of one seed and fold, over the rows that are defined in both."""
    sides = [_in_percent(e.frame).set_index(["case", "structure"])[list(metrics)] for e in (a, b)]
    difference = sides[0] - sides[1]
    of_structures = difference.groupby(level="structure").mean()
    found = {(m, str(s)): float(value) for m in metrics for s, value in of_structures[m].items()}
    return found | {(m, OVERALL): float(difference[m].mean()) for m in metrics}


def _with_holm(found: Sequence[Difference]) -> list[Difference]:
    """Correct over all tests of a metric, separately for all structures together and for single structures: one family per table."""
    records = add_holm([d.record for d in found], lambda r: (r["metric"], r["structure"] == OVERALL))
    return [Difference(d.setting, d.first, d.second, record) for d, record in zip(found, records)]
