"""Test the node: what it takes and refuses, complete studies, delivery, and that no end of its process loses anything."""

from __future__ import annotations

import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

pytest.importorskip("pynetdicom", reason='pynetdicom is not installed: pip install "synboost-monai[listen]"')
from pynetdicom import AE, evt  # noqa: E402
from rle.rle import encode_frame  # noqa: E402

from synboost_monai.dicom.elements import EncapsulatedPixels  # noqa: E402
from synboost_monai.dicom.network.common import Status, quiet_network  # noqa: E402
from synboost_monai.dicom.network.receive import ServerOptions  # noqa: E402
from synboost_monai.dicom.network.send import (  # noqa: E402
    Destination,
    NotReachableError,
    send_files,
    write_decompressed,
)
from synboost_monai.dicom.uids import DEFLATED, JPEG_BASELINE, RLE  # noqa: E402
from synboost_monai.dicom.writing import overlay, seg  # noqa: E402
from synboost_monai.dicom.writing.objects import save  # noqa: E402
from synboost_monai.hospital import delivery as delivery_module  # noqa: E402
from synboost_monai.hospital.delivery import Delivery, deliveries  # noqa: E402
from synboost_monai.hospital.listen import Node, run_listen  # noqa: E402
from synboost_monai.hospital.options import ListenOptions  # noqa: E402
from synboost_monai.hospital.phantom_studies import write_phantom_studies  # noqa: E402
from tests.dicom import writing_fixtures  # noqa: E402
from tests.forked import Forked  # noqa: E402
from tests.hospital import launch_node  # noqa: E402
from tests.hospital.launch_node import make_node  # noqa: E402

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
CLIP, CT = "1.2.840.10008.5.1.4.1.1.3.1", "1.2.840.10008.5.1.4.1.1.2"
RESULTS = (
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.88.33",  # Comprehensive SR
    "1.2.840.10008.5.1.4.1.1.7.4",  # Multi-frame True Color Secondary Capture
    "1.2.840.10008.5.1.4.1.1.7",
    CLIP,  # an overlay of all frames
    "1.2.840.10008.5.1.4.1.1.104.1",  # Encapsulated PDF
)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[list[Path]]:
    """Return clips of two phantom studies."""
    folder = tmp_path_factory.mktemp("studies") / "in"
    write_phantom_studies(folder, num_studies=2, image_height=96, num_frames=10)
    return [sorted(path.glob("*.dcm")) for path in sorted(folder.iterdir()) if path.is_dir()]


@dataclass
class Archive:
    """Keep received objects in memory, as a storage SCP."""

    syntaxes: list[str] = field(default_factory=lambda: [EXPLICIT, IMPLICIT])
    port: int = 0
    answer: int = 0
    received: list[Dataset] = field(default_factory=list)
    came_as: list[str] = field(default_factory=list)
    """Transfer syntaxes."""

    @property
    def destination(self) -> str:
        return f"ARCHIVE@127.0.0.1:{self.port}"

    @contextmanager
    def open(self) -> Iterator[Archive]:
        entity = AE(ae_title="ARCHIVE")
        entity.require_called_aet = True
        for sop_class in RESULTS:
            entity.add_supported_context(sop_class, self.syntaxes)
        handlers = [(evt.EVT_C_STORE, self._take)]
        server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        assert server is not None
        self.port = server.server_address[1]
        try:
            yield self
        finally:
            entity.shutdown()

    def _take(self, event: Any) -> int:
        if not self.answer:
            path = getattr(event.request, "_dataset_path", None)  # in files while a node runs in this process
            self.received.append(pydicom.dcmread(path) if path else event.dataset)
            self.came_as.append(str(event.context.transfer_syntax))
        return self.answer

    def uids(self) -> list[str]:
        return [str(dataset.SOPInstanceUID) for dataset in self.received]


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive().open() as opened:
        yield opened


