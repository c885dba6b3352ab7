"""Test prompts of an item as token ids."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from synboost_monai.prompts import LEVELS, PromptTokenizer, prompt_text
from synboost_monai.prompts.templates import is_sentence
from synboost_monai.prompts.understanding import understand
from synboost_monai.structures import STRUCTURES
from synboost_monai.transforms.prompt_tokens import (
    PromptTokensd,
    RandPromptTokensd,
    TileMasksd,
)

WHOLE: dict[str, Any] = {
    "view": "apical_four_chamber",
    "phase": "end_systole",
    "sex": "male",
    "age": 73,
    "image_quality": "medium",
    "shape": {structure.name: "triangle" for structure in STRUCTURES},
    "is_synthetic": False,
}
"""An item that has every attribute."""
POOR = {"view": "apical_two_chamber", "phase": "end_diastole"}
"""An item that has what P3 says."""


def tokens_of(item: dict[str, Any], level: str, phrasings: tuple[int, ...] = (0, 0, 0), **options: Any) -> torch.Tensor:
    """Return the token ids of the three prompts, straight from the templates."""
    options = {"is_synthetic": item.get("is_synthetic", False), **options}
    texts = [prompt_text(s, level, item, phrasing=p, **options).text for s, p in zip(STRUCTURES, phrasings)]
    return PromptTokenizer()(texts)


def ids_of(item: dict[str, Any], level: str, **options: Any) -> torch.Tensor:
    return PromptTokensd(level, **options)(item)["input_ids"]


def seeded(transform: RandPromptTokensd, seed: int = 0) -> RandPromptTokensd:
    transform.set_random_state(seed)
    return transform


def test_tokens_fall_with_missing_attributes_and_follow_synthetic_templates() -> None:
    real = {"view": "apical_four_chamber", "phase": "end_diastole"}
    assert torch.equal(ids_of(real, "P6"), ids_of(real, "P3"))
    assert not torch.equal(ids_of(real, "P3"), ids_of(real, "P3", phrasing=1))
    whole = real | {"sex": "male", "age": 40, "shape": {s.name: "oval" for s in STRUCTURES}, "image_quality": "good"}
    assert not torch.equal(ids_of(whole | {"is_synthetic": True}, "P6"), ids_of(whole, "P6"))
    assert ids_of(real, "P1").shape == (3, 77)


# ---- drawn for training


def test_without_options_the_phrasings_alone_are_drawn() -> None:
    """These are the draws of a training before there were options, number by number."""
    transform, random_state = seeded(RandPromptTokensd("P5")), np.random.RandomState(0)
    for _ in range(6):
        phrasings = random_state.randint(2, size=3)
        input_ids = transform(WHOLE)["input_ids"]
        assert torch.equal(input_ids, tokens_of(WHOLE, "P5", tuple(int(i) for i in phrasings)))


def test_the_same_seed_draws_the_same_prompts_whatever_was_drawn_elsewhere() -> None:
    transform = RandPromptTokensd("random", num_groups=4, attribute_dropout=0.3)
    drawn = []
    for seed in (3, 3, 4):
        np.random.seed(seed + 100)
        transform.set_random_state(seed)
        drawn.append([transform(WHOLE)["input_ids"] for _ in range(3)])
    assert all(torch.equal(*pair) for pair in zip(drawn[0], drawn[1]))
    assert not all(torch.equal(*pair) for pair in zip(drawn[0], drawn[2]))


def test_a_group_has_one_level_and_all_levels_are_drawn() -> None:
    transform = seeded(RandPromptTokensd("random", num_groups=60))
    groups = transform(WHOLE)["input_ids"].unflatten(0, (60, 3))
    phrasings = [tuple(int(i) for i in np.unravel_index(n, (2, 2, 2))) for n in range(8)]
    known = {tuple(tokens_of(WHOLE, level, p).flatten().tolist()): level for level in LEVELS for p in phrasings}
    levels = [known[tuple(group.flatten().tolist())] for group in groups]  # KeyError: levels mixed in a group
    assert set(levels) == set(LEVELS[1:])
    assert len({tuple(group.flatten().tolist()) for group in groups}) > 20


def test_levels_of_a_list_are_drawn_and_no_others() -> None:
    transform = seeded(RandPromptTokensd(["P1", "P6"]))
    lengths = {int((transform(WHOLE)["input_ids"][1] != 0).sum()) for _ in range(30)}
    expected = {int((tokens_of(WHOLE, level, (p,) * 3)[1] != 0).sum()) for level in ("P1", "P6") for p in (0, 1)}
    assert lengths == expected


def test_a_random_level_says_nothing_of_what_items_lack(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="synboost_monai"):
        for _ in range(10):
            seeded(RandPromptTokensd("random", num_groups=10))(POOR)
        assert not caplog.messages
        PromptTokensd("P4")({"view": "apical_two_chamber"})
    assert caplog.messages == ["prompts: P4 was asked for, P2 is used where items lack phase, sex"]


def test_every_attribute_is_dropped_by_itself_as_often_as_asked() -> None:
    transform = seeded(RandPromptTokensd("P7", num_groups=100, attribute_dropout=0.25))
    rows = transform(WHOLE)["input_ids"].tolist()
    words = {
        "view": "four",
        "phase": "systole",
        "sex": "male",
        "age": "seventy",
        "image_quality": "medium",
        "shape": "shape",
    }
    first_token = {name: PromptTokenizer().encode(word)[1] for name, word in words.items()}
    is_said = np.array([[token in row for token in first_token.values()] for row in rows])
    assert (np.abs((~is_said).mean(axis=0) - 0.25) < 0.09).all()
    correlation = np.corrcoef(is_said.T) - np.eye(6)
    assert np.abs(correlation).max() < 0.2
    assert len(np.unique(is_said, axis=0)) > 15
    of_one_group = is_said.reshape(100, 3, 6)
    assert (of_one_group[:, 0] != of_one_group[:, 1]).any()  # each prompt by itself


def test_dropping_everything_is_p1() -> None:
    transform = seeded(RandPromptTokensd("P7", attribute_dropout=1.0))
    phrasings = np.random.RandomState(0).randint(2, size=3)
    assert torch.equal(transform(WHOLE)["input_ids"], tokens_of(WHOLE, "P1", tuple(int(i) for i in phrasings)))


def words_of(transform: RandPromptTokensd, item: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the sentences that a transform draws, before they become token ids."""
    said: list[str] = []
    monkeypatch.setattr(
        "synboost_monai.transforms.prompt_tokens._tokenizer",
        lambda *_: lambda texts: said.extend(texts) or torch.zeros(len(texts), 77),
    )
    transform(item)
    return said


