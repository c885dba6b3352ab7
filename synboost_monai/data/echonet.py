"""Read a folder of EchoNet-Dynamic (Ouyang et al. 2020), whole or partial, report what it lacks, and write images and label maps.

    Videos/NAME.avi            apical four-chamber clips, one per patient; the size of a pixel is not recorded
    FileList.csv               FileName, EF, ESV, EDV, FrameHeight, FrameWidth, FPS, NumberOfFrames, Split
    VolumeTracings.csv         FileName, X1, Y1, X2, Y2, Frame: for two frames of a clip the long axis of the left ventricular cavity (the
                               first row) and the chords of its disks (the rows after it)

The larger cavity of a clip is end-diastole, the smaller one end-systole. Only the cavity was traced, so the records name it as the
only labelled structure, and no other structure is measured against them.
"""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synboost_monai.data.splits import SECTIONS, take_subset
from synboost_monai.data.summary import count_records, some, strict_message, summary_text
from synboost_monai.files import atomic_path, image_suffix, read_frames, read_text
from synboost_monai.formats.clip import CLIP_SUFFIXES, check_pyav
from synboost_monai.paths import refuse_overwriting
from synboost_monai.records import PHASES, VIEWS, EchoRecord
from synboost_monai.structures import LEFT_VENTRICULAR_CAVITY

if TYPE_CHECKING:
    from numpy.typing import NDArray

LIST_NAME, TRACINGS_NAME, VIDEOS_NAME = "FileList.csv", "VolumeTracings.csv", "Videos"
IMAGES_NAME = "images"
"""Folder beside datalist.json for images and label maps."""

_SECTION_OF = dict(zip(("TRAIN", "VAL", "TEST"), SECTIONS))
_LIST_COLUMNS = ("FileName", "Split")
_TRACING_COLUMNS = ("FileName", "X1", "Y1", "X2", "Y2", "Frame")
_MIN_CHORDS = 3
_MAX_AT_ONCE = 8
"""Largest number of clips that are decoded at a time, each in its own process."""
Tracings = dict[int, "NDArray[np.float64]"]
"""Index of a frame, from 0 -> rows of its tracing, (N, 4): x and y of both ends."""


@dataclass(frozen=True)
class EchonetDataset:
    """Hold the traced frames of a copy of EchoNet-Dynamic."""

    splits: dict[str, list[EchoRecord]]
    """training, validation, testing, each sorted by clip, end-diastole first; `labelled_structures` holds only the cavity."""
    summary: str
    """What was found, decided and missed, in several lines."""


@dataclass(frozen=True)
class _Clip:
    """Hold a row of FileList.csv whose clip exists."""

    name: str
    path: Path
    section: str
    ejection_fraction: float | None
    shape: tuple[int, int] | None
    """(H, W) in FileList.csv, to which the tracings refer."""
    tracings: Tracings


