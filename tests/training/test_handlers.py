"""Test handlers around a tiny regression, so that everything can be compared bit for bit."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ignite.engine import Engine, Events
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, RandGaussianNoised
from torch import Tensor, nn

from synboost_monai.training import (
    EarlyStop,
    EpochSeed,
    ExponentialMovingAverage,
    GradientClip,
    HandlerGroup,
    HoldFolder,
    LazySummaryWriter,
    LearningRateSchedule,
    LogToFile,
    PictureGrid,
    Progress,
    Resume,
    WriteWeights,
    num_epochs,
    overlay,
    start_distributed,
)


class Killed(BaseException):
    """Stand in for kill -9."""


def train(
    path: Path,
    *,
    max_epochs: int = 4,
    kill_at: int | None = None,
    schedule: str = "cosine",
    settings: dict[str, Any] | None = None,
    stop_after: int | None = None,
    losses: list[float] | None = None,
) -> dict[str, Tensor]:
    """Train with everything that is random: shuffling, augmentation, dropout. Return the weights at the end."""
    torch.manual_seed(0)
    items = [{"image": torch.full((1, 4), float(i)), "label": torch.full((1, 4), float(-i))} for i in range(6)]
    dataset = CacheDataset(items, Compose([RandGaussianNoised("image", prob=1.0)]), progress=False)
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    validator = Engine(lambda engine, batch: None)
    scores = iter(range(100, 0, -1))  # never better than the first
    validator.add_event_handler(
        Events.COMPLETED, lambda engine: engine.state.metrics.update(val=float(next(scores)), val_loss=1.0)
    )
    parts = {
        "average": ExponentialMovingAverage(network, 0.5),
        "schedule": LearningRateSchedule(schedule, optimizer, validator, patience=1, warm_up_steps=3),
        "early_stop": EarlyStop(validator, "val", patience=stop_after or 100),
    }

    def validate(engine: Engine) -> None:
        validator.run([0], max_epochs=1)

    class Validate:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(Events.EPOCH_COMPLETED, validate)

    class Kill:
        def attach(self, engine: Engine) -> None:
            if kill_at is not None:
                engine.add_event_handler(Events.EPOCH_STARTED(once=kill_at), self.raise_)

        def raise_(self, engine: Engine) -> None:
            raise Killed

    class Note:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(
                Events.ITERATION_COMPLETED,
                lambda e: losses.append(e.state.output[0]["loss"]) if losses is not None else None,
            )

    objects = {"network": network, "optimizer": optimizer, **parts}
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=max_epochs,
        train_data_loader=DataLoader(dataset, batch_size=2, shuffle=True),
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        train_handlers=[
            Kill(),
            EpochSeed(3, dataset),
            HandlerGroup(list(parts.values())),
            Validate(),
            Note(),
            Resume(path, objects, settings=settings),
        ],
    )
    trainer.run()
    return {**network.state_dict(), **{f"average.{k}": v for k, v in parts["average"].network.state_dict().items()}}


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "linear", "constant"])
def test_killed_and_resumed_gives_the_same_bits(tmp_path: Path, schedule: str) -> None:
    whole_losses: list[float] = []
    whole = train(tmp_path / "a.ckpt", schedule=schedule, losses=whole_losses)
    resumed_losses: list[float] = []
    for kill_at in (2, 4):
        with pytest.raises(Killed):
            train(tmp_path / "b.ckpt", schedule=schedule, kill_at=kill_at, losses=resumed_losses)
    resumed = train(tmp_path / "b.ckpt", schedule=schedule, losses=resumed_losses)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert whole_losses == resumed_losses
    assert not list(tmp_path.iterdir())  # nothing is left of a finished training


def test_half_written_files_of_a_killed_training_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".123-abcd.a.ckpt").write_text("half")
    train(tmp_path / "a.ckpt", max_epochs=1)
    assert not list(tmp_path.iterdir())


def test_finished_training_starts_anew(tmp_path: Path) -> None:
    losses: list[float] = []
    for _ in range(2):
        train(tmp_path / "a.ckpt", max_epochs=2, losses=losses)
    assert losses[: len(losses) // 2] == losses[len(losses) // 2 :]


def test_an_unfinished_training_goes_on_with_its_settings_alone(tmp_path: Path) -> None:
    """A setting that it does not know, because it is older, must be off."""
    settings = {"learning_rate": 0.01}
    with pytest.raises(Killed):
        train(tmp_path / "a.ckpt", kill_at=3, settings=settings)
    with pytest.raises(ValueError, match=r"learning_rate 0.01 -> 0.02.*delete this file"):
        train(tmp_path / "a.ckpt", settings={"learning_rate": 0.02})
    with pytest.raises(ValueError, match=r"synonyms None -> 0.5"):
        train(tmp_path / "a.ckpt", settings={**settings, "synonyms": 0.5})
    train(tmp_path / "a.ckpt", settings={**settings, "synonyms": 0.0})


def test_resuming_with_other_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        train(tmp_path / "a.ckpt", kill_at=3)
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    checkpoint["settings"]["num_processes"] = "8"
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="num_processes 8 -> 1"):
        train(tmp_path / "a.ckpt")


def test_checkpoint_that_some_processes_do_not_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise those that see it would go on in the middle, and all would wait for one another for ever."""

    def gather(answers: list[Any], own: Any) -> None:
        answers[:] = [(True, None), own]

    monkeypatch.setattr("synboost_monai.distributed.num_processes", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    resume = Resume(tmp_path / "a.ckpt", {})
    with pytest.raises(ValueError, match="rank 1 do not see this file.*disk that all machines share"):
        resume.restore(Engine(lambda engine, batch: None))


def test_distributed_training_needs_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="runs under torchrun, which this process does not"):
        start_distributed("gloo", "cpu")


