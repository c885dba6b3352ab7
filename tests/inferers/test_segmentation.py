"""Which prompts reach the network, and in what precision."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from synboost_monai.inferers import PromptedSegmentationInferer
from synboost_monai.prompts import PromptTokenizer


class Recorder(nn.Module):
    """Gives as many channels as there are prompts, 3 without any."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)

    def forward(self, image: Tensor, input_ids: Tensor | None = None) -> Tensor:
        self.image, self.input_ids = image, input_ids
        num_prompts = 3 if input_ids is None else input_ids.shape[1]
        out = self.conv(image)
        self.dtype = out.dtype
        return out.expand(-1, num_prompts, -1, -1)


def test_batch_prompts_are_passed_on() -> None:
    network, input_ids = Recorder(), torch.zeros(2, 3, 77, dtype=torch.int64)
    assert PromptedSegmentationInferer()(torch.rand(2, 3, 8, 8), network, input_ids=input_ids).shape == (2, 3, 8, 8)
    assert torch.equal(network.input_ids, input_ids)


def test_images_alone_ask_for_the_three_structures() -> None:
    """As MONAI Label calls it."""
    network = Recorder()
    image = MetaTensor(torch.rand(1, 3, 8, 8))
    logits = PromptedSegmentationInferer()(image, network)
    assert network.input_ids is None and logits.shape == (1, 3, 8, 8)
    assert type(network.image) is Tensor  # meta data costs time in each layer


def test_free_prompt_wins() -> None:
    network = Recorder()
    inferer = PromptedSegmentationInferer(prompt="left atrium")
    assert inferer(torch.rand(2, 3, 8, 8), network, input_ids=torch.zeros(2, 3, 77, dtype=torch.int64)).shape[1] == 1
    assert torch.equal(network.input_ids, PromptTokenizer()(["left atrium"]).expand(2, 1, -1))


def test_mixed_precision_inside_float32_outside() -> None:
    network = Recorder()
    logits = PromptedSegmentationInferer(autocast_dtype="bfloat16", channels_last=True)(torch.rand(2, 3, 8, 8), network)
    assert network.dtype == torch.bfloat16 and logits.dtype == torch.float32
    assert network.image.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="autocast_dtype must be one of"):
        PromptedSegmentationInferer(autocast_dtype="half")
