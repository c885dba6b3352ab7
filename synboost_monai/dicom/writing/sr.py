"""Write measurements of a study as DICOM Structured Report: TID 1500 with LOINC codes of the simplified adult echocardiography report.

Each number has its method, structure, algorithm and weights, and the frames and objects that it was measured on. If a person should
review the numbers, the report itself says so. Impossible numbers are refused, not written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synboost_monai.dicom.identity.identifiers import patient_text
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.dicom.writing.objects import (
    MANUFACTURER,
    Provenance,
    Series,
    ascii_text,
    derived_uid,
    evidence_of,
    is_date,
    quiet,
    save,
    settle,
    text_of,
    uid_of,
)
from synboost_monai.dicom.writing.seg import names_frames
from synboost_monai.structures import LEFT_ATRIUM, LEFT_VENTRICULAR_CAVITY, structure_by_name

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SERIES = Series(9102, "Left heart, measured on segmentations of a neural network")
"""Series of reports, unless another one is given."""
BIPLANE, FOUR_CHAMBER, TWO_CHAMBER = "biplane", "single_plane_four_chamber", "single_plane_two_chamber"
"""Methods of measurement: from both apical views, or from one."""
NEEDS_REVIEW = "Needs review by a physician before use"
"""First statement of a report in doubt."""
NOT_VERIFIED = "Measured by software without a person; not verified by a physician"
"""Statement of every report."""
EF_TOLERANCE = 1.0
"""Percentage points by which an ejection fraction may differ from that of the report's volumes, which were rounded."""

_LV, _LA = LEFT_VENTRICULAR_CAVITY.name, LEFT_ATRIUM.name
_DISKS = {BIPLANE: ("125207", "Method of Disks, Biplane")} | dict.fromkeys(
    (FOUR_CHAMBER, TWO_CHAMBER), ("125208", "Method of Disks, Single Plane")
)
_AREA_LENGTH = {BIPLANE: ("125204", "Area-Length Biplane")} | dict.fromkeys(
    (FOUR_CHAMBER, TWO_CHAMBER), ("125205", "Area-Length Single Plane")
)
_ATRIAL_VOLUME = ("399235004", "SCT", "Left Atrium Systolic Volume")


@dataclass(frozen=True)
class _Quantity:
    """Codes and limits of a quantity."""

    structure: str
    units: tuple[str, ...]
    """UCUM units in which it may be given."""
    largest: float
    """Largest possible value, in the first unit."""
    codes: dict[str, tuple[str, str, str]]
    """Method -> value, scheme and meaning (CID 12300, 12201 and 12205); methods without a code are refused."""
    methods: dict[str, tuple[str, str]] | None
    """Method -> DCM code and meaning (CID 12227)."""


