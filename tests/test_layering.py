"""Test that imports inside the package go one way, and some folders stay free of some libraries."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from draw_imports import LAW, PACKAGE, file_imports, imports_of, law_rows, room_imports, svg  # noqa: E402

LAYER = {room.strip("`"): int(layer) for layer, room, _, _ in law_rows()}
"""Room -> its layer, lowest 0: a room may import lower ones, and those of its own layer without a cycle."""

KNOWS_ONLY = {"networks": {"lazy", "structures"}, "diffusion": set()}
"""Networks and diffusion know tensors alone: they import nothing else of the package."""

FORBIDDEN = {
    **{library: (room.strip("`"),) for _, room, _, alone in law_rows() for library in re.findall(r"`(\w+)`", alone)},
    "torchvision": (),
    "monailabel": ("serving.label",),
    "gradio": ("serving.demo",),
    "onnx": ("serving.export",),
    "onnxruntime": ("serving.export", "onnx_segmenter"),
}
"""Library -> the only rooms, or parts of rooms, that may import it."""

FILE_LIBRARIES = {"nibabel", "itk", "pydicom", "PIL", "pandas", "av"}
"""Libraries that read or write files of images and tables."""


def circle(imports: dict[str, set[str]]) -> str:
    """Return modules that import each other in a circle, or nothing."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return " <- ".join(error.args[1])
    return ""


def violations(imports: dict[str, set[str]]) -> list[str]:
    """Return arrows that go up, sideways in a circle, or to a room without a layer."""
    wrong = [f"{room} is in no layer; add it to {LAW.name}" for room in sorted(imports) if room not in LAYER]
    for room, targets in sorted(imports.items()):
        for target in sorted(targets):
            if LAYER.get(target, 0) > LAYER.get(room, 99):
                wrong.append(f"{room} imports {target}, which is above it")
            elif room in imports.get(target, ()) and room < target:
                wrong.append(f"{room} and {target} import each other")
        if room in KNOWS_ONLY and not targets <= KNOWS_ONLY[room]:
            wrong.append(f"{room} must not import {', '.join(sorted(targets - KNOWS_ONLY[room]))}")
    return wrong


def test_imports_go_one_way() -> None:
    imports = room_imports(file_imports())
    assert "structures" in imports["prompts"]
    assert violations(imports) == []
    assert set(LAYER) == set(imports)


@pytest.mark.parametrize(
    ("imports", "message"),
    [
        ({"structures": {"data"}}, "structures imports data, which is above it"),
        ({"training": {"study"}}, "training imports study, which is above it"),
        ({"networks": {"lazy"}, "prompts": {"heart"}, "heart": {"prompts"}}, "heart and prompts import each other"),
        ({"diffusion": {"structures"}}, "diffusion must not import structures"),
        ({"novelty": set()}, "novelty is in no layer; add it to architecture.md"),
    ],
)
def test_wrong_arrow_is_found(imports: dict[str, set[str]], message: str) -> None:
    assert violations(imports) == [message]


def test_the_picture_of_the_imports_is_up_to_date() -> None:
    assert svg() == (ROOT / "docs/assets/imports.svg").read_text(encoding="utf-8"), "run scripts/draw_imports.py"


def test_no_files_import_each_other() -> None:
    """This holds inside functions and for typing too: what two files need must be in a third."""
    imports = file_imports()
    assert f"{PACKAGE}.hospital.ray_engine" in imports[f"{PACKAGE}.hospital.engines"]  # which a function imports
    assert circle(imports) == ""


def test_circle_is_named() -> None:
    assert "b <- a" in circle({"a": {"b", "d"}, "b": {"c"}, "c": {"a"}, "d": set()})


def test_libraries_stay_where_they_belong() -> None:
    wrong = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts) + "."
        for library in {name.split(".")[0] for name in imports_of(path)}:
            if library in FORBIDDEN and not module.startswith(tuple(f"{room}." for room in FORBIDDEN[library])):
                wrong.append(f"{path.name} imports {library}")
            if library in FILE_LIBRARIES and module.split(".")[0] in KNOWS_ONLY:
                wrong.append(f"{path.name} imports {library}, but knows tensors alone")
    assert wrong == []


@pytest.mark.parametrize(
    "path", sorted([*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]), ids=lambda p: p.stem
)
def test_csv_is_written_at_one_place(path: Path) -> None:
    """A spreadsheet must not calculate a cell of text from outside, which `csv_files` ensures."""
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


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        (PACKAGE, {"torch", "monai", "numpy", "transformers"}),
        (f"{PACKAGE}.data", {"torch", "nibabel", "itk", "monai"}),
        (f"{PACKAGE}.prompts", {"torch", "transformers", "scipy"}),
        (f"{PACKAGE}.serving.label.serve", {"monailabel", "torch"}),
        (f"{PACKAGE}.study.report", {"monai", "ignite", "transformers", "matplotlib"}),
    ],
)
def test_importing_loads_nothing_heavy(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""
