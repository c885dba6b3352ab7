"""Test each config of the semantic diffusion bundle, end to end with a tiny network."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import verify_net_in_out

from synboost_monai.bundle_run import bundle_dir, run_bundle
from synboost_monai.data import read_datalist
from synboost_monai.files import image_stem, sha256_of
from synboost_monai.model_card import read_card
from synboost_monai.structures import STRUCTURES
from synboost_monai.transforms import Letterboxd, LoadEchod
from tests.bundles.conftest import DIFFUSION, TINY, WRITTEN, read_yaml, workflow
from tests.forked import Forked, module, ranks

BUNDLE = bundle_dir("echo_semantic_diffusion")
CONFIGS = BUNDLE / "configs"
TRAIN = {**TINY, **DIFFUSION, "max_epochs": 2, "picture_interval": 1}
SYNTHESISE = {**TINY, "num_inference_steps": 2, "num_variations": 1, "batch_size": 8}
pytestmark = pytest.mark.usefixtures("global_state")


@pytest.fixture(scope="module")
def trained(datalist_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of a short training."""
    output_dir = tmp_path_factory.mktemp("diffusion")
    run_bundle(BUNDLE, "train", {**TRAIN, "dataset_dir": str(datalist_dir), "output_dir": str(output_dir)})
    return output_dir


