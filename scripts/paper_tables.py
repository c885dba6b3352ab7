#!/usr/bin/env python
"""Rebuild the paper's results from its numbers mask by mask, with the statistics that it left out, and your own run beside them.

    python scripts/paper_tables.py [per_image_metrics.csv.gz] [--run RUN ...] [--output DIR]

The source is `per_image_metrics.csv.gz` of "Synthetic Boost" (Adhikari et al., ASMUS 2023), which is not shipped: 46 runs (strategy, model,
prompt) on the 600 masks of 50 patients, with columns

    strategy  model  prompt  case  dice  iou  hausdorff_distance

Dice and IoU are in %, on 512 x 512 pixels to which images and masks were resized without keeping their aspect ratio;
`hausdorff_distance` is 100 x pixels of that grid, not mm.
`case` is `mask_<class index>/patientNNNN_VIEW_PHASE_gt`. Without the file only the means of `PUBLISHED_DICE` are available.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from synboost_monai.errors import did_you_mean, in_one_line
from synboost_monai.evaluation.per_case import PAPER_METRICS, read_metrics, this_command
from synboost_monai.evaluation.statistics import OVERALL, P_VALUES, add_holm, cluster_bootstrap, compare_pairs
from synboost_monai.files import read_text
from synboost_monai.pages.tables import Table, to_text, write_table
from synboost_monai.paths import refuse_overwriting
from synboost_monai.prompts import LEVELS
from synboost_monai.records import PHASES, VIEWS
from synboost_monai.structures import STRUCTURES
from synboost_monai.study.grid import STRATEGIES as STUDY_STRATEGIES

PROMPT_LEVELS = LEVELS[:8]
"""Prompt levels of the paper."""
MODELS = {"clipseg": "CLIPSeg", "cris": "CRIS"}
"""Model -> its name in the file and in tables."""
STRATEGIES = {"synthetic": "synthetic", "real": "real", "synthetic_then_real": "synth-PT:real-FT"}
"""Strategy -> its name in the file; in the paper's order."""
PUBLISHED_DICE: Mapping[tuple[str, str], tuple[float, ...]] = {
    ("synthetic", "clipseg"): (45.69, 84.24, 84.87, 85.27, 84.38, 83.18, 83.32),
    ("synthetic", "cris"): (42.29, 84.72, 84.72, 85.48, 85.12, 85.84, 84.35),
    ("real", "clipseg"): (46.52, 88.53, 88.81, 88.77, 88.58, 88.27, 88.45, 88.16),
    ("real", "cris"): (46.46, 91.00, 91.03, 89.90, 90.94, 90.87, 90.79, 90.99),
    ("synthetic_then_real", "clipseg"): (46.26, 88.56, 89.44, 89.80, 88.68, 88.55, 89.36, 89.53),
    ("synthetic_then_real", "cris"): (41.09, 91.26, 91.39, 91.12, 91.04, 91.23, 91.11, 91.08),
}
"""(strategy, model) -> mean Dice in % of P0, P1, ... over the 600 masks; encoders not frozen."""
COLUMNS = ("strategy", "model", "prompt", "case", "dice", "iou", "hausdorff_distance")
"""Columns of the file."""
METRICS = ("dice", "iou", "hausdorff_distance")
"""Metrics in the file."""
HAUSDORFF_SCALE = 100
"""Factor between pixels of the 512 x 512 grid and the file's Hausdorff distance."""
NUM_MASKS = 600
"""Masks of each run: 50 patients x 2 views x 2 phases x 3 structures."""

_CASE = re.compile(r"mask_([123])/(patient\d{4})_(2CH|4CH)_(ED|ES)_gt")
_RUN = ["strategy", "model", "prompt"]


class Run(NamedTuple):
    """Name one trained segmenter of the paper or of yours."""

    strategy: str
    model: str
    prompt: str

    def __str__(self) -> str:
        return f"{self.strategy} ({MODELS[self.model]} {self.prompt})"


