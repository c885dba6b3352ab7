"""Test diffusion inferers: seeds and batches, guidance, evaluations counted, bfloat16, one real training step in MONAI's trainer."""

from typing import Any

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import Tensor
from torch.nn import functional as F

from synboost_monai.diffusion import DiffusionPrepareBatch, HybridLoss, SamplerOptions
from synboost_monai.inferers import SemanticDiffusionInferer, SemanticDiffusionTrainInferer
from synboost_monai.inferers.compiled import CompiledDenoiser
from synboost_monai.networks.semantic_diffusion_unet import (
    PRESETS,
    SemanticDiffusionSettings,
    SemanticDiffusionUNet,
    create_semantic_diffusion_unet,
)

SIZE = 16


def make_network(**overrides: object) -> SemanticDiffusionUNet:
    """Make a tiny network whose zero-initialised layers are random and small: a smooth denoiser, so that rounding is not amplified."""
    torch.manual_seed(0)
    network = create_semantic_diffusion_unet("tiny", **overrides).eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return network


def steps(number: int) -> SamplerOptions:
    return SamplerOptions(num_inference_steps=number)


def label_maps(batch: int) -> Tensor:
    maps = torch.randint(0, 5, (batch, SIZE // 4, SIZE // 4), generator=torch.Generator().manual_seed(1))
    maps = maps.repeat_interleave(4, 1).repeat_interleave(4, 2)
    return F.one_hot(maps, 5).permute(0, 3, 1, 2).float()


def test_images_that_start_from_others_stay_near_them_the_less_noise_they_get() -> None:
    """They depend on their own label map, seed and start image alone, bit for bit."""
    network, label_onehot, seeds = make_network(), label_maps(5), torch.arange(5)
    start = torch.rand(5, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(2)) * 1.8 - 0.9
    distances = []
    for strength in (0.05, 0.4, 0.8):
        inferer = SemanticDiffusionInferer(SamplerOptions("ddim", 20, start_strength=strength))
        images = inferer(label_onehot, network, seeds, start_images=start)
        alone = inferer(label_onehot[3:4], network, seeds[3:4], start_images=start[3:4])
        assert torch.equal(alone, images[3:4])
        distances.append(float((images - start).abs().mean()))
    assert distances[0] < 0.1 and distances == sorted(distances)


@pytest.mark.parametrize(("strength", "has_images"), [(0.5, False), (1.0, True)])
def test_start_images_are_wanted_below_full_strength_alone(strength: float, has_images: bool) -> None:
    inferer = SemanticDiffusionInferer(SamplerOptions("ddim", 4, start_strength=strength))
    start = torch.zeros(2, 1, SIZE, SIZE) if has_images else None
    with pytest.raises(ValueError, match=f"start images were given, but start_strength is {strength}"):
        inferer(label_maps(2), make_network(), torch.arange(2), start_images=start)


@pytest.mark.usefixtures("computes_in_16_bits")
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "sde_dpmpp_2m", "ddim", "ancestral"])
@pytest.mark.parametrize(
    "options",
    [{}, {"spade": "table", "guidance_scale": 1.5}, {"images_at_once": 3, "autocast_dtype": "bfloat16"}],
)
def test_image_depends_on_its_label_map_and_seed_alone(sampler: str, options: dict[str, Any]) -> None:
    """Bits are the same for any batch size, order and number of threads."""
    network, label_onehot, seeds = make_network(), label_maps(7), torch.tensor([5, 6, 7, 2**40, 9, 10, 11])
    inferer = SemanticDiffusionInferer(SamplerOptions(sampler, 3), **options)
    images = inferer(label_onehot, network, seeds)
    assert images.shape == (7, 1, SIZE, SIZE) and images.dtype == torch.float32
    assert images.abs().max() <= 1 and (images[0] - images[1]).abs().max() > 0.1
    for batch_size, threads in ((1, 1), (2, 2), (7, 2)):
        order = torch.arange(7).flip(0).split(batch_size)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        again = torch.cat([inferer(label_onehot[part], network, seeds[part]) for part in order]).flip(0)
        assert torch.get_num_threads() == threads  # the caller's setting is left as it was
        torch.set_num_threads(before)
        assert torch.equal(again, images), (batch_size, threads)


