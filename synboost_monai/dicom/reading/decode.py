"""Read the frames of an ultrasound object as grey images, a few at a time: memory does not grow with the length of the clip.

    with frame_reader(path, limits=limits) as reader:
        frames = reader.read_frames(range(32))  # (T, H, W) uint8, display order

`pixel_data.py` finds the bytes of a frame, `frame_codecs.py` decodes them, `grey.py` converts them to grey.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from synboost_monai.dicom.elements import PIXEL_DATA
from synboost_monai.dicom.limits import Limits
from synboost_monai.dicom.reading.files import Closing, OpenFile, as_open
from synboost_monai.dicom.reading.frame_codecs import FrameError, PixelFormat, codec_of, native_samples
from synboost_monai.dicom.reading.grey import GreyScale
from synboost_monai.dicom.reading.header import as_dataset
from synboost_monai.dicom.reading.pixel_data import index_frames, index_video
from synboost_monai.dicom.reading.structure import InflatedSource, PixelData, Structure, walk_file
from synboost_monai.dicom.reading.values import whole_number_in
from synboost_monai.dicom.reading.video import MAX_PARTS, VideoFrames, is_video
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.dicom.uids import BIG_ENDIAN, DEFLATED

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PHOTOMETRIC_INTERPRETATIONS = {
    1: ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"),
    3: ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"),
}
"""Samples per Pixel -> photometric interpretations that can be read."""
_OTHER_PHOTOMETRIC = ("HSV", "ARGB", "CMYK", "XYB")
"""Photometric interpretations of the standard, past and present, that ultrasound does not use."""
_COMPRESSED_SPARE = 1 << 20
"""Bytes that a compressed frame may have beyond twice the uncompressed one."""


class FrameReader(Closing):
    """Read the frames of one open file; made by `frame_reader`; close it, or use it in `with`."""

    header: Dataset
    """Everything before the pixel data."""
    num_frames: int
    shape: tuple[int, int]
    """Rows and columns of a frame."""
    decoder: str
    """Name and version of the decoder of the frames; `none` for uncompressed ones."""

    def __init__(self, file: OpenFile, structure: Structure, limits: Limits, close: contextlib.ExitStack) -> None:
        self._close = close
        self.header = as_dataset(structure)
        syntax, pixels = structure.transfer_syntax, structure.pixels
        self._codec = codec_of(syntax, whole_number_in(self.header, "BitsStored") or 8)
        self.decoder = self._codec.name if self._codec else "none"
        if pixels is None or (pixels.length == 0 and pixels.tag == PIXEL_DATA):
            raise NotUsableError("no_pixels")
        if pixels.tag != PIXEL_DATA:
            value, expected = "in floating point", "whole numbers"
            raise NotUsableError("bad_attribute", keyword="PixelData", value=value, expected=expected)
        self._format, self.num_frames = read_format(self.header, limits)
        self.shape = self._format.rows, self._format.columns
        self._grey = GreyScale(self._format, self.header, structure.is_little_endian)
        self._file = file
        self._source: OpenFile | InflatedSource = file
        self._video: VideoFrames | None = None
        if is_video(syntax):
            parts = index_video(file, pixels, MAX_PARTS)
            self._video = VideoFrames(file, parts, syntax, self.num_frames, self.shape)
            close.callback(self._video.close)
            return
        if self._codec:
            self._frames = index_frames(file, pixels, self.num_frames)
            return
        self._offset, self._is_little_endian = pixels.offset, structure.is_little_endian
        # bytes of a big-endian OW are swapped in their words (PS3.5 8.1.1 and A.3)
        self._is_swapped = syntax == BIG_ENDIAN and self._format.bits_allocated == 8 and pixels.vr == "OW"
        self._end = None
        if syntax == DEFLATED:
            self._source = InflatedSource(file, structure.data_set_offset, limits)
            self._end = pixels.offset + (pixels.length or 0)
        self._check_native(pixels, file.size if syntax != DEFLATED else None)

    def read_frames(self, frame_indices: Sequence[int]) -> NDArray[np.uint8]:
        """Return frames by index, in the order given, (T, H, W) uint8.

        Raises:
            NotUsableError: for the first frame that cannot be decoded.
        """
        frames = np.empty((len(frame_indices), *self.shape), np.uint8)
        for frame, index in zip(frames, frame_indices):
            frame[:] = self.read_frame(index)
        return frames

    def read_frame(self, frame_index: int) -> NDArray[np.uint8]:
        """Return one frame, (H, W) uint8; it may be a view that must not be written to.

        Raises:
            NotUsableError: broken_frame, damaged_frame, frame_mismatch, truncated_pixels.
            ValueError: if there is no such frame.
        """
        if not 0 <= frame_index < self.num_frames:
            raise ValueError(f"decode.py: frame {frame_index} of a clip of {self.num_frames} frames (counted from 0)")
        if self._video is not None:
            return self._video.read(frame_index)
        try:
            if self._codec is None:
                samples = native_samples(self._native_bytes(frame_index), self._format, self._is_little_endian)
            else:
                data = self._frames.read(self._file, frame_index, 2 * self._format.num_bytes + _COMPRESSED_SPARE)
                samples = self._codec.decode(data, self._format)
            return self._grey(samples)
        except (NotUsableError, MemoryError):
            raise
        except FrameError as error:
            raise NotUsableError(error.code, frame=frame_index + 1, **error.facts) from None
        except Exception:  # decoders raise many kinds, and their messages do not help users
            problem = "its compressed data are damaged or end early"
            raise NotUsableError("broken_frame", frame=frame_index + 1, problem=problem) from None

    def close(self) -> None:
        """Close the file."""
        self._close.close()

    def _check_native(self, pixels: PixelData, file_size: int | None) -> None:
        """Compare the size that rows, columns and frames need with the size of the pixel data."""
        if pixels.length is None:
            problem = "its pixel data are in fragments, which its transfer syntax does not have"
            raise NotUsableError("broken_header", problem=problem)
        got = pixels.length if file_size is None else min(pixels.length, file_size - pixels.offset)
        if self._format.is_subsampled and got >= 3 * self._format.rows * self._format.columns * self.num_frames:
            # chroma was written in full after all
            self._format = dataclasses.replace(self._format, photometric="YBR_FULL")
        if self._format.photometric == "YBR_PARTIAL_420":
            raise NotUsableError("unsupported_photometric", value="YBR_PARTIAL_420 (uncompressed)")
        if self._format.is_subsampled and self._format.columns % 2:
            columns = self._format.columns
            raise NotUsableError("bad_attribute", keyword="Columns", value=columns, expected="an even number")
        expected = self._format.num_bytes * self.num_frames
        if got < expected:
            raise NotUsableError("truncated_pixels", got=got, expected=expected, unit="bytes")

    def _check_inflated_end(self, end: int) -> None:
        """Refuse deflated data that are damaged, which shows only in the bytes after the pixels, since there is no checksum.

        After the pixels comes nothing, or a data element (padding, a signature, a vendor's own) whose representation is two letters.
        """
        behind = self._source.read(end, 8)
        if behind.strip(b"\0") and not (behind[4:6].isalpha() and behind[4:6].isupper()):
            raise NotUsableError("broken_header", problem="its deflated data set is damaged")

    def _native_bytes(self, frame_index: int) -> bytes:
        num_bytes = self._format.num_bytes
        start = frame_index * num_bytes
        if not self._is_swapped:
            data = self._source.read(self._offset + start, num_bytes)
            if self._end is not None and frame_index == self.num_frames - 1:
                self._check_inflated_end(self._end)
            return data
        before = start % 2
        words = np.frombuffer(
            self._source.read(self._offset + start - before, (before + num_bytes + 1) // 2 * 2), ">u2"
        )
        return words.astype("<u2").tobytes()[before : before + num_bytes]


def frame_reader(file: str | os.PathLike[str] | OpenFile, limits: Limits | None = None) -> FrameReader:
    """Open an ultrasound object for reading its frames. Nothing is decoded yet, but sizes and lengths are checked.

    Args:
        file: path of a regular file; or the open file.
        limits: of a file; the defaults if None.
    Raises:
        NotUsableError: with a reason of the scan or of reading (`reasons.py`).
    """
    limits = limits or Limits()
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(as_open(file))
        structure = walk_file(opened, limits)
        if structure.problem is not None:
            raise structure.problem
        return FrameReader(opened, structure, limits, stack.pop_all())
    raise AssertionError  # the stack swallows nothing


def read_format(header: Dataset, limits: Limits) -> tuple[PixelFormat, int]:
    """Return the pixel format and the number of frames, both checked.

    Raises:
        NotUsableError: missing_attribute, bad_attribute, unsupported_photometric, too_large or too_many_frames.
    """
    rows, columns = (_needed(header, name, 1, 65535) for name in ("Rows", "Columns"))
    samples = _needed(header, "SamplesPerPixel", 1, 3)
    num_frames = 1
    if header.get("NumberOfFrames") not in (None, ""):
        num_frames = _needed(header, "NumberOfFrames", 1, 2**31)
    if num_frames > limits.max_frames:
        raise NotUsableError("too_many_frames", frames=num_frames, limit=limits.max_frames)
    num_values = rows * columns * num_frames * samples
    if max(rows, columns) > limits.max_rows_columns or num_values > limits.max_values:
        limit = f"{limits.max_rows_columns} a side or {limits.max_values:g}"
        raise NotUsableError("too_large", rows=rows, columns=columns, frames=num_frames, limit=limit)
    allocated = _needed(header, "BitsAllocated", 1, 64)
    if allocated not in (8, 16):
        raise NotUsableError("bad_attribute", keyword="BitsAllocated", value=allocated, expected="8 or 16")
    stored = _optional(header, "BitsStored", 1, allocated, allocated)
    high_bit = _optional(header, "HighBit", stored - 1, allocated - 1, stored - 1)
    photometric = _photometric(header, samples)
    is_signed = _optional(header, "PixelRepresentation", 0, 1, 0) == 1
    is_planar = samples > 1 and _optional(header, "PlanarConfiguration", 0, 1, 0) == 1
    return PixelFormat(
        rows, columns, samples, photometric, allocated, stored, high_bit, is_signed, is_planar
    ), num_frames


def _needed(header: Dataset, keyword: str, lowest: int, highest: int) -> int:
    if header.get(keyword) in (None, "", b""):
        raise NotUsableError("missing_attribute", keyword=keyword)
    return _optional(header, keyword, lowest, highest, lowest)


def _optional(header: Dataset, keyword: str, lowest: int, highest: int, default: int) -> int:
    """Return an attribute as a whole number in a range; the default if it is missing."""
    if header.get(keyword) in (None, "", b""):
        return default
    number = whole_number_in(header, keyword)
    if number is None or not lowest <= number <= highest:
        expected = f"{lowest}" if lowest == highest else f"{lowest} to {highest}"
        value = "not a whole number" if number is None else number
        raise NotUsableError("bad_attribute", keyword=keyword, value=value, expected=expected)
    return number


def _photometric(header: Dataset, samples: int) -> str:
    """Return the photometric interpretation if it can be read; refuse any other."""
    keyword = "PhotometricInterpretation"
    value = header.get(keyword)
    if not value:
        raise NotUsableError("missing_attribute", keyword=keyword)
    word = value.strip().upper() if isinstance(value, str) else ""
    if word in PHOTOMETRIC_INTERPRETATIONS.get(samples, ()):
        return word
    known = [word for words in PHOTOMETRIC_INTERPRETATIONS.values() for word in words]
    if word in known:
        expected = "1" if samples == 3 else "3"
        raise NotUsableError(
            "bad_attribute", keyword="SamplesPerPixel", value=samples, expected=f"{expected} for {word}"
        )
    raise NotUsableError("unsupported_photometric", value=word if word in _OTHER_PHOTOMETRIC else "in the header")
