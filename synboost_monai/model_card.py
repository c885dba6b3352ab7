"""Describe a file of weights in `model.json` beside `model.pt`, written with the weights and read by everything that loads them.

It is data: JSON of a known form, bounded, with the SHA-256 of the weights that it describes. A checkpoint without one works as well;
facts that are stated nowhere are then as published (`PUBLISHED_FACTS`).
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synboost_monai import __version__
from synboost_monai.files import atomic_path, atomic_write_text, known_sha256, read_text, sha256_of
from synboost_monai.processes import safe_environment

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

FORMAT = "synboost-model"
"""Entry `format` of a card; a JSON file without it is not a card."""
FORMAT_VERSION = 1
"""Entry `format_version`; raised when earlier readers could not understand a card."""
MAX_CARD_BYTES = 1 << 20
"""Largest card that is read."""
WRITING_SECONDS = 0.2
"""Seconds after which weights and card that do not belong together are read again: a training may be between writing the two."""
VOCABULARY = "CLIP byte pair encoding, 49408 tokens"
"""Vocabulary of the prompts of every segmenter of the project."""
NOT_STATED = "not stated"
"""Licence of weights for which no licence was given."""

_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_OF_SEGMENTERS = {
    "preset": "published",
    "keep_aspect": True,
    "padding_id": 0,
    "domain_word": False,
    "has_view_head": False,
}

PUBLISHED_FACTS: Mapping[str, Mapping[str, Any]] = {
    "cris": {**_OF_SEGMENTERS, "image_size": 416, "mask_padding": True, **_CLIP},
    "clipseg": {**_OF_SEGMENTERS, "image_size": 352, **_IMAGENET},
    "semantic_diffusion": {
        "preset": "published",
        "image_size": 256,
        "keep_aspect": True,
        "num_class_embeds": None,
        "sector_threshold": 0,
    },
}
"""Architecture -> facts of a trained model, by the configs' keys: their values if neither the user nor a card states them."""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier() and len(value) <= 40


def _are_channels(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


_IS_BOOL = ("true or false", lambda value: isinstance(value, bool))
_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "preset": ("a word such as published, small or tiny", _is_word),
    "image_size": ("a number of pixels, 1 to 16384", lambda value: _is_whole(value, 1, 16384)),
    "keep_aspect": _IS_BOOL,
    "mask_padding": _IS_BOOL,
    "domain_word": _IS_BOOL,
    "has_view_head": _IS_BOOL,
    "padding_id": ("a token, 0 to 49407", lambda value: _is_whole(value, 0, 49407)),
    "image_mean": ("three numbers", _are_channels),
    "image_std": ("three numbers above 0", lambda value: _are_channels(value) and min(value) > 0),
    "num_class_embeds": ("a number of classes, or null", lambda value: value is None or _is_whole(value, 1, 1000)),
    "sector_threshold": ("a number", _is_number),
}
"""Fact -> its allowed values, in words and as a check."""
_FITS_START = ("preset", "mask_padding")
"""Facts without which weights cannot even start a training; the others may be changed by it."""


@dataclass(frozen=True)
class ModelCard:
    """Hold what is known of weights."""

    architecture: str
    """A key of `PUBLISHED_FACTS`."""
    facts: Mapping[str, Any]
    """Fact, by the configs' keys -> value; a missing one is not known."""
    prompt_level: str | Sequence[str] | None = None
    """Level of the prompts in training."""
    licence: str = NOT_STATED
    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the training; of paths only the last name."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """Measured values, such as val_mean_dice and epoch."""
    dtype: str = "float32"
    """Type in which the file holds the weights."""
    synboost_version: str = __version__
    """Version of the package that wrote them."""
    commit: str | None = None
    """Commit of the package's repository, if it ran from one."""
    weights_sha256: str = ""
    """SHA-256 of the file of weights."""

    def title(self) -> str:
        """Describe the weights in one line."""
        said = [f"{self.architecture}, preset {self.facts.get('preset', 'not known')}"]
        said += [f"{self.facts['image_size']} px"] if "image_size" in self.facts else []
        said += [f"licence {self.licence}", f"SHA-256 {self.weights_sha256[:12]}"]
        return ", ".join(said)

    def as_json(self) -> dict[str, Any]:
        """Return the content of the card's file."""
        is_segmenter = self.architecture != "semantic_diffusion"
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "architecture": self.architecture,
            **self.facts,
            **({"prompt_level": _plain(self.prompt_level), "vocabulary": VOCABULARY} if is_segmenter else {}),
            "dtype": self.dtype,
            "licence": self.licence,
            "measured": _plain(self.measured),
            "training": _plain(self.training),
            "synboost_version": self.synboost_version,
            "commit": self.commit,
            "weights_sha256": self.weights_sha256,
        }


