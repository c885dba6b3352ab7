"""Draw random hearts of adults in the apical two- and four-chamber view.

Ranges are wider than those of a healthy population, because a network should meet every heart in training: means are those of adults,
spreads cover dilated, hypertrophied, thinned, aneurysmal and foreshortened ventricles. Walls are as thick as experts draw them,
trabeculae and pericardium included: about 2 mm thicker than a normal wall. Spreads and quantities without published ranges (bends,
slants, unevenness) were chosen on 40 training patients of CAMUS, by comparing sizes; none of their outlines is used here.

Sources, by the names used in the comments:
    Lang 2015: Recommendations for cardiac chamber quantification by echocardiography in adults, J Am Soc Echocardiogr 28:1.
    Klein 2013: Clinical recommendations for multimodality imaging of pericardial disease, J Am Soc Echocardiogr 26:965.
"""

from __future__ import annotations

import numpy as np

from synboost_monai.simulation.anatomy import (
    NUM_AXIS,
    NUM_ENDO,
    Atrium,
    Heart,
    Papillary,
    Place,
    RightHeart,
    Valve,
    Ventricle,
)
from synboost_monai.simulation.draw import Draw

VIEWS = ("apical_two_chamber", "apical_four_chamber")
"""Views that can be drawn."""


def draw_heart(draw: Draw, view: str) -> Heart:
    """Return a heart of an adult, healthy or ill, in one of `VIEWS`.

    Raises:
        ValueError: if the view is not one of them.
    """
    if view not in VIEWS:
        raise ValueError(f"hearts.py: view must be one of {', '.join(VIEWS)}, got {view!r}")
    is_four_chamber = view == "apical_four_chamber"
    is_female = draw.chance(0.5)
    age = int(round(draw.normal(62, 16, 18, 97)))
    size = (0.96 if is_female else 1.02) * draw.normal(1, 0.04)
    ejection_fraction = draw.normal(54, 13, 10, 80)  # healthy: 63 +- 5 (Lang 2015)
    ventricle, diagnosis = _draw_ventricle(draw, size, ejection_fraction, is_four_chamber)
    annulus = [a * w for a, w in zip(ventricle.annulus, ventricle.width_mm)]
    papillary = tuple(
        Papillary(
            side,
            draw.uniform(0.4, 0.72),
            draw.uniform(-1, 4),  # they grow out of the wall
            (draw.uniform(2.5, 6), draw.uniform(6, 14)),
            draw.normal(0, 0.2),
        )
        for side in (-1, 1)
        if draw.chance(0.2 if side < 0 and is_four_chamber else 0.5)
    )
    strands = [
        [draw.uniform(0.2, 0.8), draw.uniform(-1, 0.2), draw.uniform(0.2, 0.8), draw.uniform(-0.2, 1)]
        for _ in range(draw.count(1, 2) if draw.chance(0.2) else 0)
    ]
    return Heart(
        view=view,
        ventricle=ventricle,
        atrium=_draw_atrium(draw, size, annulus[0]),
        right_heart=_draw_right_heart(draw, size) if is_four_chamber else None,
        mitral=_draw_valve(draw, (draw.uniform(14, 28), draw.uniform(8, 17))),
        tricuspid=_draw_valve(draw, (draw.uniform(10, 22), draw.uniform(8, 16))) if is_four_chamber else None,
        papillary=papillary,
        strands=np.array(strands).reshape(-1, 4),
        effusion_mm=draw.uniform(2, 14) if draw.chance(0.06) else 0.0,  # small to moderate: up to 20 mm (Klein 2013)
        place=draw_place(draw, view),
        attributes={
            "sex": "female" if is_female else "male",
            "age": age,
            "ejection_fraction": round(ventricle.ejection_fraction, 1),
            "diagnosis": diagnosis,
        },
    )


def draw_place(draw: Draw, view: str) -> Place:
    """Return a position of the heart in front of the probe, as in apical windows."""
    is_four_chamber = view == "apical_four_chamber"
    tilt = np.radians(draw.normal(9, 8) if is_four_chamber else draw.normal(3, 8))
    apex_x, apex_y = draw.normal(-4 if is_four_chamber else -1, 8), draw.normal(25, 9, 8, 55)
    return Place(
        tilt=(tilt, tilt + np.radians(draw.normal(-2, 3))),
        shear=draw.normal(0, 0.06),
        apex_mm=((apex_x, apex_x + draw.normal(2, 2.5)), (apex_y, apex_y + draw.normal(2, 2))),
    )


