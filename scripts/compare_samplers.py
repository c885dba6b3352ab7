#!/usr/bin/env python
"""Compare samplers and step counts of one trained semantic diffusion model with its own published sampling.

    python scripts/compare_samplers.py --dataset_dir REAL --checkpoint_path DIFFUSION/model.pt --segmenter_checkpoint CRIS/model.pt \\
        --output_dir OUT --preset small --image_size 128 --segmenter_preset small --segmenter_image_size 160

Each row of the table is `synboost synthesise` from the unperturbed label maps, with the same noise seeds in every row, and
`synboost evaluate echo_semantic_diffusion`. Rows are NAME:STEPS[:SPACING[:GUIDANCE[:STUDENT/model.pt]]], where a distilled student takes
the place of the model; the others are compared with the first, image by image. Finished rows are not repeated: call the script again to
add rows, or after an interruption. Seconds an image are measured at the end, for one image at a time, with all rows in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from measuring import CPU, facts_of_run, timed

from synboost_monai import load_synthesiser
from synboost_monai.csv_files import read_frame
from synboost_monai.data import read_datalist
from synboost_monai.evaluation.statistics import bootstrap_means, interval
from synboost_monai.files import atomic_write_text

ROWS = (
    "ancestral:1000",
    "ddim:25:leading",
    "ddim:50:leading",
    "dpmpp_2m:25:trailing",
    "dpmpp_2m:10",
    "dpmpp_2m:15",
    "dpmpp_2m:25",
    "dpmpp_2m:50",
)
"""Published sampling; DDIM as published; DPM-Solver++ on an even grid that misses t = 0, as diffusers has it; our default grid."""


def main() -> None:
    options = parse()
    for row in options.rows:
        folder = folder_of(row, options)
        synthesise(row, folder, options)
        if not (folder / "quality/quality.json").is_file():
            evaluate(folder, options)
    seconds = seconds_an_image(options)
    rows = [{**numbers_of(row, options), "seconds": seconds[row]} for row in options.rows]
    text = table(rows)
    atomic_write_text(options.output_dir / "samplers.md", text)
    record = {**facts_of_run("compare_samplers.py"), "rows": rows}
    atomic_write_text(options.output_dir / "samplers.json", json.dumps(record, indent=1) + "\n")
    print(text, end="")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("dataset_dir", "checkpoint_path", "segmenter_checkpoint"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--preset", default="published")
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--sections", default="validation", help="sections with label maps, joined by +")
    parser.add_argument("--limit", type=int, help="label maps a section")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--images_at_once", type=int, default=8)
    parser.add_argument("--segmenter_bundle", default="echo_cris")
    parser.add_argument("--segmenter_preset", default="published")
    parser.add_argument("--segmenter_image_size", type=int, default=416)
    parser.add_argument("--prompt_level", default="P1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5, help="images that are timed for each row")
    parser.add_argument("--rows", type=lambda text: text.split(","), default=list(ROWS))
    return parser.parse_args()


def folder_of(row: str, options: argparse.Namespace) -> Path:
    """Return the folder of a row's images, whose name holds a student's folder in place of its path."""
    words = row.split(":")
    return Path(options.output_dir, "_".join([*words[:4], *(Path(word).parent.name for word in words[4:])]))


def settings_of(row: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of `synboost synthesise` that a row names."""
    name, steps, spacing, guidance, student = [*row.split(":"), "", "", ""][:5]
    return {
        "sampler": name,
        "num_inference_steps": steps,
        "timestep_spacing": spacing or "null",
        "guidance_scale": guidance or "1.0",
        "checkpoint_path": student or options.checkpoint_path,
    }


def synthesise(row: str, folder: Path, options: argparse.Namespace) -> None:
    call(
        "synthesise",
        **settings_of(row, options),
        output_dir=folder,
        num_variations=1,
        perturbation_strength=0.0,
        sections=options.sections,
        limit=options.limit or "null",
        **{
            key: getattr(options, key)
            for key in (
                "dataset_dir",
                "preset",
                "image_size",
                "dtype",
                "batch_size",
                "images_at_once",
                "seed",
            )
        },
    )


