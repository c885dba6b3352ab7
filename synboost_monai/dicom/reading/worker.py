"""Read files in worker processes, so that a crashed, hung or greedy decoder costs one file, never the run.

    with ReaderPool(num_workers=2, limits=limits) as pool, pool.open(path, window=32) as stream:
        stream.facts.spacing_mm
        for frames in stream.read():  # (T, rows, columns) uint8 of the region; the next windows are decoded meanwhile
            ...
        (frames,) = stream.read([3, 7])  # of the same open file

A worker is a fresh Python process without torch (as `spawn` starts it, but without running the caller's main module again, so that a
script needs no guard). It decodes ahead by two windows and sends them through a pipe. Shared memory is not used, since a killed run
would leave patients' images in it. A worker has its own limits: memory by RLIMIT_AS, no core dump (it would hold images), and an
alarm that ends it even within a decoder; the reader in the main process counts the time too. The output of decoders is discarded.
A worker sends back JSON and pixels, never code that would run when read.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synboost_monai.dicom.limits import Limits
from synboost_monai.dicom.reading.files import Closing
from synboost_monai.dicom.reading.read import ClipFacts, open_ultrasound
from synboost_monai.dicom.reading.regions import Region
from synboost_monai.dicom.reading.scanned_file import look
from synboost_monai.dicom.reasons import NotUsableError, from_json, to_json
from synboost_monai.processes import ends_with_parent, limit_memory

PREFETCH = 2
"""Number of windows that a worker decodes ahead of the consumer."""
MAX_WINDOW_MB = 256
"""Largest window, in MB (2^20 bytes)."""
START_SECONDS = 60
"""Seconds that a worker may take to start."""
ALARM_SPARE = 30
"""Seconds after a file's time limit at which a worker ends itself, in case the main process does not."""
_LENGTH = struct.Struct("<L")
"""Length of a message in bytes, sent before it."""
_PIPE_BYTES = 1 << 20
_SIGNALS = {-signal.SIGKILL: "killed, perhaps for want of memory"}


