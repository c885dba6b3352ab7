"""Write the report of a study's run: report.html (one file, works from disk), tables/, results.csv, results.json, cases.csv.gz.

evaluations.py   reads the run and groups its evaluations
overview.py scores.py differences.py curves.py clinical.py wrong_words.py cases.py
                 each make a section or a few: tables, plots and texts, only where the study has the data
`pages` has the building blocks of sections, tables, figures and pictures.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from synboost_monai.csv_files import frame_text
from synboost_monai.evaluation.statistics import OVERALL
from synboost_monai.files import atomic_path, atomic_write_text
from synboost_monai.pages.blocks import Section, write_tables
from synboost_monai.pages.page import package_versions, render
from synboost_monai.pages.words import PHANTOM_WARNING
from synboost_monai.study.report import cases, clinical, curves, differences, overview, scores, wrong_words
from synboost_monai.study.report.evaluations import Evaluation, Run

__all__ = ["results_frame", "write_report"]

CASES_NAME = "cases.csv.gz"
"""File in the run's folder with one row per segmenter, image and structure."""


def write_report(run_dir: str | os.PathLike[str]) -> Path:
    """Write report.html, results.csv, results.json, cases.csv.gz and tables/ of a study's run, finished or not.

    Args:
        run_dir: folder of the run.
    Returns:
        path of report.html.
    Raises:
        FileNotFoundError: if the folder is not a run of a study.
        ValueError: if no segmenter has been evaluated yet.
    """
    run = Run.read(run_dir)
    results = results_frame(run.evaluations)
    atomic_write_text(run.run_dir / "results.csv", frame_text(results, float_format="%.6f"))
    _write_cases(run.evaluations, run.run_dir / CASES_NAME)
    record = {
        "study": run.study.name,
        "settings": dict(run.study.settings),
        "versions": package_versions(),
        "results": [{"segmenter": vars(e.segmenter), **e.summary} for e in run.evaluations],
        "stages": run.stages,
    }
    atomic_write_text(run.run_dir / "results.json", json.dumps(record, indent=1, allow_nan=False) + "\n")

    sections = sections_of(run)
    write_tables(sections, run.run_dir / "tables")
    page = render(
        sections,
        title=run.study.name,
        description=str(run.study.settings["description"]),
        warning=PHANTOM_WARNING if run.study.has_phantom else "",
        versions=package_versions(),
    )
    atomic_write_text(run.run_dir / "report.html", page)
    return run.run_dir / "report.html"


def _write_cases(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Write every row of every metrics.csv with the axes of its segmenter to one compressed file; same rows give same bytes."""
    axes = list(vars(evaluations[0].segmenter))
    measured = dict.fromkeys(column for e in evaluations for column in e.frame.columns)
    with (
        atomic_path(path) as temporary,
        open(temporary, "wb") as raw,
        gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as file,
    ):
        for number, e in enumerate(evaluations):
            frame = e.frame.assign(**vars(e.segmenter)).reindex(columns=[*axes, *measured])
            text = frame_text(frame, header=number == 0, float_format="%.6g")
            file.write(text.encode())


def sections_of(run: Run) -> list[Section]:
    """Return the page's sections in order, without those for which the study has no data."""
    compared = differences.compare_strategies(run)
    sections = [
        overview.summary_section(run, compared),
        overview.study_section(run),
        scores.results_section(run),
        scores.structures_section(run),
        differences.section(run, compared),
        curves.convergence_section(run),
        curves.scarcity_section(run, compared),
        clinical.section(run),
        wrong_words.section(run),
        cases.synthetic_section(run),
        cases.real_section(run),
        cases.ranked_section(run),
        cases.failures_section(run),
        overview.times_section(run),
        overview.repeat_section(run),
    ]
    return [section for section in sections if section is not None]


def results_frame(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """Return one row per segmenter and structure, and one for all structures together (`overall`)."""
    rows = []
    for evaluation in evaluations:
        summary = evaluation.summary
        for structure, numbers in {**summary["structures"], OVERALL: summary["overall"]}.items():
            row: dict[str, Any] = {**vars(evaluation.segmenter), "structure": structure, **numbers}
            row |= {key: summary.get(key) for key in ("num_cases", "num_patients", "section", "checkpoint_sha256")}
            rows.append(row)
    return pd.DataFrame(rows)
