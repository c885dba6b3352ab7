"""Files: writing them whole or not at all, and reading planes of NIfTI, MetaImage or PNG, checked to their end.

`read_plane` takes the one grey plane of a file as it is stored (CAMUS's images and label maps); `read_frames` takes whatever an
ultrasound export holds: one plane or a sequence, grey or colour, any number type.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synboost_monai.errors import as_system_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

NIFTI_SUFFIXES = (".nii.gz", ".nii")
"""Ends of the names of NIfTI files."""
METAIMAGE_SUFFIXES = (".mhd", ".mha")
"""Ends of the names of MetaImage files."""
FRAME_SUFFIXES = (*NIFTI_SUFFIXES, *METAIMAGE_SUFFIXES, ".png")
"""Ends of the names of the files that `read_frames` reads, lower case."""
DICOM_SUFFIXES = (".dcm", ".dicom")
"""Ends of the names of DICOM files; many have none."""
IMAGE_SUFFIXES = (*FRAME_SUFFIXES, *DICOM_SUFFIXES)
"""Ends of the names of every image file that the project reads, lower case."""

_METAIMAGE_BYTES = {
    "MET_CHAR": 1,
    "MET_UCHAR": 1,
    "MET_SHORT": 2,
    "MET_USHORT": 2,
    "MET_INT": 4,
    "MET_UINT": 4,
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}
"""Element type of a MetaImage -> bytes of one element."""
_METAIMAGE_DTYPES = {
    "MET_CHAR": "int8",
    "MET_UCHAR": "uint8",
    "MET_SHORT": "int16",
    "MET_USHORT": "uint16",
    "MET_INT": "int32",
    "MET_UINT": "uint32",
}
"""Element types of a MetaImage that a wider type may have stood in for while it was read; others stay as ITK gives them."""
_NIFTI_COLOUR_INTENTS = (2003, 2004)
"""NIfTI intent codes RGB_VECTOR and RGBA_VECTOR: the last axis is colour."""
_LUMA_WEIGHTS = (19595, 38470, 7471)
"""Red, green, blue: 0.299, 0.587, 0.114 of ITU-R BT.601 as parts of 2^16 (what PIL's conversion to grey takes)."""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`; on leaving without an error it is renamed to `path`, otherwise removed.

    The temporary name is hidden and ends as the target does, so writers that go by the suffix work. Missing folders
    are made.

    Raises:
        OSError: what the system refuses, with the path, whatever kind the library that writes made of it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{os.urandom(4).hex()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except Exception as error:
        refused = as_system_error(error)
        if refused is None or refused.filename is not None or not refused.errno:
            raise
        raise OSError(*_said_of_writing(path, refused), str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # nothing was made there: what the system said of that is on its way
            temporary.unlink(missing_ok=True)


def _said_of_writing(path: Path, refused: OSError) -> tuple[int, str]:
    """Number and words of why a file could not be written; asked again where a library did not pass them on."""
    if refused.errno == errno.EIO:
        try:
            with tempfile.TemporaryFile(dir=path.parent) as file:
                file.write(bytes(1 << 20))
                file.flush()
        except OSError as error:
            refused = error
    return refused.errno or errno.EIO, refused.strerror or str(refused)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8) whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def image_suffix(path: str | os.PathLike[str]) -> str | None:
    """The suffix of `IMAGE_SUFFIXES` that a file name ends with (any case); None if it ends with none."""
    name = os.path.basename(path).lower()
    return next((suffix for suffix in IMAGE_SUFFIXES if name.endswith(suffix)), None)


def image_stem(path: str | os.PathLike[str]) -> str:
    """File name without its image suffix: `patient0001_4CH_ED.nii.gz` -> `patient0001_4CH_ED`."""
    suffix = image_suffix(path)
    name = os.path.basename(path)
    return name[: -len(suffix)] if suffix else name


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file is DICOM: by its name, or, where the name ends as that of no image, by the letters DICM after 128 bytes."""
    suffix = image_suffix(path)
    if suffix is not None:
        return suffix in DICOM_SUFFIXES
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


@dataclass(frozen=True)
class Plane:
    """One 2-D image of a file, in display order."""

    pixels: NDArray[Any]
    """(H, W): rows from top to bottom, the file's own values."""
    spacing_mm: tuple[float, float]
    """(row, column)."""


@dataclass(frozen=True)
class Frames:
    """The grey planes of a file, in display order; one, or a sequence over time."""

    pixels: NDArray[Any]
    """(T, H, W): rows from top to bottom, the file's own values (colours as their luma)."""
    spacing_mm: tuple[float, float]
    """(row, column); 1 mm where the file knows none (PNG)."""


def read_frames(path: str | os.PathLike[str], sequences: bool = False) -> Frames:
    """Read an image file of any number type, grey or colour, all of it: a truncated or damaged file is an error.

    Colour becomes grey by luma, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), over black where an alpha channel says transparent.
    Colour is: PNG of any mode; NIfTI of type RGB24 or RGBA32, with a fifth axis of 3 or 4, or with a last axis of 3 or 4 and the
    intent RGB_VECTOR or RGBA_VECTOR; MetaImage with 3 or 4 channels. A bare last axis of 3 counts as 3 frames.

    Args:
        path: .nii.gz, .nii, .mhd, .mha or .png.
        sequences: take several planes: (x, y, t) or (x, y, 1, t) as stored, time last.
    Raises:
        FileNotFoundError: if there is no such file (or a .mhd's data file is missing).
        ValueError: if the file is no such image, is cut off or damaged, has several planes without `sequences`, pixels that are
            NaN or infinite, or no valid spacing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    suffix = image_suffix(path)
    spacing: tuple[float, ...]
    if suffix == ".png":
        pixels, spacing = _read_png(path)[None], (1.0, 1.0, 1.0)
    elif suffix in NIFTI_SUFFIXES:
        pixels, spacing = _nifti_planes(path)
    elif suffix in METAIMAGE_SUFFIXES:
        pixels, spacing = _metaimage_planes(path)
    else:
        raise ValueError(f"{path}: expected an image file ({', '.join(FRAME_SUFFIXES)})")
    if pixels.ndim == 2:
        pixels, spacing = pixels[None], (1.0, *spacing)
    if pixels.ndim > 3 and pixels.size and sum(n > 1 for n in pixels.shape[:-2]) <= 1:  # (t, 1, y, x) -> (t, y, x)
        pixels, spacing = pixels.reshape(-1, *pixels.shape[-2:]), (1.0, *spacing[-2:])
    if pixels.ndim != 3 or pixels.size == 0 or pixels.dtype.kind not in "buif":
        raise ValueError(
            f"{path}: expected one plane or planes over time (x, y, t) of real numbers, got an array of shape "
            f"{pixels.shape[::-1]} {pixels.dtype} (x, y, ...); export a single plane or one 2-D sequence"
        )
    if len(pixels) > 1 and not sequences:
        is_perhaps_colour = len(pixels) in (3, 4) and pixels.dtype == np.uint8
        hint = "; if they are colours, save the file as RGB or in grey" if is_perhaps_colour else ""
        raise ValueError(
            f"{path}: expected one plane, got {len(pixels)} of {pixels.shape[1]} rows and {pixels.shape[2]} columns; "
            f"set sequences: true to segment every one of them (--sequences true), or export one plane{hint}"
        )
    _check_finite(pixels, path)
    return Frames(pixels, _checked_spacing(spacing[-2:], path))


def luma(colours: NDArray[Any]) -> NDArray[Any]:
    """Grey of colours by ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B.

    Args:
        colours: (..., 3), or (..., 4) with alpha (0: transparent, which becomes black).
    Returns:
        (...), uint8 (rounded) for uint8, else float32.
    """
    if colours.dtype == np.uint8:
        grey = np.full(colours.shape[:-1], 1 << 15, np.uint32)  # a half, for rounding
        for i, weight in enumerate(_LUMA_WEIGHTS):
            grey += colours[..., i].astype(np.uint32) * np.uint32(weight)
        grey >>= 16
        if colours.shape[-1] == 4:
            grey = (grey * colours[..., 3] + 127) // 255
        return grey.astype(np.uint8)
    brightness = np.zeros(colours.shape[:-1], np.float32)
    for i, weight in enumerate(_LUMA_WEIGHTS):
        brightness += colours[..., i].astype(np.float32) * np.float32(weight / (1 << 16))
    if colours.shape[-1] == 4:
        opaque = np.iinfo(colours.dtype).max if colours.dtype.kind in "iu" else 1.0
        brightness *= colours[..., 3].astype(np.float32) / np.float32(opaque)
    return brightness


def read_plane(path: str | os.PathLike[str]) -> Plane:
    """Read a file that holds one grey image, all of it: a truncated or damaged file is an error.

    NIfTI stores (x, y), which is transposed for display; its gzip checksum is verified. MetaImage is read by ITK.

    Args:
        path: a .nii.gz, .nii, .mhd or .mha file of shape (W, H) or (W, H, 1).
    Raises:
        FileNotFoundError: if there is no such file (or a .mhd's data file is missing).
        ValueError: if the file is no such image, is cut off, damaged, has several frames or channels, or no valid
            spacing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    suffix = image_suffix(path)
    if suffix in NIFTI_SUFFIXES:
        pixels, spacing = _read_nifti(path)
    elif suffix in METAIMAGE_SUFFIXES:
        pixels, spacing = _read_metaimage(path)
    else:
        raise ValueError(
            f"{path}: expected a NIfTI or MetaImage file ({', '.join(NIFTI_SUFFIXES + METAIMAGE_SUFFIXES)})"
        )
    while pixels.ndim > 2 and pixels.shape[0] == 1:  # the frame axis comes first in display order
        pixels, spacing = pixels[0], spacing[1:]
    if pixels.ndim != 2 or pixels.size == 0 or pixels.dtype.names is not None:
        raise ValueError(f"{path}: expected one grey image (H, W), got an array of shape {pixels.shape} {pixels.dtype}")
    _check_finite(pixels, path)
    return Plane(pixels, _checked_spacing(spacing, path))


def count_frames(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """(frames, H, W) of a sequence by its header; that the data is not cut off is checked by its size alone.

    Raises:
        FileNotFoundError, ValueError: as `read_plane`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if image_suffix(path) in NIFTI_SUFFIXES:
        sizes = _nifti_sequence_shape(path)
    else:
        header = _metaimage_header(path)
        sizes = [int(n) for n in header["DimSize"].split()]
    width, height, *others = (*sizes, 1, 1)
    return int(np.prod(others)), height, width


def _check_finite(pixels: NDArray[Any], path: Path) -> None:
    """Refuse NaN and infinity; a plane at a time, since a whole sequence of truth values would be large."""
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


def _checked_spacing(spacing: tuple[float, ...], path: Path) -> tuple[float, float]:
    """(row, column) in mm, which must be positive."""
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"{path}: expected a positive pixel spacing in the header, got {spacing}")
    return spacing[0], spacing[1]


def _read_png(path: Path) -> NDArray[Any]:
    """A PNG as one grey plane (H, W): uint8, or as deep as it is stored."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            num_pictures = getattr(image, "n_frames", 1)
            if image.mode.startswith("I") or image.mode == "F":  # 16 and 32 bits a pixel: conversion to "L" would clip
                pixels = np.asarray(image)
            elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
                pixels = luma(np.asarray(image.convert("RGBA")))
            else:
                pixels = np.asarray(image.convert("L"))  # colours by the weights of `luma`
    except Exception as error:  # PIL raises many kinds for a file that is no PNG
        raise ValueError(f"{path}: not a readable PNG image ({_first_line(error)}); fetch it again") from error
    if num_pictures > 1:
        raise ValueError(f"{path}: expected one plane, got an animation of {num_pictures}; export one of them")
    if pixels.ndim != 2 or pixels.size == 0:
        raise ValueError(f"{path}: expected one image (H, W), got an array of shape {pixels.shape}")
    return pixels


def _nifti_planes(path: Path) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Grey values and spacing of a NIfTI file in display order, (t, y, x) or (t, 1, y, x); scaled in float32."""
    image = _open_nifti(path)
    header, shape = image.header, image.shape
    try:
        pixels = np.asarray(image.dataobj.get_unscaled())  # scaled, a sequence would be float64
        slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
    except Exception as error:
        raise ValueError(f"{path}: not a readable NIfTI image ({_one_line(error)}); fetch it again") from error
    spacing = tuple(float(zoom) for zoom in header.get_zooms())
    if pixels.dtype.names is not None:  # RGB24, RGBA32: a record a pixel
        pixels = luma(np.stack([pixels[name] for name in pixels.dtype.names], axis=-1))
    elif has_colour_axis(shape, int(header["intent_code"])):
        pixels, spacing = luma(pixels), spacing[:-1]
    if (slope, inter) != (1.0, 0.0) and pixels.dtype.kind in "buif":
        pixels = pixels.astype(np.float32)
        pixels *= np.float32(slope)
        pixels += np.float32(inter)
    return pixels.T, spacing[::-1]


def has_colour_axis(shape: tuple[int, ...], intent_code: int) -> bool:
    """Whether the last axis of a NIfTI of numbers is colour: its fifth axis (that of vectors), or one that its intent names."""
    is_three_or_four = len(shape) > 2 and shape[-1] in (3, 4)
    return is_three_or_four and (len(shape) == 5 or intent_code in _NIFTI_COLOUR_INTENTS)


def _metaimage_planes(path: Path) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Grey values and spacing of a MetaImage in display order, (t, y, x); of any element type and number of channels."""
    import itk

    header = _metaimage_header(path)
    num_channels = int(header.get("ElementNumberOfChannels", "1"))
    if num_channels not in (1, 3, 4):
        raise ValueError(
            f"{path}: expected 1 channel (grey), 3 (colour) or 4 (colour and alpha), got {num_channels}; save it in grey"
        )
    try:
        try:
            image = itk.imread(str(path))
        except (
            RuntimeError,
            KeyError,
            TypeError,
        ):  # ITK's Python layer has no image of this pixel type: take a wider one
            image = itk.imread(str(path), pixel_type=itk.D if num_channels == 1 else itk.Vector[itk.F, num_channels])
    except (RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a readable MetaImage ({_one_line(error)}); fetch it again") from error
    pixels = itk.array_view_from_image(image)
    dtype = _METAIMAGE_DTYPES.get(header["ElementType"], pixels.dtype)
    pixels = np.array(pixels, dtype=dtype)  # a copy: the view lives only as long as the image
    spacing = tuple(float(s) for s in image.GetSpacing())[::-1]
    return (pixels if num_channels == 1 else luma(pixels)), spacing


def _open_nifti(path: Path) -> Any:
    """A nibabel image of the file's whole content in memory; a gzip file's checksum has been verified."""
    import nibabel as nib

    try:
        content = _nifti_bytes(path)
        is_nifti2 = content[:4] in (struct.pack("<i", 540), struct.pack(">i", 540))
        return (nib.Nifti2Image if is_nifti2 else nib.Nifti1Image).from_bytes(content)
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{path}: the file is cut off or damaged ({_one_line(error)}); fetch it again") from error
    except Exception as error:  # nibabel raises many kinds for a file that is no NIfTI
        raise ValueError(f"{path}: not a readable NIfTI image ({_one_line(error)}); fetch it again") from error


def _read_nifti(path: Path) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Array and spacing of a NIfTI file with its axes reversed: (x, y, frame) -> (frame, y, x)."""
    image = _open_nifti(path)
    try:
        pixels = np.asanyarray(image.dataobj)
    except Exception as error:
        raise ValueError(f"{path}: not a readable NIfTI image ({_one_line(error)}); fetch it again") from error
    spacing = tuple(float(zoom) for zoom in image.header.get_zooms())
    return pixels.T, spacing[::-1]


def _nifti_bytes(path: Path) -> bytes:
    """Content of a NIfTI file; `gzip.decompress` fails on a missing end and on a wrong checksum."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        return gzip.decompress(content)
    if path.name.lower().endswith(".gz"):
        raise ValueError("it is not compressed by gzip though its name says so")
    return content


def _nifti_sequence_shape(path: Path) -> list[int]:
    """Sizes (x, y, frames) by the header; a gzip file's last four bytes tell the size of what was compressed."""
    import nibabel as nib

    try:
        image: Any = nib.load(path)
        shape = [int(n) for n in image.shape]
        num_expected = int(image.dataobj.offset) + int(np.prod(shape)) * image.get_data_dtype().itemsize
        if path.name.lower().endswith(".gz"):
            with path.open("rb") as file:
                file.seek(-4, os.SEEK_END)
                num_found = struct.unpack("<I", file.read(4))[0]
            if num_found != num_expected % 2**32:
                num_found = len(_nifti_bytes(path))  # padding does no harm; a cut file raises here
        else:
            num_found = path.stat().st_size
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{path}: the file is cut off or damaged ({_one_line(error)}); fetch it again") from error
    except Exception as error:
        raise ValueError(f"{path}: not a readable NIfTI image ({_one_line(error)}); fetch it again") from error
    if num_found < num_expected % 2**32:
        raise ValueError(
            f"{path}: the file is cut off (expected {num_expected} bytes, got {num_found}); fetch it again"
        )
    return shape


def _read_metaimage(path: Path) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Array (frame, y, x) and spacing in the same order of a MetaImage file."""
    import itk

    _metaimage_header(path)
    try:
        image = itk.imread(str(path))
    except (RuntimeError, KeyError, TypeError) as error:  # ITK's Python layer fails on pixel types it does not know
        raise ValueError(f"{path}: not a readable MetaImage ({_one_line(error)}); fetch it again") from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"{path}: expected grey pixels, got {image.GetNumberOfComponentsPerPixel()} channels")
    return itk.array_from_image(image), tuple(float(s) for s in image.GetSpacing())[::-1]


def _metaimage_header(path: Path) -> dict[str, str]:
    """Keys of a MetaImage header; a separate, uncompressed data file must be long enough (ITK says it vaguely)."""
    header: dict[str, str] = {}
    with path.open("rb") as file:
        for line in file:
            key, equals, value = line.decode("latin-1").partition("=")
            if not equals:
                break
            header[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile":  # the last key: data may follow
                break
    if not {"DimSize", "ElementType", "ElementDataFile"} <= header.keys():
        raise ValueError(
            f"{path}: not a MetaImage header (DimSize, ElementType or ElementDataFile is missing); fetch it again"
        )
    try:
        num_elements = int(np.prod([int(n) for n in header["DimSize"].split()]))
        num_elements *= int(header.get("ElementNumberOfChannels", "1"))
    except ValueError as error:
        raise ValueError(
            f"{path}: DimSize or ElementNumberOfChannels in the header is no number; fetch it again"
        ) from error
    if header["ElementDataFile"] == "LOCAL" or header["ElementDataFile"].startswith("LIST"):
        return header
    data_path = path.parent / header["ElementDataFile"]
    if not data_path.is_file():
        raise FileNotFoundError(f"{path}: its data file {header['ElementDataFile']} is missing; fetch it again")
    if header.get("CompressedData", "False").lower() != "true" and header["ElementType"] in _METAIMAGE_BYTES:
        num_expected, num_found = num_elements * _METAIMAGE_BYTES[header["ElementType"]], data_path.stat().st_size
        if num_found < num_expected:
            raise ValueError(
                f"{data_path}: the file is cut off (expected {num_expected} bytes, got {num_found}); fetch it again"
            )
    return header


def _one_line(error: Exception) -> str:
    """The last line of an error's text, or its kind if it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind if it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
