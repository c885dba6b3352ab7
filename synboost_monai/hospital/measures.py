"""Measure a study on the clip of each view that can be trusted most: single plane, and biplane where there are both views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synboost_monai.heart.measures import MEASURES, METHODS, ClinicalMeasure, measure_patient
from synboost_monai.hospital.clip import END_DIASTOLE, END_SYSTOLE, SegmentedClip
from synboost_monai.records import VIEWS

if TYPE_CHECKING:
    from numpy.typing import NDArray

REPORTED_METHODS = tuple(method for method in METHODS if method != "biplane_camus")
"""Methods used for patients; CAMUS's own rule is only for comparison with CAMUS."""
NEEDS_REVIEW = "a segmentation needs review"
"""Warning of a measure if one of its frames has the verdict review."""


@dataclass(frozen=True)
class StudyMeasure:
    """Hold one measure of a study."""

    measure: str
    method: str
    unit: str
    value: float | None
    reason: str
    """Why there is no value."""
    warnings: tuple[str, ...]
    """Why the value is in doubt."""
    sources: tuple[tuple[str, tuple[int, ...]], ...]
    """Name of each clip that the value was measured on, and the indices of its frames."""

    def __post_init__(self) -> None:
        if (self.value is None) != bool(self.reason):
            raise ValueError(f"measures.py: {self.measure} has a value or a reason why not, not both and not neither")


def choose_clips(clips: Mapping[str, SegmentedClip]) -> dict[str, str]:
    """Choose the clip to measure of each view: calibrated, with a beat, accepted before review, then the highest predicted Dice.

    Args:
        clips: name -> clip; names decide between equals.
    Returns:
        view -> name of its clip.
    """
    chosen: dict[str, str] = {}
    for view in VIEWS.values():
        of_view = [name for name in sorted(clips) if clips[name].view == view and clips[name].beat is not None]
        of_view = [name for name in of_view if clips[name].facts.spacing_mm is not None]
        if of_view:
            chosen[view] = max(of_view, key=lambda n: (clips[n].verdict == "accept", clips[n].predicted_dice))
    return chosen


def measure_study(clips: Mapping[str, SegmentedClip]) -> list[StudyMeasure]:
    """Measure the volumes, ejection fraction, lengths and atrial volumes of a study.

    Args:
        clips: name -> clip, all of one patient.
    Returns:
        every measure by every method of `REPORTED_METHODS`, with a value or the reason why there is none.
    """
    chosen = choose_clips(clips)
    frames: dict[tuple[str, str], tuple[NDArray[Any], Sequence[float] | None] | str] = {}
    for view in VIEWS.values():
        for phase in (END_DIASTOLE, END_SYSTOLE):
            frames[view, phase] = _frame(clips, chosen.get(view), view, phase)
    return [
        _of_study(measure, clips, chosen) for measure in measure_patient(frames) if measure.method in REPORTED_METHODS
    ]


def _frame(
    clips: Mapping[str, SegmentedClip], name: str | None, view: str, phase: str
) -> tuple[NDArray[Any], Sequence[float] | None] | str:
    """Return label map and spacing of the frame that shows a view at a phase, or the reason why there is none."""
    if name is None:
        of_view = [clip for clip in clips.values() if clip.view == view]
        if not of_view:
            return "no clip of this view"
        if all(clip.facts.spacing_mm is None for clip in of_view):
            return "no calibration"
        reasons = [clip.no_beat_reason for clip in of_view if clip.no_beat_reason]
        return reasons[0] if reasons else "no clip of this view has a calibration and a beat"
    clip = clips[name]
    index = next(i for i, p in clip.phases.items() if p == phase)
    return clip.label_maps[index], clip.facts.spacing_mm


def _of_study(found: ClinicalMeasure, clips: Mapping[str, SegmentedClip], chosen: Mapping[str, str]) -> StudyMeasure:
    """Return a measure with its sources and warnings."""
    views = METHODS[found.method][1]
    phases = _phases_of(found.measure)
    names = [chosen[view] for view in views if view in chosen]
    sources = [(n, tuple(sorted(i for i, p in clips[n].phases.items() if p in phases))) for n in names]
    warnings = [found.warning] if found.warning else []
    for name in names:
        clip = clips[name]
        if any(clip.doubts[i]["verdict"] == "review" for i, p in clip.phases.items() if p in phases):
            warnings.append(NEEDS_REVIEW)
        if clip.view_source == "model":
            warnings.append("the view is the model's opinion")
        if clip.view_source == "network":
            words = str(clip.view).replace("_", " ")
            warnings.append(
                f"the view is what the network sees: {words}, probability {clip.view_confidence[str(clip.view)]:.2f}"
            )
        if clip.beat is not None and not clip.beat.is_whole:
            warnings.append("the beat reaches an end of the clip")
    value, reason = found.value, found.reason
    if value is not None and value < 0:  # ECG's or somebody's choice of frames may be wrong
        value, reason = None, "the end-systolic volume is the larger one"
    return StudyMeasure(
        found.measure,
        found.method,
        MEASURES[found.measure][1],
        value,
        reason,
        tuple(dict.fromkeys(warnings)) if found.value is not None else (),
        tuple(sources) if value is not None else (),
    )


def _phases_of(measure: str) -> tuple[str, ...]:
    """Return the phases whose frames a measure uses."""
    if measure.startswith("end_diastolic"):
        return (END_DIASTOLE,)
    return (END_SYSTOLE,) if measure.startswith("end_systolic") else (END_DIASTOLE, END_SYSTOLE)
