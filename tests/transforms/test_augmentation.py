"""Test augmentation: what moves together, what stays, what each effect does to a sector, what the seed decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from synboost_monai.transforms.augmentation import RandUltrasoundd

OFF: dict[str, Any] = {
    "rotation_degrees": 0.0,
    "log_scale": 0.0,
    "log_aspect": 0.0,
    "shift": 0.0,
    "log_gamma": 0.0,
    "gain": (1.0, 1.0),
    "noise": 0.0,
    "depth_attenuation": 0.0,
    "time_gain": 0.0,
    "speckle": 0.0,
    "haze": 0.0,
}
"""Limits with which nothing happens."""
ALWAYS = {"depth_attenuation_probability": 1.0, "speckle_probability": 1.0, "haze_probability": 1.0}


def boxed_label_map() -> torch.Tensor:
    """Draw a label map (1, 96, 96) that every flip or transposition changes, with room around it."""
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    label_map = torch.zeros(1, 96, 96, dtype=torch.uint8)
    label_map[0, ((rows - 38) / 24) ** 2 + ((columns - 36) / 19) ** 2 < 1] = 2
    label_map[0, ((rows - 38) / 18) ** 2 + ((columns - 36) / 13) ** 2 < 1] = 1
    label_map[0, ((rows - 70) / 9) ** 2 + ((columns - 60) / 16) ** 2 < 1] = 3
    return label_map


def sector(side: int = 128) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw a grey sector with a black cavity: image and label map (1, side, side), distance from the apex / its depth (side, side)."""
    rows, columns = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    depth = torch.hypot(columns - side / 2, rows - side / 16) / (side * 13 / 16)
    is_inside = (depth < 1) & (rows > side / 16) & ((columns - side / 2).abs() < 0.9 * (rows - side / 16))
    cavity = torch.hypot(columns - side / 2, rows - side / 2) < side / 10
    image = torch.where(is_inside & ~cavity, 100, 0).to(torch.uint8)[None]
    return image, (cavity & is_inside).to(torch.uint8)[None], torch.where(is_inside, depth, torch.nan)


def augmented(seed: int, image: torch.Tensor, label_map: torch.Tensor, **limits: Any) -> torch.Tensor:
    """Return the image (N, N) after one draw."""
    augment = RandUltrasoundd(**{**OFF, **ALWAYS, **limits})
    augment.set_random_state(seed)
    return augment.augment(image, label_map)[0][0]


def test_augmentation_moves_image_and_label_map_together() -> None:
    label_map = boxed_label_map()
    image = label_map * 80
    warp = {name: value for name, value in OFF.items() if name in ("log_gamma", "gain", "noise")}
    augment = RandUltrasoundd(**warp, depth_attenuation=0.0, time_gain=0.0, speckle=0.0, haze=0.0)
    augment.set_random_state(3)
    for _ in range(5):
        warped_image, warped_label_map = augment.augment(image, label_map)
        read_off = (warped_image * 255 / 80).round()
        is_same = read_off == warped_label_map
        assert is_same.float().mean() > 0.93  # all but the rims between classes
        assert not torch.equal(warped_label_map, label_map)


def test_augmentation_follows_its_seed_alone() -> None:
    image, label_map, _ = sector(32)
    augment = RandUltrasoundd(**ALWAYS)
    pictures = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        augment.set_random_state(7)
        pictures.append(augment.augment(image, label_map)[0])
    assert torch.equal(*pictures)
    assert not torch.equal(pictures[1], augment.augment(image, label_map)[0])
    assert pictures[0].min() >= 0 and pictures[0].max() <= 1


def test_augmentation_never_flips() -> None:
    label_map = torch.zeros(1, 64, 64, dtype=torch.uint8)
    label_map[:, 16:48, 8:20] = 1
    label_map[:, 16:48, 44:56] = 3
    augment = RandUltrasoundd()
    augment.set_random_state(0)
    for _ in range(20):
        warped = augment.augment(label_map, label_map)[1][0]
        assert (warped == 1).nonzero()[:, 1].float().mean() < (warped == 3).nonzero()[:, 1].float().mean()


def test_a_flip_that_is_asked_for_exchanges_left_and_right_of_both() -> None:
    label_map = boxed_label_map()
    augment = RandUltrasoundd(**OFF, flip_probability=1.0)
    augment.set_random_state(0)
    image, flipped = augment.augment(label_map * 80, label_map)
    assert torch.equal(flipped, label_map.flip(-1))
    assert torch.allclose(image, label_map.flip(-1) * (80 / 255), atol=1e-4)
    sometimes = RandUltrasoundd(**OFF, flip_probability=0.5)
    sometimes.set_random_state(0)
    num_flipped = sum(torch.equal(sometimes.augment(label_map, label_map)[1], label_map.flip(-1)) for _ in range(40))
    assert 10 <= num_flipped <= 30


