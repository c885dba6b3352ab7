"""Write a PDF as DICOM Encapsulated PDF in the study of its sources, so that an archive files it with them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from synboost_monai.dicom.writing.image import coded, dataset_of
from synboost_monai.dicom.writing.objects import (
    Provenance,
    Series,
    ascii_text,
    derived_uid,
    own_attributes,
    quiet,
    reference_to,
    save,
    uid_of,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"
"""SOP class Encapsulated PDF Storage."""
SERIES = Series(9104, "Left heart, report of a neural network's segmentations")
"""Series of reports as PDF."""
MAX_BYTES = 64 << 20
"""Largest PDF."""


def write_pdf(
    sources: Sequence[Dataset],
    pdf: bytes,
    path: str | os.PathLike[str],
    *,
    title: str,
    provenance: Provenance,
) -> str:
    """Write a PDF that was made from some objects.

    Args:
        sources: headers of these objects, all of the same study of one patient; they are not changed.
        pdf: content of the PDF file.
        path: path of the file; written whole or not at all.
        title: title of the document.
        provenance: provenance of its numbers.
    Returns:
        The SOP Instance UID.
    Raises:
        ValueError: if there is no source, the content is not a PDF, or it is larger than `MAX_BYTES`.
        NotUsableError: if the sources lack an identifier, or the file cannot be written.
    """
    if not sources or not pdf.startswith(b"%PDF-") or len(pdf) > MAX_BYTES:
        raise ValueError(f"pdf.py: expected at least one source and a PDF of at most {MAX_BYTES >> 20} MB")
    study = uid_of(sources[0], "StudyInstanceUID")
    instances = sorted(uid_of(source, "SOPInstanceUID") for source in sources)
    with quiet():
        dataset = dataset_of(
            **own_attributes(sources[0], provenance, SERIES),
            SOPClassUID=ENCAPSULATED_PDF,
            SOPInstanceUID=derived_uid(study, *instances, provenance.key, *SERIES.key, title, "pdf"),
            Modality="DOC",
            SeriesInstanceUID=derived_uid(study, provenance.key, "pdf series", str(SERIES.number)),
            AcquisitionDateTime="",
            ConversionType="WSD",
            BurnedInAnnotation="YES",  # a page for the archive names its patient
            SourceInstanceSequence=[reference_to(source) for source in sources],
            DocumentTitle=ascii_text(title)[:1024],
            ConceptNameCodeSequence=[coded("125200", "Adult Echocardiography Procedure Report", "DCM")],
            VerificationFlag="UNVERIFIED",
            MIMETypeOfEncapsulatedDocument="application/pdf",
            EncapsulatedDocumentLength=len(pdf),
            EncapsulatedDocument=pdf + bytes(len(pdf) % 2),
        )
    save(dataset, path)
    return str(dataset.SOPInstanceUID)
