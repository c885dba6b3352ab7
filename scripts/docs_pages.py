"""Make documentation pages from the project itself: configs, command line, studies, API, notebooks.

Each function returns Markdown; docs_hooks.py puts it into the site.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CONFIG_ORDER = (
    "inference",
    "train",
    "train_small",
    "train_published",
    "train_simulated",
    "train_adapted",
    "multi_gpu_train",
    "evaluate",
    "calibrate",
    "pseudo_label",
    "sensitivity",
)
"""Order in which the configs of a bundle are described; others follow by name."""

COMMON_KEYS = {
    "bundle_root": "folder of the bundle",
    "dataset_dir": "the data: a folder with datalist.json; in inference also a folder of images, or one file",
    "output_dir": "folder for all that is written",
    "checkpoint_path": "weights, a model.pt",
    "device": "where the network computes",
    "seed": "of everything random",
    "section": "of the datalist: training, validation or testing; several joined by +",
    "batch_size": "images in a batch",
    "num_workers": "processes that load data; 0: none beside the main one",
    "image_size": "px, side of the square",
    "preset": "size of the network: published, small or tiny",
    "channels_last": "order of features in memory; true is faster on some processors",
    "lora_dropout": "of the adapters' input in training",
    "weight_decay": "of AdamW, on weights with two or more dimensions",
    "learning_rate": "of AdamW",
    "max_epochs": "passes over the training section",
    "threshold": "probability above which a pixel belongs to a structure",
    "fill_holes": "no gap is left between structures, and background that they enclose goes to them",
    "keep_largest": "stray pieces of a structure are taken off",
    "prompt_ensemble": "levels whose prompts are averaged; null: one prompt",
    "keep_aspect": "true: an image is fitted into the square with its aspect; false: it is squashed",
    "padding_id": "token behind a prompt's end",
    "mask_padding": "true: words behind a prompt's end are not attended to",
    "image_mean": "subtracted from each channel of an image in [0, 1]",
    "image_std": "each channel is divided by it",
    "num_inference_steps": "evaluations of the network for an image",
    "real_dir": "a real data set: a folder with datalist.json and label maps",
    "segmenter_checkpoint": "weights of the network that judges",
    "segmenter_preset": "its size",
    "val_interval": "epochs between two validations",
    "freeze_encoders": "true: image and text encoder are not trained",
    "augment": "ultrasound augmentation in training",
    "layer_decay": "each layer of an encoder learns at this fraction of the one behind it",
    "warm_up_steps": "updates until the learning rate is reached",
    "gradient_clip": "largest norm of the gradient; 0: none",
    "lambda_ce": "of Dice + lambda_ce * cross-entropy",
    "ema_decay": "of the averaged weights; 0: no average",
    "lr_schedule": "linear, cosine, plateau or constant",
    "autocast_dtype": "mixed precision; null: float32",
    "encoder_learning_rate_scale": "the encoders' learning rate as a fraction",
    "picture_interval": "validations between two picture grids",
    "flip_probability": "share of mirrored images",
    "stratified_timesteps": "true: the timesteps of a batch are spread evenly",
}
"""Key -> description, for keys without a comment in the file."""

SKIPPED_AREAS = ("__main__", "processes")
"""Modules of the package that are not part of the API."""


# ---- configs


@dataclass(frozen=True)
class ConfigKey:
    """Hold one key of a YAML file."""

    path: str
    """Path with `::` between levels, as in overrides."""
    value: str | None
    """As written; None for a mapping or list in block form."""
    comment: str
    """Comment after the value, without the mark."""
    target: str | None
    """The component's `_target_`."""
    group: str
    """Comment lines on their own before the key."""
    depth: int
    """Level of the key; 0: a key of the file itself."""


def config_keys(text: str) -> list[ConfigKey]:
    """List every key of a YAML mapping, in order, with the comment after it.

    Args:
        text: text of the file.
    Raises:
        ValueError: if it is not a mapping.
    """
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        raise ValueError("docs_pages.py: a config must be a mapping")
    return list(_keys(root, text.splitlines(), ""))


def head_comment(text: str) -> str:
    """Return the comment at the top of a file as Markdown; lines that are indented further are commands."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].removeprefix(" "))
    out: list[str] = []
    is_code = False
    for line in lines:
        if line.startswith("  ") != is_code:
            out += ["```", ""] if is_code else ["", "```text"]
            is_code = not is_code
        out.append(line.strip() if is_code else _escaped(line))
    return "\n".join([*out, *(["```"] if is_code else [])])


def configs_page(bundle_dir: Path) -> str:
    """Return the reference of a bundle's configs, key by key."""
    metadata = json.loads((bundle_dir / "configs/metadata.json").read_text(encoding="utf-8"))
    files = {path.stem: path.read_text(encoding="utf-8") for path in sorted((bundle_dir / "configs").glob("*.yaml"))}
    names = [name for name in CONFIG_ORDER if name in files]
    names += [name for name in files if name not in names]
    keys = {name: config_keys(files[name]) for name in names}
    known = {(k.path, k.value): k.comment for name in reversed(names) for k in keys[name] if k.comment}
    lines = [
        f"# {bundle_dir.name}",
        "",
        f"{metadata['description']} Version {metadata['version']}.",
        "",
        "Made from the comments in the files. Every key can be overridden by `--key value`, nested ones by `--outer::inner value`, in "
        "`synboost` and in `python -m monai.bundle run`; `synboost` refuses a key that a config does not have.",
    ]
    for name in names:
        lines += ["", f"## {name}.yaml", "", head_comment(files[name]), "", *_config_tables(keys[name], known)]
    return "\n".join(lines) + "\n"


