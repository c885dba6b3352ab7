"""Share code among the DICOM objects that we write: identity, patient and study, date, and saving to disk.

An object depends only on its source and the model: UIDs are hashes of the source's UIDs, the provenance and the kind; date and
time are the source's. A second run writes the same bytes. Patient and study are the source's own, so that an archive files the object
under the same patient; nothing else is copied from the source's header: no private tag, no institution, no operator.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import tempfile
import uuid
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from synboost_monai import __version__
from synboost_monai.dicom.quiet import quiet
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.dicom.uids import DEFLATED, EXPLICIT, JPEG_BASELINE, JPEG_EXTENDED
from synboost_monai.dicom.writing.image import (
    LETTER_OF_SEX,
    dataset_of,
    set_attributes,
    set_file_meta,
)
from synboost_monai.files import atomic_path

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileMetaDataset

MANUFACTURER = "SynBoost-MONAI"
"""Manufacturer of every object that we write."""
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://synboost-monai/derived")
"""Namespace of the UIDs of derived objects; they are 2.25.N with N a name-based UUID (PS3.5 B.2)."""
IMPLEMENTATION_CLASS_UID = f"2.25.{uuid.uuid5(NAMESPACE, 'implementation').int}"
"""UID in the file meta information that says which software wrote a file."""
LOSSY_SYNTAXES = {
    JPEG_BASELINE: "ISO_10918_1",
    JPEG_EXTENDED: "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "1.2.840.10008.1.2.4.91": "ISO_15444_1",
    "1.2.840.10008.1.2.4.203": "ISO_15444_15",
}
"""Transfer syntaxes that may be lossy, and their method: JPEG Baseline and Extended, JPEG-LS Near-lossless, JPEG 2000, HTJ2K."""
MAX_PIXEL_BYTES = 0xFFFFFFFE
"""Largest length of one data element, in bytes (PS3.5 7.1)."""
NO_DATE, NO_TIME = "19000101", "000000"
"""Date and time if the source has none; objects must not depend on the clock."""

_UID = re.compile(r"[0-9.]{1,64}")
_DATE = re.compile(r"\d{8}")
_DECIMAL = re.compile(r"[0-9.]{1,16}")
_CODED = re.compile(r"[A-Z0-9_ ]{1,16}")
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d)?([0-5]\d|60)?(\.\d{1,6})?")
_PATIENT_AND_STUDY = {
    "PatientName": "",
    "PatientID": "",
    "IssuerOfPatientID": None,
    "PatientBirthDate": "",
    "PatientSex": "",
    "PatientAge": None,
    "PatientSize": None,
    "PatientWeight": None,
    "StudyInstanceUID": None,
    "StudyDate": "",
    "StudyTime": "",
    "StudyID": "",
    "AccessionNumber": "",
    "ReferringPhysicianName": "",
    "StudyDescription": None,
}
"""Keyword -> value written if the source has none; None: the attribute is left out. Modules Patient, General Study and Patient Study."""


@dataclass(frozen=True)
class Provenance:
    """Hold everything that determines a result besides its source; it goes into the UIDs."""

    model: str
    """Name of the model, as users know it (`echo_cris`)."""
    model_sha256: str = ""
    """Hash of the network's definition and preprocessing; hexadecimal."""
    weights_sha256: str = ""
    """Hash of the weights file; hexadecimal."""
    settings_sha256: str = ""
    """Hash of the run's settings; hexadecimal."""
    prompts: tuple[str, ...] = ()
    """Text prompts that the model was given."""
    software_version: str = __version__
    """Version of this package."""

    @property
    def key(self) -> str:
        """All fields in one line, for hashing."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=True)

    @property
    def serial_number(self) -> str:
        """Serial number of the model as a device: the start of the hash of its weights."""
        return self.weights_sha256[:16] or "0"

    def parameters(self) -> dict[str, str]:
        """Return the algorithm's parameters as they are written into an object, in this order."""
        facts = {
            "model_sha256": self.model_sha256,
            "weights_sha256": self.weights_sha256,
            "settings_sha256": self.settings_sha256,
            **{f"prompt_{number}": prompt for number, prompt in enumerate(self.prompts, start=1)},
        }
        return {name: ascii_text(value) for name, value in facts.items() if value}


