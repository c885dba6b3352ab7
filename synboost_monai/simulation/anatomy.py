"""Describe a heart in an apical view, and its outlines at any moment from end-diastole to end-systole.

Frame of all points: millimetres, (x, y), x to the right, y downwards (depth), the probe at the origin. The left ventricle has an axis
from its apex (t = 0) to the middle of the mitral annulus (t = 1); across it the cavity reaches `half(t)` to either side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from synboost_monai.heart.geometry import FloatArray, normals, resampled, smoothed

NUM_ENDO = 97
"""Points of the endocardium, from the left base over the apex to the right base."""
NUM_AXIS = 90
"""Points of each side of the cavity along the axis, dense at the apex."""

Pair = tuple[float, float]
"""A length or shape at end-diastole and at end-systole."""


Value = TypeVar("Value", float, FloatArray)


def between(pair: tuple[Value, Value], systole: float) -> Value:
    """Return the value at a moment from 0 (end-diastole) to 1 (end-systole)."""
    return pair[0] + (pair[1] - pair[0]) * systole


@dataclass(frozen=True)
class Ventricle:
    """Hold the left ventricle in one view."""

    length_mm: Pair
    width_mm: Pair
    annulus: Pair
    """Width at the mitral annulus, as a share of the largest width."""
    widest: Pair
    """Place along the axis where it is widest."""
    apex_power: Pair
    """Bluntness of the apex; 2 is an ellipse."""
    base_power: float
    bend: FloatArray
    """(2,): first and second harmonic of the axis's bend, as shares of the width."""
    side_scale: Pair
    """Left and right half relative to the mean."""
    septal_bulge: tuple[float, float]
    """Bulge of the basal septum: mm and place along the axis."""
    unevenness_mm: FloatArray
    """(2, NUM_AXIS): unevenness of the left and the right side."""
    base_shift_mm: Pair
    """Extra distance of the left and the right hinge of the valve along the axis."""
    wall_mm: Pair
    """Thickness of the wall."""
    wall_relative: FloatArray
    """(NUM_ENDO,): thickness along the endocardium relative to `wall_mm`."""
    apex_thickening: float
    """Additional thickening of the apex relative to the sides until end-systole, as a share."""
    outer_overhang_mm: Pair
    """Distance by which the outer border extends beyond the annulus, left and right."""

    def sides(self, systole: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the places along the axis (NUM_AXIS,) and the left and right side (NUM_AXIS, 2): mm across and along the axis."""
        t = np.linspace(1, 0, NUM_AXIS) ** 2
        length, width = between(self.length_mm, systole), between(self.width_mm, systole)
        widest, power = between(self.widest, systole), between(self.apex_power, systole)
        towards_apex, towards_base = np.clip(1 - t / widest, 0, 1), np.clip((t - widest) / (1 - widest), 0, 1)
        half = (1 - towards_apex**power) ** (1 / power)
        half = (half - (1 - between(self.annulus, systole)) * towards_base**self.base_power) * width / 2
        centre = width * (self.bend[0] * np.sin(np.pi * t) + self.bend[1] * np.sin(2 * np.pi * t))
        rises = np.minimum(1, 4 * t)
        left = centre - half * self.side_scale[0] + self.unevenness_mm[0] * rises
        left += self.septal_bulge[0] * np.exp(-(((t - self.septal_bulge[1]) / 0.13) ** 2))
        right = centre + half * self.side_scale[1] + self.unevenness_mm[1] * rises
        along = [t * (length + shift) for shift in self.base_shift_mm]
        return t, np.stack([left, along[0]], axis=1), np.stack([right, along[1]], axis=1)

    def volume_ml(self, systole: float) -> float:
        """Return the cavity's volume at a moment by disks of this view alone: pi / 4 x the integral of its squared width."""
        t, left, right = self.sides(systole)
        width = np.maximum(right[:, 0] - left[:, 0], 0)
        return float(np.pi / 4 * -np.trapezoid(width**2, t) * between(self.length_mm, systole) / 1000)

    @property
    def ejection_fraction(self) -> float:
        """Return the ejection fraction in percent, from `volume_ml`."""
        end_diastole, end_systole = self.volume_ml(0.0), self.volume_ml(1.0)
        return 100 * (1 - end_systole / end_diastole)


@dataclass(frozen=True)
class Heart:
    """A Heart is seen in one view, from the probe; `at(systole)` returns its outlines at a moment."""

    view: str
    ventricle: Ventricle
    atrium: Atrium
    right_heart: RightHeart | None
    """None in the two-chamber view."""
    mitral: Valve
    tricuspid: Valve | None
    papillary: tuple[Papillary, ...]
    strands: FloatArray
    """(M, 4): false tendons: place along the axis and share of the half width, at both ends."""
    effusion_mm: float
    """Largest width of fluid in the pericardium; 0: no effusion."""
    place: Place
    attributes: dict[str, object] = field(default_factory=dict)
    """Attributes of the heart: sex, age, ejection_fraction (percent, in this view), diagnosis."""

    def at(self, systole: float) -> Outlines:
        """Return the outlines at a moment from 0 (end-diastole) to 1 (end-systole)."""
        return _outlines(self, systole)

    def cavity_at(self, systole: float) -> FloatArray:
        """Return only `at(systole).cavity`, which is fast."""
        _, left, right = self.ventricle.sides(systole)
        return self.place(_endocardium(left, right), systole)


@dataclass(frozen=True)
class Place:
    """Hold the position of the heart in front of the probe."""

    tilt: Pair
    """Angle between the ventricle's axis and the central beam, radians."""
    shear: float
    apex_mm: tuple[Pair, Pair]
    """x and y of the apex of the cavity, each at end-diastole and end-systole."""

    def __call__(self, points: FloatArray, systole: float) -> FloatArray:
        """Convert points (K, 2), mm across and along the ventricle's axis, to the probe's frame."""
        angle = between(self.tilt, systole)
        cos, sin = np.cos(angle), np.sin(angle)
        x, y = points[:, 0] + self.shear * points[:, 1], points[:, 1]
        origin = [between(pair, systole) for pair in self.apex_mm]
        return np.stack([cos * x + sin * y, cos * y - sin * x], axis=1) + origin


@dataclass(frozen=True)
class Atrium:
    """Hold the left atrium, which hangs from the mitral annulus."""

    length_mm: Pair
    width_mm: Pair
    slant: float
    """Tangent of the angle between its axis and the ventricle's."""
    floor_power: float
    side_power: float
    unevenness_mm: FloatArray
    """(80,): unevenness along its outline."""
    vein: tuple[float, float, float] | None
    """A pulmonary vein or the appendage: place along the outline (0..1), length and half width in mm."""


@dataclass(frozen=True)
class RightHeart:
    """Hold the right ventricle and atrium of the four-chamber view."""

    reach: float
    """Extent of the ventricle towards the apex, as a share of the septum."""
    width_mm: Pair
    bulge: float
    sag_mm: float
    wall_mm: float
    atrium_length_mm: float
    atrium_bulge_mm: float
    septum_mm: float
    """Thickness of the septum between the atria."""
    has_lead: bool
    """Whether a pacing lead runs through atrium and ventricle."""


@dataclass(frozen=True)
class Valve:
    """Hold a valve with two leaflets."""

    meeting: float
    """Point where the closed leaflets meet, as a share of the annulus."""
    tent_mm: float
    """Distance of that point into the ventricle (negative: into the atrium, a prolapse)."""
    lengths_mm: tuple[float, float]
    opening: tuple[float, float]
    """Angle between each open leaflet and the axis, radians."""
    sag_mm: tuple[float, float]
    opens: float
    """Opening at end-diastole, 0 (closed) to 1 (open); at end-systole the valve is closed."""


@dataclass(frozen=True)
class Papillary:
    """Hold a papillary muscle: side (-1 left, 1 right), place along the axis, distance from the wall, half axes, angle."""

    side: int
    place: float
    inset_mm: float
    radii_mm: tuple[float, float]
    angle: float


@dataclass(frozen=True)
class Outlines:
    """Hold a heart at one moment: closed outlines and open lines, (K, 2) in mm from the probe."""

    cavity: FloatArray
    """Endocardium, left base over apex to right base; closed by the mitral annulus."""
    epicardium: FloatArray
    """Outer border, with one point beside each point of `cavity`."""
    wall_outline: FloatArray
    """Closed outer outline of the ventricle, including the overhang."""
    left_atrium: FloatArray
    right_ventricle: FloatArray | None
    right_atrium: FloatArray | None
    right_wall: FloatArray | None
    """Closed outline of the right ventricle with its free wall."""
    bodies: dict[str, FloatArray]
    """Closed outlines: papillary0 ..., vein, effusion."""
    lines: dict[str, FloatArray]
    """Open lines: leaflets, walls of the atria and the right ventricle, septum between the atria, pacing_lead, strand0 ..."""
    hinges: FloatArray
    """(2, 2): ends of the mitral annulus, left and right."""
    systole: float = 0.0
    """Moment of the beat, from 0 (end-diastole) to 1 (end-systole)."""

    @property
    def landmarks(self) -> FloatArray:
        """Return points that can be followed from moment to moment, in the same order at each."""
        parts = [self.cavity, self.epicardium, self.left_atrium[::2]]
        parts += [p[::2] for p in (self.right_ventricle, self.right_atrium) if p is not None]
        return np.concatenate(parts)


# ---------------------------------------------------------------------------------------------------------------- outlines


def _outlines(heart: Heart, systole: float) -> Outlines:
    """Compute `Heart.at` in the ventricle's own frame (mm across and along its axis), then in the probe's."""
    ventricle = heart.ventricle
    t, left, right = ventricle.sides(systole)
    cavity = _endocardium(left, right)
    inside = np.array([0.0, 0.6 * between(ventricle.length_mm, systole)])
    apex = np.exp(-((np.linspace(-1, 1, NUM_ENDO) / 0.3) ** 2))
    thickness = between(ventricle.wall_mm, systole) * ventricle.wall_relative
    thickness = thickness * (1 + systole * ventricle.apex_thickening * apex)
    epicardium = smoothed(cavity + normals(cavity, inside) * thickness[:, None], 1.5)
    overhang = [np.array([[0.0, mm]]) for mm in ventricle.outer_overhang_mm]
    hinges = cavity[[0, -1]]
    # between the hinges: the wall may continue beside the atrium, but not between it and the cavity
    wall_outline = np.concatenate(
        [epicardium[:1] + overhang[0], epicardium, epicardium[-1:] + overhang[1], hinges[::-1]]
    )
    atrium_left, atrium = _atrium_outline(heart.atrium, hinges, systole)
    bodies, lines = {}, {"left_atrial_wall": atrium[4:-4]}
    right_outlines: list[FloatArray | None] = [None, None, None]
    if heart.right_heart is not None:
        ventricle_outline, right_atrium, right_wall, right_lines = _right_outlines(
            heart.right_heart, epicardium, atrium_left, systole
        )
        right_outlines = [ventricle_outline, right_atrium, right_wall]
        lines.update(right_lines)
        if heart.tricuspid is not None:
            ends = (right_lines["right_free_wall"][0], epicardium[2])
            lines.update({f"tricuspid{i}": leaf for i, leaf in enumerate(_leaflets(heart.tricuspid, *ends, systole))})
    lines.update({f"mitral{i}": leaf for i, leaf in enumerate(_leaflets(heart.mitral, hinges[0], hinges[1], systole))})
    for i, muscle in enumerate(heart.papillary):
        wall = (left if muscle.side < 0 else right)[np.argmin(np.abs(t - muscle.place))]
        centre = wall - np.array([muscle.side * muscle.inset_mm, 0.0])
        bodies[f"papillary{i}"] = _ellipse(centre, muscle.radii_mm, muscle.angle)
    for i, (from_t, from_side, to_t, to_side) in enumerate(heart.strands):
        strand = np.stack([_across(t, left, right, from_t, from_side), _across(t, left, right, to_t, to_side)])
        lines[f"strand{i}"] = resampled(strand, 14)
    if heart.atrium.vein is not None:
        bodies["vein"] = _vein(heart.atrium.vein, atrium)
    if heart.effusion_mm:
        width = heart.effusion_mm * np.sin(np.linspace(0.15, np.pi - 0.15, NUM_ENDO)) ** 0.5
        bodies["effusion"] = epicardium + normals(epicardium, inside) * width[:, None]

    def place(points: FloatArray) -> FloatArray:
        return heart.place(points, systole)

    return Outlines(
        cavity=place(cavity),
        epicardium=place(epicardium),
        wall_outline=place(wall_outline),
        left_atrium=place(atrium),
        right_ventricle=None if right_outlines[0] is None else place(right_outlines[0]),
        right_atrium=None if right_outlines[1] is None else place(right_outlines[1]),
        right_wall=None if right_outlines[2] is None else place(right_outlines[2]),
        bodies={name: place(body) for name, body in bodies.items()},
        lines={name: place(line) for name, line in lines.items()},
        hinges=place(hinges),
        systole=systole,
    )


def _endocardium(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return the outline (NUM_ENDO, 2) of a cavity from the left base over the apex to the right base."""
    half = NUM_ENDO // 2 + 1
    return np.concatenate([resampled(left, half), resampled(right, half)[-2::-1]])


def _atrium_outline(atrium: Atrium, hinges: FloatArray, systole: float) -> tuple[FloatArray, FloatArray]:
    """Return the left side (40, 2) from the annulus down, and the closed outline (80, 2)."""
    length, width = between(atrium.length_mm, systole), between(atrium.width_mm, systole)
    annulus, middle = float(np.hypot(*(hinges[1] - hinges[0]))), hinges.mean(axis=0)
    q = 1 - np.linspace(1, 0, 40) ** 2
    half = annulus / 2 + max(0.0, (width - annulus) / 2 * 1.25) * np.sin(np.pi * np.minimum(q, 0.8))
    half *= (1 - q**atrium.floor_power) ** (1 / atrium.side_power)
    if width < annulus:
        half *= 1 - (1 - width / annulus) * np.sin(np.pi * np.minimum(q, 0.5))
    x, y = middle[0] + atrium.slant * q * length, middle[1] + q * length
    lean = (hinges[1] - hinges[0])[1] / max(annulus, 1) * half * (1 - q)  # the annulus need not be level
    left, right = np.stack([x - half, y - lean], axis=1), np.stack([x + half, y + lean], axis=1)
    outline = np.concatenate([left, right[::-1]])
    outline = outline + atrium.unevenness_mm[:, None] * normals(outline, outline.mean(axis=0))
    return left, outline


def _right_outlines(
    right: RightHeart, epicardium: FloatArray, atrium_left: FloatArray, systole: float
) -> tuple[FloatArray, FloatArray, FloatArray, dict[str, FloatArray]]:
    """Return right ventricle, right atrium, right ventricle with its wall, and the lines of the right heart."""
    end = max(NUM_ENDO // 2 - int((1 - right.reach) * NUM_ENDO / 2 * 0.9) - 2, 14)
    septum = epicardium[2:end]
    x = np.linspace(1, 0, len(septum))  # 1 at the base
    width = between(right.width_mm, systole)
    shift = np.stack([width * x**right.bulge * (1 - 0.25 * x**4), right.sag_mm * x - 0.08 * width * x], axis=1)
    free_wall = septum - shift
    foot = free_wall[0]
    inner = atrium_left[2:30] - np.array([[right.septum_mm, 0.0]])
    length = right.atrium_length_mm
    corners = np.array(
        [
            foot,
            [foot[0] - right.atrium_bulge_mm, foot[1] + 0.5 * length],
            [(foot[0] + inner[-1, 0]) / 2, foot[1] + length],
            inner[-1] - [2, 0],
        ]
    )
    outer = smoothed(resampled(corners, 30), 4)
    wall = free_wall + right.wall_mm * normals(free_wall, septum.mean(axis=0))
    middle = np.stack([atrium_left[2:34, 0] - right.septum_mm / 2, atrium_left[2:34, 1]], axis=1)
    lines = {"right_free_wall": free_wall, "right_atrial_wall": outer, "atrial_septum": middle}
    if right.has_lead:
        inside = (septum + free_wall) / 2
        way = np.stack([(outer[-6] + inner[-1]) / 2, (foot + septum[0]) / 2, inside[len(inside) // 3], septum[-4]])
        lines["pacing_lead"] = smoothed(resampled(way, 40), 3)
    return (
        np.concatenate([septum, free_wall[::-1]]),
        np.concatenate([inner, outer[::-1]]),
        np.concatenate([septum, wall[::-1]]),
        lines,
    )


def _leaflets(valve: Valve, left: FloatArray, right: FloatArray, systole: float) -> list[FloatArray]:
    """Return the two leaflets (14, 2) of a valve, hinged at two points, at a moment."""
    tip = left + (right - left) * valve.meeting - [0.0, valve.tent_mm]
    share = valve.opens * max(0.0, 1 - 4 * systole)  # the valve closes when the ventricle begins to contract
    leaflets = []
    for i, hinge in enumerate((left, right)):
        closed = np.stack([hinge, (hinge + tip) / 2 - [0.0, valve.sag_mm[i]], tip])
        side, angle = (1, -1)[i], valve.opening[i]
        open_tip = hinge + valve.lengths_mm[i] * np.array([side * np.sin(angle), -np.cos(angle)])
        opened = np.stack([hinge, (hinge + open_tip) / 2 + [valve.sag_mm[i], 0.0], open_tip])
        leaflets.append(resampled(closed + (opened - closed) * share, 14))
    return leaflets


def _across(t: FloatArray, left: FloatArray, right: FloatArray, place: float, side: float) -> FloatArray:
    """Return the point at a place along the axis, from the left wall (side -1) to the right one (1)."""
    i = int(np.argmin(np.abs(t - place)))
    return left[i] + (right[i] - left[i]) * (side + 1) / 2


def _ellipse(centre: FloatArray, radii_mm: tuple[float, float], angle: float) -> FloatArray:
    theta = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    x, y = radii_mm[0] * np.cos(theta), radii_mm[1] * np.sin(theta)
    return centre + np.stack([np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y], axis=1)


def _vein(vein: tuple[float, float, float], atrium: FloatArray) -> FloatArray:
    """Return the outline of a vessel that leaves the atrium."""
    place, length, half_width = vein
    start = atrium[int(place * (len(atrium) - 1))]
    away = start - atrium.mean(axis=0)
    away /= np.hypot(*away) + 1e-6
    return _ellipse(start + away * length / 2, (length, half_width), float(np.arctan2(away[1], away[0])))
