"""Convert the samples of a frame to grey, 0..255, as a viewer would show it.

Grey is luma: taken directly from luma and chroma, or computed from red, green and blue (ITU-R BT.601, as `files.luma`). A
single sample goes through one table, made once for an object, so that all frames share one scale:

| pixels | become |
|---|---|
| MONOCHROME2 of 8 bits | unchanged |
| fewer or more bits stored | lowest storable value -> 0, highest -> 255, linear between |
| more than 8 bits, with a window in the header | by the window (PS3.3 C.11.2.1.2.1), after the rescale slope |
| MONOCHROME1 | the same, inverted |
| PALETTE COLOR | luma of the palette's colours |
| YBR_PARTIAL_* | luma 16..235 -> 0..255 |

A window for more than 8 bits shows what the device meant to show; one for 8 bits is ignored, since it is the viewer's choice and 8-bit
ultrasound is stored as it was on the screen. Pixel aspect ratio, VOI lookup tables and ICC profiles are not applied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from synboost_monai.dicom.reading.frame_codecs import PixelFormat, Samples
from synboost_monai.dicom.reading.values import first_number_in
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.files import luma

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Table = NDArray[np.uint8]
_COLOURS = ("Red", "Green", "Blue")


class GreyScale:
    """Convert the samples of an object's frames to grey.

    Args:
        pixels: pixel format of the object.
        header: header with the palette and the window.
        is_little_endian: byte order of the palette.
    Raises:
        NotUsableError: missing_attribute or bad_attribute for an incomplete palette.
    """

    def __init__(self, pixels: PixelFormat, header: Dataset, is_little_endian: bool) -> None:
        self._pixels, self._header = pixels, header
        self._palette = _palette(header, is_little_endian) if pixels.photometric == "PALETTE COLOR" else None
        self._tables: dict[tuple[int, bool, bool], Table | None] = {}

    def __call__(self, samples: Samples) -> NDArray[np.uint8]:
        """Return the grey image of a frame, (H, W)."""
        key = samples.bits, samples.is_signed, samples.is_verbatim
        if key not in self._tables:
            self._tables[key] = self._table(*key)
        table = self._tables[key]
        values = samples.values if table is None else table[samples.values]
        return _luma_of_rgb(values) if samples.is_rgb else values

    def _table(self, bits: int, is_signed: bool, is_verbatim: bool) -> Table | None:
        """Return the table from stored word to grey (for colours, to each sample's 8 bits); None if it changes nothing."""
        num_words = 256 if self._pixels.bits_allocated == 8 else 65536
        shift = self._pixels.high_bit + 1 - bits if is_verbatim else 0
        values = (np.arange(num_words) >> shift) & ((1 << bits) - 1)
        bits_used = min(bits, self._pixels.bits_stored)  # a code stream may say 16 and the header 12, or the reverse
        lowest, highest = 0, (1 << bits_used) - 1
        if is_signed:
            values = np.where(values >> (bits - 1), values - (1 << bits), values)
            lowest, highest = -(1 << (bits_used - 1)), (1 << (bits_used - 1)) - 1
        if self._palette is not None:
            colours, first = self._palette
            return luma(colours)[np.clip(values - first, 0, len(colours) - 1)]
        is_single = self._pixels.samples == 1
        window = _window(self._header, lowest, highest) if is_single and bits_used > 8 else None
        if window is not None:
            low, high = window
        elif self._pixels.photometric.startswith("YBR_PARTIAL"):
            low, high = 16 * highest / 255, 235 * highest / 255
        else:
            low, high = lowest, highest
        grey = np.clip((values - low) * (255 / (high - low)), 0, 255).round().astype(np.uint8)
        if self._pixels.photometric == "MONOCHROME1":
            grey = 255 - grey
        is_identity = num_words == 256 and bool((grey == np.arange(256)).all())
        return None if is_identity else grey


def _luma_of_rgb(colours: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the luma (H, W) of colours (H, W, 3) uint8; Pillow has the weights of `files.luma` and takes a quarter of the time."""
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(colours)).convert("L"))


def _window(header: Dataset, lowest: int, highest: int) -> tuple[float, float] | None:
    """Return the stored values that become black and white by the header's first window; None without a sensible window."""
    centre, width = (first_number_in(header, name) for name in ("WindowCenter", "WindowWidth"))
    slope, intercept = (first_number_in(header, name) for name in ("RescaleSlope", "RescaleIntercept"))
    if centre is None or width is None or width < 2:
        return None
    low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    if slope:
        low, high = ((value - (intercept or 0)) / slope for value in (low, high))
    if not low < high or high <= lowest or low >= highest:  # it would show nothing, or an inverted image
        return None
    return low, high


# --- palettes --------------------------------------------------------------------------------------------------------


def _palette(header: Dataset, is_little_endian: bool) -> tuple[NDArray[np.uint8], int]:
    """Return the colours (N, 3), and the stored value of the first of them."""
    tables, firsts = zip(*(_palette_of_colour(header, colour, is_little_endian) for colour in _COLOURS))
    if len({len(table) for table in tables}) > 1 or len(set(firsts)) > 1:
        descriptor = "RedPaletteColorLookupTableDescriptor"
        raise NotUsableError(
            "bad_attribute", keyword=descriptor, value="of another size", expected="one size for all colours"
        )
    colours = np.stack(tables, axis=-1)
    if colours.dtype != np.uint8:  # some writers put 8-bit values into 16-bit entries
        colours = colours >> 8 if colours.max() > 255 else colours
    return colours.astype(np.uint8), firsts[0]


def _palette_of_colour(header: Dataset, colour: str, is_little_endian: bool) -> tuple[NDArray[Any], int]:
    keyword = f"{colour}PaletteColorLookupTableDescriptor"
    descriptor = header.get(keyword)
    if descriptor is None:
        raise NotUsableError("missing_attribute", keyword=keyword)
    try:
        num_entries, first, bits = (int(n) for n in descriptor)
    except (TypeError, ValueError):
        num_entries, first, bits = -1, 0, 0
    num_entries = num_entries or 65536  # 0 means 2^16
    if not 1 <= num_entries <= 65536 or bits not in (8, 16):
        raise NotUsableError(
            "bad_attribute", keyword=keyword, value="malformed", expected="entries, first value, 8 or 16 bits"
        )
    is_segmented = f"{colour}PaletteColorLookupTableData" not in header
    keyword = f"{'Segmented' if is_segmented else ''}{colour}PaletteColorLookupTableData"
    data = header.get(keyword)
    if not isinstance(data, bytes) or not data:
        raise NotUsableError("missing_attribute", keyword=keyword)
    is_bytes = bits == 8 and (is_segmented or len(data) < 2 * num_entries)
    words = _words(data, header[keyword].VR, is_bytes, is_little_endian)
    table = _expand(words, num_entries, is_bytes, is_little_endian) if is_segmented else words
    if len(table) < num_entries:
        value, expected = f"of {len(table)} entries", f"{num_entries}"
        raise NotUsableError("bad_attribute", keyword=keyword, value=value, expected=expected)
    table = table[:num_entries]
    return (table.astype(np.uint8) if bits == 8 else table.astype(np.uint16)), first


def _words(data: bytes, vr: str, is_bytes: bool, is_little_endian: bool) -> NDArray[Any]:
    """Return the entries of a table; bytes in a big-endian OW are swapped in their words."""
    data = data[: len(data) // 2 * 2]
    if is_bytes:
        words = np.frombuffer(data, np.uint8)
        return words if is_little_endian or vr != "OW" else words.reshape(-1, 2)[:, ::-1].ravel()
    return np.frombuffer(data, "<u2" if is_little_endian else ">u2")


def _expand(words: NDArray[Any], num_entries: int, is_bytes: bool, is_little_endian: bool) -> NDArray[Any]:
    """Return a segmented palette written out (PS3.3 C.7.9.2); never longer than its descriptor says."""
    entries: list[int] = words.tolist()
    table: list[int] = []
    order: Literal["little", "big"] = "little" if is_little_endian else "big"

    def expand(at: int, count: int | None) -> None:
        """Append the segments from position `at` on, at most `count` of them."""
        num_read = 0
        while at + 1 < len(entries) and len(table) < num_entries and (count is None or num_read < count):
            kind, length = entries[at], entries[at + 1]
            at, num_read = at + 2, num_read + 1
            if kind == 0:  # discrete
                table.extend(entries[at : at + length])
                at += length
            elif kind == 1 and table and at < len(entries):  # linear, up to the value given
                steps = np.around(np.linspace(table[-1], entries[at], length + 1)[1:])
                table.extend(int(value) for value in steps)
                at += 1
            elif kind == 2 and table and at < len(entries) and count is None:
                # repeats earlier segments, which is not allowed within such a repetition
                parts = entries[at : at + (4 if is_bytes else 2)]
                at += len(parts)
                if is_bytes:
                    parts = [int.from_bytes(bytes(pair), order) for pair in (parts[:2], parts[2:])]
                expand(parts[0] | parts[-1] << 16, length)
            else:
                keyword = "SegmentedRedPaletteColorLookupTableData"
                raise NotUsableError(
                    "bad_attribute", keyword=keyword, value="malformed", expected="segments of PS3.3 C.7.9.2"
                )
        del table[num_entries:]

    expand(0, None)
    return np.array(table, np.uint8 if is_bytes else np.uint16)
