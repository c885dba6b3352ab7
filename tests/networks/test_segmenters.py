"""Test what both segmenters promise alike: every encoder learns, sharing and remembering change nothing, learning rates by layer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synboost_monai.networks import create_segmenter, parameter_groups
from synboost_monai.networks.text import Memo, PromptTable
from synboost_monai.prompts import PromptTokenizer
from synboost_monai.training.losses import PromptDiceCELoss
from tests.networks.conftest import both, padded_ids

PROMPTS = (
    "Left ventricular cavity in four-chamber view of the heart at end of the diastole cycle of a forty-year-old female.",
    "Myocardium of the heart.",
    "Left atrium cavity in the cardiac ultrasound.",
)


def tiny(architecture: str, **overrides: object) -> nn.Module:
    """Return the tiny network with weights that do not vanish, and without chance in its forward pass."""
    torch.manual_seed(0)
    overrides = {"dropout": 0.0, **overrides} if architecture == "cris" else overrides
    network = create_segmenter(architecture, "tiny", **overrides)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def batch(dtype: torch.dtype = torch.float32, size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Return images (2, 3, H, W), ids (2, 3, 77), masks (2, 3, H, W)."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, size, size, generator=generator, dtype=dtype)
    masks = (torch.rand(2, 3, size, size, generator=generator) > 0.5).to(dtype)
    ids = PromptTokenizer()(PROMPTS)
    return images, torch.stack([ids, ids.roll(1, 0)]), masks


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@both
def test_no_prompt_asks_for_the_three_structures(architecture: str) -> None:
    network, images = tiny(architecture).eval(), torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(images)
        expected = network(images, padded_ids().expand(2, -1, -1))
    assert logits.shape == (2, 3, 64, 96)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@both
@pytest.mark.parametrize("preset", ["tiny", "small"])
@pytest.mark.parametrize("freeze_encoders", [False, True])
def test_every_parameter_learns_but_those_of_frozen_encoders(
    architecture: str, preset: str, freeze_encoders: bool
) -> None:
    network = create_segmenter(architecture, preset, freeze_encoders=freeze_encoders).train()
    statistics = {name: value.clone() for name, value in network.encoders[0].named_buffers() if "running_mean" in name}
    network(torch.randn(2, 3, 64, 64)).square().mean().backward()
    with_gradient = {name for name, p in network.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in network.named_parameters() if p.requires_grad}
    of_encoders = {id(p) for p in network.encoders[0].parameters()}
    assert freeze_encoders != any(id(p) in of_encoders for p in network.parameters() if p.grad is not None)
    assert any(id(p) not in of_encoders for p in network.parameters() if p.grad is not None)
    for name, before in statistics.items():
        assert torch.equal(dict(network.encoders[0].named_buffers())[name], before) == freeze_encoders


@pytest.mark.parametrize(
    ("architecture", "overrides", "message"),
    [
        ("cris", {"text_width": 20}, "text_width is 20"),
        ("cris", {"upsampling": "nearest"}, "upsampling must be"),
        ("clipseg", {"image_encoder": "efficientnet_lite0"}, "set patch_size to 8, not 16"),
        ("clipseg", {"extract_layers": (1, 4)}, "need vision_layers > 4"),
        *((name, {"image_encoder": "vgg"}, "image_encoder must be") for name in ("cris", "clipseg")),
        *((name, {"has_skips": True}, "has_skips needs image_encoder='efficientnet_") for name in ("cris", "clipseg")),
    ],
)
def test_arguments_that_do_not_fit_are_an_error(architecture: str, overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_segmenter(architecture, "tiny", **overrides)


@both
def test_each_encoder_parameter_that_can_matter_gets_a_gradient(architecture: str) -> None:
    """The published CLIPSeg never trained its encoders; here that fails."""
    network = tiny(architecture).train()
    images, ids, masks = batch()
    PromptDiceCELoss()(network(images, ids), masks).backward()
    # CLIP's parts that segmentation does not use, and its pooled token's place
    unused = ("layers.3.", "post_layernorm", "visual_projection", "logit_scale")
    dead = [
        name
        for encoder in network.encoders
        for name, p in encoder.named_parameters()
        if not any(word in name for word in unused) and (p.grad is None or not p.grad.abs().max() > 0)
    ]
    assert dead == []


@both
def test_gradients_of_a_shared_image_are_those_of_pairs(architecture: str) -> None:
    """They are compared in training mode, with statistics of batch norms; in float64, so that rounding cannot hide a difference."""
    network = tiny(architecture).double().train()
    images, ids, masks = batch(torch.float64)
    pairs = copy.deepcopy(network)
    F.binary_cross_entropy_with_logits(network(images, ids), masks).backward()
    of_pairs = pairs(images.repeat_interleave(3, dim=0), ids.reshape(6, 1, -1))
    F.binary_cross_entropy_with_logits(of_pairs, masks.reshape(6, 1, *masks.shape[2:])).backward()
    shared, repeated = gradients(network), gradients(pairs)
    assert shared.keys() == repeated.keys()
    for name, gradient in shared.items():
        torch.testing.assert_close(gradient, repeated[name], rtol=1e-7, atol=1e-10, msg=name)
    statistics = {n: b for n, b in network.named_buffers() if "running_mean" in n}
    for name, mean in statistics.items():
        torch.testing.assert_close(mean, dict(pairs.named_buffers())[name], rtol=1e-9, atol=1e-12, msg=name)


@both
@pytest.mark.parametrize("mask_padding", [True, False])
def test_remembered_prompts_and_features_change_nothing(architecture: str, mask_padding: bool) -> None:
    if architecture == "clipseg" and not mask_padding:
        pytest.skip("CLIPSeg masks no padding: its text encoder is causal")
    network = tiny(architecture, **({"mask_padding": mask_padding} if architecture == "cris" else {})).eval()
    images, ids, _ = batch()
    table = PromptTable()
    with torch.no_grad():
        expected = network(images, ids)
        for _ in range(2):  # the second time from memory
            text = table(network, ids.flatten(0, 1))
            torch.testing.assert_close(network(images, None, text), expected, rtol=0, atol=1e-5)
        longer = table(network, ids[:, 1:].flatten(0, 1))  # others of them, of other lengths
        torch.testing.assert_close(network(images, None, longer), expected[:, 1:], rtol=0, atol=1e-5)
        features = network.encode_image(images)
        torch.testing.assert_close(network(features, ids), expected, rtol=0, atol=1e-5)


@both
def test_prompts_are_encoded_once_until_the_weights_change(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny(architecture).eval()
    _, ids, _ = batch()
    calls: list[int] = []
    encode = network.encode_prompts
    monkeypatch.setattr(network, "encode_prompts", lambda ids: (calls.append(len(ids)), encode(ids))[1])
    table = PromptTable()
    assert table(network, ids.flatten(0, 1)) is None  # the text encoder learns: its gradient is wanted
    with torch.inference_mode():
        first = table(network, ids.flatten(0, 1))
        table(network, ids[:1].flatten(0, 1))
    assert calls == [3]  # three distinct prompts among six
    network.requires_grad_(False)
    text = table(network, ids.flatten(0, 1))  # in training, with a frozen encoder
    assert calls == [3] and not text[0].is_inference()
    torch.testing.assert_close(text[0], first[0])
    network.load_state_dict({name: value + 0.01 for name, value in network.state_dict().items()})
    changed = table(network, ids.flatten(0, 1))
    assert calls == [3, 3] and not torch.allclose(changed[0], first[0])
    with torch.no_grad():
        next(iter(network.text_encoder_parameters())).mul_(1.5)
    table(network, ids.flatten(0, 1))
    assert calls == [3, 3, 3]


@both
def test_position_codes_follow_the_weights_and_the_size(architecture: str) -> None:
    network = tiny(architecture).eval()
    images, ids, _ = batch()
    codes = next(
        p
        for n, p in network.named_parameters()
        if n.endswith(("position_embedding.weight", "attnpool.positional_embedding"))
    )
    with torch.no_grad():
        before = network(images, ids)
        assert torch.equal(network(images, ids), before)
        network(images[..., :32, :], ids)
        codes.mul_(3)
        after = network(images, ids)
    assert not torch.allclose(after, before, atol=1e-4)
    torch.testing.assert_close(
        network(images, ids).detach(), after, rtol=0, atol=1e-5
    )  # with a gradient: not remembered


def test_memo_forgets_when_it_is_full() -> None:
    memo, computed = Memo(max_entries=3), []

    def compute(places: list[int]) -> list[int]:
        computed.append(len(places))
        return [place * 10 for place in places]

    assert memo.is_usable([])
    assert memo.get(["a", "b", "a"], compute) == [0, 10, 0]
    assert memo.get(["b", "c"], compute) == [10, 10]
    assert memo.get(["c", "d", "e"], compute) == [10, 10, 20]  # a and b are forgotten
    assert memo.get(["a"], compute) == [0]
    assert computed == [2, 1, 2, 1]


@both
def test_nearer_to_the_input_learns_slower(architecture: str) -> None:
    network = create_segmenter(architecture, "tiny")
    groups = parameter_groups(network, 1.0, encoder_learning_rate_scale=0.5, layer_decay=0.5)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == sum(p.requires_grad for p in network.parameters())
    for stages in network.encoder_stages:
        of_stages = [{rates[id(p)] for p in stage.parameters() if p.requires_grad} for stage in stages]
        assert of_stages == [{0.5 * 0.5**distance} for distance in reversed(range(len(stages)))]
    assert max(rates.values()) == 1.0 and groups[0]["lr"] == 1.0
    with pytest.raises(ValueError, match="layer_decay must be above 0"):
        parameter_groups(network, 1.0, layer_decay=0.0)


def test_layers_of_an_efficientnet_are_told_apart() -> None:
    network = create_segmenter("cris", "small")
    groups = parameter_groups(network, 1.0, encoder_learning_rate_scale=1.0, layer_decay=0.9)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    of_image = [rates[id(p)] for p in network.image_encoder.parameters()]
    assert len(set(of_image)) == 8 and of_image == sorted(of_image)  # the stem and seven stages
