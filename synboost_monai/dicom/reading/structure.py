"""Find the data elements of a DICOM file up to its pixel data, and check their bounds before anything interprets them.

A file can come from anywhere, so lengths may be wrong, sequences may never end, and a deflated data set may be a bomb. This walk reads
forward in small blocks, jumps over large values, counts what it reads, and stops at the pixel data. pydicom then gets values whose
bounds are known to be right; on its own it would follow a wrong length to the end of the file without an error.

Data elements, value representations and transfer syntaxes: DICOM PS3.5, sections 7.1 and 7.5, annex A; file meta: PS3.10, 7.1.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from struct import Struct
from typing import NamedTuple

from pydicom.datadict import DicomDictionary

from synboost_monai.dicom.limits import Limits
from synboost_monai.dicom.reading.files import OpenFile
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.dicom.uids import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT

FIRST_BLOCK = 1 << 13
"""Bytes of the first block; most ultrasound headers have fewer."""
LARGEST_VALUE = 1 << 20
"""Largest value in bytes; a longer one before the pixel data (a vendor's raw data) is jumped over and left out of the header."""
MAX_DEPTH = 32
"""Most levels of nested sequences; structured reports reach about 15, ultrasound images 4."""
MAX_ELEMENTS = 100_000
"""Most data elements and items of a header; ultrasound headers have a few hundred."""

UNDEFINED = 0xFFFFFFFF
"""Length of a value that ends with a delimiter."""
TRANSFER_SYNTAX, SOP_CLASS = 0x00020010, 0x00080016
"""Tags of Transfer Syntax UID and SOP Class UID."""
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
"""Tags of an item, and of the delimiters of items and sequences."""
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)

