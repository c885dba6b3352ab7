"""Which structure a free prompt names: understood by its words, or refused with the reason.

A prompt's words, without articles, requests, view, phase, age and quality, are looked up as a set: "the LV, please" and "Ventricle,
left" are both {left, ventricle}. Only a set that stands in the tables whole is understood, so that a word too many or too few refuses
the prompt; one letter wrong is forgiven. What is refused is never guessed at.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from synboost_monai.prompts.free import checked_prompt
from synboost_monai.prompts.templates import is_sentence
from synboost_monai.prompts.vocabulary import (
    ABBREVIATIONS,
    CONTEXT_PATTERNS,
    FILLERS,
    JOINTS,
    NEGATIONS,
    NUM_STRUCTURES_IN_WORDS,
    OTHER_STRUCTURES,
    SLIPS_OF_LEFT,
    SPELLINGS,
)
from synboost_monai.structures import STRUCTURES, Structure

ALL_WORDS = frozenset({"all", "everything"})
"""Words that ask for all structures, as the empty prompt does, where nothing but fillers stands beside them."""
MIN_SLIP_LETTERS = 5
"""Letters that a word must have to be taken for a misspelt one, and for the right one of it."""

_CONTEXT = re.compile("|".join(CONTEXT_PATTERNS))
_PHRASES = {"epicardium to endocardium": "myocardium", "endocardium to epicardium": "myocardium"}
_PLACE = "_"  # stands where words were taken out, so that their neighbours do not become each other's
_HEART = frozenset({"heart"})


class PromptRefusedError(ValueError):
    """A prompt names no structure that the networks were taught.

    Args:
        reason: OTHER, SEVERAL, NEGATED, UNKNOWN or UNCLEAR.
        message: one line, for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


OTHER, SEVERAL, NEGATED, UNKNOWN, UNCLEAR = "other", "several", "negated", "unknown", "unclear"
"""Why a prompt is refused: a structure that nobody taught, more than one, a negation, a word that nobody knows, none named clearly."""


@dataclass(frozen=True)
class Understood:
    """A prompt that names one structure."""

    prompt: str
    """As it was given, without spaces around it."""
    structure: Structure
    """What it names."""
    slip: tuple[str, str] | None = None
    """A word that was misspelt, and how it was read."""

    @property
    def reading(self) -> str:
        """How it was read, for people."""
        slip = f" ({self.slip[0]} as {self.slip[1]})" if self.slip else ""
        return f"read as {self.structure.words}{slip}"

    def goes_itself(self, free_words: bool) -> bool:
        """Return whether a network is given the prompt itself, not the sentence that it was taught for the structure.

        Args:
            free_words: whether the network's text encoder knows more words than those of the paper's prompts. A prompt that is such a
                sentence goes itself in any case.
        """
        return free_words or is_sentence(self.prompt)


def understand(prompt: str) -> Understood:
    """Return the one structure that a prompt names.

    Args:
        prompt: anything that somebody typed.
    Raises:
        PromptRefusedError: (a ValueError) if it names none, several, or one that no network was taught; the message says what there is.
        ValueError: if it is too long or no plain words (`checked_prompt`).
    """
    text = checked_prompt(prompt)
    return Understood(text, *_read(text))


def understand_if_any(prompt: str) -> Understood | None:
    """Return what a prompt names; None if it asks for all structures, because it is empty or says so. Raises as `understand`."""
    text = checked_prompt(prompt)
    words = set(_words(text))
    is_for_all = bool(words & ALL_WORDS) and words <= FILLERS | ALL_WORDS | {NUM_STRUCTURES_IN_WORDS, "structures", ","}
    return None if not text or is_for_all else understand(text)


