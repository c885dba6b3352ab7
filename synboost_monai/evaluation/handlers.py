"""Write label maps, their doubt and their metrics on the native grid, as Ignite handlers of inference and evaluation."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray

from synboost_monai import __version__
from synboost_monai.distributed import is_main_process
from synboost_monai.evaluation.per_case import DISTANCES, case_metrics, write_metrics_csv, write_summary
from synboost_monai.files import (
    METAIMAGE_SUFFIXES,
    NIFTI_SUFFIXES,
    atomic_path,
    atomic_write_text,
    image_suffix,
    read_grid,
)
from synboost_monai.heart.calibration import FEATURES, fit_calibration
from synboost_monai.heart.doubt import FREE_PROMPT, PREDICTION_CODES, DoubtAssessor, doubt_summary
from synboost_monai.paths import refuse_overwriting
from synboost_monai.structures import STRUCTURES
from synboost_monai.transforms.files import OUTPUT_FORMATS, label_map_path, load_echo, write_label_map
from synboost_monai.transforms.postprocessing import DOUBT_KEY, EVIDENCE_KEY, SPREAD_KEY, display_order
from synboost_monai.transforms.ultrasound_dicom import CALIBRATED_KEY

PNG_SPREAD_SCALE = 510
"""Grey levels per unit of spread in a PNG spread map: 255 is 0.5, the largest possible spread."""
SPREAD_DECIMALS = 3
"""Decimals of a spread that are kept in files; the rounding makes a file three times smaller."""

logger = logging.getLogger(__name__)


def items_of(engine: Engine) -> list[Mapping[str, Any]]:
    """Return the items of `checked_items` that a run goes through, before any image is loaded."""
    data = getattr(getattr(engine.state.dataloader, "dataset", None), "data", ())
    return [item for item in data if isinstance(item, Mapping) and {"image", "case"} <= item.keys()]


class WriteLabelMaps:
    """Write each label map of `RestoreLabelMapd` to `output_dir/CASE`, in its image's frame (see `write_label_map`).

    Beside it, where the postprocessing gives them, are `CASE_spread`, the spread in the same frame (float32; PNG: 8 bits, 255 = 0.5),
    and `CASE.json`, the result of `DoubtAssessor` with the names of the files; nothing else in it identifies the patient.

    This is a handler and not the last postprocessing step, because MONAI Label runs the postprocessing and writes by itself.

    A run whose results would replace an image, a label map or one of `inputs` is refused when it starts.

    Args:
        output_dir: folder that is made when the first label map is written.
        output_format: "same" as the image, or "nifti".
        inputs: files that the run reads besides its images, such as weights (see `refuse_overwriting`).
    """

    def __init__(
        self, output_dir: str | os.PathLike[str], output_format: str = "same", inputs: Sequence[Any] = ()
    ) -> None:
        if output_format not in OUTPUT_FORMATS:
            raise ValueError(
                f"handlers.py: output_format must be one of {', '.join(OUTPUT_FORMATS)}, got {output_format!r}"
            )
        self.output_dir = Path(output_dir)
        self.output_format = output_format
        self.inputs = inputs

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._keep_inputs)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _keep_inputs(self, engine: Engine) -> None:
        """Refuse to replace files that the run reads."""
        items = items_of(engine)
        refuse_overwriting((path for item in items for path in self._files_of(item)), [items, self.inputs])

    def _files_of(self, item: Mapping[str, Any]) -> list[Path]:
        """Return every file that an item's result may have."""
        target = self.output_dir / item["case"]
        path = label_map_path(item["image"], target, self.output_format)
        return [path, Path(f"{target}_spread{image_suffix(path)}"), Path(f"{target}.json")]

    def __call__(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output):
            image_path = item["image"].meta["filename_or_obj"]
            target = self.output_dir / item["case"]
            path = write_label_map(display_order(output["pred"].cpu()), image_path, target, self.output_format)
            spread_path = None
            if SPREAD_KEY in output:
                spread = display_order(output[SPREAD_KEY].cpu()).numpy()
                spread_path = write_spread(spread, path, Path(f"{target}_spread"))
            if DOUBT_KEY in output:
                record = {
                    "case": item["case"],
                    "image": Path(image_path).name,
                    "label_map": path.name,
                    "spread": spread_path and spread_path.name,
                    **output[DOUBT_KEY],
                    "synboost_version": __version__,
                }
                atomic_write_text(Path(f"{target}.json"), json.dumps(record, indent=2, allow_nan=False) + "\n")


