"""Judge how far a segmentation can be trusted, from predicted Dice, disagreement among prompts and anatomy: accept or review.

The network's probability says how sure it is of each pixel. The spread, the standard deviation of the probability over E groups of
prompts with the same meaning, says how much the result depends on the wording. `segmentation_evidence` sums both up for the mask that
is written. `DoubtAssessor` turns them into a predicted Dice (see `calibration`), adds the findings of `anatomy`, and gives a verdict
with its reasons.

h, w: rows and columns of the image in the network's square. H, W: rows and columns of the file. S: structures. T: frames of a clip.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synboost_monai.files import known_sha256
from synboost_monai.heart.anatomy import ADULT_RANGES, MEASURES, AnatomyProblem, examine_anatomy, out_of_range
from synboost_monai.heart.calibration import (
    FEATURES,
    Calibration,
    StructureCalibration,
    rank_correlation,
    read_calibration,
)
from synboost_monai.structures import STRUCTURES, VIEW_CLASSES

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

CALIBRATION_NAME = "calibration.json"
"""File name of a calibration beside its weights."""
VERDICTS = ("accept", "review")
"""Verdicts on a segmentation: it can be used as it is, or a person should look at it."""
REVIEW_BELOW = 0.85
"""Expected Dice below which a mask goes to review if there is no calibration. Uncalibrated networks are too sure of themselves:
an expected Dice of 0.93 is the lower end of what small networks give on CAMUS, at a true Dice of 0.8."""
MAX_SPREAD = 0.2
"""Mean spread above which a mask goes to review if there is no calibration."""
MAX_CHANGED_SHARE = 0.05
"""Largest share of a structure that removed pieces and filled holes may make up."""
MAX_REVIEW_FRAMES = 0.2
"""Largest share of a clip's frames that may need review by themselves."""
MIN_APICAL = 0.5
"""Probability of an apical view below which an image, or a clip in the mean of its frames, goes to review."""
WORST_SHARE = 0.05
"""Share of the images, those with the lowest mean Dice, that count as worst: an evaluation reports how many were sent to review."""
FREE_PROMPT = "prompt"
"""Key in the results for how a free prompt was understood."""
PREDICTION_CODES = ("low_predicted_dice", "high_spread")
"""Codes of the reasons that depend on a calibration."""

_IN_MM = {name for name, (_, unit) in MEASURES.items() if unit.startswith("mm")}
_PROBLEMS_IN_MM = {"opening", "apart"}  # their limits are lengths
_NO_SPACING = "the file has no pixel spacing: lengths, areas and gaps in mm are not judged"


def segmentation_evidence(
    probability: NDArray[Any],
    label_map: NDArray[Any],
    class_indices: Sequence[int],
    names: Sequence[str],
    removed_shares: Sequence[float],
    filled_shares: Sequence[float],
) -> dict[str, Any]:
    """Summarise the network's probabilities for the label map made of them.

    Expected Dice of a mask m with probabilities p: 2 sum(p m) / (sum(p) + sum(m)). Mean spread: sum of the standard deviation of p over
    the groups, divided by the mask's size.

    Args:
        probability: (E, S, h, w), for each group of prompts.
        label_map: (h, w), the finished label map on the same grid.
        class_indices, names: class and name of each structure.
        removed_shares, filled_shares: area that the postprocessing removed and added, divided by the structure's area.
    Returns:
        num_groups, and structures: name -> class_index, is_empty, expected_dice, mean_spread (None if E = 1), removed_share,
        filled_share.
    """
    mean = probability.mean(axis=0)
    spread = probability.std(axis=0) if len(probability) > 1 else None
    structures: dict[str, dict[str, Any]] = {}
    for i, (index, name) in enumerate(zip(class_indices, names)):
        mask = label_map == index
        size = int(np.count_nonzero(mask))
        both = float(mean[i].sum(dtype=np.float64)) + size
        expected = 2 * float(mean[i][mask].sum(dtype=np.float64)) / both if size else 0.0
        structures[name] = {
            "class_index": int(index),
            "is_empty": size == 0,
            "expected_dice": expected,
            "mean_spread": None if spread is None else float(spread[i].sum(dtype=np.float64)) / size if size else 0.0,
            "removed_share": float(removed_shares[i]),
            "filled_share": float(filled_shares[i]),
        }
    return {"num_groups": len(probability), "structures": structures}


