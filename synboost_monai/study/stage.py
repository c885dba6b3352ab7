"""Run one stage of a study as a supervised process: `python -m synboost_monai.study.stage NAME`, in the run's folder.

The stage's command runs in a process of its own, which ends when the study's process is gone (kill -9 of the study leaves no
process behind). Its seconds are summed over interruptions. Its folder is emptied first, unless the same stage was interrupted in it
with the same command and inputs: then the stage continues from its own state.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synboost_monai.errors import LINE_VARIABLE, did_you_mean, in_one_line
from synboost_monai.files import atomic_write_text, read_text
from synboost_monai.processes import end_child, ends_with_parent, module_command, safe_environment
from synboost_monai.study.run import PARENT_VARIABLE
from synboost_monai.study.settings import read_run

_PROGRAMS = ("python", "torchrun")
"""First words of a full command."""
SAVE_SECONDS = 10.0
"""Interval at which the time spent is saved while the stage runs, in seconds."""


def run_stage(
    name: str,
    title: str,
    output_dir: str | None,
    inputs: Sequence[str],
    total: int,
    words: Sequence[str],
    threads: int | None = None,
) -> int:
    """Run one stage in the working directory, which is the run's folder.

    Args:
        name: name of the stage; the file timing/NAME.json marks it as done.
        title: title for readers.
        output_dir: folder of the stage, emptied unless this run continues the same stage; None if it has no folder of its own.
        inputs: files that the stage depends on.
        total: number of stages of the whole study.
        words: the command, as after `synboost`; or a full command if the first word is `python` or `torchrun`.
        threads: cores that the stage may use; None leaves this to the libraries.
    Returns:
        exit code of the command.
    """
    state_path, timing_path = Path(".stages", f"{name}.json"), Path("timing", f"{name}.json")
    fingerprint = _fingerprint(words, inputs)
    state = json.loads(read_text(state_path)) if state_path.is_file() else {}
    goes_on = state.get("fingerprint") == fingerprint and state.get("status") != "done"
    if not goes_on:
        state = {"seconds": 0.0, "attempts": 0}
        if output_dir and Path(output_dir).is_dir():
            shutil.rmtree(output_dir)
    state |= {
        "name": name,
        "title": title,
        "command": shlex.join(words if words[0] in _PROGRAMS else ["synboost", *words]),
        "fingerprint": fingerprint,
        "status": "running",
        "attempts": state["attempts"] + 1,
    }
    num_done = len(list(Path("timing").glob("*.json"))) - timing_path.is_file()
    again = " (goes on after an interruption)" if goes_on else ""
    print(f"\n[{min(num_done + 1, total)}/{total}] {title}{again}", file=sys.stderr, flush=True)

    line_path = state_path.with_suffix(".line").resolve()
    line_path.unlink(missing_ok=True)
    code = _supervise(words, state, state_path, threads, {LINE_VARIABLE: str(line_path)})
    state |= {"status": "failed" if code else "done", "returncode": code}
    if line_path.is_file():
        state["line"] = read_text(line_path, errors="replace").strip()
        line_path.unlink()
    atomic_write_text(state_path, json.dumps(state, indent=2) + "\n")
    if code:
        return code
    timing = {k: state[k] for k in ("name", "title", "command", "seconds", "attempts")}
    atomic_write_text(timing_path, json.dumps(timing, indent=2) + "\n")
    print(f"      done in {state['seconds']:.1f} s", file=sys.stderr, flush=True)
    return 0


def _supervise(
    words: Sequence[str], state: dict[str, Any], state_path: Path, threads: int | None, variables: Mapping[str, str]
) -> int:
    """Run the command, save the time spent at intervals, and end the command when the study's process is gone."""
    host, _, study_process = os.environ.get(PARENT_VARIABLE, "").rpartition(":")
    if host not in ("", platform.node()):  # another machine of a cluster, whose scheduler ends the stage
        study_process = ""
    before, start, saved = state["seconds"], time.monotonic(), 0.0
    environment = safe_environment(**variables, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)}))
    log_path = Path("logs", f"{state['name']}.txt")  # output of bundles: every metric of every epoch
    log_path.parent.mkdir(exist_ok=True)
    with open(log_path if "run" in words else os.devnull, "a", encoding="utf-8") as log:
        stdout = log if "run" in words else sys.stderr
        process = subprocess.Popen(_command(words), stdout=stdout, env=environment, preexec_fn=ends_with_parent())
    while True:
        spent = time.monotonic() - start
        state["seconds"] = round(before + spent, 2)
        if spent - saved >= SAVE_SECONDS or saved == 0.0:
            saved = max(spent, 1e-9)
            atomic_write_text(state_path, json.dumps(state, indent=2) + "\n")
        try:
            code = process.wait(timeout=min(1.0, 0.05 + spent))
            state["seconds"] = round(before + time.monotonic() - start, 2)
            return code if code >= 0 else 128 - code
        except subprocess.TimeoutExpired:
            pass
        except KeyboardInterrupt as told:
            return end_child(process, told)
        if study_process and not _is_alive(int(study_process)):
            process.kill()
            process.wait()
            raise SystemExit(137)


def _command(words: Sequence[str]) -> list[str]:
    """Return a stage's words as a command of this Python."""
    if words[0] == "torchrun":
        return [*module_command("torch.distributed.run"), *words[1:]]
    if tuple(words[:2]) == ("python", "-m"):
        return [*module_command(words[2]), *words[3:]]
    return [sys.executable, *words[1:]] if words[0] == "python" else [*module_command("synboost_monai"), *words]


def _is_alive(process_id: int) -> bool:
    """Return whether a process exists."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _fingerprint(words: Sequence[str], inputs: Sequence[str]) -> str:
    """Return a digest of the command and of each input's size and time of change."""
    facts: list[list[Any]] = [list(words)]
    facts += [[p, Path(p).stat().st_size, Path(p).stat().st_mtime_ns] for p in sorted(inputs)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def main() -> None:
    """Read the stage from the command line, run it, and end with its exit code."""
    parser = argparse.ArgumentParser(prog="python -m synboost_monai.study.stage", description=__doc__)
    parser.add_argument("name", help="a stage of the study whose run this folder is")
    parser.add_argument("--threads", type=int, help="cores that it may use")
    arguments = parser.parse_args()
    with in_one_line(f"stage {arguments.name}", str(Path.cwd())):
        study = read_run(Path("."))
        if arguments.name not in study.stages:
            raise ValueError(f"{study.name} has no such stage{did_you_mean(arguments.name, list(study.stages))}")
        stage = study.stages[arguments.name]
        inputs = [study.stages[name].timing for name in stage.needs]
        total = len(study.stages)
        code = run_stage(stage.name, stage.title, stage.output_dir, inputs, total, stage.command, arguments.threads)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