@dataclass(frozen=True)
class Series:
    """Name the series that an object is filed in; its UID follows from its source and provenance."""

    number: int
    """Series Number; ours are far above the numbers that scanners use."""
    description: str

    @property
    def key(self) -> tuple[str, str]:
        """Return the words for hashing: its number, and that of its only object."""
        return str(self.number), "1"


def derived_uid(*parts: str) -> str:
    """Return the UID of the object that these words describe: always the same, and different for other words."""
    return f"2.25.{uuid.uuid5(NAMESPACE, json.dumps(parts, ensure_ascii=True)).int}"


def content_date_time(source: Dataset) -> tuple[str, str]:
    """Return the source's date (YYYYMMDD) and time (HHMMSS...): the first valid one of content, acquisition, series and study."""
    acquired = text_of(source, "AcquisitionDateTime")
    for date, time in (
        (text_of(source, "ContentDate"), text_of(source, "ContentTime")),
        (text_of(source, "AcquisitionDate"), text_of(source, "AcquisitionTime")),
        (acquired[:8], re.split(r"[+-]", acquired[8:])[0]),
        (text_of(source, "SeriesDate"), text_of(source, "SeriesTime")),
        (text_of(source, "StudyDate"), text_of(source, "StudyTime")),
    ):
        if is_date(date):
            return date, time if is_time(time) else NO_TIME
    return NO_DATE, NO_TIME


def is_date(text: str) -> bool:
    """Return whether a text is a date, YYYYMMDD."""
    if not _DATE.fullmatch(text):
        return False
    try:
        datetime.datetime.strptime(text, "%Y%m%d")
    except ValueError:
        return False
    return text >= "1000"


def is_time(text: str) -> bool:
    """Return whether a text is a time of day: HH, HHMM or HHMMSS, with fractions of a second."""
    return _TIME.fullmatch(text) is not None


def text_of(dataset: Any, keyword: str) -> str:
    """Return the value of an attribute as text; '' if it is absent, empty or cannot be read."""
    value = value_of(dataset, keyword)
    return "" if value is None else str(value).strip(" \0")


def value_of(dataset: Any, keyword: str) -> Any:
    """Return the value of an attribute; None if it is absent, not allowed by its VR (bytes) or cannot be read.

    Files may hold anything, so reading a value must not fail.
    """
    with quiet():
        try:
            value = dataset.get(keyword)
            return None if isinstance(value, bytes) else value
        except Exception:  # noqa: BLE001  pydicom converts on access and may raise any error of any converter
            return None


def number_of(dataset: Any, keyword: str, otherwise: int) -> int:
    """Return the value of an attribute as a whole number; `otherwise` if it is absent or not a number."""
    try:
        return int(value_of(dataset, keyword))
    except (TypeError, ValueError, OverflowError):
        return otherwise


def decimal_of(dataset: Any, keyword: str) -> str | None:
    """Return the value of an attribute as a decimal string (VR DS); None if it is absent or not a finite number."""
    try:
        number = float(value_of(dataset, keyword))
    except (TypeError, ValueError):
        return None
    return f"{number:.10g}" if math.isfinite(number) else None


def ascii_text(text: str) -> str:
    """Return a text as one line of ASCII, which every DICOM character set contains, without the separator of values."""
    printable = "".join(c if c.isprintable() and c != "\\" else " " for c in text)
    return printable.encode("ascii", "replace").decode("ascii")


def uid_of(source: Dataset, keyword: str) -> str:
    """Return a UID of the source.

    Raises:
        NotUsableError: if it is missing or not a valid UID, so that nothing could refer to the source.
    """
    uid = text_of(source, keyword)
    if not uid:
        raise NotUsableError("missing_identifier", keyword=keyword)
    if not _UID.fullmatch(uid):
        raise NotUsableError("bad_identifier", keyword=keyword)
    return uid


