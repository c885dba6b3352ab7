"""Read and write datalist.json, MONAI's decathlon form: the one file that every stage reads, for real, phantom and synthetic data.

    {"name": ..., "description": ..., "modality": "ultrasound", "labels": {"0": "background", ...},
     "training": [item, ...], "validation": [...], "testing": [...]}

An item has `image` and `label` (paths relative to the file) and, if known, patient, view, phase, sex, age,
image_quality, ejection_fraction, shape (structure's name -> word), sequence, sequence_label, sector (mask of the
ultrasound sector on the label map's grid), labelled_structures (names of those in the label map, if an expert
did not draw all of them) and is_synthetic. An item may lack the image or the label, but not both.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from synboost_monai.data.splits import SECTIONS, check_disjoint
from synboost_monai.files import (
    CLIP_SUFFIXES,
    FRAME_SUFFIXES,
    IMAGE_SUFFIXES,
    METAIMAGE_SUFFIXES,
    atomic_write_text,
    image_stem,
    image_suffix,
    is_dicom,
    read_text,
)
from synboost_monai.paths import PATH_KEYS
from synboost_monai.prompts.table import ATTRIBUTE, IMAGE_ATTRIBUTES
from synboost_monai.records import PHASES, SHAPES, VIEWS, EchoRecord
from synboost_monai.structures import CLASS_NAMES, STRUCTURES

logger = logging.getLogger(__name__)

T = TypeVar("T")

DATALIST_NAME = "datalist.json"
"""Name of the file in a data set's folder."""

SUMMARY_NAME = "summary.txt"
"""File beside datalist.json: counts, how the splits were made, what is missing, what was left out."""
_MAX_RECORD_BYTES = 1 << 20
_OWN_MARKS = {
    "settings.json": '"CASE_v',
    "provenance.json": '"synboost_monai"',
}  # written by `synthesise`, by `label-maps` and `merge`
_OWN_PICTURES = re.compile(r"contact_sheet\.png|prompt_sensitivity\.png|bland_altman_\w+\.png")
_DATA_SUFFIXES = (".raw", ".zraw")
_CLIPS = "clips (taken with --sequences true)"
_OTHER_DICOM = frozenset(
    {"not_dicom", "dicomdir", "other_modality", "not_an_image", "operating_system_file", "no_pixels"}
)
"""Reasons of the scan for files that were never meant to be segmented."""
_MAX_KINDS = 8
"""Largest number of kinds of skipped files that are listed."""
_VALUE_KEYS = ("patient", *IMAGE_ATTRIBUTES, "ejection_fraction")
_CHOICES = {name: tuple(words) for name in IMAGE_ATTRIBUTES if (words := ATTRIBUTE[name].words)}
_OPTIONAL_IN_EXTRA = ("validation", "testing")
"""Sections that an additional data set may lack."""
_WHY_APART = {
    "patient": "no model may learn from patients that judge it: make the synthetic data from this data set's sections (or, if these "
    "are different people, rename those of one data set)",
    "image": "take it out of one of them",
}
_CAMUS_NAME = re.compile(rf"(?P<patient>.+?)_(?P<view>{'|'.join(VIEWS)})(?:_(?P<phase>{'|'.join(PHASES)}))?(?:_|$)")


