"""Test LoRA: where adapters go, that nothing changes at first, what learns, and that merged weights give the same output."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from synboost_monai.networks import create_segmenter, load_weights, parameter_groups
from synboost_monai.networks.lora import SplitAttention, add_lora, has_lora, merged_state_dict
from tests.networks.conftest import both

pytest.importorskip("peft")


def create(architecture: str, preset: str = "tiny", **overrides: Any) -> nn.Module:
    torch.manual_seed(0)
    return create_segmenter(architecture, preset, **({"dropout": 0.0} if architecture == "cris" else {}), **overrides)


def disturb(network: nn.Module, scale: float = 0.1) -> nn.Module:
    """Change adapters as training might: B is zero at first."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return network


def adapters(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in network.named_parameters() if ".lora_" in name}


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@both
def test_output_is_unchanged_at_first(architecture: str, image: Tensor) -> None:
    network = create(architecture).eval()
    before = network(image)
    with torch.no_grad():
        quick = network(image)  # MultiheadAttention has another kernel without gradients
    network = add_lora(network, rank=4)
    # not the same bits: an adapted attention is split into projections, whose sums have another order on some processors
    torch.testing.assert_close(network(image), before, rtol=0, atol=2e-6)
    with torch.no_grad():
        torch.testing.assert_close(network(image), quick, rtol=0, atol=2e-6)
        assert float((disturb(network)(image) - before).abs().max()) > 1e-2


@both
def test_output_in_training_is_that_of_frozen_encoders_at_first(architecture: str, image: Tensor) -> None:
    """For CRIS, nn.MultiheadAttention has another kernel where nothing learns, and batch statistics of two images amplify its rounding."""
    frozen = create(architecture, freeze_encoders=True).train()
    adapted = add_lora(create(architecture), rank=4).train()
    tolerance = 1e-4 if architecture == "cris" else 0
    torch.testing.assert_close(adapted(image), frozen(image), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("architecture", "preset", "expected"),
    [
        ("clipseg", "tiny", {"vision_model.encoder.layers": 3 * 4, "text_model.encoder.layers": 2 * 4}),
        ("cris", "tiny", {"visual.attnpool": 4, "transformer.resblocks": 2 * 4}),
        ("cris", "small", {"visual": 0, "transformer.resblocks": 2 * 4}),
    ],
)
def test_adapters_are_on_the_attention_that_is_used(architecture: str, preset: str, expected: dict[str, int]) -> None:
    network = add_lora(create(architecture, preset), rank=2)
    names = [name for name in adapters(network) if "lora_A" in name]
    found = {part: sum(part in name for name in names) for part in expected}
    assert found == expected and len(names) == sum(expected.values())
    assert not any("vision_model.encoder.layers.3" in name or ".mlp." in name for name in names)


@pytest.mark.parametrize(("architecture", "expected"), [("clipseg", 884_736), ("cris", 516_096)])
def test_published_networks_train_few_numbers_of_their_encoders(architecture: str, expected: int) -> None:
    """CLIPSeg: 8 (10 x 4 x 2 x 768 + 12 x 4 x 2 x 512); CRIS: 8 (12 x 4 x 2 x 512 + 3 x 2 x 2048 + 2048 + 1024)."""
    with torch.device("meta"):
        network = add_lora(create_segmenter(architecture), rank=8)
    assert sum(p.numel() for p in network.encoders[0].parameters() if p.requires_grad) == expected


