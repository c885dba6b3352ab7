"""Test scripts/benchmark_export.py: compared outputs are equal, and the record is complete; speed is not tested."""

import json
from pathlib import Path

import pytest
import torch

from tests.scripts import load_script


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    module = load_script("benchmark_export")
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
