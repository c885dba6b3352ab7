"""From logits in the network's square to one label map on the image's own grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from synboost_monai.labels import BACKGROUND_INDEX, STRUCTURES
from synboost_monai.transforms.array import LetterboxGeometry, masks_of_label_map, plain, resize
from synboost_monai.transforms.prompt_tokens import class_index_of_prompt

Item = Mapping[Hashable, Any]


def restore_logits(logits: Tensor, geometry: LetterboxGeometry) -> Tensor:
    """Logits (S, N, N) -> native grid (S, H, W): padding off, then bilinear."""
    g = geometry
    inner = logits[:, g.top : g.top + g.inner_height, g.left : g.left + g.inner_width]
    return resize(inner.float(), g.native_height, g.native_width)


def logits_to_label_map(logits: Tensor, class_indices: Sequence[int] | None = None, threshold: float = 0.5) -> Tensor:
    """One label map from the logits of several structures: the arbitration rule.

    A pixel belongs to the structure with the highest logit if that structure's probability is above the threshold, else to the
    background. So no two structures overlap, and with one structure it is the plain threshold.

    Args:
        logits: (S, H, W) or (B, S, H, W).
        class_indices: class of each channel; None: `labels.STRUCTURES` in their order.
        threshold: probability, in (0, 1).
    Returns:
        (H, W) or (B, H, W), uint8.
    """
    indices = [s.class_index for s in STRUCTURES] if class_indices is None else list(class_indices)
    if len(indices) != logits.shape[-3]:
        raise ValueError(f"array.py: {len(indices)} class indices for logits of {logits.shape[-3]} structures")
    if not 0 < threshold < 1:
        raise ValueError(f"array.py: threshold is a probability between 0 and 1, got {threshold}")
    highest, winner = logits.max(dim=-3)
    classes = torch.tensor(indices, dtype=torch.uint8, device=logits.device)[winner]
    return torch.where(highest > float(np.log(threshold / (1 - threshold))), classes, BACKGROUND_INDEX).to(torch.uint8)


class RestoreLabelMapd(MapTransform):
    """Logits (S, N, N) -> label map on the image's native grid, in the stored order of its file.

    The result is (1, W, H, 1) uint8 with the image's affine: a volume of one plane, the one shape that MONAI Label writes back
    with the affine kept. `WriteLabelMaps` and `display_order` know it.

    Args:
        keys: logits.
        prompt: the free prompt that the network was given; empty: the three structures, arbitrated into one label map (see
            `logits_to_label_map`); otherwise the mask is written with the class that the prompt names (`class_index_of_prompt`).
        threshold: probability above which a pixel belongs to a structure.
        image_key: the image whose meta data the label map gets.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        prompt: str = "",
        threshold: float = 0.5,
        image_key: str = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.class_indices = [class_index_of_prompt(prompt)] if prompt else [s.class_index for s in STRUCTURES]
        self.threshold = threshold
        self.image_key = image_key

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        item = dict(data)
        geometry = LetterboxGeometry(*(int(n) for n in item["geometry"]))
        meta = dict(item[self.image_key].meta)
        for key in self.key_iterator(item):
            logits = restore_logits(plain(item[key]), geometry)
            label_map = logits_to_label_map(logits, self.class_indices, self.threshold)
            item[key] = MetaTensor(label_map.T[None, :, :, None].contiguous(), meta=meta)
        return item


class LogitsToMasksd(MapTransform):
    """Logits (S, N, N) -> masks (S, N, N) by the same arbitration as the label map; written under `output_key`.

    The logits stay, for the validation loss.
    """

    def __init__(self, keys: KeysCollection = "pred", output_key: str = "pred_masks", threshold: float = 0.5) -> None:
        super().__init__(keys)
        self.output_key, self.threshold = output_key, threshold

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[self.output_key] = masks_of_label_map(logits_to_label_map(item[key], threshold=self.threshold)[None])
        return item


def display_order(label_map: torch.Tensor) -> torch.Tensor:
    """Label map of `RestoreLabelMapd` (1, W, H, 1) -> (H, W), as on the screen."""
    return plain(label_map)[0, :, :, 0].T.contiguous()
