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
from operator import itemgetter
from typing import Any

from synboost_monai.prompts.table import ATTRIBUTE, ATTRIBUTES, DOMAIN_WORDS, LEVELS, TABLE, Attribute, attributes_of
from synboost_monai.structures import STRUCTURES, Structure

PHRASINGS = ("of the heart", "in the cardiac ultrasound")
"""Words for the structure's place, by index of phrasing."""
NUM_PHRASINGS = len(PHRASINGS)
"""Number of phrasings to draw from in training."""

RANDOM_LEVEL = "random"
"""Name for all levels that name the structure, P1 ... P7."""


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

    wanted = attributes_of(level, is_synthetic)
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


def structure_prompts(level: str, attributes: Mapping[str, Any]) -> tuple[Prompt, ...]:
    """Write one prompt for each structure, in their order: the S prompts of one image. Arguments as in `prompt_text`."""
    return tuple(prompt_text(structure, level, attributes) for structure in STRUCTURES)


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

    def fragment(of: Attribute) -> str:
        def hole(match: re.Match[str]) -> str:
            filled = ATTRIBUTE[match[1]]
            unknown = [filled.unknown] if filled is not of and filled.unknown else []
            return one_of([*filled.words.values(), *unknown]) if filled.words else "[a-z-]+"

        return re.sub(r"\{(\w+)\}", hole, of.fragment)

    def fragments(side: int) -> str:
        """Return the pattern of the fragments on one side of the phrasing, at most one at each place."""
        places = sorted({a.place for a in TABLE if a.place * side > 0})
        groups = ["|".join(fragment(a) for a in TABLE if a.place == p) for p in places]
        return "".join(f"(?:{group})?" for group in groups)

    domain = rf"(?: in a {one_of(DOMAIN_WORDS.values())} image)?"
    structures = one_of(s.prompt_words for s in STRUCTURES)
    return re.compile(rf"{structures}{fragments(-1)} {one_of(PHRASINGS)}{fragments(1)}{domain}\.")


def _check_level(level: Any) -> None:
    if level not in LEVELS:
        raise ValueError(
            f"templates.py: prompt level must be one of {', '.join(LEVELS)}, got {level!r}; set prompt_level"
        )


def _sentence(structure: Structure, words: Mapping[str, str], place: str, domain: str | None) -> str:
    """Write the sentence with any set of attributes in `words`, and the domain if there is one."""
    fillings = {a.name: words.get(a.name, a.unknown) for a in TABLE}
    said = [a for a in TABLE if a.name in words and a.said_by not in words]
    fragments = [(a.place, a.fragment.format_map(fillings)) for a in said]
    fragments.append((0, f" {place}"))
    end = "" if domain is None else f" in a {domain} image"
    return structure.prompt_words + "".join(text for _, text in sorted(fragments, key=itemgetter(0))) + end + "."


def _attribute_word(name: str, attributes: Mapping[str, Any], structure: Structure) -> str | None:
    """Return the word that a prompt uses for this attribute; None if the item lacks it."""
    attribute = ATTRIBUTE[name]
    value = attributes.get(name)
    if attribute.of_structure and isinstance(value, Mapping):
        value = value.get(structure.name)
    elif attribute.of_structure and value is not None:
        raise ValueError(f"templates.py: {name} must be a mapping of structure name to word, got {value!r}")
    if value is None or value == "":
        return None
    if not attribute.words:
        return age_in_words(value)
    if value not in attribute.words:
        raise ValueError(
            f"templates.py: {name} must be one of {', '.join(attribute.words)}, got {value!r}; correct the datalist"
        )
    return attribute.words[value]
