"""Compute the clinical measures of a patient from label maps of two views and two phases: volumes, ejection fraction, mass, lengths.

A measure that cannot be computed is None with a reason, never a number: the mask is empty, a view or a phase is missing, or the
pixel spacing is not known.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from synboost_monai.heart.volumes import (
    MAX_LENGTH_DIFFERENCE,
    Atrium,
    CannotMeasureError,
    Disks,
    Ventricle,
    area_length_volume_ml,
    camus_volumes_ml,
    disk_volume_ml,
    ejection_fraction,
    length_difference,
    longitudinal_strain,
    measure_atrium,
    measure_epicardium,
    measure_ventricle,
    sphericity_index,
    wall_mass_g,
)
from synboost_monai.quantities import QUANTITIES
from synboost_monai.records import PHASES, VIEWS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Frame = tuple[NDArray[Any], Sequence[float] | None] | str

T = TypeVar("T")

TWO_CHAMBER, FOUR_CHAMBER = VIEWS.values()
END_DIASTOLE, END_SYSTOLE = PHASES.values()

MEASURES: dict[str, tuple[str, str]] = {
    name: (QUANTITIES[name].words[0], QUANTITIES[name].unit)
    for name in (
        "end_diastolic_volume_ml",
        "end_systolic_volume_ml",
        "ejection_fraction",
        "end_diastolic_length_mm",
        "end_systolic_length_mm",
        "end_diastolic_atrial_volume_ml",
        "end_systolic_atrial_volume_ml",
    )
}
"""Measure -> its description and unit: what evaluations compare with experts. Differences of ejection fractions are in percentage
points."""
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "biplane": ("biplane", (TWO_CHAMBER, FOUR_CHAMBER)),
    "biplane_camus": ("biplane, CAMUS's rule", (TWO_CHAMBER, FOUR_CHAMBER)),
    "four_chamber": ("four-chamber view", (FOUR_CHAMBER,)),
    "two_chamber": ("two-chamber view", (TWO_CHAMBER,)),
}
"""Method -> its description and the views that it needs. Left ventricular volumes come from Simpson's method of disks in both planes
or one, and from `camus_volumes_ml`, whose ejection fraction compares with Info_*.cfg of CAMUS; left atrial volumes come from the
area-length method (see `volumes.py`)."""
HEIGHTS_M, WEIGHTS_KG = (0.4, 2.5), (2.0, 400.0)
"""Lowest and highest plausible height and weight; a height in centimetres is not plausible in metres."""
_WORDS = {TWO_CHAMBER: "two-chamber view", FOUR_CHAMBER: "four-chamber view"}
_PHASE_WORDS = {END_DIASTOLE: "end-diastole", END_SYSTOLE: "end-systole"}


@dataclass(frozen=True)
class ClinicalMeasure:
    """Hold one measure by one method."""

    measure: str
    """A key of `quantities.QUANTITIES`."""
    method: str
    """A key of `METHODS`."""
    value: float | None
    """Value in the measure's unit."""
    reason: str = ""
    """Why there is no value."""
    warning: str = ""
    """Why the value is in doubt."""


def measure_patient(
    frames: Mapping[tuple[str, str], Frame], *, is_one_clip: bool = False, more: bool = False
) -> list[ClinicalMeasure]:
    """Compute every measure of `MEASURES` by every method that applies, in that order.

    Args:
        frames: (view, phase), such as ("apical_four_chamber", "end_systole"), -> label map (H, W) with classes 0..3 and its
            spacing_mm (row, column; None if it is not known); or a text that says why there is no label map. A view and phase that
            is left out counts as missing.
        is_one_clip: both phases of a view come from one clip, at one scale and with square pixels, so that its ejection fraction, a
            ratio, can be computed without a spacing.
        more: also compute stroke volume, sphericity, mass, longitudinal strain and the area of the atrium, but nothing by CAMUS's rule.
    Raises:
        ValueError: if a view or phase is unknown, or an array is not a label map.
    """
    known = {(view, phase) for view in VIEWS.values() for phase in PHASES.values()}
    if unknown := set(frames) - known:
        raise ValueError(f"measures.py: expected (view, phase) of {sorted(known)}, got {sorted(unknown)}")
    unscaled = {
        key: (frame[0], (1.0, 1.0))
        for key, frame in frames.items()
        if is_one_clip and not isinstance(frame, str) and frame[1] is None
    }
    heart = _Heart(
        {key: _attempt(measure_ventricle, key, frames) for key in known},
        {key: _attempt(measure_atrium, key, frames) for key in known},
        {key: _attempt(measure_ventricle, key, unscaled) for key in unscaled},
        {key: _attempt(measure_epicardium, key, frames) for key in known if more and key[1] == END_DIASTOLE},
    )
    found = []
    for method in METHODS:
        if not (more and method == "biplane_camus"):
            found += [*heart.ventricular(method), *heart.lengths(method), *heart.atrial(method)]
            found += heart.further(method) if more else []
    order = list(QUANTITIES)
    return sorted(found, key=lambda m: order.index(m.measure))  # stable: methods keep their order


