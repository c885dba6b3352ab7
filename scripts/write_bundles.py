"""Writes the files that the two segmenters' bundles share, from one template of each and what differs between them.

    python scripts/write_bundles.py            after a change in scripts/segmenter_bundle
    python scripts/write_bundles.py --check    says which files of the bundles are not what the templates give

In a template `{{key}}` stands for a value of `values.yaml`. A line that begins with `{{cris}}` or `{{clipseg}}` is of that one alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = Path(__file__).resolve().with_name("segmenter_bundle")
VALUES = TEMPLATES / "values.yaml"


def rendered(template: str, values: dict[str, str]) -> str:
    """Return a template with its values.

    Raises:
        KeyError: if it asks for a value that the bundle does not have.
    """
    lines = []
    for line in template.splitlines(keepends=True):
        alone = re.match(r"\{\{(cris|clipseg)\}\}", line)
        if alone is None or alone[1] == values["architecture"]:
            line = line[alone.end() :] if alone else line
            lines.append(re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], line))
    return "".join(lines)


def bundle_files() -> Iterator[tuple[Path, str]]:
    """Yield each file of each bundle that has a template, and what it is to hold."""
    for name, values in yaml.safe_load(VALUES.read_text(encoding="utf-8")).items():
        for path in sorted(TEMPLATES.rglob("*")):
            if path.is_file() and path != VALUES:
                text = rendered(path.read_text(encoding="utf-8"), {"bundle": name, **values})
                yield ROOT / "bundles" / name / path.relative_to(TEMPLATES), text


def main(arguments: list[str]) -> int:
    """Write the files, or with --check return 1 if one is out of date."""
    stale = [(path, text) for path, text in bundle_files() if path.read_text(encoding="utf-8") != text]
    for path, text in stale:
        print(path.relative_to(ROOT))
        if arguments != ["--check"]:
            path.write_text(text, encoding="utf-8")
    return int(bool(stale) and arguments == ["--check"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
