"""Run Auto3DSeg from an input.yaml to measured ensembles: MONAI's `AutoRunner` with the project's templates, data and metrics."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.apps.auto3dseg import (
    AlgoEnsembleBestByFold,
    AlgoEnsembleBestN,
    AlgoEnsembleBuilder,
    AutoRunner,
    import_bundle_algo_history,
)
from monai.utils.enums import AlgoKeys
from tqdm import tqdm

from synboost_monai import __version__
from synboost_monai.auto3dseg import TEMPLATES_DIR
from synboost_monai.auto3dseg.evaluate import (
    comparison,
    known_evaluation,
    write_comparison,
    write_evaluation,
)
from synboost_monai.auto3dseg.settings import HYPER_PARAMETERS
from synboost_monai.auto3dseg.source import check_training, chosen_algorithms, folded_datalist, read_source
from synboost_monai.bundle_run import as_literal, literal, quiet_warnings, refuse_older
from synboost_monai.data.datalist import DATALIST_NAME
from synboost_monai.errors import user_errors_of
from synboost_monai.evaluation.per_case import this_command
from synboost_monai.files import atomic_write_text, image_stem, read_grid, read_text, sha256_of
from synboost_monai.formats.grid import to_display
from synboost_monai.paths import refuse_overwriting
from synboost_monai.processes import hold_folder
from synboost_monai.transforms.array import plain
from synboost_monai.transforms.files import checked_items, load_echo

ENSEMBLES = {"best_n": "AlgoEnsembleBestN", "best_by_fold": "AlgoEnsembleBestByFold"}
"""Folder of an ensemble -> MONAI's class: the networks with the best validation scores; the best network of each fold."""
SETTINGS_NAME = "settings.json"
"""File in the run's folder with the settings that its trained networks depend on."""
VERSION_KEY = "synboost_version"
"""Key of these settings with the version of this package, which a run may go on with."""
FIRST_VERSION = "0.1.0"
"""Version of a run whose settings state none."""
LOG_NAME = "auto_runner.txt"
"""File in the run's folder with the log of MONAI's own parts."""
DEFAULT_SEED = 0
"""Default seed of the folds and the trainings."""


def run_auto3dseg(
    input_path: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    algos: str | Sequence[str] | None = None,
    num_fold: int | None = None,
    ensemble: str = "both",
    n_best: int | None = None,
    **training: Any,
) -> Path:
    """Analyse, train every algorithm on every fold, ensemble, predict the testing section and measure; skip what is done already.

    Args:
        input_path: AutoRunner's input.yaml: modality, datalist, dataroot; also num_fold, algos, hyper-parameters for all algorithms,
            and those for a single algorithm under its name.
        output: folder of the run, AutoRunner's work_dir; runs/auto3dseg by default.
        algos: names of algorithms, a list or text with commas; all by default.
        num_fold: folds to train (see `with_folds`).
        ensemble: best_n, best_by_fold, both, or none.
        n_best: networks in best_n; by default the number of folds, so that the ensembles differ in their networks, not in the number
            of these.
        training: hyper-parameters, or keys of the bundles' training, for all algorithms; text is read as a Python or YAML literal.
    Returns:
        the folder: auto3dseg.txt, .csv and .tex (the table), ensemble/{best_n,best_by_fold}/ and ALGORITHM_FOLD/evaluation/ (label
        maps, metrics.csv, summary.json), and what AutoRunner writes.
    Raises:
        ValueError, FileNotFoundError: for mistakes of the user.
    """
    source = read_source(input_path)
    algorithms = chosen_algorithms(algos if algos is not None else source.get("algos"))
    methods = _methods(ensemble)
    training = {key: literal(value) if isinstance(value, str) else value for key, value in training.items()}
    check_training(source, algorithms, training)
    seed = int(training.get("seed", source.get("seed") or DEFAULT_SEED))
    content, num_fold, root = folded_datalist(source, num_fold, seed)
    num_networks = num_fold * len(algorithms)
    if n_best is not None and not 1 <= n_best <= num_networks:
        raise ValueError(
            f"n_best must be 1 to the {num_networks} networks ({len(algorithms)} algorithms), got {n_best}"
        )
    out = Path(output or source.get("work_dir") or "runs/auto3dseg").resolve()
    own = [key for key in source if key in HYPER_PARAMETERS or key in algorithms]
    settings = {
        "algorithms": algorithms,
        "num_fold": num_fold,
        "hyper_parameters": {key: source[key] for key in own} | training,
        "data": content,
    }
    items = [item for part in content.values() if isinstance(part, list) for item in part]
    outputs = [out / name for name in (DATALIST_NAME, SETTINGS_NAME, LOG_NAME, "input.yaml")]
    refuse_overwriting(outputs, [input_path, source["datalist"], items], "give another folder with --output")
    with hold_folder(out):
        _check_resumed(out, settings)
        datalist = out / DATALIST_NAME
        atomic_write_text(datalist, json.dumps(content, indent=1) + "\n")
        atomic_write_text(
            out / SETTINGS_NAME, json.dumps({VERSION_KEY: __version__, **settings}, indent=1, default=str) + "\n"
        )
        config = {**source, "datalist": str(datalist), "dataroot": root, "num_fold": num_fold}
        config = {key: value for key, value in config.items() if key not in ("work_dir", "algos")}
        with _quiet_auto_runner(out / LOG_NAME):
            run = _Run(out, config, algorithms, num_fold, n_best or num_fold, seed, training, source["datalist"])
            run.train()
            run.evaluate(methods, content["testing"])
    return out


