"""Segment an image with every prompt that is wrong in one word, measure the masks, and write files of the results.

P: prompts of one image. L: tokens of a prompt. N: side of the network's square.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.transforms import Transform
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from synboost_monai import __version__
from synboost_monai.csv_files import frame_text
from synboost_monai.distributed import is_main_process
from synboost_monai.evaluation.per_case import this_command
from synboost_monai.evaluation.sensitivity import (
    CSV_NAME,
    JSON_NAME,
    right_dice,
    sensitivity_frame,
    sensitivity_rows,
    summarise_sensitivity,
)
from synboost_monai.files import atomic_write_text, sha256_of
from synboost_monai.inferers.segmentation import PromptedSegmentationInferer
from synboost_monai.letterbox import LetterboxGeometry
from synboost_monai.networks.precision import autocast
from synboost_monai.paths import refuse_overwriting
from synboost_monai.prompts import PromptTokenizer
from synboost_monai.prompts.variations import PromptVariations
from synboost_monai.transforms.array import plain
from synboost_monai.transforms.files import load_echo
from synboost_monai.transforms.postprocessing import restore_logits
from synboost_monai.transforms.ultrasound_dicom import crop_to_region

TABLE_NAMES = ("prompt_sensitivity.csv", "prompt_sensitivity.tex", "prompt_sensitivity.png")
"""Files that `evaluation.sensitivity_tables` makes of a run's."""
MASKS_AT_ONCE = 16
"""Number of masks that are brought to the native grid together: in float32 they are large."""

logger = logging.getLogger(__name__)


class SensitivityPromptsd(Transform):
    """Add `input_ids` (P, L): every prompt of an item's `PromptVariations`. As P differs, a batch holds one item.

    Args:
        variations: which prompts; the handler must have the same variations.
        context_length, padding_id: as in `PromptTokenizer`.
    """

    def __init__(self, variations: PromptVariations, context_length: int = 77, padding_id: int = 0) -> None:
        self.variations = variations
        self.tokenizer = PromptTokenizer(context_length, padding_id)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        variants = self.variations(data)  # type: ignore[arg-type]
        return {**data, "input_ids": self.tokenizer([v.text for v in variants])}


class ManyPromptsInferer(PromptedSegmentationInferer):
    """Segment an image with many prompts: the image is encoded once, the prompts are decoded in parts.

    Args:
        prompts_at_once: number of prompts decoded together; the decoder's memory grows with it, the logits do not change.
        options: options of `PromptedSegmentationInferer`.
    """

    def __init__(self, prompts_at_once: int = 12, **options: Any) -> None:
        super().__init__(**options)
        if prompts_at_once < 1:
            raise ValueError(f"many_prompts.py: prompts_at_once must be at least 1, got {prompts_at_once}")
        self.prompts_at_once = prompts_at_once

    def _logits(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        network: nn.Module,
        input_ids: Tensor | None,
        teaches_view: bool = False,
    ) -> Tensor:
        if input_ids is None or input_ids.shape[1] <= self.prompts_at_once:
            return super()._logits(inputs, network, input_ids, teaches_view)
        if isinstance(inputs, Tensor):
            inputs = self._encoded(inputs, network)
        parts = input_ids.split(self.prompts_at_once, dim=1)
        return torch.cat([super(ManyPromptsInferer, self)._logits(inputs, network, part) for part in parts], dim=1)

    def _encoded(self, images: Tensor, network: nn.Module) -> tuple[Tensor, ...]:
        """Return the features of images, computed as for the images themselves."""
        segmenter: Any = network.module if isinstance(network, DistributedDataParallel) else network
        if self.autocast_dtype is None:
            images = images.to(next(segmenter.parameters()).dtype)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(images.device, self.autocast_dtype):
            return segmenter.encode_image(images)


