"""Read from one file's header what the object is, whose it is, and why it is not segmented.

Nothing is decoded or taken on trust: a UID serves to compare and to hash, never as a path, and of a header's words only defined terms
get into a sentence.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydicom._uid_dict import UID_dictionary
from pydicom.tag import Tag

from synboost_monai.dicom.identity.identifiers import IDENTIFYING_KEYWORDS, identifiers, patient_text
from synboost_monai.dicom.limits import Limits
from synboost_monai.dicom.reading.files import check_kind, open_regular, os_problem
from synboost_monai.dicom.reading.header import as_dataset
from synboost_monai.dicom.reading.structure import SOP_CLASS, Element, Structure, walk_file
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.dicom.uids import MULTI_FRAME_CAPTURES, ULTRASOUND_CLASSES
from synboost_monai.dicom.writing.objects import MANUFACTURER

DICOMDIR = "1.2.840.10008.1.3.10"
"""SOP class Media Storage Directory."""

MODALITIES = frozenset(
    "ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FA FID FS GM HC HD IO IOL IVOCT IVUS KER KO LEN "
    "LP LS M3D MA MG MR MS NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT "
    "RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SC SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA VF XA XAPROTOCOL XC".split()
)
"""Defined terms of Modality (PS3.3, C.7.3.1.1.1, with some retired ones); no other word of a header gets into a sentence."""

SOP_INSTANCE, STUDY, SERIES, MODALITY = 0x00080018, 0x0020000D, 0x0020000E, 0x00080060
_MANUFACTURER, _IMAGE_TYPE = 0x00080070, 0x00080008
_MEDIA_SOP_CLASS = 0x00020002
_FRAMES = 0x00280008
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_IDENTIFYING = frozenset(int(Tag(name)) for name in (*IDENTIFYING_KEYWORDS, "SpecificCharacterSet"))
_IDENTIFYING_SEQUENCES = frozenset(int(Tag(name)) for name in IDENTIFYING_KEYWORDS if name.endswith("Sequence"))
_WANTED = _IDENTIFYING | {SOP_CLASS, SOP_INSTANCE, STUDY, SERIES, MODALITY, _MANUFACTURER, _IMAGE_TYPE, _FRAMES}

MAX_IDENTIFYING_BYTES = 1 << 14
"""Most bytes of all identifying values together; headers have a few hundred. The words in them are kept for every file of a folder."""
MAX_IDENTIFYING_VALUE = 1 << 10
"""Bytes to which each identifying value is cut if all together have more."""
MAX_WORDS = 1000
"""Most identifying words of one header; a hundred are usual."""
MAX_KNOWN = 200
"""Number of headers whose words are remembered."""

Known = dict[tuple[object, ...], tuple[str, frozenset[str]]]
"""Identifying values as stored -> patient key and words; the files of a study share them, so each set is worked out once."""


@dataclass(frozen=True)
class ScannedFile:
    """Hold one entry of a folder, itself not a folder, with the facts of its header."""

    path: str
    """Absolute path."""
    relative: str
    """Path below the scanned folder, with slashes; bytes that are not UTF-8 are surrogates (`os.fsencode` gives them back)."""
    size: int = 0
    """Size in bytes."""
    mtime_ns: int = 0
    """Time of the last change, in nanoseconds."""
    reason: NotUsableError | None = None
    """Why the file is not segmented; None for an ultrasound image."""
    sop_instance_uid: str = ""
    study_uid: str = ""
    frames: int | None = None
    """1 if the header does not say; None if its value is not a number."""
    patient_key: str = ""
    """Hash of ID, issuer and name: 16 hexadecimal digits; '' if all are absent."""
    identifiers: frozenset[str] = frozenset()
    """Identifying words of the header (`identifiers.py`)."""


def short_hash(text: str) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def look(path: str, limits: Limits) -> dict[str, Any]:
    """Return the facts of a header as plain values; this runs in a worker (`worker.ReaderPool.look`)."""
    file = look_at(path, path, None, limits, {})
    return {**asdict(file), "identifiers": sorted(file.identifiers)}


def of_values(values: Mapping[str, Any]) -> ScannedFile:
    """Return the file that `look` described."""
    return ScannedFile(**{**values, "identifiers": frozenset(values["identifiers"])})


def check_unchanged(file: ScannedFile) -> None:
    """Make sure, by size and time, that a file has not changed since it was scanned.

    Raises:
        NotUsableError: changed, or vanished and the like.
    """
    try:
        status = os.lstat(file.path)
    except OSError as error:
        raise os_problem(error) from error
    check_kind(status.st_mode, file.path)
    if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
        raise NotUsableError("changed")


def is_uid(text: str) -> bool:
    """Return whether a text is a UID: at most 64 digits and dots (PS3.5, 9.1; parts may start with 0, as some do in practice)."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def is_ultrasound(sop_class: str, modality: str) -> bool:
    """Return whether objects of a SOP class and a modality are segmented."""
    return sop_class in ULTRASOUND_CLASSES or (sop_class in MULTI_FRAME_CAPTURES and modality == "US")


def is_own_overlay(manufacturer: str, image_type: Sequence[str]) -> bool:
    """Return whether an image is an overlay of ours; phantoms and synthetic images, which may be segmented, are of another type."""
    return manufacturer == MANUFACTURER and list(image_type[:2]) == ["DERIVED", "SECONDARY"]


