"""Vary prompts in one attribute at a time, to see how much a mask depends on each word.

In a structure's right prompt, at the level that the image's attributes allow, one attribute at a time is changed:

    attribute        wrong                                                        left out
    structure        each other structure, and `ABSENT_STRUCTURES`                the empty prompt (P0)
    view             the other one                                                without the words
    phase            the other one                                                without the words
    sex              the other one                                                without the word
    age              `wrong_steps` years younger or older, in `wrong_range`       without the words
    image_quality    each other grade                                             without the words
    shape            each other shape                                             without the words
    domain           the other one, where prompts end with a domain word          without the words

and once only the phrasing, which does not change the meaning: the baseline for all other changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synboost_monai.prompts.table import ATTRIBUTE, ATTRIBUTES, DOMAIN_WORDS, LEVELS, TABLE, attributes_of
from synboost_monai.prompts.templates import NUM_PHRASINGS, PHRASINGS, Prompt, prompt_levels, prompt_text
from synboost_monai.structures import STRUCTURES, Structure

RIGHT, WRONG, LEFT_OUT, REPHRASED = "right", "wrong", "left_out", "rephrased"
"""Kinds of change to a prompt."""
STRUCTURE, PHRASING, DOMAIN = "structure", "phrasing", "domain"
"""Parts of a prompt that can be changed besides `templates.ATTRIBUTES`."""
CHANGEABLE = (PHRASING, STRUCTURE, *ATTRIBUTES, DOMAIN)
"""Everything that can be changed, in the order of tables and plots."""
ABSENT_STRUCTURES = tuple(
    Structure(0, name, name.replace("_", " ").capitalize(), (0, 0, 0))
    for name in ("right_ventricular_cavity", "kidney")
    if name not in {structure.name for structure in STRUCTURES}
)
"""Structures that are not labelled in any data set here: one is visible in four-chamber views, the other in no view of the heart."""


@dataclass(frozen=True)
class PromptVariant:
    """Hold one prompt for one structure of one image, and how it differs from the right one."""

    structure: str
    """Name of the structure that the right prompt asks for."""
    attribute: str | None
    """The part that was changed, from `CHANGEABLE`; None for the right prompt."""
    change: str
    """RIGHT, WRONG, LEFT_OUT or REPHRASED."""
    right: str | None
    """Value of the attribute in the right prompt."""
    wrong: str | None
    """Value in this prompt; None where it is left out."""
    text: str
    """The sentence."""


@dataclass(frozen=True)
class PromptVariations:
    """List the prompts whose masks are compared, for every structure of an image; the same attributes always give the same prompts.

    Args:
        level: P0 ... P7 of the right prompt; missing attributes of the image lower it. Of "random" or a list, the highest is taken.
        domain_word: prompts end by saying whether the image is real or synthetic; for networks that were trained so.
        structures: structures that the prompts ask for.
    Raises:
        ValueError: if the level does not exist or names no structure.
    """

    level: str | Sequence[str] = LEVELS[-1]
    domain_word: bool = False
    structures: Sequence[Structure] = STRUCTURES

    def __post_init__(self) -> None:
        if self.highest_level == LEVELS[0]:
            raise ValueError(
                f"variations.py: {LEVELS[0]} is the empty prompt, no word of it can be wrong; set prompt_level to P1 ... P7"
            )

    @property
    def highest_level(self) -> str:
        """Return the level of the right prompt of an image with all attributes."""
        return max(prompt_levels(self.level), key=LEVELS.index)

    def __call__(self, attributes: Mapping[str, Any]) -> list[PromptVariant]:
        """Return the prompts of one image; the right prompt of each structure comes before its changed ones.

        Args:
            attributes: a datalist item, as in `prompt_text`.
        """
        return [variant for structure in self.structures for variant in self._of_structure(structure, attributes)]

    def untested(self, attributes: Mapping[str, Any]) -> set[tuple[str, str]]:
        """Return each (structure, attribute) that the level asks for but the image's right prompts do not say."""
        wanted = self._said(self.highest_level, attributes)
        said = {s.name: self._said(self._prompt(s, attributes).level, attributes) for s in self.structures}
        return {(s.name, name) for s in self.structures for name in wanted if name not in said[s.name]}

    def _of_structure(self, structure: Structure, attributes: Mapping[str, Any]) -> Iterator[PromptVariant]:
        """Yield the right prompt of a structure, then every changed one."""
        right = self._prompt(structure, attributes)
        level = right.level

        def variant(attribute: str, change: str, right_value: Any, wrong_value: Any, text: str) -> PromptVariant:
            right_text, wrong_text = (None if v is None else str(v) for v in (right_value, wrong_value))
            return PromptVariant(structure.name, attribute, change, right_text, wrong_text, text)

        yield PromptVariant(structure.name, None, RIGHT, None, None, right.text)
        for phrasing in range(1, NUM_PHRASINGS):
            text = self._prompt(structure, attributes, level, phrasing=phrasing).text
            yield variant(PHRASING, REPHRASED, PHRASINGS[0], PHRASINGS[phrasing], text)

        own = {a.name: (attributes.get(a.name) or {}).get(structure.name) for a in TABLE if a.of_structure}
        for other in (*(s for s in STRUCTURES if s.name != structure.name), *ABSENT_STRUCTURES):
            of_other = {name: {other.name: value} for name, value in own.items()}
            text = self._prompt(other, {**attributes, **of_other}, level).text
            yield variant(STRUCTURE, WRONG, structure.name, other.name, text)
        yield variant(STRUCTURE, LEFT_OUT, structure.name, None, self._prompt(structure, attributes, LEVELS[0]).text)

        for name in self._said(level, attributes):
            value = own[name] if name in own else attributes[name]
            for wrong in wrong_values(name, value):
                changed = {**attributes, name: {structure.name: wrong} if name in own else wrong}
                yield variant(name, WRONG, value, wrong, self._prompt(structure, changed, level).text)
            text = self._prompt(structure, attributes, level, left_out=(name,)).text
            yield variant(name, LEFT_OUT, value, None, text)

        if self.domain_word:
            is_synthetic = bool(attributes.get("is_synthetic", False))
            word, other_word = DOMAIN_WORDS[is_synthetic], DOMAIN_WORDS[not is_synthetic]
            without = self._prompt(structure, attributes, level, domain_word=False).text
            yield variant(DOMAIN, WRONG, word, other_word, f"{without[:-1]} in a {other_word} image.")
            yield variant(DOMAIN, LEFT_OUT, word, None, without)

    def _prompt(
        self, structure: Structure, attributes: Mapping[str, Any], level: str | None = None, **options: Any
    ) -> Prompt:
        """Write one prompt; at the level of the right one all its attributes are known."""
        return prompt_text(
            structure,
            level or self.highest_level,
            attributes,
            is_synthetic=bool(attributes.get("is_synthetic", False)),
            **{"domain_word": self.domain_word, **options},
        )

    @staticmethod
    def _said(level: str, attributes: Mapping[str, Any]) -> list[str]:
        """List the attributes that a prompt of this level says of an image, in the order of the levels."""
        return list(attributes_of(level, bool(attributes.get("is_synthetic", False))))


def wrong_values(attribute: str, value: Any) -> list[Any]:
    """List the values that a prompt could say in place of the right one.

    Args:
        attribute: one of `templates.ATTRIBUTES`.
        value: the right value, as in a datalist.
    Raises:
        ValueError: if there is no such attribute.
    """
    if attribute not in ATTRIBUTE:
        raise ValueError(f"variations.py: attribute must be one of {', '.join(ATTRIBUTES)}, got {attribute!r}")
    row = ATTRIBUTE[attribute]
    if row.words:
        return [other for other in row.words if other != value]
    low, high = row.wrong_range
    return [number for step in row.wrong_steps if low <= (number := int(value) + step) <= high]
