"""MONAI inferers of the semantic diffusion model: one training evaluation, and whole sampling.

B images, K classes, C image channels of the network.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from synboost_monai.diffusion import NoiseSchedule, create_sampler, guide, sample
from synboost_monai.networks.semantic_diffusion_unet import SemanticDiffusionUNet

__all__ = ["SemanticDiffusionInferer", "SemanticDiffusionTrainInferer"]


class SemanticDiffusionTrainInferer(Inferer):
    """Calls the network once at given timesteps: the inferer of training and of validation loss.

    Args:
        autocast_dtype: "bfloat16" to compute in it while weights and output stay float32; None for float32.
    """

    def __init__(self, autocast_dtype: str | None = None) -> None:
        self.autocast_dtype = _dtype(autocast_dtype)

    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor], timesteps: Tensor, label_onehot: Tensor, **_: Any
    ) -> Tensor:
        """Network output as float32.

        Args:
            inputs: noisy images x_t, (B, C, H, W).
            network: a `SemanticDiffusionUNet`, also wrapped for several GPUs.
            timesteps: (B,).
            label_onehot: (B, K, H, W).
        """
        with _autocast(inputs.device, self.autocast_dtype):
            return network(inputs, timesteps, label_onehot).float()


class SemanticDiffusionInferer(Inferer):
    """Draws one image for each label map.

    The label map's part of the network is computed once, and guidance shares one encoder pass between its two decoders. Each
    image's random numbers come from its own CPU generator, so an image depends on its label map and its seed alone, not on
    the batch it is in. What remains is rounding: sums are split differently for another batch size (float32: 1e-6 of an
    evaluation). `images_at_once=1` removes it: the same image bit for bit, at about 1.4 times the cost on a CPU.

    Args:
        sampler: `dpmpp_2m` (default), `sde_dpmpp_2m`, `ddim` or `ancestral` (published; with 1000 steps).
        num_inference_steps: evaluations of the network an image.
        guidance_scale: s of classifier-free guidance; 1: off, exactly the conditional model. Others need a network trained
            with label dropping.
        num_train_timesteps: T of the cosine schedule.
        image_channels: C of the network: 1, or 3 for published weights (their mean is the image).
        autocast_dtype: "bfloat16" to compute the network in it; the image itself stays float32.
        eta: noise of `ddim`.
        images_at_once: images that go through the network together; None: all of the batch.
        progress_bar: show a bar over the steps.
        on_step: called with (steps done, steps in all) after each step.
    """

    def __init__(
        self,
        sampler: str = "dpmpp_2m",
        num_inference_steps: int = 25,
        guidance_scale: float = 1.0,
        num_train_timesteps: int = 1000,
        image_channels: int = 1,
        autocast_dtype: str | None = None,
        eta: float = 0.0,
        images_at_once: int | None = None,
        progress_bar: bool = False,
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        self.schedule = NoiseSchedule.cosine(num_train_timesteps)
        create_sampler(
            sampler, self.schedule, num_inference_steps, eta
        )  # complain now, not after the network has loaded
        self.sampler = sampler
        self.num_inference_steps = num_inference_steps
        self.guidance_scale = guidance_scale
        self.image_channels = image_channels
        self.autocast_dtype = _dtype(autocast_dtype)
        self.eta = eta
        self.images_at_once = images_at_once
        self.progress_bar = progress_bar
        self.on_step = on_step

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: SemanticDiffusionUNet, seeds: Tensor | None = None, **_: Any) -> Tensor:
        """Synthetic images.

        Args:
            inputs: label maps, (B, K, H, W), one-hot, on the network's device.
            network: in eval mode.
            seeds: (B,), one an image; None: drawn from torch's global generator.
        Returns:
            (B, 1, H, W), float32, in [-1, 1].
        """
        label_onehot = inputs.as_subclass(torch.Tensor)
        batch = len(label_onehot)
        if seeds is None:
            seeds = torch.randint(0, 2**63 - 1, (batch,))
        if len(seeds) != batch:
            raise ValueError(f"diffusion.py: {batch} label maps but {len(seeds)} seeds; give one seed a label map")
        parts = zip(label_onehot.split(self.images_at_once or batch), seeds.split(self.images_at_once or batch))
        images = torch.cat([self._sample(network, *part) for part in parts])
        return images.mean(dim=1, keepdim=True).clamp(-1, 1)

    def _sample(self, network: SemanticDiffusionUNet, label_onehot: Tensor, seeds: Tensor) -> Tensor:
        """Images (B, C, H, W) of label maps that go through the network together."""
        with _autocast(label_onehot.device, self.autocast_dtype):
            maps = network.condition(label_onehot)
            null_maps = None
            if self.guidance_scale != 1:
                null_maps = network.condition(torch.zeros_like(label_onehot[:1]))  # alike for all images

        def predict(x: Tensor, timesteps: Tensor) -> Tensor:
            with _autocast(x.device, self.autocast_dtype):
                # one embedding for all: a matrix product rounds by the batch's size
                features = network.encode(x, timesteps[:1])
                conditional = network.decode(features, maps).float()
                if null_maps is None:
                    return conditional
                unconditional = network.decode(features, null_maps).float()
            return guide(conditional, unconditional, self.guidance_scale, self.image_channels)

        return sample(
            predict,
            create_sampler(self.sampler, self.schedule, self.num_inference_steps, self.eta),
            (self.image_channels, *label_onehot.shape[2:]),
            [torch.Generator().manual_seed(int(seed)) for seed in seeds],
            label_onehot.device,
            self._on_step(),
        )

    def _on_step(self) -> Callable[[int, int], None] | None:
        if not self.progress_bar:
            return self.on_step
        from tqdm import tqdm

        bar = tqdm(total=self.num_inference_steps, desc="sampling", leave=False)

        def on_step(done: int, total: int) -> None:
            bar.update()
            if done == total:
                bar.close()
            if self.on_step is not None:
                self.on_step(done, total)

        return on_step


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise ValueError(f"diffusion.py: autocast_dtype must be null, {' or '.join(dtypes)}, got {name!r}")
    return dtypes[name]


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
