"""Test that files that announce or inflate to more than an echocardiogram has are refused before memory is taken."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from synboost_monai.files import count_frames, read_frames, read_grid, read_plane

MEMORY = 24 << 20
"""Bytes that reading a bad file may take at most."""


def nifti(shape: tuple[int, ...], **fields: Any) -> bytes:
    """Make a NIfTI header of bytes with these sizes."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header["dim"] = [len(shape), *shape, *[1] * (7 - len(shape))]
    header["magic"], header["vox_offset"], header["sform_code"] = b"n+1", 352, 1
    header["srow_x"], header["srow_y"], header["srow_z"] = (-1, 0, 0, 0), (0, -1, 0, 0), (0, 0, 1, 0)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + b"\0" * 4


def refused(path: Path, message: str, **options: Any) -> None:
    """Check that every reader refuses, with the message, and takes little memory."""
    tracemalloc.start()
    for read in (read_frames, read_plane):
        with pytest.raises(ValueError, match=message) as error:
            read(path, **(options if read is read_frames else {}))
        assert "\n" not in str(error.value) and path.name in str(error.value)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY


def bomb(head: bytes, num_zeros: int) -> bytes:
    """Make a gzip file of a header and many zeros."""
    stream = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = bytes(1 << 20)
    return b"".join([stream.compress(head), *(stream.compress(block) for _ in range(num_zeros >> 20)), stream.flush()])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((16000, 16000), "announces planes of 16000 x 16000 pixels; at most 16,777,216"),
        ((1, 16000, 16000), "announces planes of 16000 x 16000"),
        ((30000, 30000, 30000), "announces planes of 30000 x 30000"),
        ((600, 600, 32000), "announces 11,520,000,000 pixels"),
        ((600, 600, 1, 32000), "announces 11,520,000,000 pixels"),
        ((600, 600, 1, 1, 32000), "announces 11,520,000,000 pixels"),
        ((600, -600), "expected sizes of at least 1"),
        ((600, 0), "expected sizes of at least 1"),
        ((-1, 600), "expected sizes of at least 1"),
    ],
)
def test_sizes_of_a_nifti_are_bounded(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    for name, content in (("a.nii", nifti(shape)), ("a.nii.gz", bomb(nifti(shape), 4 << 20))):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, message, sequences=True)
        with pytest.raises(ValueError, match=message):
            read_grid(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            count_frames(tmp_path / name)


def test_bomb_behind_an_honest_header(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(bomb(nifti((300, 200)), 64 << 20))
    refused(tmp_path / "a.nii.gz", "its compressed content is longer than the header says")
    assert count_frames(tmp_path / "a.nii.gz") == (1, 200, 300)


def test_frames_that_were_not_asked_for_are_not_inflated(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(bomb(nifti((1000, 1000, 64)), 64 << 20))
    refused(tmp_path / "a.nii.gz", "expected one (plane|grey image)")


@pytest.mark.parametrize("offset", [2e9, np.inf, np.nan, -5.0])
def test_pixels_that_begin_far_behind_are_refused(tmp_path: Path, offset: float) -> None:
    (tmp_path / "a.nii.gz").write_bytes(bomb(nifti((300, 200), vox_offset=offset), 4 << 20))
    refused(tmp_path / "a.nii.gz", "not a readable NIfTI image|cut off")


def test_extension_that_is_longer_than_the_file(tmp_path: Path) -> None:
    from synboost_monai.transforms import write_label_map

    content = bytearray(nifti((300, 200), vox_offset=352 + 32))
    content[348:] = b"\1\0\0\0" + struct.pack("<ii", 1 << 30, 6) + bytes(24) + bytes(60000)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(content)))
    assert read_frames(tmp_path / "a.nii.gz").pixels.shape == (1, 200, 300)
    with pytest.raises(ValueError, match="not a readable NIfTI image"):
        write_label_map(np.zeros((200, 300), np.uint8), tmp_path / "a.nii.gz", tmp_path / "out")


@pytest.mark.parametrize("magic", [b"ni1", b"abc"])
def test_pair_of_files_is_refused(tmp_path: Path, magic: bytes) -> None:
    (tmp_path / "a.nii").write_bytes(nifti((30, 20), magic=magic) + bytes(600))
    (tmp_path / "a.img").write_bytes(bytes(600))
    refused(tmp_path / "a.nii", "not a readable NIfTI image")


def test_many_empty_parts_end_early(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"") * 20000)
    refused(tmp_path / "a.nii.gz", "compressed parts with hardly any content")


def test_parts_and_padding_do_no_harm(tmp_path: Path) -> None:
    """Files are in parts, an empty one last, as bgzip writes them."""
    content = nifti((300, 200)) + bytes(range(200)) * 300
    parts = [content[i : i + 10000] for i in range(0, len(content), 10000)]
    (tmp_path / "a.nii.gz").write_bytes(b"".join(gzip.compress(part) for part in [*parts, b""]) + bytes(100))
    assert np.array_equal(read_frames(tmp_path / "a.nii.gz").pixels.ravel(), np.frombuffer(content[352:], np.uint8))
    assert count_frames(tmp_path / "a.nii.gz") == (1, 200, 300)


def test_bomb_in_a_metaimage(tmp_path: Path) -> None:
    lines = "NDims = 2\nDimSize = 300 200\nElementType = MET_UCHAR\nCompressedData = True\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(lines.encode() + zlib.compress(bytes(64 << 20), 9))
    refused(tmp_path / "a.mha", "its compressed content is longer than the header says")


def test_large_png_is_not_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", 8000, 8000, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(8001 * 8000), 9)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match="a.png: its header announces planes of 8000 x 8000 pixels"):
        read_frames(tmp_path / "a.png")
    assert tracemalloc.get_traced_memory()[1] < MEMORY
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_picture_of_another_kind_is_not_run(tmp_path: Path, suffix: str) -> None:
    """PIL hands PostScript to Ghostscript, whatever the file is called."""
    (tmp_path / f"a{suffix}").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="not a readable .* image .cannot identify"):
        read_frames(tmp_path / f"a{suffix}")
