"""Load weights from files strictly: published checkpoints into our networks, and our own model.pt.

Our networks have the published key names; only the wrapping differs: TorchScript archives, folders of transformers, `state_dict`
entries of training checkpoints, `module.` of DataParallel. Only tensors are read, and nothing is loaded unless everything fits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from .checkpoints import is_plain, read_checkpoint

_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
"""Weight files in a folder saved by transformers, in order of preference."""
_CLIP_NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""Entries of CLIP's archives that are settings, not weights."""
_WRAPPERS = ("module.", "net.", "clipseg.", "model.", "network.")
"""Prefixes of networks that training code had wrapped: DataParallel's, the two of the echo paper, and usual ones."""
_INNER_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Prefixes that PyTorch adds when it wraps a network or a part of it: `torch.compile`, sharding, checkpointing."""
_COUNT = "n_averaged"
"""Entry of PyTorch's `AveragedModel` beside its `module.`: how many networks were averaged."""
_ENTRIES = ("state_dict", "model_state_dict", "model")
"""Entries of a training checkpoint that may hold the network."""
_CRIS_OWN = "visual.attnpool.connect."
"""The part of CRIS's image encoder that CLIP does not have."""
_CLASSES_OWN = "class_embedding.weight"
"""Entry that only a SemanticDiffusionUNet with classes has: it starts at zero, so the network still equals the published one."""
_VIEW_HEAD = "view_head."
"""The part of our segmenters that predicts the view. A training decides whether its network has one, whatever it starts from."""
_POSITIONS = "backbone.positional_embedding"
"""CRIS's position codes of tokens: one row for each token of its longest prompt (17 in the first release, 77 in the echo paper)."""


class WeightsKind(NamedTuple):
    """Describe the kind of network that a checkpoint belongs to, by the names in it."""

    title: str
    """Description in words, used in messages."""
    class_name: str
    """Our network that takes these weights; "" if they are only a part of one."""
    architecture: str
    """`clipseg`, `cris` or `semantic_diffusion`: the network that they are of, or whose training they start."""
    bundle: str
    """The bundle that the weights belong to."""
    prefixes: tuple[str, ...]
    """Key prefixes: each begins at least one key, and no other kind has all of them."""


CLIP_ALONE = WeightsKind(
    "CLIP RN50 alone (no segmenter)", "", "cris", "echo_cris", ("visual.layer1.", "transformer.resblocks.")
)
"""CLIP's own archive: image and text encoder of a CRIS, without neck, decoder and projector."""
KINDS: tuple[WeightsKind, ...] = (
    WeightsKind(
        "CLIPSeg", "CLIPSeg", "clipseg", "echo_clipseg", ("clip.vision_model.", "clip.text_model.", "decoder.")
    ),
    WeightsKind("CRIS", "CRIS", "cris", "echo_cris", ("backbone.", "neck.", "decoder.", "proj.")),
    WeightsKind(
        "the semantic diffusion UNet",
        "SemanticDiffusionUNet",
        "semantic_diffusion",
        "echo_semantic_diffusion",
        ("input_blocks.", "middle_block.", "output_blocks."),
    ),
    CLIP_ALONE,
)
"""Kinds of weights that can be distinguished."""


def load_published(network: nn.Module, path: str | Path | None) -> nn.Module:
    """Load published weights or our own model.pt strictly, to start from: every key is used, none is missing, every shape is equal.

    - CLIPSeg: a folder of transformers (`CIDAS/clipseg-rd64-refined`), or its safetensors or bin file.
    - CRIS: a training checkpoint (`{"state_dict": {"module.backbone...": ...}}`), or CLIP's RN50 TorchScript archive, which fills the
      backbone except for `visual.attnpool.connect`, which only CRIS has.
    - SemanticDiffusionUNet: a flat state dict (`ema_0.9999_050000.pt`). A network with classes also takes weights without them.
    - A segmenter with a view head also takes weights without one: its head stays as it is. One without ignores a head in the file.

    Args:
        network: made by `create_segmenter` or `create_semantic_diffusion_unet`.
        path: file or folder; None leaves the network as it is (a training from scratch).
    Returns:
        `network`, so that a bundle config can name this function as a network.
    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds no weights, or those of another network; the message names the first key that does not fit.
    """
    return network if path is None else load_published_state(network, read_published(path), path)


def load_published_state(network: nn.Module, state_dict: Mapping[str, Tensor], path: str | Path) -> nn.Module:
    """Load weights that `read_published` has read, as `load_published` does; `path` is only named in errors."""
    path = Path(path)
    own_classes = network.state_dict().get(_CLASSES_OWN)
    if own_classes is not None and _CLASSES_OWN not in state_dict:
        state_dict = {**state_dict, _CLASSES_OWN: own_classes}
    backbone = getattr(network, "backbone", None)
    if backbone is not None and kind_of_weights(state_dict) is CLIP_ALONE:
        state_dict = {key: value for key, value in state_dict.items() if key not in _CLIP_NUMBERS}
        kept = {key: value for key, value in backbone.state_dict().items() if key.startswith(_CRIS_OWN)}
        _load_strictly(backbone, {**kept, **state_dict}, path)
        return network
    own_head = {key: value for key, value in network.state_dict().items() if key.startswith(_VIEW_HEAD)}
    if bool(own_head) != has_view_head(state_dict):
        state_dict = {**{k: v for k, v in state_dict.items() if not k.startswith(_VIEW_HEAD)}, **own_head}
    _load_strictly(network, state_dict, path)
    return network


