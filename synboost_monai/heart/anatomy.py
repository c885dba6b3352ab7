"""Check whether a label map can be an apical view of a heart: pieces, holes, enclosure, order of the chambers, sizes.

These are pure functions on arrays. They apply both to label maps that a model draws and to segmentations that a network
predicts. The long axis goes from the base, the middle of the cavity's opening, to the apex, the point of the cavity farthest
from it. The opening is the part of the cavity's border that the myocardium does not cover; it leads to the left atrium.

Shapes: H rows and W columns in display order. Lengths are in millimetres.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from synboost_monai.structures import LEFT_ATRIUM, LEFT_VENTRICULAR_CAVITY, MYOCARDIUM, NUM_CLASSES, STRUCTURES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    BoolArray = NDArray[np.bool_]

MEASURES: dict[str, tuple[str, str]] = {
    "cavity_area_mm2": ("area of the left ventricular cavity", "mm²"),
    "myocardium_area_mm2": ("area of the myocardium", "mm²"),
    "atrium_area_mm2": ("area of the left atrium", "mm²"),
    "myocardium_to_cavity_area": ("area of the myocardium over that of the cavity", ""),
    "atrium_to_cavity_area": ("area of the left atrium over that of the cavity", ""),
    "cavity_length_mm": ("length of the cavity from base to apex", "mm"),
    "cavity_elongation": ("length of the cavity over its mean width", ""),
    "atrium_elongation": ("long over short axis of the left atrium", ""),
    "opening_fraction": ("share of the cavity's border that is open", ""),
    "wall_thickness_mm": ("median thickness of the myocardium", "mm"),
    "thinnest_wall_mm": ("thickness of the myocardium where it is thinnest", "mm"),
    "axis_tilt_deg": ("angle of the long axis to the vertical", "degrees"),
    "atrium_position": ("middle of the left atrium along the long axis (0 apex, 1 base)", ""),
}
"""Measure of `examine_anatomy` -> its description and unit."""

MAX_STRAY_FRACTION = 0.001
"""Pieces and holes up to this share of their structure's area, and up to `MAX_STRAY_MM2`, are drawing slips and ignored."""
MAX_STRAY_MM2 = 1.0
"""Largest area of a piece or hole that is ignored."""
MIN_SECOND_OPENING_MM = 3.0
"""Shortest further opening of the cavity that counts as a problem."""
MAX_ATRIUM_GAP_MM = 3.0
"""Largest gap between the left atrium and the cavity; the mitral leaflets lie in it and belong to neither."""
BASAL_PART = 0.2
"""Share of the cavity's length next to the base where the wall ends; wall thickness is not measured there."""
MAX_OUTSIDE_SECTOR = {
    LEFT_VENTRICULAR_CAVITY.name: 0.05,
    MYOCARDIUM.name: 0.35,
    LEFT_ATRIUM.name: 0.25,
}
"""Largest share of a structure outside the ultrasound sector."""

ADULT_RANGES: dict[str, tuple[float, float]] = {
    "cavity_area_mm2": (570.0, 8500.0),
    "myocardium_area_mm2": (1050.0, 4950.0),
    "atrium_area_mm2": (90.0, 7800.0),
    "myocardium_to_cavity_area": (0.33, 3.4),
    "atrium_to_cavity_area": (0.025, 5.4),
    "cavity_length_mm": (39.0, 118.0),
    "cavity_elongation": (1.2, 4.2),
    "atrium_elongation": (1.0, 7.0),
    "opening_fraction": (0.07, 0.275),
    "wall_thickness_mm": (6.4, 23.6),
    "thinnest_wall_mm": (4.0, 17.1),
    "axis_tilt_deg": (-23.0, 44.0),
    "atrium_position": (0.91, 1.82),
}
"""`anatomy_ranges` of the 718 training label maps of CAMUS's apical four-chamber view (official split), rounded outwards."""

_FOUR = ndimage.generate_binary_structure(2, 1)
_EIGHT = ndimage.generate_binary_structure(2, 2)