def _read(text: str) -> tuple[Structure, tuple[str, str] | None]:
    """The structure of a prompt, and the slip that was forgiven."""
    words = _words(text)
    if negation := next((word for word in words if word in NEGATIONS), None):
        raise _refused(NEGATED, text, f"it says {negation!r}, but a prompt can only name what to segment")
    words, slip = _without_slip(words, text)
    parts = [part for part in _parts(words) if _stems(part) - _HEART]
    found = [_structure(part) for part in parts]
    if len(set(found)) == 1 and found[0] is not None:
        return found[0], slip
    said = [_stems(part) for part in parts]
    if others := [name for stems in said if (name := _other(stems))]:
        raise _refused(OTHER, text, f"the {others[0]} is not among the structures that this network was taught")
    named = [s for s in STRUCTURES if any(known <= stems for stems in said for known in _sets(s))]
    if len(named) > 1:
        raise _refused(SEVERAL, text, f"it names {' and '.join(s.words for s in named)}; ask for one at a time")
    stems: frozenset[str] = frozenset().union(*said)
    likely = [s.words for s in STRUCTURES if stems and any(stems < known for known in _sets(s))]
    hint = f"; do you mean the {' or the '.join(likely)}" if likely else ""
    raise _refused(UNCLEAR, text, f"it names no single structure that this network was taught{hint}")


def _refused(reason: str, text: str, why: str) -> PromptRefusedError:
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    there_are = ", ".join(f"{s.words} ({s.synonyms[0]})" for s in STRUCTURES)
    return PromptRefusedError(reason, f"the prompt {shown!r} cannot be used: {why}; there are: {there_are}")


def _words(text: str) -> list[str]:
    """Words in small letters without accents; joints and commas (any other stop too) by themselves, what describes the image taken out."""
    text = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    text = re.sub(r"\b(?:[a-z]\.)+[a-z]\b\.?", lambda dotted: dotted[0].replace(".", "") + " ", text)  # l.v.
    text = re.sub(r"['’]s\b|\b[ld]['’]", "", text.replace("n't", "nt"))  # of the heart's muscle, of l'oreillette
    text = re.sub(r"[&+/;|]", " and ", text)
    text = re.sub(r"[.:=()\[\]!?]|\s[-–—]\s", " , ", text)
    text = " ".join(re.sub(r"[^\w,]|_", " ", text).replace(",", " , ").split())
    for phrase, meaning in _PHRASES.items():
        text = re.sub(rf"\b{phrase}\b", meaning, text)
    return _CONTEXT.sub(_PLACE, text).split()


def _without_slip(words: Sequence[str], text: str) -> tuple[list[str], tuple[str, str] | None]:
    """The words, one of them corrected if it alone is unknown and means one thing when a letter is changed."""
    known = _forms()
    unknown = list(dict.fromkeys(w for w in words if w not in known and w not in FILLERS | JOINTS | {_PLACE, ","}))
    if not unknown:
        return list(words), None
    read = _corrected(unknown[0]) if len(unknown) == 1 else None
    if read is None:
        listed = ", ".join(repr(word[:30]) for word in unknown[:5])
        raise _refused(
            UNKNOWN, text, f"nobody taught this network {'the word' if len(unknown) == 1 else 'the words'} {listed}"
        )
    return [read if word == unknown[0] else word for word in words], (unknown[0], read)


def _parts(words: Iterable[str]) -> list[list[str]]:
    """What stands between joints; a comma, or what is written like one, joins too where all its sides name something by themselves."""
    parts: list[list[list[str]]] = [[[]]]
    for word in words:
        if word in JOINTS:
            parts.append([[]])
        elif word == ",":
            parts[-1].append([])
        else:
            parts[-1][-1].append(word)
    split: list[list[str]] = []
    for sides in parts:
        named = [side for side in sides if _stems(side) - _HEART]
        is_list = len(named) > 1 and all(_structure(side) or _other(_stems(side)) for side in named)
        split += named if is_list else [[word for side in sides for word in side]]
    return split


def _structure(words: Sequence[str]) -> Structure | None:
    """The structure that these words name, all of them."""
    stems = _stems(words)
    if not _sides_stand_at_their_chamber(words):
        return None
    return _known().get(stems) or _known().get(stems - _HEART)


