"""Read AVI and MP4 clips, which have no position or scale: check their headers, and decode their frames in another process.

A clip can come from anywhere, and FFmpeg, which decodes it, is a large program in C. So the parts of the file are walked here first:
announced sizes are limited, and a file that is cut off is refused. Then `clip_decoder` decodes it in its own process, which it
may crash.
"""

from __future__ import annotations

import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from synboost_monai.formats.bounded import MAX_PIXELS, check_sizes
from synboost_monai.formats.grid import Grid
from synboost_monai.processes import module_command, safe_environment

CLIP_SUFFIXES = (".avi", ".mp4")
"""File name suffixes of clips; the first bytes of a file decide which of the two it is."""
MAX_CLIP_FRAMES = 3_600
"""Most frames of a clip, as for DICOM (`dicom.limits.Limits.max_frames`): two minutes at 30 frames a second."""
MAX_CLIP_BYTES = 1 << 31
"""Largest file, in bytes; `MAX_PIXELS` uncompressed pixels in three colours take less."""
MAX_CLIP_SECONDS = 600
"""Most seconds that decoding a clip may take."""
SIZE, FRAME, FAILURE = b"S", b"F", b"E"
"""First byte of the messages of `clip_decoder`: size (rows and columns), pixels of a frame, or the reason of a failure (length, UTF-8)."""
NUMBERS = struct.Struct("<II")
"""Numbers of a message: rows and columns, or the length of the text and 0."""

MAX_WAIT_SECONDS = 60
"""Most seconds that decoding one picture of a video may take."""

_MAX_PARTS = 100_000
"""Most parts of a file, which are all checked before it is decoded; the index of a long clip is a single part."""
_MAX_OTHER_SAMPLES = 1 << 22
"""Most samples of a sound or text track in an MP4 file, which FFmpeg lists in memory with 24 bytes each."""
_MP4_FOLDERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl", b"moof", b"traf"})
_AVI_FOLDERS = frozenset({b"hdrl", b"strl"})


class _Part(NamedTuple):
    """One box of an MP4 file, or one chunk of an AVI file."""

    name: bytes
    start: int
    """Offset of its content."""
    end: int
    content: bytes
    """The first bytes of the content."""


def read_clip(path: Path) -> NDArray[np.uint8]:
    """Read a clip as grey frames (T, H, W), rotated as the file says; sound is ignored.

    Args:
        path: path of a regular file.
    Raises:
        ValueError: if it is neither AVI nor MP4, is cut off or damaged, exceeds the limits for an echocardiogram, has a coding
            other than `clip_decoder.CODECS`, or PyAV is not installed.
    """
    kind = check_clip(path)
    check_pyav(path)
    child, answers = _started(subprocess.DEVNULL, str(path), kind)
    timer = threading.Timer(MAX_CLIP_SECONDS, child.kill)
    timer.start()
    try:
        return _received(answers, path)
    except EOFError:
        status = child.wait()
        took_long = not timer.is_alive()
        why = f"took more than {MAX_CLIP_SECONDS} s" if took_long else f"ended the decoder (exit status {status})"
        raise ValueError(f"{path}: {why}; export it again, as H.264 in MP4 or Motion JPEG in AVI") from None
    finally:
        timer.cancel()
        _end(child, answers)


class VideoDecoder:
    """Decode the pictures of a video that is part of an open file, one after the other, in a process of its own; close it in the end.

    Args:
        descriptor: descriptor of a regular file, whose position is not changed.
        parts: (offset, bytes) of each part of the video, in order.
        kind: FFmpeg's name of the format: mp4, mpegts, mpeg, mpegvideo, h264 or hevc.
    """

    def __init__(self, descriptor: int, parts: Sequence[tuple[int, int]], kind: str) -> None:
        words = ",".join(f"{offset}:{length}" for offset, length in parts)
        self._child, self._answers = _started(descriptor, "-", kind, words)

    def next_frame(self) -> NDArray[np.uint8] | None:
        """Return the next picture in grey, (H, W); None at the end.

        Raises:
            ValueError: if it cannot be decoded.
        """
        timer = threading.Timer(MAX_WAIT_SECONDS, self._child.kill)
        timer.start()
        try:
            kind, first, second = _next_message(self._answers)
            if kind == FRAME and first * second <= MAX_PIXELS:
                return np.frombuffer(_exactly(self._answers, first * second), np.uint8).reshape(first, second)
        except EOFError:
            raise ValueError("its decoder ended or took too long") from None
        finally:
            timer.cancel()
        return None

    def close(self) -> None:
        """End the process."""
        _end(self._child, self._answers)


