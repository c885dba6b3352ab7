"""Test training of the semantic diffusion bundle: recipes, starting points, killed and resumed trainings, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synboost_monai.bundle_run import bundle_dir, config_files, run_bundle
from synboost_monai.diffusion import DiffusionPrepareBatch, HybridLoss
from synboost_monai.model_card import PUBLISHED_FACTS
from synboost_monai.networks import create_semantic_diffusion_unet
from tests.bundles import launch_trainings
from tests.bundles.conftest import DIFFUSION, TINY, WRITTEN, read_yaml, workflow
from tests.forked import Forked, module, ranks

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = bundle_dir("echo_semantic_diffusion")
CONFIGS = BUNDLE / "configs"
TRAIN = {**TINY, **DIFFUSION}
EVERYTHING_RANDOM = {
    "label_drop_probability": 0.2,
    "stratified_timesteps": True,
    "flip_probability": 0.5,
    "num_class_embeds": 5,
    "lr_schedule": "cosine",
    "warm_up_steps": 3,
    "gradient_clip": 1.0,
}

SHORT = {"max_epochs": 6, "batch_size": 2, "picture_interval": 3}
pytestmark = pytest.mark.usefixtures("global_state")


@pytest.fixture
def train(datalist_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that trains into a folder of this name and returns model.pt."""

    def run(name: str = "run", config: str = "train", **changes: Any) -> Path:
        output_dir = tmp_path / name
        run_bundle(BUNDLE, config, {**TRAIN, "dataset_dir": datalist_dir, "output_dir": output_dir, **changes})
        return output_dir / "model.pt"

    return run


@pytest.fixture
def parsed(datalist_dir: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that instantiates the entry under a key of the training's config."""

    def get(key: str, **changes: Any) -> Any:
        values = {**TRAIN, "dataset_dir": datalist_dir, "output_dir": tmp_path / "out", **changes}
        return workflow(BUNDLE.name, ["train"], "train", **values).parser.get_parsed_content(key)

    return get


def weights_of(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)


def tiny(**options: Any) -> nn.Module:
    """Return a tiny network in which no branch starts at zero."""
    torch.manual_seed(1)
    network = create_semantic_diffusion_unet("tiny", **options)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


# ---- recipes


def test_defaults_are_the_published_recipe(parsed: Callable[..., Any]):
    """The defaults are those of the public code: image_train.py with config.py and the arguments of its README, 8 processes."""
    config = {key: value for key, value in read_yaml(BUNDLE.name, "train").items() if value is not None}
    config = {
        **dict.fromkeys(("max_epochs", "min_snr_gamma", "init_checkpoint")),
        **PUBLISHED_FACTS["semantic_diffusion"],
        **config,
    }
    published = {
        "preset": "published",
        "image_size": 256,
        "max_iterations": 50000,
        "max_epochs": None,
        "batch_size": 12,
        "learning_rate": 1e-4,
        "lr_schedule": "linear",
        "weight_decay": 0.0,
        "gradient_clip": 0.0,
        "ema_decay": 0.9999,
        "flip_probability": 0.5,
        "label_drop_probability": 0.0,
        "vb_weight": 1e-3,
        "min_snr_gamma": None,
        "velocity_weighting": False,
        "stratified_timesteps": False,
        "init_checkpoint": None,
        "num_class_embeds": None,
    }
    assert {key: config[key] for key in published} == published
    loss, optimizer = parsed("loss"), parsed("optimizer", learning_rate=config["learning_rate"])
    assert loss.schedule.num_train_timesteps == 1000 and loss.vb_weight == 1e-3
    assert loss.schedule.alphas_cumprod[499] == pytest.approx(0.49384, abs=1e-5)  # cosine, worked by hand at t = T/2
    assert type(optimizer) is torch.optim.AdamW
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 1e-8, 0.0)
    prepare = parsed("train::prepare_batch")
    assert prepare.schedule.num_train_timesteps == 1000
    assert (prepare.flip_probability, prepare.label_drop_probability, prepare.stratified_timesteps) == (0.5, 0.0, False)


def test_iterations_decide_the_epochs_unless_they_are_given(parsed: Callable[..., Any]):
    assert parsed("train::trainer", max_epochs=None, max_iterations=5).state.max_epochs == 3  # of 2 batches
    assert parsed("train::trainer", max_epochs=7).state.max_epochs == 7


