"""CSV that no spreadsheet calculates: every CSV file of the project is written and read back here.

Names of cases, patients and files come from outside, and a spreadsheet runs a cell that begins as a formula does. Such text gets an
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
"""Characters that a program may drop before it looks at what follows: white space, quotes, and what does not show."""
_FORMULA = f"{_BEFORE}[=+\\-@\uff1d\uff0b\uff0d\uff20]"
"""How a formula begins, in full width too."""
_CELL = "(?:^|(?<=[;\\t\\r\\n]))"
"""Where a cell begins; programs of many countries take a semicolon for the separator, whatever the quotes say."""
_GUARD = re.compile(f"{_CELL}(?={_FORMULA})|^(?='*[\\t\\r\\n])")
_GUARDED = re.compile(f"{_CELL}'(?={_FORMULA})|^'(?='*[\\t\\r\\n])")
_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf|nan)", re.ASCII)


def guarded(text: str) -> str:
    """Text with an apostrophe before all that a spreadsheet would calculate; a number as it is."""
    return text if _NUMBER.fullmatch(text) else _GUARD.sub("'", text)


def unguarded(text: str) -> str:
    """The text that `guarded` was given."""
    return _GUARDED.sub("", text)


def csv_text(rows: Iterable[Sequence[object]], quote_all: bool = False) -> str:
    """Rows as CSV, with LF; give the columns' names as the first.

    Args:
        rows: of values, each written as `str` writes it.
        quote_all: quotes about every cell, not only where they are needed.
    """
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL, lineterminator="\n")
    writer.writerows([guarded(str(cell)) for cell in row] for row in rows)
    return text.getvalue()


def frame_text(frame: pd.DataFrame, **options: Any) -> str:
    """A table as CSV, with LF and without its index; `options` are of `DataFrame.to_csv`."""
    return _mapped(frame, guarded).to_csv(index=False, lineterminator="\n", **options)


def read_frame(path: str | os.PathLike[str], **options: Any) -> pd.DataFrame:
    """A table of a CSV file, its texts as they were before they were written; `options` are of `pandas.read_csv`."""
    import pandas as pd

    is_packed = os.fspath(path).endswith(".gz")  # pandas unpacks it, and passes over a byte order mark
    return _mapped(pd.read_csv(path if is_packed else io.StringIO(read_text(path)), **options), unguarded)


def _mapped(frame: pd.DataFrame, change: Any) -> pd.DataFrame:
    """The table with its texts and the names of its columns changed; columns without a change keep their type."""
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
