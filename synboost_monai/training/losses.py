"""Define the losses of the segmenters.

B: batch, S: structures (prompts) of one image, N: side of the network's square.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import Tensor, nn

from synboost_monai.networks.view_head import split_view


class PromptDiceCELoss(DiceCELoss):
    """The loss is lambda_dice * Dice + lambda_ce * binary cross-entropy, averaged over all image-structure pairs.

    MONAI's DiceCELoss treats several channels as mutually exclusive classes in its cross-entropy (a softmax over the structures,
    without background), even with `sigmoid=True`. A prompt is a yes-or-no question, so here every structure becomes an item of the
    batch with one channel, for which MONAI uses the binary cross-entropy. With S = 1 this is the paper's loss, except that
    its cross-entropy was 0: `lambda_ce=0` is as published.
    """

    def __init__(self, lambda_dice: float = 1.0, lambda_ce: float = 0.2, **kwargs: Any) -> None:
        super().__init__(sigmoid=True, lambda_dice=lambda_dice, lambda_ce=lambda_ce, **kwargs)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, S, H, W) against masks (B, S, H, W) of 0 and 1."""
        logits, masks = input.float().flatten(0, 1)[:, None], target.float().flatten(0, 1)[:, None]  # (B S, 1, H, W)
        return super().forward(logits, masks)


class MasksAndViewLoss(nn.Module):
    """The loss is that of the masks + lambda_view * (cross-entropy of the view + binary cross-entropy of the moment of the beat).

    Images without an apical view count only for the view. Their masks are not taught to be empty: a ventricle seen from elsewhere is
    still a ventricle, and a network that learns to draw nothing on unusual images also draws nothing on unusual hearts.

    Args:
        masks: the loss of logits (B, S, N, N) and masks (B, S, N, N).
        lambda_view: weight of the view and the moment; 0: none.
    """

    def __init__(self, masks: nn.Module, lambda_view: float = 0.2) -> None:
        super().__init__()
        self.masks, self.lambda_view = masks, lambda_view

    def forward(self, input: Tensor, target: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return the loss.

        Args:
            input: logits (B, S, N, N); or (B, S + 4, N, N), followed by those of the view (`networks.view_head.join_view`).
            target: masks (B, S, N, N); or, from `PreparePromptedBatch`, `masks`, `view_class` (B,), index in `structures.VIEW_CLASSES`, and
                `systole` (B,), moment of the beat from 0 to 1.
        """
        if not isinstance(target, Mapping):
            return self.masks(input, target)
        masks, view_class = target["masks"], target["view_class"]
        has_view = input.shape[1] > masks.shape[1]
        logits, view_logits = split_view(input) if has_view else (input, None)
        is_heart = view_class > 0
        loss = self.masks(logits[is_heart], masks[is_heart]) if is_heart.any() else 0.0 * logits.sum()
        if view_logits is None:
            return loss
        of_view = F.cross_entropy(view_logits[:, :-1], view_class)
        moments = F.binary_cross_entropy_with_logits(
            view_logits[:, -1], target["systole"].to(view_logits), reduction="none"
        )
        of_moment = (moments * is_heart).sum() / is_heart.sum().clamp(min=1)
        return loss + self.lambda_view * (of_view + of_moment)
