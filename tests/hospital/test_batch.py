"""Test a run: every file has one line, its exit code is honest, it goes on after any end, and it reveals nothing of a patient."""

from __future__ import annotations

import errno
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from synboost_monai.dicom.identity.deidentify import read_key
from synboost_monai.dicom.limits import Limits
from synboost_monai.hospital.batch import ALL_DONE, SOME_REFUSED, read_given, run_dicom
from synboost_monai.hospital.options import BatchOptions
from tests.hospital.kill_batch import end_state, kill, ledger, start, write_study
from tests.hospital.launch_batch import run


@pytest.fixture(scope="module")
def in_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    for number in range(3):
        write_study(folder, number)
    (folder / "notes.txt").write_text("of Mueller0")
    return folder


@pytest.fixture(scope="module")
def undisturbed(in_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(in_dir, out) == ALL_DONE
    return out


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Make a folder with one study, to be changed."""
    write_study(tmp_path / "in", 0)
    return tmp_path / "in"


def reasons_of(out: Path) -> list[str]:
    return sorted(row["reason"] for row in ledger(out))


def test_every_file_has_one_line_and_its_outputs_are_there(in_dir: Path, undisturbed: Path) -> None:
    rows = ledger(undisturbed)
    files = [p for p in in_dir.rglob("*") if p.is_file()]
    assert len(rows) == len(files) == len({row["path_sha256"] for row in rows})
    assert sorted(row["outcome"] for row in rows) == ["processed"] * 6 + ["skipped"]
    for row in rows:
        assert all((undisturbed / output).is_file() for output in json.loads(row["outputs"] or "[]"))
    assert (undisturbed / "report.html").is_file() and (undisturbed / "measurements.csv").is_file()


def test_nothing_of_a_patient_is_told(undisturbed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path in undisturbed.rglob("*"):
        assert "mueller" not in str(path.relative_to(undisturbed)).lower()
        if path.is_file() and path.suffix != ".dcm":  # objects carry their patient, as they must
            data = path.read_bytes().lower()
            for secret in (b"mueller", b"20000101", b"2000-01-01"):
                assert secret not in data, path


def test_more_workers_give_the_same(in_dir: Path, undisturbed: Path, tmp_path: Path) -> None:
    run(in_dir, tmp_path / "out", workers=1)
    assert end_state(tmp_path / "out") == end_state(undisturbed)


def test_finished_run_resumed_changes_nothing(in_dir: Path, undisturbed: Path) -> None:
    before = end_state(undisturbed)
    assert run(in_dir, undisturbed, resume=True) == ALL_DONE
    assert end_state(undisturbed) == before


def test_without_resume_a_used_folder_is_refused(in_dir: Path, undisturbed: Path) -> None:
    with pytest.raises(ValueError, match="resume"):
        run(in_dir, undisturbed)


def test_resume_with_other_settings_is_refused(in_dir: Path, undisturbed: Path) -> None:
    with pytest.raises(ValueError, match="frames"):
        run(in_dir, undisturbed, resume=True, frames="all")


def test_new_study_in_the_input_is_done_on_resume(mine: Path, tmp_path: Path) -> None:
    run(mine, tmp_path / "out")
    write_study(mine, 1)
    assert run(mine, tmp_path / "out", resume=True) == ALL_DONE
    assert len(list((tmp_path / "out").glob("studies/*/measurements.json"))) == 2


@pytest.mark.parametrize("name", ["measurements.json", "seg_*.dcm"])
def test_output_that_is_gone_is_made_again_on_resume(
    in_dir: Path, undisturbed: Path, tmp_path: Path, name: str
) -> None:
    out = shutil.copytree(undisturbed, tmp_path / "out")
    next(out.glob(f"studies/*/{name}")).unlink()
    assert run(in_dir, out, resume=True) == ALL_DONE
    assert end_state(out) == end_state(undisturbed)


def test_clip_that_joins_its_study_replaces_what_was_made_of_one_that_is_gone(mine: Path, tmp_path: Path) -> None:
    folder, out = mine / "Mueller_0", tmp_path / "out"
    late = (folder / "apical_two_chamber.dcm").rename(tmp_path / "late.dcm")
    assert run(mine, out) == ALL_DONE
    (folder / "apical_four_chamber.dcm").unlink()
    assert run(mine, out, resume=True) == ALL_DONE  # done is done, though its file is gone
    late.rename(folder / "late.dcm")
    assert run(mine, out, resume=True) == SOME_REFUSED
    rows = {row["reason"]: row for row in ledger(out)}
    assert sorted(rows) == ["segmented", "vanished"] and rows["vanished"]["outputs"] == ""
    assert _unlisted(out) == [] and len(list(out.glob("studies/*/seg_*.dcm"))) == 1


def test_contradiction_that_comes_later_takes_the_results_back(mine: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(mine, out) == ALL_DONE
    clip = mine / "Mueller_0" / "apical_two_chamber.dcm"
    other = bytearray(clip.read_bytes())
    other[-5] ^= 0xFF
    (mine / "other.dcm").write_bytes(other)
    assert run(mine, out, resume=True) == SOME_REFUSED
    fresh = tmp_path / "fresh"
    assert run(mine, fresh) == SOME_REFUSED
    assert reasons_of(out) == ["conflicting_duplicate"] * 2 + ["segmented"]
    assert end_state(out) == end_state(fresh)
    (mine / "other.dcm").unlink()
    assert run(mine, out, resume=True) == SOME_REFUSED  # the contradiction has gone, its line stays
    assert reasons_of(out) == ["conflicting_duplicate", "segmented", "segmented"]


def test_damaged_copy_that_comes_later_takes_nothing_back(mine: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(mine, out) == ALL_DONE
    before = {path: path.read_bytes() for path in out.glob("studies/*/*")}
    clip = (mine / "Mueller_0" / "apical_two_chamber.dcm").read_bytes()
    for name, part in (("a_header", 400), ("a_middle", len(clip) // 2), ("z_end", len(clip) - 3)):
        (mine / f"{name}.dcm").write_bytes(clip[:part])
    assert run(mine, out, resume=True) == SOME_REFUSED
    assert reasons_of(out) == ["segmented", "segmented", "truncated_header", "truncated_pixels", "truncated_pixels"]
    assert {path: path.read_bytes() for path in out.glob("studies/*/*")} == before
    fresh = tmp_path / "fresh"
    run(mine, fresh)
    assert end_state(out) == end_state(fresh)


def test_longest_clips_of_a_study_that_is_too_long_are_refused(mine: Path, tmp_path: Path) -> None:
    assert run(mine, tmp_path / "out", limits=Limits(max_study_frames=20)) == SOME_REFUSED
    assert reasons_of(tmp_path / "out") == ["segmented", "study_too_long"]
    assert run(mine, tmp_path / "other", limits=Limits(max_frames=11)) == SOME_REFUSED
    assert set(reasons_of(tmp_path / "other")) == {"too_many_frames"}


def test_other_patient_that_joins_a_study_takes_its_numbers_back(mine: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    late = (mine / "Mueller_0" / "apical_two_chamber.dcm").rename(tmp_path / "late.dcm")
    assert run(mine, out) == ALL_DONE and list(out.glob("studies/*/measurements.json"))
    (mine / "late.dcm").write_bytes(late.read_bytes().replace(b"Phantom^Mueller0", b"Phantom^Schulze0"))
    assert run(mine, out, resume=True) == SOME_REFUSED
    assert reasons_of(out) == ["patients_mixed"] * 2
    assert list(out.glob("studies/*")) == []
    assert len((out / "measurements.csv").read_text().splitlines()) == 1


def _unlisted(out: Path) -> list[str]:
    """Return the files below OUT/studies that no line of the ledger names."""
    named = {output for row in ledger(out) for output in json.loads(row["outputs"] or "[]")}
    found = {p.relative_to(out).as_posix() for p in out.glob("studies/**/*") if p.is_file()}
    return sorted(found ^ named)


def test_refused_file_makes_the_exit_code_one(mine: Path, tmp_path: Path) -> None:
    broken = mine / "Mueller_0" / "apical_two_chamber.dcm"
    broken.write_bytes(broken.read_bytes()[:-5000])
    assert run(mine, tmp_path / "out") == SOME_REFUSED
    (row,) = [row for row in ledger(tmp_path / "out") if row["outcome"] == "refused"]
    assert row["reason"] == "truncated_pixels" and "Error" not in row["sentence"]


def test_killed_at_any_time_it_ends_as_if_undisturbed(in_dir: Path, undisturbed: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    out = tmp_path / "out"
    for within_study in (False, True, True, True):
        kill(in_dir, out, chance.uniform(0, 0.3), within_study)
    assert start(in_dir, out).wait() == ALL_DONE
    assert end_state(out) == end_state(undisturbed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": "some"}, "frames must be ed-es, all, got 'some'"),
        ({"view": "plax"}, "view must be auto, a4c, a2c"),
        ({"engine": "spark"}, "engine must be local, ray"),
        ({"workers": 0}, "workers must be a whole number of at least 1"),
        ({"paths": "open"}, "paths must be redacted, plain, hashed"),
    ],
)
def test_wrong_options_are_told_before_anything_is_written(
    in_dir: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_dicom(in_dir, tmp_path / "out", BatchOptions(**options))
    assert not (tmp_path / "out").exists()


def test_missing_highdicom_is_told_before_a_study_is_called_refused(
    in_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "synboost-monai\[dicom\]"'):
        run_dicom(in_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_input_weights_and_output_among_input(in_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        run_dicom(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ValueError, match="among the input"):
        run_dicom(in_dir, in_dir)
    write_study(tmp_path / "studies", 0)  # OUT/studies is where the outputs go
    for inside in (tmp_path / "studies", tmp_path / "studies" / "Mueller_0"):
        with pytest.raises(ValueError, match="among the input"):
            run_dicom(inside, tmp_path)
    with pytest.raises(FileNotFoundError, match="no such weights; give --checkpoint_path"):
        run_dicom(in_dir, tmp_path / "out", BatchOptions(checkpoint_path=str(tmp_path / "model.pt")))


def test_disk_that_refuses_fails_the_run_in_words(
    in_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    for out, words in ((tmp_path / "file", "file exists"), (tmp_path / "file" / "out", "not a directory")):
        with pytest.raises(ValueError, match=f"the results cannot be written: {words}; make it writable"):
            run(in_dir, out)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "out" / "report.html"))

    monkeypatch.setattr("synboost_monai.hospital.batch.write_report_page", full)
    with pytest.raises(ValueError, match="the results cannot be written: no space left on device; make it writable"):
        run(in_dir, tmp_path / "out")

    def locked(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(in_dir))

    monkeypatch.setattr("synboost_monai.hospital.batch.scan", locked)
    with pytest.raises(ValueError, match="the folder of the studies cannot be read: permission denied"):
        run(in_dir, tmp_path / "other")


def test_given_frames_and_key_are_checked(tmp_path: Path) -> None:
    path, head = tmp_path / "given.csv", "sop_instance_uid,end_diastole,end_systole\n"
    path.write_text(f"{head}1.2.3,4,10\n")
    assert read_given(path) == {"1.2.3": (3, 9)}
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))  # as Excel saves it
    assert read_given(path) == {"1.2.3": (3, 9)}
    for frames in ("0,10", "7,7"):
        path.write_text(f"{head}1.2.3,{frames}\n")
        with pytest.raises(ValueError, match="line 2: expected columns .* two different frame numbers"):
            read_given(path)
    with pytest.raises(FileNotFoundError, match="head -c 32"):
        read_key(tmp_path / "key")


def test_short_key_is_refused_before_anything_is_read(in_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "key").touch(0o600)
    (tmp_path / "key").write_bytes(b"guess")
    with pytest.raises(ValueError, match="key: the key has 5 bytes, 32 random ones are needed"):
        run(in_dir, tmp_path / "out", deidentify=tmp_path / "key")
    assert not (tmp_path / "out").exists()


def test_only_our_own_unfinished_files_are_removed(in_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".my-folder.d").mkdir(parents=True)
    (out / ".pre-commit-config.yaml").write_text("repos: []")
    (out / ".123-0a1b2c3d.ledger.csv").write_text("of a run that was killed")
    assert run(in_dir, out) == ALL_DONE
    assert (out / ".pre-commit-config.yaml").is_file() and (out / ".my-folder.d").is_dir()
    assert not (out / ".123-0a1b2c3d.ledger.csv").exists()


def test_file_with_holes_of_terabytes_does_not_hold_up_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synboost_monai.hospital.batch.HASH_SECONDS", 0.2)
    (tmp_path / "in").mkdir()
    with open(tmp_path / "in" / "holes", "wb") as file:
        try:
            file.truncate(1 << 42)
        except OSError:
            pytest.skip("this file system has no files of terabytes")
    start = time.monotonic()
    assert run(tmp_path / "in", tmp_path / "out") == ALL_DONE
    assert time.monotonic() - start < 100  # 4 TB of zeros take an hour
    (row,) = ledger(tmp_path / "out")
    assert (row["reason"], row["sha256"]) == ("not_dicom", "")