def test_classes_make_a_difference_where_the_network_knows_them() -> None:
    label_onehot, seeds = label_maps(2), torch.tensor([5, 6])
    inferer = SemanticDiffusionInferer(steps(2))
    network = make_network(num_class_embeds=5)
    of_class = {number: inferer(label_onehot, network, seeds, torch.full((2,), number)) for number in (0, 3)}
    assert not torch.equal(of_class[0], of_class[3])
    assert torch.equal(inferer(label_onehot, network, seeds), of_class[0])  # not told: unknown
    mixed = inferer(label_onehot, network, seeds, torch.tensor([3, 0]))
    assert torch.equal(mixed, torch.stack([of_class[3][0], of_class[0][1]]))
    plain = make_network()
    assert torch.equal(inferer(label_onehot, plain, seeds, torch.tensor([3, 0])), inferer(label_onehot, plain, seeds))


def test_generated_code_gives_the_same_images() -> None:
    """torch.compile traces one graph without breaks, with buffers reused by other label maps; no code is generated here."""
    network, seeds = make_network(num_class_embeds=5), torch.tensor([5, 6, 7])
    for spade in ("maps", "table"):
        inferer = SemanticDiffusionInferer(steps(2), images_at_once=2, guidance_scale=1.5, spade=spade)
        compiled = SemanticDiffusionInferer(
            steps(2), images_at_once=2, guidance_scale=1.5, spade=spade, compile_network=True
        )
        compiled._compiled = CompiledDenoiser(network, backend="aot_eager")
        torch.testing.assert_close(
            compiled(label_maps(3), network, seeds), inferer(label_maps(3), network, seeds), rtol=0, atol=1e-5
        )


def test_null_maps_are_computed_once_while_the_weights_stay() -> None:
    network, label_onehot, seeds = make_network(), label_maps(4), torch.arange(4)
    inferer = SemanticDiffusionInferer(steps(2), guidance_scale=2.0, images_at_once=1)
    calls = []
    plain_condition = network.condition
    network.condition = lambda *args: calls.append(args[0].any().item()) or plain_condition(*args)  # type: ignore
    before = inferer(label_onehot, network, seeds)
    assert calls.count(False) == 1 and calls.count(True) == 4
    inferer(label_onehot, network, seeds)
    assert calls.count(False) == 1
    with torch.no_grad():
        network.middle_block[0].in_norm.mlp_gamma.weight.mul_(3)
    after = inferer(label_onehot, network, seeds)
    assert calls.count(False) == 2
    fresh = SemanticDiffusionInferer(steps(2), guidance_scale=2.0, images_at_once=1)
    assert torch.equal(after, fresh(label_onehot, network, seeds)) and not torch.equal(after, before)


def test_error_in_one_group_ends_the_others() -> None:
    network, label_onehot = make_network(), label_maps(6)

    def fail(images: Tensor) -> None:
        raise OSError("full")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        inferer = SemanticDiffusionInferer(steps(50), images_at_once=1)
        inferer.on_images = fail
        with pytest.raises(OSError, match="full"):
            inferer(label_onehot, network, torch.arange(6))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_images_can_be_seen_while_they_are_drawn_and_are_the_same_bits() -> None:
    network, label_onehot, seeds = make_network(), label_maps(3), torch.tensor([5, 6, 7])
    inferer = SemanticDiffusionInferer(steps(3), images_at_once=2)
    unseen = inferer(label_onehot, network, seeds)
    seen: list[Tensor] = []
    inferer.on_images = lambda x: seen.append(x.clone())
    assert torch.equal(inferer(label_onehot, network, seeds), unseen)
    assert sorted(len(x) for x in seen) == [1, 1, 1, 2, 2, 2]  # two groups; what fills one up is not shown
    last_of_pair = [x for x in seen if len(x) == 2][-1]
    assert torch.equal(last_of_pair.clamp(-1, 1), unseen[:2])
    inferer.on_images = None
    inferer(label_onehot, network, seeds)
    assert len(seen) == 6


