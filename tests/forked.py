"""Run what must be a process of its own, to be killed or to be one of several, without importing torch and MONAI again.

The processes are forks of a server (`tests/fork_server.py`), which all workers of a test run share.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import fork_server

LIBRARIES = (
    "tests.quick_monai",
    *("torch", "torch.distributed", "monai.bundle", "monai.engines", "monai.handlers", "nibabel", "pandas"),
    *(f"synboost_monai.{name}" for name in ("bundle_run", "hospital.batch", "hospital.listen", "inferers.diffusion")),
    *(f"synboost_monai.{name}" for name in ("networks", "training", "transforms")),
)
LIBRARIES_OF_TESTS = (
    "pytest",
    "diffusers",
    "gradio",
    "matplotlib.pyplot",
    "peft",
    "scipy.stats",
    "snakemake.cli",
    "transformers",
)
"""More of them, which only the whole suite needs."""
PATIENCE_S = 300
"""Longest time of one process."""
FOLDER = "SYNBOOST_FORK_SERVER"
"""Environment variable with the server's folder."""
BEGIN = """import pickle, sys
with open(sys.argv[1], "rb") as file:
    sys.path[:] = pickle.load(file)
    work, given = pickle.load(file)
work(*given)"""


def fork_server_folder(libraries: Sequence[str] = LIBRARIES) -> Path:
    """Return the folder of the server, which is started if no process above this one has done so."""
    if FOLDER not in os.environ:
        folder = Path(tempfile.mkdtemp(prefix="forks-"))
        (folder / "real").write_text(sys.executable, encoding="utf-8")
        words = [sys.executable, "-IS", fork_server.__file__, str(folder)]
        (folder / "python").write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
        (folder / "python").chmod(0o700)
        command = [sys.executable, fork_server.__file__, "serve", str(folder), *libraries]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen(command, **pipes, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
        assert server.stdout is not None and server.stdout.readline() == b"\n", "the fork server does not start"
        atexit.register(_end, server, folder, os.getpid())
        os.environ[FOLDER] = str(folder)
    return Path(os.environ[FOLDER])


def _end(server: subprocess.Popen[bytes], folder: Path, process: int) -> None:
    if os.getpid() == process:
        server.communicate()
        shutil.rmtree(folder)


@contextlib.contextmanager
def forks_as_python() -> Iterator[None]:
    """Let `sys.executable` be a Python that starts as a fork, for this process and those that it starts, and that these start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(fork_server_folder() / "python"))
        yield


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
        self._given = tempfile.NamedTemporaryFile()  # noqa: SIM115
        for given in ([os.path.abspath(path) for path in sys.path], (work, arguments)):
            pickle.dump(given, self._given)
        self._given.flush()
        request = fork_server.parse(["-c", BEGIN, self._given.name])
        request |= {"folder": os.path.abspath(folder), "executable": sys.executable}
        request |= {"environment": {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}}
        streams = [
            os.open(os.devnull, os.O_RDONLY),
            *(os.open(file.name, os.O_WRONLY | os.O_APPEND) for file in self._files),
        ]
        self._connection = fork_server.ask(fork_server_folder(), request, streams)
        for stream in streams:
            os.close(stream)
        self.pid = fork_server.receive(self._connection)
        self._code: int | None = None
        self._lock = threading.Lock()

    @property
    def stdout(self) -> str:
        return Path(self._files[0].name).read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        return Path(self._files[1].name).read_text(encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        try:
            return self._code_within(0)
        except TimeoutError:
            return None

    def wait(self, seconds: float = PATIENCE_S) -> int:
        """Wait for its end, and return the exit code."""
        try:
            return self._code_within(seconds)
        except TimeoutError:
            self.kill()
            raise subprocess.TimeoutExpired(f"process {self.pid}", seconds, self.stdout, self.stderr) from None

    def _code_within(self, seconds: float) -> int:
        if self._code is None:
            if not select.select([self._connection], [], [], seconds)[0]:
                raise TimeoutError
            with self._lock:
                if self._code is None:  # no other thread has read it meanwhile
                    self._code = fork_server.receive(self._connection)
        return self._code

    def done(self) -> Forked:
        """Wait for its end, which must be a good one, and return the process."""
        assert self.wait() == 0, self.stdout[-2000:] + self.stderr[-4000:]
        return self

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._code_within(PATIENCE_S)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


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
