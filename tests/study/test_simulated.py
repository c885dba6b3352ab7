"""Test strategies that start from weights trained on simulated hearts alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pandas as pd
import pytest
import yaml

from synboost_monai.bundle_run import bundle_dir, config_files
from synboost_monai.files import sha256_of
from synboost_monai.model_card import card_path, new_card, read_card, write_model
from synboost_monai.study.dag import Study
from synboost_monai.study.report import write_report
from synboost_monai.study.run import run_study
from synboost_monai.study.settings import read_study
from synboost_monai.study.simulated import SIMULATION_KEY, take_weights
from tests.study.conftest import write_simulated_weights

STRATEGIES = {"segmenters.strategies": "real,simulated_then_real"}


@pytest.fixture
def bundle_weights(tiny_bundles: Path) -> Path:
    """Return weights of simulated hearts that lie in the bundle of cris."""
    return write_simulated_weights(tiny_bundles / "echo_cris" / "models" / "model.pt")


def _options(study: Study, stage: str) -> dict[str, str]:
    words = study.stages[stage].command
    return dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)


def test_the_bundles_weights_are_where_it_starts(bundle_weights: Path, study_path: Path) -> None:
    study = read_study(study_path, settings=STRATEGIES)
    assert list(study.stages) == [
        *("phantom", "prepare", "weights_cris"),
        *("train_cris_real_P1_seed0", "evaluate_cris_real_P1_seed0"),
        "evaluate_cris_simulated_P1",  # zero-shot, as the other strategy starts from it; nothing is synthesised
        *("train_cris_simulated_then_real_P1_seed0", "evaluate_cris_simulated_then_real_P1_seed0"),
        "report",
    ]
    part = study.settings["segmenters"]
    assert part["simulated_weights"] == {"cris": str(bundle_weights.resolve())}
    assert part["simulated_sha256"] == {"cris": sha256_of(bundle_weights)}

    real, finetuned = (_options(study, f"train_cris_{s}_P1_seed0") for s in ("real", "simulated_then_real"))
    start = {"init_checkpoint": "simulated/cris/model.pt"}
    assert {**finetuned, "output_dir": ""} == {**real, **start, "output_dir": ""}  # the same epochs of the same images
    assert study.stages["train_cris_simulated_then_real_P1_seed0"].needs == ("prepare", "weights_cris")

    zero_shot = _options(study, "evaluate_cris_simulated_P1")
    assert zero_shot["checkpoint_path"] == "simulated/cris/model.pt"
    assert {"preset", "image_size"}.isdisjoint(zero_shot)  # model.json says them
    assert study.stages["evaluate_cris_simulated_P1"].needs == ("prepare", "weights_cris")


def test_a_teacher_labels_the_other_patients_for_a_student_that_starts_as_it_did(
    bundle_weights: Path, study_path: Path
) -> None:
    axes = {"segmenters.strategies": "simulated_then_pseudo_labelled", "segmenters.patients": [3, "all"]}
    study = read_study(study_path, settings=axes)
    part, folder = "P1_patients3_seed0", "segmenters/cris/simulated_then_real/P1/patients3/seed0"
    assert [name for name in study.stages if name.endswith(part)] == [
        f"train_cris_simulated_then_real_{part}",
        f"pseudo_label_cris_simulated_then_real_{part}",
        f"evaluate_cris_simulated_then_real_{part}",
        f"train_cris_simulated_then_pseudo_labelled_{part}",
        f"evaluate_cris_simulated_then_pseudo_labelled_{part}",
    ]
    assert "all" not in {s.patients for s in study.segmenters}  # where all are labelled there is nothing to label

    label = study.stages[f"pseudo_label_cris_simulated_then_real_{part}"]
    options = _options(study, label.name)
    assert options["labelled_dir"] == "parts/patients3_seed0/real" and options["dataset_dir"] == "real"
    assert options["checkpoint_path"] == f"{folder}/model.pt"
    assert label.product == f"{folder}/pseudo_labels/datalist.json"
    student = study.stages[f"train_cris_simulated_then_pseudo_labelled_{part}"]
    assert student.needs == ("subset_patients3_seed0", label.name, "weights_cris")
    options, teacher = _options(study, student.name), _options(study, f"train_cris_simulated_then_real_{part}")
    assert options["pseudo_labelled_dir"] == f"{folder}/pseudo_labels" and options["balance_synthetic"] == "true"
    assert options["init_checkpoint"] == teacher["init_checkpoint"] == "simulated/cris/model.pt"
    assert options["dataset_dir"] == teacher["dataset_dir"] and "domain_word" not in options

    with pytest.raises(ValueError, match="segmenters.patients must have a number"):
        read_study(study_path, settings={**axes, "segmenters.patients": "all"})


def test_a_diffusion_model_learns_from_what_a_teacher_labelled_and_draws_for_a_student(
    bundle_weights: Path, study_path: Path
) -> None:
    """One diffusion model serves both kinds of images, those of label maps and those of simulated hearts."""
    strategies = "simulated_then_synthetic_unlabelled,simulated_then_translated"
    axes = {"segmenters.strategies": strategies, "segmenters.patients": [3], "data.simulate.num_images": 8}
    study = read_study(study_path, settings=axes)
    teacher, folder = (
        "cris_simulated_then_real_P1_patients3_seed0",
        "segmenters/cris/simulated_then_real/P1/patients3/seed0",
    )
    assert study.stages["simulate"].command == ("simulate", "hearts", "--seed=0", "--num_images=8")

    learn = study.stages[f"train_diffusion_{teacher}"]
    options = _options(study, learn.name)
    assert learn.needs == ("subset_patients3_seed0", f"pseudo_label_{teacher}")
    assert options["dataset_dir"] == "parts/patients3_seed0/real"
    assert (
        options["pseudo_labelled_dir"] == f"{folder}/pseudo_labels" and learn.product == f"{folder}/diffusion/model.pt"
    )

    sources = {
        "synthetic_unlabelled": ("subset_patients3_seed0", options["dataset_dir"]),
        "translated": ("simulate", "hearts"),
    }
    for kind, (stage, source) in sources.items():
        draw = study.stages[f"draw_{kind}_{teacher}"]
        drawn = _options(study, draw.name)
        assert draw.needs == (stage, learn.name) and draw.product == f"{folder}/{kind}/datalist.json"
        assert drawn["dataset_dir"] == source and drawn["checkpoint_path"] == learn.product
        assert ("start_strength" in drawn) == (kind == "translated")
        student = study.stages[f"train_cris_simulated_then_{kind}_P1_patients3_seed0"]
        assert student.needs == ("subset_patients3_seed0", f"pseudo_label_{teacher}", draw.name, "weights_cris")
        options = _options(study, student.name)
        assert (
            options["synthetic_dir"] == f"{folder}/{kind}"
            and options["pseudo_labelled_dir"] == f"{folder}/pseudo_labels"
        )
        assert options["balance_synthetic"] == "true" and "domain_word" not in options

    assert all(
        stage.name.startswith(stage.kind) for stage in study.stages.values()
    )  # by which Snakemake finds its rule

    alone = read_study(study_path, settings={**axes, "segmenters.strategies": "synthetic_unlabelled"})
    options = _options(alone, "train_cris_synthetic_unlabelled_P1_patients3_seed0")
    assert options["synthetic_dir"] == "segmenters/cris/real/P1/patients3/seed0/synthetic_unlabelled"
    assert "simulate" not in alone.stages and "init_checkpoint" not in options


def test_weights_adapt_once_to_all_images_whatever_the_labelled_patients(
    bundle_weights: Path, study_path: Path
) -> None:
    axes = {"segmenters.strategies": "adapted_then_real", "segmenters.patients": [3, "all"], "segmenters.seeds": [0, 1]}
    study = read_study(study_path, settings=axes)
    of_weights = [n for n in study.stages if n.startswith(("weights", "adapt", "evaluate_cris_adapted_P1"))]
    assert of_weights == ["weights_cris", "adapt_cris", "evaluate_cris_adapted_P1"]
    assert study.stages["adapt_cris"].needs == ("prepare", "weights_cris")
    assert study.stages["adapt_cris"].command[:3] == ("adapt", "real", "adapted/cris")
    assert _options(study, "adapt_cris")["checkpoint_path"] == "simulated/cris/model.pt"
    assert _options(study, "evaluate_cris_adapted_P1")["checkpoint_path"] == "adapted/cris/model.pt"
    train = study.stages["train_cris_adapted_then_real_P1_patients3_seed1"]
    assert train.needs == ("subset_patients3_seed1", "adapt_cris")
    assert _options(study, train.name)["init_checkpoint"] == "adapted/cris/model.pt"


def test_other_weights_make_another_command(study_path: Path, tiny_bundles: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine" / "model.pt"
    settings = {**STRATEGIES, "segmenters.simulated_weights.cris": str(write_simulated_weights(path))}
    first, again = read_study(study_path, settings=settings), read_study(study_path, settings=settings)
    assert first.stages == again.stages
    write_simulated_weights(path, 1.0)
    other = read_study(study_path, settings=settings)
    changed = [name for name, stage in other.stages.items() if stage != first.stages[name]]
    assert changed == ["weights_cris"]  # on which the others wait

    # the run's own study.yaml holds the hash of before
    own = tmp_path / "study.yaml"
    own.write_text(yaml.safe_dump({"name": "tiny", **first.settings}))
    with pytest.raises(ValueError, match=r"has SHA-256 \w{12}\.\.\., but segmenters\.simulated_sha256\.cris is \w{12}"):
        read_study(own)
    write_simulated_weights(path)
    assert read_study(own) == first


def test_without_weights_nothing_begins(study_path: Path, tiny_bundles: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        run_study(study_path, output=tmp_path / "run", settings=STRATEGIES)
    message = str(caught.value)
    expected = f"trained on simulated hearts, but there is no {tiny_bundles.resolve()}/echo_cris/models/model.pt; give "
    assert expected in message and "the strategy simulated_then_real" in message and "\n" not in message
    assert "--segmenters.simulated_weights.cris PATH" in message and "synboost run echo_cris train_simulated" in message
    assert not (tmp_path / "run").exists()
    assert read_study(study_path)  # no other study needs them


def _without_card(path: Path) -> None:
    card_path(path).unlink()


def _of_real_images(path: Path) -> None:
    card = read_card(path)
    write_model({}, path, new_card({"architecture": "cris", **card.facts}, {"dataset_dir": "camus"}))


@pytest.mark.parametrize("spoil", [_without_card, _of_real_images])
def test_weights_must_say_that_they_know_simulated_hearts(
    bundle_weights: Path, study_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(bundle_weights)
    with pytest.raises(ValueError, match="is not known to be trained on simulated hearts alone: no model.json beside"):
        read_study(study_path, settings=STRATEGIES)


@pytest.mark.parametrize("bundle", ["echo_cris", "echo_clipseg"])
def test_a_training_on_simulated_hearts_is_told_by_its_recipe(bundle: str) -> None:
    (file,) = [f for f in config_files(bundle_dir(bundle), "train_simulated") if f.stem == "train_simulated"]
    assert f"recipe::{SIMULATION_KEY}" in yaml.safe_load(file.read_text())


@pytest.mark.parametrize(
    ("facts", "settings", "message"),
    [
        ({}, {}, "these weights were made with preset tiny, but --preset says small"),
        ({"architecture": "clipseg"}, {}, "these are weights of clipseg, not of cris"),
        (
            {"preset": "small", "image_size": 64},
            {"segmenters.recipe": "train", "segmenters.both": {"preset": "small"}},
            "would train a network of image_size 64, the other strategies one of 416; say --segmenters.both.image_size 64",
        ),
    ],
)
def test_it_is_compared_with_the_same_network(tmp_path: Path, facts: dict, settings: dict, message: str) -> None:
    weights = write_simulated_weights(tmp_path / "weights" / "model.pt", **facts)
    settings = {**STRATEGIES, "segmenters.simulated_weights.cris": str(weights), **settings}
    study = tmp_path / "mine.yaml"
    study.write_text("segmenters: {models: [cris], recipe: train_small}\n")
    with pytest.raises(ValueError) as caught:
        read_study(study, dataset=str(tmp_path), settings=settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)

    weights = write_simulated_weights(weights, preset="small", image_size=64)
    settings = {**settings, "segmenters.recipe": "train_small", "segmenters.both": {}}
    assert read_study(study, dataset=str(tmp_path), settings=settings)  # it may learn another size than it comes from


def test_wrong_settings_of_weights_are_named(study_path: Path, tiny_bundles: Path) -> None:
    for key, value, message in (
        ("simulated_weights.criss", "x.pt", "unknown setting segmenters.simulated_weights.criss; did you mean cris?"),
        ("simulated_weights.cris", 3, "segmenters.simulated_weights.cris must be text, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            read_study(study_path, settings={f"segmenters.{key}": value})


def test_weights_are_copied_as_they_were(tmp_path: Path) -> None:
    source = write_simulated_weights(tmp_path / "mine" / "start.pt")
    source.with_name("calibration.json").write_text("{}")
    digest = sha256_of(source)
    target = take_weights(source, tmp_path / "run", digest)
    assert sorted(p.name for p in target.parent.iterdir()) == ["calibration.json", "model.json", "model.pt"]
    assert sha256_of(target) == digest and read_card(target) == read_card(source)

    shutil.rmtree(tmp_path / "run")
    write_simulated_weights(source, 1.0)
    with pytest.raises(ValueError, match="expected the weights that the study began with, SHA-256 .* call `synboost"):
        take_weights(source, tmp_path / "run", digest)
    assert not list((tmp_path / "run").iterdir())
    source.unlink()
    with pytest.raises(FileNotFoundError, match=r"start\.pt: the weights that the study starts from are gone"):
        take_weights(source, tmp_path / "run", digest)


def test_dry_run_lists_the_stage_that_takes_the_weights(
    bundle_weights: Path, study_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_study(study_path, output=tmp_path / "run", dry_run=True, settings=STRATEGIES)
    lines = capfd.readouterr().out.splitlines()
    assert lines[lines.index("") + 1 :] == list(read_study(study_path, settings=STRATEGIES).stages)
    # a folder that the run fills may not hold what it starts from
    inside = shutil.copytree(bundle_weights.parent, tmp_path / "mine" / "simulated" / "cris") / "model.pt"
    (tmp_path / "mine" / "study.yaml").write_text("name: tiny\n")
    settings = {**STRATEGIES, "segmenters.simulated_weights.cris": str(inside)}
    with pytest.raises(ValueError, match="would fill .*mine, in which it lies"):
        run_study(study_path, output=tmp_path / "mine", settings=settings)


def test_a_run_of_before_goes_on_by_its_study_file(
    study_path: Path, tiny_bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dict(read_study(study_path).settings)
    settings["segmenters"] = {k: v for k, v in settings["segmenters"].items() if not k.startswith("simulated_")}
    own = tmp_path / "run" / "study.yaml"
    own.parent.mkdir()
    own.write_text(text := yaml.safe_dump({"name": "tiny", **settings}))
    monkeypatch.setattr("synboost_monai.study.run._snakemake", lambda *_: CompletedProcess([], 0))  # no stage is run
    run_study(own, output=own.parent)
    assert own.read_text() == text


def test_the_report_shows_it(simulated_run_dir: Path) -> None:
    page = write_report(simulated_run_dir).read_text(encoding="utf-8")
    study = read_card(simulated_run_dir.parent / "weights" / "model.pt")
    assert study is not None
    assert f"taken as they came (CRIS SHA-256 {study.weights_sha256[:12]})" in page
    assert "trained on “real”, “simulated” and “simulated, then real”" in page

    def table(name: str) -> pd.DataFrame:
        return pd.read_csv(simulated_run_dir / "tables" / f"{name}.csv")

    differences = table("differences")
    expected = {("real", "simulated"), ("simulated, then real", "real"), ("simulated, then real", "simulated")}
    assert set(zip(differences["first"], differences["second"])) == expected
    summary = table("summary").set_index("strategy")
    row = differences[(differences.encoders == "trained") & (differences["second"] == "real")].iloc[0]
    assert summary.loc["simulated, then real"].difference == row.difference
    assert list(summary.index) == ["real", "simulated", "simulated, then real"]
    assert set(table("encoders").strategy) == {"real", "simulated, then real"}  # in the third nothing is trained
    updates = table("convergence")
    assert set(updates.strategy) == {"simulated, then real"} and (updates.ratio > 1).all()
    assert updates.pretraining_updates.isna().all() and "came from outside the study" in page
