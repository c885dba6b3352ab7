"""Show the results as in the paper: tables of Dice and all metrics, by prompt and structure, and box plots of the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import stdev
from typing import Any

import pandas as pd

from synboost_monai.evaluation.statistics import OVERALL
from synboost_monai.pages.blocks import Block, Fold, Plot, ReportTable, Section, Text, best_rows, folded
from synboost_monai.pages.figures import DPI, WIDTH, draw_grid, new_figure, png_of, strategy_legend
from synboost_monai.pages.tables import Table
from synboost_monai.pages.words import STRATEGY_COLOURS, STRATEGY_TITLES, join, model_title
from synboost_monai.prompts import LEVELS
from synboost_monai.structures import STRUCTURES
from synboost_monai.study.report.evaluations import Evaluation, Run, Setting, mean_of

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
HEADINGS = {"model": "model", "strategy": "trained on"}
"""Headings that tables share."""
HOW_TO_READ = (
    "± is the standard deviation (ddof 1) over images and structures, as published. HD95, the 95 % Hausdorff distance, and ASD, the mean "
    "distance of the borders, are over the masks that are not empty; empty masks count as Dice 0 and are counted apart."
)
"""Text under the tables of metrics."""
MAX_GROUPS = 8
"""Largest number of groups of boxes with all numbers of patients; if there are more, only the shown settings are drawn."""


def results_section(run: Run) -> Section:
    """Return every table of metrics for which the study has data."""
    blocks: list[Block] = []
    if len({s.prompt for s in run.groups}) > 1:
        blocks.append(prompt_table(run))
    main = metric_table(run)
    blocks += [
        folded(f"Every metric of each of the {len(main.table.frame)} cells", main),
        Text(_words(run), is_soft=True),
        folded("By structure", structure_table(run)),
    ]
    if (on_paper_grid := paper_grid_table(run)) is not None:
        blocks.append(Fold("On the paper’s grid of 512 × 512 pixels", [on_paper_grid]))
    return Section("results", "Results", blocks)


def structures_section(run: Run) -> Section:
    """Return box plots of Dice, and of HD95 where it was measured."""
    settings = box_settings(run)
    blocks: list[Block] = []
    for metric, words in (("dice", "Dice"), ("hd95_mm", "HD95")):
        png = _box_plot(run, settings, metric)
        if png is not None:
            alt = f"Box plots of {words} by structure, model and strategy; means are in the tables of results."
            blocks.append(Plot(png, alt))
    text = (
        f"Shown: {join([run.title(s) for s in settings])}. Boxes: quartiles over the test images (each averaged over seeds and folds), "
        "line at the median, diamond at the mean, whiskers to 1.5 times the box. HD95 is without empty masks, on a logarithmic axis, "
        "where less than 0.1 mm is drawn at 0.1."
    )
    return Section("structures", "By structure", [*blocks, Text(text, is_soft=True)])


def prompt_table(run: Run) -> ReportTable:
    """Return the mean Dice as the paper prints it: a row for each strategy and model, a column for each prompt."""
    prompts = [p for p in LEVELS if any(s.prompt == p for s in run.groups)]
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
    metrics, title = ["dice", "iou", "hd95_mm", "asd_mm"], "Every metric by model, prompt and strategy"
    return _table(run, "scores", title, metrics, "Bold: the best strategy.", with_counts=True)


def structure_table(run: Run) -> ReportTable:
    """Return Dice and HD95 of each structure."""
    rows = []
    for setting, strategy, evaluations in _groups(run):
        row: dict[str, Any] = {**run.cells(setting), "strategy": STRATEGY_TITLES[strategy]}
        for metric in ("dice", "hd95_mm"):
            for structure in STRUCTURES:
                for end, suffix in (("mean", ""), ("std", "_std")):
                    of = lambda e: e.summary["structures"].get(structure.name, {})  # noqa: B023, E731
                    value = mean_over(evaluations, f"{metric}_{end}", of)
                    row[f"{_column(metric, structure.name)}{suffix}"] = percent(value) if metric == "dice" else value
        rows.append(row)
    headings = {_column(m, s.name): f"{TITLES[m]} {s.short_name}" for m in ("dice", "hd95_mm") for s in STRUCTURES}
    columns = list(headings)
    frame = numbers(pd.DataFrame(rows), [c for column in columns for c in (column, f"{column}_std")])
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
    by = run.cell_names
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
        "Bold: the best strategy. The published Hausdorff column is 100 times the distance in pixels.",
    )


# ---- shared by other sections


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


def box_settings(run: Run) -> list[Setting]:
    """Return the shown settings, and the same settings with other numbers of patients if they are few."""
    with_patients = [s for shown in run.shown_settings for s in run.with_other_patients(shown)]
    return with_patients if len(with_patients) <= MAX_GROUPS else run.shown_settings


# ---- helpers


def _groups(run: Run) -> list[tuple[Setting, str, list[Evaluation]]]:
    """Return every setting and strategy with its evaluations."""
    return [(setting, s, evaluations) for setting, group in run.groups.items() for s, evaluations in group.items()]


def _table(
    run: Run,
    name: str,
    title: str,
    metrics: Sequence[str],
    sentence: str,
    with_counts: bool = False,
) -> ReportTable:
    """Return a table with one row per setting and strategy: mean ± std of some metrics."""
    rows = []
    for setting, strategy, evaluations in _groups(run):
        row: dict[str, Any] = {**run.cells(setting), "strategy": STRATEGY_TITLES[strategy]}
        for metric in metrics:
            for end, suffix in (("mean", ""), ("std", "_std")):
                value = mean_over(evaluations, f"{metric}_{end}")
                row[f"{_column(metric)}{suffix}"] = percent(value) if _is_share(metric) else value
        if with_counts:
            summaries = [e.summary[OVERALL] for e in evaluations]
            means = [float(s["dice_mean"]) for s in summaries]
            row["dice_percent_std_of_runs"] = 100 * stdev(means) if len(means) > 1 else None
            row["num_empty"] = sum(int(s["num_empty_prediction"]) for s in summaries)
            row["num_masks"] = sum(int(s.get("num_rows") or s["num_dice"]) for s in summaries)
            row["num_runs"] = len(evaluations)
        rows.append(row)
    columns = [_column(m) for m in metrics]
    frame = numbers(pd.DataFrame(rows), [*columns, *(f"{c}_std" for c in columns), "dice_percent_std_of_runs"])
    columns = [c for c in columns if frame[c].notna().any()]
    frame = frame.dropna(axis="columns", how="all")
    headings = {_column(m): TITLES[m] for m in metrics} | {f"{c}_std": "std" for c in columns}
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
    by = run.cell_names
    best = best_rows(frame, {c: c.endswith("_percent") for c in columns}, by)
    return ReportTable(table, joined, best=best, groups=by)


def _is_share(metric: str) -> bool:
    """Return whether tables show a metric in percent."""
    return metric.startswith(("dice", "iou"))


def _column(metric: str, *of: str) -> str:
    """Return the column of a metric, or of a metric of a structure."""
    return "_".join([metric, *of, *(["percent"] if _is_share(metric) else [])])


def _words(run: Run) -> str:
    """Explain how to read the tables."""
    words = [HOW_TO_READ]
    if run.has_repetitions:
        between = "“between runs” is the standard deviation of their mean Dice."
        words.append(f"Means and deviations are averaged over runs (seeds, folds); {between}")
    return " ".join([*words, "Weights were chosen on the validation section, never on test images."])


def _box_plot(run: Run, settings: Sequence[Setting], metric: str) -> bytes | None:
    """Draw boxes of the images' metric, a panel for each structure and one for all; None if nothing is measured."""
    from matplotlib.ticker import LogLocator, NullFormatter

    frames = {
        (i, strategy): run.mean_rows(evaluations)
        for i, setting in enumerate(settings)
        for strategy, evaluations in run.groups[setting].items()
    }
    if all(frame[metric].isna().all() for frame in frames.values()):
        return None
    is_share = metric == "dice"
    strategies = [s for s in run.strategies if any(key[1] == s for key in frames)]
    names = [*(s.name for s in STRUCTURES), None]
    rows, columns = (1, len(names)) if len(settings) <= 2 else (2, -(-len(names) // 2))
    figure = new_figure(WIDTH, 1.0 + 3.0 * rows, DPI)
    panels = figure.subplots(rows, columns, sharey=True).ravel()
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    for panel, name in zip(panels, names):
        for j, strategy in enumerate(strategies):
            places, values = [], []
            for i in range(len(settings)):
                if (i, strategy) in frames:
                    frame = frames[i, strategy]
                    part = frame if name is None else frame[frame["structure"] == name]
                    known = part[metric].dropna() * (100 if is_share else 1)
                    places.append(i + (j - (len(strategies) - 1) / 2) * 0.8 / len(strategies))
                    values.append(known.to_numpy() if is_share else known.clip(lower=0.1).to_numpy())
            _boxes(panel, places, values, strategy, 0.62 / len(strategies))
        panel.set_title("all structures" if name is None else name.replace("_", " "), fontsize=10)
        panel.set_xticks(range(len(settings)), [_tick(run, s) for s in settings], fontsize=8.5)
        panel.set_xlim(-0.6, len(settings) - 0.4)
        draw_grid(panel, "y")
        if not is_share:
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            panel.yaxis.set_minor_formatter(NullFormatter())
    for panel in panels[::columns]:
        panel.set_ylabel("Dice of an image (%)" if is_share else "HD95 (mm)")
    strategy_legend(figure, strategies)
    return png_of(figure)


def _boxes(panel: Any, places: Sequence[float], values: Sequence[Any], strategy: str, width: float) -> None:
    """Draw the boxes of one strategy."""
    if not places:
        return
    panel.boxplot(
        values,
        positions=places,
        widths=width,
        patch_artist=True,
        showmeans=True,
        manage_ticks=False,
        boxprops={"facecolor": STRATEGY_COLOURS[strategy], "alpha": 0.8},
        medianprops={"color": "black"},
        meanprops={"marker": "D", "markerfacecolor": "white", "markeredgecolor": "black", "markersize": 3.5},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": "0.3", "alpha": 0.6},
    )


def _tick(run: Run, setting: Setting) -> str:
    """Return the text under a group of boxes."""
    words = [model_title(setting.model)]
    words += [run.patients_title(setting.patients)] if "patients" in run.axes else [setting.prompt]
    return "\n".join(words)
