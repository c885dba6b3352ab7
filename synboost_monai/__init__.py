"""SynBoost-MONAI: synthetic echocardiograms that make prompted segmentation better.

Importing the package is cheap; each module imports what it needs, and so do `load_segmenter` and
`load_synthesiser` when they are first asked for.
"""

from typing import Any

__all__ = ["__version__", "load_segmenter", "load_synthesiser"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in ("load_segmenter", "load_synthesiser"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.predictor"), name)