HEADLINES = (
    (Run("real", "cris", "P2"), Run("synthetic", "cris", "P5")),
    (Run("synthetic_then_real", "cris", "P2"), Run("real", "cris", "P2")),
)
"""The paper's two comparisons, larger first: the best runs of its strategies."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", help="the paper's file; without it the printed means alone are shown")
    parser.add_argument("--run", nargs="+", default=[], help="own runs to put beside it (see `own_runs`)")
    parser.add_argument("--output", help="folder for each table as CSV and LaTeX")
    options = parser.parse_args(arguments)
    with in_one_line("paper_tables.py"):
        print(published_results(options.path, options.run, options.output))


def published_results(
    path: str | os.PathLike[str] | None = None,
    runs: Sequence[str] = (),
    output: str | os.PathLike[str] | None = None,
) -> str:
    """Return the paper's tables as text, and write them as CSV and LaTeX files.

    Args:
        path: per_image_metrics.csv.gz; None: only the published means.
        runs: own runs to compare with them (see `own_runs`).
        output: folder for NAME.csv and NAME.tex of each table; None: no files are written.
    Returns:
        the tables for a terminal.
    Raises:
        FileNotFoundError: if a file or folder is missing.
        ValueError: if a file does not have the expected content.
    """
    frame = None if path is None else read_published(path)
    tables = [dice_table(frame)]
    if frame is not None:
        tables += [
            means_table(frame),
            best_table(frame),
            comparison_table(frame),
            comparison_by_structure_table(frame),
            same_prompt_table(frame),
            structure_table(frame),
        ]
    own = own_runs(runs) if runs else []
    if own:
        tables.append(own_table(own, frame))
    parts = [to_text(table) for table in tables]
    if frame is not None:
        is_equal = means_table(frame).frame["is_equal"]
        parts.append(f"{int(is_equal.sum())} of {len(is_equal)} means equal the published ones to two decimals")
    if output is not None:
        written = [Path(output, f"{table.name}.{suffix}") for table in tables for suffix in ("csv", "tex")]
        read = [path, *(run.path for run in own)]
        refuse_overwriting(written, read, "give another folder with --output")
        for table in tables:
            write_table(table, Path(output))
        parts.append(f"tables: {output}")
    return "\n\n".join(part.rstrip() for part in parts)


def read_published(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read and check the file.

    Args:
        path: per_image_metrics.csv.gz, or the same unpacked.
    Returns:
        its rows with strategy and model in our words, and the columns structure, patient, view and phase.
    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column, a run or a mask is missing, duplicate or unknown, or a number is out of its range.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the path of per_image_metrics.csv.gz")
    try:
        frame = pd.read_csv(path, dtype={"case": str})
    except (ValueError, OSError, EOFError, zlib.error) as error:  # from pandas' parser, and from gzip
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a readable CSV file ({reason}); fetch it again") from error
    if missing := [name for name in COLUMNS if name not in frame]:
        raise ValueError(
            f"{path}: expected the columns {', '.join(COLUMNS)}; {', '.join(missing)} missing, got {', '.join(frame)}"
        )
    for name, words in (("strategy", STRATEGIES), ("model", MODELS), ("prompt", {p: p for p in PROMPT_LEVELS})):
        known = {word: ours for ours, word in words.items()}
        if unknown := sorted(set(frame[name].astype(str)) - set(known)):
            hint = did_you_mean(unknown[0], list(known)) or f"; known are {', '.join(known)}"
            raise ValueError(f"{path}: unknown {name} {unknown[0]!r}{hint}")
        frame[name] = frame[name].map(known)
    parts = frame["case"].str.extract(f"^{_CASE.pattern}$")
    if (is_unknown := parts[0].isna()).any():
        raise ValueError(
            f"{path}: case must be mask_1..3/patientNNNN_VIEW_PHASE_gt, got {frame['case'][is_unknown].iloc[0]!r}"
        )
    frame["structure"] = parts[0].astype(int).map({s.class_index: s.name for s in STRUCTURES})
    frame["patient"], frame["view"], frame["phase"] = parts[1], parts[2].map(VIEWS), parts[3].map(PHASES)
    _check_runs(frame, path)
    return frame


def dice_table(frame: pd.DataFrame | None) -> Table:
    """Return the mean Dice of each run as the paper prints it: a row for each strategy and model, a column for each prompt."""
    rows = []
    for (strategy, model), means in PUBLISHED_DICE.items():
        if frame is not None:
            part = frame[(frame["strategy"] == strategy) & (frame["model"] == model)]
            means = tuple(part.groupby("prompt")["dice"].mean()[list(PROMPT_LEVELS[: len(means)])])
        rows.append({"strategy": strategy, "model": MODELS[model], **dict(zip(PROMPT_LEVELS, means))})
    source = "as printed; give per_image_metrics.csv.gz for the rest" if frame is None else _NOTE
    return Table(
        "published_dice",
        "Published mean Dice (%) by strategy, model and prompt",
        pd.DataFrame(rows, columns=["strategy", "model", *PROMPT_LEVELS]),
        dict.fromkeys(PROMPT_LEVELS, ".2f"),
        note=source,
    )


def means_table(frame: pd.DataFrame) -> Table:
    """Return mean and standard deviation (ddof 1) of each metric of each run, and whether the mean Dice is the published one."""
    rows = []
    for run in published_runs():
        part = _rows_of(frame, run)
        row: dict[str, Any] = {"strategy": run.strategy, "model": MODELS[run.model], "prompt": run.prompt}
        for metric in METRICS:
            row |= {f"{metric}_mean": part[metric].mean(), f"{metric}_std": part[metric].std(ddof=1)}
        expected = published_dice(run)
        row |= {"published_dice": expected, "is_equal": f"{row['dice_mean']:.2f}" == f"{expected:.2f}"}
        rows.append(row)
    numbers = [f"{m}_{s}" for m in METRICS for s in ("mean", "std")]
    headings = {f"{m}_{s}": f"{t}{' std' * (s == 'std')}" for m, t in _TITLES.items() for s in ("mean", "std")}
    return Table(
        "published_means",
        "Every published run: mean and standard deviation over 600 masks",
        pd.DataFrame(rows),
        dict.fromkeys([*numbers, "published_dice"], ".2f"),
        {**headings, "published_dice": "printed", "is_equal": "equal"},
        f"{_NOTE}. Dice and IoU in %; Hausdorff as published, 100 x pixels of 512 x 512",
    )


def best_table(frame: pd.DataFrame) -> Table:
    """Return the prompt with the highest mean Dice of each strategy and model."""
    rows = []
    for strategy, model in PUBLISHED_DICE:
        runs = [run for run in published_runs() if run[:2] == (strategy, model)]
        dice = {run: _rows_of(frame, run)["dice"] for run in runs}
        best = max(runs, key=lambda run: dice[run].mean())
        low, high = cluster_bootstrap(dice[best].to_numpy(), _rows_of(frame, best)["patient"].to_numpy())
        labels = {"strategy": strategy, "model": MODELS[model], "prompt": best.prompt}
        rows.append(labels | {"dice": dice[best].mean(), "std": dice[best].std(ddof=1), "low": low, "high": high})
    for row in rows:
        row["is_best"] = row["dice"] == max(r["dice"] for r in rows if r["strategy"] == row["strategy"])
    return Table(
        "published_best",
        "Best prompt of each strategy and model",
        pd.DataFrame(rows),
        dict.fromkeys(("dice", "std", "low", "high"), ".2f"),
        {"dice": "Dice %", "low": "95 % low", "high": "high", "is_best": "best of strategy"},
        "chosen by the mean on the testing masks themselves, as published: the best of 14 or 16 runs is optimistic, and so is every "
        f"comparison of such runs. Interval: patients resampled ({_RESAMPLED}). {_NOTE}",
    )


def comparison_table(frame: pd.DataFrame) -> Table:
    """Return the paper's two comparisons."""
    records = [r for r in _compared(frame, HEADLINES) if r["structure"] == OVERALL]
    return _comparison_table("published_comparisons", "The paper's comparisons of strategies", records)


