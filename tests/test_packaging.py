"""Test the files that setup.cfg ships: every data file of the package, every bundle; constraints.txt fits its requirements."""

import configparser
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import synboost_monai
from synboost_monai.__main__ import main
from synboost_monai.model_card import read_card

ROOT = Path(__file__).resolve().parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def lines(section: str, key: str) -> list[str]:
    """Return the entries of a list in setup.cfg."""
    return [line for line in SETUP[section][key].splitlines() if line and not line.startswith("#")]


def test_every_data_file_of_the_package_is_shipped() -> None:
    patterns = [p.strip() for p in SETUP["options.package_data"]["*"].split(",")]
    areas = ("synboost_monai.study", "synboost_monai.auto3dseg")
    others = [p.strip() for area in areas for p in SETUP["options.package_data"][area].split(",")]
    for path in (ROOT / "synboost_monai").rglob("*"):
        if path.is_dir() or path.suffix in (".py", ".pyc"):
            continue
        in_package = (path.parent / "__init__.py").is_file()
        shipped = any(path.match(p) for p in patterns) if in_package else any(path.match(p) for p in others)
        assert shipped, f"{path.relative_to(ROOT)} matches no pattern of [options.package_data]"


def test_every_folder_of_a_bundle_is_shipped() -> None:
    shipped = set(SETUP["options.data_files"].values())
    for bundle in (path for path in (ROOT / "bundles").iterdir() if path.is_dir()):
        patterns = next(value for value in shipped if value.startswith(f"bundles/{bundle.name}/LICENSE*")).split(", ")
        for path in (path for path in bundle.iterdir() if path.is_file()):
            assert any(path.match(pattern) for pattern in patterns), path
        folders = {path.parent for path in bundle.rglob("*") if path.suffix and path.is_file()}
        for folder in folders - {bundle, bundle / "models"}:
            assert f"{folder.relative_to(ROOT).as_posix()}/*" in shipped


@pytest.mark.parametrize("bundle", ["echo_clipseg", "echo_cris"])
def test_weights_of_a_bundle_ship_with_what_they_are(bundle: str) -> None:
    """The patterns cover weights that are in a bundle, and stay valid without them."""
    folder = ROOT / "bundles" / bundle / "models"
    patterns = SETUP["options.data_files"][f"share/synboost_monai/bundles/{bundle}/models"].split(", ")
    for name in ("model.pt", "model.json", "calibration.json"):
        assert any(Path(f"bundles/{bundle}/models/{name}").match(pattern) for pattern in patterns), name
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert ignored.index("*.pt") < ignored.index(f"!bundles/{bundle}/models/model.pt")
    limit = next(hook for hook in pre_commit_hooks() if hook["id"] == "check-added-large-files")
    assert re.match(limit["exclude"], f"bundles/{bundle}/models/model.pt")
    if (folder / "model.pt").is_file():
        card = read_card(folder / "model.pt")
        assert card is not None and card.architecture == bundle.removeprefix("echo_")
        assert (card.licence, card.dtype) == ("Apache-2.0", "float16") and card.measured
        assert (folder / "model.pt").stat().st_size <= 20e6


def pre_commit_hooks() -> list[dict[str, Any]]:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    return [hook for repository in config["repos"] for hook in repository["hooks"]]


def test_console_script_is_the_verb_function() -> None:
    assert lines("options.entry_points", "console_scripts") == ["synboost = synboost_monai.__main__:main"]
    assert callable(main)


def test_torch_is_pinned_first_and_torchvision_never_asked_for() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert pins[0] == "torch==2.13.0"
    assert not any(line.startswith("torchvision") for line in pins)
    assert "torchvision" not in SETUP["options"]["install_requires"]


def test_every_requirement_is_pinned() -> None:
    pins = {re.split("==", line)[0] for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()}
    asked = lines("options", "install_requires")
    for extra in (
        "experiments",
        "weights",
        "lora",
        "video",
        "dicom",
        "jpeg-lossless",
        "ray",
        "listen",
        "dicomweb",
        "export",
        "demo",
        "docs",
        "dev",
    ):
        asked += lines("options.extras_require", extra)
    names = {re.split(r"[\[><=;]", line)[0].strip().lower().replace("_", "-") for line in asked}
    assert names - pins == {"synboost-monai"}  # an extra that has another


def requirements() -> list[Requirement]:
    """Return every requirement of setup.cfg with a lower bound."""
    asked = lines("options", "install_requires")
    for extra in SETUP["options.extras_require"]:
        asked += lines("options.extras_require", extra)
    found = [Requirement(line) for line in asked]
    return [requirement for requirement in found if bound_of(requirement) is not None]


def bound_of(requirement: Requirement) -> str | None:
    return next((part.version for part in requirement.specifier if part.operator in (">=", "==")), None)


def table_of_security(title: str) -> list[list[str]]:
    """Return the rows of the first table under a title of SECURITY.md."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8").split(f"# {title}\n", 1)[1]
    rows = re.search(r"\n\|---.*\n((?:\|.*\n)+)", text)
    assert rows is not None
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1].splitlines()]


def pins_of(python: str) -> dict[str, Version]:
    """Return the versions that the tests ran with on a release of Python."""
    rows = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(row) for row in rows if row and not row.startswith("#")]
    return {pin.name.lower(): Version(str(bound_of(pin))) for pin in pins if holds(pin, python)}


def holds(requirement: Requirement, python: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"python_version": python})


def older_than_tested() -> set[str]:
    """Return requirements whose bound is older, by its first two numbers, than the tested version on each Python that needs them."""
    pins = {python: pins_of(python) for python in ("3.10", "3.11")}
    found = set()
    for requirement in requirements():
        name, bound = requirement.name.lower(), Version(str(bound_of(requirement)))
        tested = [pins[python][name] for python in pins if name in pins[python] and holds(requirement, python)]
        if tested and (bound.major, bound.minor) < min((pin.major, pin.minor) for pin in tested):
            found.add(requirement.name)
    return found


def test_bounds_older_than_what_the_tests_ran_with_have_a_reason() -> None:
    reasons = [name for row in table_of_security("Bounds below what the tests ran with") for name in row[0].split(", ")]
    assert len(set(reasons)) == len(reasons)
    assert set(reasons) == older_than_tested()


def test_bounds_are_those_that_were_checked_for_advisories() -> None:
    builds = re.findall(r"(setuptools)>=([0-9.]+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    bounds = {requirement.name: {str(bound_of(requirement))} for requirement in requirements()}
    bounds |= {name: {bound} for name, bound in builds}
    for requirement in requirements():  # in each extra the same
        bounds[requirement.name].add(str(bound_of(requirement)))
    checked = table_of_security("What was checked, and when")
    assert {row[0]: {row[1]} for row in checked} == {row[0]: bounds[row[0]] for row in checked} and len(checked) > 15
    for name, bound in {"monai": "1.6.1", "pydicom": "3.0.2"}.items():
        assert bounds[name] == {bound}


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == synboost_monai.__version__
    assert citation["license"] == SETUP["metadata"]["license"] == "Apache-2.0"
    assert len(citation["references"]) >= 5


def test_vocabulary_has_its_notice_and_its_size() -> None:
    folder = ROOT / "synboost_monai/prompts"
    assert "MIT License" in (folder / "NOTICE").read_text(encoding="utf-8")
    assert len(json.loads((folder / "vocab.json").read_text(encoding="utf-8"))) == 49408