def _sides_stand_at_their_chamber(words: Sequence[str]) -> bool:
    """Whether each "left" stands beside the chamber that it belongs to: "the ventricle on the left" of an image is the right one."""
    stems = [_forms().get(word, ()) for word in words if _forms().get(word) != ("heart",)]
    for i, stem in enumerate(stems):
        if stem == ("left",):
            beside = {s for j in (i - 1, i + 1) if 0 <= j < len(stems) for s in stems[j]}
            if not beside & {"ventricle", "atrium"}:
                return False
    return not re.search(r"\bleft of\b", " ".join(words))


def _other(stems: frozenset[str]) -> str | None:
    """The structure that nobody taught and that these words name, with others or alone; of several the one of most words."""
    found = [(len(known), name) for known, name in _others().items() if known <= stems]
    return max(found)[1] if found else None


def _stems(words: Iterable[str]) -> frozenset[str]:
    """What is left of words when each has its first spelling and those that say nothing are gone."""
    return frozenset(stem for word in words for stem in _forms().get(word, ()))


@cache
def _forms() -> dict[str, tuple[str, ...]]:
    """Every word that means something for a structure -> its first spellings, several for an abbreviation."""
    forms: dict[str, tuple[str, ...]] = {word: (word,) for word in SPELLINGS}
    forms |= {form: (word,) for word, others in SPELLINGS.items() for form in others.split()}
    forms |= {word: tuple(meaning.split()) for word, meaning in ABBREVIATIONS.items()}
    for other in OTHER_STRUCTURES:
        for word in (w for phrase in (other.name, *other.synonyms) for w in phrase.lower().split()):
            if word not in FILLERS:
                forms.setdefault(word, (word,))
    return forms


@cache
def _sets(structure: Structure) -> frozenset[frozenset[str]]:
    """The sets of words that name a structure."""
    return frozenset(_stems(_words(p)) for p in (structure.words, structure.prompt_words, *structure.synonyms))


@cache
def _known() -> dict[frozenset[str], Structure]:
    """Set of words -> the structure that it names."""
    return {known: structure for structure in STRUCTURES for known in _sets(structure)}


@cache
def _others() -> dict[frozenset[str], str]:
    """Set of words -> the name of a structure that nobody taught."""
    return {_stems(_words(p)): o.name for o in reversed(OTHER_STRUCTURES) for p in (o.name, *o.synonyms)}


@cache
def _shortened() -> dict[str, set[str]]:
    """A word without one of its letters, or whole -> the words that it can come from."""
    table: dict[str, set[str]] = {}
    for word in _forms():
        if len(word) >= MIN_SLIP_LETTERS:
            for short in (word, *(word[:i] + word[i + 1 :] for i in range(len(word)))):
                table.setdefault(short, set()).add(word)
    return table


def _corrected(word: str) -> str | None:
    """The known word that differs from this one by one letter, or two that changed places; None unless all such mean the same."""
    if word in SLIPS_OF_LEFT:
        return "left"
    if len(word) < MIN_SLIP_LETTERS - 1:
        return None
    near = {w for s in (word, *(word[:i] + word[i + 1 :] for i in range(len(word)))) for w in _shortened().get(s, ())}
    close = sorted(known for known in near if _is_one_slip(word, known))
    return close[0] if len({_forms()[known] for known in close}) == 1 else None


def _is_one_slip(a: str, b: str) -> bool:
    """Whether one letter was left out, put in or changed, or two neighbours changed places."""
    if len(a) > len(b):
        a, b = b, a
    start = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), len(a))
    if len(b) == len(a) + 1:
        return a[start:] == b[start + 1 :]
    is_swap = a[start : start + 2] == b[start : start + 2][::-1] and a[start + 2 :] == b[start + 2 :]
    return len(a) == len(b) and (a[start + 1 :] == b[start + 1 :] or is_swap)
