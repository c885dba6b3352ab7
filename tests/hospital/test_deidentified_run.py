"""Test a run with `--deidentify`: none of its files leads to an original without the key, and it goes on as every run does."""

from __future__ import annotations

import hashlib
import hmac
import os
import shutil
import stat
from pathlib import Path

import pydicom
import pytest

from synboost_monai.dicom.identity.deidentify import check_key, pseudonymous_uid, read_key
from synboost_monai.dicom.reading.scanned_file import short_hash
from synboost_monai.hospital.batch import ALL_DONE
from synboost_monai.hospital.privacy import Naming, path_sha256
from tests.hospital.kill_batch import end_state, ledger, write_study
from tests.hospital.launch_batch import run

KEYWORDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientName", "PatientID", "StudyDate")


def write_key(path: Path, name: str = "key") -> Path:
    path.touch(0o600)
    path.write_bytes(hashlib.sha256(name.encode()).digest())
    return path


def links(in_dir: Path) -> dict[str, bytes]:
    """Return what leads to the files of a folder: identifiers, names, dates, the hashes of these and of the files, and times of change."""
    found: dict[str, bytes] = {"folder": hashlib.sha256(os.fsencode(in_dir.resolve())).hexdigest()[:16].encode()}
    for path in sorted(p for p in in_dir.rglob("*") if p.is_file()):
        relative = path.relative_to(in_dir).as_posix()
        found[f"content of {relative}"] = hashlib.sha256(path.read_bytes()).hexdigest()[:16].encode()
        found[f"path of {relative}"] = path_sha256(relative)[:16].encode()
        found[f"name of {relative}"] = path.name.encode()
        found[f"time of {relative}"] = path.stat().st_mtime_ns.to_bytes(8, "big")  # as SQLite stores a number
        if path.suffix == ".dcm":
            header = pydicom.dcmread(path, stop_before_pixels=True)
            for keyword in KEYWORDS:
                text = str(header.get(keyword) or "")
                if len(text) > 3 and text != "19000101":  # which stands for no date
                    found[f"{keyword} of {relative}"] = text.encode()
                    found[f"hash of {keyword} of {relative}"] = short_hash(text).encode()
    return found


