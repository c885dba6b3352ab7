"""Test that several views of an image are asked about, and answered on the image's own grid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from synboost_monai.inferers import PassesInferer, PromptedSegmentationInferer
from synboost_monai.inferers.passes import PASSES, Pass, warp

SIDE = 64


class Grey(nn.Module):
    """Return the image's grey values as the logits of each prompt, and remember the images."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor, input_ids: Tensor | None = None) -> Tensor:
        self.seen.append(image)
        return image[:, :1].expand(-1, 3 if input_ids is None else input_ids.shape[1], -1, -1)


def _blob(right: float = 0.0, down: float = 0.0, scale: float = 1.0, degrees: float = 0.0) -> Tensor:
    """Return an image (1, 3, N, N) of a smooth spot on black, right of and below the middle, after a pass in closed form."""
    across, along = torch.meshgrid(*[(torch.arange(SIDE) + 0.5) / SIDE - 0.5] * 2, indexing="xy")
    angle = torch.deg2rad(torch.tensor(degrees))
    x, y = 0.15 * scale, 0.1 * scale  # of the spot's middle
    x, y = x * torch.cos(angle) - y * torch.sin(angle) + right, x * torch.sin(angle) + y * torch.cos(angle) + down
    spot = torch.exp(-((across - x) ** 2 + (along - y) ** 2) / (2 * (0.08 * scale) ** 2))
    return (5 * spot - 2)[None, None].expand(1, 3, -1, -1)


@pytest.mark.parametrize("one", PASSES)
def test_a_pass_turns_enlarges_and_moves_the_image_and_its_logits_come_back(one: Pass) -> None:
    network, image = Grey(), _blob()
    logits = PassesInferer(PromptedSegmentationInferer(), (one,))(image, network, torch.zeros(1, 3, 77).long())
    seen = _blob(one.right, one.down, one.scale, one.degrees)
    assert (network.seen[0] - seen).abs().max() < 0.1  # of grey values from -2 to 3
    assert (network.seen[0] - image).abs().max() > 0.5 or one == Pass()
    assert (logits[0, 0] - image[0, 0])[8:-8, 8:-8].abs().max() < 0.2


def test_passes_follow_each_other_as_groups_of_prompts_do() -> None:
    inferer, ids = PromptedSegmentationInferer(), torch.zeros(2, 6, 77).long()
    images = torch.rand(2, 3, SIDE, SIDE)
    logits = PassesInferer(inferer)(images, Grey(), ids)
    assert logits.shape == (2, len(PASSES) * 6, SIDE, SIDE)
    assert torch.equal(logits[:, :6], inferer(images, Grey(), ids))
    clips = PassesInferer(inferer)(images[None], Grey(), ids[:1])
    assert torch.equal(clips[0], logits)


def test_the_view_is_that_of_the_image_as_it_is() -> None:
    from synboost_monai.networks import create_segmenter
    from synboost_monai.networks.view_head import split_view

    torch.manual_seed(0)
    network = create_segmenter("cris", "tiny", has_view_head=True).eval()
    inferer, image = PromptedSegmentationInferer(with_view=True), torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        plain, several = inferer(image, network), PassesInferer(inferer, PASSES[:3])(image, network)
    assert several.shape[1] == 3 * 3 + 4
    assert torch.equal(split_view(several)[1], split_view(plain)[1])
    assert torch.equal(several[:, :3], split_view(plain)[0])


def test_what_a_view_does_not_show_is_black_in_images_and_goes_on_in_logits() -> None:
    image = torch.full((1, 1, 8, 8), 3.0)
    image[..., 0, 0] = -1.5  # the darkest value
    moved = Pass(right=0.5).theta
    assert torch.equal(warp(image, moved, black=True)[..., :4], torch.full((1, 1, 8, 4), -1.5))
    assert torch.equal(warp(image, moved)[..., 1:, :4], torch.full((1, 1, 7, 4), 3.0))


def test_no_pass_or_a_free_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pass"):
        PassesInferer(PromptedSegmentationInferer(), ())
    with pytest.raises(ValueError, match="leave `prompt` empty"):
        PassesInferer(PromptedSegmentationInferer(prompt="heart muscle", free_words=True))
