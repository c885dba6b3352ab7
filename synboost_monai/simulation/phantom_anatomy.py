"""Draw the phantom's anatomy: a patient's heart in two apical views, at any moment between end-diastole and end-systole.

Frame of all points: millimetres, (x, y), x to the right, y downwards (depth), the ultrasound probe at the origin. The
left ventricle has an axis from its apex to the middle of the mitral annulus; seen across that axis at the fraction t of
its length (0 apex, 1 annulus) the cavity is a chord of width W g(t). Both views share the length L, so the volume is
the biplane sum of disks (modified Simpson's rule, Schiller et al., J Am Soc Echocardiogr 1989)

    V = pi / 4 * L * integral_0^1 W_2CH g_2CH(t) W_4CH g_4CH(t) dt

in closed form: tilt, bend and position of the ventricle do not enter. End-systole shortens L and narrows W so that the
ejection fraction is met exactly. The means follow what adults' apical views look like (end-diastolic length about 77
mm, width 45 mm; myocardium as experts draw it, pericardium included, about 12 mm).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synboost_monai.heart.geometry import fill_polygon
from synboost_monai.structures import LEFT_ATRIUM, LEFT_VENTRICULAR_CAVITY, MYOCARDIUM

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

CURVE_POINTS = 129
"""Points of a curve; odd, so that the middle one of the endocardium is the apex."""
SECTOR_CLEARANCE_MM = 4.0
"""Smallest distance of the left ventricular cavity from the sector's edge."""


@dataclass(frozen=True)
class Curve:
    """Hold a curve with a layer on one side: points (K, 2), unit normals (K, 2) to that side, thickness (K,) in mm."""

    points: FloatArray
    normals: FloatArray
    thickness: FloatArray

    @property
    def outer(self) -> FloatArray:
        """Return the far side of the layer, (K, 2)."""
        return self.points + self.thickness[:, None] * self.normals


@dataclass(frozen=True)
class HeartContours:
    """Hold the content of one frame of one view; closed polygons (K, 2) in mm."""

    wall: Curve
    """Endocardium from the left end of the mitral annulus over the apex to the right end; the layer: myocardium."""
    left_atrium: FloatArray
    right_ventricle: FloatArray | None
    """Only in the four-chamber view, like the right atrium."""
    right_atrium: FloatArray | None
    layers: dict[str, Curve]
    """Thin structures that are visible only by their echo: `pericardium`, `leaflet_*`, `papillary_*`, `atrial_wall`, ..."""

    @property
    def cavity(self) -> FloatArray:
        """Return the left ventricular cavity: the endocardium closed by the mitral annulus."""
        return self.wall.points

    @property
    def epicardium(self) -> FloatArray:
        """Return cavity and myocardium together."""
        return np.concatenate([self.wall.points[:1], self.wall.outer, self.wall.points[-1:]])


@dataclass(frozen=True)
class CavityProfile:
    """Give the cavity's width across its axis as a fraction of the largest: g(t), t from 0 (apex) to 1 (mitral annulus)."""

    widest_at: float
    """Fraction of the length where g = 1."""
    apex_power: float
    """Exponent of the superellipse from the apex to `widest_at`: 2 is an ellipse, more is blunter."""
    base_width: float
    """g(1): width at the mitral annulus."""
    bulge: float
    """Amplitude of a wave on the wall, changing sign along the axis."""

    def __call__(self, t: FloatArray) -> FloatArray:
        towards_apex = np.clip(1 - t / self.widest_at, 0, 1)
        towards_base = np.clip((t - self.widest_at) / (1 - self.widest_at), 0, 1)
        width = (1 - towards_apex**self.apex_power) ** (1 / self.apex_power) - (1 - self.base_width) * towards_base**2
        return width * (1 + self.bulge * np.sin(2 * np.pi * t))


