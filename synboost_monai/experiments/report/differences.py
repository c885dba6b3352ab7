"""Differences of strategies, paired by image and structure, with the published tests and those that repeated images of a patient demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from synboost_monai.experiments.report import plots
from synboost_monai.experiments.report.blocks import Block, Fold, Plot, ReportTable, Section, Text
from synboost_monai.experiments.report.evaluations import Evaluation, Run, Setting
from synboost_monai.experiments.report.scores import HEADINGS, MAX_ROWS, TITLES, numbers
from synboost_monai.experiments.report.words import STRATEGY_TITLES
from synboost_monai.experiments.tables import Table
from synboost_monai.metrics.statistics import OVERALL, add_holm, compare_pairs

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
MAX_ENCODER_ROWS = 16
"""Longer tables of frozen encoders are folded."""
MAX_SHOWN = 24
"""Rows of the plot; more are cut down to the shown settings."""

AGAINST_REAL = (
    "Against real: percentage points, paired by image and structure; interval: bootstrap of patients. p: one-sided Wilcoxon test of "
    "patients’ means, whether better (real images and others) or worse (no real ones) than real; Holm’s correction over the tests of this "
    "table."
)
"""Note of tables with the columns of `Differences.against_real`."""
AGAINST_REAL_JOINED = {"difference": "{difference} [{low}, {high}]", "patient_p": "{tested}: {patient_p}"}
"""How they are shown."""

_P = ("wilcoxon_p", "t_p", "patient_wilcoxon_p", "patient_wilcoxon_p_holm")
_NUMBERS = (
    *("mean_a", "mean_b", "difference", "ci_low", "ci_high", "run_low", "run_high"),
    *_P,
    *("cohens_dz", "rank_biserial"),
)
_COLUMNS = (
    *("mean_a", "mean_b", "difference", "ci_low", "ci_high", "tested", *_P[2:], "run_low", "run_high", *_P[:2]),
    *("cohens_dz", "rank_biserial", "num_pairs"),
)
_HEADINGS = {
    **HEADINGS,
    "first": "first",
    "second": "second",
    "mean_a": "first mean",
    "mean_b": "second mean",
    "difference": "difference",
    "run_low": "by run",
    "tested": "tested",
    "wilcoxon_p": "masks: Wilcoxon p",
    "t_p": "t-test p",
    "patient_wilcoxon_p": "patients: Wilcoxon p",
    "patient_wilcoxon_p_holm": "Holm",
    "cohens_dz": "Cohen’s dz",
    "rank_biserial": "rank-biserial",
    "num_pairs": "pairs",
}
_FORMATS = {
    **dict.fromkeys(("mean_a", "mean_b"), ".2f"),
    **dict.fromkeys(("difference", "ci_low", "ci_high", "run_low", "run_high", "cohens_dz", "rank_biserial"), "+.2f"),
    **dict.fromkeys(_P, ".2g"),
}
HIDDEN = ("mean_a", "mean_b", "tested", "rank_biserial", "num_pairs")
"""Columns of the CSV alone: what would make the tables too wide for a page."""
_JOINED = {"difference": "{difference} [{ci_low}, {ci_high}]", "run_low": "{run_low} to {run_high}"}
_SIGNS = {"a > b": "first > second", "a < b": "first < second", "a != b": "first ≠ second"}


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


def section(run: Run, differences: Differences) -> Section | None:
    """Tables and a plot of the differences; None with one strategy."""
    blocks: list[Block] = []
    if not differences.found and not differences.problems:
        return None
    overall = [d for d in differences.found if d.record["structure"] == OVERALL]
    dice = [d for d in overall if d.record["metric"] == "dice"]
    if dice:
        in_plot = dice if len(dice) <= MAX_SHOWN else [d for d in dice if d.setting in run.shown_settings]
        caption = "Difference of mean Dice in percentage points; bars: 95 %, bootstrap of patients; ticks: lowest and highest seed or fold."
        caption += "" if in_plot is dice else f" Only {' and '.join(run.title(s) for s in run.shown_settings)}."
        blocks.append(
            Plot(
                plots.differences(run, in_plot),
                "Differences of strategies with intervals; the numbers are in the table.",
                caption,
            )
        )
        table = _table(run, "differences", "Differences of mean Dice between strategies", dice, differences)
        blocks.append(Fold(f"All {len(dice)} differences", [table]) if len(dice) > MAX_ROWS else table)
        blocks.append(Text(_words(run), is_soft=True))
    parts = [d for d in differences.found if d.record["structure"] != OVERALL and d.record["metric"] == "dice"]
    distances = [d for d in overall if d.record["metric"] == "hd95_mm" and d.record["num_pairs"]]
    if parts:
        table = _table(run, "differences_by_structure", "Differences of Dice by structure", parts, differences)
        blocks.append(Fold("By structure", [table]))
    if distances:
        table = _table(run, "differences_hd95", "Differences of mean HD95 between strategies", distances, differences)
        blocks.append(Fold("HD95", [table]))
    encoders = compare_encoders(run, differences.num_resamples)
    if rows := [d for d in encoders.found if d.record["structure"] == OVERALL]:
        table = _encoder_table(run, rows)
        blocks.append(table if len(rows) <= MAX_ENCODER_ROWS else Fold("Encoders trained against frozen", [table]))
    blocks += [Text(f"Not compared: {problem}") for problem in [*differences.problems, *encoders.problems]]
    return Section("differences", "Differences of strategies", blocks)


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


def _table(run: Run, name: str, title: str, found: Sequence[Difference], differences: Differences) -> ReportTable:
    """One row a comparison."""
    rows = []
    for d in found:
        row: dict[str, Any] = {
            **run.cells(d.setting),
            "first": STRATEGY_TITLES[d.first],
            "second": STRATEGY_TITLES[d.second],
        }
        if d.record["structure"] != OVERALL:
            row["structure"] = d.record["structure"].replace("_", " ")
        row |= {key: d.record[key] for key in _NUMBERS}
        rows.append(row | {"tested": _SIGNS[d.record["tested"]], "num_pairs": d.record["num_pairs"]})
    by = list(run.cells(next(iter(run.groups))))
    order = [*by, "first", "second", *(["structure"] if "structure" in rows[0] else [])]
    frame = numbers(pd.DataFrame(rows)[[*order, *_COLUMNS]], _NUMBERS)
    joined = dict(_JOINED)
    if all(len(evaluations) == 1 for group in run.groups.values() for evaluations in group.values()):
        frame, joined = frame.drop(columns=["run_low", "run_high"]), {"difference": _JOINED["difference"]}
    unit = TITLES[found[0].record["metric"]]
    headings = {**_HEADINGS, "difference": f"difference, {unit} [95 %]"}
    note = run.note(
        run.evaluations,
        f"Difference: first less second. Interval: bootstrap of patients (BCa, {differences.num_resamples} resamples, seed 0). "
        f"Holm: of Wilcoxon’s p over patients, over the {found[0].record['num_family']} tests of this table.",
    )
    return ReportTable(Table(name, title, frame, _FORMATS, headings, note), joined, HIDDEN, groups=by)


def _encoder_table(run: Run, found: Sequence[Difference]) -> ReportTable:
    """Encoders trained against frozen."""
    rows = []
    for d in found:
        cells = {key: value for key, value in run.cells(d.setting).items() if key != "encoders"}
        kept = ("mean_a", "mean_b", "difference", "ci_low", "ci_high", *_P[2:], "wilcoxon_p", "cohens_dz")
        rows.append({**cells, "strategy": STRATEGY_TITLES[d.first], **{key: d.record[key] for key in kept}})
    frame = numbers(pd.DataFrame(rows), _NUMBERS)
    headings = {**_HEADINGS, "mean_a": "Dice (%), trained", "mean_b": "frozen", "difference": "difference [95 %]"}
    note = run.note(
        run.evaluations,
        f"Two-sided tests of the mean Dice; Holm over the {found[0].record['num_family']} tests of this table.",
    )
    table = Table("encoders", "Encoders trained against frozen", frame, _FORMATS, headings, note)
    return ReportTable(
        table, {"difference": _JOINED["difference"]}, groups=["model", *(["patients"] if "patients" in frame else [])]
    )


def _words(run: Run) -> str:
    """How to read the tests."""
    text = (
        "Each pair is one structure of one image in both trainings. The p-values over masks are one-sided Wilcoxon signed-rank and "
        "t-tests as published; they take the masks of one patient as independent, which they are not, and so are too small. Those "
        "over patients compare patients’ means, and Holm’s correction is for looking at so many. Directions are fixed beforehand: is "
        "the first better than the second? The two mixtures alone are compared two-sided. The CSV has the means and rank-biserial "
        "correlations too."
    )
    if any(len(evaluations) > 1 for group in run.groups.values() for evaluations in group.values()):
        text += (
            " Metrics are averaged over seeds and folds first, so that an image counts once; the tests then speak of these very trainings, "
            "and “by run” shows how much a seed or fold changes the difference."
        )
    return text
