"""Deliver results to an archive: each is kept and tried again until it is taken.

`delivery.json` beside a run's outputs says from which objects of the study they were made, and for each result its hash and what became
of it. It is written whole after the outputs, and whenever some were sent. A process that ends in between sends a result once more;
archives take the same object twice without harm.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from synboost_monai.dicom.network.common import NotReachableError
from synboost_monai.dicom.writing.objects import sync_folder
from synboost_monai.files import atomic_path, sha256_of
from synboost_monai.paths import is_real_folder

Send = Callable[[Sequence[Path], Path], Iterator[tuple[Path, str]]]
"""Send files, given a folder for copies in other transfer syntaxes: yields each with '' if it was taken, or else the reason; raises
`NotReachableError`."""
RECORD = "delivery.json"
"""Name of the record, in a run's folder."""
FORMAT = 1
"""Version of the record; raised when readers have to know of a change."""
WAITING, DELIVERED, REFUSED = "waiting", "delivered", "refused"
"""States of a result."""
MAX_REFUSALS = 10
"""Number of times that a destination may refuse a result before it is left on the disk; a new start of the node tries again."""
SAVED_EVERY = 50
"""Results between two writings of the record while they are sent."""
LONGEST_DELAY = 600.0
"""Longest time between two tries, in seconds."""


@dataclass
class Item:
    """Hold the state of one result."""

    sha256: str
    state: str = WAITING
    refusals: int = 0
    reason: str = ""
    """Reason for the last refusal."""


