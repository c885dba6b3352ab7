"""Imports inside the package go one way, and some folders stay free of some libraries."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "synboost_monai"

LAYERS: tuple[frozenset[str], ...] = (
    frozenset(
        {
            "__init__",
            "door",
            "labels",
            "letterbox",
            "records",
            "errors",
            "io",
            "formats",
            "csv_files",
            "model_card",
            "paths",
            "processes",
        }
    ),
    frozenset({"dicom"}),
    frozenset({"prompts", "transforms", "networks", "diffusion", "metrics", "losses", "simulation"}),
    frozenset({"inferers", "handlers", "data", "onnx_segmenter"}),
    frozenset({"bundle_run", "weights", "export", "package", "predictor"}),
    frozenset({"experiments", "auto3dseg", "hospital", "label"}),
    frozenset({"demo"}),
    frozenset({"__main__"}),
)
"""Areas of the package, lowest first: an area may import lower ones, and those of its own layer without a cycle."""

KNOWS_ONLY = {"networks": {"networks"}, "diffusion": {"diffusion"}}
"""Networks know tensors alone, and so does diffusion: they import nothing else of the package."""

FORBIDDEN = {
    "torchvision": set(),
    "pydicom": {"dicom"},
    "highdicom": {"dicom"},
    "pynetdicom": {"dicom"},
    "ray": {"hospital"},
    "snakemake": {"experiments"},
    "monailabel": {"label"},
    "fire": {"__main__"},
    "onnx": {"export"},
    "onnxruntime": {"export", "onnx_segmenter"},
    "gradio": {"demo"},
    "av": {"formats"},
}
"""Library -> the only areas that may import it."""

FILE_LIBRARIES = {"nibabel", "itk", "pydicom", "PIL", "pandas", "av"}
"""Libraries that read or write files of images and tables."""


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, also inside functions; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def file_imports() -> dict[str, set[str]]:
    """Module of the package -> those that it imports; `networks/__init__.py` is synboost_monai.networks."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((ROOT / PACKAGE).rglob("*.py"))
    }
    imports: dict[str, set[str]] = {}
    for module, path in paths.items():
        found = imports[module] = set()
        for name in imports_of(path):
            while name and name not in paths:  # what is imported from a module, or no part of the package
                name = name.rpartition(".")[0]
            found |= {name} - {module, ""}
    return imports


def area_of(module: str) -> str:
    """First part below the package: synboost_monai.data.camus -> data."""
    return (module.split(".") + ["__init__"])[1]


def area_imports(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Area -> areas that its files import."""
    found: dict[str, set[str]] = {}
    for module, targets in imports.items():
        area = area_of(module)
        found.setdefault(area, set()).update({area_of(target) for target in targets} - {area})
    return found


def circle(imports: dict[str, set[str]]) -> str:
    """Modules that import each other in a circle, or nothing."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return " <- ".join(error.args[1])
    return ""


def violations(imports: dict[str, set[str]]) -> list[str]:
    """Arrows that go up, sideways in a circle, or to an area without a layer."""
    layer = {area: i for i, areas in enumerate(LAYERS) for area in areas}
    wrong = [f"{area} is in no layer; add it to LAYERS" for area in sorted(imports) if area not in layer]
    for area, targets in sorted(imports.items()):
        for target in sorted(targets):
            if layer.get(target, 0) > layer.get(area, len(LAYERS)):
                wrong.append(f"{area} imports {target}, which is above it")
            elif area in imports.get(target, ()) and area < target:
                wrong.append(f"{area} and {target} import each other")
        if area in KNOWS_ONLY and not targets <= KNOWS_ONLY[area]:
            wrong.append(f"{area} must not import {', '.join(sorted(targets - KNOWS_ONLY[area]))}")
    return wrong


def test_imports_go_one_way() -> None:
    imports = area_imports(file_imports())
    assert "prompts" in imports and "labels" in imports["prompts"]
    assert violations(imports) == []


@pytest.mark.parametrize(
    ("imports", "message"),
    [
        ({"labels": {"data"}}, "labels imports data, which is above it"),
        ({"handlers": {"experiments"}}, "handlers imports experiments, which is above it"),
        ({"transforms": {"prompts"}, "prompts": {"transforms"}}, "prompts and transforms import each other"),
        ({"diffusion": {"labels"}}, "diffusion must not import labels"),
        ({"novelty": set()}, "novelty is in no layer; add it to LAYERS"),
    ],
)
def test_wrong_arrow_is_found(imports: dict[str, set[str]], message: str) -> None:
    assert violations(imports) == [message]


def test_no_files_import_each_other() -> None:
    """Also not inside a function or for typing alone: what two files need lies in a third."""
    imports = file_imports()
    assert f"{PACKAGE}.hospital.ray_engine" in imports[f"{PACKAGE}.hospital.engines"]  # which a function imports
    assert circle(imports) == ""


def test_circle_is_named() -> None:
    assert "b <- a" in circle({"a": {"b", "d"}, "b": {"c"}, "c": {"a"}, "d": set()})


def test_libraries_stay_where_they_belong() -> None:
    wrong = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        area = path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")
        for library in {name.split(".")[0] for name in imports_of(path)}:
            if library in FORBIDDEN and area not in FORBIDDEN[library]:
                wrong.append(f"{path.name} imports {library}")
            if library in FILE_LIBRARIES and area in KNOWS_ONLY:
                wrong.append(f"{path.name} imports {library}, but {area} knows tensors alone")
    assert wrong == []


@pytest.mark.parametrize(
    "path", sorted([*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]), ids=lambda p: p.stem
)
def test_csv_is_written_at_one_place(path: Path) -> None:
    """A cell of text from outside must not be calculated by a spreadsheet: `csv_files` sees to that."""
    if path.name == "csv_files.py":
        return
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\.to_csv\b|\bcsv\.(Dict)?[wW]riter\b|\bfrom csv import\b|to_excel|savetxt", text), path.name
    is_foreign = path.name == "paper_tables.py"  # the paper's own table, which we did not write
    assert is_foreign or not re.search(r"\bread_csv\b", text), path.name


def test_no_name_in_diffusion_speaks_of_the_heart() -> None:
    words = ("heart", "cardi", "ventric", "atrium", "sector", "echo")
    for path in sorted((ROOT / PACKAGE / "diffusion").glob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        fields = [getattr(node, field, None) for node in nodes for field in ("id", "arg", "attr", "name")]
        names = {name.lower() for name in fields if isinstance(name, str)}
        assert [name for name in names if any(word in name for word in words)] == [], path.name


def test_bundles_hold_no_python() -> None:
    assert list((ROOT / "bundles").rglob("*.py")) == []


def test_importing_the_package_is_cheap() -> None:
    code = f"import sys, {PACKAGE}; print(*({{'torch', 'monai', 'numpy', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""
