"""Test the forms of a table: text, cells, CSV and LaTeX."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from synboost_monai.pages.tables import Table, cells, is_numeric, to_latex, to_text, write_table

FRAME = pd.DataFrame(
    {
        "strategy": ["real", "synthetic_then_real"],
        "dice": [91.03123456, None],
        "p": [8.83e-73, 0.25],
        "num_cases": [600, 20],
        "leak": [True, np.bool_(False)],
    }
)


def make_table(**changes: object) -> Table:
    fields = {
        "name": "strategies",
        "title": "Dice by strategy",
        "frame": FRAME,
        "formats": {"dice": ".2f", "p": ".3g", "absent": ".1f"},
        "headings": {"dice": "Dice, %"},
        "note": "testing section, seed 0",
    }
    return Table(**{**fields, **changes})  # type: ignore[arg-type]


def test_cells_are_formatted_and_what_does_not_exist_is_a_dash() -> None:
    assert cells(make_table()) == [
        ["real", "91.03", "8.83e-73", "600", "yes"],
        ["synthetic_then_real", "–", "0.25", "20", "no"],
    ]
    assert is_numeric(make_table()) == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("value", "spec", "shown"),
    [
        (float("nan"), ".2f", "–"),
        (pd.NA, ".2f", "–"),
        (None, None, "–"),
        (-0.001, ".2f", "0.00"),
        (-0.001, "+.2f", "+0.00"),
        (np.float32(0.5), ".1%", "50.0%"),
        (12345, ",", "12,345"),
        ("two\nlines", ".2f", "two lines"),
    ],
)
def test_one_value(value: object, spec: str | None, shown: str) -> None:
    frame = pd.DataFrame({"x": pd.Series([value], dtype=object)})
    assert cells(Table("t", "", frame, {} if spec is None else {"x": spec})) == [[shown]]


def test_text_is_aligned_numbers_to_the_right() -> None:
    assert to_text(make_table(frame=FRAME[["strategy", "dice", "num_cases"]])).splitlines() == [
        "Dice by strategy",
        "strategy             Dice, %  num_cases",
        "---------------------------------------",
        "real                   91.03        600",
        "synthetic_then_real        –         20",
        "testing section, seed 0",
    ]


def test_a_long_note_is_wrapped_below_the_table() -> None:
    note = "word " * 40 + "--a-flag-that-stays-whole"
    lines = to_text(make_table(note=note)).splitlines()[5:]
    assert " ".join(lines) == note and all(len(line) <= 80 for line in lines) and len(lines) == 3


def test_a_table_without_rows_has_its_headings() -> None:
    table = Table("none", "", FRAME.iloc[:0][["strategy", "dice"]])
    assert to_text(table) == "strategy  dice\n--------------"
    assert r"strategy & dice \\" in to_latex(table)


def test_csv_has_six_digits_in_columns_of_any_kind(tmp_path: Path) -> None:
    mixed = pd.DataFrame(
        {"a": pd.Series([1 / 3, "x", None, 7], dtype=object), "b": [1234567, 2, 3, 4], "c": [2 / 3] * 4}
    )
    paths = write_table(make_table(frame=mixed, headings={}), tmp_path / "tables")
    assert [p.name for p in paths] == ["strategies.csv", "strategies.tex"]
    written = paths[0].read_bytes()
    assert written == b"a,b,c\n0.333333,1234567,0.666667\nx,2,0.666667\n,3,0.666667\n7,4,0.666667\n"
    assert paths[1].read_text(encoding="utf-8") == to_latex(make_table(frame=mixed, headings={}))


def test_latex_escapes_words_and_sets_numbers_as_mathematics() -> None:
    frame = pd.DataFrame(
        {"a_b": [r"50 % of {x} & $y$ #1 \z ~ ^ <q> | ±", "[1]"], "p": [8.83e-73, -0.5], "n": [1200, 3]}
    )
    latex = to_latex(Table("t", "A & B", frame, {"p": ".3g", "n": ","}, note="seed_0"))
    special = r"50 \% of \{x\} \& \$y\$ \#1 \textbackslash{}z \textasciitilde{} \textasciicircum{} $<$q$>$ $|$ $\pm$"
    assert latex.splitlines() == [
        r"\begin{table}[tbp]",
        r"\centering",
        r"\caption{A \& B}",
        r"\label{tab:t}",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"a\_b & p & n \\",
        r"\midrule",
        special + r" & $8.83 \times 10^{-73}$ & 1{,}200 \\",
        r"{[1]} & $-0.5$ & 3 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\medskip",
        r"\parbox{\linewidth}{\footnotesize\raggedright seed\_0}",
        r"\end{table}",
    ]


def test_every_row_of_latex_has_as_many_cells_as_columns() -> None:
    latex = to_latex(make_table(title="{", note="}"))
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", latex)
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert columns and len(rows) == 3
    assert all(len(re.findall(r"(?<!\\)&", row)) == len(columns[1]) - 1 for row in rows)
    bare = re.sub(r"\\[{}]", "", latex)  # escaped braces do not group
    assert bare.count("{") == bare.count("}")


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "a b"])
def test_a_name_that_is_no_file_stem_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a table's name is a file stem"):
        make_table(name=name)


def test_a_column_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="more than one column x"):
        make_table(frame=pd.DataFrame([[1, 2]], columns=["x", "x"]))
