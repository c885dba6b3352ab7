"""Sample images from noise with a network that predicts the noise.

Two choices define a sampler: the timesteps at which the network is evaluated, and the formula that leads from one to the next.

**Timesteps.** On the cosine schedule evenly spaced timesteps are a trap: with 25 of them the last evaluation is at t = 40, where
noise of standard deviation 0.08 is left, and the jump from there to the image erases all weaker texture: the speckle. The
fast samplers here use integer timesteps (the only ones the network was trained on) evenly spaced in log signal-to-noise ratio,
from lambda = -5.1 to t = 0, see `log_snr_timesteps`. The test of this module measures how much texture is kept.

**Formulas.** They come from diffusers' schedulers, through small subclasses, because the originals are not exact enough:

- `DDPMScheduler` keeps its tables in float32, where 1 - alphas_cumprod is off by 1e-3 near t = 0; a step at t = 1 then differs
  from the published one by 5e-4. With float64 tables the steps agree to rounding (`AncestralScheduler`).
- `DPMSolverMultistepScheduler` has the same tables, allows only evenly spaced or float timesteps, assumes images of 3 channels
  when the variance is learned, and clips through a quantile (`DPMSolverScheduler`).
- `DDIMScheduler` can step only between evenly spaced timesteps: `DDIMScheduler` here is our own, a dozen lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from synboost_monai.diffusion.schedule import NoiseSchedule

TIMESTEP_SPACINGS = ("log_snr", "segments", "linspace", "leading", "trailing")
"""Names of the timesteps' spacings: evenly in log signal-to-noise ratio, the last of each segment of these (for a network that was
distilled, `segment_ends`), or evenly in t (`even_timesteps`)."""

SAMPLERS = ("sde_dpmpp_2m", "dpmpp_2m", "ddim", "ancestral")
"""Names for `create_sampler`: DPM-Solver++ 2M in its stochastic form (default) and without noise, DDIM, published ancestral sampling."""

FIRST_HALF_LOG_SNR = -5.1
"""lambda at which the fast samplers start: 0.6 % of the signal's amplitude. Earlier timesteps hardly differ from noise, and
there the division by sqrt(a_t) magnifies up to 2e4 times (diffusers' advice for the cosine schedule, `lambda_min_clipped`)."""

NUM_SEGMENTED = 24
"""Number of timesteps between which a distilled network learns to jump."""
Predict = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, C, H, W), t (B,)) -> predicted noise and variance, (B, 2C, H, W)."""


def log_snr_timesteps(schedule: NoiseSchedule, num_inference_steps: int) -> list[int]:
    """List integer timesteps evenly spaced in lambda = log(sqrt(a_t) / sqrt(1 - a_t)), from lambda = -5.1 down to t = 0.

    Where lambdas are closer together than integer timesteps, which with the cosine schedule begins at 43 steps, neighbouring
    timesteps are taken instead, so that there are always as many as requested.

    Args:
        schedule: noise schedule of training.
        num_inference_steps: number of timesteps, 1 ... T.
    Returns:
        Strictly decreasing timesteps; the last is 0.
    """
    _check_num_steps(schedule, num_inference_steps)
    lambdas = schedule.half_log_snr
    wanted = torch.linspace(
        float(lambdas[0]), max(FIRST_HALF_LOG_SNR, float(lambdas[-1])), num_inference_steps, dtype=torch.float64
    )
    nearest = (lambdas[None] - wanted[:, None]).abs().argmin(dim=1).tolist()  # increasing, first 0
    timesteps: list[int] = []
    for index, t in enumerate(nearest):
        lowest = timesteps[-1] + 1 if timesteps else 0
        highest = schedule.num_train_timesteps - (num_inference_steps - index)  # leaves room for those that follow
        timesteps.append(min(max(t, lowest), highest))
    return timesteps[::-1]


def segment_ends(schedule: NoiseSchedule, num_segments: int) -> tuple[Tensor, Tensor]:
    """Divide the timesteps of the fast samplers into segments of equal length.

    Args:
        schedule: noise schedule of training.
        num_segments: number of segments, which divides `NUM_SEGMENTED`.
    Returns:
        all timesteps, increasing from 0, (NUM_SEGMENTED,); and for each the one below its segment, -1 (the clean image) for the first.
    Raises:
        ValueError: if the number does not divide `NUM_SEGMENTED`.
    """
    if num_segments < 1 or NUM_SEGMENTED % num_segments:
        raise ValueError(
            f"samplers.py: num_segments, which is num_inference_steps with timestep_spacing segments, must divide {NUM_SEGMENTED}, as "
            f"1, 2, 3, 4, 6 and 8 do, got {num_segments}"
        )
    timesteps = torch.tensor(log_snr_timesteps(schedule, NUM_SEGMENTED)[::-1])
    length = NUM_SEGMENTED // num_segments
    ends = torch.cat([torch.tensor([-1]), timesteps[length - 1 : -1 : length]])
    return timesteps, ends.repeat_interleave(length)


def even_timesteps(schedule: NoiseSchedule, num_inference_steps: int, timestep_spacing: str = "linspace") -> list[int]:
    """List evenly spaced timesteps.

    Args:
        schedule: noise schedule of training.
        num_inference_steps: number of timesteps, 1 ... T.
        timestep_spacing: diffusers' names. `linspace`: with both ends, T-1 and 0, as in published ancestral sampling;
            `leading`: from 0 in whole strides, so that T-1 is missed, as in published DDIM; `trailing`: from T-1 in
            strides, so that 0 is missed.
    Returns:
        Strictly decreasing timesteps.
    """
    _check_num_steps(schedule, num_inference_steps)
    total = schedule.num_train_timesteps
    if timestep_spacing == "linspace":
        stride = (total - 1) / max(num_inference_steps - 1, 1)
        return [round(index * stride) for index in range(num_inference_steps)][::-1]
    if timestep_spacing == "leading":
        return [index * (total // num_inference_steps) for index in range(num_inference_steps)][::-1]
    return [round(total - index * total / num_inference_steps) - 1 for index in range(num_inference_steps)]


class AncestralScheduler(DDPMScheduler):
    """Sample ancestrally with learned variance, as published  (DDPM, algorithm 2; improved DDPM, eq. 15).

    x_{t-1} = mean(x_0_hat, x_t) + exp(log_variance / 2) noise, x_0_hat clipped to [-1, 1], no noise after t = 0. With fewer
    steps than T, betas and posterior variance are those of the shorter chain (improved DDPM, section 4).
    """

    def __init__(self, schedule: NoiseSchedule, timesteps: Sequence[int]) -> None:
        super().__init__(
            num_train_timesteps=schedule.num_train_timesteps,
            trained_betas=schedule.betas.tolist(),
            variance_type="learned_range",
            clip_sample=True,
        )
        # float64: 0-dimensional, so they scale float32 images without changing the images' type
        self.betas, self.alphas_cumprod = schedule.betas, schedule.alphas_cumprod
        self.alphas = 1 - self.betas
        self.one = torch.tensor(1.0, dtype=torch.float64)
        self.set_timesteps(timesteps=list(timesteps))


class DPMSolverScheduler(DPMSolverMultistepScheduler):
    """Sample with DPM-Solver++ 2M (Lu et al. 2022, algorithm 2) at given integer timesteps, x_0_hat clipped to [-1, 1].

    The last step goes to the clean image. With `algorithm_type="sde-dpmsolver++"` the solver is the stochastic 2M.
    """

    def __init__(self, schedule: NoiseSchedule, timesteps: Sequence[int], algorithm_type: str = "dpmsolver++") -> None:
        super().__init__(
            num_train_timesteps=schedule.num_train_timesteps,
            trained_betas=schedule.betas.tolist(),
            algorithm_type=algorithm_type,
            solver_order=2,
            final_sigmas_type="zero",
        )
        self.set_timesteps(timesteps=list(timesteps))
        noise_to_signal = torch.exp(-schedule.half_log_snr[list(timesteps)])
        self.sigmas = torch.cat([noise_to_signal, noise_to_signal.new_zeros(1)])  # float64, exact at the ends

    def convert_model_output(
        self, model_output: Tensor, *args: Any, sample: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Compute x_0_hat from the predicted noise; variance channels, if present, are not used."""
        assert sample is not None  # diffusers passes it by keyword
        alpha, sigma = self._sigma_to_alpha_sigma_t(self.sigmas[self.step_index])
        return ((sample - sigma * model_output[:, : sample.shape[1]]) / alpha).clamp(-1, 1)


