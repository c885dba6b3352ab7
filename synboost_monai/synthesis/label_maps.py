"""Make new label maps without annotation: drawn from a shape model of training label maps, or between two of them.

    output_dir/labels/NAME_gt.nii.gz  label maps, 0..3; each passes the anatomical checks
    output_dir/sectors/NAME.nii.gz    the ultrasound sector of each, 0 and 1, taken from a training image
    output_dir/datalist.json          section training, for `synboost synthesise --dataset_dir`; written when all maps exist
    output_dir/provenance.json        how each map was made
    output_dir/summary.json           rejections, and how the maps compare with the training label maps
    output_dir/shape_model.npz        the shape model
    output_dir/contact_sheet.png      training label maps in the first row, new ones below

Map k depends only on the data, the settings, the seed and k, so a larger set begins with a smaller one, and an interrupted
run continues. A draw that fails a check is repeated with the next sub-seed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage, stats

from synboost_monai import __version__
from synboost_monai.data.datalist import DATALIST_NAME, list_label_maps, spread, write_datalist
from synboost_monai.files import atomic_path, atomic_write_text, image_stem, read_plane, read_text, sha256_of
from synboost_monai.heart.anatomy import MEASURES, anatomy_ranges, check_anatomy, examine_anatomy, out_of_range
from synboost_monai.heart.landmarks import NUM_LANDMARKS, LandmarkError, find_landmarks
from synboost_monai.paths import refuse_overwriting
from synboost_monai.records import PHASES, VIEWS, EchoRecord
from synboost_monai.structures import NUM_CLASSES, SECTOR_INDEX_OF_CLASS, SECTOR_OUTSIDE_INDEX
from synboost_monai.synthesis.options import LabelMapOptions
from synboost_monai.synthesis.plan import check_same_settings, stable_seed
from synboost_monai.synthesis.shape_model import (
    MIN_CASES,
    Frame,
    HeartCase,
    ShapeModel,
    align,
    draw_in_frame,
    generalisation_mm,
    interpolate,
    pose_in,
    read_case,
    whole_cases,
)
from synboost_monai.synthesis.writers import write_nifti
from synboost_monai.transforms.files import check_label_map, load_echo
from synboost_monai.transforms.label_map_array import colour_sector_label_map
from synboost_monai.transforms.label_map_dictionary import SectorMaskd

if TYPE_CHECKING:
    from numpy.typing import NDArray

INTERPOLATION_WEIGHTS = (0.25, 0.75)
"""Range of the second map's weight, drawn uniformly: closer to 0 or 1, the new map would be one of the old ones."""
MAX_DRAWS = 500
"""Largest number of draws for one map; if none passes, fewer than about 1 % do."""
MAPS_BETWEEN_RECORDS = 100
"""Number of new maps after which provenance.json is updated."""
MAX_COMPARED = 500
"""Largest number of maps that are compared with the training label maps, spread evenly."""
CANONICAL_SIZE = 64
"""Side of the grid on which maps are compared, in a pose fixed to the ventricle."""
CANONICAL_EXTENT = ((-2.0, 2.0), (-1.8, 3.4))
"""Extent of that grid: x and y in units of the ventricle's root mean square radius; y downwards."""
NUM_SHEET_COLUMNS, MAX_SHEET_ROWS, SHEET_TILE_PX = 20, 10, 110
"""Contact sheet: label maps per row, rows of new maps, side of a tile."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingMaps:
    """Hold what is learned from the training label maps."""

    cases: list[HeartCase]
    patients: list[str]
    """Patient of each case."""
    measures: list[dict[str, float]]
    """Measures of each case (`examine_anatomy`)."""
    canonical: NDArray[np.uint8]
    """Each case's label map in the pose fixed to the ventricle, (n, N, N)."""
    ranges: dict[str, tuple[float, float]]
    num_passing: int
    """Number of cases that pass `check_anatomy` with these ranges and their own sector."""
    skipped: dict[str, int]
    """Reason -> number of label maps that were not used."""


@dataclass(frozen=True)
class DrawnMap:
    """Hold one accepted label map."""

    label_map: NDArray[np.uint8]
    frame: Frame
    record: dict[str, Any]
    """Entry of the map in provenance.json."""


