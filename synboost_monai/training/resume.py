"""Start a training safely and continue one that was killed: inputs are kept, the folder is held, epochs are seeded."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from ignite.engine import Engine, Events

from synboost_monai.distributed import in_all_processes, is_main_process, num_processes, rank
from synboost_monai.files import atomic_path, remove_leftovers
from synboost_monai.networks.checkpoints import read_checkpoint
from synboost_monai.paths import refuse_overwriting
from synboost_monai.processes import check_temporary_folder, take_folder

logger = logging.getLogger(__name__)

_OFF = ("0.0", "0", "False", "None")  # values of a setting that is switched off


class Stateful(Protocol):
    """A Stateful object can be saved and restored."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


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
        entropy = [self.seed % 2**63, int(engine.state.epoch), rank()]
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
            remove_leftovers(self.path)
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
        answers = in_all_processes(self.path.is_file)
        if len(set(answers)) > 1:
            ranks = ", ".join(str(number) for number, answer in enumerate(answers) if not answer)
            raise ValueError(
                f"{self.path}: the processes of rank {ranks} do not see this file, the others do; "
                "put output_dir on a disk that all machines share"
            )
        return answers[0]
