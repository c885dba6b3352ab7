"""Test scripts/benchmark_segmenters.py: compared outputs are equal, and the counts add up; speed is not tested."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.scripts import load_script


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script("benchmark_segmenters")


def test_table_and_json(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    benchmark.main(["--preset", "tiny", "--image_size", "64", "--repeats", "2", "--json", str(tmp_path / "b.json")])
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "b.json").read_text())
    ways = {(way["architecture"], way["name"]): way for way in record["ways"]}
    assert all(name in printed for _, name in ways)
    for (architecture, name), way in ways.items():
        reference = ways[architecture, way["compared_to"]]
        assert way["flop_ratio"] == pytest.approx(reference["flop"] / way["flop"])
        assert len(way["seconds_all"]) == 2 and way["speed_ratio"] > 0
        if way["error"] is not None:
            assert way["error"] < (4e-2 if "bfloat16" in name else 1e-5), (architecture, name)
    for architecture in ("clipseg", "cris"):
        pairs, shared = ways[architecture, "pairs"], ways[architecture, "image and text once"]
        # CRIS makes its coordinates' part once a batch
        assert pairs["flop"] <= ways[architecture, "pairs, one by one"]["flop"] < 1.001 * pairs["flop"]
        assert shared["flop"] < 0.6 * pairs["flop"]
        learning, cached = ways[architecture, "pairs, all learn"], ways[architecture, "kept features"]
        assert cached["flop"] < ways[architecture, "image once, all learn"]["flop"] < learning["flop"]
    # the published CLIPSeg computes no gradient of its encoders
    assert ways["clipseg", "pairs, frozen"]["flop"] < ways["clipseg", "pairs, all learn"]["flop"]
