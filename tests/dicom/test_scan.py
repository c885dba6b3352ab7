"""Test scans: every entry of a tree comes once, with the right reason, in one order, and no file is opened that should not be."""

from __future__ import annotations

import os
import pickle
import socket
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from synboost_monai.dicom.elements import SEQUENCE_END, UNDEFINED_LENGTH, element, element_header, item
from synboost_monai.dicom.identity.identifiers import fold, identifiers
from synboost_monai.dicom.limits import Limits
from synboost_monai.dicom.quiet import quiet
from synboost_monai.dicom.reading import scan as scan_module
from synboost_monai.dicom.reading.header import read_header
from synboost_monai.dicom.reading.scan import content_digest, mark_duplicates, scan
from synboost_monai.dicom.reading.scanned_file import MAX_WORDS, ScannedFile, check_unchanged, is_uid
from synboost_monai.dicom.reading.worker import ReaderPool
from synboost_monai.dicom.reasons import NotUsableError, Outcome
from synboost_monai.dicom.uids import DEFLATED, EXPLICIT, IMPLICIT
from tests.dicom.conftest import make
from tests.dicom.writing_fixtures import ultrasound

CLIP, STILL = "1.2.840.10008.5.1.4.1.1.3.1", "1.2.840.10008.5.1.4.1.1.6.1"
WriteUltrasound = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> WriteUltrasound:
    """Write a small ultrasound image into `tmp_path/in`; keywords change, or by None remove, data elements."""

    def write_file(name: str = "image", *, syntax: str = EXPLICIT, pixels: bytes | None = bytes(64), **changes: object):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        own = {"SOPInstanceUID": "1.2.3.4", "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.1"}
        own |= {"PatientName": "Doe^Jane", "PatientID": "MRN-004711", "StudyDate": "20240305", "ViewCodeSequence": None}
        dataset = ultrasound(None, 8, 8, **{**own, **changes})
        if pixels is not None:
            dataset.add_new(0x7FE00010, "OB", pixels)
        dataset.preamble = bytes(128)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path, enforce_file_format=False, implicit_vr=syntax == IMPLICIT, little_endian=True)
        return path

    return write_file


def only(folder: Path) -> ScannedFile:
    """Return the one file of a scan."""
    (file,) = scan(folder)
    return file


def codes(files: list[ScannedFile]) -> dict[str, str]:
    """Return relative path -> reason code, '' for our files."""
    return {file.relative: file.reason.reason.code if file.reason else "" for file in files}


