"""Compare synthetic echocardiograms with real ones and write quality.json, metrics.csv, images.csv and quality.html.

Three sets of images are brought to one grid, that of the synthetic images: the synthetic ones, the real ones that are compared with
them (`real_section`), and the real reference (`real_reference_section`), from which the diffusion model and the segmenter learned. Each
distance of synthetic images to the reference has a floor: the distance of equally many compared real images to the same reference.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from synboost_monai.csv_files import frame_text
from synboost_monai.data.datalist import DATALIST_NAME, read_datalist
from synboost_monai.data.splits import SECTIONS
from synboost_monai.evaluation.per_case import this_command, write_metrics_csv
from synboost_monai.evaluation.quality_images import (
    TISSUES,
    JudgingSegmenter,
    RealReader,
    SyntheticReader,
    load_inception,
    measure,
    patient_of,
)
from synboost_monai.evaluation.quality_numbers import (
    Comparison,
    Neighbours,
    darkness,
    diversity,
    faithfulness,
    feature_distances,
    memorisation_comparison,
    neighbours,
    speckle_comparison,
    spectrum_comparison,
)
from synboost_monai.evaluation.quality_page import write_page
from synboost_monai.evaluation.speckle import SPECKLE_STATISTICS
from synboost_monai.files import atomic_write_text, image_stem, read_text, sha256_of
from synboost_monai.pages.page import package_versions
from synboost_monai.paths import refuse_overwriting
from synboost_monai.transforms import load_echo

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QualityOptions:
    """Hold what is compared in an evaluation of a synthesis, and how."""

    real_section: str = "validation"
    """Real images that are compared with the synthetic ones; neither network was trained on them."""
    real_reference_section: str = "training"
    """Real images against which both are measured."""
    limit: int | None = None
    """Largest number of images of each of the three sets, spread evenly; None: all."""
    seed: int = 0
    """Seed of all random choices."""
    batch_size: int = 8
    """Number of images in a batch of a network."""
    dynamic_range_db: float = 60.0
    """Range of the log compression that is undone for the speckle; the same for all sets."""
    num_bootstrap: int = 2000
    """Number of samples of patients for the intervals."""
    sector_threshold: float = 0.0
    """Brightest value outside the sector of real images, as in the synthesis."""
    inception_path: str | None = None
    """TorchScript file: images (B, 3, 299, 299) in [0, 1] -> features (B, F); None: no FID on Inception's features."""


def evaluate_synthesis(
    dataset_dir: str | os.PathLike[str],
    real_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    segmenter: JudgingSegmenter,
    options: QualityOptions | None = None,
) -> dict[str, Any]:
    """Evaluate a synthetic data set, and write quality.json, metrics.csv, images.csv and quality.html when all is measured.

    Args:
        dataset_dir: folder of a synthesis: datalist.json, provenance.json, images, labels.
        real_dir: folder of a real data set: datalist.json with labels.
        output_dir: folder for the files.
        segmenter: segmenter that was trained on real images.
        options: what is compared, and how.
    Returns:
        the content of quality.json.
    Raises:
        FileNotFoundError: if a data set, its files or the Inception file is missing.
        ValueError: if a section is missing, too small or not disjoint, or the data do not fit together; then nothing is written.
    """
    dataset_dir, real_dir, output_dir = Path(dataset_dir), Path(real_dir), Path(output_dir)
    wanted = options or QualityOptions()
    if wanted.batch_size < 1:
        raise ValueError(f"quality.py: batch_size is {wanted.batch_size}; expected at least 1")
    provenance = _provenance(dataset_dir)
    sections = _sections(dataset_dir)
    all_items = _with_cases(read_datalist(dataset_dir, sections))
    items = _with_cases(read_datalist(dataset_dir, sections, limit=wanted.limit))
    real_items = _with_cases(read_datalist(real_dir, wanted.real_section, limit=wanted.limit))
    reference_items = _with_cases(read_datalist(real_dir, wanted.real_reference_section, limit=wanted.limit))
    outputs = [output_dir / name for name in ("quality.json", "metrics.csv", "images.csv", "quality.html")]
    data = [dataset_dir, dataset_dir / "provenance.json", real_dir, all_items, real_items, reference_items]
    refuse_overwriting(outputs, [*data, segmenter.checkpoint_path, wanted.inception_path])
    where = f"{real_dir}: sections {wanted.real_section} and {wanted.real_reference_section}"
    _check(items, real_items, reference_items, where)
    inception = load_inception(wanted.inception_path, segmenter.device)

    size = int(load_echo(items[0]["image"])[0].shape[-1])
    reader = SyntheticReader(dataset_dir, provenance, real_dir, size, wanted.sector_threshold)
    real_reader = RealReader(size, wanted.sector_threshold)
    by: dict[str, Any] = {
        "batch_size": wanted.batch_size,
        "dynamic_range_db": wanted.dynamic_range_db,
        "inception": inception,
    }
    synthetic = measure(items, reader, segmenter, is_segmented=True, title="synthetic", **by)
    title, reference_title = (f"real, {name}" for name in (wanted.real_section, wanted.real_reference_section))
    real = measure(real_items, real_reader, segmenter, is_segmented=True, title=title, **by)
    reference = measure(reference_items, real_reader, segmenter, is_segmented=False, title=reference_title, **by)
    sets = Comparison(synthetic, real, reference, wanted.seed)
    found = neighbours(sets)
    quality: dict[str, Any] = {
        "faithfulness": faithfulness(sets, wanted.num_bootstrap),
        **feature_distances(sets, segmenter.feature_layer),
        "speckle": speckle_comparison(sets),
        **spectrum_comparison(sets),
        "diversity": diversity(all_items, real_items, (reader, real_reader), wanted.seed),
        "memorisation": memorisation_comparison(sets, found, reader),
        "darkness": darkness(sets),
        "data": {
            "dataset_dir": str(dataset_dir),
            "real_dir": str(real_dir),
            "real_section": wanted.real_section,
            "real_reference_section": wanted.real_reference_section,
            "image_size": size,
            "limit": wanted.limit,
            "num_synthetic": len(items),
            "num_synthetic_in_all": len(all_items),
            "num_real": len(real_items),
            "num_reference": len(reference_items),
            "num_compared": sets.num_compared,
        },
        "settings": {
            "dynamic_range_db": wanted.dynamic_range_db,
            "batch_size": wanted.batch_size,
            "inception_path": wanted.inception_path,
        },
        "segmenter": {**segmenter.facts, "checkpoint_path": str(segmenter.checkpoint_path)},
        "segmenter_checkpoint_sha256": sha256_of(segmenter.checkpoint_path),
        "synthesis": provenance.get("settings", {}),
        "synthesis_checkpoint_sha256": provenance.get("settings", {}).get("checkpoint_sha256"),
        "seed": wanted.seed,
        "command": this_command(),
        "versions": package_versions(),
    }
    quality = _finite(quality)
    write_metrics_csv(output_dir / "metrics.csv", synthetic.rows + real.rows)
    table = _image_table(sets, found)
    atomic_write_text(output_dir / "images.csv", frame_text(table, float_format="%.6g"))
    write_page(output_dir / "quality.html", quality, sets, found, (reader, real_reader), segmenter)
    atomic_write_text(output_dir / "quality.json", json.dumps(quality, indent=1, allow_nan=False) + "\n")
    scores = quality["faithfulness"]
    logger.info(
        "Dice on synthetic images %.3f (real %.3f), FID %.3g (floor %.3g), spectrum distance %.2f dB (floor %.2f dB): %s",
        *(scores["mean_dice"], scores["real_mean_dice"], quality["fid"]["value"], quality["fid"]["floor"]),
        *(quality["spectrum_distance_db"], quality["spectrum_distance_floor_db"], output_dir / "quality.html"),
    )
    return quality


