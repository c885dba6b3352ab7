"""Test label maps and sectors in a pipeline."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from synboost_monai.transforms.label_map_array import LabelMapPerturbation, default_sector_mask
from synboost_monai.transforms.label_map_dictionary import (
    DarkOutsideSectord,
    PerturbLabelMapd,
    RandAffineSectord,
    SectorLabelMapd,
    SectorMaskd,
)


@pytest.fixture
def item() -> dict:
    """Return an image (1, 60, 73) that a sector fills, and a label map that is partly outside it."""
    sector = default_sector_mask((60, 73))
    label = torch.zeros(1, 60, 73)
    label[0, 20:40, 30:40] = 1
    label[0, 5:10, 2:20] = 3  # outside
    image = torch.from_numpy(np.where(sector, 50, 0)).float()[None]
    return {"image": MetaTensor(image), "label": MetaTensor(label, meta={"filename_or_obj": "case_gt.nii.gz"})}


def test_sector_comes_from_the_image(item):
    item["image"][0, :, 40:] = 0  # half a fan, which the default geometry would not give
    sector = SectorMaskd()(item)["sector"]
    assert sector.shape == (1, 60, 73) and sector.dtype == torch.uint8
    assert not sector[0, :, 41:].any() and sector[0, 30, 36] == 1


def test_an_item_s_own_sector_comes_before_its_image(item):
    own = torch.zeros(1, 60, 73)
    own[0, 10:50, 20:60] = 255.0
    sector = SectorMaskd()({**item, "sector": MetaTensor(own)})["sector"]
    assert sector.dtype == torch.uint8 and torch.equal(torch.as_tensor(sector), (own > 0).to(torch.uint8))


def test_an_own_sector_that_cannot_be_is_refused(item):
    named = {"filename_or_obj": "case_sector.nii.gz"}
    with pytest.raises(ValueError, match=r"case_sector.nii.gz is \(60, 70\) but label map is \(60, 73\)"):
        SectorMaskd()({**item, "sector": MetaTensor(torch.ones(1, 60, 70), meta=named)})
    with pytest.raises(ValueError, match="case_sector.nii.gz is empty"):
        SectorMaskd()({**item, "sector": MetaTensor(torch.zeros(1, 60, 73), meta=named)})
    with pytest.raises(ValueError, match="case_sector.nii.gz is not loaded; name the key 'sector'"):
        SectorMaskd()({**item, "sector": "case_sector.nii.gz"})


def test_without_an_image_the_default_sector_is_taken(item):
    del item["image"]
    sector = SectorMaskd()({**item, "spacing_mm": torch.tensor([0.5, 0.5])})["sector"]
    np.testing.assert_array_equal(np.asarray(sector[0]), default_sector_mask((60, 73)))


def test_label_map_that_cannot_belong_to_the_default_sector_is_refused(item):
    del item["image"]
    item["label"][:] = 0
    item["label"][0, :20, :10] = 1
    with pytest.raises(ValueError, match=r"0% of the labelled pixels of case_gt.nii.gz .* give the images"):
        SectorMaskd()(item)


def test_sector_label_map_cuts_and_one_hot_adds_up(item):
    out = SectorLabelMapd()(SectorMaskd()(item))
    assert out["sector_label_map"][0, 7, 10] == 0  # left atrium outside the sector
    assert out["sector_label_map"][0, 30, 35] == 1
    assert out["label"][0, 7, 10] == 3  # the target keeps it
    assert out["label_onehot"].shape == (5, 60, 73) and out["label_onehot"].dtype == torch.uint8
    assert torch.equal(out["label_onehot"].sum(0), torch.ones(60, 73, dtype=torch.int64))
    assert torch.equal(out["label_onehot"].argmax(0), out["sector_label_map"][0].long())


def test_perturbation_depends_on_the_item_s_seed_alone(item):
    perturb = PerturbLabelMapd(keys="label")
    seeds = [3, 4, 3]
    first, second, third = (perturb({**item, "perturbation_seed": seed})["label"] for seed in seeds)
    assert torch.equal(first, third) and not torch.equal(first, second)
    expected = LabelMapPerturbation()(np.asarray(item["label"][0]), 3)
    np.testing.assert_array_equal(np.asarray(first[0]), expected)
    assert first.shape == item["label"].shape and first.dtype == item["label"].dtype


def test_dark_outside_the_sector():
    image = torch.ones(2, 2, 2)
    out = DarkOutsideSectord("pred")({"pred": image, "sector_label_map": torch.tensor([[[0, 2], [3, 0]]])})
    assert out["pred"].tolist() == [[[0, 1], [1, 0]]] * 2


def disk_pair() -> dict[str, torch.Tensor]:
    """Return an image (1, 64, 64) whose grey gives its class, and its one-hot label map: outside, tissue, and a disk off the middle."""
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    label_map = torch.where((rows > 4) & (rows < 60) & (columns > 6) & (columns < 58), 2, 0)
    label_map[((rows - 24) ** 2 + (columns - 36) ** 2) < 144] = 1
    onehot = torch.stack([label_map == k for k in range(5)]).to(torch.uint8)
    grey = torch.tensor([-1.0, 0.5, -0.25, 0.0, 0.0])
    return {"image": grey[label_map][None], "label_onehot": onehot}


def test_random_affine_moves_image_and_label_map_together() -> None:
    warp = RandAffineSectord(probability=1.0)
    warp.set_random_state(seed=3)
    item = disk_pair()
    before = item["label_onehot"].clone()
    for _ in range(5):
        out = warp(item)
        onehot = out["label_onehot"]
        assert torch.equal(onehot.sum(dim=0), torch.ones(64, 64, dtype=onehot.dtype))
        assert not torch.equal(onehot, before)
        assert (out["image"][0][onehot[0] == 1] == -1).all()
        inner = torch.nn.functional.max_pool2d(1.0 - onehot[1][None].float(), 3, 1, 1)[0] == 0  # away from its border
        assert inner.sum() > 200 and torch.allclose(out["image"][0][inner], torch.tensor(0.5), atol=1e-5)
    assert torch.equal(item["label_onehot"], before)  # the cached item is not changed


def test_random_affine_can_be_seeded_and_switched_off() -> None:
    images = []
    for _ in range(2):
        warp = RandAffineSectord()
        warp.set_random_state(seed=5)
        images.append(warp(disk_pair())["image"])
    assert torch.equal(*images)
    same = RandAffineSectord(probability=0.0)(disk_pair())
    assert torch.equal(same["image"], disk_pair()["image"])
    with pytest.raises(ValueError, match="probability must be 0 ... 1, got 2"):
        RandAffineSectord(probability=2)
