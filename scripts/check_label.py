#!/usr/bin/env python
"""Check a real MONAI Label server with both segmenters against `monai.bundle run` on the same images, without a network.

    .venv_label/bin/python scripts/check_label.py [--work_dir DIR] [--epochs 12] [--image_size 64]

Run it in the environment that scripts/setup_label.sh makes; it takes a few minutes on two cores. Phantom images as 2-D NIfTI, NIfTI of one
slice, PNG and ultrasound DICOM; tiny networks trained for a few epochs. If the system allows it, everything runs in a network namespace
that has only the loopback device; in any case every Python process refuses and logs all connections that leave the machine. Prints a
table; exit code 0 if every line holds, 1 otherwise. --work_dir keeps the files; without it they are deleted.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = ("echo_cris", "echo_clipseg")
KINDS = {"nifti_2d": ".nii.gz", "nifti_slice": ".nii.gz", "png": ".png", "dicom": ".dcm"}
"""Name of an image -> its suffix."""
PROMPT, PROMPT_CLASS = "the LA", 3
LEARNING = {
    "learning_rate": 1e-2,
    "encoder_learning_rate_scale": 1.0,
    "layer_decay": 1.0,
    "weight_decay": 0.0,
    "warm_up_steps": 5,
    "ema_decay": 0.0,
    "augment": False,
}
"""Training settings with which tiny networks find something after about fifty steps."""
AGREEMENT = 0.999
"""Share of pixels that must agree."""
TOKEN = "a-token-of-the-check-0123456789"
"""Token in the address of every request of the checks, as in those of 3D Slicer."""
ISOLATED = "SYNBOOST_CHECK_ISOLATED"
"""Environment variable that is set if this process runs in its own network namespace."""

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
    """Hold the results of the checks as lines of a table."""

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
    """Start again in a network namespace that has only loopback, if the system allows it."""
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
    """Run all checks and return the exit code."""
    from synboost_monai.files import sha256_of

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
                found = [
                    check_image(table, url, bundle, prompt, k, images_dir, references[bundle, prompt]) for k in KINDS
                ]
                words = f"{bundle} prompt {prompt or 'empty'} finds something"
                table.add(
                    words, sum(found) > 1, f"in {sum(found)} of {len(found)} images"
                )  # empty label maps agree with anything
        check_absolute_path(table, url, images_dir)
        check_code_is_refused(table, url, work_dir / "code_ran")
        check_refused(table, url, work_dir, images_dir)
        for bundle in BUNDLES:
            check_strategy(table, url, bundle, references[bundle, ""])
        submit_labels(url, data_dir, images_dir)
        for bundle in BUNDLES:
            weights = work_dir / "app/model" / bundle / "models/model.pt"
            with trained(table, url, bundle, weights):
                if bundle == BUNDLES[0]:
                    check_what_slicer_asks(table, url, images_dir)
                else:
                    ask_for_training(url, bundle)
            after = segment(bundle, images_dir, work_dir, weights, settings, "", "_after")
            for kind in KINDS:
                check_image(table, url, bundle, "", kind, images_dir, after, "after /train/: ")
        started = start_training(url, work_dir / "app")
    left = [process for process in started if process.is_running() and process.status() != "zombie"]
    table.add("processes of an ended server", bool(started) and not left, f"{len(left)} of {len(started)} left")
    is_kept = all(sha256_of(checkpoints[bundle]) == hashes[bundle] for bundle in BUNDLES)
    table.add("weights that were given", is_kept, "unchanged by the training")
    has_run = (work_dir / "code_ran").exists()
    table.add("code and settings in the working directory", not has_run, "not taken by the server and its trainings")
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
    """Make a phantom data set with its datalist."""
    from synboost_monai.data.prepare import prepare_dataset
    from synboost_monai.simulation.phantom import write_phantom

    if not (work_dir / "data/datalist.json").is_file():
        write_phantom(work_dir / "phantom", num_patients=6, image_height=160, num_frames=2, workers=1, progress=False)
        prepare_dataset(work_dir / "phantom", work_dir / "data")
    return work_dir / "data"


def make_images(work_dir: Path, data_dir: Path) -> Path:
    """Write one image of the testing section in each kind of file, and four labelled ones for a training."""
    import nibabel as nib
    import numpy as np
    from PIL import Image

    from synboost_monai.data import read_datalist
    from synboost_monai.dicom.writing.image import write_dicom_pair
    from synboost_monai.files import read_plane
    from synboost_monai.records import EchoRecord

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
    paths = folder / "dicom.dcm", work_dir / "unused_seg.dcm"
    record = EchoRecord(*paths, "phantom", item["view"], sex="female", age=64)
    write_dicom_pair(record, plane.pixels, label.pixels, plane.spacing_mm, name="check")
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
    """Return the weights of a short training."""
    from synboost_monai.bundle_run import run_bundle

    folder = work_dir / f"trained_{bundle}"
    if not (folder / "model.pt").is_file():
        values = {"max_epochs": num_epochs, "batch_size": 4, **LEARNING}
        run_bundle(bundle, "train", {**settings, **values, "dataset_dir": str(data_dir), "output_dir": str(folder)})
        if bundle == BUNDLES[0]:
            add_view_head(folder / "model.pt")
    return folder / "model.pt"


def add_view_head(weights: Path) -> None:
    """Give weights a view head that classifies every image as no apical view; a training from them leaves the head out."""
    import torch

    from synboost_monai.model_card import read_card, write_model
    from synboost_monai.networks import create_segmenter

    card, state = read_card(weights), torch.load(weights, weights_only=True)
    assert card is not None
    network = create_segmenter(card.architecture, card.facts["preset"], has_view_head=True)
    head = {name: value for name, value in network.state_dict().items() if name.startswith("view_head.")}
    head["view_head.last.bias"] = torch.tensor([9.0, 0.0, 0.0, 0.0])
    write_model({**state, **head}, weights, replace(card, facts={**card.facts, "has_view_head": True}))


def segment(
    bundle: str,
    images_dir: Path,
    work_dir: Path,
    weights: Path,
    settings: dict[str, Any],
    prompt: str,
    suffix: str = "",
) -> Path:
    """Return the folder with the results of `monai.bundle run` for the four images, one by one."""
    from synboost_monai.bundle_run import run_bundle

    folder = work_dir / f"reference_{bundle}{'_prompt' if prompt else ''}{suffix}"
    for kind, ending in KINDS.items():
        places = {"dataset_dir": str(images_dir / f"{kind}{ending}"), "output_dir": str(folder)}
        run_bundle(bundle, "inference", {**settings, **places, "checkpoint_path": str(weights), "prompt": prompt})
    return folder


@contextmanager
def served(work_dir: Path, images_dir: Path, checkpoints: dict[str, Path], settings: dict[str, Any]) -> Iterator[str]:
    """Yield the address of a running `synboost label`."""
    import requests

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["label", str(images_dir), "--bundle", ",".join(checkpoints), "--app_dir", str(work_dir / "app")]
    words += ["--checkpoint_path", ",".join(map(str, checkpoints.values())), "--port", str(port)]
    words += ["--preset", settings["preset"], "--image_size", str(settings["image_size"]), "--learning_rate", "1e-3"]
    environment = {**os.environ, "HOME": str(work_dir / "home"), "MPLCONFIGDIR": str(work_dir / "home")}
    environment["SYNBOOST_LABEL_TOKEN"] = TOKEN
    (work_dir / "schedule.py").write_text(
        f"open({str(work_dir / 'code_ran')!r}, 'w')\n", encoding="utf-8"
    )  # MONAI Label imports a module of this name
    (work_dir / ".env").write_text("MONAI_LABEL_SESSIONS=true\nMONAI_LABEL_TASKS_TRAIN=false\n", encoding="utf-8")
    with (work_dir / "server.log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(
            [str(Path(sys.executable).parent / "synboost"), *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=work_dir,
        )
        url = f"http://127.0.0.1:{port}/token/{TOKEN}"
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
    """Check the information about the models that a viewer gets."""
    import requests

    from synboost_monai.structures import STRUCTURES

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
    """Send one request; return the label map, written to target with the suffix of the answer, and the answer's JSON."""
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
) -> bool:
    """Compare one request with `monai.bundle run`: pixels, geometry, doubt; return whether the label map shows anything."""
    import numpy as np

    target = images_dir.parent / f"served_{bundle}_{kind}"
    path, params = infer(url, bundle, kind, prompt, target)
    name = f"{words}{bundle} {kind} prompt {prompt or 'empty'}"
    record = json.loads((reference_dir / f"{kind}.json").read_text(encoding="utf-8"))
    is_telling = compare(table, name, path, reference_dir / record["label_map"])
    doubt = params.get("doubt", {})
    seen, view = (d.get("view", {}).get("name", "no view") for d in (record, doubt))
    codes, found_codes = ([reason["code"] for reason in d.get("reasons", [])] for d in (record, doubt))
    is_alike = (doubt.get("verdict"), view, found_codes) == (record["verdict"], seen, codes) and np.isclose(
        doubt.get("predicted_dice", -1), record["predicted_dice"], atol=1e-4
    )
    is_same_model = (
        doubt.get("model_sha256") == record["model_sha256"] or not words
    )  # the server uses a copy of the weights in another file
    found = f"{doubt.get('verdict')}, predicted Dice {doubt.get('predicted_dice', -1):.4f}, {view}"
    table.add(f"{name}: doubt", bool(is_alike and is_same_model), found)
    return is_telling


