"""Tell which view of the heart an ultrasound object shows, from codes of its header, else from a few texts, which are not kept."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

VIEW_OF_CODE = {
    "399214001": "apical_four_chamber",
    "G-A19C": "apical_four_chamber",
    "399232001": "apical_two_chamber",
    "G-A19B": "apical_two_chamber",
    "399339008": "apical_long_axis",
    "G-0395": "apical_long_axis",
    "130681": "apical_four_chamber_right_ventricle",
    "130682": "apical_four_chamber_right_ventricle",
    "399139001": "parasternal_long_axis",
    "G-0396": "parasternal_long_axis",
    "399306005": "parasternal_short_axis",
    "G-0397": "parasternal_short_axis",
    "399239005": "parasternal_short_axis",
    "G-0398": "parasternal_short_axis",
    "399371001": "parasternal_short_axis",
    "G-0399": "parasternal_short_axis",
    "399036006": "parasternal_short_axis",
    "G-039A": "parasternal_short_axis",
    "399271003": "parasternal_short_axis",
    "G-039B": "parasternal_short_axis",
    "443082005": "right_ventricle_inflow",
    "G-0577": "right_ventricle_inflow",
    "398998003": "right_ventricle_inflow",
    "G-039C": "right_ventricle_inflow",
    "443083000": "right_ventricle_outflow",
    "G-0578": "right_ventricle_outflow",
    "399195005": "right_ventricle_outflow",
    "G-039D": "right_ventricle_outflow",
    "399310008": "subcostal",
    "G-039E": "subcostal",
    "399200001": "subcostal",
    "G-039F": "subcostal",
    "443640005": "subcostal",
    "399106004": "suprasternal",
    "G-03A0": "suprasternal",
    "399145009": "suprasternal",
    "G-03A1": "suprasternal",
    "443698002": "transesophageal",
    "R-40B0E": "transesophageal",
}
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
    for item in _items(dataset, "ViewCodeSequence"):
        for code in (item, *_items(item, "ViewModifierCodeSequence")):
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


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; an empty list if it is missing or not a sequence."""
    value = dataset.get(keyword)
    return [] if not value or isinstance(value, (bytes, str)) else list(value)
