"""Write the results of a study: measurements.json, measurements.csv, and the numbers of its structured report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from synboost_monai import __version__
from synboost_monai.csv_files import csv_text
from synboost_monai.dicom.writing.sr import Measurement, SourceFrames, is_believable
from synboost_monai.files import atomic_write_text
from synboost_monai.heart.measures import METHODS
from synboost_monai.hospital.clip import SegmentedClip
from synboost_monai.hospital.measures import NEEDS_REVIEW, StudyMeasure
from synboost_monai.hospital.privacy import visible
from synboost_monai.quantities import BIPLANE, FOUR_CHAMBER, QUANTITIES, TWO_CHAMBER

FORMAT = 2
"""Version of measurements.json; raised when readers have to know of a change."""
JSON_NAME, CSV_NAME = "measurements.json", "measurements.csv"
NOTE = "Made by software for research. Not for diagnosis."
"""Note in every result."""

CSV_COLUMNS = (
    *("study", "measure", "method", "beat", "value", "unit", "needs_review", "reference", "verdict", "warnings"),
    *("reason", "basis", "sources"),
)
"""Columns of measurements.csv; `needs_review` is the mark of a number whose contours are in doubt."""
BEST_FIRST = (BIPLANE, FOUR_CHAMBER, TWO_CHAMBER)
"""Methods in the order in which tables that show one number of each quantity take it."""


def study_results(
    study: str,
    study_instance_uid: str,
    provenance: Mapping[str, Any],
    clips: Mapping[str, SegmentedClip],
    instances: Mapping[str, str],
    measures: Sequence[StudyMeasure],
) -> dict[str, Any]:
    """Collect all results of a study, ready for JSON; frames are numbered from 1, as in DICOM.

    Args:
        study: short hash that names its folder.
        study_instance_uid: UID of the files, or of their de-identified copies.
        provenance: the model's names, hashes and settings.
        clips: name -> clip.
        instances: name of a clip -> its SOP Instance UID.
        measures: measures of the study.
    """
    used = {name for measure in measures for name, _ in measure.sources}
    reasons = [f"clip {name}: {reason}" for name in sorted(used) for reason in clips[name].reasons]
    doubts = [f"{METHODS[m.method][0]}: {w}" for m in measures for w in m.warnings if w != NEEDS_REVIEW]
    told = [*reasons, *([] if used else ["nothing could be measured"]), *dict.fromkeys(doubts)]
    return {
        "format": FORMAT,
        "note": NOTE,
        "software": f"SynBoost-MONAI {__version__}",
        "study": study,
        "study_instance_uid": study_instance_uid,
        "model": dict(provenance),
        "verdict": "review" if told else "accept",
        "reasons": told,
        "sex": sex_of(clips.values()),
        "measures": [_measure(m, sex_of(clips.values())) for m in measures],
        "clips": [_clip(name, clips[name], instances[name], name in used) for name in sorted(clips)],
    }


def write_results(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write measurements.json and measurements.csv, each whole or not at all."""
    json_path, csv_path = folder / JSON_NAME, folder / CSV_NAME
    atomic_write_text(json_path, json.dumps(results, indent=1, allow_nan=False) + "\n")
    atomic_write_text(csv_path, measures_csv([results]))
    return [json_path, csv_path]


def measures_csv(studies: Sequence[Mapping[str, Any]]) -> str:
    """Return every measure of some studies as CSV, one line each."""
    rows: list[Sequence[str]] = [CSV_COLUMNS]
    for study in studies:
        for m in study["measures"]:
            digits = max(1, QUANTITIES[m["measure"]].decimals)
            value = "" if m["value"] is None else f"{m['value']:.{digits}f}"
            sources = " ".join(f"{s['clip']}:{'+'.join(map(str, s['frames']))}" for s in m["sources"])
            cells = {
                **m,
                "study": study["study"],
                "verdict": study["verdict"],
                "beat": "" if m["beat"] is None else m["beat"],
                "value": value,
                "needs_review": "yes" if m["needs_review"] else "",
                "reference": "" if m["reference"] is None else "{:g} to {:g}".format(*m["reference"]),
                "warnings": "; ".join(m["warnings"]),
                "sources": sources,
            }
            rows.append([visible(str(cells[column])) for column in CSV_COLUMNS])
    return csv_text(rows)


def best_measure(study: Mapping[str, Any], measure: str) -> Mapping[str, Any] | None:
    """Return a study's number of a quantity by the best method that gave one (`BEST_FIRST`, then any other); None without a number."""
    found = {m["method"]: m for m in study["measures"] if m["measure"] == measure and m["beat"] is None}
    methods = [*BEST_FIRST, *(method for method in found if method not in BEST_FIRST)]
    return next((found[m] for m in methods if m in found and found[m]["value"] is not None), None)


