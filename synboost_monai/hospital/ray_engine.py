"""Run studies on Ray actors with a network each, on the GPUs of this machine or of a cluster.

Only the driver writes the ledger; actors read the input and write the outputs, so both folders must be on storage that all machines
share, under the same paths, and so must the bundle and its weights. An actor that dies, with its process, its machine or for want of
memory, is replaced, and its study is done again from the start; a study on which actors die time after time is refused, so that one
bad file does not end a run. Without the head of its cluster a run cannot go on, and says so.

A Ray that is started here listens on this machine's loopback only, asks whoever connects for a secret, sends no usage statistics, and
keeps its files where others cannot read them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from synboost_monai.bundle_run import is_path
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.hospital.ledger import Result
from synboost_monai.hospital.ray_head import BETWEEN_SECONDS, HeadWatch, end_without_head
from synboost_monai.hospital.study import Study, StudyOptions, StudyProcessor, refused, study_folder
from synboost_monai.paths import remove_own_folder
from synboost_monai.processes import ends_with_parent

MAX_ATTEMPTS = 3
"""Number of actors that may die on a study."""
START_SECONDS = 600.0
"""An actor that does not load its network within this time never will: the cluster has no room for it."""
OBJECT_STORE_BYTES = 128 << 20
"""Shared memory of a local Ray; only lists of files and results pass through it."""
LOOPBACK = "127.0.0.1"
"""Address of a Ray that only this machine can reach."""
MAX_FOLDER_CHARACTERS = 40
"""Longest path of the folder for temporary files; Ray adds about 60 characters, and a socket's name may have 107."""


