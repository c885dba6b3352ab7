"""Test model.json beside model.pt: reading returns what was written; other files, damaged and foreign cards are reported."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from synboost_monai import model_card
from synboost_monai.model_card import (
    PUBLISHED_FACTS,
    ModelCard,
    new_card,
    read_card,
    resolve_facts,
    write_model,
)

FACTS = {"architecture": "cris", **PUBLISHED_FACTS["cris"], "preset": "small", "image_size": 160}


@pytest.fixture
def weights_path(tmp_path: Path) -> Path:
    """Write weights with a card."""
    training = {"dataset_dir": "/home/somebody/patients", "seed": 42, "levels": ("P1", "P2"), "init_checkpoint": None}
    card = new_card(FACTS, training, prompt_level="random", licence="Apache-2.0")
    write_model({"a": torch.ones(2), "n": torch.tensor(3)}, tmp_path / "model.pt", card)
    return tmp_path / "model.pt"


def change(path: Path, **entries: Any) -> None:
    card = path.with_suffix(".json")
    card.write_text(json.dumps({**json.loads(card.read_text()), **entries}))


def test_what_is_written_is_read(weights_path: Path) -> None:
    card = read_card(weights_path)
    assert card is not None and card.facts == {k: v for k, v in FACTS.items() if k != "architecture"}
    assert (card.prompt_level, card.licence, card.dtype) == ("random", "Apache-2.0", "float32")
    assert card.training == {"dataset_dir": "patients", "seed": 42, "levels": ["P1", "P2"], "init_checkpoint": None}
    assert "/home" not in weights_path.with_suffix(".json").read_text()
    assert card.title().startswith("cris, preset small, 160 px, licence Apache-2.0, SHA-256 ")
    assert torch.load(weights_path, weights_only=True)["n"] == 3


def test_the_file_is_the_same_every_time(weights_path: Path, tmp_path: Path) -> None:
    card = read_card(weights_path)
    write_model(torch.load(weights_path, weights_only=True), tmp_path / "again/model.pt", card)
    for name in ("model.pt", "model.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_half_precision_is_said(weights_path: Path, tmp_path: Path) -> None:
    half = {
        name: value.half() if value.is_floating_point() else value for name, value in torch.load(weights_path).items()
    }
    write_model(half, tmp_path / "half.pt", read_card(weights_path))
    card = read_card(tmp_path / "half.pt")
    assert card is not None and card.dtype == "float16" and (tmp_path / "half.json").is_file()


def test_numbers_that_are_none_become_null(weights_path: Path) -> None:
    card = ModelCard("cris", {}, measured={"dice": math.nan, "epoch": 3})
    write_model({"a": torch.ones(1)}, weights_path, card)
    assert read_card(weights_path).measured == {"dice": None, "epoch": 3}  # type: ignore[union-attr]


def test_weights_without_a_card_are_as_published_or_as_said(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.pt")
    for path in (None, tmp_path / "model.pt", tmp_path, tmp_path / "none.pt"):
        assert resolve_facts("clipseg", path, {"preset": None})["image_size"] == 352
        assert resolve_facts("cris", path, {"preset": "tiny"})["preset"] == "tiny"
    (tmp_path / "model.json").write_text('{"format": "of somebody else", "image_size": 3}')
    assert read_card(tmp_path / "model.pt") is None


def test_replaced_weights_are_told_from_those_of_the_card(weights_path: Path) -> None:
    """This holds also if a process is killed between writing the two."""
    torch.save({"a": torch.zeros(2)}, weights_path)
    with pytest.raises(
        ValueError, match="model.json: speaks of weights with SHA-256 .* but model.pt has .*--preset"
    ) as caught:
        read_card(weights_path)
    assert "\n" not in str(caught.value)


def test_killed_between_weights_and_card(weights_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*arguments: Any) -> None:
        raise KeyboardInterrupt

    card = read_card(weights_path)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(model_card, "atomic_write_text", kill)
        write_model({"a": torch.zeros(2)}, weights_path, card)
    with pytest.raises(ValueError, match="a training was stopped between writing them"):
        read_card(weights_path)
    write_model({"a": torch.zeros(2)}, weights_path, card)  # as the training that goes on does
    assert read_card(weights_path) is not None


def test_a_reader_waits_for_who_is_writing(weights_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a reader is MONAI Label's server, while its training writes better weights."""
    old = weights_path.with_suffix(".json").read_bytes()
    card = write_model({"a": torch.zeros(2)}, weights_path, read_card(weights_path))
    new = weights_path.with_suffix(".json").read_bytes()
    weights_path.with_suffix(".json").write_bytes(old)
    monkeypatch.setattr(model_card.time, "sleep", lambda seconds: weights_path.with_suffix(".json").write_bytes(new))
    assert read_card(weights_path) == card


