"""Settings of a study, the commands of its stages, and its examples."""

import json
import shutil

import pytest

from synboost_monai.experiments.study import STUDIES_DIR, Segmenter, read_study

FULL = {"segmenters.strategies": ["real", "synthetic_then_real"], "segmenters.prompts": "P2,P7"}


def _option(command: list[str], key: str) -> str | None:
    return dict(word[2:].split("=", 1) for word in command if word.startswith("--")).get(key)


def test_stages_of_a_study(study_path, tiny_bundles):
    study = read_study(study_path, settings=FULL)
    names = [s.name for s in study.segmenters]
    # P7 has no synthetic form: it starts from P6
    assert names == [
        "cris_real_P2_seed0",
        "cris_real_P7_seed0",
        "cris_synthetic_then_real_P2_seed0",
        "cris_synthetic_then_real_P7_seed0",
        "cris_synthetic_P2_seed0",
        "cris_synthetic_P6_seed0",
    ]
    assert len(study.stage_names) == len(set(study.stage_names)) == 2 + 2 + 2 * 6 + 2 + 1
    assert read_study(study_path).stage_names == [
        "phantom",
        "prepare",
        "train_cris_real_P1_seed0",
        "evaluate_cris_real_P1_seed0",
        "report",
    ]


def test_strategies_differ_in_data_and_first_weights_and_are_tested_alike(study_path, tiny_bundles):
    study = read_study(study_path)
    real = study.train_command(Segmenter("cris", "real", "P2", 1))
    synthetic = study.train_command(Segmenter("cris", "synthetic", "P2", 1))
    both = study.train_command(Segmenter("cris", "synthetic_then_real", "P2", 1))
    assert [_option(c, "dataset_dir") for c in (real, synthetic, both)] == ["real", "synthetic", "real"]
    assert [_option(c, "init_checkpoint") for c in (real, synthetic)] == [None, None]
    assert _option(both, "init_checkpoint") == "segmenters/cris/synthetic/P2/seed1/model.pt"
    assert _option(both, "seed") == "1" and _option(both, "prompt_level") == "P2"
    for strategy in ("real", "synthetic", "synthetic_then_real"):
        command = study.evaluate_command(Segmenter("cris", strategy, "P2", 0))
        assert (_option(command, "dataset_dir"), _option(command, "section")) == ("real", "testing")
        assert _option(command, "checkpoint_path") == f"segmenters/cris/{strategy}/P2/seed0/model.pt"


def test_later_layers_of_overrides_win(study_path, tiny_bundles):
    study = read_study(
        study_path,
        settings={
            "segmenters.per_model.cris.both.image_size": 64,
            "segmenters.per_strategy.synthetic.train.max_epochs": "9",
            "segmenters.per_model.cris.train.learning_rate": 0.01,
            "device": "cpu",
        },
    )
    synthetic = study.train_command(Segmenter("cris", "synthetic", "P2", 0))
    assert [_option(synthetic, k) for k in ("image_size", "max_epochs", "learning_rate")] == ["64", "9", "0.01"]
    assert _option(synthetic, "device") == "cpu"
    real = study.train_command(Segmenter("cris", "real", "P2", 0))
    assert _option(real, "max_epochs") == "2"
    evaluate = study.evaluate_command(Segmenter("cris", "real", "P2", 0))
    assert (_option(evaluate, "image_size"), _option(evaluate, "learning_rate")) == ("64", None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
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
            "tiny.yaml: echo_cris/train.yaml: unknown key --max_epoch; did you mean max_epochs?",
        ),
        (
            {"segmenters.per_model.criss.train.max_epochs": 3},
            "unknown setting segmenters.per_model.criss; did you mean cris?",
        ),
        ({"segmenters.per_model.cris.tran.max_epochs": 3}, "unknown setting segmenters.per_model.cris.tran"),
        ({"diffusion.train.max_epochs": "x", "segmenters.strategies": "synthetic"}, "--max_epochs must be a number"),
        ({"data.prepare.strickt": True}, "unknown setting data.prepare.strickt; did you mean strict?"),
    ],
)
def test_a_wrong_setting_is_named(study_path, tiny_bundles, settings, message):
    with pytest.raises(ValueError) as caught:
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
    assert {s.strategy for s in study.segmenters} == {"real", "synthetic", "synthetic_then_real"}
    assert {s.model for s in study.segmenters} == {"cris", "clipseg"}


def test_examples_are_of_different_kinds(tmp_path):
    from synboost_monai.experiments.examples import write_examples

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