@dataclass(frozen=True)
class ViewAnatomy:
    """Hold one apical view of a patient. Pairs are (end-diastole, end-systole)."""

    view: str
    profile: CavityProfile
    length_mm: tuple[float, float]
    width_mm: tuple[float, float]
    apex_mm: tuple[tuple[float, float], tuple[float, float]]
    """Position of the apex of the cavity, (x, y)."""
    tilt: tuple[float, float]
    """Angle of the axis to the vertical in radians; positive turns the base to the right."""
    bend: tuple[float, float]
    """Sideways bow of the cavity's centre line, first and second harmonic, as a fraction of its width."""
    wall_mm: tuple[float, float]
    wall_variation: tuple[float, float, float]
    """Relative thickness of the apex, of the left wall's bulge and of the right wall's."""
    atrium_length_mm: tuple[float, float]
    atrium_width_mm: tuple[float, float]
    atrium_tilt: float
    right_width_mm: tuple[float, float]
    """Width of the right ventricle at its base; not used in the two-chamber view."""
    coaptation_mm: float
    """Distance by which the closed mitral leaflets extend into the ventricle."""
    papillary: tuple[tuple[float, float], ...]
    """Papillary muscles: side (-1 left, 1 right) and thickness in mm."""

    def contours(self, systole: float) -> HeartContours:
        """Return all curves at a moment from 0 (end-diastole) to 1 (end-systole); every length changes linearly between."""
        return _build_contours(self, systole)


@dataclass(frozen=True)
class PatientAnatomy:
    """Hold a patient's heart and the depth of the image."""

    depth_mm: float
    half_angle: float
    """Half the sector's opening angle in radians."""
    views: dict[str, ViewAnatomy]
    """Views by CAMUS's name: `2CH`, `4CH`."""
    ejection_fraction: float
    """Percent, exact for the shape defined above."""

    def volume_ml(self, systole: float) -> float:
        """Return the volume of the left ventricular cavity (biplane, see the module) at a moment from 0 (end-diastole) to 1."""
        two, four = self.views["2CH"], self.views["4CH"]
        widths = _between(two.width_mm, systole) * _between(four.width_mm, systole)
        return np.pi / 4 * _between(two.length_mm, systole) * widths * _disk_integral(two.profile, four.profile) / 1000


def draw_patient(generator: np.random.Generator, *, is_female: bool) -> PatientAnatomy:
    """Draw a random patient: adult size, ejection fraction of 25 to 72 %, LV inside the sector in both views.

    Args:
        generator: source of all randomness.
        is_female: women's hearts are drawn about 5 % smaller in each direction.
    """
    size = (0.96 if is_female else 1.01) * generator.normal(1.0, 0.05)
    ejection_fraction = float(np.clip(generator.normal(52, 11), 25, 72))
    length = float(np.clip(generator.normal(78, 7.5) * size, 60, 100))
    shortening = 1 - 0.28 * ejection_fraction / 100
    narrowing = np.sqrt((1 - ejection_fraction / 100) / shortening)
    half_angle = float(np.radians(generator.choice([37.5, 37.5, 37.5, 45.0])))
    dilation = 1 + 0.012 * max(0.0, 50 - ejection_fraction)  # failing hearts are wide
    views = {}
    for view in ("2CH", "4CH"):
        width = float(np.clip(generator.normal(45, 5) * size * dilation**0.5, 34, 62))
        views[view] = _draw_view(
            generator, view, (length, length * shortening), (width, width * narrowing), ejection_fraction, half_angle
        )
    bottoms = [view.contours(s).left_atrium[:, 1].max() for view in views.values() for s in (0.0, 1.0)]
    depth = float(np.clip(5 * np.round(max(bottoms) * generator.uniform(0.9, 1.15) / 5), 120, 210))
    return PatientAnatomy(depth, half_angle, views, ejection_fraction)


