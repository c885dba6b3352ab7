"""Test public weights: known facts, fetching from a server on this machine, converting each published form."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from synboost_monai.model_card import read_card, resolve_facts, write_model
from synboost_monai.networks import load_weights
from synboost_monai.predictor import open_bundle
from synboost_monai.weights import convert_weights, fetch, get_weights, run_action, table, weights_table
from synboost_monai.weights.options import ARCHITECTURES, ConvertOptions
from tests.tiny import tiny_card, tiny_network

CONTENT = bytes(range(256)) * 4096
"""One MiB of a made-up checkpoint."""


class FileServer(http.server.ThreadingHTTPServer):
    """Serve `CONTENT` at /model.bin of a port of this machine; record the requests, and misbehave if asked to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.requests: list[tuple[str, str | None]] = []
        self.takes_ranges = True
        self.breaks_after: int | None = None
        self.says_length = True
        self.num_copies = 1
        self.leads_to: str | None = None
        self.content = CONTENT

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/model.bin"


class Answer(http.server.BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        content, start = self.server.content, 0
        if self.server.leads_to is not None:
            self.send_response(302)
            self.send_header("Location", self.server.leads_to)
            self.end_headers()
            return
        if not self.path.endswith("/model.bin"):
            self.send_error(404)
            return
        if asked and self.server.takes_ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.server.says_length:
            self.send_header("Content-Length", str(len(content) * self.server.num_copies - start))
        self.end_headers()
        end = len(content) if self.server.breaks_after is None else start + self.server.breaks_after
        self.wfile.write(content[start:end])
        with contextlib.suppress(OSError):  # the other side has had enough
            for _ in range(1, self.server.num_copies):
                self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Run a server, with an entry `made-up` in the table of weights."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with FileServer() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        tell(monkeypatch, url=running.url)
        yield running
        running.shutdown()


def tell(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Make the table hold one entry, `made-up`."""
    facts: dict[str, object] = {
        "name": "made-up",
        "title": "Weights made up for a test",
        "architecture": "clipseg",
        "fits": "nothing",
        "file_name": "model.bin",
        "licence": "A-Licence-1.0",
        "page": "https://weights.invalid/page",
        "by_hand": "take model.bin from the page",
        "size": "1 MB",
        "num_bytes": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "url": None,
    }
    monkeypatch.setattr(table, "WEIGHTS", (table.PublicWeights(**{**facts, **changes}),))  # type: ignore[arg-type]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(output: Path, match: str, name: str = "made-up", sha256: str | None = None) -> None:
    """Check that a file cannot be got, with a message of one line."""
    with pytest.raises(ValueError, match=match) as error:
        get_weights(name, output, sha256)
    assert "\n" not in str(error.value)


# ---- the table


def test_table_is_sound() -> None:
    assert len({entry.name for entry in table.WEIGHTS}) == len(table.WEIGHTS) >= 4
    for entry in table.WEIGHTS:
        assert set(entry.architecture.split(", ")) <= set(ARCHITECTURES), entry.name
        assert entry.page.startswith("https://") and (entry.url is None or entry.url.startswith("https://"))
        assert entry.sha256 is None or (len(entry.sha256) == 64 and int(entry.sha256, 16))
        assert entry.sha256 is None or entry.url is not None
    clip = table.find_weights("clip-rn50")
    assert clip.url is not None and f"/{clip.sha256}/" in clip.url  # the publisher puts the hash into the address


def act(*words: str, sha256: str | None = None, **options: object) -> str:
    return run_action(*words, sha256=sha256, options=ConvertOptions(**options))  # type: ignore[arg-type]


def test_list_tells_how_to_get_each() -> None:
    text = weights_table()
    for entry in table.WEIGHTS:
        assert f"{entry.name}: " in text and entry.licence in text and entry.page in text
    assert "get      synboost weights get clip-rn50 OUT\n" in text
    assert "sha256   not known here" in text and "get      by hand: " in text
    assert act("list") == text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fetch",), "expected list, get, convert, got 'fetch'"),
        (("list", "cris"), "list takes no further word"),
        (("get", "cris"), "get needs two words, NAME OUT"),
        (("convert",), "convert needs two words, SOURCE OUT"),
        (("get", "clip-rn5", "x"), "no weights are called 'clip-rn5'; did you mean clip-rn50"),
    ],
)
def test_words_that_say_nothing(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act(*words)


# ---- get


def test_get_writes_the_checked_file_and_says_the_licence(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = get_weights("made-up", tmp_path / "new" / "mine.bin")
    assert path == tmp_path / "new" / "mine.bin" and path.read_bytes() == CONTENT
    assert left(tmp_path / "new") == ["mine.bin"]
    assert "licence: A-Licence-1.0" in capsys.readouterr().out
    assert act("get", "made-up", str(path)) == f"weights: {path}"  # there already
    assert len(server.requests) == 1


def test_get_into_a_folder_takes_the_publishers_name(server: FileServer, tmp_path: Path) -> None:
    assert get_weights("made-up", tmp_path).name == "model.bin"
    assert get_weights("made-up", f"{tmp_path}/other/") == tmp_path / "other" / "model.bin"


@pytest.mark.parametrize("takes_ranges", [True, False])
def test_broken_download_goes_on(server: FileServer, tmp_path: Path, takes_ranges: bool) -> None:
    server.takes_ranges, server.breaks_after = takes_ranges, 300_000
    refused(tmp_path / "model.bin", r"cannot fetch made-up from 127.0.0.1 .*300,000 bytes are kept")
    assert left(tmp_path) == [".model.bin.partial"]
    server.breaks_after = None
    assert get_weights("made-up", tmp_path / "model.bin").read_bytes() == CONTENT
    assert left(tmp_path) == ["model.bin"]
    assert [asked for _, asked in server.requests] == [None, "bytes=300000-"]


def test_rest_that_is_all_there_is_only_checked(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / ".model.bin.partial").write_bytes(CONTENT)
    assert get_weights("made-up", tmp_path / "model.bin").read_bytes() == CONTENT
    assert server.requests == []


def test_rest_longer_than_the_file_starts_anew(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(monkeypatch, url=server.url, num_bytes=None)  # so that the server has to say it
    (tmp_path / ".model.bin.partial").write_bytes(CONTENT * 2)
    assert get_weights("made-up", tmp_path / "model.bin").read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [f"bytes={2 * len(CONTENT)}-", None]


def test_wrong_hash_removes_the_file(server: FileServer, tmp_path: Path) -> None:
    server.content = bytes(len(CONTENT))
    refused(tmp_path / "model.bin", r"made-up has SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}; .* is removed")
    assert left(tmp_path) == []


def test_file_of_another_size_is_not_begun(server: FileServer, tmp_path: Path) -> None:
    server.content = CONTENT[:-1]
    refused(tmp_path / "model.bin", "has 1,048,575 bytes, expected 1,048,576: it is another file")
    assert left(tmp_path) == []


@pytest.mark.parametrize("num_bytes", [len(CONTENT), None])
@pytest.mark.parametrize("says_length", [True, False])
def test_download_ends_at_the_size_of_the_file(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says_length: bool, num_bytes: int | None
) -> None:
    monkeypatch.setattr(table, "_MAX_BYTES", 2 * len(CONTENT))
    tell(monkeypatch, url=server.url, num_bytes=num_bytes)
    server.says_length, server.num_copies = says_length, 100
    refused(tmp_path / "model.bin", r"has (more than )?[\d,]+ bytes.*: it is another file")
    assert left(tmp_path) == []
    server.num_copies = 1
    assert get_weights("made-up", tmp_path / "model.bin").read_bytes() == CONTENT


def test_rest_behind_a_link_is_not_written(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".model.bin.partial").symlink_to("mine")
    refused(tmp_path / "model.bin", "partial is there already and is no plain file")
    assert (tmp_path / "mine").read_text() == "mine" and server.requests == []


@pytest.mark.parametrize("address", ["ftp://127.0.0.1/model.bin", "file:///etc/hostname"])
def test_address_that_leads_elsewhere_is_not_followed(server: FileServer, tmp_path: Path, address: str) -> None:
    server.leads_to = address
    refused(tmp_path / "model.bin", "leads to .*, which is not https|is not allowed")
    assert left(tmp_path) == []


def test_https_leads_to_https_alone() -> None:
    request = urllib.request.Request("https://weights.invalid/model.bin")
    follow = fetch._SafeRedirects().redirect_request
    assert follow(request, None, 302, "Found", {}, "https://other.invalid/a").full_url == "https://other.invalid/a"
    with pytest.raises(ValueError, match="leads to http://other.invalid/a, which is not https"):
        follow(request, None, 302, "Found", {}, "http://other.invalid/a")


def test_other_file_in_the_way_stays(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_text("mine")
    refused(tmp_path / "model.bin", "is there already and is not made-up")
    assert (tmp_path / "model.bin").read_text() == "mine" and server.requests == []


def test_address_that_is_gone_tells_the_way_by_hand(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(monkeypatch, url=f"{server.url}.moved")
    refused(tmp_path / "x.bin", r"answers 404 .*by hand: take model.bin from the page, and save it as .*x.bin")
    assert left(tmp_path) == []


def test_no_network_is_one_line(server: FileServer, tmp_path: Path) -> None:
    server.shutdown()
    server.server_close()
    refused(tmp_path / "model.bin", "cannot fetch made-up from 127.0.0.1 .*check the connection and the proxy")
    assert left(tmp_path) == []


def test_proxy_of_the_environment_is_used(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    tell(monkeypatch, url="http://weights.invalid/model.bin")
    assert get_weights("made-up", tmp_path / "model.bin").read_bytes() == CONTENT
    assert server.requests == [("http://weights.invalid/model.bin", None)]


def test_weights_without_a_hash_need_the_one_of_the_page(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(monkeypatch, url=server.url, sha256=None)
    output = tmp_path / "model.bin"
    refused(output, r"no known SHA-256 to check it by; .*--sha256 HEX, or by hand: take model.bin")
    refused(output, "--sha256 must be 64 hexadecimal digits, got 'abc'", sha256="abc")
    assert server.requests == []
    refused(output, "is removed", sha256="0" * 64)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert act("get", "made-up", str(output), sha256=digest.upper()).endswith("model.bin")


def test_hash_that_contradicts_the_table_is_refused(server: FileServer, tmp_path: Path) -> None:
    refused(tmp_path / "model.bin", "leave --sha256 out", sha256="0" * 64)
    assert server.requests == []


def test_weights_without_an_address_are_explained(tmp_path: Path) -> None:
    refused(tmp_path, r"cris has no address .*; by hand: take the checkpoint .*licence: not stated", "cris")
    assert left(tmp_path) == []


# ---- convert


def is_equal(network: nn.Module, state_dict: dict[str, Tensor]) -> bool:
    own = network.state_dict()
    return own.keys() == state_dict.keys() and all(torch.equal(own[key], state_dict[key]) for key in own)


def write_clip_archive(network: nn.Module, path: Path) -> None:
    """Write CLIP's TorchScript archive: both encoders of a CRIS in half precision, without what CRIS adds, with CLIP's three settings."""

    class Clip(nn.Module):
        def __init__(self, backbone: nn.Module) -> None:
            super().__init__()
            for name in ("visual", "transformer", "token_embedding", "ln_final"):
                setattr(self, name, getattr(backbone, name))
            for name in ("positional_embedding", "text_projection", "logit_scale"):
                setattr(self, name, getattr(backbone, name))
            self.visual.attnpool.connect = nn.Identity()
            for name, value in {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}.items():
                self.register_buffer(name, torch.tensor(value))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.logit_scale

    torch.jit.trace(Clip(network.backbone).half(), torch.zeros(1)).save(str(path))


@pytest.mark.parametrize("form", ["transformers folder", "safetensors", "bin"])
def test_clipseg_of_each_form(tmp_path: Path, form: str) -> None:
    from safetensors.torch import save_file

    source = tiny_network("clipseg")
    old_buffer = {"clip.text_model.embeddings.position_ids": torch.arange(77)[None]}
    state_dict = {**{key: value.clone() for key, value in source.state_dict().items()}, **old_buffer}
    folder = tmp_path / "clipseg-rd64-refined"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    if form == "bin":
        torch.save(state_dict, folder / "pytorch_model.bin")
    else:
        save_file(state_dict, folder / "model.safetensors")
    path = folder if form == "transformers folder" else next(folder.glob("*model.*"))

    text = convert_weights(path, tmp_path / "models" / "model.pt", ConvertOptions("clipseg", "tiny"))
    content = (tmp_path / "models" / "model.pt").read_bytes()
    num_parameters = sum(p.numel() for p in source.parameters())
    assert f"CLIPSeg (clipseg, preset tiny), {num_parameters:,} parameters" in text
    assert hashlib.sha256(content).hexdigest() in text and "licence    not known here" in text
    written = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert all(isinstance(value, Tensor) for value in written.values())
    assert is_equal(source, written)
    assert is_equal(load_weights(tiny_network("clipseg", 1), tmp_path / "models" / "model.pt"), source.state_dict())


def test_same_checkpoint_gives_the_same_file(tmp_path: Path) -> None:
    torch.save(tiny_network("clipseg").state_dict(), tmp_path / "a.bin")
    for name in ("one", "two"):
        convert_weights(tmp_path / "a.bin", tmp_path / f"{name}.pt", ConvertOptions(preset="tiny"))
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()


def test_a_head_for_the_view_goes_along(tmp_path: Path) -> None:
    """This holds also for weights without a card: the names of their tensors show it."""
    source = tiny_network("cris", has_view_head=True)
    write_model(source.state_dict(), tmp_path / "model.pt")
    act("convert", str(tmp_path / "model.pt"), str(tmp_path / "converted.pt"), preset="tiny")
    card = read_card(tmp_path / "converted.pt")
    assert card is not None and card.facts["has_view_head"] is True
    loaded = load_weights(tiny_network("cris", 1, has_view_head=True), tmp_path / "converted.pt")
    assert is_equal(loaded, source.state_dict())


def test_what_is_known_of_weights_goes_on_to_be_known(tmp_path: Path) -> None:
    source = tiny_network("clipseg")
    known = {"training": {"seed": 3}, "prompt_level": "P7", "measured": {"val_mean_dice": 0.9}}
    card = replace(tiny_card("clipseg"), **known)
    write_model(source.state_dict(), tmp_path / "model.pt", card)
    words = [str(tmp_path / "model.pt"), str(tmp_path / "half" / "model.pt")]
    text = act("convert", *words, dtype="float16", licence="Apache-2.0")
    assert "clipseg, preset tiny" in text and "float16" in text and "licence    Apache-2.0" in text
    half = read_card(words[1])
    assert half is not None and half.facts == card.facts and half.measured == card.measured
    assert (half.dtype, half.licence, half.training, half.prompt_level) == ("float16", "Apache-2.0", {"seed": 3}, "P7")
    sizes = [Path(path).stat().st_size for path in words]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = load_weights(tiny_network("clipseg", 1), words[1])
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    rounded = {k: v.half().float() if v.is_floating_point() else v for k, v in source.state_dict().items()}
    assert is_equal(loaded, rounded)
    with pytest.raises(ValueError, match="made with preset tiny, but --preset says small"):
        act("convert", words[0], str(tmp_path / "no"), preset="small")
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16, float16, got 'int8'"):
        act("convert", words[0], str(tmp_path / "no.pt"), dtype="int8")
    (tmp_path / "in_the_way.json").write_text("{}")
    with pytest.raises(ValueError, match="in_the_way.json is there already"):
        act("convert", words[0], str(tmp_path / "in_the_way.pt"))


def test_weights_of_which_little_is_known_say_so(tmp_path: Path) -> None:
    torch.save(tiny_network("cris").state_dict(), tmp_path / "a.bin")
    convert_weights(tmp_path / "a.bin", tmp_path / "model.pt", ConvertOptions(preset="tiny"))
    card = read_card(tmp_path / "model.pt")
    assert card is not None and card.facts == {"preset": "tiny"} and card.training == {"converted_from": "a.bin"}
    # how the published code padded is not known of a file: it may be said
    assert resolve_facts("cris", tmp_path / "model.pt", {"padding_id": 49407})["preset"] == "tiny"


def test_values_too_large_for_half_precision_are_refused(tmp_path: Path) -> None:
    state = tiny_network("clipseg").state_dict()
    next(value for value in state.values() if value.ndim == 2)[0, 0] = 1e6
    torch.save(state, tmp_path / "a.bin")
    with pytest.raises(ValueError, match="has values that float16 cannot hold; take --dtype bfloat16"):
        convert_weights(tmp_path / "a.bin", tmp_path / "model.pt", ConvertOptions(preset="tiny", dtype="float16"))
    assert not (tmp_path / "model.pt").exists()


def test_cris_with_its_own_longest_prompt_loads_in_the_bundle(tmp_path: Path) -> None:
    """The first release has 17 positions, the bundle's network 77: the checkpoint's choice goes all the way."""
    source = tiny_network("cris", context_length=17)
    state_dict = {f"module.{key}": value for key, value in source.state_dict().items()}
    torch.save({"epoch": 50, "best_iou": np.float64(0.7), "state_dict": state_dict}, tmp_path / "cris_best.pt")
    text = convert_weights(tmp_path / "cris_best.pt", f"{tmp_path}/models/", ConvertOptions(None, "tiny"))
    assert "CRIS (cris, preset tiny)" in text
    opened = open_bundle("echo_cris", tmp_path / "models/model.pt", {"preset": "tiny", "device": "cpu"})
    network = opened.setting("network")
    assert is_equal(network, source.state_dict())
    assert network.backbone.positional_embedding.shape == (17, 16)
    ids = torch.tensor([[[49406, 1823, 49407] + [0] * 14]])
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(network.eval()(image, ids), source.eval()(image, ids), atol=1e-5)


def test_clip_alone_is_refused_unless_partial(tmp_path: Path) -> None:
    source = tiny_network("cris")
    expected = {f"backbone.{key}": value.half().float() for key, value in source.backbone.state_dict().items()}
    write_clip_archive(source, tmp_path / "RN50.pt")
    with pytest.raises(ValueError, match="RN50.pt is CLIP RN50 alone: .*--init_checkpoint.* --partial true") as error:
        convert_weights(tmp_path / "RN50.pt", tmp_path / "model.pt", ConvertOptions("cris", "tiny"))
    assert "\n" not in str(error.value) and not (tmp_path / "model.pt").exists()
    text = convert_weights(tmp_path / "RN50.pt", tmp_path / "model.pt", ConvertOptions("cris", "tiny", partial=True))
    assert "neck, decoder and projector are random" in text
    written = torch.load(tmp_path / "model.pt", weights_only=True)
    assert written.keys() == tiny_network("cris").state_dict().keys()
    for key, value in expected.items():
        if ".connect." not in key:
            assert torch.equal(written[key].float(), value), key


def test_semantic_diffusion_of_a_flat_state_dict(tmp_path: Path) -> None:
    source = tiny_network("semantic_diffusion")
    torch.save(source.state_dict(), tmp_path / "ema_0.9999_050000.pt")
    options = ConvertOptions("semantic_diffusion", "tiny")
    text = convert_weights(tmp_path / "ema_0.9999_050000.pt", tmp_path / "model.pt", options)
    assert "SemanticDiffusionUNet (semantic_diffusion, preset tiny)" in text
    loaded = load_weights(tiny_network("semantic_diffusion", 1), tmp_path / "model.pt")
    assert is_equal(loaded, source.state_dict())


def test_licence_of_a_file_of_the_table_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(tiny_network("clipseg").state_dict(), tmp_path / "a.bin")
    tell(monkeypatch, sha256=hashlib.sha256((tmp_path / "a.bin").read_bytes()).hexdigest())
    text = convert_weights(tmp_path / "a.bin", tmp_path / "model.pt", ConvertOptions(None, "tiny"))
    assert "licence    A-Licence-1.0 (made-up)" in text


def test_nothing_is_written_for_what_does_not_fit(tmp_path: Path) -> None:
    torch.save(tiny_network("clipseg").state_dict(), tmp_path / "a.bin")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "b.bin")
    out = tmp_path / "model.pt"
    for source, options, match in (
        ("a.bin", ConvertOptions("cris", "tiny"), "these are the weights of CLIPSeg, not of CRIS.*bundle echo_clipseg"),
        ("b.bin", ConvertOptions("clipseg", "tiny"), "keys have another shape|keys are missing"),
        ("b.bin", ConvertOptions(), "is none of the networks known here; say which with --architecture"),
        ("a.bin", ConvertOptions("unet"), "architecture must be clipseg, cris, semantic_diffusion, got 'unet'"),
        ("a.bin", ConvertOptions("clipseg", "large"), "preset must be one of"),
    ):
        with pytest.raises(ValueError, match=match):
            convert_weights(tmp_path / source, out, options)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        convert_weights(tmp_path / "nowhere.bin", out, ConvertOptions())
    assert not out.exists()
    out.write_text("a training's result")
    with pytest.raises(ValueError, match="model.pt is there already"):
        convert_weights(tmp_path / "a.bin", tmp_path, ConvertOptions(None, "tiny"))
    assert out.read_text() == "a training's result"
