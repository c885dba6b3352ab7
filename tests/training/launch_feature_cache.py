"""Make feature caches in separate processes: one is killed, one goes on, and two share the work under gloo.

`main` is to run in a process of its own; each of its processes is a fork. It writes what it did, or its error, to OUT_DIR/NAME.json.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose

from synboost_monai.data import read_datalist
from synboost_monai.networks import create_segmenter
from synboost_monai.training import feature_cache
from synboost_monai.transforms import Letterboxd, LoadEchod, NormaliseEchod, RandUltrasoundd

TIME_LIMIT_S = 120
"""Of one process."""
BATCH_SIZE = 3
KILLED_AT = 3
"""Batch during which the first process is killed: two are complete."""


def image_transform() -> Compose:
    transforms = [LoadEchod(["image", "label"]), Letterboxd("image", 32), RandUltrasoundd()]
    return Compose([*transforms, NormaliseEchod("image", (0.5, 0.4, 0.4), (0.25, 0.25, 0.25))])


def cache(
    data: list[dict[str, Any]], folder: Path, weights_seed: int = 0, kill_at: int | None = None
) -> dict[str, Any]:
    """Fill a cache; return what was done, and how many images this process encoded."""
    torch.manual_seed(weights_seed)
    network = create_segmenter("cris", "tiny", freeze_encoders=True)
    encode = network.encode_image
    sizes: list[int] = []

    def counted(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if kill_at is not None and len(sizes) == kill_at:  # the first call asks for the shapes
            os.kill(os.getpid(), signal.SIGKILL)
        sizes.append(len(image))
        return encode(image)

    network.encode_image = counted
    cached = feature_cache.cache_features(
        data,
        image_transform(),
        network,
        folder,
        feature_cache.FeatureOptions(num_copies=2, batch_size=BATCH_SIZE, feature_dtype="float32"),
    )
    features = [feature_cache.read_features(path)[0][0] for paths in cached.paths for path in paths]
    return {
        "num_reused": cached.num_reused,
        "num_computed": cached.num_computed,
        "encoded": sum(size for size in sizes),
        "sum": float(torch.stack(features).double().abs().sum()),
    }


def fork(out_path: Path, work: Callable[[], dict[str, Any]], environment: dict[str, str] | None = None) -> int:
    """Do some work in a separate process, and return its id."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(TIME_LIMIT_S)
        os.environ.update(environment or {})
        try:
            if environment:
                torch.distributed.init_process_group("gloo")
            out_path.write_text(json.dumps(work()))
        except Exception as error:
            out_path.write_text(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        if environment:
            torch.distributed.barrier()
        os._exit(0)
    return pid


def fork_two(out_dir: Path, name: str, work: Callable[[int], dict[str, Any]]) -> None:
    """Do the same in two processes of one group."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    pids = []
    for rank in range(2):
        environment = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        pids.append(fork(out_dir / f"{name}_{rank}.json", lambda rank=rank: work(rank), environment))
    for pid in pids:
        os.waitpid(pid, 0)


def main(datalist_dir: Path, out_dir: Path) -> None:
    torch.set_num_threads(1)
    data = read_datalist(datalist_dir, "training", limit=5)
    killed = fork(out_dir / "killed.json", lambda: cache(data, out_dir / "one", kill_at=KILLED_AT))
    _, status = os.waitpid(killed, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    (out_dir / "one" / ".1-ab.index.json").write_text("half an ind")  # as if it had been killed while it wrote
    os.waitpid(fork(out_dir / "again.json", lambda: cache(data, out_dir / "one")), 0)
    os.waitpid(fork(out_dir / "alone.json", lambda: cache(data, out_dir / "alone")), 0)
    fork_two(out_dir, "shared", lambda rank: cache(data, out_dir / "two"))
    fork_two(out_dir, "other_weights", lambda rank: cache(data, out_dir / "three", weights_seed=rank))
    (out_dir / "foreign").mkdir()
    (out_dir / "foreign" / "thesis.txt").write_text("mine")
    fork_two(out_dir, "foreign", lambda rank: cache(data, out_dir / "foreign"))
