"""Test the table and plot of prompt sensitivity, from made files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from synboost_monai.evaluation.sensitivity import sensitivity_rows, summarise_sensitivity
from synboost_monai.evaluation.sensitivity_tables import (
    read_sensitivity,
    sensitivity_plot,
    sensitivity_table,
    write_sensitivity,
)
from synboost_monai.prompts.variations import PromptVariations
from synboost_monai.structures import STRUCTURES
from tests.sensitivity_run import write_sensitivity_run

ITEM = {
    "view": "apical_two_chamber",
    "phase": "end_systole",
    "sex": "male",
    "age": 60,
    "image_quality": "good",
    "shape": {s.name: "oval" for s in STRUCTURES},
}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Write the files of a run of two patients with names as awkward as patients' names may be."""
    generator = np.random.default_rng(0)
    truth = torch.zeros(24, 24)
    truth[2:8, 2:8], truth[2:8, 12:18], truth[12:18, 2:8] = 1, 2, 3
    variants = PromptVariations("P7")(ITEM)
    rows = []
    for patient in ("NA", "007"):
        masks = torch.stack(
            [torch.from_numpy(generator.random(truth.shape) < 0.2) | (truth == 1 + i % 3) for i in range(len(variants))]
        )
        facts = {"case": f"{patient}_1", "patient": patient, "view": ITEM["view"], "phase": ITEM["phase"]}
        rows += [{**facts, **row} for row in sensitivity_rows(masks, variants, truth)]
    write_sensitivity_run(tmp_path, rows, num_untested_images={"sex": 3}, dataset_dir="data_set", seed=4)
    return tmp_path


def test_files_come_back_as_they_were_written(run_folder: Path) -> None:
    frame, record = read_sensitivity(run_folder)
    assert set(frame["patient"]) == {"NA", "007"} and frame["attribute"].isna().sum() == 6
    again = summarise_sensitivity(frame, num_resamples=200)
    for found, expected in zip(again, record["summary"]):
        assert found == pytest.approx(expected, abs=2e-6)


def test_table_has_a_row_for_each_change_in_percent(run_folder: Path) -> None:
    _, record = read_sensitivity(run_folder)
    table = sensitivity_table(record)
    assert table.frame["attribute"].tolist() == [
        *("phrasing", "structure", "structure", "structure", "structure"),
        *(name for name in ("view", "phase", "sex", "age", "image_quality", "shape") for _ in range(2)),
    ]
    changes = ["wrong", "wrong: right ventricular cavity", "wrong: kidney", "left out"]
    assert table.frame["change"].tolist()[1:5] == changes
    part = next(s for s in record["summary"] if s["attribute"] == "age" and s["structure"] == "overall")
    row = table.frame[table.frame["attribute"] == "age"].iloc[0]
    assert row["dice_to_right"] == pytest.approx(100 * part["dice_to_right"])
    assert row["num_prompts"] == part["num_prompts"] == 2 * 3 * 4
    by_structure = [row[s.name] for s in STRUCTURES]
    assert np.mean(by_structure) == pytest.approx(row["dice_to_right"])
    named = table.frame["dice_to_named"].notna()
    assert table.frame.loc[named, "change"].tolist() == ["wrong"]
    facts = ("testing of data_set, 2 images of 2 patients", "sex (3)", "weights 0123456789ab", "seed 4")
    for words in (*facts, "command: synboost run echo_cris sensitivity"):
        assert words in table.note


def test_table_plot_and_latex_are_written(run_folder: Path) -> None:
    paths = write_sensitivity(run_folder)
    names = ["prompt_sensitivity.csv", "prompt_sensitivity.tex", "prompt_sensitivity.png"]
    assert [p.name for p in paths] == names and all(p.parent == run_folder for p in paths)
    assert not list(run_folder.glob(".*"))
    assert r"wrong: kidney" in paths[1].read_text()


def test_plot_shows_every_structure_in_its_colour(run_folder: Path) -> None:
    frame, _ = read_sensitivity(run_folder)
    pixels = np.asarray(Image.open(io.BytesIO(sensitivity_plot(frame))).convert("RGB")).astype(int)
    assert pixels.shape[0] > 500 and pixels.shape[1] > 900
    for structure in STRUCTURES:
        distance = np.abs(pixels - np.array(structure.colour)).sum(axis=-1)
        assert (distance < 30).sum() > 200, structure.name


def test_plot_of_few_attributes(run_folder: Path) -> None:
    frame, _ = read_sensitivity(run_folder)
    few = frame[frame["attribute"].isin(["phrasing", "view"]) & (frame["structure"] == "myocardium")]
    assert Image.open(io.BytesIO(sensitivity_plot(few))).size[0] > 900


def test_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"sensitivity.csv: no such file; `synboost run echo_cris sensitivity"):
        write_sensitivity(tmp_path)
