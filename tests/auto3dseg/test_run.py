"""Test a whole run of Auto3DSeg on tiny data: both algorithms, two folds, both ensembles; done again, interrupted, and by MONAI alone."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from monai.apps.auto3dseg import AutoRunner, import_bundle_algo_history
from monai.utils.enums import AlgoKeys

from synboost_monai.auto3dseg import TEMPLATES_DIR, algo
from synboost_monai.auto3dseg.run import run_auto3dseg
from synboost_monai.bundle_run import run_bundle
from synboost_monai.data import read_datalist
from synboost_monai.evaluation.per_case import case_metrics
from synboost_monai.transforms.files import load_echo
from tests.auto3dseg.conftest import TINY, write_input

NETWORKS = ["echoclipseg_0", "echoclipseg_1", "echocris_0", "echocris_1"]


def pixels(path: Path) -> np.ndarray:
    return load_echo(path)[0][0].numpy()


def predictions(run: Path, image: str) -> dict[str, torch.Tensor]:
    """Return the class probabilities (K, H, W) of each network."""
    history = import_bundle_algo_history(str(run))
    return {h[AlgoKeys.ID]: h[AlgoKeys.ALGO].predict([image])[0].as_tensor().transpose(1, 2) for h in history}


def test_every_network_and_ensemble_is_measured(finished_run: Path) -> None:
    frame = pd.read_csv(finished_run / "auto3dseg.csv")
    assert list(frame["name"]) == [*NETWORKS, "best_n", "best_by_fold"]
    assert frame["num_cases"].tolist() == [4] * 6 and frame["dice"].between(0, 1).all()
    text = (finished_run / "auto3dseg.txt").read_text()
    assert "4 test images; 2 folds; seed 0" in text and (finished_run / "auto3dseg.tex").is_file()
    for folder in ("ensemble/best_n", "ensemble/best_by_fold", *(f"{name}/evaluation" for name in NETWORKS)):
        metrics = pd.read_csv(finished_run / folder / "metrics.csv")
        assert len(metrics) == 12 and set(metrics["patient"]) == {"patient0006"}
        summary = json.loads((finished_run / folder / "summary.json").read_text())
        assert summary["section"] == "testing" and summary["num_patients"] == 1
        assert len(list((finished_run / folder / "label_maps").glob("*.nii.gz"))) == 4


def test_folds_are_trained_on_the_other_patients(finished_run: Path) -> None:
    held_out = [
        {item["patient"] for item in read_datalist(finished_run / f"echocris_{fold}" / "data", "validation")}
        for fold in (0, 1)
    ]
    assert held_out[0] | held_out[1] == {f"patient000{n}" for n in range(1, 6)} and not held_out[0] & held_out[1]
    assert held_out[0] == {i["patient"] for i in read_datalist(finished_run / "echoclipseg_1" / "data", "training")}


def test_score_is_that_of_the_bundle_s_validation(finished_run: Path) -> None:
    for name in NETWORKS:
        progress = yaml.safe_load((finished_run / name / "model/progress.yaml").read_text())
        history = pd.read_csv(finished_run / name / "model/history.csv")
        assert progress[-1]["best_avg_dice_score"] == pytest.approx(history["val_mean_dice"].max())


@pytest.mark.parametrize("name", ["echoclipseg_0", "echocris_1"])
def test_one_network_gives_the_label_maps_of_its_bundle(
    name: str, finished_run: Path, datalist_dir: Path, tmp_path: Path
) -> None:
    facts = yaml.safe_load((finished_run / name / "model/inference.yaml").read_text())
    settings = yaml.safe_load((finished_run / name / "configs/hyper_parameters.yaml").read_text())
    weights = finished_run / name / "model/model.pt"
    overrides = {"dataset_dir": str(datalist_dir), "output_dir": str(tmp_path), "checkpoint_path": str(weights)}
    run_bundle(settings["bundle"], "evaluate", {**overrides, **facts})
    own = sorted((finished_run / name / "evaluation/label_maps").glob("*.nii.gz"))
    assert len(own) == 4
    for path in own:
        np.testing.assert_array_equal(pixels(path), pixels(tmp_path / "label_maps" / path.name))
    mine, its = (pd.read_csv(f / "metrics.csv") for f in (finished_run / name / "evaluation", tmp_path))
    pd.testing.assert_frame_equal(mine, its[mine.columns])


def test_ensemble_is_the_mean_of_its_members(finished_run: Path) -> None:
    table = pd.read_csv(finished_run / "auto3dseg.csv").set_index("name")
    scores = table["validation_dice"].dropna()
    best_n, by_fold = (table.loc[name, "members"].split() for name in ("best_n", "best_by_fold"))
    assert best_n == sorted(scores.nlargest(2).index)
    assert by_fold == sorted(scores[[n for n in NETWORKS if n.endswith(str(fold))]].idxmax() for fold in (0, 1))
    for item in read_datalist(finished_run, "testing"):
        probabilities = predictions(finished_run, item["image"])
        for folder, members in (("best_n", best_n), ("best_by_fold", by_fold)):
            expected = torch.stack([probabilities[name] for name in members]).mean(dim=0).argmax(dim=0).numpy()
            case = Path(item["image"]).name
            label_map = finished_run / "ensemble" / folder / "label_maps" / case
            np.testing.assert_array_equal(pixels(label_map), expected)
            truth, spacing = load_echo(item["label"])
            rows = pd.DataFrame(case_metrics(expected, truth[0], spacing))
            written = pd.read_csv(finished_run / "ensemble" / folder / "metrics.csv")
            written = written[written["case"] == case.removesuffix(".nii.gz")]
            np.testing.assert_allclose(written["dice"], rows["dice"], atol=1e-6)


def test_ensemble_label_map_lies_on_its_image(finished_run: Path) -> None:
    import nibabel as nib

    item = read_datalist(finished_run, "testing")[0]
    image = nib.load(item["image"])
    label_map = nib.load(finished_run / "ensemble/best_n/label_maps" / Path(item["image"]).name)
    assert label_map.shape == image.shape and label_map.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(label_map.affine, image.affine)


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    """Copy the finished run to another place, to go on with it there."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def call_again(run: Path, datalist_dir: Path, **more: Any) -> Path:
    return run_auto3dseg(write_input(run.parent, datalist_dir), output=run, **{"num_fold": 2, **TINY, **more})


