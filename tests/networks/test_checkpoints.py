"""Test checkpoint files: tensors are read from each kind, none of their code is run, and anything else is named in one line."""

import ast
import gzip
import io
import itertools
import os
import pickle
import tarfile
import traceback
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import synboost_monai
from synboost_monai.networks import checkpoints, create_segmenter, load_published, load_weights
from synboost_monai.networks import torchscript as torchscript_reader
from synboost_monai.networks.checkpoints import is_torchscript, read_checkpoint

LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 35336849\n"


def refusal(path: Path, read: Callable = read_checkpoint) -> str:
    """Return the message about a file: one line, without PyTorch's advice, even in a traceback."""
    with pytest.raises(ValueError, match="weights: ") as error:
        read(path)
    shown = "".join(traceback.format_exception(error.value))
    assert "\n" not in str(error.value) and "weights_only" not in shown and "safe_globals" not in shown
    return str(error.value)


def repacked(
    path: Path, to: Path, changes: dict[str, bytes], method: int = zipfile.ZIP_STORED, packed: str = "data/"
) -> Path:
    """Copy a zip archive with other records; those whose names have `packed` in them use another method."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(to, "w") as target:
        for entry in source.infolist():
            inside = entry.filename.split("/", 1)[1]
            content = changes.get(inside, source.read(entry))
            target.writestr(entry.filename, content, method if packed in entry.filename else zipfile.ZIP_STORED)
    return to


class Part(nn.Module):
    """Hold everything that a state dict has or leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
        self.tied = self.linear
        self.plain = torch.ones(3)  # neither parameter nor buffer
        self.sizes = [1, 2]
        self.words = {"a": 1.5}
        self.half_scale = nn.Parameter(torch.ones(3).half())
        self.register_buffer("slice", torch.arange(12.0).reshape(3, 4)[1:, ::2])
        self.register_buffer("nothing", torch.zeros(0))
        self.steps = nn.ModuleList([nn.Linear(1, 1)])

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x)) * self.plain[:2] + self.sizes[0]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "part.pt"
    torch.jit.script(Part().eval()).save(str(path))
    return path


@pytest.mark.parametrize("is_traced", [True, False])
def test_torchscript_gives_its_state_dict(tmp_path: Path, is_traced: bool) -> None:
    part = Part().eval()
    made = torch.jit.trace(part, torch.zeros(1, 2)) if is_traced else torch.jit.script(part)
    made.save(str(tmp_path / "part.pt"))
    expected, found = torch.jit.load(str(tmp_path / "part.pt")).state_dict(), read_checkpoint(tmp_path / "part.pt")
    assert found.keys() == expected.keys() == part.state_dict().keys() and is_torchscript(tmp_path / "part.pt")
    for name, value in expected.items():
        assert value.dtype == found[name].dtype and torch.equal(value, found[name]), name


def test_torchscript_of_before_lists_of_buffers_gives_every_tensor(tmp_path: Path, script: Path) -> None:
    with zipfile.ZipFile(script) as archive:
        texts = {n.split("/", 1)[1]: archive.read(n) for n in archive.namelist() if n.endswith(".py")}
    old = {name: text.replace(b"  __buffers__ =", b"  _others =") for name, text in texts.items()}
    found = read_checkpoint(repacked(script, tmp_path / "old.pt", old))
    assert found.keys() == Part().state_dict().keys() | {"plain"}


