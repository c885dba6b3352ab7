"""Write a synthetic echocardiogram and its label map as DICOM: an Ultrasound Image and a Segmentation that refers to it.

The files depend only on what they show: no clock, no random number. UIDs are hashes of the pixels and the name, so one
image written twice is one instance, and images of another model are other instances. Of the patient whose label map was
perturbed only sex and age are written: name and ID say that the image is synthetic, and the ID is a hash.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synboost_monai import __version__
from synboost_monai.dicom.uids import EXPLICIT, ULTRASOUND_IMAGE
from synboost_monai.files import atomic_path
from synboost_monai.records import EchoRecord
from synboost_monai.structures import STRUCTURES, Structure

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
"""SOP class Segmentation Storage."""
SYNTHETIC_DATA = 0x0008001C
"""Tag of Synthetic Data, which is YES for artificial content."""
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://synboost-monai/synthetic")
"""Namespace of our UIDs; they are 2.25.N with N a name-based UUID (PS3.5 B.2)."""

NO_DATE, NO_TIME = "19000101", "000000"
"""Date and time of study and content: nothing was acquired, and files must not depend on the clock."""

CODE_OF_VIEW = {
    "apical_two_chamber": ("399232001", "Apical two chamber"),
    "apical_four_chamber": ("399214001", "Apical four chamber"),
}
"""View -> SNOMED CT code and meaning (DICOM CID 12226)."""
GREY_PIXELS = {
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 8,
    "BitsStored": 8,
    "HighBit": 7,
    "PixelRepresentation": 0,
}
"""Attributes of 8-bit grey pixels."""
LETTER_OF_SEX = {"male": "M", "female": "F"}
"""Sex in a datalist -> Patient's Sex in DICOM."""


def write_dicom_pair(
    record: EchoRecord, image: np.ndarray, label_map: np.ndarray, spacing_mm: tuple[float, float], *, name: str
) -> None:
    """Write an image as Ultrasound Image and its label map as Segmentation (BINARY, one segment per structure).

    Each file is written whole or not at all. The whole image is one region of 2-D tissue, with its spacing in cm. All structures are
    described in the segmentation, also those that the label map lacks.

    Args:
        record: the two files, of which the image is written last, and the patient of the source, of whom only a hash is written;
            view, phase, sex and age are written if known.
        image: (H, W) uint8, display order.
        label_map: (H, W), 0..3.
        spacing_mm: (row, column).
        name: name of the pair; goes into the UIDs and the series' description.
    Raises:
        ValueError: if image and label map differ in shape, the image is not 8-bit, or the record does not name both files.
    """
    if record.image is None or record.label is None:
        raise ValueError(f"image.py: {name}: expected a record of an image and its label map, got one without a file")
    if image.shape != label_map.shape or image.ndim != 2 or image.dtype != np.uint8:
        raise ValueError(
            f"image.py: {name}: expected a uint8 image (H, W) and a label map of its shape, "
            f"got {image.shape} {image.dtype} and {label_map.shape}"
        )
    content = hashlib.sha256(f"{name}\x1f{spacing_mm}\x1f{image.shape}".encode())
    content.update(image.tobytes() + label_map.astype(np.uint8).tobytes())
    identity = content.hexdigest()
    about = _about(identity, record)
    picture = _ultrasound_image(
        image, spacing_mm, identity, about, " ".join(filter(None, (record.view, record.phase))), record.view
    )
    segmentation = _segmentation(label_map, picture, identity, about)
    for dataset, path in ((segmentation, record.label), (picture, record.image)):
        dataset.add_new(SYNTHETIC_DATA, "CS", "YES")  # pydicom 2 does not know its keyword
        with atomic_path(path) as temporary:
            _save(dataset, temporary)


def _uid(identity: str, kind: str) -> str:
    """Return the UID of an object of this identity and kind; always the same."""
    return f"2.25.{uuid.uuid5(NAMESPACE, f'{identity}/{kind}').int}"


