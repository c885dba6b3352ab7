"""Show single images: synthetic ones, test images beside the expert, best and worst; and count and show the failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from synboost_monai.data.datalist import DATALIST_NAME
from synboost_monai.files import image_stem, read_plane
from synboost_monai.pages.blocks import Block, Fold, PictureRow, ReportTable, Section, Text
from synboost_monai.pages.pictures import colour_label_map, overlay, picture_cell
from synboost_monai.pages.tables import Table
from synboost_monai.pages.words import SHORT, css_colour, join, model_title
from synboost_monai.prompts.templates import prompt_text
from synboost_monai.structures import STRUCTURES
from synboost_monai.study.report.evaluations import Evaluation, Run, read_items
from synboost_monai.study.report.scores import HEADINGS, numbers

NUM_FAR = 3
"""Number of masks of each segmenter that are listed for their large HD95."""
NUM_PICTURES = 3
"""Largest number of pictured failures of each kind."""
ANATOMY = ("anatomy_", "empty")
"""Beginnings of those reason codes that concern the heart and not the network's doubt."""
LOW_DICE = 0.5
"""Dice below which a mask counts as lost."""


def synthetic_section(run: Run) -> Section | None:
    """Return label map, synthetic image and each model's masks, with the prompts; None without examples."""
    folder = run.run_dir / "examples"
    items = read_items(folder / DATALIST_NAME)
    if not items or not run.study.has_synthesis:  # the folder may come from earlier settings
        return None
    evaluations = [Evaluation(s, folder / s.model) for s in run.study.example_segmenters]
    evaluations = [e for e in evaluations if (e.evaluation_dir / "metrics.csv").is_file()]
    blocks: list[Block] = [
        Text(
            "Label map → synthetic image → prompted masks: each synthetic image is made from its label map; each model is then asked for "
            "the three structures by the prompts above the pictures."
        )
    ]
    for item in items:
        image, label = read_plane(item["image"]), read_plane(item["label"])
        case, what = image_stem(item["image"]), describe(item)
        drawn, bare = colour_label_map(label.pixels, image.spacing_mm), overlay(image.pixels, None, image.spacing_mm)
        cells = [
            picture_cell(drawn, f"Label map, {what}", "label map"),
            picture_cell(bare, f"Synthetic image, {what}", "synthetic image", jpeg=True),
        ]
        for e in evaluations:
            title = model_title(e.segmenter.model)
            alt, caption = f"Masks of {title} on the synthetic image, {what}", f"{title}{dice_of(e, case)}"
            cells.append(_masks(e, case, image, alt, caption))
        level = evaluations[0].segmenter.prompt if evaluations else None
        blocks.append(PictureRow(what, cells, _prompts(item, level, is_synthetic=True), min(6, len(cells))))
    return Section("synthetic", "Synthetic images", blocks)


