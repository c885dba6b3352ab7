"""A study's settings: read from YAML, checked, and turned into the commands of its stages.

Every stage is a `synboost` command run in the folder of the study's run, so it can be repeated by hand. The DAG (Snakefile
beside this file) only orders them, and `run.py` starts it.

    runs/STUDY/
      study.yaml                                          the settings, complete
      phantom/ real/datalist.json                         data
      diffusion/model.pt  synthetic/datalist.json         synthesis
      segmenters/MODEL/STRATEGY/PROMPT/seedN/model.pt     segmenters, each with evaluation/metrics.csv
      examples/                                           a few synthetic images, segmented, for the report
      timing/STAGE.json  logs/STAGE.txt                   seconds and command of each finished stage; what it printed
      report.html results.csv results.json
"""

from __future__ import annotations

import copy
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from synboost_monai.bundle_run import bundle_dir, check_overrides, config_files, literal, nearest

STUDIES_DIR = Path(__file__).with_name("studies")
"""Shipped studies, one YAML file each."""
STRATEGIES = ("real", "synthetic", "synthetic_then_real")
"""What a segmenter is trained on; the last takes the weights of `synthetic` and goes on with real data."""
PROMPT_LEVELS = tuple(f"P{i}" for i in range(8))
"""Prompt levels of the paper."""

DEFAULTS: dict[str, Any] = {
    "description": "",
    "seed": 0,
    "device": None,
    "bundles": {"diffusion": "echo_semantic_diffusion", "cris": "echo_cris", "clipseg": "echo_clipseg"},
    "data": {"dataset": None, "phantom": None, "prepare": {}},
    "diffusion": {"both": {}, "train": {}, "synthesise": {}},
    "segmenters": {
        "models": ["cris", "clipseg"],
        "strategies": list(STRATEGIES),
        "prompts": ["P2"],
        "seeds": [0],
        "both": {},
        "train": {},
        "evaluate": {},
        "per_model": {},
        "per_strategy": {},
    },
}
"""Every setting of a study and its default. `both` holds overrides for training and for synthesis or evaluation."""

_STAGE_KEYS = ("both", "train", "evaluate")
_PREPARE_KEYS = ("split", "strict", "shape_source", "max_training_patients", "training_fraction")


