#!/usr/bin/env python
"""Measure the cost of the hospital batch beside its network: header scan, a clip's overhead, memory over a clip's length; as JSON.

    python scripts/benchmark_dicom.py --checkpoint_path model.pt --preset small --image_size 160 [--clip FILE.dcm] [--output benchmark.json]

Without a checkpoint the network has random weights, which take as long. Without a clip the script makes one: 120 frames of 480 x 640 in
JPEG.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (480, 640)
"""Rows and columns of the clip that the script makes."""
NUM_WARM_UP_FRAMES = 12
"""Frames of a clip that is run once before anything is measured."""


def make_clip(path: Path, num_frames: int, seed: int = 0, shape: tuple[int, int] = SHAPE) -> None:
    """Write a clip of moving speckle in a sector, as baseline JPEG in colour, like most scanners."""
    import io

    import pydicom
    from PIL import Image
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    from synboost_monai.dicom.writing.clip import write_clip
    from synboost_monai.records import EchoRecord

    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    is_inside = np.abs(columns - shape[1] / 2) < 0.7 * rows
    speckle = generator.rayleigh(40, shape)
    one = np.zeros((1, *shape), np.uint8)
    record = EchoRecord(path, None, "benchmark", "apical_four_chamber")
    write_clip(record, one, (0.4, 0.4), study=str(seed), frame_time_ms=33)
    dataset = pydicom.dcmread(path)
    frames = []
    for i in range(num_frames):
        frame = np.zeros((dataset.Rows, dataset.Columns), np.uint8)
        beat = 1 + 0.3 * np.cos(2 * np.pi * i / 30)
        inner = np.where(is_inside, np.roll(speckle, i % 7, axis=0) * beat, 0).clip(0, 255).astype(np.uint8)
        frame[24 : 24 + shape[0], 16 : 16 + shape[1]] = inner
        buffer = io.BytesIO()
        Image.fromarray(np.repeat(frame[..., None], 3, axis=-1)).save(buffer, format="JPEG", quality=85)
        frames.append(buffer.getvalue())
    dataset.NumberOfFrames, dataset.SamplesPerPixel, dataset.PlanarConfiguration = num_frames, 3, 0
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)


def scan_speed(folder: Path, num_files: int) -> dict[str, Any]:
    """Measure files per second of the header scan, the best of three; every file belongs to another patient."""
    from synboost_monai.dicom.reading.scan import mark_duplicates, scan
    from synboost_monai.dicom.writing.clip import write_clip
    from synboost_monai.records import EchoRecord

    frames = np.random.default_rng(0).integers(0, 255, (1, 32, 32), dtype=np.uint8)
    for number in range(num_files):
        path = folder / f"{number % 50:02d}" / f"{number}.dcm"
        record = EchoRecord(path, None, f"p{number}", "apical_four_chamber")
        write_clip(record, frames, (1.0, 1.0), study="s", frame_time_ms=33)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        found = mark_duplicates(list(scan(folder)))
        seconds.append(time.perf_counter() - start)
        assert len(found) == num_files and all(file.reason is None for file in found)
    return {"num_files": num_files, "files_per_second": round(num_files / min(seconds))}


def clip_overhead(path: Path, arguments: argparse.Namespace, frames: str, repeats: int) -> dict[str, Any]:
    """Measure the seconds of a clip in the whole batch, without the start of Python, and in its network; medians."""
    from synboost_monai.dicom.reading.scan import scan
    from synboost_monai.hospital.engines import LocalEngine
    from synboost_monai.hospital.study import StudyOptions

    walls, networks = [], []
    with tempfile.TemporaryDirectory() as folder:
        options = StudyOptions(frames=frames)
        with LocalEngine(model_of(arguments), options, 1) as engine:
            make_clip(Path(folder) / "short.dcm", NUM_WARM_UP_FRAMES)
            list(
                engine.run([list(scan(Path(folder) / "short.dcm"))], Path(folder))
            )  # once, for everything that is made on first use
            (file,) = scan(path)
            for _ in range(repeats):
                before, start = network_seconds(engine.model), time.perf_counter()
                ((result,),) = engine.run([[file]], Path(folder))
                walls.append(time.perf_counter() - start)
                networks.append(network_seconds(engine.model) - before)
                assert result.outputs, result.sentence
    wall, network = float(np.median(walls)), float(np.median(networks))
    return {
        "frames": frames,
        "num_frames": file.frames,
        "wall_seconds": round(wall, 3),
        "network_seconds": round(network, 3),
        "overhead_percent": round(100 * (wall - network) / network, 1),
    }


def network_seconds(model: Any) -> float:
    """Return the seconds that a segmenter's networks have taken so far."""
    return float(model.network_seconds + (0.0 if model.scout is None else model.scout.network_seconds))


