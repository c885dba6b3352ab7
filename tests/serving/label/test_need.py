"""Test that the image that needs a person most comes first."""

from __future__ import annotations

import pytest

from synboost_monai.serving.label.need import most_in_need

BROKEN = {"problem": "cut off"}


def score(verdict: str, predicted_dice: float) -> dict[str, object]:
    return {"verdict": verdict, "predicted_dice": predicted_dice}


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"a": score("accept", 0.86), "b": score("review", 0.95)}, "b"),
        ({"a": score("review", 0.7), "b": score("review", 0.6), "c": score("accept", 0.5)}, "b"),
        ({"b": score("accept", 0.9), "a": score("accept", 0.9)}, "a"),
        ({"a": BROKEN, "b": score("accept", 0.99)}, "b"),
        ({"b": BROKEN, "a": BROKEN}, "a"),
        ({"a": score("review", 0.0), "b": score("review", 0.1)}, "a"),
    ],
)
def test_most_in_need(scores, expected):
    assert most_in_need(scores) == expected