def write_datalist(
    path: str | os.PathLike[str],
    splits: Mapping[str, Sequence[EchoRecord]],
    *,
    name: str,
    description: str,
) -> Path:
    """Write the datalist of a data set, whole or not at all.

    Args:
        path: the JSON file, or the folder in which to write datalist.json.
        splits: section (training, validation, testing) -> records; paths are written relative to the file's folder.
        name: name of the data set.
        description: a sentence.
    Returns:
        Path of the file.
    Raises:
        ValueError: if a patient is in two splits or an attribute of a record has a value that prompts do not know.
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        path = path / DATALIST_NAME
    check_disjoint({section: (r.patient for r in records) for section, records in splits.items()}, where=str(path))
    base_dir = os.path.realpath(path.parent)
    content: dict[str, Any] = {
        "name": name,
        "description": description,
        "modality": "ultrasound",
        "labels": CLASS_NAMES,
    }
    for section, records in splits.items():
        content[section] = [_item_of(record, base_dir) for record in records]
        for number, item in enumerate(content[section]):
            _check_item(item, f"{path}: {section}[{number}]")
    atomic_write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def read_datalist(
    dataset_dir: str | os.PathLike[str],
    section: str | Sequence[str],
    *,
    limit: int | None = None,
    view: str | None = None,
    phase: str | None = None,
    extra_dir: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | None] | None = None,
    balance: bool = False,
    partly_labelled: bool = False,
) -> list[dict[str, Any]]:
    """Read the items of one section (or several) of a datalist, with absolute paths; the files must exist.

    For joint training on real and synthetic data, `dataset_dir` is the real data set and `extra_dir` the synthetic one, whose items of
    the same section follow. Models are best chosen on real data only: give `extra_dir` for training, not for validation.
    If `extra_dir` has no validation or testing section, nothing is added to those; it must have a training section.

    Args:
        dataset_dir: folder that contains datalist.json, or the JSON file itself.
        section: training, validation or testing; several as a list or joined by `+` (`training+validation`).
        limit: largest number of items of each data set, spread evenly over its list.
        view: only items of this view (apical_two_chamber, apical_four_chamber); None: all.
        phase: only items of this phase (end_diastole, end_systole); None: all.
        extra_dir: another data set, or several, whose items of the same section are added; None, also among several, adds nothing.
        balance: repeat the items of the smaller data sets a whole number of times, so that all have about as many: few real images
            then count as much as many synthetic ones.
        partly_labelled: accept items whose label maps show only some of the structures (`labelled_structures`), as in
            EchoNet-Dynamic; otherwise they are an error, since structures that nobody drew would count as absent.
    Raises:
        FileNotFoundError: if there is no datalist, or a file that it names is missing.
        ValueError: if a datalist is not valid or lacks the section, the section is empty, no item has that view and
            phase, or a patient is in two sections; with `extra_dir` also if a data set is given twice, or if a patient (for a
            synthetic image: the one whose label map it was made from) or an image is in different sections of the data sets.
    """
    paths = [find_datalist(Path(folder)) for folder in (dataset_dir, *_folders(extra_dir))]
    contents = [load_datalist(path) for path in paths]
    if len(paths) > 1:
        _check_joint(paths, contents)
    sections = section.split("+") if isinstance(section, str) else list(section)
    groups = []
    for number, (path, content) in enumerate(zip(paths, contents)):
        there = [one for one in sections if number == 0 or one not in _OPTIONAL_IN_EXTRA or content.get(one)]
        if not there:
            continue
        of_path = [item for one in there for item in _items_of_section(path, content, one)]
        of_path = _of_view_and_phase(of_path, view, phase, f"{path}: section {_joined(there)}")
        if not partly_labelled:
            check_fully_labelled(of_path, f"{path}: section {_joined(there)}")
        base_dir = path.parent.resolve()
        groups.append([_with_absolute_paths(item, base_dir, path) for item in spread(of_path, limit)])
    largest = max(map(len, groups))
    return [item for group in groups for item in group * (max(1, round(largest / len(group))) if balance else 1)]


def list_images(
    dataset_dir: str | os.PathLike[str],
    section: str | Sequence[str] = "testing",
    *,
    limit: int | None = None,
    sequences: bool = False,
    exclude: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """List images to segment: those of a datalist, of a folder and its subfolders, or one file.

    In a folder every NIfTI, MetaImage, PNG, JPEG, BMP or DICOM file counts (.dcm; with another name, if it is ultrasound in DICOM)
    except label maps (`..._gt`), sequences (`..._sequence`, AVI, MP4), hidden files, and results of an earlier segmentation (the label
    map and the spread that a CASE.json beside them names). Subfolders that another run made (a synthetic data set, sampled
    label maps, a study's run, results of DICOM studies) are skipped, unless given themselves. Skipped files are counted in
    one line of the log. Patient, view and phase are taken from names like those of CAMUS (patient0001_4CH_ED).

    Args:
        dataset_dir: folder of images, folder that contains datalist.json, the JSON file, or one image file.
        section: section of the datalist; ignored without a datalist.
        limit: largest number of images, spread evenly.
        sequences: include AVI, MP4 and files called `..._sequence` in a folder (`LoadEchod(sequences=True)` reads both kinds).
        exclude: subfolder to skip, such as the run's own output_dir.
    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if there are no images, or the datalist is invalid.
    """
    path = Path(dataset_dir)
    if _is_datalist(path):
        return read_datalist(path, section, limit=limit, partly_labelled=True)
    files, not_taken = _image_files(path, sequences, exclude, ("label_map", "spread"), nameless_dicom=True)
    images = [file for file in files if path.is_file() or not _is_label_map(file)]
    not_taken["label maps (..._gt)"] += len(files) - len(images)
    items = [_item_of_file(file) for file in images]
    _log_not_taken(path, not_taken)
    if not items:
        raise ValueError(
            f"{path}: no images ({', '.join(IMAGE_SUFFIXES)}; label maps ..._gt and results of `segment` do not count, clips with "
            f"--sequences true alone) and no {DATALIST_NAME}; give a folder of images or of a data set"
        )
    return spread(items, limit)


def list_label_maps(
    dataset_dir: str | os.PathLike[str],
    section: str | Sequence[str] = "training",
    *,
    limit: int | None = None,
    view: str | None = None,
    phase: str | None = None,
    exclude: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """List label maps to synthesise from: items with a `label`, of a datalist, a folder or one file.

    In a folder the files called `..._gt` are the label maps and the file without `_gt`, if it exists, is the
    image; if there are none, every image file counts as a label map, including those that `segment` wrote.

    Args:
        dataset_dir, section, limit, exclude: as `list_images`.
        view, phase: as `read_datalist`; in a folder they are taken from names like those of CAMUS (patient0001_4CH_ED).
    Raises:
        FileNotFoundError, ValueError: as `list_images` and `read_datalist`.
    """
    path = Path(dataset_dir)
    if _is_datalist(path):
        items = [item for item in read_datalist(path, section, view=view, phase=phase) if "label" in item]
        if not items:
            raise ValueError(
                f"{path}: no item of section {_joined(section)} has a label map; give a section with labels"
            )
        return spread(items, limit)
    files, not_taken = _image_files(path, exclude=exclude, left_out=("spread",))
    _log_not_taken(path, not_taken)
    label_paths = [file for file in files if _is_label_map(file)] or [file for file in files if not is_dicom(file)]
    label_paths = [file for file in label_paths if image_suffix(file) not in CLIP_SUFFIXES]
    if not label_paths:
        raise ValueError(
            f"{path}: no label maps ({', '.join(FRAME_SUFFIXES)}) and no {DATALIST_NAME}; give a folder of label maps "
            "or of a data set"
        )
    items = _of_view_and_phase([_item_of_label(file) for file in label_paths], view, phase, str(path))
    return spread(items, limit)


# ---- items


def _item_of(record: EchoRecord, base_dir: str) -> dict[str, Any]:
    """Convert a record to an item; unknown attributes are left out."""
    item: dict[str, Any] = {}
    for key in PATH_KEYS:
        file = getattr(record, key)
        if file is not None:
            # the folder is resolved, the file is not: a data set may consist of links into a store
            real = os.path.join(os.path.realpath(Path(file).parent), Path(file).name)
            item[key] = Path(os.path.relpath(real, base_dir)).as_posix()
    item.update({key: getattr(record, key) for key in _VALUE_KEYS if getattr(record, key) is not None})
    if record.shape:
        item["shape"] = dict(record.shape)
    if record.labelled_structures is not None:
        item["labelled_structures"] = list(record.labelled_structures)
    item["is_synthetic"] = record.is_synthetic
    return item


def _check_item(item: Any, where: str) -> None:
    """Raise ValueError unless an item has an image or label and its attributes have values that prompts know."""
    if not isinstance(item, dict) or not ("image" in item or "label" in item):
        raise ValueError(f"{where}: expected an object with the key image (and label), got {str(item)[:60]}")
    for key in PATH_KEYS:
        if key in item and (not isinstance(item[key], str) or not item[key]):
            raise ValueError(f"{where}: {key} must be a path, got {item[key]!r}")
    for key, choices in _CHOICES.items():
        if key in item and item[key] not in choices:
            raise ValueError(f"{where}: {key} must be {' or '.join(choices)}, got {item[key]!r}")
    for key, expected in (("age", int), ("ejection_fraction", (int, float))):
        if key in item and (isinstance(item[key], bool) or not isinstance(item[key], expected)):
            raise ValueError(f"{where}: {key} must be a number, got {item[key]!r}")
    shape = item.get("shape", {})
    if not isinstance(shape, dict) or any(word not in SHAPES for word in shape.values()):
        raise ValueError(f"{where}: shape must give each structure's name one of {', '.join(SHAPES)}, got {shape!r}")
    labelled = item.get("labelled_structures", [STRUCTURES[0].name])
    if not isinstance(labelled, list) or not labelled or not all(isinstance(name, str) for name in labelled):
        raise ValueError(f"{where}: labelled_structures must be a list of structures' names, got {labelled!r}")
    for key, names in (("shape", shape), ("labelled_structures", labelled)):
        if unknown := set(names) - {structure.name for structure in STRUCTURES}:
            known = ", ".join(structure.name for structure in STRUCTURES)
            raise ValueError(f"{where}: {key} names {', '.join(sorted(unknown))}, but the structures are {known}")


def _item_of_file(path: Path) -> dict[str, Any]:
    """Return an item for an image file, with the attributes in its name."""
    return {"image": str(path), **_attributes_of_name(image_stem(path))}


def _item_of_label(path: Path) -> dict[str, Any]:
    """Return an item for a label map file, with the image beside it if there is one."""
    stem = image_stem(path).removesuffix("_gt")
    item = {"label": str(path), **_attributes_of_name(stem)}
    beside = [path.with_name(stem + suffix) for suffix in IMAGE_SUFFIXES if suffix not in CLIP_SUFFIXES]
    image = next((file for file in beside if file != path and file.is_file()), None)
    return {"image": str(image), **item} if image else item


def _attributes_of_name(stem: str) -> dict[str, str]:
    """Return patient, view and phase of a name like patient0001_4CH_ED, no phase of patient0001_4CH_sequence, nothing of other names."""
    match = _CAMUS_NAME.match(stem)
    if match is None:
        return {}
    found = {"patient": match["patient"], "view": VIEWS[match["view"]]}
    return found if match["phase"] is None else {**found, "phase": PHASES[match["phase"]]}


def _with_absolute_paths(item: dict[str, Any], base_dir: Path, datalist: Path) -> dict[str, Any]:
    """Return the item with absolute paths.

    Raises:
        FileNotFoundError: if a file is missing.
    """
    found = {key: os.path.normpath(base_dir / item[key]) for key in PATH_KEYS if key in item}
    for key, path in found.items():
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{datalist}: {key} {path} does not exist; put the data back where it was or make the datalist again "
                "(synboost prepare)"
            )
    return {**item, **found}


# ---- files and sections


def _is_datalist(path: Path) -> bool:
    """Return whether a path is a datalist or a folder that contains one."""
    return path.suffix.lower() == ".json" or (path / DATALIST_NAME).is_file()


def find_datalist(path: Path) -> Path:
    """Return the JSON file of a data set.

    Raises:
        FileNotFoundError: if there is none.
    """
    if path.is_dir():
        if not (path / DATALIST_NAME).is_file():
            raise FileNotFoundError(
                f"{path}: expected {DATALIST_NAME} in this folder; make it from a CAMUS folder with `synboost prepare "
                "DATASET OUT` and give OUT"
            )
        return path / DATALIST_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such folder or datalist; give the folder that holds {DATALIST_NAME}")
    return path


def rebased_item(
    item: Mapping[str, Any], old_dir: str | os.PathLike[str], new_dir: str | os.PathLike[str]
) -> dict[str, Any]:
    """Return an item whose paths are relative to another folder; its files are not moved."""
    target = os.path.realpath(new_dir)
    moved = {
        key: os.path.relpath(os.path.realpath(Path(old_dir, item[key])), target) for key in PATH_KEYS if item.get(key)
    }
    return {**item, **{key: Path(path).as_posix() for key, path in moved.items()}}


def check_fully_labelled(items: Sequence[Mapping[str, Any]], where: str) -> None:
    """Refuse items whose label maps show only some of the structures.

    Args:
        items: items of a datalist.
        where: file and section, for the message.
    Raises:
        ValueError: names the first such item.
    """
    for item in items:
        names = item.get("labelled_structures")
        if names is not None and len(set(names)) < len(STRUCTURES):
            raise ValueError(
                f"{where}: the label map {item.get('label')} shows {', '.join(names)} alone, and what nobody drew would count as "
                "absent; such data can be segmented and evaluated, give data with every structure labelled for anything else"
            )


def files_of(content: Mapping[str, Any], folder: Path) -> list[str]:
    """List every file that a datalist's items name, whether or not it exists.

    Args:
        content: content of the datalist.
        folder: folder that its paths are relative to.
    """
    items = [item for part in content.values() if isinstance(part, list) for item in part if isinstance(item, Mapping)]
    return [os.path.join(folder, str(item[key])) for item in items for key in PATH_KEYS if item.get(key)]


def load_datalist(path: Path) -> dict[str, Any]:
    """Read a datalist's content and check that no patient is in two sections.

    Raises:
        ValueError: if the file is not a datalist or a patient is in two sections.
    """
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); make the datalist again") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: expected an object with the sections {', '.join(SECTIONS)}, got a {type(content).__name__}"
        )
    check_disjoint(_names_of_sections(content, "patient"), where=str(path))
    check_disjoint(_names_of_sections(content, "image"), where=str(path), what="image")
    return content


def _names_of_sections(content: Mapping[str, Any], key: str) -> dict[str, list[str]]:
    """Return section -> values of a key in its items, without items that lack it."""
    return {
        section: [str(item[key]) for item in value if isinstance(item, dict) and item.get(key) is not None]
        for section, value in content.items()
        if isinstance(value, list) and any(isinstance(item, dict) for item in value)
    }


def _folders(
    extra_dir: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | None] | None,
) -> list[str | os.PathLike[str]]:
    """Return one folder, several or none as a list; None and an empty name are no folder."""
    several = [extra_dir] if extra_dir is None or isinstance(extra_dir, (str, os.PathLike)) else extra_dir
    return [folder for folder in several if folder is not None and folder != ""]


def _check_joint(paths: Sequence[Path], contents: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if one data set is given twice, or a patient or image is in different sections of two data sets.

    A synthetic image shows the heart of the patient whose label map it was made from, so to train on it is to train on that patient.
    """
    real_paths = [path.resolve() for path in paths]
    for path, real_path in zip(paths, real_paths):
        if real_paths.count(real_path) > 1:
            raise ValueError(f"{path}: is given twice, as dataset_dir and extra_dir; give each data set once")
    seen: dict[str, dict[str, tuple[str, Path]]] = {"patient": {}, "image": {}}
    for path, content in zip(paths, contents):
        for what, places in seen.items():
            for section, names in _names_of_sections(content, what).items():
                for name in names:
                    key = os.path.normpath(path.parent.resolve() / name) if what == "image" else name
                    other_section, other_path = places.setdefault(key, (section, path))
                    if other_section != section:
                        raise ValueError(
                            f"{path}: {what} {name} is in section {section}, but in section {other_section} of {other_path}; "
                            f"{_WHY_APART[what]}"
                        )


def _items_of_section(path: Path, content: Mapping[str, Any], section: str) -> list[dict[str, Any]]:
    """Return the checked items of a section.

    Raises:
        ValueError: if the section is missing or empty or has an invalid item.
    """
    existing = [f"{key} ({len(value)})" for key, value in content.items() if isinstance(value, list)]
    items = content.get(section)
    if not isinstance(items, list):
        raise ValueError(f"{path}: no section is called {section!r}; there are {', '.join(existing) or 'none'}")
    if not items:
        raise ValueError(f"{path}: section {section!r} is empty; there are {', '.join(existing)}")
    # MONAI's own writers store only the path for an image without label
    items = [{"image": item} if isinstance(item, str) else item for item in items]
    for number, item in enumerate(items):
        _check_item(item, f"{path}: {section}[{number}]")
    return items


def _image_files(
    path: Path,
    sequences: bool = False,
    exclude: str | os.PathLike[str] | None = None,
    left_out: Sequence[str] = (),
    nameless_dicom: bool = False,
) -> tuple[list[Path], Counter[str]]:
    """Return the image files of a folder and its subfolders, sorted, and the number of other files of each kind.

    Args:
        path: folder or file.
        sequences: take AVI, MP4 and files called `..._sequence` too.
        exclude: subfolder to skip.
        left_out: kinds of results of earlier runs to leave out (see `_results_in`).
        nameless_dicom: look for ultrasound in DICOM files whose names do not end like those of images.
    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: if it is a file of another kind.
    """
    not_taken: Counter[str] = Counter()
    if path.is_file():
        if image_suffix(path) is None and not is_dicom(path):
            raise ValueError(
                f"{path}: not an image by its name; expected {', '.join(IMAGE_SUFFIXES)} or {DATALIST_NAME}"
            )
        return [path.absolute()], not_taken
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: no such file or folder; give a folder of images or one that holds {DATALIST_NAME}"
        )
    files = []
    excluded = None if exclude is None else os.path.realpath(exclude)
    root = str(path.resolve())
    for folder, folder_names, names in os.walk(root):
        if folder != root and _is_own_data(folder, names, folder_names):
            folder_names.clear()
            continue
        folder_names[:] = sorted(name for name in folder_names if not name.startswith("."))
        for name in [name for name in folder_names if os.path.join(folder, name) == excluded]:
            _check_excluded(Path(folder, name), sequences)
            folder_names.remove(name)
        results = _results_in(folder, names, left_out)
        headers = {image_stem(name) for name in names if image_suffix(name) in METAIMAGE_SUFFIXES}
        for name in sorted(names):
            file = Path(folder) / name
            stem, suffix = os.path.splitext(name)
            if name in results or _OWN_PICTURES.fullmatch(name):
                not_taken["results of an earlier run"] += 1
            elif name.startswith("."):
                not_taken["hidden"] += 1
            elif not sequences and image_stem(name).removesuffix("_gt").endswith("_sequence"):
                not_taken["sequences (..._sequence)"] += 1
            elif not sequences and image_suffix(name) in CLIP_SUFFIXES:
                not_taken[_CLIPS] += 1
            elif image_suffix(name) or (nameless_dicom and is_dicom(file) and _is_ultrasound(file)):
                files.append(file)
            elif not (suffix.lower() in _DATA_SUFFIXES and stem in headers):  # the pixels of a .mhd
                not_taken[_kind_of(file, "DICOM without an ultrasound image" if nameless_dicom else "DICOM")] += 1
    return files, not_taken


