"""Compute the numbers that rate synthetic images: faithfulness, distances, speckle, spectra, diversity, memorisation, darkness."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from torch import Tensor

from synboost_monai.evaluation.quality_images import (
    THUMBNAIL_SIZE,
    TISSUES,
    Echo,
    ImageSet,
    RealReader,
    SyntheticReader,
    patient_of,
)
from synboost_monai.evaluation.speckle import SPECKLE_STATISTICS, high_frequency_db, spectral_distance_db
from synboost_monai.evaluation.statistics import bootstrap_means, draw_by_cluster, interval
from synboost_monai.evaluation.synthesis import (
    frechet_distance,
    median_distance,
    memorisation,
    mmd_chance_level,
    mmd_squared,
    ms_ssim,
    nearest,
)
from synboost_monai.structures import STRUCTURES

DARK_GREY = 2.0
"""Mean grey outside the sector (0..255) below which an image counts as dark there."""
MAX_DIVERSITY_MAPS, MAX_REPEATS = 30, 5
"""Largest number of label maps, and of images of each, from which the diversity is computed."""


@dataclass(frozen=True)
class Comparison:
    """Hold the three sets and the choice of compared images, which are as many synthetic as real ones."""

    synthetic: ImageSet
    real: ImageSet
    reference: ImageSet
    seed: int

    @cached_property
    def num_compared(self) -> int:
        return min(len(self.synthetic.items), len(self.real.items))

    @cached_property
    def chosen(self) -> list[int]:
        """Return the indices of the compared synthetic images, chosen patient by patient."""
        return draw_by_cluster(self.synthetic.patients, self.num_compared, self.seed)

    @cached_property
    def chosen_real(self) -> list[int]:
        return draw_by_cluster(self.real.patients, self.num_compared, self.seed)

    @property
    def counts(self) -> dict[str, int]:
        return {
            "num_synthetic": self.num_compared,
            "num_real": self.num_compared,
            "num_reference": len(self.reference.items),
        }

    def statistics(self, tissue: str, name: str) -> dict[str, NDArray[np.float64]]:
        """Return one speckle statistic of a tissue, for the compared images and the reference that have it."""
        return {
            "synthetic": self.synthetic.statistic(tissue, name, self.chosen),
            "real": self.real.statistic(tissue, name, self.chosen_real),
            "reference": self.reference.statistic(tissue, name),
        }


def faithfulness(sets: Comparison, num_bootstrap: int) -> dict[str, Any]:
    """Return the Dice of the segmenter's label maps against those that the images were made from, and its ceiling on real images.

    Raises:
        ValueError: if the two sets have no structure in common.
    """
    common = [s.name for s in STRUCTURES if s.name in sets.synthetic.structures & sets.real.structures]
    if not common:
        raise ValueError(
            "quality.py: synthetic and real label maps have no structure in common: synthetic ones hold "
            f"{', '.join(sorted(sets.synthetic.structures)) or 'none'}, real ones {', '.join(sorted(sets.real.structures)) or 'none'}"
        )
    for images in (sets.synthetic, sets.real):
        images.rows = [row for row in images.rows if row["structure"] in common]
    fake, real = pd.DataFrame(sets.synthetic.rows), pd.DataFrame(sets.real.rows)
    by_structure = {}
    for name in common:
        parts = (frame[frame["structure"] == name] for frame in (fake, real))
        by_structure[name] = _dice_summary(*parts, num_bootstrap=num_bootstrap, seed=sets.seed)
    return {
        **_dice_summary(fake, real, num_bootstrap=num_bootstrap, seed=sets.seed),
        "num_images": len(sets.synthetic.items),
        "num_patients": len(set(sets.synthetic.patients)),
        "num_real_images": len(sets.real.items),
        "num_real_patients": len(set(sets.real.patients)),
        "num_bootstrap": num_bootstrap,
        "structures": by_structure,
    }


def _dice_summary(synthetic: pd.DataFrame, real: pd.DataFrame, *, num_bootstrap: int, seed: int) -> dict[str, Any]:
    """Return the mean Dice of both sets with intervals over patients, and the difference; the sets' patients are drawn separately."""
    out: dict[str, Any] = {}
    draws = []
    for offset, (prefix, frame) in enumerate((("", synthetic), ("real_", real))):
        owner = frame["patient"].fillna(frame["case"]) if "patient" in frame else frame["case"]
        dice = frame.assign(owner=owner).groupby(["owner", "case"], sort=False)["dice"].mean()
        drawn = bootstrap_means(
            dice.tolist(), dice.index.get_level_values("owner").tolist(), num_bootstrap, seed + offset
        )
        low, high = interval(drawn)
        hd95_mm = pd.to_numeric(frame["hd95_mm"]).dropna()
        out |= {
            f"{prefix}mean_dice": float(dice.mean()),
            f"{prefix}std_dice": float(dice.std(ddof=1)) if len(dice) > 1 else 0.0,
            f"{prefix}ci_low": low,
            f"{prefix}ci_high": high,
            f"{prefix}mean_hd95_mm": float(hd95_mm.mean()) if len(hd95_mm) else None,
            f"{prefix}num_empty_prediction": int(frame["is_empty_prediction"].sum()),
            f"{prefix}mean_dice_in_sector": float(frame["dice_in_sector"].mean()),
        }
        draws.append(drawn)
    low, high = interval(draws[0] - draws[1])
    difference = out["mean_dice"] - out["real_mean_dice"]
    return {**out, "difference": difference, "difference_ci_low": low, "difference_ci_high": high}


