"""Provide hooks for MkDocs (mkdocs.yml): pages that are made while the site is built, and menu entries whose pages may be missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import docs_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
API = "reference/api"
"""Menu entry that is replaced by the pages of the API."""
OPTIONAL_PAGES = ("monai_label.md", "demo.md", "export.md", "deploy.md", "model_zoo.md")
"""Pages whose menu entry is left out while they do not exist; any other missing page is an error."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the API's pages into the menu, and take out optional pages that do not exist."""
    docs_dir = Path(config.docs_dir)
    missing = {page for page in OPTIONAL_PAGES if not (docs_dir / page).is_file()}
    config.nav = _menu(config.nav, missing)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the pictures of the notebooks."""
    for path, content in generated(Path(config.docs_dir)).items():
        files.append(File.generated(config, path, content=content))
    return files


def generated(docs_dir: Path) -> dict[str, str | bytes]:
    """Return path in the site's sources -> content of every file that is made while the site is built."""
    out: dict[str, str | bytes] = {
        "reference/cli.md": docs_pages.cli_page(),
        "reference/studies.md": docs_pages.studies_page(ROOT / "synboost_monai/study/studies"),
    }
    for bundle_dir in sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json")):
        out[f"reference/configs/{bundle_dir.name}.md"] = docs_pages.configs_page(bundle_dir)
    for area, text in docs_pages.api_pages(ROOT / "synboost_monai").items():
        out[f"{API}/{area}.md"] = text
    for notebook in sorted(docs_dir.glob("notebooks/*.ipynb")):
        text, pictures = docs_pages.notebook_page(notebook)
        out[f"notebooks/{notebook.stem}.md"] = text
        out |= {f"notebooks/{name}": content for name, content in pictures.items()}
    return out


def _menu(node: Any, missing: set[str]) -> Any:
    """Return the menu without missing pages, with those of the API."""
    if isinstance(node, list):
        return [_menu(entry, missing) for entry in node if not (isinstance(entry, str) and entry in missing)]
    if isinstance(node, dict):
        return {title: _menu(entry, missing) for title, entry in node.items()}
    if node == API:
        return [{area: f"{API}/{area}.md"} for area in docs_pages.api_areas(ROOT / "synboost_monai")]
    return node
