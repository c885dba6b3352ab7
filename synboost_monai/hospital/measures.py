"""Measure a study on the clip of each view that can be trusted most: single plane, and biplane where there are both views.

The numbers of a study come from one beat of each of these clips. Volumes and ejection fraction are also computed for every whole beat of
each clip by itself: beats of two clips are not the same ones, so that these are of single planes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from synboost_monai.heart.measures import METHODS, ClinicalMeasure, body_surface_m2, measure_patient
from synboost_monai.heart.volumes import CannotMeasureError, disk_volume_ml, ejection_fraction, measure_ventricle
from synboost_monai.hospital.beats import Beat, frames_of_r_waves
from synboost_monai.hospital.clip import END_DIASTOLE, END_SYSTOLE, SegmentedClip
from synboost_monai.quantities import HEADER, QUANTITIES
from synboost_monai.records import VIEWS

if TYPE_CHECKING:
    from numpy.typing import NDArray

REPORTED_METHODS = tuple(method for method in METHODS if method != "biplane_camus")
"""Methods used for patients; CAMUS's own rule is only for comparison with CAMUS."""
NEEDS_REVIEW = "a segmentation needs review"
"""Warning of a measure if one of its frames has the verdict review."""
BEAT_AT_END = "the beat reaches an end of the clip"
"""Warning of a measure, or reason why there is none, if a beat's end-diastole or end-systole may be out of sight."""
LARGER_SYSTOLE = "the end-systolic volume is the larger one"
"""Reason why there is no ejection fraction: frames or contours must be wrong."""
BEAT_MEASURES = ("end_diastolic_volume_ml", "end_systolic_volume_ml", "ejection_fraction")
"""Measures of each beat."""


@dataclass(frozen=True)
class StudyMeasure:
    """Hold one measure of a study."""

    measure: str
    method: str
    value: float | None
    reason: str = ""
    """Why there is no value."""
    warnings: tuple[str, ...] = ()
    """Why the value is in doubt."""
    sources: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Name of each clip that the value was measured on, and the indices of its frames."""
    beat: int | None = None
    """Number of the beat in its clip, from 1; None for a number of the study."""
    basis: str = ""
    """What the value comes from, where that is not always the same."""

    def __post_init__(self) -> None:
        if (self.value is None) != bool(self.reason):
            raise ValueError(f"measures.py: {self.measure} has a value or a reason why not, not both and not neither")

    @property
    def unit(self) -> str:
        """Return the unit of the value."""
        return QUANTITIES[self.measure].unit

    @property
    def is_doubted(self) -> bool:
        """Return whether one of the contours that it was measured on needs review."""
        return NEEDS_REVIEW in self.warnings


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
    """Measure the volumes, ejection fraction, mass, lengths, atrial volumes and heart rate of a study, and each of its beats.

    Args:
        clips: name -> clip, all of one patient.
    Returns:
        every measure by every method of `REPORTED_METHODS` that it has, with a value or the reason why there is none; those of single
        beats come last.
    """
    chosen = choose_clips(clips)
    frames: dict[tuple[str, str], tuple[NDArray[Any], Sequence[float] | None] | str] = {}
    for view in VIEWS.values():
        for phase in (END_DIASTOLE, END_SYSTOLE):
            frames[view, phase] = _frame(clips, chosen.get(view), view, phase)
    found = [
        _of_study(measure, clips, chosen)
        for measure in measure_patient(frames, more=True)
        if measure.method in REPORTED_METHODS
    ]
    beats: list[StudyMeasure] = []
    for method in REPORTED_METHODS:
        name = chosen.get(METHODS[method][1][0])
        if len(METHODS[method][1]) > 1 or name is None:
            continue
        clip = clips[name]
        beats_of_clip = {n: b for n, b in enumerate(clip.beats, start=1) if n in clip.measured_beats or not b.is_whole}
        of_clip = [m for n, beat in beats_of_clip.items() for m in _of_beat(clip, name, method, n, beat)]
        found += [*_spread(of_clip, method), _heart_rate(clip, name, method)]
        beats += of_clip
    surface = _body_surface(clips, chosen)
    indices = {q.index_of: q.name for q in QUANTITIES.values() if q.index_of}
    found += [surface, *(_index(m, indices[m.measure], surface) for m in found if m.measure in indices)]
    order = list(QUANTITIES)
    return [*sorted(found, key=lambda m: order.index(m.measure)), *beats]  # stable: methods keep their order


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
    phases = _phases_of(found.measure)
    names = [chosen[view] for view in METHODS[found.method][1] if view in chosen]
    sources = [(n, tuple(sorted(i for i, p in clips[n].phases.items() if p in phases))) for n in names]
    warnings = [found.warning] if found.warning else []
    for name, indices in sources:
        warnings += _warnings(clips[name], indices)
        beat = clips[name].beat
        if beat is not None and not beat.is_whole:
            warnings.append(BEAT_AT_END)
    value, reason = found.value, found.reason
    # ECG's or somebody's choice of frames may be wrong
    if value is not None and value < QUANTITIES[found.measure].limits[0]:
        value, reason, sources = None, LARGER_SYSTOLE, []
    if found.value is None:
        return StudyMeasure(found.measure, found.method, None, reason)
    kept = tuple(dict.fromkeys(warnings))
    return StudyMeasure(found.measure, found.method, value, reason, kept, tuple(sources))


def _warnings(clip: SegmentedClip, frames: Iterable[int]) -> list[str]:
    """Return why a number that was measured on these frames of a clip is in doubt."""
    warnings = [NEEDS_REVIEW] if clip.is_doubted(frames) else []
    if clip.view_source == "model":
        warnings.append("the view is the model's opinion")
    if clip.view_source == "network":
        words = str(clip.view).replace("_", " ")
        warnings.append(
            f"the view is what the network sees: {words}, probability {clip.view_confidence[str(clip.view)]:.2f}"
        )
    return warnings


def _of_beat(clip: SegmentedClip, name: str, method: str, number: int, beat: Beat) -> list[StudyMeasure]:
    """Return volumes and ejection fraction of one beat; of a beat that is not whole only the reason why there are none."""
    frames, reason = (beat.end_diastole, beat.end_systole), ""
    values: list[float] = []
    try:
        for index in frames if beat.is_whole else ():
            values.append(disk_volume_ml(measure_ventricle(clip.label_maps[index], clip.facts.spacing_mm)))
    except CannotMeasureError as error:
        reason = str(error)
    if not beat.is_whole:
        reason = BEAT_AT_END
    elif not reason and values[1] > values[0]:
        reason = LARGER_SYSTOLE
    if reason:
        return [StudyMeasure(measure, method, None, reason, beat=number) for measure in BEAT_MEASURES]
    found = zip(BEAT_MEASURES, [*values, ejection_fraction(*values)], (frames[:1], frames[1:], frames))
    return [
        StudyMeasure(m, method, value, "", tuple(_warnings(clip, indices)), ((name, indices),), beat=number)
        for m, value, indices in found
    ]


def _spread(beats: Sequence[StudyMeasure], method: str) -> list[StudyMeasure]:
    """Return mean and standard deviation of the ejection fractions of a clip's beats; doubted if one of them is."""
    known = [m for m in beats if m.measure == "ejection_fraction" and m.value is not None]
    fractions = [m.value for m in known if m.value is not None]
    ways = {"ejection_fraction_mean": statistics.mean, "ejection_fraction_sd": statistics.stdev}
    if len(fractions) < 2:
        reason = f"{len(fractions)} whole beats were measured; at least 2 are needed"
        return [StudyMeasure(measure, method, None, reason) for measure in ways]
    warnings = tuple(dict.fromkeys(w for m in known for w in m.warnings))
    name = known[0].sources[0][0]  # they are all of one clip
    frames = {i for m in known for _, indices in m.sources for i in indices}
    sources, basis = ((name, tuple(sorted(frames))),), f"{len(fractions)} whole beats"
    return [
        StudyMeasure(measure, method, float(of_all(fractions)), "", warnings, sources, basis=basis)
        for measure, of_all in ways.items()
    ]


