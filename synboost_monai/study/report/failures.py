"""Count, list and show failures on the test images: empty masks, implausible hearts, borders far off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from synboost_monai.pages.blocks import Block, Fold, PictureRow, ReportTable, Section, Text
from synboost_monai.pages.tables import Table
from synboost_monai.pages.words import STRATEGY_TITLES, model_title
from synboost_monai.study.report.evaluations import Evaluation, Run
from synboost_monai.study.report.examples import expert_and_masks
from synboost_monai.study.report.scores import numbers

NUM_FAR = 3
"""Number of masks of each segmenter that are listed for their large HD95."""
NUM_PICTURES = 3
"""Largest number of pictured failures of each kind."""
ANATOMY = ("anatomy_", "empty")
"""Beginnings of those reason codes that concern the heart and not the network's doubt."""
LOW_DICE = 0.5
"""Dice below which a mask counts as lost."""


def section(run: Run) -> Section:
    """Return counts of the shown segmenters, the list of failures, and pictures of the worst."""
    counts, listed = [], []
    for e in run.shown:
        found = _failures(e)
        counts.append({**_names(e), **_counts(e)})
        listed += [{**_names(e), **failure} for failure in found]
    frame = pd.DataFrame(counts)
    text = (
        f"Of the segmenters shown above. Lost: Dice below {100 * LOW_DICE:.0f} %, empty masks included. “To review” is the verdict of "
        "the evaluation itself, which does not know the expert: a low predicted Dice or an implausible heart (pieces, holes, an open "
        "or missing wall, sizes outside of adults’ ranges)."
    )
    blocks: list[Block] = [_count_table(run, frame.dropna(axis="columns", how="all"))]
    blocks.append(Text(text, is_soft=True))
    if reasons := _reason_table(run):
        blocks.append(Fold("Why images are to be reviewed", [reasons]))
    if listed:
        blocks.append(
            Fold(
                f"The {len(listed)} masks: empty ones, and the {NUM_FAR} with the largest HD95 of each segmenter",
                [_list_table(run, listed)],
            )
        )
    blocks += _pictures(run)
    return Section("failures", "Failures", blocks)


# ---- helpers


def _names(e: Evaluation) -> dict[str, Any]:
    return {"model": model_title(e.segmenter.model), "strategy": STRATEGY_TITLES[e.segmenter.strategy]}


def _counts(e: Evaluation) -> dict[str, Any]:
    """Return the counts of one segmenter."""
    frame = e.frame
    verdicts = frame.drop_duplicates("case")["verdict"].dropna() if "verdict" in frame else pd.Series(dtype=str)
    return {
        "num_empty": int(frame["is_empty_prediction"].astype(bool).sum()),
        "num_lost": int((frame["dice"] < LOW_DICE).sum()),
        "num_masks": len(frame),
        "hd95_mm_max": None if frame["hd95_mm"].isna().all() else float(frame["hd95_mm"].max()),
        "num_review": int((verdicts == "review").sum()) if len(verdicts) else None,
        "num_images": frame["case"].nunique(),
    }


def _failures(e: Evaluation) -> list[dict[str, Any]]:
    """Return empty masks, then those with the largest HD95."""
    columns = ["case", "structure", "dice", "hd95_mm"]
    empty = e.frame[e.frame["is_empty_prediction"].astype(bool) & ~e.frame["is_empty_truth"].astype(bool)]
    far = e.frame.dropna(subset=["hd95_mm"]).nlargest(NUM_FAR, "hd95_mm")
    out = []
    for what, part in (("empty mask", empty), ("large HD95", far)):
        for row in part[columns].to_dict("records"):
            numbers_of = {"dice_percent": 100 * row["dice"], "hd95_mm": row["hd95_mm"]}
            out.append({"case": row["case"], "structure": _structure(row), "failure": what, **numbers_of})
    return out


