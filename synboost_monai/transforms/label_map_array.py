"""Prepare label maps for semantic diffusion: random perturbation, the ultrasound sector, the five-class sector label map.

Shapes: H rows and W columns in display order (row 0 at the transducer), K sector classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.interpolate import BSpline
from scipy.spatial import ConvexHull, QhullError

from synboost_monai.structures import (
    NUM_CLASSES,
    NUM_SECTOR_CLASSES,
    SECTOR_INDEX_OF_CLASS,
    SECTOR_OUTSIDE_INDEX,
    SECTOR_TISSUE_INDEX,
    STRUCTURES,
)

SECTOR_HALF_ANGLE_DEG = 37.2
"""Half opening angle of the default sector, degrees: asin(W / 2H) of CAMUS's images, as their sector fills them."""

BSPLINE_DEGREE = 3
"""Degree of the B-splines: cubic, as in free-form deformation (Rueckert et al. 1999)."""


@dataclass(frozen=True, eq=False)
class DrawnPerturbation:
    """Hold the numbers drawn for one perturbation, in units that do not depend on the image's size."""

    rotation_deg: float
    """Rotation, clockwise on screen, degrees."""
    translation: tuple[float, float]
    """Translation to the right and down, fractions of the width and the height."""
    scale: float
    """Isotropic scale; 1 keeps the size."""
    shear_deg: float
    """Horizontal shear, degrees."""
    control_points: np.ndarray
    """Displacements (2, R, C) of the B-spline's control points: down and to the right, fractions of height and width."""

    def describe(self) -> dict[str, Any]:
        """Return the drawn numbers for a provenance record; the control points as their largest displacement."""
        numbers = asdict(self)
        control_points = numbers.pop("control_points")
        numbers["translation"] = list(self.translation)
        numbers["largest_control_point_displacement"] = float(np.abs(control_points).max(initial=0.0))
        return numbers


