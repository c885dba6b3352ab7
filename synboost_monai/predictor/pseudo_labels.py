"""Make a data set of a segmenter's own label maps, from which another training learns (pseudo-labels, self-training).

OUT/CASE.nii.gz      label maps, as `synboost segment` writes them
OUT/datalist.json    the images that are worth learning from, with these label maps
OUT/pseudo_labels.csv   every image: its expected Dice, and whether it is kept, or why not
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from synboost_monai.csv_files import csv_text
from synboost_monai.data.datalist import DATALIST_NAME, find_datalist, list_images, load_datalist, write_datalist
from synboost_monai.data.splits import rank_patients
from synboost_monai.distributed import is_main_process
from synboost_monai.files import atomic_write_text
from synboost_monai.heart.doubt import MIN_APICAL
from synboost_monai.paths import refuse_overwriting
from synboost_monai.prompts import IMAGE_ATTRIBUTES
from synboost_monai.records import EchoRecord
from synboost_monai.transforms.files import label_map_path
from synboost_monai.transforms.postprocessing import DOUBT_KEY

TABLE_NAME = "pseudo_labels.csv"
"""Table of all images beside the datalist."""
KEPT = "kept"
"""What the table says of an image that the data set has."""

logger = logging.getLogger(__name__)


def unlabelled_images(
    dataset_dir: str | os.PathLike[str],
    section: str | Sequence[str],
    labelled_dir: str | os.PathLike[str] | None = None,
    exclude: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """List images to label, without those of patients whom another data set has in any of its sections.

    Args:
        dataset_dir: folder of images, or of a data set, whose label maps are not looked at.
        section: section, or several joined by `+`, of a data set.
        labelled_dir: data set with experts' label maps, whose patients are left out, those that it tests on included.
        exclude: subfolder to skip, such as the run's own output_dir.
    Raises:
        FileNotFoundError, ValueError: as `list_images`; or if no image is left.
    """
    items = [
        {key: value for key, value in item.items() if key not in ("label", "labelled_structures")}
        for item in list_images(dataset_dir, section, exclude=exclude)
    ]
    if labelled_dir is None:
        return items
    content = load_datalist(find_datalist(Path(labelled_dir)))
    known = {str(item.get("patient")) for value in content.values() if isinstance(value, list) for item in value} - {
        "None"
    }
    left = [item for item in items if str(item.get("patient")) not in known]
    if not left:
        raise ValueError(
            f"{dataset_dir}: all {len(items)} images are of patients of {labelled_dir}; give images of other patients, or leave "
            "labelled_dir out"
        )
    return left


class WritePseudoLabels:
    """Write the data set of a segmenter's label maps when all images are segmented; `WriteLabelMaps` writes the label maps.

    An image is left out if a structure is missing in its label map, if the network does not take it for an apical view, or if it is
    among the `drop_share` of the others whose expected Dice is lowest.

    Args:
        items: result of `checked_items`.
        output_dir, output_format: those of `WriteLabelMaps`.
        drop_share: share of the images that are left out because the network is less sure of them than of the others.
        held_out_share: share of the patients whose images become the validation section; at least one patient if it is above 0.
        inputs: files that the run reads besides its images (see `refuse_overwriting`).
    Raises:
        ValueError: if a share is not in [0, 1).
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        output_dir: str | os.PathLike[str],
        output_format: str = "same",
        drop_share: float = 0.25,
        held_out_share: float = 0.0,
        inputs: Sequence[Any] = (),
    ) -> None:
        for name, share in (("drop_share", drop_share), ("held_out_share", held_out_share)):
            if not 0 <= share < 1:
                raise ValueError(f"pseudo_labels.py: {name} must be at least 0 and below 1, got {share}")
        self.items = {item["case"]: item for item in items}
        self.output_dir, self.output_format = Path(output_dir), output_format
        self.drop_share, self.held_out_share, self.inputs = drop_share, held_out_share, inputs
        self.found: dict[str, tuple[float, str]] = {}
        """Case -> expected Dice, and `KEPT` or why it is left out."""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._judge)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        outputs = [self.output_dir / DATALIST_NAME, self.output_dir / TABLE_NAME]
        refuse_overwriting(outputs, [list(self.items.values()), self.inputs])
        self.found.clear()

    def _judge(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output):
            self.found[item["case"]] = _judgement(output[DOUBT_KEY])

    def _write(self, engine: Engine) -> None:
        if not is_main_process():
            return
        usable = sorted((dice, case) for case, (dice, verdict) in self.found.items() if verdict == KEPT)
        for dice, case in usable[: int(self.drop_share * len(usable))]:
            self.found[case] = dice, f"among the least sure {self.drop_share:.0%}"
        kept = [case for case, (_, verdict) in self.found.items() if verdict == KEPT]
        if not kept:
            raise ValueError(
                f"{self.output_dir}: none of {len(self.found)} images is worth learning from (see their CASE.json); give apical views"
            )
        rows = [("case", "expected_dice", "verdict")]
        rows += [(case, f"{dice:.4f}", verdict) for case, (dice, verdict) in sorted(self.found.items())]  # type: ignore[misc]
        atomic_write_text(self.output_dir / TABLE_NAME, csv_text(rows))
        text = f"label maps of {len(kept)} of {len(self.found)} images, made by a segmenter, not by a person"
        sections = self._divided([self._record(case) for case in kept])
        write_datalist(self.output_dir, sections, name="pseudo-labels", description=text)
        logger.info(f"{self.output_dir / DATALIST_NAME}: {text}")

    def _divided(self, records: Sequence[EchoRecord]) -> dict[str, list[EchoRecord]]:
        """Divide records into training and, if patients are held out, validation; always the same patients."""
        patients = rank_patients([record.patient for record in records], 0, "held out")
        num_held_out = math.ceil(self.held_out_share * len(patients))
        if num_held_out == 0:
            return {"training": list(records)}
        if num_held_out == len(patients):
            raise ValueError(
                f"{self.output_dir}: {len(records)} images of {len(patients)} patient are left, too few to hold some out; give more images"
            )
        held_out = {*patients[:num_held_out]}
        return {
            "training": [record for record in records if record.patient not in held_out],
            "validation": [record for record in records if record.patient in held_out],
        }

    def _record(self, case: str) -> EchoRecord:
        item = self.items[case]
        known = {key: item[key] for key in IMAGE_ATTRIBUTES if item.get(key) is not None}
        label = label_map_path(item["image"], self.output_dir / case, self.output_format)
        return EchoRecord(Path(item["image"]), label, str(item.get("patient") or case), **known)


def _judgement(doubt: Mapping[str, Any]) -> tuple[float, str]:
    """Return the expected Dice of an image, the mean over its structures, and `KEPT` or why it is left out."""
    found = doubt["structures"]
    expected = sum(values["expected_dice"] for values in found.values()) / len(found)
    if missing := [name for name, values in found.items() if values["is_empty"]]:
        return expected, f"no {missing[0].replace('_', ' ')}"
    if "view" in doubt and doubt["view"]["apical"] < MIN_APICAL:
        return expected, "no apical view"
    return expected, KEPT
