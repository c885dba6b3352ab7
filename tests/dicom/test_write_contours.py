"""Test outlines as DICOM structured report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from synboost_monai.dicom.writing.contours import outline_of, write_contours
from synboost_monai.heart.geometry import fill_polygon
from synboost_monai.structures import STRUCTURES
from tests.dicom import writing_fixtures as fixtures


def heart(rows: int, columns: int) -> np.ndarray:
    """Draw a cavity that touches the upper border, with muscle to its right, and no atrium."""
    label_map = np.zeros((rows, columns), np.uint8)
    label_map[0:7, 3:9] = 1
    label_map[2:9, 9:12] = 2
    return label_map


def write(path: Path, **options) -> Path:
    source = options.pop("source", None) or fixtures.ultrasound(identified=True)
    maps = {3: heart(source.Rows, source.Columns), 5: np.zeros((source.Rows, source.Columns), np.uint8)}
    write_contours(source, options.pop("label_maps", maps), path, provenance=fixtures.PROVENANCE, **options)
    return path


@fixtures.needs_dciodvfy
@pytest.mark.parametrize("is_identified", [True, False])
def test_dciodvfy_finds_no_error(tmp_path: Path, is_identified: bool):
    assert fixtures.errors_of(write(tmp_path / "c.dcm", source=fixtures.ultrasound(identified=is_identified))) == []


def test_outlines_have_frame_structure_and_place(tmp_path: Path):
    source = fixtures.ultrasound(identified=True)
    report = pydicom.dcmread(write(tmp_path / "c.dcm"))
    (measurements,) = [item for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "126010"]
    found = {}
    for group in measurements.ContentSequence:
        (region,) = [item for item in group.ContentSequence if item.ValueType == "SCOORD"]
        (site,) = [i for i in group.ContentSequence if i.ConceptNameCodeSequence[0].CodeMeaning == "Finding Site"]
        (image,) = region.ContentSequence[0].ReferencedSOPSequence
        assert (image.ReferencedSOPInstanceUID, image.ReferencedFrameNumber) == (source.SOPInstanceUID, 3)
        found[site.ConceptCodeSequence[0].CodeValue] = np.reshape(region.GraphicData, (-1, 2))
    assert set(found) == {STRUCTURES[0].code[0], STRUCTURES[1].code[0]}
    cavity = found[STRUCTURES[0].code[0]]
    assert cavity.min(axis=0).tolist() == [3, 0] and cavity.max(axis=0).tolist() == [9, 7]  # corners of pixels
    assert (cavity[0] == cavity[-1]).all()
    assert str(report.PatientName) == "Quastenflosser^Ottokar"
    assert (tmp_path / "c.dcm").read_bytes() == write(tmp_path / "again.dcm").read_bytes()


def test_a_filled_outline_is_its_mask():
    y, x = np.mgrid[:60, :50]
    mask = (np.hypot(y - 30, x - 22) < 17) & (x > 12)
    outline = outline_of(mask)
    assert outline is not None
    filled = fill_polygon(outline[:-1, 1] - 0.5, outline[:-1, 0] - 0.5, mask.shape)
    assert (filled == mask).all()
    assert outline_of(np.zeros((4, 5), bool)) is None


def test_nothing_to_outline_and_wrong_frames_are_refused(tmp_path: Path):
    source = fixtures.ultrasound()
    empty = np.zeros((source.Rows, source.Columns), np.uint8)
    with pytest.raises(ValueError, match="no frame has a structure"):
        write(tmp_path / "c.dcm", label_maps={1: empty})
    for wrong in ({0: empty + 1}, {1: empty[1:]}):
        with pytest.raises(ValueError, match="expected label maps"):
            write(tmp_path / "c.dcm", label_maps=wrong)
    assert list(tmp_path.iterdir()) == []
