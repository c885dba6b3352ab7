"""Check what a viewer asks of the MONAI Label server against an allow-list of routes, of their queries and of their bodies.

MONAI Label puts values of a request into a bundle's config, whose parser runs what begins with `$`, joins names to folders, and offers
much that annotating never needs: archives to unpack, weights to replace, a proxy. Here everything is refused that the requests of
3D Slicer's and OHIF's plug-ins do not need (`ROUTES` lists what passes), and what passes is written anew from the checked values, so that
MONAI Label cannot read it in another way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from synboost_monai.door import Refused
from synboost_monai.files import CLIP_SUFFIXES, IMAGE_SUFFIXES, NIFTI_SUFFIXES
from synboost_monai.prompts.free import CONFIG_LETTERS, checked_prompt
from synboost_monai.prompts.understanding import understand_if_any
from synboost_monai.serving.label.forms import File, read_form, read_json, write_form, write_json

MAX_TEXT_BYTES = 1 << 20
"""Most bytes of a body without a file."""
MAX_FILE_BYTES = 64 << 20
"""Most bytes of a body with a file: one image or label map of two dimensions is far smaller."""
UPLOAD_SUFFIXES = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix not in (".mhd", *CLIP_SUFFIXES))
"""Suffixes of images that may come in; the header .mhd names another file, and MONAI Label shows no clips."""
LABEL_SUFFIXES = (*NIFTI_SUFFIXES, ".mha", ".png")
"""Suffixes of label maps that a training can read."""
RESULT_SUFFIXES = (".nrrd", ".seg.nrrd", ".nii.gz", ".nii", ".mha", ".png")
"""Suffixes of the formats in which a label map may be sent."""
RESULT_TYPES = ("uint8", "uint16", "int16", "int32", "float32")
"""Pixel types in which a label map may be sent."""

Check = Callable[[Any, "Rules"], Any]
"""Function that returns a value as MONAI Label gets it, or raises ValueError with what was expected."""


@dataclass(frozen=True)
class Rules:
    """Hold the facts of a server that the allow-list needs."""

    models: frozenset[str]
    """Names of the served bundles."""
    studies_dir: Path
    """Folder of the images."""
    image_path: Callable[[str], str]
    """Name of an image -> its file in the datastore; empty if there is no such image."""


@dataclass(frozen=True)
class Route:
    """Hold one kind of request that passes."""

    method: str
    path: str
    """Path in MONAI Label; `{model}` and `{name}` stand for one word. A slash at the end may be left out."""
    query: Mapping[str, Check] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    """Names that the query must have."""
    keys: Mapping[str, Check] | None = None
    """Keys of the body's JSON, or of its form's field `params`; None if there is no body."""
    file: tuple[str, tuple[str, ...]] | None = None
    """Field of the file in the form, and the suffixes it may have."""
    is_form: bool = False
    keys_of_each_model: bool = False
    """Whether the JSON holds such keys for each model, under its name."""
    fixed: tuple[tuple[str, str], ...] = ()
    """Part of the query that is always the same."""

    @property
    def max_bytes(self) -> int:
        """Return the largest allowed size of its body, in bytes."""
        return 0 if self.keys is None else MAX_FILE_BYTES if self.file else MAX_TEXT_BYTES


# ---- checks of values


def plain_name(value: Any, rules: Rules | None = None) -> str:
    """Check a name of letters, digits, `.`, `_` and `-` that begins with a letter or a digit; decoding it never makes a path."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value) or ".." in value:
        raise ValueError("expected a plain name of letters, digits, . _ and -, at most 100")
    return value


def image_name(value: Any, rules: Rules) -> str:
    """Check the name of an image of the datastore."""
    text = _text(value, rules)
    if not text or text[0] == "." or re.search(r"[/\\]", text) or unquote(text) != text:
        raise ValueError(
            "expected the plain name of an image of the datastore, as /datastore/ lists it, without a path"
        )
    if not rules.image_path(text):
        raise Refused(404, f"there is no image {text!r} in the datastore")
    return text


def new_image_name(value: Any, rules: Rules) -> str:
    """Check a plain name that no file in the folder of images has, whatever its suffix."""
    name = plain_name(value)
    taken = [suffix for suffix in IMAGE_SUFFIXES if os.path.lexists(rules.studies_dir / f"{name}{suffix}")]
    if taken or rules.image_path(name):
        raise Refused(409, f"there is an image {name!r} in the datastore already; give the new one another name")
    return name


def _text(value: Any, rules: Rules) -> str:
    if not isinstance(value, str) or len(value) > 255 or not value.isprintable() or "\ufffd" in value:
        raise ValueError("expected text of at most 255 printable letters")
    return value


def _words(value: Any, rules: Rules) -> str:
    if not isinstance(value, str):
        raise ValueError("expected words")
    understand_if_any(value)
    return checked_prompt(value)


def _model(value: Any, rules: Rules) -> str:
    if value not in rules.models:
        raise ValueError(f"expected one of the models served: {', '.join(sorted(rules.models))}")
    return str(value)


def _flag(value: Any, rules: Rules) -> Any:
    if isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false")):
        return value
    raise ValueError("expected true or false")


