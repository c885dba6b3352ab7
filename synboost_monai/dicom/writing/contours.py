"""Write the outlines of label maps as DICOM Structured Report: planar regions (TID 1410), which OHIF draws on the clip itself.

Each outline is a group of its own, with structure, frame and a polyline (SCOORD) in the pixels of the source. No pixel is copied, and no
place in the patient is stated: an ultrasound clip has none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from synboost_monai.dicom.writing.objects import Provenance, Series, derived_uid, quiet, save, uid_of
from synboost_monai.dicom.writing.seg import concept_of, names_frames
from synboost_monai.dicom.writing.sr import NOT_VERIFIED, algorithm_of, report_of
from synboost_monai.structures import STRUCTURES, Structure

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

SERIES = Series(9105, "Left heart, contours of a neural network")
"""Series of contours."""


def write_contours(
    source_header: Dataset,
    label_maps: Mapping[int, NDArray[np.uint8]],
    path: str | os.PathLike[str],
    *,
    provenance: Provenance,
) -> str:
    """Write the outlines of frames of an ultrasound object as a Comprehensive SR.

    Args:
        source_header: header of the ultrasound object; it is not changed.
        label_maps: number of a frame, counted from 1 -> its label map in the whole image, (rows, columns).
        path: path of the file; written whole or not at all.
        provenance: provenance of the label maps.
    Returns:
        The SOP Instance UID.
    Raises:
        ValueError: if a frame's number or shape is wrong, or no frame has a structure; nothing is written.
        NotUsableError: if the source lacks an identifier, or the file cannot be written.
    """
    shape = source_header.Rows, source_header.Columns
    if any(number < 1 or label_map.shape != shape for number, label_map in label_maps.items()):
        raise ValueError(f"contours.py: expected label maps {shape} of frames from 1")
    outlines = {
        (number, structure): outline
        for number, label_map in sorted(label_maps.items())
        for structure in STRUCTURES
        if (outline := outline_of(label_map == structure.class_index)) is not None
    }
    if not outlines:
        raise ValueError("contours.py: no frame has a structure to outline")
    instance = uid_of(source_header, "SOPInstanceUID")
    numbers = map(str, sorted(label_maps))
    identity = (instance, provenance.key, *SERIES.key, *numbers, "contours")
    with quiet():
        dataset = report_of(
            [source_header],
            [_group(source_header, *key, outline, provenance, identity) for key, outline in outlines.items()],
            [NOT_VERIFIED],
            provenance=provenance,
            uids=(derived_uid(*identity, "series"), derived_uid(*identity)),
            series=SERIES,
        )
    save(dataset, path)
    return str(dataset.SOPInstanceUID)


def outline_of(mask: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Return the longest outline of a mask, a closed line (M, 2) of (column, row), 0 at the image's corner; None for an empty mask."""
    from contourpy import contour_generator

    lines = contour_generator(z=np.pad(mask, 1).astype(np.float32)).lines(0.5)
    # the padding is one pixel, and a pixel's centre lies half a pixel from its corner
    return max((np.asarray(line, np.float64) - 0.5 for line in lines), key=len, default=None)


def _group(
    source: Dataset,
    number: int,
    structure: Structure,
    outline: NDArray[np.float64],
    provenance: Provenance,
    identity: tuple[str, ...],
) -> Any:
    """Return one outline with its structure and frame; viewers show the finding site beside it."""
    import highdicom.sr as sr

    sop_class = uid_of(source, "SOPClassUID")
    code = concept_of(structure)
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=derived_uid(*identity, structure.name, str(number)), identifier=f"{structure.words}, frame {number}"
        ),
        referenced_region=sr.ImageRegion(
            graphic_type=sr.GraphicTypeValues.POLYLINE,
            graphic_data=outline,
            source_image=sr.SourceImageForRegion(
                sop_class, uid_of(source, "SOPInstanceUID"), [number] if names_frames(sop_class, [number]) else None
            ),
        ),
        finding_type=code,
        finding_sites=[sr.FindingSite(code)],
        algorithm_id=algorithm_of(provenance),
    )
