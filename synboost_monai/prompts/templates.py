"""Write the paper's prompts P0..P7: one sentence for each structure from the known attributes of an echocardiogram.

Each level adds one attribute to the one before it:

    level  adds                 real and phantom data                           synthetic data
    P0     -                    the empty string                                same
    P1     structure            Myocardium of the heart.                        same
    P2     view                 ... in two-chamber view of the heart.           same
    P3     phase                ... at end of the diastole cycle.               same
    P4     sex                  ... of a female.                                same
    P5     age                  ... of a forty-year-old female.                 same
    P6     image_quality        ... with poor image quality.                    no quality; adds `of oval shape` instead
    P7     shape                Myocardium of oval shape in ...                 there is none: P7 gives P6

Two phrasings: 0 names "of the heart", 1 "in the cardiac ultrasound". Training draws one, evaluation uses 0.

Two options go beyond the paper's prompts, both off by default: single attributes can be left out of the sentence, and words at its
end can tell real from synthetic, `Myocardium of the heart in a real image.`, which the paper names as future work.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any

from synboost_monai.records import IMAGE_QUALITIES, SHAPES
from synboost_monai.structures import STRUCTURES, Structure

LEVELS = ("P0", "P1", "P2", "P3", "P4", "P5", "P6", "P7")
"""All levels; each has one attribute more than the one before."""

PHRASINGS = ("of the heart", "in the cardiac ultrasound")
"""Words for the structure's place, by index of phrasing."""
NUM_PHRASINGS = len(PHRASINGS)
"""Number of phrasings to draw from in training."""

VIEW_WORDS = {"apical_two_chamber": "two-chamber", "apical_four_chamber": "four-chamber"}
"""`view` of a datalist item -> words in a prompt."""
PHASE_WORDS = {"end_diastole": "diastole", "end_systole": "systole"}
"""`phase` of a datalist item -> word in a prompt."""
SEX_WORDS = {"male": "male", "female": "female"}
"""`sex` of a datalist item -> word in a prompt."""
QUALITY_WORDS = {quality: quality for quality in IMAGE_QUALITIES}
"""`image_quality` of a datalist item -> word in a prompt."""
SHAPE_WORDS = {shape: shape for shape in SHAPES}
"""`shape` of a structure -> word in a prompt."""
DOMAIN_WORDS = {False: "real", True: "synthetic"}
"""`is_synthetic` of a datalist item -> word in a prompt."""
ATTRIBUTES = ("view", "phase", "sex", "age", "image_quality", "shape")
"""Attributes that a prompt can say besides the structure, in the order in which the levels of real data add them."""
RANDOM_LEVEL = "random"
"""Name for all levels that name the structure, P1 ... P7."""

_REAL_ATTRIBUTES = ATTRIBUTES
_SYNTHETIC_ATTRIBUTES = ("view", "phase", "sex", "age", "shape")


@dataclass(frozen=True)
class Prompt:
    """Hold a finished prompt and how much of the requested level it could say."""

    text: str
    """The sentence; empty for P0."""
    level: str
    """The level really used: lower than the one requested if attributes are missing (or for P7 on synthetic data)."""
    missing: tuple[str, ...] = ()
    """Attributes that the requested level needs but the item lacks; empty if nothing was lost."""


def prompt_text(
    structure: Structure,
    level: str,
    attributes: Mapping[str, Any],
    *,
    phrasing: int = 0,
    is_synthetic: bool = False,
    left_out: Collection[str] = (),
    domain_word: bool = False,
) -> Prompt:
    """Write the prompt that asks for one structure of one echocardiogram.

    If attributes are missing, the prompt falls to the highest level whose attributes are all known: an item without
    `sex` gives P3 for P4 and above, even if its age is known. `Prompt.level` and `Prompt.missing` say so.

    Attributes left out on purpose do not lower the level: the sentence says the others, "of a forty-year-old patient" without the sex.

    Args:
        structure: what to segment.
        level: "P0" ... "P7".
        attributes: a datalist item: `view`, `phase`, `sex`, `age`, `image_quality`, and `shape` as {structure name:
            word}; other keys are ignored; an attribute that is absent, None or empty is missing.
        phrasing: 0 "of the heart", 1 "in the cardiac ultrasound".
        is_synthetic: use the templates of synthetic data (shape at P6, no image quality).
        left_out: `ATTRIBUTES` that the sentence does not say, whether known or not.
        domain_word: end with "in a real image" or "in a synthetic image"; P0, which names no structure, becomes
            "A real image." or "A synthetic image."
    Raises:
        ValueError: if level, phrasing or an attribute to leave out does not exist, or an attribute has a value that no prompt
            can say.
    """
    _check_level(level)
    if unknown := sorted(set(left_out) - set(ATTRIBUTES)):
        raise ValueError(
            f"templates.py: left_out must name attributes ({', '.join(ATTRIBUTES)}), got {', '.join(unknown)}"
        )
    if phrasing not in range(NUM_PHRASINGS):
        raise ValueError(f"templates.py: phrasing must be 0 ({PHRASINGS[0]}) or 1 ({PHRASINGS[1]}), got {phrasing!r}")

    order = _SYNTHETIC_ATTRIBUTES if is_synthetic else _REAL_ATTRIBUTES
    wanted = order[: max(LEVELS.index(level) - 1, 0)]  # P0 and P1 need no attribute
    words = {name: word for name in wanted if (word := _attribute_word(name, attributes, structure)) is not None}
    missing = tuple(name for name in wanted if name not in words)
    said = wanted[: wanted.index(missing[0])] if missing else wanted  # all before the first gap
    domain = DOMAIN_WORDS[is_synthetic] if domain_word else None
    if level == "P0":
        return Prompt(f"A {domain} image." if domain else "", "P0")
    text = _sentence(
        structure, {name: words[name] for name in said if name not in left_out}, PHRASINGS[phrasing], domain
    )
    return Prompt(text, LEVELS[1 + len(said)], missing)


