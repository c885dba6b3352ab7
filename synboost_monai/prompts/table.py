"""The one table of attributes that prompts can say; levels, sentences and wrong words are derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from synboost_monai.records import IMAGE_QUALITIES, SHAPES


@dataclass(frozen=True)
class Attribute:
    """One fact of an echocardiogram that a prompt can say besides the structure."""

    name: str
    """Key of a datalist item."""
    fragment: str
    """What the sentence says of it; {name} is its word, and the word of another attribute may stand there too."""
    place: int
    """Order of fragments in the sentence: below 0 before the words for the structure's place, above 0 behind them."""
    words: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Value -> word; empty: the value is a whole number, written in words."""
    wrong_steps: tuple[int, ...] = ()
    """Differences between a wrong number and the right one."""
    wrong_range: tuple[int, int] = (0, 0)
    """Limits of a wrong number."""
    on_synthetic: bool = True
    """Whether prompts of synthetic images say it."""
    of_structure: bool = False
    """Whether each structure has its own value: {structure's name: value} in a datalist item."""
    said_by: str = ""
    """Attribute whose fragment says this one too, in place of its own fragment."""
    unknown: str = ""
    """Its word in that fragment if it is not known."""


TABLE = (
    Attribute(
        "view", " in {view} view", -1, {"apical_two_chamber": "two-chamber", "apical_four_chamber": "four-chamber"}
    ),
    Attribute("phase", " at end of the {phase} cycle", 1, {"end_diastole": "diastole", "end_systole": "systole"}),
    Attribute("sex", " of a {sex}", 2, {"male": "male", "female": "female"}, said_by="age", unknown="patient"),
    Attribute("age", " of a {age}-year-old {sex}", 2, wrong_steps=(-40, -20, 20, 40), wrong_range=(18, 100)),
    Attribute(
        "image_quality", " with {image_quality} image quality", 3, {q: q for q in IMAGE_QUALITIES}, on_synthetic=False
    ),
    Attribute("shape", " of {shape} shape", -2, {shape: shape for shape in SHAPES}, of_structure=True),
)
"""Attributes in the order in which the levels P2, P3, ... add them."""
ATTRIBUTE = {attribute.name: attribute for attribute in TABLE}
"""Name -> attribute."""
ATTRIBUTES = tuple(ATTRIBUTE)
"""Names of the attributes, in the order in which the levels of real data add them."""
SYNTHETIC_ATTRIBUTES = tuple(a.name for a in TABLE if a.on_synthetic)
"""The same for synthetic data."""
IMAGE_ATTRIBUTES = tuple(a.name for a in TABLE if not a.of_structure)
"""Attributes that are facts of the image as a whole."""

LEVELS = tuple(f"P{number}" for number in range(2 + len(ATTRIBUTES)))
"""All levels: P0 is empty, P1 names the structure, and each further level says one attribute more."""
SYNTHETIC_LEVELS = LEVELS[: 2 + len(SYNTHETIC_ATTRIBUTES)]
"""Levels that prompts of synthetic images can have."""
DOMAIN_WORDS = {False: "real", True: "synthetic"}
"""`is_synthetic` of a datalist item -> word in a prompt."""


def attributes_of(level: str, is_synthetic: bool) -> tuple[str, ...]:
    """Return the attributes that a level asks for, in the order of the levels."""
    order = SYNTHETIC_ATTRIBUTES if is_synthetic else ATTRIBUTES
    return order[: max(LEVELS.index(level) - 1, 0)]  # P0 and P1 need no attribute
