"""Find the shipped bundles, check overrides against their configs, and run them with MONAI.

`monai.bundle run` accepts a misspelt `--key` in silence; `run_bundle` refuses it, in one line, before anything is written. MONAI also
runs a value that begins with `$`, looks up one with `@` or `%`, and makes `::` of every `#`; here every value is taken literally
(`as_literal`). Every verb opens configs by `run_bundle` or `config_parser`.
"""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import json
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from synboost_monai import __version__
from synboost_monai.distributed import is_launched_first
from synboost_monai.errors import did_you_mean, user_errors_of
from synboost_monai.files import read_text
from synboost_monai.model_card import check_fact, read_card

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

MODULES_SINCE = (0, 2)
"""Version in which modules got their present names; a folder made by an older version names some that do not exist any more."""
BUNDLES_DIR_VARIABLE = "SYNBOOST_BUNDLES"
"""Environment variable with a folder of bundles that is searched before the shipped ones."""
BASE_OF_CONFIG = {
    "multi_gpu_train": "train",
    "train_small": "train",
    "train_published": "train",
    "train_simulated": "train_small",
    "train_adapted": "train_small",
    "train_distilled": "train_small",
    "multi_gpu_evaluate": "evaluate",
    "evaluate": "inference",
    "calibrate": "inference",
    "pseudo_label": "inference",
    "sensitivity": "inference",
    "deploy": "inference",
}
"""Config -> config that it is merged onto if it does not define a network itself."""
PROMPT_KEYS = ("prompt", "displayable_configs::prompt", "displayable_configs#prompt")
"""Keys of a segmenter's config that hold a free prompt."""
WEIGHTS = "models/model.pt"
"""Path of a bundle's weights, below its folder."""
RUN_ARGUMENTS = ("run_id", "init_id", "final_id", "tracking")
"""Arguments of `monai.bundle run` that are not keys of a config."""

_SEPARATOR = re.compile("::|#")  # MONAI's nesting marks: new and old
_DYNAMIC = ("$", "@", "%")  # first letters of an expression, a reference, a macro of a config
_NOT_PLAIN = re.compile("[$@%#]")  # with one of these, MONAI reads more than text
_OF_TEXT = re.compile(
    r"(?:\w+_)?(?:prompt|dir|path|checkpoint|root|bundle)"
)  # keys of paths or of words: never a list or number
_DEVICE = re.compile(r"[a-z]+(:\d+)?")
_OF_COMPONENTS = ("_target_", "_mode_")  # keys of a config that name what is called


def bundles_dirs() -> list[Path]:
    """Return the folders that may hold bundles: those of the user, of the clone and of an installed package."""
    package_dir = Path(__file__).resolve().parent
    found = [package_dir.parent / "bundles", package_dir / "bundles", Path(sys.prefix, "share/synboost_monai/bundles")]
    if os.environ.get(BUNDLES_DIR_VARIABLE):
        found.insert(0, Path(os.environ[BUNDLES_DIR_VARIABLE]))
    return found


def bundle_names() -> list[str]:
    """Return the names of the bundles that can be found."""
    names = {p.parents[1].name for d in bundles_dirs() for p in d.glob("*/configs/metadata.json")}
    return sorted(names)


def is_path(word: str | os.PathLike[str]) -> bool:
    """Return whether a word means a path instead of a name: it has a slash, as `./echo_cris` has, or is `.` or `..`.

    Files in the working directory may be somebody else's; a bare name is never looked up there.
    """
    text = os.fspath(word)
    return not isinstance(word, str) or os.sep in text or "/" in text or text in (os.curdir, os.pardir)


def bundle_dir(bundle: str | os.PathLike[str]) -> Path:
    """Return the folder of a bundle, given by its name or its path (see `is_path`).

    Raises:
        FileNotFoundError: if the bundle does not exist.
    """
    candidates = [Path(bundle)] if is_path(bundle) else [d / str(bundle) for d in bundles_dirs() if bundle]
    for candidate in candidates:
        if (candidate / "configs").is_dir():
            return candidate.resolve()
    names = bundle_names()
    raise FileNotFoundError(
        f"bundle_run.py: no bundle {str(bundle)!r}{did_you_mean(str(bundle), names)}; give the path, with a slash, of a folder with "
        f"configs/ such as ./{Path(bundle).name or 'FOLDER'}, or one of: {', '.join(names) or 'none found'}"
    )


