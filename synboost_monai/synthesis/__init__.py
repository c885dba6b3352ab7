"""Turn label maps into synthetic images: sampling label maps, planning, and writing files. Names load on first use."""

from synboost_monai.lazy import on_first_use

_MODULE_OF = {
    "merge_synthetic": "merge",
    "sample_label_maps": "label_maps",
}
"""Public name -> module of this folder that defines it."""

__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = on_first_use(__name__, _MODULE_OF)
