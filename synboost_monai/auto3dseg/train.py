"""Train one fold as the bundle does, on a data set made of Auto3DSeg's datalist; a template's scripts/train.py calls `main`."""

from __future__ import annotations

import csv
import math
import os
import sys
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from synboost_monai.auto3dseg.folds import write_fold
from synboost_monai.auto3dseg.settings import (
    HYPER_PARAMETERS_NAME,
    bundle_training,
    read_hyper_parameters,
)
from synboost_monai.bundle_run import config_files, config_parser, literal, run_bundle, setting_of
from synboost_monai.distributed import launched_as
from synboost_monai.errors import in_one_line
from synboost_monai.files import atomic_write_text, read_text
from synboost_monai.prompts import LEVELS, prompt_levels

PROGRESS_NAME = "progress.yaml"
"""File beside model.pt with the score; it appears when the training is complete."""
FACTS_NAME = "inference.yaml"
"""File beside model.pt with the facts of the training that inference needs, by keys of the bundle's inference config."""
FACTS = (
    "preset",
    "image_size",
    "keep_aspect",
    "padding_id",
    "mask_padding",
    "image_mean",
    "image_std",
    "domain_word",
    "threshold",
    "prompt_level",
)
"""The only keys of `FACTS_NAME`."""


def main(script: str) -> None:
    """Run a template's scripts/train.py: `run --config_file=... --num_epochs=3 --KEY=VALUE`, as `BundleAlgo` writes it.

    The process ends with code 2 and one line on stderr if the mistake is the user's.

    Args:
        script: path of the template's file.
    """
    root = Path(script).resolve().parents[1]
    with in_one_line(root.name, str(root)):
        overrides = read_flags(sys.argv[1:])
        files = overrides.pop("config_file", None)
        train_fold(root, overrides, files.split(",") if files else None)


def read_flags(words: Sequence[str]) -> dict[str, Any]:
    """Read `--key=value` from a command line, with values as Python or YAML literals; skip the word `run` at its start.

    Raises:
        ValueError: if a word is anything else.
    """
    overrides: dict[str, Any] = {}
    for word in words[1:] if words[:1] == ["run"] else words:
        key, equals, value = word.partition("=")
        if not key.startswith("--") or not equals:
            raise ValueError(f"expected --key=value, got {word!r}")
        text = value.strip("'")
        overrides[key[2:]] = text if key == "--config_file" else literal(text)
    return overrides


def train_fold(
    root: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    files: Sequence[str] | None = None,
) -> float:
    """Train the fold of an algorithm's folder, or go on where its training was interrupted.

    Args:
        root: the folder, with configs/hyper_parameters.yaml filled.
        overrides: hyper-parameters, or keys of the bundle's training, that override the file.
        files: files of hyper-parameters; None: that of the folder.
    Returns:
        the best mean Dice of the validation, 0..1: over structures and images, in the network's square.
    Raises:
        ValueError, FileNotFoundError: for mistakes of the user.
    """
    path = Path(root, "configs", HYPER_PARAMETERS_NAME)
    settings = {**read_hyper_parameters(files or path), **(overrides or {})}
    if "ckpt_path" not in settings:
        raise ValueError(f"{path}: is a template; `BundleGen` (or synboost auto3dseg) fills it with where the data is")
    model_dir = Path(root, "model")
    bundle, config, values = bundle_training(settings)
    where = settings["data_list_file_path"], settings["data_file_base_dir"]
    data_dir = write_fold(*where, int(settings["fold"]), Path(root, "data"))
    progress = model_dir / PROGRESS_NAME
    rank, num_processes = launched_as()
    if rank == 0:
        progress.unlink(missing_ok=True)  # a score must not outlive its weights
    if num_processes > 1:
        config = f"train,{config},multi_gpu_train" if config != "train" else "train,multi_gpu_train"
    run_bundle(bundle, config, {**values, "dataset_dir": str(data_dir), "output_dir": str(model_dir)})
    best, epoch = best_validation(model_dir / "history.csv")
    if rank == 0:
        facts = inference_facts(bundle, config, values)
        atomic_write_text(model_dir / FACTS_NAME, yaml.safe_dump(facts, sort_keys=False))
        entry = {"best_avg_dice_score": best, "best_avg_dice_score_epoch": epoch}
        atomic_write_text(progress, yaml.safe_dump([entry], sort_keys=False))
    return best


def best_validation(history: str | os.PathLike[str]) -> tuple[float, int]:
    """Return the best mean Dice in a training's history.csv, and its epoch.

    Raises:
        ValueError: if no validation has a mean Dice, as when no label map of the fold shows a structure.
    """
    table = csv.DictReader(StringIO(read_text(history)))
    rows = [(float(row["val_mean_dice"] or "nan"), int(row["epoch"])) for row in table]
    known = [row for row in rows if math.isfinite(row[0])]
    if not known:
        raise ValueError(f"{history}: no validation has a mean Dice; do the fold's label maps show the structures?")
    return max(known, key=lambda row: (row[0], -row[1]))


def inference_facts(bundle: str, config: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a training that inference needs, by keys of the bundle's inference config.

    The prompts are those of the validation: the highest level, always in the same words.
    """
    from monai.bundle import ConfigParser

    parser = config_parser(config_files(bundle, config), overrides)
    known = ConfigParser.load_config_files([str(file) for file in config_files(bundle, "inference")])
    facts = {key: setting_of(parser, key) for key in FACTS if key in known and key in parser.get()}
    levels = prompt_levels(parser.get_parsed_content("val_prompt_level"))
    return {**facts, "prompt_level": max(levels, key=LEVELS.index)}
