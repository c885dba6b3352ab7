"""Define CRIS: CLIP-driven referring image segmentation, with several prompts per image.

Wang et al., CVPR 2022 (arXiv 2111.15174). Written anew from the paper and the layout of the published checkpoints; the key names are
those of the checkpoints of github.com/DerrickWang005/CRIS.pytorch (MIT), whose image and text encoders are CLIP's (Radford et al. 2021).

Everything that depends only on the image (image encoder, the neck's first convolutions) is computed once and shared by its prompts.

B: batch, S: prompts of one image, N = B * S, L: tokens of a prompt, D: width of words and of the decoder, E: width of the sentence
state, H and W: height and width of the image, h and w: those of the fused map (stride 16 as published, 8 in the small preset).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .efficientnet_lite import FEATURE_CHANNELS, EfficientNetLite0
from .prompted import PromptedSegmenter, attended
from .text import (
    CONTEXT_LENGTH,
    VOCABULARY_SIZE,
    Memo,
    check_image,
    check_length,
    default_input_ids,
    distinct_prompts,
    is_recorded,
    trim_padding,
)
from .view_head import ViewHead


def _conv_layer(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """Build a convolution that keeps the size, batch norm and ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def _add_per_prompt(x: Tensor, shared: Tensor, num_prompts: int) -> Tensor:
    """Add (N, C, h, w) + (B, C, h, w) without copying `shared` for each prompt."""
    return (x.unflatten(0, (-1, num_prompts)) + shared.unsqueeze(1)).flatten(0, 1)


def _double_size(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


_MIN_CHANNELS_TO_FACTOR = 64
"""Smallest number of channels for `_convolve_double_size`; narrower maps have too little to save."""


def _convolve_double_size(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Compute `conv(_double_size(x))` for a 3x3 convolution without bias, with a quarter of its multiplications.

    Bilinear doubling and mixing channels are both linear and act on different axes, so their order does not matter: each of the nine taps
    mixes the channels of the small map, (N, C, h, w); then one matrix per direction doubles, shifts and adds the three taps of that
    direction. The result is equal except for rounding, borders included.
    """
    if x.shape[1] < _MIN_CHANNELS_TO_FACTOR:
        return conv(_double_size(x))
    out_channels, height, width = conv.out_channels, int(x.shape[2]), int(x.shape[3])
    kernel = conv.weight.permute(0, 3, 2, 1).reshape(-1, x.shape[1])  # (C' * 3 columns * 3 rows, C)
    # exporters need the kernel of a convolution to be a parameter; elsewhere it is faster than the product
    taps = kernel @ x.flatten(2) if is_recorded() else F.conv2d(x.contiguous(), kernel[..., None, None])
    taps = taps.reshape(-1, 3 * height, width)  # (N C' 3, 3h, w)
    rows = _taps_of_doubled(height).to(taps) @ taps  # (N C' 3, 2h, w)
    rows = rows.reshape(-1, 3, 2 * height, width).transpose(1, 2).reshape(-1, 3 * width)  # (N C' 2h, 3w)
    out = rows @ _taps_of_doubled(width).T.to(rows)
    return out.reshape(-1, out_channels, 2 * height, 2 * width)


def _taps_of_doubled(length: int) -> Tensor:
    """Return (2 length, 3 length): sums, over the taps t = 0, 1, 2, of the bilinearly doubled tap t read at r + t - 1, 0 outside."""
    places = torch.arange(2 * length)
    source = ((places + 0.5) / 2 - 0.5).clamp(0, length - 1)
    low = source.floor().long()
    high, share = (low + 1).clamp(max=length - 1), source - low
    doubled = torch.zeros(2 * length, length)
    doubled[places, low] += 1 - share
    doubled[places, high] += share
    padded = F.pad(doubled, (0, 0, 1, 1))
    return torch.cat([padded[tap : tap + 2 * length] for tap in range(3)], dim=1)


def _attend(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """Compute `nn.MultiheadAttention` (N, T, D) without its swap of batch and length, which makes every product copy its input.

    It also avoids that module's fused operator, which no exporter knows.
    """
    width, heads = module.embed_dim, module.num_heads
    weight, bias = module.in_proj_weight, module.in_proj_bias
    if query is key:
        q, k = F.linear(query, weight[: 2 * width], bias[: 2 * width]).chunk(2, dim=-1)
    else:
        q = F.linear(query, weight[:width], bias[:width])
        k = F.linear(key, weight[width : 2 * width], bias[width : 2 * width])
    v = F.linear(value, weight[2 * width :], bias[2 * width :])
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    mask = None if padding is None else ~padding[:, None, None, :]  # True: the token takes part
    dropout = module.dropout if module.training else 0.0
    h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
    return module.out_proj(h.transpose(1, 2).flatten(2))


# ---------------------------------------------------------------------------------------------------------- image encoders


class _Bottleneck(nn.Module):
    """Apply CLIP's residual block: strides are average pools, so that no convolution skips pixels."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.avgpool: nn.Module = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride)),
                        ("0", nn.Conv2d(in_channels, out_channels, 1, bias=False)),
                        ("1", nn.BatchNorm2d(out_channels)),
                    ]
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)), inplace=True)
        h = F.relu(self.bn2(self.conv2(h)), inplace=True)
        h = self.bn3(self.conv3(self.avgpool(h)))
        return F.relu(h + (x if self.downsample is None else self.downsample(x)), inplace=True)