def _draw_ventricle(draw: Draw, size: float, ejection_fraction: float, is_four_chamber: bool) -> tuple[Ventricle, str]:
    """Return the left ventricle and its diagnosis."""
    diagnosis = "normal"
    # men: 106 ml at a diameter of 50 +- 4 mm, women: 76 ml at 45 +- 4 (Lang 2015), so ellipsoids of 81 and 72 mm
    length = draw.normal(81, 9, 55, 112) * size
    width = draw.normal(44.5, 6, 30, 64) * size
    wall = draw.normal(11.8, 1.5, 6.5, 18)  # septum of the healthy: 6 to 10 mm (Lang 2015)
    if draw.chance(0.28):  # diameters above 58 mm in men, 52 in women (Lang 2015), and a weak ventricle
        diagnosis = "dilated"
        width, length = width * draw.uniform(1.02, 1.45), length * draw.uniform(1, 1.12)
        ejection_fraction *= draw.uniform(0.4, 1)
    elif draw.chance(0.15):
        diagnosis = "hypertrophied"  # severely: above 16 mm in men, 15 in women (Lang 2015)
        wall, width = wall + draw.uniform(1, 8), width * draw.uniform(0.8, 1)
    if draw.chance(0.25):
        length *= draw.uniform(0.75, 1)  # foreshortened: the plane misses the apex
    shortening = 1 - draw.uniform(0.22, 0.36) * ejection_fraction / 100
    narrowing = np.sqrt((1 - ejection_fraction / 100) / shortening)
    relative = np.exp(draw.curve(NUM_ENDO, 7, 0.1))
    s = np.linspace(-1, 1, NUM_ENDO)
    apex_share = draw.uniform(0.7, 1.25)
    relative *= 1 - (1 - apex_share) * np.exp(-((s / draw.uniform(0.2, 0.4)) ** 2))
    relative *= np.where(s < 0, draw.uniform(0.88, 1.12), draw.uniform(0.88, 1.14))
    widest, apex_power = draw.uniform(0.5, 0.85), draw.uniform(1.8, 3.0)
    if draw.chance(0.05):
        diagnosis = "apical aneurysm"
        widest, apex_power = draw.uniform(0.3, 0.5), draw.uniform(2.4, 3.4)
        relative *= 1 - draw.uniform(0.2, 0.5) * np.exp(-((s / 0.35) ** 2))
    annulus = float(np.clip(draw.normal(32, 4.5) * size / width, 0.55, 1.0))
    ventricle = Ventricle(
        length_mm=(length, length * shortening),
        width_mm=(width, width * narrowing),
        annulus=(annulus, min(1.05, annulus * draw.normal(0.92, 0.06) / narrowing)),
        widest=(widest, float(np.clip(widest + draw.normal(0.08, 0.06), 0.35, 0.9))),
        apex_power=(apex_power, max(1.4, apex_power * draw.uniform(0.7, 1))),
        base_power=draw.uniform(1.5, 3),
        bend=np.array([draw.normal(0.065 if is_four_chamber else 0.03, 0.045), draw.normal(0, 0.035)]),
        side_scale=(draw.uniform(0.8, 1.1), draw.uniform(0.88, 1.15)),
        septal_bulge=(draw.uniform(2, 7) if draw.chance(0.25) else 0.0, draw.uniform(0.75, 0.92)),
        unevenness_mm=np.stack([draw.curve(NUM_AXIS, 7, 1.0) for _ in range(2)]),
        base_shift_mm=(draw.normal(0, 2.5), draw.normal(0, 2.5)),
        wall_mm=(wall, wall * draw.normal(0.97, 0.05) / shortening),  # the wall's area is kept
        wall_relative=relative,
        apex_thickening=draw.uniform(0, 0.3),
        outer_overhang_mm=(draw.uniform(-2, 6), draw.uniform(-2, 7)),
    )
    return ventricle, diagnosis


def _draw_atrium(draw: Draw, size: float, annulus_mm: float) -> Atrium:
    # 44 x 42 mm make 41 ml by area and length; healthy: 16 to 34 ml per square metre of body surface (Lang 2015)
    length, width = draw.normal(44, 9, 22, 76) * size, max(draw.normal(42, 7, 26, 62) * size, 0.8 * annulus_mm)
    unevenness = draw.curve(80, 9, 0.9)
    unevenness[:3] = unevenness[-3:] = 0  # the atrium hangs from the annulus
    return Atrium(
        length_mm=(length, length * draw.uniform(1.05, 1.4)),
        width_mm=(width, width * draw.uniform(0.97, 1.2)),
        slant=float(np.tan(np.radians(draw.normal(0, 8)))),
        floor_power=draw.uniform(2, 3.6),
        side_power=draw.uniform(1.7, 2.4),
        unevenness_mm=unevenness,
        vein=(draw.uniform(0.15, 0.85), draw.uniform(6, 16), draw.uniform(3, 6)) if draw.chance(0.3) else None,
    )


def _draw_right_heart(draw: Draw, size: float) -> RightHeart:
    width = draw.uniform(22, 52) * size  # healthy: 25 to 41 mm at the base (Lang 2015)
    return RightHeart(
        reach=draw.uniform(0.5, 0.97),
        width_mm=(width, width * draw.uniform(0.7, 0.95)),
        bulge=draw.uniform(0.45, 0.9),
        sag_mm=draw.uniform(-3, 3),
        wall_mm=draw.uniform(2, 6),  # healthy: 1 to 5 mm (Lang 2015)
        atrium_length_mm=draw.normal(48, 10, 24, 75) * size,
        atrium_bulge_mm=draw.uniform(-6, 10),
        septum_mm=draw.uniform(2, 7),
        has_lead=draw.chance(0.06),
    )


def _draw_valve(draw: Draw, lengths_mm: tuple[float, float]) -> Valve:
    return Valve(
        meeting=draw.uniform(0.35, 0.7),
        tent_mm=draw.normal(2, 2.5, -6, 10) if draw.chance(0.8) else draw.uniform(2, 14),
        lengths_mm=lengths_mm,
        opening=(np.radians(draw.uniform(5, 55)), np.radians(draw.uniform(5, 55))),
        sag_mm=(draw.normal(0, 1.5), draw.normal(0, 1.5)),
        opens=1.0 if draw.chance(0.45) else 0.0,
    )