QUANTITIES: dict[str, _Quantity] = {
    "end_diastolic_volume": _Quantity(
        _LV,
        ("mL",),
        2000,
        {
            BIPLANE: ("79996-5", "LN", "Left ventricular end diastolic volume biplane (MOD)"),
            FOUR_CHAMBER: ("79999-9", "LN", "Left ventricular end diastolic volume single plane 4C (MOD)"),
            TWO_CHAMBER: ("79998-1", "LN", "Left ventricular end diastolic volume single plane 2C (MOD)"),
        },
        _DISKS,
    ),
    "end_systolic_volume": _Quantity(
        _LV,
        ("mL",),
        2000,
        {
            BIPLANE: ("80001-1", "LN", "Left ventricular end systolic volume biplane (MOD)"),
            FOUR_CHAMBER: ("80004-5", "LN", "Left ventricular end systolic volume single plane 4C (MOD)"),
            TWO_CHAMBER: ("80003-7", "LN", "Left ventricular end systolic volume single plane 2C (MOD)"),
        },
        _DISKS,
    ),
    "ejection_fraction": _Quantity(
        _LV,
        ("%",),
        100,
        {
            BIPLANE: ("79991-6", "LN", "Left ventricular ejection fraction biplane (MOD)"),
            FOUR_CHAMBER: ("79993-2", "LN", "Left ventricular ejection fraction single plane 4C (MOD)"),
            TWO_CHAMBER: ("79992-4", "LN", "Left ventricular ejection fraction single plane 2C (MOD)"),
        },
        _DISKS,
    ),
    "left_atrial_volume": _Quantity(
        _LA,
        ("mL",),
        2000,
        {
            BIPLANE: ("79981-7", "LN", "Left atrial end systolic volume biplane (area-length)"),
            FOUR_CHAMBER: _ATRIAL_VOLUME,
            TWO_CHAMBER: _ATRIAL_VOLUME,
        },
        _AREA_LENGTH,
    ),
    "left_ventricular_length": _Quantity(
        _LV,
        ("cm", "mm"),
        30,
        {
            FOUR_CHAMBER: ("79994-0", "LN", "Left ventricular end diastolic length 4C"),
            TWO_CHAMBER: ("18077-8", "LN", "Left Ventricle diastolic major axis"),
        },
        None,
    ),
    "left_atrial_area": _Quantity(
        _LA,
        ("cm2", "mm2"),
        300,
        {
            FOUR_CHAMBER: ("79974-2", "LN", "Left atrial end systolic area 4C"),
            TWO_CHAMBER: ("79973-4", "LN", "Left atrial end systolic area 2C"),
        },
        None,
    ),
}
"""Quantities that a report can hold. Ventricular volumes are by the method of disks, atrial ones by area and length."""
_UNITS = {
    "mL": ("mL", "milliliter", 1.0),
    "%": ("%", "percent", 1.0),
    "cm": ("cm", "centimeter", 1.0),
    "mm": ("mm", "millimeter", 0.1),
    "cm2": ("cm2", "square centimeter", 1.0),
    "mm2": ("mm2", "square millimeter", 0.01),
}
"""Unit -> UCUM code, meaning, and factor to the quantity's first unit."""


@dataclass(frozen=True)
class SourceFrames:
    """Name the frames of one object that a number was measured on."""

    sop_class_uid: str
    sop_instance_uid: str
    frame_numbers: tuple[int, ...]
    """Frame numbers, counted from 1; (1,) for an object of one frame."""


@dataclass(frozen=True)
class Measurement:
    """Hold one number of a report."""

    quantity: str
    """A key of `QUANTITIES`."""
    method: str
    """biplane, single_plane_four_chamber or single_plane_two_chamber."""
    value: float
    unit: str
    """UCUM unit: mL, %, cm, mm, cm2 or mm2."""
    sources: tuple[SourceFrames, ...]
    """Frames measured; those of an ejection fraction include end diastole and end systole of each view."""


def write_report(
    sources: Sequence[Dataset],
    measurements: Sequence[Measurement],
    path: str | os.PathLike[str],
    *,
    provenance: Provenance,
    needs_review: bool = False,
    review_reasons: Sequence[str] = (),
    series: Series = SERIES,
) -> str:
    """Write the measurements of one study as a Comprehensive SR (TID 1500).

    Args:
        sources: headers of the objects that were measured, all of the same study of one patient.
        measurements: at least one.
        path: path of the file; written whole or not at all.
        provenance: provenance of the segmentations.
        needs_review: whether the numbers are in doubt; if so, the report says it in its qualitative evaluations and description, and its
            Completion Flag is partial.
        review_reasons: reasons of the doubt, in our own words, without text of the header.
        series: number and description of the series.
    Returns:
        The SOP Instance UID.
    Raises:
        ValueError: if a number is not valid: not finite, negative, of an unknown quantity, method or unit, an ejection fraction
            without both phases or different from that of its volumes, or not measured on frames of these sources.
        NotUsableError: if the sources are of several patients or studies, lack an identifier, or the file cannot be written.
    """
    if not sources or not measurements:
        raise ValueError("sr.py: a report needs at least one source and one measurement")
    _check_one_patient(sources)
    _check(measurements, {uid_of(source, "SOPInstanceUID"): source for source in sources})
    study = uid_of(sources[0], "StudyInstanceUID")
    description = f"{NEEDS_REVIEW}: {series.description}" if needs_review else series.description
    instances = sorted(uid_of(source, "SOPInstanceUID") for source in sources)
    identity = (study, *instances, provenance.key, str(series.number), str(series.instance_number), "report")

    import highdicom

    with quiet():
        content = _content(measurements, provenance, needs_review, review_reasons, identity)
        dataset = highdicom.sr.ComprehensiveSR(
            evidence=[evidence_of(source) for source in sources],
            content=content[0],
            series_instance_uid=derived_uid(study, provenance.key, "report series", str(series.number)),
            series_number=series.number,
            sop_instance_uid=derived_uid(*identity),
            instance_number=series.instance_number,
            manufacturer=MANUFACTURER,
            is_complete=not needs_review,
            series_description=ascii_text(description)[:64],
            manufacturer_model_name=ascii_text(provenance.model)[:64],
            software_versions=ascii_text(provenance.software_version)[:64],
            device_serial_number=provenance.weights_sha256[:16] or "0",
        )
        if needs_review:
            dataset.CompletionFlagDescription = NEEDS_REVIEW
        settle(dataset, sources[0])
    save(dataset, path)
    return str(dataset.SOPInstanceUID)


