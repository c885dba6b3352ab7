"""Test the files of inference and evaluation: label maps, spread maps, records, metrics with predicted Dice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from PIL import Image

from synboost_monai.evaluation import CaseMetrics, WriteCalibration, WriteLabelMaps
from synboost_monai.evaluation.per_case import PAPER_METRICS
from synboost_monai.heart.doubt import DoubtAssessor
from synboost_monai.structures import STRUCTURES

SIZE = (24, 20)
"""(H, W)."""


def make_label_map() -> np.ndarray:
    label_map = np.zeros(SIZE, np.uint8)
    label_map[4:12, 6:14], label_map[6:12, 8:12], label_map[13:18, 7:13] = 2, 1, 3
    return label_map


def write_image(path: Path) -> None:
    pixels = np.full(SIZE, 50, np.uint8)
    if path.suffix == ".png":
        Image.fromarray(pixels).save(path)
    else:
        nib.save(nib.Nifti1Image(pixels.T[..., None], np.diag([-0.4, -0.2, 1, 1])), path)


def said(verdict: str = "accept", predicted: float = 0.9) -> dict[str, Any]:
    structures = {
        s.name: {"predicted_dice": predicted, "expected_dice": 0.95, "mean_spread": 0.01, "is_empty": False}
        for s in STRUCTURES
    }
    anatomy = {"problems": [], "measures": {"opening_fraction": 0.15}, "notes": []}
    reasons = [{"code": "empty", "structure": None, "message": "?"}] if verdict == "review" else []
    return {"calibrated": True, "structures": structures, "anatomy": anatomy, "verdict": verdict, "reasons": reasons}


def run(handler: Any, *engines: Any, before_the_end: Callable[[], None] = lambda: None) -> None:
    """Run a handler on what these engines have made, an image each, as an evaluation would."""

    def step(engine: Engine, made: Any) -> Any:
        engine.state.batch = made.state.batch
        return made.state.output

    evaluator = Engine(step)
    handler.attach(evaluator)
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, before_the_end)
    evaluator.run(engines)


def engine_of(path: Path, case: str, **outputs: Any) -> Any:
    """Return an engine's state after one image."""
    image = MetaTensor(torch.zeros(1, 8, 8), meta={"filename_or_obj": str(path)})
    pred = torch.from_numpy(make_label_map()).T[None, :, :, None]
    state = SimpleNamespace(batch=[{"case": case, "image": image}], output=[{"pred": pred, **outputs}])
    return SimpleNamespace(state=state)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.png"])
