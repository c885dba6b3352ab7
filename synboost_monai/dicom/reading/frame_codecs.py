"""Decode one compressed frame into samples, by a fixed decoder for each syntax: another decoder may give other grey levels.

| transfer syntaxes | decoder | licence |
|---|---|---|
| JPEG Baseline, Extended (8 bit) | Pillow (libjpeg-turbo) | MIT-CMU |
| JPEG Extended (12 bit), Lossless | pylibjpeg-libjpeg, optional | GPL-3 |
| JPEG-LS | pyjpegls (CharLS) | MIT |
| JPEG 2000, High-Throughput JPEG 2000 | pylibjpeg-openjpeg | MIT |
| RLE | pylibjpeg-rle | MIT |
| MPEG-2, MPEG-4, HEVC | PyAV (FFmpeg), optional, by `video.py` | BSD, LGPL |

They are called directly and not through pydicom, which takes whichever is installed. `python-gdcm` is never used: it can end the
process. A JPEG whose data end early decodes without an error, the rest filled up; `_is_hungry` detects that.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synboost_monai.dicom.reading.video import is_video, video_decoder
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.dicom.uids import (
    DEFLATED_FRAMES,
    ENCAPSULATED_UNCOMPRESSED,
    JPEG_2000,
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    JPEG_LS,
    NATIVE_SYNTAXES,
    RLE,
)

_FILLER = 128
"""Grey level of the blocks that a baseline JPEG decoder makes up when its data have ended."""
_JUNK = bytes([0xA5, 0x5A, 0x3C, 0xC3, 0x69, 0x96, 0x0F, 0xF0]) * 64
"""Entropy data without a marker; a decoder that still needs data reads it."""
_FRAME_MARKERS = frozenset({*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7})
_END = b"\xff\xd9"


@dataclass(frozen=True)
class PixelFormat:
    """Hold the pixel format of the frames, as the header gives it."""

    rows: int
    columns: int
    samples: int
    """1, or 3 for colour."""
    photometric: str
    bits_allocated: int
    """8 or 16."""
    bits_stored: int
    high_bit: int
    is_signed: bool
    is_planar: bool
    """Whether colours are stored one plane after the other (only in native pixels)."""

    @property
    def num_bytes(self) -> int:
        """Size of an uncompressed frame in bytes; YBR_*_422 has two chroma samples for every two pixels."""
        samples = 2 if self.is_subsampled else self.samples
        return self.rows * self.columns * samples * (self.bits_allocated // 8)

    @property
    def is_subsampled(self) -> bool:
        """Whether native pixels share their chroma with a neighbour."""
        return self.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422")


@dataclass(frozen=True)
class Samples:
    """Hold the samples of a decoded frame."""

    values: NDArray[Any]
    """(H, W), one sample or the luma alone; or (H, W, 3). uint8 or uint16."""
    bits: int
    """Bits of a sample."""
    is_signed: bool = False
    is_rgb: bool = False
    """Whether `values` are red, green and blue, (H, W, 3)."""
    is_verbatim: bool = False
    """Whether the bits are placed in their words by Bits Stored and High Bit; if not, they are the lowest bits."""


Decode = Callable[[bytes, PixelFormat], Samples]


@dataclass(frozen=True)
class Codec:
    """Hold a decoder with its name and version."""

    name: str
    decode: Decode
    """Function that raises `FrameError`; other exceptions mean that the decoder cannot read the frame."""


class FrameError(Exception):
    """Say why a frame cannot be used; `FrameReader` adds its number."""

    def __init__(self, code: str, **facts: Any) -> None:
        super().__init__(code)
        self.code, self.facts = code, facts


def syntax_name(syntax: str) -> str:
    """Return the name of a transfer syntax; an identifier that the standard does not have is not repeated."""
    from pydicom.uid import UID_dictionary

    return UID_dictionary[syntax][0] if syntax in UID_dictionary else "with an unknown identifier"


def codec_of(syntax: str, bits_stored: int) -> Codec | None:
    """Return the decoder of a transfer syntax; None for native pixels.

    Raises:
        NotUsableError: unsupported_syntax or missing_decoder.
    """
    if syntax in NATIVE_SYNTAXES:
        return None
    name = syntax_name(syntax)
    if is_video(syntax):
        if (decoder := video_decoder()) is None:
            raise NotUsableError("missing_decoder", syntax=name, extra="video")
        return Codec(decoder, _decode_video)
    if syntax == JPEG_BASELINE or (syntax == JPEG_EXTENDED and bits_stored <= 8):
        return _pillow()
    if syntax in JPEG_LOSSLESS or syntax == JPEG_EXTENDED:
        return _plugin(name, "libjpeg", "pylibjpeg-libjpeg", "jpeg-lossless", _decode_libjpeg)
    if syntax in JPEG_LS:
        return _plugin(name, "jpeg_ls", "pyjpegls", "dicom", _decode_jpeg_ls)
    if syntax in JPEG_2000:
        return _plugin(name, "openjpeg", "pylibjpeg-openjpeg", "dicom", _decode_jpeg_2000)
    if syntax == RLE:
        return _plugin(name, "rle", "pylibjpeg-rle", "dicom", _decode_rle)
    if syntax == ENCAPSULATED_UNCOMPRESSED:
        return Codec("none", native_samples)
    if syntax == DEFLATED_FRAMES:
        return Codec(f"zlib {zlib.ZLIB_RUNTIME_VERSION}", _decode_deflated)
    raise NotUsableError("unsupported_syntax", syntax=name)


def _decode_video(data: bytes, pixels: PixelFormat) -> Samples:
    """Refuse to decode a frame of a video by itself: `FrameReader` takes it from `VideoFrames`."""
    raise NotImplementedError


def _plugin(syntax: str, module: str, distribution: str, extra: str, decode: Decode) -> Codec:
    try:
        importlib.import_module(module)
        version = importlib.metadata.version(distribution)
    except ImportError:
        raise NotUsableError("missing_decoder", syntax=syntax, extra=extra) from None
    return Codec(f"{distribution} {version}", decode)


def _pillow() -> Codec:
    import PIL
    from PIL import features

    turbo = features.version("libjpeg_turbo")
    return Codec(f"Pillow {PIL.__version__}" + (f" (libjpeg-turbo {turbo})" if turbo else ""), _decode_jpeg)


def native_samples(data: bytes, pixels: PixelFormat, is_little_endian: bool = True) -> Samples:
    """Return the samples of an uncompressed frame.

    Args:
        data: `num_bytes` bytes of the format, and perhaps padding.
    """
    if len(data) < pixels.num_bytes:
        problem = f"it has {len(data)} of {pixels.num_bytes} bytes"
        raise FrameError("broken_frame", problem=problem)
    dtype: Any = np.uint8 if pixels.bits_allocated == 8 else np.dtype("<u2" if is_little_endian else ">u2")
    values = np.frombuffer(data, dtype, pixels.num_bytes // (pixels.bits_allocated // 8))
    shape = pixels.rows, pixels.columns
    if pixels.samples == 1:
        return Samples(values.reshape(shape), pixels.bits_stored, pixels.is_signed, is_verbatim=True)
    if pixels.is_subsampled:  # Y Y Cb Cr for each two pixels of a row (PS3.3 C.7.6.3.1.2)
        return Samples(values.reshape(-1, 4)[:, :2].reshape(shape), pixels.bits_stored, is_verbatim=True)
    planes = values.reshape(3, *shape) if pixels.is_planar else np.moveaxis(values.reshape(*shape, 3), -1, 0)
    return _of_planes(planes, pixels.bits_stored, pixels.photometric, is_verbatim=True)


def _of_planes(planes: NDArray[Any], bits: int, photometric: str, is_verbatim: bool = False) -> Samples:
    """Return the samples of colour planes, (3, H, W): red, green and blue, or luma first."""
    is_rgb = photometric == "RGB"
    return Samples(np.moveaxis(planes, 0, -1) if is_rgb else planes[0], bits, is_rgb=is_rgb, is_verbatim=is_verbatim)


def _decode_deflated(data: bytes, pixels: PixelFormat) -> Samples:
    inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, pixels.num_bytes)
    return native_samples(inflated, pixels)


def _decode_rle(data: bytes, pixels: PixelFormat) -> Samples:
    from rle.rle import decode_frame

    shape, num_bytes = (pixels.rows, pixels.columns), pixels.bits_allocated // 8
    num_segments = int.from_bytes(data[:4], "little")
    if num_segments != pixels.samples * num_bytes:
        _refuse_components(num_segments / num_bytes, pixels)
    decoded = decode_frame(bytes(data), shape[0] * shape[1], pixels.bits_allocated, "<")
    values = np.frombuffer(decoded, np.uint8 if num_bytes == 1 else np.dtype("<u2"))
    if pixels.samples == 1:
        return Samples(values.reshape(shape), pixels.bits_stored, pixels.is_signed, is_verbatim=True)
    return _of_planes(values.reshape(3, *shape), pixels.bits_stored, pixels.photometric, is_verbatim=True)


# --- JPEG ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JpegHeader:
    """Hold the frame header of a JPEG."""

    marker: int
    """Kind of JPEG: 0xC0 baseline, 0xC1 extended, 0xC3 lossless, 0xF7 JPEG-LS."""
    bits: int
    rows: int
    columns: int
    components: int
    scan: int
    """Offset of the first scan."""


def jpeg_header(data: bytes) -> JpegHeader:
    """Read the markers of a JPEG up to its first scan."""
    position, found = 2, None
    if data[:2] != b"\xff\xd8":
        raise FrameError("broken_frame", problem="it does not begin like a JPEG")
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0xDA and found:
            return JpegHeader(*found, position)
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in _FRAME_MARKERS and length >= 8 and position + 10 <= len(data):
            bits, rows, columns, components = struct.unpack_from(">BHHB", data, position + 4)
            found = marker, bits, rows, columns, components
        if length < 2:
            break
        position += 2 + length
    raise FrameError("broken_frame", problem="its JPEG header is damaged or ends early")


def _checked_jpeg(data: bytes, pixels: PixelFormat, markers: tuple[int, ...]) -> JpegHeader:
    header = jpeg_header(data)
    if header.marker not in markers:
        raise FrameError("broken_frame", problem="it is another kind of JPEG than its transfer syntax says")
    _check_size((header.rows, header.columns), header.components, header.bits, pixels)
    return header


def _check_size(size: tuple[int, int], components: int, bits: int, pixels: PixelFormat) -> None:
    """Compare the size of a compressed frame with the header, before it is decoded."""
    if size != (pixels.rows, pixels.columns):
        got, expected = f"{size[0]} x {size[1]} pixels", f"{pixels.rows} x {pixels.columns}"
        raise FrameError("frame_mismatch", got=got, expected=expected)
    if components != pixels.samples:
        _refuse_components(components, pixels)
    if not 1 <= bits <= 16 or (pixels.bits_allocated == 8 and bits > 8):
        raise FrameError("frame_mismatch", got=f"{bits} bits a sample", expected=f"{pixels.bits_stored}")


def _refuse_components(components: float, pixels: PixelFormat) -> None:
    raise FrameError("frame_mismatch", got=f"{components:g} samples a pixel", expected=f"{pixels.samples}")


def _decode_jpeg(data: bytes, pixels: PixelFormat) -> Samples:
    """Return the luma of an 8-bit JPEG, as the decoder has it before any conversion of colours.

    Three components are luma and chroma, unless an Adobe marker or the components' names say RGB (then luma is computed): libjpeg
    decides so, and scanners write so, whatever the photometric interpretation says.
    """
    header = _checked_jpeg(data, pixels, (0xC0, 0xC1))
    return Samples(_decode_whole(_pillow_luma, data, header, lambda v: bool((v[-8:, -8:] == _FILLER).all())), 8)


def _pillow_luma(data: bytes) -> NDArray[Any]:
    from PIL import Image

    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    image.draft("L", image.size)
    if image.mode != "L":
        raise FrameError("broken_frame", problem="its colours are neither grey, RGB nor luma and chroma")
    return np.asarray(image)


def _decode_libjpeg(data: bytes, pixels: PixelFormat) -> Samples:
    """Decode JPEG Lossless, and JPEG Extended of 12 bits."""
    from libjpeg.utils import decode

    header = _checked_jpeg(data, pixels, (0xC1, 0xC3))
    values = _decode_whole(decode, data, header, lambda v: bool((v[-1, -8:] == v[-1, -1]).all()))
    if pixels.samples == 3:
        is_rgb = pixels.photometric == "RGB" and header.marker == 0xC3
        return Samples(values if is_rgb else values[..., 0], header.bits, is_rgb=is_rgb)
    return Samples(values, header.bits, pixels.is_signed)


def _decode_whole(
    decode: Callable[[bytes], NDArray[Any]],
    data: bytes,
    header: JpegHeader,
    ends_like_filler: Callable[[NDArray[Any]], bool],
) -> NDArray[Any]:
    """Return decoded values.

    Raises:
        FrameError: damaged_frame, if not all of them come from the data.
    """
    end = data.find(_END, header.scan)  # in a scan, 0xFF is followed by 0 or a restart marker
    body = data[:end] if end >= 0 else data.rstrip(b"\0")
    values = decode(body + _END)
    if (end < 0 or ends_like_filler(values)) and _is_hungry(decode, body, values):
        raise FrameError("damaged_frame")
    return values


def _is_hungry(decode: Callable[[bytes], NDArray[Any]], body: bytes, values: NDArray[Any]) -> bool:
    """Return whether a decoder would have read more data: junk at the end then changes its values."""
    try:
        return not np.array_equal(decode(body + _JUNK + _END), values)
    except Exception:  # it read the junk and failed
        return True


def _decode_jpeg_ls(data: bytes, pixels: PixelFormat) -> Samples:
    from jpeg_ls.CharLS import decode_buffer

    header = _checked_jpeg(data, pixels, (0xF7,))
    end = data.find(_END, header.scan)  # without an end marker, CharLS reads beyond the frame's memory, for seconds
    decoded, about = decode_buffer(bytes(data if end >= 0 else data.rstrip(b"\0") + _END))
    values = np.frombuffer(decoded, np.uint8 if header.bits <= 8 else np.dtype("<u2"))
    shape = pixels.rows, pixels.columns
    if pixels.samples == 1:
        return Samples(values.reshape(shape), header.bits, pixels.is_signed)
    if about["interleave_mode"] == 0:
        return _of_planes(values.reshape(3, *shape), header.bits, pixels.photometric)
    return _of_planes(np.moveaxis(values.reshape(*shape, 3), -1, 0), header.bits, pixels.photometric)


# --- JPEG 2000 -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Jpeg2000Header:
    """Hold the main header of a JPEG 2000 code stream."""

    rows: int
    columns: int
    components: int
    bits: int
    is_signed: bool
    is_transformed: bool
    """Whether the decoder converts luma and chroma into red, green and blue."""
    num_tiles: int
    """Number of rectangles that are coded separately; ultrasound has one."""
    tiles: int
    """Offset of the first tile part."""


def jpeg_2000_header(data: bytes) -> Jpeg2000Header:
    """Read the SIZ and COD markers of a JPEG 2000 code stream (ISO/IEC 15444-1 A.5, A.6), also within a JP2 file."""
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start < 0 or len(data) < start + 60:
        raise FrameError("broken_frame", problem="it does not begin like a JPEG 2000 code stream")
    siz = start + 4
    right, bottom, left, top, tile_columns, tile_rows, tile_left, tile_top, components, depth = struct.unpack_from(
        ">8IHB", data, siz + 4
    )
    position = siz + int.from_bytes(data[siz : siz + 2], "big")
    is_transformed = False
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] not in (0x90, 0xD9):
        if data[position + 1] == 0x52 and position + 9 <= len(data):
            is_transformed = data[position + 8] == 1
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    if not tile_columns or not tile_rows:
        raise FrameError("broken_frame", problem="its JPEG 2000 header is damaged")
    num_tiles = -(-(right - tile_left) // tile_columns) * -(-(bottom - tile_top) // tile_rows)
    return Jpeg2000Header(
        bottom - top, right - left, components, (depth & 127) + 1, depth > 127, is_transformed, num_tiles, position
    )


def _has_all_tiles(data: bytes, header: Jpeg2000Header) -> bool:
    """Return whether every tile has a part (SOT markers, ISO/IEC 15444-1 A.4.2); the decoder leaves others black without an error."""
    found, position = set(), header.tiles
    while data[position : position + 2] == b"\xff\x90" and position + 12 <= len(data):
        found.add(int.from_bytes(data[position + 4 : position + 6], "big"))
        length = int.from_bytes(data[position + 6 : position + 10], "big")
        if not length:  # the last part, up to the end
            break
        position += length
    return len(found) >= header.num_tiles


def _decode_jpeg_2000(data: bytes, pixels: PixelFormat) -> Samples:
    from openjpeg.utils import decode

    header = jpeg_2000_header(data)
    _check_size((header.rows, header.columns), header.components, header.bits, pixels)
    values = decode(bytes(data))
    if not _has_all_tiles(data, header):
        raise FrameError("damaged_frame")
    values = values.view(np.uint8 if values.dtype.itemsize == 1 else np.uint16)
    if pixels.samples == 1:
        return Samples(values, header.bits, header.is_signed)
    if pixels.photometric == "RGB" or (header.is_transformed and pixels.photometric in ("YBR_RCT", "YBR_ICT")):
        return Samples(values, header.bits, is_rgb=True)
    return Samples(values[..., 0], header.bits)