@dataclass(frozen=True)
class AnatomyProblem:
    """Describe one reason why a label map cannot show a heart."""

    code: str
    """`missing`, `pieces`, `hole`, `opening`, `closed`, `order`, `apart`, `range` or `outside_sector`."""
    subject: str
    """Name of the structure, or for `range` name of the measure (`MEASURES`)."""
    message: str
    """Sentence that describes the problem with its numbers."""


def check_anatomy(
    label_map: NDArray[Any],
    spacing_mm: Sequence[float],
    ranges: Mapping[str, Sequence[float]] | None = None,
    sector: NDArray[Any] | None = None,
) -> list[AnatomyProblem]:
    """Return the problems of a label map's anatomy; an empty list if there are none.

    In a plausible label map every structure is present in one piece; no background is enclosed (no hole in a structure, no
    gap between them); myocardium encloses the cavity except at one opening; the left atrium lies at that opening, beyond the
    base; sizes, ratios, wall thickness and tilt are within `ranges`; no more than `MAX_OUTSIDE_SECTOR` of a structure lies
    outside the sector.

    Args:
        label_map: (H, W) integers, classes 0..3.
        spacing_mm: (row, column) millimetres.
        ranges: lowest and highest value of measures, as `anatomy_ranges` gives them; None: `ADULT_RANGES`; {}: no ranges.
        sector: (H, W), non-zero inside the ultrasound sector; None: not checked.
    Raises:
        ValueError: if the label map is not such an array, the spacing is not positive, a measure is unknown, or the sector
            has another shape.
    """
    problems, measures = examine_anatomy(label_map, spacing_mm, sector)
    return problems + out_of_range(measures, ADULT_RANGES if ranges is None else ranges)


def examine_anatomy(
    label_map: NDArray[Any], spacing_mm: Sequence[float], sector: NDArray[Any] | None = None
) -> tuple[list[AnatomyProblem], dict[str, float]]:
    """Return the problems that `check_anatomy` finds without ranges, and the measures of the structures.

    Measures (`MEASURES`) that need a missing structure are left out.
    """
    parts = _Parts.of(label_map, spacing_mm)
    missing = [s for s in STRUCTURES if not parts.masks[s.class_index].any()]
    problems = [AnatomyProblem("missing", s.name, f"{_words(s.name)} is missing") for s in missing]
    if sector is not None:
        problems += _outside_sector(np.asarray(label_map), np.asarray(sector))
    problems += [*_pieces(parts), *_holes(parts), *_openings(parts), *_distance(parts)]
    measures = _measures(parts)
    if (position := measures.get("atrium_position", math.inf)) < 1.0:
        text = f"the middle of the left atrium lies at {position:.2f} of the long axis; expected beyond the base (1)"
        problems.append(AnatomyProblem("order", LEFT_ATRIUM.name, text))
    return problems, measures


def out_of_range(measures: Mapping[str, float], ranges: Mapping[str, Sequence[float]]) -> list[AnatomyProblem]:
    """Return a problem for each measure that is outside its range.

    Raises:
        ValueError: if a range is given for an unknown measure.
    """
    unknown = set(ranges) - set(MEASURES)
    if unknown:
        raise ValueError(f"anatomy.py: ranges has {', '.join(sorted(unknown))}; the measures are {', '.join(MEASURES)}")
    problems = []
    for name, value in measures.items():
        low, high = ranges.get(name, (-math.inf, math.inf))
        if not low <= value <= high:
            words, unit = MEASURES[name]
            text = f"{words} is {value:.3g}{unit and ' ' + unit}; expected {low:.3g} to {high:.3g}"
            problems.append(AnatomyProblem("range", name, text))
    return problems


