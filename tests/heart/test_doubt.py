"""Test the doubt of a segmentation: evidence, predicted Dice, anatomy, verdict and reasons."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from synboost_monai.files import sha256_of
from synboost_monai.heart.calibration import Calibration, StructureCalibration
from synboost_monai.heart.doubt import DoubtAssessor, doubt_summary, segmentation_evidence, view_evidence
from synboost_monai.structures import STRUCTURES

NAMES = [s.name for s in STRUCTURES]
SPACING_MM = (1.0, 1.0)


def make_heart() -> NDArray[np.uint8]:
    """Draw an adult's heart in a 170 x 160 mm image: 10 mm of wall around a cavity that is open at row 100, the atrium below."""
    y, x = np.arange(170)[:, None] + 0.5, np.arange(160)[None, :] - 79.5
    label_map = np.zeros((170, 160), np.uint8)
    label_map[(((y - 100) / 80) ** 2 + (x / 28) ** 2 < 1) & (y < 100)] = 2
    label_map[(((y - 100) / 70) ** 2 + (x / 18) ** 2 < 1) & (y < 100)] = 1
    label_map[(y > 100) & ((np.hypot(x, y - 118) < 18) | (np.abs(x) < 16) & (y < 112))] = 3
    return label_map


HEART = make_heart()


def evidence_of(
    label_map: Any = HEART, expected: float = 0.95, spread: float | None = 0.01, **changes: Any
) -> dict[str, Any]:
    """Return the evidence of a label map that the network is rather sure of; `changes` are those of every structure."""
    structures = {
        s.name: {
            "class_index": s.class_index,
            "is_empty": not (label_map == s.class_index).any(),
            "expected_dice": expected,
            "mean_spread": spread,
            "removed_share": 0.0,
            "filled_share": 0.0,
            **changes,
        }
        for s in STRUCTURES
    }
    return {"num_groups": 1 if spread is None else 2, "structures": structures}


def codes(doubt: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(reason["code"], reason["structure"]) for reason in doubt["reasons"]]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "model.pt").write_bytes(b"weights")
    return tmp_path / "model.pt"


@pytest.fixture
def calibration(checkpoint: Path) -> Calibration:
    """Return predicted Dice = expected Dice - about 0.1: an intercept of logit 0.85 at an expected Dice of 0.95."""
    structure = StructureCalibration(
        means=(math.log(0.95 / 0.05), math.log(0.011), math.log(0.15)),
        scales=(1.0, 1.0, 1.0),
        lowest=(-1.0, -1.0, -1.0),
        highest=(1.0, 1.0, 1.0),
        coefficients=(1.0, 0.0, 0.0),
        intercept=math.log(0.85 / 0.15),
        penalty=0.1,
        review_below=0.7,
        highest_spread=0.15,
        num_images=80,
        spearman=0.6,
        mae=0.02,
    )
    return Calibration(
        checkpoint_sha256=sha256_of(checkpoint),
        settings={"threshold": 0.5},
        num_groups=2,
        features=("expected_dice", "mean_spread", "opening_fraction"),
        structures={name: structure for name in NAMES},
        review_below=0.8,
        review_share=0.1,
        spearman_pooled=0.7,
        spearman_image_mean=0.6,
        num_images=80,
        num_patients=40,
        dataset_dir="data",
        section="validation",
        seed=0,
    )


def test_evidence_worked_out_by_hand() -> None:
    probability = np.zeros((2, 1, 2, 3), np.float32)
    probability[0, 0] = [[0.9, 0.8, 0.1], [0.0, 0.4, 0.0]]
    probability[1, 0] = [[0.7, 0.8, 0.3], [0.0, 0.0, 0.0]]
    label_map = np.array([[2, 2, 0], [0, 0, 0]])
    found = segmentation_evidence(probability, label_map, [2], ["myocardium"], [0.1], [0.2])
    mean_sum, in_mask = 0.8 + 0.8 + 0.2 + 0.2, 1.6
    assert found["num_groups"] == 2
    said = found["structures"]["myocardium"]
    assert said["expected_dice"] == pytest.approx(2 * in_mask / (mean_sum + 2), rel=1e-6)
    assert said["mean_spread"] == pytest.approx((0.1 + 0.1 + 0.2) / 2, rel=1e-6)
    assert (said["class_index"], said["is_empty"], said["removed_share"], said["filled_share"]) == (2, False, 0.1, 0.2)


