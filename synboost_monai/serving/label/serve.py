"""Run `synboost label`: make checks and the app folder, and start MONAI Label's server behind its guard, by default for this machine."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from synboost_monai.door import Door, addresses_of, listening, open_door, url_of
from synboost_monai.files import CLIP_SUFFIXES, IMAGE_SUFFIXES, read_text
from synboost_monai.processes import hold_folder, safe_environment
from synboost_monai.serving.label.app_folder import make_app_folder, plan_bundles
from synboost_monai.serving.label.guard import TOKEN_PATH, Guard
from synboost_monai.serving.label.routes import Rules
from synboost_monai.serving.label.versions import check_versions
from synboost_monai.serving.options import LabelOptions

TOKEN_VARIABLE = "SYNBOOST_LABEL_TOKEN"
"""Environment variable with the token; in the command, a list of processes would show it."""
DATASTORE_NAME = "datastore_v2.json"
"""MONAI Label's list of images and labels, in the folder of images."""
MAX_CONNECTIONS = 64
"""Connections at a time; more are answered with 503."""


def run_label(studies: str, options: LabelOptions, *, overrides: Mapping[str, Any] | None = None) -> Path:
    """Make the app folder and serve it until somebody ends it.

    Args:
        studies: folder of images; MONAI Label keeps the labels in it, in `labels`.
        options: bundles, weights, app folder, address and token. An app folder made of the same things is used again. A token that is
            True or None is that of `TOKEN_VARIABLE`; if that is not set, True makes a new one, and so does None for any other host
            than this machine.
        overrides: as in `plan_bundles`.
    Returns:
        the app folder.
    Raises:
        ValueError, FileNotFoundError: if the environment, the studies, host, port or token, a bundle, weights or a key cannot be used,
            or another process serves the app folder.
    """
    planned = plan_bundles(options.bundles, options.checkpoint_paths, overrides or {})
    host, port = options.host, options.port
    studies_dir = Path(studies).resolve()
    if studies.startswith(("http://", "https://")):
        raise ValueError(
            f"label: STUDIES must be a folder of images, got {studies}; fetch the studies from the archive first"
        )
    if not studies_dir.is_dir():
        raise FileNotFoundError(f"{studies}: no such folder of images")
    names = [bundle.name for bundle in planned]
    folder = Path(options.app_dir or Path("runs/label", "-".join(names))).resolve()
    if folder.is_relative_to(studies_dir):
        raise ValueError(f"label: the app folder {folder} lies within the studies; choose another --app_dir")
    _check_studies(studies_dir)
    door = open_door(host, port, options.token, TOKEN_VARIABLE)
    check_versions()
    if not options.dry_run:
        with listening(host, port):  # before anything is made
            pass
    is_new = make_app_folder(folder, planned)
    print(f"app folder: {folder} ({'made' if is_new else 'gone on with, and the weights trained in it'})", flush=True)
    if options.dry_run:
        return folder
    with hold_folder(folder, waits=False):  # a training of a second server would write over the weights of the first
        is_everywhere = any(address.is_unspecified for address in addresses_of(host, port))
        print(how_to_connect(socket.gethostname() if is_everywhere else host, port, names, door.token), flush=True)
        _serve(folder, studies_dir, names, door, host, port)
    return folder


def server_environment(app_dir: Path) -> dict[str, str]:
    """Return MONAI Label's environment variables: files of our kinds, one request at a time, nothing from the network."""
    return {
        "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps(
            [f"*{suffix}" for suffix in sorted({*IMAGE_SUFFIXES} - {*CLIP_SUFFIXES}, key=lambda s: (-len(s), s))]
        ),
        "MONAI_LABEL_INFER_CONCURRENCY": "1",  # requests share one parser of the config, which holds the prompt
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",  # it starts a process for each sample; the strategies score by themselves
        "MONAI_LABEL_TRACKING_ENABLED": "false",
        "MONAI_LABEL_SESSIONS": "false",  # archives that it unpacks
        "MONAI_LABEL_SESSION_PATH": str(app_dir / "sessions"),
        "MONAI_LABEL_AUTH_ENABLE": "false",  # the guard asks for the token
        "MONAI_LABEL_API_STR": "",
        "MONAI_ZOO_SOURCE": "local",
        "BUNDLE_DOWNLOAD_SRC": "local",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def server_arguments(app_dir: Path, studies_dir: Path, names: Sequence[str], host: str, port: int) -> list[str]:
    """Return the command line of MONAI Label's server."""
    conf = {"models": ",".join(names), "zoo_source": "local", "sam2": "false"}
    words = ["start_server", "--app", str(app_dir), "--studies", str(studies_dir), "--host", host, "--port", str(port)]
    words += ["--limit_concurrency", str(MAX_CONNECTIONS)]
    return words + [word for pair in conf.items() for word in ("--conf", *pair)]


