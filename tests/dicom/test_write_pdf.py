"""Test PDF as DICOM object."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest

from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.dicom.writing.pdf import ENCAPSULATED_PDF, MAX_BYTES, write_pdf
from tests.dicom import writing_fixtures as fixtures

PDF = b"%PDF-1.4 not much of one, and odd"


def write(path: Path, sources=None, pdf: bytes = PDF, **options) -> Path:
    sources = [fixtures.ultrasound(number=number, identified=True) for number in (1, 2)] if sources is None else sources
    write_pdf(sources, pdf, path, **{"title": "Bericht: Herz", "provenance": fixtures.PROVENANCE, **options})
    return path


@fixtures.needs_dciodvfy
@pytest.mark.parametrize("is_identified", [True, False])
def test_dciodvfy_finds_no_error(tmp_path: Path, is_identified: bool):
    sources = [fixtures.ultrasound(identified=is_identified)]
    assert fixtures.errors_of(write(tmp_path / "report.dcm", sources)) == []


@pytest.mark.parametrize("pdf", [PDF, PDF + b"!"])
def test_the_pdf_comes_back_with_its_patient_and_its_sources(tmp_path: Path, pdf: bytes):
    found = pydicom.dcmread(write(tmp_path / "report.dcm", pdf=pdf))
    assert len(found.EncapsulatedDocument) % 2 == 0
    assert found.EncapsulatedDocument[: found.EncapsulatedDocumentLength] == pdf
    assert (found.SOPClassUID, found.MIMETypeOfEncapsulatedDocument) == (ENCAPSULATED_PDF, "application/pdf")
    assert (found.PatientID, str(found.PatientName)) == ("MRN7741902", "Quastenflosser^Ottokar")
    assert (found.BurnedInAnnotation, found.VerificationFlag) == ("YES", "UNVERIFIED")
    sources = [item.ReferencedSOPInstanceUID for item in found.SourceInstanceSequence]
    assert sources == [f"{fixtures.ROOT}.3.1", f"{fixtures.ROOT}.3.2"]
    assert not fixtures.holds_strangers(tmp_path / "report.dcm")


def test_the_same_again_is_the_same_object_and_another_language_is_not(tmp_path: Path):
    first, second = (write(tmp_path / f"{name}.dcm").read_bytes() for name in "ab")
    assert first == second
    other = pydicom.dcmread(write(tmp_path / "c.dcm", title="Report: heart"))
    assert other.SOPInstanceUID != pydicom.dcmread(tmp_path / "a.dcm").SOPInstanceUID


def test_what_is_not_a_pdf_is_refused(tmp_path: Path):
    for wrong in (b"<html>", b"", b"%PDF-" + bytes(MAX_BYTES)):
        with pytest.raises(ValueError, match="expected at least one source and a PDF"):
            write(tmp_path / "report.dcm", pdf=wrong)
    with pytest.raises(ValueError, match="at least one source"):
        write(tmp_path / "report.dcm", sources=[])
    with pytest.raises(NotUsableError):
        write(tmp_path / "report.dcm", [fixtures.ultrasound(SOPInstanceUID=None)])
    assert list(tmp_path.iterdir()) == []
