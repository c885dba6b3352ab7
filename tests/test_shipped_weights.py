"""Test the weights that ship: what their cards say, what they find in a real heart, and that they refuse other ultrasound."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from synboost_monai.model_card import read_card
from synboost_monai.predictor import Segmenter, load_segmenter
from synboost_monai.structures import STRUCTURES

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
MAX_BYTES = 20_000_000
STRANGERS = ("OBXXXX1A.dcm", "US1_UNCI.dcm", "color-pl.dcm", "gdcm-US-ALOKA-16.dcm")
"""Ultrasound of pydicom-data that shows no apical view: an empty obstetric image, a lymph node, an oesophageal view, a bladder."""


@pytest.fixture(scope="module", params=["echo_cris", "echo_clipseg"])
def bundle(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def segmenter(bundle: str) -> Segmenter:
    return load_segmenter(bundle, device="cpu")


def public_file(name: str) -> str:
    pytest.importorskip("data_store")
    from pydicom.data import get_testdata_file

    path = get_testdata_file(name, download=False)
    assert path is not None
    return str(path)


def test_the_card_says_what_they_are(bundle: str) -> None:
    path = BUNDLES / bundle / "models/model.pt"
    card = read_card(path)  # which compares the hash
    assert card is not None and path.stat().st_size <= MAX_BYTES
    assert (card.dtype, card.facts["preset"], card.facts["image_size"], card.facts["has_view_head"]) == (
        "float16",
        "small",
        96,
        True,
    )
    assert card.licence.startswith("Apache-2.0") and card.training["simulation_seed"] >= 0
    assert not card.training.get("init_checkpoint") and not card.training.get("dataset_dir")
    assert card.commit and not card.commit.endswith("-dirty")
    metrics = json.loads((BUNDLES / bundle / "configs/metadata.json").read_text(encoding="utf-8"))["eval_metrics"]
    assert metrics and set(metrics) <= set(card.measured)
    assert {name: card.measured[name] for name in metrics} == metrics


def test_the_script_that_rebuilds_them_trains_as_the_card_says(bundle: str) -> None:
    script = (BUNDLES.parent / "scripts/rebuild_weights.sh").read_text(encoding="utf-8")
    options = dict(re.findall(r"--(\w+) (\S+)", re.search(r"train_simulated .*", script)[0]))  # type: ignore[index]
    training = json.loads((BUNDLES / bundle / "models/model.json").read_text(encoding="utf-8"))["training"]
    assert {name: float(options[name]) for name in ("image_size", "max_epochs")} == {
        name: training[name] for name in ("image_size", "max_epochs")
    }


def test_they_find_a_real_heart(segmenter: Segmenter) -> None:
    item = segmenter.read(public_file("color3d_jpeg_baseline.dcm"))
    item["image"] = item["image"][:40:5]  # one beat
    found = segmenter.predict(segmenter.fit(item))
    assert found.doubt["calibrated"] and found.doubt.verdict == "accept", found.doubt.reasons
    assert found.doubt["view"]["apical"] > 0.5
    areas = (
        np.array([(found.label_map == s.class_index).sum(axis=(1, 2)) for s in STRUCTURES])
        * np.prod(found.spacing_mm)
        / 100
    )
    cavity, wall, atrium = areas  # cm²
    assert 20 < cavity.max() < 40 and 0.4 < cavity.min() / cavity.max() < 0.8  # it beats
    assert np.all((15 < wall) & (wall < 40)) and atrium.max() < 30
    assert cavity.argmin() == pytest.approx(atrium.argmax(), abs=1)  # the atrium fills while the ventricle empties


@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_no_apical_view_goes_to_review(segmenter: Segmenter, name: str) -> None:
    found = segmenter(public_file(name))
    assert found.doubt.verdict == "review"
    assert "not_apical" in {reason["code"] for reason in found.doubt["reasons"]}
