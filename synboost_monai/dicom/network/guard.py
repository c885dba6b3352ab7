"""Limit what a peer may send to a node, and how slowly; bytes are checked before any library keeps them.

Every limit leaves room for what storing ultrasound needs. Protocol data units (PDUs): DICOM PS3.8, 9.3; commands: PS3.7, 6.3 and annex E.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from struct import Struct, pack

MAX_REQUEST = 1 << 18
"""Largest request for an association, in bytes; 128 presentation contexts with 30 transfer syntaxes each have half of that."""
MAX_ITEMS = 8192
"""Most items of such a request; 128 presentation contexts with 30 transfer syntaxes each have half of that."""
MAX_COMMAND = 1 << 14
"""Largest command, in bytes; that of C-STORE has a few hundred."""
MAX_FRAGMENTS = 256
"""Most parts of messages in a PDU; one or two are usual."""
MAX_WAITING = 8
"""Most messages that may wait for their answers; a peer that keeps to the negotiated terms has one."""
MAX_OTHER = 1 << 10
"""Largest PDU of any other type, in bytes."""
PDU_SPARE = 4096
"""Bytes by which a PDU may be longer than agreed: some peers count its header, some do not."""
MIN_BYTES_PER_SECOND = 4096
"""Rate below which a peer uses up its time; a line of 1 Mbit/s carries 30 such connections."""
NEGOTIATION_SECONDS = 10.0
"""Most seconds from connecting until the request for an association is complete."""
C_STORE, C_ECHO, C_CANCEL = 0x0001, 0x0030, 0x0FFF
"""Commands that are served."""
NOT_ALLOWED, NOT_RECOGNISED, TOO_MANY, NO_VERSION = (1, 1, 3), (1, 1, 7), (2, 3, 2), (1, 2, 2)
"""Result, source and reason of a rejection: calling title, called title, limit exceeded for now, protocol version."""

_REQUEST, _DATA, _ABORT = 1, 4, 7
_TYPES = range(1, 8)
_HEAD, _PDV, _ITEM, _ELEMENT, _SHORT = Struct(">BBL"), Struct(">LBB"), Struct(">BBH"), Struct("<HHL"), Struct("<H")
_NO_DATA_SET = 0x0101
_FIRST_ITEM = 68
"""Offset of the items of a request for an association."""


class RefusedError(Exception):
    """Say why data of a peer are refused, without repeating any text of the peer.

    Args:
        words: reason for the log.
        answer: PDU that is sent to the peer.
    """

    def __init__(self, words: str, answer: bytes = pack(">BBLBBBB", _ABORT, 0, 4, 0, 0, 2, 0)) -> None:
        super().__init__(words)
        self.answer = answer


def rejected(words: str, reason: tuple[int, int, int]) -> RefusedError:
    """Return the error that rejects a request for an association."""
    return RefusedError(words, pack(">BBLBBBB", 3, 0, 4, 0, *reason))


class Incoming:
    """Check the data of one peer, PDU by PDU.

    Args:
        max_pdu: largest PDU with data, in bytes.
        max_object_mb: largest object, in MB (2^20 bytes).
        admit: called with the called and the calling title of the request; raises a `RefusedError` to turn the peer away.
    """

    def __init__(self, max_pdu: int, max_object_mb: float, admit: Callable[[str, str], None]) -> None:
        self._max_pdu, self._max_object_mb, self._admit = max_pdu + PDU_SPARE, max_object_mb, admit
        self._type: int | None = None  # type of the PDU whose header has come
        self._command = bytearray()
        self._num_bytes = 0
        self._expects_data = False
        self.is_admitted = False
        self.is_aborted = False
        """Whether the peer itself has aborted."""

    def take(self, data: bytearray) -> int:
        """Check a PDU's header, or the content after a header; AE titles are put into the standard's form, in place.

        Returns:
            Number of messages that are complete now and wait for an answer.
        Raises:
            RefusedError: if the data are refused.
        """
        if self._type is None:
            self._take_head(data)
            return 0
        kind, self._type = self._type, None
        if kind == _REQUEST and not self.is_admitted:
            self._take_request(data)
        elif kind == _DATA:
            return self._take_data(data)
        return 0

    def _take_head(self, data: bytearray) -> None:
        kind, _, length = _HEAD.unpack(data)
        if kind not in _TYPES:
            raise RefusedError("it does not speak DICOM")
        limit = {_REQUEST: MAX_REQUEST, _DATA: self._max_pdu if self.is_admitted else MAX_OTHER}.get(kind, MAX_OTHER)
        if length > limit:
            raise RefusedError(f"it announced {length} bytes at once")
        self.is_aborted = self.is_aborted or kind == _ABORT
        self._type = kind

    def _take_request(self, data: bytearray) -> None:
        if len(data) < _FIRST_ITEM:
            raise RefusedError("its request for an association is damaged")
        if data[:2] != b"\0\1":
            raise rejected("it speaks another version of the protocol", NO_VERSION)
        _check_items(data)
        called, calling = bytes(data[4:20]), bytes(data[20:36])
        data[4:20], data[20:36] = _padded(called, NOT_RECOGNISED, "called"), _padded(calling, NOT_ALLOWED, "calling")
        self._admit(data[4:20].decode("ascii").strip(), data[20:36].decode("ascii").strip())
        self.is_admitted = True

    def _take_data(self, data: bytearray) -> int:
        if not self.is_admitted:
            raise RefusedError("it sent data before it was let in")
        at = num_whole = num_fragments = 0
        while at < len(data):
            length, _, control = _PDV.unpack_from(data, at) if at + _PDV.size <= len(data) else (0, 0, 0)
            start, at = at + _PDV.size, at + 4 + length
            num_fragments += 1
            if length < 2 or at > len(data) or num_fragments > MAX_FRAGMENTS:
                raise RefusedError("a part of a message is damaged")
            is_last = bool(control & 2)
            if control & 1:
                num_whole += self._take_command(data[start:at], is_last)
            else:
                num_whole += self._take_data_set(at - start, is_last)
        return num_whole

    def _take_command(self, part: bytearray, is_last: bool) -> int:
        if self._expects_data:
            raise RefusedError("a command came in the middle of an object")
        self._command += part
        if len(self._command) > MAX_COMMAND:
            raise RefusedError(f"a command is longer than {MAX_COMMAND} bytes")
        if not is_last:
            return 0
        field, has_data = _read_command(self._command)
        self._command.clear()
        if field not in (C_STORE, C_ECHO, C_CANCEL):
            raise RefusedError("it asked for a service that there is not; objects are stored, and echoes answered")
        if has_data != (field == C_STORE):
            raise RefusedError("a command came with data, or without, where it should not")
        self._expects_data, self._num_bytes = has_data, 0
        return int(field == C_ECHO)

    def _take_data_set(self, count: int, is_last: bool) -> int:
        if not self._expects_data:
            raise RefusedError("data came without a command")
        self._num_bytes += count
        if self._num_bytes > self._max_object_mb * 2**20:
            raise RefusedError(f"an object is larger than {self._max_object_mb:g} MB")
        self._expects_data = not is_last
        return int(is_last)


class Patience:
    """Count the time that a peer has left: it runs down, grows with each byte that comes, and pauses while the node is working.

    Args:
        seconds: time at the start, which is also the maximum.
    """

    def __init__(self, seconds: float) -> None:
        self._lock = threading.Lock()
        self._longest = self._left = seconds
        self._since: float | None = time.monotonic()

    @property
    def is_out(self) -> bool:
        """Whether no time is left."""
        return self._rest() <= 0

    def earn(self, num_bytes: int) -> None:
        """Add time for bytes that have come."""
        with self._lock:
            self._set(self._rest() + num_bytes / MIN_BYTES_PER_SECOND, self._since is not None)

    def refill(self, longest: float | None = None) -> None:
        """Give the peer its whole time again, after it has done something useful; `longest` sets a new maximum from now on."""
        with self._lock:
            self._longest = longest or self._longest
            self._set(self._longest, self._since is not None)

    def pause(self) -> None:
        """Stop the clock while the node is working."""
        with self._lock:
            self._set(self._rest(), False)

    def resume(self) -> None:
        """Start the clock again, since the peer is expected to act."""
        with self._lock:
            self._set(self._rest(), True)

    def _rest(self) -> float:
        since = self._since
        return self._left if since is None else self._left - (time.monotonic() - since)

    def _set(self, seconds: float, is_running: bool) -> None:
        self._left = min(self._longest, seconds)
        self._since = time.monotonic() if is_running else None


class RefusalLog:
    """Log refusals: one line per peer and reason, then again with its count whenever that has doubled or an hour has passed.

    Args:
        say: called with each line.
        max_lines: most lines per minute; further ones are only counted.
    """

    MAX_KEYS = 1000

    def __init__(self, say: Callable[[str], None], max_lines: int = 60) -> None:
        self._say, self._max_lines = say, max_lines
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._minute, self._num_lines, self._num_left_out = 0, 0, 0

    def __call__(self, text: str) -> None:
        """Log a refusal; `text` names the peer and the reason."""
        now = time.monotonic()
        with self._lock:
            count, last = self._known.pop(text, (0, now))
            count += 1
            is_told = count & (count - 1) == 0 or now - last > 3600
            self._known[text] = (count, now if is_told else last)
            if len(self._known) > self.MAX_KEYS:
                self._known.popitem(last=False)
            if not is_told:
                return
            lines = [f"{text} ({count} times so far)" if count > 1 else text]
            if int(now // 60) != self._minute:
                if self._num_left_out:
                    lines.insert(0, f"{self._num_left_out} more lines on what was refused are left out")
                self._minute, self._num_lines, self._num_left_out = int(now // 60), 0, 0
            self._num_lines += 1
            if self._num_lines > self._max_lines:
                self._num_left_out += 1
                return
        for line in lines:
            self._say(line)


def _padded(title: bytes, reason: tuple[int, int, int], which: str) -> bytes:
    """Return an AE title padded with spaces, as the standard demands; some peers pad with NUL.

    Raises:
        RefusedError: if it is blank, or has forbidden characters.
    """
    text = title.partition(b"\0")[0].strip(b" ")
    if not text:
        raise rejected(f"its {which} AE title is blank", reason)
    if not all(0x20 <= character < 0x7F and character != 0x5C for character in text):
        raise rejected(f"its {which} AE title has characters that no title may have", reason)
    return text.ljust(16)


def _check_items(data: bytearray) -> None:
    """Refuse a request with more items than any peer needs: each would become an object."""
    pending = [(_FIRST_ITEM, len(data))]
    num_items = 0
    while pending:
        at, end = pending.pop()
        while at + _ITEM.size <= end:
            kind, _, length = _ITEM.unpack_from(data, at)
            start, at = at + _ITEM.size, at + _ITEM.size + length
            num_items += 1
            if at > end:
                raise RefusedError("its request for an association is damaged")
            if num_items > MAX_ITEMS:
                raise RefusedError("its request for an association is longer than any peer needs")
            if kind in (0x20, 0x50):  # presentation context, user information
                pending.append((start + 4 * (kind == 0x20), at))


def _read_command(data: bytearray) -> tuple[int, bool]:
    """Return the Command Field, and whether a data set follows.

    Raises:
        RefusedError: if either is missing.
    """
    found = {0x0100: -1, 0x0800: -1}
    at = 0
    while at + _ELEMENT.size <= len(data):
        group, element, length = _ELEMENT.unpack_from(data, at)
        at += _ELEMENT.size + length
        if group == 0 and element in found and length == 2 and at <= len(data):
            found[element] = _SHORT.unpack_from(data, at - 2)[0]
    if at != len(data) or min(found.values()) < 0:
        raise RefusedError("a command is damaged")
    return found[0x0100], found[0x0800] != _NO_DATA_SET
