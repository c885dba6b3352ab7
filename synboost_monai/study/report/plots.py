"""Draw the report's plots as PNG; each strategy has the same colour and marker in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from synboost_monai.evaluation.agreement import agreement
from synboost_monai.pages.figures import DPI, new_figure, png_of
from synboost_monai.pages.words import (
    STRATEGY_COLOURS,
    STRATEGY_MARKERS,
    STRATEGY_TITLES,
    model_title,
    signed,
)
from synboost_monai.records import IMAGE_QUALITIES
from synboost_monai.structures import STRUCTURES
from synboost_monai.study.report.comparisons import Difference
from synboost_monai.study.report.evaluations import Evaluation, Run, Setting

WIDTH = 10.0
"""Width of a plot that fills the page, in inches."""
MAX_COLUMNS = 4
"""Largest number of panels beside each other."""
QUALITY_MARKERS = {"good": "o", "medium": "s", "poor": "^", "": "D"}
"""Image quality ('' if not known) -> marker."""


def boxes(run: Run, settings: Sequence[Setting], metric: str) -> bytes | None:
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
    rows, columns = (1, 4) if len(settings) <= 2 else (2, 2)
    figure = new_figure(WIDTH, 1.0 + 3.0 * rows, DPI)
    panels = figure.subplots(rows, columns, sharey=True).ravel()
    names = [*(s.name for s in STRUCTURES), None]
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
        _grid(panel, "y")
        if not is_share:
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            panel.yaxis.set_minor_formatter(NullFormatter())
    for panel in panels[::columns]:
        panel.set_ylabel("Dice of an image (%)" if is_share else "HD95 (mm)")
    _legend(figure, strategies)
    return png_of(figure)


def differences(run: Run, found: Sequence[Difference]) -> bytes:
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
        _grid(panel, "x")
    for panel in panels[len(pairs) :]:
        panel.set_visible(False)
    for i in range(max(0, len(pairs) - columns), len(pairs)):
        panels[i].tick_params(labelbottom=True)
        panels[i].set_xlabel("Dice, percentage points", fontsize=9)
    return png_of(figure)


def convergence(run: Run, settings: Sequence[Setting]) -> bytes:
    """Draw the validation Dice over updates, a panel for each setting."""
    figure, panels = _panels(len(settings), 3.1, sharey=True)
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
        _grid(panel, "both")
    panels[0].set_ylabel("validation Dice (%)")
    _legend(figure, [s for s in run.strategies if any(s in run.groups[setting] for setting in settings)], lines=True)
    return png_of(figure)


def scarcity(run: Run, frame: pd.DataFrame, panel_names: Sequence[str], points: pd.DataFrame) -> bytes:
    """Draw the Dice against the number of real patients, logarithmic, a panel per model, with intervals and single runs.

    Args:
        run: gives the order of strategies.
        frame: panel, num_patients, strategy_name, dice_percent, dice_low, dice_high.
        panel_names: names of the panels in order.
        points: single runs: panel, num_patients, strategy_name, dice_percent.
    """
    figure, panels = _panels(len(panel_names), 3.8, sharey=True)
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
            panel.scatter(
                single["num_patients"] * shift,
                single["dice_percent"],
                s=16,
                facecolors="white",
                edgecolors=colour,
                marker=marker,
                zorder=3,
            )
        panel.set_xscale("log")
        panel.set_xticks(ticks, [str(t) for t in ticks])
        panel.set_xticks([], minor=True)
        panel.set_xlim(min(ticks) / 1.3, max(ticks) * 1.3)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("real patients for training and validation")
        _grid(panel, "both")
    panels[0].set_ylabel("Dice on the test images (%)")
    _legend(figure, strategies, lines=True)
    return png_of(figure)


def bland_altman(run: Run, found: Sequence[tuple[Evaluation, pd.DataFrame]], quantity: str, unit: str) -> bytes:
    """Draw predicted minus expert over their mean, a panel per segmenter, with bias and limits of agreement.

    Args:
        run: gives the titles.
        found: segmenters, each with its patients: predicted, expert, image_quality.
        quantity: name and unit on the axis.
        unit: unit of a difference.
    """
    columns = max(sum(e.segmenter.model == model for e, _ in found) for model in run.models)
    figure, panels = _panels(len(found), 2.9, sharey=True, columns=min(columns, MAX_COLUMNS), sharex=True)
    kinds: list[str] = []
    for panel, (e, pairs) in zip(panels, found):
        a, b = pairs["predicted"].to_numpy(dtype=float), pairs["expert"].to_numpy(dtype=float)
        quality = pairs["image_quality"].fillna("").to_numpy()
        for kind in [k for k in (*IMAGE_QUALITIES, "") if (quality == k).any()]:
            kinds += [kind] * (kind not in kinds)
            is_kind = quality == kind
            colour, marker = STRATEGY_COLOURS[e.segmenter.strategy], QUALITY_MARKERS[kind]
            panel.scatter(((a + b) / 2)[is_kind], (a - b)[is_kind], s=18, color=colour, marker=marker, alpha=0.8, lw=0)
        numbers = agreement(a, b)
        digits = 1 if max(abs(numbers["lower_limit"]), abs(numbers["upper_limit"])) >= 1 else 2
        for key, style in (("upper_limit", "--"), ("bias", "-"), ("lower_limit", "--")):
            panel.axhline(numbers[key], color="black", ls=style, lw=1)
            text = signed(numbers[key], digits)
            panel.annotate(
                text, (0.99, numbers[key]), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8.5
            )
        panel.axhline(0, color="black", lw=0.5, alpha=0.4)
        panel.margins(x=0.1, y=0.12)
        title = f"{model_title(e.segmenter.model)}, {STRATEGY_TITLES[e.segmenter.strategy]}"
        panel.set_title(f"{title}\n{len(a)} patients", fontsize=9.5)
        panel.tick_params(labelbottom=True)
        _grid(panel, "both")
        if panel.get_subplotspec().is_first_col():
            panel.set_ylabel(f"predicted − expert\n({unit})", fontsize=9)
    figure.supxlabel(f"mean of predicted and expert: {quantity}", fontsize=9)
    if kinds != [""]:
        from matplotlib.lines import Line2D

        handles = [
            Line2D([], [], marker=QUALITY_MARKERS[k], ls="", color="0.4", label=f"image quality {k or 'not known'}")
            for k in (*IMAGE_QUALITIES, "")
            if k in kinds
        ]
        figure.legend(handles=handles, ncols=len(handles), loc="outside upper center", frameon=False, fontsize=8.5)
    return png_of(figure)


# ---- helpers


def _panels(number: int, height: float, columns: int = MAX_COLUMNS, **options: Any) -> tuple[Any, list[Any]]:
    """Return a figure with `number` panels, at most `columns` beside each other; a few panels do not fill the page."""
    columns = min(columns, number)
    rows = -(-number // columns)
    figure = new_figure(min(WIDTH, 1.0 + 4.5 * columns), 0.5 + height * rows, DPI)
    panels = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for panel in panels[number:]:
        panel.set_visible(False)
    return figure, list(panels[:number])


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


def _two_lines(title: str) -> str:
    """Put model and prompt above the rest of a title."""
    words = title.split(", ")
    return "\n".join(part for part in (", ".join(words[:2]), ", ".join(words[2:])) if part)


def _grid(panel: Any, axis: str) -> None:
    panel.grid(axis=axis, color="0.88", lw=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, strategies: Sequence[str], lines: bool = False) -> None:
    """Draw the legend of strategies above the panels."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for s in strategies:
        colour, title = STRATEGY_COLOURS[s], STRATEGY_TITLES[s]
        line = Line2D([], [], color=colour, marker=STRATEGY_MARKERS[s], label=title)
        handles.append(line if lines else Patch(facecolor=colour, edgecolor="black", alpha=0.8, label=title))
    figure.legend(handles=handles, ncols=len(handles), loc="outside upper center", frameon=False, fontsize=9.5)
