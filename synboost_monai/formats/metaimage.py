"""Read MetaImage files (.mha; .mhd with its pixels in a file beside it) with our own parser.

ITK's reader opens any file that a header names: any path, a list of files, a pattern of names. So it never gets a sender's header.
Here only the name of a data file counts, and the file must be beside the header.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synboost_monai.formats.bounded import MAX_HEADER_BYTES, MAX_PLANE_PIXELS, Inflated, Plain, check_sizes
from synboost_monai.formats.grid import Grid, display_order, plane_axes

_DTYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
"""Element type of a MetaImage -> dtype of NumPy; a long has four bytes, as in ITK."""
_SYNONYMS = {
    "Position": "Offset",
    "Origin": "Offset",
    "Rotation": "TransformMatrix",
    "Orientation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
"""Synonyms of keys."""
_KEYS = {
    *_SYNONYMS,
    "NDims",
    "DimSize",
    "ElementType",
    "ElementNumberOfChannels",
    "ElementSpacing",
    "ElementSize",
    "Offset",
    "TransformMatrix",
    "BinaryData",
    "BinaryDataByteOrderMSB",
    "CompressedData",
    "HeaderSize",
    "ElementDataFile",
}
"""Keys that describe the pixels and their place; each may occur once."""
_MAX_AXES = 5
_MAX_DIGITS = 32
"""Most bytes of one number if pixels are written as text."""


@dataclass(frozen=True)
class MetaImageFile:
    """Hold the header of a MetaImage."""

    path: Path
    data_path: Path
    """File that holds the pixels: the file itself, or the one beside it."""
    offset: int
    """Offset of the pixels in `data_path`, in bytes; -1: they are its last `num_bytes` bytes."""
    sizes: tuple[int, ...]
    """Sizes of the axes, (x, y, ...)."""
    dtype: np.dtype[Any]
    num_channels: int
    is_compressed: bool
    is_text: bool
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: NDArray[np.float64]
    """Matrix of directions, one column per axis."""

    @property
    def num_bytes(self) -> int:
        """Length of the inflated pixels, in bytes."""
        return math.prod(self.sizes) * self.num_channels * self.dtype.itemsize

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes as stored, (x, y, ...), without colours."""
        return self.sizes

    @property
    def is_colour(self) -> bool:
        return self.num_channels > 1

    @property
    def is_real(self) -> bool:
        """Whether the pixels are real numbers, or colours."""
        return True

    def scaling(self) -> tuple[float, float]:
        """Return the (slope, intercept) of the values; those of a header are ignored, as in ITK."""
        return 1.0, 0.0

    @property
    def grid(self) -> Grid | None:
        """Grid of the planes; None if the image is neither a plane nor planes over time."""
        axes = plane_axes(self.sizes)
        if axes is None:
            return None
        num_axes = min(len(self.sizes), 3)  # (x, y, 1, t): an affine has no column for the time
        affine = np.eye(4)
        affine[:num_axes, :num_axes] = self.direction[:num_axes, :num_axes] @ np.diag(self.spacing[:num_axes])
        affine[:num_axes, 3] = self.origin[:num_axes]
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # ITK's axes are left, posterior, superior
        order, is_oriented = display_order(axes, affine)
        return Grid(self.sizes, self.spacing, affine, order, is_oriented)

    def check_length(self) -> None:
        """Refuse a file that is cut off, by its size alone; compressed and text files are not checked.

        Raises:
            ValueError: if the file is cut off.
        """
        num_found = self.data_path.stat().st_size - max(self.offset, 0)
        if not self.is_compressed and not self.is_text and num_found < self.num_bytes:
            raise ValueError(self._cut_off(self.num_bytes, num_found))

    def read(self) -> NDArray[Any]:
        """Read the array as it is stored, (x, y, ...), with colours as the last axis.

        Raises:
            ValueError: if the file is cut off or damaged.
        """
        self.check_length()
        count = math.prod(self.sizes) * self.num_channels
        if self.is_text and count > MAX_PLANE_PIXELS:
            raise ValueError(f"{self.path}: {count:,} pixels written as text are too many; save them in binary form")
        num_wanted = count * _MAX_DIGITS if self.is_text else self.num_bytes
        try:
            with self.data_path.open("rb") as file:
                file.seek(self.offset if self.offset >= 0 else max(os.fstat(file.fileno()).st_size - self.num_bytes, 0))
                source = Inflated(file, is_one_part=True) if self.is_compressed else Plain(file)
                content = source.read(num_wanted)
                source.finish()
            if self.is_text:
                values = np.fromstring(content.decode("latin-1"), "f8", count, sep=" ").astype(self.dtype)
            elif len(content) < num_wanted:
                raise ValueError(f"expected {num_wanted} bytes, got {len(content)}")
            else:
                values = np.frombuffer(content, self.dtype, count)
        except (EOFError, ValueError, zlib.error) as error:
            raise ValueError(f"{self.path}: not a readable MetaImage ({error}); fetch it again") from error
        if len(values) < count:
            raise ValueError(self._cut_off(count, len(values)))
        values = values.astype(self.dtype.newbyteorder("="), copy=False)
        if self.num_channels == 1:
            return values.reshape(self.sizes, order="F")
        return np.moveaxis(values.reshape((self.num_channels, *self.sizes), order="F"), 0, -1)

    def _cut_off(self, expected: int, found: int) -> str:
        what = (
            f"the file is cut off (expected {expected} {'numbers' if self.is_text else 'bytes'}, got {max(found, 0)})"
        )
        where = self.data_path if self.data_path != self.path else f"{self.path}: not a readable MetaImage"
        return f"{where}: {what}; fetch it again"


