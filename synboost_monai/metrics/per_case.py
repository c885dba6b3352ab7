"""Metrics of one segmented echocardiogram, structure by structure, on its native grid, and their summary.

What an empty mask means, so that no infinite or undefined number enters a mean:

| prediction | truth | dice, iou | hd95_mm |
|---|---|---|---|
| empty | empty | 1 | 0 |
| empty | not empty | 0 | none: left out of the mean, counted as an empty prediction |
| not empty | empty | 0 | none: left out of the mean, counted as an empty truth |
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou

from synboost_monai import __version__
from synboost_monai.io import atomic_write_text, sha256_of
from synboost_monai.labels import NUM_CLASSES, STRUCTURES

METRICS = ("dice", "iou", "hd95_mm")
"""Measured numbers: Dice and intersection over union in [0, 1], 95 % Hausdorff distance in millimetres."""
CSV_COLUMNS = ("case", "patient", "view", "phase", "structure", *METRICS, "is_empty_prediction", "is_empty_truth")
"""Columns of metrics.csv, one row for a structure of an image."""


def case_metrics(pred: Any, truth: Any, spacing_mm: Sequence[float]) -> list[dict[str, Any]]:
    """Dice, IoU and 95 % Hausdorff distance of each structure of one image.

    The Hausdorff distance is symmetric: the larger of the two directed 95 % quantiles, each over the distances from the
    border pixels of one mask to the border of the other (MONAI's definition; MedPy takes one quantile over both lists).

    Args:
        pred: label map, (H, W) integers, classes 0..3; array or tensor.
        truth: label map of the expert, shape of `pred`.
        spacing_mm: (row, column) millimetres.
    Returns:
        one dictionary for each of `STRUCTURES`: structure, dice, iou, hd95_mm (None where the module's table says so),
        is_empty_prediction, is_empty_truth.
    Raises:
        ValueError: if the shapes differ, a class is unknown or the spacing is not two positive numbers.
    """
    pred_map, truth_map = _label_map(pred, "prediction"), _label_map(truth, "label map")
    if pred_map.shape != truth_map.shape:
        raise ValueError(
            f"per_case.py: prediction is {tuple(pred_map.shape)} but label map is {tuple(truth_map.shape)}; "
            "bring the prediction back to the image's native grid first"
        )
    spacing = [float(s) for s in spacing_mm]
    if len(spacing) != 2 or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"per_case.py: spacing_mm must be two positive millimetres (row, column), got {spacing}")

    indices = torch.tensor([s.class_index for s in STRUCTURES])[:, None, None]
    pred_masks = (pred_map[None] == indices)[None].float()  # (1, S, H, W)
    truth_masks = (truth_map[None] == indices)[None].float()
    dice = compute_dice(pred_masks, truth_masks, include_background=True, ignore_empty=False)[0].tolist()
    iou = compute_iou(pred_masks, truth_masks, include_background=True, ignore_empty=False)[0].tolist()

    rows = []
    for i, structure in enumerate(STRUCTURES):
        is_empty_prediction = not bool(pred_masks[0, i].any())
        is_empty_truth = not bool(truth_masks[0, i].any())
        if is_empty_prediction and is_empty_truth:
            hd95_mm: float | None = 0.0
        elif is_empty_prediction or is_empty_truth:
            hd95_mm = None
        else:
            pair = pred_masks[:, i : i + 1], truth_masks[:, i : i + 1]
            hd95_mm = compute_hausdorff_distance(
                *pair, include_background=True, percentile=95, directed=False, spacing=spacing
            ).item()
        rows.append(
            {
                "structure": structure.name,
                "dice": dice[i],
                "iou": iou[i],
                "hd95_mm": hd95_mm,
                "is_empty_prediction": is_empty_prediction,
                "is_empty_truth": is_empty_truth,
            }
        )
    return rows


def metrics_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of `case_metrics`, each with case, patient, view and phase added, as a table with `CSV_COLUMNS` first."""
    frame = pd.DataFrame(list(rows))
    for column in CSV_COLUMNS:
        if column not in frame:
            frame[column] = None
    frame = frame[[*CSV_COLUMNS, *(c for c in frame.columns if c not in CSV_COLUMNS)]]
    return frame.sort_values("case", kind="stable", ignore_index=True)


def write_metrics_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write metrics.csv, one row for a structure of an image; the file appears whole or not at all.

    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError(f"per_case.py: no case was evaluated, {path} is not written; is the data set's section empty?")
    atomic_write_text(path, metrics_frame(rows).to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    return Path(path)


def summarise(rows: Sequence[Mapping[str, Any]] | pd.DataFrame) -> dict[str, Any]:
    """Mean and standard deviation of each metric, by structure and over all structures and cases.

    The deviation is over rows, with ddof = 1 (0 for a single row). `hd95_mm` is over the rows that have one, with their
    number beside it.
    """
    frame = rows if isinstance(rows, pd.DataFrame) else metrics_frame(rows)
    by_structure = {s.name: frame[frame["structure"] == s.name] for s in STRUCTURES}
    patients = frame["patient"].dropna()
    return {
        "num_cases": int(frame["case"].nunique()),
        "num_patients": int(patients.nunique()) if len(patients) else None,
        "structures": {name: _statistics(part) for name, part in by_structure.items() if len(part)},
        "overall": _statistics(frame),
    }


def write_summary(
    path: str | os.PathLike[str],
    rows: Sequence[Mapping[str, Any]] | pd.DataFrame,
    *,
    dataset_dir: str | os.PathLike[str],
    section: str,
    seed: int | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    command: str | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Write summary.json: `summarise`, and what is needed to make the same numbers again.

    Args:
        path: the JSON file to write; it appears whole or not at all.
        rows: of `case_metrics` with case, patient, view and phase added.
        dataset_dir: the data that was evaluated.
        section: its section, such as testing.
        seed: of the evaluation.
        checkpoint_path: weights that were evaluated; their SHA-256 is written.
        command: as typed; None takes it from this process.
        facts: further entries, such as prompt_level and preset.
    Returns:
        what was written.
    """
    summary = summarise(rows) | {
        "dataset_dir": str(dataset_dir),
        "section": section,
        "seed": seed,
        "checkpoint_path": None if checkpoint_path is None else str(checkpoint_path),
        "checkpoint_sha256": None if checkpoint_path is None else sha256_of(checkpoint_path),
        "command": this_command() if command is None else command,
        "synboost_version": __version__,
        **facts,
    }
    atomic_write_text(path, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def this_command() -> str:
    """This process's command as one would type it, without the folder that it is installed in."""
    program = Path(sys.argv[0])
    name = (
        f"python -m {program.parent.parent.name}.{program.parent.name}"
        if program.name == "__main__.py"
        else program.name
    )
    name = "synboost" if program.parent.name == "synboost_monai" else name
    return shlex.join([*name.split(), *sys.argv[1:]])


def _label_map(values: Any, what: str) -> torch.Tensor:
    """(H, W) int64 on the CPU, checked; MetaTensors become plain tensors."""
    array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    if array.ndim != 2:
        raise ValueError(f"per_case.py: {what} must be (H, W), got shape {array.shape}")
    if array.dtype.kind == "f" and not np.array_equal(array, np.round(array)):
        raise ValueError(f"per_case.py: {what} must hold class indices, got fractions")
    classes = np.unique(array)
    unknown = [int(c) for c in classes if not 0 <= c < NUM_CLASSES]
    if unknown:
        raise ValueError(f"per_case.py: {what} must hold classes 0..{NUM_CLASSES - 1}, got {unknown}")
    return torch.from_numpy(array.astype(np.int64))


def _statistics(frame: pd.DataFrame) -> dict[str, Any]:
    """Means, deviations and counts of one group of rows."""
    out: dict[str, Any] = {}
    for metric in METRICS:
        values = pd.to_numeric(frame[metric]).dropna().to_numpy(dtype=float)
        out[f"{metric}_mean"] = float(values.mean()) if len(values) else None
        out[f"{metric}_std"] = float(values.std(ddof=1)) if len(values) > 1 else (0.0 if len(values) else None)
    out["num_rows"] = len(frame)
    out["num_hd95_mm"] = int(pd.to_numeric(frame["hd95_mm"]).notna().sum())
    for column in ("is_empty_prediction", "is_empty_truth"):
        out[column.replace("is_empty", "num_empty")] = int(frame[column].astype(bool).sum())
    return out