def bundle_weights(root: Path, given: str | os.PathLike[str] | None = None, flag: str = "--checkpoint_path") -> Path:
    """Return the file of weights: the given one, or the bundle's own.

    Args:
        root: folder of the bundle.
        given: path, or None.
        flag: command-line flag that names the weights, for errors.
    Raises:
        FileNotFoundError: if the file does not exist; the message says how to get weights.
    """
    path = root / WEIGHTS if given is None else Path(given).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such weights; give {flag}, a model.pt of a training of {root.name}. To train one: synboost run {root.name} "
            f"train_small --dataset_dir DATA --output_dir OUT, then {flag} OUT/model.pt. Published weights: synboost weights list"
        )
    return path


def is_segmenter(bundle: str | os.PathLike[str]) -> bool:
    """Return whether a bundle segments by prompts: its inference config lets a request change the prompt."""
    return "prompt" in (_merged(config_files(bundle, "inference")).get("displayable_configs") or {})


def say_shipped_weights(bundle: str | os.PathLike[str]) -> None:
    """Print a bundle's own weights, as the first line of a command that names no weights; nothing if the bundle has none."""
    path = bundle_dir(bundle) / WEIGHTS
    if path.is_file():
        card = read_card(path)
        print(f"weights: {path} ({'no model.json says what they are' if card is None else card.title()})", flush=True)


def parsed(parser: ConfigParser, key: str) -> Any:
    """Return an entry of a config, and raise the user's mistake itself where MONAI wraps it in another error."""
    with user_errors_of(RuntimeError):
        value = parser.get_parsed_content(key)
    return value


def setting_of(parser: ConfigParser, key: str) -> Any:
    """Return the value of a key of an inference config; for a fact of the model, the value that `facts` has found."""
    facts = parsed(parser, "facts") if "facts" in parser else {}
    return facts[key] if key in facts else parsed(parser, key)


def config_files(bundle: str | os.PathLike[str], config: str | Sequence[str]) -> list[Path]:
    """Return the config files of a run, in the order in which they are merged.

    Args:
        bundle: name or path.
        config: `train`, `inference`, `evaluate`, a path (see `is_path`), or several with commas. A single name whose file
            does not define a network is merged onto its base (`BASE_OF_CONFIG`).
    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the bundle was made for a version whose modules have other names.
    """
    root = bundle_dir(bundle)
    _check_version(root)
    names = [n.strip() for n in config.split(",")] if isinstance(config, str) else [str(n) for n in config]
    files = [_config_file(root, name) for name in names]
    while len(names) == 1 and files[0].stem in BASE_OF_CONFIG and "network_def" not in _merged(files):
        files.insert(0, _config_file(root, BASE_OF_CONFIG[files[0].stem]))
    return files


def refuse_older(version: str, folder: str | os.PathLike[str], advice: str) -> None:
    """Refuse a folder that names modules of an older version.

    Args:
        version: version of synboost-monai that made the folder.
        folder: the folder.
        advice: what to do.
    Raises:
        ValueError: if the version is older than `MODULES_SINCE`.
    """
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers and numbers < MODULES_SINCE:
        raise ValueError(
            f"{folder}: was made by synboost-monai {version[:20]}, some of whose modules have other names in {__version__}; {advice}"
        )


