"""Define CLIPSeg: CLIP with a small transformer decoder, trained end to end, with several prompts per image.

Lüddecke & Ecker, CVPR 2022 (arXiv 2112.10003). Modules and weights are those of transformers' `CLIPSegForImageSegmentation`; the
forward pass is ours, because theirs runs both encoders without gradients, encodes the image again for each prompt, and computes
vision layers that no output depends on. Same weights, same logits.

B: batch, S: prompts of one image, N = B * S, L: tokens of a prompt, D: width of the vision transformer, R: reduced width of the
decoder, P: width of text embeddings, h and w: rows and columns of the patch grid, T = 1 + h * w tokens (class token first).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

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
    trim_to_end,
)
from .view_head import ViewHead


class HybridPatchEmbedding(nn.Module):
    """Embed patches of stride 8 made of EfficientNet-lite0's maps instead of raw pixels (a hybrid ViT, Dosovitskiy et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = EfficientNetLite0()
        self.fine = nn.Conv2d(FEATURE_CHANNELS[4], width, 2, stride=2, bias=False)
        self.middle = nn.Conv2d(FEATURE_CHANNELS[8], width, 1, bias=False)
        self.coarse = nn.Conv2d(FEATURE_CHANNELS[16], width, 1, bias=False)
        self.deep = nn.Conv2d(FEATURE_CHANNELS[32], width, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Return patch embeddings (B, D, H/8, W/8), and the encoder's maps by stride."""
        features = self.encoder.forward_features(image)
        # each map passes a 1x1 convolution at its own size, then grows: the same as joining them at stride 8, but cheaper
        h = F.interpolate(self.deep(features[32]), scale_factor=2, mode="bilinear") + self.coarse(features[16])
        h = F.interpolate(h, scale_factor=2, mode="bilinear") + self.middle(features[8]) + self.fine(features[4])
        return h, features


class _SkipHead(nn.Module):
    """Add, in the middle of the decoder's upsampling, a finer map of the image and FiLM by the prompt (not in the paper)."""

    def __init__(self, channels: int, text_width: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(FEATURE_CHANNELS[4], channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv_norm = nn.BatchNorm2d(channels)
        self.film = nn.Linear(text_width, 2 * channels)

    def forward(self, x: Tensor, fine: Tensor, text: Tensor) -> Tensor:
        """Return (N, C, H/4, W/4) from the same, the image's map at stride 4, (B, ..., H/4, W/4), and text embeddings (N, P)."""
        skip = self.skip(fine)  # once for all prompts
        h = (x.unflatten(0, (fine.shape[0], -1)) + skip.unsqueeze(1)).flatten(0, 1)
        h = F.relu(self.norm(h), inplace=True)
        scale, shift = self.film(text)[..., None, None].chunk(2, dim=1)
        return F.relu(torch.addcmul(shift, self.conv_norm(self.conv(h)), 1 + scale), inplace=True)


@dataclass(frozen=True)
class CLIPSegSettings:
    """Hold sizes and parts of a CLIPSeg; the defaults are the published `CIDAS/clipseg-rd64-refined`: 150.7 million parameters, for 352 px.

    Raises:
        ValueError: if a choice does not exist, or two choices are incompatible.
    """

    image_encoder: str = "patches"
    """`patches` (published: pixels in patches) or `efficientnet_lite0` (stride 8, `patch_size` is then 8)."""
    image_size: int = 224
    """Image size in pixels for which position codes are stored; they are resized (bicubic) to any other size."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    vision_width: int = 768
    """Width of the vision transformer; its MLPs are 4 times as wide."""
    vision_heads: int = 12
    vision_layers: int = 12
    text_width: int = 512
    """Width of the text transformer; its MLPs are 4 times as wide."""
    text_heads: int = 8
    text_layers: int = 12
    context_length: int = CONTEXT_LENGTH
    """Longest prompt in tokens."""
    vocabulary_size: int = VOCABULARY_SIZE
    projection_width: int = 512
    """Width P of the space that image and text share."""
    extract_layers: Sequence[int] = (3, 6, 9)
    """Vision layers (from 0) whose output the decoder takes; layers after the last of them are in the state dict, but not computed."""
    reduced_width: int = 64
    """Width of the decoder."""
    decoder_heads: int = 4
    decoder_ffn_width: int = 2048
    has_skips: bool = False
    """Whether the map at stride 4 also goes into the upsampling (EfficientNet only; not in the paper)."""
    freeze_token_embedding: bool = False
    """Whether the table of tokens is not trained: a table from scratch learns little from a few prompts."""
    has_view_head: bool = False
    """Whether the network also predicts the view and the moment that an image shows (`view_logits`; not in the paper)."""

    def __post_init__(self) -> None:
        if self.image_encoder not in ("patches", "efficientnet_lite0"):
            raise ValueError(
                f"CLIPSeg: image_encoder must be 'patches' or 'efficientnet_lite0', got {self.image_encoder!r}"
            )
        is_hybrid = self.image_encoder == "efficientnet_lite0"
        if is_hybrid and self.patch_size != 8:
            raise ValueError(
                f"CLIPSeg: image_encoder='efficientnet_lite0' has stride 8; set patch_size to 8, not {self.patch_size}"
            )
        if self.has_skips and not is_hybrid:
            raise ValueError("CLIPSeg: has_skips needs image_encoder='efficientnet_lite0'")
        if max(self.extract_layers) >= self.vision_layers:
            raise ValueError(
                f"CLIPSeg: extract_layers {tuple(self.extract_layers)} need vision_layers > {max(self.extract_layers)}"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "published": {},
    "small": {
        "image_encoder": "efficientnet_lite0",
        "image_size": 160,
        "patch_size": 8,
        "vision_width": 128,
        "vision_heads": 4,
        "vision_layers": 3,
        "text_width": 96,
        "text_heads": 4,
        "text_layers": 2,
        "projection_width": 128,
        "extract_layers": (0, 1, 2),
        "reduced_width": 64,
        "decoder_heads": 2,
        "decoder_ffn_width": 256,
        "has_skips": True,
        "freeze_token_embedding": True,
    },
    "tiny": {
        "image_size": 32,
        "patch_size": 16,
        "vision_width": 16,
        "vision_heads": 2,
        "vision_layers": 4,
        "text_width": 16,
        "text_heads": 2,
        "text_layers": 2,
        "projection_width": 16,
        "extract_layers": (0, 1, 2),
        "reduced_width": 8,
        "decoder_heads": 2,
        "decoder_ffn_width": 32,
    },
}
"""Preset -> fields of `CLIPSegSettings` that differ from the published network."""


class CLIPSeg(PromptedSegmenter):
    """CLIPSeg modulates CLIP's vision layers by the prompt, and decodes them into a mask for each prompt (Lüddecke and Ecker 2022).

    Args:
        settings: sizes and parts; None: the published ones.
        freeze_encoders: do not train the image and text encoders; their batch norms keep their statistics.
    """

    def __init__(self, settings: CLIPSegSettings | None = None, *, freeze_encoders: bool = False) -> None:
        super().__init__()
        s = settings or CLIPSegSettings()
        text: dict[str, Any] = {
            "vocab_size": s.vocabulary_size,
            "max_position_embeddings": s.context_length,
            "hidden_size": s.text_width,
            "intermediate_size": 4 * s.text_width,
            "num_attention_heads": s.text_heads,
            "num_hidden_layers": s.text_layers,
        }
        vision: dict[str, Any] = {
            "image_size": s.image_size,
            "patch_size": s.patch_size,
            "hidden_size": s.vision_width,
            "intermediate_size": 4 * s.vision_width,
            "num_attention_heads": s.vision_heads,
            "num_hidden_layers": s.vision_layers,
        }
        config = CLIPSegConfig(
            text_config=text,
            vision_config=vision,
            projection_dim=s.projection_width,
            extract_layers=list(s.extract_layers),
            reduce_dim=s.reduced_width,
            decoder_num_attention_heads=s.decoder_heads,
            decoder_intermediate_size=s.decoder_ffn_width,
            use_complex_transposed_convolution=True,
        )
        network = CLIPSegForImageSegmentation(config)
        self.config = config  # transformers' own settings, for code that uses its class
        self.clip = network.clip
        self.decoder = network.decoder
        if s.image_encoder == "efficientnet_lite0":
            self.clip.vision_model.embeddings.patch_embedding = HybridPatchEmbedding(s.vision_width)
            self._initialise_for_training_from_scratch()
        self.skip_head = _SkipHead(s.reduced_width // 2, s.projection_width) if s.has_skips else None
        self.view_head = ViewHead(s.vision_width) if s.has_view_head else None
        self.register_buffer("default_input_ids", default_input_ids(), persistent=False)
        self.extract_layers = tuple(s.extract_layers)
        self.context_length = s.context_length
        self.freeze_encoders = freeze_encoders
        self._positions = Memo(8)
        # no output depends on these, so no optimiser or torchrun may wait for their gradients
        vision_model = self.clip.vision_model
        unused = [*vision_model.encoder.layers[max(s.extract_layers) + 1 :], vision_model.post_layernorm]
        for module in [*unused, self.clip.visual_projection]:
            module.requires_grad_(False)
        self.clip.logit_scale.requires_grad_(False)
        if s.freeze_token_embedding:
            self.clip.text_model.embeddings.token_embedding.requires_grad_(False)
        if freeze_encoders:
            self.clip.requires_grad_(False)
        self.train()  # frozen encoders stay in evaluation mode

    def _initialise_for_training_from_scratch(self) -> None:
        """Initialise the network so that it can learn without the transformer over the image, but responds to the prompt from the start.

        transformers' initialisation expects CLIP's weights in the encoders; with it, a small network does not learn in minutes. Residual
        branches over the image do nothing at first; FiLM starts near 1 and differs by prompt; convolutions keep the scale.
        """
        decoder = self.decoder
        for layer in (*self.clip.vision_model.encoder.layers, *decoder.layers):
            nn.init.zeros_(layer.self_attn.out_proj.weight)
            nn.init.zeros_(layer.mlp.fc2.weight)
        for module in (*decoder.transposed_convolution, *decoder.reduces, decoder.film_mul, decoder.film_add):
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                module.reset_parameters()
        nn.init.ones_(decoder.film_mul.bias)

    @property
    def encoders(self) -> list[nn.Module]:
        """List the pretrained parts, which are frozen, or trained with a lower learning rate."""
        return [self.clip]

    @property
    def image_encoder(self) -> nn.Module:
        """Return the part that turns pixels into patches: EfficientNet-lite0 in the small preset."""
        embedding = self.clip.vision_model.embeddings.patch_embedding
        return embedding.encoder if isinstance(embedding, HybridPatchEmbedding) else embedding

    @property
    def encoder_stages(self) -> list[list[nn.Module]]:
        """List each encoder's parts from input to output, for learning rates by layer."""
        vision, text = self.clip.vision_model, self.clip.text_model
        used = vision.encoder.layers[: max(self.extract_layers) + 1]
        return [[vision.embeddings, *used], [text.embeddings, *text.encoder.layers, text.final_layer_norm]]

    def text_encoder_parameters(self) -> list[Tensor]:
        """List all parameters that text features depend on."""
        return [*self.clip.text_model.parameters(), *self.clip.text_projection.parameters()]

    def _position_codes(self, num_rows: int, num_columns: int) -> Tensor:
        """Return (1 + num_rows * num_columns, D) position codes; resized once for each size, unless they are being trained."""
        stored = self.clip.vision_model.embeddings.position_embedding.weight
        return self._positions.one(
            [stored], (num_rows, num_columns), lambda: _resize_positions(stored, num_rows, num_columns)
        )

    def encode_image(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return features of images (B, 3, H, W): activations (B, T, D) of the extracted layers, first to last, and, with skips, the map
        at stride 4.
        """
        check_image(image)
        model = self.clip.vision_model
        embeddings, features = model.embeddings, {}
        patches = embeddings.patch_embedding(image)
        if isinstance(patches, tuple):
            patches, features = patches
        grid = patches.shape[-2:]
        class_token = embeddings.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        x = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1)  # (B, T, D)
        x = x + self._position_codes(grid[0], grid[1]).to(x.dtype)
        x = model.pre_layrnorm(x)
        activations = []
        for index, layer in enumerate(model.encoder.layers[: max(self.extract_layers) + 1]):
            x = _encoder_layer(layer, x)
            if index in self.extract_layers:
                activations.append(x)
        return (*activations, features[4]) if self.skip_head is not None else tuple(activations)

    def deepest_features(self, features: Sequence[Tensor]) -> Tensor:
        """Return the last extracted layer's patches as a map; the images must have been squares."""
        patches = features[len(self.extract_layers) - 1][:, 1:]  # without the class token
        side = round(patches.shape[1] ** 0.5)
        return patches.transpose(1, 2).unflatten(-1, (side, side))

    def encode_prompts(self, input_ids: Tensor) -> tuple[Tensor]:
        """Return text embeddings (N, P) of token ids (N, L), from the first end token: the token with the highest id."""
        model = self.clip.text_model
        embeddings = model.embeddings
        ids, inverse = distinct_prompts(trim_to_end(input_ids))
        check_length(ids, self.context_length)
        end = ids.argmax(dim=-1)
        ids = ids.to(embeddings.token_embedding.weight.device)
        x = embeddings.token_embedding(ids) + embeddings.position_embedding.weight[: ids.shape[1]]
        for layer in model.encoder.layers:
            x = _encoder_layer(layer, x, is_causal=True)
        x = x[torch.arange(x.shape[0], device=x.device), end.to(x.device)]
        embedding = self.clip.text_projection(model.final_layer_norm(x))
        return (embedding if inverse is None else embedding[inverse.to(x.device)],)

    def split_prompts(self, text: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
        """Split the text features of N prompts into those of each."""
        return [(embedding,) for embedding in text[0]]

    def join_prompts(self, texts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor]:
        """Join the text features of single prompts into those of all N."""
        return (torch.stack([embedding for (embedding,) in texts]),)

    def decode(self, features: Sequence[Tensor], text: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Return logits (B, S, H, W).

        Args:
            features: result of `encode_image` for B images.
            text: result of `encode_prompts` for B * S prompts, those of an image one after another.
            size: (H, W) of the images; None: they were squares.
        """
        (embedding,) = text
        activations, fine = (features[:-1], features[-1]) if self.skip_head is not None else (features, None)
        batch_size, num_tokens = activations[0].shape[:2]
        num_prompts = embedding.shape[0] // batch_size
        patch_size = self.clip.vision_model.embeddings.patch_size
        if size is None:
            side = round((num_tokens - 1) ** 0.5) * patch_size
            size = (side, side)
        decoder = self.decoder
        x: Tensor | None = None
        layers = zip(reversed(activations), decoder.layers, decoder.reduces)
        for index, (activation, layer, reduce) in enumerate(layers):
            reduced = reduce(activation)  # (B, T, R): once for all prompts
            h = reduced.unsqueeze(1) if x is None else x.unflatten(0, (-1, num_prompts)) + reduced.unsqueeze(1)
            if index == decoder.conditional_layer:
                scale, shift = (
                    film(embedding)[:, None].unflatten(0, (-1, num_prompts))
                    for film in (decoder.film_mul, decoder.film_add)
                )
                h = scale * h + shift  # (B, S, T, R)
            x = _decoder_layer(layer, h.expand(-1, num_prompts, -1, -1).flatten(0, 1))
        assert x is not None
        grid = (size[0] // patch_size, size[1] // patch_size)
        x = x[:, 1:].transpose(1, 2).unflatten(-1, grid)  # (N, R, h, w), without the class token
        if self.skip_head is None:
            logits = decoder.transposed_convolution(x)
        else:
            assert fine is not None
            conv, relu, up, _, last = decoder.transposed_convolution
            logits = last(self.skip_head(up(relu(conv(x))), fine, embedding))
        if logits.shape[-2:] != size:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return logits.reshape(batch_size, num_prompts, *size)


def _resize_positions(stored: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """Resize the position codes of a square grid to (1 + num_rows * num_columns, D); the class token's code comes first."""
    side = round((len(stored) - 1) ** 0.5)
    if (num_rows, num_columns) == (side, side):
        return stored
    grid = stored[1:].T.reshape(1, -1, side, side)
    grid = F.interpolate(grid, size=(num_rows, num_columns), mode="bicubic", align_corners=False)
    return torch.cat([stored[:1], grid[0].flatten(1).T])


def _encoder_layer(layer: nn.Module, x: Tensor, is_causal: bool = False) -> Tensor:
    """Apply a `CLIPSegEncoderLayer`, which normalises before each part."""
    attention = layer.self_attn
    x = x + attention.out_proj(attended(attention, layer.layer_norm1(x), is_causal))
    return x + layer.mlp(layer.layer_norm2(x))


def _decoder_layer(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a `CLIPSegDecoderLayer`, which normalises after each part."""
    x = layer.layer_norm1(x + layer.self_attn.out_proj(attended(layer.self_attn, x)))
    return layer.layer_norm2(x + layer.mlp(x))
