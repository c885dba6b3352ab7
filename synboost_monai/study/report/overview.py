"""Begin the page with the results in one table and the study in words; end it with times, commands and versions."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import yaml

from synboost_monai.data.datalist import DATALIST_NAME, SUMMARY_NAME
from synboost_monai.files import read_text
from synboost_monai.pages.blocks import Block, Fold, Listing, ReportTable, Section, Text, best_rows
from synboost_monai.pages.page import package_versions
from synboost_monai.pages.tables import Table
from synboost_monai.pages.words import STRATEGY_TITLES, count, duration, join, model_title
from synboost_monai.study.dag import KINDS
from synboost_monai.study.grid import ALL
from synboost_monai.study.report.differences import (
    AGAINST_REAL,
    AGAINST_REAL_FORMATS,
    AGAINST_REAL_HEADINGS,
    AGAINST_REAL_JOINED,
    NOT_COMPARED,
    Differences,
)
from synboost_monai.study.report.evaluations import Run, in_words
from synboost_monai.study.report.scores import HEADINGS, HOW_TO_READ, mean_over, numbers, percent

MAX_LINES = 12
"""Lines of the data's summary that are shown unfolded."""
MAX_COMMANDS = 40
"""Largest number of commands of a kind that are all listed."""
FEW_COMMANDS = 5
"""Number of commands listed of a kind with more."""


def summary_section(run: Run, differences: Differences) -> Section:
    """Return Dice, HD95 and the difference from real data alone of each strategy, for the shown settings."""
    rows = []
    common = run.common(run.shown_settings)
    against_real = differences.against_real(run.shown_settings)
    for setting in run.shown_settings:
        for strategy, evaluations in run.groups[setting].items():
            row: dict[str, Any] = {**_without(run.cells(setting), common), "strategy": STRATEGY_TITLES[strategy]}
            row["dice_percent"] = percent(mean_over(evaluations, "dice_mean"))
            row["dice_percent_std"] = percent(mean_over(evaluations, "dice_std"))
            row["hd95_mm"] = mean_over(evaluations, "hd95_mm_mean")
            rows.append(row | against_real.get((setting, strategy), NOT_COMPARED))
    columns = ["dice_percent", "dice_percent_std", "hd95_mm", "difference", "low", "high", "patient_p"]
    frame = numbers(pd.DataFrame(rows), columns)
    headings = {**HEADINGS, "dice_percent": "Dice (%)", "hd95_mm": "HD95 (mm)", **AGAINST_REAL_HEADINGS}
    formats = dict.fromkeys(columns, ".2f") | AGAINST_REAL_FORMATS
    evaluations = [e for s in run.shown_settings for group in run.groups[s].values() for e in group]
    note = run.note(evaluations, f"Bold: the best strategy. {AGAINST_REAL}")
    table = Table("summary", f"Dice on the real test images{in_words(common)}", frame, formats, headings, note)
    by = list(_without(run.cells(run.shown_settings[0]), common))
    best = best_rows(frame, {"dice_percent": True, "hd95_mm": False}, by)
    joined = {"dice_percent": "{dice_percent} ± {dice_percent_std}", **AGAINST_REAL_JOINED}
    blocks: list[Block] = [ReportTable(table, joined, best=best, groups=by), Text(HOW_TO_READ, is_soft=True)]
    if len(run.groups) > len(run.shown_settings):
        blocks.append(
            Text(
                "Of each model the setting with the most strategies, encoders trained, the most patients and the most attributes in "
                "its prompt; all others are in the tables of results."
            )
        )
    return Section("summary", "Summary", blocks)


def study_section(run: Run) -> Section:
    """Describe the axes of the study, its data, and its settings."""
    blocks: list[Block] = [Text(_axes(run)), Text(_data(run))]
    summary_path = run.run_dir / "real" / SUMMARY_NAME
    if summary_path.is_file() and (summary := read_text(summary_path)):
        listing = Listing(summary.rstrip())
        is_short = len(summary.splitlines()) <= MAX_LINES
        blocks.append(listing if is_short else Fold("What the data set holds and lacks", [listing]))
    blocks += [Text(text) for text in (_synthetic(run), _simulated(run)) if text]
    settings = yaml.safe_dump(dict(run.study.settings), sort_keys=False, allow_unicode=True)
    blocks.append(Fold("Settings (study.yaml)", [Listing(settings)]))
    return Section("study", "Study", blocks)


def times_section(run: Run) -> Section | None:
    """Return the wall time by kind of stage, and of each stage; None if no stage left its time."""
    if not run.stages:
        return None
    rows = []
    groups: dict[str, Sequence[Mapping[str, Any]]] = {KINDS[k]: stages for k, stages in _by_kind(run.stages).items()}
    groups["together"] = run.stages
    for words, stages in groups.items():
        seconds = [float(s["seconds"]) for s in stages]
        row = {"kind": words, "num_stages": len(stages), "seconds": sum(seconds), "longest_seconds": max(seconds)}
        rows.append(row)
    frame = pd.DataFrame(rows)
    for column in ("seconds", "longest_seconds"):
        frame[column.replace("seconds", "time")] = [duration(s) for s in frame[column]]
    headings = {"kind": "kind of stage", "num_stages": "stages", "seconds": "time", "longest_seconds": "longest"}
    interrupted = sum(int(s.get("attempts", 1)) > 1 for s in run.stages)
    note = f"Of finished stages, on {_machine()}; stages may have run beside each other."
    if interrupted:
        note += f" {count(interrupted, 'stage')} had to be taken up again; the time of all attempts counts."
    table = Table("times", "Wall time by kind of stage", frame, {}, headings, note)
    shown = ReportTable(table, {"seconds": "{time}", "longest_seconds": "{longest_time}"})
    return Section("times", "Times", [shown])


