"""Choose the region of an ultrasound image to segment, and its pixel size (Sequence of Ultrasound Regions, DICOM PS3.3 C.8.5.5).

Only Physical Delta in centimetres, of the one region of two-dimensional tissue, makes a calibration; Pixel Spacing and the depth of
the scan field are never used. If anything is in doubt there is no calibration, with the reason: the image is segmented, not measured.

| regions | segmented | calibration |
|---|---|---|
| one of 2-D tissue, within the image | that region | by its delta, if plausible |
| several of 2-D tissue (two planes, dual display) | the largest | none: it is not known which one is meant |
| 2-D colour flow alone | the largest | none: colours hide the tissue, and the colour box is often only a part of the sector |
| one that reaches out of the image by more than the off-by-one of some devices | the whole image | none: made for another size |
| spectra, M-mode or their traces alone | nothing: refused | |
| none, or graphics and ECG alone | the whole image | none |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synboost_monai.dicom.reading.values import items_in, number_in, whole_number_in
from synboost_monai.dicom.reasons import NotUsableError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

TWO_DIMENSIONAL, M_MODE, SPECTRAL = 1, 2, 3
"""Values of Region Spatial Format."""
TISSUE = 1
"""Value of Region Data Type."""
CENTIMETRES = 3
"""Value of Physical Units X/Y Direction."""
MIN_SIDE = 16
"""Shortest side of a region or an image, in pixels; a smaller one cannot show a heart."""
MAX_OVERHANG = 1
"""Pixels by which a region may reach beyond the image: some devices write the number of columns instead of the last column."""
PIXEL_MM = (0.02, 3.0)
"""Smallest and largest plausible pixel, in millimetres; echocardiograms have 0.1 to 1."""
DEPTH_MM = (20.0, 400.0)
"""Smallest and largest plausible depth of the region, in millimetres; neonates are scanned at 40, large adults at 240."""
MAX_ASPECT = 4.0
"""Largest ratio of width to height of a pixel, or the reverse."""


@dataclass(frozen=True)
class Region:
    """Describe the part of an image that is segmented, in pixels of the whole image."""

    first_row: int
    first_column: int
    rows: int
    columns: int
    spacing_mm: tuple[float, float] | None
    """(row, column); None without a calibration."""
    problem: NotUsableError | None
    """Why there is no calibration."""


@dataclass(frozen=True)
class _Box:
    """First and last column and row of a region, all within it."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def rows(self) -> int:
        return self.bottom - self.top + 1

    @property
    def columns(self) -> int:
        return self.right - self.left + 1


def choose_region(dataset: Dataset) -> Region:
    """Return the region to segment, with its calibration or the reason why there is none.

    Args:
        dataset: header of an ultrasound image, with Rows and Columns.
    Raises:
        NotUsableError: not_two_dimensional if there are only spectra or M-mode.
    """
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    items = items_in(dataset, "SequenceOfUltrasoundRegions")
    two_dimensional = [item for item in items if whole_number_in(item, "RegionSpatialFormat") == TWO_DIMENSIONAL]
    if items and not two_dimensional:
        _refuse_spectra(items)
    tissue = _distinct([item for item in two_dimensional if whole_number_in(item, "RegionDataType") == TISSUE])
    try:
        if not items:
            raise NotUsableError("no_regions")
        if not tissue:
            raise NotUsableError("no_tissue_region")
        if len(tissue) > 1:
            raise NotUsableError("several_tissue_regions", count=len(tissue))
        box = _box_within(tissue[0], rows, columns)
        return Region(box.top, box.left, box.rows, box.columns, _spacing_mm(tissue[0], box), None)
    except NotUsableError as problem:
        box = _largest(tissue or two_dimensional, rows, columns)
        return Region(box.top, box.left, box.rows, box.columns, None, problem)


def _refuse_spectra(items: Sequence[Dataset]) -> None:
    """Refuse an image with regions of spectra or M-mode; the caller has found no two-dimensional one."""
    formats = {whole_number_in(item, "RegionSpatialFormat") for item in items}
    names = [name for number, name in ((M_MODE, "M-mode"), (SPECTRAL, "spectral Doppler")) if number in formats]
    if names:
        raise NotUsableError("not_two_dimensional", what=" and ".join(names))


