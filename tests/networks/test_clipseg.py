"""Test CLIPSeg: equal to transformers' with the same weights, and trained end to end."""

import pytest
import torch
from torch import nn
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from synboost_monai.networks import create_segmenter
from tests.networks.conftest import padded_ids


@pytest.fixture
def reference() -> CLIPSegForImageSegmentation:
    """Return transformers' network in the size of the tiny preset, with random weights that do not vanish."""
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    vision = {"hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 4}
    config = CLIPSegConfig(
        text_config={**text, "vocab_size": 49408, "max_position_embeddings": 77},
        vision_config={**vision, "image_size": 32, "patch_size": 16},
        projection_dim=16,
        extract_layers=[0, 1, 2],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        use_complex_transposed_convolution=True,
    )
    network = CLIPSegForImageSegmentation(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


@pytest.fixture
def network(reference: CLIPSegForImageSegmentation) -> nn.Module:
    network = create_segmenter("clipseg", "tiny").eval()
    network.load_state_dict(reference.state_dict(), strict=True)
    return network


def test_published_size() -> None:
    with torch.device("meta"):
        network = create_segmenter("clipseg")
    assert sum(parameter.numel() for parameter in network.parameters()) == 150_747_746
    assert len(network.state_dict()) == 462
    assert network.clip.vision_model.embeddings.position_embedding.weight.shape == (197, 768)


@pytest.mark.parametrize("size", [32, 64, 96])
@pytest.mark.parametrize("padding_id", [0, 49407])
def test_logits_are_those_of_transformers(
    reference: CLIPSegForImageSegmentation, network: nn.Module, size: int, padding_id: int
) -> None:
    """This holds also at sizes whose position codes are interpolated. Full size at 352 px: 1.3e-6 of the largest logit."""
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    input_ids = padded_ids(77, padding_id).expand(2, -1, -1)
    with torch.no_grad():
        logits = network(image, input_ids)
        for index in range(2):
            expected = reference(input_ids=input_ids[index], pixel_values=image[[index] * 3]).logits
            largest = float(expected.abs().max())
            assert float((expected[0] - expected[1]).abs().max()) > 0.001 * largest  # prompts matter
            torch.testing.assert_close(logits[index], expected, rtol=0, atol=1e-5 * largest)


def test_layers_that_no_output_depends_on_are_neither_computed_nor_trained(network: nn.Module) -> None:
    image = torch.randn(1, 3, 32, 32)
    last = network.clip.vision_model.encoder.layers[3]  # the decoder takes 0, 1, 2
    assert not any(parameter.requires_grad for parameter in last.parameters())
    with torch.no_grad():
        before = network(image)
        for parameter in last.parameters():
            parameter.fill_(float("nan"))
        assert torch.equal(network(image), before)


def test_small_preset_shares_the_image_among_its_prompts() -> None:
    torch.manual_seed(0)
    network = create_segmenter("clipseg", "small", image_encoder_weights="imagenet").eval()
    image, input_ids = torch.randn(2, 3, 64, 64), padded_ids(20).expand(2, -1, -1)
    with torch.no_grad():
        together = network(image, input_ids)
        apart = torch.cat([network(image, input_ids[:, [index]]) for index in range(3)], dim=1)
    assert together.shape == (2, 3, 64, 64)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5 * float(apart.abs().max()))