def view_evidence(logits: NDArray[Any]) -> dict[str, Any]:
    """Return the view and the moment of the beat that the network's view head predicts for an image.

    Args:
        logits: (4,), of `structures.VIEW_CLASSES` and of the moment of the beat.
    Returns:
        probabilities, class -> 0..1; and systole, the moment: 0 end-diastole, 1 end-systole.
    """
    of_classes, of_moment = np.split(np.asarray(logits, dtype=np.float64), [len(VIEW_CLASSES)])
    likely = np.exp(of_classes - of_classes.max())
    probabilities = dict(zip(VIEW_CLASSES, (likely / likely.sum()).tolist(), strict=True))
    return {"probabilities": probabilities, "systole": float(0.5 + 0.5 * np.tanh(of_moment[0] / 2))}


def mask_overlaps(mask: NDArray[Any], label_map: NDArray[Any]) -> dict[str, float]:
    """Return the Dice of a mask (h, w) with each structure of a label map (h, w), by name; 0 where both are empty."""
    overlaps = {}
    for structure in STRUCTURES:
        other = label_map == structure.class_index
        total = np.count_nonzero(mask) + np.count_nonzero(other)
        overlaps[structure.name] = 2 * np.count_nonzero(mask & other) / max(total, 1)
    return overlaps


