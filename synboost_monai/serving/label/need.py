"""Choose the image that needs a person most, by a segmenter's judgement of its own masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def most_in_need(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the image to label next: verdict review before accept, then the lowest predicted Dice; images with a `problem` last.

    Args:
        scores: image -> verdict and predicted_dice, or `problem`, the reason why it could not be segmented. At least one image.
    """

    def order(image_id: str) -> tuple[bool, bool, float, str]:
        score = scores[image_id]
        predicted = score.get("predicted_dice")
        return "problem" in score, score.get("verdict") == "accept", 1.0 if predicted is None else predicted, image_id

    return min(scores, key=order)
