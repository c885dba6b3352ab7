#!/usr/bin/env python
"""A real MONAI Label server with both segmenters, checked against `monai.bundle run` on the same images, without a network.

    .venv_label/bin/python scripts/check_label.py [--work_dir DIR] [--epochs 12] [--image_size 64]

From the environment that scripts/setup_label.sh makes; a few minutes on two cores. Phantom images as 2-D NIfTI, NIfTI of one slice,
PNG and ultrasound DICOM; tiny networks trained for a few epochs. Where the system lets it, everything runs in a network namespace that
has the loopback device alone; always every Python process refuses and writes down any connection that leaves the machine. Prints a
table; code 0 if every line holds, 1 otherwise. --work_dir keeps what was made; else it is deleted.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = ("echo_cris", "echo_clipseg")
KINDS = {"nifti_2d": ".nii.gz", "nifti_slice": ".nii.gz", "png": ".png", "dicom": ".dcm"}
"""Name of an image -> its suffix."""
PROMPT, PROMPT_CLASS = "left atrium", 3
LEARNING = {
    "learning_rate": 1e-2,
    "encoder_learning_rate_scale": 1.0,
    "layer_decay": 1.0,
    "weight_decay": 0.0,
    "warm_up_steps": 5,
    "ema_decay": 0.0,
    "augment": False,
}
"""Of tiny networks, which then find something after some fifty steps."""
AGREEMENT = 0.999
"""Share of pixels that must agree."""
ISOLATED = "SYNBOOST_CHECK_ISOLATED"
"""Environment variable: this process runs in a network namespace of its own."""

GUARD = '''"""Refuses and writes down connections that leave the machine."""
import os, sys

def _guard(event, arguments, log_path={log_path!r}):
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost", "::1", "0.0.0.0") or str(host).startswith("127."):
        return
    with open(log_path, "a") as file:
        file.write(f"{{event}} {{host}} {{' '.join(sys.argv)}}\\n")
    raise OSError(f"check_label.py: {{event}} to {{host}} was refused")

sys.addaudithook(_guard)
'''


class Table:
    """Lines of what was checked."""

    def __init__(self) -> None:
        self.num_failed = 0

    def add(self, name: str, is_right: bool, found: str) -> None:
        self.num_failed += not is_right
        print(f"{'ok  ' if is_right else 'FAIL'}  {name:<46} {found}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--image_size", type=int, default=64)
    options = parser.parse_args()
    isolate()
    with tempfile.TemporaryDirectory() as temporary:
        work_dir = (options.work_dir or Path(temporary)).resolve()
        work_dir.mkdir(parents=True, exist_ok=True)
        log_path = work_dir / "connections.txt"
        log_path.write_text("", encoding="utf-8")
        guard_dir = work_dir / "guard"
        guard_dir.mkdir(exist_ok=True)
        (guard_dir / "sitecustomize.py").write_text(GUARD.format(log_path=str(log_path)), encoding="utf-8")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(guard_dir), os.environ.get("PYTHONPATH")]))
        exec(compile(GUARD.format(log_path=str(log_path)), "guard", "exec"), {})
        return check(work_dir, log_path, options.epochs, options.image_size)


def isolate() -> None:
    """Start again in a network namespace that has loopback alone, where the system lets one."""
    unshare = ["unshare", "--user", "--map-root-user", "--net"]
    if os.environ.get(ISOLATED) == "1":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:  # `ip link set lo up`
            set_flags, is_up_and_running = 0x8914, 0x41
            fcntl.ioctl(device, set_flags, struct.pack("16sh22x", b"lo", is_up_and_running))
        return
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return
    os.environ[ISOLATED] = "1"
    os.execvp(unshare[0], [*unshare, sys.executable, *sys.argv])


def check(work_dir: Path, log_path: Path, num_epochs: int, image_size: int) -> int:
    """All checks; the exit code."""
    from synboost_monai.io import sha256_of

    table = Table()
    data_dir = make_data(work_dir)
    images_dir = make_images(work_dir, data_dir)
    settings = {"preset": "tiny", "image_size": image_size, "device": "cpu"}
    checkpoints = {bundle: train(bundle, data_dir, work_dir, num_epochs, settings) for bundle in BUNDLES}
    references = {
        (bundle, prompt): segment(bundle, images_dir, work_dir, checkpoints[bundle], settings, prompt)
        for bundle in BUNDLES
        for prompt in ("", PROMPT)
    }
    hashes = {bundle: sha256_of(path) for bundle, path in checkpoints.items()}
    with served(work_dir, images_dir, checkpoints, settings) as url:
        check_info(table, url)
        for bundle in BUNDLES:
            for prompt in ("", PROMPT):
                for kind in KINDS:
                    check_image(table, url, bundle, prompt, kind, images_dir, references[bundle, prompt])
        check_absolute_path(table, url, images_dir, references["echo_cris", ""])
        check_code_is_refused(table, url, work_dir / "code_ran")
        for bundle in BUNDLES:
            check_strategy(table, url, bundle, references[bundle, ""])
        submit_labels(url, data_dir, images_dir)
        for bundle in BUNDLES:
            weights = work_dir / "app/model" / bundle / "models/model.pt"
            check_training(table, url, bundle, weights)
            after = segment(bundle, images_dir, work_dir, weights, settings, "", "_after")
            for kind in KINDS:
                check_image(table, url, bundle, "", kind, images_dir, after, "after /train/: ")
    is_kept = all(sha256_of(checkpoints[bundle]) == hashes[bundle] for bundle in BUNDLES)
    table.add("weights that were given", is_kept, "unchanged by the training")
    links = [str(path) for path in (work_dir / "app").rglob("*") if path.is_symlink()]
    table.add("app folder", not links, "no link in it" if not links else links[0])
    attempts = log_path.read_text(encoding="utf-8").splitlines()
    where = "in a network namespace of its own" if os.environ.get(ISOLATED) == "1" else "watched in Python alone"
    table.add(
        "connections that leave the machine", not attempts, f"{len(attempts)} tried, {where} {attempts[:1] or ''}"
    )
    print(f"{table.num_failed} failed")
    return 1 if table.num_failed else 0


def make_data(work_dir: Path) -> Path:
    """A phantom data set with its datalist."""
    from synboost_monai.data.phantom import write_phantom
    from synboost_monai.experiments.prepare import prepare_dataset

    if not (work_dir / "data/datalist.json").is_file():
        write_phantom(work_dir / "phantom", num_patients=6, image_height=160, num_frames=2, workers=1, progress=False)
        prepare_dataset(work_dir / "phantom", work_dir / "data")
    return work_dir / "data"


def make_images(work_dir: Path, data_dir: Path) -> Path:
    """One image of the testing section in each kind of file, and four labelled ones for a training."""
    import nibabel as nib
    import numpy as np
    from PIL import Image

    from synboost_monai.data import read_datalist
    from synboost_monai.dicom.write_image import write_dicom_pair
    from synboost_monai.io import read_plane

    folder = work_dir / "images"
    folder.mkdir(exist_ok=True)
    item = read_datalist(data_dir, "testing")[0]
    plane, label = read_plane(item["image"]), read_plane(item["label"])
    stored = nib.load(item["image"])
    nib.save(nib.Nifti1Image(plane.pixels.T, stored.affine), folder / "nifti_2d.nii.gz")
    affine = np.diag([-0.4, 0.3, 2.0, 1.0])
    affine[:3, 3] = 12, -34, 56
    nib.save(nib.Nifti1Image(plane.pixels.T[..., None], affine), folder / "nifti_slice.nii.gz")
    Image.fromarray(plane.pixels).save(folder / "png.png")
    write_dicom_pair(
        plane.pixels, label.pixels, plane.spacing_mm, folder / "dicom.dcm", work_dir / "unused_seg.dcm",
        name="check", patient="phantom", view=item["view"], sex="female", age=64,
    )  # fmt: skip
    put_in_larger_frame(folder / "dicom.dcm", plane.pixels)
    return folder


def put_in_larger_frame(path: Path, pixels: Any) -> None:
    """Make the image a part of a larger frame, as scanners do, so that region and frame differ."""
    import numpy as np
    import pydicom

    dataset = pydicom.dcmread(path)
    top, left, bottom, right = 20, 12, 8, 16
    frame = np.pad(pixels, ((top, bottom), (left, right)))
    dataset.Rows, dataset.Columns = frame.shape
    (region,) = dataset.SequenceOfUltrasoundRegions
    region.RegionLocationMinX0, region.RegionLocationMinY0 = left, top
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = left + pixels.shape[1] - 1, top + pixels.shape[0] - 1
    content = frame.tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset.save_as(path)


def train(bundle: str, data_dir: Path, work_dir: Path, num_epochs: int, settings: dict[str, Any]) -> Path:
    """Weights of a short training."""
    from synboost_monai.bundle_run import run_bundle

    folder = work_dir / f"trained_{bundle}"
    if not (folder / "model.pt").is_file():
        values = {"max_epochs": num_epochs, "batch_size": 4, **LEARNING}
        run_bundle(bundle, "train", {**settings, **values, "dataset_dir": str(data_dir), "output_dir": str(folder)})
    return folder / "model.pt"


def segment(
    bundle: str,
    images_dir: Path,
    work_dir: Path,
    weights: Path,
    settings: dict[str, Any],
    prompt: str,
    suffix: str = "",
) -> Path:
    """Folder of what `monai.bundle run` makes of the four images, one by one."""
    from synboost_monai.bundle_run import run_bundle

    folder = work_dir / f"reference_{bundle}{'_prompt' if prompt else ''}{suffix}"
    for kind, ending in KINDS.items():
        places = {"dataset_dir": str(images_dir / f"{kind}{ending}"), "output_dir": str(folder)}
        run_bundle(bundle, "inference", {**settings, **places, "checkpoint_path": str(weights), "prompt": prompt})
    return folder


@contextmanager
def served(work_dir: Path, images_dir: Path, checkpoints: dict[str, Path], settings: dict[str, Any]) -> Iterator[str]:
    """Address of a running `synboost label`."""
    import requests

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["label", str(images_dir), "--bundle", ",".join(checkpoints), "--app_dir", str(work_dir / "app")]
    words += ["--checkpoint_path", ",".join(map(str, checkpoints.values())), "--port", str(port)]
    words += ["--preset", settings["preset"], "--image_size", str(settings["image_size"]), "--learning_rate", "1e-3"]
    environment = {**os.environ, "HOME": str(work_dir / "home"), "MPLCONFIGDIR": str(work_dir / "home")}
    with (work_dir / "server.log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "synboost_monai", *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=work_dir,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            start = time.monotonic()
            while True:
                if server.poll() is not None or time.monotonic() - start > 1200:
                    tail = (work_dir / "server.log").read_text(encoding="utf-8")[-3000:]
                    raise SystemExit(f"check_label.py: the server did not start; the end of its log:\n{tail}")
                try:
                    requests.get(f"{url}/info/", timeout=60).raise_for_status()
                    break
                except requests.ConnectionError:
                    time.sleep(1)
            print(f"server ready after {time.monotonic() - start:.0f} s", flush=True)
            yield url
        finally:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()


def check_info(table: Table, url: str) -> None:
    """What a viewer is told of the models."""
    import requests

    from synboost_monai.labels import STRUCTURES

    info = requests.get(f"{url}/info/", timeout=600).json()
    for bundle in BUNDLES:
        model = info["models"].get(bundle, {})
        wanted = {s.name: s.class_index for s in STRUCTURES}
        table.add(f"{bundle} /info/ labels", model.get("labels") == wanted, str(model.get("labels")))
        table.add(
            f"{bundle} /info/ dimension, type", (model.get("dimension"), model.get("type")) == (2, "segmentation"), "2"
        )
        table.add(f"{bundle} /info/ option prompt", model.get("config", {}).get("prompt") == "", "empty")
        has_hooks = bundle in info["trainers"] and all(f"doubt_{bundle}" in info[k] for k in ("strategies", "scoring"))
        table.add(f"{bundle} /info/ trainer, strategy, scoring", has_hooks, f"doubt_{bundle}")


def infer(url: str, bundle: str, image: str, prompt: str, target: Path) -> tuple[Path, dict[str, Any]]:
    """Label map, written to target and the suffix that came, and JSON of one request."""
    import requests
    from requests_toolbelt.multipart import decoder

    answer = requests.post(
        f"{url}/infer/{bundle}",
        params={"image": image, "output": "all"},
        data={"params": json.dumps({"prompt": prompt} if prompt else {})},
        timeout=600,
    )
    if answer.status_code != 200:
        raise SystemExit(f"check_label.py: /infer/{bundle} of {image} gave {answer.status_code}: {answer.text[:1000]}")
    parts = {}
    for part in decoder.MultipartDecoder.from_response(answer).parts:
        disposition = part.headers[b"Content-Disposition"].decode()
        parts["json" if 'name="params"' in disposition else "image"] = (disposition, part.content)
    suffix = ".png" if ".png" in parts["image"][0] else ".nii.gz"
    path = Path(f"{target}{suffix}")
    path.write_bytes(parts["image"][1])
    return path, json.loads(parts["json"][1])


def check_image(
    table: Table, url: str, bundle: str, prompt: str, kind: str, images_dir: Path, reference_dir: Path, words: str = ""
) -> None:
    """One request against `monai.bundle run`: pixels, geometry, doubt."""
    import numpy as np

    target = images_dir.parent / f"served_{bundle}_{kind}"
    path, params = infer(url, bundle, kind, prompt, target)
    name = f"{words}{bundle} {kind} prompt {prompt or 'empty'}"
    record = json.loads((reference_dir / f"{kind}.json").read_text(encoding="utf-8"))
    compare(table, name, path, reference_dir / record["label_map"])
    doubt = params.get("doubt", {})
    is_alike = doubt.get("verdict") == record["verdict"] and np.isclose(
        doubt.get("predicted_dice", -1), record["predicted_dice"], atol=1e-4
    )
    is_same_model = (
        doubt.get("model_sha256") == record["model_sha256"] or not words
    )  # served weights are a copy in another file
    found = f"{doubt.get('verdict')}, predicted Dice {doubt.get('predicted_dice', -1):.4f}"
    table.add(f"{name}: doubt", bool(is_alike and is_same_model), found)


def check_code_is_refused(table: Table, url: str, trace: Path) -> None:
    """A prompt and a device that MONAI's config parser would run: neither may, and both are told as a mistake."""
    import requests

    code = f"$open({str(trace)!r}, 'w')"
    asked = [
        requests.post(f"{url}/infer/echo_cris", params={"image": "png"}, data={"params": json.dumps(p)}, timeout=600)
        for p in ({"prompt": code}, {"device": code})
    ]
    asked.append(
        requests.post(f"{url}/train/echo_cris", params={"run_sync": "true"}, json={"device": code}, timeout=600)
    )
    is_refused = all(answer.status_code >= 400 for answer in asked) and not trace.exists()
    table.add("code in a request", is_refused, f"refused, {[answer.status_code for answer in asked]}")