@dataclass
class _Reading:
    """Collect what reading finds."""

    clips: list[_Clip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_echonet(root: str | os.PathLike[str]) -> Path | None:
    """Return the folder with FileList.csv and Videos: the given one or a subfolder; None if there is none."""
    root = Path(root).expanduser()
    inner = [path for path in sorted(root.iterdir()) if path.is_dir()] if root.is_dir() else []
    return next(
        (path for path in (root, *inner) if (path / LIST_NAME).is_file() and (path / VIDEOS_NAME).is_dir()), None
    )


def read_echonet(
    root: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    strict: bool = False,
    shape_source: str = "rule",
    max_training_patients: int | None = None,
    training_fraction: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> EchonetDataset:
    """Decode the traced frames of a copy and write them with their label maps to OUTPUT_DIR/images, as PNG on the clips' own grid.

    Files: NAME_4CH_ED.png, NAME_4CH_ES.png, and the same with `_gt` for the label maps (0 background, 1 left ventricular cavity).

    Args:
        root: the folder that contains FileList.csv, or its parent.
        output_dir: folder of the new data set.
        strict: whether anything missing or damaged is an error.
        shape_source: source of the word for the cavity's shape: `rule` or `none`.
        max_training_patients, training_fraction, seed: as `read_camus`.
        progress: whether to show a progress bar on stderr.
    Raises:
        FileNotFoundError, ValueError: if the folder is not such a copy, no frame can be used, PyAV is not installed or, with
            `strict`, anything is missing or damaged.
    """
    folder = find_echonet(root)
    if folder is None:
        raise FileNotFoundError(
            f"echonet.py: {root} holds no {LIST_NAME} beside {VIDEOS_NAME}/; give the folder of your copy"
        )
    if shape_source not in ("rule", "none"):
        raise ValueError(f"echonet.py: shape_source must be rule or none for EchoNet-Dynamic, got {shape_source!r}")
    check_pyav(folder / VIDEOS_NAME)
    reading = _read_lists(folder)
    _take_part(reading, max_training_patients, training_fraction, seed)
    if strict and (reading.lacks or reading.problems):
        raise ValueError(strict_message("echonet.py", folder, [*reading.lacks, *reading.problems]))
    images_dir = Path(output_dir) / IMAGES_NAME
    outputs = [path for clip in reading.clips for phase in PHASES for path in _paths_of(clip, phase, images_dir)]
    inputs = [folder / LIST_NAME, folder / TRACINGS_NAME, *(clip.path for clip in reading.clips)]
    refuse_overwriting(outputs, inputs, "give another output_dir")

    splits: dict[str, list[EchoRecord]] = {section: [] for section in SECTIONS}
    for clip, found in _all_of(reading.clips, images_dir, shape_source == "rule", progress):
        if isinstance(found, str):
            reading.problems.append(f"{clip.name}: {found}; left out")
        else:
            splits[clip.section] += found
    if strict and reading.problems:
        raise ValueError(strict_message("echonet.py", folder, [*reading.lacks, *reading.problems]))
    if not any(splits.values()):
        first = f" ({reading.problems[0]})" if reading.problems else ""
        raise ValueError(
            f"echonet.py: {folder}: no traced frame could be read, {len(reading.problems)} problems{first}"
        )
    return EchonetDataset(splits, _summary(folder, splits, reading))


def cavity_of_tracing(rows: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels whose centres are inside the polygon through the ends of a tracing's chords.

    The ends of the long axis are not corners of it, as in the data set's own masks. The order of the chords, and of the ends of each,
    does not change the mask.

    Args:
        rows: (N, 4), x and y of both ends in pixels: the long axis, then the chords across it.
        shape: (H, W).
    Raises:
        ValueError: if there are too few chords, or they enclose no pixel.
    """
    from matplotlib.path import Path as Polygon

    axis, chords = rows[0, 2:] - rows[0, :2], rows[1:]
    if len(chords) < _MIN_CHORDS or not axis.any():
        raise ValueError(
            f"its tracing has {len(rows)} rows where a long axis and {_MIN_CHORDS} chords or more are expected"
        )
    chords = chords[np.argsort((chords[:, :2] + chords[:, 2:]) @ axis, kind="stable")]
    across = chords[:, 2:] - chords[:, :2]
    is_turned = axis[0] * across[:, 1] - axis[1] * across[:, 0] < 0
    chords[is_turned] = chords[is_turned][:, [2, 3, 0, 1]]
    corners = np.concatenate([chords[:, :2], chords[::-1, 2:]])
    row, column = np.mgrid[: shape[0], : shape[1]]
    mask = Polygon(corners).contains_points(np.stack([column.ravel(), row.ravel()], axis=-1)).reshape(shape)
    if not mask.any():
        raise ValueError("its tracing encloses no pixel of the clip")
    return mask


# ---- FileList.csv and VolumeTracings.csv


def _read_lists(folder: Path) -> _Reading:
    """Return the clips that are listed, present and traced; faults are added to the problems."""
    reading = _Reading()
    tracings = _read_tracings(folder / TRACINGS_NAME, reading)
    rows: dict[str, dict[str, str]] = {}
    num_twice, clashing = 0, set()
    for row in _rows(folder / LIST_NAME, _LIST_COLUMNS):
        name = row["FileName"] = _clip_name(row["FileName"])
        num_twice += name in rows and rows[name] == row
        if rows.setdefault(name, row) != row:
            clashing.add(name)
    videos = {
        _clip_name(name): name
        for name in sorted(os.listdir(folder / VIDEOS_NAME))
        if image_suffix(name) in CLIP_SUFFIXES
    }
    groups: dict[str, list[str]] = {}
    for name, row in rows.items():
        section = _SECTION_OF.get(row["Split"].strip().upper())
        if name in clashing:
            reading.problems.append(f"{name}: has several rows in {LIST_NAME} that differ; left out")
        elif section is None:
            reading.problems.append(
                f"{name}: Split is {row['Split'][:40]!r} where TRAIN, VAL or TEST is expected; left out"
            )
        elif name not in videos:
            groups.setdefault(f"in {LIST_NAME} have no file in {VIDEOS_NAME}/", []).append(name)
        elif name not in tracings:
            groups.setdefault("have no tracings", []).append(name)
        elif len(tracings[name]) < 2:
            groups.setdefault("have tracings of one frame alone", []).append(name)
        else:
            path = folder / VIDEOS_NAME / videos[name]
            shape = _size_of(row)
            reading.clips.append(_Clip(name, path, section, _fraction_of(name, row, reading), shape, tracings[name]))
    groups[f"in {VIDEOS_NAME}/ are not in {LIST_NAME}"] = sorted(videos.keys() - rows.keys())
    groups[f"in {TRACINGS_NAME} are not in {LIST_NAME}"] = sorted(tracings.keys() - rows.keys())
    reading.lacks += [f"{len(names)} clips {what} ({some(names)}); left out" for what, names in groups.items() if names]
    if num_twice:
        reading.notes.append(f"{num_twice} rows of {LIST_NAME} that stand there twice count once")
    reading.clips.sort(key=lambda clip: clip.name)
    return reading


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file that has these columns."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; EchoNet-Dynamic has it beside {VIDEOS_NAME}/")
    reader = csv.DictReader(read_text(path).splitlines(), skipinitialspace=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    missing = [name for name in columns if name not in reader.fieldnames]
    if missing:
        raise ValueError(
            f"{path}: column {', '.join(missing)} is missing, got {', '.join(reader.fieldnames[:9])[:200]}"
        )
    try:
        for row in reader:
            if any(row.values()):
                yield {key: value or "" for key, value in row.items() if isinstance(key, str)}
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: not a readable CSV ({error})") from error


def _read_tracings(path: Path, reading: _Reading) -> dict[str, Tracings]:
    """Return clip -> its tracings, each row once; rows that cannot be read are counted."""
    found: dict[str, dict[int, dict[tuple[float, ...], None]]] = {}
    num_twice, bad = 0, Counter[str]()
    for row in _rows(path, _TRACING_COLUMNS):
        name = _clip_name(row["FileName"])
        try:
            ends = tuple(float(row[column]) for column in _TRACING_COLUMNS[1:5])
            frame = float(row["Frame"])
            if not all(math.isfinite(value) for value in ends) or frame != int(frame) or frame < 0:
                raise ValueError
        except (ValueError, OverflowError):
            bad[name] += 1
            continue
        rows = found.setdefault(name, {}).setdefault(int(frame), {})
        num_twice += ends in rows
        rows[ends] = None
    reading.problems += [
        f"{name}: {count} rows of {path.name} are no tracing; passed over" for name, count in bad.items()
    ]
    if num_twice:
        reading.notes.append(f"{num_twice} rows of {path.name} that stand there twice count once")
    return {
        name: {frame: np.array(list(rows), dtype=np.float64) for frame, rows in frames.items()}
        for name, frames in found.items()
    }


def _clip_name(text: str) -> str:
    """Return the name of a clip in the lists, which may end in .avi."""
    name = text.strip()
    suffix = image_suffix(name)
    return name[: -len(suffix)] if suffix in CLIP_SUFFIXES else name


def _size_of(row: Mapping[str, str]) -> tuple[int, int] | None:
    """Return (H, W) of a clip in FileList.csv, None if it is not given."""
    try:
        return int(float(row["FrameHeight"])), int(float(row["FrameWidth"]))
    except (KeyError, ValueError, OverflowError):
        return None


def _fraction_of(name: str, row: Mapping[str, str], reading: _Reading) -> float | None:
    """Return the ejection fraction of a row, %; None if there is none."""
    text = row.get("EF", "").strip()
    try:
        value = float(text) if text else None
        if value is None or 0 <= value <= 100:
            return value
    except ValueError:
        pass
    reading.problems.append(f"{name}: EF is {text[:40]!r} where percent from 0 to 100 are expected; passed over")
    return None


def _take_part(reading: _Reading, count: int | None, fraction: float | None, seed: int) -> None:
    """Keep as many training clips as were asked for."""
    if count is None and fraction is None:
        return
    names = sorted(clip.name for clip in reading.clips if clip.section == "training")
    chosen = set(take_subset(names, count, fraction, seed))
    reading.clips = [clip for clip in reading.clips if clip.section != "training" or clip.name in chosen]
    reading.notes.append(f"training: {len(chosen)} of {len(names)} patients, drawn by seed {seed}, as asked")


# ---- clips


def _all_of(
    clips: Sequence[_Clip], images_dir: Path, with_shapes: bool, progress: bool
) -> Iterator[tuple[_Clip, list[EchoRecord] | str]]:
    """Yield each clip with its records, or the reason why it has none; several are decoded at a time."""
    from tqdm import tqdm

    pool = ThreadPoolExecutor(min(_MAX_AT_ONCE, os.cpu_count() or 1), thread_name_prefix="echonet")
    try:
        found: Iterable[Any] = pool.map(lambda clip: _records_of(clip, images_dir, with_shapes), clips)
        bar = tqdm(
            zip(clips, found), "reading EchoNet-Dynamic", len(clips), unit="clip", disable=not progress, mininterval=0.5
        )
        yield from bar
    finally:
        pool.shutdown(cancel_futures=True)


def _records_of(clip: _Clip, images_dir: Path, with_shapes: bool) -> list[EchoRecord] | str:
    """Write the images and label maps of a clip, and return its records, or the reason why it has none."""
    from PIL import Image

    try:
        frames = read_frames(clip.path, sequences=True).pixels
        if clip.shape not in (None, frames.shape[1:]):
            return f"the clip is {frames.shape[1:]} but {LIST_NAME} says {clip.shape} (rows, columns)"
        if max(clip.tracings) >= len(frames):
            return f"frame {max(clip.tracings)} is traced but the clip has {len(frames)} frames, counted from 0"
        masks = {frame: cavity_of_tracing(rows, frames.shape[1:]) for frame, rows in sorted(clip.tracings.items())}
    except ValueError as error:
        return str(error).removeprefix(f"{clip.path}: ")
    sizes = {frame: int(mask.sum()) for frame, mask in masks.items()}
    chosen = max(sizes, key=lambda frame: sizes[frame]), min(sizes, key=lambda frame: sizes[frame])
    if chosen[0] == chosen[1]:
        return "the traced cavities are of one size, so nothing says which frame is end-diastole"
    records = []
    for phase, frame in zip(PHASES, chosen):
        paths = _paths_of(clip, phase, images_dir)
        for path, pixels in zip(
            paths, (frames[frame], masks[frame].astype(np.uint8) * LEFT_VENTRICULAR_CAVITY.class_index)
        ):
            with atomic_path(path) as temporary:
                Image.fromarray(np.ascontiguousarray(pixels)).save(temporary)
        records.append(
            EchoRecord(
                *paths,
                patient=clip.name,
                view=VIEWS["4CH"],
                phase=PHASES[phase],
                ejection_fraction=clip.ejection_fraction,
                shape=_shape_of(masks[frame]) if with_shapes else {},
                labelled_structures=(LEFT_VENTRICULAR_CAVITY.name,),
            )
        )
    return records


def _paths_of(clip: _Clip, phase: str, images_dir: Path) -> tuple[Path, Path]:
    """Return the files of an image and its label map."""
    stem = f"{clip.path.stem}_4CH_{phase}"
    return images_dir / f"{stem}.png", images_dir / f"{stem}_gt.png"


def _shape_of(mask: NDArray[np.bool_]) -> dict[str, str]:
    from synboost_monai.prompts.attributes import shape_of_mask

    word = shape_of_mask(mask, (1.0, 1.0))
    return {} if word is None else {LEFT_VENTRICULAR_CAVITY.name: word}


# ---- summary


def _summary(folder: Path, splits: Mapping[str, list[EchoRecord]], reading: _Reading) -> str:
    """Describe what was found, decided and missed."""
    notes = [
        "splits: those of FileList.csv; end-diastole is the frame with the larger traced cavity, end-systole that with the smaller one",
        "labelled: the left ventricular cavity alone; myocardium and left atrium were not traced and are not measured",
        "pixel size: not known; areas are in pixels, and no distance or volume is told",
        *reading.notes,
    ]
    counts = {section: count_records(records) for section, records in splits.items()}
    groups = {"Decided": notes, "This copy lacks": reading.lacks, "Problems": reading.problems}
    return summary_text(f"EchoNet-Dynamic: {folder}", counts, groups)