def check_overrides(files: Sequence[str | os.PathLike[str]], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Check that the configs know the keys of overrides, and return the values in the config's types.

    A key may be nested (`train::trainer::max_epochs`). A new argument of a component is accepted if its class or
    function takes an argument of that name.

    Args:
        files: config files of the run, in merging order.
        overrides: key -> value; text is read as a Python or YAML literal unless the config holds text there. Text is never an
            expression, a reference or a macro.
    Returns:
        the same keys with values in the config's types; for MONAI they still have to pass `as_literal`.
    Raises:
        ValueError: if a key is unknown or names the class that is called, a value has the wrong type, or the prompt of a segmenter names
            nothing that it was taught.
    """
    config = _merged(files)
    where = "+".join(Path(f).name for f in files)
    bundle = Path(files[0]).parents[1].name
    bases = [_merged([file]) for file in files[:-1]]
    checked: dict[str, Any] = {}
    for key, value in overrides.items():
        if not set(_OF_COMPONENTS).isdisjoint(_SEPARATOR.split(key)):
            raise ValueError(
                f"{bundle}/{where}: --{key} says what is called; write it into a config, and run that by its path"
            )
        found, current = _look_up(config, key)
        if key in RUN_ARGUMENTS and not found:
            if not isinstance(value, str):
                raise ValueError(f"--{key} must be text, got {value!r}")
            checked[key] = value
            continue
        if not found:
            keys = [k for k in config if not k.startswith("_")]
            hint = did_you_mean(key, _keys(config, key)) or f"; it has {', '.join(keys)}"
            raise ValueError(f"{bundle}/{where}: unknown key --{key}{hint}")
        # a recipe may put text where its base config has null
        is_optional = any(_look_up(base, key) == (True, None) for base in bases)
        if is_optional and value in (None, "null", "None"):
            checked[key] = None
        else:
            checked[key] = _convert(key, value, _referred(config, current), f"{bundle}/{where}")
        if key in PROMPT_KEYS and "free_words" in config and isinstance(checked[key], str):
            from synboost_monai.prompts.understanding import understand_if_any  # here: not every verb needs numpy

            understand_if_any(checked[key])  # before anything is loaded
        if key in config.get("facts", {}).get("said", {}) and checked[key] is not None:
            check_fact(key, checked[key], f"{bundle}/{where}: --{key}")
    return checked


def facts_said(files: Sequence[str | os.PathLike[str]]) -> tuple[str, dict[str, Any]] | None:
    """Read the architecture that configs are for, and the facts of the model that they state.

    Args:
        files: config files of a run, in merging order.
    Returns:
        the architecture; fact -> value, or None if they leave it to model.json. None if the configs have no facts.
    """
    config = _merged(files)
    if not isinstance(facts := config.get("facts"), dict) or "said" not in facts:
        return None
    return facts["architecture"], {key: _referred(config, value) for key, value in facts["said"].items()}


def as_literal(value: Any) -> Any:
    """Write a value for a config of MONAI so that its parser returns it unchanged, whatever characters are in it.

    Text with `$`, `@`, `%` or `#`, alone or anywhere in a list or mapping, becomes an expression that evaluates to it and has none of
    these characters after its first `$`; so does a mapping with keys that mean something to the parser. Everything else stays as it is.
    """
    return value if _is_plain(value) else f"${_python(value)}"


def config_parser(files: Sequence[str | os.PathLike[str]], values: Mapping[str, Any]) -> ConfigParser:
    """Return MONAI's parser of config files, with other values of some keys, each taken literally (see `as_literal`)."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    parser.update({key: as_literal(value) for key, value in values.items()})
    return parser


def run_bundle(
    bundle: str | os.PathLike[str], config: str | Sequence[str], overrides: Mapping[str, Any] | None = None
) -> None:
    """Run one config of a bundle in this process, as `python -m monai.bundle run` does.

    Args:
        bundle: name or path of the bundle.
        config: see `config_files`.
        overrides: checked with `check_overrides`; relative paths are relative to the working directory.
    Raises:
        ValueError, FileNotFoundError: for mistakes of the user, also from deep inside MONAI (see `errors.user_error`).
    """
    files = config_files(bundle, config)
    checked = check_overrides(files, overrides or {})
    values = {key: value if key in RUN_ARGUMENTS else as_literal(value) for key, value in checked.items()}
    values |= {key: "$None" for key, value in values.items() if value is None}  # MONAI ignores None
    configs_dir = files[0].parent
    if "checkpoint_path" not in checked and _is_own_weights(_merged(files).get("checkpoint_path")):
        bundle_weights(configs_dir.parent)
        if is_launched_first():
            say_shipped_weights(configs_dir.parent)
    arguments: dict[str, Any] = {
        "config_file": [str(f) for f in files],
        "workflow_type": "train" if files[0].stem.endswith("train") else "infer",
        "bundle_root": as_literal(str(configs_dir.parent)),
    }
    for name, file in (("meta_file", "metadata.json"), ("logging_file", "logging.conf")):
        if (configs_dir / file).is_file():
            arguments[name] = str(configs_dir / file)

    quiet_warnings()
    from monai.bundle import run

    with user_errors_of(Exception), _without_echo_of_errors():
        run(**arguments | values)


def quiet_warnings() -> None:
    """Hide warnings of libraries that no user can act on; every other warning stays."""
    for message in (
        "parsing config_file",  # MONAI: configs are code; ours are shipped with the package
        ".*nvimgcodec.*",
        ".*always_return_as_numpy.*",
        "`torch.jit.*deprecated",
        "Converting a tensor with requires_grad=True to a scalar",  # MONAI's loss logging
        ".*pin_memory.*no accelerator is found",
    ):
        warnings.filterwarnings("ignore", message=message)
    # MONAI repeats the overrides on stdout, where a mistake of the user would be a line among many
    for name in ("monai.bundle.scripts", "monai.bundle.workflows"):
        logging.getLogger(name).setLevel(logging.WARNING)


def literal(text: str) -> Any:
    """Read the value of a command-line word: a number, list, true, false, null, ...; otherwise it is text."""
    words = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
        return text if isinstance(value, (bytes, set, complex, type(...))) else value
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    try:
        return float(text)  # 1e-3 is a literal, inf is not
    except ValueError:
        return text


@contextmanager
def _without_echo_of_errors() -> Iterator[None]:
    """Hide ignite's and MONAI's own log lines about an exception, which reaches the user anyway."""
    factory = logging.getLogRecordFactory()

    def make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        if record.exc_info or "terminating due to exception" in str(record.msg):
            record.levelno = logging.NOTSET - 1  # below every handler's level
        return record

    logging.setLogRecordFactory(make_record)
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)


