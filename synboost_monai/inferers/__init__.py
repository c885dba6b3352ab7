"""Provide MONAI inferers for synthesis and prompted segmentation. Names load on first use: diffusers takes a second."""

from synboost_monai.lazy import on_first_use

_MODULE_OF = {
    "PreparePromptedBatch": "segmentation",
    "PromptedSegmentationInferer": "segmentation",
    "PassesInferer": "passes",
    "SemanticDiffusionInferer": "diffusion",
    "SemanticDiffusionTrainInferer": "diffusion",
}
"""Public name -> module of this folder that defines it."""

__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = on_first_use(__name__, _MODULE_OF)
