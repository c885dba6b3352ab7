"""Provide phantom studies, and a model that knows their true label maps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from synboost_monai.dicom.writing.clip import write_clip
from synboost_monai.heart.doubt import DoubtAssessor, segmentation_evidence
from synboost_monai.hospital.model import SegmentedFrames
from synboost_monai.hospital.phantom_studies import PhantomClip, phantom_clips
from synboost_monai.records import EchoRecord
from synboost_monai.structures import LEFT_VENTRICULAR_CAVITY, STRUCTURES

NUM_PATIENTS = 2


@dataclass
class TruthModel:
    """Give each frame the label map that it was made from, with a chosen certainty."""

    truth: dict[str, NDArray[np.uint8]]
    confidence: float = 0.99
    """Probability inside each structure."""
    views: dict[str, float] | None = None
    """Probability of each view that the network sees, if it sees any."""
    name: str = "truth"
    weights_sha256: str = "0" * 64
    settings_digest: str = "1" * 16
    network_seconds: float = 0.0
    scout: Any = None
    asked: list[Mapping[str, Any]] = field(default_factory=list)
    """Attributes of each call."""

    @classmethod
    def of(cls, clips: Iterable[PhantomClip], **options: Any) -> TruthModel:
        return cls({key_of(i): m for c in clips for i, m in zip(c.images, c.label_maps)}, **options)

    def prompts(self, attributes: Mapping[str, Any], is_first: bool = False) -> list[str]:
        return [f"{s.name} {sorted(attributes.items())}" for s in STRUCTURES]

    def segment(
        self,
        frames: NDArray[np.uint8],
        spacing_mm: Sequence[float] | None,
        attributes: Mapping[str, Any],
        *,
        is_first: bool = False,
        judge: bool = False,
        is_small: bool = False,
    ) -> SegmentedFrames:
        self.asked.append(dict(attributes))
        maps = np.stack([self.truth[key_of(frame)] for frame in frames])
        sure = self.confidence - (0.2 if attributes.get("view") == "apical_two_chamber" else 0.0)
        doubts = [self._doubt(m, spacing_mm) for m in maps] if judge else None
        areas = (maps == LEFT_VENTRICULAR_CAVITY.class_index).sum(axis=(1, 2)).astype(float)
        views = None if self.views is None else [{"probabilities": self.views, "systole": 0.5}] * len(maps)
        return SegmentedFrames(maps, np.full((len(maps), len(STRUCTURES)), sure), areas, doubts, views)

    def _doubt(self, label_map: NDArray[np.uint8], spacing_mm: Sequence[float] | None) -> dict[str, Any]:
        masks = np.stack([label_map == s.class_index for s in STRUCTURES])
        probability = np.where(masks, self.confidence, 1 - self.confidence)[None]
        indices, names = [s.class_index for s in STRUCTURES], [s.name for s in STRUCTURES]
        evidence = segmentation_evidence(probability, label_map, indices, names, [0.0] * 3, [0.0] * 3)
        return DoubtAssessor(None, ranges={})(label_map[None], [evidence], spacing_mm)


def key_of(frame: NDArray[np.uint8]) -> str:
    """Return the key by which a frame is found."""
    return hashlib.sha256(f"{frame.shape}".encode() + np.ascontiguousarray(frame).tobytes()).hexdigest()


def write_phantom_clip(clip: PhantomClip, path: Path, **options: Any) -> str:
    """Write a phantom's clip as DICOM file; options of `write_clip` go before the clip's own."""
    own = {name: options.pop(name, getattr(clip, name)) for name in ("patient", "view", "sex", "age")}
    options = {"study": "tests", "frame_time_ms": clip.frame_time_ms, **options}
    return write_clip(EchoRecord(path, None, **own), clip.images, (clip.spacing_mm, clip.spacing_mm), **options)


@pytest.fixture(scope="session")
def clips() -> list[PhantomClip]:
    """Return both clips of each phantom patient, one beat and a half in 36 frames."""
    numbers = range(1, NUM_PATIENTS + 1)
    return [c for n in numbers for c in phantom_clips(n, image_height=176, num_frames=36, num_beats=1.5)]


@pytest.fixture(scope="session")
def studies_dir(clips: list[PhantomClip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of DICOM studies, one for each patient: do not write into it."""
    folder = tmp_path_factory.mktemp("studies")
    for clip in clips:
        write_phantom_clip(clip, folder / clip.patient / f"{clip.view}.dcm")
    return folder


@pytest.fixture
def truth_model(clips: list[PhantomClip]) -> TruthModel:
    return TruthModel.of(clips)
