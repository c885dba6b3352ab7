"""Show how Dice grows with the updates of a training, and with the number of real patients."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

import pandas as pd

from synboost_monai.evaluation.statistics import cluster_bootstrap, lowest_tenth, patients_to_reach, updates_to_reach
from synboost_monai.pages.blocks import Block, Plot, ReportTable, Section, Text, best_rows, folded
from synboost_monai.pages.figures import draw_grid, new_panels, png_of, strategy_legend
from synboost_monai.pages.tables import Table
from synboost_monai.pages.words import STRATEGY_COLOURS, STRATEGY_MARKERS, STRATEGY_TITLES, join
from synboost_monai.study.grid import SIMULATED
from synboost_monai.study.report.differences import (
    AGAINST_REAL,
    AGAINST_REAL_FORMATS,
    AGAINST_REAL_HEADINGS,
    AGAINST_REAL_JOINED,
    NOT_COMPARED,
    NUM_RESAMPLES,
    Differences,
)
from synboost_monai.study.report.evaluations import Evaluation, Run, Setting, in_words
from synboost_monai.study.report.scores import HEADINGS, box_settings, numbers

SHARE = 0.99
"""First level, as a share of the best validation Dice of the same seed's training on real data alone."""
FIXED_LEVELS = (0.7, 0.8, 0.85, 0.9)
"""Other levels of validation Dice; those that training on real data alone never reaches are left out."""
WHY_BOTH = (
    "The ratio is updates of training on real data alone over those of fine-tuning after pretraining; above 1, fine-tuning is faster. "
    "It is given without and with the updates of the pretraining: without, as published (4.55 times for CRIS, 1.71 for CLIPSeg), it "
    "tells what a given pretrained network saves; with, what both trainings cost together. The published ratios are confounded: there, "
    "fine-tuning resumed the optimiser and its already reduced learning rate; here only weights are taken over."
)
"""Text under the table."""
LOWEST_AND_WORTH = (
    "Lowest tenth: mean Dice of the worst tenth of the test patients. Worth: with how many patients training on real data alone reaches "
    "this Dice, interpolated over the logarithm of their number."
)
"""Note of the table of patients."""
FINETUNED = ("synthetic_then_real", "simulated_then_real", "adapted_then_real")
"""Strategies that continue with real data."""
WITHOUT_HISTORY = (
    "Weights that know simulated hearts came from outside the study; the updates of their training are not known to it."
)
"""Text under the table where a strategy starts from such weights."""

_OF_UPDATES = ("level", "real_updates", "finetuning_updates", "pretraining_updates", "ratio", "ratio_with_pretraining")
_OF_PATIENTS = ("dice_percent", "dice_low", "dice_high", "lowest_percent", "difference", "low", "high", "patient_p")


# ---- updates


def convergence_section(run: Run) -> Section | None:
    """Return curves and table; None if no training left a history."""
    settings = [s for s in box_settings(run) if _has_history(run, s)]
    if not settings:
        return None
    blocks: list[Block] = [
        Plot(
            _convergence_plot(run, settings),
            "Curves of validation Dice over updates, a panel for each model and number of patients, a colour for each strategy.",
            f"Shown: {join([run.title(s) for s in settings])}. Thin lines: single seeds and folds. Dashed: fine-tuning moved right by the "
            "updates of its pretraining.",
        ),
        Text(
            "“synthetic” is validated on synthetic images, all others on the real validation section, so its curve has a height of "
            "its own. Validations are some updates apart, which limits how exactly a crossing is known.",
            is_soft=True,
        ),
    ]
    table = updates_table(run)
    if table is not None:
        blocks.append(folded(f"Updates to reach a Dice, {len(table.table.frame)} rows", table))
        is_given = any(strategy in SIMULATED for strategy in run.strategies)
        blocks.append(Text(f"{WHY_BOTH} {WITHOUT_HISTORY}" if is_given else WHY_BOTH, is_soft=True))
    return Section("convergence", "Convergence", blocks)


def _has_history(run: Run, setting: Setting) -> bool:
    """Return whether any training of a setting left its history."""
    return any(run.history(e.segmenter) is not None for group in run.groups[setting].values() for e in group)