def describe(key: ConfigKey, known: Mapping[tuple[str, str | None], str]) -> str:
    """Return a key's comment, else that of the same key and value in another config of the bundle, else the common one."""
    return key.comment or known.get((key.path, key.value), "") or COMMON_KEYS.get(key.path, "")


def _config_tables(keys: list[ConfigKey], known: Mapping[tuple[str, str | None], str]) -> Iterator[str]:
    """Yield the tables of settings, components, and nested keys that have a comment."""
    top = [key for key in keys if key.depth == 0]
    settings = [key for key in top if key.value is not None]
    if settings:
        yield from ("| key | default | |", "|---|---|---|")
        for key in settings:
            if key.group:
                yield f"| | | *{_cell(key.group)}* |"
            yield f"| `{key.path}` | {_code(key.value or '')} | {_cell(describe(key, known))} |"
    parts = [key for key in keys if key.value is None and (key.depth == 0 or key.depth == 1 and key.target)]
    if parts:
        yield from ("", '??? note "Components"', "", "    | key | made by | |", "    |---|---|---|")
        for key in parts:
            yield f"    | `{key.path}` | {_code(key.target or '')} | {_cell(key.comment or key.group)} |"
    nested = [key for key in keys if key.depth > 0 and key.comment and key not in parts]
    if nested:
        yield from ("", '??? note "Nested keys with a comment"', "", "    | key | value | |", "    |---|---|---|")
        for key in nested:
            yield f"    | `{key.path}` | {_code(key.value or '')} | {_cell(key.comment)} |"


def _keys(node: yaml.MappingNode, lines: list[str], prefix: str, depth: int = 0) -> Iterator[ConfigKey]:
    for key_node, value_node in node.value:
        path = f"{prefix}{key_node.value}"
        is_block = isinstance(value_node, yaml.CollectionNode) and not value_node.flow_style
        start = key_node.start_mark
        if is_block or value_node.start_mark.line != start.line:
            value = None if is_block else str(value_node.value)
            comment = _comment(lines[key_node.end_mark.line][key_node.end_mark.column + 1 :])
        else:
            end = value_node.end_mark
            value = lines[start.line][value_node.start_mark.column : end.column] if end.line == start.line else ""
            comment = _comment(lines[end.line][end.column :])
        target = None
        if isinstance(value_node, yaml.MappingNode):
            target = next((v.value for k, v in value_node.value if k.value == "_target_"), None)
        yield ConfigKey(path, value, comment, target, "" if prefix else _group(lines, start.line), depth)
        if isinstance(value_node, yaml.MappingNode) and is_block:
            yield from _keys(value_node, lines, f"{path}::", depth + 1)


def _comment(rest: str) -> str:
    """Return the comment in the text after a value."""
    match = re.search(r"(?:^|\s)#\s*(.*)$", rest)
    return match[1].strip() if match else ""


def _group(lines: list[str], number: int) -> str:
    """Return the comment lines directly above a line; the file's head does not count."""
    found: list[str] = []
    while number > 0 and lines[number - 1].startswith("#"):
        number -= 1
        found.insert(0, lines[number].lstrip("# "))
    return "" if number == 0 else " ".join(found)


# ---- studies


