"""Run MONAI's Auto3DSeg with the project's segmenters: algorithm templates wrap the bundles, and one verb wraps `AutoRunner`."""

from pathlib import Path

TEMPLATES_DIR = Path(__file__).with_name("templates")
"""Folder of algorithm templates, for `BundleGen(templates_path_or_url=...)`."""


def algorithm_names() -> list[str]:
    """Return the names of the algorithms that have a template."""
    return sorted(path.parents[1].name for path in TEMPLATES_DIR.glob("*/scripts/algo.py"))
