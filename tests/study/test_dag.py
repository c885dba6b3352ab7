"""Test settings of a study, the commands of its stages, and its examples."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from synboost_monai.data import read_datalist, write_datalist
from synboost_monai.records import EchoRecord
from synboost_monai.simulation.phantom import write_frames
from synboost_monai.study.examples import write_examples
from synboost_monai.study.grid import DataPart, Segmenter
from synboost_monai.study.settings import STUDIES_DIR, read_study
from synboost_monai.study.stage import run_stage
from synboost_monai.study.unlabelled import gather_unlabelled
from tests.study.conftest import write_simulated_weights

FULL = {"segmenters.strategies": ["real", "synthetic_then_real"], "segmenters.prompts": "P2,P7"}


def _option(command: list[str], key: str) -> str | None:
    return dict(word[2:].split("=", 1) for word in command if word.startswith("--")).get(key)


def test_stages_of_a_study(study_path, tiny_bundles):
    study = read_study(study_path, settings=FULL)
    # P7 has no synthetic form: it starts from P6
    assert [s.name for s in study.segmenters] == [
        "cris_real_P2_seed0",
        "cris_real_P7_seed0",
        "cris_synthetic_P2_seed0",
        "cris_synthetic_then_real_P2_seed0",
        "cris_synthetic_P6_seed0",
        "cris_synthetic_then_real_P7_seed0",
    ]
    assert len(study.stages) == 2 + 2 + 2 * 6 + 2 + 1
    small = ["phantom", "prepare", "train_cris_real_P1_seed0", "evaluate_cris_real_P1_seed0", "report"]
    assert list(read_study(study_path).stages) == small


def test_strategies_differ_in_data_and_first_weights_and_are_tested_alike(study_path, tiny_bundles):
    strategies = ["real", "synthetic", "synthetic_then_real"]
    study = read_study(study_path, settings={"segmenters.strategies": strategies, "segmenters.prompts": "P2"})
    real = study.train_command(Segmenter("cris", "real", "P2", 1))
    synthetic = study.train_command(Segmenter("cris", "synthetic", "P2", 1))
    both = study.train_command(Segmenter("cris", "synthetic_then_real", "P2", 1))
    assert [_option(c, "dataset_dir") for c in (real, synthetic, both)] == ["real", "synthetic", "real"]
    assert [_option(c, "init_checkpoint") for c in (real, synthetic)] == [None, None]
    assert _option(both, "init_checkpoint") == "segmenters/cris/synthetic/P2/seed1/model.pt"
    assert _option(both, "seed") == "1" and _option(both, "prompt_level") == "P2"
    for strategy in strategies:
        command = study.stages[f"evaluate_cris_{strategy}_P2_seed0"].command
        assert (_option(command, "dataset_dir"), _option(command, "section")) == ("real", "testing")
        assert _option(command, "checkpoint_path") == f"segmenters/cris/{strategy}/P2/seed0/model.pt"


def test_later_layers_of_overrides_win(study_path, tiny_bundles):
    settings = {
        "segmenters.per_model.cris.both.image_size": 64,
        "segmenters.per_strategy.synthetic.train.max_epochs": "9",
        "segmenters.per_model.cris.train.learning_rate": 0.01,
        "device": "cpu",
    }
    study = read_study(study_path, settings=settings)
    synthetic = study.train_command(Segmenter("cris", "synthetic", "P2", 0))
    assert [_option(synthetic, k) for k in ("image_size", "max_epochs", "learning_rate")] == ["64", "9", "0.01"]
    assert _option(synthetic, "device") == "cpu"
    real = study.train_command(Segmenter("cris", "real", "P2", 0))
    assert _option(real, "max_epochs") == "2"
    evaluate = study.test_command(Segmenter("cris", "real", "P2", 0), "evaluate", "real", "out")
    assert (_option(evaluate, "image_size"), _option(evaluate, "learning_rate")) == ("64", None)


def test_a_start_of_the_settings_is_for_strategies_without_one(study_path, tiny_bundles, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {**FULL, "segmenters.per_model.cris.train.init_checkpoint": "clip.pt"}
    with pytest.raises(FileNotFoundError, match="init_checkpoint clip.pt, do not exist"):
        read_study(study_path, settings=settings)
    clip = tmp_path / "clip.pt"
    clip.touch()
    study = read_study(study_path, settings=settings)
    commands = [
        study.train_command(Segmenter("cris", s, "P2", 0)) for s in ("real", "synthetic", "synthetic_then_real")
    ]
    starts = [_option(command, "init_checkpoint") for command in commands]
    assert starts == [str(clip), str(clip), "segmenters/cris/synthetic/P2/seed0/model.pt"]


GRID = {
    "segmenters.strategies": ["real", "synthetic_then_real", "real_and_synthetic"],
    "segmenters.frozen": [False, True],
    "segmenters.patients": [3, 0.5, "all"],
    "segmenters.folds": [0, 1],
    "segmenters.seeds": [0, 1],
    "data.num_folds": 2,
}


def test_a_grid_is_every_combination_and_each_comes_after_what_it_needs(study_path, tiny_bundles):
    study = read_study(study_path, settings=GRID)
    axes = {(s.strategy, s.frozen, s.patients, s.fold, s.seed) for s in study.segmenters}
    assert len(study.segmenters) == len(axes) == 4 * 2 * 3 * 2 * 2  # synthetic, where others start, included
    done: set[str] = set()
    for stage in study.stages.values():
        assert set(stage.needs) <= done, stage.name
        done.add(stage.name)
    assert len({s.output_dir for s in study.segmenters}) == len(study.segmenters)
    assert len({stage.output_dir for stage in study.stages.values()}) == len(study.stages)
    assert [s for s in done if "." in s or "/" in s] == []


@pytest.mark.parametrize("text", ["3,all", "[3,all]", "3, all", "[3, 'all']"])
def test_a_list_of_the_command_line_may_hold_numbers_and_words(study_path, tiny_bundles, text):
    study = read_study(study_path, settings={"segmenters.patients": text})
    assert {s.patients for s in study.segmenters} == {3, "all"}


def test_other_images_without_label_maps_join_those_of_the_data_set(study_path, tiny_bundles, tmp_path):
    write_simulated_weights(tiny_bundles / "echo_cris" / "models" / "model.pt")
    (tmp_path / "clips").mkdir()
    axes = {"segmenters.strategies": "adapted,pseudo_labelled", "segmenters.patients": "3,all"}
    study = read_study(study_path, unlabelled=str(tmp_path / "clips"), settings=axes)
    gather = study.stages["gather"]
    assert gather.command[2:] == ("synboost_monai.study.unlabelled", "real", str(tmp_path / "clips"), "unlabelled")
    assert gather.needs == ("prepare",)
    assert study.stages["adapt_cris"].command[1] == "unlabelled" and "gather" in study.stages["adapt_cris"].needs
    for part, real in (
        (3, "parts/patients3_seed0/real"),
        ("all", "real"),
    ):  # where all are labelled, there are other images
        teacher = Segmenter("cris", "real", "P1", 0, patients=part)
        label = study.stages[f"pseudo_label_{teacher.name}"]
        assert "gather" in label.needs
        wanted = ["unlabelled", "training", real]
        assert [_option(label.command, key) for key in ("dataset_dir", "section", "labelled_dir")] == wanted
    without = read_study(study_path, settings=axes)
    assert "gather" not in without.stages and {s.patients for s in without.segmenters if s.teacher} == {3}
    with pytest.raises(FileNotFoundError, match="give --unlabelled PATH"):
        read_study(study_path, unlabelled=str(tmp_path / "none"))


def test_gathered_images_are_never_those_that_are_tested_on(tmp_path, capfd, monkeypatch, python_forks):
    image = tmp_path / "real" / "images"
    for number, patient in enumerate("abc", start=2):
        write_frames(image / f"{patient}.nii.gz", np.full((1, 8, 8), number, np.uint8), 0.3)
        write_frames(image / f"{patient}_gt.nii.gz", np.zeros((1, 8, 8), np.uint8), 0.3)
    records = {p: [EchoRecord(image / f"{p}.nii.gz", image / f"{p}_gt.nii.gz", f"patient{p}")] for p in "abc"}
    splits = dict(zip(("training", "validation", "testing"), records.values()))
    write_datalist(tmp_path / "real", splits, name="real", description="three patients")
    others = tmp_path / "others"
    others.mkdir()
    (others / "same.nii.gz").symlink_to(image / "c.nii.gz")  # the file of a testing image, by another name
    shutil.copy(image / "c.nii.gz", others / "copy.nii.gz")
    write_frames(
        others / "patientc_4CH_sequence.nii.gz", np.ones((9, 8, 8), np.uint8), 0.3
    )  # another one of its patient
    with pytest.raises(ValueError, match="all 10 images are of the study's data set, or of patients that it tests on"):
        gather_unlabelled(tmp_path / "real", others, tmp_path / "none")
    assert not (tmp_path / "none/datalist.json").exists()

    write_frames(others / "patientd_4CH_sequence.nii.gz", np.ones((9, 8, 8), np.uint8), 0.3)
    write_frames(others / "still.nii.gz", np.ones((1, 8, 8), np.uint8), 0.3)
    capfd.readouterr()
    monkeypatch.chdir(tmp_path)
    command = ["python", "-m", "synboost_monai.study.unlabelled", "real", "others", "out"]
    assert run_stage("gather", "gather", "out", (), 1, command) == 0
    items = read_datalist(tmp_path / "out", "training")
    assert Counter(item["patient"] for item in items) == {"patienta": 1, "patientb": 1, "patientd": 8, "image00004": 1}
    assert not any("label" in item for item in items)
    assert "2 images of the data set, and 9 of others; 10 left out" in capfd.readouterr().err


def test_fewer_patients_are_drawn_by_the_segmenters_seed_and_the_diffusion_model_sees_no_others(
    study_path, tiny_bundles
):
    study = read_study(study_path, settings=GRID)
    assert len(study.parts) == 2 * (1 + 2 * 2)  # folds x (all, or 2 sizes x 2 seeds)
    segmenter = Segmenter("cris", "real_and_synthetic", "P1", 1, frozen=True, patients=0.5, fold=1)
    folder = "parts/patients50pct_fold1_seed1"
    train = study.train_command(segmenter)
    assert [_option(train, f"{k}_dir") for k in ("dataset", "synthetic")] == [f"{folder}/real", f"{folder}/synthetic"]
    assert [_option(train, k) for k in ("domain_word", "balance_synthetic", "freeze_encoders")] == ["true"] * 3
    evaluate = study.stages[f"evaluate_{segmenter.name}"].command
    assert [_option(evaluate, k) for k in ("domain_word", "freeze_encoders", "dataset_dir")] == ["true", None, "real"]
    part = segmenter.part
    subset = ("subset", "real", f"{folder}/real", "--patients=0.5", "--fold=1", "--num_folds=2", "--seed=1")
    assert study.subset_command(part) == subset
    diffusion, synthesise = study.train_diffusion_command(part), study.synthesise_command(part)
    assert _option(diffusion, "dataset_dir") == _option(synthesise, "dataset_dir") == f"{folder}/real"
    assert _option(synthesise, "checkpoint_path") == f"{folder}/diffusion/model.pt"
    needs = study.stages[f"train_{segmenter.name}"].needs
    assert needs == ("subset_patients50pct_fold1_seed1", "synthesise_patients50pct_fold1_seed1")


def test_overrides_of_a_number_of_patients(study_path, tiny_bundles):
    settings = {
        **GRID,
        "segmenters.per_patients.3.train.max_epochs": 7,
        "segmenters.per_patients.3/real.train.max_epochs": 8,
        "diffusion.per_patients.3.train.max_epochs": 9,
    }
    study = read_study(study_path, settings=settings)

    def epochs(strategy: str, patients: int | str) -> str | None:
        return _option(study.train_command(Segmenter("cris", strategy, "P1", 0, patients=patients)), "max_epochs")

    assert [epochs("real", 3), epochs("synthetic", 3), epochs("real", "all")] == ["8", "7", "2"]
    (part,) = (p for p in study.parts if (p.patients, p.fold, p.seed) == (3, 0, 1))
    assert _option(study.train_diffusion_command(part), "max_epochs") == "9"
    assert _option(study.train_diffusion_command(DataPart()), "max_epochs") is None


def test_a_number_of_patients_may_have_fewer_seeds(study_path, tiny_bundles):
    settings = {**GRID, "segmenters.seeds": [0, 1, 2], "segmenters.per_patients.3.seeds": [0, 2, 9]}
    study = read_study(study_path, settings=settings)
    seeds = {patients: {s.seed for s in study.segmenters if s.patients == patients} for patients in (3, 0.5, "all")}
    assert seeds == {3: {0, 2}, 0.5: {0, 1, 2}, "all": {0, 1, 2}}


def test_wrong_words_are_tried_on_one_segmenter_of_a_model_and_strategy(study_path, tiny_bundles):
    settings = {**GRID, "segmenters.sensitivity": True, "segmenters.prompts": "P1,P2"}
    study = read_study(study_path, settings=settings)
    chosen = [(s.strategy, s.prompt, s.frozen, s.patients) for s in study.sensitivity_segmenters]
    assert chosen == [(s, "P2", False, "all") for s in ("real", "synthetic_then_real", "real_and_synthetic")]
    assert len([s for s in study.stages.values() if s.kind == "sensitivity"]) == 3


def test_several_processes_are_started_by_torchrun(study_path, tiny_bundles):
    for name in ("echo_cris", "echo_semantic_diffusion"):
        (tiny_bundles / name / "configs" / "multi_gpu_train.yaml").write_text("backend: nccl\n")
    settings = {"processes": 2, "segmenters.strategies": "synthetic", "segmenters.train.backend": "gloo"}
    study = read_study(study_path, settings=settings)
    words = study.stages["train_cris_synthetic_P1_seed0"].command
    assert words[:3] == ("torchrun", "--standalone", "--nproc_per_node=2")
    assert words[words.index("run") + 1 :][:2] == ("echo_cris", "multi_gpu_train")
    assert study.stages["synthesise"].command[0] == "torchrun" and study.stages["prepare"].command[0] == "prepare"
    assert study.stages["evaluate_cris_synthetic_P1_seed0"].command[0] == "run"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"segmenters.frozen": "maybe"}, "segmenters.frozen must be true or false, got 'maybe'"),
        ({"segmenters.patients": 1}, "segmenters.patients must be all, whole numbers of at least 2, or shares"),
        ({"segmenters.folds": 5}, "segmenters.folds must be null, or 0 to 4, got 5"),
        ({"data.num_folds": 1}, "data.num_folds must be a whole number of at least 2, got 1"),
        ({"processes": 0}, "processes must be a whole number of at least 1, got 0"),
        ({"threads": 0}, "threads must be a whole number of at least 1, got 0"),
        ({"segmenters.recipe": "train_tiny"}, "has no config 'train_tiny'"),
        (
            {"segmenters.per_patients.20/rael.train.max_epochs": 1},
            "takes a number of patients, a share, or all, or that and a strategy such as 20/real; got 20/rael",
        ),
        ({"segmenters.per_patients.all.trian.max_epochs": 1}, "unknown setting segmenters.per_patients.all.trian"),
        ({"segmenters.per_patients.all.seeds": [3]}, "per_patients.all.seeds, [3], has none of segmenters.seeds, [0]"),
        (
            {"segmenters.per_patients.all.seeds": "two"},
            "per_patients.all.seeds must be a list of whole numbers, got 'two'",
        ),
        (
            {"segmenters.per_patients.3/real.seeds": [0]},
            "per_patients.3/real takes no seeds: all strategies have those of 3",
        ),
        ({"segmenter.models": "cris"}, "unknown setting segmenter; did you mean segmenters?"),
        ({"segmenters.model": "cris"}, "unknown setting segmenters.model; did you mean models?"),
        ({"segmenters.models": "criss"}, "segmenters.models has no 'criss'; did you mean cris?"),
        ({"segmenters.strategies": "synthetics"}, "has no 'synthetics'; did you mean synthetic?"),
        ({"segmenters.prompts": "P8"}, "segmenters.prompts has no 'P8'"),
        ({"segmenters.seeds": "one"}, "segmenters.seeds must be whole numbers, got 'one'"),
        ({"segmenters.models": []}, "must be a list with at least one entry"),
        ({"seed": "x"}, "seed must be a whole number, got 'x'"),
        ({"segmenters.train": 3}, "segmenters.train must be a mapping, got 3"),
        (
            {"segmenters.train.max_epoch": 3},
            "tiny.yaml: echo_cris/train.yaml: unknown key --max_epoch; did you mean max_",
        ),
        ({"segmenters.per_model.criss.train.max_epochs": 3}, "segmenters.per_model.criss; did you mean cris?"),
        ({"segmenters.per_model.cris.tran.max_epochs": 3}, "unknown setting segmenters.per_model.cris.tran"),
        ({"diffusion.train.max_epochs": "x", "segmenters.strategies": "synthetic"}, "--max_epochs must be a number"),
        ({"data.prepare.strickt": True}, "unknown setting data.prepare.strickt; did you mean strict?"),
    ],
)
def test_a_wrong_setting_is_named(study_path, tiny_bundles, settings, message):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_study(study_path, settings=settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_must_be_there(study_path, tiny_bundles, tmp_path):
    with pytest.raises(FileNotFoundError, match="data set folder .*nowhere does not exist"):
        read_study(study_path, dataset=str(tmp_path / "nowhere"))
    study_path.write_text("description: no data\n")
    with pytest.raises(ValueError, match="this study brings no data; give --dataset PATH"):
        read_study(study_path)
    study = read_study(study_path, dataset=str(tmp_path))
    assert not study.has_phantom and study.prepare_command()[1] == str(tmp_path)
    study_path.write_text("- a list\n")
    with pytest.raises(ValueError, match="must be a mapping of settings, got list"):
        read_study(study_path)


@pytest.mark.parametrize("name", [p.stem for p in STUDIES_DIR.glob("*.yaml")])
def test_shipped_studies_agree_with_the_shipped_bundles(name, tmp_path):
    study = read_study(name, dataset=str(tmp_path))
    assert {s.strategy for s in study.segmenters} > {"real"}
    assert {s.model for s in study.segmenters} <= {"cris", "clipseg"}


def test_examples_are_of_different_kinds(tmp_path):
    items = [
        {"image": f"images/{v}{p}{n}.nii.gz", "label": "labels/x.nii.gz", "patient": f"p{n}", "view": v, "phase": p}
        for n in range(3)
        for v in ("apical_two_chamber", "apical_four_chamber")
        for p in ("end_diastole", "end_systole")
    ]
    (tmp_path / "synthetic").mkdir()
    (tmp_path / "synthetic" / "datalist.json").write_text(json.dumps({"training": items, "validation": []}))
    content = json.loads(write_examples(tmp_path / "synthetic", tmp_path / "a" / "examples").read_text())
    chosen = content["testing"]
    assert len({(i["view"], i["phase"]) for i in chosen}) == 4
    assert chosen[0]["image"].startswith("../../synthetic/images/")
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "synthetic" / "datalist.json").write_text(json.dumps({"training": []}))
    with pytest.raises(ValueError, match="no synthetic image with a label map"):
        write_examples(tmp_path / "synthetic", tmp_path / "a")


def test_a_bare_name_is_a_shipped_study_whatever_lies_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("description: somebody else's")
    Path("mine.yaml").write_text("description: mine\ndata: {phantom: {num_patients: 5}}\n")
    assert read_study("quickstart").settings["description"] != "somebody else's"
    assert read_study("mine.yaml").settings["description"] == "mine"
    assert read_study("./mine.yaml").settings["description"] == "mine"


@pytest.mark.parametrize(
    "content", ["name: ../../outside", "name: a/b", "name: -x", "bundles: {'cris; touch ran': echo_cris}"]
)
def test_names_in_a_study_are_plain(study_path: Path, tiny_bundles: Path, content: str) -> None:
    study_path.write_text(f"{study_path.read_text()}{content}\n")
    with pytest.raises(ValueError, match="a name is letters, digits, spaces, _, - and dots, got"):
        read_study(study_path)


def test_text_of_a_study_stays_text(study_path: Path, tiny_bundles: Path) -> None:
    study = read_study(study_path, settings={"segmenters.both.preset": "00012"})
    assert "--preset=00012" in study.stages["train_cris_real_P1_seed0"].command
    assert read_study(study_path, settings={"segmenters.train.learning_rate": "1e-3"})
