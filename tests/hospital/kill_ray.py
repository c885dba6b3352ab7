"""Kill a node of a Ray cluster in the middle of a batch, then its head, and compare: `python kill_ray.py [--studies 40]`.

Both nodes run on this machine, with one CPU each. A batch (`synboost dicom --engine ray --ray_address ...`, the weights of the bundle)
works on two actors, one on each node. First the node without the head is ended by SIGKILL with all its processes: the batch must end as
if nothing had happened. Then, in another batch, the head is: the batch must say so and end with code 2, and `--resume` must finish it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from synboost_monai.processes import safe_environment  # noqa: E402
from tests.hospital.kill_batch import end_state, ledger, num_recorded, write_study  # noqa: E402

PATIENCE = 900.0
"""Seconds that anything may take."""
SHARE = 0.3
"""Share of the files that are recorded before something is killed."""
STORE_BYTES = 128 << 20
"""Shared memory of a node."""


@contextlib.contextmanager
def two_nodes() -> Iterator[Any]:
    """Start a cluster of a head and a second node on 127.0.0.1, for whoever knows its secret."""
    os.environ.update(safe_environment(RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0"))
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32))
    os.environ["RAY_worker_niceness"] = "0"  # Ray's 15 would let actors starve beside other work
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def processes_of(node: Any) -> list[psutil.Process]:
    """Return all processes of a node: Ray's own, and those below them."""
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if process.pid in {info.process.pid for infos in node.all_processes.values() for info in infos}:
                found += [process, *process.children(recursive=True)]
    return found


def kill_node(node: Any) -> int:
    """End a node at once, as a power cut does; returns the number of actors that it had."""
    processes, num_actors = processes_of(node), 0
    for process in processes:  # before the first is killed, since the others may end with it
        with contextlib.suppress(psutil.Error):
            num_actors += "StudyActor" in " ".join(process.cmdline())
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return num_actors


class Batch:
    """Run `synboost dicom` in a process, and end it with the block."""

    def __init__(self, in_dir: Path, out: Path, *words: str) -> None:
        command = [sys.executable, "-m", "synboost_monai", "dicom", str(in_dir), str(out), "--workers=2", *words]
        self.out, self._log = out, tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(command, env=safe_environment(), stdout=self._log, stderr=self._log)

    def wait_until_recorded(self, num_files: int) -> None:
        """Wait until so many files have an outcome."""
        end = time.monotonic() + PATIENCE
        while not (self.out / "ledger.sqlite").exists() or num_recorded(self.out) < num_files:
            if self._process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the batch ended early, or never came so far:\n{self.words()}")
            time.sleep(0.2)

    def wait(self) -> int:
        return self._process.wait(PATIENCE)

    def words(self) -> str:
        """Return what the batch said last, without its bars."""
        self._log.seek(0)
        return "\n".join(line.split("\r")[-1].strip() for line in self._log.read()[-4000:].splitlines()[-5:])

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=40)
    options = parser.parse_args()
    problems: list[str] = []

    def check(is_so: bool, words: str) -> None:
        print(f"{'yes' if is_so else 'NO '}  {words}", flush=True)
        if not is_so:
            problems.append(words)

    with tempfile.TemporaryDirectory() as folder:
        in_dir, whole, out, headless = (Path(folder, name) for name in ("in", "whole", "out", "headless"))
        for number in range(options.studies):
            write_study(in_dir, number)
        num_files = 2 * options.studies
        with Batch(in_dir, whole) as batch:
            check(batch.wait() == 0, f"the local engine did {options.studies} studies")
        expected = end_state(whole)

        with two_nodes() as cluster, Batch(in_dir, out, "--engine=ray", f"--ray_address={cluster.address}") as batch:
            batch.wait_until_recorded(int(SHARE * num_files))
            num_actors, before = kill_node(cluster.worker_nodes.copy().pop()), num_recorded(out)
            began = time.monotonic()
            check(num_actors == 1, f"the second node was killed with one actor, after {before} of {num_files} files")
            check(batch.wait() == 0, f"the batch ended with code 0, {time.monotonic() - began:.0f} s later")
        rows = ledger(out)
        check(len(rows) == len({row["path_sha256"] for row in rows}) == num_files, "every file is once in the ledger")
        check(all(row["outcome"] == "processed" for row in rows), "no file was refused")
        check(end_state(out) == expected, "all results are those of the local engine, byte by byte")

        with two_nodes() as cluster:
            with Batch(in_dir, headless, "--engine=ray", f"--ray_address={cluster.address}") as batch:
                batch.wait_until_recorded(int(SHARE * num_files))
                kill_node(cluster.head_node)
                before, began = num_recorded(headless), time.monotonic()
                code = batch.wait()
                print(batch.words())
                check(
                    code == 2,
                    f"the head was killed after {before} files; code 2, {time.monotonic() - began:.0f} s later",
                )
        with Batch(in_dir, headless, "--resume") as batch:
            check(batch.wait() == 0, "--resume with the local engine ended with code 0")
        check(end_state(headless) == expected, "all results are those of the local engine, byte by byte")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