def test_ranks_are_seeded_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        engine = Engine(lambda engine, batch: draws.append((torch.rand(1).item(), np.random.rand())))
        EpochSeed(1).attach(engine)
        engine.run([0], max_epochs=1)
    assert len({number for pair in draws for number in pair}) == 4


def test_early_stop_counts_on_after_resuming(tmp_path: Path) -> None:
    losses: list[float] = []
    train(tmp_path / "a.ckpt", max_epochs=9, stop_after=3, losses=losses)
    assert len(losses) == 4 * 3  # the first validation is the best, three without a better one, 3 steps an epoch
    resumed: list[float] = []
    with pytest.raises(Killed):
        train(tmp_path / "b.ckpt", max_epochs=9, stop_after=3, kill_at=3, losses=resumed)
    train(tmp_path / "b.ckpt", max_epochs=9, stop_after=3, losses=resumed)
    # scores of the stand-in validator start over with the process, so its first one ties with the best
    assert len(resumed) == len(losses)


def test_training_killed_between_early_stop_and_end_does_not_train_on(tmp_path: Path) -> None:
    network = nn.Linear(1, 1)
    engine = Engine(lambda engine, batch: None)
    resume = Resume(tmp_path / "a.ckpt", {"network": network})
    engine.state.epoch, engine.state.iteration = 4, 12
    engine.should_terminate = True
    resume.save(engine)

    again = Engine(lambda engine, batch: pytest.fail("trained on"))
    resume.attach(again)
    again.run([0], max_epochs=9)
    assert not (tmp_path / "a.ckpt").exists()


def test_epoch_seed_depends_on_seed_and_epoch_alone() -> None:
    def draws(seed: int, num_before: int) -> list[float]:
        numbers: list[float] = []
        engine = Engine(lambda engine, batch: numbers.extend([torch.rand(1).item(), np.random.rand()]))
        EpochSeed(seed).attach(engine)
        torch.rand(num_before)
        engine.run([0], max_epochs=2)
        return numbers

    assert draws(1, 0) == draws(1, 5)
    assert draws(1, 0) != draws(2, 0)
    assert len(set(draws(1, 0))) == 4


def test_best_weights_are_kept(tmp_path: Path) -> None:
    network = nn.Linear(1, 1, bias=False)
    writer = WriteWeights(network, tmp_path / "model.pt", key_metric="dice")
    engine = Engine(lambda engine, batch: None)
    for weight, dice in ((1.0, math.nan), (2.0, 0.5), (3.0, 0.4), (4.0, 0.6), (5.0, math.nan)):
        network.weight.data.fill_(weight)
        engine.state.metrics = {"dice": dice}
        writer.write_best(engine)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == 4.0
    again = WriteWeights(network, tmp_path / "model.pt", key_metric="dice")
    again.load_state_dict(writer.state_dict())
    assert again.best == 0.6
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_last_weights_without_metric(tmp_path: Path) -> None:
    network = nn.Linear(1, 1, bias=False)

    def step(engine: Engine, batch: Any) -> None:
        network.weight.data.fill_(engine.state.iteration)

    engine = Engine(step)
    WriteWeights(network, tmp_path / "model.pt", interval=2).attach(engine)
    engine.run([0], max_epochs=3)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == 3.0