def updates_table(run: Run) -> ReportTable | None:
    """Return the updates to reach levels of validation Dice, real against fine-tuning; None if no pair left its history."""
    rows = []
    for setting, group in run.groups.items():
        for strategy in FINETUNED:
            pairs = _pairs(run, setting, group.get("real", []), group.get(strategy, []))
            if pairs:
                cells = {**run.cells(setting), "strategy": STRATEGY_TITLES[strategy]}
                rows += [{**cells, **row} for row in _updates_rows(pairs)]
    if not rows:
        return None
    frame = numbers(pd.DataFrame(rows), _OF_UPDATES)
    headings = {
        **HEADINGS,
        "of": "validation Dice",
        "level": "level (%)",
        "real_updates": "updates, real",
        "finetuning_updates": "fine-tuning",
        "pretraining_updates": "pretraining",
        "ratio": "ratio",
        "ratio_with_pretraining": "with pretraining",
        "num_reached_real": "reached: real, fine-tuning",
    }
    formats = {"level": ".1f", "ratio": ".2f", "ratio_with_pretraining": ".2f"}
    formats |= dict.fromkeys(("real_updates", "finetuning_updates", "pretraining_updates"), ",.0f")
    evaluations = [e for group in run.groups.values() for s in ("real", *FINETUNED) for e in group.get(s, [])]
    note = run.note(
        evaluations,
        "Validation section, not the test images. Updates: medians over the seeds and folds that reach the level; ratios: over those "
        "in which both trainings do.",
    )
    table = Table("convergence", "Updates to reach a validation Dice", frame, formats, headings, note)
    by = [*run.cell_names, "strategy"]
    reached = "{num_reached_real}, {num_reached_finetuning} of {num_runs}"
    return ReportTable(table, {"num_reached_real": reached}, groups=by)


def _pairs(
    run: Run, setting: Setting, real: Sequence[Evaluation], finetuned: Sequence[Evaluation]
) -> list[tuple[pd.DataFrame, pd.DataFrame, int | None]]:
    """Return the histories of training on real data and of fine-tuning, by seed and fold, with the updates of pretraining."""
    of_real = {(e.segmenter.fold, e.segmenter.seed): run.history(e.segmenter) for e in real}
    pairs = []
    for e in finetuned:
        first, second = of_real.get((e.segmenter.fold, e.segmenter.seed)), run.history(e.segmenter)
        if first is not None and second is not None:
            pairs.append((first, second, run.pretraining_updates(e.segmenter)))
    return pairs


def _updates_rows(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame, int | None]]) -> list[dict[str, Any]]:
    """Return a row for each level."""
    best = [float(real["val_mean_dice"].max()) for real, _, _ in pairs]
    highest = max(*best, *(float(finetuned["val_mean_dice"].max()) for _, finetuned, _ in pairs))
    levels = [(f"{100 * SHARE:.0f} % of the best of real", [SHARE * b for b in best])]
    levels += [("fixed", [level] * len(pairs)) for level in FIXED_LEVELS if level <= highest]
    rows = []
    for words, level in levels:
        found = [
            (updates_to_reach(real, dice), updates_to_reach(finetuned, dice), before)
            for (real, finetuned, before), dice in zip(pairs, level)
        ]
        both = [(r, f, b) for r, f, b in found if r is not None and f is not None]
        rows.append(
            {
                "of": words,
                "level": 100 * median(level),
                "real_updates": _median([r for r, _, _ in found]),
                "finetuning_updates": _median([f for _, f, _ in found]),
                "pretraining_updates": _median([b for _, _, b in found]),
                "ratio": _median([r / f for r, f, _ in both if f]),
                "ratio_with_pretraining": _median([r / (f + b) for r, f, b in both if b is not None and f + b]),
                "num_reached_real": sum(r is not None for r, _, _ in found),
                "num_reached_finetuning": sum(f is not None for _, f, _ in found),
                "num_runs": len(pairs),
            }
        )
    return rows


def _median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(median(known)) if known else None


def _convergence_plot(run: Run, settings: Sequence[Setting]) -> bytes:
    """Draw the validation Dice over updates, a panel for each setting."""
    figure, panels = new_panels(len(settings), 3.1, sharey=True)
    for panel, setting in zip(panels, settings):
        for strategy, evaluations in run.groups[setting].items():
            style = {"color": STRATEGY_COLOURS[strategy], "marker": STRATEGY_MARKERS[strategy], "ms": 3.5}
            alpha = 1.0 if len(evaluations) == 1 else 0.65
            for e in evaluations:
                if (history := run.history(e.segmenter)) is None:
                    continue
                x, y = history["iteration"], 100 * history["val_mean_dice"]
                panel.plot(x, y, lw=1.4, alpha=alpha, **style)
                if (before := run.pretraining_updates(e.segmenter)) is not None:
                    panel.plot(x + before, y, lw=1.0, ls="--", alpha=alpha, color=style["color"])
        panel.set_title(_two_lines(run.title(setting)), fontsize=9.5)
        panel.set_xlim(left=0)
        panel.set_xlabel("updates")
        draw_grid(panel, "both")
    panels[0].set_ylabel("validation Dice (%)")
    strategy_legend(
        figure, [s for s in run.strategies if any(s in run.groups[setting] for setting in settings)], lines=True
    )
    return png_of(figure)


