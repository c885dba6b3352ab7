"""List public weights, fetch them (the only network access of the project), and convert them to a bundle's model.pt.

`synboost weights list | get NAME OUT | convert SOURCE OUT`. Nothing is fetched without a SHA-256 to check it: if it is not known
here, the reader of the source page passes it, or fetches by hand.
"""

from __future__ import annotations

import difflib
import http.client
import os
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from synboost_monai import __version__
from synboost_monai.files import sha256_of
from synboost_monai.model_card import ModelCard, card_path, known_facts, read_card, write_model

ACTIONS = ("list", "get", "convert")
"""Actions of `synboost weights`."""
ARCHITECTURES = ("clipseg", "cris", "semantic_diffusion")
"""Networks that weights can be converted to."""
TIMEOUT_S = 60.0
"""Seconds without an answer after which a download counts as broken."""
DTYPES = ("float32", "float16", "bfloat16")
"""Types that weights can be written in."""
_BLOCK_BYTES = 1 << 20
"""Number of bytes that are read at a time."""
_MAX_BYTES = 4_000_000_000
"""Largest size of a file whose exact size is not known here: the largest in the table has 2.6 GB."""


@dataclass(frozen=True)
class PublicWeights:
    """Hold the facts of one published checkpoint."""

    name: str
    """Name for `get`."""
    title: str
    architecture: str
    """One of `ARCHITECTURES`, which the checkpoint is, or which it can start."""
    fits: str
    """Bundle and preset that it fits, and its use there."""
    file_name: str
    licence: str
    page: str
    """Web page where a reader finds it."""
    by_hand: str
    """What to do if `get` cannot fetch it."""
    size: str
    """Size in words."""
    num_bytes: int | None = None
    """Exact size, if it is known."""
    sha256: str | None = None
    """SHA-256 of the file, as its publisher states it; None if it is not known here."""
    url: str | None = None
    """Address of the file itself; None if a program cannot fetch it."""

    @property
    def max_bytes(self) -> int:
        """Return the number of bytes after which a download is stopped."""
        return _MAX_BYTES if self.num_bytes is None else self.num_bytes

    @property
    def how(self) -> str:
        """Return how to get it: a command, or the way by hand."""
        if self.url is not None and self.sha256 is not None:
            return f"synboost weights get {self.name} OUT"
        if self.url is not None:
            return f"synboost weights get {self.name} OUT --sha256 HEX, or by hand: {self.by_hand}"
        return f"by hand: {self.by_hand}"


_CLIPSEG_PAGE = "https://huggingface.co/CIDAS/clipseg-rd64-refined"
_CLIPSEG_REVISION = "583b388deb98a04feb3e1f816dcdb8f3062ee205"
"""Commit of the page's repository: the file at an address with it cannot change."""
_CLIP_RN50_SHA256 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
"""Part of the address in clip/clip.py of github.com/openai/CLIP, which checks the file with it."""