@pytest.mark.parametrize(
    ("schedule", "warm_up_steps", "num_steps", "expected"),
    [
        ("cosine", 2, 4, [min(1, (n + 1) / 2) * 0.5 * (1 + math.cos(math.pi * n / 8)) for n in range(8)]),
        # the published rule: after step n the rate becomes lr (1 - n / N), so a step's rate is that of the step before it
        ("linear", 50, 2, [1.0, 1.0, 0.75, 0.5]),
    ],
)
def test_rates_of_a_schedule_by_hand(schedule: str, warm_up_steps: int, num_steps: int, expected: list[float]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rates: list[float] = []

    def step(engine: Engine, batch: Any) -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()

    engine = Engine(step)
    engine.state.max_epochs, engine.state.epoch_length = 2, num_steps
    LearningRateSchedule(schedule, optimizer, warm_up_steps=warm_up_steps).attach(engine)
    engine.run(range(num_steps), max_epochs=2)
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("max_epochs", "max_iterations", "expected"),
    [(3, None, 3), (3, 50, 3), (None, 50, 13), (None, 48, 12), (None, 1, 1)],
)
def test_epochs_by_iterations(max_epochs: int | None, max_iterations: int | None, expected: int) -> None:
    assert num_epochs(range(4), max_epochs, max_iterations) == expected


@pytest.mark.parametrize(("max_epochs", "max_iterations"), [(None, None), (0, 5), (None, 0)])
def test_no_epochs_are_refused(max_epochs: int | None, max_iterations: int | None) -> None:
    with pytest.raises(ValueError, match="set max_epochs or max_iterations to at least 1"):
        num_epochs(range(4), max_epochs, max_iterations)


def test_plateau_schedule_reduces_tenfold() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    trainer, validator = Engine(lambda e, b: None), Engine(lambda e, b: None)
    LearningRateSchedule("plateau", optimizer, validator, patience=1).attach(trainer)
    for _ in range(3):
        validator.state.metrics = {"val_loss": 1.0}
        validator.fire_event(Events.COMPLETED)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_unknown_schedule_names_the_knob() -> None:
    with pytest.raises(ValueError, match="plateau, cosine, linear, constant, got 'step'; set lr_schedule"):
        LearningRateSchedule("step", torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0))


@pytest.mark.parametrize(("max_norm", "expected"), [(0.5, 0.5), (0.0, 5.0), (100.0, 5.0)])
def test_gradient_clip(max_norm: float, expected: float) -> None:
    network = nn.Linear(2, 1, bias=False)
    clip = GradientClip(network, max_norm)
    network.weight.grad = torch.tensor([[3.0, 4.0]])
    if max_norm > 0:
        clip(Engine(lambda e, b: None))
    assert network.weight.grad.norm().item() == pytest.approx(expected, rel=1e-4)


def test_writer_and_log_leave_nothing_before_the_run(tmp_path: Path) -> None:
    writer = LazySummaryWriter(tmp_path / "tensorboard")
    engine = Engine(lambda engine, batch: logging.getLogger("x").info("a step"))
    LogToFile(tmp_path / "log.txt").attach(engine)
    writer.flush()
    assert not list(tmp_path.iterdir())
    engine.run([0], max_epochs=1)
    writer.add_scalar("a", 1.0)
    writer.close()
    assert "a step" in (tmp_path / "log.txt").read_text()
    assert list((tmp_path / "tensorboard").iterdir())


def test_log_file_is_let_go_after_an_error(tmp_path: Path) -> None:
    def fail(engine: Engine, batch: Any) -> None:
        raise RuntimeError("no")

    engine = Engine(fail)
    LogToFile(tmp_path / "log.txt").attach(engine)
    num_handlers = len(logging.getLogger().handlers)
    with pytest.raises(RuntimeError, match="no"):
        engine.run([0], max_epochs=1)
    assert len(logging.getLogger().handlers) == num_handlers


