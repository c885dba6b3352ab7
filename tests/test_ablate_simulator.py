"""Test scripts/ablate_simulator.py: each part that is left out changes hearts, or is a setting; no training is run."""

from contextlib import ExitStack
from types import ModuleType
from unittest import mock

import numpy as np
import pytest

from synboost_monai.simulation import simulator
from tests.scripts import load_script


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    return load_script("ablate_simulator")


def hearts(without: list[tuple[object, str, object]]) -> list[simulator.SimulatedEcho]:
    with ExitStack() as stack:
        for patch in without:
            stack.enter_context(mock.patch.object(*patch))
        return [simulator.simulate(5, i, longer_side=64) for i in (0, 1)]


def test_each_part_changes_hearts_or_settings(ablation: ModuleType) -> None:
    whole = hearts([])
    for part, patches in ablation.PARTS.items():
        found = hearts(patches)
        is_equal = all(
            np.array_equal(a.images, b.images) and np.array_equal(a.label_maps, b.label_maps)
            for a, b in zip(whole, found)
        )
        assert is_equal == (not patches), part
        assert bool(patches) != (part in ablation.SETTINGS or part == "nothing")


def test_label_maps_end_with_the_sector(ablation: ModuleType) -> None:
    (cut, _), (whole, _) = hearts(ablation.PARTS["labels_beside_the_sector"]), hearts([])
    assert np.array_equal(cut.images, whole.images)
    is_cut = cut.label_maps != whole.label_maps
    assert is_cut.any() and not cut.label_maps[is_cut].any()


def test_narrow_draws_lie_in_the_middle_third(ablation: ModuleType) -> None:
    draw = ablation.NarrowDraw(simulator.Draw(0))
    numbers = [draw.uniform(0, 3) for _ in range(500)]
    assert min(numbers) >= 1 and max(numbers) <= 2 and max(numbers) - min(numbers) > 0.9
    assert draw.chance(0.6) and not draw.chance(0.4)
    assert np.std([draw.normal(5, 3) for _ in range(2000)]) == pytest.approx(1, rel=0.1)
