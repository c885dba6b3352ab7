"""Write a folder of all faults of hospital files, with the expected outcome of each: `write_corpus(folder)`.

Every entry is one line of the run's ledger. Texts that identify (`SECRETS`) are in all headers, so that a leak shows.
"""

from __future__ import annotations

import gzip
import io
import os
import socket
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import UID_dictionary

from synboost_monai.dicom.elements import SEQUENCE_END as SEQUENCE_DELIMITER
from synboost_monai.dicom.elements import element, element_header, item, sequence
from synboost_monai.dicom.writing.objects import quiet
from tests.dicom.conftest import SYNTAXES, US_CLIP, compressed, dataset, jpeg, make, tissue_region, without_jfif

SECRETS = (
    "zwyxpatient",
    "qvorname",
    "xid-4711",
    "19480229",
    "1948-02-29",
    "20231224",
    "2023-12-24",
    "xklinikum",
    "xoperateur",
    "xauftrag77",
    "xssalert",
    "xkommentar",
)
"""Folded texts of the headers that nobody may find outside of DICOM objects."""
HOSTILE = "<script>xssalert('zwyxpatient')</script>"
"""What stands in text attributes that are nobody's name."""
PROCESSED, UNCALIBRATED, SKIPPED, REFUSED = "processed", "uncalibrated", "skipped", "refused"
ROOT = "1.2.826.0.1.3680043.10.5"
"""Of the UIDs."""
PIXELS = b"\xe0\x7f\x10\x00"
"""Tag of the pixel data."""
Edit = Callable[[bytes], bytes]


OUTCOMES = {
    PROCESSED: ("segmented",),
    UNCALIBRATED: (
        *("no_regions", "no_tissue_region", "several_tissue_regions", "region_outside", "region_too_small"),
        *("region_malformed", "units_not_cm", "delta_not_positive", "delta_implausible", "depth_implausible"),
        "pixels_not_square",
    ),
    SKIPPED: (
        *("not_dicom", "empty_file", "operating_system_file", "special_file", "symlink", "dicomdir", "other_modality"),
        *("not_an_image", "own_result", "duplicate", "other_view"),
    ),
}
"""Outcome -> its reasons; every other reason refuses a file."""


@dataclass(frozen=True)
class Expected:
    """Hold one entry of the corpus."""

    relative: str
    """Path below the corpus's folder."""
    reasons: tuple[str, ...]
    """Codes, one of which is right."""

    @property
    def outcome(self) -> str:
        return next((outcome for outcome, reasons in OUTCOMES.items() if self.reasons[0] in reasons), REFUSED)


def write_corpus(folder: Path) -> list[Expected]:
    """Write all of it into an empty folder; what this system or user cannot make is left out."""
    corpus = _Corpus(folder)
    with quiet():  # pydicom finds these values odd, and so they are
        for chapter in (
            _file_system,
            _names,
            _not_dicom,
            _other_objects,
            _encodings,
            _no_decoder,
            _truncated,
            _lying_structure,
            _bombs,
            _missing_and_wrong,
            _damaged_frames,
            _seldom_seen,
            _palettes,
            _regions,
            _views_and_times,
            _identity,
            _values_of_another_kind,
            _hostile_text,
        ):
            chapter(corpus)
    corpus.end()
    return corpus.expected


def beating(num_frames: int = 5, height: int = 64, width: int = 80, seed: int = 0) -> NDArray[np.uint8]:
    """Draw frames (T, H, W): speckle whose brightness beats."""
    generator = np.random.default_rng(seed)
    level = 100 + 50 * np.cos(2 * np.pi * np.arange(num_frames) / max(num_frames, 2) * 1.5)
    speckle = generator.uniform(0.7, 1.3, (num_frames, height, width))
    return (level[:, None, None] * speckle).clip(0, 255).astype(np.uint8)