@dataclass(frozen=True)
class Segmenter:
    """One segmenter of a study."""

    model: str
    strategy: str
    prompt: str
    seed: int

    @property
    def name(self) -> str:
        """Unique name in file names and tables."""
        return f"{self.model}_{self.strategy}_{self.prompt}_seed{self.seed}"

    @property
    def output_dir(self) -> str:
        """Folder inside the run."""
        return f"segmenters/{self.model}/{self.strategy}/{self.prompt}/seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """Checked settings of a study, and the command of each of its stages.

    Commands are words after `synboost`, with paths relative to the run's folder.
    """

    name: str
    settings: Mapping[str, Any]

    @property
    def segmenters(self) -> list[Segmenter]:
        """Every segmenter to train and evaluate, those that others start from included.

        There is no P7 on synthetic data: P7 on real data starts from P6, and P7 of `synthetic` is left out.
        """
        part = self.settings["segmenters"]
        wanted = [
            Segmenter(m, s, p, int(n))
            for m in part["models"]
            for s in part["strategies"]
            for p in part["prompts"]
            for n in part["seeds"]
        ]
        starts = [start for s in wanted if (start := self.initial(s)) is not None]
        kept = [s for s in wanted if not (s.strategy == "synthetic" and s.prompt == "P7")]
        return list(dict.fromkeys([*kept, *starts]))

    @staticmethod
    def initial(segmenter: Segmenter) -> Segmenter | None:
        """The segmenter whose weights this one starts from, if any."""
        if segmenter.strategy != "synthetic_then_real":
            return None
        prompt = "P6" if segmenter.prompt == "P7" else segmenter.prompt
        return Segmenter(segmenter.model, "synthetic", prompt, segmenter.seed)

    @property
    def has_phantom(self) -> bool:
        """Whether the study makes its own data."""
        return self.settings["data"]["dataset"] is None

    @property
    def has_synthesis(self) -> bool:
        """Whether a strategy needs synthetic images."""
        return any(s.strategy != "real" for s in self.segmenters)

    @property
    def stage_names(self) -> list[str]:
        """Every stage of the study, in an order in which they can be done."""
        names = ["phantom"] * self.has_phantom + ["prepare"] + ["train_diffusion", "synthesise"] * self.has_synthesis
        for segmenter in self.segmenters:
            names += [f"train_{segmenter.name}", f"evaluate_{segmenter.name}"]
        if self.has_synthesis:
            names += ["examples", *(f"segment_examples_{s.model}" for s in self.example_segmenters)]
        return [*names, "report"]

    @property
    def products(self) -> dict[str, str]:
        """Training stage -> the weights that it leaves, which later stages read."""
        trained = {f"train_{s.name}": f"{s.output_dir}/model.pt" for s in self.segmenters}
        return {**trained, "train_diffusion": "diffusion/model.pt"} if self.has_synthesis else trained

    @property
    def example_segmenters(self) -> list[Segmenter]:
        """Of each model one, trained on synthetic data alone if there is such: it segments the synthetic examples."""
        of_model: dict[str, Segmenter] = {}
        for segmenter in sorted(self.segmenters, key=lambda s: s.strategy != "synthetic"):
            of_model.setdefault(segmenter.model, segmenter)
        return list(of_model.values())

    def phantom_command(self) -> list[str]:
        """Make the phantom data set."""
        options = {"seed": self.settings["seed"], **self.settings["data"]["phantom"]}
        return ["phantom", "phantom", *_flags(options)]

    def prepare_command(self) -> list[str]:
        """Read the data set."""
        data = self.settings["data"]
        options = {"seed": self.settings["seed"], **data["prepare"]}
        return ["prepare", data["dataset"] or "phantom", "real", *_flags(options)]

    def train_diffusion_command(self) -> list[str]:
        """Train the diffusion model on real data."""
        paths = {"dataset_dir": "real", "output_dir": "diffusion"}
        return self._run("diffusion", "train", paths, self.diffusion_overrides("train"))

    def synthesise_command(self) -> list[str]:
        """Make the synthetic data set from real label maps."""
        paths = {"dataset_dir": "real", "output_dir": "synthetic", "checkpoint_path": "diffusion/model.pt"}
        return self._run("diffusion", "inference", paths, self.diffusion_overrides("synthesise"))

    def train_command(self, segmenter: Segmenter) -> list[str]:
        """Train a segmenter."""
        data = "synthetic" if segmenter.strategy == "synthetic" else "real"
        paths = {"dataset_dir": data, "output_dir": segmenter.output_dir}
        if (start := self.initial(segmenter)) is not None:
            paths["init_checkpoint"] = f"{start.output_dir}/model.pt"
        overrides = self.segmenter_overrides("train", segmenter)
        return self._run(segmenter.model, "train", paths, overrides)

    def evaluate_command(self, segmenter: Segmenter) -> list[str]:
        """Evaluate a segmenter, whatever it was trained on, on the real testing section."""
        paths = {"dataset_dir": "real", "output_dir": f"{segmenter.output_dir}/evaluation", "section": "testing"}
        return self._evaluate(segmenter, paths)

    def segment_examples_command(self, segmenter: Segmenter) -> list[str]:
        """Segment the synthetic examples of the report."""
        paths = {"dataset_dir": "examples", "output_dir": f"examples/{segmenter.model}", "section": "testing"}
        return self._evaluate(segmenter, paths)

    def diffusion_overrides(self, stage: str) -> dict[str, Any]:
        """Overrides of the diffusion bundle for `train` or `synthesise`."""
        part = self.settings["diffusion"]
        return {**self._common(self.settings["seed"]), **part["both"], **part[stage]}

    def segmenter_overrides(self, stage: str, segmenter: Segmenter) -> dict[str, Any]:
        """Overrides of a segmenter's bundle for `train` or `evaluate`: shared, then by model, then by strategy."""
        part = self.settings["segmenters"]
        overrides = {**self._common(segmenter.seed), "prompt_level": segmenter.prompt}
        layers = (part, part["per_model"].get(segmenter.model, {}), part["per_strategy"].get(segmenter.strategy, {}))
        for layer in layers:
            overrides |= {**layer.get("both", {}), **layer.get(stage, {})}
        return overrides

    def _evaluate(self, segmenter: Segmenter, paths: Mapping[str, str]) -> list[str]:
        checkpoint = {"checkpoint_path": f"{segmenter.output_dir}/model.pt"}
        overrides = self.segmenter_overrides("evaluate", segmenter)
        return self._run(segmenter.model, "evaluate", {**paths, **checkpoint}, overrides)

    def _common(self, seed: int) -> dict[str, Any]:
        device = self.settings["device"]
        return {"seed": seed} if device is None else {"seed": seed, "device": device}

    def _run(self, bundle: str, config: str, *overrides: Mapping[str, Any]) -> list[str]:
        merged = {k: v for part in overrides for k, v in part.items()}
        return ["run", self.settings["bundles"][bundle], config, *_flags(merged)]


def read_study(
    study: str | os.PathLike[str], *, dataset: str | None = None, settings: Mapping[str, Any] | None = None
) -> Study:
    """Read a study, put the caller's settings in, and check all of it.

    Args:
        study: name of a shipped study or a YAML file.
        dataset: folder of a CAMUS data set, instead of the study's data.
        settings: dotted key -> value, as on the command line: `diffusion.train.max_epochs` -> 5.
    Raises:
        FileNotFoundError: if there is no such study, data set or bundle.
        ValueError: if a setting is unknown or wrong; the message names it, and the nearest one that exists.
    """
    path = _study_path(study)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
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
    checked = Study(name, merged)
    _check(checked, path.name)
    return checked


