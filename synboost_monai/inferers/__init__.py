"""MONAI inferers: network and sampler, network and prompts. Each name is imported on first use: diffusers takes a second."""

from __future__ import annotations

import importlib
from typing import Any

_DIFFUSION = ("SemanticDiffusionInferer", "SemanticDiffusionTrainInferer")


def __getattr__(name: str) -> Any:
    """The public name `name` of the module that holds it."""
    if not name.startswith("_"):
        module = importlib.import_module(f"{__name__}.{'diffusion' if name in _DIFFUSION else 'segmentation'}")
        if name in module.__all__:
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