class DoubtAssessor:
    """Judge label maps: predicted Dice of each structure, anatomy, verdict and reasons.

    Args:
        checkpoint_path: weights in use; a calibration holds only for these.
        calibration_path: calibration.json; None: the one beside the weights, if it was fitted for these weights and settings; without
            it the predicted Dice is the expected Dice, and the results say `calibrated: false`.
        settings: settings of the inference by name: all that the probabilities and the label map depend on besides weights and
            image; a calibration holds only for these.
        review_below: predicted Dice below which a structure, or their mean, goes to review; None: the calibration's thresholds, or
            `REVIEW_BELOW`.
        ranges: lowest and highest value of the measures of the anatomy (see `check_anatomy`); None: those of adults; {}: no ranges.
    Raises:
        FileNotFoundError, ValueError: if the calibration cannot be read, or is for other weights or settings; if `review_below` is not
            between 0 and 1 or a measure is unknown.
    """

    def __init__(
        self,
        checkpoint_path: str | os.PathLike[str] | None,
        calibration_path: str | os.PathLike[str] | None = None,
        settings: Mapping[str, Any] | None = None,
        review_below: float | None = None,
        ranges: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        if review_below is not None and not 0 <= review_below <= 1:
            raise ValueError(f"doubt.py: review_below is a Dice between 0 and 1, or null, got {review_below}")
        self.checkpoint_path = checkpoint_path
        self.settings = dict(settings or {})
        self.review_below = review_below
        self.ranges = dict(ADULT_RANGES if ranges is None else ranges)
        out_of_range({}, self.ranges)  # unknown measures
        self.calibration_path = calibration_path
        if calibration_path is None:
            self.calibration = self._calibration_beside()
        else:
            self.calibration = read_calibration(calibration_path)
            self._check_calibration(self.calibration, str(calibration_path))

    @cached_property
    def model_sha256(self) -> str | None:
        """Return the SHA-256 of the weights."""
        return None if self.checkpoint_path is None else known_sha256(self.checkpoint_path)

    def __call__(
        self,
        label_map: NDArray[Any],
        evidence: Sequence[Mapping[str, Any]],
        spacing_mm: Sequence[float] | None,
        pixel_aspect: Sequence[float] = (1.0, 1.0),
    ) -> dict[str, Any]:
        """Judge one image or clip.

        Args:
            label_map: (T, H, W) integers, classes 0..3; T = 1 for an image.
            evidence: result of `segmentation_evidence` for each frame; with `view`, the result of `view_evidence`, if the network
                predicts the view.
            spacing_mm: (row, column); None: not in the file.
            pixel_aspect: (row, column) in any unit, used for proportions where `spacing_mm` is None.
        Returns:
            calibrated, structures, predicted_dice (mean over the structures), anatomy, verdict, reasons, model_sha256, settings. A
            clip also has frames, the same for each frame by itself. A free prompt also has prompt, how it was understood. If the
            network predicts the view, there is also view: the likeliest class with its probability; apical, the probability of any
            apical view; and for an image systole, the moment of the beat. The result can be written as JSON.
        """
        frames = [self._frame(m, e, spacing_mm, pixel_aspect) for m, e in zip(label_map, evidence)]
        known = {"model_sha256": self.model_sha256, "settings": self.settings}
        if len(frames) == 1:
            return {**frames[0], **known}
        return {**self._clip(frames), **known}

    def features(self, doubt: Mapping[str, Any], structure: str) -> dict[str, float | None]:
        """Return the calibration's features of one structure from the result of an image."""
        found = {**doubt["anatomy"]["measures"], **doubt["structures"][structure]}
        return {name: found.get(name) for name in FEATURES}

    def _calibration_beside(self) -> Calibration | None:
        """Return the calibration beside the weights, or None, with a warning, if it does not fit: nobody asked for it."""
        path = None if self.checkpoint_path is None else Path(self.checkpoint_path).with_name(CALIBRATION_NAME)
        if path is None or not path.is_file() or not os.path.isfile(str(self.checkpoint_path)):
            return None
        try:
            calibration = read_calibration(path)
            self._check_calibration(calibration, str(path))
        except ValueError as error:
            logger.warning(f"the predicted Dice is not calibrated: {error}")
            return None
        return calibration

    def _check_calibration(self, calibration: Calibration, path: str) -> None:
        if calibration.checkpoint_sha256 != self.model_sha256:
            raise ValueError(
                f"{path}: fitted for the weights with SHA-256 {calibration.checkpoint_sha256[:12]}..., but {self.checkpoint_path} has "
                f"{str(self.model_sha256)[:12]}...; run calibrate.yaml with these weights, or set calibration_path to null"
            )
        keys = sorted({*calibration.settings, *self.settings})
        for key in keys:
            fitted, used = calibration.settings.get(key), self.settings.get(key)
            if fitted != used:
                raise ValueError(
                    f"{path}: fitted with {key} {fitted!r}, but this run has {used!r}; set {key} back, run calibrate.yaml with this "
                    "run's settings, or set calibration_path to null"
                )

    def _frame(
        self,
        label_map: NDArray[Any],
        evidence: Mapping[str, Any],
        spacing_mm: Sequence[float] | None,
        pixel_aspect: Sequence[float],
    ) -> dict[str, Any]:
        """Judge one image, or one frame of a clip."""
        calibration = self.calibration
        if calibration is not None and calibration.num_groups != evidence["num_groups"]:
            calibration = None  # it was fitted with other groups of prompts
        anatomy = self._anatomy(label_map, spacing_mm, pixel_aspect)
        frame: dict[str, Any] = {"calibrated": calibration is not None, "structures": {}, "anatomy": anatomy}
        if FREE_PROMPT in evidence:
            frame[FREE_PROMPT] = dict(evidence[FREE_PROMPT])
        if "view" in evidence:
            frame["view"] = {**_view(evidence["view"]["probabilities"]), "systole": evidence["view"]["systole"]}
        for name, found in evidence["structures"].items():
            area = np.count_nonzero(label_map == found["class_index"]) * math.prod(spacing_mm or (math.nan,))
            frame["structures"][name] = {
                "predicted_dice": found["expected_dice"],
                "expected_dice": found["expected_dice"],
                "mean_spread": found["mean_spread"],
                "area_mm2": float(area) if spacing_mm is not None else None,
                "removed_share": found["removed_share"],
                "filled_share": found["filled_share"],
                "is_empty": found["is_empty"],
            }
        if calibration is not None:
            for name, values in frame["structures"].items():
                predicted = calibration.predict(name, self.features(frame, name))
                values["predicted_dice"] = 0.0 if values["is_empty"] else predicted
        return self._judged(frame, calibration)

    def _anatomy(
        self, label_map: NDArray[Any], spacing_mm: Sequence[float] | None, pixel_aspect: Sequence[float]
    ) -> dict[str, Any]:
        """Return problems and measures; without a spacing only those that need no length."""
        problems, measures = examine_anatomy(label_map, pixel_aspect if spacing_mm is None else spacing_mm)
        notes = []
        if spacing_mm is None:
            problems = [p for p in problems if p.code not in _PROBLEMS_IN_MM]
            measures = {name: value for name, value in measures.items() if name not in _IN_MM}
            notes.append(_NO_SPACING)
        problems = problems + out_of_range(measures, self.ranges)
        if spacing_mm is None:  # their sentences would call pixels mm²
            problems = [_without_size(p) for p in problems]
        return {"problems": [asdict(p) for p in problems], "measures": measures, "notes": notes}

    def _judged(self, frame: dict[str, Any], calibration: Calibration | None) -> dict[str, Any]:
        """Return a frame with its mean predicted Dice, verdict and reasons."""
        reasons = _not_apical(frame)
        for name, values in frame["structures"].items():
            fitted = None if calibration is None else calibration.structures[name]
            words = _words(name)
            if values["is_empty"]:
                reasons.append(_reason("empty", name, f"no {words} was found"))
                continue
            reasons += self._low(name, f"of the {words}", values["predicted_dice"], fitted)
            limit = MAX_SPREAD if fitted is None else fitted.highest_spread
            if values["mean_spread"] is not None and values["mean_spread"] > limit:
                text = f"the prompts disagree about the {words}: mean spread {values['mean_spread']:.3f}; expected at most {limit:.3f}"
                reasons.append(_reason("high_spread", name, text))
            for key, done in (("removed_share", "removed as stray pieces"), ("filled_share", "filled as holes")):
                if values[key] > MAX_CHANGED_SHARE:
                    text = f"{values[key]:.0%} of the {words} was {done}; expected at most {MAX_CHANGED_SHARE:.0%}"
                    reasons.append(_reason(key.removesuffix("_share"), name, text))
        frame["predicted_dice"] = _mean([v["predicted_dice"] for v in frame["structures"].values()])
        reasons += self._low(None, "of the structures together", frame["predicted_dice"], calibration)
        reasons += _other_mask(frame.get(FREE_PROMPT, {}))
        for problem in frame["anatomy"]["problems"]:
            if problem["code"] != "missing":  # already reported as empty
                structure = problem["subject"] if problem["code"] != "range" else None
                reasons.append(_reason(f"anatomy_{problem['code']}", structure, problem["message"]))
        return {**frame, "verdict": VERDICTS[bool(reasons)], "reasons": reasons}

    def _low(
        self, structure: str | None, words: str, predicted: float, fitted: Calibration | StructureCalibration | None
    ) -> list[dict[str, Any]]:
        """Return a reason if a predicted Dice is too low."""
        below = REVIEW_BELOW if fitted is None else fitted.review_below
        if self.review_below is not None:
            below = self.review_below
        if predicted >= below:
            return []
        text = f"predicted Dice {words} is {predicted:.3f}; expected at least {below:.3f}"
        return [_reason("low_predicted_dice", structure, text)]

    def _clip(self, frames: list[dict[str, Any]]) -> dict[str, Any]:
        """Judge a clip: means over its frames, and a verdict on them."""
        is_calibrated = all(f["calibrated"] for f in frames)
        calibration = self.calibration if is_calibrated else None
        clip: dict[str, Any] = {"calibrated": is_calibrated, "num_frames": len(frames), "structures": {}}
        if FREE_PROMPT in frames[0]:
            clip[FREE_PROMPT] = {key: value for key, value in frames[0][FREE_PROMPT].items() if key != "overlaps"}
        if "view" in frames[0]:
            of_classes = {c: _mean([f["view"]["probabilities"][c] for f in frames]) for c in VIEW_CLASSES}
            clip["view"] = _view(of_classes)
        reasons = _not_apical(clip)
        for name in frames[0]["structures"]:
            of_frames = [f["structures"][name] for f in frames]
            keys = ("predicted_dice", "expected_dice", "mean_spread", "area_mm2", "removed_share", "filled_share")
            values = {key: _mean([v[key] for v in of_frames]) for key in keys}
            values["lowest_predicted_dice"] = min(v["predicted_dice"] for v in of_frames)
            num_empty = values["num_empty_frames"] = sum(v["is_empty"] for v in of_frames)
            clip["structures"][name] = values
            words = _words(name)
            if num_empty:
                reasons.append(_reason("empty", name, f"no {words} was found in {num_empty} of {len(frames)} frames"))
            fitted = None if calibration is None else calibration.structures[name]
            reasons += self._low(name, f"of the {words}, mean over the frames,", values["predicted_dice"], fitted)
        clip["predicted_dice"] = _mean([f["predicted_dice"] for f in frames])
        reasons += self._low(None, "of the structures and frames together", clip["predicted_dice"], calibration)
        num_sent = sum(f["verdict"] == "review" for f in frames)
        if num_sent > MAX_REVIEW_FRAMES * len(frames):
            text = f"{num_sent} of {len(frames)} frames need review by themselves; expected at most {MAX_REVIEW_FRAMES:.0%}"
            reasons.append(_reason("frames", None, text))
        clip |= {"verdict": VERDICTS[bool(reasons)], "reasons": reasons, "num_review_frames": num_sent}
        return {**clip, "frames": [{"frame_index": i, **frame} for i, frame in enumerate(frames)]}


def doubt_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Report how well the predicted Dice ranks the true Dice, and how many bad images the verdicts caught.

    Args:
        rows: rows of an evaluation, one for each structure of each image: case, structure, dice, predicted_dice, verdict.
    Returns:
        spearman by structure, of all rows (pooled) and of the means of images (image_mean); mae; review_share; worst_share, the share of
        the images, those with the lowest mean Dice, that counts as worst; num_worst, their number; worst_reviewed, the share of them that
        was sent to review.
    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("doubt.py: no case was evaluated")
    true, predicted = _column(rows, "dice"), _column(rows, "predicted_dice")
    names = np.array([row["structure"] for row in rows])
    cases = np.array([str(row["case"]) for row in rows])
    spearman = {s.name: rank_correlation(predicted[names == s.name], true[names == s.name]) for s in STRUCTURES}
    images = sorted(set(cases.tolist()))
    means = np.array([[true[cases == c].mean(), predicted[cases == c].mean()] for c in images])
    verdicts = {str(row["case"]): row["verdict"] for row in rows}
    is_sent = np.array([verdicts[c] == "review" for c in images])
    num_worst = max(1, round(WORST_SHARE * len(images)))
    worst = np.argsort(means[:, 0], kind="stable")[:num_worst]
    return {
        "spearman": {
            **spearman,
            "pooled": rank_correlation(predicted, true),
            "image_mean": rank_correlation(means[:, 1], means[:, 0]),
        },
        "mae": float(np.abs(predicted - true).mean()),
        "review_share": float(is_sent.mean()),
        "worst_share": WORST_SHARE,
        "num_worst": num_worst,
        "worst_reviewed": float(is_sent[worst].mean()),
    }


# ---- helpers


def _reason(code: str, structure: str | None, message: str) -> dict[str, Any]:
    return {"code": code, "structure": structure, "message": message}


def _words(name: str) -> str:
    return name.replace("_", " ")


def _view(probabilities: Mapping[str, float]) -> dict[str, Any]:
    """Return the likeliest view class, and the probability of any apical view."""
    likeliest = max(probabilities, key=lambda name: probabilities[name])
    return {
        "name": likeliest,
        "probability": probabilities[likeliest],
        "apical": 1 - probabilities[VIEW_CLASSES[0]],
        "probabilities": dict(probabilities),
    }


def _not_apical(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a reason if the network predicts the view and finds that the image or clip does not show an apical view."""
    if "view" not in result or result["view"]["apical"] >= MIN_APICAL:
        return []
    text = f"this does not look like an apical view of a heart: its probability is {result['view']['apical']:.2f}; expected at least "
    return [_reason("not_apical", None, f"{text}{MIN_APICAL:.2f}")]


def _other_mask(prompt: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a reason if the mask of a free prompt matches another structure better, or differs from the mask that was judged."""
    overlaps: Mapping[str, float] = prompt.get("overlaps", {})
    named = prompt.get("structure", "")
    if not overlaps or overlaps[named] >= REVIEW_BELOW:
        return []
    nearest = max(overlaps, key=lambda name: overlaps[name])
    words, dice = _words(named), f"Dice {overlaps[named]:.2f}"
    text = f"not the {words} that the network's own sentences give ({dice}; expected at least {REVIEW_BELOW:.2f})"
    if is_other := overlaps[nearest] > overlaps[named]:
        text = f"rather the {_words(nearest)} (Dice {overlaps[nearest]:.2f}) than the {words} ({dice})"
    code = "other_structure" if is_other else "other_mask"
    return [_reason(code, named, f"the prompt was {prompt['reading']}, but its mask is {text}")]


def _mean(values: Sequence[float | None]) -> Any:
    """Return the mean of numbers; None if one of them is None."""
    return None if any(v is None for v in values) else float(np.mean([v for v in values if v is not None]))


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    return np.array([row[key] for row in rows], dtype=np.float64)


def _without_size(problem: AnatomyProblem) -> AnatomyProblem:
    """Return a problem whose sentence has no mm², for images without a spacing."""
    if "mm²" not in problem.message:
        return problem
    words = problem.subject.replace("_", " ")
    text = (
        f"the {words} is in several pieces" if problem.code == "pieces" else f"there is a hole in or beside the {words}"
    )
    return AnatomyProblem(
        problem.code, problem.subject, f"{text}; expected {'one' if problem.code == 'pieces' else 'none'}"
    )