class ReaderPool(Closing):
    """Run worker processes that read ultrasound files, one file at a time each.

    Args:
        num_workers: number of files that can be open at once; opening one more waits for a worker, so a thread must not hold more.
        limits: of a file; the defaults if None.
    """

    def __init__(self, num_workers: int = 1, limits: Limits | None = None) -> None:
        if num_workers < 1:
            raise ValueError(f"worker.py: num_workers must be at least 1, got {num_workers}")
        self.limits = limits or Limits()
        # The system ends a worker with the thread that started it, so one thread that lives as long as the pool starts all.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="dicom-workers")
        self._places: queue.Queue[_Worker | None] = queue.Queue()
        for _ in range(num_workers):
            self._places.put(None)
        self._workers: weakref.WeakSet[_Worker] = weakref.WeakSet()
        self._is_closed = False
        atexit.register(_close_quietly, weakref.ref(self))

    def open(self, path: str | os.PathLike[str], window: int = 32) -> ClipStream:
        """Open a file in a worker, which keeps it open until the stream is closed.

        Args:
            path: path of a regular file.
            window: number of frames per window; fewer if they would take more than `MAX_WINDOW_MB`.
        Returns:
            The facts, and the frames as often as they are read; close it, or use it in `with`.
        Raises:
            NotUsableError: as `open_ultrasound`, and timeout, out_of_memory or decoder_died.
        """
        if window < 1:
            raise ValueError(f"worker.py: window must be at least 1 frame, got {window}")
        stream = ClipStream(self, self._take(), {"path": os.fsdecode(path), "window": window})
        try:
            stream.begin()
        except BaseException:
            stream.close()
            raise
        return stream

    def check(self, path: str | os.PathLike[str]) -> None:
        """Make sure that a whole file can be read: its header and every frame.

        Raises:
            NotUsableError: as `open`, or for the first frame that cannot be decoded.
        """
        with self.open(path) as stream:
            stream.check()

    def look(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return the facts of a header that a scan needs (`scanned_file.look`), as plain values.

        Raises:
            NotUsableError: timeout, out_of_memory or decoder_died.
        """
        with ClipStream(self, self._take(), {"look": os.fsdecode(path)}) as stream:
            return stream.ask()

    def close(self) -> None:
        """End all workers."""
        self._is_closed = True
        for worker in list(self._workers):
            worker.end()
        self._starter.shutdown(wait=False)

    def _take(self) -> _Worker:
        """Return a free worker; wait for one if all are busy."""
        if self._is_closed:
            raise ValueError("worker.py: the pool is closed")
        worker = self._places.get()  # the wait ends when a stream is closed: each file has a time limit
        if worker is None or not worker.is_alive():
            try:
                worker = self._start()
            except BaseException:
                self._places.put(None)
                raise
        return worker

    def _start(self) -> _Worker:
        worker = self._starter.submit(_Worker, self.limits).result()
        self._workers.add(worker)
        return worker

    def _give_back(self, worker: _Worker, is_idle: bool) -> None:
        """Free a worker's place; a worker that is not done with its file is ended, and the next file gets a new one."""
        if not is_idle or self._is_closed:
            worker.end()
        self._places.put(worker if is_idle else None)


def _close_quietly(reference: weakref.ref[ReaderPool]) -> None:
    pool = reference()
    if pool is not None:
        pool.close()


class ClipStream(Closing):
    """Receive the facts and frames of one file, which a worker keeps open."""

    facts: ClipFacts

    def __init__(self, pool: ReaderPool, worker: _Worker, request: dict[str, Any]) -> None:
        self._pool, self._worker, self._request = pool, worker, request
        self._seconds = 0.0
        self._is_open = False
        """Whether the worker has the file open."""
        self._is_idle = True
        """Whether the worker has answered everything."""
        self._is_closed = False

    def begin(self) -> None:
        """Send the request and wait for the facts."""
        values = _with_tuples(self.ask())
        self.facts = ClipFacts(**{**values, "region": Region(**_with_tuples(values["region"]))})
        self._is_open = True

    def ask(self) -> dict[str, Any]:
        """Send the request and wait for its only answer."""
        self._send(self._request)
        answer = self._receive()
        self._is_idle = True
        return answer

    def read(self, frames: Sequence[int] | None = None) -> Iterator[NDArray[np.uint8]]:
        """Start decoding frames of the file; each call has the file's whole time limit.

        Args:
            frames: indices of the frames wanted, in this order; None for all.
        Returns:
            the windows, (T, rows, columns) uint8 of the region; to be taken to the last before the next call.
        Raises:
            ValueError: for a frame that the clip does not have.
            NotUsableError: for the first frame that cannot be decoded, and timeout, out_of_memory or decoder_died.
        """
        num_frames = self.facts.num_frames
        if frames is not None and not all(0 <= index < num_frames for index in frames):
            raise ValueError(f"worker.py: frames must be 0 to {num_frames - 1} of this clip, got {list(frames)}")
        self._send({"frames": None if frames is None else list(frames)})
        return self._windows()

    def check(self) -> None:
        """Make sure that every frame can be decoded.

        Raises:
            NotUsableError: as `read`.
        """
        self._send({"frames": None, "is_check": True})
        list(self._windows())

    def _send(self, request: dict[str, Any]) -> None:
        assert self._is_idle, "worker.py: the windows before were not taken to the last"
        self._is_idle, self._seconds = False, 0.0
        try:
            self._worker.send(request)
        except OSError:
            raise self._died() from None

    def _windows(self) -> Iterator[NDArray[np.uint8]]:
        region = self.facts.region
        while "num_frames" in (message := self._receive()):
            frames = np.empty((message["num_frames"], region.rows, region.columns), np.uint8)
            self._fill(frames.data.cast("B"))
            yield frames
        self._is_idle = True

    def close(self) -> None:
        """Let the worker close the file, and give it back."""
        if not self._is_closed:
            self._is_closed = True
            if self._is_idle and self._is_open:
                with contextlib.suppress(OSError):  # it is gone
                    self._worker.send({"close": True})
            self._pool._give_back(self._worker, self._is_idle and self._worker.is_alive())

    def _receive(self) -> dict[str, Any]:
        """Return the next message; raise the failure if it reports one."""
        length = bytearray(_LENGTH.size)
        self._fill(memoryview(length))
        text = bytearray(_LENGTH.unpack(length)[0])
        self._fill(memoryview(text))
        message = from_json(text)
        if "failure" in message:
            self._is_open, self._is_idle = False, message["is_idle"]
            raise message["failure"]
        return message

    def _fill(self, buffer: memoryview) -> None:
        """Fill the buffer within the time that the file has left; the consumer's own time does not count."""
        limit = self._pool.limits.seconds_per_file
        start = time.monotonic()
        while buffer:
            left = limit - self._seconds - (time.monotonic() - start)
            try:
                count = self._worker.read_into(buffer, max(left, 0))
            except OSError:
                raise self._died() from None
            if count is None:
                self._worker.end()
                raise NotUsableError("timeout", seconds=f"{limit:g}")
            if count == 0:
                raise self._died()
            buffer = buffer[count:]
        self._seconds += time.monotonic() - start

    def _died(self) -> NotUsableError:
        """Return the reason why the worker is gone."""
        status = self._worker.end()
        if status == -signal.SIGALRM:
            return NotUsableError("timeout", seconds=f"{self._pool.limits.seconds_per_file:g}")
        if status < 0:
            how = _SIGNALS.get(status) or f"signal {-status}, {signal.strsignal(-status) or 'unknown'}".lower()
        else:
            how = f"exit status {status}"
        return NotUsableError("decoder_died", how=how)


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Return values with tuples for the lists that they have become in JSON."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


class _Worker:
    """The pool's side of a worker process."""

    def __init__(self, limits: Limits) -> None:
        root = str(Path(__file__).resolve().parents[3])
        code = "import sys; sys.path[:1] = [sys.argv[1]]; from synboost_monai.dicom.reading.worker import main; main(sys.argv[2])"
        limits_text = json.dumps(dataclasses.asdict(limits))
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, root, limits_text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            close_fds=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
        )
        assert self._process.stdin and self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._descriptor = self._answers.fileno()
        self._readable = select.poll()
        self._readable.register(self._descriptor, select.POLLIN)
        with contextlib.suppress(ImportError, AttributeError, OSError):  # larger pipes save system calls
            import fcntl

            fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._lock = threading.Lock()
        is_ready = bytearray(1)
        if self.read_into(memoryview(is_ready), START_SECONDS) != 1:
            status = self.end()
            raise RuntimeError(f"worker.py: a worker process does not start (exit status {status}); is memory short?")

    def send(self, request: dict[str, Any]) -> None:
        """Send a request as one line."""
        self._requests.write(json.dumps(request).encode() + b"\n")
        self._requests.flush()

    def read_into(self, buffer: memoryview, seconds: float) -> int | None:
        """Read available bytes, up to the buffer's size; return their number, 0 if the worker is gone, None if nothing comes in time."""
        if not self._readable.poll(1000 * seconds):
            return None
        return os.readv(self._descriptor, [buffer])

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> int:
        """Kill the process if it runs; return its exit status, a negative number if a signal ended it."""
        with self._lock:
            if not self._answers.closed:
                if self._is_hung_up():
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._process.wait(5)  # it is ending by itself: its own status says why
                self._process.kill()
                self._answers.close()
                with contextlib.suppress(OSError):
                    self._requests.close()
            return self._process.wait()  # nothing outlives SIGKILL

    def _is_hung_up(self) -> bool:
        """Return whether the process has closed its end of the pipe."""
        watched = select.poll()
        watched.register(self._descriptor, 0)
        return bool(watched.poll(0))