def test_finished_run_is_not_done_again(copied_run: Path, datalist_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algo, "run_logged", lambda *_: pytest.fail("a trained fold was trained again"))
    times = {path: path.stat().st_mtime_ns for path in copied_run.rglob("metrics.csv")}
    assert len(times) == 6
    call_again(copied_run, datalist_dir)
    assert {path: path.stat().st_mtime_ns for path in copied_run.rglob("metrics.csv")} == times


def test_interrupted_run_trains_what_is_left(
    copied_run: Path, datalist_dir: Path, quick_training: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # killed while the last fold was in training: no score yet, and AutoRunner did not note the end
    (copied_run / "echocris_1/model/progress.yaml").unlink()
    record = json.loads((copied_run / "echocris_1/algo_object.json").read_text())
    del record["best_metric"]
    (copied_run / "echocris_1/algo_object.json").write_text(json.dumps(record))
    cache = yaml.safe_load((copied_run / "cache.yaml").read_text())
    (copied_run / "cache.yaml").write_text(yaml.safe_dump({**cache, "train": False}))
    old = (copied_run / "echocris_1/model/model.pt").read_bytes()
    trained = []
    run_logged = algo.run_logged
    monkeypatch.setattr(algo, "run_logged", lambda *words: trained.append(words[0][1]) or run_logged(*words))
    call_again(copied_run, datalist_dir)
    assert trained == [str(copied_run / "echocris_1/scripts/train.py")]
    assert (copied_run / "echocris_1/model/model.pt").read_bytes() == old  # same seed, same weights
    assert (copied_run / "echocris_1/model/progress.yaml").is_file()


def test_other_settings_need_another_folder(copied_run: Path, datalist_dir: Path) -> None:
    with pytest.raises(ValueError, match="holds a run with other settings .hyper_parameters .*'num_epochs': 3"):
        call_again(copied_run, datalist_dir, num_epochs=3)
    with pytest.raises(ValueError, match="other settings .data, num_fold 2 -> 3"):
        call_again(copied_run, datalist_dir, num_fold=3)
    (copied_run / "settings.json").unlink()
    with pytest.raises(ValueError, match="holds other things than a run of auto3dseg"):
        call_again(copied_run, datalist_dir)


def test_ensembles_can_be_changed_afterwards(copied_run: Path, datalist_dir: Path) -> None:
    call_again(copied_run, datalist_dir, ensemble="best_n", n_best=3)
    frame = pd.read_csv(copied_run / "auto3dseg.csv").set_index("name")
    assert "best_by_fold" not in frame.index and len(frame.loc["best_n", "members"].split()) == 3


def test_plain_auto_runner_takes_the_templates(
    make_input: Callable[..., Path],
    quick_training: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """AutoRunner takes our datalist as it is: it validates on its section, and paths lead out of dataroot."""
    # its message about the section has a wrong placeholder, which logging shows as an error
    monkeypatch.setattr(logging.getLogger("monai.apps.auto3dseg.auto_runner"), "disabled", True)
    source = make_input(**{**TINY, "num_epochs": 1})
    runner = AutoRunner(
        work_dir=str(tmp_path / "work"),
        input=str(source),
        algos=["echocris"],
        templates_path_or_url=str(TEMPLATES_DIR),
    )
    runner.set_analyze_params({"device": "cpu", "worker": 0})
    runner.run()
    written = list((tmp_path / "work/ensemble_output").rglob("*_ensemble.nii.gz"))
    assert len(written) == 4 and set(np.unique(pixels(written[0]))) <= {0, 1, 2, 3}


@pytest.mark.slow
def test_training_in_a_process_of_its_own(copied_run: Path, python_forks: None) -> None:
    name = "echocris_0"
    old = (copied_run / name / "model/model.pt").read_bytes()
    trained = next(h for h in import_bundle_algo_history(str(copied_run)) if h[AlgoKeys.ID] == name)
    (copied_run / name / "model/progress.yaml").unlink()
    trained[AlgoKeys.ALGO].train(TINY, {"CUDA_VISIBLE_DEVICES": "", "NUM_NODES": 1, "CMD_PREFIX": None})
    assert trained[AlgoKeys.ALGO].get_score() == trained[AlgoKeys.SCORE]
    assert (copied_run / name / "model/model.pt").read_bytes() == old
    assert "Key metric: val_mean_dice" in (copied_run / name / "train.txt").read_text()