class _AttentionPool(nn.Module):
    """Apply CLIP's attention pool, which here keeps the map: self-attention over all positions, plus a parallel 1x1 convolution."""

    def __init__(self, grid_size: int, channels: int, num_heads: int, out_channels: int) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.num_heads = num_heads
        self.positional_embedding = nn.Parameter(torch.randn(grid_size**2 + 1, channels) / channels**0.5)
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, out_channels)
        self.connect = nn.Sequential(nn.Conv2d(channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
        self._positions = Memo(8)

    def _position_codes(self, height: int, width: int) -> Tensor:
        """Return (1, C, height, width) position codes; resized once for each size, unless they are being trained."""

        def resized() -> Tensor:
            stored = self.positional_embedding[1:].T  # [0]: CLIP's mean token
            stored = stored.reshape(1, -1, self.grid_size, self.grid_size)
            return F.interpolate(stored, size=(height, width), mode="bicubic", align_corners=False)

        return self._positions.one([self.positional_embedding], (height, width), resized)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = (x + self._position_codes(height, width).to(x.dtype)).flatten(2).transpose(1, 2)  # (B, hw, C)
        h = self.c_proj(attended(self, tokens)).transpose(1, 2).unflatten(-1, (height, width))  # (B, E, h, w)
        return F.relu(h + self.connect(x), inplace=True)


class ClipResNet(nn.Module):
    """Compute maps at strides 8, 16 and 32 with CLIP's modified ResNet (RN50 by default).

    Args:
        num_blocks: residual blocks of the four stages.
        width: channels of the first stage's bottleneck.
        grid_size: side of the grid of stored position codes, 7 for 224 px; resized (bicubic) to the input's grid.
        out_channels: channels of the map at stride 32.
    """

    def __init__(self, num_blocks: Sequence[int], width: int, grid_size: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        in_channels = width
        for stage, blocks in enumerate(num_blocks):
            channels = width * 2**stage
            layers = []
            for index in range(blocks):
                layers.append(_Bottleneck(in_channels, channels, 2 if stage and not index else 1))
                in_channels = channels * _Bottleneck.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.attnpool = _AttentionPool(grid_size, in_channels, max(in_channels // 64, 1), out_channels)
        self.channels = (width * 8, width * 16, out_channels)
        self.strides = (8, 16, 32)
        self.skip_channels: tuple[int, int] | None = None

    @property
    def stages(self) -> list[nn.Module]:
        """List the parts from input to output."""
        stem = nn.ModuleList([self.conv1, self.bn1, self.conv2, self.bn2, self.conv3, self.bn3])
        return [stem, self.layer1, self.layer2, self.layer3, self.layer4, self.attnpool]

    def forward(self, image: Tensor) -> tuple[list[Tensor], None]:
        """Return maps at strides 8, 16, 32 with `channels` channels, and None instead of a finer map."""
        h = image
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            h = F.relu(norm(conv(h)), inplace=True)
        h = self.layer1(F.avg_pool2d(h, 2))
        c3 = self.layer2(h)
        c4 = self.layer3(c3)
        return [c3, c4, self.attnpool(self.layer4(c4))], None


class EfficientNetPyramid(EfficientNetLite0):
    """Compute EfficientNet-lite0's maps at strides 4, 8 and 16 (with stride 32 upsampled and joined), and at 2.

    The first and the last serve as skips.
    """

    channels = (FEATURE_CHANNELS[4], FEATURE_CHANNELS[8], FEATURE_CHANNELS[16] + FEATURE_CHANNELS[32])
    strides = (4, 8, 16)
    skip_channels = (FEATURE_CHANNELS[4], FEATURE_CHANNELS[2])

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return maps at strides 4, 8, 16 with `channels` channels, and the map at stride 2."""
        features = self.forward_features(image)
        deep = torch.cat([features[16], _double_size(features[32])], dim=1)
        return [features[4], features[8], deep], features[2]


# ------------------------------------------------------------------------------------------------------------ text encoder


class _QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class _TextBlock(nn.Module):
    """Apply a transformer block with the norm in front; each token sees itself and those before it."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        layers = [
            ("c_fc", nn.Linear(width, width * 4)),
            ("gelu", _QuickGELU()),
            ("c_proj", nn.Linear(width * 4, width)),
        ]
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.ln_1(x)
        if isinstance(self.attn, nn.MultiheadAttention):
            x = x + _attend(self.attn, h, h, h, is_causal=True)
        else:  # with adapters the attention is another module, with its own layers
            x = x + self.attn(h, is_causal=True)
        return x + self.mlp(self.ln_2(x))


class _Transformer(nn.Module):
    def __init__(self, width: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_TextBlock(width, num_heads) for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class ClipBackbone(nn.Module):
    """Hold CLIP's two encoders as CRIS uses them: maps of the image, words and sentence state of the text."""

    def __init__(self, visual: nn.Module, settings: CRISSettings) -> None:
        super().__init__()
        width, layers = settings.text_width, settings.text_layers
        self.visual = visual
        self.transformer = _Transformer(width, layers, settings.text_heads)
        self.token_embedding = nn.Embedding(settings.vocabulary_size, width)
        self.positional_embedding = nn.Parameter(torch.randn(settings.context_length, width) * 0.01)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, settings.state_width) * width**-0.5)
        # CLIP's temperature, kept for its checkpoints
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)

    def encode_text(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return words (N, L, D) and sentence states (N, E) of token ids (N, L).

        The state is the word at the end token, which has the highest id.
        """
        distinct, inverse = distinct_prompts(input_ids)
        device = self.token_embedding.weight.device
        ids, last = distinct.to(device), distinct.argmax(dim=-1).to(device)
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        words = self.ln_final(self.transformer(x))
        end = words[torch.arange(words.shape[0], device=device), last]
        state = end @ self.text_projection.to(end.dtype)
        if inverse is None:
            return words, state
        inverse = inverse.to(device)
        return words[inverse], state[inverse]


# -------------------------------------------------------------------------------------------------------- neck and decoder


class _CoordConv(nn.Module):
    """Apply a convolution that also sees each pixel's column and row, from -1 to 1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = _conv_layer(in_channels + 2, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        height, width = (int(length) for length in x.shape[-2:])
        rows = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)
        columns = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype)
        y, column = torch.meshgrid(rows, columns, indexing="ij")
        conv, norm, relu = self.conv1
        # the coordinates' half of the product of the joined maps is computed once for all
        weight_x, weight_places = conv.weight.split([x.shape[1], 2], dim=1)
        h = F.conv2d(x, weight_x, padding=1) + F.conv2d(torch.stack([column, y])[None], weight_places, padding=1)
        return relu(norm(h))


class FeaturePyramidNeck(nn.Module):
    """Fuse three maps of the image with the sentence state into one map at the middle map's stride.

    Args:
        in_channels: channels of the three maps, fine to coarse.
        state_width: E.
        out_channels: channels of the three levels after projection; the fused map has the second.
    """

    def __init__(self, in_channels: Sequence[int], state_width: int, out_channels: Sequence[int]) -> None:
        super().__init__()
        in3, in4, in5 = in_channels
        out3, out4, out5 = out_channels
        self.txt_proj = nn.Sequential(
            nn.Linear(state_width, out5, bias=False), nn.BatchNorm1d(out5), nn.ReLU(inplace=True)
        )
        self.f1_v_proj = _conv_layer(in5, out5, 1)
        self.norm_layer = nn.Sequential(nn.BatchNorm2d(out5), nn.ReLU(inplace=True))
        self.f2_v_proj = _conv_layer(in4, out4, 3)
        self.f2_cat = _conv_layer(out5 + out4, out4, 1)
        self.f3_v_proj = _conv_layer(in3, out3, 3)
        self.f3_cat = _conv_layer(out3 + out4, out4, 1)
        self.f4_proj5 = _conv_layer(out5, out4, 3)
        self.f4_proj4 = _conv_layer(out4, out4, 3)
        self.f4_proj3 = _conv_layer(out4, out4, 3)
        self.aggr = _conv_layer(3 * out4, out4, 1)
        self.coordconv = nn.Sequential(_CoordConv(out4, out4), _conv_layer(out4, out4, 3))

    @staticmethod
    def _fuse(layer: nn.Sequential, shared: Tensor, x: Tensor, num_prompts: int, *, double: bool = False) -> Tensor:
        """Apply `layer` (1x1) to [shared, x] joined by channel; the shared half of the product is computed once per image.

        If `double`, x has half the size: a 1x1 convolution without bias may precede the bilinear upsampling.
        """
        conv, norm, relu = layer
        weight_shared, weight_x = conv.weight.split([shared.shape[1], x.shape[1]], dim=1)
        h = F.conv2d(x, weight_x)
        h = _add_per_prompt(_double_size(h) if double else h, F.conv2d(shared, weight_shared), num_prompts)
        return relu(norm(h))

    def forward(self, maps: Sequence[Tensor], state: Tensor) -> Tensor:
        """Return the fused map (N, out_channels[1], h, w) of maps (B, ...) and sentence states (N, E)."""
        v3, v4, v5 = maps
        num_prompts = state.shape[0] // v5.shape[0]
        # only the image, once for its prompts
        v5 = self.f1_v_proj(v5)
        v4 = self.f2_v_proj(v4)
        v3 = F.avg_pool2d(self.f3_v_proj(v3), 2)
        # with the text
        f5 = v5.unflatten(0, (-1, 1)) * self.txt_proj(state)[:, :, None, None].unflatten(0, (-1, num_prompts))
        f5 = self.norm_layer(f5.flatten(0, 1))
        f4 = self._fuse(self.f2_cat, v4, f5, num_prompts, double=True)
        f3 = self._fuse(self.f3_cat, v3, f4, num_prompts)
        levels = [self.f4_proj3(f3), self.f4_proj4(f4), _double_size(self.f4_proj5(f5))]
        return self.coordconv(self.aggr(torch.cat(levels, dim=1)))


class _DecoderLayer(nn.Module):
    """Let pixels attend to pixels, then to the prompt's words; norm before and after each attention."""

    def __init__(self, width: int, num_heads: int, ffn_width: int, dropout: float) -> None:
        super().__init__()
        self.self_attn_norm = nn.LayerNorm(width)
        self.cross_attn_norm = nn.LayerNorm(width)
        self.self_attn = nn.MultiheadAttention(width, num_heads, dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(width, num_heads, dropout, batch_first=True)
        self.ffn = nn.Sequential(
            nn.Linear(width, ffn_width),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.LayerNorm(ffn_width),
            nn.Linear(ffn_width, width),
        )
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, x_position: Tensor, words: Tensor, keys: Tensor, padding: Tensor | None) -> Tensor:
        h = self.norm1(x)
        q = h + x_position
        h = _attend(self.self_attn, q, q, h, None)
        x = x + self.dropout(self.self_attn_norm(h))
        q = self.norm2(x) + x_position
        h = _attend(self.multihead_attn, q, keys, words, padding)
        x = x + self.dropout(self.cross_attn_norm(h))
        return x + self.dropout(self.ffn(self.norm3(x)))


def _sine_codes(width: int, length: int) -> Tensor:
    """Return (length, width) sine and cosine codes of positions 0 ... length - 1 (Vaswani et al. 2017)."""
    frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10000.0) / width))
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def _sine_codes_2d(width: int, num_rows: int, num_columns: int) -> Tensor:
    """Return (num_rows * num_columns, width) codes: the first half of each encodes the column, the second the row."""
    columns = _sine_codes(width // 2, num_columns).expand(num_rows, -1, -1)
    rows = _sine_codes(width // 2, num_rows)[:, None].expand(-1, num_columns, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)


class TextImageDecoder(nn.Module):
    """Apply transformer layers over the pixels of the fused map, which attend to the words."""

    def __init__(self, num_layers: int, width: int, num_heads: int, ffn_width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_DecoderLayer(width, num_heads, ffn_width, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, words: Tensor, padding: Tensor | None) -> Tensor:
        """Return (N, D, h, w) from (N, D, h, w), words (N, L, D) and padding (N, L), true at words to leave out."""
        _, width, height, columns = x.shape
        position = _sine_codes_2d(width, height, columns).to(x)
        keys = words + _sine_codes(width, words.shape[1]).to(words)
        tokens = x.flatten(2).transpose(1, 2).contiguous()  # (N, hw, D)
        for layer in self.layers:
            tokens = layer(tokens, position, words, keys, padding)
        return self.norm(tokens).transpose(1, 2).unflatten(-1, (height, columns))


def _sum_of_taps(taps: Tensor, height: int, width: int) -> Tensor:
    """Return the sum (N, 1, h, w) over the taps (N, 9, hw) of a 3x3 convolution, each read at its offset; 0 outside."""
    if not is_recorded():
        # fold puts tap k at offset k - 1 from its pixel, but a convolution reads it from there: hence the flip
        return F.fold(taps.flip(1), (height, width), kernel_size=3, padding=1)
    padded = F.pad(taps.unflatten(-1, (height, width)), (1, 1, 1, 1))  # exporters do not know fold
    shifted = [padded[:, k : k + 1, k // 3 : k // 3 + height, k % 3 : k % 3 + width] for k in range(9)]
    return torch.stack(shifted).sum(dim=0)


class Projector(nn.Module):
    """Make a 3x3 kernel from the sentence state, and draw the mask with it over the map at 4 times the decoder's size.

    Args:
        state_width: E.
        in_channels: D, channels of the decoder's map.
        channels: channels of the two upsampled maps.
        skip_channels: channels of finer maps of the image that help at the two sizes (not in the paper), or None.
    """

    def __init__(
        self, state_width: int, in_channels: int, channels: tuple[int, int], skip_channels: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        first, last = channels
        self.vis = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"),
            _conv_layer(in_channels, first, 3),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            _conv_layer(first, last, 3),
            nn.Conv2d(last, last, 1),
        )
        self.txt = nn.Linear(state_width, last * 9 + 1)
        self.skips: nn.ModuleList | None = None
        if skip_channels is not None:
            self.skips = nn.ModuleList(
                nn.Conv2d(skip, out, 3, padding=1, bias=False) for skip, out in zip(skip_channels, channels)
            )

    def forward(self, x: Tensor, state: Tensor, skips: Sequence[Tensor] | None) -> Tensor:
        """Return logits (N, 1, 4h, 4w) of the map (N, D, h, w), states (N, E) and skips (B, ..., 2h, 2w), (B, ..., 4h, 4w)."""
        for index, stage in enumerate((self.vis[1], self.vis[3])):
            conv, norm, relu = stage
            x = _convolve_double_size(conv, x)
            if self.skips is not None:
                assert skips is not None
                # a convolution of joined maps is the sum of two; the skip's part is the same for all prompts
                x = _add_per_prompt(x, self.skips[index](skips[index]), x.shape[0] // skips[index].shape[0])
            x = relu(norm(x))
        # The last 1x1 convolution and the text's 3x3 kernel are both linear: one product gives the map of each of the 9 taps.
        channels, height, width = (int(length) for length in x.shape[1:])
        # the text's channels are taken tap by tap, not the kernel transposed: onnxruntime (1.32) fuses that transpose wrongly
        weight, bias = (t[:-1].unflatten(0, (channels, 9)).transpose(0, 1) for t in (self.txt.weight, self.txt.bias))
        kernel = F.linear(state, weight.flatten(0, 1), bias.flatten()).unflatten(1, (9, channels))  # (N, 9, C)
        last = self.vis[4]
        taps = (kernel @ last.weight[:, :, 0, 0].to(kernel.dtype)) @ x.flatten(2)  # (N, 9, hw)
        taps = taps + (kernel @ last.bias.to(kernel.dtype))[..., None]
        logits = _sum_of_taps(taps, height, width)  # (N, 1, h, w)
        return logits + F.linear(state, self.txt.weight[-1:], self.txt.bias[-1:])[..., None, None]


@dataclass(frozen=True)
class CRISSettings:
    """Hold sizes and parts of a CRIS; the defaults are the published network: 146,849,122 parameters, for 416 px.

    Raises:
        ValueError: if a choice does not exist, or two choices are incompatible.
    """

    image_encoder: str = "clip_resnet"
    """`clip_resnet` (published) or `efficientnet_lite0` (fused map at stride 8 instead of 16)."""
    vision_blocks: Sequence[int] = (3, 4, 6, 3)
    """Blocks of each stage of CLIP's ResNet."""
    vision_width: int = 64
    """Width of CLIP's ResNet."""
    vision_grid: int = 7
    """Side of the position grid of CLIP's ResNet."""
    state_width: int = 1024
    """Width of the sentence state, and of the last map of CLIP's ResNet."""
    context_length: int = CONTEXT_LENGTH
    """Longest prompt in tokens; 17 in the first release."""
    vocabulary_size: int = VOCABULARY_SIZE
    text_width: int = 512
    """Width of words, and of the decoder."""
    text_heads: int = 8
    text_layers: int = 12
    neck_channels: Sequence[int] = (256, 512, 1024)
    """Channels of the neck's three levels; the second equals `text_width`."""
    decoder_layers: int = 3
    decoder_heads: int = 8
    decoder_ffn_width: int = 2048
    dropout: float = 0.1
    """Dropout of the decoder."""
    projector_channels: Sequence[int] | None = None
    """Channels of the projector's two maps; None: (D, D / 2), as published."""
    has_skips: bool = False
    """Whether finer maps of the image also go into the projector (EfficientNet only; not in the paper)."""
    upsampling: str = "bicubic"
    """Method that brings logits to the image's size: `bicubic` (corners aligned, as published) or `bilinear`."""
    mask_padding: bool = True
    """Whether words with id 0 are left out of the decoder's attention, as in the CRIS paper. The prompts of the echo paper were padded with
    49407, so its mask had no effect: load its checkpoints with False and pad with 49407."""
    freeze_token_embedding: bool = False
    """Whether the table of tokens is not trained: a table from scratch learns little from a few prompts."""
    has_view_head: bool = False
    """Whether the network also predicts the view and the moment that an image shows (`view_logits`; not in the paper)."""

    def __post_init__(self) -> None:
        width = self.neck_channels[1]
        if self.text_width != width or width % 4:
            raise ValueError(
                f"CRIS: text_width is {self.text_width} and neck_channels[1] is {width}; the decoder needs them equal and a multiple of 4"
            )
        if self.upsampling not in ("bicubic", "bilinear"):
            raise ValueError(f"CRIS: upsampling must be 'bicubic' or 'bilinear', got {self.upsampling!r}")
        if self.image_encoder not in ("clip_resnet", "efficientnet_lite0"):
            raise ValueError(
                f"CRIS: image_encoder must be 'clip_resnet' or 'efficientnet_lite0', got {self.image_encoder!r}"
            )
        if self.has_skips and self.image_encoder != "efficientnet_lite0":
            raise ValueError("CRIS: has_skips needs image_encoder='efficientnet_lite0'")


PRESETS: dict[str, dict[str, Any]] = {
    "published": {},
    "small": {
        "image_encoder": "efficientnet_lite0",
        "state_width": 128,
        "text_width": 96,
        "text_heads": 4,
        "text_layers": 2,
        "neck_channels": (48, 96, 128),
        "decoder_layers": 1,
        "decoder_heads": 2,
        "decoder_ffn_width": 256,
        "projector_channels": (32, 16),
        "dropout": 0.0,
        "has_skips": True,
        "upsampling": "bilinear",
        "freeze_token_embedding": True,
    },
    "tiny": {
        "vision_blocks": (1, 1, 1, 1),
        "vision_width": 8,
        "vision_grid": 2,
        "state_width": 32,
        "text_width": 16,
        "text_heads": 2,
        "text_layers": 2,
        "neck_channels": (8, 16, 32),
        "decoder_layers": 1,
        "decoder_heads": 2,
        "decoder_ffn_width": 32,
    },
}
"""Preset -> fields of `CRISSettings` that differ from the published network."""


class CRIS(PromptedSegmenter):
    """CRIS fuses CLIP's image and text features, and decodes them into a mask for each prompt (Wang et al. 2022).

    Args:
        settings: sizes and parts; None: the published ones.
        freeze_encoders: do not train the image and text encoders; their batch norms keep their statistics.
    """

    def __init__(self, settings: CRISSettings | None = None, *, freeze_encoders: bool = False) -> None:
        super().__init__()
        s = settings or CRISSettings()
        visual: ClipResNet | EfficientNetPyramid
        if s.image_encoder == "clip_resnet":
            visual = ClipResNet(s.vision_blocks, s.vision_width, s.vision_grid, s.state_width)
        else:
            visual = EfficientNetPyramid()
        width = s.neck_channels[1]
        self.backbone = ClipBackbone(visual, s)
        self.neck = FeaturePyramidNeck(visual.channels, s.state_width, s.neck_channels)
        self.decoder = TextImageDecoder(s.decoder_layers, width, s.decoder_heads, s.decoder_ffn_width, s.dropout)
        first, last = s.projector_channels or (width, width // 2)
        self.proj = Projector(s.state_width, width, (first, last), visual.skip_channels if s.has_skips else None)
        self.view_head = ViewHead(visual.channels[2]) if s.has_view_head else None
        self.register_buffer("default_input_ids", default_input_ids(), persistent=False)
        self.upsampling = s.upsampling
        self.mask_padding = s.mask_padding
        self.freeze_encoders = freeze_encoders
        self.backbone.logit_scale.requires_grad_(False)  # not used in segmentation
        if s.freeze_token_embedding:
            self.backbone.token_embedding.requires_grad_(False)
        if freeze_encoders:
            self.backbone.requires_grad_(False)
        self.train()  # frozen encoders stay in evaluation mode

    @property
    def encoders(self) -> list[nn.Module]:
        """List the pretrained parts, which are frozen, or trained with a lower learning rate."""
        return [self.backbone]

    @property
    def image_encoder(self) -> nn.Module:
        """Return the image encoder."""
        return self.backbone.visual

    @property
    def encoder_stages(self) -> list[list[nn.Module]]:
        """List each encoder's parts from input to output, for learning rates by layer."""
        backbone = self.backbone
        return [backbone.visual.stages, [backbone.token_embedding, *backbone.transformer.resblocks, backbone.ln_final]]

    def text_encoder_parameters(self) -> list[Tensor]:
        """List all parameters that text features depend on."""
        backbone = self.backbone
        modules = (backbone.transformer, backbone.token_embedding, backbone.ln_final)
        own = [backbone.positional_embedding, backbone.text_projection]
        return [*own, *(parameter for module in modules for parameter in module.parameters())]

    def encode_image(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return features of images (B, 3, H, W): three maps, fine to coarse; with skips, the map at stride 2 as well."""
        check_image(image)
        maps, finest = self.backbone.visual(image)
        return tuple(maps) if self.proj.skips is None else (*maps, finest)

    def deepest_features(self, features: Sequence[Tensor]) -> Tensor:
        """Return the coarsest map."""
        return features[2]

    def encode_prompts(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Return words (N, L', D), sentence states (N, E) and, with `mask_padding`, a padding mask (N, L') of token ids (N, L); L' <= L."""
        if self.mask_padding:
            input_ids = trim_padding(input_ids)
        check_length(input_ids, len(self.backbone.positional_embedding))
        words, state = self.backbone.encode_text(input_ids)
        return (words, state, (input_ids == 0).to(words.device)) if self.mask_padding else (words, state)

    def split_prompts(self, text: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
        """Split the text features of N prompts into those of each, without the padding at its end."""
        if not self.mask_padding:
            return list(zip(*text))
        lengths = [int((~padding).nonzero().max()) + 1 if not padding.all() else 1 for padding in text[2].cpu()]
        return [(w[:n].clone(), s, p[:n].clone()) for w, s, p, n in zip(*text, lengths)]

    def join_prompts(self, texts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Join the text features of single prompts into those of all N."""
        words, states, *padding = zip(*texts)
        joined = (nn.utils.rnn.pad_sequence(words, batch_first=True), torch.stack(states))
        if not padding:
            return joined
        return (*joined, nn.utils.rnn.pad_sequence(padding[0], batch_first=True, padding_value=True))

    def decode(self, features: Sequence[Tensor], text: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Return logits (B, S, H, W).

        Args:
            features: result of `encode_image` for B images.
            text: result of `encode_prompts` for B * S prompts, those of an image one after another.
            size: (H, W) of the images; None: from the stride of the finest map.
        """
        maps = features[:3]
        skips = (maps[0], features[3]) if self.proj.skips is not None else None
        if size is None:
            stride = self.backbone.visual.strides[0]
            size = (maps[0].shape[-2] * stride, maps[0].shape[-1] * stride)
        words, state, *padding = text
        fused = self.neck(maps, state)  # (N, D, h, w)
        fused = self.decoder(fused, words, padding[0] if padding else None)
        logits = self.proj(fused, state, skips)  # (N, 1, 4h, 4w)
        is_bicubic = self.upsampling == "bicubic"
        logits = F.interpolate(logits, size=size, mode=self.upsampling, align_corners=is_bicubic)
        return logits.reshape(maps[0].shape[0], -1, *size)