def test_a_card_of_other_weights_does_not_stay(weights_path: Path) -> None:
    write_model({"a": torch.zeros(2)}, weights_path)
    assert not weights_path.with_suffix(".json").exists()
    weights_path.with_suffix(".json").write_text('{"mine": 1}')
    write_model({"a": torch.zeros(2)}, weights_path)
    assert weights_path.with_suffix(".json").read_text() == '{"mine": 1}'


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"format_version": 2}, "format_version 2, but this synboost-monai .* reads up to 1; install a newer one"),
        ({"format_version": True}, "format_version True"),
        ({"architecture": "unet"}, "architecture must be cris, clipseg, semantic_diffusion, got 'unet'"),
        ({"image_size": "160"}, "image_size must be a number of pixels, 1 to 16384, got '160'"),
        ({"image_size": True}, "image_size must be"),
        ({"preset": "$__import__('os')"}, "preset must be a word such as published"),
        ({"image_std": [0.1, 0.0, 0.1]}, "image_std must be three numbers above 0"),
        ({"keep_aspect": 1}, "keep_aspect must be true or false"),
        ({"num_class_embeds": 5}, "'num_class_embeds' is not one of a card"),
        ({"image_sise": 3}, "'image_sise' is not one of a card"),
        ({"training": []}, "'training' is not"),
        ({"licence": None}, "'licence' is not"),
        ({"prompt_level": 3}, "'prompt_level' is not"),
        ({"weights_sha256": "x" * 64}, "'weights_sha256' is not"),
    ],
)
def test_what_a_card_cannot_be_is_one_line(weights_path: Path, entries: dict[str, Any], match: str) -> None:
    change(weights_path, **entries)
    with pytest.raises(ValueError, match=match) as caught:
        read_card(weights_path)
    assert "model.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100000, "\x00", "version https://git-lfs.github.com/spec/v1"])
def test_damaged_card_is_one_line(weights_path: Path, text: str) -> None:
    weights_path.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError, match="model.json: expected JSON that says what the weights"):
        read_card(weights_path)


def test_a_large_file_is_not_read(weights_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_card, "MAX_CARD_BYTES", 10)
    monkeypatch.setattr(model_card, "read_text", lambda path: pytest.fail("was read"))
    assert read_card(weights_path) is None


def test_what_is_said_may_repeat_the_card_and_not_contradict_it(weights_path: Path) -> None:
    resolved = resolve_facts("cris", weights_path, {"preset": "small", "image_size": None})
    assert resolved == FACTS
    with pytest.raises(ValueError, match="made with image_size 160, but --image_size says 96; leave --image_size out"):
        resolve_facts("cris", weights_path, {"image_size": 96})
    with pytest.raises(ValueError, match="weights of cris, not of clipseg; take the bundle echo_cris"):
        resolve_facts("clipseg", weights_path, {})
    with pytest.raises(ValueError, match="--image_size must be a number of pixels"):
        resolve_facts("cris", None, {"image_size": "abc"})


def test_a_training_may_change_what_need_not_stay(weights_path: Path) -> None:
    started: Callable[..., dict[str, Any]] = lambda **said: resolve_facts("cris", weights_path, said, is_start=True)  # noqa: E731
    assert started() == FACTS and started(image_size=224)["image_size"] == 224
    with pytest.raises(ValueError, match="made with preset small, but --preset says published"):
        started(preset="published")


def test_facts_that_a_card_lacks_are_free(weights_path: Path) -> None:
    content = json.loads(weights_path.with_suffix(".json").read_text())
    del content["padding_id"]
    weights_path.with_suffix(".json").write_text(json.dumps(content))
    assert resolve_facts("cris", weights_path, {"padding_id": 49407})["padding_id"] == 49407
    assert resolve_facts("cris", weights_path, {})["padding_id"] == 0