def memory_over_length(folder: Path, arguments: argparse.Namespace, lengths: list[int]) -> list[dict[str, Any]]:
    """Measure the peak resident memory of processes that segment clips of several lengths, in MB: the batch itself, and its reader."""
    found = []
    for num_frames in lengths:
        path = folder / f"clip{num_frames}.dcm"
        make_clip(path, num_frames, shape=(240, 320))
        command = [
            sys.executable,
            __file__,
            "--only_memory",
            str(path),
            "--bundle",
            arguments.bundle,
            "--preset",
            arguments.preset,
        ]
        command += ["--image_size", str(arguments.image_size), "--dtype", arguments.dtype]
        command += ["--checkpoint_path", arguments.checkpoint_path]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append({"num_frames": num_frames, **json.loads(done.stdout.splitlines()[-1])})
    return found


def only_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the peak memory of this process and of its reader after one clip, with every frame written."""
    import resource

    from synboost_monai.dicom.reading.scan import scan
    from synboost_monai.hospital.engines import LocalEngine
    from synboost_monai.hospital.study import StudyOptions

    with tempfile.TemporaryDirectory() as folder:
        options = StudyOptions(frames="all")
        with LocalEngine(model_of(arguments), options, 1) as engine:
            list(engine.run([list(scan(arguments.only_memory))], Path(folder)))
    usage = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"batch_mb": round(usage[0]), "reader_mb": round(usage[1])}


def model_of(arguments: argparse.Namespace) -> Any:
    from synboost_monai.hospital.model import EchoSegmenter

    overrides = {key: getattr(arguments, key) for key in ("preset", "image_size", "dtype")}
    return EchoSegmenter(arguments.bundle, arguments.checkpoint_path, overrides, arguments.scout)


def random_weights(arguments: argparse.Namespace, folder: Path) -> str:
    """Write a model.pt of random weights."""
    import torch

    from synboost_monai.networks import create_segmenter

    torch.manual_seed(0)
    path = folder / "model.pt"
    torch.save(
        create_segmenter(architecture=arguments.bundle.removeprefix("echo_"), preset=arguments.preset).state_dict(),
        path,
    )
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="echo_cris")
    parser.add_argument("--checkpoint_path", help="weights; random ones by default")
    parser.add_argument(
        "--scout", help="weights that look for the beats, or shipped; by default the network itself does"
    )
    parser.add_argument("--preset", default="small")
    parser.add_argument("--image_size", type=int, default=160)
    parser.add_argument("--dtype", default="float32", help="bfloat16: about twice as fast")
    parser.add_argument("--clip", help="a DICOM clip; one is made by default")
    parser.add_argument("--num_frames", type=int, default=120, help="of the clip that is made")
    parser.add_argument("--frames", nargs="+", default=["ed-es", "all"], help="what is written of the clip")
    parser.add_argument("--num_files", type=int, default=2000, help="of the header scan")
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 500, 2000], help="of clips for the memory")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", help="a JSON file; printed in any case")
    parser.add_argument("--only_memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only_memory:
        print(json.dumps(only_memory(arguments)))
        return
    from measuring import facts_of_run

    folder = Path(tempfile.mkdtemp())
    try:
        arguments.checkpoint_path = arguments.checkpoint_path or random_weights(arguments, folder)
        clip = Path(arguments.clip) if arguments.clip else folder / "clip.dcm"
        if not arguments.clip:
            make_clip(clip, arguments.num_frames)
        found = {
            **facts_of_run("benchmark_dicom.py"),
            "network": f"{arguments.bundle} {arguments.preset} {arguments.image_size} px {arguments.dtype}",
            "scan": scan_speed(folder / "scan", arguments.num_files),
            "clip": [clip_overhead(clip, arguments, frames, arguments.repeats) for frames in arguments.frames],
            "memory": memory_over_length(folder, arguments, arguments.lengths),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.output:
        from synboost_monai.files import atomic_write_text

        atomic_write_text(arguments.output, text + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
