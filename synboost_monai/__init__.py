"""SynBoost-MONAI: synthetic echocardiograms that make prompted segmentation better.

Importing the package is cheap; each module imports what it needs, and so do `load_segmenter` and
`load_synthesiser` when they are first asked for.
"""

from synboost_monai.lazy import on_first_use

__all__ = ["__version__", "load_segmenter", "load_synthesiser"]
__version__ = "0.2.0"

__getattr__, __dir__ = on_first_use(__name__, {"load_segmenter": "predictor", "load_synthesiser": "predictor"})
