"""Tell which view of the heart an ultrasound object shows, from codes of its header, else from a few texts, which are not kept."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from synboost_monai.dicom.reading.values import items_in

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_CODES = {
    "apical_four_chamber": "399214001 G-A19C",
    "apical_two_chamber": "399232001 G-A19B",
    "apical_long_axis": "399339008 G-0395",
    "apical_four_chamber_right_ventricle": "130681 130682",
    "parasternal_long_axis": "399139001 G-0396",
    "parasternal_short_axis": "399306005 G-0397 399239005 G-0398 399371001 G-0399 399036006 G-039A 399271003 G-039B",
    "right_ventricle_inflow": "443082005 G-0577 398998003 G-039C",
    "right_ventricle_outflow": "443083000 G-0578 399195005 G-039D",
    "subcostal": "399310008 G-039E 399200001 G-039F 443640005",
    "suprasternal": "399106004 G-03A0 399145009 G-03A1",
    "transesophageal": "443698002 R-40B0E",
}
VIEW_OF_CODE = {code: view for view, codes in _CODES.items() for code in codes.split()}
"""Code of CID 12226 (SNOMED CT, its older SNOMED RT form, or DICOM) -> view."""
SCHEMES = ("SCT", "SRT", "SNM3", "99SDM", "DCM")
"""Coding schemes whose codes are looked up; for any other scheme the code's meaning is read as text."""

_FOUR, _TWO, _THREE = (r"(?:4|four)", r"(?:2|two)", r"(?:3|three)")
_CHAMBER = r"[ ]?(?:ch?|chambers?|kammer|chb|cv)\b"
_RULES = tuple(
    (view, re.compile(pattern))
    for view, pattern in (
        ("transesophageal", r"\b(?:te[eo]|transo?esophageal|mid ?o?esophageal|me (?:4|2|lax))\b"),
        ("subcostal", r"\b(?:subcostal|subxiphoid|sc ?4 ?c|subc)\b"),
        ("suprasternal", r"\bsuprasternal\b|\bssn\b"),
        ("parasternal_long_axis", r"\b(?:plax|plx|parasternal long(?: axis)?)\b"),
        ("parasternal_short_axis", r"\b(?:psax|parasternal short(?: axis)?)\b"),
        (
            "apical_four_chamber_right_ventricle",
            rf"\brv (?:focus\w*|modified)\b|\b(?:a|ap|apical)? ?{_FOUR}{_CHAMBER} rv\b",
        ),
        ("apical_five_chamber", r"\b(?:a|ap|apical)? ?(?:5|five)" + _CHAMBER),
        ("apical_long_axis", rf"\b(?:aplax|apical (?:long|lax)(?: axis)?|(?:a|ap|apical)? ?{_THREE}{_CHAMBER})"),
        ("apical_four_chamber", rf"\b(?:a|ap|api|apical)? ?{_FOUR}{_CHAMBER}|\b(?:ap|apical) ?{_FOUR}\b"),
        ("apical_two_chamber", rf"\b(?:a|ap|api|apical)? ?{_TWO}{_CHAMBER}|\b(?:ap|apical) ?{_TWO}\b"),
    )
)
"""Pairs of a view and the pattern of its names; the first six exclude the rest (a subcostal four-chamber view is not apical)."""
_EXCLUDING = frozenset(view for view, _ in _RULES[:6])


def view_of_header(dataset: Dataset) -> str | None:
    """Return the view by View Code Sequence (CID 12226, modifiers included), else by View Name, description, protocol or Image Type.

    Returns:
        apical_four_chamber, apical_two_chamber or another view; None if no view is named, or two are.
    """
    found: set[str] = set()
    for item in items_in(dataset, "ViewCodeSequence"):
        for code in (item, *items_in(item, "ViewModifierCodeSequence")):
            is_known = str(code.get("CodingSchemeDesignator", "")).strip() in SCHEMES
            view = VIEW_OF_CODE.get(str(code.get("CodeValue", "")).strip()) if is_known else None
            view = view or view_of_text(str(code.get("CodeMeaning", "")))
            found.update([view] if view else [])
    if found:
        return _the_one(found)
    for keyword in ("ViewName", "SeriesDescription", "ProtocolName", "ImageType"):
        value = dataset.get(keyword)
        if value is None or isinstance(value, bytes):
            continue
        text = value if isinstance(value, str) else " ".join(map(str, value))
        view = view_of_text(text)
        if view is not None:
            return view
    return None


def view_of_text(text: str) -> str | None:
    """Return the view that a text names; None if it names no view, or several."""
    text = re.sub(r"[^a-z0-9]+", " ", text[:1024].lower())
    found = {view for view, pattern in _RULES if pattern.search(text)}
    return _the_one(found & _EXCLUDING or found) if found else None


def _the_one(views: set[str]) -> str | None:
    return next(iter(views)) if len(views) == 1 else None
