"""What both segmenters share: how image, prompts and decoder come together, and encoders that can be frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .text import check_input_ids
from .view_head import ViewHead, join_view


class PromptedSegmenter(nn.Module):
    """A network of the parts `encode_image`, `encode_prompts` and `decode`, with its pretrained parts in `encoders`."""

    freeze_encoders: bool
    encoders: Any
    encode_image: Any
    encode_prompts: Any
    decode: Any
    default_input_ids: Tensor
    view_head: ViewHead | None
    """Says the view; None: the network knows none."""

    def deepest_features(self, features: Sequence[Tensor]) -> Tensor:
        """Return the map (B, C, h, w) of what `encode_image` gave that sees the most of the image."""
        raise NotImplementedError

    def view_logits(self, features: Sequence[Tensor]) -> Tensor:
        """Return what the head says of the features of images: logits (B, 4), see `view_head.NUM_VIEW_LOGITS`."""
        assert self.view_head is not None, "a network with has_view_head"
        return self.view_head(self.deepest_features(features))

    def train(self, mode: bool = True) -> PromptedSegmenter:
        """As `nn.Module.train`; frozen encoders stay in evaluation mode."""
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
        """Logits (B, S, H, W) of one mask for each prompt.

        Args:
            image: (B, 3, H, W), normalised as the image encoder was trained; H and W multiples of 32. Or the features that
                `encode_image` gave for them (CLIPSeg: for squares).
            input_ids: (B, S, L) int64 tokens, padded behind the end token (CRIS: with 0); None: the three structures' P1 prompts.
                Best left on the CPU: there, repeated prompts and padding are found without a wait.
            text: what `encode_prompts` gave for these prompts, in place of `input_ids`.
            with_view: the four `view_logits` come behind the masks, as flat planes (`view_head.join_view`): (B, S + 4, H, W).
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
