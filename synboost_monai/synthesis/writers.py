"""Write the files of a synthetic data set, each whole or not at all: NIfTI, PNG and DICOM pairs, streamed JSON, contact sheet.

Every file depends only on its content, without a clock or a random number, so two processes that write it write the same bytes.
A full disk and similar errors are reported in one line that names the file.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synboost_monai.files import atomic_path, read_plane
from synboost_monai.prompts.attributes import shape_of_mask
from synboost_monai.records import SHAPES, EchoRecord
from synboost_monai.structures import STRUCTURES
from synboost_monai.transforms.label_map_array import colour_sector_label_map, sector_label_map

SUFFIX_OF_FORMAT = {"png": ".png", "dicom": ".dcm", "nifti": ".nii.gz"}
"""Format -> end of the file names; in the order of writing: the NIfTI image is last, so that it marks a complete pair."""
IMAGE_FOLDER, LABEL_FOLDER = "images", "labels"
"""Folders of a synthetic data set."""

_SHAPE_MARK = "shape "  # beginning of the description in a label map's header
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class SyntheticWriter:
    """Write pairs of image and label map to `output_dir/images` and `output_dir/labels`.

    Args:
        output_dir: the data set's folder.
        formats: any of nifti, png, dicom; as text joined by `+`. NIfTI is always written.
        write_dicom: `dicom.write_dicom_pair`, given by the config, so that this room does not import `dicom`.
    Raises:
        ValueError: if a format is unknown, or dicom is wanted without `write_dicom`.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        formats: str | Sequence[str] = "nifti",
        write_dicom: Callable[..., None] | None = None,
    ) -> None:
        wanted = formats.strip("[]").replace(",", "+").split("+") if isinstance(formats, str) else list(formats)
        wanted = [word.strip() for word in wanted]
        for word in wanted:
            if word not in SUFFIX_OF_FORMAT:
                raise ValueError(f"writers.py: formats has {word!r}; expected of nifti, png, dicom")
        if "dicom" in wanted and write_dicom is None:
            raise ValueError(
                "writers.py: formats has dicom but no write_dicom; give synboost_monai.dicom.write_dicom_pair"
            )
        self.output_dir = Path(output_dir)
        self.other_formats = [name for name in SUFFIX_OF_FORMAT if name in wanted and name != "nifti"]
        self.write_dicom = write_dicom

    def image_path(self, name: str, file_format: str = "nifti") -> Path:
        """Return the path of an image."""
        return self.output_dir / IMAGE_FOLDER / f"{name}{SUFFIX_OF_FORMAT[file_format]}"

    def label_path(self, name: str, file_format: str = "nifti") -> Path:
        """Return the path of a label map."""
        return self.output_dir / LABEL_FOLDER / f"{name}{SUFFIX_OF_FORMAT[file_format]}"

    def names_on_disk(self, file_format: str = "nifti") -> set[str]:
        """Return the names whose image exists in a format; in NIfTI, those whose pair is complete."""
        suffix = SUFFIX_OF_FORMAT[file_format]
        try:
            with os.scandir(self.output_dir / IMAGE_FOLDER) as entries:
                names = (entry.name for entry in entries)
                return {name.removesuffix(suffix) for name in names if name.endswith(suffix) and name[0] != "."}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def write(
        self,
        name: str,
        image: np.ndarray,
        label_map: np.ndarray,
        spacing_mm: tuple[float, float],
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one pair in all formats.

        Args:
            name: file name without suffix.
            image: (H, W) uint8.
            label_map: (H, W) uint8, 0..3; its shape words are noted in the NIfTI header, from which `shape_words` reads them.
            spacing_mm: (row, column).
            attributes: patient, view, phase, sex and age, if known.
        Raises:
            ValueError: if a file cannot be written, for example because the disk is full.
        """
        spacing_mm = (float(np.float32(spacing_mm[0])), float(np.float32(spacing_mm[1])))  # as NIfTI stores it
        for file_format in self.other_formats:
            self._write_other(file_format, name, image, label_map, spacing_mm, attributes)
        words = ",".join(_shape_words(label_map, spacing_mm).get(s.name, "-") for s in STRUCTURES)
        write_nifti(label_map, spacing_mm, self.label_path(name), description=_SHAPE_MARK + words)
        write_nifti(image, spacing_mm, self.image_path(name))

    def add_formats(self, names: Iterable[str], attributes_of: Callable[[str], Mapping[str, Any]]) -> None:
        """Write the other formats of pairs that exist only as NIfTI.

        Args:
            names: names of the pairs; those without a NIfTI image are skipped.
            attributes_of: returns the attributes that `write` takes.
        """
        if not self.other_formats:
            return
        complete = self.names_on_disk()
        present = {file_format: self.names_on_disk(file_format) for file_format in self.other_formats}
        for name in names:
            wanted = [file_format for file_format in self.other_formats if name not in present[file_format]]
            if name not in complete or not wanted:
                continue
            image, label = read_plane(self.image_path(name)), read_plane(self.label_path(name))
            for file_format in wanted:
                self._write_other(file_format, name, image.pixels, label.pixels, label.spacing_mm, attributes_of(name))

    def _write_other(
        self,
        file_format: str,
        name: str,
        image: np.ndarray,
        label_map: np.ndarray,
        spacing_mm: tuple[float, float],
        attributes: Mapping[str, Any] | None,
    ) -> None:
        """Write a pair in a format other than NIfTI; the image last."""
        image_path, label_path = self.image_path(name, file_format), self.label_path(name, file_format)
        if file_format == "png":
            for pixels, path in ((label_map, label_path), (image, image_path)):
                write_png(pixels, spacing_mm, path)
            return
        keys = ("patient", "view", "phase", "sex", "age")
        known = {key: value for key, value in (attributes or {}).items() if key in keys and value is not None}
        record = EchoRecord(image_path, label_path, **{"patient": name, **known})
        assert self.write_dicom is not None  # checked in the constructor
        with explained(image_path):
            self.write_dicom(record, np.ascontiguousarray(image), label_map, spacing_mm, name=name)


def write_nifti(
    pixels: np.ndarray, spacing_mm: tuple[float, float], path: str | os.PathLike[str], description: str = ""
) -> None:
    """Write a 2-D image as CAMUS stores it: (x, y), spacing in the header, x to the patient's left and y to the back.

    Args:
        pixels: (H, W) in display order.
        spacing_mm: (row, column).
        path: ends in .nii.gz; written whole or not at all.
        description: text for the header, at most 79 characters.
    """
    import nibabel as nib

    image = nib.Nifti1Image(pixels.T, np.diag([-spacing_mm[1], -spacing_mm[0], 1.0, 1.0]))
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()
    with explained(path), atomic_path(path) as temporary:
        nib.save(image, temporary)


def write_png(pixels: np.ndarray, spacing_mm: tuple[float, float], path: str | os.PathLike[str]) -> None:
    """Write a 2-D image as an 8-bit grey PNG, whole or not at all; of a label map, the grey levels are the class indices.

    Args:
        pixels: (H, W) uint8.
        spacing_mm: (row, column), stored as the picture's resolution.
        path: ends in .png.
    """
    from PIL import Image

    with explained(path), atomic_path(path) as temporary:
        picture = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8))
        picture.save(temporary, dpi=(25.4 / spacing_mm[1], 25.4 / spacing_mm[0]))


def shape_words(label_path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the shape word of each structure of a label map, from its NIfTI header, or measured if the header lacks it."""
    import nibabel as nib

    description = bytes(nib.load(label_path).header["descrip"]).rstrip(b"\0").decode("latin-1")
    words = description.removeprefix(_SHAPE_MARK).split(",")
    is_noted = description.startswith(_SHAPE_MARK) and len(words) == len(STRUCTURES) and {*words} <= {*SHAPES, "-"}
    if not is_noted:
        plane = read_plane(label_path)
        return _shape_words(plane.pixels, plane.spacing_mm)
    return {structure.name: word for structure, word in zip(STRUCTURES, words) if word != "-"}


def _shape_words(label_map: np.ndarray, spacing_mm: tuple[float, float]) -> dict[str, str]:
    words = {s.name: shape_of_mask(label_map == s.class_index, spacing_mm) for s in STRUCTURES}
    return {name: word for name, word in words.items() if word}


def write_json(path: str | os.PathLike[str], head: Mapping[str, Any], lists: Mapping[str, Iterable[Any]]) -> None:
    """Write a JSON object with long lists, one item per line, without holding a list in memory; whole or not at all.

    Args:
        path: the file.
        head: keys that come first, with their values.
        lists: key -> items, which may be generators.
    """
    with explained(path), atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        separator = "{\n"
        for key, value in head.items():
            text = json.dumps(value, indent=1, ensure_ascii=False).replace("\n", "\n ")
            file.write(f"{separator} {json.dumps(key)}: {text}")
            separator = ",\n"
        for key, items in lists.items():
            file.write(f"{separator} {json.dumps(key)}: [")
            separator = ",\n"
            end, between = "]", "\n  "
            for item in items:
                file.write(between + json.dumps(item, ensure_ascii=False))
                end, between = "\n ]", ",\n  "
            file.write(end)
        file.write("\n}\n")


def write_contact_sheet(path: str | os.PathLike[str], pairs: Sequence[tuple[Path, Path]]) -> None:
    """Draw some pairs (image, label map) of one size; columns: label map, image, both."""
    from matplotlib import image as pictures

    rows = []
    for image_path, label_path in pairs:
        image, label_map = read_plane(image_path).pixels, read_plane(label_path).pixels
        grey = np.repeat(image[..., None], 3, axis=-1)
        colours = colour_sector_label_map(sector_label_map(label_map, np.ones(label_map.shape, dtype=bool)))
        blend = np.where(label_map[..., None] > 0, 0.6 * grey + 0.4 * colours, grey).astype(np.uint8)
        rows.append(np.hstack([colours, grey, blend]))
    height, width = (max(row.shape[axis] for row in rows) for axis in (0, 1))  # merged sets may differ in size
    rows = [np.pad(row, [(0, height - row.shape[0]), (0, width - row.shape[1]), (0, 0)]) for row in rows]
    num_columns = max(1, round(len(rows) ** 0.5 / 1.7))  # tiles are three images wide
    rows += [np.zeros_like(rows[0])] * (-len(rows) % num_columns)
    sheet = np.vstack([np.hstack(rows[i : i + num_columns]) for i in range(0, len(rows), num_columns)])
    with explained(path), atomic_path(path) as temporary:
        pictures.imsave(temporary, sheet)


@contextlib.contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn a system error while a file is written into one line that says what to do.

    Raises:
        ValueError: for an OSError in the block.
    """
    try:
        yield
    except OSError as error:
        reason = (
            "the disk is full; free some space"
            if error.errno in _FULL
            else f"cannot be written ({error.strerror or error}); make the folder writable"
        )
        raise ValueError(
            f"{path}: {reason} and run the same command again, it goes on with what is missing (no half file was left)"
        ) from error
