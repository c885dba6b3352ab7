"""Which synthetic images are made, from which seeds, and how they are written."""

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from synboost_monai.data.synthetic import SaveSyntheticd, SynthesisPlan, list_sources, stable_seed, write_nifti
from synboost_monai.io import read_plane


class NeverRun:
    """An evaluator that must not be reached."""

    def run(self):
        raise AssertionError("synthesis began")


class Painter:
    """An evaluator that writes plain images by `SaveSyntheticd`."""

    def __init__(self, plan: SynthesisPlan) -> None:
        self.plan = plan
        self.names: list[str] = []

    def run(self):
        save = SaveSyntheticd(self.plan.output_dir)
        for item in self.plan.remaining():
            label = torch.zeros(1, 16, 16)
            label[0, 4:12, 6:10] = 1
            save({**item, "pred": torch.full((1, 16, 16), 100.4), "label": label, **GEOMETRY})
            self.names.append(item["name"])


GEOMETRY = {
    "geometry": torch.tensor([48, 40, 16, 13, 0, 1, 16]),  # 48 x 40 px became 16 x 13 px
    "spacing_mm": torch.tensor([1.5, 2.0], dtype=torch.float64),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def make_plan(datalist_dir: Path, tmp_path: Path, checkpoint: Path):
    def make(**changes) -> SynthesisPlan:
        arguments = {
            "dataset_dir": datalist_dir,
            "output_dir": tmp_path / "out",
            "checkpoint_path": checkpoint,
            "image_size": 16,
            "num_variations": 2,
        }
        return SynthesisPlan(**{**arguments, **changes})

    return make


# ---- seeds


def test_stable_seed_never_changes():
    # sha256("0\x1fnoise\x1fpatient0001_4CH_ED\x1f0"), first 8 bytes, halved: a published data set can be made again
    assert stable_seed(0, "noise", "patient0001_4CH_ED", 0) == 4240482469359088290
    assert stable_seed(1, "noise", "patient0001_4CH_ED", 0) != stable_seed(0, "noise", "patient0001_4CH_ED", 0)
    assert stable_seed("a", "bc") != stable_seed("ab", "c")


def test_seeds_do_not_depend_on_what_else_is_made(make_plan):
    everything = {item["name"]: item for item in make_plan().items}
    part = make_plan(sections=["validation"], num_variations=1, limit=2).items
    assert len(part) == 2
    for item in part:
        assert item == everything[item["name"]]
    assert len({item["noise_seed"] for item in everything.values()}) == len(everything)
    assert len({item["perturbation_seed"] for item in everything.values()}) == len(everything)


# ---- sources


def test_every_label_map_of_the_sections_is_perturbed(make_plan):
    plan = make_plan()
    assert len(plan.items) == (16 + 4) * 2
    assert {source["section"] for source in plan.sources} == {"training", "validation"}


def test_folder_without_datalist_is_one_section(camus_dir: Path):
    folder = camus_dir / "database_nifti" / "patient0001"
    sources = list_sources(folder, ["training", "validation"])
    assert [source["case"] for source in sources] == [
        f"patient0001_{v}_{p}" for v in ("2CH", "4CH") for p in ("ED", "ES")
    ]
    assert {source["section"] for source in sources} == {"training"}
    assert sources[0]["image"].endswith("patient0001_2CH_ED.nii.gz")


def test_two_cases_of_one_name_are_refused(tmp_path: Path):
    for folder in "ab":
        write_nifti(np.zeros((4, 4), np.uint8), (1, 1), tmp_path / folder / "case_gt.nii.gz")
    with pytest.raises(ValueError, match="have one name; rename one"):
        list_sources(tmp_path, ["training"])


def test_empty_folder_is_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no label maps"):
        list_sources(tmp_path / "empty", ["training"])


# ---- runs


def test_run_writes_a_data_set_that_can_be_read(make_plan, tmp_path: Path):
    from synboost_monai.data import read_datalist

    plan = make_plan()
    plan.run(Painter(plan))
    training = read_datalist(tmp_path / "out", "training")
    assert len(training) == 32 and len(read_datalist(tmp_path / "out", "validation")) == 8
    item = training[0]
    assert item["is_synthetic"] and item["patient"] == "patient0001"
    assert {"view", "phase", "sex", "age", "image_quality"} <= item.keys()
    assert "ejection_fraction" not in item  # ED and ES are perturbed apart
    assert list(item["shape"]) == ["left_ventricular_cavity"]  # of the mask that was written
    assert (tmp_path / "out" / "contact_sheet.png").is_file()

    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["is_complete"] and len(provenance["images"]) == 40
    assert provenance["settings"]["checkpoint_sha256"] == hashlib.sha256(b"weights").hexdigest()
    first = provenance["images"][0]
    assert first["perturbation"] == plan.perturbation.draw(first["perturbation_seed"]).describe()
    assert first["source_label"].endswith("patient0001_2CH_ED_gt.nii.gz")


def test_second_run_makes_only_whole_batches_with_missing_images(make_plan, tmp_path: Path):
    plan = make_plan(batch_size=3)
    plan.run(Painter(plan))
    names = [item["name"] for item in plan.items]
    (tmp_path / "out" / "images" / f"{names[4]}.nii.gz").unlink()
    again = make_plan(batch_size=3)
    painter = Painter(again)
    again.run(painter)
    assert painter.names == names[3:6]
    make_plan().run(NeverRun())  # complete


def test_more_variations_are_added_to_a_folder(make_plan):
    plan = make_plan(num_variations=1)
    plan.run(Painter(plan))
    more = make_plan(num_variations=2)
    painter = Painter(more)
    more.run(painter)
    assert len(painter.names) == 20 and all(name.endswith("_v1") for name in painter.names)


@pytest.mark.parametrize("change", [{"seed": 1}, {"sampling": {"num_inference_steps": 9}}, {"image_size": 32}])
def test_folder_of_another_run_is_refused(make_plan, change):
    plan = make_plan()
    plan.run(Painter(plan))
    with pytest.raises(ValueError, match="was begun with .* choose another output_dir"):
        make_plan(**change).run(NeverRun())


def test_folder_of_another_checkpoint_is_refused(make_plan, checkpoint: Path):
    plan = make_plan()
    plan.run(Painter(plan))
    checkpoint.write_bytes(b"other weights")
    with pytest.raises(ValueError, match="was begun with checkpoint_sha256"):
        make_plan().run(NeverRun())


def test_missing_checkpoint_writes_nothing(make_plan, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such checkpoint; train one first"):
        make_plan(checkpoint_path=tmp_path / "none.pt").run(NeverRun())
    assert not (tmp_path / "out").exists()


def test_fifth_class_anywhere_writes_nothing(make_camus, tmp_path: Path, checkpoint: Path):
    root = make_camus(num_training=2, num_validation=0, num_testing=0, with_info=False)
    bad = root / "database_nifti" / "patient0002" / "patient0002_4CH_ES_gt.nii.gz"
    label_map = read_plane(bad).pixels.copy()
    label_map[0, 0] = 4
    write_nifti(label_map, (1.5, 2.0), bad)
    plan = SynthesisPlan(root, tmp_path / "out", checkpoint_path=checkpoint, image_size=16)
    with pytest.raises(ValueError, match=r"patient0002_4CH_ES_gt.nii.gz: expected a label map .* got \[4\]"):
        plan.run(NeverRun())
    assert not (tmp_path / "out").exists()


def test_file_that_is_no_image_writes_nothing(tmp_path: Path, checkpoint: Path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "case_gt.nii.gz").write_text("not an image")
    plan = SynthesisPlan(tmp_path / "maps", tmp_path / "out", checkpoint_path=checkpoint, image_size=16)
    with pytest.raises(ValueError, match="not a readable NIfTI image"):
        plan.run(NeverRun())
    assert not (tmp_path / "out").exists()


def test_no_variations_is_refused(make_plan):
    with pytest.raises(ValueError, match="num_variations is 0"):
        make_plan(num_variations=0)


# ---- files


def test_saved_pair_has_the_square_s_spacing_and_stored_order(tmp_path: Path):
    pred = torch.zeros(1, 16, 16)
    pred[0, 2, 5] = 77.6  # row 2, column 5
    SaveSyntheticd(tmp_path)({"name": "case_v0", "pred": pred, "label": torch.ones(1, 16, 16), **GEOMETRY})
    image = nib.load(tmp_path / "images" / "case_v0.nii.gz")
    assert image.get_data_dtype() == np.uint8
    assert np.asarray(image.dataobj)[5, 2] == 78  # (x, y)
    np.testing.assert_allclose(image.header.get_zooms(), (2.0 * 40 / 13, 1.5 * 48 / 16), rtol=1e-6)
    np.testing.assert_allclose(np.abs(np.diag(image.affine))[:2], image.header.get_zooms(), rtol=1e-6)
    np.testing.assert_array_equal(nib.load(tmp_path / "labels" / "case_v0.nii.gz").affine, image.affine)


def test_written_image_is_read_back(tmp_path: Path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write_nifti(pixels, (0.5, 0.25), tmp_path / "a.nii.gz")
    plane = read_plane(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(plane.pixels, pixels)
    assert plane.spacing_mm == (0.5, 0.25)