def write_spread(spread: NDArray[np.float32], label_map_path: Path, target: Path) -> Path:
    """Write a spread map in the frame of a label map's file: same stored order, shape, spacing, origin and orientation.

    Args:
        spread: (H, W), or (T, H, W) of a clip, in display order.
        label_map_path: the written label map.
        target: where to write, without a suffix; the label map's suffix is added.
    Returns:
        path of the file: NIfTI and MetaImage float32, rounded to `SPREAD_DECIMALS`; PNG 8 bits, spread x `PNG_SPREAD_SCALE`.
    """
    rounded = np.round(spread, SPREAD_DECIMALS).astype(np.float32, copy=False)
    rounded = rounded[None] if rounded.ndim == 2 else rounded
    suffix = image_suffix(label_map_path)
    if suffix in NIFTI_SUFFIXES:
        import nibabel as nib

        like = nib.load(label_map_path)
        header = like.header.copy()
        header.set_data_dtype(np.float32)
        path = Path(f"{target}.nii.gz")
        with atomic_path(path) as temporary:
            nib.save(type(like)(read_grid(label_map_path).to_stored(rounded), None, header), temporary)
        return path
    if suffix in METAIMAGE_SUFFIXES:
        import itk

        like = itk.imread(str(label_map_path))
        image = itk.image_from_array(np.ascontiguousarray(read_grid(label_map_path).to_stored(rounded).T))
        image.SetSpacing(like.GetSpacing())
        image.SetOrigin(like.GetOrigin())
        image.SetDirection(like.GetDirection())
        path = Path(f"{target}.mha")
        with atomic_path(path) as temporary:
            itk.imwrite(image, str(temporary), compression=True)
        return path
    from PIL import Image

    path = Path(f"{target}.png")
    with atomic_path(path) as temporary:
        Image.fromarray(np.round(spread * PNG_SPREAD_SCALE).clip(0, 255).astype(np.uint8)).save(temporary)
    return path


