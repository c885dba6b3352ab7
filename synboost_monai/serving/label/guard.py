"""Guard MONAI Label's stock app: one ASGI layer passes every request on, or refuses it with a reason.

MONAI Label answers every origin and every Host, has no login, and serves far more than annotating needs. The guard lets in only the
server's own hosts and origins, asks for the token if there is one, lets the routes of `routes.py` pass, and hands on a request that it
has written anew, with none of the sender's headers.
"""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qsl

from synboost_monai.door import (
    App,
    Door,
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
from synboost_monai.serving.label.routes import MAX_FILE_BYTES, Route, Rules, checked_body, checked_query, find_route

TOKEN_PATH = "/token/"
"""Beginning of a path that holds the token, for viewers whose only setting is the server's address."""
MAX_HELD_BYTES = 4 * MAX_FILE_BYTES
"""Most bytes of bodies that are held at a time, all requests together."""
BODY_SECONDS = 300.0
"""Longest time for a body; a slower one is refused."""
WELCOME = "MONAI Label of SynBoost: give this address to the module MONAI Label of 3D Slicer.\n"

_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; sandbox; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),  # an address may hold the token
    (b"cache-control", b"no-store"),
]


class Guard:
    """Refuse requests that do not come from the server's own page or a viewer, or that annotating does not need.

    Args:
        app: MONAI Label's application.
        door: who may come in.
        rules: facts that the allow-list needs.
    """

    def __init__(self, app: App, door: Door, rules: Rules) -> None:
        self.app, self.door, self.rules = app, door, rules
        self._held_bytes = 0
        self._writing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await refuse_websocket(send)
        headers = headers_of(scope)
        try:
            check_headers(headers, scope, self.door)
            path, query = _without_token(headers, scope, self.door)
            if path == "/" and scope["method"] == "GET":
                kind = (b"content-type", b"text/plain; charset=utf-8")
                return await answer(send, 200, WELCOME.encode(), [kind, *_SECURITY_HEADERS])
            await self._pass_on(*find_route(scope["method"], path, self.rules), query, headers, scope, receive, send)
        except Refused as refused:
            asked = [(b"www-authenticate", b"Bearer")] if refused.status == 401 else []
            await refuse(send, refused, [*_SECURITY_HEADERS, *asked])

    async def _pass_on(
        self, route: Route, path: str, query: bytes, headers: dict[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Check the query and the body, and give MONAI Label the request written anew."""
        checked_query(query, route, self.rules)  # before anything is read
        body = await self._body(route, headers, receive)
        try:
            content_type, new_body = checked_body(headers.get("content-type", ""), body, route, self.rules)
            new_headers = [(b"host", headers["host"].encode()), (b"content-length", b"%d" % len(new_body))]
            if content_type:
                new_headers.append((b"content-type", content_type.encode()))
            new_scope = {**scope, "path": path, "raw_path": path.encode(), "root_path": "", "headers": new_headers}
            if scope["method"] != "PUT":
                new_scope["query_string"] = checked_query(query, route, self.rules)
                return await self.app(new_scope, replay(new_body, receive), with_headers(send, _SECURITY_HEADERS))
            async with self._writing:  # one at a time: a free name must stay free until it is taken
                new_scope["query_string"] = checked_query(query, route, self.rules)
                await self.app(new_scope, replay(new_body, receive), with_headers(send, _SECURITY_HEADERS))
        finally:
            self._held_bytes -= len(body)

    async def _body(self, route: Route, headers: dict[str, str], receive: Receive) -> bytes:
        """Read the body of a request, no longer than its route allows; it counts as held until the request is answered."""
        announced = headers.get("content-length", "0")
        if not announced.isdecimal() or len(announced) > 15:
            raise Refused(400, "the Content-Length is no number")
        if int(announced) > route.max_bytes:
            raise Refused(413, f"the body has {announced} bytes; at most {route.max_bytes} are taken here")
        body = bytearray()
        try:
            await asyncio.wait_for(self._read(body, route.max_bytes, receive), BODY_SECONDS)
        except BaseException as error:
            self._held_bytes -= len(body)
            if isinstance(error, asyncio.TimeoutError):
                raise Refused(408, f"the body took longer than {BODY_SECONDS:g} s") from None
            raise
        return bytes(body)

    async def _read(self, body: bytearray, max_bytes: int, receive: Receive) -> None:
        """Read the rest of a request into `body`."""
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise Refused(400, "the request ended before its body did")
            chunk = message.get("body", b"")
            if len(body) + len(chunk) > max_bytes:
                raise Refused(413, f"the body has more than the {max_bytes} bytes that are taken here")
            if self._held_bytes + len(chunk) > MAX_HELD_BYTES:
                raise Refused(503, "other requests send too much at the moment; try again")
            self._held_bytes += len(chunk)
            body += chunk
            more = message.get("more_body", False)


# ---- helpers


def _without_token(headers: dict[str, str], scope: Scope, door: Door) -> tuple[str, bytes]:
    """Return path and query without the token that they or the header Authorization may hold.

    Raises:
        Refused: 401 if a token is needed and the right one is missing.
    """
    path, query = scope["path"], scope.get("query_string", b"")
    offered = []
    if path.startswith(TOKEN_PATH) and door.token:
        word, _, rest = path.removeprefix(TOKEN_PATH).partition("/")
        offered.append(word)
        path = f"/{rest}"
    parts = query.split(b"&") if query else []
    tokens = [part for part in parts if part.startswith(b"token=")]
    query = b"&".join(part for part in parts if part not in tokens)
    offered += [value for _, value in parse_qsl(b"&".join(tokens).decode("latin-1"))]
    scheme, _, word = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        offered.append(word.strip())
    if not door.knows(*offered):
        raise Refused(401, "this server asks for its token: in the address, as Authorization: Bearer, or as ?token=")
    return path, query
