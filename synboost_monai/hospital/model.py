"""Segment frames in memory with a bundle, as `synboost segment` does with files: each frame by itself, in clips of any length.

T: frames. h, w: rows and columns of the ultrasound region. S: structures. E: groups of prompts. N: side of the network's square.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from synboost_monai.files import known_sha256
from synboost_monai.heart.doubt import view_evidence
from synboost_monai.letterbox import LetterboxGeometry, letterbox_geometry
from synboost_monai.networks.view_head import split_view
from synboost_monai.predictor import Pipeline, open_bundle
from synboost_monai.prompts import prompt_text
from synboost_monai.structures import LEFT_VENTRICULAR_CAVITY, STRUCTURES
from synboost_monai.transforms import PromptTokensd
from synboost_monai.transforms.array import letterbox_frames
from synboost_monai.transforms.postprocessing import (
    EVIDENCE_KEY,
    display_order,
    logits_to_label_map,
    mean_logits,
    remove_strays,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIRST_LEVEL = "P1"
"""Level of prompts that say nothing but the structure."""
SHIPPED = "shipped"
"""`scout`: the bundle's own weights."""
RESULT_KEYS = (
    *("preset", "image_size", "keep_aspect", "mask_padding", "padding_id", "image_mean", "image_std", "dtype", "autocast_dtype"),
    *("prompt_level", "prompt_ensemble", "domain_word", "threshold", "keep_largest", "fill_holes", "review_below", "anatomy_ranges"),
)  # fmt: skip
"""Keys of the inference config that results depend on, besides weights and images."""


@dataclass(frozen=True)
class SegmentedFrames:
    """Hold the label maps of some frames, with expected Dice, areas and doubts."""

    label_maps: NDArray[np.uint8]
    """(T, h, w), classes 0..3; (T, h', w') where they were left on the network's grid."""
    expected_dice: NDArray[np.float64]
    """(T, S), from the network's own probabilities (see `heart.doubt.segmentation_evidence`); NaN on the network's grid."""
    areas: NDArray[np.float64]
    """(T,), area of the left ventricular cavity, measured on the network's grid, in pixels of the frame."""
    doubts: list[dict[str, Any]] | None = None
    """For each frame, if asked for: predicted Dice, anatomy, verdict and reasons (see `heart.doubt.DoubtAssessor`)."""
    views: list[dict[str, Any]] | None = None
    """The network's view of each frame (`heart.doubt.view_evidence`); None if it predicts no views."""


