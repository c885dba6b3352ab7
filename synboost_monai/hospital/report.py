"""Write report.html of a run: the files' outcomes, each study's measures, pictures and doubts, and why files were refused.

It is made from the ledger and the studies' measurements.json alone, and says nothing about patients: it names studies and clips by hashes.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from synboost_monai import __version__
from synboost_monai.dicom.reasons import Outcome
from synboost_monai.files import atomic_write_text
from synboost_monai.hospital.results import JSON_NAME, NOTE, best_measure, measures_csv
from synboost_monai.pages.blocks import Block, Fold, PictureRow, ReportTable, Section, Text
from synboost_monai.pages.page import render
from synboost_monai.pages.pictures import picture_cell
from synboost_monai.pages.tables import Table
from synboost_monai.quantities import QUANTITIES

REPORT_NAME, MEASURES_NAME = "report.html", "measurements.csv"
"""Names of the page, and of the table of all studies' measures, in OUT."""
MAX_STUDIES = 200
"""Number of studies that the page shows with pictures, those that need review first; the tables have all."""
MAX_OPEN = 20
"""Largest number of studies that are shown unfolded."""
METHOD_WORDS = {"biplane": "biplane", "four_chamber": "four-chamber", "two_chamber": "two-chamber"}
SHOWN = (
    *("ejection_fraction", "end_diastolic_volume_ml", "end_systolic_volume_ml", "end_systolic_atrial_volume_ml"),
    *("mass_g", "heart_rate"),
)
"""Quantities in the table of studies."""
OF_CLIP = (
    *("clip", "num_frames", "spacing_mm", "text_in_sector", "view", "view_source", "view_confidence", "phase_source"),
    *("end_diastolic_frame", "end_systolic_frame", "beats", "no_beat_reason", "reasons"),
)
"""Facts of a clip that the page shows."""


