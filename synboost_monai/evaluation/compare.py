"""Compare two or more evaluations of the same images; write the tables, their files, and the settings to make them again."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from synboost_monai import __version__
from synboost_monai.evaluation.per_case import METRICS, PAPER_METRICS, metrics_path, read_metrics, this_command
from synboost_monai.evaluation.statistics import P_VALUES, SMALLER_IS_BETTER, add_holm, compare_pairs
from synboost_monai.files import atomic_write_text, read_text, sha256_of
from synboost_monai.pages.tables import Table, write_table
from synboost_monai.paths import refuse_overwriting

METRIC_TITLES = {
    "dice": "Dice, %",
    "iou": "IoU, %",
    "hd_mm": "HD, mm",
    "hd95_mm": "HD95, mm",
    "asd_mm": "ASD, mm",
    "dice_512": "Dice 512, %",
    "iou_512": "IoU 512, %",
    "hausdorff_512": "HD 512, px",
}
"""Metric -> its name and unit in tables; shares are shown in percent."""
NO_PATIENTS = (
    "The files name no patients, so there are no tests over patients and no intervals; these p-values take the images of one patient as "
    "independent, which they are not."
)
"""Note under the tables when the column patient is empty."""

_QUESTIONS = {"greater": "better than", "less": "worse than", "two-sided": "different from"}
_PATIENT_COLUMNS = ("num_patients", "ci_low", "ci_high", "patient_wilcoxon_p", "patient_wilcoxon_p_holm", "patient_t_p")
_MEANS = (
    *("num_pairs", "num_left_out", "num_patients"),
    *("mean_a", "std_a", "mean_b", "std_b", "difference", "ci_low", "ci_high"),
)
_TESTS = ("wilcoxon_p", "wilcoxon_p_holm", "t_p", "patient_wilcoxon_p", "patient_wilcoxon_p_holm", "patient_t_p")
_EFFECTS = ("difference", "std_difference", "hodges_lehmann", "cohens_dz", "rank_biserial")
_HEADINGS = {
    "b": "compared run",
    "num_pairs": "pairs",
    "num_left_out": "left out",
    "num_patients": "patients",
    "mean_b": "its mean",
    "std_a": "std",
    "std_b": "std",
    "std_difference": "its std",
    "ci_low": "95 % from",
    "ci_high": "to",
    "wilcoxon_p": "Wilcoxon",
    "wilcoxon_p_holm": "Holm",
    "t_p": "t-test",
    "patient_wilcoxon_p": "patients: Wilcoxon",
    "patient_wilcoxon_p_holm": "Holm",
    "patient_t_p": "t-test",
    "hodges_lehmann": "Hodges-Lehmann",
    "cohens_dz": "Cohen's dz",
    "rank_biserial": "rank-biserial",
}
_FORMATS = {
    "num_patients": ".0f",
    **dict.fromkeys(("mean_a", "std_a", "mean_b", "std_b", "std_difference"), ".2f"),
    **dict.fromkeys(("difference", "ci_low", "ci_high", "hodges_lehmann", "cohens_dz", "rank_biserial"), "+.2f"),
    **{f"{key}{end}": ".3g" for key in P_VALUES for end in ("", "_holm")},
}


def compare(
    a_csv: str | os.PathLike[str],
    b_csv: str | os.PathLike[str],
    *more_csv: str | os.PathLike[str],
    names: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    alternative: str = "greater",
    output_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    num_resamples: int = 10000,
) -> list[Table]:
    """Compare evaluations of the same images, each later one with the first: means, differences, tests, effect sizes.

    `evaluation.statistics.compare_pairs` defines each number. Holm's correction covers all tests of one metric: each structure and
    overall, of every later run.

    Args:
        a_csv, b_csv, more_csv: metrics.csv of each run, or the folder of an evaluation; different files.
        names: names of the runs; by default the parts in which their paths differ.
        metrics: `METRICS` or `PAPER_METRICS`; by default those that every file has.
        alternative: the first run is better (greater), worse (less) or just different (two-sided).
        output_dir: folder for comparison.json, and a CSV and a LaTeX file of each table.
        seed, num_resamples: seed and number of samples of the bootstrap by patients.
    Returns:
        three tables: means, tests, effect sizes.
    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not a metrics.csv, is given twice, or the runs are not of the same cases.
    """
    paths = [metrics_path(path) for path in (a_csv, b_csv, *more_csv)]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError("compare.py: the same file is given twice; give a different metrics.csv for each run")
    titles = list(names) if names is not None else run_names(paths)
    if len(titles) != len(paths) or len(set(titles)) < len(titles):
        raise ValueError(f"compare.py: {len(paths)} runs need as many different names, got {', '.join(titles)}")
    frames = [read_metrics(path) for path in paths]
    metrics = _metrics(frames, titles, metrics)
    shown = [_in_percent(frame) for frame in frames]
    records: list[dict[str, Any]] = []
    for title, frame in zip(titles[1:], shown[1:]):
        try:
            found = compare_pairs(
                shown[0], frame, metrics=metrics, alternative=alternative, num_resamples=num_resamples, seed=seed
            )
        except ValueError as error:
            raise ValueError(f"{titles[0]} (first) and {title} (second): {error}") from error
        records += [{"a": titles[0], "b": title, "unit": METRIC_TITLES[r["metric"]].split(", ")[1], **r} for r in found]
    records = add_holm(records)
    settings = {"metrics": list(metrics), "alternative": alternative, "seed": seed, "num_resamples": num_resamples}
    tables = _tables(records, titles, settings, _source(paths[0]))
    if output_dir is not None:
        written = [f"{table.name}.{suffix}" for table in tables for suffix in ("csv", "tex")]
        outputs = [Path(output_dir, name) for name in ("comparison.json", *written)]
        refuse_overwriting(outputs, paths, "give another folder with --output")
        inputs = [{"name": t, "path": str(p), "sha256": sha256_of(p)} for t, p in zip(titles, paths)]
        _write(Path(output_dir), tables, records, inputs, settings)
    return tables


def run_names(paths: Sequence[Path]) -> list[str]:
    """Return the parts in which the paths of runs differ.

    For example, runs/x/real/evaluation/metrics.csv and runs/x/synthetic/evaluation/metrics.csv give real and synthetic.
    """
    parts = [[*path.parts[:-1], path.name.removesuffix(".csv")] for path in paths]
    for end in (-1, 0):
        while min(map(len, parts)) > 1 and len({part[end] for part in parts}) == 1:
            for part in parts:
                del part[end]
    return ["/".join(part) for part in parts]


# ---- helpers


def _metrics(frames: Sequence[pd.DataFrame], titles: Sequence[str], asked: Sequence[str] | None) -> list[str]:
    """Return the metrics to compare, checked."""
    known = (*METRICS, *PAPER_METRICS)
    lacking = {m: [t for t, f in zip(titles, frames) if m not in f or f[m].isna().all()] for m in known}
    if asked is None:
        return [m for m in known if not lacking[m]]
    for metric in asked:
        if metric not in known:
            raise ValueError(f"compare.py: no metric is called {metric!r}; there are {', '.join(known)}")
        if lacking[metric]:
            raise ValueError(
                f"compare.py: {', '.join(lacking[metric])} has no {metric}; evaluate it again, or leave it out"
            )
    if not asked:
        raise ValueError(f"compare.py: no metric is asked for; there are {', '.join(known)}")
    return list(dict.fromkeys(asked))


def _in_percent(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with its shares in percent."""
    shares = [m for m, title in METRIC_TITLES.items() if title.endswith("%") and m in frame]
    return frame.assign(**{m: 100 * frame[m] for m in shares})


