"""Train the small CRIS on simulated hearts with one part of the simulator left out, to see what that part brings.

    python scripts/ablate_simulator.py PART OUT [--seed 0]     500 updates at 96 px; PART is `nothing` or one that `--help` lists

Everything else is as in `scripts/rebuild_weights.sh`. Compare the trainings on data that none of them has seen:

    synboost evaluate echo_cris --checkpoint_path OUT/model.pt --dataset_dir DATA --section validation --prompt_level P2 \
        --keep_largest true --fill_holes true --output_dir OUT/scores
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

from synboost_monai.simulation import acoustics, simulator
from synboost_monai.simulation.draw import Draw

NARROW = 1 / 3
"""Share of each range that is left where variety is left out."""
EPOCHS = 5


class NarrowDraw(Draw):
    """A NarrowDraw draws from the middle third of each range; what is rare never happens, and what is frequent always does."""

    def __init__(self, draw: Draw) -> None:
        self.generator = draw.generator

    def uniform(self, low: float, high: float) -> float:
        middle, half = (low + high) / 2, (high - low) / 2 * NARROW
        return super().uniform(middle - half, middle + half)

    def normal(self, mean: float, deviation: float, low: float = -np.inf, high: float = np.inf) -> float:
        return super().normal(mean, NARROW * deviation, low, high)

    def chance(self, probability: float) -> bool:
        super().chance(probability)
        return probability > 0.5

    def curve(self, num_points: int, num_waves: int, deviation: float) -> Any:
        return super().curve(num_points, num_waves, NARROW * deviation)


def narrowed(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the simulator that draws from narrow ranges."""
    return lambda draw, *rest: make(NarrowDraw(draw), *rest)


def in_sector(display: simulator.Display, outlines: Any) -> Any:
    """Return a label map that ends with the sector, in place of `Display.label_map`."""
    return np.where(display.inside, LABEL_MAP(display, outlines), 0).astype(np.uint8)


LABEL_MAP, HAZE = simulator.Display.label_map, acoustics.draw_haze
Patch = tuple[Any, str, Any]
PARTS: dict[str, list[Patch]] = {
    "nothing": [],
    "breadth_of_anatomy": [(simulator, "draw_heart", narrowed(simulator.draw_heart))],
    "breadth_of_acoustics": [(simulator, "Scene", narrowed(simulator.Scene))],
    "breadth_of_display": [(simulator, "Display", narrowed(simulator.Display))],
    "trabeculae": [(acoustics, name, lambda draw: None) for name in ("draw_trabeculae", "draw_right_trabeculae")],
    "thin_layers_and_glow": [
        (acoustics, "draw_layers", lambda *_: []),
        (acoustics, "draw_glow", lambda draw, grid, *_: np.zeros(grid.shape, np.float32)),
    ],
    "regional_brightness": [
        (acoustics, "draw_fields", lambda draw, grid, _: [np.zeros(grid.shape, np.float32)] * 5),
    ],
    "shadows_dropout_and_gain": [
        (acoustics, "draw_transmission", lambda draw, grid: np.ones(grid.shape, np.float32)),
    ],
    "haze_and_clutter": [
        (acoustics, "draw_haze", lambda draw, grid: (np.zeros(grid.shape, np.float32), HAZE(draw, grid)[1])),
        (acoustics, "draw_deep_clutter", lambda draw, grid, _: np.full(grid.shape, acoustics.NO_LAYER_DB, np.float32)),
    ],
    "labels_beside_the_sector": [(simulator.Display, "label_map", in_sector)],
    "strangers": [],
    "other_words": [],
}
"""What can be left out, and what stands in for it."""
SETTINGS: dict[str, list[str]] = {
    "strangers": ["--stranger_share", "0"],
    "other_words": ["--synonyms", "0", "--absent_structures", "0"],
}
"""Parts that are settings of the training."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("out")
    parser.add_argument("--seed", type=int, default=0, help="of the training and of the hearts")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of 1,600 pictures each")
    options = parser.parse_args()
    for place, name, replacement in PARTS[options.part]:
        mock.patch.object(place, name, replacement).start()
    from synboost_monai.__main__ import main as synboost

    epochs, seed = str(options.epochs), str(options.seed)
    command = ["synboost", "run", "echo_cris", "train_simulated", "--output_dir", options.out, "--image_size", "96"]
    command += ["--max_epochs", epochs, "--val_interval", epochs, "--seed", seed, "--simulation_seed", seed]
    sys.argv = [*command, *SETTINGS.get(options.part, [])]
    return synboost()


if __name__ == "__main__":
    raise SystemExit(main())
