"""Compute image features with a frozen encoder, and hash what they are made from: copies of images, weights and settings.

B: batch, K: copies of an item, N: side of the network's square.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, RandomizableTrait
from torch import Tensor, nn

from synboost_monai import __version__
from synboost_monai.files import sha256_of
from synboost_monai.networks.precision import autocast, dtype_named, mixed_dtype_named

Item = Mapping[Hashable, Any]


def bytes_of(tensor: Tensor) -> Any:
    """Return the memory of a tensor as an array of bytes."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def encoder_hash(network: nn.Module) -> str:
    """Return the SHA-256 of all tensors, parameters and buffers, that image features depend on."""
    digest = hashlib.sha256(f"{type(network).__name__} {getattr(network, 'extract_layers', None)}".encode())
    for name, tensor in _image_tensors(network):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def describe(value: Any) -> Any:
    """Describe a transform, or a value of one, in JSON types: class and public attributes; the same in every process.

    Transforms that can make different features have different descriptions; random states are left out.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (np.ndarray, Tensor)):
        return hashlib.sha256(bytes_of(torch.as_tensor(value))).hexdigest()
    if isinstance(value, Mapping):
        return {str(key): describe(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (set, frozenset)):
        return sorted((describe(part) for part in value), key=str)
    if isinstance(value, (list, tuple)):
        return [describe(part) for part in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    attributes = {k: v for k, v in vars(value).items() if not k.startswith("_")} if hasattr(value, "__dict__") else {}
    return {
        "class": type(value).__name__,
        **{key: describe(part) for key, part in sorted(attributes.items()) if key != "R"},
    }


def file_hash(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of an image file; for a .mhd file, together with the file of its pixels."""
    path = Path(path)
    digest = sha256_of(path)
    if path.suffix.lower() != ".mhd":
        return digest
    with path.open("rb") as file:
        names = [line.partition(b"=")[2].strip() for line in file if line.strip().startswith(b"ElementDataFile")]
    pixels = path.parent / names[0].decode("utf-8", "replace") if names else path.parent
    return hashlib.sha256((digest + sha256_of(pixels)).encode()).hexdigest() if pixels.is_file() else digest


def is_random(transform: Any) -> bool:
    """Return whether a transform varies from call to call: a randomizable one of MONAI that is not switched off."""
    return isinstance(transform, RandomizableTrait) and bool(getattr(transform, "is_enabled", True))


def check_frozen(network: nn.Module) -> None:
    """Refuse a network whose image features change while it is trained.

    Raises:
        ValueError: if it does, with the name of a parameter, or the batch norms, that would change.
    """
    if not hasattr(network, "encode_image") or not hasattr(network, "encoders"):
        raise ValueError(
            f"feature_cache_dir is set, but {type(network).__name__} has no image encoder of its own (encode_image, encoders); "
            "set feature_cache_dir to null"
        )
    trained = [name for name, tensor in _image_tensors(network) if tensor.requires_grad]
    with _modes_kept(network):
        network.train()
        norms = (
            m
            for encoder in network.encoders
            for m in encoder.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm)
        )
        moving = any(norm.training for norm in norms)
    if not trained and not moving:
        return
    if any(".lora_" in name for name in trained):
        what, advice = f"LoRA trains its adapters ({trained[0]})", "set lora_rank to 0"
    else:
        what = f"it is trained ({trained[0]})" if trained else "its batch norms are in training mode"
        advice = "set freeze_encoders to true"
    raise ValueError(
        f"feature_cache_dir is set, which keeps features of a frozen image encoder, but {what}; {advice}, or feature_cache_dir to null"
    )


