"""Write files whole or not at all, and read planes of NIfTI, MetaImage, PNG, JPEG, BMP, AVI or MP4, checked to their end.

`read_plane` reads the one grey plane of a file (CAMUS's images and label maps); `read_frames` reads whatever an
ultrasound export holds: one plane or a sequence, grey or colour, any number type.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synboost_monai.errors import as_system_error
from synboost_monai.formats.clip import CLIP_SUFFIXES, clip_grid, read_clip
from synboost_monai.formats.colour import luma
from synboost_monai.formats.grid import Grid
from synboost_monai.formats.metaimage import MetaImageFile, read_metaimage_header
from synboost_monai.formats.nifti import NiftiFile, read_nifti_header
from synboost_monai.formats.picture import PICTURE_SUFFIXES, picture_grid, read_picture
from synboost_monai.paths import temporary_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

NIFTI_SUFFIXES = (".nii.gz", ".nii")
"""Suffixes of NIfTI files."""
METAIMAGE_SUFFIXES = (".mhd", ".mha")
"""Suffixes of MetaImage files."""
FRAME_SUFFIXES = (*NIFTI_SUFFIXES, *METAIMAGE_SUFFIXES, *PICTURE_SUFFIXES)
"""Suffixes of images and label maps whose formats keep every pixel as it is (except JPEG), lower case."""
DICOM_SUFFIXES = (".dcm", ".dicom")
"""Suffixes of DICOM files; many of these have no suffix."""
IMAGE_SUFFIXES = (*FRAME_SUFFIXES, *CLIP_SUFFIXES, *DICOM_SUFFIXES)
"""Suffixes of all image files that the project reads, lower case."""
UNCALIBRATED_SUFFIXES = (*PICTURE_SUFFIXES, *CLIP_SUFFIXES)
"""Suffixes of files that hold neither the size of a pixel nor the orientation of the image."""

MAX_TEXT_BYTES = 1 << 28
"""Largest text file that is read: a datalist of a million images has fewer bytes."""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on leaving without an error, otherwise remove it.

    The temporary name is hidden and ends as the target does, so that writers that go by the suffix work; a long name is shortened to its
    end. Missing folders are made.

    Raises:
        OSError: the system's refusal, with the path, whatever error the writing library made of it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name))
    try:
        yield temporary
        os.replace(temporary, path)
    except Exception as error:
        refused = as_system_error(error)
        if refused is None or refused.filename is not None or not refused.errno:
            raise
        raise OSError(*_said_of_writing(path, refused), str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # nothing was made there: the system's error is raised already
            temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what a process that was killed inside `atomic_path` left beside `path`."""
    for leftover in path.parent.glob(f".*-*.{path.name}"):
        leftover.unlink(missing_ok=True)


def _said_of_writing(path: Path, refused: OSError) -> tuple[int, str]:
    """Return number and text of the error of a failed write; try a write again where a library did not pass them on."""
    if refused.errno == errno.EIO:
        try:
            with tempfile.TemporaryFile(dir=path.parent) as file:
                file.write(bytes(1 << 20))
                file.flush()
        except OSError as error:
            refused = error
    return refused.errno or errno.EIO, refused.strerror or str(refused)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def known_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, computed again only if it changed, since every use of weights asks for it."""
    status = os.stat(path)
    return _sha256_of_state(os.path.abspath(path), status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _sha256_of_state(path: str, inode: int, size: int, mtime_ns: int) -> str:
    return sha256_of(path)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8) whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: str | os.PathLike[str], errors: str = "strict") -> str:
    """Read a UTF-8 text file that a user may have made with any editor and system; lines of the text end with a line feed.

    A byte order mark at the beginning and carriage returns, which editors and spreadsheets of Windows write, are not part of the text.

    Args:
        path: the file.
        errors: treatment of bytes that are not UTF-8, as in `bytes.decode`.
    Raises:
        OSError: if it cannot be read.
        ValueError: if it is UTF-16 or UTF-32, larger than `MAX_TEXT_BYTES`, or (with `strict`) not UTF-8.
    """
    content = bytearray()
    with open(
        path, "rb"
    ) as file:  # block by block: `read` takes all the memory that it is asked for, whatever the file's size
        while len(content) <= MAX_TEXT_BYTES and (block := file.read(1 << 20)):
            content += block
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"{path}: expected a text file of at most {MAX_TEXT_BYTES >> 20} MB; is this the right file?")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise ValueError(
            f"{path}: expected text in UTF-8, got UTF-16 or UTF-32 (`Unicode` in Windows); save it as UTF-8"
        )
    try:
        text = content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}: line {line}: expected text in UTF-8, got byte 0x{content[error.start]:02x}; save it as UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def image_suffix(path: str | os.PathLike[str]) -> str | None:
    """Return the suffix of `IMAGE_SUFFIXES` that a file name ends with (in any case), or None."""
    name = os.path.basename(path).lower()
    return next((suffix for suffix in IMAGE_SUFFIXES if name.endswith(suffix)), None)


def image_stem(path: str | os.PathLike[str]) -> str:
    """Return a file name without its image suffix: `patient0001_4CH_ED.nii.gz` -> `patient0001_4CH_ED`."""
    suffix = image_suffix(path)
    name = os.path.basename(path)
    return name[: -len(suffix)] if suffix else name


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is DICOM: by its name, or, if it has no image suffix, by the letters DICM after 128 bytes."""
    suffix = image_suffix(path)
    if suffix is not None:
        return suffix in DICOM_SUFFIXES
    if not os.path.isfile(path):  # a pipe would make us wait
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


