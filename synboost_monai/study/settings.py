"""Read a study's settings from YAML, add the caller's settings, and check everything before anything runs."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from synboost_monai.bundle_run import bundle_dir, check_overrides, config_files, is_path, literal
from synboost_monai.errors import did_you_mean
from synboost_monai.files import read_text
from synboost_monai.prompts import LEVELS
from synboost_monai.study.dag import Study
from synboost_monai.study.grid import ALL, STRATEGIES
from synboost_monai.study.simulated import find_weights

STUDIES_DIR = Path(__file__).with_name("studies")
"""Shipped studies, one YAML file each."""

_TRANSLATE = {"start_strength": 0.5, "perturbation_strength": 0, "num_variations": 1, "sections": "training"}
"""Overrides of a synthesis that starts from simulated hearts and keeps their label maps."""
DEFAULTS: dict[str, Any] = {
    "description": "",
    "seed": 0,
    "device": None,
    "threads": None,
    "processes": 1,
    "bundles": {"diffusion": "echo_semantic_diffusion", "cris": "echo_cris", "clipseg": "echo_clipseg"},
    "data": {"dataset": None, "phantom": None, "unlabelled": None, "prepare": {}, "num_folds": 5, "simulate": {}},
    "diffusion": {
        "recipe": "train",
        "both": {},
        "train": {},
        "synthesise": {},
        "translate": {**_TRANSLATE},
        "per_patients": {},
    },
    "segmenters": {
        "recipe": "train",
        "models": ["cris", "clipseg"],
        "strategies": ["real", "synthetic", "synthetic_then_real"],
        "prompts": ["P2"],
        "frozen": [False],
        "patients": [ALL],
        "folds": [None],
        "seeds": [0],
        "sensitivity": False,
        "simulated_weights": {},
        "simulated_sha256": {},
        "both": {},
        "train": {},
        "evaluate": {},
        "per_model": {},
        "per_strategy": {},
        "per_patients": {},
    },
}
"""Every setting of a study and its default.

`threads`: cores of a stage; null: all cores, one stage at a time. `processes`: above 1, trainings and synthesis run under torchrun.
`data.unlabelled`: folder of other images and clips, for the strategies that learn from images without label maps. `data.simulate`: flags
of `synboost simulate`, for the strategies that translate simulated hearts. `recipe`: config of the bundle for training. `both`, `train`,
`synthesise`, `translate`, `evaluate`: overrides of the bundles' configs; `both` is for training and for what follows; those of
`per_model`, `per_strategy` and `per_patients` win, in this order; a key of `per_patients` may also name a strategy: `20/synthetic`.
`models` to `seeds`: the axes of the grid; of the seeds, `per_patients.80.seeds` are those that are run with 80 patients (all, if it does
not say). `simulated_weights`: for the strategies `simulated` and `simulated_then_real`, each model's model.pt trained only on simulated
hearts; by default that of its bundle. `simulated_sha256`: the SHA-256 of these files, computed when the study is read; a value that is
set must match.
"""

_STAGE_KEYS = ("both", "train", "evaluate")
_DIFFUSION_KEYS = ("both", "train", "synthesise", "translate")
_OVERRIDES = {*_STAGE_KEYS, *_DIFFUSION_KEYS}
"""Settings that hold overrides of the bundles' configs, whose keys are those of the config."""
_SIMULATE_KEYS = ("num_images", "image_size", "seed")
_PREPARE_KEYS = ("split", "strict", "shape_source", "max_training_patients", "training_fraction")


