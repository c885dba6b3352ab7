"""Read the tensors of checkpoint files without running any code that comes with them.

Every file of weights passes `read_checkpoint`: PyTorch's own files by its restricted loader, safetensors, and TorchScript archives by
`torchscript.py`. Records may not inflate, and pickles may not be long: the tensors are stored outside them.
"""

from __future__ import annotations

import io
import itertools
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .torchscript import Refusal, read_record, read_torchscript

_NO_CHECKPOINTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs.", "a pointer of Git LFS: run `git lfs pull` in the repository that it comes from"),
    (b"version https://hawser.", "a pointer of Git LFS: run `git lfs pull` in the repository that it comes from"),
    (b"/annex/objects/", "a pointer of git-annex: run `git annex get` in the repository that it comes from"),
    (b"\x1f\x8b", "packed by gzip: unpack it first"),
    (b"BZh", "packed by bzip2: unpack it first"),
    (b"\xfd7zXZ\x00", "packed by xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd: unpack it first"),
    (b"7z\xbc\xaf", "packed by 7-Zip: unpack it first"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "an array of numpy"),
)
"""First bytes of files that are often mistaken for checkpoints, and what these files are."""
_HEAD_BYTES = 1024
"""Bytes at the start of a file that are examined for its kind."""
_ZIP = b"PK\x03\x04"
_MAX_PICKLE_BYTES = 1 << 24
"""Longest pickle: names and shapes of a hundred thousand tensors; the tensors themselves are stored outside it."""
_MAX_OPERATIONS = 4_000_000
"""Most operations in the pickles of a file from before PyTorch 1.6, for the same reason; a tensor takes about thirty."""
_NUM_PICKLES = 4
"""Pickles in a file from before PyTorch 1.6: magic number, version, facts of the machine, content."""


def read_checkpoint(path: str | Path, is_mapped: bool = False) -> Any:
    """Read the containers, numbers, strings and tensors of a checkpoint file; no code of the file is run, and tensors are on the CPU.

    Args:
        path: a file written by `torch.save`, a safetensors file or a TorchScript archive, whatever its name ends with.
        is_mapped: leave tensors on the disk until they are used, where that is possible.
    Returns:
        the content; for a TorchScript archive, its parameters and buffers by name.
    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is something else, is damaged, or holds more than that; in one line, without PyTorch's advice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: there is no file {path}; check the path (nothing is downloaded)")
    num_bytes = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
    reason = _what_else_it_is(head, num_bytes)
    if reason is None:
        try:
            return _content(path, head, num_bytes, is_mapped)
        except OSError:
            raise
        except Exception as error:  # any kind: PyTorch's readers raise whatever they run into
            reason = _reason(error, path, head)
    reason = "".join(letter if letter.isprintable() else "?" for letter in reason)  # it may repeat names of the file
    kinds = "PyTorch, TorchScript or safetensors"
    # from None: PyTorch's text advises to load the file with its code, and a traceback would show it
    raise ValueError(f"weights: cannot read {path} as a checkpoint of tensors ({kinds}): {reason}") from None


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is dense and stores each of its numbers once: repeated numbers would take no bytes in the file."""
    is_dense = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return is_dense and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def is_torchscript(path: str | Path) -> bool:
    """Return whether a file is a TorchScript archive: a zip archive of PyTorch with code."""
    with open(path, "rb") as file:
        if file.read(len(_ZIP)) != _ZIP or not zipfile.is_zipfile(file):
            return False
    with zipfile.ZipFile(path) as archive:
        return _has_code(archive)


def _what_else_it_is(head: bytes, num_bytes: int) -> str | None:
    """Return what a file is if it is certainly not a checkpoint; None otherwise."""
    if not head:
        return "it is empty; copy or download it again"
    size = f"{num_bytes:,} bytes"
    for start, words in _NO_CHECKPOINTS:
        if head.startswith(start):
            kind, colon, advice = words.partition(": ")
            return f"it is {kind} ({size}){colon}{advice}"
    if re.match(rb"(\xef\xbb\xbf)?\s*<[!?a-zA-Z]", head) and _is_text(head):
        return (
            f"it is a web page ({size}), the answer of a server in place of the file; download it again, in a browser "
            "if the page asks for a login or a click"
        )
    if head[257:262] == b"ustar":
        return f"it is a tar archive ({size}); unpack it and give the file of weights in it (PyTorch's own of before 2018 are not read)"
    return None


def _content(path: Path, head: bytes, num_bytes: int, is_mapped: bool) -> Any:
    """Read the file's content with the reader for its kind."""
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= num_bytes - 8:
        from safetensors.torch import load_file

        return load_file(path)
    is_zip = head.startswith(_ZIP)
    if is_zip:
        if not zipfile.is_zipfile(path):
            raise Refusal(f"its end is missing (it has {num_bytes:,} bytes); copy or download it again")
        with zipfile.ZipFile(path) as archive:
            _check_records(archive, num_bytes)
            if _has_code(archive):
                return read_torchscript(archive)
    else:
        _check_pickles(path)
    with torch.serialization.safe_globals(_numpy_scalars()):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip and is_mapped)


