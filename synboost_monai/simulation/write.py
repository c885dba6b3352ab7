"""Write a data set of simulated hearts in the usual layout: images, label maps and attributes, and beating hearts with their truth."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from synboost_monai.csv_files import csv_text
from synboost_monai.data.datalist import write_datalist
from synboost_monai.files import atomic_write_text, read_text
from synboost_monai.processes import hold_folder
from synboost_monai.records import EchoRecord
from synboost_monai.simulation.phantom import write_frames
from synboost_monai.simulation.simulator import simulate

SETTINGS_NAME, SEQUENCES_NAME = "simulation.json", "sequences.csv"
SPLIT_EVERY = 10
"""Period of the split: of ten hearts in a row the ninth is for validation, the tenth for testing."""
MAX_IMAGES, MAX_SEQUENCES = 1_000_000, 100_000
FEW = 100
"""Number of files from which several processes are used by default; fewer are written sooner than processes start."""
SEQUENCE_SEED = 1
"""Second part of a sequence's seed, so that its hearts differ from those of the images."""


@dataclass(frozen=True)
class SimulatedSettings:
    """Hold the settings that the files depend on."""

    num_images: int = 1000
    sequences: int = 0
    """Number of beating hearts, each a clip from end-diastole over end-systole to end-diastole."""
    seed: int = 0
    image_size: int = 320
    """Pixels of the longer side."""
    num_frames: int = 20
    """Frames of a sequence."""

    def __post_init__(self) -> None:
        limits = {
            "num_images": (0, MAX_IMAGES),
            "sequences": (0, MAX_SEQUENCES),
            "seed": (0, 2**53),
            "image_size": (32, 1024),
            "num_frames": (2, 200),
        }
        for name, (lowest, highest) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
                raise ValueError(
                    f"simulate: {name} must be a whole number from {lowest} to {highest}, got {value!r}; change --{name}"
                )
        if not self.num_images and not self.sequences:
            raise ValueError("simulate: num_images and sequences are both 0; ask for one of them")


def write_simulated(
    output_dir: str | os.PathLike[str],
    settings: SimulatedSettings | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write simulated echocardiograms: images/, label_maps/ and datalist.json, and sequences/ with sequences.csv.

    Each image has its own heart, at end-diastole, end-systole or between. The same settings give the same files, whatever the
    number of processes; an interrupted run continues with the missing files.

    Args:
        output_dir: folder to make if missing; it must be empty or hold only files that the same settings wrote.
        settings: settings of the data set; None: the defaults.
        workers: processes; None: one per processor.
        progress: show a progress bar on stderr.
    Returns:
        `output_dir`.
    Raises:
        ValueError: if a setting is out of range, or the folder holds something else.
    """
    settings = settings or SimulatedSettings()
    root = Path(output_dir)
    with hold_folder(root):
        _check_folder(root, settings)
        atomic_write_text(root / SETTINGS_NAME, json.dumps(asdict(settings), indent=1) + "\n")
        tasks = [("image", i) for i in range(settings.num_images)] + [
            ("sequence", i) for i in range(settings.sequences)
        ]
        made: dict[str, list[dict[str, Any]]] = {"image": [], "sequence": []}
        for (kind, _), facts in zip(tasks, _map(partial(_write, root, settings), tasks, workers, progress)):
            made[kind].append(facts)
        if made["image"]:
            write_datalist(
                root,
                _splits(root, made["image"]),
                name="Simulated hearts",
                description=f"{settings.num_images} simulated echocardiograms of seed {settings.seed}: no person was scanned",
            )
        if made["sequence"]:
            atomic_write_text(root / SEQUENCES_NAME, _table_of(made["sequence"]))
    return root


def _map(write: Any, tasks: list[tuple[str, int]], workers: int | None, progress: bool) -> Iterator[dict[str, Any]]:
    """Yield the result of each task, in order, using several processes if there are enough tasks."""
    count = min(workers or os.cpu_count() or 1, len(tasks))
    bar = partial(tqdm, total=len(tasks), desc="simulated hearts", unit="heart", disable=not progress)
    if count == 1 or (workers is None and len(tasks) < FEW):
        yield from bar(map(write, tasks))
        return
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        yield from bar(pool.map(write, tasks, chunksize=8))


def _write(root: Path, settings: SimulatedSettings, task: tuple[str, int]) -> dict[str, Any]:
    """Write one image or sequence with its truth, unless it exists; return its record."""
    kind, number = task
    if kind == "image":
        echo = simulate(settings.seed, number, longer_side=settings.image_size)
        name = f"simulated{number + 1:06d}"
        paths = root / "images" / f"{name}.nii.gz", root / "label_maps" / f"{name}.nii.gz"
    else:
        beat = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(settings.num_frames) / settings.num_frames)
        moments = tuple(float(moment) for moment in beat)
        echo = simulate(
            settings.seed * 2 + SEQUENCE_SEED + 2**60, number, longer_side=settings.image_size, systole=moments
        )
        name = f"sequence{number + 1:05d}"
        paths = root / "sequences" / f"{name}.nii.gz", root / "sequences" / f"{name}_gt.nii.gz"
    for path, frames in zip(paths, (echo.images, echo.label_maps)):
        if not path.is_file():
            write_frames(path, frames, echo.spacing_mm)
    truth = {"systole": echo.systole, "volumes_ml": echo.volumes_ml}
    return {"name": name, "number": number, **echo.attributes, "shape": echo.shapes, **truth}


def _check_folder(root: Path, settings: SimulatedSettings) -> None:
    """Refuse a folder that holds another data set, or another simulation."""
    path = root / SETTINGS_NAME
    if not path.is_file():
        if others := sorted(entry.name for entry in root.iterdir() if entry.name != ".lock"):
            raise ValueError(
                f"simulate: {root} holds other things than simulated hearts (first: {others[0]}); give an empty or new folder"
            )
        return
    try:
        known = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"simulate: {path} is damaged ({error}); give an empty or new folder") from error
    if known != asdict(settings):
        raise ValueError(f"simulate: {root} holds hearts of other settings ({known}); give an empty or new folder")


def _splits(root: Path, made: list[dict[str, Any]]) -> dict[str, list[EchoRecord]]:
    """Return the records of each section."""
    splits: dict[str, list[EchoRecord]] = {"training": [], "validation": [], "testing": []}
    known = ("view", "phase", "sex", "age", "image_quality", "ejection_fraction", "shape")
    for facts in made:
        place = facts["number"] % SPLIT_EVERY
        section = {SPLIT_EVERY - 2: "validation", SPLIT_EVERY - 1: "testing"}.get(place, "training")
        files: dict[str, Any] = {
            key: root / folder / f"{facts['name']}.nii.gz"
            for key, folder in (("image", "images"), ("label", "label_maps"))
        }
        attributes: dict[str, Any] = {key: facts.get(key) for key in known}
        splits[section].append(EchoRecord(patient=facts["name"], **files, **attributes))
    return splits


def _table_of(made: list[dict[str, Any]]) -> str:
    """Return the content of sequences.csv: a row for each frame of each sequence."""
    known = ("view", "sex", "age", "image_quality", "ejection_fraction", "diagnosis")
    rows: list[tuple[object, ...]] = [("sequence", "frame_index", "systole", "volume_ml", *known)]
    for facts in made:
        for index, (systole, volume) in enumerate(zip(facts["systole"], facts["volumes_ml"])):
            rows.append((facts["name"], index, f"{systole:.4f}", f"{volume:.2f}", *(facts[key] for key in known)))
    return csv_text(rows)
