"""List the public weights that can be loaded here."""

from __future__ import annotations

from dataclasses import dataclass

from synboost_monai.errors import did_you_mean

_MAX_BYTES = 4_000_000_000
"""Largest size of a file whose exact size is not known here: the largest in the table has 2.6 GB."""


@dataclass(frozen=True)
class PublicWeights:
    """Hold the facts of one published checkpoint."""

    name: str
    """Name for `get`."""
    title: str
    architecture: str
    """One of `options.ARCHITECTURES`, which the checkpoint is, or which it can start."""
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
        raise ValueError(f"no weights are called {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
    return known[name]


def entry_of_hash(sha256: str) -> PublicWeights | None:
    """Return the entry whose file has this SHA-256, or None if no entry states it."""
    return next((entry for entry in WEIGHTS if entry.sha256 == sha256), None)
