"""Record what became of every file of a run: one row per file in `OUT/ledger.sqlite`, and `ledger.csv` made from it.

The database loses nothing that was recorded, however the process or the machine ends: its rollback journal is flushed to the disk at
each commit. The rows of a study are committed together, after its outputs have been written. After a run that dies in between, the
study is pending, and the next run writes the same outputs again.

The ledger says nothing about patients: it keeps paths as `privacy.py` shows them and their hashes, hashes of studies, and SOP Instance
UIDs; where outputs are de-identified, nothing that leads to an original without the key (`privacy.Naming`).
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

from synboost_monai.csv_files import csv_text
from synboost_monai.dicom.reading.scanned_file import ScannedFile
from synboost_monai.dicom.reasons import REASONS, NotUsableError, Outcome
from synboost_monai.files import atomic_path
from synboost_monai.hospital.privacy import Naming, visible

DATABASE, TABLE = "ledger.sqlite", "ledger.csv"
"""Names of the two files in OUT."""
SCHEMA_VERSION = 1
"""Version of the database's schema; raised whenever a column changes."""
APPLICATION_ID = 0x53424C47
"""Marks a SQLite file as a ledger of ours ("SBLG")."""
TRIED_AGAIN = ("vanished", "changed", "unreadable", "cannot_write")
"""Reasons that may have passed by the next run: a resumed run takes such files as pending."""
OF_OTHERS = ("duplicate", "conflicting_duplicate")
"""Reasons that depend on the other files of a scan, and come and go with them."""
PENDING = "pending"
"""Value in place of an outcome: the file has not been dealt with."""

COLUMNS = (
    *("path", "path_sha256", "size", "sha256", "study", "sop_instance_uid", "outcome", "reason", "sentence"),
    *("model_sha256", "outputs", "seconds", "finished_at"),
)
"""Columns of `ledger.csv`."""

_SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE files (
    path_sha256 TEXT PRIMARY KEY,
    path TEXT NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    sha256 TEXT NOT NULL DEFAULT '',
    study TEXT NOT NULL DEFAULT '',
    sop_instance_uid TEXT NOT NULL DEFAULT '',
    outcome TEXT NOT NULL DEFAULT 'pending',
    reason TEXT NOT NULL DEFAULT '',
    sentence TEXT NOT NULL DEFAULT '',
    model_sha256 TEXT NOT NULL DEFAULT '',
    outputs TEXT NOT NULL DEFAULT '[]',
    seconds REAL NOT NULL DEFAULT 0,
    finished_at TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
"""

_REOPEN = (
    "UPDATE files SET sha256 = '', outcome = 'pending', reason = '', sentence = '', model_sha256 = '', outputs = '[]', seconds = 0, "
    "finished_at = ''"
)
_STATES = "SELECT path_sha256, size, mtime_ns FROM files"


@dataclass(frozen=True)
class Result:
    """Hold what became of one file."""

    file: ScannedFile
    reason: str
    """Key of `REASONS`, which also gives the outcome."""
    sentence: str
    """The reason in words, without text from the file."""
    sha256: str = ""
    """SHA-256 of the file; '' where it could not be read or is not a regular file."""
    model_sha256: str = ""
    """SHA-256 of the model's weights, where it was used."""
    outputs: tuple[str, ...] = ()
    """Files made from it, relative to OUT, with slashes."""
    seconds: float = 0.0
    """Time that it took."""

    def __post_init__(self) -> None:
        if self.reason not in REASONS:
            raise ValueError(f"ledger.py: {self.reason!r} is no reason code; add it to reasons.py")
        for output in self.outputs:
            if PurePosixPath(output).is_absolute() or ".." in PurePosixPath(output).parts or not output:
                raise ValueError("ledger.py: an output must be a path relative to OUT, without ..")

    @classmethod
    def of(cls, file: ScannedFile, problem: NotUsableError | None = None, **facts: Any) -> Result:
        """Return the result of a file that has a problem: the one given, or the one that the scan found.

        Raises:
            ValueError: if there is no problem.
        """
        problem = problem or file.reason
        if problem is None:
            raise ValueError("ledger.py: the file has no reason of the scan; give one")
        return cls(file, problem.reason.code, str(problem), **facts)

    @property
    def outcome(self) -> Outcome:
        return REASONS[self.reason].outcome


@dataclass
class Ledger:
    """Hold the ledger of one run, which one process writes. Use `Ledger.open`, and close it (or use it in a `with`)."""

    out_dir: Path
    connection: sqlite3.Connection = field(repr=False)
    naming: Naming = field(default_factory=Naming)
    """How it names files, studies and objects."""

    @classmethod
    def open(
        cls,
        out_dir: str | os.PathLike[str],
        settings: Mapping[str, Any],
        resume: bool = False,
        naming: Naming | None = None,
    ) -> Ledger:
        """Begin a ledger in a folder, or go on with the one that is there.

        Args:
            out_dir: made if need be.
            settings: settings of the run, including the model's hash and the input: all that must be the same for the same outputs.
                Plain values for JSON; they are stored, so give a hash where a value might identify (the input's path).
            resume: go on with a ledger; begin one if there is none.
            naming: how it names files, studies and objects; None: plainly.
        Raises:
            ValueError: if there is a ledger and `resume` is False; if its settings are others (the message names them); if the
                file is damaged, not a ledger, of another version, or in use by another run.
        """
        folder = Path(out_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / DATABASE
        wanted = {name: json.dumps(value, sort_keys=True, default=str) for name, value in settings.items()}
        _check_place(path)
        try:
            connection = sqlite3.connect(path, timeout=2, isolation_level=None)
        except sqlite3.Error as error:
            raise ValueError(f"{path}: the ledger cannot be opened; is the folder writable?") from error
        try:
            _prepare(connection, path, wanted, resume)
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error):
                raise _unusable(path, error) from error
            raise
        return cls(folder, connection, naming or Naming())

    def close(self) -> None:
        """Close the database, and remove the empty journal that a killed run may have left; SQLite only does so after a change."""
        # before closing, while the journal cannot be another run's; a transaction would still need it
        if not self.connection.in_transaction:
            (self.out_dir / f"{DATABASE}-journal").unlink(missing_ok=True)
        self.connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, files: Iterable[ScannedFile], show: Callable[[str], str]) -> None:
        """Enter the files of a scan as pending.

        A file that the ledger has already keeps its result, unless it has changed since or its reason may have passed (`TRIED_AGAIN`).
        A file of an earlier scan that is gone becomes `vanished`, unless it has a result.

        Args:
            files: all of one scan.
            show: how a relative path is shown (`privacy.path_display`).
        """
        listed = set()
        with self._transaction() as connection:
            for file in files:
                key = self.naming.path(file.relative)
                listed.add(key)
                names = (self.naming.study(file.study_uid), self.naming.instance(file.sop_instance_uid))
                state = (*self.naming.state(file), *names)
                known = connection.execute("SELECT size, mtime_ns, reason FROM files WHERE path_sha256 = ?", (key,))
                size, mtime_ns, reason = known.fetchone() or (None, None, "")
                if (size, mtime_ns) == state[:2] and reason not in TRIED_AGAIN:
                    continue
                connection.execute(
                    "INSERT OR REPLACE INTO files (path_sha256, path, size, mtime_ns, study, sop_instance_uid) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (key, _storable(show(file.relative)), *state),
                )
            waiting = [key for (key,) in connection.execute("SELECT path_sha256 FROM files WHERE outcome = 'pending'")]
            gone = NotUsableError("vanished")
            for key in set(waiting) - listed:
                connection.execute(
                    "UPDATE files SET outcome = ?, reason = ?, sentence = ?, finished_at = ? WHERE path_sha256 = ?",
                    (gone.reason.outcome.value, gone.reason.code, str(gone), _now(), key),
                )

    def reopen(self, reasons: Iterable[str]) -> None:
        """Make files with any of these reasons pending again."""
        with self._transaction() as connection:
            for reason in sorted(reasons):
                connection.execute(f"{_REOPEN} WHERE reason = ?", (reason,))

    def reopen_changed(self, files: Iterable[ScannedFile]) -> None:
        """Make pending again what a new run would do differently: whole studies, because their measures depend on all their files.

        These are studies with a missing output, with a usable file that has no result, with a file that has changed, or with one that
        turns out to be a copy or a contradiction of another; and files that were copies and no longer are. A study whose files are
        gone keeps its results.

        Args:
            files: all of one scan.
        """
        rows = {row["path_sha256"]: row for row in self.rows()}
        stored = {key: (size, mtime_ns) for key, size, mtime_ns in self._read(_STATES)}
        changed: set[str] = set()
        studies = {
            row["study"]
            for row in rows.values()
            if not all((self.out_dir / output).is_file() for output in row["outputs"])
        }
        for file in files:
            key = self.naming.path(file.relative)
            row = rows.get(key)
            is_same = stored.get(key) == self.naming.state(file)
            if file.reason is None and (
                not row or row["outcome"] == PENDING or row["reason"] in OF_OTHERS or not is_same
            ):
                studies.add(self.naming.study(file.study_uid))
            if row and row["outputs"] and (file.reason is not None or not is_same):
                studies.add(row["study"])
            if row and row["reason"] in OF_OTHERS and (file.reason is None or file.reason.reason.code != row["reason"]):
                changed.add(key)
        changed.update(key for key, row in rows.items() if row["outputs"] and row["study"] in studies)
        with self._transaction() as connection:
            connection.executemany(f"{_REOPEN} WHERE path_sha256 = ?", [(key,) for key in sorted(changed)])

    def pending(self, files: Iterable[ScannedFile]) -> list[ScannedFile]:
        """Return those of the files that have no result, in their order."""
        done = {key for (key,) in self._read("SELECT path_sha256 FROM files WHERE outcome != 'pending'")}
        return [file for file in files if self.naming.path(file.relative) not in done]

    def record(self, *results: Result) -> None:
        """Record what became of files, all of them or none: give a study's files in one call, after its outputs are on the disk.

        The same result recorded again changes nothing.

        Raises:
            ValueError: if a file was not entered by `begin`.
        """
        with self._transaction() as connection:
            for result in results:
                values = {
                    "sha256": self.naming.digest(result.sha256),
                    "study": self.naming.study(result.file.study_uid),
                    "sop_instance_uid": self.naming.instance(result.file.sop_instance_uid),
                    "outcome": result.outcome.value,
                    "reason": result.reason,
                    "sentence": result.sentence,
                    "model_sha256": result.model_sha256,
                    "outputs": json.dumps(list(result.outputs)),
                    "seconds": round(float(result.seconds), 3),
                }
                key = self.naming.path(result.file.relative)
                names = ", ".join(values)
                before = connection.execute(f"SELECT {names} FROM files WHERE path_sha256 = ?", (key,)).fetchone()
                if before is None:
                    raise ValueError("ledger.py: a result of a file that is not in the ledger; enter it by `begin`")
                if before[:-1] != tuple(values.values())[:-1]:  # another time alone is not another result
                    changes = ", ".join(f"{name} = ?" for name in values)
                    connection.execute(
                        f"UPDATE files SET {changes}, finished_at = ? WHERE path_sha256 = ?",
                        (*values.values(), _now(), key),
                    )

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield every row, sorted by path, with the keys `COLUMNS`; `outputs` is a list."""
        names = ", ".join(COLUMNS)
        for row in self._read(f"SELECT {names} FROM files ORDER BY path, path_sha256"):
            values = dict(zip(COLUMNS, row))
            values["outputs"] = json.loads(values["outputs"])
            yield values

    def write_csv(self) -> Path:
        """Write `ledger.csv` whole; it is on the disk when this returns, and its cells are safe in a spreadsheet."""
        rows: list[Sequence[str]] = [COLUMNS]
        for row in self.rows():
            cells = {**row, "outputs": json.dumps(row["outputs"]) if row["outputs"] else ""}
            # the path is already written out: doing so again would double its backslashes
            rows.append([value if name == "path" else visible(str(value)) for name, value in cells.items()])
        path = self.out_dir / TABLE
        with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(csv_text(rows, quote_all=True))
            file.flush()
            os.fsync(file.fileno())
        return path

    def _read(self, query: str) -> list[Any]:
        try:
            return self.connection.execute(query).fetchall()
        except sqlite3.Error as error:
            raise _unusable(self.out_dir / DATABASE, error) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit all of what is done inside, or none of it."""
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise _unusable(self.out_dir / DATABASE, error) from error


