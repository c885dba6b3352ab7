"""Read parameters and buffers from TorchScript archives without running their code.

`torch.jit.load` runs code of the archive while it loads it (`__setstate__`), and that code can write files. Instead, the archive's
data.pkl is read here: tensors, and objects that consist only of the names of their classes and their attributes.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

_MAX_PICKLE_BYTES = 1 << 22
"""Longest data.pkl: CLIP RN50, with a thousand tensors, needs less than a tenth; every byte can take sixty bytes of memory."""
_MAX_CODE_BYTES = 1 << 26
"""Longest code of an archive's classes, of which only the lists of names are read."""
_MAX_NAMES = 100_000
"""Most attributes of an archive's modules: modules that contain one another would never end."""
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""Storage classes of a TorchScript archive and their dtypes."""


class Refusal(ValueError):
    """Say in our own words what is wrong with a file."""


def read_record(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    """Read a record of an archive; refuse it if it is longer than `max_bytes`."""
    with archive.open(name) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise Refusal(f"its record {name[-60:]!r} has more than {max_bytes:,} bytes")
    return content


class _Name(NamedTuple):
    """Name a class or function that a pickle asks for."""

    name: str


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    num_elements: int


class _Object:
    """Hold an object of an archive's class: the class's name, and the attributes."""

    def __init__(self, class_name: str) -> None:
        self.class_name = class_name
        self.attributes: Mapping[Any, Any] = {}


def read_torchscript(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """Read parameters and buffers of a TorchScript archive, as its `state_dict()` would return them, without running its code."""
    root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and read_record(archive, f"{root}byteorder", 16) != b"little":
        raise Refusal("its numbers are of a big-endian machine")
    storages: dict[str, Tensor] = {}

    def tensor(storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
        if type(storage) is not _Storage:
            raise Refusal("a tensor of it has no storage")
        if storage.key not in storages:
            storages[storage.key] = _stored(archive, f"{root}data/{storage.key}", storage.dtype)
        values = storages[storage.key]
        _check_view(values, storage, offset, size, stride)
        return values.as_strided(size, stride, offset)

    content = _TensorUnpickler(read_record(archive, f"{root}data.pkl", _MAX_PICKLE_BYTES), tensor).load()
    if not isinstance(content, _Object):
        raise Refusal("it is a TorchScript archive without a module")
    states = _state_names(archive, root)
    return dict(_walk(content, states))


def _stored(archive: zipfile.ZipFile, name: str, dtype: torch.dtype) -> Tensor:
    """Read the numbers of a record."""
    content = bytearray(archive.read(name))  # `checkpoints.py` has compared its length with the file's
    return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _check_view(values: Tensor, storage: _Storage, offset: Any, size: Any, stride: Any) -> None:
    """Refuse a tensor that goes beyond the numbers in its storage, or repeats them."""
    numbers = (offset, *size, *stride)
    is_sound = (
        all(type(number) is int and number >= 0 for number in numbers)
        and len(size) == len(stride) <= 16
        and values.dtype == storage.dtype
        and values.numel() == storage.num_elements
    )
    num_elements, last = 1, offset
    for length, step in zip(size, stride) if is_sound else ():
        num_elements, last = num_elements * length, last + (length - 1) * step
    if not is_sound or (num_elements and last >= values.numel()) or num_elements > values.numel():
        raise Refusal(f"a tensor of the record 'data/{storage.key[-60:]}' does not fit it")


def _state_names(archive: zipfile.ZipFile, root: str) -> dict[str, set[str]]:
    """Map each class to its parameters and buffers, as its code lists them; old classes without lists of buffers are left out."""
    found: dict[str, set[str]] = {}
    left = _MAX_CODE_BYTES
    for name in archive.namelist():
        if not (name.startswith(f"{root}code/") and name.endswith(".py")):
            continue
        text = read_record(archive, name, left)
        left -= len(text)
        module = name.removeprefix(f"{root}code/").removesuffix(".py").replace("/", ".")
        for part in re.split(r"^class ", text.decode(errors="replace"), flags=re.MULTILINE)[1:]:
            lists = dict(re.findall(r"^  (__parameters__|__buffers__) = \[(.*)\]$", part, flags=re.MULTILINE))
            if len(lists) == 2:
                class_name = re.split(r"\W", part, maxsplit=1)[0]
                found[f"{module}.{class_name}"] = set(re.findall(r'"([^"]+)"', " ".join(lists.values())))
    return found


def _walk(top: _Object, states: Mapping[str, set[str]]) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors of a module and of all modules below it."""
    stack, num_names = [("", top)], 0
    while stack:
        prefix, module = stack.pop()
        known = states.get(module.class_name)
        for name, value in module.attributes.items():
            num_names += 1
            if num_names > _MAX_NAMES or len(prefix) > 1000:
                raise Refusal("its modules hold one another, or too many")
            if isinstance(value, _Object):
                stack.append((f"{prefix}{name}.", value))
            elif isinstance(value, Tensor) and (known is None or name in known):
                yield f"{prefix}{name}", value


