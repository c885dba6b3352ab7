#!/usr/bin/env python
"""The picture of README.md and of the documentation's first page, from a finished run of the quick start (phantom patients).

    python scripts/docs_picture.py runs/quickstart docs/assets/quickstart.png

A row for each of two synthetic images of the report: label map, synthetic image, masks of CRIS, masks of CLIPSeg.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synboost_monai.data import read_datalist
from synboost_monai.io import atomic_path, image_stem, read_plane
from synboost_monai.labels import STRUCTURES

COLOURS = np.array([(24, 24, 24), *(s.colour for s in STRUCTURES)])
TITLES = ("label map", "synthetic image", "CRIS", "CLIPSeg")
NUM_ROWS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="folder of a finished quick start")
    parser.add_argument("output", type=Path, help="PNG to write")
    options = parser.parse_args()
    with atomic_path(options.output) as temporary:
        draw(rows_of(options.run_dir / "examples")).savefig(temporary, format="png", dpi=110, facecolor="white")


def rows_of(folder: Path) -> list[list[NDArray[np.uint8]]]:
    """Pictures (H, W, 3) of each row: label map, synthetic image, masks of both segmenters.

    Raises:
        FileNotFoundError: if the run has no examples.
    """
    rows = []
    for item in read_datalist(folder, "testing", limit=NUM_ROWS):
        image, label = read_plane(item["image"]).pixels, read_plane(item["label"]).pixels
        maps = [
            read_plane(folder / model / "label_maps" / f"{image_stem(item['image'])}.nii.gz").pixels
            for model in ("cris", "clipseg")
        ]
        grey = np.repeat(image[..., None], 3, axis=-1)
        rows.append([COLOURS[label].astype(np.uint8), grey, *(overlay(grey, label_map) for label_map in maps)])
    return rows


def overlay(grey: NDArray[np.uint8], label_map: NDArray[np.integer]) -> NDArray[np.uint8]:
    """An image (H, W, 3) with each structure of a label map (H, W) in its colour."""
    share = 0.5 * (label_map > 0)[..., None]
    return np.round((1 - share) * grey + share * COLOURS[label_map]).astype(np.uint8)


def draw(rows: list[list[NDArray[np.uint8]]]):  # type: ignore[no-untyped-def]
    """A figure with the pictures in rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.0 * len(rows[0]), 2.0 * len(rows) + 0.2), layout="constrained")
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for i, row in enumerate(rows):
        for ax, picture, title in zip(axes[i], row, TITLES):
            ax.imshow(picture)
            ax.axis("off")
            if i == 0:
                ax.set_title(title, fontsize=10)
    return figure


if __name__ == "__main__":
    main()
