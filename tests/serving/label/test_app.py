"""Test what our app asks of MONAI Label's stock app, with a stand-in for that."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

USED = {
    "monailabel.interfaces.app": "MONAILabelApp",
    "monailabel.interfaces.datastore": "Datastore",
    "monailabel.interfaces.tasks.scoring": "ScoringMethod",
    "monailabel.interfaces.tasks.strategy": "Strategy",
    "monailabel.tasks.infer.bundle": "BundleInferTask",
    "monailabel.tasks.train.bundle": "BundleTrainTask",
}
"""Module of MONAI Label -> the class that app.py takes from it."""


class StockApp:
    """Answer with the request that it gets."""

    def __init__(self, images: dict[str, str], prompt: str) -> None:
        self.images, self.prompt = images, prompt
        self._infers = self.init_infers()

    def datastore(self) -> Any:
        return SimpleNamespace(get_image_uri=lambda name: self.images.get(name, ""))

    def init_infers(self) -> dict[str, Any]:
        config = {"device": ["cpu"], "model_filename": ["model.pt"], "prompt": self.prompt}
        return {"echo_cris": SimpleNamespace(_config=config, displayable_configs={"prompt": self.prompt})}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        return request


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, used in USED.items():
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i]), ModuleType(".".join(parts[:i])))
        setattr(sys.modules[name], used, type(used, (), {}))
    monkeypatch.delitem(sys.modules, "synboost_monai.serving.label.app", raising=False)
    from synboost_monai.serving.label.app import EchoBundles

    yield lambda images, prompt="": type("App", (EchoBundles, StockApp), {})(images, prompt)
    sys.modules.pop("synboost_monai.serving.label.app", None)


def test_images_of_the_datastore_alone(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").mkdir()
    app = make({"a": "/studies/a.png", "d": "/studies/d.dcm", "secret": "/studies/secret.png"})
    assert app.infer({"model": "echo_cris", "image": "a"})["image"] == "/studies/a.png"
    assert app.infer({"model": "echo_cris", "image": "secret"})["image"] == "/studies/secret.png"  # not the folder here
    assert app.infer({"model": "echo_cris", "image": "d"})["result_extension"] == ".nii.gz"
    for image in (str(tmp_path / "secret"), "other", "", None):
        with pytest.raises(ValueError, match="there is no image"):
            app.infer({"model": "echo_cris", "image": image})


def test_options_reach_the_config_as_they_are(make: Any) -> None:
    from monai.bundle import ConfigParser

    for asked, default in (("left # atrium", ""), (None, "$1 + 1"), (None, "@network"), ("left atrium", "$1 + 1")):
        request = {"model": "echo_cris", "image": "a"} | ({"prompt": asked} if asked else {})
        told = make({"a": "/a.png"}, default).infer(request)["prompt"]
        parser = ConfigParser({"prompt": told})
        assert parser.get_parsed_content("prompt") == (asked or default)


def test_no_viewer_chooses_devices_or_files(make: Any) -> None:
    assert make({}, "")._infers["echo_cris"]._config == {"prompt": ""}


def test_a_training_may_replace_the_weights_that_it_starts_from_and_nothing_else_that_it_reads(make: Any) -> None:
    import yaml

    from synboost_monai.bundle_run import config_files
    from synboost_monai.serving.label.app import may_replace_its_start

    for bundle in ("echo_cris", "echo_clipseg"):
        handlers = yaml.safe_load(config_files(bundle, "train")[0].read_text(encoding="utf-8"))["train"]["handlers"]
        changed = [may_replace_its_start(handler) for handler in handlers]
        different = [(old["inputs"], new["inputs"]) for old, new in zip(handlers, changed) if old != new]
        ((before, after),) = different
        assert [i for i in before if i not in after] == ["@init_checkpoint"] and "@train::dataset::data" in after


def test_the_network_is_that_of_the_weights_as_they_lie_there(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head for the view is asked what it sees, until a training has dropped it."""
    import torch
    from monai.bundle import ConfigParser

    from synboost_monai.bundle_run import bundle_dir
    from synboost_monai.model_card import write_model
    from synboost_monai.serving.label import app as ours
    from tests.tiny import tiny_card, tiny_network

    class Task(ours.BundleInferTask):
        """Hold a bundle as MONAI Label does: the network is made once from the config, and newer weights are loaded again."""

        def __init__(self) -> None:
            self.bundle_path, self.displayable_configs, self._config, self.num_cleared = str(tmp_path), {}, {}, 0
            self.bundle_config = ConfigParser()
            self.bundle_config.read_config(bundle_dir("echo_cris") / "configs/inference.yaml")
            self.bundle_config["bundle_root"] = str(tmp_path)
            self.network = self.bundle_config.get_parsed_content("network_def")

        def get_path(self) -> str:
            return str(tmp_path / "models/model.pt")

        def clear_cache(self) -> None:
            self.num_cleared += 1

    def write(has_view_head: bool) -> None:
        state = tiny_network("cris", has_view_head=has_view_head).state_dict()
        write_model(state, tmp_path / "models/model.pt", tiny_card("cris", has_view_head=has_view_head))

    (tmp_path / "models").mkdir()
    write(has_view_head=True)
    monkeypatch.setattr(StockApp, "init_infers", lambda self: {"echo_cris": Task()})
    app = make({"a": "/a.png"})
    task = app._infers["echo_cris"]
    assert task.load_strict is True
    for has_view_head, num_cleared in ((True, 0), (False, 1), (False, 1), (True, 2)):
        write(has_view_head)
        app.infer({"model": "echo_cris", "image": "a"})
        assert (task.network.view_head is not None) == has_view_head and task.num_cleared == num_cleared
        task.network.load_state_dict(torch.load(task.get_path(), weights_only=True))  # strictly
        task.bundle_config.parse()  # MONAI Label's, before each image
        assert task.bundle_config.get_parsed_content("inferer").with_view is has_view_head
