"""Define the noise-predicting UNet of the Semantic Diffusion Model: the label map normalises the decoder, not the encoder.

Wang et al. 2022 (arXiv 2207.00050), as trained on echocardiograms by Stojanovski et al. 2023. The layers are our own code; the
names in the state dict are the published ones, so that published checkpoints load strictly. The default settings are the
published network at 256 px: 652,198,918 parameters in 766 tensors.

Shapes: B batch, C image channels, K classes of the label map, H and W the image's size, F feature channels,
h and w the feature grid of one level, E time embedding (4 x base channels).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from synboost_monai.networks.spade import (
    Modulation,
    Neighbourhoods,
    SPADEGroupNorm,
    TableModulation,
    distinct_neighbourhoods,
)
from synboost_monai.structures import NUM_SECTOR_CLASSES

CHANNEL_MULTIPLIERS = {512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)}
"""Published layout: image size in px -> factors of the base channels, finest level first."""

SPADE_FORMS = ("maps", "table")
"""Forms in which `condition` returns scale and shift: full maps, or tables over distinct neighbourhoods of the label map."""

TABLE_MIN_SIZE = 32
"""Smallest grid with tables, in px times `patch_size`. On smaller grids nearly every pixel has its own 5x5 neighbourhood
(echocardiograms: 18 % at 64 px, 2 % at 256 px). By size, not by content: an image must not depend on the others."""

AnyModulation = Modulation | TableModulation
"""Scale and shift of one SPADE norm, in either form."""


class Features(NamedTuple):
    """Hold what `encode` returns and `decode` takes."""

    embedding: Tensor
    """Time embedding, (B, E), or (1, E) shared by all images."""
    skips: list[Tensor]
    """Feature maps of the encoder, finest first."""
    x: Tensor
    """The noisy images, (B, C, H, W)."""
    timesteps: Tensor
    """Timesteps, (B,) or (1,)."""


def timestep_embedding(timesteps: Tensor, num_channels: int) -> Tensor:
    """Embed timesteps as sinusoids, cosines first: frequencies 10000^(-i / half), (B,) -> (B, num_channels) float32."""
    half = num_channels // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps[:, None].float() * torch.exp(-math.log(10000) * exponents)[None]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return F.pad(embedding, (0, num_channels % 2))


def cosine_levels(timesteps: Tensor, num_train_timesteps: int) -> tuple[Tensor, Tensor]:
    """Compute alpha = sqrt(a_t) and sigma = sqrt(1 - a_t) of the cosine schedule in closed form, each (B, 1, 1, 1) float32."""

    def angle(share: Tensor | float) -> Tensor:
        return torch.as_tensor((share + 0.008) / 1.008 * math.pi / 2, dtype=torch.float64)

    alpha = (angle((timesteps.double() + 1) / num_train_timesteps).cos() / angle(0.0).cos()).clamp(min=0)
    return tuple(level.float()[:, None, None, None] for level in (alpha, (1 - alpha**2).sqrt()))  # type: ignore[return-value]


class ResBlock(nn.Module):
    """Apply a residual block of the encoder; the time embedding scales and shifts the second norm. `down` halves the grid first."""

    def __init__(
        self, in_channels: int, out_channels: int, embedding_channels: int, num_groups: int, dropout: float, down: bool
    ) -> None:
        super().__init__()
        self.resize: nn.Module = nn.AvgPool2d(2) if down else nn.Identity()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(num_groups, in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_channels, 2 * out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(num_groups, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            _zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = _skip(in_channels, out_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, activation, conv = self.in_layers
        h = conv(self.resize(activation(norm(x))))
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        norm, *rest = self.out_layers
        h = torch.addcmul(shift, norm(h), 1 + scale)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(self.resize(x)) + h


class SPADEResBlock(nn.Module):
    """Apply a residual block of the middle or the decoder: both norms are SPADE. `up` doubles the grid between them."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        spade: Callable[[int], SPADEGroupNorm],
        dropout: float,
        up: bool,
    ) -> None:
        super().__init__()
        self.resize: nn.Module = nn.Upsample(scale_factor=2, mode="nearest") if up else nn.Identity()
        self.in_norm = spade(in_channels)
        self.in_layers = nn.Sequential(nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_channels, 2 * out_channels))
        self.out_norm = spade(out_channels)
        self.out_layers = nn.Sequential(
            nn.SiLU(), nn.Dropout(dropout), _zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        )
        self.skip_connection = _skip(in_channels, out_channels)

    def forward(
        self, x: Tensor, embedding: Tensor, in_modulation: AnyModulation, out_modulation: AnyModulation
    ) -> Tensor:
        activation, conv = self.in_layers
        h = conv(self.resize(activation(self.in_norm(x, in_modulation))))
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        # published order: the time's scale and shift follow the label map's
        h = torch.addcmul(shift, self.out_norm(h, out_modulation), 1 + scale)
        return self.skip_connection(self.resize(x)) + self.out_layers(h)


