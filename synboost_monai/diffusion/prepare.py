"""Turn a batch of images and label maps into one training task of a denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from synboost_monai.diffusion.schedule import NoiseSchedule


class DiffusionPrepareBatch:
    """Draw timesteps and noise and noise the images: a `prepare_batch` for MONAI's trainers and evaluators.

    All random numbers come from torch's global CPU generator, so the same seed gives the same training on every device. In a
    distributed training each process must have seeded it differently (`handlers.EpochSeed` does): each draws for its own images.

    Args:
        schedule: noise schedule; None: cosine, T = 1000.
        label_drop_probability: probability of replacing a label map by the all-zero one, for classifier-free guidance. The
            class of view and phase is kept: guidance pulls towards the label map alone. 0: as published for echocardiograms.
        image_channels: repeat one-channel images to this many channels; None: leave them as they are.
        stratified_timesteps: draw one timestep from each of B equal parts of 0 ... T-1. Each is still uniform over all, but
            the loss varies less from batch to batch. False: independent, as published.
        flip_probability: probability of mirroring an image and its label map, left and right. 0.5: as published.
    """

    def __init__(
        self,
        schedule: NoiseSchedule | None = None,
        label_drop_probability: float = 0.0,
        image_channels: int | None = None,
        stratified_timesteps: bool = False,
        flip_probability: float = 0.0,
    ) -> None:
        for name, value in (
            ("label_drop_probability", label_drop_probability),
            ("flip_probability", flip_probability),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"prepare.py: {name} is a probability, 0 ... 1, got {value}")
        self.schedule = schedule or NoiseSchedule.cosine()
        self.label_drop_probability = label_drop_probability
        self.image_channels = image_channels
        self.stratified_timesteps = stratified_timesteps
        self.flip_probability = flip_probability

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor], tuple[()], dict[str, Tensor]]:
        """Make one training task.

        Args:
            batchdata: holds `image` (B, 1 or C, H, W), in [-1, 1], `label_onehot` (B, K, H, W) and, if the network takes classes of view
                and phase, `class_label` (B,).
            device: the device that the task is moved to.
            non_blocking: as in `Tensor.to`.
            kwargs: more arguments of `Tensor.to`.
        Returns:
            x_t; targets (`x_0`, `x_t`, `eps`, `timesteps`) for `HybridLoss`; no positional arguments; keyword arguments of the
            inferer: `timesteps`, `label_onehot`, and `class_labels` (B,) int64 if the batch has classes.
        """
        x_0 = self._plain(batchdata["image"])
        label_onehot = self._plain(batchdata["label_onehot"])
        if self.image_channels is not None and x_0.shape[1] != self.image_channels:
            x_0 = x_0.expand(-1, self.image_channels, -1, -1)
        batch = x_0.shape[0]
        t = self._draw_timesteps(batch)
        eps = torch.randn(x_0.shape)
        if self.label_drop_probability:
            keep = torch.rand(batch, 1, 1, 1) >= self.label_drop_probability
            label_onehot = label_onehot * keep.to(label_onehot.device)
        if self.flip_probability:
            is_flipped = (torch.rand(batch, 1, 1, 1) < self.flip_probability).to(x_0.device)
            x_0 = torch.where(is_flipped, x_0.flip(-1), x_0)
            label_onehot = torch.where(is_flipped.to(label_onehot.device), label_onehot.flip(-1), label_onehot)

        def to(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=non_blocking, **kwargs)

        x_0, eps, t = to(x_0), to(eps), t.to(device)
        x_t = self.schedule.q_sample(x_0, t, eps)
        targets = {"x_0": x_0, "x_t": x_t, "eps": eps, "timesteps": t}
        arguments = {"timesteps": t, "label_onehot": to(label_onehot)}
        if "class_label" in batchdata:
            class_labels = torch.as_tensor(batchdata["class_label"]).as_subclass(torch.Tensor)
            arguments["class_labels"] = class_labels.to(device, torch.int64, non_blocking=non_blocking)
        return x_t, targets, (), arguments

    def _draw_timesteps(self, batch: int) -> Tensor:
        steps = self.schedule.num_train_timesteps
        if not self.stratified_timesteps:
            return torch.randint(0, steps, (batch,))
        part = (torch.arange(batch) + torch.rand(batch, dtype=torch.float64)) / batch
        return (part * steps).long().clamp(max=steps - 1)[torch.randperm(batch)]

    @staticmethod
    def _plain(x: Tensor) -> Tensor:
        """Convert to float32 without MetaTensor's bookkeeping, which every layer of a network would carry along."""
        return x.as_subclass(torch.Tensor).float()