class _TensorUnpickler(pickle._Unpickler):
    """Read a TorchScript archive's data.pkl: tensors, containers, and objects whose classes are only names.

    Names in the pickle are never looked up, and operations that do not occur in such files are refused.
    """

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, content: bytes, tensor: Callable[..., Tensor]) -> None:
        super().__init__(io.BytesIO(content))
        self._tensor = tensor
        self._calls: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor_v2": tensor,
            "collections.OrderedDict": lambda *_: {},
            "torch.device": lambda *_: None,
        }

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        is_storage = module == "torch" and name in _DTYPES
        if not (full in self._calls or module.startswith("__torch__") or module == "torch.jit._pickle" or is_storage):
            raise Refusal(f"it asks for {full[:100]}, which no tensor needs; nothing of it is run")
        return _Name(full)

    def persistent_load(self, pid: Any) -> Any:
        kind, storage, key, _location, num_elements = pid
        dtype = _DTYPES.get(storage.name.removeprefix("torch."))
        if kind != "storage" or dtype is None or type(key) is not str or type(num_elements) is not int:
            raise Refusal("a storage of it is none of PyTorch's")
        return _Storage(key, dtype, num_elements)

    def _new(self) -> None:
        arguments, of = self.stack.pop(), self.stack.pop()
        if type(of) is not _Name or not of.name.startswith("__torch__") or arguments != ():
            raise Refusal("it makes an object of none of its classes")
        self.stack.append(_Object(of.name))

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is not _Object or type(state) is not dict or not all(type(key) is str for key in state):
            name = target.class_name if type(target) is _Object else type(target).__name__
            raise Refusal(
                f"its class {name[:100]} has a state that only its own code can read (__setstate__); it is not run"
            )
        target.attributes = state

    def _fill(self) -> None:
        """Put everything since the mark into a list, or in pairs into a dictionary."""
        items, target = self.pop_mark(), self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is dict:
            target.update(zip(items[::2], items[1::2], strict=True))
        else:
            self._refuse()

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        name = function.name if type(function) is _Name else type(function).__name__
        if type(arguments) is tuple and name.startswith("torch.jit._pickle."):
            self.stack.append(arguments[0])  # a list, with the type of its elements
        elif type(arguments) is tuple and name in self._calls:
            self.stack.append(self._calls[name](*arguments))
        else:
            raise Refusal(f"it calls {name[:100]}, which no tensor needs; nothing of it is run")

    def _refuse(self) -> None:
        raise Refusal("its data.pkl has an operation that no TorchScript archive has")

    _KEPT = (
        *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.BINPERSID),
        *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINFLOAT, pickle.LONG1),
        *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.BINUNICODE),
        *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
        *(pickle.EMPTY_LIST, pickle.EMPTY_DICT),
        *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
    )
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **dict.fromkeys(range(256), _refuse),
        **{code[0]: pickle._Unpickler.dispatch[code[0]] for code in _KEPT},
    }
    dispatch |= {pickle.NEWOBJ[0]: _new, pickle.BUILD[0]: _build, pickle.REDUCE[0]: _reduce}
    dispatch |= {pickle.APPENDS[0]: _fill, pickle.SETITEMS[0]: _fill}
