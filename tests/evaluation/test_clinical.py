"""Test clinical measures of a made evaluation: phantom label maps as the experts', shrunken ones as the predicted."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from synboost_monai.evaluation.agreement import agreement
from synboost_monai.evaluation.clinical import COLUMNS, ClinicalResult, clinical_measures
from synboost_monai.evaluation.per_case import case_metrics, write_metrics_csv, write_summary
from synboost_monai.pages.tables import to_text
from synboost_monai.records import PHASES, VIEWS
from synboost_monai.simulation.phantom_anatomy import draw_label_map, draw_patient

HEIGHT = 128
NUM_PATIENTS = 4
QUALITIES = {"2CH": ["good", "good", "poor", "medium"], "4CH": ["good", "medium", "good", "medium"]}


def write_label_map(path: Path, label_map: np.ndarray, spacing_mm: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(label_map.T, np.diag([-spacing_mm, -spacing_mm, 1, 1])), path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write data/datalist.json and run/evaluation of four phantom patients; the cavity is predicted a pixel too small, with a gap."""
    root = tmp_path_factory.mktemp("clinical")
    items, rows = [], []
    for number in range(NUM_PATIENTS):
        patient = draw_patient(np.random.default_rng(number), is_female=number % 2 == 0)
        spacing = patient.depth_mm / HEIGHT
        shape = (HEIGHT, int(2 * HEIGHT * math.sin(patient.half_angle)) + 1)
        for view, anatomy in patient.views.items():
            for phase, systole in (("ED", 0.0), ("ES", 1.0)):
                truth = draw_label_map(anatomy.contours(systole), patient.depth_mm, shape, spacing)
                pred = np.where((truth == 1) & ~ndimage.binary_erosion(truth == 1), 0, truth).astype(np.uint8)
                case = f"patient{number:04d}_{view}_{phase}"
                write_label_map(root / "data" / f"{case}_gt.nii.gz", truth, spacing)
                write_label_map(root / "run/evaluation/label_maps" / f"{case}.nii.gz", pred, spacing)
                facts = {"patient": f"patient{number:04d}", "view": VIEWS[view], "phase": PHASES[phase]}
                known = {"image_quality": QUALITIES[view][number], "ejection_fraction": patient.ejection_fraction}
                items.append({"image": f"{case}_gt.nii.gz", "label": f"{case}_gt.nii.gz", **facts, **known})
                rows += [{"case": case, **facts, **row} for row in case_metrics(pred, truth, (spacing, spacing))]
    (root / "data" / "datalist.json").write_text(json.dumps({"testing": items}))
    write_metrics_csv(root / "run/evaluation/metrics.csv", rows)
    write_summary(root / "run/evaluation/summary.json", rows, dataset_dir="data", section="testing", seed=3)
    return root


