"""Fetch the studies that a DICOMweb service has into an inbox: what is new there, each object once.

    FOLDER/inbox/STUDY/OBJECT.dcm     what came; names are hashes
    FOLDER/work/fetching/             what is coming; emptied at each start

An object counts as fetched when its file is in the inbox, where it lies whole and on the disk or not at all. So a process that was ended in
any way goes on with what is missing, and nothing else has to be recorded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from synboost_monai.dicom.limits import Limits
from synboost_monai.dicom.network.common import NotReachableError, Status
from synboost_monai.dicom.reading.scanned_file import short_hash
from synboost_monai.hospital.inbox import Inbox
from synboost_monai.paths import check_own_folders, own_folder, remove_own_folder

if TYPE_CHECKING:
    from synboost_monai.dicom.network.web import WebArchive, WebInstance

INBOX, WORK, FETCHING = "inbox", "work", "fetching"
"""Folders, the last one in the second."""
CONNECTION = -1
"""Number of the connection of what is fetched; those of senders count from 0."""
MAX_FAILURES = 3
"""Times that an object may fail before it is left alone; a new start tries again."""
_WORDS = {
    Status.MISMATCH: "the archive gives another object than was asked for",
    Status.CANNOT_UNDERSTAND: "what the archive gives is not a DICOM object",
}


@dataclass
class Fetched:
    """Hold what a search brought."""

    num_studies: int = 0
    num_new: int = 0
    num_failed: int = 0
    """Objects that could not be fetched, those left alone included."""


class Fetcher:
    """Fetch what an archive has and the inbox has not.

    Args:
        archive: where studies are searched.
        inbox: where objects go.
        folder: folder for what is coming, on the same disk as the inbox; emptied.
        say: called with one line for each event, which holds nothing of a patient.
    """

    def __init__(self, archive: WebArchive, inbox: Inbox, folder: Path, say: Callable[[str], None]) -> None:
        self._archive, self._inbox, self._folder, self._say = archive, inbox, folder, say
        remove_own_folder(folder)
        folder.mkdir(parents=True)
        self._whole: dict[str, int] = {}
        """Study all of whose images are here -> number of its objects in the archive, then."""
        self._failures: dict[str, int] = {}
        self._unlisted: dict[str, str] = {}
        """Study whose objects could not be listed -> why, the last time."""

    def run(self, progress: Callable[[], None] = lambda: None) -> Fetched:
        """Search once, and fetch what is new.

        Args:
            progress: called after each study.
        Raises:
            NotReachableError, AnswerError: if the archive cannot be searched; what came until then is here.
            ValueError: if there is no room.
        """
        found = Fetched()
        for study in self._archive.studies():
            found.num_studies += 1
            name = short_hash(study.uid)
            if study.num_instances is None or self._whole.get(name) != study.num_instances:
                num_new, num_failed = self._fetch(study.uid, name)
                found.num_new += num_new
                found.num_failed += num_failed
                if study.num_instances is not None and not num_failed:
                    self._whole[name] = study.num_instances
            progress()
        return found

    def _fetch(self, study_uid: str, name: str) -> tuple[int, int]:
        """Fetch what is new of a study; return the numbers of objects that came and that failed."""
        from synboost_monai.dicom.network.web_session import AnswerError

        try:
            instances = list(self._archive.instances(study_uid))
        except AnswerError as error:  # the other studies go on
            if self._unlisted.get(name) != str(error):  # a node comes here again and again
                self._unlisted[name] = str(error)
                self._say(f"study {name}: its objects cannot be listed: {error}")
            return 0, 1
        away = [one for one in instances if not self._inbox.has(study_uid, one.uid)]
        missing = [one for one in away if self._failures.get(short_hash(one.uid), 0) < MAX_FAILURES]
        num_failed = len(away) - len(missing)
        if all(self._inbox.had(study_uid, one.uid) for one in missing):
            return 0, num_failed  # a removed study that grew comes whole once more, as its measures need all
        num_new = 0
        for one in missing:
            which = short_hash(one.uid)
            try:
                problem = self._fetch_one(one)
            except AnswerError as error:
                problem = str(error)
            if problem:
                self._failures[which] = self._failures.get(which, 0) + 1
                self._say(f"study {name}: object {which} was not fetched: {problem}")
            num_new, num_failed = num_new + (not problem), num_failed + bool(problem)
        if num_new:
            self._say(f"study {name}: {num_new} objects fetched")
        return num_new, num_failed

    def _fetch_one(self, instance: WebInstance) -> str:
        """Fetch an object into the inbox, and return why it was not kept."""
        path = self._folder / f"{short_hash(instance.uid)}.dcm"
        try:
            self._archive.retrieve(instance, path, lambda: self._inbox.progress(CONNECTION))
            status = self._inbox.store(path, instance.uid, CONNECTION, instance.study_uid)
        finally:
            path.unlink(missing_ok=True)
        if status == Status.OUT_OF_RESOURCES:
            raise ValueError(f"{self._inbox.folder}: the inbox is full; make room, or let it hold more")
        return _WORDS.get(status, "")


def fetch_into(folder: Path, archive: WebArchive, limits: Limits, progress: bool = True) -> Fetched:
    """Fetch the studies of a query into `folder`/inbox, once; the caller holds the folder.

    Raises:
        ValueError: if the archive cannot be searched, or there is no room.
    """
    from tqdm import tqdm

    from synboost_monai.dicom.network.web_session import AnswerError

    check_own_folders(folder, [INBOX, WORK])
    inbox = Inbox(folder / INBOX, limits, max_mb=float("inf"))
    with tqdm(desc="fetch", unit="study", disable=not progress, leave=False) as bar:
        fetcher = Fetcher(
            archive, inbox, own_folder(folder / WORK) / FETCHING, lambda line: tqdm.write(line, sys.stderr)
        )
        try:
            found = fetcher.run(bar.update)
        except (NotReachableError, AnswerError) as error:
            raise ValueError(
                f"from: the archive cannot be searched: {error}; what came is kept, go on by --resume"
            ) from None
    failed = f", {found.num_failed} objects could not be fetched" if found.num_failed else ""
    print(f"{found.num_studies} studies found, {found.num_new} new objects fetched{failed}", file=sys.stderr)
    return found
