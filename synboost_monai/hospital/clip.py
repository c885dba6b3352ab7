"""Segment a clip or still frame by frame, find its view and beats, and segment the beats' frames again with richer prompts.

Every frame is first segmented with the prompts that need no attributes (P1), by a small network if the segmenter has a scout. The left
ventricle's area over time gives the beats, and its volume a curve. The frames at end-diastole and end-systole of each whole beat are then
segmented again with view, phase, sex and age in the prompt, as far as the bundle's prompt level uses them and the file gives them, and
judged. Only those are measured.

T: frames of the clip. h, w: rows and columns of the ultrasound region.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from synboost_monai.dicom.reading.read import ClipFacts
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.heart.volumes import CannotMeasureError, disk_volume_ml, measure_ventricle
from synboost_monai.hospital.beats import Beat, NoBeatError, find_beats, frames_of_r_waves
from synboost_monai.records import PHASES, VIEWS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from synboost_monai.hospital.model import EchoSegmenter

NUM_VIEW_FRAMES = 4
"""Number of frames, spread over the clip, that tell the view."""
REACH = 2
"""Number of frames to either side of a scout's end-diastole and end-systole among which the segmenter itself looks for the extreme."""
MIN_VIEW_PROBABILITY = 0.95
"""Smallest mean probability of a view over some frames at which a network's view is taken; below it, real views were often mistaken."""
MAX_BEATS = 30
"""Largest number of whole beats of a clip that are measured, the first ones: usual clips have 1 to 5."""
END_DIASTOLE, END_SYSTOLE = PHASES["ED"], PHASES["ES"]

ReadFrames = Callable[[Sequence[int] | None], Iterator["NDArray[np.uint8]"]]
"""Indices of frames (None: all, in their order) -> windows (T', h, w) of these frames."""
SeenViews = list[dict[str, Any]]
"""What a network sees in some frames, as `SegmentedFrames.views`; empty if it does not know views."""


class PackedMaps:
    """Hold label maps at less than a hundredth of their size (zlib), so that a long clip takes no more memory than a short one."""

    def __init__(self) -> None:
        self._packed: dict[int, bytes] = {}
        self._shape: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self._packed)

    def __setitem__(self, index: int, label_map: NDArray[np.uint8]) -> None:
        self._shape = label_map.shape
        self._packed[index] = zlib.compress(np.ascontiguousarray(label_map).tobytes(), 1)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return np.frombuffer(zlib.decompress(self._packed[index]), np.uint8).reshape(self._shape)


@dataclass
class SegmentedClip:
    """Hold what was found in a clip."""

    facts: ClipFacts
    label_maps: PackedMaps
    """Label maps of the frames that are kept, (h, w)."""
    areas: NDArray[np.float64]
    """Area of the left ventricular cavity in each frame, in pixels, (T,), with the first prompts."""
    view: str | None = None
    view_source: str = "unknown"
    """option, tag, network (it sees the view), model (it is surer of its masks with that view in the prompt), or unknown."""
    view_confidence: Mapping[str, float] = field(default_factory=dict)
    """For each view, the network's probability, or the model's expected Dice with that view in the prompt."""
    beats: tuple[Beat, ...] = ()
    beat: Beat | None = None
    """The beat that stands for the clip."""
    volumes_ml: NDArray[np.float64] | None = None
    """Volume of the left ventricle in each frame by disks in this one plane, (T,), with the first prompts, not judged; NaN where it cannot
    be measured; None without a calibration."""
    phase_source: str = "none"
    """area, ecg, given, or none."""
    no_beat_reason: str = ""
    doubts: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Doubts about the frames that were segmented again, by index: those of `measured_beats`, or one frame where there is no beat."""
    prompts: dict[int, list[str]] = field(default_factory=dict)
    """Prompts of the same frames."""
    has_text: bool | None = None
    """Whether there may be text within the sector; None where that is not known."""
    first_prompts: list[str] = field(default_factory=list)
    """Prompts of all other frames."""

    @property
    def phases(self) -> dict[int, str]:
        """Return index of a frame of the clip's beat -> its phase."""
        return {} if self.beat is None else phases_of(self.beat)

    @property
    def measured_beats(self) -> dict[int, Beat]:
        """Return number of a beat, from 1 -> the beat, of the first `MAX_BEATS` whole beats and the one that stands for the clip."""
        whole = [beat for beat in self.beats if beat.is_whole][:MAX_BEATS]
        return {n: beat for n, beat in enumerate(self.beats, start=1) if beat in whole or beat == self.beat}

    @property
    def frames(self) -> list[int]:
        """Return the indices of the frames that stand for the clip: the beat's two, or one of a still or a clip without a beat."""
        return sorted(self.phases or self.doubts)

    @property
    def verdict(self) -> str:
        """Return accept if the frames that stand for the clip are all accepted, else review."""
        return "accept" if self.frames and not self.is_doubted(self.frames) else "review"

    def is_doubted(self, frames: Iterable[int]) -> bool:
        """Return whether any of these frames, which were judged, needs review."""
        return any(self.doubts[i]["verdict"] == "review" for i in frames)

    @property
    def reasons(self) -> list[str]:
        """Return why the verdict is review, in words."""
        words = {frame: self.phases.get(frame, "frame").replace("_", "-") for frame in self.frames}
        return [
            f"{words[i]} (frame {i + 1}): {reason['message']}"
            for i in self.frames
            for reason in self.doubts[i]["reasons"]
        ]

    @property
    def predicted_dice(self) -> float:
        """Return the mean predicted Dice of the frames that stand for the clip, 0..1."""
        return float(np.mean([self.doubts[i]["predicted_dice"] for i in self.frames])) if self.doubts else 0.0


