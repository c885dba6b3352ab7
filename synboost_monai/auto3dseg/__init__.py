"""Auto3DSeg of MONAI with the project's segmenters: algorithm templates that wrap the bundles, and one verb around `AutoRunner`."""

from pathlib import Path

TEMPLATES_DIR = Path(__file__).with_name("templates")
"""Folder of algorithm templates, for `BundleGen(templates_path_or_url=...)`."""


def algorithm_names() -> list[str]:
    """Names of the algorithms that there are templates of."""
    return sorted(path.parents[1].name for path in TEMPLATES_DIR.glob("*/scripts/algo.py"))
