"""Provide random weights of tiny networks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bundles.conftest import global_state
from tests.tiny import tiny_weights

__all__ = ["global_state"]
BUNDLES = ("echo_cris", "echo_clipseg", "echo_semantic_diffusion")


@pytest.fixture(autouse=True)
def unseeded(global_state: None) -> None:
    """Restore the global state after each test: the bundles seed globally."""


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the weights: name of each bundle -> model.pt."""
    folder = tmp_path_factory.mktemp("demo_weights")
    return {bundle: tiny_weights(bundle, folder / f"{bundle}.pt") for bundle in BUNDLES}
