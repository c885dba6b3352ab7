"""Write a network's weights during a training, with the card that describes them."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from synboost_monai.distributed import is_main_process
from synboost_monai.files import remove_leftovers
from synboost_monai.model_card import ModelCard, card_path, write_model
from synboost_monai.networks.lora import merged_state_dict

logger = logging.getLogger(__name__)


class WriteWeights:
    """Write a network's weights and model.json, which describes them.

    The weights are a flat state dict that holds only tensors, with low-rank adapters merged.

    Args:
        network: network to write (for an average, the averaged copy).
        path: file of the weights, such as models/model.pt.
        key_metric: metric of the validator to which this is attached; the weights are written whenever it is the best so far. None:
            attached to the trainer; they are written after every `interval` epochs and at the end, each time over the last ones.
        interval: see above.
        card: card of the training (`model_card.new_card`), to which the measured metrics are added. None: no model.json.
    """

    def __init__(
        self,
        network: nn.Module,
        path: str | os.PathLike[str],
        key_metric: str | None = None,
        interval: int = 1,
        card: ModelCard | None = None,
    ) -> None:
        self.network = network
        self.card = card
        self.path = Path(path)
        self.key_metric = key_metric
        self.interval = interval
        self.best = -math.inf

    def attach(self, engine: Engine) -> None:
        for path in (self.path, card_path(self.path)):
            engine.add_event_handler(Events.STARTED(once=1), lambda engine, path=path: remove_leftovers(path))
        if self.key_metric is not None:
            engine.add_event_handler(Events.COMPLETED, self.write_best)
        else:
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.write)
            engine.add_event_handler(Events.COMPLETED, self.write)

    def write_best(self, engine: Engine) -> None:
        """Write if the key metric improved; NaN counts as the worst value, but the first weights are always written."""
        value = float(engine.state.metrics[self.key_metric])
        if value > self.best or (self.best == -math.inf and math.isnan(value)):
            self.best = value if math.isfinite(value) else self.best
            logger.info(f"{self.path}: best {self.key_metric} so far is {value:.4f} (epoch {engine.state.epoch})")
            self.write(engine)

    def write(self, engine: Engine) -> None:
        """Write the current weights."""
        if is_main_process():
            metrics = {name: value for name, value in engine.state.metrics.items() if isinstance(value, float)}
            card = self.card and replace(self.card, measured={"epoch": engine.state.epoch, **metrics})
            write_model(merged_state_dict(self.network), self.path, card)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
