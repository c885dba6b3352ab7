"""Read and write DICOM; this is the only room that imports pydicom."""

from synboost_monai.dicom.writing.image import write_dicom_pair

__all__ = ["write_dicom_pair"]
