"""The one table of measured quantities; structured report, CSV, JSON and pages take their rows, words, units, codes and ranges from it.

Codes are those of DICOM PS3.16 (CID 12300, 12201 to 12205 and 12227), as pydicom's tables have them. Where the standard has none, the
code belongs to our own scheme, `PRIVATE_SCHEME`, and its meaning says what is measured.

Reference ranges are those of Lang et al., J Am Soc Echocardiogr 2015;28:1-39 (ASE and EACVI): two-dimensional echocardiography, tables 2
and 6, section on the left atrium. They hold for biplane volumes; of single planes they are a guide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from synboost_monai.structures import LEFT_ATRIUM, LEFT_VENTRICULAR_CAVITY, MYOCARDIUM

BIPLANE, FOUR_CHAMBER, TWO_CHAMBER, HEADER = "biplane", "four_chamber", "two_chamber", "header"
"""Methods: from both apical views, from one, or from numbers of the header alone."""
PRIVATE_SCHEME = "99SYNBOOST"
"""Designator of our own coding scheme, for what the standard has no code for."""
RANGE_SOURCE = "Lang et al. 2015 (ASE/EACVI)"
"""Source of all reference ranges."""
LANGUAGES = ("en", "de")
"""Languages of words, in the order of each pair of words."""

Words = tuple[str, str]
Range = tuple[float, float]


class Code(NamedTuple):
    """Hold a coded concept."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Reference:
    """Hold the reference range of women and of men."""

    female: Range
    male: Range

    def of(self, sex: str | None) -> Range | None:
        """Return the range of a sex (`female` or `male`); if it is not known, the range only if it is the same for both."""
        if sex is None:
            return self.female if self.female == self.male else None
        return self.female if sex == "female" else self.male


@dataclass(frozen=True)
class Quantity:
    """Represent one measured quantity."""

    name: str
    """Snake-case name in files."""
    words: Words
    """How people call it: English, German."""
    unit: str
    """Unit as people read it; `sr.UCUM` has its code."""
    limits: Range
    """Lowest and highest value that a heart can have; anything else is not reported."""
    decimals: int = 0
    """Digits after the point on pages."""
    structure: str = ""
    """Name of the structure that is measured; empty if it is none of a label map."""
    codes: Mapping[str, Code] = field(default_factory=dict)
    """Method -> concept; a structured report holds only what has one."""
    methods: Mapping[str, Code] = field(default_factory=dict)
    """Method -> code of how it is measured, where the standard or we have one."""
    reference: Reference | None = None
    note: Words | None = None
    """What to know of it where a range would stand."""
    derivation: Code | None = None
    """How the values of several beats became one."""
    index_of: str = ""
    """Quantity that is divided by body surface area to give this one."""

    def reference_words(self, sex: str | None, language: str = "en") -> str:
        """Return the range as text, both ranges if they depend on a sex that is not known; or the note; or ''."""
        if self.reference is None:
            return "" if self.note is None else self.note[LANGUAGES.index(language)]
        if (found := self.reference.of(sex)) is not None:
            return f"{found[0]:g}–{found[1]:g}"
        ranges = zip("♀♂", (self.reference.female, self.reference.male))
        return "  ".join(f"{sign} {low:g}–{high:g}" for sign, (low, high) in ranges)

    def is_outside(self, value: float, sex: str | None) -> bool:
        """Return whether a value, rounded as pages show it, is outside the reference range, as far as one is known."""
        known = None if self.reference is None else self.reference.of(sex)
        return known is not None and not known[0] <= round(value, self.decimals) <= known[1]


def _loinc(meaning: str, biplane: str, four_chamber: str, two_chamber: str) -> dict[str, Code]:
    planes = {BIPLANE: (biplane, "biplane"), FOUR_CHAMBER: (four_chamber, "single plane 4C")}
    planes[TWO_CHAMBER] = (two_chamber, "single plane 2C")
    return {method: Code(value, "LN", f"{meaning} {plane} (MOD)") for method, (value, plane) in planes.items()}


def _all(code: Code) -> dict[str, Code]:
    return dict.fromkeys((BIPLANE, FOUR_CHAMBER, TWO_CHAMBER), code)


def _single(biplane: Code, single: Code) -> dict[str, Code]:
    return {BIPLANE: biplane, FOUR_CHAMBER: single, TWO_CHAMBER: single}


def _own(value: str, meaning: str) -> Code:
    return Code(value, PRIVATE_SCHEME, meaning)


