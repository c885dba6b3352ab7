"""Write a clip with the outlines of its label maps as derived ultrasound clip; everything outside the sector is black.

Only the sector of the source's picture is shown, so no text burned in around it; if the sector may hold text, the object says so. The
frames are grey, and the outlines have the structures' colours. Small objects are uncompressed, larger ones JPEG of high quality. Frames
without times, such as those of one beat's two phases, are a Secondary Capture; a clip is none, since OHIF takes one of 90 frames or more
for a video, which it then cannot play.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from synboost_monai.dicom import elements
from synboost_monai.dicom.uids import EXPLICIT, JPEG_BASELINE, ULTRASOUND_CLIP
from synboost_monai.dicom.writing.image import GREY_PIXELS, coded, dataset_of
from synboost_monai.dicom.writing.objects import (
    Provenance,
    Series,
    ascii_text,
    derived_uid,
    lossy_steps,
    number_of,
    own_attributes,
    quiet,
    reference_to,
    save,
    set_lossy_history,
    uid_of,
)
from synboost_monai.dicom.writing.seg import names_frames
from synboost_monai.files import atomic_path
from synboost_monai.structures import NUM_CLASSES, STRUCTURES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""SOP class Secondary Capture Image Storage, for one frame."""
MULTI_FRAME_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7.4"
"""SOP class Multi-frame True Color Secondary Capture Image Storage, for frames without times."""
JPEG_QUALITY = 90
"""Quality of JPEG, 1 to 100: the sector of a clip of 480 x 640 takes 26 kB a frame, about half of its source's."""
SERIES = Series(9103, "Left heart, outlined by a neural network")
"""Series of overlays."""
MAX_PLAIN_BYTES = 4 << 20
"""Largest pixel data in bytes that are not compressed as JPEG; every archive accepts uncompressed pixels."""
PIXELS_OF_LINE = 300
"""Pixels of the picture's longer side for each pixel of an outline's width: two pixels keep their colour in JPEG, which halves the
columns of colours."""


@dataclass(frozen=True)
class Display:
    """Say how the frames of an overlay are shown."""

    sector: NDArray[Any]
    """(h, w), True inside the sector (`sector.find_sector`); everything else becomes black."""
    has_text: bool | None = None
    """Whether there may be text within the sector (`sector.has_text`); None: not known."""
    spacing_mm: Sequence[float] | None = None
    """(row, column); decides whether pixels are square."""
    frame_times_ms: Sequence[float] | None = None
    """Time of each frame, for viewers; None if not known."""


def write_overlay(
    source_header: Dataset,
    windows: Iterable[tuple[NDArray[Any], NDArray[Any]]],
    frame_numbers: Sequence[int],
    path: str | os.PathLike[str],
    *,
    display: Display,
    provenance: Provenance,
) -> str:
    """Write frames of an ultrasound object with outlines.

    Args:
        source_header: header of the ultrasound object; it is not changed.
        windows: pairs of grey frames (T, h, w) uint8 and their label maps (T, h, w), one after the other.
        frame_numbers: numbers of all these frames in the source, counted from 1, rising.
        path: path of the file; written whole or not at all.
        display: sector, size of the pixels and times of the frames.
        provenance: provenance of the label maps.
    Returns:
        The SOP Instance UID.
    Raises:
        ValueError: if shapes, number types or the number of frames do not fit; nothing is written.
        NotUsableError: if the source lacks an identifier, or the file cannot be written.
    """
    sector, times = np.asarray(display.sector) > 0, display.frame_times_ms
    numbers = [int(number) for number in frame_numbers]
    if sector.ndim != 2 or not numbers or numbers[0] < 1 or any(b <= a for a, b in zip(numbers, numbers[1:])):
        raise ValueError("overlay.py: expected a sector (h, w) and rising frame numbers from 1")
    num_bytes = 3 * sector.size * len(numbers)
    is_jpeg = num_bytes > MAX_PLAIN_BYTES
    if times is not None and len(times) != len(numbers):
        raise ValueError(f"overlay.py: {len(times)} frame times for {len(numbers)} frames")
    with quiet():
        dataset = _describe(source_header, numbers, display, provenance)
        if is_jpeg:
            _set_jpeg(dataset)
        if len(numbers) > 1:
            _set_frame_times(dataset, times, numbers)
        dataset.BurnedInAnnotation = "NO" if display.has_text is False else "YES"
    pictures = _pictures(windows, sector, len(numbers))

    def write_tail(file: BinaryIO) -> None:
        if is_jpeg:
            _write_jpeg(file, pictures, len(numbers), num_bytes, lossy_steps(source_header))
        else:
            elements.write_native_pixels(file, num_bytes, pictures)

    save(dataset, path, write_tail, JPEG_BASELINE if is_jpeg else EXPLICIT)
    return str(dataset.SOPInstanceUID)


