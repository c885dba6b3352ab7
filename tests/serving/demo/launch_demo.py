"""Run `synboost demo` in a process of its own, and write down whom it speaks to: `python launch_demo.py LOG [arguments]`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


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


if __name__ == "__main__":
    listen_in(Path(sys.argv[1]))
    sys.path.insert(0, str(ROOT))
    from synboost_monai.__main__ import main

    main(["demo", *sys.argv[2:]])
