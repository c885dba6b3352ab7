"""Run studies in threads of this process that share one network, or on Ray actors, each with its own network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from synboost_monai.dicom.reading.worker import ReaderPool
from synboost_monai.hospital.ledger import Result
from synboost_monai.hospital.study import Study, StudyOptions, StudyProcessor

if TYPE_CHECKING:
    from synboost_monai.hospital.model import EchoSegmenter


class Engine(Protocol):
    """An Engine works on studies; use it in a `with`."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Return the model's name, the hashes of its weights and settings, and the software's version."""

    def run(self, studies: Sequence[Study], out_dir: Path) -> Iterator[list[Result]]:
        """Write the outputs of studies into the folder of a run, and yield the results of each study as it ends."""

    def __enter__(self) -> Engine: ...

    def __exit__(self, *_: object) -> None: ...


def create_engine(
    engine: str, options: StudyOptions, overrides: Mapping[str, Any], workers: int, ray_address: str | None = None
) -> Engine:
    """Create the engine of this name.

    Args:
        engine, workers, ray_address: as in `options.BatchOptions`.
        options: the model, and what is wanted of each study.
        overrides: keys of the bundle's inference.yaml.
    Raises:
        ValueError: if Ray is asked for and not installed.
        FileNotFoundError: if the bundle or its weights are not there.
    """
    if engine == "local":
        from synboost_monai.hospital.model import EchoSegmenter  # late, for torch: wrong options are reported at once

        model = EchoSegmenter(options.bundle, options.checkpoint_path, overrides, options.scout)
        return LocalEngine(model, options, workers)
    from synboost_monai.hospital.ray_engine import RayEngine

    return RayEngine(options, overrides, workers, ray_address)


class LocalEngine:
    """Run studies in threads that share one network; while one waits for the disk or a decoder, another uses the network.

    Args:
        model: the segmenter.
        options: the run's options.
        workers: studies at a time.
    """

    def __init__(self, model: EchoSegmenter, options: StudyOptions, workers: int) -> None:
        self.workers, self.model = workers, model
        self.pool = ReaderPool(workers, options.limits)
        self.processor = StudyProcessor(model, self.pool, options)
        self.identity = self.processor.identity

    def run(self, studies: Sequence[Study], out_dir: Path) -> Iterator[list[Result]]:
        """Write the outputs of studies into the folder of a run, and yield the results of each study as it ends."""
        if self.workers == 1:
            yield from (self.processor(study, out_dir) for study in studies)
            return
        with ThreadPoolExecutor(self.workers, thread_name_prefix="study") as threads:
            waiting = iter(studies)
            running: set[Future[list[Result]]] = set()
            try:
                while True:
                    while len(running) < self.workers and (study := next(waiting, None)) is not None:
                        running.add(threads.submit(self.processor, study, out_dir))
                    if not running:
                        return
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()
