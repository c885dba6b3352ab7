"""Test DICOMweb against a service that behaves well or badly: bounds, times, redirects, secrets, retries, refusals."""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

pytest.importorskip("dicomweb_client", reason='it is not installed: pip install "synboost-monai[dicomweb]"')
from synboost_monai.dicom.elements import EncapsulatedPixels  # noqa: E402
from synboost_monai.dicom.network.address import Access, WebAddress  # noqa: E402
from synboost_monai.dicom.network.common import NotReachableError  # noqa: E402
from synboost_monai.dicom.network.web import WebInstance, single_part  # noqa: E402
from synboost_monai.dicom.network.web_session import AnswerError, PassingError, WebLimits  # noqa: E402
from synboost_monai.dicom.uids import RLE  # noqa: E402
from synboost_monai.dicom.writing.objects import save  # noqa: E402
from tests.web_archive import BOUNDARY, MULTIPART, QUICK, FakeArchive, Handler, enveloped  # noqa: E402

ONE = WebInstance("1.2.3", "1.2.4", "1.2.5")
CONTENT = bytes(range(256)) * 300 + b"\r\n--a bound" + bytes(1000)


@pytest.fixture
def archive() -> Iterator[FakeArchive]:
    with FakeArchive({ONE.uid: CONTENT}).open() as opened:
        yield opened


def test_object_comes_as_it_was_stored(archive: FakeArchive, tmp_path: Path) -> None:
    archive.client().retrieve(ONE, tmp_path / "one")
    assert (tmp_path / "one").read_bytes() == CONTENT
    assert "transfer-syntax=*" in archive.headers[0]["Accept"]
    assert archive.headers[0]["Host"] == f"127.0.0.1:{archive.port}"
    archive.misbehave = lambda handler, _: handler.answer(CONTENT, "application/dicom")  # without an envelope
    archive.client().retrieve(ONE, tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [1, 2, 7, 1000, 10**6])
def test_part_is_found_however_it_is_cut(size: int) -> None:
    whole = b"preamble" + enveloped(CONTENT) + b"epilogue"
    pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
    assert b"".join(single_part(pieces, BOUNDARY)) == CONTENT
    for end in (10, 100, len(whole) - 20):
        with pytest.raises(PassingError):
            list(single_part([whole[:end]], BOUNDARY))
    with pytest.raises(AnswerError, match="more than the one"):
        list(single_part([enveloped(b"1").removesuffix(b"--\r\n") + enveloped(b"2")], BOUNDARY))
    with pytest.raises(AnswerError, match="envelope"):
        list(single_part([bytes(1 << 15)], BOUNDARY))


