"""Test which synthetic images are made, by which process, from which seeds, and how they are written."""

import hashlib
import json
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from synboost_monai.dicom import write_dicom_pair
from synboost_monai.files import read_plane
from synboost_monai.synthesis.plan import (
    SaveSyntheticd,
    SynthesisOptions,
    SynthesisPlan,
    list_sources,
    stable_seed,
)
from synboost_monai.synthesis.writers import SyntheticWriter, shape_words, write_json, write_nifti
from synboost_monai.transforms.label_map_array import LabelMapPerturbation


class NeverRun:
    """Stand in for an evaluator that must not be reached."""

    def run(self):
        raise AssertionError("synthesis began")


class Painter:
    """Write plain images, each with its own grey, by `SaveSyntheticd`, as an evaluator; it may die after some."""

    def __init__(self, plan: SynthesisPlan, dies_after: int | None = None) -> None:
        self.plan = plan
        self.items = plan.remaining()  # as the config's dataset
        self.dies_after = dies_after
        self.names: list[str] = []

    def run(self):
        save = SaveSyntheticd(self.plan)
        for item in self.items:
            if len(self.names) == self.dies_after:
                raise KeyboardInterrupt
            label = torch.zeros(1, 16, 16)
            label[0, 4:12, 6:10] = 1
            grey = 100.4 + item["noise_seed"] % 100
            save({**item, "pred": torch.full((1, 16, 16), grey), "label": label, **GEOMETRY})
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
    def make(
        dataset_dir: Path = datalist_dir,
        output_dir: Path = tmp_path / "out",
        checkpoint_path: Path = checkpoint,
        writer: SyntheticWriter | None = None,
        **options,
    ) -> SynthesisPlan:
        wanted = SynthesisOptions(**{"image_size": 16, "num_variations": 2, **options})
        return SynthesisPlan(dataset_dir, output_dir, wanted, checkpoint_path=checkpoint_path, writer=writer)

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


def test_two_cases_of_one_name_are_told_apart(tmp_path: Path):
    for folder in "ab":
        write_nifti(np.zeros((4, 4), np.uint8), (1, 1), tmp_path / folder / "case_gt.nii.gz")
    assert [source["case"] for source in list_sources(tmp_path, "training")] == ["a_case", "b_case"]


def test_what_a_synthesis_made_within_its_input_is_not_its_next_input(tmp_path: Path):
    write_nifti(np.zeros((4, 4), np.uint8), (1, 1), tmp_path / "case.nii.gz")
    for name, mark in (
        ("own", '{"names": "CASE_vN_rM"}'),
        ("before", '{"names": "CASE_vN"}'),
        ("drawn", '{"versions": {"synboost_monai": "1"}}'),
    ):
        write_nifti(np.zeros((4, 4), np.uint8), (1, 1), tmp_path / name / "labels" / "case_v0.nii.gz")
        (tmp_path / name / ("provenance.json" if name == "drawn" else "settings.json")).write_text(mark)
    (tmp_path / "contact_sheet.png").write_bytes(b"")
    assert [s["case"] for s in list_sources(tmp_path, "training", exclude=tmp_path / "own")] == ["case"]
    assert [s["case"] for s in list_sources(tmp_path / "before", "training")] == ["case_v0"]


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


def test_second_run_makes_only_missing_images(make_plan, tmp_path: Path):
    plan = make_plan()
    plan.run(Painter(plan))
    name = plan.items[4]["name"]
    (tmp_path / "out" / "images" / f"{name}.nii.gz").unlink()
    again = make_plan()
    painter = Painter(again)
    again.run(painter)
    assert painter.names == [name]
    make_plan().run(NeverRun())  # complete


# ---- several processes


