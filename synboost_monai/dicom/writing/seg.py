"""Write label maps of a clip as DICOM Segmentation, in which each frame names its source frame and object.

highdicom cannot make a segmentation of an ultrasound clip, which has no frame of reference; neither that nor plane positions are made
up here. highdicom describes the segments, codes and equipment on a template of one frame; the groups of each frame and the pixels are
written frame by frame, so that memory does not grow with the clip.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from synboost_monai.dicom import elements
from synboost_monai.dicom.uids import DEFLATED, EXPLICIT, MULTI_FRAME_CAPTURES, ULTRASOUND_CLIPS, ULTRASOUND_IMAGE
from synboost_monai.dicom.writing.image import dataset_of
from synboost_monai.dicom.writing.objects import (
    MANUFACTURER,
    MAX_PIXEL_BYTES,
    Provenance,
    Series,
    ascii_text,
    builder_options,
    derived_uid,
    evidence_of,
    number_of,
    quiet,
    save,
    set_lossy_history,
    settle,
    uid_of,
)
from synboost_monai.structures import NUM_CLASSES, STRUCTURES, Structure

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

SEGMENTATION_TYPES = ("BINARY", "LABELMAP")
"""BINARY: a frame of bits for each frame and structure, which every archive and viewer accepts. LABELMAP: one frame of class indices
for each frame, in a newer SOP class that many archives do not know yet."""
MAX_PLAIN_BYTES = 1 << 20
"""Largest pixel data in bytes that are not compressed; every archive accepts uncompressed pixels."""
NOMINAL_ORIENTATION = [1, 0, 0, 0, 1, 0]
"""Orientation in the patient that stands for the unknown one of an ultrasound plane: OHIF from 3.13 shows a segmentation only with one.
It is no fact, so it is written on demand alone; OHIF 3.12 then draws the structures of all frames on each."""
PLANE_THICKNESS_MM = "0.001"
"""Slice Thickness beside it: readers take no pixel size without one, and the standard forbids zero. It is so thin that nobody takes a
sum of voxels for a volume."""
SERIES = Series(9101, "Left heart, segmented by a neural network")
"""Series of segmentations."""


def write_segmentation(
    source_header: Dataset,
    label_maps: NDArray[Any] | Iterable[NDArray[Any]],
    frame_numbers: Sequence[int],
    path: str | os.PathLike[str],
    *,
    provenance: Provenance,
    segmentation_type: str = "BINARY",
    nominal_spacing_mm: Sequence[float] | None = None,
) -> str:
    """Write a segmentation of some or all frames of an ultrasound object.

    Every frame is kept, also if nothing was found in it. Segments 1, 2 and 3 are the classes 1, 2 and 3, described with their SNOMED
    codes, the algorithm, its weights and its prompts, and an identifier that is the same in every segmentation of one source and model.

    Args:
        source_header: header of the ultrasound object; it is not changed.
        label_maps: (T, Rows, Columns), classes 0..3, of the whole frame; or windows of it, one after the other.
        frame_numbers: T numbers of the source's frames, counted from 1, rising.
        path: path of the file; written whole or not at all.
        provenance: provenance of the label maps.
        segmentation_type: BINARY or LABELMAP.
        nominal_spacing_mm: (row, column) size of the source's pixels, to be stated with `NOMINAL_ORIENTATION`; None: neither.
    Returns:
        The SOP Instance UID.
    Raises:
        ValueError: if frames, shape or classes do not fit; nothing is written.
        NotUsableError: if the source lacks an identifier, or the file cannot be written.
    """
    if segmentation_type not in SEGMENTATION_TYPES:
        raise ValueError(f"seg.py: expected one of {', '.join(SEGMENTATION_TYPES)}, got {segmentation_type!r}")
    shape = (number_of(source_header, "Rows", 0), number_of(source_header, "Columns", 0))
    frame_numbers = _checked_numbers(frame_numbers, number_of(source_header, "NumberOfFrames", 1))
    is_binary = segmentation_type == "BINARY"
    num_frames = len(frame_numbers) * (len(STRUCTURES) if is_binary else 1)
    num_bytes = (num_frames * shape[0] * shape[1] + 7) // 8 if is_binary else num_frames * shape[0] * shape[1]
    if num_bytes > MAX_PIXEL_BYTES:
        raise ValueError(
            f"seg.py: {len(frame_numbers)} frames of {shape[0]} x {shape[1]} need {num_bytes} bytes, more than one DICOM object "
            "holds (4 GB); write fewer frames to each"
        )
    dataset = _template(source_header, frame_numbers, provenance, segmentation_type)
    dataset.SharedFunctionalGroupsSequence = [_shared_groups(nominal_spacing_mm)]
    dataset.NumberOfFrames = num_frames
    dataset.Rows, dataset.Columns = shape
    windows = _checked_windows(label_maps, shape, len(frame_numbers))

    def write_tail(file: BinaryIO) -> None:
        _write_frame_groups(file, source_header, frame_numbers, is_binary)
        elements.write_native_pixels(file, num_bytes, _packed(windows) if is_binary else windows)

    save(dataset, path, write_tail, EXPLICIT if num_bytes <= MAX_PLAIN_BYTES else DEFLATED)
    return str(dataset.SOPInstanceUID)


def names_frames(sop_class: str, frame_numbers: Sequence[int]) -> bool:
    """Return whether a reference to these frames gives their numbers.

    It does so for a clip, and for an object of a single-frame class that has several frames against the standard, since nothing else
    would tell them apart.
    """
    return sop_class in ULTRASOUND_CLIPS or sop_class in MULTI_FRAME_CAPTURES or max(frame_numbers) > 1


def _checked_numbers(frame_numbers: Sequence[int], num_source_frames: int) -> list[int]:
    numbers = [int(number) for number in frame_numbers]
    if (
        not numbers
        or any(b <= a for a, b in zip(numbers, numbers[1:]))
        or numbers[0] < 1
        or numbers[-1] > num_source_frames
    ):
        raise ValueError(
            f"seg.py: expected rising frame numbers from 1 to {num_source_frames}, got {len(numbers)} numbers"
            + (f" from {numbers[0]} to {numbers[-1]}" if numbers else "")
        )
    return numbers


def _checked_windows(
    label_maps: NDArray[Any] | Iterable[NDArray[Any]], shape: tuple[int, int], num_frames: int
) -> Iterator[NDArray[np.uint8]]:
    """Yield windows (T, Rows, Columns) of class indices, and check that they have as many frames as announced."""
    count = 0
    for window in [label_maps] if isinstance(label_maps, np.ndarray) else label_maps:
        window = np.asarray(window)
        if window.ndim != 3 or window.shape[1:] != shape or window.dtype.kind not in "biu":
            raise ValueError(
                f"seg.py: expected integer label maps of the whole frame, (T, {shape[0]}, {shape[1]}), "
                f"got {window.shape} {window.dtype}"
            )
        if window.size and not 0 <= int(window.min()) <= int(window.max()) < NUM_CLASSES:
            raise ValueError(
                f"seg.py: classes 0 to {NUM_CLASSES - 1} were expected, got {int(window.min())} to {int(window.max())}"
            )
        count += len(window)
        if count > num_frames:
            break
        yield np.ascontiguousarray(window, dtype=np.uint8)
    if count != num_frames:
        raise ValueError(
            f"seg.py: {num_frames} frame numbers, but {'more' if count > num_frames else count} label maps came"
        )


def _packed(windows: Iterable[NDArray[np.uint8]]) -> Iterator[bytes]:
    """Yield the bits of each frame's structures: lowest bit first, continuing from frame to frame (PS3.5 8.1.1)."""
    classes = np.array([structure.class_index for structure in STRUCTURES], np.uint8)
    rest = np.zeros(0, dtype=bool)
    for window in windows:
        for label_map in window:
            bits = np.concatenate([rest, (label_map[None] == classes[:, None, None]).ravel()])
            whole = len(bits) // 8 * 8
            yield np.packbits(bits[:whole], bitorder="little").tobytes()
            rest = bits[whole:]
    yield np.packbits(rest, bitorder="little").tobytes()


