"""Diffusion inferers: seeds and batches, guidance, evaluations counted, bfloat16, one real training step in MONAI's trainer."""

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import Tensor
from torch.nn import functional as F

from synboost_monai.diffusion import DiffusionPrepareBatch, HybridLoss
from synboost_monai.inferers import SemanticDiffusionInferer, SemanticDiffusionTrainInferer
from synboost_monai.networks.semantic_diffusion_unet import SemanticDiffusionUNet, create_semantic_diffusion_unet

SIZE = 16


def make_network(**overrides: object) -> SemanticDiffusionUNet:
    """Tiny, its zero-initialised layers random and small: a smooth denoiser, so that rounding is not blown up."""
    torch.manual_seed(0)
    network = create_semantic_diffusion_unet("tiny", **overrides).eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return network


def label_maps(batch: int) -> Tensor:
    maps = torch.randint(0, 5, (batch, SIZE // 4, SIZE // 4), generator=torch.Generator().manual_seed(1))
    maps = maps.repeat_interleave(4, 1).repeat_interleave(4, 2)
    return F.one_hot(maps, 5).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "ancestral"])
def test_image_does_not_depend_on_batch_size_or_order(sampler: str) -> None:
    network, label_onehot, seeds = make_network(), label_maps(4), torch.tensor([5, 6, 7, 2**40])
    inferer = SemanticDiffusionInferer(sampler, num_inference_steps=5)
    images = inferer(label_onehot, network, seeds)
    assert images.shape == (4, 1, SIZE, SIZE) and images.dtype == torch.float32
    assert images.abs().max() <= 1
    alone = torch.cat([inferer(label_onehot[i : i + 1], network, seeds[i : i + 1]) for i in range(4)])
    # float32 sums are split differently for one image and for four; a grey level is 8e-3
    torch.testing.assert_close(alone, images, rtol=0, atol=1e-4)
    torch.testing.assert_close(inferer(label_onehot.flip(0), network, seeds.flip(0)).flip(0), images, rtol=0, atol=1e-4)
    assert (images[0] - images[1]).abs().max() > 0.1


def test_one_image_at_once_is_bitwise_independent_of_the_batch() -> None:
    network, label_onehot, seeds = make_network(), label_maps(3), torch.tensor([5, 6, 7])
    inferer = SemanticDiffusionInferer(num_inference_steps=4, images_at_once=1, autocast_dtype="bfloat16")
    images = inferer(label_onehot, network, seeds)
    assert torch.equal(inferer(label_onehot[1:], network, seeds[1:]), images[1:])


def test_missing_seeds_come_from_the_global_generator() -> None:
    network, inferer = make_network(), SemanticDiffusionInferer(num_inference_steps=2)
    images = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        images.append(inferer(label_maps(2), network))
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
    assert not torch.equal(images[0][0], images[0][1])


class Counting(SemanticDiffusionUNet):
    """Counts the calls of each seam."""

    def __init__(self, **arguments: object) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.calls = {"encode": 0, "condition": 0, "decode": 0}

    def encode(self, *args, **kwargs):
        self.calls["encode"] += 1
        return super().encode(*args, **kwargs)

    def condition(self, *args, **kwargs):
        self.calls["condition"] += 1
        return super().condition(*args, **kwargs)

    def decode(self, *args, **kwargs):
        self.calls["decode"] += 1
        return super().decode(*args, **kwargs)


@pytest.mark.parametrize(
    ("guidance_scale", "calls"),
    [(1.0, {"encode": 4, "condition": 1, "decode": 4}), (1.5, {"encode": 4, "condition": 2, "decode": 8})],
)
def test_no_evaluation_is_wasted(guidance_scale: float, calls: dict[str, int]) -> None:
    from synboost_monai.networks.semantic_diffusion_unet import PRESETS

    network = Counting(**PRESETS["tiny"]).eval()
    SemanticDiffusionInferer(num_inference_steps=4, guidance_scale=guidance_scale)(
        label_maps(2), network, torch.arange(2)
    )
    assert network.calls == calls


