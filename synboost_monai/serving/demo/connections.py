"""Bound the connections to the page's server: their number, and the time until each has sent its request."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 64
"""Connections at a time; for one more, the one that has waited longest without a request is ended."""
REQUEST_SECONDS = 20.0
"""Longest time that a request may take until its headers have arrived."""


class BoundedConnection(H11Protocol):
    """Extend uvicorn's connection, so that it does not wait for ever for a request that comes a byte at a time."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._patience: asyncio.TimerHandle | None = None
        self._watch()
        if len(self.connections) > MAX_CONNECTIONS:
            idle = [c for c in self.connections if isinstance(c, BoundedConnection) and c.is_waiting]
            oldest = min(idle, key=lambda c: c.waits_until)
            self.connections.discard(oldest)  # its connection_lost is called only later
            oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    @property
    def is_waiting(self) -> bool:
        """Return whether no request is being answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    @property
    def waits_until(self) -> float:
        """Return the loop's time at which the connection is ended; infinite if no end is set."""
        return math.inf if self._patience is None else self._patience.when()

    def _watch(self) -> None:
        if not self.is_waiting:
            self._forget()
        elif self._patience is None:
            self._patience = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _forget(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
