"""Simulate hearts and their ultrasound without any image or label map of a person.

`simulate` draws hearts and scanners from wide ranges, for training; `write_phantom` draws them from narrow ranges, with exactly known
volumes, for tests and first steps; `simulate_stranger` draws pictures without an apical view. Names load on first use, so importing
stays cheap.
"""

from synboost_monai.lazy import on_first_use

_MODULE_OF = {
    "SimulatedEcho": "simulator",
    "SimulatedEchoDataset": "dataset",
    "Stranger": "strangers",
    "simulate": "simulator",
    "simulate_stranger": "strangers",
    "simulated_items": "dataset",
    "write_phantom": "phantom",
    "write_simulated": "write",
}
"""Public name -> module of this folder that defines it."""

__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = on_first_use(__name__, _MODULE_OF)