def comparison_by_structure_table(frame: pd.DataFrame) -> Table:
    """Return the paper's two comparisons, structure by structure."""
    records = [r for r in _compared(frame, HEADLINES) if r["structure"] != OVERALL]
    return _comparison_table("published_comparisons_by_structure", "The same by structure", records)


def same_prompt_table(frame: pd.DataFrame) -> Table:
    """Compare synthetic then real with real for the same model and prompt: no run is chosen by its testing result."""
    pairs = [(r, r._replace(strategy="real")) for r in published_runs() if r.strategy == "synthetic_then_real"]
    records = [r for r in _compared(frame, pairs) if r["structure"] == OVERALL]
    return _comparison_table("published_same_prompt", "Synthetic then real over real, the same prompt", records)


def structure_table(frame: pd.DataFrame) -> Table:
    """Return the mean Dice of each run by structure."""
    names = [s.name for s in STRUCTURES]
    rows = []
    for run in published_runs():
        means = _rows_of(frame, run).groupby("structure")["dice"].mean()
        labels = {"strategy": run.strategy, "model": MODELS[run.model], "prompt": run.prompt}
        rows.append(labels | {name: means[name] for name in names})
    title = "Mean Dice (%) by structure"
    headings = {s.name: s.prompt_words.lower() for s in STRUCTURES}
    return Table("published_structures", title, pd.DataFrame(rows), dict.fromkeys(names, ".2f"), headings, _NOTE)


