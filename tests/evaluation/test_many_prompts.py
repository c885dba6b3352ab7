"""Test masks of many prompts of an image: the inferer that decodes them in parts, and the handler that measures them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import MetaTensor

from synboost_monai.evaluation import ManyPromptsInferer, PromptSensitivity, SensitivityPromptsd
from synboost_monai.inferers import PromptedSegmentationInferer
from synboost_monai.letterbox import letterbox_geometry
from synboost_monai.networks import create_segmenter
from synboost_monai.prompts import PromptTokenizer
from synboost_monai.prompts.variations import PromptVariations
from synboost_monai.structures import STRUCTURES
from synboost_monai.transforms.array import letterbox_label_map

ITEM = {"view": "apical_two_chamber", "phase": "end_systole"}


@pytest.mark.usefixtures("computes_in_16_bits")
@pytest.mark.parametrize("architecture", ["cris", "clipseg"])
@pytest.mark.parametrize("options", [{}, {"autocast_dtype": "bfloat16", "channels_last": True}])
def test_prompts_in_parts_give_the_logits_of_all_at_once(architecture: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = create_segmenter(architecture, "tiny").eval()
    image = torch.rand(1, 3, 64, 64)
    texts = [v.text for v in PromptVariations("P2")(ITEM)][:11]
    input_ids = PromptTokenizer()(texts)[None]
    with torch.no_grad():
        whole = PromptedSegmentationInferer(**options)(image, network, input_ids)
        parts = ManyPromptsInferer(prompts_at_once=4, **options)(image, network, input_ids)
        one_part = ManyPromptsInferer(prompts_at_once=11, **options)(image, network, input_ids)
    assert parts.shape == (1, 11, 64, 64) and torch.equal(one_part, whole)
    rounding = 3e-2 if options else 1e-6
    torch.testing.assert_close(parts, whole, rtol=0, atol=rounding * whole.abs().max().item())
    assert (parts[0, 0] - parts[0, 7]).abs().max() > 3 * rounding  # prompts differ


def test_the_image_is_encoded_once() -> None:
    network = create_segmenter("cris", "tiny").eval()
    calls = []
    network.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    input_ids = PromptTokenizer()([v.text for v in PromptVariations("P2")(ITEM)])[None]
    with torch.no_grad():
        ManyPromptsInferer(prompts_at_once=5)(torch.rand(1, 3, 64, 64), network, input_ids)
    assert len(calls) == 1
    with pytest.raises(ValueError, match="prompts_at_once must be at least 1, got 0"):
        ManyPromptsInferer(0)


def test_transform_adds_the_tokens_of_every_variant() -> None:
    variations = PromptVariations("P3")
    found = SensitivityPromptsd(variations, padding_id=7)(ITEM)["input_ids"]
    assert torch.equal(found, PromptTokenizer(padding_id=7)([v.text for v in variations(ITEM)]))


TRUTH = np.zeros((40, 32), np.uint8)
TRUTH[4:16, 6:20], TRUTH[16:20, 6:20], TRUTH[24:36, 8:20] = 1, 2, 3
SIZE = 32
"""Side of the network's square."""


def items_of(folder: Path, count: int) -> list[dict[str, Any]]:
    nib.save(nib.Nifti1Image(TRUTH.T, np.diag([-1, -1, 1, 1])), folder / "gt.nii.gz")
    facts = {**ITEM, "label": str(folder / "gt.nii.gz")}
    return [{**facts, "case": f"c{i}", "patient": f"p{i}"} for i in range(count)]


def obedient_engine(item: dict[str, Any], variations: PromptVariations) -> Any:
    """Return an engine's state after an image whose network segments what is asked for, and nothing for unknown words."""
    geometry = letterbox_geometry((1, *TRUTH.shape), (1.0, 1.0), SIZE)
    small = letterbox_label_map(torch.from_numpy(TRUTH)[None].float(), geometry)[0]
    logits = []
    for variant in variations(item):
        named = [s.class_index for s in STRUCTURES if variant.text.startswith(s.prompt_words)]
        logits.append(torch.where(small == (named or [9])[0], 5.0, -5.0))
    image = MetaTensor(torch.zeros(1, SIZE, SIZE), meta={"region": [0, 0, *TRUTH.shape], "full_shape": TRUTH.shape})
    batch = [{"case": item["case"], "geometry": torch.tensor(geometry), "image": image}]
    return SimpleNamespace(state=SimpleNamespace(batch=batch, output=[{"pred": torch.stack(logits)}]))


def test_files_of_an_obedient_network(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    items, variations = items_of(tmp_path, 3), PromptVariations("P4")
    handler = PromptSensitivity(
        items,
        variations,
        tmp_path / "out",
        dataset_dir="data",
        section="testing",
        seed=5,
        checkpoint_path=str(tmp_path / "model.pt"),
        preset="tiny",
    )
    for item in items:
        handler._measure(obedient_engine(item, variations))
    assert not (tmp_path / "out").exists()
    handler._write(obedient_engine(items[0], variations))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["sensitivity.csv", "sensitivity.json"]

    table = pd.read_csv(tmp_path / "out" / "sensitivity.csv")
    assert len(table) == sum(len(variations(item)) for item in items) and table["case"].nunique() == 3
    assert (table.loc[table["attribute"] != "structure", "dice_to_right"] == 1).all()
    wrong = table[(table["attribute"] == "structure") & table["dice_to_named"].notna()]
    right = table[table["change"] == "right"].groupby("structure")["dice_to_expert"].first()
    assert len(wrong) == 18 and (wrong["dice_to_right"] < 0.2).all()
    assert np.allclose(wrong["dice_to_named"], right[wrong["wrong"]])  # it obeys
    unknown = table[table["wrong"].isin(["kidney", "right_ventricular_cavity"])]
    assert unknown["is_empty"].all() and (unknown["area_ratio"] == 0).all()

    record = json.loads((tmp_path / "out" / "sensitivity.json").read_text())
    assert (record["num_images"], record["num_patients"], record["seed"], record["preset"]) == (3, 3, 5, "tiny")
    assert record["num_untested_images"] == {"sex": 3} and record["grid"] == "native"
    assert len(record["checkpoint_sha256"]) == 64 and "synboost_version" in record and record["command"]
    assert record["right_dice"]["overall"] == pytest.approx(right.mean(), abs=1e-6)
    view = next(s for s in record["summary"] if (s["attribute"], s["change"]) == ("view", "wrong"))
    assert view["dice_to_right"] == 1 and view["num_prompts"] == 3


def test_a_second_run_forgets_the_first(tmp_path: Path) -> None:
    items, variations = items_of(tmp_path, 2), PromptVariations("P1")
    handler = PromptSensitivity(items, variations, tmp_path / "out", dataset_dir="d", section="testing")
    for _ in range(2):
        engine = obedient_engine(items[0], variations)
        handler._start(engine)
        handler._measure(engine)
    assert len(handler.rows) == len(variations(items[0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "left atrium"}, "prompts are made of the images' attributes, but prompt is 'left atrium'"),
        ({"threshold": 1.0}, "threshold is a probability between 0 and 1, got 1.0"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptSensitivity([], PromptVariations(), tmp_path, dataset_dir="d", section="testing", **options)