@pytest.mark.filterwarnings("ignore")
def test_ultrasound_image_is_found_with_its_facts(tmp_path: Path, write: WriteUltrasound) -> None:
    write("Jane/no_extension", SOPClassUID=CLIP, NumberOfFrames=12)
    file = only(tmp_path / "in")
    assert file.reason is None and (file.path, file.relative) == (
        str(tmp_path / "in/Jane/no_extension"),
        "Jane/no_extension",
    )
    assert (file.sop_instance_uid, file.study_uid, file.frames) == ("1.2.3.4", "1.2.3", 12)
    assert len(file.patient_key) == 16
    assert {"doe", "jane", "janedoe", "004711", "mrn004711", "20240305", "2024-03-05"} <= file.identifiers
    assert pickle.loads(pickle.dumps(file)) == file


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6"}, "", ""),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.3"}, "", ""),
        ({"Modality": None}, "", ""),
        ({"Modality": "us"}, "", ""),
        ({"StudyInstanceUID": "1.02.3"}, "", ""),
        ({"NumberOfFrames": None, "syntax": IMPLICIT}, "", ""),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "Modality": "CT"},
            "other_modality",
            "a CT object \\(CT Image\\)",
        ),
        ({"Modality": "IVUS"}, "other_modality", "a IVUS object"),
        ({"Modality": "DOE JANE"}, "other_modality", "a non-ultrasound object"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "other_modality", "Secondary Capture Image"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, "", ""),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4"}, "", ""),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4", "Manufacturer": "A company"}, "", ""),
        (
            {"Manufacturer": "SynBoost-MONAI", "ImageType": ["DERIVED", "SECONDARY"]},
            "own_result",
            "a result of this software",
        ),
        (
            {
                "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4",
                "Manufacturer": "SynBoost-MONAI",
                "ImageType": ["DERIVED", "SECONDARY", "TTE"],
            },
            "own_result",
            "a result of this software",
        ),
        ({"Manufacturer": "SynBoost-MONAI", "ImageType": ["DERIVED", "PRIMARY", "TTE"]}, "", ""),  # synthetic
        ({"Manufacturer": "SynBoost-MONAI"}, "", ""),  # a phantom
        ({"Manufacturer": "A company", "ImageType": ["DERIVED", "SECONDARY"]}, "", ""),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4", "Modality": "OT"}, "other_modality", "a OT object"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4", "Modality": None}, "other_modality", "a non-ultrasound object"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.3"}, "other_modality", "Multi-frame Grayscale Word"),
        ({"SOPClassUID": "1.3.6.1.4.1.99.1"}, "not_an_image", "of an unknown class"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.33", "Modality": "SR"}, "other_modality", "Comprehensive SR"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.33"}, "not_an_image", "Comprehensive SR"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1", "Modality": "DOC"}, "other_modality", "PDF"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4", "Modality": "SEG"}, "other_modality", "Segmentation"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1", "Modality": "PR"}, "other_modality", "Presentation State"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66"}, "not_an_image", "Raw Data"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.2"}, "not_an_image", "Enhanced US Volume"),
        ({"SOPClassUID": "1.2.840.10008.1.3.10", "Modality": None}, "dicomdir", "DICOMDIR"),
        ({"SOPClassUID": None}, "missing_identifier", "SOPClassUID is missing"),
        ({"SOPInstanceUID": None}, "missing_identifier", "SOPInstanceUID is missing"),
        ({"StudyInstanceUID": ""}, "missing_identifier", "StudyInstanceUID is missing"),
        ({"SeriesInstanceUID": None}, "missing_identifier", "SeriesInstanceUID is missing"),
        ({"SOPInstanceUID": "../../etc/passwd"}, "bad_identifier", "SOPInstanceUID is not a valid"),
        ({"StudyInstanceUID": "1." * 33 + "1"}, "bad_identifier", "StudyInstanceUID is not a valid"),
        ({"StudyInstanceUID": ["1.2", "1.3"]}, "bad_identifier", "StudyInstanceUID is not a valid"),
        ({"pixels": None}, "no_pixels", "no pixel data"),
    ],
)
def test_what_is_not_ours_or_cannot_be_told_has_a_reason(
    tmp_path: Path, write: WriteUltrasound, changes: dict, code: str, words: str
) -> None:
    write(**changes)
    file = only(tmp_path / "in")
    assert codes([file])["image"] == code
    if code:
        with pytest.raises(NotUsableError, match=words):
            raise file.reason
        assert not {"Doe", "Jane", "DOE", "4711", "passwd"} & set(str(file.reason).replace("(", " ").split())


@pytest.mark.filterwarnings("ignore")
def test_damage_of_another_modality_is_not_our_concern(tmp_path: Path, write: WriteUltrasound) -> None:
    for name, sop_class, modality in (("ct", "1.2.840.10008.5.1.4.1.1.2", "CT"), ("us", STILL, "US")):
        path = write(name, SOPClassUID=sop_class, Modality=modality)
        path.write_bytes(path.read_bytes()[:-90])
    assert codes(list(scan(tmp_path / "in"))) == {"ct": "other_modality", "us": "truncated_header"}


@pytest.mark.filterwarnings("ignore")
def test_every_entry_comes_once_in_order_whatever_it_is_called(tmp_path: Path, write: WriteUltrasound) -> None:
    root = tmp_path / "in"
    names = ["a/z", "a.txt", "-rf", "b\nc", "\u202egnp.dcm", "ü", "x" * 255, "deep/" * 20 + "er", "=1+1", "spaß"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("not DICOM")
    raw = os.path.join(os.fsencode(root), b"caf\xe9")
    with open(raw, "wb") as file:
        file.write(b"x")
    os.mkfifo(root / "pipe.dcm")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(root / "sock"))
    (root / "loop").symlink_to(root)
    (root / "a/up").symlink_to("..")
    (root / "link.dcm").symlink_to("a.txt")
    (root / "dead").symlink_to("nowhere")
    (root / "empty").write_bytes(b"")
    (root / "emptyfolder").mkdir()
    started = time.monotonic()
    files = list(scan(root))
    assert time.monotonic() - started < 30
    server.close()
    found = codes(files)
    assert len(found) == len(files) == len(names) + 8
    assert list(found) == sorted(found, key=lambda name: os.fsencode(name).split(b"/"))
    assert [os.fsencode(name) for name in found if "\udce9" in name] == [b"caf\xe9"]
    assert (found["pipe.dcm"], found["sock"], found["empty"]) == ("special_file", "special_file", "empty_file")
    assert {found[name] for name in ("loop", "a/up", "link.dcm", "dead")} == {"symlink"}
    assert {found[name] for name in names} == {"not_dicom"}
    assert codes(list(scan(root))) == found