def draw_label_map(
    contours: HeartContours, depth_mm: float, shape: tuple[int, int], spacing_mm: float
) -> NDArray[np.uint8]:
    """Draw the segmentation label map (H, W) of one frame; the probe is at the middle of the upper border.

    As experts draw it, the wall continues outside the sector, in the dark; the atrium ends at the sector's lower border.
    From a height of about 64 pixels on, each class is one piece, and the cavity touches only the wall and the atrium.
    """

    def fill(polygon: FloatArray) -> BoolArray:
        return fill_polygon(
            polygon[:, 1] / spacing_mm - 0.5, polygon[:, 0] / spacing_mm + shape[1] / 2 - 0.5, (shape[0], shape[1])
        )

    cavity = fill(contours.cavity)
    heart = fill(contours.epicardium) | _grown(cavity)  # only wall and atrium touch the cavity
    y = (np.arange(shape[0])[:, None] + 0.5) * spacing_mm
    x = (np.arange(shape[1])[None, :] + 0.5 - shape[1] / 2) * spacing_mm
    atrium = fill(contours.left_atrium) & (np.hypot(x, y) <= depth_mm)
    label_map = np.zeros(shape, np.uint8)
    label_map[heart] = MYOCARDIUM.class_index
    label_map[atrium & ~fill(contours.epicardium)] = LEFT_ATRIUM.class_index
    label_map[cavity] = LEFT_VENTRICULAR_CAVITY.class_index
    return label_map


def _draw_view(
    generator: np.random.Generator,
    view: str,
    length: tuple[float, float],
    width: tuple[float, float],
    ejection_fraction: float,
    half_angle: float,
) -> ViewAnatomy:
    """Draw the parameters that differ between the views of one heart."""
    is_four_chamber = view == "4CH"
    uniform, normal = generator.uniform, generator.normal
    profile = CavityProfile(uniform(0.6, 0.78), uniform(2.1, 2.9), uniform(0.72, 0.9), normal(0, 0.025))
    wall = float(np.clip(normal(12.3, 1.6), 8.5, 16.5))
    atrium_length, atrium_width = normal(40, 6), normal(43, 4.5)
    right = uniform(27, 38)
    tilt = np.radians(np.clip(normal(11, 6), -2, 24) if is_four_chamber else np.clip(normal(4, 6), -8, 16))
    apex_x = float(normal(-5, 4) if is_four_chamber else normal(-2, 4))
    apex_y = float(np.clip(normal(31.5, 6), 22, 46))
    drawn = ViewAnatomy(
        view=view,
        profile=profile,
        length_mm=length,
        width_mm=width,
        apex_mm=((apex_x, apex_y), (apex_x + normal(1, 1), apex_y + uniform(0.5, 3))),
        tilt=(float(tilt), float(tilt + np.radians(normal(-2, 1.5)))),
        bend=(float(normal(0, 0.035)), float(normal(0, 0.03))),
        wall_mm=(wall, wall * (1 + 0.25 * ejection_fraction / 100)),
        wall_variation=(uniform(0.75, 0.95), normal(0, 0.07), normal(0, 0.07)),
        atrium_length_mm=(float(np.clip(atrium_length, 26, 56)), float(np.clip(atrium_length * 1.2, 30, 64))),
        atrium_width_mm=(float(np.clip(atrium_width, 33, 54)), float(np.clip(atrium_width * 1.06, 35, 57))),
        atrium_tilt=float(np.radians(normal(0, 6))),
        right_width_mm=(right, right * 0.85),
        coaptation_mm=float(uniform(4, 9)),
        papillary=tuple((side, uniform(4, 8)) for side in (-1.0, 1.0) if uniform() < (0.25 if side < 0 else 0.6)),
    )
    return _inside_sector(drawn, half_angle)


def _inside_sector(view: ViewAnatomy, half_angle: float) -> ViewAnatomy:
    """Return the view with the heart moved down and towards the middle until the whole cavity is in the sector."""
    for _ in range(60):
        margins = []
        for systole in (0.0, 1.0):
            x, y = view.contours(systole).cavity.T
            margins.append((y * np.sin(half_angle) - np.abs(x) * np.cos(half_angle)).min())
        if min(margins) >= SECTOR_CLEARANCE_MM:
            return view
        apex = tuple((x * 0.9, y + 1.0) for x, y in view.apex_mm)
        tilt = tuple(0.95 * angle for angle in view.tilt)
        view = ViewAnatomy(**{**view.__dict__, "apex_mm": apex, "tilt": tilt})
    raise AssertionError("the drawn heart does not fit into the sector")


