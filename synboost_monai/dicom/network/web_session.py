"""Talk HTTP with a DICOMweb service within bounds of size and time, and try again what may pass.

dicomweb-client and requests read whole answers into memory, wait as long as something drips in, and follow redirects. A `WebSession` is
a session of requests that does none of this: sizes are bounded before they are read, a service that is silent or too slow is cut off, no
redirect is followed, no cookie kept, no compressed answer taken, and neither a proxy nor a secret comes from a file that nobody named.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, TypeVar

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from synboost_monai.dicom.network.address import Access
from synboost_monai.dicom.network.common import NotReachableError
from synboost_monai.dicom.network.guard import Patience
from synboost_monai.dicom.network.tls import reason_of
from synboost_monai.dicom.quiet import quiet

T = TypeVar("T")
NETWORK_ERRORS = (requests.RequestException, HTTPError, HTTPException)
"""What a network, or the other end of it, can raise; an error of our disk is none of these."""
_LOST = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""Errors of an encrypted connection that ended, and may be made again."""
SLOW = "it was silent or too slow"
"""Why a service was cut off."""
PIECE_BYTES = 1 << 16
"""Bytes that are read at a time."""
BUSY = (408, 425, 429, 502, 503, 504)
"""Statuses of a service that may answer later."""
FAILED = 500
"""Status of a service that failed; it is asked again, but the fault may lie in this one object."""
MAX_FAULT_BYTES = 1 << 20
"""Most bytes that are read of an answer that says why something is refused."""


@dataclass(frozen=True)
class WebLimits:
    """Hold what a DICOMweb service may send us, and how long it may take."""

    max_object_mb: float = 4096
    """Largest object, in MB (2^20 bytes)."""
    max_json_mb: float = 16
    """Largest answer to a search, in MB (2^20 bytes); a page of it has 1 to 2 kB for each entry."""
    min_free_mb: float = 1024
    """MB (2^20 bytes) that stay free on the disk."""
    max_studies: int = 100_000
    """Most studies that a query may find."""
    max_instances: int = 20_000
    """Most objects of a study."""
    page: int = 500
    """Entries that are asked for at a time."""
    connect_seconds: float = 10
    """Seconds until a connection is made."""
    silent_seconds: float = 60
    """Seconds that a service may be silent, or too slow (`guard.Patience`)."""
    tries: int = 8
    """Times that something is asked; the delays below add up to one to two minutes."""
    first_delay: float = 1
    """Seconds until something is asked again; doubled each time, and shortened by chance to half of that at most."""
    longest_delay: float = 60
    """Longest such time, whatever the service wishes."""

    def __post_init__(self) -> None:
        for one in fields(self):
            if not getattr(self, one.name) > 0:
                raise ValueError(f"{one.name} must be above 0, got {getattr(self, one.name)!r}")


class AnswerError(Exception):
    """Say why one answer is of no use; others may be.

    Args:
        words: reason for the log, without any text of the service.
        status: HTTP status.
        body: start of the answer.
    """

    def __init__(self, words: str, status: int = 0, body: bytes = b"") -> None:
        super().__init__(words)
        self.status, self.body = status, body


class PassingError(Exception):
    """Say why an answer is of no use now; it is asked for again.

    Args:
        words: reason for the log, without any text of the service.
        wished: seconds that the service wishes to pass first.
    """

    def __init__(self, words: str, wished: float = 0.0) -> None:
        super().__init__(words)
        self.wished = wished