@contextmanager
def running(out: Path, destination: str | None = None, **options: Any) -> Iterator[tuple[Node, list[str]]]:
    """Run a node in a thread, and yield it with its output."""
    said: list[str] = []
    node = make_node(out, destination, say=said.append, **options)
    with node.engine:
        thread = threading.Thread(target=node.run)
        thread.start()
        try:
            assert node.is_ready.wait(100)
            yield node, said
        finally:
            node.stop.set()
            thread.join(150)
            assert not thread.is_alive()


def send(port: int, *paths: Path, change: Callable[[Dataset], None] | None = None, **titles: str) -> list[int]:
    """Send files; status of each."""
    entity = AE(ae_title=titles.get("calling", "SCANNER"))
    for sop_class in (CLIP, CT):
        entity.add_requested_context(sop_class, EXPLICIT)
    association = entity.associate("127.0.0.1", port, ae_title=titles.get("called", "SYNBOOST"))
    if not association.is_established:
        return []
    found = []
    for path in paths:
        if change is not None:
            dataset = pydicom.dcmread(path)
            change(dataset)
            path = path.parent / f"changed_{len(found)}.tmp"
            dataset.save_as(path)
        answer = association.send_c_store(path) if association.is_established else Dataset()
        found.append(int(answer.Status) if "Status" in answer else -1)
    if association.is_established:
        association.release()
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.02)


def heard(said: list[str], words: str, times: int = 1) -> None:
    """Wait until so many lines of a node's output hold these words."""
    wait_for(lambda: sum(words in line for line in said) >= times)


def stored(out: Path) -> list[str]:
    return sorted(path.relative_to(out / "inbox").as_posix() for path in (out / "inbox").glob("*/*"))


def test_study_comes_back_as_results_and_nothing_of_a_header_is_in_log_or_names(
    studies: list[list[Path]], archive: Archive, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with running(out, archive.destination, report="en") as (node, said):
        assert send(node.port, *studies[0]) == [Status.SUCCESS] * 2
        heard(said, "delivered")
    [(run_dir, delivery)] = deliveries(out / "runs").items()
    assert delivery.is_delivered and len(delivery.items) >= 4
    made = {str(pydicom.dcmread(run_dir / name).SOPInstanceUID) for name in delivery.items}
    assert sorted(archive.uids()) == sorted(made)
    source = pydicom.dcmread(studies[0][0])
    assert {d.PatientID for d in archive.received} == {source.PatientID}
    assert {d.StudyInstanceUID for d in archive.received} == {source.StudyInstanceUID}
    assert not list((out / "work").rglob("*.dcm"))
    secrets = [str(source.PatientName), str(source.PatientID), source.StudyDate, source.StudyInstanceUID, "hantom"]
    names = [path.relative_to(out).as_posix() for path in out.rglob("*")]
    printed = capfd.readouterr()
    for text in [*said, *names, printed.out, printed.err]:
        assert not any(secret in text for secret in secrets), text
    assert all(re.fullmatch(r"[0-9a-f]{16}/[0-9a-f]{16}_[0-9a-f]{16}\.dcm", name) for name in stored(out))


def test_late_object_makes_the_study_whole_and_only_what_is_new_is_sent(
    studies: list[list[Path]], archive: Archive, tmp_path: Path
) -> None:
    with running(tmp_path / "late", archive.destination) as (node, said):
        for number, path in enumerate(studies[0], start=1):
            assert send(node.port, path) == [Status.SUCCESS]
            heard(said, "delivered", number)
    uids = archive.uids()
    assert len(uids) == len(set(uids))
    with running(tmp_path / "at_once") as (node, said):
        send(node.port, *studies[0])
        heard(said, "processed")
    [late], [at_once] = ([*(tmp_path / name / "runs").glob("*/*/studies")] for name in ("late", "at_once"))
    files = sorted(path.relative_to(late) for path in late.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(at_once) for path in at_once.rglob("*") if path.is_file())
    assert all((late / name).read_bytes() == (at_once / name).read_bytes() for name in files)


def test_object_that_comes_twice_is_kept_once(studies: list[list[Path]], tmp_path: Path) -> None:
    with running(tmp_path, quiet_seconds=60) as (node, _):
        path = studies[0][0]
        assert send(node.port, path, path) == send(node.port, path) * 2 == [Status.SUCCESS] * 2
        assert len(stored(tmp_path)) == 1
        send(node.port, path, change=lambda d: setattr(d, "InstanceNumber", 77))  # another object of the same UID
        assert len(stored(tmp_path)) == 2


def test_second_sending_that_is_cut_off_takes_nothing_from_the_first(studies: list[list[Path]], tmp_path: Path) -> None:
    def cut(dataset: Dataset) -> None:
        dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 4 * 2]

    with running(tmp_path) as (node, said):
        assert send(node.port, *studies[0]) == [Status.SUCCESS] * 2
        heard(said, "2 processed")
        assert send(node.port, studies[0][0], change=cut) == [Status.SUCCESS]
        heard(said, "2 processed, 1 refused")