def anatomy_ranges(
    measures: Sequence[Mapping[str, float]], *, tail: float = 0.005, margin: float = 0.25
) -> dict[str, tuple[float, float]]:
    """Return the range of each measure in label maps that are known to be right, for `check_anatomy`.

    A range goes from the quantile `tail` to 1 - `tail`, widened on both sides by `margin` times that width. A few maps show
    little of the spread, so each side is widened further by `margin` times 2 / sqrt(n), n being the number of maps. Both are
    computed in the logarithm, as most measures are lengths, areas and ratios; the tilt, an angle, is widened without it, with
    30 degrees in place of the logarithm's 1.

    Args:
        measures: results of `examine_anatomy`, one per label map.
        tail: share of the maps on each side that lies beyond the quantile.
        margin: see above.
    Raises:
        ValueError: if there are no measures.
    """
    if not measures:
        raise ValueError("anatomy.py: no label maps to take the ranges from; expected at least one")
    ranges = {}
    for name in MEASURES:
        values = np.array([m[name] for m in measures if name in m])
        if not values.size:
            continue
        is_angle = name == "axis_tilt_deg"
        low, high = np.quantile(values if is_angle else np.log(values), [tail, 1 - tail])
        wider = margin * (high - low) + margin * 2 / math.sqrt(values.size) * (30.0 if is_angle else 1.0)
        wider += 1e-9  # the extremes themselves are inside, whatever the logarithm's rounding
        ends = np.array([low - wider, high + wider])
        low, high = ends if is_angle else np.exp(ends)
        ranges[name] = (float(low), float(high))
    return ranges


