"""Measure how good segmentations and synthetic images are. Names load on first use."""

from synboost_monai.lazy import on_first_use

_MODULE_OF = {
    "CaseMetrics": "handlers",
    "ManyPromptsInferer": "many_prompts",
    "PromptSensitivity": "many_prompts",
    "SensitivityPromptsd": "many_prompts",
    "WriteCalibration": "handlers",
    "WriteLabelMaps": "handlers",
}
"""Public name -> module of this folder that defines it."""

__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = on_first_use(__name__, _MODULE_OF)
