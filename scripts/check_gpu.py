#!/usr/bin/env python
"""Check that everything runs on this machine's GPU with the CPU's numbers, and measure how fast, within eight minutes.

    bash scripts/check_gpu.sh                                                   all lines, networks of the published size
    python scripts/check_gpu.py --only equality,training                        some of them
    python scripts/check_gpu.py --device cpu --preset tiny --minutes 3          what a machine without a GPU can do

Needs no data and no network: weights are random or those that ship, images are noise or phantoms. Each line runs in a process of its own
and has its own time; one that fails, hangs or breaks the GPU's state is written down with its reason, and the next begins. The JSON file
is replaced after each line, so that a run that is cut off leaves what it has measured. Ends with code 1 if a line failed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import io
import json
import math
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import benchmark_synthesis
import torch
from measuring import device_name, facts_of_run, peak, reset_peak, timed
from torch import Tensor, nn

from synboost_monai.diffusion import SamplerOptions
from synboost_monai.files import atomic_write_text
from synboost_monai.inferers import SemanticDiffusionInferer
from synboost_monai.inferers.compiled import CompiledDenoiser
from synboost_monai.model_card import PUBLISHED_FACTS
from synboost_monai.networks import create_segmenter, to_inference
from synboost_monai.networks.semantic_diffusion_unet import (
    AttentionBlock,
    ResBlock,
    SemanticDiffusionUNet,
    SPADEResBlock,
)
from synboost_monai.prompts import PromptTokenizer
from synboost_monai.structures import STRUCTURES
from synboost_monai.training.losses import PromptDiceCELoss

NETWORKS = ("cris", "clipseg", "semantic_diffusion")
LIMITS = {"float32": 1e-4, "tf32": 5e-3, "bfloat16": 1e-1, "float16": 2e-2}
"""Largest difference from the CPU's float32 that a precision may make, as a share of the largest output."""
EVALUATIONS = 25
"""Evaluations of the network for one image, as the bundle draws it."""
REPEATS = 3
"""Measurements of each time; the median counts."""


@dataclass
class Row:
    """Hold one thing that a line found out."""

    what: str
    numbers: dict[str, float | int | str] = field(default_factory=dict)
    is_right: bool = True
    """False if a number is not what it has to be."""

    def __str__(self) -> str:
        shown = (
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.numbers.items()
        )
        return f"{'  ' if self.is_right else '! '}{self.what}: {', '.join(shown)}"


@dataclass
class Line:
    """Hold the result of one line."""

    name: str
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    error: str = ""

    @property
    def is_right(self) -> bool:
        return not self.error and all(row.is_right for row in self.rows)


Check = Callable[[argparse.Namespace], Iterator[Row]]


# ---- lines


def equality(options: argparse.Namespace) -> Iterator[Row]:
    """Compare each network's output in each precision with the CPU's in float32."""
    for name in NETWORKS:
        network, inputs = network_of(name, options)
        with torch.inference_mode():
            expected = network(*inputs)
        on_device = copy.deepcopy(network).to(options.device)
        there = tuple(t.to(options.device) for t in inputs)
        for precision in precisions(options):
            with torch.inference_mode(), computing_in(precision, options.device):
                found = on_device(*there).float().cpu()
            difference = float((found - expected).abs().max() / expected.abs().max())
            yield Row(
                f"{name}, {precision}",
                {"difference": difference, "limit": LIMITS[precision]},
                difference <= LIMITS[precision],
            )


def compile_(options: argparse.Namespace) -> Iterator[Row]:
    """Compare generated code with eager evaluation of the diffusion network: whole (on a GPU as a CUDA graph), and block by block."""
    network, (x, t, label_onehot) = on_device(*network_of("semantic_diffusion", options), options)
    half = to_inference(network, options.device, "bfloat16")
    assert isinstance(half, SemanticDiffusionUNet)
    number = 2 if options.preset == "tiny" else 8
    x, label_onehot = (part.expand(number, -1, -1, -1).contiguous() for part in (x, label_onehot))
    backend = None if options.device.type == "cuda" else "aot_eager"  # a CPU's generated code wants a compiler
    with torch.inference_mode():
        modulations = half.condition(label_onehot)
    expected: list[Tensor] = []

    def row(what: str, evaluate: Callable[[], Tensor]) -> Row:
        with torch.inference_mode():
            first, output = timed(evaluate, options.device)
            seconds = statistics.median(timed(evaluate, options.device)[0] for _ in range(REPEATS))
        expected.append(output.float())
        difference = float((expected[-1] - expected[0]).abs().max() / expected[0].abs().max())
        numbers = {"images": number, "first_seconds": first, "milliseconds": 1000 * seconds, "difference": difference}
        numbers["images_per_second"] = number / seconds / EVALUATIONS
        return Row(what, numbers, difference <= LIMITS["bfloat16"])

    yield row("eager, bfloat16", lambda: half.decode(half.encode(x, t), modulations))
    with torch.inference_mode():
        whole = CompiledDenoiser(half, backend).with_modulations(modulations)  # copies them, once for an image
    yield row("whole", lambda: whole(x, t, None))
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64  # one for each shape of a block
    for module in half.modules():
        if isinstance(module, (ResBlock, SPADEResBlock, AttentionBlock)):
            module.compile(dynamic=False, **({"backend": backend} if backend else {}))
    yield row("by repeated blocks", lambda: half.decode(half.encode(x, t), modulations))


