"""Test ultrasound DICOM in MONAI's pipelines, and label maps back on the whole frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose

from synboost_monai.dicom.writing.image import write_dicom_pair
from synboost_monai.records import EchoRecord
from synboost_monai.transforms import (
    Letterboxd,
    LoadEchod,
    RestoreFullFramed,
    RestoreLabelMapd,
    checked_items,
    display_order,
)

FULL = (70, 90)
BOX = (5, 12, 60, 64)
"""First row, first column, rows and columns of the region."""


def write_clip(path: Path, num_frames: int = 3, spacing_mm: tuple[float, float] = (0.5, 0.8), **changes) -> np.ndarray:
    """Write an ultrasound clip with a region in a larger frame, and return its frames."""
    rows, columns = np.mgrid[: FULL[0], : FULL[1]]
    frames = np.stack([(2 * rows + columns + 5 * t) % 256 for t in range(num_frames)]).astype(np.uint8)
    record = EchoRecord(path, path.with_suffix(".label"), "p", "apical_four_chamber", sex="female", age=64)
    write_dicom_pair(record, frames[0], np.zeros(FULL), spacing_mm, name="clip")
    dataset = pydicom.dcmread(path)
    if num_frames > 1:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
        dataset.NumberOfFrames, dataset.FrameTime = num_frames, 20
    (region,) = dataset.SequenceOfUltrasoundRegions
    region.RegionLocationMinY0, region.RegionLocationMinX0 = BOX[:2]
    region.RegionLocationMaxY1, region.RegionLocationMaxX1 = BOX[0] + BOX[2] - 1, BOX[1] + BOX[3] - 1
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    pixels = frames.tobytes()
    dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
    dataset.save_as(path)
    return frames


def crop(frames: np.ndarray) -> np.ndarray:
    return frames[..., BOX[0] : BOX[0] + BOX[2], BOX[1] : BOX[1] + BOX[3]]


def test_clip_comes_in_display_order_with_all_that_is_known(tmp_path: Path):
    path = tmp_path / "clip.dcm"
    frames = write_clip(path)
    item = LoadEchod("image", sequences=True)({"image": str(path), "sex": "male"})
    image = item["image"]
    assert isinstance(image, MetaTensor) and image.dtype == torch.uint8
    np.testing.assert_array_equal(image.as_tensor().numpy(), crop(frames))
    assert item["spacing_mm"].tolist() == pytest.approx([0.5, 0.8]) and item["is_calibrated"] is True
    assert (item["view"], item["sex"], item["age"]) == ("apical_four_chamber", "male", 64)  # what was there stays
    assert item["is_sequence"] is True and image.meta["filename_or_obj"] == str(path)
    assert image.meta["spatial_shape"].tolist() == [BOX[3], BOX[2], 3]
    assert image.meta["frame_times_ms"].tolist() == [0, 20, 40]
    assert image.meta["region"].tolist() == list(BOX) and image.meta["full_shape"].tolist() == list(FULL)
    assert image.meta["sop_instance_uid"] == pydicom.dcmread(path).SOPInstanceUID
    first_pixel = image.affine @ torch.tensor([0, 0, 0, 1.0], dtype=image.affine.dtype)
    assert first_pixel[:2].tolist() == pytest.approx([-0.8 * BOX[1], -0.5 * BOX[0]])  # within the frame


def test_a_still_image_is_float_and_without_times(tmp_path: Path):
    path = tmp_path / "still.dcm"
    frames = crop(write_clip(path, num_frames=1))
    one = LoadEchod("image")({"image": path})
    assert one["image"].dtype == torch.float32 and "is_sequence" not in one
    np.testing.assert_array_equal(one["image"].as_tensor().numpy(), frames)
    assert one["image"].meta["frame_times_ms"].tolist() == []


def test_what_cannot_be_loaded_says_why(tmp_path: Path):
    path = tmp_path / "clip.dcm"
    write_clip(path)
    with pytest.raises(ValueError, match="clip.dcm: expected one frame, got 3; set sequences"):
        LoadEchod("image")({"image": path})
    write_clip(path, NumberOfFrames=9)
    with pytest.raises(ValueError, match="clip.dcm: the pixel data end early"):
        LoadEchod("image", sequences=True)({"image": path})


def test_image_without_scale_is_loaded_all_the_same(tmp_path: Path):
    path = tmp_path / "clip.dcm"
    write_clip(path, num_frames=1, SequenceOfUltrasoundRegions=[], PatientSex="", PatientAge=None, ViewCodeSequence=[])
    item = LoadEchod("image")({"image": path})
    assert item["spacing_mm"].tolist() == [1, 1] and item["is_calibrated"] is False
    assert "no ultrasound region" in item["image"].meta["calibration_problem"]
    assert item["image"].shape == (1, *FULL) and not {"sex", "age"} & item.keys()


def test_label_map_returns_to_its_place_in_the_frame(tmp_path: Path):
    path = tmp_path / "clip.dcm"
    write_clip(path)
    label_map = np.random.default_rng(0).integers(0, 4, (3, BOX[2], BOX[3])).astype(np.uint8)
    item = LoadEchod("image", sequences=True)({"image": path})
    stored = MetaTensor(torch.from_numpy(label_map).permute(2, 1, 0)[None], meta=dict(item["image"].meta))
    full = RestoreFullFramed("pred")({**item, "pred": stored})["pred"]
    assert full.shape == (1, FULL[1], FULL[0], 3) and full.dtype == torch.uint8
    shown = display_order(full).numpy()
    np.testing.assert_array_equal(crop(shown), label_map)
    assert shown.sum() == label_map.sum()  # background around it
    assert full.affine[:2, 3].tolist() == [0, 0] and full.affine[0, 0] == pytest.approx(-0.8)
    assert full.meta["spatial_shape"].tolist() == [FULL[1], FULL[0], 3]
    with pytest.raises(ValueError, match=r"pred is \(70, 90\) but the region of its image is \(60, 64\)"):
        RestoreFullFramed("pred")({**item, "pred": full})
    other = {"image": MetaTensor(torch.zeros(1, 4, 4)), "pred": stored}
    assert RestoreFullFramed("pred")(other)["pred"] is stored  # not from DICOM


def test_the_way_through_a_network_and_back(tmp_path: Path):
    path = tmp_path / "clip.dcm"
    write_clip(path)
    load = Compose([LoadEchod("image", sequences=True), Letterboxd("image", size=64, keep_meta=True)])
    item = load({"image": str(path)})
    assert item["image"].shape == (3, 64, 64)
    logits = torch.full((3, 3, 64, 64), -5.0)
    logits[:, 0, 30:34, 30:34] = 5  # the middle of the square is the middle of the region
    item["pred"] = logits
    item = Compose([RestoreLabelMapd(keys="pred"), RestoreFullFramed("pred")])(item)
    found = np.argwhere(display_order(item["pred"]).numpy()[1] == 1)
    middle = BOX[0] + BOX[2] / 2 - 0.5, BOX[1] + BOX[3] / 2 - 0.5
    np.testing.assert_allclose(found.mean(axis=0), middle, atol=0.6)


def test_items_can_be_batched(tmp_path: Path):
    paths = [tmp_path / f"{number}.dcm" for number in range(2)]
    for path in paths:
        write_clip(path)
    load = LoadEchod("image", sequences=True)
    batch = list_data_collate([load({"image": str(path)}) for path in paths])
    assert batch["image"].shape == (2, 3, BOX[2], BOX[3])


def test_label_maps_of_the_whole_frame_are_cropped_with_their_image(tmp_path: Path):
    import nibabel as nib

    frame = crop(write_clip(tmp_path / "still.dcm", num_frames=1))
    label_map = np.zeros(FULL, np.uint8)
    label_map[10:40, 20:50] = 2
    nib.save(nib.Nifti1Image(label_map.T, np.diag([-0.8, -0.5, 1, 1])), tmp_path / "still_gt.nii.gz")
    item = {"image": str(tmp_path / "still.dcm"), "label": str(tmp_path / "still_gt.nii.gz")}
    assert checked_items([item], needs_label=True)[0]["case"] == "still"
    loaded = LoadEchod(["image", "label"])(item)
    np.testing.assert_array_equal(loaded["image"].as_tensor().numpy(), frame)
    np.testing.assert_array_equal(loaded["label"].as_tensor().numpy()[0], crop(label_map))
    assert loaded["spacing_mm"].tolist() == pytest.approx([0.5, 0.8]) and loaded["view"] == "apical_four_chamber"
    nib.save(nib.Nifti1Image(label_map.T[:-1], np.eye(4)), tmp_path / "still_gt.nii.gz")
    with pytest.raises(ValueError, match=r"image is \(70, 90\) but label map is \(70, 89\)"):
        checked_items([item], needs_label=True)