# ---- own runs


@dataclass(frozen=True)
class OwnRun:
    """Hold an evaluated segmenter of yours."""

    run: Run
    name: str
    """Further parts of its folder's name, such as seed0."""
    path: Path
    """Path of its metrics.csv."""


def own_runs(sources: Iterable[str]) -> list[OwnRun]:
    """Find your own evaluations, and the published run to compare each with.

    Args:
        sources: folders of a study's run (segmenters/MODEL/STRATEGY/PROMPT/.../evaluation/metrics.csv), such metrics.csv files, or
            MODEL/STRATEGY/PROMPT=metrics.csv for a file elsewhere.
    Raises:
        FileNotFoundError: if there is no such file or folder, or it holds no evaluation.
        ValueError: if the run that a file belongs to cannot be determined.
    """
    found: list[OwnRun] = []
    for source in sources:
        words, equals, rest = source.partition("=")
        if equals and len(words.split("/")) == 3:
            model, strategy, prompt = words.split("/")
            found.append(OwnRun(_checked_run(model, strategy, prompt, source), rest, Path(rest)))
        elif Path(source).is_dir():
            paths = sorted(Path(source).glob("segmenters/**/evaluation/metrics.csv"))
            if not paths:
                raise FileNotFoundError(
                    f"{source}: no segmenters/**/evaluation/metrics.csv in this folder; give a study's run or a metrics.csv"
                )
            found += [_run_of_path(path) for path in paths]
        else:
            found.append(_run_of_path(Path(source)))
    for own in found:
        if not own.path.is_file():
            raise FileNotFoundError(f"{own.path}: no such file; give the metrics.csv of an evaluation")
    return found


def own_table(runs: Sequence[OwnRun], frame: pd.DataFrame | None = None) -> Table:
    """Compare own runs with the published ones of the same model, strategy and prompt, and name the differences.

    Dice and IoU are on the paper's grid if metrics.csv has them there (dice_512, iou_512), else on each image's own grid.

    Args:
        runs: result of `own_runs`.
        frame: result of `read_published`; None: the published IoU is left out.
    Raises:
        ValueError: if a file is not a metrics.csv.
    """
    rows = []
    for own in runs:
        part = None if frame is None or published_dice(own.run) is None else _rows_of(frame, own.run)
        numbers, dice = _measured(own.path), published_dice(own.run)
        published = {
            "published_dice": dice,
            "difference": None if dice is None else numbers["dice"] - dice,
            "published_iou": None if part is None else part["iou"].mean(),
            "published_hausdorff": None if part is None else part["hausdorff_distance"].mean() / HAUSDORFF_SCALE,
        }
        labels = {
            "strategy": own.run.strategy,
            "model": MODELS[own.run.model],
            "prompt": own.run.prompt,
            "run": own.name,
        }
        rows.append({**labels, **numbers, **published, **_facts(own.path)})
    columns = [
        "strategy",
        "model",
        "prompt",
        "run",
        "num_masks",
        "num_patients",
        "dice",
        "low",
        "high",
        "published_dice",
    ]
    columns += ["difference", "iou", "published_iou", "hausdorff", "published_hausdorff"]
    columns += ["grid", "views", "data", "split", "network"]
    headings = {"num_masks": "masks", "num_patients": "patients", "dice": "Dice", "low": "95 % low", "iou": "IoU"}
    headings |= {f"published_{key}": f"published {_TITLES[key]}" for key in ("dice", "iou")}
    return Table(
        "published_beside_own",
        "Your runs beside the published ones (Dice and IoU in %, Hausdorff in pixels of 512 x 512)",
        pd.DataFrame(rows)[columns],
        {**dict.fromkeys([c for c in columns if c not in ("num_masks", "num_patients")], ".2f"), "difference": "+.2f"},
        {**headings, "hausdorff": "Hausdorff", "published_hausdorff": "published Hausdorff"},
        "published: 600 masks of the 50 official testing patients of CAMUS, both views, squashed to 512 x 512 pixels; networks of the "
        "published size; the epoch was chosen on these masks. Its patients have the numbers of the first release: nothing is paired with "
        f"yours. On the native grid Dice differs. Interval: your patients resampled ({_RESAMPLED}). Command: {this_command()}",
    )


