#!/usr/bin/env python
"""Measure the cost of prompted segmentation and of its training: the published way against ours, interleaved, as ratios.

    python scripts/benchmark_segmenters.py                           both networks at the published size; a quarter of an hour on two cores
    python scripts/benchmark_segmenters.py --architecture clipseg    one of them
    python scripts/benchmark_segmenters.py --device cuda

Prints tables and, with --json, writes the numbers. The published way passes an image to the network once for each of its three structures:
CLIPSeg as transformers' CLIPSegForImageSegmentation, CRIS as our own network with the text at its full length and the published order of
products. The three pairs run as one batch, or one by one; ours is compared with both. Ours encodes the image once, leaves out everything
that no output depends on, and encodes each prompt once. Random weights (the cost is the same), a random image, the P6
prompts of a phantom patient. A training step is forward, loss, backward and AdamW.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from measuring import facts_of_run, peak, reset_peak, timed
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from synboost_monai.files import atomic_write_text
from synboost_monai.inferers import PromptedSegmentationInferer
from synboost_monai.networks import create_segmenter, to_inference
from synboost_monai.prompts import PromptTokenizer, structure_prompts
from synboost_monai.training.losses import PromptDiceCELoss

IMAGE_SIZE = {"clipseg": 352, "cris": 416}
ATTRIBUTES = {
    "view": "apical_four_chamber",
    "phase": "end_diastole",
    "sex": "female",
    "age": 56,
    "image_quality": "medium",
}
"""Attributes of the segmented patient."""


ONE_BY_ONE = ", one by one"
"""End of the name of a reference whose pairs do not run as one batch."""


@dataclass
class Way:
    """Hold one way to do something, and its measurements."""

    name: str
    compare_to: str
    call: Callable[[], Tensor]
    """Function that runs it and returns logits (1, S, N, N), or the loss of a training step."""
    check: bool = True
    """Whether its output must equal that of `compare_to`."""
    flop: int = 0
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    output: Tensor | None = None


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    record = facts_of_run("benchmark_segmenters.py", arguments, device)
    record |= {"seed": options.seed, "preset": options.preset, "repeats": options.repeats, "ways": []}
    print(", ".join(f"{key} {record[key]}" for key in ("device", "threads", "torch", "seed", "preset", "repeats")))
    for architecture in options.architecture:
        size = options.image_size or IMAGE_SIZE[architecture]
        print(f"\n{architecture}, {size} px, one image, prompts of its three structures, random weights")
        for ways in groups(architecture, size, options, device):
            measure(ways, options.repeats, device)
            print(table(ways))
            record["ways"] += [{"architecture": architecture, "image_size": size, **result(way, ways)} for way in ways]
    if options.json:
        atomic_write_text(options.json, json.dumps(record, indent=1) + "\n")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", nargs="+", default=["clipseg", "cris"], choices=["clipseg", "cris"])
    parser.add_argument("--preset", default="published", choices=["published", "tiny"])
    parser.add_argument("--image_size", type=int, help="px; default: the published, 352 and 416")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved measurements of each way; medians count")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="on a CPU; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the numbers there")
    return parser.parse_args(arguments)


def groups(architecture: str, size: int, options: argparse.Namespace, device: torch.device) -> Iterable[list[Way]]:
    """Yield ways to compare with one another: inference, then training; one group is made after the other, to save memory."""
    torch.manual_seed(options.seed)
    sizes = {"dropout": 0.0} if architecture == "cris" else {}  # so that losses can be compared
    network = create_segmenter(architecture, options.preset, **sizes).to(device).eval()
    image = torch.randn(1, 3, size, size).to(device)
    mask = (torch.randn(1, 3, size, size) > 0).float().to(device)
    texts = [prompt.text for prompt in structure_prompts("P6", ATTRIBUTES)]
    input_ids = PromptTokenizer()(texts)[None]  # (1, 3, 77)
    pairs = published_pairs(architecture, network, options.preset)
    yield inference_ways(network, pairs, image, input_ids)
    yield training_ways(architecture, network, pairs, image, mask, input_ids)


def published_pairs(architecture: str, network: nn.Module, preset: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the network as published, with the same weights: (images (N, 3, H, W), ids (N, L)) -> logits (N, 1, H, W)."""
    if architecture == "cris":

        def cris(images: Tensor, input_ids: Tensor) -> Tensor:
            ids = input_ids.to(images.device)
            words, state = network.backbone.encode_text(ids)  # at full length, each prompt separately
            with mock.patch("synboost_monai.networks.cris._MIN_CHANNELS_TO_FACTOR", sys.maxsize):
                return network(images, None, (words, state, ids == 0))  # maps doubled before their channels are mixed

        return cris
    from transformers import CLIPSegForImageSegmentation

    theirs = CLIPSegForImageSegmentation(network.config).to(next(network.parameters()).device).eval()
    theirs.load_state_dict(network.state_dict())

    def clipseg(images: Tensor, input_ids: Tensor) -> Tensor:
        theirs.train(network.training)
        logits = theirs(pixel_values=images, input_ids=input_ids.to(images.device)).logits
        return logits.reshape(len(images), 1, *images.shape[2:])

    clipseg.parameters = list(theirs.decoder.parameters())  # type: ignore[attr-defined]
    clipseg.encoders = list(theirs.clip.parameters())  # type: ignore[attr-defined]
    return clipseg


