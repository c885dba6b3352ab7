"""Provide the Ignite handlers that all trainings share: seeds, resuming, schedules, weights, log, pictures.

In a distributed training none of them writes on ranks above 0.
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

_OFF = ("0.0", "0", "False", "None")  # values of a setting that is switched off


class Stateful(Protocol):
    """A Stateful object can be saved and restored."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def is_main_process() -> bool:
    """Return whether this process writes: true without distributed training, and on rank 0 of one."""
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not is_distributed or torch.distributed.get_rank() == 0


def num_processes() -> int:
    """Return the number of processes of a distributed training; 1 without one."""
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_distributed else 1


def start_distributed(backend: str, device: str | torch.device) -> None:
    """Join the process group that torchrun describes; from then on ranks above 0 show only warnings.

    Args:
        backend: nccl on GPUs, gloo on CPUs.
        device: device of this process; a GPU becomes the current one, which NCCL and ignite's metrics use.
    Raises:
        ValueError: if this process was not started by torchrun.
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
    """Wrap a network for distributed training; batch norms that learn share their statistics on GPUs (gloo cannot)."""
    parameter = next(network.parameters())
    if parameter.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    # not every parameter takes part in every step: text features may be cached, and parts may be frozen
    return nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)


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
            f"handlers.py: set max_epochs or max_iterations to at least 1, got {max_epochs} and {max_iterations}"
        )
    return number if max_epochs is not None else math.ceil(number / max(len(data_loader), 1))


class KeepInputs:
    """Refuse a training whose files would replace its inputs; list it first among the trainer's handlers.

    Args:
        inputs: files, folders and items of data sets (see `refuse_overwriting`), such as init_checkpoint.
        output_dir: folder of the training.
        names: names of the files that the training writes there.
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
    """Seed all random generators at the start of each epoch with a function of (seed, epoch, rank).

    An epoch then depends only on the weights before it, and a resumed training gives the same numbers. In a distributed
    training each rank draws different noise, while the order of the data, from the `DistributedSampler`, is the same on all ranks.

    Args:
        seed: seed of the run.
        dataset: dataset whose `transform` is seeded too, and whose `set_epoch` is called if it exists; None: no dataset.
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
    """Continue a killed training as if it had never been interrupted.

    At the end of each epoch the states are saved to `path`, whole or not at all; if `path` exists at the start, they are restored
    and the next epoch follows. When the training ends, `path` is deleted, so running a finished training again trains anew and
    overwrites. List it last among the trainer's handlers: it must save after the validation. In a distributed training rank 0
    saves and all ranks restore, so `path` must be on a disk that they share.

    Args:
        path: checkpoint of the running training.
        objects: objects with a state: network, optimiser, schedule, average, early stopping, best weights.
        settings: settings that change the result; a checkpoint with other settings, or of another number of processes, is refused.
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
            ValueError: if the checkpoint belongs to a training with other settings, or only some of the processes see it.
        """
        if is_main_process():
            _remove_leftovers(self.path)
        if not self._is_there():
            return
        checkpoint = self._read()
        old, new = checkpoint["settings"], self._all_settings()
        was_off = {
            key: new[key] for key in new.keys() - old.keys() if new[key] in _OFF
        }  # the checkpoint is older than these settings
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
        if checkpoint["is_stopped"]:  # killed after the early stop, before the training ended
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
        if getattr(engine, "scaler", None) is not None:  # scales the loss for float16
            checkpoint["scaler"] = engine.scaler.state_dict()  # type: ignore[attr-defined]
        with atomic_path(self.path) as temporary:
            torch.save(checkpoint, temporary)

    def delete(self, engine: Engine) -> None:
        """Delete the checkpoint of a complete training."""
        if is_main_process():
            self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        """Read what `save` wrote."""
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
        """Return whether there is a checkpoint; all processes must agree, or they would wait for one another for ever."""
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
            engine.add_event_handler(Events.STARTED(once=1), lambda engine, path=path: _remove_leftovers(path))
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


class HoldFolder:
    """Lock a training's folder: a second training there is refused while the first runs, however it was started.

    List it first among the trainer's handlers, so that no file of another training is touched. In a distributed training rank 0 holds
    the folder.

    Args:
        path: the folder, such as output_dir.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._take)

    def _take(self, engine: Engine) -> None:
        """Lock the folder.

        Raises:
            ValueError: if another process is working there.
        """
        check_temporary_folder()  # MONAI's own command does not check it, and its workers would wait for ever
        if is_main_process():
            give_back = take_folder(self.path, waits=False)
            # released after the other handlers have ended; after an error the process keeps it until it ends or trains there again
            engine.add_event_handler(Events.COMPLETED, lambda engine: give_back())


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


class PictureGrid:
    """Write a picture to TensorBoard for the first batch of every `interval`-th validation or training epoch.

    Subclasses define the picture: `picture(engine)` -> (3, H, W) in [0, 1], or None for no picture.

    Args:
        writer: writer of TensorBoard.
        tag: name of the picture.
        interval: see above.
        num_images: largest number of images in one picture.
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
    """Show image, experts' masks and predicted masks in rows, the first images of the batch in columns.

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
    """Draw masks (S, H, W) in the structures' colours on a grey image (1, H, W) in [0, 1], and return (3, H, W)."""
    picture = grey.expand(3, -1, -1).clone()
    for structure, mask in zip(STRUCTURES, masks.detach().cpu() > 0.5):
        colour = torch.tensor(structure.colour)[:, None, None] / 255
        picture = torch.where(mask, (1 - opacity) * picture + opacity * colour, picture)
    return picture


def _remove_leftovers(path: Path) -> None:
    """Remove the files beside `path` that a process left when it was killed while writing (see `files.atomic_path`)."""
    for leftover in path.parent.glob(f".*-*.{path.name}"):
        leftover.unlink(missing_ok=True)
