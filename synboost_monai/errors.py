"""Report errors that a user or the system causes in one line: `path: reason; what to do`.

Libraries wrap such an error in one of their own kinds, turn it into text, or put it into other words; `user_error` finds it again, and
every command reports its errors through `in_one_line`.
"""

from __future__ import annotations

import builtins
import contextlib
import difflib
import errno
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

from synboost_monai.processes import INTERRUPTED, TERMINATED, Terminated, check_temporary_folder, told_to_end

TRACEBACK_VARIABLE = "SYNBOOST_TRACEBACK"
"""Environment variable; if it is 1, errors of the user keep their traceback too."""
USER_MISTAKE = 2
"""Exit code for errors that a user or the system caused."""
LINE_VARIABLE = "SYNBOOST_ERROR_LINE"
"""Environment variable with a file that the line is written to as well, for the process that started this one."""

_ADVICE = {
    errno.ENOENT: "check the path",
    errno.EACCES: "give this user the right to it, or give another path",
    errno.EPERM: "give this user the right to it, or give another path",
    errno.EROFS: "give a path on a disk that can be written",
    errno.ENOSPC: "free some space, or give another folder, and run the same command again",
    errno.EDQUOT: "free some space of your quota, or give another folder, and run the same command again",
    errno.EFBIG: "the disk or `ulimit -f` takes no file so large; give another folder",
    errno.ENOTDIR: "a part of this path is a file; give a folder",
    errno.EISDIR: "it is a folder; give a file",
    errno.EEXIST: "it is there already and no folder; give another path",
    errno.ENOTEMPTY: "give an empty or new folder",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "it is a symbolic link, or leads over one; give the place itself",
    errno.EMFILE: "raise the limit (`ulimit -n 4096`), or use fewer workers",
    errno.ENFILE: "close other programs, or raise the system's limit of open files",
    errno.ENOMEM: "free some memory, or use fewer workers",
    errno.EAGAIN: "raise the limit of processes (`ulimit -u`), or use fewer workers",
    errno.ESTALE: "the network drive has lost it; mount the drive again and run the same command again",
    errno.EIO: "look after the disk or the network drive, and run the same command again",
    errno.ENOTCONN: "mount the network drive again and run the same command again",
    errno.EBUSY: "another program uses it; close that, and run the same command again",
    errno.ETXTBSY: "another program uses it; close that, and run the same command again",
    errno.EADDRINUSE: "give another port",
}
"""The system's error number -> what a user can do."""
_SHARED_MEMORY = "/dev/shm"
_SHARED_MEMORY_ADVICE = (
    "processes share tensors there: give the container more of it (`docker run --shm-size 1g`), or set --num_workers 0"
)
_SPELLED = {
    os.strerror(number): number
    for number in (*_ADVICE, errno.ENOSYS, errno.EINVAL)
    if number not in (errno.EAGAIN, errno.EBUSY, errno.EINVAL)
}
"""The system's words, as they appear in errors of other libraries -> the system's error number."""
_SQLITE = {"disk is full": errno.ENOSPC, "disk i/o error": errno.EIO, "readonly database": errno.EROFS}
_SQLITE |= {"unable to open database file": errno.EACCES}
_TORCH_WRITER = ("inline_container.cc", "PytorchStreamWriter", "iostream error")
_TEMPORARY = re.compile(r"\.\d+-[0-9a-f]{8}\.(?=[^/]*$)")  # how files.atomic_path begins a name


def did_you_mean(word: str, words: Iterable[object]) -> str:
    """Return `; did you mean X?` with the most similar word, or an empty string."""
    match = difflib.get_close_matches(word, [str(w) for w in words], n=1)
    return f"; did you mean {match[0]}?" if match else ""


def user_error(error: BaseException) -> Exception | None:
    """Return the ValueError or OSError at the root of an error, or None.

    MONAI and PyTorch wrap errors of a config's component or a transform in RuntimeErrors; a data loader's worker process even turns
    them into text. PyTorch, ITK and SQLite report the system's errors in their own words.
    """
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or getattr(chain[-1], "cause", None)) not in (None, *chain):
        if not isinstance(cause, BaseException):
            break
        chain.append(cause)
    for link in chain:
        if re.match(r"Caught \w+ in ", str(link)):  # PyTorch: of another process or thread
            if (found := _of_text(str(link))) is not None:
                return found
        elif isinstance(link, (ValueError, OSError)):
            return as_system_error(link) or link
    return next(filter(None, map(as_system_error, chain)), None)


@contextlib.contextmanager
def user_errors_of(*kinds: type[Exception]) -> Iterator[None]:
    """Raise the user's mistake itself where a library wraps it in an error of one of these kinds (see `user_error`)."""
    try:
        yield
    except kinds as error:
        known = user_error(error)
        if known is None or known is error:
            raise
        raise known from error


