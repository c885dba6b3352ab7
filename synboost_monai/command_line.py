"""Check the words of a command before fire reads them.

fire alone finds an unknown flag only after the verb has done its work, reads `a,b` or `00012` as something else than text, and takes
`--strict false` as true.
"""

from __future__ import annotations

import ast
import inspect
import keyword
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from synboost_monai.errors import did_you_mean

Verb = Callable[..., None]

_BARE = ("bool", "str | bool | None")
"""Types of parameters whose flag needs no value."""
_TYPES: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float)}
"""Type of a parameter -> types of the values that it takes."""
_OUTPUTS = ("output_dir", "out_dir", "output", "app_dir")
"""Parameters with the folder or file that a verb writes."""


def checked_arguments(argv: Sequence[str], verbs: Mapping[str, Verb]) -> list[str]:
    """Return a command as fire will read it: the verb, then flags that the verb knows, each with a Python literal of its type.

    Args:
        argv: words of the command line; the first is the verb.
        verbs: verb -> its function.
    Raises:
        ValueError: in one line, with the nearest word that exists.
    """
    name, words = argv[0].replace("_", "-"), list(argv[1:])
    if name not in verbs:
        raise ValueError(f"no such verb{did_you_mean(name, verbs)}; verbs: {', '.join(verbs)}")
    if {"-h", "--help"} & set(words):
        return [name, "--", "--help"]
    parameters = inspect.signature(verbs[name]).parameters.values()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    takes_more = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    kinds = {p.name: str(p.annotation) for p in named}
    positional, values = _sorted_out(words, kinds, takes_any)
    places = [p.name for p in named if p.kind is p.POSITIONAL_OR_KEYWORD]
    open_places = [place for place in places if place not in values]
    rest = positional[len(open_places) :]
    if rest and not takes_more:
        takes = " ".join(place.upper() for place in places) or "none"
        raise ValueError(f"unexpected word {rest[0]!r}; the words it takes: {takes}")
    values = dict(zip(open_places, positional)) | values
    missing = [p.name.upper() for p in named if p.name not in values and p.default is p.empty]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing; see `synboost {name} --help`")
    flags = [f"--{flag}={_read(flag, text, kinds.get(flag, 'text'))!r}" for flag, text in values.items()]
    return [name, *flags, *map(repr, rest)]


def written_to(argv: Sequence[str], verbs: Mapping[str, Verb]) -> str | None:
    """Return the folder or file that a command writes to, or None if its words do not say it."""
    try:
        words = checked_arguments(argv, verbs)[1:]
    except ValueError:
        return None
    values = {flag: value for flag, _, value in (word[2:].partition("=") for word in words)}
    return next((str(ast.literal_eval(values[name])) for name in _OUTPUTS if name in values), None)


def _sorted_out(words: list[str], kinds: Mapping[str, str], takes_any: bool) -> tuple[list[str], dict[str, str]]:
    """Return the words without a flag, and flag -> text of its value.

    Args:
        words: words after the verb.
        kinds: parameter -> its type.
        takes_any: the verb also takes flags that are none of its parameters.
    """
    positional: list[str] = []
    values: dict[str, str] = {}
    while words:
        word = words.pop(0)
        if not _is_flag(word):
            positional.append(word)
            continue
        flag, has_value, value = word.lstrip("-").partition("=")
        flag = parameter_of(flag)
        kind = kinds.get(flag, "any" if takes_any else "")
        if not has_value:
            is_next = words and not _is_flag(words[0]) and (kind != "bool" or _is_bool(words[0]))
            if is_next:
                value = words.pop(0)
            elif flag.startswith("no") and kinds.get(flag[2:]) == "bool":
                flag, kind, value = flag[2:], "bool", "false"
            elif kind in (*_BARE, "any"):
                value = "true"
            elif kind:
                raise ValueError(f"--{flag_of(flag)} needs a value")
        if not kind:
            takes = f"it takes {', '.join(f'--{flag_of(k)}' for k in kinds)}" if kinds else "it takes none"
            raise ValueError(f"unknown flag --{flag}{did_you_mean(flag, kinds)}; {takes}")
        values[flag] = value
    return positional, values


def parameter_of(flag: str) -> str:
    """Return the parameter of a flag: `from_` of --from, since a word of Python cannot be its name."""
    return f"{flag}_" if keyword.iskeyword(flag) else flag.replace("-", "_")


def flag_of(parameter: str) -> str:
    """Return the flag of a parameter, without its hyphens."""
    return parameter.removesuffix("_")


def _read(flag: str, text: str, kind: str) -> Any:
    """Return the value of a flag in the type of its parameter; text stays text, also `00012` and `1,2`."""
    if kind in _BARE and _is_bool(text):
        return text.lower() == "true"
    if kind.startswith(("str", "text")):
        return text
    from synboost_monai.bundle_run import literal

    value = literal(text)
    is_right = isinstance(value, _TYPES[kind.split(" ")[0]]) and isinstance(value, bool) == (kind == "bool")
    if not is_right and not (value is None and kind.endswith("None")):
        raise ValueError(f"--{flag} must be {kind.replace(' | None', '')}, got {text!r}")
    return value


def _is_bool(word: str) -> bool:
    return word.lower() in ("true", "false")


def _is_flag(word: str) -> bool:
    """Return whether a word of the command line is `--flag` or `-f`, not a value such as -3."""
    return word.startswith("--") and len(word) > 2 or (word.startswith("-") and word[1:2].isalpha())
