"""Test the table of attributes and what is derived from it."""

from __future__ import annotations

import re
from dataclasses import fields
from itertools import product

from synboost_monai.predictor import ATTRIBUTES as PREDICTOR_ATTRIBUTES
from synboost_monai.prompts import structure_prompts
from synboost_monai.prompts.table import (
    ATTRIBUTE,
    ATTRIBUTES,
    IMAGE_ATTRIBUTES,
    LEVELS,
    SYNTHETIC_ATTRIBUTES,
    SYNTHETIC_LEVELS,
    TABLE,
    attributes_of,
)
from synboost_monai.prompts.templates import is_sentence
from synboost_monai.prompts.variations import CHANGEABLE, wrong_values
from synboost_monai.records import IMAGE_QUALITIES, PHASES, SHAPES, VIEWS, EchoRecord
from synboost_monai.structures import STRUCTURES
from synboost_monai.study.grid import segmenters_of
from synboost_monai.synthesis.plan import CARRIED_ATTRIBUTES


def known_values(name: str) -> list:
    """Return values of an attribute that the table knows."""
    return list(ATTRIBUTE[name].words) or [30, 64]


def test_levels_are_those_of_the_paper() -> None:
    assert LEVELS == ("P0", "P1", "P2", "P3", "P4", "P5", "P6", "P7")
    assert SYNTHETIC_LEVELS == LEVELS[:-1]
    assert [attributes_of(level, False)[-1:] for level in LEVELS[1:]] == [(), *((name,) for name in ATTRIBUTES)]
    assert ATTRIBUTES == ("view", "phase", "sex", "age", "image_quality", "shape")
    assert SYNTHETIC_ATTRIBUTES == ("view", "phase", "sex", "age", "shape")


def test_words_are_those_that_records_can_have() -> None:
    assert set(ATTRIBUTES) <= {field.name for field in fields(EchoRecord)}
    known = {"view": VIEWS.values(), "phase": PHASES.values(), "image_quality": IMAGE_QUALITIES, "shape": SHAPES}
    for name, values in known.items():
        assert list(ATTRIBUTE[name].words) == list(values)


def test_every_fragment_says_its_own_attribute_and_no_unknown_one() -> None:
    for row in TABLE:
        holes = set(re.findall(r"\{(\w+)\}", row.fragment))
        assert row.name in holes and holes <= {row.name, *(a.name for a in TABLE if a.said_by == row.name)}


def test_every_sentence_is_one_and_half_a_sentence_is_not() -> None:
    for values in product(*(known_values(name)[:2] for name in ATTRIBUTES)):
        item = dict(zip(ATTRIBUTES, values)) | {"shape": dict.fromkeys((s.name for s in STRUCTURES), values[-1])}
        for prompt in structure_prompts(LEVELS[-1], item):
            assert is_sentence(prompt.text)
    assert not is_sentence("Myocardium of the heart of a patient.")
    assert not is_sentence("Myocardium of the heart of a female of a thirty-year-old female.")
    assert not is_sentence("Myocardium in two-chamber view.")


def test_wrong_values_are_the_others_that_the_table_knows() -> None:
    for name in ATTRIBUTES:
        for value in known_values(name):
            wrong = wrong_values(name, value)
            assert value not in wrong
            if ATTRIBUTE[name].words:
                assert {value, *wrong} == set(ATTRIBUTE[name].words)
    assert CHANGEABLE[2:-1] == ATTRIBUTES


def test_other_rooms_take_their_attributes_and_levels_from_the_table() -> None:
    assert PREDICTOR_ATTRIBUTES == CARRIED_ATTRIBUTES == IMAGE_ATTRIBUTES
    axes = {"models": ["cris"], "frozen": [False], "patients": ["all"], "folds": [None], "seeds": [0]}
    strategies = ["synthetic", "synthetic_then_real"]
    grid = list(segmenters_of({**axes, "strategies": strategies, "prompts": LEVELS}))
    found = {strategy: {s.prompt for s in grid if s.strategy == strategy} for strategy in strategies}
    assert found == {"synthetic": set(SYNTHETIC_LEVELS), "synthetic_then_real": set(LEVELS)}
