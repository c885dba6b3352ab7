"""Test the ledger: it has every file once, loses nothing by a kill, takes no other run's files, and its table is safe to open."""

from __future__ import annotations

import csv
import os
import sqlite3
import time
from collections import Counter
from pathlib import Path

import pytest

from synboost_monai.dicom.reading.scanned_file import ScannedFile, short_hash
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.hospital.ledger import APPLICATION_ID, COLUMNS, Ledger, Result
from synboost_monai.hospital.privacy import path_display, path_sha256
from tests.forked import Forked

SETTINGS = {"model_sha256": "ab" * 32, "frames": "all", "input": "cd" * 32}
PLAIN = path_display("plain")


def scanned(relative: str, size: int = 10, mtime_ns: int = 1, study: str = "1.2.3", reason: str = "") -> ScannedFile:
    problem = NotUsableError(reason) if reason else None
    return ScannedFile(
        f"/in/{relative}", relative, size, mtime_ns, problem, sop_instance_uid="1.2.3.4", study_uid=study
    )


def counts(ledger: Ledger) -> Counter[str]:
    return Counter(row["outcome"] for row in ledger.rows())


def done(file: ScannedFile, **facts: object) -> Result:
    values: dict = {"sha256": "ef" * 32, "model_sha256": "ab" * 32, "outputs": ("s/seg.dcm",), "seconds": 1.5, **facts}
    return Result(file, "segmented", "segmented: 20 frames", **values)


def test_every_file_has_one_row_with_what_became_of_it(tmp_path: Path) -> None:
    files = [scanned("b/1"), scanned("a/2", reason="not_dicom", study=""), scanned("c/3"), scanned("d/4")]
    with Ledger.open(tmp_path / "out", SETTINGS) as ledger:
        ledger.begin(files, path_display("hashed"))
        assert ledger.pending(files) == files and counts(ledger) == {"pending": 4}
        ledger.record(Result.of(files[1]))
        ledger.record(done(files[0]), Result.of(files[2], NotUsableError("no_regions"), outputs=("s/seg.dcm",)))
        assert ledger.pending(files) == [files[3]]
        assert counts(ledger) == {"processed": 1, "uncalibrated": 1, "skipped": 1, "pending": 1}
        rows = {row["path_sha256"]: row for row in ledger.rows()}
    row = rows[path_sha256("b/1")]
    assert tuple(row) == COLUMNS
    assert (row["path"], row["size"], row["sop_instance_uid"]) == (path_sha256("b/1")[:16], 10, "1.2.3.4")
    assert row["study"] == short_hash(files[0].study_uid) and len(row["study"]) == 16
    assert (row["outcome"], row["reason"], row["sentence"]) == ("processed", "segmented", "segmented: 20 frames")
    assert (row["outputs"], row["seconds"]) == (["s/seg.dcm"], 1.5)
    assert row["finished_at"].endswith("Z") and len(row["finished_at"]) == 20
    assert (rows[path_sha256("a/2")]["study"], rows[path_sha256("a/2")]["sentence"]) == ("", "this is not a DICOM file")
    assert rows[path_sha256("d/4")]["outcome"] == "pending"


def test_the_same_result_again_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = scanned("a")
    with Ledger.open(tmp_path, SETTINGS) as ledger:
        ledger.begin([file, file], PLAIN)
        ledger.record(done(file))
        before = list(ledger.rows())
        monkeypatch.setattr("synboost_monai.hospital.ledger._now", lambda: "later")
        ledger.begin([file], PLAIN)
        ledger.record(done(file, seconds=9))
        assert list(ledger.rows()) == before
        ledger.record(Result.of(file, NotUsableError("blank")))
        (row,) = ledger.rows()
        assert (row["outcome"], row["outputs"], row["finished_at"]) == ("refused", [], "later")


