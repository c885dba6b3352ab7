"""Test a whole run on the fault corpus: it ends, every entry has its expected line, and nothing else changes."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
import sqlite3
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from synboost_monai.dicom.reasons import REASONS
from synboost_monai.hospital.privacy import Naming
from tests.forked import Forked
from tests.hospital import launch_batch
from tests.hospital.fault_corpus import SECRETS, Expected, write_corpus

ROOT = Path(__file__).resolve().parents[2]
NO_WORDS_FOR_PEOPLE = re.compile(
    r"Error\b|Exception|Traceback|\bNone\b|\bnan\b|<class|\b0x[0-9a-f]+|NoneType|\.py\b|object at|errno|unforeseen|\\x|[{}]"
    r"|(?<!synboost-monai)\[(?!Selection Value)",  # an extra's name, and the standard's own name of a transfer syntax
    re.IGNORECASE,
)
"""What a sentence must not hold."""
LONGEST_RUN = 600
"""Seconds for the whole corpus, so that a run that hangs ends; it takes a tenth of that on two slow cores."""
MOST_MEMORY_MB = 2500
"""MB (2^20 bytes) of the run's processes together, torch and two workers with them."""
KEY = hashlib.sha256(b"key").digest()
SMALL = ("system", "names", "others", "frames", "identity", "text", "good", "regions")
"""Chapters of which a part is enough for other options."""


@dataclass
class Run:
    """Hold what a run left behind."""

    out: Path
    expected: list[Expected]
    exit_code: int
    seconds: float
    printed: str
    peak_mb: float
    before: dict[str, Any]
    after: dict[str, Any]
    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    """path_sha256 -> row of ledger.csv."""
    num_rows: int = 0
    naming: Naming = field(default_factory=Naming)

    def row(self, entry: Expected) -> dict[str, str]:
        return self.rows[self.naming.path(entry.relative)]


