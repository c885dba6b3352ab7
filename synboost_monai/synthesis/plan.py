"""Plan a synthetic data set from label maps: the images to make, the share of each process, and the files that describe the folder.

    output_dir/images/NAME.nii.gz     synthetic echocardiograms, uint8, black outside the sector
    output_dir/labels/NAME.nii.gz     their label maps, 0..3, perturbed but not cut at the sector: the segmentation target
    output_dir/settings.json          the settings that affect the images; written before the first image
    output_dir/datalist.json          as for real data; written when all images exist
    output_dir/provenance.json        how each image was made; likewise
    output_dir/contact_sheet.png      some images: target, image, both; likewise

NAME is CASE_vN, the source's file name and the number of the variation, or CASE_vN_rM if a perturbed label map has several
images. PNG and DICOM files are written beside the NIfTI files.

The processes of a run coordinate only through the disk. An image whose NIfTI file exists is complete, as that file is written last
and whole. Each process (RANK of WORLD_SIZE, as torchrun sets them) makes the missing images of its share, and whichever finds
all images complete at its end writes the last three files; two that do so at once write the same bytes. So a run can be killed
at any moment and continue with any number of processes. Memory does not grow with the number of images.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from monai.transforms import Transform
from monai.utils import convert_to_numpy

from synboost_monai import __version__
from synboost_monai.data.datalist import DATALIST_NAME, list_label_maps
from synboost_monai.distributed import launched_as
from synboost_monai.files import image_stem, read_text, sha256_of
from synboost_monai.paths import refuse_overwriting, result_names
from synboost_monai.prompts import IMAGE_ATTRIBUTES
from synboost_monai.structures import CLASS_NAMES
from synboost_monai.synthesis.writers import (
    IMAGE_FOLDER,
    LABEL_FOLDER,
    SyntheticWriter,
    shape_words,
    write_contact_sheet,
    write_json,
)
from synboost_monai.transforms.files import check_label_map, load_echo
from synboost_monai.transforms.label_map_array import LabelMapPerturbation
from synboost_monai.transforms.label_map_dictionary import SectorMaskd

if TYPE_CHECKING:
    from monai.engines import Evaluator

CARRIED_ATTRIBUTES = IMAGE_ATTRIBUTES
"""Attributes that a synthetic image inherits; not the ejection fraction, as ED and ES are perturbed separately and it would be wrong."""
NUM_CONTACT_SHEET_IMAGES = 12
"""Number of images on the contact sheet."""
TEMPORARY_NAME = re.compile(r"\.\d+-[0-9a-f]{8}\.")
"""Beginning of the name that `files.atomic_path` gives to a file while it is written."""
SOURCE_PATHS = ("image", "label", "sector")
"""Files of a source that the preprocessing reads, if they exist."""

logger = logging.getLogger(__name__)


def stable_seed(*parts: object) -> int:
    """Return a 63-bit seed that depends only on the parts' text: not on the order of work, the machine or Python's hash."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check_same_settings(output_dir: Path, before: Mapping[str, Any], settings: Mapping[str, Any], what: str) -> None:
    """Refuse to go on in a folder that was begun with other settings.

    Args:
        output_dir: the folder.
        before: settings in the folder's file.
        settings: settings of this run.
        what: what the run makes, for the message.
    """
    now = json.loads(json.dumps(settings))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ValueError(
                f"{output_dir}: was begun with {key} {before.get(key)}, this run has {now.get(key)}; "
                f"choose another output_dir, or remove this one to make all {what} anew"
            )


