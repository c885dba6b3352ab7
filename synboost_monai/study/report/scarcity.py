"""Show the data scarcity curve: Dice against the number of real patients for a segmenter and its diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from synboost_monai.evaluation.statistics import cluster_bootstrap
from synboost_monai.pages.blocks import Plot, ReportTable, Section, Text, best_rows
from synboost_monai.pages.tables import Table
from synboost_monai.pages.words import STRATEGY_TITLES, model_title
from synboost_monai.study.report import plots
from synboost_monai.study.report.comparisons import (
    AGAINST_REAL,
    AGAINST_REAL_JOINED,
    NUM_RESAMPLES,
    Differences,
)
from synboost_monai.study.report.evaluations import Evaluation, Run, Setting, in_words
from synboost_monai.study.report.scores import HEADINGS, numbers

_NUMBERS = ("dice_percent", "dice_low", "dice_high", "difference", "low", "high", "patient_p")


def section(run: Run, differences: Differences) -> Section | None:
    """Return curve and table of the shown settings; None if the number of patients does not vary."""
    curves = {shown: _curve(run, shown) for shown in run.shown_settings}
    curves = {shown: settings for shown, settings in curves.items() if len(settings) > 1}
    if not curves:
        return None
    rows = _rows(run, [s for settings in curves.values() for s in settings], differences)
    frame = numbers(pd.DataFrame(rows), _NUMBERS)
    plot = Plot(
        plots.scarcity(run, frame, [_panel(run, shown) for shown in curves], _points(run, curves)),
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
    return Section("scarcity", "Data scarcity", [plot, _table(run, frame), text])


# ---- helpers


def _curve(run: Run, shown: Setting) -> list[Setting]:
    """Return the settings that differ from a shown one only in the number of patients, where this number is known."""
    same = [s for s in run.groups if (s.model, s.prompt, s.frozen) == (shown.model, shown.prompt, shown.frozen)]
    return [s for s in same if run.num_patients(s.patients) is not None]


def _rows(run: Run, settings: Sequence[Setting], differences: Differences) -> list[dict[str, Any]]:
    """Return a row for each setting and strategy: mean Dice with its interval, and the difference from real."""
    against_real = differences.against_real(settings)
    rows = []
    for setting in settings:
        for strategy, evaluations in run.groups[setting].items():
            mean, low, high = _mean_with_interval(run, evaluations)
            cells = {key: value for key, value in run.cells(setting).items() if key != "patients"}
            row: dict[str, Any] = {"panel": _panel(run, setting), "strategy_name": strategy, **cells}
            row |= {"num_patients": run.num_patients(setting.patients), "strategy": STRATEGY_TITLES[strategy]}
            row |= {"dice_percent": mean, "dice_low": low, "dice_high": high}
            row |= dict.fromkeys(("difference", "low", "high", "tested", "patient_p"))
            rows.append(row | against_real.get((setting, strategy), {}))
    return rows


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
    rows = [
        (
            _panel(run, setting),
            run.num_patients(setting.patients),
            strategy,
            100 * float(e.summary["overall"]["dice_mean"]),
        )
        for settings in curves.values()
        for setting in settings
        for strategy, evaluations in run.groups[setting].items()
        if len(evaluations) > 1
        for e in evaluations
    ]
    return pd.DataFrame(rows, columns=["panel", "num_patients", "strategy_name", "dice_percent"])


def _panel(run: Run, setting: Setting) -> str:
    """Return the title of a setting's panel: everything except the number of patients."""
    frozen = [f"encoders {'frozen' if setting.frozen else 'trained'}"] * ("frozen" in run.axes)
    return ", ".join([model_title(setting.model), setting.prompt, *frozen])


def _table(run: Run, frame: pd.DataFrame) -> ReportTable:
    """Return the table of the curve's numbers."""
    cells = {c: str(frame[c].iloc[0]) for c in ("encoders", "prompt") if c in frame and frame[c].nunique() == 1}
    shown = frame.drop(columns=["panel", "strategy_name", *cells])
    headings = {
        **HEADINGS,
        "num_patients": "patients",
        "dice_percent": "Dice (%) [95 %]",
        "difference": "against real [95 %]",
        "patient_p": "p (patients, Holm)",
    }
    formats = dict.fromkeys(_NUMBERS[:3], ".2f") | dict.fromkeys(_NUMBERS[3:6], "+.2f") | {"patient_p": ".2g"}
    resamples = f"Intervals: bootstrap of patients (BCa, {NUM_RESAMPLES} resamples, seed 0)."
    note = run.note(run.evaluations, f"Bold: the best strategy. {resamples} {AGAINST_REAL}")
    table = Table("scarcity", f"Dice by number of real patients{in_words(cells)}", shown, formats, headings, note)
    joined = {"dice_percent": "{dice_percent} [{dice_low}, {dice_high}]", **AGAINST_REAL_JOINED}
    by = [c for c in ("model", "encoders", "prompt", "num_patients") if c in shown]
    return ReportTable(table, joined, best=best_rows(shown, {"dice_percent": True}, by), groups=by)