def _check_version(root: Path) -> None:
    """Refuse a bundle whose metadata asks for an older version; a bundle without such a line is taken as it is."""
    try:
        stated = json.loads(read_text(root / "configs/metadata.json"))["required_packages_version"]["synboost-monai"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    advice = "make it anew with `synboost package`, or with a copy of this version's bundle, and its models/model.pt"
    refuse_older(str(stated), root, advice)


def _config_file(root: Path, name: str) -> Path:
    """Find one config of a bundle, by name or path."""
    names = [f"configs/{name}.json", f"configs/{name}.yaml", f"configs/{name}.yml", f"configs/{name}", name]
    for candidate in (root / n for n in names):
        if candidate.is_file():
            return candidate
    if is_path(name) and Path(name).is_file():
        return Path(name).resolve()
    have = sorted(p.stem for p in (root / "configs").iterdir() if p.suffix in (".json", ".yaml", ".yml"))
    have = [n for n in have if n != "metadata"]
    raise FileNotFoundError(
        f"bundle_run.py: bundle {root.name} has no config {name!r}{did_you_mean(name, have)}; it has {', '.join(have)}"
    )


def _is_own_weights(path: Any) -> bool:
    """Return whether a config's checkpoint_path is the bundle's own weights."""
    return isinstance(path, str) and path.replace('"', "'") == f"$@bundle_root + '/{WEIGHTS}'"


@lru_cache(maxsize=32)
def _parsed_text(text: str, is_json: bool) -> Any:
    """Parse a config; a study asks for the same few once a stage."""
    return json.loads(text) if is_json else yaml.safe_load(text)


def _merged(files: Sequence[str | os.PathLike[str]]) -> dict[str, Any]:
    """Merge configs into one dictionary; as in MONAI, a later file replaces a key, and `+key` adds to it."""
    out: dict[str, Any] = {}
    for file in files:
        content = copy.deepcopy(_parsed_text(read_text(file), Path(file).suffix == ".json"))
        if not isinstance(content, dict):
            raise ValueError(f"{file}: a bundle config must be a mapping, got {type(content).__name__}")
        for key, value in content.items():
            parts = _SEPARATOR.split(key.removeprefix("+"))
            parent = out
            for part in parts[:-1]:
                parent = parent.setdefault(part, {})
            old = parent.get(parts[-1])
            if key.startswith("+") and isinstance(old, dict) and isinstance(value, dict):
                parent[parts[-1]] = {**old, **value}
            elif key.startswith("+") and isinstance(old, list) and isinstance(value, list):
                parent[parts[-1]] = [*old, *value]
            else:
                parent[parts[-1]] = value
    return out


def _look_up(config: Mapping[str, Any], key: str) -> tuple[bool, Any]:
    """Return whether a config has a (nested) key or could have it, and its value."""
    node: Any = config
    for part in _SEPARATOR.split(key):
        if isinstance(node, Mapping) and part in node:
            node = node[part]
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, Mapping) and "_target_" in node:
            return _takes_argument(node["_target_"], part), None
        else:
            return False, None
    return True, node


