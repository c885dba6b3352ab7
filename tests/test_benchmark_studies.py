"""Test the script that measures many small studies."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.scripts import load_script


@pytest.mark.slow
def test_two_studies_are_measured_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil")
    output = tmp_path / "found.json"
    words = ["--studies=2", "--chunk=2", "--engines", "local:1", f"--output={output}"]
    monkeypatch.setattr(sys, "argv", ["benchmark_studies.py", *words])
    load_script("benchmark_studies").main()
    record = json.loads(output.read_text())
    (found,) = record["runs"]
    assert record["command"][1] == "--studies=2" and record["cores"] >= 1 and record["date"] > "2026"
    assert found["engine"] == "local:1" and found["studies"] == 2 and found["outcomes"] == {"processed": 4}
    assert found["peak_mb"]["all"] >= found["peak_mb"]["main"] > 100 and found["resume_seconds"] > 0
    assert found["mb"]["studies"] > 0.1
