"""The loss of prompts: each a yes-or-no question."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from synboost_monai.losses import PromptDiceCELoss


def test_cross_entropy_is_binary_for_each_structure() -> None:
    logits = torch.zeros(1, 2, 2, 2)
    masks = torch.zeros(1, 2, 2, 2)
    masks[0, 0] = 1  # structure 0 everywhere, structure 1 nowhere
    loss = PromptDiceCELoss(lambda_dice=0.0, lambda_ce=1.0)(logits, masks)
    assert math.isclose(loss.item(), math.log(2), rel_tol=1e-6)


def test_value_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    masks = (torch.rand(2, 3, 8, 8, generator=generator) > 0.5).float()
    p = logits.sigmoid()
    dice = 1 - (2 * (p * masks).sum((2, 3)) + 1e-5) / (p.sum((2, 3)) + masks.sum((2, 3)) + 1e-5)
    expected = dice.mean() + 0.2 * F.binary_cross_entropy_with_logits(logits, masks)
    assert torch.allclose(PromptDiceCELoss()(logits, masks), expected, rtol=1e-5)


def test_as_published_is_dice_alone_one_pair_at_a_time() -> None:
    logits, masks = torch.randn(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    loss = PromptDiceCELoss(lambda_ce=0.0)
    pairs = [loss(logits[:, s : s + 1], masks[:, s : s + 1]) for s in range(3)]
    assert torch.allclose(loss(logits, masks), torch.stack(pairs).mean())