def test_training_in_float16_is_refused() -> None:
    with pytest.raises(ValueError, match="use bfloat16"):
        SemanticDiffusionTrainInferer("float16")


def test_missing_seeds_come_from_the_global_generator() -> None:
    network, inferer = make_network(), SemanticDiffusionInferer(steps(2))
    images = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        images.append(inferer(label_maps(2), network))
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
    assert not torch.equal(images[0][0], images[0][1])


class Counting(SemanticDiffusionUNet):
    """Count the calls of each seam."""

    def __init__(self, settings: SemanticDiffusionSettings) -> None:
        super().__init__(settings)
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
    [(1.0, {"encode": 4, "condition": 1, "decode": 4}), (1.5, {"encode": 4, "condition": 2, "decode": 4})],
)
def test_no_evaluation_is_wasted(guidance_scale: float, calls: dict[str, int]) -> None:
    network = Counting(SemanticDiffusionSettings(**PRESETS["tiny"])).eval()
    SemanticDiffusionInferer(steps(4), guidance_scale=guidance_scale)(label_maps(2), network, torch.arange(2))
    assert network.calls == calls


def test_guidance_changes_the_image_and_equals_two_full_evaluations() -> None:
    network, label_onehot, seeds = make_network(), label_maps(2), torch.arange(2)
    plain = SemanticDiffusionInferer(steps(4))(label_onehot, network, seeds)
    guided = SemanticDiffusionInferer(steps(4), guidance_scale=3.0)(label_onehot, network, seeds)
    assert (guided - plain).abs().max() > 1e-3

    from synboost_monai.diffusion import NoiseSchedule, create_sampler, sample

    def two_evaluations(x: Tensor, t: Tensor) -> Tensor:
        conditional, unconditional = network(x, t, label_onehot), network(x, t, torch.zeros_like(label_onehot))
        return unconditional[:, :1] + 3.0 * (conditional[:, :1] - unconditional[:, :1])

    with torch.no_grad():
        sampler = create_sampler("sde_dpmpp_2m", NoiseSchedule.cosine(), 4)
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        expected = sample(two_evaluations, sampler, (1, SIZE, SIZE), generators)
    torch.testing.assert_close(guided, expected, rtol=0, atol=1e-4)


def test_three_channel_network_gives_one_channel_images() -> None:
    network = make_network(in_channels=3, out_channels=6)
    images = SemanticDiffusionInferer(steps(2), image_channels=3)(label_maps(2), network, torch.arange(2))
    assert images.shape == (2, 1, SIZE, SIZE)


@pytest.mark.usefixtures("computes_in_16_bits")
def test_bfloat16_stays_near_float32_and_the_state_stays_float32() -> None:
    network, label_onehot, seeds = make_network(), label_maps(2), torch.arange(2)
    full = SemanticDiffusionInferer(steps(4))(label_onehot, network, seeds)
    half = SemanticDiffusionInferer(steps(4), autocast_dtype="bfloat16")(label_onehot, network, seeds)
    assert half.dtype == torch.float32 and next(network.parameters()).dtype == torch.float32
    assert not torch.equal(half, full)
    assert (half - full).abs().mean() < 3e-2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": SamplerOptions("euler")}, "no sampler is called 'euler'"),
        ({"sampler": SamplerOptions(num_inference_steps=2000)}, "num_inference_steps must be"),
        ({"autocast_dtype": "int8"}, "autocast_dtype must be bfloat16, float16 or null, got 'int8'"),
    ],
)
def test_impossible_settings_are_refused_at_once(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SemanticDiffusionInferer(**arguments)  # type: ignore[arg-type]


def test_seeds_must_match_the_label_maps() -> None:
    with pytest.raises(ValueError, match="2 label maps but 3 seeds"):
        SemanticDiffusionInferer(steps(1))(label_maps(2), make_network(), torch.arange(3))


@pytest.mark.usefixtures("computes_in_16_bits")
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


@pytest.mark.usefixtures("computes_in_16_bits")
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