def leaks(out: Path, secrets: dict[str, bytes]) -> list[str]:
    """Return the names and contents under OUT that hold one of these."""
    found = []
    for path in sorted(out.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        content += path.relative_to(out).as_posix().encode()
        found += [f"{path.name}: {what}" for what, secret in secrets.items() if secret.lower() in content.lower()]
    return found


@pytest.fixture(scope="module")
def in_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make two studies whose files are named by their UIDs, as in archives, and a note."""
    folder = tmp_path_factory.mktemp("in")
    for number in range(2):
        write_study(folder, number)
    for path in sorted(folder.rglob("*.dcm")):
        path.rename(path.with_name(f"{pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID}.dcm"))
    (folder / "Mueller0.txt").write_text("of Mueller0")
    return folder


@pytest.fixture(scope="module")
def given(in_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the chosen frames, by the UIDs of the originals."""
    path = tmp_path_factory.mktemp("given") / "given.csv"
    lines = "".join(f"{p.stem},1,5\n" for p in in_dir.rglob("*.dcm"))
    path.write_text(f"sop_instance_uid,end_diastole,end_systole\n{lines}")
    return path


@pytest.fixture(scope="module")
def key_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_key(tmp_path_factory.mktemp("key") / "key")


@pytest.fixture(scope="module")
def done(in_dir: Path, given: Path, key_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(in_dir, out, deidentify=key_path, given=given) == ALL_DONE
    return out


def test_nothing_under_out_leads_to_an_original(in_dir: Path, done: Path) -> None:
    secrets = links(in_dir)
    assert len(secrets) > 40 and leaks(in_dir, secrets)  # the search finds what is there
    assert leaks(done, secrets) == []
    assert not list(done.glob("ledger.sqlite-*"))


def test_ledger_names_the_copies(in_dir: Path, done: Path, key_path: Path) -> None:
    key = read_key(key_path)
    rows = {row["path_sha256"]: row for row in ledger(done)}
    for path in in_dir.rglob("*.dcm"):
        row = rows[Naming(key).path(path.relative_to(in_dir).as_posix())]
        assert row["outcome"] == "processed" and row["sop_instance_uid"] == pseudonymous_uid(key, path.stem)
        assert (done / "studies" / row["study"] / f"deidentified_{short_hash(row['sop_instance_uid'])}.dcm").is_file()


def test_chosen_frames_are_taken(done: Path) -> None:
    for path in done.glob("studies/*/measurements.json"):
        assert '"phase_source": "given"' in path.read_text()


def test_run_goes_on_with_the_same_key_alone(
    in_dir: Path, given: Path, done: Path, key_path: Path, tmp_path: Path
) -> None:
    before = end_state(done)
    out = shutil.copytree(done, tmp_path / "out")
    other = {"deidentify": write_key(tmp_path / "other", "other")}
    for wrong, words in ((other, "another input, another key"), ({}, "another")):
        with pytest.raises(ValueError, match=words):
            run(in_dir, out, resume=True, given=given, **wrong)
    assert run(in_dir, out, resume=True, deidentify=key_path, given=given) == ALL_DONE
    assert end_state(out) == before
    next(out.glob("studies/*/deidentified_*.dcm")).unlink()
    assert run(in_dir, out, resume=True, deidentify=key_path, given=given) == ALL_DONE
    assert end_state(out) == before
    grown = shutil.copytree(in_dir, tmp_path / "in")
    first = next(grown.rglob("*.dcm"))
    out = tmp_path / "growing"
    kept = first.read_bytes()
    first.unlink()
    assert run(grown, out, deidentify=key_path) == ALL_DONE
    first.write_bytes(kept)
    assert run(grown, out, deidentify=key_path, resume=True) == ALL_DONE
    assert sorted(row["outcome"] for row in ledger(out)) == ["processed"] * 4 + ["skipped"]
    assert leaks(out, links(grown)) == []


def test_settings_hold_nothing_that_a_key_can_be_tried_on(done: Path, key_path: Path) -> None:
    key = read_key(key_path)
    pairs = [(name, text) for name in ("sha256", "sha1", "md5") for text in (b"", b"synboost ")]
    quick = [hashlib.new(name, text + key).hexdigest()[:12] for name, text in pairs]
    assert leaks(done, {name: name.encode() for name in quick} | {"key": key, "hex": key.hex().encode()}) == []


def test_plain_paths_and_a_key_among_the_outputs_are_refused(in_dir: Path, key_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="paths plain would link"):
        run(in_dir, tmp_path / "out", deidentify=key_path, paths="plain")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="the key would lie among the outputs"):
        run(in_dir, tmp_path / "out", deidentify=write_key(tmp_path / "out" / "key"))


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
@pytest.mark.parametrize("is_deidentified", [False, True])
def test_outputs_are_for_this_user_alone(in_dir: Path, key_path: Path, tmp_path: Path, is_deidentified: bool) -> None:
    before = os.umask(0o022)
    try:
        run(in_dir, tmp_path / "new" / "out", deidentify=key_path if is_deidentified else None)
        assert os.umask(0o022) == 0o022  # as it was
    finally:
        os.umask(before)
    paths = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert len(paths) > 20
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
def test_node_and_demo_write_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from synboost_monai.hospital import listen
    from synboost_monai.serving.demo.serve import session_folder

    class Reached(Exception):
        pass

    def engine(*_: object, **__: object) -> None:
        (tmp_path / "out" / "object.dcm").write_bytes(b"")
        raise Reached

    monkeypatch.setattr(listen, "create_engine", engine)
    monkeypatch.setattr(listen, "check_installed", lambda: None)
    before = os.umask(0o022)
    try:
        with pytest.raises(Reached):
            listen.run_listen(tmp_path / "out")
        with session_folder() as folder:
            (folder / "upload.dcm").write_bytes(b"")
            modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "upload.dcm")]
    finally:
        assert os.umask(before) == 0o022  # as it was
    modes += [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out", tmp_path / "out" / "object.dcm")]
    assert modes == [0o700, 0o600] * 2


GOOD = hashlib.sha256(b"random").digest()


@pytest.mark.parametrize(
    "key",
    [
        b"",
        GOOD[:31],
        b"k" * 32,
        bytes(32),
        b"correct horse battery staple, and some more of it",
        "Gr\u00fc\u00dfe aus der Echokardiographie, Station 3".encode(),
        "Gr\u00fc\u00dfe aus der Echokardiographie, Station 3".encode("latin-1"),
        "a password in the text of Windows".encode("utf-16"),
        GOOD.hex().encode(),
        bytes(range(32)),
        bytes(range(128, 256)),
        bytes(range(250, 90, -5)),
        GOOD[:16] * 2,
        GOOD * 3,
        GOOD * 200,
    ],
)
def test_key_that_could_be_guessed_is_refused(tmp_path: Path, key: bytes) -> None:
    path = write_key(tmp_path / "key")
    path.write_bytes(key)
    advice = "make one with: head -c 32 /dev/urandom > KEYFILE; chmod 600 KEYFILE"
    with pytest.raises(ValueError, match=advice) as caught:
        read_key(path)
    assert str(caught.value).startswith(f"{path}: the key ") and "\n" not in str(caught.value)


def test_random_keys_are_taken() -> None:
    for number in range(3000):
        check_key(hashlib.sha256(str(number).encode()).digest())
    check_key(hashlib.shake_256(b"long").digest(4096))


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
def test_key_that_others_can_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_key(tmp_path / "key")
    assert len(read_key(path)) == 32
    for mode in (0o640, 0o604, 0o620, 0o602, 0o601, 0o644):
        path.chmod(mode)
        words = rf"others may use this key \(mode {mode:04o}\); close it with: chmod 600"
        with pytest.raises(ValueError, match=words):
            read_key(path)
    path.chmod(0o400)
    (tmp_path / "link").symlink_to(path)
    assert read_key(tmp_path / "link") == read_key(path)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if os.stat(path).st_uid:
        with pytest.raises(ValueError, match="belongs to another user"):
            read_key(path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("pipe", ".", "/dev/null"):
        with pytest.raises(ValueError, match="no regular file"):
            read_key(tmp_path / name)


def test_names_of_a_ledger_cost_time_to_guess() -> None:
    naming, other = Naming(GOOD), Naming(hashlib.sha256(GOOD).digest())
    assert naming.path("a") != other.path("a") and naming.path("a") == Naming(GOOD).path("a") != path_sha256("a")
    assert naming.digest("") == "" and naming.study("") == "" and naming.instance("") == ""
    assert naming.path("a") != hmac.new(GOOD, b"path\0a", hashlib.sha256).hexdigest()
    plain = Naming()
    assert (plain.digest("ab"), plain.instance("1.2"), plain.study("1.2")) == ("ab", "1.2", short_hash("1.2"))
