"""SynBoost-MONAI: synthetic echocardiograms that make prompted segmentation better.

Importing the package is cheap; each module imports what it needs, and so does `load_segmenter` when it is first asked for.
"""

from typing import Any

__all__ = ["__version__", "load_segmenter"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "load_segmenter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return import_module(f"{__name__}.predictor").load_segmenter