def test_objects_that_cannot_be_filed_are_refused(studies: list[list[Path]], tmp_path: Path) -> None:
    def without_study(dataset: Dataset) -> None:
        del dataset.StudyInstanceUID

    def of_no_uid(dataset: Dataset) -> None:
        dataset["StudyInstanceUID"].value = pydicom.uid.UID("../../etc", validation_mode=pydicom.config.IGNORE)

    def of_another_name(dataset: Dataset) -> None:
        dataset.SOPInstanceUID = "1.2.3"  # the request takes the one of the file meta information

    with running(tmp_path, quiet_seconds=60) as (node, _):
        path = studies[0][0]
        assert send(node.port, path, change=without_study) == [Status.CANNOT_UNDERSTAND]
        assert send(node.port, path, change=of_no_uid) == [Status.CANNOT_UNDERSTAND]
        assert send(node.port, path, change=of_another_name) == [Status.MISMATCH]
        assert stored(tmp_path) == [] and not list((tmp_path / "work").rglob("*.dcm"))


def test_other_classes_are_not_negotiated_and_echo_is(tmp_path: Path) -> None:
    with running(tmp_path) as (node, _):
        entity = AE()
        entity.add_requested_context(CT, EXPLICIT)
        entity.add_requested_context("1.2.840.10008.1.1")
        association = entity.associate("127.0.0.1", node.port, ae_title="SYNBOOST")
        assert [c.abstract_syntax for c in association.rejected_contexts] == [CT]
        assert association.send_c_echo().Status == 0
        association.release()


def test_only_allowed_titles_and_peers_are_served(studies: list[list[Path]], tmp_path: Path) -> None:
    path = studies[0][0]
    with running(tmp_path / "a", server={"allowed_titles": ("SCANNER",)}, quiet_seconds=60) as (node, said):
        assert send(node.port, path, calling="STRANGER") == []
        assert send(node.port, path, called="ANOTHER") == []
        assert sum("refused" in line for line in said) == 2
        assert send(node.port, path) == [Status.SUCCESS]
    with running(tmp_path / "b", server={"allowed_peers": ("10.1.0.0/16",)}) as (node, said):
        assert send(node.port, path) == []
        assert any("its address is not allowed" in line for line in said)


def test_what_is_too_large_is_cut_off(studies: list[list[Path]], tmp_path: Path) -> None:
    with running(tmp_path / "a", server={"max_object_mb": 0.1}) as (node, said):
        assert send(node.port, studies[0][0]) == [-1]
        heard(said, "an object is larger than 0.1 MB")
        wait_for(lambda: not list((tmp_path / "a/work").rglob("*.dcm")))
        assert stored(tmp_path / "a") == []
    with running(tmp_path / "b", max_inbox_mb=0.25, quiet_seconds=60) as (node, said):
        assert send(node.port, *studies[0]) == [Status.SUCCESS, Status.OUT_OF_RESOURCES]
    with running(tmp_path / "c", server={"min_free_mb": 1e9}) as (node, said):
        assert send(node.port, studies[0][0]) == [Status.OUT_OF_RESOURCES]
        assert any("the disk is nearly full" in line for line in said)


