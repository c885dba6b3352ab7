"""Scan a folder by headers alone: every file of the tree once, with a reason if it is not segmented.

Ultrasound images and clips are recognised by SOP class and modality, whatever their names. Nothing is decoded or taken on trust:
names may be any bytes, links are not followed, pipes are not opened, and a UID serves to compare and to hash, never as a path.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from synboost_monai.dicom.limits import Limits
from synboost_monai.dicom.reading.files import file_digest, open_regular, os_problem
from synboost_monai.dicom.reading.scanned_file import Known, ScannedFile, look_at, of_values
from synboost_monai.dicom.reading.structure import walk_file
from synboost_monai.dicom.reasons import NotUsableError

if TYPE_CHECKING:
    from synboost_monai.dicom.reading.worker import ReaderPool

LITTER = re.compile(
    r"\._.*|\.ds_store|thumbs\.db(:.*)?|ehthumbs.*\.db|desktop\.ini|\.localized|icon\r|\.directory|\.nomedia"
    r"|\.volumeicon\.icns|\.apdisk|autorun\.inf|\.fseventsd|\.com\.apple\..*|\.nfs[0-9a-f]{8,}|~\$.*",
    re.DOTALL,
)
"""Names (lower case) of files that operating systems leave behind."""
LITTER_FOLDERS = re.compile(
    r"__macosx|lost\+found|\$recycle\.bin|recycler|system volume information|\.spotlight-v100|\.trashes|\.fseventsd|\.temporaryitems"
    r"|\.documentrevisions-v100|\.appledouble|@eadir|#recycle|\.trash-1000"
)
"""Names (lower case) of folders that hold only such files."""

QUICK_MB = 0.25
"""Largest header read in the scan's own process, in MB (2^20 bytes); a longer one is read in a worker process, which it may crash."""
HEADER_SECONDS, HEADER_MEMORY_MB = 60.0, 512.0
"""Limits of that worker process."""


def scan(
    in_dir: str | os.PathLike[str], limits: Limits | None = None, *, exclude: Iterable[str | os.PathLike[str]] = ()
) -> Iterator[ScannedFile]:
    """Yield every file below a folder, in the order of the names' bytes, folder by folder.

    Folders that are links are not entered, so there are no loops; the link is one entry. A folder that cannot be read is one entry.

    Args:
        in_dir: a folder; or one file, which is then the only entry.
        limits: of a file; the defaults if None.
        exclude: folders that are left out (such as the run's own output within `in_dir`).
    Raises:
        FileNotFoundError: if there is no such folder.
        PermissionError: if the folder cannot be read.
    """
    limits = limits or Limits()
    root = os.path.abspath(os.fspath(in_dir))
    if not os.path.lexists(root):
        raise FileNotFoundError(f"{in_dir}: no such folder")
    known: Known = {}
    quick = replace(limits, max_header_mb=min(QUICK_MB, limits.max_header_mb))
    seconds, memory_mb = min(limits.seconds_per_file, HEADER_SECONDS), min(limits.memory_mb, HEADER_MEMORY_MB)
    with _worker(replace(limits, seconds_per_file=seconds, memory_mb=memory_mb)) as worker:
        for path, relative, problem in _entries(root, frozenset(_identity(folder) for folder in exclude)):
            file = look_at(path, relative, problem, quick, known)
            is_long = file.reason is not None and file.reason.reason.code == "header_too_large"
            yield _look_by_worker(file, worker()) if is_long and quick != limits else file


@contextlib.contextmanager
def _worker(limits: Limits) -> Iterator[Callable[[], ReaderPool]]:
    """Yield a function that returns a worker process, which starts with the first call and ends with the context."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def start() -> ReaderPool:
            from synboost_monai.dicom.reading.worker import ReaderPool  # loads decoders

            return stack.enter_context(ReaderPool(1, limits))

        yield start


def _look_by_worker(file: ScannedFile, pool: ReaderPool) -> ScannedFile:
    """Return a file with the facts of its long header, which may crash the worker process."""
    try:
        values = pool.look(file.path)
    except NotUsableError as problem:
        return replace(file, reason=problem)
    return replace(of_values(values), path=file.path, relative=file.relative)


def mark_duplicates(files: Iterable[ScannedFile], limits: Limits | None = None) -> list[ScannedFile]:
    """Give files that share a SOP Instance UID their reason: `duplicate` for a copy, `conflicting_duplicate` for a contradiction.

    Of files with the same content the first by path is kept. Same content means the same data set in the same transfer syntax; the
    preamble and the file meta information, which say who wrote a file, do not count, nor do bytes after the last frame. If files
    differ, only those count whose header and frames a worker process can all read; each unreadable one is refused for its own reason.
    If any two readable ones differ, none is kept.

    Args:
        files: files of one scan.
        limits: of a file; the defaults if None.
    Returns:
        All files in their order.
    """
    files = list(files)
    limits = limits or Limits()
    groups: dict[str, list[int]] = {}
    for index, file in enumerate(files):
        if file.reason is None:
            groups.setdefault(file.sop_instance_uid, []).append(index)
    with _worker(limits) as worker:
        for indices in groups.values():
            if len(indices) > 1:
                indices.sort(key=lambda index: _sort_key(files[index].relative))
                _judge_copies(files, indices, worker, limits)
    return files


def content_digest(file: ScannedFile, limits: Limits | None = None, max_bytes: int | None = None) -> str:
    """Return a file's transfer syntax and the SHA-256 of its data set, without preamble and file meta information.

    Args:
        file: file of a scan.
        limits: of a file; the defaults if None.
        max_bytes: most bytes of the data set that are hashed; None for all.
    Raises:
        NotUsableError: if the file cannot be read any more, or has changed since the scan.
    """
    limits = limits or Limits()
    with open_regular(file.path) as opened:
        structure = walk_file(opened, limits, frozenset())
    seconds = limits.seconds_per_file
    content = file_digest(
        file.path, file.size, file.mtime_ns, structure.data_set_offset, max_seconds=seconds, max_bytes=max_bytes
    )
    return f"{structure.transfer_syntax}:{content}"


def _sort_key(relative: str) -> list[bytes]:
    """Return the sort key of the scan's order: by the bytes of the names, folder by folder."""
    return os.fsencode(relative).split(b"/")


