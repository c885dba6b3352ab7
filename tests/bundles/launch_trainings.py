"""Run trainings of the diffusion bundle in separate processes, and kill some of them, as a list of jobs says.

`main` is to run in a process of its own; each process of a job is then a fork, with the environment that torchrun would give it. A job:

    {"config": ["train", "multi_gpu_train"], "overrides": {...}, "num_processes": 2, "kills": [0.1, ...], "notes": path or null}

`kills`: after so many seconds past the next saving of resume.ckpt, kill -9 of all processes, then start again. `{rank}` in an override
becomes the rank. `notes`: each rank writes {notes}/{rank}.json with what it drew, and {rank}.pt with its averaged weights.
With `"gradients": path` in place of `config`, rank 0 writes the gradient of a batch that the ranks share (see `gradients`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import monai.engines
import monai.handlers  # noqa: F401
import torch
from monai.bundle import ConfigWorkflow

import synboost_monai.inferers.diffusion  # noqa: F401
from synboost_monai.bundle_run import bundle_dir
from synboost_monai.diffusion import DiffusionPrepareBatch, HybridLoss
from synboost_monai.networks import create_semantic_diffusion_unet

TIME_LIMIT_S = 240
"""Of one process."""
KEPT: list[Any] = []
"""What lives until a process ends: a process group that goes right after its last message waits for its threads, and they for
Python's lock, for ever."""


def main(jobs_path: str) -> None:
    for job in json.loads(Path(jobs_path).read_text()):
        kills = list(job.get("kills", ()))
        while kills:
            processes = start(job)
            saved = wait_for_saving(job, processes)
            time.sleep(kills.pop(0))
            if any(is_finished(pid) for pid in processes) or not saved:
                raise SystemExit(f"the training was over before it was killed: {job}")
            for pid in processes:
                os.kill(pid, signal.SIGKILL)
            for pid in processes:
                os.waitpid(pid, 0)
        for pid in start(job):
            _, status = os.waitpid(pid, 0)
            if status:
                raise SystemExit(f"a process failed with status {status}: {job}")


def start(job: dict[str, Any]) -> list[int]:
    """Fork the processes of a job, and return their ids."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    number = job.get("num_processes", 1)
    processes = []
    for rank in range(number):
        pid = os.fork()
        if pid == 0:
            status = 1
            signal.alarm(TIME_LIMIT_S)  # nothing hangs for ever, nor outlives the test
            try:
                os.environ.update(
                    RANK=str(rank),
                    LOCAL_RANK=str(rank),
                    WORLD_SIZE=str(number),
                    MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=str(port),
                )
                KEPT.append(gradients(rank, number, job["gradients"]) if "gradients" in job else train(rank, job))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)  # a fork must not run what its parent has registered for its own end
        processes.append(pid)
    return processes


def wait_for_saving(job: dict[str, Any], processes: list[int]) -> bool:
    """Wait until resume.ckpt is there anew; False if a process ends before."""
    path = Path(job["overrides"]["output_dir"], "resume.ckpt")
    before = path.stat().st_mtime_ns if path.is_file() else None
    while not any(is_finished(pid) for pid in processes):
        if path.is_file() and path.stat().st_mtime_ns != before:
            return True
        time.sleep(0.002)
    return False


def is_finished(pid: int) -> bool:
    """Return whether a process has ended, without reaping it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def train(rank: int, job: dict[str, Any]) -> ConfigWorkflow:
    configs = bundle_dir("echo_semantic_diffusion") / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(configs / f"{name}.yaml") for name in job["config"]],
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        **{k: v.format(rank=rank) if isinstance(v, str) else v for k, v in job["overrides"].items()},
    )
    workflow.initialize()
    drawn: list[dict[str, Any]] = []
    if job.get("notes"):
        trainer = workflow.parser.get_parsed_content("train::trainer")
        prepare = trainer.prepare_batch

        def note(*args: Any, **kwargs: Any) -> Any:
            task = prepare(*args, **kwargs)
            targets = task[1]
            drawn.append(
                {
                    "epoch": trainer.state.epoch,
                    "images": targets["x_0"].double().sum(dim=(1, 2, 3)).tolist(),
                    "noise": targets["eps"][:, 0, 0, 0].tolist(),
                    "timesteps": targets["timesteps"].tolist(),
                }
            )
            return task

        trainer.prepare_batch = note
    workflow.run()
    if job.get("notes"):
        notes = Path(job["notes"])
        notes.mkdir(exist_ok=True)
        (notes / f"{rank}.json").write_text(json.dumps(drawn))
        average = workflow.parser.get_parsed_content("average")
        torch.save(average.network.state_dict(), notes / f"{rank}.pt")
    workflow.finalize()
    return workflow


def gradients(rank: int, number: int, path: str) -> torch.nn.Module:
    """Return the gradient of a batch of 8 in `number` parts, one for each process, as DistributedDataParallel computes it."""
    torch.manual_seed(0)
    network = create_semantic_diffusion_unet("tiny")
    for parameter in network.parameters():  # no branch that starts at zero
        torch.nn.init.normal_(parameter, std=0.1)
    batch = {"image": torch.rand(8, 1, 32, 32) * 2 - 1, "label_onehot": torch.rand(8, 5, 32, 32)}
    x_t, targets, _, arguments = DiffusionPrepareBatch()(batch)
    wrapped: torch.nn.Module = network
    if number > 1:
        torch.distributed.init_process_group("gloo")
        wrapped = torch.nn.parallel.DistributedDataParallel(network)
    own = slice(rank * 8 // number, (rank + 1) * 8 // number)
    output = wrapped(x_t[own], *(value[own] for value in arguments.values()))
    HybridLoss()(output, {key: value[own] for key, value in targets.items()}).backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in network.named_parameters()}, path)
    if number > 1:
        torch.distributed.destroy_process_group()
    return wrapped