def inference_ways(
    network: nn.Module, pairs: Callable[[Tensor, Tensor], Tensor], image: Tensor, input_ids: Tensor
) -> list[Way]:
    images, ids = image.expand(3, -1, -1, -1).contiguous(), input_ids[0]
    half = to_inference(copy.deepcopy(network), image.device, "bfloat16")
    plain = PromptedSegmentationInferer(cache_text=False)
    cached, cached_half = PromptedSegmentationInferer(), PromptedSegmentationInferer()

    def without_gradient(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return torch.inference_mode()(function)

    def alone(number: int) -> Tensor:
        return pairs(image, ids[number : number + 1])

    return [
        Way("pairs", "pairs", without_gradient(lambda: pairs(images, ids).transpose(0, 1))),
        Way(
            f"pairs{ONE_BY_ONE}",
            "pairs",
            without_gradient(lambda: torch.cat([alone(i) for i in range(3)], dim=1)),
        ),
        Way("image once", "pairs", without_gradient(lambda: plain(image, network, input_ids))),
        Way("image and text once", "pairs", without_gradient(lambda: cached(image, network, input_ids))),
        Way("the same, bfloat16", "pairs", without_gradient(lambda: cached_half(image, half, input_ids))),
    ]


def training_ways(
    architecture: str,
    network: nn.Module,
    pairs: Callable[[Tensor, Tensor], Tensor],
    image: Tensor,
    mask: Tensor,
    input_ids: Tensor,
) -> list[Way]:
    images, ids, masks = image.expand(3, -1, -1, -1).contiguous(), input_ids[0], mask.transpose(0, 1)
    loss_function = PromptDiceCELoss()
    network.train()
    with torch.no_grad():
        network.eval()
        features, text = network.encode_image(image), network.encode_prompts(ids)
        network.train()
    features_half = tuple(f.to(torch.bfloat16) for f in features)
    of_encoders = {id(p) for encoder in network.encoders for p in encoder.parameters()}
    learning = [p for p in network.parameters() if p.requires_grad]
    decoder = [p for p in learning if id(p) not in of_encoders]

    def step(parameters: list[nn.Parameter], *parts: tuple[Callable[[], Tensor], Tensor]) -> Callable[[], Tensor]:
        """Return a training step of parts, each logits and masks, whose gradients add up."""
        # with a rate of 0 it is as much work as any, and the weights stay comparable
        optimizer = torch.optim.AdamW(parameters, lr=0.0, fused=True)

        def run() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            losses = []
            for forward, target in parts:
                loss = loss_function(forward(), target) / len(parts)
                loss.backward()
                losses.append(loss.detach())
            optimizer.step()
            return torch.stack(losses).sum()

        return run

    def mixed(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return torch.autocast(image.device.type, dtype=torch.bfloat16)(function)

    def with_encoder_gradients(images: Tensor, ids: Tensor) -> Tensor:
        """Run transformers' CLIPSeg without its no_grad around the encoders, to measure what training by pairs would cost."""
        with mock.patch("torch.no_grad", contextlib.nullcontext):
            return pairs(images, ids)

    def references(name: str, parameters: list[nn.Parameter], forward: Callable[[Tensor, Tensor], Tensor]) -> list[Way]:
        """Return the pairs as one batch, and one by one, which CRIS cannot do: its text's batch norm needs several."""
        ways = [Way(name, name, step(parameters, (lambda: forward(images, ids), masks)))]
        if architecture == "clipseg":
            parts = [(lambda i=i: forward(image, ids[i : i + 1]), masks[i : i + 1]) for i in range(3)]  # type: ignore[misc]
            ways.append(Way(f"{name}{ONE_BY_ONE}", name, step(parameters, *parts)))
        return ways

    learn, frozen = "pairs, all learn", "pairs, frozen"
    if architecture == "clipseg":  # transformers' encoders always run without gradients
        of_decoder, of_all = pairs.parameters, [*pairs.parameters, *pairs.encoders]  # type: ignore[attr-defined]
        ways = references(frozen, of_decoder, pairs) + references(learn, of_all, with_encoder_gradients)
    else:
        ways, frozen = references(learn, learning, pairs), learn
    shared = lambda: network(image, input_ids)  # noqa: E731
    ways.append(Way("image once, all learn", learn, step(learning, (shared, mask))))
    ways.append(Way("the same, bfloat16 autocast", learn, step(learning, (mixed(shared), mask))))
    # features of an encoder in evaluation mode: because of its batch norms, CRIS's differ from those in training mode
    same = architecture == "clipseg"
    cached = lambda: network(features, None, text)  # noqa: E731
    half = mixed(lambda: network(features_half, None, text))
    ways.append(Way("kept features", frozen, step(decoder, (cached, mask)), check=same))
    ways.append(Way("kept features, bfloat16", frozen, step(decoder, (half, mask)), check=same))
    return ways


def measure(ways: list[Way], repeats: int, device: torch.device) -> None:
    """Run everything once to fill caches; then measure FLOP and memory, then seconds, one way after another, repeatedly."""
    for way in ways:
        way.call()
        before = reset_peak(device)
        with FlopCounterMode(display=False) as counter:
            way.output = way.call().float()
        way.flop, way.peak_bytes = counter.get_total_flops(), peak(device) - before
    for repeat in range(repeats):
        for way in ways:
            way.seconds.append(timed(way.call, device)[0])
        print(f"  measured: {repeat + 1} of {repeats}", file=sys.stderr)


def result(way: Way, ways: list[Way]) -> dict[str, Any]:
    """Return the numbers of a way; ratios are the median over the rounds, each to the reference of the same round."""
    reference = next(other for other in ways if other.name == way.compare_to)
    one_by_one = next((other for other in ways if other.name == way.compare_to + ONE_BY_ONE), None)
    assert way.output is not None and reference.output is not None
    error = float((way.output - reference.output).abs().max() / reference.output.abs().max())
    return {
        "name": way.name,
        "compared_to": way.compare_to,
        "flop": way.flop,
        "flop_ratio": reference.flop / way.flop,
        "seconds": statistics.median(way.seconds),
        "seconds_all": way.seconds,
        "speed_ratio": speed_ratio(reference, way),
        "speed_ratio_one_by_one": None if one_by_one is None else speed_ratio(one_by_one, way),
        "peak_gb": way.peak_bytes / 1e9,
        "error": error if way.check else None,
    }


def speed_ratio(reference: Way, way: Way) -> float:
    return statistics.median(theirs / ours for theirs, ours in zip(reference.seconds, way.seconds))


def table(ways: list[Way]) -> str:
    """Return one line per way; faster: than the pairs as one batch, and one by one; error: largest difference over largest value."""
    rows = [
        f"{'way':<30}{'GFLOP':>9}{'less':>8}{'seconds':>10}{'faster':>9}{'(1 by 1)':>10}{'peak GB':>9}{'error':>10}"
    ]
    for way in ways:
        numbers = result(way, ways)
        error = "" if numbers["error"] is None else f"{numbers['error']:.1e}"
        one_by_one = "" if numbers["speed_ratio_one_by_one"] is None else f"{numbers['speed_ratio_one_by_one']:.2f}"
        rows.append(
            f"{way.name:<30}{way.flop / 1e9:>9.1f}{numbers['flop_ratio']:>8.2f}{numbers['seconds']:>10.3f}"
            f"{numbers['speed_ratio']:>9.2f}{one_by_one:>10}{numbers['peak_gb']:>9.2f}{error:>10}"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
