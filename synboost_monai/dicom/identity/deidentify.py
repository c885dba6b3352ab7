"""Write de-identified copies of ultrasound objects: a header without the patient, and the pixels of the sector alone.

The header follows the Basic Application Level Confidentiality Profile (DICOM PS3.15 annex E; `basic_profile.txt`), and goes
further: an element that the profile does not name is kept only if it is a number, a coded word of the system, or a code of the standard
with the standard's meaning. So typed text, private elements, curves and overlays are removed, and of the device only the maker's name
is kept. A number, time or code that repeats the digits of an ID, a telephone number or a birthday is removed too. UIDs become hashes
under a key: references between copies made with one key still hold, and nobody without the key can find the original. Dates move back by
a number of days that the key gives each patient.

Pixels are decoded and written as grey, uncompressed, black outside the sector, a window at a time: names burned in around the sector are
removed, and memory does not grow with the clip. Text within the sector stays. Only a clip in which no such text is found
(`sector.has_text`) is marked as having clean pixels. A copy has the same grey values as the images that the original's segmentation used.

Why no library: `dicognito` and `dicom-anonymizer` keep the public text elements that they do not know and leave the pixels alone,
`deid` blanks boxes of known scanners and scrambles ultrasound clips (its issue 228); each holds all pixels in memory.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import functools
import hashlib
import hmac
import os
import re
import stat
import uuid
import zlib
from collections.abc import Iterable, Iterator
from importlib import resources
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from synboost_monai.dicom import elements
from synboost_monai.dicom.reading.sector import find_sector, has_text, sample_indices
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.dicom.writing.image import GREY_PIXELS, coded, set_attributes
from synboost_monai.dicom.writing.objects import (
    MAX_PIXEL_BYTES,
    is_date,
    is_time,
    quiet,
    save,
    set_lossy_history,
    text_of,
    uid_of,
    value_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

    from synboost_monai.dicom.limits import Limits
    from synboost_monai.dicom.reading.files import OpenFile

MIN_KEY_BYTES, MAX_KEY_BYTES = 32, 4096
"""Size of a key; a shorter one could be guessed and would then reveal the patients, and a longer file was not made as a key."""
MAKE_KEY = "head -c 32 /dev/urandom > KEYFILE; chmod 600 KEYFILE"
"""Shell command that makes a key."""
MAX_SHIFT_DAYS = 3650
"""Most days by which dates move back; the least is 1."""
WINDOW = 16
"""Number of frames decoded at a time."""
KNOWN_SCHEMES = ("DCM", "SCT", "LN", "UCUM", "UMLS", "FMA", "RADLEX", "NCIt")
"""Coding schemes named by the standard, whose codes are kept with the standard's own meaning."""
SNOMED_RT = ("SRT", "SNM3", "99SDM")
"""Older designators of SNOMED, whose codes get SNOMED CT's meanings."""
MAKERS = {
    "GE": ("ge", "general electric", "vingmed"),
    "Philips": ("philips",),
    "Siemens": ("siemens", "acuson"),
    "Canon": ("canon",),
    "Toshiba": ("toshiba",),
    "Hitachi": ("hitachi",),
    "Aloka": ("aloka",),
    "Fujifilm": ("fujifilm", "sonosite"),
    "Samsung": ("samsung", "medison"),
    "Mindray": ("mindray",),
    "Esaote": ("esaote",),
    "Butterfly": ("butterfly",),
    "Clarius": ("clarius",),
}
"""Makers of ultrasound systems and the words that name them; Manufacturer is free text, and becomes one of these names or empty."""
BODY_PARTS = frozenset({"HEART", "CHEST", "THORAX"})
"""Values of Body Part Examined that are kept; many systems let people type it."""
CODED_WORDS = frozenset(
    "ImageType Modality PatientSex Laterality ImageLaterality FrameLaterality BodyPartExamined PatientOrientation "
    "PhotometricInterpretation LossyImageCompression LossyImageCompressionMethod PresentationLUTShape "
    "BurnedInAnnotation RecognizableVisualFeatures QualityControlImage FrameType PixelPresentation "
    "VolumetricProperties VolumeBasedCalculationTechnique ContentQualification TransducerType DataType "
    "UltrasoundAcquisitionGeometry PositionMeasuringDeviceUsed CardiacSynchronizationTechnique "
    "CardiacSignalSource DimensionOrganizationType LongitudinalTemporalInformationModified".split()
)
"""Attributes of coded words (VR CS) that an ultrasound system fills in itself; people may type others, such as Content Label."""
MIN_ID_DIGITS, MIN_INNER_DIGITS = 4, 6
"""Fewest digits of an ID for which a number counts as that ID: if the number equals it, and if the number contains it."""

