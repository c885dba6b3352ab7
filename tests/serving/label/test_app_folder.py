"""Test MONAI Label's app folder: a copy with its own settings, made whole, kept as it is, and never with weights that do not fit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml

from synboost_monai.model_card import read_card, write_model
from synboost_monai.networks import load_weights
from synboost_monai.serving.label.app_folder import (
    RECORD_NAME,
    WEIGHTS,
    make_app_folder,
    plan_bundles,
    stock_app_dir,
    with_values,
)
from tests.tiny import tiny_card, tiny_network, tiny_weights

TINY = {"preset": "tiny", "image_size": "32"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return random tiny weights of both segmenters."""
    folder = tmp_path_factory.mktemp("weights")
    return {bundle: tiny_weights(bundle, folder / f"{bundle}.pt") for bundle in ("echo_cris", "echo_clipseg")}


@pytest.fixture
def stock_dir(tmp_path: Path) -> Path:
    """Return a stand-in for MONAI Label's sample app."""
    folder = tmp_path / "stock"
    (folder / "lib").mkdir(parents=True)
    (folder / "main.py").write_text("class MyApp: pass\n", encoding="utf-8")
    (folder / "lib/__init__.py").touch()
    return folder


def test_app_folder_is_a_copy_with_settings_and_weights(checkpoints, stock_dir: Path, tmp_path: Path):
    app = tmp_path / "app"
    paths = [str(checkpoints["echo_cris"]), str(checkpoints["echo_clipseg"])]
    settings = {**TINY, "echo_cris.learning_rate": "5e-4", "prompt": "left atrium"}
    assert make_app_folder(app, plan_bundles(["echo_cris", "echo_clipseg"], paths, settings), stock_dir)

    for name, rate in (("echo_cris", 5e-4), ("echo_clipseg", None)):
        copy = app / "model" / name
        inference = yaml.safe_load((copy / "configs/inference.yaml").read_text())
        train = yaml.safe_load((copy / "configs/train.yaml").read_text())
        assert (inference["preset"], inference["image_size"], inference["prompt"]) == ("tiny", 32, "left atrium")
        assert (train["preset"], train["image_size"], train["resume"]) == ("tiny", 32, False)
        assert rate is None or train["learning_rate"] == rate
        assert "learning_rate" not in inference and "prompt" not in train
        assert [p.name for p in (copy / "models").iterdir()] == ["model.pt"]  # MONAI Label takes the shortest name
        mine, theirs = torch.load(copy / WEIGHTS, weights_only=True), torch.load(checkpoints[name], weights_only=True)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert (copy / "configs/metadata.json").is_file() and (copy / "LICENSE").is_file()
    assert not [path for path in app.rglob("*") if path.is_symlink()]
    assert not any(os.path.samefile(app / "model" / name / WEIGHTS, path) for name, path in checkpoints.items())
    assert (app / "monaibundle_app.py").read_text() == "class MyApp: pass\n"
    compile((app / "main.py").read_text(), "main.py", "exec")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["app", "stock"]  # nothing half made is left


def test_trained_weights_are_kept_and_other_settings_are_refused(checkpoints, stock_dir: Path, tmp_path: Path):
    app, paths = tmp_path / "app", [str(checkpoints["echo_clipseg"])]
    make_app_folder(app, plan_bundles(["echo_clipseg"], paths, TINY), stock_dir)
    (app / "model/echo_clipseg" / WEIGHTS).write_bytes(b"trained since")
    assert not make_app_folder(app, plan_bundles(["echo_clipseg"], paths, TINY), stock_dir)
    assert (app / "model/echo_clipseg" / WEIGHTS).read_bytes() == b"trained since"
    with pytest.raises(ValueError, match="was made with other weights or settings of echo_clipseg"):
        make_app_folder(app, plan_bundles(["echo_clipseg"], paths, {**TINY, "threshold": "0.4"}), stock_dir)
    record = json.loads((app / RECORD_NAME).read_text())
    assert record["bundles"]["echo_clipseg"]["settings"] == {"preset": "tiny", "image_size": 32}


def test_folder_of_an_older_version_is_refused(checkpoints, stock_dir: Path, tmp_path: Path):
    app, planned = tmp_path / "app", plan_bundles(["echo_cris"], [str(checkpoints["echo_cris"])], TINY)
    make_app_folder(app, planned, stock_dir)
    record = json.loads((app / RECORD_NAME).read_text())
    (app / RECORD_NAME).write_text(json.dumps({**record, "synboost_version": "0.1.0"}))
    message = "app: was made by synboost-monai 0.1.0, some of whose modules .*; make it anew in another --app_dir"
    with pytest.raises(ValueError, match=message):
        make_app_folder(app, planned, stock_dir)