def sample_label_maps(
    dataset_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    options: LabelMapOptions,
) -> Path:
    """Make a data set of new label maps (see the module); existing files are kept.

    Args:
        dataset_dir: datalist folder (or folder of label maps) to learn from.
        output_dir: folder of the new data set.
        options: how many maps are drawn, and how. Without a view and a phase, each new map has those of its frame.
    Returns:
        Path of datalist.json.
    Raises:
        FileNotFoundError, ValueError: if the data is missing or invalid, fewer than `MIN_CASES` label maps are usable,
            the folder was begun with other settings, or almost no draw passes the checks.
    """
    items = list_label_maps(dataset_dir, options.section, view=options.view, phase=options.phase, exclude=output_dir)
    names = (DATALIST_NAME, "provenance.json", "summary.json", "shape_model.npz", "contact_sheet.png")
    folders = [Path(output_dir, name) for name in ("labels", "sectors")]
    refuse_overwriting([Path(output_dir, name) for name in names], [dataset_dir, items], filled=folders)
    settings = {**asdict(options), "data_sha256": _hash_of(items)}
    num_maps = settings.pop("num_maps")
    output_dir = Path(output_dir)
    before = _records_before(output_dir, settings)
    if _is_finished(output_dir, before, num_maps):
        logger.info("%s is complete already", output_dir)
        return output_dir / DATALIST_NAME
    training = read_training_maps(items)
    model = ShapeModel.fit(
        training.cases,
        explained_variance=options.explained_variance,
        provenance={"data_sha256": settings["data_sha256"], "synboost_monai": __version__},
    )
    sampler = LabelMapSampler(
        training, model, method=options.method, seed=options.seed, variance_scale=options.variance_scale
    )
    header = {"settings": settings, "dataset_dir": str(dataset_dir), "versions": {"synboost_monai": __version__}}
    records = []
    _write_provenance(output_dir, header, [before[k] for k in sorted(before)], num_maps)
    model.save(output_dir / "shape_model.npz")
    for number in range(num_maps):
        if number not in before:
            drawn = sampler.draw(number)
            record = drawn.record
            write_nifti(drawn.frame.sector.astype(np.uint8), drawn.frame.spacing_mm, output_dir / record["sector"])
            write_nifti(drawn.label_map, drawn.frame.spacing_mm, output_dir / record["label"])
        else:
            record = before[number]
        records.append(record)
        if number % MAPS_BETWEEN_RECORDS == MAPS_BETWEEN_RECORDS - 1 and number not in before:
            _write_provenance(output_dir, header, records, num_maps)
    _write_summary(output_dir, records, training, model, settings)
    _write_contact_sheet(output_dir, records, items)
    _write_provenance(output_dir, header, records, num_maps)
    logger.info("%d label maps are in %s", num_maps, output_dir)
    return write_datalist(
        output_dir,
        {"training": [_echo_record(output_dir, record) for record in records]},
        name="Sampled label maps",
        description="Label maps without images, made by a shape model of annotated ones; see provenance.json.",
    )


def read_training_maps(items: Sequence[Mapping[str, Any]]) -> TrainingMaps:
    """Read landmarks, measures and sectors of the label maps to learn from.

    A label map that lacks a structure, or whose structures are not arranged as in an apical view, is left out and counted.

    Args:
        items: result of `list_label_maps`.
    Raises:
        FileNotFoundError, ValueError: if a file is missing or invalid, or fewer than `MIN_CASES` label maps are usable.
    """
    skipped: Counter[str] = Counter()
    cases, patients, measures, label_maps, is_inside = [], [], [], [], []
    for item in items:
        label_map, frame = _read_item(item)
        problems, measured = examine_anatomy(label_map, frame.spacing_mm, frame.sector)
        wrong = [problem for problem in problems if problem.code != "outside_sector"]
        try:
            if wrong:
                raise LandmarkError(f"{wrong[0].code}: {wrong[0].subject}")
            cases.append(read_case(str(item["label"]), label_map, frame))
        except LandmarkError as error:
            skipped[str(error)] += 1
            continue
        patients.append(str(item.get("patient") or image_stem(item["label"])))
        measures.append(measured)
        label_maps.append(label_map)
        is_inside.append(not problems)
    if len(cases) < MIN_CASES:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in skipped.most_common(5))
        raise ValueError(
            f"{len(cases)} of {len(items)} label maps can be used ({reasons or 'none was left out'}); a shape model needs at "
            f"least {MIN_CASES}: give a section with more, or no --view and --phase"
        )
    ranges = anatomy_ranges(measures, tail=0.0, margin=0.0)  # only sizes that were seen
    num_passing = sum(inside and not out_of_range(m, ranges) for inside, m in zip(is_inside, measures))
    mean = ShapeModel.fit(cases).mean
    canonical = [
        _canonical(m, c.points + c.frame.origin_mm, c.frame.spacing_mm, mean) for m, c in zip(label_maps, cases)
    ]
    return TrainingMaps(cases, patients, measures, np.stack(canonical), ranges, num_passing, dict(skipped))


