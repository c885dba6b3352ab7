"""Measure a segmented echocardiogram, structure by structure, on its native grid, and summarise the metrics.

Rules for empty masks keep infinite or undefined numbers out of every mean:

| prediction | truth | dice, iou | hd_mm, hd95_mm, asd_mm |
|---|---|---|---|
| empty | empty | 1 | 0 |
| empty | not empty | 0 | None: left out of the mean, counted as an empty prediction |
| not empty | empty | 0 | None: left out of the mean, counted as an empty truth |

The same rules hold on the paper's grid (`PAPER_METRICS`), for the masks as they are there.
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

from synboost_monai import __version__
from synboost_monai.csv_files import frame_text, read_frame
from synboost_monai.files import atomic_write_text, sha256_of
from synboost_monai.structures import NUM_CLASSES, STRUCTURES

METRICS = ("dice", "iou", "hd_mm", "hd95_mm", "asd_mm")
"""Metrics on the native grid: Dice and intersection over union in [0, 1]; Hausdorff distance, 95 % Hausdorff distance and average symmetric
surface distance in millimetres."""
DISTANCES = ("hd_mm", "hd95_mm", "asd_mm")
"""Metrics that need the size of a pixel."""
PAPER_METRICS = ("dice_512", "iou_512", "hausdorff_512")
"""Metrics on the paper's grid: Dice and intersection over union in [0, 1], and the Hausdorff distance in pixels of that grid (the published
column is 100 times it)."""
PAPER_GRID = (512, 512)
"""(H, W) of the PNG files into which the paper's images and masks were squashed, their aspect lost."""
CSV_COLUMNS = ("case", "patient", "view", "phase", "structure", *METRICS, "is_empty_prediction", "is_empty_truth")
"""Columns of metrics.csv, one row per structure of an image; others may follow."""


