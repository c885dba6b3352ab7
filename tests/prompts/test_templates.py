"""Test the eight levels word by word, and prompts with missing attributes."""

import pytest

from synboost_monai.prompts import ATTRIBUTES, LEVELS, Prompt, prompt_levels, prompt_text, structure_prompts
from synboost_monai.prompts.templates import age_in_words
from synboost_monai.structures import LEFT_ATRIUM, LEFT_VENTRICULAR_CAVITY, MYOCARDIUM

ITEM = {
    "image": "images/patient0001_2CH_ED.nii.gz",
    "view": "apical_two_chamber",
    "phase": "end_diastole",
    "sex": "female",
    "age": 40,
    "image_quality": "poor",
    "shape": {"left_ventricular_cavity": "oval", "myocardium": "circle"},
}

HEART = {
    "P0": "",
    "P1": "Left ventricular cavity of the heart.",
    "P2": "Left ventricular cavity in two-chamber view of the heart.",
    "P3": "Left ventricular cavity in two-chamber view of the heart at end of the diastole cycle.",
    "P4": "Left ventricular cavity in two-chamber view of the heart at end of the diastole cycle of a female.",
    "P5": "Left ventricular cavity in two-chamber view of the heart at end of the diastole cycle of a forty-year-old "
    "female.",
    "P6": "Left ventricular cavity in two-chamber view of the heart at end of the diastole cycle of a forty-year-old "
    "female with poor image quality.",
    "P7": "Left ventricular cavity of oval shape in two-chamber view of the heart at end of the diastole cycle of a "
    "forty-year-old female with poor image quality.",
}
SYNTHETIC_P6 = (
    "Left ventricular cavity of oval shape in two-chamber view of the heart at end of the diastole cycle of a "
    "forty-year-old female."
)


@pytest.mark.parametrize("level", LEVELS)
def test_real_prompt_has_the_published_words(level: str) -> None:
    assert prompt_text(LEFT_VENTRICULAR_CAVITY, level, ITEM) == Prompt(HEART[level], level)


@pytest.mark.parametrize("level", LEVELS)
def test_second_phrasing_names_the_ultrasound(level: str) -> None:
    prompt = prompt_text(LEFT_VENTRICULAR_CAVITY, level, ITEM, phrasing=1)
    assert prompt.text == HEART[level].replace("of the heart", "in the cardiac ultrasound")


@pytest.mark.parametrize("level", LEVELS[:6])
def test_synthetic_prompt_is_as_real_up_to_age(level: str) -> None:
    assert prompt_text(LEFT_VENTRICULAR_CAVITY, level, ITEM, is_synthetic=True) == Prompt(HEART[level], level)


@pytest.mark.parametrize("level", ["P6", "P7"])
def test_synthetic_prompt_ends_with_shape_at_p6(level: str) -> None:
    prompt = prompt_text(LEFT_VENTRICULAR_CAVITY, level, ITEM, is_synthetic=True)
    assert prompt == Prompt(SYNTHETIC_P6, "P6", ())


def test_four_chamber_end_systole_male_left_atrium() -> None:
    item = {"view": "apical_four_chamber", "phase": "end_systole", "sex": "male", "age": 73}
    assert prompt_text(LEFT_ATRIUM, "P5", item, phrasing=1).text == (
        "Left atrium cavity in four-chamber view in the cardiac ultrasound at end of the systole cycle of a "
        "seventy-three-year-old male."
    )


@pytest.mark.parametrize(
    ("absent", "level", "used", "missing"),
    [
        ({"view"}, "P7", "P1", ("view",)),
        ({"sex"}, "P3", "P3", ()),
        ({"sex"}, "P6", "P3", ("sex",)),
        ({"age", "image_quality"}, "P7", "P4", ("age", "image_quality")),
        ({"image_quality"}, "P7", "P5", ("image_quality",)),
        ({"shape"}, "P7", "P6", ("shape",)),
    ],
)
def test_missing_attribute_lowers_the_level_and_says_so(
    absent: set[str], level: str, used: str, missing: tuple[str, ...]
) -> None:
    item = {key: value for key, value in ITEM.items() if key not in absent}
    assert prompt_text(LEFT_VENTRICULAR_CAVITY, level, item) == Prompt(HEART[used], used, missing)


def test_empty_values_count_as_missing() -> None:
    assert prompt_text(MYOCARDIUM, "P4", {**ITEM, "sex": ""}).missing == ("sex",)
    assert prompt_text(MYOCARDIUM, "P5", {**ITEM, "age": None}).level == "P4"


def test_shape_belongs_to_the_structure() -> None:
    prompts = structure_prompts("P7", ITEM)
    assert [prompt.level for prompt in prompts] == ["P7", "P7", "P6"]  # the left atrium has no shape here
    assert prompts[1].text.startswith("Myocardium of circle shape in two-chamber view")
    assert prompts[2].missing == ("shape",)


