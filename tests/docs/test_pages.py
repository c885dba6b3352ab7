"""Test pages that are made from the project: configs key by key, command line, studies, API, notebooks."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from synboost_monai.__main__ import VERBS
from synboost_monai.command_line import flag_of

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))

CONFIG = """\
# Does a thing.
#   python -m monai.bundle run --config_file x.yaml
# And more.

seed: 42                  # of all
name: 'a # b'             # a mark inside of text is no comment
sizes: [1,
  2]                      # several lines
empty: null
# facts of the model
url: http://a#b
part:                     # what it is for
  _target_: some.Class
  inner: 3                # nested
  deeper:
    path: $@root + '/x'   # nested twice
"""


def test_config_keys_have_their_comments(docs_pages: ModuleType) -> None:
    keys = {key.path: key for key in docs_pages.config_keys(CONFIG)}
    assert [*keys] == [
        "seed", "name", "sizes", "empty", "url", "part", "part::_target_", "part::inner", "part::deeper", "part::deeper::path",
    ]  # fmt: skip
    assert (keys["seed"].value, keys["seed"].comment) == ("42", "of all")
    assert (keys["name"].value, keys["name"].comment) == ("'a # b'", "a mark inside of text is no comment")
    assert keys["sizes"].comment == "several lines"
    assert (keys["empty"].value, keys["empty"].comment, keys["empty"].group) == ("null", "", "")
    assert (keys["url"].value, keys["url"].comment, keys["url"].group) == ("http://a#b", "", "facts of the model")
    assert (keys["part"].value, keys["part"].target, keys["part"].comment) == (None, "some.Class", "what it is for")
    assert (keys["part::deeper::path"].comment, keys["part::deeper::path"].depth) == ("nested twice", 2)


def test_head_of_a_config_becomes_text_and_commands(docs_pages: ModuleType) -> None:
    assert docs_pages.head_comment(CONFIG).split("\n") == [
        "Does a thing.", "", "```text", "python -m monai.bundle run --config_file x.yaml", "```", "", "And more.",
    ]  # fmt: skip


def test_config_that_is_no_mapping_is_refused(docs_pages: ModuleType) -> None:
    with pytest.raises(ValueError, match="must be a mapping"):
        docs_pages.config_keys("- a\n- b\n")


@pytest.mark.parametrize("bundle_dir", BUNDLES, ids=lambda path: path.name)
def test_every_key_and_comment_of_a_bundle_is_in_its_page(docs_pages: ModuleType, bundle_dir: Path) -> None:
    page = docs_pages.configs_page(bundle_dir)
    for path in bundle_dir.glob("configs/*.yaml"):
        start = page.index(f"\n## {path.stem}.yaml\n")
        part = page[start : (page + "\n## ").index("\n## ", start + 1)]
        text = path.read_text(encoding="utf-8")
        for key in yaml.safe_load(text):
            assert f"| `{key}` |" in part, f"{path.name}: {key}"
        for key in docs_pages.config_keys(text):
            if key.comment:
                assert docs_pages._cell(key.comment) in part, f"{path.name}: {key.path}"


@pytest.mark.parametrize("bundle_dir", BUNDLES, ids=lambda path: path.name)
def test_every_setting_is_explained(docs_pages: ModuleType, bundle_dir: Path) -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| ([^|]*) \|$", docs_pages.configs_page(bundle_dir), flags=re.MULTILINE)
    assert len(rows) > 20
    silent = sorted({key for key, words in rows if not words.strip()})
    assert not silent, (
        f"{bundle_dir.name}: give {', '.join(silent)} a comment in the config, or words in COMMON_KEYS of scripts/docs_pages.py"
    )


def test_command_line_has_every_verb_and_flag(docs_pages: ModuleType) -> None:
    page = docs_pages.cli_page()
    for name, verb in VERBS.items():
        start = page.index(f"\n## {name}\n")
        part = page[start : (page + "\n## ").index("\n## ", start + 1)]
        for p in inspect.signature(verb).parameters.values():
            if p.kind is p.KEYWORD_ONLY:
                assert f"| `--{flag_of(p.name)}` |" in part, f"{name}: {p.name}"
            elif p.kind is p.POSITIONAL_OR_KEYWORD:
                assert f"| `{p.name.upper()}` |" in part, f"{name}: {p.name}"


@pytest.mark.parametrize("name", sorted(VERBS))
def test_every_argument_of_a_verb_is_explained(docs_pages: ModuleType, name: str) -> None:
    told = docs_pages.arguments_of(inspect.getdoc(VERBS[name]) or "")
    assert set(inspect.signature(VERBS[name]).parameters) - set(told) == set()


def test_arguments_of_a_docstring(docs_pages: ModuleType) -> None:
    doc = "Do it.\n\nArgs:\n    a: first\n        and more.\n    b, c: both.\n    **rest: others.\nReturns:\n    d: not an argument"
    assert docs_pages.arguments_of(doc) == {"a": "first and more.", "b": "both.", "c": "both.", "rest": "others."}


def test_every_study_and_setting_is_told(docs_pages: ModuleType) -> None:
    studies = ROOT / "synboost_monai/study/studies"
    page = docs_pages.studies_page(studies)
    assert set(re.findall(r"^## (\w+)$", page, flags=re.MULTILINE)) == {path.stem for path in studies.glob("*.yaml")}
    assert '| `segmenters.prompts` | `["P2"]` |' in page and "`threads`: cores of a stage" in page


def test_every_public_module_has_a_place_in_the_api(docs_pages: ModuleType) -> None:
    pages = "\n".join(docs_pages.api_pages(ROOT / "synboost_monai").values())
    for path in (ROOT / "synboost_monai").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1].startswith("_") or "templates" in parts or parts[1] in docs_pages.SKIPPED_AREAS:
            continue
        assert f"::: {'.'.join(parts)}\n" in pages, path


def test_notebook_becomes_a_page_with_its_pictures(docs_pages: ModuleType, tmp_path: Path) -> None:
    import nbformat.v4 as v4

    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    output = v4.new_output("display_data", data={"image/png": png})
    cell = v4.new_code_cell("show()", execution_count=1, outputs=[output])
    path = tmp_path / "example.ipynb"
    path.write_text(
        json.dumps(v4.new_notebook(cells=[v4.new_markdown_cell("# Title\n\nText."), cell])), encoding="utf-8"
    )
    text, pictures = docs_pages.notebook_page(path)
    assert text.startswith("# Title\n") and "(example.ipynb)" in text and "show()" in text
    assert len(pictures) == 1
    ((name, content),) = pictures.items()
    assert "](" + name + ")" in text and content.startswith(b"\x89PNG")


def table_rows(page: str, first: str) -> list[list[str]]:
    """Return the cells of the table of a page whose head begins with these words."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    table = text[text.index(first) :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def numbers_of(name: str) -> Any:
    """Return what a script wrote, from docs/results."""
    return json.loads((ROOT / "docs/results" / name).read_text(encoding="utf-8"))


