"""Synthesises one image from a label map by a bundle's own inference config, and shows it while it is sampled.

N: side of the network's square. K: classes of the sector label map.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.transforms import Compose
from torch import Tensor

from synboost_monai.bundle_run import parsed
from synboost_monai.data.synthetic import spacing_in_square
from synboost_monai.data.synthetic_writers import write_nifti
from synboost_monai.demo.sources import LabelSource, Source
from synboost_monai.networks import load_weights
from synboost_monai.predictor import open_bundle, unwrapped
from synboost_monai.transforms.label_map_array import colour_sector_label_map

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUNDLE = "echo_semantic_diffusion"
"""It synthesises, unless another one is given."""
HIGHEST_STRENGTH = 2.0
"""Of a perturbation in the page; 1 is published."""
HOW_TO_TRAIN = (
    "synboost run echo_semantic_diffusion train_small --dataset_dir DATA --output_dir OUT",
    "--synthesis_checkpoint_path OUT/model.pt",
)
"""Command that makes weights, and the flags of `synboost demo` that use them."""


@dataclass(frozen=True)
class Condition:
    """What an image is synthesised from, in the network's square."""

    label_map: NDArray[np.uint8]
    """(N, N), classes 0..3: the target of a segmentation."""
    picture: NDArray[np.uint8]
    """(N, N, 3): the sector label map in colours."""
    spacing_mm: tuple[float, float]
    attributes: Mapping[str, Any]
    item: dict[str, Any]


@dataclass(frozen=True)
class Synthetic:
    """A finished image."""

    image: NDArray[np.uint8]
    """(N, N), black outside the sector."""
    condition: Condition

    def source(self, folder: Path, name: str) -> Source:
        """To segment; written as NIfTI."""
        path = folder / f"{name}.nii.gz"
        write_nifti(self.image, self.condition.spacing_mm, path, "SynBoost-MONAI synthetic")
        return Source(path, {**self.condition.attributes, "is_synthetic": True}, self.condition.label_map)


@dataclass(frozen=True)
class Step:
    """How far the sampling has come."""

    done: int
    total: int
    picture: NDArray[np.uint8]
    """(N, N), grey: x_t, noise at first."""
    result: Synthetic | None = None
    """With the last step."""


@dataclass
class _Sampling:
    """Between the thread that samples and the one that shows."""

    items: queue.Queue[Any] = field(default_factory=queue.Queue)
    is_stopped: threading.Event = field(default_factory=threading.Event)


class _StoppedError(Exception):
    """Nobody looks any more."""


