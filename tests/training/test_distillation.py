"""Test the training of few-step students: its targets, and that jumps which are right have no loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from synboost_monai.diffusion import DiffusionPrepareBatch, NoiseSchedule, create_sampler
from synboost_monai.diffusion.samplers import NUM_SEGMENTED, log_snr_timesteps, segment_ends
from synboost_monai.inferers import SemanticDiffusionTrainInferer
from synboost_monai.training import DistillationLoss, DistillationPrepareBatch

SCHEDULE = NoiseSchedule.cosine()


class KnowsTheImage(nn.Module):
    """Predict the noise that is in x_t if the clean image has the grey of the label map: what a perfect network would."""

    def __init__(self, per_class: float = 0.0) -> None:
        super().__init__()
        self.per_class = per_class
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, label_onehot: Tensor, class_labels: Tensor | None = None) -> Tensor:
        self.seen.append(t)
        kept = SCHEDULE.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        eps = ((x - kept.sqrt() * image_of(label_onehot, self.per_class)) / (1 - kept).sqrt()).float()
        return torch.cat([eps, torch.zeros_like(eps)], 1)


def image_of(label_onehot: Tensor, shift: float = 0.0) -> Tensor:
    greys = torch.tensor([-0.9, -0.4, 0.1, 0.5, 0.8]).reshape(1, 5, 1, 1)
    return (label_onehot * greys).sum(1, keepdim=True) + shift


def batch_of(number: int) -> dict[str, Tensor]:
    maps = torch.randint(0, 5, (number, 6, 6), generator=torch.Generator().manual_seed(0))
    onehot = nn.functional.one_hot(maps, 5).permute(0, 3, 1, 2).float()
    return {"image": image_of(onehot), "label_onehot": onehot}


@pytest.mark.parametrize("num_segments", [1, 2, 4, 24])
def test_the_target_of_a_perfect_teacher_and_student_is_the_image(num_segments: int) -> None:
    """All steps of DDIM then lie on the straight way to it, wherever the segment ends."""
    torch.manual_seed(0)
    network, batch = KnowsTheImage(), batch_of(48)
    prepare = DistillationPrepareBatch(
        network, network, SemanticDiffusionTrainInferer(), DiffusionPrepareBatch(), num_segments
    )
    x_t, targets, _, arguments = prepare(batch)
    torch.testing.assert_close(targets["target"], batch["image"], rtol=0, atol=2e-4)
    assert len(set(arguments["timesteps"].tolist())) > 12 and torch.equal(arguments["timesteps"], targets["timesteps"])
    output = network(x_t, arguments["timesteps"], arguments["label_onehot"])
    assert DistillationLoss()(output, targets) < 1e-3
    wrong = KnowsTheImage(0.1)(x_t, arguments["timesteps"], arguments["label_onehot"])
    assert DistillationLoss()(wrong, targets) == pytest.approx(0.1 * 6, rel=1e-2)  # the root of 36 squares of 0.1


def test_the_student_learns_the_teachers_step_and_its_own_jump_from_there() -> None:
    """The step goes one timestep down by the teacher, the rest of the way by the student; at the end of a segment by the teacher alone."""
    torch.manual_seed(1)
    teacher, student = KnowsTheImage(), KnowsTheImage(0.1)
    prepare = DistillationPrepareBatch(teacher, student, SemanticDiffusionTrainInferer(), DiffusionPrepareBatch(), 2)
    batch = batch_of(64)
    _, targets, _, arguments = prepare(batch)
    timesteps, _ = segment_ends(SCHEDULE, 2)
    number = torch.searchsorted(timesteps, arguments["timesteps"])
    assert torch.equal(teacher.seen[0], arguments["timesteps"])
    assert torch.equal(student.seen[0], timesteps[(number - 1).clamp(min=0)])
    is_at_end = number % 12 == 0
    off = (targets["target"] - batch["image"]).abs().amax((1, 2, 3))
    assert off[is_at_end].max() < 1e-3 and off[~is_at_end].min() > 1e-3


def test_guidance_of_the_teacher_becomes_the_students() -> None:
    """eps_uncond + s (eps_cond - eps_uncond), as in sampling."""
    torch.manual_seed(2)
    network, batch = KnowsTheImage(), batch_of(8)
    prepare = DistillationPrepareBatch(
        network, network, SemanticDiffusionTrainInferer(), DiffusionPrepareBatch(), 24, guidance_scale=1.5
    )
    _, targets, _, _ = prepare(batch)
    expected = (1.5 * batch["image"]).clamp(-1, 1)  # the image of an empty label map is 0 here
    torch.testing.assert_close(targets["target"], expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("num_segments", [1, 2, 3, 4, 6, 8])
def test_sampling_takes_the_first_timestep_of_each_segment(num_segments: int) -> None:
    every = log_snr_timesteps(SCHEDULE, NUM_SEGMENTED)
    chosen = create_sampler("ddim", SCHEDULE, num_segments, timestep_spacing="segments").timesteps.tolist()
    assert chosen == every[:: NUM_SEGMENTED // num_segments] and len(chosen) == num_segments
    timesteps, ends = segment_ends(SCHEDULE, num_segments)
    jumps = dict(zip(timesteps.tolist(), ends.tolist()))
    assert [jumps[t] for t in chosen] == [*chosen[1:], -1]  # a jump ends where the next begins


@pytest.mark.parametrize("number", [0, 5, 25])
def test_segments_must_be_of_equal_length(number: int) -> None:
    with pytest.raises(ValueError, match=f"must divide 24, as 1, 2, 3, 4, 6 and 8 do, got {number}"):
        segment_ends(SCHEDULE, number)