def read_metaimage_header(path: Path) -> MetaImageFile:
    """Read the header of a MetaImage, and find its pixels: in the file itself, or in the data file beside it.

    A path in ElementDataFile is often that of another machine; only its last part is looked for. Lists and patterns of files, and
    links that leave the folder, are refused.

    Args:
        path: path of a regular file.
    Raises:
        FileNotFoundError: if the data file is missing.
        ValueError: if it is not a MetaImage that is read here, names another file, or announces sizes that no echocardiogram has.
    """
    keys, header_length = _keys(path)
    try:
        sizes = tuple(int(word) for word in keys["DimSize"].split())
        num_channels = int(keys.get("ElementNumberOfChannels", "1"))
        num_axes = int(keys.get("NDims", len(sizes)))
        header_size = int(keys.get("HeaderSize", "0"))
    except ValueError as error:
        raise ValueError(
            f"{path}: NDims, DimSize, HeaderSize or ElementNumberOfChannels in the header is no number; fetch it again"
        ) from error
    if len(sizes) != num_axes or not 2 <= num_axes <= _MAX_AXES:
        raise ValueError(
            f"{path}: not a readable MetaImage (expected 2 to {_MAX_AXES} axes, got NDims {num_axes} and DimSize {sizes}); fetch it again"
        )
    if num_channels not in (1, 3, 4):
        raise ValueError(
            f"{path}: expected 1 channel (grey), 3 (colour) or 4 (colour and alpha), got {num_channels}; save it in grey"
        )
    first, second = plane_axes(sizes) or (0, 1)
    check_sizes(path, (*sizes, num_channels), (sizes[first], sizes[second]))
    element_type = keys["ElementType"].removesuffix("_ARRAY")
    if element_type not in _DTYPES:
        raise ValueError(f"{path}: not a readable MetaImage (ElementType is {element_type[:40]!r}); fetch it again")
    data_path = _data_path(path, keys["ElementDataFile"])
    spacing = _numbers(path, keys, "ElementSpacing" if "ElementSpacing" in keys else "ElementSize", [1.0] * num_axes)
    matrix = _numbers(path, keys, "TransformMatrix", np.eye(num_axes).ravel().tolist())
    file = MetaImageFile(
        path=path,
        data_path=data_path,
        offset=header_size or (header_length if data_path == path else 0),
        sizes=sizes,
        dtype=np.dtype((">" if _is_true(keys, "BinaryDataByteOrderMSB") else "<") + _DTYPES[element_type]),
        num_channels=num_channels,
        is_compressed=_is_true(keys, "CompressedData"),
        is_text=not _is_true(keys, "BinaryData", True),
        spacing=tuple(spacing),
        origin=tuple(_numbers(path, keys, "Offset", [0.0] * num_axes)),
        direction=np.array(matrix).reshape(num_axes, num_axes).T,
    )
    if header_size < -1 or (header_size == -1 and (file.is_compressed or file.is_text)):
        raise ValueError(f"{path}: not a readable MetaImage (HeaderSize is {header_size}); fetch it again")
    return file