def patient_and_study(source: Dataset) -> dict[str, Any]:
    """Return the attributes of the source's patient and study, by keyword; values that the standard forbids are left out or empty.

    Text keeps the source's character set (our own texts are ASCII, which every character set contains), so names are unchanged.
    """
    about: dict[str, Any] = {}
    if character_set := value_of(source, "SpecificCharacterSet"):
        about["SpecificCharacterSet"] = character_set
    for keyword, otherwise in _PATIENT_AND_STUDY.items():
        value = value_of(source, keyword)
        text = text_of(source, keyword)
        if keyword.endswith("Date") and not is_date(text):
            value = None
        elif keyword.endswith("Time") and not is_time(text):
            value = None
        elif keyword == "PatientSex" and text not in (*LETTER_OF_SEX.values(), "O"):
            value = None
        elif keyword in ("PatientSize", "PatientWeight"):
            value = decimal_of(source, keyword)
        elif keyword == "PatientAge" and not re.fullmatch(r"\d{3}[DWMY]", text):
            value = None
        elif keyword == "StudyInstanceUID":
            value = uid_of(source, keyword)
        if value in (None, ""):
            value = otherwise
        if value is not None:
            about[keyword] = value
    return about


def own_attributes(source: Dataset, provenance: Provenance, series: Series) -> dict[str, Any]:
    """Return the attributes of patient, study, series, equipment and date of an object that highdicom does not make."""
    date, time = content_date_time(source)
    return patient_and_study(source) | {
        "SeriesNumber": series.number,
        "SeriesDescription": ascii_text(series.description)[:64],
        "InstanceNumber": 1,
        "ContentDate": date,
        "ContentTime": time,
        "Manufacturer": MANUFACTURER,
        "ManufacturerModelName": ascii_text(provenance.model)[:64],
        "DeviceSerialNumber": provenance.serial_number,
        "SoftwareVersions": __version__,
    }


def builder_options(provenance: Provenance, series: Series) -> dict[str, Any]:
    """Return the options of highdicom's builders for series and equipment."""
    return {
        "series_number": series.number,
        "series_description": ascii_text(series.description)[:64],
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": ascii_text(provenance.model)[:64],
        "device_serial_number": provenance.serial_number,
        "software_versions": ascii_text(provenance.software_version)[:64],
    }


def reference_to(source: Dataset) -> Dataset:
    """Return an item of a sequence that refers to the source."""
    return dataset_of(
        ReferencedSOPClassUID=uid_of(source, "SOPClassUID"),
        ReferencedSOPInstanceUID=uid_of(source, "SOPInstanceUID"),
    )


def evidence_of(source: Dataset) -> Dataset:
    """Return a small data set that represents the source in highdicom's builders: its identity alone; `settle` adds patient and study.

    It is a new data set, so that changing it never changes the source, and highdicom, which prints names and knows few character sets,
    sees no text of the source.
    """
    about = {keyword: otherwise for keyword, otherwise in _PATIENT_AND_STUDY.items() if otherwise is not None}
    uids = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
    with quiet():  # pydicom prints values that it does not like
        return dataset_of(
            **about,
            **{keyword: uid_of(source, keyword) for keyword in uids},
            **{keyword: number_of(source, keyword, 0) for keyword in ("Rows", "Columns")},
            Modality="US",
        )


def set_lossy_history(dataset: Dataset, source: Dataset) -> None:
    """Record in an object with pixels whether the source was ever compressed with loss (once lossy, always lossy)."""
    is_lossy = text_of(source, "LossyImageCompression") == "01" or _syntax_of(source) in LOSSY_SYNTAXES
    dataset.LossyImageCompression = "01" if is_lossy else "00"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if keyword in dataset:
            delattr(dataset, keyword)
        value = value_of(source, keyword) if is_lossy else None
        if value:
            setattr(dataset, keyword, value)


def _syntax_of(source: Dataset) -> str:
    return text_of(getattr(source, "file_meta", None) or {}, "TransferSyntaxUID")


