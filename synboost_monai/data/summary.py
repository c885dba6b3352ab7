"""Write the text of summary.txt: what was found, decided and missed when a data set was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from synboost_monai.records import PHASES, VIEWS, EchoRecord

_MAX_ENTRIES = 20
"""Largest number of entries of a group that are listed."""


def summary_text(title: str, counts: Mapping[str, Mapping[str, int]], groups: Mapping[str, Sequence[str]]) -> str:
    """Return several lines: counts by section, then each group's first entries under its title; empty groups are left out.

    Args:
        title: the first line.
        counts: section -> numbers from `count_records`.
        groups: title -> entries.
    """
    lines = [title]
    for section, count in counts.items():
        kinds = ", ".join(f"{kind} {n}" for kind, n in count.items() if kind not in ("patients", "images"))
        lines.append(f"  {section:<10} {count['patients']:4d} patients {count['images']:5d} images  ({kinds})")
    for heading, entries in groups.items():
        if entries:
            lines.append(f"{heading}:")
            lines += [f"  - {entry}" for entry in entries[:_MAX_ENTRIES]]
            lines += [f"  - and {len(entries) - _MAX_ENTRIES} more"] if len(entries) > _MAX_ENTRIES else []
    return "\n".join(lines)


def strict_message(reader: str, folder: Path, entries: Sequence[str]) -> str:
    """Return one line that lists what is missing or damaged in a copy that has to be complete."""
    listed = "; ".join(entries[:10]) + (f"; and {len(entries) - 10} more" if len(entries) > 10 else "")
    return (
        f"{reader}: expected a complete and sound copy in {folder}, found {len(entries)} things amiss: {listed}. "
        "Mend them or leave out strict"
    )


def count_records(records: Sequence[EchoRecord]) -> dict[str, int]:
    """Count patients, images, and images by view and by phase, in the short forms of tables."""
    counts = {"patients": len({record.patient for record in records}), "images": len(records)}
    for short_names, attribute in ((VIEWS, "view"), (PHASES, "phase")):
        for short, name in short_names.items():
            count = sum(getattr(record, attribute) == name for record in records)
            if count:
                counts[short] = count
    return counts


def some(names: Sequence[str], limit: int = 3) -> str:
    """Return the first names and the number of the others."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
