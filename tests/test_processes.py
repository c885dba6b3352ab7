"""Test that a folder has one process at a time, and that no child outlives its parent."""

import errno
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from synboost_monai.processes import (
    check_temporary_folder,
    hold_folder,
    let_threads_wait,
    module_command,
    safe_environment,
    take_folder,
)

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in another process."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, check=False)


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = f"from synboost_monai.processes import hold_folder\nwith hold_folder({str(folder)!r}): print('in')"
    with hold_folder(folder):
        assert (folder / ".lock").read_text() == f"{os.getpid()} on {platform.node()}"
        second = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT, stdout=-1, stderr=-1, text=True)
        assert second.stderr is not None
        assert f"process {os.getpid()} on {platform.node()} is at work here; waiting" in second.stderr.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(0.5)
    assert second.communicate(timeout=150)[0] == "in\n"


def test_memory_of_a_process_is_limited() -> None:
    code = (
        "from synboost_monai.processes import limit_memory; limit_memory(1 << 27); small = bytearray(1 << 24)\n"
        "try: bytearray(1 << 28)\nexcept MemoryError: print('refused')"
    )
    assert run_python(code).stdout == "refused\n"


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    code = f"import time\nfrom synboost_monai.processes import hold_folder\nwith hold_folder({str(tmp_path)!r}): time.sleep(60)"
    first = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT)
    while not (tmp_path / ".lock").is_file() or not (tmp_path / ".lock").read_text():
        time.sleep(0.05)
    first.kill()
    first.wait()
    with hold_folder(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")


def test_a_folder_is_refused_while_another_process_is_at_work_there(tmp_path: Path) -> None:
    code = f"from synboost_monai.processes import take_folder\ntake_folder({str(tmp_path)!r}, waits=False)\nprint('in')"
    give_back = take_folder(tmp_path, waits=False)
    take_folder(tmp_path, waits=False)()  # of the same process: nothing changes, then or later
    for is_held in (True, False):
        other = run_python(code)
        said = f"ValueError: {tmp_path}: process {os.getpid()} on {platform.node()} is at work here; wait until it ends"
        assert (said in other.stderr, other.stdout) == ((True, "") if is_held else (False, "in\n"))
        give_back()


def test_a_lock_is_not_handed_on_to_forked_children(tmp_path: Path) -> None:
    """A data loader's workers outlive a killed training by seconds."""
    give_back = take_folder(tmp_path, waits=False)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reader, 1)
        os._exit(0)
    give_back()
    code = f"from synboost_monai.processes import take_folder\ntake_folder({str(tmp_path)!r}, waits=False)"
    other = run_python(code)
    os.write(writer, b"x")
    os.waitpid(child, 0)
    assert other.returncode == 0, other.stderr


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_locks_a_run_says_so_and_goes_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    def flock(descriptor: int, kind: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with hold_folder(tmp_path / "run"):
        (tmp_path / "run" / "a").touch()
    words = f"no file locks here ({os.strerror(number)}); let no other process use this folder meanwhile"
    assert capsys.readouterr().err == f"{tmp_path}/run: {words}\n"


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / ".lock").symlink_to("precious")
    with pytest.raises((OSError, ValueError), match=r"\.lock"), hold_folder(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


def test_no_module_of_the_working_directory_is_run_by_a_child(tmp_path: Path) -> None:
    for name in ("getopt", "timeit", "traceback"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')")
    done = subprocess.run([*module_command("timeit"), "-n1", "-r1"], cwd=tmp_path, capture_output=True, text=True)
    assert "1 loop" in done.stdout and not (tmp_path / "ran").exists()
    if sys.version_info >= (3, 11):  # and by what that child starts
        command = [sys.executable, "-m", "timeit", "-n1", "-r1"]
        subprocess.run(command, cwd=tmp_path, check=True, env=safe_environment(), capture_output=True)
        assert not (tmp_path / "ran").exists()


def test_the_environment_of_a_child_finds_this_package_and_adds_no_working_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "/somewhere", ""]))
    environment = safe_environment(OMP_NUM_THREADS="3")
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(Path(__file__).parents[1]), "/somewhere"]
    assert environment["OMP_NUM_THREADS"] == "3"


def test_a_temporary_folder_with_a_long_name_is_reached_over_a_short_link(tmp_path: Path) -> None:
    """Workers pass tensors on over a socket there; without the link the training would wait for ever."""
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    code = """
import os, tempfile
from multiprocessing.connection import Listener
from synboost_monai.processes import check_temporary_folder
check_temporary_folder()
check_temporary_folder()
print(os.environ["TMPDIR"])
Listener(family="AF_UNIX").close()
with tempfile.NamedTemporaryFile() as file:
    print(os.path.realpath(file.name))
"""
    done = run_python(code, TMPDIR=str(folder))
    assert done.returncode == 0, done.stderr
    link, file = map(Path, done.stdout.split())
    assert len(str(link)) < 40 and not link.parent.exists()
    assert file.parent == folder and list(folder.iterdir()) == []


def test_a_temporary_folder_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for name, kind in (("nowhere", FileNotFoundError), ("file", NotADirectoryError)):
        monkeypatch.setenv("TMPDIR", str(tmp_path / name))
        with pytest.raises(kind, match="TMPDIR, the folder of temporary files"):
            check_temporary_folder()
    monkeypatch.setenv("TMPDIR", "/tmp")
    check_temporary_folder()
    assert os.environ["TMPDIR"] == "/tmp"


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
    """Return whether a process exists and is not a zombie."""
    status = Path(f"/proc/{process_id}/stat")
    return status.is_file() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_threads_wait_as_the_environment_says(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "x")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    let_threads_wait()
    assert os.environ.get("GOMP_SPINCOUNT") == expected == safe_environment().get("GOMP_SPINCOUNT")
