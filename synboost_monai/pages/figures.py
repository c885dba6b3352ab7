"""Make figures of matplotlib as PNG, without pyplot: no window system, no global state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from synboost_monai.pages.words import STRATEGY_COLOURS, STRATEGY_MARKERS, STRATEGY_TITLES

DPI = 150
"""Resolution of the PNG files; pages show them smaller, so that they stay sharp."""
WIDTH = 10.0
"""Width of a plot that fills the page, in inches."""
MAX_COLUMNS = 4
"""Largest number of panels beside each other."""


def new_figure(width: float, height: float, dpi: int) -> Any:
    """Return an empty figure of the given size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_of(figure: Any) -> bytes:
    """Return a figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def new_panels(number: int, height: float, columns: int = MAX_COLUMNS, **options: Any) -> tuple[Any, list[Any]]:
    """Return a figure with `number` panels, at most `columns` beside each other; a few panels do not fill the page."""
    columns = min(columns, number)
    rows = -(-number // columns)
    figure = new_figure(min(WIDTH, 1.0 + 4.5 * columns), 0.5 + height * rows, DPI)
    panels = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for panel in panels[number:]:
        panel.set_visible(False)
    return figure, list(panels[:number])


def draw_grid(panel: Any, axis: str) -> None:
    """Draw grey lines across an axis (`x`, `y` or `both`) behind a panel's plot, and leave out the frame's upper and right side."""
    panel.grid(axis=axis, color="0.88", lw=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def strategy_legend(figure: Any, strategies: Sequence[str], lines: bool = False) -> None:
    """Draw the legend of strategies above the panels, as lines with markers or as filled boxes."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for s in strategies:
        colour, title = STRATEGY_COLOURS[s], STRATEGY_TITLES[s]
        line = Line2D([], [], color=colour, marker=STRATEGY_MARKERS[s], label=title)
        handles.append(line if lines else Patch(facecolor=colour, edgecolor="black", alpha=0.8, label=title))
    figure.legend(handles=handles, ncols=len(handles), loc="outside upper center", frameon=False, fontsize=9.5)