class PromptSensitivity:
    """Measure every prompt's mask on the native grid, and write sensitivity.csv and sensitivity.json at the end.

    Each prompt's mask is its own probability above the threshold, as in the paper; structures do not compete for pixels, so that
    only the one prompt can move it.

    Args:
        items: result of `checked_items`: case, the expert's label map, and the attributes that prompts are made of.
        variations: which prompts; the preprocessing must have the same variations.
        output_dir: folder of the two files.
        threshold: probability above which a pixel belongs to a structure.
        prompt: must be empty, as a free prompt has no attributes.
        dataset_dir, seed, checkpoint_path, facts (such as section): recorded in sensitivity.json; the seed is also used for the intervals.
    Raises:
        ValueError: if there is a free prompt or the threshold is not a probability.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        variations: PromptVariations,
        output_dir: str | os.PathLike[str],
        *,
        threshold: float = 0.5,
        prompt: str = "",
        dataset_dir: str,
        seed: int = 0,
        checkpoint_path: str | None = None,
        **facts: Any,
    ) -> None:
        if prompt:
            raise ValueError(
                f"many_prompts.py: prompts are made of the images' attributes, but prompt is {prompt!r}; leave it empty"
            )
        if not 0 < threshold < 1:
            raise ValueError(f"many_prompts.py: threshold is a probability between 0 and 1, got {threshold}")
        self.items = {item["case"]: item for item in items}
        self.variations = variations
        self.output_dir = Path(output_dir)
        self.lowest_logit = math.log(threshold / (1 - threshold))
        self.seed = seed
        self.checkpoint_path = checkpoint_path
        self.notes = {"dataset_dir": str(dataset_dir), "threshold": threshold, **facts}
        self.rows: list[dict[str, Any]] = []
        self.num_untested: Counter[str] = Counter()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        paths = [self.output_dir / name for name in (CSV_NAME, JSON_NAME, *TABLE_NAMES)]
        refuse_overwriting(paths, [list(self.items.values()), self.notes["dataset_dir"], self.checkpoint_path])
        self.rows.clear()
        self.num_untested.clear()

    def _measure(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output):
            known = self.items[item["case"]]
            logits = torch.as_tensor(output["pred"])  # (P, N, N)
            geometry = LetterboxGeometry(*(int(n) for n in item["geometry"]))
            native = [restore_logits(part, geometry) > self.lowest_logit for part in logits.split(MASKS_AT_ONCE)]
            truth = plain(crop_to_region(load_echo(known["label"], like=known.get("image"))[0], item["image"].meta))[
                0
            ].to(logits.device)
            facts = {key: known.get(key) for key in ("case", "patient", "view", "phase")}
            rows = sensitivity_rows(torch.cat(native), self.variations(known), truth)
            self.rows += [{**facts, **row} for row in rows]
            self.num_untested.update({name for _, name in self.variations.untested(known)})

    def _write(self, engine: Engine) -> None:
        if not is_main_process():
            return
        frame = sensitivity_frame(self.rows)
        for name, count in self.num_untested.items():
            logger.info(
                f"prompt sensitivity: {name} is not tested in {count} images: it, or what comes before, is unknown"
            )
        atomic_write_text(self.output_dir / CSV_NAME, frame_text(frame, float_format="%.6f"))
        path = self.checkpoint_path
        record = {
            "num_images": int(frame["case"].nunique()),
            "num_patients": int(frame["patient"].fillna(frame["case"]).nunique()),
            "right_dice": right_dice(frame),
            "num_untested_images": dict(self.num_untested),
            "summary": summarise_sensitivity(frame, seed=self.seed),
            **self.notes,
            "grid": "native",
            "seed": self.seed,
            "checkpoint_path": None if path is None else str(path),
            "checkpoint_sha256": None if path is None else sha256_of(path),
            "command": this_command(),
            "synboost_version": __version__,
        }
        atomic_write_text(self.output_dir / JSON_NAME, json.dumps(record, indent=2, allow_nan=False) + "\n")
