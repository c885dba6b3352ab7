"""Test the wide simulator: anatomy against known figures, speckle that moves with the wall, draws that depend on seed and index alone."""

from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from synboost_monai.simulation.acoustics import Scene
from synboost_monai.simulation.anatomy import Outlines
from synboost_monai.simulation.draw import Draw
from synboost_monai.simulation.echogenicity import Tissue
from synboost_monai.simulation.grid import Grid
from synboost_monai.simulation.hearts import VIEWS, draw_heart
from synboost_monai.simulation.simulator import SimulatedEcho, quality_of, simulate

NUM_HEARTS = 60


@cache
def echoes() -> list[SimulatedEcho]:
    return [simulate(5, index, longer_side=128) for index in range(NUM_HEARTS)]


def test_an_image_depends_on_seed_and_index_alone() -> None:
    first = simulate(5, 7, longer_side=128)
    again = echoes()[7]
    assert np.array_equal(first.images, again.images) and np.array_equal(first.label_maps, again.label_maps)
    assert first.attributes == again.attributes
    assert not np.array_equal(simulate(6, 7, longer_side=128).images, first.images)


def test_images_fill_the_longer_side_and_show_all_structures() -> None:
    assert all(max(echo.images.shape[1:]) == 128 for echo in echoes())
    present = [[(echo.label_maps == c).any() for c in (1, 2, 3)] for echo in echoes()]
    assert np.mean(present, axis=0) == pytest.approx(1, abs=0.06)
    assert all(set(np.unique(echo.label_maps)) <= {0, 1, 2, 3} for echo in echoes())


@pytest.mark.parametrize("longer_side", [96, 224, 250])
def test_images_of_any_size_are_made(longer_side: int) -> None:
    # 224 and 250 need a finer grid, with an odd number of beams
    assert max(simulate(5, 0, longer_side=longer_side).images.shape[1:]) == longer_side


def test_the_atrium_lies_against_the_cavity() -> None:
    # experts draw no wall across the mitral valve
    touching = []
    for echo in echoes():
        label_map = echo.label_maps[0]
        near = ndimage.binary_dilation(label_map == 1, iterations=2) & (label_map == 3)
        width = np.ptp(np.nonzero(ndimage.binary_dilation(label_map == 1))[1])
        touching.append(near.sum() > 0.2 * width)
    assert np.mean(touching) > 0.93


def test_sizes_are_those_of_adults() -> None:
    """Means at end-diastole are as in the guidelines (Lang et al. 2015): length 7 to 9 cm, width 4 to 5.5 cm, volume 65 to 150 ml."""
    hearts = [draw_heart(Draw(1, index), VIEWS[index % 2]) for index in range(300)]
    length, width = (np.array([getattr(h.ventricle, name) for h in hearts]) for name in ("length_mm", "width_mm"))
    volume = np.array([h.ventricle.volume_ml(0.0) for h in hearts])
    assert 72 < length[:, 0].mean() < 88 and 42 < width[:, 0].mean() < 54 and 65 < np.median(volume) < 150
    fraction = np.array([h.ventricle.ejection_fraction for h in hearts])
    assert 45 < np.median(fraction) < 62 and fraction.min() < 25 and fraction.max() > 72
    assert np.all(length[:, 1] < length[:, 0]) and np.all(width[:, 1] < width[:, 0])
    smaller = [
        np.mean([h.ventricle.length_mm[0] for h in hearts if h.attributes["sex"] == sex]) for sex in ("female", "male")
    ]
    assert smaller[0] < smaller[1]


def test_volume_is_that_of_the_label_map() -> None:
    errors = []
    for index in range(8):
        echo = simulate(2, index, longer_side=320, systole=(0.0,))
        cavity = echo.label_maps[0] == 1
        if cavity[[0, -1]].any() or cavity[:, [0, -1]].any():
            continue  # cut off by the image
        # the volume of a body of revolution: its area times pi times the distance of each half's centre from the axis
        rows, columns = np.nonzero(cavity)
        points = np.stack([columns, rows], axis=1) * echo.spacing_mm
        centre = points.mean(axis=0)
        axis = np.linalg.svd(points - centre, full_matrices=False)[2][0]
        across = np.abs((points - centre) @ np.array([axis[1], -axis[0]]))
        volume = np.pi * across.mean() * cavity.sum() * echo.spacing_mm**2 / 1000
        errors.append(volume / echo.volumes_ml[0])
    assert len(errors) >= 4 and np.median(errors) == pytest.approx(1, abs=0.12)