class Writes(nn.Module):
    """Make and fill somebody else's file as soon as TorchScript loads the archive."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.zeros(1)

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        self.weight = torch.from_file("ran", True, 4, dtype=torch.uint8).fill_(65)
        self.training = state[1]

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("is_inside", [True, False])
def test_code_of_a_torchscript_archive_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_inside: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.jit.script(nn.Sequential(nn.Linear(1, 1), Writes()) if is_inside else Writes()).save("evil.pt")
    torch.jit.load("evil.pt")
    assert Path("ran").read_bytes() == b"AAAA"  # so the archive is what it is taken for
    os.remove("ran")
    for read in (
        read_checkpoint,
        lambda p: load_published(nn.Linear(1, 1), p),
        lambda p: load_weights(nn.Linear(1, 1), p),
    ):
        message = refusal(tmp_path / "evil.pt", read)
        assert "Writes has a state that only its own code can read (__setstate__); it is not run" in message
        assert not Path("ran").exists()


class Runs:
    """Represent what a pickle would run: os.system, by the name that it has on this system."""

    def __reduce__(self):
        return os.system, ("echo ran > ran",)


def payload(protocol: int) -> bytes:
    return pickle.dumps({"weight": Runs()}, protocol)


def zipped(content: bytes, path: Path, **others: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3")
        for name, record in others.items():
            archive.writestr("archive/" + name.replace("_", "/").replace("constants", "constants.pkl"), record)
    return path


def legacy(content: bytes, path: Path) -> Path:
    torch.save({"weight": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    begin = io.BytesIO(path.read_bytes())
    for _ in range(3):  # magic number, version, sizes of this system
        pickle.load(begin)
    path.write_bytes(path.read_bytes()[: begin.tell()] + content)
    return path


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("form", ["plain", "zip", "legacy", "torchscript"])
def test_a_pickle_with_code_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    path, content = tmp_path / "model.pt", payload(protocol)
    if form == "plain":
        path.write_bytes(content)
    elif form == "legacy":
        legacy(content, path)
    else:
        zipped(content, path, **({"constants": b"\x80\x02)."} if form == "torchscript" else {}))
    message = refusal(path)
    assert f"{os.system.__module__}.system" in message or (
        form == "torchscript" and "no TorchScript archive has" in message
    )
    assert not Path("ran").exists()


PERSISTENT = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK%ctQ"
"""A storage of %c numbers in a TorchScript archive's data.pkl."""


def tensor_pickle(count: int = 4, offset: int = 0, size: bytes = b"K\x04", stride: bytes = b"K\x01") -> bytes:
    """Pickle a module with one tensor."""
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + PERSISTENT % (b"K" and bytes([count]))
    tensor += b"K" + bytes([offset]) + b"(" + size + b"t(" + stride + b"t\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02c__torch__\nM\n)\x81}(X\x01\x00\x00\x00w" + tensor + b"ub."


def torchscript(tmp_path: Path, data: bytes, numbers: bytes = b"\x00" * 16) -> Path:
    return zipped(data, tmp_path / "script.pt", constants=b"\x80\x02).", data_0=numbers)


def test_a_tensor_stays_within_its_numbers(tmp_path: Path) -> None:
    assert torch.equal(read_checkpoint(torchscript(tmp_path, tensor_pickle()))["w"], torch.zeros(4))
    million = b"J\x40\x42\x0f\x00"
    for wrong in (
        tensor_pickle(count=200),  # more than the record has
        tensor_pickle(offset=1),
        tensor_pickle(size=b"K\x05"),
        tensor_pickle(size=million, stride=b"K\x00"),  # a gigabyte of one number
        tensor_pickle(stride=b"K\x02"),
        tensor_pickle(stride=b"J\xff\xff\xff\xff"),  # -1
        tensor_pickle(size=b"G\x40\x10\x00\x00\x00\x00\x00\x00"),  # 4.0
    ):
        assert "does not fit it" in refusal(torchscript(tmp_path, wrong))


def test_pickles_of_torchscript_that_ask_for_more_are_refused(tmp_path: Path) -> None:
    torn = {
        "asks for torch.from_file": b"\x80\x02ctorch\nfrom_file\n(X\x03\x00\x00\x00ran\x88tR.",
        "asks for torch.jit.load": b"\x80\x02ctorch.jit\nload\n(X\x03\x00\x00\x00rantR.",
        "asks for builtins.eval": b"\x80\x02cbuiltins\neval\n(X\x01\x00\x00\x001tR.",
        "calls __torch__.M": b"\x80\x02c__torch__\nM\n)R.",
        "none of its classes": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)\x81.",
        "class _Name has a state": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}(X\x08\x00\x00\x00__code__K\x01ub.",
        "operation that no": b"\x80\x02}r\xff\xff\xff\x7f\x8c\x01a.",
        "without a module": b"\x80\x02).",
        "damaged": b"\x80\x02",
    }
    for words, data in torn.items():
        assert words in refusal(torchscript(tmp_path, data)), words