_LONG = {vr.encode(): vr for vr in "OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()}
_SHORT = {vr.encode(): vr for vr in "AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()}
_LITTLE = (Struct("<HHL").unpack_from, Struct("<H").unpack_from, Struct("<L").unpack_from)
_BIG = (Struct(">HHL").unpack_from, Struct(">H").unpack_from, Struct(">L").unpack_from)
_SEQUENCE_TAGS = frozenset(tag for tag, entry in DicomDictionary.items() if entry[0] == "SQ")


class InflatedSource:
    """Inflate the data set of a deflated file piece by piece; reading on is cheap, going back starts again from the beginning.

    Args:
        file: the deflated file.
        start: offset of its data set.
        limits: at most `max_inflated_mb` are inflated.
        num_bytes: size of a piece, packed and inflated.
    Raises:
        NotUsableError: while reading: inflates_too_far or broken_header.
    """

    def __init__(self, file: OpenFile, start: int, limits: Limits, num_bytes: int = 1 << 18) -> None:
        self._file, self._start, self._limit_mb, self._num_bytes = file, start, limits.max_inflated_mb, num_bytes
        self._begin()

    def _begin(self) -> None:
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._read_from = self._start
        self._piece, self._piece_offset = b"", 0

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset` on; fewer only at the end."""
        if offset < self._piece_offset:
            self._begin()
        parts = []
        while count > 0:
            first = offset - self._piece_offset
            part = self._piece[first : first + count]
            if part:
                parts.append(part)
                offset, count = offset + len(part), count - len(part)
            elif not self._inflate_more():
                break
        return b"".join(parts)

    def _inflate_more(self) -> bool:
        """Inflate the next piece; return False at the end."""
        self._piece_offset += len(self._piece)
        self._piece = b""
        while not self._piece and not self._inflater.eof:
            packed = self._inflater.unconsumed_tail
            if not packed:
                packed = self._file.read(self._read_from, self._num_bytes)
                self._read_from += len(packed)
            try:
                self._piece = self._inflater.decompress(packed, self._num_bytes)
            except zlib.error:
                raise _broken("its deflated data set is damaged") from None
            if not packed and not self._piece:
                return False  # cut off: the reader of the missing bytes notices
        inflated = self._piece_offset + len(self._piece)
        if inflated > self._limit_mb * 2**20:
            ratio = round(inflated / max(self._read_from - self._start, 1))
            raise NotUsableError("inflates_too_far", ratio=ratio, limit_mb=f"{self._limit_mb:g}")
        return bool(self._piece)


class Element(NamedTuple):
    """Hold one data element of the top level."""

    tag: int
    vr: str
    """Value representation as stored; '' if it is implicit."""
    value: bytes | None
    """None if it was not asked for, or is larger than `LARGEST_VALUE`."""
    is_implicit: bool
    """Whether the elements within its value, if it is a sequence, have no value representations."""


@dataclass(frozen=True)
class PixelData:
    """Hold the position of the pixel data."""

    tag: int
    vr: str
    """Value representation as stored; '' if it is implicit."""
    offset: int
    """First byte of the value in the file; for a deflated file, in the inflated data set."""
    length: int | None
    """Bytes by the element's own length, which may be wrong; None for encapsulated frames, which end with a delimiter."""


@dataclass
class Structure:
    """Hold the data elements found in a file, up to the pixel data or to a problem."""

    meta: dict[int, Element] = field(default_factory=dict)
    elements: dict[int, Element] = field(default_factory=dict)
    transfer_syntax: str = ""
    """As the file gives it, or guessed if it gives none."""
    is_implicit: bool = False
    is_little_endian: bool = True
    has_preamble: bool = False
    """Whether the file starts with the preamble that PS3.10 demands."""
    data_set_offset: int = 0
    """First byte after the file meta information."""
    pixels: PixelData | None = None
    problem: NotUsableError | None = None

    def text(self, tag: int) -> str:
        """Return the stored value of a data element (a UID or a coded word) without padding; '' if it is absent."""
        element = (self.meta if tag >> 16 == 2 else self.elements).get(tag)
        if element is None or not element.value:
            return ""
        return element.value.decode("latin-1").strip(" \0")


def walk_file(file: OpenFile, limits: Limits, wanted: frozenset[int] | None = None) -> Structure:
    """Walk a file from its start to its pixel data.

    Args:
        file: the open file.
        limits: of a file; at most `max_header_mb` are read.
        wanted: tags whose values are kept; None keeps all, and checks the inside of every sequence.
    Returns:
        The structure; its `problem` says why the walk did not reach the pixel data or the end (empty_file, not_dicom,
        truncated_header, broken_header, header_too_large, inflates_too_far).
    """
    found = Structure()
    try:
        _walk_file(file, limits, wanted, found)
    except NotUsableError as problem:
        found.problem = problem
        is_dicom = found.has_preamble or found.text(SOP_CLASS).startswith("1.")
        if not is_dicom and problem.reason.code in ("truncated_header", "broken_header", "header_too_large"):
            found.problem = NotUsableError("not_dicom")  # its first bytes looked like DICOM by chance
    return found


class _Stream:
    """Gives bytes by position, and reads forward in blocks as they are asked for."""

    def __init__(
        self, read: Callable[[int, int], bytes], size: int, file_size: int, limits: Limits, can_jump: bool
    ) -> None:
        self.data, self.base = b"", 0
        self.size, self.file_size = size, file_size
        self.can_jump = can_jump
        self.num_elements = 0
        self._read = read
        self._limit_mb = limits.max_header_mb
        self._budget = int(limits.max_header_mb * 2**20)

    def reach(self, start: int, end: int) -> bool:
        """Load the bytes from `start` to `end` into `data`; earlier bytes in `data` are kept unless a jump is needed.

        Returns:
            False if the file ends before `end`.
        """
        have = self.base + len(self.data)
        if end <= have:
            return True
        if end > self.size:
            return False
        if start > have and self.can_jump:
            self.data, self.base, have = b"", start, start
        count = end - have
        if count > self._budget:
            raise NotUsableError("header_too_large", limit_mb=f"{self._limit_mb:g}")
        count = min(max(count, FIRST_BLOCK, len(self.data)), self._budget)
        block = self._read(have, count)
        self._budget -= len(block)
        self.data += block
        return end <= have + len(block)

    def need(self, start: int, end: int) -> None:
        """Load bytes as `reach` does, but raise an error if the file ends."""
        if not self.reach(start, end):
            raise NotUsableError("truncated_header", bytes=self.file_size)

    def count_element(self) -> None:
        self.num_elements += 1
        if self.num_elements > MAX_ELEMENTS:
            raise _broken(f"it has more than {MAX_ELEMENTS:,} data elements")


def _walk_file(file: OpenFile, limits: Limits, wanted: frozenset[int] | None, found: Structure) -> None:
    """Fill `found`."""
    if file.size == 0:
        raise NotUsableError("empty_file")
    stream = _Stream(file.read, file.size, file.size, limits, can_jump=True)
    stream.reach(0, min(file.size, 132))
    found.has_preamble = stream.data[128:132] == b"DICM"
    if not found.has_preamble and not _starts_without_preamble(stream.data):
        raise NotUsableError("not_dicom")
    start = 132 if found.has_preamble else 0
    if found.has_preamble or stream.data[:2] == b"\x02\0":
        start = _Walk(stream, False, True, found, None).run(start, found.meta, is_meta=True)
    found.data_set_offset = start
    found.transfer_syntax = found.text(TRANSFER_SYNTAX)
    if found.transfer_syntax == DEFLATED:
        source = InflatedSource(file, start, limits, FIRST_BLOCK)
        stream, start = _Stream(source.read, sys.maxsize, file.size, limits, can_jump=False), 0
    if not stream.reach(start, start + 8):
        raise NotUsableError("truncated_header", bytes=file.size)
    first = stream.data[start - stream.base :][:8]
    _set_encoding(first, found)
    _Walk(stream, found.is_implicit, found.is_little_endian, found, wanted).run(start, found.elements)
    if found.pixels and found.transfer_syntax == DEFLATED:
        inflated = found.pixels.offset + (found.pixels.length or 0)
        if inflated > limits.max_inflated_mb * 2**20:
            raise NotUsableError(
                "inflates_too_far", ratio=inflated // file.size, limit_mb=f"{limits.max_inflated_mb:g}"
            )


def _set_encoding(first: bytes, found: Structure) -> None:
    """Set byte order and form of the data set by its transfer syntax, or by its first data element if that is missing or wrong."""
    code = first[4:6]
    is_explicit = code in _LONG or code in _SHORT or bool(found.transfer_syntax) and code.isalpha() and code.isupper()
    group = int.from_bytes(first[:2], "little")
    may_be_private = found.transfer_syntax == IMPLICIT
    if not found.transfer_syntax:
        found.is_little_endian = group != 0x0800
        found.transfer_syntax = (EXPLICIT if found.is_little_endian else BIG_ENDIAN) if is_explicit else IMPLICIT
    else:
        found.is_little_endian = found.transfer_syntax != BIG_ENDIAN
    if group == (0x0800 if found.is_little_endian else 0x0008):
        raise _broken("its byte order is not the one that its transfer syntax says")
    found.is_implicit = not is_explicit
    group, element, _ = (_LITTLE if found.is_little_endian else _BIG)[0](first)
    is_known = group << 16 | element in DicomDictionary or element == 0 or may_be_private and bool(group & 1)
    if found.is_implicit and not is_known:
        raise _broken("its first data element is not one of DICOM")


def _starts_without_preamble(data: bytes) -> bool:
    """Return whether bytes start with a data element of group 0002 or 0008 (only 0008 in implicit or big-endian form)."""
    if len(data) < 16:
        return False
    is_explicit = data[4:6] in _LONG or data[4:6] in _SHORT
    group, element, length = _LITTLE[0](data)
    if group in (0x0002, 0x0008) and (group << 16 | element in DicomDictionary or element == 0):
        return is_explicit or (group == 8 and length <= 256)
    return is_explicit and data[:2] == b"\0\x08" and 0x00080000 | _BIG[0](data)[1] in DicomDictionary


class _Walk:
    """A walk over the data elements of one data set."""

    def __init__(
        self, stream: _Stream, is_implicit: bool, is_little: bool, found: Structure, wanted: frozenset[int] | None
    ) -> None:
        self.stream, self.found, self.wanted = stream, found, wanted
        self.is_implicit = is_implicit
        self._tag_and_length, self._unpack_short, self._unpack_long = _LITTLE if is_little else _BIG

    def run(self, at: int, elements: dict[int, Element], is_meta: bool = False) -> int:
        """Collect the data elements from position `at` on; return the position after them."""
        stream, wanted = self.stream, self.wanted
        while stream.reach(at, at + 8):
            tag, vr, length, start = self._head(at, self.is_implicit)
            if is_meta and tag >> 16 != 2:
                return at
            if tag in _PIXEL_TAGS and not is_meta:
                self.found.pixels = PixelData(tag, vr, start, None if length == UNDEFINED else length)
                return at
            if tag >> 16 == 0xFFFE:
                raise _broken("it has an item outside of a sequence")
            if tag in elements:
                raise _broken("the same data element occurs twice")
            stream.count_element()
            is_kept = wanted is None or tag in wanted
            is_implicit = not vr
            if length == UNDEFINED:
                first = start if is_kept else None
                stop, at, is_implicit = self._items(start, None, is_implicit, 1, self._has_fragments(vr), first)
                if vr == "UN":
                    vr = "SQ"  # PS3.5 section 6.2.2: unknown and of undefined length is a sequence
            else:
                stop = at = start + length
                if stop > stream.size:
                    if not self.is_implicit and not vr:
                        raise _broken("a data element has no valid value representation")
                    raise NotUsableError("truncated_header", bytes=stream.file_size)
                is_kept = is_kept and length <= LARGEST_VALUE
                if is_kept or not stream.can_jump:
                    stream.need(start, stop)
                if is_kept and (vr == "SQ" or not vr and tag in _SEQUENCE_TAGS):
                    _, _, is_implicit = self._items(start, stop, is_implicit, 1, False, start)
            value = stream.data[start - stream.base : stop - stream.base] if is_kept else None
            elements[tag] = Element(tag, vr, value, is_implicit)
        if stream.reach(at, at + 1):
            raise NotUsableError("truncated_header", bytes=stream.file_size)
        return at

    def _head(self, at: int, is_implicit: bool) -> tuple[int, str, int, int]:
        """Return (tag, VR, length, position of the value) of the data element at `at`, whose first 8 bytes are loaded."""
        stream = self.stream
        data, i = stream.data, at - stream.base
        group, element, length = self._tag_and_length(data, i)
        tag = group << 16 | element
        if is_implicit or group == 0xFFFE:
            return tag, "", length, at + 8
        code = data[i + 4 : i + 6]
        vr = _SHORT.get(code)
        if vr:
            return tag, vr, self._unpack_short(data, i + 6)[0], at + 8
        vr = _LONG.get(code)
        if vr is None:
            if not (code.isalpha() and code.isupper()):
                return tag, "", length, at + 8  # some writers fall back to the implicit form, mostly in sequences
            vr = "UN"  # a VR from a later edition of the standard, or a typing error
            if data[i + 6 : i + 8] != b"\0\0":
                return tag, vr, self._unpack_short(data, i + 6)[0], at + 8
        stream.need(at, at + 12)
        return tag, vr, self._unpack_long(stream.data, at - stream.base + 8)[0], at + 12

    def _has_fragments(self, vr: str) -> bool:
        """Return whether a value of undefined length holds fragments (such as an icon's encapsulated pixels), not data sets."""
        return vr not in ("", "SQ", "UN")

    def _items(
        self, at: int, end: int | None, is_implicit: bool, depth: int, has_fragments: bool, keep_from: int | None
    ) -> tuple[int, int, bool]:
        """Walk the items of a sequence.

        Args:
            at: position of the first item.
            end: end of the sequence; None if it ends with a delimiter.
            is_implicit: whether the data set that holds the sequence is implicit.
            depth: 1 for a sequence of the top level.
            has_fragments: whether the items hold bytes instead of data elements.
            keep_from: position from which on `stream.data` must keep its bytes; None if nothing is kept.
        Returns:
            (end of the last item, position after the sequence, whether its data sets are implicit).
        """
        if depth > MAX_DEPTH:
            raise _broken(f"its sequences are nested more than {MAX_DEPTH} deep")
        stream = self.stream
        while end is None or at < end:
            self._bound(at, at + 8, end, keep_from)
            tag, _, length, start = self._head(at, True)
            if tag == SEQUENCE_END and end is None:
                return at, start, is_implicit
            if tag != ITEM:
                raise _broken("a sequence holds something else than items")
            stream.count_element()
            if length == UNDEFINED:
                if has_fragments:
                    raise _broken("a fragment has no length")
                at, is_implicit = self._item(start, None, is_implicit, depth, keep_from)
            else:
                at = start + length
                if at > (stream.size if end is None else end):
                    self._too_long(end)
                if not has_fragments and length and keep_from is not None:
                    _, is_implicit = self._item(start, at, is_implicit, depth, keep_from)
        return at, at, is_implicit

    def _item(self, at: int, end: int | None, is_implicit: bool, depth: int, keep_from: int | None) -> tuple[int, bool]:
        """Walk the data elements of an item; return the position after it and whether it is implicit."""
        stream = self.stream
        self._bound(at, at + 8, end, keep_from)
        if not is_implicit:
            code = stream.data[at - stream.base + 4 : at - stream.base + 6]  # a slice to the end would copy all of it
            is_end = self._tag_and_length(stream.data, at - stream.base)[0] == 0xFFFE
            is_implicit = not is_end and not (code.isalpha() and code.isupper())
        while end is None or at < end:
            self._bound(at, at + 8, end, keep_from)
            tag, vr, length, start = self._head(at, is_implicit)
            if tag == ITEM_END and end is None:
                return start, is_implicit
            if tag >> 16 == 0xFFFE:
                raise _broken("an item ends at the wrong place")
            stream.count_element()
            if length == UNDEFINED:
                _, at, _ = self._items(start, None, not vr, depth + 1, self._has_fragments(vr), keep_from)
                if end is not None and at > end:
                    self._too_long(end)
                continue
            at = start + length
            if at > (stream.size if end is None else end):
                self._too_long(end)
            if keep_from is not None and (vr == "SQ" or not vr and tag in _SEQUENCE_TAGS):
                self._items(start, at, not vr, depth + 1, False, keep_from)
        return at, is_implicit

    def _bound(self, start: int, stop: int, end: int | None, keep_from: int | None) -> None:
        """Load the bytes from `start` to `stop`; `stop` must not be beyond `end`."""
        if end is not None and stop > end:
            self._too_long(end)
        self.stream.need(start if keep_from is None else keep_from, stop)

    def _too_long(self, end: int | None) -> None:
        if end is None:
            raise NotUsableError("truncated_header", bytes=self.stream.file_size)
        raise _broken("a data element is longer than the sequence that holds it")


def _broken(problem: str) -> NotUsableError:
    return NotUsableError("broken_header", problem=problem)
