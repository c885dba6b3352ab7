"""Turn sections into one HTML file that works from disk and loads nothing else."""

from __future__ import annotations

import platform
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from synboost_monai import __version__
from synboost_monai.pages.blocks import Plot, Section
from synboost_monai.pages.figures import DPI
from synboost_monai.pages.pictures import picture_source

TEMPLATES = Path(__file__).parent
"""Folder of the Jinja templates and of the style sheet."""
CSS_DPI = 96
"""Pixels on the page per inch of a plot."""


def filled(template: Path, filters: Mapping[str, Callable[..., Any]], **content: Any) -> str:
    """Fill a Jinja template with content and, as `style`, the style sheet that all pages of the project share.

    Everything except our own style sheet is escaped.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    loader = FileSystemLoader(template.parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    environment.filters |= filters
    style = (TEMPLATES / "style.css.j2").read_text(encoding="utf-8")
    return environment.get_template(template.name).render(style=Markup(style), **content)


def render(
    sections: Sequence[Section],
    *,
    title: str,
    description: str,
    warning: str,
    versions: Mapping[str, str],
    has_files: bool = True,
) -> str:
    """Render the page.

    Args:
        sections: the sections in order.
        title, description, warning: texts at the top; an empty warning is left out.
        versions: versions of the software, by name.
        has_files: whether each table is also a file in tables/, which the page then says.
    """
    return filled(
        TEMPLATES / "page.html.j2",
        {"image": _image},
        sections=sections,
        title=title,
        description=description,
        warning=warning,
        versions=versions,
        has_files=has_files,
    )


def _image(plot: Plot) -> dict[str, Any]:
    """Return the source of a plot, and its size on the page."""
    width, height = struct.unpack(">II", plot.png[16:24])  # from the PNG's first chunk
    return {
        "source": picture_source(plot.png),
        "width": round(width * CSS_DPI / DPI),
        "height": round(height * CSS_DPI / DPI),
    }


def package_versions() -> dict[str, str]:
    """Return the versions of the software that the numbers depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"synboost_monai": __version__, "python": platform.python_version()}
    for name in ("torch", "monai", "numpy", "scipy", "pandas", "snakemake"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
