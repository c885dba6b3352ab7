"""Losses of the segmenters.

B: batch, S: structures (prompts) of one image.
"""

from __future__ import annotations

from typing import Any

from monai.losses import DiceCELoss
from torch import Tensor


class PromptDiceCELoss(DiceCELoss):
    """lambda_dice * Dice + lambda_ce * binary cross-entropy, each image-structure pair by itself, then the mean.

    MONAI's DiceCELoss takes the cross-entropy of several channels as classes that exclude each other (a softmax over the structures,
    background unknown), even with `sigmoid=True`. A prompt is a yes-or-no question, so here every structure becomes an item of the
    batch with one channel, for which MONAI uses the binary cross-entropy. With S = 1 this is what the paper trained, except that
    its cross-entropy was 0: `lambda_ce=0` is as published.
    """

    def __init__(self, lambda_dice: float = 1.0, lambda_ce: float = 0.2, **kwargs: Any) -> None:
        super().__init__(sigmoid=True, lambda_dice=lambda_dice, lambda_ce=lambda_ce, **kwargs)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Loss of logits (B, S, H, W) against masks (B, S, H, W) of 0 and 1."""
        logits, masks = input.float().flatten(0, 1)[:, None], target.float().flatten(0, 1)[:, None]  # (B S, 1, H, W)
        return super().forward(logits, masks)
