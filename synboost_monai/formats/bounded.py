"""Limit what reading one image file may cost, and read it no further than its header announces."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

MAX_PLANE_PIXELS = 1 << 24
"""Most pixels of one plane, 4096 x 4096; ultrasound systems write 1 million at most, and a 4K screen has 8 million."""
MAX_PIXELS = 1 << 29
"""Most pixels of all the planes of a file: 680 frames of 1024 x 768, more than ten seconds at 60 frames a second."""
MAX_HEADER_BYTES = 1 << 22
"""Most bytes before the pixels, with extensions (4 MiB): the fields of each frame of a tracked sequence take 1 MB."""
_MAX_PADDING = 1 << 20
"""Most bytes that may follow the pixels within a compressed file."""
_BLOCK = 1 << 20
"""Number of bytes of a file read at a time."""


def check_sizes(path: Path, sizes: Sequence[int], plane: tuple[int, int]) -> None:
    """Refuse a header whose sizes are below 1, or announce more than an echocardiogram can have.

    Args:
        path: the file, for the message.
        sizes: sizes of all axes.
        plane: sizes of the two axes of a plane.
    Raises:
        ValueError: with the announced sizes and the limits.
    """
    if any(size < 1 for size in sizes):
        raise ValueError(
            f"{path}: expected sizes of at least 1 in the header, got {tuple(sizes)} (x, y, ...); fetch it again"
        )
    if math.prod(plane) > MAX_PLANE_PIXELS:
        raise ValueError(
            f"{path}: its header announces planes of {plane[0]} x {plane[1]} pixels; at most {MAX_PLANE_PIXELS:,} are read "
            "(4096 x 4096), more than any echocardiogram has; export it smaller, or fetch it again if that is wrong"
        )
    if math.prod(sizes) > MAX_PIXELS:
        raise ValueError(
            f"{path}: its header announces {math.prod(sizes):,} pixels {tuple(sizes)}; at most {MAX_PIXELS:,} are read (680 frames "
            "of 1024 x 768); cut the sequence into shorter ones, or fetch it again if that is wrong"
        )


class Plain:
    """Read the content of a file as it is; no more memory is allocated than the file has bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, num_bytes: int) -> bytearray:
        """Read the next bytes, fewer at the end."""
        left = os.fstat(self._file.fileno()).st_size - self._file.tell()
        found = bytearray(max(min(num_bytes, left), 0))
        num_read = self._file.readinto(found)  # type: ignore[attr-defined]
        return found[:num_read] if num_read < len(found) else found

    def finish(self) -> None:
        """Do nothing, since there is no checksum to verify."""


class Inflated:
    """Inflate the content of a compressed file (gzip with all its parts, or zlib), no further than is asked for.

    Args:
        file: at the beginning of the compressed bytes.
        is_one_part: whether only the first part is content.
    """

    def __init__(self, file: BinaryIO, is_one_part: bool = False) -> None:
        self._file, self._pending, self._is_one_part = file, b"", is_one_part
        self._num_parts = self._num_bytes = 0
        self._begin_part()

    def _begin_part(self) -> None:
        """Begin the next part; refuse many parts without content, which would only take time."""
        self._num_parts += 1
        if self._num_parts > 64 + self._num_bytes // 1024:
            raise ValueError(f"it consists of {self._num_parts} compressed parts with hardly any content")
        self._part = zlib.decompressobj(47)  # 15, and 32 to tell gzip from zlib by the first bytes

    def read(self, num_bytes: int) -> bytearray:
        """Read the next bytes, fewer at the end.

        Raises:
            EOFError, zlib.error: if the file is cut off or damaged; checksums are verified at the end of each part.
        """
        found = bytearray()
        while len(found) < num_bytes:
            if self._part.eof:
                self._pending = self._pending.lstrip(b"\0") or self._file.read(_BLOCK).lstrip(b"\0")
                if not self._pending or self._is_one_part:
                    break
                self._begin_part()
            self._pending = self._pending or self._file.read(_BLOCK)
            is_last, before = not self._pending, len(found)
            found += self._part.decompress(self._pending, num_bytes - len(found))
            self._num_bytes += len(found) - before
            self._pending = self._part.unused_data if self._part.eof else self._part.unconsumed_tail
            if is_last and len(found) == before and not self._part.eof:
                raise EOFError("compressed file ended before the end-of-stream marker was reached")
        return found

    def finish(self) -> None:
        """Read on to the end, so that the checksum is verified; bytes after the pixels are discarded.

        Raises:
            EOFError, zlib.error: as `read`.
            ValueError: if much more follows than was announced.
        """
        if len(self.read(_MAX_PADDING + 1)) > _MAX_PADDING:
            raise ValueError("its compressed content is longer than the header says")
