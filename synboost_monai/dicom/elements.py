"""Write data elements as bytes (explicit VR little endian), where Python objects would take too much memory.

This serves sequences of thousands of items, and pixel data written in pieces.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONG_VRS = ("OB", "OW", "SQ", "UT", "UN", "UC", "UR", "OD", "OF", "OL", "OV")
"""VRs with a length of four bytes (PS3.5 7.1.2)."""
UNDEFINED_LENGTH = 0xFFFFFFFF
"""Length field of a value that ends with a delimiter."""
ITEM = struct.pack("<HH", 0xFFFE, 0xE000)
"""Tag of an item."""
SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
"""Sequence delimitation item."""
PIXEL_DATA = 0x7FE00010
"""Tag of Pixel Data."""


def element_header(tag: int, vr: str, length: int) -> bytes:
    """Encode the tag, VR and length of an element."""
    start = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode("ascii"))
    return start + (struct.pack("<HI", 0, length) if vr in LONG_VRS else struct.pack("<H", length))


def element(tag: int, vr: str, value: bytes | str | int | Iterable[int]) -> bytes:
    """Encode one element: text (padded to an even length), numbers of VR US or UL, or bytes."""
    if isinstance(value, str):
        value = value.encode("ascii") + (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
    elif not isinstance(value, bytes):
        numbers = (value,) if isinstance(value, int) else tuple(value)
        value = struct.pack(f"<{len(numbers)}{ {'US': 'H', 'UL': 'I'}[vr] }", *numbers)
    return element_header(tag, vr, len(value)) + value


def item(*elements: bytes) -> bytes:
    """Encode an item of a sequence; pass the elements in the order of their tags."""
    content = b"".join(elements)
    return ITEM + struct.pack("<I", len(content)) + content


def sequence(tag: int, *items: bytes) -> bytes:
    """Encode a sequence of items."""
    return element(tag, "SQ", b"".join(items))


def write_native_pixels(file: BinaryIO, num_bytes: int, parts: Iterable[bytes | NDArray[Any]]) -> None:
    """Write uncompressed Pixel Data piece by piece, padded to an even length.

    Args:
        file: opened for writing, at its end.
        num_bytes: bytes of all parts together.
        parts: bytes, or arrays of uint8.
    """
    file.write(element_header(PIXEL_DATA, "OB", num_bytes + num_bytes % 2))
    for part in parts:
        file.write(part if isinstance(part, bytes) else part.tobytes())
    file.write(bytes(num_bytes % 2))


def code_item(value: str, scheme: str, meaning: str) -> bytes:
    """Encode an item of a code sequence."""
    return item(element(0x00080100, "SH", value), element(0x00080102, "SH", scheme), element(0x00080104, "LO", meaning))


class EncapsulatedPixels:
    """Write Pixel Data of compressed frames, one fragment per frame, with a basic offset table that is filled in at the end.

    Args:
        file: opened for writing and seeking, at its end.
        num_frames: number of frames that will be added.
    """

    def __init__(self, file: BinaryIO, num_frames: int) -> None:
        self._file = file
        self._num_frames = num_frames
        self._offsets: list[int] = []
        file.write(element_header(PIXEL_DATA, "OB", UNDEFINED_LENGTH))
        file.write(ITEM + struct.pack("<I", 4 * num_frames))
        self._table = file.tell()
        file.write(bytes(4 * num_frames))
        self._first = file.tell()

    def add(self, frame: bytes) -> None:
        """Write one compressed frame."""
        self._offsets.append(self._file.tell() - self._first)
        frame += b"\0" * (len(frame) % 2)
        self._file.write(ITEM + struct.pack("<I", len(frame)) + frame)

    def close(self) -> None:
        """End the element and fill in the table.

        Raises:
            ValueError: if more or fewer frames were added than announced.
        """
        if len(self._offsets) != self._num_frames:
            raise ValueError(f"elements.py: {len(self._offsets)} frames came, {self._num_frames} were announced")
        self._file.write(SEQUENCE_END)
        end = self._file.tell()
        if self._offsets[-1] < UNDEFINED_LENGTH:
            self._file.seek(self._table)
            self._file.write(struct.pack(f"<{self._num_frames}I", *self._offsets))
        self._file.seek(end)
