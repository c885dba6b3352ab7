"""Ignite handlers that every training of the project shares: seeds, resuming, schedules, weights, log, pictures.

All of them are silent on the ranks above 0 of a distributed training, as far as they write.
"""

from __future__ import annotations

import logging
import math
import os
import random
import sys
from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from monai.engines import IterationEvents
from monai.handlers import stopping_fn_from_metric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from synboost_monai.files import atomic_path
from synboost_monai.model_card import ModelCard, card_path, write_model
from synboost_monai.networks.checkpoints import read_checkpoint
from synboost_monai.networks.lora import merged_state_dict
from synboost_monai.paths import append_own, refuse_overwriting
from synboost_monai.processes import check_temporary_folder, take_folder
from synboost_monai.structures import STRUCTURES

logger = logging.getLogger(__name__)

_OFF = ("0.0", "0", "False", "None")  # values of a setting that is not used


class Stateful(Protocol):
    """Whatever can be saved and restored."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def is_main_process() -> bool:
    """Whether this process writes: true without distributed training, and on rank 0 of one."""
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not is_distributed or torch.distributed.get_rank() == 0


def num_processes() -> int:
    """Processes of a distributed training; 1 without one."""
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_distributed else 1


def start_distributed(backend: str, device: str | torch.device) -> None:
    """Join the process group that torchrun describes; from then on ranks above 0 show warnings alone.

    Args:
        backend: nccl on GPUs, gloo on CPUs.
        device: of this process; a GPU becomes the current one, which NCCL and ignite's metrics go by.
    Raises:
        ValueError: if torchrun has not started this process.
    """
    if "RANK" not in os.environ:
        raise ValueError(
            "handlers.py: a multi_gpu config runs under torchrun, which this process does not; start it with "
            "`torchrun --nproc_per_node=N -m ...`, or leave the multi_gpu config out"
        )
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(backend=backend)
    if not is_main_process():
        for handler in logging.getLogger().handlers:
            handler.setLevel(logging.WARNING)


def distribute(network: nn.Module) -> nn.parallel.DistributedDataParallel:
    """The network as one of a distributed training's; batch norms that learn share their statistics on GPUs (gloo cannot)."""
    parameter = next(network.parameters())
    if parameter.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    # a prompt that the text encoder has not seen, frozen parts: not every parameter takes part in every step
    return nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)


def num_epochs(data_loader: Sized, max_epochs: int | None = None, max_iterations: int | None = None) -> int:
    """Epochs of a training: `max_epochs` if given, else as many whole ones as make `max_iterations`.

    Args:
        data_loader: of the training; its length is the iterations of an epoch.
        max_epochs: see above.
        max_iterations: see above.
    Raises:
        ValueError: if neither is given or the one that counts is below 1.
    """
    number = max_iterations if max_epochs is None else max_epochs
    if number is None or number < 1:
        raise ValueError(
            f"handlers.py: set max_epochs or max_iterations to at least 1, got {max_epochs} and {max_iterations}"
        )
    return number if max_epochs is not None else math.ceil(number / max(len(data_loader), 1))


class KeepInputs:
    """Refuses a training whose files would replace what it reads; name it first among the trainer's handlers.

    Args:
        inputs: files, folders and items of data sets (see `refuse_overwriting`), such as init_checkpoint.
        output_dir: of the training.
        names: of the files that it writes there.
    """

    def __init__(
        self,
        inputs: Sequence[Any],
        output_dir: str | os.PathLike[str],
        names: Sequence[str] = ("model.pt", "model.json", "history.csv", "log.txt", "resume.ckpt"),
    ) -> None:
        self.inputs = inputs
        self.paths = [Path(output_dir, name) for name in names]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        refuse_overwriting(self.paths, self.inputs)


