"""Show the differences of strategies: tables, a plot, and how to read the tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from synboost_monai.evaluation.statistics import OVERALL
from synboost_monai.pages.blocks import Block, Fold, Plot, ReportTable, Section, Text
from synboost_monai.pages.tables import Table
from synboost_monai.pages.words import STRATEGY_TITLES
from synboost_monai.study.report import plots
from synboost_monai.study.report.comparisons import Difference, Differences, compare_encoders
from synboost_monai.study.report.evaluations import Run
from synboost_monai.study.report.scores import HEADINGS, MAX_ROWS, TITLES, numbers

MAX_ENCODER_ROWS = 16
"""Largest number of rows of the table of frozen encoders that is not folded."""
MAX_SHOWN = 24
"""Largest number of rows of the plot; if there are more, it has only the shown settings."""

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
"""Columns that only the CSV has, because they would make the tables too wide for a page."""
_JOINED = {"difference": "{difference} [{ci_low}, {ci_high}]", "run_low": "{run_low} to {run_high}"}
_SIGNS = {"a > b": "first > second", "a < b": "first < second", "a != b": "first ≠ second"}


def section(run: Run, differences: Differences) -> Section | None:
    """Return tables and a plot of the differences; None if no strategies can be compared."""
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


def _table(run: Run, name: str, title: str, found: Sequence[Difference], differences: Differences) -> ReportTable:
    """Return a table with one row per comparison."""
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
    """Return the table of trained against frozen encoders."""
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
    """Explain how to read the tests."""
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
