"""Infer with one trained fold, as Auto3DSeg's ensembles need it: class probabilities on the image's native grid.

S: structures. E: groups of prompts. N: side of the network's square. H, W: native rows and columns. K: classes, 0 is background.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from monai.data import MetaTensor
from torch import Tensor

from synboost_monai.auto3dseg.folds import find_item
from synboost_monai.auto3dseg.settings import HYPER_PARAMETERS_NAME, read_hyper_parameters
from synboost_monai.auto3dseg.train import FACTS, FACTS_NAME
from synboost_monai.data import list_images
from synboost_monai.files import read_text
from synboost_monai.formats.grid import to_stored
from synboost_monai.letterbox import LetterboxGeometry
from synboost_monai.predictor import Pipeline, open_bundle
from synboost_monai.structures import STRUCTURES
from synboost_monai.transforms.postprocessing import mean_logits, restore_logits
from synboost_monai.transforms.ultrasound_dicom import stored_order

MAX_NETWORKS = 12
"""Trained folds that stay in memory: Auto3DSeg makes a new `InferClass` for each image and network (5 folds of both algorithms are 10
networks)."""
OVERRIDES = (
    "prompt_level",
    "prompt_ensemble",
    "domain_word",
    "threshold",
    "device",
    "dtype",
    "autocast_dtype",
    "channels_last",
)
"""Keys of the bundle's inference config that prediction parameters may override; MONAI passes others too, which are ignored."""


class InferClass:
    """Predict probabilities from an image file with a trained fold; `BundleAlgo.get_inferer` needs the name of this class.

    Args:
        config_file: the fold's configs/hyper_parameters.yaml; one file or several.
        override: keys of `OVERRIDES`; `rank` chooses the GPU; anything else is ignored.
    Raises:
        FileNotFoundError: if the fold is not trained.
        ValueError: if the training's inference.yaml was changed into something else.
    """

    def __init__(self, config_file: str | Sequence[str], **override: Any) -> None:
        files = [config_file] if isinstance(config_file, (str, os.PathLike)) else list(config_file)
        named = next((Path(f) for f in files if Path(f).name == HYPER_PARAMETERS_NAME), Path(files[0]))
        self.root = named.resolve().parents[1]
        self.settings = read_hyper_parameters(files)
        weights = self.root / "model" / "model.pt"
        facts = self.root / "model" / FACTS_NAME
        if not weights.is_file() or not facts.is_file():
            raise FileNotFoundError(
                f"{weights}: this fold is not trained; call synboost auto3dseg (or AutoRunner) again"
            )
        chosen = {key: override[key] for key in OVERRIDES if key in override}
        if "device" not in chosen and torch.cuda.is_available():
            chosen["device"] = f"cuda:{int(override.get('rank', 0)) % torch.cuda.device_count()}"
        values = {"prompt_ensemble": None, **_facts_of(facts), **chosen}
        self.threshold = float(values.get("threshold", 0.5))
        words = json.dumps(values, sort_keys=True)
        self.trained = _trained(str(self.settings["bundle"]), str(weights), weights.stat().st_mtime_ns, words)

    def infer(self, image_file: str | Mapping[str, Any]) -> MetaTensor:
        """Return the class probabilities of one image.

        The prompts state the image's attributes: those of the run's datalist under its path, else those that its name tells.

        Args:
            image_file: path of an image, or an item of a datalist with its path under `image`.
        Returns:
            (K, W, H) float64 on the CPU, with the file's affine: the order in which its file and MONAI's readers store it; (K, X, Y, Z) for
            a slice along another axis.
            Over K they add up to 1, and their argmax is the label map of the bundle (see `class_probabilities`).
        """
        item = self._item(image_file)
        data = self.trained.prepare(self.trained.fit(self.trained.load(item)))
        logits = self.trained.logits(data["image"][None], data["input_ids"][None])[0]
        geometry = LetterboxGeometry(*(int(n) for n in data["geometry"]))
        shown = class_probabilities(self.trained.of_masks(logits).cpu(), geometry, self.threshold)  # (K, H, W)
        order = stored_order(data["image"].meta)
        stored = torch.stack([to_stored(frame[None], order) for frame in shown])
        stored = stored[..., 0] if order.frame_axis == 2 else stored
        # as MONAI's readers leave it: without this word SaveImage takes the last of two axes for the channel
        meta = {**data["image"].meta, "original_channel_dim": float("nan")}
        meta["spatial_shape"] = np.array(stored.shape[1:])
        meta["filename_or_obj"] = name_below(item["image"], str(self.settings["data_file_base_dir"]))
        return MetaTensor(stored, meta=meta)

    def _item(self, image_file: str | Mapping[str, Any]) -> dict[str, Any]:
        """Return the image's item, with attributes as in our datalists.

        Those that MONAI passes are not used: `datafold_read` puts the data's folder before every text.
        """
        path = str(image_file["image"] if isinstance(image_file, Mapping) else image_file)
        where = str(self.settings["data_list_file_path"]), str(self.settings["data_file_base_dir"])
        known = find_item(*where, path) or list_images(path)[0]
        return {key: value for key, value in known.items() if key != "label"} | {"image": os.path.abspath(path)}


