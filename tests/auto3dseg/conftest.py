"""Provide fixtures for Auto3DSeg: an input.yaml on the tiny CAMUS, trainings inside this process, and one finished run."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import pytest
import yaml

from synboost_monai.auto3dseg import algo
from synboost_monai.auto3dseg.run import run_auto3dseg
from synboost_monai.auto3dseg.train import read_flags, train_fold

TINY: dict[str, Any] = {"preset": "tiny", "image_size": 32, "num_epochs": 2, "num_images_per_batch": 8}
"""Hyper-parameters of trainings that take a second."""


def train_here(command: Sequence[str], environment: Mapping[str, str], log_path: Path) -> subprocess.CompletedProcess:
    """Do what `algo.run_logged` does, but within this process, where the libraries are loaded already."""
    script = Path(command[command.index("run") - 1])
    with open(log_path, "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        train_fold(script.parents[1], read_flags(command[command.index("run") :]))
    return subprocess.CompletedProcess(list(command), 0)


def write_input(folder: Path, datalist_dir: Path, **more: Any) -> Path:
    """Write an input.yaml for the data set of `datalist_dir`."""
    content = {"modality": "ultrasound", "datalist": str(datalist_dir / "datalist.json"), "dataroot": str(datalist_dir)}
    path = folder / "input.yaml"
    path.write_text(yaml.safe_dump({**content, **more}))
    return path


@pytest.fixture
def make_input(datalist_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes an input.yaml for the tiny CAMUS with further keys."""
    return lambda **more: write_input(tmp_path, datalist_dir, **more)


@pytest.fixture
def quick_training(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run trainings in this process."""
    monkeypatch.setattr(algo, "run_logged", train_here)
    yield
    monai.utils.set_determinism(None)


@pytest.fixture(scope="session")
def finished_run(datalist_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with both algorithms, 2 folds and both ensembles: its path has a space; do not change it."""
    folder = tmp_path_factory.mktemp("auto 3dseg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algo, "run_logged", train_here)
        run_auto3dseg(write_input(folder, datalist_dir), output=folder / "run", num_fold=2, **TINY)
    monai.utils.set_determinism(None)
    return folder / "run"
