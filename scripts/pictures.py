#!/usr/bin/env python
"""Draw the pictures of README.md and of the documentation.

    python scripts/pictures.py clip ECHO docs/assets/first_echo.png            a clip and what the shipped weights find in it
    python scripts/pictures.py quickstart runs/quickstart docs/assets/quickstart.png
    python scripts/pictures.py simulated docs/images/simulated.png             hearts of the simulator and their outlines
    python scripts/pictures.py strangers docs/images/strangers.png             pictures without an apical view

A clip may be any file that `synboost segment` reads; `--checkpoint_path` names other weights. `example` in place of ECHO is the clip that
the package pydicom-data ships (pip install pydicom-data; color3d_jpeg_baseline.dcm, an apical four-chamber view, MIT licence).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synboost_monai.data import read_datalist
from synboost_monai.errors import in_one_line
from synboost_monai.files import atomic_path, image_stem, read_plane
from synboost_monai.pages.pictures import colour_label_map, overlay
from synboost_monai.structures import LEFT_VENTRICULAR_CAVITY

Picture = NDArray[np.uint8]
EXAMPLE, EXAMPLE_FILE = "example", "color3d_jpeg_baseline.dcm"
SQUARE = (1.0, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, source in (("clip", "a file, or `example`"), ("quickstart", "folder of a finished quick start")):
        kinds.add_parser(kind).add_argument("source", help=source)
    for kind in ("simulated", "strangers"):
        kinds.add_parser(kind)
    for parser_of_kind in kinds.choices.values():
        parser_of_kind.add_argument("output", type=Path, help="PNG to write")
    kinds.choices["clip"].add_argument("--checkpoint_path", help="weights; by default those of echo_cris itself")
    options = parser.parse_args()
    with in_one_line("pictures.py", str(options.output)):
        if options.kind == "clip":
            rows, titles = clip_rows(options.source, options.checkpoint_path)
        elif options.kind == "quickstart":
            rows, titles = quickstart_rows(Path(options.source) / "examples")
        else:
            rows, titles = simulated_rows() if options.kind == "simulated" else stranger_rows()
        with atomic_path(options.output) as temporary:
            draw(rows, titles).savefig(temporary, format="png", dpi=110, facecolor="white")


def clip_rows(source: str, checkpoint_path: str | None) -> tuple[list[list[Picture]], list[str]]:
    """Return the frames with the largest and the smallest cavity and the one between them in time, plain and with their outlines."""
    from synboost_monai import load_segmenter
    from synboost_monai.transforms.array import plain
    from synboost_monai.transforms.ultrasound_dicom import REGION_KEY

    path = example_clip() if source == EXAMPLE else source
    segmenter = load_segmenter(checkpoint_path=checkpoint_path)
    item = segmenter.read(path)
    found = segmenter.predict(segmenter.fit(item))
    frames = np.asarray(plain(item["image"]))  # (T, H, W)
    whole = (0, 0, *frames.shape[-2:])
    row, column, rows, columns = (int(n) for n in item["image"].meta.get(REGION_KEY, whole))
    label_maps = found.label_map[..., row : row + rows, column : column + columns]  # without the scanner's screen
    areas = np.count_nonzero(label_maps == LEFT_VENTRICULAR_CAVITY.class_index, axis=(1, 2))
    largest, smallest = int(areas.argmax()), int(areas.argmin())
    chosen = [largest, (largest + smallest) // 2, smallest]
    shown = [(frames[i], label_maps[i]) for i in chosen]
    print(f"verdict: {found.doubt.verdict}", *found.doubt.reasons, sep="\n  ")
    return [
        [overlay(frame, None, SQUARE) for frame, _ in shown],
        [overlay(frame, label_map, SQUARE, opacity=0.12) for frame, label_map in shown],
    ], ["largest cavity", "between", "smallest cavity"]


def example_clip() -> str:
    """Return the path of the clip in pydicom-data.

    Raises:
        FileNotFoundError: if the package is not installed.
    """
    from pydicom.data import get_testdata_file

    path = get_testdata_file(EXAMPLE_FILE, download=False)
    if path is None:
        raise FileNotFoundError(f"{EXAMPLE_FILE} is in the package pydicom-data; pip install pydicom-data")
    return str(path)


def quickstart_rows(folder: Path, num_rows: int = 2) -> tuple[list[list[Picture]], list[str]]:
    """Return a row for each of the first images of a report: label map, synthetic image, masks of both segmenters.

    Raises:
        FileNotFoundError: if the run has no examples.
    """
    rows = []
    for item in read_datalist(folder, "testing", limit=num_rows):
        image, label_map = read_plane(item["image"]).pixels, read_plane(item["label"]).pixels
        name = f"{image_stem(item['image'])}.nii.gz"
        maps = [read_plane(folder / model / "label_maps" / name).pixels for model in ("cris", "clipseg")]
        rows.append(
            [
                colour_label_map(label_map, SQUARE),
                overlay(image, None, SQUARE),
                *(overlay(image, found, SQUARE, opacity=0.5) for found in maps),
            ]
        )
    return rows, ["label map", "synthetic image", "CRIS", "CLIPSeg"]


def simulated_rows(seed: int = 0, num_columns: int = 8, num_rows: int = 2) -> tuple[list[list[Picture]], list[str]]:
    """Return the first hearts of a seed, each row of images above a row of the same images with their outlines."""
    from synboost_monai.simulation import simulate

    rows = []
    for first in range(0, num_rows * num_columns, num_columns):
        echoes = [simulate(seed, first + i, longer_side=192) for i in range(num_columns)]
        for opacity in (None, 0.0):
            maps = [None if opacity is None else echo.label_maps[0] for echo in echoes]
            rows.append([squared(echo.images[0], label_map) for echo, label_map in zip(echoes, maps)])
    return rows, []


def stranger_rows(seed: int = 0, num_rows: int = 2) -> tuple[list[list[Picture]], list[str]]:
    """Return a column for each kind of stranger."""
    from synboost_monai.simulation.strangers import KINDS, simulate_stranger

    strangers = [
        [simulate_stranger(seed, i, longer_side=192, kind=kind).image for kind in KINDS] for i in range(num_rows)
    ]
    return [[squared(image) for image in row] for row in strangers], [kind.replace(" ", "\n", 1) for kind in KINDS]


def squared(image: NDArray[Any], label_map: NDArray[Any] | None = None) -> Picture:
    """Return a picture in a black square, so that those of a row are alike."""
    side = max(image.shape)
    around = [((side - length) // 2, side - length - (side - length) // 2) for length in image.shape]
    padded = None if label_map is None else np.pad(label_map, around)
    return overlay(np.pad(image, around), padded, SQUARE, side, opacity=0.0)


def draw(rows: list[list[Picture]], titles: list[str]):  # type: ignore[no-untyped-def]
    """Return a figure with the pictures in rows, and titles over the first."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    size = max(1.2, min(3.0, 9 / len(rows[0])))  # inches
    layout = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    heights = [size * row[0].shape[0] / row[0].shape[1] for row in rows]
    figure = Figure(figsize=(size * len(rows[0]), sum(heights) + 0.2), layout=layout)
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for i, row in enumerate(rows):
        for ax, picture in zip(axes[i], row):
            ax.imshow(picture)
            ax.axis("off")
        for ax, title in zip(axes[0], titles):
            ax.set_title(title, fontsize=10 if size >= 2 else 7)
    return figure


if __name__ == "__main__":
    main()