def test_modules_that_hold_one_another_end(tmp_path: Path) -> None:
    itself = b"\x80\x02c__torch__\nM\n)\x81q\x00}(X\x01\x00\x00\x00ah\x00ub."
    doubling = b"\x80\x02c__torch__\nM\nq\x00)\x81q\x01"
    for _ in range(60):  # 2 ** 60 names
        doubling += b"h\x00)\x81}(X\x01\x00\x00\x00ah\x01X\x01\x00\x00\x00bh\x01ubq\x01"
    for data in (itself, doubling + b"."):
        assert "hold one another" in refusal(torchscript(tmp_path, data))


@pytest.mark.parametrize("kind", ["state dict", "torchscript"])
def test_records_that_inflate_are_refused(tmp_path: Path, script: Path, kind: str) -> None:
    path = script
    if kind == "state dict":
        path = tmp_path / "plain.pt"
        torch.save({"weight": torch.zeros(4)}, path)
    bomb = repacked(path, tmp_path / "bomb.pt", {"data/0": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    tracemalloc.start()
    assert "is packed, and PyTorch packs no tensors" in refusal(bomb)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_pickles_longer_than_names_need_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte of them makes an object of sixty."""
    monkeypatch.setattr(checkpoints, "_MAX_OPERATIONS", 10_000)
    monkeypatch.setattr(checkpoints, "_MAX_PICKLE_BYTES", 20_000)
    monkeypatch.setattr(torchscript_reader, "_MAX_PICKLE_BYTES", 20_000)
    long = b"\x80\x02(" + b"}" * 20_000 + b"l."
    assert "has more than 10,000 operations" in refusal(legacy(long, tmp_path / "legacy.pt"))
    assert "its data.pkl has more than 20,000 bytes" in refusal(zipped(long, tmp_path / "plain.pt"))
    assert "more than 20,000 bytes" in refusal(torchscript(tmp_path, long))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(tmp_path / "old.pt")["weight"], torch.zeros(3))


def test_records_that_lie_over_one_another_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt", "a") as archive:
        whole = archive.getinfo("plain/data/0")
        for i in range(1, 50):
            again = zipfile.ZipInfo(f"plain/data/{i}")
            again.header_offset, again.CRC = whole.header_offset, whole.CRC
            again.file_size = again.compress_size = whole.file_size
            archive.filelist.append(again)
        archive._didModify = True
    assert "its records claim" in refusal(tmp_path / "plain.pt")


def test_a_tensor_that_repeats_one_number_is_refused(tmp_path: Path) -> None:
    wide = {"backbone.positional_embedding": torch.zeros(1, 16).expand(10**9, 16)}
    torch.save({**create_segmenter("cris", "tiny").state_dict(), **wide}, tmp_path / "model.pt")
    for load in (load_published, load_weights):
        message = refusal(tmp_path / "model.pt", lambda p, load=load: load(create_segmenter("cris", "tiny"), p))
        assert "'backbone.positional_embedding' is no plain tensor" in message


def test_tensors_of_no_numbers_are_refused(tmp_path: Path) -> None:
    for value in (torch.zeros(2, device="meta"), torch.zeros(2, 2).to_sparse()):
        torch.save({"weight": value, "bias": torch.zeros(2)}, tmp_path / "model.pt")
        assert "'weight' is no plain tensor" in refusal(
            tmp_path / "model.pt", lambda p: load_weights(nn.Linear(2, 2), p)
        )
    torch.save({1: torch.zeros(1)}, tmp_path / "model.pt")
    assert "'1' is no plain tensor" in refusal(tmp_path / "model.pt", lambda p: load_weights(nn.Linear(2, 2), p))


def tar_of(path: Path) -> bytes:
    path.with_suffix(".txt").write_text("weights")
    with tarfile.open(path, "w") as archive:
        archive.add(path.with_suffix(".txt"), "storages")
    return path.read_bytes()


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as archive:
        archive.writestr("echo_cris/models/model.pt", whole)
    contents = {
        r"a pointer of Git LFS \(133 bytes\): run `git lfs pull`": LFS.encode(),
        r"a pointer of Git LFS \(13\d bytes\): run": LFS.replace("\n", "\r\n").encode(),
        r"a web page \(\d+ bytes\)": b"<!DOCTYPE html><title>warning</title>",
        r"a web page \(\d+": b"\xef\xbb\xbf\n <html><body>Log in</body></html>",
        r"a web page \(\d\d": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        r"""a text that begins with '{"message":"Not Found"}'""": b'{"message":"Not Found"}',
        "it is empty": b"",
        "its end is missing": whole[: len(whole) // 2],
        "its end is missing ": whole[:10],
        "damaged, or something else": whole[-100:],
        r"packed by gzip \(\d+ bytes\): unpack it first": gzip.compress(whole),
        "zip archive that PyTorch did not write": (tmp_path / "package.zip").read_bytes(),
        "it is a tar archive": tar_of(tmp_path / "a.tar"),
        r"it is an HDF5 file, as Keras writes it \(108": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "damaged safetensors file": (80).to_bytes(8, "little") + b'{"weight": 3' + bytes(100),
        "something else": b"\x80\x02" + bytes(range(200, 256)),
    }
    for words, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            read_checkpoint(path)
        assert "cannot read" in refusal(path, lambda p: load_weights(nn.Linear(1, 1), p))


def test_safetensors_are_known_by_their_content(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.arange(3.0)}, tmp_path / "model.safetensors")
    os.replace(tmp_path / "model.safetensors", tmp_path / "model.pt")
    assert torch.equal(read_checkpoint(tmp_path / "model.pt")["weight"], torch.arange(3.0))


class Wrapper(nn.Module):
    """Wrap a network as trainings do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.net = network


WRAPPINGS: dict[str, Callable[[nn.Module], dict]] = {
    "DataParallel": lambda n: nn.DataParallel(n).state_dict(),
    "torch.compile": lambda n: {f"_orig_mod.{key}": value for key, value in n.state_dict().items()},
    "both": lambda n: {f"module._orig_mod.{key}": value for key, value in n.state_dict().items()},
    "a module": lambda n: Wrapper(n).state_dict(),
    "another": lambda n: {f"model.{key}": value for key, value in n.state_dict().items()},
    "two": lambda n: nn.DataParallel(Wrapper(n)).state_dict(),
    "an average": lambda n: torch.optim.swa_utils.AveragedModel(n).state_dict(),
    "a part compiled": lambda n: {k.replace("decoder.", "decoder._orig_mod."): v for k, v in n.state_dict().items()},
}
ENTRIES = ("", "model", "state_dict", "model_state_dict", "state_dict of model")


@pytest.mark.parametrize("load", [load_published, load_weights])
def test_wrapped_networks_load(tmp_path: Path, load: Callable) -> None:
    torch.manual_seed(0)
    source, network = create_segmenter("cris", "tiny"), create_segmenter("cris", "tiny")
    for (name, wrapped), entry in zip(WRAPPINGS.items(), itertools.cycle(ENTRIES)):
        content = wrapped(source)
        for key in entry.split(" of ") if entry else []:
            content = {"epoch": 3, key: content}
        torch.save(content, tmp_path / "model.pt")
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
        load(network, tmp_path / "model.pt")
        own, expected = network.state_dict(), source.state_dict()
        assert all(torch.equal(own[key], expected[key]) for key in own), name


def test_a_network_keeps_names_of_its_own(tmp_path: Path) -> None:
    source, network = Wrapper(nn.Linear(2, 1)), Wrapper(nn.Linear(2, 1))
    torch.save(source.state_dict(), tmp_path / "model.pt")
    assert torch.equal(load_weights(network, tmp_path / "model.pt").net.weight, source.net.weight)


PROGRAMS = {"serving/export.py": "torchscript_runner", "evaluation/quality_images.py": "load_inception"}
"""File -> function that runs a TorchScript file because it is one: just exported, or a network that the user names as a program."""


def test_no_other_place_reads_checkpoints() -> None:
    root = Path(synboost_monai.__file__).parent
    found = set()
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "torch.load",
                "torch.jit.load",
                "pickle.load",
                "pickle.loads",
            ):
                found.add((path.relative_to(root).as_posix(), ast.unparse(node.func)))
            assert not (
                isinstance(node, ast.keyword) and node.arg == "weights_only" and ast.unparse(node.value) != "True"
            )
            assert not (
                isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False"
            )
    assert found == {("networks/checkpoints.py", "torch.load"), *((file, "torch.jit.load") for file in PROGRAMS)}