@dataclass(frozen=True)
class LabelMapPerturbation:
    """Deform a label map by a random affine and elastic map, with the published ranges as defaults.

    The label map is first mapped by x -> A (x - c) + c + d, with A = s R(rotation) Sh(shear), c the image's centre and
    d the translation; then by the elastic field u, a tensor product of cubic B-splines: the perturbed map at p is the
    affine map at p + u(p), u(p) = sum_ij B_i(p_row) B_j(p_column) w_ij. Here both are one lookup, nearest neighbour,
    as class indices must not be averaged: label_map(A^-1 (p + u(p) - c - d) + c); outside the image is background.

    Source: Stojanovski et al. 2023, "Echo from Noise", section 2.2 and its code's augment_camus_labels.py (MIT), where
    torchvision's RandomAffine is followed by torchio's RandomElasticDeformation. The control points are placed as there:
    the image spans the R - 3 by C - 3 inner cells of the grid, and `locked_borders` counts the outer rings of control
    points that stay put (1: the border itself can still move a little; 3: the border is fixed exactly). As a mean of
    bounded weights, u never exceeds `max_displacement`. The published call passes `(10, 10, 4)` control points for a
    one-slice volume (1, H, W), so that its columns had 4: `num_control_points=(10, 4)` reproduces that.
    """

    max_rotation_deg: float = 5.0
    """Rotation is uniform in +- this, degrees."""
    max_translation: tuple[float, float] = (0.0, 0.05)
    """Translation is uniform in +- this: horizontal and vertical, fractions of width and height."""
    scale_range: tuple[float, float] = (0.8, 1.05)
    """Scale is uniform in this range."""
    max_shear_deg: float = 5.0
    """Horizontal shear is uniform in +- this, degrees."""
    num_control_points: tuple[int, int] = (10, 10)
    """Control points along rows and columns."""
    locked_borders: int = 1
    """Outer rings of control points without displacement."""
    max_displacement: float = 30 / 256
    """Displacement of control points is uniform in +- this on each axis, fraction of the image's side: 30 px at 256 px."""
    strength: float = 1.0
    """Factor on all drawn numbers (on the scale's distance from 1), so a seed's deformation gets weaker or stronger; 0 changes nothing."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_translation", tuple(self.max_translation))
        object.__setattr__(self, "scale_range", tuple(self.scale_range))
        object.__setattr__(self, "num_control_points", tuple(self.num_control_points))
        if min(self.num_control_points) <= BSPLINE_DEGREE:
            raise ValueError(
                f"LabelMapPerturbation: num_control_points is {self.num_control_points}; "
                f"cubic B-splines need at least {BSPLINE_DEGREE + 1} on each axis"
            )
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"LabelMapPerturbation: scale_range is {self.scale_range}; expected 0 < lowest <= highest")
        if not (self.strength >= 0 and self.strength * (1 - self.scale_range[0]) < 1 - 1e-9):
            strongest = f" and below {1 / (1 - self.scale_range[0]):g}" if self.scale_range[0] < 1 else ""
            raise ValueError(
                f"LabelMapPerturbation: strength (perturbation_strength) is {self.strength}; expected at least 0{strongest}, where the "
                "heart would shrink to nothing"
            )

    def draw(self, seed: int) -> DrawnPerturbation:
        """Draw the perturbation that belongs to `seed` (a non-negative integer): the same on every machine."""
        generator = np.random.default_rng(seed)
        rotation_deg = generator.uniform(-self.max_rotation_deg, self.max_rotation_deg)
        right, down = (float(generator.uniform(-limit, limit)) for limit in self.max_translation)
        scale = generator.uniform(*self.scale_range)
        shear_deg = generator.uniform(-self.max_shear_deg, self.max_shear_deg)
        control_points = generator.uniform(
            -self.max_displacement, self.max_displacement, size=(2, *self.num_control_points)
        )
        rings = self.locked_borders
        is_free = np.zeros(self.num_control_points, dtype=bool)
        is_free[rings : self.num_control_points[0] - rings, rings : self.num_control_points[1] - rings] = True
        strength = self.strength
        return DrawnPerturbation(
            rotation_deg=float(strength * rotation_deg),
            translation=(strength * right, strength * down),
            scale=float(1 + strength * (scale - 1)),
            shear_deg=float(strength * shear_deg),
            control_points=np.where(is_free, strength * control_points, 0.0),
        )

    def __call__(self, label_map: np.ndarray, seed: int) -> np.ndarray:
        """Perturb one label map.

        Args:
            label_map: integers, (H, W).
            seed: non-negative integer that fixes the perturbation.
        Returns:
            The perturbed label map, shape and dtype of `label_map`; no new class appears, except background.
        """
        return apply_perturbation(label_map, self.draw(seed))


def apply_perturbation(label_map: np.ndarray, drawn: DrawnPerturbation) -> np.ndarray:
    """Deform a label map (H, W) by a drawn perturbation; the equation is in `LabelMapPerturbation`."""
    height, width = label_map.shape
    rotation, shear = np.deg2rad(drawn.rotation_deg), np.deg2rad(drawn.shear_deg)
    # Columns (x) first, as the angles are written in (x, y); y points down, so a positive rotation is clockwise.
    rotate = np.array([[np.cos(rotation), -np.sin(rotation)], [np.sin(rotation), np.cos(rotation)]])
    inverse = np.linalg.inv(drawn.scale * rotate @ np.array([[1.0, -np.tan(shear)], [0.0, 1.0]]))

    down, right = displacement_field((height, width), drawn.control_points)  # (H, W) each, pixels
    row, column = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    x = column + right - (width - 1) / 2 - drawn.translation[0] * width
    y = row + down - (height - 1) / 2 - drawn.translation[1] * height
    source_column = inverse[0, 0] * x + inverse[0, 1] * y + (width - 1) / 2
    source_row = inverse[1, 0] * x + inverse[1, 1] * y + (height - 1) / 2
    # order 0 = nearest; outside the image is background
    return ndimage.map_coordinates(label_map, [source_row, source_column], order=0, mode="constant", cval=0)


def displacement_field(shape: tuple[int, int], control_points: np.ndarray) -> np.ndarray:
    """Compute the elastic displacement u of every pixel from the control points' displacements.

    u(p) = sum_ij B_i(p_row) B_j(p_column) w_ij with uniform cubic B-splines B; the image, pixel edges included, spans
    the inner R - 3 by C - 3 cells.

    Args:
        shape: (H, W) of the image.
        control_points: w, (2, R, C), fractions of H (down) and W (right).
    Returns:
        u in pixels, (2, H, W): down and right.
    """
    row_basis, column_basis = (_bspline_basis(shape[axis], control_points.shape[1 + axis]) for axis in (0, 1))
    field = np.einsum("hr,nrc,wc->nhw", row_basis, control_points, column_basis, optimize=True)
    return field * np.array(shape, dtype=float)[:, None, None]


def _bspline_basis(num_pixels: int, num_control_points: int) -> np.ndarray:
    """Compute values (num_pixels, num_control_points) of the uniform cubic B-splines at the pixel centres."""
    num_cells = num_control_points - BSPLINE_DEGREE
    knots = np.arange(-BSPLINE_DEGREE, num_cells + BSPLINE_DEGREE + 1, dtype=float)
    centres = (np.arange(num_pixels) + 0.5) * num_cells / num_pixels  # in cells
    return BSpline.design_matrix(centres, knots, BSPLINE_DEGREE).toarray()


def sector_mask(image: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    """Find the ultrasound sector in an image: the convex hull of its largest bright region.

    The region is where most pixels of a small neighbourhood have image > threshold: dark speckle does not count, nor do thin
    strokes (burnt-in text, calipers). A phased array's sector is convex, so its convex hull also holds the dark cavities.
    The concave top edge of a curved array is filled in as well.

    Args:
        image: (H, W), 0 outside the sector.
        threshold: brightest value that still counts as dark, in the image's units.
    Returns:
        True inside the sector, (H, W) bool.
    Raises:
        ValueError: if nothing is brighter than the threshold.
    """
    bright = image > threshold
    if not bright.any():
        raise ValueError(
            f"sector_mask: no pixel of the {image.shape} image is brighter than {threshold:g}; is this an echocardiogram?"
        )
    size = 2 * max(1, round(min(image.shape) / 100)) + 1
    fraction = ndimage.uniform_filter(bright.astype(np.float32), size, mode="nearest")
    region = fraction > 0.5
    if not region.any():
        region = bright
    components, _ = ndimage.label(region)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    largest = components == sizes.argmax()
    # The filter rounds off the sector's corners: all bright pixels around the region belong to it.
    around = ndimage.maximum_filter(largest.view(np.uint8), 2 * size - 1) > 0
    return _fill_convex_hull(bright & around)


def _fill_convex_hull(mask: np.ndarray) -> np.ndarray:
    """Fill in every pixel whose centre is within the convex hull of the mask's pixel centres."""
    rows = np.flatnonzero(mask.any(axis=1))
    first = mask[rows].argmax(axis=1)
    last = mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    points = np.unique(np.concatenate([np.stack([rows, first], 1), np.stack([rows, last], 1)]), axis=0)
    try:
        equations = ConvexHull(points).equations  # inside: normal . (row, column) + offset <= 0
    except (QhullError, ValueError):  # a single row, column or point has no area
        return mask.copy()
    row_normal, column_normal, offset = equations.T
    row, column = np.arange(rows[0], rows[-1] + 1)[:, None], np.arange(mask.shape[1])
    is_left, is_right = column_normal < -1e-9, column_normal > 1e-9
    bounds = [-(row * row_normal[k] + offset[k]) / column_normal[k] for k in (is_left, is_right)]  # (rows, facets)
    left, right = bounds[0].max(axis=1, keepdims=True), bounds[1].min(axis=1, keepdims=True)
    inside = np.zeros(mask.shape, dtype=bool)
    inside[rows[0] : rows[-1] + 1] = (column >= left - 1e-6) & (column <= right + 1e-6)
    return inside


