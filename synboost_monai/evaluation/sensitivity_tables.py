"""Make a table and a plot of the prompt sensitivity from the files of the bundles' sensitivity.yaml."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synboost_monai.csv_files import read_frame
from synboost_monai.evaluation.sensitivity import CHANGES, CSV_NAME, JSON_NAME, MOVED_BELOW, summary_groups
from synboost_monai.evaluation.statistics import OVERALL
from synboost_monai.files import atomic_path, read_text
from synboost_monai.pages.figures import draw_grid, new_figure, png_of
from synboost_monai.pages.tables import Table, write_table
from synboost_monai.prompts.variations import (
    ABSENT_STRUCTURES,
    CHANGEABLE,
    LEFT_OUT,
    PHRASING,
    REPHRASED,
    RIGHT,
    WRONG,
)
from synboost_monai.structures import STRUCTURES, Structure

if TYPE_CHECKING:
    import pandas as pd

TABLE_NAME = "prompt_sensitivity"
"""File name without suffix of the table and the plot."""
MIN_LOST = 0.001
"""Smallest 1 - Dice in the plot; smaller values are drawn there."""
CHANGE_TITLES = {
    REPHRASED: "other words, same meaning",
    WRONG: "wrong",
    **{s.name: f"wrong: {s.prompt_words.lower()}" for s in ABSENT_STRUCTURES},
    LEFT_OUT: "left out",
}
"""Change -> its description in the table and the plot."""


def write_sensitivity(output_dir: str | os.PathLike[str]) -> list[Path]:
    """Write the table (CSV, LaTeX) and the plot (PNG) beside sensitivity.csv and sensitivity.json.

    Args:
        output_dir: folder of a run of sensitivity.yaml.
    Returns:
        paths of the files.
    Raises:
        FileNotFoundError: if the folder does not hold such a run.
    """
    folder = Path(output_dir)
    frame, record = read_sensitivity(folder)
    paths = write_table(sensitivity_table(record), folder)
    with atomic_path(folder / f"{TABLE_NAME}.png") as temporary:
        temporary.write_bytes(sensitivity_plot(frame))
    return [*paths, folder / f"{TABLE_NAME}.png"]


def read_sensitivity(output_dir: str | os.PathLike[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read sensitivity.csv and sensitivity.json of a run.

    Raises:
        FileNotFoundError: if one of them is missing.
    """
    folder = Path(output_dir)
    for name in (CSV_NAME, JSON_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name}: no such file; `synboost run echo_cris sensitivity --output_dir {folder}` makes it"
            )
    text = dict.fromkeys(("case", "patient", "attribute", "right", "wrong", "prompt"), str)
    frame = read_frame(folder / CSV_NAME, dtype=text, keep_default_na=False, na_values={c: [""] for c in _NUMBERS})
    frame = frame.replace({"attribute": {"": None}, "wrong": {"": None}})
    return frame, json.loads(read_text(folder / JSON_NAME))


def sensitivity_table(record: Mapping[str, Any]) -> Table:
    """Show the effect of each change of a prompt on the mask; Dice in %.

    Args:
        record: content of sensitivity.json.
    """
    import pandas as pd

    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for part in record["summary"]:
        groups.setdefault((part["attribute"], part["change"]), {})[part["structure"]] = part
    rows = []
    for (attribute, change), parts in groups.items():
        overall = parts[OVERALL]
        row = {"attribute": attribute, "change": CHANGE_TITLES[change], "num_prompts": overall["num_prompts"]}
        for key in ("dice_to_right", "dice_to_right_low", "dice_to_right_high"):
            row[key] = _percent(overall[key])
        row |= {s.name: _percent(parts[s.name]["dice_to_right"]) if s.name in parts else None for s in STRUCTURES}
        for key in ("share_moved", "expert_change", "expert_change_low", "expert_change_high", "dice_to_named"):
            row[key] = _percent(overall[key])
        rows.append(row | {"area_ratio": overall["area_ratio"]})
    columns = ["attribute", "change", "num_prompts", *_HEADINGS, "area_ratio"]
    frame = pd.DataFrame(rows, columns=columns).astype({c: float for c in [*_HEADINGS, "area_ratio"]})
    changes = [c for c in _HEADINGS if c.startswith("expert_change")]
    formats = dict.fromkeys(_HEADINGS, ".1f") | dict.fromkeys(changes, "+.1f") | {"area_ratio": ".2f"}
    headings = {"num_prompts": "prompts", **_HEADINGS, "area_ratio": "area ratio"}
    title = "What one wrong word in a prompt does to the mask"
    return Table(TABLE_NAME, title, frame, formats, headings, _note(record))