class EpochSeed:
    """Seeds everything random at the start of each epoch with a function of (seed, epoch, rank).

    So an epoch depends on nothing before it but the weights, and a resumed training gives the same numbers. In a distributed
    training each rank draws other noise, while the order of the data is that of the `DistributedSampler`, alike on all of them.

    Args:
        seed: of the run.
        dataset: its `transform` is seeded too, and it is told the epoch if it has `set_epoch`; None for none.
    """

    def __init__(self, seed: int, dataset: Any = None) -> None:
        self.seed = int(seed)
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if is_distributed else 0
        entropy = [self.seed % 2**63, int(engine.state.epoch), rank]
        for_torch, for_numpy, for_transforms = (int(s) for s in np.random.SeedSequence(entropy).generate_state(3))
        torch.manual_seed(for_torch)
        np.random.seed(for_numpy)
        random.seed(for_torch)
        transform: Any = getattr(self.dataset, "transform", None)
        if hasattr(transform, "set_random_state"):
            transform.set_random_state(seed=for_transforms)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(int(engine.state.epoch))


class Resume:
    """Continues a training that was killed, as if it had not been.

    At the end of each epoch the states are saved to `path`, whole or not at all; when `path` exists at the start they are restored
    and the next epoch follows. When the training ends, `path` is deleted, so calling a finished run again trains anew and
    overwrites. Name it last among the trainer's handlers: it must save after the validation. In a distributed training rank 0
    saves and all of them restore, so `path` must be on a disk that they share.

    Args:
        path: checkpoint of the running training.
        objects: what has a state: network, optimiser, schedule, average, early stopping, best weights.
        settings: what the numbers depend on; a checkpoint with other settings, or of another number of processes, is refused.
        interval: epochs between two saves.
        is_enabled: False neither saves nor restores.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        objects: Mapping[str, Stateful],
        settings: Mapping[str, Any] | None = None,
        interval: int = 1,
        is_enabled: bool = True,
    ) -> None:
        self.path = Path(path)
        self.objects = dict(objects)
        self.settings = {key: str(value) for key, value in (settings or {}).items()}
        self.interval = interval
        self.is_enabled = is_enabled

    def attach(self, engine: Engine) -> None:
        if self.is_enabled:
            engine.add_event_handler(Events.STARTED, self.restore)
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.save)
            engine.add_event_handler(Events.COMPLETED, self.delete)

    def restore(self, engine: Engine) -> None:
        """Restore the states, if there are any.

        Raises:
            ValueError: if the checkpoint is of a training with other settings, or only some of the processes see it.
        """
        if is_main_process():
            _remove_leftovers(self.path)
        if not self._is_there():
            return
        checkpoint = self._read()
        old, new = checkpoint["settings"], self._all_settings()
        was_off = {
            key: new[key] for key in new.keys() - old.keys() if new[key] in _OFF
        }  # older than the setting itself
        old = {**old, **was_off}
        changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if changed or set(checkpoint["objects"]) != set(self.objects):
            what = ", ".join(f"{key} {old.get(key)} -> {new.get(key)}" for key in changed) or "other objects"
            raise ValueError(
                f"{self.path}: an unfinished training with other settings is there ({what}); "
                "delete this file to train anew, or choose another output_dir"
            )
        for name, state in checkpoint["objects"].items():
            self.objects[name].load_state_dict(state)
        engine.state.epoch, engine.state.iteration = checkpoint["epoch"], checkpoint["iteration"]
        logger.info(f"{self.path}: training continues after epoch {checkpoint['epoch']}")
        if getattr(engine, "scaler", None) is not None and "scaler" in checkpoint:
            engine.scaler.load_state_dict(checkpoint["scaler"])  # type: ignore[attr-defined]
        if checkpoint["is_stopped"]:  # killed between the early stop and its end
            engine.terminate()

    def save(self, engine: Engine) -> None:
        """Save the states."""
        if not is_main_process():
            return
        checkpoint = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "is_stopped": bool(engine.should_terminate),
            "settings": self._all_settings(),
            "objects": {name: thing.state_dict() for name, thing in self.objects.items()},
        }
        if getattr(engine, "scaler", None) is not None:  # of the loss, in float16
            checkpoint["scaler"] = engine.scaler.state_dict()  # type: ignore[attr-defined]
        with atomic_path(self.path) as temporary:
            torch.save(checkpoint, temporary)

    def delete(self, engine: Engine) -> None:
        """The training is complete: nothing is left to resume."""
        if is_main_process():
            self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        """What `save` wrote."""
        try:
            checkpoint = read_checkpoint(self.path)
        except ValueError as error:
            raise ValueError(f"{error}; delete this file to train anew") from None
        if not isinstance(checkpoint, dict) or not {"settings", "objects", "epoch", "iteration"} <= checkpoint.keys():
            raise ValueError(f"{self.path}: is no unfinished training; delete this file to train anew")
        return checkpoint

    def _all_settings(self) -> dict[str, str]:
        return {**self.settings, "num_processes": str(num_processes())}

    def _is_there(self) -> bool:
        """Whether there is a checkpoint; all processes must agree, or they would wait for one another for ever."""
        is_there = self.path.is_file()
        if num_processes() == 1:
            return is_there
        answers: list[Any] = [None] * num_processes()
        torch.distributed.all_gather_object(answers, is_there)
        if len(set(answers)) > 1:
            ranks = ", ".join(str(rank) for rank, answer in enumerate(answers) if not answer)
            raise ValueError(
                f"{self.path}: the processes of rank {ranks} do not see this file, the others do; "
                "put output_dir on a disk that all machines share"
            )
        return is_there


class WriteWeights:
    """Writes a network's weights, tensors alone in one flat state dict, low-rank adapters merged, and model.json, which says what they are.

    Args:
        network: what to write (for an average, the averaged copy).
        path: such as models/model.pt.
        key_metric: attached to a validator: written whenever this metric is the best so far. None: written after each `interval`
            epochs of the trainer, the last one stays.
        interval: see above.
        card: of the training (`model_card.new_card`); each writing adds what was measured. None: no model.json.
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
            engine.add_event_handler(Events.STARTED(once=1), lambda engine, path=path: _remove_leftovers(path))
        if self.key_metric is not None:
            engine.add_event_handler(Events.COMPLETED, self.write_best)
        else:
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.write)
            engine.add_event_handler(Events.COMPLETED, self.write)

    def write_best(self, engine: Engine) -> None:
        """Write if the key metric improved; undefined (NaN) counts as the worst, but something is always written."""
        value = float(engine.state.metrics[self.key_metric])
        if value > self.best or (self.best == -math.inf and math.isnan(value)):
            self.best = value if math.isfinite(value) else self.best
            logger.info(f"{self.path}: best {self.key_metric} so far is {value:.4f} (epoch {engine.state.epoch})")
            self.write(engine)

    def write(self, engine: Engine) -> None:
        """Write the weights as they are now."""
        if is_main_process():
            metrics = {name: value for name, value in engine.state.metrics.items() if isinstance(value, float)}
            card = self.card and replace(self.card, measured={"epoch": engine.state.epoch, **metrics})
            write_model(merged_state_dict(self.network), self.path, card)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


