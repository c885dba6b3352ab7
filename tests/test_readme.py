"""The commands of the READMEs exist: scripts, verbs, flags, bundle configs and the keys that are overridden."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from synboost_monai.__main__ import VERBS, checked_arguments, main
from synboost_monai.bundle_run import check_overrides, config_files

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

BUNDLE_VERBS = {"train": "train", "synthesise": "inference", "segment": "inference", "evaluate": "evaluate"}
"""Verbs that are short for a config of a bundle."""


def commands(text: str) -> list[str]:
    """Lines of the bash blocks of a Markdown text, without comments; lines ending in a backslash are joined."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def bundle_overrides(words: list[str]) -> dict[str, str]:
    """`--key value` pairs of a command."""
    assert all(flag.startswith("--") for flag in words[::2]) and len(words) % 2 == 0, words
    return {flag.removeprefix("--"): value for flag, value in zip(words[::2], words[1::2])}


SYNBOOST = [c for c in commands(README) if c.startswith("synboost ")]
BUNDLE_RUNS = [(None, c) for c in commands(README) if "monai.bundle run" in c] + [
    (path.parents[1], c)
    for path in sorted(ROOT.glob("bundles/*/docs/README.md"))
    for c in commands(path.read_text(encoding="utf-8"))
    if "monai.bundle run" in c
]


def test_readme_has_commands_to_check() -> None:
    assert len(SYNBOOST) >= 8
    assert any("quickstart.sh" in c for c in commands(README))
    assert any("monai.bundle run" in c for c in commands(README))


@pytest.mark.parametrize("command", SYNBOOST)
def test_synboost_command_exists(command: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    checked_arguments(words)  # verb, flags, number of words
    if words[0] in BUNDLE_VERBS:
        named = words[1:2] if not words[1].startswith("--") else []
        files = config_files(named[0] if named else "echo_semantic_diffusion", BUNDLE_VERBS[words[0]])
        check_overrides(files, bundle_overrides(words[1 + len(named) :]))
    if words[0] == "experiment":
        assert (ROOT / f"synboost_monai/experiments/studies/{words[1]}.yaml").is_file()


@pytest.mark.parametrize(("bundle_dir", "command"), BUNDLE_RUNS, ids=lambda x: x if isinstance(x, str) else "")
def test_bundle_command_exists(bundle_dir: Path | None, command: str) -> None:
    words = shlex.split(command, comments=True)
    if bundle_dir is None:  # README.md says `cd bundles/NAME` in the line before
        before = commands(README)[commands(README).index(command) - 1]
        bundle_dir = ROOT / before.removeprefix("cd ")
    arguments = bundle_overrides(words[words.index("run") + 1 :])
    configs = yaml.safe_load(arguments.pop("config_file"))
    files = [bundle_dir / name for name in ([configs] if isinstance(configs, str) else configs)]
    for name in ("meta_file", "logging_file"):
        if name in arguments:
            files_of_run = bundle_dir / arguments.pop(name)
            assert files_of_run.is_file()
    assert [path for path in files if not path.is_file()] == []
    check_overrides(files, arguments)


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
    for name in ("LICENSE", "CITATION.cff", "synboost_monai/prompts/NOTICE", "CHANGELOG.md", "CONTRIBUTING.md"):
        assert (ROOT / name).is_file(), name
    for command in commands(README):
        if command.startswith("bash "):
            assert (ROOT / shlex.split(command)[1]).is_file(), command
