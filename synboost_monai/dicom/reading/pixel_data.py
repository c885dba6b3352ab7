"""Find the fragments of each frame of a DICOM file, and read the bytes of one frame at a time.

Nothing is taken on trust: lengths are compared with the file, and offset tables with the fragments found. No more than one
compressed frame is ever held in memory, whatever the length of the clip. Encapsulation: DICOM PS3.5, annex A.4.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from synboost_monai.dicom.reading.files import OpenFile
from synboost_monai.dicom.reading.structure import ITEM, SEQUENCE_END, UNDEFINED, PixelData
from synboost_monai.dicom.reasons import NotUsableError

MAX_FRAGMENTS = 1_000_000
"""Most fragments of an object; many times the frames of a clip, since some writers split frames."""

_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP")
"""First bytes of a frame of the JPEG family, JPEG 2000 and JP2."""


@dataclass(frozen=True)
class FrameIndex:
    """Hold the fragments of each frame of encapsulated pixel data."""

    fragments: Sequence[tuple[tuple[int, int], ...]]
    """For each frame, (offset in the file, bytes) of each of its fragments."""

    def read(self, file: OpenFile, frame_index: int, max_bytes: int) -> bytes:
        """Return the compressed bytes of a frame.

        Args:
            file: the file that was indexed.
            frame_index: counted from 0.
            max_bytes: largest plausible size of a frame of this image.
        Raises:
            NotUsableError: broken_frame, or truncated_pixels if the file has been cut since.
        """
        fragments = self.fragments[frame_index]
        num_bytes = sum(length for _, length in fragments)
        if num_bytes == 0:
            raise NotUsableError("broken_frame", frame=frame_index + 1, problem="it is empty")
        if num_bytes > max_bytes:
            problem = f"its {num_bytes} compressed bytes are more than an image of this size has"
            raise NotUsableError("broken_frame", frame=frame_index + 1, problem=problem)
        data = b"".join(file.read(offset, length) for offset, length in fragments)
        if len(data) < num_bytes:
            raise NotUsableError("truncated_pixels", got=frame_index, expected=len(self.fragments), unit="frames")
        return data


def index_frames(file: OpenFile, pixels: PixelData, num_frames: int) -> FrameIndex:
    """Find the fragments of every frame.

    If there are as many fragments as frames, each frame has one, whatever an offset table says. Otherwise the offset table counts if it
    agrees with the fragments, else the fragments that begin like a frame. A delimiter that is missing at the end does no harm.

    Args:
        file: a file with encapsulated pixel data.
        pixels: their position.
        num_frames: number of frames by the header.
    Raises:
        NotUsableError: truncated_pixels, broken_frame, or bad_attribute for a Number of Frames that the data contradict.
    """
    if pixels.length is not None:
        raise NotUsableError(
            "broken_header", problem="its pixel data are not in fragments, as its transfer syntax demands"
        )
    table, fragments, is_cut = _read_items(file, pixels.offset)
    if not is_cut and len(fragments) == num_frames:
        return FrameIndex([(fragment,) for fragment in fragments])
    starts = _starts_by_table(table, fragments, num_frames)
    if starts is None:
        starts = [i for i, (offset, _) in enumerate(fragments) if file.read(offset, 6).startswith(_STARTS)]
        if num_frames == 1 and not starts and fragments:
            starts = [0]
    if is_cut or not starts or len(starts) < num_frames:
        got = min(len(starts or fragments), num_frames - 1)
        raise NotUsableError("truncated_pixels", got=got, expected=num_frames, unit="frames")
    if len(starts) > num_frames:
        expected = f"{len(starts)}, as many as the pixel data hold"
        raise NotUsableError("bad_attribute", keyword="NumberOfFrames", value=num_frames, expected=expected)
    ends = [*starts[1:], len(fragments)]
    return FrameIndex([tuple(fragments[first:end]) for first, end in zip(starts, ends)])


def index_video(file: OpenFile, pixels: PixelData, max_parts: int) -> list[tuple[int, int]]:
    """Return (offset, bytes) of each fragment of a video.

    Raises:
        NotUsableError: truncated_pixels, broken_header or broken_frame.
    """
    if pixels.length is not None:
        raise NotUsableError("broken_header", problem="its video is not in fragments, as its transfer syntax demands")
    _, fragments, is_cut = _read_items(file, pixels.offset)
    if is_cut or not any(length for _, length in fragments):
        raise NotUsableError("truncated_pixels", got=0, expected=1, unit="videos")
    if len(fragments) > max_parts:
        problem = f"its video is in {len(fragments)} fragments; at most {max_parts} are read"
        raise NotUsableError("broken_frame", frame=1, problem=problem)
    return fragments


def _read_items(file: OpenFile, offset: int) -> tuple[tuple[int, ...], list[tuple[int, int]], bool]:
    """Return the offset table, (offset, bytes) of each whole fragment, and whether the file ends within a fragment."""
    table: tuple[int, ...] | None = None
    fragments: list[tuple[int, int]] = []
    while len(fragments) < MAX_FRAGMENTS:
        head = file.read(offset, 8)
        if len(head) < 8:
            break  # no delimiter
        group, element, length = struct.unpack("<HHL", head)
        tag = group << 16 | element
        if tag == SEQUENCE_END or (fragments and not head.strip(b"\0")):  # or padding in place of a delimiter
            break
        if tag != ITEM or length == UNDEFINED:
            problem = "something else stands where a fragment should begin, so a length is wrong"
            raise NotUsableError("broken_frame", frame=max(len(fragments), 1), problem=problem)
        offset += 8
        if offset + length > file.size:
            return table or (), fragments, True
        if table is None:
            num_entries = min(length // 4, MAX_FRAGMENTS)
            table = struct.unpack(f"<{num_entries}L", file.read(offset, 4 * num_entries))
        else:
            fragments.append((offset, length))
        offset += length
    return table or (), fragments, False


def _starts_by_table(table: Sequence[int], fragments: Sequence[tuple[int, int]], num_frames: int) -> list[int] | None:
    """Return the index of each frame's first fragment, or None if the table does not fit; offsets count from the first fragment's item."""
    if len(table) != num_frames or not fragments:
        return None
    first = fragments[0][0]
    index_of = {offset - first: i for i, (offset, _) in enumerate(fragments)}
    starts = [index_of.get(offset, -1) for offset in table]
    is_sound = starts[0] == 0 and all(a < b for a, b in zip(starts, starts[1:]))
    return starts if is_sound else None
