"""Hearts and their ultrasound from nothing: no image and no label map of a person enters here.

`simulate` draws hearts and scanners widely, for training; `write_phantom` draws them narrowly, with volumes that are known exactly, for
tests and first steps; `simulate_stranger` draws what is no apical view. Names load on first use, so that importing stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "SimulatedEcho": "simulator",
    "SimulatedEchoDataset": "dataset",
    "Stranger": "strangers",
    "simulate": "simulator",
    "simulate_stranger": "strangers",
    "simulated_items": "dataset",
    "write_phantom": "phantom",
}
"""Public name -> module of this folder that defines it."""

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Load the module that defines a public name."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
