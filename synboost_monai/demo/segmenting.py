"""Segments one image by a bundle's own inference config: what `synboost run BUNDLE inference` makes of the same file.

T: frames of a clip. H, W: rows and columns of the image; of ultrasound DICOM, of its tissue region. N: side of the network's square.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose

from synboost_monai.bundle_run import as_literal, check_overrides, config_files, config_parser
from synboost_monai.demo.sources import ATTRIBUTES, Source
from synboost_monai.errors import user_error
from synboost_monai.formats.grid import shown_affine
from synboost_monai.io import image_stem, is_dicom
from synboost_monai.labels import STRUCTURES
from synboost_monai.prompts.understanding import Understood, understand_if_any
from synboost_monai.transforms import Letterboxd, LoadEchod, PromptTokensd, display_order, write_label_map
from synboost_monai.transforms.array import plain, scale_to_bytes
from synboost_monai.transforms.postprocessing import DOUBT_KEY, SPREAD_KEY
from synboost_monai.transforms.ultrasound_dicom import CALIBRATED_KEY, REGION_KEY, stored_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHTS = "models/model.pt"
"""Where a bundle keeps its weights, below its folder."""
MAX_CLIP_BYTES = 1 << 30
"""Of an open clip: its grey levels and its frames in the network's square."""
MAX_PROMPTS = 8
"""So many prompts' text features are kept."""


