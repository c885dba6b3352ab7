"""Test scripts/compare_scout.py: it counts frames by their place in the beat; the comparison itself is not run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.hospital.test_scout import BEAT, models, segmented
from tests.scripts import load_script


def test_comparison_counts_by_the_place_in_the_beat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("compare_scout")
    model, _, frames = models(0)
    alone = segmented(model, frames)
    assert alone.beat is not None and BEAT != script.BEAT
    monkeypatch.setattr(script, "BEAT", BEAT)
    later = replace(alone, beat=alone.beats[1 - alone.beats.index(alone.beat)])  # the other beat, as far on in itself
    pairs = iter([(alone, alone), (alone, later), (alone, replace(alone, beat=None))])
    monkeypatch.setattr(script, "clip_of", lambda *_: next(pairs))
    monkeypatch.setattr(script, "EchoSegmenter", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["compare_scout.py", "--checkpoint_path", "x", "--num_clips", "3"])
    script.main()
    said = capsys.readouterr().out.splitlines()[-1]
    assert "in 1 one or both found no beat; of the others the same frames in 2, within one in 2 of 2" in said
    assert script.mean_dice(np.array([1, 2, 3, 0]), np.array([1, 2, 3, 1])) == pytest.approx((2 / 3 + 2) / 3)
