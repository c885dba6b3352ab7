"""Kill a batch with SIGKILL at random times, resume it, and compare: `python kill_batch.py [--studies 40] [--kills 50] [--seed 0]`."""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.forked import Forked  # noqa: E402
from tests.hospital import launch_batch  # noqa: E402

LONGEST_START = 60.0
"""Seconds that a batch may take until it writes something."""
WORKERS = 2
"""Of launch_batch.py: so many studies are worked on at a time."""
WITHIN_STUDY, LONGEST_BEFORE, STUDIES_LONG = 0.7, 3.0, 1.5
"""Share of the kills that come while studies are written; seconds after the first change of the ledger within which the others come; and
how many times what a study takes the longest delay is."""


def write_study(folder: Path, number: int, num_frames: int = 12) -> None:
    """Write two small clips of a made-up patient whose brightness beats."""
    from synboost_monai.dicom.writing.clip import write_clip
    from synboost_monai.records import EchoRecord

    generator = np.random.default_rng(number)
    for view in ("apical_four_chamber", "apical_two_chamber"):
        level = 90 + 40 * np.cos(2 * np.pi * np.arange(num_frames) / num_frames * 1.5)
        speckle = generator.uniform(0.7, 1.3, (num_frames, 64, 64))
        frames = (level[:, None, None] * speckle).clip(0, 255).astype(np.uint8)
        record = EchoRecord(folder / f"Mueller_{number}" / f"{view}.dcm", None, f"Mueller{number}", view)
        write_clip(record, frames, (1.5, 1.5), study="batch", frame_time_ms=50)


def ledger(out: Path) -> list[dict[str, str]]:
    with open(out / "ledger.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def end_state(out: Path) -> dict[str, Any]:
    """Return everything in a run's folder except times."""
    state: dict[str, Any] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = path.relative_to(out).as_posix()
        if name == "ledger.csv":
            state[name] = [{k: v for k, v in row.items() if k not in ("seconds", "finished_at")} for row in ledger(out)]
        elif name not in ("ledger.sqlite", ".lock"):
            state[name] = path.read_bytes()
    return state


def start(in_dir: Path, out: Path) -> Forked:
    """Start a batch in a separate process with two workers, which resumes."""
    return Forked(launch_batch.main, in_dir, out, "resume")


def kill(in_dir: Path, out: Path, delay_s: float, within_study: bool = True) -> int:
    """Start a batch and kill it `delay_s` after it began to write; returns the number of files that are recorded then.

    Args:
        within_study: count from the first file of a study on; if not, from the first file of any kind (the ledger).
    """
    folder = out / "studies" if within_study else out
    began, process = time.time(), start(in_dir, out)
    while not has_newer(folder, began) and process.poll() is None and time.time() < began + LONGEST_START:
        time.sleep(0.01)
    time.sleep(delay_s)
    process.kill()
    return num_recorded(out)


def has_newer(folder: Path, moment: float) -> bool:
    """Return whether a file in a folder was written after a moment."""
    # passes over a folder that the batch takes away meanwhile, as `rglob` does not
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(os.path.join(parent, name)).st_mtime > moment:
                    return True
    return False


def num_recorded(out: Path) -> int:
    """Return the number of files with an outcome in a ledger; a copy is read, since opening an abandoned ledger repairs it."""
    with tempfile.TemporaryDirectory() as folder:
        for path in out.glob("ledger.sqlite*"):
            shutil.copy(path, folder)
        with contextlib.closing(sqlite3.connect(Path(folder, "ledger.sqlite"))) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'files'").fetchone():
                return 0
            return int(connection.execute("SELECT COUNT(*) FROM files WHERE outcome != 'pending'").fetchone()[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=40)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        in_dir, whole, out = (Path(folder, name) for name in ("in", "whole", "out"))
        for number in range(options.studies):
            write_study(in_dir, number)
        process, began = start(in_dir, whole), time.time()
        while not has_newer(whole / "studies", began) and process.poll() is None:
            time.sleep(0.01)
        began = time.time()
        if process.wait() != 0:
            raise SystemExit("the undisturbed run failed")
        seconds = time.time() - began
        chance, recorded = random.Random(options.seed), []
        for _ in range(options.kills):
            within_study = chance.random() < WITHIN_STUDY
            longest = WORKERS * STUDIES_LONG * seconds / options.studies if within_study else LONGEST_BEFORE
            recorded.append(kill(in_dir, out, chance.uniform(0, longest), within_study))
            print(f"\rkilled {len(recorded)} times; {recorded[-1]} files recorded", end="", file=sys.stderr, flush=True)
        code = start(in_dir, out).wait()
        is_equal = end_state(out) == end_state(whole)
        print(f"\nseed {options.seed}: {options.studies} studies undisturbed in {seconds:.1f} s after the first")
        print(f"files recorded at each of {options.kills} kills: {recorded}")
        print(f"exit code {code}, {len(end_state(out))} files, equal to the undisturbed run: {is_equal}")
        return 0 if is_equal and code == 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
