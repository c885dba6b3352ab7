"""Test new label maps from a small data set of the phantom's hearts: files, seeds, resuming, errors."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from synboost_monai.data import list_label_maps, read_datalist, write_datalist
from synboost_monai.files import read_plane
from synboost_monai.heart.anatomy import check_anatomy
from synboost_monai.records import EchoRecord
from synboost_monai.simulation.phantom_anatomy import draw_label_map, draw_patient
from synboost_monai.synthesis import label_maps, sample_label_maps
from synboost_monai.synthesis.options import LabelMapOptions
from synboost_monai.synthesis.writers import write_nifti
from synboost_monai.transforms.dictionary import LoadEchod
from synboost_monai.transforms.label_map_array import default_sector_mask
from synboost_monai.transforms.label_map_dictionary import SectorLabelMapd, SectorMaskd

NUM_PATIENTS = 9
SPACING_MM = 1.0


def write_hearts(folder: Path, num_patients: int = NUM_PATIENTS) -> Path:
    """Write a datalist with both phases of the four-chamber view of so many phantom hearts, 1 mm per pixel, all in `training`."""
    generator = np.random.default_rng(12)
    records = []
    for number in range(num_patients):
        anatomy = draw_patient(generator, is_female=bool(number % 2))
        depth_mm = 1.12 * anatomy.depth_mm  # room for the atrium
        shape = (round(depth_mm / SPACING_MM), round(2 * depth_mm * np.sin(anatomy.half_angle) / SPACING_MM))
        sector = default_sector_mask(shape, half_angle_deg=np.rad2deg(anatomy.half_angle))
        for code, phase, systole in (("ED", "end_diastole", 0.0), ("ES", "end_systole", 1.0)):
            stem = f"patient{number:04d}_4CH_{code}"
            label_map = draw_label_map(anatomy.views["4CH"].contours(systole), depth_mm, shape, SPACING_MM)
            write_nifti(label_map, (SPACING_MM, SPACING_MM), folder / f"{stem}_gt.nii.gz")
            write_nifti((80 * sector).astype(np.uint8), (SPACING_MM, SPACING_MM), folder / f"{stem}.nii.gz")
            records.append(
                EchoRecord(
                    folder / f"{stem}.nii.gz",
                    folder / f"{stem}_gt.nii.gz",
                    f"patient{number:04d}",
                    view="apical_four_chamber",
                    phase=phase,
                )
            )
    write_datalist(folder, {"training": records, "validation": []}, name="hearts", description="of the phantom")
    return folder


@pytest.fixture(scope="module")
def hearts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hearts(tmp_path_factory.mktemp("hearts"))


@pytest.fixture(scope="module")
def sampled_dir(hearts_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return eight maps of the shape model, seed 3."""
    folder = tmp_path_factory.mktemp("sampled") / "maps"
    sample_label_maps(hearts_dir, folder, LabelMapOptions(num_maps=8, seed=3))
    return folder


def digests(folder: Path) -> dict[str, str]:
    """Return the digests of each label map and sector."""
    files = sorted([*(folder / "labels").iterdir(), *(folder / "sectors").iterdir()])
    return {file.name: hashlib.sha256(read_plane(file).pixels.tobytes()).hexdigest() for file in files}


def provenance(folder: Path) -> dict:
    return json.loads((folder / "provenance.json").read_text())


# ---- what is made


def test_every_map_passes_the_checks_and_is_in_the_datalist(sampled_dir: Path):
    items = list_label_maps(sampled_dir, "training")
    ranges = json.loads((sampled_dir / "summary.json").read_text())["ranges"]
    assert len(items) == 8 and len({item["patient"] for item in items}) == 8
    for item in items:
        label, sector = read_plane(item["label"]), read_plane(item["sector"])
        assert check_anatomy(label.pixels, label.spacing_mm, ranges, sector.pixels) == []
        assert label.spacing_mm == sector.spacing_mm == (SPACING_MM, SPACING_MM)
        assert set(np.unique(sector.pixels)) == {0, 1} and label.pixels.dtype == np.uint8
        assert item["is_synthetic"] and item["view"] == "apical_four_chamber" and "image" not in item
        assert Path(item["label"]).name.endswith(
            {"end_diastole": "ED", "end_systole": "ES"}[item["phase"]] + "_gt.nii.gz"
        )
    assert {item["phase"] for item in items} == {"end_diastole", "end_systole"}


