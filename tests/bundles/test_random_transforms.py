"""Test random transforms of the bundles' training pipelines: whatever chance decides, items fit into one batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose, Randomizable

from synboost_monai.bundle_run import config_files
from synboost_monai.data import read_datalist
from synboost_monai.transforms import RandUltrasoundd

OF_SEGMENTERS = {"flip_probability", "attribute_dropout", "synonyms", "absent_structures"}
CHANCES = {
    "echo_semantic_diffusion": {"affine_probability"},
    "echo_cris": OF_SEGMENTERS,
    "echo_clipseg": OF_SEGMENTERS,
}
"""Bundle -> its keys that are probabilities of a transform."""
KEYS = [("echo_semantic_diffusion", "affine_probability"), *(("echo_cris", key) for key in sorted(OF_SEGMENTERS))]
"""(bundle, key) of each such pipeline: one template makes those of both segmenters."""
EFFECTS = ("warp", "gain", "depth_attenuation", "speckle", "haze", "noise", "flip")
"""Chances of `RandUltrasoundd`."""


def pipeline(bundle: str, dataset_dir: Path, **changes: Any) -> Compose:
    """Return a bundle's training pipeline."""
    parser = ConfigParser()
    parser.read_config([str(file) for file in config_files(bundle, "train")])
    for key, value in {"dataset_dir": str(dataset_dir), "image_size": 32, "preset": "tiny", **changes}.items():
        parser[key] = value
    parts = [parser.get_parsed_content("train::preprocessing")]
    if "prompting" in parser["train"]:
        parts.append(parser.get_parsed_content("train::prompting"))
    return Compose(parts).flatten()


def random_items(transform: Compose, dataset_dir: Path) -> Iterator[dict[str, Any]]:
    """Return the first training item, drawn with several seeds."""
    (item,) = read_datalist(dataset_dir, "training", limit=1)
    for seed in range(6):
        transform.set_random_state(seed)
        yield transform(item)


def form_of(value: Any) -> tuple[Any, ...]:
    """Return the form of a value that a batch needs: type, number type, shape, and the keys of its meta data."""
    meta = sorted(value.meta) if isinstance(value, MetaTensor) else None
    return type(value), getattr(value, "dtype", None), getattr(value, "shape", None), meta


@pytest.mark.parametrize("probability", [0, 0.5, 1])
@pytest.mark.parametrize(("bundle", "key"), KEYS)
def test_items_of_every_chance_are_alike(bundle: str, key: str, probability: float, datalist_dir: Path) -> None:
    never = next(random_items(pipeline(bundle, datalist_dir, **{key: 0}), datalist_dir))
    items = list(random_items(pipeline(bundle, datalist_dir, **{key: probability}), datalist_dir))
    for item in items:
        assert {k: form_of(v) for k, v in item.items()} == {k: form_of(v) for k, v in never.items()}
    assert len(list_data_collate([never, *items])["image"]) == len(items) + 1
    if bundle == "echo_semantic_diffusion":
        are_warped = [not torch.equal(torch.as_tensor(i["image"]), torch.as_tensor(never["image"])) for i in items]
        assert any(are_warped) == (probability > 0) and all(are_warped) == (probability == 1)


@pytest.mark.parametrize("probability", [0, 0.5, 1])
@pytest.mark.parametrize("effect", EFFECTS)
def test_ultrasound_effects_leave_items_alike(effect: str, probability: float, datalist_dir: Path) -> None:
    transform = pipeline("echo_cris", datalist_dir)
    (augment,) = [t for t in transform.transforms if isinstance(t, RandUltrasoundd)]
    expected = {k: form_of(v) for k, v in next(random_items(transform, datalist_dir)).items()}
    augment.ranges = replace(augment.ranges, **{f"{effect}_probability": probability})
    for item in random_items(transform, datalist_dir):
        assert {k: form_of(v) for k, v in item.items()} == expected
        assert torch.isfinite(item["image"]).all()


@pytest.mark.parametrize("bundle", CHANCES)
def test_no_random_transform_is_forgotten(bundle: str, datalist_dir: Path) -> None:
    transforms = pipeline(bundle, datalist_dir).transforms
    found = {type(t).__name__ for t in transforms if isinstance(t, Randomizable)}
    known = {"RandAffineSectord", "RandUltrasoundd", "RandPromptTokensd"}
    assert found and found <= known
