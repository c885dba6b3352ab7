"""Search, fetch and store DICOM objects by DICOMweb (PS3.18: QIDO-RS, WADO-RS, STOW-RS), over a `WebSession`, which bounds everything.

dicomweb-client makes the searches and addresses. Objects themselves pass from the network to the disk and back piece by piece, as the files
that they are: dicomweb-client would hold them in memory, and read what it fetches as DICOM before anybody has checked it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import requests
from dicomweb_client import URI, DICOMwebClient

from synboost_monai.dicom.network.address import Access, WebAddress
from synboost_monai.dicom.network.common import SPACE_CHECK, NotReachableError
from synboost_monai.dicom.network.guard import Patience
from synboost_monai.dicom.network.send import in_syntax, meta_of
from synboost_monai.dicom.network.web_session import AnswerError, PassingError, WebLimits, WebSession
from synboost_monai.dicom.quiet import quiet
from synboost_monai.dicom.reading.scanned_file import is_own_overlay, is_uid, is_ultrasound
from synboost_monai.dicom.uids import EXPLICIT

ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*, application/dicom; transfer-syntax=*'
"""Objects as they were stored, not decoded; some services give a single object without an envelope."""
MAX_HEAD = 1 << 14
"""Most bytes before the content of a part."""
ALREADY_STORED = (0x0111, 0xB00E)
"""Failure reasons of an object that is there already: of PS3.7 (C.5.7), and of Azure. Of ours, the same UID means the same object."""
_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES = "00080016", "00080018", "0020000D", "0020000E"
_MODALITY, _MANUFACTURER, _IMAGE_TYPE, _NUM_INSTANCES = "00080060", "00080070", "00080008", "00201208"
_FAILED, _FAILURE, _STORED, _OF_INSTANCE = "00081198", "00081197", "00081199", "00081155"


@dataclass(frozen=True)
class WebStudy:
    """Hold what a search says of a study."""

    uid: str
    num_instances: int | None
    """Number of all its objects; None if the service does not say it."""


@dataclass(frozen=True)
class WebInstance:
    """Hold the UIDs of an ultrasound image."""

    study_uid: str
    series_uid: str
    uid: str


class WebArchive:
    """Reach one DICOMweb service; for one thread at a time.

    Args:
        address: where it is.
        access: how we identify ourselves.
        limits: what it may send.
        stop: when it is set, everything ends at once with `NotReachableError`.
    """

    def __init__(
        self,
        address: WebAddress,
        access: Access,
        limits: WebLimits | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._base, self._query, self._limits = address.base, address.query, limits or WebLimits()
        self._session = WebSession(access, self._limits, stop or threading.Event())
        self._client = DICOMwebClient(self._base, session=self._session)
        self._client.set_http_retry_params(retry=False)  # the session does it

    # --- QIDO: search ------------------------------------------------------------------------------------------------

    def studies(self) -> Iterator[WebStudy]:
        """Yield the studies that the query of the address finds.

        Raises:
            NotReachableError: if the service cannot be reached.
            AnswerError: if it refuses the query, or its answer is of no use.
        """

        def page(offset: int) -> Any:
            return self._client.search_for_studies(
                limit=self._limits.page, offset=offset, fields=[_NUM_INSTANCES], search_filters=self._query
            )

        for entry in _all(page, _STUDY, self._limits.max_studies, "studies"):
            count = _first(entry, _NUM_INSTANCES)
            is_number = isinstance(count, (int, str)) and str(count).isascii() and str(count).isdigit()
            yield WebStudy(_uid(entry, _STUDY), int(str(count)[:9]) if is_number else None)

    def instances(self, study_uid: str) -> Iterator[WebInstance]:
        """Yield the ultrasound images of a study, without overlays of ours.

        Raises:
            NotReachableError, AnswerError: as for `studies`.
        """

        def page(offset: int) -> Any:
            return self._client.search_for_instances(
                study_uid, limit=self._limits.page, offset=offset, fields=[_MANUFACTURER, _IMAGE_TYPE, _MODALITY]
            )

        for entry in _all(page, _SOP_INSTANCE, self._limits.max_instances, "objects of a study"):
            if is_ultrasound(str(_first(entry, _SOP_CLASS)), str(_first(entry, _MODALITY))) and not is_own_overlay(
                str(_first(entry, _MANUFACTURER)), [str(word) for word in _values(entry, _IMAGE_TYPE)]
            ):
                yield WebInstance(study_uid, _uid(entry, _SERIES), _uid(entry, _SOP_INSTANCE))

    # --- WADO: fetch -------------------------------------------------------------------------------------------------

    def retrieve(self, instance: WebInstance, target: Path, progress: Callable[[], None] = lambda: None) -> None:
        """Fetch an object with its pixels, as it was stored, into a file; what the file holds is not looked at.

        Args:
            instance: what is fetched.
            target: file that is written, or what came until an error.
            progress: called now and then while it comes.
        Raises:
            NotReachableError: if the service cannot be reached.
            AnswerError: if it does not give the object, or something larger than an object may be.
            ValueError: if there is no room on the disk.
        """

        def save(response: requests.Response, patience: Patience) -> None:
            kind = Message()
            kind["content-type"] = response.headers.get("Content-Type", "")[:1000]
            pieces = self._session.pieces(response, patience, self._limits.max_object_mb)
            if kind.get_content_type() == "multipart/related":
                pieces = single_part(pieces, kind.get_boundary() or "")
            elif kind.get_content_type() != "application/dicom":
                raise AnswerError("it gives something else than a DICOM object")
            room = 0
            with open(target, "wb") as file:
                for piece in pieces:
                    if room <= 0:
                        self._session.check_room(target.parent)
                        room = SPACE_CHECK
                    room -= file.write(piece)
                    progress()

        uri = URI(self._base, instance.study_uid, instance.series_uid, instance.uid)
        self._session.exchange("GET", str(uri), save, headers={"Accept": ACCEPT})

    # --- STOW: store -------------------------------------------------------------------------------------------------

    def send(self, paths: Sequence[Path], scratch: Path) -> Iterator[tuple[Path, str]]:
        """Store our own DICOM files, one after the other.

        A file that is not taken in its transfer syntax is sent as Explicit VR Little Endian, without further loss.

        Args:
            paths: paths of the files.
            scratch: folder for copies in another transfer syntax.
        Returns:
            Each path with '' if the file was accepted, or was there before, or else the reason.
        Raises:
            NotReachableError: if the service cannot be reached.
        """
        for path in paths:
            meta, refusal = meta_of(path), ""
            syntax, uid = str(meta.TransferSyntaxUID), str(meta.MediaStorageSOPInstanceUID)
            for target in dict.fromkeys((syntax, EXPLICIT)):
                with in_syntax(path, syntax, target, scratch) as ready:
                    refusal = self._store(ready, uid)
                if not refusal:
                    break
            yield path, refusal

    def _store(self, path: Path, uid: str) -> str:
        """Store a file, and return why it was refused; '' if it was not."""
        boundary = secrets.token_hex(24)

        def read(response: requests.Response, patience: Patience) -> str:
            try:
                body = b"".join(self._session.pieces(response, patience, 1))
            except AnswerError:
                body = b""
            return _refusal(response.status_code, body, uid)

        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": "application/dicom+json, application/dicom+xml;q=0.1",  # some know only the second
        }
        with contextlib.ExitStack() as stack:

            def body(patience: Patience) -> _Body:
                return stack.enter_context(contextlib.closing(_Body(path, boundary, patience)))

            try:
                return self._session.exchange("POST", f"{self._base}/studies", read, headers=headers, body=body)
            except AnswerError as error:
                return _refusal(error.status, error.body, uid, str(error))


class _Body:
    """Give a file as the body of a request with one part, piece by piece."""

    def __init__(self, path: Path, boundary: str, patience: Patience) -> None:
        self._file = open(path, "rb")  # noqa: SIM115  closed by `close`
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        self._rest = [head, None, f"\r\n--{boundary}--\r\n".encode()]
        self._length = path.stat().st_size + sum(len(part) for part in self._rest if part)
        self._patience = patience

    def __len__(self) -> int:
        return self._length

    def read(self, count: int = 1 << 16) -> bytes:
        """Return the next bytes; what is sent earns the other end time."""
        piece = b""
        while not piece and self._rest:
            part = self._rest[0]
            piece = self._file.read(max(count, 1 << 12)) if part is None else part
            if part is not None or not piece:
                self._rest.pop(0)
        self._patience.earn(len(piece))
        return piece

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def single_part(pieces: Iterable[bytes], boundary: str) -> Iterator[bytes]:
    """Yield the content of the only part of a multipart message (RFC 2046, 5.1), piece by piece.

    Raises:
        AnswerError: if it is not one DICOM object in such an envelope.
        PassingError: if the message ends early.
    """
    if not (0 < len(boundary) <= 70 and boundary.isascii()):
        raise AnswerError("its answer has several parts and does not say where they end")
    delimiter = b"\r\n--" + boundary.encode()
    coming, waiting = iter(pieces), bytearray(b"\r\n")

    def take() -> None:
        piece = next(coming, None)
        if piece is None:
            raise PassingError("its answer ended early")
        waiting.extend(piece)

    while (start := waiting.find(delimiter)) < 0 or (end := waiting.find(b"\r\n\r\n", start + len(delimiter))) < 0:
        if len(waiting) > MAX_HEAD:
            raise AnswerError("the envelope of its answer is damaged")
        take()
    head = bytes(waiting[start + len(delimiter) : end]).lower()
    if b"content-type:" in head and b"application/dicom" not in head.replace(b" ", b""):
        raise AnswerError("it gives something else than a DICOM object")
    del waiting[: end + 4]
    while (end := waiting.find(delimiter)) < 0:
        if len(waiting) >= len(delimiter):
            num_sure = len(waiting) - len(delimiter) + 1  # the rest may be the start of a delimiter
            yield bytes(waiting[:num_sure])
            del waiting[:num_sure]
        take()
    yield bytes(waiting[:end])
    del waiting[: end + len(delimiter)]
    while len(waiting) < 2:
        take()
    if waiting[:2] != b"--":
        raise AnswerError("it gives more than the one object that was asked for")
    for _ in itertools.islice(coming, 2):  # to its end, so that the connection can be used again
        pass


def _all(page: Callable[[int], Any], key: str, limit: int, what: str) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of a search, page by page, each UID once, until a page brings none that is new.

    Raises:
        AnswerError: if there are more than `limit`, or an answer is not DICOM JSON.
    """
    known: set[str] = set()
    offset = 0
    while True:
        entries = _searched(page, offset)
        uids, num_known = [_uid(entry, key) for entry in entries], len(known)
        for uid, entry in zip(uids, entries):
            if uid not in known:
                known.add(uid)
                if len(known) > limit:
                    raise AnswerError(f"it finds more than {limit} {what}; narrow the query")
                yield entry
        if len(known) == num_known:
            return
        offset += len(entries)


