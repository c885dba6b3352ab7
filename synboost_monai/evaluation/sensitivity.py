"""Measure how far a mask moves when a word of its prompt changes, and summarise the measures over a data set.

In a Dice of two masks, two empty masks are alike (1); an empty and a non-empty one are not (0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from synboost_monai.evaluation.statistics import OVERALL, cluster_bootstrap
from synboost_monai.prompts.variations import (
    ABSENT_STRUCTURES,
    CHANGEABLE,
    LEFT_OUT,
    REPHRASED,
    RIGHT,
    STRUCTURE,
    WRONG,
    PromptVariant,
)
from synboost_monai.structures import STRUCTURES

CSV_NAME, JSON_NAME = "sensitivity.csv", "sensitivity.json"
"""Files of a run: all prompts with their measures, and the summary with its settings."""
CSV_COLUMNS = (
    *("case", "patient", "view", "phase", "structure", "attribute", "change", "right", "wrong"),
    *("dice_to_right", "dice_to_expert", "dice_to_named", "expert_change", "area_ratio", "is_empty", "prompt"),
)
"""Columns of sensitivity.csv, one row per prompt of an image."""
CHANGES = (REPHRASED, WRONG, *(s.name for s in ABSENT_STRUCTURES), LEFT_OUT)
"""Changes of a prompt, in the order of tables and plots; names of absent structures are wrong words, too."""
MOVED_BELOW = 0.95
"""Dice to the right prompt's mask below which a mask counts as moved (our choice)."""


def mask_dice(masks: Tensor, reference: Tensor) -> Tensor:
    """Return the Dice of each mask to one reference.

    Args:
        masks: (P, H, W), bool.
        reference: (H, W), bool.
    Returns:
        (P,), float64, in [0, 1].
    """
    common = (masks & reference).sum(dim=(-2, -1), dtype=torch.float64)
    total = masks.sum(dim=(-2, -1), dtype=torch.float64) + reference.sum(dtype=torch.float64)
    return torch.where(total > 0, 2 * common / total.clamp(min=1), 1.0)


def sensitivity_rows(masks: Tensor, variants: Sequence[PromptVariant], truth: Tensor) -> list[dict[str, Any]]:
    """Measure every prompt's mask of one image.

    Args:
        masks: (P, H, W), bool, one for each prompt by itself.
        variants: the P prompts; the right prompt of each structure comes before its changed ones (`PromptVariations`).
        truth: the expert's label map, (H, W).
    Returns:
        one dictionary for each prompt: structure, attribute, change, right, wrong, prompt; and
        dice_to_right: Dice to the mask of the structure's right prompt;
        dice_to_expert: Dice to the expert's mask of the structure of the right prompt;
        dice_to_named: for a prompt with a wrong structure, Dice to the expert's mask of the structure that it names; otherwise None;
        expert_change: dice_to_expert minus that of the right prompt;
        area_ratio: area over that of the right prompt's mask, None where that is empty;
        is_empty: whether the mask is empty.
    Raises:
        ValueError: if the shapes do not fit.
    """
    if masks.ndim != 3 or len(masks) != len(variants) or masks.shape[1:] != truth.shape:
        raise ValueError(
            f"sensitivity.py: {len(variants)} prompts and a label map {tuple(truth.shape)} do not fit masks {tuple(masks.shape)}"
        )
    experts = {s.name: truth == s.class_index for s in STRUCTURES}
    areas = masks.sum(dim=(-2, -1)).tolist()
    rows: list[dict[str, Any]] = []
    for structure in dict.fromkeys(v.structure for v in variants):
        places = [i for i, v in enumerate(variants) if v.structure == structure]
        right = next(i for i in places if variants[i].change == RIGHT)
        to_right = mask_dice(masks[places], masks[right]).tolist()
        to_expert = dict(zip(places, mask_dice(masks[places], experts[structure]).tolist()))
        for place, dice in zip(places, to_right):
            variant = variants[place]
            is_named = variant.attribute == STRUCTURE and variant.wrong in experts
            to_named = mask_dice(masks[place][None], experts[str(variant.wrong)]).item() if is_named else None
            rows.append(
                {
                    "structure": structure,
                    "attribute": variant.attribute,
                    "change": variant.change,
                    "right": variant.right,
                    "wrong": variant.wrong,
                    "dice_to_right": dice,
                    "dice_to_expert": to_expert[place],
                    "dice_to_named": to_named,
                    "expert_change": to_expert[place] - to_expert[right],
                    "area_ratio": areas[place] / areas[right] if areas[right] else None,
                    "is_empty": areas[place] == 0,
                    "prompt": variant.text,
                }
            )
    return rows


