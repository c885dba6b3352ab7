#!/usr/bin/env python
"""Compare three ways to fine-tune a segmenter: training all weights, low-rank adapters, or only the decoder on kept features.

    python scripts/compare_finetuning.py BUNDLE --dataset_dir DATA --init_checkpoint model.pt --output_dir OUT

Each way is a run of the bundle's train_small recipe from the same weights, on the training section, then an evaluation of the testing
section; finished runs are not repeated. Prints a table and writes OUT/finetuning.json. Further arguments, such as --max_epochs 6, go
to every run. An epoch's seconds are the median without validation; the seconds of features that are computed once are given separately.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measuring import facts_of_run

from synboost_monai.files import atomic_write_text
from synboost_monai.networks import add_lora, create_segmenter

WAYS: dict[str, dict[str, Any]] = {
    "everything learns": {},
    "low-rank adapters": {"lora_rank": 8},
    "frozen, kept features": {"freeze_encoders": True, "feature_cache_dir": None},
}
"""Way -> settings of the training; the folder of features is in the output folder."""
EPOCH = re.compile(r"SupervisedTrainer: Epoch\[(\d+)\] Complete. Time taken: (\d+):(\d+):([\d.]+)")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", choices=["echo_clipseg", "echo_cris"])
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--init_checkpoint", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--image_size", default="160")
    parser.add_argument("--prompt_level", default="P2")
    parser.add_argument("--max_epochs", type=int, default=6)
    parser.add_argument("--seed", default="0")
    options, others = parser.parse_known_args(arguments)
    rows = [measured(name, settings, options, others) for name, settings in WAYS.items()]
    print(table(rows))
    record = {**facts_of_run("compare_finetuning.py", arguments), "rows": rows}
    atomic_write_text(options.output_dir / "finetuning.json", json.dumps(record, indent=1) + "\n")


def measured(name: str, settings: dict[str, Any], options: argparse.Namespace, others: list[str]) -> dict[str, Any]:
    """Train and evaluate one way, unless that is already done."""
    folder = options.output_dir / name.replace(",", "").replace(" ", "_")
    shared = ["--preset", options.preset, "--image_size", options.image_size, "--prompt_level", options.prompt_level]
    shared += ["--dataset_dir", options.dataset_dir, "--seed", options.seed]
    seconds_path = folder / "seconds.json"
    if not seconds_path.is_file():
        words = ["run", options.bundle, "train_small", *shared, "--output_dir", str(folder)]
        words += ["--init_checkpoint", options.init_checkpoint]
        words += ["--max_epochs", str(options.max_epochs), "--val_interval", str(options.max_epochs), *others]
        if "feature_cache_dir" in settings:
            settings = {**settings, "feature_cache_dir": str(folder / "features")}
        start = time.perf_counter()
        synboost([*words, *(word for key, value in settings.items() for word in (f"--{key}", str(value)))])
        atomic_write_text(seconds_path, json.dumps({"training_seconds": time.perf_counter() - start}))
    evaluation = folder / "evaluation"
    if not (evaluation / "summary.json").is_file():
        words = ["evaluate", options.bundle, *shared, "--section", "testing"]
        synboost([*words, "--checkpoint_path", str(folder / "model.pt"), "--output_dir", str(evaluation)])
    overall = json.loads((evaluation / "summary.json").read_text())["overall"]
    epochs = seconds_of_epochs((folder / "log.txt").read_text())
    training = json.loads(seconds_path.read_text())["training_seconds"]
    return {
        "way": name,
        "parameters_trained": parameters_trained(options.bundle, options.preset, settings),
        "seconds_an_epoch": statistics.median(epochs[:-1] or epochs),  # the last one is followed by the validation
        "seconds_before": training - sum(epochs),
        "dice_percent": 100 * overall["dice_mean"],
        "hd95_mm": overall["hd95_mm_mean"],
    }


def synboost(words: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "synboost_monai", *words], check=True)


def seconds_of_epochs(log: str) -> list[float]:
    """Return the seconds of each epoch in a training's log, in order; for an epoch that was run twice, those of the last run."""
    found = {int(n): int(h) * 3600 + int(m) * 60 + float(s) for n, h, m, s in EPOCH.findall(log)}
    return [found[number] for number in sorted(found)]


def parameters_trained(bundle: str, preset: str, settings: dict[str, Any]) -> int:
    network = create_segmenter(
        bundle.removeprefix("echo_"), preset, freeze_encoders=bool(settings.get("freeze_encoders", False))
    )
    network = add_lora(network, rank=settings.get("lora_rank", 0))
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'way':<24}{'parameters':>12}{'s an epoch':>12}{'s before':>10}{'Dice %':>9}{'HD95 mm':>9}"]
    lines += [
        f"{row['way']:<24}{row['parameters_trained']:>12,}{row['seconds_an_epoch']:>12.1f}{row['seconds_before']:>10.1f}"
        f"{row['dice_percent']:>9.2f}{row['hd95_mm']:>9.2f}"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
