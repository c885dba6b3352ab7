"""Compare the clinical measures of an evaluation's label maps with those of the experts' label maps, patient by patient.

The module reads an evaluation's folder (metrics.csv, summary.json, label_maps/CASE) and the data set that was evaluated; it writes
clinical.csv, clinical.json and a Bland-Altman plot of the ejection fraction for each method into the folder.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synboost_monai import __version__
from synboost_monai.csv_files import frame_text, read_frame
from synboost_monai.data.datalist import DATALIST_NAME, read_datalist
from synboost_monai.evaluation.agreement import MIN_PAIRS, STATISTICS, agreement
from synboost_monai.evaluation.per_case import this_command
from synboost_monai.files import (
    FRAME_SUFFIXES,
    UNCALIBRATED_SUFFIXES,
    atomic_path,
    atomic_write_text,
    image_suffix,
    read_frames,
    read_text,
)
from synboost_monai.heart.measures import MEASURES, METHODS, ClinicalMeasure, measure_patient
from synboost_monai.pages.figures import new_figure, png_of
from synboost_monai.pages.tables import Table
from synboost_monai.paths import refuse_overwriting
from synboost_monai.records import IMAGE_QUALITIES

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

COLUMNS = (
    "patient",
    "measure",
    "method",
    "unit",
    "predicted",
    "expert",
    "reference",
    "image_quality",
    "reason",
    "warning",
)
"""Columns of clinical.csv, which has one row per patient, measure and method. `reference` is the ejection fraction of Info_*.cfg;
`reason` and `warning` say which value (predicted, expert or reference) they concern."""
COMPARISONS = (("predicted", "expert"), ("predicted", "reference"), ("expert", "reference"))
"""Columns of clinical.csv whose agreement is reported, first minus second."""
MAIN_MEASURES = ("end_diastolic_volume_ml", "end_systolic_volume_ml", "ejection_fraction")
"""Measures that are also reported by image quality."""
ALL_QUALITIES = "all"
"""Name of the group of all patients, whatever the image quality."""
QUALITY_COLOURS = {"good": "#55a868", "medium": "#4c72b0", "poor": "#c44e52", "": "#777777"}
"""Image quality ('' if not known) -> colour in the plot."""

TABLE_STATISTICS = (
    *("num_pairs", "bias", "lower_limit", "upper_limit", "mae"),
    *("pearson_r", "icc", "icc_low", "icc_high"),
)
"""Keys of `agreement` that are columns of tables."""
TABLE_FORMATS = {
    **dict.fromkeys(("bias", "lower_limit", "upper_limit"), "+.1f"),
    "mae": ".1f",
    **dict.fromkeys(("pearson_r", "icc", "icc_low", "icc_high"), ".2f"),
}
"""Formats of these columns."""

_NAMES = {"predicted": "predicted", "expert": "experts", "reference": "Info_*.cfg"}
_REFERENCE_NOTE = "Info_*.cfg of CAMUS follows CAMUS's rule, that of the phantom biplane"
_HEADINGS = {
    "image_quality": "image quality",
    "num_pairs": "n",
    "lower_limit": "limits from",
    "upper_limit": "to",
    "mae": "MAE",
    "pearson_r": "r",
    "icc": "ICC(2,1)",
    "icc_low": "95 % from",
    "icc_high": "to",
}


@dataclass(frozen=True)
class ClinicalResult:
    """Hold the results of `clinical_measures` and the paths of the files that it wrote."""

    frame: pd.DataFrame
    """Table with `COLUMNS`; None where there is no value."""
    summary: dict[str, Any]
    """Content of clinical.json."""
    csv_path: Path
    json_path: Path
    plot_paths: list[Path] = field(default_factory=list)
    """Bland-Altman plots of the ejection fraction, one per method with at least `MIN_PAIRS` patients."""

    @property
    def tables(self) -> list[Table]:
        """Return tables of the agreement with the experts, and with Info_*.cfg and by image quality where these are known."""
        return _tables(self.summary)

    def pairs(self, measure: str, method: str) -> pd.DataFrame:
        """Return the rows of a measure and method in which the prediction and the expert have a value."""
        is_asked = (self.frame["measure"] == measure) & (self.frame["method"] == method)
        return self.frame[is_asked].dropna(subset=list(COMPARISONS[0]))


def clinical_measures(
    evaluation_dir: str | os.PathLike[str],
    dataset_dir: str | os.PathLike[str] | None = None,
    *,
    section: str | None = None,
    plots: bool = True,
) -> ClinicalResult:
    """Measure volumes, ejection fraction and lengths in an evaluation's and the experts' label maps, and compare them.

    Pictures (PNG) have no pixel size, so only the ejection fraction of single views is computed for them. The image quality of a biplane
    measure is the poorer one of its views. Methods that need a view which no patient has are left out of clinical.csv and listed in
    clinical.json.

    Args:
        evaluation_dir: folder that `synboost evaluate` wrote, with its label_maps.
        dataset_dir: the data set that was evaluated; by default the one named in summary.json.
        section: section of the data set; by default the one named in summary.json.
        plots: whether Bland-Altman plots are written.
    Raises:
        FileNotFoundError: if the folder does not hold an evaluation, or the data set does not exist.
        ValueError: if no evaluated image of the section has a known patient, view and phase, or a patient has two images of
            the same view and phase.
    """
    import pandas as pd

    evaluation_dir = Path(evaluation_dir)
    facts = _facts(evaluation_dir)
    dataset = _dataset_path(evaluation_dir, facts) if dataset_dir is None else Path(dataset_dir)
    section = section or str(facts.get("section") or "testing")
    items = read_datalist(dataset, section, partly_labelled=True)
    patients, skipped = _patients(evaluation_dir, items, f"{dataset}: section {section}")
    views = {view for items in patients.values() for view, _ in items}
    methods = [method for method, (_, needed) in METHODS.items() if views.issuperset(needed)]
    rows = [
        row for patient, items in sorted(patients.items()) for row in _rows(patient, items, evaluation_dir, methods)
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame = frame.astype({name: float for name in ("predicted", "expert", "reference")})

    summary = {
        "num_patients": len(patients),
        "agreement": _agreements(frame),
        "left_out": {
            "methods": {m: _views_needed(m, views) for m in METHODS if m not in methods},
            "images": skipped,
            "num_values": int(frame[["predicted", "expert"]].isna().sum().sum()),
            "values": _counts(frame, "reason"),
        },
        "warnings": _counts(frame, "warning"),
        "dataset_dir": str(dataset),
        "section": section,
        **{key: facts.get(key) for key in ("seed", "checkpoint_path", "checkpoint_sha256")},
        "command": this_command(),
        "synboost_version": __version__,
    }
    csv_path, json_path = evaluation_dir / "clinical.csv", evaluation_dir / "clinical.json"
    read = [dataset, [item for of_patient in patients.values() for item in of_patient.values()]]
    refuse_overwriting([csv_path, json_path], read, "give another --dataset_dir")
    atomic_write_text(csv_path, frame_text(frame, float_format="%.6g"))
    atomic_write_text(json_path, json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    result = ClinicalResult(frame, summary, csv_path, json_path)
    for method in methods if plots else ():
        pairs = result.pairs("ejection_fraction", method)
        if len(pairs) >= MIN_PAIRS:
            result.plot_paths.append(evaluation_dir / f"bland_altman_{method}.png")
            with atomic_path(result.plot_paths[-1]) as temporary:
                temporary.write_bytes(_bland_altman_plot(pairs, METHODS[method][0]))
    return result


# ---- the plot


def _bland_altman_plot(pairs: pd.DataFrame, method: str) -> bytes:
    """Draw predicted minus expert ejection fraction over their mean, with bias, limits of agreement and 95 % intervals, as PNG.

    Args:
        pairs: predicted, expert and image_quality of at least `MIN_PAIRS` patients.
        method: method of measurement, in words.
    """
    a, b = pairs["predicted"].to_numpy(dtype=float), pairs["expert"].to_numpy(dtype=float)
    qualities = pairs["image_quality"].fillna("").to_numpy()
    found = agreement(a, b)
    figure = new_figure(6.2, 4.2, dpi=130)
    axes = figure.subplots()
    for quality in [q for q in QUALITY_COLOURS if (qualities == q).any()]:
        is_shown = qualities == quality
        label = f"{quality or 'not known'} (n = {is_shown.sum()})"
        x, y = ((a + b) / 2)[is_shown], (a - b)[is_shown]
        axes.scatter(x, y, s=22, color=QUALITY_COLOURS[quality], alpha=0.8, linewidths=0, label=label, zorder=3)
    for name, words, style in (
        ("upper_limit", "+1.96 SD", "--"),
        ("bias", "bias", "-"),
        ("lower_limit", "−1.96 SD", "--"),
    ):
        value, low, high = (found[key] for key in (name, f"{name}_low", f"{name}_high"))
        axes.axhline(value, color="black", linestyle=style, linewidth=1)
        at_edge, beside = axes.get_yaxis_transform(), 0.96 if name == "bias" else 0.98  # with few pairs they overlap
        axes.errorbar(
            beside, value, [[value - low], [high - value]], transform=at_edge, color="black", capsize=4, linewidth=1
        )
        text = f"{words}\n{value:+.1f} points".replace("-", "−")
        axes.annotate(text, (1.01, value), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes.axhline(0, color="black", linewidth=0.6, alpha=0.4)
    axes.margins(x=0.08)
    axes.set_xlabel("mean of predicted and experts: ejection fraction (%)")
    axes.set_ylabel("predicted − experts (percentage points)")
    axes.set_title(f"Ejection fraction, {method}  (n = {len(pairs)})", fontsize=10)
    if (qualities != "").any():
        figure.legend(
            title="image quality", loc="outside lower center", ncols=4, fontsize=8, title_fontsize=8, frameon=False
        )
    return png_of(figure)


# ---- reading


def _facts(evaluation_dir: Path) -> dict[str, Any]:
    """Read summary.json."""
    for name in ("summary.json", "metrics.csv"):
        if not (evaluation_dir / name).is_file():
            raise FileNotFoundError(
                f"{evaluation_dir}: expected {name} in this folder; give the folder that `synboost evaluate` wrote"
            )
    try:
        return dict(json.loads(read_text(evaluation_dir / "summary.json")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{evaluation_dir}/summary.json: is damaged ({error}); run `synboost evaluate` into this folder again"
        ) from error


def _dataset_path(evaluation_dir: Path, facts: Mapping[str, Any]) -> Path:
    """Return the data set of summary.json, whose path may be relative to a folder above the evaluation."""
    if not facts.get("dataset_dir"):
        raise ValueError(f"{evaluation_dir}/summary.json: names no dataset_dir; give --dataset_dir")
    named = Path(facts["dataset_dir"])
    candidates = [named, *(parent / named for parent in evaluation_dir.resolve().parents)]
    for path in candidates:
        if path.is_file() or (path / DATALIST_NAME).is_file():
            return path
    raise FileNotFoundError(
        f"{evaluation_dir}/summary.json: its dataset_dir {named} is not there; give --dataset_dir, the folder with {DATALIST_NAME}"
    )


Items = dict[tuple[str, str], dict[str, Any]]
"""(view, phase) -> item of the datalist, with the name of its `case` in the evaluation."""


def _patients(
    evaluation_dir: Path, items: Sequence[Mapping[str, Any]], where: str
) -> tuple[dict[str, Items], dict[str, int]]:
    """Return evaluated items by patient, view and phase, and how many items were passed over for which reason."""

    keys = ["patient", "view", "phase"]
    evaluated = read_frame(evaluation_dir / "metrics.csv", usecols=["case", *keys], dtype=str).drop_duplicates()
    cases: dict[tuple[str, ...], list[str]] = {}
    for case, *key in evaluated[["case", *keys]].dropna().itertuples(index=False, name=None):
        cases.setdefault(tuple(key), []).append(case)
    patients: dict[str, Items] = {}
    skipped: Counter[str] = Counter()
    for item in items:
        if any(item.get(key) is None for key in keys):
            skipped["patient, view or phase is not known"] += 1
            continue
        patient, view, phase = key = tuple(str(item[name]) for name in keys)
        if key not in cases:
            skipped["not in metrics.csv"] += 1
            continue
        if len(cases[key]) > 1 or (view, phase) in patients.get(patient, {}):
            raise ValueError(
                f"{where}: {patient} has several images of {view}, {phase}; clinical measures need one of each view and phase"
            )
        patients.setdefault(patient, {})[view, phase] = {**item, "case": cases[key][0]}
    if not patients:
        raise ValueError(
            f"{where}: no image that {evaluation_dir}/metrics.csv knows by patient, view and phase; give the data set that was "
            "evaluated, with these in its datalist"
        )
    return patients, dict(skipped)


def _rows(patient: str, items: Items, evaluation_dir: Path, methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Return a patient's rows of clinical.csv."""
    frames = {key: _predicted(evaluation_dir, item) for key, item in items.items()}
    predicted = measure_patient(frames, is_one_clip=True)
    files = {key: item.get("label") for key, item in items.items()}
    times = tuple(0 if path is None else os.stat(path).st_mtime_ns for path in files.values())
    expert = _measured_experts(tuple(files.items()), times)
    known = {float(i["ejection_fraction"]) for i in items.values() if i.get("ejection_fraction") is not None}
    for of_model, of_expert in zip(predicted, expert):
        if of_model.method not in methods:
            continue
        is_fraction = of_model.measure == "ejection_fraction"
        reasons = [("predicted", of_model.reason), ("expert", of_expert.reason)]
        if is_fraction and len(known) > 1:
            reasons.append(("reference", "the views' files disagree"))
        yield {
            "patient": patient,
            "measure": of_model.measure,
            "method": of_model.method,
            "unit": MEASURES[of_model.measure][1],
            "predicted": of_model.value,
            "expert": of_expert.value,
            "reference": next(iter(known)) if is_fraction and len(known) == 1 else None,
            "image_quality": _quality(items, METHODS[of_model.method][1]),
            "reason": _joined(reasons),
            "warning": _joined([("predicted", of_model.warning), ("expert", of_expert.warning)]),
        }


