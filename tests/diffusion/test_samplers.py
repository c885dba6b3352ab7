"""Test samplers: golden numbers of the public code, diffusers, closed forms, and the Gaussian toy that shows lost texture."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler as DiffusersDDIM
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from synboost_monai.diffusion import NoiseSchedule, create_sampler, guide, sample
from synboost_monai.diffusion.samplers import (
    SAMPLERS,
    DDIMScheduler,
    DPMSolverScheduler,
    SamplerOptions,
    even_timesteps,
    log_snr_timesteps,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "semantic_diffusion.json").read_text())
SCHEDULE = NoiseSchedule.cosine()


def formula_network(x: Tensor, t: Tensor) -> Tensor:
    """Predict noise and variance by a formula of image and timestep; the golden numbers were made with it."""
    s = t.float().reshape(-1, 1, 1, 1) / 1000
    eps = 0.6 * x * (1 - s) + torch.tanh(x + 0.3 * torch.roll(x, 1, -1)) * s + 0.05 * torch.sin(9 * x)
    return torch.cat([eps, torch.tanh(x - s)], 1)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("num_steps", [1000, 20])
def test_ancestral_sampling_equals_the_public_codes(num_steps: int) -> None:
    """The whole chain runs, published and respaced, with learned variance, clipped, with the same random numbers in the same order."""
    golden = GOLDEN["ancestral"][str(num_steps)]
    image = sample(formula_network, create_sampler("ancestral", SCHEDULE, num_steps), (3, 8, 8), seeded(5))
    # 1e-5: float32 rounding of up to 1000 steps
    torch.testing.assert_close(image[0, 0, 0], torch.tensor(golden["first_row"]), rtol=0, atol=1e-5)
    assert image.mean().item() == pytest.approx(golden["mean"], abs=1e-5)
    assert image.std().item() == pytest.approx(golden["std"], abs=1e-5)


def test_ancestral_step_is_its_closed_form_in_float64() -> None:
    """At every timestep posterior mean of the clipped x_0 and interpolated log variance are worked out in float64."""
    x = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    sampler = create_sampler("ancestral", SCHEDULE, 1000)
    for t in (999, 500, 10, 2, 1, 0):
        output = formula_network(x, torch.tensor([t]))
        eps, v = output.double().chunk(2, 1)
        a_t, a_before, beta = SCHEDULE.alphas_cumprod[t], SCHEDULE.alphas_cumprod_prev[t], SCHEDULE.betas[t]
        x_0 = ((x - (1 - a_t).sqrt() * eps) / a_t.sqrt()).clamp(-1, 1)
        mean = (a_before.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - a_before) * x) / (1 - a_t)
        log_variance = (v + 1) / 2 * beta.log() + (1 - v) / 2 * SCHEDULE.posterior_log_variance[t]
        noise = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(7)) * (t > 0)
        step = sampler.step(output, torch.tensor(t), x, generator=seeded(7)).prev_sample
        torch.testing.assert_close(step.double(), mean + (log_variance / 2).exp() * noise, rtol=0, atol=2e-6)


def test_ancestral_agrees_with_diffusers_but_at_t_1() -> None:
    reference = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    sampler = create_sampler("ancestral", SCHEDULE, 1000)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in (998, 700, 300, 50, 20):
        output = formula_network(x, torch.tensor([t]))
        expected = reference.step(output, t, x, generator=seeded(1)[0]).prev_sample
        step = sampler.step(output, torch.tensor(t), x, generator=seeded(1)).prev_sample
        torch.testing.assert_close(step, expected, rtol=0, atol=5e-5)  # its tables are float32


def test_dpm_solver_agrees_with_diffusers_at_the_same_timesteps() -> None:
    """The denoiser is not clipped, and timesteps are away from 0, where diffusers' float32 tables are good enough."""
    timesteps = [990, 900, 700, 400, 200, 100]
    reference = DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", thresholding=True, sample_max_value=1.0)
    reference.set_timesteps(timesteps=timesteps)
    expected = sample(lambda x, t: formula_network(x, t)[:, :3], reference, (3, 8, 8), seeded(0))
    ours = sample(formula_network, DPMSolverScheduler(SCHEDULE, timesteps), (3, 8, 8), seeded(0))
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)