def _distinct(items: Sequence[Dataset]) -> list[Dataset]:
    """Drop regions without extent, and repetitions: some devices list a region twice."""
    kept: dict[Any, Dataset] = {}
    for number, item in enumerate(items):
        try:
            box = _box(item)
        except NotUsableError:
            kept[number] = item  # malformed: reported later if it is the only one
            continue
        if box.right > box.left or box.bottom > box.top or len(items) == 1:
            scale = tuple(str(item.get(name)) for name in ("PhysicalDeltaX", "PhysicalDeltaY"))
            kept.setdefault((box, scale), item)
    return list(kept.values())


def _largest(items: Sequence[Dataset], rows: int, columns: int) -> _Box:
    """Return the largest region within the image; the whole image if there is none."""
    boxes = []
    for item in items:
        try:
            boxes.append(_box_within(item, rows, columns))
        except NotUsableError:
            continue
    return max(boxes, key=lambda box: box.rows * box.columns, default=_Box(0, 0, columns - 1, rows - 1))


def _box(item: Dataset) -> _Box:
    """Return the location of a region as the header gives it (PS3.3 C.8.5.5.1.14: both corners belong to it)."""
    values = []
    for name in ("MinX0", "MinY0", "MaxX1", "MaxY1"):
        value = whole_number_in(item, f"RegionLocation{name}")
        if value is None or value < 0:
            raise NotUsableError("region_malformed", keyword=f"RegionLocation{name}")
        values.append(value)
    return _Box(*values)


def _box_within(item: Dataset, rows: int, columns: int) -> _Box:
    """Return the location of a region, clamped to the image if it is off by one.

    Raises:
        NotUsableError: region_malformed, region_outside or region_too_small.
    """
    box = _box(item)
    for low, high, name in ((box.left, box.right, "MaxX1"), (box.top, box.bottom, "MaxY1")):
        if high < low:
            raise NotUsableError("region_malformed", keyword=f"RegionLocation{name}")
    if box.right > columns - 1 + MAX_OVERHANG or box.bottom > rows - 1 + MAX_OVERHANG:
        raise NotUsableError("region_outside", column=box.right, row=box.bottom, columns=columns, rows=rows)
    box = _Box(box.left, box.top, min(box.right, columns - 1), min(box.bottom, rows - 1))
    if min(box.rows, box.columns) < MIN_SIDE:
        raise NotUsableError("region_too_small", rows=max(box.rows, 0), columns=max(box.columns, 0))
    return box


def _spacing_mm(item: Dataset, box: _Box) -> tuple[float, float]:
    """Return the (row, column) size of a region's pixel in millimetres.

    Raises:
        NotUsableError: units_not_cm, delta_not_positive, delta_implausible, pixels_not_square, depth_implausible or
            region_malformed.
    """
    units = [whole_number_in(item, f"PhysicalUnits{axis}Direction") for axis in "XY"]
    for axis, unit in zip("XY", units):
        if unit is None:
            raise NotUsableError("region_malformed", keyword=f"PhysicalUnits{axis}Direction")
    if units != [CENTIMETRES, CENTIMETRES]:
        raise NotUsableError("units_not_cm", x=units[0], y=units[1])
    deltas = []
    for axis in "XY":
        delta = number_in(item, f"PhysicalDelta{axis}")
        if delta is None:
            raise NotUsableError("region_malformed", keyword=f"PhysicalDelta{axis}")
        deltas.append(delta)
    if min(deltas) <= 0:
        raise NotUsableError("delta_not_positive", x=f"{deltas[0]:.4g}", y=f"{deltas[1]:.4g}")
    column_mm, row_mm = (10 * delta for delta in deltas)  # cm to mm; x runs along the columns
    facts = {"x": f"{column_mm:.4g}", "y": f"{row_mm:.4g}"}
    if not all(PIXEL_MM[0] <= side <= PIXEL_MM[1] for side in (column_mm, row_mm)):
        raise NotUsableError("delta_implausible", **facts)
    if max(column_mm / row_mm, row_mm / column_mm) > MAX_ASPECT:
        raise NotUsableError("pixels_not_square", **facts)
    depth = box.rows * row_mm
    if not DEPTH_MM[0] <= depth <= DEPTH_MM[1]:
        lowest, highest = (f"{limit:g}" for limit in DEPTH_MM)
        raise NotUsableError("depth_implausible", depth=f"{depth:.4g}", lowest=lowest, highest=highest)
    return row_mm, column_mm
