"""Test that a segmenter with a scout measures the frames that it would have found itself, and sees few others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from synboost_monai.dicom.reading.read import ClipFacts
from synboost_monai.dicom.reading.regions import Region
from synboost_monai.hospital.beats import Beat
from synboost_monai.hospital.clip import NUM_VIEW_FRAMES, REACH, SegmentedClip, _look_closer, segment_clip
from synboost_monai.hospital.model import SHIPPED, EchoSegmenter
from synboost_monai.hospital.options import BatchOptions
from synboost_monai.hospital.study import StudyOptions
from synboost_monai.networks import create_segmenter
from synboost_monai.records import VIEWS
from synboost_monai.structures import LEFT_VENTRICULAR_CAVITY
from tests.hospital.conftest import TruthModel, key_of

SIDE, NUM_FRAMES, BEAT, FIRST = 48, 53, 25, 8
FACTS = ClipFacts(
    *("1.2.840.10008.5.1.4.1.1.3.1", "1.2", "1.3", SIDE, SIDE, NUM_FRAMES),
    region=Region(0, 0, SIDE, SIDE, spacing_mm=(1.0, 1.0), problem=None),
    frame_times_ms=tuple(30.0 * i for i in range(NUM_FRAMES)),
    heart_rate=None,
    r_wave_times_ms=(),
    view="apical_four_chamber",
    sex=None,
    age=None,
    decoder="none",
)


def frames_with(delay: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return frames that differ, and label maps of a ventricle that beats `delay` frames late."""
    frames = np.zeros((NUM_FRAMES, SIDE, SIDE), np.uint8)
    frames[:, 0, 0] = np.arange(NUM_FRAMES)
    maps = np.zeros_like(frames)
    for i in range(NUM_FRAMES):
        beats = (i - delay - FIRST) / BEAT
        force = 3.0 if beats < 1 else 2.0  # so that it is the same beat of the two that stands for the clip
        change = force * (np.cos(2 * np.pi * beats) - 1)
        half_width, half_length = 11 + change, 19 + change
        y, x = np.ogrid[:SIDE, :SIDE]
        inside = ((x - 24) / half_width) ** 2 + ((y - 24) / half_length) ** 2 < 1
        maps[i][inside] = LEFT_VENTRICULAR_CAVITY.class_index
    return frames, maps


class CountingModel(TruthModel):
    """Count the frames that it is asked for."""

    num_frames = 0

    def segment(self, frames: NDArray[np.uint8], *args: Any, **kwargs: Any) -> Any:
        self.num_frames += len(frames)
        return super().segment(frames, *args, **kwargs)


def segmented(model: CountingModel, frames: NDArray[np.uint8], **options: Any) -> SegmentedClip:
    def read(indices: Sequence[int] | None) -> Iterator[NDArray[np.uint8]]:
        yield frames if indices is None else frames[list(indices)]

    return segment_clip(model, options.pop("facts", FACTS), read, **options)


def models(delay: int) -> tuple[CountingModel, CountingModel, NDArray[np.uint8]]:
    frames, maps = frames_with()
    model, scout = (CountingModel({key_of(f): m for f, m in zip(frames, m)}) for m in (maps, frames_with(delay)[1]))
    return model, scout, frames


@pytest.mark.parametrize("delay", [-REACH, -1, 0, 1, REACH])
def test_frames_are_those_that_the_segmenter_finds_alone(delay: int) -> None:
    model, scout, frames = models(delay)
    alone = segmented(model, frames)
    assert alone.beat is not None and model.num_frames > NUM_FRAMES
    model.num_frames, model.scout = 0, scout
    found = segmented(model, frames)
    assert found.beat == alone.beat and found.beat in found.beats
    assert scout.num_frames == NUM_FRAMES
    assert model.num_frames <= 2 * (2 * REACH + 3) + len(found.doubts)


def test_beat_stays_between_its_neighbours() -> None:
    model, scout, frames = models(0)
    model.scout = scout
    found = segmented(model, frames)
    assert found.beat is not None
    short = Beat(34, 36, True), Beat(37, 39, True), Beat(40, 42, True)  # the area falls on and on there
    found.beats, found.beat = short, short[1]
    _look_closer(found, model, lambda indices: iter([frames if indices is None else frames[list(indices)]]))
    assert found.beats == (short[0], found.beat, short[2])
    assert found.beat == short[1]


@pytest.mark.parametrize(
    ("of_scout", "of_model", "source"), [(0.99, 0.5, "network"), (0.9, 0.99, "network"), (0.9, 0.9, "model")]
)
def test_a_view_that_a_network_has_seen_in_passing_is_not_asked_for(
    of_scout: float, of_model: float, source: str
) -> None:
    model, scout, frames = models(0)
    model.scout, facts = scout, replace(FACTS, view=None)
    for network, probability in ((scout, of_scout), (model, of_model)):
        network.views = {"apical_two_chamber": probability, "apical_four_chamber": 1 - probability}
    found = segmented(model, frames, facts=facts)
    assert found.view_source == source
    assert (found.view_confidence["apical_two_chamber"] == pytest.approx(0.99)) == (source == "network")
    asked = model.num_frames
    segmented(model, frames)
    spared = 2 * asked - model.num_frames  # beside a clip whose header names the view
    assert spared == (0 if source == "network" else len(VIEWS) * NUM_VIEW_FRAMES)


def test_scout_alone_would_be_wrong() -> None:
    model, scout, frames = models(REACH)
    assert segmented(scout, frames).beat != segmented(model, frames).beat


def test_chosen_frames_r_waves_and_all_frames_stay_as_they_are() -> None:
    model, scout, frames = models(1)
    model.scout = scout
    given = segmented(model, frames, given=(3, 9)).beat
    assert given is not None and (given.end_diastole, given.end_systole) == (3, 9)
    triggered = segmented(model, frames, facts=replace(FACTS, r_wave_times_ms=(30.0 * 10, 30.0 * 35))).beat
    assert triggered is not None and triggered.end_diastole in (10, 35)
    scout.num_frames = 0
    segmented(model, frames, keeps_all=True)
    assert scout.num_frames == 0


def test_scout_is_a_network_of_the_same_bundle_and_part_of_the_settings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "model.pt"
    torch.save(create_segmenter("cris", "tiny").state_dict(), path)
    tiny = {"preset": "tiny", "image_size": 32, "device": "cpu"}
    alone = EchoSegmenter("echo_cris", str(path), tiny)
    scouted = EchoSegmenter("echo_cris", str(path), tiny, SHIPPED)
    assert alone.scout is None and scouted.scout is not None
    assert scouted.scout.weights_sha256 != scouted.weights_sha256 == alone.weights_sha256
    assert scouted.settings_digest != alone.settings_digest
    with pytest.raises(FileNotFoundError, match="no such weights"):
        EchoSegmenter("echo_cris", str(path), tiny, str(tmp_path / "none.pt"))
    assert StudyOptions.of(BatchOptions(scout="shipped")).scout == "shipped"
