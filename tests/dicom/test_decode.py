"""Test frames of every encoding as grey, against values worked out by hand, pydicom's own decoding, and files with wrong headers."""

from __future__ import annotations

import io
import itertools
import re
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from synboost_monai.dicom.limits import Limits
from synboost_monai.dicom.reading.decode import frame_reader
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.files import luma
from tests.dicom.conftest import SYNTAXES, compressed, jpeg, moving_frames, real_file, without_jfif

NATIVE = ["implicit", "explicit", "deflated", "big_endian", "encapsulated"]
LOSSLESS = [*NATIVE, "rle", "jpeg_ls", "jpeg_2000"]
PRIVATE = ("Mustermann", "Erika", "4711")


def read(path: Path, **limits: Any) -> np.ndarray:
    with frame_reader(path, Limits(**limits)) as reader:
        assert "PixelData" not in reader.header
        frames = reader.read_frames(range(reader.num_frames))
        assert reader.shape == frames.shape[1:]
        return frames


def refusal(path: Path, **limits: Any) -> NotUsableError:
    with pytest.raises(NotUsableError) as caught:
        read(path, **limits)
    assert not any(word in str(caught.value) for word in (*PRIVATE, "Error", "Traceback"))
    return caught.value


def code(path: Path, **limits: Any) -> str:
    return refusal(path, **limits).reason.code


# --- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", LOSSLESS)
@pytest.mark.parametrize("shape", [(3, 48, 64), (1, 37, 33)])
def test_grey_of_8_bits_is_kept(make_ultrasound, encoding: str, shape: tuple[int, ...]):
    frames = moving_frames(*shape)
    np.testing.assert_array_equal(read(make_ultrasound(frames, encoding)), frames)


@pytest.mark.parametrize("encoding", LOSSLESS)
@pytest.mark.parametrize("shape", [(3, 48, 64), (3, 37, 33)])
def test_colours_become_luma(make_ultrasound, encoding: str, shape: tuple[int, ...]):
    colours = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    np.testing.assert_array_equal(read(make_ultrasound(colours, encoding)), luma(colours))


@pytest.mark.parametrize("encoding", ["explicit", "big_endian"])
def test_colour_by_plane(make_ultrasound, encoding: str):
    colours = np.random.default_rng(1).integers(0, 256, (2, 17, 33, 3)).astype(np.uint8)
    np.testing.assert_array_equal(read(make_ultrasound(colours, encoding, planar=1)), luma(colours))


@pytest.mark.parametrize("encoding", [*NATIVE, "rle"])
def test_of_luma_and_chroma_the_luma_is_taken(make_ultrasound, encoding: str):
    colours = np.random.default_rng(2).integers(0, 256, (2, 20, 18, 3)).astype(np.uint8)
    path = make_ultrasound(colours, encoding, photometric="YBR_FULL")
    np.testing.assert_array_equal(read(path), colours[..., 0])


def test_chroma_shared_by_two_pixels(make_ultrasound):
    grey = np.random.default_rng(3).integers(0, 256, (2, 20, 18)).astype(np.uint8)
    chroma = np.full((2, 20, 9, 2), 128, np.uint8)
    data = np.concatenate([grey.reshape(2, 20, 9, 2), chroma], axis=-1).tobytes()
    colours = np.zeros((2, 20, 18, 3), np.uint8)
    path = make_ultrasound(colours, photometric="YBR_FULL_422", pixel_data=data)
    np.testing.assert_array_equal(read(path), grey)
    colours[..., 0] = grey  # some write all chroma samples all the same
    path = make_ultrasound(colours, photometric="YBR_FULL_422")
    np.testing.assert_array_equal(read(path), grey)


def test_partial_range_is_stretched(make_ultrasound):
    colours = np.full((1, 20, 18, 3), 128, np.uint8)
    colours[0, 0, :4, 0] = 0, 16, 235, 255
    data = np.concatenate([colours[..., 0].reshape(20, 9, 2), np.full((20, 9, 2), 128, np.uint8)], axis=-1).tobytes()
    grey = read(make_ultrasound(colours, photometric="YBR_PARTIAL_422", pixel_data=data))
    assert grey[0, 0, :5].tolist() == [0, 0, 255, 255, round((128 - 16) * 255 / 219)]