# --- in the worker ---------------------------------------------------------------------------------------------------


def main(limits_text: str) -> None:
    """Serve requests until the pool closes; this runs in the worker process."""
    limits = Limits(**json.loads(limits_text))
    requests, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    _be_quiet()
    if end_with_parent := ends_with_parent():
        end_with_parent()
    _import_all()
    limit_memory(int(limits.memory_mb * 2**20))
    with contextlib.suppress(OSError):  # the pool is gone, so the worker ends too
        _write(answers, b"!")
        for line in requests:
            _serve(json.loads(line), requests, limits, answers)
    os._exit(0)  # without waiting for a thread that still sends


def _be_quiet() -> None:
    """Discard what decoders print, which may hold names; the pool has its own copies of standard input and output."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the pool's process, which ends us


def _import_all() -> None:
    """Load the decoders before memory is limited."""
    import importlib

    for module in ("PIL.JpegImagePlugin", "openjpeg", "jpeg_ls", "rle.rle", "libjpeg"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def _serve(request: dict[str, Any], requests: Iterable[bytes], limits: Limits, answers: int) -> None:
    """Answer one request, and those for frames of the file that it opens: facts, windows with an end each, or a failure."""
    sender = _Sender(answers)
    spare = int(limits.seconds_per_file) + ALARM_SPARE
    is_idle = True
    try:
        signal.alarm(spare)
        if "look" in request:
            sender.put(look(request["look"], limits))
            sender.finish()
            return
        with open_ultrasound(request["path"], limits) as clip:
            region = clip.facts.region
            signal.alarm(0)  # a slow consumer is not the file's fault
            sender.put(dataclasses.asdict(clip.facts))
            window = max(1, min(request["window"], MAX_WINDOW_MB * 2**20 // (region.rows * region.columns)))
            for wanted in map(json.loads, requests):
                if "close" in wanted:
                    break
                frames = range(clip.num_frames) if wanted["frames"] is None else wanted["frames"]
                for start in range(0, len(frames), window):
                    signal.alarm(spare)
                    images = clip.read_frames(frames[start : start + window])
                    signal.alarm(0)
                    if "is_check" not in wanted:
                        sender.put(images)
                sender.put({})
        sender.finish()
        return
    except NotUsableError as error:
        failure = error
    except MemoryError:
        failure, is_idle = NotUsableError("out_of_memory", limit_mb=f"{limits.memory_mb:g}"), False
    except OSError:  # from the pipe; those from the file have become a NotUsableError
        raise
    except BaseException:  # such as a panic in a decoder written in Rust
        failure, is_idle = NotUsableError("decoder_died", how="it failed in a way of its own"), False
    finally:
        signal.alarm(0)
    sender.put({"failure": failure, "is_idle": is_idle})
    sender.finish()


class _Sender:
    """Sends messages from a thread, so that the next window is decoded meanwhile; at most `PREFETCH` windows wait."""

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._queue: queue.Queue[Any] = queue.Queue(PREFETCH - 1)
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, message: dict[str, Any] | NDArray[np.uint8]) -> None:
        if self._error is not None:
            raise self._error
        self._queue.put(message)

    def finish(self) -> None:
        """Wait until all is sent."""
        self._queue.put(None)
        self._thread.join()  # it writes into a pipe, which breaks when the reader is gone
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            if self._error is not None:
                continue  # nobody reads: drop the remaining messages
            try:
                is_text = isinstance(message, dict)
                text = to_json(message if is_text else {"num_frames": len(message)}).encode()
                _write(self._answers, _LENGTH.pack(len(text)) + text)
                if not is_text:
                    _write(self._answers, message.data.cast("B"))
            except OSError as error:
                self._error = error


def _write(descriptor: int, data: bytes | memoryview) -> None:
    """Write all the data."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
