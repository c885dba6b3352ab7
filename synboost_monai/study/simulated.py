"""Find and copy weights trained only on simulated hearts, from which `simulated` and `simulated_then_real` of a study start.

The weights are those of a model's bundle, or a model.pt that the settings name. `find_weights` checks them before the first stage;
a stage of the study, `python -m synboost_monai.study.simulated SOURCE FOLDER SHA256`, copies them into the run.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from synboost_monai.bundle_run import WEIGHTS, bundle_dir, bundle_weights, config_files, facts_said
from synboost_monai.errors import in_one_line
from synboost_monai.files import atomic_path, sha256_of
from synboost_monai.model_card import card_path, read_card, resolve_facts
from synboost_monai.study.dag import Study
from synboost_monai.study.grid import SIMULATED

SIMULATION_KEY = "simulation_seed"
"""Setting of a training on simulated hearts, by which its model.json is recognised."""


def find_weights(study: Study, where: str) -> dict[str, dict[str, str]]:
    """Find the weights of each model that starts from simulated hearts, and check that they fit the study.

    Args:
        study: study with checked settings.
        where: beginning of the messages.
    Returns:
        `simulated_weights` and `simulated_sha256` of the settings, with every path and hash; unchanged if no strategy needs them.
    Raises:
        FileNotFoundError: if there are no weights.
        ValueError: if the weights were trained on other images, do not match the SHA-256 in the settings, or make another network than
            the other strategies have.
    """
    part = study.settings["segmenters"]
    paths, hashes = dict(part["simulated_weights"]), dict(part["simulated_sha256"])
    for model in study.simulated_models:
        path = _path(study, model, where)
        card = read_card(path)
        if card is None or SIMULATION_KEY not in card.training:
            raise ValueError(
                f"{where}: {path} is not known to be trained on simulated hearts alone: no {card_path(path).name} beside it says so; "
                f"{_advice(study, model)}"
            )
        if hashes.get(model, card.weights_sha256) != card.weights_sha256:
            raise ValueError(
                f"{where}: {path} has SHA-256 {card.weights_sha256[:12]}..., but segmenters.simulated_sha256.{model} is "
                f"{str(hashes[model])[:12]}...: these are other weights; give the weights of before, or a study without that setting"
            )
        _check_network(study, model, path, where)
        paths[model], hashes[model] = str(path), card.weights_sha256
    return {"simulated_weights": paths, "simulated_sha256": hashes}


def take_weights(source: str | os.PathLike[str], folder: str | os.PathLike[str], sha256: str) -> Path:
    """Copy weights, and the files beside them that describe them, into a folder of a run.

    Args:
        source: model.pt.
        folder: folder to write to.
        sha256: SHA-256 of the source when the study was read.
    Returns:
        path of the copy.
    Raises:
        FileNotFoundError: if the weights are gone.
        ValueError: if the weights have changed since.
    """
    # imported here, because reading a study must not need these libraries
    from synboost_monai.heart.doubt import CALIBRATION_NAME

    source, target = Path(source), Path(folder, "model.pt")
    advice = "call `synboost experiment` with the study again"
    if not source.is_file():
        raise FileNotFoundError(
            f"{source}: the weights that the study starts from are gone; bring them back, or {advice}"
        )
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        if (found := sha256_of(temporary)) != sha256:
            raise ValueError(
                f"{source}: expected the weights that the study began with, SHA-256 {sha256[:12]}..., got {found[:12]}...; {advice}"
            )
    for beside, name in (
        (card_path(source), card_path(target).name),
        (source.with_name(CALIBRATION_NAME), CALIBRATION_NAME),
    ):
        if beside.is_file():
            with atomic_path(target.with_name(name)) as temporary:
                shutil.copyfile(beside, temporary)
    read_card(target)
    return target


# ---- helpers


def _path(study: Study, model: str, where: str) -> Path:
    """Return the file of a model's weights: the one named in the settings, or that of its bundle."""
    part = study.settings["segmenters"]
    root, given = bundle_dir(study.settings["bundles"][model]), part["simulated_weights"].get(model)
    try:
        return bundle_weights(root, given).resolve()
    except FileNotFoundError:
        strategy = next(s for s in SIMULATED if s in part["strategies"])
        raise FileNotFoundError(
            f"{where}: the strategy {strategy} takes weights of {model} that were trained on simulated hearts, but there is no "
            f"{given or root / WEIGHTS}; {_advice(study, model)}"
        ) from None


def _advice(study: Study, model: str) -> str:
    """Return advice for weights that are missing or wrong."""
    bundle = Path(study.settings["bundles"][model]).name
    return (
        f"give --segmenters.simulated_weights.{model} PATH, the model.pt of `synboost run {bundle} train_simulated --output_dir OUT`, or "
        "leave the strategy out"
    )


def _check_network(study: Study, model: str, path: Path, where: str) -> None:
    """Check that fine-tuning gives the same network at the same size as the other strategies, so that they can be compared."""
    settings = study.settings
    found = facts_said(config_files(settings["bundles"][model], settings["segmenters"]["recipe"]))
    if found is None:  # a user's own bundle that has no model.json
        return
    architecture, of_config = found
    resolve_facts(architecture, path, {})  # weights of another architecture fit no strategy
    finetuned = [s for s in study.segmenters if s.model == model and s.strategy in SIMULATED and s.is_trained]
    overrides = [study.segmenter_overrides("train", s) for s in finetuned]
    facts = [{key: o.get(key, value) for key, value in of_config.items()} for o in overrides]
    for said in {repr(f): f for f in facts}.values():  # most segmenters have the same
        start, plain = resolve_facts(architecture, path, said, is_start=True), resolve_facts(architecture, None, said)
        for key, value in plain.items():
            if start[key] != value:
                raise ValueError(
                    f"{where}: with {path}, fine-tuning would train a network of {key} {start[key]}, the other strategies one of "
                    f"{value}; say --segmenters.both.{key} {start[key]} for all of them, or {_advice(study, model)[5:]}"
                )


if __name__ == "__main__":
    with in_one_line("simulated weights", str(Path.cwd())):
        take_weights(*sys.argv[1:4])