def new_card(
    facts: Mapping[str, Any],
    training: Mapping[str, Any],
    prompt_level: str | Sequence[str] | None = None,
    licence: str = NOT_STATED,
) -> ModelCard:
    """Make the card of a training whose weights are still to come.

    Args:
        facts: from `resolve_facts`.
        training: its settings.
        prompt_level: of its prompts.
        licence: of the weights.
    """
    known = {key: value for key, value in facts.items() if key != "architecture"}
    settings = {key: _without_place(key, value) for key, value in training.items()}
    return ModelCard(facts["architecture"], known, prompt_level, licence, settings, commit=source_commit())


def resolve_facts(
    architecture: str,
    checkpoint_path: str | os.PathLike[str] | None,
    said: Mapping[str, Any],
    is_start: bool = False,
) -> dict[str, Any]:
    """Find the facts of a model: those of the user, else those of the card beside its weights, else the published ones.

    Args:
        architecture: of the bundle.
        checkpoint_path: the weights; nothing is known of them if it is None or a file without a card.
        said: fact -> the user's value, or None.
        is_start: the weights start a training, which may change facts that they do not need in order to fit.
    Returns:
        `architecture`, and each fact of it.
    Raises:
        ValueError: if the card contradicts the user, or belongs to other weights; if a value is not allowed.
    """
    chosen = {key: value for key, value in said.items() if value is not None}
    for key, value in chosen.items():
        check_fact(key, value, f"--{key}")
    known = known_facts(checkpoint_path, chosen, is_start, architecture)
    return {"architecture": architecture, **PUBLISHED_FACTS[architecture], **known, **chosen}


def known_facts(
    checkpoint_path: str | os.PathLike[str] | None,
    said: Mapping[str, Any],
    is_start: bool = False,
    architecture: str | None = None,
) -> dict[str, Any]:
    """Read the facts in the card beside weights; without a card there are none.

    Args:
        checkpoint_path, is_start: as in `resolve_facts`.
        said: the user's values; keys that are not facts are ignored.
        architecture: of the bundle; None: any.
    Raises:
        ValueError: if the card contradicts the user, or belongs to other weights.
    """
    card = None if checkpoint_path is None else read_card(checkpoint_path)
    if checkpoint_path is None or card is None:
        return {}
    where = card_path(checkpoint_path)
    if architecture not in (None, card.architecture):
        raise ValueError(
            f"{where}: these are weights of {card.architecture}, not of {architecture}; take the bundle echo_{card.architecture}, or "
            "other weights"
        )
    for key, value in card.facts.items():
        if key in said and said[key] != value and (key in _FITS_START or not is_start):
            raise ValueError(
                f"{where}: these weights were made with {key} {value}, but --{key} says {said[key]}; leave --{key} out, or take other "
                "weights"
            )
    _say_once(f"{checkpoint_path}: {card.title()}")
    return dict(card.facts)


def card_path(weights_path: str | os.PathLike[str]) -> Path:
    """Return the path of the card beside weights: model.json for model.pt."""
    return Path(weights_path).with_suffix(".json")


def read_card(weights_path: str | os.PathLike[str]) -> ModelCard | None:
    """Read the card beside weights.

    Returns:
        the card; None if the file does not exist or is not a card.
    Raises:
        ValueError: if it is damaged, has a newer version, or belongs to other weights than those beside it.
    """
    path, weights_path = card_path(weights_path), Path(weights_path)
    if not weights_path.is_file() or not path.is_file():
        return None
    for is_second in (False, True):
        content = _content(path)
        if content is None:
            return None
        card, found = _checked(content, path), known_sha256(weights_path)
        if found == card.weights_sha256:
            break
        if not is_second:
            time.sleep(WRITING_SECONDS)
    else:
        raise ValueError(
            f"{path}: speaks of weights with SHA-256 {card.weights_sha256[:12]}..., but {weights_path.name} has {found[:12]}...: one of "
            "the two was replaced, or a training was stopped between writing them; run that training again, or copy both files "
            "again, or remove this one and say --preset and --image_size"
        )
    return card


