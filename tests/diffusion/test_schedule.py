"""Test the noise schedule: closed forms, worked by hand, diffusers."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from synboost_monai.diffusion import NoiseSchedule


def test_cosine_schedule_is_its_closed_form_in_float64() -> None:
    schedule = NoiseSchedule.cosine()

    def level(s: float) -> float:
        return math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = torch.tensor([level((t + 1) / 1000) / level(0) for t in range(999)], dtype=torch.float64)
    torch.testing.assert_close(schedule.alphas_cumprod[:-1], expected, rtol=1e-11, atol=0)
    assert schedule.betas[-1] == 0.999  # clipped
    assert schedule.alphas_cumprod[-1] == pytest.approx(2.4288e-9, rel=1e-3)
    assert 1 - schedule.alphas_cumprod[0] == pytest.approx(4.1288e-05, rel=1e-3)


def test_cosine_schedule_agrees_with_diffusers_to_float32() -> None:
    reference = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    torch.testing.assert_close(NoiseSchedule.cosine().alphas_cumprod.float(), reference, rtol=2e-5, atol=1e-6)


def test_posterior_by_hand() -> None:
    schedule = NoiseSchedule([0.2, 0.5])  # a = 0.8, 0.4
    torch.testing.assert_close(schedule.alphas_cumprod, torch.tensor([0.8, 0.4], dtype=torch.float64))
    torch.testing.assert_close(schedule.posterior_variance[1], torch.tensor(0.5 * 0.2 / 0.6, dtype=torch.float64))
    x_0, x_t, t = torch.full((1, 1, 1, 1), 1.0), torch.full((1, 1, 1, 1), 2.0), torch.tensor([1])
    expected = 0.5 * 0.8**0.5 / 0.6 * 1 + 0.2 * 0.5**0.5 / 0.6 * 2
    assert schedule.posterior_mean(x_0, x_t, t).item() == pytest.approx(expected, rel=1e-6)
    v = torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2)
    log_variance = schedule.learned_log_variance(v, t).flatten()
    torch.testing.assert_close(log_variance.exp(), torch.tensor([0.1 / 0.6, 0.5]))


def test_predict_x_0_undoes_q_sample() -> None:
    schedule = NoiseSchedule.cosine()
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 4, 3, 8, 8, generator=generator)
    t = torch.tensor([0, 10, 500, 900])
    x_t = schedule.q_sample(x_0, t, eps)
    assert not torch.allclose(x_t[2], x_0[2], atol=0.1)
    torch.testing.assert_close(schedule.predict_x_0(x_t, t, eps), x_0, rtol=0, atol=2e-5)


@pytest.mark.parametrize("t", [-1, 10])
def test_timesteps_outside_the_schedule_are_refused(t: int) -> None:
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match=r"timesteps must be 0 \.\.\. 9"):
        NoiseSchedule.cosine(10).q_sample(x, torch.tensor([t]), x)


def test_impossible_betas_are_refused() -> None:
    with pytest.raises(ValueError, match=r"each in \(0, 1\]"):
        NoiseSchedule([0.1, 1.5])
