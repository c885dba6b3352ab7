"""Play a DICOMweb service in a thread of this process, well-behaved or not."""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom

from synboost_monai.dicom.network.address import Access, WebAddress
from synboost_monai.dicom.network.web import WebArchive
from synboost_monai.dicom.network.web_session import WebLimits

BOUNDARY = "a boundary"
MULTIPART = f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'
QUICK = WebLimits(max_object_mb=1, max_json_mb=0.1, min_free_mb=1, silent_seconds=5, tries=3, first_delay=0.01, page=3)

Misbehave = Callable[["Handler", str], bool]
"""Is called with each request and its method; returns whether it has answered in the service's place."""


@dataclass
class FakeArchive:
    """Hold objects by UID, what was asked, and how the service misbehaves."""

    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Method and path with query of each request."""
    headers: list[dict[str, str]] = field(default_factory=list)
    misbehave: Misbehave = lambda handler, method: False
    failure: int | None = None
    """Reason for which nothing is stored."""
    stored: list[str] = field(default_factory=list)
    """UIDs of what came by STOW, each time."""
    port: int = 0
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/dicom-web"

    def client(self, limits: WebLimits = QUICK, query: str = "", **options: Any) -> WebArchive:
        access = options.pop("access", Access())
        return WebArchive(WebAddress.parse(self.url + query, "from", takes_query=True), access, limits, **options)

    def add(self, *paths: Path) -> None:
        for path in paths:
            content = path.read_bytes()
            self.objects[str(pydicom.dcmread(BytesIO(content), stop_before_pixels=True).SOPInstanceUID)] = content

    def num_asked(self, pattern: str) -> int:
        return sum(re.search(pattern, line) is not None for line in self.asked)

    @contextmanager
    def open(self, context: ssl.SSLContext | None = None) -> Iterator[FakeArchive]:
        archive = self

        class Bound(Handler):
            service = archive

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Bound)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who is cut off hangs up
        server.daemon_threads, server.block_on_close = True, False
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
            self.scheme = "https"
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def search(self, path: str, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        of_study = re.fullmatch(r".*/studies/([0-9.]+)/instances", path)
        headers = [pydicom.dcmread(BytesIO(o), stop_before_pixels=True) for o in self.objects.values()]
        headers = [
            h for h in headers if str(h.get("PatientID", "")) in query.get("PatientID", [str(h.get("PatientID", ""))])
        ]
        studies = [str(h.StudyInstanceUID) for h in headers]
        if of_study is None:
            found = [
                {"0020000D": _value(uid), "00201208": _value(studies.count(uid))} for uid in dict.fromkeys(studies)
            ]
        else:
            tags = {t: k for t, k in zip(("00080016", "00080018", "0020000D", "0020000E", "00080060", "00080070"),
                                         ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
                                          "Modality", "Manufacturer"))}  # fmt: skip
            found = [
                {t: _value(str(h.get(k, ""))) for t, k in tags.items()}
                | {"00080008": {"vr": "CS", "Value": [str(word) for word in h.get("ImageType", [])]}}
                for h in headers
                if str(h.StudyInstanceUID) == of_study[1]
            ]
        offset, limit = (int(query.get(name, ["0"])[0]) for name in ("offset", "limit"))
        return found[offset : offset + limit]


class Handler(BaseHTTPRequestHandler):
    """Answer the requests of one connection."""

    service: FakeArchive
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(
        self, body: bytes = b"", kind: str = "application/dicom+json", status: int = 200, **headers: str
    ) -> bool:
        self.send_response(status)
        for name, value in {"Content_Type": kind, "Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        return True

    def give(self, content: bytes) -> bool:
        return self.answer(enveloped(content), MULTIPART)

    def do_GET(self) -> None:
        if self._is_answered("GET"):
            return
        parts = urlsplit(self.path)
        if one := re.fullmatch(r"/dicom-web/studies/[0-9.]+/series/[0-9.]+/instances/([0-9.]+)", parts.path):
            found = self.service.objects.get(one[1])
            self.answer(status=404) if found is None else self.give(found)
        else:
            self.answer(json.dumps(self.service.search(parts.path, parse_qs(parts.query))).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._is_answered("POST"):
            return
        boundary = self.headers["Content-Type"].partition("boundary=")[2].encode()
        content = body.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n--" + boundary + b"--\r\n")
        uid = str(pydicom.dcmread(BytesIO(content)).SOPInstanceUID)
        if self.service.failure is not None:
            failed = {"00081155": _value(uid), "00081197": _value(self.service.failure)}
            self.answer(json.dumps({"00081198": {"vr": "SQ", "Value": [failed]}}).encode(), status=409)
            return
        self.service.objects[uid] = content
        self.service.stored.append(uid)
        self.answer(json.dumps({"00081199": {"vr": "SQ", "Value": [{"00081155": _value(uid)}]}}).encode())

    def _is_answered(self, method: str) -> bool:
        self.service.asked.append(f"{method} {self.path}")
        self.service.headers.append(dict(self.headers))
        return self.service.misbehave(self, method)


def enveloped(content: bytes, boundary: str = BOUNDARY) -> bytes:
    head = f"\r\n--{boundary}\r\nContent-Type: application/dicom; transfer-syntax=1.2.840.10008.1.2.1\r\n\r\n"
    return head.encode() + content + f"\r\n--{boundary}--\r\n".encode()


def _value(value: Any) -> dict[str, Any]:
    return {"vr": "UI", "Value": [value]}
