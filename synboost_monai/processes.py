"""Provide what runs need of the system.

A folder has one process at a time, files are readable by one user alone, and no child process outlives its parent or takes modules from
the working directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import multiprocessing.util
import os
import platform
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from synboost_monai.paths import open_own

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after SIGINT (Ctrl-C) and SIGTERM."""
GRACE_SECONDS = 60.0
"""Longest time for a child to end: to finish a step, and to save what it must."""
MAX_TEMPORARY_BYTES = 60
"""Longest path of the folder for temporary files; names of sockets below it add up to 40 bytes."""
LOCK_NAME = ".lock"
"""File in a run's folder that its process holds, and that names the process."""
_HELD: dict[tuple[int, int], int] = {}
"""Device and inode of the locks that this process holds -> their open files."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""The system's errors for locks on a file system that has none."""


@contextmanager
def hold_folder(folder: str | os.PathLike[str], *, waits: bool = True) -> Iterator[None]:
    """Hold a run's folder for this process; see `take_folder`."""
    give_back = take_folder(folder, waits=waits)
    try:
        yield
    finally:
        give_back()


def take_folder(folder: str | os.PathLike[str], *, waits: bool) -> Callable[[], None]:
    """Take a run's folder for this process, and return a function that gives it back; the folder is made if need be.

    The lock ends with the process, however that ends, and is not passed to its children. If this process has the folder already,
    nothing changes. If the file system has no locks (some of Lustre and NFS), a line on stderr says so and the run goes on.

    Args:
        folder: of the run.
        waits: while another process is at work there, wait (and then find its work done), instead of refusing.
    Raises:
        ValueError: if another process is at work there, and `waits` is False; or if the lock is a link, or not a file.
    """
    path = Path(folder, LOCK_NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
    state = os.fstat(descriptor)
    key = (state.st_dev, state.st_ino)
    try:
        if key in _HELD:
            os.close(descriptor)
            return lambda: None
        if not lock(descriptor, folder):
            owner = " ".join(os.pread(descriptor, 1000, 0).decode(errors="replace").split()) or "unknown"
            if not waits:
                raise ValueError(
                    f"{folder}: process {owner} is at work here; wait until it ends, or end it, and run the same command again, or "
                    "give another folder"
                )
            print(
                f"{folder}: process {owner} is at work here; waiting until it ends (Ctrl-C to leave)", file=sys.stderr
            )
            lock(descriptor, folder, waits=True)  # this ends when that process does: the system takes its lock away
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} on {platform.node()}".encode(), 0)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise
    _HELD[key] = descriptor

    def give_back() -> None:
        if _HELD.get(key) == descriptor:
            del _HELD[key]
            os.close(descriptor)

    return give_back


