"""A DICOM node: studies come by C-STORE or are fetched, are segmented and measured as a batch does it, and their results go to an archive.

    OUT/inbox/STUDY/OBJECT.dcm        what came; names are hashes
    OUT/runs/STUDY/SETTINGS/          a run of the batch on the study: ledger, report, outputs, delivery.json
    OUT/removed/STUDY                 which objects of a removed study were here (`inbox.py`)
    OUT/work/                         what is being received, fetched or sent; emptied at each start

A study is complete when nothing has come of it for a while. Objects that come later make it incomplete again: the run goes on and does
the study whole once more, so that a second view still gives a biplane volume; results that did not change are not sent again.
The process may be ended at any time: what was answered with success is on the disk, and a new start does what is not done.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

from synboost_monai.dicom.network.common import NotReachableError, check_installed, quiet_network
from synboost_monai.dicom.network.guard import RefusalLog
from synboost_monai.dicom.network.receive import ServerOptions, StorageServer
from synboost_monai.dicom.network.tls import Tls
from synboost_monai.hospital.batch import RETRIED, run_settings, work_through
from synboost_monai.hospital.delivery import Courier, Delivery, deliveries
from synboost_monai.hospital.engines import Engine, create_engine
from synboost_monai.hospital.fetch import FETCHING, INBOX, WORK, Fetcher
from synboost_monai.hospital.inbox import REMOVED, Inbox
from synboost_monai.hospital.options import ListenOptions
from synboost_monai.hospital.peers import Peers
from synboost_monai.hospital.study import StudyOptions
from synboost_monai.paths import check_own_folders, own_folder, remove_own_folder
from synboost_monai.processes import hold_folder, private_files

RUNS = "runs"
"""Folder in OUT, beside those of `fetch.py`."""
MAX_REPEATS = 3
"""Times that files are tried again whose reason may lie in the machine."""
FIRST_DELAY, LONGEST_DELAY = 30.0, 3600.0
"""Seconds until a study is tried again that failed; doubled each time."""
POLL_SECONDS = 0.2
"""Between two looks for a complete study."""
CLEANING_SECONDS = 600.0
"""Between two looks for what is older than it is kept."""
JOIN_SECONDS = 10.0
"""Longest time that fetching may take to end."""
DAY = 86400.0


def run_listen(
    out_dir: str | os.PathLike[str],
    options: ListenOptions | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
) -> int:
    """Receive studies, segment and measure them, and send the results on, until SIGTERM or SIGINT.

    The first signal ends it after the study at hand, the second at once; nothing is lost either way.

    Args:
        out_dir: folder for all that the node keeps; one node at a time.
        options: what is wanted.
        overrides: keys of the bundle's inference.yaml.
    Returns:
        0.
    Raises:
        ValueError: if pynetdicom is not installed, or an option is wrong.
        FileNotFoundError: if the bundle or its weights are not there.
        OSError: if the port is taken.
    """
    check_installed()
    wanted = options or ListenOptions()
    tls = Tls(wanted.tls, wanted.tls_certificate, wanted.tls_key, wanted.tls_authorities)
    tls.client_context()  # a wrong file is an error now, not when the first result is sent
    server = ServerOptions(
        host=wanted.host,
        port=wanted.port,
        ae_title=wanted.ae_title,
        allowed_titles=_words_of(wanted.allowed_titles),
        allowed_peers=_words_of(wanted.allowed_peers),
        max_object_mb=wanted.max_object_mb,
        tls=tls,
    )
    stop = threading.Event()
    peers = Peers.of(
        ("poll", wanted.poll),
        ("destination", wanted.destination),
        ae_title=wanted.ae_title,
        tls=tls,
        max_object_mb=wanted.max_object_mb,
        stop=stop,
    )
    out_dir, of_study = Path(out_dir), StudyOptions.of(wanted)
    check_own_folders(out_dir, [INBOX, RUNS, WORK, REMOVED])
    with (
        private_files(),
        hold_folder(out_dir),
        create_engine("local", of_study, dict(overrides or {}), workers=1) as engine,
    ):
        node = Node(out_dir, engine, of_study, server, wanted, peers, stop)
        with until_signal(stop):
            node.run()
    return 0


class Node:
    """Receives, works on and delivers studies.

    Args:
        out_dir: folder that the caller holds.
        engine: engine that works on the studies, one at a time.
        options: the options that the engine was made with.
        server: whom the node listens to.
        wanted: times and sizes.
        peers: archives that studies are fetched from and results are sent to.
        stop: ends the node, and the requests of `peers`.
        say: called with one line for each event, which holds nothing of a patient.
    """

    def __init__(
        self,
        out_dir: Path,
        engine: Engine,
        options: StudyOptions,
        server: ServerOptions,
        wanted: ListenOptions,
        peers: Peers | None = None,
        stop: threading.Event | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.out_dir, self.engine, self.options, self.server_options = out_dir, engine, options, server
        self.wanted, self.peers = wanted, peers or Peers()
        self.say = say or _say
        self.first_delay = 5.0
        """Seconds until results are sent again."""
        self.inbox = Inbox(out_dir / INBOX, options.limits, wanted.max_inbox_mb)
        self.stop = stop or threading.Event()
        self.is_ready = threading.Event()
        """Set while it listens."""
        self.port = 0
        """That it listens on."""
        self._courier: Courier | None = None
        self._locks: dict[Path, threading.Lock] = {}
        self._locks_lock = threading.Lock()
        self._failures: dict[str, int] = {}

    def run(self) -> None:
        """Listen and work until `stop` is set.

        Raises:
            OSError: if the port is taken.
        """
        work = self.out_dir / WORK
        remove_own_folder(work)
        with quiet_network(), StorageServer(self.inbox, work / "receiving", self.server_options, self.say) as server:
            self.port = server.port
            if self.peers.send is not None:
                self._courier = Courier(self.peers.send, work / "sending", self._lock_of, self.say, self.first_delay)
            poller = threading.Thread(target=self._poll, args=(work / FETCHING,), name="poller", daemon=True)
            try:
                self._take_up()
                if self.peers.source is not None:
                    poller.start()
                self.say(f"listening on {self.server_options.host}:{self.port} as {self.server_options.ae_title}")
                self.is_ready.set()
                self._work()
                self.say("ending: no new connections")
            finally:
                self.is_ready.clear()
                self.stop.set()
                if poller.ident is not None:
                    poller.join(JOIN_SECONDS)
                if self._courier is not None:
                    self._courier.close()

    def _take_up(self) -> None:
        """Find what an earlier process has left: studies that are not done, results that are not delivered."""
        known = deliveries(self.out_dir / RUNS)
        done = {(run_dir.parent.name, tuple(delivery.inputs)) for run_dir, delivery in known.items()}
        for study in self.inbox.studies():
            if (study, tuple(self.inbox.names(study))) not in done:
                self.inbox.put_off(study)
        if self._courier is not None:
            for run_dir in known:
                self._courier.take(run_dir, is_new_start=True)

    def _work(self) -> None:
        next_cleaning = 0.0
        while not self.stop.is_set():
            study = self.inbox.take_complete(self.wanted.quiet_seconds)
            if study is not None:
                self._process(study)
            elif self.wanted.keep_days is not None and time.monotonic() >= next_cleaning:
                self._clean(self.wanted.keep_days)
                next_cleaning = time.monotonic() + CLEANING_SECONDS
            else:
                self.stop.wait(POLL_SECONDS)

    def _poll(self, folder: Path) -> None:
        """Fetch what is new in an archive, again and again; whatever fails is tried again the next time."""
        from synboost_monai.dicom.network.web_session import AnswerError

        assert self.peers.source is not None
        tell, fetcher = RefusalLog(self.say), Fetcher(self.peers.source, self.inbox, folder, self.say)
        while not self.stop.is_set():
            try:
                fetcher.run()
            except (NotReachableError, AnswerError) as error:
                if not self.stop.is_set():
                    tell(f"the archive cannot be searched: {error}")
            except Exception as error:  # noqa: BLE001  no room, a full disk: the node goes on with what it has
                tell(f"fetching was broken off: {_words(error)}")
            self.stop.wait(self.wanted.poll_seconds)

    # --- one study ---------------------------------------------------------------------------------------------------

    def _process(self, study: str) -> None:
        """Run the batch on a study; what fails is tried again later, and no study ends the node."""
        names = self.inbox.names(study)
        if not names:
            return
        self.say(f"study {study}: {len(names)} objects, complete")
        in_dir = self.inbox.folder / study
        settings = json.dumps(run_settings(in_dir, self.engine, self.options), sort_keys=True)
        run_dir = self.out_dir / RUNS / study / hashlib.sha256(settings.encode()).hexdigest()[:16]
        try:
            with self._lock_of(run_dir):
                own_folder(own_folder(own_folder(self.out_dir / RUNS) / study) / run_dir.name)
                rows = work_through(in_dir, run_dir, self.engine, self.options, resume=True)
                outputs = {o for row in rows for o in row["outputs"] if o.endswith(".dcm")}
                delivery = Delivery.load(run_dir) or Delivery([])
                transient = sorted({row["reason"] for row in rows} & RETRIED)
                is_final = not transient or self._failures.get(study, 0) >= MAX_REPEATS
                delivery.update(run_dir, names if is_final else [], outputs)  # not done: a new start tries again, too
                delivery.save(run_dir)
        except Exception as error:  # noqa: BLE001  a full disk, a damaged ledger: the other studies go on
            self._try_again(study, _words(error))
            return
        if self._courier is not None:
            self._courier.take(run_dir)
        counts = Counter(row["outcome"] for row in rows)
        self.say(f"study {study}: {', '.join(f'{n} {outcome}' for outcome, n in sorted(counts.items()))}")
        if is_final:
            self._failures.pop(study, None)
        else:
            self._try_again(study, ", ".join(transient).replace("_", " "))

    def _try_again(self, study: str, why: str) -> None:
        failures = self._failures[study] = self._failures.get(study, 0) + 1
        delay = min(FIRST_DELAY * 2 ** (failures - 1), LONGEST_DELAY)
        self.say(f"study {study}: {why}; tried again in {delay:.0f} s")
        self.inbox.put_off(study, delay - self.wanted.quiet_seconds)

    def _lock_of(self, run_dir: Path) -> threading.Lock:
        with self._locks_lock:
            return self._locks.setdefault(run_dir, threading.Lock())

    def _clean(self, keep_days: float) -> None:
        """Remove studies whose results were all delivered, or need not be, so many days ago."""
        runs: dict[str, dict[Path, Delivery]] = {}
        for run_dir, delivery in deliveries(self.out_dir / RUNS).items():
            runs.setdefault(run_dir.parent.name, {})[run_dir] = delivery
        for study, of_study in runs.items():
            age = time.time() - max(delivery.finished for delivery in of_study.values())
            is_through = self.peers.send is None or all(delivery.is_delivered for delivery in of_study.values())
            names = self.inbox.names(study)
            is_done = not names or any(delivery.inputs == names for delivery in of_study.values())
            if age < keep_days * DAY or not is_through or not is_done:
                continue
            self.inbox.remove(study)  # first: what is left of a run without its objects is found again the next time
            remove_own_folder(self.out_dir / RUNS / study)
            self.say(f"study {study}: removed after {age / DAY:.1f} days")


@contextmanager
def until_signal(stop: threading.Event) -> Iterator[None]:
    """Let SIGTERM and SIGINT set an event that stops a node after the study at hand, and end it at once the second time.

    Outside the main thread nothing changes.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        os.write(2, b"ending after the study at hand; a second signal ends at once\n")  # a handler must not use print

    is_main = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, on_signal) for n in (signal.SIGTERM, signal.SIGINT)} if is_main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _words_of(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _words(error: Exception) -> str:
    """Return what went wrong, without text that may be of a file."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    if type(error) is ValueError and ("ledger" in str(error) or "room" in str(error)):
        return str(error).rpartition(": ")[2]
    return f"an unforeseen error ({type(error).__name__})"


def _say(text: str) -> None:
    """Print a line on stderr, with the time."""
    print(f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ} {text}", file=sys.stderr, flush=True)
