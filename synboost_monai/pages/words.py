"""Name models, strategies and amounts, and give strategies their colours, the same on every page and plot."""

from __future__ import annotations

from collections.abc import Sequence

from synboost_monai.records import PHASES, VIEWS

MODEL_TITLES = {"cris": "CRIS", "clipseg": "CLIPSeg"}
"""Model -> its name; other models keep their identifier."""
_STRATEGIES = {
    "real": ("real", "#0072b2", "o"),
    "synthetic": ("synthetic", "#e69f00", "s"),
    "synthetic_then_real": ("synthetic, then real", "#009e73", "^"),
    "real_and_synthetic": ("real and synthetic", "#cc79a7", "D"),
    "simulated": ("simulated", "#56b4e9", "X"),
    "simulated_then_real": ("simulated, then real", "#d55e00", "P"),
    "pseudo_labelled": ("real and pseudo-labelled", "#f0e442", "v"),
    "simulated_then_pseudo_labelled": ("simulated, then real and pseudo-labelled", "#000000", "*"),
    "synthetic_unlabelled": ("real and synthetic of all patients", "#44aa99", "p"),
    "simulated_then_synthetic_unlabelled": (
        "simulated, then real, pseudo-labelled and synthetic of all patients",
        "#117733",
        "h",
    ),
    "simulated_then_translated": ("simulated, then real, pseudo-labelled and simulated drawn anew", "#332288", "d"),
    "adapted": ("simulated, adapted", "#999999", "<"),
    "adapted_then_real": ("simulated, adapted, then real", "#882255", ">"),
}
STRATEGY_TITLES = {name: title for name, (title, _, _) in _STRATEGIES.items()}
"""Strategy -> its description in tables."""
STRATEGY_COLOURS = {name: colour for name, (_, colour, _) in _STRATEGIES.items()}
"""Strategy -> its colour in plots; colour-blind readers can tell them apart (Okabe and Ito 2008)."""
STRATEGY_MARKERS = {name: marker for name, (_, _, marker) in _STRATEGIES.items()}
"""Strategy -> its marker in plots."""
SHORT = {long: short for short, long in {**VIEWS, **PHASES}.items()}
"""View or phase -> short form."""
PHANTOM_WARNING = (
    "This study was run on a phantom: generated images that stand for real ones. Its numbers show that every part works; "
    "they say nothing about hearts, nor about what synthetic images are worth."
)
"""Warning at the top of the report when a study made its own data."""


def model_title(model: str) -> str:
    """Return the name of a model: `cris` -> CRIS."""
    return MODEL_TITLES.get(model, model)


def join(words: Sequence[str], last: str = "and") -> str:
    """Join words: `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else ""


def count(number: int, word: str) -> str:
    """Return a number with its noun: `1 image`, `2 images`, `2,345 images`."""
    plural = f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"
    return f"{number:,} {word if number == 1 else plural}"


def duration(seconds: float) -> str:
    """Return a time in words: `7 s`, `2.5 min`, `3.1 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def signed(value: float, digits: int = 2) -> str:
    """Return a number with its sign, and a true minus."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def css_colour(colour: Sequence[int]) -> str:
    """Return a colour, 0..255 each, as CSS writes it."""
    return f"rgb({', '.join(str(c) for c in colour)})"
