"""Test AutoRunner's input: mistakes are reported in one sentence, before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from synboost_monai.auto3dseg.run import run_auto3dseg
from synboost_monai.auto3dseg.source import chosen_algorithms, folded_datalist, read_source


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"modality": None}, "modality is missing; AutoRunner needs modality, datalist, dataroot"),
        ({"modality": "", "dataroot": ""}, "modality, dataroot are missing"),
        ({"modality": "MRI"}, "modality must be ultrasound, as these algorithms know no other, got 'MRI'"),
        ({"datalist": "nowhere.json"}, "datalist nowhere.json does not exist, neither here nor beside this file"),
        ({"dataroot": "nowhere"}, "dataroot nowhere does not exist"),
        ({"num_folds": 3}, "unknown key num_folds; did you mean num_fold"),
        ({"sigmoid": True}, "sigmoid is decided by synboost auto3dseg"),
    ],
)
def test_bad_input_is_refused(make_input: Callable[..., Path], more: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_source(make_input(**more))


@pytest.mark.parametrize(("text", "message"), [("- a", "expected a mapping"), ("a: [", "not valid YAML")])
def test_input_of_another_kind_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "input.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_source(tmp_path / "input.yaml")
    with pytest.raises(FileNotFoundError, match="no such file; give AutoRunner's input.yaml"):
        read_source(tmp_path / "gone.yaml")


def test_paths_are_relative_to_here_or_to_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder / "data").mkdir(parents=True)
        (tmp_path / folder / "list.json").write_text("{}")
    (tmp_path / "there/input.yaml").write_text("{modality: us, datalist: list.json, dataroot: data}")
    monkeypatch.chdir(tmp_path / "here")
    assert read_source(tmp_path / "there/input.yaml")["datalist"] == str(tmp_path / "here/list.json")
    monkeypatch.chdir(tmp_path)
    assert read_source("there/input.yaml")["dataroot"] == str(tmp_path / "there/data")


def test_algorithms_are_named_as_a_list_or_in_words() -> None:
    assert chosen_algorithms(None) == ["echoclipseg", "echocris"]
    assert chosen_algorithms("echocris") == ["echocris"]
    for both in ("echocris, echoclipseg", "['echocris','echoclipseg']", ["echocris", "echoclipseg"]):
        assert chosen_algorithms(both) == ["echoclipseg", "echocris"]
    with pytest.raises(ValueError, match="no algorithm is called 'echo_cris'; did you mean echocris"):
        chosen_algorithms("echo_cris")


def test_datalist_gets_folds_and_paths_that_auto_runner_finds(make_input: Callable[..., Path], camus_dir: Path) -> None:
    content, num_fold, root = folded_datalist(read_source(make_input()), 2, seed=0)
    assert num_fold == 2 and Path(root) == camus_dir.resolve() / "database_nifti"
    assert len(content["training"]) == 20 and len(content["testing"]) == 4
    # MONAI writes a prediction to the path from dataroot to its image: that must not lead out of its output folder
    assert all(Path(item["image"]).is_relative_to(root) for item in content["training"] + content["testing"])
    assert content["training"][0]["image_quality"] in ("good", "medium", "poor")


@pytest.fixture
def damaged(make_camus: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that changes a fresh data set, and writes the input for it."""

    def write(change: Callable[[dict[str, Any]], None]) -> Path:
        from synboost_monai.data import read_camus, write_datalist

        (tmp_path / "data").mkdir()
        path = write_datalist(
            tmp_path / "data", read_camus(make_camus(), progress=False).splits, name="tiny", description="tiny"
        )
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        source = {"modality": "us", "datalist": str(path), "dataroot": str(path.parent)}
        (tmp_path / "input.yaml").write_text(yaml.safe_dump(source))
        return tmp_path / "input.yaml"

    return write


def _cross(content: dict[str, Any]) -> None:
    content["testing"].append(content["training"][0])


def _misname(content: dict[str, Any]) -> None:
    content["training"][3]["view"] = "parasternal"


def _lose(content: dict[str, Any]) -> None:
    content["testing"][1]["image"] = "gone.nii.gz"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_cross, "patient patient0001 is in two splits, training and testing"),
        (_misname, r"datalist.json: training\[3\]: .*view must be one of"),
        (_lose, r"testing\[1\]: image .*gone.nii.gz does not exist"),
    ],
)
def test_mistakes_of_data_stop_before_anything_is_written(
    damaged: Callable[..., Path], change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_auto3dseg(damaged(change), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_label_maps_with_other_classes_stop_too(damaged: Callable[..., Path], tmp_path: Path) -> None:
    import nibabel as nib

    source = damaged(lambda content: None)
    path = next((tmp_path / "camus").rglob("patient0002_2CH_ED_gt.nii.gz"))
    label_map = np.asarray(nib.load(path).dataobj).copy()
    label_map[0, 0] = 7
    nib.save(nib.Nifti1Image(label_map, nib.load(path).affine), path)
    with pytest.raises(ValueError, match=r"patient0002_2CH_ED_gt.nii.gz: expected a label map .* got \[7\]"):
        run_auto3dseg(source, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ensemble": "all"}, "ensemble must be one of best_n, best_by_fold, both, none, got 'all'"),
        ({"n_best": 9}, r"n_best must be 1 to the 4 networks \(2 algorithms\), got 9"),
        ({"num_fold": 0}, "num_fold must be 2 to the 5 patients, got 0"),
        ({"num_epoch": 3}, "unknown key --num_epoch"),
    ],
)
def test_bad_arguments_are_refused(
    make_input: Callable[..., Path], arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run_auto3dseg(make_input(), output=tmp_path / "run", **{"num_fold": 2, **arguments})
    assert not (tmp_path / "run").exists()


def test_a_run_of_an_older_version_is_refused(make_input: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/settings.json").write_text('{"algorithms": []}')  # version 0.1.0 did not state itself
    with pytest.raises(
        ValueError, match="run: was made by synboost-monai 0.1.0, .*; run it anew with another --output"
    ):
        run_auto3dseg(make_input(), output=tmp_path / "run", num_fold=2)
