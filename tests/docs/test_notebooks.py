"""Test the notebooks: every cell runs, with hardly any training, and the saved output is a finished run of the same cells."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forked import Forked

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["prompt_and_segment", "synthesise"]


def run_cells(path: Path) -> None:
    """Run a notebook's cells, which are plain Python, as a kernel would, and say how many pictures they drew."""
    import matplotlib.pyplot as plt
    import nbformat

    names: dict[str, object] = {"__name__": "__main__"}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, str(path), "exec"), names)
    print(f"{len(plt.get_fignums())} pictures")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path: Path, tmp_path: Path) -> None:
    environment = {"SYNBOOST_NOTEBOOK_FAST": "1", "TMPDIR": str(tmp_path), "MPLBACKEND": "agg"}
    done = Forked(run_cells, path, folder=tmp_path, environment=environment).done()
    assert int(done.stdout.splitlines()[-1].split()[0]) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_saved_outputs_are_of_one_finished_run(path: Path) -> None:
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr" and output.text.strip()]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    told = "".join(output.get("text", "") for output in outputs)
    assert "/tmp" not in told and str(Path.home()) not in told
