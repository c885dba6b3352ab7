"""Test `synboost simulate`: a data set like all others, the same bytes by any number of processes."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from synboost_monai.data import read_datalist
from synboost_monai.prompts import structure_prompts
from synboost_monai.simulation import simulate
from synboost_monai.simulation.write import SimulatedSettings, write_simulated

SETTINGS = SimulatedSettings(num_images=11, sequences=1, seed=3, image_size=48, num_frames=4)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_simulated(tmp_path_factory.mktemp("simulated") / "data", SETTINGS, workers=1, progress=False)


def files_of(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and p.name != ".lock"
    }


def test_the_datalist_is_read_like_any_other(written: Path) -> None:
    sections = {section: read_datalist(written, section) for section in ("training", "validation", "testing")}
    assert {section: len(items) for section, items in sections.items()} == {
        "training": 9,
        "validation": 1,
        "testing": 1,
    }
    item = sections["training"][0]
    echo = simulate(3, 0, longer_side=48)
    assert np.array_equal(np.asarray(nib.load(item["image"]).dataobj).T, echo.images[0])
    assert np.array_equal(np.asarray(nib.load(item["label"]).dataobj).T, echo.label_maps[0])
    assert nib.load(item["image"]).header.get_zooms()[0] == pytest.approx(echo.spacing_mm, rel=1e-6)
    at_an_end = next(i for i in sections["training"] if "phase" in i)
    assert {prompt.level for prompt in structure_prompts("P7", at_an_end)} == {"P7"}  # nothing is missing


def test_sequences_have_the_truth_of_each_frame(written: Path) -> None:
    rows = list(csv.DictReader((written / "sequences.csv").open()))
    truth = np.asarray(nib.load(written / "sequences/sequence00001_gt.nii.gz").dataobj)
    assert truth.shape[2] == len(rows) == 4 and [row["systole"] for row in rows] == [
        "0.0000",
        "0.5000",
        "1.0000",
        "0.5000",
    ]
    volumes = [float(row["volume_ml"]) for row in rows]
    assert volumes[0] > volumes[1] == volumes[3] > volumes[2]
    areas = (truth == 1).sum(axis=(0, 1))
    assert areas[0] > areas[1] > areas[2] and areas[1] == areas[3]


def test_processes_and_interruptions_change_no_byte(written: Path, tmp_path: Path) -> None:
    known = files_of(written)
    half = tmp_path / "half"
    write_simulated(half, SETTINGS, workers=1, progress=False)
    for name in ("images/simulated000004.nii.gz", "sequences/sequence00001.nii.gz", "datalist.json"):
        (half / name).unlink()
    write_simulated(half, SETTINGS, workers=2, progress=False)
    assert files_of(half) == known


def test_a_folder_with_something_else_is_refused(written: Path, tmp_path: Path) -> None:
    before = files_of(written)
    with pytest.raises(ValueError, match="holds hearts of other settings"):
        write_simulated(written, SimulatedSettings(num_images=2, image_size=48), progress=False)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other things than simulated hearts .first: notes.txt"):
        write_simulated(tmp_path, SETTINGS, progress=False)
    assert files_of(written) == before


@pytest.mark.parametrize("settings", [{"num_images": -1}, {"image_size": 8}, {"seed": 0.5}, {"num_images": 0}])
def test_settings_out_of_range_are_named(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"simulate: (num_images|image_size|seed)"):
        SimulatedSettings(**settings)