class WebSession(requests.Session):
    """Ask one DICOMweb service; for one thread at a time.

    Args:
        access: how we identify ourselves.
        limits: sizes and times.
        stop: when it is set, everything ends at once.
    """

    def __init__(self, access: Access, limits: WebLimits, stop: threading.Event) -> None:
        super().__init__()
        self._access, self.limits, self._stop = access, limits, stop
        self._line: socket.socket | None = None
        self.trust_env = False  # no .netrc, no proxy and no certificates that nobody named
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.headers.update({"Accept-Encoding": "identity", "User-Agent": "synboost"})
        self.auth = self._identified
        adapter = _Adapter(access, self._remember)
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Follow no redirect; requests would also read the whole body of one that is not followed."""

    def request(self, method: str, url: str, **options: Any) -> requests.Response:  # type: ignore[override]
        """Return an answer with its whole body, as dicomweb-client wants it; see `exchange`."""

        def whole(response: requests.Response, patience: Patience) -> requests.Response:
            response._content = b"".join(self.pieces(response, patience, self.limits.max_json_mb))
            response._content_consumed = True  # type: ignore[attr-defined]
            return response

        headers = {k: v for k, v in (options.get("headers") or {}).items() if k != "Host"}  # it would lack the port
        return self.exchange(method, url, whole, headers=headers)

    def exchange(
        self,
        method: str,
        url: str,
        read: Callable[[requests.Response, Patience], T],
        *,
        headers: Mapping[str, str] | None = None,
        body: Callable[[Patience], Any] | None = None,
    ) -> T:
        """Ask, and return what `read` makes of the answer; ask again, later and later, where that may help.

        Args:
            method, url, headers: of the request.
            read: called with an answer of success, whose body it reads by `pieces`.
            body: makes the body of the request, anew for each try.
        Raises:
            NotReachableError: if the service cannot be reached, or takes nothing from us.
            AnswerError: if this one request is refused, or its answer is of no use.
        """
        for number in range(self.limits.tries):
            is_last = number + 1 == self.limits.tries
            try:
                return self._ask(method, url, read, is_last, headers=dict(headers or {}), body=body)
            except PassingError as error:
                problem, wished = str(error), error.wished
            if self._stop.is_set():
                raise NotReachableError("this process is ending")
            if not is_last:
                delay = min(self.limits.first_delay * 2**number, self.limits.longest_delay)
                delay *= random.uniform(0.5, 1)  # noqa: S311  so that not all clients come back at once
                self._stop.wait(max(delay, min(wished, self.limits.longest_delay)))
        raise NotReachableError(f"{problem} ({self.limits.tries} times)")

    def _ask(
        self,
        method: str,
        url: str,
        read: Callable[[requests.Response, Patience], T],
        is_last: bool,
        *,
        headers: dict[str, str],
        body: Callable[[Patience], Any] | None,
    ) -> T:
        """Ask once; `is_last` says that it is not asked again.

        Raises:
            PassingError: if asking again may help.
        """
        with quiet(), _Watch(self.limits.silent_seconds, self._stop, self._cut) as watch:
            try:
                response = super().request(
                    method,
                    url,
                    headers=headers,
                    data=None if body is None else body(watch.patience),
                    stream=True,
                    allow_redirects=False,
                    timeout=(self.limits.connect_seconds, self.limits.silent_seconds),
                )
                with contextlib.closing(response):
                    self._check(response, watch.patience, is_last)
                    found = read(response, watch.patience)
            except (PassingError, *NETWORK_ERRORS) as error:
                if watch.has_cut:
                    raise PassingError(SLOW) from None
                raise error if isinstance(error, PassingError) else PassingError(self._words(error)) from None
        if watch.has_cut:  # an end that we made is no end of the answer
            raise PassingError(SLOW)
        return found

    def pieces(self, response: requests.Response, patience: Patience, max_mb: float) -> Iterator[bytes]:
        """Yield a body piece by piece.

        Raises:
            AnswerError: if there is more than `max_mb`.
        """
        too_long = AnswerError(f"its answer is larger than {max_mb:g} MB", response.status_code)
        announced = response.headers.get("Content-Length", "")
        if announced.isascii() and announced.isdigit() and int(announced[:20]) > max_mb * 2**20:
            raise too_long
        num_bytes = 0
        for piece in response.iter_content(PIECE_BYTES):
            patience.earn(len(piece))
            num_bytes += len(piece)
            if num_bytes > max_mb * 2**20:
                raise too_long
            yield piece

    def check_room(self, folder: Path) -> None:
        """Make sure that there is room on a disk.

        Raises:
            ValueError: if there is not.
        """
        if shutil.disk_usage(folder).free < self.limits.min_free_mb * 2**20:
            raise ValueError(
                f"{folder}: less than {self.limits.min_free_mb:g} MB are free on this disk; make room there"
            )

    def _check(self, response: requests.Response, patience: Patience, is_last: bool) -> None:
        """Make sure that an answer is one of success.

        Raises:
            PassingError: if asking again may help.
            NotReachableError, AnswerError: if it is of no use.
        """
        status = response.status_code
        if status in BUSY or (status == FAILED and not is_last):
            raise PassingError(f"it answers with status {status}", _seconds_of(response.headers.get("Retry-After", "")))
        if 300 <= status < 400:
            raise NotReachableError(
                f"it redirects (status {status}), which is not followed; give the address that it redirects to"
            )
        if status == 401:
            names = (
                f"{self._access.variables}TOKEN, or {self._access.variables}USER and {self._access.variables}PASSWORD"
            )
            raise NotReachableError(f"it does not let us in (status 401); set {names} in the environment")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise AnswerError("its answer is compressed, which was not asked for", status)
        if not 200 <= status < 300 or status == 206:
            body = b"".join(self.pieces(response, patience, MAX_FAULT_BYTES / 2**20))
            advice = {403: "; our user may not do this", 404: "; is the path of the address right?"}.get(status, "")
            raise AnswerError(f"it answers with status {status}{advice}", status, body)

    def _identified(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        access = self._access
        if access.token:
            request.headers["Authorization"] = f"Bearer {access.token}"
        elif access.user:
            words = b64encode(f"{access.user}:{access.password}".encode()).decode()
            request.headers["Authorization"] = f"Basic {words}"
        return request

    def _remember(self, line: socket.socket) -> None:
        """Keep a handle of a new connection; it stays valid when the connection is encrypted."""
        if self._line is not None:
            self._line.close()
        self._line = line.dup()

    def _cut(self) -> None:
        """End the connection, whatever its thread waits for."""
        if self._line is not None:
            with contextlib.suppress(OSError):
                self._line.shutdown(socket.SHUT_RDWR)

    def _words(self, error: Exception) -> str:
        """Say what went wrong without the words of the error, which hold the address and its query.

        Raises:
            NotReachableError: if trying again is of no use, as the other end is not whom we expect.
        """
        if isinstance(error, requests.Timeout):
            return SLOW
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLError) and not isinstance(cause, _LOST):
                raise NotReachableError(f"no encrypted connection: {reason_of(cause)}") from None
            cause = cause.__context__
        if isinstance(error, requests.exceptions.ChunkedEncodingError):
            return "its answer ended early"
        is_lost = isinstance(error, requests.ConnectionError)
        return "nobody answers, or the connection was lost" if is_lost else "its answer is damaged"


class _Adapter(HTTPAdapter):
    """Make the connections of a session: one at a time, whose sockets are remembered, with our own context for TLS."""

    def __init__(self, access: Access, remember: Callable[[socket.socket], None]) -> None:
        self._context = access.tls.client_context()
        super().__init__(pool_connections=1, pool_maxsize=1)

        class Plain(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                line = super()._new_conn()
                remember(line)
                return line

        class Encrypted(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                line = super()._new_conn()
                remember(line)
                return line

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class EncryptedPool(HTTPSConnectionPool):
            ConnectionCls = Encrypted

        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": EncryptedPool}

    def init_poolmanager(self, *places: Any, **options: Any) -> None:
        super().init_poolmanager(*places, **options, ssl_context=self._context)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Leave certificates to the context: requests would add the authorities of certifi to it."""


class _Watch:
    """Cut a connection when the time of the other end is over, or this process is ending; in `with`."""

    def __init__(self, seconds: float, stop: threading.Event, cut: Callable[[], None]) -> None:
        self.patience = Patience(seconds)
        self.has_cut = False
        self._done, self._stop, self._cut = threading.Event(), stop, cut
        self._step = min(1.0, seconds / 4)
        self._thread = threading.Thread(target=self._work, name="web-watch", daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._done.wait(self._step):
            if self.patience.is_out or self._stop.is_set():
                self.has_cut = True
                self._cut()  # again and again: a new connection may have been made meanwhile


def _seconds_of(text: str) -> float:
    """Return the seconds of the header Retry-After, which has a number or a date; 0 if it has neither."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        return (parsedate_to_datetime(text[:64]) - datetime.now(timezone.utc)).total_seconds()
    return 0.0
