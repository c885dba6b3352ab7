"""Divide patients into training, validation and testing: deterministically, and never one patient in two."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

SECTIONS = ("training", "validation", "testing")
"""Sections that the datalist of every data set has."""


def rank_patients(patients: Iterable[str], seed: int, purpose: str) -> list[str]:
    """Sort patients by the SHA-256 of seed, purpose and name: adding or removing one does not reorder the others."""
    return sorted(set(patients), key=lambda patient: hashlib.sha256(f"{seed}:{purpose}:{patient}".encode()).digest())


def carve(patients: Iterable[str], count: int, seed: int, purpose: str) -> tuple[list[str], list[str]]:
    """Divide patients into (those that stay, those taken out), both sorted; `count` are taken out."""
    ranked = rank_patients(patients, seed, purpose)
    return sorted(ranked[count:]), sorted(ranked[:count])


def check_disjoint(splits: Mapping[str, Iterable[str]], *, where: str, what: str = "patient") -> None:
    """Raise ValueError if one patient (or whatever `what` is) is in two splits.

    Args:
        splits: split -> names.
        where: file or folder, for the message.
        what: what the names are, for the message.
    """
    first_split: dict[str, str] = {}
    crossing: dict[str, tuple[str, str]] = {}
    for split, names in splits.items():
        for name in names:
            other = first_split.setdefault(name, split)
            if other != split:
                crossing.setdefault(name, (other, split))
    if crossing:
        name, (one, other) = next(iter(crossing.items()))
        more = f" ({len(crossing) - 1} more cross as well)" if len(crossing) > 1 else ""
        raise ValueError(
            f"{where}: {what} {name} is in two splits, {one} and {other}{more}; take it out of one of them"
        )


def divide_official(lists: Mapping[str, Sequence[str]], seed: int, notes: list[str]) -> dict[str, list[str]]:
    """Return the official splits, filled up where a copy lacks one; each decision is added to `notes`.

    - No testing patients: the official validation patients become the test set (or, where there are none,
      a tenth of the training patients).
    - No validation patients then: a tenth of the training patients, drawn by `rank_patients`.

    Args:
        lists: official section -> patients that can be used; sections may be missing or empty.
        seed: seed of the draw.
        notes: sentences for the summary; new ones are added.
    """
    divided = {section: sorted(lists.get(section, ())) for section in SECTIONS}
    num_carved = _share(len(divided["training"]), 0.1)
    if not divided["testing"]:
        divided["testing"] = _stand_in_for_testing(divided, num_carved, seed, notes)
    if not divided["validation"]:
        divided["training"], divided["validation"] = carve(divided["training"], num_carved, seed, "validation")
        notes.append(f"validation: {len(divided['validation'])} of the training patients, drawn by seed {seed}")
    return divided


def divide_as_paper(
    lists: Mapping[str, Sequence[str]], listed: Iterable[str], seed: int, notes: list[str]
) -> dict[str, list[str]]:
    """Return the paper's splits: of the patients outside the test set, the first 50 (by name) are for validation.

    A smaller data set takes the same share, 50 of 450. Without testing patients the test set is chosen first, as in
    `divide_official`.

    Args:
        lists: official section -> patients that can be used.
        listed: every patient that the split files name, present or not: a gap in a copy does not move the paper's
            border.
        seed: seed of the draw, where one is needed.
        notes: sentences for the summary; new ones are added.
    """
    divided = {section: sorted(lists.get(section, ())) for section in SECTIONS}
    if not divided["testing"]:
        num_carved = _share(len(divided["training"]), 0.1)
        divided["testing"] = _stand_in_for_testing(divided, num_carved, seed, notes)
    usable = set(divided["training"]) | set(divided["validation"])
    names = sorted((set(listed) | usable) - set(divided["testing"]))
    num_validation = min(50, _share(len(names), 50 / 450))
    first = set(names[:num_validation])
    notes.append(
        f"validation: the first {num_validation} of {len(names)} patients that are not for testing, as in the paper"
    )
    return {
        "training": sorted(usable - first),
        "validation": sorted(usable & first),
        "testing": divided["testing"],
    }


def take_subset(patients: Sequence[str], max_patients: int | None, fraction: float | None, seed: int) -> list[str]:
    """Draw a part of the patients, sorted; with the same seed a smaller part is contained in a larger one.

    Raises:
        ValueError: if `max_patients` < 1 or `fraction` is outside (0, 1].
    """
    count = len(patients)
    if max_patients is not None:
        if int(max_patients) != max_patients or max_patients < 1:
            raise ValueError(f"max_training_patients must be a whole number of at least 1, got {max_patients}")
        count = min(count, int(max_patients))
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(f"training_fraction must be above 0 and at most 1, got {fraction}")
        count = min(count, max(1, round(fraction * len(patients))))
    return sorted(rank_patients(patients, seed, "subset")[:count])


def _share(count: int, fraction: float) -> int:
    """Return a rounded share of `count`: at least one, but never all."""
    return min(max(1, round(count * fraction)), max(0, count - 1))


def _stand_in_for_testing(divided: dict[str, list[str]], num_carved: int, seed: int, notes: list[str]) -> list[str]:
    """Return patients for the test set of a copy that has none; they are removed from their section of `divided`."""
    if divided["validation"]:
        testing, divided["validation"] = divided["validation"], []
        notes.append(
            f"testing: the {len(testing)} official validation patients, as there are no labelled testing patients"
        )
        return testing
    divided["training"], testing = carve(divided["training"], num_carved, seed, "testing")
    notes.append(
        f"testing: {len(testing)} of the training patients, drawn by seed {seed}: no labelled testing patients"
    )
    return testing
