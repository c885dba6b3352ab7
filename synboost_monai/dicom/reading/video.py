"""Decode the frames of MPEG-2, MPEG-4 and HEVC video in a DICOM object (PS3.5 8.2.5 to 8.2.8), in a process of its own.

All frames of such an object are one stream, cut into fragments anywhere. A frame may need those before it, so they are decoded in their
order; to go back is to begin again.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from synboost_monai.dicom.reading.files import OpenFile
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.formats.clip import VideoDecoder

VIDEO = tuple(f"1.2.840.10008.1.2.4.{n}" for n in range(100, 109))
"""Transfer syntaxes of MPEG-2, MPEG-4 and HEVC; their fragmentable variants end in .1."""
MAX_PARTS = 1000
"""Most fragments of a video: writers cut at 4 GB, or not at all."""
_HEVC = VIDEO[7:]
_STARTS = (
    (b"\0\0\1\xba", "mpeg"),
    (b"\0\0\1\xb3", "mpegvideo"),
)
"""First bytes of an MPEG program stream, and of MPEG-2 video without container."""
_UNIT = (b"\0\0\1", b"\0\0\0\1")
"""First bytes of H.264 or HEVC without container."""
_PACKET = 188
"""Bytes of a packet of an MPEG transport stream, each of which begins with `G`."""


def is_video(syntax: str) -> bool:
    """Return whether a transfer syntax is video."""
    return syntax.removesuffix(".1") in VIDEO or syntax in VIDEO


def video_decoder() -> str | None:
    """Return the name and version of the decoder; None if it is not installed."""
    return f"PyAV {importlib.metadata.version('av')}" if importlib.util.find_spec("av") else None


class VideoFrames:
    """Read frames of a video by their number; close it in the end.

    Args:
        file: the open DICOM file.
        parts: (offset, bytes) of each fragment.
        syntax: transfer syntax.
        num_frames, shape: number of frames, and their rows and columns, by the header.
    Raises:
        NotUsableError: broken_frame, if it is no video that is known.
    """

    def __init__(
        self, file: OpenFile, parts: Sequence[tuple[int, int]], syntax: str, num_frames: int, shape: tuple[int, int]
    ) -> None:
        self._file, self._parts, self._num_frames, self._shape = file, parts, num_frames, shape
        self._kind = _kind_of(b"".join(file.read(o, min(n, 2 * _PACKET)) for o, n in parts[:8]), syntax)
        self._decoder: VideoDecoder | None = None
        self._next = 0

    def read(self, frame_index: int) -> NDArray[np.uint8]:
        """Return a frame in grey, (H, W).

        Raises:
            NotUsableError: broken_frame, frame_mismatch or truncated_pixels.
        """
        if self._decoder is None or frame_index < self._next:
            self.close()
            self._decoder, self._next = VideoDecoder(self._file.descriptor, self._parts, self._kind), 0
        frame = None
        while self._next <= frame_index:
            try:
                frame = self._decoder.next_frame()
            except ValueError:
                problem = "its video is damaged or ends early"
                raise NotUsableError("broken_frame", frame=self._next + 1, problem=problem) from None
            if frame is None:
                raise NotUsableError("truncated_pixels", got=self._next, expected=self._num_frames, unit="frames")
            if frame.shape != self._shape:
                got, expected = (" x ".join(map(str, shape)) for shape in (frame.shape, self._shape))
                raise NotUsableError("frame_mismatch", frame=self._next + 1, got=got, expected=expected)
            self._next += 1
        assert frame is not None
        return frame

    def close(self) -> None:
        """End the decoder."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None


def _kind_of(head: bytes, syntax: str) -> str:
    """Return FFmpeg's name of the format that a video begins like."""
    if head[4:8] in (b"ftyp", b"styp", b"moov"):
        return "mp4"
    if head[:1] == b"G" and head[_PACKET : _PACKET + 1] == b"G":
        return "mpegts"
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if head.startswith(_UNIT):
        return "hevc" if syntax.removesuffix(".1") in _HEVC else "h264"
    raise NotUsableError(
        "broken_frame", frame=1, problem="its video has an unknown format; MP4, MPEG streams, H.264 and HEVC are read"
    )
