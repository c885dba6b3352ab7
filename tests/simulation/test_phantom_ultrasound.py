"""Test the phantom's ultrasound: statistics of the speckle, resolution, sector, image quality, motion."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from synboost_monai.simulation.phantom import draw_phantom_patient
from synboost_monai.simulation.phantom_anatomy import draw_label_map
from synboost_monai.simulation.phantom_ultrasound import (
    DYNAMIC_RANGE_DB,
    MYOCARDIUM_GREY,
    PULSE_LENGTH_MM,
    Probe,
    ScanConverter,
    UltrasoundView,
    _uniform_scatterers,
    compress,
    sector_width,
)

HALF_ANGLE = float(np.radians(37.5))
HEIGHT = 160


def homogeneous_envelope(
    probe: Probe, generator: np.random.Generator, *, scatterers_per_cell: float = 3.0
) -> NDArray[np.float32]:
    """Return the envelope (R, A) of uniform tissue before log compression: the reference for the statistics of the speckle."""
    count = int(scatterers_per_cell * probe.shape[0] * probe.shape[1])
    return np.abs(probe.receive(probe.echo_field(*_uniform_scatterers(probe, generator, count))))


@pytest.fixture(scope="module")
def uniform() -> tuple[Probe, NDArray[np.float32]]:
    """Return uniform tissue before log compression, without the margin and the first 2 cm, where few cells are independent."""
    probe = Probe(200.0, HALF_ANGLE)
    envelope = homogeneous_envelope(probe, np.random.default_rng(5))
    return probe, envelope[probe.ranges > 20][:-8, 8:-8]


def test_envelope_of_uniform_tissue_is_rayleigh(uniform: tuple[Probe, NDArray[np.float32]]) -> None:
    envelope = uniform[1].astype(np.float64)
    assert envelope.mean() / envelope.std() == pytest.approx(1.91, abs=0.05)  # sqrt(pi / (4 - pi))
    power = envelope**2
    assert power.mean() ** 2 / power.var() == pytest.approx(1.0, abs=0.06)  # Nakagami's m
    assert np.mean(envelope > np.sqrt(power.mean())) == pytest.approx(np.exp(-1), abs=0.02)


def test_snr_holds_at_each_depth_and_other_seeds() -> None:
    probe = Probe(160.0, HALF_ANGLE)
    ratios = [
        [band.mean() / band.std() for band in np.array_split(envelope[probe.ranges > 40, 8:-8], 2)]
        for envelope in (homogeneous_envelope(probe, np.random.default_rng(seed)) for seed in range(6))
    ]
    np.testing.assert_allclose(np.mean(ratios, axis=0), 1.91, atol=0.05)


def test_sparse_scatterers_are_not_rayleigh() -> None:
    """The statistics come from the number of scatterers: with one in thirty cells speckle is not fully developed."""
    probe = Probe(160.0, HALF_ANGLE)
    envelope = homogeneous_envelope(probe, np.random.default_rng(0), scatterers_per_cell=0.03)[probe.ranges > 40]
    assert envelope.mean() / envelope.std() < 1.5


def test_receiving_keeps_the_mean_power(uniform: tuple[Probe, NDArray[np.float32]]) -> None:
    assert np.mean(uniform[1].astype(np.float64) ** 2) == pytest.approx(
        3.0, rel=0.05
    )  # three scatterers of power 1 a cell


def test_one_scatterer_shows_pulse_and_beam() -> None:
    """The full widths at half maximum of the point spread function are measured at the focus and below it."""
    probe = Probe(170.0, HALF_ANGLE, focus_mm=80.0)
    widths = {}
    for depth in (80.0, 140.0):
        response = np.abs(probe.receive(probe.echo_field(np.array([[0.0, depth]]), np.ones(1))))
        row, column = np.unravel_index(response.argmax(), response.shape)
        assert abs(probe.ranges[row] - depth) < probe.range_step_mm and abs(probe.angles[column]) < probe.angle_step
        along, across = response[:, column], response[row]
        assert np.sum(along > along.max() / 2) * probe.range_step_mm == pytest.approx(PULSE_LENGTH_MM, abs=0.35)
        widths[depth] = np.sum(across > across.max() / 2) * probe.angle_step * depth
        assert widths[depth] == pytest.approx(float(probe.beam_width_mm(np.array(depth))), abs=1.2)
    assert widths[140.0] > 1.4 * widths[80.0]


def test_speckle_is_wider_at_depth(uniform: tuple[Probe, NDArray[np.float32]]) -> None:
    probe = uniform[0]
    envelope = homogeneous_envelope(probe, np.random.default_rng(1))

    def width_mm(near: float, far: float) -> float:
        """Return the lag at which the lateral autocorrelation falls to one half."""
        band = envelope[(probe.ranges > near) & (probe.ranges < far), 8:-8]
        band = band - band.mean()
        correlation = np.array([np.mean(band[:, : -k or None] * band[:, k:]) for k in range(12)]) / band.var()
        return float(np.interp(-0.5, -correlation, np.arange(12))) * probe.angle_step * (near + far) / 2

    assert width_mm(150, 190) > 1.5 * width_mm(60, 100)


def test_compression_maps_decibels_to_grey() -> None:
    grey = compress(np.array([1.0, 10 ** (-10 / 20), 0.0, 1e6], np.float32))
    expected = [MYOCARDIUM_GREY, MYOCARDIUM_GREY - 10 * 255 / DYNAMIC_RANGE_DB, 0.0, 255.0]
    np.testing.assert_allclose(grey, expected, atol=1e-3)


@pytest.mark.parametrize("degrees", [37.5, 45.0])
def test_sector_touches_the_borders_and_is_exactly_dark_outside(degrees: float) -> None:
    probe = Probe(150.0, float(np.radians(degrees)))
    converter = ScanConverter(probe, HEIGHT)
    image = converter(np.full(probe.shape, 200.0, np.float32))
    assert image.shape == (HEIGHT, sector_width(HEIGHT, probe.half_angle))
    assert set(np.unique(image)) == {0, 200}
    np.testing.assert_array_equal(image > 0, converter.inside)
    share = np.radians(degrees) / (2 * np.sin(np.radians(degrees)))  # area of the sector / that of the rectangle
    assert np.mean(image > 0) == pytest.approx(share, abs=0.01)
    assert image[0].any() and image[-1].any() and image[:, :3].any() and image[:, -3:].any()
    assert converter(np.zeros(probe.shape, np.float32))[converter.inside].min() == 1


def test_scan_conversion_puts_echoes_where_they_are() -> None:
    probe = Probe(150.0, HALF_ANGLE)
    converter = ScanConverter(probe, HEIGHT)
    x, y = 35.0, 90.0
    response = np.abs(probe.receive(probe.echo_field(np.array([[x, y]]), np.ones(1))))
    image = converter(255 * response / response.max()).astype(float)
    image[image <= 1] = 0
    rows, columns = np.indices(image.shape)
    found_y = (np.sum(rows * image) / image.sum() + 0.5) * converter.spacing_mm
    found_x = (np.sum(columns * image) / image.sum() + 0.5 - image.shape[1] / 2) * converter.spacing_mm
    assert (found_x, found_y) == pytest.approx((x, y), abs=1.0)


def view_frames(
    quality: str, number: int, moments: list[float]
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    patient = draw_phantom_patient(2, number).anatomy
    view = patient.views["4CH"]
    ultrasound = UltrasoundView(patient, view, quality, HEIGHT, np.random.default_rng(number))
    contours = [view.contours(systole) for systole in moments]
    converter = ultrasound.convert
    labels = [draw_label_map(c, patient.depth_mm, converter.shape, converter.spacing_mm) for c in contours]
    return [ultrasound.image(c) for c in contours], labels


def contrast(quality: str) -> float:
    """Return the grey levels between myocardium and cavity over the speckle's spread, mean of four patients."""
    ratios = []
    for number in range(1, 5):
        (image,), (labels,) = view_frames(quality, number, [0.0])
        wall, cavity = image[(labels == 2) & (image > 0)].astype(float), image[labels == 1].astype(float)
        ratios.append((wall.mean() - cavity.mean()) / np.hypot(wall.std(), cavity.std()))
    return float(np.mean(ratios))


