"""Measure the left ventricle, its wall and the left atrium in an apical view; compute volumes and mass from one or two such views.

The long axis is defined as in CAMUS: from the middle of the mitral annulus, a point on the cavity's outline, to the apex, the point of
the outline farthest from it. The annulus is the stretch of the outline that is nearer to the left atrium than to the myocardium, so
that it is found whether or not predicted structures touch; if there is no such stretch, it is the longest one without myocardium beside
it.

Two rules for the disks of a biplane volume:

- `disk_volume_ml` follows the recommendation of the American Society of Echocardiography (Lang et al., J Am Soc Echocardiogr
  2015;28:1-39): twenty disks with the mean diameter of each view; in each phase the longer of the two axes sets the disks' height.
- `camus_volumes_ml` follows the script of CAMUS's authors (script_camus_ef.ipynb, on the data set's site), which gave the
  ejection fractions of Info_*.cfg: diameters at the basal side of each disk, and one height for both phases, from the longest of
  the four axes. As the shortening of the long axis does not count, its ejection fractions are lower.

The mass of the wall is the volume within the epicardium minus the cavity's, both by disks, times the density of muscle. Area and length
of short axes, as in Lang et al. 2015, need a view that is not apical.

Outlines run between the centres of pixels (marching squares), so that lengths and areas are exact to a fraction of a pixel at any
rotation. All lengths are in millimetres; points are (y, x) from the centre of the first pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from synboost_monai.structures import LEFT_ATRIUM, LEFT_VENTRICULAR_CAVITY, MYOCARDIUM, NUM_CLASSES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

NUM_DISKS = 20
"""Disks from base to apex (Lang et al. 2015)."""
MAX_LENGTH_DIFFERENCE = 0.10
"""Largest difference of the long axes of two views in one phase, as a share of the longer one; beyond it a view is foreshortened or
missed the axis (Lang et al. 2015)."""
AREA_LENGTH_FACTOR = 0.85
"""8 / (3 pi), as rounded in the area-length formula (Lang et al. 2015)."""
MIN_AXIS_PIXELS = 8
"""Shortest long axis of a ventricle or an atrium that is measured: volumes of fewer pixels mean nothing."""
MAX_ANNULUS_SHARE = 0.5
"""Largest share of the cavity's outline that the annulus may take up; if more is open, the base is not known. Experts' label maps have
0.1 to 0.2."""
CAMUS_REACH_PIXELS = 8
"""Distance from the axis at which CAMUS's script starts to look for the cavity's border on each side."""
MAX_WALL_GAP_MM = 3.0
"""Largest gap between the cavity's border and myocardium that covers it: predicted structures leave gaps between them."""
MAX_ATRIUM_REACH_MM = 5.0
"""How much farther from the atrium the annulus may be than the cavity's nearest point; it limits the annulus where there is no
myocardium."""
MAX_BARE_SHARE = 0.05
"""Largest share of the cavity's border, without the annulus, that may lie farther than `MAX_WALL_GAP_MM` from myocardium: a wall with a
larger gap has no mass."""
MUSCLE_DENSITY_G_PER_ML = 1.05
"""Density of myocardium (Lang et al. 2015)."""
CONTOUR_SMOOTHING_PIXELS = 3.0
"""Standard deviation of the Gaussian along a contour before its length is measured: an outline between pixels is a staircase, up to 8 %
longer than the line that it follows."""
BRIDGED_POINTS = 6
"""Gap in the annulus that is bridged, in points of the outline, which are half a pixel to a pixel apart."""


class CannotMeasureError(ValueError):
    """Raised if a label map does not show what is to be measured; the message says what is missing."""


@dataclass(frozen=True)
class Disks:
    """Represent what lies around the left ventricle's long axis in one view, cut into disks across it, the first one at the base."""

    length_mm: float
    """Length from base to apex."""
    diameters_mm: FloatArray
    """(D,): mean diameter in each disk."""


@dataclass(frozen=True)
class Ventricle(Disks):
    """Represent the left ventricular cavity of one view."""

    camus_diameters_mm: FloatArray
    """(D,): diameter where each disk begins, as CAMUS's script measures it (`CAMUS_REACH_PIXELS`)."""
    base_mm: FloatArray
    apex_mm: FloatArray
    contour_mm: float = math.nan
    """Length of the endocardium from one side of the mitral annulus over the apex to the other; NaN if there is no contour."""


@dataclass(frozen=True)
class Atrium:
    """Represent the left atrium of one view."""

    area_mm2: float
    length_mm: float
    """Length from the middle of the mitral annulus through the atrium's centre to its far wall."""


