"""Test Auto3DSeg's datalists: attributes survive, folds are made of whole patients, a fold is a data set of ours."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monai.auto3dseg.utils import datafold_read

from synboost_monai.auto3dseg.folds import check_folds, find_item, read_items, with_folds, write_fold
from synboost_monai.data import read_datalist, write_subset


@pytest.fixture
def sections(datalist_dir: Path) -> dict[str, list[dict[str, Any]]]:
    return read_items(datalist_dir / "datalist.json", datalist_dir)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a datalist of sections, and returns its path."""

    def write_sections(**content: Any) -> Path:
        path = tmp_path / "datalist.json"
        path.write_text(json.dumps(content))
        return path

    return write_sections


def test_items_have_the_attributes_that_monai_s_reader_spoils(datalist_dir: Path) -> None:
    read, _ = datafold_read(str(datalist_dir / "datalist.json"), str(datalist_dir), fold=-1)
    assert read[0]["view"] == str(datalist_dir / "apical_two_chamber")  # why there is a reader of our own
    items = read_items(datalist_dir / "datalist.json", datalist_dir)["training"]
    assert [item["view"] for item in items] == [item["view"] for item in read_datalist(datalist_dir, "training")]
    assert all(os.path.isabs(item["image"]) and os.path.isfile(item["label"]) for item in items)
    assert "sequence" not in items[0]


def test_names_like_those_of_camus_tell_patient_view_and_phase(
    sections: dict[str, Any], write: Callable[..., Path]
) -> None:
    bare = [{"image": i["image"], "label": i["label"], "tags": [1, 2]} for i in sections["training"]]
    read = read_items(write(training=bare, testing=[sections["testing"][0]["image"]]), "/")
    assert [i["patient"] for i in read["training"]] == [i["patient"] for i in sections["training"]]
    assert {i["phase"] for i in read["training"]} == {"end_diastole", "end_systole"}
    assert read["testing"][0]["view"] == sections["testing"][0]["view"]
    assert "tags" not in read["training"][0]  # datafold_read would put a folder before each number


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "expected a section `training`"),
        ("{", "not valid JSON"),
        ('{"training": []}', "expected a section `training`"),
        ('{"training": [{"label": "a.nii.gz"}]}', "training.0.: expected an object with the key image"),
        ('{"training": [{"image": ["a.nii.gz", "b.nii.gz"]}]}', "image must be the path of one file"),
        ('{"training": [{"image": "a.nii.gz"}]}', "has no label map"),
        ('{"training": [{"image": "a.dcm", "label": "b.dcm"}]}', "is no NIfTI, MetaImage or PNG"),
        ('{"training": [{"image": "a.nii.gz", "label": "b.nii.gz"}]}', "a.nii.gz does not exist; is dataroot right"),
    ],
)
def test_bad_datalist_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "datalist.json").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_items(tmp_path / "datalist.json", tmp_path)


def test_folds_are_whole_patients_and_those_of_subset(
    sections: dict[str, Any], datalist_dir: Path, tmp_path: Path
) -> None:
    items = with_folds(sections, 3, seed=5, where="here")
    assert len(items) == len(sections["training"]) + len(sections["validation"])
    assert check_folds(items, "here") == 3
    for fold in range(3):
        write_subset(datalist_dir, tmp_path / str(fold), fold=fold, num_folds=3, seed=5)
        held_out = {item["patient"] for item in read_datalist(tmp_path / str(fold), "validation")}
        assert held_out == {item["patient"] for item in items if item["fold"] == fold}
    assert check_folds(with_folds(sections, None, seed=5, where="here"), "here") == 5  # as many as there are patients


def test_one_fold_is_the_datalist_s_own_validation(sections: dict[str, Any]) -> None:
    items = with_folds(sections, 1, seed=0, where="here")
    assert [i["image"] for i in items if i["fold"] == 0] == [i["image"] for i in sections["validation"]]
    with pytest.raises(ValueError, match="`validation`, which is empty"):
        with_folds({"training": sections["training"]}, 1, seed=0, where="here")


