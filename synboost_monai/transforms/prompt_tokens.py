"""Prompts of a datalist's item as token ids: always the same words for evaluation, drawn by chance for training."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from monai.transforms import Randomizable, Transform
from torch import Tensor

from synboost_monai.labels import STRUCTURES
from synboost_monai.prompts import NUM_PHRASINGS, PromptTokenizer, prompt_text

Item = Mapping[Hashable, Any]

logger = logging.getLogger(__name__)


def prompt_tokens(
    attributes: Mapping[str, Any], level: str, phrasings: Sequence[int], context_length: int = 77, padding_id: int = 0
) -> Tensor:
    """Token ids of the prompts of one image, one for each structure.

    Attributes that the item lacks lower the level; each way this happens is logged once.

    Args:
        attributes: a datalist item.
        level: P0 ... P7.
        phrasings: index of the phrasing of each structure.
        context_length, padding_id: as in `PromptTokenizer`.
    Returns:
        (S, context_length), int64.
    """
    texts = []
    for structure, phrasing in zip(STRUCTURES, phrasings):
        prompt = prompt_text(
            structure, level, attributes, phrasing=phrasing, is_synthetic=bool(attributes.get("is_synthetic", False))
        )
        if prompt.missing:
            _say_once(
                f"prompts: {level} was asked for, {prompt.level} is used where items lack {', '.join(prompt.missing)}"
            )
        texts.append(prompt.text)
    return _tokenizer(context_length, padding_id)(texts)


def draw_phrasings(random_state: np.random.RandomState) -> list[int]:
    """A phrasing for each structure, by chance."""
    return [int(i) for i in random_state.randint(NUM_PHRASINGS, size=len(STRUCTURES))]


_PROMPT_STEMS = {1: ("ventricular cavity", "left ventric", "endocard"), 2: ("myocard",), 3: ("atri",)}
"""Beginnings of the words by which a free prompt names a structure, by class index."""


def class_index_of_prompt(prompt: str) -> int:
    """Class that a free prompt's mask is written with: of the one structure that it names, 1 if it names none or several."""
    named = [index for index, stems in _PROMPT_STEMS.items() if any(stem in prompt.lower() for stem in stems)]
    return named[0] if len(named) == 1 else 1


@cache
def _tokenizer(context_length: int, padding_id: int) -> PromptTokenizer:
    return PromptTokenizer(context_length, padding_id)


@cache
def _say_once(message: str) -> None:
    logger.info(message)


class PromptTokensd(Transform):
    """Adds `input_ids` (S, L): the prompts of the item's structures, always in the same phrasing.

    Args:
        level: P0 ... P7; what the item does not know lowers it (see `prompt_tokens`).
        phrasing: 0 "of the heart", 1 "in the cardiac ultrasound".
        context_length, padding_id: as in `PromptTokenizer`.
    """

    def __init__(self, level: str, phrasing: int = 0, context_length: int = 77, padding_id: int = 0) -> None:
        self.level, self.phrasing = level, phrasing
        self.context_length, self.padding_id = context_length, padding_id

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        phrasings = [self.phrasing] * len(STRUCTURES)
        return {
            **data,
            "input_ids": prompt_tokens(data, self.level, phrasings, self.context_length, self.padding_id),  # type: ignore[arg-type]
        }


class RandPromptTokensd(Randomizable, Transform):
    """Adds `input_ids` (S, L) with a phrasing drawn for each structure; arguments as in `PromptTokensd`."""

    def __init__(self, level: str, context_length: int = 77, padding_id: int = 0) -> None:
        self.level, self.context_length, self.padding_id = level, context_length, padding_id

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        phrasings = draw_phrasings(self.R)
        return {
            **data,
            "input_ids": prompt_tokens(data, self.level, phrasings, self.context_length, self.padding_id),  # type: ignore[arg-type]
        }
