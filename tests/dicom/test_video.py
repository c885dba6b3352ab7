"""Test that videos in DICOM objects are decoded frame by frame, and that none can do harm."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from synboost_monai.dicom.reading import video as module
from synboost_monai.dicom.reading.decode import frame_reader
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.formats import clip
from tests.dicom.conftest import moving_frames

av = pytest.importorskip("av")

MPEG2, H264, HEVC = (f"1.2.840.10008.1.2.4.{number}" for number in (100, 102, 107))
Write = Callable[..., Path]


def _encoded(frames: np.ndarray, codec: str, container: str) -> bytes:
    """Encode frames (T, H, W) with some loss."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as made:
        track = made.add_stream(codec, rate=25)
        track.height, track.width, track.pix_fmt = *frames.shape[1:], "yuv420p"
        track.codec_context.thread_count = 1
        track.bit_rate = 4_000_000
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="gray").reformat(format="yuv420p")
            frame.pts = number
            made.mux(track.encode(frame))
        made.mux(track.encode())
    return stream.getvalue()


@pytest.fixture
def frames() -> np.ndarray:
    return moving_frames(12, 64, 96)


@pytest.fixture
def write(make_ultrasound: Callable[..., Path], frames: np.ndarray) -> Write:
    """Return a function that writes an object of these frames with a video as its pixel data."""

    def build(data: bytes, syntax: str, num_parts: int = 1, **attributes: object) -> Path:
        size = -(-len(data) // num_parts // 2) * 2
        parts = [data[start : start + size] for start in range(0, len(data), size)]
        colours = np.repeat(frames[..., None], 3, axis=3)
        about = {"PhotometricInterpretation": "YBR_PARTIAL_420", **attributes}
        path = make_ultrasound(colours, "jpeg", fragments=parts, has_table=False, **about)
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
        dataset.save_as(path, implicit_vr=False, little_endian=True)
        return path

    return build


@pytest.mark.parametrize(
    ("codec", "container", "syntax", "num_parts"),
    [
        ("h264", "mp4", H264, 1),
        ("h264", "mpegts", f"{H264}.1", 3),
        ("h264", "h264", H264, 1),
        ("hevc", "hevc", HEVC, 1),
        ("mpeg2video", "mpeg2video", MPEG2, 1),
        ("mpeg2video", "mpegts", MPEG2, 2),
    ],
)
def test_each_frame_is_the_encoded_one_in_any_order(
    codec: str, container: str, syntax: str, num_parts: int, frames: np.ndarray, write: Write
) -> None:
    path = write(_encoded(frames, codec, container), syntax, num_parts)
    with frame_reader(path) as reader:
        assert reader.decoder.startswith("PyAV ") and reader.num_frames == 12
        whole = reader.read_frames(range(12))
        assert np.abs(whole.astype(int) - frames).mean() < 4  # of 256 grey levels; neighbours differ by 9
        nearest = [int(np.abs(frames.astype(int) - frame).mean(axis=(1, 2)).argmin()) % 7 for frame in whole]
        assert nearest == [number % 7 for number in range(12)]  # the frames repeat after seven
        assert np.array_equal(reader.read_frames([7, 2]), whole[[7, 2]])


def test_wrong_videos_are_refused_in_words(frames: np.ndarray, write: Write) -> None:
    data = _encoded(frames, "h264", "mp4")
    for given, changes, code, words in (
        (b"GIF89a" * 100, {}, "broken_frame", "its video has an unknown format"),
        (data[: len(data) // 2], {}, "broken_frame", "damaged or ends early"),
        (data, {"NumberOfFrames": 13}, "truncated_pixels", "12 of 13 frames"),
        (data, {"Rows": 60}, "frame_mismatch", "decodes to 64 x 96; the header says 60 x 96"),
    ):
        with pytest.raises(NotUsableError) as caught, frame_reader(write(given, H264, **changes)) as reader:
            reader.read_frames(range(reader.num_frames))
        assert caught.value.reason.code == code and words in str(caught.value)


def test_without_a_decoder_and_with_too_many_parts(
    frames: np.ndarray, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(_encoded(frames, "h264", "mp4"), H264, num_parts=5)
    with monkeypatch.context() as patch:
        patch.setattr("synboost_monai.dicom.reading.decode.MAX_PARTS", 4)
        with pytest.raises(NotUsableError, match="5 fragments; at most 4 are read"):
            frame_reader(path)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotUsableError, match=r"needs an optional decoder; .*synboost-monai\[video\]"):
        frame_reader(path)


def test_a_decoder_that_hangs_or_dies_ends(frames: np.ndarray, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(_encoded(frames, "h264", "mp4"), H264)
    monkeypatch.setattr(clip, "MAX_WAIT_SECONDS", 0.001)
    with frame_reader(path) as reader, pytest.raises(NotUsableError, match="damaged or ends early"):
        reader.read_frames(range(12))
