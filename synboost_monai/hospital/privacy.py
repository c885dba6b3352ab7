"""Decide what may be shown of a path, and by which names a ledger knows files, studies and objects.

Folders of a hospital are often named after patients. The ledger shows a path without the words that the headers of the run call
identifying; the hash of the whole path, kept beside it, still finds the file for those who have the folder.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache

from synboost_monai.dicom.identity.deidentify import pseudonymous_uid
from synboost_monai.dicom.identity.identifiers import fold, fold_character
from synboost_monai.dicom.reading.scanned_file import ScannedFile, short_hash
from synboost_monai.hospital.options import PATHS

HIDDEN = "[hidden]"
"""Text shown in place of identifying words."""


def path_sha256(relative: str) -> str:
    """Return the SHA-256 of a path's bytes in hexadecimal, which finds a file by its exact path, whatever is shown of it."""
    return hashlib.sha256(os.fsencode(relative)).hexdigest()


class Naming:
    """Name the files, studies and objects of a run: by UIDs and hashes, or, with the key of `--deidentify`, by keyed ones.

    A plain hash of a path, a file or a UID links a de-identified copy to its original for everybody who has the original, and so do the
    size and the time of a file. With a key each of them is keyed; studies and objects have the UIDs of their copies. The key of the hashes
    is derived slowly, so that a ledger does not help to guess the key itself.

    Args:
        key: key of the de-identification; None: names are plain.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key
        self._secret = None if key is None else _secret_of(key)

    @property
    def is_keyed(self) -> bool:
        """Return whether names are keyed, and so say nothing to others."""
        return self._key is not None

    def path(self, relative: str) -> str:
        """Return the name of a path, 64 hexadecimal digits."""
        return path_sha256(relative) if self._secret is None else self._keyed("path", os.fsencode(relative))

    def digest(self, sha256: str) -> str:
        """Return the name of a file's content from its SHA-256; '' where that is not known."""
        return sha256 if self._secret is None or not sha256 else self._keyed("content", sha256.encode())

    def instance(self, uid: str) -> str:
        """Return the UID of an object, or with a key of its copy; '' where there is none."""
        return uid if self._key is None or not uid else pseudonymous_uid(self._key, uid)

    def study(self, study_uid: str) -> str:
        """Return the name of a study and of its folder, 16 hexadecimal digits; '' where there is no UID."""
        return short_hash(self.instance(study_uid)) if study_uid else ""

    def state(self, file: ScannedFile) -> tuple[int, int]:
        """Return what changes when a file does: its size and time, or with a key 0 and a number that reveals neither."""
        if self._secret is None:
            return signed(file.size), signed(file.mtime_ns)
        state = f"{file.size} {file.mtime_ns} ".encode() + os.fsencode(file.relative)
        return 0, signed(int(self._keyed("state", state)[:16], 16))

    def settings(self, in_dir: str | os.PathLike[str]) -> dict[str, str]:
        """Return the settings that distinguish a run's input, and its key, from others."""
        place = os.fsencode(os.path.realpath(in_dir))
        if self._secret is None:
            return {"input": hashlib.sha256(place).hexdigest()[:16]}
        return {"input": self._keyed("input", place)[:16], "key": self._keyed("key", b"")[:16]}

    def _keyed(self, kind: str, content: bytes) -> str:
        assert self._secret is not None
        return hmac.new(self._secret, kind.encode() + b"\0" + content, hashlib.sha256).hexdigest()


def path_display(mode: str, identifiers: Iterable[str] = (), naming: Naming | None = None) -> Callable[[str], str]:
    """Return a function that shows a relative path as plain text, with nothing that could act on a terminal or table.

    Args:
        mode: `redacted` hides identifying words, `plain` hides nothing, `hashed` shows 16 digits of the path's hash.
        identifiers: all identifying words of the run, because a report that is not DICOM may be in the folder of a patient.
        naming: names of the run; with a key, every mode shows the start of its keyed hash, because files are often named after UIDs.
    Raises:
        ValueError: for another mode.
    """
    if mode not in PATHS:
        raise ValueError(f"privacy.py: paths can be {', '.join(PATHS)}, not {mode!r}")
    if naming is not None and naming.is_keyed:
        return lambda relative: naming.path(relative)[:16]
    if mode == "plain":
        return visible
    if mode == "hashed":
        return lambda relative: path_sha256(relative)[:16]
    words = frozenset(identifiers)
    return lambda relative: visible(redact(relative, words))


def redact(text: str, identifiers: frozenset[str]) -> str:
    """Replace every identifying word by `[hidden]`, in upper or lower case, with or without accents, also within other words.

    A word of two Latin letters or digits is hidden only where it stands alone, or it would be found everywhere.

    Args:
        text: a path.
        identifiers: folded words (`dicom/identity/identifiers.py`).
    """
    folded: list[str] = []
    origin: list[int] = []  # folding changes the number of characters
    for position, character in enumerate(text):
        for part in fold_character(character):
            folded.append(part)
            origin.append(position)
    haystack = "".join(folded)
    is_hidden = [False] * len(text)
    words, lengths = _by_length(identifiers)
    for start in range(len(haystack)):
        for length in lengths:
            if start + length > len(haystack):
                break
            if haystack[start : start + length] in words and _counts(haystack, start, length):
                for position in range(origin[start], origin[start + length - 1] + 1):
                    is_hidden[position] = True
    shown = []
    for position, character in enumerate(text):
        if not is_hidden[position]:
            shown.append(character)
        elif position == 0 or not is_hidden[position - 1]:
            shown.append(HIDDEN)
    return "".join(shown)


def visible(text: str) -> str:
    """Write out everything in a text that does not show: control and direction characters, line ends, bytes that are not UTF-8.

    A backslash is doubled, so that two different texts never look the same.
    """
    return "".join(_visible(character) for character in text)


def signed(number: int) -> int:
    """Wrap a whole number to SQLite's signed 64 bits: a wrong clock may date files after 2262, whose nanoseconds need more."""
    return (number + 2**63) % 2**64 - 2**63


@lru_cache(maxsize=1)
def _secret_of(key: bytes) -> bytes:
    """Derive the secret of a ledger's hashes, at 16 MB and some 50 ms a guess."""
    return hashlib.scrypt(key, salt=b"synboost ledger", n=1 << 14, r=8, p=1)


@lru_cache(maxsize=8)
def _by_length(identifiers: frozenset[str]) -> tuple[frozenset[str], tuple[int, ...]]:
    """Return the folded words of two characters or more, and their lengths, shortest first."""
    words = frozenset(word for word in map(fold, identifiers) if len(word) > 1)
    return words, tuple(sorted({len(word) for word in words}))


def _counts(haystack: str, start: int, length: int) -> bool:
    """Return whether a word that was found is hidden: always, except for two Latin characters within a longer word."""
    if length > 2 or not haystack[start : start + length].isascii():
        return True
    before, after = haystack[start - 1 : start], haystack[start + length : start + length + 1]
    return not (before.isalnum() or after.isalnum())


def _visible(character: str) -> str:
    """Return one character, or how it is written out."""
    if character == "\\":
        return "\\\\"
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:
        return f"\\x{number - 0xDC00:02x}"
    if character in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[character]
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return f"\\x{number:02x}" if number < 0x80 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
    return character
