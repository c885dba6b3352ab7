"""Compute image features with a frozen encoder once and keep them on disk.

When a decoder is trained on frozen encoders, the image encoder would compute the same features in every epoch. Here K copies of each
image, as augmentation makes them, are encoded once; an epoch then reads features. Copy 0 is the unchanged image (as the network will see
it in use), the others are augmented, each from its own random state, which follows from the seed, the item and the copy's number.

A copy has one safetensors file, which holds tensors and no code, and is memory-mapped when read. Its name is the hash of everything
it was made from: image and label map (SHA-256 of the files), the encoder's weights, preprocessing, seed, copy, types and the version of
this package. So no file ever changes: existing files are used, missing ones are computed, and a file gets its name only once it is
complete. Files of other settings are left alone. index.json holds the settings of the latest use, so that a change can be named.

K: copies of an item, N: side of the network's square.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from monai.transforms import Randomizable, Transform
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from synboost_monai.distributed import in_all_processes, is_main_process, num_processes, rank
from synboost_monai.files import atomic_path, atomic_write_text, read_text
from synboost_monai.processes import LOCK_NAME, hold_folder
from synboost_monai.training.frozen_features import FeatureEncoder, ItemCopies

logger = logging.getLogger(__name__)

FEATURE_FILES_KEY = "feature_files"
"""Key of a dataset's item for the files of its copies."""
INDEX_NAME = "index.json"
"""File that marks a folder of image features and holds their latest settings."""
FORMAT = "synboost_monai image features, 2"
"""First entry of the index; the number changes with the layout of the folder."""
_SUFFIX = ".safetensors"
_FEATURES, _LABEL_MAP = "features_{}", "label_map"
_T = TypeVar("_T")

Item = Mapping[Hashable, Any]


@dataclass(frozen=True)
class FeatureOptions:
    """Options of cached features.

    Args:
        num_copies: K; 1: the unchanged image only. If nothing in the image transform is random, there is one copy whatever K is.
        seed: seed of the copies.
        batch_size: images that are encoded together.
        feature_dtype: bfloat16 or float16 (half the space) or float32.
        autocast_dtype: bfloat16 or float16 encodes in mixed precision.
    """

    num_copies: int = 4
    seed: int = 0
    batch_size: int = 8
    feature_dtype: str = "bfloat16"
    autocast_dtype: str | None = None


@dataclass(frozen=True)
class CachedFeatures:
    """Hold the result of `cache_features`."""

    paths: list[list[Path]]
    """Files of the copies of each item, for `read_features`."""
    num_reused: int
    num_computed: int


def cache_features(
    data: Sequence[Item],
    image_transform: Callable[..., Any],
    network: nn.Module,
    folder: str | os.PathLike[str],
    options: FeatureOptions,
) -> CachedFeatures:
    """Return the feature files of all copies of all items, after computing those that are missing.

    Under torchrun the processes share the work (rank r computes the missing ones among every world-size-th file) and wait for one
    another. If it is killed, the next call continues. Several trainings may use one folder; while one of them fills it, another waits.

    Args:
        data: a datalist's items, with `image` and `label`.
        image_transform: item -> image (3, N, N) and label map (1, N, N); its random parts make the copies.
        network: a segmenter with a frozen image encoder.
        folder: folder of the files, created if missing; on a disk that all processes share.
        options: how the copies are made, encoded and kept.
    Raises:
        ValueError: if the network is not frozen, the folder holds other things or has too little space, or a number is out of range.
    """
    folder = Path(folder)
    network = getattr(network, "module", network)
    if options.num_copies < 1 or options.batch_size < 1 or not len(data):
        raise ValueError(
            "feature_cache_dir: expected items, num_feature_copies and batch_size of at least 1, got "
            f"{len(data)}, {options.num_copies} and {options.batch_size}"
        )
    encoder = FeatureEncoder(network, options.feature_dtype, options.autocast_dtype)
    _check_all_alike(encoder.digest)
    copies = ItemCopies(data, image_transform, options.seed)
    image, label_map = copies.make(0, 0)
    example = _row(encoder(image[None]), label_map[None], 0)
    made_by = {**encoder.settings, "shapes": [list(tensor.shape) for tensor in example.values()]}
    num_copies = options.num_copies if copies.has_chance else 1
    paths = [
        [folder / f"{copies.key(item, copy, made_by)}{_SUFFIX}" for copy in range(num_copies)]
        for item in range(len(data))
    ]
    wanted: dict[Path, tuple[int, int]] = {}
    for item, of_item in enumerate(paths):
        for copy, path in enumerate(of_item):
            wanted.setdefault(path, (item, copy))  # an image that is listed twice has one set of files
    files = _Files(folder, wanted, len(save(example)), {**made_by, **copies.settings})
    what = f"{len(wanted)} files of image features ({len(data)} items, {num_copies} copies)"
    with contextlib.ExitStack() as held:
        in_all_processes(lambda: _open(files, what, held))
        num_computed = sum(in_all_processes(lambda: _compute(files, copies, encoder, options.batch_size)))
    return CachedFeatures(paths, len(wanted) - num_computed, num_computed)


