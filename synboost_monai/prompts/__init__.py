"""Turn attributes of an echocardiogram into prompts (P0..P7), and prompts into token ids."""

from synboost_monai.prompts.attributes import ask_shape, shape_of_mask
from synboost_monai.prompts.table import ATTRIBUTES, IMAGE_ATTRIBUTES, LEVELS, SYNTHETIC_LEVELS
from synboost_monai.prompts.templates import (
    NUM_PHRASINGS,
    RANDOM_LEVEL,
    Prompt,
    prompt_levels,
    prompt_text,
    structure_prompts,
)
from synboost_monai.prompts.tokenizer import PromptTokenizer

__all__ = [
    "ATTRIBUTES",
    "IMAGE_ATTRIBUTES",
    "LEVELS",
    "NUM_PHRASINGS",
    "RANDOM_LEVEL",
    "SYNTHETIC_LEVELS",
    "Prompt",
    "PromptTokenizer",
    "ask_shape",
    "prompt_levels",
    "prompt_text",
    "shape_of_mask",
    "structure_prompts",
]
