"""Check prompts that users may type freely."""

from __future__ import annotations

MAX_PROMPT_LETTERS = 300
"""Longest prompt, in letters: more than fit the text encoder's 77 tokens."""
CONFIG_LETTERS = "$@%"
"""Letters that turn a value of a MONAI config into code, a reference or a part of another file."""


def checked_prompt(prompt: str) -> str:
    """Return a prompt without spaces around it, safe as a value of a config.

    Raises:
        ValueError: if it is too long, or has letters that turn a config's value into code.
    """
    prompt = " ".join(prompt.split())
    if any(letter in prompt for letter in CONFIG_LETTERS) or not prompt.isprintable():
        raise ValueError(f"a prompt is plain words such as left atrium, without {' '.join(CONFIG_LETTERS)}")
    if len(prompt) > MAX_PROMPT_LETTERS:
        raise ValueError(f"a prompt has at most {MAX_PROMPT_LETTERS} letters, got {len(prompt)}; say it shorter")
    return prompt
