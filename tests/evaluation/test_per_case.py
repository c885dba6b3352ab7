"""Test metrics of one image against numbers worked out by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance, compute_iou
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt
from scipy.spatial.distance import cdist

from synboost_monai.evaluation.per_case import (
    CSV_COLUMNS,
    DISTANCES,
    METRICS,
    PAPER_METRICS,
    case_metrics,
    metrics_frame,
    read_metrics,
    summarise,
    write_metrics_csv,
    write_summary,
)
from synboost_monai.files import sha256_of


def _square(row: int, column: int, size: int, class_index: int = 1, shape: tuple[int, int] = (32, 40)) -> np.ndarray:
    label_map = np.zeros(shape, np.uint8)
    label_map[row : row + size, column : column + size] = class_index
    return label_map


def _blobs(generator: np.random.Generator, shape: tuple[int, int] = (41, 57)) -> np.ndarray:
    """Draw a random label map whose structures are ragged, in pieces, and may touch the border of the image."""
    label_map = np.zeros(shape, np.uint8)
    for class_index in (1, 2, 3):
        seeds = generator.random(shape) > 0.998
        seeds[generator.integers(shape[0]), generator.integers(shape[1])] = True
        blob = binary_dilation(seeds, iterations=int(generator.integers(1, 7)))
        label_map[blob & (generator.random(shape) > 0.1)] = class_index
    return label_map


def test_shifted_square_gives_the_numbers_worked_out_by_hand():
    truth, pred = _square(4, 4, 10), _square(4, 6, 10)  # overlap 10 x 8 = 80
    cavity = case_metrics(pred, truth, (0.5, 0.25))[0]
    assert cavity["dice"] == pytest.approx(2 * 80 / 200)
    assert cavity["iou"] == pytest.approx(80 / 120)
    # the farthest tenth of the border (the two outer columns) lies two columns of 0.25 mm away
    assert cavity["hd95_mm"] == pytest.approx(0.5)
    assert not cavity["is_empty_prediction"] and not cavity["is_empty_truth"]


def test_nested_squares_have_the_distances_worked_out_by_hand():
    truth, pred = _square(4, 4, 10), _square(5, 5, 8)
    # 36 and 28 border pixels; all lie 1 from the other border but the outer four corners
    cavity = case_metrics(pred, truth, (1, 1))[0]
    assert cavity["hd_mm"] == pytest.approx(math.sqrt(2))
    assert cavity["hd95_mm"] == pytest.approx(math.sqrt(2))  # four of 36 are more than 5 %
    assert cavity["asd_mm"] == pytest.approx((32 + 4 * math.sqrt(2) + 28) / 64)


def test_one_far_pixel_moves_the_hausdorff_distance_alone():
    truth, pred = _square(4, 4, 10), _square(4, 4, 10)
    pred[8, 33] = 1
    cavity = case_metrics(pred, truth, (0.5, 0.25))[0]
    assert cavity["hd_mm"] == pytest.approx(20 * 0.25)
    assert cavity["hd95_mm"] == 0.0
    assert cavity["asd_mm"] == pytest.approx(20 * 0.25 / 73)  # 36 + 37 border pixels


@pytest.mark.parametrize(("spacing", "shift", "expected"), [((0.7, 0.2), (3, 0), 2.1), ((0.7, 0.2), (0, 3), 0.6)])
def test_distances_of_lines_are_their_shift(spacing, shift, expected):
    """A line of pixels along the other axis is shifted: every pixel is as far away as every other."""
    truth = np.zeros((20, 20), np.uint8)
    truth[(8, slice(None)) if shift[0] else (slice(None), 8)] = 1
    cavity = case_metrics(np.roll(truth, shift, (0, 1)), truth, spacing)[0]
    assert [cavity[key] for key in DISTANCES] == pytest.approx([expected] * 3)


def test_mask_at_the_border_of_the_image_is_measured():
    truth, pred = _square(0, 0, 10), _square(0, 0, 12)
    # 44 border pixels of the prediction: 41 at most 2 away, then sqrt(5) twice and sqrt(8); the quantile is at 40.85
    expected = 2 + 0.85 * (math.sqrt(5) - 2)
    assert case_metrics(pred, truth, (1.0, 1.0))[0]["hd95_mm"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_random_masks_measure_as_by_monai_on_the_whole_array(seed):
    generator = np.random.default_rng(seed)
    pred, truth = _blobs(generator), _blobs(generator)
    spacing = generator.uniform(0.1, 2, 2).tolist()
    one_hot = [torch.from_numpy(np.stack([m == c for c in (1, 2, 3)]))[None].float() for m in (pred, truth)]
    options = {"include_background": True}
    expected = {
        "dice": compute_dice(*one_hot, **options),
        "iou": compute_iou(*one_hot, **options),
        "hd_mm": compute_hausdorff_distance(*one_hot, **options, spacing=spacing),
        "hd95_mm": compute_hausdorff_distance(*one_hot, **options, spacing=spacing, percentile=95),
        "asd_mm": compute_average_surface_distance(*one_hot, **options, spacing=spacing, symmetric=True),
    }
    rows = case_metrics(pred, truth, spacing)
    assert tuple(expected) == METRICS
    for key, values in expected.items():
        assert [row[key] for row in rows] == values[0].tolist(), key


@pytest.mark.parametrize("seed", range(3))
def test_random_masks_measure_as_by_scipy(seed):
    generator = np.random.default_rng(100 + seed)
    pred, truth = _blobs(generator), _blobs(generator)
    spacing = generator.uniform(0.1, 2, 2)
    for row, c in zip(case_metrics(pred, truth, spacing), (1, 2, 3)):
        borders = [mask & ~binary_erosion(mask) for mask in (pred == c, truth == c)]
        maps = [distance_transform_edt(~border, sampling=spacing) for border in borders]
        there, back = maps[1][borders[0]], maps[0][borders[1]]
        pairs = cdist(*(np.argwhere(border) * spacing for border in borders))
        assert there == pytest.approx(pairs.min(1)) and back == pytest.approx(pairs.min(0))
        assert row["hd_mm"] == pytest.approx(max(there.max(), back.max()), rel=1e-6)
        assert row["hd95_mm"] == pytest.approx(max(np.quantile(there, 0.95), np.quantile(back, 0.95)), rel=1e-5)
        assert row["asd_mm"] == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-5)
        both, either = ((pred == c) & (truth == c)).sum(), ((pred == c) | (truth == c)).sum()
        assert row["iou"] == pytest.approx(both / either)


def test_paper_grid_has_lost_the_aspect():
    truth, down, right = (_square(r, c, 20, shape=(256, 1024)) for r, c in ((50, 400), (52, 400), (50, 402)))
    for pred, pixels in ((down, 4), (right, 1)):  # 512 px: rows twice, columns half
        cavity = case_metrics(pred, truth, (0.3, 0.2), paper_grid=True)[0]
        assert cavity["hausdorff_512"] == pixels
        assert cavity["dice_512"] == pytest.approx(cavity["dice"]) == pytest.approx(0.9)
        assert cavity["iou_512"] == pytest.approx(0.9 / 1.1)
    assert not set(PAPER_METRICS) & set(case_metrics(down, truth, (0.3, 0.2))[0])


def test_paper_grid_takes_the_nearest_pixel_as_pil_does():
    generator = np.random.default_rng(4)
    pred, truth = _blobs(generator, (700, 391)), _blobs(generator, (700, 391))
    squashed = [np.asarray(Image.fromarray(m).resize((512, 512), Image.Resampling.NEAREST)) for m in (pred, truth)]
    expected = case_metrics(*squashed, (1, 1))
    for row, other in zip(case_metrics(pred, truth, (0.3, 0.5), paper_grid=True), expected):
        assert [row[key] for key in PAPER_METRICS] == [other[key] for key in ("dice", "iou", "hd_mm")]


def test_what_vanishes_on_the_paper_grid_is_empty_there():
    truth, pred = (np.zeros((1024, 1024), np.uint8) for _ in range(2))
    truth[100, 100] = pred[100, 100] = 1  # an even row and column: between the pixels' centres
    truth[200, 200], pred[201:203, 201:203] = 2, 2
    cavity, myocardium, atrium = case_metrics(pred, truth, (1, 1), paper_grid=True)
    assert (cavity["dice"], cavity["dice_512"], cavity["hausdorff_512"]) == (1.0, 1.0, 0.0)
    assert (myocardium["dice_512"], myocardium["hausdorff_512"]) == (0.0, None) and myocardium["hd_mm"] is not None
    assert (atrium["dice_512"], atrium["hausdorff_512"]) == (1.0, 0.0)


def test_perfect_prediction():
    truth = _square(3, 3, 6, 1) + _square(12, 3, 6, 2) + _square(12, 20, 6, 3)
    for row in case_metrics(torch.from_numpy(truth.astype(np.int64)), truth, (0.3, 0.3)):
        assert [row[key] for key in METRICS] == [1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.filterwarnings("error")
def test_empty_masks_have_documented_values():
    truth = _square(3, 3, 6, 1)  # no myocardium, no atrium
    pred = _square(12, 3, 6, 2)  # no cavity, no atrium
    rows = case_metrics(pred, truth, (1, 1))
    assert [row["structure"] for row in rows] == ["left_ventricular_cavity", "myocardium", "left_atrium"]
    missed, invented, absent = rows
    assert [missed[key] for key in METRICS] == [0.0, 0.0, None, None, None] and missed["is_empty_prediction"]
    assert [invented[key] for key in METRICS] == [0.0, 0.0, None, None, None] and invented["is_empty_truth"]
    assert [absent[key] for key in METRICS] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert absent["is_empty_prediction"] and absent["is_empty_truth"]


def _rows(paper_grid: bool = False) -> list[dict]:
    """Return rows of two cases; in the second the cavity was missed."""
    truth = _square(4, 4, 10)
    return [
        row | {"case": case, "patient": patient, "view": "apical_four_chamber"}
        for case, patient, pred in (("a", "0012", _square(4, 6, 10)), ("b", "NA", np.zeros_like(truth)))
        for row in case_metrics(pred, truth, (0.25, 0.25), paper_grid)
    ]


def test_summary_counts_empty_masks_apart_and_has_no_infinite_number(tmp_path):
    checkpoint = tmp_path / "model.pt"
    checkpoint.write_bytes(b"weights")
    facts = {"dataset_dir": "data", "section": "testing", "seed": 3, "prompt_level": "P2"}
    summary = write_summary(tmp_path / "summary.json", _rows(), checkpoint_path=checkpoint, **facts)
    cavity = summary["structures"]["left_ventricular_cavity"]
    assert cavity["dice_mean"] == pytest.approx(0.4)
    assert cavity["dice_std"] == pytest.approx(math.sqrt(2 * 0.4**2))  # ddof = 1
    assert cavity["num_empty_prediction"] == 1
    assert [cavity[f"num_{key}"] for key in METRICS] == [2, 2, 1, 1, 1]
    assert cavity["hd95_mm_mean"] == cavity["hd_mm_mean"] == pytest.approx(0.5)
    assert cavity["hd_mm_std"] == 0.0 and "dice_512_mean" not in cavity
    # four rows of absent structures count 1, the other two 0.8 and 0
    assert summary["overall"]["dice_mean"] == pytest.approx(4.8 / 6)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == summary
    assert written["checkpoint_sha256"] == sha256_of(checkpoint) and facts.items() <= written.items()
    assert (written["num_cases"], written["num_patients"]) == (2, 2)


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
    assert write_summary(tmp_path / "s.json", _rows(), dataset_dir="data", section="testing")["command"] == command


@pytest.mark.parametrize("paper_grid", [False, True])
def test_metrics_are_read_as_they_were_written(tmp_path, paper_grid):
    rows = [row | {"verdict": "accept"} for row in _rows(paper_grid)]
    columns = [*CSV_COLUMNS, *(PAPER_METRICS if paper_grid else ()), "verdict"]
    assert list(pd.read_csv(write_metrics_csv(tmp_path / "metrics.csv", rows))) == columns
    frame = read_metrics(tmp_path)
    assert list(frame) == columns
    assert frame["patient"].tolist() == ["0012"] * 3 + ["NA"] * 3 and set(frame["phase"]) == {None}
    assert frame["is_empty_prediction"].tolist() == [False, True, True, True, True, True]
    assert math.isnan(frame["hd_mm"][3]) and frame["hd_mm"][0] == pytest.approx(rows[0]["hd_mm"], abs=1e-6)
    assert summarise(frame)["overall"] == pytest.approx(summarise(metrics_frame(rows))["overall"], abs=1e-6)
    if paper_grid:
        assert summarise(frame)["structures"]["left_ventricular_cavity"]["num_hausdorff_512"] == 1


def test_no_rows_are_no_file(tmp_path):
    with pytest.raises(ValueError, match="no case was evaluated"):
        write_metrics_csv(tmp_path / "none.csv", [])
    assert not (tmp_path / "none.csv").exists()


def test_metrics_of_an_older_version_lack_distances(tmp_path):
    frame = pd.DataFrame(_rows())[["case", "structure", "dice", "iou", "hd95_mm"]]
    frame.to_csv(tmp_path / "old.csv", index=False)
    read = read_metrics(tmp_path / "old.csv")
    assert tuple(read.columns) == CSV_COLUMNS
    assert read["hd_mm"].isna().all() and set(read["patient"]) == {None}
    overall = summarise(read)["overall"]
    assert (overall["hd_mm_mean"], overall["hd_mm_std"]) == (None, None)
    assert (overall["num_hd_mm"], overall["num_hd95_mm"], overall["num_empty_prediction"]) == (0, 5, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a readable CSV"),
        ("case,dice\na,1\n", "column structure is missing, got case, dice; expected a metrics.csv"),
        ("case,structure,dice\n", "expected a row with case and structure"),
        ("case,structure,dice\n,myocardium,1\n", "expected a row with case and structure"),
        ("case,structure,dice\na,s,0.5\nb,s,91.3\n", r"line 3: dice is 91.3; expected a number from 0 to 1 \(percent"),
        ("case,structure,dice\na,s,good\n", "line 2: dice is good"),
        ("case,structure,dice,hd_mm\na,s,0,inf\n", "line 2: hd_mm is inf; expected a distance, or nothing"),
        ("case,structure,dice,hd_mm\na,s,0,-1\n", "line 2: hd_mm is -1"),
    ],
)
def test_unreadable_metrics_are_named(tmp_path, text, message):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_metrics(tmp_path)


def test_missing_metrics_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="metrics.csv: no such file; expected metrics.csv, which `synboost"):
        read_metrics(tmp_path)


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