def sensitivity_plot(frame: pd.DataFrame) -> bytes:
    """Draw the Dice to the right prompt's mask for each attribute, as PNG: wrong words above, left-out ones below.

    Each structure has a colour. A box holds the middle half of the prompts with their median, whiskers reach to 5 and 95 %, and every
    prompt beyond is a point. The grey band is the middle 90 % of prompts in the other phrasing, all structures together. The axis is
    logarithmic in 1 - Dice.

    Args:
        frame: table of sensitivity.csv.
    """
    frame = frame[frame["change"] != RIGHT].assign(group=lambda f: summary_groups(f))
    known = set(frame["group"])
    columns = [(a, c) for a in CHANGEABLE for c in CHANGES if (a, c) in known and c != LEFT_OUT]
    left_out: Groups = [(a, LEFT_OUT) if c == WRONG else None for a, c in columns]
    floor = _lost(frame.loc[frame["attribute"] == PHRASING, "dice_to_right"])
    rows: list[tuple[str, Groups]] = [("a wrong word", columns), ("without the word", left_out)]
    figure = new_figure(max(7.5, 1.5 + 0.85 * len(columns)), 6.4, dpi=130)
    for axis, (title, groups) in zip(figure.subplots(2, 1, sharey=True), rows):
        axis.axhspan(floor.quantile(0.05), floor.quantile(0.95), color="0.92", zorder=0)
        _boxes(axis, frame, groups)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xticks(range(len(columns)), ["" if group is None else _tick(*group) for group in groups], fontsize=9)
        axis.tick_params("x", length=0)
        axis.set_xlim(-0.6, len(columns) - 0.4)
        axis.set_yscale("log")
        axis.set_yticks([1, 0.5, 0.1, 0.01, MIN_LOST], ["0", "0.5", "0.9", "0.99", f"{1 - MIN_LOST:g}"])
        axis.set_yticks([], minor=True)
        axis.set_ylim(1.3, MIN_LOST / 1.3)
        draw_grid(axis, "y")
        axis.set_ylabel("Dice to the right prompt's mask", fontsize=9)
    shown = set(frame["structure"])
    handles = [_patch(_rgb(s), s.prompt_words) for s in STRUCTURES if s.name in shown]
    handles.append(_patch((0.7, 0.7, 0.7), "other phrasing, middle 90 %"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return png_of(figure)


# ---- helpers

Groups = Sequence[tuple[str, str] | None]
"""(attribute, change) at each position of an axis; None leaves the position empty."""
_NUMBERS = ("dice_to_right", "dice_to_expert", "dice_to_named", "expert_change", "area_ratio")
_HEADINGS = {
    "dice_to_right": "Dice to right",
    "dice_to_right_low": "95 % low",
    "dice_to_right_high": "high",
    **{s.name: s.prompt_words.lower() for s in STRUCTURES},
    "share_moved": "moved %",
    "expert_change": "change to expert",
    "expert_change_low": "low",
    "expert_change_high": "high",
    "dice_to_named": "Dice to named",
}


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _note(record: Mapping[str, Any]) -> str:
    """Describe the data behind the numbers."""
    right = record["right_dice"][OVERALL]
    untested = ", ".join(f"{name} ({count})" for name, count in record["num_untested_images"].items())
    parts = [
        f"Dice in %, native grid, each prompt's own mask above {record['threshold']}; right prompts' Dice to the expert: {100 * right:.1f}",
        f"moved: masks with a Dice to the right prompt's below {MOVED_BELOW:.0%}; named: the expert's mask of the structure that the wrong "
        "word names",
        f"{record['section']} of {record['dataset_dir']}, {record['num_images']} images of {record['num_patients']} patients, which are "
        f"resampled for the intervals (seed {record['seed']})",
        f"not tested for want of the attribute (images): {untested}" if untested else "",
        f"weights {str(record['checkpoint_sha256'])[:12]}",
        f"command: {record['command']}",
    ]
    return "; ".join(part for part in parts if part)


def _lost(dice: Any) -> Any:
    """Return 1 - Dice for a logarithmic axis."""
    return (1 - dice).clip(MIN_LOST, 1)


def _boxes(axis: Any, frame: pd.DataFrame, groups: Groups) -> None:
    """Draw a box for each structure at each group of one row."""
    places = [i for i, group in enumerate(groups) if group is not None]
    scale = 3 / len(STRUCTURES)  # of the boxes of three structures, which fill three quarters of a group
    for i, structure in enumerate(STRUCTURES):
        part = frame[frame["structure"] == structure.name]
        colour = _rgb(structure)
        axis.boxplot(
            [_lost(part["dice_to_right"][[g == groups[place] for g in part["group"]]]).to_numpy() for place in places],
            positions=[place + 0.26 * scale * (i - (len(STRUCTURES) - 1) / 2) for place in places],
            widths=0.2 * scale,
            whis=(5, 95),
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": (*colour, 0.45), "edgecolor": colour},
            whiskerprops={"color": colour},
            capprops={"color": colour},
            medianprops={"color": "black"},
            flierprops={"marker": ".", "markersize": 3, "markeredgecolor": colour, "alpha": 0.6},
        )


def _tick(attribute: str, change: str) -> str:
    """Return the text under a group of boxes."""
    absent = {s.name: f"structure:\n{s.prompt_words.lower()}" for s in ABSENT_STRUCTURES}
    words = {"image_quality": "image\nquality", PHRASING: "other\nphrasing", **absent}
    return words.get(change, words.get(attribute, attribute)).replace("ventricular ", "ventricular\n")


def _rgb(structure: Structure) -> tuple[float, float, float]:
    red, green, blue = structure.colour
    return red / 255, green / 255, blue / 255


def _patch(colour: tuple[float, float, float], label: str) -> Any:
    """Return an entry of the legend."""
    from matplotlib.patches import Patch

    return Patch(facecolor=(*colour, 0.45), edgecolor=colour, label=label)
