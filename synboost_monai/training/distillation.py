"""Train a diffusion model that draws an image in one to four evaluations, from one that needs twenty-five.

Multistep consistency distillation (Heek et al. 2024, https://arxiv.org/abs/2403.06807, algorithm 2, without its noise correction). The
timesteps of the fast samplers, t_0 = 0 < ... < t_23, are divided into segments. From any timestep of a segment the student learns to jump
to the segment's lower end, which is the timestep below it, or the clean image: the jump has to end where it would end one step further
down, to which the teacher leads with one step of DDIM. Sampling is DDIM with one step a segment (`timestep_spacing` "segments").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from synboost_monai.diffusion import DiffusionPrepareBatch, NoiseSchedule, guide
from synboost_monai.diffusion.samplers import segment_ends
from synboost_monai.inferers import SemanticDiffusionTrainInferer


class DistillationPrepareBatch:
    """Make one training task of the student from a batch: noisy images, and the clean images that its jumps should aim at.

    Args:
        teacher: the trained network, in eval mode.
        average: averaged copy of the student, which jumps from the teacher's step on.
        inferer: calls both, in the precision of the training.
        prepare: makes the noisy images; its timesteps are replaced.
        num_segments: evaluations that the student needs for an image: 1, 2, 3, 4, 6, 8, 12 or 24.
        guidance_scale: guidance of the teacher, which becomes a part of the student; 1: none. Other values need a teacher that was
            trained with label dropping.
    """

    def __init__(
        self,
        teacher: nn.Module,
        average: nn.Module,
        inferer: SemanticDiffusionTrainInferer,
        prepare: DiffusionPrepareBatch,
        num_segments: int = 4,
        guidance_scale: float = 1.0,
    ) -> None:
        self.teacher, self.average, self.inferer, self.prepare = teacher.eval(), average, inferer, prepare
        self.schedule: NoiseSchedule = prepare.schedule
        self.timesteps, self.ends = segment_ends(self.schedule, num_segments)
        self.guidance_scale = guidance_scale

    @torch.no_grad()
    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor], tuple[()], dict[str, Tensor]]:
        """Return x_t; `target` (B, C, H, W), `x_t` and `timesteps` for `DistillationLoss`; and arguments of the inferer."""
        _, drawn, _, arguments = self.prepare(batchdata, device, non_blocking, **kwargs)
        x_0, eps = drawn["x_0"], drawn["eps"]
        number = torch.randint(0, len(self.timesteps), (len(x_0),))
        t, end = self.timesteps[number].to(x_0.device), self.ends[number].to(x_0.device)
        below = self.timesteps[(number - 1).clamp(min=0)].to(x_0.device)
        below = torch.where(number.to(x_0.device) == 0, -1, below)  # -1: the clean image

        x_t = self.schedule.q_sample(x_0, t, eps)
        condition = {key: value for key, value in arguments.items() if key != "timesteps"}
        x_below = self._moved(x_t, t, below, self._teacher(x_t, t, condition))
        # the jump on from there; where the step has reached the end of the segment already, nothing is left of it
        onward = self.inferer(x_below, self.average, below.clamp(min=0), **condition)[:, : x_0.shape[1]]
        jumped = self._moved(x_below, below, end, onward)
        x_end = torch.where((below == end).reshape(-1, 1, 1, 1), x_below, jumped)

        # the clean image for which DDIM's step from x_t to the end gives x_end
        alpha_t, sigma_t = self._levels(t, x_0)
        alpha, sigma = self._levels(end, x_0)
        target = (x_end - sigma / sigma_t * x_t) / (alpha - alpha_t * sigma / sigma_t)
        targets = {"target": target.clamp(-1, 1), "x_t": x_t, "timesteps": t}
        return x_t, targets, (), {**condition, "timesteps": t}

    def _teacher(self, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Return the teacher's predicted noise, (B, C, H, W)."""
        output = self.inferer(x_t, self.teacher, t, **condition)
        if self.guidance_scale != 1:
            empty = {**condition, "label_onehot": torch.zeros_like(condition["label_onehot"])}
            without = self.inferer(x_t, self.teacher, t, **empty)
            output = guide(output, without, self.guidance_scale, x_t.shape[1])
        return output[:, : x_t.shape[1]]

    def _moved(self, x: Tensor, t: Tensor, to: Tensor, eps: Tensor) -> Tensor:
        """Return images moved from timesteps t to others by DDIM, with clipped clean images (Song et al. 2021, eq. 12)."""
        alpha_t, sigma_t = self._levels(t, x)
        alpha, sigma = self._levels(to, x)
        x_0 = ((x - sigma_t * eps) / alpha_t).clamp(-1, 1)
        return alpha * x_0 + sigma * (x - alpha_t * x_0) / sigma_t.clamp(min=1e-6)

    def _levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the share of signal and noise at timesteps (B,), to broadcast over images; 1 and 0 at -1."""
        kept = self.schedule.alphas_cumprod.to(t.device)[t.clamp(min=0)]
        kept = torch.where(t < 0, torch.ones_like(kept), kept).reshape(-1, *[1] * (like.ndim - 1))
        return kept.sqrt().float(), (1 - kept).sqrt().float()


class DistillationLoss(nn.Module):
    """Compute the distance of the student's clean images from their targets: pseudo-Huber (Song and Dhariwal 2024, eq. 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = NoiseSchedule.cosine()

    def forward(self, model_output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the mean over the batch.

        Args:
            model_output: (B, 2C, H, W), of which the first half is the predicted noise.
            targets: `target` and `x_t` (B, C, H, W), `timesteps` (B,), as `DistillationPrepareBatch` returns them.
        """
        x_t = targets["x_t"]
        x_0 = self.schedule.predict_x_0(x_t, targets["timesteps"], model_output[:, : x_t.shape[1]].float())
        squares = (x_0 - targets["target"]).square().flatten(1).sum(1)
        c = 0.00054 * (x_t[0].numel()) ** 0.5
        return ((squares + c**2).sqrt() - c).mean()