def test_lying_lengths_and_silence_do_not_hold_a_connection(studies: list[list[Path]], tmp_path: Path) -> None:
    with running(tmp_path, server={"timeout": 1, "max_connections": 2}, quiet_seconds=60) as (node, said):
        for data in (struct.pack(">BBL", 1, 0, 0xFFFFFFFF) + bytes(100), b"", b"GET / HTTP/1.1\r\n\r\n", bytes(5)):
            with socket.create_connection(("127.0.0.1", node.port)) as connection:
                connection.sendall(data)
                connection.settimeout(60)
                while connection.recv(1024):  # ends when the node hangs up
                    pass
        assert any("it announced 4294967295 bytes at once" in line for line in said)
        assert send(node.port, studies[0][0]) == [Status.SUCCESS]


def test_object_that_ends_in_the_middle_is_not_kept(studies: list[list[Path]], tmp_path: Path) -> None:
    with running(tmp_path) as (node, said):
        entity = AE()
        entity.add_requested_context(CLIP, EXPLICIT)
        association = entity.associate("127.0.0.1", node.port, ae_title="SYNBOOST")
        sent = association.dul.socket.send
        counts = []

        def cut(data: bytes) -> None:
            counts.append(len(data))
            if len(counts) > 2:
                association.dul.socket.socket.close()
            sent(data)

        association.dul.socket.send = cut
        association.network_timeout = association.dimse_timeout = 1
        association.send_c_store(studies[0][0])
        heard(said, "in the middle of an object")
        assert stored(tmp_path) == [] and not list((tmp_path / "work").rglob("*.dcm"))


def test_results_wait_for_an_archive_that_is_down(studies: list[list[Path]], tmp_path: Path) -> None:
    archive = Archive()
    with archive.open():
        pass  # a port that is free
    with running(tmp_path, archive.destination) as (node, said):
        send(node.port, *studies[0])
        heard(said, "tried again later (nobody answers")
        with archive.open():
            wait_for(lambda: any(re.search(r"[1-9] results delivered$", line) for line in said))
    assert len(archive.received) >= 4


def test_results_that_an_archive_refuses_stay_and_a_new_start_tries_again(
    studies: list[list[Path]], archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "MAX_REFUSALS", 2)
    archive.answer = 0xA700
    with running(tmp_path, archive.destination) as (node, said):
        send(node.port, *studies[0])
        heard(said, "refused for good (the destination answers with status 0xA700)")
    [delivery] = deliveries(tmp_path / "runs").values()
    assert {item.state for item in delivery.items.values()} == {"refused"}
    archive.answer = 0
    with running(tmp_path, archive.destination) as (_, said):
        heard(said, "delivered")
    [delivery] = deliveries(tmp_path / "runs").values()
    assert delivery.is_delivered and len(archive.received) == len(delivery.items)


