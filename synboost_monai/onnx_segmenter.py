"""Segment with an exported ONNX file without torch; this needs onnxruntime, numpy, Pillow and transformers' tokenizer.

S: prompts. H, W: rows and columns of the image. N: side of the network's square. L: tokens of a prompt.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synboost_monai.letterbox import LetterboxGeometry, byte_scale, letterbox_geometry
from synboost_monai.prompts import PromptTokenizer, structure_prompts
from synboost_monai.prompts.understanding import understand
from synboost_monai.structures import BACKGROUND_INDEX, STRUCTURES

SETTINGS_KEY = "synboost"
"""Key of the ONNX file's metadata that holds, as JSON, how the network's input must be made."""


class OnnxSegmenter:
    """Segment a grey image by words, and return a label map on the image's own grid.

    It does what inference.yaml does with one prompt for each structure, without cleaning (`keep_largest` and `fill_holes` false).

    Args:
        path: an ONNX file that `synboost export` wrote.
        num_threads: of onnxruntime; 0: all cores.
        providers: of onnxruntime, such as ["CUDAExecutionProvider", "CPUExecutionProvider"].
    Attributes:
        settings: image_size, keep_aspect, image_mean, image_std, padding_id, context_length, threshold and others, as exported.
    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it was not written by `synboost export`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        num_threads: int = 0,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        import onnxruntime

        if not Path(path).is_file():
            raise FileNotFoundError(f"onnx_segmenter.py: there is no file {path}; make it with `synboost export`")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # onnxruntime's own errors have no common class but this
            raise ValueError(
                f"onnx_segmenter.py: onnxruntime cannot load {path}: {str(error).splitlines()[0]}"
            ) from error
        stored = self.session.get_modelmeta().custom_metadata_map.get(SETTINGS_KEY)
        if stored is None:
            raise ValueError(f"onnx_segmenter.py: {path} says nothing of its input; write it with `synboost export`")
        self.settings: dict[str, Any] = json.loads(stored)
        self.tokenizer = PromptTokenizer(self.settings["context_length"], self.settings["padding_id"])

    def __call__(
        self,
        image: NDArray[Any],
        prompts: Sequence[str] | None = None,
        spacing_mm: Sequence[float] = (1.0, 1.0),
        threshold: float | None = None,
    ) -> NDArray[np.uint8]:
        """Return a label map (H, W): class indices of the project's structures, or 1, 2, ... S for your own prompts.

        Args:
            image: (H, W), grey values.
            prompts: each names one structure, such as "left atrium" or "Left atrium cavity in two-chamber view of the heart."; None: the
                three structures. Sentences in the paper's words go to the network as they are, all others as the structure's sentence.
            spacing_mm: (row, column); only the ratio counts.
            threshold: probability above which a pixel belongs to a structure; None: as exported.
        Raises:
            ValueError: if a prompt does not name one structure that the network was taught, the image is not grey, or the threshold is
                not between 0 and 1.
        """
        logits = self.logits(image, prompts, spacing_mm)
        threshold = float(self.settings["threshold"] if threshold is None else threshold)
        if not 0 < threshold < 1:
            raise ValueError(f"onnx_segmenter.py: threshold is a probability between 0 and 1, got {threshold}")
        indices = [s.class_index for s in STRUCTURES] if prompts is None else range(1, len(logits) + 1)
        label_map = np.asarray(indices, dtype=np.uint8)[logits.argmax(axis=0)]
        label_map[logits.max(axis=0) <= np.log(threshold / (1 - threshold))] = BACKGROUND_INDEX
        return label_map

    def logits(
        self, image: NDArray[Any], prompts: Sequence[str] | None = None, spacing_mm: Sequence[float] = (1.0, 1.0)
    ) -> NDArray[np.float32]:
        """Return logits (S, H, W) on the image's own grid; the arguments are those of the call."""
        image = np.asarray(image)
        if image.ndim != 2:
            raise ValueError(f"onnx_segmenter.py: expected a grey image (H, W), got {image.shape}")
        size, keep_aspect = int(self.settings["image_size"]), bool(self.settings["keep_aspect"])
        geometry = letterbox_geometry(image.shape, spacing_mm, size, keep_aspect)
        sentences = [prompt.text for prompt in structure_prompts("P1", {})]
        if prompts is not None:
            taught = dict(zip(STRUCTURES, sentences))
            named = [understand(prompt) for prompt in prompts]
            sentences = [u.prompt if u.goes_itself(free_words=False) else taught[u.structure] for u in named]
        feed = {
            "image": self._network_image(image, geometry),
            "input_ids": np.asarray([self.tokenizer.rows(sentences)]),
        }
        (logits,) = self.session.run(None, feed)
        g = geometry
        inner = logits[0, :, g.top : g.top + g.inner_height, g.left : g.left + g.inner_width]
        return np.stack([_resize(plane, g.native_height, g.native_width) for plane in inner])

    def _network_image(self, image: NDArray[Any], geometry: LetterboxGeometry) -> NDArray[np.float32]:
        """Return the letterboxed image, its 8-bit grey levels normalised, (1, 3, N, N)."""
        g = geometry
        low, factor = byte_scale(float(image.min()), float(image.max()))
        inner = _resize((image.astype(np.float32) - low) * factor, g.inner_height, g.inner_width)
        square = np.zeros((g.size, g.size), np.float32)
        square[g.top : g.top + g.inner_height, g.left : g.left + g.inner_width] = inner.round().clip(0, 255)
        mean, std = (np.asarray(self.settings[key], np.float32)[:, None, None] for key in ("image_mean", "image_std"))
        return ((square / 255 - mean) / std)[None].astype(np.float32)


def _resize(plane: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize (H, W) to (height, width): bilinear, pixel centres kept, smoothed where it shrinks, as `transforms.array.resize` does."""
    from PIL import Image

    return np.asarray(Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
