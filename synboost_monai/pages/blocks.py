"""Represent the content of a page: sections of texts, tables, plots, pictures and listings. `page.py` turns them into HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from synboost_monai.files import atomic_write_text
from synboost_monai.pages.tables import NOTHING, Table, cells, headings, is_numeric, to_latex, write_table

MAX_ROWS = 250
"""Largest number of rows of a table on the page; its files have all rows."""
MAX_UNFOLDED = 40
"""Largest number of rows of a table that `folded` leaves open."""

_PLACE = re.compile(r"\{(\w+)\}")
_MINUS = re.compile(r"(?<!e)-")  # 1e-12 keeps its hyphen for LaTeX
_NO_INTERVAL = f" [{NOTHING}, {NOTHING}]"
_EXPONENT = re.compile(r"(\d)e([+−-])0*(\d+)")
_SUPERSCRIPT = str.maketrans("0123456789-−", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁻")


@dataclass(frozen=True)
class Text:
    """Hold a paragraph."""

    text: str
    is_soft: bool = False
    """Whether it is a note in small grey letters on how to read what is above."""


@dataclass(frozen=True)
class ReportTable:
    """Hold a table for the page and for tables/NAME.csv and tables/NAME.tex."""

    table: Table
    """Numbers, each in a column of its own, as in the CSV."""
    joined: Mapping[str, str] = field(default_factory=dict)
    """Column -> pattern that joins it with other columns, which page and LaTeX then do not show: `{dice} ± {dice_std}`."""
    hidden: Sequence[str] = ()
    """Columns that only the CSV has."""
    best: frozenset[tuple[int, str]] = frozenset()
    """Row and column of the best values, shown in bold."""
    groups: Sequence[str] = ()
    """Columns whose values define groups of rows; a line separates the groups."""

    @property
    def shown(self) -> Table:
        """Return the table as page and LaTeX show it."""
        columns = list(self.table.frame.columns)
        texts = [dict(zip(columns, row)) for row in cells(self.table)]
        frame = self.table.frame.copy()
        used = set(self.hidden)
        for column, pattern in self.joined.items():
            used |= set(_PLACE.findall(pattern)) - {column}
            joined = [NOTHING if row[column] == NOTHING else _PLACE.sub(lambda m: row[m[1]], pattern) for row in texts]  # noqa: B023
            frame[column] = [_MINUS.sub("−", text.replace(_NO_INTERVAL, "")) for text in joined]
        return replace(self.table, frame=frame.drop(columns=[c for c in columns if c in used]))

    @property
    def head(self) -> list[tuple[str, bool]]:
        """Return the heading of each shown column, and whether the column holds numbers."""
        frame, shown = self.table.frame, self.shown
        right = {c: known or frame[c].dtype.kind == "f" for c, known in zip(frame.columns, is_numeric(self.table))}
        return [(text, right[column]) for column, text in zip(shown.frame.columns, headings(shown))]

    @property
    def num_left_out(self) -> int:
        """Return the number of rows that are only in the files."""
        return max(0, len(self.table.frame) - MAX_ROWS)

    @property
    def rows(self) -> list[list[tuple[str, bool]]]:
        """Return the cells of the first `MAX_ROWS` rows, and whether each is the best."""
        shown = self.shown
        columns, right = list(shown.frame.columns), [is_number for _, is_number in self.head]
        return [
            [(pretty(c) if r else c, (i, name) in self.best) for name, c, r in zip(columns, row, right)]
            for i, row in enumerate(cells(shown)[:MAX_ROWS])
        ]

    @property
    def first_rows(self) -> set[int]:
        """Return the first row of each group except the first group."""
        keys = [tuple(row) for row in self.table.frame[list(self.groups)].astype(str).itertuples(index=False)]
        return {i for i in range(1, len(keys)) if keys[i] != keys[i - 1]} if self.groups else set()


@dataclass(frozen=True)
class Plot:
    """Hold a plot as PNG."""

    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class PictureRow:
    """Hold pictures beside each other, each made by `pictures.picture_cell`."""

    title: str
    cells: Sequence[Mapping[str, Any]]
    prompts: Sequence[Mapping[str, str]] = ()
    """Text and colour of each prompt."""
    columns: int = 6
    """Number of pictures beside each other where the page is wide enough."""


@dataclass(frozen=True)
class Listing:
    """Hold text that is shown unchanged, such as YAML."""

    text: str


@dataclass(frozen=True)
class Fold:
    """Hold blocks that the reader can unfold."""

    title: str
    blocks: Sequence[Block]


Block = Text | ReportTable | Plot | PictureRow | Listing | Fold


@dataclass(frozen=True)
class Section:
    """Hold a part of the page with its title."""

    name: str
    """Anchor of the section."""
    title: str
    blocks: Sequence[Block]


def folded(title: str, table: ReportTable, most: int = MAX_UNFOLDED) -> Block:
    """Return a table, folded under a title if it has more than `most` rows."""
    return Fold(title, [table]) if len(table.table.frame) > most else table


def tables_of(blocks: Iterable[Block]) -> Iterator[ReportTable]:
    """Yield the tables among blocks, including folded ones."""
    for block in blocks:
        if isinstance(block, ReportTable):
            yield block
        elif isinstance(block, Fold):
            yield from tables_of(block.blocks)


def write_tables(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Write NAME.csv and NAME.tex of every table.

    Raises:
        ValueError: if two tables have the same name.
    """
    paths: list[Path] = []
    for block in tables_of(b for section in sections for b in section.blocks):
        written = write_table(block.table, folder)
        if set(written) & set(paths):
            raise ValueError(f"blocks.py: two tables are called {block.table.name}")
        if block.joined:
            atomic_write_text(written[1], to_latex(block.shown))
        paths += written
    return paths


def best_rows(frame: pd.DataFrame, columns: Mapping[str, bool], by: Sequence[str]) -> frozenset[tuple[int, str]]:
    """Return row and column of the best value of each group that has several values; all ties are best.

    Args:
        frame: table with the index 0, 1, ...
        columns: column -> whether larger is better.
        by: columns whose values define a group.
    """
    best = set()
    keys = frame[list(by)].astype(str).agg(" ".join, axis=1) if by else pd.Series("", index=frame.index)
    for column, is_larger in columns.items():
        for _, values in pd.to_numeric(frame[column]).groupby(keys):
            known = values.dropna()
            if len(known) > 1:
                top = known.max() if is_larger else known.min()
                best |= {(int(i), column) for i in known.index[known == top]}
    return frozenset(best)


def pretty(number: str) -> str:
    """Return a number with a true minus and a readable power of ten: 8.8e-73 -> 8.8·10⁻⁷³."""
    text = _EXPONENT.sub(lambda m: f"{m[1]}·10{(m[2].strip('+') + m[3]).translate(_SUPERSCRIPT)}", number)
    return text.replace("-", "−") if text != NOTHING else text
