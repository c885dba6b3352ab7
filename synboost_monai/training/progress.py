"""Show how far a training is: a progress bar, a log file and TensorBoard. Only rank 0 of a distributed training writes."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from ignite.engine import Engine, Events

from synboost_monai.distributed import is_main_process
from synboost_monai.paths import append_own


class Progress:
    """Show one progress bar on stderr for all epochs of a trainer, or all batches of an evaluator.

    Args:
        description: name of the activity, such as "train CRIS".
        validator: validator whose metrics are shown beside the loss.
    """

    def __init__(self, description: str, validator: Engine | None = None) -> None:
        self.description = description
        self.validator = validator
        self.bar: Any = None
        self.loss = math.nan

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._close_and_raise)

    def _open(self, engine: Engine) -> None:
        if (
            self.bar is None and is_main_process()
        ):  # at the first epoch, since resuming sets the iteration when the run starts
            from tqdm import tqdm

            num_steps = int(engine.state.max_epochs) * int(engine.state.epoch_length)
            is_screen = sys.stderr.isatty()
            self.bar = tqdm(
                total=num_steps,
                initial=engine.state.iteration,
                desc=self.description,
                unit="batch",
                dynamic_ncols=is_screen,
                mininterval=0.5 if is_screen else 20.0,
            )

    def _advance(self, engine: Engine) -> None:
        if self.bar is None:
            return
        output = engine.state.output
        first = output[0] if isinstance(output, list) and output else output
        if isinstance(first, Mapping) and "loss" in first:
            loss = float(first["loss"])
            self.loss = loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * loss
        words = {} if math.isnan(self.loss) else {"epoch": engine.state.epoch, "loss": f"{self.loss:.4f}"}
        if self.validator is not None:
            words |= {
                name: f"{value:.4f}" for name, value in self.validator.state.metrics.items() if isinstance(value, float)
            }
        self.bar.set_postfix(words, refresh=False)
        self.bar.update()

    def _close(self, engine: Engine) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _close_and_raise(self, engine: Engine, error: BaseException) -> None:
        self._close(engine)
        raise error


class LogToFile:
    """Append the log of a run to a text file, which is created only when the run starts.

    Args:
        path: text file, such as output_dir/log.txt.
    """

    FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.handler: logging.StreamHandler[TextIO] | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._close_and_raise)

    def _open(self, engine: Engine) -> None:
        if is_main_process():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.handler = logging.StreamHandler(append_own(self.path))
            self.handler.setFormatter(logging.Formatter(self.FORMAT))
            root = logging.getLogger()
            root.addHandler(self.handler)
            if root.level > logging.INFO:
                root.setLevel(logging.INFO)

    def _close(self, engine: Engine) -> None:
        if self.handler is not None:
            logging.getLogger().removeHandler(self.handler)
            self.handler.stream.close()
            self.handler.close()
            self.handler = None

    def _close_and_raise(self, engine: Engine, error: BaseException) -> None:
        self._close(engine)
        raise error


class LazySummaryWriter:
    """A LazySummaryWriter is a TensorBoard writer that makes its folder with the first entry, so that a refused run leaves nothing.

    The handlers of one run share it (`summary_writer`). On ranks above 0 it accepts all calls and writes nothing.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        self.log_dir = str(log_dir)
        self._writer: Any = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not is_main_process():
            return lambda *args, **kwargs: None
        if self._writer is None:
            if name in ("flush", "close"):
                return lambda: None
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.log_dir)
        return getattr(self._writer, name)