def evaluate(folder: Path, options: argparse.Namespace) -> None:
    call(
        "evaluate",
        "echo_semantic_diffusion",
        dataset_dir=folder,
        real_dir=options.dataset_dir,
        real_section=options.sections,
        output_dir=folder / "quality",
        seed=options.seed,
        limit=len(list((folder / "images").glob("*.nii.gz"))),  # of the real reference too: equal numbers
        **{
            key: getattr(options, key)
            for key in (
                "segmenter_bundle",
                "segmenter_checkpoint",
                "segmenter_preset",
                "segmenter_image_size",
                "prompt_level",
            )
        },
    )


def call(verb: str, *words: str, **flags: object) -> None:
    command = [sys.executable, "-m", "synboost_monai", verb, *words]
    command += [f"--{name}={value}" for name, value in flags.items()]
    print("$ synboost", *command[3:], file=sys.stderr, flush=True)
    subprocess.run(command, check=True)


def seconds_an_image(options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds in which each row draws an image, one at a time, all rows in turns: medians, without reading and writing."""
    same = {key: getattr(options, key) for key in ("preset", "image_size", "dtype")}
    draw: dict[str, Callable[[], object]] = {}
    item = read_datalist(options.dataset_dir, options.sections.split("+")[0], limit=1)[0]
    for row in options.rows:
        synthesiser = load_synthesiser(**settings_of(row, options), **same)
        draw[row] = partial(synthesiser.sample, synthesiser.prepare(item["label"], item["image"]), options.seed)
    seconds: dict[str, list[float]] = {row: [] for row in options.rows}
    for repeat in range(options.repeats + 1):  # the first warms up
        for row in options.rows:
            duration, _ = timed(draw[row], CPU)
            seconds[row] += [duration] * (repeat > 0)
    return {row: statistics.median(values) for row, values in seconds.items()}


def numbers_of(row: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the numbers of a row for the table; Dice in %, paired differences by image with intervals over patients."""
    folder = folder_of(row, options)
    quality = json.loads((folder / "quality/quality.json").read_text(encoding="utf-8"))
    dice, patients = dice_of(folder)
    reference, _ = dice_of(folder_of(options.rows[0], options))
    difference = (dice - reference)[dice.index]
    draws = bootstrap_means(difference.to_numpy(), list(patients[dice.index]), num_bootstrap=2000, seed=options.seed)
    low, high = interval(draws)
    speckle = quality["speckle"]["myocardium"]["snr"]
    return {
        "row": row,
        "num_images": len(dice),
        "mean_dice": dice.mean(),
        "real_mean_dice": 100 * quality["faithfulness"]["real_mean_dice"],
        "difference": difference.mean(),
        "difference_low": low,
        "difference_high": high,
        "spectrum_db": quality["spectrum_distance_db"],
        "spectrum_floor_db": quality["spectrum_distance_floor_db"],
        "high_frequency_db": quality["spectrum_high_frequency_db"],
        "fid": quality["fid"]["value"],
        "fid_floor": quality["fid"]["floor"],
        "mmd": quality["mmd"]["value"],
        "myocardium_snr": speckle["synthetic"],
        "myocardium_snr_real": speckle["real"],
    }


def dice_of(folder: Path) -> tuple[pd.Series, pd.Series]:
    """Return the mean Dice in % of each synthetic image, and its patient."""
    cases = read_frame(folder / "quality/metrics.csv", dtype={"patient": str})
    cases = cases[cases["is_synthetic"]]
    grouped = cases.groupby("case")
    return 100 * grouped["dice"].mean(), grouped["patient"].first()


def table(rows: list[dict[str, object]]) -> str:
    first = rows[0]
    lines = [
        f"{first['num_images']} label maps; real images: Dice {first['real_mean_dice']:.2f} %, spectrum distance "
        f"{first['spectrum_floor_db']:.2f} dB, FID {first['fid_floor']:.1f} (real against other real), "
        f"myocardium SNR {first['myocardium_snr_real']:.2f}",
        "",
        f"| sampler:steps:spacing | Dice % | minus {first['row']} [95 %] | spectrum dB | high frequencies dB | FID | MMD "
        "| myocardium SNR | seconds an image |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['row']} | {row['mean_dice']:.2f} | {row['difference']:+.2f} [{row['difference_low']:+.2f}, "
            f"{row['difference_high']:+.2f}] | {row['spectrum_db']:.2f} | {row['high_frequency_db']:+.2f} | {row['fid']:.1f} | "
            f"{row['mmd']:.4f} | {row['myocardium_snr']:.2f} | {row['seconds']:.3f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
