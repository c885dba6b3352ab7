"""Fetch studies from a real Orthanc, segment them and store the results there, with both killed meanwhile, and count what is there.

    python tests/hospital/kill_web.py [--studies 40] [--seed 0] [--node]

`synboost dicom --from ... --to ...`, or `synboost listen --poll ... --destination ...`, is killed with SIGKILL while it fetches, segments
and stores, and goes on when it is called again. Orthanc is killed while results are stored. Needs Debian's packages orthanc and
orthanc-dicomweb.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from synboost_monai.hospital.delivery import deliveries  # noqa: E402
from tests.forked import Forked, module  # noqa: E402
from tests.hospital.kill_batch import write_study  # noqa: E402

PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
USER, PASSWORD = "synboost", "made-up-word"
ORTHANC_DOWN = 8.0
"""Seconds until Orthanc is started again."""
PATIENCE = 900.0
"""Seconds that anything may take."""


class Orthanc:
    """Run Orthanc with its DICOMweb plug-in in a folder, for this machine alone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}/dicom-web"
        folder.mkdir()
        config = {
            "StorageDirectory": str(folder / "db"),
            "IndexDirectory": str(folder / "db"),
            "Plugins": [PLUGIN],
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
        }
        (folder / "orthanc.json").write_text(json.dumps(config), encoding="utf-8")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.folder / "orthanc.log", "ab") as log:
            self.process = subprocess.Popen(["Orthanc", str(self.folder / "orthanc.json")], stdout=log, stderr=log)
        wait_for(self.is_up)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def is_up(self) -> bool:
        with contextlib.suppress(requests.ConnectionError):
            return self.get("/studies", root="").ok
        return False

    def get(self, path: str, root: str = "/dicom-web") -> requests.Response:
        base = self.url.removesuffix("/dicom-web") + root
        return requests.get(base + path, auth=(USER, PASSWORD), headers={"Accept": "application/json"}, timeout=60)

    def add(self, path: Path) -> None:
        url = self.url.removesuffix("/dicom-web") + "/instances"
        requests.post(url, data=path.read_bytes(), auth=(USER, PASSWORD), timeout=60).raise_for_status()

    def num_instances(self) -> int:
        with contextlib.suppress(requests.ConnectionError):
            return int(self.get("/statistics", root="").json()["CountInstances"])
        return -1

    def instances(self) -> dict[str, list[str]]:
        """Return the SOP Instance UIDs of each study, by QIDO."""
        studies = [one["0020000D"]["Value"][0] for one in self.get("/studies").json()]
        found = {uid: self.get(f"/studies/{uid}/instances").json() for uid in studies}
        return {uid: [str(one["00080018"]["Value"][0]) for one in entries] for uid, entries in found.items()}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("nothing happens")
        time.sleep(0.02)


@dataclass(frozen=True)
class Way:
    """Hold a command to test, and where it leaves its files."""

    words: str
    """The command; FOLDER and URL are filled in."""
    inputs: str
    results: str


QUERY = "URL?ModalitiesInStudy=US"
BATCH = Way(
    f"dicom FOLDER/fetched FOLDER/out --from {QUERY} --to URL --resume",
    "fetched/inbox/*/*.dcm",
    "out/studies/*",
)
NODE = Way(
    f"listen FOLDER/node --port 0 --poll {QUERY} --destination URL --poll_seconds 1 --quiet_seconds 2",
    "node/inbox/*/*.dcm",
    "node/runs/*/*/studies/*",
)


def start(folder: Path, url: str, way: Way) -> Forked:
    """Start a command, whose user and password are in the environment."""
    words = [word.replace("FOLDER", str(folder)).replace("URL", url) for word in way.words.split()]
    secrets = {"SYNBOOST_DICOMWEB_USER": USER, "SYNBOOST_DICOMWEB_PASSWORD": PASSWORD, "OMP_NUM_THREADS": "1"}
    return Forked(*module("synboost_monai", *words), environment=secrets)


def end_of(process: Forked, folder: Path, way: Way) -> int:
    """Wait until a command has nothing to do, end it if it does not end by itself, and return its code."""
    if way is NODE:
        wait_for(lambda: process.poll() is not None or is_through(folder, process))
        process.terminate()
    return process.wait(PATIENCE)