def look_at(path: str, relative: str, problem: NotUsableError | None, limits: Limits, known: Known) -> ScannedFile:
    """Return a file with its reason and the facts of its header."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError) as error:
        return ScannedFile(path, relative, reason=problem or os_problem(error))
    file = ScannedFile(path, relative, status.st_size, status.st_mtime_ns, problem)
    if problem is not None:
        return file
    try:
        with open_regular(path) as opened:
            structure = walk_file(opened, limits, _WANTED)
            file = replace(file, size=opened.size, mtime_ns=opened.mtime_ns)
    except NotUsableError as error:
        return replace(file, reason=error)
    if not structure.elements and not structure.meta:
        return replace(file, reason=structure.problem or NotUsableError("not_dicom"))
    return _with_facts(file, structure, known)


def _with_facts(file: ScannedFile, structure: Structure, known: Known) -> ScannedFile:
    """Return a DICOM file with the facts of its header."""
    frames: int | None = 1
    if words := structure.text(_FRAMES):
        frames = int(words) if words.isascii() and words.isdigit() and len(words) < 10 else None
    patient_key, words_that_identify = _identity_of(structure, known)
    return replace(
        file,
        reason=_reason(structure),
        sop_instance_uid=_uid_or_none(structure.text(SOP_INSTANCE)),
        study_uid=_uid_or_none(structure.text(STUDY)),
        frames=frames,
        patient_key=patient_key,
        identifiers=words_that_identify,
    )


def _identity_of(structure: Structure, known: Known) -> tuple[str, frozenset[str]]:
    """Return the patient key and the identifying words of a header."""
    elements = {tag: element for tag, element in structure.elements.items() if tag in _IDENTIFYING}
    if sum(len(element.value or b"") for element in elements.values()) > MAX_IDENTIFYING_BYTES:
        elements = _shortened(elements, structure)
    stored = (structure.is_little_endian, *elements.values())
    if stored not in known:
        try:
            dataset = as_dataset(replace(structure, elements=elements, meta={}))
        except NotUsableError as problem:  # sequences too deep
            structure.problem = structure.problem or problem
            return "", frozenset()
        text = patient_text(dataset)
        if len(known) >= MAX_KNOWN:
            known.clear()
        known[stored] = (short_hash(text) if text else "", identifiers(dataset))
    key, words_of_it = known[stored]
    if len(words_of_it) > MAX_WORDS:
        known[stored] = key, frozenset(sorted(words_of_it, key=lambda word: (len(word) < 3, word))[:MAX_WORDS])
    return known[stored]


def _shortened(elements: dict[int, Element], structure: Structure) -> dict[int, Element]:
    """Cut long values to their start, which still has words that identify; a sequence that long is refused."""
    kept = {}
    for tag, element in elements.items():
        value = element.value or b""
        if len(value) <= MAX_IDENTIFYING_VALUE:
            kept[tag] = element
        elif element.vr == "SQ" or tag in _IDENTIFYING_SEQUENCES:
            words = f"a sequence that names its patient has more than {MAX_IDENTIFYING_VALUE} bytes"
            structure.problem = structure.problem or NotUsableError("broken_header", problem=words)
        else:
            kept[tag] = element._replace(value=value[:MAX_IDENTIFYING_VALUE])
    return kept


def _reason(structure: Structure) -> NotUsableError | None:
    """Return why a DICOM file is not segmented: first by what it is, then by whether it is readable and has valid identifiers."""
    media_class = structure.text(_MEDIA_SOP_CLASS)
    sop_class = structure.text(SOP_CLASS) or media_class
    modality = structure.text(MODALITY).upper()
    if DICOMDIR in (sop_class, media_class):
        return NotUsableError("dicomdir")
    is_for_us = is_ultrasound(sop_class, modality)
    image_type = [word.strip() for word in structure.text(_IMAGE_TYPE).split("\\")]
    if is_for_us and modality in ("", "US") and is_own_overlay(structure.text(_MANUFACTURER), image_type):
        return NotUsableError("own_result")
    if sop_class and not is_for_us or modality and modality != "US":
        facts = {"sop_class": _class_name(sop_class)}
        is_capture = sop_class.startswith("1.2.840.10008.5.1.4.1.1.7")  # secondary captures hold pictures all the same
        if modality == "US" and not is_capture:
            return NotUsableError("not_an_image", **facts)
        return NotUsableError(
            "other_modality", modality=modality if modality in MODALITIES else "non-ultrasound", **facts
        )
    if structure.problem is not None:
        return structure.problem
    if not sop_class:
        return NotUsableError("missing_identifier", keyword="SOPClassUID")
    for tag, keyword in (
        (SOP_INSTANCE, "SOPInstanceUID"),
        (STUDY, "StudyInstanceUID"),
        (SERIES, "SeriesInstanceUID"),
    ):
        if not structure.text(tag):
            return NotUsableError("missing_identifier", keyword=keyword)
        if not is_uid(structure.text(tag)):
            return NotUsableError("bad_identifier", keyword=keyword)
    return None if structure.pixels else NotUsableError("no_pixels")


def _class_name(sop_class: str) -> str:
    """Return the name of a SOP class; one that the standard does not know is not repeated."""
    entry = UID_dictionary.get(sop_class)
    return entry[0].removesuffix(" Storage") if entry else "of an unknown class"


def _uid_or_none(text: str) -> str:
    """Return the text if it is a valid UID, else ''."""
    return text if is_uid(text) else ""
