"""Test studies on Ray actors: the local engine's bytes, and actors that die."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from synboost_monai.dicom.reading.scan import scan
from synboost_monai.dicom.reading.scanned_file import ScannedFile
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.hospital import ray_engine, ray_head
from synboost_monai.hospital.batch import ALL_DONE, SOME_REFUSED, run_dicom
from synboost_monai.hospital.ledger import Result
from synboost_monai.hospital.options import BatchOptions
from synboost_monai.hospital.phantom_studies import write_phantom_studies
from synboost_monai.hospital.ray_engine import StudyActor, _check_loopback, _gpus_of_actor, ray_session
from synboost_monai.hospital.ray_head import HeadLostError, HeadWatch
from synboost_monai.networks import create_segmenter
from tests.forked import forks_as_python

TINY = {"preset": "tiny", "image_size": 32, "device": "cpu"}
needs_ray = pytest.mark.usefixtures("session")


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """Start one Ray on this machine for all tests, which takes seconds."""
    if importlib.util.find_spec("ray") is None:  # not loaded: it reads its settings when it is
        pytest.skip('Ray is not installed: pip install "synboost-monai[ray]"')
    with forks_as_python(), ray_session(num_cpus=2):  # Ray takes `sys.executable` for its actors
        yield


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three small phantom studies of two clips."""
    return write_phantom_studies(
        tmp_path_factory.mktemp("studies") / "in", num_studies=3, image_height=96, num_frames=10
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write random weights of a tiny network."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(create_segmenter("cris", "tiny").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def expected(studies: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of the local engine."""
    out = tmp_path_factory.mktemp("local") / "out"
    assert run(studies, out, weights, "local") == ALL_DONE
    return out


def run(studies: Path, out: Path, weights: Path, engine: str = "ray", **options: Any) -> int:
    wanted = BatchOptions(checkpoint_path=str(weights), engine=engine, report="none", **options)
    return run_dicom(studies, out, wanted, overrides=TINY, progress=False)


def outputs(out: Path) -> dict[str, bytes]:
    """Return every output but the ledger, which holds times."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in (".lock", "ledger.sqlite", "ledger.csv")
    }


def rows(out: Path) -> list[list[str]]:
    """Return the ledger without times."""
    lines = (out / "ledger.csv").read_text().splitlines()
    return [line.split('","')[:-2] for line in lines]


@needs_ray
@pytest.mark.slow
def test_same_bytes_as_the_local_engine_though_actors_die(
    studies: Path, weights: Path, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study at which an actor died once is done again; one at which each dies is refused, and done when asked again."""
    first, second, third = sorted({str(file.study_uid) for file in scan(studies) if file.reason is None})
    deaths = tmp_path / "deaths"
    deaths.mkdir()

    class Dying(StudyActor):
        def process(self, files: Sequence[ScannedFile], out_dir: Path) -> list[Result]:
            results = super().process(files, out_dir)
            study = str(files[0].study_uid)
            so_far = len(list(deaths.glob(f"{study}_*")))
            if so_far < {first: 1, second: 2, third: 0}[study]:
                (deaths / f"{study}_{so_far}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return results

    monkeypatch.setattr(ray_engine, "StudyActor", Dying)
    monkeypatch.setattr(ray_engine, "MAX_ATTEMPTS", 2)
    assert run(studies, tmp_path / "out", weights, workers=2) == SOME_REFUSED
    assert sorted(path.name for path in deaths.iterdir()) == [f"{first}_0", f"{second}_0", f"{second}_1"]
    folders = [path.name for path in (tmp_path / "out/studies").iterdir()]
    assert len(folders) == 2
    text = (tmp_path / "out/ledger.csv").read_text()
    assert text.count('"refused","worker_lost"') == 2 and text.count('"processed"') == 4
    assert str(NotUsableError("worker_lost", times=2)) in text
    done, of_local = outputs(tmp_path / "out"), outputs(expected)
    names = [name for name in of_local if name.split("/")[1:2] and name.split("/")[1] in folders]
    assert len(names) > 10 and all(done[name] == of_local[name] for name in names)
    assert run(studies, tmp_path / "out", weights, "local", resume=True) == ALL_DONE  # it was the machine
    assert outputs(tmp_path / "out") == of_local and rows(tmp_path / "out") == rows(expected)


@needs_ray
@pytest.mark.slow
def test_wrong_weights_are_told_in_words(studies: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such weights"):
        run(studies, tmp_path / "out", tmp_path / "none.pt", workers=1)


def test_a_head_that_falls_silent_is_lost_and_one_never_reached_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        watch = HeadWatch(address, patience_s=0.5)
        watch.check(at_once=True)
    watch.check()  # it was looked at a moment ago
    with pytest.raises(HeadLostError):
        watch.check(at_once=True)
    monkeypatch.setattr(ray_head, "BETWEEN_SECONDS", 0.0)
    with pytest.raises(HeadLostError):
        watch.check()
    HeadWatch(address, patience_s=0.5).check(at_once=True)


@needs_ray
@pytest.mark.slow
def test_a_run_that_loses_its_head_says_how_to_go_on(
    studies: Path, weights: Path, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head seems lost after the first study; tests/hospital/kill_ray.py kills a real one."""

    def lose(watch: HeadWatch, at_once: bool = False) -> None:
        if any((tmp_path / "out").glob("studies/*/measurements.json")):
            raise HeadLostError

    monkeypatch.setattr(HeadWatch, "check", lose)
    with pytest.raises(ValueError, match="head of the Ray cluster does not answer.*go on by --resume"):
        run(studies, tmp_path / "out", weights, workers=1)
    assert run(studies, tmp_path / "out", weights, "local", resume=True) == ALL_DONE
    assert outputs(tmp_path / "out") == outputs(expected)


def test_ray_that_listens_to_the_network_is_refused() -> None:
    _check_loopback("127.0.0.1")
    with pytest.raises(ValueError, match=r"expected a Ray on 127\.0\.0\.1, got one on 192\.0\.2\.2.*call ray\.init"):
        _check_loopback("192.0.2.2")


def test_missing_ray_names_the_extra(
    studies: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r'pip install "synboost-monai\[ray\]"'):
        run(studies, tmp_path / "out", weights)


@pytest.mark.parametrize(
    ("num_gpus", "workers", "device", "expected"),
    [
        (0, 2, None, 0.0),
        (1, 1, None, 1.0),
        (4, 2, "cuda:0", 1.0),
        (1, 2, None, 0.5),
        (2, 3, None, 0.5),
        (1, 3, None, 0.3333),
        (1, 2, "cpu", 0.0),
    ],
)
def test_gpus_are_shared_so_that_all_actors_run(
    num_gpus: int, workers: int, device: str | None, expected: float
) -> None:
    share = _gpus_of_actor(num_gpus, workers, {} if device is None else {"device": device})
    assert share == expected
    assert not share or num_gpus * int(1 / share) >= workers
