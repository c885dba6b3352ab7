"""Test the table of structures and what is derived from it."""

from __future__ import annotations

from dataclasses import fields

from synboost_monai.evaluation.quality_images import TISSUES
from synboost_monai.networks.semantic_diffusion_unet import SemanticDiffusionSettings
from synboost_monai.networks.text import default_input_ids
from synboost_monai.prompts import PromptTokenizer, structure_prompts
from synboost_monai.prompts.variations import ABSENT_STRUCTURES
from synboost_monai.prompts.vocabulary import NUM_STRUCTURES_IN_WORDS, OTHER_STRUCTURES
from synboost_monai.structures import (
    CLASS_NAMES,
    NUM_CLASSES,
    NUM_SECTOR_CLASSES,
    SECTOR_CLASS_NAMES,
    SECTOR_INDEX_OF_CLASS,
    STRUCTURES,
    Structure,
)


def test_every_cell_of_the_table_is_filled_and_names_one_structure() -> None:
    for field in fields(Structure):
        values = [getattr(structure, field.name) for structure in STRUCTURES]
        assert all(values), field.name
        assert field.name == "tissue" or len(set(values)) == len(values), field.name
    assert [structure.class_index for structure in STRUCTURES] == list(range(1, NUM_CLASSES))


def test_token_ids_are_those_of_the_prompts() -> None:
    texts = [prompt.text for prompt in structure_prompts("P1", {})]
    assert [tuple(PromptTokenizer().encode(text)) for text in texts] == [s.token_ids for s in STRUCTURES]
    ids = default_input_ids()
    assert ids.tolist() == [PromptTokenizer(context_length=ids.shape[-1]).rows(texts)]


def test_classes_are_those_of_camus_and_of_the_published_weights() -> None:
    assert CLASS_NAMES == {"0": "background", "1": "left_ventricular_cavity", "2": "myocardium", "3": "left_atrium"}
    assert list(SECTOR_CLASS_NAMES.items()) == [
        ("0", "outside the sector"),
        ("1", "left_ventricular_cavity"),
        ("2", "tissue in the sector"),
        ("3", "myocardium"),
        ("4", "left_atrium"),
    ]
    assert SECTOR_INDEX_OF_CLASS == {0: 2, 1: 1, 2: 3, 3: 4}
    assert SemanticDiffusionSettings().num_classes == NUM_SECTOR_CLASSES == 5
    assert [s.code[0] for s in STRUCTURES] == ["87878005", "49848007", "82471001"]


def test_every_class_has_one_tissue() -> None:
    assert sorted(index for indices in TISSUES.values() for index in indices) == list(range(NUM_CLASSES))
    assert TISSUES == {"blood": (1, 3), "myocardium": (2,), "other_tissue": (0,)}


def test_no_structure_is_also_one_that_nobody_taught() -> None:
    taught = {words.lower() for s in STRUCTURES for words in (s.words, s.prompt_words, *s.synonyms)}
    assert not taught & {other.name for other in OTHER_STRUCTURES}
    assert not {s.name for s in STRUCTURES} & {s.name for s in ABSENT_STRUCTURES}
    assert len(OTHER_STRUCTURES) == 51 and [s.prompt_words for s in ABSENT_STRUCTURES] == [
        "Right ventricular cavity",
        "Kidney",
    ]
    assert NUM_STRUCTURES_IN_WORDS == "three"
