"""Test the script that measures many small studies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.forked import Forked, module
from tests.scripts import load_script


class ForkedCommand(Forked):
    """A ForkedCommand stands for the script's `Popen` of `python -m synboost_monai ...`."""

    def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
        super().__init__(*module(*command[2:]), environment=env)

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def communicate(self) -> tuple[None, str]:
        self.wait()
        return None, self.stderr


@pytest.mark.slow
def test_two_studies_are_measured_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil")
    script = load_script("benchmark_studies")
    monkeypatch.setattr(script, "Popen", ForkedCommand)
    output = tmp_path / "found.json"
    words = ["--studies=2", "--chunk=2", "--engines", "local:1", f"--output={output}"]
    monkeypatch.setattr(sys, "argv", ["benchmark_studies.py", *words])
    script.main()
    record = json.loads(output.read_text())
    (found,) = record["runs"]
    assert record["command"][1] == "--studies=2" and record["cores"] >= 1 and record["date"] > "2026"
    assert found["engine"] == "local:1" and found["studies"] == 2 and found["outcomes"] == {"processed": 4}
    assert found["peak_mb"]["all"] >= found["peak_mb"]["main"] > 100 and found["resume_seconds"] > 0
    assert found["mb"]["studies"] > 0.1