def _heart_rate(clip: SegmentedClip, name: str, method: str) -> StudyMeasure:
    """Return the heart rate by the clip's R waves, or the times between its end-diastoles or end-systoles, or else by the header."""
    times = clip.facts.frame_times_ms
    r_waves = frames_of_r_waves(times, clip.facts.r_wave_times_ms)
    last = clip.facts.num_frames - 1
    ways = (
        (r_waves, "R waves"),
        ([b.end_diastole for b in clip.beats if b.end_diastole > 0], "end-diastoles"),
        ([b.end_systole for b in clip.beats if b.end_systole < last], "end-systoles"),
    )
    value, basis, frames = clip.facts.heart_rate, "header (Heart Rate)", tuple(sorted(clip.phases))
    warnings: list[str] = []
    for indices, words in ways:
        if times is not None and len(indices) > 1:
            value = 60_000 / statistics.median(times[b] - times[a] for a, b in zip(indices, indices[1:]))
            basis, frames = f"frame times of {len(indices)} {words}", tuple(indices)
            if words != "R waves" and clip.is_doubted(i for i in indices if i in clip.doubts):
                warnings.append(NEEDS_REVIEW)
            break
    low, high = QUANTITIES["heart_rate"].limits
    if value is None or not low <= value <= high:
        reason = "neither two beats with frame times nor a plausible heart rate in the header"
        return StudyMeasure("heart_rate", method, None, reason)
    return StudyMeasure("heart_rate", method, value, "", tuple(warnings), ((name, frames),), basis=basis)


def _body_surface(clips: Mapping[str, SegmentedClip], chosen: Mapping[str, str]) -> StudyMeasure:
    """Return the body surface area by the headers of the measured clips, which must agree."""
    bodies = {(clips[name].facts.height_m, clips[name].facts.weight_kg) for name in chosen.values()}
    if len(bodies) != 1:
        reason = "the headers of the clips disagree about height or weight" if bodies else "no clip is measured"
        return StudyMeasure("body_surface_m2", HEADER, None, reason)
    try:
        value = body_surface_m2(*bodies.pop())
    except CannotMeasureError as error:
        return StudyMeasure("body_surface_m2", HEADER, None, str(error))
    sources = tuple((name, tuple(sorted(clips[name].phases))) for name in chosen.values())
    basis = "height and weight of the header, DuBois"
    return StudyMeasure("body_surface_m2", HEADER, value, "", (), sources, basis=basis)


def _index(of: StudyMeasure, measure: str, surface: StudyMeasure) -> StudyMeasure:
    """Return a measure divided by body surface area, as doubtful as the measure."""
    if of.value is None or surface.value is None:
        return StudyMeasure(measure, of.method, None, of.reason or f"body surface area: {surface.reason}")
    return replace(of, measure=measure, value=of.value / surface.value, basis=surface.basis)


def _phases_of(measure: str) -> tuple[str, ...]:
    """Return the phases whose frames a measure uses."""
    if measure.startswith("end_diastolic") or measure in ("sphericity", "mass_g"):
        return (END_DIASTOLE,)
    return (END_SYSTOLE,) if measure.startswith("end_systolic") else (END_DIASTOLE, END_SYSTOLE)
