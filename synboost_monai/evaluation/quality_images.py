"""Bring images for an evaluation of synthesis to one grid, segment them with a network trained on real images, and measure them.

`measure` reads a set batch by batch and keeps only numbers, so that memory grows by a few kilobytes per image.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Compose
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from synboost_monai.data.datalist import DATALIST_NAME
from synboost_monai.data.splits import SECTIONS
from synboost_monai.evaluation.per_case import case_metrics
from synboost_monai.evaluation.speckle import radial_power_spectrum, speckle_statistics
from synboost_monai.files import image_suffix, read_text
from synboost_monai.networks.efficientnet_lite import EfficientNetLite0
from synboost_monai.networks.precision import autocast
from synboost_monai.predictor import Pipeline, open_bundle
from synboost_monai.structures import BACKGROUND_INDEX, BLOOD, MUSCLE, STRUCTURES, structure_by_name
from synboost_monai.synthesis.plan import spacing_in_square
from synboost_monai.transforms import CheckLabelMapd, Letterboxd, LoadEchod, check_label_map, display_order, load_echo
from synboost_monai.transforms.label_map_array import sector_mask
from synboost_monai.transforms.label_map_dictionary import SectorMaskd

TISSUES = {
    **{t: tuple(s.class_index for s in STRUCTURES if s.tissue == t) for t in (BLOOD, MUSCLE)},
    "other_tissue": (BACKGROUND_INDEX,),
}
"""Tissue -> classes of the label map, taken inside the sector."""
THUMBNAIL_SIZE = 32
"""Side in pixels of the reduced images in which the nearest training image is searched."""
INCEPTION_SIZE = 299
"""Side of Inception's images, in pixels."""


# --- the judging network ---------------------------------------------------------------------------------------------


