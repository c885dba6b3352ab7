"""Guard the paths of a run: no output replaces an input, no link in a run's folder is followed, and every result has a sound name.

An output counts as an input if both are one file: by inode, so through symbolic and hard links and in any case that the file system
ignores, or by their real paths where it has no inodes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeAlias

AnyPath: TypeAlias = "str | os.PathLike[str]"

PATH_KEYS = ("image", "label", "sequence", "sequence_label", "sector")
"""Keys of a data set's items that are paths."""
MAX_NAME_BYTES = 255
"""Bytes that file systems allow for a name."""
RESULT_PARTS = ("", "_spread")
"""Parts that follow a case's name in names of files."""
_RESERVED_NAMES = ("datalist",)  # CASE.json would make the results look like a data set
_SPECIAL = ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY")


def refuse_overwriting(
    outputs: Iterable[AnyPath],
    inputs: Iterable[Any],
    advice: str = "give another output_dir",
    *,
    filled: Iterable[AnyPath] = (),
) -> None:
    """Refuse a run that would replace a file that it reads; call it before anything is computed or written.

    Args:
        outputs: files that the run will write, whether they exist or not.
        inputs: files that it reads, folders (their datalist.json counts), items of a data set, lists of these; None is skipped.
        advice: what the user should do.
        filled: folders that the run fills (or empties): no input may be in them.
    Raises:
        ValueError: if an output is an input, whatever links lead to it.
    """
    folders: dict[str, str] = {}
    known = {key: path for path in _files_of(inputs) for key in _identities(path, folders)}
    lost: dict[str, str] = {}
    for output in [os.fspath(output) for output in outputs]:
        for key in _identities(output, folders):
            if key in known:
                is_other_name = os.path.abspath(known[key]) != os.path.abspath(output)
                also = f" (it is also {output})" if is_other_name else ""
                lost.setdefault(known[key], f"would replace it by its own output{also}")
    for folder in filled:
        real = os.path.join(os.path.realpath(folder), "")
        for path in known.values():
            if os.path.realpath(path).startswith(real) and os.path.exists(path):
                lost.setdefault(path, f"would fill {os.fspath(folder)}, in which it lies, with its own files")
    if lost:
        path, what = next(iter(lost.items()))
        others = f", and so {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ValueError(f"{path}: this run reads it and {what}{others}; {advice}")


def _files_of(things: Any) -> Iterator[str]:
    """Yield the paths of everything that a run reads."""
    if things is None or things == "":
        return
    if isinstance(things, (str, os.PathLike)):
        path = os.fspath(things)
        yield path
        yield os.path.join(path, "datalist.json")
    elif isinstance(things, Mapping):
        yield from (os.fspath(things[key]) for key in PATH_KEYS if isinstance(things.get(key), (str, os.PathLike)))
    elif isinstance(things, Iterable):
        for thing in things:
            yield from _files_of(thing)


def _identities(path: str, folders: dict[str, str]) -> list[Hashable]:
    """Return keys that two paths of one file share: its real path and, if the file exists, its inode."""
    folder, name = os.path.split(os.path.abspath(path))
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    keys: list[Hashable] = [os.path.normcase(os.path.join(folders[folder], name))]
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return keys
    return [*keys, (status.st_dev, status.st_ino)] if status.st_ino else keys


def temporary_name(name: str) -> str:
    """Make a hidden name for a file being written; it ends as `name` does, since writers go by the suffix, and is never too long."""
    head = f".{os.getpid()}-{os.urandom(4).hex()}."
    while len(os.fsencode(head + name)) > MAX_NAME_BYTES:
        name = name[1:]
    return head + name


# ---- names of results


