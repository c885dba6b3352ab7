"""Represent a study: its settings, and each of its stages with its command, inputs and outputs.

Every stage is a `synboost` command run in the folder of the study's run, so it can be repeated by hand. The DAG (Snakefile
beside this file) only orders the stages, and `run.py` starts it.

    runs/STUDY/
        study.yaml                                          the complete settings
        phantom/ real/datalist.json                         data
        diffusion/model.pt  synthetic/datalist.json         synthesis
        parts/PART/{real,diffusion,synthetic}/              the same for fewer patients, or for a fold
      simulated/MODEL/model.pt                            weights trained on simulated hearts, where a strategy starts from them
      adapted/MODEL/model.pt                              the same, adapted to the images of the data set
      segmenters/MODEL/STRATEGY/PROMPT/seedN/model.pt     segmenters, each with history.csv and evaluation/metrics.csv, and
                                                          pseudo_labels/datalist.json where another one learns from its label maps,
                                                          diffusion/model.pt trained on these too, and what it draws:
                                                          synthetic_unlabelled/datalist.json, translated/datalist.json
        hearts/datalist.json                                simulated hearts, for `translated`
      examples/                                           a few synthetic images, segmented, for the report
      timing/STAGE.json  logs/STAGE.txt                   seconds and command of each finished stage; its output
      report.html results.csv results.json tables/        and cases.csv.gz: every segmenter, image and structure
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from synboost_monai.model_card import PUBLISHED_FACTS
from synboost_monai.study.grid import ALL, DRAWN, SIMULATED, DataPart, Segmenter, segmenters_of

KINDS = {
    "phantom": "make the phantom data set",
    "prepare": "read the data set",
    "subset": "take a part of the patients, or a fold",
    "train_diffusion": "train the diffusion model",
    "synthesise": "synthesise a data set",
    "weights": "take weights that were trained on simulated hearts",
    "adapt": "adapt them to images without label maps",
    "train": "train a segmenter",
    "gather": "gather images without label maps",
    "pseudo_label": "label the images of the other patients",
    "simulate": "simulate hearts, to be drawn anew",
    "draw": "draw images with a diffusion model that also learned from images without experts' label maps",
    "evaluate": "evaluate a segmenter",
    "sensitivity": "try wrong words in the prompts",
    "examples": "choose synthetic examples",
    "segment_examples": "segment the synthetic examples",
    "report": "write the report",
}
"""Kind of stage -> its description, in the order of the work."""
_FACTS = {key for facts in PUBLISHED_FACTS.values() for key in facts}


@dataclass(frozen=True)
class Stage:
    """Represent one stage: a command, run in the run's folder."""

    name: str
    kind: str
    title: str
    command: tuple[str, ...]
    """Words after `synboost`; a full command if the first word is `python` or `torchrun`."""
    needs: tuple[str, ...]
    """Names of the stages that must be done before."""
    output_dir: str | None = None
    """Folder of the stage; None if it has no folder of its own."""
    product: str | None = None
    """File that later stages read; if it is gone, the stage no longer counts as done."""

    @property
    def timing(self) -> str:
        """Return the file that marks the stage as done."""
        return f"timing/{self.name}.json"