@dataclass
class Delivery:
    """Hold the record of a run's results."""

    inputs: list[str]
    """Names of the study's objects that the run saw."""
    items: dict[str, Item] = field(default_factory=dict)
    """Path of a result, relative to the run's folder -> its state."""
    finished: float = 0.0
    """Time at which the run ended, in seconds since 1970."""

    @classmethod
    def load(cls, run_dir: Path) -> Delivery | None:
        """Read the record of a run; return None if there is none yet."""
        try:
            values = json.loads((run_dir / RECORD).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return cls(values["inputs"], {name: Item(**item) for name, item in values["items"].items()}, values["finished"])

    def save(self, run_dir: Path) -> None:
        """Write the record; it is on the disk when this returns."""
        with atomic_path(run_dir / RECORD) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, **asdict(self)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(run_dir)

    def update(self, run_dir: Path, inputs: Iterable[str], outputs: Iterable[str]) -> None:
        """Take the results of a run that has ended; those that were delivered and have not changed stay delivered."""
        before, self.items = self.items, {}
        self.inputs, self.finished = sorted(inputs), time.time()
        for name in sorted(set(outputs)):
            digest = sha256_of(run_dir / name)
            known = before.get(name)
            self.items[name] = known if known is not None and known.sha256 == digest else Item(digest)

    def take_up(self) -> bool:
        """Let results wait again that were refused too often, at a new start; return whether any waits."""
        for item in self.items.values():
            if item.state == REFUSED:
                item.state, item.refusals = WAITING, 0
        return not self.is_done

    def send(self, run_dir: Path, send: Send, scratch: Path) -> str | None:
        """Send the results that wait, and record what became of them.

        Args:
            run_dir: the run's folder.
            send, scratch: as in `Send`.
        Returns:
            What was done, in words; None if there was nothing to send.
        """
        waiting = {run_dir / name: item for name, item in self.items.items() if item.state == WAITING}
        # one that differs is of a run that was ended while it made it again; it is repeated, and then has a new record
        whole = [path for path, item in waiting.items() if path.is_file() and sha256_of(path) == item.sha256]
        if not whole:
            return None
        problem, num_sent = "", 0
        try:
            for number, (path, refusal) in enumerate(send(whole, scratch), start=1):
                item = waiting[path]
                item.reason = refusal
                if refusal:
                    problem = refusal
                    item.refusals += 1
                    item.state = REFUSED if item.refusals >= MAX_REFUSALS else WAITING
                else:
                    num_sent += 1
                    item.state = DELIVERED
                if number % SAVED_EVERY == 0:
                    self.save(run_dir)
        except NotReachableError as error:
            problem = str(error)
        finally:
            with contextlib.suppress(OSError):
                self.save(run_dir)
        return self._words(num_sent, problem)

    def _words(self, num_sent: int, problem: str) -> str:
        left = sum(item.state == WAITING for item in self.items.values())
        refused = sum(item.state == REFUSED for item in self.items.values())
        words = f"{num_sent} results delivered"
        words += f", {left} are tried again later ({problem or 'the association was lost'})" if left else ""
        return words + (f", {refused} refused for good ({problem}); they stay here" if refused else "")

    @property
    def is_done(self) -> bool:
        """Return whether no result waits."""
        return all(item.state != WAITING for item in self.items.values())

    @property
    def is_delivered(self) -> bool:
        """Return whether all results were delivered."""
        return all(item.state == DELIVERED for item in self.items.values())


class Courier:
    """A Courier sends results in its own thread.

    Args:
        send: sends files to where all results go.
        scratch: folder for files in other transfer syntaxes.
        lock_of: run's folder -> lock, held while its results are sent or made.
        say: called with one line that says what was sent.
        first_delay: seconds after the first failure; it doubles with each further one.
    """

    def __init__(
        self,
        send: Send,
        scratch: Path,
        lock_of: Callable[[Path], threading.Lock],
        say: Callable[[str], None],
        first_delay: float = 5.0,
    ) -> None:
        self._send, self._scratch, self._lock_of = send, scratch, lock_of
        self._say, self._first_delay = say, first_delay
        self._waiting: dict[Path, tuple[float, float]] = {}
        """Run's folder -> time of its next try (monotonic seconds), and the delay after that."""
        self._condition = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="courier", daemon=True)
        self._thread.start()

    def take(self, run_dir: Path, is_new_start: bool = False) -> None:
        """Deliver the waiting results of a run; at a new start, also those that were refused too often."""
        if is_new_start and (delivery := Delivery.load(run_dir)) is not None:
            if not delivery.take_up():
                return
            delivery.save(run_dir)
        with self._condition:
            self._waiting[run_dir] = (time.monotonic(), self._first_delay)
            self._condition.notify()

    def close(self, grace: float = 5.0) -> None:
        """Stop the thread; results that wait stay on the disk."""
        with self._condition:
            self._is_closed = True
            self._condition.notify()
        self._thread.join(grace)

    def _work(self) -> None:
        while (due := self._next()) is not None:
            run_dir, delay = due
            try:
                is_done = self._deliver(run_dir)
            except Exception as error:  # noqa: BLE001  the thread must not end: waiting results are tried again
                self._say(
                    f"study {run_dir.parent.name}: results could not be sent: {type(error).__name__}; tried again later"
                )
                is_done = False
            with self._condition:
                if not is_done:  # new results of the same run may wait by now: they come at once
                    self._waiting.setdefault(run_dir, (time.monotonic() + delay, min(2 * delay, LONGEST_DELAY)))

    def _next(self) -> tuple[Path, float] | None:
        """Wait for the run that is due first, and return it with the delay after a failure; None at the end."""
        with self._condition:
            while not self._is_closed:
                now = time.monotonic()
                run_dir = min(self._waiting, key=lambda path: self._waiting[path][0], default=None)
                if run_dir is not None and self._waiting[run_dir][0] <= now:
                    return run_dir, self._waiting.pop(run_dir)[1]
                self._condition.wait(None if run_dir is None else self._waiting[run_dir][0] - now)
        return None

    def _deliver(self, run_dir: Path) -> bool:
        """Try once; return True if nothing is left to do."""
        study = run_dir.parent.name
        with self._lock_of(run_dir):
            delivery = Delivery.load(run_dir)
            if delivery is None:
                return True
            words = delivery.send(run_dir, self._send, self._scratch)
        if words is None:
            return True
        self._say(f"study {study}: {words}")
        return delivery.is_done


def deliveries(runs_dir: Path) -> dict[Path, Delivery]:
    """Return the records of all runs below a folder."""
    found: dict[Path, Delivery] = {}
    for path in sorted(runs_dir.glob(f"*/*/{RECORD}")):
        if not (is_real_folder(path.parent) and is_real_folder(path.parent.parent)):
            continue  # a link
        # records are written whole or not at all; others are foreign
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if (delivery := Delivery.load(path.parent)) is not None:
                found[path.parent] = delivery
    return found
