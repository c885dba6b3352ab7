"""From logits to one label map on the native grid."""

from __future__ import annotations

import pytest
import torch

from synboost_monai.transforms.postprocessing import logits_to_label_map


def test_arbitration_takes_the_highest_structure_above_the_threshold() -> None:
    logits = torch.tensor([[[3.0, -1.0, 0.2]], [[2.0, -2.0, 0.1]], [[-5.0, -0.1, 0.3]]])  # (3, 1, 3)
    assert logits_to_label_map(logits).tolist() == [[1, 0, 3]]
    assert logits_to_label_map(logits, threshold=0.45).tolist() == [[1, 3, 3]]
    assert logits_to_label_map(logits[:1], [2]).tolist() == [[2, 0, 2]]
    with pytest.raises(ValueError, match="threshold is a probability"):
        logits_to_label_map(logits, threshold=1.0)
