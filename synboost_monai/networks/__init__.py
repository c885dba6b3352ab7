"""Define the networks, which know only tensors. Segmenters take an image and prompts, the semantic diffusion UNet a label map.

`create_segmenter` and `create_semantic_diffusion_unet` make them by preset: `published` (the paper's size, the default), `small`
(two CPU cores) and `tiny` (tests). Classes are imported on first use: transformers takes a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synboost_monai.lazy import on_first_use

if TYPE_CHECKING:
    from .clipseg import CLIPSeg
    from .cris import CRIS
    from .export import ExportedSegmenter
    from .lora import add_lora, merged_state_dict
    from .published import load_published, load_weights
    from .segmenters import create_segmenter, freeze_view_head, parameter_groups, to_inference
    from .semantic_diffusion_unet import SemanticDiffusionUNet, create_semantic_diffusion_unet

_MODULE_OF = {
    "CLIPSeg": "clipseg",
    "CRIS": "cris",
    "ExportedSegmenter": "export",
    "SemanticDiffusionUNet": "semantic_diffusion_unet",
    "create_semantic_diffusion_unet": "semantic_diffusion_unet",
    "add_lora": "lora",
    "load_published": "published",
    "load_weights": "published",
    "merged_state_dict": "lora",
    "create_segmenter": "segmenters",
    "freeze_view_head": "segmenters",
    "parameter_groups": "segmenters",
    "to_inference": "segmenters",
}

__all__ = [
    "CLIPSeg",
    "CRIS",
    "ExportedSegmenter",
    "SemanticDiffusionUNet",
    "add_lora",
    "create_segmenter",
    "create_semantic_diffusion_unet",
    "freeze_view_head",
    "load_published",
    "load_weights",
    "merged_state_dict",
    "parameter_groups",
    "to_inference",
]

__getattr__, __dir__ = on_first_use(__name__, _MODULE_OF)