def test_tables_hold_the_numbers_that_the_scripts_wrote() -> None:
    """Each row of a table of docs/results' numbers is that of a way of the script, rounded."""
    ways = {(w["architecture"], w["name"]): w for w in numbers_of("segmenters.json")["ways"]}
    for network, _, name, gflop, seconds, ratio, *_ in table_rows("explanation/speed.md", "| network | | way |"):
        way = ways[(network.split(",")[0].lower(), name)]
        shown = [f"{way['flop'] / 1e9:.0f}", f"{way['seconds']:.3f}", f"{way['speed_ratio']:.2f}"]
        assert [gflop, seconds, ratio] == shown, (network, name)

    evaluations = {f"{w['evaluation_seconds']:.2f}": w for w in numbers_of("synthesis.json")["ways"]}
    for _, tflop, less, seconds, faster, peak_gb in table_rows("explanation/speed.md", "| | TFLOP an image"):
        way = evaluations[seconds]
        shown = [f"{way['image_tflop']:,.1f}", f"{way['flop_ratio']:.1f}"]
        shown += [f"{way['speed_ratio']:.0f}", f"{way['peak_gb']:.2f}"]
        assert [tflop, less, faster, peak_gb] == shown

    records = numbers_of("clip.json")
    clips = [record["command"][record["command"].index("--clip") + 1] for record in records]
    seconds = [record["clip"][0]["wall_seconds"] for record in records]
    of_first = [seconds[clips.index(clip)] for clip in clips]
    rows = table_rows("hospital.md", "| clip | network | total (s) | times as fast |")
    assert [row[2:] for row in rows] == [[f"{s:.1f}", f"{first / s:.2g}"] for s, first in zip(seconds, of_first)]

    shown = table_rows("explanation/results.md", "| data | sampler, evaluations |")
    for data in ("camus", "phantom"):
        own = [cells[2:] for cells in shown if cells[0].lower() == data]
        assert own == [sampler_cells(row) for row in numbers_of(f"samplers_{data}.json")["rows"]]

    rows = numbers_of("robustness.json")["rows"]
    for damage, *cells in table_rows("explanation/results.md", "| | ImageNet weights, 20 patients |"):
        assert [cell.split()[0] for cell in cells] == [f"{r['dice']:.1f}" for r in rows if r["damage"] == damage]
        costs = [f"({r['change']:+.1f} [{r['low']:+.1f}, {r['high']:+.1f}])" for r in rows if r["damage"] == damage]
        assert all(cost in cell for cost, cell in zip(costs, cells)) or damage == "as it is"


def sampler_cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of a row of scripts/compare_samplers.py as results.md shows them."""
    ends = f"{row['difference']:+.1f} [{row['difference_low']:+.1f}, {row['difference_high']:+.1f}]"
    numbers = [f"{row['mean_dice']:.1f}", ends if row["difference"] else "", f"{row['spectrum_db']:.2f}"]
    return [*numbers, f"{row['high_frequency_db']:+.1f}", f"{row['fid']:,.0f}", f"{row['seconds']:.3f}"]
