"""Write a table of a training's validations, for convergence curves and the number of updates that a given Dice takes."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synboost_monai.csv_files import csv_text
from synboost_monai.distributed import is_main_process
from synboost_monai.files import atomic_write_text

if TYPE_CHECKING:
    from ignite.engine import Engine

HISTORY_NAME = "history.csv"
"""Name of the table, beside model.pt."""


class WriteHistory:
    """Write one row per validation to history.csv: iteration (updates so far), epoch, and the validator's metrics.

    Attach it to the trainer. A resumed training continues with the rows up to its checkpoint.

    Args:
        path: the CSV file; it is replaced as a whole after each validation.
        validator: validator whose metrics are written.
    """

    def __init__(self, path: str | os.PathLike[str], validator: Engine) -> None:
        self.path = Path(path)
        self.validator = validator
        self.rows: list[dict[str, float]] = []

    def attach(self, engine: Engine) -> None:
        from ignite.engine import Events  # not for reports, which read the name of the table

        self.validator.add_event_handler(Events.COMPLETED, self._note, engine)

    def _note(self, validator: Engine, trainer: Engine) -> None:
        metrics = {key: float(value) for key, value in validator.state.metrics.items() if _is_number(value)}
        self.rows.append({"iteration": trainer.state.iteration, "epoch": trainer.state.epoch, **metrics})
        if is_main_process():
            columns = list(dict.fromkeys(key for row in self.rows for key in row))
            lines = [[_text(row.get(column, math.nan)) for column in columns] for row in self.rows]
            atomic_write_text(self.path, csv_text([columns, *lines]))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]


def _is_number(value: Any) -> bool:
    """Return whether a metric is one number; a tensor with one element counts."""
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _text(value: float) -> str:
    """Return a number as text for CSV; empty if undefined."""
    return "" if math.isnan(value) else f"{value:.6g}" if value != int(value) else str(int(value))
