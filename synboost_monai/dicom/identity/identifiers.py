"""Collect the words of a DICOM header that identify a patient, to look for them in file names.

Words are folded (`fold`): compatibility forms decomposed, accents removed, case folded, so that `Müller`, `MULLER` and a
decomposed `Mu\u0308ller` are one word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_PATIENT = (
    "PatientName PatientID IssuerOfPatientID OtherPatientIDs OtherPatientNames OtherPatientIDsSequence PatientBirthName "
    "PatientMotherBirthName PatientBirthDate PatientAddress PatientTelephoneNumbers MilitaryRank BranchOfService MedicalRecordLocator "
    "ResponsiblePerson ResponsibleOrganization CurrentPatientLocation PatientInstitutionResidence"
)
_ORDER = (
    "AccessionNumber AdmissionID StudyID RequestedProcedureID ScheduledProcedureStepID PerformedProcedureStepID RequestAttributesSequence "
    "FillerOrderNumberImagingServiceRequest PlacerOrderNumberImagingServiceRequest"
)
_PLACE = "InstitutionName InstitutionAddress InstitutionalDepartmentName StationName DeviceSerialNumber"
_STAFF = (
    "ReferringPhysicianName ReferringPhysicianAddress ReferringPhysicianTelephoneNumbers ReferringPhysicianIdentificationSequence "
    "ConsultingPhysicianName PhysiciansOfRecord PerformingPhysicianName NameOfPhysiciansReadingStudy RequestingPhysician "
    "RequestingService OperatorsName"
)
_DAY = "StudyDate SeriesDate AcquisitionDate AcquisitionDateTime ContentDate InstanceCreationDate PerformedProcedureStepStartDate"
IDENTIFYING_KEYWORDS = tuple(f"{_PATIENT} {_ORDER} {_PLACE} {_STAFF} {_DAY}".split())
"""Data elements that `scan` reads, whose values identify a patient, the staff who cared for the patient, or the day."""

_IDENTIFYING = frozenset(IDENTIFYING_KEYWORDS)
_DATE = re.compile(r"(\d{4})[.\-/]?(\d{2})[.\-/]?(\d{2})")
_WORD = re.compile(r"[^\W_]+")
_LETTERS = re.compile(r"[^\W\d_]{3,}")


def identifiers(dataset: Dataset) -> frozenset[str]:
    """Return the words of a header that identify: names, IDs, dates, institution, station, staff; sequences included.

    Each value gives its words, and all of them joined (`SMITHJOHN`; `AB12345` from AB-123.45); a date gives the ways in which it is
    written. Words of one letter are left out: they identify nobody.

    Args:
        dataset: as `read_header` returns it, so that all values are readable.
    Returns:
        Folded words.
    """
    words: set[str] = set()
    _collect(dataset, words)
    return frozenset(word for word in words if len(word) > 1)


def patient_text(dataset: Dataset) -> str:
    """Return ID, issuer and name of the patient as one folded text without padding; '' if all are absent."""
    values = (dataset.get(keyword) for keyword in ("PatientID", "IssuerOfPatientID", "PatientName"))
    parts = [" ".join(fold(str(value or "")).replace("^", " ").split()) for value in values]
    return "\x1f".join(parts) if any(parts) else ""


def fold(text: str) -> str:
    """Return a text as it is compared: decomposed (NFKD), without accents, case folded."""
    if text.isascii():
        return text.lower()
    return "".join(fold_character(character) for character in text)


def fold_character(character: str) -> str:
    """Fold one character; '' for a combining accent. A byte of a file name that is not UTF-8 counts as Latin-1."""
    if "\udc80" <= character <= "\udcff":
        character = chr(ord(character) - 0xDC00)
    parts = unicodedata.normalize("NFKD", character)
    return "".join(part for part in parts if not unicodedata.combining(part)).casefold()


def _collect(dataset: Dataset, words: set[str]) -> None:
    """Add the words of a data set and its sequences."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                _collect(item, words)
        elif element.VR in ("DA", "DT"):
            for text in _texts(element.value):
                words.update(_dates(text))
        elif element.VR == "PN" or element.keyword in _IDENTIFYING:
            for text in _texts(element.value):
                words.update(_words(text, is_name=element.VR == "PN"))


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of a value, one or several; a value kept as bytes (because its VR does not allow it) is read as Latin-1."""
    if value is None:
        return
    is_many = isinstance(value, Iterable) and not isinstance(value, (str, bytes)) and not hasattr(value, "family_name")
    for one in value if is_many else (value,):
        text = one.decode("latin-1") if isinstance(one, bytes) else str(one)
        if text.strip():
            yield text


def _words(text: str, is_name: bool = False) -> Iterator[str]:
    """Yield the words of a text, and all of them joined; for a name, also the first two parts joined in either order."""
    for group in text.split("=") if is_name else (text,):  # alphabetic, ideographic, phonetic
        parts = [fold(part) for part in _WORD.findall(group)]
        yield from parts
        yield "".join(parts)
        if is_name:
            yield from ("".join(pair) for pair in (parts[:2], parts[1::-1]))
            yield from (letters for part in parts for letters in _LETTERS.findall(part))  # a name followed by a number
            for part in _WORD.findall(group):  # people without umlauts on the keyboard write Mueller for Müller
                yield fold(re.sub("[äöüÄÖÜ]", lambda match: fold(match[0]) + "e", unicodedata.normalize("NFC", part)))
        elif len(parts) == 1 and parts[0].isdigit() and len(parts[0].lstrip("0")) > 4:
            yield parts[0].lstrip("0")


def _dates(text: str) -> Iterator[str]:
    """Yield the ways in which a date is written in file names."""
    match = _DATE.match(text.strip())
    if match is None:
        return
    year, month, day = match.groups()
    for mark in ("", "-", "_", ".", "/", " "):
        yield from (mark.join(parts) for parts in ((year, month, day), (day, month, year), (month, day, year)))
    yield year[2:] + month + day
    if month[0] == "0" or day[0] == "0":
        short_month, short_day = month.lstrip("0"), day.lstrip("0")
        for mark in ("-", "_", ".", "/"):
            yield mark.join((year, short_month, short_day))
            yield mark.join((short_day, short_month, year))
