"""Check AutoRunner's input.yaml: its keys and the place of its data; and divide the data into folds of whole patients."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from synboost_monai.auto3dseg import TEMPLATES_DIR, algorithm_names
from synboost_monai.auto3dseg.algo import MODALITIES
from synboost_monai.auto3dseg.folds import Items, read_items, with_folds
from synboost_monai.auto3dseg.settings import (
    HYPER_PARAMETERS,
    HYPER_PARAMETERS_NAME,
    bundle_training,
    read_hyper_parameters,
    with_source_settings,
)
from synboost_monai.data.datalist import load_datalist
from synboost_monai.errors import did_you_mean
from synboost_monai.files import read_text
from synboost_monai.prompts import LEVELS, structure_prompts
from synboost_monai.transforms.files import checked_items

REQUIRED = ("modality", "datalist", "dataroot")
"""Keys that AutoRunner needs."""
OPTIONAL = ("name", "task", "description", "class_names", "multigpu", "work_dir", "num_fold", "algos")
"""Further keys of AutoRunner that are accepted."""
_OF_AUTORUNNER_ALONE = (
    "sigmoid",
    "analyze",
    "algo_gen",
    "train",
    "hpo",
    "hpo_backend",
    "ensemble",
    "not_use_cache",
    "allow_skip",
    "templates_path_or_url",
    "mlflow_tracking_uri",
    "mlflow_experiment_name",
)


def read_source(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read AutoRunner's input, with absolute paths of datalist and dataroot.

    These are relative to the working directory, as for AutoRunner, or, if they do not exist there, to the input's own folder.

    Args:
        path: YAML or JSON.
    Raises:
        FileNotFoundError: if it, the datalist or dataroot does not exist.
        ValueError: if a key is missing or unknown, or the modality is not ultrasound.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give AutoRunner's input.yaml with {', '.join(REQUIRED)}")
    try:
        source = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML ({error})") from error
    if not isinstance(source, dict):
        raise ValueError(f"{path}: expected a mapping with {', '.join(REQUIRED)}, got {type(source).__name__}")
    known = [*REQUIRED, *OPTIONAL, *(k for k in HYPER_PARAMETERS if k != "bundle"), *algorithm_names()]
    for key in source:
        if key in _OF_AUTORUNNER_ALONE:
            raise ValueError(f"{path}: {key} is decided by synboost auto3dseg; take it out, or run MONAI's AutoRunner")
        if key not in known:
            raise ValueError(f"{path}: unknown key {key}{did_you_mean(str(key), known)}; it takes {', '.join(known)}")
    if missing := [key for key in REQUIRED if not source.get(key)]:
        raise ValueError(
            f"{path}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; AutoRunner needs {', '.join(REQUIRED)}"
        )
    if str(source["modality"]).lower() not in MODALITIES:
        raise ValueError(
            f"{path}: modality must be ultrasound, as these algorithms know no other, got {source['modality']!r}"
        )
    for key, exists in (("datalist", os.path.isfile), ("dataroot", os.path.isdir)):
        places = [os.path.abspath(source[key]), os.path.abspath(path.parent / source[key])]
        found = next((place for place in places if exists(place)), None)
        if found is None:
            raise FileNotFoundError(f"{path}: {key} {source[key]} does not exist, neither here nor beside this file")
        source[key] = found
    return source


def chosen_algorithms(algos: Any) -> list[str]:
    """Return the names of the algorithms asked for by a list or by text with commas; for None, all of them.

    Raises:
        ValueError: if an algorithm does not exist.
    """
    names = algorithm_names()
    if algos is None:
        return names
    asked = [word.strip() for word in algos.strip("[]").split(",")] if isinstance(algos, str) else list(algos)
    asked = [str(word).strip("'\" ") for word in asked]
    for word in asked:
        if word not in names:
            raise ValueError(
                f"auto3dseg: no algorithm is called {word!r}{did_you_mean(word, names)}; there are {', '.join(names)}"
            )
    if not asked:
        raise ValueError(f"auto3dseg: algos is empty; there are {', '.join(names)}")
    return sorted(set(asked))


def check_training(source: Mapping[str, Any], algorithms: list[str], training: Mapping[str, Any]) -> None:
    """Refuse hyper-parameters that a bundle does not know, before anything is written.

    Raises:
        ValueError, FileNotFoundError: as in `bundle_training`.
    """
    for name in algorithms:
        template = read_hyper_parameters(TEMPLATES_DIR / name / "configs" / HYPER_PARAMETERS_NAME)
        bundle_training({**with_source_settings(template, source, name), **training})


def folded_datalist(source: Mapping[str, Any], num_fold: int | None, seed: int) -> tuple[dict[str, Any], int, str]:
    """Return the input's datalist with folds, absolute paths and known attributes, after opening every file.

    Args:
        source: from `read_source`.
        num_fold: number of folds to train; None: `num_fold` of the input, else see `with_folds`.
        seed: of the drawing of folds.
    Returns:
        content for AutoRunner's datalist; number of folds to train; the folder that holds all images.
    Raises:
        FileNotFoundError, ValueError: for the first fault of the data.
    """
    where = str(source["datalist"])
    load_datalist(Path(where))  # no patient and no image in two sections
    sections = read_items(where, source["dataroot"])
    number = source.get("num_fold") if num_fold is None else num_fold
    if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
        raise ValueError(f"{where}: num_fold must be a whole number, got {number!r}")
    training = with_folds(sections, number, seed, where)
    testing = sections.get("testing", [])
    _check_words({"training": training, "testing": testing}, where)
    checked = checked_items([*training, *testing])
    count = number or len({item["fold"] for item in training})
    root = os.path.commonpath([os.path.dirname(item["image"]) for item in checked])
    return {"training": training, "testing": testing}, count, root


def _check_words(sections: Mapping[str, Items], where: str) -> None:
    """Raise ValueError if an item's attribute has a value that does not fit the prompts."""
    for name, items in sections.items():
        for number, item in enumerate(items):
            try:
                structure_prompts(LEVELS[-1], item)
            except ValueError as error:
                raise ValueError(f"{where}: {name}[{number}]: {error}") from error
