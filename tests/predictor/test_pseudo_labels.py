"""Test which images a segmenter's own label maps are good enough for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ignite.engine import Engine

from synboost_monai.data import write_subset
from synboost_monai.predictor.pseudo_labels import WritePseudoLabels, unlabelled_images
from synboost_monai.structures import STRUCTURES
from synboost_monai.transforms.postprocessing import DOUBT_KEY


def _doubt(dice: float, empty: str | None = None, apical: float | None = None) -> dict[str, Any]:
    structures = {s.name: {"expected_dice": dice, "is_empty": s.name == empty} for s in STRUCTURES}
    return {"structures": structures, **({} if apical is None else {"view": {"apical": apical}})}


def _run(items: list[dict[str, Any]], doubts: list[dict[str, Any]], handler: WritePseudoLabels) -> None:
    def segment(engine: Engine, number: int) -> list[dict[str, Any]]:
        engine.state.batch = [items[number]]
        return [{DOUBT_KEY: doubts[number]}]

    engine = Engine(segment)
    handler.attach(engine)
    engine.run(range(len(items)))


def _items(folder: Path, num: int) -> list[dict[str, Any]]:
    return [
        {"image": str(folder / f"a{n}.nii.gz"), "case": f"a{n}", "patient": f"p{n // 2}", "phase": "end_systole"}
        for n in range(num)
    ]


def test_the_least_sure_and_what_is_no_heart_are_left_out(tmp_path: Path) -> None:
    items = _items(tmp_path, 6)
    doubts = [
        _doubt(0.9),
        _doubt(0.95, empty="left_atrium"),
        _doubt(0.8, apical=0.9),
        _doubt(0.97, apical=0.2),
        _doubt(0.7),
        _doubt(0.99),
    ]
    handler = WritePseudoLabels(items, tmp_path / "out", drop_share=0.25)
    _run(items, doubts, handler)
    table = pd.read_csv(tmp_path / "out/pseudo_labels.csv").set_index("case").verdict
    assert dict(table) == {
        **{"a0": "kept", "a1": "no left atrium", "a2": "kept"},
        **{"a3": "no apical view", "a4": "among the least sure 25%", "a5": "kept"},
    }
    content = json.loads((tmp_path / "out/datalist.json").read_text())
    assert [item["label"] for item in content["training"]] == ["a0.nii.gz", "a2.nii.gz", "a5.nii.gz"]
    assert content["training"][0] == {
        **{"image": "../a0.nii.gz", "label": "a0.nii.gz", "patient": "p0", "phase": "end_systole"},
        "is_synthetic": False,
    }


def test_a_run_that_finds_nothing_says_so_and_inputs_stay(tmp_path: Path) -> None:
    items = _items(tmp_path, 2)
    with pytest.raises(ValueError, match="none of 2 images is worth learning from"):
        _run(items, [_doubt(0.9, empty="myocardium")] * 2, WritePseudoLabels(items, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "datalist.json").write_text("{}")
    with pytest.raises(ValueError, match="would replace"):
        _run(items, [_doubt(0.9)] * 2, WritePseudoLabels(items, tmp_path, inputs=[str(tmp_path)]))
    with pytest.raises(ValueError, match="drop_share"):
        WritePseudoLabels(items, tmp_path / "out", drop_share=1.0)


def test_patients_of_a_labelled_data_set_are_left_out_in_all_sections(datalist_dir: Path, tmp_path: Path) -> None:
    write_subset(datalist_dir, tmp_path / "part", patients=2)
    labelled = json.loads((tmp_path / "part/datalist.json").read_text())
    known = {item["patient"] for section in ("training", "validation", "testing") for item in labelled[section]}
    every = unlabelled_images(datalist_dir, "training+validation+testing")
    found = unlabelled_images(datalist_dir, "training+validation+testing", tmp_path / "part")
    assert {item["patient"] for item in found} == {item["patient"] for item in every} - known
    assert len(known) == 3 and found and not any("label" in item for item in every)
    with pytest.raises(ValueError, match="all 24 images are of patients of"):
        unlabelled_images(datalist_dir, "training+validation+testing", datalist_dir)