def as_system_error(error: BaseException) -> OSError | None:
    """Return the system's error that this error is or repeats, or None; with the shared memory's path if that failed."""
    if isinstance(error, OSError):
        if error.errno and error.filename is None and _is_of_shared_memory(error):
            return OSError(error.errno, os.strerror(error.errno), _SHARED_MEMORY)
        return error
    text = str(error)
    if type(error).__module__ == "sqlite3":
        number = next((number for words, number in _SQLITE.items() if words in text.lower()), None)
        return None if number is None else OSError(number, os.strerror(number))
    if not isinstance(error, RuntimeError):
        return None
    if any(word in text for word in _TORCH_WRITER):
        said = error.__context__
        return said if isinstance(said, OSError) else OSError(errno.EIO, "the file could not be written whole")
    is_shared = "shared memory" in text or "</torch_" in text
    if is_shared and "Bus error" in text:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), _SHARED_MEMORY)
    number = next((number for words, number in _SPELLED.items() if words in text), None)
    if number is None:
        return None
    path = re.search(r"(?:written|opened|read): (\S.*)$", text, re.MULTILINE)
    return OSError(number, os.strerror(number), _SHARED_MEMORY if is_shared else path and path[1])


def one_line(error: BaseException, where: str | None = None) -> str:
    """Return the text of an error without line breaks; for an error of the system: the path, its words, and what to do.

    Args:
        error: any error.
        where: the path that the command writes to, for errors of the system that name no path.
    """
    if not isinstance(error, OSError) or error.errno is None:
        return " ".join(str(error).split())
    named = error.filename2 if error.filename2 is not None else error.filename
    path = os.fsdecode(named) if isinstance(named, (str, bytes, os.PathLike)) else where
    words = (error.strerror or os.strerror(error.errno)).rstrip(".")
    words = words[:1].lower() + words[1:]
    advice = _SHARED_MEMORY_ADVICE if path == _SHARED_MEMORY else _ADVICE.get(error.errno)
    if error.errno == errno.ENOENT and path == where != named:
        advice = None
    line = f"{_TEMPORARY.sub('', path)}: {words}" if path else words
    return " ".join(f"{line}; {advice}".split() if advice else line.split())


@contextlib.contextmanager
def in_one_line(name: str, where: str | None = None) -> Iterator[None]:
    """Report errors of the user and of the system as one line on stderr with exit code 2; Ctrl-C and SIGTERM as one line as well.

    Any other error keeps its traceback.

    Args:
        name: beginning of the line, such as `synboost train`.
        where: see `one_line`.
    """
    told: list[BaseException] = []
    before = threading.excepthook

    def of_thread(args: Any) -> None:  # such as TensorBoard's writer, which raises it again in the main thread
        known = user_error(args.exc_value) if args.exc_value is not None else None
        if known is None or os.environ.get(TRACEBACK_VARIABLE) == "1":
            before(args)
        else:
            told.append(known)
            _say(f"{name}: {one_line(known, where)}")

    threading.excepthook = of_thread
    try:
        with told_to_end() as ending:
            try:
                check_temporary_folder()
                yield
                _flush()
            except BaseException as error:
                # a worker that the same signal ended may have raised something else on the way
                if ending.is_set() and isinstance(error, Exception):
                    raise Terminated from error
                raise
    except BrokenPipeError:  # `synboost ... | head` has read enough
        _discard_output()
        raise SystemExit(0) from None
    except Terminated:
        _say(f"{name}: terminated; the same command goes on from here")
        raise SystemExit(TERMINATED) from None
    except KeyboardInterrupt:
        _say(f"{name}: interrupted; the same command goes on from here")
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        known = user_error(error)
        if known is None or os.environ.get(TRACEBACK_VARIABLE) == "1":
            raise
        try:
            _flush()
        except OSError as of_output:
            known = known if getattr(known, "filename", None) else of_output
        if known not in told:
            _say(f"{name}: {one_line(known, where)}")
        raise SystemExit(USER_MISTAKE) from None
    finally:
        threading.excepthook = before


def _of_text(text: str) -> Exception | None:
    """Return the last error of the user in the text of a traceback, or None."""
    for kind, words in reversed(re.findall(r"^(?:\w+\.)*(\w+): (.+)$", text, re.MULTILINE)):
        known = getattr(builtins, kind, None)
        if isinstance(known, type) and issubclass(known, OSError):
            said = re.match(r"\[Errno (\d+)\] ([^:]*)(?:: '(.*?)'(?: -> '(.*)')?)?$", words)
            if said is None:
                return known(words)
            number, reason, path, target = said.groups()
            return OSError(int(number), reason, path, None, target) if path else OSError(int(number), reason)
        if isinstance(known, type) and issubclass(known, ValueError):
            return ValueError(words)
        if known is RuntimeError and (found := as_system_error(RuntimeError(words))) is not None:
            return found
    return None


def _is_of_shared_memory(error: OSError) -> bool:
    """Return whether processes could not make a shared lock or block of memory."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.endswith(
        ("multiprocessing/synchronize.py", "multiprocessing/shared_memory.py")
    )


def _flush() -> None:
    """Flush the output, so that a full disk is an error here and not noise at the end of the process."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard_output()
        raise OSError(error.errno, error.strerror, "standard output") from error


def _discard_output() -> None:
    """Discard the output that is still to be printed."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(line: str) -> None:
    """Write a line to stderr, wherever that leads."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
    if LINE_VARIABLE in os.environ:
        with contextlib.suppress(OSError), open(os.environ[LINE_VARIABLE], "w", encoding="utf-8") as file:
            file.write(line + "\n")