@both
@pytest.mark.parametrize("freeze_encoders", [False, True])
def test_adapters_and_what_is_no_encoder_learn(architecture: str, freeze_encoders: bool, image: Tensor) -> None:
    network = create(architecture, freeze_encoders=freeze_encoders)
    of_encoders = {id(p) for p in network.encoders[0].parameters()}
    others = {name for name, p in network.named_parameters() if id(p) not in of_encoders and p.requires_grad}
    network = disturb(add_lora(network, rank=2)).train()
    assert {name for name, p in network.named_parameters() if p.requires_grad} == others | set(adapters(network))
    before = {name: value.clone() for name, value in network.encoders[0].state_dict().items()}
    optimizer = torch.optim.AdamW(parameter_groups(network, 1e-2))
    network(image).square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [n for n, p in adapters(network).items() if not float(p.grad.abs().max()) > 0] == []
    optimizer.step()
    changed = {name for name, value in network.encoders[0].state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(".lora_" in name for name in changed)
    assert {name for name in before if ".lora_" in name} == changed


def test_first_step_moves_b_alone_and_the_second_both(image: Tensor) -> None:
    """B = 0 hides A, whose gradient is B^T times a factor."""
    network = add_lora(create("clipseg"), rank=2).train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    largest = []
    for _ in range(2):
        optimizer.zero_grad()
        network(image).square().mean().backward()
        largest.append(
            [
                max(float(p.grad.abs().max()) for n, p in adapters(network).items() if kind in n)
                for kind in ("lora_A", "lora_B")
            ]
        )
        optimizer.step()
    assert largest[0][0] == 0 < largest[0][1]
    assert largest[1][0] > 0 and largest[1][1] > 0


@both
def test_encoders_stay_in_evaluation_mode_but_for_dropout(architecture: str, image: Tensor) -> None:
    network = disturb(add_lora(create(architecture), rank=2, dropout=0.5))
    encoder = network.encoders[0]
    statistics = {name: value.clone() for name, value in encoder.named_buffers()}
    for owner in (network, nn.Sequential(network)):
        owner.train()
        assert network.training and not encoder.training
        training = {type(module) for module in encoder.modules() if module.training}
        assert training == {nn.ModuleDict, nn.Dropout}
        assert not torch.equal(network(image), network(image))
        owner.eval()
        assert not any(module.training for module in network.modules())
        assert torch.equal(network(image), network(image))
    assert all(torch.equal(value, statistics[name]) for name, value in encoder.named_buffers())


@both
@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_merged_weights_load_strictly_and_give_the_same(
    architecture: str, preset: str, image: Tensor, tmp_path: Path
) -> None:
    network = create(architecture, preset)
    original = network.state_dict()
    keys = {name: value.shape for name, value in original.items()}
    values = {name: value.clone() for name, value in original.items()}
    network = disturb(add_lora(network, rank=4, alpha=2.0)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        expected = network(image)
    merged = merged_state_dict(network)
    assert {name: value.shape for name, value in merged.items()} == keys
    assert not any(value.requires_grad for value in merged.values())
    after = network.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)

    torch.save(merged, tmp_path / "model.pt")
    fresh = load_weights(create(architecture, preset), tmp_path / "model.pt").eval()
    assert not has_lora(fresh)
    with torch.no_grad():
        found = fresh(image)
        scale = float(expected.abs().max())
        torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)
        without = load_weights(create(architecture, preset), None)
        without.load_state_dict(values)
        assert float((without.eval()(image) - expected).abs().max()) / scale > 1e-3


@pytest.mark.parametrize(("alpha", "scale"), [(6.0, 3.0), (None, 2.0)])
def test_merged_projection_is_w_plus_scaled_product(alpha: float | None, scale: float) -> None:
    network = disturb(add_lora(create("clipseg"), rank=2, alpha=alpha))
    layer = network.clip.text_model.encoder.layers[1].self_attn.v_proj
    expected = layer.base_layer.weight + scale * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    merged = merged_state_dict(network)["clip.text_model.encoder.layers.1.self_attn.v_proj.weight"]
    torch.testing.assert_close(merged, expected.detach(), rtol=1e-6, atol=1e-7)