def is_believable(m: Measurement) -> bool:
    """Return whether a number of a known quantity is finite, not negative, and possible for a heart."""
    return math.isfinite(m.value) and 0 <= m.value * _UNITS[m.unit][2] <= QUANTITIES[m.quantity].largest


def _check_one_patient(sources: Sequence[Dataset]) -> None:
    """Refuse several studies or patients; a name may be written in several ways, and a birth date may be missing or invalid."""
    who = {(text_of(source, "StudyInstanceUID"), patient_text(source)) for source in sources}
    births = {text_of(source, "PatientBirthDate").replace(".", "") for source in sources}
    if len(who) > 1 or len(set(filter(is_date, births))) > 1:
        raise NotUsableError("patients_mixed")


def _check(measurements: Sequence[Measurement], source_of: dict[str, Dataset]) -> None:
    """Refuse numbers that are not valid."""
    numbers: dict[tuple[str, str], float] = {}
    for m in measurements:
        quantity = QUANTITIES.get(m.quantity)
        if quantity is None or m.method not in quantity.codes or m.unit not in quantity.units:
            raise ValueError(
                f"sr.py: no code for {m.quantity!r} by {m.method!r} in {m.unit!r}; there are "
                + ", ".join(
                    f"{name} ({' or '.join(q.units)}) by {', '.join(q.codes)}" for name, q in QUANTITIES.items()
                )
            )
        if not is_believable(m):
            raise ValueError(f"sr.py: {m.quantity} of {m.value} {m.unit} cannot be right")
        if (m.quantity, m.method) in numbers:
            raise ValueError(f"sr.py: {m.quantity} by {m.method} comes twice")
        numbers[m.quantity, m.method] = m.value
        if not m.sources or any(s.sop_instance_uid not in source_of or not s.frame_numbers for s in m.sources):
            raise ValueError(f"sr.py: {m.quantity} names no frame, or an object that is not among the sources")
        if any(uid_of(source_of[s.sop_instance_uid], "SOPClassUID") != s.sop_class_uid for s in m.sources):
            raise ValueError(f"sr.py: {m.quantity} names another SOP class than its source has")
        if any(number < 1 for s in m.sources for number in s.frame_numbers):
            raise ValueError(f"sr.py: {m.quantity}: frame numbers begin at 1")
    for m in measurements:
        if m.quantity == "ejection_fraction":
            _check_ejection_fraction(m, numbers)


