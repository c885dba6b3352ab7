"""Adapt a segmenter's attention with low-rank matrices (LoRA, Hu et al. 2021, arXiv 2106.09685), using Hugging Face PEFT.

A linear layer y = W x + b of both encoders becomes y = W x + b + (alpha / rank) B A x with A (rank, in) random and B (out, rank) zero
at first. A and B are trained, W and everything else in the encoders are not; decoder, neck and projector are trained as before. For use
without PEFT the products are added to the weights: `merged_state_dict`.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .prompted import attended

ADAPTER_NAME = "default"
"""PEFT's name of the one adapter of each layer."""
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
"""Attributes by which an attention module is recognised, in transformers and in CLIP's pool alike."""
_OUTPUTS = ("out_proj", "c_proj")
"""Names of an attention module's last layer."""


class SplitAttention(nn.Module):
    """Compute the self-attention of an `nn.MultiheadAttention` with the four separate linear layers that adapters need.

    `nn.MultiheadAttention` keeps three of them in one parameter and never calls them as layers. PEFT's own wrapper adds the adapters to
    the parameters before each pass and subtracts them again, which leaves rounding in frozen weights; here they stay untouched.

    Args:
        attention: batch first, without dropout, of equal widths; its parameters are taken over, not copied.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        if not attention.batch_first or attention.dropout or attention.in_proj_weight is None:
            raise ValueError("lora.py: an nn.MultiheadAttention must be batch first, without dropout and of one width")
        self.num_heads = attention.num_heads
        weights, biases = attention.in_proj_weight.detach().chunk(3), attention.in_proj_bias.detach().chunk(3)
        self.q_proj, self.k_proj, self.v_proj = (_linear(weight, bias) for weight, bias in zip(weights, biases))
        self.out_proj = _linear(attention.out_proj.weight.detach(), attention.out_proj.bias.detach())

    def forward(self, x: Tensor, is_causal: bool = False) -> Tensor:
        """Return the output (N, L, D) of self-attention over x (N, L, D); if `is_causal`, no token sees those after it."""
        return self.out_proj(attended(self, x, is_causal))


def add_lora(network: nn.Module, rank: int = 0, alpha: float | None = None, dropout: float = 0.0) -> nn.Module:
    """Add adapters to the attention of both encoders, in place; the output does not change yet.

    CLIPSeg: query, key, value and output projections of all text layers and of the vision layers that are used. CRIS: those of all
    text layers and of the attention pool (an EfficientNet has no attention: then the image encoder stays as it is). Everything else
    in the encoders is frozen, including the statistics of their batch norms: they stay in evaluation mode. Load weights first: the names
    in the state dict change (`merged_state_dict` has the old ones).

    Args:
        network: a segmenter, with its pretrained parts in `encoders`.
        rank: rank of A and B; 4 ... 16 are usual; 0: no adapters, the network is left as it is.
        alpha: the adapters' output is scaled by alpha / rank; None: twice the rank, a scale of 2.
        dropout: probability that a number of an adapter's input is left out in training.
    Returns:
        `network`, so that a bundle config can name this function as a network. `freeze_encoders` is then False: gradients must pass.
    Raises:
        ValueError: if PEFT is not installed, if the network has no encoders, no attention in them, or adapters already, or if a number
            is out of range.
    """
    if not isinstance(rank, int) or rank < 0 or not 0 <= dropout < 1 or (alpha is not None and not alpha > 0):
        raise ValueError(
            f"lora.py: expected rank 0, 1, 2, ..., alpha above 0 and dropout in [0, 1), got {rank}, {alpha} and {dropout}; "
            "set lora_rank, lora_alpha and lora_dropout"
        )
    if rank == 0:
        return network
    encoders = list(getattr(network, "encoders", ()))
    if not encoders:
        raise ValueError(
            f"lora.py: {type(network).__name__} names no encoders, so there is nothing to adapt; set lora_rank to 0"
        )
    if has_lora(network):
        raise ValueError(f"lora.py: {type(network).__name__} has adapters already; add them once")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(
            f"lora_rank is {rank} but the package peft is not installed; run: pip install 'synboost-monai[lora]' "
            "(or set lora_rank to 0)"
        ) from error
    if not _attentions(network, encoders):
        raise ValueError(
            f"lora.py: the encoders of {type(network).__name__} have no attention to adapt; set lora_rank to 0"
        )
    for encoder in encoders:
        _split_attentions(encoder)
        encoder.requires_grad_(False)
    attentions = nn.ModuleList(_attentions(network, encoders))
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=[*_PROJECTIONS, *_OUTPUTS],
    )
    # pass the attentions alone, so that PEFT applies no rules of its own for transformers' models
    inject_adapter_in_model(config, attentions, ADAPTER_NAME)
    network.freeze_encoders = False  # type: ignore[assignment]
    network.train = MethodType(_train, network)  # type: ignore[method-assign]
    return network.train(network.training)


def has_lora(network: nn.Module) -> bool:
    """Return whether `add_lora` has added adapters."""
    return any(_is_adapted(module) for module in network.modules())


def merged_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that the network would have without adapters, with their products added to the weights.

    Names and shapes are those before `add_lora`, so `load_weights` reads it strictly; W + (alpha / rank) B A gives the output of the
    adapted network to 1e-5. The network is left as it is.

    Args:
        network: with or without adapters (then this is its own state dict).
    """
    modules = dict(network.named_modules())
    adapted = {name: module for name, module in modules.items() if _is_adapted(module)}
    split = [name for name, module in modules.items() if isinstance(module, SplitAttention)]
    merged: dict[str, Tensor] = {}
    for key, value in network.state_dict().items():
        owner, _, rest = key.partition(".base_layer.")
        if rest:
            module: Any = adapted[owner]
            if rest == "weight":
                value = value + module.get_delta_weight(ADAPTER_NAME).detach().to(value.dtype)
            merged[f"{owner}.{rest}"] = value
        elif not any(key.startswith(f"{name}.lora_") for name in _owners(key)):
            merged[key] = value
    for name in split:
        for kind in ("weight", "bias"):
            parts = [merged.pop(f"{name}.{projection}.{kind}") for projection in _PROJECTIONS]
            merged[f"{name}.in_proj_{kind}"] = torch.cat(parts)
    return merged