@pytest.fixture
def as_rank(monkeypatch):
    """Return a function that makes this process one of several."""

    def become(rank: int, world_size: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world_size))

    return become


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("world_size", [1, 2, 3, 50])
def test_shares_hold_each_image_once(make_plan, as_rank, world_size):
    shares = []
    for rank in range(world_size):
        as_rank(rank, world_size)
        shares.append([item["name"] for item in make_plan().remaining()])
    everything = [item["name"] for item in make_plan().items]
    assert sorted(name for share in shares for name in share) == sorted(everything) and len(set(everything)) == 40
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_share_does_not_move_while_others_write(make_plan, as_rank):
    as_rank(0, 2)
    first = make_plan()
    painter = Painter(first, dies_after=7)
    with pytest.raises(KeyboardInterrupt):
        first.run(painter)
    as_rank(1, 2)  # looks at the disk only now
    assert not {item["name"] for item in make_plan().remaining()} & {item["name"] for item in first.share}


def test_the_last_process_writes_the_datalist(make_plan, as_rank, tmp_path):
    as_rank(1, 2)
    plan = make_plan()
    plan.run(Painter(plan))
    assert not (tmp_path / "out" / "datalist.json").exists()
    assert not (tmp_path / "out" / "provenance.json").exists()
    as_rank(0, 2)
    plan = make_plan()
    plan.run(Painter(plan))
    assert len(json.loads((tmp_path / "out" / "provenance.json").read_text())["images"]) == 40


def test_killed_and_restarted_with_other_numbers_of_processes(make_plan, as_rank, tmp_path):
    formats = ["png", "dicom"]

    def plan_for(name: str) -> SynthesisPlan:
        out = tmp_path / name
        return make_plan(output_dir=out, num_repeats=2, writer=SyntheticWriter(out, formats, write_dicom_pair))

    plan = plan_for("whole")
    plan.run(Painter(plan))
    made = []
    for rank, world_size, dies_after in [
        (0, 2, 5),
        (1, 2, 9),
        (0, 1, 11),
        (2, 3, None),
        (0, 3, 0),
        (0, 3, None),
        (1, 3, None),
    ]:
        as_rank(rank, world_size)
        plan = plan_for("killed")
        painter = Painter(plan, dies_after)
        try:
            plan.run(painter)
        except KeyboardInterrupt:  # killed while it wrote
            (tmp_path / "killed" / "images" / f".{rank}-00ff00ff.half.nii.gz").write_bytes(b"half")
        made += painter.names
    assert len(made) == len(set(made)) == 80
    whole, killed = files_of(tmp_path / "whole"), files_of(tmp_path / "killed")
    assert len(whole) == 80 * 6 + 4 and whole.keys() == killed.keys()
    assert whole == killed


def test_two_processes_that_finish_at_once_write_the_same(make_plan, as_rank, tmp_path):
    plans = []
    for rank in (0, 1):
        as_rank(rank, 2)
        plans.append(make_plan())
        Painter(plans[-1]).run()
    plans[0].settings["checkpoint_sha256"] = plans[1].settings["checkpoint_sha256"] = "0"
    plans[0]._finish()
    before = files_of(tmp_path / "out")
    plans[1]._finish()
    assert files_of(tmp_path / "out") == before


