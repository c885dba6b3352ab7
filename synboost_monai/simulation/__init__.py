"""Hearts and their ultrasound from nothing: no image and no label map of a person enters here.

`simulate` draws hearts and scanners widely, for training; `write_phantom` draws them narrowly, with volumes that are known exactly, for
tests and first steps; `simulate_stranger` draws what is no apical view. Names load on first use, so that importing stays cheap.
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