@dataclass(frozen=True)
class Plane:
    """Hold one 2-D image of a file, in display order."""

    pixels: NDArray[Any]
    """(H, W): rows from top to bottom, the file's own values."""
    spacing_mm: tuple[float, float]
    """(row, column)."""


@dataclass(frozen=True)
class Frames:
    """Hold the grey planes of a file, in display order: one, or a sequence over time."""

    pixels: NDArray[Any]
    """(T, H, W): rows from top to bottom, the file's own values (colours as their luma)."""
    grid: Grid
    """How the file stores them."""

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """Return the spacing, (row, column); 1 mm if the file holds none (`UNCALIBRATED_SUFFIXES`)."""
        return self.grid.spacing_mm


def read_frames(
    path: str | os.PathLike[str], sequences: bool = False, like: str | os.PathLike[str] | None = None
) -> Frames:
    """Read a whole image file of any number type, grey or colour: a truncated or damaged file is an error.

    Colour becomes grey by luma, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), over black where an alpha channel is transparent.
    Colour is: PNG, JPEG and BMP of any mode; AVI and MP4, whose luma is taken as stored; NIfTI of type RGB24 or RGBA32, with a
    fifth axis of 3 or 4, or with a last axis of 3 or 4 and the intent RGB_VECTOR or RGBA_VECTOR; MetaImage with 3 or 4 channels. A bare
    last axis of 3 counts as 3 frames.

    An image that is turned or mirrored by its affine is turned back (see `formats.grid`). Sizes are bounded before memory is
    taken (see `formats.bounded`).

    Args:
        path: of one of `FRAME_SUFFIXES` or `CLIP_SUFFIXES`.
        sequences: take several planes: (x, y, t) or (x, y, 1, t) as stored, time last; a clip (AVI, MP4) counts as several.
        like: the image of this label map; a label map without an orientation in its own header gets the image's.
    Raises:
        FileNotFoundError: if the file does not exist (or a .mhd's data file is missing).
        ValueError: if the file is not such an image, is cut off or damaged, has several planes without `sequences`, pixels that are
            NaN or infinite, or no valid spacing.
    """
    path = _regular(path)
    suffix = image_suffix(path)
    if suffix in PICTURE_SUFFIXES:
        pixels = read_picture(path)
        return Frames(pixels[None], _lying_as(picture_grid(pixels.shape), like))
    if suffix in CLIP_SUFFIXES:
        if not sequences:
            raise ValueError(
                f"{path}: is a clip; set sequences: true to segment every frame (--sequences true), or export one as a picture"
            )
        pixels = read_clip(path)
        return Frames(pixels, clip_grid(pixels.shape))
    if suffix not in FRAME_SUFFIXES:
        raise ValueError(f"{path}: expected an image file ({', '.join((*FRAME_SUFFIXES, *CLIP_SUFFIXES))})")
    file = _header(path, suffix)
    grid = file.grid
    if grid is None or not file.is_real:
        raise ValueError(
            f"{path}: expected one plane or planes over time (x, y, t) of real numbers, got an array of shape "
            f"{file.shape} {file.dtype} (x, y, ...); export a single plane or one 2-D sequence"
        )
    num_frames, height, width = grid.frames_shape
    if num_frames > 1 and not sequences:
        is_perhaps_colour = num_frames in (3, 4) and file.dtype == np.uint8
        hint = "; if they are colours, save the file as RGB or in grey" if is_perhaps_colour else ""
        raise ValueError(
            f"{path}: expected one plane, got {num_frames} of {height} rows and {width} columns; "
            f"set sequences: true to segment every one of them (--sequences true), or export one plane{hint}"
        )
    return _frames(file, _lying_as(grid, like))


