"""Test the semantic diffusion UNet: published layout and outputs, its three seams, small presets."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from synboost_monai.networks import to_inference
from synboost_monai.networks.semantic_diffusion_unet import (
    PRESETS,
    SemanticDiffusionUNet,
    SPADEGroupNorm,
    cosine_levels,
    create_semantic_diffusion_unet,
    timestep_embedding,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "semantic_diffusion.json").read_text())


def waves(shape: tuple[int, ...], phase: float) -> Tensor:
    """Return sines in place of random numbers, the same on every version of torch."""
    return (
        torch.sin(torch.arange(int(torch.tensor(shape).prod()), dtype=torch.float64) * 0.7 + phase)
        .float()
        .reshape(shape)
    )


def label_onehot(size: int, batch: int = 2, num_classes: int = 5) -> Tensor:
    rows, columns = torch.arange(size)[:, None], torch.arange(size)[None]
    maps = torch.stack([(rows // (4 - i) + columns // (5 - i)) % num_classes for i in range(batch)])
    return F.one_hot(maps, num_classes).permute(0, 3, 1, 2).float()


@pytest.fixture
def tiny() -> SemanticDiffusionUNet:
    """Make a tiny network whose zero-initialised layers are random, so that every path reaches the output."""
    torch.manual_seed(0)
    network = create_semantic_diffusion_unet("tiny").eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize(
    ("image_size", "num_parameters", "num_tensors"),
    [(256, 652_198_918, 766), (128, None, 660), (64, None, 552)],
)
def test_default_arguments_are_the_published_layout(
    image_size: int, num_parameters: int | None, num_tensors: int
) -> None:
    with torch.device("meta"):
        state = create_semantic_diffusion_unet(image_size=image_size).state_dict()
    assert len(state) == num_tensors
    if num_parameters is not None:
        assert sum(tensor.numel() for tensor in state.values()) == num_parameters
    assert state["input_blocks.0.0.weight"].shape == (256, 3, 3, 3)
    assert state["middle_block.0.in_norm.mlp_shared.0.weight"].shape == (128, 5, 3, 3)
    assert state["middle_block.1.qkv.weight"].shape == (3072, 1024, 1)
    assert state["out.2.bias"].shape == (6,)


def test_published_base_64_layouts_have_their_sizes() -> None:
    counts = {}
    for image_size in (64, 128):
        with torch.device("meta"):
            network = create_semantic_diffusion_unet(image_size=image_size, base_channels=64)
        counts[image_size] = sum(parameter.numel() for parameter in network.parameters())
    assert counts == {64: 43_935_686, 128: 46_489_606}  # of the public code


def test_output_equals_the_public_codes() -> None:
    """The golden numbers are from the public code with the same weights (see `about` in the file)."""
    golden = GOLDEN["network"]
    network = create_semantic_diffusion_unet(
        image_size=32, base_channels=32, channel_multipliers=(1, 2), attention_resolutions=(16,)
    ).eval()
    assert len(network.state_dict()) == golden["tensors"]
    assert sum(parameter.numel() for parameter in network.parameters()) == golden["parameters"]
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(network.named_parameters())):
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(waves(tuple(parameter.shape), index) * 1.4 / fan_in**0.5 + float(is_scale))
        output = network(waves((2, 3, 16, 16), 0.3), torch.tensor([3, 777]), label_onehot(16))
    largest = output.abs().max().item()
    # 1e-5 of the largest: float32 sums in another order
    torch.testing.assert_close(
        output.flatten()[golden["flat_index"]], torch.tensor(golden["values"]), rtol=0, atol=1e-5 * largest
    )
    assert output.std().item() == pytest.approx(golden["std"], rel=1e-5)
    assert output.mean().item() == pytest.approx(golden["mean"], abs=1e-5 * largest)


def test_timestep_embedding_by_hand() -> None:
    embedding = timestep_embedding(torch.tensor([0, 1]), 4)
    expected = torch.tensor([[1, 1, 0, 0], [0.5403023, 0.9999500, 0.8414710, 0.0099998]])
    torch.testing.assert_close(embedding, expected)


def test_spade_norm_by_hand() -> None:
    norm = SPADEGroupNorm(num_channels=2, num_classes=1, hidden_channels=1, num_groups=1)
    for parameter in norm.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(norm.mlp_shared[0].bias, 2.0)  # hidden 2 everywhere
    norm.mlp_gamma.weight.data[:, :, 1, 1] = 0.5  # gamma 1
    norm.mlp_beta.bias.data[:] = torch.tensor([3.0, -3.0])
    x = torch.tensor([-1.0, 1.0]).reshape(1, 2, 1, 1)  # mean 0, variance 1
    y = norm(x, norm.modulation(torch.zeros(1, 1, 1, 1)))
    torch.testing.assert_close(y.flatten(), torch.tensor([1.0, -1.0]), rtol=1e-4, atol=1e-4)


def test_forward_is_the_composition_of_the_seams(tiny: SemanticDiffusionUNet) -> None:
    x, t, label = waves((2, 1, 32, 32), 0), torch.tensor([3, 800]), label_onehot(32)
    features, maps = tiny.encode(x, t), tiny.condition(label)
    composed = tiny.decode(features, maps)
    assert torch.equal(tiny(x, t, label), composed)
    assert torch.equal(tiny.decode(features, maps), composed), "decode must not use up the features or the maps"


def test_label_map_and_timestep_reach_the_output(tiny: SemanticDiffusionUNet) -> None:
    x, t, label = waves((2, 1, 32, 32), 0), torch.tensor([3, 3]), label_onehot(32)
    output = tiny(x, t, label)
    assert (tiny(x, t + 500, label) - output).abs().max() > 1e-3
    assert (tiny(x, t, label.flip(0)) - output).abs().max() > 1e-3


def test_image_alone_is_timestep_0_without_condition(tiny: SemanticDiffusionUNet) -> None:
    x = waves((2, 1, 32, 32), 0)
    assert torch.equal(tiny(x), tiny(x, torch.zeros(2, dtype=torch.int64), torch.zeros(2, 5, 32, 32)))


def test_maps_and_timestep_of_one_image_serve_a_batch(tiny: SemanticDiffusionUNet) -> None:
    x, label = waves((2, 1, 32, 32), 0), label_onehot(32, batch=1)
    shared = tiny.decode(tiny.encode(x, torch.tensor([7])), tiny.condition(label))
    alone = tiny(x, torch.tensor([7, 7]), label.expand(2, -1, -1, -1))
    torch.testing.assert_close(shared, alone, rtol=0, atol=1e-5 * alone.abs().max().item())  # float32 rounding


@pytest.mark.parametrize("preset", ["small", "tiny"])
def test_presets_start_at_zero_and_take_rectangles(preset: str) -> None:
    network = create_semantic_diffusion_unet(preset, num_res_blocks=1).eval()
    height, width = 2 * network.size_multiple, 3 * network.size_multiple
    output = network(torch.randn(1, 1, height, width), torch.tensor([5]), torch.zeros(1, 5, height, width))
    assert output.shape == (1, 2, height, width)
    last_layer = network.out[2]
    assert not last_layer.weight.any() and not last_layer.bias.any()  # zero at the start, as published
    assert not output[:, 1:].any()
    assert PRESETS["published"] == {}


def test_cosine_levels_by_hand() -> None:
    alpha, sigma = cosine_levels(torch.tensor([0, 499, 999]), 1000)
    assert alpha.shape == (3, 1, 1, 1)
    start = torch.tensor(0.008 / 1.008 * torch.pi / 2).cos().item()
    assert alpha[1].item() == pytest.approx(torch.tensor(0.508 / 1.008 * torch.pi / 2).cos().item() / start)
    assert alpha[2].item() == pytest.approx(0, abs=1e-7)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(3, 1, 1, 1))


def test_velocity_layers_give_the_noise_that_follows(tiny: SemanticDiffusionUNet) -> None:
    """eps = sigma x_t + alpha v, where v is what the same layers give without the option; the variance is unchanged."""
    network = create_semantic_diffusion_unet("tiny", velocity_timesteps=1000).eval()
    network.load_state_dict(tiny.state_dict())
    x, t, label = waves((2, 1, 32, 32), 0), torch.tensor([3, 800]), label_onehot(32)
    velocity, variance = tiny(x, t, label).chunk(2, 1)
    alpha, sigma = cosine_levels(t, 1000)
    torch.testing.assert_close(network(x, t, label), torch.cat([sigma * x + alpha * velocity, variance], 1))


@pytest.mark.parametrize("patch_size", [1, 2])
def test_gradients_reach_every_parameter_with_and_without_checkpointing(patch_size: int) -> None:
    gradients = []
    for gradient_checkpointing in (False, True):
        torch.manual_seed(1)
        network = create_semantic_diffusion_unet(
            "tiny", patch_size=patch_size, gradient_checkpointing=gradient_checkpointing, attention_resolutions=(16,)
        )
        for parameter in network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        network(waves((2, 1, 32, 32), 0), torch.tensor([3, 800]), label_onehot(32)).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_channels_last_and_bfloat16_keep_the_output(tiny: SemanticDiffusionUNet) -> None:
    x, t, label = waves((2, 1, 32, 32), 0), torch.tensor([3, 800]), label_onehot(32)
    reference = tiny(x, t, label)
    other = create_semantic_diffusion_unet("tiny", channels_last=True).eval()
    other.load_state_dict(tiny.state_dict())
    assert other.input_blocks[1][0].in_layers[2].weight.is_contiguous(memory_format=torch.channels_last)
    largest = reference.abs().max().item()
    torch.testing.assert_close(other(x, t, label), reference, rtol=0, atol=1e-5 * largest)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = other(x, t, label)
    # bfloat16 has 8 bits, and 8 channels average few of its errors (64 channels: 2e-2)
    torch.testing.assert_close(half.float(), reference, rtol=0, atol=6e-2 * largest)
    assert (half.float() - reference).abs().mean() < 1e-2 * largest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 100}, "no published layout for image_size 100"),
        ({"base_channels": 40}, "40 channels cannot be normalised in 32 groups"),
        ({"num_head_channels": 48}, "heads of 48"),
    ],
)
def test_impossible_arguments_say_what_to_change(arguments: dict[str, int], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create_semantic_diffusion_unet(**arguments)


def test_unknown_preset_lists_those_that_exist() -> None:
    with pytest.raises(ValueError, match="'huge'; there are published, small, tiny"):
        create_semantic_diffusion_unet("huge")


@pytest.mark.parametrize(
    ("image_shape", "label_shape", "message"),
    [
        ((1, 3, 32, 32), (1, 5, 32, 32), r"expected images \(B, 1, H, W\)"),
        ((1, 1, 30, 32), (1, 5, 30, 32), "multiples of 4 px"),
        ((1, 1, 32, 32), (1, 4, 32, 32), r"expected label maps \(B, 5, H, W\)"),
        ((1, 1, 32, 32), (1, 5, 16, 16), "label map is"),
    ],
)
def test_wrong_inputs_are_named(
    tiny: SemanticDiffusionUNet, image_shape: tuple[int, ...], label_shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(torch.zeros(image_shape), torch.zeros(1), torch.zeros(label_shape))


def test_class_is_added_to_the_timestep() -> None:
    torch.manual_seed(0)
    network = create_semantic_diffusion_unet("tiny", num_class_embeds=3).eval()
    x, t, y = torch.randn(2, 1, 32, 32), torch.tensor([5, 900]), torch.zeros(2, 5, 32, 32)
    for parameter in network.parameters():
        if not parameter.any() and parameter is not network.class_embedding.weight:
            torch.nn.init.normal_(parameter, std=0.05)
    with torch.no_grad():
        before = network(x, t, y)
        # a new embedding is zero: the network starts as the one without classes
        assert torch.equal(network(x, t, y, torch.tensor([1, 2])), before)
        network.class_embedding.weight[2] = 1.0
        after = network(x, t, y, torch.tensor([1, 2]))
        assert torch.equal(network(x, t, y), before)  # not told: class 0
    assert torch.equal(after[0], before[0]) and not torch.allclose(after[1], before[1])
    plain = create_semantic_diffusion_unet("tiny").eval()
    assert torch.equal(plain(x, t, y, torch.tensor([1, 2])), plain(x, t, y))


@pytest.mark.usefixtures("computes_in_16_bits")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_network_ready_for_inference(dtype: str) -> None:
    network = to_inference(create_semantic_diffusion_unet("tiny").train(), "cpu", dtype)
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert {p.dtype for p in network.parameters()} == {getattr(torch, dtype)}
    assert network.middle_block[0].in_layers[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert (
        network.encode(torch.zeros(1, 1, 32, 32), torch.zeros(1))
        .skips[0]
        .is_contiguous(memory_format=torch.channels_last)
    )
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16, float16, got 'half'"):
        to_inference(network, "cpu", "half")
