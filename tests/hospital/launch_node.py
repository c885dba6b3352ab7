"""Run a node in a process of its own, with a model that needs no weights: `python launch_node.py OUT DESTINATION`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synboost_monai.dicom.network.receive import ServerOptions
from synboost_monai.hospital.engines import LocalEngine
from synboost_monai.hospital.listen import Node, _until_signal
from synboost_monai.hospital.options import ListenOptions
from synboost_monai.hospital.study import StudyOptions
from synboost_monai.processes import hold_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.hospital.launch_batch import EllipseModel  # noqa: E402

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
        first_delay,
        say,
    )


if __name__ == "__main__":
    out = Path(sys.argv[1])
    with hold_folder(out):
        node = make_node(out, sys.argv[2])
        with node.engine, _until_signal(node):
            node.run()
    print("ended", flush=True)
