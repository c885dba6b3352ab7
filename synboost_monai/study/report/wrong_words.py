"""Show the prompt sensitivity: the effect of wrong words on the masks of each tested segmenter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from synboost_monai.evaluation.sensitivity import JSON_NAME
from synboost_monai.evaluation.sensitivity_tables import (
    CHANGE_TITLES,
    read_sensitivity,
    sensitivity_plot,
    sensitivity_table,
)
from synboost_monai.evaluation.statistics import OVERALL
from synboost_monai.pages.blocks import Block, Fold, Plot, ReportTable, Section, Text
from synboost_monai.pages.tables import Table
from synboost_monai.pages.words import STRATEGY_TITLES, model_title
from synboost_monai.study.grid import Segmenter
from synboost_monai.study.report.evaluations import Run, Setting, in_words
from synboost_monai.study.report.scores import numbers

_JOINED = {
    "dice_to_right": "{dice_to_right} [{dice_to_right_low}, {dice_to_right_high}]",
    "expert_change": "{expert_change} [{expert_change_low}, {expert_change_high}]",
}


def section(run: Run) -> Section | None:
    """Return a table over all tested segmenters, and for each its plot and its table; None if none was tested."""
    folders = {s: run.run_dir / s.output_dir / "sensitivity" for s in run.study.segmenters}
    found = [(s, *read_sensitivity(path)) for s, path in folders.items() if (path / JSON_NAME).is_file()]
    if not found:
        return None
    blocks: list[Block] = [
        Text(
            "One word of each test image’s prompt is made wrong or left out; the mask is compared with that of the right prompt. 100 "
            "% means that the word does not matter. A wrong structure should move the mask; a wrong view, phase, sex, age or image "
            "quality should not."
        ),
        _summary(run, [(s, record) for s, _, record in found]),
    ]
    for number, (s, frame, record) in enumerate(found):
        title = _title(run, s)
        table = replace(
            sensitivity_table(record), name=f"prompt_sensitivity_{s.name}", title=f"Prompt sensitivity: {title}"
        )
        plot = Plot(
            sensitivity_plot(frame),
            f"Box plots of the Dice between the masks of changed and right prompts of {title}, by attribute and structure.",
            f"{title}. Boxes: quartiles over prompts; whiskers: 5 to 95 %; grey: the middle 90 % of prompts that say the same in other "
            "words.",
        )
        inside: list[Block] = [plot, ReportTable(table, _JOINED, groups=["attribute"])]
        blocks += inside[:1] if number == 0 else []
        blocks.append(Fold(title, inside[1:] if number == 0 else inside))
    return Section("prompts", "Prompt sensitivity", blocks)


def _summary(run: Run, records: list[tuple[Segmenter, Mapping[str, Any]]]) -> ReportTable:
    """Return a row for each change, a column for each segmenter: Dice to the right prompt's mask, in %."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for s, record in records:
        for part in record["summary"]:
            if part["structure"] == OVERALL:
                key = (part["attribute"], part["change"])
                cells = {"attribute": part["attribute"].replace("_", " "), "change": CHANGE_TITLES[part["change"]]}
                rows.setdefault(key, cells)[s.name] = 100 * part["dice_to_right"]
    names = [s.name for s, _ in records]
    frame = numbers(pd.DataFrame(list(rows.values())), names)
    settings = [Setting.of(s) for s, _ in records]
    common = run.common(settings)
    titles = {}
    for (s, _), setting in zip(records, settings):
        cells = {key: value for key, value in run.cells(setting).items() if key not in common and key != "model"}
        titles[s.name] = f"{model_title(s.model)}, {STRATEGY_TITLES[s.strategy]}{in_words(cells)}"
    right = "; ".join(f"{titles[s.name]}: {100 * record['right_dice'][OVERALL]:.1f}" for s, record in records)
    first = records[0][1]
    note = (
        f"Dice to the mask of the right prompt, %, mean over prompts; {first['section']} section of {run.data_name}, "
        f"{first['num_images']} images of {first['num_patients']} patients; seeds {sorted({s.seed for s, _ in records})}. Dice of the "
        f"right prompts’ masks to the expert, %: {right}. {run.commands}"
    )
    title = f"Dice (%) to the right prompt’s mask{in_words(common)}"
    table = Table("prompt_sensitivity", title, frame, dict.fromkeys(names, ".1f"), titles, note)
    return ReportTable(table, groups=["attribute"])


def _title(run: Run, s: Segmenter) -> str:
    """Name a segmenter in words."""
    return f"{model_title(s.model)}, {STRATEGY_TITLES[s.strategy]}, {run.title(Setting.of(s)).partition(', ')[2]}"
