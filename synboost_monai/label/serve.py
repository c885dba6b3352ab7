"""`synboost label`: checks, the app folder, and MONAI Label's server on this machine alone."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synboost_monai.io import IMAGE_SUFFIXES
from synboost_monai.label.app_folder import make_app_folder, plan_bundles
from synboost_monai.label.versions import check_versions

HOST = "127.0.0.1"
"""The server listens to this machine alone: it has no login, and shows patients' images to whoever asks."""


def run_label(
    studies: str,
    *,
    bundles: Sequence[str],
    checkpoint_paths: Sequence[str] | None = None,
    app_dir: str | None = None,
    port: int = 8000,
    dry_run: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Make the app folder and serve it until somebody ends it.

    Args:
        studies: folder of images; MONAI Label keeps the labels in it, in `labels`.
        bundles, checkpoint_paths, overrides: as in `plan_bundles`.
        app_dir: folder for the app; None: `runs/label/` and the bundles' names. An app folder of the same things is gone on with.
        port: of the server.
        dry_run: only make the app folder and check.
    Returns:
        the app folder.
    Raises:
        ValueError, FileNotFoundError: if the environment, the studies, the port, a bundle, weights or a key is at fault.
    """
    planned = plan_bundles(bundles, checkpoint_paths, overrides or {})
    studies_dir = Path(studies).resolve()
    if studies.startswith(("http://", "https://")):
        raise ValueError(
            f"label: STUDIES must be a folder of images, got {studies}; fetch the studies from the archive first"
        )
    if not studies_dir.is_dir():
        raise FileNotFoundError(f"{studies}: no such folder of images")
    names = [bundle.name for bundle in planned]
    folder = Path(app_dir or Path("runs/label", "-".join(names))).resolve()
    if folder.is_relative_to(studies_dir):
        raise ValueError(f"label: the app folder {folder} lies within the studies; choose another --app_dir")
    check_versions()
    if not dry_run:
        _check_port(port)
    is_new = make_app_folder(folder, planned)
    print(f"app folder: {folder} ({'made' if is_new else 'gone on with, and the weights trained in it'})", flush=True)
    if not dry_run:
        print(how_to_connect(port, names), flush=True)
        _serve(folder, studies_dir, names, port)
    return folder


def server_environment(app_dir: Path) -> dict[str, str]:
    """Environment variables of MONAI Label: files of our kinds, one request at a time, nothing from the network."""
    return {
        "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps(
            [f"*{suffix}" for suffix in sorted(IMAGE_SUFFIXES, key=len, reverse=True)]
        ),
        "MONAI_LABEL_INFER_CONCURRENCY": "1",  # requests share one parser of the config, which holds the prompt
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",  # it starts a process for each sample; the strategies score by themselves
        "MONAI_LABEL_TRACKING_ENABLED": "false",
        "MONAI_LABEL_SESSION_PATH": str(app_dir / "sessions"),
        "MONAI_ZOO_SOURCE": "local",
        "BUNDLE_DOWNLOAD_SRC": "local",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def server_arguments(app_dir: Path, studies_dir: Path, names: Sequence[str], port: int) -> list[str]:
    """Command line of MONAI Label's server."""
    conf = {"models": ",".join(names), "zoo_source": "local", "sam2": "false"}
    words = ["start_server", "--app", str(app_dir), "--studies", str(studies_dir), "--host", HOST, "--port", str(port)]
    return words + [word for pair in conf.items() for word in ("--conf", *pair)]


def how_to_connect(port: int, names: Sequence[str]) -> str:
    """What to do in a viewer, as text."""
    url = f"http://{HOST}:{port}"
    return (
        f"MONAI Label will answer at {url} when it says `Uvicorn running`; Ctrl-C ends it.\n"
        f"3D Slicer: install the extension MONAILabel, open the module MONAI Label, server address {url}, connect. Then `Next Sample` "
        f"with the strategy doubt_{names[0]} (images in most need first), model {' or '.join(names)}, `Run`. The option `prompt` names "
        "one structure, as in: left atrium; empty, all three come in one label map. `Submit Label` keeps a correction, `Train` learns "
        "from all of them.\n"
        "OHIF: needs a DICOMweb archive as studies; a folder of files has none, so it is Slicer here.\n"
        f"By hand: curl -X POST '{url}/infer/{names[0]}?image=IMAGE&output=all' -F 'params={{\"prompt\": \"left atrium\"}}'"
    )


# ---- helpers


def _check_port(port: int) -> None:
    """Refuse a port that cannot be listened at."""
    if not 0 < port < 65536:
        raise ValueError(f"label: --port must be between 1 and 65535, got {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ValueError(
                f"label: port {port} of {HOST} is not free ({error.strerror}); choose another --port"
            ) from error


def _serve(app_dir: Path, studies_dir: Path, names: Sequence[str], port: int) -> None:
    """Run MONAI Label's server in this process until it is ended."""
    os.environ.update(server_environment(app_dir))
    from synboost_monai.label.stand_ins import import_without_torchvision

    import_without_torchvision()
    from monailabel.main import Main

    sys.argv = ["monailabel", *server_arguments(app_dir, studies_dir, names, port)]
    Main().run()