class Synthesiser:
    """A bundle's diffusion model, loaded once.

    Images go through the network one at a time (`images_at_once: 1`) with all of this process's threads, unless the overrides say
    otherwise; against a run of the bundle with its own numbers the last bits may differ.

    Args:
        checkpoint_path: weights; None: those of the bundle.
        overrides: of keys of inference.yaml, such as preset, image_size, num_inference_steps, sampler, device.
        bundle: name or folder.
    Raises:
        FileNotFoundError: if there are no weights; the message says how to get some.
        ValueError: if a key does not exist, or weights and settings do not belong together.
    """

    def __init__(
        self, checkpoint_path: str | None = None, overrides: Mapping[str, Any] | None = None, bundle: str = BUNDLE
    ) -> None:
        ours = {"images_at_once": 1, "num_threads": torch.get_num_threads(), "num_variations": 1}
        values = {**ours, **(overrides or {})}
        opened = open_bundle(bundle, checkpoint_path, values, flag="--synthesis_checkpoint_path")
        self._parser = opened.parser
        self.network, self._inferer = opened.setting("network"), opened.setting("inferer")
        load_weights(self.network, opened.checkpoint_path)
        self.network.eval()
        self.device = torch.device(opened.setting("device"))
        self.image_size = int(opened.setting("image_size"))
        multiple = int(getattr(self.network, "size_multiple", 1))
        if self.image_size % multiple:
            raise ValueError(
                f"--synthesis.image_size is {self.image_size} but this network needs multiples of {multiple}; give that of its training"
            )
        steps = self._parser["postprocessing"]["transforms"]
        at = [i for i, step in enumerate(steps) if "plan" not in step]  # what writes files has the run's plan
        self._finish = Compose([parsed(self._parser, f"postprocessing::transforms::{i}") for i in at])
        self._lock = threading.Lock()

    def condition(self, source: LabelSource, strength: float = 0.0, seed: int = 0) -> Condition:
        """Bring a label map into the network's square and perturb it there, as the bundle does.

        Args:
            source: the label map.
            strength: of the published perturbation, 0 ... `HIGHEST_STRENGTH`; 0 leaves it as it is.
            seed: of the perturbation, 0 or more.
        Raises:
            FileNotFoundError, ValueError: if the file is no label map, or a number is out of range.
        """
        if not 0 <= strength <= HIGHEST_STRENGTH:
            raise ValueError(f"the strength must be 0 to {HIGHEST_STRENGTH:g}, got {strength:g}")
        if seed < 0:
            raise ValueError(f"the seed must be 0 or more, got {seed}")
        item: dict[str, Any] = {"label": str(source.path), "name": source.path.name}
        if source.image_path is not None:
            item["image"] = str(source.image_path)
        item |= {**source.attributes, "perturbation_seed": int(seed), "noise_seed": 0}
        with self._lock:
            self._parser["perturbation_strength"] = float(strength)
            preprocessing = parsed(self._parser, "preprocessing")
        item = unwrapped(preprocessing, item)
        label_map = torch.as_tensor(item["label"])[0].to(torch.uint8).numpy()
        sector_label_map = torch.as_tensor(item["sector_label_map"])[0].numpy()
        return Condition(
            label_map,
            colour_sector_label_map(sector_label_map),
            spacing_in_square(item["geometry"], item["spacing_mm"]),
            dict(source.attributes),
            item,
        )

    def steps(self, condition: Condition, seed: int = 0) -> Iterator[Step]:
        """Sample an image; the pictures come while it is sampled, and closing the generator ends it.

        Args:
            condition: of `condition`.
            seed: of the noise, 0 or more.
        Yields:
            a step after each evaluation of the network, the last one with the result.
        """
        if seed < 0:
            raise ValueError(f"the seed must be 0 or more, got {seed}")
        sampling = _Sampling()
        thread = threading.Thread(target=self._sample, args=(condition, seed, sampling), daemon=True)
        thread.start()
        try:
            while True:
                item = sampling.items.get()  # the thread puts its result or its error last, whatever happens
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.result is not None:
                    return
        finally:
            sampling.is_stopped.set()
            thread.join()

    def _sample(self, condition: Condition, seed: int, sampling: _Sampling) -> None:
        """In a thread of its own: puts steps, or the error that ended it."""
        total, done = self._inferer.num_inference_steps, 0
        last: NDArray[np.uint8] | None = None

        def show(images: Tensor) -> None:
            nonlocal done, last
            if sampling.is_stopped.is_set():
                raise _StoppedError
            done += 1
            last = _grey(images[0])
            if done < total:
                sampling.items.put(Step(done, total, last))

        try:
            with self._lock:
                self._inferer.on_images = show
                try:
                    label_onehot = torch.as_tensor(condition.item["image"])[None].to(self.device)
                    class_labels = torch.tensor([int(condition.item["class_label"])])
                    pred = self._inferer(label_onehot, self.network, torch.tensor([seed]), class_labels)
                finally:
                    self._inferer.on_images = None
            item = unwrapped(self._finish, {**condition.item, "pred": pred[0]})
            image = torch.as_tensor(item["pred"])[0].cpu().numpy().round().astype(np.uint8)
            sampling.items.put(Step(total, total, image, Synthetic(image, condition)))
        except _StoppedError:
            pass
        except Exception as error:
            sampling.items.put(error)


def _grey(image: Tensor) -> NDArray[np.uint8]:
    """(C, N, N) in about [-1, 1] -> (N, N), 0..255."""
    mean = image.float().mean(dim=0).clamp(-1, 1)
    return ((mean + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
