"""Run studies in threads of this process that share one network, or on Ray actors, each with its own network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
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

    def run(self, studies: Sequence[Study], out_dir: Path | None = None) -> Iterator[list[Result]]:
        """Yield the results of each study, in the order in which they end; `out_dir` replaces the engine's own."""

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def create_engine(
    engine: str,
    bundle: str,
    checkpoint_path: str | None,
    overrides: Mapping[str, Any],
    options: StudyOptions,
    out_dir: Path,
    workers: int,
    ray_address: str | None = None,
) -> Engine:
    """Create the engine of this name.

    Args:
        engine, bundle, checkpoint_path, workers, ray_address: as in `options.BatchOptions`.
        overrides: keys of the bundle's inference.yaml.
        options: what is wanted of each study.
        out_dir: folder of the run.

    Raises:
        ValueError: if Ray is asked for and not installed.
        FileNotFoundError: if the bundle or its weights are not there.
    """
    if engine == "local":
        from synboost_monai.hospital.model import EchoSegmenter  # late, for torch: wrong options are reported at once

        return LocalEngine(EchoSegmenter(bundle, checkpoint_path, overrides, options.scout), options, out_dir, workers)
    from synboost_monai.hospital.ray_engine import RayEngine

    return RayEngine(bundle, checkpoint_path, overrides, options, out_dir, workers, ray_address)


class LocalEngine:
    """Run studies in threads that share one network; while one waits for the disk or a decoder, another uses the network.

    Args:
        model: the segmenter.
        options, out_dir: the run's options and folder.
        workers: studies at a time.
    """

    def __init__(self, model: EchoSegmenter, options: StudyOptions, out_dir: Path, workers: int) -> None:
        self.workers, self.model = workers, model
        self.pool = ReaderPool(workers, options.limits)
        self.processor = StudyProcessor(model, self.pool, out_dir, options)
        self.identity = self.processor.identity

    def run(self, studies: Sequence[Study], out_dir: Path | None = None) -> Iterator[list[Result]]:
        """Yield the results of each study, in the order in which they end; `out_dir` replaces the engine's own."""
        processor = self.processor if out_dir is None else self.processor.writing_to(out_dir)
        if self.workers == 1:
            yield from map(processor, studies)
            return
        with ThreadPoolExecutor(self.workers, thread_name_prefix="study") as threads:
            waiting = iter(studies)
            running: set[Future[list[Result]]] = set()
            try:
                while True:
                    while len(running) < self.workers and (study := next(waiting, None)) is not None:
                        running.add(threads.submit(processor, study))
                    if not running:
                        return
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.close()