def test_progress_counts_all_epochs_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    engine = Engine(lambda engine, batch: {"loss": 0.25})
    Progress("train it").attach(engine)
    engine.run([0, 1], max_epochs=3)
    captured = capfd.readouterr()
    assert "train it: 100%" in captured.err and "6/6" in captured.err and "loss=0.2500" in captured.err
    assert captured.out == ""


def test_pictures_by_interval() -> None:
    class Picture(PictureGrid):
        def picture(self, engine: Engine) -> Tensor:
            return torch.full((3, 2, 2), engine.state.iteration / 100)

    shown: list[tuple[int, float]] = []

    class Writer:
        def add_image(self, tag: str, picture: Tensor, global_step: int) -> None:
            shown.append((global_step, round(picture.mean().item() * 100)))

    engine = Engine(lambda engine, batch: None)
    Picture(Writer(), interval=2).attach(engine)
    engine.run([0, 1], max_epochs=4)
    assert shown == [(1, 1), (3, 5)]  # the first batch of the first and third epoch


def test_overlay_colours_the_mask_alone() -> None:
    masks = torch.zeros(3, 2, 2)
    masks[0, 0, 0] = 1
    picture = overlay(torch.full((1, 2, 2), 0.5), masks, opacity=1.0)
    assert torch.allclose(picture[:, 0, 0], torch.tensor([230, 75, 60]) / 255)
    assert (picture[:, 1, 1] == 0.5).all()


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    network = nn.Linear(2, 1)
    for name in ("a.pt", "b.pt"):
        WriteWeights(network, tmp_path / name).write(Engine(lambda engine, batch: None))
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_scaled_loss_is_unscaled_before_clipping() -> None:
    network = nn.Linear(1, 1, bias=False)
    engine = Engine(lambda engine, batch: None)
    engine.optimizer = torch.optim.SGD(network.parameters(), lr=1.0)  # type: ignore[attr-defined]
    engine.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # type: ignore[attr-defined]
    engine.scaler.scale(network(torch.tensor([[3.0]])).sum()).backward()  # type: ignore[attr-defined]
    GradientClip(network, 2.0)(engine)
    assert network.weight.grad.item() == pytest.approx(2.0)  # 3, not 3 * 1024, was clipped


def test_state_of_the_loss_scale_is_resumed(tmp_path: Path) -> None:
    engines = []
    for _ in range(2):
        engine = Engine(lambda engine, batch: None)
        engine.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)  # type: ignore[attr-defined]
        engines.append(engine)
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    scaler = engines[0].scaler  # type: ignore[attr-defined]
    scaler.scale(network(torch.full((1, 1), torch.inf)).sum()).backward()  # overflows: the scale is halved
    scaler.step(optimizer)
    scaler.update()
    resume = Resume(tmp_path / "resume.ckpt", {"network": network})
    engines[0].state.epoch, engines[0].state.iteration = 1, 1
    resume.save(engines[0])
    resume.restore(engines[1])
    assert engines[1].scaler.get_scale() == scaler.get_scale() == 32.0  # type: ignore[attr-defined]


def test_a_second_training_in_one_folder_is_refused(tmp_path: Path) -> None:
    """Another process is refused, from the trainer's start to its end; before that nothing is written."""
    code = "import sys\nfrom synboost_monai.processes import take_folder\ntake_folder(sys.argv[1], waits=False)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(tmp_path / "out")]

    def is_refused() -> bool:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return f"ValueError: {tmp_path}/out: process {os.getpid()} on" in done.stderr

    during = []
    engine = Engine(lambda engine, batch: during.append(is_refused()))
    HoldFolder(tmp_path / "out").attach(engine)
    assert not (tmp_path / "out").exists()
    engine.run([0])
    assert during == [True] and not is_refused()


@pytest.mark.parametrize("bundle", ["echo_clipseg", "echo_cris", "echo_semantic_diffusion"])
def test_every_training_holds_its_folder_before_it_writes(bundle: str) -> None:
    config = yaml.safe_load((Path(__file__).parents[2] / "bundles" / bundle / "configs/train.yaml").read_text())
    first, second = config["train"]["handlers"][:2]
    assert first["_target_"] == "synboost_monai.training.KeepInputs"  # it looks, and writes nothing
    assert second == {"_target_": "synboost_monai.training.HoldFolder", "path": "@output_dir"}
