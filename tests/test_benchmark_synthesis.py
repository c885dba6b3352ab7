"""Test scripts/benchmark_synthesis.py: its counts against a count by hand; measured times are not tested."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from tests.scripts import load_script


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script("benchmark_synthesis")


def test_flop_are_those_of_the_layers(benchmark: ModuleType) -> None:
    conv = nn.Conv2d(3, 7, 3, padding=1)
    x = torch.zeros(2, 3, 16, 16)
    way = benchmark.Way("", 10, lambda: nn.functional.linear(torch.zeros(4, 5), torch.zeros(6, 5)), lambda _: conv(x))
    benchmark.count_flop(way)
    assert way.prepare_flop == 2 * 4 * 5 * 6
    assert way.evaluation_flop == 2 * (2 * 16 * 16) * (3 * 9) * 7
    assert way.image_flop() == way.prepare_flop + 10 * way.evaluation_flop


def test_table_and_json(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    arguments = ["--preset", "tiny", "--repeats", "1", "--images_at_once", "2", "--json", str(tmp_path / "b.json")]
    benchmark.main(arguments)
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "b.json").read_text())
    ways = {way["name"]: way for way in record["ways"]}
    assert all(name in printed for name in ways)
    published, cached = ways["published"], ways["maps once"]
    # what the published way computes at every step is once the label map's part, and the rest
    assert published["evaluation_flop"] == cached["prepare_flop"] + cached["evaluation_flop"]
    assert published["image_tflop"] == pytest.approx(1000 * published["evaluation_flop"] / 1e12)
    assert cached["image_tflop"] == pytest.approx((cached["prepare_flop"] + 25 * cached["evaluation_flop"]) / 1e12)
    assert cached["flop_ratio"] == pytest.approx(published["image_tflop"] / cached["image_tflop"])
    assert ways["published, guided"]["evaluation_flop"] == 2 * published["evaluation_flop"]
    # guidance: the encoder once, the decoder twice
    assert cached["evaluation_flop"] < ways["guided, maps once"]["evaluation_flop"] < 2 * cached["evaluation_flop"]
    for way in ways.values():
        assert way["error"] < (3e-2 if "bfloat16" in way["name"] else 1e-5)
        assert way["image_seconds"] > 0 and len(way["evaluation_seconds_all"]) == 1
    assert [run["spade"] for run in record["throughput"]] == ["maps", "table"]
    assert all(run["images_per_second"] > 0 for run in record["throughput"])