def is_through(folder: Path, process: Forked) -> bool:
    """Return whether a node that runs has fetched everything, worked on it and delivered it."""
    if "listening" not in process.stderr:
        return False
    time.sleep(5)  # some searches, and longer than a study stays incomplete
    known = {run.parent.name: delivery for run, delivery in deliveries(folder / "node/runs").items()}
    studies = {path.name: sorted(one.name for one in path.iterdir()) for path in (folder / "node/inbox").iterdir()}
    return known.keys() == studies.keys() and all(
        delivery.is_delivered and delivery.inputs == studies[study] for study, delivery in known.items()
    )


def said_by(process: Forked) -> str:
    """Return the last lines of a command, without bars."""
    lines = re.sub(r"[^\n]*\r", "", process.stderr).splitlines()
    return "\n".join(f"    {line}" for line in lines if line.strip())[-600:]


def count(folder: Path, pattern: str) -> int:
    return sum(1 for _ in folder.glob(pattern))


def results_of(out: Path) -> set[str]:
    """Return the SOP Instance UIDs of a run's results."""
    import pydicom

    return {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in out.glob("studies/*/*.dcm")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--node", action="store_true")
    options = parser.parse_args()
    if shutil.which("Orthanc") is None or not Path(PLUGIN).exists():
        raise SystemExit("Orthanc or its DICOMweb plug-in is missing: apt-get install orthanc orthanc-dicomweb")
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = Orthanc(folder / "orthanc")
        archive.start()
        try:
            return run(folder, archive, options.studies, chance, NODE if options.node else BATCH)
        finally:
            archive.kill()


def run(folder: Path, archive: Orthanc, num_studies: int, chance: random.Random, way: Way) -> int:
    for number in range(num_studies):
        write_study(folder / "in", number)
    for path in (folder / "in").rglob("*.dcm"):
        archive.add(path)
    num_inputs, began = archive.num_instances(), time.monotonic()
    print(f"{num_studies} studies, {num_inputs} objects in Orthanc", flush=True)
    moments: list[tuple[str, Callable[[], int], int]] = [
        ("fetched", lambda: count(folder, way.inputs), chance.randrange(1, num_inputs)),
        ("written", lambda: count(folder, f"{way.results}/sr.dcm"), chance.randrange(1, num_studies)),
        ("stored", lambda: archive.num_instances() - num_inputs, chance.randrange(1, num_studies)),
    ]
    for what, number, wanted in moments:
        process = start(folder, archive.url, way)
        wait_for(lambda n=number, w=wanted, p=process: n() >= w or p.poll() is not None)  # type: ignore[misc]
        if process.poll() is not None:
            raise SystemExit(f"it ended before it was killed:\n{process.stdout}{process.stderr}")
        process.kill()
        print(f"{time.monotonic() - began:6.1f} s: we are killed with {number()} {what}", flush=True)
    before = archive.num_instances()
    process = start(folder, archive.url, way)
    wait_for(lambda: archive.num_instances() > before + num_studies // 4)
    archive.kill()
    print(f"{time.monotonic() - began:6.1f} s: Orthanc is killed; {ORTHANC_DOWN:g} s later it starts again", flush=True)
    time.sleep(ORTHANC_DOWN)
    archive.start()
    codes = [end_of(process, folder, way)]
    print(f"{time.monotonic() - began:6.1f} s: we end with code {codes[0]}\n{said_by(process)}", flush=True)
    again = start(folder, archive.url, way)
    codes.append(end_of(again, folder, way))
    print(f"once more: code {codes[1]}\n{said_by(again)}", flush=True)
    whole = Forked(*module("synboost_monai", "dicom", folder / "in", folder / "whole")).done()
    expected, found = results_of(folder / "whole"), archive.instances()
    there = [uid for uids in found.values() for uid in uids]
    num_each = sorted({len(uids) for uids in found.values()})
    is_right = (
        codes == [0, 0]
        and len(there) == len(set(there))
        and len(there) == num_inputs + len(expected)
        and expected <= set(there)
        and len(found) == num_studies
        and whole.poll() == 0
    )
    print(
        f"{len(found)} studies in Orthanc, {len(there)} objects, {len(set(there))} different, {num_each} in each study;"
    )
    print(f"{len(expected)} results of an undisturbed run, all of them there: {expected <= set(there)}")
    print(f"every result is there once: {is_right}; {(time.monotonic() - began) / 60:.1f} minutes")
    return 0 if is_right else 1


if __name__ == "__main__":
    raise SystemExit(main())
