"""Compute the clinical measures of a patient from label maps of two views and two phases: volumes, ejection fraction, lengths.

A measure that cannot be computed is None with a reason, never a number: the mask is empty, a view or a phase is missing, or the
pixel spacing is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from synboost_monai.heart.volumes import (
    MAX_LENGTH_DIFFERENCE,
    Atrium,
    CannotMeasureError,
    Ventricle,
    area_length_volume_ml,
    camus_volumes_ml,
    disk_volume_ml,
    ejection_fraction,
    length_difference,
    measure_atrium,
    measure_ventricle,
)
from synboost_monai.records import PHASES, VIEWS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Frame = tuple[NDArray[Any], Sequence[float] | None] | str

T = TypeVar("T")

TWO_CHAMBER, FOUR_CHAMBER = VIEWS.values()
END_DIASTOLE, END_SYSTOLE = PHASES.values()

MEASURES: dict[str, tuple[str, str]] = {
    "end_diastolic_volume_ml": ("end-diastolic volume", "ml"),
    "end_systolic_volume_ml": ("end-systolic volume", "ml"),
    "ejection_fraction": ("ejection fraction", "%"),
    "end_diastolic_length_mm": ("left ventricular length at end-diastole", "mm"),
    "end_systolic_length_mm": ("left ventricular length at end-systole", "mm"),
    "end_diastolic_atrial_volume_ml": ("left atrial volume at end-diastole", "ml"),
    "end_systolic_atrial_volume_ml": ("left atrial volume at end-systole", "ml"),
}
"""Measure -> its description and unit. Differences of ejection fractions are in percentage points."""
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "biplane": ("biplane", (TWO_CHAMBER, FOUR_CHAMBER)),
    "biplane_camus": ("biplane, CAMUS's rule", (TWO_CHAMBER, FOUR_CHAMBER)),
    "four_chamber": ("four-chamber view", (FOUR_CHAMBER,)),
    "two_chamber": ("two-chamber view", (TWO_CHAMBER,)),
}
"""Method -> its description and the views that it needs. Left ventricular volumes come from Simpson's method of disks in both planes
or one, and from `camus_volumes_ml`, whose ejection fraction compares with Info_*.cfg of CAMUS; left atrial volumes come from the
area-length method (see `volumes.py`)."""
_WORDS = {TWO_CHAMBER: "two-chamber view", FOUR_CHAMBER: "four-chamber view"}
_PHASE_WORDS = {END_DIASTOLE: "end-diastole", END_SYSTOLE: "end-systole"}


@dataclass(frozen=True)
class ClinicalMeasure:
    """Hold one measure by one method."""

    measure: str
    """A key of `MEASURES`."""
    method: str
    """A key of `METHODS`."""
    value: float | None
    """Value in the measure's unit."""
    reason: str = ""
    """Why there is no value."""
    warning: str = ""
    """Why the value is in doubt."""


def measure_patient(frames: Mapping[tuple[str, str], Frame], *, is_one_clip: bool = False) -> list[ClinicalMeasure]:
    """Compute every measure of `MEASURES` by every method that applies, in that order.

    Args:
        frames: (view, phase), such as ("apical_four_chamber", "end_systole"), -> label map (H, W) with classes 0..3 and its
            spacing_mm (row, column; None if it is not known); or a text that says why there is no label map. A view and phase that
            is left out counts as missing.
        is_one_clip: both phases of a view come from one clip, at one scale and with square pixels, so that its ejection fraction, a
            ratio, can be computed without a spacing.
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
    )
    found = []
    for method in METHODS:
        found += [*heart.ventricular(method), *heart.lengths(method), *heart.atrial(method)]
    order = list(MEASURES)
    return sorted(found, key=lambda m: order.index(m.measure))  # stable: methods keep their order


@dataclass(frozen=True)
class _Heart:
    """Hold what was measured in each view and phase, or the reason why nothing was."""

    ventricles: Mapping[tuple[str, str], Ventricle | str]
    atria: Mapping[tuple[str, str], Atrium | str]
    unscaled: Mapping[tuple[str, str], Ventricle | str]
    """Ventricles of frames whose spacing is not known, with a pixel taken as 1 mm; used only for ratios within a view."""

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
        fraction: float | str
        if isinstance(diastolic, str) or isinstance(systolic, str):
            fraction = "; ".join(dict.fromkeys(v for v in (diastolic, systolic) if isinstance(v, str)))
        else:
            fraction = ejection_fraction(diastolic, systolic)
            if fraction < 0:
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
    needed = [parts[view, phase] for phase in phases for view in views]
    missing = [part for part in needed if isinstance(part, str)]
    return "; ".join(missing) if missing else value(*needed)


def _measured(measure: str, method: str, value: float | str, warning: str = "") -> ClinicalMeasure:
    if isinstance(value, str):
        return ClinicalMeasure(measure, method, None, reason=value)
    return ClinicalMeasure(measure, method, value, warning=warning)
