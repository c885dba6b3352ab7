"""Requests that MONAI's config parser would run as code."""

from __future__ import annotations

from typing import Any

import pytest

from synboost_monai.label.client import checked_request


def test_a_plain_request_stays_as_it_is() -> None:
    request = {
        "model": "echo_cris",
        "image": "a@b 50%.nii.gz",
        "prompt": " left  atrium ",
        "max_epochs": 1,
        "labels": ["a", None],
    }
    assert checked_request(request) == {**request, "prompt": "left atrium"}
    assert checked_request({"prompt": ""}) == {"prompt": ""}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompt": "$__import__('os').getpid()"}, "plain words"),
        ({"prompt": "the @network"}, "plain words"),
        ({"prompt": ["$1"]}, "prompt must be words, got list"),
        ({"device": "$__import__('os').getpid()"}, r"device of the request begins with \$"),
        ({"device": ["cpu", " $1"]}, r"device of the request begins with \$"),
        ({"model": {"max_epochs": "@network"}}, "model of the request begins with @"),
        ({"%configs/train.yaml": 1}, "a key of the request begins with %"),
    ],
)
def test_code_is_refused(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_request(request_)