def _one_of(*known: str, unset: bool = False) -> Check:
    """Return a check for one of some words; with `unset` an empty word passes too, and is left out."""

    def check(value: Any, rules: Rules) -> str | None:
        if unset and value == "":
            return None
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"expected {', '.join(known)}" if known else "expected nothing")
        return value

    return check


def _number(lowest: float, highest: float, *, is_whole: bool = False) -> Check:
    def check(value: Any, rules: Rules) -> Any:
        wanted = int if is_whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted) or not lowest <= value <= highest:
            raise ValueError(f"expected a {'whole ' if is_whole else ''}number from {lowest:g} to {highest:g}")
        return value

    return check


def _lines(value: Any, rules: Rules) -> str:
    if not re.fullmatch("[1-9][0-9]{0,3}", str(value)):
        raise ValueError("expected a number of lines from 1 to 9999")
    return str(value)


def _list_of(keys: Mapping[str, Check]) -> Check:
    """Return a check for a list of mappings that have only these keys."""

    def check(value: Any, rules: Rules) -> list[dict[str, Any]]:
        if not isinstance(value, list) or len(value) > 100:
            raise ValueError("expected a list of at most 100")
        return [_checked(item, keys, rules) for item in value]

    return check


# ---- the allow-list

_CLIENT: dict[str, Check] = {"client_id": _text}
_IMAGE: dict[str, Check] = {"image": image_name}
_LABEL: dict[str, Check] = {"label": image_name, "tag": plain_name}
_STATUS: dict[str, Check] = {"all": _flag, "check_if_running": _flag}
_INFER: dict[str, Check] = {
    **_CLIENT,
    "prompt": _words,
    "result_extension": _one_of(*RESULT_SUFFIXES),
    "result_dtype": _one_of(*RESULT_TYPES),
    "result_compress": _flag,
    "restore_label_idx": _flag,
    "model_filename": _one_of("model.pt"),
}
_TRAIN: dict[str, Check] = {
    **_CLIENT,
    "max_epochs": _number(1, 100_000, is_whole=True),
    "val_split": _number(-1, 0.9),
    "pretrained": _flag,
    "multi_gpu": _flag,
    "gpus": _one_of("all"),
    "model_filename": _one_of("model.pt"),
    # what the stock app offers and a viewer sends back: a place for a report, the name of the run
    "tracking": _one_of("None", "none", unset=True),
    "tracking_uri": _one_of(unset=True),
    "tracking_experiment_name": _one_of(unset=True),
    "run_id": _one_of("run", unset=True),
}
_CHOOSE: dict[str, Check] = {**_CLIENT, "max_seconds": _number(0, 86_400)}
_SAVE: dict[str, Check] = {
    **_CLIENT,
    "model": lambda value, rules: _model(value, rules) if value else "",
    "label_info": _list_of({"name": _text, "idx": _number(0, 255, is_whole=True)}),
}

ROUTES = (
    Route("GET", "/info/"),
    Route(
        "POST",
        "/infer/{model}",
        {**_IMAGE, "output": _one_of("image", "json", "all")},
        ("image",),
        _INFER,
        is_form=True,
    ),
    Route("POST", "/activelearning/{name}", keys=_CHOOSE),
    Route("GET", "/train/", _STATUS),
    Route("POST", "/train/", {"run_sync": _flag}, keys=_TRAIN, keys_of_each_model=True),
    Route("POST", "/train/{model}", {"run_sync": _flag, "enqueue": _flag}, keys=_TRAIN),
    Route("DELETE", "/train/"),
    Route("GET", "/scoring/", _STATUS),
    Route("POST", "/scoring/{name}", {"run_sync": _flag}, keys=_CHOOSE),
    Route("DELETE", "/scoring/"),
    Route("GET", "/datastore/", {"output": _one_of("all", "stats")}),
    Route("GET", "/datastore/image", _IMAGE, ("image",)),
    Route("HEAD", "/datastore/image", _IMAGE, ("image",)),
    Route("GET", "/datastore/image/info", _IMAGE, ("image",)),
    Route("GET", "/datastore/label", _LABEL, ("label", "tag")),
    Route("GET", "/datastore/label/info", _LABEL, ("label", "tag")),
    Route(
        "PUT",
        "/datastore/label",
        {**_IMAGE, "tag": plain_name},
        ("image",),
        _SAVE,
        ("label", LABEL_SUFFIXES),
        is_form=True,
    ),
    *(
        Route("PUT", path, {"image": new_image_name}, ("image",), _CLIENT, ("file", UPLOAD_SUFFIXES), is_form=True)
        for path in ("/datastore/", "/datastore/image")
    ),
    Route("GET", "/logs/", {"lines": _lines}, fixed=(("html", "false"), ("text", "true"))),
)
"""All kinds of requests that pass."""


