"""Which view an image shows, and at which moment of the beat: a small head on what an image encoder gives.

B: batch, C: channels, h and w: height and width of the deepest features, N: side of the image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_VIEW_LOGITS = 4
"""Of no apical view, the apical two- and four-chamber view, which exclude one another; and of the moment: 0 end-diastole, 1 end-systole."""
_POOLED = 3
"""The features' mean is taken in 3 x 3 fields: a heart that lies the wrong way up has the same ones elsewhere."""
_HIDDEN = 64


class ViewHead(nn.Module):
    """Two layers over the means of features in 3 x 3 fields of the image.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels * _POOLED**2)
        self.hidden = nn.Linear(channels * _POOLED**2, _HIDDEN)
        self.last = nn.Linear(_HIDDEN, NUM_VIEW_LOGITS)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, 4) of features (B, C, h, w)."""
        pooled = F.adaptive_avg_pool2d(features, _POOLED).flatten(1)
        return self.last(F.gelu(self.hidden(self.norm(pooled))))


def join_view(logits: Tensor, view_logits: Tensor) -> Tensor:
    """Put the view's logits (B, 4) behind those of the masks (B, S, N, N), as four flat planes: (B, S + 4, N, N).

    One tensor goes through whatever handles masks (batches, clips, MONAI's decollation, MONAI Label) and brings both along.
    """
    planes = view_logits[:, :, None, None].to(logits.dtype).expand(-1, -1, *logits.shape[-2:])
    return torch.cat([logits, planes], dim=1)


def split_view(joined: Tensor) -> tuple[Tensor, Tensor]:
    """Take the masks' logits (..., S, N, N) and the view's (..., 4) out of what `join_view` gave; any leading axes."""
    return joined[..., :-NUM_VIEW_LOGITS, :, :], joined[..., -NUM_VIEW_LOGITS:, 0, 0]