@dataclass(frozen=True)
class _Heart:
    """Hold what was measured in each view and phase, or the reason why nothing was."""

    ventricles: Mapping[tuple[str, str], Ventricle | str]
    atria: Mapping[tuple[str, str], Atrium | str]
    unscaled: Mapping[tuple[str, str], Ventricle | str]
    """Ventricles of frames whose spacing is not known, with a pixel taken as 1 mm; used only for ratios within a view."""
    epicardia: Mapping[tuple[str, str], Disks | str]
    """Ventricles with their walls at end-diastole; empty if they are not wanted."""

    def ventricular(self, method: str) -> list[ClinicalMeasure]:
        """Return left ventricular volumes and ejection fraction."""
        diastolic, systolic = (self._volume(method, phase) for phase in (END_DIASTOLE, END_SYSTOLE))
        found = [
            _measured("end_diastolic_volume_ml", method, diastolic, self._warning(method, END_DIASTOLE)),
            _measured("end_systolic_volume_ml", method, systolic, self._warning(method, END_SYSTOLE)),
        ]
        warnings = [m.warning for m in found if m.warning]
        views = METHODS[method][1]
        if len(views) == 1 and all((views[0], phase) in self.unscaled for phase in (END_DIASTOLE, END_SYSTOLE)):
            diastolic, systolic = (
                _from_all(disk_volume_ml, self.unscaled, views, [phase]) for phase in (END_DIASTOLE, END_SYSTOLE)
            )
        fraction = _of_known(ejection_fraction, diastolic, systolic)
        if not isinstance(fraction, str) and fraction < 0:
            warnings.append("the end-systolic volume is the larger one")
        return [*found, _measured("ejection_fraction", method, fraction, "; ".join(warnings))]

    def lengths(self, method: str) -> list[ClinicalMeasure]:
        """Return the lengths of the left ventricle, for methods with a single view."""
        views = METHODS[method][1]
        if len(views) > 1:
            return []
        found = []
        for phase, name in ((END_DIASTOLE, "end_diastolic_length_mm"), (END_SYSTOLE, "end_systolic_length_mm")):
            ventricle = self.ventricles[views[0], phase]
            found.append(_measured(name, method, ventricle if isinstance(ventricle, str) else ventricle.length_mm))
        return found

    def atrial(self, method: str) -> list[ClinicalMeasure]:
        """Return the volumes of the left atrium."""
        if method == "biplane_camus":
            return []
        found = []
        for phase, prefix in ((END_DIASTOLE, "end_diastolic"), (END_SYSTOLE, "end_systolic")):
            value = _from_all(area_length_volume_ml, self.atria, METHODS[method][1], [phase])
            found.append(_measured(f"{prefix}_atrial_volume_ml", method, value))
        return found

    def further(self, method: str) -> list[ClinicalMeasure]:
        """Return stroke volume, sphericity, mass, longitudinal strain, and for methods with a single view the area of the atrium."""
        views = METHODS[method][1]
        volumes = [self._volume(method, phase) for phase in (END_DIASTOLE, END_SYSTOLE)]
        warnings = dict.fromkeys(w for p in (END_DIASTOLE, END_SYSTOLE) if (w := self._warning(method, p)))
        both, diastole = "; ".join(warnings), self._warning(method, END_DIASTOLE)

        def sphericity(*cavities: Ventricle) -> float:
            return sphericity_index(disk_volume_ml(*cavities), *cavities)

        def strain(*cavities: Ventricle) -> float:
            return longitudinal_strain(cavities[: len(views)], cavities[len(views) :])

        def mass(*parts: Any) -> float:
            return wall_mass_g(parts[: len(views)], parts[len(views) :])

        walls = {**self.ventricles, **{(view, "wall"): self.epicardia[view, END_DIASTOLE] for view in views}}
        found = [
            _measured("stroke_volume_ml", method, _of_known(operator.sub, *volumes), both),
            _measured("sphericity", method, _from_all(sphericity, self.ventricles, views, [END_DIASTOLE]), diastole),
            _measured("mass_g", method, _from_all(mass, walls, views, [END_DIASTOLE, "wall"]), diastole),
            _measured(
                "longitudinal_strain",
                method,
                _from_all(strain, self.ventricles, views, [END_DIASTOLE, END_SYSTOLE]),
            ),
        ]
        if len(views) == 1:
            area = _from_all(lambda atrium: atrium.area_mm2 / 100, self.atria, views, [END_SYSTOLE])
            found.append(_measured("end_systolic_atrial_area_cm2", method, area))
        return found

    def _volume(self, method: str, phase: str) -> float | str:
        views = METHODS[method][1]
        if method != "biplane_camus":
            return _from_all(disk_volume_ml, self.ventricles, views, [phase])

        def of_phase(a: Ventricle, b: Ventricle, c: Ventricle, d: Ventricle) -> float:
            return camus_volumes_ml((a, b), (c, d))[phase == END_SYSTOLE]

        return _from_all(of_phase, self.ventricles, views, [END_DIASTOLE, END_SYSTOLE])

    def _warning(self, method: str, phase: str) -> str:
        """Return a warning if the long axes of the views differ too much."""
        pair = [self.ventricles[view, phase] for view in METHODS[method][1]]
        ventricles = [v for v in pair if isinstance(v, Ventricle)]
        if len(ventricles) < 2 or length_difference(*ventricles) <= MAX_LENGTH_DIFFERENCE:
            return ""
        return f"the views' long axes differ by more than {100 * MAX_LENGTH_DIFFERENCE:.0f} % at {_PHASE_WORDS[phase]}"


