"""Hold the options that several verbs share, and make the fields of such a dataclass flags of a verb."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SegmenterOptions:
    """Options of everything that uses a segmenter.

    Args:
        bundle: bundle of a segmenter.
        checkpoint_path: its weights; by default the bundle's own.
    """

    bundle: str = "echo_cris"
    checkpoint_path: str | None = None


@dataclass(frozen=True)
class ServerOptions(SegmenterOptions):
    """Options of a web server, which serves this machine alone by default.

    Args:
        host: address to listen on; by default this machine alone is served. Any other address needs a token.
        token: token that clients need, part of the address that is printed; without a value a new one is made.
    """

    host: str = "127.0.0.1"
    token: str | bool | None = None


def flags_of(options: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that makes each field of a dataclass a flag of a verb that takes them as its parameter `options`.

    The text of a flag is that of the field in the docstring of the class, or of the class it inherits the field from.
    """
    fields = dataclasses.fields(options)

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def verb(*words: Any, **values: Any) -> None:
            given = {field.name: values.pop(field.name) for field in fields if field.name in values}
            function(*words, options=options(**given), **values)

        flags = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for f in fields
        ]
        signature = inspect.signature(function)
        parameters = [[p] if p.name != "options" else flags for p in signature.parameters.values()]
        verb.__signature__ = signature.replace(parameters=[p for some in parameters for p in some])  # type: ignore[attr-defined]
        texts = "\n".join(f"        {name}: {text}" for name, text in _texts(options).items())
        verb.__doc__ = (function.__doc__ or "").replace(f"        options: {options.__name__}.", texts)
        return verb

    return decorate


def _texts(options: type[Any]) -> dict[str, str]:
    """Return field -> its text in the `Args` of the docstrings, as indented for the docstring of a verb."""
    texts: dict[str, str] = {}
    for documented in reversed(options.__mro__[:-1]):
        arguments = inspect.cleandoc(documented.__doc__ or "").partition("Args:\n")[2].partition("\nRaises:")[0]
        name = ""
        for line in filter(None, arguments.splitlines()):
            if line.startswith("     "):
                texts[name] += f"\n        {line.removeprefix('    ')}"
            else:
                name, _, text = line.strip().partition(": ")
                texts[name] = text
    return texts
