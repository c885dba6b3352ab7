"""Provide random weights of tiny networks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from monai.utils import set_determinism

from synboost_monai.networks import create_segmenter
from synboost_monai.networks.semantic_diffusion_unet import create_semantic_diffusion_unet


@pytest.fixture(autouse=True)
def global_state() -> Iterator[None]:
    """Restore the global state: the bundles seed globally, and other tests must not notice."""
    state = torch.random.get_rng_state()
    yield
    set_determinism(None)
    torch.random.set_rng_state(state)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the weights: echo_cris, echo_clipseg and echo_semantic_diffusion -> model.pt."""
    folder = tmp_path_factory.mktemp("demo_weights")
    networks = {}
    for bundle in ("cris", "clipseg"):
        torch.manual_seed(0)
        networks[f"echo_{bundle}"] = create_segmenter(bundle, "tiny")
    torch.manual_seed(0)
    networks["echo_semantic_diffusion"] = create_semantic_diffusion_unet("tiny", image_size=32)
    for parameter in networks["echo_semantic_diffusion"].parameters():
        if not parameter.any():  # else the network would predict nothing
            torch.nn.init.normal_(parameter, std=0.05)
    paths = {}
    for name, network in networks.items():
        paths[name] = folder / f"{name}.pt"
        torch.save(network.state_dict(), paths[name])
    return paths
