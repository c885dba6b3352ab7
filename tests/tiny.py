"""Make tiny networks with random weights, their files and what model.json says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from synboost_monai.model_card import PUBLISHED_FACTS, ModelCard, new_card
from synboost_monai.networks import create_segmenter, create_semantic_diffusion_unet

SIZE = 32
"""Side of the networks' square."""


def tiny_network(bundle: str, seed: int = 0, **options: Any) -> nn.Module:
    """Return the tiny network of a bundle; the diffusion model has no branch of zeros, or it would predict nothing."""
    architecture = bundle.removeprefix("echo_")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if architecture != "semantic_diffusion":
            return create_segmenter(architecture, "tiny", **options)
        network = create_semantic_diffusion_unet("tiny", image_size=SIZE, **options)
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.05)
        return network


def tiny_weights(bundle: str, path: Path, seed: int = 0, **options: Any) -> Path:
    """Write the weights of such a network, without a model.json, and return their path."""
    torch.save(tiny_network(bundle, seed, **options).state_dict(), path)
    return path


def tiny_card(bundle: str, licence: str = "not stated", **facts: Any) -> ModelCard:
    """Return the card of such a network."""
    architecture = bundle.removeprefix("echo_")
    own = {"architecture": architecture, **PUBLISHED_FACTS[architecture], "preset": "tiny", "image_size": SIZE}
    return new_card({**own, **facts}, {}, licence=licence)
