"""Test that errors of the user and of the system become one line, whatever a library made of them."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from synboost_monai.errors import in_one_line, one_line, user_error
from synboost_monai.files import atomic_path

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def refused(number: int, path: str | None = "out/a.png") -> OSError:
    """Return an error of the system."""
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (refused(errno.ENOENT), "out/a.png: no such file or directory; check the path"),
        (refused(errno.EACCES), "out/a.png: permission denied; give this user the right"),
        (refused(errno.EROFS), "out/a.png: read-only file system; give a path on a disk that can be written"),
        (refused(errno.ENOSPC), "out/a.png: no space left on device; free some space"),
        (refused(errno.ENOTDIR), "out/a.png: not a directory; a part of this path is a file"),
        (refused(errno.EISDIR), "out/a.png: is a directory; it is a folder"),
        (refused(errno.EEXIST), "out/a.png: file exists; it is there already and no folder"),
        (refused(errno.ENAMETOOLONG), "out/a.png: file name too long; give a shorter name"),
        (refused(errno.EMFILE), "out/a.png: too many open files; raise the limit"),
        (refused(errno.ESTALE), "out/a.png: stale file handle; the network drive has lost it"),
        (refused(errno.ENOSPC, None), "OUT: no space left on device; free some space"),
        (refused(errno.ENOSPC, "out/.17-0a1b2c3d.a.png"), "out/a.png: no space left on device; free"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "out/.1-0a1b2c3d.a", None, "out/a"), "out/a: file name"),
        (sqlite3.OperationalError("database or disk is full"), "OUT: no space left on device; free"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "OUT: read-only file system; give"),
        (
            RuntimeError("itkMetaImageIO.cxx:1110:\nFile cannot be written: a/d.mha\nReason: No space left on device"),
            "a/d.mha: no space left on device; free",
        ),
        (
            RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"),
            "/dev/shm: no space left on device; processes share tensors there",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It may be out of shared memory."),
            "/dev/shm: no space left on device; processes share tensors there",
        ),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "OUT: the file could"),
    ],
)
def test_what_the_system_refuses_is_path_reason_and_advice(error: Exception, line: str) -> None:
    known = user_error(error)
    assert known is not None
    assert one_line(known, "OUT").startswith(line) and "\n" not in one_line(known, "OUT")


def test_an_error_of_ours_is_none_of_the_user() -> None:
    for error in (RuntimeError("size mismatch"), KeyError("x"), AssertionError(), sqlite3.OperationalError("no table")):
        assert user_error(error) is None


class _Refused(torch.utils.data.Dataset[int]):
    """Hold items that the system refuses, with a path or without."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        try:
            raise refused(errno.EACCES, "in/b.png") if index else refused(errno.ESTALE, None)
        except OSError as error:
            raise RuntimeError("applying transform") from error


@pytest.mark.parametrize(("index", "line"), [(0, "OUT: stale file handle; the"), (1, "in/b.png: permission denied; g")])
def test_error_of_a_worker_process_is_found_in_its_text(index: int, line: str) -> None:
    loader = DataLoader(_Refused(), sampler=[index], num_workers=1)
    with pytest.raises(RuntimeError) as caught:
        list(loader)
    known = user_error(caught.value)
    assert known is not None and one_line(known, "OUT").startswith(line)


def _save_torch(path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 16)}, path)


def _save_text(path: Path) -> None:
    with open(path, "w") as file:
        file.write("a" * (1 << 18))


def _save_picture(path: Path) -> None:
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (512, 512)).astype(np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of a file")
@pytest.mark.parametrize("save", [_save_torch, _save_text, _save_picture])
def test_a_file_that_is_not_written_whole_is_named_and_gone(save: Callable[[Path], None], tmp_path: Path) -> None:
    """A limit of the file size stands in for a full disk: the writer's call fails in the middle."""
    import resource

    before, on_signal = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, before[1]))
        with pytest.raises(OSError) as caught, atomic_path(tmp_path / "file") as temporary:
            save(temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, on_signal)
    assert one_line(caught.value).startswith(f"{tmp_path}/file: file too large; the disk or `ulimit -f`")
    assert list(tmp_path.iterdir()) == []


def test_a_command_ends_with_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as caught, in_one_line("synboost train", "runs/x"):
        raise refused(errno.ENOSPC, None)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("synboost train: runs/x: no space left on device; free some space")
    with pytest.raises(KeyError), in_one_line("synboost train"):
        raise KeyError("ours")
    monkeypatch.setenv("SYNBOOST_TRACEBACK", "1")
    with pytest.raises(OSError), in_one_line("synboost train"):
        raise refused(errno.ENOSPC)


def test_error_of_a_thread_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """TensorBoard's writer does this: its thread ends by the error, and the next call raises the same one."""
    error = refused(errno.ENOSPC, None)

    def work() -> None:
        raise error

    with pytest.raises(SystemExit), in_one_line("synboost train", "runs/x"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        raise error
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "no space left" in err


def test_sigterm_says_what_sigint_says(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before_all = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a suite in the background of a shell ignores
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number, word, code in ((signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143)):
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as caught, in_one_line("synboost x"), atomic_path(tmp_path / "a") as temporary:
            temporary.write_text("half")
            signal.raise_signal(number)
        assert caught.value.code == code and signal.getsignal(signal.SIGTERM) is before
        assert capsys.readouterr().err == f"synboost x: {word}; the same command goes on from here\n"
        assert list(tmp_path.iterdir()) == []
    for number, handler in before_all.items():
        signal.signal(number, handler)


def test_error_that_sigterm_caused_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A worker that got the signal too is missed while the main thread cleans up."""
    with pytest.raises(SystemExit) as caught, in_one_line("synboost x"):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly")
    assert caught.value.code == 143
    assert capsys.readouterr().err == "synboost x: terminated; the same command goes on from here\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
def test_output_that_cannot_be_printed_is_one_line() -> None:
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "synboost_monai", "version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("synboost version: standard output: no space left on device; free")
    assert done.stderr.count("\n") == 1
