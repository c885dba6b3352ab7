"""Run a node that keeps what it receives, for tests of what it takes and from whom."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from synboost_monai.dicom.network.common import Status, quiet_network
from synboost_monai.dicom.network.receive import ServerOptions, StorageServer


class Shelf:
    """Keep the names of the objects that a server receives."""

    def __init__(self) -> None:
        self.stored: list[str] = []

    def store(self, path: Path, sop_instance_uid: str, connection: int) -> Status:
        self.stored.append(sop_instance_uid)
        return Status.SUCCESS

    def progress(self, connection: int) -> None: ...

    def closed(self, connection: int) -> None: ...


@contextlib.contextmanager
def serving(tmp_path: Path, **options: object) -> Iterator[tuple[StorageServer, list[str], Shelf]]:
    """Run a server, and yield it with the lines that it says and what it keeps."""
    said: list[str] = []
    shelf = Shelf()
    settings = ServerOptions(**{"port": 0, "min_free_mb": 1, "timeout": 1.0, **options})  # type: ignore[arg-type]
    with quiet_network(), StorageServer(shelf, tmp_path / "in", settings, said.append) as server:
        yield server, said, shelf
        server.close(grace=3)


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.02)