def check_pyav(path: Path) -> None:
    """Refuse to read clips if PyAV is not installed.

    Args:
        path: path of a clip, or of a folder of clips, for the message.
    """
    if find_spec("av") is None:
        raise ValueError(
            f"{path}: AVI and MP4 are read by PyAV, which is not installed: pip install 'synboost-monai[video]'"
        )


def clip_grid(shape: tuple[int, ...]) -> Grid:
    """Return the grid (x, y, t) in which a label map of a clip (T, H, W) is stored: a pixel counts as 1 mm, orientation unknown."""
    return Grid((shape[2], shape[1], shape[0]), (1.0, 1.0, 1.0), np.diag([-1.0, -1.0, 1.0, 1.0]), is_oriented=False)


def check_clip(path: Path) -> str:
    """Return `avi` or `mp4` by a file's content; check that no part is cut off or announces too much.

    Raises:
        ValueError: if it is neither, is cut off, or exceeds the limits.
    """
    num_bytes = path.stat().st_size
    if num_bytes > MAX_CLIP_BYTES:
        raise ValueError(
            f"{path}: has {num_bytes >> 20} MB; clips of at most {MAX_CLIP_BYTES >> 20} MB are read; cut or compress it"
        )
    with path.open("rb") as file:
        head = file.read(12)
        is_avi, is_mp4 = head[:4] == b"RIFF" and head[8:] == b"AVI ", head[4:8] == b"ftyp"
        if not (is_avi or is_mp4):
            raise ValueError(f"{path}: its content is neither AVI nor MP4; export the clip as one of these")
        if is_avi:
            _check_avi(path, _avi_parts(file, num_bytes, path))
        else:
            _check_mp4(path, _mp4_parts(file, 0, num_bytes, path))
    return "avi" if is_avi else "mp4"


def check_frames(path: Path, num_frames: int, width: int, height: int) -> None:
    """Refuse a clip that has or announces too many or too large frames.

    Raises:
        ValueError: with the limits.
    """
    if num_frames > MAX_CLIP_FRAMES:
        raise ValueError(
            f"{path}: has {num_frames:,} frames; at most {MAX_CLIP_FRAMES:,} are read, two minutes at 30 a second; cut it into "
            "shorter clips, or fetch it again if that is wrong"
        )
    check_sizes(path, (width, height, max(num_frames, 1)), (width, height))


# --- helpers