@dataclass(frozen=True)
class SynthesisOptions:
    """Hold which images a synthesis run makes, from which label maps, and the settings that affect the images.

    Raises:
        ValueError: if a number of images is below 1, or images would start from an image that their label map does not fit.
    """

    image_size: int
    """Side of the square images, px."""
    sections: str | Sequence[str] = ("training", "validation")
    """Sections of the datalist; an image goes to the section of its source, so patients never cross."""
    limit: int | None = None
    """Largest number of label maps of each section, spread evenly; None: all."""
    view: str | None = None
    """apical_two_chamber or apical_four_chamber: only label maps of this view; None: all."""
    phase: str | None = None
    """end_diastole or end_systole: only label maps of this phase; None: all."""
    num_variations: int = 5
    """Perturbations of each label map (published: 5)."""
    num_repeats: int = 1
    """Images of each perturbed label map."""
    seed: int = 0
    """Seed of the run."""
    perturbation: LabelMapPerturbation = field(default_factory=LabelMapPerturbation)
    """Ranges of the perturbation; the published ones by default."""
    sector_threshold: float = 0.0
    """Brightest image value outside the sector."""
    start_strength: float = 1.0
    """Share of the noise that each source's own image gets before the network draws it anew; 1: images start from noise alone."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Other settings that affect the images (sampler, steps, guidance), for the record."""

    def __post_init__(self) -> None:
        for name in ("num_variations", "num_repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"plan.py: {name} is {getattr(self, name)}; expected at least 1 image a label map")
        if self.start_strength != 1 and self.perturbation.strength != 0:
            raise ValueError(
                f"plan.py: start_strength is {self.start_strength}, so each image starts from its source's own image, which no perturbed "
                "label map fits; give perturbation_strength 0, and num_repeats for several images of each"
            )

    def settings(self) -> dict[str, Any]:
        """Return what all images of a folder must have in common."""
        return {
            "seed": self.seed,
            "image_size": self.image_size,
            "names": "CASE_vN" if self.num_repeats == 1 else "CASE_vN_rM",
            "perturbation": vars(self.perturbation),
            "sector_threshold": self.sector_threshold,
            **({} if self.start_strength == 1 else {"start_strength": self.start_strength}),
            **self.sampling,
        }


class SynthesisPlan:
    """List the images of a run: every label map of some sections, with all its variations and repeats.

    The seeds of an image are hashes of the run's seed, the case and the numbers of variation and repeat, so an image does not
    depend on which others are made, on their order, the batch size, the number of processes, or a restart.

    Args:
        dataset_dir: folder or datalist with label maps, and their images, if there are any (for the sector).
        output_dir: folder of the new data set.
        options: choice of images, and settings that affect them.
        checkpoint_path: weights of the network; their hash is recorded.
        writer: writer of the files; None: NIfTI alone.
    Raises:
        FileNotFoundError, ValueError: as `list_sources`; or if RANK is not valid.
    """

    def __init__(
        self,
        dataset_dir: str | os.PathLike[str],
        output_dir: str | os.PathLike[str],
        options: SynthesisOptions,
        *,
        checkpoint_path: str | os.PathLike[str],
        writer: SyntheticWriter | None = None,
    ) -> None:
        self.dataset_dir = Path(dataset_dir)
        self.output_dir = Path(output_dir)
        self.checkpoint_path = Path(checkpoint_path)
        self.perturbation = options.perturbation
        self.writer = writer or SyntheticWriter(self.output_dir)
        self.rank, self.world_size = launched_as()
        self.settings = options.settings()
        self.sources = list_sources(
            dataset_dir,
            options.sections,
            options.limit,
            view=options.view,
            phase=options.phase,
            exclude=output_dir,
        )
        self.items = PlannedItems(self.sources, options.num_variations, options.num_repeats, options.seed)
        self._source_of = {source["case"]: source for source in self.sources}
        self._begun: list[Path] = []

    @property
    def share(self) -> PlannedItems:
        """Return the items that this process has to make, missing or not.

        They are dealt by their position in the plan, not among the missing ones, as each process looks at the disk at another moment.
        """
        return self.items[self.rank :: self.world_size]

    def remaining(self) -> PlannedItems:
        """Return the items of this process's share that are not on disk: the dataset of this run."""
        return self.share.without(self.writer.names_on_disk())

    def run(self, evaluator: Evaluator) -> None:
        """Make the missing images of this process's share; then, if all images exist, write the files that describe them.

        Args:
            evaluator: runs over `remaining()` and writes each image by `SaveSyntheticd`.
        Raises:
            FileNotFoundError: if the checkpoint is missing.
            ValueError: if a source is not a label map, or the folder was begun with other settings; nothing is written then. If a
                file cannot be written; the same command continues later.
        """
        if not self.checkpoint_path.is_file():
            raise FileNotFoundError(
                f"{self.checkpoint_path}: no such checkpoint; train one first, or give checkpoint_path"
            )
        size: int = self.settings["image_size"]
        multiple: int = getattr(getattr(evaluator, "network", None), "size_multiple", 1)
        if size % multiple:
            raise ValueError(
                f"plan.py: image_size is {size} px but this network halves its grid to multiples of {multiple} px; give the "
                "image_size of its training"
            )
        refuse_overwriting(
            [
                self.output_dir / name
                for name in ("settings.json", "provenance.json", "contact_sheet.png", DATALIST_NAME)
            ],
            [self.dataset_dir, self.sources, self.checkpoint_path],
            filled=[self.output_dir / IMAGE_FOLDER, self.output_dir / LABEL_FOLDER],
        )
        self.settings["checkpoint_sha256"] = sha256_of(self.checkpoint_path)
        self._check_settings()
        self._check_sources()
        self._begun = list(self._temporary_files())
        remaining = self.remaining()
        logger.info(
            "%s%d of %d images are to be made in %s", self._who(), len(remaining), len(self.share), self.output_dir
        )
        if remaining:
            path = self.output_dir / "settings.json"
            if not path.is_file():
                write_json(path, self.settings, {})
            self._check_settings()  # another process may have been quicker
            evaluator.run()
        self.writer.add_formats((item["name"] for item in self.share), self.attributes_of)
        num_missing = len(self.items.without(self.writer.names_on_disk()))
        if num_missing:
            logger.info(
                "%sdone; %d images of other processes are missing: they are being made, or if those processes died, the same "
                "command makes them",
                self._who(),
                num_missing,
            )
            return
        self._finish()

    def attributes_of(self, name: str) -> dict[str, Any]:
        """Return patient and carried attributes of an image, None for unknown ones."""
        case = name.rpartition("_v")[0]
        source = self._source_of[case]
        return {"patient": _patient(source), **{key: source.get(key) for key in CARRIED_ATTRIBUTES}}

    def _who(self) -> str:
        return "" if self.world_size == 1 else f"process {self.rank} of {self.world_size}: "

    def _check_settings(self) -> None:
        """Check that the folder holds images of one model, one sampler and one seed."""
        path = self.output_dir / "settings.json"
        if not path.is_file():
            if len(self.items.without(self.writer.names_on_disk())) < len(self.items):
                raise ValueError(f"{self.output_dir}: holds images but no settings.json; choose another output_dir")
            return
        check_same_settings(self.output_dir, json.loads(read_text(path)), self.settings, "images")

    def _check_sources(self) -> None:
        """Open the files of every source with missing images in any share, so that a bad one stops the run before the first image."""
        missing = self.items.without(self.writer.names_on_disk())
        check_sector = SectorMaskd(threshold=float(self.settings["sector_threshold"]))
        if "start_strength" in self.settings:
            for source in self.sources:
                if not source.get("image"):
                    raise ValueError(
                        f"{source['label']}: has no image, and start_strength below 1 needs one to start from; give a data set with "
                        "images, such as one that `synboost simulate` writes"
                    )
        numbers = np.unique(missing.source_numbers())
        logger.info("%schecking %d label maps", self._who(), len(numbers))
        for number in numbers:
            _check_source(self.sources[number], check_sector)

    def _finish(self) -> None:
        """Write provenance, contact sheet and, as the sign that all is done, the datalist; remove files left by killed runs."""
        write_json(self.output_dir / "provenance.json", self._provenance(), {"images": self._provenance_of_images()})
        names = [item["name"] for item in self.items[:: max(1, len(self.items) // NUM_CONTACT_SHEET_IMAGES)]]
        pairs = [(self.writer.image_path(name), self.writer.label_path(name)) for name in names]
        write_contact_sheet(self.output_dir / "contact_sheet.png", pairs[:NUM_CONTACT_SHEET_IMAGES])
        write_json(
            self.output_dir / DATALIST_NAME,
            datalist_head("Made by a semantic diffusion model from perturbed label maps; see provenance.json."),
            {section: self._datalist_items(section) for section in dict.fromkeys(s["section"] for s in self.sources)},
        )
        for path in self._begun:
            path.unlink(missing_ok=True)
        logger.info("%d images are in %s", len(self.items), self.output_dir)

    def _temporary_files(self) -> Iterator[Path]:
        """Yield files that are being written, or were when a process was killed: those that stay through a whole run are left over."""
        for folder in (self.output_dir, self.output_dir / IMAGE_FOLDER, self.output_dir / LABEL_FOLDER):
            for path in folder.iterdir() if folder.is_dir() else ():
                if TEMPORARY_NAME.match(path.name):
                    yield path

    def _datalist_items(self, section: str) -> Iterator[dict[str, Any]]:
        for item in self.items:
            source = self._source_of[item["case"]]
            if source["section"] != section:
                continue
            words = shape_words(self.writer.label_path(item["name"]))
            yield {
                "image": self._relative(self.writer.image_path(item["name"])),
                "label": self._relative(self.writer.label_path(item["name"])),
                **{k: v for k, v in self.attributes_of(item["name"]).items() if v is not None},
                **({"shape": words} if words else {}),
                "is_synthetic": True,
            }

    def _provenance(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "checkpoint": str(self.checkpoint_path),
            "dataset_dir": str(self.dataset_dir),
            "versions": {"synboost_monai": __version__, **{name: _version(name) for name in ("monai", "torch")}},
            "is_complete": True,
        }

    def _provenance_of_images(self) -> Iterator[dict[str, Any]]:
        for item in self.items:
            source = self._source_of[item["case"]]
            yield {
                "image": self._relative(self.writer.image_path(item["name"])),
                "label": self._relative(self.writer.label_path(item["name"])),
                "source_label": _relative(source["label"], self.dataset_dir),
                "source_image": _relative(source["image"], self.dataset_dir) if source.get("image") else None,
                "section": source["section"],
                "variation": item["variation"],
                "repeat": item["repeat"],
                "perturbation_seed": item["perturbation_seed"],
                "perturbation": self.perturbation.draw(item["perturbation_seed"]).describe(),
                "noise_seed": item["noise_seed"],
            }

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.output_dir).as_posix()


class PlannedItems(Sequence[dict[str, Any]]):
    """Make the items of a plan on demand: keep a number for each, not a dictionary.

    Args:
        sources: result of `list_sources`.
        num_variations, num_repeats, seed: as in `SynthesisPlan`.
        numbers: numbers of the chosen items, (N,), in the order source, variation, repeat; None: all.
    """

    def __init__(
        self,
        sources: Sequence[Mapping[str, Any]],
        num_variations: int,
        num_repeats: int,
        seed: int,
        numbers: np.ndarray | None = None,
    ) -> None:
        self.sources = sources
        self.num_variations = num_variations
        self.num_repeats = num_repeats
        self.seed = seed
        self.numbers = np.arange(len(sources) * num_variations * num_repeats) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> PlannedItems: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | PlannedItems:
        if isinstance(index, slice):
            return self._part(self.numbers[index])
        source, variation, repeat = self._numbers_of(int(self.numbers[index]))
        case = source["case"]
        repeated = (repeat,) if repeat else ()  # the first repeat has the seeds of a run without repeats
        return {
            **{key: source[key] for key in (*SOURCE_PATHS, "view", "phase") if source.get(key)},
            "case": case,
            "name": self._name(source, variation, repeat),
            "variation": variation,
            "repeat": repeat,
            "perturbation_seed": stable_seed(self.seed, "perturbation", case, variation),
            "noise_seed": stable_seed(self.seed, "noise", case, variation, *repeated),
        }

    def without(self, names: set[str]) -> PlannedItems:
        """Return the items whose name is not among these."""
        kept = (number for number in map(int, self.numbers) if self._name(*self._numbers_of(number)) not in names)
        return self._part(np.fromiter(kept, dtype=np.int64))

    def source_numbers(self) -> np.ndarray:
        """Return the position of each item's source in `sources`, (N,)."""
        return self.numbers // (self.num_variations * self.num_repeats)

    def _part(self, numbers: np.ndarray) -> PlannedItems:
        return PlannedItems(self.sources, self.num_variations, self.num_repeats, self.seed, numbers)

    def _numbers_of(self, number: int) -> tuple[Mapping[str, Any], int, int]:
        source_number, rest = divmod(number, self.num_variations * self.num_repeats)
        return self.sources[source_number], *divmod(rest, self.num_repeats)

    def _name(self, source: Mapping[str, Any], variation: int, repeat: int) -> str:
        return f"{source['case']}_v{variation}" + (f"_r{repeat}" if self.num_repeats > 1 else "")


class SaveSyntheticd(Transform):
    """Write one synthetic image `pred`, (1, N, N), 0..255, and its `label`, (1, N, N), 0..3, with the plan's writer.

    Items hold `name`, the square's `geometry` and the native `spacing_mm`, from which the square's own spacing follows.
    """

    def __init__(self, plan: SynthesisPlan) -> None:
        self.plan = plan

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        spacing_mm = spacing_in_square(item["geometry"], item["spacing_mm"])
        image, label_map = (convert_to_numpy(item[key])[0].round().astype(np.uint8) for key in ("pred", "label"))
        self.plan.writer.write(item["name"], image, label_map, spacing_mm, self.plan.attributes_of(item["name"]))
        return item


def spacing_in_square(geometry: Sequence[Any], spacing_mm: Sequence[Any]) -> tuple[float, float]:
    """Return the spacing (row, column) of the network's square, from an item's `LetterboxGeometry` and native spacing."""
    native_height, native_width, inner_height, inner_width, *_ = (int(n) for n in geometry)
    row, column = (float(step) for step in spacing_mm)
    return row * native_height / inner_height, column * native_width / inner_width


def list_sources(
    dataset_dir: str | os.PathLike[str],
    sections: str | Sequence[str],
    limit: int | None = None,
    *,
    view: str | None = None,
    phase: str | None = None,
    exclude: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """List label maps to synthesise from, with `section` and `case` (the file name without `_gt`; see `result_names`).

    A folder without a datalist has no sections: all its label maps go to the first of `sections`.

    Args:
        dataset_dir: folder or datalist.
        sections: sections of the datalist; as text joined by `+`.
        limit: largest number of label maps per section, spread evenly.
        view, phase: keep only the label maps of this view or phase.
        exclude: subfolder to skip, such as the run's own.
    Raises:
        FileNotFoundError, ValueError: as `list_label_maps`.
    """
    sections = sections.split("+") if isinstance(sections, str) else list(sections)
    if not sections:
        raise ValueError("plan.py: sections is empty; name at least one section of the datalist, such as training")
    by_label: dict[str, dict[str, Any]] = {}
    for section in sections:
        for item in list_label_maps(dataset_dir, section, limit=limit, view=view, phase=phase, exclude=exclude):
            kept = {key: item[key] for key in (*SOURCE_PATHS, "patient", *CARRIED_ATTRIBUTES) if key in item}
            by_label.setdefault(os.path.abspath(item["label"]), {**kept, "section": section})
    stems = [image_stem(path).removesuffix("_gt") for path in by_label]
    names = result_names(list(by_label), stems, longest_end="_v9999_r9999.nii.gz")
    return [{**source, "case": case} for source, case in zip(by_label.values(), names)]


def datalist_head(description: str) -> dict[str, Any]:
    """Return the part of a synthetic data set's datalist before the sections, as `write_datalist` has it."""
    return {
        "name": "Synthetic echocardiograms",
        "description": description,
        "modality": "ultrasound",
        "labels": CLASS_NAMES,
    }


def _check_source(source: Mapping[str, Any], check_sector: SectorMaskd) -> None:
    """Open a source's files before the first image is made.

    Raises:
        FileNotFoundError, ValueError: names the file and what is wrong with it.
    """
    label, spacing_mm = load_echo(source["label"], like=source.get("image"))
    images = {key: load_echo(source[key])[0] for key in ("image", "sector") if source.get(key)}
    for key in ("sector", "image"):
        if key in images and images[key].shape != label.shape:
            raise ValueError(
                f"{source['label']}: {key} is {tuple(images[key].shape[1:])} but label map is {tuple(label.shape[1:])} (rows, columns); "
                "fetch this pair again or correct the datalist"
            )
    check_label_map(label, None, str(source["label"]))
    if not label.any():
        raise ValueError(
            f"{source['label']}: the label map is empty (background alone), so there is no heart to draw; take it out of the data set"
        )
    if "sector" in images:
        if not images["sector"].any():
            raise ValueError(f"{source['sector']}: the sector is empty; give a mask that is 1 inside the sector")
    elif "image" in images:
        if not bool((images["image"] > check_sector.threshold).any()):
            raise ValueError(
                f"{source['image']}: no pixel is brighter than {check_sector.threshold:g} (sector_threshold), so the sector cannot be "
                "found; fetch the image again"
            )
    else:
        check_sector({"label": label, "spacing_mm": torch.tensor(spacing_mm)})


def _patient(source: Mapping[str, Any]) -> str:
    return str(source.get("patient") or source["case"])


def _relative(path: str | os.PathLike[str], root: Path) -> str:
    """Return the path within the data set, or the whole path if it is outside."""
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