def lossy_steps(source: Dataset) -> tuple[list[str], list[str]]:
    """Return the ratios and the methods of the source's lossy compressions, one after the other; none unless both are known.

    Many scanners name the ratio alone, and the transfer syntax says which method it was.
    """
    ratios, methods = (
        [str(part).strip() for part in ([value] if isinstance(value, (str, float)) else value or ())]
        for value in (value_of(source, f"LossyImageCompression{word}") for word in ("Ratio", "Method"))
    )
    if len(ratios) == 1 and not methods:
        methods = [LOSSY_SYNTAXES.get(_syntax_of(source), "")]
    is_known = len(ratios) == len(methods) and all(_DECIMAL.fullmatch(ratio) for ratio in ratios)
    return (ratios, methods) if is_known and all(_CODED.fullmatch(method) for method in methods) else ([], [])


def settle(dataset: Dataset, source: Dataset) -> None:
    """Give an object made by highdicom the source's patient, study, character set and times, in place of the clock's."""
    date, time = content_date_time(source)
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.ContentDate, dataset.ContentTime = date, time
    for equipment in dataset.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = date + time
    if "SpecificCharacterSet" in dataset:
        del dataset.SpecificCharacterSet
    set_attributes(dataset, patient_and_study(source))


def save(
    dataset: Dataset,
    path: str | os.PathLike[str],
    write_tail: Callable[[BinaryIO], None] | None = None,
    transfer_syntax: str = EXPLICIT,
) -> None:
    """Write a data set as a DICOM file, whole or not at all: temporary file, fsync, rename.

    Args:
        dataset: with SOP class and instance UID; without the elements that `write_tail` writes.
        path: path of the file.
        write_tail: function that writes the elements that follow (long sequences and pixel data in pieces, so that memory stays flat);
            the file can be read and seeked.
        transfer_syntax: explicit VR little endian, plain or deflated, or an encapsulated one whose pixel data `write_tail` writes.
    Raises:
        NotUsableError: if the file cannot be written.
    """
    from pydicom.uid import UID

    set_file_meta(dataset, transfer_syntax, IMPLEMENTATION_CLASS_UID)
    meta = dataset.file_meta
    try:
        with quiet(), atomic_path(path) as temporary:
            with open(temporary, "wb+") as file:
                if transfer_syntax == DEFLATED:
                    with tempfile.TemporaryFile(dir=temporary.parent) as plain:
                        meta.TransferSyntaxUID = UID(EXPLICIT)
                        _write(dataset, plain, write_tail)
                        meta.TransferSyntaxUID = UID(DEFLATED)
                        recode_deflated(plain, file, meta, zlib.compressobj(wbits=-zlib.MAX_WBITS))
                else:
                    _write(dataset, file, write_tail)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(Path(path).parent)
    except OSError as error:
        raise NotUsableError(
            "cannot_write", problem=(os.strerror(error.errno) if error.errno else "the disk refused")
        ) from error


def _write(dataset: Dataset, file: BinaryIO, write_tail: Callable[[BinaryIO], None] | None) -> None:
    dataset.save_as(file, enforce_file_format=True)
    if write_tail is not None:
        file.seek(0, os.SEEK_END)
        write_tail(file)


def recode_deflated(source: BinaryIO, target: BinaryIO, meta: FileMetaDataset, codec: Any) -> None:
    """Copy a DICOM file piece by piece, and deflate or inflate its data set (PS3.5 A.5).

    Args:
        source: file in explicit VR little endian, plain or deflated.
        target: file that is written.
        meta: file meta information of the target.
        codec: object of `zlib.compressobj` or `zlib.decompressobj` without header.
    """
    from pydicom.filebase import DicomFileLike
    from pydicom.filewriter import write_file_meta_info

    target.write(bytes(128) + b"DICM")
    write_file_meta_info(DicomFileLike(target), meta)
    source.seek(140)  # value of File Meta Information Group Length, which counts the bytes after it
    source.seek(144 + int.from_bytes(source.read(4), "little"))
    recode = codec.compress if hasattr(codec, "compress") else codec.decompress
    while piece := source.read(1 << 14):  # which inflates to 16 MB at most
        target.write(recode(piece))
    target.write(codec.flush())
    target.write(bytes(target.tell() % 2))


def sync_folder(folder: Path) -> None:
    """Make the new name of a file in this folder survive a power cut, if the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