class RayEngine:
    """Run studies on Ray actors; use it in a `with`.

    Args:
        options: the run's options; all machines must see the model's files under the same paths.
        overrides: keys of the bundle's inference.yaml.
        workers: actors, each with one study at a time.
        ray_address: address of a cluster (`auto`, HOST:PORT, ray://...); None: a Ray on this machine only, which ends with the engine.
    Raises:
        ValueError: if Ray is not installed, the cluster cannot be reached or has no room, or its machines have other models.
        FileNotFoundError: if the bundle or its weights are not there.
    """

    def __init__(
        self, options: StudyOptions, overrides: Mapping[str, Any], workers: int, ray_address: str | None = None
    ) -> None:
        _check_installed()
        bundle, checkpoint_path = options.bundle, options.checkpoint_path
        self.workers, self._overrides = workers, dict(overrides)
        self.options = replace(
            options,
            bundle=str(Path(bundle).resolve()) if is_path(bundle) else bundle,
            checkpoint_path=None if checkpoint_path is None else str(Path(checkpoint_path).resolve()),
        )
        self._cleanup = contextlib.ExitStack()
        self._actors: dict[Any, Any] = {}
        """Ray's reference to what an actor is busy with -> the actor."""
        self._idle: list[Any] = []
        try:
            if not _is_connected():  # otherwise the caller's own Ray is used
                self._cleanup.enter_context(ray_session(ray_address, workers))
            import ray

            self._head = HeadWatch(ray.get_runtime_context().gcs_address)
            self._cleanup.callback(self._kill_actors)
            gpus = _gpus_of_actor(ray.cluster_resources().get("GPU", 0), workers, overrides)
            # no retries by Ray: they would repeat a study at once, and start an actor that never comes up again and again
            self._actor_class = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0)(StudyActor)
            self._failed_starts = 0
            self.identity: Mapping[str, str] = {}
            for _ in range(workers):
                self._start_actor()
            self._wait_for_first()
        except BaseException:
            self._cleanup.close()
            raise

    # --- work --------------------------------------------------------------------------------------------------------

    def run(self, studies: Sequence[Study], out_dir: Path) -> Iterator[list[Result]]:
        """Write the outputs of studies into the folder of a run, and yield the results of each study as it ends.

        Args:
            studies: files of each study.
            out_dir: folder of the run, on storage that all machines share.
        Raises:
            ValueError: if the head of the cluster is lost, or actors keep dying before they can work.
        """
        target = out_dir.resolve()
        waiting = deque(range(len(studies)))
        running: dict[Any, int] = {}
        attempts: Counter[int] = Counter()
        num_open = len(studies)
        while num_open:
            while waiting and self._idle:
                actor, index = self._idle.pop(), waiting.popleft()
                reference = actor.process.remote(list(studies[index]), target)
                self._actors[reference] = actor
                running[reference] = index
            reference = self._next_done()
            actor = self._actors.pop(reference)
            try:
                answer = self._answer(reference)
            except ActorLostError:
                lost = running.pop(reference, None)
                if lost is not None:
                    attempts[lost] += 1
                    if attempts[lost] < MAX_ATTEMPTS:
                        waiting.append(lost)  # behind the others: should it be the study's fault, they are done first
                self._replace(actor, is_needed=bool(waiting))
                if lost is None or attempts[lost] < MAX_ATTEMPTS:
                    continue
                files, problem = studies[lost], NotUsableError("worker_lost", times=attempts[lost])
                remove_own_folder(study_folder(target, self.options, files[0].study_uid))
                answer = refused(files, problem, self.options.limits)
            else:
                self._idle.append(actor)
                if reference not in running:  # it has loaded its network
                    self._check_identity(answer)
                    continue
                del running[reference]
            num_open -= 1
            yield answer

    def _next_done(self, until: float = math.inf) -> Any:
        """Wait for a reference whose actor has answered or died; `until`: the moment at which an actor must have started.

        Raises:
            ValueError: if the head of the cluster is lost, or no actor could start.
        """
        import ray

        while True:
            self._head.check()
            done, _ = ray.wait(list(self._actors), num_returns=1, timeout=BETWEEN_SECONDS)
            if done:
                return done[0]
            if time.monotonic() > until:
                raise ValueError(
                    f"ray_engine.py: no actor could start within {START_SECONDS:.0f} s; has the cluster a free CPU (and GPU)?"
                )

    def _answer(self, reference: Any) -> Any:
        """Return what an actor answers.

        Raises:
            ActorLostError: if the actor is dead.
        """
        import ray

        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # what the actor raised, without Ray's account of it
        except ray.exceptions.RayError as error:  # its process or machine died, or cannot be reached any more
            raise ActorLostError from error

    # --- actors ------------------------------------------------------------------------------------------------------

    def _start_actor(self) -> None:
        actor = self._actor_class.remote(self.options, self._overrides)
        self._actors[actor.load.remote(os.getcwd(), _num_threads(self.workers))] = actor

    def _replace(self, actor: Any, is_needed: bool = True) -> None:
        """Start a new actor for one that is dead, if one is needed: where no study waits, it would load its network for nothing.

        Raises:
            ValueError: if actors keep dying before they have loaded their network, or the head of the cluster is lost.
        """
        import ray

        self._head.check(at_once=True)  # without it, starting an actor would wait until Ray ends this process
        with contextlib.suppress(Exception):
            ray.kill(actor)  # one that merely cannot be reached must not go on writing
        self._failed_starts += 1
        if self._failed_starts > MAX_ATTEMPTS * self.workers:
            raise ValueError(
                f"ray_engine.py: {self._failed_starts} actors in a row ended before they could work; is memory short? "
                "Take fewer workers."
            )
        if is_needed:
            self._start_actor()

    def _wait_for_first(self) -> None:
        """Wait until one actor has loaded its network: the others may come later, as a cluster finds room."""
        until = time.monotonic() + START_SECONDS
        while not self._idle:
            reference = self._next_done(until)
            actor = self._actors.pop(reference)
            try:
                identity = self._answer(reference)
            except ActorLostError:
                self._replace(actor)
                continue
            self._idle.append(actor)
            self._check_identity(identity)

    def _check_identity(self, identity: Mapping[str, str]) -> None:
        """Refuse machines with another model: results must not depend on which machine made them."""
        self._failed_starts = 0
        self.identity = self.identity or identity
        if differing := [name for name in identity if identity[name] != self.identity.get(name)]:
            raise ValueError(
                f"ray_engine.py: machines of the cluster have another {', another '.join(differing)}; install the same version "
                "everywhere, and keep bundle and weights on shared storage"
            )

    def _kill_actors(self) -> None:
        import ray

        for actor in [*self._actors.values(), *self._idle]:
            with contextlib.suppress(Exception):
                ray.kill(actor)

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()


class ActorLostError(Exception):
    """Report that an actor died."""


class StudyActor:
    """A StudyActor works on studies with its own network, in a process of Ray."""

    def __init__(self, options: StudyOptions, overrides: Mapping[str, Any]) -> None:
        self._options, self._overrides = options, overrides

    def load(self, folder: str, num_threads: int) -> Mapping[str, str]:
        """Load the network, and return its identity.

        Args:
            folder: folder that relative paths among the overrides start from.
            num_threads: threads of the network on a CPU.
        """
        import ray
        import torch

        from synboost_monai.dicom.reading.worker import ReaderPool
        from synboost_monai.hospital.model import EchoSegmenter

        # Ray's own processes end with the driver; an actor may not go on writing
        if end_with_parent := ends_with_parent():
            end_with_parent()
        end_without_head(ray.get_runtime_context().gcs_address)
        os.umask(0o077)  # as `processes.private_files` sets it on the driver's machine
        with contextlib.suppress(OSError):
            os.chdir(folder)
        torch.set_num_threads(num_threads)  # Ray would allow an actor of one CPU one thread
        options = self._options
        model = EchoSegmenter(options.bundle, options.checkpoint_path, self._overrides, options.scout)
        self._processor = StudyProcessor(model, ReaderPool(1, options.limits), options)
        return self._processor.identity

    def process(self, files: Study, out_dir: Path) -> list[Result]:
        """Make the outputs of one study."""
        return self._processor(files, out_dir)


