"""Test which prompts reach the network, and in what precision."""

from __future__ import annotations

import logging

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from synboost_monai.inferers import PreparePromptedBatch, PromptedSegmentationInferer
from synboost_monai.networks import create_segmenter, to_inference
from synboost_monai.networks.view_head import split_view
from synboost_monai.prompts import PromptTokenizer, structure_prompts


class Recorder(nn.Module):
    """Return as many channels as there are prompts, 3 without any."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)

    def forward(self, image: Tensor, input_ids: Tensor | None = None) -> Tensor:
        self.image, self.input_ids = image, input_ids
        num_prompts = 3 if input_ids is None else input_ids.shape[1]
        out = self.conv(image)
        self.dtype = out.dtype
        return out.expand(-1, num_prompts, -1, -1)


def test_batch_prompts_are_passed_on() -> None:
    network, input_ids = Recorder(), torch.zeros(2, 3, 77, dtype=torch.int64)
    assert PromptedSegmentationInferer()(torch.rand(2, 3, 8, 8), network, input_ids=input_ids).shape == (2, 3, 8, 8)
    assert torch.equal(network.input_ids, input_ids)


def test_images_alone_ask_for_the_three_structures() -> None:
    """MONAI Label calls it so."""
    network = Recorder()
    image = MetaTensor(torch.rand(1, 3, 8, 8))
    logits = PromptedSegmentationInferer()(image, network)
    assert network.input_ids is None and logits.shape == (1, 3, 8, 8)
    assert type(network.image) is Tensor  # meta data costs time in each layer


@pytest.mark.parametrize("prompt", ["LA", "heart muscle", "the left ventrcle"])
def test_a_free_prompt_asks_for_all_structures_in_the_words_that_the_network_was_taught(prompt: str) -> None:
    network, input_ids = Recorder(), torch.arange(2 * 6 * 77).reshape(2, 6, 77)  # two groups
    inferer = PromptedSegmentationInferer(prompt=prompt)
    assert inferer(torch.rand(2, 3, 8, 8), network, input_ids=input_ids).shape[1] == 6
    assert torch.equal(network.input_ids, input_ids)
    assert inferer(torch.rand(2, 3, 8, 8), network).shape[1] == 3 and network.input_ids is None


@pytest.mark.parametrize(
    ("prompt", "free_words"), [("heart muscle", True), ("Myocardium in two-chamber view of the heart.", False)]
)
def test_words_that_the_network_knows_go_themselves_beside_those_of_each_structure(
    prompt: str, free_words: bool
) -> None:
    network, input_ids = Recorder(), torch.arange(2 * 6 * 77).reshape(2, 6, 77)
    inferer = PromptedSegmentationInferer(prompt=prompt, free_words=free_words)
    assert inferer(torch.rand(2, 3, 8, 8), network, input_ids=input_ids).shape[1] == 7
    assert torch.equal(network.input_ids[:, :1], PromptTokenizer()([prompt]).expand(2, 1, -1))
    assert torch.equal(network.input_ids[:, 1:], input_ids)
    network.default_input_ids = PromptTokenizer()([prompt.text for prompt in structure_prompts("P1", {})])[None]
    inferer(torch.rand(2, 3, 8, 8), network)
    assert torch.equal(network.input_ids[:, 1:], network.default_input_ids.expand(2, -1, -1))


@pytest.mark.parametrize("free_words", [False, True])
def test_words_that_nobody_taught_are_refused_before_any_image(free_words: bool) -> None:
    with pytest.raises(
        ValueError, match="the liver is not among the structures .*; there are: left ventricular cavity"
    ):
        PromptedSegmentationInferer(prompt="liver", free_words=free_words)


def test_the_log_says_how_a_prompt_was_read(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="synboost_monai"):
        PromptedSegmentationInferer(prompt=" left atrum")
    assert caplog.messages == ["prompt 'left atrum': read as left atrium (atrum as atrium)"]


@pytest.mark.usefixtures("computes_in_16_bits")
def test_mixed_precision_inside_float32_outside() -> None:
    network = Recorder()
    logits = PromptedSegmentationInferer(autocast_dtype="bfloat16", channels_last=True)(torch.rand(2, 3, 8, 8), network)
    assert network.dtype == torch.bfloat16 and logits.dtype == torch.float32
    assert network.image.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="autocast_dtype must be bfloat16, float16 or null, got 'half'"):
        PromptedSegmentationInferer(autocast_dtype="half")


@pytest.fixture(params=["clipseg", "cris"])
def segmenter(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return create_segmenter(request.param, "tiny").eval().requires_grad_(False)


def test_remembered_text_gives_the_same_logits(segmenter: nn.Module) -> None:
    images, ids = torch.randn(2, 3, 32, 32), PromptTokenizer()(["Myocardium of the heart.", "left atrium"])
    ids = torch.stack([ids, ids.flip(0)])
    inferer, plain = PromptedSegmentationInferer(), PromptedSegmentationInferer(cache_text=False)
    expected = plain(images, segmenter, ids)
    for _ in range(2):
        torch.testing.assert_close(inferer(images, segmenter, ids), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(inferer(images, segmenter), plain(images, segmenter), rtol=0, atol=1e-5)


def test_clip_is_its_frames(segmenter: nn.Module) -> None:
    clips, ids = torch.randn(2, 5, 3, 32, 32), PromptTokenizer()(["Myocardium of the heart.", "left atrium"])
    ids = torch.stack([ids, ids.flip(0)])
    logits = PromptedSegmentationInferer(images_at_once=3)(clips, segmenter, ids)
    assert logits.shape == (2, 5, 2, 32, 32)
    for clip, clip_ids, clip_logits in zip(clips, ids, logits):
        expected = segmenter(clip, clip_ids.expand(5, -1, -1))
        torch.testing.assert_close(clip_logits, expected, rtol=1e-6, atol=1e-5)  # sums are split by threads


def test_features_stand_for_their_image(segmenter: nn.Module) -> None:
    images = torch.randn(2, 3, 32, 32)
    features = list(segmenter.encode_image(images))
    inferer = PromptedSegmentationInferer()
    torch.testing.assert_close(inferer(features, segmenter), inferer(images, segmenter), rtol=0, atol=1e-5)
    half = [feature.to(torch.bfloat16) for feature in features]  # as they are kept on disk
    torch.testing.assert_close(inferer(half, segmenter), inferer(images, segmenter), rtol=0.1, atol=0.1)


@pytest.mark.usefixtures("computes_in_16_bits")
def test_weights_in_bfloat16_take_float32_images(segmenter: nn.Module) -> None:
    images = torch.randn(2, 3, 32, 32)
    expected = PromptedSegmentationInferer()(images, segmenter)
    half = to_inference(segmenter, "cpu", "bfloat16")
    logits = PromptedSegmentationInferer()(images, half)
    assert logits.dtype == torch.float32
    assert float((logits - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_nothing_at_once_is_refused() -> None:
    with pytest.raises(ValueError, match="images_at_once must be at least 1"):
        PromptedSegmentationInferer(images_at_once=0)


def test_batch_is_prepared_with_prompts_on_the_cpu() -> None:
    prepare, ids = PreparePromptedBatch(), torch.zeros(2, 3, 77, dtype=torch.int64)
    images, masks = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    inputs, target, arguments, keywords = prepare({"image": images, "label": masks, "input_ids": ids}, "meta")
    assert inputs.device.type == target.device.type == "meta"
    assert arguments == () and keywords["input_ids"] is ids
    inputs, target, _, keywords = prepare({"image": [images, masks]}, "cpu")
    assert isinstance(inputs, tuple) and torch.equal(inputs[1], masks) and target is None and keywords == {}


@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (1, 3, 3, 32, 32)])
def test_the_view_comes_with_the_masks_of_one_encoding(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = create_segmenter("cris", "tiny", has_view_head=True).eval()
    images = torch.randn(shape)
    encoded = []
    network.image_encoder.register_forward_hook(lambda *_: encoded.append(1))
    with torch.no_grad():
        masks, view = split_view(PromptedSegmentationInferer(with_view=True, images_at_once=2)(images, network))
        assert len(encoded) == 2  # parts, of two and of one
        assert torch.equal(masks, PromptedSegmentationInferer(images_at_once=2)(images, network))
        expected = network.view_logits(network.encode_image(images.reshape(-1, 3, 32, 32)))
    assert torch.allclose(view.reshape(-1, 4), expected, atol=1e-6)
