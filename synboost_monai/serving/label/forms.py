"""Read the bodies of requests, JSON and forms, strictly, and write them anew, so that the next reader finds nothing else in them."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from synboost_monai.door import Refused

MAX_PARTS = 8
"""Most parts of a form; viewers send two."""

_BOUNDARY = re.compile(r'multipart/form-data\s*;\s*boundary=("?)([^\s";,]{1,70})\1\s*', re.IGNORECASE)
_NAME = re.compile(r';\s*name="([^"\r\n]{1,64})"')
_FILE_NAME = re.compile(r';\s*filename="([^"\r\n]*)"')


class File(NamedTuple):
    """Hold a file of a form."""

    name: str
    content: bytes


def read_json(content_type: str, body: bytes) -> Any:
    """Read the JSON of a body, without repeated keys, NaN or infinity.

    Raises:
        Refused: if the body holds anything else.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, f"expected a body of application/json, got {content_type[:60] or 'no content type'}")
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the JSON cannot be read ({str(error)[:100]})") from None


def write_json(value: Any) -> tuple[str, bytes]:
    """Return the content type and body of a JSON value."""
    return "application/json", json.dumps(value).encode()


def read_form(content_type: str, body: bytes) -> tuple[dict[str, str], dict[str, File]]:
    """Read the fields and files of a form, of either kind.

    Raises:
        Refused: if the body is anything else, or the form repeats a name or has too many parts.
    """
    if not body:
        return {}, {}
    if content_type.partition(";")[0].strip().lower() == "application/x-www-form-urlencoded":
        try:
            pairs = parse_qsl(
                body.decode("ascii"), keep_blank_values=True, strict_parsing=True, max_num_fields=MAX_PARTS
            )
        except ValueError:
            raise Refused(400, "the form cannot be read") from None
        if len(dict(pairs)) < len(pairs):
            raise Refused(400, "a name of the form is there twice")
        return dict(pairs), {}
    boundary = _BOUNDARY.fullmatch(content_type.strip())
    if not boundary:
        raise Refused(415, f"expected a form, got {content_type[:60] or 'no content type'}")
    return _read_parts(body, b"--" + boundary[2].encode())


def write_form(fields: Mapping[str, str], files: Mapping[str, File]) -> tuple[str, bytes]:
    """Return the content type and body of a form of several parts; names are plain words by now."""
    boundary = secrets.token_hex(16).encode()  # nobody can have put it into a file
    parts = [b'name="%s"\r\n\r\n%s' % (name.encode(), text.encode()) for name, text in fields.items()]
    for name, file in files.items():
        head = f'name="{name}"; filename="{file.name}"\r\nContent-Type: application/octet-stream'
        parts.append(head.encode() + b"\r\n\r\n" + file.content)
    body = b"".join(b"--%s\r\nContent-Disposition: form-data; %s\r\n" % (boundary, part) for part in parts)
    return f"multipart/form-data; boundary={boundary.decode()}", body + b"--%s--\r\n" % boundary


# ---- helpers


def _read_parts(body: bytes, delimiter: bytes) -> tuple[dict[str, str], dict[str, File]]:
    """Read the parts of a multipart body between its delimiters, which are at the beginnings of lines."""
    chunks = (b"\r\n" + body).split(b"\r\n" + delimiter, MAX_PARTS + 2)
    if len(chunks) > MAX_PARTS + 2 or len(chunks) < 2 or chunks[0] or chunks[-1].strip(b"\r\n") != b"--":
        raise Refused(400, f"the form cannot be read; expected at most {MAX_PARTS} parts and an end")
    fields: dict[str, str] = {}
    files: dict[str, File] = {}
    for chunk in chunks[1:-1]:
        head, end, content = chunk.partition(b"\r\n\r\n")
        try:
            lines = head.decode("utf-8").split("\r\n")[1:]
        except UnicodeDecodeError:
            lines = []
        described = [line for line in lines if line.lower().startswith("content-disposition:")]
        name = _NAME.findall(described[0]) if len(described) == 1 else []
        if not head.startswith(b"\r\n") or not end or len(name) != 1 or name[0] in fields or name[0] in files:
            raise Refused(400, "a part of the form has no name, or a name that is there twice")
        if "filename" in described[0].lower():
            file_name = _FILE_NAME.search(described[0])
            files[name[0]] = File(file_name[1] if file_name else "", content)
            continue
        try:
            fields[name[0]] = content.decode("utf-8")
        except UnicodeDecodeError:
            raise Refused(400, f"the field {name[0][:40]!r} of the form is no text") from None
    return fields, files


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")
