#!/usr/bin/env python
"""Measure the cost of an image of the semantic diffusion model: the published way against ours, interleaved, as ratios.

    python scripts/benchmark_synthesis.py                                       full size, 256 px; half an hour on two cores
    python scripts/benchmark_synthesis.py --image_size 64 --base_channels 64    two minutes
    python scripts/benchmark_synthesis.py --device cuda --compile --images_at_once 16

Prints a table and, with --json, writes it. The published way evaluates the whole network 1,000 times per image, and its two halves for
guidance twice. Ours evaluates the part that depends on the noisy image 25 times, and the part that depends on the label map once. Random
weights (the cost is the same), the label maps of the phantom or of --dataset_dir. On a GPU it also draws whole batches and prints images
per second beside the upper limit: the rate if every operation ran at the processor's peak.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from measuring import device_name, facts_of_run, peak, reset_peak, timed
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from synboost_monai.diffusion import SamplerOptions
from synboost_monai.files import atomic_write_text
from synboost_monai.inferers import SemanticDiffusionInferer
from synboost_monai.networks import to_inference
from synboost_monai.networks.semantic_diffusion_unet import (
    PRESETS,
    SemanticDiffusionUNet,
    create_semantic_diffusion_unet,
)
from synboost_monai.networks.spade import join_modulations

PUBLISHED_STEPS = 1000
PEAK_FLOPS = {"H100": 790e12, "H200": 790e12}
"""FLOP/s of dense bfloat16 matrix products, by a word in the device's name."""


@dataclass
class Way:
    """Hold one way to make an image, and its measurements."""

    name: str
    steps: int
    prepare: Callable[[], Any]
    """Function that runs once per image: the part that depends on the label map."""
    evaluate: Callable[[Any], Tensor]
    """Function that runs at every step."""
    compare_to: str = "published"
    prepare_flop: int = 0
    evaluation_flop: int = 0
    prepare_seconds: list[float] = field(default_factory=list)
    evaluation_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    error: float = 0.0

    def image_flop(self) -> int:
        return self.prepare_flop + self.steps * self.evaluation_flop

    def image_seconds(self) -> float:
        return statistics.median(self.prepare_seconds) + self.steps * statistics.median(self.evaluation_seconds)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    network = seeded_network(options).to(device)
    label_onehot = label_maps(options).to(device)
    record = facts_of_run("benchmark_synthesis.py", arguments, device)
    record |= {
        "parameters": sum(p.numel() for p in network.parameters()),
        "options": vars(options) | {"json": str(options.json)},
    }
    title = ", ".join(f"{key} {record[key]}" for key in ("device", "threads", "torch", "parameters"))
    print(
        f"{title}\nseed {options.seed}, {options.image_size} px, label map: {options.dataset_dir or 'phantom'}, random weights"
    )

    ways = make_ways(network, label_onehot[:1], options)
    with torch.inference_mode():
        measure(ways, options.repeats, device)
        print(table(ways))
        record["ways"] = [result(way, ways) for way in ways]
        if options.images_at_once:
            record["throughput"] = [
                throughput(network, label_onehot, options, number, spade)
                for number in options.images_at_once
                for spade in ("maps", "table")
            ]
    if options.json:
        atomic_write_text(options.json, json.dumps(record, indent=1) + "\n")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="published", choices=sorted(PRESETS))
    parser.add_argument("--image_size", type=int, help="px; default: the preset's, 256 for published")
    parser.add_argument("--base_channels", type=int, help="narrower than the preset")
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, default=1.5)
    parser.add_argument("--repeats", type=int, default=3, help="interleaved measurements of each way; medians count")
    parser.add_argument("--dataset_dir", help="label maps with their images; default: a phantom")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="on a CPU; default: all")
    parser.add_argument("--compile", action="store_true", help="torch.compile for the throughput")
    parser.add_argument(
        "--images_at_once",
        type=lambda text: [int(n) for n in text.split(",")],
        default=[],
        help="measure throughput with",
    )
    parser.add_argument("--peak_tflops", type=float, help="of the floor; default: by the GPU's name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the numbers there")
    options = parser.parse_args(arguments)
    options.image_size = options.image_size or PRESETS[options.preset].get("image_size", 256)
    return options


def seeded_network(options: argparse.Namespace) -> SemanticDiffusionUNet:
    """Make a network of random weights; layers that start at zero are filled, or whole branches would vanish."""
    sizes = {"image_size": options.image_size}
    if options.base_channels:
        sizes["base_channels"] = options.base_channels
    network = create_semantic_diffusion_unet(options.preset, **sizes, channels_last=False)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network.requires_grad_(False).eval()


