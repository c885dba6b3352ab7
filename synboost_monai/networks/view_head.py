"""Predict the view and the phase that an image shows, with a small head on image features.

B: batch, C: channels, h and w: height and width of the deepest features, N: side of the image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_VIEW_LOGITS = 4
"""Logits of no apical view, apical two-chamber and four-chamber view (one of three), and of the phase (0 end-diastole, 1 end-systole)."""
_POOLED = 3
"""Features are averaged in 3 x 3 fields: an upside-down heart has the same features, but in other fields."""
_HIDDEN = 64


class ViewHead(nn.Module):
    """Apply two layers to the means of features in 3 x 3 fields of the image.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels * _POOLED**2)
        self.hidden = nn.Linear(channels * _POOLED**2, _HIDDEN)
        self.last = nn.Linear(_HIDDEN, NUM_VIEW_LOGITS)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, 4) for features (B, C, h, w)."""
        pooled = F.adaptive_avg_pool2d(features, _POOLED).flatten(1)
        return self.last(F.gelu(self.hidden(self.norm(pooled))))


def join_view(logits: Tensor, view_logits: Tensor) -> Tensor:
    """Append the view's logits (B, 4) to those of the masks (B, S, N, N), as four flat planes: (B, S + 4, N, N).

    A single tensor passes through all code that handles masks (batches, clips, MONAI's decollation, MONAI Label).
    """
    planes = view_logits[:, :, None, None].to(logits.dtype).expand(-1, -1, *logits.shape[-2:])
    return torch.cat([logits, planes], dim=1)


def split_view(joined: Tensor) -> tuple[Tensor, Tensor]:
    """Split the output of `join_view` into the masks' logits (..., S, N, N) and the view's (..., 4); any leading axes."""
    return joined[..., :-NUM_VIEW_LOGITS, :, :], joined[..., -NUM_VIEW_LOGITS:, 0, 0]