def _about(identity: str, record: EchoRecord) -> dict[str, Any]:
    """Return the attributes that both objects share: patient, study and equipment."""
    pseudonym = hashlib.sha256(f"synthetic patient {record.patient}".encode()).hexdigest()[:12].upper()
    about: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 192",
        "PatientName": f"Synthetic^{pseudonym}",
        "PatientID": f"SYNTHETIC-{pseudonym}",
        "PatientBirthDate": "",
        "PatientSex": LETTER_OF_SEX.get(record.sex or "", ""),
        "StudyInstanceUID": _uid(identity, "study"),
        "StudyDate": NO_DATE,
        "StudyTime": NO_TIME,
        "StudyID": "1",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "StudyDescription": "Synthetic echocardiogram, not of a patient",
        "Manufacturer": "SynBoost-MONAI",
        "ManufacturerModelName": "semantic diffusion model",
        "DeviceSerialNumber": "0",
        "SoftwareVersions": __version__,
    }
    if record.age is not None and 0 <= record.age <= 999:
        about["PatientAge"] = f"{record.age:03d}Y"
    return about


def _ultrasound_image(
    image: np.ndarray,
    spacing_mm: tuple[float, float],
    identity: str,
    about: dict[str, Any],
    what: str,
    view: str | None,
) -> Dataset:
    dataset = dataset_of(
        **about,
        **GREY_PIXELS,
        SOPClassUID=ULTRASOUND_IMAGE,
        SOPInstanceUID=_uid(identity, "image"),
        Modality="US",
        SeriesInstanceUID=_uid(identity, "image series"),
        SeriesNumber=1,
        SeriesDescription=f"Synthetic {what}".strip(),
        InstanceNumber=1,
        ImageType=["DERIVED", "PRIMARY", "TTE", "0001"],  # transthoracic, 2-D imaging
        DerivationDescription="Made by a semantic diffusion model from a perturbed label map",
        PatientOrientation="",
        ImageComments="Synthetic image, not of a patient, not for diagnosis",
        BurnedInAnnotation="NO",
        LossyImageCompression="00",
        UltrasoundColorDataPresent=0,
        AnatomicRegionSequence=[coded("80891009", "Heart")],
        SequenceOfUltrasoundRegions=[tissue_region(0, 0, image.shape, spacing_mm)],
        Rows=image.shape[0],
        Columns=image.shape[1],
    )
    if view in CODE_OF_VIEW:
        dataset.ViewCodeSequence = [coded(*CODE_OF_VIEW[view])]
    dataset.add_new(0x7FE00010, "OB", _even(image.tobytes()))
    return dataset


def _segmentation(label_map: np.ndarray, picture: Dataset, identity: str, about: dict[str, Any]) -> Dataset:
    # (S, H, W), one frame per segment
    masks = np.stack([label_map == structure.class_index for structure in STRUCTURES])
    reference = {
        "ReferencedSOPClassUID": str(picture.SOPClassUID),
        "ReferencedSOPInstanceUID": str(picture.SOPInstanceUID),
    }
    organisation = _uid(identity, "dimensions")
    dataset = dataset_of(
        **about,
        SOPClassUID=SEGMENTATION,
        SOPInstanceUID=_uid(identity, "segmentation"),
        Modality="SEG",
        SeriesInstanceUID=_uid(identity, "segmentation series"),
        SeriesNumber=2,
        SeriesDescription=f"Label map of {picture.SeriesDescription}",
        InstanceNumber=1,
        ContentDate=NO_DATE,
        ContentTime=NO_TIME,
        ImageType=["DERIVED", "PRIMARY"],
        PatientOrientation="",
        ContentLabel="LABEL_MAP",
        ContentDescription="Label map from which the image was made",
        ContentCreatorName="Software^SynBoost-MONAI",
        BurnedInAnnotation="NO",
        LossyImageCompression="00",
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        NumberOfFrames=len(masks),
        Rows=label_map.shape[0],
        Columns=label_map.shape[1],
        BitsAllocated=1,
        BitsStored=1,
        HighBit=0,
        PixelRepresentation=0,
        SegmentationType="BINARY",
        SegmentsOverlap="NO",
        SegmentSequence=[_segment(number, structure) for number, structure in enumerate(STRUCTURES, start=1)],
        ReferencedSeriesSequence=[
            dataset_of(
                SeriesInstanceUID=str(picture.SeriesInstanceUID), ReferencedInstanceSequence=[dataset_of(**reference)]
            )
        ],
        DimensionOrganizationSequence=[dataset_of(DimensionOrganizationUID=organisation)],
        DimensionIndexSequence=[
            dataset_of(
                DimensionOrganizationUID=organisation,
                DimensionIndexPointer=0x0062000B,  # Referenced Segment Number
                FunctionalGroupPointer=0x0062000A,  # in Segment Identification Sequence
                DimensionDescriptionLabel="Segment",
            )
        ],
        SharedFunctionalGroupsSequence=[
            dataset_of(
                DerivationImageSequence=[
                    dataset_of(
                        DerivationCodeSequence=[coded("113076", "Segmentation", "DCM")],
                        SourceImageSequence=[
                            dataset_of(
                                **reference,
                                PurposeOfReferenceCodeSequence=[
                                    coded("121322", "Source image for image processing operation", "DCM")
                                ],
                                SpatialLocationsPreserved="YES",
                            )
                        ],
                    )
                ]
            )
        ],
        PerFrameFunctionalGroupsSequence=[
            dataset_of(
                FrameContentSequence=[dataset_of(DimensionIndexValues=[number])],
                SegmentIdentificationSequence=[dataset_of(ReferencedSegmentNumber=number)],
            )
            for number in range(1, len(masks) + 1)
        ],
    )
    # bits continue across frames, lowest bit first (PS3.5 8.1.1)
    dataset.add_new(0x7FE00010, "OB", _even(np.packbits(masks.ravel(), bitorder="little").tobytes()))
    return dataset


