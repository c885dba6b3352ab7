"""Test AVI and MP4: frames come as written, turned as the file says; damaged or too large files are refused in one line."""

from __future__ import annotations

import importlib.util
import struct
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

av = pytest.importorskip("av", reason='PyAV is not installed: pip install "synboost-monai[video]"')

from synboost_monai.files import read_frames, read_grid  # noqa: E402
from synboost_monai.formats import clip as module  # noqa: E402
from synboost_monai.formats.clip import MAX_CLIP_FRAMES, check_clip, read_clip  # noqa: E402
from synboost_monai.formats.clip_decoder import grey_frames  # noqa: E402
from synboost_monai.formats.colour import luma  # noqa: E402
from tests.clips import moving_block, write_clip  # noqa: E402

FRAMES = moving_block()


def decoded(path: Path) -> NDArray[np.uint8]:
    """Decode the frames of a clip in this process and not in a separate one."""
    return np.stack(list(grey_frames(path, check_clip(path))))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the bytes of a sound clip of each kind."""
    folder = tmp_path_factory.mktemp("clips")
    kinds = {"avi": ("mjpeg", "yuvj420p"), "mp4": ("libx264", "yuv420p")}
    frames = np.random.default_rng(0).integers(0, 255, (4, 64, 48), np.uint8)
    return {kind: write_clip(folder / f"a.{kind}", frames, *coding).read_bytes() for kind, coding in kinds.items()}


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "tolerance"),
    [
        ("a.avi", "rawvideo", "gray", 0),
        ("a.avi", "rawvideo", "bgr24", 0),
        ("a.avi", "ffv1", "gray", 0),
        ("a.avi", "mjpeg", "yuvj420p", 12),
        ("a.avi", "mpeg4", "yuv420p", 24),
        ("a.avi", "msvideo1", "rgb555le", 24),
        ("a.mp4", "libx264", "yuv420p", 24),
        ("a.mp4", "mpeg4", "yuv420p", 24),
        ("a.mp4", "libx265", "yuv420p10le", 24),
    ],
)
def test_frames_are_those_that_were_written(
    name: str, codec: str, pixel_format: str, tolerance: int, tmp_path: Path
) -> None:
    found = decoded(write_clip(tmp_path / name, FRAMES, codec, pixel_format))
    difference = np.abs(found.astype(int) - FRAMES)
    assert found.shape == FRAMES.shape and found.dtype == np.uint8
    assert np.quantile(difference, 0.99) <= tolerance and difference.mean() <= tolerance / 4


def test_a_process_of_its_own_gives_the_same_frames(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a clip.avi", FRAMES)
    frames = read_frames(path, sequences=True)
    assert np.array_equal(frames.pixels, FRAMES) and frames.spacing_mm == (1.0, 1.0)
    assert frames.pixels.flags.writeable and not frames.grid.is_oriented
    assert read_grid(path).frames_shape == FRAMES.shape and read_grid(path).volume_shape == FRAMES.shape[::-1]


def test_colours_become_grey_by_their_luma(tmp_path: Path) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    assert np.array_equal(decoded(write_clip(tmp_path / "a.avi", colours, "rawvideo", "bgr24")), luma(colours))


def test_luma_of_video_is_spread_over_all_grey_levels(tmp_path: Path) -> None:
    levels = np.array([[0, 255, 128]], np.uint8).repeat(20, axis=1)[None].repeat(20, axis=1)
    found = decoded(write_clip(tmp_path / "a.avi", levels, "rawvideo", "yuv420p"))
    assert [int(found[0, 0, column]) for column in (5, 25, 45)] == [0, 255, 128]


def test_odd_sizes_and_sound(tmp_path: Path) -> None:
    odd = moving_block((3, 37, 51))
    assert np.array_equal(decoded(write_clip(tmp_path / "odd.avi", odd)), odd)
    assert decoded(write_clip(tmp_path / "odd.avi", odd, "mjpeg", "yuvj444p")).shape == odd.shape
    assert decoded(write_clip(tmp_path / "a.mp4", FRAMES, "mpeg4", "yuv420p", sound=True)).shape == FRAMES.shape


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
        ((-1, 0, 0, 1), lambda frame: frame[:, ::-1]),
        ((1, 0, 0, -1), lambda frame: frame[::-1]),
        ((0, 1, 1, 0), lambda frame: frame.T),
    ],
)
def test_a_phones_word_that_a_clip_is_turned_is_followed(
    matrix: tuple[int, ...], turn: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], tmp_path: Path
) -> None:
    straight = write_clip(tmp_path / "a.mp4", FRAMES, "mpeg4", "yuv420p")
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(with_matrix(straight.read_bytes(), *(n << 16 for n in matrix)))
    assert np.array_equal(decoded(turned), np.stack([turn(frame) for frame in decoded(straight)]))


def test_a_turn_by_other_than_quarters_is_refused(clips: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(with_matrix(clips["mp4"], 46341, 46341, -46341, 46341))
    with pytest.raises(ValueError, match="a.mp4: is turned by other than quarters; export it upright"):
        decoded(tmp_path / "a.mp4")


def test_content_says_the_kind(clips: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(clips["avi"])
    assert decoded(tmp_path / "a.mp4").shape == (4, 64, 48)
    for content in (b"#EXTM3U\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile '/etc/passwd'\n", b"", b"RIFF"):
        (tmp_path / "b.mp4").write_bytes(content)
        with pytest.raises(ValueError, match="b.mp4: its content is neither AVI nor MP4; export the clip as one of"):
            read_frames(tmp_path / "b.mp4", sequences=True)


def with_matrix(mp4: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """Return an MP4 file with another display matrix."""
    straight = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    start = mp4.index(straight, mp4.index(b"tkhd"))
    return mp4[:start] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + mp4[start + len(straight) :]


def put(content: bytes, name: bytes, offset: int, new: bytes) -> bytes:
    """Return a file with other bytes after the first place of a name."""
    start = content.index(name) + len(name) + offset
    return content[:start] + new + content[start + len(new) :]


def box(name: bytes, *content: bytes) -> bytes:
    """Make a box of an MP4 file."""
    return struct.pack(">I", 8 + len(b"".join(content))) + name + b"".join(content)


def fragment(num_samples: int) -> bytes:
    """Make a fragment of an MP4 file that announces samples, each of which takes no byte in the file."""
    run = box(b"trun", struct.pack(">II", 0, num_samples))
    return box(b"moof", box(b"traf", box(b"tfhd", struct.pack(">II", 0x20000, 1)), run))


def jpeg_size(avi: bytes, size: int) -> bytes:
    """Make an AVI file whose JPEG pictures state a larger size than the file's header does."""
    start = b"\xff\xc0\x00\x11\x08"
    changed = avi.replace(start + struct.pack(">HH", 64, 48), start + struct.pack(">HH", size, size))
    assert changed != avi
    return changed


