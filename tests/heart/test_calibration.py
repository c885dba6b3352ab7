"""Test the predicted Dice: fitted to a validation set, stored, read back strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synboost_monai.heart.calibration import Calibration, fit_calibration, rank_correlation, read_calibration
from synboost_monai.structures import STRUCTURES

NAMES = [s.name for s in STRUCTURES]
FACTS: dict[str, Any] = {
    "checkpoint_sha256": "ab" * 32,
    "settings": {"threshold": 0.5},
    "num_groups": 2,
    "dataset_dir": "data",
    "section": "validation",
    "seed": 1,
}


def make_set(num_images: int = 80, noise: float = 0.02, sign: int = 1) -> tuple[Any, Any, list[str]]:
    """Make features and Dice of patients with two images each: Dice follows the expected Dice, which is too high."""
    rng = np.random.default_rng(3)
    features: dict[str, list[dict[str, float | None]]] = {name: [] for name in NAMES}
    dice: dict[str, list[float]] = {name: [] for name in NAMES}
    for name in NAMES:
        for _ in range(num_images):
            expected = rng.uniform(0.85, 0.98)
            features[name].append(
                {
                    "expected_dice": expected,
                    "mean_spread": rng.uniform(0, 0.1),
                    "opening_fraction": rng.uniform(0.1, 0.2),
                }
            )
            dice[name].append(float(np.clip(0.5 + sign * 0.4 * (expected - 0.5) + rng.normal(0, noise), 0, 1)))
    return features, dice, [f"p{i // 2}" for i in range(num_images)]


def fit(features: Any, dice: Any, patients: list[str], **options: Any) -> Calibration:
    count = len(patients)
    defaults = {"is_empty": {name: [False] * count for name in NAMES}, "is_sent_anyway": [False] * count}
    return fit_calibration(features, dice, patients, **{**defaults, **FACTS, **options})


def test_predicted_dice_is_right_where_expected_dice_is_too_high() -> None:
    features, dice, patients = make_set()
    calibration = fit(features, dice, patients)
    predicted = np.array([calibration.predict("myocardium", row) for row in features["myocardium"]])
    expected = np.array([row["expected_dice"] for row in features["myocardium"]])
    true = np.array(dice["myocardium"])
    assert np.abs(predicted - true).mean() < 0.02 < 0.2 < np.abs(expected - true).mean()
    of_structure = calibration.structures["myocardium"]
    assert of_structure.mae < 0.025 and 0.3 < float(of_structure.spearman or 0) < 0.8
    assert calibration.num_images == 80 and calibration.num_patients == 40


def test_a_surer_network_never_lowers_the_prediction() -> None:
    """This holds even if the validation set says otherwise: with few images that is noise."""
    features, dice, patients = make_set(sign=-1)
    calibration = fit(features, dice, patients)
    row = {"mean_spread": 0.05, "opening_fraction": 0.15}
    low, high = (calibration.predict("left_atrium", {**row, "expected_dice": e}) for e in (0.5, 0.99))
    assert low == high == pytest.approx(np.mean(dice["left_atrium"]), abs=0.02)


def test_predictions_stay_dice_far_from_the_validation_set() -> None:
    features, dice, patients = make_set()
    calibration = fit(features, dice, patients)
    far = [
        calibration.predict("left_atrium", {"expected_dice": e, "mean_spread": s, "opening_fraction": o})
        for e, s, o in ((0.0, 9.0, 1.0), (1.0, 0.0, 1e-9), (0.3, 0.5, 0.0))
    ]
    assert all(0 <= p <= 1 for p in far) and far[0] < far[2] < far[1]
    unknown = calibration.predict("left_atrium", {"expected_dice": 0.9, "mean_spread": None, "opening_fraction": None})
    assert 0.6 < unknown < 0.75


def test_free_features_are_held_within_the_validation_set() -> None:
    features, dice, patients = make_set(noise=0.0)
    for name in NAMES:  # a strong slope over the opening
        dice[name] = [0.5 + 2 * float(row["opening_fraction"]) for row in features[name]]
    calibration = fit(features, dice, patients)
    row = {"expected_dice": 0.9, "mean_spread": 0.05}
    at = {o: calibration.predict("myocardium", {**row, "opening_fraction": o}) for o in (0.1, 0.2, 0.5, 0.9)}
    assert at[0.1] < 0.75 < 0.85 < at[0.2] and at[0.5] == at[0.9] == pytest.approx(at[0.2], abs=0.02)


def test_without_an_ensemble_the_spread_counts_for_nothing() -> None:
    features, dice, patients = make_set()
    for rows in features.values():
        for row in rows:
            row["mean_spread"] = None
    calibration = fit(features, dice, patients, num_groups=1)
    assert calibration.structures["myocardium"].coefficients[1] == 0
    assert all(np.isfinite(c.intercept) for c in calibration.structures.values())


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_thresholds_send_the_share_asked_for(share: float) -> None:
    features, dice, patients = make_set(200)
    calibration = fit(features, dice, patients, review_share=share)
    assert share / 2 < calibration.review_share <= share
    sent = fit(features, dice, patients, review_share=share, is_sent_anyway=[True] * 100 + [False] * 100)
    assert 0.5 < sent.review_share < 0.5 + share and sent.review_below == calibration.review_below


def test_empty_masks_are_not_fitted() -> None:
    features, dice, patients = make_set()
    is_empty = {name: [name == "left_atrium" and i % 4 == 0 for i in range(80)] for name in NAMES}
    for i in range(0, 80, 4):
        dice["left_atrium"][i] = 0.0
        features["left_atrium"][i] = {"expected_dice": 0.0, "mean_spread": 0.0, "opening_fraction": None}
    calibration = fit(features, dice, patients, is_empty=is_empty)
    assert calibration.structures["left_atrium"].num_images == 60
    predicted = calibration.predict("left_atrium", features["left_atrium"][1])
    assert predicted == pytest.approx(dice["left_atrium"][1], abs=0.06)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_images": 4}, "at least 3 patients, got 2"),
        ({"num_images": 8}, "found in 8 of 8 images; a calibration needs 10"),
        ({"review_share": 1.5}, "review_share is a share between 0 and 1, got 1.5"),
    ],
)
def test_too_little_to_fit_is_said(change: dict[str, Any], message: str) -> None:
    features, dice, patients = make_set(change.pop("num_images", 80))
    with pytest.raises(ValueError, match=message):
        fit(features, dice, patients, **change)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    features, dice, patients = make_set()
    calibration = fit(features, dice, patients)
    assert read_calibration(calibration.write(tmp_path / "made" / "calibration.json")) == calibration
    path = tmp_path / "made" / "calibration.json"
    written = json.loads(path.read_text())
    assert written["checkpoint_sha256"] == "ab" * 32 and written["seed"] == 1 and written["section"] == "validation"
    path.write_text(json.dumps({**written, "format": 1}))  # without fill_holes
    assert read_calibration(path).structures == calibration.structures


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("structures"), "structures is missing"),
        (lambda c: c.update(extra=1), "extra is unknown"),
        (lambda c: c.update(format=99), "expected a calibration of format 2, got 99"),
        (lambda c: c.update(format=1, settings={"fill_holes": True}), "fitted before fill_holes closed the gaps"),
        (lambda c: c.update(features=["entropy"]), "expected the features expected_dice, .* got entropy"),
        (lambda c: c["structures"].pop("myocardium"), "expected the structures"),
        (lambda c: c["structures"]["myocardium"].update(means=[1, 2]), "myocardium.means must be 3 finite numbers"),
        (lambda c: c["structures"]["myocardium"].update(means=[1, 2, float("nan")]), "means must be 3 finite"),
        (lambda c: c["structures"]["myocardium"].update(scales=[1, 0, 1]), "or no scale"),
        (lambda c: c["structures"]["myocardium"].update(intercept="high"), "no finite number"),
        (lambda c: c["structures"]["myocardium"].pop("intercept"), "intercept is missing"),
        (lambda c: c.update(review_below=None), "review_below must be a number"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    content = json.loads(fit(*make_set()).write(tmp_path / "c.json").read_text())
    change(content)
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        read_calibration(tmp_path / "c.json")
    assert "c.json" in str(caught.value) and "\n" not in str(caught.value)


def test_no_file_and_no_json_are_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such calibration; make it with the bundle's calibrate.yaml"):
        read_calibration(tmp_path / "none.json")
    (tmp_path / "c.json").write_text("[1,")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_calibration(tmp_path / "c.json")


def test_rank_correlation_where_there_is_none() -> None:
    assert rank_correlation([1, 2, 3], [10, 30, 20]) == pytest.approx(0.5)
    assert rank_correlation([1, 2], [1, 2]) is None and rank_correlation([1, 1, 1], [1, 2, 3]) is None