class DDIMScheduler:
    """Sample with DDIM at any timesteps (Song et al. 2021, eq. 12); x_0_hat is clipped and the noise derived from it, as published.

    Args:
        schedule: noise schedule of training.
        timesteps: strictly decreasing timesteps.
        eta: 0 is deterministic; 1 adds the noise of ancestral sampling.
    """

    def __init__(self, schedule: NoiseSchedule, timesteps: Sequence[int], eta: float = 0.0) -> None:
        self.timesteps = torch.tensor(list(timesteps))
        self.eta = eta
        levels = schedule.alphas_cumprod
        following = [*timesteps[1:], None]
        self._levels = {
            t: (levels[t], levels.new_ones(()) if after is None else levels[after])
            for t, after in zip(timesteps, following)
        }

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, generator: list[torch.Generator] | None = None
    ) -> SimpleNamespace:
        """Return `prev_sample`: the image at the next timestep of the list, or the clean image after the last."""
        a_t, a_next = self._levels[int(timestep)]
        eps = model_output[:, : sample.shape[1]]
        x_0 = ((sample - (1 - a_t).sqrt() * eps) / a_t.sqrt()).clamp(-1, 1)
        eps = (sample - a_t.sqrt() * x_0) / (1 - a_t).sqrt()
        sigma = self.eta * ((1 - a_next) / (1 - a_t)).sqrt() * (1 - a_t / a_next).sqrt()
        x = a_next.sqrt() * x_0 + (1 - a_next - sigma**2).clamp(min=0).sqrt() * eps
        if self.eta:
            x = x + sigma * randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return SimpleNamespace(prev_sample=x)