DAMAGED: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "avi of 100,000 px": (
        "avi",
        lambda c: put(c, b"strf", 8, struct.pack("<ii", 100_000, 100_000)),
        "announces planes",
    ),
    "avi of no size": ("avi", lambda c: put(c, b"strf", 8, struct.pack("<ii", -3, 5)), "sizes of at least 1"),
    "avi of 1e9 frames": ("avi", lambda c: put(c, b"strh", 36, struct.pack("<I", 10**9)), "has 1,000,000,000 frames"),
    "avi, cut": ("avi", lambda c: c[:-100], r"cut off or damaged \(its part RIFF ends at byte"),
    "avi, cut early": ("avi", lambda c: c[:100], "cut off or damaged"),
    "avi without an end": ("avi", lambda c: put(c, b"RIFF", 0, bytes(4)), "cut off or damaged .* end the recording"),
    "avi of larger pictures": ("avi", lambda c: jpeg_size(c, 65_500), "not a readable clip|are read"),
    "avi of many parts": ("avi", lambda c: avi_of(b"JUNK\0\0\0\0" * 100_001), "more than 100,000 parts"),
    "mp4 of 30,000 px": ("mp4", lambda c: put(c, b"stsd", 40, struct.pack(">HH", 30_000, 30_000)), "announces planes"),
    "mp4 of 1e9 frames": ("mp4", lambda c: put(c, b"stsz", 4, struct.pack(">II", 7, 10**9)), "1,000,000,000 frames"),
    "mp4 of fragments": ("mp4", lambda c: c + fragment(2 * 10**9), "announces 2,000,000,000 samples"),
    "mp4, cut": ("mp4", lambda c: c[:-100], r"cut off or damaged \(its part moov ends at byte"),
    "mp4 without a header": ("mp4", lambda c: c[: c.index(b"moov") - 4], "nothing in it describes pictures"),
    "mp4 that names a file": ("mp4", lambda c: c.replace(box(b"url ", b"\0\0\0\1"), box(b"url ", b"\0\0\0\0")), ""),
    "mp4 of noise": ("mp4", lambda c: c[:32] + np.random.default_rng(0).bytes(3000), "cut off or damaged"),
}


