"""Draw a sheet as PDF of one A4 page; the same sheet gives the same bytes.

Lengths are in millimetres from the upper left corner.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from synboost_monai.pages.sheet import (
    CAUTION,
    GOOD,
    LINE,
    PANEL,
    SOFT,
    TEXT,
    Card,
    Sheet,
    SheetTable,
    cleaned,
    draw_curves,
    drawable,
    plain,
    settings_of_matplotlib,
)

WIDTH, HEIGHT, MARGIN = 210.0, 297.0, 14.0
"""A4, and its margin."""
ROW = 3.9
"""Height of a row of a table."""
MAX_LINES, MAX_ROWS, MAX_SIDE_ROWS = 5, 18, 8
"""Most lines of reasons, rows of the main table and rows of the table beside the curves that fit; the last line says how many more
there are."""
MIDDLE, FOOT = 42.0, 22.5
"""Height of the curves with the table beside them, and of the foot of the page."""
PICTURE_HEIGHTS = 26.0, 58.0
"""Least and largest height of the pictures, which get the room that is left."""
_MM = 1 / 25.4
_POINT = 25.4 / 72


def sheet_pdf(sheet: Sheet) -> bytes:
    """Return a sheet as the content of a PDF file."""
    sheet = cleaned(sheet)
    with settings_of_matplotlib():
        page = _Page()
        _head(page, sheet)
        top = _verdict(page, sheet, 37.0 + 8.4 * ((len(sheet.details) - 1) // 4))
        top = _cards(page, sheet.cards, top + 3.5)
        below = MIDDLE + 12.0 + ROW * (1 + min(MAX_ROWS, len(sheet.main.rows))) + FOOT
        room = min(max(HEIGHT - below - top - 16.0, PICTURE_HEIGHTS[0]), PICTURE_HEIGHTS[1])
        top = _pictures(page, sheet, top + 4.0, room)
        top = _middle(page, sheet, top + 4.0)
        _table(page, sheet.main, MARGIN, top + 4.0, WIDTH - 2 * MARGIN, MAX_ROWS)
        _foot(page, sheet)
        return page.pdf(sheet.title)


class _Page:
    """Draw on a page in millimetres."""

    def __init__(self) -> None:
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(WIDTH * _MM, HEIGHT * _MM))

    def text(self, x: float, y: float, text: str, size: float = 8, colour: str = TEXT, **options: Any) -> None:
        """Write a line whose letters stand on y."""
        shown = drawable(text)
        self.figure.text(x / WIDTH, 1 - y / HEIGHT, shown, fontsize=size, color=colour, parse_math=False, **options)

    def box(self, x: float, y: float, width: float, height: float, colour: str, edge: str = "none") -> None:
        """Fill a rectangle."""
        from matplotlib.patches import Rectangle

        corner = x / WIDTH, 1 - (y + height) / HEIGHT
        self.figure.add_artist(
            Rectangle(corner, width / WIDTH, height / HEIGHT, facecolor=colour, edgecolor=edge, lw=0.6, zorder=-1)
        )

    def line(self, x: float, y: float, width: float, colour: str = LINE, thickness: float = 0.6) -> None:
        """Draw a horizontal line."""
        from matplotlib.lines import Line2D

        xs, ys = (x / WIDTH, (x + width) / WIDTH), (1 - y / HEIGHT, 1 - y / HEIGHT)
        self.figure.add_artist(Line2D(xs, ys, color=colour, lw=thickness))

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        """Return axes in a rectangle."""
        return self.figure.add_axes((x / WIDTH, 1 - (y + height) / HEIGHT, width / WIDTH, height / HEIGHT))

    def pdf(self, title: str) -> bytes:
        buffer = io.BytesIO()
        about = {"Title": title, "Creator": "SynBoost-MONAI", "Producer": "matplotlib", "CreationDate": None}
        self.figure.savefig(buffer, format="pdf", metadata=about)
        return buffer.getvalue()


def _wrapped(text: str, width: float, size: float, most: int) -> list[str]:
    """Return a text in lines of about a width in mm, cut after a number of lines."""
    return textwrap.wrap(text, max(8, int(width / (0.54 * size * _POINT))), max_lines=most, placeholder=" …")


def _head(page: _Page, sheet: Sheet) -> None:
    page.text(MARGIN, 19.5, sheet.title, 17, weight="bold")
    page.text(WIDTH - MARGIN, 19, sheet.warning, 9, CAUTION, weight="bold", ha="right")
    page.line(MARGIN, 23.5, WIDTH - 2 * MARGIN, TEXT, 1.0)
    width = (WIDTH - 2 * MARGIN) / 4
    for i, (label, value) in enumerate(sheet.details):
        x, y = MARGIN + width * (i % 4), 28.0 + 8.4 * (i // 4)
        page.text(x, y, label, 6.5, SOFT)
        page.text(x, y + 4.0, plain(value, 26), 8.2)


def _verdict(page: _Page, sheet: Sheet, top: float) -> float:
    """Draw the verdict with its reasons; return where it ends."""
    width, colour = WIDTH - 2 * MARGIN, GOOD if sheet.is_good else CAUTION
    of_reasons = [_wrapped(f"• {reason}", width - 12, 8, 2) for reason in sheet.reasons]
    num_shown = len(of_reasons)
    while sum(map(len, of_reasons[:num_shown])) + (num_shown < len(of_reasons)) > MAX_LINES:
        num_shown -= 1
    lines = [line for reason in of_reasons[:num_shown] for line in reason]
    lines += [f"• … +{len(of_reasons) - num_shown}"] if num_shown < len(of_reasons) else []
    height = 10.0 + 3.9 * len(lines) + (1.2 if lines else 0)
    page.box(MARGIN, top, width, height, PANEL)
    page.box(MARGIN, top, 2.0, height, colour)
    page.text(MARGIN + 6, top + 6.6, sheet.verdict, 12, colour, weight="bold")
    for i, line in enumerate(lines):
        page.text(MARGIN + 6, top + 11.6 + 3.9 * i, line, 8)
    return top + height


def _cards(page: _Page, cards: Sequence[Card], top: float) -> float:
    gap, height = 3.0, 21.0
    width = (WIDTH - 2 * MARGIN - gap * (len(cards) - 1)) / max(1, len(cards))
    for i, card in enumerate(cards):
        x = MARGIN + i * (width + gap)
        page.box(x, top, width, height, "white", CAUTION if card.mark else LINE)
        for j, line in enumerate(_wrapped(card.label, width - 4, 7, 2)):
            page.text(x + 2.5, top + 4.2 + 3.0 * j, line, 7, SOFT)
        page.text(x + 2.5, top + 14.6, card.value, 16, weight="bold")
        offset = 3.95 * len(card.value) + 1.2
        page.text(x + 2.5 + offset, top + 14.6, card.unit, 8, SOFT)
        page.text(x + 2.5, top + 18.8, card.note, 6.5, SOFT)
        if card.mark:
            page.text(x + width - 2.0, top + 18.8, card.mark, 6.5, CAUTION, weight="bold", ha="right")
    return top + height


def _pictures(page: _Page, sheet: Sheet, top: float, height: float) -> float:
    """Draw up to four pictures beside each other, and the legend of their outlines."""
    from PIL import Image

    if not sheet.pictures:
        return top
    gap, columns = 3.0, min(4, max(2, len(sheet.pictures)))
    width = (WIDTH - 2 * MARGIN - (columns - 1) * gap) / columns
    height = min(height, width)
    for i, picture in enumerate(sheet.pictures[:columns]):
        x = MARGIN + i * (width + gap)
        page.box(x, top, width, height, "black")
        with Image.open(io.BytesIO(picture.png)) as image:
            pixels = np.asarray(image.convert("RGB"))
        scale = min(width / pixels.shape[1], height / pixels.shape[0])
        w, h = pixels.shape[1] * scale, pixels.shape[0] * scale
        axes = page.axes(x + (width - w) / 2, top + (height - h) / 2, w, h)
        axes.imshow(pixels, interpolation="none", aspect="auto")
        axes.set_axis_off()
        page.text(x, top + height + 3.6, picture.caption, 7, SOFT)
    x = MARGIN
    for words, colour in sheet.legend:
        page.box(x, top + height + 5.7, 2.4, 2.4, colour)
        page.text(x + 3.6, top + height + 7.8, words, 7, SOFT)
        x += 7.5 + 1.45 * len(words)
    return top + height + 8.5


def _middle(page: _Page, sheet: Sheet, top: float) -> float:
    """Draw the curves and the table beside them."""
    left = 106.0
    page.text(MARGIN, top + 3, sheet.curve_words[0], 9, weight="bold")
    if sheet.curves:
        draw_curves(page.axes(MARGIN + 10, top + 9.5, left - 12, MIDDLE - 18), sheet, 6.5)
    _table(page, sheet.side, MARGIN + left + 3, top, WIDTH - 2 * MARGIN - left - 3, MAX_SIDE_ROWS)
    return top + MIDDLE


def _table(page: _Page, table: SheetTable, x: float, top: float, width: float, most: int) -> None:
    page.text(x, top + 3, table.title, 9, weight="bold")
    edges = x + width * np.cumsum([0.0, *table.widths]) / sum(table.widths)
    rows = list(table.rows)
    if len(rows) > most:
        rows = [*rows[: most - 1], [f"… +{len(rows) - most + 1}", *[""] * (len(table.head) - 1)]]
    for i, row in enumerate([table.head, *rows]):
        y = top + 8.0 + ROW * i
        is_head = i == 0
        if not is_head and i - 1 in table.marked and i <= len(table.rows):
            page.box(x, y - 3.0, width, ROW, "#fdf3e1")
        for j, cell in enumerate(row):
            is_number = j in table.numbers
            at = edges[j + 1] - 2.0 if is_number else edges[j] + 0.8
            longest = int((edges[j + 1] - edges[j]) / (0.52 * 7.2 * _POINT))
            page.text(
                at,
                y,
                plain(cell, max(4, longest)),
                6.8 if is_head else 7.2,
                SOFT if is_head else TEXT,
                ha="right" if is_number else "left",
            )
        page.line(x, y + 1.1, width, SOFT if is_head else LINE, 0.6 if is_head else 0.4)


def _foot(page: _Page, sheet: Sheet) -> None:
    page.line(MARGIN, HEIGHT - FOOT, WIDTH - 2 * MARGIN)
    for i, line in enumerate(sheet.footer):
        page.text(MARGIN, HEIGHT - FOOT + 3.9 + 3.3 * i, plain(line, 150), 6.5, SOFT)