def feature_distances(sets: Comparison, layer: str) -> dict[str, Any]:
    """Return FID and MMD on the segmenter's features, and FID on Inception's features if there are any, with their floors."""
    reference = sets.reference.features
    fake, real = sets.synthetic.features[sets.chosen], sets.real.features[sets.chosen_real]
    bandwidth = median_distance(reference)
    mmd = {
        **_with_floor(mmd_squared(fake, reference, bandwidth), mmd_squared(real, reference, bandwidth)),
        **sets.counts,
        "num_features": int(reference.shape[1]),
        # between compared real images and reference, shuffled: the value if there is no difference
        "chance_level": mmd_chance_level(real, reference, bandwidth, sets.seed),
        "kernel": "Gaussian, unbiased square; the bandwidth is the median distance of the reference's features",
        "bandwidth": bandwidth,
    }
    out: dict[str, Any] = {
        "fid": {**_fid(sets, fake, real, reference), "layer": layer},
        "mmd": mmd,
        "fid_inception": None,
    }
    if sets.reference.inception_parts:
        fake, real = sets.synthetic.inception[sets.chosen], sets.real.inception[sets.chosen_real]
        out["fid_inception"] = _fid(sets, fake, real, sets.reference.inception)
    return out


def _fid(sets: Comparison, fake: NDArray[Any], real: NDArray[Any], reference: NDArray[Any]) -> dict[str, Any]:
    """Return the Fréchet distance of chosen synthetic images to the reference, and its floor, in one network's features."""
    distances = _with_floor(frechet_distance(fake, reference), frechet_distance(real, reference))
    return {**distances, **sets.counts, "num_features": int(reference.shape[1])}


def _with_floor(value: float, floor: float) -> dict[str, Any]:
    return {"value": value, "floor": floor, "ratio": value / floor if floor > 0 else None}


def speckle_comparison(sets: Comparison) -> dict[str, Any]:
    """Return tissue -> statistic -> medians, and the Wasserstein-1 distance of the distributions over images to the reference."""
    out: dict[str, Any] = {}
    for tissue in TISSUES:
        out[tissue] = dict.fromkeys(SPECKLE_STATISTICS)
        for name in SPECKLE_STATISTICS:
            values = sets.statistics(tissue, name)
            if all(map(len, values.values())):
                out[tissue][name] = {
                    **{key: float(np.median(v)) for key, v in values.items()},
                    "distance": float(wasserstein_distance(values["synthetic"], values["reference"])),
                    "floor": float(wasserstein_distance(values["real"], values["reference"])),
                    **{f"num_{key}": len(v) for key, v in values.items()},
                }
    return out


def mean_spectra(sets: Comparison) -> dict[str, NDArray[np.float64]]:
    """Return the mean power spectra of the compared images and of the reference."""
    return {
        "synthetic": np.mean([sets.synthetic.spectra[i] for i in sets.chosen], axis=0),
        "real": np.mean([sets.real.spectra[i] for i in sets.chosen_real], axis=0),
        "reference": np.mean(sets.reference.spectra, axis=0),
    }


def spectrum_comparison(sets: Comparison) -> dict[str, Any]:
    """Return the log distances of the mean spectra to the reference's, and the differences in the upper third of the frequencies."""
    spectra = mean_spectra(sets)
    reference = spectra["reference"]
    return {
        "spectrum_distance_db": spectral_distance_db(spectra["synthetic"], reference),
        "spectrum_distance_floor_db": spectral_distance_db(spectra["real"], reference),
        "spectrum_high_frequency_db": high_frequency_db(spectra["synthetic"], reference),
        "spectrum_high_frequency_floor_db": high_frequency_db(spectra["real"], reference),
        "spectrum": {f"{name}_db": (10 * np.log10(np.maximum(s, 1e-12))).tolist() for name, s in spectra.items()},
    }


