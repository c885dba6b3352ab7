"""Read the header of a DICOM file, everything before the pixel data, as a pydicom Dataset whose values are all readable.

Every failure is a `NotUsableError`. `structure.py` checks where each value starts and ends before pydicom interprets it.
"""

from __future__ import annotations

import os

from pydicom.charset import convert_encodings, default_encoding, python_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag
from pydicom.uid import UID

from synboost_monai.dicom.limits import Limits
from synboost_monai.dicom.quiet import quiet
from synboost_monai.dicom.reading.files import OpenFile, as_open
from synboost_monai.dicom.reading.structure import MAX_DEPTH, TRANSFER_SYNTAX, Element, Structure, walk_file
from synboost_monai.dicom.reasons import NotUsableError

SPECIFIC_CHARACTER_SET = 0x00080005
"""Tag of Specific Character Set, which names the encodings of a header's texts."""
MAX_VALUES = 50_000
"""Most texts, and numbers stored as text, of a header; ultrasound has at most the times of 20,000 frames. Each becomes an object of about
a hundred bytes, so that a header within `Limits.max_header_mb` could take gigabytes and minutes."""
MAX_ITEMS = 20_000
"""Most items of the sequences that are kept; ultrasound headers have a few dozen. Each becomes a data set of about a kB in memory."""
_ITEM_STARTS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_TEXTS = frozenset("AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT".split())
_NUMBERS = frozenset("AT FD FL SL SS SV UL US UV".split())
_BYTES = frozenset("OB OD OF OL OV OW UN".split())
_ONE_VALUE = _NUMBERS | _BYTES | {"LT", "ST", "UR", "UT"}  # not text, or text in which a backslash separates no values


def read_header(file: str | os.PathLike[str] | OpenFile, limits: Limits | None = None) -> Dataset:
    """Read everything before the pixel data of a DICOM file.

    Private data elements and values of more than 1 MiB are left out. A text is given with the VR that the standard has for its tag. A
    value that this VR does not allow (letters in a number, numbers for a name) is given as bytes with VR OB. So every data element of the
    result, in sequences too, can be read without an error, and is either of the kind that its tag promises or bytes.
    `file_meta.TransferSyntaxUID` is always set: it is guessed from the first bytes if the file names none.

    Args:
        file: path of a regular file; or the open file.
        limits: of a file; the defaults if None.
    Raises:
        NotUsableError: with a reason of the scan (`reasons.py`).
    """
    with as_open(file) as opened:
        structure = walk_file(opened, limits or Limits())
    if structure.problem is not None:
        raise structure.problem
    return as_dataset(structure)


def as_dataset(structure: Structure) -> Dataset:
    """Return the data elements of a structure as a Dataset with `file_meta`, every value converted."""
    with quiet():
        character_sets = _character_sets(structure)
        encodings: list[str] = list(convert_encodings(list(character_sets)))
        elements = structure.elements
        if SPECIFIC_CHARACTER_SET in elements:  # put right before other texts need it
            words = "\\".join(character_sets).encode("latin-1")
            elements = {**elements, SPECIFIC_CHARACTER_SET: Element(SPECIFIC_CHARACTER_SET, "CS", words, False)}
        dataset = _dataset(elements, structure.is_little_endian, encodings)
        dataset.set_original_encoding(structure.is_implicit, structure.is_little_endian, encodings)
        meta = {tag: element for tag, element in structure.meta.items() if tag != TRANSFER_SYNTAX}
        dataset.file_meta = FileMetaDataset(_dataset(meta, True, [default_encoding]))
        dataset.file_meta.TransferSyntaxUID = UID(structure.transfer_syntax)
    return dataset


def _dataset(elements: dict[int, Element], is_little_endian: bool, encodings: list[str]) -> Dataset:
    """Return a Dataset of the standard's data elements, each converted."""
    _count_values(elements)
    raw: dict[BaseTag, DataElement | RawDataElement] = {}
    for tag, (_, vr, value, is_implicit) in elements.items():
        if value is not None and not tag >> 16 & 1:
            key = BaseTag(tag)
            raw[key] = RawDataElement(key, vr or None, len(value), value, 0, is_implicit, is_little_endian)
    dataset = Dataset(raw, parent_encoding=encodings)
    _convert(dataset, 0)
    return dataset


