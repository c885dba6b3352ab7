"""Provide what tests of both segmenters share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from synboost_monai.networks.text import default_input_ids

both = pytest.mark.parametrize("architecture", ["clipseg", "cris"])


def padded_ids(length: int = 77, padding_id: int = 0) -> Tensor:
    """Return the three P1 prompts, (1, 3, length)."""
    ids = default_input_ids()
    padded = torch.full((1, 3, length), padding_id)
    padded[..., : ids.shape[2]] = torch.where(ids == 0, padding_id, ids)
    return padded