@pytest.fixture
def synthesise(datalist_dir: Path, trained: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that synthesises into a folder of this name."""

    def run(name: str = "synthetic", **changes) -> Path:
        places = {"dataset_dir": datalist_dir, "checkpoint_path": trained / "model.pt", "output_dir": tmp_path / name}
        run_bundle(BUNDLE, "inference", {**SYNTHESISE, **places, **changes})
        return tmp_path / name

    return run


@pytest.fixture
def without_card(trained: Path, tmp_path: Path) -> str:
    """Return the same weights without a card, so that the user may state what they are."""
    return str(shutil.copy(trained / "model.pt", tmp_path / "alone.pt"))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


# ---- train


def test_training_writes_averaged_weights_and_logs(trained: Path):
    weights = torch.load(trained / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    assert sorted(p.name for p in trained.iterdir()) == WRITTEN
    assert "val_loss" in (trained / "log.txt").read_text()


def test_tensorboard_has_losses_and_pictures(trained: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard"))
    events.Reload()
    assert {"train_loss", "val_loss", "learning_rate"} <= {tag.split("/")[-1] for tag in events.Tags()["scalars"]}
    pictures = events.Images("label map, synthetic, real")
    assert [picture.step for picture in pictures] == [1, 2]
    assert (pictures[0].width, pictures[0].height) == (4 * 32, 3 * 32)


def test_killed_training_goes_on_to_the_same_weights(
    trained: Path, datalist_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from synboost_monai.training import WriteWeights

    overrides = {**TRAIN, "dataset_dir": str(datalist_dir), "output_dir": str(tmp_path)}
    write = WriteWeights.write

    def die(self, engine):
        if engine.state.epoch == 2:
            raise KeyboardInterrupt
        write(self, engine)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(WriteWeights, "write", die)
        run_bundle(BUNDLE, "train", overrides)
    assert (tmp_path / "resume.ckpt").is_file()
    run_bundle(BUNDLE, "train", overrides)
    whole, resumed = (torch.load(p / "model.pt", weights_only=True) for p in (trained, tmp_path))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_training_takes_images_that_a_segmenter_labelled(datalist_dir: Path, tmp_path: Path):
    """They join the training section."""
    whole = {name: read_datalist(datalist_dir, name) for name in ("training", "validation", "testing")}
    parts = {
        "real": {name: whole[name] for name in ("training", "validation")},
        "labelled": {"training": whole["testing"]},  # patients that the other part does not know
    }
    for name, sections in parts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "datalist.json").write_text(json.dumps(sections))
    paths = {"dataset_dir": "real", "pseudo_labelled_dir": "labelled", "output_dir": "out"}
    overrides = {**TRAIN, **{key: tmp_path / name for key, name in paths.items()}}
    run = workflow(BUNDLE.name, ["train"], "train", **overrides)
    data = run.parser.get_parsed_content("train::dataset::data")
    assert [item["image"] for item in data] == [item["image"] for item in whole["training"] + whole["testing"]]


def test_training_on_bad_data_writes_nothing(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="datalist"):
        run_bundle(BUNDLE, "train", {**TRAIN, "dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "out")})
    assert not (tmp_path / "out").exists()


# ---- inference


def test_synthesis_writes_a_data_set(synthesise: Callable[..., Path], datalist_dir: Path):
    out = synthesise()
    datalist = json.loads((out / "datalist.json").read_text())
    assert [len(datalist[section]) for section in ("training", "validation")] == [16, 4]
    real = json.loads((datalist_dir / "datalist.json").read_text())
    for section in ("training", "validation"):
        assert {i["patient"] for i in datalist[section]} == {i["patient"] for i in real[section]}
    item = datalist["training"][0]
    image, label = nib.load(out / item["image"]), nib.load(out / item["label"])
    assert image.shape == label.shape == (32, 32) and image.get_data_dtype() == label.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.affine, label.affine)
    assert set(np.unique(pixels(out / item["label"]))) <= {0, *(s.class_index for s in STRUCTURES)}
    grey = pixels(out / item["image"]).T  # stored (x, y)
    assert grey[4:28].any(axis=1).all()
    assert not grey[[0, -2, -1]].any()  # the padding: 48 x 40 px of 1.5 x 2 mm take 29 of 32 rows
    assert not grey[2, :10].any()  # beside the sector's apex
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["settings"]["num_inference_steps"] == 2 and len(provenance["images"]) == 20


def test_images_do_not_depend_on_batch_size_or_on_the_others(synthesise: Callable[..., Path]):
    many, few = synthesise("many", batch_size=8), synthesise("few", batch_size=3, num_workers=2, sections="validation")
    names = sorted(p.name for p in (few / "images").iterdir())
    assert len(names) == 4
    for name in names:
        for folder in ("images", "labels"):
            assert (many / folder / name).read_bytes() == (few / folder / name).read_bytes()


def test_interrupted_synthesis_goes_on_to_the_same_images(synthesise: Callable[..., Path]):
    out = synthesise()
    before = files_of(out)
    files = sorted((out / "images").iterdir())
    for path in (files[2], files[-1], out / "datalist.json"):
        path.unlink()
    synthesise()
    assert files_of(out) == before


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_killed_synthesis_goes_on_with_other_numbers_of_processes(
    synthesise: Callable[..., Path], datalist_dir: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """SIGKILL comes after the third image; then one of two processes goes on, then three: all bytes are as in one undisturbed run."""
    changes = {"num_variations": 2, "num_inference_steps": 4, "batch_size": 1, "images_at_once": 2}
    whole = synthesise("whole", **{**changes, "batch_size": 8})
    flags = {**SYNTHESISE, **changes, "dataset_dir": datalist_dir, "checkpoint_path": trained / "model.pt"}
    flags["output_dir"] = tmp_path / "killed"
    process = Forked(*module("synboost_monai", "synthesise", *(f"--{k}={v}" for k, v in flags.items())))
    images = tmp_path / "killed" / "images"
    deadline = time.monotonic() + 120
    while len(list(images.glob("*.nii.gz"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    num_killed = len(list(images.glob("*.nii.gz")))
    assert 3 <= num_killed < 40 and not (tmp_path / "killed" / "datalist.json").exists()
    for rank, world_size in ((1, 2), (0, 3), (1, 3), (2, 3)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        synthesise("killed", **changes)
    assert files_of(whole) == files_of(tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("program", [["monai.bundle", "run"], ["synboost_monai", "synthesise"]])
def test_processes_share_out_the_images(
    synthesise: Callable[..., Path], datalist_dir: Path, trained: Path, tmp_path: Path, program: list[str]
):
    whole = synthesise("whole")
    flags = {**SYNTHESISE, "dataset_dir": datalist_dir, "checkpoint_path": trained / "model.pt"}
    flags["output_dir"] = tmp_path / "shared"
    if program[0] == "monai.bundle":
        flags["config_file"] = CONFIGS / "inference.yaml"
    processes = ranks(2, *module(*program, *(f"--{k}={v}" for k, v in flags.items())))
    assert sum(process.done().stderr.count("synthesise: 100%") for process in processes) <= 1  # one bar
    assert files_of(whole) == files_of(tmp_path / "shared")


def test_all_formats_and_repeats(synthesise: Callable[..., Path]):
    out = synthesise(formats=["png", "dicom"], num_repeats=2, sections="validation", view="apical_two_chamber")
    names = sorted(p.name.split(".")[0] for p in (out / "images").glob("*.nii.gz"))
    assert names == [f"patient0005_2CH_{phase}_v0_r{r}" for phase in ("ED", "ES") for r in (0, 1)]
    for folder in ("images", "labels"):
        for suffix in (".png", ".dcm"):
            assert sorted(p.name.removesuffix(suffix) for p in (out / folder).glob(f"*{suffix}")) == names
    one, other = (out / "images" / f"{name}.nii.gz" for name in names[:2])
    assert (pixels(one) != pixels(other)).any()
    np.testing.assert_array_equal(pixels(out / "labels" / one.name), pixels(out / "labels" / other.name))


def test_squashed_images_fill_the_square_and_say_their_spacing(synthesise: Callable[..., Path], without_card: str):
    out = synthesise(keep_aspect=False, sections="validation", limit=1, checkpoint_path=without_card)
    image = nib.load(next((out / "images").iterdir()))
    np.testing.assert_allclose(image.header.get_zooms(), (2.0 * 40 / 32, 1.5 * 48 / 32))  # 48 x 40 px of 1.5 x 2 mm
    assert np.asarray(image.dataobj)[:, [1, -1]].any(axis=0).all()  # no padding above and below


def test_perturbation_strength_zero_keeps_the_label_maps(synthesise: Callable[..., Path]):
    out = synthesise(perturbation_strength=0, num_variations=2, sections="validation", limit=1)
    first, second = sorted((out / "labels").glob("*.nii.gz"))
    np.testing.assert_array_equal(pixels(first), pixels(second))
    records = json.loads((out / "provenance.json").read_text())["images"]
    assert [r["perturbation"]["scale"] for r in records] == [1.0, 1.0]


def test_a_student_of_a_trained_model_draws_in_few_evaluations(
    synthesise: Callable[..., Path], trained: Path, datalist_dir: Path, tmp_path: Path
):
    """The teacher stays as it is, and the student's model.json says what it is."""
    teacher, folder = trained / "model.pt", tmp_path / "student"
    before = sha256_of(teacher)
    overrides = {
        **TRAIN,
        "max_epochs": 1,
        "num_segments": 2,
        "dataset_dir": str(datalist_dir),
        "output_dir": str(folder),
    }
    run_bundle(BUNDLE, "train_distilled", {**overrides, "init_checkpoint": str(teacher)})
    card = read_card(folder / "model.pt")
    assert card is not None and card.training["num_segments"] == 2 and card.training["init_checkpoint"] == teacher.name
    assert sha256_of(teacher) == before != sha256_of(folder / "model.pt")
    segments = {"sampler": "ddim", "timestep_spacing": "segments", "num_inference_steps": 2}
    chosen = {"sections": "validation", "limit": 1, **segments}
    by_teacher, by_student = (
        synthesise(f"by_{weights.parent.name}", checkpoint_path=str(weights), **chosen)
        for weights in (teacher, folder / "model.pt")
    )
    (first,), (second,) = (sorted((out / "images").glob("*.nii.gz")) for out in (by_teacher, by_student))
    assert (pixels(first) != pixels(second)).any()
    with pytest.raises(ValueError, match="must divide 24"):
        synthesise("uneven", **{**chosen, "num_inference_steps": 5})


def test_images_can_start_from_those_of_the_label_maps(synthesise: Callable[..., Path], datalist_dir: Path):
    """With next to no noise they are the images themselves, letterboxed, black outside the sector; with more they are not."""
    chosen = {"perturbation_strength": 0, "sections": "validation", "limit": 2, "num_inference_steps": 50}
    little, more = (synthesise(f"start{s}", start_strength=s, sampler="ddim", **chosen) for s in (0.002, 0.6))
    items = read_datalist(little, "validation")
    assert len(items) == 2
    letterbox = Letterboxd("image", size=32, label_keys=["label"])
    sources = {image_stem(item["image"]): item for item in read_datalist(datalist_dir, "validation")}
    for item in items:
        source = sources[image_stem(item["image"]).removesuffix("_v0")]
        squared = letterbox(LoadEchod(["image", "label"])({k: source[k] for k in ("image", "label")}))
        expected = np.asarray(squared["image"][0], dtype=float).T
        inside = pixels(Path(item["image"])) > 0
        near, far = (
            np.abs(pixels(folder / "images" / Path(item["image"]).name)[inside] - expected[inside])
            for folder in (little, more)
        )
        assert near.mean() < 4 and far.mean() > 3 * near.mean()  # grey levels
        np.testing.assert_array_equal(pixels(Path(item["label"])), np.asarray(squared["label"][0]).T)


@pytest.mark.usefixtures("computes_in_16_bits")
def test_half_precision_weights_change_the_last_grey_levels_only(synthesise: Callable[..., Path]):
    full = synthesise("full", sections="validation", limit=1)
    half = synthesise("half", sections="validation", limit=1, dtype="bfloat16")
    name = next((full / "images").iterdir()).name
    difference = pixels(full / "images" / name).astype(int) - pixels(half / "images" / name)
    assert 0 < np.abs(difference).mean() < 8
    with pytest.raises(ValueError, match="was begun with dtype float32, this run has bfloat16"):
        synthesise("full", sections="validation", limit=1, dtype="bfloat16")


def test_model_that_is_told_view_and_phase_draws_by_them(synthesise: Callable[..., Path], tmp_path: Path):
    from synboost_monai.networks import create_semantic_diffusion_unet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_semantic_diffusion_unet("tiny", image_size=32, num_class_embeds=5)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    told = {"num_class_embeds": 5, "checkpoint_path": str(tmp_path / "told.pt"), "limit": 1}
    torch.save(network.state_dict(), tmp_path / "told.pt")
    one = synthesise("one", **told)
    network.class_embedding.weight.data[1] += 1  # apical two-chamber at end-diastole, which both sections begin with
    torch.save(network.state_dict(), tmp_path / "told.pt")
    other = synthesise("other", **told)
    names = sorted(p.name for p in (one / "images").iterdir())
    assert [name[:15] for name in names] == ["patient0001_2CH", "patient0005_2CH"]
    for name in names:
        assert (pixels(one / "images" / name) != pixels(other / "images" / name)).any()
    with pytest.raises(ValueError, match="told.pt does not fit SemanticDiffusionUNet: 1 of .* keys are unexpected"):
        synthesise("refused", **{**told, "num_class_embeds": None})
    assert not (tmp_path / "refused").exists()


def test_an_item_s_own_sector_is_used(synthesise: Callable[..., Path], camus_dir: Path, tmp_path: Path):
    source = camus_dir / "database_nifti" / "patient0001"
    shutil.copy(source / "patient0001_4CH_ED_gt.nii.gz", tmp_path)
    label = nib.load(tmp_path / "patient0001_4CH_ED_gt.nii.gz")
    sector = np.ones(label.shape, np.uint8)
    sector[:20] = 0  # stored (x, y): the left half is outside
    nib.save(nib.Nifti1Image(sector, label.affine), tmp_path / "sector.nii.gz")
    item = {"label": "patient0001_4CH_ED_gt.nii.gz", "sector": "sector.nii.gz"}
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [item]}))
    out = synthesise(dataset_dir=str(tmp_path), sections="training")
    grey = pixels(next((out / "images").iterdir()))
    assert not grey[:15].any() and grey[17:30, 4:28].any()