def case_metrics(pred: Any, truth: Any, spacing_mm: Sequence[float], paper_grid: bool = False) -> list[dict[str, Any]]:
    """Measure the overlap and border distances of each structure of one image.

    Distances are between border pixels, as in MONAI. D holds the distances from each border pixel of either mask to the border of the
    other. hd_mm is the largest distance; hd95_mm is the larger of the 95 % quantiles of the two directions (MedPy takes one quantile
    over both); asd_mm is the mean over all distances, which MONAI calls symmetric.

    On the paper's grid both label maps are squashed to 512 x 512 by the nearest pixel. The published predictions were thresholded at the
    network's size, 352 or 416 px, and then brought to 512, each structure by itself; ours are label maps of the native grid, where
    structures exclude each other. So the published borders had steps of up to 1.5 px more, and the published masks could overlap.

    Args:
        pred: label map, (H, W) integers, classes 0..3; array or tensor.
        truth: label map of the expert, shape of `pred`.
        spacing_mm: (row, column) millimetres.
        paper_grid: also measure on the paper's grid.
    Returns:
        one dictionary for each of `STRUCTURES`: structure, `METRICS` (distances None as in the module's table),
        is_empty_prediction, is_empty_truth; then `PAPER_METRICS` if asked for.
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

    rows = _measure(pred_map, truth_map, spacing)
    if paper_grid:
        squashed = _measure(_squash(pred_map), _squash(truth_map), [1.0, 1.0])
        for row, other in zip(rows, squashed):
            row |= zip(PAPER_METRICS, (other[key] for key in ("dice", "iou", "hd_mm")))
    return rows


def _measure(pred: torch.Tensor, truth: torch.Tensor, spacing: Sequence[float]) -> list[dict[str, Any]]:
    """Return the rows of `case_metrics` on the grid of the label maps."""
    from monai.metrics import compute_dice, compute_iou  # not for reports, which read tables: MONAI takes seconds

    box = _joint_box(pred, truth)  # everything outside is background of both: no count and no border changes
    indices = torch.tensor([s.class_index for s in STRUCTURES])[:, None, None]
    pred_masks, truth_masks = ((label_map[box][None] == indices)[None] for label_map in (pred, truth))  # (1, S, h, w)
    options: dict[str, Any] = {"include_background": True, "ignore_empty": False}
    dice = compute_dice(pred_masks.float(), truth_masks.float(), **options)[0].tolist()
    iou = compute_iou(pred_masks.float(), truth_masks.float(), **options)[0].tolist()
    rows = []
    for i, structure in enumerate(STRUCTURES):
        masks = pred_masks[0, i], truth_masks[0, i]
        is_empty_prediction, is_empty_truth = (not bool(mask.any()) for mask in masks)
        row = {"structure": structure.name, "dice": dice[i], "iou": iou[i]}
        if is_empty_prediction or is_empty_truth:
            is_absent = is_empty_prediction and is_empty_truth
            row |= dict.fromkeys(DISTANCES, 0.0 if is_absent else None)
        else:
            row |= _border_distances(*masks, spacing)
        rows.append(row | {"is_empty_prediction": is_empty_prediction, "is_empty_truth": is_empty_truth})
    return rows


def _border_distances(pred: torch.Tensor, truth: torch.Tensor, spacing: Sequence[float]) -> dict[str, float]:
    """Return hd_mm, hd95_mm and asd_mm of two masks, neither of which is empty.

    The values equal those of `compute_hausdorff_distance` and `compute_average_surface_distance`, but the borders are searched once
    instead of three times, and the masks, which lie in a box already, are not cropped again.
    """
    from monai.metrics.utils import get_surface_distance
    from scipy.ndimage import binary_erosion

    first, second = (mask ^ torch.from_numpy(binary_erosion(mask.numpy())) for mask in (pred, truth))
    distances = [get_surface_distance(a, b, spacing=list(spacing)) for a, b in ((first, second), (second, first))]
    return {
        "hd_mm": max(d.max().item() for d in distances),
        "hd95_mm": max(torch.quantile(d, 0.95).item() for d in distances),
        "asd_mm": torch.cat(distances).mean().item(),
    }


def _joint_box(pred: torch.Tensor, truth: torch.Tensor) -> tuple[slice, slice]:
    """Return rows and columns of the smallest box around all structures of both label maps; one pixel if there are none."""
    is_any = (pred > 0) | (truth > 0)
    if not is_any.any():
        return slice(0, 1), slice(0, 1)
    spans = [torch.nonzero(is_any.any(dim=1 - axis)).flatten() for axis in (0, 1)]
    first, second = (slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    return first, second


def _squash(label_map: torch.Tensor) -> torch.Tensor:
    """Return a label map on `PAPER_GRID`; each pixel takes the class at its centre."""
    row, column = (
        torch.floor((torch.arange(new, dtype=torch.float64) + 0.5) * old / new).long()
        for new, old in zip(PAPER_GRID, label_map.shape)
    )
    return label_map[row[:, None], column[None]]


def metrics_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the rows of `case_metrics`, each with case, patient, view and phase added, as a table with `CSV_COLUMNS` first."""
    return _in_order(pd.DataFrame(list(rows))).sort_values("case", kind="stable", ignore_index=True)


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table with `CSV_COLUMNS` first; those that it does not have are empty."""
    return frame.reindex(columns=[*CSV_COLUMNS, *(c for c in frame.columns if c not in CSV_COLUMNS)])


def write_metrics_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write metrics.csv, one row per structure of an image, whole or not at all.

    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError(f"per_case.py: no case was evaluated, {path} is not written; is the data set's section empty?")
    atomic_write_text(path, frame_text(metrics_frame(rows), float_format="%.6f"))
    return Path(path)


def metrics_path(path: str | os.PathLike[str]) -> Path:
    """Return the metrics.csv of an evaluation, which is named by itself or by its folder."""
    return Path(path) / "metrics.csv" if Path(path).is_dir() else Path(path)


def read_metrics(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read metrics.csv of this or an older version.

    Args:
        path: the file, or the folder of an evaluation that holds it.
    Returns:
        `CSV_COLUMNS`, then the other columns of the file. Names are text; metrics are numbers, NaN where undefined and where the file is
        too old to have the column; a missing patient, view or phase is None.
    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it has no rows, lacks case, structure or dice, or a metric has an impossible value.
    """
    path = metrics_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected metrics.csv, which `synboost evaluate` writes")
    names = ("case", "patient", "view", "phase", "structure")
    try:
        # a patient may be called NA or 0012
        frame = read_frame(path, dtype=dict.fromkeys(names, str), keep_default_na=False, na_values=[""])
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable CSV ({str(error).strip()}); expected a metrics.csv") from error
    missing = [c for c in ("case", "structure", "dice") if c not in frame]
    if missing:
        columns = ", ".join(map(str, frame.columns[:8]))
        raise ValueError(f"{path}: column {', '.join(missing)} is missing, got {columns}; expected a metrics.csv")
    if frame.empty or frame[["case", "structure"]].isna().any(axis=None):
        raise ValueError(f"{path}: expected a row with case and structure for each result; evaluate again")
    frame = _in_order(frame)
    for metric in (*METRICS, *PAPER_METRICS):
        if metric in frame:
            frame[metric] = _checked_metric(frame[metric], metric, path)
    for name in (*names, "is_empty_prediction", "is_empty_truth"):
        frame[name] = frame[name].astype(object).where(frame[name].notna(), None)
    return frame


