"""Ask a segmenter about several views of each image, and lay its answers over each other (test-time augmentation).

B: batch, T: frames of a clip, S: prompts of an image, L: tokens of a prompt, N: side of the network's square, P: passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from torch import Tensor, nn

from synboost_monai.inferers.segmentation import PromptedSegmentationInferer
from synboost_monai.networks.view_head import NUM_VIEW_LOGITS
from synboost_monai.transforms.array import plain


@dataclass(frozen=True)
class Pass:
    """Describe how an image is turned, enlarged and moved about its middle before the network sees it."""

    degrees: float = 0.0
    scale: float = 1.0
    right: float = 0.0
    """Shift, as a fraction of the square's side."""
    down: float = 0.0

    @property
    def theta(self) -> Tensor:
        """Return where in the image each pixel of the view comes from, (2, 3) for `torch.nn.functional.affine_grid`."""
        angle = torch.deg2rad(torch.tensor(self.degrees))
        cos, sin = torch.cos(angle) / self.scale, torch.sin(angle) / self.scale
        linear = torch.stack([torch.stack([cos, sin]), torch.stack([-sin, cos])])
        moved = -linear @ torch.tensor([[2 * self.right], [2 * self.down]])  # the square is 2 wide
        return torch.cat([linear, moved], dim=1)


PASSES = (
    Pass(),
    Pass(degrees=8),
    Pass(degrees=-8),
    Pass(scale=1.1),
    Pass(scale=0.9),
    Pass(degrees=5, scale=0.95, right=0.05, down=0.05),
    Pass(degrees=-5, scale=1.05, right=-0.05, down=-0.05),
)
"""The views of an image that `PassesInferer` asks about; the first is the image as it is."""


class PassesInferer(Inferer):
    """Run a segmenter on several views of each image, and return each view's logits on the image's own grid.

    The passes follow each other as groups of prompts do, so that whatever judges groups (`RestoreLabelMapd`) takes the mean of their
    probabilities, and the spread between them. What a view does not show continues its nearest pixels. Logits of the view head, if the
    inferer adds them, are those of the image as it is.

    Args:
        inferer: the inferer of one pass.
        passes: the views.
    Raises:
        ValueError: if there is no pass, or the inferer gives a free prompt to the network itself.
    """

    def __init__(self, inferer: PromptedSegmentationInferer, passes: tuple[Pass, ...] = PASSES) -> None:
        super().__init__()
        if not passes or inferer.goes_itself:
            raise ValueError(
                "passes.py: expected at least one pass and no free prompt of the network's own words; leave `prompt` empty"
            )
        self.inferer, self.passes = inferer, passes

    def __call__(
        self, inputs: Tensor, network: nn.Module, input_ids: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return the logits of a batch.

        Args:
            inputs: images (B, 3, N, N), normalised, or clips (B, T, 3, N, N).
            network: a segmenter.
            input_ids: (B, S, L), as for `PromptedSegmentationInferer`.
        Returns:
            (B, P * S, N, N), for clips (B, T, P * S, N, N), followed by the view's logits if the inferer adds them.
        """
        images, masks, view = plain(inputs), [], None
        for one in self.passes:
            is_plain = one == Pass()
            seen = images if is_plain else warp(images, one.theta, black=True)
            logits = self.inferer(seen, network, input_ids, *args, **kwargs)
            if self.inferer.with_view:
                split = logits.shape[-3] - NUM_VIEW_LOGITS
                logits, of_view = logits.split([split, NUM_VIEW_LOGITS], dim=-3)
                view = of_view if view is None else view
            masks.append(logits if is_plain else warp(logits, _inverse(one.theta)))
        return torch.cat([*masks, *([] if view is None else [view])], dim=-3)


def warp(images: Tensor, theta: Tensor, black: bool = False) -> Tensor:
    """Resample images (..., C, N, N) by one affine map; outside of them is their darkest value, or else their border's.

    Args:
        images: at least one leading axis.
        theta: (2, 3), as `torch.nn.functional.affine_grid` takes it.
        black: fill with each channel's darkest value, in place of the nearest pixel's.
    """
    flat = images.flatten(0, -4)
    grid = F.affine_grid(theta.to(flat).expand(len(flat), -1, -1), list(flat.shape), align_corners=False)
    floor = flat.amin(dim=(-2, -1), keepdim=True) if black else flat.new_zeros(())
    padding = "zeros" if black else "border"
    moved = F.grid_sample(flat - floor, grid, mode="bilinear", padding_mode=padding, align_corners=False) + floor
    return moved.view(images.shape)


def _inverse(theta: Tensor) -> Tensor:
    """Return the affine map (2, 3) that undoes another one."""
    linear = torch.linalg.inv(theta[:, :2])
    return torch.cat([linear, -linear @ theta[:, 2:]], dim=1)
