"""What runs need of the system: one process at a time in a folder, files for one user alone, and no child that outlives its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


@contextmanager
def hold_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a run's folder for this process; the lock goes with the process, however it ends. The folder is made if need be.

    While another process is at work in the folder this one waits, and then finds its work done.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder, ".lock"), "a+", encoding="utf-8") as file:
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip()
            print(
                f"{folder}: process {owner} is at work here; waiting until it ends (Ctrl-C to leave)", file=sys.stderr
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def private_files() -> Iterator[None]:
    """Write files that this user alone can read (0600, folders 0700), in this process and those that it starts meanwhile.

    Outputs carry patients. Where a group shall read them, a default ACL of the folder does that: it takes the place of the mask.
    """
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def ends_with_parent() -> Callable[[], None] | None:
    """`preexec_fn` of a child that ends when its parent does, even by `kill -9`; None where the system has no such thing."""
    return _ask_linux if sys.platform == "linux" else None


def _ask_linux() -> None:
    """In the child: ask Linux to kill it when its parent ends."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


TERMINATED = 143
"""Exit code after SIGTERM."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, where Python raises KeyboardInterrupt for SIGINT: what is open is closed, what is half written is removed."""


@contextmanager
def told_to_end() -> Iterator[threading.Event]:
    """Raise `Terminated` in the main thread at SIGTERM; a second SIGTERM ends the process at once.

    Elsewhere than in the main thread nothing changes. A verb that ends in its own way, such as `listen`, sets a handler of its own.

    Returns:
        an event that is set once the signal has come.
    """
    came, process = threading.Event(), os.getpid()

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != process:  # a child that was forked: it is not for it to clean up
            os.kill(os.getpid(), number)
            return
        came.set()
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