def _write_frame_groups(file: BinaryIO, source: Dataset, frame_numbers: Sequence[int], is_binary: bool) -> None:
    """Write the Per-frame Functional Groups: source frame, temporal position, and for BINARY the segment."""
    sop_class, sop_instance = uid_of(source, "SOPClassUID"), uid_of(source, "SOPInstanceUID")
    has_numbers = names_frames(sop_class, frame_numbers)
    derivation_code = elements.sequence(0x00089215, elements.code_item("113076", "DCM", "Segmentation"))
    purpose = elements.sequence(
        0x0040A170, elements.code_item("121322", "DCM", "Source image for image processing operation")
    )
    file.write(elements.element_header(0x52009230, "SQ", elements.UNDEFINED_LENGTH))
    for position, frame_number in enumerate(frame_numbers, start=1):
        source_image = elements.item(
            elements.element(0x00081150, "UI", sop_class),
            elements.element(0x00081155, "UI", sop_instance),
            elements.element(0x00081160, "IS", str(frame_number)) if has_numbers else b"",
            elements.element(0x0028135A, "CS", "YES"),  # Spatial Locations Preserved
            purpose,
        )
        derivation = elements.sequence(
            0x00089124, elements.item(elements.sequence(0x00082112, source_image), derivation_code)
        )
        for segment_number in range(1, len(STRUCTURES) + 1) if is_binary else (None,):
            index = [position] if segment_number is None else [segment_number, position]
            content = elements.sequence(
                0x00209111,
                elements.item(
                    elements.element(0x00209128, "UL", position),  # Temporal Position Index
                    elements.element(0x00209157, "UL", index),  # Dimension Index Values
                ),
            )
            identification = b""
            if segment_number is not None:
                identification = elements.sequence(
                    0x0062000A, elements.item(elements.element(0x0062000B, "US", segment_number))
                )
            file.write(elements.item(derivation, content, identification))
    file.write(elements.SEQUENCE_END)