class AttentionBlock(nn.Module):
    """Apply self-attention over the pixels of one level; q, k, v are blocks of channels, then heads ("new" order)."""

    def __init__(self, num_channels: int, num_head_channels: int, num_groups: int) -> None:
        super().__init__()
        if num_channels % num_head_channels:
            raise ValueError(
                f"semantic_diffusion_unet.py: attention over {num_channels} channels cannot have heads of "
                f"{num_head_channels}; choose num_head_channels that divides it"
            )
        self.num_heads = num_channels // num_head_channels
        self.norm = nn.GroupNorm(num_groups, num_channels)
        self.qkv = nn.Conv1d(num_channels, 3 * num_channels, 1)
        self.proj_out = _zeroed(nn.Conv1d(num_channels, num_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x).reshape(batch, channels, height * width))  # (B, 3F, hw)
        q, k, v = qkv.reshape(batch, 3, self.num_heads, -1, height * width).transpose(3, 4).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v)  # (B, heads, hw, F / heads)
        h = self.proj_out(h.transpose(2, 3).reshape(batch, channels, height * width))
        return x + h.reshape(x.shape)


@dataclass(frozen=True)
class SemanticDiffusionSettings:
    """Hold the sizes and parts of a semantic diffusion UNet; the defaults are the published network."""

    image_size: int = 256
    """In px; selects the published layout (512, 256, 128, 64) and decides at which levels `attention_resolutions` are. Images of other
    sizes pass as well if they can be halved at each level."""
    in_channels: int = 3
    """Image channels C."""
    out_channels: int = 6
    """2 C with learned variance."""
    num_classes: int = NUM_SECTOR_CLASSES
    """K, channels of the label map."""
    base_channels: int = 256
    """Width of the finest level before its multiplier."""
    channel_multipliers: Sequence[float] | None = None
    """One per level, finest first; None: the published ones of `image_size`."""
    num_res_blocks: int = 2
    """Residual blocks per level in the encoder; the decoder has one more."""
    attention_resolutions: Sequence[int] = (32, 16, 8)
    """Sizes of the feature grid, in px, at which every block attends. The middle always does."""
    num_head_channels: int = 64
    """Channels of one attention head."""
    spade_channels: int = 128
    """Hidden width of each SPADE norm."""
    num_groups: int = 32
    """Groups of every normalisation; must divide the width of each level."""
    patch_size: int = 1
    """Pixels of each patch x patch block become channels at the input (pixel unshuffle) and pixels again at the output. 1 is the
    published setting; 2 or 4 is for small CPU models: an evaluation costs a quarter, or a sixteenth."""
    velocity_timesteps: int | None = None
    """None: the last layer gives the noise, as published. T of the cosine schedule: it gives the velocity v = alpha eps - sigma x_0
    (Salimans and Ho 2022), and the network returns the noise that follows from it, eps = sigma x_t + alpha v. Nearly pure noise then
    need not pass through the layers, and an error at high noise is not amplified in x_0: short trainings get the coarse structure right
    much sooner."""
    num_class_embeds: int | None = None
    """Number of classes that an image as a whole may have (its view and phase, say), class 0 being "unknown"; their embedding is added
    to the timestep's, and starts at zero. None: no classes, as published."""
    dropout: float = 0.0
    """Dropout probability in the residual blocks."""


