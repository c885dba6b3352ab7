"""Read a folder of CAMUS (Leclerc et al. 2019) in any of its forms, whole or partial, and report what it lacks.

Current release:
    database_nifti/patient0001/patient0001_{2CH,4CH}_{ED,ES}[_gt].nii.gz, ..._half_sequence[_gt].nii.gz
    database_nifti/patient0001/Info_{2CH,4CH}.cfg
    database_split/subgroup_{training,validation,testing}.txt
First release:
    {training,testing}/patient0001/patient0001_{2CH,4CH}_{ED,ES}[_gt].mhd + .raw, ..._sequence.mhd, Info_{2CH,4CH}.cfg

Every image and label map is read in full; damaged ones are left out and named in the summary.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synboost_monai.data.splits import (
    SECTIONS,
    carve,
    check_disjoint,
    divide_as_paper,
    divide_official,
    take_subset,
)
from synboost_monai.data.summary import count_records, some, strict_message, summary_text
from synboost_monai.files import (
    METAIMAGE_SUFFIXES,
    NIFTI_SUFFIXES,
    Plane,
    count_frames,
    image_stem,
    read_plane,
    read_text,
)
from synboost_monai.records import IMAGE_QUALITIES, PHASES, VIEWS, EchoRecord
from synboost_monai.structures import NUM_CLASSES, STRUCTURES, Structure

if TYPE_CHECKING:
    from numpy.typing import NDArray

ShapeRule = Callable[["NDArray[Any]", "NDArray[np.bool_]", tuple[float, float], Structure], "str | None"]
"""Function (image (H, W), mask (H, W), spacing_mm (row, column), structure) -> word of `records.SHAPES` or None."""

UNLABELLED = "unlabelled"
"""Section for the testing patients of a release that does not publish their label maps."""

_SUFFIXES = NIFTI_SUFFIXES + METAIMAGE_SUFFIXES
_SEXES = {"F": "female", "M": "male", "FEMALE": "female", "MALE": "male"}
_ATTRIBUTE_NAMES = {"sex": "Sex", "age": "Age", "image_quality": "ImageQuality", "ejection_fraction": "EF"}


@dataclass(frozen=True)
class CamusSummary:
    """Hold what was found, decided and missed; `str()` returns it as text."""

    root: Path
    release: str
    """`current` (one folder of patients) or `first` (training/ and testing/)."""
    counts: Mapping[str, Mapping[str, int]]
    """Section -> patients, images, and images by view and phase."""
    notes: tuple[str, ...]
    """Decisions: how the splits were made, which part was taken."""
    lacks: tuple[str, ...]
    """What is missing from the whole copy: a view, Info_*.cfg, a split."""
    problems: tuple[str, ...]
    """Single files or patients that are missing or damaged."""

    def __str__(self) -> str:
        """Return several lines: counts by section, then decisions, lacks and problems (the first 20 of each)."""
        groups = {"Splits": self.notes, "This copy lacks": self.lacks, "Problems": self.problems}
        return summary_text(f"CAMUS, {self.release} release: {self.root}", self.counts, groups)


@dataclass(frozen=True)
class CamusDataset:
    """Hold the echocardiograms of a copy of CAMUS."""

    splits: dict[str, list[EchoRecord]]
    """training, validation, testing (and `UNLABELLED` if there are any), each sorted by patient, view, phase."""
    summary: CamusSummary


@dataclass
class _Layout:
    """Hold the locations of a copy's files."""

    release: str
    patient_dirs: dict[str, Path]
    """Patient -> folder."""
    lists: dict[str, list[str]]
    """Official section -> patients; empty if the copy has no split at all."""
    lacks: list[str] = field(default_factory=list)


@dataclass
class _Reading:
    """Collect what reading finds."""

    layout: _Layout
    shape_rule: ShapeRule | None
    file_names: dict[str, set[str]]
    """Patient -> file names in its folder."""
    problems: list[str] = field(default_factory=list)
    digests: dict[Path, str] = field(default_factory=dict)
    """Image -> SHA-256 of its pixels."""
    absent_keys: Counter[str] = field(default_factory=Counter)
    """Attribute -> number of Info_*.cfg files without it."""
    num_cfg: int = 0

    @cached_property
    def kinds(self) -> set[str]:
        """Return the kinds of files that any patient has, without the patient's name: `4CH_ED`, `4CH_ED_gt`, `Info_4CH.cfg`."""
        prefixes = {patient: f"{folder.name}_" for patient, folder in self.layout.patient_dirs.items()}
        return {
            image_stem(name).removeprefix(prefixes[patient])
            for patient, names in self.file_names.items()
            for name in names
        }