def check_for_other_readers(path: Path) -> None:
    """Refuse a MetaImage whose pixels ITK, through a reader of MONAI, might read from another place than we do.

    Raises:
        FileNotFoundError, ValueError: as `read_metaimage_header`; or if the data file is not named exactly once, as a plain name.
    """
    file, (keys, length) = read_metaimage_header(path), _keys(path)
    with path.open("rb") as opened:
        num_named = opened.read(length).lower().count(b"elementdatafile")
    if num_named != 1 or (file.data_path != path and keys["ElementDataFile"] != file.data_path.name):
        raise ValueError(
            f"{path}: expected LOCAL or the plain name of the file beside the header as its one ElementDataFile; save the image as "
            "one .mha file"
        )


def _keys(path: Path) -> tuple[dict[str, str], int]:
    """Return the keys of a header, up to ElementDataFile, which is the last, and the header's length in bytes."""
    keys: dict[str, str] = {}
    with path.open("rb") as file:
        while "ElementDataFile" not in keys:
            line = file.readline(MAX_HEADER_BYTES - file.tell())
            key, equals, value = (part.strip() for part in line.decode("latin-1").partition("="))
            if not equals:  # a line of another kind, the end, or too long a header
                break
            if key in keys and key in _KEYS:
                raise ValueError(f"{path}: not a readable MetaImage ({key} stands in its header twice); fetch it again")
            keys[key] = value
        length = file.tell()
    if not {"DimSize", "ElementType", "ElementDataFile"} <= keys.keys():
        raise ValueError(
            f"{path}: not a MetaImage header (DimSize, ElementType or ElementDataFile is missing); fetch it again"
        )
    return {_SYNONYMS.get(key, key): value for key, value in keys.items()}, length


def _data_path(path: Path, name: str) -> Path:
    """Return the file that holds the pixels: the header's own file, or the named one beside it.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it is not one plain file beside the header.
    """
    if name.upper() == "LOCAL":
        return path
    plain = re.split(r"[/\\]", name)[-1]
    plain = re.sub(r"^[A-Za-z]:", "", plain)
    if plain in ("", ".", "..") or "\0" in plain or "%" in plain or re.match(r"LIST\b", name):
        raise ValueError(
            f"{path}: expected LOCAL or the name of one file beside the header as ElementDataFile, got {name[:80]!r}; save the "
            "image as one .mha file"
        )
    data_path = path.with_name(plain)
    if not data_path.is_file():
        raise FileNotFoundError(
            f"{path}: its data file {plain} is missing beside it; put it there, or save the image as one .mha file"
        )
    real = os.path.dirname(os.path.realpath(data_path))
    if real not in (os.path.realpath(path.parent), os.path.dirname(os.path.realpath(path))):
        raise ValueError(
            f"{path}: its data file {plain} is a link to another folder; put the file itself beside the header"
        )
    return data_path


def _numbers(path: Path, keys: dict[str, str], key: str, otherwise: list[float]) -> list[float]:
    """Return the numbers of a key, as many as `otherwise` has; `otherwise` if the key is missing."""
    if key not in keys:
        return otherwise
    try:
        found = [float(word) for word in keys[key].split()]
    except ValueError as error:
        raise ValueError(f"{path}: not a readable MetaImage ({key} holds no numbers); fetch it again") from error
    if len(found) != len(otherwise) or not np.isfinite(found).all():
        raise ValueError(
            f"{path}: not a readable MetaImage (expected {len(otherwise)} numbers as {key}, got {len(found)}); fetch it again"
        )
    return found


def _is_true(keys: dict[str, str], key: str, otherwise: bool = False) -> bool:
    """Return whether a key is true by its first letter, as ITK reads it; `otherwise` if it is missing or empty."""
    return keys[key][:1] in ("T", "t", "1") if keys.get(key) else otherwise
