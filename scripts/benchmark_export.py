#!/usr/bin/env python
"""Compare exported segmenters with the network itself: differences, sizes of the files, and CPU latency, interleaved.

    python scripts/benchmark_export.py                                        both networks at the published size
    python scripts/benchmark_export.py --preset small --image_size 160        the small ones

Prints a table and, with --json, writes the numbers. Random weights (the cost is the same), random images, prompts of levels P1 to P5. The
difference is the largest over all of --counts (images x prompts): in logits, as a share of the largest logit, and in probabilities.
Latency is that of one image with three prompts, both encoded anew each time, in all cases.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import CPU, facts_of_run, timed

from synboost_monai.files import atomic_write_text
from synboost_monai.networks import create_segmenter
from synboost_monai.networks.export import network_context_length
from synboost_monai.prompts import PromptTokenizer, structure_prompts
from synboost_monai.serving.export import (
    measure_difference,
    onnx_runner,
    torchscript_runner,
    write_onnx,
    write_torchscript,
)

IMAGE_SIZE = {"clipseg": 352, "cris": 416}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    record = facts_of_run("benchmark_export.py", arguments)
    record |= {"seed": options.seed, "preset": options.preset, "repeats": options.repeats, "ways": []}
    print(", ".join(f"{key} {record[key]}" for key in ("device", "threads", "torch", "seed", "preset", "repeats")))
    print(
        f"{'network':<10}{'px':>5}  {'way':<13}{'MB':>8}{'logits':>10}{'relative':>10}{'probability':>13}{'seconds':>10}{'faster':>8}"
    )
    for architecture in options.architecture:
        for way in measure(architecture, options):
            record["ways"].append(way)
            print(
                f"{architecture:<10}{way['image_size']:>5}  {way['name']:<13}{way['bytes'] / 1e6:>8.1f}{way['difference']:>10.1e}"
                f"{way['relative']:>10.1e}{way['probability']:>13.1e}{way['seconds']:>10.3f}{way['speed_ratio']:>8.2f}"
            )
    if options.json:
        atomic_write_text(options.json, json.dumps(record, indent=1) + "\n")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", nargs="+", default=["clipseg", "cris"], choices=["clipseg", "cris"])
    parser.add_argument("--preset", default="published", choices=["published", "small", "tiny"])
    parser.add_argument("--image_size", type=int, help="px; default: the published, 352 and 416")
    parser.add_argument("--counts", nargs="+", default=["1x1", "2x3"], help="images x prompts that are compared")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved measurements of each way; medians count")
    parser.add_argument("--threads", type=int, help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the numbers there")
    return parser.parse_args(arguments)


def measure(architecture: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the network (`eager`), its TorchScript and its ONNX."""
    size = options.image_size or IMAGE_SIZE[architecture]
    counts = tuple((int(a), int(b)) for a, _, b in (word.partition("x") for word in options.counts))
    torch.manual_seed(options.seed)
    network = create_segmenter(architecture, options.preset).requires_grad_(False).eval()
    image = torch.randn(1, 3, size, size)
    texts = [prompt.text for prompt in structure_prompts("P1", {})]
    input_ids = PromptTokenizer(network_context_length(network))(texts)[None]
    num_bytes = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        ts, onnx = Path(folder, "network.ts"), Path(folder, "network.onnx")
        write_torchscript(network, ts, {"image_size": size})
        write_onnx(network, onnx, {"image_size": size})
        onnx_run = onnx_runner(onnx, torch.get_num_threads())
        if onnx_run is None:
            raise SystemExit("benchmark_export.py: needs onnxruntime: pip install 'synboost-monai[export]'")
        ways = {"eager": (network, num_bytes), "torchscript": (torchscript_runner(ts), ts.stat().st_size)}
        ways["onnxruntime"] = (onnx_run, onnx.stat().st_size)  # type: ignore[assignment]
        differences = {name: measure_difference(network, run, size, counts) for name, (run, _) in ways.items()}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for run, _ in ways.values():
            run(image, input_ids)  # warm-up: TorchScript optimises at its second call
            run(image, input_ids)
        for _ in range(options.repeats):
            for name, (run, _) in ways.items():
                seconds[name].append(timed(lambda run=run: run(image, input_ids), CPU)[0])
    return [
        {
            "architecture": architecture,
            "image_size": size,
            "name": name,
            "bytes": file_bytes,
            "difference": differences[name].absolute,
            "relative": differences[name].relative,
            "probability": differences[name].probability,
            "seconds": statistics.median(seconds[name]),
            "seconds_all": seconds[name],
            "speed_ratio": statistics.median(e / s for e, s in zip(seconds["eager"], seconds[name])),
        }
        for name, (_, file_bytes) in ways.items()
    ]


if __name__ == "__main__":
    main()
