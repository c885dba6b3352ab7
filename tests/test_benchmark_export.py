"""Test scripts/benchmark_export.py: compared outputs are equal, and the record is complete; speed is not tested."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/benchmark_export.py"


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    spec = importlib.util.spec_from_file_location("benchmark_export", SCRIPT)
    assert spec is not None and spec.loader is not None
    sys.path.insert(0, str(SCRIPT.parent))  # as when the script is started
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    words = ["--architecture", "cris", "--preset", "tiny", "--image_size", "32", "--repeats", "2"]
    module.main([*words, "--json", str(tmp_path / "b.json")])
    torch.set_num_threads(threads)
    ways = {way["name"]: way for way in json.loads((tmp_path / "b.json").read_text())["ways"]}
    assert list(ways) == ["eager", "torchscript", "onnxruntime"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in ways)
    assert ways["eager"]["relative"] == 0 and ways["eager"]["speed_ratio"] == 1
    for way in ways.values():
        assert (
            way["relative"] < 1e-4 and way["probability"] < 1e-4 and len(way["seconds_all"]) == 2 and way["bytes"] > 1e5
        )