def _read_item(item: Mapping[str, Any]) -> tuple[NDArray[np.uint8], Frame]:
    """Read a label map and its frame.

    Raises:
        FileNotFoundError, ValueError: if a file is missing or invalid.
    """
    loaded: dict[Hashable, Any] = {key: load_echo(item[key])[0] for key in ("image", "sector") if item.get(key)}
    label, spacing_mm = load_echo(item["label"], like=item.get("image"))
    label_map = label[0].numpy().astype(np.uint8)
    image_shape = loaded["image"].shape if "image" in loaded else label.shape
    if label_map.max() >= NUM_CLASSES or (label_map != label[0].numpy()).any() or image_shape != label.shape:
        check_label_map(label, image_shape, str(item["label"]))  # slow, so only after a quick check has failed
    sector = SectorMaskd()({**loaded, "label": label, "spacing_mm": spacing_mm})["sector"]
    return label_map, Frame.of_sector(sector[0].numpy(), spacing_mm, item.get("view"), item.get("phase"))


class LabelMapSampler:
    """A LabelMapSampler draws label maps; map k depends only on its number and the arguments.

    Args:
        training: the label maps to learn from.
        model: shape model fitted to them.
        method: one of `options.METHODS`.
        seed: seed of the run.
        variance_scale: as in `LabelMapOptions`.
    """

    def __init__(
        self, training: TrainingMaps, model: ShapeModel, *, method: str, seed: int, variance_scale: float = 1.0
    ) -> None:
        self.training = training
        self.model = model
        self.method = method
        self.seed = seed
        self.variance_scale = variance_scale
        cases = training.cases
        self.shapes, self.poses = align(np.stack([case.points for case in cases]))
        self.whole = whole_cases(cases)

    def draw(self, number: int) -> DrawnMap:
        """Return map `number`: the first of its draws that passes the anatomical checks.

        Raises:
            ValueError: if none of `MAX_DRAWS` draws passes.
        """
        rejected: Counter[str] = Counter()
        for attempt in range(MAX_DRAWS):
            map_seed = stable_seed(self.seed, "label map", self.method, number, attempt)
            generator = np.random.default_rng(map_seed)
            points, frame, facts = (
                self._from_model(generator) if self.method == "shape_model" else self._between(generator)
            )
            label_map = draw_in_frame(points, frame)
            problems = check_anatomy(label_map, frame.spacing_mm, self.training.ranges, frame.sector)
            if not problems:
                name = self._name(number, frame)
                record = {
                    "number": number,
                    "name": name,
                    "patient": f"{self.method}_{self.seed}_{number:05d}",
                    "label": f"labels/{name}_gt.nii.gz",
                    "sector": f"sectors/{name}.nii.gz",
                    "view": frame.view,
                    "phase": frame.phase,
                    "seed": map_seed,
                    "num_rejected": attempt,
                    "rejected": dict(sorted(rejected.items())),
                    **facts,
                }
                return DrawnMap(label_map, frame, record)
            rejected.update({f"{problem.code}: {problem.subject}" for problem in problems})
        reasons = ", ".join(f"{reason} ({count})" for reason, count in rejected.most_common(4))
        raise ValueError(
            f"label map {number}: none of {MAX_DRAWS} draws passed the checks of anatomy ({reasons}); lower variance_scale "
            f"(now {self.variance_scale:g}) or give more training label maps"
        )

    def _from_model(self, generator: np.random.Generator) -> tuple[NDArray[np.float64], Frame, dict[str, Any]]:
        sample = self.model.sample(generator, self.variance_scale)
        facts = {
            "frame_of": image_stem(self.training.cases[sample.frame_index].name).removesuffix("_gt"),
            "pose": {key: round(value, 5) for key, value in sample.pose._asdict().items()},
            "coefficients": [round(float(value), 4) for value in sample.coefficients],
        }
        return sample.points, self.model.frames[sample.frame_index], facts

    def _between(self, generator: np.random.Generator) -> tuple[NDArray[np.float64], Frame, dict[str, Any]]:
        cases = self.training.cases
        first = int(generator.choice(self.whole))
        kind = (cases[first].frame.view, cases[first].frame.phase)
        partners = [i for i in self.whole if (cases[i].frame.view, cases[i].frame.phase) == kind and i != first]
        second = int(generator.choice(partners or [i for i in self.whole if i != first]))
        weight = float(generator.uniform(*INTERPOLATION_WEIGHTS))
        pair = [first, second]
        points = interpolate(self.shapes[pair], [self.poses[i] for i in pair], weight)
        frame = cases[pair[int(weight > 0.5)]].frame
        names = [image_stem(cases[i].name).removesuffix("_gt") for i in pair]
        return points, frame, {"frame_of": names[int(weight > 0.5)], "sources": names, "weight": round(weight, 5)}

    def _name(self, number: int, frame: Frame) -> str:
        """Return a name like those of CAMUS, which contain view and phase: shape_model_0_00012_4CH_ED."""
        short = [code for code, name in {**VIEWS, **PHASES}.items() if name in (frame.view, frame.phase)]
        return "_".join([f"{self.method}_{self.seed}_{number:05d}", *short])


