"""List the times and commands of the stages by kind, and the machine and software of the study."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from synboost_monai.pages.blocks import Block, Fold, Listing, ReportTable, Section, Text
from synboost_monai.pages.page import package_versions
from synboost_monai.pages.tables import Table
from synboost_monai.pages.words import count, duration
from synboost_monai.study.dag import KINDS
from synboost_monai.study.report.evaluations import Run

MAX_COMMANDS = 40
"""Largest number of commands of a kind that are all listed."""
FEW_COMMANDS = 5
"""Number of commands listed of a kind with more."""


def times_section(run: Run) -> Section | None:
    """Return the wall time by kind of stage, and of each stage; None if no stage left its time."""
    if not run.stages:
        return None
    rows: list[dict[str, Any]] = []
    for kind, stages in by_kind(run.stages).items():
        seconds = [float(s["seconds"]) for s in stages]
        rows.append(
            {"kind": KINDS[kind], "num_stages": len(stages), "seconds": sum(seconds), "longest_seconds": max(seconds)}
        )
    total = sum(float(s["seconds"]) for s in run.stages)
    rows.append(
        {
            "kind": "together",
            "num_stages": len(run.stages),
            "seconds": total,
            "longest_seconds": max(r["longest_seconds"] for r in rows),
        }
    )
    frame = pd.DataFrame(rows)
    for column in ("seconds", "longest_seconds"):
        frame[column.replace("seconds", "time")] = [duration(s) for s in frame[column]]
    headings = {"kind": "kind of stage", "num_stages": "stages", "seconds": "time", "longest_seconds": "longest"}
    interrupted = sum(int(s.get("attempts", 1)) > 1 for s in run.stages)
    words = f"Of finished stages, on {machine()}; stages may have run beside each other."
    words += (
        f" {count(interrupted, 'stage')} had to be taken up again; the time of all attempts counts."
        if interrupted
        else ""
    )
    table = Table("times", "Wall time by kind of stage", frame, {}, headings, words)
    shown = ReportTable(table, {"seconds": "{time}", "longest_seconds": "{longest_time}"})
    return Section("times", "Times", [shown])


def repeat_section(run: Run) -> Section:
    """List the commands of the whole study, and of every stage by kind."""
    blocks: list[Block] = [
        Text("The settings of the whole study are in study.yaml beside this page:"),
        Listing(run.command),
        Text(
            f"Versions: {', '.join(f'{name} {v}' for name, v in package_versions().items())}; {machine()}. The same seeds, versions "
            "and kind of machine give the same numbers. results.json holds every stage and every evaluation with its command and the "
            "SHA-256 of its weights; tables/ holds every table of this page as CSV and LaTeX.",
            is_soft=True,
        ),
    ]
    for kind, stages in by_kind(run.stages).items():
        few = len(stages) <= MAX_COMMANDS
        shown = stages if few else stages[:FEW_COMMANDS]
        text = "\n\n".join(
            f"# {s['title']}: {duration(float(s['seconds']))}{_attempts(s)}\n{s['command']}" for s in shown
        )
        rest = "" if few else f"\n\n# and {len(stages) - len(shown)} more: results.json, timing/"
        blocks.append(
            Fold(
                f"{KINDS[kind].capitalize()}: {count(len(stages), 'command')}, run in the folder of the study",
                [Listing(text + rest)],
            )
        )
    return Section("again", "How to repeat it", blocks)


def by_kind(stages: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return kind -> its stages, in the order of the work."""
    found = {kind: [s for s in stages if s["kind"] == kind] for kind in KINDS}
    return {kind: of_kind for kind, of_kind in found.items() if of_kind}


def machine() -> str:
    """Describe the machine that made the report, which ran the study unless the run was copied."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} processor cores"


def _attempts(stage: Mapping[str, Any]) -> str:
    attempts = int(stage.get("attempts", 1))
    return f", {attempts} attempts" if attempts > 1 else ""
