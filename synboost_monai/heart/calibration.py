"""Predict the Dice of a mask whose truth is not known, with a regression fitted to a validation set.

Each structure has a ridge regression of logit(Dice) on a few standardised features (`FEATURES`); i: image, w: coefficients:

    minimise  mean_i (logit(dice_i) - w_0 - w . z_i)^2 + penalty |w|^2,    predicted Dice = 1 / (1 + exp(-w_0 - w . z))

The sign of a coefficient is fixed by its feature: the predicted Dice cannot fall when the network is surer of a mask or when the
prompts agree more. The penalty is chosen by leaving out one patient after another; the reported rank correlation, mean error and
thresholds come from these left-out predictions.

A calibration holds only for the weights, prompts and postprocessing it was fitted with; `calibration.json` records the SHA-256 of the
weights and the settings.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import lsq_linear
from scipy.stats import spearmanr

from synboost_monai import __version__
from synboost_monai.files import atomic_write_text, read_text
from synboost_monai.structures import STRUCTURES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FEATURES: dict[str, tuple[str, int]] = {
    "expected_dice": ("logit", 1),
    "mean_spread": ("log", -1),
    "opening_fraction": ("log", 0),
}
"""Feature -> its scale, and the sign of its coefficient (0: either sign; values are then clipped to the validation set's range).

They were chosen by leave-one-patient-out error on CAMUS's validation patients, with three networks. Further features did not rank
better: entropy at the border, Dice between the prompts' masks, area, other measures of the anatomy.
"""
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Ridge penalties to choose from, for standardised features."""
MIN_IMAGES = 10
"""Fewest images with a mask of a structure that a calibration can be fitted to."""
MIN_PATIENTS = 3
"""Fewest patients that these images must come from."""
STRUCTURE_PART = 1 / 3
"""Quantile level of a structure's review threshold, as a fraction of the level of the mean over the structures: this finds bad images
best."""
SPREAD_MARGIN = 1.5
"""A mean spread above this many times the largest of the validation set goes to review."""
FORMAT = 2
"""Version of the JSON format. Format 1 is read too, unless it was fitted with `fill_holes`, which then left gaps between structures."""

_DICE_MARGIN = 1e-3  # logits of 0 and 1 are infinite
_SPREAD_FLOOR = 1e-3


@dataclass(frozen=True)
class StructureCalibration:
    """Hold the regression of one structure; tuples follow the order of `Calibration.features`."""

    means: tuple[float, ...]
    scales: tuple[float, ...]
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    """Lowest and highest value of each standardised feature in the validation set."""
    coefficients: tuple[float, ...]
    intercept: float
    penalty: float
    review_below: float
    """A predicted Dice below this value goes to review."""
    highest_spread: float
    """A mean spread above this value goes to review."""
    num_images: int
    spearman: float | None
    """Rank correlation of predicted and true Dice, with predictions of left-out patients."""
    mae: float
    """Mean absolute difference of predicted and true Dice, with the same predictions."""


@dataclass(frozen=True)
class Calibration:
    """Hold the content of `calibration.json`."""

    checkpoint_sha256: str
    settings: Mapping[str, Any]
    """Settings of the inference: image size, prompts, threshold, postprocessing. Other settings give other features."""
    num_groups: int
    """Number of prompt groups (E) over which mean and spread are computed."""
    features: tuple[str, ...]
    structures: Mapping[str, StructureCalibration]
    review_below: float
    """An image whose mean predicted Dice over the structures is below this value goes to review."""
    review_share: float
    """Share of the validation images that go to review, for their predicted Dice, their anatomy or any other reason."""
    spearman_pooled: float | None
    """Rank correlation over all structures of all images, with predictions of left-out patients."""
    spearman_image_mean: float | None
    """Rank correlation over images of the means over the structures."""
    num_images: int
    num_patients: int
    dataset_dir: str
    section: str
    seed: int | None
    synboost_version: str = __version__
    format: int = FORMAT

    def predict(self, structure: str, features: Mapping[str, float | None]) -> float:
        """Return the predicted Dice of a mask that is not empty.

        Args:
            structure: name of a structure.
            features: value of each of `FEATURES`; None: not known, and counted as the validation set's mean.
        """
        c = self.structures[structure]
        x = np.array([_scaled(name, features[name]) for name in self.features])
        z = np.nan_to_num((x - c.means) / c.scales)
        is_free = np.array([FEATURES[name][1] == 0 for name in self.features])
        z = np.where(is_free, np.clip(z, c.lowest, c.highest), z)
        return _sigmoid(c.intercept + float(z @ np.array(c.coefficients)))

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the JSON file, whole or not at all."""
        atomic_write_text(path, json.dumps(asdict(self), indent=2, allow_nan=False) + "\n")
        return Path(path)


def read_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Read a calibration that `Calibration.write` wrote.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not a calibration of this version, complete and with finite numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such calibration; make it with the bundle's calibrate.yaml, or set calibration_path to null"
        )
    again = "make it again with the bundle's calibrate.yaml"
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); {again}") from error
    if not isinstance(content, dict) or content.get("format") not in (1, FORMAT):
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: expected a calibration of format {FORMAT}, got {found!r}; {again}")
    _check_keys(content, Calibration, str(path))
    if tuple(content["features"]) != tuple(FEATURES):
        raise ValueError(
            f"{path}: expected the features {', '.join(FEATURES)}, got {', '.join(map(str, content['features']))}; {again}"
        )
    names = [s.name for s in STRUCTURES]
    if not isinstance(content["structures"], dict) or sorted(content["structures"]) != sorted(names):
        raise ValueError(
            f"{path}: expected the structures {', '.join(names)}, got {content['structures']!s:.80}; {again}"
        )
    structures = {}
    for name in names:
        values = content["structures"][name]
        _check_keys(values, StructureCalibration, f"{path}: structures.{name}")
        for key in ("means", "scales", "lowest", "highest", "coefficients"):
            values[key] = tuple(values[key]) if isinstance(values[key], list) else ()
            if len(values[key]) != len(FEATURES) or not all(_is_number(v) for v in values[key]):
                raise ValueError(f"{path}: structures.{name}.{key} must be {len(FEATURES)} finite numbers; {again}")
        if not all(_is_number(values[k]) for k in ("intercept", "review_below", "highest_spread")) or not all(
            scale > 0 for scale in values["scales"]
        ):
            raise ValueError(f"{path}: structures.{name} holds a value that is no finite number, or no scale; {again}")
        structures[name] = StructureCalibration(**values)
    if not _is_number(content["review_below"]) or not isinstance(content["settings"], dict):
        raise ValueError(f"{path}: review_below must be a number and settings a mapping; {again}")
    if content["format"] == 1 and content["settings"].get("fill_holes"):
        raise ValueError(
            f"{path}: fitted before fill_holes closed the gaps between structures, so it is for other label maps; {again}"
        )
    return Calibration(**{**content, "features": tuple(content["features"]), "structures": structures})


def fit_calibration(
    features: Mapping[str, Sequence[Mapping[str, float | None]]],
    dice: Mapping[str, Sequence[float]],
    patients: Sequence[str],
    *,
    is_empty: Mapping[str, Sequence[bool]],
    is_sent_anyway: Sequence[bool],
    review_share: float = 0.1,
    **facts: Any,
) -> Calibration:
    """Fit the predicted Dice to a validation set, and choose what goes to review.

    Args:
        features: structure -> for each image the value of each of `FEATURES` (None: not known).
        dice: structure -> for each image the true Dice, in [0, 1].
        patients: patient of each image; all images of a patient are left out together.
        is_empty: structure -> whether each image's mask is empty; its predicted Dice is 0, and it is not fitted.
        is_sent_anyway: whether an image goes to review whatever its predicted Dice is, such as for its anatomy.
        review_share: largest share of the images that may go to review for their predicted Dice; further images may go to review
            for other reasons.
        facts: checkpoint_sha256, settings, num_groups, dataset_dir, section and seed of `Calibration`.
    Raises:
        ValueError: if there are too few images or patients, or the share is not between 0 and 1.
    """
    if not 0 < review_share < 1:
        raise ValueError(f"calibration.py: review_share is a share between 0 and 1, got {review_share}")
    people = np.array([str(p) for p in patients])
    num_patients = len(set(people.tolist()))
    if num_patients < MIN_PATIENTS:
        raise ValueError(
            f"calibration.py: a calibration needs images of at least {MIN_PATIENTS} patients, got {num_patients}; "
            "give a larger section"
        )
    names = [s.name for s in STRUCTURES]
    truth = np.stack([np.asarray(dice[name], dtype=np.float64) for name in names], axis=1)  # (n, S)
    predicted = np.zeros_like(truth)
    fitted: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(names):
        is_used = ~np.asarray(is_empty[name], dtype=bool)
        if is_used.sum() < MIN_IMAGES or len(set(people[is_used])) < MIN_PATIENTS:
            raise ValueError(
                f"calibration.py: {name} was found in {is_used.sum()} of {len(people)} images; a calibration needs "
                f"{MIN_IMAGES} of at least {MIN_PATIENTS} patients; give a larger section or better weights"
            )
        x = np.array([[_scaled(f, row[f]) for f in FEATURES] for row, used in zip(features[name], is_used) if used])
        fitted[name], predicted[is_used, i] = _fit_structure(x, truth[is_used, i], people[is_used])
        spreads = [row["mean_spread"] or 0.0 for row, used in zip(features[name], is_used) if used]
        fitted[name] |= {
            "highest_spread": SPREAD_MARGIN * max(max(spreads), _SPREAD_FLOOR),
            "num_images": int(is_used.sum()),
            "spearman": rank_correlation(predicted[:, i], truth[:, i]),
            "mae": float(np.abs(predicted[:, i] - truth[:, i]).mean()),
        }
    mean_below, below = _thresholds(predicted, review_share)
    is_sent = _is_low(predicted, mean_below, below) | np.asarray(is_sent_anyway, dtype=bool)
    return Calibration(
        features=tuple(FEATURES),
        structures={n: StructureCalibration(**fitted[n], review_below=float(b)) for n, b in zip(names, below)},
        review_below=mean_below,
        review_share=float(is_sent.mean()),
        spearman_pooled=rank_correlation(predicted.ravel(), truth.ravel()),
        spearman_image_mean=rank_correlation(predicted.mean(axis=1), truth.mean(axis=1)),
        num_images=len(people),
        num_patients=num_patients,
        **facts,
    )


def rank_correlation(first: Any, second: Any) -> float | None:
    """Return Spearman's rank correlation; None where it is not defined (fewer than 3 values, or all the same)."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second)[0])


# ---- helpers


def _fit_structure(x: Floats, dice: Floats, patients: NDArray[Any]) -> tuple[dict[str, Any], Floats]:
    """Return the regression of one structure, and its predictions of left-out patients (n,)."""
    target = _logit(dice)
    folds = [patients == patient for patient in np.unique(patients)]
    best: tuple[float, float, Floats] | None = None
    for penalty in PENALTIES:
        left_out = np.empty_like(target)
        for fold in folds:
            left_out[fold] = _predict(x[fold], *_regress(x[~fold], target[~fold], penalty))
        error = float(((left_out - target) ** 2).mean())
        if best is None or error < best[0]:
            best = error, penalty, left_out
    assert best is not None
    mean, scale, coefficients, intercept = _regress(x, target, best[1])
    z = np.nan_to_num((x - mean) / scale)
    values = {
        "means": tuple(mean.tolist()),
        "scales": tuple(scale.tolist()),
        "lowest": tuple(z.min(axis=0).tolist()),
        "highest": tuple(z.max(axis=0).tolist()),
        "coefficients": tuple(coefficients.tolist()),
        "intercept": intercept,
        "penalty": best[1],
    }
    return values, np.array([_sigmoid(v) for v in best[2]])


def _regress(x: Floats, target: Floats, penalty: float) -> tuple[Floats, Floats, Floats, float]:
    """Return mean and scale of the features, and coefficients and intercept of the ridge regression with fixed signs."""
    known = np.where(np.isnan(x), 0.0, x)
    count = np.maximum((~np.isnan(x)).sum(axis=0), 1)
    mean = known.sum(axis=0) / count
    z = np.nan_to_num(x - mean)
    scale = np.sqrt((z**2).sum(axis=0) / count)
    scale[scale < 1e-9] = 1.0  # a constant feature, such as the spread without an ensemble: its coefficient becomes 0
    z /= scale
    signs = [FEATURES[name][1] for name in FEATURES]
    bounds = ([0.0 if s > 0 else -np.inf for s in signs], [0.0 if s < 0 else np.inf for s in signs])
    intercept = float(target.mean())
    rows = np.vstack([z, math.sqrt(penalty * len(z)) * np.eye(z.shape[1])])
    found = lsq_linear(rows, np.concatenate([target - intercept, np.zeros(z.shape[1])]), bounds=bounds, method="bvls")
    return mean, scale, found.x, intercept


def _predict(x: Floats, mean: Floats, scale: Floats, coefficients: Floats, intercept: float) -> Floats:
    """Return the logit of the predicted Dice, (n,)."""
    return intercept + np.nan_to_num((x - mean) / scale) @ coefficients


def _thresholds(predicted: Floats, share: float) -> tuple[float, Floats]:
    """Return thresholds of the mean and of each structure (S,) that send at most `share` of the images (n, S) to review."""
    means = predicted.mean(axis=1)
    found = float(means.min()), predicted.min(axis=0)  # these send no image to review
    for level in np.arange(0.5 / len(means), share + 1e-9, 0.5 / len(means)):
        mean_below = float(np.quantile(means, level, method="higher"))
        below = np.quantile(predicted, level * STRUCTURE_PART, axis=0, method="higher")
        if _is_low(predicted, mean_below, below).mean() <= share:
            found = mean_below, below
    return found


def _is_low(predicted: Floats, mean_below: float, below: Floats) -> NDArray[np.bool_]:
    """Return whether each image goes to review for its predicted Dice, (n,)."""
    return (predicted.mean(axis=1) < mean_below) | (predicted < below).any(axis=1)


def _scaled(name: str, value: float | None) -> float:
    """Return a feature on the scale of the regression; NaN for None."""
    if value is None:
        return math.nan
    return float(_logit(np.float64(value))) if FEATURES[name][0] == "logit" else math.log(value + _SPREAD_FLOOR)


def _logit(share: Any) -> Any:
    clipped = np.clip(share, _DICE_MARGIN, 1 - _DICE_MARGIN)
    return np.log(clipped / (1 - clipped))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, value))))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_keys(values: Any, of: type[Calibration] | type[StructureCalibration], where: str) -> None:
    """Raise ValueError unless a mapping has exactly the fields of a dataclass."""
    expected = {field.name for field in fields(of)}
    found = set(values) if isinstance(values, dict) else set()
    if found != expected:
        wrong = [f"{k} is missing" for k in sorted(expected - found)] + [
            f"{k} is unknown" for k in sorted(found - expected)
        ]
        raise ValueError(
            f"{where}: not a calibration ({', '.join(wrong[:5])}); make it again with the bundle's calibrate.yaml"
        )
