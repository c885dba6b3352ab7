"""Test that a study's outputs are true, the same each time, and never more than the files allow."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from synboost_monai.dicom.reading.scan import scan
from synboost_monai.dicom.reading.worker import ReaderPool, _Worker
from synboost_monai.dicom.writing.clip import MARGIN_SIDE, MARGIN_TOP
from synboost_monai.hospital.ledger import Result
from synboost_monai.hospital.phantom_studies import PhantomClip
from synboost_monai.hospital.report import write_report_page
from synboost_monai.hospital.study import StudyOptions, StudyProcessor
from synboost_monai.structures import STRUCTURES
from tests.hospital.conftest import TruthModel, write_phantom_clip

KEY = hashlib.sha256(b"key").digest()
NO_VIEW = {"ViewCodeSequence": None, "SeriesDescription": None}
"""Overrides of a header that then names no view."""


def process(in_dir: Path, out_dir: Path, model: Any, **options: Any) -> list[Result]:
    """Return the results of every study below a folder, whose pages for people are left out unless an option says otherwise."""
    studies: dict[str, list[Any]] = {}
    for file in scan(in_dir):
        if file.reason is None:
            studies.setdefault(file.study_uid, []).append(file)
    with ReaderPool(1) as pool:
        processor = StudyProcessor(model, pool, StudyOptions(**{"report": "none", **options}))
        return [result for files in studies.values() for result in processor(files, out_dir)]


def results_of(out_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(out_dir.glob("studies/*/measurements.json"))]


def process_one(
    clip: PhantomClip, folder: Path, model: Any, given: tuple[int, int] | None = None, **options: Any
) -> tuple[Result, dict[str, Any]]:
    """Process a study of one clip, from `folder`/in to `folder`/out, and return what became of the clip and of the study."""
    uid = write_phantom_clip(clip, folder / "in" / "a.dcm", **options.pop("written", {}))
    (result,) = process(folder / "in", folder / "out", model, given={} if given is None else {uid: given}, **options)
    return result, next(iter(results_of(folder / "out")), {})


def value(results: dict[str, Any], measure: str, method: str) -> float | None:
    return next(m["value"] for m in results["measures"] if (m["measure"], m["method"]) == (measure, method))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def done(
    studies_dir: Path, clips: list[PhantomClip], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Result]]:
    """Return the outputs of both studies, every frame written, and the results."""
    out = tmp_path_factory.mktemp("out")
    return out, process(studies_dir, out, TruthModel.of(clips), frames="all", report="en")


def test_volumes_of_the_phantom_come_through(done: tuple[Path, list[Result]], clips: list[PhantomClip]) -> None:
    for results in results_of(done[0]):
        instances = {c["sop_instance_uid"] for c in results["clips"]}
        clip = next(c for c in clips if instance_of(done[1], c) in instances)
        assert value(results, "ejection_fraction", "biplane") == pytest.approx(clip.ejection_fraction, abs=3)
        for measure, true in zip(("end_diastolic_volume_ml", "end_systolic_volume_ml"), clip.volumes_ml):
            assert value(results, measure, "biplane") == pytest.approx(true, rel=0.05)
        assert not [reason for reason in results["reasons"] if "predicted Dice" in reason]


def instance_of(results: list[Result], clip: PhantomClip) -> str:
    return next(
        r.file.sop_instance_uid for r in results if clip.patient in r.file.relative and clip.view in r.file.relative
    )


def test_segmentation_holds_the_true_masks_frame_by_frame(
    done: tuple[Path, list[Result]], clips: list[PhantomClip]
) -> None:
    out, found = done
    for result in found:
        clip = next(c for c in clips if c.patient in result.file.relative and c.view in result.file.relative)
        path = next(out / o for o in result.outputs if Path(o).name.startswith("seg_"))
        dataset = pydicom.dcmread(path)
        num_frames, rows, columns = len(clip.images), dataset.Rows, dataset.Columns
        planes = dataset.pixel_array.reshape(num_frames, len(STRUCTURES), rows, columns)
        height, width = clip.label_maps.shape[1:]
        inner = planes[:, :, MARGIN_TOP : MARGIN_TOP + height, MARGIN_SIDE : MARGIN_SIDE + width]
        for i, structure in enumerate(STRUCTURES):
            assert np.array_equal(inner[:, i] > 0, clip.label_maps == structure.class_index)
        assert inner.sum() == planes.sum()  # nothing outside of the region


def test_the_same_study_gives_the_same_bytes(
    done: tuple[Path, list[Result]], studies_dir: Path, truth_model: TruthModel, tmp_path: Path
) -> None:
    first = min(path for path in studies_dir.iterdir() if path.is_dir())
    process(first, tmp_path, truth_model, frames="all", window=7, report="en")
    (study,) = (tmp_path / "studies").iterdir()
    assert contents(study) == contents(done[0] / "studies" / study.name)


def test_every_result_names_files_that_exist(done: tuple[Path, list[Result]]) -> None:
    out, found = done
    assert {r.outcome.value for r in found} == {"processed"}
    named = {o for r in found for o in r.outputs}
    assert named == set(contents(out))
    kinds = {"seg", "overlay", "frame", "sr", "report", "measurements"}
    assert {Path(o).name.split("_")[0].split(".")[0] for o in named} == kinds


def test_contours_are_those_of_the_judged_frames(clips: list[PhantomClip], tmp_path: Path) -> None:
    result, results = process_one(clips[1], tmp_path, TruthModel.of(clips), contours=True, overlay=False)
    (path,) = (tmp_path / "out").rglob("contours_*.dcm")
    assert path.relative_to(tmp_path / "out").as_posix() in result.outputs
    references = [e.value for e in pydicom.dcmread(path).iterall() if e.keyword == "ReferencedSOPSequence"]
    frames = {item[0].ReferencedFrameNumber for item in references if "ReferencedFrameNumber" in item[0]}
    assert frames == {int(frame) for frame in results["clips"][0]["prompts"]}


def test_second_pass_is_told_view_phase_sex_and_age(clips: list[PhantomClip], tmp_path: Path) -> None:
    model = TruthModel.of(clips)
    process_one(clips[1], tmp_path, model)
    assert {} in model.asked
    told = [a for a in model.asked if "phase" in a]
    assert {a["phase"] for a in told} == {"end_diastole", "end_systole"}
    assert all(a["view"] == clips[1].view and a["sex"] == clips[1].sex and a["age"] == clips[1].age for a in told)


def test_uncalibrated_clip_has_masks_and_no_millilitres(clips: list[PhantomClip], tmp_path: Path) -> None:
    write_phantom_clip(clips[1], tmp_path / "in" / "a.dcm")
    dataset = pydicom.dcmread(tmp_path / "in" / "a.dcm")
    dataset.SequenceOfUltrasoundRegions[0].PhysicalUnitsXDirection = 0
    dataset.save_as(tmp_path / "in" / "a.dcm")
    (result,) = process(tmp_path / "in", tmp_path / "out", TruthModel.of(clips))
    assert (result.outcome.value, result.reason) == ("uncalibrated", "units_not_cm")
    (results,) = results_of(tmp_path / "out")
    of_view = [m for m in results["measures"] if "four" in m["method"]]
    assert all(m["value"] is None and "no calibration" in m["reason"] for m in of_view)
    assert not list((tmp_path / "out").rglob("sr.dcm")) and list((tmp_path / "out").rglob("seg_*.dcm"))


def test_a_still_has_no_ejection_fraction(clips: list[PhantomClip], tmp_path: Path) -> None:
    clip = clips[1]
    still = PhantomClip(**{**clip.__dict__, "images": clip.images[:1], "label_maps": clip.label_maps[:1]})
    written = {"overrides": {"FrameIncrementPointer": None, "FrameTime": None}}
    result, results = process_one(still, tmp_path, TruthModel.of(clips), written=written)
    assert result.outcome.value == "processed"
    assert all(m["value"] is None for m in results["measures"])
    assert results["clips"][0]["no_beat_reason"] == "one frame has no beat"


def test_mixed_patients_are_refused(clips: list[PhantomClip], tmp_path: Path) -> None:
    write_phantom_clip(clips[0], tmp_path / "in" / "a.dcm", overrides={"StudyInstanceUID": "1.2.3"})
    write_phantom_clip(clips[3], tmp_path / "in" / "b.dcm", overrides={"StudyInstanceUID": "1.2.3"})
    found = process(tmp_path / "in", tmp_path / "out", TruthModel.of(clips))
    assert [r.reason for r in found] == ["patients_mixed"] * 2 and not (tmp_path / "out" / "studies").exists()


def test_unsure_model_says_review_in_every_object(clips: list[PhantomClip], tmp_path: Path) -> None:
    _, results = process_one(clips[1], tmp_path, TruthModel.of(clips, confidence=0.7))
    assert results["verdict"] == "review" and "predicted Dice" in results["reasons"][0]
    assert all("a segmentation needs review" in m["warnings"] for m in results["measures"] if m["value"] is not None)
    report = pydicom.dcmread(next((tmp_path / "out").rglob("sr.dcm")))
    assert report.CompletionFlag == "PARTIAL"


def test_a_clip_is_opened_once_here_and_once_in_a_worker(
    studies_dir: Path, clips: list[PhantomClip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file, *_) = [found for found in scan(studies_dir) if found.reason is None]
    opened: list[str] = []
    system_open, send = os.open, _Worker.send

    def noted_open(path: Any, *options: Any, **more: Any) -> int:
        opened.append(f"here {path}")
        return system_open(path, *options, **more)

    def noted_send(worker: _Worker, request: dict[str, Any]) -> None:
        opened.extend(f"worker {request['path']}" for _ in range("path" in request))
        send(worker, request)

    monkeypatch.setattr("synboost_monai.dicom.reading.files.os.open", noted_open)
    monkeypatch.setattr(_Worker, "send", noted_send)
    with ReaderPool(1) as pool:
        options = StudyOptions(frames="all", key=KEY)  # every output: segmentation, pictures, overlay, copy
        (result,) = StudyProcessor(TruthModel.of(clips), pool, options)([file], tmp_path)
    assert result.reason == "segmented" and len(list(tmp_path.rglob("*.dcm"))) == 5
    assert [what for what in opened if file.path in what] == [f"here {file.path}", f"worker {file.path}"]


def test_view_by_the_models_own_confidence_is_said(clips: list[PhantomClip], tmp_path: Path) -> None:
    _, results = process_one(clips[1], tmp_path, TruthModel.of(clips), written={"overrides": NO_VIEW})
    (clip,) = results["clips"]
    assert (clip["view"], clip["view_source"]) == ("apical_four_chamber", "model")
    assert clip["view_confidence"]["apical_four_chamber"] > clip["view_confidence"]["apical_two_chamber"]
    measured = [m for m in results["measures"] if m["value"] is not None]
    assert all("the view is the model's opinion" in m["warnings"] for m in measured)


@pytest.mark.parametrize(("probability", "source"), [(0.96, "network"), (0.9, "model")])
def test_a_network_that_sees_the_view_is_believed_if_it_is_sure(
    clips: list[PhantomClip], tmp_path: Path, probability: float, source: str
) -> None:
    """The masks suggest the other view; a tag that names a view takes precedence."""
    views = {"no_apical_view": 0.02, "apical_two_chamber": probability, "apical_four_chamber": 0.98 - probability}
    for name, overrides in (("tag", {}), (source, NO_VIEW)):
        model = TruthModel.of(clips, views=views)
        _, results = process_one(clips[1], tmp_path / name, model, written={"overrides": overrides})
        (clip,) = results["clips"]
        assert clip["view_source"] == name
        assert clip["view"] == ("apical_two_chamber" if name == "network" else "apical_four_chamber")
    if source == "network":
        assert clip["view_confidence"]["apical_two_chamber"] == 0.96
        words = "the view is what the network sees: apical two chamber, probability 0.96"
        assert all(words in m["warnings"] for m in results["measures"] if m["value"] is not None)
        assert results["verdict"] == "review"
        row = {"outcome": "processed", "reason": "segmented", "outputs": [f"studies/{results['study']}/a"]}
        page = write_report_page(tmp_path / "network" / "out", [row], {})
        assert "(by the network, probability 0.96)" in page.read_text(encoding="utf-8")


def test_other_views_are_skipped(clips: list[PhantomClip], tmp_path: Path) -> None:
    write_phantom_clip(clips[1], tmp_path / "in" / "a.dcm")
    dataset = pydicom.dcmread(tmp_path / "in" / "a.dcm")
    dataset.ViewCodeSequence[0].CodeValue = "399306005"
    dataset.save_as(tmp_path / "in" / "a.dcm")
    (result,) = process(tmp_path / "in", tmp_path / "out", TruthModel.of(clips))
    assert (result.outcome.value, result.reason) == ("skipped", "other_view")


def test_given_frames_are_taken(clips: list[PhantomClip], tmp_path: Path) -> None:
    _, results = process_one(clips[1], tmp_path, TruthModel.of(clips), given=(3, 9))
    clip = results["clips"][0]
    assert (clip["phase_source"], clip["end_diastolic_frame"], clip["end_systolic_frame"]) == ("given", 4, 10)


def test_there_is_no_negative_ejection_fraction(clips: list[PhantomClip], tmp_path: Path) -> None:
    clip = next(clip for clip in clips if clip.view == "apical_four_chamber")
    _, results = process_one(clip, tmp_path, TruthModel.of(clips), given=(3, 9))  # 4 is the smaller one
    found = {m["measure"]: m for m in results["measures"] if m["method"] == "four_chamber" and m["beat"] is None}
    volumes = [found[f"end_{phase}_volume_ml"]["value"] for phase in ("diastolic", "systolic")]
    assert volumes[0] < volumes[1] and results["verdict"] == "review"
    assert found["ejection_fraction"]["value"] is None and found["ejection_fraction"]["sources"] == []
    assert found["ejection_fraction"]["reason"] == "the end-systolic volume is the larger one"


def test_given_frames_beyond_the_clip_are_told(clips: list[PhantomClip], tmp_path: Path) -> None:
    result, _ = process_one(clips[1], tmp_path, TruthModel.of(clips), given=(3, 99))
    assert (result.reason, result.sentence[:36]) == ("given_frames", "frames 4 and 100 were given for a cl")


def test_failure_of_the_model_is_a_reason_without_its_words(clips: list[PhantomClip], tmp_path: Path) -> None:
    class Broken(TruthModel):
        def segment(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("Phantom^patient0001 broke it")

    result, _ = process_one(clips[1], tmp_path, Broken({}))
    assert result.reason == "model_failed" and "hospital/clip.py" in result.sentence
    assert "Phantom" not in result.sentence and "RuntimeError" not in result.sentence
    assert not list((tmp_path / "out").rglob("*.dcm"))


def test_deidentified_outputs_hold_nothing_of_the_patient(clips: list[PhantomClip], tmp_path: Path) -> None:
    model = TruthModel.of(clips)
    _, results = process_one(clips[1], tmp_path, model, key=KEY, report="en")
    assert model.asked and not any({"sex", "age"} & asked.keys() for asked in model.asked)  # prompts are written
    original = pydicom.dcmread(tmp_path / "in" / "a.dcm")
    made = contents(tmp_path / "out")
    assert any("deidentified_" in name for name in made)
    for path in (p for p in (tmp_path / "out").rglob("*.dcm") if p.name.startswith(("deidentified_", "overlay_"))):
        assert pydicom.dcmread(path).BurnedInAnnotation == "YES"  # a phantom's speckle stands still as text does
    assert results["clips"][0]["text_in_sector"] == "possible"
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "SOPInstanceUID", "StudyDate"):
        secret = str(original[keyword].value)
        assert not [name for name, data in made.items() if secret.encode() in data], secret
