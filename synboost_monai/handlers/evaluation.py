"""Ignite handlers of inference and evaluation: label maps and metrics on the native grid, written as files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from synboost_monai.handlers.training import is_main_process
from synboost_monai.metrics.per_case import case_metrics, write_metrics_csv, write_summary
from synboost_monai.transforms.array import OUTPUT_FORMATS, load_echo, write_label_map
from synboost_monai.transforms.postprocessing import display_order


class WriteLabelMaps:
    """Writes each label map of `RestoreLabelMapd` to `output_dir/CASE`, in its image's frame (see `write_label_map`).

    A handler and not the last postprocessing, because MONAI Label runs the postprocessing and writes by itself.

    Args:
        output_dir: made when the first label map is written.
        output_format: "same" as the image, or "nifti".
    """

    def __init__(self, output_dir: str | os.PathLike[str], output_format: str = "same") -> None:
        if output_format not in OUTPUT_FORMATS:
            raise ValueError(
                f"evaluation.py: output_format must be one of {', '.join(OUTPUT_FORMATS)}, got {output_format!r}"
            )
        self.output_dir = Path(output_dir)
        self.output_format = output_format

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output):
            image_path = item["image"].meta["filename_or_obj"]
            label_map = display_order(output["pred"].cpu())
            write_label_map(label_map, image_path, self.output_dir / item["case"], self.output_format)


class CaseMetrics:
    """Measures each label map against the expert's on the native grid; writes metrics.csv and summary.json at the end.

    Args:
        items: of `checked_items`: case, the expert's label map (read here, since native sizes differ within a batch), patient, view
            and phase.
        output_dir: where the two files go.
        dataset_dir, section, seed, checkpoint_path, facts: noted in summary.json.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        output_dir: str | os.PathLike[str],
        *,
        dataset_dir: str,
        section: str,
        seed: int | None = None,
        checkpoint_path: str | None = None,
        **facts: Any,
    ) -> None:
        self.items = {item["case"]: item for item in items}
        self.output_dir = Path(output_dir)
        self.notes: dict[str, Any] = {
            "dataset_dir": dataset_dir,
            "section": section,
            "seed": seed,
            "checkpoint_path": checkpoint_path,
            **facts,
        }
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, lambda engine: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _measure(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output):
            known = self.items[item["case"]]
            truth, spacing_mm = load_echo(known["label"])
            attributes = {key: known.get(key) for key in ("case", "patient", "view", "phase")}
            for row in case_metrics(display_order(output["pred"].cpu()), truth[0], spacing_mm):
                self.rows.append({**attributes, **row})

    def _write(self, engine: Engine) -> None:
        if is_main_process():
            write_metrics_csv(self.output_dir / "metrics.csv", self.rows)
            write_summary(self.output_dir / "summary.json", self.rows, **self.notes)