def lock(descriptor: int, where: object, *, waits: bool = False) -> bool:
    """Lock an open file for this process alone; return whether that worked (always, with `waits`).

    Args:
        descriptor: of the file.
        where: its path or folder, for the line that says that the file system has no locks; the result is then True.
        waits: wait until no other process holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        line = f"{where}: no file locks here ({error.strerror}); let no other process use this folder meanwhile"
        print(line, file=sys.stderr)
    return True


def _forget_locks() -> None:
    """Close the locks in a forked child: a lock would last as long as any child, though the run was killed."""
    while _HELD:
        with contextlib.suppress(OSError):
            os.close(_HELD.popitem()[1])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


@contextmanager
def private_files() -> Iterator[None]:
    """Write files that this user alone can read (0600, folders 0700), in this process and those that it starts meanwhile.

    Outputs show patients. To let a group read them, set a default ACL on the folder: it takes the place of the mask.
    """
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def module_command(name: str) -> list[str]:
    """Return the command that runs a module with this Python as `-m` does, but without the working directory on its path.

    A folder that came from elsewhere may hold a `yaml.py`. For children of the process, `safe_environment` does the same.
    """
    if sys.version_info >= (3, 11):
        return [sys.executable, "-P", "-m", name]
    code = f"import sys; del sys.path[0]; import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", code]


def safe_environment(**more: str) -> dict[str, str]:
    """Return the environment for a child that finds this package, and whose children leave the working directory off their path.

    Args:
        more: further variables.
    """
    package_parent = str(Path(__file__).resolve().parents[1])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    # the modules beside an installed package must not hide Python's own
    if package_parent not in map(os.path.realpath, sysconfig.get_paths().values()):
        paths.insert(0, package_parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", **more}


def let_threads_wait() -> None:
    """Let the threads of libgomp, torch's OpenMP on Linux, sleep soon when they wait for each other, if nothing else is set.

    They spin by default, and take the core from whatever else runs there. Beside one process on two cores, a training step of two threads
    took 14 s, and 3 s with this (small CRIS, 96 px, 8 images); the small diffusion model's 9.0 s and 0.7 s (64 px, 8 images). On quiet
    cores steps take 1.1 and 1.3 times as long; whoever has the cores alone sets GOMP_SPINCOUNT to libgomp's own 300000. It works for a
    process in which torch is not loaded yet, and for its children.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def check_temporary_folder() -> None:
    """Check that this process and its children can use TMPDIR, also for sockets of worker processes, whose names have at most 107 bytes.

    A long path is reached over a short link from then on, since that disk may be the one with room. Otherwise a training with workers
    would wait for ever: the process that passes tensors on cannot open its socket, and reports no error.

    Raises:
        OSError: if TMPDIR is not a folder that can be written.
        ValueError: if it is too long and no place for a link is found.
    """
    named = os.environ.get("TMPDIR")
    if not named:
        return
    if not os.path.isdir(named):
        number = errno.ENOTDIR if os.path.exists(named) else errno.ENOENT
        raise OSError(number, f"{os.strerror(number)} (TMPDIR, the folder of temporary files)", named)
    if not os.access(named, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, f"{os.strerror(errno.EACCES)} (TMPDIR, the folder of temporary files)", named)
    target = os.path.abspath(named)
    if len(os.fsencode(target)) <= MAX_TEMPORARY_BYTES:
        return
    for place in ("/tmp", "/var/tmp", "/dev/shm"):
        with contextlib.suppress(OSError):
            folder = tempfile.mkdtemp(prefix="synboost-", dir=place)
            os.symlink(target, os.path.join(folder, "t"))
            # after multiprocessing has removed its own folder there, which it does at -100
            multiprocessing.util.Finalize(None, _remove_link, (folder, os.getpid()), exitpriority=-200)
            os.environ["TMPDIR"] = tempfile.tempdir = os.path.join(folder, "t")
            return
    raise ValueError(
        f"{named}: TMPDIR has {len(os.fsencode(target))} bytes, which sockets of worker processes cannot take; set it to a folder whose "
        f"path has {MAX_TEMPORARY_BYTES} at most"
    )


def _remove_link(folder: str, process: int) -> None:
    """Remove the link at the end of the process that made it."""
    if os.getpid() == process:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(folder, "t"))
            os.rmdir(folder)


def end_child(process: subprocess.Popen[Any], told: KeyboardInterrupt) -> int:
    """Let a child end in order after a signal, and return the exit code for that signal; kill it after `GRACE_SECONDS`.

    Args:
        process: the child; Ctrl-C reaches it too, SIGTERM is passed on to it.
        told: the exception that the signal raised.
    """
    if isinstance(told, Terminated):
        process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()  # nothing outlives SIGKILL
    return TERMINATED if isinstance(told, Terminated) else INTERRUPTED


def ends_with_parent() -> Callable[[], None] | None:
    """Return the `preexec_fn` for a child that ends with its parent, even after `kill -9`; None if the system has no such function."""
    return _ask_linux if sys.platform == "linux" else None


def _ask_linux() -> None:
    """Ask Linux, in the child, to kill it when its parent ends."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def limit_memory(num_bytes: int) -> None:
    """Limit the memory that this process may add to its present memory, and prevent a core dump, which would hold images.

    Systems that do not have such limits go on without them.
    """
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[0])
    except (OSError, ValueError):
        pages = 0
    most = pages * resource.getpagesize() + num_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    with contextlib.suppress(ValueError, OSError):  # a system that does not take it
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


class Terminated(KeyboardInterrupt):
    """Represent SIGTERM as KeyboardInterrupt represents SIGINT: open files are closed, half-written ones are removed."""


@contextmanager
def told_to_end() -> Iterator[threading.Event]:
    """Raise `Terminated` in the main thread at SIGTERM; a second SIGTERM ends the process at once.

    Outside the main thread nothing changes. A verb that ends differently, such as `listen`, sets a handler of its own.

    Yields:
        an event that is set once the signal has come.
    """
    came, process = threading.Event(), os.getpid()

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != process:  # a forked child must not clean up
            os.kill(os.getpid(), number)
            return
        came.set()
        raise Terminated

    is_ignored = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # whoever started this process wants it so
    if is_ignored or threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
