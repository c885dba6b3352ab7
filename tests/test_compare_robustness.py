"""Test scripts/compare_robustness.py: what a damage does to a sector, and the table of two tiny networks."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

from synboost_monai.networks import create_segmenter
from tests.scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("compare_robustness")


def test_damages_keep_to_the_sector_and_do_what_they_say(script: ModuleType) -> None:
    """A sector of 90 degrees, 60 mm deep, on pixels of 1 x 0.5 mm, of one grey level."""
    y, x = np.mgrid[:80, -120:121] * np.array([1.0, 0.5])[:, None, None]
    far = np.hypot(y - 10, x)
    sector = (y >= 10) & (far <= 60) & (np.abs(x) <= (y - 10))
    scan = script.Scan(np.where(sector, 100, 0).astype(np.uint8), (1.0, 0.5))
    assert np.abs(scan.depth - far / 60)[sector].max() < 0.02
    assert (scan.inside == sector).mean() > 0.99
    found = {name: scan.with_grey(change(scan)) for name, change in script.DAMAGES.items()}
    assert np.array_equal(found[script.AS_IT_IS], scan.grey)
    assert all(not image[~scan.inside & ~sector].any() for image in found.values())
    middle, bottom = (40, 120), (68, 120)  # 30 mm and 58 mm below the probe
    assert [found[f"gain {sign} 8 dB"][middle] for sign in "+-"] == [134, 66]  # 255 / 60 grey levels a decibel
    assert found["20 dB lost with depth"][middle] == pytest.approx(100 - 42.5, abs=1)
    assert found["20 dB lost with depth"][bottom] == pytest.approx(100 - 85 * 58 / 60, abs=1)
    assert found["haze near the probe"][12, 120] > 170 and found["haze near the probe"][bottom] < 105
    shadow, cut = found["a shadow of 25 dB, a fifth of the sector"], found["a third of the sector cut off"]
    assert (shadow[scan.inside] < 50).mean() == pytest.approx(0.2, abs=0.05) and shadow[middle] == 100
    assert (cut[scan.inside] == 0).mean() == pytest.approx(1 / 3, abs=0.03) and cut[middle] == 100
    edges = [np.ptp(np.flatnonzero(image[40] > 50)) for image in (scan.grey, found["blur of 1 mm"])]
    assert abs(edges[0] - edges[1]) <= 2 and found["blur of 1 mm"][40, 118] == 100
    with pytest.raises(ValueError, match="is this an echocardiogram"):
        script.Scan(np.zeros((4, 4), np.uint8), (1.0, 1.0))


def test_table_and_files_of_two_networks(
    script: ModuleType,
    datalist_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from synboost_monai.model_card import write_model
    from tests.tiny import tiny_card

    kept = (script.AS_IT_IS, "gain + 8 dB", "blur of 1 mm")
    monkeypatch.setattr(script, "DAMAGES", {damage: script.DAMAGES[damage] for damage in kept})
    given = []
    for number in range(3):
        torch.manual_seed(number)
        path = tmp_path / f"{number}.pt"
        write_model(create_segmenter("cris", "tiny").state_dict(), path, tiny_card("cris"))
        given.append(f"{'ab'[number // 2]}={path}")
    words = ["--dataset_dir", str(datalist_dir), "--output_dir", str(tmp_path / "out"), "--networks", *given]
    script.main(words)
    printed = capsys.readouterr().out
    assert "| | a | b |" in printed and all(f"| {damage} |" in printed for damage in script.DAMAGES)
    frame = pd.read_csv(tmp_path / "out/robustness.csv")
    assert len(frame) == 3 * len(script.DAMAGES) * 4 * 3 and set(frame["network"]) == {"a", "b"}
    rows = json.loads((tmp_path / "out/robustness.json").read_text())["rows"]
    of_a = frame[(frame["network"] == "a") & (frame["damage"] == "blur of 1 mm")].groupby("patient")["dice"].mean()
    (blurred,) = [row for row in rows if (row["network"], row["damage"]) == ("a", "blur of 1 mm")]
    assert blurred["dice"] == pytest.approx(100 * of_a.mean())
    with pytest.raises(SystemExit):
        script.main([*words[:-1], "weights.pt"])
