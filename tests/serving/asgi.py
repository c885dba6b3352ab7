"""Ask an ASGI application as a client on the wire does, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote


def request(method: str, target: str, headers: Mapping[str, str], **more: Any) -> dict[str, Any]:
    """Return the scope of a request; target and headers are written as on the wire, `more` are further entries."""
    raw_path, _, query = target.partition("?")
    sent = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "scheme": "http", "path": unquote(raw_path), "headers": sent}
    return {**scope, "raw_path": raw_path.encode(), "query_string": query.encode(), "server": None, **more}


async def answer_to(
    app: Any, scope: dict[str, Any], pieces: Sequence[bytes] = (b"",), *, is_whole: bool = True
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of the answer to a request; a body that is not whole pauses after its last piece."""
    messages = [
        {"type": "http.request", "body": piece, "more_body": not is_whole or number < len(pieces)}
        for number, piece in enumerate(pieces, start=1)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        await asyncio.sleep(0 if is_whole else 60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message["body"] for message in sent[1:])