def body_surface_m2(height_m: float | None, weight_kg: float | None) -> float:
    """Return the surface of a body: 0.007184 W^0.425 H^0.725, with H in cm (DuBois and DuBois, Arch Intern Med 1916;17:863-871).

    Raises:
        CannotMeasureError: if height or weight is not known or not plausible.
    """
    for words, value, (low, high), unit in (
        ("height", height_m, HEIGHTS_M, "m"),
        ("weight", weight_kg, WEIGHTS_KG, "kg"),
    ):
        if not value:  # headers write 0 for a value that nobody entered
            raise CannotMeasureError(f"the header gives no {words}")
        if not low <= value <= high:
            raise CannotMeasureError(f"the header's {words} is not plausible: {low:g} to {high:g} {unit} were expected")
    assert height_m is not None and weight_kg is not None
    return float(0.007184 * weight_kg**0.425 * (100 * height_m) ** 0.725)


def _attempt(
    measure: Callable[[NDArray[Any], Sequence[float] | None], T],
    key: tuple[str, str],
    frames: Mapping[tuple[str, str], Frame],
) -> T | str:
    """Measure a frame, or return the reason why it cannot be measured."""
    where = f"{_WORDS[key[0]]}, {_PHASE_WORDS[key[1]]}"
    frame = frames.get(key, "no image")
    if isinstance(frame, str):
        return f"{where}: {frame}"
    try:
        return measure(*frame)
    except CannotMeasureError as error:
        return f"{where}: {error}"


def _from_all(
    value: Callable[..., float], parts: Mapping[tuple[str, str], Any], views: Sequence[str], phases: Sequence[str]
) -> float | str:
    """Apply `value` to the parts of all views and phases, phase by phase; or return the reasons of those that are missing."""
    return _of_known(value, *(parts[view, phase] for phase in phases for view in views))


def _of_known(value: Callable[..., float], *parts: Any) -> float | str:
    """Apply `value` to these parts; or return the reasons of those that are missing."""
    missing = [part for part in parts if isinstance(part, str)]
    return "; ".join(dict.fromkeys(missing)) if missing else value(*parts)


def _measured(measure: str, method: str, value: float | str, warning: str = "") -> ClinicalMeasure:
    if isinstance(value, str):
        return ClinicalMeasure(measure, method, None, reason=value)
    return ClinicalMeasure(measure, method, value, warning=warning)
