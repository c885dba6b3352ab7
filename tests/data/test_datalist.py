"""Test datalist.json and the lists that bundles read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synboost_monai.data import list_images, list_label_maps, read_camus, read_datalist, write_datalist
from synboost_monai.files import atomic_path, atomic_write_text, image_stem
from synboost_monai.paths import result_names
from synboost_monai.records import EchoRecord
from synboost_monai.structures import CLASS_NAMES
from synboost_monai.transforms import load_echo


def write_json(folder: Path, **sections: Any) -> Path:
    """Write a datalist of image names; the images are made as empty files."""
    for items in sections.values():
        for item in items:
            (folder / item["image"]).touch()
    path = folder / "datalist.json"
    path.write_text(json.dumps(sections))
    return path


def test_what_is_written_is_read_again(camus_dir: Path, datalist_dir: Path) -> None:
    records = read_camus(camus_dir, progress=False).splits["training"]
    items = read_datalist(datalist_dir, "training")
    assert len(items) == len(records) == 16
    assert items[0] == {
        "image": str(records[0].image.resolve()),
        "label": str(records[0].label.resolve()),  # type: ignore[union-attr]
        "sequence": str(records[0].sequence.resolve()),  # type: ignore[union-attr]
        "sequence_label": str(records[0].sequence_label.resolve()),  # type: ignore[union-attr]
        "patient": "patient0001",
        "view": "apical_two_chamber",
        "phase": "end_diastole",
        "sex": "male",
        "age": 41,
        "image_quality": "medium",
        "ejection_fraction": 51.0,
        "shape": dict(records[0].shape),
        "is_synthetic": False,
    }


def test_the_file_is_decathlon_form_with_relative_paths(datalist_dir: Path) -> None:
    content = json.loads((datalist_dir / "datalist.json").read_text())
    assert content["modality"] == "ultrasound"
    assert content["labels"] == CLASS_NAMES
    assert [len(content[section]) for section in ("training", "validation", "testing")] == [16, 4, 4]
    assert not os.path.isabs(content["training"][0]["image"])


def test_monai_reads_the_datalist_itself(datalist_dir: Path) -> None:
    from monai.data import load_decathlon_datalist

    items = load_decathlon_datalist(str(datalist_dir / "datalist.json"), True, "validation", base_dir=str(datalist_dir))
    assert len(items) == 4 and all(os.path.isfile(item["image"]) and os.path.isfile(item["label"]) for item in items)


def test_data_and_datalist_can_be_moved_together(camus_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(camus_dir, tmp_path / "a" / "data")
    splits = read_camus(tmp_path / "a" / "data", progress=False, shape_source="none").splits
    write_datalist(tmp_path / "a" / "prepared", splits, name="x", description="y")
    shutil.move(tmp_path / "a", tmp_path / "b")
    item = read_datalist(tmp_path / "b" / "prepared", "testing")[0]
    assert item["image"].startswith(str((tmp_path / "b").resolve()))


def test_a_folder_reached_through_a_link_keeps_its_paths_right(camus_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "store" / "deep").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "store" / "deep", target_is_directory=True)
    splits = read_camus(camus_dir, progress=False, shape_source="none").splits
    path = write_datalist(tmp_path / "runs", splits, name="x", description="y")
    image = json.loads(path.read_text())["testing"][0]["image"]
    assert (tmp_path / "runs" / image).is_file()
    assert read_datalist(tmp_path / "runs", "testing")


def test_unknown_attributes_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    path = write_datalist(tmp_path, {"testing": [EchoRecord(tmp_path / "a.png", None, "a")]}, name="x", description="y")
    assert json.loads(path.read_text())["testing"] == [{"image": "a.png", "patient": "a", "is_synthetic": False}]


def test_several_sections_and_a_limit(datalist_dir: Path) -> None:
    both = read_datalist(datalist_dir, "training+validation")
    assert len(both) == 20 and both == read_datalist(datalist_dir / "datalist.json", ["training", "validation"])
    part = read_datalist(datalist_dir, "training", limit=4)
    assert [item["patient"] for item in part] == ["patient0001", "patient0002", "patient0003", "patient0004"]


def test_items_of_one_view_and_phase(datalist_dir: Path, camus_dir: Path) -> None:
    items = read_datalist(datalist_dir, "training", view="apical_four_chamber", phase="end_systole")
    assert [Path(item["label"]).name for item in items] == [f"patient000{n}_4CH_ES_gt.nii.gz" for n in (1, 2, 3, 4)]
    two_of_them = read_datalist(datalist_dir, "training", view="apical_four_chamber", phase="end_systole", limit=2)
    assert [item["patient"] for item in two_of_them] == ["patient0001", "patient0003"]
    assert len(list_label_maps(datalist_dir, "training", phase="end_diastole")) == 8
    of_folder = list_label_maps(camus_dir / "database_nifti", view="apical_two_chamber")
    assert {item["view"] for item in of_folder} == {"apical_two_chamber"} and of_folder


def test_an_unknown_view_or_one_without_items_is_refused(datalist_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="view must be apical_two_chamber or apical_four_chamber, got '4CH'"):
        read_datalist(datalist_dir, "training", view="4CH")
    with pytest.raises(ValueError, match="phase must be end_diastole or end_systole, got 'diastole'"):
        list_label_maps(datalist_dir, "training", phase="diastole")
    path = write_json(tmp_path, training=[{"image": "a.png", "phase": "end_diastole"}, {"image": "b.png"}])
    message = r"section training: no item is end_systole; there are end_diastole \(1\), without phase \(1\)"
    with pytest.raises(ValueError, match=message):
        read_datalist(path, "training", phase="end_systole")


def test_a_label_map_without_image_has_its_sector(tmp_path: Path) -> None:
    for name in ("a_gt.nii.gz", "a_sector.nii.gz"):
        (tmp_path / name).touch()
    record = EchoRecord(None, tmp_path / "a_gt.nii.gz", "a", is_synthetic=True, sector=tmp_path / "a_sector.nii.gz")
    path = write_datalist(tmp_path, {"training": [record]}, name="x", description="y")
    assert json.loads(path.read_text())["training"] == [
        {"label": "a_gt.nii.gz", "sector": "a_sector.nii.gz", "patient": "a", "is_synthetic": True}
    ]
    (item,) = list_label_maps(tmp_path, "training")
    assert item["sector"] == str((tmp_path / "a_sector.nii.gz").resolve()) and "image" not in item
    (tmp_path / "a_sector.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="sector .*a_sector.nii.gz does not exist"):
        list_label_maps(tmp_path, "training")


def test_crossing_patients_are_not_written(tmp_path: Path) -> None:
    record = EchoRecord(tmp_path / "a.png", None, "patient0001")
    with pytest.raises(ValueError, match="patient patient0001 is in two splits, training and testing"):
        write_datalist(tmp_path / "out", {"training": [record], "testing": [record]}, name="x", description="y")
    assert not (tmp_path / "out").exists()


def test_a_value_that_prompts_do_not_know_is_not_written(tmp_path: Path) -> None:
    record = EchoRecord(tmp_path / "a.png", None, "a", view="4CH")
    with pytest.raises(
        ValueError, match=r"testing\[0\]: view must be apical_two_chamber or apical_four_chamber, got '4CH'"
    ):
        write_datalist(tmp_path, {"testing": [record]}, name="x", description="y")
    assert list(tmp_path.iterdir()) == []


# ---- reading what is at fault


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        # crossing patients, whatever section is read
        (
            "validation",
            {"testing": [{"image": "c.png", "patient": "p1"}]},
            "p1 is in two splits, training and testing; take it",
        ),
        ("testing", {"testing": [{"image": "a.png"}]}, "image a.png is in two splits"),
        ("test", {}, r"no section is called 'test'; there are training \(1\), validation \(1\)"),
        ("testing", {"testing": []}, r"section 'testing' is empty; there are training \(1\), validation \(1\)"),
    ],
)
def test_wrong_sections_are_refused(tmp_path: Path, section: str, changes: dict[str, Any], message: str) -> None:
    sections = {name: [{"image": f"{p}.png", "patient": p}] for name, p in (("training", "p1"), ("validation", "p2"))}
    sections["training"][0]["image"] = "a.png"
    with pytest.raises(ValueError, match=message):
        read_datalist(write_json(tmp_path, **sections, **changes), section)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = write_json(tmp_path, testing=[{"image": "a.png"}])
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="image .*a.png does not exist"):
        read_datalist(path, "testing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'training': []}", "not valid JSON"),
        ("[1, 2]", "expected an object with the sections training, validation, testing, got a list"),
        ('{"testing": [3]}', r"testing\[0\]: expected an object with the key image"),
        ('{"testing": [{"image": 3}]}', "image must be a path, got 3"),
        ('{"testing": [{"image": "a.png", "sex": "F"}]}', "sex must be male or female, got 'F'"),
        ('{"testing": [{"image": "a.png", "age": "56"}]}', "age must be a number, got '56'"),
        (
            '{"testing": [{"image": "a.png", "shape": {"myocardium": "star"}}]}',
            "shape must give each structure's name one of",
        ),
        ('{"testing": [{"image": "a.png", "shape": {"aorta": "oval"}}]}', "shape names aorta, but the structures are"),
    ],
)
def test_a_bad_datalist_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "datalist.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_datalist(tmp_path, "testing")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_datalist_with_a_byte_order_mark_is_read_as_without(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "datalist.json").write_bytes(b'\xef\xbb\xbf{"testing": [{"image": "a.png"}]}\r\n')
    assert [item["image"] for item in read_datalist(tmp_path, "testing")] == [str(tmp_path / "a.png")]


def test_a_camus_folder_is_told_to_be_prepared_first(camus_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match="synboost prepare DATASET OUT"):
        read_datalist(camus_dir, "training")
    with pytest.raises(FileNotFoundError, match="no such folder or datalist"):
        read_datalist(camus_dir / "nowhere", "training")


# ---- folders


def test_images_of_a_camus_folder_leave_out_label_maps_and_sequences(camus_dir: Path) -> None:
    items = list_images(camus_dir)
    assert len(items) == 24
    first = camus_dir.resolve() / "database_nifti/patient0001/patient0001_2CH_ED.nii.gz"
    assert items[0] == {
        "image": str(first),
        "patient": "patient0001",
        "view": "apical_two_chamber",
        "phase": "end_diastole",
    }


def test_images_of_mixed_formats_are_found_and_other_files_passed_over(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.nii", "c.mhd", "c.raw", "d.mha", "notes.txt", ".hidden.png", "a_gt.nii"):
        (tmp_path / name).touch()
    assert [Path(item["image"]).name for item in list_images(tmp_path)] == ["a.nii", "b.PNG", "c.mhd", "d.mha"]


def test_pictures_are_images(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JPEG", "c.bmp", "d.tif"):
        (tmp_path / name).touch()
    assert [Path(item["image"]).name for item in list_images(tmp_path)] == ["a.jpg", "b.JPEG", "c.bmp"]


def test_clips_of_a_folder_are_listed_when_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.avi", "a.mp4", "a.MP4", "a.png", "b_gt.nii.gz", "b.avi", "c.mov"):
        (tmp_path / name).touch()
    assert [Path(item["image"]).name for item in list_images(tmp_path)] == ["a.png"]
    assert "4 clips (taken with --sequences true), 1 .mov" in caplog.messages[0]
    items = list_images(tmp_path, sequences=True)
    assert [Path(item["image"]).name for item in items] == ["a.MP4", "a.avi", "a.mp4", "a.png", "b.avi"]
    cases = result_names([item["image"] for item in items], [image_stem(item["image"]) for item in items])
    assert len({case.casefold() for case in cases}) == 5 and cases[4] == "b"
    (label,) = list_label_maps(tmp_path)  # a clip is no label map, nor the image of one plane
    assert Path(label["label"]).name == "b_gt.nii.gz" and "image" not in label
    for name in ("a.png", "b_gt.nii.gz"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="no images .*clips with --sequences true alone"):
        list_images(tmp_path)
    with pytest.raises(ValueError, match="no label maps"):
        list_label_maps(tmp_path)
    assert [Path(item["image"]).name for item in list_images(tmp_path / "a.avi")] == ["a.avi"]


def test_dicom_of_any_name_is_found_if_it_is_ultrasound(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import pydicom

    from synboost_monai.dicom.writing.image import write_dicom_pair

    pixels, folder = np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8), tmp_path / "images"
    folder.mkdir()
    record = EchoRecord(folder / "IM_0001", tmp_path / "seg.dcm", "p", "apical_four_chamber", sex="female", age=64)
    write_dicom_pair(record, pixels, np.zeros_like(pixels), (0.4, 0.2), name="x")
    (folder / "1.2.840.1").symlink_to(folder / "IM_0001")
    (tmp_path / "seg.dcm").rename(folder / "IM_0002")  # a segmentation is no image
    dataset = pydicom.dcmread(folder / "IM_0001")
    dataset.Modality, dataset.SOPClassUID = "CT", "1.2.840.10008.5.1.4.1.1.2"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.save_as(folder / "slice.ct")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(40))
    (folder / "list").write_text("IM_0001")
    os.mkfifo(folder / "pipe")
    assert [Path(item["image"]).name for item in list_images(folder)] == ["1.2.840.1", "IM_0001"]
    (line,) = caplog.messages
    assert line == (f"{folder}: 5 files were not taken: 3 DICOM without an ultrasound image, 2 without suffix")
    assert load_echo(folder / "IM_0001")[0].shape == (1, 40, 50)


def test_what_is_not_taken_is_counted_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [
        "a.nii.gz",
        "a_gt.nii.gz",
        "a_sequence.nii.gz",
        "b.mhd",
        "b.raw",
        "c.raw",
        "d.txt",
        "e.TXT",
        "f.nrrd",
        ".g.png",
    ]
    for name in [*names, "evil.x\ny", "no_end"]:
        (tmp_path / name).touch()
    record = {"synboost_version": "1", "label_map": "h.nii.gz", "spread": "h_spread.nii.gz"}
    (tmp_path / "h.json").write_text(json.dumps(record))
    for name in ("h.nii.gz", "h_spread.nii.gz"):
        (tmp_path / name).touch()
    assert [Path(item["image"]).name for item in list_images(tmp_path)] == ["a.nii.gz", "b.mhd"]
    assert caplog.messages == [
        f"{tmp_path}: 12 files were not taken: 3 results of an earlier run, 2 .txt, 1 .nrrd, 1 .raw, 1 hidden, "
        "1 label maps (..._gt), 1 of other names, 1 sequences (..._sequence), 1 others"
    ]
    caplog.clear()
    assert list_label_maps(tmp_path)
    assert len(caplog.messages) == 1 and "2 .txt" in caplog.messages[0]
    caplog.clear()
    assert list_images(tmp_path / "a.nii.gz") and not caplog.messages


def test_one_image_file_is_a_list_of_one(tmp_path: Path) -> None:
    (tmp_path / "echo.png").touch()
    assert list_images(tmp_path / "echo.png") == [{"image": str(tmp_path / "echo.png")}]


def test_a_datalist_in_the_folder_comes_first(datalist_dir: Path) -> None:
    assert list_images(datalist_dir) == read_datalist(datalist_dir, "testing")
    assert len(list_images(datalist_dir / "datalist.json", "validation", limit=2)) == 2


def test_an_empty_folder_or_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images"):
        list_images(tmp_path)
    with pytest.raises(ValueError, match="no label maps"):
        list_label_maps(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        list_images(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="not an image by its name; expected .nii.gz"):
        list_images(tmp_path / "notes.txt")


def test_label_maps_of_a_datalist_keep_their_attributes(datalist_dir: Path) -> None:
    items = list_label_maps(datalist_dir, "training+validation")
    assert len(items) == 20 and items[0]["label"].endswith("patient0001_2CH_ED_gt.nii.gz") and items[0]["sex"] == "male"


def test_a_section_without_label_maps_is_refused(tmp_path: Path) -> None:
    path = write_json(tmp_path, training=[{"image": "a.png"}])
    with pytest.raises(ValueError, match="no item of section training has a label map"):
        list_label_maps(path)


def test_label_maps_of_a_folder_find_their_image(camus_dir: Path, tmp_path: Path) -> None:
    items = list_label_maps(camus_dir)
    assert len(items) == 24 and items[0]["image"] == items[0]["label"].replace("_gt", "")
    assert items[0]["phase"] == "end_diastole"
    (tmp_path / "map.nii.gz").touch()
    assert list_label_maps(tmp_path) == [{"label": str((tmp_path / "map.nii.gz").resolve())}]


# ---- io


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.nii.gz"
    atomic_write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        assert temporary.name.endswith(".nii.gz") and temporary.parent == path.parent
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    atomic_write_text(path, "new")
    assert path.read_text() == "new"


def test_the_data_package_has_no_other_names() -> None:
    import synboost_monai.data

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = synboost_monai.data.nothing


# ---- joint training on several data sets


@pytest.fixture
def real_and_synthetic(tmp_path: Path) -> tuple[Path, Path]:
    """Make a real data set of two patients for training, one for validation, one for testing, and a synthetic one of the first two."""
    for name in ("real", "synthetic"):
        (tmp_path / name).mkdir()
    write_json(
        tmp_path / "real",
        training=[
            {"image": "a.png", "patient": "p1", "view": "apical_two_chamber", "is_synthetic": False},
            {"image": "b.png", "patient": "p2", "view": "apical_four_chamber", "is_synthetic": False},
        ],
        validation=[{"image": "c.png", "patient": "p3"}],
        testing=[{"image": "d.png", "patient": "p4"}],
    )
    write_json(
        tmp_path / "synthetic",
        training=[
            {"image": f"{p}_v{v}.png", "patient": p, "view": "apical_two_chamber", "is_synthetic": True}
            for p in ("p1", "p2")
            for v in range(3)
        ],
    )
    return tmp_path / "real", tmp_path / "synthetic"


def test_items_of_another_data_set_join_those_of_the_same_section(real_and_synthetic: tuple[Path, Path]) -> None:
    real, synthetic = real_and_synthetic
    items = read_datalist(real, "training", extra_dir=synthetic)
    assert items == read_datalist(real, "training") + read_datalist(synthetic, "training")
    assert [item["is_synthetic"] for item in items] == [False] * 2 + [True] * 6
    assert items[2]["image"] == str(synthetic.resolve() / "p1_v0.png")
    assert items == read_datalist(real, "training", extra_dir=[str(synthetic / "datalist.json")])
    for none in (None, [], ""):
        assert read_datalist(real, "training", extra_dir=none) == items[:2]


def test_view_and_limit_are_those_of_each_joined_data_set(real_and_synthetic: tuple[Path, Path]) -> None:
    real, synthetic = real_and_synthetic
    items = read_datalist(real, "training", view="apical_two_chamber", limit=2, extra_dir=synthetic)
    assert [Path(item["image"]).name for item in items] == ["a.png", "p1_v0.png", "p2_v0.png"]
    with pytest.raises(ValueError, match="synthetic/datalist.json: section training: no item is apical_four_chamber"):
        read_datalist(real, "training", view="apical_four_chamber", extra_dir=synthetic)


def test_a_joined_data_set_needs_training_but_neither_validation_nor_testing(
    real_and_synthetic: tuple[Path, Path], tmp_path: Path
) -> None:
    real, synthetic = real_and_synthetic
    assert read_datalist(real, "validation", extra_dir=synthetic) == read_datalist(real, "validation")
    assert len(read_datalist(real, "training+testing", extra_dir=synthetic)) == 2 + 1 + 6
    (tmp_path / "other").mkdir()
    write_json(tmp_path / "other", testing=[{"image": "z.png", "patient": "p9"}])
    with pytest.raises(
        ValueError, match=r"other/datalist.json: no section is called 'training'; there are testing \(1\)"
    ):
        read_datalist(real, "training", extra_dir=[synthetic, tmp_path / "other"])
    assert len(read_datalist(real, "testing", extra_dir=[synthetic, tmp_path / "other"])) == 2
    with pytest.raises(ValueError, match="synthetic/datalist.json: no section is called 'validation'"):
        read_datalist(synthetic, "validation", extra_dir=real)  # the first must have what is asked for
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder or datalist"):
        read_datalist(real, "training", extra_dir=tmp_path / "nowhere")


def test_a_synthetic_image_of_a_patient_of_another_section_is_refused(
    real_and_synthetic: tuple[Path, Path], tmp_path: Path
) -> None:
    real, synthetic = real_and_synthetic
    (tmp_path / "leaking").mkdir()
    write_json(tmp_path / "leaking", training=[{"image": "x.png", "patient": "p4", "is_synthetic": True}])
    message = (
        "leaking/datalist.json: patient p4 is in section training, but in section testing of .*real/datalist.json; "
        "no model may learn from patients that judge it"
    )
    for section in ("training", "validation", "testing"):
        with pytest.raises(ValueError, match=message) as error:
            read_datalist(real, section, extra_dir=[synthetic, tmp_path / "leaking"])
        assert "\n" not in str(error.value)
    assert len(read_datalist(tmp_path / "leaking", "training")) == 1  # alone it is fine


def test_a_data_set_given_twice_or_a_shared_image_is_refused(
    real_and_synthetic: tuple[Path, Path], tmp_path: Path
) -> None:
    real, synthetic = real_and_synthetic
    with pytest.raises(ValueError, match="is given twice, as dataset_dir and extra_dir"):
        read_datalist(real, "training", extra_dir=[synthetic, real / "datalist.json"])
    (tmp_path / "other").mkdir()
    content = {"training": [{"image": "../real/d.png"}]}
    (tmp_path / "other" / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="image ../real/d.png is in section training, but in section testing of"):
        read_datalist(real, "training", extra_dir=tmp_path / "other")


# ---- sequences of a folder


def test_sequences_of_a_folder_are_listed_when_asked_for(tmp_path: Path) -> None:
    names = ("p1_4CH_ED.nii.gz", "p1_4CH_half_sequence.nii.gz", "p1_4CH_half_sequence_gt.nii.gz", "p1_4CH_ED_gt.nii.gz")
    for name in (*names, "q_sequence.mhd", ".hidden_sequence.nii"):
        (tmp_path / name).touch()
    assert [Path(item["image"]).name for item in list_images(tmp_path)] == ["p1_4CH_ED.nii.gz"]
    found = [Path(item["image"]).name for item in list_images(tmp_path, sequences=True)]
    assert found == ["p1_4CH_ED.nii.gz", "p1_4CH_half_sequence.nii.gz", "q_sequence.mhd"]
    one_file = tmp_path / "q_sequence.mhd"
    assert list_images(one_file, sequences=True) == list_images(one_file) == [{"image": str(one_file)}]
    assert [Path(i["label"]).name for i in list_label_maps(tmp_path)] == ["p1_4CH_ED_gt.nii.gz"]