def measure_ventricle(label_map: NDArray[Any], spacing_mm: Sequence[float] | None) -> Ventricle:
    """Cut the largest piece of the left ventricular cavity, holes filled, into `NUM_DISKS` disks of one height.

    Args:
        label_map: (H, W) integers, classes 0..3, on the image's native grid.
        spacing_mm: (row, column); None if it is not known.
    Raises:
        CannotMeasureError: if there is no cavity or spacing, or the base cannot be found.
        ValueError: if `label_map` is not (H, W) or holds other classes.
    """
    chambers = _Chambers.of(label_map, spacing_mm)
    outline = chambers.cavity_outline
    base, apex = chambers.long_axis()
    length = float(np.linalg.norm(apex - base))
    z, w = _along_and_across(outline, base, apex)
    edges = np.linspace(0.0, length, NUM_DISKS + 1)
    pixel = float(chambers.spacing.min())
    begins = np.maximum(edges[:-1], 0.02 * pixel)  # on the base itself, the line runs along the outline
    return Ventricle(
        length_mm=length,
        diameters_mm=_slice_areas(z, w, edges) * NUM_DISKS / length,
        camus_diameters_mm=_diameters_beyond(z, w, begins, CAMUS_REACH_PIXELS * pixel),
        base_mm=base,
        apex_mm=apex,
        contour_mm=_smooth_length(chambers.border[1], CONTOUR_SMOOTHING_PIXELS * pixel),
    )


def measure_epicardium(label_map: NDArray[Any], spacing_mm: Sequence[float] | None) -> Disks:
    """Cut the left ventricle with its wall into disks across the cavity's long axis, from the mitral annulus to the apex outside.

    Args:
        label_map, spacing_mm: as `measure_ventricle`.
    Raises:
        CannotMeasureError: as `measure_ventricle`, and if the myocardium does not surround the cavity.
        ValueError: as `measure_ventricle`.
    """
    chambers = _Chambers.of(label_map, spacing_mm)
    base, apex = chambers.long_axis()
    wall = chambers.label_map == MYOCARDIUM.class_index
    gaps = _distance_to(wall, chambers.border[1], chambers.spacing, chambers.corner)
    if np.mean(gaps > MAX_WALL_GAP_MM) > MAX_BARE_SHARE:
        raise CannotMeasureError("the myocardium does not surround the left ventricular cavity")
    whole = wall | (chambers.label_map == LEFT_VENTRICULAR_CAVITY.class_index)
    z, w = _along_and_across(_outline(whole, chambers.spacing, chambers.corner), base, apex)
    length = float(z.max())
    return Disks(length, _slice_areas(z, w, np.linspace(0.0, length, NUM_DISKS + 1)) * NUM_DISKS / length)


def measure_atrium(label_map: NDArray[Any], spacing_mm: Sequence[float] | None) -> Atrium:
    """Measure the area and length of the largest piece of the left atrium, holes filled.

    Args:
        label_map, spacing_mm: as `measure_ventricle`.
    Raises:
        CannotMeasureError: if there is no atrium, cavity or spacing, or the annulus cannot be found.
        ValueError: as `measure_ventricle`.
    """
    chambers = _Chambers.of(label_map, spacing_mm)
    atrium = chambers.label_map == LEFT_ATRIUM.class_index
    if not atrium.any():
        raise CannotMeasureError("no left atrium")
    outline = _outline(atrium, chambers.spacing, chambers.corner)
    area, centre = _area_and_centre(outline)
    base = chambers.annulus_middle()
    z, w = _along_and_across(outline, base, centre)
    crossings = _crossings(z, w)
    if not crossings.size or crossings.max() <= 0:
        raise CannotMeasureError("the left atrium does not lie beyond the mitral annulus")
    length = float(crossings.max())
    if length < MIN_AXIS_PIXELS * float(chambers.spacing.max()):  # area squared over length would grow without bound
        raise CannotMeasureError("the left atrium lies beside the mitral annulus, or is a few pixels only")
    return Atrium(area, length)


def disk_volume_ml(first: Disks, second: Disks | None = None) -> float:
    """Return the volume by Simpson's method of disks: pi / 4 * sum of a_k b_k * L / D.

    Args:
        first: one view.
        second: another view of the same phase, cut into as many disks; None: one plane, each disk a circle.
    Returns:
        millilitres; L is the longer of the two axes.
    """
    second = second or first
    length = max(first.length_mm, second.length_mm)
    return _stack_ml(first.diameters_mm, second.diameters_mm, length)


