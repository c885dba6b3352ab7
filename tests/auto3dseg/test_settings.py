"""Test hyper-parameters: templates, input.yaml and training parameters are translated into the bundles' words."""

from __future__ import annotations

from typing import Any

import pytest

from synboost_monai.auto3dseg import TEMPLATES_DIR, algorithm_names
from synboost_monai.auto3dseg.settings import (
    HYPER_PARAMETERS,
    HYPER_PARAMETERS_NAME,
    bundle_training,
    read_hyper_parameters,
    with_source_settings,
)
from synboost_monai.bundle_run import bundle_dir


def template(name: str) -> dict[str, Any]:
    return read_hyper_parameters(TEMPLATES_DIR / name / "configs" / HYPER_PARAMETERS_NAME)


def test_templates_have_names_that_auto3dseg_can_take_and_bundles_that_exist() -> None:
    assert algorithm_names() == ["echoclipseg", "echocris"]
    for name in algorithm_names():
        assert "_" not in name  # MONAI splits NAME_FOLD at the underscore
        assert tuple(template(name)) == HYPER_PARAMETERS
        assert bundle_dir(template(name)["bundle"]).name == f"echo_{name.removeprefix('echo')}"


def test_null_is_left_to_the_recipe_of_the_preset() -> None:
    bundle, config, overrides = bundle_training(template("echocris"))
    assert (bundle, config) == ("echo_cris", "train_small")
    assert overrides == {"preset": "small", "val_prompt_level": "P6", "seed": 0}
    assert bundle_training({**template("echocris"), "preset": "published"})[1] == "train"
    assert bundle_training({**template("echocris"), "recipe": "train_published"})[1] == "train_published"


def test_names_of_auto3dseg_become_those_of_the_bundle() -> None:
    settings = {"num_epochs": 3, "num_images_per_batch": 4, "num_epochs_per_validation": 2, "learning_rate": 0.01}
    more = {"prompt_level": "P3", "image_encoder_weights": None}
    overrides = bundle_training({**template("echoclipseg"), **settings, **more})[2]
    assert overrides["max_epochs"] == 3 and overrides["batch_size"] == 4 and overrides["val_interval"] == 2
    assert overrides["learning_rate"] == 0.01 and overrides["prompt_level"] == "P3"
    assert overrides["image_encoder_weights"] is None  # of a key that the template has not, null is a value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "huge"}, "preset must be one of small, published, tiny, got 'huge'"),
        ({"num_epoch": 3}, "unknown key --num_epoch"),
        ({"num_epochs": "many"}, "--max_epochs must be a number"),
        ({"recipe": "train_smal"}, "did you mean train_small"),
        ({"output_dir": "x"}, "output_dir is set for each fold by itself"),
    ],
)
def test_bad_hyper_parameters_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        bundle_training({**template("echocris"), **settings})


def test_input_says_it_for_all_algorithms_or_for_one() -> None:
    source: dict[str, Any] = {"modality": "us", "bundle": "x", "num_epochs": 5, "seed": 7}
    source["echocris"] = {"num_epochs": 9, "freeze_encoders": True}
    cris = with_source_settings(template("echocris"), source, "echocris")
    assert (cris["num_epochs"], cris["seed"], cris["freeze_encoders"], cris["bundle"]) == (9, 7, True, "echo_cris")
    clipseg = with_source_settings(template("echoclipseg"), source, "echoclipseg")
    assert clipseg["num_epochs"] == 5 and "freeze_encoders" not in clipseg and "modality" not in clipseg
    with pytest.raises(ValueError, match="echocris must be a mapping"):
        with_source_settings(template("echocris"), {"echocris": 3}, "echocris")