def compare(table: Table, name: str, path: Path, reference_path: Path) -> None:
    """Pixels and geometry of a label map against another."""
    import nibabel as nib
    import numpy as np

    from synboost_monai.transforms import load_echo

    mine, theirs = load_echo(path)[0].numpy(), load_echo(reference_path)[0].numpy()
    is_shaped = mine.shape == theirs.shape
    share = float((mine == theirs).mean()) if is_shaped else 0.0
    classes = sorted(int(c) for c in np.unique(theirs))
    geometry = ""
    if path.suffix == ".gz":
        a, b = nib.load(path), nib.load(reference_path)
        is_shaped &= np.allclose(a.affine, b.affine, atol=1e-4) and a.shape[:2] == b.shape[:2]
        geometry = f", {a.shape}, affine {'kept' if is_shaped else f'{a.affine.tolist()} not {b.affine.tolist()}'}"
    is_telling = len(classes) > 1  # an empty label map would agree with anything
    table.add(
        name, is_shaped and share >= AGREEMENT and is_telling, f"{share:.4%} of pixels, classes {classes}{geometry}"
    )


def check_absolute_path(table: Table, url: str, images_dir: Path, reference_dir: Path) -> None:
    """A DICOM file that is named by its path."""
    path, _ = infer(url, "echo_cris", str(images_dir / "dicom.dcm"), "", images_dir.parent / "served_path")
    compare(table, "echo_cris dicom by absolute path", path, reference_dir / "dicom.nii.gz")


