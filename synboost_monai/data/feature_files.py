"""Files of a folder of image features: one of rows for each tensor, and an index that says what each row is.

Rows lie one after another and are read through memory maps. A row counts when the index names its key, which is written last, whole or
not at all; so a process may be killed at any time.

R: rows in the files, N: side of the network's square.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synboost_monai.io import atomic_write_text, read_text
from synboost_monai.paths import open_own
from synboost_monai.processes import lock

logger = logging.getLogger(__name__)

FEATURE_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
"""Types that features are kept in, as configs write them."""
INDEX_NAME = "index.json"
"""File that says what each row is."""
FORMAT = "synboost_monai image features, 1"
"""First entry of the index; the number changes with the layout of the files."""
LOCK_NAME = "lock"
"""File that processes lock."""
_DTYPES = {**FEATURE_DTYPES, "uint8": torch.uint8}
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class TensorFile:
    """One file of rows."""

    name: str
    shape: tuple[int, ...]
    """Of one row."""
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize


@dataclass
class Index:
    """Content of index.json."""

    files: tuple[TensorFile, ...] = ()
    """Of the feature tensors, then of the label maps."""
    rows: list[str | None] = field(default_factory=list)
    """Key of each complete row; None: nothing yet."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What all rows share, so that a change can be named."""

    @property
    def row_of(self) -> dict[str, int]:
        """Key -> row."""
        return {key: row for row, key in enumerate(self.rows) if key is not None}

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in all files."""
        return sum(file.row_bytes for file in self.files)

    def write(self, folder: Path) -> None:
        """Write whole or not at all."""
        files = [{"name": f.name, "shape": f.shape, "dtype": f.dtype} for f in self.files]
        content = {"format": FORMAT, "settings": self.settings, "files": files, "rows": self.rows}
        atomic_write_text(folder / INDEX_NAME, json.dumps(content, indent=0) + "\n")

    @staticmethod
    def read(folder: Path) -> Index:
        """The index of a folder; an empty one if the folder is new.

        Raises:
            ValueError: if the folder holds something else.
        """
        path = folder / INDEX_NAME
        if not path.is_file():
            others = sorted(name for name in os.listdir(folder) if not _is_own_leftover(name))
            if others:
                raise ValueError(
                    f"{folder}: expected a new folder or one of image features, but it holds {others[0]!r} and no {INDEX_NAME}; "
                    "set feature_cache_dir to another folder"
                )
            return Index()
        try:
            content = json.loads(read_text(path))
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}")
            files = tuple(TensorFile(f["name"], tuple(f["shape"]), f["dtype"]) for f in content["files"])
            index = Index(files, list(content["rows"]), dict(content["settings"]))
            row_bytes = [file.row_bytes for file in files]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: not an index of image features as this version writes it ({error}); "
                "set feature_cache_dir to another folder, or delete this one"
            ) from error
        for file, num_bytes in zip(files, row_bytes):
            rows_path = folder / file.name
            if not rows_path.is_file() or rows_path.stat().st_size < len(index.rows) * num_bytes:
                index.rows = [None] * len(index.rows)  # the file was deleted or cut
        return index


class FeatureFiles:
    """Reads rows of a folder of features; holds a shared lock on it, so that no other process changes them meanwhile.

    Args:
        folder: with an index.
        lock: released with this object.
    """

    def __init__(self, folder: Path, lock: FolderLock | None = None) -> None:
        self.folder = folder
        self.index = Index.read(folder)
        self._lock = lock
        self._maps: list[Tensor] | None = None

    def read(self, row: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """Feature tensors of a row, in the type in which they are kept, and its label map (1, N, N), uint8.

        They lie in the mapped files: copy them (as collating does) before changing them.
        """
        if self._maps is None:
            self._maps = [self._map(file) for file in self.index.files]
        *features, label_map = (rows[row] for rows in self._maps)
        return tuple(features), label_map

    def _map(self, file: TensorFile) -> Tensor:
        """(R, ...) of a file, by private memory map."""
        num_rows = len(self.index.rows)
        size = num_rows * math.prod(file.shape)
        rows = torch.from_file(str(self.folder / file.name), shared=False, size=size, dtype=_DTYPES[file.dtype])
        return rows.view(num_rows, *file.shape)

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: they map the files anew, and rely on the lock of their parent."""
        return {**self.__dict__, "_lock": None, "_maps": None}


class FolderLock:
    """Lock of a folder: exclusive while rows are written, shared while they are read; it goes with this object, or its process.

    Where the file system knows no locks, there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self._descriptor: int | None = None

    def take(self, *, exclusive: bool, wait: bool) -> bool:
        """Take the lock, or turn the one that is held into the other kind -> whether that worked (always, if waited for)."""
        if self._descriptor is None:
            self._descriptor = open_own(self.path, os.O_RDWR | os.O_CREAT)
        # where it waits, that ends with the process that has it: a training, whose lock the system takes away when it ends
        return lock(self._descriptor, self.path, exclusive=exclusive, waits=wait)

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.release()


class RowWriter:
    """Writes rows at their places in the files (not through a memory map: a full disk is then an error, not a crash)."""

    def __init__(self, folder: Path, files: Sequence[TensorFile]) -> None:
        self.files = files
        self._descriptors = [open_own(folder / file.name, os.O_WRONLY) for file in files]

    def write(self, row: int, tensors: Sequence[Tensor]) -> None:
        """Write one row, a tensor a file.

        Raises:
            ValueError: if the disk is full.
        """
        for file, descriptor, tensor in zip(self.files, self._descriptors, tensors):
            content = memoryview(bytes_of(tensor)).cast("B")
            offset = row * file.row_bytes
            assert len(content) == file.row_bytes, (file, tensor.shape)
            try:
                while content:
                    written = os.pwrite(descriptor, content, offset)
                    content, offset = content[written:], offset + written
            except OSError as error:
                if error.errno in _NO_SPACE:
                    raise ValueError(
                        f"{file.name}: the disk is full ({error.strerror}); free some space and call again (complete rows are kept), "
                        "or set num_feature_copies lower or feature_cache_dir to another disk"
                    ) from error
                raise

    def flush(self) -> None:
        """Return when everything is on the disk."""
        for descriptor in self._descriptors:
            os.fsync(descriptor)

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder for features if it is new.

    Raises:
        ValueError: if it holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"{folder}: expected a folder for image features, got a file; set feature_cache_dir to a folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    Index.read(folder)  # before a lock is put into a folder that is not ours


def _is_own_leftover(name: str) -> bool:
    """Whether a file in a folder without an index is of a cache that was killed before it wrote one."""
    return name == LOCK_NAME or (name.startswith(".") and name.endswith(f".{INDEX_NAME}"))


def bytes_of(tensor: Tensor) -> Any:
    """Memory of a tensor as an array of bytes."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
