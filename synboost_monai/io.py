"""Files: writing them whole or not at all, and reading one plane of NIfTI or MetaImage, checked to its end."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NIFTI_SUFFIXES = (".nii.gz", ".nii")
"""Ends of the names of NIfTI files."""
METAIMAGE_SUFFIXES = (".mhd", ".mha")
"""Ends of the names of MetaImage files."""
IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, *METAIMAGE_SUFFIXES, ".png")
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


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`; on leaving without an error it is renamed to `path`, otherwise removed.

    The temporary name is hidden and ends as the target does, so writers that go by the suffix work. Missing folders
    are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{os.urandom(4).hex()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


@dataclass(frozen=True)
class Plane:
    """One 2-D image of a file, in display order."""

    pixels: NDArray[Any]
    """(H, W): rows from top to bottom, the file's own values."""
    spacing_mm: tuple[float, float]
    """(row, column)."""


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
    if not np.isfinite(pixels).all():
        raise ValueError(f"{path}: expected finite pixel values, got NaN or infinity")
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"{path}: expected a positive pixel spacing in the header, got {spacing}")
    return Plane(pixels, (spacing[0], spacing[1]))


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
    width, height, num_frames = (*sizes, 1, 1)[:3]
    return num_frames, height, width


def _read_nifti(path: Path) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Array and spacing of a NIfTI file with its axes reversed: (x, y, frame) -> (frame, y, x)."""
    import nibabel as nib

    try:
        content = _nifti_bytes(path)
        is_nifti2 = content[:4] in (struct.pack("<i", 540), struct.pack(">i", 540))
        image = (nib.Nifti2Image if is_nifti2 else nib.Nifti1Image).from_bytes(content)
        pixels = np.asanyarray(image.dataobj)
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{path}: the file is cut off or damaged ({_one_line(error)}); fetch it again") from error
    except Exception as error:  # nibabel raises many kinds for a file that is no NIfTI
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
