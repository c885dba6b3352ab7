"""Test DiffusionPrepareBatch: the contents of a training task, and its random numbers."""

import pytest
import torch
from monai.data import MetaTensor

from synboost_monai.diffusion import DiffusionPrepareBatch, NoiseSchedule


def make_batch(batch: int = 8) -> dict[str, torch.Tensor]:
    image = torch.linspace(-1, 1, batch * 16).reshape(batch, 1, 4, 4)
    return {"image": MetaTensor(image), "label_onehot": torch.ones(batch, 5, 4, 4, dtype=torch.uint8)}


def test_targets_belong_to_the_noisy_image() -> None:
    torch.manual_seed(0)
    x_t, targets, args, kwargs = DiffusionPrepareBatch()(make_batch(), torch.device("cpu"), False)
    assert args == ()
    assert set(kwargs) == {"timesteps", "label_onehot"}
    assert type(x_t) is torch.Tensor, "MetaTensor would slow every layer"
    assert kwargs["label_onehot"].dtype == torch.float32
    expected = NoiseSchedule.cosine().q_sample(targets["x_0"], targets["timesteps"], targets["eps"])
    assert torch.equal(x_t, expected) and torch.equal(targets["x_t"], expected)
    assert torch.equal(kwargs["timesteps"], targets["timesteps"])


def test_global_seed_decides_the_task() -> None:
    tasks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        tasks.append(DiffusionPrepareBatch()(make_batch())[0])
    assert torch.equal(tasks[0], tasks[1]) and not torch.equal(tasks[0], tasks[2])


def test_channels_are_repeated_for_the_published_network() -> None:
    x_t, targets, _, _ = DiffusionPrepareBatch(image_channels=3)(make_batch())
    assert x_t.shape == (8, 3, 4, 4)
    assert torch.equal(targets["x_0"][:, 0], targets["x_0"][:, 2])
    assert not torch.equal(targets["eps"][:, 0], targets["eps"][:, 2])


@pytest.mark.parametrize(("probability", "kept"), [(0.0, 8), (1.0, 0)])
def test_label_maps_are_dropped_whole(probability: float, kept: int) -> None:
    label = DiffusionPrepareBatch(label_drop_probability=probability)(make_batch())[3]["label_onehot"]
    assert int(label.flatten(1).all(1).sum()) == kept
    assert int((~label.flatten(1).any(1)).sum()) == 8 - kept


def test_label_maps_are_dropped_at_the_asked_rate() -> None:
    torch.manual_seed(0)
    label = DiffusionPrepareBatch(label_drop_probability=0.2)(make_batch(2000))[3]["label_onehot"]
    dropped = 1 - label.amax(dim=(1, 2, 3)).mean().item()
    assert dropped == pytest.approx(0.2, abs=0.03)  # 3 standard errors


@pytest.mark.parametrize("stratified", [False, True])
def test_timesteps_are_uniform(stratified: bool) -> None:
    torch.manual_seed(0)
    prepare = DiffusionPrepareBatch(NoiseSchedule.cosine(10), stratified_timesteps=stratified)
    t = torch.cat([prepare(make_batch(5))[3]["timesteps"] for _ in range(1000)])
    share = torch.bincount(t, minlength=10) / len(t)
    assert len(share) == 10
    torch.testing.assert_close(share, torch.full((10,), 0.1), rtol=0, atol=0.02)


def test_stratified_timesteps_take_one_of_each_part() -> None:
    torch.manual_seed(0)
    prepare = DiffusionPrepareBatch(stratified_timesteps=True)
    batches = [prepare(make_batch(4))[3]["timesteps"] for _ in range(20)]
    assert all(sorted((t // 250).tolist()) == [0, 1, 2, 3] for t in batches)
    assert any((t.diff() < 0).any() for t in batches), "not in the order of the images"


def test_images_are_mirrored_with_their_label_maps() -> None:
    torch.manual_seed(0)
    image = torch.rand(64, 1, 4, 4)
    label = (image > 0.5).expand(-1, 5, -1, -1).to(torch.uint8)
    batch = {"image": image, "label_onehot": label}
    _, targets, _, arguments = DiffusionPrepareBatch(flip_probability=0.5)(batch)
    x_0 = targets["x_0"]
    is_kept = (x_0 == image).flatten(1).all(1)
    is_mirrored = (x_0 == image.flip(-1)).flatten(1).all(1)
    assert (is_kept ^ is_mirrored).all() and 16 < int(is_mirrored.sum()) < 48  # 4 standard deviations
    assert torch.equal(arguments["label_onehot"], (x_0 > 0.5).expand(-1, 5, -1, -1).float())
    assert torch.equal(targets["x_t"], NoiseSchedule.cosine().q_sample(x_0, targets["timesteps"], targets["eps"]))


def test_without_mirroring_no_number_is_drawn_for_it() -> None:
    draws = []
    for options in ({}, {"flip_probability": 0.0}, {"flip_probability": 1.0}):
        torch.manual_seed(0)
        DiffusionPrepareBatch(**options)(make_batch())
        draws.append(torch.rand(1).item())
    assert draws[0] == draws[1] != draws[2]


def test_classes_are_passed_on_and_outlive_a_dropped_label_map() -> None:
    classes = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    prepare = DiffusionPrepareBatch(label_drop_probability=1.0)
    arguments = prepare({**make_batch(), "class_label": MetaTensor(classes)})[3]
    assert type(arguments["class_labels"]) is torch.Tensor and arguments["class_labels"].dtype == torch.int64
    assert torch.equal(arguments["class_labels"], classes)
    assert not arguments["label_onehot"].any()
    assert "class_labels" not in prepare(make_batch())[3]


@pytest.mark.parametrize("name", ["label_drop_probability", "flip_probability"])
def test_impossible_probability_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is a probability, 0 ... 1, got 20"):
        DiffusionPrepareBatch(**{name: 20})
