"""Run a batch with a model that needs no weights; `main` is to run in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synboost_monai.hospital import batch, engines
from synboost_monai.hospital.model import SegmentedFrames
from synboost_monai.hospital.options import BatchOptions
from synboost_monai.hospital.study import StudyOptions
from synboost_monai.structures import STRUCTURES


class EllipseModel:
    """Find an ellipse in every frame, larger where the frame is brighter: a function of the frame alone."""

    name, weights_sha256, settings_digest, network_seconds = "ellipse", "2" * 64, "3" * 16, 0.0
    scout = None

    def prompts(self, attributes: Mapping[str, Any], is_first: bool = False) -> list[str]:
        return [s.name for s in STRUCTURES]

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
        time.sleep(0.002)  # so that a run can be cut in the middle of a study
        maps = np.stack([self._ellipse(frame) for frame in frames])
        doubt = {"verdict": "accept", "reasons": [], "predicted_dice": 0.9}
        areas = (maps == 1).sum(axis=(1, 2)).astype(float)
        return SegmentedFrames(maps, np.full((len(maps), 3), 0.9), areas, [doubt] * len(maps) if judge else None)

    def _ellipse(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        rows, columns = np.mgrid[-1 : 1 : frame.shape[0] * 1j, -1 : 1 : frame.shape[1] * 1j]
        size = 0.2 + 0.5 * float(frame.mean()) / 255
        label_map = np.zeros(frame.shape, np.uint8)
        for index, (shift, scale) in {3: (size * 1.5, 0.8), 2: (0.0, 1.3), 1: (0.0, 1.0)}.items():
            label_map[((rows - shift) / size) ** 2 + (columns / size / 0.6) ** 2 < scale**2] = index
        return label_map


def engine(name: str, options: StudyOptions, overrides: Any, workers: int, ray_address: str | None) -> engines.Engine:
    """Make a local engine with this model in place of `engines.create_engine`."""
    return engines.LocalEngine(EllipseModel(), options, workers)  # type: ignore[arg-type]


def run(in_dir: Path, out_dir: Path, **options: Any) -> int:
    """Call `run_dicom` with this model."""
    before, batch.create_engine = batch.create_engine, engine
    try:
        limits = options.pop("limits", None)
        return batch.run_dicom(in_dir, out_dir, BatchOptions(**options), limits=limits, progress=False)
    finally:
        batch.create_engine = before


def options_of(words: Sequence[str]) -> dict[str, Any]:
    """Read options of `run_dicom` from words `name=value`."""
    values = {"yes": True, "no": False}
    pairs = [word.partition("=")[::2] for word in words if "=" in word]
    return {name: values.get(value, int(value) if value.isdigit() else value) for name, value in pairs}


def main(in_dir: Path, out_dir: Path, *words: str) -> None:
    """Run with two workers, and with options from words: `resume`, `name=value`."""
    options = {"workers": 2, "resume": "resume" in words, **options_of(words)}
    raise SystemExit(run(in_dir, out_dir, **options))