def test_dpm_solver_second_order_step_is_its_closed_form() -> None:
    timesteps = [600, 300, 100]
    sampler = DPMSolverScheduler(SCHEDULE, timesteps)
    x, outputs = torch.full((1, 1, 1, 1), 0.4), [torch.full((1, 1, 1, 1), 0.3), torch.full((1, 1, 1, 1), 0.5)]
    alpha = [SCHEDULE.alphas_cumprod[t].sqrt().item() for t in timesteps]
    sigma = [(1 - SCHEDULE.alphas_cumprod[t]).sqrt().item() for t in timesteps]
    lambdas = [math.log(a / s) for a, s in zip(alpha, sigma)]
    clean_0 = (0.4 - sigma[0] * 0.3) / alpha[0]
    x_1 = sigma[1] / sigma[0] * 0.4 - alpha[1] * math.expm1(lambdas[0] - lambdas[1]) * clean_0
    clean_1 = (x_1 - sigma[1] * 0.5) / alpha[1]
    h, before = lambdas[2] - lambdas[1], lambdas[1] - lambdas[0]
    combined = (1 + h / (2 * before)) * clean_1 - h / (2 * before) * clean_0
    x_2 = sigma[2] / sigma[1] * x_1 - alpha[2] * math.expm1(-h) * combined
    for t, output, expected in zip(sampler.timesteps, outputs, (x_1, x_2)):
        x = sampler.step(output, t, x).prev_sample
        assert x.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim_agrees_with_diffusers_at_even_timesteps(eta: float) -> None:
    reference = DiffusersDDIM(beta_schedule="squaredcos_cap_v2", timestep_spacing="leading", set_alpha_to_one=True)
    reference.set_timesteps(10)  # 900, 800 ... 0
    ours = DDIMScheduler(SCHEDULE, reference.timesteps.tolist(), eta)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in reference.timesteps[:-1]:  # at t = 0 its float32 tables are off
        output = formula_network(x, t[None])
        expected = reference.step(
            output[:, :1], int(t), x, eta=eta, use_clipped_model_output=True, generator=seeded(1)[0]
        ).prev_sample
        step = ours.step(output, t, x, seeded(1)).prev_sample
        torch.testing.assert_close(step, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_perfect_denoiser_gives_the_image_back(name: str) -> None:
    """If the network knows the image, every sampler must end at it."""
    target = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 1.8 - 0.9

    def know(x: Tensor, t: Tensor) -> Tensor:
        a_t = SCHEDULE.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        eps = ((x - a_t.sqrt() * target) / (1 - a_t).sqrt()).float()
        return torch.cat([eps, torch.zeros_like(eps)], 1)

    images = sample(know, create_sampler(name, SCHEDULE, 12, eta=0.5), (1, 4, 4), seeded(1, 2))
    torch.testing.assert_close(images, target, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_starts_from_an_image_noised_part_of_the_way(name: str) -> None:
    """The first evaluation sees the image at the first timestep below the strength, with the noise of the generators (DDPM, eq. 4)."""
    image = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 1.8 - 0.9
    seen: list[tuple[Tensor, Tensor]] = []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return formula_network(x, t)

    sampler = create_sampler(name, SCHEDULE, 12, start_strength=0.5)
    sample(predict, sampler, (1, 4, 4), seeded(1, 2), start=lambda noise, t: SCHEDULE.q_sample(image, t, noise))
    everything = create_sampler(name, SCHEDULE, 12).timesteps
    assert [int(t[0]) for _, t in seen] == [int(t) for t in everything if t < 500] and len(seen) < 12
    a_t = SCHEDULE.alphas_cumprod[seen[0][1][0]]
    noise = torch.stack([torch.randn(1, 4, 4, generator=g) for g in seeded(1, 2)])
    expected = a_t.sqrt() * image.double() + (1 - a_t).sqrt() * noise.double()
    torch.testing.assert_close(seen[0][0].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.2, float("nan")])
def test_a_start_that_is_no_share_of_the_way_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="start_strength must be above 0 and at most 1"):
        create_sampler("ddim", SCHEDULE, 10, start_strength=strength)