def _count_table(run: Run, frame: pd.DataFrame) -> ReportTable:
    headings = {
        "strategy": "trained on",
        "num_empty": "empty masks",
        "num_lost": "lost masks",
        "num_masks": "masks",
        "hd95_mm_max": "largest HD95 (mm)",
        "num_review": "images to review",
        "num_images": "images",
    }
    table = Table(
        "failures", "Failures of each segmenter", frame, {"hd95_mm_max": ".1f"}, headings, run.note(run.shown)
    )
    return ReportTable(table, groups=["model"])


def _list_table(run: Run, listed: list[dict[str, Any]]) -> ReportTable:
    frame = numbers(pd.DataFrame(listed), ["dice_percent", "hd95_mm"])
    headings = {"strategy": "trained on", "dice_percent": "Dice (%)", "hd95_mm": "HD95 (mm)"}
    formats = {"dice_percent": ".1f", "hd95_mm": ".1f"}
    table = Table("failures_list", "Failures, mask by mask", frame, formats, headings, run.note(run.shown))
    return ReportTable(table, groups=["model", "strategy"])


def _reason_table(run: Run) -> ReportTable | None:
    """Return the reasons of the verdicts, with the number of images of each shown segmenter; None without verdicts."""
    tables: dict[str, Counter[str]] = {}
    for e in run.shown:
        doubts = [e.doubt(str(case)) for case in e.image_dice.index]
        codes = [{reason["code"] for reason in doubt.get("reasons", [])} for doubt in doubts if doubt is not None]
        tables[run.name_of(e)] = Counter(code for found in codes for code in found)
    reasons = sorted({code for counter in tables.values() for code in counter})
    if not reasons:
        return None
    rows = [
        {"reason": code.replace("_", " "), **{name: counter[code] for name, counter in tables.items()}}
        for code in reasons
    ]
    note = run.note(run.shown, "Images; an image may have several reasons.")
    return ReportTable(Table("failures_review", "Reasons for review", pd.DataFrame(rows), note=note))


def _pictures(run: Run) -> list[Block]:
    """Return rows of pictures, one failure per segmenter, worst first: lowest Dice, largest HD95, implausible hearts."""
    kept = [e for e in run.shown if (e.evaluation_dir / "label_maps").is_dir()]
    worst: dict[str, list[tuple[float, Evaluation, str, str]]] = {}
    for e in kept:
        frame = e.frame[~e.frame["is_empty_truth"].astype(bool)]
        lowest = frame.nsmallest(1, "dice")
        farthest = frame.dropna(subset=["hd95_mm"]).nlargest(1, "hd95_mm")
        for row in lowest.to_dict("records"):
            what = "is empty" if row["is_empty_prediction"] else f"has Dice {100 * row['dice']:.1f}\u00a0%"
            worst.setdefault("Lowest Dice of a mask", []).append(
                (row["dice"], e, row["case"], f"{_structure(row)} {what}")
            )
        for row in farthest.to_dict("records"):
            text = f"{_structure(row)}, HD95 {row['hd95_mm']:.1f}\u00a0mm"
            worst.setdefault("Largest HD95", []).append((-row["hd95_mm"], e, row["case"], text))
        for case, dice in e.image_dice.items():
            if message := _anatomy(e, str(case)):
                worst.setdefault("Implausible hearts", []).append((float(dice), e, str(case), message))
                break
    rows: list[Block] = []
    for title, found in worst.items():
        cells: list[dict[str, Any]] = []
        for _, e, case, text in sorted(found, key=lambda entry: entry[0])[:NUM_PICTURES]:
            cells += expert_and_masks(run, e, case, f"{run.name_of(e)}: {text}")
        rows += [PictureRow(title, cells)] if cells else []
    return rows


def _structure(row: Mapping[str, Any]) -> str:
    return str(row["structure"]).replace("_", " ")


def _anatomy(e: Evaluation, case: str) -> str:
    """Return the first reason why a label map cannot show a heart; empty if there is none."""
    reasons = (e.doubt(case) or {}).get("reasons", [])
    return next((str(r["message"]) for r in reasons if r["code"].startswith(ANATOMY)), "")
