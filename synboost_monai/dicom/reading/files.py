"""Open files of an untrusted folder: only regular files, no links, no waiting, and every failure as a reason."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from synboost_monai.dicom.reasons import NotUsableError

T = TypeVar("T")
BLOCK = 1 << 20
"""Number of bytes hashed at a time."""

_KINDS = (
    (stat.S_ISFIFO, "named pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "character device"),
    (stat.S_ISBLK, "block device"),
)
_ERRORS = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk or network reports an input/output error",
    errno.ENAMETOOLONG: "its path is too long",
    errno.ESTALE: "the network drive has lost it",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open",
}


class Closing:
    """Close an object at the end of the `with` in which it is used."""

    def close(self) -> None:
        """Free what the object holds."""
        raise NotImplementedError

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class OpenFile:
    """Represent a regular file that is open for reading."""

    descriptor: int
    size: int
    """Size in bytes when it was opened."""
    mtime_ns: int
    """Time of its last change, in nanoseconds."""

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset` on; fewer only at the end of the file."""
        blocks = []
        while count > 0:
            try:
                block = os.pread(self.descriptor, min(count, 1 << 24), offset)
            except OSError as error:
                raise os_problem(error) from error
            if not block:
                break
            blocks.append(block)
            offset += len(block)
            count -= len(block)
        return b"".join(blocks)


@contextlib.contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[OpenFile]:
    """Open a regular file; links are not followed, and pipes and devices are not opened, so they cannot block.

    Raises:
        NotUsableError: symlink, special_file, unreadable or vanished.
    """
    path = os.fspath(path)
    try:
        check_kind(os.lstat(path).st_mode, path)
        flags = [getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY")]
        descriptor = os.open(path, os.O_RDONLY | sum(flags))
    except (OSError, ValueError) as error:
        raise os_problem(error) from error
    try:
        status = os.fstat(descriptor)
        check_kind(status.st_mode, path)  # it may have been replaced in between
        yield OpenFile(descriptor, status.st_size, status.st_mtime_ns)
    finally:
        os.close(descriptor)


def as_open(file: str | os.PathLike[str] | OpenFile) -> contextlib.AbstractContextManager[OpenFile]:
    """Return a context in which a file is open: a path is opened for it (`open_regular`), an open file stays open after it."""
    return contextlib.nullcontext(file) if isinstance(file, OpenFile) else open_regular(file)


def check_kind(mode: int, path: str) -> None:
    """Refuse a file that is not a regular file.

    Args:
        mode: `st_mode` of the file itself, not of a link's target.
        path: path of the file; if it is a link, its target is looked up for the message, not opened.
    Raises:
        NotUsableError: symlink, special_file, or unreadable for a folder.
    """
    if stat.S_ISREG(mode):
        return
    if stat.S_ISLNK(mode):
        raise NotUsableError("symlink", target=_target(path))
    if stat.S_ISDIR(mode):
        raise NotUsableError("unreadable", error="it is a folder")
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "special file of the system")
    raise NotUsableError("special_file", kind=kind)


def os_problem(error: OSError | ValueError) -> NotUsableError:
    """Return the reason for an error of the operating system; its text, which may hold the path, is not repeated."""
    number = getattr(error, "errno", None)
    if isinstance(error, NotUsableError):
        return error
    if number in (errno.ENOENT, errno.ENOTDIR):
        return NotUsableError("vanished")
    if number == errno.ELOOP:
        return NotUsableError("symlink", target="something else")
    if number in (errno.ENXIO, errno.ENODEV):
        return NotUsableError("special_file", kind="device")
    if number is None:
        return NotUsableError("unreadable", error="its path is not valid")
    return NotUsableError("unreadable", error=_ERRORS.get(number) or os.strerror(number).lower())


def file_digest(
    file: str | os.PathLike[str] | OpenFile,
    size: int | None = None,
    mtime_ns: int | None = None,
    offset: int = 0,
    max_seconds: float = math.inf,
    max_bytes: int | None = None,
) -> str:
    """Return the SHA-256 of a file (from `offset` on) as hexadecimal digits.

    Args:
        file: path of a regular file; or the open file.
        size: bytes that the file had when it was listed, if a change since then should be noticed.
        mtime_ns: time of its last change when it was listed.
        offset: first byte that is hashed.
        max_seconds: longest time that hashing may take: a file with holes can claim to have terabytes.
        max_bytes: most bytes that are hashed; None for all.
    Raises:
        NotUsableError: as `open_regular`; timeout; changed if the file differs from what was listed, or changes while it is read.
    """
    digest = hashlib.sha256()
    deadline = time.monotonic() + max_seconds
    with as_open(file) as opened:
        listed = (opened.size if size is None else size, opened.mtime_ns if mtime_ns is None else mtime_ns)
        position = offset
        end = opened.size if max_bytes is None else min(opened.size, offset + max_bytes)
        while block := opened.read(position, BLOCK if max_bytes is None else min(BLOCK, max(end - position, 0))):
            digest.update(block)
            position += len(block)
            if time.monotonic() > deadline:
                raise NotUsableError("timeout", seconds=f"{max_seconds:g}")
        status = os.fstat(opened.descriptor)
        if (status.st_size, status.st_mtime_ns) != listed or position != max(offset, end):
            raise NotUsableError("changed")
    return digest.hexdigest()


def _target(path: str) -> str:
    """Describe the target of a link in words."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return "nothing that can be reached"
    return "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "a special file"
