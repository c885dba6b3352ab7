"""Define what the templates' algorithms share: a `BundleAlgo` that refuses data it is not made for, fills its settings and trains."""

from __future__ import annotations

import inspect
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from monai.apps.auto3dseg import BundleAlgo

from synboost_monai.auto3dseg.folds import Items, check_folds, read_items
from synboost_monai.auto3dseg.settings import (
    HYPER_PARAMETERS_NAME,
    bundle_training,
    read_hyper_parameters,
    with_source_settings,
)
from synboost_monai.auto3dseg.train import PROGRESS_NAME
from synboost_monai.files import atomic_write_text, read_text
from synboost_monai.paths import append_own
from synboost_monai.processes import end_child, ends_with_parent, module_command, safe_environment
from synboost_monai.structures import BACKGROUND_INDEX, NUM_CLASSES, STRUCTURES

MODALITIES = ("ultrasound", "us", "echo", "echocardiography")
"""Values of AutoRunner's `modality` that these algorithms accept."""
LOG_NAME = "train.txt"
"""File in an algorithm's folder with the output of its training."""


class EchoAlgo(BundleAlgo):
    """Wrap a segmenter of the project as an algorithm of Auto3DSeg, one object for each fold.

    Its folder then holds configs/hyper_parameters.yaml (filled), data/datalist.json (the fold) and model/ (model.pt, history.csv,
    inference.yaml, progress.yaml, log, TensorBoard; resume.ckpt while it trains).
    """

    def __init__(self, template_path: str | os.PathLike[str] | None = None) -> None:
        """Take the templates' folder, or that of the class's own file if MONAI's parser has rewritten the path (`#` becomes `::`)."""
        if template_path is not None and not os.path.isdir(template_path):
            template_path = Path(inspect.getfile(type(self))).resolve().parents[2]
        super().__init__(None if template_path is None else str(template_path))

    def pre_check_skip_algo(self, skip_bundlegen: bool = False, skip_info: str = "") -> tuple[bool, str]:
        """Return whether the data does not suit this algorithm, and why: another modality, more than two axes, labels other than 0..3."""
        source = self._source()
        reason = refusal(_load(self.data_stats_files), source)
        return (True, reason) if reason else (skip_bundlegen, skip_info)

    def fill_template_config(self, data_stats_filename: str, algo_path: str, **kwargs: Any) -> dict[str, Any]:
        """Write configs/hyper_parameters.yaml of a fold: settings of the template and the input, place and statistics of the data.

        Args:
            data_stats_filename: file that `DataAnalyzer` wrote.
            algo_path: the algorithm's folder.
            kwargs: `fold`.
        Returns:
            name of the file -> the settings written to it.
        Raises:
            ValueError: if the data does not suit this algorithm, `DataAnalyzer` skipped a case, folds are wrong or a
                hyper-parameter is unknown.
        """
        if kwargs.get("gpu_customization"):
            raise ValueError("auto3dseg: these algorithms have no gpu_customization; set image_size and batch instead")
        statistics, source = _load(data_stats_filename), self._source()
        if reason := refusal(statistics, source):
            raise ValueError(f"auto3dseg: {reason}")
        datalist, dataroot = os.path.abspath(source["datalist"]), os.path.abspath(source["dataroot"])
        items = read_items(datalist, dataroot)["training"]
        check_cases(statistics, items, _by_case_path(data_stats_filename))
        check_folds([item for item in items if "fold" in item], datalist)
        path = Path(algo_path, "configs", HYPER_PARAMETERS_NAME)
        settings = with_source_settings(read_hyper_parameters(path), source, self.name)
        bundle_training(settings)  # refuses what the bundle does not know
        settings |= {
            "bundle_root": os.path.abspath(algo_path),
            "ckpt_path": os.path.join(os.path.abspath(algo_path), "model"),
            "data_file_base_dir": dataroot,
            "data_list_file_path": datalist,
            "fold": int(kwargs.get("fold", 0)),
            "data_statistics": told(statistics),
            "notes": notes(statistics),
        }
        head = f"# Filled by synboost_monai/auto3dseg/algo.py for {Path(algo_path).name}; what each key means stands in the template.\n"
        atomic_write_text(path, head + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        return {HYPER_PARAMETERS_NAME: settings}

    def train(
        self, train_params: dict[str, Any] | None = None, device_setting: dict[str, Any] | None = None
    ) -> subprocess.CompletedProcess:
        """Train the fold in a process of this Python; its progress goes to stderr, the rest of its output to train.txt.

        Called again after an interruption, it goes on from the bundle's resume.ckpt.

        Args:
            train_params: hyper-parameters that override those of the folder.
            device_setting: from `AutoRunner.set_device_info`; several GPUs train together, several machines are refused.
        Raises:
            ValueError: if a mistake of the user ended the training, or several machines are asked for.
            RuntimeError: if it failed otherwise.
        """
        if device_setting is not None:
            self.device_setting.update(device_setting)
        name, log_path = Path(self.output_path).name, Path(self.output_path, LOG_NAME)
        environment = safe_environment(CUDA_VISIBLE_DEVICES=str(self.device_setting["CUDA_VISIBLE_DEVICES"]))
        command = self.train_command(train_params or {})
        print(f"{name}: training", file=sys.stderr, flush=True)
        done = run_logged(command, environment, log_path)
        if done.returncode:
            said = f"auto3dseg: training of {name} failed with code {done.returncode}, see above and {log_path}"
            raise (ValueError if done.returncode == 2 else RuntimeError)(said)
        print(f"{name}: validation Dice {self.get_score():.4f}", file=sys.stderr, flush=True)
        return done

    def train_command(self, train_params: Mapping[str, Any]) -> list[str]:
        """Return the words of the training's command, which runs under torchrun on several GPUs."""
        if int(self.device_setting["NUM_NODES"]) > 1:
            raise ValueError("auto3dseg: trains on one machine; leave NUM_NODES at 1")
        devices = [word for word in str(self.device_setting["CUDA_VISIBLE_DEVICES"]).split(",") if word]
        prefix = shlex.split(str(self.device_setting["CMD_PREFIX"] or "")) or [sys.executable]
        if len(devices) > 1:
            launcher = "torch.distributed.run"
            prefix = [*prefix, "-m", launcher] if self.device_setting["CMD_PREFIX"] else module_command(launcher)
            prefix += ["--standalone", f"--nproc_per_node={len(devices)}"]
        words = [*prefix, os.path.join(self.output_path, "scripts", "train.py"), "run"]
        return [*words, *(f"--{key}={value}" for key, value in train_params.items())]

    def get_score(self, *args: Any, **kwargs: Any) -> float:
        """Return the validation's best mean Dice, read from the algorithm's own folder so that the whole run can be moved."""
        entries = _load(os.path.join(self.output_path, "model", PROGRESS_NAME))
        return float(entries[-1]["best_avg_dice_score"])

    def _source(self) -> dict[str, Any]:
        """Return AutoRunner's input."""
        if not self.data_list_file:
            raise ValueError(
                "auto3dseg: BundleGen needs data_src_cfg_name, the input with modality, datalist and dataroot"
            )
        return dict(_load(self.data_list_file))


def run_logged(
    command: Sequence[str], environment: Mapping[str, str], log_path: str | os.PathLike[str]
) -> subprocess.CompletedProcess:
    """Run a command to its end; append its stdout to a file, and show its stderr."""
    with append_own(log_path) as log:
        process = subprocess.Popen(list(command), stdout=log, env=dict(environment), preexec_fn=ends_with_parent())
    try:
        # a training may take days; it ends by itself, or with the signal that ends this process
        return subprocess.CompletedProcess(list(command), process.wait())
    except KeyboardInterrupt as told:
        end_child(process, told)
        raise


def refusal(statistics: Mapping[str, Any], source: Mapping[str, Any]) -> str | None:
    """Return why data does not suit these algorithms, in a sentence, or None if it does.

    Args:
        statistics: from `DataAnalyzer`.
        source: AutoRunner's input.
    """
    modality = str(source.get("modality", ""))
    if modality.lower() not in MODALITIES:
        return f"these algorithms segment echocardiograms, so modality must be ultrasound, but it is {modality!r}"
    summary = statistics["stats_summary"]
    shape = [int(n) for n in summary["image_stats"]["shape"]["max"]]
    if len([n for n in shape if n > 1]) > 2:
        size = " x ".join(map(str, shape))
        return f"these algorithms segment 2-D echocardiograms, but the images have {len(shape)} axes (up to {size})"
    labels = sorted(int(label) for label in summary["label_stats"]["labels"])
    if unknown := [label for label in labels if not 0 <= label < NUM_CLASSES]:
        names = ", ".join(f"{s.class_index} {s.name}" for s in STRUCTURES)
        return f"label maps must hold 0 background, {names}; these hold {', '.join(map(str, unknown))} too"
    return None


def check_cases(statistics: Mapping[str, Any], items: Items, by_case_path: str) -> None:
    """Raise ValueError if `DataAnalyzer` skipped cases, of which it only writes a line in its log.

    Args:
        statistics: from `DataAnalyzer`.
        items: those of training.
        by_case_path: its file of cases, which has their names.
    """
    num_cases = int(statistics["stats_summary"]["n_cases"])
    if num_cases == len(items):
        return
    known = [case["image_filepath"] for case in _load(by_case_path)["stats_by_cases"]]
    seen = {os.path.realpath(path) for path in known if isinstance(path, str)}
    lost = [item["image"] for item in items if os.path.realpath(item["image"]) not in seen]
    raise ValueError(
        f"auto3dseg: {len(items)} training items but DataAnalyzer could read {num_cases}; it passed over "
        f"{', '.join(lost[:3]) or 'some'}{' and others' if len(lost) > 3 else ''}: correct or take out these files"
    )


def told(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the statistics for hyper_parameters.yaml: cases, native size, spacing in mm, intensities, share of each label."""
    summary = statistics["stats_summary"]
    image = summary["image_stats"]
    shares = [round(float(label["foreground_percentage"]["mean"]), 4) for label in summary["label_stats"]["label"]]
    labels = [int(label) for label in summary["label_stats"]["labels"]]
    return {
        "num_cases": int(summary["n_cases"]),
        "shape": {name: [int(n) for n in image["shape"][name][:2]] for name in ("min", "max")},
        "spacing_mm": {name: [round(float(n), 4) for n in image["spacing"][name][:2]] for name in ("min", "max")},
        "intensity": {name: round(float(image["intensity"][name]), 2) for name in ("min", "max", "mean", "stdev")},
        "share_of_label": dict(zip(labels, shares)),
    }


def notes(statistics: Mapping[str, Any]) -> list[str]:
    """Return sentences on what is unusual about the data; training goes on."""
    data = told(statistics)
    smallest, largest = data["spacing_mm"]["min"], data["spacing_mm"]["max"]
    missing = [s.name for s in STRUCTURES if s.class_index not in data["share_of_label"]]
    said = []
    if smallest == largest == [1.0, 1.0]:
        said.append("every pixel is 1 mm: the files may tell no spacing, and distances in mm then mean pixels")
    elif any(not math.isclose(a, b, rel_tol=0.01) for a, b in (smallest, largest)):
        said.append("pixels are not square: images are fitted by their size in mm")
    if data["intensity"]["min"] < 0 or data["intensity"]["max"] > 255:
        said.append(
            "intensities are not within 0..255: each image is stretched from its darkest to its brightest pixel"
        )
    if missing:
        said.append(f"no training label map holds {', '.join(missing)}: it cannot be learned")
    if BACKGROUND_INDEX not in data["share_of_label"]:
        said.append("no label map has background")
    return said


def _load(path: str | os.PathLike[str]) -> Any:
    """Read a YAML file (or JSON, which is YAML)."""
    return yaml.safe_load(read_text(path))


def _by_case_path(path: str) -> str:
    """Return the path of `DataAnalyzer`'s second file."""
    root, suffix = os.path.splitext(path)
    return f"{root}_by_case{suffix}"
