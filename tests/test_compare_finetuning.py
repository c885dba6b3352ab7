"""Test scripts/compare_finetuning.py with tiny networks: from weights to the table."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from synboost_monai.networks import create_segmenter
from tests.forked import Forked, module
from tests.scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("compare_finetuning")


def test_seconds_are_read_from_a_log(script: ModuleType) -> None:
    line = "2026-01-01 10:00:00,000 INFO ignite.engine.engine.SupervisedTrainer: Epoch[{}] Complete. Time taken: {}\n"
    log = line.format(1, "00:00:10.500") + line.replace("Trainer", "Evaluator").format(1, "00:00:01.000")
    log += line.format(2, "00:00:09.000") + line.format(2, "01:02:03.250")  # done again after a kill
    assert script.seconds_of_epochs(log) == [10.5, 3723.25]


def test_parameters_are_counted(script: ModuleType) -> None:
    everything = script.parameters_trained("echo_clipseg", "tiny", {})
    adapters = script.parameters_trained("echo_clipseg", "tiny", {"lora_rank": 2})
    decoder = script.parameters_trained("echo_clipseg", "tiny", {"freeze_encoders": True})
    assert decoder == sum(p.numel() for p in create_segmenter("clipseg", "tiny").decoder.parameters())
    # rank 2, both factors, of four 16 x 16 products in three layers of the image's encoder and two of the text's
    assert adapters == decoder + (3 + 2) * 4 * 2 * (16 + 16)
    assert everything > adapters


@pytest.mark.slow
def test_three_ways_and_their_table(
    script: ModuleType,
    datalist_dir: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(script, "synboost", lambda words: Forked(*module("synboost_monai", *words)).done())
    torch.manual_seed(0)
    weights = tmp_path / "model.pt"
    torch.save(create_segmenter("clipseg", "tiny").state_dict(), weights)
    arguments = ["echo_clipseg", "--dataset_dir", str(datalist_dir), "--init_checkpoint", str(weights)]
    arguments += ["--output_dir", str(tmp_path / "out"), "--preset", "tiny", "--image_size", "32", "--max_epochs", "2"]
    arguments += ["--image_encoder_weights", "null", "--device", "cpu"]
    script.main(arguments)
    printed = capfd.readouterr().out
    rows = json.loads((tmp_path / "out/finetuning.json").read_text())["rows"]
    assert [row["way"] for row in rows] == list(script.WAYS) and all(row["way"] in printed for row in rows)
    assert all(0 <= row["dice_percent"] <= 100 and row["seconds_an_epoch"] > 0 for row in rows)
    assert (tmp_path / "out/frozen_kept_features/features").is_dir()
    finished = (tmp_path / "out/everything_learns/model.pt").stat().st_mtime_ns
    script.main(arguments)  # nothing is done again
    assert (tmp_path / "out/everything_learns/model.pt").stat().st_mtime_ns == finished