def test_expected_dice_is_the_dice_of_a_truth_drawn_from_the_probabilities() -> None:
    rng = np.random.default_rng(0)
    probability = np.clip(1.3 - np.hypot(*np.mgrid[-1:1:60j, -1:1:60j]), 0, 1)
    label_map = (probability > 0.5).astype(np.uint8)
    found = segmentation_evidence(probability[None, None], label_map, [1], ["x"], [0], [0])["structures"]["x"]
    truths = [rng.random(probability.shape) < probability for _ in range(50)]
    dice = [2 * (label_map & t).sum() / (label_map.sum() + t.sum()) for t in truths]
    assert found["expected_dice"] == pytest.approx(np.mean(dice), abs=0.005)


def test_a_sound_heart_is_accepted() -> None:
    doubt = DoubtAssessor(None)(HEART[None], [evidence_of()], SPACING_MM)
    assert doubt["verdict"] == "accept" and doubt["reasons"] == [] and doubt["calibrated"] is False
    assert doubt["predicted_dice"] == pytest.approx(0.95)
    atrium = doubt["structures"]["left_atrium"]
    assert atrium["predicted_dice"] == atrium["expected_dice"] == 0.95
    assert atrium["area_mm2"] == pytest.approx((HEART == 3).sum())
    assert doubt["model_sha256"] is None


def test_reasons_name_what_is_wrong() -> None:
    broken = HEART.copy()
    broken[broken == 3] = 0
    doubt = DoubtAssessor(None)(broken[None], [evidence_of(broken)], SPACING_MM)
    assert doubt["verdict"] == "review" and codes(doubt) == [("empty", "left_atrium")]
    doubt = DoubtAssessor(None)(HEART[None], [evidence_of(expected=0.8)], SPACING_MM)
    assert codes(doubt) == [("low_predicted_dice", n) for n in [*NAMES, None]]
    assert "myocardium is 0.800; expected at least 0.850" in doubt["reasons"][1]["message"]
    doubt = DoubtAssessor(None)(HEART[None], [evidence_of(spread=0.3)], SPACING_MM)
    assert codes(doubt) == [("high_spread", n) for n in NAMES]
    doubt = DoubtAssessor(None)(HEART[None], [evidence_of(removed_share=0.06, filled_share=0.04)], SPACING_MM)
    assert codes(doubt) == [("removed", n) for n in NAMES]
    torn = HEART.copy()
    torn[60:63] = 0
    doubt = DoubtAssessor(None)(torn[None], [evidence_of(torn)], SPACING_MM)
    assert ("anatomy_pieces", "left_ventricular_cavity") in codes(doubt)
    tiny = DoubtAssessor(None)(HEART[None], [evidence_of()], (0.2, 0.2))
    assert {code for code, _ in codes(tiny)} == {"anatomy_range"}
    assert DoubtAssessor(None, ranges={})(HEART[None], [evidence_of()], (0.2, 0.2))["verdict"] == "accept"


def test_review_below_stands_over_everything(calibration: Calibration) -> None:
    assessor = DoubtAssessor(None, review_below=0.97)
    assert len(assessor(HEART[None], [evidence_of()], SPACING_MM)["reasons"]) == 4
    assessor.calibration = calibration
    assessor.review_below = 0.0
    assert not [c for c in codes(assessor(HEART[None], [evidence_of()], SPACING_MM)) if c[0] == "low_predicted_dice"]
    with pytest.raises(ValueError, match="review_below is a Dice between 0 and 1"):
        DoubtAssessor(None, review_below=85)
    with pytest.raises(ValueError, match="ranges has lenght"):
        DoubtAssessor(None, ranges={"lenght": [1, 2]})


def test_a_calibration_predicts_and_decides(checkpoint: Path, calibration: Calibration, tmp_path: Path) -> None:
    path = calibration.write(tmp_path / "calibration.json")
    assessor = DoubtAssessor(checkpoint, path, {"threshold": 0.5})
    evidence = evidence_of(expected=0.95)
    doubt = assessor(HEART[None], [evidence], SPACING_MM)
    assert doubt["calibrated"] is True and doubt["model_sha256"] == sha256_of(checkpoint)
    for name in NAMES:
        said = doubt["structures"][name]
        assert said["expected_dice"] == 0.95
        assert said["predicted_dice"] == calibration.predict(name, assessor.features(doubt, name))
        assert said["predicted_dice"] == pytest.approx(0.85)
    assert doubt["verdict"] == "accept"
    unsure = assessor(HEART[None], [evidence_of(expected=0.92)], SPACING_MM)  # logit(0.85) + logit(0.92) - logit(0.95)
    assert unsure["predicted_dice"] == pytest.approx(0.774, abs=0.001) and codes(unsure) == [
        ("low_predicted_dice", None)
    ]
    spread_out = assessor(HEART[None], [evidence_of(spread=0.16)], SPACING_MM)
    assert ("high_spread", "myocardium") in codes(spread_out)
    empty = HEART * (HEART != 3)
    said = assessor(empty[None], [evidence_of(empty)], SPACING_MM)["structures"]["left_atrium"]
    assert said["predicted_dice"] == 0 and said["is_empty"]


