"""Test prompts that are wrong in one thing: the change, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest

from synboost_monai.prompts import LEVELS, prompt_text
from synboost_monai.prompts.table import ATTRIBUTE
from synboost_monai.prompts.variations import (
    ABSENT_STRUCTURES,
    LEFT_OUT,
    RIGHT,
    WRONG,
    PromptVariant,
    PromptVariations,
    wrong_values,
)
from synboost_monai.structures import LEFT_ATRIUM, MYOCARDIUM, STRUCTURES

ITEM: dict[str, Any] = {
    "view": "apical_two_chamber",
    "phase": "end_systole",
    "sex": "female",
    "age": 64,
    "image_quality": "poor",
    "shape": {"left_ventricular_cavity": "oval", "myocardium": "triangle", "left_atrium": "circle"},
}


def of(variants: list[PromptVariant], structure: str, attribute: str | None, change: str) -> list[PromptVariant]:
    return [v for v in variants if (v.structure, v.attribute, v.change) == (structure, attribute, change)]


def test_every_attribute_has_its_wrong_values_and_is_left_out_once() -> None:
    variants = PromptVariations("P7")(ITEM)
    counts = {"structure": 4, "view": 1, "phase": 1, "sex": 1, "age": 3, "image_quality": 2, "shape": 4}
    for structure in STRUCTURES:
        assert len(of(variants, structure.name, None, RIGHT)) == 1
        for attribute, count in counts.items():
            assert len(of(variants, structure.name, attribute, WRONG)) == count, attribute
            assert len(of(variants, structure.name, attribute, LEFT_OUT)) == 1, attribute
    assert len(variants) == 3 * (1 + 1 + sum(counts.values()) + len(counts))
    assert len({(v.structure, v.text) for v in variants}) == len(variants)


def test_the_right_prompt_is_the_one_of_an_evaluation_and_comes_first() -> None:
    for level in LEVELS[1:]:
        variants = PromptVariations(level)(ITEM)
        for structure in STRUCTURES:
            first = next(v for v in variants if v.structure == structure.name)
            assert first.change == RIGHT and first.text == prompt_text(structure, level, ITEM).text


@pytest.mark.parametrize(
    ("attribute", "wrong", "sentence"),
    [
        ("phrasing", "in the cardiac ultrasound", "Left atrium cavity in two-chamber view in the cardiac ultrasound."),
        ("structure", "myocardium", "Myocardium in two-chamber view of the heart."),
        ("structure", "kidney", "Kidney in two-chamber view of the heart."),
        ("structure", None, ""),
        ("view", "apical_four_chamber", "Left atrium cavity in four-chamber view of the heart."),
        ("view", None, "Left atrium cavity of the heart."),
    ],
)
def test_one_word_changes_and_no_other(attribute: str, wrong: str | None, sentence: str) -> None:
    found = [v for v in PromptVariations("P2")(ITEM) if v.structure == LEFT_ATRIUM.name]
    assert [v.text for v in found if (v.attribute, v.wrong) == (attribute, wrong)] == [sentence]


def test_a_wrong_structure_keeps_the_shape_of_the_right_one() -> None:
    variants = of(PromptVariations("P7")(ITEM), LEFT_ATRIUM.name, "structure", WRONG)
    assert {v.wrong for v in variants} == {
        "left_ventricular_cavity",
        "myocardium",
        *(s.name for s in ABSENT_STRUCTURES),
    }
    assert all("of circle shape in two-chamber view" in v.text for v in variants)


def test_wrong_shape_and_age_of_the_longest_prompt() -> None:
    variants = PromptVariations("P7")(ITEM)
    shapes = of(variants, MYOCARDIUM.name, "shape", WRONG)
    assert {(v.right, v.wrong) for v in shapes} == {("triangle", w) for w in ("circle", "oval", "square", "rectangle")}
    assert all(f"Myocardium of {v.wrong} shape in two-chamber view" in v.text for v in shapes)
    ages = of(variants, MYOCARDIUM.name, "age", WRONG)
    assert [(v.right, v.wrong) for v in ages] == [("64", "24"), ("64", "44"), ("64", "84")]
    assert "of a twenty-four-year-old female with poor" in ages[0].text


@pytest.mark.parametrize(("age", "wrong"), [(19, [39, 59]), (50, [30, 70, 90]), (78, [38, 58, 98]), (95, [55, 75])])
def test_wrong_ages_are_those_of_adults(age: int, wrong: list[int]) -> None:
    assert wrong_values("age", age) == wrong
    low, high = ATTRIBUTE["age"].wrong_range
    assert all(low <= a <= high for a in wrong)


def test_what_the_image_lacks_lowers_the_right_prompt_and_is_told() -> None:
    item = {"view": "apical_four_chamber", "phase": "end_diastole", "age": 50, "shape": {"myocardium": "oval"}}
    variations = PromptVariations("P7")
    variants = variations(item)
    assert {v.attribute for v in variants} == {None, "phrasing", "structure", "view", "phase"}
    right = of(variants, MYOCARDIUM.name, None, RIGHT)[0]
    assert right.text == prompt_text(MYOCARDIUM, "P3", item).text
    names = ("sex", "age", "image_quality", "shape")  # the age is known, but no prompt says it without the sex
    assert variations.untested(item) == {(s.name, name) for s in STRUCTURES for name in names}
    assert PromptVariations("P3").untested(item) == set() == variations.untested(ITEM)
    only_one = {**ITEM, "shape": {"myocardium": "oval"}}
    assert variations.untested(only_one) == {("left_ventricular_cavity", "shape"), ("left_atrium", "shape")}


def test_synthetic_images_have_their_own_sentences() -> None:
    item = {**ITEM, "is_synthetic": True}
    variations = PromptVariations("P6")
    attributes = {v.attribute for v in variations(item)}
    assert "shape" in attributes and "image_quality" not in attributes
    assert variations.untested(item) == set() == PromptVariations("P7").untested(item)


def test_domain_word_is_changed_where_prompts_have_one() -> None:
    variants = PromptVariations("P1", domain_word=True)(ITEM)
    found = [v for v in variants if v.structure == MYOCARDIUM.name]
    texts = {(v.attribute, v.change): v.text for v in found if v.attribute in (None, "domain")}
    assert texts == {
        (None, RIGHT): "Myocardium of the heart in a real image.",
        ("domain", WRONG): "Myocardium of the heart in a synthetic image.",
        ("domain", LEFT_OUT): "Myocardium of the heart.",
    }
    assert next(v.text for v in found if (v.attribute, v.change) == ("structure", LEFT_OUT)) == "A real image."
    assert "domain" not in {v.attribute for v in PromptVariations("P1")(ITEM)}


def test_level_may_be_random_and_must_name_a_structure() -> None:
    assert PromptVariations("random").highest_level == "P7"
    assert PromptVariations(["P1", "P3"]).highest_level == "P3"
    with pytest.raises(ValueError, match="P0 is the empty prompt, no word of it can be wrong; set prompt_level"):
        PromptVariations("P0")
    with pytest.raises(ValueError, match="prompt level must be one of"):
        PromptVariations("P9")
    with pytest.raises(ValueError, match="attribute must be one of view, phase"):
        wrong_values("colour", "red")