def write_overlay_png(
    grey: NDArray[Any],
    label_map: NDArray[Any],
    sector: NDArray[Any],
    path: str | os.PathLike[str],
    spacing_mm: Sequence[float] | None = None,
    longest_side: int = 320,
) -> None:
    """Write one frame with outlines as a small PNG with square pixels, black outside the sector and without metadata.

    Args:
        grey: (h, w) uint8.
        label_map: (h, w).
        sector: (h, w), True inside.
        path: path of the file; written whole or not at all.
        spacing_mm: (row, column).
        longest_side: longest side of the picture in pixels; smaller frames are not enlarged.
    """
    from PIL import Image

    height, width = (n * s for n, s in zip(grey.shape, spacing_mm or (1.0, 1.0)))
    scale = min(longest_side, max(grey.shape)) / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(
        Image.fromarray(np.where(sector, grey, 0).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    )
    labels = np.asarray(Image.fromarray(label_map.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    inside = np.asarray(Image.fromarray(np.asarray(sector).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0
    with atomic_path(path) as temporary:
        Image.fromarray(draw_outlines(small, labels, inside, 2)).save(temporary, format="PNG")


def draw_outlines(
    grey: NDArray[Any], label_map: NDArray[Any], sector: NDArray[Any], min_width: int = 1
) -> NDArray[np.uint8]:
    """Return a frame (h, w) as (h, w, 3) with its label map's outlines in the structures' colours, black outside `sector` (bool).

    An outline is as wide as `PIXELS_OF_LINE` says, and at least `min_width` pixels.
    """
    picture = np.empty((*grey.shape, 3), np.uint8)
    shown = np.where(sector, grey, 0)
    for channel in range(3):  # several times faster than all at once
        picture[..., channel] = shown
    width = max(min_width, round(max(grey.shape) / PIXELS_OF_LINE))
    for structure in STRUCTURES:
        mask = label_map == structure.class_index
        rows = np.flatnonzero(mask.any(axis=1))
        if not rows.size:
            continue
        mask = mask[rows[0] : rows[-1] + 1]
        columns = np.flatnonzero(mask.any(axis=0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        mask = mask[:, box[1]]
        inner = np.pad(mask, width)
        for _ in range(width):
            inner[1:-1, 1:-1] &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        edge = mask & sector[box] & ~inner[width:-width, width:-width]
        picture[box][edge] = structure.colour
    return picture


def _pictures(
    windows: Iterable[tuple[NDArray[Any], NDArray[Any]]], sector: NDArray[np.bool_], num_frames: int
) -> Iterator[NDArray[np.uint8]]:
    count = 0
    for grey, label_maps in windows:
        if grey.dtype != np.uint8 or grey.shape[1:] != sector.shape or label_maps.shape != grey.shape:
            raise ValueError(
                f"overlay.py: expected grey uint8 frames and label maps (T, {sector.shape[0]}, {sector.shape[1]}), "
                f"got {grey.shape} {grey.dtype} and {label_maps.shape}"
            )
        if label_maps.size and not 0 <= int(label_maps.min()) <= int(label_maps.max()) < NUM_CLASSES:
            raise ValueError(f"overlay.py: classes 0 to {NUM_CLASSES - 1} were expected, got others")
        count += len(grey)
        if count > num_frames:
            break
        for frame, label_map in zip(grey, label_maps):
            yield draw_outlines(frame, label_map, sector)
    if count != num_frames:
        raise ValueError(
            f"overlay.py: {num_frames} frame numbers, but {'more' if count > num_frames else count} frames came"
        )


def _set_jpeg(dataset: Dataset) -> None:
    """Say that an object's pixels are JPEG; pixels of other values are another object, with another UID (PS3.3 C.7.6.1.1.5)."""
    dataset.SOPInstanceUID = derived_uid(str(dataset.SOPInstanceUID), f"JPEG {JPEG_QUALITY}")
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    dataset.DerivationDescription = f"JPEG of quality {JPEG_QUALITY}. {dataset.DerivationDescription}"[:1024]
    dataset.LossyImageCompression = "01"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if keyword in dataset:
            delattr(dataset, keyword)  # `_write_jpeg` writes them


def _write_jpeg(
    file: BinaryIO,
    pictures: Iterable[NDArray[np.uint8]],
    num_frames: int,
    num_bytes: int,
    earlier: tuple[list[str], list[str]],
) -> None:
    """Write frames as JPEG, after the ratios and methods of all lossy compressions; the last ratio is filled in when it is known."""
    from PIL import Image

    ratios, methods = earlier
    width = 8
    file.write(elements.element(0x00282112, "DS", "\\".join([*ratios, " " * width])))
    end_of_ratio = file.tell()
    file.write(elements.element(0x00282114, "CS", "\\".join([*methods, "ISO_10918_1"])))
    pixels = elements.EncapsulatedPixels(file, num_frames)
    num_compressed = 0
    for picture in pictures:
        frame = io.BytesIO()
        Image.fromarray(picture).save(frame, format="JPEG", quality=JPEG_QUALITY, subsampling="4:2:2")
        pixels.add(frame.getvalue())
        num_compressed += len(frame.getvalue())
    pixels.close()
    file.seek(end_of_ratio - width)
    file.write(f"{num_bytes / max(num_compressed, 1):{width}.4g}".encode("ascii"))
    file.seek(0, os.SEEK_END)


def _describe(source: Dataset, numbers: Sequence[int], display: Display, provenance: Provenance) -> Dataset:
    """Return the whole object except its pixels and frame times."""
    instance, sop_class = uid_of(source, "SOPInstanceUID"), uid_of(source, "SOPClassUID")
    identity = (instance, provenance.key, *SERIES.key, SERIES.description, *map(str, numbers), "overlay")
    (rows, columns), spacing_mm = np.shape(display.sector), display.spacing_mm
    reference = reference_to(source)
    if names_frames(sop_class, numbers) and len(numbers) != number_of(source, "NumberOfFrames", 1):  # else: all frames
        reference.ReferencedFrameNumber = list(numbers)
    reference.PurposeOfReferenceCodeSequence = [coded("121322", "Source image for image processing operation", "DCM")]
    about = {
        **own_attributes(source, provenance, SERIES),
        **GREY_PIXELS,
        "SOPClassUID": MULTI_FRAME_SECONDARY_CAPTURE if len(numbers) > 1 else SECONDARY_CAPTURE,
        "ConversionType": "WSD",
        "SOPInstanceUID": derived_uid(*identity),
        "Modality": "US",
        "SeriesInstanceUID": derived_uid(*identity, "series"),
        "ImageType": ["DERIVED", "SECONDARY"],
        "BodyPartExamined": "HEART",
        "PatientOrientation": "",
        "DerivationDescription": ascii_text(
            f"Sector in grey, outlines of {', '.join(s.name for s in STRUCTURES)} by {provenance.model} "
            + "; ".join(f"{name} {value}" for name, value in provenance.parameters().items())
        )[:1024],
        "SourceImageSequence": [reference],
        "ImageComments": "Outlined by software, not verified by a physician",
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "RGB",
        "PlanarConfiguration": 0,
        "Rows": rows,
        "Columns": columns,
    }
    if len(numbers) > 1 and display.frame_times_ms is not None:
        about["SOPClassUID"] = ULTRASOUND_CLIP
        del about["ConversionType"]  # of secondary captures
    dataset = dataset_of(**about)
    set_lossy_history(dataset, source)
    if spacing_mm is not None and abs(spacing_mm[0] / spacing_mm[1] - 1) > 1e-3:
        dataset.PixelAspectRatio = [round(1000 * spacing_mm[0] / spacing_mm[1]), 1000]
    if len(numbers) > 1:
        dataset.NumberOfFrames = len(numbers)
    return dataset


def _set_frame_times(dataset: Dataset, frame_times_ms: Sequence[float] | None, numbers: Sequence[int]) -> None:
    """Set the time between frames: one number if it is even, else each; frames without times are marked as pages."""
    if frame_times_ms is None:
        dataset.PageNumberVector = list(numbers)
        dataset.FrameIncrementPointer = 0x00182001
        return
    gaps = np.diff(np.asarray(frame_times_ms, np.float64))
    if np.ptp(gaps) <= 0.01 * abs(float(gaps.mean())):
        dataset.FrameTime = f"{gaps.mean():.6g}"
        dataset.FrameIncrementPointer = 0x00181063
    else:
        dataset.FrameTimeVector = ["0", *(f"{gap:.6g}" for gap in gaps)]
        dataset.FrameIncrementPointer = 0x00181065