class LearningRateSchedule:
    """How the learning rate changes; attached to the trainer.

    Args:
        schedule: "plateau": times `factor` whenever `metric` of the validator has not fallen for `patience` validations (published);
            "cosine": `warm_up_steps` of linear rise, then a cosine to 0 at the trainer's last step; "linear": straight to 0 at
            the trainer's last step (published for the diffusion model); "constant".
        optimizer: whose rates change, each group in proportion.
        validator: needed for "plateau".
    Raises:
        ValueError: if there is no such schedule, or "plateau" has no validator.
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
                f"handlers.py: learning-rate schedule must be one of {', '.join(self.SCHEDULES)}, got {schedule!r}; set lr_schedule"
            )
        if schedule == "plateau" and validator is None:
            raise ValueError("handlers.py: the schedule 'plateau' needs a validator")
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
        """For TensorBoard: `state_attributes: [learning_rate]`."""
        engine.state.learning_rate = self.optimizer.param_groups[0]["lr"]

    def state_dict(self) -> dict[str, Any]:
        return {} if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state_dict)


class GradientClip:
    """Scales the gradient down to a largest norm before each step; 0 leaves it as it is. A loss scaled for float16 is unscaled first."""

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
    """Ends a training when a metric of its validator has not risen by `min_delta` for `patience` validations; attached to the trainer.

    MONAI's handler of this name is attached to the validator, given the trainer: in a config the two would refer to each other.
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
    """Attaches handlers that are defined elsewhere in a config, so that others can refer to them by name.

    (MONAI's property check takes dictionaries alone in a list of handlers, no references.)
    """

    def __init__(self, handlers: Sequence[Any]) -> None:
        self.handlers = list(handlers)

    def attach(self, engine: Engine) -> None:
        for handler in self.handlers:
            handler.attach(engine)