class EchoSegmenter(Pipeline):
    """Segment the frames of clips of any length, each by itself, with a bundle's pipeline.

    Args:
        bundle: name or folder.
        checkpoint_path: weights; None: those of the bundle.
        overrides: values for keys of inference.yaml, such as preset, image_size, prompt_level, calibration_path, device.
        scout: weights of a small network of the same bundle that looks for the beats, or `SHIPPED`; None: this network does.
    Raises:
        FileNotFoundError: if there is no such bundle, or no weights.
        ValueError: if a key does not exist, or weights and settings do not belong together.
    """

    def __init__(
        self,
        bundle: str,
        checkpoint_path: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        scout: str | None = None,
    ) -> None:
        opened = open_bundle(bundle, checkpoint_path, overrides)
        if opened.setting("prompt"):
            raise ValueError("a study is segmented into all structures: leave `prompt` empty")
        super().__init__(opened)
        keys = opened.parser.get()  # only CRIS has mask_padding
        self.settings: dict[str, Any] = {key: opened.setting(key) if key in keys else None for key in RESULT_KEYS}
        self.assessor, self.batch_size = opened.setting("doubt"), int(opened.setting("batch_size"))
        self.network_seconds = 0.0
        self.scout: EchoSegmenter | None = None
        if scout is not None:
            device = {"device": str(self.device)}
            self.scout = EchoSegmenter(bundle, None if scout == SHIPPED else scout, device)
        known = {"padding_id": self.tokens.padding_id, "domain_word": self.tokens.domain_word}
        self._first_tokens = PromptTokensd(FIRST_LEVEL, **known)

    @cached_property
    def weights_sha256(self) -> str:
        """Return the SHA-256 of the weights file."""
        return known_sha256(self.checkpoint_path)

    @cached_property
    def settings_digest(self) -> str:
        """Return 16 hex digits that change with any setting that results depend on."""
        calibration = self.assessor.calibration
        facts = {**self.settings, "calibration": None if calibration is None else calibration.settings}
        if self.scout is not None:
            facts["scout"] = [self.scout.settings_digest, self.scout.weights_sha256]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def prompts(self, attributes: Mapping[str, Any], is_first: bool = False) -> list[str]:
        """Return the prompts of the first group for a frame with these attributes."""
        tokens = self._first_tokens if is_first else self.tokens
        texts = (prompt_text(s, tokens.level, attributes, domain_word=bool(tokens.domain_word)) for s in STRUCTURES)
        return [prompt.text for prompt in texts]

    @torch.no_grad()
    def segment(
        self,
        frames: NDArray[np.uint8],
        spacing_mm: Sequence[float] | None,
        attributes: Mapping[str, Any],
        *,
        is_first: bool = False,
        judge: bool = False,
        is_small: bool = False,
    ) -> SegmentedFrames:
        """Segment frames that have the same attributes.

        Args:
            frames: (T, h, w), 0..255.
            spacing_mm: (row, column); None: not known, so pixels count as square and lengths are not judged.
            attributes: those of `view`, `phase`, `sex` and `age` that are known.
            is_first: use one group of prompts of `FIRST_LEVEL` instead of the bundle's level and ensemble: a third of the work or less.
            judge: assess how far each frame can be trusted.
            is_small: leave the label maps on the network's grid, (T, h', w'), which saves restoring the native one; not with `judge`.
        """
        aspect = (1.0, 1.0) if spacing_mm is None else tuple(spacing_mm)
        geometry = letterbox_geometry(
            frames.shape, aspect, self.settings["image_size"], bool(self.settings["keep_aspect"])
        )
        tokens = self._first_tokens if is_first else self.tokens
        known: dict[Hashable, Any] = {name: attributes[name] for name in attributes}
        input_ids = tokens(known)["input_ids"]
        frame_pixels = frames[0].size
        areas: list[float] = []
        label_maps: list[NDArray[np.uint8]] = []
        evidence: list[dict[str, Any]] = []
        views: list[dict[str, Any]] = []
        for start in range(0, len(frames), self.batch_size):
            part = torch.from_numpy(np.ascontiguousarray(frames[start : start + self.batch_size]))
            boxed = letterbox_frames(part, geometry)  # (T, N, N)
            inputs = self.normalise({"image": boxed, "is_sequence": True})["image"]  # (T, 3, N, N)
            with self.lock:  # several studies share the network
                began = time.perf_counter()
                logits = self.logits(inputs, input_ids.expand(len(part), -1, -1)).cpu()
                self.network_seconds += time.perf_counter() - began
            small = [self._small_map(self._mean(frame), geometry) for frame in self.of_masks(logits)]
            areas.extend(frame_pixels * float((m == LEFT_VENTRICULAR_CAVITY.class_index).mean()) for m in small)
            if is_small:
                label_maps.extend(small)
                if self.inferer.with_view:
                    views.extend(view_evidence(of_frame) for of_frame in split_view(logits)[1].double().numpy())
                continue
            item: dict[Hashable, Any] = {
                "pred": logits,
                "geometry": torch.tensor(geometry),
                "image": MetaTensor(part[:1]),
            }
            restored = self.restore(item)
            native = display_order(restored["pred"]).numpy()
            label_maps.extend(native if native.ndim == 3 else native[None])
            evidence.extend(restored[EVIDENCE_KEY])
            views.extend(e["view"] for e in restored[EVIDENCE_KEY] if "view" in e)
        stacked = np.stack(label_maps)
        expected = [[e["structures"][s.name]["expected_dice"] for s in STRUCTURES] for e in evidence] or [
            [np.nan] * len(STRUCTURES)
        ] * len(stacked)
        doubts = None
        if judge:
            spacing = None if spacing_mm is None else tuple(spacing_mm)
            doubts = [self.assessor(m[None], [e], spacing, aspect) for m, e in zip(stacked, evidence)]
        return SegmentedFrames(stacked, np.array(expected, dtype=np.float64), np.array(areas), doubts, views or None)

    def _mean(self, logits: Tensor) -> Tensor:
        """Return logits (S, N, N) of the groups' mean probability, from logits (E * S, N, N)."""
        groups = logits.unflatten(0, (-1, len(STRUCTURES)))
        return mean_logits(groups) if len(groups) > 1 else groups[0]

    def _small_map(self, logits: Tensor, geometry: LetterboxGeometry) -> NDArray[np.uint8]:
        """Return the label map on the network's grid, (h', w'), from one frame's logits (S, N, N), with strays removed."""
        g = geometry
        inner = logits[:, g.top : g.top + g.inner_height, g.left : g.left + g.inner_width]
        label_map = logits_to_label_map(inner, threshold=self.settings["threshold"]).numpy()
        return (
            remove_strays(label_map, [s.class_index for s in STRUCTURES])
            if self.settings["keep_largest"]
            else label_map
        )
