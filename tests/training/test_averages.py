"""Test the moving average of the weights: worked by hand, warm-up, resuming."""

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from synboost_monai.training.averages import ExponentialMovingAverage


def scalar_network(value: float) -> nn.Linear:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, value)
    return network


def step_to(network: nn.Linear, value: float) -> None:
    nn.init.constant_(network.weight, value)


def value_of(ema: ExponentialMovingAverage) -> float:
    return ema.network.weight.item()


def test_constant_decay_starts_from_the_first_weights() -> None:
    """The published rule gives 0.9 * 1 + 0.1 * 2 = 1.1, then 0.9 * 1.1 + 0.1 * 3 = 1.29."""
    network = scalar_network(1.0)
    ema = ExponentialMovingAverage(network, decay=0.9, warm_up=False)
    assert value_of(ema) == 1.0
    for weight, expected in [(2.0, 1.1), (3.0, 1.29)]:
        step_to(network, weight)
        ema()
        assert value_of(ema) == pytest.approx(expected)


def test_warm_up_forgets_the_start() -> None:
    """The decays are 1/10, 2/11, 3/12 ..., until they reach `decay`."""
    network = scalar_network(0.0)
    ema = ExponentialMovingAverage(network, decay=0.2)
    assert [ema.current_decay(n) for n in range(3)] == pytest.approx([1 / 10, 2 / 11, 0.2])
    step_to(network, 1.0)
    ema()
    assert value_of(ema) == pytest.approx(0.9)
    ema()
    assert value_of(ema) == pytest.approx(0.9 * 2 / 11 + 9 / 11)


def test_default_decay_is_published() -> None:
    assert ExponentialMovingAverage(scalar_network(0.0)).decay == 0.9999


def test_average_is_updated_after_each_iteration_and_is_a_copy() -> None:
    network = scalar_network(0.0)
    ema = ExponentialMovingAverage(network, decay=0.5, warm_up=False)
    engine = Engine(lambda engine, value: step_to(network, value))
    ema.attach(engine)
    engine.run([1.0, 1.0], max_epochs=1)
    assert value_of(ema) == 0.75
    assert network.weight.item() == 1.0 and network.weight.requires_grad
    assert not ema.network.training and not ema.network.weight.requires_grad


def test_resumed_average_goes_on_as_if_never_stopped() -> None:
    network = scalar_network(0.0)
    whole, first = ExponentialMovingAverage(network, 0.99), ExponentialMovingAverage(network, 0.99)
    for weight in (1.0, 2.0):
        step_to(network, weight)
        whole()
        first()
    second = ExponentialMovingAverage(network, 0.99)
    second.load_state_dict(first.state_dict())
    for weight in (3.0, 4.0):
        step_to(network, weight)
        whole()
        second()
    assert value_of(second) == value_of(whole)
    assert second.state_dict()["num_updates"] == 4


def test_buffers_follow_the_network() -> None:
    network = nn.BatchNorm1d(1)
    ema = ExponentialMovingAverage(network, 0.9)
    network.running_mean.fill_(5.0)
    ema()
    assert torch.equal(ema.network.running_mean, network.running_mean)


def test_impossible_decay_is_refused() -> None:
    with pytest.raises(ValueError, match="decay must be in"):
        ExponentialMovingAverage(scalar_network(0.0), decay=1.0)
