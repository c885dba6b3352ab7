"""What one image file may cost, and reading it no further than its header announces."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

MAX_PLANE_PIXELS = 1 << 24
"""Pixels of one plane, 4096 x 4096; ultrasound systems write 1 million at most, and a screen of 4K has 8 million."""
MAX_PIXELS = 1 << 29
"""Pixels of all the planes of a file: 680 frames of 1024 x 768, more than ten seconds at 60 frames a second."""
MAX_HEADER_BYTES = 1 << 22
"""Bytes of everything before the pixels, extensions too (4 MiB): the fields of each frame of a tracked sequence take 1 MB."""
_MAX_PADDING = 1 << 20
"""Bytes that may follow the pixels within a compressed file."""
_BLOCK = 1 << 20
"""Bytes of a file that are read at a time."""


def check_sizes(path: Path, sizes: Sequence[int], plane: tuple[int, int]) -> None:
    """Refuse a header whose sizes are below 1, or announce more than an echocardiogram can have.

    Args:
        path: the file, for the message.
        sizes: of all axes.
        plane: sizes of the two axes of a plane.
    Raises:
        ValueError: with what was announced and what is allowed.
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
    """Content of a file as it is; more than the file has is never allocated."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, num_bytes: int) -> bytearray:
        """The next bytes, fewer at the end."""
        left = os.fstat(self._file.fileno()).st_size - self._file.tell()
        found = bytearray(max(min(num_bytes, left), 0))
        num_read = self._file.readinto(found)  # type: ignore[attr-defined]
        return found[:num_read] if num_read < len(found) else found

    def finish(self) -> None:
        """Nothing is left to verify."""


class Inflated:
    """Content of a compressed file (gzip or zlib; of gzip, all its parts), inflated no further than is asked for.

    Args:
        file: at the beginning of the compressed bytes.
        is_one_part: what follows the first part is no content.
    """

    def __init__(self, file: BinaryIO, is_one_part: bool = False) -> None:
        self._file, self._pending, self._is_one_part = file, b"", is_one_part
        self._num_parts = self._num_bytes = 0
        self._begin_part()

    def _begin_part(self) -> None:
        """The next part; many without content would take long for nothing."""
        self._num_parts += 1
        if self._num_parts > 64 + self._num_bytes // 1024:
            raise ValueError(f"it consists of {self._num_parts} compressed parts with hardly any content")
        self._part = zlib.decompressobj(47)  # 15, and 32: whichever of gzip and zlib its first bytes say

    def read(self, num_bytes: int) -> bytearray:
        """The next bytes, fewer at the end.

        Raises:
            EOFError, zlib.error: if the file is cut off or damaged; checksums are verified where a part ends.
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
        """Read on to the end, so that the checksum is verified; what follows the pixels is thrown away.

        Raises:
            EOFError, zlib.error: as `read`.
            ValueError: if much more follows than was announced.
        """
        if len(self.read(_MAX_PADDING + 1)) > _MAX_PADDING:
            raise ValueError("its compressed content is longer than the header says")