def test_given_folds_stay(sections: dict[str, Any]) -> None:
    patients = sorted({item["patient"] for item in sections["training"]})
    given = [{**item, "fold": patients.index(item["patient"]) % 2} for item in sections["training"]]
    assert with_folds({"training": given, "validation": []}, None, seed=9, where="here") == given
    with pytest.raises(ValueError, match="has 2 folds, so num_fold must be 1 to 2, got 3"):
        with_folds({"training": given}, 3, seed=9, where="here")


def test_bad_folds_are_refused(sections: dict[str, Any]) -> None:
    training = sections["training"]
    by_image = [{**item, "fold": number % 2} for number, item in enumerate(training)]
    with pytest.raises(ValueError, match="patient patient0001 is in two splits, fold 0 and fold 1"):
        with_folds({"training": by_image}, None, seed=0, where="here")
    nameless = [{**item, "patient": None} for item in by_image]
    assert with_folds({"training": nameless}, None, seed=0, where="here") == nameless  # nobody can know
    with pytest.raises(ValueError, match="image .* is in two splits"):
        with_folds({"training": [*nameless, {**nameless[0], "fold": 1}]}, None, seed=0, where="here")
    with pytest.raises(ValueError, match=r"training\[1\] has no fold, others have"):
        with_folds({"training": [by_image[0], training[1]]}, None, seed=0, where="here")
    for folds in (["0", "1"], [1, 2], [0, 2]):  # MONAI compares a fold with a whole number
        wrong = [{**item, "fold": fold} for item, fold in zip(training[::4], folds)]
        with pytest.raises(ValueError, match="folds must be numbered 0, 1, 2"):
            with_folds({"training": wrong}, None, seed=0, where="here")


def test_folds_cannot_be_made_of_unknown_or_too_few_patients(sections: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="does not name its patient"):
        with_folds({"training": [{**i, "patient": None} for i in sections["training"]]}, 2, seed=0, where="here")
    with pytest.raises(ValueError, match="num_fold must be 2 to the 4 patients, got 6"):
        with_folds({"training": sections["training"]}, 6, seed=0, where="here")


def test_fold_is_a_data_set_that_bundles_read(
    sections: dict[str, Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    items = with_folds(sections, 2, seed=0, where="here")
    folder = write_fold(write(training=items), "/", 1, tmp_path / "fold")
    validation, training = read_datalist(folder, "validation"), read_datalist(folder, "training")
    assert [i["image"] for i in validation] == [i["image"] for i in items if i["fold"] == 1]
    assert len(training) + len(validation) == len(items)
    assert training[0]["sex"] == next(i["sex"] for i in items if i["fold"] == 0)


def test_fold_with_a_patient_on_both_sides_is_refused(
    sections: dict[str, Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    by_image = [{**item, "fold": number % 2} for number, item in enumerate(sections["training"])]
    with pytest.raises(ValueError, match="fold 1: patient patient0001 is in two splits, training and validation"):
        write_fold(write(training=by_image), "/", 1, tmp_path / "fold")
    with pytest.raises(ValueError, match="fold 3 leaves nothing for validation"):
        write_fold(write(training=by_image), "/", 3, tmp_path / "fold")


def test_item_is_found_by_any_path_of_its_image(datalist_dir: Path, sections: dict[str, Any], tmp_path: Path) -> None:
    wanted = sections["testing"][2]
    where = datalist_dir / "datalist.json", datalist_dir
    assert find_item(*where, wanted["image"]) == wanted
    (tmp_path / "link.nii.gz").symlink_to(wanted["image"])
    found = find_item(*where, str(tmp_path / "link.nii.gz"))
    assert found is not None and found["view"] == wanted["view"]
    shutil.copy(wanted["image"], tmp_path / "other.nii.gz")
    assert find_item(*where, str(tmp_path / "other.nii.gz")) is None
    assert find_item(tmp_path / "gone.json", tmp_path, wanted["image"]) is None