def test_progress_and_messages_of_one_process_among_several(
    synthesise: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        synthesise()
        has_bar = "synthesise:" in capfd.readouterr().err
        assert has_bar == (rank == 0)


def test_another_seed_gives_other_images(synthesise: Callable[..., Path]):
    one, other = synthesise("one", sections="validation"), synthesise("other", sections="validation", seed=5)
    name = next((one / "images").iterdir()).name
    assert (pixels(one / "images" / name) != pixels(other / "images" / name)).any()
    assert (pixels(one / "labels" / name) != pixels(other / "labels" / name)).any()


def test_label_maps_alone_are_enough(synthesise: Callable[..., Path], camus_dir: Path, tmp_path: Path):
    (tmp_path / "maps").mkdir()
    for path in (camus_dir / "database_nifti" / "patient0001").glob("*_E?_gt.nii.gz"):
        shutil.copy(path, tmp_path / "maps")
    out = synthesise(dataset_dir=str(tmp_path / "maps"))
    names = {path.name.split("_gt")[0] + "_v0.nii.gz" for path in (tmp_path / "maps").iterdir()}
    assert len(names) == 4 and {path.name for path in (out / "images").iterdir()} == names
    assert all(pixels(path).std() > 0 for path in (out / "images").iterdir())
    item = json.loads((out / "datalist.json").read_text())["training"][0]
    assert item["patient"] == "patient0001" and item["phase"] == "end_diastole"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"checkpoint_path": "{tmp}/none.pt"}, FileNotFoundError, "none.pt"),
        ({"checkpoint_path": "{tmp}/other.pt"}, ValueError, "other.pt"),
        (
            {"image_size": 30, "checkpoint_path": "{tmp}/alone.pt"},
            ValueError,
            "image_size is 30 px but this network halves its grid to multiples of 4 px",
        ),
        ({"dataset_dir": "{tmp}/empty"}, ValueError, "no label maps"),
        ({"dataset_dirr": "x"}, ValueError, "did you mean dataset_dir"),
    ],
    ids=["no weights", "another architecture", "a size that cannot be halved", "an empty folder", "a misspelt key"],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    synthesise: Callable[..., Path],
    without_card: str,
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=message):
        synthesise(**{k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in changes.items()})
    assert not (tmp_path / "synthetic").exists()