def _two_lines(title: str) -> str:
    """Put model and prompt above the rest of a title."""
    words = title.split(", ")
    return "\n".join(part for part in (", ".join(words[:2]), ", ".join(words[2:])) if part)


# ---- patients


def scarcity_section(run: Run, differences: Differences) -> Section | None:
    """Return curve and table of the shown settings; None if the number of patients does not vary."""
    curves = {shown: _curve(run, shown) for shown in run.shown_settings}
    curves = {shown: settings for shown, settings in curves.items() if len(settings) > 1}
    if not curves:
        return None
    rows = _patients_rows(run, [s for settings in curves.values() for s in settings], differences)
    frame = numbers(pd.DataFrame(rows), _OF_PATIENTS)
    plot = Plot(
        _scarcity_plot(run, frame, [_panel(run, shown) for shown in curves], _points(run, curves)),
        "Dice against the number of real patients, a line for each strategy; the numbers are in the table.",
        "Lines: mean over seeds and folds; bars: 95 % by a bootstrap of the test patients; small marks: single seeds and folds, which "
        "also draw the patients.",
    )
    text = Text(
        "A number counts the patients for training and validation together: who chooses weights on annotated patients has annotated "
        "them. The diffusion model of each part saw the same patients as the segmenter, no more. The interval is of the test patients "
        "alone; the luck of drawing few training patients shows in the spread of the seeds.",
        is_soft=True,
    )
    return Section("scarcity", "Data scarcity", [plot, _patients_table(run, frame), text])


def _curve(run: Run, shown: Setting) -> list[Setting]:
    """Return the settings that differ from a shown one only in the number of patients, where this number is known."""
    return [s for s in run.with_other_patients(shown) if run.num_patients(s.patients) is not None]


def _patients_rows(run: Run, settings: Sequence[Setting], differences: Differences) -> list[dict[str, Any]]:
    """Return a row for each setting and strategy: mean Dice with its interval, and the difference from real."""
    against_real = differences.against_real(settings)
    rows = []
    for setting in settings:
        for strategy, evaluations in run.groups[setting].items():
            mean, low, high = _mean_with_interval(run, evaluations)
            cells = {key: value for key, value in run.cells(setting).items() if key != "patients"}
            row: dict[str, Any] = {"panel": _panel(run, setting), "strategy_name": strategy, **cells}
            row |= {"num_patients": run.num_patients(setting.patients), "strategy": STRATEGY_TITLES[strategy]}
            row |= {"dice_percent": mean, "dice_low": low, "dice_high": high, "lowest_percent": _lowest(evaluations)}
            rows.append(row | against_real.get((setting, strategy), NOT_COMPARED))
    for row in rows:
        of_real = {r["num_patients"]: r for r in rows if r["panel"] == row["panel"] and r["strategy_name"] == "real"}
        counts = sorted(of_real)
        is_shown = row["strategy_name"] != "real" and len(counts) > 1
        curve = [of_real[n]["dice_percent"] for n in counts]
        row["worth"] = patients_to_reach(counts, curve, row["dice_percent"]) if is_shown else ""
    return rows


def _lowest(evaluations: Sequence[Evaluation]) -> float:
    """Return the Dice in percent of the lowest tenth of the test patients, averaged over evaluations."""
    by_patient = (e.frame.groupby(e.frame["patient"].fillna(e.frame["case"]))["dice"].mean() for e in evaluations)
    return fmean(100 * lowest_tenth(dice.tolist()) for dice in by_patient)


def _mean_with_interval(run: Run, evaluations: list[Evaluation]) -> tuple[float, float | None, float | None]:
    """Return the mean Dice in percent, and its interval; no interval with a single patient or unknown patients."""
    frame = run.mean_rows(evaluations)
    dice = 100 * frame["dice"].to_numpy(dtype=float)
    if frame["patient"].isna().any() or frame["patient"].nunique() < 2:
        return float(dice.mean()), None, None
    low, high = cluster_bootstrap(dice, frame["patient"].tolist(), num_resamples=NUM_RESAMPLES)
    return float(dice.mean()), low, high


