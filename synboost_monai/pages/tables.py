"""A table and its four forms: text for the terminal, CSV, LaTeX, and cells for a page; one formatting for all of them."""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synboost_monai.csv_files import frame_text
from synboost_monai.files import atomic_write_text

if TYPE_CHECKING:
    import pandas as pd

NOTHING = "–"
"""Cell of a value that does not exist."""

_MIN_WIDTH = 80  # of title and note of a narrow table
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NUMBER = re.compile(r"([+-]?)(\d[\d,]*\.?\d*|\.\d+)(?:e([+-]?\d+))?(%?)")
_LATEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    '"': "''",
    **{c: f"${c}$" for c in "<>|"},
    "–": "--",
    "—": "---",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\rightarrow$",
    "∞": r"$\infty$",
    "²": "$^2$",
    "³": "$^3$",
    "µ": r"$\mu$",
    "…": r"\ldots{}",
    "\u00a0": "~",
}
"""Character -> LaTeX, where the fonts that LaTeX starts with show something else or nothing."""


@dataclass(frozen=True)
class Table:
    """A table with what its readers need to know.

    Raises:
        ValueError: if `name` is no plain file stem or the frame names a column twice.
    """

    name: str
    """Stem of its files: letters, digits, `_`, `-`, `.`."""
    title: str
    """One line; the caption in LaTeX."""
    frame: pd.DataFrame
    """Its columns in order; the index is not shown."""
    formats: Mapping[str, str] = field(default_factory=dict)
    """Column -> format spec of its numbers, such as `.2f` or `.3g`; other columns are shown as text. Names that the frame lacks
    are ignored, so tables may share one mapping."""
    headings: Mapping[str, str] = field(default_factory=dict)
    """Column -> its heading; else the column's name."""
    note: str = ""
    """What the numbers are of: data, split, seed, command."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"tables.py: a table's name is a file stem (letters, digits, _ - .), got {self.name!r}; rename it"
            )
        columns = list(self.frame.columns)
        twice = sorted({str(c) for c in columns if columns.count(c) > 1})
        if twice:
            raise ValueError(f"tables.py: table {self.name} has more than one column {', '.join(twice)}; rename them")


def headings(table: Table) -> list[str]:
    """Heading of each column."""
    return [_text(table.headings.get(column, column)) for column in table.frame.columns]


def cells(table: Table) -> list[list[str]]:
    """Formatted cells, row by row: None and NaN are an en dash, truth values yes or no."""
    columns = list(table.frame.columns)
    rows = table.frame.astype(object).itertuples(index=False, name=None)
    return [[_cell(value, table.formats.get(c)) for c, value in zip(columns, row)] for row in rows]


def is_numeric(table: Table) -> list[bool]:
    """Whether each column holds numbers alone (beside what does not exist): these are aligned to the right."""
    columns = [table.frame[c].tolist() for c in table.frame.columns]
    known = [[value for value in column if not _is_nothing(value)] for column in columns]
    return [bool(values) and all(_is_number(value) for value in values) for values in known]


def to_text(table: Table) -> str:
    """The table with its columns aligned, title above and note below, both wrapped; without a newline at the end."""
    rows, right = [headings(table), *cells(table)], is_numeric(table)
    widths = [max(len(row[i]) for row in rows) for i in range(len(right))]
    lines = [
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right)).rstrip()
        for row in rows
    ]
    width = sum(widths) + 2 * max(len(widths) - 1, 0)
    lines.insert(1, "-" * width)
    title, note = (_wrapped(text, max(width, _MIN_WIDTH)) for text in (table.title, table.note))
    return "\n".join([*title, *lines, *note])


def to_latex(table: Table) -> str:
    r"""A `table` environment with caption, label `tab:NAME` and note; the document needs `\usepackage{booktabs}` and no other."""
    right = is_numeric(table)
    lines = [[_latex_cell(c, r) for c, r in zip(row, right)] for row in cells(table)]
    heads = [_escape(text) for text in headings(table)]
    columns = "".join("r" if r else "l" for r in right)
    # in braces: a row that begins with [ would be read as the argument of the \\ before it
    body = [" & ".join(f"{{{c}}}" if c.startswith(("[", "*")) else c for c in row) + r" \\" for row in [heads, *lines]]
    note = [r"\par\medskip", rf"\parbox{{\linewidth}}{{\footnotesize\raggedright {_escape(table.note)}}}"]
    return "\n".join(
        [
            r"\begin{table}[tbp]",
            r"\centering",
            rf"\caption{{{_escape(table.title)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
            *(note if table.note else []),
            r"\end{table}",
            "",
        ]
    )


def write_table(table: Table, folder: str | os.PathLike[str]) -> list[Path]:
    """Write `folder/NAME.csv` (the columns' own names, six significant digits, LF) and `folder/NAME.tex`.

    Returns:
        both paths.
    """
    paths = [Path(folder) / f"{table.name}.{suffix}" for suffix in ("csv", "tex")]
    # a column of mixed kinds would keep all digits: pandas formats columns of float alone
    frame = table.frame.astype(object).map(_csv_value)
    atomic_write_text(paths[0], frame_text(frame))
    atomic_write_text(paths[1], to_latex(table))
    return paths


# ---- one value


def _is_nothing(value: Any) -> bool:
    """None, NaN and pandas' own words for them."""
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, Real) and value != value)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not _is_truth(value)


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")  # numpy's is neither bool nor int


def _text(value: Any) -> str:
    """On one line."""
    return " ".join(str(value).split())


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _cell(value: Any, spec: str | None) -> str:
    if _is_nothing(value):
        return NOTHING
    if _is_truth(value):
        return "yes" if value else "no"
    if spec is not None and _is_number(value):
        shown = format(value, spec)
        # no "-0.00": the sign of what is rounded away says nothing
        return format(0.0, spec) if math.isfinite(value) and not re.search("[1-9]", shown) else shown
    return _text(value)


def _csv_value(value: Any) -> Any:
    if _is_nothing(value):
        return ""
    if isinstance(value, Real) and not isinstance(value, Integral) and not _is_truth(value):
        return format(float(value), ".6g")
    return value


def _escape(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in _text(text))


def _latex_cell(text: str, is_number: bool) -> str:
    """Numbers in mathematics: a true minus sign, and 8.8e-73 as a power of ten."""
    match = _NUMBER.fullmatch(text) if is_number else None
    if match is None:
        return _escape(text)
    sign, digits, exponent, percent = match.groups()
    power = "" if exponent is None else rf" \times 10^{{{int(exponent)}}}"
    number = f"{sign}{digits.replace(',', '{,}')}{power}"
    return (f"${number}$" if sign or power else number) + ("\\%" if percent else "")
