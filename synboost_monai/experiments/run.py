"""Run a study with Snakemake: in one process at a time, from wherever the last run of it stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from synboost_monai.experiments.study import Study, read_study
from synboost_monai.io import atomic_write_text

SNAKEFILE = Path(__file__).with_name("Snakefile")
"""The DAG of stages."""
PARENT_VARIABLE = "SYNBOOST_STUDY_PROCESS"
"""Environment variable: the process of the study; its stages end when it is gone."""


def run_study(
    study: str | os.PathLike[str],
    *,
    dataset: str | None = None,
    output: str | os.PathLike[str] | None = None,
    cores: int | None = None,
    dry_run: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Path | None:
    """Run a study, or what is left of it; finished stages whose settings and inputs are the same are not done again.

    Args:
        study, dataset, settings: see `read_study`.
        output: folder of the run; runs/NAME by default.
        cores: processor cores; all by default.
        dry_run: only list the stages that would run; nothing is written.
    Returns:
        path of report.html; None after a dry run.
    Raises:
        ValueError, FileNotFoundError: for bad settings, before anything is written.
        SystemExit: with code 2 or 1 if a stage failed; its own message is on stderr already.
    """
    if importlib.util.find_spec("snakemake") is None:
        raise ValueError(
            "Snakemake, which orders a study's stages, is not installed; pip install 'synboost-monai[experiments]'"
        )
    checked = read_study(study, dataset=dataset, settings=settings)
    if cores is not None and cores < 1:
        raise ValueError(f"--cores must be at least 1, got {cores}")
    run_dir = Path(output or f"runs/{checked.name}").resolve()
    if run_dir.is_dir() and any(run_dir.iterdir()) and not (run_dir / "study.yaml").is_file():
        raise ValueError(f"{run_dir} holds other things than a study's run; give an empty or new folder with --output")
    text = yaml.safe_dump({"name": checked.name, **checked.settings}, sort_keys=False, allow_unicode=True)
    has_affinity = hasattr(os, "sched_getaffinity")  # containers may lend fewer cores than the machine has
    num_cores = cores or (len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1)
    if dry_run:
        print(_planned(checked, text, run_dir, num_cores))
        return None

    run_dir.mkdir(parents=True, exist_ok=True)
    with _only_one(run_dir):
        study_path = run_dir / "study.yaml"
        if not study_path.is_file() or study_path.read_text(encoding="utf-8") != text:
            atomic_write_text(study_path, text)
        for stage, product in checked.products.items():
            if not (run_dir / product).is_file():  # somebody took it away: the stage is not done any more
                (run_dir / "timing" / f"{stage}.json").unlink(missing_ok=True)
        code = _snakemake(study_path, run_dir, num_cores, "--quiet", "all").returncode
    if code:
        raise SystemExit(_failure(run_dir, str(study), code))
    return run_dir / "report.html"


def _snakemake(
    study_path: Path, run_dir: Path, cores: int, *more: str, is_quiet: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run the DAG; with `is_quiet` the output is kept instead of shown."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--configfile", str(study_path)]
    command += ["--directory", str(run_dir), "--cores", str(cores), "--nolock", "--rerun-incomplete"]
    command += ["--scheduler", "greedy", "--rerun-triggers", "mtime", "params", "input", *more]
    package_parent = str(Path(__file__).resolve().parents[2])
    paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), PARENT_VARIABLE: str(os.getpid())}
    try:
        return subprocess.run(command, env=environment, check=False, capture_output=is_quiet, text=True)
    except KeyboardInterrupt:
        time.sleep(1)  # Snakemake and the stage got the signal too
        raise


def _planned(study: Study, text: str, run_dir: Path, cores: int) -> str:
    """The stages that would run; nothing is written to the run's folder.

    Raises:
        RuntimeError: if Snakemake fails, with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="synboost-") as empty_dir:
        study_path = Path(empty_dir, "study.yaml")
        study_path.write_text(text, encoding="utf-8")
        directory = run_dir if run_dir.is_dir() else Path(empty_dir)
        done = _snakemake(study_path, directory, cores, "--dry-run", is_quiet=True)
    output = done.stdout + done.stderr
    if done.returncode:
        raise RuntimeError(f"Snakemake's dry run failed with code {done.returncode}:\n{output}")
    named = set(re.findall(r"timing/(\w+)\.json", "\n".join(re.findall(r"^ *output: (.*)$", output, re.MULTILINE))))
    planned = [name for name in study.stage_names if name in named]
    return "\n".join([f"{len(planned)} of {len(study.stage_names)} stages would run in {run_dir}", *planned])


def _failure(run_dir: Path, study: str, code: int) -> int:
    """Say which stage failed; the exit code: 2 if that was a mistake of the user."""
    failed = []
    for path in sorted((run_dir / ".stages").glob("*.json"), key=lambda p: p.stat().st_mtime):
        state = json.loads(path.read_text(encoding="utf-8"))
        if state.get("status") == "failed":
            failed.append((path.stem, state["returncode"]))
    if not failed:
        print(
            f"synboost experiment: Snakemake ended with code {code}; its log is in {run_dir}/.snakemake/log",
            file=sys.stderr,
        )
        return 1
    stage, stage_code = failed[-1]
    print(
        f"synboost experiment: stage {stage} failed with code {stage_code}, see above; the same command goes on from there",
        file=sys.stderr,
    )
    return 2 if stage_code == 2 else 1


@contextmanager
def _only_one(run_dir: Path) -> Iterator[None]:
    """Hold the run's folder for this process; the lock goes with the process, however it ends.

    While another process is at work in the folder this one waits, and then finds its stages done.
    """
    with open(run_dir / ".lock", "a+") as file:
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip()
            print(
                f"{run_dir}: process {owner} is at work here; waiting until it ends (Ctrl-C to leave)", file=sys.stderr
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