def real_section(run: Run) -> Section | None:
    """Return the median test image of each view and phase with the expert's and every segmenter's masks; None without data or masks."""
    if not run.items or not any(e.has_label_maps for e in run.shown):
        return None
    kinds: dict[tuple[Any, ...], list[str]] = {}
    means: dict[str, list[float]] = {}
    for e in run.shown:
        for case, dice in e.image_dice.items():
            means.setdefault(str(case), []).append(float(dice))
    for case in sorted(means, key=lambda c: sum(means[c]) / len(means[c])):
        if case in run.items:
            kinds.setdefault((run.items[case].get("view"), run.items[case].get("phase")), []).append(case)
    blocks: list[Block] = [
        Text(
            "For each view and phase the image whose Dice, averaged over the segmenters shown, is the median: the expert’s label map, "
            f"then each segmenter’s ({join([run.title(s) for s in run.shown_settings])}; first seed and fold)."
        )
    ]
    for _, cases in sorted(kinds.items(), key=lambda kind: str(kind[0])):
        blocks.append(side_by_side(run, cases[len(cases) // 2], run.shown))
    return Section("real", "Test images", blocks)


def ranked_section(run: Run) -> Section | None:
    """Return the best, median and worst image of each shown segmenter, beside the expert; None without data or label maps."""
    if not run.items or not any(e.has_label_maps for e in run.shown):
        return None
    blocks: list[Block] = [
        Text("By the Dice of an image, mean over its structures: the expert’s label map, and the segmenter’s.")
    ]
    for number, e in enumerate(run.shown):
        known = [str(case) for case in e.image_dice.index if case in run.items]
        if not known:
            continue
        chosen = {"best": known[-1], "median": known[len(known) // 2], "worst": known[0]}
        cells: list[dict[str, Any]] = []
        for words, case in chosen.items():
            cells += expert_and_masks(run, e, case, f"{words}{dice_of(e, case)}")
        row = PictureRow(e.name, cells)
        blocks.append(row if number < 2 else Fold(e.name, [row]))
    return Section("ranked", "Best, median and worst", blocks)


def failures_section(run: Run) -> Section:
    """Return counts of the shown segmenters, the list of failures, and pictures of the worst."""
    frame = pd.DataFrame([{**e.cells, **_counts(e)} for e in run.shown])
    listed = [{**e.cells, **failure} for e in run.shown for failure in _failures(e)]
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
        title = f"The {len(listed)} masks: empty ones, and the {NUM_FAR} with the largest HD95 of each segmenter"
        blocks.append(Fold(title, [_list_table(run, listed)]))
    blocks += _pictures(run)
    return Section("failures", "Failures", blocks)


# ---- pictures


def side_by_side(run: Run, case: str, evaluations: list[Evaluation]) -> PictureRow:
    """Show one test image: image, expert, each segmenter."""
    item = run.items[case]
    image = read_plane(item["image"])
    what = f"{item.get('patient', case)}, {describe(item)}"
    cells = [picture_cell(overlay(image.pixels, None, image.spacing_mm), f"Image, {what}", "image", jpeg=True)]
    cells += _expert(item, image, what)
    models: list[str] = []
    for e in evaluations:
        starts_line = bool(models) and e.segmenter.model not in models
        models.append(e.segmenter.model)
        cells.append(_masks(e, case, image, f"Masks of {e.name}, {what}", f"{e.name}{dice_of(e, case)}", starts_line))
    level = evaluations[0].segmenter.prompt
    return PictureRow(what, cells, _prompts(item, level, is_synthetic=False), 2 + max(models.count(m) for m in models))


def expert_and_masks(run: Run, evaluation: Evaluation, case: str, caption: str) -> list[dict[str, Any]]:
    """Show two pictures of a test image: the expert's and a segmenter's label map; nothing if the image is gone."""
    if case not in run.items:
        return []
    item = run.items[case]
    image = read_plane(item["image"])
    what = f"{item.get('patient', case)}, {describe(item)}"
    masks = _masks(evaluation, case, image, f"Masks of {evaluation.name}, {what}", caption)
    return [*_expert(item, image, what, f"expert, {what}"), masks]


def describe(item: Mapping[str, Any]) -> str:
    """Return view and phase of an item: `4CH, ED`."""
    words = [SHORT.get(item.get(key, ""), "") for key in ("view", "phase")]
    return ", ".join(w for w in words if w) or image_stem(item["image"])


def dice_of(evaluation: Evaluation, case: str) -> str:
    """Return the Dice of one case, mean over its structures: `, Dice 91.3 %`."""
    dice = evaluation.image_dice.get(case)
    return "" if dice is None else f", Dice {100 * dice:.1f}\u00a0%"


def _expert(item: Mapping[str, Any], image: Any, what: str, caption: str = "expert") -> list[dict[str, Any]]:
    if "label" not in item:
        return []
    truth = read_plane(item["label"]).pixels
    return [
        picture_cell(overlay(image.pixels, truth, image.spacing_mm), f"Expert’s label map, {what}", caption, jpeg=True)
    ]


def _masks(e: Evaluation, case: str, image: Any, alt: str, caption: str, starts_line: bool = False) -> dict[str, Any]:
    label_map = e.label_map(case)
    picture = overlay(image.pixels, label_map, image.spacing_mm)
    return picture_cell(picture, alt, caption, label_map is None, starts_line, jpeg=True)


def _prompts(item: Mapping[str, Any], level: str | None, *, is_synthetic: bool) -> list[dict[str, str]]:
    """Return the prompts of the masks, with the structure's colour."""
    if level is None:
        return []
    texts = [(s, prompt_text(s, level, item, is_synthetic=is_synthetic).text or "(empty prompt)") for s in STRUCTURES]
    return [{"text": text, "colour": css_colour(s.colour)} for s, text in texts]


# ---- failures


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
        **HEADINGS,
        "num_empty": "empty masks",
        "num_lost": "lost masks",
        "num_masks": "masks",
        "hd95_mm_max": "largest HD95 (mm)",
        "num_review": "images to review",
        "num_images": "images",
    }
    title, formats = "Failures of each segmenter", {"hd95_mm_max": ".1f"}
    table = Table("failures", title, frame, formats, headings, run.note(run.shown))
    return ReportTable(table, groups=["model"])


def _list_table(run: Run, listed: list[dict[str, Any]]) -> ReportTable:
    frame = numbers(pd.DataFrame(listed), ["dice_percent", "hd95_mm"])
    headings = {**HEADINGS, "dice_percent": "Dice (%)", "hd95_mm": "HD95 (mm)"}
    formats = {"dice_percent": ".1f", "hd95_mm": ".1f"}
    table = Table("failures_list", "Failures, mask by mask", frame, formats, headings, run.note(run.shown))
    return ReportTable(table, groups=["model", "strategy"])


def _reason_table(run: Run) -> ReportTable | None:
    """Return the reasons of the verdicts, with the number of images of each shown segmenter; None without verdicts."""
    tables: dict[str, Counter[str]] = {}
    for e in run.shown:
        doubts = [e.doubt(str(case)) for case in e.image_dice.index]
        codes = [{reason["code"] for reason in doubt.get("reasons", [])} for doubt in doubts if doubt is not None]
        tables[e.name] = Counter(code for found in codes for code in found)
    reasons = sorted({code for counter in tables.values() for code in counter})
    if not reasons:
        return None
    counts = {name: [counter[code] for code in reasons] for name, counter in tables.items()}
    frame = pd.DataFrame({"reason": [code.replace("_", " ") for code in reasons], **counts})
    note = run.note(run.shown, "Images; an image may have several reasons.")
    return ReportTable(Table("failures_review", "Reasons for review", frame, note=note))


def _pictures(run: Run) -> list[Block]:
    """Return rows of pictures, one failure per segmenter, worst first: lowest Dice, largest HD95, implausible hearts."""
    worst: dict[str, list[tuple[float, Evaluation, str, str]]] = {}
    for e in (e for e in run.shown if e.has_label_maps):
        frame = e.frame[~e.frame["is_empty_truth"].astype(bool)]
        lowest = frame.nsmallest(1, "dice")
        farthest = frame.dropna(subset=["hd95_mm"]).nlargest(1, "hd95_mm")
        for row in lowest.to_dict("records"):
            what = "is empty" if row["is_empty_prediction"] else f"has Dice {100 * row['dice']:.1f}\u00a0%"
            text = f"{_structure(row)} {what}"
            worst.setdefault("Lowest Dice of a mask", []).append((row["dice"], e, row["case"], text))
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
            cells += expert_and_masks(run, e, case, f"{e.name}: {text}")
        rows += [PictureRow(title, cells)] if cells else []
    return rows


def _structure(row: Mapping[str, Any]) -> str:
    return str(row["structure"]).replace("_", " ")


def _anatomy(e: Evaluation, case: str) -> str:
    """Return the first reason why a label map cannot show a heart; empty if there is none."""
    reasons = (e.doubt(case) or {}).get("reasons", [])
    return next((str(r["message"]) for r in reasons if r["code"].startswith(ANATOMY)), "")
