"""Write a PDF as DICOM Encapsulated PDF in the study of its sources, so that an archive files it with them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from synboost_monai import __version__
from synboost_monai.dicom.writing.image import coded
from synboost_monai.dicom.writing.objects import (
    MANUFACTURER,
    Provenance,
    Series,
    ascii_text,
    content_date_time,
    derived_uid,
    patient_and_study,
    quiet,
    save,
    uid_of,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"
"""SOP class Encapsulated PDF Storage."""
SERIES = Series(9104, "Left heart, report of a neural network's segmentations")
"""Series of reports as PDF, unless another one is given."""
MAX_BYTES = 64 << 20
"""Largest PDF."""


def write_pdf(
    sources: Sequence[Dataset],
    pdf: bytes,
    path: str | os.PathLike[str],
    *,
    title: str,
    provenance: Provenance,
    series: Series = SERIES,
) -> str:
    """Write a PDF that was made from some objects.

    Args:
        sources: headers of these objects, all of the same study of one patient; they are not changed.
        pdf: content of the PDF file.
        path: path of the file; written whole or not at all.
        title: title of the document.
        provenance: provenance of its numbers.
        series: number and description of the series.
    Returns:
        The SOP Instance UID.
    Raises:
        ValueError: if there is no source, the content is not a PDF, or it is larger than `MAX_BYTES`.
        NotUsableError: if the sources lack an identifier, or the file cannot be written.
    """
    from pydicom.dataset import Dataset

    if not sources or not pdf.startswith(b"%PDF-") or len(pdf) > MAX_BYTES:
        raise ValueError(f"pdf.py: expected at least one source and a PDF of at most {MAX_BYTES >> 20} MB")
    study = uid_of(sources[0], "StudyInstanceUID")
    instances = sorted(uid_of(source, "SOPInstanceUID") for source in sources)
    identity = (study, *instances, provenance.key, str(series.number), str(series.instance_number), title, "pdf")
    references = []
    for source in sources:
        reference = Dataset()
        reference.ReferencedSOPClassUID = uid_of(source, "SOPClassUID")
        reference.ReferencedSOPInstanceUID = uid_of(source, "SOPInstanceUID")
        references.append(reference)
    date, time = content_date_time(sources[0])
    dataset = Dataset()
    about = (
        patient_and_study(sources[0])
        | {
            "SOPClassUID": ENCAPSULATED_PDF,
            "SOPInstanceUID": derived_uid(*identity),
            "Modality": "DOC",
            "SeriesInstanceUID": derived_uid(study, provenance.key, "pdf series", str(series.number)),
            "SeriesNumber": series.number,
            "SeriesDescription": ascii_text(series.description)[:64],
            "InstanceNumber": series.instance_number,
            "ContentDate": date,
            "ContentTime": time,
            "AcquisitionDateTime": "",
            "ConversionType": "WSD",
            "Manufacturer": MANUFACTURER,
            "ManufacturerModelName": ascii_text(provenance.model)[:64],
            "DeviceSerialNumber": provenance.weights_sha256[:16] or "0",
            "SoftwareVersions": __version__,
            "BurnedInAnnotation": "YES",  # a page for the archive names its patient
            "SourceInstanceSequence": references,
            "DocumentTitle": ascii_text(title)[:1024],
            "ConceptNameCodeSequence": [coded("125200", "Adult Echocardiography Procedure Report", "DCM")],
            "VerificationFlag": "UNVERIFIED",
            "MIMETypeOfEncapsulatedDocument": "application/pdf",
            "EncapsulatedDocumentLength": len(pdf),
            "EncapsulatedDocument": pdf + bytes(len(pdf) % 2),
        }
    )
    with quiet():
        for keyword, value in about.items():
            setattr(dataset, keyword, value)
    save(dataset, path)
    return str(dataset.SOPInstanceUID)
