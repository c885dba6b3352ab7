#!/usr/bin/env python
"""Compare how segmenters bear worse images than those they learnt from: another gain, attenuation, haze, shadow, blur, a cut sector.

    python scripts/compare_robustness.py --dataset_dir DATA --section testing --output_dir OUT \
        --networks real=runs/a/model.pt real=runs/b/model.pt simulated=runs/c/model.pt

Networks of one name are draws of the same training; their numbers are averaged. Each image is damaged in the same way for all of them (see
`DAMAGES`) and scored on its own grid against its unchanged label map. Prints a table of mean Dice, and writes OUT/robustness.csv (a line
for each image, structure, damage and network) and OUT/robustness.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measuring import facts_of_run
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from synboost_monai.csv_files import frame_text
from synboost_monai.data import read_datalist
from synboost_monai.evaluation.per_case import case_metrics
from synboost_monai.evaluation.statistics import bootstrap_means, interval, patient_means
from synboost_monai.files import atomic_write_text, image_stem, read_plane
from synboost_monai.predictor import Segmenter
from synboost_monai.prompts import IMAGE_ATTRIBUTES
from synboost_monai.transforms.label_map_array import sector_mask

LEVELS_OF_DB = 255 / 60
"""Grey levels of a decibel, on a display of 60 dB."""
AS_IT_IS = "as it is"


class Scan:
    """A Scan is an image with the way that sound has taken to each of its pixels.

    Args:
        grey: (H, W), 0..255, black outside its sector.
        spacing_mm: (row, column).
    Raises:
        ValueError: if no sector is found.
    """

    def __init__(self, grey: NDArray[np.uint8], spacing_mm: Sequence[float]) -> None:
        self.grey = grey.astype(np.float64)
        self.spacing_mm = spacing_mm
        self.inside = sector_mask(grey)
        """(H, W), True in the sector, its dark cavities too."""
        rows, columns = np.nonzero(self.inside)
        top = rows.min()
        y = (np.arange(grey.shape[0]) - top)[:, None] * spacing_mm[0]
        x = (np.arange(grey.shape[1]) - columns[rows == top].mean())[None] * spacing_mm[1]
        far = np.hypot(y, x)
        self.depth = far / far[self.inside].max()
        """(H, W), 0 at the probe, 1 at the far end."""
        angle = np.arctan2(x, np.maximum(y, 1e-9))
        self.side = angle / np.abs(angle[self.inside & (self.depth > 0.2)]).max()  # near the probe, angles are coarse
        """(H, W), angle from the axis: -1 at the left edge, 1 at the right."""

    def with_grey(self, grey: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Return grey levels as an image of this sector."""
        return np.where(self.inside, np.clip(np.round(grey), 0, 255), self.grey).astype(np.uint8)


DAMAGES: dict[str, Callable[[Scan], NDArray[np.float64]]] = {
    AS_IT_IS: lambda scan: scan.grey,
    "gain + 8 dB": lambda scan: scan.grey + 8 * LEVELS_OF_DB,
    "gain - 8 dB": lambda scan: scan.grey - 8 * LEVELS_OF_DB,
    "20 dB lost with depth": lambda scan: scan.grey - 20 * LEVELS_OF_DB * scan.depth,
    "haze near the probe": lambda scan: scan.grey + 0.6 * np.exp(-scan.depth / 0.3) * (255 - scan.grey),
    "a shadow of 25 dB, a fifth of the sector": lambda scan: (
        scan.grey - 25 * LEVELS_OF_DB * np.clip(1.5 * (1 - np.abs(scan.side - 0.4) / 0.3), 0, 1)
    ),
    "blur of 1 mm": lambda scan: gaussian_filter(scan.grey, [1.0 / spacing for spacing in scan.spacing_mm]),
    "a third of the sector cut off": lambda scan: np.where(np.abs(scan.side) > 2 / 3, 0, scan.grey),
}
"""What is done to the grey levels inside the sector."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="echo_cris")
    parser.add_argument("--networks", nargs="+", required=True, metavar="NAME=WEIGHTS")
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--section", default="testing")
    parser.add_argument("--prompt_level", default="P2")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap over patients")
    parser.add_argument("--output_dir", type=Path, required=True)
    options = parser.parse_args(arguments)
    settings = {"prompt_level": options.prompt_level, "keep_largest": True, "fill_holes": True, "device": "cpu"}
    rows: list[dict[str, Any]] = []
    for given in options.networks:
        name, _, weights = given.partition("=")
        if not weights:
            parser.error(f"--networks: expected NAME=WEIGHTS, got {given!r}")
        segmenter = Segmenter(options.bundle, weights, settings)
        for item in read_datalist(options.dataset_dir, options.section):
            rows += [{"network": name, "weights": weights, **row} for row in scores(segmenter, item)]
        print(f"  measured: {given}", flush=True)
    frame = pd.DataFrame(rows)
    found = summary(frame, options.seed)
    print(table(found))
    options.output_dir.mkdir(parents=True, exist_ok=True)
    atomic_write_text(options.output_dir / "robustness.csv", frame_text(frame))
    record = {**facts_of_run("compare_robustness.py", arguments), "rows": found}
    atomic_write_text(options.output_dir / "robustness.json", json.dumps(record, indent=1) + "\n")


def scores(segmenter: Segmenter, item: dict[str, Any]) -> list[dict[str, Any]]:
    """Score the label maps that a segmenter finds in an image after each damage."""
    image, truth = read_plane(item["image"]), read_plane(item["label"])
    scan, known = Scan(image.pixels, image.spacing_mm), {key: item[key] for key in IMAGE_ATTRIBUTES if item.get(key)}
    rows = []
    for damage, change in DAMAGES.items():
        label_map = segmenter(scan.with_grey(change(scan)), spacing_mm=image.spacing_mm, **known).label_map
        facts = {"damage": damage, "case": image_stem(item["image"]), "patient": item["patient"]}
        rows += [facts | row for row in case_metrics(label_map, truth.pixels, truth.spacing_mm)]
    return rows


def summary(frame: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    """Return mean Dice of each network and damage, and what the damage costs, with intervals over patients; all in %."""
    of_patients = {
        key: 100 * patient_means(rows, "dice") for key, rows in frame.groupby(["network", "damage"], sort=False)
    }
    found = []
    for (network, damage), dice in of_patients.items():
        lost = dice - of_patients[network, AS_IT_IS]
        low, high = interval(bootstrap_means(lost.to_numpy(), list(lost.index), 2000, seed))
        numbers = {
            "dice": dice.mean(),
            "quantile_10": dice.quantile(0.1),
            "change": lost.mean(),
            "low": low,
            "high": high,
        }
        found.append({"network": network, "damage": damage, **{key: float(value) for key, value in numbers.items()}})
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Return a Markdown table: damages down, networks across."""
    networks = list(dict.fromkeys(row["network"] for row in found))
    lines = ["| | " + " | ".join(networks) + " |", "|---" * (len(networks) + 1) + "|"]
    for damage in DAMAGES:
        cells = []
        for row in (row for row in found if row["damage"] == damage):
            cells.append(f"{row['dice']:.1f}")
            if damage != AS_IT_IS:
                cells[-1] += f" ({row['change']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}])"
        lines.append(f"| {damage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
