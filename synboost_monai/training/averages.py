"""Keep an exponential moving average of a network's weights, as an ignite handler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class ExponentialMovingAverage:
    """Keep an average of the weights; the averaged network is the one that is saved and sampled.

    It is updated after each iteration: w_avg <- d w_avg + (1 - d) w, starting from the weights when the training starts (also those
    of a checkpoint that an earlier handler loads). torch's `AveragedModel` computes it. That class copies the
    weights at its first update instead of averaging (as does diffusers' EMAModel), so its counter starts at 1 here: that
    is the published average.

    Args:
        network: the network in training, which may be wrapped in DistributedDataParallel.
        decay: d; 0.9999 is published, for hundreds of thousands of iterations.
        warm_up: with n updates done, use min(d, (1 + n) / (10 + n)), so that short trainings forget the random start.
            False: d from the first iteration, as published.
    """

    def __init__(self, network: nn.Module, decay: float = 0.9999, warm_up: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"averages.py: decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.warm_up = warm_up
        self._source = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
        self._average = AveragedModel(self._source, multi_avg_fn=self._update)
        self._average.n_averaged.fill_(1)
        self._average.requires_grad_(False)
        self._average.eval()

    @property
    def network(self) -> nn.Module:
        """Return the averaged copy, in eval mode."""
        return self._average.module

    def attach(self, engine: Engine) -> None:
        """Start from the network's weights when `engine` starts; update after every iteration."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine | None = None) -> None:
        """Update the average once."""
        self._average.update_parameters(self._source)

    def _start(self, engine: Engine | None = None) -> None:
        """Copy the network's weights, unless the average was already updated."""
        if int(self._average.n_averaged) == 1:
            self.network.load_state_dict(self._source.state_dict())

    def current_decay(self, num_updates: int) -> float:
        """Return the decay of the update that follows `num_updates` others."""
        return min(self.decay, (1 + num_updates) / (10 + num_updates)) if self.warm_up else self.decay

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights and the number of updates."""
        return {"network": self.network.state_dict(), "num_updates": int(self._average.n_averaged) - 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict()` returned."""
        self.network.load_state_dict(state["network"])
        self._average.n_averaged.fill_(state["num_updates"] + 1)

    def _update(self, averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        decay = self.current_decay(int(num_averaged) - 1)
        torch._foreach_lerp_(list(averaged), list(current), 1 - decay)
