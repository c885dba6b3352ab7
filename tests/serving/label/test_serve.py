"""Test `synboost label`: who is let in, and folders of images in which MONAI Label would write elsewhere."""

from __future__ import annotations

import fcntl
import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from synboost_monai.serving.label import serve
from synboost_monai.serving.label.serve import how_to_connect, run_label
from synboost_monai.serving.options import LabelOptions

TOKEN = "0123456789abcdef-token"


def test_address_with_the_token_is_told() -> None:
    text = how_to_connect("gpu1", 8000, ["echo_cris"], TOKEN)
    assert f"http://gpu1:8000/token/{TOKEN} when" in text and f"Bearer {TOKEN}'" in text
    assert "token" not in how_to_connect("127.0.0.1", 8000, ["echo_cris"], None)


def label(studies: Path, **more: object) -> Path:
    weights = studies.parent / "model.pt"
    weights.touch()
    options = LabelOptions("echo_cris", str(weights), app_dir=str(studies.parent / "app"), **more)  # type: ignore[arg-type]
    return run_label(str(studies), options)


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    (tmp_path / "studies/labels/final").mkdir(parents=True)
    return tmp_path / "studies"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"host": "no such host"}, "--host must be a name or address"),
        ({"host": ""}, "--host must be a name or address"),
        ({"port": 0}, "--port must be 1 to 65535"),
        ({"token": "short"}, "a token has 16"),
    ],
)
def test_mistakes_are_one_line(studies, more, message) -> None:
    with pytest.raises(ValueError, match=message):
        label(studies, **more)


@pytest.mark.parametrize("name", [".lock", "datastore_v2.json", "labels/final/a.png"])
def test_links_that_would_be_written_through_are_refused(studies, name) -> None:
    (studies / name).symlink_to(studies.parent / "elsewhere")
    with pytest.raises(ValueError, match="is a link to elsewhere"):
        label(studies)


RECORD = {"name": "", "description": "", "images_dir": ".", "labels_dir": "labels", "objects": {}}


@pytest.mark.parametrize(
    "record",
    [
        {**RECORD, "images_dir": "/etc"},
        {**RECORD, "labels_dir": "../elsewhere"},
        {**RECORD, "objects": {"../a": {"image": {"ext": ".png"}, "labels": {}}}},
        {**RECORD, "objects": {"a": {"image": {"ext": "/../b.png"}, "labels": {}}}},
        {**RECORD, "objects": {"a": {"image": {"ext": ".png"}, "labels": {"..": {}}}}},
        [],
    ],
)
def test_list_of_images_elsewhere_is_refused(studies, record) -> None:
    (studies / "datastore_v2.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ValueError, match="is not MONAI Label's list of the images of this folder"):
        label(studies)


def test_own_folder_of_images_passes(studies) -> None:
    (studies / "a.png").symlink_to(studies.parent / "elsewhere.png")  # images may lie elsewhere
    good = {**RECORD, "objects": {"a": {"image": {"ext": ".png", "info": {}}, "labels": {"final": {"ext": ".png"}}}}}
    (studies / "datastore_v2.json").write_text(json.dumps(good), encoding="utf-8")
    with pytest.raises(ValueError, match="cannot run MONAI Label|model.pt"):  # what is checked next
        label(studies)


def test_an_app_folder_has_one_server_at_a_time(studies, monkeypatch) -> None:
    app, served = studies.parent / "app", []
    app.mkdir()
    monkeypatch.setattr(serve, "check_versions", lambda: None)
    monkeypatch.setattr(serve, "listening", lambda host, port: nullcontext())
    monkeypatch.setattr(serve, "make_app_folder", lambda folder, planned: False)
    monkeypatch.setattr(serve, "_serve", lambda *words: served.append(words[0]))
    with open(app / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as another process would
        with pytest.raises(ValueError, match="app: process .* is at work here"):
            label(studies)
        assert label(studies, dry_run=True) == app and not served
    assert label(studies) == app and served == [app]
