"""Pack a bundle with its weights into one zip, which runs wherever `synboost-monai` is installed: `synboost package BUNDLE`.

The same bundle, weights and overrides give the same bytes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from synboost_monai import __version__
from synboost_monai.bundle_run import as_literal, bundle_dir, check_overrides, config_files
from synboost_monai.files import atomic_path, read_text, sha256_of
from synboost_monai.model_card import card_path, read_card
from synboost_monai.paths import refuse_overwriting
from synboost_monai.predictor import open_bundle

MODEL_KEYS = (
    "preset",
    "image_size",
    "keep_aspect",
    "padding_id",
    "mask_padding",
    "image_mean",
    "image_std",
    "num_class_embeds",
    "sector_threshold",
    "domain_word",
)
"""Facts of trained weights, also written into train.yaml so that a training of the package continues from its weights."""
PLACE_KEYS = ("bundle_root", "dataset_dir", "output_dir")
"""Places on this machine, which mean nothing on another."""
CALIBRATION = "calibration.json"
"""Name of a calibration in the package, beside model.pt."""

_TIME = (1980, 1, 1, 0, 0, 0)
"""Time of every file in the zip: the earliest that the format knows."""


def package_bundle(
    bundle: str,
    output: str | os.PathLike[str] | None = None,
    *,
    checkpoint_path: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Write a zip of a bundle: its files, with overrides written into them, and its weights as models/model.pt.

    The weights are loaded once to see that they fit. A calibration (`calibration_path`, else the one beside the weights) is packed too.

    Args:
        bundle: name or folder.
        output: the zip; BUNDLE.zip here by default.
        checkpoint_path: the weights, a model.pt; by default the bundle's own.
        overrides: top-level keys of inference.yaml: those that the weights need, and any other default to change.
    Returns:
        the zip.
    Raises:
        FileNotFoundError: if the bundle or a file does not exist.
        ValueError: if the weights do not fit, or a key cannot be packed.
    """
    root = bundle_dir(bundle)
    checked = check_overrides(config_files(bundle, "inference"), overrides or {})
    _check_keys(root, checked)
    opened = open_bundle(bundle, checkpoint_path, {k: v for k, v in checked.items() if k != "checkpoint_path"})
    weights_path = opened.checkpoint_path
    path = Path(output) if output is not None else Path(f"{root.name}.zip")
    if path.is_dir():
        path = path / f"{root.name}.zip"
    card = read_card(weights_path)
    packed = [
        weights_path,
        card_path(weights_path),
        checked.get("calibration_path"),
        *(file for file in root.rglob("*") if file.is_file()),
    ]
    refuse_overwriting([path], packed, "name another file with --output")
    network = opened.network_as_trained()
    _check_plain(weights_path)

    files = {
        str(path.relative_to(root)): path.read_bytes()
        for folder in ("configs", "docs")
        for path in sorted((root / folder).rglob("*"))
        if path.is_file()
    }
    files["LICENSE"] = (root / "LICENSE").read_bytes()
    if (root / "large_files.yml").is_file():
        files["large_files.yml"] = (root / "large_files.yml").read_bytes()
    sources = {"models/model.pt": weights_path}
    if card is not None:
        sources["models/model.json"] = card_path(weights_path)
    if checked.get("calibration_path") is not None:
        sources[f"models/{CALIBRATION}"] = _calibration(Path(str(checked["calibration_path"])), weights_path)
    elif (beside := weights_path.with_name(CALIBRATION)).is_file():
        sources[f"models/{CALIBRATION}"] = _calibration(beside, weights_path)
    # the facts of the weights go into the configs too: not everything that reads these finds the file beside the weights
    written = {k: as_literal(v) for k, v in ({**card.facts, **checked} if card is not None else checked).items()}
    if checked.get("calibration_path") is not None:
        written["calibration_path"] = f"$@bundle_root + '/models/{CALIBRATION}'"
    for name in ("inference", "train"):
        key = f"configs/{name}.yaml"
        known = yaml.safe_load(files[key])
        values = {k: v for k, v in written.items() if k in known and (name == "inference" or k in MODEL_KEYS)}
        files[key] = with_values(files[key].decode(), values, f"{root.name}/{name}.yaml").encode()
    metadata = json.loads(files["configs/metadata.json"])
    fit_metadata(metadata, int(opened.setting("image_size")), network, written)
    files["configs/metadata.json"] = (json.dumps(metadata, indent=4, ensure_ascii=False) + "\n").encode()
    files["docs/README.md"] += _about_weights(sources, written).encode()

    with atomic_path(path) as temporary:
        write_zip(temporary, root.name, files, sources)
    return path


def with_value(text: str, key: str, written: str) -> str | None:
    """Return the text of a YAML config with another value of a top-level key; comments and all else stay.

    Args:
        text: the config.
        key: must have its value on its own line.
        written: the value in YAML.
    Returns:
        the text; None if the config has no such key, or its value is longer than a line.
    """
    match = re.search(rf"^{re.escape(key)}:[ \t]+\S.*?(?P<comment>[ \t]+#.*)?$", text, re.MULTILINE)
    if match is None:
        return None
    return f"{text[: match.start()]}{key}: {written}{match['comment'] or ''}{text[match.end() :]}"