def test_a_calibration_of_other_weights_or_settings_is_refused(
    checkpoint: Path, calibration: Calibration, tmp_path: Path
) -> None:
    path = calibration.write(tmp_path / "calibration.json")
    (tmp_path / "other.pt").write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"fitted for the weights with SHA-256 .*other.pt has .*run calibrate.yaml"):
        DoubtAssessor(tmp_path / "other.pt", path, {"threshold": 0.5})
    with pytest.raises(ValueError, match="fitted for the weights"):
        DoubtAssessor(None, path, {"threshold": 0.5})
    with pytest.raises(ValueError, match=r"fitted with threshold 0.5, but this run has 0.35; set threshold back"):
        DoubtAssessor(checkpoint, path, {"threshold": 0.35})
    with pytest.raises(ValueError, match="fitted with fill_holes None, but this run has True"):
        DoubtAssessor(checkpoint, path, {"threshold": 0.5, "fill_holes": True})


def test_a_calibration_beside_the_weights_that_does_not_fit_is_told(
    checkpoint: Path, calibration: Calibration, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a warning, which every command shows, as verdicts differ without it."""
    assert checkpoint.parent == tmp_path
    calibration.write(tmp_path / "calibration.json")
    assert DoubtAssessor(checkpoint, settings={"threshold": 0.5}).calibration is not None and not caplog.records
    assert DoubtAssessor(checkpoint, settings={"threshold": 0.35}).calibration is None
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "fitted with threshold 0.5, but this run has 0.35" in record.message


def test_prompts_that_a_calibration_does_not_know_are_not_calibrated(calibration: Calibration) -> None:
    assessor = DoubtAssessor(None)
    assessor.calibration = calibration
    doubt = assessor(HEART[None], [evidence_of(spread=None)], SPACING_MM)  # one prompt; fitted with two
    assert doubt["calibrated"] is False and doubt["structures"]["myocardium"]["predicted_dice"] == 0.95
    asked = {"text": "LA", "structure": "left_atrium", "reading": "read as left atrium"}
    plain, free = (assessor(HEART[None], [{**evidence_of(), **more}], SPACING_MM) for more in ({}, {"prompt": asked}))
    assert (
        free == {**plain, "prompt": asked} and free["calibrated"] is True
    )  # one that names a structure is asked as all


def test_a_clip_is_judged_by_frame_and_as_a_whole() -> None:
    assessor = DoubtAssessor(None)
    frames = np.stack([HEART] * 10)
    good = assessor(frames, [evidence_of()] * 10, SPACING_MM)
    assert good["verdict"] == "accept" and good["num_frames"] == 10 and len(good["frames"]) == 10
    assert good["structures"]["myocardium"]["predicted_dice"] == pytest.approx(0.95)
    two_bad = assessor(frames, [evidence_of()] * 8 + [evidence_of(expected=0.8)] * 2, SPACING_MM)
    assert two_bad["verdict"] == "accept" and two_bad["num_review_frames"] == 2
    assert [f["verdict"] for f in two_bad["frames"]] == ["accept"] * 8 + ["review"] * 2
    assert two_bad["structures"]["myocardium"]["lowest_predicted_dice"] == 0.8
    three_bad = assessor(frames, [evidence_of()] * 7 + [evidence_of(expected=0.8)] * 3, SPACING_MM)
    assert codes(three_bad) == [("frames", None)]
    all_low = assessor(frames, [evidence_of(expected=0.84)] * 10, SPACING_MM)
    assert {c for c, _ in codes(all_low)} == {"low_predicted_dice", "frames"}
    frames[4][frames[4] == 3] = 0
    gone = assessor(frames, [evidence_of(f) for f in frames], SPACING_MM)
    assert codes(gone) == [("empty", "left_atrium")] and gone["structures"]["left_atrium"]["num_empty_frames"] == 1


def test_results_are_json_without_nan() -> None:
    empty = np.zeros((2, 170, 160), np.uint8)
    for spacing in (SPACING_MM, None):
        for label_map in (empty[:1], empty, HEART[None], np.stack([HEART] * 2)):
            for spread in (None, 0.01):
                doubt = DoubtAssessor(None)(label_map, [evidence_of(m, spread=spread) for m in label_map], spacing)
                assert json.loads(json.dumps(doubt, allow_nan=False)) == doubt


def test_summary_worked_out_by_hand() -> None:
    rows = []
    for i in range(20):  # image i has a mean Dice of 0.80 + i / 100
        for k, name in enumerate(NAMES):
            dice = 0.80 + i / 100 + (k - 1) / 50
            rows.append(
                {
                    "case": f"{i:02d}",
                    "structure": name,
                    "dice": dice,
                    "predicted_dice": dice - 0.1 if name != "myocardium" else 0.7 - i / 100,
                    "verdict": "review" if i in (0, 5) else "accept",
                }
            )
    found = doubt_summary(rows)
    assert found["spearman"]["left_atrium"] == pytest.approx(1) and found["spearman"]["myocardium"] == pytest.approx(-1)
    assert found["spearman"]["image_mean"] == pytest.approx(1)
    assert found["review_share"] == 0.1 and found["num_worst"] == 1 and found["worst_reviewed"] == 1
    rows = [{**row, "verdict": "accept" if row["case"] == "00" else "review"} for row in rows]
    assert doubt_summary(rows)["worst_reviewed"] == 0
    constant = doubt_summary([{**row, "predicted_dice": 0.9} for row in rows])
    assert constant["spearman"]["pooled"] is None and json.dumps(constant, allow_nan=False)
    with pytest.raises(ValueError, match="no case was evaluated"):
        doubt_summary([])


def test_thresholds_of_the_calibration_are_used(calibration: Calibration) -> None:
    assessor = DoubtAssessor(None)
    strict = {n: replace(c, review_below=0.99) for n, c in calibration.structures.items()}
    assessor.calibration = replace(calibration, structures=strict, review_below=0.0)
    assert codes(assessor(HEART[None], [evidence_of()], SPACING_MM)) == [("low_predicted_dice", n) for n in NAMES]


def test_the_view_worked_out_by_hand() -> None:
    view = view_evidence(np.log([1.0, 2.0, 5.0, 4.0]))
    assert view["probabilities"] == pytest.approx(
        {"no_apical_view": 0.125, "apical_two_chamber": 0.25, "apical_four_chamber": 0.625}
    )
    assert view["systole"] == pytest.approx(0.8)  # 4 / (4 + 1)
    assert view_evidence(np.array([-1e4, 0, 1e4, -1e4]))["systole"] == 0.0


@pytest.mark.parametrize("is_free", [False, True])
def test_what_is_no_apical_view_goes_to_review(is_free: bool) -> None:
    """The network may be sure of its masks, and any prompt may be asked."""
    found = evidence_of()
    if is_free:
        found["prompt"] = {"text": "LVM", "structure": "myocardium", "reading": "read as myocardium"}
    verdicts = {}
    for logit in (-0.1, 0.1):  # of no apical view, against log 1 of the two views together
        logits = np.array([logit, np.log(0.3), np.log(0.7), 0.0])
        doubt = DoubtAssessor(None)(HEART[None], [{**found, "view": view_evidence(logits)}], SPACING_MM)
        verdicts[logit] = doubt["verdict"], codes(doubt)
        assert doubt["view"]["apical"] == pytest.approx(1 / (1 + math.exp(logit)))
        assert doubt["view"]["systole"] == 0.5
    assert verdicts == {-0.1: ("accept", []), 0.1: ("review", [("not_apical", None)])}
    assert doubt["view"]["name"] == "no_apical_view" and "expected at least 0.50" in doubt["reasons"][0]["message"]
    json.dumps(doubt, allow_nan=False)


def test_the_view_of_a_clip_is_the_mean_of_its_frames() -> None:
    sure, not_sure = (view_evidence(np.log([p, 0.9 - p, 0.1, 1.0])) for p in (0.05, 0.6))
    frames = [{**evidence_of(), "view": view} for view in (sure, sure, sure, sure, not_sure)]
    clip = DoubtAssessor(None)(np.stack([HEART] * 5), frames, SPACING_MM)
    assert (
        clip["view"]["apical"] == pytest.approx((4 * 0.95 + 0.4) / 5) and clip["view"]["name"] == "apical_two_chamber"
    )
    assert clip["verdict"] == "accept" and [f["verdict"] for f in clip["frames"]] == ["accept"] * 4 + ["review"]
    clip = DoubtAssessor(None)(np.stack([HEART] * 2), [frames[4]] * 2, SPACING_MM)
    assert ("not_apical", None) in codes(clip)