WEIGHTS: tuple[PublicWeights, ...] = (
    PublicWeights(
        name="clipseg-rd64-refined",
        title="CLIPSeg as published, trained on PhraseCut (150.7 million parameters)",
        architecture="clipseg",
        fits="echo_clipseg, preset published: init_checkpoint of train, or converted",
        file_name="pytorch_model.bin",
        licence="Apache-2.0",
        page=_CLIPSEG_PAGE,
        by_hand=(
            f"open {_CLIPSEG_PAGE}/blob/{_CLIPSEG_REVISION}/pytorch_model.bin, which shows the file's SHA256 and a download link "
            "(model.safetensors of the main branch, or the whole folder, load as well)"
        ),
        size="603 MB",
        url=f"{_CLIPSEG_PAGE}/resolve/{_CLIPSEG_REVISION}/pytorch_model.bin",
    ),
    PublicWeights(
        name="clip-rn50",
        title="CLIP RN50 of OpenAI, a TorchScript archive: image and text encoder alone",
        architecture="cris",
        fits="echo_cris, preset published: init_checkpoint of train (neck, decoder and projector start at random)",
        file_name="RN50.pt",
        licence="MIT",
        page="https://github.com/openai/CLIP",
        by_hand="the address is in clip/clip.py of the page",
        size="256 MB",
        num_bytes=255_827_503,
        sha256=_CLIP_RN50_SHA256,
        url=f"https://openaipublic.azureedge.net/clip/models/{_CLIP_RN50_SHA256}/RN50.pt",
    ),
    PublicWeights(
        name="cris",
        title="CRIS with RN50, trained on RefCOCO by a user of the published code (its authors released no checkpoint)",
        architecture="cris",
        fits="echo_cris, preset published: init_checkpoint of train, or converted; prompts of at most 17 tokens",
        file_name="cris_best.pt",
        licence="not stated (the code is MIT)",
        page="https://github.com/DerrickWang005/CRIS.pytorch/issues/3",
        by_hand=(
            "take the checkpoint from the folder that a comment of 25 October 2022 on the page links to: the one that the echo paper "
            "started from; nobody states its hash, so open it with this program alone, which runs no code of a checkpoint"
        ),
        size="about 0.6 GB of weights",
    ),
    PublicWeights(
        name="sdm-camus",
        title="Semantic diffusion models of Echo from Noise, one for each view and phase of CAMUS (652 million parameters each)",
        architecture="semantic_diffusion",
        fits="echo_semantic_diffusion, preset published: checkpoint_path once converted, or init_checkpoint of train",
        file_name="ema_0.9999_050000.pt",
        licence="see the page (the code, github.com/david-stojanovski/echo_from_noise, is MIT)",
        page="https://zenodo.org/record/7921055",
        by_hand="download the pretrained models from the page, unpack them if they are packed, and take an ema_*.pt",
        size="about 2.6 GB each",
    ),
    PublicWeights(
        name="synthetic-boost",
        title="CLIPSeg and CRIS of the Synthetic Boost paper, fine-tuned on CAMUS and on synthetic images",
        architecture="clipseg, cris",
        fits="echo_cris or echo_clipseg, preset published; CRIS with mask_padding false and prompts padded with 49407",
        file_name="best.ckpt",
        licence="CC BY 4.0 (models, by the page's README)",
        page="https://github.com/naamiinepal/synthetic-boost",
        by_hand="the page links no checkpoint; ask its authors, or train: synboost train echo_cris",
        size="about 0.6 GB each",
    ),
)
"""All sets of weights that we know and can load. Sizes, licences and hashes are those of the pages."""


def run_action(
    action: str,
    source: str | None = None,
    output: str | None = None,
    *,
    architecture: str | None = None,
    preset: str | None = None,
    partial: bool = False,
    sha256: str | None = None,
    dtype: str = "float32",
    licence: str | None = None,
) -> str:
    """Do an action of `synboost weights`, and return the text to print.

    Args:
        action: `list`, `get` (source: name; output: file or folder) or `convert` (source: checkpoint; output: model.pt).
        architecture, preset, partial, dtype, licence: see `convert_weights`.
        sha256: see `get_weights`.
    Raises:
        ValueError, FileNotFoundError: in one line, for mistakes of the user.
    """
    if action not in ACTIONS:
        raise ValueError(f"expected {', '.join(ACTIONS)}, got {action!r}")
    if action == "list":
        if source is not None:
            raise ValueError(f"list takes no further word, got {source!r}")
        return weights_table()
    if source is None or output is None:
        words = "NAME OUT" if action == "get" else "SOURCE OUT"
        raise ValueError(f"{action} needs two words, {words}; see `synboost weights --help`")
    if action == "get":
        return f"weights: {get_weights(source, output, sha256)}"
    return convert_weights(source, output, architecture, preset, partial, dtype, licence)


def weights_table() -> str:
    """Return a text with one paragraph for each set of weights."""
    paragraphs = []
    for entry in WEIGHTS:
        lines = [f"{entry.name}: {entry.title}"]
        facts = {
            "network": entry.architecture,
            "fits": entry.fits,
            "size": entry.size if entry.num_bytes is None else f"{entry.size} ({entry.num_bytes:,} bytes)",
            "licence": entry.licence,
            "page": entry.page,
            "sha256": entry.sha256 or "not known here",
            "get": entry.how,
        }
        lines += [f"  {key:<9}{value}" for key, value in facts.items()]
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


def find_weights(name: str) -> PublicWeights:
    """Return the entry called `name`.

    Raises:
        ValueError: if it does not exist.
    """
    known = {entry.name: entry for entry in WEIGHTS}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"no weights are called {name!r}{hint}; there are {', '.join(known)}")
    return known[name]


# --- get -------------------------------------------------------------------------------------------------------------


