"""Define the grid of a study: parts of the data, and segmenters that are trained on them.

models x strategies x prompts x encoders frozen or not x parts of the real patients x folds x seeds
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from synboost_monai.prompts import SYNTHETIC_LEVELS

ALL = "all"
"""Value for every patient for training and validation."""


DRAWN = ("synthetic_unlabelled", "translated")
"""Kinds of images that a diffusion model of labelled and unlabelled patients draws (`Strategy.learns_from`)."""


@dataclass(frozen=True)
class Strategy:
    """Describe what a segmenter learns from, and which other segmenters must be trained before it."""

    learns_from: tuple[str, ...]
    """Which images it learns from; empty: no recipe trains it.

    `real`: those of the labelled patients. `synthetic`: drawn by a diffusion model of these. `pseudo_labelled`: those of all other
    patients, labelled by the teacher. Of a diffusion model that learns from both real and pseudo-labelled images:
    `synthetic_unlabelled`, drawn for the labelled patients' label maps, and `translated`, simulated hearts drawn anew.
    """
    start: str | None = None
    """Strategy whose weights it starts from; None: those that the recipe names."""
    teacher: str | None = None
    """Strategy whose segmenter labels the pseudo-labelled images."""

    @property
    def drawn(self) -> str | None:
        """Return the kind of images among these that a diffusion model of labelled and unlabelled patients draws, if there is one."""
        return next((kind for kind in DRAWN if kind in self.learns_from), None)


STRATEGIES = {
    "real": Strategy(("real",)),
    "synthetic": Strategy(("synthetic",)),
    "synthetic_then_real": Strategy(("real",), start="synthetic"),
    "real_and_synthetic": Strategy(("real", "synthetic")),
    "simulated": Strategy(()),
    "simulated_then_real": Strategy(("real",), start="simulated"),
    "pseudo_labelled": Strategy(("real", "pseudo_labelled"), teacher="real"),
    "simulated_then_pseudo_labelled": Strategy(
        ("real", "pseudo_labelled"), start="simulated", teacher="simulated_then_real"
    ),
    "synthetic_unlabelled": Strategy(("real", "synthetic_unlabelled"), teacher="real"),
    "simulated_then_synthetic_unlabelled": Strategy(
        ("real", "pseudo_labelled", "synthetic_unlabelled"), start="simulated", teacher="simulated_then_real"
    ),
    "simulated_then_translated": Strategy(
        ("real", "pseudo_labelled", "translated"), start="simulated", teacher="simulated_then_real"
    ),
    "adapted": Strategy((), start="simulated"),
    "adapted_then_real": Strategy(("real",), start="adapted"),
}
"""Training strategies of a segmenter. In `real_and_synthetic` a word in the prompt says which kind an image is. `simulated` takes weights
trained only on simulated hearts; `adapted` lets them adapt to all images for training and validation, without label maps
(`synboost adapt`)."""


def _is_simulated(name: str) -> bool:
    """Return whether a strategy starts, at last, from weights trained on simulated hearts."""
    start = STRATEGIES[name].start
    return name == "simulated" or start is not None and _is_simulated(start)


SIMULATED = tuple(filter(_is_simulated, STRATEGIES))
"""Strategies that need weights from outside the study."""


@dataclass(frozen=True)
class DataPart:
    """Represent the real patients that a diffusion model and its segmenters may learn from; the default is all of them.

    Fewer patients are drawn by the segmenter's seed, so that the spread over seeds includes the luck of the draw; folds are drawn by
    the study's seed.
    """

    patients: int | float | str = ALL
    """Number of patients for training and validation together; a share below 1; or `ALL`."""
    fold: int | None = None
    """Fold for validation; None: the data set's own validation patients."""
    seed: int | None = None
    """Seed that draws the patients; None where nothing is drawn."""

    @property
    def name(self) -> str:
        """Return a unique name for files: `patients20_seed1`, `fold0`; empty for the whole data set."""
        words = []
        if isinstance(self.patients, int):
            words.append(f"patients{self.patients}")
        elif isinstance(self.patients, float):
            words.append(f"patients{100 * self.patients:g}pct".replace(".", "p"))
        words += [] if self.fold is None else [f"fold{self.fold}"]
        words += [] if self.seed is None else [f"seed{self.seed}"]
        return "_".join(words)

    @property
    def title(self) -> str:
        """Return a title for readers."""
        words = []
        if isinstance(self.patients, int):
            words.append(f"{self.patients} patients")
        elif isinstance(self.patients, float):
            words.append(f"{self.patients:.0%} of the patients")
        words += [] if self.fold is None else [f"fold {self.fold}"]
        words += [] if self.seed is None else [f"drawn by seed {self.seed}"]
        return ", ".join(words)

    @property
    def size(self) -> float:
        """Return the number or share of patients for ordering; all patients are infinite."""
        return float("inf") if isinstance(self.patients, str) else float(self.patients)

    def folder(self, name: str) -> str:
        """Return the folder `real`, `diffusion` or `synthetic` of this part, inside the run."""
        return f"parts/{self.name}/{name}" if self.name else name

    def stage(self, kind: str) -> str:
        """Return the name of one of the part's stages."""
        return f"{kind}_{self.name}" if self.name else kind


