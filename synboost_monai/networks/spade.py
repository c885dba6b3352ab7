"""Normalise features adaptively in space (SPADE): scale and shift of a norm come from the label map, pixel by pixel.

Park et al. 2019 (arXiv 1903.07291), with group normalisation as in the Semantic Diffusion Model. Scale and shift follow
from the label map by two 3x3 convolutions, so they are computed once per label map and used at every timestep. They have two forms:

- `Modulation`: full maps, one value for each pixel and channel.
- `TableModulation`: the value at a pixel depends only on the 5x5 pixels of the label map around it, and a label map has few
  distinct neighbourhoods of this kind: each has one row of a table, and each pixel has its row's number.

B batch, K classes, F feature channels, h and w the grid of one level, U distinct neighbourhoods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WINDOW = 5
"""Side of the neighbourhood that two 3x3 convolutions see, in px."""
ROWS_AT_ONCE = 256
"""Rows of a table that are computed together, always this many, so that a row's rounding does not depend on the others."""
SPLIT = 1 << 62
"""Upper limit of neighbourhood codes, so that they fit 64-bit integers."""


class Modulation(NamedTuple):
    """Hold scale and shift of one SPADE norm as full maps."""

    scale: Tensor
    """1 + gamma, (B, F, h, w); B may be 1, shared by all images."""
    shift: Tensor
    """beta, shape of `scale`."""

    def at_pixels(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift, each (B, F, h, w)."""
        return self.scale, self.shift

    @property
    def num_maps(self) -> int:
        """Return the number B of label maps that they belong to."""
        return len(self.scale)


class TableModulation(NamedTuple):
    """Hold scale and shift of one SPADE norm as a table over distinct neighbourhoods."""

    scale: Tensor
    """1 + gamma, (U, F)."""
    shift: Tensor
    """beta, (U, F)."""
    index: Tensor
    """Row of each pixel, (B, h, w) int64; norms of one level share it."""

    def at_pixels(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift, each (B, F, h, w), channels last in memory."""
        return tuple(F.embedding(self.index, table).permute(0, 3, 1, 2) for table in (self.scale, self.shift))  # type: ignore[return-value]

    @property
    def num_maps(self) -> int:
        """Return the number B of label maps that they belong to."""
        return len(self.index)


class Neighbourhoods(NamedTuple):
    """Hold the distinct 5x5 neighbourhoods in some label maps of one level."""

    windows: Tensor
    """Label map values, (U, K, 5, 5), zero outside the image."""
    is_inside: Tensor
    """(U, 1, 3, 3), 1 where the inner pixels are in the image: outside it, the second convolution sees zeros, not the output of the
    first."""
    index: Tensor
    """Neighbourhood of each pixel, (B, h, w) int64."""


class SPADEGroupNorm(nn.Module):
    """Apply group normalisation with scale and shift from the label map.

    y = norm(x) (1 + gamma) + beta, where gamma and beta are convolutions of relu(convolution of the label map).

    Args:
        num_channels: F.
        num_classes: K.
        hidden_channels: width between the two convolutions.
        num_groups: groups of the normalisation.
    """

    def __init__(self, num_channels: int, num_classes: int, hidden_channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, num_channels, eps=1e-5, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(num_classes, hidden_channels, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden_channels, num_channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(hidden_channels, num_channels, 3, padding=1)

    def modulation(self, label_onehot: Tensor) -> Modulation:
        """Compute full maps from a label map (B, K, h, w) that already has this norm's size."""
        hidden = self.mlp_shared(label_onehot)
        return Modulation(1 + self.mlp_gamma(hidden), self.mlp_beta(hidden))

    def table_modulation(self, neighbourhoods: Neighbourhoods) -> TableModulation:
        """Compute the same numbers as `modulation`, once for each distinct neighbourhood."""
        shared, activation = self.mlp_shared
        scales, shifts = [], []
        windows, is_inside, index = neighbourhoods
        for start in range(0, len(windows), ROWS_AT_ONCE):
            window, inside = (
                F.pad(rows[start : start + ROWS_AT_ONCE], (0,) * 7 + (max(0, start + ROWS_AT_ONCE - len(windows)),))
                for rows in (windows, is_inside)
            )
            hidden = activation(F.conv2d(window.to(shared.weight.dtype), shared.weight, shared.bias)) * inside
            scales.append(1 + F.conv2d(hidden, self.mlp_gamma.weight, self.mlp_gamma.bias).flatten(1))
            shifts.append(F.conv2d(hidden, self.mlp_beta.weight, self.mlp_beta.bias).flatten(1))
        return TableModulation(torch.cat(scales)[: len(windows)], torch.cat(shifts)[: len(windows)], index)

    def forward(self, x: Tensor, modulation: Modulation | TableModulation) -> Tensor:
        scale, shift = modulation.at_pixels()
        return torch.addcmul(shift, self.norm(x).to(shift.dtype), scale)


def distinct_neighbourhoods(label_onehot: Tensor, denominator: int = 1) -> Neighbourhoods:
    """Find the distinct 5x5 neighbourhoods of label maps and the neighbourhood of each pixel.

    Args:
        label_onehot: (B, K, h, w), one-hot or all zero at each pixel, or averages of `denominator` such pixels.
        denominator: number of pixels that each value is the mean of: values are multiples of 1 / denominator.
    Returns:
        The neighbourhoods in the order of their codes, which depends only on the label maps' values.
    Raises:
        ValueError: if values are not multiples of 1 / denominator in 0 ... 1.
    """
    batch, classes, height, width = label_onehot.shape
    counts = label_onehot.float() * denominator
    if not bool(((counts == counts.round()) & (counts >= 0) & (counts <= denominator)).all()):
        raise ValueError(
            "spade.py: neighbourhoods are told apart in one-hot label maps alone, and these hold values between 0 and 1; "
            "use full maps instead"
        )
    margin = WINDOW // 2
    cells = _compact(_join(list(counts.long().unbind(1)), denominator + 1)[0])
    padded = F.pad(cells + 1, (margin,) * 4)  # 0: outside the image
    span = int(padded.max()) + 1
    rows, span = _join([padded[:, :, shift : shift + width] for shift in range(WINDOW)], span)  # (B, h + 4, w)
    rows = _compact(rows)
    codes, _ = _join([rows[:, shift : shift + height] for shift in range(WINDOW)], int(rows.max()) + 1)  # (B, h, w)
    distinct, index = torch.unique(codes, return_inverse=True)

    positions = torch.arange(codes.numel(), device=codes.device)
    first = positions.new_full((len(distinct),), codes.numel())
    first = first.scatter_reduce(0, index.flatten(), positions, "amin")  # one place for each neighbourhood
    image, y, x = first // (height * width), first // width % height, first % width
    around = torch.arange(WINDOW, device=codes.device)
    rows_at, columns_at = y[:, None, None] + around[:, None], x[:, None, None] + around  # in the padded image
    inside = F.pad(label_onehot.new_ones(1, height, width), (margin,) * 4)
    values = F.pad(label_onehot, (margin,) * 4)
    windows = values[image[:, None, None], :, rows_at, columns_at].permute(0, 3, 1, 2)  # (U, K, 5, 5)
    is_inside = inside[:, rows_at, columns_at].transpose(0, 1)[:, :, 1:-1, 1:-1]  # (U, 1, 3, 3)
    return Neighbourhoods(windows.contiguous(), is_inside.contiguous(), index)


def join_modulations(
    conditions: Sequence[Sequence[Modulation | TableModulation]], batch: int
) -> list[Modulation | TableModulation]:
    """Join several conditions for one batch of features, one behind the other along the batch.

    Args:
        conditions: outputs of `condition`, each for `batch` label maps, or for one that all images share.
        batch: B.
    Returns:
        Modulations for (number of conditions) x B images. Full maps are copied; for tables, only the rows.
    """
    return [_joined(list(modulations), batch) for modulations in zip(*conditions)]


def _joined(modulations: list[Modulation | TableModulation], batch: int) -> Modulation | TableModulation:
    tables = [modulation for modulation in modulations if isinstance(modulation, TableModulation)]
    if len(tables) == len(modulations):
        indices, offset = [], 0
        for table in tables:
            indices.append((table.index + offset).expand(batch, *table.index.shape[1:]))
            offset += len(table.scale)
        return TableModulation(
            torch.cat([table.scale for table in tables]),
            torch.cat([table.shift for table in tables]),
            torch.cat(indices),
        )
    pairs = [modulation.at_pixels() for modulation in modulations]
    scales, shifts = ([pair[place].expand(batch, *pair[place].shape[1:]) for pair in pairs] for place in (0, 1))
    return Modulation(torch.cat(scales), torch.cat(shifts))


def _join(parts: Sequence[Tensor], span: int) -> tuple[Tensor, int]:
    """Join integers below `span` into one that is equal where all parts are equal; also return its upper limit."""
    code, reach = parts[0], span
    for part in parts[1:]:
        if reach >= SPLIT // span:
            code = _compact(code)
            reach = int(code.max()) + 1
        code, reach = code * span + part, reach * span
    return code, reach


def _compact(codes: Tensor) -> Tensor:
    """Number the codes 0, 1, 2 ... in their order."""
    return torch.unique(codes, return_inverse=True)[1]
