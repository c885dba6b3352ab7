"""Test that the benchmark of the hospital batch runs, and that its JSON is consistent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.forked import Forked, run_script

pytest.importorskip("highdicom")
ROOT = Path(__file__).resolve().parents[1]


def test_json(tmp_path: Path) -> None:
    """The measurement of memory is a process of its own, which the script starts."""
    words = (
        "--preset tiny --image_size 64 --num_frames 8 --num_files 20 --lengths 4 --repeats 1 --frames ed-es --output"
    )
    script = str(ROOT / "scripts/benchmark_dicom.py")
    done = Forked(run_script, script, [*words.split(), str(tmp_path / "b.json")], folder=tmp_path).done()
    found = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert json.loads(done.stdout) == found
    assert found["scan"]["num_files"] == 20 and found["scan"]["files_per_second"] > 0
    (clip,) = found["clip"]
    assert (clip["frames"], clip["num_frames"]) == ("ed-es", 8) and 0 < clip["network_seconds"] < clip["wall_seconds"]
    share = 100 * (clip["wall_seconds"] / clip["network_seconds"] - 1)
    assert clip["overhead_percent"] == pytest.approx(share, rel=0.2)  # of rounded seconds
    (memory,) = found["memory"]
    assert memory["num_frames"] == 4 and memory["batch_mb"] > memory["reader_mb"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]