def _provenance(dataset_dir: Path) -> dict[str, Any]:
    """Read provenance.json of a finished synthesis."""
    if not (dataset_dir / DATALIST_NAME).is_file():
        raise FileNotFoundError(
            f"{dataset_dir}: expected a finished synthetic data set with {DATALIST_NAME}; make it with `synboost synthesise`"
        )
    path = dataset_dir / "provenance.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; dataset_dir must be a folder of `synboost synthesise`, real images belong in real_dir"
        )
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); synthesise into a new folder") from error
    if not isinstance(content, dict) or not content.get("images"):
        raise ValueError(f"{path}: tells of no image; run `synboost synthesise` to its end")
    return content


def _sections(dataset_dir: Path) -> list[str]:
    """Return the sections of a datalist that have images."""
    content = json.loads(read_text(dataset_dir / DATALIST_NAME))
    there = [section for section in SECTIONS if isinstance(content, dict) and content.get(section)]
    return there or list(SECTIONS[:1])  # reading this section reports what is wrong


def _with_cases(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return items with `case`: the file's name without suffix, or its path below the common folder where names repeat.

    Raises:
        ValueError: if an item has no image or no label map.
    """
    for item in items:
        for key in ("image", "label"):
            if not item.get(key):
                raise ValueError(
                    f"{item.get('image') or item.get('label')}: has no {key} in its datalist; the evaluation needs both"
                )
    stems = [image_stem(item["image"]) for item in items]
    root = os.path.commonpath([os.path.dirname(item["image"]) for item in items])
    paths = [os.path.relpath(item["image"], root) for item in items]
    names = stems if len(set(stems)) == len(stems) else paths
    return [{**item, "case": name} for item, name in zip(items, names)]


def _check(items: Sequence[Any], real_items: Sequence[Any], reference_items: Sequence[Any], where: str) -> None:
    """Check that there are enough images, and that no patient is both compared and in the reference."""
    smallest = min(len(items), len(real_items), len(reference_items))
    if smallest < 2:
        raise ValueError(
            f"{where}: distances need at least 2 images of each set, got {len(items)} synthetic, {len(real_items)} and "
            f"{len(reference_items)} real; raise limit or choose larger sections"
        )
    both = {patient_of(item) for item in real_items} & {patient_of(item) for item in reference_items}
    if both:
        raise ValueError(f"{where}: patient {sorted(both)[0]} is in both; the floor needs different patients")


def _image_table(sets: Comparison, found: Mapping[str, Neighbours]) -> pd.DataFrame:
    """Return one row for each synthetic and compared real image, for the distributions on the page."""
    rows = []
    for images, is_synthetic in ((sets.synthetic, True), (sets.real, False)):
        for i, item in enumerate(images.items):
            row = {
                "case": item["case"],
                "patient": item.get("patient"),
                "is_synthetic": is_synthetic,
                "dice": images.image_dice[item["case"]],
                "outside_grey": images.outside_grey[i],
            }
            for space, n in found.items():
                row[f"nearest_{space}_distance"] = (n.synthetic if is_synthetic else n.real)[i]
                row[f"nearest_{space}_case"] = (
                    sets.reference.items[n.synthetic_indices[i]]["case"] if is_synthetic else None
                )
            for tissue in TISSUES:
                numbers = images.speckle[i][tissue] or {}
                row |= {f"{tissue}_{name}": numbers.get(name) for name in SPECKLE_STATISTICS}
            rows.append(row)
    return pd.DataFrame(rows)


def _finite(value: Any) -> Any:
    """Return the value with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
