"""Implement the equations of diffusion: noise schedule, loss and samplers. A network is a callable here."""

from synboost_monai.diffusion.losses import HybridLoss
from synboost_monai.diffusion.prepare import DiffusionPrepareBatch
from synboost_monai.diffusion.samplers import SAMPLERS, SamplerOptions, create_sampler, guide, sample
from synboost_monai.diffusion.schedule import NoiseSchedule

__all__ = [
    "SAMPLERS",
    "DiffusionPrepareBatch",
    "HybridLoss",
    "NoiseSchedule",
    "SamplerOptions",
    "create_sampler",
    "guide",
    "sample",
]