@pytest.mark.parametrize(
    ("age", "words"), [(0, "zero"), (42, "forty-two"), (60.0, "sixty"), (101, "one-hundred-and-one")]
)
def test_age_in_words(age: int, words: str) -> None:
    assert age_in_words(age) == words


@pytest.mark.parametrize("age", [-1, 40.5, 200, True, "forty", float("nan")])
def test_impossible_age_is_refused(age: object) -> None:
    with pytest.raises(ValueError, match="age must be a whole number of years"):
        prompt_text(MYOCARDIUM, "P5", {**ITEM, "age": age})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"view": "2CH"}, "view must be one of apical_two_chamber, apical_four_chamber, got '2CH'"),
        ({"sex": "F"}, "sex must be one of male, female, got 'F'"),
        ({"image_quality": "Good"}, "image_quality must be one of good, medium, poor"),
        ({"shape": {"myocardium": "star"}}, "shape must be one of circle, triangle, oval, square, rectangle"),
        ({"shape": "oval"}, "shape must be a mapping"),
    ],
)
def test_value_without_words_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompt_text(MYOCARDIUM, "P7", {**ITEM, **change})


def test_unknown_level_and_phrasing_are_refused() -> None:
    with pytest.raises(ValueError, match="one of P0, P1, .*, got 'P8'; set prompt_level"):
        prompt_text(MYOCARDIUM, "P8", ITEM)
    with pytest.raises(ValueError, match="phrasing must be 0 .* or 1 .*, got 2"):
        prompt_text(MYOCARDIUM, "P1", ITEM, phrasing=2)


# ---- beyond the paper: attributes left out, the word for real and synthetic


@pytest.mark.parametrize(
    ("left_out", "text"),
    [
        ((), HEART["P7"]),
        (("sex",), HEART["P7"].replace("forty-year-old female", "forty-year-old patient")),
        (("age",), HEART["P7"].replace("forty-year-old ", "")),
        (("sex", "age"), HEART["P7"].replace(" of a forty-year-old female", "")),
        (("view",), HEART["P7"].replace(" in two-chamber view", "")),
        (("phase",), HEART["P7"].replace(" at end of the diastole cycle", "")),
        (("image_quality", "shape"), HEART["P5"]),
        (ATTRIBUTES, HEART["P1"]),
    ],
)
def test_attributes_left_out_lower_no_level_and_leave_a_sentence(left_out: tuple[str, ...], text: str) -> None:
    assert prompt_text(LEFT_VENTRICULAR_CAVITY, "P7", ITEM, left_out=left_out) == Prompt(text, "P7")


def test_what_is_left_out_and_what_is_missing_go_together() -> None:
    item = {key: value for key, value in ITEM.items() if key != "age"}
    prompt = prompt_text(LEFT_VENTRICULAR_CAVITY, "P6", item, left_out=("view",))
    text = "Left ventricular cavity of the heart at end of the diastole cycle of a female."
    assert prompt == Prompt(text, "P4", ("age",))


def test_unknown_attribute_to_leave_out_is_refused() -> None:
    with pytest.raises(ValueError, match="left_out must name attributes .view, .*, got quality"):
        prompt_text(MYOCARDIUM, "P1", ITEM, left_out=("quality",))


@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize(("is_synthetic", "word"), [(False, "real"), (True, "synthetic")])
def test_the_domain_word_ends_the_sentence(level: str, is_synthetic: bool, word: str) -> None:
    plain = prompt_text(LEFT_VENTRICULAR_CAVITY, level, ITEM, is_synthetic=is_synthetic)
    with_word = prompt_text(LEFT_VENTRICULAR_CAVITY, level, ITEM, is_synthetic=is_synthetic, domain_word=True)
    assert with_word.text == f"{plain.text[:-1]} in a {word} image." and with_word.level == plain.level


def test_the_domain_word_alone_is_all_of_p0() -> None:
    texts = [prompt_text(MYOCARDIUM, "P0", {}, is_synthetic=y, domain_word=True).text for y in (False, True)]
    assert texts == ["A real image.", "A synthetic image."]
    assert prompt_text(MYOCARDIUM, "P1", {}, domain_word=True).text == "Myocardium of the heart in a real image."


def test_levels_of_a_config() -> None:
    assert prompt_levels("P3") == ("P3",)
    assert prompt_levels("random") == LEVELS[1:]
    assert prompt_levels(["P6", "P1", "P6"]) == ("P6", "P1")
    for level in ("P8", "P1,P2", ["P1", "P9"], ["random"]):
        with pytest.raises(ValueError, match="prompt level must be one of P0, .*; set prompt_level"):
            prompt_levels(level)
    for level in ([], 3, None):
        with pytest.raises(ValueError, match="random or a list of levels, got .*; set prompt_level"):
            prompt_levels(level)  # type: ignore[arg-type]
