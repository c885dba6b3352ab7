"""Watch the head of a Ray cluster: Ray ends a process without a word once the head has been silent for a minute.

The driver ends before that with an error that says what to do. Its actors end sooner still, so that none of them writes while a resumed
run does.
"""

from __future__ import annotations

import os
import socket
import threading
import time

DRIVER_SECONDS, ACTOR_SECONDS = 30.0, 15.0
"""Longest silence of the head that the driver and an actor bear; both below Ray's own 60 s, the actor's below the driver's."""
BETWEEN_SECONDS = 5.0
"""Time between two looks at the head."""
CONNECT_SECONDS = 3.0
"""Longest time for connecting to it."""


class HeadLostError(ValueError):
    """Report that the head of the cluster does not answer any more."""

    def __init__(self) -> None:
        super().__init__(
            "ray_engine.py: the head of the Ray cluster does not answer any more; start the cluster again, or take engine local, "
            "and go on by --resume"
        )


class HeadWatch:
    """A HeadWatch looks now and then whether the head of a cluster answers.

    Args:
        address: HOST:PORT of the head. One that does not answer at first (as behind ray://) is not watched.
        patience_s: longest silence.
    """

    def __init__(self, address: str, patience_s: float = DRIVER_SECONDS) -> None:
        host, _, port = address.rpartition(":")
        self._place = (host.strip("[]"), int(port))
        self._patience_s = patience_s
        self._looked_at = time.monotonic()
        self.is_watched = self._answers()

    def check(self, at_once: bool = False) -> None:
        """Wait until the head answers; a look within `BETWEEN_SECONDS` of the last one is left out, unless it is wanted at once.

        Raises:
            HeadLostError: if it has been silent for too long.
        """
        if not self.is_watched or (time.monotonic() - self._looked_at < BETWEEN_SECONDS and not at_once):
            return
        began = time.monotonic()
        while not self._answers():
            if time.monotonic() - began > self._patience_s:
                raise HeadLostError
            time.sleep(1)
        self._looked_at = time.monotonic()

    def _answers(self) -> bool:
        try:
            socket.create_connection(self._place, CONNECT_SECONDS).close()
        except OSError:
            return False
        return True


def end_without_head(address: str) -> None:
    """Let this process end at once when the head of its cluster has been silent for too long."""
    watch = HeadWatch(address, ACTOR_SECONDS)
    threading.Thread(target=_end_without, args=(watch,), name="head", daemon=True).start()


def _end_without(watch: HeadWatch) -> None:
    while watch.is_watched:
        time.sleep(BETWEEN_SECONDS)
        try:
            watch.check()
        except HeadLostError:
            os._exit(1)  # a study in its middle would keep any other end waiting
