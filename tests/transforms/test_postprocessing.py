"""Test the way from logits to one label map on the native grid, cleaned, with its spread and doubt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from synboost_monai.heart.anatomy import examine_anatomy
from synboost_monai.heart.doubt import DoubtAssessor
from synboost_monai.letterbox import letterbox_geometry
from synboost_monai.transforms import AssessDoubtd, RestoreLabelMapd, display_order
from synboost_monai.transforms.postprocessing import (
    fill_enclosed,
    logits_to_label_map,
    mean_logits,
    remove_strays,
    restore_logits,
)

SPACING_MM = (1.5, 2.0)
GEOMETRY = letterbox_geometry((48, 40), SPACING_MM, 32)


def item_of(logits: torch.Tensor) -> dict[str, Any]:
    """Return the item that the postprocessing gets for an image of 48 x 40 pixels."""
    image = MetaTensor(torch.zeros(1, 32, 32), affine=torch.diag(torch.tensor([-2.0, -1.5, 1, 1])))
    return {
        "pred": logits,
        "image": image,
        "geometry": torch.tensor(GEOMETRY),
        "spacing_mm": torch.tensor(SPACING_MM, dtype=torch.float64),
    }


def random_logits(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, 32, 32, generator=torch.Generator().manual_seed(0)) * 2


def heart_logits() -> torch.Tensor:
    """Return logits (3, 32, 32): a heart with its base at row 18, an open cavity, and the atrium below it."""
    y, x = torch.meshgrid(torch.arange(32) - 18.0, torch.arange(32) - 15.5, indexing="ij")
    is_heart, is_cavity = (y / 15) ** 2 + (x / 9) ** 2 < 1, (y / 11) ** 2 + (x / 5) ** 2 < 1
    is_atrium = (y > 0) & (y < 8) & (x.abs() < 5)
    masks = torch.stack([is_cavity & (y <= 0), is_heart & ~is_cavity & (y <= 0), is_atrium])
    return masks * 16.0 - 8


def test_arbitration_takes_the_highest_structure_above_the_threshold() -> None:
    logits = torch.tensor([[[3.0, -1.0, 0.2]], [[2.0, -2.0, 0.1]], [[-5.0, -0.1, 0.3]]])  # (3, 1, 3)
    assert logits_to_label_map(logits).tolist() == [[1, 0, 3]]
    assert logits_to_label_map(logits, threshold=0.45).tolist() == [[1, 3, 3]]
    assert logits_to_label_map(logits[:1], [2]).tolist() == [[2, 0, 2]]
    with pytest.raises(ValueError, match="threshold is a probability"):
        logits_to_label_map(logits, threshold=1.0)


def test_structures_together_leave_no_gap_where_they_can_hardly_be_told_apart() -> None:
    probability = torch.tensor(
        [[[0.48, 0.48, 0.30, 0.20, 0.90]], [[0.45, 0.10, 0.25, 0.20, 0.05]], [[0.00, 0.00, 0.05, 0.05, 0.01]]]
    )
    logits = torch.logit(probability, eps=1e-6)
    assert logits_to_label_map(logits).tolist() == [[0, 0, 0, 0, 1]]
    assert logits_to_label_map(logits, together=True).tolist() == [[1, 1, 1, 0, 1]]
    assert logits_to_label_map(logits, threshold=0.7, together=True).tolist() == [[1, 0, 0, 0, 1]]
    alone = logits_to_label_map(logits[:1], [2], together=True)  # one structure: the plain threshold
    assert torch.equal(alone, logits_to_label_map(logits[:1], [2]))


def test_a_gap_between_cavity_and_wall_that_nothing_encloses_is_closed() -> None:
    logits = heart_logits()
    strip = (slice(8, 19), slice(10, 12))  # along the septum, from the base on
    for plane, probability in zip(logits, (0.45, 0.45, 0.01)):
        plane[strip] = torch.logit(torch.tensor(probability))
    item = {**item_of(logits), "geometry": torch.tensor(letterbox_geometry((32, 32), (1, 1), 32))}
    plain, filled = (display_order(RestoreLabelMapd(fill_holes=fill)(item)["pred"]).numpy() for fill in (False, True))
    assert (plain[strip] == 0).all() and (filled[strip] != 0).all()
    is_open = [examine_anatomy(label_map, SPACING_MM)[1]["opening_fraction"] for label_map in (plain, filled)]
    assert is_open[0] > 1.5 * is_open[1], is_open


def test_one_group_of_prompts_is_plain_arbitration_bit_for_bit() -> None:
    logits = random_logits(3)
    found = RestoreLabelMapd()(item_of(logits))
    expected = logits_to_label_map(restore_logits(logits, GEOMETRY))
    assert torch.equal(found["pred"].as_tensor(), expected.T[None, :, :, None])
    assert found["pred"].dtype == torch.uint8 and found["pred"].shape == (1, 40, 48, 1)
    assert torch.equal(found["pred"].affine, found["image"].affine)
    assert "spread" not in found and found["evidence"][0]["structures"]["myocardium"]["mean_spread"] is None


def test_the_mean_of_groups_is_of_probabilities_and_never_infinite() -> None:
    logits = torch.logit(torch.tensor([[0.2, 0.9], [0.6, 0.9]]))
    assert torch.allclose(mean_logits(logits).sigmoid(), torch.tensor([0.4, 0.9]))
    assert torch.allclose(mean_logits(torch.tensor([[300.0], [200.0]])), torch.tensor([200.7]), atol=0.01)
    assert torch.allclose(mean_logits(torch.tensor([[-90.0], [-90.0]])), torch.tensor([-90.0]))


def test_groups_become_one_label_map_and_their_spread() -> None:
    probability = torch.full((2, 3, 32, 32), 0.01)
    probability[0, 1], probability[1, 1] = 0.4, 0.9  # mean 0.65, deviation 0.25
    probability[0, 2], probability[1, 2] = 0.5, 0.6  # mean 0.55, deviation 0.05
    found = RestoreLabelMapd()(item_of(torch.logit(probability).flatten(0, 1)))
    assert found["pred"].unique().tolist() == [2]
    assert found["spread"].shape == (1, 40, 48, 1) and found["spread"].dtype == torch.float32
    assert torch.allclose(found["spread"].as_tensor(), torch.tensor(0.25), atol=1e-6)
    assert torch.equal(found["spread"].affine, found["image"].affine)
    said = found["evidence"][0]
    assert said["num_groups"] == 2
    assert said["structures"]["myocardium"]["expected_dice"] == pytest.approx(2 * 0.65 / 1.65, rel=1e-6)
    assert said["structures"]["myocardium"]["mean_spread"] == pytest.approx(0.25, rel=1e-6)


def test_the_same_group_twice_changes_nothing_and_has_no_spread() -> None:
    logits = random_logits(3)
    once, twice = RestoreLabelMapd()(item_of(logits)), RestoreLabelMapd()(item_of(logits.repeat(2, 1, 1)))
    assert torch.equal(once["pred"].as_tensor(), twice["pred"].as_tensor())
    assert twice["spread"].max() == 0


def test_a_clip_is_its_frames() -> None:
    logits = random_logits(4, 6)
    steps = {"keep_largest": True, "fill_holes": True}
    clip = RestoreLabelMapd(**steps)(item_of(logits))
    assert clip["pred"].shape == clip["spread"].shape == (1, 40, 48, 4) and len(clip["evidence"]) == 4
    assert display_order(clip["pred"]).shape == (4, 48, 40)
    for t in range(4):
        frame = RestoreLabelMapd(**steps)(item_of(logits[t]))
        assert torch.equal(clip["pred"][..., t : t + 1].as_tensor(), frame["pred"].as_tensor())
        assert torch.equal(display_order(clip["spread"])[t], display_order(frame["spread"]))
        assert clip["evidence"][t] == frame["evidence"][0]


@pytest.mark.parametrize("shape", [(3,), (6,), (2, 6)])
def test_a_free_prompt_is_its_structure_of_the_label_map_of_all(shape: tuple[int, ...]) -> None:
    """This holds also where structures compete for a pixel; and the verdict is that of all three."""
    assess, item = AssessDoubtd(DoubtAssessor(None)), {**item_of(random_logits(*shape)), "is_calibrated": True}
    steps = {"keep_largest": True, "fill_holes": True}
    whole = assess(RestoreLabelMapd(**steps)(item))
    for prompt, index in (("LV", 1), ("heart muscle", 2), ("left atrium", 3)):
        found = assess(RestoreLabelMapd(prompt=prompt, **steps)(item))
        expected = torch.where(whole["pred"] == index, index, 0)
        assert torch.equal(found["pred"].as_tensor(), expected.as_tensor()) and found["pred"].dtype == torch.uint8
        assert found["pred"].unique().tolist() == [0, index] and found.keys() == whole.keys()
        said = found["doubt"].pop("prompt")
        for frame in found["doubt"].get("frames", []):
            assert frame.pop("prompt") == said
        assert found["doubt"] == whole["doubt"] and whole["doubt"]["anatomy" if len(shape) == 1 else "frames"]
    assert said == {"text": "left atrium", "structure": "left_atrium", "reading": "read as left atrium"}
    if len(shape) == 1 and shape[0] == 6:  # where the prompts of this structure disagree, not those of another
        spread = random_logits(6).sigmoid()[[2, 5]].std(dim=0, correction=0)
        assert torch.allclose(display_order(found["spread"]), restore_logits(spread[None], GEOMETRY)[0])


@pytest.mark.parametrize("prompt", ["banana", "left ventricle and left atrium", "not the left atrium", "RV"])
def test_a_mask_of_words_that_name_no_structure_is_never_made(prompt: str) -> None:
    with pytest.raises(ValueError, match="there are: left ventricular cavity"):
        RestoreLabelMapd(prompt=prompt)


@pytest.mark.parametrize(
    ("shown", "code", "words"),
    [
        ("itself", None, ""),
        ("atrium", "other_structure", "rather the left atrium (Dice 1.00) than the myocardium (Dice 0.00)"),
        ("half", "other_mask", "not the myocardium that the network's own sentences give (Dice 0.6"),
        ("nothing", "other_mask", "not the myocardium that the network's own sentences give (Dice 0.00"),
    ],
)
def test_words_that_segment_something_else_than_their_structure_go_to_review(
    shown: str, code: str | None, words: str
) -> None:
    """Logits of the words themselves come first, then those of the three structures."""
    structures = heart_logits()
    itself = structures[1:2].clone()
    if shown == "half":
        itself[..., :16] = -8
    itself = {"atrium": structures[2:], "nothing": torch.full((1, 32, 32), -8.0)}.get(shown, itself)
    item = {**item_of(torch.cat([itself, structures])), "is_calibrated": True}
    assess = AssessDoubtd(DoubtAssessor(None, ranges={}))
    found = assess(RestoreLabelMapd(prompt="heart muscle", free_words=True)(item))
    alone = logits_to_label_map(restore_logits(itself, GEOMETRY), [2])
    assert torch.equal(display_order(found["pred"]), alone) and "spread" not in found
    whole = assess(RestoreLabelMapd()({**item, "pred": structures}))["doubt"]
    assert found["doubt"]["structures"] == whole["structures"] and whole["verdict"] == "accept"
    overlaps = found["doubt"]["prompt"]["overlaps"]
    assert overlaps["myocardium"] == pytest.approx({"itself": 1, "half": 2 / 3}.get(shown, 0), abs=0.03)
    assert [reason["code"] for reason in found["doubt"]["reasons"]] == ([code] if code else [])
    assert not code or found["doubt"]["reasons"][0]["message"].startswith(
        f"the prompt was read as myocardium, but its mask is {words}"
    )


@pytest.mark.parametrize("num_logits", [1, 4])
def test_logits_of_no_whole_groups_are_refused(num_logits: int) -> None:
    with pytest.raises(ValueError, match=f"3 class indices for logits of {num_logits} structures"):
        RestoreLabelMapd()(item_of(random_logits(num_logits)))


def test_stray_pieces_go_and_large_ones_stay() -> None:
    label_map = np.zeros((20, 20), np.uint8)
    label_map[2:8, 2:8] = 1  # 36 pixels
    label_map[8, 8] = 1  # touches it by a corner
    label_map[15:17, 2:4] = 1  # 4 pixels: a stray
    label_map[2:8, 12:18] = 2
    label_map[12:17, 12:18] = 2  # 30 pixels: the structure is torn
    kept = remove_strays(label_map, [1, 2, 3])
    assert (kept == 1).sum() == 37 and (kept[15:17] == 1).sum() == 0
    assert np.array_equal(kept == 2, label_map == 2)
    assert (label_map == 1).sum() == 41  # the input stays


def test_enclosed_background_goes_to_the_likeliest_structure_beside_it() -> None:
    label_map = np.zeros((12, 12), np.uint8)
    label_map[1:6, 1:11], label_map[6:11, 1:11] = 1, 2
    label_map[3, 3] = 0  # a hole in 1
    label_map[5:7, 5] = 0  # a gap between 1 and 2
    label_map[0, 8] = 0  # the outside
    logits = np.zeros((3, 12, 12), np.float32)
    logits[2] = 9  # the likeliest, but not beside any
    logits[0, 5, 5], logits[1, 5, 5] = -1, -2
    logits[0, 6, 5], logits[1, 6, 5] = -2, -1
    logits[1, 3, 3] = 5  # likelier than 1, but not beside this hole
    filled = fill_enclosed(label_map, logits, [1, 2, 3])
    assert (filled[3, 3], filled[5, 5], filled[6, 5]) == (1, 1, 2)
    assert np.array_equal(filled[label_map > 0], label_map[label_map > 0]) and (filled == 0).sum() == 44
    assert fill_enclosed(filled, logits, [1, 2, 3]) is filled


def test_cleaning_is_told() -> None:
    logits = heart_logits()
    logits[0, 12, 16], logits[0, 12, 17] = -8, -8  # a hole in the cavity
    logits[2, 1:3, 20:22] = 8  # a stray of the left atrium
    plain = RestoreLabelMapd()(item_of(logits))
    clean = RestoreLabelMapd(keep_largest=True, fill_holes=True)(item_of(logits))
    # closing gaps is arbitration, not cleaning
    before = logits_to_label_map(restore_logits(logits, GEOMETRY), together=True)
    after = display_order(clean["pred"])
    assert (before[:5] == 3).any() and not (after[:5] == 3).any()
    said = clean["evidence"][0]["structures"]
    removed = ((before == 3).sum() - (after == 3).sum()) / (before == 3).sum()
    assert said["left_atrium"]["removed_share"] == pytest.approx(float(removed))
    added = ((after == 1).sum() - (before == 1).sum()) / (after == 1).sum()
    assert said["left_ventricular_cavity"]["filled_share"] == pytest.approx(float(added)) and added > 0
    assert all(s["removed_share"] == s["filled_share"] == 0 for s in plain["evidence"][0]["structures"].values())


def test_nothing_found_is_nothing_to_clean() -> None:
    found = RestoreLabelMapd(keep_largest=True, fill_holes=True)(item_of(torch.full((6, 32, 32), -9.0)))
    assert found["pred"].max() == 0
    assert found["evidence"][0]["structures"]["myocardium"] == {
        "class_index": 2,
        "is_empty": True,
        "expected_dice": 0.0,
        "mean_spread": 0.0,
        "removed_share": 0.0,
        "filled_share": 0.0,
    }


@pytest.mark.parametrize("has_spacing", [True, False])
def test_a_picture_without_spacing_is_not_judged_in_mm(has_spacing: bool) -> None:
    found = RestoreLabelMapd()({**item_of(heart_logits()), "is_calibrated": has_spacing})
    doubt = AssessDoubtd(DoubtAssessor(None))(found)["doubt"]
    area = doubt["structures"]["left_atrium"]["area_mm2"]
    measures = doubt["anatomy"]["measures"]
    assert {"axis_tilt_deg", "opening_fraction", "atrium_to_cavity_area"} <= set(measures)
    if has_spacing:
        assert area == (found["pred"] == 3).sum() * 3.0 and measures["atrium_area_mm2"] == area
        assert doubt["anatomy"]["notes"] == []
    else:
        assert area is None and not [m for m in measures if m.endswith(("mm", "mm2"))]
        assert "no pixel spacing" in doubt["anatomy"]["notes"][0]
        assert not [r for r in doubt["reasons"] if "mm" in r["message"]]
