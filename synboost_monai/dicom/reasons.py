"""Explain the outcome of each file: one table of outcomes, reason codes and sentences for the user.

A sentence holds no text from a DICOM file, only numbers, tag keywords, and names of transfer syntaxes and classes. So no name, ID or
date can reach a log, a ledger or a report through it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Outcome(str, Enum):
    """Name the outcome of a file; every file of a run has exactly one."""

    PROCESSED = "processed"
    """Segmented, with a calibration, so that lengths and volumes are valid."""
    UNCALIBRATED = "uncalibrated"
    """Segmented, but its calibration is missing or in doubt, so there are no volumes in millilitres."""
    SKIPPED = "skipped"
    """Not to be segmented: another modality, a report, a directory file, a duplicate, or not a DICOM file."""
    REFUSED = "refused"
    """An ultrasound image that should have been segmented and could not be."""


@dataclass(frozen=True)
class Reason:
    """Hold one reason code with its outcome and its sentence."""

    code: str
    """Stable word that programs can compare."""
    outcome: Outcome
    sentence: str
    """Sentence shown to the user; its `{holes}` are filled with facts."""


def _table(*reasons: tuple[str, Outcome, str]) -> dict[str, Reason]:
    return {code: Reason(code, outcome, sentence) for code, outcome, sentence in reasons}


P, U, S, R = Outcome.PROCESSED, Outcome.UNCALIBRATED, Outcome.SKIPPED, Outcome.REFUSED

REASONS: dict[str, Reason] = _table(
    ("segmented", P, "segmented: {frames} frames"),
    # --- found by a scan (scan.py) ---
    ("not_dicom", S, "this is not a DICOM file"),
    ("empty_file", S, "the file is empty"),
    ("operating_system_file", S, "a file of the operating system, not of a patient"),
    ("special_file", S, "not a regular file but a {kind}; it was not opened"),
    ("symlink", S, "a link to {target}; links are not followed"),
    ("dicomdir", S, "a DICOMDIR: a table of contents without images"),
    ("other_modality", S, "a {modality} object ({sop_class}), not an ultrasound image"),
    ("not_an_image", S, "ultrasound, but not a two-dimensional image or clip: {sop_class}"),
    ("own_result", S, "a result of this software, made from another clip"),
    ("duplicate", S, "the same object as another file of this run, byte for byte or with the same content"),
    ("unreadable", R, "the file cannot be opened: {error}"),
    ("truncated_header", R, "the file ends within its header, after {bytes} bytes"),
    ("broken_header", R, "the header cannot be read: {problem}"),
    ("header_too_large", R, "the header is larger than {limit_mb} MB"),
    ("missing_identifier", R, "{keyword} is missing, so the object cannot be told from others"),
    ("bad_identifier", R, "{keyword} is not a valid identifier"),
    (
        "conflicting_duplicate",
        R,
        "another file has the same SOP Instance UID but other content; neither can be trusted",
    ),
    ("vanished", R, "the file was there when the folder was listed, and is not any more"),
    ("changed", R, "the file changed while the run was going on"),
    # --- found while reading (read.py, decode.py) ---
    ("no_pixels", R, "the object has no pixel data"),
    ("missing_attribute", R, "{keyword} is missing, without which the pixels cannot be read"),
    ("bad_attribute", R, "{keyword} is {value}; expected {expected}"),
    ("too_small", R, "{rows} x {columns} pixels; an image needs at least {minimum} x {minimum}"),
    ("too_large", R, "{rows} x {columns} pixels x {frames} frames are more than the limit of {limit} values"),
    ("too_many_frames", R, "{frames} frames are more than the limit of {limit}"),
    ("study_too_long", R, "its study would have more than {limit} frames with it"),
    ("inflates_too_far", R, "compressed {ratio} times: it would inflate to more than the limit of {limit_mb} MB"),
    ("unsupported_syntax", R, "the transfer syntax {syntax} is not supported"),
    (
        "missing_decoder",
        R,
        '{syntax} needs an optional decoder; install it with: pip install "synboost-monai[{extra}]"',
    ),
    ("unsupported_photometric", R, "the photometric interpretation {value} is not supported"),
    ("truncated_pixels", R, "the pixel data end early: {got} of {expected} {unit}"),
    ("broken_frame", R, "frame {frame} cannot be decoded: {problem}"),
    ("damaged_frame", R, "frame {frame} decodes, but a part of it is filler: its data end early"),
    ("frame_mismatch", R, "frame {frame} decodes to {got}; the header says {expected}"),
    ("blank", R, "every frame is blank"),
    ("timeout", R, "reading it took longer than the limit of {seconds} s"),
    ("out_of_memory", R, "reading it needs more than the limit of {limit_mb} MB of memory"),
    ("decoder_died", R, "the decoder ended the worker process ({how})"),
    ("not_two_dimensional", R, "no region of two-dimensional tissue: {what} alone"),
    ("other_view", S, "the view is {view}; apical four- and two-chamber views are segmented"),
    # --- problems of a calibration (regions.py) ---
    ("no_regions", U, "no ultrasound region says how large a pixel is"),
    ("no_tissue_region", U, "no ultrasound region is two-dimensional tissue"),
    (
        "several_tissue_regions",
        U,
        "{count} regions of two-dimensional tissue; one image was expected, so the largest was segmented",
    ),
    (
        "region_outside",
        U,
        "the tissue region reaches to column {column}, row {row} of an image of {columns} x {rows}: made for another size",
    ),
    ("region_too_small", U, "the tissue region is {rows} x {columns} pixels"),
    ("region_malformed", U, "{keyword} of the tissue region is missing, not a number, or contradicts the other values"),
    ("units_not_cm", U, "Physical Units of the tissue region are {x} and {y}, not centimetres (3)"),
    ("delta_not_positive", U, "Physical Delta of the tissue region is {x} and {y}; positive values were expected"),
    ("delta_implausible", U, "a pixel of {x} x {y} mm is no size of a cardiac ultrasound image"),
    ("depth_implausible", U, "the tissue region would be {depth} mm deep; {lowest} to {highest} mm were expected"),
    ("pixels_not_square", U, "a pixel is {x} mm wide and {y} mm high: too far from square for an ultrasound image"),
    # --- problems of a study (hospital/) ---
    (
        "given_frames",
        R,
        "frames {first} and {second} were given for a clip of {frames}; correct the file of given frames",
    ),
    ("model_failed", R, "the segmentation failed: {problem}"),
    ("cannot_write", R, "the results cannot be written: {problem}"),
    ("no_sector", R, "no ultrasound sector is found in its picture, so that what may be text cannot be blanked"),
    ("worker_lost", R, "the process that worked on its study ended {times} times without a word; is memory short?"),
    ("patients_mixed", R, "the files of one study name different patients"),
)
"""Reason code -> reason."""


class NotUsableError(ValueError):
    """Say why a file is not segmented, or (outcome `uncalibrated`) not measured in millimetres.

    Args:
        code: a key of `REASONS`.
        facts: one for each hole of its sentence; never text from a DICOM file.
    """

    def __init__(self, code: str, **facts: Any) -> None:
        self.reason = REASONS[code]
        self.facts = facts
        super().__init__(self.reason.sentence.format(**facts))

    def __reduce__(self) -> Any:
        return _again, (self.reason.code, self.facts)


def _again(code: str, facts: dict[str, Any]) -> NotUsableError:
    return NotUsableError(code, **facts)


def to_json(values: dict[str, Any]) -> str:
    """Return plain values and errors (`NotUsableError`) as JSON."""
    return json.dumps(values, default=_plain)


def from_json(text: bytes | bytearray) -> dict[str, Any]:
    """Return the values and errors that `to_json` wrote; a tuple has become a list."""
    return json.loads(text, object_hook=lambda one: _again(**one) if one.keys() == {"code", "facts"} else one)


def _plain(value: Any) -> Any:
    return {"code": value.reason.code, "facts": value.facts} if isinstance(value, NotUsableError) else str(value)