@dataclass(frozen=True)
class _Run:
    """Hold one run in its folder."""

    out: Path
    config: dict[str, Any]
    algorithms: list[str]
    num_fold: int
    n_best: int
    seed: int
    training: dict[str, Any]
    dataset: str

    def train(self) -> None:
        """Analyse the data, generate the algorithms and train those that are not trained."""
        self._run_auto_runner()
        lost = {f"{name}_{fold}" for name in self.algorithms for fold in range(self.num_fold)} - {
            str(entry["name"]) for entry in self._history()
        }
        if lost:
            raise RuntimeError(f"auto3dseg: {', '.join(sorted(lost))} did not come out of AutoRunner's training")

    def evaluate(self, methods: Sequence[str], testing: Sequence[Mapping[str, Any]]) -> None:
        """Predict the testing section with each network and ensemble, measure, and write the table."""
        history = self._history()
        items = checked_items([{**item} for item in testing])
        weights = {e["name"]: sha256_of(e["weights_path"]) for e in history}
        rows: list[dict[str, Any]] = []
        for entry in history:
            summary = self._evaluate_network(entry, items, weights[entry["name"]]) if items else None
            row = {"name": entry["name"], "members": [], "validation_dice": entry["score"], "summary": summary}
            rows.append(row)
        for method in methods:
            ensemble = self._ensemble_of(method)
            members = sorted(str(entry[AlgoKeys.ID]) for entry in ensemble.get_algo_ensemble())
            facts = {"members": {name: weights[name] for name in members}}
            summary = self._evaluate_ensemble(method, ensemble, items, facts) if items else None
            rows.append({"name": method, "members": members, "summary": summary})
        cases = f"{len(items)} test images" if items else "no test images"
        note = f"Data: {self.dataset}, {cases}; {self.num_fold} folds; seed {self.seed}; command: {this_command()}"
        write_comparison(comparison(rows, note), self.out)

    def _evaluate_network(
        self, entry: Mapping[str, Any], items: Sequence[Mapping[str, Any]], weights_sha256: str
    ) -> dict[str, Any] | None:
        """Predict and measure with one network, unless that was done already."""
        folder = Path(entry["algo"].output_path, "evaluation")
        if (known := known_evaluation(folder, {"checkpoint_sha256": weights_sha256})) is not None:
            return known
        bar = tqdm(items, desc=f"{entry['name']}: predict", unit="image", file=sys.stderr)
        return write_evaluation(
            folder,
            ((item, self._predicted(entry["algo"], item["image"])) for item in bar),
            facts={"validation_dice": entry["score"]},
            dataset_dir=self.dataset,
            checkpoint_path=entry["weights_path"],
            seed=self.seed,
        )

    def _evaluate_ensemble(
        self, method: str, ensemble: Any, items: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Let an ensemble of MONAI predict as AutoRunner does, and measure it, unless that was done already."""
        folder = self.out / "ensemble" / method
        if (known := known_evaluation(folder, facts)) is not None:
            return known
        predicted = self.out / "ensemble_output" / method
        saving = {
            "_target_": "SaveImage",
            # AutoRunner passes the path itself, where MONAI's parser rewrites each #
            "output_dir": as_literal(str(predicted)),
            "data_root_dir": as_literal(self.config["dataroot"]),
            "output_postfix": "ensemble",
            "output_dtype": "$np.uint8",
            "resample": False,
            "print_log": False,
            "savepath_in_metadict": True,
            "separate_folder": False,
        }
        ensemble(pred_param={"image_save_func": saving, "rank": 0})
        return write_evaluation(
            folder,
            ((item, self._saved(predicted, item)) for item in items),
            facts={**facts, "ensemble": ENSEMBLES[method]},
            dataset_dir=self.dataset,
            seed=self.seed,
        )

    @staticmethod
    def _predicted(algorithm: Any, image: str) -> Any:
        """Predict a label map (H, W) with a network."""
        grid = read_grid(image)
        stored = plain(algorithm.predict([image])[0].argmax(dim=0)).numpy()
        return to_display(stored.reshape(grid.volume_shape), grid.order)[0]

    def _saved(self, folder: Path, item: Mapping[str, Any]) -> Any:
        """Read a label map (H, W) that AutoRunner saved."""
        relative = os.path.relpath(os.path.dirname(item["image"]), self.config["dataroot"])
        path = folder / relative / f"{image_stem(item['image'])}_ensemble.nii.gz"
        return plain(load_echo(path)[0])[0].byte().numpy()

    def _run_auto_runner(self) -> None:
        """Call MONAI's AutoRunner for everything but the ensembles; it does not repeat what is in its cache."""
        quiet_warnings()
        runner = AutoRunner(
            work_dir=str(self.out),
            input=dict(self.config),
            algos=self.algorithms,
            ensemble=False,
            allow_skip=False,  # data that does not suit an algorithm is an error here, not a shorter run
            templates_path_or_url=str(TEMPLATES_DIR),
        )
        runner.set_analyze_params({"device": "cpu", "worker": 0})
        runner.set_training_params(self.training)
        with user_errors_of(RuntimeError, ValueError), warnings.catch_warnings():
            # DataAnalyzer turns volumes the right way up, which a plane cannot be
            turning = r"\s*(axcodes|Orientation|monai.transforms.spatial.*Orientationd)"
            warnings.filterwarnings("ignore", message=turning)
            runner.run()

    def _history(self) -> list[dict[str, Any]]:
        """Return the trained networks of this run: name, algo, score, weights_path."""
        return [
            {
                "name": entry[AlgoKeys.ID],
                "algo": entry[AlgoKeys.ALGO],
                "score": float(entry[AlgoKeys.SCORE]),
                "weights_path": Path(entry[AlgoKeys.ALGO].output_path, "model", "model.pt"),
            }
            for entry in import_bundle_algo_history(str(self.out), only_trained=True)
        ]

    def _ensemble_of(self, method: str) -> Any:
        """Return one of MONAI's ensembles, made of the trained networks."""
        history = import_bundle_algo_history(str(self.out), only_trained=True)
        builder = AlgoEnsembleBuilder(history, str(self.out / "input.yaml"))
        chosen = AlgoEnsembleBestN(self.n_best) if method == "best_n" else AlgoEnsembleBestByFold(self.num_fold)
        builder.set_ensemble_method(chosen)
        return builder.get_ensemble()


def _methods(ensemble: str) -> list[str]:
    """Return the ensembles that a word stands for."""
    words = {**{name: [name] for name in ENSEMBLES}, "both": list(ENSEMBLES), "none": []}
    if ensemble not in words:
        raise ValueError(f"ensemble must be one of {', '.join(words)}, got {ensemble!r}")
    return words[ensemble]


def _check_resumed(out: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder that holds a run with other settings, or anything but a run.

    Raises:
        ValueError: if it does; the message says what differs.
    """
    path = out / SETTINGS_NAME
    if not path.is_file():
        if any(entry.name != ".lock" for entry in out.iterdir()):
            raise ValueError(
                f"{out} holds other things than a run of auto3dseg; give an empty or new folder with --output"
            )
        return
    old, new = json.loads(read_text(path)), json.loads(json.dumps(settings, default=str))
    made_by = str(old.pop(VERSION_KEY, FIRST_VERSION))
    refuse_older(made_by, out, "run it anew with another --output, or go on with that version")
    if changed := sorted(key for key in {*old, *new} if old.get(key) != new.get(key)):
        what = ", ".join(key if key == "data" else f"{key} {old.get(key)} -> {new.get(key)}" for key in changed)
        raise ValueError(f"{out}: holds a run with other settings ({what}); give another folder with --output")


@contextmanager
def _quiet_auto_runner(path: Path) -> Iterator[None]:
    """Send the log of MONAI's Auto3DSeg to a file instead of the screen; warnings are shown as well."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("monai.apps.auto3dseg")]
    shown = [handler for name in names for handler in logging.getLogger(name).handlers]
    levels = [handler.level for handler in shown]
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    try:
        for handler in shown:
            handler.setLevel(logging.WARNING)
        for name in names:
            logging.getLogger(name).addHandler(file)
        yield
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(file)
        for handler, level in zip(shown, levels):
            handler.setLevel(level)
        file.close()