def test_maps_are_ready_for_the_synthesis_pipeline(sampled_dir: Path):
    item = SectorLabelMapd()(SectorMaskd()(LoadEchod(["label", "sector"])(list_label_maps(sampled_dir)[0])))
    assert set(torch.unique(item["sector_label_map"]).tolist()) == {0, 1, 2, 3, 4}


def test_maps_are_new_and_differ(sampled_dir: Path, hearts_dir: Path):
    found = digests(sampled_dir)
    labels = {name: digest for name, digest in found.items() if "_gt" in name}
    assert len(set(labels.values())) == 8
    real = {
        hashlib.sha256(read_plane(i["label"]).pixels.tobytes()).hexdigest()
        for i in read_datalist(hearts_dir, "training")
    }
    assert not real & set(labels.values())


def test_provenance_and_summary_tell_how(sampled_dir: Path):
    record = provenance(sampled_dir)
    assert record["is_complete"] and record["settings"]["seed"] == 3 and len(record["settings"]["data_sha256"]) == 64
    first = record["maps"][0]
    assert first["name"].startswith("shape_model_3_00000_4CH_E") and first["frame_of"].startswith("patient000")
    assert {"seed", "num_rejected", "rejected", "pose", "coefficients", "view", "phase"} <= first.keys()
    assert max(abs(c) for m in record["maps"] for c in m["coefficients"]) <= 3
    summary = json.loads((sampled_dir / "summary.json").read_text())
    assert summary["num_maps"] == 8 and summary["problems"] == {} and 0 < summary["acceptance"] <= 1
    assert summary["training"]["num_usable"] == 2 * NUM_PATIENTS and summary["training"]["skipped"] == {}
    assert summary["training"]["share_passing_the_checks"] == 1.0
    for measure in summary["measures"].values():  # nothing beyond what was seen
        seen, sampled = measure["training"], measure["sampled"]
        assert seen["min"] <= sampled["min"] + 1e-6 and sampled["max"] <= seen["max"] + 1e-6
    areas = summary["measures"]["cavity_area_mm2"]
    assert areas["training"]["min"] > 500 and 0 <= areas["ks_distance"] <= 1
    quality = summary["shape_model"]
    assert 0 < quality["generalisation_mm"]["mean"] < 8 and 0 < quality["specificity_mm"]["mean"] < 10
    dice = summary["dice_to_nearest_training_map"]
    assert 0.6 < dice["sampled"]["mean"] < 1 and 0.6 < dice["training_other_patients"]["mean"] < 1


def test_contact_sheet_shows_training_and_sampled_maps(sampled_dir: Path):
    from matplotlib.image import imread

    sheet = imread(sampled_dir / "contact_sheet.png")
    rows = sheet.shape[0] // label_maps.SHEET_TILE_PX
    assert rows == 2
    for row in np.split(sheet[: 2 * label_maps.SHEET_TILE_PX, :, :3], 2):
        red = (row[..., 0] > 0.8) & (row[..., 1] < 0.4)  # the cavity's colour
        assert red.mean() > 0.01