def long_axis(
    label_map: NDArray[Any], spacing_mm: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return the ends of the cavity's long axis: the middle of its opening, and the point of the cavity farthest from it.

    Args:
        label_map: (H, W) integers, classes 0..3.
        spacing_mm: (row, column).
    Returns:
        base and apex, each (y, x) in mm from the centre of the first pixel; None if there is no cavity or no opening.
    """
    return _Parts.of(label_map, spacing_mm).axis


@dataclass(frozen=True)
class _Parts:
    """Hold the labelled part of a label map with one pixel of background around it, for the checks."""

    label_map: NDArray[np.uint8]
    spacing: NDArray[np.float64]
    corner: NDArray[np.float64]
    """(y, x) in mm of the part's first pixel in the whole label map."""

    @classmethod
    def of(cls, label_map: NDArray[Any], spacing_mm: Sequence[float]) -> _Parts:
        label_map, spacing = _checked(label_map, spacing_mm)
        rows, columns = np.flatnonzero(label_map.any(axis=1)), np.flatnonzero(label_map.any(axis=0))
        if not rows.size:
            return cls(np.zeros((3, 3), np.uint8), spacing, np.zeros(2))
        part = np.pad(label_map[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
        return cls(part, spacing, (np.array([rows[0], columns[0]]) - 1) * spacing)

    @cached_property
    def masks(self) -> dict[int, BoolArray]:
        return {s.class_index: self.label_map == s.class_index for s in STRUCTURES}

    @property
    def cavity(self) -> BoolArray:
        return self.masks[LEFT_VENTRICULAR_CAVITY.class_index]

    @property
    def myocardium(self) -> BoolArray:
        return self.masks[MYOCARDIUM.class_index]

    @property
    def atrium(self) -> BoolArray:
        return self.masks[LEFT_ATRIUM.class_index]

    @cached_property
    def border(self) -> BoolArray:
        """Pixels of the cavity with one of eight neighbours outside it; the area beyond the image counts as outside."""
        return self.cavity & ~ndimage.binary_erosion(self.cavity, _EIGHT)

    @cached_property
    def is_open(self) -> BoolArray:
        """The part of the cavity's border that the myocardium does not touch."""
        return self.border & ~_beside(self.myocardium)

    @cached_property
    def axis(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """See `long_axis`."""
        pieces, count = ndimage.label(self.is_open, _EIGHT)
        if not count:
            return None
        largest = 1 + np.bincount(pieces.ravel())[1:].argmax()
        base = np.argwhere(pieces == largest).mean(axis=0) * self.spacing
        points = np.argwhere(self.border) * self.spacing
        apex = points[np.linalg.norm(points - base, axis=1).argmax()]
        return None if np.allclose(apex, base) else (base + self.corner, apex + self.corner)

    def area_mm2(self, mask: BoolArray) -> float:
        return float(np.count_nonzero(mask) * self.spacing.prod())


def _measures(parts: _Parts) -> dict[str, float]:
    """Sizes and proportions of the structures, as `examine_anatomy` gives them."""
    cavity, atrium, spacing = parts.cavity, parts.atrium, parts.spacing
    areas = [parts.area_mm2(mask) for mask in (cavity, parts.myocardium, atrium)]
    names = ("cavity_area_mm2", "myocardium_area_mm2", "atrium_area_mm2")
    found = {name: area for name, area in zip(names, areas) if area > 0}
    if areas[2] > 0:
        found["atrium_elongation"] = _elongation(atrium, spacing)
    if areas[0] == 0:
        return found
    if areas[1] > 0:
        found["myocardium_to_cavity_area"] = areas[1] / areas[0]
    if areas[2] > 0:
        found["atrium_to_cavity_area"] = areas[2] / areas[0]
    if parts.axis is None:
        return found
    open_length = _edge_length(cavity, ~cavity & ~parts.myocardium, spacing)
    found["opening_fraction"] = open_length / _edge_length(cavity, ~cavity, spacing)
    base, apex = parts.axis
    length = float(np.linalg.norm(base - apex))
    down = (base - apex) / length  # (y, x), unit
    found["cavity_length_mm"] = length
    found["cavity_elongation"] = length**2 / areas[0]
    found["axis_tilt_deg"] = math.degrees(math.atan2(float(down[1]), float(down[0])))
    wall_side = np.argwhere(parts.border & ~parts.is_open) * spacing + parts.corner
    wall_side = wall_side[(wall_side - apex) @ down / length < 1 - BASAL_PART]
    if areas[1] > 0 and len(wall_side):
        heart = cavity | parts.myocardium
        around = np.argwhere(_beside(heart) & ~heart) * spacing + parts.corner
        thickness = cKDTree(around).query(wall_side)[0] - np.sqrt(spacing.prod())  # half a pixel at either end
        found["wall_thickness_mm"] = float(np.median(thickness))
        found["thinnest_wall_mm"] = float(thickness.min())
    if areas[2] > 0:
        middle = np.argwhere(atrium).mean(axis=0) * spacing + parts.corner
        found["atrium_position"] = float((middle - apex) @ down / length)
    return found


# ---- single checks


def _pieces(parts: _Parts) -> list[AnatomyProblem]:
    problems = []
    for structure in STRUCTURES:
        pieces, count = ndimage.label(parts.masks[structure.class_index], _EIGHT)
        if count < 2:
            continue
        sizes = sorted((np.bincount(pieces.ravel())[1:] * parts.spacing.prod()).tolist(), reverse=True)
        strays = [size for size in sizes[1:] if size > _stray_limit(sum(sizes))]
        if strays:
            text = f"{_words(structure.name)} is in {1 + len(strays)} pieces, the second of {strays[0]:.1f} mm²; expected one"
            problems.append(AnatomyProblem("pieces", structure.name, text))
    return problems


def _holes(parts: _Parts) -> list[AnatomyProblem]:
    """Find background that structures enclose."""
    is_labelled = parts.label_map != 0
    enclosed = ndimage.binary_fill_holes(is_labelled) & ~is_labelled
    if not enclosed.any():
        return []
    pockets, count = ndimage.label(enclosed, _FOUR)
    problems = []
    for number in range(1, count + 1):
        pocket = pockets == number
        size = parts.area_mm2(pocket)
        around = set(np.unique(parts.label_map[_beside(pocket)]).tolist()) - {0}
        names = [s for s in STRUCTURES if s.class_index in around]
        if size > min(_stray_limit(parts.area_mm2(parts.masks[s.class_index])) for s in names):
            where = "in" if len(names) == 1 else "between"
            text = f"a hole of {size:.1f} mm² lies {where} {' and '.join(_words(s.name) for s in names)}; expected none"
            problems.append(AnatomyProblem("hole", names[0].name, text))
    return problems


def _openings(parts: _Parts) -> list[AnatomyProblem]:
    """Check that the cavity has one opening."""
    if not parts.cavity.any() or not parts.myocardium.any():
        return []
    pieces, count = ndimage.label(parts.is_open, _EIGHT)
    if not count:
        text = "the left ventricular cavity has no opening at its base; expected one towards the left atrium"
        return [AnatomyProblem("closed", LEFT_VENTRICULAR_CAVITY.name, text)]
    step = float(np.sqrt(parts.spacing.prod()))
    lengths = sorted((np.bincount(pieces.ravel())[1:] * step).tolist(), reverse=True)
    further = [length for length in lengths[1:] if length >= MIN_SECOND_OPENING_MM]
    if not further:
        return []
    text = (
        f"the left ventricular cavity is open in {1 + len(further)} places, {lengths[0]:.1f} and {further[0]:.1f} mm wide; "
        "expected myocardium around it but for the base"
    )
    return [AnatomyProblem("opening", LEFT_VENTRICULAR_CAVITY.name, text)]


def _distance(parts: _Parts) -> list[AnatomyProblem]:
    """Check that the left atrium reaches up to the cavity."""
    if not parts.cavity.any() or not parts.atrium.any() or (_beside(parts.cavity) & parts.atrium).any():
        return []
    tree = cKDTree(np.argwhere(parts.border) * parts.spacing)
    distance = float(tree.query(np.argwhere(parts.atrium) * parts.spacing)[0].min())
    gap = max(0.0, distance - float(np.hypot(*parts.spacing)))  # neighbours are one step apart
    if gap <= MAX_ATRIUM_GAP_MM:
        return []
    text = (
        f"the left atrium is {gap:.1f} mm away from the left ventricular cavity; expected at most {MAX_ATRIUM_GAP_MM:g}"
    )
    return [AnatomyProblem("apart", LEFT_ATRIUM.name, text)]


def _outside_sector(label_map: NDArray[Any], sector: NDArray[Any]) -> list[AnatomyProblem]:
    if sector.shape != label_map.shape:
        raise ValueError(f"anatomy.py: label map is {label_map.shape} but sector is {sector.shape}")
    problems = []
    for structure in STRUCTURES:
        mask = label_map == structure.class_index
        limit = MAX_OUTSIDE_SECTOR[structure.name]
        if mask.any() and (share := float((sector[mask] == 0).mean())) > limit:
            text = f"{share:.0%} of {_words(structure.name)} lies outside the sector; expected at most {limit:.0%}"
            problems.append(AnatomyProblem("outside_sector", structure.name, text))
    return problems


# ---- helpers


def _checked(label_map: NDArray[Any], spacing_mm: Sequence[float]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return the label map and spacing as checked arrays."""
    label_map = np.asarray(label_map)
    if label_map.ndim != 2 or label_map.size == 0:
        raise ValueError(f"anatomy.py: expected a label map (H, W), got shape {label_map.shape}")
    if label_map.dtype.kind not in "iub" or label_map.min() < 0 or label_map.max() >= NUM_CLASSES:
        found = np.unique(label_map).tolist()[:10]
        raise ValueError(f"anatomy.py: expected the classes 0..{NUM_CLASSES - 1} as integers, got {found}")
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (2,) or not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise ValueError(f"anatomy.py: spacing_mm must be two positive millimetres (row, column), got {spacing_mm}")
    return label_map.astype(np.uint8), spacing


def _edge_length(first: BoolArray, second: BoolArray, spacing: NDArray[np.float64]) -> float:
    """Return the length in mm of the pixel edges that two masks share."""
    horizontal = (first[1:] & second[:-1]).sum() + (first[:-1] & second[1:]).sum()
    vertical = (first[:, 1:] & second[:, :-1]).sum() + (first[:, :-1] & second[:, 1:]).sum()
    return float(horizontal * spacing[1] + vertical * spacing[0])


def _beside(mask: BoolArray) -> BoolArray:
    """Pixels of a mask and their eight neighbours."""
    return ndimage.binary_dilation(mask, _EIGHT)


def _stray_limit(area_mm2: float) -> float:
    return min(MAX_STRAY_MM2, MAX_STRAY_FRACTION * area_mm2)


def _elongation(mask: BoolArray, spacing: NDArray[np.float64]) -> float:
    """Return the long over the short axis of the ellipse with the mask's second moments."""
    points = np.argwhere(mask) * spacing
    # a pixel has an extent of its own, so one row of pixels is not infinitely thin
    variance = np.linalg.eigvalsh(np.cov(points.T, bias=True) + np.diag(spacing**2 / 12)) if len(points) > 1 else None
    return 1.0 if variance is None else float(np.sqrt(variance[1] / variance[0]))


def _words(name: str) -> str:
    return f"the {name.replace('_', ' ')}"