def read_published(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a published checkpoint or of our own model.pt, by our networks' key names, without wrappers.

    Args:
        path: file or folder, as `load_published` takes them.
    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds no weights.
    """
    state_dict = _unwrapped(_read_state_dict(Path(path)))
    # position_ids is an arange that old versions of transformers stored
    return {key: value for key, value in state_dict.items() if not key.endswith("embeddings.position_ids")}


def kind_of_weights(state_dict: Mapping[str, Tensor]) -> WeightsKind | None:
    """Return the kind of network that a state dict belongs to, by its names; None if it is unknown."""
    return next((kind for kind in KINDS if all(any(k.startswith(p) for k in state_dict) for p in kind.prefixes)), None)


def has_view_head(state_dict: Mapping[str, Tensor]) -> bool:
    """Return whether weights are those of a network that predicts the view."""
    return any(key.startswith(_VIEW_HEAD) for key in state_dict)


def load_weights(network: nn.Module, path: str | Path | None) -> nn.Module:
    """Load our own model.pt strictly: a state dict, or {"model": state dict}; also of a wrapped network (`module.`, `_orig_mod.`).

    A CRIS takes the longest prompt of its checkpoint, as with `load_published`.

    Args:
        network: the network that takes the weights.
        path: the file; None leaves the network as it is (a training from scratch).
    Returns:
        `network`, so that a bundle config can name this function as a network.
    Raises:
        FileNotFoundError, ValueError: as `load_published`.
    """
    if path is not None:
        _load_strictly(network, _unwrapped(_read_state_dict(Path(path)), network.state_dict()), Path(path))
    return network


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a file or folder, whatever it is wrapped in."""
    if path.is_dir():
        files = [path / name for name in _FOLDER_FILES if (path / name).is_file()]
        if not files:
            raise FileNotFoundError(f"weights: the folder {path} holds neither {' nor '.join(_FOLDER_FILES)}")
        path = files[0]
    content = read_checkpoint(path)
    while isinstance(content, Mapping):
        inner = next((content[name] for name in _ENTRIES if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(
            f"weights: {path} holds no state dict (names and tensors), or one with entries that are no tensors"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not is_plain(value):
            raise ValueError(
                f"weights: {path}: {str(name)[:100]!r} is no plain tensor (dense, with its numbers in the file)"
            )
    return dict(content)


def _unwrapped(state_dict: dict[str, Tensor], own: Iterable[str] = ()) -> dict[str, Tensor]:
    """Remove the prefixes of wrapped networks, or parts of them, from the names; names in `own` must stay."""
    inner = re.compile(rf"(^|\.)(?:{'|'.join(map(re.escape, _INNER_WRAPPERS))})")
    own = set(own)
    names = {name: inner.sub(r"\1", name) for name in state_dict}
    if len(set(names.values())) == len(names) and not any(map(inner.search, own)):
        state_dict = {names[name]: value for name, value in state_dict.items()}
    while not own & state_dict.keys():
        prefix = next((p for p in _WRAPPERS if all(n.startswith(p) for n in state_dict if n != _COUNT)), None)
        if prefix is None:
            break
        state_dict = {name.removeprefix(prefix): value for name, value in state_dict.items() if name != _COUNT}
    return state_dict


def _load_strictly(network: nn.Module, state_dict: Mapping[str, Tensor], path: Path) -> None:
    """Load the weights, or say what does not fit before anything is changed.

    The longest prompt of a CRIS is the checkpoint's choice, not the architecture's: the network's table of positions gets as many rows
    as the checkpoint's.
    """
    kind, class_name = kind_of_weights(state_dict), type(network).__name__
    if kind is not None and kind.class_name != class_name and class_name in {k.class_name for k in KINDS}:
        use = f"they belong to the bundle {kind.bundle}"
        if kind is CLIP_ALONE:
            use = "they only start the training of a CRIS (bundle echo_cris, init_checkpoint)"
        raise ValueError(
            f"weights: {path} does not fit {class_name}: these are the weights of {kind.title}, not of {class_name}; {use}; "
            "choose the architecture and preset that the checkpoint was made with"
        )
    own = network.state_dict()
    positions = _other_positions(own, state_dict)
    if positions is not None:
        own[_POSITIONS] = positions
    missing = [key for key in own if key not in state_dict]
    unexpected = [key for key in state_dict if key not in own]
    misshapen = [key for key in own if key in state_dict and state_dict[key].shape != own[key].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {len(own)} keys are missing (first {missing[0]!r})")
    if unexpected:
        problems.append(f"{len(unexpected)} of {len(state_dict)} keys are unexpected (first {unexpected[0]!r})")
    if misshapen:
        key = misshapen[0]
        shapes = f"{key!r} is {tuple(state_dict[key].shape)}, the network has {tuple(own[key].shape)}"
        problems.append(f"{len(misshapen)} keys have another shape (first: {shapes})")
    if problems:
        differs = missing + unexpected
        is_head = bool(differs) and all(key.startswith(_VIEW_HEAD) for key in differs)
        advice = "choose the architecture and preset that the checkpoint was made with"
        if is_head:
            advice = f"set has_view_head to {str(bool(unexpected)).lower()}"
        raise ValueError(f"weights: {path} does not fit {type(network).__name__}: {'; '.join(problems)}; {advice}")
    if positions is not None:
        backbone, stored = network.get_submodule("backbone"), network.get_parameter(_POSITIONS)
        backbone.positional_embedding = nn.Parameter(stored.new_empty(positions.shape), stored.requires_grad)
    network.load_state_dict(state_dict)


def _other_positions(own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]) -> Tensor | None:
    """Return the checkpoint's table of token positions if it is as wide as the network's but has another number of rows."""
    ours, theirs = own.get(_POSITIONS), state_dict.get(_POSITIONS)
    if ours is None or theirs is None or theirs.ndim != 2:
        return None
    return theirs if theirs.shape[1] == ours.shape[1] and theirs.shape[0] != ours.shape[0] else None