def _checked_metric(values: pd.Series, metric: str, path: Path) -> pd.Series:
    """Return a column of metrics.csv as numbers."""
    is_share = metric.startswith(("dice", "iou"))
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    upper = 1.0 if is_share else math.inf
    is_wrong = (numbers.isna() & values.notna()) | (numbers < 0) | (numbers > upper) | (numbers == math.inf)
    if is_wrong.any():
        line = int(np.flatnonzero(is_wrong)[0])
        expected = "a number from 0 to 1 (percent are divided by 100)" if is_share else "a distance, or nothing"
        raise ValueError(f"{path}, line {line + 2}: {metric} is {values.iloc[line]}; expected {expected}")
    return numbers


def summarise(frame: pd.DataFrame) -> dict[str, Any]:
    """Return mean and standard deviation of each metric, by structure and over all structures and cases.

    The deviation is over rows, with ddof = 1 (0 for a single row). Each metric is over the rows that have it, and num_METRIC is their
    number; the paper's grid is left out where it was not measured.

    Args:
        frame: result of `metrics_frame` or `read_metrics`.
    """
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
    rows: Sequence[Mapping[str, Any]],
    *,
    dataset_dir: str | os.PathLike[str],
    section: str,
    seed: int | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Write summary.json: `summarise`, and the settings to make the same numbers again.

    Args:
        path: the JSON file, written whole or not at all.
        rows: rows of `case_metrics` with case, patient, view and phase added.
        dataset_dir: the data that was evaluated.
        section: its section, such as testing.
        seed: seed of the evaluation.
        checkpoint_path: weights that were evaluated; their SHA-256 is written.
        facts: further entries, such as prompt_level and preset.
    Returns:
        the content that was written.
    """
    summary = summarise(metrics_frame(rows)) | {
        "dataset_dir": str(dataset_dir),
        "section": section,
        "seed": seed,
        "checkpoint_path": None if checkpoint_path is None else str(checkpoint_path),
        "checkpoint_sha256": None if checkpoint_path is None else sha256_of(checkpoint_path),
        "command": this_command(),
        "synboost_version": __version__,
        **facts,
    }
    atomic_write_text(path, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def this_command() -> str:
    """Return this process's command as one would type it, without the folder in which it is installed."""
    program = Path(sys.argv[0])
    words = [program.name]
    if program.parent.name == "synboost_monai":
        words = ["synboost"]
    elif program.name == "__main__.py":
        words = ["python", "-m", f"{program.parent.parent.name}.{program.parent.name}"]
    return shlex.join([*words, *sys.argv[1:]])


def _label_map(values: Any, what: str) -> torch.Tensor:
    """Return (H, W) int64 on the CPU, checked; MetaTensors become plain tensors."""
    array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    if array.ndim != 2:
        raise ValueError(f"per_case.py: {what} must be (H, W), got shape {array.shape}")
    if array.dtype.kind == "f" and not np.array_equal(array, np.round(array)):
        raise ValueError(f"per_case.py: {what} must hold class indices, got fractions")
    if array.size and not (array.min() >= 0 and array.max() < NUM_CLASSES):
        unknown = [int(c) for c in np.unique(array) if not 0 <= c < NUM_CLASSES]
        raise ValueError(f"per_case.py: {what} must hold classes 0..{NUM_CLASSES - 1}, got {unknown}")
    return torch.from_numpy(array.astype(np.int64))


def _statistics(frame: pd.DataFrame) -> dict[str, Any]:
    """Return means, deviations and counts of one group of rows."""
    out: dict[str, Any] = {}
    for metric in (*METRICS, *(m for m in PAPER_METRICS if m in frame)):
        values = pd.to_numeric(frame[metric]).dropna().to_numpy(dtype=float)
        out[f"{metric}_mean"] = float(values.mean()) if len(values) else None
        out[f"{metric}_std"] = float(values.std(ddof=1)) if len(values) > 1 else (0.0 if len(values) else None)
        out[f"num_{metric}"] = len(values)
    out["num_rows"] = len(frame)
    for column in ("is_empty_prediction", "is_empty_truth"):
        out[column.replace("is_empty", "num_empty")] = int(frame[column].astype(bool).sum())
    return out
