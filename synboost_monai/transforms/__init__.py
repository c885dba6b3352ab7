"""Transform images and label maps: `array` holds the logic, `dictionary` the versions for MONAI's pipelines (names ending in d).

Names load on first use.
"""

from synboost_monai.lazy import on_first_use

_MODULE_OF = {
    "AssessDoubtd": "postprocessing",
    "CheckLabelMapd": "dictionary",
    "DropAttributesd": "dictionary",
    "EchoInMemoryd": "dictionary",
    "Letterboxd": "dictionary",
    "LoadEchod": "dictionary",
    "LogitsToMasksd": "postprocessing",
    "MasksOfLabelMapd": "dictionary",
    "NormaliseEchod": "dictionary",
    "PromptTokensd": "prompt_tokens",
    "RandPromptTokensd": "prompt_tokens",
    "RandUltrasoundd": "augmentation",
    "RestoreFullFramed": "ultrasound_dicom",
    "RestoreLabelMapd": "postprocessing",
    "TileMasksd": "prompt_tokens",
    "ViewPhaseClassd": "dictionary",
    "check_label_map": "files",
    "checked_items": "files",
    "display_order": "postprocessing",
    "letterbox_image": "array",
    "letterbox_label_map": "array",
    "load_echo": "files",
    "logits_to_label_map": "postprocessing",
    "restore_logits": "postprocessing",
    "write_label_map": "files",
}
"""Public name -> module of this folder that defines it."""

__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = on_first_use(__name__, _MODULE_OF)
