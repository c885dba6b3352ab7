"""Prompts of an item as token ids."""

from __future__ import annotations

import pytest
import torch

from synboost_monai.labels import STRUCTURES
from synboost_monai.transforms.prompt_tokens import class_index_of_prompt, prompt_tokens


def test_tokens_fall_with_missing_attributes_and_follow_synthetic_templates() -> None:
    real = {"view": "apical_four_chamber", "phase": "end_diastole"}
    assert torch.equal(prompt_tokens(real, "P6", [0, 0, 0]), prompt_tokens(real, "P3", [0, 0, 0]))
    assert not torch.equal(prompt_tokens(real, "P3", [0, 0, 0]), prompt_tokens(real, "P3", [1, 0, 0]))
    whole = real | {"sex": "male", "age": 40, "shape": {s.name: "oval" for s in STRUCTURES}, "image_quality": "good"}
    assert not torch.equal(
        prompt_tokens(whole | {"is_synthetic": True}, "P6", [0, 0, 0]), prompt_tokens(whole, "P6", [0, 0, 0])
    )
    assert prompt_tokens(real, "P1", [0, 1, 0]).shape == (3, 77)


@pytest.mark.parametrize(
    ("prompt", "class_index"),
    [
        ("left atrium", 3),
        ("Myocardium of the heart.", 2),
        ("Left ventricular cavity", 1),
        ("the left ventricle", 1),
        ("heart", 1),
        ("myocardium and left atrium", 1),
    ],
)
def test_free_prompt_names_a_class(prompt: str, class_index: int) -> None:
    assert class_index_of_prompt(prompt) == class_index
