"""Test that a processor without instructions for 16 bits computes in float32, wherever a setting asks for 16."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synboost_monai.inferers import SemanticDiffusionInferer, SemanticDiffusionTrainInferer
from synboost_monai.inferers.segmentation import PromptedSegmentationInferer
from synboost_monai.networks import create_segmenter, create_semantic_diffusion_unet, precision, to_inference
from synboost_monai.training.frozen_features import FeatureEncoder

LABEL_ONEHOT = torch.ones(1, 5, 32, 32)


@pytest.fixture
def old_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_computes_in", lambda dtype: False)
    precision._say_once.cache_clear()


@pytest.fixture
def segmenter() -> nn.Module:
    torch.manual_seed(0)
    return create_segmenter("cris", "tiny", freeze_encoders=True).eval().requires_grad_(False)


def test_old_processor_computes_in_float32(old_processor: None, caplog: pytest.LogCaptureFixture) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert precision.computable_dtype("cpu", dtype) == torch.float32
        assert precision.mixed_dtype(torch.device("cpu"), dtype) is None
        assert precision.computable_dtype("cuda:0", dtype) == dtype  # GPUs are not asked
    assert precision.mixed_dtype("cpu", None) is None
    lines = [line for line in caplog.messages if "float32 is used" in line]
    assert [line.split(",")[0] for line in lines] == [
        f"this processor has no instructions for {name}" for name in ("bfloat16", "float16")
    ]


@pytest.mark.usefixtures("computes_in_16_bits")
def test_new_processor_computes_in_what_is_asked(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), precision.autocast("cpu", torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with precision.autocast("cpu", None):
        assert not torch.is_autocast_enabled("cpu")
    assert precision.computable_dtype("cpu", torch.float16) == torch.float16
    assert not caplog.messages


def test_onednn_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision.cpu_computes_in(torch.bfloat16) is torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert precision.cpu_computes_in(torch.float16) is torch.ops.mkldnn._is_mkldnn_fp16_supported()
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())  # a torch without it
    assert precision.cpu_computes_in(torch.bfloat16) is False


def _segments(segmenter: nn.Module, **wishes: Any) -> Tensor:
    return PromptedSegmentationInferer(**wishes)(torch.ones(1, 3, 32, 32), segmenter)


def _segments_features(segmenter: nn.Module, **wishes: Any) -> Tensor:
    features = [feature.to(torch.bfloat16) for feature in segmenter.encode_image(torch.ones(1, 3, 32, 32))]  # type: ignore[operator]
    return PromptedSegmentationInferer(**wishes)(features, segmenter)


def _encodes(segmenter: nn.Module, **wishes: Any) -> Tensor:
    return FeatureEncoder(segmenter, "float32", **wishes)(torch.ones(1, 3, 32, 32))[0]


def _learns_to_draw(_: nn.Module, **wishes: Any) -> Tensor:
    torch.manual_seed(0)
    network = create_semantic_diffusion_unet("tiny")
    return SemanticDiffusionTrainInferer(**wishes)(torch.ones(1, 1, 32, 32), network, torch.tensor([9]), LABEL_ONEHOT)


def _draws(_: nn.Module, **wishes: Any) -> Tensor:
    torch.manual_seed(0)
    network = create_semantic_diffusion_unet("tiny").eval()
    return SemanticDiffusionInferer(**wishes)(LABEL_ONEHOT, network, torch.arange(1))


@pytest.mark.parametrize("compute", [_segments, _segments_features, _encodes, _learns_to_draw, _draws])
def test_mixed_precision_is_float32_there(
    old_processor: None, segmenter: nn.Module, compute: Callable[..., Tensor]
) -> None:
    assert torch.equal(compute(segmenter, autocast_dtype="bfloat16"), compute(segmenter))


def test_weights_are_float32_there(old_processor: None, segmenter: nn.Module) -> None:
    assert {p.dtype for p in to_inference(segmenter, "cpu", "bfloat16").parameters()} == {torch.float32}
