"""Run `synboost demo`, and write down whom it speaks to; `main` is to run in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def listen_in(log_path: Path) -> None:
    """Write the address of every connection, and every name that is looked up, a line each."""

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.sendto"):
            address = arguments[1]
            host = address[0] if isinstance(address, tuple) else "a file"  # a socket of this machine's file system
        elif event == "socket.getaddrinfo":
            host = arguments[0]
        else:
            return
        with log_path.open("a", encoding="utf-8") as log:
            log.write(f"{host}\n")

    sys.addaudithook(hear)


def main(log_path: Path, *words: str) -> None:
    listen_in(log_path)
    from synboost_monai.__main__ import main as synboost

    synboost(["demo", *words])
