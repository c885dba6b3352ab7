"""Write a made-up copy of EchoNet-Dynamic."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.clips import write_clip

SHAPE = (56, 48)
"""(H, W) of the clips."""
COLUMNS = ("FileName", "EF", "ESV", "EDV", "FrameHeight", "FrameWidth", "FPS", "NumberOfFrames", "Split")
Rows = list[list[Any]]


def ellipse(scale: float) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Draw a cavity with its apex up, centre (24, 26), and its tracing: the long axis from the apex, then 20 chords."""
    height, width = 20 * scale, 10 * scale
    row, column = np.mgrid[: SHAPE[0], : SHAPE[1]]
    mask = ((row - 26) / height) ** 2 + ((column - 24) / width) ** 2 < 1
    y = 26 + height * np.linspace(-0.98, 0.98, 20)
    half = width * np.sqrt(1 - ((y - 26) / height) ** 2)
    chords = np.stack([24 - half, y, 24 + half, y], axis=-1)
    return mask, np.concatenate([[[24, 26 - height, 24, 26 + height]], chords])


def write_echonet(root: Path, change: Callable[[Rows, Rows], None] | None = None, num_clips: int = 4) -> Path:
    """Write a copy with clips C1.avi, C2.avi, ... of five frames: frame 1 the small cavity, frame 3 the large one."""
    (root / "Videos").mkdir(parents=True)
    listed: Rows = []
    traced: Rows = []
    for number in range(1, num_clips + 1):
        frames = np.random.default_rng(number).integers(60, 200, (5, *SHAPE), np.uint8)
        for frame, scale in ((1, 0.7), (3, 1.0)):
            mask, rows = ellipse(scale)
            frames[frame][mask] //= 4
            traced += [[f"C{number}.avi", *row, frame] for row in rows.tolist()]
        write_clip(root / "Videos" / f"C{number}.avi", frames)
        split = ("TRAIN", "VAL", "TEST", "TRAIN")[(number - 1) % 4]
        listed.append([f"C{number}", 50 + number, 30, 80, *SHAPE, 50, 5, split])
    if change is not None:
        change(listed, traced)
    for name, columns, rows in (
        ("FileList", COLUMNS, listed),
        ("VolumeTracings", "FileName X1 Y1 X2 Y2 Frame".split(), traced),
    ):
        with (root / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
    return root