@pytest.mark.parametrize("name", SAMPLERS)
def test_image_depends_on_its_own_seed_alone(name: str) -> None:
    """This holds for any batch and order, with a network that works pixel by pixel.

    Not bit for bit: the last elements of a tensor may be computed by other instructions, and which these are depends on its size.
    """

    def images(*seeds: int) -> Tensor:
        sampler = create_sampler(name, SCHEDULE, 6, eta=1.0)
        return sample(formula_network, sampler, (1, 4, 4), seeded(*seeds))

    together = images(3, 1, 2)
    torch.testing.assert_close(together[[1, 2, 0]], images(1, 2, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(together[:1], images(3), rtol=0, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_default_timesteps_are_even_in_log_snr() -> None:
    timesteps = log_snr_timesteps(SCHEDULE, 25)
    assert timesteps[-1] == 0 and timesteps[:3] == [995, 993, 990]
    steps = SCHEDULE.half_log_snr[timesteps].diff()
    assert SCHEDULE.half_log_snr[timesteps[0]].item() == pytest.approx(-5.1, abs=0.1)
    assert 0.25 < steps.min() and steps.max() < 0.60  # 0.42 each, but for integer timesteps


@pytest.mark.parametrize("num_steps", [1, 2, 10, 25, 43, 200, 999, 1000])
def test_as_many_timesteps_as_asked(num_steps: int) -> None:
    for timesteps in (log_snr_timesteps(SCHEDULE, num_steps), even_timesteps(SCHEDULE, num_steps)):
        assert len(timesteps) == num_steps
        assert timesteps[-1] == 0 and timesteps[0] <= 999
        assert all(before > after for before, after in zip(timesteps, timesteps[1:]))


def test_published_respacing_has_both_ends() -> None:
    assert even_timesteps(SCHEDULE, 5) == [999, 749, 500, 250, 0]


def test_spacings_by_name() -> None:
    assert (
        even_timesteps(SCHEDULE, 25, "leading")[:2] == [960, 920] and even_timesteps(SCHEDULE, 25, "leading")[-1] == 0
    )
    assert (
        even_timesteps(SCHEDULE, 25, "trailing")[:2] == [999, 959]
        and even_timesteps(SCHEDULE, 25, "trailing")[-1] == 39
    )
    for spacing, diffusers_name in (("leading", "leading"), ("trailing", "trailing"), ("linspace", "linspace")):
        reference = DiffusersDDIM(num_train_timesteps=1000, timestep_spacing=diffusers_name)
        reference.set_timesteps(20)
        sampler = create_sampler("ddim", SCHEDULE, 20, timestep_spacing=spacing)
        assert sampler.timesteps.tolist() == reference.timesteps.tolist()
    default, log_snr = (create_sampler("dpmpp_2m", SCHEDULE, 25, timestep_spacing=name) for name in (None, "log_snr"))
    assert default.timesteps.tolist() == log_snr.timesteps.tolist()
    with pytest.raises(
        ValueError,
        match="timestep_spacing must be log_snr, segments, linspace, leading, trailing or null, got 'karras'",
    ):
        create_sampler("ddim", SCHEDULE, 20, timestep_spacing="karras")


class CopiesBetweenDevices(TorchDispatchMode):
    """Count copies from one device to another, where a host may have to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [a for a in (*args, result) if isinstance(a, Tensor) and a.ndim]  # plain numbers ride along
        self.number += len({tensor.device.type for tensor in tensors}) > 1
        return result


@pytest.mark.parametrize("name", ["dpmpp_2m", "ddim"])
def test_nothing_in_the_loop_waits_for_the_device(name: str) -> None:
    """On the device "meta", where numbers do not exist, any look at one is an error; copies are counted."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        assert x.device.type == t.device.type == "meta"
        return torch.cat([x, x], 1)

    copies = []
    for num_steps in (5, 25):
        with CopiesBetweenDevices() as counter:
            image = sample(predict, create_sampler(name, SCHEDULE, num_steps), (1, 8, 8), seeded(0, 1), "meta")
        assert image.shape == (2, 1, 8, 8)
        copies.append(counter.number)
    assert copies[0] == copies[1] > 0  # the first noise and the timesteps, however many steps


@pytest.mark.parametrize(
    ("name", "num_steps", "message"), [("euler", 10, "there are sde_dpmpp_2m"), ("ddim", 1001, "must be 1 ... 1000")]
)
def test_impossible_samplers_are_refused(name: str, num_steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_sampler(name, SCHEDULE, num_steps)


def test_guidance_moves_the_noise_and_keeps_the_variance() -> None:
    conditional, unconditional = (
        torch.tensor([2.0, 7.0]).reshape(1, 2, 1, 1),
        torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1),
    )
    assert guide(conditional, unconditional, 1.5, 1).flatten().tolist() == [2.5, 7.0]
    assert torch.equal(guide(conditional, unconditional, 1.0, 1), conditional)


class GaussianToy:
    """Make signals of 64 points whose spectrum falls as a power law, standard deviation 0.5 ... 0.02, and their exact denoiser."""

    num_points, num_signals = 64, 2048

    def __init__(self) -> None:
        frequencies = torch.arange(self.num_points, dtype=torch.float64)
        self.std = 0.5 * (1 + frequencies) ** (-math.log(25) / math.log(64))
        basis = torch.cos(math.pi / self.num_points * (frequencies[:, None] + 0.5) * frequencies) * math.sqrt(2 / 64)
        basis[:, 0] /= math.sqrt(2)
        self.basis = basis.float()  # orthonormal cosines

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        a_t = SCHEDULE.alphas_cumprod[t[0]]
        gain = ((1 - a_t).sqrt() / (a_t * self.std**2 + 1 - a_t)).float()  # E[eps | x_t] is linear, by frequency
        return ((x @ self.basis) * gain) @ self.basis.T

    def measure(self, sampler: DPMSolverMultistepScheduler) -> tuple[float, float]:
        """Return the Frechet distance to the truth, and the share of the variance kept in the 16 highest frequencies."""
        generators = seeded(*range(self.num_signals))
        spectrum = (sample(self.predict, sampler, (1, 1, 64), generators) @ self.basis).flatten(1).double()
        frechet = ((spectrum.std(0) - self.std) ** 2 + spectrum.mean(0) ** 2).sum().item()
        return frechet, (spectrum.std(0) / self.std).square()[-16:].mean().item()


def test_default_sampler_keeps_the_texture() -> None:
    frechet, high_frequency_variance = GaussianToy().measure(SamplerOptions().create(SCHEDULE))
    assert frechet < 1e-3
    assert high_frequency_variance > 0.9


def test_evenly_spaced_timesteps_would_lose_the_texture() -> None:
    """This is the reason for our timesteps: the same solver runs at diffusers' default ones."""

    class Clipped(DPMSolverMultistepScheduler):
        convert_model_output = DPMSolverScheduler.convert_model_output

    sampler = Clipped(beta_schedule="squaredcos_cap_v2")
    sampler.set_timesteps(25)
    frechet, high_frequency_variance = GaussianToy().measure(sampler)
    assert frechet > 1e-2
    assert high_frequency_variance < 0.2


@pytest.mark.parametrize("name", SAMPLERS)
def test_images_can_be_seen_after_each_step_and_are_the_same_bits(name: str) -> None:
    seen: list[Tensor] = []
    shown = sample(
        formula_network,
        create_sampler(name, SCHEDULE, 5),
        (1, 8, 8),
        seeded(1, 2),
        on_images=lambda x: seen.append(x.clone()),
    )
    assert torch.equal(shown, sample(formula_network, create_sampler(name, SCHEDULE, 5), (1, 8, 8), seeded(1, 2)))
    assert [x.shape for x in seen] == [(2, 1, 8, 8)] * 5 and torch.equal(seen[-1], shown)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(seen, seen[1:]))