def _check_ejection_fraction(m: Measurement, numbers: dict[tuple[str, str], float]) -> None:
    end_diastolic, end_systolic = (
        numbers.get((f"end_{phase}_volume", m.method)) for phase in ("diastolic", "systolic")
    )
    frames = {(source.sop_instance_uid, number) for source in m.sources for number in source.frame_numbers}
    if end_diastolic is None or end_systolic is None or len(frames) < (4 if m.method == BIPLANE else 2):
        raise ValueError(
            f"sr.py: an ejection fraction by {m.method} needs both volumes in the report, and frames of end diastole and end "
            "systole of each view"
        )
    if not 0 < end_diastolic or abs(100 * (1 - end_systolic / end_diastolic) - m.value) > EF_TOLERANCE:
        raise ValueError(
            f"sr.py: an ejection fraction of {m.value:.1f} % does not follow from {end_diastolic:.1f} mL and "
            f"{end_systolic:.1f} mL"
        )


def _content(
    measurements: Sequence[Measurement],
    provenance: Provenance,
    needs_review: bool,
    review_reasons: Sequence[str],
    identity: tuple[str, ...],
) -> Any:
    """Return the content tree of the report."""
    import highdicom.sr as sr
    from pydicom.sr.codedict import codes

    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=derived_uid(provenance.key, "device"),
            name=MANUFACTURER,
            manufacturer_name=MANUFACTURER,
            model_name=ascii_text(provenance.model),
            serial_number=provenance.weights_sha256[:16] or "0",
        ),
    )
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for m in measurements:
        groups.setdefault((QUANTITIES[m.quantity].structure, m.method), []).append(m)
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=sr.CodedConcept("433236007", "SCT", "Transthoracic echocardiography"),
        imaging_measurements=[
            _group(structure, method, members, provenance, derived_uid(*identity, structure, method))
            for (structure, method), members in groups.items()
        ],
        title=codes.DCM.ImagingMeasurementReport,
    )
    statements = [NOT_VERIFIED]
    if needs_review:
        statements = [NEEDS_REVIEW + "".join(f"; {reason}" for reason in review_reasons), *statements]
    evaluations = sr.ContainerContentItem(
        name=sr.CodedConcept("C0034375", "UMLS", "Qualitative Evaluations"),
        relationship_type=sr.RelationshipTypeValues.CONTAINS,
    )
    evaluations.ContentSequence = sr.ContentSequence(
        [
            sr.TextContentItem(
                name=codes.DCM.Comment,
                value=ascii_text(statement),
                relationship_type=sr.RelationshipTypeValues.CONTAINS,
            )
            for statement in statements
        ]
    )
    report[0].ContentSequence.append(evaluations)
    return report


def _group(structure: str, method: str, members: Sequence[Measurement], provenance: Provenance, uid: str) -> Any:
    """Return the measurements of one structure by one method."""
    import highdicom.sr as sr
    from pydicom.sr.codedict import codes

    site = structure_by_name(structure).code
    algorithm = sr.AlgorithmIdentification(
        name=ascii_text(provenance.model),
        version=ascii_text(provenance.software_version),
        parameters=[f"{name}={value}" for name, value in provenance.parameters().items()] or None,
        family=codes.DCM.ArtificialIntelligence,
        manufacturer=MANUFACTURER,
    )
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=uid, identifier=f"{structure} {method}"),
        finding_type=sr.CodedConcept(site[0], "SCT", site[1]),
        algorithm_id=algorithm,
        measurements=[_measurement(m) for m in members],
    )


def _measurement(m: Measurement) -> Any:
    import highdicom.sr as sr

    quantity = QUANTITIES[m.quantity]
    site = structure_by_name(quantity.structure).code
    code, meaning, _ = _UNITS[m.unit]
    return sr.Measurement(
        name=sr.CodedConcept(*quantity.codes[m.method]),
        value=round(float(m.value), 2),
        unit=sr.CodedConcept(code, "UCUM", meaning),
        method=sr.CodedConcept(quantity.methods[m.method][0], "DCM", quantity.methods[m.method][1])
        if quantity.methods
        else None,
        finding_sites=[sr.FindingSite(sr.CodedConcept(site[0], "SCT", site[1]))],
        referenced_images=[
            sr.SourceImageForMeasurement(
                source.sop_class_uid,
                source.sop_instance_uid,
                list(source.frame_numbers) if names_frames(source.sop_class_uid, source.frame_numbers) else None,
            )
            for source in m.sources
        ],
    )
