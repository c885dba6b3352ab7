"""Write measurements of a study as DICOM Structured Report: TID 1500 with the names of the adult echocardiography reports (TID 5200, 5300).

Each number has its method, structure, algorithm and weights, the frames and objects that it was measured on, the normal range where there
is one, and a comment if it is in doubt. If a person should review the numbers, the report itself says so. Impossible numbers are refused,
not written. Names, units, limits and codes are those of `quantities.QUANTITIES`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from synboost_monai.dicom.identity.identifiers import patient_text
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.dicom.writing.objects import (
    MANUFACTURER,
    Provenance,
    Series,
    ascii_text,
    builder_options,
    derived_uid,
    evidence_of,
    is_date,
    quiet,
    save,
    settle,
    text_of,
    uid_of,
)
from synboost_monai.dicom.writing.seg import concept_of, names_frames
from synboost_monai.quantities import BIPLANE, QUANTITIES, RANGE_SOURCE, Code, Range
from synboost_monai.structures import structure_by_name

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SERIES = Series(9102, "Left heart, measured on segmentations of a neural network")
"""Series of reports."""
NEEDS_REVIEW = "Needs review by a physician before use"
"""First statement of a report in doubt."""
NOT_VERIFIED = "Measured by software without a person; not verified by a physician"
"""Statement of every report."""
EF_TOLERANCE = 1.0
"""Percentage points by which an ejection fraction may differ from that of the report's volumes, which were rounded."""

UCUM = {
    "ml": ("mL", "milliliter"),
    "%": ("%", "percent"),
    "mm": ("mm", "millimeter"),
    "cm²": ("cm2", "square centimeter"),
    "m²": ("m2", "square meter"),
    "g": ("g", "gram"),
    "ml/m²": ("mL/m2", "milliliter per square meter"),
    "g/m²": ("g/m2", "gram per square meter"),
    "/min": ("{H.B.}/min", "heart beats per minute"),
    "1": ("1", "no units"),
}
"""Unit of the table of quantities -> UCUM code and meaning."""


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
    """A method that the quantity has a code for."""
    value: float
    """Value in the quantity's unit."""
    sources: tuple[SourceFrames, ...]
    """Frames measured; those of an ejection fraction include end diastole and end systole of each view."""
    beat: int | None = None
    """Number of the beat in its clip, from 1; None for a number of the study."""
    comments: tuple[str, ...] = ()
    """Why the number is in doubt, and what it comes from; in our own words, without text of the header."""
    reference: Range | None = None
    """Lower and upper limit of the normal range of the patient's sex."""


