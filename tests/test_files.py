"""Test reading planes: every form that ultrasound images come in, and one clear line for what cannot be read."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from synboost_monai import files
from synboost_monai.files import count_frames, luma, read_frames, read_plane, read_text

SHAPE = (20, 30)
"""(H, W)."""
GENERATOR = np.random.default_rng(0)
COLOURS = GENERATOR.integers(0, 256, (*SHAPE, 4), dtype=np.uint8)
"""(H, W, 4): red, green, blue, alpha."""
GREY = np.rint(COLOURS[..., :3] @ np.array([0.299, 0.587, 0.114])).astype(np.int64)
"""Luma of the colours by its definition; ours may be one off where it ends in .5."""


def ramp(dtype: DTypeLike, num_frames: int | None = None) -> NDArray[Any]:
    """Return (H, W) or (T, H, W) of values that no two pixels share, negative ones too if the type has them."""
    shape = SHAPE if num_frames is None else (num_frames, *SHAPE)
    values = np.arange(np.prod(shape)).reshape(shape)
    if np.dtype(dtype).kind == "f":
        return (values / values.size * 2 - 1).astype(dtype)
    if np.dtype(dtype).itemsize == 1:
        values = values % 100
    return (values - (50 if np.dtype(dtype).kind == "i" else 0)).astype(dtype)


def write_nifti(path: Path, stored: NDArray[Any], intent: str = "none", zooms: tuple[float, ...] | None = None) -> Path:
    """Write an array as it is stored, (x, y, ...)."""
    import nibabel as nib

    image = nib.Nifti1Image(stored, np.diag([-0.3, -0.2, 1, 1]), dtype=stored.dtype)
    image.header.set_intent(intent)
    if zooms is not None:
        image.header.set_zooms(zooms)
    nib.save(image, path)
    return path


METAIMAGE_TYPES = {
    "int8": "MET_CHAR",
    "uint8": "MET_UCHAR",
    "int16": "MET_SHORT",
    "uint16": "MET_USHORT",
    "int32": "MET_INT",
    "uint32": "MET_UINT",
    "int64": "MET_LONG_LONG",
    "float32": "MET_FLOAT",
    "float64": "MET_DOUBLE",
}


def write_metaimage(path: Path, pixels: NDArray[Any], num_channels: int = 1) -> Path:
    """Write (H, W), (T, H, W) or the same with channels last as one .mha."""
    sizes = pixels.shape[: -1 if num_channels > 1 else None][::-1]
    spacing = (0.3, 0.2, 25.0)[: len(sizes)]
    header = (
        f"ObjectType = Image\nNDims = {len(sizes)}\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        f"CompressedData = False\nElementSpacing = {' '.join(map(str, spacing))}\nDimSize = {' '.join(map(str, sizes))}\n"
        f"ElementNumberOfChannels = {num_channels}\nElementType = {METAIMAGE_TYPES[str(pixels.dtype)]}\n"
        "ElementDataFile = LOCAL\n"
    )
    path.write_bytes(header.encode() + np.ascontiguousarray(pixels).tobytes())
    return path


# ---- number types


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64", ">i2"]
)
def test_nifti_of_every_number_type(tmp_path: Path, dtype: str) -> None:
    frames = read_frames(write_nifti(tmp_path / "a.nii.gz", ramp(dtype).T))
    assert frames.pixels.shape == (1, *SHAPE) and np.array_equal(frames.pixels[0], ramp(dtype))
    assert frames.spacing_mm == pytest.approx((0.2, 0.3))


@pytest.mark.parametrize("dtype", METAIMAGE_TYPES)
def test_metaimage_of_every_number_type(tmp_path: Path, dtype: str) -> None:
    frames = read_frames(write_metaimage(tmp_path / "a.mha", ramp(dtype)))
    assert frames.pixels.shape == (1, *SHAPE) and np.array_equal(frames.pixels[0], ramp(dtype))
    assert frames.spacing_mm == (0.2, 0.3)


def test_scaled_nifti_is_no_float64(tmp_path: Path) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(ramp("int16", 3).T, np.eye(4))
    image.header.set_slope_inter(0.5, -100)
    nib.save(image, tmp_path / "a.nii.gz")
    with_scale = nib.load(tmp_path / "a.nii.gz")
    frames = read_frames(tmp_path / "a.nii.gz", sequences=True)
    assert frames.pixels.dtype == np.float32
    assert np.allclose(frames.pixels, np.asarray(with_scale.dataobj).T, atol=1e-4)


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a.nii: expected one plane .* of real numbers, got an array .*complex64"):
        read_frames(write_nifti(tmp_path / "a.nii", ramp("float32").T.astype(np.complex64)))


# ---- colours


def test_luma_by_hand() -> None:
    assert luma(np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [7, 7, 7]], np.uint8)).tolist() == [76, 150, 29, 7]
    assert luma(np.array([[200, 200, 200, 0], [200, 200, 200, 51]], np.uint8)).tolist() == [0, 40]
    bright = luma(np.array([[0, 1000, 0]], np.uint16))
    assert bright.dtype == np.float32 and bright[0] == pytest.approx(587, abs=0.1)
    assert luma(np.array([[1, 1, 1, 0.5]], np.float32))[0] == pytest.approx(0.5)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "P transparent"])
def test_png_of_every_mode(tmp_path: Path, mode: str) -> None:
    from PIL import Image

    colours = Image.fromarray(COLOURS)
    opaque = Image.fromarray(COLOURS[..., :3])
    expected: NDArray[Any] = GREY
    if mode == "I;16":
        expected = ramp("uint16") * 100
        Image.fromarray(expected).save(tmp_path / "a.png")
    elif mode == "RGBA":
        colours.save(tmp_path / "a.png")
        expected = GREY * (COLOURS[..., 3] / 255)
    elif mode == "LA":
        grey = Image.fromarray(GREY.astype(np.uint8))
        Image.merge("LA", [grey, Image.fromarray(COLOURS[..., 3])]).save(tmp_path / "a.png")
        expected = GREY * (COLOURS[..., 3] / 255)
    elif mode.startswith("P"):
        indices = ramp("uint8")
        image = Image.fromarray(indices)
        palette = GENERATOR.integers(0, 256, (256, 3), dtype=np.uint8)
        image.putpalette(palette.tobytes())
        image.save(tmp_path / "a.png", **({"transparency": 3} if "transparent" in mode else {}))
        expected = (palette @ np.array([0.299, 0.587, 0.114]))[indices]
        if "transparent" in mode:
            expected = np.where(indices == 3, 0, expected)
    elif mode == "1":
        expected = np.where(GREY > 127, 255, 0)
        Image.fromarray(GREY > 127).save(tmp_path / "a.png")
    else:
        opaque.convert(mode).save(tmp_path / "a.png")
    frames = read_frames(tmp_path / "a.png")
    assert frames.pixels.shape == (1, *SHAPE) and frames.spacing_mm == (1.0, 1.0)
    assert np.abs(frames.pixels[0] - expected).max() <= 1


@pytest.mark.parametrize("num_channels", [3, 4])
@pytest.mark.parametrize("form", ["records", "fifth axis", "intent", "metaimage", "metaimage int16"])
def test_colours_become_grey(tmp_path: Path, form: str, num_channels: int) -> None:
    colours = COLOURS[..., :num_channels].copy()
    if num_channels == 4:
        colours[..., 3] = 255
    if form == "metaimage":
        path = write_metaimage(tmp_path / "a.mha", colours, num_channels)
    elif form == "metaimage int16":
        values = colours.astype(np.int16)
        values[..., 3:] = np.iinfo(np.int16).max
        path = write_metaimage(tmp_path / "a.mha", values, num_channels)
    elif form == "records":
        dtype = np.dtype([(name, "u1") for name in "RGBA"[:num_channels]])
        path = write_nifti(tmp_path / "a.nii.gz", np.ascontiguousarray(colours).view(dtype)[..., 0].T)
    else:
        stored = colours.transpose(1, 0, 2)  # (x, y, channel)
        if form == "fifth axis":
            stored = stored[:, :, None, None]
        intent = {3: "rgb vector", 4: "rgba vector"}[num_channels] if form == "intent" else "none"
        path = write_nifti(tmp_path / "a.nii.gz", stored, intent)
    frames = read_frames(path)
    assert frames.pixels.shape == (1, *SHAPE) and np.abs(frames.pixels[0] - GREY).max() <= 1
    assert frames.spacing_mm == pytest.approx((0.2, 0.3))
    assert frames.pixels.dtype == (np.float32 if "int16" in form else np.uint8)


def test_bare_axis_of_three_is_time_and_the_error_says_so(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", COLOURS[..., :3].transpose(1, 0, 2))
    with pytest.raises(
        ValueError, match="expected one plane, got 3 of 20 rows .*; if they are colours, save the file as RGB"
    ):
        read_frames(path)
    assert np.array_equal(read_frames(path, sequences=True).pixels, COLOURS[..., :3].transpose(2, 0, 1))


def test_two_channels_are_refused(tmp_path: Path) -> None:
    path = write_metaimage(tmp_path / "a.mha", COLOURS[..., :2].copy(), 2)
    with pytest.raises(ValueError, match=r"a.mha: expected 1 channel \(grey\), 3 \(colour\) .*, got 2"):
        read_frames(path)


# ---- sequences


def write_sequence(path: Path, pixels: NDArray[Any], form: str) -> Path:
    """Write (T, H, W) in one of the forms that sequences have."""
    if form == "metaimage":
        return write_metaimage(path.with_suffix(".mha"), pixels)
    stored = pixels.T if form == "x y t" else pixels.T[:, :, None]
    zooms = (0.3, 0.2, 0.025) if form == "x y t" else (0.3, 0.2, 1.0, 0.025)
    return write_nifti(path.with_suffix(".nii.gz"), stored, zooms=zooms)


@pytest.mark.parametrize("form", ["x y t", "x y 1 t", "metaimage"])
@pytest.mark.parametrize("num_frames", [1, 5])
def test_sequence_is_read_only_when_asked_for(tmp_path: Path, form: str, num_frames: int) -> None:
    path = write_sequence(tmp_path / "clip", ramp("uint16", num_frames), form)
    frames = read_frames(path, sequences=True)
    assert np.array_equal(frames.pixels, ramp("uint16", num_frames)) and frames.spacing_mm == pytest.approx((0.2, 0.3))
    if num_frames == 1:
        assert np.array_equal(read_frames(path).pixels, frames.pixels)
        return
    with pytest.raises(
        ValueError, match=r"clip.*: expected one plane, got 5 of 20 rows and 30 columns; set sequences: true"
    ):
        read_frames(path)


def test_volume_over_time_is_no_sequence(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", np.zeros((30, 20, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"expected one plane or planes over time .* shape \(30, 20, 2, 3\)"):
        read_frames(path, sequences=True)


def test_colour_sequence(tmp_path: Path) -> None:
    colours = np.stack([COLOURS, COLOURS[::-1]])[..., :3]  # (t, y, x, channel)
    path = write_metaimage(tmp_path / "a.mha", colours, 3)
    assert np.abs(read_frames(path, sequences=True).pixels - np.stack([GREY, GREY[::-1]])).max() <= 1
    path = write_nifti(tmp_path / "a.nii", colours.transpose(2, 1, 0, 3)[:, :, None])
    assert np.abs(read_frames(path, sequences=True).pixels - np.stack([GREY, GREY[::-1]])).max() <= 1


# ---- what cannot be read


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_pixels_that_are_no_number_are_counted(tmp_path: Path, value: float, suffix: str) -> None:
    pixels = ramp("float32")
    pixels[3, 4:6] = value
    path = tmp_path / f"a{suffix}"
    write_metaimage(path, pixels) if suffix == ".mha" else write_nifti(path, pixels.T)
    message = r"2 of 600 pixels that are NaN or infinite \(the first at row 3, column 4, .*; set them to"
    for read in (read_frames, read_plane):
        with pytest.raises(ValueError, match=message) as error:
            read(path)
        assert path.name in str(error.value) and "\n" not in str(error.value)


def test_frame_of_a_bad_pixel_is_named(tmp_path: Path) -> None:
    pixels = ramp("float32", 4)
    pixels[2, 1, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 2400 pixels .* row 1, column 0 of frame 2"):
        read_frames(write_nifti(tmp_path / "a.nii", pixels.T), sequences=True)


@pytest.mark.parametrize("name", ["note.png", "note.nii.gz", "note.mhd", "note.nii"])
def test_file_that_is_no_image_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("not an image")
    with pytest.raises(ValueError, match=name) as error:
        read_frames(tmp_path / name)
    assert "\n" not in str(error.value)


def test_cut_off_file_other_suffix_and_no_file(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", ramp("uint16", 9).T)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="a.nii.gz: the file is cut off or damaged"):
        read_frames(path, sequences=True)
    path = write_metaimage(tmp_path / "a.mha", ramp("uint8"))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="a.mha: not a readable MetaImage"):
        read_frames(path)
    (tmp_path / "a.tif").write_bytes(b"x")
    with pytest.raises(
        ValueError,
        match=r"a.tif: expected an image file \(.nii.gz, .nii, .mhd, .mha, .png, .jpg, .jpeg, .bmp, .avi, .mp4\)",
    ):
        read_frames(tmp_path / "a.tif")
    with pytest.raises(FileNotFoundError, match="nowhere.png: no such file"):
        read_frames(tmp_path / "nowhere.png")


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.bmp", "a.png"])
def test_pictures_of_every_kind(tmp_path: Path, name: str, mode: str) -> None:
    from PIL import Image

    smooth = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)  # JPEG keeps what is smooth
    image = Image.fromarray(smooth).convert("RGB").convert(mode)
    if mode == "P" and name.lower().endswith(("jpg", "jpeg")):
        image = image.convert("L")
    image.save(tmp_path / name, **({"quality": 95} if "j" in name.lower() else {}))
    found = read_frames(tmp_path / name)
    assert found.pixels.shape == (1, 40, 60) and found.spacing_mm == (1.0, 1.0)
    expected = np.asarray(image.convert("L"), dtype=int)
    assert np.abs(found.pixels[0] - expected).max() <= (
        0 if name.endswith(("png", "bmp")) else {"1": 255, "P": 12}.get(mode, 3)
    )
    read_as_png = tmp_path / "other.png"
    (tmp_path / name).rename(read_as_png)
    assert np.array_equal(read_frames(read_as_png).pixels, found.pixels)  # as ever, whatever it is called


def test_jpeg_that_says_it_is_turned_is_turned_back(tmp_path: Path) -> None:
    from PIL import Image

    smooth = np.add.outer(np.arange(40) * 3, np.arange(60)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: to be turned clockwise
    Image.fromarray(np.rot90(smooth)).save(tmp_path / "a.jpg", quality=100, exif=exif)
    assert np.abs(read_frames(tmp_path / "a.jpg").pixels[0].astype(int) - smooth).max() <= 3


def test_animated_png_is_refused(tmp_path: Path) -> None:
    from PIL import Image

    pictures = [Image.fromarray(ramp("uint8")), Image.fromarray(ramp("uint8")[::-1].copy())]
    pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:])
    with pytest.raises(ValueError, match="a.png: expected one plane, got an animation of 2"):
        read_frames(tmp_path / "a.png")


@pytest.mark.parametrize("form", ["x y t", "x y 1 t", "metaimage"])
def test_frames_are_counted_by_the_header(tmp_path: Path, form: str) -> None:
    assert count_frames(write_sequence(tmp_path / "clip", ramp("uint8", 5), form)) == (5, 20, 30)


# ---- text


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_text_is_the_same_whatever_editor_saved_it(mark: bytes, end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "split.txt"
    path.write_bytes(mark + end.join([b"patient0001", "Vorhöfe".encode(), b""]))
    assert read_text(path) == "patient0001\nVorhöfe\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a".encode("utf-16"), "expected text in UTF-8, got UTF-16 or UTF-32"),
        (b"\xfe\xff\x00a", "expected text in UTF-8, got UTF-16 or UTF-32"),
        ("a".encode("utf-32"), "expected text in UTF-8, got UTF-16 or UTF-32"),
        ("eins\nzwölf".encode("cp1252"), "line 2: expected text in UTF-8, got byte 0xf6; save it as UTF-8"),
        (bytes(101), "expected a text file of at most 0 MB"),
    ],
)
def test_other_text_is_refused_by_name(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 100)
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.csv: {message}"):
        read_text(tmp_path / "a.csv")


def test_files_of_users_are_read_as_text_in_one_place() -> None:
    """No other place decodes a text file, except templates and records of the package's own."""
    own = {
        "files.py",
        "__main__.py",
        "dicom/identity/deidentify.py",
        "dicom/reading/worker.py",
        "hospital/report.py",
        "hospital/delivery.py",
    }
    own |= {"pages/page.py", "evaluation/quality_page.py", "serving/label/app_folder.py", "csv_files.py"}
    package, found = Path(files.__file__).parent, set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(getattr(node, "func", None), "attr", None)
            of_pandas = name == "read_csv" and not ast.unparse(node.args[0]).startswith(("StringIO", "table"))
            if isinstance(node, ast.Call) and (name == "read_text" or of_pandas):
                found.add(path.relative_to(package).as_posix())
    assert found - own == set()
