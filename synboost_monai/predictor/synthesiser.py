"""Synthesise images from label maps: the one pipeline from a label map to an image, and the synthesiser for Python.

N: side of the network's square. C: channels of an image.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synboost_monai.bundle_run import parsed
from synboost_monai.predictor.bundle import open_bundle, unwrapped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

SYNTHESIS_BUNDLE = "echo_semantic_diffusion"
"""The bundle that synthesises by default."""
HIGHEST_STRENGTH = 2.0
"""Highest strength of a perturbation; 1 is the published one."""


@dataclass(frozen=True)
class Condition:
    """Hold the label map and facts that an image is synthesised from, in the network's square."""

    label_map: NDArray[np.uint8]
    """(N, N), classes 0..3: the target of a segmentation."""
    sector_label_map: NDArray[np.uint8]
    """(N, N): the label map with the sector as a class of its own."""
    spacing_mm: tuple[float, float]
    """(row, column)."""
    attributes: Mapping[str, Any]
    """`view` and `phase`, where known."""
    item: dict[str, Any]
    """The pipeline's item."""

    @property
    def picture(self) -> NDArray[np.uint8]:
        """Return the sector label map in colours, (N, N, 3)."""
        from synboost_monai.transforms.label_map_array import colour_sector_label_map

        return colour_sector_label_map(self.sector_label_map)


@dataclass(frozen=True)
class Synthetic:
    """Hold a synthetic image with its label map."""

    image: NDArray[np.uint8]
    """(N, N), black outside the sector."""
    condition: Condition

    @property
    def label_map(self) -> NDArray[np.uint8]:
        """Return the label map, (N, N), classes 0..3."""
        return self.condition.label_map

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """Return the spacing, (row, column)."""
        return self.condition.spacing_mm


