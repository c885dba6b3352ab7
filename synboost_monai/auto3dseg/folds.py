"""Read Auto3DSeg's datalist, make folds of whole patients, and write one fold as a data set that a bundle trains on.

MONAI's own reader (`datafold_read`) puts the data's folder before every text of an item, so before `apical_two_chamber` too; here only
paths are paths.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from synboost_monai.data import list_images
from synboost_monai.data.datalist import DATALIST_NAME, check_fully_labelled
from synboost_monai.data.splits import SECTIONS, check_disjoint, rank_patients
from synboost_monai.files import FRAME_SUFFIXES, METAIMAGE_SUFFIXES, atomic_write_text, image_suffix, read_text
from synboost_monai.formats.metaimage import check_for_other_readers
from synboost_monai.records import EchoRecord

Items = list[dict[str, Any]]

PATH_KEYS = ("image", "label")
"""Keys of an item's paths that segmenters need; sequences and sectors are left out."""
_KEPT = ("fold", *(f.name for f in fields(EchoRecord) if f.name not in ("sequence", "sequence_label", "sector")))


def read_items(datalist: str | os.PathLike[str], dataroot: str | os.PathLike[str]) -> dict[str, Items]:
    """Read the items of each section of a datalist (training, validation, testing), with absolute paths.

    If an item lacks patient, view or phase, they are taken from a name like CAMUS's (patient0001_4CH_ED).

    Args:
        datalist: the JSON file: training and testing, items with a `fold` (Auto3DSeg); or training, validation, testing (ours).
        dataroot: folder that the paths are relative to.
    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a datalist, or an item is not one image with (in training and validation) one label map.
    """
    path = Path(datalist)
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("training"), list) or not content["training"]:
        raise ValueError(f"{path}: expected a section `training` with items; is this a datalist?")
    sections = {name: content[name] for name in SECTIONS if isinstance(content.get(name), list)}
    return {
        name: [
            _item(raw, Path(dataroot), f"{path}: {name}[{number}]", name != "testing")
            for number, raw in enumerate(items)
        ]
        for name, items in sections.items()
    }


def with_folds(sections: Mapping[str, Items], num_fold: int | None, seed: int, where: str) -> Items:
    """Return the training items with a fold each, so that no patient is in two folds.

    Items that have folds keep them. Otherwise the patients of training and validation together are drawn into folds, the same ones as
    `synboost subset --fold` makes; with `num_fold` 1 the datalist's own validation is fold 0, and nothing is validated on the rest.

    Args:
        sections: from `read_items`.
        num_fold: number of folds; None: that of the items, else 5, or the number of patients if that is smaller.
        seed: of the drawing.
        where: the datalist, for messages.
    Raises:
        ValueError: if only some items have a fold, a patient or image is in two folds, items do not name their patient, or there
            are too few patients.
    """
    training = sections["training"]
    num_given = sum("fold" in item for item in training)
    if num_given:
        if num_given < len(training):
            number = next(i for i, item in enumerate(training) if "fold" not in item)
            raise ValueError(
                f"{where}: training[{number}] has no fold, others have; give every item one, or none of them"
            )
        folds = check_folds(training, where)
        if num_fold is not None and not 1 <= num_fold <= folds:
            raise ValueError(f"{where}: has {folds} folds, so num_fold must be 1 to {folds}, got {num_fold}")
        return [dict(item) for item in training]
    if num_fold == 1:
        if not sections.get("validation"):
            raise ValueError(
                f"{where}: num_fold 1 validates on the section `validation`, which is empty; raise num_fold"
            )
        both = [{**i, "fold": 1} for i in training] + [{**i, "fold": 0} for i in sections["validation"]]
        check_folds(both, where)
        return both
    pooled = [*training, *sections.get("validation", [])]
    for number, item in enumerate(pooled):
        if not item.get("patient"):
            raise ValueError(
                f"{where}: item {number} ({item['image']}) does not name its patient, and folds are made of whole patients; add the "
                "key `patient`, or a `fold` to every item"
            )
    patients = rank_patients((str(item["patient"]) for item in pooled), seed, "fold")
    count = min(5, len(patients)) if num_fold is None else num_fold
    if not 2 <= count <= len(patients):
        raise ValueError(f"{where}: num_fold must be 2 to the {len(patients)} patients, got {count}")
    fold_of = {patient: number % count for number, patient in enumerate(patients)}
    return [{**item, "fold": fold_of[str(item["patient"])]} for item in pooled]


