"""List public weights, fetch them, and convert them to a bundle's model.pt. Names load on first use."""

from synboost_monai.lazy import on_first_use

_MODULE_OF = {
    "convert_weights": "convert",
    "find_weights": "table",
    "get_weights": "fetch",
    "run_action": "actions",
    "weights_table": "table",
}
"""Public name -> module of this folder that defines it."""

__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = on_first_use(__name__, _MODULE_OF)