def read_features(path: str | os.PathLike[str]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return the feature tensors of a file, in the type in which they are kept, and its label map (1, N, N), uint8.

    The tensors are memory-mapped: copy them (as collating does) before changing them.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    try:
        tensors = load_file(path)
        label_map = tensors.pop(_LABEL_MAP)
        return tuple(tensors[_FEATURES.format(i)] for i in range(len(tensors))), label_map
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(
            f"{path}: expected a file of image features, but it cannot be read ({error}); delete it, if it is there, and run the "
            "same command again"
        ) from error


class ReadFeaturesd(Randomizable, Transform):
    """Put the features and the label map of one randomly drawn copy into an item.

    `image` becomes a tuple of tensors as `encode_image` returns them, for one image and in the type that they are kept in; `label`
    becomes the label map (1, N, N), uint8. `FEATURE_FILES_KEY` is removed.
    """

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        item = dict(data)
        paths = item.pop(FEATURE_FILES_KEY)
        item["image"], item["label"] = read_features(paths[int(self.R.randint(len(paths)))])
        return item


@dataclass(frozen=True)
class _Files:
    """Hold the feature files that a training needs."""

    folder: Path
    wanted: dict[Path, tuple[int, int]]
    """File -> item and copy."""
    num_bytes: int
    """Size of each file."""
    settings: dict[str, Any]
    """Settings that all files share."""

    def is_missing(self, path: Path) -> bool:
        """Return whether a file has to be computed because it is missing or truncated."""
        return not path.is_file() or path.stat().st_size != self.num_bytes


def _open(files: _Files, what: str, held: contextlib.ExitStack) -> None:
    """Check the folder; the main process then locks it, checks whether there is enough space, and writes the index.

    Raises:
        ValueError: if the folder holds other things or has too little space.
    """
    settings_before = _read_index(files.folder)  # first, so that no lock is put into a folder that holds other things
    if not is_main_process():
        return
    held.enter_context(hold_folder(files.folder))
    for leftover in files.folder.glob(".[0-9]*-*.*"):  # left by a process that was killed while it wrote
        leftover.unlink()
    num_missing = sum(map(files.is_missing, files.wanted))
    changed = sorted(key for key, value in files.settings.items() if settings_before.get(key, value) != value)
    reason = f" ({', '.join(changed)} changed)" if changed else ""
    logger.info(
        f"{files.folder}: {what}, {_size(files.num_bytes)} each: {len(files.wanted) - num_missing} reused, "
        f"{num_missing} to compute{reason}"
    )
    free_bytes = shutil.disk_usage(files.folder).free
    if num_missing * files.num_bytes > free_bytes:
        raise ValueError(
            f"{files.folder}: image features need {_size(num_missing * files.num_bytes)} more ({num_missing} files of "
            f"{_size(files.num_bytes)}), but only {_size(free_bytes)} are free; set num_feature_copies lower, or feature_cache_dir "
            "to another disk"
        )
    content = {"format": FORMAT, "settings": files.settings}
    atomic_write_text(files.folder / INDEX_NAME, json.dumps(content, indent=0) + "\n")


def _read_index(folder: Path) -> dict[str, Any]:
    """Make the folder if it is new, and return the settings of its latest use.

    Raises:
        ValueError: if the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"{folder}: expected a folder for image features, got a file; set feature_cache_dir to a folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / INDEX_NAME
    if not path.is_file():
        others = sorted(name for name in os.listdir(folder) if name != LOCK_NAME and not _is_index(name))
        if others:
            raise ValueError(
                f"{folder}: expected a new folder or one of image features, but it holds {others[0]!r} and no {INDEX_NAME}; "
                "set feature_cache_dir to another folder"
            )
        return {}
    try:
        content = json.loads(read_text(path))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        return dict(content["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not an index of image features as this version writes it ({error}); "
            "set feature_cache_dir to another folder, or delete this one"
        ) from error


def _is_index(name: str) -> bool:
    """Return whether a file is an index, or one that was being written when a process was killed."""
    return name == INDEX_NAME or (name.startswith(".") and name.endswith(f".{INDEX_NAME}"))


def _compute(files: _Files, copies: ItemCopies, encoder: FeatureEncoder, batch_size: int) -> int:
    """Compute this process's share of the missing files, and return their number."""
    share = [path for path in list(files.wanted)[rank() :: num_processes()] if files.is_missing(path)]
    with tqdm(
        total=len(share), desc="image features", unit="file", disable=not is_main_process(), mininterval=0.5
    ) as bar:
        for start in range(0, len(share), batch_size):
            batch = share[start : start + batch_size]
            images, label_maps = zip(*(copies.make(*files.wanted[path]) for path in batch))
            features = encoder(torch.stack(images))
            for place, path in enumerate(batch):
                _write(path, _row(features, label_maps, place))
            bar.update(len(batch))
    return len(share)


def _row(features: Sequence[Tensor], label_maps: Sequence[Tensor] | Tensor, place: int) -> dict[str, Tensor]:
    """Return the tensors for the file of one image of a batch."""
    tensors = {_FEATURES.format(i): tensor[place] for i, tensor in enumerate(features)} | {
        _LABEL_MAP: label_maps[place]
    }
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _write(path: Path, row: dict[str, Tensor]) -> None:
    """Write a file whole or not at all.

    Raises:
        ValueError: if the disk is full.
    """
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(row))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(
            f"{path.parent}: the disk is full ({error.strerror}); free some space and call again (complete files are kept), "
            "or set num_feature_copies lower or feature_cache_dir to another disk"
        ) from error


def _check_all_alike(digest: str) -> None:
    """Refuse processes whose encoders differ."""
    digests = in_all_processes(lambda: digest)
    others = [str(number) for number, other in enumerate(digests) if other != digests[0]]
    if others:
        raise ValueError(
            f"feature_cache_dir: the image encoder's weights of rank {', '.join(others)} are not those of rank 0; load weights "
            "(init_checkpoint, image_encoder_weights), or give all processes the same seed"
        )


def _size(num_bytes: int) -> str:
    """Return a number of bytes as text with a unit."""
    return f"{tqdm.format_sizeof(num_bytes)}B"