def wall_mass_g(cavities: Sequence[Disks], epicardia: Sequence[Disks]) -> float:
    """Return the mass of the left ventricle's wall: what is within the epicardium but not in the cavity, times `MUSCLE_DENSITY_G_PER_ML`.

    Args:
        cavities, epicardia: of the same one or two views of one phase, in the same order.
    Returns:
        grams.
    """
    return MUSCLE_DENSITY_G_PER_ML * (disk_volume_ml(*epicardia) - disk_volume_ml(*cavities))


def sphericity_index(volume_ml: float, *views: Disks) -> float:
    """Return a ventricle's volume as a share of the sphere whose diameter is its long axis, the longest of these views: 1 is a ball."""
    return volume_ml * 1000 / (math.pi / 6 * max(view.length_mm for view in views) ** 3)


def longitudinal_strain(end_diastole: Sequence[Ventricle], end_systole: Sequence[Ventricle]) -> float:
    """Return by how much the endocardium is longer at end-systole than at end-diastole, in percent; below 0 as it shortens.

    100 (L_ES - L_ED) / L_ED of each view's contour without the mitral annulus, averaged over the views. Contours do not follow the same
    points of muscle, as speckle tracking does.
    """
    strains = [100 * (es.contour_mm / ed.contour_mm - 1) for ed, es in zip(end_diastole, end_systole, strict=True)]
    return math.fsum(strains) / len(strains)


def camus_volumes_ml(
    end_diastole: tuple[Ventricle, Ventricle], end_systole: tuple[Ventricle, Ventricle]
) -> tuple[float, float]:
    """Return the volumes at end-diastole and end-systole as CAMUS's script defines them (see the module).

    Args:
        end_diastole, end_systole: both views of each phase.
    """
    length = max(view.length_mm for view in (*end_diastole, *end_systole))
    diastolic, systolic = (
        _stack_ml(a.camus_diameters_mm, b.camus_diameters_mm, length) for a, b in (end_diastole, end_systole)
    )
    return diastolic, systolic


def area_length_volume_ml(first: Atrium, second: Atrium | None = None) -> float:
    """Return the volume by the area-length method: 0.85 * A_1 A_2 / L.

    Args:
        first: one view.
        second: another view of the same phase; None: one plane, 0.85 * A^2 / L.
    Returns:
        millilitres; L is the shorter of the two lengths.
    """
    second = second or first
    length = min(first.length_mm, second.length_mm)
    return AREA_LENGTH_FACTOR * first.area_mm2 * second.area_mm2 / length / 1000


def length_difference(first: Ventricle, second: Ventricle) -> float:
    """Return the difference of two views' long axes as a share of the longer one (see `MAX_LENGTH_DIFFERENCE`)."""
    lengths = sorted((first.length_mm, second.length_mm))
    return 1 - lengths[0] / lengths[1]


def ejection_fraction(end_diastolic_volume_ml: float, end_systolic_volume_ml: float) -> float:
    """Return the share of the end-diastolic volume that is ejected, in percent; below 0 if the end-systolic volume is larger."""
    return 100 * (end_diastolic_volume_ml - end_systolic_volume_ml) / end_diastolic_volume_ml


# ---- one view


