"""Stand in for torchvision, which MONAI Label imports when it starts and does not use for segmentation."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_LIBRARY = "torchvision"
_IMPORTED_BY = "monailabel.transform.post"
_UNUSED = ("make_grid", "save_image")
"""Functions that this module takes from `torchvision.utils`, for pictures of pathology slides."""


def import_without_torchvision(module: str = _IMPORTED_BY) -> bool:
    """Import MONAI Label's module that needs torchvision, with an empty stand-in where the real one is missing or does not fit.

    A torchvision built for a GPU fails to import beside a PyTorch built for CPUs, and this project never depends on it. The stand-in
    is gone when this function returns, so no other library takes it for the real one.

    Returns:
        whether the stand-in was needed.
    """
    try:
        importlib.import_module(f"{_LIBRARY}.utils")
        return False
    except (ImportError, RuntimeError, OSError):
        _forget()  # what a failed import left behind
    importlib.import_module("monai")  # it looks for torchvision too, and must not find the stand-in
    package, utils = ModuleType(_LIBRARY), ModuleType(f"{_LIBRARY}.utils")
    package.__path__ = []
    for name in _UNUSED:
        setattr(utils, name, _refuse)
    sys.modules[package.__name__], sys.modules[utils.__name__] = package, utils
    try:
        importlib.import_module(module)
    finally:
        _forget()
    return True


def _forget() -> None:
    for name in [n for n in sys.modules if n == _LIBRARY or n.startswith(f"{_LIBRARY}.")]:
        del sys.modules[name]


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise ImportError(
        "MONAI Label asked for a picture that torchvision makes, which is not installed here (no segmentation needs it); "
        "install the torchvision that fits this PyTorch"
    )