class JudgingSegmenter(Pipeline):
    """A JudgingSegmenter is a bundle's pipeline, with weights trained on real images, for images that are already in memory.

    Args:
        bundle: echo_cris, echo_clipseg, or the folder of a bundle like them.
        checkpoint_path: the bundle's model.pt.
        prompt_level: P0 ... P7; an item with missing attributes gets a lower level, P1 needs no attributes.
        settings: the bundle's own where not given or None: preset and image_size as in the training; device; autocast_dtype,
            bfloat16 for mixed precision (the distances of features are then as exact as 16-bit features); channels_last.
    """

    def __init__(
        self, bundle: str, checkpoint_path: str | os.PathLike[str], *, prompt_level: str = "P1", **settings: Any
    ) -> None:
        # judged by the network's result for one prompt, without ensemble and postprocessing
        plain = {"prompt_ensemble": None, "keep_largest": False, "fill_holes": False}
        plain |= {"inferer::images_at_once": None}  # the features must be those of a whole batch
        overrides = {"prompt_level": prompt_level, **{k: v for k, v in settings.items() if v is not None}}
        opened = open_bundle(bundle, str(checkpoint_path), overrides, flag="--segmenter_checkpoint", **plain)
        super().__init__(opened)
        if not hasattr(self.network, "image_encoder"):
            raise ValueError(
                f"{bundle}: its network has no image encoder; segmenter_bundle must be echo_cris or echo_clipseg"
            )
        facts = {key: opened.setting(key) for key in ("preset", "image_size", "prompt_level")}
        self.facts = {"bundle": Path(bundle).name, **facts}

        encoder = self.network.image_encoder
        self._feature_module: nn.Module | None
        if isinstance(encoder, EfficientNetLite0):
            self._feature_module, layer = encoder._blocks[-1], "EfficientNet-lite0's last block (stride 32)"
        elif hasattr(encoder, "layer4"):
            self._feature_module, layer = encoder.layer4, "the ResNet's last stage, before its attention pooling"
        else:  # the layers of a vision transformer are not called as modules
            self._feature_module, layer = None, "the last vision layer that the decoder takes, over its patches"
        self.feature_layer = f"mean of {layer}, of the image encoder of {self.facts['bundle']}"

    @torch.inference_mode()
    def features(self, echoes: Sequence[Echo]) -> NDArray[np.float32]:
        """Return the penultimate features of the image encoder, averaged over the image, (B, F)."""
        images, _, _ = self._batch(echoes)
        if self.inferer.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.inferer.autocast_dtype), self._captured() as maps:
            encoded = self.network.encode_image(images)
            if self._feature_module is None:
                last = encoded[len(self.network.extract_layers) - 1]
                maps.append(last[:, 1:].transpose(1, 2)[..., None])  # without the class token
        return maps[-1].float().mean(dim=(2, 3)).cpu().numpy()

    @torch.inference_mode()
    def __call__(self, echoes: Sequence[Echo]) -> tuple[list[NDArray[np.uint8]], NDArray[np.float32]]:
        """Return label maps (H, W) on the images' own grid, and the features (B, F)."""
        images, input_ids, items = self._batch(echoes)
        with self._captured() as maps:
            logits = self.logits(images, input_ids).cpu()
        features = maps[-1].float().mean(dim=(2, 3)).cpu().numpy() if maps else self.features(echoes)
        restored = [self.restore({**item, "pred": pred})["pred"] for item, pred in zip(items, logits)]
        return [display_order(label_map).numpy() for label_map in restored], features

    def _batch(self, echoes: Sequence[Echo]) -> tuple[Tensor, Tensor, list[dict[Any, Any]]]:
        """Return images (B, 3, N, N), prompts (B, S, L), and the items for the postprocessing."""
        items = []
        for echo in echoes:
            image = MetaTensor(torch.from_numpy(echo.image)[None].float())
            spacing = torch.tensor(echo.spacing_mm, dtype=torch.float64)
            items.append(self.prepare(self.fit({**echo.item, "image": image, "spacing_mm": spacing})))
        images = torch.stack([item["image"].as_tensor() for item in items]).to(self.device)
        return images, torch.stack([item["input_ids"] for item in items]), items

    @contextmanager
    def _captured(self) -> Iterator[list[Tensor]]:
        """Collect the output of the feature module while the network runs."""
        maps: list[Tensor] = []
        if self._feature_module is None:
            yield maps
            return
        handle = self._feature_module.register_forward_hook(lambda module, inputs, output: maps.append(output))
        try:
            yield maps
        finally:
            handle.remove()


# --- reading images onto one grid ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Echo:
    """Hold one image on the common grid."""

    item: Mapping[str, Any]
    """Item of the datalist, with `case`."""
    image: NDArray[np.uint8]
    """Image, (N, N)."""
    label_map: NDArray[np.uint8]
    """Label map, (N, N), not cut at the sector."""
    sector: NDArray[np.bool_]
    """Sector, (N, N)."""
    is_sector_known: bool
    """False: the sector was found in the image itself, so the darkness around it cannot be judged."""
    spacing_mm: tuple[float, float]


class RealReader:
    """Read real echocardiograms and bring them to the square of the synthetic ones, as in the diffusion model's training."""

    def __init__(self, size: int, sector_threshold: float = 0.0) -> None:
        self.transform = Compose(
            [
                LoadEchod(["image", "label", "sector"], allow_missing_keys=True),
                CheckLabelMapd("label", allow_missing_keys=True),  # a source may have only its image left
                SectorMaskd(threshold=sector_threshold),
                Letterboxd("image", size, label_keys=["label", "sector"], allow_missing_keys=True),
            ]
        )

    def __call__(self, item: Mapping[str, Any]) -> Echo:
        data = self.transform({key: item[key] for key in ("image", "label", "sector") if key in item})
        spacing_mm = spacing_in_square(data["geometry"], data["spacing_mm"])
        image, label, sector = (_plane(data[key]) for key in ("image", "label", "sector"))
        return Echo(item, image, label, sector > 0, True, spacing_mm)

    def sector(self, item: Mapping[str, Any]) -> NDArray[np.bool_]:
        """Return the sector of a source, which needs a label map or an image, (N, N)."""
        return _plane(self.transform(item)["sector"]) > 0


