"""Make a node with a model that needs no weights; `main` is to run in a process of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synboost_monai.dicom.network.receive import ServerOptions
from synboost_monai.hospital.engines import LocalEngine
from synboost_monai.hospital.listen import Node, until_signal
from synboost_monai.hospital.options import ListenOptions
from synboost_monai.hospital.peers import Peers
from synboost_monai.hospital.study import StudyOptions
from synboost_monai.processes import hold_folder
from tests.hospital.launch_batch import EllipseModel


def make_node(
    out_dir: Path,
    destination: str | None = None,
    *,
    first_delay: float = 0.1,
    say: Callable[[str], None] | None = None,
    report: str = "none",
    **options: Any,
) -> Node:
    """Make a node on a free port, to be used with its engine's `with`."""
    of_studies = StudyOptions(report=report)
    server = {"port": 0, "timeout": 5, "min_free_mb": 1, **options.pop("server", {})}
    stop = threading.Event()
    wanted = ListenOptions(destination=destination, **{"quiet_seconds": 0.5, **options})
    peers = Peers.of(("poll", wanted.poll), ("destination", wanted.destination), ae_title=wanted.ae_title, stop=stop)
    engine = LocalEngine(EllipseModel(), of_studies, 1)  # type: ignore[arg-type]
    node = Node(out_dir, engine, of_studies, ServerOptions(**server), wanted, peers, stop, say)
    node.first_delay = first_delay
    return node


def main(out: Path, destination: str) -> None:
    with hold_folder(out):
        node = make_node(out, destination)
        with node.engine, until_signal(node.stop):
            node.run()
    print("ended", flush=True)
