"""Test that every verb keeps its inputs: an output that is an input is refused in one line, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from synboost_monai.auto3dseg.run import run_auto3dseg
from synboost_monai.data import write_subset
from synboost_monai.data.prepare import prepare_dataset
from synboost_monai.evaluation.compare import compare
from synboost_monai.hospital.batch import run_dicom
from synboost_monai.hospital.options import BatchOptions
from synboost_monai.serving.export import export_bundle
from synboost_monai.serving.package import package_bundle
from synboost_monai.study.examples import write_examples
from synboost_monai.study.run import run_study
from synboost_monai.synthesis import merge_synthetic
from synboost_monai.synthesis.label_maps import sample_label_maps
from synboost_monai.synthesis.options import LabelMapOptions
from synboost_monai.synthesis.plan import SynthesisOptions, SynthesisPlan
from synboost_monai.training import KeepInputs


@pytest.fixture
def data(datalist_dir: Path, tmp_path: Path) -> Path:
    """Make a data set with its files beside the datalist, in a folder `labels`."""
    content = json.loads((datalist_dir / "datalist.json").read_text())
    (tmp_path / "data" / "labels").mkdir(parents=True)
    for section in ("training", "validation", "testing"):
        content[section] = content[section][:4]
        for item in content[section]:
            for key in [key for key in item if key in ("sequence", "sequence_label")]:
                del item[key]
            for key in ("image", "label"):
                item[key] = "labels/" + Path(shutil.copy(datalist_dir / item[key], tmp_path / "data/labels")).name
    (tmp_path / "data" / "datalist.json").write_text(json.dumps(content))
    (tmp_path / "data" / "provenance.json").write_text(json.dumps({"is_complete": True, "images": []}))
    (tmp_path / "model.pt").write_bytes(b"weights")
    return tmp_path / "data"


def linked(folder: Path) -> Path:
    """Make another folder whose datalist.json is a hard link to that of a data set."""
    other = folder.parent / "linked"
    other.mkdir()
    os.link(folder / "datalist.json", other / "datalist.json")
    return other


def plan(data: Path, **options: Any) -> None:
    made = SynthesisPlan(
        options.pop("dataset_dir", data),
        options.pop("output_dir", data),
        SynthesisOptions(image_size=32),
        checkpoint_path=options.pop("checkpoint_path", data.parent / "model.pt"),
    )
    made.run(SimpleNamespace(run=lambda: pytest.fail("the network ran")))  # type: ignore[arg-type]


def plan_onto_weights(data: Path) -> None:
    shutil.copy(data.parent / "model.pt", data.parent / "settings.json")
    plan(data, output_dir=data.parent, checkpoint_path=data.parent / "settings.json")


def plan_into_label_maps(data: Path) -> None:
    shutil.move(data / "datalist.json", data.parent / "mine.json")
    text = (data.parent / "mine.json").read_text().replace('"labels/', '"data/labels/')
    (data.parent / "mine.json").write_text(text)
    plan(data, dataset_dir=data.parent / "mine.json")


def compare_onto_metrics(data: Path) -> None:
    rows = "case,structure,dice\na,left_atrium,0.5\nb,left_atrium,0.6\nc,left_atrium,0.7\n"
    for name in ("a.csv", "comparison.json"):
        (data / name).write_text(rows)
    compare(data / "a.csv", data / "comparison.json", output_dir=data, num_resamples=10)


def study_onto_itself(data: Path) -> None:
    (data / "study.yaml").write_text("description: mine  # with my comments\ndata: {phantom: {num_patients: 4}}\n")
    run_study(data / "study.yaml", output=data)


def study_onto_its_data(data: Path) -> None:
    (data / "study.yaml").write_text("")
    run_study("quickstart", dataset=str(data / "labels"), output=data)


def auto3dseg_onto_its_input(data: Path) -> None:
    (data / "input.yaml").write_text(f"modality: ultrasound\ndatalist: {data}/datalist.json\ndataroot: {data}\n")
    run_auto3dseg(data / "input.yaml", output=data, num_fold=2)


def dicom_onto_its_key(data: Path) -> None:
    (data / "measurements.csv").write_bytes(os.urandom(32))
    run_dicom(data / "labels", data, BatchOptions(deidentify=str(data / "measurements.csv")))


def dicom_onto_its_weights(data: Path) -> None:
    (data / "report.html").write_bytes(b"weights")
    run_dicom(data / "labels", data, BatchOptions(checkpoint_path=str(data / "report.html")))


def train_onto(name: str) -> Callable[[Path], None]:
    def run(data: Path) -> None:
        shutil.copy(data.parent / "model.pt", data / name)
        KeepInputs([None, [{"image": "x"}], data, data / name], data)(SimpleNamespace())  # type: ignore[arg-type]

    return run


CASES: dict[str, Callable[[Path], Any]] = {
    "subset": lambda data: write_subset(data, data, patients=2),
    "subset_linked": lambda data: write_subset(data, linked(data), patients=2),
    "label_maps": lambda data: sample_label_maps(data, data, LabelMapOptions()),
    "label_maps_linked": lambda data: sample_label_maps(data, linked(data), LabelMapOptions()),
    "synthesise": plan,
    "synthesise_onto_weights": plan_onto_weights,
    "synthesise_into_label_maps": plan_into_label_maps,
    "merge": lambda data: merge_synthetic(data, data),
    "merge_linked": lambda data: merge_synthetic(linked(data), data),
    "examples": lambda data: write_examples(data, data),
    "package": lambda data: package_bundle(
        "echo_cris", data.parent / "model.pt", checkpoint_path=data.parent / "model.pt"
    ),
    "export": lambda data: export_bundle(
        "echo_cris", data.parent / "model.pt", checkpoint_path=data.parent / "model.pt"
    ),
    "compare": compare_onto_metrics,
    "experiment": study_onto_itself,
    "experiment_data": study_onto_its_data,
    "auto3dseg": auto3dseg_onto_its_input,
    "dicom_key": dicom_onto_its_key,
    "dicom_weights": dicom_onto_its_weights,
    "train_weights": train_onto("model.pt"),
    "train_resume": train_onto("resume.ckpt"),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", CASES)
def test_an_output_that_is_an_input_is_refused(data: Path, name: str) -> None:
    before = contents(data)
    weights = (data.parent / "model.pt").read_bytes()
    with pytest.raises(
        ValueError, match="(this run reads it and would|is to be merged into itself|among the input|among the outputs)"
    ):
        CASES[name](data)
    after = contents(data)
    assert before.items() <= after.items() or name == "synthesise_into_label_maps"
    assert {*after} - {*before} <= {
        "a.csv",
        "comparison.json",
        "study.yaml",
        "input.yaml",
        "measurements.csv",
        "report.html",
    } | {
        "model.pt",
        "resume.ckpt",
    }
    assert (data.parent / "model.pt").read_bytes() == weights


def test_a_training_that_goes_on_in_its_own_folder_is_none_of_these(data: Path, tmp_path: Path) -> None:
    for name in ("model.pt", "resume.ckpt", "history.csv", "log.txt"):
        (data / name).write_bytes(b"of the same training before")
    KeepInputs([data, tmp_path / "model.pt", None], data)(SimpleNamespace())  # type: ignore[arg-type]


def test_a_data_set_is_prepared_again_in_its_folder(camus_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(camus_dir, tmp_path / "camus")
    for _ in range(2):
        prepare_dataset(tmp_path / "camus", tmp_path / "camus")
    assert (tmp_path / "camus" / "datalist.json").is_file()
