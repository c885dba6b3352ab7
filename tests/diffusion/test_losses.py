"""Test the hybrid loss: golden numbers of the public code, closed forms, and which parts it trains."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from synboost_monai.diffusion import HybridLoss, NoiseSchedule
from synboost_monai.diffusion.losses import discretised_gaussian_log_likelihood, normal_kl

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "semantic_diffusion.json").read_text())


def waves(shape: tuple[int, ...], phase: float) -> Tensor:
    """Return sines in place of random numbers, the same on every version of torch."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 0.7 + phase).float().reshape(shape)


def formula_network(x: Tensor, t: Tensor) -> Tensor:
    """Predict noise and variance by a formula of image and timestep; the golden numbers were made with it."""
    s = t.float().reshape(-1, 1, 1, 1) / 1000
    eps = 0.6 * x * (1 - s) + torch.tanh(x + 0.3 * torch.roll(x, 1, -1)) * s + 0.05 * torch.sin(9 * x)
    return torch.cat([eps, torch.tanh(x - s)], 1)


def make_targets(channels: int = 3) -> dict[str, Tensor]:
    x_0 = ((waves((6, 3, 8, 8), 1.0) + 1) * 127.5).round() / 127.5 - 1
    eps = waves((6, 3, 8, 8), 2.0) * 1.4
    x_0, eps = x_0[:, :channels], eps[:, :channels]
    t = torch.tensor(GOLDEN["loss"]["timesteps"])
    return {"x_0": x_0, "x_t": NoiseSchedule.cosine().q_sample(x_0, t, eps), "eps": eps, "timesteps": t}


def test_terms_equal_the_public_codes() -> None:
    targets = make_targets()
    assert targets["timesteps"][0] == 0  # the discretised decoder is in it
    terms = HybridLoss().terms(formula_network(targets["x_t"], targets["timesteps"]), targets)
    for name in ("mse", "vb", "loss"):
        # 1e-4 for vb: a difference of nearly equal float32 terms
        expected = torch.tensor(GOLDEN["loss"][name])
        torch.testing.assert_close(terms[name], expected, rtol=1e-4 if name == "vb" else 1e-6, atol=1e-7, msg=name)


def test_loss_is_the_mean_over_images() -> None:
    targets = make_targets(channels=1)
    output = formula_network(targets["x_t"], targets["timesteps"])
    terms = HybridLoss().terms(output, targets)
    assert terms["loss"].shape == (6,)
    torch.testing.assert_close(HybridLoss()(output, targets), terms["loss"].mean())
    torch.testing.assert_close(terms["loss"], terms["mse"] + terms["vb"] / 1000)


def test_bound_trains_the_variance_only() -> None:
    targets = make_targets()
    output = formula_network(targets["x_t"], targets["timesteps"])
    gradients = {}
    for vb_weight in (0.0, 1e-3, 1.0):
        leaf = output.clone().requires_grad_()
        HybridLoss(vb_weight=vb_weight)(leaf, targets).backward()
        gradients[vb_weight] = leaf.grad
    assert torch.equal(gradients[0.0][:, :3], gradients[1.0][:, :3])
    assert not gradients[0.0][:, 3:].any()
    assert gradients[1e-3][:, 3:].any()
    torch.testing.assert_close(gradients[1e-3][:, 3:] * 1000, gradients[1.0][:, 3:])


def test_perfect_noise_has_zero_error_and_the_bound_of_its_variance() -> None:
    targets = make_targets(channels=1)
    output = torch.cat([targets["eps"], -torch.ones_like(targets["eps"])], 1)  # v = -1: the posterior's own variance
    terms = HybridLoss().terms(output, targets)
    assert not terms["mse"].any()
    assert terms["vb"][1:].abs().max() < 1e-4
    assert terms["vb"][0] > 0  # t = 0 is a likelihood, not a divergence


def test_min_snr_weights_the_error() -> None:
    targets = make_targets()
    output = formula_network(targets["x_t"], targets["timesteps"])
    ratio = HybridLoss(min_snr_gamma=5).terms(output, targets)["mse"] / HybridLoss().terms(output, targets)["mse"]
    a_t = NoiseSchedule.cosine().alphas_cumprod[targets["timesteps"]]
    snr = a_t / (1 - a_t)
    torch.testing.assert_close(ratio, (snr.clamp(max=5) / snr).float())
    assert ratio[-1] == 1 and ratio[0] < 1e-3


def test_velocity_weighting_is_the_error_of_the_velocity() -> None:
    targets = {name: value[:-1] for name, value in make_targets().items()}  # not the last, where 1 / a_t is large
    x_t, t = targets["x_t"], targets["timesteps"]
    output = formula_network(x_t, t)
    a_t = NoiseSchedule.cosine().alphas_cumprod[t].float().reshape(-1, 1, 1, 1)

    def velocity(eps: Tensor) -> Tensor:
        return (eps - (1 - a_t).sqrt() * x_t) / a_t.sqrt()  # v = sqrt(a) eps - sqrt(1 - a) x_0, x_0 from x_t and eps

    expected = (velocity(targets["eps"]) - velocity(output[:, :3])).square().flatten(1).mean(1)
    terms = HybridLoss(velocity_weighting=True).terms(output, targets)
    torch.testing.assert_close(terms["mse"], expected, rtol=1e-4, atol=0)


def test_divergence_by_hand_and_against_torch() -> None:
    assert normal_kl(*torch.tensor([1.0, 0.0, 0.0, 0.0])).item() == pytest.approx(0.5)
    mean_1, log_variance_1, mean_2, log_variance_2 = torch.tensor([0.3, -1.2, -0.4, 0.7])
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean_1, (log_variance_1 / 2).exp()),
        torch.distributions.Normal(mean_2, (log_variance_2 / 2).exp()),
    )
    torch.testing.assert_close(normal_kl(mean_1, log_variance_1, mean_2, log_variance_2), reference)


def test_grey_levels_have_total_probability_1() -> None:
    levels = torch.arange(256) / 127.5 - 1
    for mean, scale in [(0.0, 0.3), (0.95, 0.05), (-1.2, 0.01)]:
        log_likelihood = discretised_gaussian_log_likelihood(
            levels, torch.full_like(levels, mean), torch.full_like(levels, math.log(scale))
        )
        assert log_likelihood.exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_network_without_variance_is_refused() -> None:
    targets = make_targets(channels=1)
    with pytest.raises(ValueError, match="gives 1 channels for images of 1; it must give 2"):
        HybridLoss()(targets["eps"], targets)
