"""Show pictures: synthetic images; test images with every strategy side by side; best, median and worst of each segmenter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synboost_monai.data.datalist import DATALIST_NAME
from synboost_monai.files import image_stem, read_plane
from synboost_monai.pages.blocks import Block, Fold, PictureRow, Section, Text
from synboost_monai.pages.pictures import colour_label_map, overlay, picture_cell
from synboost_monai.pages.words import SHORT, css_colour, join, model_title
from synboost_monai.prompts.templates import prompt_text
from synboost_monai.structures import STRUCTURES
from synboost_monai.study.report.evaluations import Evaluation, Run, read_items


def synthetic_section(run: Run) -> Section | None:
    """Return label map, synthetic image and each model's masks, with the prompts; None without examples."""
    folder = run.run_dir / "examples"
    items = read_items(folder / DATALIST_NAME)
    if not items or not run.study.has_synthesis:  # the folder may come from earlier settings
        return None
    evaluations = [
        Evaluation(s, folder / s.model)
        for s in run.study.example_segmenters
        if (folder / s.model / "metrics.csv").is_file()
    ]
    blocks: list[Block] = [
        Text(
            "Label map → synthetic image → prompted masks: each synthetic image is made from its label map; each model is then asked for "
            "the three structures by the prompts above the pictures."
        )
    ]
    for item in items:
        image, label = read_plane(item["image"]), read_plane(item["label"])
        case, what = image_stem(item["image"]), describe(item)
        cells = [
            picture_cell(colour_label_map(label.pixels, image.spacing_mm), f"Label map, {what}", "label map"),
            picture_cell(
                overlay(image.pixels, None, image.spacing_mm), f"Synthetic image, {what}", "synthetic image", jpeg=True
            ),
        ]
        for e in evaluations:
            title = model_title(e.segmenter.model)
            cells.append(
                _masks(e, case, image, f"Masks of {title} on the synthetic image, {what}", f"{title}{dice_of(e, case)}")
            )
        level = evaluations[0].segmenter.prompt if evaluations else None
        blocks.append(PictureRow(what, cells, _prompts(item, level, is_synthetic=True), min(6, len(cells))))
    return Section("synthetic", "Synthetic images", blocks)


def real_section(run: Run) -> Section | None:
    """Return the median test image of each view and phase with the expert's and every segmenter's masks; None without data or masks."""
    if not run.items or not _has_label_maps(run):
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
    if not run.items or not _has_label_maps(run):
        return None
    blocks: list[Block] = [
        Text("By the Dice of an image, mean over its structures: the expert’s label map, and the segmenter’s.")
    ]
    for number, e in enumerate(run.shown):
        known = [str(case) for case in e.image_dice.index if case in run.items]
        if not known:
            continue
        chosen = {"best": known[-1], "median": known[len(known) // 2], "worst": known[0]}
        cells = [cell for words, case in chosen.items() for cell in _pair(run, e, case, words)]
        title = run.name_of(e)
        row = PictureRow(title, cells)
        blocks.append(row if number < 2 else Fold(title, [row]))
    return Section("ranked", "Best, median and worst", blocks)


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
        title = run.name_of(e)
        cells.append(_masks(e, case, image, f"Masks of {title}, {what}", f"{title}{dice_of(e, case)}", starts_line))
    level = evaluations[0].segmenter.prompt
    return PictureRow(what, cells, _prompts(item, level, is_synthetic=False), 2 + max(models.count(m) for m in models))


def expert_and_masks(run: Run, evaluation: Evaluation, case: str, caption: str) -> list[dict[str, Any]]:
    """Show two pictures of a test image: the expert's and a segmenter's label map; nothing if the image is gone."""
    if case not in run.items:
        return []
    item = run.items[case]
    image = read_plane(item["image"])
    what = f"{item.get('patient', case)}, {describe(item)}"
    masks = _masks(evaluation, case, image, f"Masks of {run.name_of(evaluation)}, {what}", caption)
    return [*_expert(item, image, what, f"expert, {what}"), masks]


def describe(item: Mapping[str, Any]) -> str:
    """Return view and phase of an item: `4CH, ED`."""
    words = [SHORT.get(item.get(key, ""), "") for key in ("view", "phase")]
    return ", ".join(w for w in words if w) or image_stem(item["image"])


def dice_of(evaluation: Evaluation, case: str) -> str:
    """Return the Dice of one case, mean over its structures: `, Dice 91.3 %`."""
    dice = evaluation.image_dice.get(case)
    return "" if dice is None else f", Dice {100 * dice:.1f}\u00a0%"


# ---- helpers


def _has_label_maps(run: Run) -> bool:
    return any((e.evaluation_dir / "label_maps").is_dir() for e in run.shown)


def _pair(run: Run, e: Evaluation, case: str, words: str) -> list[dict[str, Any]]:
    return expert_and_masks(run, e, case, f"{words}{dice_of(e, case)}")


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