def studies_page(studies_dir: Path) -> str:
    """List the shipped studies, and every setting of a study with its default."""
    from synboost_monai.study import settings

    source = inspect.getsource(settings)
    note = re.search(r'DEFAULTS: .*?\n}\n"""(.*?)"""', source, flags=re.DOTALL)
    lines = [
        "# Studies",
        "",
        "`synboost experiment NAME`, or the path of a YAML file of yours. Any setting can be given on the command line, with dots: "
        "`--diffusion.train.max_epochs 5`.",
        "",
        "| setting | default |",
        "|---|---|",
        *(f"| `{path}` | {_code(json.dumps(value))} |" for path, value in _leaves(settings.DEFAULTS, "")),
        "",
        *((note[1] if note else "").strip().splitlines()),
    ]
    for path in sorted(studies_dir.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        body = "\n".join(text.splitlines()[len(head_lines(text)) :])
        lines += ["", f"## {path.stem}", "", _escaped(" ".join(head_lines(text))), "", "```yaml", body, "```"]
    return "\n".join(lines) + "\n"


def head_lines(text: str) -> list[str]:
    """Return the comment lines at the top of a file, without their mark."""
    out = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        out.append(line.lstrip("# "))
    return out


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# ---- command line


def cli_page() -> str:
    """Describe every verb: usage, purpose, arguments."""
    from synboost_monai.__main__ import VERBS

    lines = [
        "# Command line",
        "",
        "Made from the verbs' docstrings; `synboost VERB --help` tells the same. `python -m synboost_monai VERB` works too. "
        "A mistake of yours comes out as one line, with exit code 2; an unknown flag is an error and names the nearest one that exists.",
        "",
        "| verb | what it does |",
        "|---|---|",
    ]
    for name, verb in VERBS.items():
        lines.append(f"| [`{name}`](#{name}) | {_cell(_summary(verb))} |")
    for name, verb in VERBS.items():
        lines += ["", *_verb(name, verb)]
    return "\n".join(lines) + "\n"


def arguments_of(doc: str) -> dict[str, str]:
    """Return name -> text from the `Args:` of a docstring; a line about several names counts for each."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n|\n)*)", doc + "\n", flags=re.MULTILINE)
    out: dict[str, str] = {}
    names: list[str] = []
    for line in section[1].splitlines() if section else ():
        match = re.match(r"    (\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)", line)
        if match:
            names = [name.strip("* ") for name in match[1].split(",")]
            out |= dict.fromkeys(names, match[2])
        else:
            out |= {name: f"{out[name]} {line.strip()}" for name in names}
    return out


def _verb(name: str, verb: Callable[..., None]) -> Iterator[str]:
    from synboost_monai.command_line import flag_of

    doc = inspect.getdoc(verb) or ""
    told = arguments_of(doc)
    parameters = inspect.signature(verb).parameters.values()
    usage = f"synboost {name}"
    for p in parameters:
        if p.kind is p.POSITIONAL_OR_KEYWORD:
            usage += f" {p.name.upper()}" if p.default is p.empty else f" [{p.name.upper()}]"
        elif p.kind is p.VAR_POSITIONAL:
            usage += f" {p.name.upper()} ..."
    usage += " [--flag value ...]" if any(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in parameters) else ""
    body = doc.split("\nArgs:")[0].splitlines()
    yield from (f"## {name}", "", "```text", usage, "```", "", _escaped(" ".join(body[:1])), "")
    yield from (_escaped(line) for line in body[1:])
    if told:
        yield from ("", "| argument | default | |", "|---|---|---|")
    for p in parameters:
        is_word = p.kind in (p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)
        shown = (
            f"`{p.name.upper()}`"
            if is_word
            else f"`--{flag_of(p.name)}`"
            if p.kind is p.KEYWORD_ONLY
            else "`--key value`"
        )
        default = "" if p.default in (p.empty, None) else _code(str(p.default))
        yield f"| {shown} | {default} | {_cell(told.get(p.name, ''))} |"


def _summary(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").splitlines()[0]


# ---- API


def api_areas(package_dir: Path) -> list[str]:
    """List the areas of the package: its modules and folders, by name."""
    names = {path.stem for path in package_dir.glob("[a-z]*.py")} | {
        p.parent.name for p in package_dir.glob("*/__init__.py")
    }
    return sorted(names - set(SKIPPED_AREAS))


def api_pages(package_dir: Path) -> dict[str, str]:
    """Return area -> page with every public module of it, for mkdocstrings."""
    return {area: _api_page(package_dir, area) for area in api_areas(package_dir)}


def _api_page(package_dir: Path, area: str) -> str:
    package = package_dir.name
    folder = package_dir / area
    lines = [f"# {area}", ""]
    if not folder.is_dir():
        return "\n".join([*lines, f"::: {package}.{area}", ""])
    lines += [f"::: {package}.{area}", "    options: {show_submodules: false}", ""]
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(package_dir).with_suffix("").parts
        if "templates" in parts or parts[-1].startswith("_"):
            continue
        lines += [f"::: {'.'.join((package, *parts))}", ""]
    return "\n".join(lines)


# ---- notebooks


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Convert a notebook with its saved outputs to Markdown, and return it with its pictures: file name -> content."""
    import nbformat
    from nbconvert import MarkdownExporter

    notebook = nbformat.read(path, as_version=4)
    text, resources = MarkdownExporter().from_notebook_node(notebook)
    pictures: dict[str, bytes] = {}
    for name, content in resources["outputs"].items():
        pictures[f"{path.stem}_{name}"] = content
        text = text.replace(f"({name})", f"({path.stem}_{name})")
    text = text.replace("![png](", f"![Output of the notebook {path.stem}](")
    title, _, rest = text.strip().partition("\n")
    note = f"*A notebook, run on a CPU: [download it]({path.name}); it needs the package alone and makes its own data.*"
    return f"{title}\n\n{note}\n{rest}\n", pictures


# ---- Markdown


def _cell(text: str) -> str:
    """Escape text for a cell of a table."""
    return _escaped(text).replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    """Format code for a cell of a table; empty text stays empty."""
    return f"`{text}`".replace("|", "\\|") if text else ""


def _escaped(text: str) -> str:
    """Escape `<`, `*` and `_` in text, except in backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([<*_\[\]])", r"\\\1", p) for p in parts)
