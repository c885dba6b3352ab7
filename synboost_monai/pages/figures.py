"""Make figures of matplotlib as PNG, without pyplot: no window system, no global state."""

from __future__ import annotations

import io
from typing import Any

DPI = 150
"""Resolution of the PNG files; pages show them smaller, so that they stay sharp."""


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
