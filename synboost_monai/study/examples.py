"""Choose a few images of a synthetic data set as a data set of their own, for the pictures of the report."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from synboost_monai.files import atomic_write_text, read_text
from synboost_monai.paths import refuse_overwriting

NUM_EXAMPLES = 4
"""Number of images: one for each view and phase, if there are such images."""


def write_examples(
    dataset_dir: str | os.PathLike[str], output_dir: str | os.PathLike[str], count: int = NUM_EXAMPLES
) -> Path:
    """Write datalist.json whose testing section is a few images of another data set, as different as possible.

    Args:
        dataset_dir: folder of a synthetic data set.
        output_dir: folder to write to; the images stay where they are.
        count: number of images.
    Returns:
        path of the datalist.
    """
    from synboost_monai.data.datalist import DATALIST_NAME

    source = Path(dataset_dir, DATALIST_NAME)
    content = json.loads(read_text(source))
    items = [item for section in ("validation", "training", "testing") for item in content.get(section, [])]
    items = [item for item in items if "label" in item]
    if not items:
        raise ValueError(f"{source}: no synthetic image with a label map to choose examples from")

    chosen: list[dict[str, Any]] = []
    while items and len(chosen) < count:
        kinds, patients = [_kind(i) for i in chosen], [i.get("patient") for i in chosen]
        best = min(items, key=lambda item: (kinds.count(_kind(item)), patients.count(item.get("patient"))))
        items.remove(best)
        chosen.append(best)

    target = Path(output_dir, DATALIST_NAME)
    refuse_overwriting([target], [source])
    for item in chosen:
        for key in ("image", "label"):
            item[key] = Path(os.path.relpath(source.parent / item[key], target.parent)).as_posix()
    head = {key: value for key, value in content.items() if key not in ("training", "validation", "testing")}
    head |= {"name": "examples", "training": [], "validation": [], "testing": chosen}
    atomic_write_text(target, json.dumps(head, indent=1) + "\n")
    return target


def _kind(item: dict[str, Any]) -> tuple[Any, Any]:
    return item.get("view"), item.get("phase")


if __name__ == "__main__":
    write_examples(sys.argv[1], sys.argv[2])