class SyntheticReader:
    """Read synthetic echocardiograms, each with the sector of the source that it was made from.

    Args:
        dataset_dir: folder with datalist.json and provenance.json.
        provenance: content of provenance.json.
        real_dir: further folder in which sources are searched.
        size: side of the images.
        sector_threshold: threshold of the synthesis, used if its provenance does not name one.
    """

    def __init__(
        self, dataset_dir: Path, provenance: Mapping[str, Any], real_dir: Path, size: int, sector_threshold: float = 0.0
    ) -> None:
        self.size = size
        self.source_reader = RealReader(size, provenance.get("settings", {}).get("sector_threshold", sector_threshold))
        self.records = {
            os.path.normpath(dataset_dir.resolve() / record["image"]): record for record in provenance["images"]
        }
        noted = Path(str(provenance.get("dataset_dir", ".")))
        self.roots = [root if root.is_dir() else root.parent for root in (real_dir, noted, dataset_dir.parent / noted)]
        self._sector_of_label = {label: sector for root in self.roots for label, sector in _sectors_of_datalist(root)}
        self._sectors: dict[str, NDArray[np.uint8]] = {}  # packed bits; many images share a source

    def __call__(self, item: Mapping[str, Any]) -> Echo:
        image, spacing_mm = load_echo(item["image"])
        label, _ = load_echo(item["label"])
        check_label_map(label, image.shape, str(item["label"]))
        if image.shape != (1, self.size, self.size):
            raise ValueError(
                f"{item['image']}: is {tuple(image.shape[1:])}, but the first synthetic image is a square of {self.size} px; "
                "give a folder of `synboost synthesise`, whose images have one size"
            )
        pixels = _plane(image).round().clip(0, 255).astype(np.uint8)
        sector = self._sector_of(item)
        is_known = sector is not None
        if not is_known and not pixels.any():
            raise ValueError(
                f"{item['image']}: is black, and the sector that it was made in is not known; make it again"
            )
        sector = sector_mask(pixels) if sector is None else sector
        return Echo(item, pixels, _plane(label).astype(np.uint8), sector, is_known, spacing_mm)

    def record(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the record of an image in provenance.json."""
        if item["image"] not in self.records:
            raise ValueError(
                f"{item['image']}: provenance.json does not tell of it; run `synboost synthesise` to its end"
            )
        return self.records[item["image"]]

    def source(self, item: Mapping[str, Any]) -> dict[str, str]:
        """Return the existing files that an image was made from: image, label, sector."""
        record = self.record(item)
        found = {}
        for key in ("image", "label", "sector"):
            name = record.get(f"source_{key}")
            path = next((root / name for root in self.roots if (root / name).is_file()), None) if name else None
            if path is not None:
                found[key] = str(path)
        sector = self._sector_of_label.get(os.path.realpath(found["label"])) if "label" in found else None
        return {"sector": sector, **found} if sector else found

    def _sector_of(self, item: Mapping[str, Any]) -> NDArray[np.bool_] | None:
        """Return the sector that an image was made in; None if the files that define it are gone."""
        own, source = item.get("sector"), self.source(item)
        is_image_gone = self.record(item).get("source_image") and "image" not in source
        is_told = "image" in source or "label" in source and ("sector" in source or not is_image_gone)
        if not own and not is_told:
            return None
        key = own or source.get("sector") or source.get("image") or source["label"]
        if key not in self._sectors:
            sector = _plane(load_echo(key)[0]) > 0 if own else self.source_reader.sector(source)
            if sector.shape != (self.size, self.size):
                raise ValueError(f"{key}: sector is {sector.shape}, but the images are squares of {self.size} px")
            self._sectors[key] = np.packbits(sector)
        bits = np.unpackbits(self._sectors[key], count=self.size**2)
        return bits.reshape(self.size, self.size).astype(bool)


def _sectors_of_datalist(root: Path) -> Iterator[tuple[str, str]]:
    """Yield label map and sector of the items that have both, as `synboost label-maps` writes them."""
    path = root / DATALIST_NAME
    content = json.loads(read_text(path)) if path.is_file() else {}
    for section in SECTIONS:
        for item in content.get(section) or []:
            if isinstance(item, dict) and item.get("label") and item.get("sector"):
                yield os.path.realpath(root / item["label"]), os.path.realpath(root / item["sector"])


def patient_of(item: Mapping[str, Any]) -> str:
    """Return the patient of an item, or its case if the patient is not known."""
    return str(item.get("patient") or item["case"])


def _plane(image: Tensor) -> NDArray[Any]:
    """Return a (1, H, W) tensor as an (H, W) array."""
    return np.asarray(image.as_tensor() if isinstance(image, MetaTensor) else image)[0]


# --- numbers kept of each image --------------------------------------------------------------------------------------


@dataclass
class ImageSet:
    """Hold the numbers of a set of images, in the order of its items; the images themselves are not kept."""

    items: list[dict[str, Any]]
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `case_metrics`, for sets that were segmented."""
    feature_parts: list[NDArray[np.float32]] = field(default_factory=list)
    inception_parts: list[NDArray[np.float32]] = field(default_factory=list)
    thumbnails: list[NDArray[np.float32]] = field(default_factory=list)
    spectra: list[NDArray[np.float64]] = field(default_factory=list)
    speckle: list[dict[str, dict[str, float] | None]] = field(default_factory=list)
    outside_grey: list[float | None] = field(default_factory=list)
    colour_difference: list[float | None] = field(default_factory=list)
    structures: set[str] = field(default_factory=set)
    """Names of the structures that occur in any label map."""

    @property
    def patients(self) -> list[str]:
        return [patient_of(item) for item in self.items]

    @cached_property
    def features(self) -> NDArray[np.float32]:
        return np.concatenate(self.feature_parts)

    @cached_property
    def inception(self) -> NDArray[np.float32]:
        return np.concatenate(self.inception_parts)

    @cached_property
    def image_dice(self) -> pd.Series:
        """Return the mean Dice of each image, by case."""
        return pd.DataFrame(self.rows).groupby("case")["dice"].mean()

    def statistic(self, tissue: str, name: str, chosen: Sequence[int] | None = None) -> NDArray[np.float64]:
        """Return one statistic of a tissue, for the images that have it."""
        indices = range(len(self.items)) if chosen is None else chosen
        numbers = [self.speckle[i][tissue] for i in indices]
        values = np.array([n[name] for n in numbers if n is not None], dtype=np.float64)
        return values[np.isfinite(values)]


def measure(
    items: Sequence[dict[str, Any]],
    reader: RealReader | SyntheticReader,
    segmenter: JudgingSegmenter,
    *,
    is_segmented: bool,
    batch_size: int,
    dynamic_range_db: float,
    inception: nn.Module | None,
    title: str,
) -> ImageSet:
    """Read a set batch by batch, and keep its numbers."""
    out = ImageSet(list(items))
    with tqdm(total=len(items), desc=title, unit="image", disable=None) as bar:
        for start in range(0, len(items), batch_size):
            echoes = [reader(item) for item in items[start : start + batch_size]]
            if is_segmented:
                label_maps, features = segmenter(echoes)
                for echo, pred in zip(echoes, label_maps):
                    facts = {key: echo.item.get(key) for key in ("case", "patient", "view", "phase")}
                    facts["is_synthetic"] = isinstance(reader, SyntheticReader)
                    for row in case_metrics(pred, echo.label_map, echo.spacing_mm):
                        in_sector = _dice_in_sector(row["structure"], pred, echo)
                        out.rows.append({**facts, **row, "dice_in_sector": in_sector})
            else:
                features = segmenter.features(echoes)
            out.feature_parts.append(features)
            if inception is not None:
                out.inception_parts.append(_inception_features(inception, echoes, segmenter.device))
            for echo in echoes:
                _add(out, echo, dynamic_range_db)
            bar.update(len(echoes))
    return out


def _dice_in_sector(structure: str, pred: NDArray[np.uint8], echo: Echo) -> float:
    """Return the Dice against the label map cut at the sector: the image cannot show more."""
    class_index = structure_by_name(structure).class_index
    found, truth = (pred == class_index) & echo.sector, (echo.label_map == class_index) & echo.sector
    total = int(found.sum() + truth.sum())
    return 2 * int((found & truth).sum()) / total if total else 1.0


def _add(out: ImageSet, echo: Echo, dynamic_range_db: float) -> None:
    """Add the numbers of one image that need no network."""
    grey = torch.from_numpy(echo.image)[None, None].float()
    out.thumbnails.append(F.interpolate(grey, size=(THUMBNAIL_SIZE, THUMBNAIL_SIZE), mode="area").flatten().numpy())
    out.spectra.append(radial_power_spectrum(echo.image, echo.sector))
    masks = {name: np.isin(echo.label_map, classes) & echo.sector for name, classes in TISSUES.items()}
    out.speckle.append({n: speckle_statistics(echo.image, mask, dynamic_range_db) for n, mask in masks.items()})
    has_outside = echo.is_sector_known and not echo.sector.all()
    out.outside_grey.append(float(echo.image[~echo.sector].mean()) if has_outside else None)
    out.colour_difference.append(_colour_difference(echo.item["image"]))
    out.structures |= {s.name for s in STRUCTURES if (echo.label_map == s.class_index).any()}


def _colour_difference(path: str) -> float | None:
    """Return the largest difference between the channels of a colour PNG, 0..255; None for grey images."""
    if image_suffix(path) != ".png":
        return None
    from PIL import Image

    with Image.open(path) as image:
        if len(image.getbands()) < 3:
            return None
        pixels = np.asarray(image.convert("RGB"), dtype=np.int16)
    return float((pixels.max(axis=-1) - pixels.min(axis=-1)).max())


@torch.inference_mode()
def _inception_features(network: nn.Module, echoes: Sequence[Echo], device: torch.device) -> NDArray[np.float32]:
    """Return the features (B, F) of images (B, 3, 299, 299) in [0, 1]."""
    grey = torch.stack([torch.from_numpy(echo.image).float() / 255 for echo in echoes])[:, None].to(device)
    size = (INCEPTION_SIZE, INCEPTION_SIZE)
    images = F.interpolate(grey, size=size, mode="bilinear", align_corners=False, antialias=True).expand(-1, 3, -1, -1)
    features = network(images)
    if not isinstance(features, Tensor) or features.shape[:1] != images.shape[:1] or features.ndim < 2:
        raise ValueError(
            f"inception_path: expected features (B, F) of images (B, 3, {INCEPTION_SIZE}, {INCEPTION_SIZE}) in [0, 1], got "
            f"{tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__}"
        )
    features = features.float()
    return (features.flatten(2).mean(dim=2) if features.ndim > 2 else features).cpu().numpy()


def load_inception(path: str | None, device: torch.device) -> nn.Module | None:
    """Load the TorchScript network of `inception_path`, whose code is run, unlike a checkpoint's; None for None."""
    if path is None:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"inception_path: there is no file {path}; give a TorchScript file, or null for no Inception FID"
        )
    try:
        return torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"inception_path: {path} is no TorchScript file ({str(error).splitlines()[0]})") from error
