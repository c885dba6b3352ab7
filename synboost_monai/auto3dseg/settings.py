"""Read the hyper-parameters of an Auto3DSeg algorithm, under MONAI's names, and find the bundle's training that they ask for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from synboost_monai.bundle_run import check_overrides, config_files
from synboost_monai.files import read_text

HYPER_PARAMETERS_NAME = "hyper_parameters.yaml"
"""File with the hyper-parameters, in configs/ of a template or an algorithm."""
HYPER_PARAMETERS = (
    "bundle",
    "preset",
    "recipe",
    "init_checkpoint",
    "num_epochs",
    "num_images_per_batch",
    "num_epochs_per_validation",
    "learning_rate",
    "image_size",
    "val_prompt_level",
    "seed",
)
"""Keys of the templates; null leaves them to the recipe, while for other keys of the bundle null is a value."""
BUNDLE_KEY_OF = {
    "num_epochs": "max_epochs",
    "num_images_per_batch": "batch_size",
    "num_epochs_per_validation": "val_interval",
}
"""Auto3DSeg's name of a hyper-parameter -> the bundle's."""
RECIPE_OF_PRESET = {"small": "train_small", "published": "train", "tiny": "train"}
"""Preset -> config of the bundle that trains it."""
FILLED_KEYS = (
    "bundle_root",
    "ckpt_path",
    "data_file_base_dir",
    "data_list_file_path",
    "fold",
    "data_statistics",
    "notes",
)
"""Keys that `EchoAlgo.fill_template_config` adds; the first five have the names that MONAI's own templates use."""
_NOT_OF_THE_BUNDLE = ("bundle", "recipe", *FILLED_KEYS)
_OURS_TO_SET = ("dataset_dir", "output_dir", "bundle_root")


def read_hyper_parameters(files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> dict[str, Any]:
    """Read the hyper-parameters of a file, or of several, where a later one overrides earlier ones.

    Raises:
        ValueError: if a file does not hold a mapping.
    """
    settings: dict[str, Any] = {}
    for file in [files] if isinstance(files, (str, os.PathLike)) else files:
        content = yaml.safe_load(read_text(file))
        if not isinstance(content, dict):
            raise ValueError(f"{file}: expected hyper-parameters as `name: value`, got {type(content).__name__}")
        settings |= content
    return settings


def with_source_settings(settings: Mapping[str, Any], source: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
    """Override hyper-parameters by AutoRunner's input: by keys of the same name, then by those under the algorithm's name.

    Args:
        settings: of the template.
        source: content of AutoRunner's input.yaml.
        algorithm: its name, such as echoclipseg.
    Raises:
        ValueError: if the algorithm's section is not a mapping.
    """
    own = source.get(algorithm) or {}
    if not isinstance(own, Mapping):
        raise ValueError(f"input: {algorithm} must be a mapping of hyper-parameters, got {own!r}")
    common = {key: source[key] for key in settings if key in source and key != "bundle"}
    return {**settings, **common, **own}


def bundle_training(settings: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Return the training that hyper-parameters ask for: bundle, config (see `config_files`) and checked overrides.

    Raises:
        ValueError: if the preset or a key is unknown, or a value has the wrong type.
        FileNotFoundError: if the recipe does not exist.
    """
    preset = settings.get("preset")
    if preset not in RECIPE_OF_PRESET:
        raise ValueError(f"auto3dseg: preset must be one of {', '.join(RECIPE_OF_PRESET)}, got {preset!r}")
    bundle, config = str(settings["bundle"]), str(settings.get("recipe") or RECIPE_OF_PRESET[preset])
    overrides = {
        BUNDLE_KEY_OF.get(key, key): value
        for key, value in settings.items()
        if key not in _NOT_OF_THE_BUNDLE and not (value is None and key in HYPER_PARAMETERS)
    }
    if taken := sorted(set(overrides) & set(_OURS_TO_SET)):
        raise ValueError(f"auto3dseg: {', '.join(taken)} is set for each fold by itself; take it out")
    return bundle, config, check_overrides(config_files(bundle, config), overrides)