def test_interpolated_maps_lie_between_two_of_one_class(hearts_dir: Path, tmp_path: Path):
    sample_label_maps(hearts_dir, tmp_path, LabelMapOptions(num_maps=4, method="interpolate"))
    for record in provenance(tmp_path)["maps"]:
        first, second = record["sources"]
        assert first != second and first[-2:] == second[-2:]  # ED or ES both
        assert 0.25 <= record["weight"] <= 0.75 and record["frame_of"] in record["sources"]
        label, sector = (read_plane(tmp_path / record[key]) for key in ("label", "sector"))
        assert check_anatomy(label.pixels, label.spacing_mm, ranges={}, sector=sector.pixels) == []


def test_one_phase_alone(hearts_dir: Path, tmp_path: Path):
    sample_label_maps(
        hearts_dir, tmp_path, LabelMapOptions(num_maps=2, phase="end_systole", view="apical_four_chamber")
    )
    assert {item["phase"] for item in read_datalist(tmp_path, "training")} == {"end_systole"}


# ---- seeds and resuming


def test_a_map_depends_on_seed_and_number_alone(sampled_dir: Path, hearts_dir: Path, tmp_path: Path):
    sample_label_maps(hearts_dir, tmp_path / "few", LabelMapOptions(num_maps=3, seed=3))
    assert digests(tmp_path / "few").items() <= digests(sampled_dir).items()
    sample_label_maps(hearts_dir, tmp_path / "other", LabelMapOptions(num_maps=3, seed=4))
    assert not set(digests(tmp_path / "other")) & set(digests(sampled_dir))


def test_a_run_that_was_interrupted_goes_on(sampled_dir: Path, hearts_dir: Path, tmp_path: Path, monkeypatch):
    write = label_maps.write_nifti
    written = []

    def failing(pixels, spacing_mm, path):
        if len(written) == 9:
            raise OSError("disk full")
        write(pixels, spacing_mm, path)
        written.append(path)

    monkeypatch.setattr(label_maps, "MAPS_BETWEEN_RECORDS", 2)
    monkeypatch.setattr(label_maps, "write_nifti", failing)
    with pytest.raises(OSError, match="disk full"):
        sample_label_maps(hearts_dir, tmp_path, LabelMapOptions(num_maps=8, seed=3))
    record = provenance(tmp_path)
    assert not record["is_complete"] and len(record["maps"]) == 4 and not (tmp_path / "datalist.json").exists()

    kept = [tmp_path / m["label"] for m in record["maps"]]
    times = [file.stat().st_mtime_ns for file in kept]
    monkeypatch.setattr(label_maps, "write_nifti", write)
    sample_label_maps(hearts_dir, tmp_path, LabelMapOptions(num_maps=8, seed=3))
    assert digests(tmp_path) == digests(sampled_dir)
    assert [file.stat().st_mtime_ns for file in kept] == times
    assert provenance(tmp_path)["maps"] == provenance(sampled_dir)["maps"]


def test_a_complete_folder_is_left_alone_and_a_lost_map_is_made_again(
    sampled_dir: Path, hearts_dir: Path, tmp_path: Path
):
    folder = tmp_path / "copy"
    shutil.copytree(sampled_dir, folder)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    sample_label_maps(hearts_dir, folder, LabelMapOptions(num_maps=8, seed=3))
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()} == before
    (folder / provenance(folder)["maps"][5]["label"]).unlink()
    sample_label_maps(hearts_dir, folder, LabelMapOptions(num_maps=8, seed=3))
    assert digests(folder) == digests(sampled_dir)


def test_another_seed_or_data_in_the_same_folder_is_refused(sampled_dir: Path, hearts_dir: Path, tmp_path: Path):
    before = digests(sampled_dir)
    with pytest.raises(ValueError, match="was begun with seed 3, this run has 4; choose another output_dir"):
        sample_label_maps(hearts_dir, sampled_dir, LabelMapOptions(num_maps=8, seed=4))
    other = write_hearts(tmp_path / "other", num_patients=3)
    with pytest.raises(ValueError, match="was begun with data_sha256"):
        sample_label_maps(other, sampled_dir, LabelMapOptions(num_maps=8, seed=3))
    assert digests(sampled_dir) == before
    (tmp_path / "foreign" / "labels").mkdir(parents=True)
    (tmp_path / "foreign" / "labels" / "a.nii.gz").touch()
    with pytest.raises(ValueError, match="holds label maps but no provenance.json"):
        sample_label_maps(hearts_dir, tmp_path / "foreign", LabelMapOptions(num_maps=1))


