"""Test the bundles as MONAI Label uses them, without MONAI Label: parts of inference.yaml, and its overrides of train.yaml."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from PIL import Image

from synboost_monai.data import read_datalist
from synboost_monai.dicom.writing.image import write_dicom_pair
from synboost_monai.files import read_plane
from synboost_monai.records import EchoRecord
from synboost_monai.structures import STRUCTURES
from synboost_monai.transforms import display_order, load_echo
from synboost_monai.transforms.postprocessing import mean_logits
from tests.bundles.conftest import BUNDLES, BUNDLES_DIR, TINY, workflow
from tests.tiny import tiny_network, tiny_weights

PLAIN = {"keep_largest": False, "fill_holes": False}
"""Random networks give torn masks, of which cleaning would leave little to compare."""
TOP, LEFT = 7, 5
"""Where the DICOM image lies in its frame."""


@pytest.fixture(scope="module", params=BUNDLES)
def bundle(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def weights(bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(bundle, tmp_path_factory.mktemp("weights") / "model.pt", seed=1)


@pytest.fixture(scope="module")
def images(datalist_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write one image in four kinds of file."""
    folder = tmp_path_factory.mktemp("images")
    item = read_datalist(datalist_dir, "testing")[0]
    plane, label = read_plane(item["image"]), read_plane(item["label"])
    names = {"flat": "flat.nii.gz", "slice": "slice.nii.gz", "png": "png.png", "dicom": "d.dcm"}
    paths = {kind: folder / name for kind, name in names.items()}
    affine = np.array([[-0.4, 0, 0, 12], [0, 0.3, 0, -34], [0, 0, 2, 56], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(plane.pixels.T, affine), paths["flat"])
    nib.save(nib.Nifti1Image(plane.pixels.T[..., None], affine), paths["slice"])
    Image.fromarray(plane.pixels).save(paths["png"])
    record = EchoRecord(paths["dicom"], folder / "seg", "p", sex="female", age=64)
    write_dicom_pair(record, plane.pixels, label.pixels, plane.spacing_mm, name="n")
    dataset = pydicom.dcmread(paths["dicom"])
    frame = np.pad(plane.pixels, ((TOP, 3), (LEFT, 1)))
    dataset.Rows, dataset.Columns = frame.shape
    (region,) = dataset.SequenceOfUltrasoundRegions
    region.RegionLocationMinY0, region.RegionLocationMinX0 = TOP, LEFT
    region.RegionLocationMaxY1 = TOP + plane.pixels.shape[0] - 1
    region.RegionLocationMaxX1 = LEFT + plane.pixels.shape[1] - 1
    dataset.PixelData = frame.tobytes() + b"\0" * (frame.size % 2)
    dataset.save_as(paths["dicom"])
    return paths


def served(bundle: str, weights: Path, path: Path, prompt: str = "") -> dict[str, Any]:
    """Return the item after the steps that MONAI Label takes: preprocessing, inferer on the image alone, postprocessing.

    `threshold` of the item is the one that was taken: half of the pixels are above it.
    """
    parser = ConfigParser()
    parser.read_config(str(BUNDLES_DIR / bundle / "configs/inference.yaml"))
    for key, value in {**TINY, **PLAIN, "checkpoint_path": str(weights)}.items():
        parser[key] = value
    parser["displayable_configs"]["prompt"] = prompt
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    item: dict[str, Any] = {"image": str(path), "image_path": str(path), "prompt": prompt, "model": bundle}
    item |= {"description": "x", "result_dtype": "uint8"}
    for transform in parser.get_parsed_content("preprocessing").transforms:
        item = transform(item)
    with torch.no_grad():
        item["pred"] = parser.get_parsed_content("inferer")(item["image"][None].to("cpu"), network)[0]
    assert item["pred"].shape == (6, 32, 32)  # both phrasings of each structure
    logits = mean_logits(item["pred"].unflatten(0, (-1, len(STRUCTURES))))
    item["threshold"] = parser["threshold"] = float(logits.amax(dim=0).median().sigmoid())
    parser.parse()
    for transform in parser.get_parsed_content("postprocessing").transforms:
        item = transform(item)
    return item


def segmented(bundle: str, weights: Path, path: Path, output_dir: Path, prompt: str, threshold: float) -> np.ndarray:
    """Return the label map (H, W) of `monai.bundle run`."""
    places = {"dataset_dir": path, "output_dir": output_dir, "checkpoint_path": weights}
    workflow(bundle, ["inference"], **places, prompt=prompt, threshold=threshold, **PLAIN).run()
    return read_written(next(p for p in output_dir.iterdir() if p.suffix in (".gz", ".png") and "spread" not in p.name))


def read_written(path: Path) -> np.ndarray:
    """Read a file as on the screen: the affine of these images says that they are stored upside down."""
    return load_echo(path)[0][0].numpy()


@pytest.mark.parametrize("kind", ["flat", "slice", "png", "dicom"])
@pytest.mark.parametrize("prompt", ["", "left ventricle"])
def test_image_alone_gives_what_the_bundle_gives(bundle, weights, images, tmp_path, kind, prompt):
    item = served(bundle, weights, images[kind], prompt)
    expected = segmented(bundle, weights, images[kind], tmp_path, prompt, item["threshold"])
    assert len(np.unique(expected)) > 1, "an empty label map would agree with anything"
    np.testing.assert_array_equal(display_order(item["pred"]).numpy(), expected)
    # MONAI Label resizes what does not have the image's spatial_shape, and writes the affine of the image's meta data
    assert item["pred"].dtype == torch.uint8 and item["pred"].ndim == 4 and item["result_dtype"] == "uint8"
    np.testing.assert_array_equal(item["image"].meta["spatial_shape"], item["pred"].shape[1:])
    affine = np.asarray(item["image"].meta["original_affine"])
    if kind in ("flat", "slice"):
        np.testing.assert_allclose(affine, nib.load(images[kind]).affine, atol=1e-6)
    if kind == "dicom":
        np.testing.assert_allclose(affine[:2, 3], 0)  # of the frame, not of the region
    assert item["result"]["doubt"]["verdict"] in ("accept", "review")


def test_prompts_of_several_images_stay_theirs(bundle):
    """Prompts in meta data, collated or not, give the logits of prompts that are passed directly."""
    from synboost_monai.inferers import PromptedSegmentationInferer
    from synboost_monai.transforms import PromptTokensd

    network = tiny_network(bundle).eval()
    image = MetaTensor(torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0)))
    known = {"view": "apical_four_chamber", "sex": "female", "age": 60, "image_quality": "good", "phase": "end_systole"}
    item = PromptTokensd("P6")({"image": image, **known})
    assert "input_ids" not in image.meta  # the input stays as it is
    inferer = PromptedSegmentationInferer()
    with torch.no_grad():
        told = inferer(item["image"].as_tensor()[None], network, item["input_ids"][None])
        found = inferer(item["image"][None], network)
        default = inferer(image[None], network)
    torch.testing.assert_close(found, told)
    assert not torch.allclose(default, told)