def test_all_limits_at_0_or_all_probabilities_at_0_change_nothing() -> None:
    image, label_map, _ = sector()
    names = ("warp", "gain", "depth_attenuation", "speckle", "haze", "noise")
    for augment in (
        RandUltrasoundd(**OFF),
        RandUltrasoundd(**{f"{name}_probability": 0.0 for name in names}),
    ):
        augment.set_random_state(0)
        for _ in range(3):
            same, same_label_map = augment.augment(image, label_map)
            assert torch.allclose(same, image / 255, atol=1e-5) and torch.equal(same_label_map, label_map)


@pytest.mark.parametrize("name", ["warp", "gain", "depth_attenuation", "speckle", "haze", "noise"])
def test_each_effect_comes_as_often_as_its_probability_says_and_leaves_the_others_as_they_are(name: str) -> None:
    image, label_map, _ = sector(48)
    limits = {
        "warp": {"shift": 0.1},
        "gain": {"gain": (0.5, 0.7)},
        "depth_attenuation": {"depth_attenuation": 0.5},
        "speckle": {"speckle": 0.5},
        "haze": {"haze": 0.5},
        "noise": {"noise": 0.05},
    }
    augment = RandUltrasoundd(**{**OFF, **ALWAYS, **limits[name], f"{name}_probability": 0.3})
    augment.set_random_state(1)
    num_changed = sum(
        not torch.allclose(augment.augment(image, label_map)[0], image / 255, atol=1e-4) for _ in range(100)
    )
    assert 18 <= num_changed <= 42
    if name != "warp":  # the same warp, whether this effect is there or not
        label_maps = []
        for probability in (0.0, 1.0):
            augment = RandUltrasoundd(**{f"{name}_probability": probability})
            augment.set_random_state(2)
            label_maps.append([augment.augment(image, label_map)[1] for _ in range(4)])
        assert all(torch.equal(*pair) for pair in zip(*label_maps))


def test_depth_attenuation_is_log_linear_in_the_distance_from_the_apex() -> None:
    image, label_map, depth = sector()
    slopes = []
    for seed in range(12):
        bright = augmented(seed, image, label_map, depth_attenuation=0.5)
        where = (image[0] > 0) & (depth > 0.05)
        log_ratio = torch.log(bright[where] / (100 / 255)).numpy()
        slope, offset = np.polyfit(depth[where].numpy(), log_ratio, 1)
        assert np.abs(log_ratio - slope * depth[where].numpy() - offset).max() < 0.03
        assert slope * 0.5 + offset == pytest.approx(0, abs=0.02)  # the middle keeps its brightness
        slopes.append(slope)
    assert min(slopes) < -0.2 and max(slopes) > 0.2 and max(map(abs, slopes)) <= 0.52


def test_time_gain_is_a_smooth_curve_over_depth() -> None:
    image, label_map, depth = sector()
    bright = augmented(0, image, label_map, time_gain=0.3)
    where = (image[0] > 0) & (depth > 0.05)
    bins = (depth[where] * 40).long()
    log_ratio = torch.log(bright[where] * 2.55)
    rings = torch.stack([log_ratio[bins == b].mean() for b in bins.unique()])
    assert rings.std() > 0.05 and rings.abs().max() < 0.45
    assert rings.diff().abs().max() < 0.12  # no steps
    spread = torch.stack([log_ratio[bins == b].std() for b in bins.unique()])
    assert spread.mean() < 0.02  # the same for all beams


def test_speckle_keeps_the_mean_is_correlated_and_wider_across_the_beam() -> None:
    image, label_map, depth = sector()
    across, along = [], []
    for seed in range(8):
        ratio = augmented(seed, image, label_map, speckle=1.0) * 2.55
        around = ratio[70:110, 54:74] if label_map[0, 70:110, 54:74].sum() == 0 else ratio[80:110, 54:74]
        assert ratio[image[0] > 0].mean() == pytest.approx(1, abs=0.12)
        deviation = around - around.mean()
        if deviation.std() < 0.05:
            continue  # a small share was drawn
        variance = (deviation**2).mean()
        across.append(float((deviation[:, 1:] * deviation[:, :-1]).mean() / variance))
        along.append(float((deviation[1:] * deviation[:-1]).mean() / variance))
    assert len(across) >= 5
    assert np.mean(across) > 0.3 and np.mean(across) > np.mean(along) + 0.1


