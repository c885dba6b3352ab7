"""Provide MONAI inferers for the semantic diffusion model: one evaluation for training, and complete sampling.

B images, K classes, C image channels of the network.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from monai.inferers import Inferer
from torch import Tensor

from synboost_monai.diffusion import NoiseSchedule, SamplerOptions, guide, sample
from synboost_monai.inferers.compiled import CompiledDenoiser
from synboost_monai.networks.precision import autocast, mixed_dtype_named
from synboost_monai.networks.semantic_diffusion_unet import SPADE_FORMS, AnyModulation, SemanticDiffusionUNet
from synboost_monai.networks.spade import join_modulations


class SemanticDiffusionTrainInferer(Inferer):
    """Call the network once at given timesteps, for training and for the validation loss.

    Args:
        autocast_dtype: "bfloat16" to compute in it while weights and output stay float32; None for float32.
    Raises:
        ValueError: for any other value.
    """

    def __init__(self, autocast_dtype: str | None = None) -> None:
        if autocast_dtype == "float16":
            raise ValueError(
                "diffusion.py: autocast_dtype float16 would lose small gradients in training, as no loss is scaled here; use bfloat16"
            )
        self.autocast_dtype = mixed_dtype_named(autocast_dtype)

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        timesteps: Tensor,
        label_onehot: Tensor,
        class_labels: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Return the network's output as float32.

        Args:
            inputs: noisy images x_t, (B, C, H, W).
            network: a `SemanticDiffusionUNet`, which may be wrapped for several GPUs.
            timesteps: (B,).
            label_onehot: (B, K, H, W).
            class_labels: (B,), for a network with `num_class_embeds`.
        """
        with autocast(inputs.device, self.autocast_dtype):
            return network(inputs, timesteps, label_onehot, class_labels).float()


class _Part(NamedTuple):
    """Hold images that go through the network together."""

    label_onehot: Tensor
    seeds: Sequence[int]
    class_labels: Tensor | None
    num_images: int
    """Number of images that were asked for; the others fill the part up."""
    start_images: Tensor | None
    """Images that these start from, (B, 1, H, W); None: noise."""