# ---- comparison


def _write_summary(
    output_dir: Path,
    records: Sequence[Mapping[str, Any]],
    training: TrainingMaps,
    model: ShapeModel,
    settings: Mapping[str, Any],
) -> None:
    """Write summary.json."""
    measures, canonical = [], []
    problems: Counter[str] = Counter()
    compared = spread(records, MAX_COMPARED)
    for record in compared:
        label = read_plane(output_dir / record["label"])
        sector = read_plane(output_dir / record["sector"]).pixels
        found, measured = examine_anatomy(label.pixels, label.spacing_mm, sector)
        problems.update(problem.code for problem in found + out_of_range(measured, training.ranges))
        measures.append(measured)
        points = find_landmarks(label.pixels, label.spacing_mm)
        canonical.append(_canonical(label.pixels, points, label.spacing_mm, model.mean))
    num_rejected = sum(record["num_rejected"] for record in records)
    rejected: Counter[str] = Counter()
    for record in records:
        rejected.update(record["rejected"])
    nearest, nearest_real = _nearest_dice(np.stack(canonical), training)
    summary = {
        "num_maps": len(records),
        "views_and_phases": dict(Counter(f"{r['view']} {r['phase']}" for r in records)),
        "acceptance": len(records) / (len(records) + num_rejected),
        "rejections": dict(rejected.most_common()),
        "num_compared": len(compared),
        "problems": dict(problems),
        "training": {
            "num_usable": len(training.cases),
            "skipped": training.skipped,
            "num_cut_atria": sum(case.is_cut for case in training.cases),
            "share_passing_the_checks": training.num_passing / len(training.cases),
        },
        "ranges": {name: list(ends) for name, ends in training.ranges.items()},
        "measures": {name: _compare(name, training.measures, measures) for name in MEASURES},
        "dice_to_nearest_training_map": {
            "sampled": _quantiles(nearest),
            "training_other_patients": _quantiles(nearest_real),
        },
        "shape_model": _model_quality(training, model, int(settings["seed"]), float(settings["explained_variance"])),
    }
    atomic_write_text(output_dir / "summary.json", json.dumps(summary, indent=1) + "\n")