@dataclass(frozen=True)
class Study:
    """Represent a study by its settings and stages; paths are relative to the run's folder."""

    name: str
    settings: Mapping[str, Any]

    @cached_property
    def segmenters(self) -> list[Segmenter]:
        """Return every segmenter to train and evaluate, including those that others start from, which come first."""
        return list(segmenters_of(self.settings["segmenters"], self.has_unlabelled))

    @cached_property
    def parts(self) -> list[DataPart]:
        """Return the parts of the data that segmenters learn from, including the whole data set if a segmenter uses it."""
        return list(dict.fromkeys(s.part for s in self.segmenters))

    @property
    def has_phantom(self) -> bool:
        """Return whether the study makes its own data."""
        return self.settings["data"]["dataset"] is None

    @property
    def has_unlabelled(self) -> bool:
        """Return whether there are images without label maps besides the data set's."""
        return self.settings["data"]["unlabelled"] is not None

    @cached_property
    def has_synthesis(self) -> bool:
        """Return whether a strategy needs synthetic images."""
        return any(s.needs_synthesis for s in self.segmenters)

    @cached_property
    def simulated_models(self) -> list[str]:
        """Return the models that need weights trained on simulated hearts."""
        return list(dict.fromkeys(s.model for s in self.segmenters if s.strategy in SIMULATED))

    @cached_property
    def example_segmenters(self) -> list[Segmenter]:
        """Return one segmenter per model that segments the synthetic examples, preferably trained only on synthetic data."""
        if not self.has_synthesis:
            return []
        of_model: dict[str, Segmenter] = {}
        part = self.example_part
        candidates = [s for s in self.segmenters if s.part == part]
        for segmenter in sorted(candidates, key=lambda s: (s.strategy != "synthetic", s.frozen)):
            of_model.setdefault(segmenter.model, segmenter)
        return list(of_model.values())

    @cached_property
    def example_part(self) -> DataPart:
        """Return the part of the data whose synthetic images the report shows: the whole data set, or the largest part."""
        parts = list(dict.fromkeys(s.part for s in self.segmenters if s.needs_synthesis))
        return max(parts, key=lambda part: part.size)

    @cached_property
    def sensitivity_segmenters(self) -> list[Segmenter]:
        """Return the segmenters that are tested with wrong words: for each model and strategy the one with most patients and attributes."""
        if not self.settings["segmenters"]["sensitivity"]:
            return []
        groups: dict[tuple[str, str], list[Segmenter]] = {}
        for segmenter in self.segmenters:
            has_words = segmenter.prompt != "P0"  # an empty prompt has no word that can be wrong
            if "real" in segmenter.learns_from and has_words:
                groups.setdefault((segmenter.model, segmenter.strategy), []).append(segmenter)
        return [max(group, key=lambda s: (not s.frozen, s.part.size, s.prompt)) for group in groups.values()]

    # ---- stages

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """Return name -> stage, in an order in which the stages can be done."""
        stages = [*self._data_stages(), *self._segmenter_stages(), *self._example_stages()]
        everything = tuple(stage.name for stage in stages)
        last = Stage("report", "report", "write the report", ("report", "."), everything, None, "report.html")
        return {stage.name: stage for stage in [*stages, last]}

    def _data_stages(self) -> Iterator[Stage]:
        """Yield the stages for data and synthesis, of the whole data set and of each part."""
        if self.has_phantom:
            split = "database_split/subgroup_training.txt"
            yield _stage("phantom", "phantom", "phantom data set", self.phantom_command(), (), "phantom", split)
        needs = ("phantom",) if self.has_phantom else ()
        yield _stage("prepare", "prepare", "prepare the data", self.prepare_command(), needs, "real", "datalist.json")
        if self.has_unlabelled and any(s.teacher is not None or s.strategy == "adapted" for s in self.segmenters):
            command, title = self.gather_command(), "gather the images without label maps"
            yield _stage("gather", "gather", title, command, ("prepare",), "unlabelled", "datalist.json")
        with_synthesis = {s.part for s in self.segmenters if s.needs_synthesis}
        for part in self.parts:
            about = f", {part.title}" if part.name else ""
            real, train, synthesise = self._real(part), part.stage("train_diffusion"), part.stage("synthesise")
            if part.name:
                command, folder = self.subset_command(part), part.folder("real")
                yield _stage(real, "subset", f"take a part{about}", command, ("prepare",), folder, "datalist.json")
            if part in with_synthesis:
                command, folder = self.train_diffusion_command(part), part.folder("diffusion")
                title = f"train the diffusion model{about}"
                yield _stage(train, "train_diffusion", title, command, (real,), folder, "model.pt")
                command, folder = self.synthesise_command(part), part.folder("synthetic")
                title = f"synthesise a data set{about}"
                yield _stage(synthesise, "synthesise", title, command, (real, train), folder, "datalist.json")

    def _segmenter_stages(self) -> Iterator[Stage]:
        """Yield the stages for training, evaluation and, for some segmenters, wrong words."""
        for model in self.simulated_models:
            command, folder = self.weights_command(model), f"simulated/{model}"
            title = f"take the weights of {model} that were trained on simulated hearts"
            yield _stage(f"weights_{model}", "weights", title, command, (), folder, "model.pt")
        for model in dict.fromkeys(s.model for s in self.segmenters if s.strategy == "adapted"):
            command, folder = self.adapt_command(model), f"adapted/{model}"
            title = f"adapt the weights of {model} to images without label maps"
            after = (self._pool, f"weights_{model}")
            yield _stage(f"adapt_{model}", "adapt", title, command, after, folder, "model.pt")
        tried, teachers = set(self.sensitivity_segmenters), {s.teacher for s in self.segmenters}
        drawn = list(dict.fromkeys((s.teacher, s.drawn) for s in self.segmenters if s.drawn))
        if any(kind == "translated" for _, kind in drawn):
            title = "simulate hearts, to be drawn anew"
            yield _stage("simulate", "simulate", title, self.simulate_command(), (), "hearts", "datalist.json")
        for s in self.segmenters:
            real, synthetic = self._real(s.part), s.part.stage("synthesise")
            if s.is_trained:
                made = {"real": real, "synthetic": synthetic}
                if s.teacher is not None:
                    made["pseudo_labelled"] = _labelled_by(s.teacher)
                    made |= {kind: _drawn_by(s.teacher, kind) for kind in DRAWN}
                needs = [made[kind] for kind in s.learns_from]
                needs += [] if s.initial is None else [_made_by(s.initial)]
                command, folder = self.train_command(s), s.output_dir
                yield _stage(_made_by(s), "train", f"train {s.title}", command, tuple(needs), folder, "model.pt")
            if s in teachers:
                command, folder = self.pseudo_label_command(s), _pseudo_labels_of(s)
                title = f"label the images of the other patients with {s.title}"
                needs = [self._pool, real, _made_by(s)]
                yield _stage(_labelled_by(s), "pseudo_label", title, command, tuple(needs), folder, "datalist.json")
            yield from self._drawing_stages(s, [kind for teacher, kind in drawn if teacher == s])
            title, folder = f"evaluate {s.title}", f"{s.output_dir}/evaluation"
            command, applied = self.test_command(s, "evaluate", "real", folder), ("prepare", _made_by(s))
            yield _stage(f"evaluate_{s.name}", "evaluate", title, command, applied, folder, "metrics.csv")
            if s in tried:
                title, folder = f"wrong words for {s.title}", f"{s.output_dir}/sensitivity"
                command = self.test_command(s, "sensitivity", "real", folder)
                yield _stage(f"sensitivity_{s.name}", "sensitivity", title, command, applied, folder, "sensitivity.csv")

    def _drawing_stages(self, teacher: Segmenter, kinds: Sequence[str | None]) -> Iterator[Stage]:
        """Yield the stages of a diffusion model that learns from a teacher's pseudo-labelled images too, and of what it draws."""
        if not kinds:
            return
        real, learn = self._real(teacher.part), f"train_diffusion_{teacher.name}"
        folder, about = f"{teacher.output_dir}/diffusion", f"images that {teacher.title} labelled"
        command = self.train_diffusion_command(teacher.part, teacher)
        needs = (real, _labelled_by(teacher))
        title = f"train the diffusion model on real images and {about}"
        yield _stage(learn, "train_diffusion", title, command, needs, folder, "model.pt")
        for kind in kinds:
            assert kind is not None
            source, stage, title = {
                "synthetic_unlabelled": (real, "synthesise", "draw images for the labelled patients' label maps"),
                "translated": ("simulate", "translate", "draw simulated hearts anew"),
            }[kind]
            command = self.draw_command(teacher, kind, stage)
            title, folder = f"{title}, as the model of {about}", f"{teacher.output_dir}/{kind}"
            yield _stage(_drawn_by(teacher, kind), "draw", title, command, (source, learn), folder, "datalist.json")

    def _example_stages(self) -> Iterator[Stage]:
        """Yield the stages for pictures of synthetic images in the report."""
        if not self.has_synthesis:
            return
        part = self.example_part
        choose = ("python", "-m", "synboost_monai.study.examples", part.folder("synthetic"), "examples")
        needs, title = (part.stage("synthesise"),), "choose synthetic examples"
        yield _stage("examples", "examples", title, choose, needs, "examples", "datalist.json")
        for s in self.example_segmenters:
            name, title = f"segment_examples_{s.model}", f"segment the synthetic examples with {s.model}"
            folder, after = f"examples/{s.model}", ("examples", _made_by(s))
            command = self.test_command(s, "evaluate", "examples", folder)
            yield _stage(name, "segment_examples", title, command, after, folder, "summary.json")

    @property
    def _pool(self) -> str:
        """Return the name of the stage that makes the data set of all images whose label maps are not looked at."""
        return "gather" if self.has_unlabelled else "prepare"

    @property
    def _of_pool(self) -> dict[str, str]:
        """Return the folder of that data set, and its section if it is not the default."""
        return {"dataset_dir": "unlabelled", "section": "training"} if self.has_unlabelled else {"dataset_dir": "real"}

    def _real(self, part: DataPart) -> str:
        """Return the name of the stage that makes a part's real data."""
        return part.stage("subset") if part.name else "prepare"

    # ---- commands

    def phantom_command(self) -> tuple[str, ...]:
        """Make the phantom data set."""
        options = {"seed": self.settings["seed"], **self.settings["data"]["phantom"]}
        return ("phantom", "phantom", *_flags(options))

    def prepare_command(self) -> tuple[str, ...]:
        """Read the data set."""
        data = self.settings["data"]
        options = {"seed": self.settings["seed"], **data["prepare"]}
        return ("prepare", data["dataset"] or "phantom", "real", *_flags(options))

    def gather_command(self) -> tuple[str, ...]:
        """Gather the images without label maps: the data set's own for training and validation, and the others."""
        source = self.settings["data"]["unlabelled"]
        return ("python", "-m", "synboost_monai.study.unlabelled", "real", source, "unlabelled")

    def subset_command(self, part: DataPart) -> tuple[str, ...]:
        """Take a part of the patients, or a fold."""
        options: dict[str, Any] = {"patients": None if part.patients == ALL else part.patients}
        if part.fold is not None:
            options |= {"fold": part.fold, "num_folds": self.settings["data"]["num_folds"]}
        options["seed"] = self.settings["seed"] if part.seed is None else part.seed
        return ("subset", "real", part.folder("real"), *_flags(options))

    def simulate_command(self) -> tuple[str, ...]:
        """Simulate hearts for a diffusion model to draw anew."""
        return ("simulate", "hearts", *_flags({"seed": self.settings["seed"], **self.settings["data"]["simulate"]}))

    def train_diffusion_command(self, part: DataPart, teacher: Segmenter | None = None) -> tuple[str, ...]:
        """Train the diffusion model on real data, and on images that a teacher labelled."""
        paths = {"dataset_dir": part.folder("real"), "output_dir": part.folder("diffusion")}
        if teacher is not None:
            paths |= {
                "pseudo_labelled_dir": _pseudo_labels_of(teacher),
                "output_dir": f"{teacher.output_dir}/diffusion",
            }
        recipe = self.settings["diffusion"]["recipe"]
        return self._run("diffusion", recipe, paths, self.diffusion_overrides("train", part), is_parallel=True)

    def synthesise_command(self, part: DataPart) -> tuple[str, ...]:
        """Make the synthetic data set from real label maps."""
        paths = {"dataset_dir": part.folder("real"), "output_dir": part.folder("synthetic")}
        paths["checkpoint_path"] = f"{part.folder('diffusion')}/model.pt"
        overrides = self.diffusion_overrides("synthesise", part)
        return self._run("diffusion", "inference", paths, overrides, is_parallel=True)

    def draw_command(self, teacher: Segmenter, kind: str, stage: str) -> tuple[str, ...]:
        """Draw images with the diffusion model that learned from a teacher's pseudo-labelled images."""
        paths = {
            "dataset_dir": "hearts" if kind == "translated" else teacher.part.folder("real"),
            "checkpoint_path": f"{teacher.output_dir}/diffusion/model.pt",
            "output_dir": f"{teacher.output_dir}/{kind}",
        }
        overrides = self.diffusion_overrides(stage, teacher.part)
        return self._run("diffusion", "inference", paths, overrides, is_parallel=True)

    def weights_command(self, model: str) -> tuple[str, ...]:
        """Copy a model's weights that were trained on simulated hearts; other weights change the command."""
        part = self.settings["segmenters"]
        source, sha256 = (part[key].get(model, "") for key in ("simulated_weights", "simulated_sha256"))
        return ("python", "-m", "synboost_monai.study.simulated", source, f"simulated/{model}", sha256)

    def adapt_command(self, model: str) -> tuple[str, ...]:
        """Adapt a model's weights to all images for training and validation."""
        bundle, weights = self.settings["bundles"][model], f"simulated/{model}/model.pt"
        options = {"bundle": bundle, "checkpoint_path": weights, "seed": self.settings["seed"], **self._of_pool}
        return ("adapt", str(options.pop("dataset_dir")), f"adapted/{model}", *_flags(options))

    def train_command(self, segmenter: Segmenter) -> tuple[str, ...]:
        """Train a segmenter."""
        folders = {name: segmenter.part.folder(name) for name in ("real", "synthetic")}
        if segmenter.teacher is not None:
            folders["pseudo_labelled"] = _pseudo_labels_of(segmenter.teacher)
            folders |= {kind: f"{segmenter.teacher.output_dir}/{kind}" for kind in DRAWN}
        first, *others = segmenter.learns_from
        paths = {"dataset_dir": folders[first], "output_dir": segmenter.output_dir}
        paths |= {"synthetic_dir" if name in DRAWN else f"{name}_dir": folders[name] for name in others}
        overrides = self.segmenter_overrides("train", segmenter)
        if (start := segmenter.initial) is not None:
            overrides["init_checkpoint"] = _weights_of(start)  # that of the settings is for strategies without a start
        recipe = self.settings["segmenters"]["recipe"]
        return self._run(segmenter.model, recipe, paths, overrides, is_parallel=True)

    def pseudo_label_command(self, teacher: Segmenter) -> tuple[str, ...]:
        """Label the images of the patients whom a segmenter did not learn from."""
        paths = {**self._of_pool, "labelled_dir": teacher.part.folder("real")}
        return self._apply(teacher, "pseudo_label", {**paths, "output_dir": _pseudo_labels_of(teacher)})

    def test_command(self, segmenter: Segmenter, config: str, dataset_dir: str, output_dir: str) -> tuple[str, ...]:
        """Apply a segmenter to the testing section of a data set, whatever it was trained on."""
        paths = {"dataset_dir": dataset_dir, "output_dir": output_dir, "section": "testing"}
        return self._apply(segmenter, config, paths)

    def diffusion_overrides(self, stage: str, part: DataPart) -> dict[str, Any]:
        """Return overrides of the diffusion bundle for `train`, `synthesise` or `translate`."""
        settings = self.settings["diffusion"]
        of_part = settings["per_patients"].get(str(part.patients)) or {}
        seed = self.settings["seed"] if part.seed is None else part.seed
        of_all = {**self._common(seed), **settings["both"], **settings[stage]}
        return {**of_all, **of_part.get("both", {}), **of_part.get(stage, {})}

    def segmenter_overrides(self, stage: str, segmenter: Segmenter) -> dict[str, Any]:
        """Return overrides of a segmenter's bundle for a stage: shared, by model, by strategy, by number of patients."""
        settings = self.settings["segmenters"]
        overrides = {**self._common(segmenter.seed), "prompt_level": segmenter.prompt}
        if len(segmenter.learns_from) > 1 and stage == "train":
            overrides["balance_synthetic"] = True
        if {"real", "synthetic"} <= {*segmenter.learns_from}:
            overrides["domain_word"] = True
        if segmenter.frozen and stage == "train":
            overrides["freeze_encoders"] = True
        layers = [
            settings,
            settings["per_model"].get(segmenter.model),
            settings["per_strategy"].get(segmenter.strategy),
            settings["per_patients"].get(str(segmenter.patients)),
            settings["per_patients"].get(f"{segmenter.patients}/{segmenter.strategy}"),
        ]
        for layer in filter(None, layers):
            overrides |= {**layer.get("both", {}), **layer.get(stage, {})}
        if not segmenter.is_trained:  # the study does not choose size and the like: they come from model.json
            overrides = {key: value for key, value in overrides.items() if key not in _FACTS}
        return overrides

    def _apply(self, segmenter: Segmenter, config: str, paths: Mapping[str, str]) -> tuple[str, ...]:
        checkpoint = {"checkpoint_path": _weights_of(segmenter)}
        overrides = self.segmenter_overrides("evaluate", segmenter)
        if config != "evaluate":
            overrides.pop("paper_grid", None)  # a setting of the metrics only
        if config == "pseudo_label":
            overrides.pop("prompt_ensemble", None)  # its passes take the place of words
        return self._run(segmenter.model, config, {**paths, **checkpoint}, overrides)

    def _common(self, seed: int) -> dict[str, Any]:
        device = self.settings["device"]
        return {"seed": seed} if device is None else {"seed": seed, "device": device}

    def _run(
        self, bundle: str, config: str, *overrides: Mapping[str, Any], is_parallel: bool = False
    ) -> tuple[str, ...]:
        """Return the words of a bundle's run, with torchrun where several processes share the work."""
        merged = {k: v for part in overrides for k, v in part.items()}
        processes = self.settings["processes"]
        if not is_parallel or processes == 1:
            return ("run", self.settings["bundles"][bundle], config, *_flags(merged))
        launcher = ("torchrun", "--standalone", f"--nproc_per_node={processes}", "-m", "synboost_monai")
        if config != "inference":
            config = "multi_gpu_train" if config == "train" else f"train,{config},multi_gpu_train"
        return (*launcher, "run", self.settings["bundles"][bundle], config, *_flags(merged))


