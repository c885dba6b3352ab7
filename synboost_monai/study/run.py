"""Run a study with Snakemake, starting where its last run stopped."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from synboost_monai.bundle_run import is_path
from synboost_monai.files import atomic_write_text, read_text
from synboost_monai.paths import refuse_overwriting
from synboost_monai.processes import GRACE_SECONDS, Terminated, end_child, hold_folder, module_command, safe_environment
from synboost_monai.study.dag import KINDS, Study
from synboost_monai.study.settings import read_run, read_study

SNAKEFILE = Path(__file__).with_name("Snakefile")
"""The DAG of stages."""
PROFILES_DIR = Path(__file__).with_name("profiles")
"""Shipped Snakemake profiles, one folder each."""
CACHE_NAME = ".snakemake/cache"
"""Folder of caches in a run, for users who have no folder of their own."""
PARENT_VARIABLE = "SYNBOOST_STUDY_PROCESS"
"""Environment variable with machine and process of the study, `HOST:PID`; stages on that machine end when the process is gone."""


def run_study(
    study: str | os.PathLike[str],
    *,
    dataset: str | None = None,
    unlabelled: str | None = None,
    output: str | os.PathLike[str] | None = None,
    cores: int | None = None,
    jobs: int | None = None,
    profile: str | None = None,
    dry_run: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Path | None:
    """Run the remaining stages of a study; finished stages with the same settings and inputs are not done again.

    Args:
        study, dataset, unlabelled, settings: see `read_study`.
        output: folder of the run; runs/NAME by default.
        cores: processor cores; all by default.
        jobs: with a profile: largest number of stages submitted at a time.
        profile: Snakemake profile that says where stages run: slurm, or the path of your own folder, with a slash.
        dry_run: only list the stages that would run; nothing is written.
    Returns:
        path of report.html; None after a dry run.
    Raises:
        ValueError, FileNotFoundError: for bad settings, before anything is written.
        SystemExit: with code 2 or 1 if a stage failed; its own message is already on stderr.
    """
    if importlib.util.find_spec("snakemake") is None:
        raise ValueError(
            "Snakemake, which orders a study's stages, is not installed; pip install 'synboost-monai[experiments]'"
        )
    checked = read_study(study, dataset=dataset, unlabelled=unlabelled, settings=settings)
    if cores is not None and cores < 1:
        raise ValueError(f"--cores must be at least 1, got {cores}")
    run_dir = Path(output or f"runs/{checked.name}").resolve()
    if run_dir.is_dir() and any(run_dir.iterdir()) and not (run_dir / "study.yaml").is_file():
        raise ValueError(f"{run_dir} holds other things than a study's run; give an empty or new folder with --output")
    where = _where(profile, jobs, cores)
    text = yaml.safe_dump({"name": checked.name, **checked.settings}, sort_keys=False, allow_unicode=True)
    if dry_run:
        print(_planned(checked, text, run_dir))
        return None

    study_path = run_dir / "study.yaml"
    is_as_before = study_path.is_file() and (read_text(study_path) == text or _says(study_path, study, checked))
    advice = "give another folder with --output"
    refuse_overwriting([study_path], [None if is_as_before else study], advice)
    data = checked.settings["data"]
    read = [data["dataset"], data["unlabelled"], *checked.settings["segmenters"]["simulated_weights"].values()]
    refuse_overwriting([], read, advice, filled=[run_dir])
    with hold_folder(run_dir):
        if not is_as_before:
            atomic_write_text(study_path, text)
        _forget_what_is_gone(checked, run_dir)
        quiet = ["--quiet", "all"] if profile is None else []  # only Snakemake reports why a cluster refused a job
        code = _snakemake(study_path, run_dir, run_dir / CACHE_NAME, *where, *quiet).returncode
        if code:
            raise SystemExit(_failure(run_dir, study_path, code))
    return run_dir / "report.html"


def _says(study_path: Path, study: str | os.PathLike[str], checked: Study) -> bool:
    """Return whether a run continues with its own study.yaml, perhaps from a release with fewer settings."""
    if not (Path(study).is_file() and os.path.samefile(study, study_path)):
        return False
    try:
        return read_run(study_path.parent) == checked
    except FileNotFoundError:  # a study that a user wrote, in a folder that is not yet a run's
        return False


def _where(profile: str | None, jobs: int | None, cores: int | None) -> list[str]:
    """Return Snakemake's arguments that say where stages run, and how many at a time.

    Raises:
        ValueError, FileNotFoundError: if the arguments do not fit together.
    """
    for name, value in (("cores", cores), ("jobs", jobs)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if profile is None:
        if jobs is not None:
            raise ValueError(
                "--jobs is for a --profile, such as slurm; on this machine --cores says how much runs at a time"
            )
        has_affinity = hasattr(os, "sched_getaffinity")  # containers may lend fewer cores than the machine has
        return ["--cores", str(cores or (len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1))]
    folder = Path(profile).expanduser() if is_path(profile) else PROFILES_DIR / profile
    if not folder.is_dir():
        names = ", ".join(sorted(p.name for p in PROFILES_DIR.iterdir()))
        raise FileNotFoundError(
            f"run.py: there is no Snakemake profile {profile!r}; give {names}, or your own, such as ./{Path(profile).name}"
        )
    chosen = ["--profile", str(folder.resolve())]
    return [*chosen, *(["--jobs", str(jobs)] if jobs else []), *(["--cores", str(cores)] if cores else [])]


def _outdated(study: Study, run_dir: Path) -> tuple[set[str], set[str]]:
    """Return the names of finished stages that must be done again, and of those whose product was replaced since.

    A stage must be done again if its product was removed, or if one that it uses is replaced or made again.
    """
    again: set[str] = set()
    replaced: set[str] = set()
    for stage in study.stages.values():
        timing = run_dir / stage.timing
        if not timing.is_file():
            continue
        product = None if stage.product is None else run_dir / stage.product
        if (again | replaced).intersection(stage.needs) or product is not None and not product.is_file():
            again.add(stage.name)
        elif product is not None and product.stat().st_mtime > timing.stat().st_mtime:
            replaced.add(stage.name)
    return again, replaced


def _forget_what_is_gone(study: Study, run_dir: Path) -> None:
    """Mark outdated stages as not done, and replaced products as new."""
    again, replaced = _outdated(study, run_dir)
    for name in again:
        (run_dir / study.stages[name].timing).unlink()
    for name in replaced:
        os.utime(run_dir / study.stages[name].timing)


def _snakemake(
    study_path: Path, run_dir: Path, cache_dir: Path, *more: str, is_quiet: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run the DAG; with `is_quiet` the output is kept instead of shown.

    If the user's own folder of caches is not writable (a container's user without HOME), `cache_dir` replaces it.
    """
    command = [*module_command("snakemake"), "--snakefile", str(SNAKEFILE), "--configfile", str(study_path)]
    command += ["--directory", str(run_dir), "--nolock", "--rerun-incomplete"]
    command += ["--workflow-profile", "none"]  # otherwise Snakemake reads profiles/default of the working directory
    command += ["--scheduler", "greedy", "--rerun-triggers", "mtime", "params", "input", *more]
    environment = safe_environment(**{PARENT_VARIABLE: f"{platform.node()}:{os.getpid()}"})
    if not _has_caches():
        environment |= {"XDG_CACHE_HOME": str(cache_dir), "MPLCONFIGDIR": str(cache_dir / "matplotlib")}
    pipe = subprocess.PIPE if is_quiet else None
    process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
    try:
        # a study may take weeks; Snakemake ends with its last stage, or with the signal that ends this process
        out, err = process.communicate()
    except KeyboardInterrupt as told:
        _end_stages(process, told)
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _has_caches() -> bool:
    """Return whether the user's folder of caches can be written or made."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~"), ".cache"))
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _end_stages(process: subprocess.Popen[str], told: KeyboardInterrupt) -> None:
    """End Snakemake and its stages: SIGTERM is passed on to them; Ctrl-C reached them directly."""
    import psutil  # a requirement of Snakemake

    with contextlib.suppress(psutil.Error):
        below = psutil.Process(process.pid).children(recursive=True)
        if isinstance(told, Terminated):
            process.kill()  # otherwise it would wait for its stages, and then start others
            for child in below:
                if any("synboost_monai.study.stage" in word for word in child.cmdline()):  # it passes the signal on
                    child.terminate()
        _, left = psutil.wait_procs(below, timeout=GRACE_SECONDS + 10)
        for child in left:
            child.kill()
    end_child(process, told)


def _planned(study: Study, text: str, run_dir: Path) -> str:
    """List the stages that would run, counted by kind and in order; nothing is written to the run's folder.

    Raises:
        RuntimeError: if Snakemake fails, with its output.
    """
    with tempfile.TemporaryDirectory(prefix="synboost-") as empty_dir:
        study_path = Path(empty_dir, "study.yaml")
        study_path.write_text(text, encoding="utf-8")
        directory = run_dir if run_dir.is_dir() else Path(empty_dir)
        done = _snakemake(study_path, directory, Path(empty_dir), "--cores", "1", "--dry-run", is_quiet=True)
    output = done.stdout + done.stderr
    if done.returncode:
        raise RuntimeError(f"Snakemake's dry run failed with code {done.returncode}:\n{output}")
    named = set(re.findall(r"^ *output: timing/(\S+)\.json$", output, re.MULTILINE)) | _outdated(study, run_dir)[0]
    planned = [stage for name, stage in study.stages.items() if name in named]
    width = max(map(len, KINDS))
    num_of = Counter(stage.kind for stage in planned)
    counts = [f"  {kind:<{width}} {num_of[kind]:6d}  {words}" for kind, words in KINDS.items() if num_of[kind]]
    head = f"{len(planned)} of {len(study.stages)} stages would run in {run_dir}"
    return "\n".join([head, *counts, *([""] if planned else []), *(stage.name for stage in planned)])


def _failure(run_dir: Path, study_path: Path, code: int) -> int:
    """Say which stage failed, and why; return the exit code, 2 if it was a mistake of the user."""
    failed: list[tuple[str, int, str]] = []
    for path in sorted((run_dir / ".stages").glob("*.json"), key=lambda p: p.stat().st_mtime):
        state = json.loads(read_text(path))
        if state.get("status") == "failed":
            failed.append((path.stem, state["returncode"], state.get("line", "")))
    if not failed:  # Snakemake shows its own errors only when it is not quiet: ask it again
        done = _snakemake(study_path, run_dir, run_dir / CACHE_NAME, "--cores", "1", "--dry-run", is_quiet=True)
        # the end of one or the other: releases differ in where a traceback goes
        said = (done.stdout + done.stderr).splitlines() if done.returncode else []
        lines = [line.strip() for line in said if line.strip()]
        reason = lines[-1] if lines else f"its log is in {run_dir}/.snakemake/log"
        print(f"synboost experiment: Snakemake ended with code {code}: {reason}", file=sys.stderr)
        return 1
    stage, stage_code, line = failed[-1]
    why = f" ({line})" if line else ", see above"
    print(
        f"synboost experiment: stage {stage} failed with code {stage_code}{why}; the same command goes on from there",
        file=sys.stderr,
    )
    return 2 if stage_code == 2 else 1