def check_strategy(table: Table, url: str, bundle: str, reference_dir: Path) -> None:
    """The first image of the strategy is the one that needs a person most; the scoring task knows them all."""
    import requests

    records = {kind: json.loads((reference_dir / f"{kind}.json").read_text(encoding="utf-8")) for kind in KINDS}
    lowest = min(r["predicted_dice"] for r in records.values() if r["verdict"] == min_verdict(records))
    answer = requests.post(f"{url}/activelearning/doubt_{bundle}", json={"max_seconds": 600}, timeout=1200).json()
    chosen = records[answer["id"]]
    is_right = chosen["verdict"] == min_verdict(records) and abs(chosen["predicted_dice"] - lowest) < 1e-3
    every = ", ".join(f"{k} {r['verdict']} {r['predicted_dice']:.4f}" for k, r in records.items())
    table.add(f"{bundle} strategy", is_right, f"{answer['id']} of {every}")
    scored = requests.post(f"{url}/scoring/doubt_{bundle}", params={"run_sync": "true"}, json={}, timeout=1200).json()
    table.add(f"{bundle} scoring", scored["total"] == len(KINDS) and scored["executed"] == 0, f"{scored}")


def min_verdict(records: dict[str, Any]) -> str:
    """review if any image needs it."""
    return "review" if any(r["verdict"] == "review" for r in records.values()) else "accept"


