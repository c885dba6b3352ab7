"""Test studies that come from an archive by DICOMweb, and results that go there: each once, whatever the archive does."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

pytest.importorskip("dicomweb_client", reason='it is not installed: pip install "synboost-monai[dicomweb]"')
from synboost_monai.command_line import checked_arguments  # noqa: E402
from synboost_monai.dicom.network.common import Status  # noqa: E402
from synboost_monai.dicom.network.tls import Tls  # noqa: E402
from synboost_monai.hospital import delivery as delivery_module  # noqa: E402
from synboost_monai.hospital import fetch  # noqa: E402
from synboost_monai.hospital import peers as peers_module  # noqa: E402
from synboost_monai.hospital.delivery import Delivery  # noqa: E402
from synboost_monai.hospital.listen import run_listen  # noqa: E402
from synboost_monai.hospital.options import BatchOptions, ListenOptions  # noqa: E402
from synboost_monai.hospital.peers import Peers  # noqa: E402
from tests.hospital import launch_batch  # noqa: E402
from tests.hospital.kill_batch import ledger, write_study  # noqa: E402
from tests.web_archive import QUICK, FakeArchive, Handler  # noqa: E402


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the clips of two studies, two each."""
    folder = tmp_path_factory.mktemp("in")
    for number in range(2):
        write_study(folder, number, num_frames=6)
    return sorted(folder.rglob("*.dcm"))


@pytest.fixture
def archive(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeArchive]:
    """Return an archive with these studies, on which nobody waits long."""
    from synboost_monai.dicom.network import web

    class Quick(web.WebArchive):
        def __init__(self, address: Any, access: Any, limits: Any = None, stop: Any = None) -> None:
            super().__init__(address, access, QUICK, stop)

    monkeypatch.setattr(web, "WebArchive", Quick)
    with FakeArchive().open() as opened:
        opened.add(*files)
        yield opened


def run(tmp_path: Path, archive: FakeArchive, query: str = "", **options: Any) -> int:
    out = tmp_path / "out"
    given = {"from_": archive.url + query, "to": archive.url, "workers": 1, "resume": out.exists(), "report": "none"}
    return launch_batch.run(tmp_path / "fetched", out, **{**given, **options})


def fetched(tmp_path: Path) -> list[str]:
    inbox = tmp_path / "fetched/inbox"
    return sorted(path.relative_to(inbox).as_posix() for path in inbox.glob("*/*"))


def results(tmp_path: Path) -> set[str]:
    return {str(pydicom.dcmread(path).SOPInstanceUID) for path in tmp_path.glob("out/studies/*/*.dcm")}


def test_results_come_back_once_and_nothing_is_fetched_twice(
    files: list[Path], archive: FakeArchive, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, archive, report="en") == 0
    assert len(fetched(tmp_path)) == 4 and sorted(archive.stored) == sorted(results(tmp_path))
    assert {row["outcome"] for row in ledger(tmp_path / "out")} == {"processed"}
    came = sorted(path.read_bytes() for path in tmp_path.glob("fetched/inbox/*/*"))
    assert came == sorted(path.read_bytes() for path in files)
    num_objects = len(archive.objects)
    assert run(tmp_path, archive, report="en") == 0
    assert len(archive.objects) == num_objects and len(archive.stored) == len(set(archive.stored))
    assert archive.num_asked("GET .*/series/") == 4  # overlays of ours are not fetched
    assert "2 studies found, 0 new objects fetched\n" in capfd.readouterr().err
    with pytest.raises(ValueError, match="go on with it by --resume"):
        run(tmp_path, archive, report="en", resume=False)


def test_study_that_grew_is_fetched_and_done_whole(files: list[Path], archive: FakeArchive, tmp_path: Path) -> None:
    uid = next(uid for uid, content in archive.objects.items() if content == files[0].read_bytes())
    late = archive.objects.pop(uid)
    assert run(tmp_path, archive) == 0 and len(fetched(tmp_path)) == 3
    archive.objects[uid] = late
    assert run(tmp_path, archive) == 0 and len(fetched(tmp_path)) == 4
    with FakeArchive().open() as other:  # results of a folder are stored, too
        options = {"workers": 1, "to": other.url, "report": "none"}
        assert launch_batch.run(files[0].parents[1], tmp_path / "whole", **options) == 0
    assert set(other.stored) == results(tmp_path)
    whole = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in tmp_path.glob("whole/studies/*/*")}
    assert whole == {path.relative_to(tmp_path / "out"): path.read_bytes() for path in tmp_path.glob("out/studies/*/*")}