def read_study(
    study: str | os.PathLike[str],
    *,
    dataset: str | None = None,
    unlabelled: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Study:
    """Read a study, add the caller's settings, and check all of it.

    Args:
        study: name of a shipped study, or a YAML file; a word that ends with .yaml or has a slash is a file.
        dataset: folder of a CAMUS data set, instead of the study's data.
        unlabelled: folder of images and clips without label maps, `data.unlabelled`.
        settings: dotted key -> value, as on the command line: `diffusion.train.max_epochs` -> 5.
    Raises:
        FileNotFoundError: if the study, data set or bundle does not exist.
        ValueError: if a setting is unknown or wrong; the message names it, and the nearest existing one.
    """
    path = _study_path(study)
    try:
        content = yaml.safe_load(read_text(path)) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a study must be a mapping of settings, got {type(content).__name__}")
    name = str(content.pop("name", path.stem))
    merged = _merge(DEFAULTS, content, path.name)
    for key, value in (settings or {}).items():
        merged = _merge(merged, _nested(key, value, merged), f"--{key}")
    if dataset is not None:
        merged["data"]["dataset"] = dataset
    if merged["data"]["dataset"] is not None:
        folder = Path(merged["data"]["dataset"]).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"{path.name}: the data set folder {folder} does not exist; give --dataset PATH")
        merged["data"]["dataset"] = str(folder.resolve())
    elif merged["data"]["phantom"] is None:
        raise ValueError(
            f"{path.name}: this study brings no data; give --dataset PATH, the folder of your copy of CAMUS"
        )
    if unlabelled is not None:
        merged["data"]["unlabelled"] = unlabelled
    if merged["data"]["unlabelled"] is not None:
        images = Path(merged["data"]["unlabelled"]).expanduser()
        if not images.exists():
            raise FileNotFoundError(
                f"{path.name}: the images without label maps, {images}, do not exist; give --unlabelled PATH"
            )
        merged["data"]["unlabelled"] = str(images.resolve())
    merged = _with_absolute_starts(merged, path.name)
    for word in (name, *merged["bundles"]):  # stages and folders are named after them
        if not re.fullmatch(r"\w[\w. -]*", str(word)):
            raise ValueError(f"{path.name}: a name is letters, digits, spaces, _, - and dots, got {word!r}")
    checked = Study(name, merged)
    _check(checked, path.name)
    found = find_weights(checked, path.name)
    return Study(name, {**merged, "segmenters": {**merged["segmenters"], **found}})