def get_weights(name: str, output: str | os.PathLike[str], sha256: str | None = None) -> Path:
    """Fetch published weights, checked by size and SHA-256; the one function of the project that opens a connection.

    Bytes are counted as they come, whatever number the server announces: no more than the entry's size, or 4 GB, reach the disk.
    An interrupted download goes on where it stopped, if the server allows that. Proxies come from the environment, as urllib reads it.

    Args:
        name: of an entry of `WEIGHTS`.
        output: a file to write, or a folder for a file with the publisher's name.
        sha256: 64 hexadecimal digits, as the source page states them, for an entry whose hash is not known here.
    Returns:
        the file; one that is already there with the right hash is left as it is.
    Raises:
        ValueError: if the entry does not exist, or has no address or no hash; if the connection fails, or the file is a wrong one.
    """
    entry = find_weights(name)
    expected = _expected_sha256(entry, sha256)
    if entry.url is None or expected is None:
        missing = "no address that a program can fetch from" if entry.url is None else "no known SHA-256 to check it by"
        raise ValueError(f"{name} has {missing}; {entry.how} (licence: {entry.licence}; page: {entry.page})")
    path = Path(output)
    if path.is_dir() or str(output).endswith(("/", os.sep)):
        path = path / entry.file_name
    if path.exists():
        if path.is_file() and sha256_of(path) == expected:
            return path
        raise ValueError(f"{path} is there already and is not {name}; name another file, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"{entry.title}\nlicence: {entry.licence}\npage: {entry.page}\nsize: {entry.size}", flush=True)
    partial = path.with_name(f".{path.name}.partial")
    if partial.is_symlink() or (partial.exists() and not partial.is_file()):
        raise ValueError(f"{partial} is there already and is no plain file; remove it")
    _download(entry, partial, path)
    found = sha256_of(partial)
    if found != expected:
        partial.unlink()
        raise ValueError(
            f"{name} has SHA-256 {found}, expected {expected}; the file was damaged on its way or replaced, and is removed: "
            f"try again, or see {entry.page}"
        )
    os.replace(partial, path)
    return path


def _expected_sha256(entry: PublicWeights, given: str | None) -> str | None:
    """Return the hash to check a file with: the table's, or the one that the user read on the page."""
    if given is None:
        return entry.sha256
    digits = given.strip().lower().removeprefix("sha256:")
    if len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
        raise ValueError(f"--sha256 must be 64 hexadecimal digits, got {given!r}; copy it from {entry.page}")
    if entry.sha256 is not None and digits != entry.sha256:
        raise ValueError(f"the SHA-256 of {entry.name} is {entry.sha256}, not {digits}; leave --sha256 out")
    return digits


def _download(entry: PublicWeights, partial: Path, path: Path) -> None:
    """Download an entry's file into `partial`, from where that ends; stop if the size is wrong."""
    from tqdm import tqdm

    assert entry.url is not None
    start = partial.stat().st_size if partial.exists() else 0
    if start >= entry.max_bytes:
        if start == entry.num_bytes:
            return  # only the check was interrupted
        partial.unlink()
        start = 0
    try:
        with _open(entry.url, start) as response:
            goes_on = response.status == http.client.PARTIAL_CONTENT
            start = start if goes_on else 0
            length = response.headers.get("Content-Length", "")
            total = start + int(length) if length.isdigit() else entry.num_bytes
            if entry.num_bytes is not None and total not in (None, entry.num_bytes):
                raise ValueError(
                    f"{entry.url} has {total:,} bytes, expected {entry.num_bytes:,}: it is another file; see {entry.page}"
                )
            if total is not None and total > entry.max_bytes:
                partial.unlink(missing_ok=True)
                raise ValueError(_too_long(entry))
            bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=entry.name, dynamic_ncols=True)
            with bar, open(partial, "ab" if goes_on else "wb", opener=_open_here) as file:
                num_found = start
                while block := response.read(_BLOCK_BYTES):
                    num_found += len(block)
                    if num_found > entry.max_bytes:
                        partial.unlink()
                        raise ValueError(_too_long(entry))
                    file.write(block)
                    bar.update(len(block))
            if total is not None and num_found < total:
                raise http.client.IncompleteRead(b"", total - num_found)
    except urllib.error.HTTPError as error:
        raise ValueError(
            f"{entry.url} answers {error.code} ({error.reason}); by hand: {entry.by_hand}, and save it as {path}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        if partial.exists() and partial.stat().st_size == 0:
            partial.unlink()
        reason = getattr(error, "reason", error) or type(error).__name__
        kept = (
            f"; {partial.stat().st_size:,} bytes are kept, the same command goes on from there"
            if partial.exists()
            else ""
        )
        raise ValueError(
            f"cannot fetch {entry.name} from {urlsplit(entry.url).hostname} ({reason}){kept}; check the connection and the "
            f"proxy (HTTPS_PROXY), or fetch {entry.url} on another machine and save it as {path}"
        ) from error


def _too_long(entry: PublicWeights) -> str:
    """Return the message for an answer that has more bytes than any file of the entry."""
    return f"{entry.url} has more than {entry.max_bytes:,} bytes: it is another file, and nothing of it is kept; see {entry.page}"


def _open_here(path: str, flags: int) -> int:
    """Open a file for `open`, but not through a symbolic link."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow an answer that names another address, but from https only to https."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the request for another address.

        Raises:
            ValueError: if that address is less safe than the first.
        """
        if urlsplit(newurl).scheme not in ("https", urlsplit(req.full_url).scheme):
            raise ValueError(f"{req.full_url} leads to {newurl}, which is not https; nothing is fetched from there")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, start: int) -> Any:
    """Open an answer for `url` from byte `start` on, or from 0 if the server cannot go on there."""
    headers = {"User-Agent": f"synboost-monai/{__version__}"}
    # made anew: it reads the proxies of the environment now, and urlopen remembers those of its first call
    opener = urllib.request.build_opener(_SafeRedirects)
    if start:
        try:
            request = urllib.request.Request(url, headers={**headers, "Range": f"bytes={start}-"})
            response = opener.open(request, timeout=TIMEOUT_S)
            if response.status != http.client.PARTIAL_CONTENT or _range_start(response) == start:
                return response
            response.close()
        except urllib.error.HTTPError as error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
    return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)