def test_compressed_result_goes_uncompressed_where_it_must(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 7, 9, 3)).astype(np.uint8)
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = RESULTS[2], "1.2.3.4"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.NumberOfFrames = 7, 9, 3, 3
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation, dataset.PlanarConfiguration = 7, 0, 0
    dataset.PhotometricInterpretation = "RGB"

    def write_tail(file: Any) -> None:
        pixels = EncapsulatedPixels(file, 3)
        for frame in frames:
            pixels.add(encode_frame(frame.tobytes(), *frame.shape, 8, "<"))
        pixels.close()

    path = tmp_path / "rle.dcm"
    save(dataset, path, write_tail, RLE)
    write_decompressed(path, tmp_path / "plain.dcm")
    assert np.array_equal(pydicom.dcmread(tmp_path / "plain.dcm").pixel_array, frames)
    for syntaxes in ([RLE], [EXPLICIT, IMPLICIT], [IMPLICIT]):
        with Archive(syntaxes).open() as archive, quiet_network():
            destination = Destination.parse(archive.destination)
            assert list(send_files([path], destination, "NODE", tmp_path / "scratch")) == [(path, "")]
        assert archive.came_as == syntaxes[:1]
        assert archive.received[0].Rows == 7
    with Archive().open() as archive, quiet_network():
        archive.port, port = 1, archive.port
        with pytest.raises(NotReachableError, match="nobody answers"):
            list(send_files([path], Destination.parse(archive.destination), "NODE", tmp_path, timeout=2))
        with pytest.raises(NotReachableError, match="AE titles"):
            list(send_files([path], Destination("ANOTHER", "127.0.0.1", port), "NODE", tmp_path))
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("kind", ["deflated segmentation", "JPEG overlay"])
def test_lossless_or_not_a_result_keeps_its_pixels_where_it_goes_uncompressed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, maps = tmp_path / "result.dcm", writing_fixtures.random_label_maps()
    source, about = writing_fixtures.ultrasound(), writing_fixtures.PROVENANCE
    if kind == "JPEG overlay":
        frames = np.full(maps.shape, 90, np.uint8)
        display = overlay.Display(np.ones(maps.shape[1:], bool), frame_times_ms=range(5))
        monkeypatch.setattr(overlay, "MAX_PLAIN_BYTES", 0)
        overlay.write_overlay(source, [(frames, maps)], range(1, 6), path, display=display, provenance=about)
    else:
        monkeypatch.setattr(seg, "MAX_PLAIN_BYTES", 0)
        seg.write_segmentation(source, maps, range(1, 6), path, provenance=about)
    result = pydicom.dcmread(path)
    stored = str(result.file_meta.TransferSyntaxUID)
    assert stored == {"JPEG overlay": JPEG_BASELINE, "deflated segmentation": DEFLATED}[kind]
    for syntaxes, expected in (([stored, EXPLICIT], stored), ([EXPLICIT], EXPLICIT), ([IMPLICIT], IMPLICIT)):
        with Archive(syntaxes).open() as archive, quiet_network():
            destination = Destination.parse(archive.destination)
            assert list(send_files([path], destination, "NODE", tmp_path / "scratch")) == [(path, "")]
        (received,) = archive.received
        assert archive.came_as == [expected] and received.SOPInstanceUID == result.SOPInstanceUID
        if expected != stored:
            assert np.array_equal(received.pixel_array, result.pixel_array)
            assert received.PhotometricInterpretation == ("RGB" if stored == JPEG_BASELINE else "MONOCHROME2")


def test_old_studies_are_removed_when_all_is_delivered(
    studies: list[list[Path]], archive: Archive, tmp_path: Path
) -> None:
    archive.answer = 0xA700
    with running(tmp_path, archive.destination) as (node, said):
        send(node.port, *studies[0])
        heard(said, "tried again later")
        node._clean(keep_days=1e-9)
        assert len(stored(tmp_path)) == 2
        archive.answer = 0
        wait_for(lambda: any("results delivered" in line and " 0 " not in line for line in said))
        node._clean(keep_days=1)
        assert len(stored(tmp_path)) == 2
        node._clean(keep_days=1e-9)
        assert stored(tmp_path) == [] and not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
