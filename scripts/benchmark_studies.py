#!/usr/bin/env python
"""Measure studies a minute, memory and the size of the results of `synboost dicom` on many small studies, for several engines in turn.

    python scripts/benchmark_studies.py --studies 300 --chunk 100 --engines local:1 local:2 ray:2 [--output benchmark.json]

Each study has two clips of `--num_frames` frames of 64 x 64. Each chunk of them goes through every engine (NAME:WORKERS) before the next
chunk does, into a folder of its own, so that other work on the machine slows all engines alike. The weights are those of the bundle.
Studies a minute are counted from the first study that ends to the last, without the start of Python. Ray's actors get the priority of
the local engine's process, which Ray would lower by 15. It needs psutil.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_SECONDS = 1.0
"""Time between two looks at the memory."""
KINDS = {"reading.worker": "reader", "StudyActor": "actor"}
"""Words of a process's command line -> what it is; all others but the first process are Ray's own."""


class MemoryWatch(threading.Thread):
    """A MemoryWatch samples the resident memory of a process and of all below it, in MB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.peaks: dict[str, float] = {}
        """Kind of process -> largest memory of one; `all` is the largest sum."""
        self.main: list[float] = []
        """Memory of the first process at each look."""
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        import psutil

        total = 0.0
        try:
            process = psutil.Process(self.pid)
            below = process.children(recursive=True)
        except psutil.Error:
            return
        for one in [process, *below]:
            try:
                megabytes, words = one.memory_info().rss / 1e6, " ".join(one.cmdline())
            except psutil.Error:
                continue
            kind = "main" if one == process else next((k for word, k in KINDS.items() if word in words), "ray")
            self.peaks[kind] = max(self.peaks.get(kind, 0.0), megabytes)
            total += megabytes
            if kind == "main":
                self.main.append(megabytes)
        self.peaks["all"] = max(self.peaks.get("all", 0.0), total)


def measure(in_dir: Path, out: Path, engine: str, more: list[str]) -> dict[str, Any]:
    """Run a batch, and return what it took."""
    from synboost_monai.processes import safe_environment

    name, workers = engine.split(":")
    command = [sys.executable, "-m", "synboost_monai", "dicom", str(in_dir), str(out)]
    command += [f"--engine={name}", f"--workers={workers}", *more]
    environment = {**safe_environment(), "RAY_worker_niceness": "0"}
    start, load = time.perf_counter(), os.getloadavg()[0]
    process = Popen(command, env=environment, stdout=DEVNULL, stderr=PIPE, text=True)
    watch = MemoryWatch(process.pid)
    watch.start()
    _, words = process.communicate()
    watch.is_over.set()
    watch.join()
    if process.returncode == 2:
        raise SystemExit(words[-2000:])
    with open(out / "ledger.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    ends = sorted(
        datetime.fromisoformat(row["finished_at"].rstrip("Z")) for row in {r["study"]: r for r in rows}.values()
    )
    seconds = (ends[-1] - ends[0]).total_seconds()
    main = watch.main or [0.0]
    return {
        "engine": engine,
        "studies": len(ends),
        "outcomes": dict(Counter(row["outcome"] for row in rows)),
        "wall_seconds": round(time.perf_counter() - start, 1),
        "studies_a_minute": round(60 * (len(ends) - 1) / max(seconds, 1.0), 1),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "peak_mb": {kind: round(value) for kind, value in watch.peaks.items()},
        "main_mb_over_time": [round(main[len(main) * i // 10]) for i in range(10)] + [round(main[-1])],
    }


def sizes(out: Path) -> dict[str, float]:
    """Return the sizes of a run's results in MB."""
    names = ("report.html", "measurements.csv", "ledger.csv", "ledger.sqlite")
    found = {name: (out / name).stat().st_size / 1e6 for name in names}
    found["studies"] = sum(path.stat().st_size for path in (out / "studies").rglob("*") if path.is_file()) / 1e6
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--chunk", type=int, default=100, help="studies that go through one engine at a time")
    parser.add_argument("--engines", nargs="+", default=["local:1", "local:2", "ray:2"], help="NAME:WORKERS")
    parser.add_argument("--num_frames", type=int, default=12, help="of each clip")
    parser.add_argument("--first", type=int, default=0, help="number of the first study")
    parser.add_argument("--more", nargs="*", default=[], help="further words of the command, such as report=none")
    parser.add_argument("--folder", help="where studies and results are kept; by default they are removed")
    parser.add_argument("--output", help="a JSON file; printed in any case")
    arguments = parser.parse_args()
    from measuring import facts_of_run

    from synboost_monai.files import atomic_write_text
    from tests.hospital.kill_batch import write_study

    more = [f"--{word}" for word in arguments.more]
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        for first in range(arguments.first, arguments.first + arguments.studies, arguments.chunk):
            for number in range(first, min(first + arguments.chunk, arguments.first + arguments.studies)):
                write_study(folder / f"in_{first}", number, arguments.num_frames)
            for engine in arguments.engines:
                out = folder / f"out_{first}_{engine.replace(':', '_')}"
                one = measure(folder / f"in_{first}", out, engine, more)
                again = measure(folder / f"in_{first}", out, engine, [*more, "--resume"])
                found.append({**one, "resume_seconds": again["wall_seconds"], "mb": sizes(out)})
                print(json.dumps(found[-1]), flush=True)
    if arguments.output:
        record = {**facts_of_run("benchmark_studies.py"), "runs": found}
        atomic_write_text(arguments.output, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