def test_training_with_the_overrides_of_monai_label(bundle, weights, datalist_dir, tmp_path):
    """Its bundle trainer calls `monai.bundle.run` so: old nesting marks, lists of data, a CheckpointLoader before our handlers."""
    items = [{"image": i["image"], "label": i["label"]} for i in read_datalist(datalist_dir, "training")[:3]]
    parser = ConfigParser()
    parser.read_config(str(BUNDLES_DIR / bundle / "configs/train.yaml"))
    handlers = copy.deepcopy(parser.get("train#handlers"))
    loader = {"_target_": "CheckpointLoader", "load_path": str(weights), "load_dict": {"model": "$@network"}}
    handlers.insert(0, {**loader, "strict": False})
    overrides = {
        "train#trainer#max_epochs": 1,
        "train#dataset#data": items[:2],
        "validate#dataset#data": items[2:],
        "train#handlers": handlers,
        "output_dir": str(tmp_path),
        "learning_rate": 0.0,  # so that what comes out shows what it started from
        "encoder_learning_rate_scale": 0.0,
        "weight_decay": 0.0,
        "resume": False,
    }
    workflow(bundle, ["train"], "train", **overrides).run()
    written, given = (torch.load(p, weights_only=True) for p in (tmp_path / "model.pt", weights))
    assert written.keys() == given.keys()
    parameters = [name for name, _ in tiny_network(bundle).named_parameters()]
    assert all(torch.allclose(written[name], given[name]) for name in parameters)
    assert not (tmp_path / "resume.ckpt").exists()
