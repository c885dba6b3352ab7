"""Define the networks, which know only tensors. Segmenters take an image and prompts, the semantic diffusion UNet a label map.

`create_segmenter` and `create_semantic_diffusion_unet` make them by preset: `published` (the paper's size, the default), `small`
(two CPU cores) and `tiny` (tests). Classes are imported on first use: transformers takes a second.
"""

from synboost_monai.lazy import on_first_use

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
"""Public name -> module of this folder that defines it."""

__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = on_first_use(__name__, _MODULE_OF)
