"""Define what both segmenters share: how image, prompts and decoder come together, and encoders that can be frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .text import check_input_ids
from .view_head import ViewHead, join_view


class PromptedSegmenter(nn.Module):
    """Combine `encode_image`, `encode_prompts` and `decode` into one network, with the pretrained parts in `encoders`."""

    freeze_encoders: bool
    encoders: Any
    encode_image: Any
    encode_prompts: Any
    decode: Any
    default_input_ids: Tensor
    view_head: ViewHead | None
    """Predicts the view; None: the network does not predict it."""

    def deepest_features(self, features: Sequence[Tensor]) -> Tensor:
        """Return the feature map (B, C, h, w) of `encode_image` that sees the most of the image."""
        raise NotImplementedError

    def view_logits(self, features: Sequence[Tensor]) -> Tensor:
        """Return the view head's logits (B, 4) for image features, see `view_head.NUM_VIEW_LOGITS`."""
        assert self.view_head is not None, "a network with has_view_head"
        return self.view_head(self.deepest_features(features))

    def train(self, mode: bool = True) -> PromptedSegmenter:
        """Set the mode as `nn.Module.train` does; frozen encoders stay in evaluation mode."""
        super().train(mode)
        if self.freeze_encoders:
            for encoder in self.encoders:
                encoder.eval()
        return self

    def forward(
        self,
        image: Tensor | Sequence[Tensor],
        input_ids: Tensor | None = None,
        text: Sequence[Tensor] | None = None,
        with_view: bool = False,
    ) -> Tensor:
        """Return logits (B, S, H, W): one mask for each prompt.

        Args:
            image: (B, 3, H, W), normalised as the image encoder was trained; H and W multiples of 32. Or the features that
                `encode_image` returned for them (CLIPSeg: for squares).
            input_ids: (B, S, L) int64 tokens, padded behind the end token (CRIS: with 0); None: the three structures' P1 prompts.
                Best left on the CPU: there, repeated prompts and padding are found without waiting for the device.
            text: output of `encode_prompts` for these prompts, in place of `input_ids`.
            with_view: append the four `view_logits` behind the masks, as flat planes (`view_head.join_view`): (B, S + 4, H, W).
        Raises:
            ValueError: if H or W is not a multiple of 32, or the shapes do not fit.
        """
        size = None
        if isinstance(image, Tensor):
            size = (image.shape[-2], image.shape[-1])
            image = self.encode_image(image)
        if text is None:
            if input_ids is None:
                input_ids = self.default_input_ids.expand(image[0].shape[0], -1, -1)
            check_input_ids(input_ids, image[0].shape[0])
            text = self.encode_prompts(input_ids.flatten(0, 1))
        logits = self.decode(image, text, size)
        return join_view(logits, self.view_logits(image)) if with_view else logits


def attended(module: nn.Module, x: Tensor, is_causal: bool = False) -> Tensor:
    """Compute self-attention over x (N, T, D) with a module's `q_proj`, `k_proj` and `v_proj`, up to its last layer."""
    q, k, v = (
        layer(x).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for layer in (module.q_proj, module.k_proj, module.v_proj)
    )
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(1, 2).flatten(2)