class _Corpus:
    """Write entries, and record the expected outcome of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.expected: list[Expected] = []
        self.number = 0
        self._good = b""
        self._deep: list[tuple[Path, int]] = []

    def expect(self, relative: str, *reasons: str) -> Path:
        """Record an entry that is written elsewhere, and return its path; without a reason it is to be segmented."""
        if any(known.relative == relative for known in self.expected):
            raise ValueError(f"fault_corpus.py: {relative!r} occurs twice")
        self.expected.append(Expected(relative, reasons or ("segmented",)))
        path = self.folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def file(self, relative: str, data: bytes, *reasons: str) -> Path:
        path = self.expect(relative, *reasons)
        path.write_bytes(data)
        return path

    def clip(
        self,
        relative: str,
        *reasons: str,
        frames: NDArray[Any] | None = None,
        encoding: str = "explicit",
        edit: Edit | None = None,
        syntax: str | None = None,
        **options: Any,
    ) -> Path:
        """Make an ultrasound object, good except for `options` (of `tests.dicom.conftest.make`) and `edit` (of its bytes)."""
        self.number += 1
        values = {
            "SOPInstanceUID": f"{ROOT}.1.{self.number}",
            "StudyInstanceUID": f"{ROOT}.2.{self.number}",
            "SeriesInstanceUID": f"{ROOT}.3.{self.number}",
            "PatientName": "Zwyxpatient^Qvorname",
            "PatientID": "XID-4711",
            "PatientBirthDate": "19480229",
            "StudyDate": "20231224",
            "InstitutionName": "Xklinikum",
            "OperatorsName": "Xoperateur",
            "AccessionNumber": "XAUFTRAG77",
            "ImageComments": "Xkommentar",
            **options,
        }
        frames = beating(seed=self.number) if frames is None else frames
        made = make(self.folder / f"made{self.number}", frames, encoding, **values)
        data = made.read_bytes()
        made.unlink()
        if syntax is not None:
            data = swapped(data, 0x00020010, element(0x00020010, "UI", syntax), is_meta=True)
        return self.file(relative, edit(data) if edit else data, *reasons)

    def good(self) -> bytes:
        """Return the bytes of a good clip, always the same object."""
        if not self._good:
            scratch = _Corpus(self.folder)
            path = scratch.clip("scratch", SOPInstanceUID=f"{ROOT}.9.1", StudyInstanceUID=f"{ROOT}.9.2")
            self._good = path.read_bytes()
            path.unlink()
        return self._good

    def cut(self, relative: str, *reasons: str, at: Callable[[bytes], int], **options: Any) -> None:
        """Write a clip that ends early."""
        self.clip(relative, *reasons, edit=lambda data: data[: at(data)], **options)

    def of(self, chapter: str) -> tuple[Callable[..., Path], Callable[..., None]]:
        """Return `clip` and `cut` for objects `chapter`/NAME.dcm."""

        def clip(name: str, *reasons: str, **options: Any) -> Path:
            return self.clip(f"{chapter}/{name}.dcm", *reasons, **options)

        def cut(name: str, *reasons: str, **options: Any) -> None:
            self.cut(f"{chapter}/{name}.dcm", *reasons, **options)

        return clip, cut

    def end(self) -> None:
        """Do what has to be done last."""
        for path, mode in self._deep:
            os.chmod(path, mode)

    def lock(self, path: Path) -> None:
        """Take the right to read in the end."""
        self._deep.append((path, 0))


# --- bytes of data elements -------------------------------------------------------------------------------------------


def place(data: bytes, tag: int, is_meta: bool = False) -> tuple[int, int]:
    """Return the first byte of an element of the top level and the first byte after it (explicit VR little endian)."""
    start = data.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF), 132 if is_meta else data.index(b"\x08\x00"))
    vr = data[start + 4 : start + 6].decode()
    if vr in ("OB", "OW", "SQ", "UN", "UT"):
        length = struct.unpack_from("<L", data, start + 8)[0]
        return start, start + 12 + length
    return start, start + 8 + struct.unpack_from("<H", data, start + 6)[0]


def swapped(data: bytes, tag: int, new: bytes, is_meta: bool = False) -> bytes:
    """Return data with other bytes in place of one element."""
    start, end = place(data, tag, is_meta)
    return data[:start] + new + data[end:]


def swap(tag: int, new: bytes) -> Edit:
    """Return an edit that puts other bytes in place of one element."""
    return lambda data: swapped(data, tag, new)


def before_pixels(new: bytes) -> Edit:
    """Return an edit that puts bytes before the pixel data."""
    return lambda data: data[: data.rindex(PIXELS)] + new + data[data.rindex(PIXELS) :]


def pixel_length(length: int) -> Edit:
    """Return an edit of the length that the pixel data claim."""

    def edit(data: bytes) -> bytes:
        at = data.rindex(PIXELS) + 8
        return data[:at] + struct.pack("<L", length) + data[at + 4 :]

    return edit


def after(data: bytes, tag: int) -> int:
    """Return the position after an element."""
    return place(data, tag)[1]


# --- chapters ---------------------------------------------------------------------------------------------------------


def _file_system(c: _Corpus) -> None:
    good = c.good()
    os.mkfifo(c.expect("system/pipe.dcm", "special_file"))
    path = c.expect("system/socket.dcm", "special_file")
    try:
        os.mknod(path, stat.S_IFSOCK | 0o600)
    except OSError:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(path))
    for name, kind, number in (("character", stat.S_IFCHR, (1, 5)), ("block", stat.S_IFBLK, (7, 0))):
        try:
            os.mknod(c.folder / f"system/{name}.dcm", kind | 0o600, os.makedev(*number))
        except OSError:  # for root alone
            continue
        c.expect(f"system/{name}.dcm", "special_file")
    c.file("system/target.dcm", good)
    for name, target in {
        "link_to_file": "target.dcm",
        "link_to_folder": "../system",
        "link_to_parent": "..",
        "link_to_root": "/",
        "link_outside": "/etc/passwd",
        "link_to_nothing": "nowhere/at/all",
        "link_to_itself": "link_to_itself",
        "link_one": "link_two",
        "link_two": "link_one",
        "link_to_terminal": "/dev/tty",
        "link_endless": "/dev/zero",
    }.items():
        c.expect(f"system/{name}", "symlink").symlink_to(target)
    c.file("system/empty.dcm", b"", "empty_file")
    for name, seconds in {"future": 2**34 - 10, "past": -(2**31)}.items():  # of a wrong clock
        path = c.clip(f"system/{name}.dcm")
        os.utime(path, (seconds, seconds))
    (c.folder / "system/empty folder/inside").mkdir(parents=True)
    if os.geteuid() != 0:
        c.lock(c.file("system/locked.dcm", good, "unreadable"))
        locked = c.expect("system/locked folder", "unreadable")
        locked.mkdir()
        c.lock(locked)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._clip.dcm", "ehthumbs.db", "~$brief.doc"):
        c.file(f"litter/{name}", good, "operating_system_file")
    for folder in ("__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information", ".Trashes"):
        c.file(f"litter/{folder}/some.dcm", good, "operating_system_file")
    with open(c.expect("system/sparse", "not_dicom"), "wb") as file:
        file.truncate(64 << 20)


def _names(c: _Corpus) -> None:
    """Write good clips with troublesome names."""
    names = [
        "no_extension",
        ".hidden.dcm",
        ".hidden_folder/clip",
        "picture.jpg",
        "IM000001.DCM",
        "l" * 251 + ".dcm",
        "-rf",
        "--help",
        " leading and trailing ",
        "two\nlines.dcm",
        "tab\tand\rreturn.dcm",
        "bell\x07and\x1b[31mred\x1b[0m.dcm",
        "=cmd|' /C calc'!A0.dcm",
        "+SUM(A1).dcm",
        "@import.dcm",
        '=HYPERLINK("http:/x")',
        'quote",comma;.dcm',
        "<img src=x onerror=alert(1)>.dcm",
        "%s%n%x{0}{path}.dcm",
        "$(touch pwned)`id`.dcm",
        "..\\..\\windows.dcm",
        "...",
        "CON",
        "Größe µ 心臓 ❤️.dcm",
        "gro\u0308sse.dcm",
        "\u202egnp.exe.dcm",
        "\u200bzero\ufeffwidth.dcm",
        os.fsdecode("gr\xf6\xdfe_latin1.dcm".encode("latin-1")),
        os.fsdecode(b"\xff\xfe\x80.dcm"),
        "zwyxpatient_qvorname_19480229.dcm",
        "Zwyxpatient, Qvorname/XID-4711/2023-12-24/clip.dcm",
        "/".join(["deep"] * 60) + "/clip.dcm",
    ]
    for name in names:
        c.clip(f"names/{name}")
    depth, relative = c.folder, ""
    if sys.platform == "linux":  # deeper than any path may be long
        (depth / "too_deep").mkdir()
        handle = os.open(depth / "too_deep", os.O_RDONLY)
        parts = ["too_deep"]
        while len(os.fspath(c.folder)) + 1 + len("/".join(parts)) < 4300:
            os.mkdir("d" * 200, dir_fd=handle)
            below = os.open("d" * 200, os.O_RDONLY, dir_fd=handle)
            os.close(handle)
            handle = below
            parts.append("d" * 200)
        os.close(handle)
        shown = list(parts)
        while len(os.fspath(c.folder)) + 1 + len("/".join(shown[:-1])) > 4095:
            shown.pop()
        relative = "/".join(shown)
        c.expected.append(Expected(relative, ("unreadable",)))


def _not_dicom(c: _Corpus) -> None:
    good = c.good()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("clip.dcm", good)
    chance = np.random.default_rng(1)
    files = {
        "letter.txt": b"Zwyxpatient, Qvorname: xkommentar\n" * 20,
        "page.html": b"<html><script>xssalert()</script></html>",
        "data.json": b'{"patient": "zwyxpatient"}',
        "table.csv": b"=cmd|'/C calc'!A0,zwyxpatient\n",
        "picture.png": b"\x89PNG\r\n\x1a\n" + bytes(64),
        "picture.jpg": jpeg(beating(1)[0]),
        "clip.zip": stream.getvalue(),
        "clip.dcm.gz": gzip.compress(good),
        "image.nii": struct.pack("<i", 348) + bytes(344) + b"n+1\0" + bytes(100),
        "zeros.dcm": bytes(1 << 20),
        "ones.dcm": b"\xff" * 5000,
        "noise.dcm": chance.bytes(20_000),
        "one_byte.dcm": b"\x08",
        "preamble.dcm": bytes(128),
        "almost.dcm": bytes(128) + b"DIC",
        "lower_case.dcm": bytes(128) + b"dicm" + good[132:],
        "shifted.dcm": b"\0" + good,
        "group_8_by_chance.bin": b"\x08\x00\x10\x00" + chance.bytes(600),
        "group_2_by_chance.bin": b"\x02\x00\x10\x00UI\xff\xff" + b"x" * 100,
    }
    for name, data in files.items():
        c.file(f"not_dicom/{name}", data, "not_dicom")
    bare = bytes(128) + b"DICM"
    c.file("not_dicom/prefix_alone.dcm", bare, "truncated_header")
    c.file("not_dicom/text_with_prefix.txt", b"A letter. ".ljust(128) + b"DICM is a word " * 30, "broken_header")
    c.file("not_dicom/prefix_and_zeros.dcm", bare + bytes(4000), "broken_header")
    c.file("not_dicom/prefix_and_noise.dcm", bare + chance.bytes(4000), "broken_header", "truncated_header")


def _other_objects(c: _Corpus) -> None:
    """Write objects that are not ultrasound images."""
    clip, _ = c.of("others")
    classes = {
        "ct": ("1.2.840.10008.5.1.4.1.1.2", "CT", "other_modality"),
        "mr": ("1.2.840.10008.5.1.4.1.1.4", "MR", "other_modality"),
        "xa": ("1.2.840.10008.5.1.4.1.1.12.1", "XA", "other_modality"),
        "sr": ("1.2.840.10008.5.1.4.1.1.88.33", "SR", "other_modality"),
        "pdf": ("1.2.840.10008.5.1.4.1.1.104.1", "DOC", "other_modality"),
        "seg": ("1.2.840.10008.5.1.4.1.1.66.4", "SEG", "other_modality"),
        "pr": ("1.2.840.10008.5.1.4.1.1.11.1", "PR", "other_modality"),
        "ko": ("1.2.840.10008.5.1.4.1.1.88.59", "KO", "other_modality"),
        "ecg": ("1.2.840.10008.5.1.4.1.1.9.1.1", "ECG", "other_modality"),
        "ivus": (US_CLIP, "IVUS", "other_modality"),
        "secondary_capture_us": ("1.2.840.10008.5.1.4.1.1.7", "US", "other_modality"),
        "secondary_capture_ot": ("1.2.840.10008.5.1.4.1.1.7.4", "OT", "other_modality"),
        "volume_us": ("1.2.840.10008.5.1.4.1.1.6.2", "US", "not_an_image"),
        "private": ("1.3.46.670589.2.4.1.1", "US", "not_an_image", "other_modality"),
        "hostile_modality": (US_CLIP, "ZWYXPATIENT", "other_modality"),
        "hostile_class": ("1.2.3.zwyxpatient", "US", "not_an_image", "other_modality"),
    }
    for name, (sop_class, modality, *reasons) in classes.items():
        clip(name, *reasons, SOPClassUID=sop_class, Modality=modality)
    about_overlay = {"Manufacturer": "SynBoost-MONAI", "ImageType": ["DERIVED", "SECONDARY"]}
    clip("own_overlay", "own_result", **about_overlay)
    directory = dataset(MediaStorageSOPClassUID="1.2.840.10008.1.3.10", TransferSyntaxUID=SYNTAXES["explicit"])
    stream = io.BytesIO()
    from pydicom import dcmwrite
    from pydicom.dataset import FileMetaDataset

    root = dataset(FileSetID="ZWYXPATIENT", DirectoryRecordSequence=[dataset(PatientName="Zwyxpatient^Qvorname")])
    root.file_meta = FileMetaDataset(directory)
    root.file_meta.MediaStorageSOPInstanceUID = f"{ROOT}.8"
    dcmwrite(stream, root, enforce_file_format=True)
    c.file("others/DICOMDIR", stream.getvalue(), "dicomdir")
    c.file("others/dicomdir_renamed.dcm", stream.getvalue(), "dicomdir")
    clip("us_without_pixels", "no_pixels", edit=lambda d: d[: d.rindex(PIXELS)])
    clip("us_without_class", "missing_identifier", edit=swap(0x00080016, b""))
    clip("us_without_modality", edit=swap(0x00080060, b""))
    for sop_class in ("1.2.840.10008.5.1.4.1.1.6", "1.2.840.10008.5.1.4.1.1.3"):
        clip(f"retired_{sop_class[-1]}", SOPClassUID=sop_class)


def _encodings(c: _Corpus) -> None:
    """Write good objects of every kind, which must be processed."""
    clip, _ = c.of("good")
    grey = beating(6)
    colour = np.repeat(grey[..., None], 3, axis=-1)
    for encoding in (
        *("implicit", "explicit", "deflated", "big_endian", "encapsulated"),
        "rle",
        "jpeg",
        "jpeg_ls",
        "jpeg_2000",
    ):
        clip(f"{encoding}_grey", frames=grey, encoding=encoding)
        clip(f"{encoding}_still", frames=grey[:1], encoding=encoding)
        photometric = {"jpeg": "YBR_FULL_422", "jpeg_2000": "YBR_RCT"}.get(encoding)
        clip(f"{encoding}_colour", frames=colour, encoding=encoding, photometric=photometric)
    clip("jpeg_ls_near", frames=grey, encoding="jpeg_ls", syntax="1.2.840.10008.1.2.4.81")
    clip("jpeg_2000_lossy", frames=grey, encoding="jpeg_2000", syntax="1.2.840.10008.1.2.4.91")
    clip("jpeg_extended", frames=grey, encoding="jpeg", syntax="1.2.840.10008.1.2.4.51")
    deflated = [zlib.compress(frame.tobytes(), wbits=-15) for frame in grey]
    clip("deflated_frames", frames=grey, encoding="encapsulated", fragments=deflated, syntax="1.2.840.10008.1.2.8.1")
    for photometric in ("YBR_FULL", "YBR_PARTIAL_422", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"):
        subsampled = np.ascontiguousarray(np.repeat(grey, 2, axis=2)).tobytes()  # two bytes a pixel: Y Y Cb Cr
        pixel_data = subsampled if photometric.endswith("422") else None
        clip(f"native_{photometric}", frames=colour, photometric=photometric, pixel_data=pixel_data)
    clip("monochrome1", frames=grey, photometric="MONOCHROME1")
    clip("planar", frames=colour, planar=1)
    clip("rgb_jpeg_without_jfif", frames=colour, encoding="jpeg", photometric="RGB",
         fragments=[without_jfif(jpeg(frame)) for frame in colour])  # fmt: skip
    clip("rgb_jpeg_adobe", frames=colour, encoding="jpeg", photometric="RGB",
         fragments=[jpeg(frame, "RGB") for frame in colour])  # fmt: skip
    deep = grey.astype(np.uint16)
    for bits in (10, 12, 16):
        values = (deep << (bits - 8)).astype(np.uint16)
        clip(f"bits_{bits}", frames=values, bits_stored=bits)
        clip(f"bits_{bits}_jpeg_2000", frames=values, encoding="jpeg_2000", bits_stored=bits)
        clip(f"bits_{bits}_big_endian", frames=values, encoding="big_endian", bits_stored=bits)
    clip("signed", frames=deep.astype(np.int16) - 128, bits_stored=16)
    clip("odd_size", frames=beating(3, 49, 51))
    clip("one_long_clip", frames=np.tile(beating(20, 32, 32), (100, 1, 1)))
    clip("no_preamble", edit=lambda d: d[132:])
    clip("no_meta", edit=lambda d: d[d.index(b"\x08\x00\x16\x00") :])
    clip("no_meta_implicit", encoding="implicit", edit=lambda d: d[d.index(b"\x08\x00\x16\x00") :])
    clip("trailing_garbage", edit=lambda d: d + b"zwyxpatient" * 100)
    clip("padded_with_zeros", encoding="jpeg", edit=lambda d: d + bytes(1000))


def _no_decoder(c: _Corpus) -> None:
    clip, _ = c.of("syntaxes")
    frames = beating(3)
    videos = [
        uid
        for uid, entry in UID_dictionary.items()
        if entry[1] == "Transfer Syntax" and any(word in entry[0] for word in ("MPEG", "HEVC"))
    ]
    for uid in videos:
        clip(
            f"video_{uid.removeprefix('1.2.840.10008.1.2.4.')}",
            "broken_frame",  # what it holds is no video
            frames=frames,
            encoding="jpeg",
            syntax=uid,
        )
    others = {
        "unknown": "1.2.3.4.5",
        "private": "1.2.840.113619.5.2",
        "jpip": "1.2.840.10008.1.2.4.94",
        "jpeg_xl": "1.2.840.10008.1.2.4.110",
        "smpte": "1.2.840.10008.1.2.7.1",
        "papyrus": "1.2.840.10008.1.20",
        "no_uid": "zwyxpatient",
        "multi_component": "1.2.840.10008.1.2.4.92",
        "retired_jpeg": "1.2.840.10008.1.2.4.53",
    }
    for name, uid in others.items():
        clip(name, "unsupported_syntax", frames=frames, encoding="jpeg", syntax=uid)
    for name, uid in {"lossless": "1.2.840.10008.1.2.4.70", "high_throughput": "1.2.840.10008.1.2.4.201"}.items():
        reasons = ("missing_decoder", "broken_frame")
        clip(f"{name}_is_baseline", *reasons, frames=frames, encoding="jpeg", syntax=uid)
    clip("jpeg_said_uncompressed", "broken_header", frames=frames, encoding="jpeg", syntax=SYNTAXES["explicit"])
    clip("uncompressed_said_jpeg", "broken_header", frames=frames, syntax=SYNTAXES["jpeg"])
    clip("uncompressed_said_deflated", "broken_header", "truncated_header", frames=frames, syntax=SYNTAXES["deflated"])
    clip("little_said_big", "broken_header", frames=frames, syntax=SYNTAXES["big_endian"])
    clip("big_said_little", "broken_header", frames=frames, encoding="big_endian", syntax=SYNTAXES["explicit"])
    clip("explicit_said_implicit", frames=frames, syntax=SYNTAXES["implicit"])
    clip("implicit_said_explicit", frames=frames, encoding="implicit", syntax=SYNTAXES["explicit"])
    clip("jpeg_said_rle", "broken_frame", "frame_mismatch", frames=frames, encoding="jpeg", syntax=SYNTAXES["rle"])
    clip("rle_said_jpeg", "broken_frame", frames=frames, encoding="rle", syntax=SYNTAXES["jpeg"])
    clip("jpeg_said_2000", "broken_frame", frames=frames, encoding="jpeg", syntax=SYNTAXES["jpeg_2000"])
    clip("no_syntax", frames=frames, edit=lambda d: swapped(d, 0x00020010, b"", is_meta=True))


def _truncated(c: _Corpus) -> None:
    _, cut = c.of("truncated")
    for at in (20, 127, 131):
        cut(f"at_{at}", "not_dicom", at=lambda d, n=at: n)
    for at in (132, 135, 140, 150, 200):
        cut(f"at_{at}", "truncated_header", "broken_header", at=lambda d, n=at: n)
    header = ("truncated_header",)
    cut("after_meta", *header, "missing_identifier", at=lambda d: d.index(b"\x08\x00\x16\x00"))
    cut("in_class", *header, at=lambda d: d.index(b"\x08\x00\x16\x00") + 12)
    cut("in_name", *header, at=lambda d: place(d, 0x00100010)[0] + 12)
    cut("in_tag", *header, at=lambda d: place(d, 0x00280010)[0] + 3)
    cut("in_regions", *header, at=lambda d: d.index(b"\x18\x00\x11\x60") + 60)
    cut("in_rows", *header, at=lambda d: place(d, 0x00280010)[1] - 1)
    cut("before_pixels", "no_pixels", at=lambda d: d.rindex(PIXELS))
    cut("in_pixel_tag", *header, at=lambda d: d.rindex(PIXELS) + 2)
    cut("in_pixel_length", *header, at=lambda d: d.rindex(PIXELS) + 10)
    cut("no_pixel_bytes", "truncated_pixels", "truncated_header", at=lambda d: d.rindex(PIXELS) + 12)
    cut("one_pixel_byte", "truncated_pixels", at=lambda d: d.rindex(PIXELS) + 13)
    cut("half_of_pixels", "truncated_pixels", at=lambda d: (len(d) + d.rindex(PIXELS)) // 2)
    cut("last_pixel", "truncated_pixels", at=lambda d: len(d) - 1)
    for encoding in ("jpeg", "rle", "jpeg_2000", "jpeg_ls"):
        for name, share in (("tenth", 0.1), ("third", 1 / 3), ("most", 0.9)):
            cut(f"{encoding}_{name}", "truncated_pixels", encoding=encoding,
                at=lambda d, s=share: d.rindex(PIXELS) + int(s * (len(d) - d.rindex(PIXELS))))  # fmt: skip
    cut("in_offset_table", "truncated_pixels", encoding="jpeg", at=lambda d: d.rindex(PIXELS) + 24)
    cut("end_missing", encoding="jpeg", at=lambda d: len(d) - 8)
    cut("end_cut", encoding="jpeg", at=lambda d: len(d) - 3)
    for share in (0.2, 0.5, 0.9):
        cut(f"deflated_{share}", *("truncated_header", "broken_header", "truncated_pixels", "broken_frame"),
            encoding="deflated", at=lambda d, s=share: int(s * len(d)))  # fmt: skip


def _lying_structure(c: _Corpus) -> None:
    clip, _ = c.of("structure")
    name = 0x00100010
    clip("length_too_long", "truncated_header", edit=swap(name, struct.pack("<HH2sHL", 16, 16, b"UT", 0, 1 << 30)))
    clip("length_takes_the_next", "truncated_header", "broken_header",
         edit=lambda d: d[: place(d, name)[0] + 6] + b"\x21\x00" + d[place(d, name)[0] + 8 :])  # fmt: skip
    clip("length_too_short", "truncated_header", "broken_header",
         edit=lambda d: d[: place(d, name)[0] + 6] + b"\x02\x00" + d[place(d, name)[0] + 8 :])  # fmt: skip
    clip("undefined_length_of_text", "broken_header",
         edit=swap(name, element_header(name, "UT", 0xFFFFFFFF) + b"Zwyxpatient "))  # fmt: skip
    clip("no_valid_vr", "broken_header", "truncated_header",
         edit=swap(name, struct.pack("<HH2sH", 16, 16, b"\x01\x02", 4) + b"abcd"))  # fmt: skip
    clip("new_vr", edit=swap(name, struct.pack("<HH2sH", 16, 16, b"ZZ", 4) + b"Zwyx"))
    endless = element_header(0x00081140, "SQ", 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    clip("sequence_without_end", "truncated_header", "broken_header", edit=before_pixels(endless))
    clip("sequence_too_long", "truncated_header", edit=before_pixels(element_header(0x00282110, "SQ", 1 << 20)))
    clip("item_too_long", "broken_header",
         edit=before_pixels(element(0x00283110, "SQ", struct.pack("<HHL", 0xFFFE, 0xE000, 5000) + bytes(20))))  # fmt: skip
    clip("no_items", "broken_header", edit=before_pixels(element(0x00283110, "SQ", b"zwyxpatient....")))
    nested = b""
    for _ in range(200):
        nested = sequence(0x00283110, item(nested))
    clip("deep", "broken_header", edit=before_pixels(nested))
    clip("deep_undefined", "broken_header", "truncated_header", edit=before_pixels(endless * 5000))
    empty_items = element_header(0x00283110, "SQ", 0xFFFFFFFF) + item() * 200_000 + SEQUENCE_DELIMITER
    clip("many_items", "broken_header", edit=before_pixels(empty_items))
    many = b"".join(element(0x00290000 + n, "UN", b"") for n in range(1, 0x10000, 2)) * 4
    clip("twice_the_same", "broken_header", edit=before_pixels(many))
    clip("item_outside", "broken_header", edit=before_pixels(item(b"12345678")))
    clip("odd_length", edit=swap(name, struct.pack("<HH2sH", 16, 16, b"PN", 5) + b"Zwyxp"))
    clip(
        "private", edit=before_pixels(element(0x00290010, "LO", "ZWYXPATIENT") + element(0x00291001, "UN", bytes(5000)))
    )
    clip("private_large", edit=before_pixels(element(0x00291001, "OB", bytes(3 << 20))))
    clip("header_too_large", "header_too_large",
         edit=before_pixels(b"".join(element(0x00291000 + n, "OB", bytes(1 << 20)) for n in range(20))))  # fmt: skip
    clip("wrong_group_length", edit=lambda d: swapped(d, 0x00020000, element(0x00020000, "UL", 7), True))
    clip("no_group_length", edit=lambda d: swapped(d, 0x00020000, b"", True))
    clip("disordered", edit=before_pixels(element(0x00081030, "LO", HOSTILE)))
    clip("implicit_sequence_in_explicit",
         edit=before_pixels(element(0x00283110, "SQ", item(struct.pack("<HHL", 0x0028, 0x1050, 4) + b"10  "))))  # fmt: skip
    clip("pixels_longer_than_file", "truncated_pixels", edit=lambda d: pixel_length(1 << 30)(d)[:-4000])
    clip("pixels_shorter_than_image", "truncated_pixels", edit=pixel_length(100))
    clip("pixels_length_0", "no_pixels", edit=pixel_length(0))
    clip("pixels_undefined", "broken_header", edit=pixel_length(0xFFFFFFFF))
    clip("pixels_odd", edit=lambda d: pixel_length(5 * 64 * 80 + 1)(d) + b"\0")
    clip("jpeg_of_defined_length", "broken_header", encoding="jpeg", edit=pixel_length(3000))
    clip("pixels_twice", edit=lambda d: d + d[d.rindex(PIXELS) :])
    clip("two_files_in_one", edit=lambda d: d + d)
    clip(
        "icon",
        edit=before_pixels(
            sequence(
                0x00880200,
                item(element(0x00280010, "US", 4), element(0x00280011, "US", 4), element(0x7FE00010, "OW", bytes(16))),
            )
        ),
    )


def _bombs(c: _Corpus) -> None:
    """Write small files that ask for much memory or time."""
    clip, _ = c.of("bombs")

    def deflated(data: bytes, tail: bytes) -> bytes:
        start = data.index(b"\x08\x00\x16\x00")
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return swapped(data[:start], 0x00020010, element(0x00020010, "UI", SYNTAXES["deflated"]), True) + (
            packer.compress(data[start : data.rindex(PIXELS)]) + packer.compress(tail) + packer.flush()
        )

    zeros = bytes(1 << 20)
    header = b"".join(element(0x00291000 + n, "OB", zeros) for n in range(60))
    clip("deflated_header", "header_too_large", "inflates_too_far", edit=lambda d: deflated(d, header))
    text = element_header(0x00291001, "UT", 0xFFFFFFFE)
    clip("deflated_text", "header_too_large", "truncated_header", edit=lambda d: deflated(d, text + zeros * 40))
    pixels = element_header(0x7FE00010, "OW", 3 << 30) + zeros * 60
    clip("deflated_pixels", "inflates_too_far", "too_large", edit=lambda d: deflated(d, pixels), Rows=8000,
         Columns=8000, NumberOfFrames=50)  # fmt: skip
    for name, values, *reasons in (
        ("huge", {"Rows": 60000, "Columns": 60000, "NumberOfFrames": 500}, "too_large"),
        ("wide", {"Columns": 65535}, "too_large"),
        ("many", {"NumberOfFrames": 2_000_000_000}, "too_many_frames"),
        ("many_small", {"NumberOfFrames": 3_600}, "truncated_pixels"),
        ("large", {"Rows": 8192, "Columns": 8192, "NumberOfFrames": 59}, "truncated_pixels"),
    ):
        for encoding in ("explicit", "jpeg", "rle", "deflated"):
            others = ("inflates_too_far",) if encoding == "deflated" else ()
            clip(f"{name}_{encoding}", *reasons, *others, encoding=encoding, **values)
    tiny = compressed(beating(1, 32, 32)[0], "rle", 8)
    clip("hours_of_network", "too_many_frames", frames=np.zeros((4000, 32, 32), np.uint8), encoding="rle",
         fragments=[tiny] * 4000)  # fmt: skip
    ids = sequence(0x00101002, *(item(element(0x00100020, "LO", f"other id {number}")) for number in range(3000)))
    clip("many_identities", "broken_header", edit=before_pixels(ids))
    too_many = element(0x00181030, "UC", b"\\" * 70_000)
    clip("too_many_values", "broken_header", edit=before_pixels(too_many))
    many = {
        "PN": 0x00081050,
        "LO": 0x00181030,
        "DS": 0x00181065,
        "IS": 0x00181242,
        "UI": 0x00200052,
        "TM": 0x00080033,
        "DA": 0x00080022,
    }
    for vr, tag in many.items():  # values that become objects
        value = {"DS": b"1\\", "IS": b"1\\"}.get(vr, b"\\") * 32_000
        raw = struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), min(len(value), 65534)) + value[:65534]
        clip(f"many_values_{vr}", edit=before_pixels(raw))
    still = np.zeros((1, 2048, 2048), np.uint8)
    still[0, ::7, ::5] = 200
    clip("inflates_within_limits", frames=still, encoding="jpeg_ls",
         regions=[tissue_region(0, 0, 2047, 2047, (0.01, 0.01))])  # fmt: skip
    bomb = zlib.compress(bytes(64 << 20), wbits=-15)
    clip(
        "deflated_frame",
        frames=beating(3),
        encoding="encapsulated",
        fragments=[zlib.compress(beating(1)[0].tobytes() + bytes(64 << 20), wbits=-15)] * 3,
        syntax="1.2.840.10008.1.2.8.1",
    )
    clip("deflated_zeros", "blank", frames=beating(3), encoding="encapsulated", fragments=[bomb] * 3,
         syntax="1.2.840.10008.1.2.8.1")  # fmt: skip


def _missing_and_wrong(c: _Corpus) -> None:
    """Write files with missing or wrong attributes of the pixels."""
    clip, _ = c.of("attributes")
    for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation"):
        clip(f"no_{keyword}", "missing_attribute", **{keyword: None})
    clip("no_NumberOfFrames", NumberOfFrames=None)
    for keyword in ("BitsStored", "HighBit", "PixelRepresentation"):
        clip(f"no_{keyword}", **{keyword: None})
    bad = ("bad_attribute",)
    for name, values in {
        "rows_0": {"Rows": 0},
        "columns_0": {"Columns": 0},
        "frames_0": {"NumberOfFrames": 0},
        "frames_negative": {"NumberOfFrames": -5},
        "samples_0": {"SamplesPerPixel": 0},
        "samples_2": {"SamplesPerPixel": 2},
        "samples_4": {"SamplesPerPixel": 4},
        "grey_of_3_samples": {"SamplesPerPixel": 3},
        "rgb_of_1_sample": {"PhotometricInterpretation": "RGB"},
        "bits_0": {"BitsAllocated": 0},
        "bits_1": {"BitsAllocated": 1},
        "bits_24": {"BitsAllocated": 24},
        "bits_32": {"BitsAllocated": 32},
        "stored_more": {"BitsStored": 12},
        "stored_0": {"BitsStored": 0},
        "high_bit_99": {"HighBit": 99},
        "representation_7": {"PixelRepresentation": 7},
    }.items():
        clip(name, *bad, "unsupported_photometric", **values)
    for photometric in ("HSV", "CMYK", "ARGB", HOSTILE, "MONOCHROME3"):
        name = "".join(filter(str.isalnum, photometric))
        clip(f"photometric_{name}", "unsupported_photometric", photometric=photometric)
    clip("photometric_lower", photometric="monochrome2 ")
    wrong = ("bad_attribute", "missing_attribute")
    for name, new in {
        "rows_negative": struct.pack("<HH2sHh", 0x28, 0x10, b"SS", 2, -64),
        "rows_text": element(0x00280010, "DS", "sixty four"),
        "rows_name": element(0x00280010, "LO", HOSTILE),
        "rows_two_values": element(0x00280010, "US", [64, 64]),
        "rows_empty": element(0x00280010, "US", b""),
        "rows_one_byte": element(0x00280010, "US", b"\x40"),
        "rows_sequence": sequence(0x00280010, item(element(0x00280010, "US", 64))),
        "rows_float": element(0x00280010, "FD", struct.pack("<d", float("nan"))),
        "rows_infinite": element(0x00280010, "FD", struct.pack("<d", float("inf"))),
    }.items():
        clip(name, *wrong, edit=swap(0x00280010, new))
    clip("rows_as_text", edit=swap(0x00280010, element(0x00280010, "IS", "64")))
    for name, value in {
        "text": "five",
        "float": "5.5",
        "nan": "NaN",
        "infinite": "inf",
        "exponent": "1e400",
        "two": "5\\5",
        "hostile": "zwyxpatient",
        "long": "9" * 60,
    }.items():
        clip(f"frames_{name}", *wrong, "too_many_frames", edit=swap(0x00280008, element(0x00280008, "IS", value)))
    clip("more_frames_than_pixels", "truncated_pixels", NumberOfFrames=60)
    clip("fewer_frames_than_pixels", NumberOfFrames=3)
    clip("too_small", "too_small", frames=beating(3, 8, 8))
    clip("one_pixel", "too_small", frames=np.full((1, 1, 1), 7, np.uint8), pixel_data=b"\7\0")
    clip("line", "too_small", frames=beating(1, 1, 4000))
    floats = beating(3).astype("<f4")
    for name, tag, vr in (("float", 0x7FE00008, "OF"), ("double", 0x7FE00009, "OD")):
        clip(f"{name}_pixels", *bad, "missing_attribute", frames=beating(3), BitsAllocated=32,
             edit=lambda d, t=tag, v=vr: d[: d.rindex(PIXELS)] + element(t, v, floats.tobytes()))  # fmt: skip
    clip("bits_32_pixels", *bad, frames=beating(3), BitsAllocated=32, BitsStored=32, HighBit=31,
         pixel_data=beating(3).astype("<u4").tobytes())  # fmt: skip
    clip("odd_columns_422", *bad, "truncated_pixels", frames=np.repeat(beating(3, 48, 51)[..., None], 3, -1),
         photometric="YBR_FULL_422", pixel_data=bytes(2 * 48 * 52 * 3))  # fmt: skip
    clip("420_native", "unsupported_photometric", frames=np.repeat(beating(3)[..., None], 3, -1),
         photometric="YBR_PARTIAL_420")  # fmt: skip
    clip("blank", "blank", frames=np.zeros((4, 64, 80), np.uint8))
    clip("white", "blank", frames=np.full((4, 64, 80), 255, np.uint8))
    clip("blank_still_jpeg", "blank", frames=np.full((1, 64, 80), 128, np.uint8), encoding="jpeg")
    flat = beating(6)
    flat[:3] = 0
    clip("blank_at_first", frames=flat)
    clip("frozen", frames=np.repeat(beating(1), 8, axis=0))
    clip("window_nonsense", frames=beating(3).astype(np.uint16), bits_stored=12, WindowCenter=0, WindowWidth=-5)
    clip("slope_0", frames=beating(3).astype(np.uint16), bits_stored=12, WindowCenter=100, WindowWidth=200,
         RescaleSlope=0, RescaleIntercept=0)  # fmt: skip


def _damaged_frames(c: _Corpus) -> None:
    clip, _ = c.of("frames")
    frames = beating(5, seed=3)
    good = [jpeg(frame) for frame in frames]

    def jpegs(name: str, *reasons: str, fragments: Sequence[bytes] = good, **options: Any) -> None:
        clip(name, *reasons, frames=frames, encoding="jpeg", fragments=list(fragments), **options)

    damaged = ("damaged_frame", "broken_frame")
    jpegs("cut_to_a_third", *damaged, fragments=[*good[:3], good[3][: len(good[3]) // 3], good[4]])
    jpegs("first_cut", *damaged, fragments=[good[0][: len(good[0]) // 2], *good[1:]])
    jpegs("all_cut", *damaged, fragments=[one[: len(one) // 3] for one in good])
    jpegs("header_alone", *damaged, fragments=[*good[:4], good[4][:200]])
    jpegs("zeros", *damaged, fragments=[*good[:4], bytes(500)])
    jpegs("text", *damaged, fragments=[*good[:4], b"zwyxpatient" * 20])
    jpegs("noise", *damaged, fragments=[*good[:4], good[4][:300] + np.random.default_rng(2).bytes(400)])
    jpegs("png", *damaged, fragments=[*good[:4], b"\x89PNG\r\n\x1a\n" + bytes(600)])
    jpegs("empty_fragment", *damaged, "truncated_pixels", pixel_data=_encapsulated([*good[:4], b""], []))
    jpegs("other_size", "frame_mismatch", fragments=[*good[:4], jpeg(beating(1, 40, 80)[0])])
    jpegs("other_colours", "frame_mismatch", fragments=[*good[:4], jpeg(np.repeat(frames[0][..., None], 3, -1))])
    huge = good[4].replace(struct.pack(">HH", 64, 80), struct.pack(">HH", 65000, 65000))
    jpegs("claims_to_be_huge", "frame_mismatch", fragments=[*good[:4], huge])
    jpegs("missing_fragment", "truncated_pixels", fragments=good[:4])
    jpegs("missing_all", "truncated_pixels", pixel_data=struct.pack("<HHL", 0xFFFE, 0xE000, 0) + SEQUENCE_DELIMITER)
    jpegs("too_many_fragments", "bad_attribute", fragments=[*good, good[0], good[1]])
    jpegs("no_offset_table", has_table=False)
    halves = [part for one in good for part in (one[: len(one) // 2 // 2 * 2], one[len(one) // 2 // 2 * 2 :])]
    jpegs("two_fragments_a_frame", pixel_data=_encapsulated(halves, [0] * 0))
    offsets = np.cumsum(
        [0, *(len(a) + len(a) % 2 + len(b) + len(b) % 2 + 16 for a, b in zip(halves[::2], halves[1::2]))]
    )[:5]
    jpegs("offset_table_of_fragments", pixel_data=_encapsulated(halves, offsets))
    jpegs("offset_table_lies", pixel_data=_encapsulated(good, [0, 1 << 30, 5, 77, 0xFFFFFFF0]))
    jpegs("offset_table_lies_of_parts", pixel_data=_encapsulated(halves, [9, 8, 7, 6, 5]))
    jpegs("offset_table_of_zeros", pixel_data=_encapsulated(good, [0] * 5))
    jpegs("offset_table_too_long", pixel_data=_encapsulated(good, range(0, 40000, 4)))
    whole = _encapsulated(good, [])
    jpegs("fragment_length_lies", "broken_frame", pixel_data=whole[:12] + struct.pack("<L", 500) + whole[16:])
    jpegs("fragment_length_huge", "truncated_pixels", pixel_data=whole[:12] + struct.pack("<L", 1 << 31) + whole[16:])
    jpegs("fragment_undefined", "broken_frame", "truncated_pixels", pixel_data=whole[:12] + b"\xff" * 4 + whole[16:])
    jpegs("no_items", "broken_frame", "truncated_pixels",
          edit=lambda d: d[: d.rindex(PIXELS) + 12] + b"zwyxpatient." * 100)  # fmt: skip
    jpegs("end_missing", edit=lambda d: d[:-8])
    jpegs("end_is_padding", edit=lambda d: d[:-8] + bytes(8))
    jpegs("padded_frames", fragments=[one + bytes(64) for one in good])
    packed = [compressed(frame, "rle", 8) for frame in frames]
    for name, last in {
        "rle_cut": packed[4][:200],
        "rle_segments_0": bytes(64) + packed[4][64:],
        "rle_segments_99": struct.pack("<L", 99) + packed[4][4:],
        "rle_offset_outside": packed[4][:4] + struct.pack("<L", 1 << 30) + packed[4][8:],
        "rle_header_alone": packed[4][:64],
        "rle_tiny": b"\1\0",
    }.items():
        reasons = ("broken_frame", "frame_mismatch", "damaged_frame")
        clip(name, *reasons, frames=frames, encoding="rle", fragments=[*packed[:4], last])
    for encoding in ("jpeg_2000", "jpeg_ls"):
        coded = [compressed(frame, encoding, 8) for frame in frames]
        for name, last in {
            "cut": coded[4][: len(coded[4]) // 3],
            "header": coded[4][:80],
            "noise": coded[4][:120] + np.random.default_rng(3).bytes(len(coded[4]) - 120),
            "other_size": compressed(beating(1, 40, 80)[0], encoding, 8),
        }.items():
            clip(f"{encoding}_{name}", *("broken_frame", "damaged_frame", "frame_mismatch"), frames=frames,
                 encoding=encoding, fragments=[*coded[:4], last])  # fmt: skip


def _seldom_seen(c: _Corpus) -> None:
    """Write what the standard allows and few scanners write, and damage that decoders do not notice."""
    clip, _ = c.of("frames")
    frames = beating(5, seed=4)
    coloured = np.repeat(frames[..., None], 3, axis=-1)

    def coded(name: str, form: str, *reasons: str, cut: int = 0, **options: Any) -> None:
        """Make a clip whose frames Pillow compresses; the last one lacks its last `cut` tiles."""
        fragments = []
        for frame in coloured if form == "JPEG" else frames:
            stream = io.BytesIO()
            Image.fromarray(frame).save(stream, form, **options)
            fragments.append(stream.getvalue())
        if cut:
            last = fragments[-1]
            parts = [place for place in range(len(last)) if last.startswith(b"\xff\x90\x00\x0a", place)]
            fragments[-1] = last[: parts[-cut]] + b"\xff\xd9"
        colours = {"frames": coloured, "encoding": "jpeg", "photometric": "YBR_FULL_422"}
        of_form = colours if form == "JPEG" else {"frames": frames, "encoding": "jpeg_2000"}
        clip(name, *reasons, fragments=fragments, **of_form)

    turned = Image.Exif()
    turned[0x0112], turned[0x013B] = 6, "Zwyxpatient"  # orientation, artist
    coded("jpeg_turned_by_exif", "JPEG", exif=turned)
    coded("jpeg_comment", "JPEG", comment=b"Zwyxpatient " * 400)
    coded("jpeg_restart_markers", "JPEG", restart_marker_rows=2)
    coded("jpeg_colours_at_half", "JPEG", subsampling=2)
    tiles = {"no_jp2": True, "tile_size": (32, 32)}
    coded("jpeg_2000_tiles", "JPEG2000", **tiles)
    coded("jpeg_2000_tile_missing", "JPEG2000", "damaged_frame", cut=1, **tiles)
    coded("jpeg_2000_tiles_missing", "JPEG2000", "damaged_frame", cut=5, **tiles)
    coded("jpeg_2000_in_file_format", "JPEG2000", no_jp2=False)
    lengths = [len(one) + len(one) % 2 for one in map(jpeg, frames)]
    table = element(0x7FE00001, "OV", struct.pack("<5Q", *np.cumsum([0, *(n + 8 for n in lengths[:-1])])))
    table += element(0x7FE00002, "OV", struct.pack("<5Q", *lengths))
    options = {"frames": frames, "encoding": "jpeg", "has_table": False}
    clip("extended_offset_table", edit=before_pixels(table), **options)

    def longer(data: bytes) -> bytes:
        """Make a deflated file with one wrong match, which gives more bytes than there were."""
        start = 144 + int.from_bytes(data[140:144], "little")
        whole = zlib.decompress(data[start:], -zlib.MAX_WBITS)
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return data[:start] + packer.compress(whole[:-9000] + whole[-12000:]) + packer.flush()

    clip("deflated_longer", "broken_header", frames=frames, encoding="deflated", edit=longer)
    overlay = element(0x60000010, "US", 64) + element(0x60000011, "US", 80)
    overlay += element(0x60003000, "OW", b"\xff" * 640) + element(0x60004000, "LT", "Zwyxpatient ")
    clip("overlay_plane", edit=before_pixels(overlay))
    clip("clip_in_the_class_of_stills", SOPClassUID="1.2.840.10008.5.1.4.1.1.6.1")
    clip("still_in_the_class_of_clips", frames=frames[:1], SOPClassUID=US_CLIP, NumberOfFrames=1)
    clip("modality_lower", Modality="us")
    clip("tiff_preamble", edit=lambda data: b"II*\0" + b"\7" * 124 + data[128:])


def _encapsulated(fragments: Sequence[bytes], table: Any) -> bytes:
    """Encapsulate fragments behind an offset table of these numbers."""
    parts = [one + b"\0" * (len(one) % 2) for one in fragments]
    table = np.asarray(table, "<u4").tobytes()
    items = [struct.pack("<HHL", 0xFFFE, 0xE000, len(part)) + part for part in (table, *parts)]
    return b"".join(items) + SEQUENCE_DELIMITER


def _palettes(c: _Corpus) -> None:
    clip, _ = c.of("palettes")
    frames = beating(3, seed=4)
    ramp = np.arange(256, dtype="<u2") * 257
    colours = ("Red", "Green", "Blue")

    def palette(
        name: str, *reasons: str, entries: Any = (256, 0, 16), data: bytes = ramp.tobytes(), **others: Any
    ) -> None:
        values: dict[str, Any] = {f"{one}PaletteColorLookupTableDescriptor": list(entries) for one in colours}
        values |= {f"{one}PaletteColorLookupTableData": data for one in colours}
        clip(name, *reasons, frames=frames, photometric="PALETTE COLOR", **{**values, **others})

    palette("16_bits")
    palette("8_bits", entries=(256, 0, 8), data=bytes(range(256)))
    palette("short", "bad_attribute", data=ramp[:100].tobytes())
    palette("long", data=np.tile(ramp, 4).tobytes())
    palette("one_entry", "blank", entries=(1, 0, 16))
    palette("entries_0", "bad_attribute", entries=(0, 0, 16))
    palette("bits_12", "bad_attribute", entries=(256, 0, 12))
    palette("first_outside", "blank", entries=(256, 60000, 16))
    palette("of_two_sizes", "bad_attribute", RedPaletteColorLookupTableDescriptor=[128, 0, 16])
    palette("no_blue", "missing_attribute", BluePaletteColorLookupTableData=None)
    palette("no_descriptor", "missing_attribute", GreenPaletteColorLookupTableDescriptor=None)
    palette("descriptor_of_one", "bad_attribute", GreenPaletteColorLookupTableDescriptor=256)
    palette("empty", "missing_attribute", data=b"")
    without = {f"{one}PaletteColorLookupTableData": None for one in colours}

    def segmented(*words: int) -> dict[str, Any]:
        data = np.array(words, "<u2").tobytes()
        return {**without, **{f"Segmented{one}PaletteColorLookupTableData": data for one in colours}}

    palette("segmented", **segmented(0, 1, 0, 1, 255, 65535))
    palette("segmented_nonsense", "bad_attribute", **segmented(7, 7, 7, 7))
    palette("segmented_loop", "bad_attribute", **segmented(0, 1, 0, 2, 65535, 3, 0))
    palette("segmented_cut", "bad_attribute", **segmented(0, 50, 1, 2))
    palette("segmented_busy", "bad_attribute", **segmented(0, 1, 0, *[0, 0] * 8000, *[2, 65535, 3, 0] * 4000))


def _regions(c: _Corpus) -> None:
    clip, _ = c.of("regions")
    width, height = 80, 64
    whole = (0, 0, width - 1, height - 1)
    tenth = (0.1, 0.1)

    def region(name: str, reason: str, *regions: Any) -> None:
        clip(name, reason, regions=list(regions))

    region("none", "no_regions")
    region("off_by_one", "segmented", tissue_region(0, 0, width, height, tenth))
    region("not_square", "segmented", tissue_region(*whole, (0.1, 0.2)))
    region("part", "segmented", tissue_region(8, 4, 70, 60, tenth))
    region("outside", "region_outside", tissue_region(0, 0, 595, 414, tenth))
    region("off_by_two", "region_outside", tissue_region(0, 0, width + 1, height - 1, tenth))
    region("begins_outside", "region_outside", tissue_region(500, 500, 600, 600, tenth))
    region("reversed", "region_malformed", tissue_region(70, 60, 8, 4, tenth))
    region("tiny", "region_too_small", tissue_region(10, 10, 14, 14, tenth))
    region("no_extent", "region_too_small", tissue_region(10, 10, 10, 10, tenth))
    region("largest_number", "region_outside", tissue_region(0, 0, 0xFFFFFFFF, 0xFFFFFFFF, tenth))
    for name, units in {
        "none": (0, 0),
        "seconds": (4, 4),
        "one_of_two": (3, 0),
        "percent": (1, 1),
        "unknown": (999, 999),
    }.items():
        more = dict(zip(("PhysicalUnitsXDirection", "PhysicalUnitsYDirection"), units))
        region(f"units_{name}", "units_not_cm", tissue_region(*whole, tenth, **more))
    for name, delta, reason in (
        ("zero", (0.0, 0.0), "delta_not_positive"),
        ("negative", (-0.1, -0.1), "delta_not_positive"),
        ("one_negative", (0.1, -0.1), "delta_not_positive"),
        ("nan", (float("nan"), 0.1), "region_malformed"),
        ("infinite", (float("inf"), float("inf")), "region_malformed"),
        ("denormal", (5e-324, 5e-324), "delta_implausible"),
        ("metres", (10.0, 10.0), "delta_implausible"),
        ("micrometres", (1e-5, 1e-5), "delta_implausible"),
        ("in_mm", (0.5, 0.5), "delta_implausible"),
        ("stretched", (0.01, 0.1), "pixels_not_square"),
        ("shallow", (0.02, 0.02), "depth_implausible"),
    ):
        region(f"delta_{name}", reason, tissue_region(*whole, delta))
    clip("too_deep", "depth_implausible", frames=beating(3, 200, 80),
         regions=[tissue_region(0, 0, 79, 199, (0.25, 0.25))])  # fmt: skip
    region("two_of_tissue", "several_tissue_regions", tissue_region(0, 0, 39, 63, tenth),
           tissue_region(40, 0, 79, 63, tenth))  # fmt: skip
    region("twice_the_same", "segmented", tissue_region(*whole, tenth), tissue_region(*whole, tenth))
    region("tissue_and_ecg", "segmented", tissue_region(0, 0, 79, 50, tenth),
           tissue_region(0, 51, 79, 63, tenth, RegionSpatialFormat=5, RegionDataType=10))  # fmt: skip
    spectral = {"RegionSpatialFormat": 3, "RegionDataType": 3}
    region("spectral_alone", "not_two_dimensional", tissue_region(*whole, tenth, **spectral))
    m_mode = {"RegionSpatialFormat": 2, "RegionDataType": 1}
    region("m_mode_alone", "not_two_dimensional", tissue_region(*whole, tenth, **m_mode))
    region("tissue_and_spectral", "segmented", tissue_region(0, 0, 79, 40, tenth),
           tissue_region(0, 41, 79, 63, tenth, **spectral))  # fmt: skip
    region("colour_alone", "no_tissue_region", tissue_region(*whole, tenth, RegionDataType=2))
    region("graphics_alone", "no_tissue_region", tissue_region(*whole, tenth, RegionSpatialFormat=5, RegionDataType=10))
    region("format_nonsense", "no_tissue_region", tissue_region(*whole, tenth, RegionSpatialFormat=777))
    region("empty_item", "no_tissue_region", dataset())
    for keyword in ("RegionLocationMinX0", "RegionLocationMaxY1", "PhysicalUnitsXDirection", "PhysicalDeltaY"):
        region(f"no_{keyword}", "region_malformed", tissue_region(*whole, tenth, **{keyword: None}))
    many = [tissue_region(n % 40, 0, 79, 63, tenth) for n in range(300)]
    region("three_hundred", "several_tissue_regions", *many)
    clip("text_in_place_of_items", "no_regions", edit=swap(0x00186011, element(0x00186011, "LO", "zwyxpatient")))


def _views_and_times(c: _Corpus) -> None:
    clip, _ = c.of("times")

    def code(value: str, meaning: str = "x", scheme: str = "SCT") -> Any:
        return dataset(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)

    c.clip("views/four_chamber.dcm", ViewCodeSequence=[code("399214001")])
    c.clip("views/two_chamber_old_code.dcm", ViewCodeSequence=[code("G-A19C", "apical two chamber", "SRT")])
    c.clip("views/parasternal.dcm", "other_view", ViewCodeSequence=[code("399139001")])
    c.clip("views/subcostal_text.dcm", "other_view", SeriesDescription="Subcostal 4C zwyxpatient")
    c.clip("views/code_unknown.dcm", ViewCodeSequence=[code("zwyxpatient", HOSTILE, "99ZZ")])
    c.clip("views/codes_empty.dcm", ViewCodeSequence=[dataset()])
    c.clip("views/two_codes.dcm", ViewCodeSequence=[code("399214001"), code("399139001")])
    for name, values in {
        "frame_time_0": {"FrameTime": 0},
        "frame_time_negative": {"FrameTime": -40},
        "frame_time_hours": {"FrameTime": 1e9},
        "vector_short": {"FrameTimeVector": [0, 40], "FrameTime": None},
        "vector_zeros": {"FrameTimeVector": [0, 0, 0, 0, 0], "FrameTime": None},
        "vector_negative": {"FrameTimeVector": [0, 40, -40, 40, 40], "FrameTime": None},
        "vector_uneven": {"FrameTimeVector": [0, 1, 400, 0, 3], "FrameTime": None},
        "no_times": {"FrameTime": None},
        "cine_rate_0": {"FrameTime": None, "CineRate": 0},
        "r_waves_far": {"RWaveTimeVector": [-5, 1e6, 1e38, 20]},
        "r_waves_dense": {"RWaveTimeVector": [n / 10 for n in range(3000)]},
        "heart_rate_nonsense": {"HeartRate": 2_000_000},
        "age_nonsense": {"PatientAge": "999Y", "PatientSex": "Q"},
        "age_hostile": {"PatientAge": HOSTILE, "PatientSex": HOSTILE},
        "born_after_study": {"PatientBirthDate": "20991231", "PatientAge": None},
        "dates_nonsense": {
            "PatientBirthDate": "zwyxpati",
            "StudyDate": "20239999",
            "StudyTime": "992277",
            "ContentDate": "0",
        },
    }.items():
        clip(name, **values)
    for name, value in {
        "nan": "nan",
        "infinite": "inf",
        "text": "zwyxpatient",
        "empty": "",
        "many": "40\\40\\40",
    }.items():
        clip(f"frame_time_{name}", edit=swap(0x00181063, element(0x00181063, "DS", value)))


def _identity(c: _Corpus) -> None:
    """Write UIDs, copies and patients."""
    clip, cut = c.of("identity")
    bad = ("bad_identifier", "missing_identifier")
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        tag = {"SOPInstanceUID": 0x00080018, "StudyInstanceUID": 0x0020000D, "SeriesInstanceUID": 0x0020000E}[keyword]
        for name, value in {
            "none": None,
            "empty": "",
            "path": "../../../../tmp/x",
            "root": "/etc/passwd",
            "slash": "1.2/3.4",
            "letters": "1.2.zwyxpatient",
            "long": "1." + "2" * 70,
            "two": "1.2.3\\1.2.4",
            "dots": "1..2",
            "negative": "-1.2.3",
            "newline": "1.2\n.3",
            "zero_byte": "1.2\0.3.4",
            "formula": "=1.2",
        }.items():
            new = b"" if value is None else element(tag, "UI", value)
            clip(f"{keyword}_{name}", *bad, edit=swap(tag, new))
    same = {"SOPInstanceUID": f"{ROOT}.4.1", "StudyInstanceUID": f"{ROOT}.4.2", "SeriesInstanceUID": f"{ROOT}.4.5"}
    frames = beating(4, seed=5)
    clip("copy_1", frames=frames, **same)
    c.file("identity/copy_2.dcm", (c.folder / "identity/copy_1.dcm").read_bytes(), "duplicate")
    c.file("identity/zcopies/copy_3", (c.folder / "identity/copy_1.dcm").read_bytes(), "duplicate")
    meta = element(0x00020016, "AE", "OTHER")
    clip("other_meta", "duplicate", frames=frames, **same,
         edit=lambda d: d[: d.index(b"\x08\x00\x16\x00")] + meta + d[d.index(b"\x08\x00\x16\x00") :])  # fmt: skip
    other = {"SOPInstanceUID": f"{ROOT}.4.3", "StudyInstanceUID": f"{ROOT}.4.4"}
    clip("conflict_1", "conflicting_duplicate", frames=beating(4, seed=6), **other)
    clip("conflict_2", "conflicting_duplicate", frames=beating(4, seed=7), **other)
    clip("conflict_3", "conflicting_duplicate", frames=beating(4, seed=6), **other, PatientName="Y^Y")
    good = {"SOPInstanceUID": f"{ROOT}.7.1", "StudyInstanceUID": f"{ROOT}.7.2", "SeriesInstanceUID": f"{ROOT}.7.3"}
    clip("whole", frames=frames, encoding="jpeg", **good)
    for part, reason in ((0.5, "truncated_pixels"), (0.9, "truncated_pixels")):
        cut(f"a_copy_cut_at_{part}", reason, frames=frames, encoding="jpeg", **good,
            at=lambda data, part=part: int(part * len(data)))  # fmt: skip
    fragments = [jpeg(frame) for frame in frames]
    clip("copy_damaged", "broken_frame", "damaged_frame", frames=frames, encoding="jpeg",
         fragments=[*fragments[:3], bytes(500)], **good)  # fmt: skip
    for name, values in {
        "a": {"PatientID": "XID-4711"},
        "b": {"PatientID": "XID-4712"},
        "c": {"PatientID": None, "PatientName": None},
    }.items():
        clip(f"mixed_{name}", "patients_mixed", StudyInstanceUID=f"{ROOT}.5", **values)
    clip("nobody", PatientID=None, PatientName=None, PatientBirthDate=None)
    for name in ("a", "b"):
        clip(f"one_study_{name}", StudyInstanceUID=f"{ROOT}.6")
    clip("one_study_broken", "truncated_pixels", StudyInstanceUID=f"{ROOT}.6", edit=lambda d: d[:-9000])


def _values_of_another_kind(c: _Corpus) -> None:
    """Write elements whose value representation is not the standard's: they do no harm where nothing depends on them."""
    clip, _ = c.of("kinds")
    kinds = {
        "US": struct.pack("<3H", 1, 2, 3),
        "FD": struct.pack("<2d", float("nan"), 1e300),
        "SQ": item(element(0x00080100, "SH", "A")),
        "OB": b"\xff\xfe\\\0ab",
        "PN": b"A^B\\C=D=E=F ",
    }
    tags = {
        "PatientName": 0x00100010,
        "PatientID": 0x00100020,
        "AccessionNumber": 0x00080050,
        "PatientSize": 0x00101020,
        "SpecificCharacterSet": 0x00080005,
        "ImageType": 0x00080008,
        "PatientAge": 0x00101010,
    }
    values = {"SpecificCharacterSet": "ISO_IR 100", "ImageType": ["ORIGINAL", "PRIMARY"], "PatientSize": 1.8}
    for vr, value in kinds.items():
        for keyword, tag in tags.items():
            edit = swap(tag, element(tag, vr, value))
            clip(f"{keyword}_{vr}", edit=edit, frames=beating(3, 32, 32), **values)
        if vr != "SQ":
            clip(f"regions_{vr}", "no_regions", edit=swap(0x00186011, element(0x00186011, vr, value)))