def with_values(text: str, values: Mapping[str, Any], where: str) -> str:
    """Return the text of a config with other values of top-level keys, as JSON; `where` names the config in errors.

    Raises:
        ValueError: if a key's value is longer than a line.
    """
    expected = {**yaml.safe_load(text), **values}
    for key, value in values.items():
        text = with_value(text, key, json.dumps(value, ensure_ascii=False)) or text
    found = yaml.safe_load(text)
    if found != expected:
        wrong = [key for key in values if found.get(key) != values[key]]
        raise ValueError(
            f"{where}: --{(wrong or list(values))[0]} cannot be written into a package; change it when running"
        )
    return text


def fit_metadata(metadata: dict[str, Any], image_size: int, network: Any, values: Mapping[str, Any]) -> None:
    """Fit the shapes in a bundle's metadata to those of the packed network.

    Args:
        metadata: changed in place.
        image_size: side of the network's square.
        network: gives its numbers of channels, if they depend on the preset.
        values: overrides; image_mean and image_std decide the range of the input's values.
    """
    formats = metadata["network_data_format"]
    for tensor in (*formats["inputs"].values(), *formats["outputs"].values()):
        if isinstance(tensor, dict) and len(tensor["spatial_shape"]) == 2:
            tensor["spatial_shape"] = [image_size, image_size]
    for tensor, number in (
        (formats["inputs"]["image"], getattr(network, "in_channels", None)),
        (formats["outputs"]["pred"], getattr(network, "out_channels", None)),
    ):
        if number is not None and tensor["num_channels"] != number:
            names = list(tensor["channel_def"].values())
            step = len(names) // number if len(names) >= number else 1
            tensor["channel_def"] = {str(i): names[min(i * step, len(names) - 1)] for i in range(number)}
            tensor["num_channels"] = number
    if "image_mean" in values and "image_std" in values:
        pairs = list(zip(values["image_mean"], values["image_std"]))
        low, high = min(-m / s for m, s in pairs), max((1 - m) / s for m, s in pairs)
        formats["inputs"]["image"]["value_range"] = [round(low, 1), round(high, 1)]


def write_zip(
    path: str | os.PathLike[str], folder: str, files: Mapping[str, bytes], sources: Mapping[str, Path]
) -> None:
    """Write a zip whose bytes depend on its content alone: names sorted, one time and one mode for all.

    Args:
        path: the zip.
        folder: name of the folder in the zip that holds everything.
        files: name -> content, compressed.
        sources: name -> file, not compressed, since weights do not get smaller.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted({*files, *sources}):
            entry = zipfile.ZipInfo(f"{folder}/{name}", _TIME)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, whatever wrote it
            if name in files:
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, files[name])
                continue
            entry.file_size = sources[name].stat().st_size
            with open(sources[name], "rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _check_keys(root: Path, values: Mapping[str, Any]) -> None:
    """Refuse keys that a package cannot hold."""
    known = yaml.safe_load(read_text(root / "configs/inference.yaml"))
    for key in values:
        if key in PLACE_KEYS:
            raise ValueError(f"{root.name}: --{key} is a place on this machine; give it when the package is run")
        if "::" in key or "#" in key:
            raise ValueError(f"{root.name}: --{key} is nested; only top-level keys of inference.yaml are packed")
        if isinstance(known.get(key), dict):
            raise ValueError(f"{root.name}: --{key} is a component; only plain values of inference.yaml are packed")


def _check_plain(path: Path) -> None:
    """Refuse a checkpoint that MONAI's own loaders do not take as a bundle's model.pt."""
    import torch

    from synboost_monai.networks.checkpoints import is_torchscript, read_checkpoint

    content = None if is_torchscript(path) else read_checkpoint(path, is_mapped=True)
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} is no plain model.pt; make one of it with `synboost weights convert {path} model.pt`")


def _calibration(path: Path, weights_path: Path) -> Path:
    """Check that a calibration was fitted for these weights, and return its path."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such calibration; make it with `synboost run BUNDLE calibrate`")
    stated = json.loads(read_text(path)).get("checkpoint_sha256")
    found = sha256_of(weights_path)
    if stated != found:
        raise ValueError(
            f"{path} was fitted for the weights with SHA-256 {stated}, but {weights_path} has {found}; calibrate again"
        )
    return path


def _about_weights(sources: Mapping[str, Path], values: Mapping[str, Any]) -> str:
    """Return the text at the end of the package's README."""
    lines = ["", "# **This Package**", "", "| file | SHA-256 |", "|---|---|"]
    lines += [f"| `{name}` | {sha256_of(path)} |" for name, path in sorted(sources.items())]
    written = ", ".join(f"`{key}: {json.dumps(value, ensure_ascii=False)}`" for key, value in sorted(values.items()))
    lines += [
        "",
        f"Made by `synboost package` of synboost-monai {__version__}. Differs from the bundle in: {written or 'nothing'}.",
    ]
    lines += ["The weights and what they are good for are the responsibility of whoever made this package.", ""]
    return "\n".join(lines)