def published_runs() -> list[Run]:
    """List the 46 runs, in the paper's order."""
    return [Run(s, m, prompt) for (s, m), means in PUBLISHED_DICE.items() for prompt, _ in zip(PROMPT_LEVELS, means)]


def published_dice(run: Run) -> float | None:
    """Return the published mean Dice of a run in %; None if there was no such run."""
    means = PUBLISHED_DICE.get((run.strategy, run.model), ())
    place = PROMPT_LEVELS.index(run.prompt)
    return means[place] if place < len(means) else None


# ---- helpers

_NOTE = "600 masks of the 50 official testing patients of CAMUS, from the authors' numbers for each mask"
_RESAMPLED = "10,000 times, seed 0"
_TITLES = {"dice": "Dice", "iou": "IoU", "hausdorff_distance": "Hausdorff"}


def _check_runs(frame: pd.DataFrame, path: Path) -> None:
    """Check that all 46 runs have the same masks once each, and numbers in their range."""
    if (twice := frame.duplicated([*_RUN, "case"])).any():
        row = frame[twice].iloc[0]
        raise ValueError(f"{path}: {Run(*row[_RUN])} has {row['case']} twice; fetch it again")
    counts = frame.groupby(_RUN).size()
    for run in published_runs():
        if (count := int(counts.get(run, 0))) != NUM_MASKS:
            raise ValueError(f"{path}: expected {NUM_MASKS} cases of {run}, got {count}; fetch it again")
    if len(counts) != len(published_runs()):
        extra = next(Run(*index) for index in counts.index if Run(*index) not in published_runs())
        raise ValueError(f"{path}: {extra} is none of the {len(published_runs())} published runs")
    num_cases = frame["case"].nunique()
    if num_cases != NUM_MASKS:
        raise ValueError(f"{path}: expected the same {NUM_MASKS} cases in every run, got {num_cases} different ones")
    for metric, highest in (("dice", 100), ("iou", 100), ("hausdorff_distance", np.inf)):
        values = frame[metric]
        is_number = values.dtype.kind in "if"
        if not is_number or not (np.isfinite(values) & (values >= 0) & (values <= highest)).all():
            raise ValueError(f"{path}: {metric} must hold numbers from 0 to {highest}; fetch it again")


