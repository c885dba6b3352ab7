"""Augmentation made for ultrasound: another patient, probe position and machine setting.

What a machine adds to a picture depends on the depth under the probe and the angle of the beam, so those effects are drawn in
polar coordinates around the probe and laid over the sector. N: side of the square; D x B: depths x beams of the polar field.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import RandomizableTransform
from torch import Tensor

from synboost_monai.structures import BACKGROUND_INDEX, STRUCTURES
from synboost_monai.transforms.array import masks_of_label_map, plain

Item = Mapping[Hashable, Any]

BLACK = 0.01
"""Intensity in [0, 1] up to which a pixel is black: outside the sector, or a cavity without echo."""
TIME_GAIN_SLIDERS = 6
"""Depths at which the gain can be set, as the sliders of a machine."""
HAZE_DEPTH = 0.35
"""Depth, as a fraction of the sector's, in which haze falls to 1 / e."""
GRAIN_SIDE = 160
"""Side of the square, in pixels, for which the grain of the speckle is given; other sides have as much more or less."""


@dataclass(frozen=True)
class UltrasoundRanges:
    """Limits and chances of the effects of `RandUltrasoundd`; a limit of 0 switches an effect off.

    Raises:
        ValueError: if a limit is negative, or a probability outside 0 ... 1.
    """

    rotation_degrees: float = 15.0
    """Limit of the warp's rotation."""
    log_scale: float = 0.2
    """Limit of the logarithm of the warp's scale."""
    log_aspect: float = 0.08
    """Limit of the logarithm of the warp's stretch along one side."""
    shift: float = 0.06
    """Limit of the warp's shift, as a fraction of the square's side."""
    log_gamma: float = 0.4
    """Limit of the logarithm of the exponent of the intensities in [0, 1]."""
    gain: tuple[float, float] = (0.8, 1.2)
    """Limits of the factor of the intensities."""
    noise: float = 0.04
    """Largest standard deviation of the white noise, of intensities in [0, 1]; black pixels stay black."""
    depth_attenuation: float = 0.5
    """Limit of the logarithm of how much brighter the probe's end is than the far end (or the reverse): a time gain that does not match
    the tissue. It grows evenly with the depth; the middle stays as it is."""
    time_gain: float = 0.15
    """Limit of the logarithm of the gain at each of `TIME_GAIN_SLIDERS` depths; smooth in between."""
    speckle: float = 0.4
    """Largest share of multiplicative speckle: 1 is fully developed (Rayleigh amplitude of mean 1). Its grain is drawn too: 0.7 to 2 pixels
    along the beam, 1.5 to 4 across at half depth, wider below."""
    haze: float = 0.4
    """Largest opacity of a blotchy fog in front of the picture, which is strongest at the probe."""
    warp_probability: float = 1.0
    gain_probability: float = 1.0
    """Chance of gain and gamma."""
    depth_attenuation_probability: float = 0.5
    """Chance of attenuation and time gain."""
    speckle_probability: float = 0.5
    haze_probability: float = 0.3
    noise_probability: float = 1.0
    flip_probability: float = 0.0
    """Chance that left and right are exchanged, in image and label map together: rare anatomy (dextrocardia), or a probe held the wrong
    way round."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            largest = 1.0 if name.endswith("_probability") or name in ("speckle", "haze") else float("inf")
            for number in value if name == "gain" else (value,):
                _check_limit(name, number, largest)


class RandUltrasoundd(RandomizableTransform):
    """Change `image` and `label` of an item, (1, N, N) uint8 as `Letterboxd` makes them, as another patient, probe and machine would.

    One warp, then haze, gain over depth, speckle, gamma, gain, noise. Each effect is drawn by itself, so that to switch one off leaves the
    others as they were. What is black outside the sector stays black. Left is left unless `flip_probability` is more than 0. The image
    becomes float32 in [0, 1].

    Args:
        is_enabled: False leaves the item as it is (the published experiments had no augmentation).
        limits: fields of `UltrasoundRanges`.
    """

    def __init__(self, is_enabled: bool = True, **limits: Any) -> None:
        super().__init__(prob=1.0)
        self.is_enabled = is_enabled
        self.ranges = UltrasoundRanges(**limits)

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        if not self.is_enabled:
            return dict(data)
        image, label_map = self.augment(data["image"], data["label"])
        return {**data, "image": image, "label": label_map}

    def augment(self, image: Tensor, label_map: Tensor) -> tuple[Tensor, Tensor]:
        """Draw once and change image and label map alike.

        Args:
            image: (1, N, N), uint8, on the CPU.
            label_map: (1, N, N), uint8, on the CPU.
        Returns:
            image (1, N, N), float32 in [0, 1]; label map (1, N, N), uint8.
        """
        image, label_map = plain(image), plain(label_map)
        draw = self._draw()
        channels = torch.cat([image.float() / 255, masks_of_label_map(label_map)])[None]  # (1, 1 + S, N, N)
        grid = F.affine_grid(draw.theta[None], list(channels.shape), align_corners=False)
        warped = F.grid_sample(channels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
        grey = warped[:1]  # (1, N, N)
        if draw.has_fields:
            grey = self._through_the_machine(grey, grid, image, draw)
        grey = grey.clamp(0, 1).pow_(draw.gamma).mul_(draw.gain)
        if draw.noise > 0:
            noise = torch.randn(grey.shape, generator=_generator(draw.noise_seed)).mul_(draw.noise)
            grey = torch.where(warped[:1] > BLACK, grey + noise, grey)
        share, winner = warped[1:].max(dim=0, keepdim=True)
        classes = torch.tensor([s.class_index for s in STRUCTURES], dtype=torch.uint8)[winner]
        background = (1 - warped[1:].sum(dim=0, keepdim=True)).clamp_min_(0)
        new_label_map = torch.where(share > background, classes, torch.tensor(BACKGROUND_INDEX, dtype=torch.uint8))
        return grey.clamp_(0, 1), new_label_map

    def _draw(self) -> _Draw:
        """Everything by chance of one call: as many numbers each time, whatever is switched on."""
        ranges, chances = self.ranges, self.R.uniform(size=7)
        seeds = [int(seed) for seed in self.R.randint(2**31, size=3)]
        is_warped = chances[0] < ranges.warp_probability
        theta = self._affine(self.R.uniform(-1, 1, size=5) * is_warped, chances[6] < ranges.flip_probability)
        exponent, gain = self.R.uniform(-1, 1), self.R.uniform(*ranges.gain)
        has_gain = chances[1] < ranges.gain_probability
        attenuation, sliders = self.R.uniform(-1, 1), self.R.uniform(-1, 1, size=TIME_GAIN_SLIDERS)
        has_attenuation = chances[2] < ranges.depth_attenuation_probability
        depths = np.linspace(0, 1, TIME_GAIN_SLIDERS)
        log_gains = attenuation * ranges.depth_attenuation * (0.5 - depths) + sliders * ranges.time_gain
        grain_along, grain_across = np.exp(self.R.uniform(np.log([0.7, 1.5]), np.log([2.0, 4.0])))
        speckle, haze, noise = self.R.uniform(0, [ranges.speckle, ranges.haze, ranges.noise])
        return _Draw(
            theta=theta,
            gamma=float(np.exp(exponent * ranges.log_gamma)) if has_gain else 1.0,
            gain=float(gain) if has_gain else 1.0,
            log_gains=tuple(log_gains) if has_attenuation and log_gains.any() else (),
            speckle=float(speckle) if chances[3] < ranges.speckle_probability else 0.0,
            grain=(float(grain_along), float(grain_across)),
            haze=float(haze) if chances[4] < ranges.haze_probability else 0.0,
            noise=float(noise) if chances[5] < ranges.noise_probability else 0.0,
            speckle_seed=seeds[0],
            haze_seed=seeds[1],
            noise_seed=seeds[2],
        )

    def _affine(self, units: np.ndarray, is_flipped: bool) -> Tensor:
        """(2, 3): where in the input each output pixel comes from, in grid_sample's coordinates; units: (5,), in [-1, 1]."""
        angle = np.deg2rad(units[0] * self.ranges.rotation_degrees)
        scale, aspect = np.exp(units[1] * self.ranges.log_scale), np.exp(units[2] * self.ranges.log_aspect)
        shift = units[3:] * self.ranges.shift * 2  # the square is 2 wide
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = rotation @ np.diag([aspect, 1 / aspect]) / scale
        if is_flipped:
            linear[:, 0] *= -1
        return torch.tensor(np.column_stack([linear, shift]), dtype=torch.float32)

    def _through_the_machine(self, grey: Tensor, grid: Tensor, image: Tensor, draw: _Draw) -> Tensor:
        """Haze, gain over depth and speckle, on the beams of the probe.

        Args:
            grey: warped image, (1, N, N), in [0, 1].
            grid: where its pixels come from, (1, N, N, 2).
            image: before the warp, (1, N, N), uint8.
        """
        sector = _sector_of(image)
        if sector is None:
            return grey
        side = grey.shape[-1]
        x, y = grid[0, ..., 0] - sector.x, grid[0, ..., 1] - sector.y
        polar = torch.stack([torch.atan2(x, y) * (2 / torch.pi), torch.hypot(x, y) * (2 / sector.depth) - 1], dim=-1)[
            None
        ]
        depth_pixels = sector.depth * side / 2
        grain_pixels = [max(g * side / GRAIN_SIDE, 0.5) for g in draw.grain]
        size = (
            max(round(depth_pixels / grain_pixels[0]), 8),
            max(round(torch.pi * depth_pixels / 2 / grain_pixels[1]), 8),  # half a circle at half depth
        )
        fields = [_time_gain(draw.log_gains, size)]  # (n, D, B) each
        if draw.haze > 0:
            fields.append(_haze(draw.haze, size, _generator(draw.haze_seed)))
        if draw.speckle > 0:
            fields.append(torch.randn(2, *size, generator=_generator(draw.speckle_seed)))
        on_pixels = F.grid_sample(
            torch.cat(fields)[None], polar, mode="bilinear", padding_mode="border", align_corners=False
        )[0]
        factor = on_pixels[:1].exp_()
        if draw.speckle > 0:
            amplitude = torch.hypot(on_pixels[-2], on_pixels[-1])[None]
            factor.mul_(amplitude.mul_(draw.speckle / amplitude.mean()).add_(1 - draw.speckle))
        if draw.haze > 0:
            opacity = on_pixels[1:2].clamp_(0, 1) * _inside_sector(grey)
            grey = grey + opacity * (1 - grey)
        return grey * factor


