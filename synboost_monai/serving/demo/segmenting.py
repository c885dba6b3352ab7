"""Segment one image by a bundle's own inference config, as `synboost run BUNDLE inference` segments the same file.

T: frames of a clip. H, W: rows and columns of the image, or of an ultrasound DICOM's tissue region. N: side of the network's square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor

from synboost_monai import predictor
from synboost_monai.files import image_stem, is_dicom
from synboost_monai.formats.grid import shown_affine
from synboost_monai.predictor import ATTRIBUTES
from synboost_monai.prompts.understanding import Understood, understand_if_any
from synboost_monai.serving.demo.sources import Source
from synboost_monai.transforms import write_label_map
from synboost_monai.transforms.array import plain, scale_to_bytes
from synboost_monai.transforms.ultrasound_dicom import CALIBRATED_KEY, REGION_KEY, stored_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_CLIP_BYTES = 1 << 30
"""Most bytes of an open clip: its grey levels and its frames in the network's square."""


@dataclass(frozen=True)
class OpenImage:
    """Hold an image or clip that was read and is ready to be segmented."""

    source: Source
    attributes: dict[str, Any]
    """Key of `predictor.ATTRIBUTES` -> value, from the file, its name and the source."""
    frames: NDArray[np.uint8]
    """(T, H, W), grey levels to show."""
    spacing_mm: tuple[float, float] | None
    """(row, column); None if the file has no calibration."""
    aspect: tuple[float, float]
    """Height and width of a pixel, in mm where that is known."""
    item: dict[str, Any]
    """The pipeline's item, its image in the network's square (T, N, N)."""
    affine: NDArray[np.float64]
    """Pixel (column, row, frame) of the shown image -> mm."""

    @property
    def num_bytes(self) -> int:
        """Return the memory that the image takes."""
        boxed = self.item["image"]
        return int(self.frames.nbytes + boxed.numel() * boxed.element_size())

    @property
    def name(self) -> str:
        """Return the file's name without its suffix."""
        return image_stem(self.source.path)


@dataclass(frozen=True)
class Segmentation:
    """Hold the network's result for one frame."""

    image: OpenImage
    frame_index: int
    understood: Understood | None
    """The free prompt and the structure that it names; None for all structures."""
    label_map: NDArray[np.uint8]
    """(H, W), classes 0..3."""
    full_label_map: NDArray[np.uint8]
    """Label map of the file's whole frame."""
    spread: NDArray[np.float32] | None
    """(H, W), 0..0.5: where prompts that mean the same disagree; None with one prompt."""
    doubt: dict[str, Any]
    """Verdict, reasons and numbers, as `heart.doubt.DoubtAssessor` gives them."""
    prompts: tuple[str, ...]
    """The sentences that asked for the mask, each once."""

    @property
    def grey(self) -> NDArray[np.uint8]:
        """Return the frame that was segmented, (H, W)."""
        return self.image.frames[self.frame_index]


class Segmenter(predictor.Segmenter):
    """Segment images that stay open, by a bundle that is loaded once; the arguments are those of `predictor.Segmenter`."""

    def open(self, source: Source) -> OpenImage:
        """Read all frames of a file.

        Raises:
            FileNotFoundError, ValueError: if it is not an image that can be used.
        """
        item = self.load({**source.attributes, "image": str(source.path)})
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
            self.fit(item),
            shown_affine(
                np.asarray(read.affine, dtype=np.float64), read.meta["spatial_shape"], stored_order(read.meta)
            ),
        )

    def segment(
        self, image: OpenImage, prompt: str = "", attributes: Mapping[str, Any] | None = None, frame_index: int = 0
    ) -> Segmentation:
        """Segment one frame.

        Args:
            image: from `open`.
            prompt: words that name one structure; empty, or "all": all three, in one label map.
            attributes: keys of `predictor.ATTRIBUTES`, for the prompts in place of those found; None keeps those found.
            frame_index: from 0.
        Raises:
            ValueError: if the prompt does not name one structure (`understand`), an attribute does not fit the prompts, or the frame does
                not exist.
        """
        understood = understand_if_any(prompt)
        if not 0 <= frame_index < len(image.frames):
            raise ValueError(f"there are frames 0 to {len(image.frames) - 1}, got {frame_index}")
        known = {key: (image.attributes if attributes is None else attributes).get(key) for key in ATTRIBUTES}
        item: dict[Any, Any] = {key: value for key, value in image.item.items() if key not in ATTRIBUTES}
        item |= {key: value for key, value in known.items() if value not in (None, "")}
        boxed = image.item["image"]
        item["image"] = MetaTensor(plain(boxed)[frame_index : frame_index + 1], meta=boxed.meta)
        found = self.predict(item, understood)
        first_row, first_column, rows, columns = (int(n) for n in boxed.meta[REGION_KEY])
        region = np.s_[first_row : first_row + rows, first_column : first_column + columns]
        spread = None if found.spread is None else found.spread[region]
        full = found.label_map
        return Segmentation(image, frame_index, understood, full[region], full, spread, found.doubt, found.prompts)


def write_segmentation(segmentation: Segmentation, folder: Path) -> Path:
    """Write the label map of the shown frame as NIfTI, in its file's coordinates; a clip's frame becomes a single plane.

    Args:
        segmentation: from `Segmenter.segment`.
        folder: for the file, NAME_label_map.nii.gz; the name has a clip's frame number, from 1.
    Returns:
        the file's path.
    """
    image = segmentation.image
    like, name = image.source.path, image.name
    if len(image.frames) > 1:
        name = f"{name}_frame{segmentation.frame_index + 1:03d}"
        if not is_dicom(like):  # the file's own header describes all frames
            import nibabel as nib

            affine = image.affine.copy()
            affine[:, 2] = (0, 0, 1, 0)  # the column of a clip's time
            like = folder / f"{name}_plane.nii.gz"
            nib.save(nib.Nifti1Image(segmentation.grey.T, affine), like)
    return write_label_map(segmentation.full_label_map, like, folder / f"{name}_label_map", "nifti")
