"""Test that class probabilities agree with the project's own label maps, pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from synboost_monai.auto3dseg import infer
from synboost_monai.auto3dseg.infer import InferClass, class_probabilities, name_below
from synboost_monai.letterbox import LetterboxGeometry, letterbox_geometry
from synboost_monai.transforms.postprocessing import RestoreLabelMapd, display_order

GEOMETRY = letterbox_geometry((83, 61), (0.5, 0.8), 32)
IDENTITY = LetterboxGeometry(32, 32, 32, 32, 0, 0, 32)


def label_map_of(logits: torch.Tensor, geometry: LetterboxGeometry, threshold: float) -> np.ndarray:
    """Return the label map that the bundle's own postprocessing makes from logits."""
    item = {"pred": logits, "geometry": torch.tensor(geometry), "image": MetaTensor(torch.zeros(1, 2, 2))}
    return display_order(RestoreLabelMapd(threshold=threshold)(item)["pred"]).numpy()


@pytest.mark.parametrize("threshold", [0.5, 0.35, 0.9])
@pytest.mark.parametrize("num_groups", [1, 2, 5])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_argmax_is_the_label_map(threshold: float, num_groups: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(int(100 * threshold) + num_groups)
    logits = torch.randn(3 * num_groups, 32, 32, generator=generator) * scale
    logits += float(np.log(threshold / (1 - threshold)))  # around the threshold all four classes win somewhere
    probabilities = class_probabilities(logits, GEOMETRY, threshold)
    assert probabilities.shape == (4, 83, 61) and probabilities.dtype == torch.float64
    torch.testing.assert_close(probabilities.sum(dim=0), torch.ones(83, 61, dtype=torch.float64))
    expected = label_map_of(logits, GEOMETRY, threshold)
    assert set(np.unique(expected)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(probabilities.argmax(dim=0).numpy(), expected)


def test_neighbouring_logits_and_ties_are_told_apart_as_by_the_rule() -> None:
    base = torch.linspace(-40, 40, 32 * 32).reshape(32, 32)
    up, down = (torch.nextafter(base, torch.tensor(x)) for x in (torch.inf, -torch.inf))
    for logits in (torch.stack([base, up, down]), torch.stack([base, base, base]), torch.zeros(3, 32, 32)):
        argmax = class_probabilities(logits, IDENTITY).argmax(dim=0).numpy()
        np.testing.assert_array_equal(argmax, label_map_of(logits, IDENTITY, 0.5))


def test_against_the_background_a_structure_has_the_network_s_own_probability() -> None:
    logits = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    probabilities = class_probabilities(logits, IDENTITY)
    pairwise = probabilities[1:] / (probabilities[1:] + probabilities[0])
    torch.testing.assert_close(pairwise, logits.double().sigmoid())
    # independent answers, given that at most one of them is yes
    yes = logits.double().sigmoid()
    joint = torch.stack([(1 - yes).prod(dim=0), *(yes[s] * (1 - yes).prod(dim=0) / (1 - yes[s]) for s in range(3))])
    torch.testing.assert_close(probabilities, joint / joint.sum(dim=0))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("/data/a/b.nii.gz", "/data/a/b.nii.gz"),
        ("/data/x/../b.nii.gz", "/data/b.nii.gz"),
        ("/other/deep/b.nii.gz", "/data/other/deep/b.nii.gz"),
    ],
)
def test_predictions_are_named_below_the_data_s_folder(image: str, expected: str) -> None:
    assert name_below(image, "/data") == expected


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    """Write the hyper-parameters of a fold that is not trained, and return their file."""
    path = tmp_path / "configs/hyper_parameters.yaml"
    path.parent.mkdir()
    path.write_text("bundle: echo_cris\n")
    return path


def test_untrained_fold_is_refused(untrained: Path) -> None:
    with pytest.raises(FileNotFoundError, match="this fold is not trained"):
        InferClass(str(untrained))


@pytest.mark.parametrize(
    "written", ["inferer::_target_: os.getcwd\nimage_size: 32\n", "1: a\nx: b\n", "- image_size\n", ""]
)
def test_what_no_training_writes_is_refused(untrained: Path, tmp_path: Path, written: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.pt").touch()
    (tmp_path / "model/inference.yaml").write_text(written)
    with pytest.raises(ValueError, match="inference.yaml: expected the keys that a training writes"):
        InferClass(str(untrained))


def test_networks_are_kept_in_memory(finished_run: Path) -> None:
    files = [str(finished_run / "echocris_0/configs/hyper_parameters.yaml")]
    infer._trained.cache_clear()
    one, again = InferClass(files), InferClass(files, rank=0, image_save_func={}, output_dir="x")
    assert one.trained is again.trained
    assert InferClass(files, prompt_level="P1").trained is not one.trained
    assert infer._trained.cache_info().misses == 2


def test_prompts_say_what_the_datalist_knows(finished_run: Path, camus_dir: Path, tmp_path: Path) -> None:
    inferer = InferClass([str(finished_run / "echocris_0/configs/hyper_parameters.yaml")])
    image = next(camus_dir.rglob("patient0006_4CH_ES.nii.gz"))
    # as MONAI hands an item over: the data's folder stands before every text
    item = inferer._item({"image": str(image), "view": "/data/apical_two_chamber"})
    known = {"view": "apical_four_chamber", "phase": "end_systole", "sex": "female", "age": 46}
    assert {key: item[key] for key in known} == known and "label" not in item
    copy = tmp_path / "patient0099_2CH_ED.nii.gz"
    copy.write_bytes(image.read_bytes())
    by_its_name = {"patient": "patient0099", "view": "apical_two_chamber", "phase": "end_diastole"}
    assert inferer._item(str(copy)) == {"image": str(copy), **by_its_name}
    plain = tmp_path / "heart.nii.gz"
    plain.write_bytes(image.read_bytes())
    assert inferer._item(str(plain)) == {"image": str(plain)}
    assert inferer.infer(str(plain)).shape == (4, 40, 48)  # the prompt level falls


def test_probabilities_lie_on_the_image_s_grid(finished_run: Path, camus_dir: Path) -> None:
    import nibabel as nib

    image = next(camus_dir.rglob("patient0006_4CH_ES.nii.gz"))
    inferer = InferClass([str(finished_run / "echoclipseg_0/configs/hyper_parameters.yaml")])
    probabilities = inferer.infer(str(image))
    assert isinstance(probabilities, MetaTensor)
    np.testing.assert_array_equal(probabilities.affine.numpy(), nib.load(image).affine)
    assert tuple(probabilities.shape[1:]) == nib.load(image).shape
    assert probabilities.meta["filename_or_obj"] == str(image)