class Progress:
    """One progress bar on stderr for all epochs of a trainer, or all batches of an evaluator.

    Args:
        description: what is going on, such as "train CRIS".
        validator: its metrics are shown beside the loss.
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


class HoldFolder:
    """Keeps a training's folder for this training: a second one is refused while it runs, however it was started.

    Name it first among the trainer's handlers: nothing of another training may be touched. In a distributed training rank 0 holds the
    folder.

    Args:
        path: the folder, such as output_dir.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._take)

    def _take(self, engine: Engine) -> None:
        """Take the folder.

        Raises:
            ValueError: if another process is at work there.
        """
        check_temporary_folder()  # MONAI's own command has not, and its workers would wait for ever
        if is_main_process():
            give_back = take_folder(self.path, waits=False)
            # after all that the other handlers do in the end; after an error the process keeps it until it ends or trains there again
            engine.add_event_handler(Events.COMPLETED, lambda engine: give_back())


class LogToFile:
    """Adds what is logged during a run to a text file; the file appears when the run starts, not before.

    Args:
        path: such as output_dir/log.txt.
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
    """A TensorBoard SummaryWriter that makes its folder with the first entry, so that a run refused for bad input leaves nothing.

    Handlers of one run share it (`summary_writer`). On ranks above 0 it takes everything and writes nothing.
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


class PictureGrid:
    """Writes a picture to TensorBoard for the first batch of every `interval`-th run of a validator (or epoch of a trainer).

    Subclasses say what it shows: `picture(engine)` -> (3, H, W) in [0, 1], or None for nothing.

    Args:
        writer: TensorBoard's.
        tag: name of the picture.
        interval: see above.
        num_images: most images in one picture.
    """

    def __init__(self, writer: Any, tag: str = "pictures", interval: int = 1, num_images: int = 4) -> None:
        self.writer = writer
        self.tag = tag
        self.interval = interval
        self.num_images = num_images
        self._picture: Tensor | None = None
        self._num_runs = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._draw)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def picture(self, engine: Engine) -> Tensor | None:
        raise NotImplementedError

    def _forget(self, engine: Engine) -> None:
        self._picture = None
        self._is_due = self._num_runs % self.interval == 0
        self._num_runs += 1

    def _draw(self, engine: Engine) -> None:
        if self._picture is None and self._is_due and is_main_process():
            self._picture = self.picture(engine)

    def _write(self, engine: Engine) -> None:
        if self._picture is not None:
            self.writer.add_image(self.tag, self._picture, global_step=engine.state.epoch)


class SegmentationPictures(PictureGrid):
    """Rows: image, the experts' masks on it, the predicted masks on it; columns: the first images of the batch.

    The validator's output must be decollated, with `image`, `label` (S, N, N) and `pred_masks` (S, N, N).
    """

    def picture(self, engine: Engine) -> Tensor | None:
        columns = []
        for output in engine.state.output[: self.num_images]:
            grey = output["image"].detach().float().cpu().mean(dim=0, keepdim=True)
            grey = (grey - grey.min()) / (grey.max() - grey.min()).clamp_min(1e-6)
            rows = [grey.expand(3, -1, -1), overlay(grey, output["label"]), overlay(grey, output["pred_masks"])]
            columns.append(torch.cat(rows, dim=1))
        return torch.cat(columns, dim=2)


def overlay(grey: Tensor, masks: Tensor, opacity: float = 0.45) -> Tensor:
    """Masks (S, H, W) in the structures' colours on a grey image (1, H, W) in [0, 1] -> (3, H, W)."""
    picture = grey.expand(3, -1, -1).clone()
    for structure, mask in zip(STRUCTURES, masks.detach().cpu() > 0.5):
        colour = torch.tensor(structure.colour)[:, None, None] / 255
        picture = torch.where(mask, (1 - opacity) * picture + opacity * colour, picture)
    return picture


def _remove_leftovers(path: Path) -> None:
    """Remove what a process that was killed while it wrote `path` left beside it (see `files.atomic_path`)."""
    for leftover in path.parent.glob(f".*-*.{path.name}"):
        leftover.unlink(missing_ok=True)