class _Draw(NamedTuple):
    """What one call drew."""

    theta: Tensor
    gamma: float
    gain: float
    log_gains: tuple[float, ...]
    """At the sliders, from the probe downwards; empty: none."""
    speckle: float
    grain: tuple[float, float]
    """Pixels along and across the beam, at a side of `GRAIN_SIDE`."""
    haze: float
    noise: float
    speckle_seed: int
    haze_seed: int
    noise_seed: int

    @property
    def has_fields(self) -> bool:
        """Whether anything depends on depth and beam."""
        return bool(self.log_gains) or self.speckle > 0 or self.haze > 0


class _Sector(NamedTuple):
    """Where the probe is and how deep it sees, in grid_sample's coordinates (the square is 2 wide)."""

    x: float
    y: float
    depth: float


def _sector_of(image: Tensor) -> _Sector | None:
    """The probe at the middle of the topmost bright row; None if the image (1, N, N) is black."""
    bright = image[0] > 255 * BLACK
    side = bright.shape[-1]
    counts = bright.sum(dim=1).numpy()
    rows = np.flatnonzero(counts >= max(side // 50, 1))  # a lone bright pixel is no sector
    if len(rows) == 0:
        return None
    columns = np.flatnonzero(bright[rows[0]].numpy())
    middle, top, bottom = float(columns.mean()) + 0.5, float(rows[0]), float(rows[-1]) + 1
    return _Sector(x=2 * middle / side - 1, y=2 * top / side - 1, depth=2 * (bottom - top) / side)


def _inside_sector(grey: Tensor) -> Tensor:
    """(1, N, N): 1 in the sector, its dark cavities too, falling to 0 at its edge and 0 outside.

    What lies between bright cells of 4 pixels in its row and in its column is inside; a sector has no other holes.
    """
    cells = F.avg_pool2d(grey, 4, ceil_mode=True)[0] > BLACK  # (N / 4, N / 4)
    hull = torch.ones_like(cells)
    for dim in (0, 1):
        seen = cells.cumsum(dim)
        hull &= (seen > 0) & ((seen < seen.narrow(dim, -1, 1)) | cells)
    outside = F.pad((~hull).float()[None], (1, 1, 1, 1), value=1.0)
    core = 1 - F.max_pool2d(outside, 3, stride=1)  # without the cells at the edge
    core = F.interpolate(core[None], scale_factor=4, mode="bilinear", align_corners=False)[0]
    core = core.mul_(2).sub_(1).clamp_min_(0)  # nothing beyond the core's own cells
    return torch.maximum(core[:, : grey.shape[-2], : grey.shape[-1]], (grey / BLACK - 1).clamp_(0, 1))


def _time_gain(log_gains: tuple[float, ...], size: tuple[int, int]) -> Tensor:
    """(1, D, B): logarithm of the gain, the same for all beams."""
    if not log_gains:
        return torch.zeros(1, *size)
    curve = F.interpolate(
        torch.tensor(log_gains, dtype=torch.float32)[None, None, :, None],
        size=(size[0], 1),
        mode="bicubic",
        align_corners=True,
    )
    return curve[0].expand(1, *size)


def _haze(opacity: float, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(1, D, B): opacity of the fog; beams span half a circle, of which a sector takes about the half."""
    blotches = torch.rand(1, 1, 5, 9, generator=generator)
    blotches = F.interpolate(blotches, size=size, mode="bicubic", align_corners=False)[0]
    depth = torch.linspace(0, 1, size[0])[None, :, None]
    return blotches.mul_(0.8).add_(0.2).mul_(torch.exp(-depth / HAZE_DEPTH)).mul_(opacity)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _check_limit(name: str, value: float, largest: float) -> None:
    """Raise ValueError unless the value is a number of 0 ... largest."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= largest:
        allowed = f"0 ... {largest:g}" if largest < float("inf") else "a number of at least 0"
        raise ValueError(f"augmentation.py: {name} must be {allowed}, got {value!r}; 0 switches it off")