def repeat_section(run: Run) -> Section:
    """List the commands of the whole study, and of every stage by kind."""
    blocks: list[Block] = [
        Text("The settings of the whole study are in study.yaml beside this page:"),
        Listing(run.command),
        Text(
            f"Versions: {', '.join(f'{name} {v}' for name, v in package_versions().items())}; {_machine()}. The same seeds, versions "
            "and kind of machine give the same numbers. results.json holds every stage and every evaluation with its command and the "
            "SHA-256 of its weights; tables/ holds every table of this page as CSV and LaTeX.",
            is_soft=True,
        ),
    ]
    for kind, stages in _by_kind(run.stages).items():
        few = len(stages) <= MAX_COMMANDS
        shown = stages if few else stages[:FEW_COMMANDS]
        text = "\n\n".join(
            f"# {s['title']}: {duration(float(s['seconds']))}{_attempts(s)}\n{s['command']}" for s in shown
        )
        rest = "" if few else f"\n\n# and {len(stages) - len(shown)} more: results.json, timing/"
        title = f"{KINDS[kind].capitalize()}: {count(len(stages), 'command')}, run in the folder of the study"
        blocks.append(Fold(title, [Listing(text + rest)]))
    return Section("again", "How to repeat it", blocks)


# ---- helpers


def _without(cells: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in cells.items() if key not in others}


def _axes(run: Run) -> str:
    """Describe what was trained and evaluated."""
    part = run.study.settings["segmenters"]
    strategies = join([f"“{STRATEGY_TITLES[s]}”" for s in run.strategies])
    words = [
        f"{join([model_title(m) for m in part['models']])}, trained on {strategies}",
        f"prompt{'s' * (len(part['prompts']) > 1)} {join(part['prompts'])}",
        "encoders " + join(["frozen" if f else "trained" for f in part["frozen"]]),
    ]
    if part["patients"] != [ALL]:
        words.append(f"{join([run.patients_title(p) for p in part['patients']])} patients for training and validation")
    folds = [fold for fold in part["folds"] if fold is not None]
    words += [f"{count(len(folds), 'fold')} of {run.study.settings['data']['num_folds']}"] if folds else []
    words.append(f"seed{'s' * (len(part['seeds']) > 1)} {join([str(s) for s in part['seeds']])}")
    text = "; ".join(words)
    num_all, num_done = len(run.study.segmenters), len(run.evaluations)
    done = "all of them evaluated" if num_done == num_all else f"{num_done} of them evaluated so far"
    return f"{text}: {count(num_all, 'segmenter')}, {done}."


def _data(run: Run) -> str:
    text = f"Tested on the {run.source}."
    if (number := run.num_patients(ALL)) is not None:
        text += f" {count(number, 'patient')} for training and validation."
    return text + " Every strategy is tested on the same real images; weights were chosen on the validation section."


def _synthetic(run: Run) -> str:
    """Say how many images were synthesised, and how."""
    folder = run.run_dir / run.study.example_part.folder("synthetic") if run.study.has_synthesis else None
    if folder is None or not (folder / DATALIST_NAME).is_file():
        return ""
    content = json.loads(read_text(folder / DATALIST_NAME))
    counts = [f"{len(content.get(s, []))} {s}" for s in ("training", "validation", "testing") if content.get(s)]
    title = run.study.example_part.title
    text = f"Synthetic data set{f' ({title})' if title else ''}: {join(counts)} images"
    provenance = folder / "provenance.json"
    if provenance.is_file():
        settings = json.loads(read_text(provenance)).get("settings", {})
        told = {k: v for k, v in settings.items() if isinstance(v, (int, float, str)) and k != "checkpoint_sha256"}
        text += "; " + ", ".join(f"{k} {v}" for k, v in told.items())
    return f"{text}."


def _simulated(run: Run) -> str:
    """Say which weights were trained on simulated hearts."""
    models, hashes = run.study.simulated_models, run.study.settings["segmenters"]["simulated_sha256"]
    if not models:
        return ""
    known = [f"{model_title(model)} SHA-256 {hashes.get(model, 'not known')[:12]}" for model in models]
    return (
        f"“{STRATEGY_TITLES['simulated']}”: weights trained on simulated hearts alone, taken as they came ({join(known)}), so that seeds, "
        f"folds and numbers of patients change nothing; “{STRATEGY_TITLES['simulated_then_real']}” starts from them."
    )


def _by_kind(stages: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return kind -> its stages, in the order of the work."""
    found = {kind: [s for s in stages if s["kind"] == kind] for kind in KINDS}
    return {kind: of_kind for kind, of_kind in found.items() if of_kind}


def _machine() -> str:
    """Describe the machine that made the report, which ran the study unless the run was copied."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} processor cores"


def _attempts(stage: Mapping[str, Any]) -> str:
    attempts = int(stage.get("attempts", 1))
    return f", {attempts} attempts" if attempts > 1 else ""