@lru_cache(maxsize=1024)
def _measured_experts(
    files: tuple[tuple[tuple[str, str], str | None], ...], times_ns: tuple[int, ...]
) -> list[ClinicalMeasure]:
    """Return the measures of a patient's expert label maps; they are the same for every evaluation of the same images.

    Args:
        files: ((view, phase), path) of each label map; no path: there is no label map.
        times_ns: times when they were written; files with other times are measured anew.
    """
    return measure_patient(
        {key: "no label map" if path is None else _read(path) for key, path in files}, is_one_clip=True
    )


def _joined(texts: Sequence[tuple[str, str]]) -> str | None:
    """Return `predicted: ... | expert: ...`, without empty texts."""
    return " | ".join(f"{whose}: {text}" for whose, text in texts if text) or None


def _quality(items: Items, views: Sequence[str]) -> str | None:
    """Return the poorest known image quality of some views."""
    known = [item.get("image_quality") for (view, _), item in items.items() if view in views]
    return max((q for q in known if q in IMAGE_QUALITIES), key=IMAGE_QUALITIES.index, default=None)


def _predicted(evaluation_dir: Path, item: Mapping[str, Any]) -> tuple[NDArray[Any], tuple[float, float] | None] | str:
    """Return the predicted label map of an item and its spacing, or a text that says there is none."""
    paths = [evaluation_dir / "label_maps" / f"{item['case']}{suffix}" for suffix in FRAME_SUFFIXES]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        return "the label map was not kept"
    pixels, spacing_mm = _read(path)  # NIfTI even for a picture, whose spacing was not measured
    return pixels, None if image_suffix(item.get("image") or "") in UNCALIBRATED_SUFFIXES else spacing_mm


