"""Provide the bundle of a segmenter, CRIS's or both in turn, and runs of its configs with tiny networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism

BUNDLES_DIR = Path(__file__).parents[2] / "bundles"
BUNDLES = ("echo_cris", "echo_clipseg")
both = pytest.mark.parametrize("bundle", BUNDLES, indirect=True)
"""For what depends on the network. What the configs say is tested once: `test_bundles_differ_only_where_the_networks_do` compares them."""
TINY = {"preset": "tiny", "image_size": 32, "device": "cpu"}
"""Overrides that make a run take a second."""
DIFFUSION = {"max_epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "ema_decay": 0.9, "picture_steps": 2}
"""The same for a training of the diffusion model."""
WRITTEN = [".lock", "log.txt", "model.json", "model.pt", "tensorboard"]
"""What every training leaves in its folder."""


@pytest.fixture(scope="module")
def bundle(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "echo_cris"))


@pytest.fixture
def global_state() -> Iterator[None]:
    """Restore the global state: the bundles seed globally, and other tests must not notice."""
    state = torch.random.get_rng_state()
    yield
    set_determinism(None)
    torch.random.set_rng_state(state)


def workflow(bundle: str, configs: Sequence[str], kind: str = "infer", **overrides: Any) -> ConfigWorkflow:
    """Make a bundle's run as `monai.bundle run` does, without its logging."""
    files = [str(BUNDLES_DIR / bundle / "configs" / f"{name}.yaml") for name in configs]
    values = {key: str(value) if isinstance(value, Path) else value for key, value in {**TINY, **overrides}.items()}
    run = ConfigWorkflow(files, workflow_type=kind, logging_file=False, **values)
    run.initialize()
    return run


def read_yaml(bundle: str, name: str) -> dict[str, Any]:
    """Read one config of a bundle."""
    return yaml.safe_load((BUNDLES_DIR / bundle / "configs" / f"{name}.yaml").read_text())
