"""`synboost label`: who is let in, and folders of images in which MONAI Label would write elsewhere."""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path

import pytest

from synboost_monai.label.serve import TOKEN_VARIABLE, checked_token, how_to_connect, own_hosts, run_label

TOKEN = "0123456789abcdef-token"


@pytest.mark.parametrize(
    ("token", "variable", "is_needed", "expected"),
    [
        (None, None, False, None),
        (None, None, True, r"[A-Za-z0-9_-]{32}"),
        (True, None, False, r"[A-Za-z0-9_-]{32}"),
        (False, None, False, None),
        (False, None, True, r"[A-Za-z0-9_-]{32}"),
        (TOKEN, None, False, TOKEN),
        (TOKEN, "another-token-here", True, TOKEN),
        (None, TOKEN, False, TOKEN),
        (True, TOKEN, False, TOKEN),
    ],
)
def test_token(monkeypatch, token, variable, is_needed, expected) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    if variable:
        monkeypatch.setenv(TOKEN_VARIABLE, variable)
    found = checked_token(token, is_needed=is_needed)
    assert found is None if expected is None else re.fullmatch(expected, str(found))


@pytest.mark.parametrize("token", ["short", "with a space in it", "a/path/that/goes/on", "$" * 20])
def test_token_that_is_none_is_refused(token) -> None:
    with pytest.raises(ValueError, match="a token has 16 to 128") as caught:
        checked_token(token, is_needed=True)
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "port", "address", "inside", "outside"),
    [
        ("127.0.0.1", 8000, "127.0.0.1", {"127.0.0.1:8000", "localhost:8000", "[::1]:8000"}, {"127.0.0.1"}),
        ("::1", 80, "::1", {"[::1]:80", "[::1]", "localhost"}, {"::1"}),
        ("192.0.2.7", 8000, "192.0.2.7", {"192.0.2.7:8000"}, {"localhost:8000"}),
        ("GPU1", 8000, "192.0.2.7", {"gpu1:8000"}, {"192.0.2.8:8000"}),
        ("0.0.0.0", 8000, "0.0.0.0", {"127.0.0.1:8000"}, {"evil.example:8000"}),
    ],
)
def test_own_hosts(host, port, address, inside, outside) -> None:
    hosts = own_hosts(host, port, [ipaddress.ip_address(address)])
    assert inside <= hosts and not outside & hosts


def test_address_with_the_token_is_told() -> None:
    text = how_to_connect("gpu1", 8000, ["echo_cris"], TOKEN)
    assert f"http://gpu1:8000/token/{TOKEN} when" in text and f"Bearer {TOKEN}'" in text
    assert "token" not in how_to_connect("127.0.0.1", 8000, ["echo_cris"], None)


def label(studies: Path, **more: object) -> Path:
    weights = studies.parent / "model.pt"
    weights.touch()
    return run_label(
        str(studies),
        bundles=["echo_cris"],
        checkpoint_paths=[str(weights)],
        app_dir=str(studies.parent / "app"),
        **more,
    )  # type: ignore[arg-type]


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    (tmp_path / "studies/labels/final").mkdir(parents=True)
    return tmp_path / "studies"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"host": "no such host"}, "--host must be a name or address"),
        ({"host": ""}, "--host must be a name or address"),
        ({"port": 0}, "--port must be between"),
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