class SemanticDiffusionUNet(nn.Module):
    """Predict the noise and the variance fraction of a noisy image from the image and its label map.

    The network has three parts, because a sampler calls them at different rates: `encode` at every timestep, `condition` once per
    label map, `decode` once for each condition at every timestep. `forward` is their composition.

    Args:
        settings: sizes and parts; the published ones by default.
        gradient_checkpointing: recompute blocks in the backward pass; less memory, about a third more time.
        channels_last: keep weights and features in channels-last memory order (faster on CPU and in half precision).
    """

    def __init__(
        self,
        settings: SemanticDiffusionSettings | None = None,
        *,
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        s = settings or SemanticDiffusionSettings()
        widths = [int(s.base_channels * multiplier) for multiplier in _multipliers(s.image_size, s.channel_multipliers)]
        _check_widths(widths, s.num_groups)
        self.in_channels, self.out_channels, self.num_classes = s.in_channels, s.out_channels, s.num_classes
        self.base_channels = s.base_channels
        self.patch_size = s.patch_size
        self.velocity_timesteps = s.velocity_timesteps
        self.size_multiple = s.patch_size * 2 ** (len(widths) - 1)
        self.gradient_checkpointing = gradient_checkpointing
        self.channels_last = channels_last
        grid = s.image_size // s.patch_size
        attends = [grid // 2**level in s.attention_resolutions for level in range(len(widths))]
        embedding = 4 * s.base_channels

        def attention(channels: int) -> AttentionBlock:
            return AttentionBlock(channels, s.num_head_channels, s.num_groups)

        def spade(channels: int) -> SPADEGroupNorm:
            return SPADEGroupNorm(channels, s.num_classes, s.spade_channels, s.num_groups)

        self.time_embed = nn.Sequential(
            nn.Linear(s.base_channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.num_class_embeds = s.num_class_embeds
        if s.num_class_embeds is not None:
            self.class_embedding = _zeroed(nn.Embedding(s.num_class_embeds, embedding))

        # encoder: one list entry for each feature map that the decoder takes up again
        channels = widths[0]
        skips = [channels]
        self.input_blocks = nn.ModuleList(
            [nn.ModuleList([nn.Conv2d(s.in_channels * s.patch_size**2, channels, 3, padding=1)])]
        )
        for level, width in enumerate(widths):
            for _ in range(s.num_res_blocks):
                layers: list[nn.Module] = [ResBlock(channels, width, embedding, s.num_groups, s.dropout, down=False)]
                if attends[level]:
                    layers.append(attention(width))
                self.input_blocks.append(nn.ModuleList(layers))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                down = ResBlock(channels, channels, embedding, s.num_groups, s.dropout, down=True)
                self.input_blocks.append(nn.ModuleList([down]))
                skips.append(channels)

        self.middle_block = nn.ModuleList(
            [
                SPADEResBlock(channels, channels, embedding, spade, s.dropout, up=False),
                attention(channels),
                SPADEResBlock(channels, channels, embedding, spade, s.dropout, up=False),
            ]
        )

        # decoder: coarsest level first, each block joined with the encoder's feature map of the same size
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for index in range(s.num_res_blocks + 1):
                width = widths[level]
                layers = [SPADEResBlock(channels + skips.pop(), width, embedding, spade, s.dropout, up=False)]
                channels = width
                if attends[level]:
                    layers.append(attention(channels))
                if level and index == s.num_res_blocks:
                    layers.append(SPADEResBlock(channels, channels, embedding, spade, s.dropout, up=True))
                self.output_blocks.append(nn.ModuleList(layers))

        self.out = nn.Sequential(
            nn.GroupNorm(s.num_groups, channels),
            nn.SiLU(),
            _zeroed(nn.Conv2d(channels, s.out_channels * s.patch_size**2, 3, padding=1)),
        )
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, x: Tensor, timesteps: Tensor, class_labels: Tensor | None = None) -> Features:
        """Compute the features of a noisy image; they do not depend on the label map.

        Args:
            x: noisy images, (B, C, H, W).
            timesteps: (B,), or (1,) shared by all images; 0 ... T-1, may be fractional.
            class_labels: (B,) int64, 0 ... num_class_embeds - 1; None: 0, unknown. Ignored if the network has no classes.
        Raises:
            ValueError: if H or W cannot be halved at every level, or x does not have C channels.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"semantic_diffusion_unet.py: expected images (B, {self.in_channels}, H, W), got {tuple(x.shape)}; "
                "set in_channels, or change the images"
            )
        if x.shape[2] % self.size_multiple or x.shape[3] % self.size_multiple:
            raise ValueError(
                f"semantic_diffusion_unet.py: image is {tuple(x.shape[2:])} px but this network needs multiples of "
                f"{self.size_multiple} px; change image_size"
            )
        embedding = self.time_embed(timestep_embedding(timesteps, self.base_channels).to(self._dtype()))
        if self.num_class_embeds is not None:
            known = class_labels if class_labels is not None else timesteps.new_zeros(len(x), dtype=torch.int64)
            embedding = embedding + self.class_embedding(known)
        h = self._memory_format(F.pixel_unshuffle(x.to(self._dtype()), self.patch_size))
        skips = []
        for block in self.input_blocks:
            for layer in block:
                h = self._run(layer, h, embedding) if isinstance(layer, ResBlock) else layer(h)
            skips.append(h)
        return Features(embedding, skips, x, timesteps)

    def condition(self, label_onehot: Tensor, spade: str = "maps") -> list[AnyModulation]:
        """Compute scale and shift of every SPADE norm, in the order in which `decode` uses them.

        The label map goes through the network's own grid first: with patch_size 2 a class covers a fraction of a patch.
        An all-zero map is the "no condition" input of classifier-free guidance.

        Args:
            label_onehot: (B, K, H, W), at the image's size.
            spade: `maps`: full maps, (B, F, h, w) each. `table`: on grids of `TABLE_MIN_SIZE` and more, a table over the distinct
                5x5 neighbourhoods: the same numbers for a fraction of the memory and FLOPs, but `decode` has to look them up. Needs
                one-hot label maps, and reads their values (waits for the device).
        Returns:
            Two modulations per SPADE block.
        Raises:
            ValueError: if the label map does not have K channels, or is not one-hot where that is needed.
        """
        if label_onehot.ndim != 4 or label_onehot.shape[1] != self.num_classes:
            raise ValueError(
                f"semantic_diffusion_unet.py: expected label maps (B, {self.num_classes}, H, W) one-hot, got "
                f"{tuple(label_onehot.shape)}; set num_classes, or change the label maps"
            )
        if spade not in SPADE_FORMS:
            raise ValueError(f"semantic_diffusion_unet.py: spade must be {' or '.join(SPADE_FORMS)}, got {spade!r}")
        top = label_onehot.to(self._dtype())
        if self.patch_size > 1:
            top = F.avg_pool2d(top, self.patch_size)
        levels: dict[int, tuple[Tensor, Neighbourhoods | None]] = {}  # halvings -> label map, neighbourhoods

        def level(halvings: int) -> tuple[Tensor, Neighbourhoods | None]:
            size = [side // 2**halvings for side in top.shape[2:]]
            # nearest, as published
            resized = top if halvings == 0 else F.interpolate(top, size=size, mode="nearest")
            if spade == "table" and min(size) >= TABLE_MIN_SIZE * self.patch_size:
                return resized, distinct_neighbourhoods(resized, self.patch_size**2)
            return self._memory_format(resized), None

        def modulate(norm: SPADEGroupNorm, halvings: int) -> AnyModulation:
            if halvings not in levels:
                levels[halvings] = level(halvings)
            resized, neighbourhoods = levels[halvings]
            if neighbourhoods is not None:
                return norm.table_modulation(neighbourhoods)
            if self.gradient_checkpointing and self.training:
                return checkpoint(norm.modulation, resized, use_reentrant=False)
            return norm.modulation(resized)

        modulations = []
        halvings = int(math.log2(self.size_multiple // self.patch_size))
        for block in self._spade_blocks():
            modulations.append(modulate(block.in_norm, halvings))
            halvings -= isinstance(block.resize, nn.Upsample)  # the second norm sees the doubled grid
            modulations.append(modulate(block.out_norm, halvings))
        return modulations

    def decode(self, features: Features, modulations: Sequence[AnyModulation]) -> Tensor:
        """Predict noise and variance fraction from the features and the modulations.

        Args:
            features: from `encode`; not changed, so that several conditions can share them.
            modulations: from `condition`, for B label maps, or 1 shared by all images; or from `join_modulations` for n B label maps:
                the features are then used n times.
        Returns:
            (B or n B, out_channels, H, W): predicted noise, then, with learned variance, v in about [-1, 1].
        """
        repeats = max(1, modulations[0].num_maps // len(features.x))
        remaining_modulations, remaining_skips = iter(modulations), list(features.skips)
        embedding, timesteps = features.embedding, features.timesteps
        if len(embedding) > 1:
            embedding = _repeated(embedding, repeats)
        if len(timesteps) > 1:
            timesteps = _repeated(timesteps, repeats)

        def run(layer: nn.Module, h: Tensor) -> Tensor:
            if isinstance(layer, SPADEResBlock):
                return self._run(layer, h, embedding, next(remaining_modulations), next(remaining_modulations))
            return layer(h)

        h = _repeated(remaining_skips[-1], repeats)
        for layer in self.middle_block:
            h = run(layer, h)
        for block in self.output_blocks:
            h = torch.cat([h, _repeated(remaining_skips.pop(), repeats)], dim=1)
            for layer in block:  # type: ignore[attr-defined]
                h = run(layer, h)
        output = F.pixel_shuffle(self.out(h), self.patch_size)
        if self.velocity_timesteps is None:
            return output
        velocity, variance = output.float().split([self.in_channels, self.out_channels - self.in_channels], dim=1)
        alpha, sigma = cosine_levels(timesteps, self.velocity_timesteps)
        x = _repeated(features.x, repeats)
        return torch.cat([sigma * x + alpha * velocity, variance], dim=1)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        label_onehot: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Compute `decode(encode(x, timesteps, class_labels), condition(label_onehot))`.

        Args:
            x: noisy images, (B, C, H, W).
            timesteps: (B,); None is timestep 0, so that tools which know only `network(image)` run.
            label_onehot: (B, K, H, W); None is the all-zero map: no condition.
            class_labels: (B,); see `encode`.
        Returns:
            (B, out_channels, H, W).
        """
        if timesteps is None:
            timesteps = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        if label_onehot is None:
            label_onehot = x.new_zeros(x.shape[0], self.num_classes, *x.shape[2:])
        if label_onehot.shape[2:] != x.shape[2:]:
            raise ValueError(
                f"semantic_diffusion_unet.py: image is {tuple(x.shape[2:])} px but label map is "
                f"{tuple(label_onehot.shape[2:])}; bring both to one size"
            )
        return self.decode(self.encode(x, timesteps, class_labels), self.condition(label_onehot))

    def _spade_blocks(self) -> Iterator[SPADEResBlock]:
        """Yield SPADE blocks in the order in which `decode` runs them."""
        for block in [self.middle_block, *self.output_blocks]:
            for layer in block:  # type: ignore[union-attr]
                if isinstance(layer, SPADEResBlock):
                    yield layer

    def _run(self, block: nn.Module, *inputs: Any) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _dtype(self) -> torch.dtype:
        return self.time_embed[0].weight.dtype

    def _memory_format(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


def _zeroed(module: nn.Module) -> nn.Module:
    """Set a module's parameters to zero, so that a residual branch starts at zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def _repeated(x: Tensor, repeats: int) -> Tensor:
    """Repeat the batch several times."""
    return x if repeats == 1 else x.repeat(repeats, *[1] * (x.ndim - 1))


def _skip(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)


def _multipliers(image_size: int, channel_multipliers: Sequence[float] | None) -> Sequence[float]:
    if channel_multipliers is not None:
        return channel_multipliers
    if image_size not in CHANNEL_MULTIPLIERS:
        raise ValueError(
            f"semantic_diffusion_unet.py: no published layout for image_size {image_size}; choose one of "
            f"{', '.join(map(str, CHANNEL_MULTIPLIERS))} or give channel_multipliers"
        )
    return CHANNEL_MULTIPLIERS[image_size]


def _check_widths(widths: Sequence[int], num_groups: int) -> None:
    for width in widths:
        if width % num_groups:
            raise ValueError(
                f"semantic_diffusion_unet.py: a level of {width} channels cannot be normalised in {num_groups} groups; "
                "change base_channels, channel_multipliers or num_groups"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "published": {},
    "small": {
        "image_size": 128,
        "in_channels": 1,
        "out_channels": 2,
        "base_channels": 64,
        "channel_multipliers": (1, 2, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (),
        "num_head_channels": 32,
        "spade_channels": 32,
        "num_groups": 8,
        "patch_size": 4,
        "velocity_timesteps": 1000,
        "channels_last": True,
    },
    "tiny": {
        "image_size": 32,
        "in_channels": 1,
        "out_channels": 2,
        "base_channels": 8,
        "channel_multipliers": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (),
        "num_head_channels": 8,
        "spade_channels": 8,
        "num_groups": 4,
        "patch_size": 2,
    },
}
"""Preset -> what differs from the published network: one for the published network, one for two CPU cores, one for tests."""


def create_semantic_diffusion_unet(preset: str = "published", **overrides: Any) -> SemanticDiffusionUNet:
    """Create a semantic diffusion UNet by preset: `published` (256 px, 3 channels), `small` (CPU, 1 channel), `tiny` (tests).

    Args:
        preset: name in `PRESETS`.
        overrides: fields of `SemanticDiffusionSettings` and arguments of `SemanticDiffusionUNet` that differ from the preset.
    Raises:
        ValueError: if there is no such preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"semantic_diffusion_unet.py: no preset is called {preset!r}; there are {', '.join(PRESETS)}")
    values = {**PRESETS[preset], **overrides}
    modes = {name: values.pop(name) for name in ("gradient_checkpointing", "channels_last") if name in values}
    return SemanticDiffusionUNet(SemanticDiffusionSettings(**values), **modes)