def _read(path: str | os.PathLike[str]) -> tuple[NDArray[Any], tuple[float, float] | None]:
    """Return a label map and its spacing; a picture has no spacing."""
    frames = read_frames(path)
    pixels = frames.pixels[0]
    if pixels.dtype.kind == "f" and (pixels == pixels.round()).all():
        pixels = pixels.astype("int64")
    return pixels, None if image_suffix(path) in UNCALIBRATED_SUFFIXES else frames.spacing_mm


# ---- agreement


def _agreements(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the `agreement` of every comparison, measure, method and group of image quality that has a pair."""
    kinds = dict(iter(frame.groupby(["measure", "method"])))
    found = []
    for comparison, measure, method in product(COMPARISONS, MEASURES, METHODS):
        if (measure, method) not in kinds:
            continue
        part = kinds[measure, method].dropna(subset=list(comparison))
        for quality in (ALL_QUALITIES, *IMAGE_QUALITIES):
            group = part if quality == ALL_QUALITIES else part[part["image_quality"] == quality]
            if len(group):
                key = {"first": comparison[0], "second": comparison[1], "measure": measure, "method": method}
                numbers = agreement(group[comparison[0]], group[comparison[1]])
                found.append({**key, "unit": MEASURES[measure][1], "image_quality": quality, **numbers})
    return found


def _counts(frame: pd.DataFrame, column: str) -> list[dict[str, Any]]:
    """Return each reason (or warning) with its number of values and its patients, the most frequent one first."""
    told: dict[str, list[str]] = {}
    for patient, text in frame.loc[frame[column].notna(), ["patient", column]].itertuples(index=False, name=None):
        for whose, parts in (part.split(": ", 1) for part in text.split(" | ")):
            for part in parts.split("; "):
                told.setdefault(f"{whose}: {part}", []).append(patient)
    ordered = sorted(told.items(), key=lambda entry: -len(entry[1]))
    return [{"reason": k, "num_values": len(v), "patients": sorted(set(v))} for k, v in ordered]


def _views_needed(method: str, views: set[str]) -> str:
    """Say why a method does not apply to a data set with the given views."""
    missing = [view.removeprefix("apical_").replace("_", "-") for view in METHODS[method][1] if view not in views]
    return f"no patient has a {' and a '.join(missing)} view"


def _tables(summary: Mapping[str, Any]) -> list[Table]:
    """Return tables of the agreement with the experts, with Info_*.cfg where it is known, and by image quality where it is known."""
    import pandas as pd

    keys = ["first", "second", "measure", "method", "image_quality"]
    records = pd.DataFrame(summary["agreement"], columns=[*keys, "unit", *STATISTICS])
    shown = records[["image_quality", *TABLE_STATISTICS]].copy()
    shown.insert(0, "difference", [f"{_NAMES[a]} − {_NAMES[b]}" for a, b in zip(records["first"], records["second"])])
    shown.insert(1, "measure", [f"{MEASURES[m][0]}, {MEASURES[m][1]}" for m in records["measure"]])
    shown.insert(2, "method", [METHODS[m][0] for m in records["method"]])
    is_all, is_of_experts = records["image_quality"] == ALL_QUALITIES, records["second"] == "expert"
    is_main = records["measure"].isin(MAIN_MEASURES)

    note = (
        f"{summary['section']} section of {summary['dataset_dir']}, {summary['num_patients']} patients; "
        f"{summary['left_out']['num_values']} values are missing (clinical.json says why); "
        f"limits of agreement: bias ± 1.96 SD; command: {summary['command']}"
    )
    parts = {
        "clinical_agreement": (
            "predicted minus experts",
            shown[is_all & is_of_experts].drop(columns=["difference", "image_quality"]),
        ),
        "clinical_reference": (
            "ejection fraction of Info_*.cfg",
            shown[is_all & ~is_of_experts].drop(columns=["measure", "image_quality"]),
        ),
        "clinical_by_quality": (
            "predicted minus experts, by image quality",
            shown[is_main & ~is_all & is_of_experts].drop(columns="difference"),
        ),
    }
    notes = {"clinical_reference": f"{_REFERENCE_NOTE}; {note}"}
    return [
        Table(name, f"Clinical measures: {title}", frame, TABLE_FORMATS, _HEADINGS, notes.get(name, note))
        for name, (title, frame) in parts.items()
        if len(frame) or name == "clinical_agreement"
    ]