def _range_start(response: Any) -> int | None:
    """Return the first byte of a partial answer, from `Content-Range: bytes START-END/TOTAL`."""
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else None


# --- convert ---------------------------------------------------------------------------------------------------------


def convert_weights(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    architecture: str | None = None,
    preset: str | None = None,
    partial: bool = False,
    dtype: str = "float32",
    licence: str | None = None,
) -> str:
    """Write a published checkpoint, or a model.pt of ours, as a bundle's model.pt: tensors only, our names, one flat state dict.

    The facts of the weights are written beside them as model.json; those in the source's model.json, if it has one, are kept.

    Args:
        source: file or folder, in any form that `networks.load_published` takes.
        output: the file, such as models/model.pt; or a folder, for a model.pt in it.
        architecture: one of `ARCHITECTURES`; None: by the source's model.json, or the names in the checkpoint.
        preset: preset that the checkpoint was made with; None: that of the source's model.json, else published.
        partial: accept CLIP RN50 alone too: neck, decoder and projector of the CRIS are then random, so that the file can only start
            a training.
        dtype: of `DTYPES`; those of 16 bits make a file of half the size, which all our networks load.
        licence: of the weights, for model.json; None: the source's.
    Returns:
        text about the written file: architecture, parameters, SHA-256, licence.
    Raises:
        FileNotFoundError: if the checkpoint does not exist.
        ValueError: if it does not fit, is CLIP alone without `partial`, or `output` is there already.
    """
    from synboost_monai.networks import published

    if architecture is not None and architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be {', '.join(ARCHITECTURES)}, got {architecture!r}")
    path = Path(output)
    if path.is_dir() or str(output).endswith(("/", os.sep)):
        path = path / "model.pt"
    for there in (path, card_path(path)):
        if there.exists():
            raise ValueError(f"{there} is there already; name another file, or remove it")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be {', '.join(DTYPES)}, got {dtype!r}")
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
    if is_clip_alone and not partial:
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
    card = replace(card, facts=facts, licence=licence or (card.licence if known else _licence_of(source)))
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


def _in_dtype(network: Any, dtype: str) -> dict[str, Any]:
    """Return a network's weights in a type; whole numbers stay as they are."""
    import torch

    weights = {}
    for name, value in network.state_dict().items():
        weights[name] = value.to(getattr(torch, dtype)) if value.is_floating_point() else value
        if not weights[name].isfinite().all() and value.isfinite().all():
            raise ValueError(f"{name} has values that {dtype} cannot hold; take --dtype bfloat16, or leave it out")
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
    known = {entry.sha256: entry for entry in WEIGHTS if entry.sha256 is not None}
    path = Path(source)
    entry = known.get(sha256_of(path)) if path.is_file() else None
    return (
        f"{entry.licence} ({entry.name})"
        if entry
        else "not known here; that of the page it came from holds (synboost weights list)"
    )