@dataclass(frozen=True)
class SamplerOptions:
    """Name a sampler and its timesteps; see `create_sampler` for what each means and refuses."""

    name: str = "sde_dpmpp_2m"
    num_inference_steps: int = 25
    eta: float = 0.0
    timestep_spacing: str | None = None
    start_strength: float = 1.0

    def create(self, schedule: NoiseSchedule) -> AncestralScheduler | DPMSolverScheduler | DDIMScheduler:
        """Create the sampler for one run of `sample`."""
        return create_sampler(
            self.name, schedule, self.num_inference_steps, self.eta, self.timestep_spacing, self.start_strength
        )


def create_sampler(
    name: str,
    schedule: NoiseSchedule,
    num_inference_steps: int,
    eta: float = 0.0,
    timestep_spacing: str | None = None,
    start_strength: float = 1.0,
) -> AncestralScheduler | DPMSolverScheduler | DDIMScheduler:
    """Create a sampler for one run of `sample` (it keeps the history of that run).

    Args:
        name: one of `SAMPLERS`.
        schedule: noise schedule of training.
        num_inference_steps: evaluations of the network; T with `ancestral` is the published sampling. With `start_strength` below 1
            the first ones are left out.
        eta: eta of `ddim`; the other samplers ignore it.
        timestep_spacing: one of `TIMESTEP_SPACINGS`; None: `log_snr`, and `linspace` for `ancestral`.
        start_strength: share of the timesteps, in (0, 1], from which sampling starts: below 1 the timesteps above it are left out, for
            images that start from other images noised so far (SDEdit, Meng et al. 2022).
    Raises:
        ValueError: if there is no such sampler or spacing, if too many steps are requested, or if `start_strength` leaves no timestep.
    """
    if name not in SAMPLERS:
        raise ValueError(f"samplers.py: no sampler is called {name!r}; there are {', '.join(SAMPLERS)}")
    spacing = timestep_spacing or ("linspace" if name == "ancestral" else "log_snr")
    if spacing not in TIMESTEP_SPACINGS:
        raise ValueError(
            f"samplers.py: timestep_spacing must be {', '.join(TIMESTEP_SPACINGS)} or null, got {spacing!r}"
        )
    if spacing == "log_snr":
        timesteps = log_snr_timesteps(schedule, num_inference_steps)
    elif spacing == "segments":
        every, _ = segment_ends(schedule, num_inference_steps)
        timesteps = every.tolist()[:: -(NUM_SEGMENTED // num_inference_steps)]
    else:
        timesteps = even_timesteps(schedule, num_inference_steps, spacing)
    if start_strength != 1:
        timesteps = [t for t in timesteps if t < start_strength * schedule.num_train_timesteps]
        if not (0 < start_strength < 1 and timesteps):
            raise ValueError(
                f"samplers.py: start_strength must be above 0 and at most 1, and leave a timestep, got {start_strength} with "
                f"{num_inference_steps} steps"
            )
    if name == "ancestral":
        return AncestralScheduler(schedule, timesteps)
    if name == "ddim":
        return DDIMScheduler(schedule, timesteps, eta)
    return DPMSolverScheduler(schedule, timesteps, "sde-dpmsolver++" if name == "sde_dpmpp_2m" else "dpmsolver++")


def sample(
    predict: Predict,
    sampler: AncestralScheduler | DPMSolverScheduler | DDIMScheduler,
    image_shape: Sequence[int],
    generators: Sequence[torch.Generator],
    device: torch.device | str = "cpu",
    on_images: Callable[[Tensor], None] | None = None,
    start: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Sample images from noise, or from other images with noise added.

    On a GPU the deterministic samplers never wait for the device within the loop; the others wait at each step for the noise
    drawn on the CPU.

    Each image draws its first noise and each step's noise, in this order, from its own generator. With one image and the
    sampler `ancestral` that is the published order of random numbers.

    Args:
        predict: the network, with its condition.
        sampler: sampler made by `create_sampler`.
        image_shape: (C, H, W).
        generators: one for each image, on the CPU (the same numbers on every device).
        device: the device that `predict` runs on.
        on_images: called after each step with the images as they are then, (B, C, H, W): x_t of the next timestep, after the last
            step the returned images; they must not be changed.
        start: (noise (B, C, H, W), first timesteps (B,)) -> images to start from, noised to these timesteps; None: the noise itself.
    Returns:
        Images (B, C, H, W), float32, in [-1, 1] except for rounding.
    """
    per_image = list(generators)
    x = randn_tensor((len(per_image), *image_shape), generator=per_image, device=torch.device(device))
    on_device = sampler.timesteps.to(x.device)  # all at once: nothing in the loop waits for the device
    if start is not None:
        x = start(x, on_device[0].expand(x.shape[0]))
    for index, t in enumerate(sampler.timesteps):  # on the CPU, as the formulas' numbers are
        model_output = predict(x, on_device[index].expand(x.shape[0]))
        x = sampler.step(model_output.float(), t, x, generator=per_image).prev_sample
        if on_images is not None:
            on_images(x)
    return x


def guide(conditional: Tensor, unconditional: Tensor, guidance_scale: float, num_channels: int) -> Tensor:
    """Apply classifier-free guidance: eps = eps_uncond + s (eps_cond - eps_uncond); the variance stays the conditional one.

    Args:
        conditional: network output with the label map, (B, 2C, H, W).
        unconditional: network output with the all-zero label map.
        guidance_scale: s; 1 is no guidance.
        num_channels: C, image channels.
    """
    eps = torch.lerp(unconditional[:, :num_channels], conditional[:, :num_channels], guidance_scale)
    return torch.cat([eps, conditional[:, num_channels:]], dim=1)


def _check_num_steps(schedule: NoiseSchedule, num_inference_steps: int) -> None:
    if not 1 <= num_inference_steps <= schedule.num_train_timesteps:
        raise ValueError(
            f"samplers.py: num_inference_steps must be 1 ... {schedule.num_train_timesteps} (the timesteps of training), "
            f"got {num_inference_steps}"
        )
