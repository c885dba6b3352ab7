"""Features of images by a frozen encoder, computed once and kept on disk.

Training a decoder on frozen encoders asks the image encoder for the same answers in every epoch. Here K copies of each image, as
augmentation makes them, are encoded once; an epoch then reads features. Copy 0 is the image as it is (what the network will see when it
is used), the others are augmented, each from a random state of its own, which follows from the seed, the item and the copy's number.

A folder holds one file a feature tensor and one for label maps (rows one after another, memory-mapped when read) and index.json, which
says what each row was made from: image and label map (SHA-256 of the files), the encoder's weights, preprocessing, seed, copy, types and
the version of this package. A row whose key is not in the index is computed; a row is in the index only once it is complete on disk.

R: rows in the files, K: copies of an item, N: side of the network's square.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from monai.transforms import Randomizable, Transform
from torch import nn

from synboost_monai.data.feature_files import INDEX_NAME, FeatureFiles, FolderLock, Index, RowWriter, make_folder
from synboost_monai.data.frozen_features import FeatureEncoder, ItemCopies
from synboost_monai.paths import open_own

logger = logging.getLogger(__name__)

SAVE_INTERVAL_S = 10.0
"""Seconds between two writings of the index: what a kill -9 costs at most."""
ROWS_KEY = "feature_rows"
"""Entry of a dataset's item: the rows of its copies."""
_T = TypeVar("_T")

Item = Mapping[Hashable, Any]


@dataclass
class _Plan:
    """What is to be done, the same for all processes."""

    index: Index
    rows: list[list[int]]
    """Row of each copy of each item."""
    missing: list[tuple[str, int, int, int]]
    """Key, row, item and copy of what is to be computed."""
    keys: dict[int, str]
    """Key of each row that is asked for, by its number."""


@dataclass(frozen=True)
class CachedFeatures:
    """What `cache_features` gives."""

    files: FeatureFiles
    rows: list[list[int]]
    """Rows of the copies of each item."""
    num_reused: int
    num_computed: int


def cache_features(
    data: Sequence[Item],
    image_transform: Callable[..., Any],
    network: nn.Module,
    folder: str | os.PathLike[str],
    *,
    num_copies: int = 4,
    seed: int = 0,
    batch_size: int = 8,
    feature_dtype: str = "bfloat16",
    autocast_dtype: str | None = None,
) -> CachedFeatures:
    """Features of all copies of all items, from the folder as far as they are there, computed where not.

    Under torchrun the processes share the work (rank r computes every world-size-th missing row) and wait for one another. Killed and
    called again it goes on. Rows that are no longer asked for are overwritten as places are needed; the files never shrink.

    Args:
        data: a datalist's items, with `image` and `label`.
        image_transform: item -> image (3, N, N) and label map (1, N, N); its random parts make the copies.
        network: a segmenter with a frozen image encoder.
        folder: is made; on a disk that all processes share.
        num_copies: K; 1: the image as it is. If nothing in `image_transform` is random, there is one copy whatever K is.
        seed: of the copies.
        batch_size: images that are encoded together.
        feature_dtype: bfloat16 or float16 (half the space) or float32.
        autocast_dtype: bfloat16 or float16 encodes in mixed precision.
    Raises:
        ValueError: if the network is not frozen, the folder holds other things, is in use or too small, or a number is out of range.
    """
    folder = Path(folder)
    network = getattr(network, "module", network)
    if num_copies < 1 or batch_size < 1 or not len(data):
        raise ValueError(
            "feature_cache_dir: expected items, num_feature_copies and batch_size of at least 1, got "
            f"{len(data)}, {num_copies} and {batch_size}"
        )
    encoder = FeatureEncoder(network, feature_dtype, autocast_dtype)
    _check_all_alike(encoder.digest)
    copies = ItemCopies(data, image_transform, seed)
    lock = FolderLock(folder)
    try:
        plan = _on_main_process(lambda: _open(folder, lock, copies, encoder, num_copies if copies.has_chance else 1))
        if plan.missing:
            _compute(folder, plan, copies, encoder, batch_size)
        lock.take(exclusive=False, wait=True)
        files = FeatureFiles(folder, lock)
        if any(files.index.rows[row] != key for row, key in plan.keys.items()):
            raise ValueError(
                f"{folder}: another process has just changed these rows; set feature_cache_dir to another folder"
            )
    except BaseException:
        lock.release()  # an exception that is kept must not keep the folder
        raise
    return CachedFeatures(files, plan.rows, len(plan.keys) - len(plan.missing), len(plan.missing))