def sensitivity_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the rows of `sensitivity_rows`, each with case, patient, view and phase added, as a table with `CSV_COLUMNS`.

    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("sensitivity.py: no image was looked at; is the data set's section empty?")
    frame = pd.DataFrame(list(rows), columns=list(CSV_COLUMNS))
    return frame.sort_values("case", kind="stable", ignore_index=True)


def summarise_sensitivity(frame: pd.DataFrame, *, num_resamples: int = 10000, seed: int = 0) -> list[dict[str, Any]]:
    """Summarise each change of each attribute, by structure and over all structures.

    Prompts that name one of `ABSENT_STRUCTURES` are summarised apart from those that name another labelled structure; the name of the
    absent structure is then their change.

    Args:
        frame: result of `sensitivity_frame`.
        num_resamples, seed: settings of the intervals, for which patients are resampled.
    Returns:
        one dictionary for each group, in the order of `CHANGEABLE` and `CHANGES`: attribute, change, structure (`OVERALL` for all),
        num_prompts, num_images, num_patients; dice_to_right and expert_change, each the mean with _low and _high (95 %; None for a
        single patient); dice_to_right_p05, the 5 % quantile; share_moved, the share of prompts whose mask has a Dice to the right prompt's
        mask below `MOVED_BELOW`; dice_to_expert, dice_to_named and area_ratio (its median), None where they do not apply; share_empty.
    """
    frame = frame[frame["change"] != RIGHT].copy()
    frame["group"] = summary_groups(frame)
    places = {(a, c): (i, j) for i, a in enumerate(CHANGEABLE) for j, c in enumerate(CHANGES)}
    summaries = []
    for group in sorted(set(frame["group"]), key=lambda g: places[g]):
        part = frame[[g == group for g in frame["group"]]]
        for structure in (*(s.name for s in STRUCTURES), OVERALL):
            rows = part if structure == OVERALL else part[part["structure"] == structure]
            if len(rows):
                labels = {"attribute": group[0], "change": group[1], "structure": structure}
                summaries.append(labels | _summary(rows, num_resamples, seed))
    return summaries


def summary_groups(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (attribute, change) of each row, its group in summary and plot; the change of an absent structure is its name."""
    absent = {s.name for s in ABSENT_STRUCTURES}
    is_absent = (frame["attribute"] == STRUCTURE) & frame["wrong"].isin(absent)
    changes = frame["change"].where(~is_absent, frame["wrong"])
    return list(zip(frame["attribute"], changes))


def right_dice(frame: pd.DataFrame) -> dict[str, float]:
    """Return the mean Dice of the right prompts' masks to the expert's, by structure and over all (`OVERALL`)."""
    right = frame[frame["change"] == RIGHT]
    means = {s.name: right.loc[right["structure"] == s.name, "dice_to_expert"] for s in STRUCTURES}
    return {name: float(v.mean()) for name, v in {**means, OVERALL: right["dice_to_expert"]}.items() if len(v)}


# ---- helpers


def _summary(rows: pd.DataFrame, num_resamples: int, seed: int) -> dict[str, Any]:
    """Return the numbers of one group of rows."""
    patients = rows["patient"].fillna(rows["case"]).astype(str)
    out: dict[str, Any] = {
        "num_prompts": len(rows),
        "num_images": int(rows["case"].nunique()),
        "num_patients": int(patients.nunique()),
    }
    for column in ("dice_to_right", "expert_change"):
        values = rows[column].to_numpy(dtype=np.float64)
        low, high = None, None
        if patients.nunique() > 1:
            low, high = cluster_bootstrap(values, patients.to_numpy(), num_resamples=num_resamples, seed=seed)
        out |= {column: float(values.mean()), f"{column}_low": low, f"{column}_high": high}
    out["dice_to_right_p05"] = float(rows["dice_to_right"].quantile(0.05))
    out["share_moved"] = float((rows["dice_to_right"] < MOVED_BELOW).mean())
    for column, reduce in (("dice_to_expert", np.mean), ("dice_to_named", np.mean), ("area_ratio", np.median)):
        values = pd.to_numeric(rows[column]).dropna().to_numpy(dtype=np.float64)
        out[column] = float(reduce(values)) if len(values) else None
    out["share_empty"] = float(rows["is_empty"].astype(bool).mean())
    return out
