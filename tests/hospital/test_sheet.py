"""Test the sheet of a study: its words in every language, what it shows of the numbers, and of the patient."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pydicom
import pytest

from synboost_monai.heart import anatomy, doubt
from synboost_monai.hospital.options import HospitalOptions
from synboost_monai.hospital.phantom_studies import PhantomClip
from synboost_monai.hospital.sheet import patient_details, study_sheet
from synboost_monai.hospital.sheet_words import WORDS, number, say
from synboost_monai.pages.sheet import Sheet
from synboost_monai.quantities import LANGUAGES, QUANTITIES
from tests.dicom import writing_fixtures
from tests.hospital.conftest import TruthModel, write_phantom_clip
from tests.hospital.test_study import KEY, process, process_one, results_of

NAME = "Quastenflosser^Ottokar"


@pytest.fixture(scope="module")
def done(clips: list[PhantomClip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the outputs of a study of both views, whose contours are in doubt."""
    folder = tmp_path_factory.mktemp("sheet")
    for clip in clips[:2]:
        overrides = {"PatientName": NAME, "PatientBirthDate": "19610814", "PatientSize": "1.7", "PatientWeight": "70"}
        write_phantom_clip(clip, folder / "in" / f"{clip.view}.dcm", overrides=overrides)
    process(folder / "in", folder / "out", TruthModel.of(clips, confidence=0.7), report="de")
    return folder / "out"


def sheet_of(out: Path, language: str) -> Sheet:
    (results,) = results_of(out)
    return study_sheet(results, out / "studies" / results["study"], language)


def test_every_word_is_there_in_every_language() -> None:
    for key, words in [*WORDS.items(), *((q.name, q.words) for q in QUANTITIES.values())]:
        assert len(words) == len(LANGUAGES) and all(words), key
        assert len({frozenset(re.findall(r"{\w+}", text)) for text in words}) == 1, key
    same = {key for key, (english, german) in WORDS.items() if english == german}
    assert same == {"name", "millilitres", "edv", "esv", "ef", "normal"}


def test_every_reason_of_a_doubt_has_words() -> None:
    code = Path(doubt.__file__).read_text() + Path(anatomy.__file__).read_text()
    codes = set(re.findall(r'_reason\("(\w+)"', code)) - {"frames"}  # of clips judged as a whole
    codes |= {f"anatomy_{name}" for name in re.findall(r'AnatomyProblem\("(\w+)"', code)} | {"removed", "filled"}
    assert len(codes) > 10 and codes <= set(WORDS)


def test_numbers_are_written_as_in_the_language() -> None:
    assert (number(-23.14, 1, "en"), number(-23.14, 1, "de"), number(71.6, 0, "de")) == ("−23.1", "−23,1", "72")
    assert say("frame", "de", number=3) == "Bild 3"


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_are_those_of_the_results_with_their_marks(done: Path, language: str) -> None:
    (results,), sheet = results_of(done), sheet_of(done, language)
    biplane = {m["measure"]: m for m in results["measures"] if m["method"] == "biplane"}
    values = {row[0]: row for row in sheet.main.rows}
    names = ("ejection_fraction", "end_diastolic_volume_ml", "mass_g", "longitudinal_strain", "atrial_volume_index")
    for name in names:
        label = say(name, language)
        row = values[label[0].upper() + label[1:]]
        assert row[1] == number(biplane[name]["value"], QUANTITIES[name].decimals, language)
        assert row[4] == say("biplane", language) and row[5].startswith(say("in_doubt", language))
    assert sheet.cards[0].value == number(biplane["ejection_fraction"]["value"], 0, language)
    assert all(card.mark == say("in_doubt", language) for card in sheet.cards)
    measured = [m for m in results["measures"] if m["beat"] and m["value"] is not None]
    beats = [m for m in measured if m["measure"] == "ejection_fraction"]
    assert beats and [row[3] for row in sheet.side.rows] == [number(m["value"], 0, language) for m in beats]
    assert not sheet.is_good and any(say("low_predicted_dice", language) in reason for reason in sheet.reasons)
    assert len(sheet.pictures) == 4 and len(sheet.curves) == 2
    curve, clip = sheet.curves[0], next(c for c in results["clips"] if c["view"] == "apical_four_chamber")
    assert curve.tops == [beat["end_diastolic_frame"] - 1 for beat in clip["beats"]]
    assert max(curve.y) == pytest.approx(max(clip["volumes_ml"]))


def test_html_names_nobody_and_the_archives_pdf_names_the_patient(done: Path) -> None:
    (html,), (dicom,) = done.glob("studies/*/report.html"), done.glob("studies/*/report.dcm")
    text = html.read_text(encoding="utf-8")
    assert 'lang="de"' in text and "Ejektionsfraktion" in text and "Nicht zur Diagnose" in text
    assert not re.search("quasten|1961|08-14|ID-patient", text, re.IGNORECASE)
    header = pydicom.dcmread(dicom)
    assert (str(header.PatientName), header.PatientBirthDate) == (NAME, "19610814")
    details = dict(patient_details(header, "de"))
    assert (details["Name"], details["Geburtsdatum"]) == ("Quastenflosser Ottokar", "1961-08-14")
    if writing_fixtures.DCIODVFY is not None:
        assert writing_fixtures.errors_of(dicom) == []


def test_no_clip_without_a_beat_or_calibration_breaks_the_sheet(clips: list[PhantomClip], tmp_path: Path) -> None:
    clip = clips[1]
    still: Any = PhantomClip(**{**clip.__dict__, "images": clip.images[:1], "label_maps": clip.label_maps[:1]})
    written = {"overrides": {"FrameIncrementPointer": None, "FrameTime": None}}
    process_one(still, tmp_path, TruthModel.of(clips), written=written, key=KEY, report="en")
    sheet = sheet_of(tmp_path / "out", "en")
    assert sheet.reasons == ["Nothing could be measured"] and sheet.main.rows == [] and sheet.curves == []
    assert {card.value for card in sheet.cards} == {"–"} and len(sheet.pictures) == 1
    assert len(list((tmp_path / "out").glob("studies/*/report.*"))) == 2


def test_no_report_where_none_is_wanted(clips: list[PhantomClip], tmp_path: Path) -> None:
    process_one(clips[1], tmp_path, TruthModel.of(clips), report="none")
    assert list(tmp_path.glob("out/studies/*/sr.dcm")) and not list(tmp_path.glob("out/studies/*/report.*"))
    with pytest.raises(ValueError, match="report must be none, en, de, got 'fr'"):
        HospitalOptions(report="fr")
