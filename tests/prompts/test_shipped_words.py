"""Test words with the weights that ship: a mask is that of the structure understood, or a person is asked to look."""

from __future__ import annotations

from pathlib import Path

import pytest

from synboost_monai.heart.doubt import mask_overlaps
from synboost_monai.predictor import load_segmenter
from synboost_monai.structures import STRUCTURES

BUNDLES_DIR = Path(__file__).resolve().parents[2] / "bundles"
SHIPPED = [bundle for bundle in ("echo_cris", "echo_clipseg") if (BUNDLES_DIR / bundle / "models/model.pt").is_file()]


@pytest.mark.parametrize("bundle", SHIPPED)
@pytest.mark.parametrize("view", ["apical_four_chamber", "apical_two_chamber"])
def test_no_word_gives_the_mask_of_another_structure(bundle: str, view: str, tmp_path: Path) -> None:
    from synboost_monai.serving.demo.sources import draw_phantom

    segmenter = load_segmenter(BUNDLES_DIR / bundle, device="cpu")
    phantom = draw_phantom(3, view, "end_diastole", tmp_path, image_height=160)
    item = segmenter.read(phantom.image_path)
    whole = segmenter.predict(segmenter.fit(item)).label_map
    for structure in STRUCTURES:
        sentence = f"{structure.prompt_words} of the heart."  # goes as it is
        for prompt in (structure.synonyms[0], structure.synonyms[-1], sentence):
            found = segmenter(phantom.image_path, prompt)
            overlaps = mask_overlaps(found.mask, whole)
            assert found.label_map[found.mask].max(initial=structure.class_index) == structure.class_index
            is_own = max(overlaps, key=lambda name: overlaps[name]) == structure.name
            assert is_own or found.doubt.verdict == "review", (prompt, overlaps)
        with pytest.raises(ValueError, match="is not among the structures"):
            segmenter(phantom.image_path, "right ventricle")