def test_monochrome1_is_inverted(make_ultrasound):
    frames = moving_frames(2)
    np.testing.assert_array_equal(read(make_ultrasound(frames, photometric="MONOCHROME1")), 255 - frames)


def test_display_order_of_single_pixels(make_ultrasound):
    frames = np.zeros((3, 40, 50), np.uint8)
    frames[1, 2, 7] = 200  # frame 1, third row from the top, eighth column from the left
    for encoding in LOSSLESS:
        grey = read(make_ultrasound(frames, encoding))
        assert grey[1, 2, 7] == 200 and grey.sum() == 200, encoding


@pytest.mark.parametrize("encoding", ["explicit", "big_endian", "rle", "jpeg_ls", "jpeg_2000"])
def test_12_bits_go_by_the_range_that_can_be_stored(make_ultrasound, encoding: str):
    frames = np.linspace(0, 4095, 2 * 40 * 50).astype(np.uint16).reshape(2, 40, 50)
    grey = read(make_ultrasound(frames, encoding, bits_stored=12))
    np.testing.assert_array_equal(grey, np.round(frames * (255 / 4095)).astype(np.uint8))


def test_signed_values_and_high_bits(make_ultrasound):
    frames = np.linspace(-32768, 32767, 20 * 30).astype(np.int16).reshape(1, 20, 30)
    grey = read(make_ultrasound(frames))
    assert (grey[0, 0, 0], grey[0, -1, -1]) == (0, 255) and abs(int(grey[0, 10, 0]) - 128) <= 1
    shifted = (np.arange(16 * 20) % 4096).astype(np.uint16).reshape(1, 16, 20) << 4 | 7  # bits 4..15; below, an overlay
    grey = read(make_ultrasound(shifted, bits_stored=12, HighBit=15))
    np.testing.assert_array_equal(grey, np.round((shifted >> 4) * (255 / 4095)).astype(np.uint8))
    seven = np.full((1, 20, 20), 127, np.uint8)
    assert (read(make_ultrasound(seven, bits_stored=7)) == 255).all()


def test_a_window_is_used_for_more_than_8_bits_alone(make_ultrasound):
    frames = np.array([[[0, 999, 1000, 1500, 2000, 4095] * 5] * 20], np.uint16)
    grey = read(make_ultrasound(frames, bits_stored=12, WindowCenter=1500.5, WindowWidth=1001))
    assert grey[0, 0, :6].tolist() == [0, 0, 0, 128, 255, 255]
    rescaled = make_ultrasound(
        frames, bits_stored=12, WindowCenter=3001.5, WindowWidth=2001, RescaleSlope=2, RescaleIntercept=1
    )
    assert read(rescaled)[0, 0, 3] == 128
    for centre, width in ((99999, 10), (1500, 0), (1500, -5)):  # would show nothing
        assert read(make_ultrasound(frames, bits_stored=12, WindowCenter=centre, WindowWidth=width))[0, 0, 5] == 255
    frames = moving_frames(1)
    np.testing.assert_array_equal(read(make_ultrasound(frames, WindowCenter=60, WindowWidth=20)), frames)


@pytest.mark.parametrize("encoding", ["explicit", "big_endian", "rle", "jpeg_2000"])
@pytest.mark.parametrize("bits", [8, 16])
def test_palette(make_ultrasound, encoding: str, bits: int):
    generator = np.random.default_rng(4)
    entries = generator.integers(0, 256, (3, 200)).astype(np.uint16)
    frames = generator.integers(0, 256, (2, 40, 50)).astype(np.uint8)
    order = ">u2" if encoding == "big_endian" else "<u2"
    options: dict[str, Any] = {}
    for colour, table in zip(("Red", "Green", "Blue"), entries):
        options[f"{colour}PaletteColorLookupTableDescriptor"] = [200, 10, bits]
        data = (table << 8).astype(order).tobytes() if bits == 16 else table.astype(order).tobytes()
        options[f"{colour}PaletteColorLookupTableData"] = data
    grey = read(make_ultrasound(frames, encoding, photometric="PALETTE COLOR", **options))
    colours = entries.T.astype(np.uint8)[np.clip(frames.astype(int) - 10, 0, 199)]
    np.testing.assert_array_equal(grey, luma(colours))


