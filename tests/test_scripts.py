"""Test that scripts/environment.sh installs once, again after a change or an interruption, and refuses a Python too old."""

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.scripts import load_script

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci/run"]

STUB = """#!/usr/bin/env bash
# Stands for python: makes a "virtual environment" that holds itself, and writes down what it was asked for.
case "$*" in
    *version_info*) exit "${STUB_TOO_OLD:-0}" ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    *"install.py "*-e*) echo "$*" >>"$STUB_LOG"; exit "${STUB_PIP_FAILS:-0}" ;;
    "-m ${STUB_FAILS:-nothing}"*) echo "$* fails"; exit 3 ;;
esac
echo "$*" >>"$STUB_LOG"
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Make a folder with the scripts and the files that they read, and a stub of python."""
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "stub").write_text(STUB, encoding="utf-8")
    (tmp_path / "stub").chmod(0o755)
    return tmp_path


def call(
    clone: Path, script: str, *arguments: str, **variables: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a script from another folder; return the finished process and the arguments of its calls to python."""
    log_path = clone / "log"
    log_path.write_text("", encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SYNBOOST_")}
    environment |= {"SYNBOOST_PYTHON": str(clone / "stub"), "STUB_LOG": str(log_path), **variables}
    done = subprocess.run(
        ["bash", str(clone / "scripts" / script), *arguments], capture_output=True, text=True, env=environment, cwd="/"
    )
    return done, log_path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_parses_and_is_strict(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text or "environment.sh" in text  # sourcing it sets the same


def test_installs_once_torch_first(clone: Path) -> None:
    done, asked = call(clone, "environment.sh")
    assert done.returncode == 0, done.stderr
    assert asked[0].startswith("-m venv ")
    assert asked[1].endswith("/constraints.txt torch")
    assert call(clone, "environment.sh")[1] == []


def test_change_of_setup_installs_again_without_a_new_environment(clone: Path) -> None:
    call(clone, "environment.sh")
    with (clone / "setup.cfg").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    asked = call(clone, "environment.sh")[1]
    assert asked and not any(line.startswith("-m venv") for line in asked)


def test_only_extras_that_a_script_needs_are_installed(clone: Path) -> None:
    asked = call(clone, "quickstart.sh")[1]
    assert [line.split("-e ")[1] for line in asked if "-e " in line] == [f"{clone}[experiments,weights,example]"]
    assert not any("install.py" in line for line in call(clone, "quickstart.sh")[1])
    (asked,) = [line.split("-e ")[1] for line in call(clone, "environment.sh")[1] if "-e " in line]
    assert asked.startswith(f"{clone}[experiments,weights,example,lora,")  # what is there stays
    assert not any("install.py" in line for line in call(clone, "quickstart.sh")[1])
    assert not any("install.py" in line for line in call(clone, "environment.sh")[1])


def test_interrupted_installation_starts_over(clone: Path) -> None:
    done, _ = call(clone, "environment.sh", STUB_PIP_FAILS="1")
    assert done.returncode != 0
    (clone / ".venv" / "half_written").touch()
    done, asked = call(clone, "environment.sh")
    assert done.returncode == 0 and asked[0].startswith("-m venv ")
    assert not (clone / ".venv" / "half_written").exists()


def test_environment_of_the_user_is_never_removed(clone: Path) -> None:
    theirs = clone / "theirs"
    (theirs / "bin").mkdir(parents=True)
    shutil.copy(clone / "stub", theirs / "bin" / "python")
    call(clone, "environment.sh", SYNBOOST_VENV=str(theirs), STUB_PIP_FAILS="1")
    (theirs / "precious").touch()
    done, _ = call(clone, "environment.sh", SYNBOOST_VENV=str(theirs))
    assert done.returncode == 0 and (theirs / "precious").exists()


def test_old_python_is_refused_in_one_line(clone: Path) -> None:
    done, asked = call(clone, "environment.sh", STUB_TOO_OLD="1")
    assert done.returncode != 0 and asked == []
    assert done.stderr == (
        "environment.sh: no Python of 3.10 or newer found; install one, or name it in SYNBOOST_PYTHON\n"
    )


def test_quickstart_passes_its_arguments_on(clone: Path) -> None:
    asked = call(clone, "quickstart.sh", "--dataset", "my data")[1]
    assert asked[-1] == f"-m synboost_monai experiment quickstart --output {clone}/runs/quickstart --dataset my data"
    asked = call(clone, "quickstart.sh", "--output=there")[1]
    picture = f"{clone}/scripts/pictures.py clip example {clone}/runs/first_echo.png"
    assert asked == [picture, "-m synboost_monai experiment quickstart --output=there"]


def test_uv_is_told_what_pips_settings_say() -> None:
    """A setting of the environment counts more than one of a file, and pip goes on alone where uv would not know one."""
    listed = ":env:.index-url='https://a/simple'\n:env:.no-compile='0'\nglobal.index-url='https://b/simple'\nglobal.timeout='9'\n"
    listed += "global.constraint='/g.txt'\n"
    listed += "install.extra-index-url='https://c/simple\\nfile:///d/simple'\nglobal.find-links='/e /f'\ndownload.pre='true'\n"
    expected = {"UV_DEFAULT_INDEX": "https://a/simple", "UV_INDEX": "https://c/simple file:///d/simple"}
    expected |= {
        "UV_CONSTRAINT": "/g.txt",
        "UV_FIND_LINKS": "/e,/f",
        "UV_COMPILE_BYTECODE": "0",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    uv_variables = load_script("install").uv_variables
    assert uv_variables(listed) == expected
    assert uv_variables("")["UV_COMPILE_BYTECODE"] == "1"
    assert uv_variables("global.only-binary=':all:'\n") is None


@pytest.mark.parametrize(
    ("uv", "settings", "installers"),
    [
        ("there", "global.constraint='g.txt'\n", ["uv"]),
        ("fails", "", ["uv", "pip"]),
        ("missing", "", ["pip"]),
        ("there", "global.pre='true'\n", ["pip"]),
    ],
)
def test_pip_installs_where_uv_cannot(
    uv: str, settings: str, installers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script, asked = load_script("install"), []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command[1:])
        return subprocess.CompletedProcess(command, int("uv" == command[2] and uv == "fails"), settings, "")

    monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=run))
    found = None if uv == "missing" else uv
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: found)
    assert script.main(["-c", "pins.txt", "torch"]) == 0
    assert [command[1] for command in asked if command[-1] == "torch"] == installers
    assert all(("g.txt" in command) == bool(settings) for command in asked if command[1] == "uv")
    wanted = ["-m", "pip", "install", "-qq", "-c", "pins.txt", "uv"]
    assert (wanted in asked) == (uv == "missing")


DIST = "-n 3 --dist loadfile --no-loadscope-reorder"


def test_test_script_passes_its_arguments_to_pytest(clone: Path) -> None:
    asked = call(clone, "test.sh", "tests/prompts", "-k", "age")[1]
    assert asked[-1] == f"-m pytest {DIST} tests/prompts -k age"
    done, asked = call(clone, "test.sh")
    assert done.returncode == 0
    assert asked[-4:] == ["-m ruff check .", "-m ruff format --check .", "-m mypy", f"-m pytest {DIST}"]


@pytest.mark.parametrize("module", ["ruff", "mypy", "pytest"])
def test_whatever_fails_fails_the_test_script_and_is_shown(clone: Path, module: str) -> None:
    call(clone, "environment.sh")
    done, _ = call(clone, "test.sh", STUB_FAILS=module)
    assert done.returncode != 0 and f"-m {module}" in done.stdout