def _points(run: Run, curves: dict[Setting, list[Setting]]) -> pd.DataFrame:
    """Return the mean Dice of each seed and fold: panel, num_patients, strategy_name, dice_percent."""
    rows = []
    for setting in [s for settings in curves.values() for s in settings]:
        place = (_panel(run, setting), run.num_patients(setting.patients))
        for strategy, evaluations in run.groups[setting].items():
            dice = [100 * float(e.summary["overall"]["dice_mean"]) for e in evaluations]
            rows += [(*place, strategy, percent) for percent in dice if len(dice) > 1]
    return pd.DataFrame(rows, columns=["panel", "num_patients", "strategy_name", "dice_percent"])


def _panel(run: Run, setting: Setting) -> str:
    """Return the title of a setting's panel: everything except the number of patients."""
    return run.title(setting, with_patients=False)


def _patients_table(run: Run, frame: pd.DataFrame) -> ReportTable:
    """Return the table of the curve's numbers."""
    cells = {c: str(frame[c].iloc[0]) for c in ("encoders", "prompt") if c in frame and frame[c].nunique() == 1}
    shown = frame.drop(columns=["panel", "strategy_name", *cells])
    dice = "Dice (%) [95 %]"
    headings = {**HEADINGS, "num_patients": "patients", "dice_percent": dice, "lowest_percent": "lowest tenth"}
    headings |= {**AGAINST_REAL_HEADINGS, "worth": "worth (patients)"}
    formats = dict.fromkeys(("dice_percent", "dice_low", "dice_high", "lowest_percent"), ".2f") | AGAINST_REAL_FORMATS
    resamples = f"Intervals: bootstrap of patients (BCa, {NUM_RESAMPLES} resamples, seed 0)."
    note = run.note(run.evaluations, f"Bold: the best strategy. {resamples} {LOWEST_AND_WORTH} {AGAINST_REAL}")
    table = Table("scarcity", f"Dice by number of real patients{in_words(cells)}", shown, formats, headings, note)
    joined = {"dice_percent": "{dice_percent} [{dice_low}, {dice_high}]", **AGAINST_REAL_JOINED}
    by = [c for c in ("model", "encoders", "prompt", "num_patients") if c in shown]
    return ReportTable(table, joined, best=best_rows(shown, {"dice_percent": True}, by), groups=by)


def _scarcity_plot(run: Run, frame: pd.DataFrame, panel_names: Sequence[str], points: pd.DataFrame) -> bytes:
    """Draw the Dice against the number of real patients, logarithmic, a panel per model, with intervals and single runs.

    Args:
        run: gives the order of strategies.
        frame: panel, num_patients, strategy_name, dice_percent, dice_low, dice_high.
        panel_names: names of the panels in order.
        points: single runs: panel, num_patients, strategy_name, dice_percent.
    """
    figure, panels = new_panels(len(panel_names), 3.8, sharey=True)
    strategies = [s for s in run.strategies if s in set(frame["strategy_name"])]
    ticks = sorted(set(frame["num_patients"]))
    for panel, name in zip(panels, panel_names):
        for j, strategy in enumerate(strategies):
            part = frame[(frame["panel"] == name) & (frame["strategy_name"] == strategy)].sort_values("num_patients")
            shift = 1.03 ** (j - (len(strategies) - 1) / 2)
            x, y = part["num_patients"] * shift, part["dice_percent"]
            colour, marker = STRATEGY_COLOURS[strategy], STRATEGY_MARKERS[strategy]
            panel.plot(x, y, color=colour, marker=marker, ms=6, lw=1.5)
            known = part["dice_low"].notna()
            errors = [(y - part["dice_low"])[known], (part["dice_high"] - y)[known]]
            panel.errorbar(x[known], y[known], errors, color=colour, fmt="none", capsize=3, lw=1.2)
            single = points[(points["panel"] == name) & (points["strategy_name"] == strategy)]
            style = {"facecolors": "white", "edgecolors": colour, "marker": marker}
            panel.scatter(single["num_patients"] * shift, single["dice_percent"], s=16, zorder=3, **style)
        panel.set_xscale("log")
        panel.set_xticks(ticks, [str(t) for t in ticks])
        panel.set_xticks([], minor=True)
        panel.set_xlim(min(ticks) / 1.3, max(ticks) * 1.3)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("real patients for training and validation")
        draw_grid(panel, "both")
    panels[0].set_ylabel("Dice on the test images (%)")
    strategy_legend(figure, strategies, lines=True)
    return png_of(figure)
