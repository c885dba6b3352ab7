"""Augmentation made for ultrasound: another patient, probe position and machine setting."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import Randomizable, RandomizableTransform, Transform
from torch import Tensor

from synboost_monai.labels import BACKGROUND_INDEX, STRUCTURES
from synboost_monai.transforms.array import masks_of_label_map

Item = Mapping[Hashable, Any]


class RandUltrasound(Randomizable, Transform):
    """Another patient, probe position and machine setting: one affine warp, then gamma, gain and noise. No flip: left is left.

    Args:
        rotation_degrees, log_scale, log_aspect, shift: the warp's limits; shift is a fraction of the square's side.
        log_gamma: limit of the logarithm of the exponent of the intensities in [0, 1].
        gain: limits of the factor of the intensities.
        noise: largest standard deviation of the noise, of intensities in [0, 1]; black pixels stay black.
    """

    def __init__(
        self,
        rotation_degrees: float = 15.0,
        log_scale: float = 0.2,
        log_aspect: float = 0.08,
        shift: float = 0.06,
        log_gamma: float = 0.4,
        gain: tuple[float, float] = (0.8, 1.2),
        noise: float = 0.04,
    ) -> None:
        self.rotation_degrees = rotation_degrees
        self.log_scale = log_scale
        self.log_aspect = log_aspect
        self.shift = shift
        self.log_gamma = log_gamma
        self.gain = gain
        self.noise = noise

    def __call__(self, image: Tensor, label_map: Tensor) -> tuple[Tensor, Tensor]:
        """Draw once and change image and label map alike.

        Args:
            image: (1, N, N), uint8.
            label_map: (1, N, N), uint8.
        Returns:
            image (1, N, N), float32 in [0, 1]; label map (1, N, N), uint8.
        """
        theta = self._draw_affine()
        gamma = float(np.exp(self.R.uniform(-self.log_gamma, self.log_gamma)))
        gain, noise_std = self.R.uniform(*self.gain), self.R.uniform(0, self.noise)
        generator = torch.Generator().manual_seed(int(self.R.randint(2**31)))

        channels = torch.cat([image.float() / 255, masks_of_label_map(label_map)])[None]  # (1, 1 + S, N, N)
        grid = F.affine_grid(theta[None], list(channels.shape), align_corners=False)
        warped = F.grid_sample(channels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
        grey = warped[:1].clamp_(1e-6, 1).pow_(gamma).mul_(gain)
        noise = torch.randn(grey.shape, generator=generator).mul_(noise_std)
        grey = torch.where(warped[:1] > 0.01, grey + noise, grey).clamp_(0, 1)
        share, winner = warped[1:].max(dim=0, keepdim=True)
        classes = torch.tensor([s.class_index for s in STRUCTURES], dtype=torch.uint8)[winner]
        background = (1 - warped[1:].sum(dim=0, keepdim=True)).clamp_min_(0)
        return grey, torch.where(share > background, classes, torch.tensor(BACKGROUND_INDEX, dtype=torch.uint8))

    def _draw_affine(self) -> Tensor:
        """(2, 3): where in the input each output pixel comes from, in grid_sample's coordinates."""
        angle = np.deg2rad(self.R.uniform(-self.rotation_degrees, self.rotation_degrees))
        scale = np.exp(self.R.uniform(-self.log_scale, self.log_scale))
        aspect = np.exp(self.R.uniform(-self.log_aspect, self.log_aspect))
        shift = self.R.uniform(-self.shift, self.shift, size=2) * 2  # the square is 2 wide
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = rotation @ np.diag([aspect, 1 / aspect]) / scale
        return torch.tensor(np.column_stack([linear, shift]), dtype=torch.float32)


class RandUltrasoundd(RandomizableTransform):
    """`RandUltrasound` on image and label map; `is_enabled: false` changes nothing (the published experiments had none)."""

    def __init__(
        self, image_key: str = "image", label_key: str = "label", is_enabled: bool = True, **limits: Any
    ) -> None:
        super().__init__(prob=1.0)
        self.image_key, self.label_key = image_key, label_key
        self.is_enabled = is_enabled
        self.augment = RandUltrasound(**limits)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandUltrasoundd:
        super().set_random_state(seed, state)
        self.augment.set_random_state(seed, state)
        return self

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        item = dict(data)
        if self.is_enabled:
            item[self.image_key], item[self.label_key] = self.augment(item[self.image_key], item[self.label_key])
        return item
