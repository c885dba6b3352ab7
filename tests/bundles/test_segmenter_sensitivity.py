"""Test sensitivity.yaml with tiny networks: it runs after inference.yaml and writes its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow

from synboost_monai.bundle_run import check_overrides, config_files
from synboost_monai.structures import STRUCTURES
from tests.bundles.conftest import BUNDLES

CONFIGS = Path(__file__).parents[2] / "bundles"


def workflow(bundle: str, output_dir: Path, **overrides: Any) -> ConfigWorkflow:
    """Make the run as `monai.bundle run` does."""
    files = [str(CONFIGS / bundle / "configs" / f"{name}.yaml") for name in ("inference", "sensitivity")]
    tiny = {"preset": "tiny", "image_size": 32, "device": "cpu", "output_dir": str(output_dir)}
    run = ConfigWorkflow(files, workflow_type="infer", logging_file=False, **{**tiny, **overrides})  # type: ignore[arg-type]
    run.initialize()
    return run


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Write random weights of the tiny network."""
    from synboost_monai.networks import create_segmenter

    torch.manual_seed(0)
    architecture = request.getfixturevalue("bundle").removeprefix("echo_")
    torch.save(create_segmenter(architecture, "tiny").state_dict(), tmp_path / "model.pt")
    return str(tmp_path / "model.pt")


def test_run_writes_every_prompt_summary_table_and_plot(
    bundle: str, checkpoint: str, datalist_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    data = {"dataset_dir": str(datalist_dir), "checkpoint_path": checkpoint, "seed": 3}
    run = workflow(bundle, out, **data)
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

    workflow(bundle, tmp_path / "again", **data, prompt_level="P2", prompts_at_once=100).run()
    lower = pd.read_csv(tmp_path / "again" / "sensitivity.csv")
    assert set(lower["attribute"].dropna()) == {"phrasing", "structure", "view"}


@pytest.mark.parametrize("bundle", ["echo_clipseg"], indirect=True)
def test_right_prompts_have_the_dice_of_an_evaluation(
    bundle: str, checkpoint: str, datalist_dir: Path, tmp_path: Path
) -> None:
    """If there is one structure alone, nothing competes for pixels, so that its Dice is that of the plain threshold."""
    from synboost_monai.data import read_datalist
    from synboost_monai.evaluation.per_case import case_metrics
    from synboost_monai.files import image_stem
    from synboost_monai.transforms import load_echo

    data = {"dataset_dir": str(datalist_dir), "checkpoint_path": checkpoint, "prompt_level": "P1"}
    workflow(bundle, tmp_path / "out", **data).run()
    table = (
        pd.read_csv(tmp_path / "out" / "sensitivity.csv").query("change == 'right'").set_index(["case", "structure"])
    )
    files = [str(CONFIGS / bundle / "configs" / "inference.yaml")]
    options = {"preset": "tiny", "image_size": 32, "device": "cpu", "output_dir": str(tmp_path / "masks"), **data}
    options |= {"prompt": "Left atrium cavity of the heart.", "keep_largest": False, "fill_holes": False}
    run = ConfigWorkflow(files, workflow_type="infer", logging_file=False, **options)  # type: ignore[arg-type]
    run.initialize()
    run.run()
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
        text = (CONFIGS / bundle / "configs" / "sensitivity.yaml").read_text()
        contents.append(text.replace(bundle, "BUNDLE").replace(bundle.removeprefix("echo_"), "MODEL"))
        own = yaml.safe_load(text)["preprocessing"]["transforms"]
        inference = yaml.safe_load((CONFIGS / bundle / "configs" / "inference.yaml").read_text())["preprocessing"]
        assert len(own) == len(inference["transforms"])
        for mine, theirs in zip(own, inference["transforms"]):
            if "PromptTokensd" not in theirs["_target_"]:
                assert mine == {k: v for k, v in theirs.items() if k != "sequences"}
    assert contents[0] == contents[1]