# ---- what is at fault


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_maps": 0}, "num_maps must be at least 1, got 0"),
        ({"method": "gan"}, "method must be shape_model or interpolate, got 'gan'"),
        ({"variance_scale": -1.0}, "variance_scale must be 0 or more"),
        ({"explained_variance": 1.5}, "explained_variance is 1.5; expected above 0, at most 1"),
        ({"section": "trainign"}, "no section is called 'trainign'"),
        ({"view": "apical_two_chamber"}, "no item is apical_two_chamber"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_written(hearts_dir: Path, tmp_path: Path, options, message):
    with pytest.raises(ValueError, match=message):
        sample_label_maps(hearts_dir, tmp_path / "out", LabelMapOptions(**options))
    assert not (tmp_path / "out").exists()


def test_unusable_label_maps_are_counted_and_too_few_are_an_error(tmp_path: Path):
    folder = write_hearts(tmp_path / "data", num_patients=4)
    for number, damage in ((0, "atrium"), (1, "hole")):
        path = folder / f"patient{number:04d}_4CH_ED_gt.nii.gz"
        plane = read_plane(path)
        pixels = plane.pixels.copy()
        if damage == "atrium":
            pixels[pixels == 3] = 0
        else:
            row, column = np.argwhere(pixels == 1).mean(axis=0).astype(int)
            pixels[row : row + 6, column : column + 6] = 0
        write_nifti(pixels, plane.spacing_mm, path)
    sample_label_maps(folder, tmp_path / "out", LabelMapOptions(num_maps=1))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["training"]["num_usable"] == 6
    assert summary["training"]["skipped"] == {"missing: left_atrium": 1, "hole: left_ventricular_cavity": 1}
    message = (
        r"2 of 4 label maps can be used \(1 x missing: left_atrium; 1 x hole: .*\); a shape model needs at least 5"
    )
    with pytest.raises(ValueError, match=message):
        sample_label_maps(folder, tmp_path / "none", LabelMapOptions(num_maps=1, phase="end_diastole"))
    assert not (tmp_path / "none").exists()


def test_a_file_that_is_no_label_map_is_named(tmp_path: Path):
    folder = write_hearts(tmp_path / "data", num_patients=3)
    path = folder / "patient0001_4CH_ES_gt.nii.gz"
    plane = read_plane(path)
    write_nifti(np.where(plane.pixels > 0, 7, 0).astype(np.uint8), plane.spacing_mm, path)
    with pytest.raises(
        ValueError, match=r"patient0001_4CH_ES_gt.nii.gz: expected a label map with classes 0 background"
    ):
        sample_label_maps(folder, tmp_path / "out", LabelMapOptions(num_maps=1))
    write_nifti(plane.pixels[:-3], plane.spacing_mm, path)
    with pytest.raises(ValueError, match=r"patient0001_4CH_ES_gt.nii.gz: image is .* but label map is"):
        sample_label_maps(folder, tmp_path / "out", LabelMapOptions(num_maps=1))


def test_a_hopeless_run_says_why(hearts_dir: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(label_maps, "MAX_DRAWS", 4)
    monkeypatch.setattr(label_maps, "anatomy_ranges", lambda *_, **__: {"cavity_length_mm": (1.0, 2.0)})
    message = (
        r"label map 0: none of 4 draws passed the checks of anatomy \(range: cavity_length_mm \(4\).*variance_scale"
    )
    with pytest.raises(ValueError, match=message):
        sample_label_maps(hearts_dir, tmp_path, LabelMapOptions(num_maps=1))