class CaseMetrics:
    """Measure each label map against the expert's on the native grid, and write metrics.csv and summary.json at the end.

    With the results of a `DoubtAssessor`, metrics.csv gets the columns predicted_dice and verdict (of the image), and summary.json
    gets `doubt`: how well the predicted Dice ranks the true Dice, and how many bad images the verdicts caught (`doubt_summary`).

    Args:
            items: result of `checked_items`: case, the expert's label map (read here, since native sizes differ within a batch), patient,
                view and phase. Structures that the expert did not draw (`labelled_structures` names those drawn) get no row, nor do those
                that a free prompt does not name. Label maps without a pixel size (pictures) get no distances.
        output_dir: folder of the two files.
        dataset_dir, section, facts: recorded in summary.json; seed and checkpoint_path among the facts as in `write_summary`.
        paper_grid: also measure on the paper's 512 x 512 grid (columns dice_512, iou_512, hausdorff_512; see `case_metrics`).
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        output_dir: str | os.PathLike[str],
        *,
        dataset_dir: str,
        section: str,
        paper_grid: bool = False,
        **facts: Any,
    ) -> None:
        self.items = {item["case"]: item for item in items}
        self.output_dir = Path(output_dir)
        self.paper_grid = paper_grid
        self.notes = {"dataset_dir": dataset_dir, "section": section, "paper_grid": paper_grid, **facts}
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        read = [self.notes.get(key) for key in ("dataset_dir", "checkpoint_path", "calibration_path")]
        refuse_overwriting(self._paths, [list(self.items.values()), read])
        self.rows.clear()

    @property
    def _paths(self) -> tuple[Path, Path]:
        return self.output_dir / "metrics.csv", self.output_dir / "summary.json"

    def _measure(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output):
            known = self.items[item["case"]]
            truth, spacing_mm = load_echo(known["label"], like=known.get("image"))
            attributes = {key: known.get(key) for key in ("case", "patient", "view", "phase")}
            labelled = known.get("labelled_structures")
            asked = output.get(DOUBT_KEY, {}).get(FREE_PROMPT)
            for row in case_metrics(display_order(output["pred"].cpu()), truth[0], spacing_mm, self.paper_grid):
                if labelled is not None and row["structure"] not in labelled:
                    continue
                if asked is not None and row["structure"] != asked["structure"]:
                    continue  # the label map shows one structure only
                if not truth.meta[CALIBRATED_KEY]:
                    row |= dict.fromkeys(DISTANCES)  # pixels are not millimetres
                self.rows.append({**attributes, **row, **_said(output.get(DOUBT_KEY), row["structure"])})

    def _write(self, engine: Engine) -> None:
        if is_main_process():
            is_calibrated = [row.pop("is_calibrated", None) for row in self.rows]
            if self.rows and None not in is_calibrated:
                self.notes["doubt"] = {"calibrated": all(is_calibrated), **doubt_summary(self.rows)}
            csv_path, summary_path = self._paths
            write_metrics_csv(csv_path, self.rows)
            write_summary(summary_path, self.rows, **self.notes)


class WriteCalibration:
    """Fit the predicted Dice to a labelled section, and write calibration.json at the end (see `heart.calibration`).

    Args:
        items: result of `checked_items`: case, the expert's label map, patient (else each image counts as one).
        assessor: the assessor that judged the label maps; `calibration_path` must not be set (a calibration found beside the weights
            does not change the features).
        path: the JSON file.
        dataset_dir, section, seed: recorded in it.
        review_share: largest share of the section's images that may go to review for their predicted Dice.
    Raises:
        ValueError: if the assessor was given a calibration, or there is too little to fit (`fit_calibration`).
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        assessor: DoubtAssessor,
        path: str | os.PathLike[str],
        *,
        dataset_dir: str,
        section: str,
        seed: int | None = None,
        review_share: float = 0.1,
    ) -> None:
        if assessor.calibration_path is not None:
            raise ValueError("handlers.py: a calibration is fitted without another one; set calibration_path to null")
        self.items = {item["case"]: item for item in items}
        self.assessor = assessor
        self.path = Path(path)
        self.review_share = review_share
        self.notes = {"dataset_dir": str(dataset_dir), "section": str(section), "seed": seed}
        self.results: list[tuple[str, int, dict[str, Any], dict[str, float]]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        read = [self.notes["dataset_dir"], self.assessor.checkpoint_path]
        refuse_overwriting([self.path], [list(self.items.values()), read])
        self.results.clear()

    def _measure(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output):
            if FREE_PROMPT in output[DOUBT_KEY]:
                raise ValueError("handlers.py: a calibration is of the three structures; leave prompt empty")
            known = self.items[item["case"]]
            truth, spacing_mm = load_echo(known["label"], like=known.get("image"))
            rows = case_metrics(display_order(output["pred"].cpu()), truth[0], spacing_mm)
            dice = {row["structure"]: float(row["dice"]) for row in rows}
            patient = str(known.get("patient") or item["case"])
            self.results.append((patient, output[EVIDENCE_KEY][0]["num_groups"], output[DOUBT_KEY], dice))

    def _write(self, engine: Engine) -> None:
        if not is_main_process():
            return
        names = [s.name for s in STRUCTURES]
        doubts = [doubt for _, _, doubt, _ in self.results]
        calibration = fit_calibration(
            {n: [self.assessor.features(doubt, n) for doubt in doubts] for n in names},
            {n: [dice[n] for *_, dice in self.results] for n in names},
            [patient for patient, *_ in self.results],
            is_empty={n: [doubt["structures"][n]["is_empty"] for doubt in doubts] for n in names},
            is_sent_anyway=[any(r["code"] not in PREDICTION_CODES for r in doubt["reasons"]) for doubt in doubts],
            review_share=self.review_share,
            checkpoint_sha256=str(self.assessor.model_sha256),
            settings=self.assessor.settings,
            num_groups=self.results[0][1],
            **self.notes,
        )
        calibration.write(self.path)
        logger.info(
            f"{self.path}: {calibration.num_images} images of {calibration.num_patients} patients, features {', '.join(FEATURES)}; "
            f"left-out patients: Spearman {_text(calibration.spearman_pooled)} over structures, "
            f"{_text(calibration.spearman_image_mean)} over images; {calibration.review_share:.0%} go to review"
        )


def _said(doubt: Mapping[str, Any] | None, structure: str) -> dict[str, Any]:
    """Return the columns of metrics.csv that come from a result of `DoubtAssessor`."""
    if doubt is None or structure not in doubt["structures"]:
        return {}
    predicted = doubt["structures"][structure]["predicted_dice"]
    return {"predicted_dice": predicted, "verdict": doubt["verdict"], "is_calibrated": doubt["calibrated"]}


def _text(correlation: float | None) -> str:
    return "undefined" if correlation is None else f"{correlation:.2f}"