def endless(
    handler: Handler, kind: str, piece: bytes = bytes(1 << 16), pause: float = 0.0, status: int = 200, **headers: str
) -> bool:
    """Send a body that does not end until the other end hangs up; returns True."""
    handler.send_response(status)
    for name, value in {"Content-Type": kind, **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    try:
        handler.wfile.write(f"\r\n--{BOUNDARY}\r\n\r\n".encode())
        while True:
            handler.wfile.write(piece)
            time.sleep(pause)
    except OSError:
        handler.close_connection = True
        return True


def dripping_header(handler: Handler, _: str) -> bool:
    try:
        while True:
            handler.wfile.write(b"H")
            time.sleep(0.05)
    except OSError:
        handler.close_connection = True
        return True


def cut(content: bytes, kind: str = MULTIPART) -> Callable[[Handler, str], bool]:
    """End an answer early that announces more."""

    def answer(handler: Handler, _: str) -> bool:
        handler.answer(content[:1000], kind, Content_Length=str(len(content)))
        handler.close_connection = True
        return True

    return answer


@pytest.mark.parametrize(
    ("misbehave", "error", "num_asked"),
    [
        (lambda h, _: h.answer(kind=MULTIPART, Content_Length=str(2**40)), r"larger than 1 MB", 1),
        (lambda h, _: endless(h, MULTIPART), "larger than 1 MB", 1),
        (lambda h, _: endless(h, MULTIPART, b"x", 0.02), r"silent or too slow \(3 times\)", 3),
        (dripping_header, r"silent or too slow \(3 times\)", 3),
        (lambda h, _: bool(time.sleep(0.7)) or h.answer(), "silent or too slow", 3),
        (cut(enveloped(CONTENT)), r"ended early \(3 times\)", 3),
        (lambda h, _: h.answer(enveloped(CONTENT)[:-8], MULTIPART), r"ended early \(3 times\)", 3),
        (lambda h, _: h.answer(b"<html>", "text/html"), "something else than a DICOM object", 1),
        (lambda h, _: h.answer(CONTENT, "multipart/related"), "does not say where they end", 1),
        (lambda h, _: h.answer(b"x", "application/dicom", Content_Encoding="gzip"), "is compressed", 1),
        (lambda h, _: h.answer(Content_Length="1, 2"), "its answer is damaged", 3),
        (lambda h, _: h.answer(status=404), "status 404; is the path", 1),
        (lambda h, _: h.answer(status=403), "status 403; our user", 1),
        (lambda h, _: h.answer(status=401), "status 401.; set SYNBOOST_DICOMWEB_TOKEN", 1),
        (lambda h, _: h.answer(status=500), "status 500", 3),
        (lambda h, _: h.answer(status=503), r"status 503 \(3 times\)", 3),
        (lambda h, _: h.answer(b"x" * 10**6 * 2, status=400), "larger than 1 MB", 1),
    ],
)
def test_bad_answer_is_told_within_bounds(
    misbehave: Any, error: str, num_asked: int, archive: FakeArchive, tmp_path: Path
) -> None:
    archive.misbehave = misbehave
    limits = replace(QUICK, silent_seconds=0.3 if "slow" in error else 5)
    with pytest.raises((NotReachableError, AnswerError), match=error):
        archive.client(limits).retrieve(ONE, tmp_path / "one")
    assert len(archive.asked) == num_asked
    assert not (tmp_path / "one").exists() or (tmp_path / "one").stat().st_size <= 2**20


def test_redirect_is_not_followed_and_no_secret_goes_elsewhere(archive: FakeArchive, tmp_path: Path) -> None:
    with FakeArchive({ONE.uid: CONTENT}).open() as other:
        for status in (301, 302, 303, 307, 308):
            archive.misbehave = lambda h, _, s=status: h.answer(status=s, Location=other.url + h.path)
            client = archive.client(access=Access(token="secret"))
            with pytest.raises(NotReachableError, match=f"redirects .status {status}"):
                client.retrieve(ONE, tmp_path / "one")
            with pytest.raises(NotReachableError, match="redirects"):
                list(client.studies())
        assert other.asked == []

        def endless_redirect(handler: Handler, _: str) -> bool:
            return endless(handler, MULTIPART, bytes(1 << 16), 0.01, status=302, Location=other.url)

        archive.misbehave, began = endless_redirect, time.monotonic()
        with pytest.raises(NotReachableError, match="redirects"):
            archive.client(access=Access(token="secret")).retrieve(ONE, tmp_path / "one")
        assert time.monotonic() - began < 4  # its body is not read
    assert {headers["Authorization"] for headers in archive.headers} == {"Bearer secret"}


def test_service_that_is_busy_is_asked_again_and_its_wish_is_bounded(archive: FakeArchive, tmp_path: Path) -> None:
    answers = iter([(503, "0"), (429, "Wed, 21 Oct 2099 07:28:00 GMT")])

    def busy(handler: Handler, _: str) -> bool:
        status, wish = next(answers, (0, ""))
        return bool(status) and handler.answer(status=status, Retry_After=wish)

    archive.misbehave = busy
    began = time.monotonic()
    archive.client(WebLimits(tries=3, first_delay=0.01, longest_delay=0.2, min_free_mb=1)).retrieve(
        ONE, tmp_path / "one"
    )
    assert 0.2 < time.monotonic() - began < 5 and len(archive.asked) == 3


def test_nobody_answers_and_an_end_is_immediate(tmp_path: Path) -> None:
    archive = FakeArchive()
    with archive.open():
        pass  # a port that is free
    with pytest.raises(NotReachableError, match=r"nobody answers, or the connection was lost \(3 times\)"):
        archive.client().retrieve(ONE, tmp_path / "one")
    stop = threading.Event()
    with FakeArchive().open() as silent:
        silent.misbehave = lambda h, _: bool(time.sleep(3)) or h.answer()
        threading.Timer(0.2, stop.set).start()
        began = time.monotonic()
        with pytest.raises(NotReachableError, match="ending"):
            silent.client(WebLimits(silent_seconds=2), stop=stop).retrieve(ONE, tmp_path / "one")
        assert time.monotonic() - began < 2


def test_full_disk_is_told(archive: FakeArchive, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="MB are free on this disk"):
        archive.client(WebLimits(min_free_mb=1e12)).retrieve(ONE, tmp_path / "one")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"[" * 60_000, "not the JSON of DICOM"),
        (b"<html>", "not the JSON of DICOM"),
        (b'{"0020000D": 3}', "without a valid UID"),
        (b"[3]", "not the JSON of DICOM"),
        (b'[{"0020000D": {"Value": ["../../etc"]}}]', "without a valid UID"),
        (b'[{"0020000D": {"Value": [["1.2"]]}}]', "without a valid UID"),
        (b" " * 200_000, "larger than 0.1 MB"),
    ],
)
def test_bad_answer_to_a_search_is_told(body: bytes, error: str, archive: FakeArchive) -> None:
    archive.misbehave = lambda handler, _: handler.answer(body)
    with pytest.raises(AnswerError, match=error):
        list(archive.client().studies())


