"""Test that every verb reports in one line what it cannot read or write; `python -m tests.doors` prints the whole table, with networks."""

import errno
import os
import resource
import signal
from pathlib import Path

import pytest

from synboost_monai.simulation.phantom import write_phantom
from tests.doors import CASES, NOWHERE, ask

READING = sorted(set(CASES) - {"phantom", "phantom-studies", "simulate"})
"""Verbs that read something."""
WRITING = {
    "phantom": ["{out}", "--num_patients", "1", "--image_height", "48", "--num_frames", "2"],
    "phantom-studies": ["{out}", "--num_studies", "1", "--image_height", "64", "--num_frames", "8"],
    "simulate": ["{out}", "--num_images", "2", "--image_size", "48"],
    "prepare": ["{data}", "{out}"],
    "experiment": ["quickstart", "--output", "{out}"],
}
"""Verbs that write before they need a network."""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doors") / "phantom"
    write_phantom(folder, num_patients=3, image_height=48, num_frames=2)
    return folder


@pytest.mark.parametrize("verb", READING)
def test_missing_input_is_one_line(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, line = ask([verb, *CASES[verb](NOWHERE, "out")])
    assert code == "2" and line.startswith(f"synboost {verb}: "), (code, line)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


@pytest.mark.parametrize("verb", sorted(WRITING))
def test_output_that_is_a_file_is_one_line(verb: str, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    words = [word.format(out=tmp_path / "file" / "out", data=data_dir) for word in WRITING[verb]]
    code, line = ask([verb, *words])
    assert code == "2" and line.startswith(f"synboost {verb}: ") and str(tmp_path / "file") in line, (code, line)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("verb", ["phantom", "phantom-studies", "simulate", "prepare"])
def test_disk_that_takes_no_more_is_one_line(verb: str, data_dir: Path, tmp_path: Path) -> None:
    """A limit of the file size stands in for a full disk: every write fails in the middle."""
    words = [word.format(out=tmp_path / "out", data=data_dir) for word in WRITING[verb]]
    before, on_signal = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        code, line = ask([verb, *words])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, on_signal)
    assert code == "2" and os.strerror(errno.EFBIG).lower() in line and str(tmp_path / "out") in line, (code, line)
    assert not [path for path in tmp_path.rglob(".*") if path.is_file() and path.name != ".lock"]
