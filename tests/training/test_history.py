"""Test history.csv: a row for each validation, the same after an interruption."""

from pathlib import Path

import pandas as pd
import torch
from ignite.engine import Engine, Events

from synboost_monai.training import Resume, WriteHistory


def make_training(folder: Path, max_epochs_until_killed: int | None = None) -> tuple[Engine, WriteHistory]:
    """Make a trainer of 3 steps per epoch whose validator's Dice is the number of the epoch over 10."""
    trainer = Engine(lambda engine, batch: None)
    validator = Engine(lambda engine, batch: None)

    def validate(engine: Engine) -> None:
        validator.run([0])

    @validator.on(Events.COMPLETED)
    def measure(engine: Engine) -> None:
        engine.state.metrics["val_mean_dice"] = torch.tensor(trainer.state.epoch / 10)
        engine.state.metrics["confusion"] = torch.zeros(2, 2)  # no single number: no column

    trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    history = WriteHistory(folder / "history.csv", validator)
    history.attach(trainer)
    Resume(folder / "resume.ckpt", {"history": history}).attach(trainer)
    if max_epochs_until_killed:

        @trainer.on(Events.EPOCH_COMPLETED(once=max_epochs_until_killed))
        def die(engine: Engine) -> None:
            raise KeyboardInterrupt

    return trainer, history


def test_a_row_for_each_validation(tmp_path: Path) -> None:
    trainer, _ = make_training(tmp_path)
    trainer.run(range(3), max_epochs=4)
    table = pd.read_csv(tmp_path / "history.csv")
    assert list(table.columns) == ["iteration", "epoch", "val_mean_dice"]
    assert table["iteration"].tolist() == [3, 6, 9, 12]
    assert table["val_mean_dice"].tolist() == [0.1, 0.2, 0.3, 0.4]


def test_an_interrupted_training_writes_the_same_table(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    make_training(whole)[0].run(range(3), max_epochs=4)
    try:
        make_training(killed, max_epochs_until_killed=2)[0].run(range(3), max_epochs=4)
    except KeyboardInterrupt:
        pass
    make_training(killed)[0].run(range(3), max_epochs=4)
    assert (killed / "history.csv").read_text() == (whole / "history.csv").read_text()
