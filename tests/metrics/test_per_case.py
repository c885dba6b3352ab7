"""Metrics of one image against numbers worked out by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import cdist

from synboost_monai.io import sha256_of
from synboost_monai.metrics.per_case import (
    CSV_COLUMNS,
    case_metrics,
    summarise,
    write_metrics_csv,
    write_summary,
)


def _square(row: int, column: int, size: int, class_index: int = 1, shape: tuple[int, int] = (32, 40)) -> np.ndarray:
    label_map = np.zeros(shape, np.uint8)
    label_map[row : row + size, column : column + size] = class_index
    return label_map


def _by_structure(rows: list[dict]) -> dict[str, dict]:
    return {row["structure"]: row for row in rows}


def test_shifted_square_gives_the_numbers_worked_out_by_hand():
    truth, pred = _square(4, 4, 10), _square(4, 6, 10)  # overlap 10 x 8 = 80
    rows = _by_structure(case_metrics(pred, truth, (0.5, 0.25)))
    cavity = rows["left_ventricular_cavity"]
    assert cavity["dice"] == pytest.approx(2 * 80 / 200)
    assert cavity["iou"] == pytest.approx(80 / 120)
    # the farthest tenth of the border (the two outer columns) lies two columns of 0.25 mm away
    assert cavity["hd95_mm"] == pytest.approx(0.5)
    assert not cavity["is_empty_prediction"] and not cavity["is_empty_truth"]


def test_spacing_is_row_then_column():
    truth = _square(4, 4, 10)
    down, right = _square(6, 4, 10), _square(4, 6, 10)
    assert case_metrics(down, truth, (1.0, 0.1))[0]["hd95_mm"] == pytest.approx(2.0)
    assert case_metrics(right, truth, (1.0, 0.1))[0]["hd95_mm"] == pytest.approx(0.2)


def test_hausdorff_is_the_larger_of_two_directed_quantiles():
    truth = _square(5, 5, 14)
    pred = _square(8, 3, 12)
    pred[20:24, 30:34] = 1  # an island: makes the two directions differ
    spacing = np.array([0.7, 0.4])

    def border(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        return np.argwhere(mask & ~inner) * spacing

    distances = cdist(border(pred == 1), border(truth == 1))
    there, back = np.quantile(distances.min(1), 0.95), np.quantile(distances.min(0), 0.95)
    assert there != pytest.approx(back)
    assert case_metrics(pred, truth, spacing)[0]["hd95_mm"] == pytest.approx(max(there, back), rel=1e-5)


def test_mask_at_the_border_of_the_image_is_measured():
    truth, pred = _square(0, 0, 10), _square(0, 0, 12)
    # 44 border pixels of the prediction: 41 at most 2 away, then sqrt(5) twice and sqrt(8); the quantile is at 40.85
    expected = 2 + 0.85 * (math.sqrt(5) - 2)
    assert case_metrics(pred, truth, (1.0, 1.0))[0]["hd95_mm"] == pytest.approx(expected, abs=1e-5)


def test_perfect_prediction():
    truth = _square(3, 3, 6, 1) + _square(12, 3, 6, 2) + _square(12, 20, 6, 3)
    for row in case_metrics(torch.from_numpy(truth.astype(np.int64)), truth, (0.3, 0.3)):
        assert (row["dice"], row["iou"], row["hd95_mm"]) == (1.0, 1.0, 0.0)


@pytest.mark.filterwarnings("error")
def test_empty_masks_have_documented_values():
    truth = _square(3, 3, 6, 1)  # no myocardium, no atrium
    pred = _square(12, 3, 6, 2)  # no cavity, no atrium
    rows = _by_structure(case_metrics(pred, truth, (1, 1)))
    missed, invented, absent = (rows[k] for k in ("left_ventricular_cavity", "myocardium", "left_atrium"))
    assert (missed["dice"], missed["iou"], missed["hd95_mm"]) == (0.0, 0.0, None) and missed["is_empty_prediction"]
    assert (invented["dice"], invented["iou"], invented["hd95_mm"]) == (0.0, 0.0, None) and invented["is_empty_truth"]
    assert (absent["dice"], absent["iou"], absent["hd95_mm"]) == (1.0, 1.0, 0.0)
    assert absent["is_empty_prediction"] and absent["is_empty_truth"]


def test_summary_counts_empty_masks_apart_and_has_no_infinite_number(tmp_path):
    checkpoint = tmp_path / "model.pt"
    checkpoint.write_bytes(b"weights")
    truth = _square(4, 4, 10)
    rows = []
    for case, pred in (("a", _square(4, 6, 10)), ("b", np.zeros_like(truth))):
        for row in case_metrics(pred, truth, (0.25, 0.25)):
            rows.append(row | {"case": case, "patient": f"p{case}", "view": None, "phase": "end_diastole"})
    summary = write_summary(
        tmp_path / "summary.json",
        rows,
        dataset_dir="data",
        section="testing",
        seed=3,
        checkpoint_path=checkpoint,
        command="synboost evaluate",
        prompt_level="P2",
    )
    cavity = summary["structures"]["left_ventricular_cavity"]
    assert cavity["dice_mean"] == pytest.approx(0.4)
    assert cavity["dice_std"] == pytest.approx(math.sqrt(2 * 0.4**2))  # ddof = 1
    assert cavity["num_empty_prediction"] == 1
    assert cavity["num_hd95_mm"] == 1
    assert cavity["hd95_mm_mean"] == pytest.approx(0.5)
    # four rows of absent structures count 1, the other two 0.8 and 0
    assert summary["overall"]["dice_mean"] == pytest.approx(4.8 / 6)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == summary
    assert written["checkpoint_sha256"] == sha256_of(checkpoint)
    assert (written["num_cases"], written["num_patients"], written["prompt_level"]) == (2, 2, "P2")
    assert written["command"] == "synboost evaluate"


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("/opt/env/bin/synboost", "synboost run echo_cris --prompt 'left atrium'"),
        ("/opt/synboost_monai/__main__.py", "synboost run echo_cris --prompt 'left atrium'"),
        ("/opt/monai/bundle/__main__.py", "python -m monai.bundle run echo_cris --prompt 'left atrium'"),
    ],
)
def test_summary_tells_the_command_without_folders(tmp_path, monkeypatch, program, command):
    monkeypatch.setattr("sys.argv", [program, "run", "echo_cris", "--prompt", "left atrium"])
    rows = [r | {"case": "a", "patient": "p"} for r in case_metrics(_square(5, 6, 10), _square(4, 4, 10), (0.25, 0.25))]
    assert write_summary(tmp_path / "s.json", rows, dataset_dir="data", section="testing")["command"] == command


def test_csv_comes_back_with_the_same_summary(tmp_path):
    truth = _square(4, 4, 10)
    rows = [r | {"case": "a", "patient": "p"} for r in case_metrics(_square(5, 6, 10), truth, (0.25, 0.25))]
    frame = pd.read_csv(write_metrics_csv(tmp_path / "metrics.csv", rows))
    assert tuple(frame.columns) == CSV_COLUMNS
    read, made = summarise(frame)["overall"], summarise(rows)["overall"]
    assert read == pytest.approx(made, abs=1e-6)
    with pytest.raises(ValueError, match="no case was evaluated"):
        write_metrics_csv(tmp_path / "none.csv", [])
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.parametrize(
    ("pred", "truth", "spacing", "message"),
    [
        (np.zeros((4, 4)), np.zeros((4, 5)), (1, 1), r"prediction is \(4, 4\) but label map is \(4, 5\)"),
        (np.zeros((1, 4, 4)), np.zeros((4, 4)), (1, 1), r"must be \(H, W\), got shape \(1, 4, 4\)"),
        (np.zeros((4, 4)), np.full((4, 4), 4), (1, 1), r"label map must hold classes 0..3, got \[4\]"),
        (np.full((4, 4), 0.5), np.zeros((4, 4)), (1, 1), "got fractions"),
        (np.zeros((4, 4)), np.zeros((4, 4)), (1, 0), "two positive millimetres"),
    ],
)
def test_bad_input_is_named(pred, truth, spacing, message):
    with pytest.raises(ValueError, match=message):
        case_metrics(pred, truth, spacing)
