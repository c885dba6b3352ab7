"""Test that the commands of README.md, the docs and the bundles' READMEs exist: scripts, verbs, flags, configs, keys, files.

Every line of a bash block is checked by what it starts; one that no check knows is an error unless a comment in its block says what
it needs that a test has not.
"""

from __future__ import annotations

import ast
import configparser
import inspect
import re
import shlex
from pathlib import Path
from unittest import mock

import pytest
import yaml

from synboost_monai.__main__ import VERBS, main
from synboost_monai.bundle_run import bundle_dir, check_overrides, config_files
from synboost_monai.command_line import checked_arguments

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SITE_PAGES = sorted(ROOT.glob("docs/**/*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *SITE_PAGES, *sorted(ROOT.glob("bundles/*/docs/README.md"))]

BUNDLE_VERBS = {
    "train": "train",
    "synthesise": "inference",
    "segment": "inference",
    "evaluate": "evaluate",
    "pseudo-label": "pseudo_label",
}
"""Verbs that are short for a config of a bundle."""
PLAIN = {
    "cd",
    "cp",
    "source",
    "deactivate",
    "mkdir",
    "ls",
    "cat",
    "head",
    "unzip",
    "export",
    "openssl",
    "tensorboard",
    "pre-commit",
    "curl",
}
"""Programs that are not ours and whose words are not checked."""
LABEL_ENVIRONMENT = ".venv_label/bin/"
"""Where scripts/setup_label.sh puts its commands."""
MARKER = re.compile(
    r"needs? (?:an? |two |eight |the |your )*"
    r"(?:GPUs?|cluster|downloaded weights|CAMUS|EchoNet-Dynamic|scanner|Ray|server|archive|paper's file)\b",
    re.IGNORECASE,
)
"""How a comment in a block says what its commands need that no test has."""
NEEDS = {
    r"--profile |--ray_address|multi_gpu_train|torchrun": "GPU|cluster",
    r"weights (get|convert (?!model\.pt))": "downloaded weights",
    r"--dataset PATH|\bCAMUS_DIR\b|paper_tables\.py \S": "CAMUS|paper's file",
    r"\bECHONET_DIR\b": "EchoNet-Dynamic",
    r"train_published": "GPU",
    r"--(from|poll|destination) ": "archive",
}
"""Command -> what its block's comment must say that it needs."""


def blocks(text: str) -> list[str]:
    """Return the bash blocks of a Markdown text, also those indented within lists and tabs."""
    return [
        inspect.cleandoc("\n" + b)
        for b in re.findall(r"^ *```(?:bash|sh)\b[^\n]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    ]


def block_commands(block: str) -> list[str]:
    """Return lines without comments; lines ending in a backslash are joined, those with && or ; are split."""
    lines = block.replace("\\\n", " ").splitlines()
    lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return [part.strip() for line in lines for part in re.split(r" && ", line)]


def commands(text: str) -> list[str]:
    """Return all commands of a Markdown text."""
    return [command for block in blocks(text) for command in block_commands(block)]


def comments(block: str) -> str:
    """Return the text of the comments of a block."""
    return " ".join(re.findall(r"(?:^|\s)#\s*(.*)$", block, flags=re.MULTILINE))


def overrides_of(words: list[str]) -> dict[str, str]:
    """Return the `--key value` pairs of a command."""
    assert all(flag.startswith("--") for flag in words[::2]) and len(words) % 2 == 0, words
    return {flag.removeprefix("--"): value for flag, value in zip(words[::2], words[1::2])}


def check_command(command: str, folder: Path, tmp_path: Path) -> bool:
    """Raise unless the command exists as written; False if no check knows it.

    Args:
        command: a line of a block.
        folder: the working directory, after the `cd`s of the block.
        tmp_path: stands for data that the reader has.
    """
    words = shlex.split(command, comments=True)
    words[0] = words[0].removeprefix(LABEL_ENVIRONMENT)
    if words[0] == "torchrun":
        start = words.index("-m")
        assert all(
            re.match(r"--(standalone|nproc[_-]per[_-]node|nnodes|rdzv)|\d+$", word) for word in words[1:start]
        ), command
        words = ["python", *words[start:]]
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file(), f"{command}: there is no {words[1]}"
        if words[1] == "scripts/quickstart.sh":
            check_verb(["experiment", "quickstart", *words[2:]], tmp_path)
    elif words[0] == "synboost":
        check_verb(words[1:], tmp_path)
    elif words[0] == "python":
        return check_python(words[1:], folder, tmp_path)
    elif words[0] == "pip":
        check_extras(words)
    elif words[0] == "mkdocs":
        assert words[1] in ("build", "serve"), command
        assert set(words[2:]) <= {"--strict"}, command
    elif words[0] == "snakemake":
        assert {"--snakefile", "--configfile", "--directory"} <= set(words), command
    elif words[0] not in PLAIN:
        return False
    return True


def check_verb(words: list[str], tmp_path: Path) -> None:
    """Raise unless verb, flags, and the keys of configs that it passes on exist."""
    name, *flags = checked_arguments(words, VERBS)
    if "--help" in flags:
        return
    given = {}
    for flag in (f for f in flags if f.startswith("--")):
        key, _, value = flag.removeprefix("--").partition("=")
        given[key] = ast.literal_eval(value)
    parameters = inspect.signature(VERBS[name]).parameters
    free = {key: value for key, value in given.items() if key not in parameters}
    bundle = given.get("bundle", parameters["bundle"].default if "bundle" in parameters else None)
    if name in BUNDLE_VERBS:
        check_overrides(config_files(bundle, BUNDLE_VERBS[name]), free)
    elif name == "run":
        check_overrides(config_files(bundle, given["config"]), free)
    elif name in ("dicom", "listen", "package", "export"):
        check_overrides(config_files(bundle, "inference"), free)
    elif name == "demo":
        of_other = {
            key.removeprefix("synthesis."): value for key, value in free.items() if key.startswith("synthesis.")
        }
        check_overrides(
            config_files(bundle, "inference"), {k: v for k, v in free.items() if not k.startswith("synthesis.")}
        )
        check_overrides(config_files("echo_semantic_diffusion", "inference"), of_other)
    elif name == "label":
        for one in bundle.split(","):
            of_one = {k.removeprefix(f"{one}."): v for k, v in free.items() if "." not in k or k.startswith(f"{one}.")}
            check_overrides(config_files(one, "inference"), of_one)
    elif name == "experiment":
        from synboost_monai.study.settings import read_study

        study = given["study"]
        if study.endswith(".yaml"):
            study = "quickstart"  # the reader's own
        settings = "synboost_monai.study.settings"
        with (  # weights are the reader's, as PATH is
            mock.patch(f"{settings}.find_weights", return_value={}),
            mock.patch(f"{settings}._with_absolute_starts", side_effect=lambda merged, where: merged),
        ):
            read_study(study, dataset=str(tmp_path) if "dataset" in given else None, settings=free)
    elif name == "auto3dseg":
        from synboost_monai.auto3dseg.settings import BUNDLE_KEY_OF, HYPER_PARAMETERS

        others = {key: value for key, value in free.items() if key not in (*BUNDLE_KEY_OF, *HYPER_PARAMETERS)}
        check_overrides(config_files("echo_cris", "train"), others)
    elif name == "phantom":
        from synboost_monai.simulation import write_phantom

        assert set(free) <= set(inspect.signature(write_phantom).parameters), words
    elif free:
        pytest.fail(f"test_readme.py has no check for {', '.join(free)} of `synboost {name}`; add one to check_verb")


def check_python(words: list[str], folder: Path, tmp_path: Path) -> bool:
    """Check the words after `python`, as `check_command` does."""
    if words[:1] == ["-c"]:
        compile(words[1], "command", "exec")
        return True
    if words[:1] == ["-m"]:
        module, rest = words[1], words[2:]
        if module == "synboost_monai":
            check_verb(rest, tmp_path)
        elif module == "monai.bundle" and rest[0] in (
            "run",
            "verify_net_in_out",
            "ckpt_export",
            "onnx_export",
            "trt_export",
        ):
            check_bundle_run(rest[1:] if rest[0] == "run" else rest[1:], folder, is_run=rest[0] == "run")
        elif module == "pytest":
            assert all((ROOT / word.split("::")[0]).exists() for word in rest if word.startswith("tests")), words
        else:
            return module in ("venv", "pip", "monai.bundle", "monai.apps.auto3dseg", "monailabel.main", "http.server")
        return True
    script = ROOT / words[0]
    if not words[0].startswith("scripts/"):
        return False
    assert script.is_file(), f"there is no {words[0]}"
    source = script.read_text(encoding="utf-8") + (ROOT / "scripts/measuring.py").read_text(encoding="utf-8")
    known = set(re.findall(r'"--(\w+)"', source))
    known |= {
        n
        for group in re.findall(r"for name in \(([^)]*)\):\n\s+parser.add_argument\(f\"--", source)
        for n in re.findall(r'"(\w+)"', group)
    }
    flags = {word.removeprefix("--").split("=")[0] for word in words[1:] if word.startswith("--")}
    assert flags <= known, f"{words[0]} has no {', '.join(sorted(flags - known))}; it has {', '.join(sorted(known))}"
    return True


def check_bundle_run(words: list[str], folder: Path, is_run: bool) -> None:
    """Raise unless the files of a `monai.bundle run` exist in the bundle's folder and its overrides in their configs."""
    positional = [word for word in words[:1] if not word.startswith("--")]
    arguments = overrides_of(words[len(positional) :])
    if "config_file" not in arguments:
        assert not is_run, words
        return
    configs = yaml.safe_load(arguments.pop("config_file"))
    files = [folder / name for name in ([configs] if isinstance(configs, str) else configs)]
    for name in ("meta_file", "logging_file"):
        if name in arguments:
            assert (folder / arguments.pop(name)).is_file(), words
    assert [path for path in files if not path.is_file()] == [], f"{folder}: {words}"
    if is_run:
        check_overrides(files, arguments)


def check_extras(words: list[str]) -> None:
    """Raise unless the extras that a `pip install` names are in setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    for extra in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
        assert set(extra.split(",")) <= set(setup["options.extras_require"]), words


def folder_of(page: Path) -> Path:
    """Return the folder where a page's commands run: a bundle's README is read in the bundle's folder."""
    return page.parents[1] if page.parts[-4:-3] == ("bundles",) else ROOT


BLOCKS = [
    (page, number, block) for page in PAGES for number, block in enumerate(blocks(page.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize(("page", "number", "block"), BLOCKS, ids=[f"{p.relative_to(ROOT)}-{n}" for p, n, _ in BLOCKS])
def test_commands_of_a_block_exist(page: Path, number: int, block: str, tmp_path: Path) -> None:
    folder = folder_of(page)
    for command in block_commands(block):
        if command.startswith("cd "):
            target = ROOT / command.removeprefix("cd ").split("#")[0].strip()
            assert target.is_dir() or "bundles/" not in command, f"{command}: there is no such folder"
            folder = target if target.is_dir() else folder
        known = check_command(command, folder, tmp_path)
        assert known or MARKER.search(comments(block)), (
            f"{page.name}: no check knows `{command}`; add one to tests/test_readme.py, or a comment in its block: # needs a GPU"
        )


@pytest.mark.parametrize(
    ("page", "number", "block"),
    BLOCKS,
    ids=[f"{p.relative_to(ROOT)}-{n}" for p, n, _ in BLOCKS],
)
def test_what_a_test_has_not_is_marked(page: Path, number: int, block: str) -> None:
    for command in block_commands(block):
        for pattern, needed in NEEDS.items():
            if re.search(pattern, command) and "--dry-run" not in command:
                assert re.search(f"needs? .*({needed})", comments(block)), (
                    f"{page.name}: `{command}` needs what no test has; say it in a comment of its block: # needs ... ({needed})"
                )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("synboost trian echo_cris", "did you mean train"),
        ("synboost train echo_cris --max_epoch 3", "did you mean max_epochs"),
        ("synboost prepare A B --splitt paper", "did you mean split"),
        ("synboost dicom A B --image_sise 160", "did you mean image_size"),
        ("synboost run echo_cris calibrat", "did you mean calibrate"),
        ("synboost experiment quickstart --diffusion.train.epochs 3", "epochs"),
        ("synboost phantom A --hight 3", "hight"),
        ("bash scripts/quick.sh", "there is no scripts/quick.sh"),
        ("bash scripts/quickstart.sh --dataset A --core 3", "core"),
        ("python scripts/compare_finetuning.py echo_cris --epochs 3", "has no epochs"),
        ("python -m monai.bundle run --config_file configs/trian.yaml", "trian.yaml"),
        ("python -m monai.bundle run --config_file configs/train.yaml --max_epoch 3", "did you mean max_epochs"),
        ("torchrun --nproc_per_node 2 -m synboost_monai train echo_cris --epochs 3", "epochs"),
        ("pip install -e '.[dcm]'", "dcm"),
        ("mkdocs build --strickt", "strickt"),
    ],
)
def test_wrong_command_is_found(command: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, ValueError, FileNotFoundError), match=message):
        check_command(command, bundle_dir("echo_cris"), tmp_path)


def test_unknown_program_is_found(tmp_path: Path) -> None:
    assert not check_command("nnUNet_train 2d", ROOT, tmp_path)


def test_readme_has_commands_to_check() -> None:
    assert len([c for _, _, block in BLOCKS for c in block_commands(block) if c.startswith("synboost ")]) >= 50
    assert any(c.startswith("synboost segment") for c in commands(README))
    assert any("quickstart.sh" in c for c in commands(README))
    assert any("monai.bundle run" in c for c in commands(README))


def test_results_of_the_readme_are_those_of_the_site() -> None:
    """Each number of its table is a mean of the page's table of few label maps, with the same number of annotated patients."""
    page = (ROOT / "docs/explanation/results.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (0|5|20) \|(.*)\|$", README, flags=re.MULTILINE)
    assert [number for number, _ in rows] == ["0", "5", "20"]
    for number, row in rows:
        of_page = re.findall(rf"^\| {number} \|.*?\|.*?\| \**(\d\d\.\d)\** \|", page, flags=re.MULTILINE)
        found = re.findall(r"\d\d\.\d", row)
        assert len(found) >= 2 and set(found) <= set(of_page), (number, of_page)


def test_every_verb_is_in_the_table() -> None:
    in_table = set(re.findall(r"^\| `([\w-]+)` \|", README, flags=re.MULTILINE)) & set(VERBS)
    assert in_table == set(VERBS) - {"version"}


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr()
    first_line = (VERBS[verb].__doc__ or "").splitlines()[0]
    assert first_line[:40] in printed.out + printed.err


def test_bundles_of_the_table_exist() -> None:
    in_table = set(re.findall(r"^\| `(echo_\w+)` \|", README, flags=re.MULTILINE))
    assert in_table == {path.name for path in (ROOT / "bundles").iterdir() if path.is_dir()}


def test_files_that_are_named_exist() -> None:
    for name in (
        "LICENSE",
        "CITATION.cff",
        "synboost_monai/prompts/NOTICE",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
    ):
        assert (ROOT / name).is_file(), name
