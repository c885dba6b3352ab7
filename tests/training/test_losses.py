"""Test the loss of prompts, each of which is a yes-or-no question."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from synboost_monai.networks.view_head import join_view
from synboost_monai.training.losses import MasksAndViewLoss, PromptDiceCELoss


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


def test_view_and_moment_by_hand() -> None:
    """An image that is not an apical view counts for the view alone."""
    generator = torch.Generator().manual_seed(0)
    logits, view = torch.randn(3, 2, 4, 4, generator=generator), torch.randn(3, 4, generator=generator)
    masks = (torch.rand(3, 2, 4, 4, generator=generator) > 0.5).float()
    target = {"masks": masks, "view_class": torch.tensor([2, 0, 1]), "systole": torch.tensor([1.0, 0.0, 0.3])}
    of_masks = PromptDiceCELoss(lambda_ce=1.0)
    p, m = view[:, :3].softmax(1), view[:, 3].sigmoid()
    of_view = -(p[0, 2].log() + p[1, 0].log() + p[2, 1].log()) / 3
    of_moment = -(m[0].log() + 0.3 * m[2].log() + 0.7 * (1 - m[2]).log()) / 2
    expected = of_masks(logits[[0, 2]], masks[[0, 2]]) + 0.5 * (of_view + of_moment)
    loss = MasksAndViewLoss(of_masks, lambda_view=0.5)
    assert torch.allclose(loss(join_view(logits, view), target), expected, rtol=1e-5)
    assert torch.equal(loss(logits, masks), of_masks(logits, masks))  # a validation
    assert torch.equal(loss(logits, target), of_masks(logits[[0, 2]], masks[[0, 2]]))  # a network without the head


def test_a_batch_of_strangers_teaches_the_view_alone() -> None:
    logits, view = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    target = {
        "masks": torch.ones(2, 3, 4, 4),
        "view_class": torch.zeros(2, dtype=torch.long),
        "systole": torch.zeros(2),
    }
    MasksAndViewLoss(PromptDiceCELoss())(join_view(logits, view), target).backward()
    assert not logits.grad.any() and view.grad[:, :3].any() and not view.grad[:, 3].any()
