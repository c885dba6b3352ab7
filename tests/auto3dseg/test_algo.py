"""Test the algorithm that the templates share: what it refuses, fills and notes, and the command of its training."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.apps.auto3dseg import BundleGen, DataAnalyzer

from synboost_monai.auto3dseg import TEMPLATES_DIR, algo
from synboost_monai.auto3dseg.algo import EchoAlgo, check_cases, notes, refusal, told
from synboost_monai.auto3dseg.train import best_validation, inference_facts, main, read_flags, train_fold

SOURCE = {"modality": "ultrasound"}


@pytest.fixture(scope="module")
def statistics_path(datalist_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the statistics of the tiny CAMUS with DataAnalyzer, and return their path."""
    path = tmp_path_factory.mktemp("statistics") / "datastats.yaml"
    datalist = str(datalist_dir / "datalist.json")
    DataAnalyzer(datalist, str(datalist_dir), str(path), device="cpu", worker=0).get_all_case_stats()
    return path


@pytest.fixture
def statistics(statistics_path: Path) -> dict[str, Any]:
    return yaml.safe_load(statistics_path.read_text())


@pytest.fixture
def folded_input(make_input: Callable[..., Path], datalist_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes an input whose datalist has two folds of whole patients."""

    def write(**more: Any) -> Path:
        content = json.loads((datalist_dir / "datalist.json").read_text())
        items = [{**i, "fold": int(i["patient"][-1]) % 2} for i in content["training"]]
        (tmp_path / "folds.json").write_text(json.dumps({"training": items, "testing": content["testing"]}))
        return make_input(datalist=str(tmp_path / "folds.json"), **more)

    return write


def generate(work: Path, source: Path, statistics: Path, num_fold: int = 2, allow_skip: bool = True) -> list[Any]:
    generator = BundleGen(
        algo_path=str(work),
        templates_path_or_url=str(TEMPLATES_DIR),
        data_stats_filename=str(statistics),
        data_src_cfg_name=str(source),
    )
    generator.generate(str(work), num_fold=num_fold, allow_skip=allow_skip)
    return generator.get_history()


def test_bundle_gen_makes_every_fold_of_both(
    folded_input: Callable[..., Path], statistics_path: Path, tmp_path: Path
) -> None:
    source = folded_input(num_epochs=3, echocris={"freeze_encoders": True})
    work = tmp_path / "my #1 $work"
    history = generate(work, source, statistics_path)
    made = sorted(path.parents[1].name for path in work.glob("echo*/configs/hyper_parameters.yaml"))
    assert made == ["echoclipseg_0", "echoclipseg_1", "echocris_0", "echocris_1"] and len(history) == 4
    filled = yaml.safe_load((work / "echocris_1/configs/hyper_parameters.yaml").read_text())
    expected = {"bundle": "echo_cris", "fold": 1, "num_epochs": 3, "freeze_encoders": True}
    assert {key: filled[key] for key in expected} == expected
    assert filled["data_list_file_path"] == str(tmp_path / "folds.json")
    assert filled["data_statistics"]["num_cases"] == 16
    assert filled["data_statistics"]["shape"] == {"min": [40, 48], "max": [40, 48]}
    assert filled["notes"] == ["pixels are not square: images are fitted by their size in mm"]


def test_data_for_other_algorithms_is_skipped_with_a_sentence(
    folded_input: Callable[..., Path], statistics_path: Path, tmp_path: Path
) -> None:
    source = folded_input(modality="CT")
    assert generate(tmp_path / "work", source, statistics_path) == []
    algorithm = EchoAlgo()
    algorithm.set_data_stats(str(statistics_path))
    algorithm.set_data_source(str(source))
    reason = "these algorithms segment echocardiograms, so modality must be ultrasound, but it is 'CT'"
    assert algorithm.pre_check_skip_algo() == (True, reason)
    with pytest.raises(ValueError, match="modality must be ultrasound"):
        generate(tmp_path / "work", source, statistics_path, allow_skip=False)
    with pytest.raises(ValueError, match="BundleGen needs data_src_cfg_name"):
        EchoAlgo().pre_check_skip_algo()


def test_volumes_and_other_labels_are_refused(statistics: dict[str, Any]) -> None:
    assert refusal(statistics, SOURCE) is None
    planes = copy.deepcopy(statistics)
    planes["stats_summary"]["image_stats"]["shape"]["max"] = [40, 48, 1]  # as the first CAMUS release stores them
    assert refusal(planes, {"modality": "US"}) is None
    planes["stats_summary"]["image_stats"]["shape"]["max"] = [40, 48, 12]
    assert refusal(planes, SOURCE) == (
        "these algorithms segment 2-D echocardiograms, but the images have 3 axes (up to 40 x 48 x 12)"
    )
    statistics["stats_summary"]["label_stats"]["labels"] = [0, 1, 4]
    assert str(refusal(statistics, SOURCE)).endswith("3 left_atrium; these hold 4 too")


def test_cases_that_data_analyzer_passed_over_are_named(statistics_path: Path, statistics: dict[str, Any]) -> None:
    by_case = statistics_path.with_name("datastats_by_case.yaml")
    known = yaml.safe_load(by_case.read_text())["stats_by_cases"]
    items = [{"image": case["image_filepath"]} for case in known]
    check_cases(statistics, items, str(by_case))
    with pytest.raises(ValueError, match="17 training items but DataAnalyzer could read 16; it passed over /lost.png"):
        check_cases(statistics, [*items, {"image": "/lost.png"}], str(by_case))


def test_what_is_unusual_is_noted(statistics: dict[str, Any]) -> None:
    image = statistics["stats_summary"]["image_stats"]
    labels = statistics["stats_summary"]["label_stats"]
    assert told(statistics)["share_of_label"][0] == round(labels["label"][0]["foreground_percentage"]["mean"], 4)
    for name in ("min", "max"):
        image["spacing"][name] = [1.0, 1.0, 1.0]
    image["intensity"]["min"] = -3.0
    labels["labels"], labels["label"] = [0, 1, 2], labels["label"][:3]
    assert [sentence.split(":")[0] for sentence in notes(statistics)] == [
        "every pixel is 1 mm",
        "intensities are not within 0..255",
        "no training label map holds left_atrium",
    ]


def test_other_mistakes_stop_the_generation(
    folded_input: Callable[..., Path], make_input: Callable[..., Path], statistics_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="unknown key --max_epoch; did you mean max_epochs"):
        generate(tmp_path / "work", folded_input(echocris={"max_epoch": 3}), statistics_path)
    datalist = json.loads((tmp_path / "folds.json").read_text())
    for number, item in enumerate(datalist["training"]):
        item["fold"] = number % 2  # as AutoRunner draws folds: by image
    (tmp_path / "by_image.json").write_text(json.dumps(datalist))
    source = make_input(datalist=str(tmp_path / "by_image.json"))
    with pytest.raises(ValueError, match="patient patient0001 is in two splits"):
        generate(tmp_path / "work", source, statistics_path)
    with pytest.raises(ValueError, match="have no gpu_customization"):
        EchoAlgo().fill_template_config("", "", gpu_customization=True)


def algorithm_in(folder: Path) -> EchoAlgo:
    algorithm = EchoAlgo()
    algorithm.output_path = str(folder)
    return algorithm


def test_training_is_a_process_of_this_python(tmp_path: Path) -> None:
    algorithm = algorithm_in(tmp_path / "my work")
    algorithm.device_setting.update(CUDA_VISIBLE_DEVICES="", CMD_PREFIX="")
    command = algorithm.train_command({"num_epochs": 2, "prompt_level": ["P1", "P2"]})
    script = str(tmp_path / "my work/scripts/train.py")
    assert command == [sys.executable, script, "run", "--num_epochs=2", "--prompt_level=['P1', 'P2']"]
    assert read_flags(command[2:]) == {"num_epochs": 2, "prompt_level": ["P1", "P2"]}
    algorithm.device_setting.update(CUDA_VISIBLE_DEVICES="0,1", CMD_PREFIX="/opt/python -u")
    words = ["/opt/python", "-u", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, "run"]
    assert algorithm.train_command({}) == words
    algorithm.device_setting["NUM_NODES"] = 2
    with pytest.raises(ValueError, match="trains on one machine"):
        algorithm.train_command({})


def test_flags_are_key_and_value() -> None:
    read = read_flags(["run", "--config_file='a,b'", "--seed=00012", "--x=null"])
    assert read == {"config_file": "a,b", "seed": 12.0, "x": None}
    with pytest.raises(ValueError, match="expected --key=value, got '--num_epochs'"):
        read_flags(["run", "--num_epochs", "3"])


@pytest.mark.parametrize(("code", "error"), [(2, ValueError), (1, RuntimeError)])
def test_failed_training_is_an_error(
    code: int, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(algo, "run_logged", lambda *_: subprocess.CompletedProcess([], code))
    with pytest.raises(error, match=f"training of echocris_0 failed with code {code}, see above and .*train.txt"):
        algorithm_in(tmp_path / "echocris_0").train({})


def test_what_training_prints_goes_to_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = "import os, sys; print(os.environ['WORD']); print('shown', file=sys.stderr); sys.exit(3)"
    done = algo.run_logged([sys.executable, "-c", code], {"WORD": "kept"}, tmp_path / "log.txt")
    assert done.returncode == 3
    assert (tmp_path / "log.txt").read_text() == "kept\n"
    assert capfd.readouterr().err.endswith("shown\n")


def test_template_itself_cannot_be_trained(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="is a template"):
        train_fold(TEMPLATES_DIR / "echocris")
    monkeypatch.setattr(sys, "argv", ["train.py", "run", "--num_epochs=3"])
    with pytest.raises(SystemExit) as stop:  # in a process: one line, and the code of a user's mistake
        main(str(TEMPLATES_DIR / "echocris/scripts/train.py"))
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("echocris: ") and said.count("\n") == 1


def test_score_is_the_best_validation(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("iteration,epoch,val_mean_dice\n2,1,0.25\n4,2,0.75\n6,3,\n8,4,0.75\n")
    assert best_validation(path) == (0.75, 2)
    path.write_text("iteration,epoch,val_mean_dice\n2,1,\n")
    with pytest.raises(ValueError, match="no validation has a mean Dice"):
        best_validation(path)


def test_inference_knows_what_the_training_was_told() -> None:
    facts = inference_facts("echo_cris", "train_published", {"image_size": 64, "val_prompt_level": ["P1", "P4", "P2"]})
    assert facts["image_size"] == 64 and facts["prompt_level"] == "P4" and facts["preset"] == "published"
    assert facts["keep_aspect"] is False and facts["padding_id"] == 49407  # of the recipe