def check_code_is_refused(table: Table, url: str, trace: Path) -> None:
    """Check that a prompt and a device that MONAI's config parser would run are not run, and that both are reported as mistakes."""
    import requests

    code = f"$open({str(trace)!r}, 'w')"
    asked = [
        requests.post(f"{url}/infer/echo_cris", params={"image": "png"}, data={"params": json.dumps(p)}, timeout=600)
        for p in ({"prompt": code}, {"device": code})
    ]
    asked.append(
        requests.post(f"{url}/train/echo_cris", params={"run_sync": "true"}, json={"device": code}, timeout=600)
    )
    is_refused = all(answer.status_code == 400 for answer in asked) and not trace.exists()
    table.add("code in a request", is_refused, f"refused, {[answer.status_code for answer in asked]}")


def compare(table: Table, name: str, path: Path, reference_path: Path) -> bool:
    """Compare the pixels and geometry of a label map with those of another; return whether that shows anything."""
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
    table.add(name, is_shaped and share >= AGREEMENT, f"{share:.4%} of pixels, classes {classes}{geometry}")
    return len(classes) > 1


def check_absolute_path(table: Table, url: str, images_dir: Path) -> None:
    """Check a file that is named by its path, even one of the datastore."""
    import requests

    query = {"image": str(images_dir / "dicom.dcm")}
    answer = requests.post(f"{url}/infer/echo_cris", params=query, data={"params": "{}"}, timeout=600)
    table.add("echo_cris dicom by absolute path", answer.status_code == 400, f"refused, {answer.status_code}")