def write_report_page(out_dir: Path, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Path:
    """Write report.html and measurements.csv of a run.

    Args:
        out_dir: the run's folder.
        rows: rows of the ledger.
        settings: settings of the run, shown to readers.
    """
    folders = sorted({Path(output).parent for row in rows for output in row["outputs"]})
    studies = [_read_study(out_dir / folder / JSON_NAME) for folder in folders]
    studies.sort(key=lambda study: (study["verdict"] != "review", study["study"]))
    atomic_write_text(out_dir / MEASURES_NAME, measures_csv(studies))
    sections = [
        Section("overview", "Overview", _overview(rows, studies)),
        Section("studies", "Studies", _study_table(studies)),
        Section("pictures", "Pictures and doubts", _pictures(out_dir, studies)),
        Section("refused", "Refused files", _files(rows, Outcome.REFUSED, "refused")),
        Section("uncalibrated", "Without millilitres", _files(rows, Outcome.UNCALIBRATED, "uncalibrated")),
        Section("skipped", "Skipped files", _skipped(rows)),
        Section("settings", "Model and settings", [_settings(settings)]),
    ]
    page = render(
        sections,
        title="Echocardiograms of a run",
        description=f"Files: {len(rows)}. Studies with results: {len(studies)}.",
        warning=NOTE,
        versions={"synboost_monai": __version__},
        has_files=False,
    )
    path = out_dir / REPORT_NAME
    atomic_write_text(path, page)
    return path


def _read_study(path: Path) -> dict[str, Any]:
    """Return a study's results without its clips' curves and prompts: the results of thousands of studies are in memory together."""
    study: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    study["clips"] = [{name: clip[name] for name in OF_CLIP if name in clip} for clip in study["clips"]]
    return study


def _overview(rows: Sequence[Mapping[str, Any]], studies: Sequence[Mapping[str, Any]]) -> list[Block]:
    counts = Counter((row["outcome"], row["reason"]) for row in rows)
    order = [outcome.value for outcome in Outcome]
    known = sorted(
        counts, key=lambda key: (order.index(key[0]) if key[0] in order else len(order), -counts[key], key[1])
    )
    frame = pd.DataFrame(
        [(outcome, reason.replace("_", " "), counts[outcome, reason]) for outcome, reason in known],
        columns=["outcome", "reason", "files"],
    )
    table = Table(
        "outcomes", "Files by outcome", frame, note="Every file of the input once; ledger.csv has a line for each."
    )
    num_review = sum(study["verdict"] == "review" for study in studies)
    clips = [clip for study in studies for clip in study["clips"]]
    num_texts = sum(clip.get("text_in_sector") != "none found" for clip in clips)
    return [
        Text(
            f"{num_texts} of {len(clips)} clips may show text within the sector, such as a name: a person should look before pictures or "
            "copies of them are given away (text_in_sector in measurements.json)."
        ),
        Text(f"{num_review} of {len(studies)} studies need review: a person should look before any number is used."),
        ReportTable(table, groups=["outcome"]),
    ]


def _study_table(studies: Sequence[Mapping[str, Any]]) -> list[Block]:
    lines = []
    for study in studies:
        line: dict[str, Any] = {"study": study["study"], "verdict": study["verdict"]}
        marked = []
        for measure in SHOWN:
            quantity, found = QUANTITIES[measure], best_measure(study, measure)
            words = f"{quantity.words[0]}, {quantity.unit}"
            line[words] = np.nan if found is None else round(float(found["value"]), 1)
            if measure == "ejection_fraction":
                line["method"] = "" if found is None else METHOD_WORDS[found["method"]]
            if found is not None and found["needs_review"]:
                marked.append(quantity.words[0])
        line["contours in doubt"] = ", ".join(marked)
        line["clips"] = len(study["clips"])
        lines.append(line)
    if not lines:
        return [Text("No study could be segmented.")]
    note = "Biplane where both apical views can be measured, else the four- or the two-chamber view; measurements.csv has every method."
    return [ReportTable(Table("studies", "Measures by study", pd.DataFrame(lines), note=note))]


def _pictures(out_dir: Path, studies: Sequence[Mapping[str, Any]]) -> list[Block]:
    blocks: list[Block] = []
    for study in studies[:MAX_STUDIES]:
        parts: list[Block] = []
        for clip in study["clips"]:
            cells = [
                _cell(path, clip)
                for path in sorted((out_dir / "studies" / study["study"]).glob(f"frame_{clip['clip']}_*.png"))
            ]
            view = str(clip["view"]).replace("_", "-") + _known_by(clip)
            spacing = "no calibration" if clip["spacing_mm"] is None else f"{clip['spacing_mm'][0]:.3f} mm a pixel"
            beat = clip["no_beat_reason"] or f"{len(clip['beats'])} beats, by {clip['phase_source']}"
            title = f"clip {clip['clip']}: {view}, {clip['num_frames']} frames, {spacing}, {beat}"
            parts.append(PictureRow(title, cells, columns=4))
            parts += [Text(reason, is_soft=True) for reason in clip["reasons"]]
        title = f"Study {study['study']}: {study['verdict']}"
        parts[:0] = [Text(reason, is_soft=True) for reason in study["reasons"] if not reason.startswith("clip ")]
        blocks += [Fold(title, parts)] if len(studies) > MAX_OPEN else [Text(title), *parts]
    if len(studies) > MAX_STUDIES:
        blocks.append(Text(f"And {len(studies) - MAX_STUDIES} more studies, in their folders."))
    return blocks or [Text("There are no pictures.")]


def _known_by(clip: Mapping[str, Any]) -> str:
    """Return how the view of a clip is known, where no tag says it."""
    if clip["view_source"] == "network":
        return f" (by the network, probability {clip['view_confidence'][clip['view']]:.2f})"
    return "" if clip["view_source"] == "tag" else f" (by {clip['view_source']})"


def _cell(path: Path, clip: Mapping[str, Any]) -> dict[str, Any]:
    from PIL import Image

    with Image.open(io.BytesIO(path.read_bytes())) as image:
        picture = np.asarray(image.convert("RGB"))
    frame = int(path.stem.rsplit("_", 1)[1])
    phases = {clip["end_diastolic_frame"]: "end-diastole", clip["end_systolic_frame"]: "end-systole"}
    caption = f"{phases.get(frame, 'frame')}, frame {frame}"
    return picture_cell(picture, f"Outlines of the left heart, {caption}", caption, jpeg=True)


def _files(rows: Sequence[Mapping[str, Any]], outcome: Outcome, name: str) -> list[Block]:
    of_outcome = [row for row in rows if row["outcome"] == outcome.value]
    if not of_outcome:
        return [Text("None.")]
    frame = pd.DataFrame([(row["path"], row["sentence"]) for row in of_outcome], columns=["file", "why"])
    return [ReportTable(Table(name, f"{len(of_outcome)} files", frame, note="ledger.csv has hashes and codes."))]


def _skipped(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    counts = Counter(row["sentence"] for row in rows if row["outcome"] == Outcome.SKIPPED.value)
    if not counts:
        return [Text("None.")]
    frame = pd.DataFrame(sorted(counts.items(), key=lambda item: (-item[1], item[0])), columns=["why", "files"])
    return [ReportTable(Table("skipped", "Files that are not for us", frame, note="ledger.csv names each."))]


def _settings(settings: Mapping[str, Any]) -> Block:
    flat = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    frame = pd.DataFrame(
        [(key.replace("_", " "), str(value) or "no") for key, value in flat.items()], columns=["setting", "value"]
    )
    return ReportTable(
        Table("settings", "What made these results", frame, note="The same in every object, with the prompts.")
    )