def _count_values(elements: dict[int, Element]) -> None:
    """Refuse a header with more values than any object has; values within sequences count too."""
    num_values = sum(
        element.value.count(b"\\")
        for tag, element in elements.items()
        if element.value and (element.vr or _vr_of(tag)) not in _ONE_VALUE
    )
    if num_values > MAX_VALUES:
        raise NotUsableError("broken_header", problem=f"it has more than {MAX_VALUES:,} values")
    num_items = sum(
        max(map(element.value.count, _ITEM_STARTS))
        for tag, element in elements.items()
        if element.value and not tag >> 16 & 1 and (element.vr or _vr_of(tag)) in ("SQ", "UN")
    )
    if num_items > MAX_ITEMS:
        raise NotUsableError("broken_header", problem=f"its sequences have more than {MAX_ITEMS:,} items")


def _vr_of(tag: int) -> str:
    """Return the standard's VR of a tag; '' for a data element that it does not know."""
    return dictionary_VR(tag) if dictionary_has_tag(tag) else ""


def _character_sets(structure: Structure) -> list[str]:
    """Return Specific Character Set without unknown words; Latin-1 if all are unknown."""
    words = [word.strip() for word in structure.text(SPECIFIC_CHARACTER_SET).split("\\")]
    known = [word for word in words if word in python_encoding or _is_misspelt(word)]
    return known if any(known) or not any(words) else ["ISO_IR 100"]


def _is_misspelt(word: str) -> bool:
    """Return whether pydicom recognises a misspelt word, such as ISO IR 100 for ISO_IR 100."""
    try:
        return bool(convert_encodings([word]) != [default_encoding])
    except (LookupError, ValueError):
        return False


def _convert(dataset: Dataset, depth: int) -> None:
    """Convert every value in place; drop private data elements, and keep values that their VR does not allow as bytes."""
    for tag in list(dataset.keys()):
        if tag.group & 1 or tag.element == 0:
            del dataset[tag]
            continue
        raw = dataset.get_item(tag)
        try:
            if isinstance(raw, RawDataElement) and raw.VR is not None:
                dataset[tag] = raw._replace(VR=_right_vr(tag, raw.VR))
            element = dataset[tag]
            if element.VR == "SQ":
                if depth >= MAX_DEPTH:
                    raise NotUsableError(
                        "broken_header", problem=f"its sequences are nested more than {MAX_DEPTH} deep"
                    )
                for item in element.value:
                    _convert(item, depth + 1)
            elif element.VR == "PN":
                str(element.value)  # decodes its parts now, while warnings are silenced
            elif element.VR in ("DS", "IS"):
                values = element.value if isinstance(element.value, MultiValue) else [element.value]
                if any(isinstance(one, str) and one for one in values):
                    raise ValueError("not a number")
        except NotUsableError:
            raise
        except Exception:  # pydicom raises many kinds for a value that is not of its VR
            dataset[tag] = DataElement(tag, "OB", getattr(raw, "value", None) or b"")


def _right_vr(tag: BaseTag, stored: str) -> str:
    """Return the VR by which a value is read if a file stores another VR than the standard's.

    It is the standard's VR if both are texts or both are bytes, the stored one if both are numbers (in text or binary), and OB if the
    value is of another kind than its tag.
    """
    right = _vr_of(tag).split(" or ")
    if right == [""] or stored in right or stored == "UN":
        return stored
    if stored in _TEXTS and right[0] in _TEXTS:
        return right[0]
    numbers = _NUMBERS | {"DS", "IS"}
    if stored in numbers and right[0] in numbers:
        return stored
    return right[-1] if right[-1] in _BYTES and stored in _BYTES | _NUMBERS else "OB"