def test_blood_is_darker_than_myocardium_and_less_so_in_poor_images() -> None:
    good, medium, poor = (contrast(quality) for quality in ("good", "medium", "poor"))
    assert good > medium > poor > 0.1
    assert good > 1.5 * poor


def test_speckle_of_the_wall_moves_with_it_and_that_of_blood_is_new() -> None:
    patient = draw_phantom_patient(2, 1).anatomy
    view = patient.views["4CH"]
    ultrasound = UltrasoundView(patient, view, "good", HEIGHT, np.random.default_rng(0))
    frames = [view.contours(systole) for systole in (0.0, 0.0, 0.15)]
    levels = [np.log(ultrasound.envelope(contours)) for contours in frames]

    def correlation(k: int, *, shape_of: int, across: tuple[float, ...]) -> float:
        """Return the correlation of the speckle in frames 0 and k, on lines beside the endocardium: > 0 in the wall, < 0 in the blood."""
        values = []
        for level, contours in ((levels[0], frames[0]), (levels[k], frames[shape_of])):
            wall = contours.wall
            lines = [wall.points + w * wall.thickness[:, None] * wall.normals for w in across]
            row, column = (np.rint(np.stack(a)).astype(int) for a in zip(*map(ultrasound.probe.grid_position, lines)))
            on_line = level[row, np.clip(column, 0, level.shape[1] - 1)]
            values.append(on_line - ndimage.gaussian_filter1d(on_line, 6, axis=1))  # without the shading
        return float(np.corrcoef(values[0].ravel(), values[1].ravel())[0, 1])

    in_wall, in_blood = (0.2, 0.4, 0.6, 0.8), (-0.6, -0.8, -1.0, -1.2)
    assert correlation(1, shape_of=0, across=in_wall) > 0.9
    assert correlation(1, shape_of=0, across=in_blood) < 0.5
    followed = correlation(2, shape_of=2, across=in_wall)
    stayed = correlation(2, shape_of=0, across=in_wall)
    assert followed > 0.5 > stayed + 0.1


def test_images_are_dark_outside_the_sector_and_lit_inside() -> None:
    (image,), _ = view_frames("medium", 3, [0.0])
    patient = draw_phantom_patient(2, 3).anatomy
    inside = ScanConverter(Probe(patient.depth_mm, patient.half_angle), HEIGHT).inside
    np.testing.assert_array_equal(image > 0, inside)
    assert 40 < image[inside].mean() < 170
