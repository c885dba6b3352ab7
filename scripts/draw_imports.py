#!/usr/bin/env python
"""Draw which room of the package imports which, as the documentation shows it.

    python scripts/draw_imports.py docs/assets/imports.svg

Layers are read from docs/explanation/architecture.md, imports from the code. An arrow is left out if other arrows lead the same way.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "synboost_monai"
LAW = ROOT / "docs/explanation/architecture.md"
"""The page with the table of rooms: layer, room, question, libraries that only it imports."""

LETTER, HEIGHT, GAP, RISE, MARGIN = 7.3, 26, 14, 74, 20
"""Pixels: width of a letter, height of a box, space between boxes, height of a layer, margin."""
SWEEPS = 12
"""Number of times that the boxes of each layer are sorted by the positions of those that they are connected with."""


def law_rows() -> list[list[str]]:
    """Return the cells of the rows of the table of rooms."""
    lines = LAW.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if re.match(r"\| \d+ \| `", line)]


def imports_of(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, also inside functions; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def file_imports() -> dict[str, set[str]]:
    """Return each module of the package with those that it imports; `networks/__init__.py` is synboost_monai.networks."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((ROOT / PACKAGE).rglob("*.py"))
    }
    imports: dict[str, set[str]] = {}
    for module, path in paths.items():
        found = imports[module] = set()
        for name in imports_of(path):
            while name and name not in paths:  # a name imported from a module, or a module outside the package
                name = name.rpartition(".")[0]
            found |= {name} - {module, ""}
    return imports


def room_of(module: str) -> str:
    """Return the first part below the package: synboost_monai.data.camus -> data."""
    return (module.split(".") + ["__init__"])[1]


def room_imports(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return each room with the rooms that its files import."""
    found: dict[str, set[str]] = {}
    for module, targets in imports.items():
        room = room_of(module)
        found.setdefault(room, set()).update({room_of(target) for target in targets} - {room})
    return found


def without_shortcuts(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the imports without those that follow from others (transitive reduction)."""

    def reached(room: str) -> set[str]:
        return imports[room].union(*map(reached, imports[room]))

    return {room: targets - set().union(*map(reached, targets)) for room, targets in imports.items()}


def ordered(layers: list[list[str]], arrows: dict[str, set[str]]) -> list[list[str]]:
    """Return the layers with their rooms in an order in which few arrows cross."""
    tied = {room: {*targets, *(other for other in arrows if room in arrows[other])} for room, targets in arrows.items()}
    for _ in range(SWEEPS):
        place = {room: (i + 0.5) / len(layer) for layer in layers for i, room in enumerate(layer)}
        centre = {r: round(fmean(place[t] for t in sorted(ties or {r})), 9) for r, ties in tied.items()}
        layers = [sorted(layer, key=lambda room: (centre[room], room)) for layer in layers]
    return layers


def svg() -> str:
    """Return the picture: layers from the highest to the lowest, one box per room, one arrow per import."""
    layer_of = {room.strip("`"): int(layer) for layer, room, _, _ in law_rows()}
    arrows = without_shortcuts(room_imports(file_imports()))
    layers = ordered([[r for r in layer_of if layer_of[r] == n] for n in range(max(layer_of.values()), -1, -1)], arrows)
    width_of = {room: LETTER * len(room) + 18 for room in layer_of}
    row_widths = [sum(map(width_of.__getitem__, layer)) + GAP * (len(layer) - 1) for layer in layers]
    width, height = max(row_widths) + 2 * MARGIN, RISE * (len(layers) - 1) + HEIGHT + 2 * MARGIN
    corner: dict[str, tuple[float, float]] = {}
    for number, layer in enumerate(layers):
        space = (width - 2 * MARGIN - sum(map(width_of.__getitem__, layer))) / (len(layer) + 1)
        left = MARGIN + space
        for room in layer:
            corner[room] = (left, MARGIN + RISE * number)
            left += width_of[room] + space
    lines = [_arrow(room, target, corner, width_of) for room in sorted(arrows) for target in sorted(arrows[room])]
    boxes = [
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width_of[room]:.0f}" height="{HEIGHT}" rx="5"/>'
        f'<text x="{x + width_of[room] / 2:.0f}" y="{y + 17:.0f}">{escape(room)}</text>'
        for room, (x, y) in sorted(corner.items())
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" font-family="monospace" font-size="12">',
            "<style>rect{fill:#e0f2f1;stroke:#00796b}text{text-anchor:middle;fill:#102a27}path{fill:none;stroke:#78909c;stroke-opacity:.75}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0L8 4L0 8z" style="fill:#78909c;stroke:none"/></marker></defs>',
            '<rect x="0" y="0" width="100%" height="100%" style="fill:#fff;stroke:none"/>',
            *lines,
            *boxes,
            "</svg>\n",
        ]
    )


def _arrow(room: str, target: str, corner: dict[str, tuple[float, float]], width_of: dict[str, float]) -> str:
    """Return a line from the bottom of one box to the top of the other, or an arc below two boxes of the same layer."""
    (x0, y0), (x1, y1) = corner[room], corner[target]
    x0, x1 = x0 + width_of[room] / 2, x1 + width_of[target] / 2
    if y0 == y1:
        y0 += HEIGHT
        return f'<path d="M{x0:.0f} {y0:.0f}Q{(x0 + x1) / 2:.0f} {y0 + RISE / 2:.0f} {x1:.0f} {y0:.0f}" marker-end="url(#tip)"/>'
    return f'<path d="M{x0:.0f} {y0 + HEIGHT:.0f}L{x1:.0f} {y1:.0f}" marker-end="url(#tip)"/>'


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    from synboost_monai.files import atomic_write_text  # here: the layering test imports this file only for its tables

    atomic_write_text(Path(sys.argv[1]), svg())
