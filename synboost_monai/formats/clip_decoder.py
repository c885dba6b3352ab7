"""Decode an AVI or MP4 file, or a video inside another file, with PyAV into grey frames, one at a time.

`main` runs in the process that `formats.clip` starts.

FFmpeg is restricted: only the kind of file that is asked for, only the codings of `CODECS`, no other file than this one, and no pictures
beyond the size limit. Grey is luma, as for DICOM: taken directly from luma and chroma (16..235 of video becomes 0..255), or computed
from red, green and blue (`formats.colour`).
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from synboost_monai.formats.bounded import MAX_PLANE_PIXELS
from synboost_monai.formats.clip import FAILURE, FRAME, NUMBERS, SIZE, check_frames
from synboost_monai.formats.colour import luma
from synboost_monai.processes import ends_with_parent, limit_memory

CODECS = (
    "h264",
    "hevc",
    "mpeg2video",
    "mpeg4",
    "msmpeg4",
    "msmpeg4v2",
    "mjpeg",
    "rawvideo",
    "msvideo1",
    "msrle",
    "cinepak",
    "huffyuv",
    "ffv1",
)
"""FFmpeg's names of the codings that are decoded: only those of ultrasound systems, phones and common programs, to run little C code."""
_LUMA_FIRST = frozenset(
    {"gray", "nv12", *(f"yuv{kind}p" for kind in (410, 411, 420, 422, 440, 444)), "yuva420p"}
    | {f"yuvj{kind}p" for kind in (411, 420, 422, 440, 444)}
)
"""Pixel formats whose first plane is luma, with 8 bits per pixel."""
_FULL_RANGE = 2
"""AVCOL_RANGE_JPEG: luma takes 0..255."""
_OF_VIDEO = np.clip(np.rint((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(np.uint8)
"""Luma 16..235 -> grey 0..255."""
_MEMORY_BYTES = 1 << 31
"""Memory that the process may take beyond what it needs to start; it exceeds a whole clip's frames, of which it holds only a few."""


def grey_frames(path: Path, kind: str) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a clip in grey, (H, W) each, of one size, rotated as the file says.

    Args:
        path: path of a file that `clip.check_clip` has checked.
        kind: `avi` or `mp4`.
    Raises:
        ValueError: if it cannot be decoded to its end, or exceeds the limits.
    """
    with path.open("rb") as file:
        yield from video_frames(file, kind, path)


def video_frames(file: BinaryIO, kind: str, path: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of an open video in grey, as `grey_frames`; `kind` is FFmpeg's name of its format, `path` is for messages."""
    import av

    av.logging.set_level(None)
    try:
        with _opened(av, file, kind) as container:
            yield from _frames(path, container)
    except (av.error.FFmpegError, ArithmeticError) as error:
        words = str(getattr(error, "strerror", "") or error).splitlines() or [""]
        raise ValueError(f"{path}: not a readable clip ({words[0] or type(error).__name__}); fetch it again") from error


def main(path: str, kind: str, parts: str = "") -> None:
    """Send a clip's frames to standard output as messages of `formats.clip`, then their size, or the reason of a failure.

    Args:
        path: path of a clip; `-` for a video inside the file that is standard input.
        kind: `avi` or `mp4`; of a video, FFmpeg's name of its format.
        parts: of a video, `offset:bytes` of each of its parts, with commas between.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # C libraries may print
    if end_with_parent := ends_with_parent():
        end_with_parent()
    importlib.import_module("av")  # before memory is limited
    limit_memory(_MEMORY_BYTES)
    height = width = 0
    try:
        for frame in _video(kind, parts) if path == "-" else grey_frames(Path(path), kind):
            height, width = frame.shape
            answers.write(FRAME + NUMBERS.pack(height, width))
            answers.write(np.ascontiguousarray(frame).data)
        answers.write(SIZE + NUMBERS.pack(height, width))
    except (ValueError, OSError, MemoryError) as error:
        text = (str(error).removeprefix(f"{path}: ") or "it takes too much memory to decode").encode()[:4096]
        answers.write(FAILURE + NUMBERS.pack(len(text), 0) + text)
    answers.flush()


# --- helpers


def _video(kind: str, parts: str) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of the video inside standard input."""
    numbers = [tuple(map(int, part.split(":"))) for part in parts.split(",")]
    with io.BufferedReader(_Parts(0, [(offset, length) for offset, length in numbers])) as file:
        yield from video_frames(file, kind, Path("-"))


class _Parts(io.RawIOBase):
    """Read parts of a file as one, wherever the position of its descriptor is."""

    def __init__(self, descriptor: int, parts: Sequence[tuple[int, int]]) -> None:
        self._descriptor, self._parts, self._at = descriptor, parts, 0
        self._size = sum(length for _, length in parts)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        start = 0  # of the part, in the whole
        for offset, length in self._parts:
            if self._at < start + length:
                inside = self._at - start
                data = os.pread(self._descriptor, min(len(buffer), length - inside), offset + inside)
                buffer[: len(data)] = data
                self._at += len(data)
                return len(data)
            start += length
        return 0


def _opened(av: Any, file: BinaryIO, kind: str) -> Any:
    """Open the file as PyAV's container; it must not name another file or address."""

    def refuse(url: str, flags: int, options: dict[str, str]) -> None:
        raise ValueError("it names another file; export the clip as one whole file")

    options = {
        "codec_whitelist": ",".join(CODECS),
        "protocol_whitelist": "none",
        "max_pixels": str(MAX_PLANE_PIXELS),  # limits every picture before memory is taken for it
        "err_detect": "explode",  # a damaged frame is an error, not filled up from its neighbours
    }
    if kind == "mp4":
        options |= {"enable_drefs": "0", "use_absolute_path": "0"}
    return av.open(file, format=kind, options=options, io_open=refuse, metadata_errors="replace")


def _frames(path: Path, container: Any) -> Iterator[NDArray[np.uint8]]:
    """Yield the grey frames of the only video track."""
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    if len(streams) != 1:
        raise ValueError(f"{path}: expected one track of pictures, got {len(streams)}; export the clip alone")
    stream = streams[0]
    context = stream.codec_context
    if context is None or context.name not in CODECS:
        coding = "an unknown coding" if context is None else context.name
        raise ValueError(
            f"{path}: is coded as {coding}, which is not read; export it as H.264 in MP4 or Motion JPEG in AVI"
        )
    check_frames(path, stream.frames, max(context.width, 1), max(context.height, 1))
    context.options = {"max_pixels": str(MAX_PLANE_PIXELS), "err_detect": "explode"}
    context.thread_count = 1
    size, count = None, 0
    for packet in container.demux(stream):
        for frame in packet.decode():
            count += 1
            check_frames(path, count, frame.width, frame.height)
            if frame.is_corrupt:
                raise ValueError(f"{path}: frame {count} is damaged; fetch it again")
            if size not in (None, (frame.width, frame.height)):
                raise ValueError(
                    f"{path}: frame {count} has {frame.width} x {frame.height} pixels, those before it {size[0]} x {size[1]}; "
                    "export the clip in one size"
                )
            size = frame.width, frame.height
            yield _turned(path, _grey(frame), frame)
    if count == 0:
        raise ValueError(f"{path}: holds no picture; fetch it again")


def _is_cover(stream: Any) -> bool:
    """Return whether a track is a still cover picture of the clip."""
    disposition = getattr(stream, "disposition", None)
    return disposition is not None and "attached_pic" in str(getattr(disposition, "name", disposition)).lower()


def _grey(frame: Any) -> NDArray[np.uint8]:
    """Return the grey values of a decoded frame."""
    name = frame.format.name
    if name not in _LUMA_FIRST:
        return luma(frame.to_ndarray(format="rgb24"))
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    grey = rows[: frame.height, : frame.width]
    is_full = name == "gray" or name.startswith("yuvj") or int(frame.color_range) == _FULL_RANGE
    return grey if is_full else _OF_VIDEO[grey]


def _turned(path: Path, grey: NDArray[np.uint8], frame: Any) -> NDArray[np.uint8]:
    """Return a frame turned by its display matrix: rotated by multiples of 90 degrees, or mirrored."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return grey
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    if (a or d) and not (b or c):
        return grey[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    if (b or c) and not (a or d):
        return grey.T[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1]
    raise ValueError(f"{path}: is turned by other than quarters; export it upright")


if __name__ == "__main__":
    main(*sys.argv[1:])