class Synthesiser:
    """Synthesise images with a bundle's diffusion model, which is loaded once; call it with a label map.

    Images go through the network one at a time (`images_at_once: 1`) with all of this process's threads, unless the overrides say
    otherwise; the last bits may differ from those of a run of the bundle with its own numbers.

    Args:
        bundle: name or folder.
        checkpoint_path: weights; None: those of the bundle.
        overrides: keys of inference.yaml -> values, such as preset, image_size, num_inference_steps, sampler, device.
        flag: command-line flag that names the weights, for errors.
    Raises:
        FileNotFoundError: if there are no weights; the message says how to get some.
        ValueError: if a key does not exist, or weights and settings do not belong together.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] = SYNTHESIS_BUNDLE,
        checkpoint_path: str | os.PathLike[str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        flag: str = "--checkpoint_path",
    ) -> None:
        import torch
        from monai.transforms import Compose

        from synboost_monai.networks import load_weights

        ours = {"images_at_once": 1, "num_threads": torch.get_num_threads(), "num_variations": 1}
        opened = open_bundle(bundle, checkpoint_path, {**ours, **(overrides or {})}, flag=flag)
        self._parser = opened.parser
        self.network, self._inferer = opened.setting("network"), opened.setting("inferer")
        load_weights(self.network, opened.checkpoint_path)
        self.network.eval()
        self.device = torch.device(opened.setting("device"))
        self.image_size = int(opened.setting("image_size"))
        self.num_steps = int(self._inferer.sampler.num_inference_steps)
        multiple = int(getattr(self.network, "size_multiple", 1))
        if self.image_size % multiple:
            key = "--synthesis.image_size" if flag.startswith("--synthesis") else "image_size"
            raise ValueError(
                f"{key} is {self.image_size} but this network needs multiples of {multiple}; give that of its training"
            )
        steps = self._parser["postprocessing"]["transforms"]
        at = [i for i, step in enumerate(steps) if "plan" not in step]  # steps that write files have the run's plan
        self._finish = Compose([parsed(self._parser, f"postprocessing::transforms::{i}") for i in at])
        self._lock = threading.Lock()  # one network, one image at a time

    def __call__(
        self,
        label: str | os.PathLike[str],
        *,
        image: str | os.PathLike[str] | None = None,
        strength: float = 0.0,
        seed: int = 0,
        view: str | None = None,
        phase: str | None = None,
    ) -> Synthetic:
        """Synthesise an image from a label map.

        Args:
            label: path of a label map with classes 0..3.
            image: path of its image, whose sector is taken; None: the default sector.
            strength: of the published perturbation of the label map, 0 ... `HIGHEST_STRENGTH`; 0 leaves it as it is.
            seed: of perturbation and noise, 0 or more.
            view, phase: of the label map, where known; some models take them.
        Raises:
            FileNotFoundError, ValueError: if the file is not a label map, or a number is out of range.
        """
        known = {key: word for key, word in (("view", view), ("phase", phase)) if word is not None}
        condition = self.prepare(label, image, known, strength, seed)
        return Synthetic(self.sample(condition, seed), condition)

    def prepare(
        self,
        label: str | os.PathLike[str],
        image: str | os.PathLike[str] | None = None,
        attributes: Mapping[str, Any] | None = None,
        strength: float = 0.0,
        seed: int = 0,
    ) -> Condition:
        """Bring a label map into the network's square and perturb it there, as the bundle does; `attributes` are its view and phase."""
        import torch

        from synboost_monai.synthesis.plan import spacing_in_square

        if not 0 <= strength <= HIGHEST_STRENGTH:
            raise ValueError(f"the strength must be 0 to {HIGHEST_STRENGTH:g}, got {strength:g}")
        if seed < 0:
            raise ValueError(f"the seed must be 0 or more, got {seed}")
        item: dict[str, Any] = {"label": os.fspath(label), "name": os.path.basename(label)}
        if image is not None:
            item["image"] = os.fspath(image)
        known = dict(attributes or {})
        item |= {**known, "perturbation_seed": int(seed), "noise_seed": 0}
        with self._lock:
            self._parser["perturbation_strength"] = float(strength)
            preprocessing = parsed(self._parser, "preprocessing")
        item = unwrapped(preprocessing, item)
        label_map = torch.as_tensor(item["label"])[0].to(torch.uint8).numpy()
        sector_label_map = torch.as_tensor(item["sector_label_map"])[0].numpy()
        spacing_mm = spacing_in_square(item["geometry"], item["spacing_mm"])
        return Condition(label_map, sector_label_map, spacing_mm, known, item)

    def sample(
        self, condition: Condition, seed: int = 0, on_images: Callable[[Tensor], None] | None = None
    ) -> NDArray[np.uint8]:
        """Sample an image (N, N).

        Args:
            condition: from `prepare`.
            seed: of the noise, 0 or more.
            on_images: called after each evaluation of the network with the present image, (1, C, N, N); an error that it raises ends the
                sampling.
        """
        import numpy as np
        import torch

        if seed < 0:
            raise ValueError(f"the seed must be 0 or more, got {seed}")
        with self._lock:
            self._inferer.on_images = on_images
            try:
                label_onehot = torch.as_tensor(condition.item["image"])[None].to(self.device)
                class_labels = torch.tensor([int(condition.item["class_label"])])
                pred = self._inferer(label_onehot, self.network, torch.tensor([seed]), class_labels)
            finally:
                self._inferer.on_images = None
        item = unwrapped(self._finish, {**condition.item, "pred": pred[0]})
        return torch.as_tensor(item["pred"])[0].cpu().numpy().round().astype(np.uint8)


def load_synthesiser(
    bundle: str | os.PathLike[str] = SYNTHESIS_BUNDLE,
    checkpoint_path: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Synthesiser:
    """Load a synthesiser, which is called with a label map and a seed.

    Args:
        bundle: echo_semantic_diffusion, or the folder of a bundle.
        checkpoint_path: its weights, a model.pt; by default the bundle's own. The model.json beside them describes them.
        settings: keys of the bundle's inference.yaml, such as device, num_inference_steps, sampler.
    Raises:
        FileNotFoundError, ValueError: in one line, if there are no weights, or they do not fit.
    """
    return Synthesiser(bundle, checkpoint_path, settings)