def test_pages_are_all_read_and_those_that_repeat_end(archive: FakeArchive) -> None:
    def entries(handler: Handler, uids: range) -> bool:
        return handler.answer(str([{"0020000D": {"Value": [f"1.2.{i}"]}} for i in uids]).replace("'", '"').encode())

    def paged(handler: Handler, _: str) -> bool:
        offset = int(handler.path.partition("offset=")[2].partition("&")[0])
        return entries(handler, range(1 + offset, min(1 + offset + 2, 8)))  # less than was asked for

    archive.misbehave = paged
    assert [study.uid for study in archive.client().studies()] == [f"1.2.{i}" for i in range(1, 8)]
    archive.misbehave = lambda handler, _: entries(handler, range(1, 5))  # whatever the offset
    assert len(list(archive.client().studies())) == 4
    count = iter(range(10**6))
    archive.misbehave = lambda handler, _: entries(handler, range(1 + 3 * (n := next(count)), 4 + 3 * n))  # for ever
    with pytest.raises(AnswerError, match="more than 20 studies; narrow the query"):
        list(archive.client(WebLimits(max_studies=20)).studies())


def test_empty_answer_finds_nothing(archive: FakeArchive) -> None:
    archive.misbehave = lambda handler, _: handler.answer(status=204)
    assert list(archive.client().studies()) == []
    assert archive.headers[0]["Host"] == f"127.0.0.1:{archive.port}"


# --- store


