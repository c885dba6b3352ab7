"""Test the script that measures many small studies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/benchmark_studies.py"


@pytest.mark.slow
def test_two_studies_are_measured_and_resumed(tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    words = ["--studies", "2", "--chunk", "2", "--engines", "local:1", "--output", str(tmp_path / "found.json")]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert found["engine"] == "local:1" and found["studies"] == 2 and found["outcomes"] == {"processed": 4}
    assert found["peak_mb"]["all"] >= found["peak_mb"]["main"] > 100 and found["resume_seconds"] > 0
    assert found["mb"]["studies"] > 0.1