def read_plane(path: str | os.PathLike[str]) -> Plane:
    """Read a whole file that holds one grey image: a truncated or damaged file is an error.

    It works as `read_frames`, but for NIfTI and MetaImage alone and without colours.

    Args:
        path: a .nii.gz, .nii, .mhd or .mha file of one plane.
    Raises:
        FileNotFoundError: if the file does not exist (or a .mhd's data file is missing).
        ValueError: if the file is not such an image, is cut off, damaged, has several frames or channels, or no valid
            spacing.
    """
    path = _regular(path)
    suffix = image_suffix(path)
    if suffix not in NIFTI_SUFFIXES + METAIMAGE_SUFFIXES:
        raise ValueError(
            f"{path}: expected a NIfTI or MetaImage file ({', '.join(NIFTI_SUFFIXES + METAIMAGE_SUFFIXES)})"
        )
    file = _header(path, suffix)
    grid = file.grid
    if grid is None or grid.frames_shape[0] > 1 or file.is_colour or not file.is_real:
        raise ValueError(
            f"{path}: expected one grey image (H, W), got an array of shape {file.shape[::-1]} {file.dtype}"
            + (" of colours" if file.is_colour else "")
        )
    frames = _frames(file, grid)
    return Plane(frames.pixels[0], frames.spacing_mm)


def read_grid(path: str | os.PathLike[str]) -> Grid:
    """Read from a file's header how it stores its planes; pictures and clips are decoded for that.

    Raises:
        FileNotFoundError, ValueError: as in `read_frames`.
    """
    path = _regular(path)
    suffix = image_suffix(path)
    if suffix in PICTURE_SUFFIXES:
        return picture_grid(read_picture(path).shape)
    if suffix in CLIP_SUFFIXES:
        return clip_grid(read_clip(path).shape)
    grid = _header(path, suffix).grid
    if grid is None:
        raise ValueError(
            f"{path}: expected one plane or planes over time (x, y, t); export a single plane or one 2-D sequence"
        )
    return grid


def count_frames(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Read (frames, H, W) of a sequence from its header; the size of the data shows that it is not cut off.

    Raises:
        FileNotFoundError, ValueError: as in `read_plane`.
    """
    path = _regular(path)
    file = _header(path, image_suffix(path))
    grid = read_grid(path)
    file.check_length()
    return grid.frames_shape


# --- helpers


def _regular(path: str | os.PathLike[str]) -> Path:
    """Return the path, which must be that of a regular file: a pipe would never end."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path


def _header(path: Path, suffix: str | None) -> NiftiFile | MetaImageFile:
    return read_nifti_header(path) if suffix in NIFTI_SUFFIXES else read_metaimage_header(path)


def _lying_as(grid: Grid, image_path: str | os.PathLike[str] | None) -> Grid:
    """Return a label map's grid, with its image's orientation if the label map has none of its own and both have one shape."""
    if (
        image_path is None
        or grid.is_oriented
        or is_dicom(image_path)
        or image_suffix(image_path) in UNCALIBRATED_SUFFIXES
    ):
        return grid
    image = read_grid(image_path)
    return replace(grid, order=image.order) if image.volume_shape == grid.volume_shape else grid


def _frames(file: NiftiFile | MetaImageFile, grid: Grid) -> Frames:
    """Read and check a whole file."""
    pixels = grid.to_display(_grey(file))
    _check_finite(pixels, file.path)
    _check_spacing(grid.spacing_mm, file.path)
    return Frames(pixels, grid)


def _grey(file: NiftiFile | MetaImageFile) -> NDArray[Any]:
    """Read the grey values of a file as stored, (x, y, ...); they are scaled in float32, half the size of float64."""
    pixels = file.read()
    if pixels.dtype.names is not None:  # RGB24, RGBA32 of NIfTI: one record for each pixel
        pixels = luma(np.stack([pixels[name] for name in pixels.dtype.names], axis=-1))
    elif file.is_colour:
        pixels = luma(pixels)
    slope, intercept = file.scaling()
    if (slope, intercept) != (1.0, 0.0):
        pixels = pixels.astype(np.float32)
        pixels *= np.float32(slope)
        pixels += np.float32(intercept)
    return pixels


def _check_finite(pixels: NDArray[Any], path: Path) -> None:
    """Refuse NaN and infinity, one plane at a time, since a whole sequence of truth values would be large."""
    if pixels.dtype.kind != "f":
        return
    planes = pixels.reshape(-1, *pixels.shape[-2:])
    counts = [int(plane.size - np.isfinite(plane).sum()) for plane in planes]
    if not any(counts):
        return
    first = next(i for i, count in enumerate(counts) if count)
    row, column = np.argwhere(~np.isfinite(planes[first]))[0]
    where = f"row {row}, column {column}" + (f" of frame {first}" if len(planes) > 1 else "")
    raise ValueError(
        f"{path}: expected finite pixel values, got {sum(counts)} of {pixels.size} pixels that are NaN or infinite (the first at "
        f"{where}, counted from 0); set them to the background's value, or export the image again"
    )


def _check_spacing(spacing: tuple[float, float], path: Path) -> None:
    """Refuse a spacing that is not positive."""
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"{path}: expected a positive pixel spacing in the header, got {spacing}")
