"""Make tables of results, as in the paper: Dice by strategy, model and prompt; all metrics; by structure; on the paper's grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import stdev
from typing import Any

import pandas as pd

from synboost_monai.evaluation.statistics import OVERALL
from synboost_monai.pages.blocks import Block, Fold, ReportTable, Section, Text, best_rows
from synboost_monai.pages.tables import Table
from synboost_monai.pages.words import STRATEGY_TITLES
from synboost_monai.structures import STRUCTURES
from synboost_monai.study.grid import PROMPT_LEVELS
from synboost_monai.study.report.evaluations import Evaluation, Run, Setting, mean_of

MAX_ROWS = 40
"""Largest number of rows of a table that is not folded."""
PERCENT = {"dice": "dice_percent", "iou": "iou_percent", "dice_512": "dice_512_percent", "iou_512": "iou_512_percent"}
"""Metric that tables show in percent -> its column."""
TITLES = {
    "dice": "Dice (%)",
    "iou": "IoU (%)",
    "hd_mm": "HD (mm)",
    "hd95_mm": "HD95 (mm)",
    "asd_mm": "ASD (mm)",
    "dice_512": "Dice (%)",
    "iou_512": "IoU (%)",
    "hausdorff_512": "HD (px)",
}
"""Metric -> its name and unit."""
SHORT = {"left_ventricular_cavity": "LV", "myocardium": "myocardium", "left_atrium": "LA"}
"""Structure -> its short name in headings."""
HEADINGS = {"model": "model", "strategy": "trained on"}
"""Headings that tables share."""
HOW_TO_READ = (
    "± is the standard deviation (ddof 1) over images and structures, as published. HD95, the 95 % Hausdorff distance, and ASD, the mean "
    "distance of the borders, are over the masks that are not empty; empty masks count as Dice 0 and are counted apart."
)
"""Text under the tables of metrics."""


def section(run: Run) -> Section:
    """Return every table of metrics for which the study has data."""
    blocks: list[Block] = []
    if len({s.prompt for s in run.groups}) > 1:
        blocks.append(prompt_table(run))
    main = metric_table(run)
    by_structure = structure_table(run)
    if len(main.table.frame) > MAX_ROWS:
        blocks.append(Fold(f"Every metric of each of the {len(main.table.frame)} cells", [main]))
    else:
        blocks.append(main)
    blocks.append(Text(_words(run), is_soft=True))
    is_long = len(by_structure.table.frame) > MAX_ROWS
    blocks.append(Fold("By structure", [by_structure]) if is_long else by_structure)
    if (on_paper_grid := paper_grid_table(run)) is not None:
        blocks.append(Fold("On the paper’s grid of 512 × 512 pixels", [on_paper_grid]))
    return Section("results", "Results", blocks)


def prompt_table(run: Run) -> ReportTable:
    """Return the mean Dice as the paper prints it: a row for each strategy and model, a column for each prompt."""
    prompts = [p for p in PROMPT_LEVELS if any(s.prompt == p for s in run.groups)]
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for setting, by_strategy in run.groups.items():
        for strategy, evaluations in by_strategy.items():
            key = (run.strategies.index(strategy), *setting.order(run.models)[:-1])
            cells = {"strategy": STRATEGY_TITLES[strategy], **run.cells(setting)}
            del cells["prompt"]
            row = rows.setdefault(key, {**cells, **{f"{p}{end}": None for p in prompts for end in ("", "_std")}})
            row[setting.prompt] = percent(mean_over(evaluations, "dice_mean"))
            row[f"{setting.prompt}_std"] = percent(mean_over(evaluations, "dice_std"))
    frame = numbers(pd.DataFrame([rows[key] for key in sorted(rows)]), [c for p in prompts for c in (p, f"{p}_std")])
    table = Table(
        "dice_by_prompt",
        "Mean Dice (%) by strategy, model and prompt",
        frame,
        {c: ".2f" for p in prompts for c in (p, f"{p}_std")},
        {**HEADINGS, **{f"{p}_std": "std" for p in prompts}},
        run.note(run.evaluations, "Bold: the best strategy of a model and prompt."),
    )
    by = [c for c in ("model", *run.axes, "encoders") if c in frame]
    best = best_rows(frame, dict.fromkeys(prompts, True), by)
    return ReportTable(table, {p: f"{{{p}}} ± {{{p}_std}}" for p in prompts}, best=best, groups=["strategy"])


def metric_table(run: Run) -> ReportTable:
    """Return Dice, IoU, HD95 and ASD of each setting and strategy, mean over seeds and folds."""
    metrics = ["dice", "iou", "hd95_mm", "asd_mm"]
    return _table(
        run,
        "scores",
        "Every metric by model, prompt and strategy",
        metrics,
        lambda e: e.summary["overall"],
        "Bold: the best strategy.",
        with_counts=True,
    )


def structure_table(run: Run) -> ReportTable:
    """Return Dice and HD95 of each structure."""
    rows = []
    for setting, strategy, evaluations in _groups(run):
        row: dict[str, Any] = {**run.cells(setting), "strategy": STRATEGY_TITLES[strategy]}
        for metric in ("dice", "hd95_mm"):
            for structure in STRUCTURES:
                for end in ("mean", "std"):
                    of = lambda e: e.summary["structures"].get(structure.name, {})  # noqa: B023, E731
                    value = mean_over(evaluations, f"{metric}_{end}", of)
                    row[_column(metric, structure.name, end)] = percent(value) if metric == "dice" else value
        rows.append(row)
    columns = [_column(m, s.name, "mean") for m in ("dice", "hd95_mm") for s in STRUCTURES]
    frame = numbers(pd.DataFrame(rows), [c for column in columns for c in (column, f"{column}_std")])
    headings = {
        _column(m, s.name, "mean"): f"{TITLES[m]} {SHORT[s.name]}" for m in ("dice", "hd95_mm") for s in STRUCTURES
    }
    headings |= {f"{c}_std": "std" for c in columns}
    formats = {f"{c}{end}": ".2f" for c in columns for end in ("", "_std")}
    table = Table(
        "scores_by_structure",
        "Dice and HD95 by structure",
        frame,
        formats,
        {**HEADINGS, **headings},
        run.note(run.evaluations, "LV, LA: left ventricular and left atrium cavity. Bold: the best strategy."),
    )
    by = list(run.cells(next(iter(run.groups))))
    best = best_rows(frame, {c: c.startswith("dice") for c in columns}, by)
    joined = {c: f"{{{c}}} ± {{{c}_std}}" for c in columns if c.startswith("dice")}
    hidden = [f"{c}_std" for c in columns if c not in joined]
    return ReportTable(table, joined, hidden, best, by)


def paper_grid_table(run: Run) -> ReportTable | None:
    """Return the metrics on the paper's grid, to compare with published numbers; None where they were not measured."""
    if not any("dice_512_mean" in e.summary["overall"] for e in run.evaluations):
        return None
    return _table(
        run,
        "scores_paper_grid",
        "Metrics on the paper’s grid (512 × 512, aspect lost)",
        ["dice_512", "iou_512", "hausdorff_512"],
        lambda e: e.summary["overall"],
        "Bold: the best strategy. The published Hausdorff column is 100 times the distance in pixels.",
    )


