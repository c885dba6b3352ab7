"""Adapt a segmenter to images that nobody labelled, and refuse the result if it is worse by what can be seen without labels.

    OUT/model.pt, model.json, calibration.json    the adapted weights, with a calibration fitted to simulated hearts
    OUT/adapt.json       measures before and after, and the verdict
    OUT/pseudo_labels/   the data set that the weights labelled and learnt from (`predictor.pseudo_labels`)
    OUT/frames/          frames of clips, if there are clips among the images
    OUT/training/ check/ hearts/ logs/    the training, what was measured, the simulated hearts that it was measured on, and the output

The images are labelled by the weights, which see each of them in seven ways; the least sure quarter is left out, and the same weights
learn from the rest. A tenth of the patients is held out. What is measured, before and after: the Dice on simulated hearts, whose
label maps are exact, and on the held-out images how much the answers to the seven views differ, how many have a finding of the
anatomy or are not taken for apical views, and how far old and new label maps agree.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from synboost_monai.adaptation.frames import take_frames
from synboost_monai.adaptation.options import AdaptOptions
from synboost_monai.bundle_run import bundle_dir, bundle_weights, run_bundle
from synboost_monai.data import list_images, read_datalist
from synboost_monai.data.datalist import DATALIST_NAME
from synboost_monai.files import atomic_path, atomic_write_text, image_stem, read_text, sha256_of
from synboost_monai.heart.doubt import CALIBRATION_NAME, MIN_APICAL, PREDICTION_CODES
from synboost_monai.model_card import card_path
from synboost_monai.paths import refuse_overwriting
from synboost_monai.processes import hold_folder, private_files
from synboost_monai.simulation.write import SimulatedSettings, write_simulated
from synboost_monai.structures import STRUCTURES
from synboost_monai.transforms.files import load_echo

HELD_OUT_SHARE = 0.1
"""Share of the patients whose images are not learnt from."""
MIN_IMAGES = 20
"""Fewest images that are worth a training, after the least sure ones are left out."""
BATCH_SIZE = 16
"""Images of a batch in the bundles' small recipe."""
NUM_HEARTS, HEARTS_SEED = 300, 20261203
"""Simulated hearts on which weights are measured, and the calibration fitted: other seeds than those of any training."""
MAX_FORGOTTEN = 0.05
"""Largest fall of the mean Dice on simulated hearts."""
MAX_MORE_PROBLEMS = 0.1
"""Largest rise of the share of held-out images with a finding."""
MAX_MORE_SPREAD = 0.1
"""Largest rise of the mean spread of the answers to seven views of a held-out image, relative to that of the old weights."""
MIN_AGREEMENT = 0.8
"""Lowest mean Dice of new and old label maps of the held-out images: below it, something else was learnt."""
RESULT_NAME, SETTINGS_NAME = "adapt.json", "settings.json"


@dataclass(frozen=True)
class Measures:
    """Hold what can be measured of weights without anybody's label map."""

    simulated_dice: float
    """Mean Dice on simulated hearts."""
    mean_spread: float
    """On held-out images: how much the answers to seven views of an image differ, relative to the structure's size."""
    expected_dice: float
    """On held-out images: how sure the network is; every self-training raises it, so it decides nothing."""
    problem_share: float
    """Share of the held-out images with a finding of the anatomy, a missing structure, or no apical view."""


