"""Test the way from files to the square and back onto the files: positions, values, messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from synboost_monai.letterbox import letterbox_geometry
from synboost_monai.structures import STRUCTURES
from synboost_monai.transforms.array import letterbox_label_map, masks_of_label_map
from synboost_monai.transforms.files import (
    MIN_IMAGE_SIDE,
    check_image_size,
    check_label_map,
    checked_items,
    load_echo,
    write_label_map,
)
from synboost_monai.transforms.postprocessing import logits_to_label_map, restore_logits
from tests.clips import moving_block, write_clip

SHAPE = (118, 150)
"""Native (H, W): not square, not even multiples of anything."""


def known_label_map() -> NDArray[np.uint8]:
    """Return a label map that every flip or transposition changes."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    label_map = np.zeros(SHAPE, np.uint8)
    label_map[((rows - 45) / 38) ** 2 + ((columns - 50) / 30) ** 2 < 1] = 2
    label_map[((rows - 45) / 28) ** 2 + ((columns - 50) / 20) ** 2 < 1] = 1
    label_map[((rows - 95) / 14) ** 2 + ((columns - 90) / 25) ** 2 < 1] = 3
    return label_map


def write_image(path: Path, pixels: NDArray[np.uint8], kind: str) -> Path:
    """Write an image (H, W) in one of the forms that occur."""
    import itk
    import nibabel as nib
    from PIL import Image

    oblique = np.array([[-0.3, 0.05, 0, 12.0], [0.02, -0.4, 0, -7.0], [0, 0, 1, 3.0], [0, 0, 0, 1]])
    if kind == "nifti":
        nib.save(nib.Nifti1Image(pixels.T, np.diag([-0.154, -0.308, 1, 1])), path.with_suffix(".nii.gz"))
        return path.with_suffix(".nii.gz")
    if kind == "nifti_volume":
        nib.save(nib.Nifti1Image(pixels.T[:, :, None].astype(np.float32), oblique), path.with_suffix(".nii"))
        return path.with_suffix(".nii")
    if kind.startswith("metaimage"):
        image = itk.image_from_array(pixels[None] if kind == "metaimage_volume" else pixels)
        image.SetSpacing([0.308, 0.154, 1.54][: image.GetImageDimension()])
        image.SetOrigin([5.0, -3.0, 2.0][: image.GetImageDimension()])
        itk.imwrite(image, str(path.with_suffix(".mhd")))
        return path.with_suffix(".mhd")
    Image.fromarray(pixels).convert("RGB" if kind == "png_colour" else "L").save(path.with_suffix(".png"))
    return path.with_suffix(".png")


KINDS = ("nifti", "nifti_volume", "metaimage", "metaimage_volume", "png", "png_colour")


