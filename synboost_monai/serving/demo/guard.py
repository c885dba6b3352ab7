"""Guard gradio: one ASGI layer passes every request of the page on, or refuses it with a reason.

gradio serves far more than the page needs (it fetches addresses for whoever asks, keeps what any number of sessions send), and bounds
neither connections nor the total of uploads. Here the routes that a browser needs pass, and bodies, uploads and slots are counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.requests import ClientDisconnect

from synboost_monai.door import (
    App,
    Door,
    Message,
    Receive,
    Refused,
    Scope,
    Send,
    answer,
    check_headers,
    headers_of,
    refuse,
    refuse_websocket,
    replay,
    with_headers,
)

API = "/gradio_api"
MAX_REQUESTS = 48
"""Requests at a time, including those that a page keeps open to hear of its results."""
MAX_UPLOADS, MAX_DRAWN_UPLOADS = 2, 24
"""Uploads at a time: large ones, and those no larger than a drawing, of which the editor sends a handful at every stroke."""
MAX_UPLOAD_BYTES = 1 << 30
"""Largest upload."""
MAX_FOLDER_BYTES = 4 << 30
"""Most bytes of everything that is uploaded and written while the page is served."""
MAX_JSON_BYTES = 1 << 20
"""Largest body of a request that is not an upload."""
MAX_DRAWING_BYTES = 16 << 20
"""Largest drawn picture."""
PAUSE_SECONDS = 30.0
"""Longest wait for the next piece of a body."""
BODY_SECONDS = 900.0
"""Longest time for a whole body."""

_GET = re.compile(
    r"/|/(?:config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?"
    r"|/(?:assets|static|svelte)/[^?]*"
    rf"|{API}/(?:app_id|info|startup-events|theme\.css|login_check|user|queue/data|queue/status|upload_progress)/?"
    rf"|{API}/heartbeat/\w+|{API}/file=/.*"
)
_POST = {
    f"{API}/upload": MAX_UPLOAD_BYTES,
    f"{API}/component_server": MAX_DRAWING_BYTES,
    f"{API}/queue/join": MAX_JSON_BYTES,
    f"{API}/cancel": MAX_JSON_BYTES,
    f"{API}/reset": MAX_JSON_BYTES,
}
"""Path -> most bytes of its body."""
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),  # an address may hold the token
    (b"cross-origin-resource-policy", b"same-origin"),
)
_CHECKED_SECONDS = 2.0  # for this time the size of the folder counts as known


class Guard:
    """Refuse requests that do not come from the page itself, or that ask for more than it needs.

    Args:
        app: gradio's application.
        door: who may come in.
        folder: the session's folder with the uploads; a request may name only files in it.
    """

    def __init__(self, app: App, door: Door, folder: Path) -> None:
        self.app, self.door, self.folder = app, door, folder.resolve()
        self.cookie = f"synboost-demo-{abs(hash(sorted(door.hosts)[0])) % 10**6}"
        self._num_requests = self._announced = 0
        self._num_uploads = {False: 0, True: 0}  # small, large
        self._known_bytes, self._known_at = 0, -_CHECKED_SECONDS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await refuse_websocket(send)
        try:
            with self._slot():
                await self._pass_on(scope, receive, send)
        except Refused as refused:
            await refuse(send, refused, [(b"connection", b"close"), *_HEADERS])  # it may be about to send more
        except ClientDisconnect:
            pass  # the page was closed while it sent something: nobody waits for an answer

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, and hand it on."""
        headers = headers_of(scope)
        check_headers(headers, scope, self.door)
        method, path = scope["method"], scope["path"]
        if self._brings_token(scope):
            return await self._let_in(scope, send)
        if not self.door.knows(*self._cookies(headers), headers.get("authorization", "").removeprefix("Bearer ")):
            raise Refused(401, "this page asks for its token: open the address that `synboost demo` printed")
        if method in ("GET", "HEAD") and _GET.fullmatch(path):
            return await self.app(scope, receive, with_headers(send, _HEADERS))
        max_bytes = _POST.get(path.removesuffix("/"))
        if method != "POST" or max_bytes is None:
            raise Refused(404, "the page does not need this")
        length = _length(headers, max_bytes)
        self._check_folder(length)
        if path.startswith(f"{API}/upload"):
            with self._upload(length):
                return await self.app(scope, _bounded(receive, length), with_headers(send, _HEADERS))
        body = await _read(_bounded(receive, length))
        if headers.get("content-type", "").startswith("application/json"):
            self._check_json(body)
        elif not path.startswith(f"{API}/component_server"):
            raise Refused(415, "expected application/json")
        await self.app(scope, replay(body, receive), with_headers(send, _HEADERS))

    # ---- token

    def _brings_token(self, scope: Scope) -> bool:
        """Return whether an address holds the token; refuse a wrong one."""
        words = [value for key, value in _query(scope) if key == "token"]
        if not words or self.door.token is None or scope["method"] != "GET":
            return False
        if not self.door.knows(*words):
            raise Refused(401, "this is not the token that `synboost demo` printed")
        return True

    async def _let_in(self, scope: Scope, send: Send) -> None:
        """Keep the token in a cookie, and take it out of the address."""
        rest = urlencode([(key, value) for key, value in _query(scope) if key != "token"])
        to = f"/?{rest}" if rest else "/"
        cookie = f"{self.cookie}={self.door.token}; Path=/; HttpOnly; SameSite=Strict"
        await answer(send, 303, b"", [(b"location", to.encode()), (b"set-cookie", cookie.encode()), *_HEADERS])

    def _cookies(self, headers: dict[str, str]) -> list[str]:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return []
        return [] if found is None else [found.value]

    # ---- bounds

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Count a request while it is worked on; refuse it if there are too many."""
        if self._num_requests >= MAX_REQUESTS:
            raise Refused(503, "too many requests at a time; close other pages of this demo")
        self._num_requests += 1
        try:
            yield
        finally:
            self._num_requests -= 1

    @contextmanager
    def _upload(self, length: int) -> Iterator[None]:
        """Count an upload while it is taken, and its announced bytes as stored; refuse it if there are too many."""
        is_large = length > MAX_DRAWING_BYTES
        if self._num_uploads[is_large] >= (MAX_UPLOADS if is_large else MAX_DRAWN_UPLOADS):
            raise Refused(503, "too many uploads at a time; try again")
        self._num_uploads[is_large] += 1
        self._announced += length
        try:
            yield
        finally:
            self._num_uploads[is_large] -= 1
            self._announced -= length
            self._known_at = -_CHECKED_SECONDS

    def _check_folder(self, length: int) -> None:
        """Refuse to add to a folder that is full."""
        if time.monotonic() - self._known_at >= _CHECKED_SECONDS:
            self._known_bytes, self._known_at = _bytes_of(self.folder), time.monotonic()
        if self._known_bytes + self._announced + length > MAX_FOLDER_BYTES:
            raise Refused(507, f"uploads and results fill {MAX_FOLDER_BYTES >> 20} MB; end the demo and start it again")

    def _check_json(self, body: bytes) -> None:
        """Refuse a body that names a file which was not uploaded here."""
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused(400, "expected JSON") from None
        for name in _named_files(content):
            if not Path(os.path.realpath(name)).is_relative_to(self.folder):
                raise Refused(403, "a request may name files that were uploaded here alone")


# ---- helpers


def _named_files(content: Any) -> Iterator[str]:
    """Yield every path or address of a file in a request, at any depth."""
    waiting = [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            path = part.get("path")
            if path is not None:
                yield path if isinstance(path, str) and "\0" not in path else "/"
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _length(headers: dict[str, str], max_bytes: int) -> int:
    """Return the announced bytes of a body."""
    text = headers.get("content-length", "")
    if not text.isdecimal() or len(text) > 15:
        raise Refused(411, "expected a Content-Length")
    if int(text) > max_bytes:
        raise Refused(413, f"the body has {text} bytes; at most {max_bytes} are taken here")
    return int(text)


def _bounded(receive: Receive, length: int) -> Receive:
    """Return a receive that gives up on a body that is longer than announced, or too slow."""
    left, end = length, time.monotonic() + BODY_SECONDS
    is_over = False

    async def bounded() -> Message:
        nonlocal left, is_over
        if is_over:  # gradio waits for the end of the connection
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), min(PAUSE_SECONDS, max(end - time.monotonic(), 0.01)))
        except asyncio.TimeoutError:
            return {"type": "http.disconnect"}
        if message["type"] == "http.request":
            left -= len(message.get("body", b""))
            is_over = not message.get("more_body", False)
            if left < 0:
                return {"type": "http.disconnect"}
        return message

    return bounded


async def _read(receive: Receive) -> bytes:
    """Read a whole body."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(408, "the request ended, or paused for too long, before its body was there")
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope.get("query_string", b"").decode("latin-1"))


def _bytes_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:  # gone in between
                pass
    return total