def check_folds(items: Sequence[Mapping[str, Any]], where: str) -> int:
    """Check the folds of items, and return their number.

    Raises:
        ValueError: if folds are not numbered 0, 1, ..., or a patient or image is in two of them.
    """
    numbers = sorted({item["fold"] for item in items}, key=str)
    if numbers != list(range(len(numbers))):
        raise ValueError(f"{where}: folds must be numbered 0, 1, 2, ... without a gap, got {numbers}")
    for what in ("patient", "image"):
        names = {f"fold {n}": [str(i[what]) for i in items if i["fold"] == n and i.get(what)] for n in numbers}
        check_disjoint(names, where=where, what=what)
    return len(numbers)


def write_fold(
    datalist: str | os.PathLike[str],
    dataroot: str | os.PathLike[str],
    fold: int,
    folder: str | os.PathLike[str],
) -> Path:
    """Write one fold as a data set: the fold's items are validation, those of other folds (or of none) are training.

    Returns:
        the folder, which a bundle takes as `dataset_dir`.
    Raises:
        FileNotFoundError, ValueError: as in `read_items`, or if training or validation is empty or a patient or image is in both.
    """
    items = read_items(datalist, dataroot)["training"]
    parts: dict[str, Items] = {"training": [], "validation": []}
    for item in items:
        part = "validation" if item.get("fold") == fold else "training"
        parts[part].append({key: value for key, value in item.items() if key != "fold"})
    for name, members in parts.items():
        if not members:
            raise ValueError(f"{datalist}: fold {fold} leaves nothing for {name}; it needs items of two folds")
    for what in ("patient", "image"):
        names = {name: [str(item[what]) for item in members if item.get(what)] for name, members in parts.items()}
        check_disjoint(names, where=f"{datalist}, fold {fold}", what=what)
    content = {"name": f"fold {fold}", "description": f"fold {fold} of {datalist} is validation", **parts}
    atomic_write_text(Path(folder, DATALIST_NAME), json.dumps(content, indent=1) + "\n")
    return Path(folder)


def find_item(datalist: str | os.PathLike[str], dataroot: str | os.PathLike[str], image: str) -> dict[str, Any] | None:
    """Return an image's item in a datalist, found by the image's path; None if it, or the datalist, does not exist."""
    if not os.path.isfile(datalist):
        return None
    found = _raw_items(str(datalist), str(dataroot), os.stat(datalist).st_mtime_ns).get(os.path.realpath(image))
    return None if found is None else _item(*found, needs_label=False)


@lru_cache(maxsize=4)
def _raw_items(datalist: str, dataroot: str, time_ns: int) -> dict[str, tuple[Any, Path, str]]:
    """Return real path of an image -> its item as in the datalist, and the further arguments of `_item`."""
    content = json.loads(read_text(datalist))
    found: dict[str, tuple[Any, Path, str]] = {}
    for name in SECTIONS:
        for number, raw in enumerate(content.get(name) or []):
            image = raw.get("image") if isinstance(raw, dict) else raw
            if isinstance(image, str):
                path = os.path.realpath(os.path.join(dataroot, image))
                found.setdefault(path, (raw, Path(dataroot), f"{datalist}: {name}[{number}]"))
    return found


def _item(raw: Any, dataroot: Path, where: str, needs_label: bool) -> dict[str, Any]:
    """Return an item with absolute paths and the attributes that its name tells."""
    item = {"image": raw} if isinstance(raw, str) else raw
    if not isinstance(item, dict) or not item.get("image"):
        raise ValueError(f"{where}: expected an object with the key image, got {str(raw)[:60]}")
    for key in PATH_KEYS:
        if item.get(key) and not isinstance(item[key], str):
            raise ValueError(f"{where}: {key} must be the path of one file, got {item[key]!r}")
    if needs_label and not item.get("label"):
        raise ValueError(f"{where}: has no label map (key label), which training and validation need")
    if needs_label:
        check_fully_labelled([item], where)
    paths = {key: os.path.abspath(os.path.join(dataroot, item[key])) for key in PATH_KEYS if item.get(key)}
    if image_suffix(paths["image"]) not in FRAME_SUFFIXES:
        raise ValueError(f"{where}: {item['image']} is no NIfTI, MetaImage or PNG file by its name")
    if not os.path.isfile(paths["image"]):
        raise FileNotFoundError(f"{where}: image {paths['image']} does not exist; is dataroot right?")
    for path in paths.values():  # MONAI's analyser and its readers open them, too
        if image_suffix(path) in METAIMAGE_SUFFIXES and os.path.isfile(path):
            check_for_other_readers(Path(path))
    known = {key: item[key] for key in _KEPT if item.get(key) is not None}
    return {**list_images(paths["image"])[0], **known, **paths}
