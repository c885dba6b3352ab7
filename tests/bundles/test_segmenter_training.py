"""Test how the segmenters train: recipes, learning parts, frozen features, adapters, joint data, several processes, kill -9."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow

from synboost_monai.bundle_run import config_files
from synboost_monai.errors import user_error
from synboost_monai.model_card import read_card
from synboost_monai.networks import create_segmenter, load_weights
from tests.bundles.conftest import TINY, both, read_yaml, workflow
from tests.forked import Forked, module, ranks

SHORT = {"max_epochs": 1, "batch_size": 8, "learning_rate": 1e-3}


def training(
    bundle: str, data: Path, output_dir: Path, configs: Sequence[str] = ("train",), **overrides: Any
) -> ConfigWorkflow:
    """Make a short training with tiny networks."""
    places = {"dataset_dir": data, "output_dir": output_dir}
    return workflow(bundle, configs, "train", **{**SHORT, **places, **overrides})


# ------------------------------------------------------------------------------------------------------------ recipes


@both
@pytest.mark.parametrize("name", ["train_small", "train_published"])
def test_recipes_only_change_keys_of_train(bundle: str, name: str) -> None:
    assert set(read_yaml(bundle, name)) <= set(read_yaml(bundle, "train"))
    assert [path.name for path in config_files(bundle, name)] == ["train.yaml", f"{name}.yaml"]


@both
def test_published_recipe_is_that_of_the_published_code(bundle: str, datalist_dir: Path, tmp_path: Path) -> None:
    published = read_yaml(bundle, "train_published")
    expected: dict[str, Any] = {
        "padding_id": 49407,
        "keep_aspect": False,
        "augment": False,
        "lr_schedule": "plateau",
        "weight_decay": 1e-3,
        "gradient_clip": 0.5,
        "lambda_ce": 0.0,
        "ema_decay": 0.0,
        "learning_rate": 2e-5 if bundle == "echo_cris" else 2e-3,
    }
    assert {key: published[key] for key in expected} == expected
    # CLIPSeg's encoders never learned; CRIS's mask never fired
    assert published.get("freeze_encoders", False) == (bundle == "echo_clipseg")
    assert published.get("mask_padding", True) == (bundle == "echo_clipseg")
    run = training(bundle, datalist_dir, tmp_path, ["train", "train_published"])
    item = run.parser.get_parsed_content("train::dataset")[0]
    assert int(item["input_ids"][0, -1]) == 49407
    run.run()
    assert (tmp_path / "model.pt").is_file()


def test_small_recipe_trains(bundle: str, datalist_dir: Path, tmp_path: Path) -> None:
    training(bundle, datalist_dir, tmp_path, ["train", "train_small"], image_encoder_weights=None).run()
    assert (tmp_path / "model.pt").is_file()


@both
def test_simulated_recipe_needs_no_data(bundle: str, tmp_path: Path) -> None:
    files = ["train", "train_small", "train_simulated"]
    assert [path.stem for path in config_files(bundle, "train_simulated")] == files
    sizes = {"simulated_images": 4, "simulated_validation_images": 2, "batch_size": 2, "num_workers": 0}
    sizes |= {"stranger_share": 0.5}
    run = training(bundle, tmp_path / "there is none", tmp_path / "out", files, image_encoder_weights=None, **sizes)
    head = run.parser.get_parsed_content("network").view_head
    before = [p.clone() for p in head.parameters()]
    items = run.parser.get_parsed_content("train::dataset")
    items.set_epoch(1)
    first = items[0]["image"].clone()
    items.set_epoch(2)
    assert len(items) == 4 and not torch.equal(items[0]["image"], first)
    run.run()
    assert not any(torch.equal(a, b) for a, b in zip(before, head.parameters(), strict=True))
    card = read_card(tmp_path / "out" / "model.pt")
    assert card is not None and card.facts["has_view_head"] is True
    assert (card.training["stranger_share"], card.training["lambda_view"]) == (0.5, 0.2)
    assert (card.training["simulated_images"], card.training["simulation_seed"]) == (4, 20261128)


def test_a_head_that_nothing_teaches_is_refused(bundle: str, datalist_dir: Path, tmp_path: Path) -> None:
    run = training(bundle, datalist_dir, tmp_path, has_view_head=True)
    with pytest.raises(RuntimeError) as caught:
        run.run()
    assert "the training data says no view; set has_view_head to false" in str(user_error(caught.value))


def test_cross_entropy_takes_part(bundle: str, datalist_dir: Path, tmp_path: Path) -> None:
    """In the published code the cross-entropy was always 0."""
    run = training(bundle, datalist_dir, tmp_path)
    loss = run.parser.get_parsed_content("loss")
    logits, masks = torch.full((2, 3, 8, 8), -4.0), torch.ones(2, 3, 8, 8)
    with_entropy = float(loss(logits, masks))
    loss.lambda_ce = 0.0
    entropy = with_entropy - float(loss(logits, masks))
    assert entropy == pytest.approx(read_yaml(bundle, "train")["lambda_ce"] * 4.01815, rel=1e-4)  # log(1 + e^4)


@both
def test_every_encoder_parameter_moves(bundle: str, datalist_dir: Path, tmp_path: Path) -> None:
    run = training(bundle, datalist_dir, tmp_path, weight_decay=0.0, layer_decay=1.0, warm_up_steps=0)
    network = run.parser.get_parsed_content("network")
    before = {name: p.clone() for name, p in network.named_parameters() if p.requires_grad}
    run.run()
    still = [name for name, p in network.named_parameters() if name in before and torch.equal(p, before[name])]
    # rows of tokens that no prompt has do not move, but the table as a whole does
    assert still == []


# --------------------------------------------------------------------------------------------------- frozen and adapted


def test_frozen_features_are_computed_once(bundle: str, datalist_dir: Path, tmp_path: Path) -> None:
    options = {"freeze_encoders": True, "feature_cache_dir": str(tmp_path / "features"), "num_feature_copies": 2}
    first = training(bundle, datalist_dir, tmp_path / "first", max_epochs=2, **options)
    encoder = first.parser.get_parsed_content("network").image_encoder
    before = [p.clone() for p in encoder.state_dict().values()]
    first.run()
    assert all(torch.equal(a, b) for a, b in zip(before, encoder.state_dict().values()))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").glob("*.safetensors")}
    assert len(times) == 2 * len(first.parser.get_parsed_content("train::dataset"))
    weights = torch.load(tmp_path / "first/model.pt", weights_only=True)
    # the same run again reads them, and ends in the same weights
    init = {"init_checkpoint": None}
    second = training(bundle, datalist_dir, tmp_path / "second", max_epochs=2, **options, **init)
    second.run()
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "features").glob("*.safetensors")}
    again = torch.load(tmp_path / "second/model.pt", weights_only=True)
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_features_of_an_encoder_that_learns_are_refused(bundle: str, datalist_dir: Path, tmp_path: Path) -> None:
    with pytest.raises((ValueError, RuntimeError)) as caught:
        training(bundle, datalist_dir, tmp_path, feature_cache_dir=str(tmp_path / "features")).run()
    assert "freeze_encoders" in str(user_error(caught.value))


def test_adapters_are_merged_in_what_is_written(bundle: str, datalist_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    run = training(bundle, datalist_dir, tmp_path, lora_rank=2, ema_decay=0.0, warm_up_steps=0)
    network = run.parser.get_parsed_content("network")
    adapters = {name: p.clone() for name, p in network.named_parameters() if "lora_" in name and p.requires_grad}
    assert adapters
    run.run()
    assert any(not torch.equal(p, adapters[n]) for n, p in network.named_parameters() if n in adapters)
    architecture = bundle.removeprefix("echo_")
    plain = load_weights(create_segmenter(architecture, "tiny"), tmp_path / "model.pt").eval()  # strict
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = network.eval()(image)
        torch.testing.assert_close(plain(image), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


# -------------------------------------------------------------------------------------------------------------- prompts


def test_several_prompts_of_each_structure(bundle: str, datalist_dir: Path, tmp_path: Path) -> None:
    options = {"prompt_level": "random", "prompts_per_structure": 3, "attribute_dropout": 0.3}
    run = training(bundle, datalist_dir, tmp_path, **options)
    item = run.parser.get_parsed_content("train::dataset")[0]
    assert item["input_ids"].shape == (9, 77) and item["label"].shape == (9, 32, 32)
    assert torch.equal(item["label"][:3], item["label"][3:6])
    run.run()


def test_real_and_synthetic_together(bundle: str, datalist_dir: Path, tmp_path: Path) -> None:
    """Both kinds are trained on together, with the domain word to tell them apart."""
    content = json.loads((datalist_dir / "datalist.json").read_text())
    items = [
        {**item, **{key: str((datalist_dir / item[key]).resolve()) for key in ("image", "label")}, "is_synthetic": True}
        for item in content["training"]
    ]
    images = tmp_path / "images"
    images.mkdir()
    for number, item in enumerate(items):  # another file: a synthetic image is none of the real ones
        link = images / f"synthetic_{number}{''.join(Path(item['image']).suffixes)}"
        link.symlink_to(item["image"])
        item["image"] = str(link)
    (tmp_path / "datalist.json").write_text(json.dumps({"training": items}))
    options = {"synthetic_dir": str(tmp_path), "domain_word": True, "prompt_level": "P1"}
    run = training(bundle, datalist_dir, tmp_path / "run", **options)
    dataset = run.parser.get_parsed_content("train::dataset")
    assert len(dataset) == 2 * len(items)
    assert not torch.equal(dataset[0]["input_ids"], dataset[len(items)]["input_ids"])
    run.run()


# ------------------------------------------------------------------------------------------------- processes that die


def command(bundle: str, config: str, data: Path, output_dir: Path, **overrides: Any) -> tuple[Any, ...]:
    """Return what a process is given to run `python -m synboost_monai run bundle config`."""
    settings = {**TINY, **SHORT, "dataset_dir": data, "output_dir": output_dir, **overrides}
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    return module("synboost_monai", "run", bundle, config, *words)


def scalars(output_dir: Path, tag: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output_dir / "tensorboard")).Reload()
    return [scalar.value for scalar in events.Scalars(tag)]


@pytest.mark.slow
def test_two_processes_learn_as_one_with_the_double_batch(datalist_dir: Path, tmp_path: Path) -> None:
    """Losses and weights are the same. CLIPSeg is as published: it has no batch norm, whose statistics gloo cannot share."""
    # what is drawn by chance differs from rank to rank: nothing is, and images come in their order
    fixed = {"augment": False, "prompt_level": "P0", "max_epochs": 2, "lr_schedule": "constant", "ema_decay": 0.0}
    two = command(
        "echo_clipseg", "multi_gpu_train", datalist_dir, tmp_path / "two",
        **{**fixed, "batch_size": 2, "backend": "gloo", "train::sampler::shuffle": False},
    )  # fmt: skip
    one = command(
        "echo_clipseg", "train", datalist_dir, tmp_path / "one",
        **{**fixed, "batch_size": 4, "train::dataloader::shuffle": False},
    )  # fmt: skip
    for process in (*ranks(2, *two), Forked(*one)):
        process.done()
    for tag in ("train_loss", "val_loss"):
        losses = [scalars(tmp_path / name, tag) for name in ("one", "two")]
        assert len(losses[0]) >= 2 and losses[0] == pytest.approx(losses[1], rel=1e-4), tag
    weights = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("one", "two")]
    for name, value in weights[0].items():
        # softmax does not feel a bias of the keys: its gradient is rounding, of which Adam makes a whole step
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(value, weights[1][name], rtol=0, atol=2e-5, msg=name)


@pytest.mark.slow
def test_training_killed_for_good_goes_on_to_the_same_weights(datalist_dir: Path, tmp_path: Path) -> None:
    """Training gets kill -9 in the middle of an epoch, and then the same command is given; both segmenters share what resumes."""
    options = {"max_epochs": 3, "batch_size": 2, "prompt_level": "random"}
    process = Forked(*command("echo_cris", "train", datalist_dir, tmp_path / "killed", **options))
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed/resume.ckpt").is_file() and time.monotonic() < deadline:
        assert process.poll() is None, "the training was over before it was killed"
        time.sleep(0.02)
    process.kill()
    assert (tmp_path / "killed/resume.ckpt").is_file()
    for name in ("killed", "whole"):
        done = Forked(*command("echo_cris", "train", datalist_dir, tmp_path / name, **options)).done()
        assert ("training continues after epoch" in done.stderr + done.stdout) == (name == "killed")
    weights = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("killed", "whole")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
