"""Define the noise schedule: how much of an image is left at each timestep, in float64, and the Gaussians that follow from it.

T timesteps, t = 0 is the least noise. Equation numbers: Ho et al. 2020 (DDPM); Nichol and Dhariwal 2021 (improved DDPM).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_BETA = 0.999
"""Largest beta of the cosine schedule (improved DDPM, section 3.2): keeps alphas_cumprod above 0 at t = T-1."""


class NoiseSchedule:
    """Hold betas and everything that follows from them, as float64 tables of shape (T,).

    Float64 because 1 - alphas_cumprod is 4e-5 at t = 0 of the cosine schedule: float32 tables are off by 1e-3 there.

    Attributes:
        betas: variance added at each step.
        alphas_cumprod: share of the clean image's variance left at t, decreasing.
        alphas_cumprod_prev: alphas_cumprod one step earlier; 1 at t = 0.
        posterior_variance: variance of q(x_{t-1} | x_t, x_0), eq. 7 of DDPM; 0 at t = 0.
        posterior_log_variance: log of posterior_variance, with the value of t = 1 at t = 0.
        half_log_snr: lambda_t = log(sqrt(a_t) / sqrt(1 - a_t)), decreasing.
    """

    def __init__(self, betas: Sequence[float] | Tensor) -> None:
        self.betas = torch.as_tensor(betas, dtype=torch.float64)
        if self.betas.ndim != 1 or len(self.betas) < 2 or not ((self.betas > 0) & (self.betas <= 1)).all():
            raise ValueError(
                f"schedule.py: betas must be (T,) with T >= 2 and each in (0, 1], got shape {tuple(self.betas.shape)}"
            )
        self.alphas_cumprod = torch.cumprod(1 - self.betas, dim=0)
        self.alphas_cumprod_prev = torch.cat([self.betas.new_ones(1), self.alphas_cumprod[:-1]])
        self.posterior_variance = self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)
        self.posterior_log_variance = torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]]).log()
        self.half_log_snr = 0.5 * (self.alphas_cumprod.log() - (1 - self.alphas_cumprod).log())

    @classmethod
    def cosine(cls, num_train_timesteps: int = 1000) -> NoiseSchedule:
        """Make the published schedule: a(s) = cos^2(pi/2 (s + 0.008) / 1.008), betas 1 - a((t+1)/T) / a(t/T) (improved DDPM, eq. 17)."""
        level = [
            math.cos((t / num_train_timesteps + 0.008) / 1.008 * math.pi / 2) ** 2
            for t in range(num_train_timesteps + 1)
        ]
        return cls([min(1 - after / before, MAX_BETA) for before, after in zip(level[:-1], level[1:])])

    @property
    def num_train_timesteps(self) -> int:
        """Return T."""
        return len(self.betas)

    def at(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        """Look up values of a (T,) table at the timesteps of a batch, as float32 that broadcasts over `like`."""
        return table.to(t.device)[t].float().reshape(-1, *[1] * (like.ndim - 1))

    def q_sample(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Noise clean images to timestep t in one step.

        x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps, with a_t = alphas_cumprod[t]  (DDPM, eq. 4).

        Args:
            x_0: images, (B, C, H, W), in [-1, 1].
            t: timesteps, (B,), int64, 0 = least noise.
            eps: standard normal noise, shape of `x_0`.
        Returns:
            x_t, shape of `x_0`.
        Raises:
            ValueError: if any t is outside 0 ... T-1.
        """
        if t.min() < 0 or t.max() >= self.num_train_timesteps:
            raise ValueError(
                f"schedule.py: timesteps must be 0 ... {self.num_train_timesteps - 1}, got "
                f"{int(t.min())} ... {int(t.max())}; use the schedule that the timesteps were drawn for"
            )
        signal = self.at(self.alphas_cumprod.sqrt(), t, x_0)
        noise = self.at((1 - self.alphas_cumprod).sqrt(), t, x_0)
        return signal * x_0 + noise * eps

    def predict_x_0(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Compute the clean image that x_t and its noise imply: the inverse of `q_sample`. Not clipped."""
        a_t = self.alphas_cumprod
        return self.at((1 / a_t).sqrt(), t, x_t) * x_t - self.at((1 / a_t - 1).sqrt(), t, x_t) * eps

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Compute the mean of q(x_{t-1} | x_t, x_0)  (DDPM, eq. 7)."""
        remaining = 1 - self.alphas_cumprod
        of_x_0 = self.betas * self.alphas_cumprod_prev.sqrt() / remaining
        of_x_t = (1 - self.alphas_cumprod_prev) * (1 - self.betas).sqrt() / remaining
        return self.at(of_x_0, t, x_0) * x_0 + self.at(of_x_t, t, x_t) * x_t

    def learned_log_variance(self, v: Tensor, t: Tensor) -> Tensor:
        """Compute log variance of p(x_{t-1} | x_t): between the posterior's (v = -1) and beta_t (v = 1)  (improved DDPM, eq. 15)."""
        fraction = (v + 1) / 2
        return fraction * self.at(self.betas.log(), t, v) + (1 - fraction) * self.at(self.posterior_log_variance, t, v)