def test_palette_that_is_not_whole_is_refused(make_ultrasound):
    frames = moving_frames(1)
    sound: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        sound[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        sound[f"{colour}PaletteColorLookupTableData"] = bytes(512)
    assert not read(make_ultrasound(frames, photometric="PALETTE COLOR", **sound)).any()
    bad = [
        ({"GreenPaletteColorLookupTableDescriptor": None}, "missing_attribute"),
        ({"GreenPaletteColorLookupTableData": None}, "missing_attribute"),
        ({"GreenPaletteColorLookupTableData": bytes(500)}, "bad_attribute"),
        ({"GreenPaletteColorLookupTableDescriptor": [255, 0, 16]}, "bad_attribute"),
        ({"GreenPaletteColorLookupTableDescriptor": [256, 0, 12]}, "bad_attribute"),
    ]
    for change, expected in bad:
        assert code(make_ultrasound(frames, photometric="PALETTE COLOR", **{**sound, **change})) == expected


def test_segmented_palette(make_ultrasound):
    frames = np.tile(np.arange(16, dtype=np.uint8), (1, 16, 1))
    # two values, a line of 4 up to 60, then both segments again, the rest by a line
    words = [0, 2, 10, 20, 1, 4, 60, 2, 2, 0, 0, 1, 4, 200]
    table = [10, 20, 30, 40, 50, 60, 10, 20, 30, 40, 50, 60, 95, 130, 165, 200]
    options: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        options[f"{colour}PaletteColorLookupTableDescriptor"] = [16, 0, 16]
        options[f"Segmented{colour}PaletteColorLookupTableData"] = np.array(words, "<u2").tobytes()
    grey = read(make_ultrasound(frames, photometric="PALETTE COLOR", **options))
    assert grey[0, 0].tolist() == table
    for bad in ([1, 4, 60], [7, 1, 2], [2, 1, 0, 0], [0, 2, 10, 20], [0, 2, 10, 20, 2, 2]):
        options["SegmentedBluePaletteColorLookupTableData"] = np.array(bad, "<u2").tobytes()
        assert code(make_ultrasound(frames, photometric="PALETTE COLOR", **options)) == "bad_attribute"


# --- JPEG ------------------------------------------------------------------------------------------------------------


def test_jpeg_is_grey_whatever_the_header_calls_its_colours(make_ultrasound):
    grey = moving_frames(1, 48, 64)[0]
    colours = np.stack([grey, 255 - grey, np.flipud(grey)], axis=-1)
    whole = np.zeros((1, 48, 64, 3), np.uint8)
    expected = luma(colours).astype(int)
    for data in (jpeg(colours), without_jfif(jpeg(colours)), jpeg(colours, "RGB")):
        for photometric in ("YBR_FULL_422", "YBR_FULL", "RGB"):
            path = make_ultrasound(whole, "jpeg", photometric=photometric, fragments=[data])
            assert np.abs(read(path)[0] - expected).max() <= 6


def test_jpeg_luma_is_the_decoders_own(make_ultrasound):
    path = real_file("examples_ybr_color.dcm")
    with frame_reader(path) as reader:
        grey = reader.read_frames([0, 1])
        assert reader.decoder.startswith("Pillow ")
    raw = pydicom.pixels.pixel_array(path, raw=True, index=1, decoding_plugin="pillow")
    np.testing.assert_array_equal(grey[1], raw[..., 0])


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("tail", [b"", b"\xff\xd9", b"\0" * 50, b"\0" * 5000])
def test_jpeg_that_ends_early_is_found(make_ultrasound, share: float, tail: bytes):
    noise = np.random.default_rng(5).integers(0, 256, (2, 64, 80)).astype(np.uint8)
    data = jpeg(noise[1])
    cut = data[: int(share * len(data))] + tail
    path = make_ultrasound(noise, "jpeg", fragments=[jpeg(noise[0]), cut + b"\0" * (len(cut) % 2)])
    error = refusal(path)
    assert error.reason.code in ("damaged_frame", "broken_frame") and "frame 2" in str(error)


def test_whole_jpeg_that_ends_in_the_fillers_grey_is_no_damage(make_ultrasound):
    frames = moving_frames(1, 64, 64)
    frames[:, 32:] = 128
    data = jpeg(frames[0])
    for tail in (b"", b"\0\0\0", b"junk after the end"):
        assert (read(make_ultrasound(frames, "jpeg", fragments=[data + tail]))[0, -8:] == 128).all()
    assert (read(make_ultrasound(frames, "jpeg", fragments=[data[:-2]]))[0, -8:] == 128).all()  # no end marker


def test_jpeg_lossless_and_its_cut_copy(make_ultrasound):
    pytest.importorskip("libjpeg")
    path = real_file("JPGLosslessP14SV1_1s_1f_8b.dcm")
    with frame_reader(path) as reader:
        grey = reader.read_frames([0])
        assert grey.shape == (1, 768, 1024) and reader.decoder.startswith("pylibjpeg-libjpeg")
        data = reader._frames.read(reader._file, 0, 1 << 30)
    assert grey.std() > 10
    for cut in (data[: len(data) // 2], data[: len(data) * 9 // 10] + b"\xff\xd9"):
        assert code(make_ultrasound(grey, "jpeg_lossless", fragments=[cut])) == "damaged_frame"
    np.testing.assert_array_equal(read(make_ultrasound(grey, "jpeg_lossless", fragments=[data + b"\0\0"])), grey)


@pytest.mark.parametrize("encoding", ["jpeg", "rle", "jpeg_ls", "jpeg_2000"])
def test_compressed_noise_and_cut_frames_are_refused(make_ultrasound, encoding: str):
    frames = np.random.default_rng(6).integers(0, 256, (2, 40, 50)).astype(np.uint8)
    good = compressed(frames[0], encoding, 8)
    noise = np.random.default_rng(7).integers(0, 256, 3000).astype(np.uint8).tobytes()
    bad_frames = [good[: len(good) // 2], noise, b"\0" * 400, b"ab", good[:8]]
    if encoding != "rle":  # RLE of noise is noise: nothing in it can be wrong
        bad_frames.append(good[:70] + noise)
    for bad in bad_frames:
        path = make_ultrasound(frames, encoding, fragments=[good, bad])
        error = refusal(path)
        assert error.reason.code in ("broken_frame", "damaged_frame", "frame_mismatch") and "frame 2" in str(error)


@pytest.mark.parametrize("encoding", ["jpeg", "jpeg_ls", "jpeg_2000"])
def test_frame_of_another_size_than_the_header_says(make_ultrasound, encoding: str):
    frames = moving_frames(2, 40, 48)
    other = compressed(moving_frames(1, 41, 48)[0], encoding, 8)
    error = refusal(make_ultrasound(frames, encoding, fragments=[other, other]))
    assert error.reason.code == "frame_mismatch" and "41 x 48" in str(error) and "40 x 48" in str(error)
    colours = np.repeat(frames[..., None], 3, axis=-1)
    grey = compressed(frames[0], encoding, 8)
    assert code(make_ultrasound(colours, encoding, fragments=[grey, grey])) == "frame_mismatch"


@pytest.mark.parametrize("missing", [1, 15])
def test_jpeg_2000_without_some_of_its_tiles_is_refused(make_ultrasound, missing: int):
    frames = moving_frames(2, 64, 64)
    tiled = []
    for frame in frames:
        stream = io.BytesIO()
        Image.fromarray(frame).save(stream, "JPEG2000", no_jp2=True, tile_size=(16, 16))
        tiled.append(stream.getvalue())
    np.testing.assert_array_equal(read(make_ultrasound(frames, "jpeg_2000", fragments=tiled)), frames)
    parts = [place for place in range(len(tiled[1])) if tiled[1].startswith(b"\xff\x90\x00\x0a", place)]
    cut = tiled[1][: parts[-missing]] + b"\xff\xd9"  # closed, so that the decoder has nothing to say
    error = refusal(make_ultrasound(frames, "jpeg_2000", fragments=[tiled[0], cut]))
    assert error.reason.code == "damaged_frame" and "frame 2" in str(error)


# --- fragments -------------------------------------------------------------------------------------------------------


def items(*fragments: bytes, table: bytes = b"", end: bytes = b"\xfe\xff\xdd\xe0\0\0\0\0") -> bytes:
    """Return encapsulated pixel data, byte by byte."""
    parts = [table, *fragments]
    return b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<L", len(part)) + part for part in parts) + end


def jpegs(frames: np.ndarray) -> list[bytes]:
    data = [jpeg(frame) for frame in frames]
    return [part + b"\0" * (len(part) % 2) for part in data]


FRAMES = moving_frames(3)
JPEGS = jpegs(FRAMES)


def check_jpegs(path: Path, frames: np.ndarray = FRAMES) -> None:
    assert np.abs(read(path).astype(int) - frames).max() <= 4


@pytest.mark.parametrize("table", [b"", struct.pack("<3L", 0, 7, 99), struct.pack("<2L", 0, 4), b"\xff" * 12])
def test_one_fragment_a_frame_needs_no_offset_table(make_ultrasound, table: bytes):
    check_jpegs(make_ultrasound(FRAMES, "jpeg", pixel_data=items(*JPEGS, table=table)))


@pytest.mark.parametrize("is_table_right", [True, False])
def test_frames_in_several_fragments(make_ultrasound, is_table_right: bool):
    pieces = [part[first : first + 300] for part in JPEGS for first in range(0, len(part), 300)]
    sizes = [len(part) + 8 * -(-len(part) // 300) for part in JPEGS]
    offsets = itertools.accumulate(sizes[:-1], initial=0)
    table = struct.pack("<3L", *offsets) if is_table_right else struct.pack("<3L", 0, 5, 9)
    check_jpegs(make_ultrasound(FRAMES, "jpeg", pixel_data=items(*pieces, table=table)))


def test_single_frame_in_fragments(make_ultrasound):
    data = JPEGS[0]
    check_jpegs(make_ultrasound(FRAMES[:1], "jpeg", pixel_data=items(data[:200], data[200:])), FRAMES[:1])


@pytest.mark.parametrize("end", [b"", b"\0" * 40, b"\xfe\xff\xdd\xe0\0\0\0\0" + b"anything", b"\xfe\xff\xdd"])
def test_end_of_the_fragments_need_not_be_right(make_ultrasound, tmp_path: Path, end: bytes):
    path = make_ultrasound(FRAMES, "jpeg", fragments=JPEGS)
    content = path.read_bytes()
    assert content.endswith(b"\xfe\xff\xdd\xe0\0\0\0\0")
    path.write_bytes(content[:-8] + end)
    assert len(read(path)) == 3


@pytest.mark.parametrize(
    ("pixel_data", "words"),
    [
        (items(*JPEGS[:2]), "the pixel data end early: 2 of 3 frames"),
        (items(*JPEGS, JPEGS[0]), "NumberOfFrames is 3; expected 4, as many as the pixel data hold"),
        (items(), "the pixel data end early"),
        (items(JPEGS[0], b"", JPEGS[2]), "frame 2 cannot be decoded: it is empty"),
        (items(JPEGS[0], end=b"\x08\x00\x10\x00\x01\0\0\0"), "frame 1 cannot be decoded: something else stands"),
        (items(*JPEGS[:2], JPEGS[2] + bytes(2_000_000)), "frame 3 cannot be decoded: its .* bytes are more than"),
    ],
)
def test_fragments_that_do_not_make_the_frames(make_ultrasound, pixel_data: bytes, words: str):
    assert re.match(words, str(refusal(make_ultrasound(FRAMES, "jpeg", pixel_data=pixel_data))))


@pytest.mark.parametrize("encoding", ["jpeg", "rle", "explicit", "big_endian"])
def test_file_that_is_cut_anywhere_is_refused(make_ultrasound, encoding: str):
    frames = moving_frames(4)
    content = make_ultrasound(frames, encoding).read_bytes()
    for share in (0.4, 0.6, 0.8, 0.98):
        path = make_ultrasound(frames, encoding, name="cut.dcm")
        path.write_bytes(content[: int(share * len(content))])
        assert code(path) in ("truncated_pixels", "truncated_header", "broken_frame")


# --- headers that lie ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"Rows": None}, "missing_attribute"),
        ({"Columns": 0}, "bad_attribute"),
        ({"SamplesPerPixel": 2}, "bad_attribute"),
        ({"SamplesPerPixel": 3}, "bad_attribute"),
        ({"PhotometricInterpretation": None}, "missing_attribute"),
        ({"PhotometricInterpretation": "CMYK"}, "unsupported_photometric"),
        ({"PhotometricInterpretation": "MUSTERMANN"}, "unsupported_photometric"),
        ({"PhotometricInterpretation": "RGB"}, "bad_attribute"),
        ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "bad_attribute"),
        ({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, "bad_attribute"),
        ({"BitsStored": 9}, "bad_attribute"),
        ({"HighBit": 3}, "bad_attribute"),
        ({"PixelRepresentation": 2}, "bad_attribute"),
        ({"NumberOfFrames": 0}, "bad_attribute"),
        ({"NumberOfFrames": -3}, "bad_attribute"),
        ({"NumberOfFrames": 60}, "truncated_pixels"),
        ({"NumberOfFrames": 30_000}, "too_many_frames"),
        ({"NumberOfFrames": 2_000_000_000}, "too_many_frames"),
        ({"Rows": 60_000}, "too_large"),
        ({"Rows": 8000, "Columns": 8000, "NumberOfFrames": 500}, "too_large"),
        ({"Rows": 49}, "truncated_pixels"),
    ],
)
@pytest.mark.parametrize("encoding", ["explicit", "jpeg"])
def test_header_that_lies_is_refused(make_ultrasound, changes: dict[str, Any], expected: str, encoding: str):
    path = make_ultrasound(moving_frames(3), encoding, **changes)
    found = code(path)
    assert found == expected or (encoding, changes) == ("jpeg", {"Rows": 49}) and found == "frame_mismatch"


def test_native_data_may_be_longer_but_not_in_fragments(make_ultrasound):
    frames = moving_frames(3)
    longer = make_ultrasound(frames, pixel_data=frames.tobytes() + bytes(1000))
    np.testing.assert_array_equal(read(longer), frames)
    path = make_ultrasound(frames, "jpeg", fragments=jpegs(frames))
    dataset = pydicom.dcmread(path)
    content = path.read_bytes()
    jpeg_uid = SYNTAXES["jpeg"].encode()
    assert content.count(jpeg_uid) == 1
    path.write_bytes(content.replace(jpeg_uid, b"1.2.840.10008.1.2.1\0\0\0"))
    assert code(path) == "broken_header" and dataset.Rows == 48
    native = make_ultrasound(frames)
    content = native.read_bytes()
    explicit = b"UI\x14\x00" + SYNTAXES["explicit"].encode() + b"\0"
    rle = b"UI\x14\x00" + SYNTAXES["rle"].encode() + b"\0"
    assert explicit in content
    native.write_bytes(content.replace(explicit, rle))
    assert code(native) == "broken_header"


def test_object_without_pixels_or_with_floats(make_ultrasound):
    frames = moving_frames(1)
    path = make_ultrasound(frames)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    assert code(path) == "no_pixels"
    dataset.FloatPixelData = frames.astype(np.float32).tobytes()
    dataset.BitsAllocated = 32
    dataset.save_as(path)
    assert code(path) == "bad_attribute"
    assert code(make_ultrasound(frames, pixel_data=b"")) == "no_pixels"


@pytest.mark.parametrize(
    ("uid", "expected", "words"),
    [
        ("1.2.840.10008.1.2.4.94", "unsupported_syntax", "JPIP"),
        ("1.2.840.10008.1.2.4.53", "unsupported_syntax", "JPEG"),
        ("1.2.3.4711", "unsupported_syntax", "unknown identifier"),
    ],
)
def test_syntax_that_is_not_read_is_refused_by_name(make_ultrasound, uid: str, expected: str, words: str):
    path = make_ultrasound(moving_frames(2), "jpeg")
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(uid)
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path, implicit_vr=False, little_endian=True)
    error = refusal(path)
    assert error.reason.code == expected and words in str(error)


def test_missing_decoder_is_named_with_what_to_install(make_ultrasound, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "openjpeg", None)
    path = make_ultrasound(moving_frames(1), "jpeg_2000", fragments=[b"anything"])
    error = refusal(path)
    assert (
        error.reason.code == "missing_decoder" and "synboost-monai[dicom]" in str(error) and "JPEG 2000" in str(error)
    )


# --- deflated --------------------------------------------------------------------------------------------------------


def test_deflated_frames_in_any_order(make_ultrasound):
    frames = moving_frames(6, 200, 300)  # several pieces
    with frame_reader(make_ultrasound(frames, "deflated")) as reader:
        np.testing.assert_array_equal(reader.read_frames([5, 0, 3, 2]), frames[[5, 0, 3, 2]])


def test_deflated_bomb_and_cut_file(make_ultrasound):
    path = make_ultrasound(np.zeros((3, 48, 64), np.uint8), "deflated", NumberOfFrames=2000, Rows=1000, Columns=1000)
    content = path.read_bytes()
    start = content.index(b"1.2.840.10008.1.2.1.99") + 22
    raw = pydicom.dcmread(path)
    assert raw.Rows == 1000 and start < len(content)
    assert code(path) == "truncated_pixels"  # by its own length, before anything is inflated
    frames = np.zeros((40, 512, 512), np.uint8)
    assert code(make_ultrasound(frames, "deflated"), max_inflated_mb=4) == "inflates_too_far"
    content = make_ultrasound(moving_frames(3, 200, 300), "deflated").read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    assert code(path) in ("truncated_pixels", "broken_frame", "truncated_header")


def test_damage_within_deflated_data_is_found_behind_the_pixels(make_ultrasound, tmp_path: Path):
    frames = np.random.default_rng(8).integers(0, 256, (3, 200, 300)).astype(np.uint8)
    content = make_ultrasound(frames, "deflated").read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    whole = zlib.decompress(content[start:], -zlib.MAX_WBITS)
    path = tmp_path / "deflated"

    def write(data: bytes) -> None:
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        path.write_bytes(content[:start] + packer.compress(data) + packer.flush())

    for behind in (b"", b"\0\0", b"\xfc\xff\xfc\xffOB\0\0\2\0\0\0\0\0"):  # nothing, or padding
        write(whole + behind)
        np.testing.assert_array_equal(read(path), frames)
    write(whole[:-50_000] + whole[-60_000:])  # a wrong match in a damaged stream gives more bytes than there were
    assert code(path) == "broken_header"


# --- real files and cost ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "color-pl.dcm",
        "color-px.dcm",
        "OBXXXX1A.dcm",
        "OBXXXX1A_expb.dcm",
        "OBXXXX1A_rle_2frame.dcm",
        "gdcm-US-ALOKA-16.dcm",
        "gdcm-US-ALOKA-16_big.dcm",
        "SC_rgb_16bit_2frame.dcm",
        "SC_rgb_small_odd_big_endian.dcm",
        "ExplVR_BigEnd.dcm",
        "US1_UNCI.dcm",
        "image_dfl.dcm",
    ],
)
def test_real_files_agree_with_pydicom(name: str):
    path = real_file(name)
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = pydicom.pixels.apply_color_lut(pixels, dataset)
        pixels = (pixels >> 8 if pixels.max() > 255 else pixels).astype(np.uint8)
    elif pixels.dtype == np.uint16:
        pixels = np.round(pixels * (255 / 65535)).astype(np.uint8)
    expected = luma(pixels) if dataset.SamplesPerPixel == 3 or pixels.shape[-1] == 3 else pixels
    np.testing.assert_array_equal(read(path).reshape(expected.shape), expected)


def test_reading_does_not_need_the_whole_clip_in_memory(make_ultrasound):
    import tracemalloc

    num_frames = 600
    path = make_ultrasound(np.zeros((num_frames, 128, 128), np.uint8))
    tracemalloc.start()
    with frame_reader(path) as reader:
        for start in range(0, num_frames, 20):
            reader.read_frames(range(start, start + 20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000  # the clip has 9.8 MB


def test_frames_beyond_the_clip(make_ultrasound):
    with frame_reader(make_ultrasound(moving_frames(3))) as reader:
        assert len(reader.read_frames([])) == 0
        with pytest.raises(ValueError, match="frame 3 of a clip of 3 frames"):
            reader.read_frames([2, 3])


def test_cut_jpeg_ls_is_refused_at_once(make_ultrasound):
    """CharLS would read on beyond the end of the frame, for seconds, in memory that may be another patient's."""
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 80)).astype(np.uint8)
    whole = compressed(noise[0], "jpeg_ls", 8)
    # before the clock runs, since it also imports the decoder
    np.testing.assert_array_equal(read(make_ultrasound(noise, "jpeg_ls", fragments=[whole.rstrip(b"\0")[:-2]])), noise)
    for share in (0.34, 0.5, 0.9):
        path = make_ultrasound(noise, "jpeg_ls", fragments=[whole[: int(share * len(whole))]])
        start = time.perf_counter()
        assert code(path) == "broken_frame"
        assert time.perf_counter() - start < 1
