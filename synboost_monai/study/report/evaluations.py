"""Read and group the evaluations of a study's run; every number of the report comes from these files.

A segmenter has the axes of the study's grid. Strategies are compared within a `Setting` (model, prompt, encoders frozen or not, patients);
seeds and folds are repetitions of a setting and a strategy.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from synboost_monai.csv_files import read_frame
from synboost_monai.data.datalist import DATALIST_NAME
from synboost_monai.evaluation.per_case import METRICS, PAPER_METRICS, read_metrics
from synboost_monai.files import FRAME_SUFFIXES, image_stem, read_plane, read_text
from synboost_monai.pages.words import STRATEGY_TITLES, count, join, model_title
from synboost_monai.prompts import LEVELS
from synboost_monai.study.dag import Study
from synboost_monai.study.grid import ALL, STRATEGIES, DataPart, Segmenter
from synboost_monai.study.settings import read_run
from synboost_monai.training.history import HISTORY_NAME


@dataclass(frozen=True)
class Setting:
    """Hold the axes within which strategies are compared."""

    model: str
    prompt: str
    frozen: bool
    patients: int | float | str

    @classmethod
    def of(cls, segmenter: Segmenter) -> Setting:
        """Return the setting of a segmenter."""
        return cls(segmenter.model, segmenter.prompt, segmenter.frozen, segmenter.patients)

    @property
    def size(self) -> float:
        """Return the number or share of patients for ordering; all patients are infinite."""
        return DataPart(self.patients).size

    def order(self, models: Sequence[str]) -> tuple[Any, ...]:
        """Return a key for sorting: model, patients, encoders, prompt."""
        return (models.index(self.model), self.size, self.frozen, LEVELS.index(self.prompt))


@dataclass(frozen=True)
class Evaluation:
    """Represent one evaluated segmenter: its metrics, case by case, and the folder of its label maps."""

    segmenter: Segmenter
    evaluation_dir: Path

    @property
    def setting(self) -> Setting:
        return Setting.of(self.segmenter)

    @property
    def cells(self) -> dict[str, str]:
        """Return model and strategy as cells of a table."""
        return {"model": model_title(self.segmenter.model), "strategy": STRATEGY_TITLES[self.segmenter.strategy]}

    @property
    def name(self) -> str:
        """Return model and strategy in words, which are unique among the evaluations that are shown."""
        return ", ".join(self.cells.values())

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Return the content of summary.json."""
        return dict(json.loads(read_text(self.evaluation_dir / "summary.json")))

    @cached_property
    def frame(self) -> pd.DataFrame:
        """Return the table of metrics.csv."""
        return read_metrics(self.evaluation_dir)

    @cached_property
    def image_dice(self) -> pd.Series:
        """Return the Dice of each case, mean over its structures, from worst to best."""
        return self.frame.groupby("case")["dice"].mean().sort_values(kind="stable")

    @property
    def has_label_maps(self) -> bool:
        """Return whether its label maps were kept."""
        return (self.evaluation_dir / "label_maps").is_dir()

    def label_map(self, case: str) -> NDArray[Any] | None:
        """Return the predicted label map of a case, in display order; None if it was not kept."""
        for suffix in FRAME_SUFFIXES:
            path = self.evaluation_dir / "label_maps" / f"{case}{suffix}"
            if path.is_file() and suffix != ".png":
                return read_plane(path).pixels
        return None

    def doubt(self, case: str) -> dict[str, Any] | None:
        """Return the verdict and anatomy of a predicted label map; None if they were not kept."""
        path = self.evaluation_dir / "label_maps" / f"{case}.json"
        return json.loads(read_text(path)) if path.is_file() else None