def write_model(
    weights: Mapping[str, Tensor], path: str | os.PathLike[str], card: ModelCard | None = None
) -> ModelCard | None:
    """Write weights, tensors alone in one flat state dict, and their card beside them: each whole or not at all.

    The weights come first. A process that is killed between the two leaves the card of the previous weights, as its SHA-256 shows.

    Args:
        weights: name -> tensor.
        path: such as model.pt.
        card: without the hash and the type, which are found here; for None, a card of other weights is removed.
    Returns:
        the card as it was written.
    """
    import torch

    state = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    with atomic_path(path) as temporary:
        with open(
            temporary, "wb"
        ) as file:  # an open file: torch would write the temporary name into it, and its hash would vary
            torch.save(state, file)
        digest = sha256_of(temporary)
    beside = card_path(path)
    if card is None:
        if beside.is_file() and _content(beside) is not None:
            beside.unlink()
        return None
    kinds = {str(value.dtype).removeprefix("torch.") for value in state.values() if value.is_floating_point()}
    card = replace(card, weights_sha256=digest, dtype="+".join(sorted(kinds)) or card.dtype)
    atomic_write_text(beside, json.dumps(card.as_json(), indent=2, ensure_ascii=False) + "\n")
    return card


def check_fact(key: str, value: Any, where: str) -> None:
    """Refuse a value that a fact cannot have.

    Raises:
        ValueError: if the value is refused; the message begins with `where`.
    """
    words, is_right = _CHECKS[key]
    if not is_right(value):
        raise ValueError(f"{where} must be {words}, got {value!r}")


def source_commit() -> str | None:
    """Find the commit of the clone that this package runs from, with `-dirty` if files were changed since; None without a clone."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=safe_environment())
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


# ---- helpers


@lru_cache(maxsize=16)
def _say_once(message: str) -> None:
    logger.info(message)


def _content(path: Path) -> dict[str, Any] | None:
    """Read the entries of a card's file; return None if it is not a card."""
    if path.stat().st_size > MAX_CARD_BYTES:
        return None
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected JSON that says what the weights beside it are, got something else ({error}); copy it again, or remove it "
            "and say --preset and --image_size"
        ) from error
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def _checked(content: Mapping[str, Any], path: Path) -> ModelCard:
    """Make a card from a file's entries, each of which must be of the right kind."""
    version = content.get("format_version")
    if not _is_whole(version, 1, FORMAT_VERSION):
        raise ValueError(
            f"{path}: has format_version {version!r}, but this synboost-monai {__version__} reads up to {FORMAT_VERSION}; install a "
            "newer one"
        )
    architecture = str(content.get("architecture"))
    if architecture not in PUBLISHED_FACTS:
        raise ValueError(f"{path}: architecture must be {', '.join(PUBLISHED_FACTS)}, got {architecture!r}")
    facts = {key: content[key] for key in PUBLISHED_FACTS[architecture] if key in content}
    for key, value in facts.items():
        check_fact(key, value, f"{path}: {key}")
    texts = ("dtype", "licence", "synboost_version", "weights_sha256", "vocabulary")
    others = ("format", "format_version", "architecture", "prompt_level", "training", "measured", "commit")
    wrong = [key for key in content if key not in {*facts, *texts, *others}]
    wrong += [key for key in texts if not isinstance(content.get(key, ""), str)]
    wrong += [key for key in ("training", "measured") if not isinstance(content.get(key, {}), dict)]
    wrong += [] if isinstance(content.get("commit"), (str, type(None))) else ["commit"]
    wrong += [] if _is_level(content.get("prompt_level")) else ["prompt_level"]
    digest = content.get("weights_sha256", "")
    if wrong or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        entry = (wrong or ["weights_sha256"])[0]
        raise ValueError(
            f"{path}: its entry {entry[:60]!r} is not one of a card, or not of the right kind; copy the file again"
        )
    kept = ("prompt_level", "licence", "training", "measured", "dtype", "synboost_version", "commit", "weights_sha256")
    return ModelCard(architecture, facts, **{key: content[key] for key in kept if key in content})


def _is_level(value: Any) -> bool:
    """Return whether a value is a prompt level, or several."""
    if isinstance(value, list):
        return all(isinstance(level, str) for level in value)
    return value is None or isinstance(value, str)


def _without_place(key: str, value: Any) -> Any:
    """Return a setting that may be shown: of a file or folder only its name, which tells nothing about the machine and its users."""
    is_place = key.endswith(("_dir", "_path", "_checkpoint")) and isinstance(value, (str, os.PathLike))
    return Path(value).name if is_place else value


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it; NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