def _is_ultrasound(path: Path) -> bool:
    """Return whether a DICOM file, by its header, is one to segment, or might be if it were not damaged."""
    from synboost_monai.dicom.reading.scan import scan

    if path.name.upper() == "DICOMDIR":  # a table of contents, damaged or not
        return False
    (file,) = scan(os.path.realpath(path))
    return file.reason is None or file.reason.reason.code not in _OTHER_DICOM


def _kind_of(path: Path, dicom: str) -> str:
    """Return the log's name for the kind of a skipped file (DICOM as given); of its name no more than a plain suffix."""
    if is_dicom(path):
        return dicom
    suffix = path.suffix.lower()
    if not suffix:
        return "without suffix"
    return suffix if re.fullmatch(r"\.[a-z0-9_]{1,10}", suffix) else "of other names"


def _log_not_taken(path: Path, counts: Mapping[str, int]) -> None:
    """Log one line about the other files of a folder."""
    kinds = sorted(((kind, count) for kind, count in counts.items() if count), key=lambda pair: (-pair[1], pair[0]))
    if not kinds:
        return
    total = sum(count for _, count in kinds)
    listed = [f"{count} {kind}" for kind, count in kinds[:_MAX_KINDS]]
    if len(kinds) > _MAX_KINDS:
        listed.append(f"{sum(count for _, count in kinds[_MAX_KINDS:])} others")
    logger.warning(f"{path}: {total} {'files were' if total > 1 else 'file was'} not taken: {', '.join(listed)}")