def test_network_without_adapters_is_left_as_it_is() -> None:
    network = create("cris")
    state, train = network.state_dict(), network.train
    assert add_lora(network) is network and add_lora(network, rank=0, dropout=0.1) is network
    assert network.train == train and not has_lora(network)
    merged = merged_state_dict(network)
    assert list(merged) == list(state) and all(torch.equal(merged[name], state[name]) for name in state)


@both
def test_copies_are_networks_of_their_own(architecture: str, image: Tensor) -> None:
    network = disturb(add_lora(create(architecture), rank=2)).eval()
    expected = network(image)
    average = AveragedModel(network)
    for other in (copy.deepcopy(network), average.module):
        assert torch.equal(other(image), expected)
        other.train()
        assert other.training and not other.encoders[0].training and not network.training
        other.eval()
        disturb(other, scale=0.5)
        assert not torch.equal(other(image), expected) and torch.equal(network(image), expected)
    average.update_parameters(network)  # the first update copies
    assert torch.equal(average.module(image), expected)
    assert merged_state_dict(average.module).keys() == create(architecture).state_dict().keys()


@both
def test_state_makes_a_training_go_on_exactly(architecture: str, image: Tensor) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        network = add_lora(create(architecture), rank=2).train()
        return network, torch.optim.AdamW(parameter_groups(network, 1e-2))

    def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        network(image).square().mean().backward()
        optimizer.step()

    network, optimizer = start()
    step(network, optimizer)
    saved = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    step(network, optimizer)
    resumed, its_optimizer = start()
    disturb(resumed, scale=9.0)
    resumed.load_state_dict(saved[0])
    its_optimizer.load_state_dict(saved[1])
    step(resumed, its_optimizer)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in network.state_dict().items())


def test_mixed_precision_works(image: Tensor) -> None:
    network = disturb(add_lora(create("cris"), rank=2)).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = network(image).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in adapters(network).values())


@pytest.mark.parametrize("is_causal", [True, False])
def test_split_attention_equals_multihead_attention(is_causal: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    nn.init.normal_(attention.in_proj_bias)
    nn.init.normal_(attention.out_proj.bias)
    x = torch.randn(3, 7, 16)
    later = torch.ones(7, 7, dtype=torch.bool).triu(1) if is_causal else None
    expected, _ = attention(x, x, x, attn_mask=later, is_causal=is_causal, need_weights=False)
    torch.testing.assert_close(SplitAttention(attention)(x, is_causal), expected, rtol=0, atol=1e-6)


def test_missing_peft_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    network = create("cris")
    with pytest.raises(ValueError, match=r"lora_rank is 4 but .* run: pip install 'synboost-monai\[lora\]'"):
        add_lora(network, rank=4)
    assert all(not isinstance(module, SplitAttention) for module in network.modules())
    assert add_lora(network, rank=0) is network


def plain_network() -> nn.Module:
    return nn.Linear(2, 2)


def convolutional_network() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 3, 1))
    network.encoders = [network[0]]
    return network


def adapted_network() -> nn.Module:
    return add_lora(create("clipseg"), rank=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (plain_network, "Linear names no encoders, so there is nothing to adapt; set lora_rank to 0"),
        (convolutional_network, "the encoders of Sequential have no attention to adapt; set lora_rank to 0"),
        (adapted_network, "CLIPSeg has adapters already"),
    ],
)
def test_network_that_cannot_be_adapted_is_an_error(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_lora(make(), rank=2)


@pytest.mark.parametrize(
    "arguments", [{"rank": -1}, {"rank": 1.5}, {"rank": 2, "dropout": 1.0}, {"rank": 2, "alpha": 0}]
)
def test_numbers_out_of_range_are_an_error(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="set lora_rank, lora_alpha and lora_dropout"):
        add_lora(create("cris"), **arguments)


def test_attention_that_cannot_be_split_is_an_error() -> None:
    with pytest.raises(ValueError, match="must be batch first, without dropout and of one width"):
        SplitAttention(nn.MultiheadAttention(4, 2))