def _image_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of all parameters and buffers of the encoders except those used only for text."""
    of_text = {id(parameter) for parameter in network.text_encoder_parameters()}  # type: ignore[operator]
    for number, encoder in enumerate(network.encoders):  # type: ignore[arg-type]
        for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers()):
            if id(tensor) not in of_text:
                yield f"{number}.{name}", tensor


class ItemCopies:
    """Make augmented copies of items; the transforms before the first random one run once per item.

    Args:
        data: a datalist's items, with `image` and `label`.
        image_transform: item -> image (3, N, N) and label map (1, N, N).
        seed: seed of the run.
    """

    def __init__(self, data: Sequence[Item], image_transform: Callable[..., Any], seed: int) -> None:
        transforms = Compose(image_transform).flatten().transforms
        first = next((i for i, transform in enumerate(transforms) if is_random(transform)), len(transforms))
        self.data = data
        self.seed = int(seed)
        self.has_chance = first < len(transforms)
        self._fixed = Compose(transforms[:first])
        self._random = Compose(transforms[first:])
        self._plain = Compose([transform for transform in transforms[first:] if not is_random(transform)])
        self._latest: tuple[int, Any] | None = None
        self.settings = {"seed": self.seed, "preprocessing": describe(list(transforms))}
        """Settings that all copies share."""
        self._descriptions = [describe([t for t in transforms if not is_random(t)]), self.settings["preprocessing"]]
        self._hashes = [self._hash(item) for item in data]

    @staticmethod
    def _hash(item: Item) -> str:
        missing = [key for key in ("image", "label") if key not in item]
        if missing:
            raise ValueError(
                f"feature_cache_dir: an item of the datalist has no {missing[0]} ({str(dict(item))[:80]}); "
                "features are kept of images with label maps"
            )
        return f"{file_hash(item['image'])} {file_hash(item['label'])}"

    def key(self, index: int, copy: int, settings: Mapping[str, Any]) -> str:
        """Return the hash that identifies a copy."""
        content = {
            **settings,
            "files": self._hashes[index],
            "copy": copy,
            "preprocessing": self._descriptions[copy > 0],
            "seed": self.seed if copy else None,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def make(self, index: int, copy: int) -> tuple[Tensor, Tensor]:
        """Return the image (3, N, N), float32, and the label map (1, N, N), uint8, of a copy."""
        if self._latest is None or self._latest[0] != index:
            self._latest = (index, self._fixed(dict(self.data[index])))
        if copy:
            state = hashlib.sha256(f"{self.seed} {self._hashes[index]} {copy}".encode()).digest()
            self._random.set_random_state(seed=int.from_bytes(state[:4], "little"))
        item = (self._random if copy else self._plain)(self._latest[1])
        image, label_map = (torch.as_tensor(item[key]) for key in ("image", "label"))
        side = image.shape[-1]
        if image.shape != (3, side, side) or label_map.shape != (1, side, side):
            raise ValueError(
                f"feature_cache_dir: expected an image (3, N, N) and a label map (1, N, N) of the image transform, got "
                f"{tuple(image.shape)} and {tuple(label_map.shape)} of {self.data[index]['image']}"
            )
        return image.float(), label_map.to(torch.uint8)


class FeatureEncoder:
    """A FeatureEncoder computes a frozen network's image features in evaluation mode, without gradients.

    Args:
        network: a segmenter; see `check_frozen`.
        feature_dtype: type in which features are kept: float32, bfloat16 or float16.
        autocast_dtype: bfloat16 or float16 encodes in mixed precision.
    """

    def __init__(self, network: nn.Module, feature_dtype: str = "bfloat16", autocast_dtype: str | None = None) -> None:
        self._kept_dtype = dtype_named(feature_dtype, "feature_dtype")
        self._mixed_dtype = mixed_dtype_named(autocast_dtype)
        check_frozen(network)
        self.network = network
        self.feature_dtype = feature_dtype
        self.digest = encoder_hash(network)
        self.settings = {
            "encoder": self.digest,
            "feature_dtype": feature_dtype,
            "autocast_dtype": autocast_dtype,
            "version": __version__,
        }

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return the feature tensors (B, ...), on the CPU, of images (B, 3, N, N).

        Raises:
            ValueError: if a feature is not finite, for instance too large for float16.
        """
        device = next(self.network.parameters()).device
        with _modes_kept(self.network), torch.no_grad():
            self.network.eval()
            with autocast(device, self._mixed_dtype):
                features = self.network.encode_image(images.to(device))  # type: ignore[operator]
        kept = [tensor.to(self._kept_dtype).cpu() for tensor in features]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in kept):
            raise ValueError(
                f"feature_cache_dir: a feature is NaN, infinite or too large for {self.feature_dtype}; check the weights, or set "
                "feature_dtype to bfloat16 or float32"
            )
        return kept


@contextlib.contextmanager
def _modes_kept(network: nn.Module) -> Iterator[None]:
    """Restore the training or evaluation mode of each module afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
