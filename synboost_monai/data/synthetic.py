"""A synthetic data set from label maps: which images to make, writing them, and what the folder tells of itself.

    output_dir/images/NAME.nii.gz     synthetic echocardiograms, uint8, black outside the sector
    output_dir/labels/NAME.nii.gz     their label maps, 0..3, as perturbed and not cut at the sector: the segmentation target
    output_dir/datalist.json          as for real data; written when all images are there
    output_dir/provenance.json        how each image was made
    output_dir/contact_sheet.png      the first images: condition, image, target

NAME is CASE_vN, the source's file name and the number of the variation. An image whose file exists is complete, as it is
written last and whole; a second run makes only those that are missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.transforms import Transform
from monai.utils import convert_to_numpy

from synboost_monai import __version__
from synboost_monai.data.datalist import list_label_maps, write_datalist
from synboost_monai.io import atomic_path, atomic_write_text, image_stem, read_plane, sha256_of
from synboost_monai.labels import STRUCTURES
from synboost_monai.prompts.attributes import shape_of_mask
from synboost_monai.records import EchoRecord
from synboost_monai.transforms.array import check_label_map, load_echo
from synboost_monai.transforms.label_map_array import LabelMapPerturbation, colour_sector_label_map, sector_label_map

if TYPE_CHECKING:
    from monai.engines import Evaluator

CARRIED_ATTRIBUTES = ("view", "phase", "sex", "age", "image_quality")
"""Attributes that a synthetic image inherits. Not the ejection fraction: ED and ES are perturbed apart, so it would be wrong."""
NUM_CONTACT_SHEET_IMAGES = 12
"""Images on the contact sheet."""

logger = logging.getLogger(__name__)


def stable_seed(*parts: object) -> int:
    """A seed of 63 bits that depends on the parts' text alone: not on the order of work, the machine or Python's hash."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class SynthesisPlan:
    """What a synthesis run makes: every label map of some sections, each perturbed `num_variations` times.

    The seeds of an image are hashes of the run's seed, the case and the number of the variation, so an image does not depend on
    which others are made, on their order, or on a restart.

    Args:
        dataset_dir: folder or datalist with label maps, and the images beside them where there are any (for the sector).
        output_dir: where the data set goes.
        checkpoint_path: weights of the network; their hash is recorded.
        image_size: side of the square images, px.
        sections: sections of the datalist; an image goes to the section of its source, so patients never cross.
        limit: at most so many label maps a section, spread evenly; None: all.
        num_variations: images a label map (5 published).
        seed: of the run.
        batch_size: of the data loader, which takes the items in order. A restart repeats whole batches, so that an image has the
            same neighbours and the same rounding as without it.
        perturbation: ranges; None: published.
        sampling: whatever else decides how an image looks (sampler, steps, guidance), for the record.
    """

    def __init__(
        self,
        dataset_dir: str | os.PathLike[str],
        output_dir: str | os.PathLike[str],
        *,
        checkpoint_path: str | os.PathLike[str],
        image_size: int,
        sections: str | Sequence[str] = ("training", "validation"),
        limit: int | None = None,
        num_variations: int = 5,
        seed: int = 0,
        batch_size: int = 1,
        perturbation: LabelMapPerturbation | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        if num_variations < 1:
            raise ValueError(f"synthetic.py: num_variations is {num_variations}; expected at least 1 image a label map")
        self.dataset_dir = Path(dataset_dir)
        self.output_dir = Path(output_dir)
        self.checkpoint_path = Path(checkpoint_path)
        self.batch_size = batch_size
        self.perturbation = perturbation or LabelMapPerturbation()
        self.settings = {
            "seed": seed,
            "image_size": image_size,
            "perturbation": vars(self.perturbation),
            **(sampling or {}),
        }
        self.sources = list_sources(dataset_dir, sections, limit)
        self.items = [_item(source, variation, seed) for source in self.sources for variation in range(num_variations)]

    def remaining(self) -> list[dict[str, Any]]:
        """Items of each batch that is not complete on disk: what the dataset of this run holds."""
        batches = [self.items[i : i + self.batch_size] for i in range(0, len(self.items), self.batch_size)]
        return [item for batch in batches if not all(self._image_path(i).is_file() for i in batch) for item in batch]

    def run(self, evaluator: Evaluator) -> None:
        """Make the images that are missing, then write datalist, provenance and contact sheet.

        Args:
            evaluator: runs over `remaining()` and writes each image by `SaveSyntheticd`.
        Raises:
            FileNotFoundError: if the checkpoint is missing.
            ValueError: if a source is no label map, or the folder was begun with other settings. Nothing is written then.
        """
        remaining = self.remaining()
        if not self.checkpoint_path.is_file():
            raise FileNotFoundError(
                f"{self.checkpoint_path}: no such checkpoint; train one first, or give checkpoint_path"
            )
        self.settings["checkpoint_sha256"] = sha256_of(self.checkpoint_path)
        self._check_settings()
        wanted = {item["case"] for item in remaining}
        for source in self.sources:
            if source["case"] in wanted:
                _check_source(source)
        logger.info("%d of %d images are to be made in %s", len(remaining), len(self.items), self.output_dir)
        if remaining:
            self._write_provenance(images=[])
            evaluator.run()
        self._finish()

    def _check_settings(self) -> None:
        """A folder holds the images of one model, one sampler and one seed."""
        path = self.output_dir / "provenance.json"
        if not path.is_file():
            if any(self._image_path(item).is_file() for item in self.items):
                raise ValueError(f"{self.output_dir}: holds images but no provenance.json; choose another output_dir")
            return
        before = json.loads(path.read_text(encoding="utf-8"))["settings"]
        now = json.loads(json.dumps(self.settings))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise ValueError(
                    f"{self.output_dir}: was begun with {key} {before.get(key)}, this run has {now.get(key)}; "
                    "choose another output_dir, or remove this one to make all images anew"
                )

    def _finish(self) -> None:
        sources = {source["case"]: source for source in self.sources}
        splits: dict[str, list[EchoRecord]] = {source["section"]: [] for source in self.sources}
        provenance = []
        for item in self.items:
            source = sources[item["case"]]
            label = read_plane(self._label_path(item))
            splits[source["section"]].append(
                EchoRecord(
                    image=self._image_path(item),
                    label=self._label_path(item),
                    patient=str(source.get("patient") or source["case"]),
                    **{name: source.get(name) for name in CARRIED_ATTRIBUTES},
                    shape=_shapes(label.pixels, label.spacing_mm),
                    is_synthetic=True,
                )
            )
            provenance.append(self._provenance_of(item, source))
        self._write_provenance(provenance)
        self._write_contact_sheet()
        write_datalist(
            self.output_dir / "datalist.json",
            splits,
            name="Synthetic echocardiograms",
            description="Made by a semantic diffusion model from perturbed label maps; see provenance.json.",
        )
        logger.info("%d images are in %s", len(self.items), self.output_dir)

    def _provenance_of(self, item: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "image": self._image_path(item).relative_to(self.output_dir).as_posix(),
            "label": self._label_path(item).relative_to(self.output_dir).as_posix(),
            "source_label": _relative(source["label"], self.dataset_dir),
            "source_image": _relative(source["image"], self.dataset_dir) if source.get("image") else None,
            "section": source["section"],
            "variation": item["variation"],
            "perturbation_seed": item["perturbation_seed"],
            "perturbation": self.perturbation.draw(item["perturbation_seed"]).describe(),
            "noise_seed": item["noise_seed"],
        }

    def _write_provenance(self, images: Sequence[Mapping[str, Any]]) -> None:
        record = {
            "settings": self.settings,
            "checkpoint": str(self.checkpoint_path),
            "dataset_dir": str(self.dataset_dir),
            "versions": {"synboost_monai": __version__, **{name: _version(name) for name in ("monai", "torch")}},
            "is_complete": len(images) == len(self.items),
            "images": list(images),
        }
        atomic_write_text(self.output_dir / "provenance.json", json.dumps(record, indent=1) + "\n")

    def _write_contact_sheet(self) -> None:
        """Columns: target label map, synthetic image, both; spread over the cases."""
        from matplotlib import image as pictures

        step = max(1, len(self.items) // NUM_CONTACT_SHEET_IMAGES)
        rows = []
        for item in self.items[::step][:NUM_CONTACT_SHEET_IMAGES]:
            image = read_plane(self._image_path(item)).pixels
            label_map = read_plane(self._label_path(item)).pixels
            grey = np.repeat(image[..., None], 3, axis=-1)
            colours = colour_sector_label_map(sector_label_map(label_map, np.ones(label_map.shape, dtype=bool)))
            blend = np.where(label_map[..., None] > 0, 0.6 * grey + 0.4 * colours, grey).astype(np.uint8)
            rows.append(np.hstack([colours, grey, blend]))
        num_columns = max(1, round(len(rows) ** 0.5 / 1.7))  # tiles are three images wide
        rows += [np.zeros_like(rows[0])] * (-len(rows) % num_columns)
        sheet = np.vstack([np.hstack(rows[i : i + num_columns]) for i in range(0, len(rows), num_columns)])
        with atomic_path(self.output_dir / "contact_sheet.png") as temporary:
            pictures.imsave(temporary, sheet)

    def _image_path(self, item: Mapping[str, Any]) -> Path:
        return self.output_dir / "images" / f"{item['name']}.nii.gz"

    def _label_path(self, item: Mapping[str, Any]) -> Path:
        return self.output_dir / "labels" / f"{item['name']}.nii.gz"


class SaveSyntheticd(Transform):
    """Write one synthetic image and its label map; the image last, so that an image on disk is a complete pair.

    Items hold `name`, the square's `geometry` and the native `spacing_mm`, from which the square's own spacing follows.

    Args:
        output_dir: the data set's folder.
        image_key: (1, N, N), 0..255.
        label_key: (1, N, N), 0..3.
    """

    def __init__(self, output_dir: str | os.PathLike[str], image_key: str = "pred", label_key: str = "label") -> None:
        self.output_dir = Path(output_dir)
        self.image_key = image_key
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        native_height, native_width, inner_height, inner_width, *_ = (int(n) for n in item["geometry"])
        row, column = (float(step) for step in item["spacing_mm"])
        spacing_mm = (row * native_height / inner_height, column * native_width / inner_width)
        for folder, key in (("labels", self.label_key), ("images", self.image_key)):
            path = self.output_dir / folder / f"{item['name']}.nii.gz"
            pixels = convert_to_numpy(item[key])[0].round().astype(np.uint8)
            write_nifti(pixels, spacing_mm, path)
        return item


def write_nifti(pixels: np.ndarray, spacing_mm: tuple[float, float], path: str | os.PathLike[str]) -> None:
    """Write a 2-D image as CAMUS stores it: (x, y), spacing in the header, x to the patient's left and y to the back.

    Args:
        pixels: (H, W) in display order.
        spacing_mm: (row, column).
        path: ends in .nii.gz; written whole or not at all.
    """
    import nibabel as nib

    image = nib.Nifti1Image(pixels.T, np.diag([-spacing_mm[1], -spacing_mm[0], 1.0, 1.0]))
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def list_sources(
    dataset_dir: str | os.PathLike[str], sections: str | Sequence[str], limit: int | None = None
) -> list[dict[str, Any]]:
    """Label maps to synthesise from, with their `section` and `case` (the label map's file name without `_gt`).

    A folder without a datalist has no sections: all its label maps go to the first of `sections`.

    Args:
        dataset_dir: folder or datalist.
        sections: of the datalist; as text joined by `+`.
        limit: at most so many a section, spread evenly.
    Raises:
        FileNotFoundError, ValueError: as `list_label_maps`; or if two cases have one name.
    """
    sections = sections.split("+") if isinstance(sections, str) else list(sections)
    if not sections:
        raise ValueError("synthetic.py: sections is empty; name at least one section of the datalist, such as training")
    by_case: dict[str, dict[str, Any]] = {}
    for section in sections:
        for item in list_label_maps(dataset_dir, section, limit=limit):
            case = image_stem(item["label"]).removesuffix("_gt")
            source = by_case.setdefault(case, {**item, "section": section, "case": case})
            if source["label"] != item["label"]:
                raise ValueError(
                    f"{dataset_dir}: {source['label']} and {item['label']} have one name; rename one of them"
                )
    return list(by_case.values())


def _item(source: Mapping[str, Any], variation: int, seed: int) -> dict[str, Any]:
    case = source["case"]
    return {
        **{key: source[key] for key in ("image", "label") if source.get(key)},
        "case": case,
        "name": f"{case}_v{variation}",
        "variation": variation,
        "perturbation_seed": stable_seed(seed, "perturbation", case, variation),
        "noise_seed": stable_seed(seed, "noise", case, variation),
    }


def _check_source(source: Mapping[str, Any]) -> None:
    """Open a source's files before the first image is made."""
    label, _ = load_echo(source["label"])
    image_shape = load_echo(source["image"])[0].shape if source.get("image") else None
    check_label_map(label, image_shape, str(source["label"]))


def _shapes(label_map: np.ndarray, spacing_mm: tuple[float, float]) -> dict[str, str]:
    """Shape word of each structure that is there."""
    words = {s.name: shape_of_mask(label_map == s.class_index, spacing_mm) for s in STRUCTURES}
    return {name: word for name, word in words.items() if word}


def _relative(path: str | os.PathLike[str], root: Path) -> str:
    """Path within the data set, or the whole path if it lies elsewhere."""
    folder = root if root.is_dir() else root.parent
    try:
        return Path(path).resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return str(path)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