def _check_pickles(path: Path) -> None:
    """Refuse a file from before PyTorch 1.6 whose pickles are longer than names and shapes need; they are not run."""
    with open(path, "rb") as file:
        operations = itertools.chain.from_iterable(pickletools.genops(file) for _ in range(_NUM_PICKLES))
        try:
            is_long = any(number > _MAX_OPERATIONS for number, _ in enumerate(operations))
        except Exception:  # not a pickle, or a damaged one: PyTorch's reader says so
            return
    if is_long:
        raise Refusal(f"its pickle has more than {_MAX_OPERATIONS:,} operations, which no names of tensors need")


def _reason(error: Exception, path: Path, head: bytes) -> str:
    """Say in our own words why a file was not read."""
    if isinstance(error, Refusal):
        return str(error)
    message = str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in message:
        return "its tensors do not fit into the memory"
    if type(error).__name__ == "SafetensorError":
        return f"it is a damaged safetensors file ({(message.splitlines() or [''])[0]})"
    named = re.search(r"GLOBAL ([\w.]+)", message)
    name = named[1][:100] if named else _foreign_name(path, head)
    if name:
        return (
            f"it asks for {name}, which is code; only tensors, numbers and strings are read. Where it was made, save the state dict "
            "alone: torch.save(network.state_dict(), path)"
        )
    if _is_text(head):
        return f"it is a text that begins with {head[:40].decode(errors='replace').strip()!r}"
    return "it is damaged, or something else"


def _foreign_name(path: Path, head: bytes) -> str | None:
    """Find the first name outside PyTorch, numpy and containers that a pickle asks for, without running it; PyTorch may refuse its form."""
    last = ("", "")
    try:
        file = io.BytesIO(_pickle_in(path, head))
        for code, argument, _ in itertools.chain.from_iterable(pickletools.genops(file) for _ in range(_NUM_PICKLES)):
            name = ".".join(last) if code.name == "STACK_GLOBAL" else str(argument).replace(" ", ".")
            is_asked = code.name in ("GLOBAL", "INST", "STACK_GLOBAL")
            if is_asked and name.split(".")[0] not in ("torch", "numpy", "collections", "_codecs"):
                return name[:100]
            if isinstance(argument, str):
                last = (last[1], argument)
    except Exception:  # not a pickle, a damaged one, or only its beginning
        pass
    return None


def _pickle_in(path: Path, head: bytes) -> bytes:
    """Return the beginning of a file, or the pickle in an archive."""
    if not head.startswith(_ZIP):
        with open(path, "rb") as file:
            return file.read(_MAX_PICKLE_BYTES)
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        return read_record(archive, name, _MAX_PICKLE_BYTES)


def _is_text(head: bytes) -> bool:
    """Return whether a file begins with nothing but text."""
    text = head.decode(errors="replace").removeprefix("\ufeff")
    return all(letter.isprintable() or letter.isspace() for letter in text) and text.count("\ufffd") <= 1


def _numpy_scalars() -> list[Any]:
    """List what is needed to unpickle a numpy number: training checkpoints keep their best score as one."""
    scalar = np.float64(0).__reduce__()[0]
    old_name = "numpy.core.multiarray.scalar"  # before numpy 2
    return [scalar, (scalar, old_name), np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType]


# --- zip archives ----------------------------------------------------------------------------------------------------


def _has_code(archive: zipfile.ZipFile) -> bool:
    return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())


def _check_records(archive: zipfile.ZipFile, num_bytes: int) -> None:
    """Refuse an archive that PyTorch did not write, or whose records would take more memory than the file has bytes."""
    # code is packed, and only parts of it are read, if any
    records = [entry for entry in archive.infolist() if entry.filename.split("/")[1:2] != ["code"]]
    if not any(entry.filename.endswith("/data.pkl") for entry in records):
        raise Refusal("it is a zip archive that PyTorch did not write; unpack it and give the file of weights in it")
    packed = next((entry.filename for entry in records if entry.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise Refusal(f"its record {packed[-60:]!r} is packed, and PyTorch packs no tensors")
    if any(entry.filename.endswith("/data.pkl") and entry.file_size > _MAX_PICKLE_BYTES for entry in records):
        raise Refusal(f"its data.pkl has more than {_MAX_PICKLE_BYTES:,} bytes, which no names of tensors need")
    claimed = sum(entry.file_size for entry in records)
    if claimed > num_bytes:
        raise Refusal(f"its records claim {claimed:,} bytes, but the file has {num_bytes:,}")