def test_results_of_a_study_are_recorded_together_or_not_at_all(tmp_path: Path) -> None:
    files = [scanned("a"), scanned("b")]
    with Ledger.open(tmp_path, SETTINGS) as ledger:
        ledger.begin(files, PLAIN)
        with pytest.raises(ValueError, match="not in the ledger"):
            ledger.record(done(files[0]), done(files[1]), done(scanned("never entered")))
        assert ledger.pending(files) == files


def test_resumed_run_finds_what_is_done_and_what_has_changed(tmp_path: Path) -> None:
    names = ("same", "changed", "gone", "gone unfinished", "unreadable then")
    files = {name: scanned(name) for name in names}
    with Ledger.open(tmp_path, SETTINGS) as ledger:
        ledger.begin(files.values(), PLAIN)
        ledger.record(*(done(files[name]) for name in ("same", "changed", "gone")))
        ledger.record(Result.of(files["unreadable then"], NotUsableError("unreadable", error="permission denied")))
    again = [scanned("same"), scanned("changed", size=11), scanned("new"), scanned("unreadable then")]
    with Ledger.open(tmp_path, SETTINGS, resume=True) as ledger:
        ledger.begin(again, PLAIN)
        assert [file.relative for file in ledger.pending(again)] == ["changed", "new", "unreadable then"]
        reasons = {row["path"]: row["reason"] for row in ledger.rows()}
    assert (reasons["gone"], reasons["gone unfinished"], reasons["changed"]) == ("segmented", "vanished", "")


def test_empty_journal_of_a_killed_run_goes(tmp_path: Path) -> None:
    """SQLite empties the journal of a ledger that is held, and removes it at the end; a run that is killed in between leaves it."""
    with Ledger.open(tmp_path, SETTINGS):
        pass
    (tmp_path / "ledger.sqlite-journal").write_bytes(bytes(512))
    with Ledger.open(tmp_path, SETTINGS, resume=True):  # and writes nothing
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger.sqlite"]


def test_folder_of_another_run_is_not_taken(tmp_path: Path) -> None:
    Ledger.open(tmp_path, SETTINGS).close()
    with pytest.raises(ValueError, match="earlier run; go on with it by --resume"):
        Ledger.open(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="another frames, another model_sha256;") as caught:
        Ledger.open(tmp_path, {**SETTINGS, "model_sha256": "00", "frames": "ed-es"}, resume=True)
    assert "ab" * 32 not in str(caught.value)
    with pytest.raises(ValueError, match="another view;"):
        Ledger.open(tmp_path, {**SETTINGS, "view": "auto"}, resume=True)
    Ledger.open(tmp_path, dict(reversed(SETTINGS.items())), resume=True).close()
    Ledger.open(tmp_path / "new", SETTINGS, resume=True).close()


def test_two_runs_do_not_write_one_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **options: connect(path, **{**options, "timeout": 0.05}))
    with Ledger.open(tmp_path, SETTINGS), pytest.raises(ValueError, match="another run is at work in this folder"):
        Ledger.open(tmp_path, SETTINGS, resume=True)


