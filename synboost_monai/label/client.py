"""What a client of the server asks for, before any of it becomes part of a config.

MONAI Label puts values of a request (a prompt, a device) into the bundle's config, whose parser runs what begins with `$`. The server
listens to this machine alone, but a page in a browser on it can send requests too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from synboost_monai.prompts.free import CONFIG_LETTERS, checked_prompt

PROMPT_KEY = "prompt"
"""Option of a request: words that name one structure; empty: all three."""


def checked_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request none of whose values is code for MONAI's config parser; its prompt as `checked_prompt` leaves it.

    Raises:
        ValueError: if a value begins with one of `CONFIG_LETTERS`, or the prompt is no plain words.
    """
    checked = dict(request)
    prompt = checked.get(PROMPT_KEY)
    if prompt is not None:
        if not isinstance(prompt, str):
            raise ValueError(f"{PROMPT_KEY} must be words, got {type(prompt).__name__}")
        checked[PROMPT_KEY] = checked_prompt(prompt)
    for name, text in _texts(checked):
        if text.lstrip()[:1] in tuple(CONFIG_LETTERS):
            raise ValueError(
                f"{name} of the request begins with {text.lstrip()[:1]}, which a config takes for code; give a plain value"
            )
    return checked


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a request, keys and values, and the name of what it belongs to."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield "a key", str(key)
            yield from _texts(inner, name or str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner, name)