def submit_labels(url: str, data_dir: Path, images_dir: Path) -> None:
    """Add labelled images to the datastore, as an annotator's corrections; the other images get none."""
    import requests

    from synboost_monai.data import read_datalist

    for i, item in enumerate(read_datalist(data_dir, "training")[:4]):
        name = f"case{i}"
        for place, field, path in (("image", "file", item["image"]), ("label", "label", item["label"])):
            with open(path, "rb") as file:
                answer = requests.put(
                    f"{url}/datastore/{place}",
                    params={"image": name, "tag": "final"} if place == "label" else {"image": name},
                    files={field: (f"{name}.nii.gz", file)},
                    timeout=600,
                )
            answer.raise_for_status()
    # the DICOM image is corrected too: its label map covers the whole frame
    with (images_dir.parent / "reference_echo_cris/dicom.nii.gz").open("rb") as file:
        files = {"label": ("dicom.nii.gz", file)}
        requests.put(
            f"{url}/datastore/label", params={"image": "dicom", "tag": "final"}, files=files, timeout=600
        ).raise_for_status()


def check_training(table: Table, url: str, bundle: str, weights: Path) -> None:
    """One epoch on the corrected labels writes new weights."""
    import requests

    from synboost_monai.io import sha256_of

    before = sha256_of(weights)
    request = {"max_epochs": 1, "val_split": 0.25, "multi_gpu": False, "tracking": "None"}
    start = time.monotonic()
    requests.post(
        f"{url}/train/{bundle}", params={"run_sync": "false", "enqueue": "false"}, json=request, timeout=600
    ).raise_for_status()
    status: dict[str, Any] = {}
    while time.monotonic() - start < 2400:
        status = requests.get(f"{url}/train/", timeout=600).json()
        if status["status"] not in ("SUBMITTED", "RUNNING"):
            break
        time.sleep(2)
    is_right = status.get("status") == "DONE" and sha256_of(weights) != before
    table.add(
        f"{bundle} /train/ one epoch",
        is_right,
        f"{status.get('status')} in {time.monotonic() - start:.0f} s, new weights",
    )
    if not is_right:
        print("\n".join(status.get("details", [])))


if __name__ == "__main__":
    raise SystemExit(main())