_NUMBERS = frozenset({"US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "AT", "OL", "OF", "OD"})
_NUMBER_TEXT = {"IS": re.compile(r" *[+-]?\d{1,12} *"), "DS": re.compile(r" *[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)? *")}
_CODED_WORD = re.compile(r"[A-Z0-9 _]{0,16}")
_CODE_TEXT = frozenset({"CodeValue", "LongCodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning"})
_SHIFTED = frozenset({"StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "AcquisitionDateTime"})
_TIMES = frozenset({"StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime"})
_PATIENT_NUMBERS = frozenset(
    "PatientID OtherPatientIDs AccessionNumber StudyID AdmissionID PerformedProcedureStepID".split()
)
_PLACES = frozenset(
    "InstitutionName InstitutionAddress InstitutionalDepartmentName IssuerOfPatientID StationName DeviceSerialNumber "
    "PatientAddress PatientTelephoneNumbers".split()
)
_PIXEL_GROUP = 0x0028
_PIXELS_KEPT = frozenset(
    "NumberOfFrames FrameIncrementPointer PixelAspectRatio LongitudinalTemporalInformationModified".split()
)
_WELL_KNOWN = "1.2.840.10008."
"""Prefix of the UIDs of the standard itself: classes, syntaxes, coding schemes."""


def deidentify(
    source: str | os.PathLike[str] | OpenFile,
    path_out: str | os.PathLike[str],
    key: bytes,
    *,
    limits: Limits | None = None,
) -> str:
    """Write a de-identified copy of an ultrasound object; a still without regions in its header is refused.

    Args:
        source: path of the object, which is only read; or the open file.
        path_out: path of the copy; written whole or not at all. Name it by the UID that is returned, never by the original.
        key: secret, at least 32 random bytes; copies made with one key belong together.
        limits: of reading the file; the defaults if None.
    Returns:
        The SOP Instance UID of the copy.
    Raises:
        ValueError: if the key could be guessed.
        NotUsableError: if the object cannot be read, no sector is found in it, or the copy cannot be written.
    """
    from synboost_monai.dicom.reading.decode import frame_reader

    with frame_reader(source, limits) as reader:
        copy = deidentify_header(reader.header, key)
        rows, columns = reader.shape
        num_bytes = reader.num_frames * rows * columns
        if num_bytes > MAX_PIXEL_BYTES:
            raise NotUsableError(
                "too_large", rows=rows, columns=columns, frames=reader.num_frames, limit=MAX_PIXEL_BYTES
            )
        samples = reader.read_frames(sample_indices(reader.num_frames, rows * columns))
        sector = find_sector(samples, _regions(reader.header, reader.shape))
        if not sector.any():
            raise NotUsableError("no_sector")
        _describe_pixels(copy, reader.header, reader.num_frames, reader.shape)
        _say_what_is_clean(copy, has_text(samples, sector))

        def write_tail(file: BinaryIO) -> None:
            windows = (
                range(reader.num_frames)[start : start + WINDOW] for start in range(0, reader.num_frames, WINDOW)
            )
            pictures = (np.where(sector, reader.read_frames(window), 0).astype(np.uint8) for window in windows)
            elements.write_native_pixels(file, num_bytes, pictures)

        save(copy, path_out, write_tail)
    return str(copy.SOPInstanceUID)


def deidentify_header(header: Dataset, key: bytes) -> Dataset:
    """Return the header of a de-identified copy, without pixel data and without a claim about the pixels.

    Args:
        header: header of the original; it is not changed.
        key: secret, at least 32 random bytes.
    Raises:
        ValueError: if the key could be guessed.
        NotUsableError: if an identifier of the object is missing.
    """
    check_key(key)
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        uid_of(header, keyword)
    patient = _patient_of(header)
    pseudonym = base64.b32encode(_hash(key, "patient", patient)[:10]).decode("ascii")
    days = 1 + int.from_bytes(_hash(key, "days", patient)[:8], "big") % MAX_SHIFT_DAYS
    with quiet():
        copy = _Cleaner(key, days, header).clean(header)
        copy.SpecificCharacterSet = "ISO_IR 192"
        copy.PatientName, copy.PatientID = f"Anonymous^{pseudonym}", f"ANON-{pseudonym}"
        texts = "PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber PatientOrientation".split()
        absent = dict.fromkeys(texts, "") | dict.fromkeys(("Manufacturer", "SeriesNumber", "InstanceNumber"))
        set_attributes(copy, {keyword: value for keyword, value in absent.items() if keyword not in copy})
        if not any(keyword in copy for keyword in ("Laterality", "BodyPartExamined", "AnatomicRegionSequence")):
            copy.Laterality = ""
        copy.ReferringPhysicianName = ""
        _set_lossy_history(copy, header)
        copy.PatientIdentityRemoved = "YES"
        copy.LongitudinalTemporalInformationModified = "MODIFIED"
        copy.DeidentificationMethod = "SynBoost-MONAI, PS3.15 Basic Profile"
        copy.DeidentificationMethodCodeSequence = [
            coded("113100", "Basic Application Confidentiality Profile", "DCM"),
            coded("113107", "Retain Longitudinal Temporal Information Modified Dates Option", "DCM"),
        ]
    return copy


def read_key(path: str | os.PathLike[str]) -> bytes:
    """Read the secret for de-identification from a file that nobody else can read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a regular file, others may read it, or its content could be guessed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; make a key with: {MAKE_KEY}") from None
    except OSError as error:
        raise ValueError(f"{path}: the key cannot be read: {os.strerror(error.errno or 0).lower()}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path}: expected a file with a key, got something that is no regular file")
        mode = stat.S_IMODE(status.st_mode)
        if os.name == "posix" and mode & 0o077:
            raise ValueError(f"{path}: others may use this key (mode {mode:04o}); close it with: chmod 600 {path}")
        if os.name == "posix" and status.st_uid not in (0, os.geteuid()):
            raise ValueError(f"{path}: the key belongs to another user; copy it to a file of your own, of mode 0600")
        key = os.read(descriptor, MAX_KEY_BYTES + 1)
    finally:
        os.close(descriptor)
    check_key(key, str(path))
    return key


def check_key(key: bytes, where: str = "deidentify.py") -> None:
    """Refuse a key that is not made of random bytes, since whoever guesses it can identify the patients.

    Fewer than one in ten million keys of 32 random bytes are refused.

    Args:
        key: the secret.
        where: place that the key comes from, for the message.
    Raises:
        ValueError: if the key is too short or too long, is text, or repeats itself.
    """
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        size = f"{len(key)} bytes" if len(key) <= MAX_KEY_BYTES else f"more than {MAX_KEY_BYTES} bytes"
        problem = f"the key has {size}, {MIN_KEY_BYTES} random ones are needed"
    elif _is_text(key) or _repeats(key) or _repeats(bytes((b - a) % 256 for a, b in zip(key, key[1:]))):
        problem = (
            f"the key is text or repeats itself, so that it could be guessed; {MIN_KEY_BYTES} random bytes are needed"
        )
    else:
        return
    raise ValueError(f"{where}: {problem}; make one with: {MAKE_KEY}")


def _is_text(key: bytes) -> bool:
    """Return whether bytes are text: words, or a key written in hexadecimal digits or base 64."""
    with contextlib.suppress(UnicodeDecodeError):
        key.decode("utf-8")
        return True
    return sum(32 <= byte < 127 or byte in b"\t\r\n\0" for byte in key) > 0.87 * len(key)  # of random bytes: 0.39


def _repeats(key: bytes) -> bool:
    """Return whether bytes have fewer distinct values than random ones, or can be compressed."""
    num_expected = 256 * (1 - (255 / 256) ** len(key))
    return len(set(key)) < 0.65 * num_expected or len(zlib.compress(key, 9)) < len(key)


def pseudonymous_uid(key: bytes, uid: str) -> str:
    """Return the UID that replaces a UID under a key: always the same one, and not reversible without the key."""
    return f"2.25.{uuid.UUID(bytes=_hash(key, 'uid', uid)[:16], version=4).int}"


class _Cleaner:
    """Cleans data sets, including those in sequences.

    Args:
        key: secret.
        days: number of days by which dates move back.
        header: header of the object; text with a word that identifies its patient and numbers with the patient's digits are removed.
    """

    def __init__(self, key: bytes, days: int, header: Dataset) -> None:
        self._key, self._days = key, days
        self._people, self._words, self._digits = _words_of(header)

    def clean(self, dataset: Dataset) -> Dataset:
        """Return a copy with the elements that may stay."""
        from pydicom.datadict import dictionary_VR
        from pydicom.dataset import Dataset

        copy = Dataset()
        for tag in sorted(dataset.keys()):
            is_beside = 0x5000 <= tag.group < 0x5100 or 0x6000 <= tag.group < 0x7FE1  # curves; overlays and pixels
            if tag.is_private or tag.element == 0 or tag.group < 0x0008 or is_beside:
                continue
            try:
                element = dataset[tag]
                value = self._clean_value(element)
                if element.VR not in ("SQ", "UI") and self._tells_digits(value):
                    value = "" if basic_profile().get(int(tag)) == "Z" else None
            except Exception:  # noqa: BLE001  a value that cannot be read cannot be judged
                continue
            if value is not None:
                is_blanked = isinstance(element.value, bytes)  # its VR did not allow the value
                copy.add_new(tag, dictionary_VR(tag).split(" or ")[-1] if is_blanked else element.VR, value)
        return copy

    def _clean_value(self, element: DataElement) -> Any:
        """Return the value that an element keeps, or None if the element is removed."""
        keyword, vr = element.keyword, element.VR
        if isinstance(element.value, bytes):  # pixels, palettes, documents, and values that their VR does not allow
            return "" if basic_profile().get(int(element.tag)) == "Z" else None
        if keyword in _SHIFTED:
            return self._shifted(element)
        if keyword in _TIMES:
            text = str(element.value or "").strip()
            return text if is_time(text) else None
        action = basic_profile().get(int(element.tag))
        if action == "U" and vr == "UI":
            return self._remapped(element.value)
        if action == "X/Z/U" and vr == "SQ":  # references, which hold UIDs alone
            return self._clean_items(element)
        if action is not None:
            return "" if action == "Z" and vr != "SQ" else None
        if vr == "SQ":
            return self._clean_items(element)
        if vr == "UI":
            return self._remapped(element.value)
        if vr in _NUMBERS:
            return element.value
        if keyword == "Manufacturer":
            return self._maker(str(element.value or ""))
        return self._clean_text(element)

    def _clean_items(self, element: DataElement) -> list[Dataset] | None:
        items = []
        for item in element.value:
            cleaned = self.clean(item)
            if any(text_of(item, keyword) for keyword in _CODE_TEXT):
                scheme, code = text_of(item, "CodingSchemeDesignator"), text_of(item, "CodeValue")
                known, typed = _meanings_of(scheme, code), text_of(item, "CodeMeaning")
                meaning = typed if typed in known else known[0] if known else ""
                if not meaning or _tells(f"{code} {meaning}", self._people) or self._tells_digits(code):
                    continue
                cleaned.CodeValue, cleaned.CodingSchemeDesignator, cleaned.CodeMeaning = code, scheme, meaning
            if len(cleaned):
                items.append(cleaned)
        return items or None

    def _clean_text(self, element: DataElement) -> Any:
        keyword, vr, value = element.keyword, element.VR, element.value
        values = [value] if isinstance(value, (str, int, float)) or value is None else list(value)
        texts = ["" if part is None else str(part) for part in values]
        if vr in _NUMBER_TEXT:
            texts = [getattr(part, "original_string", None) or text for part, text in zip(values, texts)]
            return value if all(not text or _NUMBER_TEXT[vr].fullmatch(text) for text in texts) else None
        if vr != "CS" or keyword not in CODED_WORDS or not all(_CODED_WORD.fullmatch(text) for text in texts):
            return None
        if keyword == "BodyPartExamined" and not BODY_PARTS.issuperset(texts):
            return None
        return None if any(_tells(text, self._words) for text in texts) else value

    def _maker(self, text: str) -> str | None:
        """Return the maker that a text names; None if it names none, or if that name is also a word of the patient."""
        words = " ".join(re.findall(r"\w+", text.casefold()))
        for name, known_as in MAKERS.items():
            if any(f" {word} " in f" {words} " for word in known_as):
                return None if _tells(name, self._words) else name
        return None

    def _tells_digits(self, value: Any) -> bool:
        """Return whether a value repeats the digits of an ID, a telephone number or a birthday."""
        if value is None or isinstance(value, str) or not isinstance(value, Iterable):
            value = [value]
        return any(_repeats_digits(str(getattr(part, "original_string", None) or part), self._digits) for part in value)

    def _remapped(self, value: Any) -> Any:
        uids = [value] if isinstance(value, str) else list(value or ())
        new = [uid if _is_of_the_standard(uid) else pseudonymous_uid(self._key, uid) for uid in map(str, uids) if uid]
        return new[0] if len(new) == 1 else new or None

    def _shifted(self, element: DataElement) -> str | None:
        """Return a date, or a date with its time, moved back by `days`; None if it is not a date."""
        text = str(element.value or "").strip()
        if not is_date(text[:8]):
            return None
        day = datetime.datetime.strptime(text[:8], "%Y%m%d") - datetime.timedelta(days=self._days)
        rest = text[8:] if element.VR == "DT" and is_time(text[8:]) else ""
        return day.strftime("%Y%m%d") + rest


def _is_of_the_standard(uid: str) -> bool:
    """Return whether the standard itself defines a UID: for a class, a syntax, a coding scheme."""
    from pydicom._uid_dict import UID_dictionary

    return uid.startswith(_WELL_KNOWN) and uid in UID_dictionary


@functools.cache
def _meanings_of(scheme: str, code: str) -> tuple[str, ...]:
    """Return the standard's meanings of a code, shortest first; empty for a code that it does not know."""
    from pydicom.sr._concepts_dict import concepts
    from pydicom.sr._snomed_dict import mapping

    if scheme in SNOMED_RT:
        scheme, code = "SCT", mapping["SRT"].get(code, "")
    of_scheme: dict[str, Any] = dict(concepts.get(scheme, {})) if scheme in KNOWN_SCHEMES else {}
    return tuple(sorted({codes[code][0] for codes in of_scheme.values() if code in codes}, key=lambda m: (len(m), m)))


def _repeats_digits(text: str, numbers: frozenset[str]) -> bool:
    """Return whether the digits in a text equal or contain one of `numbers`, ignoring leading zeros and decimal points."""
    digits = re.sub(r"\D", "", text)
    whole, fraction = digits.lstrip("0"), digits.strip("0")
    return any(
        number in (whole, fraction) or (len(number) >= MIN_INNER_DIGITS and number in digits) for number in numbers
    )


def _tells(text: str, words: frozenset[str]) -> bool:
    """Return whether a text contains one of `words`."""
    return not words.isdisjoint(re.findall(r"\w+", text.casefold()))


@functools.cache
def basic_profile() -> dict[int, str]:
    """Return the actions of the Basic Profile, by tag."""
    text = resources.files("synboost_monai.dicom.identity").joinpath("basic_profile.txt").read_text(encoding="utf-8")
    lines = (line.split() for line in text.splitlines() if not line.startswith("#"))
    return {int(tag, 16): action for tag, action, _ in lines}


def _hash(key: bytes, kind: str, text: str) -> bytes:
    return hmac.new(key, f"{kind}\0{text}".encode("utf-8", "surrogateescape"), hashlib.sha256).digest()


def _patient_of(header: Dataset) -> str:
    """Return a text that identifies the patient; the study if the header names none, so that strangers do not become one patient."""
    if patient_id := text_of(header, "PatientID"):
        return f"id\0{patient_id}\0{text_of(header, 'IssuerOfPatientID')}"
    if name := text_of(header, "PatientName"):
        return f"name\0{name.casefold()}\0{text_of(header, 'PatientBirthDate')}"
    return f"study\0{uid_of(header, 'StudyInstanceUID')}"


def _words_of(header: Dataset) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Return the words and digits of a header that identify the patient, words of three characters and more.

    Returns:
        (names of people and numbers of the patient; these and places, devices and dates; digits of all, without leading zeros).
    """
    people: set[str] = set()
    places: set[str] = set()
    digits: set[str] = set()
    for element in _elements(header):
        if element.VR == "PN" or element.keyword in _PATIENT_NUMBERS:
            found = people
        elif element.VR == "DA" or element.keyword in _PLACES:
            found = places
        else:
            continue
        value = element.value
        text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
        found.update(word for word in re.findall(r"\w+", text.casefold()) if len(word) >= 3)
        digits.update(re.findall(r"\d+", text), [re.sub(r"\D", "", text)])
        if element.VR == "DA" and is_date(text):
            digits.update((text[6:] + text[4:6] + text[:4], text[4:] + text[:4], text[2:]))
    numbers = {number.lstrip("0") for number in digits if number.isascii()}
    return frozenset(people), frozenset(people | places), frozenset(n for n in numbers if len(n) >= MIN_ID_DIGITS)


def _elements(dataset: Dataset) -> Iterator[DataElement]:
    """Yield the public elements that can be read, including those in sequences."""
    for tag in dataset.keys():
        if tag.is_private:
            continue
        try:
            element = dataset[tag]
            str(element.value) if element.VR != "SQ" else None
        except Exception:  # noqa: BLE001  a value that cannot be read names nobody and is not kept either
            continue
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from _elements(item)


def _regions(header: Dataset, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Return the mask of the header's ultrasound regions; None if no region is within the picture."""
    inside = np.zeros(shape, dtype=bool)
    for region in value_of(header, "SequenceOfUltrasoundRegions") or ():
        x0, y0, x1, y1 = (value_of(region, f"RegionLocation{name}") for name in ("MinX0", "MinY0", "MaxX1", "MaxY1"))
        if all(isinstance(edge, int) and edge >= 0 for edge in (x0, y0, x1, y1)):
            inside[y0 : y1 + 1, x0 : x1 + 1] = True
    return inside if inside.any() else None


def _set_lossy_history(copy: Dataset, header: Dataset) -> None:
    """Call `set_lossy_history`, but keep the cleaned values of the copy."""
    cleaned = {keyword: copy.get(keyword) for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod")}
    set_lossy_history(copy, header)
    for keyword, value in cleaned.items():
        if keyword in copy:
            setattr(copy, keyword, value) if value else delattr(copy, keyword)


def _describe_pixels(copy: Dataset, header: Dataset, num_frames: int, shape: tuple[int, int]) -> None:
    """Describe the new pixels in the header: 8-bit grey, uncompressed."""
    for tag in [tag for tag in copy.keys() if tag.group == _PIXEL_GROUP and copy[tag].keyword not in _PIXELS_KEPT]:
        del copy[tag]
    set_attributes(copy, {**GREY_PIXELS, "Rows": shape[0], "Columns": shape[1]})
    if "NumberOfFrames" in copy or num_frames > 1:
        copy.NumberOfFrames = num_frames
    _set_lossy_history(copy, header)
    if "UltrasoundColorDataPresent" in copy:
        copy.UltrasoundColorDataPresent = 0
    image_type = [str(word) for word in value_of(copy, "ImageType") or ()]
    copy.ImageType = ["DERIVED", *(image_type[1:] or ["PRIMARY"])]
    copy.DerivationDescription = "De-identified: converted to 8-bit grey, black outside the sector"


def _say_what_is_clean(copy: Dataset, text_in_sector: bool | None) -> None:
    """Mark the pixels as clean only if no text is found in the sector; otherwise, also if unknown, mark them as not clean."""
    is_clean = text_in_sector is False
    copy.BurnedInAnnotation = "NO" if is_clean else "YES"
    found = {True: "possible", False: "none found", None: "not known"}[text_in_sector]
    method = copy.DeidentificationMethod
    copy.DeidentificationMethod = [method, "pixels: sector alone, grey", f"text in the sector: {found}"]
    if is_clean:
        copy.DeidentificationMethodCodeSequence.insert(1, coded("113101", "Clean Pixel Data Option", "DCM"))