def sex_of(clips: Iterable[SegmentedClip]) -> str | None:
    """Return the patient's sex, female or male; None if the headers give none or disagree."""
    known = {clip.facts.sex for clip in clips} - {None}
    return known.pop() if len(known) == 1 else None


def report_measurements(
    measures: Sequence[StudyMeasure], instances: Mapping[str, tuple[str, str]], sex: str | None = None
) -> list[Measurement]:
    """Return the believable measures that have codes, as a structured report holds them; an ejection fraction only with both its volumes.

    Args:
        measures: measures of a study.
        instances: name of a clip -> SOP class and instance UID.
        sex: female or male, on which normal ranges depend; None: not known.
    """
    found: dict[tuple[str, str, int | None], Measurement] = {}
    for m in measures:
        quantity = QUANTITIES[m.measure]
        if m.value is None or m.method not in quantity.codes:
            continue
        sources = tuple(SourceFrames(*instances[name], tuple(i + 1 for i in frames)) for name, frames in m.sources)
        comments = [f"In doubt: {warning}" for warning in m.warnings] + ([f"From: {m.basis}"] if m.basis else [])
        reference = None if quantity.reference is None else quantity.reference.of(sex)
        measurement = Measurement(m.measure, m.method, m.value, sources, m.beat, tuple(comments), reference)
        if is_believable(measurement):
            found[m.measure, m.method, m.beat] = measurement
    volumes = ("end_diastolic_volume_ml", "end_systolic_volume_ml")
    return [
        measurement
        for (measure, method, beat), measurement in found.items()
        if measure != "ejection_fraction" or all((volume, method, beat) in found for volume in volumes)
    ]


def _measure(m: StudyMeasure, sex: str | None) -> dict[str, Any]:
    quantity = QUANTITIES[m.measure]
    reference = None if quantity.reference is None else quantity.reference.of(sex)
    code = quantity.codes.get(m.method)
    return {
        "measure": m.measure,
        "method": m.method,
        "beat": m.beat,
        "unit": m.unit,
        "value": None if m.value is None else round(m.value, 3),
        "needs_review": m.is_doubted,
        "reference": None if reference is None else list(reference),
        "code": None if code is None else list(code),
        "reason": m.reason,
        "warnings": list(m.warnings),
        "basis": m.basis,
        "sources": [{"clip": name, "frames": [i + 1 for i in frames]} for name, frames in m.sources],
    }


def _clip(name: str, clip: SegmentedClip, instance: str, is_measured: bool) -> dict[str, Any]:
    beat, problem = clip.beat, clip.facts.calibration_problem
    return {
        "clip": name,
        "sop_instance_uid": instance,
        "is_measured": is_measured,
        "num_frames": clip.facts.num_frames,
        "spacing_mm": None if clip.facts.spacing_mm is None else [round(s, 6) for s in clip.facts.spacing_mm],
        "calibration_problem": None if problem is None else problem.reason.code,
        "text_in_sector": {True: "possible", False: "none found", None: "not known"}[clip.has_text],
        "view": clip.view,
        "view_source": clip.view_source,
        "view_confidence": {view: round(value, 4) for view, value in clip.view_confidence.items()},
        "phase_source": clip.phase_source,
        "end_diastolic_frame": None if beat is None else beat.end_diastole + 1,
        "end_systolic_frame": None if beat is None else beat.end_systole + 1,
        "beats": [
            {"end_diastolic_frame": b.end_diastole + 1, "end_systolic_frame": b.end_systole + 1, "is_whole": b.is_whole}
            for b in clip.beats
        ],
        "frame_times_ms": None
        if clip.facts.frame_times_ms is None
        else [round(t, 3) for t in clip.facts.frame_times_ms],
        "volumes_ml": None
        if clip.volumes_ml is None
        else [round(v, 2) if v == v else None for v in clip.volumes_ml.tolist()],
        "no_beat_reason": clip.no_beat_reason,
        "ventricle_pixels": [int(a) for a in clip.areas],
        "verdict": clip.verdict,
        "reasons": clip.reasons,
        "reason_codes": [
            {"frame": i + 1, "phase": clip.phases.get(i), "code": reason["code"], "structure": reason["structure"]}
            for i in clip.frames
            for reason in clip.doubts[i]["reasons"]
        ],
        "predicted_dice": round(clip.predicted_dice, 4),
        "prompts": {str(i + 1): clip.prompts[i] for i in clip.frames},
        "prompts_of_other_frames": clip.first_prompts,
    }