def _with_absolute_starts(settings: Any, where: str, key: str = "") -> Any:
    """Return settings in which every `init_checkpoint` is an absolute path, since stages run in the run's folder.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if isinstance(settings, dict):
        return {name: _with_absolute_starts(value, where, str(name)) for name, value in settings.items()}
    if key != "init_checkpoint" or settings is None:
        return settings
    start = Path(str(settings)).expanduser()
    if not start.is_file():
        raise FileNotFoundError(
            f"{where}: the weights to start from, init_checkpoint {start}, do not exist; give a file"
        )
    return str(start.resolve())


def read_run(run_dir: str | os.PathLike[str]) -> Study:
    """Read the study whose run is in a folder.

    Raises:
        FileNotFoundError: if the folder is not a run of a study.
    """
    path = Path(run_dir, "study.yaml")
    content = yaml.safe_load(read_text(path)) if path.is_file() else None
    if not isinstance(content, dict) or "name" not in content:
        raise FileNotFoundError(
            f"settings.py: {run_dir} is no run of a study: it has no study.yaml that a run wrote; "
            "give a folder such as runs/NAME"
        )
    return Study(content.pop("name"), _merge(DEFAULTS, content, str(path)))


def _study_path(study: str | os.PathLike[str]) -> Path:
    """Return the file of a study, given as the name of a shipped one or as a path."""
    path = Path(study)
    if path.is_file() and (is_path(study) or path.suffix in (".yaml", ".yml")):
        return path
    if (shipped := STUDIES_DIR / f"{study}.yaml").is_file():
        return shipped
    names = sorted(p.stem for p in STUDIES_DIR.glob("*.yaml"))
    raise FileNotFoundError(
        f"settings.py: no study {str(study)!r}{did_you_mean(str(study), names)}; give a YAML file (.yaml) or one of: {', '.join(names)}"
    )


def _merge(defaults: Mapping[str, Any], content: Mapping[str, Any], where: str, path: str = "") -> dict[str, Any]:
    """Return the defaults with the study's settings put in.

    Raises:
        ValueError: if a setting has no default and is thus unknown, or has another type.
    """
    out = copy.deepcopy(dict(defaults))
    for key, value in content.items():
        here = f"{path}.{key}" if path else str(key)
        is_free = path in ("bundles", "data.prepare", "data.simulate") or path.rpartition(".")[2] in _OVERRIDES
        is_free = is_free or path.startswith(
            ("segmenters.per_", "segmenters.simulated_", "diffusion.per_", "data.phantom")
        )
        key = str(key) if path.endswith("per_patients") else key  # YAML reads 20 as a number
        if key not in defaults and not is_free:
            raise ValueError(f"{where}: unknown setting {here}{_nearest_setting(here, defaults)}")
        old = defaults.get(key)
        if isinstance(old, dict) and value is None:
            value = {}
        if isinstance(old, dict) != isinstance(value, dict) and key in defaults and key != "phantom":
            expected = "a mapping" if isinstance(old, dict) else "a value" if not isinstance(old, list) else "a list"
            raise ValueError(f"{where}: {here} must be {expected}, got {value!r}")
        out[key] = _merge(old, value, where, here) if isinstance(old, dict) else copy.deepcopy(value)
    return out


def _nearest_setting(path: str, defaults: Mapping[str, Any]) -> str:
    """Return a hint for a misspelt setting."""
    return did_you_mean(path.rpartition(".")[2], list(defaults)) or f"; it takes {', '.join(defaults)}"


def _nested(key: str, value: Any, current: Any) -> dict[str, Any]:
    """Return a dotted key and its value as nested settings; where the study has a list, a value or `80,all` becomes one."""
    parts = key.split(".")
    is_word = not _OVERRIDES.isdisjoint(parts[:-1])  # an override goes to a command line again, so 00012 stays as it is
    if isinstance(value, str) and not (is_word and str(literal(value)) != value and _is_number(literal(value))):
        value = literal(value)
    for part in parts:
        current = current.get(part) if isinstance(current, dict) else None
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(current, list) and not isinstance(value, list):
        texts = value.removeprefix("[").removesuffix("]").split(",") if isinstance(value, str) else None
        value = [value] if texts is None else [literal(text.strip()) for text in texts]  # 80,all: a number and a word
    for part in reversed(parts):
        value = {part: value}
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(study: Study, where: str) -> None:
    """Check a study for all possible mistakes, before the first stage.

    Raises:
        ValueError, FileNotFoundError: with a message on one line.
    """
    settings, part = study.settings, study.settings["segmenters"]
    models = [name for name in settings["bundles"] if name != "diffusion"]
    _check_axes(part, models, settings["data"]["num_folds"], where)
    _check_texts(part, ("simulated_weights", "simulated_sha256"), models, where)
    for key, lowest in (("seed", None), ("processes", 1), ("threads", 1)):
        value = settings[key]
        if key == "threads" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or (lowest is not None and value < lowest):
            kind = "a whole number" if lowest is None else f"a whole number of at least {lowest}"
            raise ValueError(f"{where}: {key} must be {kind}, got {value!r}")
    for group, known in (("prepare", _PREPARE_KEYS), ("simulate", _SIMULATE_KEYS)):
        for key in settings["data"][group]:
            if key not in known:
                raise ValueError(
                    f"{where}: unknown setting data.{group}.{key}{did_you_mean(key, known)}; it takes {', '.join(known)}"
                )
    for group, names, stages in (
        ("segmenters.per_model", models, _STAGE_KEYS),
        ("segmenters.per_strategy", tuple(STRATEGIES), _STAGE_KEYS),
        ("segmenters.per_patients", None, (*_STAGE_KEYS, "seeds")),
        ("diffusion.per_patients", None, _DIFFUSION_KEYS),
    ):
        outer, _, inner = group.partition(".")
        _check_layers(settings[outer][inner], group, names, stages, where)
    _check_stage_overrides(study, where)


def _check_axes(part: Mapping[str, Any], models: Sequence[str], num_folds: Any, where: str) -> None:
    """Check the axes of the grid: lists with entries that exist."""
    is_whole = lambda v, low: isinstance(v, int) and not isinstance(v, bool) and v >= low  # noqa: E731
    if not is_whole(num_folds, 2):
        raise ValueError(f"{where}: data.num_folds must be a whole number of at least 2, got {num_folds!r}")
    known: dict[str, Sequence[str]] = {"models": models, "strategies": tuple(STRATEGIES), "prompts": LEVELS}
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "frozen": (lambda v: isinstance(v, bool), "true or false"),
        "patients": (
            lambda v: v == ALL or is_whole(v, 2) or isinstance(v, float) and 0 < v < 1,
            f"{ALL}, whole numbers of at least 2, or shares between 0 and 1",
        ),
        "folds": (lambda v: v is None or is_whole(v, 0) and v < num_folds, f"null, or 0 to {num_folds - 1}"),
        "seeds": (lambda v: is_whole(v, 0), "whole numbers"),
    }
    for key in (*known, *rules):
        values = part[key]
        if not isinstance(values, list) or not values:
            raise ValueError(f"{where}: segmenters.{key} must be a list with at least one entry, got {values!r}")
        for value in values:
            if key in known and value not in known[key]:
                hint = did_you_mean(str(value), list(known[key]))
                raise ValueError(f"{where}: segmenters.{key} has no {value!r}{hint}; there are {', '.join(known[key])}")
            if key in rules and not rules[key][0](value):
                raise ValueError(f"{where}: segmenters.{key} must be {rules[key][1]}, got {value!r}")
    for patients, layer in part["per_patients"].items():
        seeds, key = (layer or {}).get("seeds", part["seeds"]), f"segmenters.per_patients.{patients}"
        size, _, strategy = patients.partition("/")
        if strategy and seeds is not part["seeds"]:
            raise ValueError(f"{where}: {key} takes no seeds: all strategies have those of {size}")
        if not isinstance(seeds, list) or not all(map(rules["seeds"][0], seeds)):
            raise ValueError(f"{where}: {key}.seeds must be a list of whole numbers, got {seeds!r}")
        if patients in map(str, part["patients"]) and not set(seeds) & set(part["seeds"]):
            raise ValueError(f"{where}: {key}.seeds, {seeds}, has none of segmenters.seeds, {part['seeds']}")
    taught = [name for name in part["strategies"] if STRATEGIES[name].teacher is not None]
    if taught and set(part["patients"]) == {ALL}:
        raise ValueError(
            f"{where}: {taught[0]} learns from images of patients without experts' label maps, so segmenters.patients must have a number "
            f"of labelled patients, got {ALL}"
        )


def _check_texts(part: Mapping[str, Any], keys: Sequence[str], models: Sequence[str], where: str) -> None:
    """Check the settings that hold a text for each model."""
    for key, name, value in ((setting, *item) for setting in keys for item in part[setting].items()):
        if name not in models:
            hint = did_you_mean(name, models)
            raise ValueError(f"{where}: unknown setting segmenters.{key}.{name}{hint}; there are {', '.join(models)}")
        if not isinstance(value, str):
            raise ValueError(f"{where}: segmenters.{key}.{name} must be text, got {value!r}")


def _check_layers(
    layers: Mapping[str, Any], group: str, names: Sequence[str] | None, stages: Sequence[str], where: str
) -> None:
    """Check overrides by model, strategy or (names is None) number of patients, which need not be in the chosen grid."""
    for name, layer in layers.items():
        if names is None and not _is_size(str(name), with_strategy=group.startswith("segmenters")):
            more = (
                f", or that and a strategy such as 20/{next(iter(STRATEGIES))}"
                if group.startswith("segmenters")
                else ""
            )
            raise ValueError(f"{where}: {group} takes a number of patients, a share, or {ALL}{more}; got {name}")
        if names is not None and name not in names:
            hint = did_you_mean(str(name), list(names))
            raise ValueError(f"{where}: unknown setting {group}.{name}{hint}; there are {', '.join(names)}")
        for stage in layer or {}:
            if stage not in stages:
                raise ValueError(f"{where}: unknown setting {group}.{name}.{stage}; it takes {', '.join(stages)}")


def _is_size(text: str, with_strategy: bool) -> bool:
    """Return whether text is a key of `per_patients`: `all`, `20`, `0.5`, or with a strategy, `20/synthetic`."""
    size, slash, strategy = text.partition("/")
    try:
        is_size = size == ALL or float(size) > 0
    except ValueError:
        is_size = False
    return is_size and (not slash or with_strategy and strategy in STRATEGIES)


_OF_ONE_SEGMENTER = (
    *("dataset_dir", "synthetic_dir", "pseudo_labelled_dir", "labelled_dir", "output_dir"),
    *("checkpoint_path", "init_checkpoint", "seed"),
)
"""Overrides that differ from stage to stage and are correct by construction."""


def _check_stage_overrides(study: Study, where: str) -> None:
    """Check the overrides of every stage against the config that they are for, each kind of command once."""
    seen: set[tuple[str, ...]] = set()
    for stage in study.stages.values():
        if "run" not in stage.command:
            continue
        bundle, config, *flags = stage.command[stage.command.index("run") + 1 :]
        overrides = dict(flag[2:].split("=", 1) for flag in flags)
        fixed = [key for key in overrides if key in _OF_ONE_SEGMENTER]
        key = (bundle, config, *fixed, *(f for f in flags if f[2:].partition("=")[0] not in fixed))
        if key in seen:
            continue
        seen.add(key)
        bundle_dir(bundle)
        try:
            check_overrides(config_files(bundle, config), overrides)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