def _segment(number: int, structure: Structure) -> Dataset:
    return dataset_of(
        SegmentNumber=number,
        SegmentLabel=structure.name,
        SegmentAlgorithmType="AUTOMATIC",
        SegmentAlgorithmName="SynBoost-MONAI label map",
        SegmentedPropertyCategoryCodeSequence=[coded("91723000", "Anatomical Structure")],
        SegmentedPropertyTypeCodeSequence=[coded(*structure.code)],
    )


def coded(value: str, meaning: str, scheme: str = "SCT") -> Dataset:
    """Return an item of a code sequence."""
    return dataset_of(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def tissue_region(left: int, top: int, shape: tuple[int, ...], spacing_mm: tuple[float, float]) -> Dataset:
    """Return a region of two-dimensional tissue of this shape, (rows, columns), with its first pixel at `left` and `top`."""
    return dataset_of(
        RegionSpatialFormat=1,  # 2-D
        RegionDataType=1,  # tissue
        RegionFlags=0,
        RegionLocationMinX0=left,
        RegionLocationMinY0=top,
        RegionLocationMaxX1=left + shape[1] - 1,
        RegionLocationMaxY1=top + shape[0] - 1,
        PhysicalUnitsXDirection=3,  # cm
        PhysicalUnitsYDirection=3,
        PhysicalDeltaX=spacing_mm[1] / 10,
        PhysicalDeltaY=spacing_mm[0] / 10,
    )


def dataset_of(**attributes: Any) -> Dataset:
    """Return a data set of these attributes."""
    from pydicom.dataset import Dataset

    dataset = Dataset()
    set_attributes(dataset, attributes)
    return dataset


def set_attributes(dataset: Dataset, attributes: Mapping[str, Any]) -> None:
    """Set attributes by keyword."""
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)


def set_file_meta(dataset: Dataset, transfer_syntax: str, implementation: str) -> None:
    """Give a data set the file meta information that names it and our software.

    Args:
        dataset: with SOP class and instance UID.
        transfer_syntax: in which it will be written.
        implementation: UID of the software.
    """
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID

    dataset.file_meta = FileMetaDataset()
    set_attributes(
        dataset.file_meta,
        {
            "MediaStorageSOPClassUID": UID(dataset.SOPClassUID),
            "MediaStorageSOPInstanceUID": UID(dataset.SOPInstanceUID),
            "TransferSyntaxUID": UID(transfer_syntax),
            "ImplementationClassUID": UID(implementation),
            "ImplementationVersionName": "SYNBOOST",
        },
    )


def _even(content: bytes) -> bytes:
    """Pad pixel data to the even length that DICOM demands."""
    return content + b"\0" * (len(content) % 2)


def _save(dataset: Dataset, path: Path) -> None:
    """Write a DICOM file with its preamble and file meta information, with pydicom 2.4 or 3."""
    import pydicom

    set_file_meta(dataset, EXPLICIT, _uid("implementation", "SynBoost-MONAI"))
    if int(pydicom.__version__.split(".")[0]) >= 3:
        dataset.save_as(path, enforce_file_format=True)
    else:
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
        dataset.save_as(path, write_like_original=False)