def _facts_of(path: Path) -> dict[str, Any]:
    """Return the facts that a training wrote for inference; other keys, which could name code, are refused."""
    content = yaml.safe_load(read_text(path))
    unknown = sorted(map(str, set(content) - set(FACTS))) if isinstance(content, dict) else [repr(content)]
    if unknown:
        raise ValueError(
            f"{path}: expected the keys that a training writes ({', '.join(FACTS)}), got {unknown[0]}; train this fold again"
        )
    return dict(content)


@lru_cache(maxsize=MAX_NETWORKS)
def _trained(bundle: str, weights: str, time_ns: int, overrides: str) -> Pipeline:
    """Return the bundle's own pipeline, with a fold's weights.

    Args:
        bundle: its name.
        weights: path of model.pt.
        time_ns: when the weights were written; other weights get another entry of the cache.
        overrides: of the inference config, as JSON.
    """
    return Pipeline(open_bundle(bundle, weights, json.loads(overrides)))


def class_probabilities(logits: Tensor, geometry: LetterboxGeometry, threshold: float = 0.5) -> Tensor:
    """Return probabilities of background and structures that agree with the arbitration rule of `logits_to_label_map`.

    For each prompt by itself the network answers "is this pixel structure s?" with probability p_s = sigmoid(l_s).
    Given that at most one answer is yes, the rest is background:

        P(0) ~ prod_j (1 - p_j),   P(s) ~ p_s prod_{j != s} (1 - p_j),   so   P = softmax(0, l_1, ..., l_S)

    With a threshold t other than 1/2 the background's logit is log(t / (1 - t)). The largest probability is then the structure with
    the highest logit where that is above the threshold, else the background: the same label map, pixel by pixel.

    Args:
        logits: (E * S, N, N); several groups of prompts are averaged in probability (`mean_logits`).
        geometry: where the image is in the square.
        threshold: probability above which a pixel belongs to a structure.
    Returns:
        (K, H, W) float64: in float32 rounding would make different logits equal.
    """
    groups = logits.float().unflatten(0, (-1, len(STRUCTURES)))  # (E, S, N, N)
    joined = mean_logits(groups) if len(groups) > 1 else groups[0]
    native = restore_logits(joined, geometry).double()  # (S, H, W)
    # as the rule has it: the threshold's logit, rounded to the logits' type
    level = torch.tensor(threshold / (1 - threshold), dtype=torch.float64).log().float().double()
    classes = torch.cat([level.expand(1, *native.shape[1:]), native])
    ordered = torch.zeros_like(classes)
    ordered[[0, *(s.class_index for s in STRUCTURES)]] = classes
    return ordered.softmax(dim=0)


def name_below(image: str, folder: str) -> str:
    """Return the path that names a prediction: the image's, or, if that is not below the folder, one below it without `..`.

    MONAI's `SaveImage` writes to its output folder plus the path from `dataroot` to the image: for `../data/image.nii.gz` in a datalist
    it would write outside that folder.
    """
    relative = Path(os.path.relpath(os.path.abspath(image), os.path.abspath(folder)))
    return str(Path(folder, *(part for part in relative.parts if part != "..")))