def test_spread_and_record_lie_beside_the_label_map(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / name)
    spread = torch.zeros(1, *SIZE[::-1], 1)
    spread[0, 3, 7] = 0.23456  # column 3, row 7
    spread[0, 4, 7] = 0.5
    write = WriteLabelMaps(tmp_path / "out")
    write(engine_of(tmp_path / name, "case", spread=spread, doubt=said()))
    suffix = name.removeprefix("a")
    names = [f"case{suffix}", f"case_spread{suffix}", "case.json"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(names)
    if suffix == ".png":
        found = np.asarray(Image.open(tmp_path / "out" / names[1]))
        assert found.shape == SIZE and (found[7, 3], found[7, 4], found[0, 0]) == (120, 255, 0)  # 510 x 0.23456
    else:
        found = nib.load(tmp_path / "out" / names[1])
        like = nib.load(tmp_path / name)
        assert found.shape == like.shape and found.get_data_dtype() == np.float32
        assert np.array_equal(found.affine, like.affine)
        assert found.get_fdata()[3, 7, 0] == pytest.approx(0.235, abs=1e-6)
    record = json.loads((tmp_path / "out" / "case.json").read_text())
    facts = {"case": "case", "image": name, "label_map": names[0], "spread": names[1], "verdict": "accept"}
    assert {key: record[key] for key in facts} == facts
    assert "synboost_version" in record and str(tmp_path) not in json.dumps(record)


def test_label_maps_alone_where_nothing_else_is_known(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    WriteLabelMaps(tmp_path / "out")(engine_of(tmp_path / "a.png", "case"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["case.png"]


def test_no_record_holds_nan(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match="not JSON compliant"):
        WriteLabelMaps(tmp_path / "out")(engine_of(tmp_path / "a.png", "case", doubt=said(predicted=float("nan"))))
    assert not (tmp_path / "out" / "case.json").exists()


def items_of(tmp_path: Path, count: int) -> list[dict[str, Any]]:
    nib.save(nib.Nifti1Image(make_label_map().T, np.diag([-0.4, -0.2, 1, 1])), tmp_path / "gt.nii.gz")
    return [{"case": f"c{i}", "label": str(tmp_path / "gt.nii.gz"), "patient": f"p{i // 2}"} for i in range(count)]


def measured(tmp_path: Path, *outputs: dict[str, Any], **options: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return metrics.csv and summary.json of images with these outputs."""
    measure = CaseMetrics(items_of(tmp_path, 2), tmp_path / "out", dataset_dir="d", section="testing", **options)
    run(measure, *(engine_of(tmp_path / "x.nii.gz", f"c{i}", **made) for i, made in enumerate(outputs)))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    return pd.read_csv(tmp_path / "out" / "metrics.csv"), summary


def test_metrics_get_predicted_dice_and_verdict(tmp_path: Path) -> None:
    table, summary = measured(tmp_path, {"doubt": said("accept", 0.8)}, {"doubt": said("review", 0.9)})
    assert table.groupby("case")["verdict"].first().tolist() == ["accept", "review"]
    assert table.groupby("case")["predicted_dice"].first().tolist() == [0.8, 0.9]
    assert summary["doubt"]["calibrated"] and summary["doubt"]["review_share"] == 0.5
    assert summary["doubt"]["mae"] == pytest.approx(0.15) and "is_calibrated" not in table


def test_a_free_prompt_is_measured_on_the_structure_that_it_names(tmp_path: Path) -> None:
    table, _ = measured(tmp_path, {"doubt": {**said(), "prompt": {"structure": "left_atrium"}}})
    assert table["structure"].tolist() == ["left_atrium"]


def test_the_paper_grid_is_measured_when_asked_for(tmp_path: Path) -> None:
    table, summary = measured(tmp_path, {}, paper_grid=True)
    assert summary["paper_grid"] and set(PAPER_METRICS) <= set(table) and "hausdorff_512_mean" in summary["overall"]
    plain, summary = measured(tmp_path, {})
    assert not summary["paper_grid"] and "hausdorff_512_mean" not in summary["overall"] and "doubt" not in summary
    assert not {*PAPER_METRICS, "verdict", "predicted_dice", "is_calibrated"} & set(plain)


def test_a_calibration_is_fitted_to_what_was_measured(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    assessor = DoubtAssessor(tmp_path / "model.pt", settings={"threshold": 0.5})
    options = {"dataset_dir": "d", "section": "validation", "seed": 3, "review_share": 0.1}
    write = WriteCalibration(items_of(tmp_path, 20), assessor, tmp_path / "out" / "c.json", **options)
    evidence = [{"num_groups": 2}]
    doubts = [said("review" if i == 0 else "accept") for i in range(20)]
    made = [engine_of(tmp_path / "x.nii.gz", f"c{i}", doubt=d, evidence=evidence) for i, d in enumerate(doubts)]
    was_there = []
    run(write, *made, before_the_end=lambda: was_there.append((tmp_path / "out").exists()))
    assert was_there == [False]
    found = json.loads((tmp_path / "out" / "c.json").read_text())
    assert (found["num_images"], found["num_patients"], found["num_groups"], found["seed"]) == (20, 10, 2, 3)
    assert found["settings"] == {"threshold": 0.5} and found["review_share"] == 0.05  # the one that is sent anyway
    again = DoubtAssessor(tmp_path / "model.pt", tmp_path / "out" / "c.json", {"threshold": 0.5})
    assert again.calibration is not None
    with pytest.raises(ValueError, match="set calibration_path to null"):
        WriteCalibration([], again, tmp_path / "d.json", **options)


def test_a_free_prompt_cannot_be_calibrated(tmp_path: Path) -> None:
    options = {"dataset_dir": "d", "section": "validation"}
    write = WriteCalibration(items_of(tmp_path, 1), DoubtAssessor(None), tmp_path / "c.json", **options)
    doubt = {**said(), "prompt": {"structure": "left_atrium"}}
    with pytest.raises(ValueError, match="leave prompt empty"):
        run(write, engine_of(tmp_path / "x.nii.gz", "c0", doubt=doubt, evidence=[{"num_groups": 1}]))
