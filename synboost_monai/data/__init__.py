"""Turn folders of echocardiograms into records and datalist.json. Names load on first use."""

from synboost_monai.lazy import on_first_use

_MODULE_OF = {
    "CamusDataset": "camus",
    "CamusSummary": "camus",
    "list_images": "datalist",
    "list_label_maps": "datalist",
    "read_camus": "camus",
    "read_datalist": "datalist",
    "read_echonet": "echonet",
    "write_datalist": "datalist",
    "write_subset": "subset",
}
"""Public name -> module of this folder that defines it."""

__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = on_first_use(__name__, _MODULE_OF)