def _check_excluded(path: Path, sequences: bool) -> None:
    """Refuse an output folder within the input that holds input images, which would be skipped silently.

    Raises:
        ValueError: names the first such image.
    """
    if _is_own_data(str(path), *_names_in(path)):
        return
    others, _ = _image_files(path, sequences, left_out=("label_map", "spread"))
    if others:
        raise ValueError(
            f"{path}: the output would lie among the input: it holds {others[0].name}, which is no result of an earlier run"
            f"{f', and {len(others) - 1} more such files' if len(others) > 1 else ''}; give another output_dir"
        )


def _names_in(path: Path) -> tuple[list[str], list[str]]:
    """Return the names of the files and of the folders in a folder."""
    _, folder_names, names = next(os.walk(path))
    return names, folder_names


def _is_own_data(folder: str, names: Sequence[str], folder_names: Sequence[str]) -> bool:
    """Return whether a run made this subfolder: synthetic images, label maps, a study's run, results of DICOM studies."""
    if "ledger.sqlite" in names or ("study.yaml" in names and ".stages" in folder_names):
        return True
    marks = [(name, mark) for name, mark in _OWN_MARKS.items() if name in names]
    return any(mark in _beginning(os.path.join(folder, name)) for name, mark in marks)


def _beginning(path: str) -> str:
    """Return the beginning of a text file, empty if it cannot be read."""
    if not os.path.isfile(path):  # opening a pipe would block
        return ""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(_MAX_RECORD_BYTES)
    except (OSError, ValueError):  # not one of our files
        return ""


