"""Augmentation: what moves together, what stays, what the seed decides."""

from __future__ import annotations

import torch

from synboost_monai.transforms.augmentation import RandUltrasound


def boxed_label_map() -> torch.Tensor:
    """A label map (1, 96, 96) that no flip or transposition leaves as it is, with room around it."""
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    label_map = torch.zeros(1, 96, 96, dtype=torch.uint8)
    label_map[0, ((rows - 38) / 24) ** 2 + ((columns - 36) / 19) ** 2 < 1] = 2
    label_map[0, ((rows - 38) / 18) ** 2 + ((columns - 36) / 13) ** 2 < 1] = 1
    label_map[0, ((rows - 70) / 9) ** 2 + ((columns - 60) / 16) ** 2 < 1] = 3
    return label_map


def test_augmentation_moves_image_and_label_map_together() -> None:
    label_map = boxed_label_map()
    image = label_map * 80
    augment = RandUltrasound(log_gamma=0.0, gain=(1.0, 1.0), noise=0.0)
    augment.set_random_state(3)
    for _ in range(5):
        warped_image, warped_label_map = augment(image, label_map)
        read_off = (warped_image * 255 / 80).round()
        is_same = read_off == warped_label_map
        assert is_same.float().mean() > 0.93  # all but the rims between classes
        assert not torch.equal(warped_label_map, label_map)


def test_augmentation_follows_its_seed_alone() -> None:
    label_map = torch.zeros(1, 32, 32, dtype=torch.uint8)
    image = torch.full((1, 32, 32), 90, dtype=torch.uint8)
    augment = RandUltrasound()
    pictures = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        augment.set_random_state(7)
        pictures.append(augment(image, label_map)[0])
    assert torch.equal(*pictures)
    assert not torch.equal(pictures[1], augment(image, label_map)[0])
    assert pictures[0].min() >= 0 and pictures[0].max() <= 1


def test_augmentation_never_flips() -> None:
    label_map = torch.zeros(1, 64, 64, dtype=torch.uint8)
    label_map[:, 16:48, 8:20] = 1
    label_map[:, 16:48, 44:56] = 3
    augment = RandUltrasound()
    augment.set_random_state(0)
    for _ in range(20):
        warped = augment(label_map, label_map)[1][0]
        assert (warped == 1).nonzero()[:, 1].float().mean() < (warped == 3).nonzero()[:, 1].float().mean()
