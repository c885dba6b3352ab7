"""Make a data set from a part of another one: fewer patients, or another fold; images are not copied.

A study of data scarcity, or a cross-validation, reads the data set once and makes each part from its datalist.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synboost_monai.data.datalist import (
    DATALIST_NAME,
    SUMMARY_NAME,
    files_of,
    find_datalist,
    load_datalist,
    rebased_item,
)
from synboost_monai.data.splits import rank_patients, take_subset
from synboost_monai.files import atomic_write_text
from synboost_monai.paths import refuse_overwriting


def write_subset(
    dataset_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    patients: int | float | None = None,
    fold: int | None = None,
    num_folds: int = 5,
    seed: int = 0,
) -> str:
    """Write datalist.json for a part of a data set.

    The testing section is not changed. Of the patients for training and validation together `patients` are drawn, from each section in
    proportion, since patients used to choose weights have to be annotated too: 20 of 359 + 40 are 18 + 2. A smaller part is contained
    in a larger one of the same seed. With `fold` these patients are divided anew: the fold is for validation, the others for training.

    Args:
        dataset_dir: folder with datalist.json, or that file.
        output_dir: folder to write to.
        patients: number for training and validation together: a whole number of at least 2, or a share in (0, 1); None takes all.
        fold: index of the fold, from 0 to `num_folds` - 1; None keeps the data set's own validation patients.
        num_folds: number of folds.
        seed: seed of all draws.
    Returns:
        a sentence that names the part.
    Raises:
        FileNotFoundError, ValueError: if there is no datalist, an item does not name its patient, there are too few patients, or the
            data set itself would be replaced.
    """
    source = find_datalist(Path(dataset_dir))
    content = load_datalist(source)
    sections = {name: _patients_of(content, name, source) for name in ("training", "validation")}
    chosen = _draw(sections, patients, seed, source)
    if fold is not None:
        chosen = _divide(sorted({*chosen["training"], *chosen["validation"]}), fold, num_folds, seed, source)

    items = [item for name in sections for item in content.get(name, [])]
    target = Path(output_dir, DATALIST_NAME)
    refuse_overwriting([target, target.with_name(SUMMARY_NAME)], [source, files_of(content, source.parent)])
    parts = {name: [item for item in items if str(item["patient"]) in members] for name, members in chosen.items()}
    lists = {key: value for key, value in content.items() if isinstance(value, list)} | parts
    rebased = {key: [rebased_item(item, source.parent, target.parent) for item in part] for key, part in lists.items()}
    text = _sentence(chosen, sections, rebased, fold, num_folds, seed)
    head = {key: value for key, value in content.items() if not isinstance(value, list)}
    head["description"] = f"{head.get('description', '')}; {text}".lstrip("; ")
    atomic_write_text(target.with_name(SUMMARY_NAME), text + "\n")
    atomic_write_text(target, json.dumps({**head, **rebased}, indent=1) + "\n")
    return f"{text}\n{target}"


def _patients_of(content: Mapping[str, Any], section: str, source: Path) -> set[str]:
    """Return the names of a section's patients."""
    items = content.get(section) or []
    for number, item in enumerate(items):
        if not item.get("patient"):
            raise ValueError(
                f"{source}: {section}[{number}] does not name its patient; parts are made of whole patients, so add the key `patient`"
            )
    return {str(item["patient"]) for item in items}


def _draw(
    sections: Mapping[str, set[str]], patients: int | float | None, seed: int, source: Path
) -> dict[str, list[str]]:
    """Draw patients of each section, in proportion to its size."""
    total = sum(map(len, sections.values()))
    if patients is None:
        return {name: sorted(members) for name, members in sections.items()}
    is_share = isinstance(patients, float) and 0 < patients < 1
    if isinstance(patients, bool) or not (is_share or patients == int(patients) and patients >= 2):
        raise ValueError(f"patients must be a whole number of at least 2, or a share between 0 and 1, got {patients!r}")
    count = max(2, round(patients * total)) if is_share else int(patients)
    if count > total:
        raise ValueError(f"{source}: {count} patients are asked for, but training and validation have {total} together")
    num_validation = round(count * len(sections["validation"]) / total)
    num_validation = min(
        max(num_validation, 1 if sections["validation"] else 0), len(sections["validation"]), count - 1
    )
    counts = {"training": min(count - num_validation, len(sections["training"])), "validation": num_validation}
    return {
        name: take_subset(sorted(sections[name]), counts[name], None, seed) if counts[name] else [] for name in counts
    }


def _divide(patients: Sequence[str], fold: int, num_folds: int, seed: int, source: Path) -> dict[str, list[str]]:
    """Return one fold for validation, the others for training."""
    if not 2 <= num_folds <= len(patients):
        raise ValueError(
            f"{source}: num_folds must be at least 2 and at most the {len(patients)} patients, got {num_folds}"
        )
    if not 0 <= fold < num_folds:
        raise ValueError(f"fold must be 0 to {num_folds - 1} of {num_folds} folds, got {fold}")
    held_out = set(rank_patients(patients, seed, "fold")[fold::num_folds])
    return {"training": [p for p in patients if p not in held_out], "validation": sorted(held_out)}


def _sentence(
    chosen: Mapping[str, Sequence[str]],
    sections: Mapping[str, set[str]],
    parts: Mapping[str, Sequence[Any]],
    fold: int | None,
    num_folds: int,
    seed: int,
) -> str:
    """Describe the part in one sentence."""
    told = ", ".join(f"{len(chosen[s])} for {s} ({len(parts[s])} images)" for s in chosen)
    of_all = sum(map(len, sections.values()))
    folds = "" if fold is None else f", fold {fold} of {num_folds} for validation"
    testing = f"; testing as it is ({len(parts.get('testing', []))} images)"
    return f"{sum(map(len, chosen.values()))} of {of_all} patients, drawn by seed {seed}{folds}: {told}{testing}"
