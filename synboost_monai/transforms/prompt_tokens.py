"""Turn prompts of a datalist's item into token ids: always the same words for evaluation, randomly drawn ones for training.

S: structures, one prompt each. E: groups of S prompts for one image, in several phrasings or levels; prompt e * S + s belongs to
group e and structure s. L: context length. N: side of the square.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, Transform
from torch import Tensor

from synboost_monai.prompts import ATTRIBUTES, LEVELS, NUM_PHRASINGS, PromptTokenizer, prompt_levels, prompt_text
from synboost_monai.prompts.vocabulary import APART_STRUCTURES
from synboost_monai.structures import STRUCTURES, Structure

Item = Mapping[Hashable, Any]

PROMPT_IDS_KEY = "input_ids"
"""Key of the prompts' token ids in an item, and in the meta data of its image."""
ABSENT_KEY = "is_absent"
"""Key under which `RandPromptTokensd` says for each prompt whether its mask is empty."""
PAPER_ENSEMBLE = "paper"
"""`ensemble` of `PromptTokensd`: the paper's prompts of every level up to the requested one, in both phrasings."""

logger = logging.getLogger(__name__)


@cache
def _tokenizer(padding_id: int) -> PromptTokenizer:
    return PromptTokenizer(padding_id=padding_id)


def _prompt_texts(
    attributes: Mapping[str, Any],
    level: str,
    phrasings: Sequence[int],
    left_out: Sequence[Collection[str]] | None,
    domain_word: bool,
    is_quiet: bool = False,
    structures: Sequence[Structure] = STRUCTURES,
) -> tuple[str, ...]:
    """Write one prompt for each structure of an image. Missing attributes lower the level; each combination is logged once.

    Args:
        attributes: a datalist item.
        level: P0 ... P7.
        phrasings: index of the phrasing of each structure.
        left_out: for each structure the attributes that its sentence does not say; None: it says all.
        domain_word: the sentence ends by saying whether the image is real or synthetic.
        is_quiet: log nothing about attributes that the item lacks.
        structures: structures in the order of the prompts.
    """
    texts = []
    for i, (structure, phrasing) in enumerate(zip(structures, phrasings)):
        prompt = prompt_text(
            structure,
            level,
            attributes,
            phrasing=phrasing,
            is_synthetic=bool(attributes.get("is_synthetic", False)),
            left_out=left_out[i] if left_out is not None else (),
            domain_word=domain_word,
        )
        if prompt.missing and not is_quiet:
            _say_once(
                f"prompts: {level} was asked for, {prompt.level} is used where items lack {', '.join(prompt.missing)}"
            )
        texts.append(prompt.text)
    return tuple(texts)


@cache
def _say_once(message: str) -> None:
    logger.info(message)


