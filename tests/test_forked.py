"""Test that a Python which starts as a fork behaves as the real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()


def show(word: str) -> None:
    print(word)


def test_a_forked_process_is_told_of_and_killed(tmp_path: Path) -> None:
    sleeping = Forked(time.sleep, 60)
    assert sleeping.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        sleeping.wait(0.1)
    assert sleeping.poll() == -signal.SIGKILL
    assert Forked(show, "x", folder=tmp_path).done().stdout == "x\n"