def how_to_connect(host: str, port: int, names: Sequence[str], token: str | None) -> str:
    """Return text that says what to do in a viewer."""
    url = url_of(host, port)
    address = f"{url}{TOKEN_PATH}{token}" if token else url
    curl = f"curl -H 'Authorization: Bearer {token}'" if token else "curl"
    return (
        f"MONAI Label will answer at {address} when it says `Uvicorn running`; Ctrl-C ends it.\n"
        f"3D Slicer: install the extension MONAILabel, open the module MONAI Label, server address {address}, connect. Then `Next Sample` "
        f"with the strategy doubt_{names[0]} (images in most need first), model {' or '.join(names)}, `Run`. The option `prompt` names "
        "one structure, as in: left atrium; empty, all three come in one label map. `Submit Label` keeps a correction, `Train` learns "
        "from all of them.\n"
        "OHIF: needs a DICOMweb archive as studies; a folder of files has none, so it is Slicer here.\n"
        f"By hand: {curl} -X POST '{url}/infer/{names[0]}?image=IMAGE&output=all' -F 'params={{\"prompt\": \"left atrium\"}}'"
    )


# ---- helpers


def _check_studies(studies_dir: Path) -> None:
    """Refuse a folder, which may come from elsewhere, in which MONAI Label would write through a link or into another folder."""
    labels = studies_dir / "labels"
    for path in (studies_dir / ".lock", studies_dir / DATASTORE_NAME, labels, *labels.rglob("*")):
        if path.is_symlink() and not path.resolve().is_relative_to(studies_dir):
            raise ValueError(f"{path}: is a link to elsewhere, which MONAI Label would write through; remove it")
    record = studies_dir / DATASTORE_NAME
    if not record.is_file():
        return
    try:
        known = json.loads(read_text(record))
        is_right = (known["images_dir"], known["labels_dir"]) == (".", "labels")
        words = [w for name, entry in known["objects"].items() for w in (name, entry["image"]["ext"], *entry["labels"])]
        is_right &= not any(os.sep in word or word == os.pardir for word in words)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_right = False
    if not is_right:
        raise ValueError(
            f"{record}: is not MONAI Label's list of the images of this folder; remove it, and it is made anew"
        )


def _serve(app_dir: Path, studies_dir: Path, names: Sequence[str], door: Door, host: str, port: int) -> None:
    """Run MONAI Label's server in this process until it is ended."""
    # MONAI Label reads `.env` of the working directory, and its trainings import from there: this must not be a folder of users' files
    os.environ.update(safe_environment(**server_environment(app_dir)))
    os.chdir(app_dir)
    from synboost_monai.serving.label.stand_ins import import_without_torchvision

    import_without_torchvision()
    from monailabel.app import app
    from monailabel.interfaces.utils.app import app_instance
    from monailabel.main import Main
    from monailabel.utils.async_tasks.task import AsyncTask

    def image_path(name: str) -> str:
        return str(app_instance().datastore().get_image_uri(name))

    server = Main()
    arguments = server.args_parser().parse_args(server_arguments(app_dir, studies_dir, names, host, port))
    arguments.uvicorn_app = Guard(app, door, Rules(frozenset(names), studies_dir, image_path))
    with tempfile.TemporaryDirectory(
        prefix="synboost-label-"
    ) as private:  # for images and label maps in transit, hidden from other users
        os.environ["TMPDIR"] = tempfile.tempdir = private
        try:
            server.action_start_server(arguments)
        finally:
            for task in ("train", "scoring"):
                with suppress(Exception):  # the task may have just ended
                    AsyncTask.stop(task)