def _template(source: Dataset, frame_numbers: Sequence[int], provenance: Provenance, segmentation_type: str) -> Dataset:
    """Return the whole object except its frames, from highdicom's segmentation of one pixel."""
    import highdicom
    from pydicom.sr.codedict import codes

    instance = uid_of(source, "SOPInstanceUID")
    numbers = map(str, frame_numbers)
    identity = (instance, provenance.key, segmentation_type, *SERIES.key, SERIES.description, *numbers)
    evidence = evidence_of(source)
    # highdicom takes a multi-frame source for an enhanced one, with positions of planes
    evidence.SOPClassUID = ULTRASOUND_IMAGE
    evidence.Rows = evidence.Columns = 1
    with quiet():
        algorithm = highdicom.AlgorithmIdentificationSequence(
            name=ascii_text(provenance.model)[:64],
            family=codes.DCM.ArtificialIntelligence,
            version=ascii_text(provenance.software_version)[:64],
            source=MANUFACTURER,
            parameters=provenance.parameters() or None,
        )
        segments = [
            highdicom.seg.SegmentDescription(
                segment_number=structure.class_index,
                segment_label=structure.name.replace("_", " ").capitalize(),
                segmented_property_category=codes.SCT.AnatomicalStructure,
                segmented_property_type=concept_of(structure),
                algorithm_type="AUTOMATIC",
                algorithm_identification=algorithm,
                tracking_uid=derived_uid(instance, provenance.key, "tracking", structure.name),
                tracking_id=structure.name,
                display_color=highdicom.color.CIELabColor.from_rgb(*structure.colour),
            )
            for structure in STRUCTURES
        ]
        is_binary = segmentation_type == "BINARY"
        dataset = highdicom.seg.Segmentation(
            source_images=[evidence],
            pixel_array=np.ones(
                (1, 1, 1, len(STRUCTURES)) if is_binary else (1, 1, 1), bool if is_binary else np.uint8
            ),
            segmentation_type=segmentation_type,
            segment_descriptions=segments,
            series_instance_uid=derived_uid(*identity, "segmentation series"),
            sop_instance_uid=derived_uid(*identity, "segmentation"),
            content_description=SERIES.description,
            content_label="LEFT_HEART",
            content_creator_name=f"Software^{MANUFACTURER}",
            omit_empty_frames=False,
            **builder_options(provenance, SERIES),
        )
        settle(dataset, source)
        set_lossy_history(dataset, source)
        for keyword in ("PixelData", "PerFrameFunctionalGroupsSequence"):
            delattr(dataset, keyword)
        dataset.PatientOrientation = ""
        dataset.SegmentsOverlap = "NO"
        dataset.BurnedInAnnotation = "NO"
        _set_dimensions(dataset, derived_uid(*identity, "dimensions"), is_binary)
        _name_source_class(dataset, instance, uid_of(source, "SOPClassUID"))
    return dataset


def concept_of(structure: Structure) -> Any:
    """Return the code of a structure for highdicom."""
    from highdicom.sr import CodedConcept

    value, meaning = structure.code
    return CodedConcept(value, "SCT", meaning)


def _shared_groups(nominal_spacing_mm: Sequence[float] | None) -> Dataset:
    """Return the groups that all frames share: none, or the pixel size with an orientation that stands for an unknown one."""
    if nominal_spacing_mm is None:
        return dataset_of()
    spacing = [f"{side:.10g}" for side in nominal_spacing_mm]
    return dataset_of(
        PixelMeasuresSequence=[dataset_of(PixelSpacing=spacing, SliceThickness=PLANE_THICKNESS_MM)],
        PlaneOrientationSequence=[dataset_of(ImageOrientationPatient=NOMINAL_ORIENTATION)],
    )


def _set_dimensions(dataset: Dataset, organisation: str, is_binary: bool) -> None:
    """Set the dimensions that distinguish frames: the segment (BINARY) and the temporal position."""
    indices = [(0x00209128, 0x00209111, "Temporal Position Index")]
    if is_binary:
        indices.insert(0, (0x0062000B, 0x0062000A, "Referenced Segment Number"))
    dataset.DimensionOrganizationSequence = [dataset_of(DimensionOrganizationUID=organisation)]
    dataset.DimensionIndexSequence = [
        dataset_of(
            DimensionOrganizationUID=organisation,
            DimensionIndexPointer=pointer,
            FunctionalGroupPointer=group,
            DimensionDescriptionLabel=label,
        )
        for pointer, group, label in indices
    ]


def _name_source_class(dataset: Dataset, instance: str, sop_class: str) -> None:
    """Restore the source's true class in references to it."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                _name_source_class(item, instance, sop_class)
    if dataset.get("ReferencedSOPInstanceUID") == instance:
        dataset.ReferencedSOPClassUID = sop_class
