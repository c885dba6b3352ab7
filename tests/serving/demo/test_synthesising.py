"""Test that the page synthesises, step by step, the image that the bundle's own run makes of the same label map and seeds."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from synboost_monai.bundle_run import run_bundle
from synboost_monai.predictor import Condition
from synboost_monai.serving.demo import drawing
from synboost_monai.serving.demo.sources import LabelSource, draw_phantom, file_label_source
from synboost_monai.serving.demo.synthesising import Step, Synthesiser, source_of
from synboost_monai.transforms import load_echo

DIFFUSION = {"preset": "tiny", "image_size": 32, "device": "cpu", "num_inference_steps": 3, "num_threads": 1}


@pytest.fixture(scope="module")
def synthesiser(weights: dict[str, Path]) -> Synthesiser:
    return Synthesiser(str(weights["echo_semantic_diffusion"]), DIFFUSION)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> LabelSource:
    folder = tmp_path_factory.mktemp("phantom")
    return draw_phantom(3, "apical_four_chamber", "end_systole", folder, image_height=96).label_source()


def finished(synthesiser: Synthesiser, condition: Condition, seed: int) -> Step:
    return list(synthesiser.steps(condition, seed))[-1]


def test_image_equals_the_bundles_own_run(
    synthesiser: Synthesiser, weights: dict[str, Path], source: LabelSource, tmp_path: Path
) -> None:
    """Label map, perturbation and noise are the same; the run draws one image at a time, as the page does."""
    out = tmp_path / "run"
    places = {"checkpoint_path": weights["echo_semantic_diffusion"], "dataset_dir": source.path, "output_dir": out}
    one = {"num_variations": 1, "images_at_once": 1}
    run_bundle("echo_semantic_diffusion", "inference", {**DIFFUSION, **places, **one})
    (record,) = json.loads((out / "provenance.json").read_text())["images"]
    label_source = file_label_source(source.path, [source.path.parent])
    condition = synthesiser.condition(label_source, 1.0, record["perturbation_seed"])
    last = finished(synthesiser, condition, record["noise_seed"])
    assert last.result is not None
    assert np.array_equal(last.result.image, load_echo(out / record["image"])[0].numpy()[0])
    assert np.array_equal(condition.label_map, load_echo(out / record["label"])[0].numpy()[0])
    made = source_of(last.result, tmp_path, "synthetic")
    pixels, spacing = load_echo(made.path)
    assert np.array_equal(pixels.numpy()[0], last.result.image) and made.attributes["is_synthetic"]
    assert spacing == pytest.approx(load_echo(out / record["image"])[1])


def test_pictures_come_while_sampling_and_the_seed_decides_the_last(
    synthesiser: Synthesiser, source: LabelSource
) -> None:
    condition = synthesiser.condition(source)
    steps = list(synthesiser.steps(condition, 5))
    assert [(s.done, s.total, s.result is not None) for s in steps] == [(1, 3, False), (2, 3, False), (3, 3, True)]
    assert all(s.picture.shape == (32, 32) and s.picture.dtype == np.uint8 for s in steps)
    assert not np.array_equal(steps[0].picture, steps[1].picture)
    assert np.array_equal(finished(synthesiser, condition, 5).picture, steps[-1].picture)
    assert not np.array_equal(finished(synthesiser, condition, 6).picture, steps[-1].picture)
    assert (steps[-1].picture[condition.picture.sum(axis=-1) == 0] == 0).all()  # dark outside the sector


def test_strength_scales_one_perturbation(synthesiser: Synthesiser, source: LabelSource) -> None:
    maps = [synthesiser.condition(source, strength, 7).label_map for strength in (0.0, 0.5, 1.0, 0.0)]
    changed = [float((m != maps[0]).mean()) for m in maps]
    assert changed[0] == changed[3] == 0 < changed[1] < changed[2]
    assert np.array_equal(synthesiser.condition(source, 0.0, 8).label_map, maps[0])
    assert not np.array_equal(synthesiser.condition(source, 1.0, 8).label_map, maps[2])


def test_closing_the_generator_ends_the_sampling(synthesiser: Synthesiser, source: LabelSource) -> None:
    before = threading.active_count()
    steps = synthesiser.steps(synthesiser.condition(source), 1)
    assert next(steps).done == 1
    steps.close()
    assert threading.active_count() == before
    assert synthesiser._inferer.on_images is None
    assert finished(synthesiser, synthesiser.condition(source), 1).result is not None  # the next one works


def test_an_error_while_sampling_reaches_the_page(synthesiser: Synthesiser, source: LabelSource) -> None:
    condition = synthesiser.condition(source)
    broken = Condition(**{**vars(condition), "item": {**condition.item, "image": condition.item["image"][:3]}})
    with pytest.raises(ValueError, match=r"expected label maps \(B, 5, H, W\) one-hot, got \(1, 3, 32, 32\)"):
        list(synthesiser.steps(broken, 1))
    assert finished(synthesiser, condition, 1).result is not None


def test_a_drawing_is_synthesised_in_the_default_sector(synthesiser: Synthesiser, tmp_path: Path) -> None:
    label_map = np.zeros(drawing.CANVAS_SHAPE, np.uint8)
    label_map[90:200, 160:230] = 1
    condition = synthesiser.condition(drawing.write_drawing(label_map, tmp_path / "drawing.nii.gz"))
    assert set(np.unique(condition.label_map)) == {0, 1}
    longer = max(drawing.CANVAS_SHAPE) * drawing.CANVAS_SPACING_MM[0]
    assert condition.spacing_mm == pytest.approx((longer / 32,) * 2, rel=0.03)
    assert finished(synthesiser, condition, 0).result is not None


def test_mistakes_are_sentences(synthesiser: Synthesiser, source: LabelSource, tmp_path: Path) -> None:
    assert source.image_path is not None
    with pytest.raises(ValueError, match="expected a label map with classes"):
        synthesiser.condition(LabelSource(source.image_path))
    with pytest.raises(ValueError, match="the strength must be 0 to 2, got 9"):
        synthesiser.condition(source, 9)
    with pytest.raises(ValueError, match="the seed must be 0 or more, got -1"):
        synthesiser.condition(source, 1, -1)
    with pytest.raises(ValueError, match="the seed must be 0 or more, got -1"):
        next(synthesiser.steps(synthesiser.condition(source), -1))
    with pytest.raises(FileNotFoundError) as error:
        Synthesiser(str(tmp_path / "model.pt"), DIFFUSION)
    for words in ("--synthesis_checkpoint_path", "synboost run echo_semantic_diffusion train_small"):
        assert words in str(error.value)
