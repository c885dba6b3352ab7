"""Represent a sheet, one side of A4: a verdict, large numbers, pictures, curves and tables; write it as HTML. `sheet_pdf` draws it.

All texts come finished, in one language. They may hold anything: `cleaned` removes control characters and cuts long texts, and nothing in
them is markup.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from synboost_monai.pages.figures import draw_grid, new_figure, png_of
from synboost_monai.pages.page import TEMPLATES, filled
from synboost_monai.pages.pictures import picture_source

FONT = "DejaVu Sans"
"""Font that matplotlib brings along."""
RC = {"pdf.fonttype": 3, "font.family": FONT, "axes.unicode_minus": True, "text.usetex": False}
"""Settings of matplotlib; a font of type 3 is written in half the time of type 42, and its text can be searched as well."""
MAX_TEXT = 300
"""Longest text of a sheet, in characters; the rest is cut."""
CURVE_COLOURS = ("#c0392b", "#2c6fbb")
"""Colours of the first and the second curve."""
TEXT, SOFT, LINE, PANEL = "#1c2733", "#5a6876", "#d5dce3", "#f4f6f8"
"""Colours of text, of small text, of lines, and behind panels."""
GOOD, CAUTION = "#2e7d4f", "#b26a00"
"""Colours of a verdict without and with a doubt."""


_LOCK = threading.Lock()


@contextlib.contextmanager
def settings_of_matplotlib() -> Iterator[None]:
    """Draw with our settings, one page at a time: they are those of the whole process, and threads share fonts."""
    import matplotlib

    with _LOCK, matplotlib.rc_context(RC):
        yield


@dataclass(frozen=True)
class Card:
    """Hold one large number."""

    label: str
    value: str
    unit: str
    note: str = ""
    """Small text under the number, such as its normal range."""
    mark: str = ""
    """Why the number is in doubt, in a word or two; empty if it is not."""


@dataclass(frozen=True)
class SheetTable:
    """Hold a table of texts."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    widths: Sequence[float]
    """Width of each column in parts of the whole, for the sheet on paper."""
    numbers: frozenset[int] = frozenset()
    """Columns of numbers, which are set to the right."""
    marked: frozenset[int] = frozenset()
    """Rows in doubt."""


@dataclass(frozen=True)
class SheetPicture:
    """Hold a picture."""

    png: bytes
    caption: str


@dataclass(frozen=True)
class Curve:
    """Hold a curve with two kinds of marks."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    """Values; NaN leaves a gap."""
    tops: Sequence[int]
    """Indices of the points with an upward triangle."""
    bottoms: Sequence[int]
    """Indices of the points with a downward triangle."""


@dataclass(frozen=True)
class Sheet:
    """Hold what one sheet says."""

    language: str
    """Language of its texts, as HTML names it."""
    title: str
    details: Sequence[tuple[str, str]]
    """Label and value of what the sheet is about."""
    warning: str
    """What every reader has to know."""
    verdict: str
    is_good: bool
    reasons: Sequence[str]
    cards: Sequence[Card]
    pictures: Sequence[SheetPicture]
    legend: Sequence[tuple[str, str]]
    """Text and colour of each outline in the pictures."""
    curves: Sequence[Curve]
    curve_words: tuple[str, str, str, str, str]
    """Title of the curves, names of the axes, and of the two kinds of marks."""
    main: SheetTable
    side: SheetTable
    """Table beside the curves."""
    footer: Sequence[str] = field(default_factory=tuple)


def plain(text: str, longest: int = MAX_TEXT) -> str:
    """Return a text as one line without control and format characters, cut to a length."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def cleaned(part: Any) -> Any:
    """Return a sheet, or a part of one, with every text `plain`."""
    if isinstance(part, str):
        return plain(part)
    if isinstance(part, (list, tuple)):
        return tuple(map(cleaned, part))
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return dataclasses.replace(part, **{f.name: cleaned(getattr(part, f.name)) for f in dataclasses.fields(part)})
    return part


@lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    """Return the letters of the font."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(FONT)).get_charmap())


def drawable(text: str) -> str:
    """Return a text with a question mark for each letter that the font does not have."""
    return "".join(c if ord(c) in _letters() else "?" for c in text)


def draw_curves(axes: Any, sheet: Sheet, size: float) -> None:
    """Draw a sheet's curves with their marks into matplotlib's axes, with letters of a size in points."""
    _, x_words, y_words, top_words, bottom_words = map(drawable, sheet.curve_words)
    for colour, curve in zip(CURVE_COLOURS, sheet.curves):
        axes.plot(curve.x, curve.y, color=colour, lw=1.2, label=drawable(curve.label))
        for indices, marker in ((curve.tops, "^"), (curve.bottoms, "v")):
            axes.plot([curve.x[i] for i in indices], [curve.y[i] for i in indices], marker, color=colour, ms=4.5)
    for words, marker in ((top_words, "^"), (bottom_words, "v")):
        axes.plot([], [], marker, color=SOFT, ms=4.5, label=words)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.set_xlabel(x_words, fontsize=size, color=SOFT)
    axes.set_ylabel(y_words, fontsize=size, color=SOFT)
    axes.tick_params(labelsize=size, colors=SOFT, length=2)
    axes.spines[["bottom", "left"]].set_color(LINE)
    draw_grid(axes, "y")
    legend = axes.legend(
        fontsize=size,
        ncols=4,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        frameon=False,
        handlelength=1.3,
        columnspacing=1.2,
    )
    for text in (*legend.get_texts(), axes.xaxis.label, axes.yaxis.label):
        text.set_parse_math(False)


def curves_png(sheet: Sheet) -> bytes:
    """Return a sheet's curves as PNG."""
    with settings_of_matplotlib():
        figure = new_figure(6.4, 2.7, 150)
        draw_curves(figure.subplots(), sheet, 9.5)
        return png_of(figure)


def sheet_html(sheet: Sheet) -> str:
    """Return a sheet as one HTML file that works from disk and loads nothing else; every text is escaped."""
    sheet = cleaned(sheet)
    curves = curves_png(sheet) if sheet.curves else b""
    return filled(TEMPLATES / "sheet.html.j2", {"source": picture_source}, sheet=sheet, curves=curves)
