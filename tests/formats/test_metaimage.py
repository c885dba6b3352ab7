"""Test MetaImage headers: honest ones are read as ITK reads them, and no other file than the one beside is read."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synboost_monai.files import count_frames, read_frames, read_grid, read_plane
from synboost_monai.transforms import load_echo

SHAPE = (20, 30)
"""(H, W)."""
PIXELS = np.arange(600, dtype=np.uint8).reshape(SHAPE)
SECRET = b"root:x:0:0:" * 100
READERS: dict[str, Callable[[Path], Any]] = {
    "read_frames": read_frames,
    "read_plane": read_plane,
    "read_grid": read_grid,
    "count_frames": count_frames,
    "load_echo": load_echo,
}


def header(data_file: str, lines: str = "") -> str:
    return f"ObjectType = Image\nNDims = 2\nDimSize = 30 20\nElementType = MET_UCHAR\n{lines}ElementDataFile = {data_file}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder, with a secret outside of it and inside another folder in it."""
    inner = tmp_path / "images"
    (inner / "below").mkdir(parents=True)
    for place in (tmp_path, inner / "below"):
        (place / "secret.raw").write_bytes(SECRET)
    return inner


STRAY_NAMES = [
    "{outside}/secret.raw",
    "../secret.raw",
    "below/secret.raw",
    r"..\secret.raw",
    r"C:\data\secret.raw",
    "C:secret.raw",
    "/etc/services",
    "//etc/services",
    "images/../../secret.raw",
    "..",
    ".",
    "below/",
    "",
    "LIST",
    "LIST 2",
    "LIST\n../secret.raw",
    "../secret%d.raw 1 1 1",
    "secret%03d.raw 1 1 1",
    "../secret.raw\nElementDataFile = LOCAL",
    "../secret.raw\x00",
]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", STRAY_NAMES)
def test_header_reads_no_file_elsewhere(folder: Path, name: str, reader: str) -> None:
    (folder / "a.mhd").write_text(header(name.format(outside=folder.parent)))
    with pytest.raises((ValueError, FileNotFoundError), match="a.mhd") as error:
        READERS[reader](folder / "a.mhd")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "lines",
    [
        "ElementDataFile = {outside}/secret.raw\n",  # the first counts
        "elementdatafile = {outside}/secret.raw\n",  # another key
        "ElementDataFile={outside}/secret.raw\n",
        "  ElementDataFile   =   {outside}/secret.raw  \n",
    ],
)
def test_a_second_data_file_is_never_read(folder: Path, lines: str) -> None:
    (folder / "own.raw").write_bytes(PIXELS.tobytes())
    (folder / "a.mhd").write_text(header("own.raw", lines.format(outside=folder.parent)))
    try:
        found = read_frames(folder / "a.mhd").pixels[0]
    except (ValueError, FileNotFoundError):
        return
    assert np.array_equal(found, PIXELS)


def test_link_out_of_the_folder_is_refused_and_one_within_is_not(folder: Path) -> None:
    (folder / "a.mhd").write_text(header("a.raw"))
    (folder / "a.raw").symlink_to(folder.parent / "secret.raw")
    with pytest.raises(ValueError, match="a.raw is a link to another folder"):
        read_frames(folder / "a.mhd")
    (folder / "b.mhd").write_text(header("b.raw"))
    (folder / "real.raw").write_bytes(PIXELS.tobytes())
    (folder / "b.raw").symlink_to("real.raw")
    assert np.array_equal(read_frames(folder / "b.mhd").pixels[0], PIXELS)
    store = folder.parent / "links"
    store.mkdir()
    for name in ("b.mhd", "b.raw"):  # a data set made of links into a store
        (store / name).symlink_to(folder / name)
    assert np.array_equal(read_frames(store / "b.mhd").pixels[0], PIXELS)


def test_pipe_as_data_file_does_not_hang(folder: Path) -> None:
    (folder / "a.mhd").write_text(header("pipe.raw"))
    os.mkfifo(folder / "pipe.raw")
    with pytest.raises(FileNotFoundError, match="pipe.raw is missing"):
        read_frames(folder / "a.mhd")


@pytest.mark.parametrize("name", ["/gone/away/a.raw", r"D:\export\a.raw", "gone/a.raw", "D:a.raw", "./a.raw", "a.raw"])
def test_stale_path_finds_the_file_beside(folder: Path, name: str) -> None:
    (folder / "a.raw").write_bytes(PIXELS.tobytes())
    (folder / "a.mhd").write_text(header(name))
    assert np.array_equal(read_frames(folder / "a.mhd").pixels[0], PIXELS)
    assert np.array_equal(load_echo(folder / "a.mhd")[0][0].numpy(), PIXELS)


@pytest.mark.parametrize(
    ("name", "lines", "is_refused"),
    [
        ("a.raw", "", False),
        ("a.raw", "Comment = heart\n", False),
        ("/gone/a.raw", "", True),
        ("a.raw", "ElementDataFile : /etc/services = y\n", True),
        ("a.raw", "elementdatafile = /etc/services\n", True),
    ],
)
def test_what_itk_may_read_elsewhere_is_not_handed_on(folder: Path, name: str, lines: str, is_refused: bool) -> None:
    from synboost_monai.auto3dseg.folds import read_items

    (folder / "a.raw").write_bytes(PIXELS.tobytes())
    (folder / "a.mhd").write_text(header(name, lines))
    (folder / "list.json").write_text('{"training": [{"image": "a.mhd", "label": "a.mhd"}]}')
    if is_refused:
        with pytest.raises(ValueError, match="as its one ElementDataFile"):
            read_items(folder / "list.json", folder)
    else:
        assert read_items(folder / "list.json", folder)["training"]