def avi_of(content: bytes) -> bytes:
    """Make an AVI file of some chunks."""
    return b"RIFF" + struct.pack("<I", 4 + len(content)) + b"AVI " + content


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_or_announces_too_much_is_refused(
    name: str, clips: dict[str, bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kind, change, message = DAMAGED[name]
    path = tmp_path / f"a.{kind}"
    path.write_bytes(change(clips[kind]))
    if not message:
        assert decoded(path).shape == (4, 64, 48)  # the file's own pixels, whatever it names
        return
    with pytest.raises(ValueError, match=message) as error:
        decoded(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_pixels_in_another_file_are_refused(clips: dict[str, bytes], tmp_path: Path) -> None:
    content = clips["mp4"]
    other = box(b"url ", b"\0\0\0\0", b"file:///etc/passwd\0")
    start = content.index(b"url ") - 4
    longer = content[:start] + other + content[start + 12 :]
    for name in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):  # all the boxes around it
        at = longer.index(name) - 4
        longer = (
            longer[:at]
            + struct.pack(">I", struct.unpack(">I", longer[at : at + 4])[0] + len(other) - 12)
            + longer[at + 4 :]
        )
    (tmp_path / "a.mp4").write_bytes(longer)
    with pytest.raises(ValueError, match="a.mp4: its pixels lie in another file; export the clip as one whole file"):
        check_clip(tmp_path / "a.mp4")


def test_a_damaged_frame_is_refused(clips: dict[str, bytes], tmp_path: Path) -> None:
    for kind, mark in (("avi", b"movi"), ("mp4", b"mdat")):
        path = tmp_path / f"a.{kind}"
        path.write_bytes(put(clips[kind], mark, 2400, b"\xff" * 60))
        with pytest.raises(ValueError, match=f"a.{kind}: (not a readable clip|frame .* is damaged)"):
            decoded(path)


def test_too_many_frames_are_refused_while_they_come(
    clips: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CLIP_FRAMES", 3)
    path = tmp_path / "a.avi"
    path.write_bytes(put(clips["avi"], b"strh", 36, struct.pack("<I", 2)))  # says less than it holds
    check_clip(path)
    with pytest.raises(ValueError, match="has 4 frames; at most 3 are read"):
        decoded(path)
    assert MAX_CLIP_FRAMES == 3600


def test_size_of_the_file_is_bounded(tmp_path: Path) -> None:
    with (tmp_path / "a.avi").open("wb") as file:
        file.truncate((1 << 31) + 1)  # holes: no byte on the disk
    with pytest.raises(ValueError, match="a.avi: has 2048 MB; clips of at most 2048 MB are read; cut or compress it"):
        read_clip(tmp_path / "a.avi")


def test_other_codings_are_refused_by_name(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.avi", FRAMES, "libvpx", "yuv420p")
    with pytest.raises(
        ValueError, match=r"a.avi: (is coded as (vp8|libvpx), which is not read; export it as H.264|not a readable)"
    ):
        decoded(path)


def test_a_decoder_that_dies_costs_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.avi", FRAMES)
    (tmp_path / "dies").write_text("#!/bin/sh\nkill -SEGV $$\n")
    (tmp_path / "waits").write_text("#!/bin/sh\nexec sleep 30\n")
    for name, message in (("dies", r"ended the decoder \(exit status -11\)"), ("waits", "took more than 0.2 s")):
        (tmp_path / name).chmod(0o700)
        monkeypatch.setattr(module, "MAX_CLIP_SECONDS", 0.2 if name == "waits" else 60)
        monkeypatch.setattr(sys, "executable", str(tmp_path / name))
        with pytest.raises(ValueError, match=f"a.avi: {message}; export it again, as H.264 in MP4"):
            read_clip(path)


def test_without_pyav_the_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.avi", FRAMES)
    find: Callable[..., ModuleSpec | None] = importlib.util.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "av" else find(name))
    with pytest.raises(
        ValueError, match=r"a.avi: AVI and MP4 are read by PyAV, .*pip install 'synboost-monai\[video\]'"
    ):
        read_clip(path)
    with pytest.raises(ValueError, match=r"a.avi: is a clip; set sequences: true to segment every frame"):
        read_frames(path)