class SemanticDiffusionInferer(Inferer):
    """Draw one image for each label map.

    The modulations of a label map are computed once, and guidance shares one encoder pass between its two decoders, which
    run as one batch; the modulations of the all-zero label map are computed once as long as the network does not change.

    **The same seed gives the same image.** Each image's random numbers come from its own CPU generator. Libraries split sums
    according to the batch size and the number of threads, so the network always gets `images_at_once` images (the last group
    is filled up) and, on a CPU, `num_threads` threads, with several groups side by side. An image then depends only on its
    label map, its class, its seed and these two numbers: it is bit for bit the same for every batch size and any number of
    processes or cores, on one kind of processor. Another kind splits sums differently, and the last bits differ.

    Args:
        sampler: sampler and its timesteps; None: the default of `SamplerOptions`.
        guidance_scale: s of classifier-free guidance; 1: off, exactly the conditional model. Other values need a network
            trained with label dropping.
        image_channels: C of the network: 1, or 3 for published weights (their mean is the image).
        autocast_dtype: "bfloat16" to compute a float32 network in it. A network whose weights are bfloat16 (`to_inference`) is
            faster and does not need it. The image itself stays float32 in both cases.
        images_at_once: images that go through the network together.
        num_threads: threads for one group of images, on a CPU.
        spade: `maps` or `table`, see `SemanticDiffusionUNet.condition`.
        compile_network: let torch.compile generate code for the network (with CUDA graphs on a GPU).
    Attributes:
        on_images: called after each step of a group with its current images, (B, C, H, W), noise at first; possibly by several threads.
            It does not change the images that are drawn. An error that it raises ends the sampling.
    """

    def __init__(
        self,
        sampler: SamplerOptions | None = None,
        guidance_scale: float = 1.0,
        image_channels: int = 1,
        autocast_dtype: str | None = None,
        images_at_once: int = 4,
        num_threads: int = 1,
        spade: str = "maps",
        compile_network: bool = False,
    ) -> None:
        for name, value in (("images_at_once", images_at_once), ("num_threads", num_threads)):
            if value < 1:
                raise ValueError(f"diffusion.py: {name} must be at least 1, got {value}")
        if spade not in SPADE_FORMS:
            raise ValueError(f"diffusion.py: spade must be {' or '.join(SPADE_FORMS)}, got {spade!r}")
        self.schedule = NoiseSchedule.cosine()
        self.sampler = SamplerOptions() if sampler is None else sampler
        self.sampler.create(self.schedule)  # complain now, not after the network has loaded
        self.guidance_scale = guidance_scale
        self.image_channels = image_channels
        self.autocast_dtype = mixed_dtype_named(autocast_dtype)
        self.images_at_once = images_at_once
        self.num_threads = num_threads
        self.spade = spade
        self.compile_network = compile_network
        self.on_images: Callable[[Tensor], None] | None = None
        self._lock = threading.Lock()
        self._null: tuple[Any, list[AnyModulation]] | None = None
        self._compiled: CompiledDenoiser | None = None

    @torch.no_grad()
    def __call__(
        self,
        inputs: Tensor,
        network: SemanticDiffusionUNet,
        seeds: Tensor | None = None,
        class_labels: Tensor | None = None,
        start_images: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Return synthetic images.

        Args:
            inputs: label maps, (B, K, H, W), one-hot, on the network's device.
            network: network in eval mode.
            seeds: (B,), one per image; None: drawn from torch's global generator.
            class_labels: (B,), for a network with `num_class_embeds`; None: unknown.
            start_images: images to start from, (B, 1, H, W), in [-1, 1], for a sampler with `start_strength` below 1.
        Returns:
            (B, 1, H, W), float32, in [-1, 1].
        Raises:
            ValueError: if the numbers of label maps and of what belongs to them differ, or start images are missing or not wanted.
        """
        label_onehot = inputs.as_subclass(torch.Tensor)
        batch = len(label_onehot)
        if seeds is None:
            seeds = torch.randint(0, 2**63 - 1, (batch,))
        if (start_images is None) != (self.sampler.start_strength == 1):
            has = "no start images" if start_images is None else "start images"
            raise ValueError(
                f"diffusion.py: {has} were given, but start_strength is {self.sampler.start_strength}: images are needed below 1, and at "
                "1 sampling starts from noise"
            )
        for name, numbers in (("seeds", seeds), ("class_labels", class_labels), ("start_images", start_images)):
            if numbers is not None and len(numbers) != batch:
                raise ValueError(f"diffusion.py: {batch} label maps but {len(numbers)} {name}; give one a label map")
        parts = self._parts(label_onehot, seeds, class_labels, start_images)
        images = self._run(network, parts, label_onehot.device)
        return torch.cat(images).mean(dim=1, keepdim=True).clamp(-1, 1)

    def _parts(
        self, label_onehot: Tensor, seeds: Tensor, class_labels: Tensor | None, start_images: Tensor | None
    ) -> list[_Part]:
        parts = []
        for start in range(0, len(label_onehot), self.images_at_once):
            indices = list(range(start, min(start + self.images_at_once, len(label_onehot))))
            full = indices + indices[:1] * (self.images_at_once - len(indices))
            labels, starts = (
                None if of_all is None else of_all.as_subclass(torch.Tensor)[full].to(label_onehot.device)
                for of_all in (class_labels, start_images)
            )
            parts.append(_Part(label_onehot[full], [int(seeds[i]) for i in full], labels, len(indices), starts))
        return parts

    def _run(self, network: SemanticDiffusionUNet, parts: Sequence[_Part], device: torch.device) -> list[Tensor]:
        """Return the images of the parts: one part after another on a GPU, several at the same time on a CPU."""
        stop = threading.Event()

        if device.type != "cpu":
            # with several GPUs, generated code runs on the current one
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                return [self._sample(network, part, stop) for part in parts]
        available = torch.get_num_threads()
        workers = 1 if self.compile_network else max(1, min(len(parts), available // self.num_threads))
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(self.num_threads,))
        try:
            return list(pool.map(lambda part: self._sample(network, part, stop), parts))
        finally:
            stop.set()  # after an error or Ctrl-C the other threads end at their next step
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(available)

    @torch.no_grad()  # needed here too: gradients are switched off for each thread separately
    def _sample(self, network: SemanticDiffusionUNet, part: _Part, stop: threading.Event) -> Tensor:
        """Return images (B, C, H, W) for label maps that go through the network together.

        Raises:
            RuntimeError: at the first step after `stop` is set.
        """
        label_onehot = part.label_onehot
        with autocast(label_onehot.device, self.autocast_dtype):
            modulations = network.condition(label_onehot, self.spade)
            if self.guidance_scale != 1:
                null = self._null_modulations(network, label_onehot)
                modulations = join_modulations([modulations, null], len(label_onehot))
        denoise = self._denoiser(network, modulations)

        def predict(x: Tensor, timesteps: Tensor) -> Tensor:
            with autocast(x.device, self.autocast_dtype):
                # one timestep for all
                output = denoise(x, timesteps[:1], part.class_labels).float()
            if self.guidance_scale == 1:
                return output
            conditional, unconditional = output.chunk(2)
            return guide(conditional, unconditional, self.guidance_scale, self.image_channels)

        def after_step(x: Tensor) -> None:
            if stop.is_set():
                raise RuntimeError("diffusion.py: sampling was stopped")
            if self.on_images is not None:
                self.on_images(x[: part.num_images])

        def start(noise: Tensor, timesteps: Tensor) -> Tensor:
            assert part.start_images is not None
            return self.schedule.q_sample(part.start_images.expand_as(noise), timesteps, noise)

        images = sample(
            predict,
            self.sampler.create(self.schedule),
            (self.image_channels, *label_onehot.shape[2:]),
            [torch.Generator().manual_seed(seed) for seed in part.seeds],
            label_onehot.device,
            after_step,
            None if part.start_images is None else start,
        )
        return images[: part.num_images]

    def _denoiser(
        self, network: SemanticDiffusionUNet, modulations: Sequence[AnyModulation]
    ) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """Return a function (x_t, t (1,), classes) -> network output for these label maps."""
        if not self.compile_network:
            return lambda x, t, class_labels: network.decode(network.encode(x, t, class_labels), modulations)
        if self._compiled is None or self._compiled.network is not network:
            self._compiled = CompiledDenoiser(network)
        return self._compiled.with_modulations(modulations)

    def _null_modulations(self, network: SemanticDiffusionUNet, label_onehot: Tensor) -> list[AnyModulation]:
        """Return the modulations of the all-zero label map, the same for all images, computed once while the weights do not change."""
        weights = [(p.data_ptr(), p._version) for p in network.parameters()]
        key = (weights, label_onehot.shape[2:], label_onehot.device)
        with self._lock:
            if self._null is None or self._null[0] != key:
                self._null = key, network.condition(torch.zeros_like(label_onehot[:1]), self.spade)
            return self._null[1]
