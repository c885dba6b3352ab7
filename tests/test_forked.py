"""Test that a Python which starts as a fork behaves as the real one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import fork_server
from tests.forked import Forked, fork_server_folder

SHOW = "import os, sys; print(sys.argv[1:], os.getcwd(), os.environ['WORD'], sys.stdin.read()); print('told', file=sys.stderr)"


@pytest.mark.parametrize("options", [[], ["-u"], ["-P"], ["-E", "-P"]])
def test_streams_folder_environment_and_words_are_those_given(tmp_path: Path, options: list[str]) -> None:
    said = []
    (tmp_path / "script.py").write_text(SHOW)
    for python in (sys.executable, str(fork_server_folder() / "python")):
        for command in ([*options, "-c", SHOW], [*options, "script.py"]):
            words = [python, *command, "a b", "$(c)"]
            given = {"cwd": tmp_path, "env": {**os.environ, "WORD": "x\ny"}, "input": "in", "text": True}
            done = subprocess.run(words, **given, capture_output=True)
            said.append((done.returncode, done.stdout, done.stderr))
    assert set(said) == {(0, f"['a b', '$(c)'] {tmp_path} x\ny in\n", "told\n")}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("raise SystemExit(7)", 7),
        ("1 / 0", 1),
        ("raise SystemExit('no')", 1),
        ("import os; os.kill(os.getpid(), 9)", -9),
    ],
)
def test_it_ends_as_it_should(code: str, expected: int) -> None:
    assert (
        subprocess.run([fork_server_folder() / "python", "-c", code], stderr=subprocess.DEVNULL).returncode == expected
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_signal_reaches_the_fork(number: int) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([fork_server_folder() / "python", "-c", code], **pipes)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.send_signal(number)
    # a Python that has loaded MONAI ends with 1 at Ctrl-C
    assert process.wait(10) in ((-number, 1) if number == signal.SIGINT else (-number,))
    wait_for_the_end(pid)


@pytest.mark.parametrize("said", [b"", b"12345678", b"\0" * 7 + b"\x09"])
def test_a_client_that_ends_while_it_asks_ends_no_other(said: bytes) -> None:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(fork_server_folder() / "socket"))
    connection.sendall(said)
    connection.close()
    assert Forked(show, "x").done().stdout == "x\n"


def test_a_fork_whose_client_ends_before_it_knows_of_it_is_killed() -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    request = fork_server.parse(["-c", code])
    assert request is not None
    request |= {"folder": os.getcwd(), "environment": dict(os.environ), "executable": sys.executable}
    reading, writing = os.pipe()
    connection = fork_server.ask(fork_server_folder(), request, [0, writing, 2])
    with open(reading) as said:
        pid = int(said.readline())
    os.close(writing)
    connection.close()  # the answer, which is on its way or here, is not read
    wait_for_the_end(pid)
    assert Forked(show, "x").done().stdout == "x\n"


def wait_for_the_end(pid: int) -> None:
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def show(word: str) -> None:
    print(word)


def test_a_forked_process_is_told_of_and_killed(tmp_path: Path) -> None:
    sleeping = Forked(time.sleep, 60)
    assert sleeping.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        sleeping.wait(0.1)
    assert sleeping.poll() == -signal.SIGKILL
    assert Forked(show, "x", folder=tmp_path).done().stdout == "x\n"