def test_memory_of_a_plan_does_not_grow_with_its_images(make_plan):
    tracemalloc.start()
    try:
        plan = make_plan(num_variations=5_000)
        num_images = len(plan.remaining())
        for item in plan.items[:: num_images // 10]:
            assert item["name"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_images == 100_000
    assert peak / num_images < 30  # bytes: a number in the plan, one in the share, and growing an array


# ---- what is asked for


def test_repeats_share_the_label_map_and_differ_in_noise(make_plan):
    once = {item["name"]: item for item in make_plan().items}
    repeated = {item["name"]: item for item in make_plan(num_repeats=3).items}
    assert len(repeated) == 3 * len(once)
    for name, item in once.items():
        copies = [repeated[f"{name}_r{r}"] for r in range(3)]
        assert {copy["perturbation_seed"] for copy in copies} == {item["perturbation_seed"]}
        assert len({copy["noise_seed"] for copy in copies}) == 3
        assert copies[0]["noise_seed"] == item["noise_seed"]


def test_view_and_phase_choose_the_label_maps(make_plan):
    plan = make_plan(view="apical_four_chamber", phase="end_systole")
    assert {source["case"].split("_", 1)[1] for source in plan.sources} == {"4CH_ES"}
    assert {(item["view"], item["phase"]) for item in plan.items} == {("apical_four_chamber", "end_systole")}
    with pytest.raises(ValueError, match="view"):
        make_plan(view="four_chamber")


def test_other_formats_are_added_to_a_finished_folder(make_plan, tmp_path):
    plan = make_plan(sections="validation")
    plan.run(Painter(plan))
    before = files_of(tmp_path / "out")
    writer = SyntheticWriter(tmp_path / "out", "png+dicom", write_dicom_pair)
    make_plan(sections="validation", writer=writer).run(NeverRun())
    after = files_of(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert sum(name.endswith(".png") for name in after.keys() - before.keys()) == 16
    assert sum(name.endswith(".dcm") for name in after.keys() - before.keys()) == 16

    direct = make_plan(
        output_dir=tmp_path / "direct",
        sections="validation",
        writer=SyntheticWriter(tmp_path / "direct", "dicom+png", write_dicom_pair),
    )
    direct.run(Painter(direct))
    assert files_of(tmp_path / "direct") == after  # with the pairs or afterwards: the same bytes


def test_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="formats has 'jpeg'; expected of nifti, png, dicom"):
        SyntheticWriter(tmp_path, "nifti+jpeg")
    with pytest.raises(ValueError, match="no write_dicom"):
        SyntheticWriter(tmp_path, ["dicom"])


def test_more_variations_are_added_to_a_folder(make_plan):
    plan = make_plan(num_variations=1)
    plan.run(Painter(plan))
    more = make_plan(num_variations=2)
    painter = Painter(more)
    more.run(painter)
    assert len(painter.names) == 20 and all(name.endswith("_v1") for name in painter.names)


def test_folder_of_another_run_is_refused(make_plan, checkpoint: Path):
    plan = make_plan()
    plan.run(Painter(plan))
    changes = {
        "seed": {"seed": 1},
        "num_inference_steps": {"sampling": {"num_inference_steps": 9}},
        "image_size": {"image_size": 32},
        "names CASE_vN, this run has CASE_vN_rM": {"num_repeats": 2},  # repeats do not mix with single images
    }
    for words, change in changes.items():
        with pytest.raises(ValueError, match=f"was begun with {words}.* choose another output_dir"):
            make_plan(**change).run(NeverRun())
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
    plan = SynthesisPlan(root, tmp_path / "out", SynthesisOptions(16), checkpoint_path=checkpoint)
    with pytest.raises(ValueError, match=r"patient0002_4CH_ES_gt.nii.gz: expected a label map .* got \[4\]"):
        plan.run(NeverRun())
    assert not (tmp_path / "out").exists()


def test_file_that_is_no_image_writes_nothing(tmp_path: Path, checkpoint: Path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "case_gt.nii.gz").write_text("not an image")
    plan = SynthesisPlan(tmp_path / "maps", tmp_path / "out", SynthesisOptions(16), checkpoint_path=checkpoint)
    with pytest.raises(ValueError, match="not a readable NIfTI image"):
        plan.run(NeverRun())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["num_variations", "num_repeats"])
def test_no_images_a_label_map_is_refused(make_plan, name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        make_plan(**{name: 0})


def test_an_image_to_start_from_fits_its_label_map(make_plan, tmp_path):
    with pytest.raises(ValueError, match="no perturbed label map fits; give perturbation_strength 0"):
        make_plan(start_strength=0.5)
    plain = LabelMapPerturbation(strength=0)
    assert "start_strength" not in make_plan(perturbation=plain).settings  # folders begun before this setting go on
    assert make_plan(perturbation=plain, start_strength=0.5).settings["start_strength"] == 0.5


def test_a_label_map_without_an_image_to_start_from_writes_nothing(tmp_path, checkpoint):
    write_nifti(np.ones((48, 40)), (1.5, 2.0), tmp_path / "maps" / "case_gt.nii.gz")
    options = SynthesisOptions(16, perturbation=LabelMapPerturbation(strength=0), start_strength=0.5)
    plan = SynthesisPlan(tmp_path / "maps", tmp_path / "out", options, checkpoint_path=checkpoint)
    with pytest.raises(ValueError, match="case_gt.nii.gz: has no image, and start_strength below 1 needs one"):
        plan.run(NeverRun())
    assert not (tmp_path / "out").exists()


def run_one_case(tmp_path: Path, checkpoint: Path, label: np.ndarray, image: np.ndarray | None = None) -> None:
    write_nifti(label, (1.5, 2.0), tmp_path / "maps" / "case_gt.nii.gz")
    if image is not None:
        write_nifti(image, (1.5, 2.0), tmp_path / "maps" / "case.nii.gz")
    SynthesisPlan(tmp_path / "maps", tmp_path / "out", SynthesisOptions(16), checkpoint_path=checkpoint).run(NeverRun())


@pytest.mark.parametrize(
    ("label", "image", "message"),
    [
        (np.zeros((48, 40)), None, r"case_gt.nii.gz: the label map is empty \(background alone\)"),
        (np.ones((48, 40)), np.ones((48, 41)), r"image is \(48, 41\) but label map is \(48, 40\)"),
        (np.ones((48, 40)), np.zeros((48, 40)), r"case.nii.gz: no pixel is brighter than 0 \(sector_threshold\)"),
        (np.pad(np.ones((3, 4)), [(0, 45), (0, 36)]), None, "lie in the default sector"),
    ],
)
def test_source_that_cannot_be_drawn_writes_nothing(tmp_path, checkpoint, label, image, message):
    with pytest.raises(ValueError, match=message):
        run_one_case(tmp_path, checkpoint, label.astype(np.uint8), None if image is None else image.astype(np.uint8))
    assert not (tmp_path / "out").exists()


def test_sector_of_another_size_writes_nothing(tmp_path, checkpoint):
    for name, shape in (("case_gt", (48, 40)), ("sector", (40, 48))):
        write_nifti(np.ones(shape, np.uint8), (1, 1), tmp_path / f"{name}.nii.gz")
    item = {"label": "case_gt.nii.gz", "sector": "sector.nii.gz"}
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [item]}))
    plan = SynthesisPlan(
        tmp_path, tmp_path / "out", SynthesisOptions(16, sections="training"), checkpoint_path=checkpoint
    )
    assert plan.items[0]["sector"] == str(tmp_path / "sector.nii.gz")
    with pytest.raises(ValueError, match=r"sector is \(40, 48\) but label map is \(48, 40\)"):
        plan.run(NeverRun())


