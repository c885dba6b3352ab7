"""Load a bundle as a segmenter's pipeline or as the diffusion model.

    from synboost_monai import load_segmenter, load_synthesiser
    found = load_segmenter()("echo.dcm", "left ventricle")
    found.mask, found.label_map, found.spacing_mm, found.doubt.verdict
    made = load_synthesiser()("echo_gt.nii.gz", seed=1)
    made.image, made.label_map, made.spacing_mm

Both are built from their bundle's own inference.yaml, part by part, and give what `synboost segment` and `synboost synthesise` give.
"""

from synboost_monai.predictor.bundle import OpenBundle, open_bundle
from synboost_monai.predictor.segmenter import (
    ATTRIBUTES,
    Doubt,
    Pipeline,
    Prediction,
    Segmenter,
    load_segmenter,
)
from synboost_monai.predictor.synthesiser import (
    HIGHEST_STRENGTH,
    SYNTHESIS_BUNDLE,
    Condition,
    Synthesiser,
    Synthetic,
    load_synthesiser,
)

__all__ = [
    "ATTRIBUTES",
    "HIGHEST_STRENGTH",
    "SYNTHESIS_BUNDLE",
    "Condition",
    "Doubt",
    "OpenBundle",
    "Pipeline",
    "Prediction",
    "Segmenter",
    "Synthesiser",
    "Synthetic",
    "load_segmenter",
    "load_synthesiser",
    "open_bundle",
]
