"""Test the two datasets of a training: images that are augmented anew, and features of a frozen encoder drawn from copies."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.data import CacheDataset, DataLoader
from monai.transforms import Compose, SelectItemsd
from torch import nn

from synboost_monai.data import read_datalist
from synboost_monai.inferers.segmentation import PreparePromptedBatch, PromptedSegmentationInferer
from synboost_monai.networks import create_segmenter
from synboost_monai.training import EpochSeed
from synboost_monai.training.dataset import training_dataset
from synboost_monai.training.feature_cache import FEATURE_FILES_KEY, FeatureOptions, read_features
from synboost_monai.training.losses import PromptDiceCELoss
from synboost_monai.transforms import (
    CheckLabelMapd,
    Letterboxd,
    LoadEchod,
    MasksOfLabelMapd,
    NormaliseEchod,
    RandPromptTokensd,
    RandUltrasoundd,
)


@pytest.fixture
def data(datalist_dir: Path) -> list[dict[str, Any]]:
    return read_datalist(datalist_dir, "training", limit=6)


def image_transform() -> Compose:
    transforms = [LoadEchod(["image", "label"]), CheckLabelMapd(), Letterboxd("image", 32), RandUltrasoundd()]
    return Compose([*transforms, NormaliseEchod("image", (0.5, 0.4, 0.4), (0.25, 0.25, 0.25))])


def prompt_transform() -> Compose:
    return Compose([RandPromptTokensd("P2"), MasksOfLabelMapd("label"), SelectItemsd(["image", "label", "input_ids"])])


def network(architecture: str = "cris") -> nn.Module:
    torch.manual_seed(0)
    return create_segmenter(architecture, "tiny", freeze_encoders=True)


def feature_dataset(data: list[dict[str, Any]], folder: Path, architecture: str = "cris", **options: Any) -> Any:
    return training_dataset(
        data,
        image_transform(),
        prompt_transform(),
        network=network(architecture),
        feature_cache_dir=folder,
        features=FeatureOptions(**options),
    )


def start_epoch(dataset: Any, epoch: int, seed: int = 0) -> None:
    EpochSeed(seed, dataset)(SimpleNamespace(state=SimpleNamespace(epoch=epoch)))


def drawn_copies(dataset: Any, epoch: int) -> list[int]:
    """Return the copy of each item that an epoch takes."""
    start_epoch(dataset, epoch)
    copies = []
    for item, given in zip(dataset.data, dataset):
        matches = [
            i
            for i, path in enumerate(item[FEATURE_FILES_KEY])
            if torch.equal(read_features(path)[0][0], given["image"][0])
        ]
        assert len(matches) == 1
        copies += matches
    return copies


def test_without_a_folder_images_are_cached_up_to_the_first_random_transform(data: list[dict[str, Any]]) -> None:
    dataset = training_dataset(data, image_transform(), prompt_transform(), network=network())
    assert type(dataset) is CacheDataset and dataset.copy_cache is False
    cached = dataset._cache[0]
    assert cached["image"].shape == (1, 32, 32) and cached["image"].dtype == torch.uint8 and "input_ids" not in cached
    start_epoch(dataset, 1)
    first = dataset[0]
    assert first["image"].shape == (3, 32, 32) and first["label"].shape == (3, 32, 32)
    assert set(first) == {"image", "label", "input_ids"}
    assert not torch.equal(dataset[0]["image"], first["image"])  # augmented anew
    start_epoch(dataset, 1)
    assert torch.equal(dataset[0]["image"], first["image"])


def test_cache_rate_is_the_share_in_memory(data: list[dict[str, Any]]) -> None:
    assert len(training_dataset(data, image_transform(), prompt_transform(), cache_rate=0.5)._cache) == 3


@pytest.mark.usefixtures("computes_in_16_bits")
@pytest.mark.parametrize("architecture", ["cris", "clipseg"])
@pytest.mark.parametrize(("feature_dtype", "num_workers"), [("bfloat16", 0), ("float32", 0), ("float32", 1)])
def test_batches_of_features_are_what_the_decoder_takes(
    data: list[dict[str, Any]], tmp_path: Path, architecture: str, feature_dtype: str, num_workers: int
) -> None:
    dataset = feature_dataset(data, tmp_path / "cache", architecture, feature_dtype=feature_dtype)
    assert len(dataset) == 6 and len(list((tmp_path / "cache").glob("*.safetensors"))) == 24
    batch = next(iter(DataLoader(dataset, batch_size=4, shuffle=True, num_workers=num_workers)))
    assert set(batch) == {"image", "label", "input_ids"}
    segmenter = network(architecture).train()
    expected = [f.shape for f in segmenter.encode_image(torch.zeros(4, 3, 32, 32))]
    assert isinstance(batch["image"], (list, tuple)) and [f.shape for f in batch["image"]] == expected
    assert {f.dtype for f in batch["image"]} == {getattr(torch, feature_dtype)}
    assert batch["label"].shape == (4, 3, 32, 32) and batch["label"].dtype == torch.float32
    assert batch["input_ids"].shape == (4, 3, 77)

    features, masks, _, extra = PreparePromptedBatch()(batch, "cpu")
    for autocast_dtype in (None, "bfloat16"):
        logits = PromptedSegmentationInferer(autocast_dtype=autocast_dtype)(features, segmenter, **extra)
        assert logits.shape == masks.shape and logits.dtype == torch.float32
        PromptDiceCELoss()(logits, masks).backward()
    without = [name for name, p in segmenter.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_masks_belong_to_the_copy_that_was_drawn(data: list[dict[str, Any]], tmp_path: Path) -> None:
    dataset = feature_dataset(data, tmp_path / "cache", feature_dtype="float32")
    start_epoch(dataset, 3)
    for item, given in zip(dataset.data, dataset):
        copies = [read_features(path) for path in item[FEATURE_FILES_KEY]]
        of_copy = {features[0].sum().item(): label_map for features, label_map in copies}
        label_map = of_copy[given["image"][0].sum().item()]
        for mask, class_index in zip(given["label"], (1, 2, 3)):
            assert torch.equal(mask, (label_map[0] == class_index).float())


def test_each_epoch_draws_copies_from_its_seed(data: list[dict[str, Any]], tmp_path: Path) -> None:
    dataset = feature_dataset(data, tmp_path / "cache", feature_dtype="float32")
    epochs = [drawn_copies(dataset, epoch) for epoch in range(1, 13)]
    assert len({tuple(copies) for copies in epochs}) > 6
    for of_item in zip(*epochs):
        assert len(set(of_item)) >= 2
    assert {copy for copies in epochs for copy in copies} == {0, 1, 2, 3}
    assert drawn_copies(dataset, 5) == epochs[4]
    del dataset
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.safetensors")}
    again = feature_dataset(data, tmp_path / "cache", feature_dtype="float32")
    assert drawn_copies(again, 5) == epochs[4]
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.safetensors")}


def test_prompts_are_drawn_anew_from_kept_features(data: list[dict[str, Any]], tmp_path: Path) -> None:
    dataset = feature_dataset(data, tmp_path / "cache")
    start_epoch(dataset, 1)
    assert len({tuple(dataset[0]["input_ids"].flatten().tolist()) for _ in range(12)}) > 3


def test_one_copy_is_the_image_as_it_is(data: list[dict[str, Any]], tmp_path: Path) -> None:
    dataset = feature_dataset(data, tmp_path / "cache", feature_dtype="float32", num_copies=1)
    transforms = [t for t in image_transform().transforms if not isinstance(t, RandUltrasoundd)]
    image = Compose(transforms)(data[2])["image"]
    with torch.no_grad():
        expected = network().eval().encode_image(image[None])
    for kept, now in zip(dataset[2]["image"], expected):
        torch.testing.assert_close(kept, now[0], rtol=1e-5, atol=1e-6)


def test_folder_without_network_is_an_error(data: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="feature_cache_dir is set, but no network"):
        training_dataset(data, image_transform(), prompt_transform(), feature_cache_dir=tmp_path / "cache")


def test_network_in_training_is_an_error_that_names_the_keys(data: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set freeze_encoders to true, or feature_cache_dir to null"):
        training_dataset(
            data,
            image_transform(),
            prompt_transform(),
            network=create_segmenter("cris", "tiny"),
            feature_cache_dir=tmp_path / "cache",
        )
