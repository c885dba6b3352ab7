"""Draw pictures of a training's validation for TensorBoard."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from synboost_monai.distributed import is_main_process
from synboost_monai.structures import STRUCTURES


class PictureGrid:
    """Write a picture to TensorBoard for the first batch of every `interval`-th validation or training epoch.

    Subclasses define the picture: `picture(engine)` -> (3, H, W) in [0, 1], or None for no picture.

    Args:
        writer: writer of TensorBoard.
        tag: name of the picture.
        interval: see above.
        num_images: largest number of images in one picture.
    """

    def __init__(self, writer: Any, tag: str = "pictures", interval: int = 1, num_images: int = 4) -> None:
        self.writer = writer
        self.tag = tag
        self.interval = interval
        self.num_images = num_images
        self._picture: Tensor | None = None
        self._num_runs = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._draw)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def picture(self, engine: Engine) -> Tensor | None:
        raise NotImplementedError

    def _forget(self, engine: Engine) -> None:
        self._picture = None
        self._is_due = self._num_runs % self.interval == 0
        self._num_runs += 1

    def _draw(self, engine: Engine) -> None:
        if self._picture is None and self._is_due and is_main_process():
            self._picture = self.picture(engine)

    def _write(self, engine: Engine) -> None:
        if self._picture is not None:
            self.writer.add_image(self.tag, self._picture, global_step=engine.state.epoch)


class SegmentationPictures(PictureGrid):
    """Show image, experts' masks and predicted masks in rows, the first images of the batch in columns.

    The validator's output must be decollated, with `image`, `label` (S, N, N) and `pred_masks` (S, N, N).
    """

    def picture(self, engine: Engine) -> Tensor | None:
        columns = []
        for output in engine.state.output[: self.num_images]:
            grey = output["image"].detach().float().cpu().mean(dim=0, keepdim=True)
            grey = (grey - grey.min()) / (grey.max() - grey.min()).clamp_min(1e-6)
            rows = [grey.expand(3, -1, -1), overlay(grey, output["label"]), overlay(grey, output["pred_masks"])]
            columns.append(torch.cat(rows, dim=1))
        return torch.cat(columns, dim=2)


def overlay(grey: Tensor, masks: Tensor, opacity: float = 0.45) -> Tensor:
    """Draw masks (S, H, W) in the structures' colours on a grey image (1, H, W) in [0, 1], and return (3, H, W)."""
    picture = grey.expand(3, -1, -1).clone()
    for structure, mask in zip(STRUCTURES, masks.detach().cpu() > 0.5):
        colour = torch.tensor(structure.colour)[:, None, None] / 255
        picture = torch.where(mask, (1 - opacity) * picture + opacity * colour, picture)
    return picture
