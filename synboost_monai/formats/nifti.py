"""Read NIfTI files (.nii, .nii.gz; header and pixels in one file): the header alone, or everything, checked to its end."""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from synboost_monai.formats.bounded import MAX_HEADER_BYTES, Inflated, Plain, check_sizes
from synboost_monai.formats.grid import DisplayOrder, Grid, display_order, plane_axes

_MM_PER_UNIT = {1: 1000.0, 3: 0.001}
"""Space code of `xyzt_units` -> millimetres: metre, micron. Millimetre (2) and unknown codes count as mm."""
_COLOUR_INTENTS = (2003, 2004)
"""Intent codes RGB_VECTOR and RGBA_VECTOR: the last axis is colour."""
_HEADER_SIZES = {struct.pack(form, length): length for form in ("<i", ">i") for length in (348, 540)}
"""First four bytes -> length of the header: NIfTI-1 and NIfTI-2, of either byte order."""


@dataclass(frozen=True)
class NiftiFile:
    """Hold the header of a NIfTI file."""

    path: Path
    header: Any
    """nibabel's header."""
    sizes: tuple[int, ...]
    """Sizes as stored, with the last axis of colours if there is one."""
    has_colour_axis: bool
    grid: Grid | None
    """Grid of the planes; None if the image is neither a plane nor planes over time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes as stored, (x, y, ...), without colours."""
        return self.sizes[:-1] if self.has_colour_axis else self.sizes

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.header.get_data_dtype())

    @property
    def is_colour(self) -> bool:
        return self.has_colour_axis or self.dtype.names is not None

    @property
    def is_real(self) -> bool:
        """Whether the pixels are real numbers, or colours."""
        return self.dtype.kind in "buif" or self.dtype.names is not None

    @property
    def num_bytes(self) -> int:
        """Length of the inflated content up to the last pixel, in bytes."""
        return self.offset + math.prod(self.sizes) * self.dtype.itemsize

    @property
    def offset(self) -> int:
        """Offset of the first pixel in the inflated content, in bytes."""
        return max(int(self.header["vox_offset"]), int(self.header["sizeof_hdr"]) + 4)

    def read(self) -> NDArray[Any]:
        """Read the array as it is stored, not scaled; a gzip file's checksum is verified.

        Raises:
            ValueError: if the file is cut off or damaged.
        """
        with _readable(self.path), self.path.open("rb") as file:
            source = _content(file, self.path)
            content = source.read(self.num_bytes)
            if len(content) < self.num_bytes:
                raise EOFError(f"expected {self.num_bytes} bytes, got {len(content)}")
            source.finish()
            pixels = np.frombuffer(content, self.dtype, math.prod(self.sizes), self.offset)
        return pixels.reshape(self.sizes, order="F")

    def scaling(self) -> tuple[float, float]:
        """Return the (slope, intercept) of the values."""
        slope, intercept = self.header.get_slope_inter()
        return (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))

    def check_length(self) -> None:
        """Refuse a file that is cut off, by its size alone; a gzip file's last four bytes give the length of its content.

        Raises:
            ValueError: if the file is cut off.
        """
        with _readable(self.path), self.path.open("rb") as file:
            num_found = os.fstat(file.fileno()).st_size
            if isinstance(_content(file, self.path), Inflated):
                file.seek(-4, os.SEEK_END)
                if struct.unpack("<I", file.read(4))[0] == self.num_bytes % 2**32:
                    return
                file.seek(0)  # padding and several parts are allowed, so count the bytes
                num_found = len(Inflated(file).read(self.num_bytes))
        if num_found < self.num_bytes:
            raise ValueError(
                f"{self.path}: the file is cut off (expected {self.num_bytes} bytes, got {num_found}); fetch it again"
            )


def read_nifti_header(path: Path, with_extensions: bool = False) -> NiftiFile:
    """Read the header of a NIfTI file.

    Args:
        path: path of a regular file.
        with_extensions: keep the header's extensions too, to write another file like this one.
    Raises:
        ValueError: if it is not a NIfTI file, or announces sizes that no echocardiogram has.
    """
    import nibabel as nib

    with _readable(path):
        with path.open("rb") as file:
            source = _content(file, path)
            content = source.read(4)
            length = _HEADER_SIZES.get(bytes(content))
            if length is None:
                raise ValueError("it does not begin as a NIfTI header")
            content += source.read(length - 4)
            kind = nib.Nifti2Header if length == 540 else nib.Nifti1Header
            header = kind(bytes(content), check=True)
            if bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
                raise ValueError("its pixels lie in another file (.img); save both as one .nii.gz")
            offset = float(header["vox_offset"])
            if not 0 <= offset <= MAX_HEADER_BYTES:
                raise ValueError(
                    f"its pixels begin at byte {offset:g}; at most {MAX_HEADER_BYTES} are read before them"
                )
            if with_extensions:
                content += source.read(int(offset) - length)
                header = kind.from_fileobj(io.BytesIO(bytes(content)))
        num_axes = int(header["dim"][0])
        sizes = tuple(int(n) for n in header["dim"][1 : 1 + num_axes]) if 1 <= num_axes <= 7 else ()
        if not sizes:
            raise ValueError(f"its header has {num_axes} axes")
        header.get_data_dtype()
        is_colour = has_colour_axis(sizes, int(header["intent_code"]))
        shape = sizes[:-1] if is_colour else sizes
        axes = plane_axes(shape)
        grid = None if axes is None else _grid(header, shape, axes)
    first, second = axes or (0, 1)
    check_sizes(path, sizes, (sizes[first], [*sizes, 1, 1][second]))
    return NiftiFile(path, header, sizes, is_colour, grid)


def has_colour_axis(shape: tuple[int, ...], intent_code: int) -> bool:
    """Return whether the last axis of a NIfTI of numbers is colour: a fifth axis (that of vectors), or one that the intent code names."""
    is_three_or_four = len(shape) > 2 and shape[-1] in (3, 4)
    return is_three_or_four and (len(shape) == 5 or intent_code in _COLOUR_INTENTS)


def _grid(header: Any, shape: tuple[int, ...], axes: tuple[int, int]) -> Grid:
    """Return the grid of a header, in millimetres whatever its unit."""
    unit = _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    steps = [float(step) for step in header["pixdim"][1 : 1 + len(shape)]]
    steps[:3] = [step * unit for step in steps[:3]]
    affine = np.asarray(header.get_best_affine(), dtype=np.float64).copy()
    affine[:3] *= unit
    if int(header["sform_code"]) == int(header["qform_code"]) == 0:  # nibabel makes an affine from the spacing alone
        return Grid(shape, tuple(steps), affine, DisplayOrder(*axes), False)
    order, is_oriented = display_order(axes, affine)
    return Grid(shape, tuple(steps), affine, order, is_oriented)


def _content(file: BinaryIO, path: Path) -> Plain | Inflated:
    """Return the file's content, inflated if it begins as a gzip file does."""
    is_gzip = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not is_gzip and path.name.lower().endswith(".gz"):
        raise ValueError("it is not compressed by gzip though its name says so")
    return Inflated(file) if is_gzip else Plain(file)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn errors in reading a NIfTI file into one line with its path."""
    try:
        yield
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{path}: the file is cut off or damaged ({_one_line(error)}); fetch it again") from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # nibabel raises many kinds for a file that is not NIfTI
        raise ValueError(f"{path}: not a readable NIfTI image ({_one_line(error)}); fetch it again") from error


def _one_line(error: Exception) -> str:
    """Return the last line of an error's text, or the name of its class if the text is empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
