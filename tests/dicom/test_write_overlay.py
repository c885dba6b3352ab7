"""Test clips with outlines as DICOM Secondary Capture, and as PNG; the sector alone."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import generate_frames

from synboost_monai.dicom.reading.sector import find_sector, sample_indices
from synboost_monai.dicom.uids import EXPLICIT, JPEG_BASELINE
from synboost_monai.dicom.writing import overlay
from synboost_monai.dicom.writing.objects import MANUFACTURER
from synboost_monai.dicom.writing.overlay import (
    JPEG_QUALITY,
    MULTI_FRAME_SECONDARY_CAPTURE,
    Display,
    draw_outlines,
    write_overlay,
    write_overlay_png,
)
from synboost_monai.structures import STRUCTURES
from tests.dicom import writing_fixtures as fixtures

ROWS, COLUMNS = 120, 160
CLIP = fixtures.moving_clip()
SECTOR = fixtures.fan()
LABELS = np.zeros(CLIP.shape, np.uint8)
LABELS[:, 40:70, 70:90], LABELS[:, 30:40, 65:95], LABELS[:, 75:100, 70:95] = 1, 2, 3


def write(path: Path, windows=None, numbers=range(1, 13), source=None, is_jpeg: bool = False, **shown) -> Path:
    source = fixtures.ultrasound(len(CLIP), ROWS, COLUMNS) if source is None else source
    windows = [(CLIP, LABELS)] if windows is None else windows
    largest = 1 << 16 if is_jpeg else overlay.MAX_PLAIN_BYTES
    with mock.patch.object(overlay, "MAX_PLAIN_BYTES", largest):
        write_overlay(source, windows, numbers, path, display=Display(SECTOR, **shown), provenance=fixtures.PROVENANCE)
    return path


def test_pixels_come_back_black_outside_and_outlined_inside(tmp_path: Path):
    dataset = pydicom.dcmread(write(tmp_path / "o.dcm"))
    pictures = dataset.pixel_array
    assert pictures.shape == (12, ROWS, COLUMNS, 3) and dataset.PhotometricInterpretation == "RGB"
    assert not pictures[:, ~SECTOR].any()  # the name in the corner and the scale are gone
    for picture, grey, labels in zip(pictures, CLIP, LABELS):
        np.testing.assert_array_equal(picture, draw_outlines(grey, labels, SECTOR))
    np.testing.assert_array_equal(pictures[:, 55, 80], np.repeat(CLIP[:, 55, 80, None], 3, axis=1))  # within: untouched
    for structure, (y, x) in zip(STRUCTURES, [(40, 75), (30, 80), (99, 80)]):
        assert tuple(pictures[3, y, x]) == structure.colour
    assert (dataset.ConversionType, dataset.Modality) == ("WSD", "US")


def test_a_clip_is_ultrasound_and_frames_without_times_are_captures(tmp_path: Path):
    clip = pydicom.dcmread(write(tmp_path / "o.dcm", frame_times_ms=np.arange(12) * 33.3))
    # OHIF takes a secondary capture of 90 frames or more for a video, and stays black
    assert clip.SOPClassUID == fixtures.ULTRASOUND_CLIP and "ConversionType" not in clip
    pages = pydicom.dcmread(write(tmp_path / "p.dcm"))
    assert pages.SOPClassUID == MULTI_FRAME_SECONDARY_CAPTURE
    for dataset in (clip, pages):  # so that no run takes them for an input
        assert (dataset.Manufacturer, list(dataset.ImageType)) == (MANUFACTURER, ["DERIVED", "SECONDARY"])


def test_jpeg_keeps_outlines_and_grey_and_counts_as_another_object(tmp_path: Path):
    plain, coded = (pydicom.dcmread(write(tmp_path / "o.dcm", is_jpeg=is_jpeg)) for is_jpeg in (False, True))
    assert (plain.file_meta.TransferSyntaxUID, plain.LossyImageCompression) == (EXPLICIT, "00")
    assert coded.file_meta.TransferSyntaxUID == JPEG_BASELINE
    # speckle from one pixel to the next; a real clip gives a twentieth
    assert len(coded.PixelData) < len(plain.PixelData) / 2
    assert coded.SOPInstanceUID != plain.SOPInstanceUID and coded.PhotometricInterpretation == "YBR_FULL_422"
    assert f"quality {JPEG_QUALITY}" in coded.DerivationDescription
    smooth = np.full_like(CLIP, 60)
    path = write(tmp_path / "smooth.dcm", [(smooth, LABELS)], is_jpeg=True, frame_times_ms=np.arange(12) * 33.3)
    pictures = pydicom.dcmread(path).pixel_array.astype(int)
    assert pictures.shape == (12, ROWS, COLUMNS, 3) and pictures[:, :12, :40].max() < 3  # the name in the corner
    assert np.abs(pictures[:, 50, 79] - 60).max() < 6  # within the cavity
    for structure, (y, x) in zip(STRUCTURES, [(40, 75), (30, 80), (99, 80)]):  # hue of the outlines
        assert all(np.argmax(picture[y, x]) == np.argmax(structure.colour) for picture in pictures)


@pytest.mark.parametrize(
    ("changes", "syntax", "expected"),
    [
        ({}, None, ([], [])),
        (
            {"LossyImageCompressionRatio": "19", "LossyImageCompressionMethod": "ISO_10918_1"},
            None,
            (["19"], ["ISO_10918_1"]),
        ),
        ({"LossyImageCompressionRatio": "19"}, JPEG_BASELINE, (["19"], ["ISO_10918_1"])),
        ({"LossyImageCompressionRatio": ["7.5", "2"]}, JPEG_BASELINE, ([], [])),
        ({"LossyImageCompressionRatio": "19"}, None, ([], [])),
        ({"LossyImageCompressionMethod": "Ottokar"}, None, ([], [])),
    ],
)
def test_lossy_compressions_are_listed_one_after_the_other(tmp_path: Path, changes: dict, syntax, expected):
    source = fixtures.ultrasound(len(CLIP), ROWS, COLUMNS, LossyImageCompression="01", **changes)
    if syntax is not None:
        source.file_meta.TransferSyntaxUID = syntax
    path = write(tmp_path / "o.dcm", source=source, is_jpeg=True)
    dataset = pydicom.dcmread(path)
    ratios, methods = (
        list(np.atleast_1d(dataset[f"LossyImageCompression{word}"].value)) for word in ("Ratio", "Method")
    )
    num_bytes = sum(len(frame) for frame in generate_frames(dataset.PixelData, number_of_frames=12))
    assert dataset.LossyImageCompression == "01" and methods == [*expected[1], "ISO_10918_1"]
    assert ratios[:-1] == [float(ratio) for ratio in expected[0]]
    assert ratios[-1] == pytest.approx(12 * ROWS * COLUMNS * 3 / num_bytes, rel=1e-3)
    if fixtures.DCIODVFY is not None:
        assert fixtures.errors_of(path) == []


@pytest.mark.parametrize(("has_text", "claim"), [(None, "YES"), (True, "YES"), (False, "NO")])
def test_no_text_is_claimed_only_where_somebody_has_looked(tmp_path: Path, has_text: bool | None, claim: str):
    assert pydicom.dcmread(write(tmp_path / "o.dcm", has_text=has_text)).BurnedInAnnotation == claim


@fixtures.needs_dciodvfy
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_jpeg": True},
        {"is_jpeg": True, "frame_times_ms": np.arange(12) * 33.3},
        {"frame_times_ms": np.arange(12) * 33.3},
        {"frame_times_ms": np.arange(12) ** 1.5, "spacing_mm": (0.5, 0.4)},
        {"windows": [(CLIP[:1], LABELS[:1])], "numbers": [4]},
        {"windows": [(CLIP[:1], LABELS[:1])], "numbers": [1], "source": fixtures.ultrasound(None, ROWS, COLUMNS)},
    ],
)
def test_dciodvfy_finds_no_error(tmp_path: Path, options: dict):
    assert fixtures.errors_of(write(tmp_path / "o.dcm", **options)) == []


def test_object_says_where_it_comes_from(tmp_path: Path):
    source = fixtures.ultrasound(12, ROWS, COLUMNS, identified=True)
    path = write(tmp_path / "o.dcm", source=source, frame_times_ms=np.arange(12) * 33.3, spacing_mm=(0.4, 0.5))
    dataset = pydicom.dcmread(path)
    (reference,) = dataset.SourceImageSequence
    assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert "ReferencedFrameNumber" not in reference  # all frames
    part = pydicom.dcmread(write(tmp_path / "part.dcm", [(CLIP[:2], LABELS[:2])], (3, 7), source))
    assert list(part.SourceImageSequence[0].ReferencedFrameNumber) == [3, 7]
    assert (dataset.PatientID, dataset.StudyInstanceUID) == (source.PatientID, source.StudyInstanceUID)
    assert (float(dataset.FrameTime), list(dataset.PixelAspectRatio)) == (33.3, [800, 1000])
    assert "cd" * 32 in dataset.DerivationDescription and "not verified" in dataset.ImageComments
    assert not fixtures.holds_strangers(path)


def test_windows_and_a_second_run_give_the_same_bytes(tmp_path: Path):
    windows = ((CLIP[i : i + 5], LABELS[i : i + 5]) for i in range(0, 12, 5))
    for is_jpeg in (True, False):
        once = write(tmp_path / "once.dcm", is_jpeg=is_jpeg).read_bytes()
        assert write(tmp_path / "again.dcm", is_jpeg=is_jpeg).read_bytes() == once
    assert write(tmp_path / "parts.dcm", windows).read_bytes() == once


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows": [(CLIP[:, 1:], LABELS[:, 1:])]}, r"expected grey uint8 frames and label maps \(T, 120, 160\)"),
        ({"windows": [(CLIP, LABELS[:5])]}, "expected grey uint8 frames"),
        ({"windows": [(CLIP.astype(float), LABELS)]}, "expected grey uint8 frames"),
        ({"windows": [(CLIP, LABELS + 3)]}, "classes 0 to 3 were expected"),
        ({"windows": [(CLIP[:5], LABELS[:5])]}, "12 frame numbers, but 5 frames came"),
        ({"windows": [(CLIP, LABELS)] * 2}, "but more frames came"),
        ({"numbers": range(12)}, "rising frame numbers from 1"),
        ({"frame_times_ms": [1.0]}, "1 frame times for 12 frames"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_no_file(tmp_path: Path, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "o.dcm", **change)
    assert list(tmp_path.iterdir()) == []


def test_png_shows_the_sector_alone_and_says_nothing_else(tmp_path: Path):
    write_overlay_png(CLIP[0], LABELS[0], SECTOR, tmp_path / "o.png", spacing_mm=(1.0, 0.5), longest_side=120)
    with Image.open(tmp_path / "o.png") as picture:
        pixels = np.asarray(picture)
        assert not picture.info
    assert pixels.shape == (120, 80, 3)  # 120 x 80 mm
    assert not pixels[:12, :22].any()
    assert any((pixels == STRUCTURES[0].colour).all(axis=-1).any(axis=0))
    write_overlay_png(CLIP[0], np.zeros_like(LABELS[0]), SECTOR, tmp_path / "plain.png")
    with Image.open(tmp_path / "plain.png") as picture:
        plain = np.asarray(picture)
    assert plain.shape == (ROWS, COLUMNS, 3) and (plain == plain[..., :1]).all()


def test_sector_of_a_clip_is_found_without_the_name_and_the_scale():
    found = find_sector(CLIP[sample_indices(len(CLIP))])
    assert (found & SECTOR).sum() > 0.97 * SECTOR.sum()
    assert (found & ~SECTOR).sum() < 0.06 * SECTOR.sum()  # a pixel wider
    assert not found[:14, :50].any() and not found[:, -8:].any()


def test_sector_of_a_still_is_found_without_the_name():
    region = np.ones(SECTOR.shape, dtype=bool)
    found = find_sector(CLIP[:1], region)
    assert (found & SECTOR).sum() > 0.9 * SECTOR.sum() and not found[:14, :50].any()
    np.testing.assert_array_equal(find_sector(np.repeat(CLIP[:1], 4, axis=0), region), found)


def test_sector_of_a_picture_of_absurd_size_is_found_on_a_coarser_grid():
    step = 2100 // CLIP.shape[1] + 1
    large = CLIP[:3].repeat(step, axis=1).repeat(step, axis=2)
    found = find_sector(large)
    assert found.shape == large.shape[1:]
    sector = SECTOR.repeat(step, axis=0).repeat(step, axis=1)
    assert (found & sector).sum() > 0.95 * sector.sum() and (found & ~sector).sum() < 0.1 * sector.sum()
    assert sample_indices(100, 8192 * 8192) == [0, 99] and len(sample_indices(100, 640 * 480)) == 24


def test_nothing_outside_the_regions_is_looked_at_or_found():
    frames, region = CLIP.copy(), np.ones(SECTOR.shape, dtype=bool)
    region[:30] = False
    frames[::2, :30] = 120  # a panel that is larger than the sector, and blinks
    found = find_sector(frames, region)
    assert not found[:30].any() and found[40:90, 70:90].all()


def test_in_a_still_without_regions_nothing_is_found():
    assert not find_sector(CLIP[:1]).any() and not find_sector(np.repeat(CLIP[:1], 4, axis=0)).any()


def test_no_sector_is_found_in_a_blank_picture_or_in_text_alone():
    text = np.where(SECTOR, 0, CLIP[0])
    region = np.ones(SECTOR.shape, dtype=bool)
    assert not find_sector(np.zeros((3, *SECTOR.shape), np.uint8), region).any()
    assert not find_sector(text[None], region).any()


def test_sector_of_a_real_clip():
    from pydicom.pixels import iter_pixels

    path = fixtures.real_clip()
    frames = np.stack(
        [
            frame[..., 0]
            for frame in iter_pixels(path, raw=True, indices=[0, 20, 40, 60, 80, 100], decoding_plugin="pillow")
        ]
    )
    found = find_sector(frames)
    assert 0.25 < found.mean() < 0.45  # the sector takes 0.36 of the picture
    assert not found[:40, :80].any() and not found[:, 600:].any() and not found[450:].any()
