"""Test that label maps are written for every test image and measured where an expert's is known, and that the table shows all results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from synboost_monai.auto3dseg.evaluate import comparison, known_evaluation, write_comparison, write_evaluation
from synboost_monai.data import read_datalist
from synboost_monai.transforms.files import checked_items, load_echo


def test_perfect_label_maps_are_measured_where_an_expert_s_is_known(datalist_dir: Path, tmp_path: Path) -> None:
    items = checked_items(read_datalist(datalist_dir, "testing"))
    perfect = [(item, load_echo(item["label"])[0][0].numpy().astype(np.uint8)) for item in items]
    perfect[0] = ({key: value for key, value in items[0].items() if key != "label"}, perfect[0][1])
    summary = write_evaluation(tmp_path, perfect, facts={"members": {"a": "1"}}, dataset_dir=datalist_dir, seed=3)
    assert summary is not None and summary["num_cases"] == 3 and summary["overall"]["dice_mean"] == 1.0
    assert len(list((tmp_path / "label_maps").glob("*.nii.gz"))) == 4  # of the unlabelled image too
    assert set(pd.read_csv(tmp_path / "metrics.csv")["dice"]) == {1.0}
    assert known_evaluation(tmp_path, {"members": {"a": "1"}}) == summary
    assert known_evaluation(tmp_path, {"members": {"a": "2"}}) is None  # other weights
    assert known_evaluation(tmp_path / "gone", {}) is None


def test_without_labels_there_are_label_maps_alone(datalist_dir: Path, tmp_path: Path) -> None:
    item = {key: value for key, value in read_datalist(datalist_dir, "testing")[0].items() if key != "label"}
    item = checked_items([item])[0]
    label_map = np.zeros((48, 40), np.uint8)
    assert write_evaluation(tmp_path, [(item, label_map)], facts={}, dataset_dir=datalist_dir) is None
    assert [path.parent.name for path in tmp_path.rglob("*") if path.is_file()] == ["label_maps"]


def test_table_has_a_dash_where_nothing_was_measured(tmp_path: Path) -> None:
    table = comparison(
        [
            {"name": "echocris_0", "members": [], "validation_dice": 0.5, "summary": None},
            {"name": "best_n", "members": ["echocris_0", "echocris_1"], "summary": {"overall": {"dice_mean": 0.25}}},
        ],
        "made by a test",
    )
    text = write_comparison(table, tmp_path).read_text()
    lines = [line.split() for line in text.splitlines()]
    assert ["echocris_0", "–", "0.500", *["–"] * 7] in lines
    assert ["best_n", "echocris_0", "echocris_1", "–", "–", "–", "–", "0.250", "–", "–", "–"] in lines
    assert text.endswith("made by a test\n")
    assert pd.read_csv(tmp_path / "auto3dseg.csv")["dice"].dropna().tolist() == [0.25]
