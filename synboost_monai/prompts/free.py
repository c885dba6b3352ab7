"""Prompts of somebody who may type anything."""

from __future__ import annotations

MAX_PROMPT_LETTERS = 300
"""More than the text encoder's 77 tokens can say."""
CONFIG_LETTERS = "$@%"
"""Letters by which MONAI's configs make code, a reference or a part of another file of a value."""


def checked_prompt(prompt: str) -> str:
    """A prompt without spaces around it, safe as a value of a config.

    Raises:
        ValueError: if it is too long, or has letters by which a config's value becomes code.
    """
    prompt = " ".join(prompt.split())
    if any(letter in prompt for letter in CONFIG_LETTERS) or not prompt.isprintable():
        raise ValueError(f"a prompt is plain words such as left atrium, without {' '.join(CONFIG_LETTERS)}")
    if len(prompt) > MAX_PROMPT_LETTERS:
        raise ValueError(f"a prompt has at most {MAX_PROMPT_LETTERS} letters, got {len(prompt)}; say it shorter")
    return prompt
