"""Define the grid of a study: parts of the data, and segmenters that are trained on them.

models x strategies x prompts x encoders frozen or not x parts of the real patients x folds x seeds
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from synboost_monai.prompts import SYNTHETIC_LEVELS

STRATEGIES = ("real", "synthetic", "synthetic_then_real", "real_and_synthetic", "simulated", "simulated_then_real")
"""Training strategies of a segmenter. `synthetic_then_real` takes the weights of `synthetic` and continues with real data;
`real_and_synthetic` trains on both together, with a word in the prompt that says which. `simulated` is not trained by the study: it
takes weights trained only on simulated hearts, from which `simulated_then_real` continues with real data."""
SIMULATED = ("simulated", "simulated_then_real")
"""Strategies that need weights from outside the study."""
_STARTS = {
    "synthetic_then_real": "synthetic",
    "simulated_then_real": "simulated",
}  # strategy -> strategy whose weights it starts from
ALL = "all"
"""Value for every patient for training and validation."""


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
        is_count = isinstance(self.patients, int)
        share = "" if isinstance(self.patients, str) else f"{100 * self.patients:g}pct".replace(".", "p")
        words = [] if self.patients == ALL else [f"patients{self.patients if is_count else share}"]
        words += [] if self.fold is None else [f"fold{self.fold}"]
        words += [] if self.seed is None else [f"seed{self.seed}"]
        return "_".join(words)

    @property
    def title(self) -> str:
        """Return a title for readers."""
        words = []
        if self.patients != ALL:
            is_count = isinstance(self.patients, int)
            words.append(f"{self.patients} patients" if is_count else f"{float(self.patients):.0%} of the patients")
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


WHOLE = DataPart()
"""The whole data set."""


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
        """Return a unique name for files and tables; axes at their default are not named."""
        return "_".join([self.model, self.strategy, self.prompt, *self._words(), f"seed{self.seed}"])

    @property
    def output_dir(self) -> str:
        """Return the folder inside the run."""
        return "/".join(["segmenters", self.model, self.strategy, self.prompt, *self._words(), f"seed{self.seed}"])

    @property
    def title(self) -> str:
        """Return a title for readers."""
        part = replace(self.part, seed=None).title
        words = [self.model, self.strategy.replace("_", " "), self.prompt, *(["encoders frozen"] * self.frozen)]
        return ", ".join([*words, *([part] * bool(part)), f"seed {self.seed}"])

    @property
    def part(self) -> DataPart:
        """Return the patients that the segmenter may learn from."""
        return DataPart(self.patients, self.fold, None if self.patients == ALL else self.seed)

    @property
    def initial(self) -> Segmenter | None:
        """Return the segmenter whose weights this one starts from, if any; P7, which synthetic data do not have, starts from P6."""
        start = _STARTS.get(self.strategy)
        if start is None:
            return None
        is_unknown = start == "synthetic" and self.prompt not in SYNTHETIC_LEVELS
        return replace(self, strategy=start, prompt=SYNTHETIC_LEVELS[-1] if is_unknown else self.prompt)

    @property
    def is_trained(self) -> bool:
        """Return whether the study trains the segmenter; if not, its weights exist from the beginning."""
        return self.strategy != "simulated"

    @property
    def needs_synthesis(self) -> bool:
        """Return whether synthetic images are needed."""
        return "synthetic" in self.strategy

    def _words(self) -> list[str]:
        part = replace(self.part, seed=None).name
        return ["frozen"] * self.frozen + [part] * bool(part)


def segmenters_of(axes: Mapping[str, Any]) -> Iterator[Segmenter]:
    """Yield every segmenter of a grid, each before those that start from it.

    P7 of `synthetic` is left out: synthetic data never have shape and image quality in one prompt.

    Args:
        axes: models, strategies, prompts, frozen, patients, folds, seeds; each a list.
    """
    seen: set[Segmenter] = set()
    names = ("models", "strategies", "prompts", "frozen", "patients", "folds", "seeds")
    for model, strategy, prompt, frozen, patients, fold, seed in product(*(axes[name] for name in names)):
        segmenter = Segmenter(model, strategy, prompt, int(seed), frozen, patients, fold)
        wanted = [] if strategy == "synthetic" and prompt not in SYNTHETIC_LEVELS else [segmenter]
        for one in [*filter(None, [segmenter.initial]), *wanted]:
            if one not in seen:
                seen.add(one)
                yield one
