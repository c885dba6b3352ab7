"""From a batch of images and label maps to one training task of a denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from synboost_monai.diffusion.schedule import NoiseSchedule


class DiffusionPrepareBatch:
    """A `prepare_batch` for MONAI's trainers and evaluators: draws timesteps and noise, noises the images.

    All random numbers come from torch's global CPU generator, so the same seed gives the same training on every device.

    Args:
        schedule: noise schedule; None: cosine, T = 1000.
        label_drop_probability: probability of replacing a label map by the all-zero one, for classifier-free guidance.
            0: published for echocardiograms.
        image_key: key of the images, (B, 1 or C, H, W), in [-1, 1].
        label_key: key of the label maps, (B, K, H, W), one-hot.
        image_channels: repeat one-channel images to this many; None: as they come.
        stratified_timesteps: draw one timestep from each of B equal parts of 0 ... T-1. Each is still uniform over all, but
            the loss varies less from batch to batch. False: published, independent.
    """

    def __init__(
        self,
        schedule: NoiseSchedule | None = None,
        label_drop_probability: float = 0.0,
        image_key: str = "image",
        label_key: str = "label_onehot",
        image_channels: int | None = None,
        stratified_timesteps: bool = False,
    ) -> None:
        if not 0 <= label_drop_probability <= 1:
            raise ValueError(
                f"prepare.py: label_drop_probability is a probability, 0 ... 1, got {label_drop_probability}"
            )
        self.schedule = schedule or NoiseSchedule.cosine()
        self.label_drop_probability = label_drop_probability
        self.image_key = image_key
        self.label_key = label_key
        self.image_channels = image_channels
        self.stratified_timesteps = stratified_timesteps

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor], tuple[()], dict[str, Tensor]]:
        """One training task.

        Args:
            batchdata: holds `image_key` and `label_key`.
            device: where the task goes.
            non_blocking: as in `Tensor.to`.
            kwargs: more arguments of `Tensor.to`.
        Returns:
            x_t; targets (`x_0`, `x_t`, `eps`, `timesteps`) for `HybridLoss`; no positional arguments; keyword arguments of the
            inferer: `timesteps`, `label_onehot`.
        """
        x_0 = self._plain(batchdata[self.image_key])
        label_onehot = self._plain(batchdata[self.label_key])
        if self.image_channels is not None and x_0.shape[1] != self.image_channels:
            x_0 = x_0.expand(-1, self.image_channels, -1, -1)
        batch = x_0.shape[0]
        t = self._draw_timesteps(batch)
        eps = torch.randn(x_0.shape)
        if self.label_drop_probability:
            keep = torch.rand(batch, 1, 1, 1) >= self.label_drop_probability
            label_onehot = label_onehot * keep.to(label_onehot.device)

        def to(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=non_blocking, **kwargs)

        x_0, eps, t = to(x_0), to(eps), t.to(device)
        x_t = self.schedule.q_sample(x_0, t, eps)
        targets = {"x_0": x_0, "x_t": x_t, "eps": eps, "timesteps": t}
        return x_t, targets, (), {"timesteps": t, "label_onehot": to(label_onehot)}

    def _draw_timesteps(self, batch: int) -> Tensor:
        steps = self.schedule.num_train_timesteps
        if not self.stratified_timesteps:
            return torch.randint(0, steps, (batch,))
        part = (torch.arange(batch) + torch.rand(batch, dtype=torch.float64)) / batch
        return (part * steps).long().clamp(max=steps - 1)[torch.randperm(batch)]

    @staticmethod
    def _plain(x: Tensor) -> Tensor:
        """Float32 without MetaTensor's bookkeeping, which every layer of a network would drag along."""
        return x.as_subclass(torch.Tensor).float()