def _identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return device and inode of a folder, which are the same under any name; (-1, -1) if it does not exist yet."""
    try:
        status = os.stat(path)
    except OSError:
        return (-1, -1)
    return status.st_dev, status.st_ino


def _entries(root: str, excluded: frozenset[tuple[int, int]]) -> Iterator[tuple[str, str, NotUsableError | None]]:
    """Yield (path, relative path, reason) of every entry that is not a folder; the reason only if known without opening the file."""
    if not os.path.isdir(root):
        yield root, os.path.basename(root), None
        return
    litter = NotUsableError("operating_system_file")
    pending = [(name, False) for name in _names(root)]  # a stack: last first; (relative path, inside litter)
    while pending:
        relative, is_litter = pending.pop()
        path = os.path.join(root, relative)
        try:
            status = os.lstat(path)
        except (OSError, ValueError) as error:
            yield path, relative, litter if is_litter else os_problem(error)
            continue
        name = os.path.basename(relative).lower()
        if not stat.S_ISDIR(status.st_mode):
            is_litter = stat.S_ISREG(status.st_mode) and (is_litter or LITTER.fullmatch(name) is not None)
            yield path, relative, litter if is_litter else None
            continue
        if (status.st_dev, status.st_ino) in excluded:
            continue
        is_litter = is_litter or LITTER_FOLDERS.fullmatch(name) is not None
        try:
            pending.extend((f"{relative}/{below}", is_litter) for below in _names(path))
        except OSError as error:
            yield path, relative, litter if is_litter else os_problem(error)


def _names(folder: str) -> list[str]:
    """Return the names in a folder, last first."""
    return sorted(os.listdir(folder), key=os.fsencode, reverse=True)


def _judge_copies(
    files: list[ScannedFile], indices: list[int], worker: Callable[[], ReaderPool], limits: Limits
) -> None:
    """Mark files that share a UID; one that cannot be read any more gets that as its reason and does not count."""
    whole: dict[int, str] = {}
    for index in indices:
        file = files[index]
        try:
            whole[index] = file_digest(file.path, file.size, file.mtime_ns, max_seconds=limits.seconds_per_file)
        except NotUsableError as problem:
            files[index] = replace(files[index], reason=problem)
    if len(set(whole.values())) > 1:
        for index in list(whole):
            try:
                whole[index] = content_digest(files[index], limits)
            except NotUsableError as problem:
                del whole[index]
                files[index] = replace(files[index], reason=problem)
    if len(set(whole.values())) > 1:
        _leave_readable(files, whole, worker())
        _join_cut_ends(files, whole, limits)
    is_conflict = len(set(whole.values())) > 1
    for index in list(whole)[0 if is_conflict else 1 :]:
        code = "conflicting_duplicate" if is_conflict else "duplicate"
        files[index] = replace(files[index], reason=NotUsableError(code))


def _leave_readable(files: list[ScannedFile], whole: dict[int, str], pool: ReaderPool) -> None:
    """Give files that cannot be read to the end their reason; they do not make a conflict."""
    problems: dict[str, NotUsableError | None] = {}
    for index, content in list(whole.items()):
        if content not in problems:
            problems[content] = None
            try:
                pool.check(files[index].path)
            except NotUsableError as problem:
                problems[content] = problem
        if (found := problems[content]) is not None:
            del whole[index]
            files[index] = replace(files[index], reason=found)


def _join_cut_ends(files: list[ScannedFile], whole: dict[int, str], limits: Limits) -> None:
    """Count files that equal the start of the longest one as copies of it, since they have all frames; put the longest first."""
    if len(set(whole.values())) < 2:
        return
    sizes = {index: _data_set_bytes(files[index], limits) for index in whole}
    longest = max(whole, key=lambda index: sizes[index])
    for index in whole:
        with contextlib.suppress(NotUsableError):  # a file that changed meanwhile counts as different
            if content_digest(files[longest], limits, sizes[index]) == whole[index]:
                whole[index] = whole[longest]
    if len(set(whole.values())) == 1:
        first = {longest: whole.pop(longest), **whole}
        whole.clear()
        whole.update(first)


def _data_set_bytes(file: ScannedFile, limits: Limits) -> int:
    """Return the length of a file without preamble and file meta information; 0 if it cannot be opened any more."""
    with contextlib.suppress(NotUsableError), open_regular(file.path) as opened:
        return opened.size - walk_file(opened, limits, frozenset()).data_set_offset
    return 0