def write_result(path: Path) -> Path:
    """Write a small result in RLE."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7.4", "1.2.3.4"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.NumberOfFrames = 7, 9, 1, 1
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation, dataset.PhotometricInterpretation = 7, 0, "MONOCHROME2"

    def write_tail(file: Any) -> None:
        from rle.rle import encode_frame

        pixels = EncapsulatedPixels(file, 1)
        pixels.add(encode_frame(np.arange(63, dtype=np.uint8).tobytes(), 7, 9, 1, 8, "<"))
        pixels.close()

    save(dataset, path, write_tail, RLE)
    return path


def refused_unless_plain(handler: Handler, _: str) -> bool:
    handler.service.asked[-1] += " again" * (len(handler.service.asked) > 1)
    return len(handler.service.asked) == 1 and handler.answer(status=415)


@pytest.mark.parametrize(
    ("misbehave", "failure", "refusal", "num_asked"),
    [
        (None, None, "", 1),
        (None, 0xA700, "the archive does not store it (failure reason 0xA700)", 2),
        (None, 0x0111, "", 1),  # it is there
        (None, 0xB00E, "", 1),
        (refused_unless_plain, None, "", 2),
        (lambda h, _: h.answer(status=202), None, "the archive does not say whether it stores it (status 202)", 2),
        (lambda h, _: h.answer(b"<xml/>", "application/dicom+xml"), None, "", 1),
        (lambda h, _: h.answer(b"[[[", status=400), None, "it answers with status 400", 2),
    ],
)
def test_what_an_archive_answers_to_a_result(
    misbehave: Any, failure: int | None, refusal: str, num_asked: int, archive: FakeArchive, tmp_path: Path
) -> None:
    path, archive.failure = write_result(tmp_path / "result.dcm"), failure
    archive.misbehave = misbehave or archive.misbehave
    assert list(archive.client().send([path], tmp_path)) == [(path, refusal)]
    assert len(archive.asked) == num_asked
    if misbehave is None and failure is None:
        assert archive.objects["1.2.3.4"] == path.read_bytes()


def test_sending_ends_where_the_archive_does_not_let_us_in(archive: FakeArchive, tmp_path: Path) -> None:
    archive.misbehave = lambda handler, _: handler.answer(status=401)
    with pytest.raises(NotReachableError, match="401"):
        list(archive.client().send([write_result(tmp_path / "result.dcm")], tmp_path))


# --- addresses and secrets


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://me:word@host/web", "holds a user or a password.*SYNBOOST_DICOMWEB_TOKEN"),
        ("ftp://host/web", "not an address of a DICOMweb service"),
        ("host/web", "not an address of a DICOMweb service"),
        ("https:///web", "not an address of a DICOMweb service"),
        ("https://host:99999/web", "not an address"),
        ("https://ho st/web", "not an address of a DICOMweb service"),
        ("https://host/web#part", "not an address of a DICOMweb service"),
        ("https://host/a b", "not an address of a DICOMweb service"),
        ("https://host/web?StudyDat=20260101", "attribute that DICOM does not know"),
        ("https://host/web?limit=3", "attribute that DICOM does not know"),
    ],
)
def test_wrong_address_is_told_and_not_repeated(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        WebAddress.parse(text, "from", takes_query=True)
    assert text not in str(caught.value) and "word" not in str(caught.value).replace("password", "").replace(
        "keywords", ""
    )


def test_address_is_taken_apart() -> None:
    address = WebAddress.parse(
        "https://[::1]:8443/a/dicom-web/?StudyDate=2026-&00080060=US&PatientName=Sm%C3%AFth*", "from", True
    )
    assert address.base == "https://[::1]:8443/a/dicom-web" and address.is_of_this_machine
    assert address.query == {"StudyDate": ["2026-"], "00080060": ["US"], "PatientName": ["Smïth*"]}
    assert "th*" not in repr(address)
    with pytest.raises(ValueError, match="has a query"):
        WebAddress.parse("https://host/web?StudyDate=1", "to")


@pytest.mark.parametrize(
    ("environment", "url", "message"),
    [
        ({"TOKEN": "secret"}, "http://archive/web", "TOKEN would pass the network unencrypted"),
        ({"USER": "me", "PASSWORD": "secret"}, "http://archive/web", "PASSWORD would pass the network unencrypted"),
        ({"USER": "me"}, "https://archive/web", "belong together"),
        ({"TOKEN": "secret", "USER": "me", "PASSWORD": "secret"}, "https://archive/web", "but not both"),
        ({"TOKEN": "sec\nret"}, "https://archive/web", "one word of printable ASCII"),
        ({"CERTIFICATE": "a.pem"}, "https://archive/web", "CERTIFICATE and .*KEY belong together"),
    ],
)
def test_secrets_that_do_not_fit_are_told(
    environment: dict[str, str], url: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"SYNBOOST_DICOMWEB_{name}", value)
    with pytest.raises(ValueError, match=message) as caught:
        Access.of_environment(WebAddress.parse(url, "from"))
    assert "secret" not in str(caught.value)


def test_secrets_are_taken_out_of_the_environment(monkeypatch: pytest.MonkeyPatch, archive: FakeArchive) -> None:
    monkeypatch.setenv("SYNBOOST_DICOMWEB_USER", "me")
    monkeypatch.setenv("SYNBOOST_DICOMWEB_PASSWORD", "wörd")
    access = Access.of_environment(WebAddress.parse(archive.url, "from"))
    assert not any(name.startswith("SYNBOOST_DICOMWEB_") for name in os.environ)
    assert "wörd" not in repr(access)
    archive.objects.clear()
    list(archive.client(access=access).studies())
    assert archive.headers[0]["Authorization"] == "Basic bWU6d8O2cmQ="


def test_neither_proxy_nor_netrc_nor_cookies_are_used(
    monkeypatch: pytest.MonkeyPatch, archive: FakeArchive, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    archive.misbehave = lambda handler, _: handler.answer(b"[]", Set_Cookie="a=b")
    client = archive.client()
    for _ in range(2):
        assert list(client.studies()) == []
    assert not any("Authorization" in headers or "Cookie" in headers for headers in archive.headers)


def test_certificates_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trustme = pytest.importorskip("trustme")
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "authorities.pem")
    own = authority.issue_cert("synboost@example.org")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)

    def retrieve(archive: FakeArchive) -> None:
        access = Access.of_environment(WebAddress.parse(archive.url, "from"))
        archive.client(access=access).retrieve(ONE, tmp_path / "one")

    with FakeArchive({ONE.uid: CONTENT}).open(context) as archive:
        with pytest.raises(NotReachableError, match="certificate is not valid here"):
            retrieve(archive)
        monkeypatch.setenv("SYNBOOST_DICOMWEB_AUTHORITIES", str(tmp_path / "authorities.pem"))
        with pytest.raises(NotReachableError, match="demands a certificate of ours|connection was lost"):
            retrieve(archive)
        monkeypatch.setenv("SYNBOOST_DICOMWEB_CERTIFICATE", str(tmp_path / "certificate.pem"))
        monkeypatch.setenv("SYNBOOST_DICOMWEB_KEY", str(tmp_path / "key.pem"))
        retrieve(archive)
        assert (tmp_path / "one").read_bytes() == CONTENT
        died = []

        def dies_once(handler: Handler, _: str) -> bool:
            if not died:
                died.append(handler.answer(CONTENT[:5000], MULTIPART, Content_Length="99999"))
                handler.close_connection = True
                os.close(handler.connection.detach())  # without an end of TLS, as when a process dies
                return True
            return False

        archive.misbehave = dies_once
        retrieve(archive)
        assert (tmp_path / "one").read_bytes() == CONTENT and len(died) == 1
    with FakeArchive().open() as plain:
        with pytest.raises(NotReachableError, match="no encrypted connection: it does not speak TLS"):
            plain.scheme = "https"
            retrieve(plain)
    with pytest.raises(FileNotFoundError, match="no such file"):
        monkeypatch.setenv("SYNBOOST_DICOMWEB_AUTHORITIES", str(tmp_path / "nothing.pem"))
        Access.of_environment(WebAddress.parse("https://archive/web", "from"))


def test_limits_are_above_0() -> None:
    with pytest.raises(ValueError, match="tries must be above 0"):
        WebLimits(tries=0)
    assert QUICK.tries == 3
