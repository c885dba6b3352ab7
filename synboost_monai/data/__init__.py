"""Folders of echocardiograms -> records -> datalist.json.

Names load on first use, so that configs can say `_target_: synboost_monai.data.<name>` and importing stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "CamusDataset": "camus",
    "CamusSummary": "camus",
    "cache_features": "feature_cache",
    "merge_synthetic": "synthetic_merge",
    "read_camus": "camus",
    "list_images": "datalist",
    "list_label_maps": "datalist",
    "read_datalist": "datalist",
    "read_echonet": "echonet",
    "sample_label_maps": "label_map_sampling",
    "training_dataset": "training_data",
    "write_datalist": "datalist",
    "write_simulated": "simulated",
    "write_subset": "subset",
}
"""Public name -> module of this folder that defines it."""

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Load the module that defines a public name."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