def _source(path: Path) -> str:
    """Return the section and data set of an evaluation, from the summary.json beside it; empty if there is none."""
    summary_path = path.with_name("summary.json")
    if not summary_path.is_file():
        return ""
    summary = json.loads(read_text(summary_path))
    return f"{summary.get('section')} section of {Path(str(summary.get('dataset_dir'))).name}. "


def _tables(
    records: Sequence[Mapping[str, Any]], titles: Sequence[str], settings: Mapping[str, Any], source: str
) -> list[Table]:
    """Return means, tests and effect sizes of the records as tables."""
    has_patients = any(r["num_patients"] is not None for r in records)
    is_pair = len(titles) == 2
    other = titles[1] if is_pair else "the compared run"
    headings = {**_HEADINGS, "mean_a": titles[0], **({"mean_b": titles[1]} if is_pair else {})}
    frame = pd.DataFrame(records)
    frame["metric"] = frame["metric"].map(METRIC_TITLES)
    frame["structure"] = frame["structure"].str.replace("_", " ")
    head = ["metric", "structure"] if is_pair else ["b", "metric", "structure"]
    against = f"{titles[0]} against {' and '.join(titles[1:])}"

    means = f"Difference: {titles[0]} less {other}. Pairs: a structure of an image; left out: undefined in either run (an empty mask)."
    if has_patients:
        resamples = f"{settings['num_resamples']} resamples, seed {settings['seed']}"
        means += f" Interval of the difference: bootstrap that draws patients (BCa, {resamples})."
    tests = _question(titles[0], other, settings)
    sizes = {r["num_family"] for r in records if r["num_family"]}
    family = (
        f"all {max(sizes)} tests of one metric" if len(sizes) == 1 else f"all tests of one metric (up to {max(sizes)})"
    )
    tests += f" Over pairs as published{'; patients: over means of patients' if has_patients else ''}."
    tests += f" Holm: of Wilcoxon's, over {family}." + ("" if has_patients else f" {NO_PATIENTS}")
    effects = "Hodges-Lehmann: in the metric's unit. Cohen's dz: difference over its std. Rank-biserial: from -1 to 1."
    parts = [
        ("comparison", "means and differences", _MEANS, means),
        ("comparison_tests", "p-values", ("tested", *_TESTS), tests),
        ("comparison_effects", "effect sizes", _EFFECTS, effects),
    ]
    tables = []
    for name, title, columns, note in parts:
        kept = [*head, *(c for c in columns if has_patients or c not in _PATIENT_COLUMNS)]
        note = f"{source}{note} Command: {this_command()}"
        tables.append(Table(name, f"{against}: {title}", frame[kept], _FORMATS, headings, note))
    return tables


def _question(first: str, other: str, settings: Mapping[str, Any]) -> str:
    """Say in words what the tests ask."""
    sides = "Two-sided" if settings["alternative"] == "two-sided" else "One-sided"
    question = f"{sides} paired tests: is {first} (a) {_QUESTIONS[settings['alternative']]} {other} (b)?"
    has_distances = any(metric in SMALLER_IS_BETTER for metric in settings["metrics"])
    return question + (" Distances are better where they are smaller." if has_distances else "")


def _write(
    folder: Path,
    tables: Sequence[Table],
    records: Sequence[Mapping[str, Any]],
    inputs: Sequence[Mapping[str, str]],
    settings: Mapping[str, Any],
) -> None:
    """Write the tables' files and comparison.json, whose shares are in percent as in the tables."""
    for table in tables:
        write_table(table, folder)
    libraries = {name: version(name) for name in ("numpy", "pandas", "scipy", "monai")}
    record = {
        "command": this_command(),
        "synboost_version": __version__,
        "versions": {"python": platform.python_version(), **libraries},
        "inputs": list(inputs),
        **settings,
        "records": list(records),
    }
    atomic_write_text(folder / "comparison.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
