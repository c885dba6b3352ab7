"""Draw box plots of the images' metrics by structure, strategies side by side."""

from __future__ import annotations

from synboost_monai.pages.blocks import Block, Plot, Section, Text
from synboost_monai.pages.words import join
from synboost_monai.study.report import plots
from synboost_monai.study.report.evaluations import Run, Setting

MAX_GROUPS = 8
"""Largest number of groups of boxes with all numbers of patients; if there are more, only the shown settings are drawn."""


def section(run: Run) -> Section:
    """Return box plots of Dice, and of HD95 where it was measured."""
    settings = box_settings(run)
    blocks: list[Block] = []
    for metric, words in (("dice", "Dice"), ("hd95_mm", "HD95")):
        png = plots.boxes(run, settings, metric)
        if png is not None:
            alt = f"Box plots of {words} by structure, model and strategy; means are in the tables of results."
            blocks.append(Plot(png, alt))
    text = (
        f"Shown: {join([run.title(s) for s in settings])}. Boxes: quartiles over the test images (each averaged over seeds and folds), "
        "line at the median, diamond at the mean, whiskers to 1.5 times the box. HD95 is without empty masks, on a logarithmic axis, "
        "where less than 0.1 mm is drawn at 0.1."
    )
    return Section("structures", "By structure", [*blocks, Text(text, is_soft=True)])


def box_settings(run: Run) -> list[Setting]:
    """Return the shown settings, and the same settings with other numbers of patients if they are few."""
    with_patients = [
        s
        for shown in run.shown_settings
        for s in run.groups
        if (s.model, s.prompt, s.frozen) == (shown.model, shown.prompt, shown.frozen)
    ]
    return with_patients if len(with_patients) <= MAX_GROUPS else run.shown_settings