def synthesis(options: argparse.Namespace) -> Iterator[Row]:
    """Measure images a second of the diffusion model in bfloat16, by images at once, with and without guidance, beside the floor."""
    network, (_, _, label_onehot) = on_device(*network_of("semantic_diffusion", options), options)
    half = to_inference(network, options.device, "bfloat16")
    assert isinstance(half, SemanticDiffusionUNet)
    name = device_name(options.device)
    flops = next((rate for word, rate in benchmark_synthesis.PEAK_FLOPS.items() if word in name), None)
    if flops:
        one = benchmark_synthesis.Way("", EVALUATIONS, *parts_of(half, label_onehot))
        benchmark_synthesis.count_flop(one)
        yield Row("floor", {"images_per_second": flops / one.image_flop(), "tflop_an_image": one.image_flop() / 1e12})
    for at_once in (2,) if options.preset == "tiny" else (1, 4, 16):
        maps = label_onehot.expand(at_once, -1, -1, -1).contiguous()
        for guidance_scale in (1.0, 1.5):
            yield drawn(half, maps, guidance_scale, options)


def parts_of(network: SemanticDiffusionUNet, label_onehot: Tensor) -> tuple[Callable[[], Any], Callable[[Any], Tensor]]:
    """Return what is computed once for an image, and what in each evaluation."""
    x = label_onehot.new_zeros(1, network.in_channels, *label_onehot.shape[2:])
    t = torch.zeros(1, device=x.device)
    return lambda: network.condition(label_onehot), lambda m: network.decode(network.encode(x, t), m)


def drawn(network: SemanticDiffusionUNet, maps: Tensor, guidance_scale: float, options: argparse.Namespace) -> Row:
    """Measure how fast images of label maps are drawn together."""
    sampler = SamplerOptions(num_inference_steps=options.evaluations)
    inferer = SemanticDiffusionInferer(sampler, guidance_scale, network.in_channels, images_at_once=len(maps))
    draw = lambda: inferer(maps, network, torch.arange(len(maps)))  # noqa: E731
    before = reset_peak(options.device)
    draw()
    seconds = statistics.median(timed(draw, options.device)[0] for _ in range(REPEATS))
    numbers = {"images_per_second": len(maps) / seconds * options.evaluations / EVALUATIONS}
    numbers["peak_gb"] = (peak(options.device) - before) / 1e9
    return Row(f"{len(maps)} at once, guidance {guidance_scale:g}", numbers)


def training(options: argparse.Namespace) -> Iterator[Row]:
    """Measure a training step of each network: forward, loss, backward and AdamW."""
    for name in NETWORKS:
        for mode in ("float32", "bfloat16"):
            yield trained(name, mode, False, options)
    yield trained("semantic_diffusion", "bfloat16", True, options)


def trained(name: str, mode: str, checkpoints: bool, options: argparse.Namespace) -> Row:
    """Measure some training steps of one network; the batch is that of its published recipe, four images for the diffusion model."""
    network, inputs = on_device(*network_of(name, options), options)
    network.train().requires_grad_(True)
    is_diffusion = name == "semantic_diffusion"
    if is_diffusion:
        network.gradient_checkpointing = checkpoints
    number = 2 if options.preset == "tiny" else 4 if is_diffusion else 11
    inputs = tuple(part.expand(number, *part.shape[1:]).contiguous() for part in inputs)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(options.device.type, torch.bfloat16, enabled=mode == "bfloat16"):
            output = network(*inputs)
        output = output.float()
        loss = output.square().mean() if is_diffusion else PromptDiceCELoss()(output, (output.detach() > 0).float())
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    before = reset_peak(options.device)
    step()
    times, losses = zip(*(timed(step, options.device) for _ in range(REPEATS)))
    numbers = {"images": number, "milliseconds": 1000 * statistics.median(times), "loss": losses[-1]}
    numbers["peak_gb"] = (peak(options.device) - before) / 1e9
    what = f"{name}, {mode}{', gradient checkpointing' if checkpoints else ''}"
    return Row(what, numbers, all(math.isfinite(loss) for loss in losses))