@dataclass(frozen=True)
class Run:
    """Hold a study's run with its evaluations, at least one."""

    run_dir: Path
    study: Study
    evaluations: list[Evaluation]

    @classmethod
    def read(cls, run_dir: str | os.PathLike[str]) -> Run:
        """Read a run.

        Raises:
            FileNotFoundError: if the folder is not a run of a study.
            ValueError: if no segmenter has been evaluated yet.
        """
        run_dir = Path(run_dir)
        study = read_run(run_dir)
        evaluations = [Evaluation(s, run_dir / s.output_dir / "evaluation") for s in study.segmenters]
        evaluations = [e for e in evaluations if (e.evaluation_dir / "summary.json").is_file()]
        if not evaluations:
            raise ValueError(
                f"report: {run_dir} holds no evaluation yet; run `synboost experiment {run_dir}/study.yaml` first"
            )
        return cls(run_dir, study, evaluations)

    # ---- groups

    @cached_property
    def models(self) -> list[str]:
        """Return the models in the study's order."""
        return list(dict.fromkeys(e.segmenter.model for e in self.evaluations))

    @cached_property
    def strategies(self) -> list[str]:
        """Return the evaluated strategies, in the order of `STRATEGIES`."""
        return [s for s in STRATEGIES if any(e.segmenter.strategy == s for e in self.evaluations)]

    @cached_property
    def groups(self) -> dict[Setting, dict[str, list[Evaluation]]]:
        """Return setting -> strategy -> its evaluations over folds and seeds, sorted."""
        found: dict[Setting, dict[str, list[Evaluation]]] = {}
        for e in self.evaluations:
            found.setdefault(e.setting, {}).setdefault(e.segmenter.strategy, []).append(e)
        ordered = sorted(found, key=lambda setting: setting.order(self.models))
        return {setting: {s: found[setting][s] for s in STRATEGIES if s in found[setting]} for setting in ordered}

    @cached_property
    def shown_settings(self) -> list[Setting]:
        """Return, for each model, the setting whose pictures, boxes and clinical measures are shown.

        It is the setting with the most strategies; ties go to trained encoders, most patients, most attributes in the prompt.
        """
        key = lambda s: (len(self.groups[s]), not s.frozen, s.size, LEVELS.index(s.prompt))  # noqa: E731
        return [max((s for s in self.groups if s.model == model), key=key) for model in self.models]

    @cached_property
    def shown(self) -> list[Evaluation]:
        """Return the first fold and seed of each shown setting and strategy."""
        return [evaluations[0] for s in self.shown_settings for evaluations in self.groups[s].values()]

    @property
    def has_repetitions(self) -> bool:
        """Return whether any setting and strategy has several folds or seeds."""
        return any(len(evaluations) > 1 for group in self.groups.values() for evaluations in group.values())

    def with_other_patients(self, setting: Setting) -> list[Setting]:
        """Return the settings that differ from one only in the number of patients, with itself."""
        return [s for s in self.groups if replace(s, patients=setting.patients) == setting]

    @cached_property
    def axes(self) -> list[str]:
        """Return the axes of the settings that have more than one value, apart from model and prompt: patients, frozen."""
        return [axis for axis in ("patients", "frozen") if len({getattr(s, axis) for s in self.groups}) > 1]

    def cells(self, setting: Setting) -> dict[str, str]:
        """Return a setting as cells of a table: model, prompt, and the axes that vary."""
        cells = {"model": model_title(setting.model)}
        if "patients" in self.axes:
            cells["patients"] = self.patients_title(setting.patients)
        if "frozen" in self.axes:
            cells["encoders"] = "frozen" if setting.frozen else "trained"
        return {**cells, "prompt": setting.prompt}

    @property
    def cell_names(self) -> list[str]:
        """Return the columns of a setting's cells."""
        return list(self.cells(next(iter(self.groups))))

    def common(self, settings: Sequence[Setting]) -> dict[str, str]:
        """Return the cells, except the model, that are the same in all settings; the title gives them instead of a column."""
        rows = [self.cells(s) for s in settings]
        return {key: value for key, value in rows[0].items() if key != "model" and all(r[key] == value for r in rows)}

    def title(self, setting: Setting, with_patients: bool = True) -> str:
        """Describe a setting in words: `CRIS, P2, 20 patients, encoders frozen`."""
        words = [model_title(setting.model), setting.prompt]
        if "patients" in self.axes and with_patients:
            words.append(f"{self.patients_title(setting.patients)} patients")
        if "frozen" in self.axes:
            words.append(f"encoders {'frozen' if setting.frozen else 'trained'}")
        return ", ".join(words)

    def mean_rows(self, evaluations: Sequence[Evaluation]) -> pd.DataFrame:
        """Return `mean_rows`, computed once for each group of evaluations."""
        key = tuple(e.segmenter for e in evaluations)
        if key not in self._means:
            self._means[key] = mean_rows(evaluations)
        return self._means[key]

    @cached_property
    def _means(self) -> dict[tuple[Segmenter, ...], pd.DataFrame]:
        return {}

    # ---- data

    @cached_property
    def items(self) -> dict[str, dict[str, Any]]:
        """Return case -> item of the real testing section, image and label as absolute paths; empty if the data are gone."""
        items = read_items(self.run_dir / "real" / DATALIST_NAME)
        return {image_stem(item["image"]): item for item in items}

    @property
    def data_name(self) -> str:
        """Name the real data in words."""
        dataset = self.study.settings["data"]["dataset"]
        return Path(dataset).name if dataset else "the phantom data set, which stands for real data"

    @cached_property
    def source(self) -> str:
        """Describe the data behind the numbers."""
        facts = []
        for e in self.evaluations:
            s = e.summary
            of_patients = f" of {count(s['num_patients'], 'patient')}" if s.get("num_patients") else ""
            facts.append(f"{s['section']} section of {self.data_name}: {count(s['num_cases'], 'image')}{of_patients}")
        return "; ".join(dict.fromkeys(facts))

    def num_patients(self, patients: int | float | str) -> int | None:
        """Return the true number of patients for training and validation; None if it is not known."""
        if isinstance(patients, int):
            return patients
        total = self._num_all_patients
        return total if total is None or isinstance(patients, str) else max(2, round(patients * total))

    @cached_property
    def _num_all_patients(self) -> int | None:
        content = _datalist(self.run_dir / "real" / DATALIST_NAME)
        items = [item for section in ("training", "validation") for item in content.get(section, [])]
        return len({item["patient"] for item in items if item.get("patient")}) or None

    def patients_title(self, patients: int | float | str) -> str:
        """Return the number of patients in words: `20`, `all 399`, `25 % (100)`."""
        number = self.num_patients(patients)
        if patients == ALL:
            return ALL if number is None else f"{ALL} {number}"
        share = "" if isinstance(patients, int) else f"{100 * float(patients):g} %"
        return share + (f" ({number})" if share and number else "") if share else str(patients)

    # ---- trainings and stages

    def history(self, segmenter: Segmenter) -> pd.DataFrame | None:
        """Return the validations of a training: iteration and val_mean_dice, sorted; None without history.csv."""
        path = self.run_dir / segmenter.output_dir / HISTORY_NAME
        if not path.is_file():
            return None
        frame = read_frame(path)
        if "val_mean_dice" not in frame or "iteration" not in frame:
            return None
        frame = frame.dropna(subset=["iteration", "val_mean_dice"]).sort_values("iteration", kind="stable")
        return frame if len(frame) else None

    def pretraining_updates(self, segmenter: Segmenter) -> int | None:
        """Return the number of updates of the training that a segmenter starts from; None if it is not known."""
        history = None if segmenter.initial is None else self.history(segmenter.initial)
        return None if history is None else int(history["iteration"].max())

    @cached_property
    def stages(self) -> list[dict[str, Any]]:
        """Return the finished stages in the order of the work, each with its kind, except this report."""
        found = []
        for stage in self.study.stages.values():
            path = self.run_dir / stage.timing
            if stage.kind != "report" and path.is_file():
                found.append({"kind": stage.kind, **json.loads(read_text(path))})
        return found

    @property
    def command(self) -> str:
        """Return the command that makes the whole run again."""
        return f"synboost experiment {self.run_dir.resolve().name}/study.yaml --output ANOTHER_FOLDER"

    @property
    def commands(self) -> str:
        """Return the commands under a table: of the run, and of its report."""
        return f"Commands: {self.command}; of this table: synboost report {self.run_dir.resolve().name}"

    def note(self, evaluations: Sequence[Evaluation], sentences: str = "") -> str:
        """Return the note under a table: sentences, then split, repetitions and command."""
        return (
            f"{sentences} {self.source[0].upper()}{self.source[1:]}; {repetitions(evaluations)}. {self.commands}"
        ).strip()


