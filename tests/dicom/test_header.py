"""Test headers: sound ones are read, in every encoding, and false ones are refused quickly, with a reason."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import pytest

from synboost_monai.dicom.limits import Limits
from synboost_monai.dicom.reading.files import file_digest, open_regular
from synboost_monai.dicom.reading.header import read_header
from synboost_monai.dicom.reading.structure import PixelData, walk_file
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.dicom.uids import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT

LONG = ("OB", "OW", "SQ", "UN", "UT")
UNDEFINED = 0xFFFFFFFF
US_IMAGE = b"1.2.840.10008.5.1.4.1.1.6.1\0"
JPEG = "1.2.840.10008.1.2.4.50"


def element(tag: int, vr: str, value: bytes, order: str = "<", length: int | None = None) -> bytes:
    """Encode one data element; `vr` '' is implicit; `length` is the length that it states."""
    said = len(value) if length is None else length
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if not vr:
        return head + struct.pack(order + "L", said) + value
    if vr in LONG:
        return head + vr.encode() + b"\0\0" + struct.pack(order + "L", said) + value
    return head + vr.encode() + struct.pack(order + "H", said) + value


def item(content: bytes = b"", length: int | None = None) -> bytes:
    """Encode an item of a sequence; its end is marked if its length is undefined."""
    end = element(0xFFFEE00D, "", b"") if length == UNDEFINED else b""
    return element(0xFFFEE000, "", content, length=length) + end


def unending(tag: int, vr: str, content: bytes) -> bytes:
    """Encode a sequence of undefined length with its end."""
    return element(tag, vr, content, length=UNDEFINED) + element(0xFFFEE0DD, "", b"")


def head(syntax: str = EXPLICIT, preamble: bytes = bytes(128)) -> bytes:
    """Encode the preamble and file meta information."""
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = element(0x00020002, "UI", US_IMAGE) + (element(0x00020010, "UI", uid) if syntax else b"")
    return preamble + b"DICM" + element(0x00020000, "UL", struct.pack("<L", len(meta))) + meta


def body(vr: bool = True, order: str = "<", extra: bytes = b"", pixels: bool = True) -> bytes:
    """Encode a data set: SOP class and instance, name, extra elements, rows, pixels."""

    def one(tag: int, word: str, value: bytes) -> bytes:
        return element(tag, word if vr else "", value, order)

    text = (
        one(0x00080016, "UI", US_IMAGE) + one(0x00080018, "UI", b"1.2.34") + one(0x00100010, "PN", b"Doe^Jane") + extra
    )
    text += one(0x00280010, "US", struct.pack(order + "H", 480))
    return text + (one(0x7FE00010, "OW", bytes(8)) if pixels else b"")


def deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(1, wbits=-15)
    return packer.compress(content) + packer.flush()


def written(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    return path


SOUND = {
    "explicit": head() + body(),
    "implicit": head(IMPLICIT) + body(vr=False),
    "big endian": head(BIG_ENDIAN) + body(order=">"),
    "deflated": head(DEFLATED) + deflated(body()),
    "encapsulated": head(JPEG) + body(pixels=False) + unending(0x7FE00010, "OB", item() + item(bytes(8))),
    "no preamble": head()[132:] + body(),
    "no preamble, no meta, explicit": body(),
    "no preamble, no meta, implicit": body(vr=False),
    "no preamble, no meta, big endian": body(order=">"),
    "preamble, no meta": bytes(128) + b"DICM" + body(),
    "preamble of a TIFF": head(preamble=b"II*\0" + bytes(124)) + body(),
    "no transfer syntax": head("") + body(),
    "says explicit, is implicit": head() + body(vr=False),
    "says implicit, is explicit": head(IMPLICIT) + body(),
    "meta length lies": head().replace(b"UL\x04\0", b"UL\x04\0" + b"\xff\xff\xff\x7f")[:144] + head()[144:] + body(),
    "unknown VR, short": head() + body(extra=element(0x00101010, "ZZ", b"045Y")),
    "UN": head() + body(extra=element(0x00101010, "UN", b"045Y")),
    "odd length": head() + body(extra=element(0x00101010, "AS", b"45Y")),
    "no pixels": head() + body(pixels=False),
    "private sequence, implicit inside": head()
    + body(extra=unending(0x00191001, "UN", item(element(0x00191002, "", b"ab"), length=UNDEFINED))),
    "sequence of undefined length": head()
    + body(extra=unending(0x00186011, "SQ", item(element(0x00186012, "US", b"\1\0"), length=UNDEFINED))),
    "icon with pixels": head()
    + body(extra=element(0x00280004, "CS", b"RGB ")).replace(
        element(0x00280010, "US", b"\xe0\1"),
        element(0x00280010, "US", b"\xe0\1")
        + element(0x00880200, "SQ", item(unending(0x7FE00010, "OB", item() + item(bytes(6))))),
    ),
    "junk after the pixels": head() + body() + b"\xff" * 1000,
    "large private value": head() + body(extra=element(0x00191010, "OB", bytes(3 << 20))),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_header_is_read(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, SOUND[name])
    header = read_header(path)
    assert (header.SOPInstanceUID, str(header.PatientName), header.Rows) == ("1.2.34", "Doe^Jane", 480)
    assert header.file_meta.TransferSyntaxUID and "PixelData" not in header
    assert not any(tag.group & 1 for tag in header.keys())  # nothing private


def find_pixels(path: Path) -> PixelData | None:
    with open_regular(path) as file:
        return walk_file(file, Limits(), frozenset()).pixels


def test_place_of_the_pixels_is_found(tmp_path: Path) -> None:
    for name, offset in (("explicit", -8), ("implicit", -8), ("big endian", -8), ("encapsulated", -32)):
        content = SOUND[name]
        pixels = find_pixels(written(tmp_path, content))
        assert pixels is not None and pixels.offset == len(content) + offset, name
        assert pixels.length == (None if name == "encapsulated" else 8)
    assert find_pixels(written(tmp_path, SOUND["no pixels"])) is None
    deflated_pixels = find_pixels(written(tmp_path, SOUND["deflated"]))
    assert deflated_pixels is not None and deflated_pixels.offset == len(body()) - 8


def nested(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = unending(0x00186011, "SQ", item(content, length=UNDEFINED))
    return content


BROKEN = {
    "empty": (b"", "empty_file", "the file is empty"),
    "text": (b"patient,volume\n" * 40, "not_dicom", "not a DICOM file"),
    "zeros": (bytes(4096), "not_dicom", "not a DICOM file"),
    "starts like DICOM by chance": (b"\x08\0\x16\0\x1a\0\0\0" + b"\xff" * 500, "not_dicom", "not a DICOM file"),
    "prefix alone": (bytes(128) + b"DICM", "truncated_header", "after 132 bytes"),
    "meta alone": (head(), "truncated_header", "ends within its header"),
    "prefix and noise": (bytes(128) + b"DICM" + b"\xa5\x3c" * 300, "broken_header", "not one of DICOM"),
    "cut in a value": ((head() + body())[: len(head()) + 40], "truncated_header", "ends within its header"),
    "cut in a tag": ((head() + body())[: len(head()) + 38], "truncated_header", "ends within its header"),
    "length beyond the end": (
        head() + body(extra=element(0x00101000, "UT", b"ab", length=0x7FFFFFFF)),
        "truncated_header",
        "ends within its header",
    ),
    "bytes that are no VR": (
        head() + body(extra=element(0x00181000, "\1\2", b"abcdefgh")),
        "broken_header",
        "no valid value representation",
    ),
    "endless sequence": (
        head() + body(extra=element(0x00186011, "SQ", item(length=UNDEFINED), length=UNDEFINED)),
        "broken_header",
        "",
    ),
    "sequence without end": (
        head() + element(0x00080016, "UI", US_IMAGE) + element(0x00186011, "SQ", item(bytes(8)), length=UNDEFINED),
        "truncated_header",
        "ends within its header",
    ),
    "item longer than its sequence": (
        head() + body(extra=element(0x00186011, "SQ", item(element(0x00186012, "US", b"\1\0"), length=500))),
        "broken_header",
        "longer than the sequence",
    ),
    "sequence of no items": (
        head() + body(extra=element(0x00186011, "SQ", b"no items")),
        "broken_header",
        "something else than items",
    ),
    "deep sequences": (head() + body(extra=nested(500)), "broken_header", "nested more than 32 deep"),
    "many elements": (head() + body(extra=unending(0x00186011, "SQ", item() * 120_000)), "broken_header", "100,000"),
    "many items": (head() + body(extra=unending(0x00186011, "SQ", item() * 30_000)), "broken_header", "20,000 items"),
    "the same element twice": (head() + body(extra=element(0x00100010, "PN", b"Roe^Mary")), "broken_header", "twice"),
    "item outside of a sequence": (head() + body(extra=item(b"ab")), "broken_header", "outside of a sequence"),
    "wrong byte order": (head(BIG_ENDIAN) + body(), "broken_header", "byte order"),
    "says deflated, is not": (head(DEFLATED) + body(), "broken_header", "deflated data set is damaged"),
    "deflated and cut": (head(DEFLATED) + deflated(body(extra=os.urandom(0)))[:30], "truncated_header", "ends within"),
    "header too large": (
        head() + body(extra=b"".join(element(0x00090010 + i, "UN", bytes(1 << 20)) for i in range(20))),
        "header_too_large",
        "larger than 16 MB",
    ),
    "bomb in the header": (
        head(DEFLATED) + deflated(body(extra=element(0x00091010, "OB", bytes(100 << 20)))),
        "header_too_large",
        "larger than 16 MB",
    ),
    "bomb in the pixels": (
        head(DEFLATED) + deflated(body(pixels=False) + element(0x7FE00010, "OW", bytes(1 << 20), length=0xF0000000)),
        "inflates_too_far",
        "more than the limit of 2048 MB",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_header_is_refused_quickly_and_with_little_memory(tmp_path: Path, name: str) -> None:
    content, code, words = BROKEN[name]
    path = written(tmp_path, content)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(NotUsableError) as caught:
        read_header(path)
    seconds = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (caught.value.reason.code, words in str(caught.value)) == (code, True), str(caught.value)
    assert seconds < 2 and peak < 80 << 20  # tracemalloc slows the walk several times
    assert "Doe" not in str(caught.value) and "Error" not in str(caught.value)


def test_every_cut_of_a_header_ends_with_a_reason(tmp_path: Path) -> None:
    """Only a file that ends with a whole data element is read, as one without the others."""
    content = SOUND["sequence of undefined length"]
    found = {}
    for length in range(1, len(content) - 20 + 1):  # up to the data element of the pixels
        path = written(tmp_path, content[:length])
        try:
            found[length] = len(read_header(path))
        except NotUsableError as error:
            assert error.reason.code == ("not_dicom" if length < 132 else "truncated_header"), length
    class_, instance, name, rows = 8 + len(US_IMAGE), 8 + 6, 8 + 8, 8 + 2
    sequence = 12 + (8 + (8 + 2) + 8) + 8
    ends = itertools.accumulate((class_, instance, name, sequence, rows), initial=len(head()))
    assert found == dict(zip(list(ends)[1:], (1, 2, 3, 4, 5)))


def test_every_changed_byte_ends_with_a_header_or_a_reason(tmp_path: Path) -> None:
    content = SOUND["sequence of undefined length"]
    for position in range(128, len(content) - 8):
        for value in (0x00, 0xFF, content[position] ^ 0x01):
            path = written(tmp_path, content[:position] + bytes([value]) + content[position + 1 :])
            try:
                header = read_header(path)
            except NotUsableError:
                continue
            str(header)  # every value can be looked at


def test_value_that_its_vr_does_not_allow_is_kept_as_bytes(tmp_path: Path) -> None:
    extra = element(0x00181063, "DS", b"thirty  ") + element(
        0x00186011, "SQ", item(element(0x00186012, "US", b"\1\0\0"))
    )
    header = read_header(written(tmp_path, head() + body(extra=extra)))
    assert (header["FrameTime"].VR, header.FrameTime) == ("OB", b"thirty  ")
    assert header.SequenceOfUltrasoundRegions[0]["RegionSpatialFormat"].value == b"\1\0\0"
    str(header)


def test_pydicom_does_not_warn_of_values(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = element(0x0020000D, "UI", b"Doe^Jane") + element(0x00201208, "IS", b"Doe^Jane")
    path = written(tmp_path, head() + element(0x00080005, "CS", b"NO_SUCH_SET ") + body(extra=extra))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_header(path)
    assert caught == [] and "Doe" not in caplog.text


@pytest.mark.parametrize(
    ("charset", "stored", "name"),
    [
        (b"ISO_IR 100", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
        (b"ISO_IR 192", "Ωnassis^Ηλέκτρα".encode(), "Ωnassis^Ηλέκτρα"),
        (b"ISO_IR 13 ", "ﾔﾏﾀﾞ^ﾀﾛｳ".encode("shift_jis"), "ﾔﾏﾀﾞ^ﾀﾛｳ"),
    ],
)
def test_names_are_read_in_their_character_set(tmp_path: Path, charset: bytes, stored: bytes, name: str) -> None:
    content = element(0x00080005, "CS", charset) + element(0x00080016, "UI", US_IMAGE)
    header = read_header(written(tmp_path, head() + content + element(0x00100010, "PN", stored)))
    assert str(header.PatientName) == name


def test_large_value_is_jumped_over_not_read(tmp_path: Path) -> None:
    content = head() + body(extra=element(0x00191010, "OB", b"", length=1 << 30))
    start = len(head()) + body(extra=b"@").index(b"@") + 12
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(content[:start])
        file.seek(start + (1 << 30))
        file.write(content[start:])
    started = time.process_time()
    assert read_header(path).Rows == 480
    assert time.process_time() - started < 0.5


def test_pipes_sockets_links_and_folders_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    written(tmp_path, SOUND["explicit"])
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    for name, code, words in (
        ("pipe", "special_file", "named pipe"),
        ("socket", "special_file", "socket"),
        ("link", "symlink", "a link to a file"),
        ("broken", "symlink", "nothing that can be reached"),
        ("circle", "symlink", "nothing that can be reached"),
        ("", "unreadable", "a folder"),
        ("none", "vanished", "not any more"),
        ("x" * 300, "unreadable", "path is too long"),
    ):
        with pytest.raises(NotUsableError, match=words) as caught:
            read_header(tmp_path / name)
        assert caught.value.reason.code == code
    server.close()


def test_permission_and_disk_errors_have_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, SOUND["explicit"])

    def fail(number: int):
        def raising(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number), str(path))

        return raising

    for function, number, words in (("open", 13, "permission denied"), ("pread", 5, "input/output error")):
        with monkeypatch.context() as patch, pytest.raises(NotUsableError, match=words) as caught:
            patch.setattr(os, function, fail(number))
            read_header(path)
        assert caught.value.reason.code == "unreadable" and str(path) not in str(caught.value)


def test_limits_are_those_that_are_given(tmp_path: Path) -> None:
    path = written(tmp_path, head() + body(extra=element(0x00101000, "UT", bytes(100_000))))
    with pytest.raises(NotUsableError, match="larger than 0.05 MB"):
        read_header(path, Limits(max_header_mb=0.05))


def test_digest_notices_a_change(tmp_path: Path) -> None:
    path = written(tmp_path, b"abc")
    status = path.stat()
    assert file_digest(path, status.st_size, status.st_mtime_ns).startswith("ba7816bf")
    assert file_digest(path, offset=3).startswith("e3b0c442")  # of nothing
    path.write_bytes(b"abcd")
    with pytest.raises(NotUsableError, match="changed while the run"):
        file_digest(path, status.st_size, status.st_mtime_ns)
    with open_regular(path) as file:
        assert file.read(1, 100) == b"bcd"


def test_links_are_not_followed_even_if_one_appears_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, SOUND["explicit"])
    (tmp_path / "link").symlink_to(path)
    status = path.stat()
    monkeypatch.setattr(os, "lstat", lambda _: status)  # it was a file when it was looked at
    with pytest.raises(NotUsableError) as caught:
        read_header(tmp_path / "link")
    assert caught.value.reason.code == "symlink"


def with_element(path: Path, new: bytes, syntax: str = EXPLICIT) -> Path:
    """Write a file with one more data element."""
    path.write_bytes(head(syntax) + body(vr=syntax != IMPLICIT, extra=new))
    return path


@pytest.mark.parametrize("tag", [0x00081050, 0x00181065, 0x00281050, 0x00081155])
def test_many_values_are_refused_before_they_become_objects(tmp_path: Path, tag: int) -> None:
    path = with_element(tmp_path / "many", element(tag, "", b"1\\" * 500_000), IMPLICIT)
    tracemalloc.start()
    with pytest.raises(NotUsableError, match="more than 50,000 values"):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


@pytest.mark.parametrize(
    ("tag", "vr", "value", "expected"),
    [
        (0x00180015, "AT", b"\1\0\2\0", bytes),  # numbers for a word
        (0x00181030, "PN", b"A^B=C", str),  # a text by another VR is read by its own
        (0x00181030, "IS", b"12", str),
        (0x00181030, "SQ", item(element(0x00080100, "SH", b"AB")), bytes),
        (0x00186011, "LO", b"ABCD", bytes),  # a text for a sequence
        (0x00186011, "US", b"\1\0", bytes),
        (0x00181063, "FD", struct.pack("<d", 40.0), float),  # a number is a number
        (0x00281201, "US", b"\1\0\2\0", bytes),  # a table
    ],
)
def test_value_of_another_kind_is_given_as_bytes(
    tmp_path: Path, tag: int, vr: str, value: bytes, expected: type
) -> None:
    header = read_header(with_element(tmp_path / "kind", element(tag, vr, value)))
    assert isinstance(header[tag].value, expected)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (b"ISO_IR 192", "ISO_IR 192"),
        (b"NONSENSE", "ISO_IR 100"),
        (b"NONSENSE\\ISO 2022 IR 87 ", "ISO 2022 IR 87"),
        (b"", ""),
    ],
)
def test_character_sets_that_are_none_are_left_out(tmp_path: Path, stored: bytes, expected: str) -> None:
    path = tmp_path / "names"
    path.write_bytes(head() + element(0x00080005, "CS", stored) + body())
    header = read_header(path)
    assert (header.SpecificCharacterSet or "") == expected and isinstance(str(header.PatientName), str)