def test_speckle_is_skewed_to_the_bright_side_as_rayleigh_is() -> None:
    image, label_map, _ = sector()
    for seed in range(3):
        deviation = augmented(seed, image, label_map, speckle=1.0)[image[0] > 0] * 2.55 - 1
        assert (deviation**3).mean() > 0


def test_haze_is_stronger_near_the_probe_and_fills_the_cavity_but_not_the_outside() -> None:
    image, label_map, depth = sector()
    near, far, cavity = [], [], []
    for seed in range(6):
        added = augmented(seed, image, label_map, haze=0.6) - image[0] / 255
        near.append(float(added[(depth > 0.1) & (depth < 0.3) & (image[0] > 0)].mean()))
        far.append(float(added[(depth > 0.8) & (image[0] > 0)].mean()))
        cavity.append(float(added[label_map[0] == 1].mean()))
        assert added.min() > -1e-3
        assert added[depth.isnan()].abs().max() < 1e-4
    assert np.mean(near) > 3 * np.mean(far) > 0
    assert min(cavity) > 0 and np.mean(cavity) > np.mean(far)


@pytest.mark.parametrize("side", [61, 128])
def test_black_stays_black_outside_the_sector(side: int) -> None:
    image, label_map, depth = sector(side)
    augment = RandUltrasoundd(**{**ALWAYS, "warp_probability": 0.0, "haze": 1.0, "speckle": 1.0, "noise": 0.2})
    augment.set_random_state(0)
    for _ in range(10):
        grey, _ = augment.augment(image, label_map)
        assert grey[0][depth.isnan()].max() < 1e-4 and grey.shape == image.shape
        assert grey.min() >= 0 and grey.max() <= 1 and grey.dtype == torch.float32


def test_beams_follow_the_warp() -> None:
    image, label_map, _ = sector()
    limits = {**OFF, "depth_attenuation": 1.0, "depth_attenuation_probability": 1.0}
    upright = RandUltrasoundd(**limits)
    turned = RandUltrasoundd(**{**limits, "rotation_degrees": 30.0})
    for augment in (upright, turned):
        augment.set_random_state(5)
    bright, _ = upright.augment(image, label_map)
    turned_bright, _ = turned.augment(image, label_map)
    only_turned = RandUltrasoundd(**{**OFF, "rotation_degrees": 30.0})
    only_turned.set_random_state(5)
    expected, _ = only_turned.augment((bright * 255).round().to(torch.uint8), label_map)
    assert not torch.allclose(turned_bright, bright, atol=0.05)
    assert (turned_bright - expected).abs().mean() < 0.005


@pytest.mark.parametrize("pixels", [0, 1])
def test_an_image_without_a_sector_passes(pixels: int) -> None:
    image = torch.zeros(1, 128, 128, dtype=torch.uint8)
    image[0, 5, :pixels] = 255
    grey = augmented(0, image, torch.zeros_like(image), haze=0.5, speckle=0.5, depth_attenuation=0.5)
    assert torch.allclose(grey, image[0] / 255, atol=1e-4)


def test_an_image_that_fills_the_square_passes() -> None:
    image = torch.full((1, 40, 40), 90, dtype=torch.uint8)
    grey = augmented(0, image, torch.zeros_like(image), haze=0.5, speckle=0.5, depth_attenuation=0.5)
    assert grey.isfinite().all() and grey.std() > 0.01


def test_the_dictionary_version_can_be_switched_off_and_drops_meta_data() -> None:
    image, label_map, _ = sector(32)
    item = {"image": MetaTensor(image), "label": MetaTensor(label_map), "patient": "a"}
    assert RandUltrasoundd(is_enabled=False)(item) == item
    augment = RandUltrasoundd(haze=0.0, **{k: v for k, v in ALWAYS.items() if k != "haze_probability"})
    augment.set_random_state(3)
    first = augment(item)
    augment.set_random_state(3)
    assert torch.equal(first["image"], augment(item)["image"]) and first["patient"] == "a"
    assert type(first["image"]) is torch.Tensor and first["label"].dtype == torch.uint8
    assert torch.equal(item["image"].as_tensor(), image)  # the cache's copy is as it was


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"haze": -0.1}, r"haze must be 0 ... 1, got -0.1; 0 switches it off"),
        ({"speckle": 1.5}, r"speckle must be 0 ... 1, got 1.5"),
        ({"flip_probability": True}, r"flip_probability must be 0 ... 1, got True"),
        ({"noise": "much"}, r"noise must be a number of at least 0, got 'much'"),
        ({"gain": (-1, 1)}, r"gain must be a number of at least 0, got -1"),
    ],
)
def test_limits_out_of_range_are_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandUltrasoundd(**limits)