def phases_of(beat: Beat) -> dict[int, str]:
    """Return index of a beat's frame -> its phase."""
    return {beat.end_diastole: END_DIASTOLE, beat.end_systole: END_SYSTOLE}


def segment_clip(
    model: EchoSegmenter,
    facts: ClipFacts,
    read: ReadFrames,
    *,
    view: str | None = None,
    given: tuple[int, int] | None = None,
    keeps_all: bool = False,
) -> SegmentedClip:
    """Segment a clip or still.

    Args:
        model: the network, its prompts and postprocessing.
        facts: what the header says.
        read: gives the frames; called for all of them once, in windows, and again for a few.
        view: the view, whatever the header says; None: the header's, else the model's opinion.
        given: indices of end-diastole and end-systole, where somebody has chosen them; None: they are looked for.
        keeps_all: keep the label maps of all frames, not only of those that are measured.
    Raises:
        NotUsableError: if a given frame does not exist.
    """
    if given is not None and not all(0 <= i < facts.num_frames for i in given):
        first, second = (index + 1 for index in given)
        raise NotUsableError("given_frames", first=first, second=second, frames=facts.num_frames)
    finder = model if keeps_all or model.scout is None else model.scout
    clip, seen = _first_pass(finder, facts, read, keeps_all)
    seen = [seen[i] for i in _view_frames(facts)] if seen else []
    _choose_beat(clip, given)
    itself = seen if finder is model else []
    if finder is not model and given is None and clip.beat is not None:
        itself = _look_closer(clip, model, read)
    _choose_view(clip, [seen, itself], model, read, view)
    _second_pass(clip, model, read)
    return clip


def _first_pass(
    model: EchoSegmenter, facts: ClipFacts, read: ReadFrames, keeps_all: bool
) -> tuple[SegmentedClip, SeenViews]:
    """Segment every frame with the prompts that need no attributes; where only areas are wanted, on the network's own grid."""
    maps = PackedMaps()
    areas: list[float] = []
    volumes: list[float] = []
    seen: SeenViews = []
    for window in read(None):
        found = model.segment(window, facts.spacing_mm, {}, is_first=True, is_small=not keeps_all)
        if keeps_all:
            for index, label_map in enumerate(found.label_maps, start=len(areas)):
                maps[index] = label_map
        areas.extend(float(a) for a in found.areas)
        seen.extend(found.views or [])
        if facts.spacing_mm is not None:
            scale = [
                spacing * n / m for spacing, n, m in zip(facts.spacing_mm, window.shape[1:], found.label_maps.shape[1:])
            ]
            volumes.extend(_volume_ml(label_map, scale) for label_map in found.label_maps)
    clip = SegmentedClip(
        facts,
        maps,
        np.array(areas, dtype=np.float64),
        volumes_ml=np.array(volumes) if facts.spacing_mm is not None else None,
        first_prompts=model.prompts({}, is_first=True),
    )
    return clip, seen


def _volume_ml(label_map: NDArray[np.uint8], spacing_mm: Sequence[float]) -> float:
    """Return the volume of the left ventricle by disks in one plane; NaN if it cannot be measured."""
    try:
        return disk_volume_ml(measure_ventricle(label_map, spacing_mm))
    except CannotMeasureError:
        return float("nan")