def test_damaged_foreign_and_newer_ledgers_are_refused(tmp_path: Path) -> None:
    def place(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name / "ledger.sqlite"

    place("noise").write_bytes(os.urandom(5000))
    connection = sqlite3.connect(place("foreign"))
    connection.execute("CREATE TABLE songs (title)")
    connection.close()
    connection = sqlite3.connect(place("newer"))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    os.mkfifo(place("pipe"))
    place("link").symlink_to(tmp_path / "foreign/ledger.sqlite")
    with Ledger.open(tmp_path / "torn", SETTINGS) as ledger:
        ledger.begin([scanned(f"{number}") for number in range(500)], PLAIN)
    torn = tmp_path / "torn/ledger.sqlite"
    torn.write_bytes(torn.read_bytes()[:9000])
    place("empty").write_bytes(b"")
    for name, words in (
        ("noise", "damaged, or no ledger at all"),
        ("torn", "damaged, or no ledger at all"),
        ("foreign", "not a ledger of synboost"),
        ("newer", "a newer version of synboost"),
        ("pipe", "no regular file"),
        ("link", "no regular file"),
    ):
        with pytest.raises(ValueError, match=words):
            Ledger.open(tmp_path / name, SETTINGS, resume=True)
    Ledger.open(tmp_path / "empty", SETTINGS).close()  # a run that was killed before it began


def test_table_is_sorted_quoted_and_safe(tmp_path: Path) -> None:
    names = ["z", "=1+1", "-rf", "@a", "b\nc", "\u202ed", "caf\udce9", 'q"uote,', "\\\\server"]
    files = [scanned(name) for name in names]
    with Ledger.open(tmp_path, SETTINGS) as ledger:
        ledger.begin(files, PLAIN)
        ledger.record(*map(done, files))
        path = ledger.write_csv()
        first = path.read_bytes()
        assert ledger.write_csv().read_bytes() == first
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == COLUMNS and len(rows) == len(names)
    shown = [row[0] for row in rows]
    assert set(shown) == {"z", "'=1+1", "'-rf", "'@a", "b\\nc", "\\u202ed", "caf\\xe9", 'q"uote,', "\\\\\\\\server"}
    assert [name.lstrip("'") for name in shown] == sorted(name.lstrip("'") for name in shown)
    assert {row[COLUMNS.index("outputs")] for row in rows} == {'["s/seg.dcm"]'}
    assert [line for line in path.read_text().splitlines() if not line.startswith('"')] == []
    assert sorted(os.listdir(tmp_path)) == ["ledger.csv", "ledger.sqlite"]


def test_our_own_mistakes_are_found() -> None:
    with pytest.raises(ValueError, match="'nonsense' is no reason code"):
        Result(scanned("a"), "nonsense", "")
    for output in ("/etc/passwd", "../a", "a/../../b", ""):
        with pytest.raises(ValueError, match="relative to OUT"):
            done(scanned("a"), outputs=(output,))
    with pytest.raises(ValueError, match="no reason of the scan"):
        Result.of(scanned("a"))


def record_in_pairs(folder: Path) -> None:
    """Record 2000 files of studies of two, and print a line at the beginning and for each study that is recorded."""
    files = [scanned(f"{i}", study=f"1.{i // 2}") for i in range(2000)]
    with Ledger.open(folder, {}, resume=True) as ledger:
        ledger.begin(files, PLAIN)
        waiting = ledger.pending(files)
        print("begun")
        for i in range(0, len(waiting), 2):
            ledger.record(*(Result(file, "segmented", "segmented: 1 frames") for file in waiting[i : i + 2]))
            print(i)


def test_kill_at_any_time_loses_nothing_that_was_recorded(tmp_path: Path) -> None:
    num_recorded = 0
    for num_lines in (1, 2, 5, 9):
        process = Forked(record_in_pairs, tmp_path)
        while process.stdout.count("\n") < num_lines:
            assert process.poll() is None, process.stderr
            time.sleep(0.001)
        process.kill()
        num_recorded += 2 * (process.stdout.count("\n") - 1)
        with Ledger.open(tmp_path, {}, resume=True) as ledger:
            found = counts(ledger)
        assert found["processed"] >= num_recorded and found["processed"] % 2 == 0
        assert found.total() == 2000
        num_recorded = found["processed"]


@pytest.mark.parametrize("mtime_ns", [2**63 - 1, 15_032_385_535 * 10**9, -(2**31) * 10**9])
def test_dates_of_a_wrong_clock_are_kept_apart_all_the_same(tmp_path: Path, mtime_ns: int) -> None:
    file = scanned("a", mtime_ns=mtime_ns)
    with Ledger.open(tmp_path / "out", SETTINGS) as ledger:
        ledger.begin([file], PLAIN)
        ledger.record(done(file))
        ledger.begin([file], PLAIN)
        assert counts(ledger) == {"processed": 1}
        ledger.begin([scanned("a", mtime_ns=mtime_ns - 1)], PLAIN)
        assert counts(ledger) == {"pending": 1}
