"""Who may come in at a web server on this machine: checks of Host, origin and token that our servers share, as ASGI.

A page that is open in a browser can ask a server of the same machine, also by a name of its own that it lets resolve to 127.0.0.1; and
every user of the machine can. So a request says one of the server's own names, comes from no page of elsewhere, and knows the token
where there is one.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

LOOPBACK = "127.0.0.1"
"""Unless another address is asked for, servers listen to this machine alone."""


class Refused(Exception):
    """A request that does not pass.

    Args:
        status: of the answer.
        reason: in one line.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Door:
    """Who may come in."""

    hosts: frozenset[str]
    """Names of the server with its port, as in the header Host; the address that a connection came in at counts as well."""
    token: str | None = field(default=None, repr=False)
    """None: none is asked for."""

    def knows(self, *words: str) -> bool:
        """Whether one of the words is the token, or none is asked for."""
        token = (self.token or "").encode()
        return self.token is None or any(secrets.compare_digest(word.encode(), token) for word in words)


def headers_of(scope: Scope) -> dict[str, str]:
    """Headers by lower-case name; one that is there twice is joined, and so no single value any more."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def check_headers(headers: dict[str, str], scope: Scope, door: Door) -> None:
    """Refuse another Host, which a page gets by having its own name resolve to this machine, and every other origin."""
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
    """The token to ask for, made anew where one is wanted and none is given; None: none is asked for.

    Args:
        token: given; True: a new one; None: that of the environment, else none unless one is needed.
        variable: of the environment, which hides it from lists of processes; it is taken away, so that no child sees it.
        is_needed: whether there must be one.
    Raises:
        ValueError: if it is short or has letters that an address cannot hold as they are.
    """
    given = os.environ.pop(variable, "") if token in (None, True) else token
    if not given:
        return secrets.token_urlsafe(24) if is_needed or token is True else None
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,128}", str(given)):
        raise ValueError(
            f"a token has 16 to 128 letters, digits, _ or -, got {len(str(given))} letters; --token alone makes one"
        )
    return str(given)


def own_hosts(host: str, port: int, addresses: Sequence[Address]) -> frozenset[str]:
    """What the header Host of a request to a server may say, besides the address it comes in at."""
    names = [host]
    if all(address.is_loopback or address.is_unspecified for address in addresses):
        names += [LOOPBACK, "localhost", "::1"]
    if any(address.is_unspecified for address in addresses):
        names.append(socket.gethostname())
    bracketed = [f"[{name}]" if ":" in name else name for name in names]
    return frozenset(f"{name}:{port}".lower() for name in bracketed) | frozenset(bracketed if port == 80 else ())


def addresses_of(host: str, port: int) -> list[Address]:
    """Addresses of a host to listen at.

    Raises:
        ValueError: if there are none, or the port is none.
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


async def answer(send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Answer a request oneself."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a receive that gives a body first, and then what comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Message:
        return messages.pop() if messages else await receive()

    return given
