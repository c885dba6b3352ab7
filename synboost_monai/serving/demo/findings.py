"""Describe a segmentation for the page: doubt in words, measures, and overlap with the label map that the image was drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from synboost_monai.evaluation.per_case import case_metrics
from synboost_monai.heart.volumes import CannotMeasureError, disk_volume_ml, measure_ventricle
from synboost_monai.serving.demo.segmenting import Segmentation
from synboost_monai.structures import STRUCTURES, VIEW_CLASSES

NO_CALIBRATION = "The file has no calibration, so nothing is measured."
VERDICT_WORDS = {
    "accept": "Accepted: nothing speaks against this mask",
    "review": "Review: a person should look at this mask",
}


@dataclass(frozen=True)
class StructureFinding:
    """Hold one row of the page's table."""

    words: str
    colour: tuple[int, int, int]
    predicted_dice: float
    mean_spread: float | None
    area_cm2: float | None
    dice: float | None
    """Dice with the label map that the image was drawn from; None if there is no such label map."""


@dataclass(frozen=True)
class Measure:
    """Hold a measure of the left ventricle: its value, or the reason why it is missing."""

    words: str
    value: str
    reason: str = ""


def structure_findings(segmentation: Segmentation) -> list[StructureFinding]:
    """Return one finding for each mask shown: for the three structures, or for the one that a free prompt names."""
    truth = segmentation.image.source.label_map
    dice: dict[str, float] = {}
    if truth is not None:
        rows = case_metrics(segmentation.label_map, truth, segmentation.image.aspect)
        dice = {row["structure"]: float(row["dice"]) for row in rows}
    found = []
    asked = segmentation.understood
    for structure in STRUCTURES if asked is None else [asked.structure]:
        values = segmentation.doubt["structures"][structure.name]
        area = values["area_mm2"]
        found.append(
            StructureFinding(
                structure.prompt_words if asked is None else f"“{asked.prompt}”, {asked.reading}",
                structure.colour,
                values["predicted_dice"],
                values["mean_spread"],
                None if area is None else area / 100,
                dice.get(structure.name),
            )
        )
    return found


def ventricle_measures(segmentation: Segmentation) -> list[Measure]:
    """Measure length and single-plane volume of the left ventricle; return nothing for a free prompt or without a calibration."""
    spacing_mm = segmentation.image.spacing_mm
    if spacing_mm is None or segmentation.understood is not None:
        return []
    names = "Length of the left ventricle", "Its volume, one plane (method of disks)"
    try:
        ventricle = measure_ventricle(segmentation.label_map, spacing_mm)
    except CannotMeasureError as error:
        return [Measure(words, "–", str(error)) for words in names]
    values = f"{ventricle.length_mm:.0f} mm", f"{disk_volume_ml(ventricle):.0f} ml"
    return [Measure(words, value) for words, value in zip(names, values)]


def reasons(doubt: dict[str, Any]) -> list[str]:
    """Return the reasons why a person should look, one sentence each."""
    return [reason["message"][:1].upper() + reason["message"][1:] for reason in doubt["reasons"]]


def view_in_words(doubt: dict[str, Any]) -> str:
    """Return the view and the moment that the network sees; "" if it knows no views, or sees neither apical view."""
    view = doubt.get("view")
    if view is None or view["name"] == VIEW_CLASSES[0]:
        return ""
    words = f"The network sees an {view['name'].replace('_', ' ')} view (probability {view['probability']:.2f})"
    return f"{words}, {view['systole']:.0%} of the way from end-diastole to end-systole."
