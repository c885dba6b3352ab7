"""Check whether this environment can run MONAI Label, which wants older libraries than the rest of the project."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import metadata

MONAILABEL_VERSION = "0.8.5"
"""The release that the app folder is made for, and the newest (November 2026). `guard.py` keeps its known faults out. It is raised as
soon as there is a newer one, which scripts/setup_label.sh reports."""
NEEDED: Mapping[str, tuple[tuple[int, ...] | None, tuple[int, ...] | None, str]] = {
    "monailabel": ((0, 8, 5), (0, 8, 6), "the release that this was tried with, and that the guard is made for"),
    "numpy": ((1, 26), (2,), "pydicom-seg, which MONAI Label imports, breaks with 2"),
    "pydicom": ((2, 4, 5), (3,), "pydicom-seg, which MONAI Label imports, breaks with 3"),
    "pydicom-seg": (None, None, "MONAI Label imports it when it starts"),
    "monai": ((1, 6, 1), None, "bundles are read by it, and older ones have known faults"),
    "torch": ((2, 12, 1), None, "the segmenters run in it, and older ones have known faults"),
}
"""Distribution -> (lowest version, first version that is too new, why)."""
PYTHON = ((3, 10), (3, 13))
"""Lowest Python, and the first that is too new: MONAI Label imports cgi and distutils."""
SETUP_SCRIPT = "scripts/setup_label.sh"
"""Script that builds an environment that fits."""


def version_problems(
    installed: Callable[[str], str] = metadata.version, python: tuple[int, ...] = sys.version_info[:3]
) -> list[str]:
    """Return what is wrong with this environment, one line each; empty if MONAI Label can run.

    Args:
        installed: returns the version of a distribution; raises `metadata.PackageNotFoundError` if it is not installed.
        python: version of Python.
    """
    problems = []
    if not PYTHON[0] <= python < PYTHON[1]:
        problems.append(
            f"Python {_dotted(python)} is here, {_wanted(*PYTHON)} is needed (MONAI Label imports cgi and distutils)"
        )
    for name, (lowest, too_new, why) in NEEDED.items():
        wanted = f"{name} {_wanted(lowest, too_new)}".strip()
        try:
            found = installed(name)
        except metadata.PackageNotFoundError:
            problems.append(f"{wanted} is missing ({why})")
            continue
        version = _numbers(found)
        if (lowest and version < lowest) or (too_new and version >= too_new):
            problems.append(f"{name} {found} is here, {wanted} is needed ({why})")
    return problems


def check_versions() -> None:
    """Refuse an environment in which MONAI Label cannot run.

    Raises:
        ValueError: if it cannot; the message names all faults and the script that corrects them.
    """
    problems = version_problems()
    if problems:
        raise ValueError(
            f"this environment cannot run MONAI Label: {'; '.join(problems)}. "
            f"`bash {SETUP_SCRIPT}` builds one beside it that can, and says how to call synboost from there"
        )


def _numbers(version: str) -> tuple[int, ...]:
    """Convert 1.26.4 to (1, 26, 4); stop at the first part that is not a number, as in 2.13.0+cpu."""
    numbers = []
    for part in version.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _wanted(lowest: tuple[int, ...] | None, too_new: tuple[int, ...] | None) -> str:
    """Write a range of versions, such as >=1.26,<2."""
    return ",".join([*([f">={_dotted(lowest)}"] if lowest else []), *([f"<{_dotted(too_new)}"] if too_new else [])])
