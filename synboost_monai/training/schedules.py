"""Decide how many steps a training takes and how large they are: epochs, learning rate, gradient, early stop."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from monai.engines import IterationEvents
from monai.handlers import stopping_fn_from_metric
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau


def num_epochs(data_loader: Sized, max_epochs: int | None = None, max_iterations: int | None = None) -> int:
    """Return the number of epochs: `max_epochs` if given, else the whole epochs needed for `max_iterations`.

    Args:
        data_loader: data loader of the training; its length is the number of iterations in an epoch.
        max_epochs: see above.
        max_iterations: see above.
    Raises:
        ValueError: if neither is given or the one that is used is below 1.
    """
    number = max_iterations if max_epochs is None else max_epochs
    if number is None or number < 1:
        raise ValueError(
            f"schedules.py: set max_epochs or max_iterations to at least 1, got {max_epochs} and {max_iterations}"
        )
    return number if max_epochs is not None else math.ceil(number / max(len(data_loader), 1))


class LearningRateSchedule:
    """Change the learning rate; attach it to the trainer.

    Args:
        schedule: "plateau": times `factor` whenever `metric` of the validator has not fallen for `patience` validations (published);
            "cosine": `warm_up_steps` of linear rise, then a cosine to 0 at the trainer's last step; "linear": straight to 0 at
            the trainer's last step (published for the diffusion model); "constant".
        optimizer: optimiser whose rates change, each group in proportion.
        validator: needed for "plateau".
    Raises:
        ValueError: if the schedule is unknown, or "plateau" has no validator.
    """

    SCHEDULES = ("plateau", "cosine", "linear", "constant")

    def __init__(
        self,
        schedule: str,
        optimizer: Optimizer,
        validator: Engine | None = None,
        metric: str = "val_loss",
        factor: float = 0.1,
        patience: int = 5,
        warm_up_steps: int = 50,
    ) -> None:
        if schedule not in self.SCHEDULES:
            raise ValueError(
                f"schedules.py: learning-rate schedule must be one of {', '.join(self.SCHEDULES)}, got {schedule!r}; set lr_schedule"
            )
        if schedule == "plateau" and validator is None:
            raise ValueError("schedules.py: the schedule 'plateau' needs a validator")
        self.schedule = schedule
        self.optimizer = optimizer
        self.validator = validator
        self.metric = metric
        self.factor, self.patience, self.warm_up_steps = factor, patience, warm_up_steps
        self.scheduler: LRScheduler | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._note_rate)
        if self.schedule == "plateau":
            assert self.validator is not None
            self.scheduler = ReduceLROnPlateau(self.optimizer, factor=self.factor, patience=self.patience)
            self.validator.add_event_handler(Events.COMPLETED, self._step_plateau)
        elif self.schedule != "constant":
            num_steps = int(engine.state.max_epochs) * int(engine.state.epoch_length)

            def factor_at(step: int) -> float:
                if self.schedule == "linear":  # published: the rate lags a step behind
                    return max(0.0, 1 - max(step - 1, 0) / num_steps)
                warm_up = min(1.0, (step + 1) / max(self.warm_up_steps, 1))
                return warm_up * 0.5 * (1 + math.cos(math.pi * min(step / num_steps, 1.0)))

            self.scheduler = LambdaLR(self.optimizer, factor_at)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)

    def _step_plateau(self, engine: Engine) -> None:
        self.scheduler.step(engine.state.metrics[self.metric])  # type: ignore[union-attr, arg-type]

    def _step(self, engine: Engine) -> None:
        self.scheduler.step()  # type: ignore[union-attr]

    def _note_rate(self, engine: Engine) -> None:
        """Record the rate in the engine's state for TensorBoard (`state_attributes: [learning_rate]`)."""
        engine.state.learning_rate = self.optimizer.param_groups[0]["lr"]

    def state_dict(self) -> dict[str, Any]:
        return {} if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state_dict)


class GradientClip:
    """Limit the gradient's norm before each step; 0: no limit. Gradients scaled for float16 are unscaled first."""

    def __init__(self, network: nn.Module, max_norm: float) -> None:
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        if self.max_norm > 0:
            engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        scaler = getattr(engine, "scaler", None)
        if scaler is not None:
            scaler.unscale_(engine.optimizer)  # type: ignore[attr-defined]
        nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)


class EarlyStop:
    """End a training once a validator's metric has not risen by `min_delta` for `patience` validations.

    Attach it to the trainer. MONAI's handler is attached to the validator and takes the trainer: in a config the two would refer to
    each other.
    """

    def __init__(self, validator: Engine, key_metric: str, patience: int = 20, min_delta: float = 1e-4) -> None:
        self.validator = validator
        self.key_metric = key_metric
        self.patience, self.min_delta = patience, min_delta
        self._stopper: EarlyStopping | None = None

    def attach(self, engine: Engine) -> None:
        score = stopping_fn_from_metric(self.key_metric)
        # by position: ignite renamed min_delta to threshold
        self._stopper = EarlyStopping(self.patience, score, engine, self.min_delta)
        self.validator.add_event_handler(Events.COMPLETED, self._stopper)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._stopper is None else dict(self._stopper.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._stopper is not None:
            self._stopper.load_state_dict(state_dict)


class HandlerGroup:
    """Attach handlers that are defined elsewhere in a config, so that others can refer to them by name.

    (MONAI's property check accepts only dictionaries in a list of handlers, not references.)
    """

    def __init__(self, handlers: Sequence[Any]) -> None:
        self.handlers = list(handlers)

    def attach(self, engine: Engine) -> None:
        for handler in self.handlers:
            handler.attach(engine)
