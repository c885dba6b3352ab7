"""Make MONAI Label's app folder: its stock app for bundles, and beside it a copy of each bundle with weights and settings."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from synboost_monai import __version__
from synboost_monai.bundle_run import (
    WEIGHTS,
    as_literal,
    bundle_dir,
    bundle_weights,
    check_overrides,
    is_segmenter,
    refuse_older,
)
from synboost_monai.files import sha256_of
from synboost_monai.model_card import known_facts, read_card, write_model
from synboost_monai.predictor import open_bundle
from synboost_monai.serving.package import with_value

STOCK_APP = "monailabel/sample-apps/monaibundle"
"""The sample app for bundles, below the prefix where MONAI Label is installed."""
STOCK_MODULE = "monaibundle_app"
"""New name of the stock app's main.py, since ours takes its place."""
RECORD_NAME = "synboost.json"
"""File of an app folder that records the bundles, weights and settings it was made of."""

_REFUSED = {
    "bundle_root": "the app folder decides it",
    "dataset_dir": "the images are STUDIES",
    "section": "the images are STUDIES",
    "output_dir": "MONAI Label writes label maps by itself",
    "sequences": "MONAI Label shows one plane here; segment clips with `synboost segment` or `synboost dicom`",
    "calibration_path": "a calibration is for one set of weights, and these change with the first training",
    "init_checkpoint": "a training starts from the weights that are served",
    "has_view_head": "the model.json beside the weights says it",
    "synthetic_dir": "a training takes the corrected labels of STUDIES",
    "resume": "a training that was stopped starts anew, since its labels may have changed",
}
"""Keys of the configs that cannot be set here, and why."""
_SET_IN_TRAINING = {"resume": False}
"""Keys of train.yaml that differ in the app folder."""

_MAIN = '''"""MONAI Label's stock app for bundles, with the doubt of SynBoost's segmenters. Made by `synboost label`."""

from synboost_monai.serving.label.stand_ins import import_without_torchvision

import_without_torchvision()

import {stock}
from monailabel.interfaces.app import MONAILabelApp

from synboost_monai.serving.label.app import EchoBundles


class SynBoostApp(EchoBundles, {stock}.MyApp, MONAILabelApp):  # MONAI Label looks for a class whose base is called MONAILabelApp
    pass
'''


@dataclass(frozen=True)
class ServedBundle:
    """Hold one bundle to serve."""

    source_dir: Path
    """Folder of the bundle."""
    checkpoint_path: Path
    """Weights to copy."""
    overrides: Mapping[str, Any]
    """Key of inference.yaml or train.yaml -> value, checked."""

    @property
    def name(self) -> str:
        return self.source_dir.name


def plan_bundles(
    bundles: Sequence[str], checkpoint_paths: Sequence[str] | None, overrides: Mapping[str, Any]
) -> list[ServedBundle]:
    """Return the bundles to serve, after checking everything that a user can get wrong.

    Args:
        bundles: names or folders.
        checkpoint_paths: weights of each, in that order; None: the bundles' own models/model.pt.
        overrides: keys of inference.yaml or train.yaml -> value, for all bundles; `NAME.key` for one of them.
    Raises:
        ValueError, FileNotFoundError: if a bundle, file or key does not exist, or a key cannot be set here.
    """
    if not bundles or len({*bundles}) < len(bundles):
        raise ValueError(f"label: expected one or more different bundles, got {', '.join(bundles) or 'none'}")
    if checkpoint_paths is not None and len(checkpoint_paths) != len(bundles):
        raise ValueError(
            f"label: expected one --checkpoint_path for each of the {len(bundles)} bundles, with commas between, "
            f"got {len(checkpoint_paths)}"
        )
    folders = [bundle_dir(bundle) for bundle in bundles]
    names = [folder.name for folder in folders]
    for key in overrides:
        name, dot, _ = key.partition(".")
        if dot and name not in names:
            raise ValueError(f"label: --{key} is for the bundle {name}, but {', '.join(names)} will be served")
    planned = []
    for i, folder in enumerate(folders):
        if not (folder / "configs/inference.yaml").is_file() or not is_segmenter(folder):
            raise ValueError(f"label: {folder.name} does not segment; MONAI Label can serve echo_clipseg and echo_cris")
        checkpoint_path = bundle_weights(folder, checkpoint_paths[i] if checkpoint_paths else None)
        own = {key: value for key, value in overrides.items() if "." not in key}
        own |= {k.partition(".")[2]: value for k, value in overrides.items() if k.startswith(f"{folder.name}.")}
        checked = _checked(folder, own)
        # into the configs as well: MONAI Label reads parts of them without the path of the weights
        facts = {**known_facts(checkpoint_path, checked), **checked}
        # a training changes this one, so it is read from model.json at each request
        facts.pop("has_view_head", None)
        planned.append(ServedBundle(folder, checkpoint_path, facts))
    return planned