def _hostile_text(c: _Corpus) -> None:
    """Write hostile texts: paths, formulas, pages, terminal codes."""
    clip, _ = c.of("text")
    keywords = (
        *("PatientName", "PatientID", "IssuerOfPatientID", "OtherPatientIDs", "PatientComments", "StudyDescription"),
        *("SeriesDescription", "ProtocolName", "ImageComments", "InstitutionName", "OperatorsName", "StationName"),
        *("ReferringPhysicianName", "AccessionNumber", "StudyID", "Manufacturer", "ManufacturerModelName"),
        *("SoftwareVersions", "DeviceSerialNumber", "TransducerData", "ViewName", "BodyPartExamined", "ImageType"),
        *("StageName", "RequestedProcedureDescription", "AdmittingDiagnosesDescription", "EthnicGroup"),
    )
    texts = {
        "html": HOSTILE,
        "path": "../../../etc/zwyxpatient",
        "windows_path": "C:\\windows\\zwyxpatient",
        "formula": "=cmd|' /C calc'!A0 zwyxpatient",
        "terminal": "\x1b]0;zwyxpatient\x07\x1b[2J",
        "zero_bytes": "zwyx\0patient",
        "lines": "zwyxpatient\r\nPROCESSED,1\n",
        "format": "{0.__class__} %s%n ${jndi:ldap://zwyxpatient}",
        "sql": "'); DROP TABLE files;-- zwyxpatient",
        "long": "zwyxpatient" * 5000,
        "escape_charset": "\x1b$Bzwyxpatient",
        "equals": "=====^^^^====zwyxpatient",
        "spaces": " " * 400,
        "question": "?" * 40,
    }
    for name, text in texts.items():
        clip(name, **{keyword: text for keyword in keywords})
    for name, charset, raw in (
        ("latin_1", "ISO_IR 100", "Zwyxpatient^Müller".encode("latin-1")),
        ("utf_8", "ISO_IR 192", "Zwyxpatient^Łukasz 心".encode()),
        ("japanese", "\\ISO 2022 IR 87", b"Zwyxpatient^Taro=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"),
        ("chinese", "GB18030", "Zwyxpatient^王".encode("gb18030")),
        ("wrong", "ISO_IR 192", b"Zwyxpatient^M\xfcller\xff\xfe"),
        ("unknown", "ZWYXPATIENT", "Zwyxpatient^Müller".encode("latin-1")),
        ("none", None, b"Zwyxpatient^M\xfcller"),
        ("many", "ISO 2022 IR 6\\ISO 2022 IR 149\\nonsense", b"Zwyxpatient^\x1b$)C\xb1\xe8"),
    ):
        new = struct.pack("<HH2sH", 16, 16, b"PN", len(raw) + len(raw) % 2) + raw + b" " * (len(raw) % 2)
        clip(f"charset_{name}", SpecificCharacterSet=charset, edit=swap(0x00100010, new))
    wrong = b"".join(
        element(tag, "UN", struct.pack("<4f", 1, 2, 3, float("nan")))
        for tag in (0x00180015, 0x00181030, 0x00200011, 0x00200013)
    )
    clip("values_of_another_kind", edit=before_pixels(wrong))
    numbers = b"".join(element(tag, "IS", "zwyxpatient") for tag in (0x00200011, 0x00200013))
    clip("numbers_that_are_words", edit=before_pixels(numbers))
