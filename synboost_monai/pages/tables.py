"""Format a table in four ways, with the same numbers: text for the terminal, CSV, LaTeX, and cells for a page."""

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
"""Cell of a missing value."""

_MIN_WIDTH = 80  # smallest width of title and note, for a narrow table
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
"""Character -> LaTeX, for characters that LaTeX's default fonts show wrongly or not at all."""


@dataclass(frozen=True)
class Table:
    """Hold a table with the texts that its readers need.

    Raises:
        ValueError: if `name` is not a plain file stem or the frame has two columns of the same name.
    """

    name: str
    """File name without suffix: letters, digits, `_`, `-`, `.`."""
    title: str
    """Title on one line; the caption in LaTeX."""
    frame: pd.DataFrame
    """Values with the columns in order; the index is not shown."""
    formats: Mapping[str, str] = field(default_factory=dict)
    """Column -> format spec of its numbers, such as `.2f` or `.3g`; other columns are shown as text. Columns that the frame does not have
    are ignored, so tables may share one mapping."""
    headings: Mapping[str, str] = field(default_factory=dict)
    """Column -> its heading; by default the column's name."""
    note: str = ""
    """Note on the source of the numbers: data, split, seed, command."""

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
    """Return the heading of each column."""
    return [_text(table.headings.get(column, column)) for column in table.frame.columns]


def cells(table: Table) -> list[list[str]]:
    """Return the formatted cells, row by row: None and NaN are an en dash, truth values yes or no."""
    columns = list(table.frame.columns)
    rows = table.frame.astype(object).itertuples(index=False, name=None)
    return [[_cell(value, table.formats.get(c)) for c, value in zip(columns, row)] for row in rows]


def is_numeric(table: Table) -> list[bool]:
    """Return whether each column holds only numbers and missing values; such columns are aligned to the right."""
    columns = [table.frame[c].tolist() for c in table.frame.columns]
    known = [[value for value in column if not _is_nothing(value)] for column in columns]
    return [bool(values) and all(_is_number(value) for value in values) for values in known]


def to_text(table: Table) -> str:
    """Return the table as text with aligned columns, title above and note below, both wrapped, without a newline at the end."""
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
    r"""Return a `table` environment with caption, label `tab:NAME` and note; the document needs only `\usepackage{booktabs}`."""
    right = is_numeric(table)
    lines = [[_latex_cell(c, r) for c, r in zip(row, right)] for row in cells(table)]
    heads = [_escape(text) for text in headings(table)]
    columns = "".join("r" if r else "l" for r in right)
    # braces: a row that begins with [ would be read as the argument of the \\ before it
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
        paths of both files.
    """
    paths = [Path(folder) / f"{table.name}.{suffix}" for suffix in ("csv", "tex")]
    # a mixed column would keep all digits: pandas formats only columns of float
    frame = table.frame.astype(object).map(_csv_value)
    atomic_write_text(paths[0], frame_text(frame))
    atomic_write_text(paths[1], to_latex(table))
    return paths


# ---- one value


def _is_nothing(value: Any) -> bool:
    """Return whether a value is None, NaN or another missing value of pandas."""
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, Real) and value != value)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not _is_truth(value)


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")  # numpy's type is neither bool nor int


def _text(value: Any) -> str:
    """Return a value as text on one line."""
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
        # no "-0.00": the sign of a value that rounds to zero has no meaning
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
    """Set numbers in maths mode: a true minus sign, and 8.8e-73 as a power of ten."""
    match = _NUMBER.fullmatch(text) if is_number else None
    if match is None:
        return _escape(text)
    sign, digits, exponent, percent = match.groups()
    power = "" if exponent is None else rf" \times 10^{{{int(exponent)}}}"
    number = f"{sign}{digits.replace(',', '{,}')}{power}"
    return (f"${number}$" if sign or power else number) + ("\\%" if percent else "")