def _searched(page: Callable[[int], Any], offset: int) -> list[Mapping[str, Any]]:
    """Return one page of a search."""
    try:
        with quiet():
            entries = page(offset)
        if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
            return entries
    except (NotReachableError, AnswerError):
        raise
    except (ValueError, TypeError, AttributeError, RecursionError, requests.RequestException):
        pass
    raise AnswerError("its answer to a search is not the JSON of DICOM; is the path of the address right?")


def _values(entry: Mapping[str, Any], tag: str) -> list[Any]:
    """Return the values of an attribute in DICOM JSON (PS3.18, F.2); none if it is absent or of another form."""
    element = entry.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _first(entry: Mapping[str, Any], tag: str) -> Any:
    """Return the first value of an attribute; '' if there is none."""
    return next(iter(_values(entry, tag)), "")


def _uid(entry: Mapping[str, Any], tag: str) -> str:
    """Return a UID.

    Raises:
        AnswerError: if it is not one.
    """
    uid = _first(entry, tag)
    if isinstance(uid, str) and is_uid(uid):
        return uid
    raise AnswerError("its answer to a search has an entry without a valid UID")


def _refusal(status: int, body: bytes, uid: str, words: str = "") -> str:
    """Return why an object was not stored (PS3.18, 10.5.3); '' if it was, or was there before.

    Args:
        status: of the answer.
        body: JSON, which not every service gives.
        uid: of the object.
        words: why the request was refused, if it was.
    """
    answer: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        answer = json.loads(body)
    if isinstance(answer, list):
        answer = answer[0] if answer else None
    answer = answer if isinstance(answer, dict) else {}
    failed, stored = (
        [item for item in _values(answer, tag) if isinstance(item, dict) and _first(item, _OF_INSTANCE) in ("", uid)]
        for tag in (_FAILED, _STORED)
    )
    for item in failed:
        reason = _first(item, _FAILURE)
        if reason in ALREADY_STORED:
            return ""
        number = f"0x{reason:04X}" if isinstance(reason, int) and 0 <= reason <= 0xFFFF else "unknown"
        return f"the archive does not store it (failure reason {number})"
    if words:
        return words
    if status == 202 and not stored:
        return "the archive does not say whether it stores it (status 202)"
    return ""