_LV, _LA = LEFT_VENTRICULAR_CAVITY.name, LEFT_ATRIUM.name
_DISKS = _single(
    Code("125207", "DCM", "Method of Disks, Biplane"), Code("125208", "DCM", "Method of Disks, Single Plane")
)
_AREA_LENGTH = _single(Code("125204", "DCM", "Area-Length Biplane"), Code("125205", "DCM", "Area-Length Single Plane"))
_WALL = _own("WALL_DISKS", "Epi- minus endocardial volume by method of disks, 1.05 g/mL")
_EF_CODES = _loinc("Left ventricular ejection fraction", "79991-6", "79993-2", "79992-4")
_EDV_PER_BSA = "Left ventricular end diastolic volume"
_ESV_PER_BSA = "Left ventricular end systolic volume"
_MASS = Code("18087-7", "LN", "Left Ventricle Mass")
_STRAIN = _own("GLS_CONTOUR", "Global longitudinal strain, experimental, from contours")
_STRAIN_NOTE = ("≈ −20 (speckle tracking)", "≈ −20 (Speckle-Tracking)")

EF_RANGE = Reference(female=(54, 74), male=(52, 72))

QUANTITIES: dict[str, Quantity] = {
    q.name: q
    for q in (
        Quantity(
            *("end_diastolic_volume_ml", ("end-diastolic volume", "Enddiastolisches Volumen"), "ml", (0, 2000)),
            structure=_LV,
            codes=_loinc("Left ventricular end diastolic volume", "79996-5", "79999-9", "79998-1"),
            methods=_DISKS,
            reference=Reference(female=(46, 106), male=(62, 150)),
        ),
        Quantity(
            *("end_systolic_volume_ml", ("end-systolic volume", "Endsystolisches Volumen"), "ml", (0, 2000)),
            structure=_LV,
            codes=_loinc("Left ventricular end systolic volume", "80001-1", "80004-5", "80003-7"),
            methods=_DISKS,
            reference=Reference(female=(14, 42), male=(21, 61)),
        ),
        Quantity(
            *("ejection_fraction", ("ejection fraction", "Ejektionsfraktion"), "%", (0, 100)),
            structure=_LV,
            codes=_EF_CODES,
            methods=_DISKS,
            reference=EF_RANGE,
        ),
        Quantity(
            "ejection_fraction_mean",
            ("ejection fraction, mean of the beats", "Ejektionsfraktion, Mittel der Schläge"),
            *("%", (0, 100), 1),
            structure=_LV,
            codes=_EF_CODES,
            methods=_DISKS,
            reference=EF_RANGE,
            derivation=Code("373098007", "SCT", "Mean"),
        ),
        Quantity(
            "ejection_fraction_sd",
            ("ejection fraction, spread (SD) of the beats", "Ejektionsfraktion, Streuung (SD) der Schläge"),
            *("%", (0, 100), 1),
            structure=_LV,
            codes=_EF_CODES,
            methods=_DISKS,
            derivation=Code("386136009", "SCT", "Standard Deviation"),
        ),
        Quantity(
            *("stroke_volume_ml", ("stroke volume", "Schlagvolumen"), "ml", (0, 1000)),
            structure=_LV,
            codes=_all(Code("90096001", "SCT", "Stroke Volume")),
            methods=_DISKS,
        ),
        Quantity(
            *("heart_rate", ("heart rate", "Herzfrequenz"), "/min", (20, 300)),
            codes=_all(Code("8867-4", "LN", "Heart rate")),
        ),
        Quantity(
            "end_diastolic_length_mm",
            ("left ventricular length at end-diastole", "Länge des linken Ventrikels, enddiastolisch"),
            *("mm", (0, 300)),
            structure=_LV,
            codes={
                FOUR_CHAMBER: Code("79994-0", "LN", "Left ventricular end diastolic length 4C"),
                TWO_CHAMBER: Code("18077-8", "LN", "Left Ventricle diastolic major axis"),
            },
        ),
        Quantity(
            "end_systolic_length_mm",
            ("left ventricular length at end-systole", "Länge des linken Ventrikels, endsystolisch"),
            *("mm", (0, 300)),
            structure=_LV,
            codes=dict.fromkeys(
                (FOUR_CHAMBER, TWO_CHAMBER), Code("18076-0", "LN", "Left Ventricle systolic major axis")
            ),
        ),
        Quantity(
            *("sphericity", ("sphericity index", "Sphärizitätsindex"), "1", (0, 3), 2),
            structure=_LV,
            codes=_all(_own("SPHERICITY", "LV end diastolic volume / volume of sphere on its long axis")),
            methods=_DISKS,
        ),
        Quantity(
            *("mass_g", ("left ventricular mass", "Linksventrikuläre Masse"), "g", (0, 1500)),
            structure=MYOCARDIUM.name,
            codes=_all(_MASS),
            methods=_all(_WALL),
            reference=Reference(female=(66, 150), male=(96, 200)),
        ),
        Quantity(
            "longitudinal_strain",
            (
                "strain, GLS (experimental, from contours)",
                "Strain, GLS (experimentell, aus Konturen)",
            ),
            *("%", (-60, 60), 1),
            structure=_LV,
            codes=_all(_STRAIN),
            note=_STRAIN_NOTE,
        ),
        Quantity(
            "end_diastolic_atrial_volume_ml",
            ("left atrial volume at end-diastole", "Volumen des linken Vorhofs, enddiastolisch"),
            *("ml", (0, 2000)),
            structure=_LA,
        ),
        Quantity(
            "end_systolic_atrial_volume_ml",
            ("left atrial volume at end-systole", "Volumen des linken Vorhofs, endsystolisch"),
            *("ml", (0, 2000)),
            structure=_LA,
            codes=_single(
                Code("79981-7", "LN", "Left atrial end systolic volume biplane (area-length)"),
                Code("399235004", "SCT", "Left Atrium Systolic Volume"),
            ),
            methods=_AREA_LENGTH,
        ),
        Quantity(
            "end_systolic_atrial_area_cm2",
            ("left atrial area at end-systole", "Fläche des linken Vorhofs, endsystolisch"),
            *("cm²", (0, 300), 1),
            structure=_LA,
            codes={
                FOUR_CHAMBER: Code("79974-2", "LN", "Left atrial end systolic area 4C"),
                TWO_CHAMBER: Code("79973-4", "LN", "Left atrial end systolic area 2C"),
            },
        ),
        Quantity(
            *("body_surface_m2", ("body surface area (DuBois)", "Körperoberfläche (DuBois)"), "m²", (0.1, 4), 2),
            codes={HEADER: Code("8277-6", "LN", "BSA")},
            methods={HEADER: Code("122241", "DCM", "BSA = 0.007184*WT^0.425*HT^0.725")},
        ),
        Quantity(
            "end_diastolic_volume_index",
            ("end-diastolic volume / body surface", "Enddiastolisches Volumen / Körperoberfläche"),
            *("ml/m²", (0, 1000)),
            structure=_LV,
            codes=_single(
                Code("79997-3", "LN", f"{_EDV_PER_BSA} biplane (MOD) / BSA"),
                _own("EDV_BSA", f"{_EDV_PER_BSA} single plane (MOD) / BSA"),
            ),
            methods=_DISKS,
            reference=Reference(female=(29, 61), male=(34, 74)),
            index_of="end_diastolic_volume_ml",
        ),
        Quantity(
            "end_systolic_volume_index",
            ("end-systolic volume / body surface", "Endsystolisches Volumen / Körperoberfläche"),
            *("ml/m²", (0, 1000)),
            structure=_LV,
            codes=_single(
                Code("80002-9", "LN", f"{_ESV_PER_BSA} biplane (MOD) / BSA"),
                _own("ESV_BSA", f"{_ESV_PER_BSA} single plane (MOD) / BSA"),
            ),
            methods=_DISKS,
            reference=Reference(female=(8, 24), male=(11, 31)),
            index_of="end_systolic_volume_ml",
        ),
        Quantity(
            "mass_index",
            ("left ventricular mass / body surface", "Linksventrikuläre Masse / Körperoberfläche"),
            *("g/m²", (0, 800)),
            structure=MYOCARDIUM.name,
            codes=_all(_own("MASS_BSA", "Left ventricular mass by wall volume / BSA")),
            methods=_all(_WALL),
            reference=Reference(female=(44, 88), male=(50, 102)),
            index_of="mass_g",
        ),
        Quantity(
            "atrial_volume_index",
            ("left atrial volume / body surface", "Volumen des linken Vorhofs / Körperoberfläche"),
            *("ml/m²", (0, 1000)),
            structure=_LA,
            codes=_single(
                Code("79982-5", "LN", "Left atrial end systolic volume biplane (area-length) / BSA"),
                _own("LAV_BSA", "Left atrial end systolic volume single plane (AL) / BSA"),
            ),
            methods=_AREA_LENGTH,
            reference=Reference(female=(16, 34), male=(16, 34)),
            index_of="end_systolic_atrial_volume_ml",
        ),
    )
}
"""Quantities by name, in the order in which they are reported. Ventricular volumes are by the method of disks, atrial ones by area and
length."""