def test_litter_of_operating_systems_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [".DS_Store", "THUMBS.DB", "desktop.ini", "._IM0001", "__MACOSX/a/IM0001", "lost+found/x", "@eaDir/IM1"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"something")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("a file was opened"))
    assert codes(list(scan(tmp_path))) == dict.fromkeys(sorted(names, key=os.fsencode), "operating_system_file")


def test_folder_or_file_that_cannot_be_read_is_one_entry(
    tmp_path: Path, write: WriteUltrasound, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("open/a", "closed/b", "lost+found/c", "d"):
        write(name)
    listdir, opening = os.listdir, os.open

    def refuse(path: str, *arguments: object):
        if os.path.basename(path) in ("closed", "lost+found", "d"):
            raise PermissionError(13, "Permission denied", path)
        return (listdir if not arguments else opening)(path, *arguments)

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "open", refuse)
    files = list(scan(tmp_path / "in"))
    assert codes(files) == {
        "closed": "unreadable",
        "d": "unreadable",
        "lost+found": "operating_system_file",
        "open/a": "",
    }
    assert "permission denied" in str(files[0].reason)


def test_file_that_goes_while_the_folder_is_read_has_vanished(
    tmp_path: Path, write: WriteUltrasound, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a")
    monkeypatch.setattr(os, "listdir", lambda _: ["a", "b"])
    assert codes(list(scan(tmp_path / "in"))) == {"a": "", "b": "vanished"}


def test_output_inside_of_the_input_is_left_out(tmp_path: Path, write: WriteUltrasound) -> None:
    write("a")
    write("out/b")
    assert [file.relative for file in scan(tmp_path / "in", exclude=[tmp_path / "in/out", tmp_path / "none"])] == ["a"]


def test_a_single_file_and_a_missing_folder(tmp_path: Path, write: WriteUltrasound) -> None:
    assert only(write("a")).relative == "a"
    with pytest.raises(FileNotFoundError, match="no such folder"):
        list(scan(tmp_path / "none"))


def test_copies_are_duplicates_and_contradictions_are_conflicts(
    tmp_path: Path, write: WriteUltrasound, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReaderPool, "check", lambda pool, path: None)  # these files are too small to be read
    first = write("1", SOPInstanceUID="1.2.1")
    (tmp_path / "in/2").write_bytes(first.read_bytes())
    write("3", SOPInstanceUID="1.2.3")
    again = write("4", SOPInstanceUID="1.2.3")
    content = again.read_bytes()  # another preamble and another writer: the same object
    again.write_bytes(b"\1" * 128 + content[128:])
    for name, pixels in (("5", bytes(64)), ("6", bytes([1]) * 64), ("7", bytes(64))):
        write(name, SOPInstanceUID="1.2.5", pixels=pixels)
    write("8", SOPInstanceUID="1.2.8")
    write("9", SOPInstanceUID="1.2.8", syntax=IMPLICIT)
    files = mark_duplicates(scan(tmp_path / "in"))
    assert codes(files) == {
        **{"1": "", "2": "duplicate", "3": "", "4": "duplicate"},
        **dict.fromkeys("56789", "conflicting_duplicate"),
    }
    assert files[1].reason is not None and files[1].reason.reason.outcome is Outcome.SKIPPED
    assert content_digest(files[2]) == content_digest(files[3])
    reordered = mark_duplicates(reversed(list(scan(tmp_path / "in"))))
    assert codes(reordered) == codes(files)


def test_damaged_copy_takes_nothing_from_the_good_one(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (6, 48, 64), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    for name, encoding, uid in (
        ("jpeg", "jpeg", "1.2.1"),
        ("plain", "explicit", "1.2.2"),
        ("deflated", "deflated", "1.2.3"),
    ):
        good = make(tmp_path / f"in/{name}_b_good", frames, encoding, SOPInstanceUID=uid).read_bytes()
        (tmp_path / f"in/{name}_c_copy").write_bytes(good)
        for part in (300, len(good) // 2, len(good) - 200):  # within the header, in the middle, within the last frame
            (tmp_path / f"in/{name}_a_cut_{part}").write_bytes(good[:part])
        if encoding == "jpeg":
            last = good.rindex(b"\xff\xd8\xff")
            damaged = good[:last] + bytes(100) + good[last + 100 :]
            (tmp_path / f"in/{name}_damaged").write_bytes(damaged)
            (tmp_path / f"in/{name}_a_no_end").write_bytes(good[:-6])
    for seed in (1, 2):
        other = np.random.default_rng(seed).integers(0, 255, (6, 48, 64), dtype=np.uint8)
        cut = make(tmp_path / f"in/other_{seed}", other, "jpeg", SOPInstanceUID="1.2.4").read_bytes()
    (tmp_path / "in/other_cut").write_bytes(cut[: len(cut) // 2])
    found = codes(mark_duplicates(scan(tmp_path / "in")))
    assert [name for name, code in found.items() if not code] == ["deflated_b_good", "jpeg_b_good", "plain_b_good"]
    assert {found[f"{name}_c_copy"] for name in ("jpeg", "plain", "deflated")} == {"duplicate"}
    assert found["jpeg_a_no_end"] == "duplicate"  # all frames are there
    assert found["other_1"] == found["other_2"] == "conflicting_duplicate" and found["other_cut"] == "truncated_pixels"
    assert {code for name, code in found.items() if "_a_cut" in name or "damaged" in name} <= {
        *("truncated_header", "truncated_pixels", "broken_frame", "damaged_frame"),
    }


def lengthened(path: Path, num_items: int, size: int = 184, is_deflated: bool = False) -> None:
    """Put a sequence of so many items before the pixel data."""
    content = path.read_bytes()
    syntax = content.index(b"\x02\x00\x10\x00UI")  # the last of the file meta information
    start = syntax + 8 + int.from_bytes(content[syntax + 6 : syntax + 8], "little")
    data = zlib.decompress(content[start:], -15) if is_deflated else content[start:]
    pixels = data.rindex(b"\xe0\x7f\x10\x00")
    items = item(element(0x00080104, "LO", "x" * size)) * num_items
    long = element_header(0x00540220, "SQ", UNDEFINED_LENGTH) + items + SEQUENCE_END
    data = data[:pixels] + long + data[pixels:]
    path.write_bytes(content[:start] + (zlib.compress(data, wbits=-15) if is_deflated else data))


def test_what_a_header_costs_and_leaves_is_bounded(tmp_path: Path, write: WriteUltrasound) -> None:
    many = [Dataset() for _ in range(3000)]
    for number, one in enumerate(many):
        one.PatientID = f"word{number}"
    with quiet():
        write("a_many_ids", OtherPatientIDsSequence=many)
        write("b_long_name", PatientName="Jane " * 4000)
    lengthened(write("c_long"), 2000)
    write("d_short")
    files = list(scan(tmp_path / "in"))
    assert codes(files) == {"a_many_ids": "broken_header", "b_long_name": "", "c_long": "", "d_short": ""}
    for file in files:
        assert len(file.identifiers) <= MAX_WORDS and sum(map(len, file.identifiers)) < 20_000
        assert "004711" in file.identifiers  # its path can still be hidden
    assert replace(files[2], **dict.fromkeys(("path", "relative"), ""), size=0, mtime_ns=0) == replace(
        files[3], **dict.fromkeys(("path", "relative"), ""), size=0, mtime_ns=0
    )
    assert codes(list(scan(tmp_path / "in", Limits(max_header_mb=0.3))))["c_long"] == "header_too_large"


def test_header_that_ends_its_reader_costs_itself_alone(tmp_path: Path, write: WriteUltrasound) -> None:
    lengthened(write("a", syntax=DEFLATED), 6000, 10_000, is_deflated=True)  # it inflates to 60 MB
    write("b")
    lengthened(write("c"), 2000)
    limits = Limits(
        memory_mb=40, max_header_mb=100
    )  # far from what c needs (some 10) and from what a needs (more than 120)
    found = codes(list(scan(tmp_path / "in", limits)))
    assert found.pop("a") in ("out_of_memory", "decoder_died") and found == {"b": "", "c": ""}
    assert codes(list(scan(tmp_path / "in", replace(limits, memory_mb=4096)))) == {"a": "", "b": "", "c": ""}


def test_only_files_that_share_a_uid_are_hashed(
    tmp_path: Path, write: WriteUltrasound, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a", SOPInstanceUID="1.2.1")
    copy = write("b", SOPInstanceUID="1.2.2")
    (tmp_path / "in/c").write_bytes(copy.read_bytes())
    hashed = []
    monkeypatch.setattr(scan_module, "file_digest", lambda path, *_, **__: hashed.append(Path(path).name) or "")
    mark_duplicates(scan(tmp_path / "in"))
    assert hashed == ["b", "c"]


def test_change_between_scan_and_reading_is_noticed(tmp_path: Path, write: WriteUltrasound) -> None:
    path, copy = write("a"), write("b")
    files = list(scan(tmp_path / "in"))
    check_unchanged(files[0])
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(NotUsableError, match="changed while"):
        check_unchanged(files[0])
    copy.unlink()
    with pytest.raises(NotUsableError, match="not any more"):
        check_unchanged(files[1])
    assert codes(mark_duplicates(files)) == {"a": "changed", "b": "vanished"}


def test_patient_key_is_of_the_patient_alone(tmp_path: Path, write: WriteUltrasound) -> None:
    write("a", PatientName="Doe^Jane", SpecificCharacterSet="ISO_IR 192")
    write("b", PatientName="DOE^JANE^^", StudyInstanceUID="1.9")
    write("c", PatientID="other")
    write("d", PatientName=None, PatientID="")
    keys = [file.patient_key for file in scan(tmp_path / "in")]
    assert keys[0] == keys[1] != keys[2] and keys[3] == ""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"PatientName": "Müller-Lüdenscheidt^Jörg", "SpecificCharacterSet": "ISO_IR 192"},
            {"muller", "mueller", "jorg"},
        ),
        (
            {"PatientName": "Yamada^Tarou=山田^太郎", "SpecificCharacterSet": "ISO_IR 192"},
            {"yamada", "山田", "山田太郎"},
        ),
        ({"PatientName": "O'Neil^Li"}, {"oneil", "neil", "li"}),
        ({"PatientID": "0000123456"}, {"0000123456", "123456"}),
        ({"PatientBirthDate": "19500102"}, {"19500102", "1950-01-02", "02.01.1950", "500102", "1950-1-2"}),
        ({"AcquisitionDateTime": "20240305101112.5+0100"}, {"20240305", "05-03-2024"}),
        (
            {"InstitutionName": "St. Mary Hospital", "StationName": "EPIQ-7"},
            {"mary", "stmaryhospital", "epiq", "epiq7"},
        ),
        ({"OperatorsName": ["Roe^R", "Poe^P"], "AccessionNumber": "A99"}, {"roe", "poe", "a99"}),
        ({"PatientID": "x"}, {"doe"}),
    ],
)
def test_identifying_words_are_collected(
    tmp_path: Path, write: WriteUltrasound, changes: dict, words: set[str]
) -> None:
    path = write(**changes)
    assert words <= only(tmp_path / "in").identifiers
    assert words <= identifiers(read_header(path))


def test_identifiers_inside_of_sequences_are_collected(tmp_path: Path, write: WriteUltrasound) -> None:
    other, request = Dataset(), Dataset()
    other.PatientID = "OLD-777"
    request.RequestedProcedureID = "RP555"
    write(OtherPatientIDsSequence=[other], RequestAttributesSequence=[request])
    assert {"777", "old777", "rp555"} <= only(tmp_path / "in").identifiers


def test_words_are_folded_alike_however_they_are_written() -> None:
    assert fold("MÜLLER") == fold("mu\u0308ller") == fold("m\udcfcller") == fold("Müller") == "muller"
    assert fold("Straße") == "strasse"


def test_uids_are_digits_and_dots() -> None:
    assert is_uid("1.2.840.10008.1.2") and is_uid("2.25.329800735698586629295641978511506172918")
    assert not any(map(is_uid, ("", "1", ".", "1..2", "1.2.", "1.2a", "1.2\n", "1.²", "1." * 32 + "1.2")))


def test_a_thousand_headers_a_second(tmp_path: Path, write: WriteUltrasound) -> None:
    content = write("0").read_bytes()
    for number in range(1, 400):
        (tmp_path / f"in/{number}").write_bytes(content.replace(b"1.2.3.4", f"1.2.{number:03}"[:7].encode()))
    started = time.process_time()
    files = list(scan(tmp_path / "in"))
    assert len(files) == 400 and time.process_time() - started < 0.8  # measured: 0.05 s
