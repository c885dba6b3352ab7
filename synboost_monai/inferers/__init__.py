"""MONAI inferers: network and sampler, network and prompts. Each name is imported on first use."""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = ("diffusion", "segmentation")


def __getattr__(name: str) -> Any:
    """The public name `name` of one of the modules here; they import much, so only when asked."""
    if not name.startswith("_"):
        for module_name in _MODULES:
            module = importlib.import_module(f"{__name__}.{module_name}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
