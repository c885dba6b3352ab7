"""Test the square that a network sees: geometry and grey levels, by hand."""

from __future__ import annotations

import pytest
import torch

from synboost_monai.letterbox import LetterboxGeometry, letterbox_geometry
from synboost_monai.transforms.array import letterbox_image, normalise_image, scale_to_bytes


def test_frames_of_a_sequence_share_one_scale() -> None:
    sequence = torch.stack([torch.full((40, 80), 1000.0), torch.full((40, 80), 3000.0), torch.zeros(40, 80)])
    geometry = letterbox_geometry((40, 80), (1.0, 1.0), 32)
    boxed = letterbox_image(sequence.to(torch.int16), geometry)
    assert boxed.shape == (3, 32, 32) and boxed.dtype == torch.uint8
    assert [boxed[t, 16, 16].item() for t in range(3)] == [85, 255, 0]
    assert (boxed[:, :8] == 0).all()


def test_sequence_is_boxed_as_its_frames_are() -> None:
    sequence = torch.randint(0, 256, (3, 50, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    geometry = letterbox_geometry((50, 40), (0.3, 0.2), 32)
    frames = [letterbox_image(frame[None].float(), geometry) for frame in sequence]
    assert torch.equal(letterbox_image(sequence, geometry), torch.cat(frames))


def test_geometry_by_hand() -> None:
    # 100 rows of 0.2 mm and 100 columns of 0.4 mm: 20 mm x 40 mm, so 32 x 64 pixels in a square of 64
    assert letterbox_geometry((1, 100, 100), (0.2, 0.4), 64) == LetterboxGeometry(100, 100, 32, 64, 16, 0, 64)
    assert letterbox_geometry((100, 50), (1.0, 1.0), 64, keep_aspect=False) == (100, 50, 64, 64, 0, 0, 64)
    assert letterbox_geometry((1, 1000), (1.0, 1.0), 64).inner_height == 1


def test_letterbox_keeps_brightness_and_pads_with_black() -> None:
    geometry = letterbox_geometry((40, 80), (1.0, 1.0), 32)
    boxed = letterbox_image(torch.full((1, 40, 80), 100.0), geometry)
    assert boxed.shape == (1, 32, 32) and boxed.dtype == torch.uint8
    assert (boxed[:, 8:24] == 100).all() and (boxed[:, :8] == 0).all() and (boxed[:, 24:] == 0).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 51, 255], [0, 51, 255]),
        ([0.0, 0.2, 1.0], [0, 51, 255]),
        ([-10, 0, 40], [0, 51, 255]),
        ([0, 100, 500], [0, 51, 255]),
        ([0, 819, 4095], [0, 51, 255]),  # 12 bits
        ([-1024, -409, 2051], [0, 51, 255]),  # int16
        ([-1.0, -0.6, 1.0], [0, 51, 255]),
        ([0, 1, 1], [0, 255, 255]),
    ],
)
def test_any_range_of_values_becomes_bytes(values: list[float], expected: list[float]) -> None:
    assert torch.allclose(scale_to_bytes(torch.tensor(values)), torch.tensor(expected, dtype=torch.float32), atol=1e-3)


def test_constant_image_is_no_division_by_zero() -> None:
    assert torch.isfinite(scale_to_bytes(torch.full((1, 4, 4), 700.0))).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.float64])
def test_bytes_stay_whatever_type_stores_them(dtype: torch.dtype) -> None:
    values = torch.tensor([0, 7, 200], dtype=dtype)
    assert scale_to_bytes(values).tolist() == [0, 7, 200]


def test_normalise_by_hand() -> None:
    image = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    channels = normalise_image(image, (0.5, 0.4, 0.2), (0.5, 0.2, 0.1))
    assert torch.allclose(channels, torch.tensor([[[-1.0, 1.0]], [[-2.0, 3.0]], [[-2.0, 8.0]]]))