def _compare(
    name: str, training: Sequence[Mapping[str, float]], sampled: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """Compare the quantiles of a measure, and compute the Kolmogorov-Smirnov distance (0 equal, 1 apart)."""
    both = [np.array([m[name] for m in measures if name in m]) for measures in (training, sampled)]
    distance = float(stats.ks_2samp(*both).statistic) if all(len(values) for values in both) else None
    return {
        "words": MEASURES[name][0],
        "unit": MEASURES[name][1],
        "training": _quantiles(both[0]),
        "sampled": _quantiles(both[1]),
        "ks_distance": distance,
    }


def _model_quality(training: TrainingMaps, model: ShapeModel, seed: int, explained_variance: float) -> dict[str, Any]:
    """Compute compactness, generalisation and specificity (Davies 2002) of the model; distances are landmark means in mm.

    Specificity is the distance of a drawn shape to the nearest training shape; compare it with the distance of a training shape to the
    nearest of another patient. Both are at the mean size.
    """
    whole = whole_cases(training.cases)
    cases, patients = [training.cases[i] for i in whole], np.array([training.patients[i] for i in whole])
    real = np.stack([pose_in(case.points, model.mean).unplace(case.points) for case in cases])
    samples = [model.sample(np.random.default_rng(stable_seed(seed, "specificity", i))) for i in range(MAX_COMPARED)]
    drawn = np.stack([sample.pose.unplace(sample.points) for sample in samples])
    size = np.exp(model.mean_log_size)
    to_real = np.array([np.linalg.norm(real - shape, axis=2).mean(axis=1).min() for shape in drawn]) * size
    others = []
    for shape, patient in zip(real, patients):
        rest = real[patients != patient]
        others += [float(np.linalg.norm(rest - shape, axis=2).mean(axis=1).min()) * size] if len(rest) else []
    left_out = generalisation_mm(cases, patients.tolist(), explained_variance=explained_variance)
    share = np.cumsum(model.eigenvalues) / model.eigenvalues.sum() if len(model.eigenvalues) else np.ones(1)
    return {
        **model.provenance,
        "num_landmarks": NUM_LANDMARKS,
        "num_modes": len(model.eigenvalues),
        "modes_for_90_percent_of_them": int(np.searchsorted(share, 0.9)) + 1,
        "generalisation_mm": _quantiles(left_out),
        "specificity_mm": _quantiles(to_real),
        "training_to_nearest_other_patient_mm": _quantiles(np.array(others)),
    }


def _canonical(
    label_map: NDArray[Any], points: NDArray[np.float64], spacing_mm: Sequence[float], mean: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Resample a label map in the ventricle's own pose and size, (N, N); `points` in mm from the first pixel's centre."""
    pose = pose_in(points, mean)
    axes = [low + (np.arange(CANONICAL_SIZE) + 0.5) / CANONICAL_SIZE * (high - low) for low, high in CANONICAL_EXTENT]
    grid = np.stack(np.meshgrid(*axes), -1)  # (N, N, 2), x and y
    placed = pose.place(grid) / [spacing_mm[1], spacing_mm[0]]
    return ndimage.map_coordinates(np.asarray(label_map, np.uint8), [placed[..., 1], placed[..., 0]], order=0)


def _nearest_dice(canonical: NDArray[np.uint8], training: TrainingMaps) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the mean Dice over the structures with the most similar training map, for each new map, and for each training map
    among those of other patients."""
    of_new = _mean_dice(canonical, training.canonical).max(axis=1)
    patients = np.array(training.patients)
    among = _mean_dice(training.canonical, training.canonical)
    among[patients[:, None] == patients[None, :]] = -1.0
    of_real = among.max(axis=1)
    return of_new, of_real[of_real >= 0]


def _mean_dice(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the Dice of every pair, averaged over the structures, (n, m)."""
    total = np.zeros((len(first), len(second)))
    for class_index in range(1, NUM_CLASSES):
        a, b = ((maps == class_index).reshape(len(maps), -1).astype(np.float32) for maps in (first, second))
        total += 2 * (a @ b.T) / np.maximum(a.sum(1)[:, None] + b.sum(1)[None, :], 1)
    return total / (NUM_CLASSES - 1)


def _quantiles(values: NDArray[Any]) -> dict[str, float] | None:
    """Return mean and quantiles; None without values."""
    if not len(values):
        return None
    ends = {f"p{round(100 * q):02d}": float(np.quantile(values, q)) for q in (0.05, 0.5, 0.95)}
    return {"mean": float(np.mean(values)), "min": float(np.min(values)), **ends, "max": float(np.max(values))}


# ---- files


def _hash_of(items: Sequence[Mapping[str, Any]]) -> str:
    """Return a hash of the label maps, the sources of their sectors, view and phase; it does not depend on the files' location."""
    digest = hashlib.sha256()
    for item in items:
        parts = [sha256_of(item[key]) for key in ("label", "image", "sector") if item.get(key)]
        digest.update("|".join([*parts, str(item.get("view")), str(item.get("phase"))]).encode() + b"\n")
    return digest.hexdigest()


def _records_before(output_dir: Path, settings: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the records of maps that an earlier run with the same settings made and whose files exist.

    Raises:
        ValueError: if the folder was begun with other settings.
    """
    path = output_dir / "provenance.json"
    if not path.is_file():
        if (output_dir / "labels").is_dir() and any((output_dir / "labels").iterdir()):
            raise ValueError(f"{output_dir}: holds label maps but no provenance.json; choose another output_dir")
        return {}
    try:
        content = json.loads(read_text(path))
        before, records = content["settings"], content["maps"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is not the record of a run of label-maps; choose another output_dir") from error
    check_same_settings(output_dir, before, settings, "label maps")
    return {r["number"]: r for r in records if all((output_dir / r[key]).is_file() for key in ("label", "sector"))}


def _is_finished(output_dir: Path, before: Mapping[int, Any], num_maps: int) -> bool:
    """Return whether exactly this number of maps is already complete."""
    path = output_dir / DATALIST_NAME  # written last
    if sorted(before) != list(range(num_maps)) or not path.is_file():
        return False
    return len(json.loads(read_text(path))["training"]) == num_maps


def _write_provenance(
    output_dir: Path, header: Mapping[str, Any], records: Sequence[Mapping[str, Any]], num_maps: int
) -> None:
    content = {**header, "is_complete": len(records) >= num_maps, "maps": list(records)}
    atomic_write_text(output_dir / "provenance.json", json.dumps(content, indent=1) + "\n")


def _echo_record(output_dir: Path, record: Mapping[str, Any]) -> EchoRecord:
    """Return the record of a map: its own patient, without image."""
    return EchoRecord(
        image=None,
        label=output_dir / record["label"],
        patient=record["patient"],
        view=record["view"],
        phase=record["phase"],
        is_synthetic=True,
        sector=output_dir / record["sector"],
    )


def _write_contact_sheet(
    output_dir: Path, records: Sequence[Mapping[str, Any]], items: Sequence[Mapping[str, Any]]
) -> None:
    """Draw training label maps in the first row, new ones below."""
    from matplotlib.figure import Figure

    old = []
    for item in spread(items, NUM_SHEET_COLUMNS):
        label_map, frame = _read_item(item)
        old.append(_tile(label_map, frame.sector, frame.spacing_mm))
    shown = spread(records, NUM_SHEET_COLUMNS * MAX_SHEET_ROWS)
    paths = [(output_dir / record["label"], output_dir / record["sector"]) for record in shown]
    new = [
        _tile(read_plane(label).pixels, read_plane(sector).pixels, read_plane(label).spacing_mm)
        for label, sector in paths
    ]
    rows = [old, *(new[i : i + NUM_SHEET_COLUMNS] for i in range(0, len(new), NUM_SHEET_COLUMNS))]
    blank = np.zeros_like(old[0])
    num_columns = max(map(len, rows))
    sheet = np.vstack([np.hstack([*row, *[blank] * (num_columns - len(row))]) for row in rows])
    height, width = sheet.shape[:2]
    figure = Figure(figsize=(width / 100 + 0.3, height / 100), dpi=100, facecolor="black")
    axes = figure.add_axes((0.3 / (width / 100 + 0.3), 0, width / 100 / (width / 100 + 0.3), 1))
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    axes.axis("off")
    tile = SHEET_TILE_PX / height
    for text, middle in (("training", 1 - tile / 2), ("sampled", (1 - tile) / 2)):
        figure.text(
            0.1 / (width / 100 + 0.3), middle, text, color="white", rotation=90, ha="center", va="center", size=9
        )
    with atomic_path(output_dir / "contact_sheet.png") as temporary:
        figure.savefig(temporary, facecolor="black")


def _tile(label_map: NDArray[np.uint8], sector: NDArray[Any], spacing_mm: Sequence[float]) -> NDArray[np.uint8]:
    """Return a small square picture: dark grey sector, structures in their colours, darker outside the sector."""
    size = SHEET_TILE_PX - 2
    extent = np.array(label_map.shape) * spacing_mm
    rows, columns = (
        np.floor(((np.arange(size) + 0.5) / size - 0.5) * extent.max() / spacing_mm[axis] + label_map.shape[axis] / 2)
        for axis in (0, 1)
    )
    inside = ((rows >= 0) & (rows < label_map.shape[0]))[:, None] & ((columns >= 0) & (columns < label_map.shape[1]))
    row = np.clip(rows, 0, label_map.shape[0] - 1).astype(int)[:, None]
    column = np.clip(columns, 0, label_map.shape[1] - 1).astype(int)[None, :]
    small, is_sector = np.where(inside, label_map[row, column], 0), inside & (sector[row, column] > 0)
    table = np.array([SECTOR_INDEX_OF_CLASS[class_index] for class_index in range(NUM_CLASSES)])
    colours = colour_sector_label_map(np.where((small > 0) | is_sector, table[small], SECTOR_OUTSIDE_INDEX))
    colours[~is_sector] //= 2
    return np.pad(colours, ((1, 1), (1, 1), (0, 0)), constant_values=110)
