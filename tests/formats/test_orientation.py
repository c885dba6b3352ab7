"""Test images stored turned, mirrored, along another axis or in another unit: all look alike, and are written back in their own frame."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray

from synboost_monai.evaluation.handlers import write_spread
from synboost_monai.files import count_frames, read_frames, read_grid, read_plane
from synboost_monai.formats.grid import DisplayOrder, shown_affine, to_display, to_stored
from synboost_monai.letterbox import letterbox_geometry
from synboost_monai.transforms import LoadEchod, checked_items, display_order, load_echo, write_label_map
from synboost_monai.transforms.postprocessing import RestoreLabelMapd

SHAPE = (40, 30)
"""(H, W)."""
PIXELS = np.random.default_rng(0).integers(0, 250, SHAPE, dtype=np.uint8)
LABEL_MAP = np.zeros(SHAPE, np.uint8)
LABEL_MAP[5:20, 3:12], LABEL_MAP[22:30, 10:28], LABEL_MAP[30:38, 2:9] = 1, 2, 3
AFFINE = np.diag([-0.3, -0.2, 1.0, 1.0])
AFFINE[:3, 3] = 11, -7, 5
TURNS = [np.array(turn) for turn in itertools.product([[0, 1], [0, -1]], [[1, 1], [1, -1]])] + [
    np.array(turn) for turn in itertools.product([[1, 1], [1, -1]], [[0, 1], [0, -1]])
]
"""All ways to store two axes: nibabel's orientations (axis, direction)."""
SOLID_TURNS = [
    np.array([[axis, sign] for axis, sign in zip(axes, signs)])
    for axes in itertools.permutations(range(3))
    for signs in itertools.product([1, -1], repeat=3)
]
"""All 48 ways to store three axes."""


def turned(stored: NDArray[Any], affine: NDArray[np.float64], turn: NDArray[Any]) -> tuple[NDArray[Any], Any]:
    """Store an array (x, y, ...) another way, and return its affine, so that every pixel stays in its place in space."""
    full = np.array([*turn, *([axis, 1] for axis in range(len(turn), 3))])
    shape = [*stored.shape, 1][:3]
    return apply_orientation(stored, turn), affine @ inv_ornt_aff(full, shape)


def save(path: Path, stored: NDArray[Any], affine: NDArray[np.float64]) -> Path:
    nib.save(nib.Nifti1Image(stored, affine), path)
    return path


def check_comes_back(path: Path, turn: NDArray[Any], folder: Path) -> None:
    """Check that the image looks as before, and that written files match it: same shape and affine, same class at every place in space."""
    image, spacing_mm = load_echo(path)
    assert np.array_equal(image[0].numpy(), PIXELS) and spacing_mm == pytest.approx((0.2, 0.3))
    stored = nib.load(path)
    written = write_label_map(LABEL_MAP, path, folder / "out")
    spread = write_spread(LABEL_MAP.astype(np.float32) / 10, written, folder / "out_spread")
    expected = turned(LABEL_MAP.T.reshape(*LABEL_MAP.T.shape, *[1] * (len(turn) - 2)), AFFINE, turn)[0]
    for found, factor in ((nib.load(written), 1), (nib.load(spread), 10)):
        assert found.shape == stored.shape and np.array_equal(found.affine, stored.affine)
        assert np.allclose(np.asarray(found.dataobj) * factor, expected)
    assert np.array_equal(load_echo(written)[0][0].numpy(), LABEL_MAP)
    grid = read_grid(path)
    assert np.allclose(
        shown_affine(grid.affine, grid.volume_shape, grid.order)[:, [0, 1, 3]], AFFINE[:, [0, 1, 3]], atol=1e-5
    )


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_image_of_two_axes(tmp_path: Path, turn: NDArray[Any]) -> None:
    path = save(tmp_path / "a.nii.gz", *turned(PIXELS.T, AFFINE, turn))
    check_comes_back(path, turn, tmp_path)
    assert np.array_equal(read_plane(path).pixels, PIXELS)


@pytest.mark.parametrize("turn", SOLID_TURNS, ids=str)
def test_slice_along_any_axis(tmp_path: Path, turn: NDArray[Any]) -> None:
    check_comes_back(save(tmp_path / "a.nii", *turned(PIXELS.T[:, :, None], AFFINE, turn)), turn, tmp_path)


