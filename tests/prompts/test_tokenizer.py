"""Test token ids against known ones and against a second, small byte-pair encoder."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch

import synboost_monai.prompts
from synboost_monai.prompts import LEVELS, PromptTokenizer, prompt_text
from synboost_monai.prompts.tokenizer import END_ID, START_ID
from synboost_monai.structures import STRUCTURES

FILES_DIR = Path(synboost_monai.prompts.__file__).parent


class SmallEncoder:
    """Encode words of a-z, hyphens and full stops with CLIP's byte-pair encoding, straight from its definition."""

    def __init__(self) -> None:
        self.vocabulary = json.loads((FILES_DIR / "vocab.json").read_text(encoding="utf-8"))
        lines = (FILES_DIR / "merges.txt").read_text(encoding="utf-8").splitlines()
        pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
        self.rank = {pair: i for i, pair in enumerate(pairs)}

    def encode(self, text: str) -> list[int]:
        for mark in ".-":
            text = text.replace(mark, f" {mark} ")
        return [START_ID, *(i for word in text.lower().split() for i in self._word(word)), END_ID]

    def _word(self, word: str) -> list[int]:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            best = min(zip(parts, parts[1:]), key=lambda pair: self.rank.get(pair, len(self.rank)))
            if best not in self.rank:
                break
            i = next(i for i in range(len(parts) - 1) if (parts[i], parts[i + 1]) == best)
            parts[i : i + 2] = ["".join(best)]
        return [self.vocabulary[part] for part in parts]


@pytest.fixture(scope="module")
def all_prompts() -> list[str]:
    """Return every kind of prompt: levels, structures, phrasings, and words of each attribute."""
    common = {"sex": "male", "shape": {s.name: "triangle" for s in STRUCTURES}}
    items = [
        {**common, "view": "apical_four_chamber", "phase": "end_systole", "image_quality": "medium", "age": age}
        for age in (17, 40, 73)
    ] + [
        {
            **common,
            "view": "apical_two_chamber",
            "phase": "end_diastole",
            "image_quality": "good",
            "sex": "female",
            "age": 88,
        }
    ]
    cases = product(STRUCTURES, LEVELS, items, (0, 1), (False, True))
    return sorted({prompt_text(s, level, item, phrasing=p, is_synthetic=y).text for s, level, item, p, y in cases})


def test_known_ids() -> None:
    input_ids = PromptTokenizer()(["a photo of a cat", ""])
    assert input_ids.shape == (2, 77) and input_ids.dtype == torch.int64
    assert input_ids[0].tolist() == [START_ID, 320, 1125, 539, 320, 2368, END_ID] + [0] * 70
    assert input_ids[1].tolist() == [START_ID, END_ID] + [0] * 75


def test_every_prompt_equals_a_second_encoder(all_prompts: list[str]) -> None:
    tokenizer, small = PromptTokenizer(), SmallEncoder()
    assert len(all_prompts) > 80
    for text in all_prompts:
        assert tokenizer.encode(text) == small.encode(text), text


def test_longest_prompt_fits(all_prompts: list[str]) -> None:
    assert max(len(PromptTokenizer().encode(text)) for text in all_prompts) <= 43


def test_longest_prompt_with_the_domain_word_fits_easily() -> None:
    item = {
        "view": "apical_four_chamber",
        "phase": "end_systole",
        "sex": "female",
        "image_quality": "medium",
        "age": 101,
    }
    item["shape"] = {s.name: "rectangle" for s in STRUCTURES}
    cases = product(STRUCTURES, (0, 1), (False, True))
    texts = [prompt_text(s, "P7", item, phrasing=p, is_synthetic=y, domain_word=True).text for s, p, y in cases]
    assert max(len(PromptTokenizer().encode(text)) for text in texts) <= 52


def test_padding_and_context_length_are_choices() -> None:
    input_ids = PromptTokenizer(context_length=17, padding_id=END_ID)(["a photo of a cat"])
    assert input_ids.tolist() == [[START_ID, 320, 1125, 539, 320, 2368] + [END_ID] * 11]


def test_text_that_fills_the_context_has_no_padding() -> None:
    assert PromptTokenizer(context_length=7)(["a photo of a cat"])[0, -1] == END_ID


def test_too_long_text_gives_both_counts() -> None:
    with pytest.raises(ValueError, match="prompt has 7 tokens with start and end, at most 6 fit: 'a photo of a cat'"):
        PromptTokenizer(context_length=6)(["a photo of a cat"])
    with pytest.raises(ValueError, match="prompt has 102 tokens .* at most 77 fit"):
        PromptTokenizer()(["heart " * 100])


def test_special_token_in_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="got CLIP's own start or end token in it"):
        PromptTokenizer()(["myocardium <|endoftext|> heart"])


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a list of at least one prompt, got 'myocardium'"):
        PromptTokenizer()("myocardium")
    with pytest.raises(ValueError, match="at least one prompt"):
        PromptTokenizer()([])
    with pytest.raises(ValueError, match=r"context_length must be 3 ... 77, got 100"):
        PromptTokenizer(context_length=100)