@pytest.fixture(scope="module")
def result(made: Path) -> ClinicalResult:
    """Return the measures of `made`, whose data set is found beside a folder above."""
    return clinical_measures(made / "run/evaluation")


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """Make a copy to change."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def edit_datalist(root: Path, change: Any) -> None:
    path = root / "data" / "datalist.json"
    path.write_text(json.dumps({"testing": change(json.loads(path.read_text())["testing"])}))


def test_every_patient_measure_and_method_is_a_row(result: ClinicalResult) -> None:
    frame = pd.read_csv(result.csv_path)
    assert list(frame.columns) == list(COLUMNS)
    assert len(frame) == NUM_PATIENTS * 22 and frame[["predicted", "expert"]].notna().all().all()
    np.testing.assert_allclose(frame["predicted"], result.frame["predicted"], rtol=1e-5)
    biplane = frame[(frame["measure"] == "ejection_fraction") & (frame["method"] == "biplane")]
    assert (biplane["expert"] - biplane["reference"]).abs().max() < 2
    # an edge of a pixel is lost: smaller, and an empty heart loses the larger share
    volumes = frame[frame["measure"] == "end_diastolic_volume_ml"]
    assert (volumes["predicted"] < volumes["expert"]).all()
    assert biplane["image_quality"].tolist() == ["good", "medium", "poor", "medium"]  # the poorer view's
    two = frame[(frame["measure"] == "end_systolic_volume_ml") & (frame["method"] == "two_chamber")]
    assert two["image_quality"].tolist() == QUALITIES["2CH"]
    assert frame.loc[frame["measure"] != "ejection_fraction", "reference"].isna().all()
    assert frame[["reason", "warning"]].isna().all().all()


def test_json_holds_the_agreement_of_every_comparison(result: ClinicalResult) -> None:
    summary = json.loads(result.json_path.read_text())
    assert summary["num_patients"] == NUM_PATIENTS and summary["section"] == "testing" and summary["seed"] == 3
    assert summary["left_out"] == {"methods": {}, "images": {}, "num_values": 0, "values": []}
    found = {(a["first"], a["second"], a["measure"], a["method"], a["image_quality"]): a for a in summary["agreement"]}
    frame = result.frame[(result.frame["measure"] == "ejection_fraction") & (result.frame["method"] == "biplane")]
    for first, second in (("predicted", "expert"), ("predicted", "reference"), ("expert", "reference")):
        record = found[first, second, "ejection_fraction", "biplane", "all"]
        expected = agreement(frame[first], frame[second])
        assert {key: record[key] for key in expected} == pytest.approx(expected)
    medium = found["predicted", "expert", "ejection_fraction", "biplane", "medium"]
    assert medium["num_pairs"] == 2 and medium["bias"] is not None and medium["icc"] is None
    assert ("predicted", "reference", "end_diastolic_volume_ml", "biplane", "all") not in found


def test_tables_tell_the_agreement(result: ClinicalResult) -> None:
    main, reference, by_quality = result.tables
    names = ["clinical_agreement", "clinical_reference", "clinical_by_quality"]
    assert [table.name for table in result.tables] == names
    assert len(main.frame) == 22 and len(reference.frame) == 2 * 4
    (row,) = (line for line in to_text(main).splitlines() if re.match("ejection fraction, %  +biplane  ", line))
    a, b = (result.pairs("ejection_fraction", "biplane")[side] for side in ("predicted", "expert"))
    record = agreement(a, b)
    signed = [f"{record[key]:+.1f}" for key in ("bias", "lower_limit", "upper_limit")]
    assert row.split()[-9:-4] == ["4", *signed, f"{record['mae']:.1f}"]
    assert "CAMUS's rule" in reference.note and "4 patients" in main.note
    assert set(by_quality.frame["image_quality"]) == {"good", "medium", "poor"}


def test_a_plot_of_each_method_is_written(result: ClinicalResult) -> None:
    assert [p.name for p in result.plot_paths] == [
        f"bland_altman_{method}.png" for method in ("biplane", "biplane_camus", "four_chamber", "two_chamber")
    ]
    for path in result.plot_paths:
        assert Image.open(path).size[0] > 600


def test_what_is_missing_has_a_reason_and_is_counted(copy: Path) -> None:
    maps = copy / "run/evaluation/label_maps"
    (maps / "patient0001_4CH_ES.nii.gz").unlink()
    image = nib.load(maps / "patient0002_2CH_ED.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), maps / "patient0002_2CH_ED.nii.gz")

    def change(items: list[dict]) -> list[dict]:
        del items[0]["label"]  # patient0000, 2CH, ED
        items[-1]["ejection_fraction"] = 12.0  # patient0003: 4CH ES against its other files
        return items

    edit_datalist(copy, change)
    result = clinical_measures(copy / "run/evaluation", plots=False)
    frame = result.frame.set_index(["patient", "measure", "method"])
    lost = frame.loc["patient0001", "ejection_fraction", "four_chamber"]
    assert np.isnan(lost["predicted"]) and not np.isnan(lost["expert"])
    assert lost["reason"] == "predicted: four-chamber view, end-systole: the label map was not kept"
    empty = frame.loc["patient0002", "end_diastolic_volume_ml", "biplane"]
    assert empty["reason"] == "predicted: two-chamber view, end-diastole: no left ventricular cavity"
    without_label = frame.loc["patient0000", "end_diastolic_volume_ml", "two_chamber"]
    assert without_label["reason"] == "expert: two-chamber view, end-diastole: no label map"
    assert "reference: the views' files disagree" in frame.loc["patient0003", "ejection_fraction", "biplane"]["reason"]
    counts = {entry["reason"]: entry for entry in result.summary["left_out"]["values"]}
    entry = counts["predicted: four-chamber view, end-systole: the label map was not kept"]
    assert entry["patients"] == ["patient0001"] and entry["num_values"] == 10
    # 10 of each lost image and of the one without label map: its view's, and those of both views
    assert result.summary["left_out"]["num_values"] == 30
    pairs = {
        a["num_pairs"]
        for a in result.summary["agreement"]
        if (a["measure"], a["method"], a["image_quality"]) == ("ejection_fraction", "four_chamber", "all")
    }
    assert pairs == {3, 2}  # with the experts; with Info_*.cfg


def test_one_view_leaves_the_methods_of_two_out(copy: Path) -> None:
    edit_datalist(copy, lambda items: [{**i, "image_quality": "good"} for i in items if i["view"] == VIEWS["4CH"]])
    result = clinical_measures(copy / "run/evaluation", plots=False)
    assert set(result.frame["method"]) == {"four_chamber"}
    assert result.summary["left_out"]["methods"] == dict.fromkeys(
        ["biplane", "biplane_camus", "two_chamber"], "no patient has a two-chamber view"
    )


def test_without_info_there_is_no_reference_and_no_quality(copy: Path) -> None:
    known = ("image", "label", "patient", "view", "phase")
    edit_datalist(copy, lambda items: [{key: item[key] for key in known} for item in items])
    result = clinical_measures(copy / "run/evaluation", copy / "data", plots=False)
    assert result.frame[["reference", "image_quality"]].isna().all().all()
    assert [table.name for table in result.tables] == ["clinical_agreement"]
    assert {a["image_quality"] for a in result.summary["agreement"]} == {"all"}


def test_images_that_are_not_evaluated_are_passed_over(copy: Path) -> None:
    metrics = pd.read_csv(copy / "run/evaluation/metrics.csv")
    metrics[metrics["patient"] != "patient0003"].to_csv(copy / "run/evaluation/metrics.csv", index=False)

    def change(items: list[dict]) -> list[dict]:
        del items[0]["phase"]
        return items

    edit_datalist(copy, change)
    result = clinical_measures(copy / "run/evaluation", plots=False)
    assert result.summary["num_patients"] == 3
    assert result.summary["left_out"]["images"] == {"not in metrics.csv": 4, "patient, view or phase is not known": 1}


def test_mistakes_are_told(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected summary.json in this folder; give the folder"):
        clinical_measures(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected datalist.json in this folder"):
        clinical_measures(copy / "run/evaluation", tmp_path)
    edit_datalist(copy, lambda items: [*items, {**items[0], "image": items[1]["image"]}])
    with pytest.raises(ValueError, match="patient0000 has several images of apical_two_chamber, end_diastole"):
        clinical_measures(copy / "run/evaluation", plots=False)
    edit_datalist(copy, lambda items: [{"image": items[0]["image"]}])
    with pytest.raises(ValueError, match="no image that .*metrics.csv knows by patient, view and phase"):
        clinical_measures(copy / "run/evaluation", plots=False)
    shutil.rmtree(copy / "data")
    with pytest.raises(FileNotFoundError, match="its dataset_dir data is not there; give --dataset_dir"):
        clinical_measures(copy / "run/evaluation")


def test_a_damaged_summary_is_named(tmp_path):
    (tmp_path / "metrics.csv").write_text("case\n")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match="summary.json: is damaged .*run `synboost evaluate`"):
        clinical_measures(tmp_path)