def default_sector_mask(
    shape: tuple[int, int], spacing_mm: tuple[float, float] = (1.0, 1.0), half_angle_deg: float = SECTOR_HALF_ANGLE_DEG
) -> np.ndarray:
    """Make the sector of a phased array when there is no image to find it in: apex at the top centre, as deep as the image is high.

    Inside: hypot(x, y) <= depth and |atan2(x, y)| <= half angle, x to the right of the apex and y below it, in mm.

    Args:
        shape: (H, W).
        spacing_mm: (row, column) size of a pixel.
        half_angle_deg: half of the opening angle, degrees.
    Returns:
        True inside the sector, (H, W) bool.
    """
    height, width = shape
    y = (np.arange(height)[:, None] + 0.5) * spacing_mm[0]
    x = (np.arange(width)[None, :] + 0.5 - width / 2) * spacing_mm[1]
    is_in_depth = np.hypot(x, y) <= height * spacing_mm[0]
    return is_in_depth & (np.abs(np.arctan2(x, y)) <= np.deg2rad(half_angle_deg))


def sector_label_map(label_map: np.ndarray, sector: np.ndarray) -> np.ndarray:
    """Make the five-class label map that conditions the diffusion model; labels outside the sector are cut off.

    0 outside the sector, 1 left-ventricular cavity, 2 other tissue in the sector, 3 myocardium, 4 left atrium
    (`structures.SECTOR_INDEX_OF_CLASS`).

    Args:
        label_map: segmentation label map, (H, W), 0..3.
        sector: True inside the sector, (H, W).
    Returns:
        (H, W) uint8, 0..4.
    Raises:
        ValueError: if the shapes differ, or the label map has another class.
    """
    if label_map.shape != sector.shape:
        raise ValueError(f"sector_label_map: label map is {label_map.shape} but sector is {sector.shape}")
    table = np.array([SECTOR_INDEX_OF_CLASS[class_index] for class_index in range(NUM_CLASSES)], dtype=np.uint8)
    label_map = label_map.astype(np.int64)
    if label_map.min() < 0 or label_map.max() >= NUM_CLASSES:
        found = sorted(set(np.unique(label_map).tolist()) - set(range(NUM_CLASSES)))
        raise ValueError(f"sector_label_map: expected classes 0..{NUM_CLASSES - 1}, the label map also has {found}")
    return np.where(np.asarray(sector, dtype=bool), table[label_map], np.uint8(SECTOR_OUTSIDE_INDEX))


def colour_sector_label_map(label_map: np.ndarray) -> np.ndarray:
    """Draw a five-class sector label map: black outside, dark grey tissue, structures in their colours.

    Args:
        label_map: (H, W), 0..4.
    Returns:
        RGB, (H, W, 3) uint8.
    """
    palette = np.zeros((NUM_SECTOR_CLASSES, 3), dtype=np.uint8)
    palette[SECTOR_TISSUE_INDEX] = 64
    for structure in STRUCTURES:
        palette[SECTOR_INDEX_OF_CLASS[structure.class_index]] = structure.colour
    return palette[np.asarray(label_map).astype(np.int64)]