@dataclass(frozen=True)
class Segmenter:
    """Represent one segmenter of a study."""

    model: str
    strategy: str
    prompt: str
    seed: int
    frozen: bool = False
    """Whether the encoders are kept frozen."""
    patients: int | float | str = ALL
    fold: int | None = None

    @property
    def name(self) -> str:
        """Return a name for files and tables; axes at their default are not named, nor are those that change nothing."""
        return "_".join([self.model, self.strategy, self.prompt, *self._words()])

    @property
    def output_dir(self) -> str:
        """Return the folder inside the run."""
        return "/".join(["segmenters", self.model, self.strategy, self.prompt, *self._words()])

    @property
    def title(self) -> str:
        """Return a title for readers."""
        part = replace(self.part, seed=None).title
        words = [self.model, self.strategy.replace("_", " "), self.prompt]
        if self.is_trained:
            words += [*(["encoders frozen"] * self.frozen), *([part] * bool(part)), f"seed {self.seed}"]
        return ", ".join(words)

    @property
    def part(self) -> DataPart:
        """Return the patients that the segmenter may learn from."""
        return DataPart(self.patients, self.fold, None if self.patients == ALL else self.seed)

    @property
    def initial(self) -> Segmenter | None:
        """Return the segmenter whose weights this one starts from, if any; P7, which synthetic data do not have, starts from P6."""
        start = STRATEGIES[self.strategy].start
        if start is None:
            return None
        is_unknown = start == "synthetic" and self.prompt not in SYNTHETIC_LEVELS
        return replace(self, strategy=start, prompt=SYNTHETIC_LEVELS[-1] if is_unknown else self.prompt)

    @property
    def teacher(self) -> Segmenter | None:
        """Return the segmenter that labels the images of the other patients, if this one learns from them."""
        name = STRATEGIES[self.strategy].teacher
        return None if name is None else replace(self, strategy=name)

    @property
    def drawn(self) -> str | None:
        """Return the kind of images that a diffusion model of labelled and unlabelled patients draws for it (`Strategy.drawn`)."""
        return STRATEGIES[self.strategy].drawn

    @property
    def learns_from(self) -> tuple[str, ...]:
        """Return the kinds of images that it learns from (`Strategy.learns_from`)."""
        return STRATEGIES[self.strategy].learns_from

    @property
    def is_trained(self) -> bool:
        """Return whether the study trains the segmenter; if not, it is the same whatever the labelled patients and the seed."""
        return bool(self.learns_from)

    @property
    def needs_synthesis(self) -> bool:
        """Return whether synthetic images are needed, by itself or by the segmenter that it starts from."""
        return "synthetic" in self.learns_from or self.initial is not None and self.initial.needs_synthesis

    def _words(self) -> list[str]:
        """Return the words that tell segmenters of one model, strategy and prompt apart: weights that come from outside are one."""
        if not self.is_trained:
            return []
        part = replace(self.part, seed=None).name
        return ["frozen"] * self.frozen + [part] * bool(part) + [f"seed{self.seed}"]


def segmenters_of(axes: Mapping[str, Any], has_unlabelled: bool = False) -> Iterator[Segmenter]:
    """Yield every segmenter of a grid, each before those that start or learn from it.

    P7 of `synthetic` is left out: synthetic data never have shape and image quality in one prompt. So are strategies with a teacher
    where all patients are labelled, unless there are other images.

    Args:
        axes: models, strategies, prompts, frozen, patients, folds, seeds; each a list. `per_patients` may give a number of patients
            seeds of its own.
        has_unlabelled: whether the study has images besides the data set's.
    """
    seen: set[Segmenter] = set()
    names = ("models", "strategies", "prompts", "frozen", "patients", "folds", "seeds")
    for model, strategy, prompt, frozen, patients, fold, seed in product(*(axes[name] for name in names)):
        segmenter = Segmenter(model, strategy, prompt, int(seed), frozen, patients, fold)
        of_patients = axes.get("per_patients", {}).get(str(patients)) or {}
        has_nothing_to_label = segmenter.teacher is not None and patients == ALL and not has_unlabelled
        if seed not in of_patients.get("seeds", axes["seeds"]) or has_nothing_to_label:
            continue
        wanted = [] if strategy == "synthetic" and prompt not in SYNTHETIC_LEVELS else [segmenter]
        for one in [*_before(segmenter), *wanted]:
            if one not in seen:
                seen.add(one)
                yield one


def _before(segmenter: Segmenter) -> Iterator[Segmenter]:
    """Yield the segmenters that one needs, each after those that it needs itself."""
    for needed in filter(None, (segmenter.initial, segmenter.teacher)):
        yield from _before(needed)
        yield needed
