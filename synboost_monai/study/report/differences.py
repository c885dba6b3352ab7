"""Compare strategies, paired by image and structure, with the published tests and with tests over patients; show the differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from synboost_monai.evaluation.statistics import OVERALL, add_holm, compare_pairs
from synboost_monai.pages.blocks import Block, Fold, Plot, ReportTable, Section, Text, folded
from synboost_monai.pages.figures import DPI, WIDTH, draw_grid, new_figure, png_of
from synboost_monai.pages.tables import Table
from synboost_monai.pages.words import STRATEGY_COLOURS, STRATEGY_MARKERS, STRATEGY_TITLES
from synboost_monai.study.report.evaluations import Evaluation, Run, Setting
from synboost_monai.study.report.scores import HEADINGS, TITLES, numbers

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
    ("pseudo_labelled", "real", "greater"),
    ("simulated_then_pseudo_labelled", "simulated_then_real", "greater"),
    ("simulated_then_pseudo_labelled", "real", "greater"),
    ("synthetic_unlabelled", "real", "greater"),
    ("synthetic_unlabelled", "pseudo_labelled", "two-sided"),
    ("simulated_then_synthetic_unlabelled", "simulated_then_pseudo_labelled", "greater"),
    ("simulated_then_translated", "simulated_then_pseudo_labelled", "greater"),
    ("adapted", "simulated", "greater"),
    ("adapted", "real", "greater"),
    ("adapted_then_real", "real", "greater"),
    ("adapted_then_real", "adapted", "greater"),
    ("adapted_then_real", "simulated_then_real", "greater"),
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
AGAINST_REAL_HEADINGS = {"difference": "against real [95 %]", "patient_p": "p (patients, Holm)"}
AGAINST_REAL_FORMATS = {**dict.fromkeys(("difference", "low", "high"), "+.2f"), "patient_p": ".2g"}
AGAINST_REAL_JOINED = {"difference": "{difference} [{low}, {high}]", "patient_p": "{tested}: {patient_p}"}
"""Headings, formats and joined cells of these columns."""
NOT_COMPARED = dict.fromkeys(("difference", "low", "high", "tested", "patient_p"))
"""These columns of a strategy that is not compared with real, such as real itself."""
MAX_ENCODER_ROWS = 16
"""Largest number of rows of the table of frozen encoders that is not folded."""
MAX_SHOWN = 24
"""Largest number of rows of the plot; if there are more, it has only the shown settings."""
HIDDEN = ("mean_a", "mean_b", "tested", "rank_biserial", "num_pairs")
"""Columns that only the CSV has, because they would make the tables too wide for a page."""

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
_JOINED = {"difference": "{difference} [{ci_low}, {ci_high}]", "run_low": "{run_low} to {run_high}"}
_SIGNS = {"a > b": "first > second", "a < b": "first < second", "a != b": "first ≠ second"}


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


def section(run: Run, differences: Differences) -> Section | None:
    """Return tables and a plot of the differences; None if no strategies can be compared."""
    if not differences.found and not differences.problems:
        return None
    blocks: list[Block] = []
    overall = [d for d in differences.found if d.record["structure"] == OVERALL]
    dice = [d for d in overall if d.record["metric"] == "dice"]
    if dice:
        in_plot = dice if len(dice) <= MAX_SHOWN else [d for d in dice if d.setting in run.shown_settings]
        caption = "Difference of mean Dice in percentage points; bars: 95 %, bootstrap of patients; ticks: lowest and highest seed or fold."
        caption += "" if in_plot is dice else f" Only {' and '.join(run.title(s) for s in run.shown_settings)}."
        alt = "Differences of strategies with intervals; the numbers are in the table."
        blocks.append(Plot(_plot(run, in_plot), alt, caption))
        table = _table(run, "differences", "Differences of mean Dice between strategies", dice, differences)
        blocks += [folded(f"All {len(dice)} differences", table), Text(_words(run), is_soft=True)]
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
        blocks.append(folded("Encoders trained against frozen", _encoder_table(run, rows), MAX_ENCODER_ROWS))
    blocks += [Text(f"Not compared: {problem}") for problem in [*differences.problems, *encoders.problems]]
    return Section("differences", "Differences of strategies", blocks)


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
    return [replace(d, record=record) for d, record in zip(found, records)]


def _table(run: Run, name: str, title: str, found: Sequence[Difference], differences: Differences) -> ReportTable:
    """Return a table with one row per comparison."""
    rows = []
    for d in found:
        names = {"first": STRATEGY_TITLES[d.first], "second": STRATEGY_TITLES[d.second]}
        row: dict[str, Any] = {**run.cells(d.setting), **names}
        if d.record["structure"] != OVERALL:
            row["structure"] = d.record["structure"].replace("_", " ")
        row |= {key: d.record[key] for key in _NUMBERS}
        rows.append(row | {"tested": _SIGNS[d.record["tested"]], "num_pairs": d.record["num_pairs"]})
    by = run.cell_names
    order = [*by, "first", "second", *(["structure"] if "structure" in rows[0] else [])]
    frame = numbers(pd.DataFrame(rows)[[*order, *_COLUMNS]], _NUMBERS)
    joined = dict(_JOINED)
    if not run.has_repetitions:
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
    by = [c for c in ("model", "patients") if c in frame]
    return ReportTable(table, {"difference": _JOINED["difference"]}, groups=by)


def _plot(run: Run, found: Sequence[Difference]) -> bytes:
    """Draw differences of mean Dice with their intervals, one line each, in a panel for each pair."""
    pairs = list(dict.fromkeys((d.first, d.second) for d in found))
    settings = [s for s in run.groups if any(d.setting == s for d in found)]
    columns = min(3, len(pairs))
    num_rows = -(-len(pairs) // columns)
    figure = new_figure(WIDTH, num_rows * (1.0 + 0.34 * len(settings)), DPI)
    panels = figure.subplots(num_rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, pair in zip(panels, pairs):
        for d in (d for d in found if (d.first, d.second) == pair):
            y, r = settings.index(d.setting), d.record
            colour = STRATEGY_COLOURS[d.first]
            if r["ci_low"] is not None:
                panel.plot([r["ci_low"], r["ci_high"]], [y, y], color=colour, lw=2.5, solid_capstyle="butt")
            if r["num_runs"] > 1:
                panel.plot([r["run_low"], r["run_high"]], [y, y], "|", color="black", ms=7, mew=1)
            panel.plot(r["difference"], y, STRATEGY_MARKERS[d.first], color=colour, ms=7, mec="black", mew=0.6)
        panel.axvline(0, color="black", lw=0.8)
        first, second = (STRATEGY_TITLES[s] for s in pair)
        panel.set_title(f"{first}\nless {second}", fontsize=9.5)
        panel.set_yticks(range(len(settings)), [run.title(s) for s in settings], fontsize=8.5)
        panel.set_ylim(len(settings) - 0.4, -0.6)
        draw_grid(panel, "x")
    for panel in panels[len(pairs) :]:
        panel.set_visible(False)
    for i in range(max(0, len(pairs) - columns), len(pairs)):
        panels[i].tick_params(labelbottom=True)
        panels[i].set_xlabel("Dice, percentage points", fontsize=9)
    return png_of(figure)


def _words(run: Run) -> str:
    """Explain how to read the tests."""
    text = (
        "Each pair is one structure of one image in both trainings. The p-values over masks are one-sided Wilcoxon signed-rank and "
        "t-tests as published; they take the masks of one patient as independent, which they are not, and so are too small. Those "
        "over patients compare patients’ means, and Holm’s correction is for looking at so many. Directions are fixed beforehand: is "
        "the first better than the second? The two mixtures alone are compared two-sided. The CSV has the means and rank-biserial "
        "correlations too."
    )
    if run.has_repetitions:
        text += (
            " Metrics are averaged over seeds and folds first, so that an image counts once; the tests then speak of these very trainings, "
            "and “by run” shows how much a seed or fold changes the difference."
        )
    return text