def torchrun(options: argparse.Namespace) -> Iterator[Row]:
    """Train CRIS for an epoch by torchrun with one process, which is NCCL's on a GPU."""
    from synboost_monai.data.prepare import prepare_dataset
    from synboost_monai.simulation import write_phantom

    with tempfile.TemporaryDirectory() as folder:
        write_phantom(Path(folder) / "phantom", num_patients=4, image_height=64, num_frames=2, progress=False)
        prepare_dataset(Path(folder) / "phantom", Path(folder) / "data", progress=False)
        backend = "nccl" if options.device.type == "cuda" else "gloo"
        words = [sys.executable, *"-m torch.distributed.run --standalone --nproc_per_node=1 -m synboost_monai".split()]
        words += "run echo_cris multi_gpu_train --preset tiny --image_size 32 --max_epochs 1 --batch_size 4".split()
        words += ["--dataset_dir", f"{folder}/data", "--output_dir", f"{folder}/run", "--backend", backend]
        words += [] if backend == "nccl" else ["--device", "cpu"]
        started = time.perf_counter()
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        numbers = {"seconds": time.perf_counter() - started, "backend": backend}
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("synboost ")]
            raise RuntimeError(
                f"torchrun ended with code {done.returncode}: {said[-1] if said else done.stderr[-500:]}"
            )
        yield Row("an epoch of the tiny CRIS", numbers, (Path(folder) / "run/model.pt").is_file())


def hospital(options: argparse.Namespace) -> Iterator[Row]:
    """Segment two phantom studies with the weights that ship, on this device and on the CPU, and compare the measures."""
    from synboost_monai.hospital.batch import ALL_DONE, run_dicom
    from synboost_monai.hospital.options import BatchOptions
    from synboost_monai.hospital.phantom_studies import write_phantom_studies

    with tempfile.TemporaryDirectory() as folder:
        studies = write_phantom_studies(Path(folder) / "in", num_studies=2, image_height=160, num_frames=24)
        measured: list[dict[tuple[str, ...], float]] = []
        for device in dict.fromkeys((str(options.device), "cpu")):
            out = Path(folder) / device.replace(":", "_")
            started = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                code = run_dicom(studies, out, BatchOptions(), overrides={"device": device}, progress=False)
            seconds = time.perf_counter() - started
            with open(out / "measurements.csv", encoding="utf-8", newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["value"]]
            kept = [
                row for row in rows if row["measure"] != "ejection_fraction_sd"
            ]  # a small difference of large numbers
            keys = ("study", "measure", "method", "beat")
            measured.append({tuple(row[key] for key in keys): float(row["value"]) for row in kept})
            yield Row(
                f"two studies on {device}", {"seconds": seconds, "measures": len(rows)}, code == ALL_DONE and bool(rows)
            )
        if len(measured) == 2:
            here, cpu = measured
            away = max(abs(here.get(key, math.inf) / value - 1) for key, value in cpu.items() if value)
            yield Row("largest difference of a measure", {"share": away, "limit": 0.05}, away <= 0.05)


def onnx(options: argparse.Namespace) -> Iterator[Row]:
    """Run the CRIS that ships by ONNX Runtime, with CUDA where it is there, and compare it with the same on the CPU."""
    import onnxruntime

    from synboost_monai.serving.export import export_bundle

    with tempfile.TemporaryDirectory() as folder:
        path, difference = export_bundle("echo_cris", Path(folder) / "echo_cris.onnx")
        assert difference is not None
        yield Row("export, on the CPU", {"difference": difference.relative})
        wanted = ["CUDAExecutionProvider"] if options.device.type == "cuda" else []
        session, reference = (
            onnxruntime.InferenceSession(str(path), providers=[*providers, "CPUExecutionProvider"])
            for providers in (wanted, [])
        )
        size = session.get_inputs()[0].shape[-1]
        words = [structure.prompt_words for structure in STRUCTURES]
        feed = {"image": torch.randn(1, 3, size, size).numpy(), "input_ids": PromptTokenizer()(words)[None].numpy()}
        found, expected = session.run(None, feed)[0], reference.run(None, feed)[0]
        away = float(abs(found - expected).max() / abs(expected).max())
        seconds = statistics.median(timed(lambda: session.run(None, feed), torch.device("cpu"))[0] for _ in range(10))
        numbers = {"provider": session.get_providers()[0], "milliseconds": 1000 * seconds, "difference": away}
        yield Row("an image, three structures", numbers, away <= LIMITS["tf32"])


CHECKS: dict[str, tuple[Check, float]] = {
    "equality": (equality, 90),
    "compile": (compile_, 180),
    "synthesis": (synthesis, 120),
    "training": (training, 120),
    "torchrun": (torchrun, 90),
    "hospital": (hospital, 90),
    "onnx": (onnx, 60),
}
"""Name of a line -> what it does, and the seconds that it may take."""


