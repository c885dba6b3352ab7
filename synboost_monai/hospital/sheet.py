"""Make the sheet of a study, one page for people: pictures, volume curves, numbers, verdict and what made them.

It is made from the content of measurements.json and the pictures of the frames that were judged. As HTML it lies beside them and says
nothing about the patient; as encapsulated PDF it goes to the archive and names the patient, as every object there does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synboost_monai.dicom.writing.objects import is_date, text_of
from synboost_monai.hospital.measures import NEEDS_REVIEW
from synboost_monai.hospital.results import best_measure
from synboost_monai.hospital.sheet_words import WORDS, number, say
from synboost_monai.pages.sheet import Card, Curve, Sheet, SheetPicture, SheetTable
from synboost_monai.quantities import QUANTITIES, RANGE_SOURCE, Quantity
from synboost_monai.structures import STRUCTURES

CARDS = (
    *(("ejection_fraction",), ("end_diastolic_volume_ml",), ("end_systolic_volume_ml",), ("mass_index", "mass_g")),
    ("atrial_volume_index", "end_systolic_atrial_volume_ml"),
)
"""Quantities that are shown large, measured or not: of each group the first that was measured, else the last."""
LEFT_OUT = ("end_systolic_length_mm", "end_diastolic_atrial_volume_ml", "end_systolic_atrial_area_cm2")
"""Quantities that only the files have."""
MAX_CLIPS = 2
"""Number of clips whose pictures and curves are shown."""
VIEW_KEYS = {"apical_four_chamber": "four_chamber", "apical_two_chamber": "two_chamber"}
"""View -> key of its words."""


def study_sheet(study: Mapping[str, Any], folder: Path, language: str) -> Sheet:
    """Return the sheet of a study, which does not name the patient.

    Args:
        study: content of measurements.json.
        folder: folder of the study's pictures.
        language: one of `quantities.LANGUAGES`.
    """

    def words(key: str, **facts: object) -> str:
        return say(key, language, **facts)

    shown = _shown_clips(study)
    details = [(words("study"), study["study"])]
    if study["sex"] is not None:
        details.append((words("sex"), words(study["sex"])))
    details += [
        (_capital(words(_view_key(clip))), words(f"by_{clip['view_source']}")) for clip in shown if _view_key(clip)
    ]
    model = study["model"]
    return Sheet(
        language=language,
        title=words("title"),
        details=details,
        warning=words("not_for_diagnosis"),
        verdict=words(study["verdict"]),
        is_good=study["verdict"] == "accept",
        reasons=_reasons(study, language),
        cards=[_card(study, names, language) for names in CARDS],
        pictures=[picture for clip in shown for picture in _pictures(clip, folder, language)],
        legend=[(words(s.name), "#{:02x}{:02x}{:02x}".format(*s.colour)) for s in STRUCTURES],
        curves=[curve for clip in shown if (curve := _curve(clip, language)) is not None],
        curve_words=(
            words("curves" if any(_has_curve(clip) for clip in shown) else "no_curves"),
            words("seconds" if all(clip["frame_times_ms"] for clip in shown) else "frames"),
            words("millilitres"),
            words("end_diastole"),
            words("end_systole"),
        ),
        main=_main_table(study, language),
        side=_beat_table(study, language),
        footer=(
            words(
                "made_by",
                software=study["software"],
                model=model["model"],
                weights=model.get("weights_sha256", "")[:12],
                settings=model.get("settings_sha256", "")[:12],
            ),
            words("ranges_of", source=RANGE_SOURCE),
            words("curve_note"),
        ),
    )


def patient_details(header: Any, language: str) -> list[tuple[str, str]]:
    """Return label and value of what names the patient and the study in a header."""
    name = text_of(header, "PatientName").split("=")[0].replace("^", " ")
    found = [("name", name), ("id", text_of(header, "PatientID"))]
    for key, keyword in (("born", "PatientBirthDate"), ("study_date", "StudyDate")):
        text = text_of(header, keyword)
        found.append((key, f"{text[:4]}-{text[4:6]}-{text[6:]}" if is_date(text) else ""))
    return [(say(key, language), value or "–") for key, value in found]


def _shown_clips(study: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the clips that are shown: those that were measured, else the first ones; the four-chamber view before the two-chamber view."""
    order = list(VIEW_KEYS)
    clips = [clip for clip in study["clips"] if clip["is_measured"]] or study["clips"][:MAX_CLIPS]
    return sorted(clips, key=lambda c: order.index(c["view"]) if c["view"] in order else len(order))[:MAX_CLIPS]


def _view_key(clip: Mapping[str, Any]) -> str:
    return VIEW_KEYS.get(clip["view"], "")


def _reasons(study: Mapping[str, Any], language: str) -> list[str]:
    """Return why the study needs review, each reason once: the doubts of its clips, and the warnings of its numbers."""
    found = []
    for clip in study["clips"]:
        for reason in clip["reason_codes"] if clip["is_measured"] else ():
            key = reason["code"] if reason["code"] in WORDS else "other_reason"
            where = [say(_view_key(clip), language)] if _view_key(clip) else []
            where += [say(reason["phase"], language)] if reason["phase"] else []
            what = [] if key == "not_apical" else [say(reason["structure"] or "all_structures", language)]
            subject = ", ".join([*where, *what])
            found.append(_capital(": ".join(filter(None, [subject, say(key, language)]))))
    if not any(clip["is_measured"] for clip in study["clips"]):
        found.append(_capital(say("nothing", language)))
    warnings = [w for m in study["measures"] for w in m["warnings"] if w != NEEDS_REVIEW]
    for warning in warnings:
        key = next((key for key in WORDS if key.startswith("the ") and warning.startswith(key)), "other_warning")
        found.append(_capital(say(key, language)))
    return list(dict.fromkeys(found))


