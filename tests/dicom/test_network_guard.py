"""Test what peers may send to a node: it is bounded in size and time, refused with a line, and other peers get through meanwhile."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason='pynetdicom is not installed: pip install "synboost-monai[listen]"')

from synboost_monai.dicom.network import guard, receive  # noqa: E402
from synboost_monai.dicom.network.guard import Incoming, Patience, RefusalLog, RefusedError  # noqa: E402
from synboost_monai.dicom.network.receive import StorageServer  # noqa: E402
from tests.dicom.serving import serving, wait_for  # noqa: E402

ECHO_CLASS, CLIP_CLASS, IMPLICIT = b"1.2.840.10008.1.1", b"1.2.840.10008.5.1.4.1.1.3.1", b"1.2.840.10008.1.2"
ACCEPTED, REJECTED, ABORTED = 2, 3, 7
"""Types of PDUs."""


def item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(content)) + content


def pdu(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBL", kind, 0, len(content)) + content


def request(called: bytes = b"SYNBOOST", calling: bytes = b"SCANNER", more: bytes = b"", version: int = 1) -> bytes:
    """Encode a request for an association of C-ECHO and C-STORE."""
    contexts = b"".join(
        item(0x20, bytes([number, 0, 0, 0]) + item(0x30, name) + item(0x40, IMPLICIT))
        for number, name in ((1, ECHO_CLASS), (3, CLIP_CLASS))
    )
    user = item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3.4"))
    titles = called.ljust(16) + calling.ljust(16)
    content = struct.pack(">HH", version, 0) + titles + bytes(32) + item(0x10, b"1.2.840.10008.3.1.1.1")
    return pdu(1, content + contexts + user + more)


def part(control: int, data: bytes, context: int = 3) -> bytes:
    """Encode a PDU with a part of a message; `control`: 1 of a command, 2 the last."""
    return pdu(4, struct.pack(">LBB", len(data) + 2, context, control) + data)


def command(field: int, has_data: bool, sop_class: bytes = CLIP_CLASS) -> bytes:
    """Encode a command set."""

    def element(number: int, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        return struct.pack("<HHL", 0, number, len(value)) + value

    short = struct.Struct("<H").pack
    return (
        element(0x0002, sop_class)
        + element(0x0100, short(field))
        + element(0x0110, short(7))
        + element(0x0700, short(0))
        + element(0x0800, short(1 if has_data else 0x0101))
        + element(0x1000, b"1.2.3.4.5")
    )


def feed(*pdus: bytes, max_object_mb: float = 0.001) -> Incoming:
    """Give PDUs to a fresh `Incoming`, head and rest apart, as pynetdicom asks for them."""
    incoming = Incoming(16384, max_object_mb, lambda called, calling: None)
    for one in pdus:
        incoming.take(bytearray(one[:6]))
        incoming.take(bytearray(one[6:]))
    return incoming


@pytest.mark.parametrize(
    ("pdus", "words"),
    [
        ([pdu(1, bytes(60))], "is damaged"),
        ([part(3, command(0x30, False))], "before it was let in"),
        ([request(), *[part(1, bytes(1000))] * 17], "a command is longer than 16384 bytes"),
        ([request(), part(3, command(0x0020, True))], "a service that there is not"),
        ([request(), part(3, command(0x0140, True))], "a service that there is not"),
        ([request(), part(3, command(0x8001, False))], "a service that there is not"),
        ([request(), part(3, command(0x0030, True))], "with data, or without"),
        ([request(), part(3, command(0x0001, False))], "with data, or without"),
        ([request(), part(0, bytes(10))], "data came without a command"),
        ([request(), part(3, command(1, True)), part(3, command(1, True))], "in the middle of an object"),
        ([request(), part(3, command(1, True)), *[part(0, bytes(600))] * 2], "larger than 0.001 MB"),
        ([request(), part(3, bytes(7))], "a command is damaged"),
        ([request(), pdu(4, struct.pack(">LBB", 99, 1, 3))], "a part of a message is damaged"),
        ([request(), pdu(4, struct.pack(">LBB", 2, 1, 1) * 300)], "a part of a message is damaged"),
        ([request(), pdu(5, bytes(5000))], "it announced 5000 bytes"),
        ([request(more=item(0x50, item(0x54, b"") * 9000))], "longer than any peer needs"),
        ([request(more=item(0x20, bytes(4))[:6])], "is damaged"),
        ([request(version=2)], "another version"),
        ([request(calling=b"")], "calling AE title is blank"),
        ([request(calling=b"\0" * 16)], "calling AE title is blank"),
        ([request(called=b"\0SYNBOOST")], "called AE title is blank"),
        ([request(calling=b"ECHO\xe9")], "no title may have"),
        ([request(calling=b"A\x1b[2J")], "no title may have"),
        ([b"GET / HTTP/1.1"], "does not speak DICOM"),
    ],
)
def test_what_storing_does_not_need_is_refused_before_it_is_kept(pdus: list[bytes], words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        feed(*pdus)


def test_titles_are_understood_however_they_are_padded() -> None:
    seen = []
    for called, calling in (
        (b"SYNBOOST", b"SCANNER"),
        (b"SYNBOOST".ljust(16, b"\0"), b"SCANNER".ljust(16, b"\0")),
        (b" SYNBOOST\0garbage", b"SCANNER \0\0"),
    ):
        data = bytearray(request(called.ljust(16)[:16], calling.ljust(16)[:16]))
        head, rest = data[:6], data[6:]
        incoming = Incoming(16384, 1, lambda *titles: seen.append(titles))
        incoming.take(head)
        incoming.take(rest)
        assert (rest[4:20], rest[20:36]) == (b"SYNBOOST".ljust(16), b"SCANNER".ljust(16))  # what pynetdicom sees
    assert seen == [("SYNBOOST", "SCANNER")] * 3


def test_usual_messages_pass() -> None:
    incoming = feed(request())
    for one, num_whole in (
        (part(3, command(0x30, False, ECHO_CLASS), 1), 1),
        (part(1, command(1, True)[:20]), 0),
        (part(3, command(1, True)[20:]), 0),
        (part(0, bytes(500)), 0),
        (part(2, bytes(500)), 1),
        (part(3, command(0x0FFF, False)), 0),
    ):
        incoming.take(bytearray(one[:6]))
        assert incoming.take(bytearray(one[6:])) == num_whole


def test_patience_passes_is_earned_and_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    patience = Patience(10)
    for _ in range(9):  # a byte a second
        now[0] += 1
        patience.earn(1)
    assert not patience.is_out
    now[0] += 1.1
    assert patience.is_out
    patience.refill(60)
    for _ in range(1000):  # as fast as is needed
        now[0] += 50
        patience.earn(50 * guard.MIN_BYTES_PER_SECOND)
    assert not patience.is_out
    patience.pause()
    now[0] += 1000  # the node is at work
    assert not patience.is_out
    patience.resume()
    now[0] += 61
    assert patience.is_out


def test_log_of_refusals_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [600.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    said: list[str] = []
    log = RefusalLog(said.append)
    for _ in range(1000):
        log("10.1.2.3: reason")
    assert said[0] == "10.1.2.3: reason" and said[-1] == "10.1.2.3: reason (512 times so far)" and len(said) == 10
    for number in range(100_000):
        log(f"{number}: reason")
    assert len(said) == 60 and len(log._known) <= RefusalLog.MAX_KEYS
    now[0] += 60
    log("new")
    assert said[-2:] == ["99950 more lines on what was refused are left out", "new"]


def connect(server: StorageServer, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), 5, source_address=(address, 0))


def answer(connection: socket.socket) -> int:
    """Return the type of the next PDU; 0 if the node has closed the connection."""
    connection.settimeout(10)
    with contextlib.suppress(OSError):
        head = connection.recv(6)
        if len(head) == 6:
            connection.recv(struct.unpack(">L", head[2:])[0])
            return head[0]
    return 0


def test_one_address_takes_half_of_the_places_at_most(tmp_path: Path) -> None:
    with serving(tmp_path, max_connections=4, timeout=60.0) as (server, said, _), contextlib.ExitStack() as stack:

        def opened(address: str = "127.0.0.1") -> socket.socket:
            return stack.enter_context(connect(server, address))

        def asked(connection: socket.socket) -> int:
            connection.sendall(request())
            return answer(connection)

        silent = [opened(), opened()]
        wait_for(lambda: len(server._connections) == 2)
        assert answer(opened()) == 0
        assert asked(opened("127.0.0.2")) == ACCEPTED
        assert [asked(one) for one in silent] == [ACCEPTED] * 2
        assert asked(opened()) == REJECTED
        assert asked(opened("127.0.0.2")) == ACCEPTED
        assert asked(opened("127.0.0.3")) == REJECTED
        told = " ".join(said)
        assert "not asked for anything yet" in told and "too many connections of its address" in told
        assert "there are too many connections" in told


def test_silent_and_slow_peers_lose_their_places(tmp_path: Path) -> None:
    num_threads = threading.active_count()
    with serving(tmp_path, timeout=0.5) as (server, said, _):
        with connect(server) as silent:
            assert answer(silent) == 0
        with connect(server) as slow:
            slow.sendall(request())
            assert answer(slow) == ACCEPTED
            with contextlib.suppress(OSError):
                for byte in part(3, command(1, True)):  # a byte at a time
                    slow.sendall(bytes([byte]))
                    time.sleep(0.05)
            assert answer(slow) == 0
        wait_for(lambda: not server._connections)
        told = " ".join(said)
        assert "silent or too slow, before its association" in told and "too slow, in the middle of" in told
        wait_for(lambda: threading.active_count() <= num_threads + 3)


def test_connections_that_are_over_are_not_held_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "LATER", 1.0)
    with serving(tmp_path, max_connections=2, timeout=60.0) as (server, said, _), contextlib.ExitStack() as stack:
        for _ in range(3):
            one = stack.enter_context(connect(server))
            one.sendall(request())
            assert answer(one) == ACCEPTED
            one.sendall(pdu(5, bytes(4)))
            assert answer(one) == 6  # released, and the peer does not hang up
        wait_for(lambda: not server._connections)
        assert not any("slow" in line for line in said)


def test_whoever_breaks_the_rules_is_told_so_and_leaves_a_line(tmp_path: Path) -> None:
    with serving(tmp_path, allowed_titles=("SCANNER",), timeout=5.0) as (server, said, shelf):

        def tell(first: bytes, *others: bytes) -> list[int]:
            """Return the answer to the first PDU, and to all others together."""
            with connect(server) as connection:
                connection.sendall(first)
                found = [answer(connection)]
                for one in others:
                    with contextlib.suppress(OSError):
                        connection.sendall(one)
                return [*found, answer(connection)] if others else found

        assert tell(request(calling=b"SCANNER".ljust(16, b"\0"))) == [ACCEPTED]
        assert tell(request(), part(3, command(0x30, False, ECHO_CLASS), 1)) == [ACCEPTED, 4]
        assert tell(request(), part(3, command(1, True)), part(2, bytes(100))) == [ACCEPTED, 4]
        assert len(shelf.stored) == 1
        assert tell(request(called=b"OTHER")) == tell(request(calling=b"OTHER")) == tell(request(calling=b"")) == [3]
        assert tell(request(), part(3, command(0x20, True))) == [ACCEPTED, ABORTED]
        assert tell(request(), *[part(1, bytes(9000))] * 2) == [ACCEPTED, ABORTED]
        assert tell(b"GET / HTTP/1.1\r\n") == [ABORTED]
        assert tell(request(), part(3, command(1, True)), part(0, bytes(100)), pdu(7, bytes(4))) == [ACCEPTED, 0]
        with connect(server) as connection:
            connection.sendall(request())  # and gone, before there is an answer
        assert tell(request(more=item(0x20, bytes([5, 0, 0, 0])) * 50)) == [0]  # contexts of nothing
        assert any("cut: what it sent is damaged" in line for line in said)
        wait_for(lambda: any("in the middle of an object" in line for line in said))
        wait_for(lambda: not list((tmp_path / "in").iterdir()))
        for words in (
            "refused: it called another AE title",
            "refused: its AE title is not allowed",
            "refused: its calling AE title is blank",
            "cut: it asked for a service that there is not",
            "cut: a command is longer than",
            "cut: it does not speak DICOM",
        ):
            assert any(words in line for line in said), words
        assert not any("OTHER" in line for line in said)
        wait_for(lambda: not server._connections)


def test_peer_that_does_not_wait_for_answers_is_cut(tmp_path: Path) -> None:
    with serving(tmp_path, timeout=5.0) as (server, said, _), connect(server) as connection:
        connection.sendall(request())
        assert answer(connection) == ACCEPTED
        with contextlib.suppress(OSError):
            echo = struct.pack(">LBB", 0, 1, 3) + command(0x30, False, ECHO_CLASS)
            echo = struct.pack(">L", len(echo) - 4) + echo[4:]
            connection.sendall(pdu(4, echo * 20))
        wait_for(lambda: any("it does not wait for answers" in line for line in said))


def test_disk_that_is_full_ends_one_connection_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pynetdicom import dimse_messages

    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with serving(tmp_path, timeout=5.0) as (server, said, shelf):
        with monkeypatch.context() as patch, connect(server) as connection:
            patch.setattr(dimse_messages, "NamedTemporaryFile", full)
            connection.sendall(request())
            assert answer(connection) == ACCEPTED
            connection.sendall(part(3, command(1, True)))
            assert answer(connection) in (0, ABORTED)
        assert any("cut: no space left on device" in line for line in said)
        wait_for(lambda: not server._connections)
        with connect(server) as connection:
            connection.sendall(request())
            assert answer(connection) == ACCEPTED
