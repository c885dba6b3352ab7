"""Test parts of a data set: whole patients, nested, counted with their validation, images found in their places."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synboost_monai.data import read_datalist, write_subset


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Make a data set of 20 training, 5 validation and 3 testing patients, two images each."""
    folder = tmp_path / "real"
    (folder / "images").mkdir(parents=True)
    content: dict = {"name": "made", "description": "a made data set", "labels": {"0": "background"}}
    first = 0
    for section, count in (("training", 20), ("validation", 5), ("testing", 3)):
        items = []
        for number in range(first, first + count):
            for phase in ("end_diastole", "end_systole"):
                name = f"images/patient{number:04d}_{phase}.png"
                Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / name)
                items.append({"image": name, "label": name, "patient": f"patient{number:04d}", "phase": phase})
        content[section] = items
        first += count
    (folder / "datalist.json").write_text(json.dumps(content))
    return folder


def patients(folder: Path, section: str) -> set[str]:
    return {item["patient"] for item in read_datalist(folder, section)}


def test_validation_patients_count_among_the_patients(dataset: Path, tmp_path: Path) -> None:
    text = write_subset(dataset, tmp_path / "part", patients=10)
    assert len(patients(tmp_path / "part", "training")) == 8
    assert len(patients(tmp_path / "part", "validation")) == 2
    assert patients(tmp_path / "part", "testing") == patients(dataset, "testing")
    assert "10 of 25 patients, drawn by seed 0: 8 for training (16 images), 2 for validation (4 images)" in text
    assert (tmp_path / "part" / "summary.txt").read_text().strip() in text


def test_every_section_keeps_to_its_own_patients(dataset: Path, tmp_path: Path) -> None:
    write_subset(dataset, tmp_path / "part", patients=0.4, seed=3)
    for section in ("training", "validation"):
        assert patients(tmp_path / "part", section) < patients(dataset, section)


def test_a_smaller_part_lies_within_a_larger_one(dataset: Path, tmp_path: Path) -> None:
    for count in (5, 10, 20):
        write_subset(dataset, tmp_path / str(count), patients=count, seed=1)
    for section in ("training", "validation"):
        small, middle, large = (patients(tmp_path / str(count), section) for count in (5, 10, 20))
        assert small < middle < large or small == middle < large


def test_seeds_draw_other_patients(dataset: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_subset(dataset, tmp_path / str(seed), patients=10, seed=seed)
    assert patients(tmp_path / "0", "training") != patients(tmp_path / "1", "training")


def test_folds_cover_every_patient_once(dataset: Path, tmp_path: Path) -> None:
    held_out = []
    for fold in range(4):
        write_subset(dataset, tmp_path / str(fold), fold=fold, num_folds=4)
        training, validation = (patients(tmp_path / str(fold), s) for s in ("training", "validation"))
        assert not training & validation and len(training | validation) == 25
        held_out += sorted(validation)
    assert sorted(held_out) == sorted(patients(dataset, "training") | patients(dataset, "validation"))


def test_fewer_patients_in_folds(dataset: Path, tmp_path: Path) -> None:
    write_subset(dataset, tmp_path / "all", patients=9, seed=2)
    write_subset(dataset, tmp_path / "fold", patients=9, fold=2, num_folds=3, seed=2)
    of = lambda name: patients(tmp_path / name, "training") | patients(tmp_path / name, "validation")  # noqa: E731
    assert of("fold") == of("all") and len(patients(tmp_path / "fold", "validation")) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patients": 1}, "whole number of at least 2, or a share between 0 and 1, got 1"),
        ({"patients": 2.5}, "got 2.5"),
        ({"patients": 26}, "26 patients are asked for, but training and validation have 25 together"),
        ({"fold": 5}, "fold must be 0 to 4 of 5 folds, got 5"),
        ({"patients": 3, "fold": 0}, "num_folds must be at least 2 and at most the 3 patients, got 5"),
    ],
)
def test_what_cannot_be_is_said(dataset: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_subset(dataset, tmp_path / "part", **options)
    assert not (tmp_path / "part").exists()


def test_items_must_name_their_patient(dataset: Path, tmp_path: Path) -> None:
    content = json.loads((dataset / "datalist.json").read_text())
    del content["validation"][3]["patient"]
    (dataset / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"validation\[3\] does not name its patient"):
        write_subset(dataset, tmp_path / "part", patients=10)


def test_balance_repeats_the_smaller_data_set(dataset: Path, tmp_path: Path) -> None:
    write_subset(dataset, tmp_path / "few", patients=5)  # 8 training images
    other = tmp_path / "other"
    content = json.loads((dataset / "datalist.json").read_text())
    many = [{**item, "patient": "drawn"} for item in content["training"][:30]]
    for item in many:
        item["label"] = item["image"]
    (other / "images").mkdir(parents=True)
    for item in many:
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(other / item["image"])
    (other / "datalist.json").write_text(json.dumps({"training": many}))

    few = read_datalist(tmp_path / "few", "training")
    together = read_datalist(tmp_path / "few", "training", extra_dir=other, balance=True)
    images = [item["image"] for item in together]
    assert len(few) == 8 and len(together) == 4 * 8 + 30  # 30 / 8 is nearest to 4
    assert all(images.count(item["image"]) == 4 for item in few)
    assert len(read_datalist(tmp_path / "few", "training", extra_dir=other)) == 8 + 30
    assert read_datalist(tmp_path / "few", "validation", extra_dir=other, balance=True) == read_datalist(
        tmp_path / "few", "validation"
    )