def _made_by(segmenter: Segmenter) -> str:
    """Return the name of the stage that makes a segmenter's weights."""
    kind = {"simulated": "weights", "adapted": "adapt"}.get(segmenter.strategy)
    return f"train_{segmenter.name}" if kind is None else f"{kind}_{segmenter.model}"


def _labelled_by(teacher: Segmenter) -> str:
    """Return the name of the stage in which a segmenter labels the images of the other patients."""
    return f"pseudo_label_{teacher.name}"


def _drawn_by(teacher: Segmenter, kind: str) -> str:
    """Return the name of the stage in which a diffusion model that learned from a teacher's label maps draws images."""
    return f"draw_{kind}_{teacher.name}"


def _pseudo_labels_of(teacher: Segmenter) -> str:
    """Return the folder of the data set that a segmenter labelled."""
    return f"{teacher.output_dir}/pseudo_labels"


def _weights_of(segmenter: Segmenter) -> str:
    """Return the path of a segmenter's weights."""
    folder = segmenter.output_dir if segmenter.is_trained else f"{segmenter.strategy}/{segmenter.model}"
    return f"{folder}/model.pt"


def _stage(
    name: str, kind: str, title: str, command: tuple[str, ...], needs: tuple[str, ...], folder: str, product: str
) -> Stage:
    """Return a stage with a folder of its own that holds the file for later stages."""
    return Stage(name, kind, title, command, needs, folder, f"{folder}/{product}")


def _flags(options: Mapping[str, Any]) -> list[str]:
    """Return options as words of a command line; null leaves the config's own value."""
    words = {key: str(value).lower() if isinstance(value, bool) else value for key, value in options.items()}
    return [f"--{key}={word}" for key, word in words.items() if word is not None]
