"""Test which part of an image is segmented, and whether it has a scale."""

from __future__ import annotations

from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from synboost_monai.dicom.reading.regions import Region, choose_region
from synboost_monai.dicom.reasons import NotUsableError, Outcome
from tests.dicom.conftest import dataset, real_file, tissue_region

ROWS, COLUMNS = 480, 640
WHOLE = (0, 0, ROWS, COLUMNS)


def item(
    left: Any = 84, top: Any = 31, right: Any = 595, bottom: Any = 414, delta: Any = (0.05, 0.04), **others: Any
) -> Dataset:
    return tissue_region(left, top, right, bottom, delta, **others)


def choose(*items: Dataset, rows: int = ROWS, columns: int = COLUMNS) -> Region:
    about = {
        "PixelSpacing": [0.3, 0.3],
        "SequenceOfUltrasoundRegions": list(items) or None,
    }  # the first is never looked at
    return choose_region(dataset(Rows=rows, Columns=columns, **about))


def place(region: Region) -> tuple[int, int, int, int]:
    return region.first_row, region.first_column, region.rows, region.columns


def code(region: Region) -> str:
    assert region.problem is not None and region.spacing_mm is None
    assert region.problem.reason.outcome is Outcome.UNCALIBRATED
    return region.problem.reason.code


def test_region_of_tissue_with_its_scale():
    region = choose(item())
    assert place(region) == (31, 84, 384, 512)  # both corners belong to it
    assert region.spacing_mm == pytest.approx((0.4, 0.5)) and region.problem is None  # cm -> mm; (row, column)


def test_corner_off_by_one_is_clamped():
    region = choose(item(right=COLUMNS, bottom=ROWS))
    assert place(region) == (31, 84, ROWS - 31, COLUMNS - 84) and region.spacing_mm is not None


@pytest.mark.parametrize("corner", [{"right": COLUMNS + 1}, {"bottom": ROWS + 1}, {"left": 700, "right": 900}])
def test_region_of_another_image_size_gives_no_scale(corner: dict[str, int]):
    region = choose(item(**corner))
    assert code(region) == "region_outside" and place(region) == WHOLE


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], "no_regions"),
        ([item(RegionDataType=2)], "no_tissue_region"),
        ([item(RegionSpatialFormat=5, RegionDataType=13)], "no_tissue_region"),
        ([item(RegionSpatialFormat=4, RegionDataType=10)], "no_tissue_region"),
        ([item(PhysicalUnitsXDirection=4)], "units_not_cm"),
        ([item(PhysicalUnitsYDirection=0)], "units_not_cm"),
        ([item(PhysicalUnitsYDirection=None)], "region_malformed"),
        ([item(delta=(0.0, 0.05))], "delta_not_positive"),
        ([item(delta=(0.05, -0.05))], "delta_not_positive"),
        ([item(delta=(None, 0.05))], "region_malformed"),
        ([item(delta=(float("nan"), 0.05))], "region_malformed"),
        ([item(delta=(float("inf"), 0.05))], "region_malformed"),
        ([item(delta=(5.0, 5.0))], "delta_implausible"),
        ([item(delta=(1e-4, 1e-4))], "delta_implausible"),
        ([item(delta=(0.05, 0.011))], "pixels_not_square"),
        ([item(delta=(0.2, 0.2))], "depth_implausible"),
        ([item(delta=(0.004, 0.004))], "depth_implausible"),
        ([item(right=90)], "region_too_small"),
        ([item(right=50)], "region_malformed"),
        ([item(left=None)], "region_malformed"),
        ([item(0, 0, 0, 0)], "region_too_small"),
    ],
)
def test_anything_in_doubt_gives_no_scale_but_an_image(items: list[Dataset], expected: str):
    region = choose(*items)
    assert code(region) == expected
    assert region.rows >= 16 and region.columns >= 16
    assert region.first_row + region.rows <= ROWS and region.first_column + region.columns <= COLUMNS


def test_pixels_that_are_not_square_keep_both_spacings():
    assert choose(item(delta=(0.06, 0.03))).spacing_mm == pytest.approx((0.3, 0.6))


def test_of_two_tissue_regions_the_larger_is_segmented_without_scale():
    region = choose(item(0, 0, 199, 399), item(200, 0, 599, 399))
    assert code(region) == "several_tissue_regions" and place(region) == (0, 200, 400, 400)
    assert "2 regions" in str(region.problem)


def test_repeated_and_empty_regions_count_once():
    assert choose(item(), item(), item(0, 0, 0, 0, delta=(0.0, 0.0))).spacing_mm is not None


def test_regions_of_ecg_and_spectra_beside_tissue_do_no_harm():
    ecg = item(0, 420, 639, 479, RegionSpatialFormat=4, RegionDataType=10)
    spectrum = item(0, 200, 639, 419, RegionSpatialFormat=3, RegionDataType=3, PhysicalUnitsXDirection=4)
    region = choose(ecg, item(100, 0, 499, 199, delta=(0.1, 0.1)), spectrum)
    assert place(region) == (0, 100, 200, 400) and region.spacing_mm == pytest.approx((1, 1))


@pytest.mark.parametrize(
    ("formats", "words"), [((3,), "spectral Doppler"), ((2, 4), "M-mode"), ((2, 3), "M-mode and spectral")]
)
def test_spectra_and_m_mode_alone_are_refused(formats: tuple[int, ...], words: str):
    with pytest.raises(NotUsableError, match=words) as caught:
        choose(*(item(RegionSpatialFormat=number, RegionDataType=3) for number in formats))
    assert caught.value.reason.code == "not_two_dimensional"


def test_values_of_the_wrong_kind_are_no_numbers():
    broken = item()
    broken.add_new("RegionLocationMinX0", "OB", b"abcd")
    assert code(choose(broken)) == "region_malformed"
    header = dataset(Rows=ROWS, Columns=COLUMNS)
    header.add_new("SequenceOfUltrasoundRegions", "OB", b"abcd")
    assert code(choose_region(header)) == "no_regions"


def test_shrunken_copy_of_a_real_clip_has_no_scale():
    region = choose_region(pydicom.dcmread(real_file("examples_ybr_color.dcm"), stop_before_pixels=True))
    assert code(region) == "region_outside" and place(region) == (0, 0, 240, 320)
    assert str(region.problem).startswith("the tissue region reaches to column 595, row 414 of an image of 320 x 240")