def test_synonyms_are_taught_alone_and_in_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    said = words_of(seeded(RandPromptTokensd("P2", num_groups=400, synonyms=0.5)), WHOLE, monkeypatch)
    assert [understand(text).structure for text in said] == list(STRUCTURES) * 400
    is_alone = np.array(["view" not in text for text in said])
    is_papers = np.array([is_sentence(text) for text in said])
    assert abs(is_alone.mean() - 0.25) < 0.04 and abs(is_papers.mean() - 0.5) < 0.06
    for structure in STRUCTURES:
        assert {structure.words, *structure.synonyms} <= {text for text, alone in zip(said, is_alone) if alone}
    assert set(words_of(seeded(RandPromptTokensd("P0", synonyms=1.0, absent_structures=1.0)), WHOLE, monkeypatch)) == {
        ""
    }


def test_what_no_label_map_has_is_asked_for_with_an_empty_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = seeded(RandPromptTokensd("P3", num_groups=200, synonyms=0.5, absent_structures=0.2))
    item = {"label": MetaTensor(torch.ones(3, 2, 2)), **transform(WHOLE)}
    is_absent = item["is_absent"]
    assert is_absent.shape == (600,) and abs(float(is_absent.float().mean()) - 0.2) < 0.06
    masks = TileMasksd()(item)["label"]
    assert torch.equal(masks.amax(dim=(1, 2)) == 0, is_absent) and torch.equal(item["label"], torch.ones(3, 2, 2))
    said = words_of(seeded(transform), WHOLE, monkeypatch)
    for text, absent in zip(said, is_absent.tolist()):
        if absent:
            with pytest.raises(ValueError, match="is not among the structures"):
                understand(text)
        else:
            understand(text)
    assert "is_absent" not in RandPromptTokensd("P3")(WHOLE)