def _rows_of(frame: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Return the masks of one run."""
    is_it = (frame["strategy"] == run.strategy) & (frame["model"] == run.model) & (frame["prompt"] == run.prompt)
    return frame[is_it]


def _compared(frame: pd.DataFrame, pairs: Iterable[tuple[Run, Run]]) -> list[dict[str, Any]]:
    """Return the records of `compare_pairs` for each pair of runs and each structure; one-sided, the first is better."""
    return [
        {"comparison": f"{a} > {b}", **record}
        for a, b in pairs
        for record in compare_pairs(_rows_of(frame, a), _rows_of(frame, b), metrics=("dice",))
    ]


def _comparison_table(name: str, title: str, records: Sequence[Mapping[str, Any]]) -> Table:
    """Return the comparisons of one family, with Holm's adjustment over it."""
    tested = pd.DataFrame(add_holm(records))
    columns = ["comparison"] + ["structure"] * (tested["structure"].nunique() > 1)
    columns += ["num_pairs", "difference", "std_difference", "wilcoxon_p", "t_p", "wilcoxon_p_holm"]
    columns += ["num_patients", "ci_low", "ci_high"]
    columns += ["patient_wilcoxon_p", "patient_t_p", "patient_wilcoxon_p_holm", "cohens_dz"]
    formats = dict.fromkeys((p + end for p in P_VALUES for end in ("", "_holm")), ".2e") | {"difference": ".3f"}
    formats |= dict.fromkeys(("std_difference", "ci_low", "ci_high", "cohens_dz"), ".2f")
    headings = {"num_pairs": "masks", "std_difference": "std", "wilcoxon_p": "p Wilcoxon", "t_p": "p t-test"}
    headings |= {"wilcoxon_p_holm": "p Holm", "num_patients": "patients", "ci_low": "95 % low", "ci_high": "high"}
    headings |= {"patient_wilcoxon_p": "patient p Wilcoxon", "patient_t_p": "patient p t-test"}
    headings |= {"patient_wilcoxon_p_holm": "patient p Holm", "cohens_dz": "d"}
    note = (
        "Dice in points; paired, one-sided. Over masks as published, which takes the 12 masks of a patient as independent; over patients: "
        f"of each patient's mean, and an interval with patients resampled ({_RESAMPLED}). Holm: over the {len(tested)} tests of this "
        f"table, of Wilcoxon's p. d: mean over standard deviation of the masks' differences. {_NOTE}"
    )
    return Table(name, title, tested[columns], formats, headings, note)


def _run_of_path(path: Path) -> OwnRun:
    """Determine the run from a study's folders: segmenters/MODEL/STRATEGY/PROMPT/.../evaluation/metrics.csv."""
    parts = path.resolve().parent.parts
    start = len(parts) - parts[::-1].index("segmenters") if "segmenters" in parts else len(parts)
    inside = list(parts[start:])
    words = [next((p for p in inside if p in known), "") for known in (MODELS, STUDY_STRATEGIES, PROMPT_LEVELS)]
    if not all(words):
        raise ValueError(
            f"{path}: it lies in no study's segmenters/MODEL/STRATEGY/PROMPT, so the published run to put beside it is not known; "
            f"give it as MODEL/STRATEGY/PROMPT={path}, such as cris/real/P2={path}"
        )
    rest = [p for p in inside if p not in words and p != "evaluation"]
    return OwnRun(Run(words[1], words[0], words[2]), "/".join(rest), path)


def _checked_run(model: str, strategy: str, prompt: str, source: str) -> Run:
    """Convert words of the command line to a run."""
    named = (("model", model, MODELS), ("strategy", strategy, STUDY_STRATEGIES), ("prompt", prompt, PROMPT_LEVELS))
    for what, word, known in named:
        if word not in known:
            hint = did_you_mean(word, list(known)) or f"; there are {', '.join(known)}"
            raise ValueError(f"{source}: unknown {what} {word!r}{hint}")
    return Run(strategy, model, prompt)


def _measured(path: Path) -> dict[str, Any]:
    """Return the numbers of one metrics.csv in %, and the grid that they are on."""
    table = read_metrics(path)
    is_paper_grid = set(PAPER_METRICS) <= set(table) and table["dice_512"].notna().all()
    suffix = "_512" if is_paper_grid else ""
    dice = 100 * table[f"dice{suffix}"]
    patients = table["patient"].fillna(table["case"])
    has_interval = patients.nunique() > 1
    low, high = cluster_bootstrap(dice.to_numpy(), patients.to_numpy()) if has_interval else (None, None)
    views = " ".join(short for short, view in VIEWS.items() if view in set(table["view"])) or None
    return {
        "num_masks": len(table),
        "num_patients": patients.nunique(),
        "dice": dice.mean(),
        "low": low,
        "high": high,
        "iou": 100 * table[f"iou{suffix}"].mean(),
        "hausdorff": table["hausdorff_512"].mean() if is_paper_grid else None,
        "grid": "512 x 512" if is_paper_grid else "native",
        "views": views,
    }


def _facts(path: Path) -> dict[str, Any]:
    """Return the facts on data and network in the summary.json beside a metrics.csv; in a study's run, study.yaml names the data."""
    summary_path = path.with_name("summary.json")
    said = json.loads(read_text(summary_path)) if summary_path.is_file() else {}
    size = f"{said['preset']}, {said['image_size']} px" if {"preset", "image_size"} <= said.keys() else None
    data = said.get("dataset_dir")
    for folder in path.resolve().parents:
        if folder.name == "segmenters" and (study_path := folder.with_name("study.yaml")).is_file():
            dataset = yaml.safe_load(read_text(study_path))["data"]["dataset"]
            data = Path(dataset).name if dataset else "phantom"
    return {"data": data, "split": said.get("section"), "network": size}


if __name__ == "__main__":
    main()