def dice(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep_aspect", [True, False])
def test_label_map_comes_back_onto_its_image(tmp_path: Path, kind: str, keep_aspect: bool) -> None:
    label_map = known_label_map()
    image_path = write_image(tmp_path / "case", label_map * 60, kind)
    image, spacing_mm = load_echo(image_path)
    assert np.array_equal(image[0].numpy(), label_map * 60.0)

    geometry = letterbox_geometry(image.shape, spacing_mm, 256, keep_aspect)
    square = letterbox_label_map(torch.from_numpy(label_map)[None], geometry)
    logits = masks_of_label_map(square) * 20 - 10
    found = logits_to_label_map(restore_logits(logits, geometry))
    written = write_label_map(found, image_path, tmp_path / "out" / "case")

    again, spacing_again = load_echo(written)
    for structure in STRUCTURES:
        assert dice(again[0].numpy() == structure.class_index, label_map == structure.class_index) > 0.99
    assert dice(again[0].numpy() > 0, label_map > 0) > 0.99
    assert spacing_again == spacing_mm
    assert torch.equal(again.affine, image.affine)


def test_nifti_keeps_header(tmp_path: Path) -> None:
    import nibabel as nib

    image_path = write_image(tmp_path / "case", known_label_map(), "nifti_volume")
    image = nib.load(image_path)
    label_map = nib.load(write_label_map(known_label_map(), image_path, tmp_path / "out"))
    assert label_map.shape == image.shape == (150, 118, 1)
    assert label_map.get_data_dtype() == np.uint8
    assert np.array_equal(label_map.affine, image.affine)
    for code in ("sform_code", "qform_code", "xyzt_units", "pixdim"):
        assert np.array_equal(label_map.header[code], image.header[code])
    assert np.array_equal(np.asarray(label_map.dataobj)[:, :, 0].T, known_label_map())


def test_metaimage_keeps_frame_of_the_first_release(tmp_path: Path) -> None:
    import itk

    image_path = write_image(tmp_path / "case", known_label_map(), "metaimage_volume")
    written = write_label_map(known_label_map(), image_path, tmp_path / "out")
    image, label_map = itk.imread(str(image_path)), itk.imread(str(written))
    assert written.suffix == ".mha"
    for what in ("GetSpacing", "GetOrigin"):
        assert list(getattr(label_map, what)()) == list(getattr(image, what)())
    assert np.array_equal(itk.array_from_image(label_map)[0], known_label_map())


def test_png_as_nifti(tmp_path: Path) -> None:
    image_path = write_image(tmp_path / "case", known_label_map(), "png")
    written = write_label_map(known_label_map(), image_path, tmp_path / "out", "nifti")
    assert written.name == "out.nii.gz"
    assert np.array_equal(load_echo(written)[0][0].numpy(), known_label_map())


def test_meta_data_serves_monai_label(tmp_path: Path) -> None:
    image, _ = load_echo(write_image(tmp_path / "case", known_label_map(), "nifti"))
    assert image.meta["spatial_shape"].tolist() == [150, 118, 1]
    assert np.allclose(image.affine, np.diag([-0.154, -0.308, 1, 1]))


# ---- sequences


NUM_FRAMES = 4


def known_sequence() -> NDArray[np.uint8]:
    """Return label maps (T, H, W) that differ from frame to frame."""
    return np.stack([np.roll(known_label_map(), 3 * t, axis=1) for t in range(NUM_FRAMES)])


def write_sequence(path: Path, pixels: NDArray[np.uint8], form: str) -> Path:
    """Write (T, H, W) in one of the forms that occur; a frame lasts 25 ms."""
    import itk
    import nibabel as nib

    if form.startswith("metaimage"):
        array = pixels[:, None] if form == "metaimage x y 1 t" else pixels
        image = itk.image_from_array(np.ascontiguousarray(array))
        image.SetSpacing([0.308, 0.154, *([1.0] if array.ndim == 4 else []), 25.0])
        image.SetOrigin([5.0, -3.0, 2.0, 0.0][: array.ndim])
        itk.imwrite(image, str(path.with_suffix(".mha")))
        return path.with_suffix(".mha")
    stored = pixels.T if form == "x y t" else pixels.T[:, :, None]
    if form == "colour":
        stored = np.repeat(stored[..., None], 3, axis=-1)
    image = nib.Nifti1Image(stored, np.diag([-0.308, -0.154, 1, 1]))
    image.header.set_zooms((0.308, 0.154, 25.0) if form == "x y t" else (0.308, 0.154, 1.0, 25.0, 1.0)[: stored.ndim])
    image.header.set_xyzt_units("mm", "msec")
    nib.save(image, path.with_suffix(".nii.gz"))
    return path.with_suffix(".nii.gz")


SEQUENCE_FORMS = ("x y t", "x y 1 t", "colour", "metaimage", "metaimage x y 1 t")


@pytest.mark.parametrize("form", SEQUENCE_FORMS)
def test_label_maps_come_back_onto_their_sequence(tmp_path: Path, form: str) -> None:
    import itk
    import nibabel as nib

    label_maps = known_sequence()
    image_path = write_sequence(tmp_path / "case", label_maps * 60, form)
    image, spacing_mm = load_echo(image_path, sequences=True)
    assert image.shape == (NUM_FRAMES, *SHAPE) and image.dtype == torch.uint8
    assert np.array_equal(image.numpy(), label_maps * 60)
    assert spacing_mm == pytest.approx((0.154, 0.308))
    assert image.meta["spatial_shape"].tolist() == [SHAPE[1], SHAPE[0], NUM_FRAMES]

    written = write_label_map(label_maps, image_path, tmp_path / "out")
    again, spacing_again = load_echo(written, sequences=True)
    assert np.array_equal(again.numpy(), label_maps) and spacing_again == spacing_mm
    assert torch.allclose(again.affine, image.affine)
    if form.startswith("metaimage"):
        for what in ("GetSpacing", "GetOrigin"):
            here, there = itk.imread(str(image_path)), itk.imread(str(written))
            assert list(getattr(here, what)()) == list(getattr(there, what)())
        return
    here, there = nib.load(image_path), nib.load(written)
    assert there.shape == (here.shape[:-1] if form == "colour" else here.shape)
    assert there.header.get_zooms() == here.header.get_zooms()[: len(there.shape)]
    assert there.header.get_zooms()[-1] == 25.0
    assert there.header.get_xyzt_units() == ("mm", "msec")


def test_label_maps_of_a_metaimage_sequence_as_nifti(tmp_path: Path) -> None:
    import nibabel as nib

    image_path = write_sequence(tmp_path / "case", known_sequence() * 60, "metaimage")
    written = nib.load(write_label_map(known_sequence(), image_path, tmp_path / "out", "nifti"))
    assert written.shape == (SHAPE[1], SHAPE[0], NUM_FRAMES)
    assert written.header.get_zooms() == pytest.approx((0.308, 0.154, 25.0))
    assert np.array_equal(np.asarray(written.dataobj).T, known_sequence())


@pytest.mark.parametrize("kind", KINDS)
def test_single_plane_is_a_sequence_of_one(tmp_path: Path, kind: str) -> None:
    image_path = write_image(tmp_path / "case", known_label_map() * 60, kind)
    image, spacing_mm = load_echo(image_path, sequences=True)
    alone, spacing_alone = load_echo(image_path)
    assert image.shape == (1, *SHAPE) and torch.equal(image.as_tensor().float(), alone.as_tensor())
    assert spacing_mm == spacing_alone and torch.equal(image.affine, alone.affine)
    written = write_label_map(known_label_map()[None], image_path, tmp_path / "three_axes")
    expected = write_label_map(known_label_map(), image_path, tmp_path / "two_axes")
    assert torch.equal(load_echo(written)[0].as_tensor(), load_echo(expected)[0].as_tensor())


@pytest.mark.parametrize("form", SEQUENCE_FORMS)
def test_label_map_of_another_number_of_frames_is_not_written(tmp_path: Path, form: str) -> None:
    image_path = write_sequence(tmp_path / "case", known_sequence(), form)
    for wrong in (known_sequence()[:-1], known_label_map()):
        with pytest.raises(ValueError, match="image is .* but the label map to write is"):
            write_label_map(wrong, image_path, tmp_path / "out" / "case")
    assert not list(tmp_path.glob("out/*"))
    png = write_image(tmp_path / "case", known_label_map(), "png")
    with pytest.raises(ValueError, match="a PNG holds one plane, but the label map to write has 4 frames"):
        write_label_map(known_sequence(), png, tmp_path / "out" / "case")


def test_label_maps_of_clips_are_nifti_over_time(tmp_path: Path) -> None:
    pytest.importorskip("av")
    clip = write_clip(tmp_path / "clip.avi", moving_block((4, 40, 52)))
    image, spacing_mm = load_echo(clip, sequences=True)
    assert image.shape == (4, 40, 52) and image.dtype == torch.uint8 and spacing_mm == (1.0, 1.0)
    assert image.meta["spatial_shape"].tolist() == [52, 40, 4] and not image.meta["is_calibrated"]
    label_map = np.random.default_rng(0).integers(0, 4, (4, 40, 52), np.uint8)
    for output_format in ("same", "nifti"):
        written = write_label_map(label_map, clip, tmp_path / "out" / output_format, output_format)
        assert written.name == f"{output_format}.nii.gz"
        again = load_echo(written, sequences=True)[0]
        assert np.array_equal(np.asarray(again), label_map)


def test_items_with_sequences(tmp_path: Path) -> None:
    clip = write_sequence(tmp_path / "clip", known_sequence() * 60, "x y t")
    (tmp_path / "labels").mkdir()
    label = write_label_map(known_sequence(), clip, tmp_path / "labels" / "clip_gt")
    still = write_image(tmp_path / "still", known_label_map(), "png")
    items = [{"image": str(clip), "label": str(label)}, {"image": str(still)}]
    assert [item["case"] for item in checked_items(items, sequences=True)] == ["clip", "still"]
    with pytest.raises(ValueError, match=r"clip.nii.gz: expected one plane, got 4 .*set sequences: true"):
        checked_items(items)
    short = write_sequence(tmp_path / "labels" / "short", known_sequence()[:3], "x y t")
    with pytest.raises(ValueError, match="short.nii.gz: the image has 4 frames but the label map has 3"):
        checked_items([{"image": str(clip), "label": str(short)}], sequences=True)


# ---- bad files


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    image_path = write_image(tmp_path / "case", known_label_map(), "nifti")
    with pytest.raises(ValueError, match="image is .* but the label map"):
        write_label_map(known_label_map().T, image_path, tmp_path / "out" / "case")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("name", ["note.png", "note.nii.gz", "note.mhd", "note.nii"])
def test_file_that_is_no_image_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("not an image")
    with pytest.raises(ValueError, match=name) as error:
        load_echo(path)
    assert "\n" not in str(error.value)


def test_missing_png_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        load_echo(tmp_path / "nowhere.png")


def test_deep_png_keeps_its_values(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    assert np.array_equal(load_echo(tmp_path / "deep.png")[0][0].numpy(), pixels)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 15, 200), (1, 200, 15)])
def test_too_small_image_is_refused(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    with pytest.raises(
        ValueError, match=rf"a.png: expected an image of at least 16 x 16 pixels, got {shape[1]} rows and"
    ):
        check_image_size(torch.zeros(shape), "a.png")
    path = write_image(tmp_path / "a", np.zeros(shape[1:], np.uint8), "png")
    with pytest.raises(ValueError, match="a.png: expected an image of at least"):
        checked_items([{"image": str(path)}])
    check_image_size(torch.zeros(1, MIN_IMAGE_SIDE, MIN_IMAGE_SIDE), "a.png")


def test_image_with_nan_is_refused_before_the_work_begins(tmp_path: Path) -> None:
    import nibabel as nib

    pixels = np.zeros((40, 30), np.float32)
    pixels[2, 3] = np.nan
    nib.save(nib.Nifti1Image(pixels, np.eye(4)), tmp_path / "bad.nii.gz")
    with pytest.raises(ValueError, match="bad.nii.gz: .* 1 of 1200 pixels that are NaN or infinite"):
        checked_items([{"image": str(tmp_path / "bad.nii.gz")}])


def test_label_map_with_a_fifth_class_is_refused() -> None:
    label_map = torch.zeros(1, 4, 4)
    label_map[0, 0, 0] = 4
    with pytest.raises(ValueError, match=r"a_gt.nii.gz: expected a label map with classes 0 background.*got \[4\]"):
        check_label_map(label_map, (1, 4, 4), "a_gt.nii.gz")


def test_shapes_of_image_and_label_map_are_compared() -> None:
    with pytest.raises(ValueError, match=r"image is \(4, 5\) but label map is \(4, 4\)"):
        check_label_map(torch.zeros(1, 4, 4), (1, 4, 5), "a_gt.nii.gz")


def test_cases_of_the_same_name_stay_apart(tmp_path: Path) -> None:
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(write_image(tmp_path / folder / "frame", known_label_map(), "png"))
    items = checked_items([{"image": str(p)} for p in paths])
    assert [item["case"] for item in items] == ["a_frame", "b_frame"]


def test_bad_file_is_found_before_the_work_begins(tmp_path: Path) -> None:
    good = write_image(tmp_path / "good", known_label_map(), "png")
    (tmp_path / "bad.png").write_text("not an image")
    with pytest.raises(ValueError, match="bad.png: not a readable PNG"):
        checked_items([{"image": str(good)}, {"image": str(tmp_path / "bad.png")}])
    with pytest.raises(ValueError, match="has no label map"):
        checked_items([{"image": str(good)}], needs_label=True)
