"""Test the site: it builds strictly, asks nobody for anything and is complete; the page on files names the columns that the code writes."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OTHER_HOST = re.compile(r"^(?:https?:)?//")


class Loads(HTMLParser):
    """Collect what a browser fetches by itself when it opens a page: not links that somebody has to click."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.found.append(values.get("href", ""))
        self.found += [values[name] for name in ("src", "srcset", "poster", "data-src") if name in values]
        self.found += re.findall(r"url\(([^)]*)\)", values.get("style", ""))


def loads(html: str) -> list[str]:
    """Return the addresses that a page fetches."""
    parser = Loads()
    parser.feed(html)
    return parser.found


def test_loads_are_found() -> None:
    html = '<link rel="stylesheet" href="https://a/b.css"><a href="https://c">c</a><img src="//d/e.png"><script src="f.js"></script>'
    assert [address for address in loads(html) if OTHER_HOST.match(address)] == ["https://a/b.css", "//d/e.png"]


def test_no_page_fetches_from_another_host(site_dir: Path) -> None:
    pages = sorted(site_dir.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        outside = [address for address in loads(page.read_text(encoding="utf-8")) if OTHER_HOST.match(address)]
        assert not outside, f"{page.relative_to(site_dir)}: {outside}"
    for sheet in site_dir.rglob("*.css"):
        addresses = re.findall(r"url\(\s*['\"]?([^)'\"]+)", sheet.read_text(encoding="utf-8"))
        addresses += re.findall(r"@import\s+['\"]([^'\"]+)", sheet.read_text(encoding="utf-8"))
        assert not [address for address in addresses if OTHER_HOST.match(address)], sheet


def test_search_works_from_disk(site_dir: Path) -> None:
    index = (site_dir / "search/search_index.js").read_text(encoding="utf-8")
    assert "prompt_ensemble" in index and "Doubt and verdicts" in index


def test_generated_pages_are_there(site_dir: Path) -> None:
    for name in ("echo_cris", "echo_clipseg", "echo_semantic_diffusion"):
        assert "train_small.yaml" in (site_dir / f"reference/configs/{name}.html").read_text(encoding="utf-8")
        assert (site_dir / f"cards/{name}.html").is_file()
    assert 'id="phantom"' in (site_dir / "reference/cli.html").read_text(encoding="utf-8")
    assert "synboost_monai.data.camus.read_camus" in (site_dir / "reference/api/data.html").read_text(encoding="utf-8")
    for name in ("synthesise", "prompt_and_segment"):
        page = (site_dir / f"notebooks/{name}.html").read_text(encoding="utf-8")
        assert len(re.findall(rf'<img [^>]*src="{name}_', page)) >= 3
        assert (site_dir / f"notebooks/{name}.ipynb").is_file()


def test_every_model_and_data_card_says_what_it_is_not_for() -> None:
    cards = sorted(ROOT.glob("docs/cards/*.md"))
    assert len(cards) == 4
    for card in cards:
        assert "Not for diagnosis" in card.read_text(encoding="utf-8"), card.name


def test_no_picture_or_notebook_is_large() -> None:
    large = [
        path.name
        for path in (ROOT / "docs").rglob("*")
        if path.suffix in (".png", ".ipynb") and path.stat().st_size > 1_000_000
    ]
    assert not large


def columns_of(heading: str) -> set[str]:
    """Return the words in backticks under a heading of the page on files."""
    text = (ROOT / "docs/reference/files.md").read_text(encoding="utf-8")
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    part = text[text.index(f"\n## {heading}\n") :].split("\n## ")[1]
    return {word for words in re.findall(r"`([^`]+)`", part) for word in re.split(r"[,\s]+", words)}


def test_files_page_names_the_columns_of_the_code() -> None:
    from synboost_monai.data import datalist
    from synboost_monai.evaluation import clinical, per_case
    from synboost_monai.hospital import ledger, results
    from synboost_monai.records import SHAPES

    expected = {
        "datalist.json": {*datalist.PATH_KEYS, *datalist._VALUE_KEYS, "shape", "is_synthetic", *SHAPES},
        "metrics.csv": {*per_case.CSV_COLUMNS, *per_case.PAPER_METRICS, "predicted_dice", "verdict"},
        "clinical.csv": {*clinical.COLUMNS},
        "ledger.csv": {*ledger.COLUMNS},
        "measurements.json": {*results.CSV_COLUMNS},
    }
    for heading, columns in expected.items():
        assert columns - columns_of(heading) == set(), heading


def test_search_from_disk_needs_no_other_host(site_dir: Path) -> None:
    page = (site_dir / "explanation/doubt.html").read_text(encoding="utf-8")
    assert "../assets/iframe-worker.js" in loads(page)
    assert "location.protocol" in (site_dir / "assets/iframe-worker.js").read_text(encoding="utf-8")
