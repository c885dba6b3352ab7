"""RLE Lossless (PS3.5 annex G) of 8-bit colour frames, whole planes at a time: several times as fast as encoding row by row."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_PIECE = 128
"""Bytes that one control byte can stand for."""
SHORTEST_RUN = 3
"""Equal bytes that are worth a run of their own."""


def encode_frame(picture: NDArray[np.uint8]) -> bytes:
    """One frame: a header of offsets, then each colour as a segment.

    Args:
        picture: (H, W, C), C at most 15.
    """
    segments = [pack_bits(np.ascontiguousarray(picture[..., channel])) for channel in range(picture.shape[2])]
    offsets = np.cumsum([64, *map(len, segments[:-1])])
    header = struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments)))
    return header + b"".join(segments)


def pack_bits(plane: NDArray[np.uint8]) -> bytes:
    """Bytes of a plane (H, W) as PackBits, each row for itself, padded to an even length."""
    height, width = plane.shape
    flat = plane.ravel()
    begins = np.ones(plane.shape, dtype=bool)
    begins[:, 1:] = plane[:, 1:] != plane[:, :-1]
    starts = np.flatnonzero(begins)
    is_run = np.diff(starts, append=flat.size) >= SHORTEST_RUN
    # stretches: a run, or all bytes of a row between two runs
    is_new = is_run.copy()
    is_new[1:] |= is_run[:-1]
    is_new |= starts % width == 0
    starts, is_run = starts[is_new], is_run[is_new]
    lengths = np.diff(starts, append=flat.size)
    # pieces of at most 128 bytes
    num_pieces = -(-lengths // MAX_PIECE)
    index = np.arange(num_pieces.sum()) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    sizes = np.minimum(np.repeat(lengths, num_pieces) - index * MAX_PIECE, MAX_PIECE)
    starts = np.repeat(starts, num_pieces) + index * MAX_PIECE
    is_run = np.repeat(is_run, num_pieces) & (sizes > 1)

    written = np.where(is_run, 2, sizes + 1)
    places = np.cumsum(written) - written
    packed = np.zeros(int(written.sum()) + int(written.sum()) % 2, np.uint8)
    packed[places] = np.where(is_run, 257 - sizes, sizes - 1)
    packed[places[is_run] + 1] = flat[starts[is_run]]
    literal_sizes = sizes[~is_run]
    within = np.arange(literal_sizes.sum()) - np.repeat(np.cumsum(literal_sizes) - literal_sizes, literal_sizes)
    packed[np.repeat(places[~is_run] + 1, literal_sizes) + within] = flat[
        np.repeat(starts[~is_run], literal_sizes) + within
    ]
    return packed.tobytes()
