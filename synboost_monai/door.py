"""Decide who may use a web server on this machine: checks of Host, origin and token that our servers share, as ASGI.

A page that is open in a browser can send requests to a server of the same machine, even under a name of its own that it lets resolve to
127.0.0.1; so can every user of the machine. So a request must use one of the server's own names, must not come from another site's page,
and must know the token if there is one.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Headers = Sequence[tuple[bytes, bytes]]

LOOPBACK = "127.0.0.1"
"""Default address, at which servers listen to this machine alone."""


class Refused(Exception):
    """Represent a request that is refused.

    Args:
        status: of the answer.
        reason: in one line.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Door:
    """Hold the conditions on which a request may come in."""

    hosts: frozenset[str]
    """Names of the server with its port, as in the header Host; the address at which a connection arrived counts as well."""
    token: str | None = field(default=None, repr=False)
    """Token that a request must know; None if no token is needed."""

    def knows(self, *words: str) -> bool:
        """Return whether one of the words is the token, or no token is needed."""
        token = (self.token or "").encode()
        return self.token is None or any(secrets.compare_digest(word.encode(), token) for word in words)


def headers_of(scope: Scope) -> dict[str, str]:
    """Return the headers by lower-case name; values of a repeated header are joined, and so no longer valid as one value."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def check_headers(headers: dict[str, str], scope: Scope, door: Door) -> None:
    """Refuse every other origin, and every other Host, which a page gets by letting its own name resolve to this machine."""
    host = headers.get("host", "").lower()
    address, port = scope.get("server") or ("", None)
    if host not in door.hosts and host != f"{f'[{address}]' if ':' in address else address}:{port}":
        raise Refused(403, f"the Host {host[:80]!r} is not this server; use {', '.join(sorted(door.hosts))}")
    own = f"{scope.get('scheme', 'http')}://{host}"
    if headers.get("origin", own).lower() != own:
        raise Refused(403, f"pages of {headers['origin'][:80]!r} may not ask this server")
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Refused(403, "a page of another site may not ask this server")
    if not f"{headers.get('referer', own)}/".lower().startswith(f"{own}/"):
        raise Refused(403, "a page of another site may not ask this server")


def checked_token(token: str | bool | None, variable: str, *, is_needed: bool) -> str | None:
    """Return the token to ask for, a new one if one is wanted and not given, or None if no token is needed.

    Args:
        token: the given token; True or None: that of the environment; if that has none, True makes a new one, and so does None if a token
            is needed.
        variable: environment variable, which hides the token from lists of processes; it is removed, so that no child sees it.
        is_needed: whether there must be a token.
    Raises:
        ValueError: if the token is too short or long, or has letters that an address cannot hold as they are.
    """
    given = os.environ.pop(variable, "") if token in (None, True) else token
    if not given:
        return secrets.token_urlsafe(24) if is_needed or token is True else None
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,128}", str(given)):
        raise ValueError(
            f"a token has 16 to 128 letters, digits, _ or -, got {len(str(given))} letters; --token alone makes one"
        )
    return str(given)


def open_door(host: str, port: int, token: str | bool | None, variable: str) -> Door:
    """Return who may come in at an address; any other address than this machine's own needs a token.

    Args:
        host, port: as in `addresses_of`.
        token, variable: as in `checked_token`.
    Raises:
        ValueError: if one of them is not valid.
    """
    addresses = addresses_of(host, port)
    is_needed = not all(address.is_loopback for address in addresses)
    return Door(own_hosts(host, port, addresses), checked_token(token, variable, is_needed=is_needed))


def own_hosts(host: str, port: int, addresses: Sequence[Address]) -> frozenset[str]:
    """Return the values that the header Host of a request may have, besides the address at which the request arrives."""
    names = [host]
    if all(address.is_loopback or address.is_unspecified for address in addresses):
        names += [LOOPBACK, "localhost", "::1"]
    if any(address.is_unspecified for address in addresses):
        names.append(socket.gethostname())
    bracketed = [f"[{name}]" if ":" in name else name for name in names]
    return frozenset(f"{name}:{port}".lower() for name in bracketed) | frozenset(bracketed if port == 80 else ())


def addresses_of(host: str, port: int) -> list[Address]:
    """Return the addresses of a host to listen at.

    Raises:
        ValueError: if the host has no address, or the port is not a valid one.
    """
    if not isinstance(port, int) or not 0 < port < 65536:
        raise ValueError(f"--port must be 1 to 65535, got {port}")
    try:
        found = (
            socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM) if re.fullmatch(r"[\w.:-]+", host) else []
        )
    except OSError:
        found = []
    if not found:
        raise ValueError(f"--host must be a name or address of this machine, got {host!r}")
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


def url_of(host: str, port: int) -> str:
    """Return the address of a server as a browser takes it, without a slash at its end."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that is bound to host and port, for a server to listen on.

    Raises:
        ValueError: if the port is taken or not allowed.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise ValueError(
                f"port {port} of {host} is taken or not allowed ({error.strerror}); give another --port"
            ) from error
        yield listener


async def answer(send: Send, status: int, body: bytes, headers: Headers = ()) -> None:
    """Answer a request directly."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, refused: Refused, headers: Headers = ()) -> None:
    """Answer a request that is refused with the reason."""
    reason = json.dumps({"detail": refused.reason}).encode()
    await answer(send, refused.status, reason, [(b"content-type", b"application/json"), *headers])


async def refuse_websocket(send: Send) -> None:
    """Refuse a connection that wants to become a websocket, which none of our servers needs."""
    await send({"type": "websocket.close", "code": 1008, "reason": "no websockets here"})


def with_headers(send: Send, own: Headers) -> Send:
    """Return a send whose answers have our own headers, and none that lets pages of another origin read them."""
    names = {name for name, _ in own}

    async def changed(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [
                (name, value)
                for name, value in message.get("headers", [])
                if not name.lower().startswith(b"access-control-") and name.lower() not in names
            ]
            message = {**message, "headers": [*kept, *own]}
        await send(message)

    return changed


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a receive that gives a body first, and then what `receive` gives."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Message:
        return messages.pop() if messages else await receive()

    return given
