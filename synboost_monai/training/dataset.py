"""Build the dataset for training a segmenter: images augmented anew each time, or features of a frozen image encoder."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from monai.data import CacheDataset, Dataset
from monai.transforms import Compose
from torch import nn

from synboost_monai.training.feature_cache import FEATURE_FILES_KEY, FeatureOptions, ReadFeaturesd, cache_features

Item = Mapping[Hashable, Any]


def training_dataset(
    data: Sequence[Item],
    image_transform: Callable[..., Any],
    prompt_transform: Callable[..., Any],
    *,
    network: nn.Module | None = None,
    feature_cache_dir: str | os.PathLike[str] | None = None,
    features: FeatureOptions | None = None,
    cache_rate: float = 1.0,
) -> Dataset:
    """Return a dataset of items with `image`, `label` (masks) and `input_ids`, made from a datalist's items.

    Without `feature_cache_dir`, it is a MONAI CacheDataset over both transforms: everything up to the first random one is kept in
    memory. With it, features of the frozen image encoder are computed once (see `feature_cache`) and `image` is a tuple of tensors of a
    randomly drawn copy, in the features' own type; MONAI's DataLoader collates them to a list of batched tensors, as `network.decode`
    takes them, and the inferer converts them to the type that the network computes in. `handlers.EpochSeed` seeds the draw of copies.

    Args:
        data: items from `read_datalist`.
        image_transform: item -> image (3, N, N) and label map (1, N, N).
        prompt_transform: adds the prompts, turns the label map into masks, picks what a batch needs. No transform may change its input
            in place.
        network: network whose features are kept; its image encoder is frozen.
        feature_cache_dir: folder of the features; None: no features.
        features: how the copies of each image are made, encoded and kept; None: the defaults.
        cache_rate: share of the data that is kept in memory; only without features.
    Returns:
        a dataset whose `transform` has `set_random_state`.
    Raises:
        ValueError: see `cache_features`; or `feature_cache_dir` is given without a network.
    """
    if not feature_cache_dir:
        transform = Compose([*_parts(image_transform), *_parts(prompt_transform)])
        has_repeats = len({str(item["image"]) for item in data}) < len(data)  # such an image is kept in memory once
        return CacheDataset(data, transform, cache_rate=cache_rate, copy_cache=False, hash_as_key=has_repeats)
    if network is None:
        raise ValueError(
            "feature_cache_dir is set, but no network whose features are to be kept; give `network`, or set feature_cache_dir to null"
        )
    cached = cache_features(data, image_transform, network, feature_cache_dir, features or FeatureOptions())
    items = [{**item, FEATURE_FILES_KEY: paths} for item, paths in zip(data, cached.paths)]
    return Dataset(items, Compose([ReadFeaturesd(), *_parts(prompt_transform)]))


def _parts(transform: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Return the transforms of a pipeline one by one, as CacheDataset treats a pipeline within a pipeline as random."""
    return list(Compose(transform).flatten().transforms)
