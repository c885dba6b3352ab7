"""Serve forks of one Python that has torch and MONAI in memory, so that a process of its own starts in no time.

    python tests/fork_server.py serve FOLDER LIBRARY ...    listens at FOLDER/socket until its standard input ends
    python tests/fork_server.py FOLDER ARGUMENT ...         does what `python ARGUMENT ...` does, as a fork

`tests/forked.py` writes FOLDER/python, which runs the second command: `subprocess`, Snakemake, torchrun and xdist start it as any other
Python. The fork has its folder, environment and standard streams. A command line that a fork cannot obey, as with other options than -c,
-m, -P and -u, goes to the real Python, whose path FOLDER/real holds.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
import threading
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MAX_REQUEST = 2**24
"""Longest request, in bytes."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(words: Sequence[str]) -> None:
    if words[0] == "serve":
        request = serve(Path(words[1]), words[2:])
        if request is not None:
            run_and_end(request)
    else:
        client(Path(words[0]), words[1:])


def client(folder: Path, words: Sequence[str]) -> None:
    """Have a fork run `python words`, pass signals on to it, and end as it ends."""
    environment = dict(os.environ)
    request = parse(words)
    if request is None:
        real = (folder / "real").read_text(encoding="utf-8")
        os.execve(real, [real, *words], environment)
    request |= {"folder": os.getcwd(), "environment": environment, "executable": str(folder / "python")}
    connection = ask(folder, request, (0, 1, 2))
    pid = receive(connection)
    for number in FORWARDED:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status = receive(connection)
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no other way
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def parse(words: Sequence[str]) -> dict[str, Any] | None:
    """Return what the command line of a Python asks for, or None if a fork cannot do it."""
    is_safe = bool(os.environ.get("PYTHONSAFEPATH"))
    for position, word in enumerate(words):
        if word in ("-c", "-m"):
            return {"way": word, "what": words[position + 1], "words": words[position + 2 :], "is_safe": is_safe}
        if word == "-P":
            is_safe = True
        elif not word.startswith("-"):
            return {"way": "", "what": word, "words": words[position + 1 :], "is_safe": is_safe}
        elif word != "-u":
            break
    return None


def ask(folder: Path, request: dict[str, Any], streams: Sequence[int]) -> socket.socket:
    """Send a request and the standard streams; the answers are the process id and, at its end, the exit code, which `receive` reads."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(folder / "socket"))
    mask = os.umask(0o077)
    os.umask(mask)
    payload = json.dumps({**request, "mask": mask}).encode()
    socket.send_fds(connection, [struct.pack("!q", len(payload))], streams)
    connection.sendall(payload)
    return connection


def receive(connection: socket.socket) -> int:
    """Return the next answer; a server that is gone has killed its forks."""
    answer = connection.recv(8, socket.MSG_WAITALL)
    return struct.unpack("!q", answer)[0] if len(answer) == 8 else -signal.SIGKILL


def serve(folder: Path, libraries: Sequence[str]) -> dict[str, Any] | None:
    """Serve forks; returns None at the end of the standard input, and in each fork what it was asked for.

    The libraries are imported at the first request, which waits as do all that come meanwhile. A fork whose client is gone is killed.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(64)
    print(flush=True)  # for who started the server
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the forks
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    selector = selectors.DefaultSelector()
    for source in (listener, sys.stdin, woken):
        selector.register(source, selectors.EVENT_READ)
    forks: dict[int, socket.socket] = {}
    is_ready = False
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                for pid in forks:
                    os.kill(pid, signal.SIGKILL)
                return None
            if key.fileobj is listener:
                if not is_ready:
                    load(libraries)
                    is_ready = True
                connection = listener.accept()[0]
                try:
                    request, streams = read_request(connection)
                except (OSError, ValueError, struct.error):  # who asked has ended before it had said all
                    connection.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    for own in (selector, listener, connection, *forks.values()):
                        own.close()
                    leave_the_server(streams, (woken, wakes))
                    return request
                for stream in streams:
                    os.close(stream)
                forks[pid] = connection
                selector.register(connection, selectors.EVENT_READ, pid)
                tell(connection, pid)
            elif key.fileobj == woken:
                os.read(woken, 4096)
                for pid in list(forks):
                    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                        connection = forks.pop(pid)
                        tell(connection, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                        selector.unregister(connection)
                        connection.close()
            elif key.data in forks and is_gone(key.fileobj):  # type: ignore[arg-type]
                os.kill(key.data, signal.SIGKILL)


def leave_the_server(streams: Sequence[int], pipe: Sequence[int]) -> None:
    """Take the standard streams of the request, and handle signals as a new Python does; `pipe` is the server's."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor, stream in enumerate(streams):
        os.dup2(stream, descriptor)
    for descriptor in (*pipe, *streams):
        os.close(descriptor)


def load(libraries: Sequence[str]) -> None:
    for name in libraries:
        with contextlib.suppress(ImportError):
            __import__(name)
    gc.freeze()  # memory that no fork's collector touches stays shared


def read_request(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    header, streams, _, _ = socket.recv_fds(connection, 8, 3)
    length = struct.unpack("!q", header)[0]
    if not 0 < length <= MAX_REQUEST:
        raise ValueError(f"a request of {length} bytes")
    return json.loads(connection.recv(length, socket.MSG_WAITALL)), list(streams)


def is_gone(client: socket.socket) -> bool:
    """Tell whether a client, which sends nothing more after its request, has closed its connection, with or without having read it."""
    try:
        return not client.recv(1)
    except ConnectionError:  # it has left the process id unread
        return True


def tell(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # who asked is gone
        connection.sendall(struct.pack("!q", number))


def run_and_end(request: dict[str, Any]) -> None:
    """Be the process that was asked for, and end as Python does, but without taking the libraries apart, which is half a second of work."""
    code: Any = 0
    try:
        run(request)
    except KeyboardInterrupt:
        raise
    except SystemExit as asked:
        code = asked.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 255)


def run(request: dict[str, Any]) -> None:
    """Run what was asked for in its folder and environment."""
    own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    os.umask(request["mask"])
    sys.executable = request["executable"]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    way, what = request["way"], request["what"]
    first = [] if request["is_safe"] else [os.path.dirname(what) if way == "" else ""]
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*first, *given, *(path for path in sys.path[1:] if path not in own)]
    sys.argv = [{"": what, "-m": "-m", "-c": "-c"}[way], *request["words"]]
    if "tempfile" in sys.modules:
        sys.modules["tempfile"].tempdir = None  # TMPDIR is asked again
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(threads))
    if way == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif way == "-c":
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
