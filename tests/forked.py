"""Run what must be a process of its own, to be killed or to be one of several, without importing torch and MONAI again.

The processes are forks of multiprocessing's fork server, which imports the libraries once and has no threads and nothing of a test.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "torch.distributed", "monai.bundle", "monai.engines", "monai.handlers", "nibabel", "pandas")
OURS = ("bundle_run", "hospital.batch", "hospital.listen", "inferers.diffusion", "networks", "training", "transforms")
PATIENCE_S = 300
"""Longest time of one process."""

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([*LIBRARIES, *(f"synboost_monai.{name}" for name in OURS)])


class Forked:
    """A Forked process does `work(*arguments)` in a folder, with these changes of the environment."""

    def __init__(
        self,
        work: Callable[..., Any],
        *arguments: Any,
        folder: str | os.PathLike[str] = ".",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._files = [tempfile.NamedTemporaryFile(mode="r", encoding="utf-8") for _ in range(2)]  # noqa: SIM115
        names = [file.name for file in self._files]
        everything = {**os.environ, **(environment or {})}
        self._process = _SERVER.Process(target=_begin, args=(names, str(folder), everything, work, arguments))
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def stdout(self) -> str:
        return Path(self._files[0].name).read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        return Path(self._files[1].name).read_text(encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self, seconds: float = PATIENCE_S) -> int:
        """Wait for its end, and return the exit code."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired(str(self._process), seconds, self.stdout, self.stderr)
        return self._process.exitcode

    def done(self) -> Forked:
        """Wait for its end, which must be a good one, and return the process."""
        assert self.wait() == 0, self.stdout[-2000:] + self.stderr[-4000:]
        return self

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def terminate(self) -> None:
        self._process.terminate()


def module(name: str, *words: Any) -> tuple[Any, ...]:
    """Return what `Forked` is given to run `python -m name words`."""
    return run_module, name, [str(word) for word in words]


def ranks(number: int, *given: Any, **options: Any) -> list[Forked]:
    """Start as many processes of one group, with the environment that torchrun gives them."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    group = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        Forked(*given, environment={**group, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **options)
        for rank in range(number)
    ]


def run_module(name: str, words: Sequence[str]) -> None:
    sys.argv = [name, *words]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def run_script(path: str, words: Sequence[str]) -> None:
    sys.argv = [path, *words]
    sys.path.insert(0, str(Path(path).parent))  # as `python path` does
    runpy.run_path(path, run_name="__main__")


def _begin(
    names: Sequence[str], folder: str, environment: dict[str, str], work: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    for descriptor, name in enumerate(names, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), descriptor)
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    tempfile.tempdir = None  # TMPDIR is asked again
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    work(*arguments)