class PromptTokensd(Transform):
    """Add `input_ids` (E * S, L): the prompts of the item's structures, always in the same words.

    An `image` that is a MetaTensor also gets them in its meta data, so that they reach an inferer that receives the image alone.

    With an ensemble every item has E = levels x phrasings groups, so that items fit into one batch; an item whose attributes allow
    fewer different groups repeats them from the first on. The groups are ordered by level, and within a level by phrasing, 0 and 1.

    Args:
        level: P0 ... P7; missing attributes of the item lower it (logged once). Of "random" or a list of levels, from which
            training draws, the highest is taken.
        phrasing: 0 "of the heart", 1 "in the cardiac ultrasound"; ignored with an ensemble.
        padding_id: as in `PromptTokenizer`.
        domain_word: the sentence ends by saying whether the image is real or synthetic; for networks that were trained so.
        ensemble: None, one group (E = 1); "paper", all levels from P1 to `level` in both phrasings; or a list of levels.
    Raises:
        ValueError: if a level, phrasing or ensemble does not exist.
    """

    def __init__(
        self,
        level: str | Sequence[str],
        phrasing: int = 0,
        padding_id: int = 0,
        domain_word: bool = False,
        ensemble: str | Sequence[str] | None = None,
    ) -> None:
        self.level = max(prompt_levels(level), key=LEVELS.index)
        self.phrasing = phrasing
        self.padding_id = padding_id
        self.domain_word = domain_word
        self.ensemble = _ensemble_levels(ensemble, self.level)

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        item = {**data, PROMPT_IDS_KEY: _tokenizer(self.padding_id)(self.texts(data))}
        image = item.get("image")
        if isinstance(image, MetaTensor):
            meta = {**image.meta, PROMPT_IDS_KEY: item[PROMPT_IDS_KEY]}
            item["image"] = MetaTensor(image.as_tensor(), meta=meta)
        return item

    def texts(self, data: Item) -> tuple[str, ...]:
        """Return the E * S sentences of an item whose token ids `__call__` adds, in their order."""
        attributes: Mapping[str, Any] = data  # type: ignore[assignment]
        if not self.ensemble:
            return _prompt_texts(attributes, self.level, [self.phrasing] * len(STRUCTURES), None, self.domain_word)
        different = dict.fromkeys(
            _prompt_texts(attributes, level, [phrasing] * len(STRUCTURES), None, self.domain_word, is_quiet=True)
            for level in self.ensemble
            for phrasing in range(NUM_PHRASINGS)
        )
        groups = list(different)
        num_groups = len(self.ensemble) * NUM_PHRASINGS
        return tuple(text for i in range(num_groups) for text in groups[i % len(groups)])


class RandPromptTokensd(Randomizable, Transform):
    """Add `input_ids` (E * S, L): groups of prompts of the item's structures, each drawn by itself.

    A group has one level; each of its prompts has its own phrasing and its own attributes left out.

    Args:
        level: P0 ... P7; "random", any of P1 ... P7; or a list of levels to draw from. Missing attributes of the item lower it
            (as in `PromptTokensd`).
        padding_id: as in `PromptTokenizer`.
        num_groups: E; the masks are repeated as often by `TileMasksd`.
        attribute_dropout: probability with which each attribute of the level is left out of a sentence, independently.
        domain_word: the sentence ends by saying whether the image is real or synthetic, for joint training on both.
        synonyms: probability with which each prompt, independently, names its structure in other words of the table; half of these are
            the words alone, as people type them, half are sentences with these words. P0 has no words.
        absent_structures: probability with which each prompt, independently, asks for one of `vocabulary.APART_STRUCTURES` in place of
            its structure; `is_absent` (E * S,) is added, and `TileMasksd` empties these masks.
    Raises:
        ValueError: if a level does not exist, or a number is out of range.
    """

    def __init__(
        self,
        level: str | Sequence[str],
        padding_id: int = 0,
        num_groups: int = 1,
        attribute_dropout: float = 0.0,
        domain_word: bool = False,
        synonyms: float = 0.0,
        absent_structures: float = 0.0,
    ) -> None:
        if isinstance(num_groups, bool) or not isinstance(num_groups, int) or num_groups < 1:
            raise ValueError(f"prompt_tokens.py: num_groups must be a whole number of at least 1, got {num_groups!r}")
        chances = {"attribute_dropout": attribute_dropout, "synonyms": synonyms, "absent_structures": absent_structures}
        for name, chance in chances.items():
            if isinstance(chance, bool) or not 0 <= chance <= 1:
                raise ValueError(f"prompt_tokens.py: {name} must be a probability, 0 ... 1, got {chance!r}")
        self.levels = prompt_levels(level)
        self.is_random = isinstance(level, str) and len(self.levels) > 1
        self.padding_id = padding_id
        self.num_groups, self.attribute_dropout = num_groups, attribute_dropout
        self.domain_word = domain_word
        self.synonyms, self.absent_structures = synonyms, absent_structures

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        drawn = [pair for _ in range(self.num_groups) for pair in self._draw_group(data)]  # type: ignore[arg-type]
        texts, is_absent = zip(*drawn)
        item = {**data, PROMPT_IDS_KEY: _tokenizer(self.padding_id)(texts)}
        return {**item, ABSENT_KEY: torch.tensor(is_absent)} if self.absent_structures > 0 else item

    def _draw_group(self, attributes: Mapping[str, Any]) -> list[tuple[str, bool]]:
        """Draw S prompts, each with whether its structure is absent; disabled options draw no random numbers."""
        level = self.levels[self.R.randint(len(self.levels))] if len(self.levels) > 1 else self.levels[0]
        phrasings = [int(i) for i in self.R.randint(NUM_PHRASINGS, size=len(STRUCTURES))]
        left_out = None
        if self.attribute_dropout > 0:
            is_left_out = self.R.uniform(size=(len(STRUCTURES), len(ATTRIBUTES))) < self.attribute_dropout
            left_out = [[name for name, is_out in zip(ATTRIBUTES, row) if is_out] for row in is_left_out]
        asked = [self._draw_words(structure) if level != LEVELS[0] else (structure, False) for structure in STRUCTURES]
        structures = [structure for structure, _ in asked]
        is_quiet = self.is_random or self.absent_structures > 0  # an absent structure has no shape
        texts = _prompt_texts(attributes, level, phrasings, left_out, self.domain_word, is_quiet, structures)
        said = [s.prompt_words if is_bare else text for text, (s, is_bare) in zip(texts, asked)]
        return [(text, s in APART_STRUCTURES) for text, s in zip(said, structures)]

    def _draw_words(self, structure: Structure) -> tuple[Structure, bool]:
        """Draw what a prompt asks for in place of a structure, in which words, and whether the words are the whole prompt."""
        is_bare = False
        if self.synonyms > 0 and self.R.uniform() < self.synonyms:
            words = (structure.words, *structure.synonyms)
            structure = replace(structure, prompt_words=words[self.R.randint(len(words))])
            is_bare = self.R.uniform() < 0.5
        if self.absent_structures > 0 and self.R.uniform() < self.absent_structures:
            structure = APART_STRUCTURES[self.R.randint(len(APART_STRUCTURES))]
        return structure, is_bare


