"""Test reading CAMUS: both releases, partial copies, every kind of damage."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from synboost_monai.data import read_camus
from synboost_monai.data.camus import CamusDataset, parse_info
from synboost_monai.files import read_plane

nib = pytest.importorskip("nibabel")

MakeCamus = Callable[..., Path]


def read(root: Path, **options: object) -> CamusDataset:
    """Read quickly, for tests about anything but shapes."""
    return read_camus(root, progress=False, **{"shape_source": "none", **options})  # type: ignore[arg-type]


def patients_of(dataset: CamusDataset) -> dict[str, list[str]]:
    return {section: sorted({r.patient for r in records}) for section, records in dataset.splits.items()}


def rewrite_label(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj).copy()), image.affine), path)


# ---- sound copies


def test_current_release_gives_every_image_with_its_attributes(camus_dir: Path) -> None:
    dataset = read(camus_dir, strict=True)
    assert patients_of(dataset) == {
        "training": [f"patient000{n}" for n in (1, 2, 3, 4)],
        "validation": ["patient0005"],
        "testing": ["patient0006"],
    }
    assert [len(part) for part in dataset.splits.values()] == [16, 4, 4]
    record = dataset.splits["training"][1]
    assert (record.patient, record.view, record.phase) == ("patient0001", "apical_two_chamber", "end_systole")
    assert (record.sex, record.age, record.image_quality, record.ejection_fraction) == ("male", 41, "medium", 51.0)
    assert record.image.name == "patient0001_2CH_ES.nii.gz" and record.label is not None
    assert record.label.name == "patient0001_2CH_ES_gt.nii.gz"
    assert record.sequence is not None and record.sequence.name == "patient0001_2CH_half_sequence.nii.gz"
    assert record.sequence_label is not None and record.sequence_label.name.endswith("_half_sequence_gt.nii.gz")
    assert dataset.summary.problems == () and dataset.summary.lacks == ()
    assert dataset.summary.counts["training"] == {"patients": 4, "images": 16, "2CH": 8, "4CH": 8, "ED": 8, "ES": 8}
    assert "training      4 patients    16 images  (2CH 8, 4CH 8, ED 8, ES 8)" in str(dataset.summary)


@pytest.mark.parametrize("inner", ["", "database_nifti"])
def test_the_folder_of_patients_itself_may_be_given(camus_dir: Path, inner: str) -> None:
    assert patients_of(read(camus_dir / inner))["testing"] == ["patient0006"]


def test_an_unpacked_archive_one_level_down_is_found(make_camus: MakeCamus) -> None:
    root = make_camus(num_training=1)
    assert len(read(root.parent).splits["testing"]) == 4


def test_first_release_keeps_its_folders_and_renames_its_testing_patients(make_first_camus: MakeCamus) -> None:
    dataset = read(make_first_camus(num_training=6, num_testing=2), strict=True)
    patients = patients_of(dataset)
    assert patients["testing"] == ["testing_patient0001", "testing_patient0002"]
    assert len(patients["training"]) == 5 and len(patients["validation"]) == 1
    record = next(r for r in dataset.splits["training"] + dataset.splits["validation"] if r.patient == "patient0001")
    assert (record.sex, record.age, record.image_quality, record.ejection_fraction) == ("male", 41, "medium", 51.0)
    assert record.sequence is not None and record.sequence.name == "patient0001_2CH_sequence.mhd"
    assert record.sequence_label is None
    assert dataset.summary.release == "first"


def test_first_release_without_testing_labels_tests_on_training_patients(make_first_camus: MakeCamus) -> None:
    dataset = read(make_first_camus(num_training=6, num_testing=2, testing_labels=False))
    patients = patients_of(dataset)
    assert patients["unlabelled"] == ["testing_patient0001", "testing_patient0002"]
    assert all(record.label is None for record in dataset.splits["unlabelled"])
    assert [len(patients[s]) for s in ("training", "validation", "testing")] == [4, 1, 1]
    assert any("label maps are not in this copy" in note for note in dataset.summary.notes)


def test_both_releases_read_the_same_pixels_and_spacing(make_camus: MakeCamus, make_first_camus: MakeCamus) -> None:
    current = read_plane(make_camus() / "database_nifti/patient0001/patient0001_4CH_ED.nii.gz")
    first = read_plane(make_first_camus() / "training/patient0001/patient0001_4CH_ED.mhd")
    assert current.pixels.shape == first.pixels.shape == (48, 40)
    assert np.array_equal(current.pixels, first.pixels)
    assert current.spacing_mm == pytest.approx((1.5, 2.0)) and first.spacing_mm == pytest.approx((1.5, 2.0))


# ---- splits


def test_paper_split_takes_the_first_ninth_of_the_patients_not_for_testing(make_camus: MakeCamus) -> None:
    root = make_camus(num_training=16, num_validation=2, num_testing=2, views=("4CH",))
    patients = patients_of(read(root, split="paper"))
    assert patients["validation"] == ["patient0001", "patient0002"]  # 18 * 50 / 450
    assert patients["testing"] == ["patient0019", "patient0020"] and len(patients["training"]) == 16


def test_a_gap_in_the_copy_does_not_move_the_border_of_the_paper_split(make_camus: MakeCamus) -> None:
    root = make_camus(num_training=16, num_validation=2, num_testing=2, views=("4CH",))
    shutil.rmtree(root / "database_nifti/patient0001")
    dataset = read(root, split="paper")
    assert patients_of(dataset)["validation"] == ["patient0002"]
    assert "patient0001: named in subgroup_training.txt but has no folder" in dataset.summary.problems


@pytest.mark.parametrize("split", ["official", "paper"])
def test_without_testing_patients_the_validation_patients_are_the_test(make_camus: MakeCamus, split: str) -> None:
    dataset = read(make_camus(num_training=9, num_validation=2, num_testing=0, views=("4CH",)), split=split)
    patients = patients_of(dataset)
    assert patients["testing"] == ["patient0010", "patient0011"]
    assert len(patients["validation"]) == 1 and len(patients["training"]) == 8
    assert any(note.startswith("testing: the 2 official validation patients") for note in dataset.summary.notes)
    assert "no testing patients: subgroup_testing.txt is missing or empty" in dataset.summary.lacks
    again = patients_of(read(dataset.summary.root, split=split))
    assert again == patients


def test_carved_validation_follows_the_seed(make_camus: MakeCamus) -> None:
    root = make_camus(num_training=9, num_validation=1, num_testing=0, views=("4CH",))
    drawn = {patients_of(read(root, seed=seed))["validation"][0] for seed in range(5)}
    assert len(drawn) > 1


def test_without_any_split_file_the_patients_are_drawn_and_disjoint(make_camus: MakeCamus) -> None:
    root = make_camus(num_training=10, num_validation=0, num_testing=0, views=("4CH",))
    shutil.rmtree(root / "database_split")
    dataset = read(root)
    patients = patients_of(dataset)
    assert [len(patients[s]) for s in ("training", "validation", "testing")] == [8, 1, 1]
    assert len(set().union(*patients.values())) == 10
    assert any("no official split" in lack for lack in dataset.summary.lacks)


def test_smaller_parts_of_the_training_patients_lie_within_larger_ones(make_camus: MakeCamus) -> None:
    root = make_camus(num_training=6, views=("4CH",))
    parts = [set(patients_of(read(root, max_training_patients=n))["training"]) for n in (1, 3, 5)]
    assert [len(part) for part in parts] == [1, 3, 5]
    assert parts[0] < parts[1] < parts[2]
    assert set(patients_of(read(root, training_fraction=0.5))["training"]) == parts[1]
    assert patients_of(read(root, max_training_patients=1))["testing"] == ["patient0008"]


@pytest.mark.parametrize("options", [{"max_training_patients": 0}, {"training_fraction": 1.5}, {"split": "papers"}])
def test_bad_options_are_refused(camus_dir: Path, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        read(camus_dir, **options)


def test_a_patient_in_two_split_files_is_an_error(make_camus: MakeCamus) -> None:
    root = make_camus()
    with (root / "database_split/subgroup_testing.txt").open("a") as file:
        file.write("patient0002\n")
    with pytest.raises(ValueError, match="patient patient0002 is in two splits, training and testing"):
        read(root)


def test_one_patient_under_two_names_is_an_error(make_camus: MakeCamus) -> None:
    root = make_camus(views=("4CH",))
    for path in (root / "database_nifti/patient0001").iterdir():
        shutil.copy(path, root / "database_nifti/patient0006" / path.name.replace("0001", "0006"))
    with pytest.raises(ValueError, match="patient0001 in training and patient0006 in testing have the same images"):
        read(root)


def test_a_single_image_that_two_patients_share_is_noted(make_camus: MakeCamus) -> None:
    folder = make_camus(views=("4CH",)) / "database_nifti"
    shutil.copy(folder / "patient0001/patient0001_4CH_ED.nii.gz", folder / "patient0006/patient0006_4CH_ED.nii.gz")
    notes = read(folder).summary.notes
    assert "patient0001 (training) and patient0006 (testing) have the same image: 4CH ED" in notes


# ---- partial and damaged copies


def test_a_copy_of_one_view_without_info_says_so_once(make_camus: MakeCamus) -> None:
    dataset = read(make_camus(views=("4CH",), with_info=False))
    assert dataset.summary.problems == ()
    assert dataset.summary.lacks == (
        "no 2CH images (apical two chamber)",
        "no Info_4CH.cfg: sex, age, image quality and ejection fraction are not known",
        "no 4CH half sequences",
    )
    assert dataset.splits["training"][0].sex is None


def test_strict_turns_every_lack_into_one_line(make_camus: MakeCamus) -> None:
    root = make_camus(views=("4CH",), with_info=False)
    (root / "database_nifti/patient0001/patient0001_4CH_ED.nii.gz").unlink()
    with pytest.raises(ValueError, match="found 4 things amiss: no 2CH images.*patient0001 4CH: no ED image") as error:
        read(root, strict=True)
    assert "\n" not in str(error.value)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip_bits(path: Path) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[400] ^= 0xFF  # pixel data, with the old checksum at the end
    compressed = bytearray(gzip.compress(bytes(content)))
    compressed[-8:-4] = path.read_bytes()[-8:-4]
    path.write_bytes(compressed)


IMAGE_DAMAGE = {
    "missing": (lambda path: path.unlink(), "no ED image"),
    "cut off": (cut, "patient0002_4CH_ED.nii.gz: the file is cut off or damaged"),
    "bits flipped": (flip_bits, "not a readable NIfTI image|cut off or damaged"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable NIfTI image"),
    "no image": (lambda path: path.write_text("<html>not found</html>"), "not a readable NIfTI image"),
    "blank": (lambda path: rewrite_label(path, np.zeros_like), "image is blank"),
    "sequence": (lambda path: rewrite_label(path, lambda a: np.stack([a, a], -1)), r"expected one grey image \(H, W\)"),
    "link into nowhere": (lambda path: (path.unlink(), path.symlink_to("gone")), "no such file"),
}


LABEL_DAMAGE = {
    "missing": (lambda path: path.unlink(), "patient0002_4CH_ED.nii.gz: has no label map"),
    "cut off": (cut, "cut off or damaged"),
    "other shape": (
        lambda path: rewrite_label(path, lambda a: a[:, :-3]),
        r"patient0002 4CH ED: image is \(48, 40\) but label map is \(45, 40\)",
    ),
    "fifth class": (
        lambda path: rewrite_label(path, lambda a: np.where(a == 3, 4, a).astype(np.uint8)),
        "label map has the classes 0, 1, 2, 4 where 0 to 3 are known",
    ),
    "fractions": (
        lambda path: rewrite_label(path, lambda a: a * np.float32(0.5)),
        "label map has the classes 0, 0.5, 1, 1.5",
    ),
    "empty": (lambda path: rewrite_label(path, np.zeros_like), "label map is empty"),
}


METAIMAGE_DAMAGE = {
    "data missing": (lambda path: path.with_suffix(".raw").unlink(), "its data file patient0002_4CH_ED.raw is missing"),
    "data cut off": (lambda path: cut(path.with_suffix(".raw")), r"cut off \(expected 1920 bytes, got 1900\)"),
    "no header": (lambda path: path.write_text("hello"), "not a MetaImage header"),
    "odd type": (
        lambda path: path.write_text(path.read_text().replace("MET_UCHAR", "MET_X")),
        "not a readable MetaImage",
    ),
}


DAMAGE = {
    ("image", "database_nifti/patient0002/patient0002_4CH_ED.nii.gz"): IMAGE_DAMAGE,
    ("label map", "database_nifti/patient0002/patient0002_4CH_ED_gt.nii.gz"): LABEL_DAMAGE,
    ("metaimage", "training/patient0002/patient0002_4CH_ED.mhd"): METAIMAGE_DAMAGE,
}


@pytest.mark.parametrize(("what", "file", "kind"), [(*key, kind) for key, kinds in DAMAGE.items() for kind in kinds])
def test_a_damaged_file_is_named_and_the_rest_goes_on(
    make_camus: MakeCamus, make_first_camus: MakeCamus, what: str, file: str, kind: str
) -> None:
    damage, message = DAMAGE[what, file][kind]
    is_first = what == "metaimage"
    root = make_first_camus(num_training=3, num_testing=1) if is_first else make_camus(views=("4CH",))
    num_images = 16 if is_first else 12
    damage(root / file)
    dataset = read(root)
    assert len(dataset.summary.problems) == 1 and sum(map(len, dataset.splits.values())) == num_images - 1
    assert str((root / file).parent) not in dataset.summary.problems[0]
    with pytest.raises(ValueError, match=message) as error:
        read(root, strict=True)
    assert "patient0002" in str(error.value) and "\n" not in str(error.value)


def test_damaged_half_sequences_are_named_but_the_images_stay(make_camus: MakeCamus) -> None:
    root = make_camus(views=("4CH",), with_sequences=True)
    cut(root / "database_nifti/patient0001/patient0001_4CH_half_sequence.nii.gz")
    rewrite_label(root / "database_nifti/patient0002/patient0002_4CH_half_sequence_gt.nii.gz", lambda a: a[..., :1])
    (root / "database_nifti/patient0003/patient0003_4CH_half_sequence.nii.gz").unlink()
    dataset = read(root)
    assert len(dataset.splits["training"]) == 8
    text = "\n".join(dataset.summary.problems)
    assert "patient0001 4CH half sequence: patient0001_4CH_half_sequence.nii.gz: the file is cut off" in text
    assert "patient0002 4CH half sequence label maps: 1 frames for 2 frames" in text
    assert "patient0003 4CH half sequence: missing" in text
    sequences = {record.patient: record.sequence for record in dataset.splits["training"]}
    assert sequences["patient0001"] is None and sequences["patient0002"] is not None


def test_patients_in_no_split_file_are_left_out_and_named(make_camus: MakeCamus) -> None:
    root = make_camus(views=("4CH",))
    (root / "database_split/subgroup_training.txt").write_text("patient0001\npatient0002\npatient0003\n")
    dataset = read(root)
    assert "patient0004: in none of the split files; left out" in dataset.summary.problems
    assert len(patients_of(dataset)["training"]) == 3


def test_an_empty_patient_folder_is_named(make_camus: MakeCamus) -> None:
    root = make_camus(views=("4CH",))
    shutil.rmtree(root / "database_nifti/patient0002")
    (root / "database_nifti/patient0002").mkdir()
    assert "patient0002 4CH: no ED and no ES image" in read(root).summary.problems


def test_gaps_in_the_numbers_of_a_copy_are_named(make_camus: MakeCamus) -> None:
    root = make_camus(num_training=4, views=("4CH",))
    shutil.rmtree(root / "database_nifti/patient0002")
    (root / "database_split/subgroup_training.txt").write_text("patient0001\npatient0003\npatient0004\n")
    assert "1 patients below patient0006 (patient0002)" in read(root).summary.lacks


def test_a_folder_without_camus_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holidays").mkdir()
    with pytest.raises(ValueError, match="holds no CAMUS data: expected database_nifti/.*found holidays"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read(tmp_path / "nowhere")


def test_a_copy_of_which_nothing_can_be_read_is_refused(make_camus: MakeCamus) -> None:
    root = make_camus(num_training=1, num_validation=0, num_testing=0, views=("4CH",))
    for path in root.rglob("*.nii.gz"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no labelled image could be read, 2 problems"):
        read(root)


# ---- attributes and shapes


def test_info_of_both_releases_is_understood() -> None:
    current, problems = parse_info("Sex: F\nAge: 56\nImageQuality: Good\nEF: 55\nFrameRate: 41.3\n")
    assert current == {"sex": "female", "age": 56, "image_quality": "good", "ejection_fraction": 55.0} and not problems
    first, problems = parse_info(
        "Sex: M\r\nAge: 69.0\r\nImageQuality: Poor\r\nLVedv: 94.5\r\nLVesv: 41.1\r\nLVef: 56.5\r\n"
    )
    assert first == {"sex": "male", "age": 69, "image_quality": "poor", "ejection_fraction": 56.5} and not problems


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Sex: X\nAge: 56\n", "Sex is 'X' where F or M is expected"),
        ("Age: old\n", "Age is 'old'"),
        ("Age: nan\n", "Age is 'nan'"),
        ("ImageQuality: Superb\n", "ImageQuality is 'Superb' where Good, Medium or Poor is expected"),
        ("EF: 155\n", "EF is '155'"),
        ("Sex F\n", "line 1 is 'Sex F' where 'Key: value' is expected"),
        ("", "is empty"),
    ],
)
def test_a_malformed_info_file_is_a_named_problem(make_camus: MakeCamus, text: str, problem: str) -> None:
    root = make_camus(views=("4CH",))
    (root / "database_nifti/patient0003/Info_4CH.cfg").write_text(text)
    dataset = read(root)
    assert len(dataset.splits["training"]) == 8
    assert any(problem in found and found.startswith("patient0003 Info_4CH.cfg") for found in dataset.summary.problems)


def test_a_single_missing_info_file_is_a_named_problem(make_camus: MakeCamus) -> None:
    root = make_camus(views=("4CH",))
    (root / "database_nifti/patient0003/Info_4CH.cfg").unlink()
    assert any(found.startswith("patient0003 Info_4CH.cfg: missing") for found in read(root).summary.problems)


def test_shape_comes_from_the_rule_by_default_and_sees_millimetres(camus_dir: Path) -> None:
    record = read(camus_dir, shape_source="rule").splits["training"][0]
    assert set(record.shape) == {"left_ventricular_cavity", "myocardium", "left_atrium"}
    # 28 rows of 1.5 mm by 16 columns of 2 mm: 42 by 32 mm; the atrium, 12 by 14 pixels, is 18 by 28 mm
    assert record.shape["left_ventricular_cavity"] == "oval" and record.shape["left_atrium"] == "oval"


def test_an_unknown_shape_source_is_refused(camus_dir: Path) -> None:
    with pytest.raises(ValueError, match="shape_source must be rule, none or the folder"):
        read(camus_dir, shape_source="vqa")


def test_text_files_that_windows_has_saved_lose_no_patient(camus_dir: Path) -> None:
    """Otherwise a byte order mark would be part of the first patient's name, and of the first key of an Info file."""
    before = read(camus_dir, strict=True)
    texts = [*camus_dir.rglob("subgroup_*.txt"), *camus_dir.rglob("Info_*.cfg")]
    for path in texts:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    after = read(camus_dir, strict=True)
    assert len(texts) == 3 + 12 and after.splits == before.splits
    assert after.summary.problems == () and after.summary.lacks == ()