def _build_contours(view: ViewAnatomy, systole: float) -> HeartContours:
    """Compute `ViewAnatomy.contours`."""
    length, width = _between(view.length_mm, systole), _between(view.width_mm, systole)
    apex = np.array([_between((view.apex_mm[0][k], view.apex_mm[1][k]), systole) for k in (0, 1)])
    tilt = _between(view.tilt, systole)
    along = np.array([np.sin(tilt), np.cos(tilt)])
    across = np.array([np.cos(tilt), -np.sin(tilt)])

    def place(t: FloatArray, n: FloatArray) -> FloatArray:
        """Convert heart coordinates (fraction of the axis, mm across it) to mm in the image."""
        return apex + np.asarray(t)[..., None] * length * along + np.asarray(n)[..., None] * across

    # Left ventricle
    u = np.linspace(1, 0, 200)
    t = u**2  # dense at the apex, where the outline turns
    centre = width * (view.bend[0] * np.sin(np.pi * t) + view.bend[1] * np.sin(2 * np.pi * t))
    half = width * view.profile(t) / 2
    left, right = (_resampled(place(t, n), CURVE_POINTS // 2 + 1) for n in (centre - half, centre + half))
    endocardium = np.concatenate([left, right[-2::-1]])
    wall = _curve(endocardium, _wall_thickness(view, systole), away_from=place(np.array(0.6), np.array(0.0)))
    annulus = width * view.profile.base_width

    # Left atrium: hangs from the annulus
    atrium_length, atrium_width = _between(view.atrium_length_mm, systole), _between(view.atrium_width_mm, systole)
    q = 1 - np.linspace(1, 0, 60) ** 2
    belly = max(0.0, 0.7 * (atrium_width - annulus)) * np.sin(np.pi * np.minimum(q, 0.75))
    atrium_half = np.sqrt(1 - q**3) * (annulus / 2 + belly)
    sideways = np.tan(view.atrium_tilt) * q * atrium_length
    atrium_t = 1 + q * atrium_length / length
    atrium_left, atrium_right = place(atrium_t, sideways - atrium_half), place(atrium_t, sideways + atrium_half)
    left_atrium = np.concatenate([atrium_left, atrium_right[::-1]])

    # Leaflets, closed from end-diastole to end-systole
    coaptation = place(np.array(1 - view.coaptation_mm / length), np.array(-0.12 * annulus))
    layers = {
        "pericardium": Curve(wall.outer, wall.normals, np.full(CURVE_POINTS, 2.5)),
        "atrial_wall": _curve(_resampled(left_atrium, CURVE_POINTS), 3.0, away_from=left_atrium.mean(axis=0)),
        "leaflet_left": _leaflet(place(np.array(1.0), np.array(-annulus / 2)), coaptation, along),
        "leaflet_right": _leaflet(place(np.array(1.0), np.array(annulus / 2)), coaptation, along),
    }
    for end, point in (("left", wall.points[0]), ("right", wall.points[-1])):  # fibrous ring, visible at its two ends
        line = _resampled(point + np.outer([-3.0, 3.0], along), 17)
        layers[f"annulus_{end}"] = _curve(line, 5.0, away_from=apex + length * along)
    for index, (side, thickness) in enumerate(view.papillary):
        t = np.linspace(0.5, 0.8, 30)
        n = side * (width * view.profile(t) / 2 - 0.6 * thickness - 9 * np.sin(np.pi * (t - 0.5)) * width / 45)
        line = _resampled(place(t, n), 65)
        layers[f"papillary_{index}"] = _curve(line, thickness, away_from=place(np.array(0.6), np.array(0.0)))

    right_ventricle = right_atrium = None
    if view.view == "4CH":
        right_width = _between(view.right_width_mm, systole)
        right_ventricle, right_atrium, right_layers = _right_heart(right_width, wall.outer, atrium_left, along, across)
        layers.update(right_layers)
    return HeartContours(wall, left_atrium, right_ventricle, right_atrium, layers)


def _right_heart(
    width_mm: float, epicardium: FloatArray, atrium_left: FloatArray, along: FloatArray, across: FloatArray
) -> tuple[FloatArray, FloatArray, dict[str, Curve]]:
    """Return right ventricle and atrium of the four-chamber view (dark, not labelled), and their wall and valve."""
    septum = epicardium[4 : CURVE_POINTS // 2 - 16]  # from the base towards the apex
    base = septum[0]
    x = np.linspace(0, 1, 60)
    free_wall = _resampled(septum[::-1], 60) - (width_mm * x**0.75 * (1 - 0.3 * x**4))[:, None] * across
    foot = free_wall[-1]
    right_ventricle = np.concatenate([septum, free_wall])
    coaptation = 0.55 * base + 0.45 * foot - 5 * along
    layers = {
        "right_wall": _curve(_resampled(free_wall, CURVE_POINTS), 4.0, away_from=septum.mean(axis=0)),
        "leaflet_tricuspid_left": _leaflet(foot, coaptation, along),
        "leaflet_tricuspid_right": _leaflet(base, coaptation, along),
    }
    # the atria share a septum: follow the left atrium's wall at a few millimetres
    inner = atrium_left[4:50] - 3.5 * across
    y = np.linspace(0, 1, 50)[:, None]
    outer = inner[-1] + y * (foot - inner[-1]) - 9 * np.sin(np.pi * y) * (across - 0.35 * along)
    return right_ventricle, np.concatenate([inner, outer]), layers


def _wall_thickness(view: ViewAnatomy, systole: float) -> FloatArray:
    """Return the thickness (K,) of the myocardium from the left base over the apex to the right base, in mm."""
    s = np.linspace(-1, 1, CURVE_POINTS)
    apex, left, right = view.wall_variation
    bulge = np.where(s < 0, left, right) * np.sin(np.pi * np.abs(s)) ** 2
    shape = 1 - (1 - apex) * np.exp(-((s / 0.3) ** 2)) + bulge
    return _between(view.wall_mm, systole) * shape


def _leaflet(hinge: FloatArray, tip: FloatArray, along: FloatArray) -> Curve:
    """Return a valve leaflet from hinge to tip, slightly bowed into the ventricle."""
    s = np.linspace(0, 1, 33)[:, None]
    points = hinge + s * (tip - hinge) - 0.8 * np.sin(np.pi * s) * along
    return _curve(points, 1.3, away_from=points.mean(axis=0) + 50 * along)


def _curve(points: FloatArray, thickness: FloatArray | float, *, away_from: FloatArray) -> Curve:
    """Return a curve whose normals point away from a point."""
    tangent = np.gradient(points, axis=0)
    normals = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    if np.sum(normals * (points - away_from)) < 0:
        normals = -normals
    return Curve(points, normals, np.broadcast_to(np.asarray(thickness, float), len(points)).copy())


def _resampled(points: FloatArray, count: int) -> FloatArray:
    """Return `count` points at equal distances along a polyline."""
    run = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    at = np.linspace(0, run[-1], count)
    return np.stack([np.interp(at, run, points[:, k]) for k in (0, 1)], axis=1)


def _grown(mask: BoolArray) -> BoolArray:
    """Return the mask grown by its eight neighbours."""
    padded = np.pad(mask, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


@functools.lru_cache(maxsize=8)
def _disk_integral(two: CavityProfile, four: CavityProfile) -> float:
    """Return the integral of g_2CH(t) g_4CH(t) over the axis; t = u^2 because the profiles rise steeply at the apex."""
    u = (np.arange(4000) + 0.5) / 4000
    return float(np.mean(two(u**2) * four(u**2) * 2 * u))


def _between(pair: tuple[float, float], systole: float) -> float:
    """Interpolate from the value at end-diastole to that at end-systole."""
    return pair[0] + (pair[1] - pair[0]) * systole
