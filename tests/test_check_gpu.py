"""Test scripts/check_gpu.py on a CPU: its numbers with tiny networks, and lines that fail, die or hang."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.forked import Forked, run_script
from tests.scripts import load_script

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/check_gpu.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    return load_script("check_gpu")


def test_a_cpu_has_its_own_numbers(tmp_path: Path) -> None:
    words = "--device cpu --preset tiny --evaluations 1 --only equality,synthesis,training --output found.json"
    done = Forked(run_script, str(SCRIPT), words.split(), folder=tmp_path).done()
    assert "3 of 3 lines are right" in done.stdout
    record = json.loads((tmp_path / "found.json").read_text())
    equality, synthesis, training = record["lines"]
    differences = {row["what"]: row["numbers"]["difference"] for row in equality["rows"]}
    assert differences.keys() == {
        f"{n}, {p}" for n in ("cris", "clipseg", "semantic_diffusion") for p in ("float32", "bfloat16")
    }
    assert all(value == 0 if "float32" in name else 0 < value < 0.1 for name, value in differences.items())
    assert [row["what"] for row in synthesis["rows"]] == ["2 at once, guidance 1", "2 at once, guidance 1.5"]
    assert len(training["rows"]) == 7 and all(row["numbers"]["milliseconds"] > 0 for row in training["rows"])
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_a_line_that_fails_dies_or_hangs_costs_itself_alone(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def wrong(options):
        yield check.Row("a number", {"difference": 2.0}, is_right=False)

    def fails(options):
        yield check.Row("before", {"milliseconds": 1.0})
        raise RuntimeError("CUDA error: out of memory")

    def dies(options):
        os._exit(3)
        yield

    def hangs(options):
        (tmp_path / "started").write_text(str(subprocess.Popen(["sleep", "60"]).pid))
        time.sleep(60)
        yield

    def works(options):
        yield check.Row("after", {"milliseconds": 1.0})

    lines = {
        "wrong": (wrong, 60),
        "fails": (fails, 60),
        "dies": (dies, 60),
        "hangs": (hangs, 2),
        "works": (works, 60),
    }
    monkeypatch.setattr(check, "CHECKS", lines)
    path = tmp_path / "found.json"
    assert check.main(["--device", "cpu", "--output", str(path)]) == 1
    found = json.loads(path.read_text())["lines"]
    assert [line["error"] for line in found] == [
        *(
            "",
            "RuntimeError: CUDA error: out of memory",
            "its process ended with code 3",
            "it took longer than 2 seconds",
            "",
        )
    ]
    state = Path(
        f"/proc/{(tmp_path / 'started').read_text()}/stat"
    )  # what it had started is gone too, or waits to be buried
    assert not state.exists() or state.read_text().rsplit(")")[-1].split()[0] == "Z"
    assert [line["is_right"] for line in found] == [False, False, False, False, True]
    assert [len(line["rows"]) for line in found] == [1, 1, 0, 0, 1]
    assert "1 of 5 lines are right; not: wrong, fails, dies, hangs" in capfd.readouterr().out
    assert check.main(["--device", "cpu", "--only", "works", "--output", str(path)]) == 0
    assert check.main(["--device", "cpu", "--only", "works", "--minutes", "0", "--output", str(path)]) == 1
    assert "no time was left" in json.loads(path.read_text())["lines"][0]["error"]
    with pytest.raises(SystemExit):
        check.main(["--only", "nothing"])
    assert "no line is called nothing; there are wrong, fails" in capfd.readouterr().err