@dataclass(frozen=True)
class _Chambers:
    """Hold the labelled part of a label map with a pixel of background around it, so that no outline is cut off."""

    label_map: NDArray[np.uint8]
    spacing: FloatArray
    corner: FloatArray
    """(y, x) in mm of the part's first pixel in the whole label map."""

    @classmethod
    def of(cls, label_map: NDArray[Any], spacing_mm: Sequence[float] | None) -> _Chambers:
        label_map = np.asarray(label_map)
        if label_map.ndim != 2 or label_map.size == 0 or label_map.dtype.kind not in "iub":
            raise ValueError(
                f"volumes.py: expected a label map (H, W) of integers, got {label_map.dtype} of shape {label_map.shape}"
            )
        if label_map.min() < 0 or label_map.max() >= NUM_CLASSES:
            found = np.unique(label_map).tolist()[:10]
            raise ValueError(f"volumes.py: expected the classes 0..{NUM_CLASSES - 1}, got {found}")
        if spacing_mm is None:
            raise CannotMeasureError("the pixel spacing is not known")
        spacing = np.asarray(spacing_mm, dtype=np.float64)
        if spacing.shape != (2,) or not (np.isfinite(spacing).all() and (spacing > 0).all()):
            raise CannotMeasureError("the pixel spacing is not two positive numbers")
        if not (label_map == LEFT_VENTRICULAR_CAVITY.class_index).any():
            raise CannotMeasureError("no left ventricular cavity")
        rows, columns = np.flatnonzero(label_map.any(axis=1)), np.flatnonzero(label_map.any(axis=0))
        part = np.pad(label_map[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1).astype(np.uint8)
        return cls(part, spacing, (np.array([rows[0], columns[0]]) - 1) * spacing)

    @cached_property
    def cavity_outline(self) -> FloatArray:
        """Outline of the cavity, (M, 2), in mm."""
        return _outline(self.label_map == LEFT_VENTRICULAR_CAVITY.class_index, self.spacing, self.corner)

    def long_axis(self) -> tuple[FloatArray, FloatArray]:
        """Return base and apex of the cavity."""
        base = self.annulus_middle()
        apex = self.cavity_outline[_farthest(self.cavity_outline, base, float(self.spacing.max()))]
        if np.linalg.norm(apex - base) < MIN_AXIS_PIXELS * float(self.spacing.max()):
            raise CannotMeasureError("the left ventricular cavity is a few pixels only")
        return base, apex

    def annulus_middle(self) -> FloatArray:
        """Return the point of the cavity's outline half way along the mitral annulus."""
        points = self.border[0]
        steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
        run = np.concatenate([[0.0], np.cumsum(steps)])
        if run[-1] > MAX_ANNULUS_SHARE * _perimeter(self.cavity_outline):
            raise CannotMeasureError("most of the left ventricular cavity's border is open, so its base is not known")
        return np.array([np.interp(run[-1] / 2, run, points[:, k]) for k in (0, 1)])

    @cached_property
    def border(self) -> tuple[FloatArray, FloatArray]:
        """Annulus, (K, 2), and endocardium, (M, 2), which share their ends: both parts of the outline in its order."""
        outline = self.cavity_outline
        to_wall = _distance_to(self.label_map == MYOCARDIUM.class_index, outline, self.spacing, self.corner)
        to_atrium = _distance_to(self.label_map == LEFT_ATRIUM.class_index, outline, self.spacing, self.corner)
        if np.isinf(to_wall).all() and np.isinf(to_atrium).all():
            raise CannotMeasureError("neither left atrium nor myocardium, so the ventricle's base is not known")
        is_annulus = to_atrium < np.minimum(to_wall, to_atrium.min() + MAX_ATRIUM_REACH_MM)
        if not is_annulus.any():
            is_annulus = to_wall > MAX_WALL_GAP_MM
        if not is_annulus.any():
            raise CannotMeasureError("the left ventricular cavity has no opening at its base")
        if is_annulus.all():
            raise CannotMeasureError("most of the left ventricular cavity's border is open, so its base is not known")
        start = int(np.flatnonzero(~is_annulus)[0])
        is_annulus, points = np.roll(is_annulus, -start), np.roll(outline, -start, axis=0)
        padded = np.pad(is_annulus, BRIDGED_POINTS)
        runs, _ = ndimage.label(ndimage.binary_closing(padded, np.ones(BRIDGED_POINTS + 1)))
        runs = runs[BRIDGED_POINTS:-BRIDGED_POINTS]
        first, last = np.flatnonzero(runs == 1 + np.bincount(runs)[1:].argmax())[[0, -1]]
        return points[first : last + 1], np.roll(points, -last, axis=0)[: len(points) - (last - first) + 1]


# ---- outlines


def _outline(mask: NDArray[np.bool_], spacing: FloatArray, corner: FloatArray) -> FloatArray:
    """Return the outline of the largest piece of a mask that does not touch the border: a closed line (M, 2), (y, x) in mm."""
    from contourpy import contour_generator

    lines = [np.asarray(line, np.float64) for line in contour_generator(z=mask.astype(np.float32)).lines(0.5)]
    largest = max(lines, key=lambda line: _area_and_centre(line[:-1])[0])
    return largest[:-1, ::-1] * spacing + corner


def _farthest(polygon: FloatArray, point: FloatArray, tolerance: float) -> int:
    """Return the index of the corner farthest from a point: the middle one of its neighbours that are as far up to a tolerance."""
    distance = np.linalg.norm(polygon - point, axis=1)
    top = int(distance.argmax())
    far = np.roll(distance >= distance[top] - tolerance, len(distance) // 2 - top)  # the farthest one in the middle
    runs, _ = ndimage.label(far)
    tied = np.flatnonzero(runs == runs[len(distance) // 2])
    return int((tied[0] + tied[-1]) // 2 + top - len(distance) // 2) % len(distance)


def _perimeter(polygon: FloatArray) -> float:
    return float(np.linalg.norm(polygon - np.roll(polygon, -1, axis=0), axis=1).sum())


def _smooth_length(line: FloatArray, sigma: float) -> float:
    """Return the length of an open line (M, 2) after a Gaussian along it, which leaves its ends where they are."""
    run = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    step = sigma / 6
    at = np.linspace(0.0, run[-1], max(2, round(run[-1] / step)))
    even = np.stack([np.interp(at, run, line[:, k]) for k in (0, 1)], axis=1)
    reach = min(24, len(even) - 1)  # four standard deviations
    padded = np.pad(even, ((reach, reach), (0, 0)), mode="reflect", reflect_type="odd")
    smooth = ndimage.gaussian_filter1d(padded, sigma / step, axis=0, mode="nearest")[reach : len(padded) - reach]
    return float(np.linalg.norm(np.diff(smooth, axis=0), axis=1).sum())


def _along_and_across(points: FloatArray, start: FloatArray, end: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the coordinates of points along the line from `start` to `end`, measured from `start`, and across it."""
    along = (end - start) / np.linalg.norm(end - start)
    return (points - start) @ along, (points - start) @ np.array([-along[1], along[0]])


def _distance_to(mask: NDArray[np.bool_], points: FloatArray, spacing: FloatArray, corner: FloatArray) -> FloatArray:
    """Return the distance of points (M, 2) to the nearest pixel's centre of a mask, in mm; infinite if the mask is empty."""
    border = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    if not len(border):
        return np.full(len(points), np.inf)
    return np.asarray(cKDTree(border * spacing + corner).query(points)[0])


def _area_and_centre(polygon: FloatArray) -> tuple[float, FloatArray]:
    """Return the area and centre of a closed polygon (M, 2)."""
    origin = polygon[0]
    p = polygon - origin
    q = np.roll(p, -1, axis=0)
    cross = p[:, 0] * q[:, 1] - q[:, 0] * p[:, 1]
    twice = cross.sum()
    if abs(twice) < 1e-12:
        return 0.0, polygon.mean(axis=0)
    return float(abs(twice) / 2), origin + ((p + q) * cross[:, None]).sum(axis=0) / (3 * twice)


def _slice_areas(z: FloatArray, w: FloatArray, edges: FloatArray) -> FloatArray:
    """Return the exact area of a closed polygon between neighbouring lines z = edge.

    By Green's theorem each edge of the polygon, clipped to a slice, adds its mean w times its height.

    Args:
        z, w: corners, (M,), along and across.
        edges: (D + 1,), rising.
    Returns:
        (D,).
    """
    z_next, w_next = np.roll(z, -1), np.roll(w, -1)
    step = z_next - z
    slope = np.divide(w_next - w, step, out=np.zeros_like(step), where=step != 0)
    low, high = edges[:-1, None], edges[1:, None]
    start, end = np.clip(z, low, high), np.clip(z_next, low, high)  # (D, M)
    middle = w + slope * ((start + end) / 2 - z)
    return np.abs((middle * (end - start)).sum(axis=1))


def _diameters_beyond(z: FloatArray, w: FloatArray, at: FloatArray, reach: float) -> FloatArray:
    """Return how far a closed polygon reaches to both sides of the axis w = 0, searched from the distance `reach` outwards, (D,)."""
    z_next, w_next = np.roll(z, -1), np.roll(w, -1)
    crosses = (z <= at[:, None]) != (z_next <= at[:, None])  # (D, M)
    step = np.where(crosses, z_next - z, 1.0)
    crossing = w + (w_next - w) * (at[:, None] - z) / step
    total = np.zeros(len(at))
    for side in (1, -1):
        is_beyond = crosses & (side * crossing > reach)
        is_inside = is_beyond.sum(axis=1) % 2 == 1  # at `reach`
        nearest = np.where(is_beyond, side * crossing, np.inf).min(axis=1)
        total += np.where(is_inside, nearest, reach)
    return total


def _crossings(z: FloatArray, w: FloatArray) -> FloatArray:
    """Return the values of z where a closed polygon crosses the axis w = 0."""
    z_next, w_next = np.roll(z, -1), np.roll(w, -1)
    crosses = (w <= 0) != (w_next <= 0)
    return z[crosses] - w[crosses] * (z_next - z)[crosses] / (w_next - w)[crosses]


def _stack_ml(first_mm: FloatArray, second_mm: FloatArray, length_mm: float) -> float:
    """Return the volume of elliptic disks of equal height, in ml."""
    return math.pi / 4 * float(first_mm @ second_mm) * length_mm / len(first_mm) / 1000