@pytest.mark.parametrize("turn", TURNS, ids=str)
@pytest.mark.parametrize("has_slice_axis", [False, True])
def test_sequence(tmp_path: Path, turn: NDArray[Any], has_slice_axis: bool) -> None:
    frames = np.stack([PIXELS, PIXELS // 2, PIXELS // 3])
    stored, affine = turned(frames.T, AFFINE, turn)
    path = save(tmp_path / "a.nii.gz", stored[:, :, None] if has_slice_axis else stored, affine)
    assert np.array_equal(load_echo(path, sequences=True)[0].numpy(), frames) and count_frames(path) == frames.shape
    label_maps = np.stack([LABEL_MAP, LABEL_MAP[::-1], LABEL_MAP[:, ::-1]])
    found = nib.load(write_label_map(label_maps, path, tmp_path / "out"))
    assert found.shape == nib.load(path).shape
    assert np.array_equal(np.asarray(found.dataobj).reshape(stored.shape), turned(label_maps.T, AFFINE, turn)[0])


def test_sequence_of_slices_along_the_first_axis(tmp_path: Path) -> None:
    frames = np.stack([PIXELS, PIXELS // 2, PIXELS // 3])
    affine = np.array([[0, -0.3, 0, 1], [0, 0, -0.2, 2], [1, 0, 0, 3], [0, 0, 0, 1.0]])
    path = save(tmp_path / "a.nii", frames.T[None], affine)  # (1, y, z, t)
    assert np.array_equal(load_echo(path, sequences=True)[0].numpy(), frames)
    found = nib.load(write_label_map(frames, path, tmp_path / "out"))
    assert np.array_equal(np.asarray(found.dataobj), frames.T[None])


@pytest.mark.parametrize("turn", TURNS, ids=str)
@pytest.mark.parametrize("output_format", ["same", "nifti"])
def test_metaimage(tmp_path: Path, turn: NDArray[Any], output_format: str) -> None:
    import itk

    stored, affine = turned(PIXELS.T, AFFINE, turn)
    image = itk.image_from_array(np.ascontiguousarray(stored.T[None]))
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    steps = np.linalg.norm(to_lps[:3, :3], axis=0)
    image.SetSpacing(steps.tolist())
    image.SetOrigin(to_lps[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(to_lps[:3, :3] / steps))
    itk.imwrite(image, str(tmp_path / "a.mha"))
    shown, spacing_mm = load_echo(tmp_path / "a.mha")
    assert np.array_equal(shown[0].numpy(), PIXELS) and spacing_mm == pytest.approx((0.2, 0.3))
    written = write_label_map(LABEL_MAP, tmp_path / "a.mha", tmp_path / "out", output_format)
    expected = turned(LABEL_MAP.T, AFFINE, turn)[0]
    if output_format == "nifti":
        found = nib.load(written)
        assert np.array_equal(np.asarray(found.dataobj), expected) and np.allclose(found.affine, affine)
    else:
        again = itk.imread(str(written))
        assert np.array_equal(itk.array_from_image(again)[0], expected.T)
        assert np.allclose(again.GetOrigin(), image.GetOrigin())


# ---- what says nothing stays as it is stored


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([0.3, 0.2, 1, 1]), np.diag([-0.3, -0.2, 1, 1])], ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_spacing_alone_turns_nothing(tmp_path: Path, affine: NDArray[np.float64], axis: int) -> None:
    path = save(tmp_path / "a.nii", np.expand_dims(PIXELS.T, axis), affine)
    assert np.array_equal(load_echo(path)[0][0].numpy(), PIXELS)


def test_affine_without_a_code_turns_nothing(tmp_path: Path) -> None:
    image = nib.Nifti1Image(PIXELS.T, None)
    image.header.set_zooms((0.3, 0.2))
    nib.save(image, tmp_path / "a.nii")
    assert int(nib.load(tmp_path / "a.nii").header["sform_code"]) == 0
    image, spacing_mm = load_echo(tmp_path / "a.nii")
    assert np.array_equal(image[0].numpy(), PIXELS) and spacing_mm == pytest.approx((0.2, 0.3))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_affine_that_is_none_turns_nothing(tmp_path: Path, value: float) -> None:
    image = nib.Nifti1Image(PIXELS.T, AFFINE)
    nib.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[280:328] = np.full(12, value, "<f4").tobytes()  # srow_x, srow_y, srow_z
    (tmp_path / "a.nii").write_bytes(content)
    assert np.array_equal(read_frames(tmp_path / "a.nii").pixels[0], PIXELS)


def test_label_map_that_does_not_say_how_it_lies_lies_as_its_image(tmp_path: Path) -> None:
    stored, affine = turned(PIXELS.T, AFFINE, np.array([[1, -1], [0, 1]]))
    image = save(tmp_path / "a.nii.gz", stored, affine)
    label = save(tmp_path / "a_gt.nii.gz", turned(LABEL_MAP.T, AFFINE, np.array([[1, -1], [0, 1]]))[0], np.eye(4))
    item = LoadEchod(keys=["image", "label"])({"image": str(image), "label": str(label)})
    assert np.array_equal(item["image"][0].numpy(), PIXELS) and np.array_equal(item["label"][0].numpy(), LABEL_MAP)
    assert checked_items([{"image": str(image), "label": str(label)}])


# ---- units


@pytest.mark.parametrize(("unit", "scale"), [("mm", 1), ("micron", 1000), ("meter", 0.001), ("unknown", 1)])
def test_units_give_the_same_millimetres(tmp_path: Path, unit: str, scale: float) -> None:
    affine = AFFINE.copy()
    affine[:3] *= scale
    image = nib.Nifti1Image(PIXELS.T[:, :, None], affine)
    image.header.set_xyzt_units(unit, "msec")
    nib.save(image, tmp_path / "a.nii.gz")
    shown, spacing_mm = load_echo(tmp_path / "a.nii.gz")
    assert spacing_mm == pytest.approx((0.2, 0.3)) and np.allclose(shown.affine, AFFINE, atol=1e-5)
    assert read_plane(tmp_path / "a.nii.gz").spacing_mm == pytest.approx((0.2, 0.3))
    found = nib.load(write_label_map(LABEL_MAP, tmp_path / "a.nii.gz", tmp_path / "out"))
    assert np.array_equal(found.affine, nib.load(tmp_path / "a.nii.gz").affine)
    assert found.header.get_xyzt_units() == (unit, "msec")
    assert load_echo(tmp_path / "out.nii.gz")[1] == pytest.approx((0.2, 0.3))


def test_unit_code_that_nobody_knows_counts_as_mm(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", PIXELS.T, AFFINE)
    content = bytearray(path.read_bytes())
    content[123] = 7
    path.write_bytes(content)
    assert load_echo(path)[1] == pytest.approx((0.2, 0.3))


# ---- one pair of functions


ORDERS = [
    DisplayOrder(column, row, *flips)
    for column, row in itertools.permutations(range(3), 2)
    for flips in itertools.product([False, True], repeat=2)
]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_display_and_back(order: DisplayOrder) -> None:
    volume = np.arange(24).reshape(2, 3, 4)
    shown = to_display(volume, order)
    assert np.array_equal(to_stored(shown, order), volume)
    assert np.array_equal(to_display(torch.from_numpy(volume), order).numpy(), shown)
    assert np.array_equal(to_stored(torch.from_numpy(shown.copy()), order).numpy(), volume)
    affine = np.vstack([np.random.default_rng(0).normal(size=(3, 4)), [0, 0, 0, 1]])
    place = shown_affine(affine, volume.shape, order) @ [1, 2 % shown.shape[1], 1 % shown.shape[0], 1]
    where = np.argwhere(volume == shown[1 % shown.shape[0], 2 % shown.shape[1], 1])[0]
    assert np.allclose(place, affine @ [*where, 1])


@pytest.mark.parametrize("turn", [SOLID_TURNS[0], SOLID_TURNS[21], SOLID_TURNS[46]], ids=str)
def test_monai_label_gets_the_volume_of_the_file(tmp_path: Path, turn: NDArray[Any]) -> None:
    """MONAI Label writes `pred` with the affine of the meta data: same array and place as the file that `segment` writes."""
    path = save(tmp_path / "a.nii", *turned(PIXELS.T[:, :, None], AFFINE, turn))
    item = LoadEchod(keys="image")({"image": str(path)})
    geometry = letterbox_geometry(item["image"].shape, item["spacing_mm"].tolist(), 64, True)
    logits = torch.randn((3, 64, 64), generator=torch.Generator().manual_seed(0))
    found = RestoreLabelMapd()({**item, "pred": logits, "geometry": torch.tensor(geometry)})["pred"]
    written = nib.load(write_label_map(display_order(found), path, tmp_path / "out"))
    assert isinstance(found, MetaTensor) and np.array_equal(found[0].numpy(), np.asarray(written.dataobj))
    assert np.allclose(found.affine, written.affine) and found.meta["spatial_shape"].tolist() == list(written.shape)