@pytest.mark.parametrize("is_synthetic", [False, True])
def test_the_domain_word_comes_from_the_item(is_synthetic: bool) -> None:
    item = {**WHOLE, "is_synthetic": is_synthetic}
    expected = tokens_of(item, "P2", domain_word=True)
    assert torch.equal(PromptTokensd("P2", domain_word=True)(item)["input_ids"], expected)
    assert not torch.equal(PromptTokensd("P2")(item)["input_ids"], expected)
    transform, random_state = seeded(RandPromptTokensd("P2", domain_word=True)), np.random.RandomState(0)
    phrasings = tuple(int(i) for i in random_state.randint(2, size=3))
    assert torch.equal(transform(item)["input_ids"], tokens_of(item, "P2", phrasings, domain_word=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "P9"}, "prompt level must be one of .*, got 'P9'; set prompt_level"),
        ({"level": []}, r"or a list of levels, got \[\]"),
        ({"level": "P1", "num_groups": 0}, "num_groups must be a whole number of at least 1, got 0"),
        ({"level": "P1", "num_groups": 1.5}, "num_groups must be a whole number of at least 1, got 1.5"),
        ({"level": "P1", "attribute_dropout": 1.5}, "attribute_dropout must be a probability, 0 ... 1, got 1.5"),
        ({"level": "P1", "synonyms": -0.1}, "synonyms must be a probability, 0 ... 1, got -0.1"),
        ({"level": "P1", "absent_structures": True}, "absent_structures must be a probability, 0 ... 1, got True"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandPromptTokensd(**options)


# ---- always the same for evaluation


def test_without_ensemble_the_prompts_are_those_of_the_level() -> None:
    assert torch.equal(PromptTokensd("P6")(WHOLE)["input_ids"], tokens_of(WHOLE, "P6"))
    assert torch.equal(PromptTokensd("P6", phrasing=1)(WHOLE)["input_ids"], tokens_of(WHOLE, "P6", (1, 1, 1)))
    assert torch.equal(PromptTokensd("random")(WHOLE)["input_ids"], tokens_of(WHOLE, "P7"))
    assert torch.equal(PromptTokensd(["P5", "P2"])(WHOLE)["input_ids"], tokens_of(WHOLE, "P5"))


def test_the_papers_ensemble_is_every_level_in_both_phrasings() -> None:
    item = PromptTokensd("P4", ensemble="paper")(WHOLE)
    expected = [tokens_of(WHOLE, level, (p,) * 3) for level in ("P1", "P2", "P3", "P4") for p in (0, 1)]
    assert item["input_ids"].shape == (8 * 3, 77) and item["view"] == WHOLE["view"]
    assert torch.equal(item["input_ids"], torch.cat(expected))


def test_an_item_that_knows_less_repeats_its_groups_so_that_a_batch_holds() -> None:
    transform = PromptTokensd("P6", ensemble="paper")
    different = [tokens_of(POOR, level, (p,) * 3) for level in ("P1", "P2", "P3") for p in (0, 1)]
    assert torch.equal(transform(POOR)["input_ids"], torch.cat([*different, *different]))
    synthetic = PromptTokensd("P7", ensemble="paper")({**WHOLE, "is_synthetic": True})["input_ids"]
    groups = synthetic.unflatten(0, (14, 3))
    assert len({tuple(group.flatten().tolist()) for group in groups}) == 12  # synthetic data has no P7
    assert torch.equal(groups[12:], groups[:2])
    batch = torch.stack([transform(item)["input_ids"] for item in (WHOLE, POOR, {})])
    assert batch.shape == (3, 36, 77)


def test_an_ensemble_of_a_list_of_levels_keeps_their_order() -> None:
    input_ids = PromptTokensd("P1", ensemble=["P6", "P2", "P6"], domain_word=True)(WHOLE)["input_ids"]
    expected = [tokens_of(WHOLE, level, (p,) * 3, domain_word=True) for level in ("P6", "P2") for p in (0, 1)]
    assert torch.equal(input_ids, torch.cat(expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "P0", "ensemble": "paper"}, "got prompt level P0; raise prompt_level or set ensemble to null"),
        ({"level": "P6", "ensemble": "all"}, "ensemble must be null, 'paper' or a list of levels, got 'all'"),
        ({"level": "P6", "ensemble": ["P1", "P8"]}, "got 'P8'"),
        ({"level": "P8"}, "got 'P8'; set prompt_level"),
    ],
)
def test_an_ensemble_that_does_not_exist_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptTokensd(**options)


# ---- masks


def test_masks_are_repeated_in_the_order_of_the_prompts() -> None:
    masks = torch.arange(3).float()[:, None, None].expand(3, 4, 4)
    item = {"label": MetaTensor(masks), **RandPromptTokensd("P1", num_groups=2)(WHOLE)}
    tiled = TileMasksd()(item)["label"]
    assert tiled.shape == (6, 4, 4) and tiled[:, 0, 0].tolist() == [0, 1, 2, 0, 1, 2]
    assert item["label"].shape == (3, 4, 4)


def test_one_group_leaves_masks_as_they_are() -> None:
    item = {"mask": torch.ones(3, 4, 4), "input_ids": torch.zeros(3, 77)}
    assert TileMasksd("mask")(item)["mask"] is item["mask"]
    with pytest.raises(ValueError, match="input_ids has 4 prompts, no whole number of groups for the 3 masks of mask"):
        TileMasksd("mask")({**item, "input_ids": torch.zeros(4, 77)})
    with pytest.raises(KeyError, match="label"):
        TileMasksd()(item)