def test_a_clip_beats_and_its_truth_with_it() -> None:
    echo = simulate(3, 2, longer_side=96, systole=(0.0, 0.5, 1.0))
    areas = (echo.label_maps == 1).sum(axis=(1, 2))
    assert areas[0] > areas[1] > areas[2] and echo.volumes_ml[0] > echo.volumes_ml[1] > echo.volumes_ml[2]
    expected = 100 * (1 - echo.volumes_ml[2] / echo.volumes_ml[0])
    assert echo.attributes["ejection_fraction"] == pytest.approx(expected, abs=0.06)
    with pytest.raises(ValueError, match="moments from 0 to 1"):
        simulate(3, 2, systole=(1.2,))


def a_scene(index: int) -> tuple[Scene, list[Outlines]]:
    """Return a scene seen without beam, noise and haze, where each cell shows its own echo, and the heart at three moments."""
    draw = Draw(9, index)
    heart = draw_heart(draw, "apical_four_chamber")
    frames = [heart.at(moment) for moment in (0.0, 0.0, 0.3)]
    scene = Scene(draw, Grid(float(frames[0].left_atrium[:, 1].max()), 0.65), frames[0])
    scene._pulse, scene._beams = np.ones_like(scene._pulse), np.ones_like(scene._beams)
    scene._noise_level, scene.haze = 0 * scene._noise_level, [0 * haze for haze in scene.haze]
    return scene, frames


def test_speckle_of_the_wall_stays_and_blood_is_new() -> None:
    for index in range(4):
        scene, frames = a_scene(index)
        first, second = (np.log(scene.power(frame, is_moved=True)) for frame in frames[:2])
        tissue, lines = scene._tissue(frames[0]), scene._draw_lines(frames[0]) > -40
        wall, blood = (tissue == Tissue.MYOCARDIUM), (tissue == Tissue.CAVITY) & ~lines
        assert np.allclose(first[wall], second[wall], atol=1e-3)
        source = scene._displacement(frames[0])
        known = np.log(10) / 10 * scene._brightness(tissue, frames[0], source) + 2 * np.log(scene._transmission)
        assert abs(np.corrcoef((first - known)[blood], (second - known)[blood])[0, 1]) < 0.1


def test_tissue_is_carried_where_the_wall_goes() -> None:
    for index in range(4):
        scene, frames = a_scene(index)
        source = scene._displacement(frames[2])  # of each cell: range and beam in the first frame
        at, was = (scene.grid.position(frame.cavity[::8]) for frame in (frames[2], frames[0]))
        beam, ranges = np.rint(at).astype(int).T
        inside = (beam > 2) & (beam < scene.grid.shape[1] - 3) & (ranges < scene.grid.shape[0] - 3)
        found = source[:, ranges[inside], beam[inside]].T[:, ::-1]
        moved = np.hypot(*(at - was)[inside].T)
        error = np.median(np.hypot(*(found - was[inside]).T))  # cells; the field is smooth over some of them
        assert moved.max() > 3 and error < 2.5 and error < 0.5 * moved.max()


def test_quality_is_how_well_grey_levels_tell_wall_from_cavity() -> None:
    label_map = np.repeat([[1, 2]], 4, axis=0)
    assert quality_of(np.where(label_map == 1, 10, 200).astype(np.uint8), label_map) == "good"
    assert quality_of(np.where(label_map == 1, 200, 10).astype(np.uint8), label_map) == "good"
    assert quality_of(np.full((4, 2), 90, np.uint8), label_map) == "poor"  # probability 1/2
    mixed = np.array([[10, 20], [20, 10], [10, 20], [10, 20]], np.uint8)  # (3 * 3 + 2 * 3 / 2) / 16 = 0.75
    assert quality_of(mixed, label_map) == "medium"
    grades = {echo.attributes["image_quality"] for echo in echoes()}
    assert grades == {"good", "medium", "poor"}


def test_there_is_no_other_view() -> None:
    with pytest.raises(
        ValueError, match="view must be one of apical_two_chamber, apical_four_chamber, got 'subcostal'"
    ):
        draw_heart(Draw(0), "subcostal")
    views = [echo.attributes["view"] for echo in echoes()]
    assert set(views) == set(VIEWS)
