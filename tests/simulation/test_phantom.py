"""Test the phantom as files: CAMUS's layout, determinism, attributes, splits, errors."""

from __future__ import annotations

import inspect
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from synboost_monai.simulation.phantom import _split, draw_phantom_patient, systole_at, write_phantom

HEIGHT, NUM_FRAMES = 96, 3


@pytest.fixture(scope="module")
def phantom_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write four small patients."""
    return write_phantom(
        tmp_path_factory.mktemp("phantom"), num_patients=4, image_height=HEIGHT, num_frames=NUM_FRAMES, progress=False
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read_info(path: Path) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in path.read_text().splitlines())


def test_files_are_those_of_camus(phantom_dir: Path) -> None:
    expected = {f"database_split/subgroup_{split}.txt" for split in ("training", "validation", "testing")}
    for number in range(1, 5):
        stem = f"database_nifti/patient{number:04d}"
        for view in ("2CH", "4CH"):
            expected.add(f"{stem}/Info_{view}.cfg")
            for name in ("ED", "ES", "half_sequence"):
                image = f"{stem}/patient{number:04d}_{view}_{name}"
                expected |= {f"{image}.nii.gz", f"{image}_gt.nii.gz"}
    assert set(files_of(phantom_dir)) == expected


def test_arrays_are_stored_x_first_as_uint8_with_spacing(phantom_dir: Path) -> None:
    for path in sorted(phantom_dir.rglob("*.nii.gz")):
        image = nib.load(path)
        assert image.get_data_dtype() == np.uint8
        assert image.shape[1] == HEIGHT and image.shape[0] > HEIGHT  # a sector of 75 degrees or more is wider than high
        assert image.shape[2:] == ((NUM_FRAMES,) if "half_sequence" in path.name else ())
        spacing = image.header.get_zooms()
        assert spacing[0] == spacing[1]
        assert 120 <= spacing[1] * HEIGHT <= 210.01  # mm of depth
        assert image.header.get_xyzt_units()[0] == "mm"


def test_ed_and_es_are_the_ends_of_the_half_sequence(phantom_dir: Path) -> None:
    for path in sorted(phantom_dir.rglob("*_half_sequence*.nii.gz")):
        sequence = np.asarray(nib.load(path).dataobj)
        for phase, frame in (("ED", 0), ("ES", -1)):
            single = nib.load(path.with_name(path.name.replace("half_sequence", phase)))
            np.testing.assert_array_equal(np.asarray(single.dataobj), sequence[..., frame])
            np.testing.assert_array_equal(single.affine, nib.load(path).affine)


def test_info_says_what_the_patient_is(phantom_dir: Path) -> None:
    for number in range(1, 5):
        patient = draw_phantom_patient(0, number)
        for view in ("2CH", "4CH"):
            info = read_info(phantom_dir / f"database_nifti/patient{number:04d}/Info_{view}.cfg")
            assert list(info) == ["ED", "ES", "NbFrame", "Sex", "Age", "ImageQuality", "EF", "FrameRate"]
            assert (info["ED"], info["ES"], info["NbFrame"]) == ("1", "3", "3")
            assert info["Sex"] == {"female": "F", "male": "M"}[patient.sex]
            assert info["ImageQuality"].lower() == patient.image_quality[view]
            assert float(info["EF"]) == pytest.approx(patient.anatomy.ejection_fraction, abs=0.005)
            assert 18 <= int(info["Age"]) <= 95


def test_same_seed_same_bytes_whatever_the_number_of_patients_and_workers(phantom_dir: Path, tmp_path: Path) -> None:
    again = write_phantom(
        tmp_path / "again", num_patients=2, image_height=HEIGHT, num_frames=NUM_FRAMES, workers=1, progress=False
    )
    expected = files_of(phantom_dir / "database_nifti")
    for name, content in files_of(again / "database_nifti").items():
        assert content == expected[name], name


def test_another_seed_gives_another_patient(phantom_dir: Path, tmp_path: Path) -> None:
    other = write_phantom(
        tmp_path / "other", num_patients=1, seed=1, image_height=HEIGHT, num_frames=NUM_FRAMES, progress=False
    )
    name = "database_nifti/patient0001/patient0001_4CH_ED.nii.gz"
    assert (other / name).read_bytes() != (phantom_dir / name).read_bytes()


def test_split_files_part_the_patients(phantom_dir: Path) -> None:
    files = [phantom_dir / f"database_split/subgroup_{split}.txt" for split in ("training", "validation", "testing")]
    assert [len(path.read_text().splitlines()) for path in files] == [2, 1, 1]
    assert "".join(path.read_text() for path in files) == "".join(f"patient{n:04d}\n" for n in range(1, 5))


@pytest.mark.parametrize(
    ("num_patients", "sizes"),
    [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (10, (6, 2, 2)), (20, (14, 3, 3)), (100, (70, 15, 15))],
)
def test_splits_are_70_15_15_and_none_is_empty_from_three_patients_on(
    num_patients: int, sizes: tuple[int, ...]
) -> None:
    names = [str(n) for n in range(num_patients)]
    splits = _split(names)
    assert tuple(len(members) for members in splits.values()) == sizes
    assert splits["training"] + splits["validation"] + splits["testing"] == names


@pytest.mark.parametrize("seed", [0, 7])
def test_every_six_patients_hold_both_sexes_and_all_qualities(seed: int) -> None:
    for first in (1, 5, 20):
        patients = [draw_phantom_patient(seed, number) for number in range(first, first + 6)]
        assert {p.sex for p in patients} == {"female", "male"}
        for view in ("2CH", "4CH"):
            assert len({p.image_quality[view] for p in patients}) >= 2
        assert {q for p in patients for q in p.image_quality.values()} == {"good", "medium", "poor"}
        assert len({p.age for p in patients}) >= 4


def test_sequence_runs_smoothly_from_diastole_to_systole() -> None:
    moments = [systole_at(frame, 11) for frame in range(11)]
    assert moments[0] == 0 and moments[-1] == 1 and moments[5] == pytest.approx(0.5)
    steps = np.diff(moments)
    assert (steps > 0).all() and steps[0] < 0.3 * steps.max() and steps[-1] < 0.3 * steps.max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_patients": 0}, "num_patients must be a whole number from 1 to 9999, got 0"),
        ({"num_patients": 2.5}, "num_patients must be a whole number"),
        ({"seed": -1}, "seed must be"),
        ({"image_height": 8}, "image_height must be a whole number from 32"),
        ({"num_frames": 1}, "num_frames must be a whole number from 2"),
        ({"workers": 0}, "workers must be"),
        ({"workers": True}, "workers must be"),
    ],
)
def test_silly_arguments_are_refused_and_nothing_is_written(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_phantom(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_other_patients_in_the_folder_are_not_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "database_nifti" / "patient0007").mkdir(parents=True)
    with pytest.raises(ValueError, match="already holds 1 patients .* patient0007"):
        write_phantom(tmp_path, num_patients=2, progress=False)


def test_other_patients_of_the_same_names_are_kept(camus_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(camus_dir / "database_nifti" / "patient0001", tmp_path / "database_nifti" / "patient0001")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="patient0001 is another patient"):
        write_phantom(tmp_path, num_patients=2, image_height=48, progress=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        write_phantom(tmp_path / "out", progress=False)


def test_ten_patients_of_the_default_size_take_seconds(tmp_path: Path) -> None:
    """This is processor time, because the machine may be busy: a patient of the default size takes under 4 seconds of it."""
    assert inspect.signature(write_phantom).parameters["num_patients"].default == 10
    before = os.times()
    write_phantom(tmp_path, num_patients=1, workers=1, progress=False)
    after = os.times()
    assert (after.user + after.system) - (before.user + before.system) < 4