def test_query_chooses_and_nobody_is_named(
    files: list[Path],
    archive: FakeArchive,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SYNBOOST_DICOMWEB_TOKEN", "my-secret-token")
    patient = pydicom.dcmread(files[0])
    assert run(tmp_path, archive, f"?PatientID={patient.PatientID}") == 0
    assert len(fetched(tmp_path)) == 2
    assert {headers["Authorization"] for headers in archive.headers} == {"Bearer my-secret-token"}
    printed = capfd.readouterr()
    texts = [printed.out, printed.err, *(path.as_posix() for path in tmp_path.glob("fetched/**/*"))]
    texts += [path.read_text(errors="replace") for path in tmp_path.glob("out/*") if path.is_file()]
    for text in texts:
        secrets = (str(patient.PatientName), str(patient.PatientID), patient.StudyInstanceUID, "my-secret-token")
        assert not any(word in text for word in secrets), text
    assert all(re.fullmatch(r"[0-9a-f]{16}/[0-9a-f]{16}_[0-9a-f]{16}\.dcm", name) for name in fetched(tmp_path))


def test_archive_that_cannot_be_searched_ends_the_run_and_it_goes_on(archive: FakeArchive, tmp_path: Path) -> None:
    num_given = 0

    def dies(handler: Handler, method: str) -> bool:
        nonlocal num_given
        num_given += "/series/" in handler.path
        return num_given > 2 and handler.answer(status=503)

    archive.misbehave = dies
    with pytest.raises(ValueError, match=r"status 503 \(3 times\); what came is kept, go on by --resume"):
        run(tmp_path, archive)
    assert len(fetched(tmp_path)) == 2 and not results(tmp_path)
    archive.misbehave = lambda handler, method: False
    assert run(tmp_path, archive) == 0
    assert archive.num_asked("GET .*/series/") == 4 + 3  # three tries of the one that failed
    assert sorted(archive.stored) == sorted(results(tmp_path))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("another", "another object than was asked for"),
        ("of another study", "another object than was asked for"),
        ("not DICOM", "is not a DICOM object"),
        ("too large", "larger than 1 MB"),
        ("gone", "status 404"),
    ],
)
def test_wrong_object_is_not_kept_and_the_others_are(
    wrong: str, words: str, files: list[Path], archive: FakeArchive, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, other = pydicom.dcmread(files[0]), files[2].read_bytes()

    def give(handler: Handler, method: str) -> bool:
        if not handler.path.endswith(f"/instances/{first.SOPInstanceUID}"):
            return False
        if wrong == "of another study":
            first.StudyInstanceUID = "1.2.3"
            first.save_as(tmp_path / "changed")
            return handler.give((tmp_path / "changed").read_bytes())
        return {
            "another": lambda: handler.give(other),
            "not DICOM": lambda: handler.give(b"<html>"),
            "too large": lambda: handler.give(bytes(1 << 21)),
            "gone": lambda: handler.answer(status=404),
        }[wrong]()

    archive.misbehave = give
    if wrong == "gone":  # the whole way
        assert run(tmp_path, archive) == 1
        printed = capfd.readouterr().err
        assert "4 objects" not in printed and "1 objects could not be fetched" in printed
        assert sorted(archive.stored) == sorted(results(tmp_path)) != []
    else:
        said: list[str] = []
        fetcher = fetcher_of(tmp_path, archive, said)
        assert [fetcher.run().num_failed for _ in range(5)] == [1] * 5
        assert archive.num_asked(f"/instances/{first.SOPInstanceUID}") == fetch.MAX_FAILURES
        printed = "\n".join(said)
    assert len(fetched(tmp_path)) == 3 and not list((tmp_path / "fetched/work").rglob("*.dcm"))
    assert re.search(rf"study [0-9a-f]{{16}}: object [0-9a-f]{{16}} was not fetched: .*{words}", printed)


def fetcher_of(tmp_path: Path, archive: FakeArchive, said: list[str], max_mb: float = 100) -> fetch.Fetcher:
    inbox = fetch.Inbox(tmp_path / "fetched/inbox", fetch.Limits(), max_mb)
    return fetch.Fetcher(archive.client(), inbox, tmp_path / "fetched/work", said.append)


def test_results_that_are_not_taken_stay_and_are_stored_later_and_once(
    archive: FakeArchive, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "MAX_REFUSALS", 1)
    archive.failure = 0xA700
    assert run(tmp_path, archive) == 1
    words = "(the archive does not store it (failure reason 0xA700)); they stay here; --resume tries again"
    assert words in capfd.readouterr().err
    delivery = Delivery.load(tmp_path / "out")
    assert delivery is not None and {item.refusals for item in delivery.items.values()} == {1}
    archive.failure = None

    def is_full(handler: Handler, method: str) -> bool:
        return method == "POST" and len(archive.stored) >= 3 and handler.answer(status=503)

    archive.misbehave = is_full
    assert run(tmp_path, archive) == 1 and len(archive.stored) == 3
    archive.misbehave = lambda handler, method: False
    assert run(tmp_path, archive) == 0 and sorted(archive.stored) == sorted(results(tmp_path))


def test_deidentified_copies_go_to_another_archive_with_its_own_secret(
    archive: FakeArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_bytes(os.urandom(32))
    (tmp_path / "key").chmod(0o600)
    monkeypatch.setenv("SYNBOOST_DICOMWEB_TOKEN", "first")
    with pytest.raises(ValueError, match="copies would come among the originals"):
        run(tmp_path, archive, deidentify=str(tmp_path / "key"))
    monkeypatch.setenv("SYNBOOST_DICOMWEB_TOKEN", "first")
    monkeypatch.setenv("SYNBOOST_DICOMWEB_TO_TOKEN", "second")
    with FakeArchive().open() as other:
        assert run(tmp_path, archive, deidentify=str(tmp_path / "key"), to=other.url) == 0
        assert {headers["Authorization"] for headers in archive.headers} == {"Bearer first"}
        assert {headers["Authorization"] for headers in other.headers} == {"Bearer second"}
        assert sorted(other.stored) == sorted(results(tmp_path)) and not set(other.objects) & set(archive.objects)
        for content in other.objects.values():
            assert b"Mueller" not in content


def test_fetched_images_do_not_come_into_the_outputs(archive: FakeArchive, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patients' images would be fetched into the outputs"):
        launch_batch.run(tmp_path / "out/in", tmp_path / "out", from_=archive.url)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="this is a file; give a folder"):
        launch_batch.run(tmp_path / "file", tmp_path / "out", from_=archive.url)


def test_study_that_cannot_be_listed_leaves_the_others(archive: FakeArchive, tmp_path: Path) -> None:
    said: list[str] = []
    first = archive.search("", {"limit": ["1"]})[0]["0020000D"]["Value"][0]
    archive.misbehave = lambda handler, _: f"/{first}/instances" in handler.path and handler.answer(status=404)
    fetcher = fetcher_of(tmp_path, archive, said)
    found = fetcher.run()
    assert fetcher.run().num_failed == 1 and sum("cannot be listed" in line for line in said) == 1
    assert (found.num_studies, found.num_new, found.num_failed) == (2, 2, 1)
    assert any("its objects cannot be listed: it answers with status 404" in line for line in said)


def test_full_inbox_ends_the_fetching(archive: FakeArchive, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the inbox is full; make room"):
        fetcher_of(tmp_path, archive, [], max_mb=0.1).run()
    assert len(fetched(tmp_path)) == 1 and not list((tmp_path / "fetched/work").iterdir())


# --- options


def test_flags_are_from_and_to() -> None:
    from synboost_monai.__main__ import VERBS

    def verb(*, from_: str | None = None, to: str | None = None) -> None:
        """Do nothing."""

    words = checked_arguments(
        ["dicom", "in", "out", "--from", "https://host/web?StudyDate=1", "--to=https://host"], VERBS
    )
    assert "--from_='https://host/web?StudyDate=1'" in words and "--to='https://host'" in words
    with pytest.raises(ValueError, match=r"--from needs a value"):
        checked_arguments(["dicom", "in", "out", "--from"], VERBS)
    with pytest.raises(ValueError, match=r"it takes .*--from, --to$"):
        checked_arguments(["verb", "--fram", "a"], {"verb": verb})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from_": "somewhere"}, "from is not an address of a DICOMweb service"),
        ({"from_": "https://me:word@host/web"}, "from holds a user or a password"),
        ({"to": "ARCHIVE@10.1.2.3:104"}, "to is not an address|to holds"),
        ({"to": "https://host/web?StudyDate=1"}, "to has a query"),
    ],
)
def test_wrong_addresses_are_told(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        launch_batch.run(tmp_path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_missing_client_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "synboost-monai\[dicomweb\]"'):
        Peers.of(("from", "https://host/web"), ("to", None))


# --- the node


def test_node_polls_and_stores(files: list[Path], archive: FakeArchive, tmp_path: Path) -> None:
    pytest.importorskip("pynetdicom")
    from tests.hospital.test_listen import heard, running, wait_for

    uid = next(iter(archive.objects))
    late = archive.objects.pop(uid)
    options = {"poll": f"{archive.url}?ModalitiesInStudy=US", "poll_seconds": 0.1, "quiet_seconds": 0.3}
    with running(tmp_path, archive.url, **options) as (node, said):
        heard(said, "delivered", 2)
        archive.objects[uid] = late
        heard(said, "delivered", 3)
        made = {str(pydicom.dcmread(p).SOPInstanceUID) for p in tmp_path.glob("runs/*/*/studies/*/*.dcm")}
        assert made <= set(archive.stored) and len(archive.stored) == len(set(archive.stored))
        node._clean(keep_days=1e-9)
        assert not list((tmp_path / "inbox").iterdir())
        asked = archive.num_asked("GET .*/studies[?]")
        wait_for(lambda: archive.num_asked("GET .*/studies[?]") > asked + 2)
    assert archive.num_asked("GET .*/series/") == 4  # what was removed is not fetched again
    with running(tmp_path, archive.url, **options):
        asked = archive.num_asked("GET .*/studies[?]")
        wait_for(lambda: archive.num_asked("GET .*/studies[?]") > asked + 2)
    assert archive.num_asked("GET .*/series/") == 4
    archive.add(*files)
    grown = pydicom.dcmread(files[0])
    grown.SOPInstanceUID = grown.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    grown.save_as(tmp_path / "grown")
    archive.add(tmp_path / "grown")
    with running(tmp_path, archive.url, **options) as (_, said):
        heard(said, "3 objects fetched")  # whole
    archive.misbehave = lambda handler, _: handler.answer(status=401)
    with running(tmp_path, archive.url, **options) as (node, said):
        heard(said, "cannot be searched: it does not let us in (status 401)")


def test_studies_that_did_not_change_are_not_asked_for_again(archive: FakeArchive, tmp_path: Path) -> None:
    fetcher = fetcher_of(tmp_path, archive, [])
    assert (found := fetcher.run()).num_new == 4 and found.num_failed == 0
    asked = len(archive.asked)
    assert fetcher.run().num_new == 0
    assert len(archive.asked) == asked + 2  # the list of studies, and its end


def test_node_takes_the_address_of_a_service_or_of_a_node(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected TITLE@HOST:PORT"):
        run_listen(tmp_path, ListenOptions(destination="archive"))
    with pytest.raises(ValueError, match="poll is not an address"):
        run_listen(tmp_path, ListenOptions(poll="ARCHIVE@10.1.2.3:104"))
    with pytest.raises(ValueError, match="tls both is for TITLE@HOST:PORT"):
        Peers.of(("poll", None), ("destination", "https://host"), ae_title="A", tls=Tls("both", "certificate", "key"))
    with pytest.raises(ValueError, match="poll_seconds must be above 0"):
        ListenOptions(poll_seconds=0)
    assert BatchOptions().from_ is None and peers_module.OTHER == "SYNBOOST_DICOMWEB_TO_"


def test_object_of_another_study_is_a_mismatch(files: list[Path], tmp_path: Path) -> None:
    inbox = fetch.Inbox(tmp_path / "inbox", fetch.Limits(), 100)
    shutil.copy(files[0], tmp_path / "one")
    uid = str(pydicom.dcmread(files[0]).SOPInstanceUID)
    assert inbox.store(tmp_path / "one", uid, 0, "1.2.3") == Status.MISMATCH
    study = str(pydicom.dcmread(files[0]).StudyInstanceUID)
    assert inbox.store(tmp_path / "one", uid, 0, study) == Status.SUCCESS and inbox.has(study, uid)
