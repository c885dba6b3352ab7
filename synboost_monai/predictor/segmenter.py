"""Segment images by prompts: the one pipeline from images and prompts to label maps, and the segmenter for Python.

It follows the bundle's own inference.yaml, part by part, and gives what `synboost segment` gives for the same file, pixel for pixel.

B: images of a batch. T: frames of a clip. H, W: rows and columns of the image, for DICOM of its whole frame. S: prompts of an image.
L: tokens of a prompt. N: side of the network's square.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synboost_monai.bundle_run import as_literal
from synboost_monai.predictor.bundle import OpenBundle, open_bundle, unwrapped
from synboost_monai.prompts import IMAGE_ATTRIBUTES
from synboost_monai.prompts.understanding import Understood, understand_if_any
from synboost_monai.structures import BACKGROUND_INDEX, STRUCTURES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

DEFAULT_BUNDLE = "echo_cris"
"""The segmenter that is loaded by default."""
ATTRIBUTES = IMAGE_ATTRIBUTES
"""Facts of an image that prompts can state, where they are known."""
MAX_PROMPTS = 8
"""Most prompts whose text features are kept."""


class Pipeline:
    """Hold a loaded segmenter's bundle: its network, and its steps in the order in which an image goes through them.

    `load` reads a file, `fit` brings the image into the network's square, `prepare` makes the network's input and prompts of it, `logits`
    asks the network; `restore`, or the whole `postprocessing`, gives a label map on the image's own grid.

    Args:
        opened: the bundle.
    Attributes:
        name, checkpoint_path: name of the bundle, path of its weights.
        network, device, inferer: those of the bundle.
        tokens: the step that makes prompts from an image's attributes.
        normalise: the step that makes the network's input from an image in its square.
        postprocessing: the steps from logits to results.
        restore: the step of `postprocessing` that makes a label map from logits.
        lock: held by threads that share the network.
    Raises:
        ValueError: if weights and settings do not belong together, or the bundle's preprocessing is not that of a segmenter.
    """

    def __init__(self, opened: OpenBundle) -> None:
        import torch
        from monai.transforms import Compose

        from synboost_monai.transforms import Letterboxd, LoadEchod, NormaliseEchod, PromptTokensd, RestoreLabelMapd

        self.opened, self.name, self.checkpoint_path = opened, opened.name, opened.checkpoint_path
        self.network, self.inferer = opened.setting("network").eval(), opened.setting("inferer")
        self.device = torch.device(opened.setting("device"))
        steps = opened.setting("preprocessing").transforms
        kinds = [type(step) for step in steps]
        if kinds[:1] != [LoadEchod] or not {Letterboxd, PromptTokensd, NormaliseEchod} <= set(kinds):
            raise ValueError(
                f"{self.name}: its preprocessing must begin with LoadEchod and have Letterboxd, PromptTokensd and NormaliseEchod"
            )
        boxed = kinds.index(Letterboxd) + 1
        self._load, self._fit, self._prepare = steps[0], Compose(steps[1:boxed]), Compose(steps[boxed:])
        self.tokens, self.normalise = steps[kinds.index(PromptTokensd)], steps[kinds.index(NormaliseEchod)]
        self.postprocessing = opened.setting("postprocessing")
        self.restore = next(step for step in self.postprocessing.transforms if isinstance(step, RestoreLabelMapd))
        self.lock = threading.Lock()

    def load(self, item: Mapping[str, Any]) -> dict[Any, Any]:
        """Read the file of an item's image."""
        return unwrapped(self._load, dict(item))

    def fit(self, item: Mapping[Any, Any]) -> dict[Any, Any]:
        """Fit an item that was read into the network's square."""
        return unwrapped(self._fit, dict(item))

    def prepare(self, item: Mapping[Any, Any]) -> dict[Any, Any]:
        """Make the network's input from an item in its square: `image` (3, N, N), for a clip (T, 3, N, N), and `input_ids` (S, L)."""
        return unwrapped(self._prepare, dict(item))

    def logits(self, images: Tensor, input_ids: Tensor, inferer: Any = None) -> Tensor:
        """Ask the network for the logits of images (B, 3, N, N) or clips (B, T, 3, N, N) and prompts (B, S, L)."""
        import torch

        with torch.no_grad():
            return (inferer or self.inferer)(images.to(self.device), self.network, input_ids)  # type: ignore[no-any-return]

    def of_masks(self, logits: Tensor) -> Tensor:
        """Return the logits of the masks alone, without those of the view that follow them if the network knows views."""
        from synboost_monai.networks.view_head import split_view

        return split_view(logits)[0] if self.inferer.with_view else logits