def _card(study: Mapping[str, Any], names: Sequence[str], language: str) -> Card:
    name = next((name for name in names if best_measure(study, name) is not None), names[-1])
    quantity, found = QUANTITIES[name], best_measure(study, name)
    label = _label(quantity, language)
    if found is None:
        return Card(label, "–", "", say("not_measured", language))
    reference = quantity.reference_words(study["sex"], language)
    note = say("normal", language, range=reference) if reference[:1].isdigit() else reference
    note = note or say(found["method"], language)
    mark = say("in_doubt", language) if found["needs_review"] else ""
    return Card(label, number(found["value"], quantity.decimals, language), quantity.unit, note, mark)


def _label(quantity: Quantity, language: str) -> str:
    return _capital(say(quantity.name, language))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _pictures(clip: Mapping[str, Any], folder: Path, language: str) -> list[SheetPicture]:
    """Return the pictures of a clip in the order of its frames."""
    phases = {clip["end_diastolic_frame"]: "end_diastole", clip["end_systolic_frame"]: "end_systole"}
    found = []
    for path in folder.glob(f"frame_{clip['clip']}_*.png"):
        frame = int(path.stem.rsplit("_", 1)[1])
        parts = [say(f"{_view_key(clip)}_short", language)] if _view_key(clip) else []
        parts += [say(phases[frame], language)] if frame in phases else []
        caption = ", ".join([*parts, say("frame", language, number=frame)])
        found.append((frame, SheetPicture(path.read_bytes(), _capital(caption))))
    return [picture for _, picture in sorted(found, key=lambda item: item[0])]


def _has_curve(clip: Mapping[str, Any]) -> bool:
    return clip["volumes_ml"] is not None and clip["num_frames"] > 1 and any(v is not None for v in clip["volumes_ml"])


def _curve(clip: Mapping[str, Any], language: str) -> Curve | None:
    if not _has_curve(clip):
        return None
    times = clip["frame_times_ms"]
    return Curve(
        say(_view_key(clip), language) if _view_key(clip) else clip["clip"],
        list(range(1, clip["num_frames"] + 1)) if times is None else [t / 1000 for t in times],
        [float("nan") if v is None else v for v in clip["volumes_ml"]],
        [beat["end_diastolic_frame"] - 1 for beat in clip["beats"]],
        [beat["end_systolic_frame"] - 1 for beat in clip["beats"]],
    )


def _main_table(study: Mapping[str, Any], language: str) -> SheetTable:
    rows: list[tuple[str, ...]] = []
    marked: set[int] = set()
    for quantity in QUANTITIES.values():
        found = best_measure(study, quantity.name)
        if quantity.name in LEFT_OUT or found is None:
            continue
        marks = []
        if found["needs_review"]:
            marks.append(say("in_doubt", language))
            marked.add(len(rows))
        if quantity.is_outside(found["value"], study["sex"]):
            low, _ = found["reference"]
            marks.append(say("below" if found["value"] < low else "above", language))
        is_rate = quantity.name == "heart_rate" and not found["basis"].startswith("header")
        method = found["method"] if quantity.name != "heart_rate" else "from_times" if is_rate else "header"
        rows.append(
            (
                _label(quantity, language),
                number(found["value"], quantity.decimals, language),
                "" if quantity.unit == "1" else quantity.unit,
                quantity.reference_words(study["sex"], language),
                say(method, language),
                ", ".join(marks),
            )
        )
    head = [say(key, language) for key in ("measure", "value", "unit", "range", "method", "mark")]
    widths = (70, 15, 15, 40, 32, 24)
    return SheetTable(say("measures", language), head, rows, widths, frozenset({1}), frozenset(marked))


def _beat_table(study: Mapping[str, Any], language: str) -> SheetTable:
    """Return volumes and ejection fraction of each whole beat."""
    beats: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
    for m in study["measures"]:
        if m["beat"] is not None and m["value"] is not None:
            beats.setdefault((m["method"], m["beat"]), {})[m["measure"]] = m
    rows: list[tuple[str, ...]] = []
    marked: set[int] = set()
    for (method, beat), found in beats.items():
        is_doubted = any(m["needs_review"] for m in found.values())
        marked |= {len(rows)} if is_doubted else set()
        cells = [
            number(found[name]["value"], 0, language)
            for name in ("end_diastolic_volume_ml", "end_systolic_volume_ml", "ejection_fraction")
        ]
        mark = say("in_doubt", language) if is_doubted else ""
        rows.append((f"{say(f'{method}_short', language)}, {beat}", *cells, mark))
    heads = [
        say("beat", language),
        f"{say('edv', language)} ml",
        f"{say('esv', language)} ml",
        f"{say('ef', language)} %",
    ]
    widths = (16, 15, 15, 13, 17)
    return SheetTable(say("beats", language), [*heads, ""], rows, widths, frozenset({1, 2, 3}), frozenset(marked))
