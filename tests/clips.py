"""Write clips for tests with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def write_clip(
    path: Path,
    frames: NDArray[np.uint8],
    codec: str = "rawvideo",
    pixel_format: str = "gray",
    rate: int = 25,
    sound: bool = False,
) -> Path:
    """Write frames (T, H, W) of grey, or (T, H, W, 3) of colours, as AVI or MP4; sound is a second of silence beside them."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixel_format
        stream.codec_context.thread_count = 1
        other = container.add_stream("aac", rate=8000) if sound else None
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="gray" if pixels.ndim == 2 else "rgb24")
            frame = frame.reformat(format=pixel_format)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if other is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 8000
            container.mux([*other.encode(silence), *other.encode()])
    return path


def moving_block(shape: Sequence[int] = (5, 48, 64)) -> NDArray[np.uint8]:
    """Draw frames (T, H, W): a ramp to the right, and a bright block at the top that grows by one row per frame."""
    num_frames, height, width = shape
    frames = np.broadcast_to(np.linspace(20, 200, width), shape).astype(np.uint8)
    for number in range(num_frames):
        frames[number, : 8 + number, : width // 2] = 240
    return frames