class Doubt(dict[str, Any]):
    """Hold how far a segmentation can be trusted: the entries of CASE.json that `synboost segment` writes (`heart.doubt`)."""

    @property
    def verdict(self) -> str:
        """Return `accept`, or `review` if a person has to look."""
        return str(self["verdict"])

    @property
    def reasons(self) -> list[str]:
        """Return the reasons why a person has to look, in sentences."""
        return [str(reason["message"]) for reason in self["reasons"]]


@dataclass(frozen=True)
class Prediction:
    """Hold the network's result for an image, or for a clip, where all arrays have T in front."""

    label_map: NDArray[np.uint8]
    """(H, W), classes 0..3."""
    mask: NDArray[np.bool_]
    """(H, W), True for the structure that the prompt names, or for all structures without a prompt."""
    spacing_mm: tuple[float, float] | None
    """(row, column); None if the file has no calibration, or an array came without a spacing."""
    doubt: Doubt
    prompts: tuple[str, ...]
    """The sentences that asked for the mask, each once."""
    understood: Understood | None
    """How a free prompt was read; None if all structures were asked for."""
    spread: NDArray[np.float32] | None
    """(H, W), 0..0.5, disagreement of prompts that mean the same; None with one prompt."""


class Segmenter(Pipeline):
    """Segment any image by any prompt with a bundle's pipeline; call it with an image.

    Args:
        bundle: name or folder.
        checkpoint_path: weights; None: those of the bundle.
        overrides: keys of inference.yaml -> values, such as calibration_path, device, threshold.
    Raises:
        FileNotFoundError, ValueError: as in `open_bundle`, and if weights and settings do not belong together.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] = DEFAULT_BUNDLE,
        checkpoint_path: str | os.PathLike[str] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        # one plane is a clip of one frame
        super().__init__(open_bundle(bundle, checkpoint_path, overrides, prompt="", sequences=True))
        self.image_size = int(self.opened.setting("image_size"))
        # as objects, so that parsing anew for a prompt does not make them again
        parser, assessor = self.opened.parser, self.opened.setting("doubt")
        parser["network"], parser["doubt"] = self.network, assessor
        self._of_prompt: OrderedDict[str, tuple[Any, Any]] = OrderedDict()

    def __call__(
        self,
        image: str | os.PathLike[str] | NDArray[Any],
        prompt: str = "",
        *,
        spacing_mm: Sequence[float] | None = None,
        **attributes: Any,
    ) -> Prediction:
        """Segment an image or clip.

        Args:
            image: path of a file of any format that the project reads, or grey levels (H, W), or (T, H, W) of a clip.
            prompt: words that name one structure, such as "left atrium"; empty, or "all": all three, in one label map.
            spacing_mm: (row, column) of an array; None: not known. For a file its own spacing is used.
            attributes: keys of `ATTRIBUTES`, for the prompts; they take precedence over those of the file.
        Raises:
            FileNotFoundError, ValueError: if the image does not exist or cannot be used, the prompt does not name a structure that the
                network was taught (`prompts.understanding`), or an attribute does not fit the prompts.
        """
        understood = understand_if_any(prompt)
        unknown = [name for name in attributes if name not in ATTRIBUTES]
        if unknown:
            raise ValueError(f"load_segmenter: no attribute is called {unknown[0]}; there are {', '.join(ATTRIBUTES)}")
        item = self.read(image, spacing_mm)
        item = {**item, **{key: value for key, value in attributes.items() if value is not None}}
        return self.predict(self.fit(item), understood)

    def read(
        self, image: str | os.PathLike[str] | NDArray[Any], spacing_mm: Sequence[float] | None = None
    ) -> dict[Any, Any]:
        """Read all frames of an image as the pipeline's item; the arguments are those of a call."""
        from synboost_monai.data import list_images
        from synboost_monai.transforms.files import echo_of_array
        from synboost_monai.transforms.ultrasound_dicom import CALIBRATED_KEY

        if isinstance(image, (str, os.PathLike)):
            if not os.path.isfile(image):
                raise FileNotFoundError(f"{os.fspath(image)}: expected the file of an image; there is none")
            if spacing_mm is not None:
                raise ValueError(
                    f"{os.fspath(image)}: a file tells its own spacing; give spacing_mm with an array alone"
                )
            return self.load(list_images(image)[0])
        read, spacing = echo_of_array(image, spacing_mm)
        known = {"spacing_mm": spacing, CALIBRATED_KEY: spacing_mm is not None, "is_sequence": True}
        return {"image": read, **known}

    def predict(self, item: Mapping[Any, Any], understood: Understood | None = None) -> Prediction:
        """Segment an item from `fit`: the structure that the prompt names, or all structures for None."""
        from synboost_monai.transforms import display_order
        from synboost_monai.transforms.array import plain
        from synboost_monai.transforms.postprocessing import DOUBT_KEY, SPREAD_KEY
        from synboost_monai.transforms.ultrasound_dicom import CALIBRATED_KEY

        prompt = understood.prompt if understood else ""
        said = self.tokens.texts(item)
        item = self.prepare(item)
        with self.lock:
            inferer, postprocessing = self._with_prompt(prompt)
            if understood is not None:
                place = STRUCTURES.index(understood.structure)
                said = (prompt,) if inferer.goes_itself else said[place :: len(STRUCTURES)]
            logits = self.logits(plain(item["image"])[None], item["input_ids"][None], inferer)
            item = unwrapped(postprocessing, {**item, "pred": logits[0]})
        label_map = display_order(item["pred"].cpu()).numpy()
        row, column = (float(s) for s in item["spacing_mm"])
        return Prediction(
            label_map,
            label_map != BACKGROUND_INDEX,
            (row, column) if item[CALIBRATED_KEY] else None,
            Doubt(item[DOUBT_KEY]),
            tuple(dict.fromkeys(said)),
            understood,
            display_order(item[SPREAD_KEY].cpu()).numpy() if SPREAD_KEY in item else None,
        )

    def _with_prompt(self, prompt: str) -> tuple[Any, Any]:
        """Return the inferer and postprocessing of a prompt, which are kept: text is encoded once."""
        if prompt not in self._of_prompt:
            self.opened.parser["displayable_configs::prompt"] = as_literal(prompt)
            self._of_prompt[prompt] = self.opened.setting("inferer"), self.opened.setting("postprocessing")
        self._of_prompt.move_to_end(prompt)
        while len(self._of_prompt) > MAX_PROMPTS:
            self._of_prompt.popitem(last=False)
        return self._of_prompt[prompt]


def load_segmenter(
    bundle: str | os.PathLike[str] = DEFAULT_BUNDLE,
    checkpoint_path: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Segmenter:
    """Load a segmenter, which is called with an image and a prompt.

    Args:
        bundle: echo_cris, echo_clipseg, or the folder of a bundle.
        checkpoint_path: its weights, a model.pt; by default the bundle's own. The model.json beside them describes them.
        settings: keys of the bundle's inference.yaml, such as device, threshold, calibration_path, prompt_level.
    Raises:
        FileNotFoundError, ValueError: in one line, if there are no weights, or they do not fit.
    """
    return Segmenter(bundle, checkpoint_path, settings)