def read_camus(
    root: str | os.PathLike[str],
    *,
    split: str = "official",
    strict: bool = False,
    shape_source: str | os.PathLike[str] = "rule",
    max_training_patients: int | None = None,
    training_fraction: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> CamusDataset:
    """Read the labelled echocardiograms of a copy of CAMUS, by split, and verify each file by reading it.

    Splits: `official` takes database_split/ or the folders training/ and testing/; `paper` takes the first 50 of the
    450 patients outside the test set for validation. If a copy has no (labelled) testing patients, the official
    validation patients are used for testing, and a tenth of the training patients is drawn for validation. A copy without any
    split: 80 % training, 10 % validation, 10 % testing, drawn by `seed`. The first release numbers its testing
    patients from 1 again: here they are called `testing_patientNNNN`.

    Args:
        root: the folder that contains database_nifti/, that folder itself, a plain folder of patientNNNN, or the folder
            that contains training/ and testing/ of the first release.
        split: `official` or `paper`.
        strict: whether anything missing or damaged is an error.
        shape_source: `rule` (`prompts.attributes.shape_of_mask`), `none`, or the folder of a visual question answering
            model (`prompts.attributes.ask_shape`).
        max_training_patients: largest number of training patients; a smaller part is contained in a larger one.
        training_fraction: the same limit as a share, 0 < fraction <= 1.
        seed: seed for all draws of patients.
        progress: whether to show a progress bar on stderr.
    Raises:
        FileNotFoundError: if `root` is not a folder.
        ValueError: if it holds no CAMUS data, a patient is in two splits, or, with `strict`, anything is missing or damaged.
    """
    if split not in ("official", "paper"):
        raise ValueError(f"camus.py: split must be official or paper, got {split!r}")
    take_subset(["one"], max_training_patients, training_fraction, seed)  # report a bad size before minutes of reading
    root = Path(root).expanduser()
    shape_rule = _shape_rule(shape_source)
    layout = _find_layout(root)
    check_disjoint(layout.lists, where=str(root))

    file_names = {patient: set(os.listdir(folder)) for patient, folder in layout.patient_dirs.items()}
    reading = _Reading(layout, shape_rule, file_names)
    records = _read_patients(reading, progress)
    notes: list[str] = []
    splits = _divide(records, layout, split, seed, notes, reading.problems)
    _check_no_patient_twice(splits, reading.digests, root, notes)
    if max_training_patients is not None or training_fraction is not None:
        patients = sorted({record.patient for record in splits["training"]})
        chosen = set(take_subset(patients, max_training_patients, training_fraction, seed))
        splits["training"] = [record for record in splits["training"] if record.patient in chosen]
        notes.append(f"training: {len(chosen)} of {len(patients)} patients, drawn by seed {seed}, as asked")

    lacks = layout.lacks + _lacks_of(reading)
    counts = {section: count_records(part) for section, part in splits.items()}
    summary = CamusSummary(root, layout.release, counts, tuple(notes), tuple(lacks), tuple(reading.problems))
    if strict and (lacks or reading.problems):
        raise ValueError(strict_message("camus.py", root, [*lacks, *reading.problems]))
    return CamusDataset(splits, summary)


# ---- where the files are


def _find_layout(root: Path) -> _Layout:
    """Recognise the release and the official lists.

    Raises:
        FileNotFoundError, ValueError: if there is nothing to read.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"camus.py: the data set folder {root} does not exist; give the folder of your copy of CAMUS"
        )
    inner = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    for base in (root, *inner):  # one level down: archives unpack into their own folder
        if (base / "database_nifti").is_dir():
            return _flat_layout(base / "database_nifti", base / "database_split")
        if _patients_in(base / "training") or _patients_in(base / "testing"):
            return _folder_layout(base)
        if _patients_in(base):
            beside = base.parent / "database_split"
            return _flat_layout(base, beside if beside.is_dir() else base / "database_split")
    found = ", ".join(path.name for path in inner[:5]) or "no folders"
    raise ValueError(
        f"camus.py: {root} holds no CAMUS data: expected database_nifti/ (current release), training/ and testing/ "
        f"(first release) or folders patientNNNN, found {found}; give the folder of your copy"
    )


def _patients_in(folder: Path) -> dict[str, Path]:
    """Return patient -> folder for the folders called patientNNNN."""
    if not folder.is_dir():
        return {}
    folders = [path for path in sorted(folder.iterdir()) if re.fullmatch(r"patient\d+", path.name)]
    return {path.name: path for path in folders if path.is_dir()}


def _flat_layout(images_dir: Path, split_dir: Path) -> _Layout:
    """Describe the current release: one folder of patients, and text files that name the splits."""
    patient_dirs = _patients_in(images_dir)
    if not patient_dirs:
        raise ValueError(f"camus.py: {images_dir} holds no folders patientNNNN; give the folder of your copy of CAMUS")
    layout = _Layout("current", patient_dirs, {})
    for section in SECTIONS:
        path = split_dir / f"subgroup_{section}.txt"
        if path.is_file():
            lines = read_text(path, errors="replace").split()
            layout.lists[section] = list(dict.fromkeys(lines))
    if not layout.lists:
        layout.lacks.append(f"no official split: no subgroup_*.txt in {split_dir.name}/ beside the patients")
    else:
        layout.lacks += [
            f"no {s} patients: subgroup_{s}.txt is missing or empty" for s in SECTIONS if not layout.lists.get(s)
        ]
    numbers = {int(patient[7:]) for patient in patient_dirs}
    named = {patient for patients in layout.lists.values() for patient in patients}
    gaps = [f"patient{n:04d}" for n in range(1, max(numbers)) if n not in numbers and f"patient{n:04d}" not in named]
    if gaps:
        layout.lacks.append(f"{len(gaps)} patients below {max(patient_dirs)} ({some(gaps)})")
    return layout


def _folder_layout(base: Path) -> _Layout:
    """Describe the first release: training/ and testing/ are the split; testing/ counts its patients from 1 again."""
    training, testing = _patients_in(base / "training"), _patients_in(base / "testing")
    patient_dirs = {**training, **{f"testing_{patient}": folder for patient, folder in testing.items()}}
    lists = {"training": list(training), "testing": [f"testing_{patient}" for patient in testing]}
    lacks = [
        f"no {section} patients: the folder {section}/ is missing or empty" for section in lists if not lists[section]
    ]
    return _Layout("first", patient_dirs, {section: patients for section, patients in lists.items() if patients}, lacks)


# ---- reading


def _read_patients(reading: _Reading, progress: bool) -> dict[str, list[EchoRecord]]:
    """Return the records of every patient that is in a split (or of all patients, if there is no split)."""
    from tqdm import tqdm

    layout = reading.layout
    listed = [patient for patients in layout.lists.values() for patient in patients]
    for section, patients in layout.lists.items():
        absent = [patient for patient in patients if patient not in layout.patient_dirs]
        reading.problems += [f"{patient}: named in subgroup_{section}.txt but has no folder" for patient in absent]
    if layout.lists:
        unlisted = sorted(set(layout.patient_dirs) - set(listed))
        reading.problems += [f"{patient}: in none of the split files; left out" for patient in unlisted]

    chosen = sorted(set(listed) & set(layout.patient_dirs)) if layout.lists else sorted(layout.patient_dirs)
    views = {view: [phase for phase in PHASES if f"{view}_{phase}" in reading.kinds] for view in VIEWS}
    records = {}
    for patient in tqdm(chosen, desc="reading CAMUS", unit="patient", disable=not progress, mininterval=0.5):
        found = [record for view in VIEWS for record in _read_view(reading, patient, view, views[view])]
        if found:
            records[patient] = found
    return records


def _read_view(reading: _Reading, patient: str, view: str, phases: list[str]) -> list[EchoRecord]:
    """Return the records of one patient's view; faults are added to the problems."""
    folder, names = reading.layout.patient_dirs[patient], reading.file_names[patient]
    stem = f"{folder.name}_{view}"
    present = [phase for phase in phases if _find(names, f"{stem}_{phase}")]
    absent = [phase for phase in phases if phase not in present]
    if absent:
        reading.problems.append(f"{patient} {view}: no {' and no '.join(absent)} image")
    if not present:
        return []

    attributes = _read_attributes(reading, patient, view)
    records = []
    shape: tuple[int, ...] = ()
    for phase in present:
        try:
            record, shape = _read_phase(reading, patient, view, phase)
            records.append(replace(record, **attributes))
        except (ValueError, FileNotFoundError) as error:
            reading.problems.append(f"{patient} {view} {phase}: {_without(error, folder)}; left out")
    if records:
        sequences = _check_sequences(reading, patient, view, shape)
        records = [replace(record, **sequences) for record in records]
    return records


def _read_phase(reading: _Reading, patient: str, view: str, phase: str) -> tuple[EchoRecord, tuple[int, ...]]:
    """Read and check one image and its label map, and return their record and the image's shape.

    Raises:
        FileNotFoundError, ValueError: if one of the two cannot be used.
    """
    folder, names = reading.layout.patient_dirs[patient], reading.file_names[patient]
    stem = f"{folder.name}_{view}_{phase}"
    image_path = folder / str(_find(names, stem))
    image = read_plane(image_path)
    if image.pixels.min() == image.pixels.max():
        raise ValueError(f"image is blank (every pixel is {image.pixels.min()}); re-download this patient")
    label_name = _find(names, f"{stem}_gt")
    label_path = folder / label_name if label_name else None
    words: dict[str, str] = {}
    if label_path is not None:
        label = read_plane(label_path)
        _check_label_map(image, label)
        words = _shapes(reading.shape_rule, image, label.pixels)
    reading.digests[image_path] = sha256(str(image.pixels.shape).encode() + image.pixels.tobytes()).hexdigest()
    record = EchoRecord(image_path, label_path, patient, VIEWS[view], PHASES[phase], shape=words)
    return record, image.pixels.shape


def _check_label_map(image: Plane, label: Plane) -> None:
    """Raise ValueError unless the label map has the image's grid and only the four classes of structures.py."""
    if image.pixels.shape != label.pixels.shape:
        sizes = f"image is {image.pixels.shape} but label map is {label.pixels.shape}"
        raise ValueError(f"{sizes} (rows, columns); re-download this patient")
    values = np.unique(label.pixels)
    if not np.isin(values, np.arange(NUM_CLASSES)).all():
        found = some([f"{value:g}" for value in values], 8)
        raise ValueError(
            f"label map has the classes {found} where 0 to {NUM_CLASSES - 1} are known; re-download this patient"
        )
    if values.max() == 0:
        raise ValueError("label map is empty (background alone); re-download this patient")


def _check_sequences(reading: _Reading, patient: str, view: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return `sequence` and `sequence_label` of a view if their headers give frames of the image's shape, equally many in both."""
    folder, names = reading.layout.patient_dirs[patient], reading.file_names[patient]
    found: dict[str, Path] = {}
    sizes: dict[str, tuple[int, int, int]] = {}
    for key, ending in (("sequence", ""), ("sequence_label", "_gt")):
        parts = [part + ending for part in ("_half_sequence", "_sequence") if f"{view}{part}{ending}" in reading.kinds]
        name = next((name for part in parts if (name := _find(names, f"{folder.name}_{view}{part}"))), None)
        what = f"{patient} {view} half sequence{' label maps' if ending else ''}"
        if name is None:
            if parts:
                reading.problems.append(f"{what}: missing")
            continue
        try:
            sizes[key] = count_frames(folder / name)
            if sizes[key][1:] != shape:
                raise ValueError(f"frames are {sizes[key][1:]} but the image is {shape} (rows, columns)")
            found[key] = folder / name
        except (ValueError, FileNotFoundError) as error:
            reading.problems.append(f"{what}: {_without(error, folder)}; left out")
    if "sequence_label" in found and sizes["sequence_label"] != sizes.get("sequence"):
        del found["sequence_label"]
        num_frames = sizes["sequence"][0] if "sequence" in sizes else "no"
        reading.problems.append(
            f"{patient} {view} half sequence label maps: {sizes['sequence_label'][0]} frames for {num_frames} frames "
            "of the sequence; left out"
        )
    return found


def _shapes(shape_rule: ShapeRule | None, image: Plane, label_map: NDArray[Any]) -> dict[str, str]:
    """Return structure's name -> word for its shape, where the rule finds one."""
    if shape_rule is None:
        return {}
    words = {}
    for structure in STRUCTURES:
        word = shape_rule(image.pixels, label_map == structure.class_index, image.spacing_mm, structure)
        if word is not None:
            words[structure.name] = word
    return words


def _shape_rule(shape_source: str | os.PathLike[str]) -> ShapeRule | None:
    """Return the function that `shape_source` names."""
    if shape_source == "none":
        return None
    from synboost_monai.prompts.attributes import ask_shape, shape_of_mask

    if shape_source == "rule":
        return lambda image, mask, spacing_mm, structure: shape_of_mask(mask, spacing_mm)
    if not Path(shape_source).is_dir():
        raise ValueError(
            "camus.py: shape_source must be rule, none or the folder of a visual question answering model, got "
            f"{str(shape_source)!r}"
        )
    model_path = Path(shape_source)
    return lambda image, mask, spacing_mm, structure: ask_shape(image, mask, model_path, structure=structure)


# ---- Info_*.cfg


def _read_attributes(reading: _Reading, patient: str, view: str) -> dict[str, Any]:
    """Return attributes from Info_<view>.cfg as fields of `EchoRecord`; faults are added to the problems."""
    name = f"Info_{view}.cfg"
    if name not in reading.file_names[patient]:
        if name in reading.kinds:
            reading.problems.append(f"{patient} {name}: missing, so no sex, age, image quality and ejection fraction")
        return {}
    path = reading.layout.patient_dirs[patient] / name
    try:
        text = read_text(path, errors="replace")
    except OSError as error:
        reading.problems.append(f"{patient} {name}: cannot be read ({error.strerror})")
        return {}
    attributes, problems = parse_info(text)
    reading.problems += [f"{patient} {name}: {problem}" for problem in problems]
    reading.num_cfg += 1
    reading.absent_keys.update(key for key in _ATTRIBUTE_NAMES if key not in attributes and not problems)
    return attributes


def parse_info(text: str) -> tuple[dict[str, Any], list[str]]:
    """Return the attributes in the text of an Info_*.cfg, and what is wrong with it.

    Both releases are understood: `EF` (current) and `LVef` (first) are the ejection fraction in percent.

    Returns:
        (`sex`, `age`, `image_quality`, `ejection_fraction` where given and valid; one phrase for each fault).
    """
    values: dict[str, str] = {}
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        key, colon, value = line.partition(":")
        if colon and key.strip():
            values[key.strip().lower()] = value.strip()
        elif line.strip():
            problems.append(f"line {number} is {line.strip()[:40]!r} where 'Key: value' is expected")
    if not values and not problems:
        problems.append("is empty")

    attributes: dict[str, Any] = {}
    parsers: dict[str, tuple[tuple[str, ...], Callable[[str], Any], str]] = {
        "sex": (("sex",), lambda value: _SEXES[value.upper()], "F or M"),
        "age": (("age",), lambda value: int(_number_between(value, 0, 130)), "years from 0 to 130"),
        "image_quality": (("imagequality",), _known_quality, "Good, Medium or Poor"),
        "ejection_fraction": (("ef", "lvef"), lambda value: _number_between(value, 0, 100), "percent from 0 to 100"),
    }
    for name, (keys, parse, expected) in parsers.items():
        told = next((values[key] for key in keys if key in values), None)
        if told is None:
            continue
        try:
            attributes[name] = parse(told)
        except (KeyError, ValueError):
            problems.append(f"{_ATTRIBUTE_NAMES[name]} is {told!r} where {expected} is expected")
    return attributes, problems


def _number_between(value: str, low: float, high: float) -> float:
    """Convert text to a number within the bounds."""
    number = float(value)
    if not low <= number <= high:
        raise ValueError(value)
    return number


def _known_quality(value: str) -> str:
    """Convert Good, Medium, Poor to good, medium, poor."""
    if value.lower() not in IMAGE_QUALITIES:
        raise ValueError(value)
    return value.lower()


# ---- splits and summary


def _divide(
    records: dict[str, list[EchoRecord]], layout: _Layout, split: str, seed: int, notes: list[str], problems: list[str]
) -> dict[str, list[EchoRecord]]:
    """Return section -> records; unlabelled testing patients go to `UNLABELLED`, other unlabelled images are left out."""
    lists = {section: [p for p in patients if p in records] for section, patients in layout.lists.items()}
    unlabelled: list[EchoRecord] = []
    testing = [record for patient in lists.get("testing", ()) for record in records[patient]]
    if testing and all(record.label is None for record in testing):
        unlabelled, lists["testing"] = testing, []
        notes.append(
            f"{UNLABELLED}: the {len(_patients(testing))} testing patients, whose label maps are not in this copy"
        )

    labelled: dict[str, list[EchoRecord]] = {}
    held_back = {record.patient for record in unlabelled}
    for patient, found in records.items():
        if patient in held_back:
            continue
        labelled[patient] = [record for record in found if record.label is not None]
        problems += [
            f"{_image_of(record).name}: has no label map (..._gt); left out" for record in found if record.label is None
        ]
    usable = {patient for patient, found in labelled.items() if found}
    if not usable:
        first = f" ({problems[0]})" if problems else ""
        raise ValueError(
            f"camus.py: no labelled image could be read, {len(problems)} problems{first}; check your copy of CAMUS"
        )

    lists = {section: [p for p in patients if p in usable] for section, patients in lists.items()}
    if not layout.lists:
        lists = _divide_unsplit(sorted(usable), seed, notes)
    if split == "paper":
        listed = [p for section in ("training", "validation") for p in layout.lists.get(section, ())]
        divided = divide_as_paper(lists, listed, seed, notes)
    else:
        divided = divide_official(lists, seed, notes)
    check_disjoint(divided, where="camus.py")
    splits = {section: [r for patient in divided[section] for r in labelled[patient]] for section in SECTIONS}
    notes += [f"{section}: no patients are left for it" for section in SECTIONS if not splits[section]]
    return {**splits, UNLABELLED: unlabelled} if unlabelled else splits


def _divide_unsplit(patients: list[str], seed: int, notes: list[str]) -> dict[str, list[str]]:
    """Divide a copy without split files: 80 % training, 10 % validation, 10 % testing."""
    num_carved = max(1, round(0.1 * len(patients))) if len(patients) > 2 else 0
    rest, testing = carve(patients, num_carved, seed, "testing")
    training, validation = carve(rest, num_carved, seed, "validation")
    notes.append(f"no official split: testing and validation are a tenth of the patients each, drawn by seed {seed}")
    return {"training": training, "validation": validation, "testing": testing}


def _image_of(record: EchoRecord) -> Path:
    """Return the record's image; records of CAMUS always have one, those of sampled label maps do not."""
    assert record.image is not None
    return record.image


def _check_no_patient_twice(
    splits: dict[str, list[EchoRecord]], digests: dict[Path, str], root: Path, notes: list[str]
) -> None:
    """Raise ValueError if two splits hold one patient under two names: the same pixels in every image.

    A single image that two patients share is only noted: CAMUS itself has one (patient0033 and patient0068, 4CH ED).
    """
    first: dict[str, tuple[str, EchoRecord]] = {}
    shared: dict[tuple[str, str, str, str], list[str]] = {}
    for section, part in splits.items():
        for record in part:
            other_section, other = first.setdefault(digests[_image_of(record)], (section, record))
            if other.patient != record.patient and other_section != section:
                key = (other.patient, other_section, record.patient, section)
                shared.setdefault(key, []).append(image_stem(_image_of(record)).split("_", 1)[1].replace("_", " "))
    num_images = Counter(record.patient for part in splits.values() for record in part)
    for (one, one_section, two, two_section), images in shared.items():
        if len(images) == min(num_images[one], num_images[two]):
            raise ValueError(
                f"camus.py: {root} holds one patient in two splits: {one} in {one_section} and {two} in {two_section} "
                "have the same images; take one of them out"
            )
        notes.append(f"{one} ({one_section}) and {two} ({two_section}) have the same image: {', '.join(images)}")


def _lacks_of(reading: _Reading) -> list[str]:
    """Return what no patient has, or what many Info_*.cfg leave out."""
    lacks = []
    for view, name in VIEWS.items():
        absent = [phase for phase in PHASES if f"{view}_{phase}" not in reading.kinds]
        if len(absent) == len(PHASES):
            lacks.append(f"no {view} images ({name.replace('_', ' ')})")
            continue
        lacks += [f"no {view} {phase} images" for phase in absent]
        if f"Info_{view}.cfg" not in reading.kinds:
            lacks.append(f"no Info_{view}.cfg: sex, age, image quality and ejection fraction are not known")
        if not {f"{view}_half_sequence", f"{view}_sequence"} & reading.kinds:
            lacks.append(f"no {view} half sequences")
    lacks += [
        f"no {_ATTRIBUTE_NAMES[key]} in {count} of {reading.num_cfg} Info_*.cfg files"
        for key, count in sorted(reading.absent_keys.items())
    ]
    return lacks


def _patients(records: list[EchoRecord]) -> set[str]:
    return {record.patient for record in records}


def _find(names: set[str], stem: str) -> str | None:
    """Return the file called `stem` with one of the image suffixes."""
    return next((stem + suffix for suffix in _SUFFIXES if stem + suffix in names), None)


def _without(error: Exception, folder: Path) -> str:
    """Return the error's text without the folder, which is clear from the patient's name."""
    return str(error).replace(f"{folder}{os.sep}", "")