def test_published_average_has_no_warm_up(parsed: Callable[..., Any]):
    assert parsed("average", ema_warm_up=False, ema_decay=0.9999).current_decay(0) == 0.9999
    assert parsed("average", ema_decay=0.9999).current_decay(0) == pytest.approx(0.1)


def test_small_recipe_only_changes_keys_of_train():
    small, config = read_yaml(BUNDLE.name, "train_small"), read_yaml(BUNDLE.name, "train")
    assert set(small) <= set(config)
    for key, value in small.items():
        assert config[key] is None or type(value) is type(config[key]) or isinstance(value, (int, float, str)), key
    assert [path.name for path in config_files(BUNDLE, "train_small")] == ["train.yaml", "train_small.yaml"]


def test_small_recipe_trains(train: Callable[..., Path]):
    model = train(config="train_small", num_class_embeds=5)  # the network stays tiny, the recipe is the small one
    assert all(value.isfinite().all() for value in weights_of(model).values())


# ---- what is trained on


def test_one_model_for_a_view_and_a_phase(parsed: Callable[..., Any]):
    dataset = parsed("train::dataset", view="apical_two_chamber", phase="end_systole")
    assert {(item["view"], item["phase"]) for item in dataset.data} == {("apical_two_chamber", "end_systole")}
    assert len(dataset) == 4
    assert len(parsed("validate::dataset", view="apical_four_chamber")) == 2
    assert len(parsed("train::dataset")) == 16


def test_unknown_view_is_one_line_and_writes_nothing(train: Callable[..., Path], tmp_path: Path):
    with pytest.raises(ValueError, match="apical_two_chamber"):
        train(view="parasternal")
    assert not (tmp_path / "run").exists()


def test_model_is_told_view_and_phase(parsed: Callable[..., Any], train: Callable[..., Path]):
    item = parsed("train::dataset")[0]
    assert item["class_label"] in (1, 2, 3, 4)
    classes = [element["class_label"] for element in parsed("train::dataset")]
    assert sorted(classes) == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    # several steps: the branches that the class goes through start at zero
    table = weights_of(train(num_class_embeds=5, max_epochs=4))["class_embedding.weight"]
    assert table.shape[0] == 5
    assert not table[0].any(), "no training image is unknown, so the class keeps its start"
    assert all(row.any() for row in table[1:])


def test_squashed_images_fill_the_square(parsed: Callable[..., Any]):
    boxed, squashed = (parsed("train::dataset", keep_aspect=keep)[0]["sector_label_map"][0] for keep in (True, False))
    assert not boxed[[0, -1]].any()  # 48 x 40 px of 1.5 x 2 mm take 29 of 32 rows
    assert squashed[-1].any()


# ---- starting points


def test_published_checkpoint_is_a_starting_point(train: Callable[..., Path], tmp_path: Path):
    """The checkpoint is a flat state dict of float32 parameters, as the public code saves its average."""
    network = tiny()
    path = tmp_path / "ema_0.9999_050000.pt"
    torch.save(OrderedDict((name, nn.Parameter(value)) for name, value in network.state_dict().items()), path)
    after = weights_of(train(init_checkpoint=str(path), learning_rate=0.0))
    assert all(torch.equal(value, after[name]) for name, value in network.state_dict().items())


def test_average_starts_from_the_loaded_weights(train: Callable[..., Path], tmp_path: Path):
    """Two updates with decay 0.9999 move the average by 2e-4 of the way, wherever training goes."""
    network = tiny()
    torch.save(network.state_dict(), tmp_path / "start.pt")
    options = {"ema_decay": 0.9999, "ema_warm_up": False, "learning_rate": 1e-2, "lr_schedule": "constant"}
    after = weights_of(train(init_checkpoint=str(tmp_path / "start.pt"), **options))
    distances = [(after[name] - value).abs().max().item() for name, value in network.state_dict().items()]
    assert 0 < max(distances) < 1e-5  # the weights themselves moved by about 2e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 7}, r"keys have another shape \(first: '.*mlp_shared.0.weight' is \(8, 7, 3, 3\)"),
        ({"base_channels": 16}, "keys have another shape"),
        ({"channel_multipliers": (1, 2, 2)}, "keys are unexpected.*choose the architecture and preset"),
        ({"num_class_embeds": 5}, "1 of .* keys are unexpected.*class_embedding"),
    ],
)
def test_checkpoint_of_another_network_is_refused(
    train: Callable[..., Path], tmp_path: Path, options: dict[str, Any], message: str
):
    torch.save(tiny(**options).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=f"other.pt does not fit.*{message}"):
        train(init_checkpoint=str(tmp_path / "other.pt"))
    assert not (tmp_path / "run").exists()


