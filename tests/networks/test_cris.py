"""Test CRIS: the published network's numbers, prompts that share an image, padding, freezing, the small preset."""

import zlib

import pytest
import torch
from torch import Tensor, nn

from synboost_monai.networks import create_segmenter
from synboost_monai.networks.cris import _attend, _convolve_double_size
from synboost_monai.networks.text import default_input_ids
from tests.networks.conftest import padded_ids


def fill_with_waves(network: nn.Module) -> None:
    """Fill weights with a sine whose phase is the key's CRC-32: the same on every machine, whatever the random generator."""
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if not tensor.is_floating_point():
                continue
            wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.7 + zlib.crc32(key.encode()) % 1000)
            wave = wave.reshape(tensor.shape)
            if key.endswith("running_var"):
                tensor.copy_(1 + 0.5 * wave)
            elif tensor.ndim < 2:
                tensor.copy_(0.3 * wave + (0.9 if key.endswith("weight") else 0))
            else:
                tensor.copy_(wave if "embedding" in key else wave * (2 / tensor[0].numel()) ** 0.5)


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network() -> nn.Module:
    """Make a tiny CRIS in evaluation mode, with statistics that are not those of a fresh network."""
    network = create_segmenter("cris", "tiny")
    fill_with_waves(network)
    return network.eval()


def test_published_size() -> None:
    with torch.device("meta"):
        network = create_segmenter("cris")
    assert sum(parameter.numel() for parameter in network.parameters()) == 146_849_122
    assert len(network.state_dict()) == 662
    assert network.state_dict()["backbone.positional_embedding"].shape == (77, 512)
    assert network.state_dict()["proj.txt.weight"].shape == (256 * 9 + 1, 1024)


@pytest.mark.parametrize(
    ("mask_padding", "expected"),
    [
        (True, [-1.801664, -1.986573, -1.903024, -5.051686, -0.667685, 0.005398]),
        (False, [-1.739641, -2.025399, -1.893777, -5.148964, -0.680142, 0.037266]),
    ],
)
def test_logits_are_those_of_the_public_code(mask_padding: bool, expected: list[float]) -> None:
    """They are of DerrickWang005/CRIS.pytorch at e596332f, torch 2.13.0, with the weights, image and prompts below, bicubic to 96 px.

    Recorded at four pixels of three prompts, the first six values; then the difference was 7e-7 of the largest logit (7.3). Full size,
    416 px, seeded random weights: 5e-6.
    """
    network = create_segmenter("cris", "tiny", mask_padding=mask_padding).eval()
    fill_with_waves(network)
    image = torch.sin(torch.arange(3 * 96 * 96, dtype=torch.float64) * 0.37).reshape(1, 3, 96, 96).float()
    with torch.no_grad():
        logits = network(image, padded_ids())[0]
    rows, columns = [0, 17, 50, 95], [3, 80, 41, 95]
    torch.testing.assert_close(logits[:, rows, columns].flatten()[:6], torch.tensor(expected), rtol=0, atol=7e-5)


def test_prompts_that_share_an_image_equal_prompts_with_an_image_each(network: nn.Module, image: Tensor) -> None:
    input_ids = padded_ids().expand(2, -1, -1)
    with torch.no_grad():
        together = network(image, input_ids)
        apart = torch.cat([network(image, input_ids[:, [index]]) for index in range(3)], dim=1)
    assert together.shape == (2, 3, 64, 96)
    assert float((together[:, 0] - together[:, 1]).abs().max()) > 0.1  # prompts matter
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)


def test_default_prompts_are_the_p1_prompts() -> None:
    from synboost_monai.prompts.templates import prompt_text
    from synboost_monai.prompts.tokenizer import PromptTokenizer
    from synboost_monai.structures import STRUCTURES

    texts = [prompt_text(structure, "P1", {}, phrasing=0).text for structure in STRUCTURES]
    ids = default_input_ids()[0]
    assert torch.equal(PromptTokenizer()(texts)[:, : ids.shape[1]], ids)


def test_masked_padding_does_not_matter_and_unmasked_does(network: nn.Module, image: Tensor) -> None:
    short, long = padded_ids(11).expand(2, -1, -1), padded_ids(77).expand(2, -1, -1)
    with torch.no_grad():
        torch.testing.assert_close(network(image, short), network(image, long), rtol=0, atol=1e-5)
        network.mask_padding = False
        assert float((network(image, short) - network(image, long)).abs().max()) > 1e-3


def test_mask_never_fires_on_prompts_padded_with_the_end_token(network: nn.Module, image: Tensor) -> None:
    input_ids = padded_ids(padding_id=49407).expand(2, -1, -1)
    with torch.no_grad():
        masked = network(image, input_ids)
        network.mask_padding = False  # attention without a mask may be another kernel than with one that hides nothing
        torch.testing.assert_close(masked, network(image, input_ids), rtol=0, atol=1e-5)


def test_small_preset_draws_at_half_the_image_size(image: Tensor) -> None:
    network = create_segmenter("cris", "small", image_encoder_weights="imagenet").eval()
    sizes = []
    network.proj.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-2:]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = network(image)
    assert logits.shape == (2, 3, 64, 96)
    assert sizes == [(32, 48)]
    assert bool(torch.isfinite(logits).all())


def test_image_of_an_odd_size_is_an_error(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="image is 60 x 64; height and width must be multiples of 32"):
        network(torch.zeros(1, 3, 60, 64))


def test_prompts_of_another_batch_are_an_error(network: nn.Module, image: Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be \(B, S, L\) with B = 2 images, got \(1, 3, 77\)"):
        network(image, padded_ids())


def test_prompt_longer_than_the_context_is_an_error(network: nn.Module, image: Tensor) -> None:
    with pytest.raises(ValueError, match="has 78 tokens with start and end, but the network takes 77"):
        network(image, torch.full((2, 3, 78), 320))


def test_padding_beyond_the_context_is_no_error() -> None:
    """A checkpoint of the first release has 17 tokens; prompts come padded to 77."""
    network = create_segmenter("cris", "tiny", context_length=17).eval()
    logits = network(torch.zeros(1, 3, 64, 64), padded_ids(77))
    torch.testing.assert_close(logits, network(torch.zeros(1, 3, 64, 64), padded_ids(17)))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (13, 8)])
def test_doubling_before_and_after_the_channels_are_mixed_is_the_same(height: int, width: int) -> None:
    """Values, gradients and borders agree in float64."""
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 6, 3, padding=1, bias=False).double()
    x = torch.randn(2, 64, height, width, dtype=torch.float64, requires_grad=True)
    expected = conv(nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
    out = _convolve_double_size(conv, x)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(out)
    wanted = torch.autograd.grad((expected * weights).sum(), [x, conv.weight])
    for gradient, of_direct in zip(torch.autograd.grad((out * weights).sum(), [x, conv.weight]), wanted):
        torch.testing.assert_close(gradient, of_direct, rtol=1e-12, atol=1e-12)


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(16, 4, batch_first=True).double().eval()
    pixels, words = torch.randn(2, 9, 16, dtype=torch.float64), torch.randn(2, 5, 16, dtype=torch.float64)
    padding = torch.tensor([[False] * 5, [False, False, True, True, True]])
    for query, key, value, mask in ((pixels, pixels, pixels + 1, None), (pixels, words, words + 1, padding)):
        expected = module(query, key, value, key_padding_mask=mask, need_weights=False)[0]
        torch.testing.assert_close(_attend(module, query, key, value, mask), expected, rtol=1e-12, atol=1e-12)
