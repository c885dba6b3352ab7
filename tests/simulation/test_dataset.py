"""Test simulated hearts in training: new in each epoch, the same whatever the number of workers."""

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, RandGaussianNoised, SelectItemsd

from synboost_monai.simulation import SimulatedEchoDataset, simulate, simulate_stranger, simulated_items
from synboost_monai.structures import VIEW_CLASSES


def test_an_item_is_what_the_simulator_gives() -> None:
    item = SimulatedEchoDataset(simulated_items(3, 4), longer_side=48)[2]
    echo = simulate(4, 2, longer_side=48)
    assert np.array_equal(item["image"].numpy(), echo.images) and np.array_equal(item["label"].numpy(), echo.label_maps)
    assert item["spacing_mm"].tolist() == [echo.spacing_mm] * 2
    assert {"view", "sex", "age", "image_quality", "shape"} <= set(item)
    assert VIEW_CLASSES[item["view_class"]] == item["view"] and item["systole"].tolist() == pytest.approx(
        echo.systole[0]
    )


def test_strangers_are_mixed_in_and_change_no_heart() -> None:
    items = simulated_items(8, 4, stranger_share=0.25)
    assert [item["is_stranger"] for item in items] == [0, 0, 0, 1] * 2
    mixed, plain = (SimulatedEchoDataset(of, longer_side=32) for of in (items, simulated_items(8, 4)))
    for dataset in (mixed, plain):
        dataset.set_epoch(2)
    stranger = mixed[3]
    assert np.array_equal(stranger["image"][0].numpy(), simulate_stranger(4, 2 * 8 + 3, longer_side=32).image)
    assert stranger["view_class"] == 0 and not stranger["label"].any() and "view" not in stranger
    assert torch.equal(mixed[2]["image"], plain[2]["image"]) and mixed[2]["view_class"] > 0


def test_each_epoch_has_new_hearts_but_in_validation() -> None:
    endless, fixed = (SimulatedEchoDataset(simulated_items(2, 4), longer_side=48, is_endless=e) for e in (True, False))
    for dataset in (endless, fixed):
        dataset.set_epoch(3)
    assert np.array_equal(endless[1]["image"].numpy(), simulate(4, 3 * 2 + 1, longer_side=48).images)
    assert np.array_equal(fixed[1]["image"].numpy(), simulate(4, 1, longer_side=48).images)


def test_workers_change_nothing() -> None:
    noise = Compose([SelectItemsd(["image"]), RandGaussianNoised("image", prob=1)])
    batches = []
    for num_workers in (0, 1):
        dataset = SimulatedEchoDataset(simulated_items(3, 4), longer_side=32, transform=noise)
        dataset.set_epoch(1)
        batches.append([b["image"].clone() for b in DataLoader(dataset, batch_size=1, num_workers=num_workers)])
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def test_items_must_make_sense() -> None:
    with pytest.raises(ValueError, match="num_images must be 1 or more"):
        simulated_items(0, 1)
    with pytest.raises(ValueError, match="stranger_share must be at least 0"):
        simulated_items(4, 1, 1.0)
