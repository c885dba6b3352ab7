"""Show how many updates a training takes: validation curves, and the updates to reach a given Dice."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import pandas as pd

from synboost_monai.evaluation.statistics import updates_to_reach
from synboost_monai.pages.blocks import Block, Fold, Plot, ReportTable, Section, Text
from synboost_monai.pages.tables import Table
from synboost_monai.pages.words import STRATEGY_TITLES, join
from synboost_monai.study.report import plots
from synboost_monai.study.report.boxes import box_settings
from synboost_monai.study.report.evaluations import Evaluation, Run, Setting
from synboost_monai.study.report.scores import HEADINGS, MAX_ROWS, numbers

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
FINETUNED = ("synthetic_then_real", "simulated_then_real")
"""Strategies that continue with real data."""
WITHOUT_HISTORY = (
    "Weights that know simulated hearts came from outside the study; the updates of their training are not known to it."
)
"""Text under the table where a strategy starts from such weights."""

_COLUMNS = ("level", "real_updates", "finetuning_updates", "pretraining_updates", "ratio", "ratio_with_pretraining")


def section(run: Run) -> Section | None:
    """Return curves and table; None if no training left a history."""
    settings = [
        s
        for s in box_settings(run)
        if any(run.history(e.segmenter) is not None for g in run.groups[s].values() for e in g)
    ]
    if not settings:
        return None
    blocks: list[Block] = [
        Plot(
            plots.convergence(run, settings),
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
        is_long = len(table.table.frame) > MAX_ROWS
        blocks.append(Fold(f"Updates to reach a Dice, {len(table.table.frame)} rows", [table]) if is_long else table)
        is_given = "simulated_then_real" in run.strategies
        blocks.append(Text(f"{WHY_BOTH} {WITHOUT_HISTORY}" if is_given else WHY_BOTH, is_soft=True))
    return Section("convergence", "Convergence", blocks)


def updates_table(run: Run) -> ReportTable | None:
    """Return the updates to reach levels of validation Dice, real against fine-tuning; None if no pair left its history."""
    rows = []
    for setting, group in run.groups.items():
        for strategy in FINETUNED:
            pairs = _pairs(run, setting, group.get("real", []), group.get(strategy, []))
            if pairs:
                cells = {**run.cells(setting), "strategy": STRATEGY_TITLES[strategy]}
                rows += [{**cells, **row} for row in _rows(pairs)]
    if not rows:
        return None
    frame = numbers(pd.DataFrame(rows), _COLUMNS)
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
    by = [*run.cells(next(iter(run.groups))), "strategy"]
    reached = "{num_reached_real}, {num_reached_finetuning} of {num_runs}"
    return ReportTable(table, {"num_reached_real": reached}, groups=by)


# ---- helpers


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


def _rows(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame, int | None]]) -> list[dict[str, Any]]:
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