def label_maps(options: argparse.Namespace) -> Tensor:
    """Return the network's condition, (B, K, H, W), for some images."""
    from monai.transforms import Compose

    from synboost_monai.data import list_label_maps
    from synboost_monai.simulation.phantom import write_phantom
    from synboost_monai.transforms import Letterboxd, LoadEchod
    from synboost_monai.transforms.label_map_dictionary import SectorLabelMapd, SectorMaskd

    transform = Compose(
        [
            LoadEchod(keys=["image", "label"], allow_missing_keys=True),
            SectorMaskd(),
            Letterboxd(keys="image", size=options.image_size, label_keys=("label", "sector"), allow_missing_keys=True),
            SectorLabelMapd(),
        ]
    )
    number = max([1, *options.images_at_once])
    with tempfile.TemporaryDirectory() as folder:
        dataset_dir = options.dataset_dir or write_phantom(folder, num_patients=2, seed=options.seed) / "database_nifti"
        items = list_label_maps(dataset_dir, "training", limit=number)
        maps = torch.stack([torch.as_tensor(transform(item)["label_onehot"]) for item in items]).float()
    return maps.repeat(-(-number // len(maps)), 1, 1, 1)[:number]


def make_ways(network: SemanticDiffusionUNet, label_onehot: Tensor, options: argparse.Namespace) -> list[Way]:
    """Return the published way and each of ours, for one image."""
    device = label_onehot.device
    generator = torch.Generator().manual_seed(options.seed)
    x = torch.randn(1, network.in_channels, options.image_size, options.image_size, generator=generator).to(device)
    t = torch.tensor([300], device=device)
    null = torch.zeros_like(label_onehot)
    ours = to_inference(copy.deepcopy(network), device)
    half = to_inference(copy.deepcopy(network), device, "bfloat16")
    steps = options.num_inference_steps

    def cached(name: str, net: nn.Module, spade: str) -> Way:
        assert isinstance(net, SemanticDiffusionUNet)
        return Way(name, steps, lambda: net.condition(label_onehot, spade), lambda m: net.decode(net.encode(x, t), m))

    def guided(name: str, net: nn.Module, spade: str) -> Way:
        assert isinstance(net, SemanticDiffusionUNet)
        null_modulations: list[Any] = []  # once per run, so not in the cost of an image

        def prepare() -> Any:
            if not null_modulations:
                with torch.inference_mode():
                    null_modulations.extend(net.condition(null, spade))
            return join_modulations([net.condition(label_onehot, spade), null_modulations], batch=1)

        def evaluate(modulations: Any) -> Tensor:
            conditional, unconditional = net.decode(net.encode(x, t), modulations).float().chunk(2)
            return torch.lerp(unconditional, conditional, options.guidance_scale)

        prepare()
        return Way(name, steps, prepare, evaluate, compare_to="published, guided")

    def both(_: Any) -> Tensor:
        return torch.lerp(network(x, t, null), network(x, t, label_onehot), options.guidance_scale)

    return [
        Way("published", PUBLISHED_STEPS, lambda: None, lambda _: network(x, t, label_onehot)),
        cached("maps once", network, "maps"),
        cached("maps once, channels last", ours, "maps"),
        cached("table, channels last", ours, "table"),
        cached("maps once, bfloat16", half, "maps"),
        cached("table, bfloat16", half, "table"),
        Way("published, guided", PUBLISHED_STEPS, lambda: None, both, compare_to="published, guided"),
        guided("guided, maps once", ours, "maps"),
        guided("guided, maps, bfloat16", half, "maps"),
        guided("guided, table, bfloat16", half, "table"),
    ]


def measure(ways: list[Way], repeats: int, device: torch.device) -> None:
    """Count FLOP in a first pass, which also warms up; then measure seconds, one way after another, repeatedly."""
    outputs: dict[str, Tensor] = {}
    for way in ways:
        before = reset_peak(device)
        outputs[way.name] = count_flop(way).float()
        way.peak_bytes = peak(device) - before
        reference = outputs[way.compare_to]
        way.error = float((outputs[way.name] - reference).abs().max() / reference.abs().max())
        print(f"  counted: {way.name}", file=sys.stderr)
    for repeat in range(repeats):
        for way in ways:
            seconds, prepared = timed(way.prepare, device)
            way.prepare_seconds.append(seconds)
            way.evaluation_seconds.append(timed(lambda way=way, prepared=prepared: way.evaluate(prepared), device)[0])  # type: ignore[misc]
            del prepared
        print(f"  measured: {repeat + 1} of {repeats}", file=sys.stderr)


def count_flop(way: Way) -> Tensor:
    """Run a way once, count its FLOP, and return the network's output."""
    with FlopCounterMode(display=False) as counter:
        prepared = way.prepare()
        way.prepare_flop = counter.get_total_flops()
        output = way.evaluate(prepared)
    way.evaluation_flop = counter.get_total_flops() - way.prepare_flop
    return output


def table(ways: list[Way]) -> str:
    """Return a table of TFLOP and seconds of one evaluation and one image; both ratios are to 1,000 evaluations the published way."""
    rows = [
        f"{'way':<26}{'steps':>6}{'maps TFLOP':>12}{'eval TFLOP':>12}{'image TFLOP':>13}{'less':>8}"
        f"{'maps s':>9}{'eval s':>9}{'image s':>11}{'faster':>9}{'peak GB':>9}{'error':>10}"
    ]
    for way in ways:
        numbers = result(way, ways)
        rows.append(
            f"{way.name:<26}{way.steps:>6}{way.prepare_flop / 1e12:>12.4f}{way.evaluation_flop / 1e12:>12.4f}"
            f"{numbers['image_tflop']:>13.3f}{numbers['flop_ratio']:>8.1f}{numbers['maps_seconds']:>9.3f}"
            f"{numbers['evaluation_seconds']:>9.3f}{numbers['image_seconds']:>11.1f}{numbers['speed_ratio']:>9.1f}"
            f"{way.peak_bytes / 1e9:>9.2f}{way.error:>10.1e}"
        )
    return "\n".join(rows)


def result(way: Way, ways: list[Way]) -> dict[str, Any]:
    """Return the numbers of a way, as ratios to those of the way that it replaces."""
    reference = next(other for other in ways if other.name == way.compare_to)
    return {
        "name": way.name,
        "steps": way.steps,
        "prepare_flop": way.prepare_flop,
        "evaluation_flop": way.evaluation_flop,
        "image_tflop": way.image_flop() / 1e12,
        "flop_ratio": reference.image_flop() / way.image_flop(),
        "flop_ratio_of_an_evaluation": reference.evaluation_flop / way.evaluation_flop,
        "maps_seconds": statistics.median(way.prepare_seconds),
        "maps_seconds_all": way.prepare_seconds,
        "evaluation_seconds": statistics.median(way.evaluation_seconds),
        "evaluation_seconds_all": way.evaluation_seconds,
        "image_seconds": way.image_seconds(),
        "speed_ratio": reference.image_seconds() / way.image_seconds(),
        "peak_gb": way.peak_bytes / 1e9,
        "error": way.error,
        "compared_to": way.compare_to,
    }


def throughput(
    network: SemanticDiffusionUNet, label_onehot: Tensor, options: argparse.Namespace, images_at_once: int, spade: str
) -> dict[str, Any]:
    """Measure images per second of the whole inferer in bfloat16, beside the upper limit."""
    device = label_onehot.device
    half = to_inference(copy.deepcopy(network), device, "bfloat16")
    assert isinstance(half, SemanticDiffusionUNet)
    inferer = SemanticDiffusionInferer(
        SamplerOptions(num_inference_steps=options.num_inference_steps),
        image_channels=network.in_channels,
        images_at_once=images_at_once,
        spade=spade,
        compile_network=options.compile,
    )
    maps = label_onehot[:images_at_once]
    x, t = maps.new_zeros(1, network.in_channels, *maps.shape[2:]), torch.zeros(1, device=device)
    seeds = torch.arange(images_at_once)
    step = Way(
        "",
        options.num_inference_steps,
        lambda: half.condition(maps[:1], spade),
        lambda m: half.decode(half.encode(x, t), m),
    )
    count_flop(step)
    reset_peak(device)
    inferer(maps, half, seeds)  # compiles
    seconds = [timed(lambda: inferer(maps, half, seeds), device)[0] for _ in range(options.repeats)]
    name, rate = device_name(device), images_at_once / statistics.median(seconds)
    known = next((flops for word, flops in PEAK_FLOPS.items() if word in name), None)
    flops = options.peak_tflops * 1e12 if options.peak_tflops else known
    floor = flops and flops / step.image_flop()
    print(
        f"throughput, {spade}, {images_at_once} images at once, {'compiled' if options.compile else 'eager'}: {rate:.3f} images a second"
        + (f", floor {floor:.1f} ({100 * rate / floor:.0f} %)" if floor else "")
    )
    numbers = {"images_at_once": images_at_once, "spade": spade, "compiled": options.compile, "images_per_second": rate}
    numbers |= {"seconds": seconds, "peak_gb": peak(device) / 1e9, "floor_images_per_second": floor}
    return numbers


if __name__ == "__main__":
    main()