def darkness(sets: Comparison) -> dict[str, Any]:
    """Check that images are black outside the sector that they were made in, and grey where they have three channels."""
    known = [(g, item["case"]) for g, item in zip(sets.synthetic.outside_grey, sets.synthetic.items) if g is not None]
    colours = [d for d in sets.synthetic.colour_difference if d is not None]
    real = [g for g in sets.real.outside_grey if g is not None]
    worst = max(known, default=None)
    return {
        "share_dark": float(np.mean([g < DARK_GREY for g, _ in known])) if known else None,
        "worst_mean_grey": worst[0] if worst else None,
        "worst_case": worst[1] if worst else None,
        "real_share_dark": float(np.mean([g < DARK_GREY for g in real])) if real else None,
        "threshold": DARK_GREY,
        "num_images": len(known),
        "num_without_sector": len(sets.synthetic.items) - len(known),
        "colour_max_difference": max(colours) if colours else None,
        "num_colour_images": len(colours),
    }


@dataclass(frozen=True)
class Neighbours:
    """Hold the distance of each image to its nearest reference image, and the index of that image."""

    synthetic: NDArray[np.float64]
    synthetic_indices: NDArray[np.int64]
    real: NDArray[np.float64]


def neighbours(sets: Comparison) -> dict[str, Neighbours]:
    """Find nearest images in pixels (grey levels of reduced images) and in features (each over its deviation in the reference)."""
    std = sets.reference.features.std(axis=0)
    scale = np.where(std > 0, std, 1)
    of_sets = (sets.synthetic, sets.real, sets.reference)
    return {
        "pixel": _neighbours(*(np.stack(images.thumbnails) for images in of_sets)),
        "feature": _neighbours(*(images.features / scale for images in of_sets)),
    }


def _neighbours(synthetic: NDArray[Any], real: NDArray[Any], reference: NDArray[Any]) -> Neighbours:
    distances, indices = nearest(synthetic, reference)
    return Neighbours(distances, indices, nearest(real, reference)[0])


def memorisation_comparison(
    sets: Comparison, found: Mapping[str, Neighbours], reader: SyntheticReader
) -> dict[str, Any]:
    """Return `memorisation` in both spaces, and how often the nearest training image is the one whose label map was perturbed."""
    reference = [os.path.realpath(item["image"]) for item in sets.reference.items]
    sources = [reader.source(item).get("image") for item in sets.synthetic.items]
    own = [i for i, source in enumerate(sources) if source and os.path.realpath(source) in reference]
    out: dict[str, Any] = {}
    for name, n in found.items():
        is_source = [os.path.realpath(str(sources[i])) == reference[n.synthetic_indices[i]] for i in own]
        out[name] = {
            **memorisation(n.synthetic, n.real),
            "share_nearest_is_source": float(np.mean(is_source)) if own else None,
        }
    return {
        **out,
        "num_synthetic": len(sets.synthetic.items),
        "num_real": len(sets.real.items),
        "num_reference": len(sets.reference.items),
        "thumbnail_size": THUMBNAIL_SIZE,
    }


def diversity(
    items: Sequence[dict[str, Any]],
    real_items: Sequence[dict[str, Any]],
    readers: tuple[SyntheticReader, RealReader],
    seed: int,
) -> dict[str, Any]:
    """Return the mean 1 - MS-SSIM between images of one perturbed label map, and between real images of different patients.

    Args:
        items: all synthetic images, whatever the limit.
        real_items: real images.
        readers: readers of the synthetic and the real images.
        seed: seed for the pairs of real images.
    """
    reader, real_reader = readers
    groups: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for item in items:
        record = reader.record(item)
        groups.setdefault((record.get("source_label"), record.get("perturbation_seed")), []).append(item)
    repeated = [group for group in groups.values() if len(group) > 1]
    step = max(1, len(repeated) // MAX_DIVERSITY_MAPS)
    repeated = [group[:MAX_REPEATS] for group in repeated[::step][:MAX_DIVERSITY_MAPS]]
    means = []
    for group in repeated:
        images = [_unit_image(reader(item)) for item in group]
        pairs = [(a, b) for i, a in enumerate(images) for b in images[i + 1 :]]
        means.append(float(1 - ms_ssim(*(torch.stack(side) for side in zip(*pairs))).mean()))

    order = np.random.default_rng(seed).permutation(len(real_items))
    real_pairs = [
        (real_items[i], real_items[j])
        for i, j in zip(order, np.roll(order, 1))
        if i != j and patient_of(real_items[i]) != patient_of(real_items[j])
    ][:MAX_DIVERSITY_MAPS]
    real = [
        float(1 - ms_ssim(_unit_image(real_reader(a))[None], _unit_image(real_reader(b))[None])) for a, b in real_pairs
    ]
    note = None if means else "no label map has several images; synthesise with num_repeats above 1 to measure it"
    return {
        "mean": float(np.mean(means)) if means else None,
        "std": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "real_mean": float(np.mean(real)) if real else None,
        "num_maps": len(repeated),
        "num_images": sum(map(len, repeated)),
        "num_real_pairs": len(real),
        "note": note,
    }


def _unit_image(echo: Echo) -> Tensor:
    """Return the image as (1, N, N) in [0, 1]."""
    return torch.from_numpy(echo.image)[None].float() / 255
