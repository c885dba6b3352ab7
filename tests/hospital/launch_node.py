"""Make a node with a model that needs no weights; `main` is to run in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from synboost_monai.dicom.network.receive import ServerOptions
from synboost_monai.dicom.network.send import Destination
from synboost_monai.hospital.engines import LocalEngine
from synboost_monai.hospital.listen import Node, _until_signal
from synboost_monai.hospital.options import ListenOptions
from synboost_monai.hospital.study import StudyOptions
from synboost_monai.processes import hold_folder
from tests.hospital.launch_batch import EllipseModel

OPTIONS = StudyOptions()


def make_node(
    out_dir: Path,
    destination: str | None = None,
    *,
    first_delay: float = 0.1,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> Node:
    """Make a node on a free port, to be used with its engine's `with`."""
    server = {"port": 0, "timeout": 5, "min_free_mb": 1, **options.pop("server", {})}
    return Node(
        out_dir,
        LocalEngine(EllipseModel(), OPTIONS, out_dir, 1),  # type: ignore[arg-type]
        OPTIONS,
        ServerOptions(**server),
        ListenOptions(destination=destination, **{"quiet_seconds": 0.5, **options}),
        None if destination is None else Destination.parse(destination),
        first_delay,
        say,
    )


def main(out: Path, destination: str) -> None:
    with hold_folder(out):
        node = make_node(out, destination)
        with node.engine, _until_signal(node):
            node.run()
    print("ended", flush=True)
