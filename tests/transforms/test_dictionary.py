"""Test the pipelines of training and inference, item by item."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose

from synboost_monai.data import read_datalist
from synboost_monai.transforms import (
    CheckLabelMapd,
    DropAttributesd,
    Letterboxd,
    LoadEchod,
    LogitsToMasksd,
    MasksOfLabelMapd,
    NormaliseEchod,
    PromptTokensd,
    RandPromptTokensd,
    RandUltrasoundd,
    RestoreLabelMapd,
    ViewPhaseClassd,
    display_order,
)


def training_pipeline(is_enabled: bool = True) -> Compose:
    return Compose(
        [
            LoadEchod(["image", "label"]),
            CheckLabelMapd(),
            Letterboxd("image", 32),
            RandPromptTokensd("P4"),
            RandUltrasoundd(is_enabled=is_enabled),
            MasksOfLabelMapd("label"),
            NormaliseEchod("image", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    )


@pytest.mark.parametrize("is_enabled", [True, False])
def test_training_item(datalist_dir: Path, is_enabled: bool) -> None:
    item = training_pipeline(is_enabled)(read_datalist(datalist_dir, "training")[0])
    assert item["image"].shape == (3, 32, 32) and item["image"].dtype == torch.float32
    assert item["image"].min() >= -1 and item["image"].max() <= 1
    assert item["label"].shape == (3, 32, 32) and set(item["label"].unique().tolist()) == {0, 1}
    assert item["input_ids"].shape == (3, 77)
    assert not isinstance(item["image"], MetaTensor)


def test_phrasing_is_drawn_by_the_pipeline_seed(datalist_dir: Path) -> None:
    pipeline, item = training_pipeline(), read_datalist(datalist_dir, "training")[0]

    def drawn(seed: int) -> torch.Tensor:
        pipeline.set_random_state(seed)
        return torch.stack([pipeline(item)["input_ids"] for _ in range(4)])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_letterbox_leaves_paths_of_labels_alone(datalist_dir: Path) -> None:
    item = read_datalist(datalist_dir, "testing")[0]
    boxed = Letterboxd("image", 32, keep_meta=True)(LoadEchod("image")(item))
    assert boxed["label"] == item["label"]
    assert boxed["image"].meta["filename_or_obj"] == item["image"]
    with pytest.raises(ValueError, match="set image_size"):
        Letterboxd("image", 0)


def test_label_map_returns_through_a_batch(datalist_dir: Path) -> None:
    """The bundles' steps around the network run with the expert's masks as logits."""
    items = read_datalist(datalist_dir, "testing")
    pre = Compose(
        [
            LoadEchod(["image", "label"]),
            Letterboxd("image", 96, keep_meta=True),
            MasksOfLabelMapd("label"),
            PromptTokensd("P6"),
            NormaliseEchod("image", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    )
    select = Compose([pre, lambda item: {**item, "pred": item["label"] * 20 - 10}, DropAttributesd()])
    batch = next(iter(DataLoader(Dataset(items, select), batch_size=len(items))))
    assert not {"patient", "age", "shape", "label", "is_synthetic"} & set(batch)
    for item, back in zip(items, decollate_batch(batch)):
        label_map = RestoreLabelMapd()(back)["pred"]
        truth = LoadEchod("label")(item)["label"][0]
        assert label_map.shape == (1, 40, 48, 1) and label_map.dtype == torch.uint8  # stored order, one plane
        assert tuple(int(n) for n in label_map.meta["spatial_shape"]) == (40, 48, 1)
        assert torch.allclose(label_map.affine, back["image"].affine)
        assert (display_order(label_map) == truth).float().mean() > 0.99


def test_free_prompt_gives_one_class(datalist_dir: Path) -> None:
    item = Letterboxd("image", 32, keep_meta=True)(LoadEchod("image")(read_datalist(datalist_dir, "testing")[0]))
    item["pred"] = torch.tensor([-5.0, -5.0, 5.0])[:, None, None].expand(3, 32, 32)
    assert RestoreLabelMapd(prompt="left atrium")(item)["pred"].unique().tolist() == [3]
    assert RestoreLabelMapd(prompt="left ventricle")(item)["pred"].unique().tolist() == [0]


def test_masks_do_not_overlap_and_logits_stay() -> None:
    logits = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    item = LogitsToMasksd()({"pred": logits})
    assert item["pred_masks"].sum(dim=0).max() == 1
    assert torch.equal(item["pred"], logits)
    assert torch.equal(item["pred_masks"].sum(dim=0) > 0, logits.max(dim=0).values > 0)


def test_bad_label_map_is_named(datalist_dir: Path, tmp_path: Path) -> None:
    import nibabel as nib

    item = dict(read_datalist(datalist_dir, "training")[0])
    bad = np.zeros((40, 48), np.uint8)
    bad[3, 4] = 4
    item["label"] = str(tmp_path / "bad_gt.nii.gz")
    nib.save(nib.Nifti1Image(bad, np.eye(4)), item["label"])
    with pytest.raises(ValueError, match=r"bad_gt.nii.gz.*got \[4\]"):
        CheckLabelMapd()(LoadEchod(["image", "label"])(item))


def write_clip(path: Path, num_frames: int) -> tuple[str, np.ndarray]:
    """Write a sequence of 48 x 40 pixels of 1.5 x 2 mm, stored (x, y, t) like CAMUS's half sequences."""
    import nibabel as nib

    pixels = np.random.default_rng(0).integers(0, 256, (num_frames, 48, 40), dtype=np.uint8)
    nib.save(nib.Nifti1Image(pixels.T, np.diag([-2.0, -1.5, 1, 1])), path)
    return str(path), pixels


