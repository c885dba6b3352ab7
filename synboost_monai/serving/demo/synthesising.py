"""Show an image while it is synthesised from a label map, by the bundle's own inference config.

N: side of the network's square.
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
from torch import Tensor

from synboost_monai import predictor
from synboost_monai.predictor import SYNTHESIS_BUNDLE, Condition, Synthetic
from synboost_monai.serving.demo.sources import LabelSource, Source
from synboost_monai.synthesis.writers import write_nifti

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Step:
    """Hold the progress of the sampling."""

    done: int
    total: int
    picture: NDArray[np.uint8]
    """(N, N), grey: x_t, which is noise at first."""
    result: Synthetic | None = None
    """The finished image; None before the last step."""


@dataclass
class _Sampling:
    """Connect the thread that samples with the one that shows."""

    items: queue.Queue[Any] = field(default_factory=queue.Queue)
    is_stopped: threading.Event = field(default_factory=threading.Event)


class _StoppedError(Exception):
    """Raised to end a sampling that nobody watches any more."""


class Synthesiser(predictor.Synthesiser):
    """Show a bundle's synthetic image while it is sampled; the arguments are those of `predictor.Synthesiser`."""

    def __init__(self, checkpoint_path: str | None = None, overrides: Mapping[str, Any] | None = None) -> None:
        super().__init__(SYNTHESIS_BUNDLE, checkpoint_path, overrides, "--synthesis_checkpoint_path")

    def condition(self, source: LabelSource, strength: float = 0.0, seed: int = 0) -> Condition:
        """Prepare a label map; strength and seed are those of `predictor.Synthesiser.prepare`."""
        return self.prepare(source.path, source.image_path, source.attributes, strength, seed)

    def steps(self, condition: Condition, seed: int = 0) -> Iterator[Step]:
        """Sample an image and yield pictures meanwhile; closing the generator ends the sampling.

        Args:
            condition: from `condition`.
            seed: of the noise, 0 or more.
        Yields:
            a step after each evaluation of the network, the last one with the result.
        """
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
        """Sample in a separate thread, and queue the steps, or the error that ended it."""
        total, done = self.num_steps, 0

        def show(images: Tensor) -> None:
            nonlocal done
            if sampling.is_stopped.is_set():
                raise _StoppedError
            done += 1
            if done < total:
                sampling.items.put(Step(done, total, _grey(images[0])))

        try:
            image = self.sample(condition, seed, show)
            sampling.items.put(Step(total, total, image, Synthetic(image, condition)))
        except _StoppedError:
            pass
        except Exception as error:
            sampling.items.put(error)


def source_of(synthetic: Synthetic, folder: Path, name: str) -> Source:
    """Write a synthetic image as NIfTI, to be segmented."""
    path, condition = folder / f"{name}.nii.gz", synthetic.condition
    write_nifti(synthetic.image, condition.spacing_mm, path, "SynBoost-MONAI synthetic")
    return Source(path, {**condition.attributes, "is_synthetic": True}, condition.label_map)


def _grey(image: Tensor) -> NDArray[np.uint8]:
    """Convert (C, N, N) in about [-1, 1] to (N, N), 0..255."""
    mean = image.float().mean(dim=0).clamp(-1, 1)
    return ((mean + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
