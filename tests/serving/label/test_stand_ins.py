"""Test that MONAI Label's import of torchvision works without it, and that no other library takes the stand-in for it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from synboost_monai.serving.label.stand_ins import import_without_torchvision


def test_module_is_imported_and_the_stand_in_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    (tmp_path / "wants_pictures.py").write_text("from torchvision.utils import make_grid, save_image\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    assert import_without_torchvision("wants_pictures")
    module = importlib.import_module("wants_pictures")
    assert not [name for name in sys.modules if name.split(".")[0] == "torchvision"]
    with pytest.raises(ImportError, match="no segmentation needs it"):
        module.make_grid()
    del sys.modules["wants_pictures"]


def test_torchvision_that_works_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").touch()
    (tmp_path / "torchvision/utils.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    assert not import_without_torchvision("no_such_module")
    for name in ("torchvision", "torchvision.utils"):
        monkeypatch.delitem(sys.modules, name)