def _takes_argument(target: Any, name: str) -> bool:
    """Return whether the class or function that a config names has an argument."""
    from monai.bundle import ComponentLocator

    found = ComponentLocator().get_component_module_name(str(target)) if "." not in str(target) else None
    path = f"{found[0] if isinstance(found, list) else found}.{target}" if found else str(target)
    module_name, _, attribute = path.rpartition(".")
    try:
        component = getattr(importlib.import_module(module_name), attribute)
        parameters = inspect.signature(component).parameters
    except (ImportError, AttributeError, ValueError, TypeError):
        return False
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _keys(config: Mapping[str, Any], key: str) -> list[str]:
    """Return the keys with up to as many levels as `key`."""
    separator = "#" if "#" in key else "::"

    def walk(node: Any, path: str, levels: int) -> Iterator[str]:
        for name, value in node.items() if isinstance(node, Mapping) else ():
            here = f"{path}{separator}{name}" if path else str(name)
            yield here
            if levels > 1:
                yield from walk(value, here, levels - 1)

    return list(walk(config, "", len(_SEPARATOR.split(key))))


def _list(key: str, text: str, where: str) -> Any:
    """Read [a, b] as in a config: words without quotes."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: --{key} must be a list like [a, b], got {text!r}") from error


def _referred(config: Mapping[str, Any], current: Any) -> Any:
    """Return the value that a config's `@reference` leads to; any other value is returned itself."""
    for _ in range(10):
        if not (isinstance(current, str) and current.startswith("@")):
            return current
        found, current = _look_up(config, current[1:])
        if not found:
            return None
    return None


def _convert(key: str, value: Any, current: Any, where: str) -> Any:
    """Convert a value to the type of the value in the config."""
    name = _SEPARATOR.split(key)[-1]
    if name == "device" and isinstance(value, str) and not _DEVICE.fullmatch(value):
        raise ValueError(f"{where}: --{key} must be a device such as cpu, cuda or cuda:1, got {value!r}")
    if _OF_TEXT.fullmatch(name) and not isinstance(current, (dict, list)):
        return _text(key, value, current, where)
    is_text = isinstance(current, str) and not current.startswith(_DYNAMIC)
    if is_text and not (isinstance(value, str) and value.startswith("[") and value.endswith("]")):
        return value if isinstance(value, list) else _text(key, value, current, where)
    if isinstance(value, str):
        text, value = value, value if is_text else literal(value)
        if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
            value = _list(key, text, where)
    if isinstance(current, Mapping) and "_target_" in current and value is not None:
        raise ValueError(
            f"{where}: --{key} is a component; change an argument of it, such as --{key}::{_example(current)}"
        )
    if isinstance(current, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{where}: --{key} must be true or false, got {value!r}")
    elif isinstance(current, (int, float)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"{where}: --{key} must be a number like {current}, got {value!r}")
        if isinstance(current, int) and isinstance(value, float) and value.is_integer():
            value = int(value)
    elif isinstance(value, tuple):
        value = list(value)
    return value


def _text(key: str, value: Any, current: Any, where: str) -> str | None:
    """Return a value as text, whatever it looks like; null is allowed only where the config has null."""
    if current is None and value in (None, "null", "None"):
        return None
    if value is None or isinstance(value, (dict, tuple, list)):
        like = f" like {current!r}" if isinstance(current, str) else ""
        raise ValueError(f"{where}: --{key} must be text{like}, got {value!r}")
    return str(value)


def _example(component: Mapping[str, Any]) -> str:
    """Return the name of an argument of a component."""
    return next((name for name in component if not name.startswith("_")), "ARGUMENT")


def _is_plain(value: Any) -> bool:
    """Return whether MONAI's parser leaves a value as it is."""
    if isinstance(value, str):
        return not _NOT_PLAIN.search(value)
    if isinstance(value, Mapping):
        return all(
            isinstance(key, str)
            and _is_plain(key)
            and "::" not in key
            and key not in _OF_COMPONENTS
            and _is_plain(part)
            for key, part in value.items()
        )
    return not isinstance(value, (list, tuple)) or all(map(_is_plain, value))


def _python(value: Any) -> str:
    """Return ASCII Python code that evaluates to a value, without the characters that MONAI looks for."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_python(key)}: {_python(part)}' for key, part in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_python, value))}]"
    if isinstance(value, str):
        return _NOT_PLAIN.sub(lambda found: f"\\x{ord(found[0]):02x}", ascii(str(value)))
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    raise TypeError(f"bundle_run.py: {type(value).__name__} cannot be written into a config")
