"""Test how far a mask moves with its prompt, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice

from synboost_monai.evaluation.sensitivity import (
    CSV_COLUMNS,
    mask_dice,
    right_dice,
    sensitivity_frame,
    sensitivity_rows,
    summarise_sensitivity,
)
from synboost_monai.evaluation.statistics import OVERALL, cluster_bootstrap
from synboost_monai.prompts.variations import LEFT_OUT, REPHRASED, RIGHT, WRONG, PromptVariant, PromptVariations
from synboost_monai.structures import STRUCTURES

CAVITY = STRUCTURES[0].name


def square(row: int, column: int, size: int = 4) -> torch.Tensor:
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[row : row + size, column : column + size] = True
    return mask


TRUTH = torch.zeros(20, 20)
TRUTH[square(2, 2)], TRUTH[square(2, 10)], TRUTH[square(10, 2)] = 1, 2, 3


def test_dice_is_monais() -> None:
    masks = torch.from_numpy(np.random.default_rng(0).random((5, 20, 20)) > 0.6)
    expected = compute_dice(masks[:, None].float(), square(3, 3, 9).expand(5, 1, 20, 20).float())[:, 0]
    assert torch.allclose(mask_dice(masks, square(3, 3, 9)).float(), expected)


def test_empty_masks_are_alike_and_unlike_others() -> None:
    empty = torch.zeros(20, 20, dtype=torch.bool)
    assert mask_dice(torch.stack([empty, square(0, 0)]), empty).tolist() == [1.0, 0.0]
    assert mask_dice(empty[None], square(0, 0)).tolist() == [0.0]


def variant(attribute: str | None, change: str, wrong: str | None = None, structure: str = CAVITY) -> PromptVariant:
    return PromptVariant(structure, attribute, change, None, wrong, "a prompt")


def test_measures_of_one_image_by_hand() -> None:
    variants = [
        variant(None, RIGHT),
        variant("view", WRONG, "apical_four_chamber"),
        variant("structure", WRONG, "left_atrium"),
        variant("structure", WRONG, "kidney"),
        variant("age", LEFT_OUT),
    ]
    # right: half a square beside the expert's; wrong view: the expert's own; wrong structure: a row off the atrium
    masks = [square(2, 4), square(2, 2), square(11, 2), torch.zeros(20, 20).bool(), square(2, 4, 8)]
    rows = sensitivity_rows(torch.stack(masks), variants, TRUTH)
    assert [r["dice_to_right"] for r in rows] == pytest.approx([1, 0.5, 0, 0, 2 * 16 / 80])
    assert [r["dice_to_expert"] for r in rows] == pytest.approx([0.5, 1, 0, 0, 2 * 8 / 80])
    assert [r["expert_change"] for r in rows] == pytest.approx([0, 0.5, -0.5, -0.5, 0.2 - 0.5])
    assert [r["dice_to_named"] for r in rows] == [None, None, pytest.approx(0.75), None, None]
    assert [r["area_ratio"] for r in rows] == pytest.approx([1, 1, 1, 0, 4])
    assert [r["is_empty"] for r in rows] == [False, False, False, True, False]


def test_each_structure_is_compared_with_its_own_right_prompt() -> None:
    item = {"view": "apical_two_chamber"}
    variants = PromptVariations("P2")(item)
    masks = torch.stack([TRUTH == next(s for s in STRUCTURES if s.name == v.structure).class_index for v in variants])
    rows = sensitivity_rows(masks, variants, TRUTH)
    assert all(r["dice_to_right"] == r["dice_to_expert"] == r["area_ratio"] == 1 for r in rows)
    assert {r["dice_to_named"] for r in rows if r["wrong"] in {s.name for s in STRUCTURES}} == {0}
    names = [*(s.name for s in STRUCTURES), OVERALL]
    assert right_dice(sensitivity_frame([{"case": "a", **r} for r in rows])) == dict.fromkeys(names, 1.0)


def test_an_empty_right_mask_has_no_area_ratio() -> None:
    masks = torch.stack([torch.zeros(20, 20).bool(), square(2, 2)])
    rows = sensitivity_rows(masks, [variant(None, RIGHT), variant("phrasing", REPHRASED)], TRUTH)
    assert [(r["dice_to_right"], r["area_ratio"]) for r in rows] == [(1, None), (0, None)]


@pytest.mark.parametrize("shape", [(2, 20, 20), (1, 20, 19)])
def test_masks_must_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"1 prompts and a label map \(20, 20\) do not fit masks"):
        sensitivity_rows(torch.zeros(shape).bool(), [variant(None, RIGHT)], TRUTH)


def made_rows(num_patients: int) -> list[dict]:
    """Make rows of two images per patient; a wrong view costs what the patient's number says."""
    rows = []
    for i in range(2 * num_patients):
        facts = {"case": f"c{i}", "patient": f"p{i // 2}", "view": None, "phase": None, "structure": CAVITY}
        numbers = {"dice_to_expert": 0.9, "dice_to_named": None, "area_ratio": 1.0, "is_empty": False, "prompt": "?"}
        loss = 0.01 * (1 + i // 2)
        changes = [
            (None, RIGHT, None, 0.0),
            ("view", WRONG, "apical_four_chamber", loss),
            ("view", LEFT_OUT, None, 0.5),
        ]
        changes += [("structure", WRONG, "kidney", 1.0), ("structure", WRONG, "myocardium", 0.9)]
        for attribute, change, wrong, lost in changes:
            row = {"attribute": attribute, "change": change, "wrong": wrong, "dice_to_right": 1 - lost}
            rows.append({**facts, **numbers, **row, "right": None, "expert_change": -lost / 2})
    return rows


def test_summary_by_hand_with_intervals_of_patients() -> None:
    frame = sensitivity_frame(made_rows(7))
    assert tuple(frame.columns) == CSV_COLUMNS
    summary = {(s["attribute"], s["change"], s["structure"]): s for s in summarise_sensitivity(frame, seed=3)}
    groups = [("structure", WRONG), ("structure", "kidney"), ("view", WRONG), ("view", LEFT_OUT)]
    assert list(dict.fromkeys((a, c) for a, c, _ in summary)) == groups
    assert {s for _, _, s in summary} == {CAVITY, OVERALL}
    found = summary["view", WRONG, OVERALL]
    assert (found["num_prompts"], found["num_images"], found["num_patients"]) == (14, 14, 7)
    assert found["dice_to_right"] == pytest.approx(1 - 0.04) and found["expert_change"] == pytest.approx(-0.02)
    part = frame[(frame["attribute"] == "view") & (frame["change"] == WRONG)]
    low, high = cluster_bootstrap(part["dice_to_right"].to_numpy(), part["patient"].to_numpy(), seed=3)
    assert (found["dice_to_right_low"], found["dice_to_right_high"]) == (low, high) and low < 0.96 < high
    assert found["share_moved"] == pytest.approx(2 / 7)  # 6 and 7 points lost
    assert found["dice_to_named"] is None and found["share_empty"] == 0


def test_a_single_patient_has_no_interval() -> None:
    summary = summarise_sensitivity(sensitivity_frame(made_rows(1)))
    assert all(s["dice_to_right_low"] is None and s["expert_change_high"] is None for s in summary)


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="no image was looked at"):
        sensitivity_frame([])