def adapt(images: str | os.PathLike[str], output_dir: str | os.PathLike[str], options: AdaptOptions) -> dict[str, Any]:
    """Adapt weights to images, and return the content of adapt.json; called again it goes on where it stopped.

    Args:
        images: folder of images and clips, or of a data set, whose label maps are not looked at.
        output_dir: folder to write to.
        options: weights, length and seed.
    Raises:
        FileNotFoundError: if there are no images or no weights.
        ValueError: if there are too few images that the weights find a heart in, the folder holds the results of other images or
            settings, or the adapted weights are worse (then there is no model.pt, and adapt.json says why).
    """
    out = Path(output_dir)
    checkpoint = bundle_weights(bundle_dir(options.bundle), options.checkpoint_path).resolve()
    found = list_images(images, options.section, sequences=True, exclude=out)
    refuse_overwriting([out / "model.pt", out / RESULT_NAME], [found, checkpoint])
    run = _Run(options.bundle, checkpoint, out, options.seed)
    with private_files(), hold_folder(out):  # frames of clips are patients' images
        _keep_settings(out, found, checkpoint, options)
        pseudo = out / "pseudo_labels"
        folder, section = take_frames(images, options.section, out / "frames")
        step = {"dataset_dir": folder, "section": section, "held_out_share": HELD_OUT_SHARE}
        run("label the images", pseudo / DATALIST_NAME, "pseudo_label", {**step, "output_dir": str(pseudo)})
        training, held_out = (read_datalist(pseudo, section) for section in ("training", "validation"))
        if len(training) < MIN_IMAGES:
            raise ValueError(
                f"{images}: the weights are sure enough of {len(training)} images, fewer than {MIN_IMAGES}, besides {len(held_out)} "
                f"held-out ones (see {pseudo}/pseudo_labels.csv); give more apical views"
            )
        epochs = math.ceil(options.updates / math.ceil(len(training) / BATCH_SIZE))
        adapted = out / "training" / "model.pt"
        train = {"dataset_dir": str(pseudo), "init_checkpoint": str(checkpoint), "max_epochs": epochs}
        run("learn from them", adapted, "train_adapted", {**train, "output_dir": str(adapted.parent)})

        hearts = out / "hearts"
        run.say("measure old and new weights")
        write_simulated(hearts, SimulatedSettings(NUM_HEARTS, seed=HEARTS_SEED, image_size=160))
        measured = {
            name: _measured(run, weights, out, held_out)
            for name, weights in (("before", checkpoint), ("after", adapted))
        }
        agreement = _agreement(pseudo, out / "check/after/images", held_out)
        reasons = why_worse(measured["before"], measured["after"], agreement)
        result = {
            "verdict": "refused" if reasons else "adapted",
            "reasons": reasons,
            **{name: asdict(measures) for name, measures in measured.items()},
            "agreement": agreement,
            "num_images": len(found),
            "num_learnt_from": len(training),
            "num_held_out": len(held_out),
            "updates": epochs * math.ceil(len(training) / BATCH_SIZE),
            "seed": options.seed,
            "checkpoint_sha256": sha256_of(checkpoint),
        }
        atomic_write_text(out / RESULT_NAME, json.dumps(result, indent=2) + "\n")
        if reasons:
            raise ValueError(
                f"{out / RESULT_NAME}: the adapted weights are worse, so there is no model.pt: {'; '.join(reasons)}; keep the weights "
                "that you have, or give more or other images"
            )
        fit = {"dataset_dir": str(hearts), "section": "training", "checkpoint_path": str(adapted)}
        run("calibrate", out / CALIBRATION_NAME, "calibrate", {**fit, "output_dir": str(out)})
        for source in (card_path(adapted), adapted):  # the weights last: they say that all is there
            with atomic_path(out / source.name) as temporary:
                shutil.copyfile(source, temporary)
    return result


def why_worse(before: Measures, after: Measures, agreement: float) -> list[str]:
    """Return the reasons why adapted weights are worse than the old ones, each a sentence; an empty list if they are not.

    Args:
        before, after: measures of the old and the adapted weights.
        agreement: mean Dice of their label maps of the held-out images.
    """
    reasons = []
    if (fall := before.simulated_dice - after.simulated_dice) > MAX_FORGOTTEN:
        reasons.append(f"Dice on simulated hearts falls by {fall:.3f}, expected at most {MAX_FORGOTTEN}")
    if (rise := after.problem_share - before.problem_share) > MAX_MORE_PROBLEMS:
        reasons.append(
            f"{rise:.0%} more of the held-out images have a finding, expected at most {MAX_MORE_PROBLEMS:.0%}"
        )
    if (rise := after.mean_spread / before.mean_spread - 1) > MAX_MORE_SPREAD:
        reasons.append(
            f"answers to seven views of a held-out image differ by {rise:.0%} more, expected at most {MAX_MORE_SPREAD:.0%}"
        )
    if agreement < MIN_AGREEMENT:
        reasons.append(
            f"old and new label maps of held-out images agree with a Dice of {agreement:.2f}, expected {MIN_AGREEMENT} or more"
        )
    return reasons