@pytest.mark.parametrize("format_", ["nifti", "png", "dicom"])
def test_full_disk_is_one_line_and_leaves_no_half_file(make_plan, tmp_path, monkeypatch, format_):
    """A writer fills the disk at the 4th file of a format: half of it is there when the system refuses."""
    import errno

    import nibabel
    import PIL.Image
    from pydicom.dataset import Dataset

    module, name = {"nifti": (nibabel, "save"), "png": (PIL.Image.Image, "save"), "dicom": (Dataset, "save_as")}[
        format_
    ]
    write, calls = getattr(module, name), []

    def write_until_full(thing, path, *args, **kwargs):
        calls.append(path)
        if len(calls) == 4:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(thing, path, *args, **kwargs)

    def make():
        plan = make_plan(
            sections="validation", writer=SyntheticWriter(tmp_path / "out", [format_], write_dicom=write_dicom_pair)
        )
        return plan, Painter(plan)

    plan, painter = make()
    with monkeypatch.context() as patch, pytest.raises(ValueError) as caught:
        patch.setattr(module, name, write_until_full)
        plan.run(painter)
    message = str(caught.value)
    assert "v1" in message and str(tmp_path / "out" / "images") in message and "\n" not in message
    assert "the disk is full; free some space and run the same command again" in message
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()]
    assert len(list((tmp_path / "out" / "images").glob("*.nii.gz"))) == 1  # the pair that was complete
    plan, painter = make()
    plan.run(painter)
    assert len(painter.names) == 7 and (tmp_path / "out" / "datalist.json").is_file()