def check_what_slicer_asks(table: Table, url: str, images_dir: Path) -> None:
    """Send the requests of 3D Slicer's plug-in in their order and form, for an image of the datastore and for one of Slicer's."""
    import requests

    def ask(name: str, method: str, path: str, wanted: int, **more: Any) -> requests.Response:
        answer = requests.request(method, f"{url}{path}", timeout=1200, **more)
        table.add(f"Slicer: {name}", answer.status_code == wanted, f"{answer.status_code} {method} {path}")
        return answer

    def options(section: str, name: str) -> dict[str, Any]:
        config = info[section][name].get("config", {})
        return {key: value[0] if isinstance(value, list) else value for key, value in config.items()} | client

    def form(params: dict[str, Any], **files: Path) -> dict[str, Any]:
        """Build a form as Slicer's writer does: an odd boundary, and the whole path as the name of a file."""
        mark = "----------lImIt_of_THE_fIle_eW_$"
        lines: list[str | bytes] = [
            f"--{mark}",
            'Content-Disposition: form-data; name="params"',
            "",
            json.dumps(params),
        ]
        for field, path in files.items():
            lines += [f"--{mark}", f'Content-Disposition: form-data; name="{field}"; filename="{path}"']
            lines += ["Content-Type: application/octet-stream", "", path.read_bytes()]
        lines += [f"--{mark}--", ""]
        body = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\r\n" for line in lines)
        return {"data": body, "headers": {"Content-Type": f"multipart/form-data; boundary={mark}"}}

    client = {"client_id": "user-xyz"}
    ask("is there a login", "GET", "/auth/", 404)
    info = ask("connect", "GET", "/info/", 200).json()
    sample = ask("next sample", "POST", "/activelearning/first", 200, json=options("strategies", "first")).json()
    ask("its image", "GET", f"/datastore/image?image={sample['id']}", 200)
    ask("labels known", "GET", "/datastore/?output=all", 200)
    ask("no label yet", "GET", f"/datastore/label?label={sample['id']}&tag=original", 404)
    params = options("models", "echo_cris") | {"result_extension": ".nrrd", "result_dtype": "uint8"}
    segmented = ask("run", "POST", f"/infer/echo_cris?image={sample['id']}", 200, **form(params))
    is_whole = segmented.headers["content-type"].startswith("multipart/form-data") and b"NRRD" in segmented.content
    table.add(
        "Slicer: label map of run",
        is_whole,
        f"{len(segmented.content)} bytes of {segmented.headers['content-type'][:19]}",
    )
    ask(
        "its own image",
        "PUT",
        "/datastore/?image=from_slicer",
        200,
        **form(client, file=images_dir / "nifti_2d.nii.gz"),
    )
    ask("run on it", "POST", "/infer/echo_cris?image=from_slicer", 200, **form(params))
    told = {"label_info": [{"name": "left atrium", "idx": 1}], "model": "echo_cris"} | client
    label = form(told, label=images_dir.parent / "reference_echo_cris/nifti_2d.nii.gz")
    ask("submit label", "PUT", "/datastore/label?image=from_slicer", 200, **label)
    ask("its label", "GET", "/datastore/label?label=from_slicer&tag=final", 200)
    ask("is a training running", "GET", "/train/?check_if_running=true", 404)
    ask("train", "POST", "/train/echo_cris", 200, json=options("trainers", "echo_cris") | {"max_epochs": 1})
    ask("state of the training", "GET", "/train/", 200)
    wait_for_training(url)
    ask("stop a training", "DELETE", "/train/", 200)
    for path in images_dir.rglob("from_slicer.*"):
        path.unlink()