def _started(stdin: int, *arguments: str) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """Start `clip_decoder` with these arguments, and return its process and what it sends."""
    child = subprocess.Popen(
        [*module_command("synboost_monai.formats.clip_decoder"), *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # C libraries may print
        env=safe_environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"),
    )
    assert child.stdout is not None
    return child, child.stdout


def _end(child: subprocess.Popen[bytes], answers: IO[bytes]) -> None:
    child.kill()
    answers.close()
    child.wait()


def _next_message(stream: IO[bytes]) -> tuple[bytes, int, int]:
    """Return the kind of the decoder's next message and its two numbers.

    Raises:
        EOFError: if there is none.
        ValueError: with the decoder's reason, if it reports a failure.
    """
    kind = _exactly(stream, 1)
    first, second = NUMBERS.unpack(_exactly(stream, NUMBERS.size))
    if kind == FAILURE:
        raise ValueError(_exactly(stream, min(first, 4096)).decode("utf-8", "replace"))
    return kind, first, second


def _received(stream: IO[bytes], path: Path) -> NDArray[np.uint8]:
    """Return the frames (T, H, W) that the decoder sends.

    Raises:
        EOFError: if it ends without a last message, or sends more than is allowed.
        ValueError: if it reports a failure.
    """
    content = bytearray()
    height = width = 0
    while True:
        try:
            kind, first, second = _next_message(stream)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if kind == SIZE:
            height, width = first, second
            break
        if len(content) + first * second > MAX_PIXELS:
            raise EOFError
        content += _exactly(stream, first * second)
    return np.frombuffer(content, np.uint8).reshape(-1, height, width)


def _exactly(stream: IO[bytes], num_bytes: int) -> bytes:
    """Read exactly `num_bytes` from a stream."""
    found = stream.read(num_bytes)
    if len(found) < num_bytes:
        raise EOFError
    return found


def _cut_off(path: Path, what: str) -> ValueError:
    return ValueError(f"{path}: the file is cut off or damaged ({what}); fetch it again, or end the recording properly")


def _name(name: bytes) -> str:
    return "".join(chr(byte) if 32 < byte < 127 else "?" for byte in name)


def _avi_parts(file: BinaryIO, num_bytes: int, path: Path) -> Iterator[_Part]:
    """Yield the chunks of an AVI file: its header chunks, and the chunks that enclose them; none may reach beyond its parent."""
    open_ends = [(0, num_bytes)]  # offset of the next chunk, and end of the chunk that encloses it
    for _ in range(_MAX_PARTS):
        start, end = open_ends.pop()
        if start + 8 > end:
            if not open_ends:
                return
            continue
        file.seek(start)
        head = file.read(8)
        name, length = head[:4], struct.unpack("<I", head[4:])[0]
        part_end = start + 8 + length
        is_outermost = not open_ends
        if is_outermost and name != b"RIFF":  # zeros or notes after the end
            return
        if part_end > end or (is_outermost and length < 4):
            raise _cut_off(path, f"its part {_name(name)} ends at byte {part_end:,} of {num_bytes:,}")
        content = file.read(min(length, 64))
        open_ends.append((part_end + length % 2, end))
        if name in (b"RIFF", b"LIST") and (name == b"RIFF" or content[:4] in _AVI_FOLDERS):
            open_ends.append((start + 12, part_end))
        yield _Part(name, start + 8, part_end, content)
    raise ValueError(f"{path}: has more than {_MAX_PARTS:,} parts; no clip of an ultrasound system has")


def _check_avi(path: Path, parts: Iterator[_Part]) -> None:
    """Refuse an AVI file if its headers announce too many or too large pictures."""
    stream = b""
    for part in parts:
        if part.name == b"strh":
            stream = part.content[:4]
            if stream == b"vids" and len(part.content) >= 36:
                check_frames(path, struct.unpack("<I", part.content[32:36])[0], 1, 1)
        elif part.name == b"strf" and stream == b"vids" and len(part.content) >= 12:
            width, height = struct.unpack("<ii", part.content[4:12])
            check_frames(path, 1, width, abs(height))  # a negative height means rows from the top


def _mp4_parts(file: BinaryIO, start: int, end: int, path: Path) -> Iterator[_Part]:
    """Yield the boxes of an MP4 file, and the boxes within those that describe its content."""
    open_ends = [(start, end)]
    for _ in range(_MAX_PARTS):
        start, end = open_ends.pop()
        if start + 8 > end:
            if not open_ends:
                return
            continue
        file.seek(start)
        head = file.read(16)
        length, name = struct.unpack(">I4s", head[:8])
        begin = start + 8
        if length == 1 and len(head) == 16:
            length, begin = struct.unpack(">Q", head[8:])[0], start + 16
        part_end = end if length == 0 else start + length  # 0 means up to the end
        if part_end > end or part_end < begin:
            raise _cut_off(path, f"its part {_name(name)} ends at byte {part_end:,} of {end:,}")
        file.seek(begin)
        open_ends.append((part_end, end))
        if name in _MP4_FOLDERS:
            open_ends.append((begin, part_end))
        yield _Part(name, begin, part_end, file.read(min(part_end - begin, 64)))
    raise ValueError(f"{path}: has more than {_MAX_PARTS:,} parts; no clip of an ultrasound system has")


def _check_mp4(path: Path, parts: Iterator[_Part]) -> None:
    """Refuse an MP4 file if its headers announce too many samples in a track, or too large pictures."""
    has_pictures, is_picture, num_fragment_samples = False, False, 0
    for part in parts:
        content = part.content
        if part.name == b"hdlr":
            is_picture = content[8:12] == b"vide"
        elif part.name == b"dref" and len(content) > 20 and content[8:12] > b"\0\0\0\x0c" and not content[19] & 1:
            raise ValueError(f"{path}: its pixels lie in another file; export the clip as one whole file")
        elif part.name == b"stsd" and is_picture and len(content) >= 44:
            has_pictures = True
            width, height = struct.unpack(">HH", content[40:44])  # 0 if only the frames give the size
            check_frames(path, 1, max(width, 1), max(height, 1))
        elif part.name in (b"stsz", b"stz2") and len(content) >= 12:
            num_samples = struct.unpack(">I", content[8:12])[0]
            _check_samples(path, num_samples, is_picture)
        elif part.name == b"trun" and len(content) >= 8:
            num_fragment_samples += struct.unpack(">I", content[4:8])[0]
            _check_samples(path, num_fragment_samples, False)
    if not has_pictures:
        raise _cut_off(path, "nothing in it describes pictures")


def _check_samples(path: Path, num_samples: int, is_picture: bool) -> None:
    if is_picture:
        check_frames(path, num_samples, 1, 1)
    elif num_samples > _MAX_OTHER_SAMPLES:
        raise ValueError(
            f"{path}: announces {num_samples:,} samples of sound or other tracks; at most {_MAX_OTHER_SAMPLES:,} are read; export "
            "the clip without them"
        )