def test_folder_that_cannot_be_made_is_one_line(make_plan, tmp_path):
    (tmp_path / "file").write_text("")
    plan = make_plan(output_dir=tmp_path / "file" / "out")
    with pytest.raises(ValueError, match="settings.json: cannot be written .* make the folder writable"):
        plan.run(Painter(plan))


# ---- files


def test_saved_pair_has_the_square_s_spacing_and_stored_order(make_plan, tmp_path: Path):
    pred = torch.zeros(1, 16, 16)
    pred[0, 2, 5] = 77.6  # row 2, column 5
    plan = make_plan()
    name = plan.items[0]["name"]
    SaveSyntheticd(plan)({"name": name, "pred": pred, "label": torch.ones(1, 16, 16), **GEOMETRY})
    image = nib.load(tmp_path / "out" / "images" / f"{name}.nii.gz")
    assert image.get_data_dtype() == np.uint8
    assert np.asarray(image.dataobj)[5, 2] == 78  # (x, y)
    np.testing.assert_allclose(image.header.get_zooms(), (2.0 * 40 / 13, 1.5 * 48 / 16), rtol=1e-6)
    np.testing.assert_allclose(np.abs(np.diag(image.affine))[:2], image.header.get_zooms(), rtol=1e-6)
    np.testing.assert_array_equal(nib.load(tmp_path / "out" / "labels" / f"{name}.nii.gz").affine, image.affine)


def test_written_image_is_read_back(tmp_path: Path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write_nifti(pixels, (0.5, 0.25), tmp_path / "a.nii.gz")
    plane = read_plane(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(plane.pixels, pixels)
    assert plane.spacing_mm == (0.5, 0.25)


def test_shape_words_come_from_the_header_or_are_measured(tmp_path: Path):
    label_map = np.zeros((32, 32), np.uint8)
    label_map[8:24, 4:28] = 1
    SyntheticWriter(tmp_path).write("a", np.zeros((32, 32), np.uint8), label_map, (1.0, 1.0))
    path = tmp_path / "labels" / "a.nii.gz"
    assert bytes(nib.load(path).header["descrip"]).startswith(b"shape rectangle,-,-")
    assert shape_words(path) == {"left_ventricular_cavity": "rectangle"}
    write_nifti(label_map, (1.0, 1.0), path, description="shape triangle,-,oval")
    assert shape_words(path) == {
        "left_ventricular_cavity": "triangle",
        "left_atrium": "oval",
    }  # the pixels are not read
    for note in ("", "shape star,-,-", "shape circle", "made elsewhere"):
        write_nifti(label_map, (1.0, 1.0), path, description=note)
        assert shape_words(path) == {"left_ventricular_cavity": "rectangle"}


def test_png_holds_grey_levels_and_class_indices(tmp_path: Path):
    from PIL import Image

    image, label_map = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20, np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
    SyntheticWriter(tmp_path, "png").write("a", image, label_map, (0.5, 0.25))
    for folder, expected in (("images", image), ("labels", label_map)):
        picture = Image.open(tmp_path / folder / "a.png")
        assert picture.mode == "L" and picture.info["dpi"] == pytest.approx((101.6, 50.8), rel=1e-3)
        np.testing.assert_array_equal(np.asarray(picture), expected)


def test_json_in_a_stream_is_json(tmp_path: Path):
    head = {"a": {"b": [1, 2]}, "c": "li\nne \u00e9"}
    lists = {"x": [{"n": i} for i in range(3)], "y": [], "z": ["one"]}
    write_json(tmp_path / "a.json", head, {key: iter(items) for key, items in lists.items()})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {**head, **lists}
    assert '\n  {"n": 1},\n' in text  # an item a line
    write_json(tmp_path / "b.json", head, {})
    assert json.loads((tmp_path / "b.json").read_text(encoding="utf-8")) == head


def test_json_that_fails_halfway_leaves_the_old_file(tmp_path: Path):
    write_json(tmp_path / "a.json", {"old": True}, {})

    def items():
        yield 1
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_json(tmp_path / "a.json", {}, {"x": items()})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and json.loads((tmp_path / "a.json").read_text())["old"]
