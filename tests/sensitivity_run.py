"""Write the files of a run of sensitivity.yaml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from synboost_monai.evaluation.sensitivity import right_dice, sensitivity_frame, summarise_sensitivity


def write_sensitivity_run(folder: Path, rows: list[dict[str, Any]], **facts: Any) -> None:
    """Write sensitivity.csv and sensitivity.json.

    Args:
        rows: rows of `sensitivity_rows` with case, patient, view and phase added.
        facts: further entries of sensitivity.json, or other values of those that it has.
    """
    frame = sensitivity_frame(rows)
    record = {
        "summary": summarise_sensitivity(frame, num_resamples=200),
        "right_dice": right_dice(frame),
        "num_untested_images": {},
        "threshold": 0.5,
        "section": "testing",
        "dataset_dir": "real",
        "num_images": frame["case"].nunique(),
        "num_patients": frame["patient"].nunique(),
        "seed": 0,
        "checkpoint_sha256": "0123456789abcdef",
        "command": "synboost run echo_cris sensitivity",
    }
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "sensitivity.csv", index=False, float_format="%.6f")
    (folder / "sensitivity.json").write_text(json.dumps(record | facts))
