"""Test several synthetic data sets merged into one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from synboost_monai.data import read_datalist
from synboost_monai.synthesis import merge_synthetic
from synboost_monai.synthesis.writers import SyntheticWriter, write_json


def make_part(folder: Path, names: dict[str, list[str]], seed: int = 0, size: int = 16) -> Path:
    """Make a finished synthetic data set: section -> names of images, PATIENT_VIEW_vN."""
    writer = SyntheticWriter(folder)
    sections: dict[str, list[dict]] = {section: [] for section in names}
    records = []
    for section, members in names.items():
        for name in members:
            label_map = np.zeros((size, size), np.uint8)
            label_map[4:12, 6:10] = 1
            writer.write(name, np.full((size, size), 90, np.uint8), label_map, (1.0, 1.0))
            paths = {"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"}
            sections[section].append({**paths, "patient": name.split("_")[0], "is_synthetic": True})
            records.append({**paths, "source_label": f"{name}_gt.nii.gz", "section": section, "repeat": 0})
    head = {
        "settings": {"seed": seed},
        "checkpoint": "model.pt",
        "dataset_dir": "d",
        "versions": {},
        "is_complete": True,
    }
    write_json(folder / "provenance.json", head, {"images": records})
    write_json(folder / "datalist.json", {"name": "x"}, sections)
    return folder


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Make two views of the same patients, one without validation images."""
    return [
        make_part(tmp_path / "parts" / "2ch", {"training": ["p1_2CH_v0", "p1_2CH_v1"], "validation": ["p9_2CH_v0"]}),
        make_part(tmp_path / "parts" / "4ch", {"training": ["p1_4CH_v0"]}, seed=7, size=20),
    ]


def test_merged_set_lists_the_images_where_they_are(parts: list[Path], tmp_path: Path):
    path = merge_synthetic(tmp_path / "all", *parts)
    assert path == tmp_path / "all" / "datalist.json"
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == [
        "contact_sheet.png",
        "datalist.json",
        "provenance.json",
    ]
    items = read_datalist(tmp_path / "all", "training")
    assert [Path(item["image"]).name.split(".")[0] for item in items] == ["p1_2CH_v0", "p1_2CH_v1", "p1_4CH_v0"]
    assert items[2]["label"] == str((tmp_path / "parts" / "4ch" / "labels" / "p1_4CH_v0.nii.gz").resolve())
    assert len(read_datalist(tmp_path / "all", "validation")) == 1
    datalist = json.loads(path.read_text())
    assert datalist["labels"]["1"] == "left_ventricular_cavity"
    assert datalist["training"][0]["image"] == "../parts/2ch/images/p1_2CH_v0.nii.gz"


def test_provenance_tells_which_part_made_an_image(parts: list[Path], tmp_path: Path):
    merge_synthetic(tmp_path / "all", *parts)
    record = json.loads((tmp_path / "all" / "provenance.json").read_text())
    assert [(p["folder"], p["num_images"], p["settings"]) for p in record["parts"]] == [
        ("../parts/2ch", 3, {"seed": 0}),
        ("../parts/4ch", 1, {"seed": 7}),
    ]
    assert [image["part"] for image in record["images"]] == [0, 0, 0, 1]
    assert record["images"][3]["image"] == "../parts/4ch/images/p1_4CH_v0.nii.gz"
    assert record["images"][3]["source_label"] == "p1_4CH_v0_gt.nii.gz"


def test_everything_moves_together(parts: list[Path], tmp_path: Path):
    merge_synthetic(tmp_path / "parts", *parts)  # beside the images: the whole folder is one data set
    shutil.move(tmp_path / "parts", tmp_path / "elsewhere")
    items = read_datalist(tmp_path / "elsewhere", "training+validation")
    assert len(items) == 4 and all(Path(item["image"]).is_file() for item in items)


def unfinished(parts: list[Path]) -> list[Path]:
    (parts[1] / "datalist.json").unlink()
    return parts


def twice(parts: list[Path]) -> list[Path]:
    return [parts[0], parts[0].parent / "4ch" / ".." / "2ch"]


def crossing(parts: list[Path]) -> list[Path]:
    return [parts[0], make_part(parts[0].parent / "other", {"validation": ["p1_4CH_v0"]})]


def real(parts: list[Path]) -> list[Path]:
    (parts[0] / "provenance.json").write_text("{}")
    return parts


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (unfinished, FileNotFoundError, "4ch: expected datalist.json, so this is no finished synthetic data set"),
        (twice, ValueError, "is given twice"),
        (crossing, ValueError, "p1"),
        (real, ValueError, "2ch/provenance.json: is not the record of a finished data set"),
        (lambda parts: [], ValueError, "no folder to merge was given"),
    ],
)
def test_folders_that_cannot_be_merged(
    parts: list[Path], tmp_path: Path, damage: Callable, error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        merge_synthetic(tmp_path / "all", *damage(parts))
    assert not (tmp_path / "all").exists()


def test_merging_into_a_part_is_refused(parts: list[Path]):
    before = (parts[0] / "datalist.json").read_bytes()
    with pytest.raises(ValueError, match="merged into itself"):
        merge_synthetic(parts[0], *parts)
    assert (parts[0] / "datalist.json").read_bytes() == before