def structure_prompts(
    level: str,
    attributes: Mapping[str, Any],
    *,
    structures: Sequence[Structure] = STRUCTURES,
    phrasing: int = 0,
    is_synthetic: bool = False,
    domain_word: bool = False,
) -> tuple[Prompt, ...]:
    """Write one prompt for each structure, in their order: the S prompts of one image. Arguments as in `prompt_text`."""
    return tuple(
        prompt_text(s, level, attributes, phrasing=phrasing, is_synthetic=is_synthetic, domain_word=domain_word)
        for s in structures
    )


def prompt_levels(level: str | Sequence[str]) -> tuple[str, ...]:
    """List the levels that a config's value means, each once, in the order given.

    Args:
        level: "P0" ... "P7"; "random" for P1 ... P7; or several levels as a list.
    Raises:
        ValueError: if a level does not exist, or the list is empty.
    """
    if isinstance(level, str):
        if level == RANDOM_LEVEL:
            return LEVELS[1:]
        _check_level(level)
        return (level,)
    if not isinstance(level, Sequence) or len(level) == 0:
        raise ValueError(
            f"templates.py: prompt level must be one of {', '.join(LEVELS)}, {RANDOM_LEVEL} or a list of levels, "
            f"got {level!r}; set prompt_level"
        )
    for one in level:
        _check_level(one)
    return tuple(dict.fromkeys(level))


def is_sentence(text: str) -> bool:
    """Return whether a text is word for word a prompt of P1 ... P7, in either phrasing."""
    return _sentence_pattern().fullmatch(text) is not None


def age_in_words(age: int) -> str:
    """Write an age in years as a prompt says it: 73 -> seventy-three.

    Raises:
        ValueError: if age is not a whole number from 0 to 150.
    """
    if isinstance(age, bool) or not isinstance(age, Real) or not float(age).is_integer() or not 0 <= age <= 150:
        raise ValueError(f"templates.py: age must be a whole number of years from 0 to 150, got {age!r}")
    return _number_in_words(int(age))


@cache
def _number_in_words(number: int) -> str:
    from num2words import num2words  # here: the package must import quickly

    return num2words(number, lang="en").replace(" ", "-")


@cache
def _sentence_pattern() -> re.Pattern[str]:
    """Return the pattern of all sentences that `_sentence` can make."""

    def one_of(words: Iterable[str]) -> str:
        return f"(?:{'|'.join(map(re.escape, words))})"

    return re.compile(
        one_of(s.prompt_words for s in STRUCTURES)
        + rf"(?: of {one_of(SHAPE_WORDS.values())} shape)?"
        + rf"(?: in {one_of(VIEW_WORDS.values())} view)?"
        + f" {one_of(PHRASINGS)}"
        + rf"(?: at end of the {one_of(PHASE_WORDS.values())} cycle)?"
        + rf"(?: of a (?:[a-z-]+-year-old {one_of([*SEX_WORDS.values(), 'patient'])}|{one_of(SEX_WORDS.values())}))?"
        + rf"(?: with {one_of(QUALITY_WORDS.values())} image quality)?"
        + rf"(?: in a {one_of(DOMAIN_WORDS.values())} image)?\."
    )


def _check_level(level: Any) -> None:
    if level not in LEVELS:
        raise ValueError(
            f"templates.py: prompt level must be one of {', '.join(LEVELS)}, got {level!r}; set prompt_level"
        )


def _sentence(structure: Structure, words: Mapping[str, str], place: str, domain: str | None) -> str:
    """Write the sentence with any set of attributes in `words`, and the domain if there is one."""
    text = structure.prompt_words
    if "shape" in words:
        text += f" of {words['shape']} shape"
    if "view" in words:
        text += f" in {words['view']} view"
    text += f" {place}"
    if "phase" in words:
        text += f" at end of the {words['phase']} cycle"
    if "age" in words:
        text += f" of a {words['age']}-year-old {words.get('sex', 'patient')}"
    elif "sex" in words:
        text += f" of a {words['sex']}"
    if "image_quality" in words:
        text += f" with {words['image_quality']} image quality"
    if domain is not None:
        text += f" in a {domain} image"
    return text + "."


def _attribute_word(name: str, attributes: Mapping[str, Any], structure: Structure) -> str | None:
    """Return the word that a prompt uses for this attribute; None if the item lacks it."""
    value = attributes.get(name)
    if name == "shape" and isinstance(value, Mapping):
        value = value.get(structure.name)
    elif name == "shape" and value is not None:
        raise ValueError(f"templates.py: shape must be a mapping of structure name to word, got {value!r}")
    if value is None or value == "":
        return None
    if name == "age":
        return age_in_words(value)
    tables = {
        "view": VIEW_WORDS,
        "phase": PHASE_WORDS,
        "sex": SEX_WORDS,
        "image_quality": QUALITY_WORDS,
        "shape": SHAPE_WORDS,
    }
    if value not in tables[name]:
        raise ValueError(
            f"templates.py: {name} must be one of {', '.join(tables[name])}, got {value!r}; correct the datalist"
        )
    return tables[name][value]