def _study_path(study: str | os.PathLike[str]) -> Path:
    """File of a shipped study's name or of a path."""
    path = Path(study)
    if path.is_file():
        return path
    if (shipped := STUDIES_DIR / f"{study}.yaml").is_file():
        return shipped
    names = sorted(p.stem for p in STUDIES_DIR.glob("*.yaml"))
    raise FileNotFoundError(
        f"study.py: no study {str(study)!r}{nearest(str(study), names)}; give a YAML file or one of: {', '.join(names)}"
    )


def _merge(defaults: Mapping[str, Any], content: Mapping[str, Any], where: str, path: str = "") -> dict[str, Any]:
    """Defaults with the study's settings put in.

    Raises:
        ValueError: if a setting has no default, so is unknown, or is of another kind.
    """
    out = copy.deepcopy(dict(defaults))
    for key, value in content.items():
        here = f"{path}.{key}" if path else str(key)
        is_free = path in ("bundles", "data.prepare") or path.rpartition(".")[2] in (*_STAGE_KEYS, "synthesise")
        is_free = is_free or path.startswith(("segmenters.per_", "data.phantom"))
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
    """Hint for a misspelt setting."""
    return nearest(path.rpartition(".")[2], list(defaults)) or f"; it takes {', '.join(defaults)}"


def _nested(key: str, value: Any, current: Any) -> dict[str, Any]:
    """A dotted key and its value as nested settings; a lone value stands for a list where the study has a list."""
    value = literal(value) if isinstance(value, str) else value
    parts = key.split(".")
    for part in parts:
        current = current.get(part) if isinstance(current, dict) else None
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(current, list) and not isinstance(value, list):
        value = value.split(",") if isinstance(value, str) else [value]
    for part in reversed(parts):
        value = {part: value}
    return value


def _check(study: Study, where: str) -> None:
    """Everything that can be wrong with a study, found before the first stage.

    Raises:
        ValueError, FileNotFoundError: in one line.
    """
    settings, part = study.settings, study.settings["segmenters"]
    models = [name for name in settings["bundles"] if name != "diffusion"]
    for key, known in (("models", models), ("strategies", STRATEGIES), ("prompts", PROMPT_LEVELS), ("seeds", None)):
        values = part[key]
        if not isinstance(values, list) or not values:
            raise ValueError(f"{where}: segmenters.{key} must be a list with at least one entry, got {values!r}")
        for value in values:
            if known is None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"{where}: segmenters.{key} must be whole numbers, got {value!r}")
            if known is not None and value not in known:
                hint = nearest(str(value), list(known))
                raise ValueError(f"{where}: segmenters.{key} has no {value!r}{hint}; there are {', '.join(known)}")
    if isinstance(settings["seed"], bool) or not isinstance(settings["seed"], int):
        raise ValueError(f"{where}: seed must be a whole number, got {settings['seed']!r}")
    for key in settings["data"]["prepare"]:
        if key not in _PREPARE_KEYS:
            known_keys = ", ".join(_PREPARE_KEYS)
            raise ValueError(
                f"{where}: unknown setting data.prepare.{key}{nearest(key, _PREPARE_KEYS)}; it takes {known_keys}"
            )
    for group, names in (("per_model", models), ("per_strategy", STRATEGIES)):
        for name, stages in part[group].items():
            if name not in names:
                hint = nearest(str(name), list(names))
                raise ValueError(
                    f"{where}: unknown setting segmenters.{group}.{name}{hint}; there are {', '.join(names)}"
                )
            for stage in stages or {}:
                if stage not in _STAGE_KEYS:
                    known_keys = ", ".join(_STAGE_KEYS)
                    raise ValueError(
                        f"{where}: unknown setting segmenters.{group}.{name}.{stage}; it takes {known_keys}"
                    )
    _check_stage_overrides(study, where)


def _check_stage_overrides(study: Study, where: str) -> None:
    """Every override of every stage against the config it goes to."""
    commands = [study.train_command(s) for s in study.segmenters] + [
        study.evaluate_command(s) for s in study.segmenters
    ]
    if study.has_synthesis:
        commands += [study.train_diffusion_command(), study.synthesise_command()]
    for _, bundle, config, *flags in commands:
        overrides = dict(flag[2:].split("=", 1) for flag in flags)
        bundle_dir(bundle)
        try:
            check_overrides(config_files(bundle, config), overrides)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def _flags(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line; null leaves the config's own."""
    return [f"--{key}={_word(value)}" for key, value in options.items() if value is not None]


def _word(value: Any) -> str:
    """A value as one word."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def command_line(words: Sequence[str]) -> str:
    """Words as they would be typed."""
    return shlex.join(words)
