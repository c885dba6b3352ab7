"""Write every CSV file of the project so that no spreadsheet calculates its cells, and read it back.

Names of cases, patients and files come from outside, and a spreadsheet runs a cell that begins like a formula. Such text gets an
apostrophe before it, which spreadsheets take for "this is text" (OWASP, CSV injection), and loses it when it is read back. Numbers stay.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from synboost_monai.files import read_text

if TYPE_CHECKING:
    import pandas as pd

_BEFORE = (
    "[\\s\\x00-\\x1f\\x7f\\xad\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\"'`\u00ab\u00bb\u2018-\u201f\uff02\uff07]*"
)
"""Characters that a program may drop before it reads the rest: white space, quotes and invisible characters."""
_FORMULA = f"{_BEFORE}[=+\\-@\uff1d\uff0b\uff0d\uff20]"
"""Beginning of a formula, also in full-width characters."""
_CELL = "(?:^|(?<=[;\\t\\r\\n]))"
"""Beginning of a cell; programs of many countries take a semicolon for the separator, even within quotes."""
_GUARD = re.compile(f"{_CELL}(?={_FORMULA})|^(?='*[\\t\\r\\n])")
_GUARDED = re.compile(f"{_CELL}'(?={_FORMULA})|^'(?='*[\\t\\r\\n])")
_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf|nan)", re.ASCII)


def guarded(text: str) -> str:
    """Put an apostrophe before everything in a text that a spreadsheet would calculate; a number stays as it is."""
    return text if _NUMBER.fullmatch(text) else _GUARD.sub("'", text)


def unguarded(text: str) -> str:
    """Return the text that `guarded` was given."""
    return _GUARDED.sub("", text)


def csv_text(rows: Iterable[Sequence[object]], quote_all: bool = False) -> str:
    """Write rows as CSV text, with LF; the first row should hold the columns' names.

    Args:
        rows: of values, each written as `str` writes it.
        quote_all: put quotes around every cell, not only where they are needed.
    """
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL, lineterminator="\n")
    writer.writerows([guarded(str(cell)) for cell in row] for row in rows)
    return text.getvalue()


def frame_text(frame: pd.DataFrame, **options: Any) -> str:
    """Write a table as CSV text, with LF and without its index; `options` are those of `DataFrame.to_csv`."""
    return _mapped(frame, guarded).to_csv(index=False, lineterminator="\n", **options)


def read_frame(path: str | os.PathLike[str], **options: Any) -> pd.DataFrame:
    """Read a table from a CSV file, its texts as they were before writing; `options` are those of `pandas.read_csv`."""
    import pandas as pd

    is_packed = os.fspath(path).endswith(".gz")  # pandas unpacks it, and skips a byte order mark
    return _mapped(pd.read_csv(path if is_packed else io.StringIO(read_text(path)), **options), unguarded)


def _mapped(frame: pd.DataFrame, change: Any) -> pd.DataFrame:
    """Change the texts of a table and the names of its columns; columns without a change keep their type."""
    import pandas as pd

    def changed(value: Any) -> Any:
        return change(str(value)) if isinstance(value, (str, os.PathLike)) else value

    columns = {}
    for position, dtype in enumerate(frame.dtypes):
        if pd.api.types.is_numeric_dtype(dtype):
            continue
        before = list(frame.iloc[:, position])
        after = [changed(value) for value in before]
        if any(new is not old and new != old for old, new in zip(before, after)):
            columns[position] = pd.Series(after, index=frame.index, dtype=object)
    names = [changed(name) for name in frame.columns]
    if not columns and names == list(frame.columns):
        return frame
    frame = frame.copy()
    for position, values in columns.items():
        frame.isetitem(position, values)
    frame.columns = pd.Index(names)
    return frame
