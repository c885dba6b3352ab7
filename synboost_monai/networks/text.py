"""What both segmenters do with token ids: the default prompts, and each distinct prompt encoded once.

B: batch, S: prompts of one image, L: tokens of a prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

VOCABULARY_SIZE = 49408
"""Tokens of CLIP's byte pair encoding; the last two are start (49406) and end (49407) of a text."""
CONTEXT_LENGTH = 77
"""Tokens of the longest prompt that CLIP was trained with."""
DEFAULT_INPUT_IDS: tuple[tuple[int, ...], ...] = (
    (49406, 1823, 1240, 9511, 4927, 43156, 539, 518, 1936, 269, 49407),  # Left ventricular cavity of the heart.
    (49406, 16206, 811, 2903, 539, 518, 1936, 269, 49407),  # Myocardium of the heart.
    (49406, 1823, 29725, 43156, 539, 518, 1936, 269, 49407),  # Left atrium cavity of the heart.
)
"""Token ids of the three P1 prompts, first phrasing: what a segmenter looks for when it is given no prompt."""


def default_input_ids() -> Tensor:
    """`DEFAULT_INPUT_IDS` as one tensor, (1, 3, L), int64, padded with 0."""
    length = max(len(ids) for ids in DEFAULT_INPUT_IDS)
    return torch.tensor([[list(ids) + [0] * (length - len(ids)) for ids in DEFAULT_INPUT_IDS]])


def distinct_prompts(input_ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """The distinct rows of (N, L) token ids and, for each of the N rows, which one it is.

    Only where it costs nothing: on an accelerator it would make the host wait, so all rows come back with `None`.
    """
    if input_ids.device.type != "cpu" or len(input_ids) == 1:
        return input_ids, None
    return torch.unique(input_ids, dim=0, return_inverse=True)


def trim_padding(input_ids: Tensor) -> Tensor:
    """(N, L) token ids without the columns at the end that are 0 (padding) in every row.

    Only where it costs nothing: on an accelerator it would make the host wait, so the ids come back as they are.
    """
    if input_ids.device.type != "cpu":
        return input_ids
    used = (input_ids != 0).any(dim=0).nonzero()
    return input_ids[:, : int(used[-1]) + 1] if len(used) else input_ids[:, :1]


def trim_to_end(input_ids: Tensor) -> Tensor:
    """(N, L) token ids without the columns behind the last first end token (the highest id), whatever the padding.

    Exact for what is read at the end token of a causal transformer. Only on the CPU, as `trim_padding`.
    """
    if input_ids.device.type != "cpu":
        return input_ids
    return input_ids[:, : int(input_ids.argmax(dim=-1).max()) + 1]


def check_inputs(image: Tensor, input_ids: Tensor, context_length: int) -> None:
    """Shapes that would otherwise fail deep inside, or not at all."""
    height, width = image.shape[-2:]
    if height % 32 or width % 32:
        raise ValueError(f"segmenter: image is {height} x {width}; height and width must be multiples of 32")
    if input_ids.ndim != 3 or len(input_ids) != len(image):
        raise ValueError(
            f"segmenter: input_ids must be (B, S, L) with B = {len(image)} images, got {tuple(input_ids.shape)}"
        )
    if input_ids.shape[2] > context_length:
        raise ValueError(
            f"segmenter: a prompt has {input_ids.shape[2]} tokens but the network takes {context_length}; shorten it or its padding"
        )
