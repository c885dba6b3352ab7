"""Tell the processes of a run that is shared out between several: their rank, their number, and how a training of several starts.

torchrun starts the processes and tells each of them its rank in environment variables. Those of a training then join a process group; those
of a synthesis only divide the images.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import nn

_T = TypeVar("_T")


def launched_as() -> tuple[int, int]:
    """Return the rank of this process and the number of all, from RANK and WORLD_SIZE as torchrun sets them; (0, 1) without.

    Raises:
        ValueError: if they are not valid numbers.
    """
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise ValueError(
            f"distributed.py: RANK is {rank!r} and WORLD_SIZE {world_size!r}; expected a number from 0 to below WORLD_SIZE, as torchrun "
            "sets them; unset both for one process"
        )
    return int(rank), int(world_size)


def is_launched_first() -> bool:
    """Return whether this process prints for all that torchrun started; true without torchrun."""
    return os.environ.get("RANK", "0") == "0"


def rank() -> int:
    """Return the rank of this process in a distributed training; 0 without one."""
    import torch

    return torch.distributed.get_rank() if _is_started() else 0


def num_processes() -> int:
    """Return the number of processes of a distributed training; 1 without one."""
    import torch

    return torch.distributed.get_world_size() if _is_started() else 1


def is_main_process() -> bool:
    """Return whether this process writes: true without distributed training, and on rank 0 of one."""
    return rank() == 0


def in_all_processes(function: Callable[[], _T]) -> list[_T]:
    """Call a function in every process, and return all results by rank; an error in one process is raised in all."""
    if num_processes() == 1:
        return [function()]
    import torch

    mine: tuple[Any, Exception | None]
    try:
        mine = function(), None
    except Exception as error:
        mine = None, error
    answers: list[Any] = [None] * num_processes()
    torch.distributed.all_gather_object(answers, mine)
    for _, raised in (mine, *answers):
        if raised is not None:
            raise raised
    return [result for result, _ in answers]


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
            "distributed.py: a multi_gpu config runs under torchrun, which this process does not; start it with "
            "`torchrun --nproc_per_node=N -m ...`, or leave the multi_gpu config out"
        )
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(backend=backend)
    if not is_main_process():
        for handler in logging.getLogger().handlers:
            handler.setLevel(logging.WARNING)


def distribute(network: nn.Module) -> nn.parallel.DistributedDataParallel:
    """Wrap a network for distributed training; batch norms that learn share their statistics on GPUs (gloo cannot)."""
    from torch import nn

    parameter = next(network.parameters())
    if parameter.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    # not every parameter takes part in every step: text features may be cached, and parts may be frozen
    return nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)


def _is_started() -> bool:
    """Return whether this process has joined a process group."""
    import torch

    return torch.distributed.is_available() and torch.distributed.is_initialized()