def _results_in(folder: str, names: Sequence[str], kinds: Sequence[str]) -> set[str]:
    """Return the files of a folder that a CASE.json beside them names as results of a segmentation, and that record itself.

    Args:
        folder: path of the folder.
        names: names of its files.
        kinds: keys of such a record: label_map, spread.
    """
    stems = {image_stem(name) for name in names if image_suffix(name)} if kinds else set()
    found: set[str] = set()
    for name in names:
        if not name.endswith(".json") or name.removesuffix(".json") not in stems:
            continue
        try:
            record = json.loads(_beginning(os.path.join(folder, name)))
        except (ValueError, RecursionError):  # not one of our files
            continue
        if isinstance(record, dict) and {"synboost_version", "label_map"} <= record.keys():
            found.add(name)
            found.update(str(record[kind]) for kind in kinds if record.get(kind))
    return found


def _is_label_map(path: Path) -> bool:
    """Return whether a file is named as CAMUS names label maps."""
    return image_stem(path).endswith("_gt")


def _of_view_and_phase(
    items: list[dict[str, Any]], view: str | None, phase: str | None, where: str
) -> list[dict[str, Any]]:
    """Return the items of a view and a phase.

    Raises:
        ValueError: if a view or phase is unknown, or no item is left.
    """
    wanted = {key: word for key, word in (("view", view), ("phase", phase)) if word is not None}
    for key, word in wanted.items():
        if word not in _CHOICES[key]:
            raise ValueError(f"{key} must be {' or '.join(_CHOICES[key])}, got {word!r}")
    kept = [item for item in items if all(item.get(key) == word for key, word in wanted.items())]
    if wanted and not kept:
        there = Counter(" ".join(str(item.get(key, f"without {key}")) for key in wanted) for item in items)
        counts = ", ".join(f"{words} ({count})" for words, count in sorted(there.items()))
        raise ValueError(f"{where}: no item is {' '.join(wanted.values())}; there are {counts or 'none'}")
    return kept


def spread(items: Sequence[T], limit: int | None) -> list[T]:
    """Return at most `limit` items, spread evenly over the list."""
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    return [items[i * len(items) // limit] for i in range(limit)]


def _joined(section: str | Sequence[str]) -> str:
    return section if isinstance(section, str) else "+".join(section)