HONEST = {
    "plain": ("", PIXELS.tobytes()),
    "compressed": (
        f"CompressedData = True\nCompressedDataSize = {len(zlib.compress(PIXELS.tobytes()))}\n",
        zlib.compress(PIXELS.tobytes()),
    ),
    "size for spacing": ("ElementSize = 0.5 0.25\n", PIXELS.tobytes()),
    "both": ("ElementSize = 0.5 0.25\nElementSpacing = 2 3\n", PIXELS.tobytes()),
    "turned": ("TransformMatrix = 0 1 1 0\nOffset = 1 2\n", PIXELS.tobytes()),
    "position": ("Rotation = 1 0 0 -1\nPosition = 1 2\n", PIXELS.tobytes()),
    "text": ("BinaryData = False\n", " ".join(map(str, PIXELS.ravel())).encode() + b" "),
    "unknown keys": ("Comment = heart\nCenterOfRotation = 0 0\nAnatomicalOrientation = RAI\n", PIXELS.tobytes()),
    "tail": ("HeaderSize = -1\n", b"other things" + PIXELS.tobytes()),
}


@pytest.mark.parametrize("kind", HONEST)
def test_honest_header_is_read_as_itk_reads_it(tmp_path: Path, kind: str) -> None:
    import itk

    lines, data = HONEST[kind]
    path = tmp_path / "a.mha"
    path.write_bytes(header("LOCAL", lines).encode() + data)
    image, grid = itk.imread(str(path)), read_grid(path)
    stored = grid.to_stored(read_frames(path).pixels)
    assert np.array_equal(stored.T, itk.array_from_image(image)) and grid.steps == tuple(image.GetSpacing())
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    assert np.allclose(to_lps[:2, 3], image.GetOrigin())
    assert np.allclose(to_lps[:2, :2] / grid.steps, itk.array_from_matrix(image.GetDirection()))


@pytest.mark.parametrize(
    ("element_type", "dtype", "msb"),
    [
        ("MET_USHORT", ">u2", "True"),
        ("MET_LONG", "<i4", "False"),
        ("MET_FLOAT", ">f4", "True"),
        ("MET_ULONG", "<u4", ""),
    ],
)
def test_number_types_as_itk_has_them(tmp_path: Path, element_type: str, dtype: str, msb: str) -> None:
    import itk

    values = np.linspace(0, 60000, 600).reshape(SHAPE).astype(dtype)
    order = f"BinaryDataByteOrderMSB = {msb}\n" if msb else ""
    text = header("LOCAL", order).replace("MET_UCHAR", element_type)
    (tmp_path / "a.mha").write_bytes(text.encode() + values.tobytes())
    found = read_frames(tmp_path / "a.mha").pixels[0]
    assert np.array_equal(found, values) and np.array_equal(
        found, itk.array_from_image(itk.imread(str(tmp_path / "a.mha")))
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("DimSize = 30 20", "DimSize = 30 20\nDimSize = 3 2", "DimSize stands in its header twice"),
        ("DimSize = 30 20", "DimSize = 30 -20", "expected sizes of at least 1"),
        ("DimSize = 30 20", "DimSize = 0 20", "expected sizes of at least 1"),
        ("DimSize = 30 20", "DimSize = 30 x", "is no number"),
        ("DimSize = 30 20", "DimSize = 30 20 1", r"NDims 2 and DimSize \(30, 20, 1\)"),
        ("DimSize = 30 20", "DimSize = 100000 100000", "at most 16,777,216 are read"),
        ("DimSize = 30 20", "DimSize = 30 " + "9" * 40, "at most 16,777,216 are read"),
        ("NDims = 2", "NDims = two", "is no number"),
        ("ElementType", "ElementSpacing = a b\nElementType", "ElementSpacing holds no numbers"),
        ("ElementType", "ElementSpacing = nan 1\nElementType", "as ElementSpacing"),
        ("ElementType", "ElementSpacing = 1 0\nElementType", "positive pixel spacing"),
        ("ElementType", "TransformMatrix = 1 0 0\nElementType", "expected 4 numbers as TransformMatrix, got 3"),
        ("ElementType", "HeaderSize = -7\nElementType", "HeaderSize is -7"),
        ("ElementType", "CompressedData = True\nElementType", "not a readable MetaImage"),
        ("MET_UCHAR", "MET_X", "ElementType is 'MET_X'"),
        ("ObjectType", "Comment = " + "x" * (5 << 20) + "\nObjectType", "not a MetaImage header"),
    ],
)
def test_wrong_header_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "a.mha").write_bytes(header("LOCAL").replace(old, new, 1).encode() + PIXELS.tobytes())
    with pytest.raises(ValueError, match=message) as error:
        read_frames(tmp_path / "a.mha")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