def test_killed_at_any_time_nothing_is_lost(studies: list[list[Path]], archive: Archive, tmp_path: Path) -> None:
    """Each object comes to another process, which is killed as soon as it has answered, works, has written, and delivers."""
    out = tmp_path / "out"
    moments: list[Callable[[], Any]] = [
        lambda: True,
        lambda: list(out.glob("runs/*/*/ledger.sqlite")),
        lambda: list(out.glob("runs/*/*/studies/*/*")),
        lambda: archive.received,
    ]
    for path, moment in zip([path for study in studies for path in study], moments, strict=True):
        process, port = start_node(out, archive)
        assert send(port, path) == [Status.SUCCESS]
        wait_for(moment)
        process.kill()
    assert not is_all_delivered(out, len(studies))
    process, _ = start_node(out, archive)
    wait_for(lambda: is_all_delivered(out, len(studies)))
    process.terminate()
    assert process.wait() == 0 and process.stdout == "ended\n"
    assert len(stored(out)) == 4
    final = {
        str(pydicom.dcmread(run_dir / name).SOPInstanceUID)
        for run_dir, delivery in deliveries(tmp_path / "out/runs").items()
        for name in delivery.items
    }
    assert final <= set(archive.uids())
    with running(tmp_path / "whole") as (node, said):
        send(node.port, *[path for study in studies for path in study])
        heard(said, "processed", len(studies))
    [killed, whole] = [
        {path.parts[-2:]: path.read_bytes() for path in (tmp_path / name / "runs").glob("*/*/studies/*/*")}
        for name in ("out", "whole")
    ]
    assert killed == whole


def start_node(out: Path, archive: Archive) -> tuple[Forked, int]:
    """Start a node in a process of its own, and return it with its port."""
    process, ready = Forked(launch_node.main, out, archive.destination), r"listening on 127.0.0.1:(\d+) "
    wait_for(lambda: process.poll() is not None or re.search(ready, process.stderr))
    found = re.search(ready, process.stderr)
    assert found is not None, process.stderr
    return process, int(found[1])


def is_all_delivered(out: Path, num_studies: int) -> bool:
    found = deliveries(out / "runs")
    return len(found) == num_studies and all(d.is_delivered and len(d.inputs) == 2 for d in found.values())


def test_unfinished_run_of_a_damaged_record_is_done_again(studies: list[list[Path]], tmp_path: Path) -> None:
    with running(tmp_path) as (node, said):
        send(node.port, *studies[0])
        heard(said, "processed")
    [run_dir] = deliveries(tmp_path / "runs")
    (run_dir / "delivery.json").unlink()
    with running(tmp_path) as (_, said):
        heard(said, "processed")
    assert Delivery.load(run_dir) is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "say who may send"),
        ({"host": "0.0.0.0", "allowed_titles": "A"}, "say who may send"),
        ({"allowed_peers": "scanner"}, "is no address or network"),
        ({"ae_title": "MUCH TOO LONG A TITLE"}, "is no AE title"),
        ({"destination": "127.0.0.1:104"}, "expected TITLE@HOST:PORT"),
        ({"destination": "A@host:0"}, "expected TITLE@HOST:PORT"),
        ({"frames": "some"}, "frames must be"),
        ({"quiet_seconds": 0}, "quiet_seconds must be above 0"),
        ({"max_object_mb": 0}, "max_object_mb must be above 0"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run_listen(tmp_path, ListenOptions(**options))


def test_missing_pynetdicom_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    with pytest.raises(ValueError, match=r'pip install "synboost-monai\[listen\]"'):
        run_listen(tmp_path)


def test_peers_are_told_by_address() -> None:
    assert ServerOptions().is_peer("127.0.0.1") and ServerOptions().is_peer("::ffff:127.0.0.1")
    assert not ServerOptions().is_peer("10.1.2.3")
    options = ServerOptions(host="10.1.0.1", allowed_titles=("A",), allowed_peers=("10.1.2.0/24", "fd00::1"))
    assert options.is_peer("10.1.2.3") and options.is_peer("fd00::1%eth0")
    assert not options.is_peer("10.1.3.3") and not options.is_peer("127.0.0.1") and not options.is_peer("nonsense")
