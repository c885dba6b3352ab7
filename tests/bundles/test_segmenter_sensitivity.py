"""Test sensitivity.yaml with tiny networks: it runs after inference.yaml and writes its files."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from synboost_monai.bundle_run import check_overrides, config_files
from synboost_monai.structures import STRUCTURES
from tests.bundles.conftest import BUNDLES, BUNDLES_DIR, read_yaml, workflow
from tests.tiny import tiny_weights

SENSITIVITY = ["inference", "sensitivity"]


@pytest.fixture
def checkpoint(bundle: str, tmp_path: Path) -> Path:
    """Write random weights of the tiny network."""
    return tiny_weights(bundle, tmp_path / "model.pt")


def test_run_writes_every_prompt_summary_table_and_plot(
    bundle: str, checkpoint: Path, datalist_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    data = {"dataset_dir": datalist_dir, "checkpoint_path": checkpoint, "seed": 3}
    run = workflow(bundle, SENSITIVITY, output_dir=out, **data)
    assert run.check_properties() == [] and not out.exists()  # making all the parts writes nothing
    run.run()
    names = ["prompt_sensitivity.csv", "prompt_sensitivity.png", "prompt_sensitivity.tex"]
    assert sorted(p.name for p in out.iterdir()) == [*names, "sensitivity.csv", "sensitivity.json"]
    table = pd.read_csv(out / "sensitivity.csv")
    assert table["case"].nunique() == 4 and set(table["structure"]) == {s.name for s in STRUCTURES}
    attributes = {"phrasing", "structure", "view", "phase", "sex", "age", "image_quality", "shape"}
    assert set(table["attribute"].dropna()) == attributes
    right = table[table["change"] == "right"]
    assert len(right) == 12 and (right["dice_to_right"] == 1).all()
    record = json.loads((out / "sensitivity.json").read_text())
    assert (record["model"], record["prompt_level"], record["seed"]) == (bundle.removeprefix("echo_"), "P7", 3)
    assert record["num_untested_images"] == {} and record["num_patients"] == 1

    again = {"output_dir": tmp_path / "again", "prompt_level": "P2", "prompts_at_once": 100}
    workflow(bundle, SENSITIVITY, **data, **again).run()
    lower = pd.read_csv(tmp_path / "again" / "sensitivity.csv")
    assert set(lower["attribute"].dropna()) == {"phrasing", "structure", "view"}


@pytest.mark.parametrize("bundle", ["echo_clipseg"], indirect=True)
def test_right_prompts_have_the_dice_of_an_evaluation(
    bundle: str, checkpoint: Path, datalist_dir: Path, tmp_path: Path
) -> None:
    """If there is one structure alone, nothing competes for pixels, so that its Dice is that of the plain threshold."""
    from synboost_monai.data import read_datalist
    from synboost_monai.evaluation.per_case import case_metrics
    from synboost_monai.files import image_stem
    from synboost_monai.transforms import load_echo

    data = {"dataset_dir": datalist_dir, "checkpoint_path": checkpoint, "prompt_level": "P1"}
    workflow(bundle, SENSITIVITY, output_dir=tmp_path / "out", **data).run()
    table = pd.read_csv(tmp_path / "out" / "sensitivity.csv")
    table = table[table["change"] == "right"].set_index(["case", "structure"])
    options = {"prompt": "Left atrium cavity of the heart.", "keep_largest": False, "fill_holes": False}
    workflow(bundle, ["inference"], output_dir=tmp_path / "masks", **data, **options).run()
    for item in read_datalist(datalist_dir, "testing"):
        case = image_stem(item["image"])
        mask, spacing_mm = load_echo(tmp_path / "masks" / f"{case}.nii.gz")
        rows = case_metrics(mask[0], load_echo(item["label"])[0][0], spacing_mm)
        dice = next(r["dice"] for r in rows if r["structure"] == "left_atrium")
        assert table.loc[(case, "left_atrium"), "dice_to_expert"] == pytest.approx(dice, abs=2e-3)


def test_it_is_read_after_inference_and_its_keys_are_known(bundle: str) -> None:
    files = config_files(bundle, "sensitivity")
    assert [f.stem for f in files] == ["inference", "sensitivity"]
    known = check_overrides(files, {"prompt_level": "P3", "prompts_at_once": "4", "section": "validation"})
    assert known == {"prompt_level": "P3", "prompts_at_once": 4, "section": "validation"}
    with pytest.raises(ValueError, match="did you mean prompts_at_once"):
        check_overrides(files, {"prompt_at_once": 3})


def test_both_bundles_have_the_same_config_and_the_preprocessing_of_inference() -> None:
    contents = []
    for bundle in BUNDLES:
        text = (BUNDLES_DIR / bundle / "configs" / "sensitivity.yaml").read_text()
        contents.append(text.replace(bundle, "BUNDLE").replace(bundle.removeprefix("echo_"), "MODEL"))
        own, inference = (read_yaml(bundle, name)["preprocessing"]["transforms"] for name in SENSITIVITY[::-1])
        for mine, theirs in zip(own, inference, strict=True):
            if "PromptTokensd" not in theirs["_target_"]:
                assert mine == {k: v for k, v in theirs.items() if k != "sequences"}
    assert contents[0] == contents[1]