def _owners(key: str) -> list[str]:
    """List the names of the modules that contain a key of a state dict."""
    parts = key.split(".")
    return [".".join(parts[:number]) for number in range(1, len(parts))]


def _is_adapted(module: nn.Module) -> bool:
    """Return whether a module is a PEFT layer with our adapter (checked without importing PEFT)."""
    return hasattr(module, "get_delta_weight") and ADAPTER_NAME in getattr(module, "lora_A", ())


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Make a linear layer of this weight and bias."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
    return layer


def _split_attentions(module: nn.Module) -> None:
    """Replace every `nn.MultiheadAttention` within a module by a `SplitAttention`."""
    for name, child in module.named_children():
        if isinstance(child, nn.MultiheadAttention):
            setattr(module, name, SplitAttention(child))
        else:
            _split_attentions(child)


def _attentions(network: nn.Module, encoders: list[nn.Module]) -> list[nn.Module]:
    """List the encoders' attentions, including those that are yet to be split."""
    unused = _unused_layers(network)
    modules = (module for encoder in encoders for module in encoder.modules() if id(module) not in unused)
    return [
        module
        for module in modules
        if isinstance(module, nn.MultiheadAttention)
        or all(isinstance(getattr(module, projection, None), nn.Linear) for projection in _PROJECTIONS)
    ]


def _unused_layers(network: nn.Module) -> set[int]:
    """Return the ids of modules in CLIPSeg's vision layers behind the last one that its decoder takes: no output depends on them."""
    extract_layers = getattr(network, "extract_layers", None)
    if extract_layers is None:
        return set()
    layers = network.clip.vision_model.encoder.layers[max(extract_layers) + 1 :]  # type: ignore[union-attr]
    return {id(module) for layer in layers for module in layer.modules()}  # type: ignore[union-attr]


def _train(network: nn.Module, mode: bool = True) -> nn.Module:
    """Replace the network's `train`: its encoders stay in evaluation mode, except for the dropout of their adapters."""
    type(network).train(network, mode)
    for encoder in network.encoders:  # type: ignore[union-attr]
        encoder.eval()
        for module in encoder.modules():
            if _is_adapted(module):
                module.lora_dropout.train(mode)  # type: ignore[union-attr, operator]
    return network
