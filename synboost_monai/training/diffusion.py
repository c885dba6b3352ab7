"""Provide Ignite handlers for the semantic diffusion bundle: validation with fixed noise, and pictures of samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from synboost_monai.training.pictures import PictureGrid
from synboost_monai.transforms.label_map_array import colour_sector_label_map


class FixedNoise:
    """Give a validator the same timesteps and noise in every run, and restore torch's global generator afterwards.

    The validation losses of two epochs therefore differ only because of the weights.
    """

    def __init__(self, seed: int) -> None:
        self.seed = int(seed)
        self._state: Tensor | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._restore)

    def _start(self, engine: Engine) -> None:
        self._state = torch.random.get_rng_state()
        torch.manual_seed(self.seed)

    def _restore(self, engine: Engine) -> None:
        if self._state is not None:
            torch.random.set_rng_state(self._state)
            self._state = None


class DiffusionPictures(PictureGrid):
    """Show sector label map, synthetic image and real image in rows, the first images of the batch in columns.

    The noise of a column is always the same, so that epochs can be compared. If the batch has classes of view and phase
    (`class_label`), they are passed to the inferer.

    Args:
        inferer: draws the images, such as `SemanticDiffusionInferer` with few steps.
        writer, tag, interval, num_images: as in `PictureGrid`.
    """

    def __init__(
        self,
        inferer: Callable[..., Tensor],
        writer: Any,
        tag: str = "label map, synthetic, real",
        interval: int = 1,
        num_images: int = 4,
    ) -> None:
        super().__init__(writer, tag, interval, num_images)
        self.inferer = inferer

    def picture(self, engine: Engine) -> Tensor | None:
        batch = {key: value[: self.num_images] for key, value in engine.state.batch.items()}
        onehot = batch["label_onehot"].float().to(engine.state.device)
        told: dict[str, Tensor] = {}
        if "class_label" in batch:
            told["class_labels"] = torch.as_tensor(batch["class_label"]).to(engine.state.device)
        network = engine.network  # type: ignore[attr-defined]
        synthetic = self.inferer(onehot, network, seeds=torch.arange(len(onehot)), **told)
        columns = []
        for label_map, fake, real in zip(batch["sector_label_map"], synthetic, batch["image"]):
            colours = torch.from_numpy(colour_sector_label_map(np.asarray(label_map[0]))).permute(2, 0, 1) / 255
            greys = [((grey[:1].float().cpu() + 1) / 2).clamp(0, 1).expand(3, -1, -1) for grey in (fake, real)]
            columns.append(torch.cat([colours, *greys], dim=1))
        return torch.cat(columns, dim=2)


def loss_of(output: Mapping[str, Tensor]) -> Tensor:
    """Return the loss in a trainer's output that is not decollated (`monai.handlers.from_engine` would return a tuple of one)."""
    return output["loss"].detach()


def num_images(targets: Mapping[str, Tensor]) -> int:
    """Return the number of images in a batch of `DiffusionPrepareBatch`'s targets, which is its weight in the mean loss."""
    return len(targets["timesteps"])
