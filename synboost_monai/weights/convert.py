"""Convert published weights to a bundle's model.pt with its model.json."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from synboost_monai.files import sha256_of
from synboost_monai.model_card import ModelCard, card_path, known_facts, read_card, write_model
from synboost_monai.weights.options import ARCHITECTURES, ConvertOptions
from synboost_monai.weights.table import entry_of_hash


def convert_weights(source: str | os.PathLike[str], output: str | os.PathLike[str], options: ConvertOptions) -> str:
    """Write a published checkpoint, or a model.pt of ours, as a bundle's model.pt: tensors only, our names, one flat state dict.

    The facts of the weights are written beside them as model.json; those in the source's model.json, if it has one, are kept.

    Args:
        source: file or folder, in any form that `networks.load_published` takes.
        output: the file, such as models/model.pt; or a folder, for a model.pt in it.
        options: what the weights are, as far as neither the source's model.json nor the names in the checkpoint say it; the type and
            licence to write. Files of 16 bits are half the size, and all our networks load them. With `partial`, neck, decoder and
            projector of the CRIS are random, so that the file can only start a training.
    Returns:
        text about the written file: architecture, parameters, SHA-256, licence.
    Raises:
        FileNotFoundError: if the checkpoint does not exist.
        ValueError: if it does not fit, is CLIP alone without `partial`, or `output` is there already.
    """
    from synboost_monai.networks import published
    from synboost_monai.networks.precision import dtype_named

    architecture, preset = options.architecture, options.preset
    if architecture is not None and architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be {', '.join(ARCHITECTURES)}, got {architecture!r}")
    path = Path(output)
    if path.is_dir() or str(output).endswith(("/", os.sep)):
        path = path / "model.pt"
    for there in (path, card_path(path)):
        if there.exists():
            raise ValueError(f"{there} is there already; name another file, or remove it")
    dtype = dtype_named(options.dtype)
    state_dict = published.read_published(Path(source))
    kind = published.kind_of_weights(state_dict)
    known = read_card(source)
    said = {} if preset is None else {"preset": preset}
    facts = {"preset": "published", **known_facts(source, said, architecture=architecture), **said}
    preset, architecture = str(facts["preset"]), architecture or (known.architecture if known is not None else None)
    if architecture is None and kind is None:
        raise ValueError(f"{source} is none of the networks known here; say which with --architecture")
    architecture = architecture or (kind.architecture if kind is not None else "")
    is_clip_alone = kind is published.CLIP_ALONE and architecture == "cris"
    if is_clip_alone and not options.partial:
        raise ValueError(
            f"{source} is CLIP RN50 alone: of a CRIS it has the encoders, and neck, decoder and projector would be random, which "
            "segments nothing; give it to `synboost train echo_cris --init_checkpoint` as it is, or pass --partial true for a model.pt "
            "that only starts a training"
        )
    has_view_head = published.has_view_head(state_dict)
    if has_view_head:  # also of weights without a card
        facts["has_view_head"] = True
    network = _create(architecture, preset, **({"has_view_head": True} if has_view_head else {}))
    published.load_published_state(network, state_dict, Path(source))
    card = known or ModelCard(architecture, facts, training={"converted_from": Path(source).name})
    card = replace(card, facts=facts, licence=options.licence or (card.licence if known else _licence_of(source)))
    card = write_model(_in_dtype(network, dtype), path, card) or card
    num_parameters = sum(p.numel() for p in network.parameters())
    lines = [
        f"weights: {path}",
        f"  network    {type(network).__name__} ({architecture}, preset {preset}), {num_parameters:,} parameters",
        f"  type       {card.dtype}, {path.stat().st_size:,} bytes",
        f"  sha256     {card.weights_sha256}",
        f"  licence    {card.licence}",
        f"  says so    {card_path(path)}",
    ]
    if is_clip_alone:
        lines.append("  partial    neck, decoder and projector are random: use it as init_checkpoint only")
    return "\n".join(lines)


def _in_dtype(network: Any, dtype: Any) -> dict[str, Any]:
    """Return a network's weights in a torch.dtype; whole numbers stay as they are."""
    weights = {}
    for name, value in network.state_dict().items():
        weights[name] = value.to(dtype) if value.is_floating_point() else value
        if not weights[name].isfinite().all() and value.isfinite().all():
            kind = str(dtype).removeprefix("torch.")
            raise ValueError(f"{name} has values that {kind} cannot hold; take --dtype bfloat16, or leave it out")
    return weights


def _create(architecture: str, preset: str, **of_network: Any) -> Any:
    """Create the network that the weights are for; its random parts are the same every time."""
    import torch

    from synboost_monai.networks import create_segmenter, create_semantic_diffusion_unet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if architecture == "semantic_diffusion":
            return create_semantic_diffusion_unet(preset)
        return create_segmenter(architecture, preset, **of_network)


def _licence_of(source: str | os.PathLike[str]) -> str:
    """Return the licence of a file, which the table has if it knows the file's hash."""
    entry = entry_of_hash(sha256_of(source)) if os.path.isfile(source) else None
    return (
        f"{entry.licence} ({entry.name})"
        if entry
        else "not known here; that of the page it came from holds (synboost weights list)"
    )
