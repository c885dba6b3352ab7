"""Write a sheet as one HTML file that works from disk and loads nothing else."""

from __future__ import annotations

from synboost_monai.pages.page import TEMPLATES, style_sheet
from synboost_monai.pages.pictures import picture_source
from synboost_monai.pages.sheet import Sheet, cleaned, curves_png


def sheet_html(sheet: Sheet) -> str:
    """Return a sheet as HTML; every text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sheet = cleaned(sheet)
    environment.filters["source"] = picture_source
    return environment.get_template("sheet.html.j2").render(
        sheet=sheet, style=Markup(style_sheet()), curves=curves_png(sheet) if sheet.curves else b""
    )
