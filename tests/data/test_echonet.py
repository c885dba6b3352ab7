"""Test a made-up copy of EchoNet-Dynamic: traced frames become images and label maps of the cavity alone, and only that is scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av", reason='PyAV is not installed: pip install "synboost-monai[video]"')

from synboost_monai.auto3dseg.folds import read_items  # noqa: E402
from synboost_monai.data import list_images, list_label_maps, read_datalist, read_echonet, write_subset  # noqa: E402
from synboost_monai.data.echonet import cavity_of_tracing  # noqa: E402
from synboost_monai.data.prepare import prepare_dataset  # noqa: E402
from tests.echonet_copy import SHAPE, Rows, ellipse, write_echonet  # noqa: E402

LV = "left_ventricular_cavity"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sound copy: do not write into it."""
    return write_echonet(tmp_path_factory.mktemp("echonet") / "EchoNet-Dynamic")


@pytest.fixture(scope="module")
def prepared(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data set that `prepare` makes of it, by the folder around it."""
    out = tmp_path_factory.mktemp("prepared")
    prepare_dataset(copy.parent, out)
    return out


def test_traced_frames_become_images_and_label_maps(copy: Path, prepared: Path) -> None:
    items = read_datalist(prepared, "training", partly_labelled=True)
    assert [Path(item["image"]).name for item in items] == [f"C{n}_4CH_{p}.png" for n in (1, 4) for p in ("ED", "ES")]
    for item, (phase, scale, frame) in zip(items, (("end_diastole", 1.0, 3), ("end_systole", 0.7, 1))):
        assert item["view"] == "apical_four_chamber" and item["phase"] == phase and item["patient"] == "C1"
        assert item["ejection_fraction"] == 51 and item["labelled_structures"] == [LV] and not item["is_synthetic"]
        assert item["shape"].keys() == {LV}
        image, label = (np.asarray(Image.open(item[key])) for key in ("image", "label"))
        mask, _ = ellipse(scale)
        assert image.shape == label.shape == SHAPE and set(np.unique(label)) == {0, 1}
        assert 2 * (mask & (label == 1)).sum() / (mask.sum() + (label == 1).sum()) > 0.97
        assert image[mask].max() <= 50 and image[~mask].min() >= 60, frame
    summary = (prepared / "summary.txt").read_text()
    assert "training      2 patients     4 images" in summary and "Problems" not in summary and "lacks" not in summary
    assert "labelled: the left ventricular cavity alone" in summary and "pixel size: not known" in summary
    description = json.loads((prepared / "datalist.json").read_text())["description"]
    assert description == f"EchoNet-Dynamic, official split, read from {copy.parent}"


def test_splits_are_kept(prepared: Path) -> None:
    content = json.loads((prepared / "datalist.json").read_text())
    patients = {
        section: sorted({i["patient"] for i in content[section]}) for section in ("training", "validation", "testing")
    }
    assert patients == {"training": ["C1", "C4"], "validation": ["C2"], "testing": ["C3"]}
    assert content["testing"][0]["image"] == "images/C3_4CH_ED.png"


@pytest.mark.parametrize("order", ["shuffled", "turned", "from the base", "tilted"])
def test_chords_in_any_order_give_the_same_mask(order: str) -> None:
    _, rows = ellipse(1.0)
    expected = cavity_of_tracing(rows, SHAPE)
    axis, chords = rows[:1], rows[1:]
    if order == "shuffled":
        chords = np.random.default_rng(0).permutation(chords)
    elif order == "turned":
        chords = np.where(np.arange(20)[:, None] % 2 == 0, chords, chords[:, [2, 3, 0, 1]])
    elif order == "from the base":
        axis, chords = axis[:, [2, 3, 0, 1]], chords[::-1]
    else:
        axis, chords, expected = axis[:, [1, 0, 3, 2]], chords[:, [1, 0, 3, 2]], expected.T
        assert np.array_equal(cavity_of_tracing(np.concatenate([axis, chords]), SHAPE[::-1]), expected)
        return
    assert np.array_equal(cavity_of_tracing(np.concatenate([axis, chords]), SHAPE), expected)


def test_a_square_by_hand() -> None:
    rows = np.array([[3, 0, 3, 9], [1.5, 1.9, 4.5, 1.9], [1.5, 3, 4.5, 3], [1.5, 4.6, 4.5, 4.6]])
    expected = np.zeros((8, 8), bool)
    expected[2:5, 2:5] = True  # pixels are where their centres are
    assert np.array_equal(cavity_of_tracing(rows, (8, 8)), expected)


def damaged(listed: Rows, traced: Rows) -> None:
    """Give the tables of a copy the faults of real copies, and worse ones."""
    listed[0][0] = "C1.avi"  # with its suffix here
    for row in traced:
        if row[0] == "C1.avi":
            row[0] = "C1"  # and without it there
    listed.append(["C1", *listed[0][1:]])  # the same row again
    traced += [list(row) for row in traced[:7]]
    listed.append([*listed[1][:-1], "TEST"])  # C2 in two splits
    traced[:] = [row for row in traced if row[0] != "C3.avi"]  # no tracings
    traced[:] = [row for row in traced if not (row[0] == "C4.avi" and row[-1] == 3)]  # of one frame alone
    listed.append(["GONE", *listed[0][1:]])
    listed.append(["../../etc/passwd", *listed[0][1:]])
    listed[4][-1] = "OTHER"
    for row in traced:
        if row[0] == "C6.avi" and row[-1] == 3:
            row[-1] = 99  # beyond the clip
        if row[0] == "C7.avi":
            row[1:5] = [900, 900, 901, 901]
    traced += [["C8.avi", "x", 1, 2, 3, 1], ["C8.avi", 1, 2, 3, "nan", 1], ["NOBODY", 1, 2, 3, 4, 1]]


def test_what_is_amiss_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    root = write_echonet(tmp_path / "copy", damaged, num_clips=8)
    (root / "Videos" / "EXTRA.avi").write_bytes(b"x")
    (root / "Videos" / "C8.avi").write_bytes((root / "Videos" / "C8.avi").read_bytes()[:-500])
    found = read_echonet(root, tmp_path / "out", progress=False)
    assert [record.patient for record in found.splits["training"]] == ["C1", "C1"]
    for line in (
        "C2: has several rows in FileList.csv that differ; left out",
        "1 clips have no tracings (C3); left out",
        "1 clips have tracings of one frame alone (C4); left out",
        "2 clips in FileList.csv have no file in Videos/ (GONE, ../../etc/passwd); left out",
        "1 clips in Videos/ are not in FileList.csv (EXTRA); left out",
        "1 clips in VolumeTracings.csv are not in FileList.csv (NOBODY); left out",
        "C5: Split is 'OTHER' where TRAIN, VAL or TEST is expected; left out",
        "C6: frame 99 is traced but the clip has 5 frames, counted from 0; left out",
        "C7: its tracing",
        "C8: 2 rows of VolumeTracings.csv are no tracing; passed over",
        "C8: the file is cut off or damaged",
        "7 rows of VolumeTracings.csv that stand there twice count once",
        "1 rows of FileList.csv that stand there twice count once",
    ):
        assert line in found.summary, line
    with pytest.raises(ValueError, match="echonet.py: expected a complete and sound copy in .* things amiss"):
        read_echonet(root, tmp_path / "out", strict=True, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "VolumeTracings.csv").unlink(), "VolumeTracings.csv: no such file; EchoNet-Dynamic has"),
        (lambda root: (root / "VolumeTracings.csv").write_text("FileName,X1\n"), "column Y1, X2, Y2, Frame is missing"),
        (lambda root: (root / "FileList.csv").write_text(""), "FileList.csv: column FileName, Split is missing, got "),
        (lambda root: (root / "Videos" / "C1.avi").write_bytes(b"x"), "no traced frame could be read, 1 problems"),
    ],
)
def test_a_copy_that_cannot_be_read_is_one_line(change: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    root = write_echonet(tmp_path / "copy", num_clips=1)
    change(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        prepare_dataset(root, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out" / "datalist.json").exists()


def test_size_of_the_list_must_be_that_of_the_clip(tmp_path: Path) -> None:
    def change(listed: Rows, traced: Rows) -> None:
        listed[0][4:6] = [112, 96]

    root = write_echonet(tmp_path / "copy", change, num_clips=4)
    summary = read_echonet(root, tmp_path / "out", progress=False).summary
    assert "C1: the clip is (56, 48) but FileList.csv says (112, 96) (rows, columns); left out" in summary


def test_part_of_the_training_clips_and_options_of_camus(copy: Path, tmp_path: Path) -> None:
    found = read_echonet(copy, tmp_path / "out", max_training_patients=1, shape_source="none", progress=False)
    assert len(found.splits["training"]) == 2 and found.splits["training"][0].shape == {}
    assert "training: 1 of 2 patients, drawn by seed 0, as asked" in found.summary
    with pytest.raises(ValueError, match="split paper is of CAMUS; EchoNet-Dynamic has its own, give official"):
        prepare_dataset(copy, tmp_path / "out", split="paper")
    with pytest.raises(ValueError, match="shape_source must be rule or none for EchoNet-Dynamic"):
        read_echonet(copy, tmp_path / "out", shape_source="model")


def test_a_copy_is_never_written_into_its_own_files(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "C1_4CH_ED.png").hardlink_to(copy / "Videos" / "C1.avi")
    with pytest.raises(ValueError, match="this run reads it and would replace it"):
        prepare_dataset(copy, tmp_path)


def test_what_was_not_drawn_is_not_taught(prepared: Path, tmp_path: Path) -> None:
    message = f"shows {LV} alone, and what nobody drew would count as absent; such data can be segmented and evaluated"
    with pytest.raises(ValueError, match=message):
        read_datalist(prepared, "training")
    with pytest.raises(ValueError, match=message):
        list_label_maps(prepared, "training")
    with pytest.raises(ValueError, match=message):
        read_items(prepared / "datalist.json", prepared)
    assert len(list_images(prepared, "testing")) == 2
    write_subset(prepared, tmp_path / "part", patients=2)
    items = read_datalist(tmp_path / "part", "training", partly_labelled=True)
    assert all(item["labelled_structures"] == [LV] for item in items)


@pytest.mark.parametrize(
    ("names", "message"), [([], "must be a list of"), ("lv", "must be a list of"), (["lung"], "names lung, but the")]
)
def test_names_of_labelled_structures_are_checked(names: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    content = {"testing": [{"image": "a.png", "labelled_structures": names}]}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"labelled_structures {message}"):
        read_datalist(tmp_path, "testing")