# ---- gradient checkpointing


@pytest.mark.parametrize("classes", [None, 5])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_gradient_checkpointing_leaves_the_gradient(classes: int | None, dtype: torch.dtype | None):
    batch = {"image": torch.rand(4, 1, 32, 32) * 2 - 1, "label_onehot": torch.rand(4, 5, 32, 32)}
    if classes:
        batch["class_label"] = torch.tensor([0, 1, 3, 4])
    x_t, targets, _, arguments = DiffusionPrepareBatch()(batch)
    gradients, num_recomputed = [], []
    for is_on in (False, True):
        network = tiny(num_class_embeds=classes, gradient_checkpointing=is_on)
        calls: list[int] = []
        network.middle_block[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            output = network(x_t, **arguments).float()
        HybridLoss()(output, targets).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
        num_recomputed.append(len(calls))
    assert num_recomputed == [1, 2], "with checkpointing a block runs again in the backward pass"
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.any(), name
        assert torch.equal(gradient, gradients[1][name]), name


def test_gradient_checkpointing_is_a_key_of_the_config(train: Callable[..., Path], parsed: Callable[..., Any]):
    assert parsed("network_def", gradient_checkpointing=True).gradient_checkpointing
    plain, checkpointed = (weights_of(train(str(on), gradient_checkpointing=on)) for on in (False, True))
    assert all(torch.equal(value, checkpointed[name]) for name, value in plain.items())


# ---- killed and resumed


THREE_EPOCHS = {**EVERYTHING_RANDOM, "max_epochs": 3, "batch_size": 6}
"""A training of 3 epochs of 3 batches."""


@pytest.fixture(scope="module")
def whole(datalist_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return model.pt of this training, which nothing interrupts."""
    output_dir = tmp_path_factory.mktemp("whole")
    places = {"dataset_dir": datalist_dir, "output_dir": output_dir}
    run_bundle(BUNDLE, "train", {**TRAIN, **places, **THREE_EPOCHS})
    return (output_dir / "model.pt").read_bytes()


@pytest.mark.parametrize("kill_at", [2, 5, 6])
def test_interrupted_anywhere_it_goes_on_to_the_same_bits(
    whole: bytes, train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
):
    """`kill_at` interrupts in the first epoch, within one, or at the end of one."""
    from synboost_monai.training import ExponentialMovingAverage

    update = ExponentialMovingAverage.__call__
    updates: list[int] = []

    def die(self: Any, engine: Any = None) -> None:
        update(self, engine)
        updates.append(1)
        if len(updates) == kill_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ExponentialMovingAverage, "__call__", die)
        train("resumed", **THREE_EPOCHS)
    assert (tmp_path / "resumed" / "resume.ckpt").is_file() == (kill_at > 3)
    assert train("resumed", **THREE_EPOCHS).read_bytes() == whole
    assert not (tmp_path / "resumed" / "resume.ckpt").exists()


def test_rarer_saving_ends_in_the_same_bits(whole: bytes, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    from synboost_monai.training import Resume

    epochs: list[int] = []
    save = Resume.save
    monkeypatch.setattr(Resume, "save", lambda self, engine: (epochs.append(engine.state.epoch), save(self, engine)))
    assert train("rare", save_interval=2, **THREE_EPOCHS).read_bytes() == whole
    assert epochs == [2]


# ---- several processes, and kill -9


@pytest.fixture(scope="module")
def launched(datalist_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the outputs of trainings in separate processes, by `launch_trainings.py`."""
    folder = tmp_path_factory.mktemp("launched")
    base = {**TRAIN, **EVERYTHING_RANDOM, **SHORT, "dataset_dir": str(datalist_dir)}
    distributed = {"config": ["train", "multi_gpu_train"], "num_processes": 2}
    two, one = {**base, "backend": "gloo"}, {**base, "batch_size": 4}
    jobs: list[dict[str, Any]] = [
        {**distributed, "overrides": {**two, "output_dir": str(folder / "two_{rank}")}, "notes": str(folder / "notes")},
        {**distributed, "overrides": {**two, "output_dir": str(folder / "two_killed")}, "kills": [0.0, 0.05]},
        {"config": ["train"], "overrides": {**one, "output_dir": str(folder / "one")}},
        {"config": ["train"], "overrides": {**one, "output_dir": str(folder / "one_killed")}, "kills": [0.0, 0.05]},
        {"gradients": str(folder / "gradient_1.pt")},
        {"gradients": str(folder / "gradient_2.pt"), "num_processes": 2},
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    Forked(launch_trainings.main, str(folder / "jobs.json")).done()
    return folder


def notes_of(launched: Path, rank: int) -> list[dict[str, Any]]:
    return json.loads((launched / "notes" / f"{rank}.json").read_text())


@pytest.mark.parametrize("name", ["one", "two"])
def test_training_killed_for_good_goes_on_to_the_same_file(launched: Path, name: str):
    """Every process gets kill -9 twice, right after a saving and a little later."""
    whole = launched / ("one" if name == "one" else "two_0")
    assert (launched / f"{name}_killed" / "model.pt").read_bytes() == (whole / "model.pt").read_bytes()
    assert sorted(p.name for p in (launched / f"{name}_killed").iterdir()) == WRITTEN


def test_rank_0_alone_writes(launched: Path):
    assert sorted(p.name for p in (launched / "two_0").iterdir()) == WRITTEN
    assert not (launched / "two_1").exists()


def test_averages_are_alike_on_all_ranks(launched: Path):
    first, second = (weights_of(launched / "notes" / f"{rank}.pt") for rank in (0, 1))
    written = weights_of(launched / "two_0" / "model.pt")
    for name, value in first.items():
        assert torch.equal(value, second[name]) and torch.equal(value, written[name])


def test_ranks_share_out_the_images_anew_each_epoch(launched: Path):
    orders = []
    for epoch in range(1, 7):
        shares = [
            [round(i, 2) for batch in notes_of(launched, rank) if batch["epoch"] == epoch for i in batch["images"]]
            for rank in (0, 1)
        ]
        assert len(shares[0]) == len(shares[1]) == 8
        orders.append(shares)
    everything = sorted(orders[0][0] + orders[0][1])
    assert len(set(everything)) == 16, "each image once an epoch"
    for shares in orders[1:]:
        assert sorted(shares[0] + shares[1]) == pytest.approx(everything)
    assert len({tuple(shares[0]) for shares in orders}) == 6, "each epoch in another order"


def test_ranks_draw_their_own_noise(launched: Path):
    noise = [n for rank in (0, 1) for batch in notes_of(launched, rank) for n in batch["noise"]]
    assert len(noise) == 2 * 6 * 8 and len(set(noise)) == len(noise)
    timesteps = [[t for batch in notes_of(launched, rank) for t in batch["timesteps"]] for rank in (0, 1)]
    assert timesteps[0] != timesteps[1]


def test_gradient_of_two_processes_is_that_of_the_whole_batch(launched: Path):
    """With the same timesteps and noise only the order of sums differs."""
    one, two = (weights_of(launched / f"gradient_{number}.pt") for number in (1, 2))
    largest = max(value.abs().max().item() for value in one.values())
    assert largest > 0
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6 * largest, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["monai.bundle", "synboost_monai"])
def test_torchrun_trains(launched: Path, datalist_dir: Path, tmp_path: Path, python_forks: None, way: str):
    """The two commands of multi_gpu_train.yaml run, one by torchrun itself; the numbers are those of `launched`."""
    words = ["synboost_monai", "run", str(BUNDLE), "multi_gpu_train"]
    if way == "monai.bundle":
        configs = "['configs/train.yaml','configs/multi_gpu_train.yaml']"
        words = ["monai.bundle", "run", "--config_file", configs]
    options = {**TRAIN, **EVERYTHING_RANDOM, **SHORT, "backend": "gloo"}
    for key, value in {**options, "dataset_dir": datalist_dir, "output_dir": tmp_path / "out"}.items():
        words += [f"--{key}", str(value)]
    if way == "monai.bundle":
        told = [process.done().stdout for process in ranks(2, *module(*words), folder=BUNDLE)]
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        result = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, env=environment, timeout=600)
        assert result.returncode == 0, result.stderr[-3000:]
        told = [result.stdout]
    assert (tmp_path / "out" / "model.pt").read_bytes() == (launched / "two_0" / "model.pt").read_bytes()
    assert "".join(told).count("Epoch[6] Metrics -- train_loss") == 1, "one rank talks"


def test_multi_gpu_config_without_torchrun_says_so(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="start it with `torchrun --nproc_per_node=N"):
        train(config="multi_gpu_train", backend="gloo")
    assert not (tmp_path / "run").exists()