def _check_place(path: Path) -> None:
    """Refuse a ledger or a journal that is not a regular file: SQLite would wait for a pipe and follow a link."""
    for place in (path, *(path.with_name(path.name + end) for end in ("-journal", "-wal", "-shm"))):
        try:
            mode = os.lstat(place).st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(mode):
            raise ValueError(
                f"{place}: expected a ledger or nothing, got something that is no regular file; move it away"
            )


def _prepare(connection: sqlite3.Connection, path: Path, wanted: dict[str, str], resume: bool) -> None:
    """Lock the database for this process, and create the ledger or check that it has these settings."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("PRAGMA synchronous = EXTRA")  # FULL, and the folder is flushed when a journal goes
    connection.execute("BEGIN EXCLUSIVE")
    version, application, num_tables = (
        connection.execute(query).fetchone()[0]
        for query in ("PRAGMA user_version", "PRAGMA application_id", "SELECT COUNT(*) FROM sqlite_master")
    )
    if (version, application, num_tables) == (0, 0, 0):  # new, or begun by a run that died at once
        for statement in filter(str.strip, _SCHEMA.split(";")):
            connection.execute(statement)
        connection.executemany("INSERT INTO settings VALUES (?, ?)", wanted.items())
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
        return
    if application != APPLICATION_ID:
        raise ValueError(f"{path}: a database, but not a ledger of synboost; choose another folder for the results")
    if version != SCHEMA_VERSION:
        age = "a newer" if version > SCHEMA_VERSION else "an older"
        raise ValueError(
            f"{path}: a ledger of {age} version of synboost (schema {version}, this one has {SCHEMA_VERSION}); "
            "choose another folder for the results"
        )
    if not resume:
        raise ValueError(
            f"{path}: the folder holds the ledger of an earlier run; go on with it by --resume, or choose another folder"
        )
    if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise sqlite3.DatabaseError("malformed")
    stored = dict(connection.execute("SELECT name, value FROM settings"))
    differing = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
    if differing:
        raise ValueError(
            f"{path}: the ledger is of a run with another {', another '.join(differing)}; go on with the same settings, or "
            "choose another folder for the results"
        )
    connection.execute("COMMIT")


def _unusable(path: Path, error: sqlite3.Error) -> ValueError:
    """Return an error of SQLite as one that says what to do."""
    text = str(error).lower()
    if "locked" in text:
        return ValueError(f"{path}: another run is at work in this folder; wait until it ends")
    if "full" in text:
        return ValueError(f"{path}: the ledger cannot be written: the disk is full")
    if "readonly" in text or "unable to open" in text or "i/o" in text:
        return ValueError(f"{path}: the ledger cannot be written: the folder is read-only or its disk fails ({text})")
    return ValueError(f"{path}: the ledger is damaged, or no ledger at all; move it away and begin anew")


def _storable(text: str) -> str:
    """Return text that SQLite can hold: a stray byte of a file name is written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