def _open(folder: Path, lock: FolderLock, copies: ItemCopies, encoder: FeatureEncoder, num_copies: int) -> _Plan:
    """Lock a folder, find out what is missing in it and make room for that.

    Raises:
        ValueError: if it holds other things, is too small, or others read rows that would have to change.
    """
    make_folder(folder)
    may_write = lock.take(exclusive=True, wait=False)
    if not may_write:
        gc.collect()  # datasets of this process that nobody uses any more
        may_write = lock.take(exclusive=True, wait=False)
    if not may_write:
        logger.info(f"{folder}: in use by another process; waiting until its rows are complete")
        lock.take(exclusive=False, wait=True)
    plan = _plan(folder, copies, encoder, num_copies)
    if plan.missing:
        if not may_write:
            raise ValueError(
                f"{folder}: another training uses this folder, and {len(plan.missing)} of its rows would have to change; "
                "set feature_cache_dir to a folder of its own"
            )
        _make_room(folder, plan.index)
    return plan


def _plan(folder: Path, copies: ItemCopies, encoder: FeatureEncoder, num_copies: int) -> _Plan:
    """Which rows are there, which are missing, and where those go."""
    index = Index.read(folder)
    files = encoder.files_for(copies.make(0, 0)[0])
    made_by = {**encoder.settings, "shapes": [list(file.shape) for file in files]}
    keys = [[copies.key(item, copy, made_by) for copy in range(num_copies)] for item in range(len(copies.data))]
    wanted: dict[str, tuple[int, int]] = {}
    for item, of_item in enumerate(keys):
        for copy, key in enumerate(of_item):
            wanted.setdefault(key, (item, copy))  # an image that is listed twice has one set of rows
    there = index.row_of
    row_of = {key: there[key] for key in wanted if key in there}
    missing_keys = [key for key in wanted if key not in there]
    settings = {**made_by, **copies.settings}
    changed = sorted(key for key, value in settings.items() if index.settings.get(key, value) != value)
    if files != index.files:
        assert not row_of  # a key says what shapes its row has
        index = Index(files)
    taken = set(row_of.values())
    free = [row for row in range(len(index.rows)) if row not in taken]
    free.sort(key=lambda row: index.rows[row] is not None)  # rows of other settings are overwritten last
    rows = list(index.rows)
    missing = []
    for number, key in enumerate(missing_keys):
        row = free[number] if number < len(free) else len(rows)
        rows[row : row + 1] = [None]
        row_of[key] = row
        missing.append((key, row, *wanted[key]))
    index = Index(index.files, rows, settings)
    reason = f" ({', '.join(changed)} changed)" if changed else ""
    logger.info(
        f"{folder}: {len(wanted)} rows of image features ({len(copies.data)} items, {num_copies} copies), {_size(index.row_bytes)} each: "
        f"{len(wanted) - len(missing)} reused, {len(missing)} to compute{reason}"
    )
    return _Plan(
        index, [[row_of[key] for key in of_item] for of_item in keys], missing, {r: k for k, r in row_of.items()}
    )


