"""One process at a time in a folder; no child that outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from synboost_monai.processes import hold_folder

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = f"from synboost_monai.processes import hold_folder\nwith hold_folder({str(folder)!r}): print('in')"
    with hold_folder(folder):
        assert (folder / ".lock").read_text() == str(os.getpid())
        second = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT, stdout=-1, stderr=-1, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(2)
    out, err = second.communicate(timeout=150)
    assert out == "in\n" and f"process {os.getpid()} is at work here; waiting" in err


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    code = f"import time\nfrom synboost_monai.processes import hold_folder\nwith hold_folder({str(tmp_path)!r}): time.sleep(60)"
    first = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT)
    while not (tmp_path / ".lock").is_file() or not (tmp_path / ".lock").read_text():
        time.sleep(0.05)
    first.kill()
    first.wait()
    with hold_folder(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_child_ends_with_its_parent() -> None:
    parent = "import subprocess, sys, time\nfrom synboost_monai.processes import ends_with_parent\n"
    parent += "child = subprocess.Popen(['sleep', '60'], preexec_fn=ends_with_parent())\nprint(child.pid, flush=True)\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", parent], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert is_running(child)
    process.send_signal(signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 60
    while is_running(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(child)


def is_running(process_id: int) -> bool:
    """Whether a process is there and is no zombie."""
    status = Path(f"/proc/{process_id}/stat")
    return status.is_file() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