def result_names(paths: Sequence[str], stems: Sequence[str], longest_end: str = "_spread.nii.gz") -> list[str]:
    """Make a name for the results of each image: its stem, or its folders and its stem where stems repeat.

    A name is visible, not an option to a command, short enough for every suffix, and unique, even if the file system ignores case and
    the encoding of accents, and beside the other files of a result (`CASE_spread`). Where needed, letters are replaced by `_`, names are
    cut, or get the first digits of a hash of the path below the images' common folder: the same images get the same names.

    Args:
        paths: absolute.
        stems: names of these files without suffix.
        longest_end: longest text that follows a name.
    Raises:
        ValueError: if a path is given twice.
    """
    if len({*paths}) < len(paths):
        twice = next(path for path, count in Counter(paths).items() if count > 1)
        raise ValueError(f"{twice}: is listed twice, so its results would overwrite each other; list it once")
    folders = [os.path.dirname(path) for path in paths]
    root = os.path.commonpath(folders) if folders else ""
    below = [os.path.relpath(path, root) for path in paths]
    counts = Counter(stems)
    room = MAX_NAME_BYTES - len(longest_end)
    names = []
    for stem, path in zip(stems, below):
        folder = os.path.dirname(path).replace(os.sep, "_")
        names.append(_sound_name(f"{folder}_{stem}" if folder and counts[stem] > 1 else stem, path, room))
    used = {key for name in _RESERVED_NAMES for key in _name_keys(name)}
    # plain names first: names that need a hash are rarer
    for i in sorted(range(len(names)), key=lambda i: (names[i] != stems[i], _name_keys(names[i])[0], below[i])):
        digits = 8
        name = names[i]
        while used.intersection(_name_keys(name)):
            name = _with_hash(names[i], below[i], digits, room)
            digits += 8
        names[i] = name
        used.update(_name_keys(name))
    return names


def _sound_name(name: str, path: str, room: int) -> str:
    """Return a visible, printable name that leaves room for its suffixes."""
    name = "".join(char if char.isprintable() else "_" for char in name).lstrip(".-") or "image"
    return _with_hash(name, path, 8, room) if _num_bytes(name) > room else name


def _with_hash(name: str, path: str, digits: int, room: int) -> str:
    """Return a name, cut if need be, with digits of the hash of its path."""
    end = "_" + hashlib.sha256(os.fsencode(Path(path).as_posix())).hexdigest()[:digits]
    while _num_bytes(name + end) > room:
        name = name[:-1]
    return name + end


def _name_keys(name: str) -> list[str]:
    """Return the names of a case's files as a file system may compare them."""
    return [unicodedata.normalize("NFC", name + part).casefold() for part in RESULT_PARTS]


def _num_bytes(name: str) -> int:
    return len(name.encode("utf-8", "replace"))


# ---- a run's own folder, in which somebody may have laid links


def open_own(path: AnyPath, flags: int) -> int:
    """Open a regular file of a run's own folder, without following a link or waiting for a pipe.

    Args:
        path: the folder may be reached by links, the file itself may not be one.
        flags: of `os.open`. With O_TRUNC the file is emptied after it is known to be a regular one.
    Returns:
        descriptor, to be closed by the caller.
    Raises:
        ValueError: if the path is not a regular file.
        OSError: as in `os.open`.
    """
    empties = bool(flags & os.O_TRUNC)
    try:
        descriptor = os.open(path, flags & ~os.O_TRUNC | sum(getattr(os, n, 0) for n in _SPECIAL), 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.EMLINK) or os.path.islink(path):
            raise ValueError(_not_own(path, "a file")) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(_not_own(path, "a file"))
        if empties:
            os.ftruncate(descriptor, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def append_own(path: AnyPath) -> TextIO:
    """Open a text file of a run's own folder to add to it, as `open_own` does."""
    return os.fdopen(open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "a", encoding="utf-8")


def check_own_folders(folder: AnyPath, names: Iterable[str]) -> None:
    """Refuse a run's folder in which a folder that the run fills or empties is a link, or a file.

    Raises:
        ValueError: if it is; the message names it.
    """
    for path in (os.path.join(folder, name) for name in names):
        if os.path.lexists(path) and not is_real_folder(path):
            raise ValueError(_not_own(path, "a folder"))


def own_folder(path: AnyPath) -> Path:
    """Make a folder within a run's folder unless it exists; refuse a link in its place.

    Raises:
        ValueError: if the path is not a real folder.
    """
    path = Path(path)
    try:
        path.mkdir()
    except FileExistsError:
        if not is_real_folder(path):
            raise ValueError(_not_own(path, "a folder")) from None
    return path


def is_real_folder(path: AnyPath) -> bool:
    """Return whether a path is a folder and not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def remove_own_folder(path: AnyPath) -> None:
    """Remove a folder within a real folder, with all that it holds; of a link only the link itself is removed."""
    if not is_real_folder(os.path.dirname(os.path.abspath(path))):
        return
    if os.path.islink(path):
        os.unlink(path)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _not_own(path: AnyPath, expected: str) -> str:
    what = f"a link to {os.readlink(path)}" if os.path.islink(path) else "something else"
    return f"{os.fspath(path)}: expected {expected} of this run, got {what}; remove it, or give another folder"
