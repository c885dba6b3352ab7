"""Each config of the semantic diffusion bundle, end to end with a tiny network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import ignite.distributed.utils
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow, verify_net_in_out
from monai.utils import set_determinism

from synboost_monai.bundle_run import bundle_dir, run_bundle
from synboost_monai.labels import STRUCTURES

BUNDLE = bundle_dir("echo_semantic_diffusion")
CONFIGS = BUNDLE / "configs"
MODEL = {"preset": "tiny", "image_size": 32, "device": "cpu"}
TRAIN = {
    **MODEL,
    "max_epochs": 2,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "ema_decay": 0.9,
    "picture_steps": 2,
    "picture_interval": 1,
}
SYNTHESISE = {**MODEL, "num_inference_steps": 2, "num_variations": 1, "batch_size": 8}


@pytest.fixture(autouse=True)
def global_state() -> Iterator[None]:
    """The bundles seed globally; other tests must not notice."""
    state = torch.random.get_rng_state()
    yield
    set_determinism(None)
    torch.random.set_rng_state(state)


@pytest.fixture(scope="module")
def trained(datalist_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a short training."""
    output_dir = tmp_path_factory.mktemp("diffusion")
    run_bundle(BUNDLE, "train", {**TRAIN, "dataset_dir": str(datalist_dir), "output_dir": str(output_dir)})
    return output_dir


@pytest.fixture
def synthesise(datalist_dir: Path, trained: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that synthesises into a folder of this name."""

    def run(name: str = "synthetic", **changes) -> Path:
        overrides = {
            **SYNTHESISE,
            "dataset_dir": str(datalist_dir),
            "checkpoint_path": str(trained / "model.pt"),
            "output_dir": str(tmp_path / name),
        }
        run_bundle(BUNDLE, "inference", {**overrides, **changes})
        return tmp_path / name

    return run


def pixels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


# ---- train


def test_training_writes_averaged_weights_and_logs(trained: Path):
    weights = torch.load(trained / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    assert sorted(p.name for p in trained.iterdir()) == ["log.txt", "model.pt", "tensorboard"]
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
    from synboost_monai.handlers import WriteWeights

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


def test_training_can_start_from_weights(trained: Path, datalist_dir: Path, tmp_path: Path):
    overrides = {
        **TRAIN,
        "max_epochs": 1,
        "learning_rate": 0.0,
        "dataset_dir": str(datalist_dir),
        "output_dir": str(tmp_path),
        "init_checkpoint": str(trained / "model.pt"),
    }
    run_bundle(BUNDLE, "train", overrides)
    before, after = (torch.load(p / "model.pt", weights_only=True) for p in (trained, tmp_path))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


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
    many, few = synthesise("many", batch_size=8), synthesise("few", batch_size=3, sections="validation")
    names = sorted(p.name for p in (few / "images").iterdir())
    assert len(names) == 4
    for name in names:
        np.testing.assert_array_equal(pixels(many / "labels" / name), pixels(few / "labels" / name))
        difference = pixels(many / "images" / name).astype(int) - pixels(few / "images" / name)
        assert np.abs(difference).max() <= 1  # one grey level: another batch size may round the last bit otherwise


def test_interrupted_synthesis_goes_on_to_the_same_images(synthesise: Callable[..., Path]):
    out = synthesise()
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    files = sorted((out / "images").iterdir())
    for path in (files[2], files[-1], out / "datalist.json"):
        path.unlink()
    synthesise()
    after = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert before == after


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
    assert len(list((out / "images").iterdir())) == 4
    item = json.loads((out / "datalist.json").read_text())["training"][0]
    assert item["patient"] == "patient0001" and item["phase"] == "end_diastole"


def test_missing_checkpoint_is_one_line_and_writes_nothing(synthesise: Callable[..., Path], tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="none.pt"):
        synthesise(checkpoint_path=str(tmp_path / "none.pt"))
    assert not (tmp_path / "synthetic").exists()


def test_checkpoint_of_another_architecture_writes_nothing(synthesise: Callable[..., Path], tmp_path: Path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt"):
        synthesise(checkpoint_path=str(tmp_path / "other.pt"))
    assert not (tmp_path / "synthetic").exists()


def test_empty_folder_writes_nothing(synthesise: Callable[..., Path], tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no label maps"):
        synthesise(dataset_dir=str(tmp_path / "empty"))
    assert not (tmp_path / "synthetic").exists()


def test_misspelt_key_is_refused(synthesise: Callable[..., Path]):
    with pytest.raises(ValueError, match="did you mean dataset_dir"):
        synthesise(dataset_dirr="x")


# ---- what MONAI and the zoo ask for


@pytest.mark.parametrize(("config", "workflow_type"), [("train", "train"), ("inference", "infer")])
def test_properties(config: str, workflow_type: str, datalist_dir: Path, tmp_path: Path):
    workflow = ConfigWorkflow(
        config_file=str(CONFIGS / f"{config}.yaml"),
        meta_file=str(CONFIGS / "metadata.json"),
        workflow_type=workflow_type,
        bundle_root=str(BUNDLE),
        dataset_dir=str(datalist_dir),
        output_dir=str(tmp_path / "out"),
        **MODEL,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
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
    train, inference = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("train", "inference"))
    assert train["network_def"] == inference["network_def"]
    for key in ("preset", "image_size"):
        assert train[key] == inference[key]
    shared = ["LoadEchod", "CheckLabelMapd", "SectorMaskd", "Letterboxd", "SectorLabelMapd"]
    for config in (train, inference):
        names = [t["_target_"].split(".")[-1] for t in config["preprocessing"]["transforms"]]
        assert [name for name in names if name in shared] == shared


def test_metadata_is_complete():
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    classes = metadata["network_data_format"]["inputs"]["label_onehot"]["channel_def"].values()
    assert {structure.name for structure in STRUCTURES} <= set(classes)
    for file in ("LICENSE", "docs/README.md", "docs/data_license.txt", "configs/logging.conf"):
        assert (BUNDLE / file).stat().st_size > 0


def test_multi_gpu_config_trains(trained: Path, datalist_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for key, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("MASTER_PORT", str(_free_port()))
    for name in ("_model", "_need_to_sync"):  # ignite keeps the process group in mind, which later tests do not have
        monkeypatch.setattr(ignite.distributed.utils, name, getattr(ignite.distributed.utils, name))
    overrides = {**TRAIN, "max_epochs": 1, "dataset_dir": str(datalist_dir), "output_dir": str(tmp_path)}
    run_bundle(BUNDLE, "train,multi_gpu_train", {**overrides, "backend": "gloo"})
    one, many = (torch.load(p / "model.pt", weights_only=True) for p in (trained, tmp_path))
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in many.items()}
    assert not torch.distributed.is_initialized()


def _free_port() -> int:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
