"""Test scripts/setup_label.sh: torch first, MONAI Label's pins before the project's, MONAI Label without its requirements, and resuming."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
STUB = """#!/usr/bin/env bash
# Stands for python: makes a "virtual environment" that holds itself, installs empty packages, and writes down what it was asked for.
packages="$(dirname "$0")/../lib/python3.11/site-packages"
case "$*" in
    "-m pip index"*) echo "monailabel (${STUB_NEWEST:-0.8.5})" ;;
    *version_info*) exit "${STUB_WRONG_PYTHON:-0}" ;;
    "-m venv "*) mkdir -p "$3/bin" "$3/lib/python3.11/site-packages/pip"; cp "$0" "$3/bin/python" ;;
    *"install.py "*torch) mkdir -p "$packages/torch" ;;
    "-m pip "*-e*) mkdir -p "$packages/half"; echo "$*" >>"$STUB_LOG"; exit "${STUB_PIP_FAILS:-0}" ;;
esac
echo "$*" >>"$STUB_LOG"
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "scripts").mkdir()
    for name in ("setup_label.sh", "label_requirements.txt"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts" / name)
    (tmp_path / "stub").write_text(STUB, encoding="utf-8")
    (tmp_path / "stub").chmod(0o755)
    return tmp_path


def call(clone: Path, *arguments: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Return the finished script, and the arguments of its calls to python."""
    log_path = clone / "log"
    log_path.write_text("", encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SYNBOOST_")}
    environment |= {"SYNBOOST_LABEL_PYTHON": str(clone / "stub"), "STUB_LOG": str(log_path), **variables}
    command = ["bash", str(clone / "scripts/setup_label.sh"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    return done, log_path.read_text(encoding="utf-8").splitlines()


def test_installs_once_torch_first_and_monai_label_alone(clone: Path):
    done, asked = call(clone)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout
        == f"ready: {clone}/.venv_label/bin/synboost label STUDIES --bundle echo_cris --checkpoint_path model.pt\n"
    )
    assert asked[0].startswith("-m venv ")
    assert asked[1].endswith("/constraints.txt torch")
    assert asked[2].endswith(f"-r {clone}/scripts/label_requirements.txt -r {clone}/.venv_label/requirements.txt")
    needed = (clone / ".venv_label/requirements.txt").read_text(encoding="utf-8").split()
    assert "monai>=1.6.1" in needed and not [line for line in needed if line.startswith(("pydicom", "numpy"))]
    assert asked[3].startswith("-m pip install -qq --no-deps monailabel==0.8.5 ") and asked[3].endswith(f"-e {clone}")
    assert "check_versions" in asked[4] and asked[5] == "-m pip index versions monailabel"
    assert done.stderr.count("\n") == 3 and call(clone)[1] == []


def test_check_follows_the_installation(clone: Path):
    done, asked = call(clone, "--check", "--epochs", "3")
    assert done.returncode == 0 and "check_versions" in asked[4]
    assert asked[6:] == [f"{clone}/scripts/check_label.py --epochs 3"]


def test_newer_monai_label_is_told_of(clone: Path):
    done, asked = call(clone, STUB_NEWEST="0.9.0")
    assert done.returncode == 0 and "--no-deps monailabel==0.8.5" in asked[3]
    assert "setup_label.sh: MONAI Label 0.9.0 is out, and 0.8.5 has known faults" in done.stderr


def test_pins_of_monai_label_go_first(clone: Path):
    call(clone)
    lines = (clone / ".venv_label/constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [(re.split("==", line)[0].lower(), line) for line in lines if "==" in line and not line.startswith("#")]
    assert [line for name, line in pins if name == "numpy"] == ["numpy==1.26.4"]
    assert [line for name, line in pins if name == "pydicom"] == ["pydicom==2.4.5"]
    assert ("torch", "torch==2.13.0") in pins and not [name for name, _ in pins if name == "torchvision"]


def test_interrupted_installation_keeps_torch_alone(clone: Path):
    done, _ = call(clone, STUB_PIP_FAILS="1")
    assert done.returncode != 0
    packages = clone / ".venv_label/lib/python3.11/site-packages"
    (packages / "torch/kept").touch()
    (packages / "half/written").touch()
    done, asked = call(clone)
    assert done.returncode == 0 and not any(line.startswith("-m venv") for line in asked)
    assert (packages / "torch/kept").exists() and not (packages / "half/written").exists()


def test_python_that_does_not_fit_is_refused_in_one_line(clone: Path):
    done, asked = call(clone, STUB_WRONG_PYTHON="1")
    assert done.returncode != 0 and asked == []
    assert (
        done.stderr.startswith("setup_label.sh: no Python of 3.10, 3.11 or 3.12 found") and done.stderr.count("\n") == 1
    )
