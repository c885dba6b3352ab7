"""Merge several synthetic data sets into one, such as those of one model for each view and phase, as published."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synboost_monai.data.datalist import DATALIST_NAME, files_of, rebased_item
from synboost_monai.data.splits import SECTIONS, check_disjoint
from synboost_monai.files import read_text
from synboost_monai.paths import refuse_overwriting
from synboost_monai.synthesis.plan import NUM_CONTACT_SHEET_IMAGES, datalist_head
from synboost_monai.synthesis.writers import write_contact_sheet, write_json


def merge_synthetic(output_dir: str | os.PathLike[str], *dirs: str | os.PathLike[str]) -> Path:
    """Write datalist.json, provenance.json and contact_sheet.png of several finished synthetic data sets; no image is copied.

    Paths are relative to `output_dir`, so the folders must not be moved relative to each other. provenance.json lists the `parts`
    (folder, settings, checkpoint, versions) and all images, each with the number of its part.

    Args:
        output_dir: folder of the three files; it may contain the other folders, but not be one of them.
        dirs: folders that `synthesise` has finished.
    Returns:
        path of the datalist.
    Raises:
        FileNotFoundError: if a folder is not a finished synthetic data set.
        ValueError: if a folder is given twice or is `output_dir`, there are none, or a patient is in two sections.
    """
    target = Path(output_dir)
    folders = [Path(folder) for folder in dirs]
    _check_folders(target, folders)
    datalists = [_load(folder / DATALIST_NAME) for folder in folders]
    names = ("provenance.json", "contact_sheet.png", DATALIST_NAME)
    read = [folder / name for folder in folders for name in names]
    read += [Path(path) for folder, datalist in zip(folders, datalists) for path in files_of(datalist, folder)]
    refuse_overwriting([target / name for name in names], read)
    sections_there = [n for n in SECTIONS if any(n in datalist for datalist in datalists)]
    sections_there += sorted(
        {key for datalist in datalists for key, value in datalist.items() if isinstance(value, list)}
        - {*sections_there}
    )
    sections = {
        name: [
            rebased_item(item, folder, target)
            for folder, datalist in zip(folders, datalists)
            for item in datalist.get(name, [])
        ]
        for name in sections_there
    }
    check_disjoint({name: [str(i["patient"]) for i in items] for name, items in sections.items()}, where=str(target))
    parts = []
    for folder in folders:
        record = _load(folder / "provenance.json")
        kept = {key: record.get(key) for key in ("settings", "checkpoint", "dataset_dir", "versions")}
        parts.append({"folder": _relative(folder, target), "num_images": len(record["images"]), **kept})
    write_json(
        target / "provenance.json", {"parts": parts, "is_complete": True}, {"images": _provenance(folders, target)}
    )
    items = [item for part in sections.values() for item in part]
    spread = items[:: max(1, len(items) // NUM_CONTACT_SHEET_IMAGES)][:NUM_CONTACT_SHEET_IMAGES]
    write_contact_sheet(
        target / "contact_sheet.png", [(target / item["image"], target / item["label"]) for item in spread]
    )
    description = f"Made by {len(folders)} runs of semantic diffusion from perturbed label maps; see provenance.json."
    write_json(target / DATALIST_NAME, datalist_head(description), sections)
    return target / DATALIST_NAME


def _check_folders(target: Path, folders: list[Path]) -> None:
    if not folders:
        raise ValueError(f"{target}: no folder to merge was given; name the folders that synthesise made")
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() == target.resolve():
            raise ValueError(f"{folder}: is to be merged into itself; give another folder for the merged data set")
        if folder.resolve() in seen:
            raise ValueError(f"{folder}: is given twice; give each folder once")
        seen.add(folder.resolve())
        for name in (DATALIST_NAME, "provenance.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder}: expected {name}, so this is no finished synthetic data set; run synthesise with this output_dir first"
                )


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); run synthesise with this output_dir again") from error
    is_made_by_us = content.get("is_complete") and isinstance(content.get("images"), list)
    if path.name == "provenance.json" and not is_made_by_us:
        raise ValueError(f"{path}: is not the record of a finished data set; run synthesise with this output_dir first")
    return content


def _provenance(folders: list[Path], target: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of all images, with one folder's at a time in memory."""
    for number, folder in enumerate(folders):
        for record in _load(folder / "provenance.json")["images"]:
            yield {**rebased_item(record, folder, target), "part": number}


def _relative(path: Path, target: Path) -> str:
    return Path(os.path.relpath(os.path.realpath(path), os.path.realpath(target))).as_posix()
