"""Prompted segmentation as a MONAI Inferer: the prompt lives here, since MONAI Label hands over images alone."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn

from synboost_monai.prompts import PromptTokenizer

__all__ = ["PromptedSegmentationInferer"]

AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Names of the types of mixed precision, as configs write them."""


class PromptedSegmentationInferer(Inferer):
    """Runs a segmenter on images and prompts.

    Which prompts: the free `prompt` if there is one; else the batch's `input_ids`; else none, which asks for the three structures.

    Args:
        prompt: words that say what to segment; "" for the structures of the project.
        autocast_dtype: "bfloat16" computes in mixed precision, on CPUs too; None in float32. Logits are float32 always.
        channels_last: memory layout of the images; convolutions in mixed precision are faster with it.
        context_length, padding_id: as in `PromptTokenizer`.
    """

    def __init__(
        self,
        prompt: str = "",
        autocast_dtype: str | None = None,
        channels_last: bool = False,
        context_length: int = 77,
        padding_id: int = 0,
    ) -> None:
        super().__init__()
        if autocast_dtype is not None and autocast_dtype not in AUTOCAST_DTYPES:
            raise ValueError(
                f"segmentation.py: autocast_dtype must be one of {', '.join(AUTOCAST_DTYPES)} or null, got {autocast_dtype!r}"
            )
        self.autocast_dtype = AUTOCAST_DTYPES[autocast_dtype] if autocast_dtype else None
        self.channels_last = channels_last
        self.prompt_ids = PromptTokenizer(context_length, padding_id)([prompt]) if prompt else None  # (1, L)

    def __call__(
        self, inputs: Tensor, network: nn.Module, input_ids: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Logits of a batch.

        Args:
            inputs: images, (B, 3, N, N), normalised.
            network: a segmenter, `forward(image, input_ids)`.
            input_ids: prompts of each image, (B, S, L); None as described above.
        Returns:
            (B, S, N, N), float32.
        """
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.prompt_ids is not None:
            input_ids = self.prompt_ids.expand(len(images), 1, -1)
        if input_ids is not None:
            input_ids = input_ids.to(images.device)
        is_mixed = self.autocast_dtype is not None
        with torch.autocast(images.device.type, dtype=self.autocast_dtype, enabled=is_mixed):
            logits = network(images, input_ids)
        return logits.float()