def test_weights_know_what_they_are(synthesise: Callable[..., Path], trained: Path):
    card = json.loads((trained / "model.json").read_text())
    assert (card["architecture"], card["preset"], card["image_size"]) == ("semantic_diffusion", "tiny", 32)
    assert card["measured"]["epoch"] == TRAIN["max_epochs"] and "num_class_embeds" in card
    with pytest.raises(ValueError, match="made with image_size 32, but --image_size says 30; leave --image_size out"):
        synthesise(image_size=30)
    said = synthesise("said", sections="validation", limit=1)
    unsaid = synthesise("unsaid", sections="validation", limit=1, preset=None, image_size=None)
    assert files_of(said) == files_of(unsaid)


# ---- what MONAI and the zoo ask for


@pytest.mark.parametrize(
    ("configs", "workflow_type"),
    [
        (["train"], "train"),
        (["train", "train_small"], "train"),
        (["train", "multi_gpu_train"], "train"),
        (["inference"], "infer"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else value,
)
def test_properties(
    configs: list[str], workflow_type: str, datalist_dir: Path, tmp_path: Path, one_process: None
) -> None:
    """Every config with its additions has the properties that MONAI requires."""
    overrides = {"backend": "gloo"} if "multi_gpu_train" in configs else {}
    places = {"dataset_dir": datalist_dir, "output_dir": tmp_path / "out"}
    run = workflow(BUNDLE.name, configs, workflow_type, **places, **overrides)
    try:
        assert run.check_properties() == []
    finally:
        run.finalize()
    assert not (tmp_path / "out").exists()


def test_network_takes_and_gives_what_the_metadata_says(tmp_path: Path):
    verify_net_in_out(
        "network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.yaml"),
        device="cpu",
        # the published layout, narrow: the real one has 652 million parameters
        **{"network_def::base_channels": 8, "network_def::num_groups": 4, "network_def::num_head_channels": 8},
    )


def test_configs_agree_on_the_network():
    train, inference = (read_yaml(BUNDLE.name, name) for name in ("train", "inference"))
    # how a gradient is computed is no part of the network
    in_training = {key: value for key, value in train["network_def"].items() if key != "gradient_checkpointing"}
    assert in_training == inference["network_def"]
    for key in ("preset", "image_size", "keep_aspect", "sector_threshold", "num_class_embeds"):
        assert train[key] == inference[key]
    shared = ["LoadEchod", "CheckLabelMapd", "SectorMaskd", "Letterboxd", "SectorLabelMapd"]
    for config in (train, inference):
        names = [t["_target_"].split(".")[-1] for t in config["preprocessing"]["transforms"]]
        assert list(dict.fromkeys(name for name in names if name in shared)) == shared


def test_multi_gpu_config_trains(trained: Path, datalist_dir: Path, tmp_path: Path, one_process: None):
    overrides = {**TRAIN, "max_epochs": 1, "dataset_dir": str(datalist_dir), "output_dir": str(tmp_path)}
    run_bundle(BUNDLE, "train,multi_gpu_train", {**overrides, "backend": "gloo"})
    one, many = (torch.load(p / "model.pt", weights_only=True) for p in (trained, tmp_path))
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in many.items()}
    assert not torch.distributed.is_initialized()
