"""Test pictures that are not an apical view: each kind is drawn, looks as named, and depends on seed, index and kind alone."""

import numpy as np
import pytest

from synboost_monai.simulation import simulate_stranger
from synboost_monai.simulation.strangers import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_a_picture_of_its_own(kind: str) -> None:
    pictures = [simulate_stranger(2, index, longer_side=96, kind=kind) for index in range(4)]
    again = simulate_stranger(2, 3, longer_side=96, kind=kind)
    assert np.array_equal(pictures[3].image, again.image) and again.kind == kind
    assert all(p.image.dtype == np.uint8 and p.image.ndim == 2 and min(p.image.shape) >= 32 for p in pictures)
    assert all(max(p.image.shape) <= 2 * 96 for p in pictures)
    assert len({p.image.tobytes() for p in pictures}) == 4


def test_kinds_are_drawn_alike() -> None:
    drawn = [simulate_stranger(0, index, longer_side=32).kind for index in range(150)]
    counts = [drawn.count(kind) for kind in KINDS]
    assert sum(counts) == 150 and min(counts) > 3


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="kind must be one of parasternal long axis, .*, got 'banana'"):
        simulate_stranger(0, 0, kind="banana")
