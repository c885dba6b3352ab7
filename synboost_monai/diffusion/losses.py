"""Compute the training loss of a network that predicts noise and variance."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from synboost_monai.diffusion.schedule import NoiseSchedule

GREY_LEVEL_HALF_WIDTH = 1 / 255
"""Half a grey level of an 8-bit image in [-1, 1]."""


class HybridLoss(nn.Module):
    """Compute the mean squared error of the noise, plus the variational bound, which trains the variance.

    loss = ||eps - eps_hat||^2 + vb_weight * L_vb  (Nichol and Dhariwal 2021, eq. 16). L_vb, in bits per pixel, is the KL
    divergence of q(x_{t-1} | x_t, x_0) from the network's Gaussian, and at t = 0 the discretised Gaussian's negative log
    likelihood. The predicted mean is detached in it, so that the bound trains the variance only. Each term is a mean over
    pixels, as published, and not multiplied by T: it is one image's bound at one timestep.

    Args:
        vb_weight: weight of the bound; 0 leaves the variance untrained (suits dpmpp_2m and ddim, which do not use it).
        min_snr_gamma: if given, weights the squared error with min(SNR, gamma) / SNR (Hang et al. 2023, eq. 6): less effort on
            the least noisy timesteps. None: all timesteps alike, as published.
        velocity_weighting: weights the squared error with 1 / a_t, which makes it the squared error of the velocity (Salimans
            and Ho 2022, eq. 7): more effort on the noisiest timesteps. For networks with `velocity_timesteps`; a network
            that predicts the noise itself cannot follow at t near T. False: as published.
    """

    def __init__(
        self,
        vb_weight: float = 1e-3,
        min_snr_gamma: float | None = None,
        velocity_weighting: bool = False,
    ) -> None:
        super().__init__()
        self.schedule = NoiseSchedule.cosine()
        self.vb_weight = vb_weight
        self.min_snr_gamma = min_snr_gamma
        self.velocity_weighting = velocity_weighting

    def forward(self, model_output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the mean of the loss over the batch.

        Args:
            model_output: (B, 2C, H, W): predicted noise, then v.
            targets: `x_0`, `x_t`, `eps` (B, C, H, W) and `timesteps` (B,), as `DiffusionPrepareBatch` returns them.
        Returns:
            Scalar.
        """
        return self.terms(model_output, targets)["loss"].mean()

    def terms(self, model_output: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `mse`, `vb` (bits) and `loss` of each image, (B,)."""
        x_0, x_t, eps, t = (targets[key] for key in ("x_0", "x_t", "eps", "timesteps"))
        channels = x_0.shape[1]
        if model_output.shape[1] != 2 * channels:
            raise ValueError(
                f"losses.py: the network gives {model_output.shape[1]} channels for images of {channels}; it must give "
                f"{2 * channels} (noise and variance): set out_channels"
            )
        eps_hat, v = model_output.float().split(channels, dim=1)
        mse = (eps - eps_hat).square().flatten(1).mean(1)
        if self.min_snr_gamma is not None:
            snr = self.schedule.at((2 * self.schedule.half_log_snr).exp(), t, mse)
            mse = mse * snr.clamp(max=self.min_snr_gamma) / snr
        if self.velocity_weighting:
            mse = mse / self.schedule.at(self.schedule.alphas_cumprod, t, mse)
        if self.vb_weight == 0:
            return {"mse": mse, "vb": torch.zeros_like(mse), "loss": mse}
        vb = self._variational_bound(x_0, x_t, t, eps_hat.detach(), v)
        return {"mse": mse, "vb": vb, "loss": mse + self.vb_weight * vb}

    def _variational_bound(self, x_0: Tensor, x_t: Tensor, t: Tensor, eps_hat: Tensor, v: Tensor) -> Tensor:
        """Compute one term of the bound for each image, in bits per pixel, (B,)."""
        schedule = self.schedule
        mean = schedule.posterior_mean(schedule.predict_x_0(x_t, t, eps_hat), x_t, t)
        log_variance = schedule.learned_log_variance(v, t)
        kl = normal_kl(
            schedule.posterior_mean(x_0, x_t, t),
            schedule.at(schedule.posterior_log_variance, t, x_0),
            mean,
            log_variance,
        )
        nll = -discretised_gaussian_log_likelihood(x_0, mean, 0.5 * log_variance)
        bits = torch.where(t == 0, nll.flatten(1).mean(1), kl.flatten(1).mean(1)) / math.log(2)
        return bits


def normal_kl(mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    """Compute KL(1 || 2), the divergence of N(mean_2, .) from N(mean_1, .), at each pixel, in nats."""
    difference = log_variance_2 - log_variance_1
    return 0.5 * (-1 + difference + torch.exp(-difference) + (mean_1 - mean_2).square() * torch.exp(-log_variance_2))


def discretised_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Compute the log probability of 8-bit grey levels under a Gaussian, at each pixel, in nats  (DDPM, eq. 13).

    Args:
        x: images of 256 grey levels, in [-1, 1]; the outermost levels take the tails.
        mean: Gaussian means, shape of `x`.
        log_scale: log standard deviations, shape of `x`.
    """
    inverse_scale = torch.exp(-log_scale)
    cdf_above = _normal_cdf(inverse_scale * (x - mean + GREY_LEVEL_HALF_WIDTH))
    cdf_below = _normal_cdf(inverse_scale * (x - mean - GREY_LEVEL_HALF_WIDTH))
    probability = torch.where(x < -0.999, cdf_above, torch.where(x > 0.999, 1 - cdf_below, cdf_above - cdf_below))
    return probability.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """Approximate the normal distribution function with tanh, as the published bound does, to get equal numbers."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
