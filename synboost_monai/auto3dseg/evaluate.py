"""Measure the label maps of Auto3DSeg's networks and ensembles like all others of the project, and write one table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synboost_monai.evaluation.per_case import case_metrics, write_metrics_csv, write_summary
from synboost_monai.files import atomic_write_text, read_text
from synboost_monai.pages.tables import Table, to_text, write_table
from synboost_monai.structures import STRUCTURES
from synboost_monai.transforms.files import load_echo, write_label_map

TABLE_NAME = "auto3dseg"
"""Stem of the table's files in the run's folder."""


def write_evaluation(
    folder: str | os.PathLike[str],
    predictions: Iterable[tuple[Mapping[str, Any], NDArray[np.uint8]]],
    *,
    facts: Mapping[str, Any],
    dataset_dir: str | os.PathLike[str],
    checkpoint_path: str | os.PathLike[str] | None = None,
    seed: int | None = None,
) -> dict[str, Any] | None:
    """Write label maps, and metrics.csv and summary.json if items have an expert's label map.

    Args:
        folder: for label_maps/CASE.nii.gz, metrics.csv, summary.json.
        predictions: items from `checked_items`, each with its label map (H, W) in display order.
        facts: further entries of summary.json.
        dataset_dir, checkpoint_path, seed: as in `write_summary`.
    Returns:
        summary.json's content, or None if no item has an expert's label map.
    """
    rows: list[dict[str, Any]] = []
    for item, label_map in predictions:
        write_label_map(label_map, item["image"], Path(folder, "label_maps", item["case"]), "nifti")
        if item.get("label"):
            truth, spacing_mm = load_echo(item["label"], like=item["image"])
            attributes = {key: item.get(key) for key in ("case", "patient", "view", "phase")}
            rows += [{**attributes, **row} for row in case_metrics(label_map, truth[0], spacing_mm)]
    if not rows:
        return None
    write_metrics_csv(Path(folder, "metrics.csv"), rows)
    noted = {"dataset_dir": dataset_dir, "section": "testing", "seed": seed, "checkpoint_path": checkpoint_path}
    return write_summary(Path(folder, "summary.json"), rows, **noted, **facts)  # type: ignore[arg-type]


def known_evaluation(folder: str | os.PathLike[str], fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return summary.json of an evaluation with the same weights, or None if there is none yet."""
    path = Path(folder, "summary.json")
    if not path.is_file() or not Path(folder, "metrics.csv").is_file():
        return None
    summary = json.loads(read_text(path))
    return summary if all(summary.get(key) == value for key, value in fingerprint.items()) else None


def comparison(rows: Sequence[Mapping[str, Any]], note: str) -> Table:
    """Make the table of networks and ensembles.

    Args:
        rows: name, members (of an ensemble), validation_dice (of a network), summary (of its evaluation, or None).
        note: data, split, seed, command.
    """
    import pandas as pd

    dice = {f"dice_{s.name}": s.title for s in STRUCTURES}
    frame = pd.DataFrame([_row(row) for row in rows])
    return Table(
        name=TABLE_NAME,
        title="Auto3DSeg: each network, trained on all folds but its own, and their ensembles (means over test images)",
        frame=frame,
        formats={**dict.fromkeys(["validation_dice", *dice, "dice", "iou"], ".3f"), "hd95_mm": ".2f"},
        headings={
            "name": "Model",
            "members": "Networks",
            "validation_dice": "Val. Dice",
            **dice,
            "dice": "Dice",
            "iou": "IoU",
            "hd95_mm": "HD95 (mm)",
            "num_cases": "Images",
        },
        note=note,
    )


def write_comparison(table: Table, folder: str | os.PathLike[str]) -> Path:
    """Write the table as CSV, LaTeX and text, and return the path of the text."""
    write_table(table, folder)
    path = Path(folder, f"{TABLE_NAME}.txt")
    atomic_write_text(path, to_text(table) + "\n")
    return path


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Make a row of the table."""
    summary = row["summary"] or {}
    structures, overall = summary.get("structures", {}), summary.get("overall", {})
    return {
        "name": row["name"],
        "members": " ".join(row["members"]) or None,
        "validation_dice": row.get("validation_dice"),
        **{f"dice_{s.name}": structures.get(s.name, {}).get("dice_mean") for s in STRUCTURES},
        "dice": overall.get("dice_mean"),
        "iou": overall.get("iou_mean"),
        "hd95_mm": overall.get("hd95_mm_mean"),
        "num_cases": summary.get("num_cases"),
    }