def check_refused(table: Table, url: str, work_dir: Path, images_dir: Path) -> None:
    """Send requests that must be refused; check the status of each, and that none leaves a file."""
    from http.client import HTTPConnection
    from urllib.parse import urlsplit

    place = urlsplit(url)
    before = traces(work_dir)

    def ask(
        name: str, wanted: int, method: str, path: str, body: bytes = b"", prefix: str = place.path, **headers: str
    ) -> None:
        connection = HTTPConnection("127.0.0.1", place.port, timeout=600)
        connection.putrequest(method, f"{prefix}{path}", skip_host=True)
        given = {key.replace("_", "-"): value for key, value in headers.items()}
        for key, value in ({"Host": place.netloc, "Content-Length": str(len(body))} | given).items():
            connection.putheader(key, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        reason = json.loads(answer.read() or b"{}").get("detail", "")
        table.add(
            f"refused: {name}",
            answer.status == wanted and bool(reason),
            f"{answer.status} {method} {path[:60]}: {reason[:90]}",
        )

    def with_file(field: str, name: str) -> dict[str, Any]:
        head = f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
        body = head.encode() + (images_dir / "png.png").read_bytes() + b"\r\n--b--\r\n"
        return {"body": body, "Content_Type": "multipart/form-data; boundary=b"}

    def with_json(value: Any) -> dict[str, Any]:
        return {"body": json.dumps(value).encode(), "Content_Type": "application/json"}

    def with_params(value: Any) -> dict[str, Any]:
        body = (
            b'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n'
            + json.dumps(value).encode()
            + b"\r\n--b--\r\n"
        )
        return {"body": body, "Content_Type": "multipart/form-data; boundary=b"}

    code = f"$open({str(work_dir / 'code_ran')!r}, 'w')"
    infer, train, bad = "/infer/echo_cris?image=png", "/train/echo_cris", "..%2F..%2Fescaped"
    ask("no token", 401, "GET", "/info/", prefix="")
    ask("another token", 401, "GET", "/info/", prefix="/token/of-somebody-else-0123")
    ask("Host of another name", 403, "GET", "/info/", Host="evil.example:8000")
    ask("Host at another port", 403, "GET", "/info/", Host="127.0.0.1:1")
    ask("origin of another page", 403, "GET", "/info/", Origin="https://evil.example")
    ask("origin of a file", 403, "POST", infer, Origin="null", **with_params({}))
    ask("page of another site", 403, "GET", "/datastore/image?image=png", Sec_Fetch_Site="cross-site")
    ask("page that links here", 403, "GET", "/info/", Referer="https://evil.example/page")
    ask("preflight", 403, "OPTIONS", "/train/", Origin="https://evil.example", Access_Control_Request_Method="DELETE")
    ask("preflight of the own origin", 405, "OPTIONS", "/train/", Origin=f"http://{place.netloc}")
    ask("image above the folder", 400, "PUT", f"/datastore/image?image={bad}", **with_file("file", "x.png"))
    ask(
        "image above, encoded twice",
        400,
        "PUT",
        "/datastore/image?image=..%252F..%252Fescaped",
        **with_file("file", "x.png"),
    )
    ask(
        "image by absolute name", 400, "PUT", f"/datastore/image?image={work_dir}/escaped", **with_file("file", "x.png")
    )
    ask("image by the older route", 400, "PUT", f"/datastore/?image={bad}", **with_file("file", "x.png"))
    ask("image that is hidden", 400, "PUT", "/datastore/image?image=.profile", **with_file("file", "x.png"))
    ask("image that is there", 409, "PUT", "/datastore/image?image=png", **with_file("file", "x.png"))
    ask("image that is code", 415, "PUT", "/datastore/image?image=main", **with_file("file", "main.py"))
    ask("header that names another file", 415, "PUT", "/datastore/image?image=header", **with_file("file", "x.mhd"))
    ask("tag above the folder", 400, "PUT", f"/datastore/label?image=png&tag={bad}", **with_file("label", "x.png"))
    ask("absolute tag", 400, "PUT", f"/datastore/label?image=png&tag={work_dir}", **with_file("label", "x.png"))
    ask("two tags", 400, "PUT", "/datastore/label?image=png&tag=final&tag=..", **with_file("label", "x.png"))
    ask("label of no image", 404, "PUT", "/datastore/label?image=nobody&tag=final", **with_file("label", "x.png"))
    ask("file of this machine", 400, "GET", "/datastore/image?image=/etc/passwd")
    ask("infer on a file of this machine", 400, "POST", "/infer/echo_cris?image=/etc/passwd", **with_params({}))
    ask("infer on a folder of the server", 404, "POST", "/infer/echo_cris?image=model", **with_params({}))
    ask("image in the parameters", 400, "POST", infer, **with_params({"image": "/etc/passwd"}))
    ask("code as prompt", 400, "POST", infer, **with_params({"prompt": code}))
    ask("word that nobody taught", 400, "POST", infer, **with_params({"prompt": "banana"}))
    ask("structure that nobody taught", 400, "POST", infer, **with_params({"prompt": "right ventricle"}))
    ask("code as device", 400, "POST", infer, **with_params({"device": code}))
    ask("macro as result type", 400, "POST", infer, **with_params({"result_dtype": "%/etc/passwd"}))
    ask("result as a path", 400, "POST", infer, **with_params({"result_extension": "/../../escaped"}))
    ask("weights by path", 400, "POST", infer, **with_params({"model_filename": "../../../escaped.ts"}))
    ask("file to infer", 400, "POST", infer, **with_file("file", "x.png"))
    ask("session to infer", 400, "POST", f"{infer}&session_id=..", **with_params({}))
    ask("bundle_path of a training", 400, "POST", train, **with_json({"bundle_path": str(work_dir)}))
    ask(
        "bundle_path, for every model",
        400,
        "POST",
        "/train/",
        **with_json({"echo_cris": {"bundle_path": str(work_dir)}}),
    )
    ask("device of a training", 400, "POST", train, **with_json({"device": code}))
    ask(
        "report elsewhere",
        400,
        "POST",
        train,
        **with_json({"tracking": "mlflow", "tracking_uri": "http://evil.example"}),
    )
    ask("another part of the config", 400, "POST", train, **with_json({"run_id": code}))
    ask("key that is code", 400, "POST", "/activelearning/random", **with_json({"@network_def": 1}))
    ask("strategy in the parameters", 400, "POST", "/activelearning/random", **with_json({"strategy": "first"}))
    ask("JSON as plain text", 415, "POST", train, body=b"{}", Content_Type="text/plain")
    ask("weights sent", 404, "PUT", "/model/echo_cris", **with_file("file", "model.pt"))
    ask("weights fetched", 404, "GET", "/model/echo_cris")
    ask("weights deleted", 404, "DELETE", "/model/echo_cris")
    ask("reload", 404, "POST", "/reload")
    ask("session archive", 404, "PUT", "/session/?uncompress=true", **with_file("files", "x.zip"))
    ask("session of a path", 404, "GET", "/session/..%2F..%2Fetc?image=true")
    ask("proxy", 404, "GET", "/proxy/dicom/wado/studies")
    ask("archive of all", 404, "GET", "/datastore/dataset")
    ask("image deleted", 405, "DELETE", "/datastore/image?id=png")
    ask("info of an image written", 405, "PUT", "/datastore/image/info?image=png", **with_params({}))
    ask("batch", 404, "POST", "/batch/infer/echo_cris", **with_json({}))
    ask("slides", 404, "POST", "/infer/wsi/echo_cris?image=png", **with_json({}))
    ask("list of routes", 404, "GET", "/openapi.json")
    ask("static files", 404, "GET", "/static/..%2Fapp.py")
    ask(
        "body without an end",
        413,
        "POST",
        infer,
        Content_Length=str(1 << 40),
        Content_Type="multipart/form-data; boundary=b",
    )
    changed = sorted(set(traces(work_dir)) ^ set(before))
    table.add(
        "refused requests leave no trace", not changed, f"{len(before)} files and folders as before {changed[:2] or ''}"
    )


def traces(work_dir: Path) -> list[tuple[str, int]]:
    """List every file and folder with its size, without logs."""
    return [
        (str(p), p.stat().st_size if p.is_file() else 0)
        for p in work_dir.rglob("*")
        if p.suffix not in (".log", ".lock")
    ]


def start_training(url: str, app_dir: Path) -> list[Any]:
    """Begin a training that is still running when the server ends, and return its processes."""
    import psutil
    import requests

    request = {"max_epochs": 1000, "val_split": 0.25}
    requests.post(f"{url}/train/echo_cris", json=request, timeout=600).raise_for_status()
    for _ in range(60):
        time.sleep(1)
        found = [
            p
            for p in psutil.process_iter(["cmdline"])
            if "monailabel.interfaces.utils.app" in (p.info["cmdline"] or [])
        ]
        if found := [p for p in found if p.cwd() == str(app_dir)]:
            break
    return found


def wait_for_training(url: str) -> dict[str, Any]:
    """Return the state of the last training when it has ended."""
    import requests

    start = time.monotonic()
    status: dict[str, Any] = {}
    while time.monotonic() - start < 2400:
        status = requests.get(f"{url}/train/", timeout=600).json()
        if status["status"] not in ("SUBMITTED", "RUNNING"):
            break
        time.sleep(2)
    return status


def check_strategy(table: Table, url: str, bundle: str, reference_dir: Path) -> None:
    """Check that the first image of the strategy is the one that most needs a person, and that the scoring task knows all images."""
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
    """Return review if any image needs it."""
    return "review" if any(r["verdict"] == "review" for r in records.values()) else "accept"


def submit_labels(url: str, data_dir: Path, images_dir: Path) -> None:
    """Add labelled images to the datastore, as an annotator's corrections; the other images get no label."""
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


@contextmanager
def trained(table: Table, url: str, bundle: str, weights: Path) -> Iterator[None]:
    """Check that one epoch on the corrected labels, which the block asks for, writes new weights."""
    from synboost_monai.files import sha256_of

    before = sha256_of(weights)
    start = time.monotonic()
    yield
    status = wait_for_training(url)
    is_right = status.get("status") == "DONE" and sha256_of(weights) != before
    table.add(
        f"{bundle} /train/ one epoch",
        is_right,
        f"{status.get('status')} in {time.monotonic() - start:.0f} s, new weights",
    )
    if not is_right:
        print("\n".join(status.get("details", [])))


def ask_for_training(url: str, bundle: str) -> None:
    import requests

    request = {"max_epochs": 1, "val_split": 0.25, "multi_gpu": False, "tracking": "None"}
    requests.post(
        f"{url}/train/{bundle}", params={"run_sync": "false", "enqueue": "false"}, json=request, timeout=600
    ).raise_for_status()


if __name__ == "__main__":
    raise SystemExit(main())