def find_route(method: str, path: str, rules: Rules) -> tuple[Route, str]:
    """Return the route of a request, and the path as MONAI Label gets it.

    Raises:
        Refused: 404 if no route has this path, 405 if no route with this path has this method.
    """
    methods = []
    for route in ROUTES:
        word = _word(route.path, path)
        if word is None or ("{model}" in route.path and word not in rules.models):
            continue
        if route.method == method:
            return route, re.sub(r"\{\w+\}", word, route.path)
        methods.append(route.method)
    if methods:
        raise Refused(405, f"{method} of this path is not served, only {', '.join(sorted({*methods}))}")
    raise Refused(
        404, f"annotating needs no such path, so it is not served (models: {', '.join(sorted(rules.models))})"
    )


def checked_query(query: bytes, route: Route, rules: Rules) -> bytes:
    """Check that a query holds only known names, each once, and write it anew.

    Raises:
        Refused: if a name is unknown, repeated or missing, or a value is not allowed.
    """
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query), max_num_fields=16)
    except (ValueError, UnicodeDecodeError):
        raise Refused(400, "the query cannot be read") from None
    if len({name for name, _ in pairs}) < len(pairs):
        raise Refused(400, "a name of the query is there twice")
    values = dict(pairs)
    if missing := [name for name in route.needs if not values.get(name)]:
        raise Refused(400, f"the query must name the {missing[0]}")
    return urlencode({**_checked(values, route.query, rules, "query"), **dict(route.fixed)}).encode()


def checked_body(content_type: str, body: bytes, route: Route, rules: Rules) -> tuple[str, bytes]:
    """Check that a body holds only allowed keys and values, and at most one file of an allowed kind, and write it anew.

    Args:
        content_type: header of the request.
        body: the whole body.
        route: of the request.
        rules: of the server.
    Returns:
        content type and body as MONAI Label gets them.
    Raises:
        Refused: if the body holds anything else.
    """
    if not body and not route.is_form:
        return "", b""
    if not route.is_form:
        return write_json(_checked_json(read_json(content_type, body), route, rules))
    fields, files = read_form(content_type, body)
    wanted = {route.file[0]} if route.file else set()
    if set(fields) - {"params"} or set(files) - wanted:
        other = sorted((set(fields) - {"params"}) | (set(files) - wanted))[0]
        raise Refused(400, f"the form has a field {other[:40]!r}; this request may have params{_and(wanted)}")
    if wanted - set(files):
        raise Refused(400, f"the form must have the file {route.file[0]!r}")  # type: ignore[index]
    params = read_json("application/json", fields.get("params", "").encode() or b"{}")
    new_files = {name: _plain_file(file, route.file[1]) for name, file in files.items()}  # type: ignore[index]
    return write_form({"params": write_json(_checked_json(params, route, rules))[1].decode()}, new_files)


# ---- helpers


def _word(pattern: str, path: str) -> str | None:
    """Return the word of a path for the pattern's one variable, empty if it has none; None if the path does not fit."""
    parts, wanted = path.removesuffix("/").split("/"), pattern.removesuffix("/").split("/")
    if len(parts) != len(wanted):
        return None
    word = ""
    for part, expected in zip(parts, wanted):
        if expected.startswith("{"):
            try:
                word = plain_name(part)
            except ValueError:
                return None
        elif part != expected:
            return None
    return word


def _checked_json(value: Any, route: Route, rules: Rules) -> dict[str, Any]:
    """Check that every key in the JSON of a body is allowed here."""
    keys = route.keys or {}
    if not route.keys_of_each_model:
        return _checked(value, keys, rules)

    def of_each(inner: Any, rules: Rules) -> dict[str, Any]:
        return _checked(inner, keys, rules)

    return _checked(value, {**dict.fromkeys(rules.models, of_each), **_CLIENT}, rules)


def _checked(value: Any, keys: Mapping[str, Check], rules: Rules, where: str = "request") -> dict[str, Any]:
    """Check that a mapping has only these keys, and drop the values that are to be left out."""
    if not isinstance(value, Mapping):
        raise Refused(400, f"expected a mapping of names and values, got {type(value).__name__}")
    checked = {}
    for key, inner in value.items():
        if key not in keys:
            known = ", ".join(sorted(keys)) or "none"
            raise Refused(400, f"the {where} has a key {key[:40]!r}, which is not allowed here (allowed: {known})")
        if isinstance(inner, str) and inner.lstrip()[:1] in tuple(CONFIG_LETTERS):
            raise Refused(400, f"{key} begins with {inner.lstrip()[:1]}, which a config takes for code")
        try:
            new = keys[key](inner, rules)
        except ValueError as error:
            raise Refused(400, f"{key}: {error}") from None
        if new is not None:
            checked[key] = new
    return checked


def _plain_file(file: File, suffixes: Sequence[str]) -> File:
    """Rename a file so that only its suffix is the sender's; MONAI Label takes the suffix from the name."""
    name = file.name.lower()
    suffix = next((suffix for suffix in suffixes if name.endswith(suffix)), None)
    if suffix is None:
        raise Refused(415, f"a file may be {', '.join(suffixes)}; in 3D Slicer set File Extension to .nii.gz")
    if not file.content:
        raise Refused(400, "the file is empty")
    return File(f"upload{suffix}", file.content)


def _and(names: set[str]) -> str:
    return "".join(f" and {name}" for name in sorted(names))