def _choose_beat(clip: SegmentedClip, given: tuple[int, int] | None) -> None:
    """Find the beats, and choose the one whose change of area is the median of the whole beats (of all, if none is whole)."""
    if given is not None:
        clip.beat, clip.phase_source = Beat(given[0], given[1], True), "given"
        clip.beats = (clip.beat,)
        return
    try:
        clip.beats = tuple(find_beats(clip.areas, clip.facts.frame_times_ms, clip.facts.r_wave_times_ms))
    except NoBeatError as error:
        clip.no_beat_reason = str(error)
        return
    clip.phase_source = "ecg" if frames_of_r_waves(clip.facts.frame_times_ms, clip.facts.r_wave_times_ms) else "area"
    candidates = [b for b in clip.beats if b.is_whole] or list(clip.beats)
    candidates.sort(key=lambda b: (clip.areas[b.end_systole] / max(clip.areas[b.end_diastole], 1.0), b.end_diastole))
    clip.beat = candidates[len(candidates) // 2]


def _look_closer(clip: SegmentedClip, model: EchoSegmenter, read: ReadFrames) -> SeenViews:
    """Move the beat that a scout found to the extremes of the area that the segmenter itself sees near them, between its neighbours."""
    seen: SeenViews = []
    assert clip.beat is not None
    last, place = clip.facts.num_frames - 1, clip.beats.index(clip.beat)
    begin = max((beat.end_systole + 1 for beat in clip.beats[:place]), default=0)
    end = min((beat.end_diastole for beat in clip.beats[place + 1 :]), default=last + 1)

    def extreme(at: int, sign: float) -> int:
        near = list(range(max(begin, at - REACH), min(end - 1, at + REACH) + 1)) or [at]
        around = sorted({min(max(i + step, 0), last) for i in near for step in (-1, 0, 1)})
        frames = np.concatenate(list(read(around)))
        found = model.segment(frames, clip.facts.spacing_mm, {}, is_first=True, is_small=True)
        seen.extend(found.views or [])
        area = dict(zip(around, found.areas))
        # means of three frames, as in `find_beats`
        means = [sum(area[min(max(i + step, 0), last)] for step in (-1, 0, 1)) for i in near]
        return near[int(np.argmax(sign * np.array(means)))]

    is_kept = clip.phase_source == "ecg" or not clip.beat.is_whole
    end_diastole = clip.beat.end_diastole if is_kept else extreme(clip.beat.end_diastole, 1.0)
    end_systole = extreme(clip.beat.end_systole, -1.0) if clip.beat.is_whole else clip.beat.end_systole
    if end_diastole < end_systole:
        moved = Beat(end_diastole, end_systole, clip.beat.is_whole)
        clip.beats = tuple(moved if beat == clip.beat else beat for beat in clip.beats)
        clip.beat = moved
    return seen


def _choose_view(
    clip: SegmentedClip, seen: Sequence[SeenViews], model: EchoSegmenter, read: ReadFrames, view: str | None
) -> None:
    """Choose the view by the option, the header, the network that saw it, or the prompt that makes the segmenter surer.

    Args:
        seen: what the network of the first pass saw, and what the model itself has seen so far.
    """
    if view is not None:
        clip.view, clip.view_source = view, "option"
        return
    if clip.facts.view in VIEWS.values():
        clip.view, clip.view_source = clip.facts.view, "tag"
        return
    clip.view_source, sure = "network", _sure_view(seen)
    if not sure:
        frames = np.concatenate(list(read(_view_frames(clip.facts))))
        found = {name: model.segment(frames, clip.facts.spacing_mm, {"view": name}) for name in VIEWS.values()}
        if not seen[-1]:  # the model itself has not seen this clip before
            sure = _sure_view([one.views or [] for one in found.values()])
        if not sure:
            clip.view_source, sure = "model", {name: float(one.expected_dice.mean()) for name, one in found.items()}
    clip.view, clip.view_confidence = max(sure, key=lambda name: sure[name]), sure


def _view_frames(facts: ClipFacts) -> list[int]:
    """Return the indices of the frames that tell the view."""
    return sorted({int(i) for i in np.linspace(0, facts.num_frames - 1, NUM_VIEW_FRAMES)})


def _sure_view(seen: Sequence[SeenViews]) -> dict[str, float]:
    """Return the mean probability of each view by the first network that is sure; nothing if none is."""
    for views in filter(None, seen):
        mean = {name: float(np.mean([v["probabilities"][name] for v in views])) for name in VIEWS.values()}
        if max(mean.values()) >= MIN_VIEW_PROBABILITY:
            return mean
    return {}


def _second_pass(clip: SegmentedClip, model: EchoSegmenter, read: ReadFrames) -> None:
    """Segment the frames of the measured beats, or one where there is no beat, with all known attributes, and judge them."""
    phases = {i: phase for beat in clip.measured_beats.values() for i, phase in phases_of(beat).items()}
    indices = [*phases] or [int(np.argmax(clip.areas))]
    known = {"view": clip.view, "sex": clip.facts.sex, "age": clip.facts.age}
    for index in sorted(indices):
        attributes = {k: v for k, v in {**known, "phase": phases.get(index)}.items() if v is not None}
        frame = np.concatenate(list(read([index])))
        found = model.segment(frame, clip.facts.spacing_mm, attributes, judge=True)
        clip.label_maps[index] = found.label_maps[0]
        clip.doubts[index] = (found.doubts or [])[0]
        clip.prompts[index] = model.prompts(attributes)