def _make_room(folder: Path, index: Index) -> None:
    """Check that the rows fit on the disk, take out of the index on disk what will be overwritten, and give the files their size.

    Raises:
        ValueError: if there is not enough space.
    """
    new_bytes = 0
    for file in index.files:
        path = folder / file.name
        there = path.stat().st_blocks * 512 if path.is_file() else 0
        new_bytes += max(len(index.rows) * file.row_bytes - there, 0)
    free_bytes = shutil.disk_usage(folder).free
    logger.info(f"{folder}: {_size(new_bytes)} more on the disk, of {_size(free_bytes)} free")
    if new_bytes > free_bytes:
        raise ValueError(
            f"{folder}: image features need {_size(new_bytes)} more ({len(index.rows)} rows of {_size(index.row_bytes)}), but only "
            f"{_size(free_bytes)} are free; set num_feature_copies lower, or feature_cache_dir to another disk"
        )
    for leftover in folder.glob(f".*-*.{INDEX_NAME}"):  # of a process that was killed while it wrote
        leftover.unlink()
    index.write(folder)
    names = {file.name for file in index.files}
    for path in folder.glob("features_*.bin"):
        if path.name not in names:
            path.unlink()
    for file in index.files:
        with os.fdopen(open_own(folder / file.name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as stream:
            stream.truncate(len(index.rows) * file.row_bytes)


def _compute(folder: Path, plan: _Plan, copies: ItemCopies, encoder: FeatureEncoder, batch_size: int) -> None:
    """Compute this process's share of the missing rows; all of them are in the index when it returns."""
    from tqdm import tqdm

    rank, world_size = _rank_and_world_size()
    shares = [plan.missing[r::world_size] for r in range(world_size)]
    num_rounds = math.ceil(len(shares[0]) / batch_size)
    writer = RowWriter(folder, plan.index.files)
    unsaved: list[tuple[int, str]] = []
    saved_at = time.monotonic()
    bar = tqdm(total=len(plan.missing), desc="image features", unit="row", disable=rank > 0, mininterval=0.5)
    try:
        for number in range(num_rounds):
            part = slice(number * batch_size, (number + 1) * batch_size)
            batch = shares[rank][part]
            if batch:
                images, label_maps = zip(*(copies.make(item, copy) for _, _, item, copy in batch))
                features = encoder(torch.stack(images))
                for place, (key, row, _, _) in enumerate(batch):
                    writer.write(row, [*(tensor[place] for tensor in features), label_maps[place]])
                    unsaved.append((row, key))
            bar.update(sum(len(share[part]) for share in shares))
            is_due = number == num_rounds - 1 or time.monotonic() - saved_at >= SAVE_INTERVAL_S
            if _from_main_process(is_due):
                _save(folder, plan.index, writer, unsaved)
                unsaved, saved_at = [], time.monotonic()
    except BaseException:
        if world_size == 1:  # the others cannot be asked now
            with contextlib.suppress(OSError):
                _save(folder, plan.index, writer, unsaved)
        raise
    finally:
        bar.close()
        writer.close()


def _save(folder: Path, index: Index, writer: RowWriter, unsaved: list[tuple[int, str]]) -> None:
    """Put complete rows of all processes into the index."""
    writer.flush()
    for part in _from_all_processes(unsaved):
        for row, key in part:
            index.rows[row] = key
    if _rank_and_world_size()[0] == 0:
        index.write(folder)
    _from_main_process(None)  # the others go on when it is written


class ReadFeaturesd(Randomizable, Transform):
    """Puts the features and the label map of one copy, drawn by chance, into an item.

    `image` becomes a tuple of tensors as `encode_image` gives them, of one image and in the type that they are kept in; `label` the
    label map (1, N, N), uint8. `ROWS_KEY` is taken out.

    Args:
        files: where they are.
    """

    def __init__(self, files: FeatureFiles) -> None:
        self.files = files

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        item = dict(data)
        rows = item.pop(ROWS_KEY)
        item["image"], item["label"] = self.files.read(rows[int(self.R.randint(len(rows)))])
        return item


def _rank_and_world_size() -> tuple[int, int]:
    """Number of this process and of all; (0, 1) without distributed training."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _from_all_processes(value: _T) -> list[_T]:
    """A value of each process, by rank."""
    _, world_size = _rank_and_world_size()
    values: list[Any] = [value] * world_size
    if world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def _from_main_process(value: _T) -> _T:
    """The value of rank 0."""
    if _rank_and_world_size()[1] == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def _on_main_process(function: Callable[[], _T]) -> _T:
    """What a function gives on rank 0, for all; its error too, so that nobody waits for ever."""
    result: Any = None
    error: Exception | None = None
    if _rank_and_world_size()[0] == 0:
        try:
            result = function()
        except Exception as raised:
            error = raised
    result, error = _from_main_process((result, error))
    if error is not None:
        raise error
    return result


def _check_all_alike(digest: str) -> None:
    """Refuse processes whose encoders differ."""
    digests = _from_all_processes(digest)
    others = [str(rank) for rank, other in enumerate(digests) if other != digests[0]]
    if others:
        raise ValueError(
            f"feature_cache_dir: the image encoder's weights of rank {', '.join(others)} are not those of rank 0; load weights "
            "(init_checkpoint, image_encoder_weights), or give all processes the same seed"
        )


def _size(num_bytes: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"