@pytest.mark.parametrize("num_frames", [1, 5])
def test_sequence_goes_through_the_pipeline_of_inference(tmp_path: Path, num_frames: int) -> None:
    import nibabel as nib

    path, pixels = write_clip(tmp_path / "clip.nii.gz", num_frames)
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
    steps = [Letterboxd("image", 32, keep_meta=True), NormaliseEchod("image", mean, std)]
    item = Compose([LoadEchod("image", sequences=True), *steps])({"image": path})
    assert item["is_sequence"] is True
    assert item["image"].shape == (num_frames, 3, 32, 32) and item["image"].dtype == torch.float32
    assert item["image"].meta["filename_or_obj"] == path
    assert item["spacing_mm"].tolist() == [1.5, 2.0]
    batch = next(iter(DataLoader(Dataset([item]), batch_size=1)))
    assert batch["image"].shape == (1, num_frames, 3, 32, 32)

    for t in range(num_frames):  # each frame as if it were a file of its own
        frame_path = str(tmp_path / "frame.nii.gz")
        nib.save(nib.Nifti1Image(pixels[t].T, np.diag([-2.0, -1.5, 1, 1])), frame_path)
        alone = Compose([LoadEchod("image"), *steps])({"image": frame_path})
        assert "is_sequence" not in alone and alone["image"].shape == (3, 32, 32)
        assert torch.equal(alone["image"].as_tensor(), item["image"][t].as_tensor())
        assert torch.equal(alone["geometry"], item["geometry"])


def test_sequence_without_being_asked_for_is_refused(tmp_path: Path) -> None:
    path, _ = write_clip(tmp_path / "clip.nii.gz", 5)
    with pytest.raises(ValueError, match="clip.nii.gz: expected one plane, got 5 of 48 rows .*set sequences: true"):
        LoadEchod("image")({"image": path})


def test_too_small_image_is_named(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((1, 1), np.uint8)).save(tmp_path / "dot.png")
    for sequences in (False, True):
        with pytest.raises(ValueError, match="dot.png: expected an image of at least 16 x 16 pixels, got 1 rows and 1"):
            LoadEchod("image", sequences)({"image": str(tmp_path / "dot.png")})


@pytest.mark.parametrize(("keep_aspect", "rows_with_image"), [(True, 16), (False, 32)])
def test_anisotropic_pixels_are_padded_or_squashed(tmp_path: Path, keep_aspect: bool, rows_with_image: int) -> None:
    import nibabel as nib

    # 100 rows of 0.2 mm and 100 columns of 0.4 mm: twice as wide as high, though as many pixels
    nib.save(nib.Nifti1Image(np.full((100, 100), 200, np.uint8), np.diag([0.4, 0.2, 1, 1])), tmp_path / "a.nii")
    item = Compose([LoadEchod("image"), Letterboxd("image", 32, keep_aspect=keep_aspect)])(
        {"image": tmp_path / "a.nii"}
    )
    is_image = (item["image"][0] == 200).all(dim=1)
    assert int(is_image.sum()) == rows_with_image
    assert not item["image"][0, ~is_image].any()


@pytest.mark.parametrize(
    ("view", "phase", "expected"),
    [
        ("apical_two_chamber", "end_diastole", 1),
        ("apical_two_chamber", "end_systole", 2),
        ("apical_four_chamber", "end_diastole", 3),
        ("apical_four_chamber", "end_systole", 4),
        ("apical_four_chamber", None, 0),
        (None, "end_systole", 0),
    ],
)
def test_class_of_view_and_phase(view: str | None, phase: str | None, expected: int) -> None:
    item = {key: word for key, word in (("view", view), ("phase", phase)) if word is not None}
    assert ViewPhaseClassd()(item) == {**item, "class_label": expected}
    assert ViewPhaseClassd()({"view": view, "phase": phase})["class_label"] == expected


def test_classes_of_a_batch_are_integers() -> None:
    items = [{"view": "apical_two_chamber", "phase": "end_systole"}, {}]
    batch = next(iter(DataLoader(Dataset(items, Compose([ViewPhaseClassd(), Keep()])), batch_size=2)))
    assert batch["class_label"].dtype == torch.int64 and batch["class_label"].tolist() == [2, 0]


class Keep:
    """Keep only the class, since a batch must have the same keys in each item."""

    def __call__(self, item: dict[str, int]) -> dict[str, int]:
        return {"class_label": item["class_label"]}


def test_unknown_view_is_refused() -> None:
    with pytest.raises(ValueError, match="view must be apical_two_chamber or apical_four_chamber, got 'parasternal'"):
        ViewPhaseClassd()({"view": "parasternal", "phase": "end_systole"})