class TileMasksd(MapTransform):
    """Repeat masks (S, N, N) for each group of `input_ids` (E * S, L), in the order of the prompts; `is_absent` masks are emptied.

    Args:
        keys: keys of the masks.
    Raises:
        ValueError: in the call, if the number of groups is not whole.
    """

    def __init__(self, keys: KeysCollection = "label") -> None:
        super().__init__(keys)

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            masks: Tensor = item[key]
            num_prompts, num_masks = len(item[PROMPT_IDS_KEY]), len(masks)
            if num_prompts % num_masks:
                raise ValueError(
                    f"prompt_tokens.py: {PROMPT_IDS_KEY} has {num_prompts} prompts, no whole number of groups for the {num_masks} masks "
                    f"of {key}; make both of the same structures"
                )
            if num_prompts > num_masks:
                item[key] = torch.tile(masks, (num_prompts // num_masks, 1, 1))
            if ABSENT_KEY in item:
                item[key] = item[key] * ~item[ABSENT_KEY][:, None, None]
        return item


def _ensemble_levels(ensemble: str | Sequence[str] | None, level: str) -> tuple[str, ...]:
    """Return the levels of an ensemble; an empty tuple without one.

    Raises:
        ValueError: if there is no such ensemble, or the level allows none.
    """
    if ensemble is None:
        return ()
    if ensemble == PAPER_ENSEMBLE:
        levels = LEVELS[1 : LEVELS.index(level) + 1]
        if not levels:
            raise ValueError(
                f"prompt_tokens.py: the ensemble {PAPER_ENSEMBLE!r} takes P1 up to the prompt level, got prompt level {level}; "
                "raise prompt_level or set ensemble to null"
            )
        return levels
    if isinstance(ensemble, str):
        raise ValueError(
            f"prompt_tokens.py: ensemble must be null, {PAPER_ENSEMBLE!r} or a list of levels, got {ensemble!r}"
        )
    return prompt_levels(ensemble)