def in_words(cells: Mapping[str, str]) -> str:
    """Return cells of `Run.common` as words after a title: `, prompt P2, encoders trained`; empty without cells."""
    return "".join(f", {value} patients" if key == "patients" else f", {key} {value}" for key, value in cells.items())


def repetitions(evaluations: Sequence[Evaluation]) -> str:
    """Describe repetitions: `seed 0` or `mean over seeds 0 and 1, folds 0 to 4`."""
    seeds = sorted({e.segmenter.seed for e in evaluations})
    folds = sorted({e.segmenter.fold for e in evaluations if e.segmenter.fold is not None})
    words = [f"seed{'s' * (len(seeds) > 1)} {_numbers(seeds)}"]
    words += [f"fold{'s' * (len(folds) > 1)} {_numbers(folds)}"] if folds else []
    return ("mean over " if max(len(seeds), len(folds)) > 1 else "") + ", ".join(words)


def mean_rows(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """Return rows (case, structure) of several evaluations of the same images, each metric averaged over the evaluations.

    A metric that is undefined in one of them (a distance to an empty mask) is undefined in the mean: an average over the rest would
    hide the failure. `num_empty` counts the evaluations whose mask is empty.

    Raises:
        ValueError: if the evaluations are not of the same images.
    """
    frames = [e.frame for e in evaluations]
    sizes = {len(frame) for frame in frames}
    joined = pd.concat(frames, ignore_index=True)
    metrics = [m for m in (*METRICS, *PAPER_METRICS) if m in joined]
    joined["num_empty"] = joined["is_empty_prediction"].astype(bool).astype(int)
    groups = joined.groupby(["case", "structure"], sort=True)
    num_rows = groups.size()
    if len(sizes) > 1 or (num_rows != len(frames)).any():
        names = join([e.segmenter.name for e in evaluations])
        raise ValueError(f"{names} are not evaluated on the same images; evaluate them on one section")
    means, defined = groups[metrics].mean(), groups[metrics].count()
    means = means.where(defined.eq(len(frames)))
    facts = groups[["patient", "view", "phase"]].first()
    return pd.concat([facts, means, groups["num_empty"].sum()], axis=1).reset_index()


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean of the known values; None if there are none."""
    known = [float(v) for v in values if v is not None and not math.isnan(v)]
    return sum(known) / len(known) if known else None


def _numbers(values: Sequence[int]) -> str:
    """Return numbers in words: `0, 1 and 2`, or `0 to 9` for many in a row."""
    if len(values) > 3 and list(values) == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return join([str(v) for v in values])


def _datalist(path: Path) -> dict[str, Any]:
    """Return a datalist's content; empty if the file does not exist."""
    return dict(json.loads(read_text(path))) if path.is_file() else {}


def read_items(path: Path) -> list[dict[str, Any]]:
    """Return the testing items of a datalist, image and label as paths; empty if the file does not exist."""
    items = _datalist(path).get("testing", [])
    return [{**i, **{k: str(path.parent / i[k]) for k in ("image", "label") if k in i}} for i in items]
