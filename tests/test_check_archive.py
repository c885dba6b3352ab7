"""Test what scripts/check_archive.py does without an archive: where an image is on the screen, and which colours are on contours."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from scipy import ndimage

from synboost_monai.dicom.writing.contours import outline_of
from synboost_monai.dicom.writing.overlay import draw_outlines
from synboost_monai.structures import STRUCTURES
from tests.scripts import load_script


@pytest.fixture(scope="module")
def check() -> ModuleType:
    return load_script("check_archive")


def image_of(seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(96, 128))
    smooth = ndimage.gaussian_filter(noise, 2.5)
    return (200 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


def heart(shift: int = 0) -> np.ndarray:
    """Draw three discs."""
    y, x = np.mgrid[:96, :128]
    label_map = np.zeros((96, 128), np.uint8)
    for label, row, column in ((1, 30, 40), (2, 50, 90), (3, 70, 45)):
        label_map[np.hypot(y - row, x - column - shift) < 14] = label
    return label_map


def screen(image: np.ndarray, scale: float, top: int, left: int) -> np.ndarray:
    """Show an image on a black screen of 220 x 300."""
    grown = ndimage.zoom(image.astype(float), (scale, scale, 1), order=1, grid_mode=True, mode="nearest")
    shown = np.zeros((220, 300, 3))
    rows, columns = min(220 - top, grown.shape[0]), min(300 - left, grown.shape[1])
    shown[top : top + rows, left : left + columns] = grown[:rows, :columns]
    return shown.clip(0, 255).astype(np.uint8)


def test_an_image_is_found_on_the_screen_and_its_contours_on_it(check: ModuleType) -> None:
    image, own, other = image_of(), heart(), heart(shift=12)
    shown = screen(draw_outlines(image, own, np.ones(image.shape, bool), 2), 2.2, 3, 9)
    placed = check.placement(image.astype(float), screen(np.stack([image] * 3, axis=2), 2.2, 3, 9).mean(axis=2))
    assert placed.scale == pytest.approx(2.2, rel=0.01) and placed.likeness > 0.95
    assert (placed.top, placed.left) == (pytest.approx(3, abs=1), pytest.approx(9, abs=1))
    colours = [[structure.colour] for structure in STRUCTURES]
    lines, others = ([outline_of(m == s.class_index) for s in STRUCTURES] for m in (own, other))
    assert min(check.shares(shown, lines, placed, colours)) > check.SEEN
    assert max(check.shares(shown, others, placed, colours)) < check.NOT_SEEN
    assert max(check.shares(shown, lines, placed, colours[1:] + colours[:1])) < 0.2  # the colours of other structures
    without = screen(np.stack([image] * 3, axis=2), 2.2, 3, 9)
    assert max(check.shares(without, lines, placed, colours)) == 0


def test_a_colour_is_known_when_it_is_dark_or_mixed_with_grey_but_grey_is_none(check: ModuleType) -> None:
    for structure in STRUCTURES:
        colour = np.array(structure.colour, float)
        picture = np.stack([colour, 0.5 * colour, 0.5 * colour + 60, np.full(3, 120.0)])[None].astype(np.uint8)
        assert check.has_colour(picture, structure.colour).tolist() == [[True, True, True, False]]
        others = [s.colour for s in STRUCTURES if s != structure]
        assert not any(check.has_colour(picture, other).any() for other in others)
