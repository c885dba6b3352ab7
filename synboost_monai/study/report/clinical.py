"""Compare the clinical measures of the shown segmenters with the experts': agreement and Bland-Altman plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from synboost_monai.evaluation.agreement import MIN_PAIRS, agreement
from synboost_monai.evaluation.clinical import (
    ALL_QUALITIES,
    TABLE_FORMATS,
    TABLE_STATISTICS,
    ClinicalResult,
    clinical_measures,
)
from synboost_monai.heart.measures import MEASURES, METHODS
from synboost_monai.pages.blocks import Block, Fold, Plot, ReportTable, Section, Text
from synboost_monai.pages.figures import MAX_COLUMNS, draw_grid, new_panels, png_of
from synboost_monai.pages.tables import Table
from synboost_monai.pages.words import STRATEGY_COLOURS, signed
from synboost_monai.records import IMAGE_QUALITIES
from synboost_monai.study.report.evaluations import Evaluation, Run
from synboost_monai.study.report.scores import HEADINGS, numbers

MAIN_MEASURES = (
    "ejection_fraction",
    "end_diastolic_volume_ml",
    "end_systolic_volume_ml",
    "end_systolic_atrial_volume_ml",
)
"""Measures of the first table, by the best available method; all others are folded."""
SHORT = {
    "end_diastolic_volume_ml": "LV volume, ED",
    "end_systolic_volume_ml": "LV volume, ES",
    "ejection_fraction": "ejection fraction",
    "end_diastolic_length_mm": "LV length, ED",
    "end_systolic_length_mm": "LV length, ES",
    "end_diastolic_atrial_volume_ml": "LA volume, ED",
    "end_systolic_atrial_volume_ml": "LA volume, ES",
}
"""Measure -> its short name in tables."""
PLOTTED = ("ejection_fraction", "end_diastolic_volume_ml")
"""Measures with a Bland-Altman plot for each segmenter."""
MAX_REASONS = 5
"""Largest number of reasons for missing values that are listed."""
QUALITY_MARKERS = {"good": "o", "medium": "s", "poor": "^", "": "D"}
"""Image quality ('' if not known) -> marker."""

_HEADINGS = {
    **HEADINGS,
    "image_quality": "image quality",
    "num_pairs": "patients",
    "bias": "bias",
    "lower_limit": "limits of agreement",
    "mae": "MAE",
    "pearson_r": "r",
    "icc": "ICC(2,1) [95 %]",
}
_JOINED = {"lower_limit": "{lower_limit} to {upper_limit}", "icc": "{icc} [{icc_low}, {icc_high}]"}
_WORDS = (
    "LV, LA: left ventricle and atrium; ED, ES: end-diastole and end-systole. Bias: predicted less expert; limits of agreement: bias "
    "± 1.96 standard deviations of the differences (Bland and Altman). MAE: mean absolute error, in the measure’s unit (of an "
    "ejection fraction: percentage points). Left ventricular volumes by Simpson’s method of disks in the views named, the left "
    "atrium’s by area and length."
)


def section(run: Run) -> Section | None:
    """Return the agreement of the shown segmenters, or the reason why there is none; None if no label map was kept."""
    kept = [e for e in run.shown if e.has_label_maps]
    if not kept:
        return None
    blocks: list[Block] = []
    results: list[tuple[Evaluation, ClinicalResult]] = []
    for e in kept:
        try:
            tested = e.summary["section"]
            result = clinical_measures(e.evaluation_dir, run.run_dir / "real", section=tested, plots=False)
            results.append((e, result))
        except (ValueError, FileNotFoundError) as error:
            blocks.append(Text(f"{e.name}: clinical measures cannot be computed: {error}"))
    records = [(e, record) for e, result in results for record in result.summary["agreement"]]
    against_expert = [(e, r) for e, r in records if (r["first"], r["second"]) == ("predicted", "expert")]
    overall = [(e, r) for e, r in against_expert if r["image_quality"] == ALL_QUALITIES]
    if overall:
        best_method: dict[str, str] = {}
        for _, r in overall:
            best_method.setdefault(r["measure"], r["method"])
        is_main = lambda r: r["measure"] in MAIN_MEASURES and r["method"] == best_method[r["measure"]]  # noqa: E731
        main = [(e, r) for e, r in overall if is_main(r)]
        blocks.append(_table(run, "clinical", "Agreement with the experts’ label maps", main))
        blocks.append(Text(_WORDS, is_soft=True))
        blocks += [plot for measure in PLOTTED for plot in _plot(measure, results)]
        rest = [(e, r) for e, r in overall if not is_main(r)]
        by_quality = [(e, r) for e, r in against_expert if r["image_quality"] != ALL_QUALITIES]
        by_quality = [(e, r) for e, r in by_quality if r["measure"] == "ejection_fraction"]
        reference = [(e, r) for e, r in records if r["second"] == "reference" and r["image_quality"] == ALL_QUALITIES]
        for name, title, part in (
            ("clinical_quality", "Ejection fraction by image quality", by_quality),
            ("clinical_reference", "Ejection fraction against that of Info_*.cfg", reference),
            ("clinical_other", "Other measures and methods", rest),
        ):
            if part:
                blocks.append(Fold(title, [_table(run, name, title, part)]))
    if sentences := _left_out(results):
        blocks.append(Text(" ".join(sentences), is_soft=True))
    shown = "Shown: of each model and strategy the first seed and fold of the shown setting."
    return Section("clinical", "Clinical measures", [Text(shown, is_soft=True), *blocks]) if blocks else None


# ---- helpers


def _table(run: Run, name: str, title: str, records: Sequence[tuple[Evaluation, Mapping[str, Any]]]) -> ReportTable:
    """Return a table with one row per measure, method and segmenter."""
    rows = []
    with_quality = any(r["image_quality"] != ALL_QUALITIES for _, r in records)
    with_sides = any(r["second"] == "reference" for _, r in records)
    order = [*MAIN_MEASURES, *(m for m in MEASURES if m not in MAIN_MEASURES)]
    for e, r in sorted(
        records, key=lambda pair: (order.index(pair[1]["measure"]), list(METHODS).index(pair[1]["method"]))
    ):
        row: dict[str, Any] = {
            "measure": f"{SHORT[r['measure']]} ({MEASURES[r['measure']][1]})",
            "method": METHODS[r["method"]][0],
        }
        row |= {"first": r["first"]} if with_sides else {}
        row |= {"image_quality": r["image_quality"]} if with_quality else {}
        rows.append(row | e.cells | {key: r[key] for key in TABLE_STATISTICS})
    frame = numbers(pd.DataFrame(rows), TABLE_STATISTICS[1:])
    if frame["method"].nunique() == 1:
        title, frame = f"{title}, {frame['method'].iloc[0]}", frame.drop(columns="method")
    note = run.note([e for e, _ in records], "Computed by synboost clinical for each evaluation.")
    return ReportTable(
        Table(name, title, frame, TABLE_FORMATS, _HEADINGS, note),
        _JOINED,
        groups=[c for c in ("measure", "method") if c in frame],
    )


def _plot(measure: str, results: Sequence[tuple[Evaluation, ClinicalResult]]) -> list[Block]:
    """Draw Bland-Altman plots of a measure, a panel per segmenter, by the best available method; nothing with too few patients."""
    for method in METHODS:
        found = [(e, result.pairs(measure, method)) for e, result in results]
        if panels := [(e, pairs) for e, pairs in found if len(pairs) >= MIN_PAIRS]:
            words, unit = MEASURES[measure]
            title = f"{words.capitalize()}, {METHODS[method][0]}"
            png = _bland_altman(panels, f"{words} ({unit})", "percentage points" if unit == "%" else unit)
            alt = f"Bland-Altman plots of the {words}, a panel for each segmenter; bias and limits are in the table."
            return [
                Plot(png, alt, f"{title}: predicted less expert, over their mean. Lines: bias and limits of agreement.")
            ]
    return []


def _bland_altman(found: Sequence[tuple[Evaluation, pd.DataFrame]], quantity: str, unit: str) -> bytes:
    """Draw predicted minus expert over their mean, a panel per segmenter, with bias and limits of agreement.

    Args:
        found: segmenters, each with its patients: predicted, expert, image_quality.
        quantity: name and unit on the axis.
        unit: unit of a difference.
    """
    columns = max(Counter(e.segmenter.model for e, _ in found).values())
    figure, panels = new_panels(len(found), 2.9, sharey=True, columns=min(columns, MAX_COLUMNS), sharex=True)
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
        panel.set_title(f"{e.name}\n{len(a)} patients", fontsize=9.5)
        panel.tick_params(labelbottom=True)
        draw_grid(panel, "both")
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


def _left_out(results: Sequence[tuple[Evaluation, ClinicalResult]]) -> list[str]:
    """Say which values could not be computed, and why."""
    if not results:
        return []
    left_out = results[0][1].summary["left_out"]
    sentences = [f"Not measured, {METHODS[method][0]}: {reason}." for method, reason in left_out["methods"].items()]
    sentences += [f"{number} images left out: {reason}." for reason, number in left_out["images"].items()]
    reasons: Counter[str] = Counter()
    for _, result in results:
        reasons.update({entry["reason"]: entry["num_values"] for entry in result.summary["left_out"]["values"]})
    if reasons:
        told = "; ".join(f"{reason} ({number})" for reason, number in list(reasons.items())[:MAX_REASONS])
        sentences.append(
            f"Values that do not exist, over all segmenters shown: {told}{'; and others' * (len(reasons) > MAX_REASONS)}."
        )
    return sentences