def make_app_folder(
    app_dir: str | os.PathLike[str], bundles: Sequence[ServedBundle], stock_dir: Path | None = None
) -> bool:
    """Make an app folder, whole or not at all; keep one that was made of the same bundles, weights and settings.

    So weights that were trained in it are kept. Nothing in it is a link: a training never writes to the project.

    Args:
        app_dir: the folder to make.
        bundles: from `plan_bundles`.
        stock_dir: MONAI Label's sample app; None: that of this environment.
    Returns:
        whether it was made by this call.
    Raises:
        ValueError: if the folder holds anything else; if weights do not fit their bundle's settings.
    """
    app_dir = Path(app_dir).resolve()
    record = {"synboost_version": __version__, "bundles": {b.name: _record(b) for b in bundles}}
    if app_dir.exists() and any(app_dir.iterdir()):
        _check_same(app_dir, record)
        return False
    stock_dir = stock_dir or stock_app_dir()
    for bundle in bundles:
        if app_dir.is_relative_to(bundle.source_dir):
            raise ValueError(f"{app_dir}: lies within the bundle {bundle.name}; choose another --app_dir")
    app_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{app_dir.name}-", dir=app_dir.parent) as holder:
        folder = Path(holder, "app")
        shutil.copytree(stock_dir, folder, ignore=shutil.ignore_patterns("logs", "model", "__pycache__"))
        (folder / "main.py").rename(folder / f"{STOCK_MODULE}.py")
        (folder / "main.py").write_text(_MAIN.format(stock=STOCK_MODULE), encoding="utf-8")
        for bundle in bundles:
            _copy_bundle(bundle, folder / "model" / bundle.name)
        (folder / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if app_dir.exists():
            app_dir.rmdir()  # empty
        os.replace(folder, app_dir)
    return True


def stock_app_dir() -> Path:
    """Return the folder of MONAI Label's sample app for bundles in this environment.

    Raises:
        FileNotFoundError: if it is not there.
    """
    found = Path(sys.prefix, STOCK_APP)
    if not (found / "main.py").is_file():
        raise FileNotFoundError(
            f"{found}: MONAI Label's sample app is not here; install monailabel into this environment, not for the user or another one"
        )
    return found


def with_values(text: str, values: Mapping[str, Any]) -> str:
    """Return a YAML config with other values of some of its keys; comments, order and all other lines stay.

    Args:
        text: the config.
        values: top-level key with a value of a single line -> new value.
    Raises:
        ValueError: if a key does not exist, or its value is longer than a line.
    """
    for key, value in values.items():
        written = yaml.safe_dump(value, default_flow_style=True, width=1 << 20).removesuffix("...\n").strip()
        changed = None if "\n" in written else with_value(text, key, written)
        if changed is None:
            raise ValueError(
                f"label: --{key} cannot be set here; expected a key of the config's top level with a value of one line"
            )
        if yaml.safe_load(changed)[key] != value:
            raise ValueError(
                f"label: --{key} {value!r} cannot be written into a config; give a number, a word or a list"
            )
        text = changed
    return text


# ---- helpers


def _checked(folder: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return overrides in the types of the configs; a key may be in inference.yaml, in train.yaml or in both."""
    inference, train = folder / "configs/inference.yaml", folder / "configs/train.yaml"
    train_keys = yaml.safe_load(train.read_text(encoding="utf-8")) if train.is_file() else {}
    checked: dict[str, Any] = {}
    for key, value in overrides.items():
        if key in _REFUSED:
            raise ValueError(f"label: --{key} cannot be set: {_REFUSED[key]}")
        inference_keys = yaml.safe_load(inference.read_text(encoding="utf-8"))
        file = train if key in train_keys and key not in inference_keys else inference
        checked |= {k: as_literal(v) for k, v in check_overrides([file], {key: value}).items()}
    return checked


def _record(bundle: ServedBundle) -> dict[str, Any]:
    """Return the version, weights and settings that a served bundle is made of."""
    metadata = json.loads((bundle.source_dir / "configs/metadata.json").read_text(encoding="utf-8"))
    return {
        "version": metadata["version"],
        "checkpoint_sha256": sha256_of(bundle.checkpoint_path),
        "settings": dict(bundle.overrides),
    }


def _check_same(app_dir: Path, record: Mapping[str, Any]) -> None:
    """Refuse a folder that is not an app folder, is an older version's, or has other bundles, weights or settings."""
    path = app_dir / RECORD_NAME
    if not path.is_file():
        raise ValueError(
            f"{app_dir}: holds something else than an app folder of `synboost label`; choose another --app_dir"
        )
    old = json.loads(path.read_text(encoding="utf-8"))
    advice = f"make it anew in another --app_dir; weights that were trained here are in model/BUNDLE/{WEIGHTS}, for --checkpoint_path"
    refuse_older(str(old["synboost_version"]), app_dir, advice)
    if old["bundles"] == record["bundles"]:
        return
    names = sorted({*old["bundles"], *record["bundles"]})
    different = [name for name in names if old["bundles"].get(name) != record["bundles"].get(name)]
    raise ValueError(
        f"{app_dir}: was made with other weights or settings of {', '.join(different)}, and may hold what was trained since; "
        "choose another --app_dir, or delete this folder"
    )


def _copy_bundle(bundle: ServedBundle, target: Path) -> None:
    """Copy configs, docs, licence and weights of a bundle, and write its settings into the configs."""
    shutil.copytree(bundle.source_dir, target, ignore=shutil.ignore_patterns("models", "data", "eval", "__pycache__"))
    for name, fixed in (("inference", {}), ("train", _SET_IN_TRAINING)):
        path = target / f"configs/{name}.yaml"
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            known = yaml.safe_load(text)
            path.write_text(
                with_values(text, {k: v for k, v in {**bundle.overrides, **fixed}.items() if k in known}),
                encoding="utf-8",
            )
    _write_weights(bundle, target)


def _write_weights(bundle: ServedBundle, target: Path) -> None:
    """Write weights as one flat state dict, as MONAI Label loads them; if they do not fit, it only warns and serves noise."""
    from synboost_monai.networks import load_published

    network = open_bundle(target, bundle.checkpoint_path).setting("network_def")
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    try:
        weights = load_published(network, bundle.checkpoint_path).state_dict()
    except ValueError as error:
        raise ValueError(f"{error}; give the --preset and --image_size that {bundle.name} was trained with") from error
    grown = [name for name, tensor in weights.items() if tensor.shape != shapes[name]]
    if grown:
        raise ValueError(
            f"{bundle.checkpoint_path}: {grown[0]} is {tuple(weights[grown[0]].shape)}, but MONAI Label loads it into "
            f"{tuple(shapes[grown[0]])}; these weights work with `synboost segment`, or here after a training from them"
        )
    write_model(weights, target / WEIGHTS, read_card(bundle.checkpoint_path))
