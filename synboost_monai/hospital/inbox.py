"""Keep the objects that a node receives, one folder per study, and say which studies are complete.

Names are hashes: of the study's UID, and of the object's UID and content, so that an object that comes twice is one file, and two
objects that claim the same UID are both there for the scan to find. A file is whole and on the disk before its sender hears of success.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

from synboost_monai.dicom.limits import Limits
from synboost_monai.dicom.network.common import Status
from synboost_monai.dicom.reading.files import file_digest, open_regular
from synboost_monai.dicom.reading.scanned_file import SOP_INSTANCE, STUDY, is_uid, short_hash
from synboost_monai.dicom.reading.structure import walk_file
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.dicom.writing.objects import sync_folder
from synboost_monai.files import atomic_write_text, read_text
from synboost_monai.paths import is_real_folder, own_folder

REMOVED = "removed"
"""Folder beside the inbox: for each study that was removed, a file with the hashes of its objects' UIDs."""
MIN_BYTES = 1 << 16
"""Smallest size that an object counts as: files cost the disk more than their bytes, and studies take time."""


class Inbox:
    """Hold the objects that have come in; all methods may be called from any thread.

    Args:
        folder: made if missing; objects that are already there count towards `max_mb`.
        limits: limits of a file.
        max_mb: MB (2^20 bytes) that it may hold; beyond, objects are refused for want of room.
    """

    def __init__(self, folder: Path, limits: Limits, max_mb: float) -> None:
        self.folder, self._limits, self._max_bytes = folder, limits, max_mb * 2**20
        folder.parent.mkdir(parents=True, exist_ok=True)
        own_folder(folder)
        self._record = folder.parent / REMOVED
        self._lock = threading.Lock()
        self._num_bytes = sum(_counted(path.stat().st_size) for path in folder.glob("*/*.dcm"))
        self._last: dict[str, float] = {}
        """Study that is not done -> when something last came for it, in monotonic seconds."""
        self._study_of: dict[int, str] = {}
        """Connection -> study of its last object."""

    def store(self, path: Path, sop_instance_uid: str, connection: int, study_instance_uid: str = "") -> Status:
        """Keep an object, and return the status for its sender (see `dicom/network/receive.py`).

        Args:
            path, sop_instance_uid, connection: as for a `Receiver`.
            study_instance_uid: UID of the study that it must be of, if that is known.
        """
        try:
            with open_regular(path) as file:
                structure = walk_file(file, self._limits, frozenset({SOP_INSTANCE, STUDY}))
                size = _counted(file.size)
            content = file_digest(path)
        except NotUsableError:
            return Status.CANNOT_UNDERSTAND
        study_uid = structure.text(STUDY)
        if not is_uid(study_uid) or not is_uid(sop_instance_uid):
            return Status.CANNOT_UNDERSTAND
        if structure.text(SOP_INSTANCE) != sop_instance_uid or study_instance_uid not in ("", study_uid):
            return Status.MISMATCH
        study = short_hash(study_uid)
        target = self.folder / study / f"{short_hash(sop_instance_uid)}_{content[:16]}.dcm"
        with self._lock:
            self._study_of[connection] = study
            if target.exists():
                if study in self._last:
                    self._last[study] = time.monotonic()
                return Status.SUCCESS
            if self._num_bytes + size > self._max_bytes:
                return Status.OUT_OF_RESOURCES
            self._num_bytes += size
        try:
            with open(path, "rb") as opened:
                os.fsync(opened.fileno())
            with self._lock:  # not while the study's folder is being removed
                own_folder(target.parent)
                os.replace(path, target)
                sync_folder(target.parent)
                sync_folder(self.folder)
                self._last[study] = time.monotonic()
        except (OSError, ValueError):
            with self._lock:
                self._num_bytes -= size
            raise
        return Status.SUCCESS

    def progress(self, connection: int) -> None:
        """Note that more of an object comes over this connection, so that its study is not complete yet."""
        study = self._study_of.get(connection)
        if study is not None:
            with self._lock:
                if study in self._last:
                    self._last[study] = time.monotonic()

    def closed(self, connection: int) -> None:
        """Forget a connection that has ended."""
        with self._lock:
            self._study_of.pop(connection, None)

    def studies(self) -> list[str]:
        """Return the names of all studies."""
        return sorted(path.name for path in self.folder.iterdir() if is_real_folder(path))

    def names(self, study: str) -> list[str]:
        """Return the names of a study's objects."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(path.name for path in (self.folder / study).iterdir())
        return []

    def has(self, study_instance_uid: str, sop_instance_uid: str) -> bool:
        """Return whether an object is here."""
        study, name = short_hash(study_instance_uid), short_hash(sop_instance_uid)
        return next((self.folder / study).glob(f"{name}_*.dcm"), None) is not None

    def had(self, study_instance_uid: str, sop_instance_uid: str) -> bool:
        """Return whether an object was here and has been removed, because its study was done."""
        return short_hash(sop_instance_uid) in self._removed(short_hash(study_instance_uid))

    def put_off(self, study: str, seconds: float = 0) -> None:
        """Count a study as not done, as if something last came for it `seconds` from now."""
        with self._lock:
            self._last[study] = max(self._last.get(study, 0.0), time.monotonic() + seconds)

    def take_complete(self, quiet_seconds: float) -> str | None:
        """Return the study that has been quiet longest, if for `quiet_seconds`, and stop counting it as not done; None: none yet."""
        with self._lock:
            study = min(self._last, key=lambda name: self._last[name], default=None)
            if study is None or time.monotonic() - self._last[study] < quiet_seconds:
                return None
            del self._last[study]
            return study

    def remove(self, study: str) -> None:
        """Remove a study's objects, unless more of it has come; their names stay on record, so that none is fetched again."""
        with self._lock:
            if study in self._last:
                return
            folder = self.folder / study
            if not is_real_folder(folder):
                return
            names = self._removed(study) | {path.name.partition("_")[0] for path in folder.glob("*.dcm")}
            atomic_write_text(own_folder(self._record) / study, "\n".join(sorted(names)))
            for path in sorted(folder.glob("*")):
                self._num_bytes -= _counted(path.stat().st_size)
                path.unlink()
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _removed(self, study: str) -> frozenset[str]:
        """Return the hashes of the UIDs of a study's objects that were removed."""
        path = self._record / study
        return frozenset(read_text(path).split()) if path.is_file() else frozenset()


def _counted(size: int) -> int:
    return max(size, MIN_BYTES)