def snapshot(folder: Path) -> dict[str, Any]:
    """Return everything below a folder except OUT: kind, size, time of change, and content of small files."""
    state: dict[str, Any] = {}
    for root, folders, files in os.walk(os.fsencode(folder)):
        folders[:] = [name for name in folders if os.path.join(root, name) != os.fsencode(folder / "out")]
        for name in (*folders, *files):
            path = os.path.join(root, name)
            try:
                status = os.lstat(path)
            except OSError:  # too long a path
                continue
            is_small = stat.S_ISREG(status.st_mode) and status.st_size < 1 << 20
            content: Any = b""
            if is_small and os.access(path, os.R_OK):
                with open(path, "rb") as file:
                    content = hash(file.read())
            state[os.fsdecode(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
    return state


def memory_mb(pid: int) -> float:
    """Return the memory of a process and all below it, each shared page counted by a share (PSS), from /proc."""
    total, pending = 0.0, [pid]
    while pending:
        one = pending.pop()
        try:
            with open(f"/proc/{one}/smaps_rollup", encoding="ascii") as file:
                total += next(int(line.split()[1]) for line in file if line.startswith("Pss:")) / 1024
            for task in os.listdir(f"/proc/{one}/task"):
                pending += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
        except (OSError, StopIteration, ValueError):
            continue
    return total


def run_corpus(folder: Path, expected: list[Expected], *arguments: str) -> Run:
    """Do the run in a separate process."""
    before = snapshot(folder)
    start = time.monotonic()
    process = Forked(launch_batch.main, folder / "in", folder / "out", *arguments, folder=folder)
    peaks = [0.0]

    def watch() -> None:
        while process.poll() is None:
            peaks.append(memory_mb(process.pid))
            time.sleep(0.5)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        exit_code = process.wait(LONGEST_RUN)
    finally:
        watcher.join()
    seconds, printed = time.monotonic() - start, process.stdout + process.stderr
    run = Run(folder / "out", expected, exit_code, seconds, printed, max(peaks), before, snapshot(folder))
    if (run.out / "ledger.csv").is_file():
        with open(run.out / "ledger.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        run.num_rows, run.rows = len(rows), {row["path_sha256"]: row for row in rows}
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("corpus")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Run:
    """Run on the whole corpus; the page of each study takes half of the time, so the runs on parts of the corpus make those."""
    (folder / "in").mkdir()
    run = run_corpus(folder, write_corpus(folder / "in"), "report=none")
    assert run.exit_code in (0, 1, 2), run.printed[-3000:]
    return run


def test_the_corpus_is_large_and_has_every_outcome_and_almost_every_reason(whole: Run) -> None:
    assert len(whole.expected) >= 100
    assert {entry.outcome for entry in whole.expected} == {"processed", "uncalibrated", "skipped", "refused"}
    of_the_machine = {"vanished", "changed", "worker_lost", "timeout", "out_of_memory", "decoder_died", "model_failed"}
    of_this_system = {"cannot_write", "unreadable", "missing_decoder", "damaged_frame"}
    of_other_options = {"no_sector", "given_frames", "study_too_long"}
    found = {row["reason"] for row in whole.rows.values()}
    assert REASONS.keys() - found <= of_the_machine | of_this_system | of_other_options


def test_it_ends_in_time_and_memory_with_an_honest_exit_code(whole: Run) -> None:
    assert whole.exit_code == 1
    assert whole.seconds < LONGEST_RUN
    assert 0 < whole.peak_mb < MOST_MEMORY_MB


def test_every_entry_has_one_line_with_the_right_outcome(whole: Run) -> None:
    assert whole.num_rows == len(whole.rows) == len(whole.expected)
    wrong = []
    for entry in whole.expected:
        row = whole.row(entry)
        if row["outcome"] != entry.outcome or row["reason"] not in entry.reasons:
            got = f"{row['outcome']} {row['sentence']}"
            wrong.append(f"{entry.relative!r}: expected {entry.outcome} {entry.reasons}, got {got}")
    assert not wrong, "\n".join(wrong)


def test_every_reason_is_for_people(whole: Run) -> None:
    for row in whole.rows.values():
        assert row["reason"] in REASONS and REASONS[row["reason"]].outcome.value == row["outcome"]
        assert row["sentence"] and not NO_WORDS_FOR_PEOPLE.search(row["sentence"]), row["sentence"]


def test_lines_say_what_was_made(whole: Run) -> None:
    for row in whole.rows.values():
        has_outputs = row["outputs"] not in ("", "[]")
        assert has_outputs == (row["outcome"] in ("processed", "uncalibrated")), row
        if has_outputs:
            assert row["sha256"] and row["model_sha256"]


def test_nothing_outside_of_the_output_is_touched(whole: Run) -> None:
    assert whole.after == whole.before


def assert_names_are_ours(run: Run) -> None:
    ours = re.compile(r"(ledger\.(csv|sqlite)|report\.(html|dcm)|measurements\.(csv|json)|\.lock|studies|[0-9a-f]{16}|sr\.dcm"
                      r"|(seg|overlay|deidentified)_[0-9a-f]{16}\.dcm|frame_[0-9a-f]{16}_\d+\.png)")  # fmt: skip
    for path in run.out.rglob("*"):
        assert ours.fullmatch(path.name), path
        assert not path.is_symlink()


def assert_no_secret(run: Run) -> None:
    for path in run.out.rglob("*"):
        shown = str(path.relative_to(run.out)).lower()
        assert not any(secret in shown for secret in SECRETS), shown
        if path.is_file() and path.suffix not in (".dcm", ".png"):
            text = path.read_bytes().decode("utf-8", "replace").lower()
            for secret in SECRETS:
                assert secret not in text, (path.name, secret, text[max(0, text.index(secret) - 80) :][:200])
            assert path.suffix == ".sqlite" or ("\x1b" not in text and "\0" not in text)
    printed = run.printed.lower()
    assert not any(secret in printed for secret in SECRETS), run.printed
    assert "\x1b[31m" not in printed and "warning" not in printed and "traceback" not in printed, run.printed


def test_no_text_of_a_header_is_told_nor_used_as_a_name(whole: Run) -> None:
    assert_no_secret(whole)
    assert_names_are_ours(whole)


def test_page_and_table_cannot_be_made_to_act(whole: Run) -> None:
    page = (whole.out / "report.html").read_text(encoding="utf-8")
    assert "onerror=alert(1)>" not in page.replace("onerror=alert(1)&gt;", "")
    for row in whole.rows.values():
        for cell in row.values():
            assert not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r"))
            assert "\n" not in cell and "\x1b" not in cell and "\u202e" not in cell


def test_ledger_in_both_forms_says_the_same(whole: Run) -> None:
    connection = sqlite3.connect(whole.out / "ledger.sqlite")
    stored = connection.execute("SELECT path_sha256, outcome, reason FROM files").fetchall()
    connection.close()
    assert sorted(stored) == sorted((r["path_sha256"], r["outcome"], r["reason"]) for r in whole.rows.values())


@pytest.mark.parametrize(
    "options",
    [
        ("workers=1", "frames=all", "segmentation=labelmap", "paths=hashed"),
        ("key", "view=a4c", "frames=all", "overlay=no"),
    ],
    ids=["all frames", "de-identified"],
)
def test_other_options_end_as_well(whole: Run, folder: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Every sixth file is taken from the chapters that get as far as being written."""
    chosen = [entry for entry in whole.expected if entry.relative.startswith(SMALL)]
    groups = Counter(entry.relative.split("/")[0] for entry in chosen)
    assert set(groups) == set(SMALL)
    kept = []
    for number, entry in enumerate(chosen):
        source, target = folder / "in" / entry.relative, tmp_path / "in" / entry.relative
        if number % 6 or not stat.S_ISREG(os.lstat(source).st_mode):
            continue
        of_others = ("duplicate", "conflicting_duplicate", "patients_mixed")
        if "long_clip" in entry.relative or entry.reasons[0] in of_others:
            continue  # takes long; needs the others
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
        kept.append(entry)
    is_keyed = "key" in options
    if is_keyed:
        (tmp_path / "key").touch(0o600)
        (tmp_path / "key").write_bytes(KEY)
        options = (*options[1:], f"deidentify={tmp_path / 'key'}")
    run = run_corpus(tmp_path, kept, *options)
    run.naming = Naming(KEY if is_keyed else None)
    assert run.exit_code == 1 and run.num_rows == len(kept)
    for entry in kept:
        row = run.row(entry)
        allowed = ("segmented",) if "view=a4c" in options and entry.reasons == ("other_view",) else entry.reasons
        assert row["reason"] in allowed or (is_keyed and row["reason"] == "no_sector"), (entry, row["sentence"])
        assert not NO_WORDS_FOR_PEOPLE.search(row["sentence"]), row["sentence"]
    assert run.after == run.before
    assert_no_secret(run)
    assert_names_are_ours(run)
    num_segmented = sum(row["outputs"] not in ("", "[]") for row in run.rows.values())
    assert len(list(run.out.glob("studies/*/report.html"))) > num_segmented / 2 > 10