# ---- what the lines share


def network_of(name: str, options: argparse.Namespace) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a network of random weights in evaluation mode and inputs for one image, on the CPU."""
    torch.manual_seed(0)
    size = 32 if options.preset == "tiny" else int(PUBLISHED_FACTS[name]["image_size"])
    if name == "semantic_diffusion":
        arguments = argparse.Namespace(preset=options.preset, image_size=size, base_channels=None)
        network: nn.Module = benchmark_synthesis.seeded_network(arguments)
        label_map = torch.randint(0, 5, (1, size // 8, size // 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
        label_onehot = nn.functional.one_hot(label_map, 5).permute(0, 3, 1, 2).float()
        assert isinstance(network, SemanticDiffusionUNet)
        return network, (torch.randn(1, network.in_channels, size, size), torch.tensor([300]), label_onehot)
    return create_segmenter(name, options.preset).eval().requires_grad_(False), (torch.randn(1, 3, size, size),)


def on_device(
    network: nn.Module, inputs: tuple[Tensor, ...], options: argparse.Namespace
) -> tuple[Any, tuple[Tensor, ...]]:
    return network.to(options.device), tuple(t.to(options.device) for t in inputs)


def precisions(options: argparse.Namespace) -> list[str]:
    """Return the precisions that the device knows."""
    return list(LIMITS) if options.device.type == "cuda" else ["float32", "bfloat16"]


def computing_in(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which a precision is computed; for float32 and tf32 it is set for the process."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    return torch.autocast(device.type, dtypes.get(precision, torch.bfloat16), enabled=precision in dtypes)


# ---- the run


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    end = time.monotonic() + 60 * options.minutes
    record = facts_of_run("check_gpu.py", arguments)  # the GPU is not touched here: each line has a process of its own
    lines = []
    for name in options.only:
        print(name, flush=True)
        check, seconds = CHECKS[name]
        line = run_line(name, check, options, min(seconds, end - time.monotonic()))
        print(f"  {line.seconds:.0f} seconds" + (f"; FAILED: {line.error}" if line.error else ""), flush=True)
        lines.append({**asdict(line), "is_right": line.is_right})
        atomic_write_text(options.output, json.dumps({**record, "lines": lines}, indent=1) + "\n")
    failed = [line["name"] for line in lines if not line["is_right"]]
    print(
        f"{len(lines) - len(failed)} of {len(lines)} lines are right"
        + (f"; not: {', '.join(failed)}" if failed else "")
    )
    print(f"numbers: {options.output}")
    return int(bool(failed))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--preset", default="published", choices=("published", "tiny"))
    parser.add_argument(
        "--evaluations",
        type=int,
        default=10,
        help=f"of the network, of those {EVALUATIONS} that an image takes",
    )
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(CHECKS), help=", ".join(CHECKS))
    parser.add_argument("--minutes", type=float, default=8, help="lines that do not fit any more are left out")
    parser.add_argument("--output", type=Path, default=Path("check_gpu.json"))
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.only if name not in CHECKS]:
        parser.error(f"no line is called {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    return options


def run_line(name: str, check: Check, options: argparse.Namespace, seconds: float) -> Line:
    """Run one line in a process of its own, which is killed when its time is over.

    The process is a fork, so that it has the libraries; this one never touches the GPU, which a fork could not use then.
    """
    line = Line(name)
    if seconds <= 0:
        line.error = "no time was left for it; give more --minutes, or name it in --only"
        return line
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(check, options, sender), daemon=False)
    started = time.monotonic()
    process.start()
    sender.close()
    try:
        while True:
            if not receiver.poll(max(0.0, started + seconds - time.monotonic())):
                line.error = f"it took longer than {seconds:.0f} seconds"
                break
            message = receiver.recv()
            if not isinstance(message, Row):
                line.error = message
                break
            line.rows.append(message)
            print(message, flush=True)
    except EOFError:
        process.join()
        line.error = f"its process ended with code {process.exitcode}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has started must not hold the GPU
        process.kill()
        process.join()
    line.seconds = time.monotonic() - started
    return line


def _work(check: Check, options: argparse.Namespace, sender: Connection) -> None:
    """Send the rows of a line, and at the end "" or the error."""
    os.setsid()
    try:
        if options.device.type == "cuda":
            torch.cuda.set_device(options.device)
        for row in check(options):
            sender.send(row)
        sender.send("")
    except BaseException as error:
        traceback.print_exc()
        sender.send(f"{type(error).__name__}: {error}"[:2000])
    sys.stdout.flush()
    os._exit(0)  # what a broken GPU's libraries do at the end of a process is of no interest


if __name__ == "__main__":
    raise SystemExit(main())