def write_report(
    sources: Sequence[Dataset],
    measurements: Sequence[Measurement],
    path: str | os.PathLike[str],
    *,
    provenance: Provenance,
    needs_review: bool = False,
    review_reasons: Sequence[str] = (),
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
    Returns:
        The SOP Instance UID.
    Raises:
        ValueError: if a number is not valid: not finite, possible, of an unknown quantity or method, an ejection fraction without
             both phases or different from that of its volumes, or not measured on frames of these sources.
        NotUsableError: if the sources are of several patients or studies, lack an identifier, or the file cannot be written.
    """
    if not sources or not measurements:
        raise ValueError("sr.py: a report needs at least one source and one measurement")
    _check_one_patient(sources)
    _check(measurements, {uid_of(source, "SOPInstanceUID"): source for source in sources})
    study = uid_of(sources[0], "StudyInstanceUID")
    series = replace(SERIES, description=f"{NEEDS_REVIEW}: {SERIES.description}") if needs_review else SERIES
    instances = sorted(uid_of(source, "SOPInstanceUID") for source in sources)
    identity = (study, *instances, provenance.key, *series.key, "report")

    statements = [NOT_VERIFIED]
    if needs_review:
        statements = [NEEDS_REVIEW + "".join(f"; {reason}" for reason in review_reasons), *statements]
    groups: dict[tuple[str, str, int | None], list[Measurement]] = {}
    for m in measurements:
        groups.setdefault((QUANTITIES[m.quantity].structure, m.method, m.beat), []).append(m)
    with quiet():
        dataset = report_of(
            sources,
            [
                _group(members, provenance, derived_uid(*identity, structure, method, str(beat or "")))
                for (structure, method, beat), members in groups.items()
            ],
            statements,
            provenance=provenance,
            uids=(derived_uid(study, provenance.key, "report series", str(series.number)), derived_uid(*identity)),
            series=series,
            is_complete=not needs_review,
        )
        if needs_review:
            dataset.CompletionFlagDescription = NEEDS_REVIEW
    save(dataset, path)
    return str(dataset.SOPInstanceUID)


def report_of(
    sources: Sequence[Dataset],
    groups: Sequence[Any],
    statements: Sequence[str],
    *,
    provenance: Provenance,
    uids: tuple[str, str],
    series: Series,
    is_complete: bool = True,
) -> Dataset:
    """Return a Comprehensive SR (TID 1500) in the study of its sources.

    Args:
        sources: headers of the objects that it refers to.
        groups: groups of measurements, of highdicom.
        statements: sentences about the whole report.
        provenance: provenance of its content.
        uids: Series and SOP Instance UID.
        series: number and description of the series.
        is_complete: whether nothing is left to be reviewed.
    """
    import highdicom

    dataset = highdicom.sr.ComprehensiveSR(
        evidence=[evidence_of(source) for source in sources],
        content=_content(groups, statements, provenance)[0],
        series_instance_uid=uids[0],
        sop_instance_uid=uids[1],
        is_complete=is_complete,
        **builder_options(provenance, series),
    )
    settle(dataset, sources[0])
    return dataset


def algorithm_of(provenance: Provenance) -> Any:
    """Return the model as the algorithm of a group of measurements."""
    import highdicom.sr as sr
    from pydicom.sr.codedict import codes

    return sr.AlgorithmIdentification(
        name=ascii_text(provenance.model),
        version=ascii_text(provenance.software_version),
        parameters=[f"{name}={value}" for name, value in provenance.parameters().items()] or None,
        family=codes.DCM.ArtificialIntelligence,
        manufacturer=MANUFACTURER,
    )


def is_believable(m: Measurement) -> bool:
    """Return whether a number of a known quantity is finite and possible for a heart."""
    low, high = QUANTITIES[m.quantity].limits
    return math.isfinite(m.value) and low <= m.value <= high


def _check_one_patient(sources: Sequence[Dataset]) -> None:
    """Refuse several studies or patients; a name may be written in several ways, and a birth date may be missing or invalid."""
    who = {(text_of(source, "StudyInstanceUID"), patient_text(source)) for source in sources}
    births = {text_of(source, "PatientBirthDate").replace(".", "") for source in sources}
    if len(who) > 1 or len(set(filter(is_date, births))) > 1:
        raise NotUsableError("patients_mixed")


def _check(measurements: Sequence[Measurement], source_of: dict[str, Dataset]) -> None:
    """Refuse numbers that are not valid."""
    numbers: dict[tuple[str, str, int | None], float] = {}
    for m in measurements:
        quantity = QUANTITIES.get(m.quantity)
        if quantity is None or m.method not in quantity.codes:
            known = (f"{name} by {', '.join(q.codes)}" for name, q in QUANTITIES.items() if q.codes)
            raise ValueError(f"sr.py: no code for {m.quantity!r} by {m.method!r}; there are {'; '.join(known)}")
        if not is_believable(m):
            raise ValueError(f"sr.py: {m.quantity} of {m.value} {quantity.unit} cannot be right")
        if (m.quantity, m.method, m.beat) in numbers:
            raise ValueError(f"sr.py: {m.quantity} by {m.method} comes twice")
        numbers[m.quantity, m.method, m.beat] = m.value
        if not m.sources or any(s.sop_instance_uid not in source_of or not s.frame_numbers for s in m.sources):
            raise ValueError(f"sr.py: {m.quantity} names no frame, or an object that is not among the sources")
        if any(uid_of(source_of[s.sop_instance_uid], "SOPClassUID") != s.sop_class_uid for s in m.sources):
            raise ValueError(f"sr.py: {m.quantity} names another SOP class than its source has")
        if any(number < 1 for s in m.sources for number in s.frame_numbers):
            raise ValueError(f"sr.py: {m.quantity}: frame numbers begin at 1")
    for m in measurements:
        if m.quantity == "ejection_fraction":
            _check_ejection_fraction(m, numbers)


def _check_ejection_fraction(m: Measurement, numbers: dict[tuple[str, str, int | None], float]) -> None:
    end_diastolic, end_systolic = (
        numbers.get((f"end_{phase}_volume_ml", m.method, m.beat)) for phase in ("diastolic", "systolic")
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


def _content(groups: Sequence[Any], statements: Sequence[str], provenance: Provenance) -> Any:
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
            serial_number=provenance.serial_number,
        ),
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=sr.CodedConcept("433236007", "SCT", "Transthoracic echocardiography"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
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


def _group(members: Sequence[Measurement], provenance: Provenance, uid: str) -> Any:
    """Return the measurements of one structure by one method, of the study or of one beat."""
    import highdicom.sr as sr

    first = members[0]
    words = [QUANTITIES[first.quantity].structure or "patient", first.method]
    words += [] if first.beat is None else ["beat", str(first.beat)]
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=uid, identifier=" ".join(words)),
        finding_type=_site(first),
        algorithm_id=algorithm_of(provenance),
        measurements=[_measurement(m) for m in members],
    )


def _site(m: Measurement) -> Any:
    """Return the code of the structure that was measured; None if it is none of a label map."""
    name = QUANTITIES[m.quantity].structure
    return concept_of(structure_by_name(name)) if name else None


def _concept(code: Code | None) -> Any:
    from highdicom.sr import CodedConcept

    return None if code is None else CodedConcept(code.value, code.scheme, code.meaning)


def _normal_range(limits: Range, unit: Any) -> Any:
    """Return the normal range of a number (TID 310 and 312)."""
    import highdicom.sr as sr

    names = (("385524004", "Normal Range Lower Limit"), ("371933006", "Normal Range Upper Limit"))
    values = [
        sr.NumContentItem(
            name=sr.CodedConcept(code, "SCT", meaning),
            value=float(limit),
            unit=unit,
            relationship_type=sr.RelationshipTypeValues.HAS_PROPERTIES,
        )
        for (code, meaning), limit in zip(names, limits)
    ]
    return sr.MeasurementProperties(normal_range_properties=sr.NormalRangeProperties(values, authority=RANGE_SOURCE))


def _measurement(m: Measurement) -> Any:
    import highdicom.sr as sr
    from pydicom.sr.codedict import codes

    quantity = QUANTITIES[m.quantity]
    unit, site = sr.CodedConcept(*_ucum(quantity.unit)), _site(m)
    measurement = sr.Measurement(
        name=_concept(quantity.codes[m.method]),
        value=round(float(m.value), 2),
        unit=unit,
        derivation=_concept(quantity.derivation),
        method=_concept(quantity.methods.get(m.method)),
        finding_sites=None if site is None else [sr.FindingSite(site)],
        properties=None if m.reference is None else _normal_range(m.reference, unit),
        referenced_images=[
            sr.SourceImageForMeasurement(
                source.sop_class_uid,
                source.sop_instance_uid,
                list(source.frame_numbers) if names_frames(source.sop_class_uid, source.frame_numbers) else None,
            )
            for source in m.sources
        ],
    )
    property_of = sr.RelationshipTypeValues.HAS_PROPERTIES
    children = measurement[0].ContentSequence
    if m.beat is not None:  # not in the group, where readers take every number for a measurement
        no_unit = sr.CodedConcept(*_ucum("1"))
        children.append(sr.NumContentItem(codes.DCM.BeatNumber, m.beat, no_unit, relationship_type=property_of))
    for comment in m.comments:
        children.append(sr.TextContentItem(codes.DCM.Comment, ascii_text(comment), relationship_type=property_of))
    return measurement


def _ucum(unit: str) -> tuple[str, str, str]:
    code, meaning = UCUM[unit]
    return code, "UCUM", meaning