def test_folder_of_somebody_else_is_left_alone(checkpoints, stock_dir: Path, tmp_path: Path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/notes.txt").touch()
    planned = plan_bundles(["echo_clipseg"], [str(checkpoints["echo_clipseg"])], TINY)
    with pytest.raises(ValueError, match="holds something else than an app folder"):
        make_app_folder(tmp_path / "theirs", planned, stock_dir)
    assert [p.name for p in (tmp_path / "theirs").iterdir()] == ["notes.txt"]


def test_weights_that_do_not_fit_leave_no_folder(checkpoints, stock_dir: Path, tmp_path: Path):
    other_kind = plan_bundles(["echo_clipseg"], [str(checkpoints["echo_cris"])], TINY)
    with pytest.raises(ValueError, match="does not fit"):
        make_app_folder(tmp_path / "app", other_kind, stock_dir)
    other_size = plan_bundles(["echo_clipseg"], [str(checkpoints["echo_clipseg"])], {"preset": "small"})
    with pytest.raises(ValueError, match="give the --preset and --image_size that echo_clipseg was trained with"):
        make_app_folder(tmp_path / "app", other_size, stock_dir)
    assert not (tmp_path / "app").exists()


@pytest.mark.parametrize(
    ("bundles", "overrides", "message"),
    [
        ([], {}, "one or more different bundles, got none"),
        (["echo_cris", "echo_cris"], {}, "different bundles"),
        (["echo_semantic_diffusion"], {}, "does not segment"),
        (["echo_cris"], {"presett": "tiny"}, "unknown key --presett; did you mean preset"),
        (["echo_cris"], {"echo_clipseg.preset": "tiny"}, "is for the bundle echo_clipseg"),
        (["echo_cris"], {"calibration_path": "c.json"}, "a calibration is for one set of weights"),
        (["echo_cris"], {"has_view_head": "true"}, "the model.json beside the weights says it"),
        (["echo_cris"], {"sequences": "true"}, "one plane"),
        (["echo_cris"], {"image_size": "large"}, "must be a number"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(bundles, overrides, message, checkpoints):
    with pytest.raises(ValueError, match=message):
        plan_bundles(bundles, [str(checkpoints["echo_cris"])] * len(bundles), overrides)


def test_missing_weights_are_told(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such weights; give --checkpoint_path"):
        plan_bundles(["echo_cris"], [str(tmp_path / "model.pt")], {})
    with pytest.raises(ValueError, match="one --checkpoint_path for each of the 2 bundles"):
        plan_bundles(["echo_cris", "echo_clipseg"], ["model.pt"], {})


def test_stock_app_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="sample app is not here"):
        stock_app_dir()


def test_values_are_written_and_all_else_stays():
    text = "# purpose\nsize: 416      # pixels\nmean: [0.1, 0.2]   # CLIP\nprompt: ''  # words\nnone: null\nnested:\n  size: 1\n"
    new = with_values(text, {"size": 32, "mean": [0.5], "prompt": "left: atrium # 2", "none": "P3"})
    assert new == (
        "# purpose\nsize: 32      # pixels\nmean: [0.5]   # CLIP\nprompt: 'left: atrium # 2'  # words\nnone: P3\nnested:\n  size: 1\n"
    )
    assert with_values(text, {"size": None}).splitlines()[1] == "size: null      # pixels"
    for key in ("nested", "missing"):
        with pytest.raises(ValueError, match=f"--{key} cannot be set here"):
            with_values(text, {key: 1})


def test_weights_say_what_they_are_and_go_on_to(checkpoints: dict[str, Path], stock_dir: Path, tmp_path: Path) -> None:
    half = {name: value.half() for name, value in torch.load(checkpoints["echo_cris"], weights_only=True).items()}
    write_model(half, tmp_path / "half.pt", tiny_card("cris", licence="MIT"))
    planned = plan_bundles(["echo_cris"], [str(tmp_path / "half.pt")], {})
    assert make_app_folder(tmp_path / "app", planned, stock_dir)
    copy = tmp_path / "app/model/echo_cris"
    for name in ("inference", "train"):
        config = yaml.safe_load((copy / f"configs/{name}.yaml").read_text())
        assert (config["preset"], config["image_size"], config["padding_id"]) == ("tiny", 32, 0)
    card = read_card(copy / "models/model.pt")  # of the weights as they lie there, in float32
    assert card is not None and (card.licence, card.dtype, card.facts["preset"]) == ("MIT", "float32", "tiny")
    with pytest.raises(ValueError, match="made with preset tiny, but --preset says small"):
        plan_bundles(["echo_cris"], [str(tmp_path / "half.pt")], {"preset": "small"})


def test_a_head_for_the_view_goes_along(stock_dir: Path, tmp_path: Path) -> None:
    """No config of the app folder states it: a training on corrected labels drops the head, and model.json says so."""
    network = tiny_network("cris", has_view_head=True)
    write_model(network.state_dict(), tmp_path / "model.pt", tiny_card("cris", has_view_head=True))
    assert make_app_folder(tmp_path / "app", plan_bundles(["echo_cris"], [str(tmp_path / "model.pt")], {}), stock_dir)
    copy = tmp_path / "app/model/echo_cris"
    said = {
        n: yaml.safe_load((copy / f"configs/{n}.yaml").read_text())["has_view_head"] for n in ("inference", "train")
    }
    assert said == {"inference": None, "train": False}
    card = read_card(copy / "models/model.pt")
    assert card is not None and card.facts["has_view_head"] is True
    load_weights(network, copy / "models/model.pt")  # strictly