@contextlib.contextmanager
def ray_session(address: str | None = None, num_cpus: int = 1) -> Iterator[None]:
    """Connect to Ray for a `with` block: to a cluster, or to a Ray that starts and ends with the block.

    Args:
        address: address of a cluster; None: a Ray on this machine only.
        num_cpus: actors that this machine runs at a time.
    Raises:
        ValueError: if Ray does not start, or no cluster answers.
    """
    _check_installed()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    with contextlib.ExitStack() as cleanup:
        if address is None:
            # mode 0700; Ray's own is open to all
            folder = Path(tempfile.mkdtemp(prefix="synboost-", dir=_temporary_folder()))
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
            cleanup.enter_context(_environment())
            options |= {"address": "local", "num_cpus": num_cpus, "object_store_memory": OBJECT_STORE_BYTES}
            options |= {"_temp_dir": str(folder / "ray"), "_node_ip_address": LOOPBACK, "include_dashboard": False}
        else:
            options["address"] = address
        import ray  # only now: it reads its variables when it is loaded

        cleanup.callback(ray.shutdown)
        on_sigterm = signal.getsignal(signal.SIGTERM)  # Ray installs its own, which ends the process without a word
        try:
            with _in_package_folder():
                ray.init(**options)
            if threading.current_thread() is threading.main_thread() and on_sigterm is not None:
                signal.signal(signal.SIGTERM, on_sigterm)
        except Exception as error:  # Ray itself raises Exception where a machine is too busy
            where = "Ray does not start on this machine" if address is None else f"no Ray cluster answers at {address}"
            raise ValueError(f"ray_engine.py: {where} ({_first_line(error)})") from error
        if address is None:
            _check_loopback(ray.util.get_node_ip_address())
        yield


def _gpus_of_actor(num_gpus: float, workers: int, overrides: Mapping[str, Any]) -> float:
    """Return each actor's number of GPUs: 1, a share that lets all run at once, or 0."""
    if num_gpus < 1 or not str(overrides.get("device", "cuda")).startswith("cuda"):
        return 0.0
    actors_of_gpu = math.ceil(workers / num_gpus)
    return 1.0 if actors_of_gpu == 1 else math.floor(1e4 / actors_of_gpu) / 1e4  # Ray counts in steps of 0.0001


def _num_threads(workers: int) -> int:
    """Return a network's number of threads, so that all actors of a machine together use its cores."""
    return max(1, (os.cpu_count() or 1) // workers)


def _check_installed() -> None:
    """Check that Ray is installed, without loading it.

    Raises:
        ValueError: if it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError('engine ray needs Ray: pip install "synboost-monai[ray]"')
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def _is_connected() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


@cache
def _token() -> str | None:
    """Return the secret of every Ray that this process starts; None where Ray is already loaded or its mode is already set."""
    return None if "ray" in sys.modules or "RAY_AUTH_MODE" in os.environ else secrets.token_hex(32)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Set the variables of a Ray that is started inside: the package's place, Ray's address, and the secret for connecting."""
    root = str(Path(__file__).resolve().parents[2])
    wanted = {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))}
    # on Linux too this lets Ray keep 127.0.0.1, which it would otherwise change to the machine's own address, open to all
    wanted["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if token := _token():
        wanted |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _check_loopback(address: str) -> None:
    """Refuse a Ray that was started here but listens on the machine's own address, to the whole network.

    Raises:
        ValueError: if `address` is not 127.0.0.1: Ray was loaded before `_environment` could say so.
    """
    if address != LOOPBACK:
        raise ValueError(
            f"ray_engine.py: expected a Ray on {LOOPBACK}, got one on {address}, because Ray was loaded before; call ray.init "
            "yourself first, or do not load ray before the run"
        )


@contextlib.contextmanager
def _in_package_folder() -> Iterator[None]:
    """Work in the package's folder: Ray's processes take modules from where it was started, which must not be a foreign folder."""
    before = os.getcwd()
    os.chdir(Path(__file__).resolve().parents[2])
    try:
        yield
    finally:
        os.chdir(before)


def _temporary_folder() -> str:
    folder = tempfile.gettempdir()
    return folder if len(folder) <= MAX_FOLDER_CHARACTERS or not os.path.isdir("/tmp") else "/tmp"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