# ---- helpers


@dataclass(frozen=True)
class _Run:
    """Run configs of the bundle one after the other; what they print goes to logs/, and a finished step is not done again."""

    bundle: str
    checkpoint: Path
    out: Path
    seed: int

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def __call__(self, title: str, product: Path, config: str, settings: Mapping[str, Any]) -> None:
        """Run a config unless its product is there; settings that name no weights take those that are adapted."""
        if product.is_file() and not (product.parent / "resume.ckpt").exists():
            return
        self.say(title)
        weights = (
            {}
            if {"init_checkpoint", "checkpoint_path"} & settings.keys()
            else {"checkpoint_path": str(self.checkpoint)}
        )
        log = self.out / "logs" / f"{'_'.join(product.relative_to(self.out).parts[:-1]) or product.stem}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            run_bundle(self.bundle, config, {**weights, **settings, "seed": self.seed})


def _keep_settings(out: Path, items: Sequence[Mapping[str, Any]], checkpoint: Path, options: AdaptOptions) -> None:
    """Note what the folder is for; refuse one that is for other images, weights or settings.

    Raises:
        ValueError: if the folder holds something else.
    """
    images = [(str(item["image"]), os.stat(item["image"]).st_size) for item in items]
    noted = {
        "bundle": options.bundle,
        "checkpoint_sha256": sha256_of(checkpoint),
        "updates": options.updates,
        "seed": options.seed,
        "section": options.section,
        "images": images,
    }
    path = out / SETTINGS_NAME
    text = json.dumps(noted, indent=1) + "\n"
    if not path.is_file():
        atomic_write_text(path, text)
        return
    try:
        before = json.loads(read_text(path))
        changed = [key for key, value in json.loads(text).items() if before.get(key) != value]
    except (ValueError, AttributeError):
        changed = [SETTINGS_NAME]
    if changed:
        raise ValueError(
            f"{out}: holds the adaptation of before, with another {' and '.join(changed)}; give another folder"
        )


def _measured(run: _Run, weights: Path, out: Path, held_out: Sequence[Mapping[str, Any]]) -> Measures:
    """Measure weights on simulated hearts and on the held-out images."""
    folder = out / "check" / ("before" if weights == run.checkpoint else "after")
    chosen = {"checkpoint_path": str(weights)}
    made = {"dataset_dir": str(out / "hearts"), "section": "validation+testing", "output_dir": str(folder / "hearts")}
    run("on simulated hearts", folder / "hearts/summary.json", "evaluate", {**made, **chosen})
    seen = {"dataset_dir": str(out / "pseudo_labels"), "section": "validation", "output_dir": str(folder / "images")}
    run("on held-out images", folder / "images" / DATALIST_NAME, "pseudo_label", {**seen, **chosen, "drop_share": 0.0})
    doubts = [json.loads(read_text(folder / "images" / f"{image_stem(item['label'])}.json")) for item in held_out]
    found = [values for doubt in doubts for values in doubt["structures"].values()]
    return Measures(
        simulated_dice=json.loads(read_text(folder / "hearts/summary.json"))["overall"]["dice_mean"],
        mean_spread=_mean(values["mean_spread"] for values in found),
        expected_dice=_mean(values["expected_dice"] for values in found),
        problem_share=_mean(map(_has_problem, doubts)),
    )


def _has_problem(doubt: Mapping[str, Any]) -> bool:
    """Return whether an image has a finding that does not depend on a calibration."""
    is_foreign = "view" in doubt and doubt["view"]["apical"] < MIN_APICAL
    return is_foreign or any(reason["code"] not in PREDICTION_CODES for reason in doubt["reasons"])


def _agreement(first: Path, second: Path, held_out: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean Dice, over structures and images, of two folders' label maps."""
    scores = []
    for item in held_out:
        name = Path(item["label"]).name
        one, other = (load_echo(folder / name, like=item["image"])[0] for folder in (first, second))
        for structure in STRUCTURES:
            a, b = one == structure.class_index, other == structure.class_index
            scores.append(2 * int((a & b).sum()) / max(int(a.sum() + b.sum()), 1))
    return float(_mean(scores))


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return float(sum(listed) / len(listed))