# ---- shared by other tables


def percent(value: float | None) -> float | None:
    """Return a share in percent."""
    return None if value is None else 100 * value


def mean_over(
    evaluations: Sequence[Evaluation],
    key: str,
    of: Callable[[Evaluation], Mapping[str, Any]] = lambda e: e.summary[OVERALL],
) -> float | None:
    """Return the mean of a number of summary.json over evaluations; None if no evaluation has it."""
    return mean_of([of(e).get(key) for e in evaluations])


def numbers(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the frame with these columns as numbers, None as NaN."""
    return frame.astype({c: float for c in columns if c in frame})


# ---- helpers


def _groups(run: Run) -> list[tuple[Setting, str, list[Evaluation]]]:
    """Return every setting and strategy with its evaluations."""
    return [(setting, s, evaluations) for setting, group in run.groups.items() for s, evaluations in group.items()]


def _table(
    run: Run,
    name: str,
    title: str,
    metrics: Sequence[str],
    of: Callable[[Evaluation], Mapping[str, Any]],
    sentence: str,
    with_counts: bool = False,
) -> ReportTable:
    """Return a table with one row per setting and strategy: mean ± std of some metrics."""
    rows = []
    for setting, strategy, evaluations in _groups(run):
        row: dict[str, Any] = {**run.cells(setting), "strategy": STRATEGY_TITLES[strategy]}
        for metric in metrics:
            column = PERCENT.get(metric, metric)
            for end, suffix in (("mean", ""), ("std", "_std")):
                value = mean_over(evaluations, f"{metric}_{end}", of)
                row[f"{column}{suffix}"] = percent(value) if metric in PERCENT else value
        if with_counts:
            means = [float(of(e)["dice_mean"]) for e in evaluations]
            row["dice_percent_std_of_runs"] = 100 * stdev(means) if len(means) > 1 else None
            row["num_empty"] = sum(int(of(e)["num_empty_prediction"]) for e in evaluations)
            row["num_masks"] = sum(int(of(e).get("num_rows") or of(e)["num_dice"]) for e in evaluations)
            row["num_runs"] = len(evaluations)
        rows.append(row)
    columns = [PERCENT.get(m, m) for m in metrics]
    frame = numbers(pd.DataFrame(rows), [*columns, *(f"{c}_std" for c in columns), "dice_percent_std_of_runs"])
    columns = [c for c in columns if frame[c].notna().any()]
    frame = frame.dropna(axis="columns", how="all")
    headings = {PERCENT.get(m, m): TITLES[m] for m in metrics} | {f"{c}_std": "std" for c in columns}
    headings |= {
        "dice_percent_std_of_runs": "between runs",
        "num_empty": "empty masks",
        "num_masks": "of",
        "num_runs": "runs",
    }
    formats = {f"{c}{end}": ".2f" for c in columns for end in ("", "_std")} | {"dice_percent_std_of_runs": ".2f"}
    table = Table(name, title, frame, formats, {**HEADINGS, **headings}, run.note(run.evaluations, sentence))
    joined = {c: f"{{{c}}} ± {{{c}_std}}" for c in columns}
    joined |= {"num_empty": "{num_empty} of {num_masks}"} if with_counts else {}
    by = list(run.cells(next(iter(run.groups))))
    best = best_rows(frame, {c: c in PERCENT.values() for c in columns}, by)
    return ReportTable(table, joined, best=best, groups=by)


def _column(metric: str, structure: str, end: str) -> str:
    return f"{metric}_{structure}{'_percent' if metric == 'dice' else ''}{'_std' if end == 'std' else ''}"


def _words(run: Run) -> str:
    """Explain how to read the tables."""
    has_runs = any(len(evaluations) > 1 for _, _, evaluations in _groups(run))
    between = " Means and deviations are averaged over runs (seeds, folds); “between runs” is the standard deviation of their mean Dice."
    return HOW_TO_READ + between * has_runs + " Weights were chosen on the validation section, never on test images."