@dataclass(frozen=True)
class OpenImage:
    """An image or clip that was read, ready to be segmented."""

    source: Source
    attributes: dict[str, Any]
    """Of `sources.ATTRIBUTES`: what file, its name and the source tell."""
    frames: NDArray[np.uint8]
    """(T, H, W), grey levels to show."""
    spacing_mm: tuple[float, float] | None
    """(row, column); None: the file has no calibration."""
    aspect: tuple[float, float]
    """Height and width of a pixel, in mm where that is known."""
    item: dict[str, Any]
    """The pipeline's item, its image in the network's square (T, N, N)."""
    affine: NDArray[np.float64]
    """Pixel (column, row, frame) of what is shown -> mm."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        boxed = self.item["image"]
        return int(self.frames.nbytes + boxed.numel() * boxed.element_size())

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return image_stem(self.source.path)


@dataclass(frozen=True)
class Segmentation:
    """What the network made of one frame."""

    image: OpenImage
    frame_index: int
    understood: Understood | None
    """The free prompt and what it names; None: all structures."""
    label_map: NDArray[np.uint8]
    """(H, W), classes 0..3."""
    full_label_map: NDArray[np.uint8]
    """On the whole frame of the file."""
    spread: NDArray[np.float32] | None
    """(H, W), 0..0.5: where prompts that mean the same disagree; None with one prompt."""
    doubt: dict[str, Any]
    """Of `metrics.doubt.DoubtAssessor`."""
    prompts: tuple[str, ...]
    """The sentences that the network was given, each once."""

    @property
    def grey(self) -> NDArray[np.uint8]:
        """(H, W): the frame that was segmented."""
        return self.image.frames[self.frame_index]


class Segmenter:
    """A bundle's segmenter, loaded once.

    Args:
        bundle: name or folder.
        checkpoint_path: weights; None: those of the bundle.
        overrides: of keys of inference.yaml, such as preset, image_size, calibration_path, device.
    Raises:
        FileNotFoundError: if there is no such bundle, or no weights; the message says how to get some.
        ValueError: if a key does not exist, or weights and settings do not belong together.
    """

    def __init__(
        self, bundle: str, checkpoint_path: str | None = None, overrides: Mapping[str, Any] | None = None
    ) -> None:
        files = config_files(bundle, "inference")
        root = files[0].parents[1]
        values = check_overrides(files, overrides or {})
        self.name = root.name
        self.checkpoint_path = checked_weights(
            root,
            checkpoint_path,
            "--checkpoint_path",
            f"synboost run {root.name} train_small --dataset_dir DATA --output_dir OUT",
            "--checkpoint_path OUT/model.pt --preset small",
        )
        values |= {"bundle_root": str(root), "checkpoint_path": str(self.checkpoint_path), "prompt": ""}
        values["sequences"] = True  # one plane is a clip of one frame
        self._parser = config_parser(files, values)
        self.image_size = int(self._parsed("image_size"))
        network, assessor, preprocessing = (self._parsed(key) for key in ("network", "doubt", "preprocessing"))
        self.network = network.eval()
        self.device = torch.device(self._parsed("device"))
        # as objects: what is parsed anew for a prompt does not make them again
        self._parser["network"], self._parser["doubt"] = self.network, assessor
        steps = list(preprocessing.transforms)
        at = next((i for i, step in enumerate(steps) if isinstance(step, Letterboxd)), None)
        if at is None or not isinstance(steps[0], LoadEchod):
            raise ValueError(f"{self.name}: its preprocessing must begin with LoadEchod and have Letterboxd")
        self._load, self._fit, self._finish = steps[0], Compose(steps[1 : at + 1]), Compose(steps[at + 1 :])
        self._tokens = next((step for step in steps if isinstance(step, PromptTokensd)), None)
        self._of_prompt: OrderedDict[str, tuple[Any, Any]] = OrderedDict()
        self._lock = threading.Lock()  # one network, one image at a time

    def open(self, source: Source) -> OpenImage:
        """Read a file, all its frames.

        Raises:
            FileNotFoundError, ValueError: if it is no image that can be used.
        """
        item = applied(self._load, {**source.attributes, "image": str(source.path)})
        read: MetaTensor = item["image"]
        if read.numel() + 4 * len(read) * self.image_size**2 > MAX_CLIP_BYTES:
            raise ValueError(
                f"{source.path.name}: a clip of {len(read)} frames of {read.shape[-2]} x {read.shape[-1]} pixels is too long for this "
                "page; cut it, or use `synboost segment`"
            )
        row, column = (float(s) for s in item["spacing_mm"])
        is_calibrated = bool(item[CALIBRATED_KEY])
        return OpenImage(
            source,
            {key: item.get(key) for key in ATTRIBUTES},
            scale_to_bytes(plain(read)).round().clamp(0, 255).to(torch.uint8).numpy(),
            (row, column) if is_calibrated else None,
            (row, column),
            applied(self._fit, item),
            shown_affine(
                np.asarray(read.affine, dtype=np.float64), read.meta["spatial_shape"], stored_order(read.meta)
            ),
        )

    @torch.no_grad()
    def segment(
        self, image: OpenImage, prompt: str = "", attributes: Mapping[str, Any] | None = None, frame_index: int = 0
    ) -> Segmentation:
        """Segment one frame.

        Args:
            image: of `open`.
            prompt: words that name one structure; empty, or "all": all three, in one label map.
            attributes: of `sources.ATTRIBUTES`, for the prompts in place of those found; None: those found.
            frame_index: from 0.
        Raises:
            ValueError: if the prompt does not name one structure (`understand`), an attribute cannot be said, or there is no such frame.
        """
        understood = understand_if_any(prompt)
        prompt = understood.prompt if understood else ""
        if not 0 <= frame_index < len(image.frames):
            raise ValueError(f"there are frames 0 to {len(image.frames) - 1}, got {frame_index}")
        known = {key: (image.attributes if attributes is None else attributes).get(key) for key in ATTRIBUTES}
        item: dict[Any, Any] = {key: value for key, value in image.item.items() if key not in ATTRIBUTES}
        item |= {key: value for key, value in known.items() if value not in (None, "")}
        boxed = image.item["image"]
        item["image"] = MetaTensor(plain(boxed)[frame_index : frame_index + 1], meta=boxed.meta)
        said = self._tokens.texts(item) if self._tokens is not None else ()
        item = applied(self._finish, item)
        with self._lock:
            inferer, postprocessing = self._with_prompt(prompt)
            if understood is not None:
                num, place = len(STRUCTURES), STRUCTURES.index(understood.structure)
                said = (prompt,) if inferer.goes_itself else said[place::num]
            inputs = plain(item["image"])[None].to(self.device)  # (1, 1, 3, N, N)
            logits = inferer(inputs, self.network, item["input_ids"][None])
            item = applied(postprocessing, {**item, "pred": logits[0]})
        full = display_order(item["pred"].cpu()).numpy()
        first_row, first_column, rows, columns = (int(n) for n in boxed.meta[REGION_KEY])
        region = np.s_[first_row : first_row + rows, first_column : first_column + columns]
        spread = display_order(item[SPREAD_KEY].cpu()).numpy()[region] if SPREAD_KEY in item else None
        return Segmentation(
            image, frame_index, understood, full[region], full, spread, item[DOUBT_KEY], tuple(dict.fromkeys(said))
        )

    def _with_prompt(self, prompt: str) -> tuple[Any, Any]:
        """Inferer and postprocessing of a prompt, kept: text is encoded once."""
        if prompt not in self._of_prompt:
            self._parser["displayable_configs::prompt"] = as_literal(prompt)
            self._of_prompt[prompt] = self._parsed("inferer"), self._parsed("postprocessing")
        self._of_prompt.move_to_end(prompt)
        while len(self._of_prompt) > MAX_PROMPTS:
            self._of_prompt.popitem(last=False)
        return self._of_prompt[prompt]

    def _parsed(self, key: str) -> Any:
        return parsed(self._parser, key)


def write_segmentation(segmentation: Segmentation, folder: Path) -> Path:
    """Write the label map of the shown frame as NIfTI, in the frame of its file; of a clip, as a plane by itself.

    Args:
        segmentation: of `Segmenter.segment`.
        folder: of the file, NAME_label_map.nii.gz; a clip's frame number, from 1, stands in the name.
    Returns:
        its path.
    """
    image = segmentation.image
    like, name = image.source.path, image.name
    if len(image.frames) > 1:
        name = f"{name}_frame{segmentation.frame_index + 1:03d}"
        if not is_dicom(like):  # the file's own header is of all frames
            import nibabel as nib

            affine = image.affine.copy()
            affine[:, 2] = (0, 0, 1, 0)  # the column of a clip's time
            like = folder / f"{name}_plane.nii.gz"
            nib.save(nib.Nifti1Image(segmentation.grey.T, affine), like)
    return write_label_map(segmentation.full_label_map, like, folder / f"{name}_label_map", "nifti")


def checked_weights(root: Path, given: str | None, flag: str, train: str, then: str) -> Path:
    """The file of weights: the given one, or a bundle's own.

    Args:
        root: folder of the bundle.
        given: path, or None.
        flag: that gives it.
        train: command that makes weights.
        then: flags that use them.
    Raises:
        FileNotFoundError: if there are none; the message says how to get some.
    """
    path = Path(given).expanduser() if given else root / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such weights; give {flag}, a model.pt of this bundle. To train one: {train}, then {then}. "
            "Published weights: synboost weights list"
        )
    return path


def applied(transform: Callable[[dict[str, Any]], Any], item: dict[str, Any]) -> dict[str, Any]:
    """What a transform makes of an item, with the user's mistake as the error where MONAI wraps it."""
    return _unwrapped(transform, item)


def parsed(parser: ConfigParser, key: str) -> Any:
    """An entry of a config, with the user's mistake as the error where MONAI wraps it."""
    return _unwrapped(parser.get_parsed_content, key)


def _unwrapped(function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except RuntimeError as error:
        known = user_error(error)
        if known is None:
            raise
        raise known from error