def test_guidance_changes_the_image_and_equals_two_full_evaluations() -> None:
    network, label_onehot, seeds = make_network(), label_maps(2), torch.arange(2)
    plain = SemanticDiffusionInferer(num_inference_steps=4)(label_onehot, network, seeds)
    guided = SemanticDiffusionInferer(num_inference_steps=4, guidance_scale=3.0)(label_onehot, network, seeds)
    assert (guided - plain).abs().max() > 1e-3

    from synboost_monai.diffusion import NoiseSchedule, create_sampler, sample

    def two_evaluations(x: Tensor, t: Tensor) -> Tensor:
        conditional, unconditional = network(x, t, label_onehot), network(x, t, torch.zeros_like(label_onehot))
        return unconditional[:, :1] + 3.0 * (conditional[:, :1] - unconditional[:, :1])

    with torch.no_grad():
        sampler = create_sampler("dpmpp_2m", NoiseSchedule.cosine(), 4)
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        expected = sample(two_evaluations, sampler, (1, SIZE, SIZE), generators)
    torch.testing.assert_close(guided, expected, rtol=0, atol=1e-4)


def test_three_channel_network_gives_one_channel_images() -> None:
    network = make_network(in_channels=3, out_channels=6)
    images = SemanticDiffusionInferer(num_inference_steps=2, image_channels=3)(label_maps(2), network, torch.arange(2))
    assert images.shape == (2, 1, SIZE, SIZE)


def test_bfloat16_stays_near_float32_and_the_state_stays_float32() -> None:
    network, label_onehot, seeds = make_network(), label_maps(2), torch.arange(2)
    full = SemanticDiffusionInferer(num_inference_steps=4)(label_onehot, network, seeds)
    half = SemanticDiffusionInferer(num_inference_steps=4, autocast_dtype="bfloat16")(label_onehot, network, seeds)
    assert half.dtype == torch.float32 and next(network.parameters()).dtype == torch.float32
    assert not torch.equal(half, full)
    assert (half - full).abs().mean() < 3e-2


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_progress_is_reported(guidance_scale: float) -> None:
    seen = []
    inferer = SemanticDiffusionInferer(
        num_inference_steps=3, guidance_scale=guidance_scale, progress_bar=True, on_step=lambda *s: seen.append(s)
    )
    inferer(label_maps(1), make_network(), torch.arange(1))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "euler"}, "no sampler is called 'euler'"),
        ({"num_inference_steps": 2000}, "num_inference_steps must be"),
        ({"autocast_dtype": "int8"}, "autocast_dtype must be null"),
    ],
)
def test_impossible_settings_are_refused_at_once(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SemanticDiffusionInferer(**arguments)  # type: ignore[arg-type]


def test_seeds_must_match_the_label_maps() -> None:
    with pytest.raises(ValueError, match="2 label maps but 3 seeds"):
        SemanticDiffusionInferer(num_inference_steps=1)(label_maps(2), make_network(), torch.arange(3))


@pytest.mark.parametrize("autocast_dtype", [None, "bfloat16"])
def test_monai_trainer_learns_with_these_parts(autocast_dtype: str | None) -> None:
    """Prepare batch, inferer and loss fit MONAI's trainer, and the loss falls on one image."""
    torch.manual_seed(0)
    network = create_semantic_diffusion_unet("tiny")
    batch = {"image": torch.full((4, 1, SIZE, SIZE), -0.5), "label_onehot": label_maps(4)}
    losses = []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch] * 40,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0),
        loss_function=HybridLoss(),
        inferer=SemanticDiffusionTrainInferer(autocast_dtype),
        prepare_batch=DiffusionPrepareBatch(stratified_timesteps=True),
        decollate=False,
        postprocessing=lambda output: losses.append(float(output["loss"])) or output,
    )
    trainer.run()
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_train_inferer_output_is_float32_under_bfloat16() -> None:
    network, x, t = make_network(), torch.randn(2, 1, SIZE, SIZE), torch.tensor([1, 500])
    full = SemanticDiffusionTrainInferer()(x, network, t, label_maps(2))
    half = SemanticDiffusionTrainInferer("bfloat16")(x, network, t, label_maps(2))
    assert torch.equal(full, network(x, t, label_maps(2)))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0, atol=3e-2 * full.abs().max().item())


def test_unknown_names_are_attribute_errors() -> None:
    import synboost_monai.inferers as inferers

    with pytest.raises(AttributeError, match="Nothing"):
        inferers.Nothing  # noqa: B018
