"""A study's run -> report.html (one file, works from disk without network), results.csv, results.json."""

from __future__ import annotations

import base64
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from synboost_monai import __version__
from synboost_monai.data.datalist import DATALIST_NAME
from synboost_monai.experiments.grid import STRATEGIES, Segmenter
from synboost_monai.experiments.prepare import SUMMARY_NAME
from synboost_monai.experiments.settings import read_run
from synboost_monai.experiments.study import Study
from synboost_monai.io import IMAGE_SUFFIXES, atomic_write_text, image_stem, read_plane
from synboost_monai.labels import STRUCTURES
from synboost_monai.prompts.templates import prompt_text
from synboost_monai.records import PHASES, VIEWS

TEMPLATE = Path(__file__).with_name("report.html.j2")
"""The page, for Jinja."""
PICTURE_SIZE = 288
"""Longer side of a picture, pixels."""
OVERALL = "overall"
"""Name of the mean over all structures and cases in results.csv."""
STRATEGY_TITLES = {
    "real": "real",
    "synthetic": "synthetic",
    "synthetic_then_real": "synthetic, then real",
    "real_and_synthetic": "real and synthetic",
}
"""Strategy -> words of the tables."""
STRATEGY_COLOURS = {
    "real": "#4c72b0",
    "synthetic": "#dd8452",
    "synthetic_then_real": "#55a868",
    "real_and_synthetic": "#8172b3",
}
"""Strategy -> colour of the plot."""
SHORT = {long: short for short, long in {**VIEWS, **PHASES}.items()}
"""View or phase -> short form."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluated segmenter: its metrics, case by case, and where its label maps lie."""

    segmenter: Segmenter
    evaluation_dir: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json."""
        return json.loads((self.evaluation_dir / "summary.json").read_text(encoding="utf-8"))

    @cached_property
    def frame(self) -> pd.DataFrame:
        """metrics.csv."""
        return pd.read_csv(self.evaluation_dir / "metrics.csv", dtype={"case": str, "patient": str})

    def label_map(self, case: str) -> NDArray[Any] | None:
        """Predicted label map of a case, in display order; None if it was not kept."""
        for suffix in IMAGE_SUFFIXES:
            path = self.evaluation_dir / "label_maps" / f"{case}{suffix}"
            if path.is_file() and suffix != ".png":
                return read_plane(path).pixels
        return None


def write_report(run_dir: str | os.PathLike[str]) -> Path:
    """Write report.html, results.csv and results.json of a study's run.

    Args:
        run_dir: folder of the run.
    Returns:
        path of report.html.
    Raises:
        FileNotFoundError: if the folder is no run of a study.
        ValueError: if no segmenter is evaluated yet.
    """
    run_dir = Path(run_dir)
    study = read_run(run_dir)
    evaluations = [Evaluation(s, run_dir / s.output_dir / "evaluation") for s in study.segmenters]
    evaluations = [e for e in evaluations if (e.evaluation_dir / "summary.json").is_file()]
    if not evaluations:
        raise ValueError(
            f"report.py: {run_dir} holds no evaluation yet; run `synboost experiment {run_dir}/study.yaml` first"
        )

    results = results_frame(evaluations)
    stages = _stages(run_dir, study)
    atomic_write_text(run_dir / "results.csv", results.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    record = {
        "study": study.name,
        "settings": dict(study.settings),
        "versions": package_versions(),
        "results": [{"segmenter": vars(e.segmenter), **e.summary} for e in evaluations],
        "stages": stages,
    }
    atomic_write_text(run_dir / "results.json", json.dumps(record, indent=1, allow_nan=False) + "\n")

    page = _render(
        study=study,
        table=_table(evaluations),
        structures=[{"title": s.prompt_words, "colour": css_colour(s.colour)} for s in STRUCTURES],
        facts=_facts(evaluations, _data_name(study)),
        command=f"synboost experiment {run_dir.resolve().name}/study.yaml --output ANOTHER_FOLDER",
        plot=picture_source(_dice_plot(evaluations)),
        synthetic_examples=_synthetic_examples(run_dir, study),
        real_examples=_real_examples(run_dir, evaluations),
        stages=stages,
        total_seconds=sum(s["seconds"] for s in stages),
        data_summary=_text_of(run_dir / "real" / SUMMARY_NAME),
        synthetic_summary=_synthetic_summary(run_dir),
        settings=yaml.safe_dump(dict(study.settings), sort_keys=False, allow_unicode=True),
        versions=package_versions(),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} processor cores",
    )
    atomic_write_text(run_dir / "report.html", page)
    return run_dir / "report.html"


def results_frame(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """One row for each segmenter and structure, and for all structures together (`overall`)."""
    rows = []
    for evaluation in evaluations:
        summary, segmenter = evaluation.summary, evaluation.segmenter
        for structure, numbers in {**summary["structures"], OVERALL: summary["overall"]}.items():
            rows.append(
                {
                    "model": segmenter.model,
                    "strategy": segmenter.strategy,
                    "prompt": segmenter.prompt,
                    "seed": segmenter.seed,
                    "structure": structure,
                    **numbers,
                    "num_cases": summary["num_cases"],
                    "num_patients": summary["num_patients"],
                    "section": summary["section"],
                    "checkpoint_sha256": summary["checkpoint_sha256"],
                }
            )
    return pd.DataFrame(rows)


def overlay(
    image: NDArray[Any], label_map: NDArray[Any] | None, spacing_mm: Sequence[float], size: int = PICTURE_SIZE
) -> NDArray[np.uint8]:
    """Grey image with the structures filled lightly and outlined in their colours, pixels square.

    Args:
        image: (H, W), any grey values.
        label_map: (H, W), classes 0..3; None shows the image alone.
        spacing_mm: (row, column).
        size: longer side of the picture.
    Returns:
        RGB, (h, w, 3).
    """
    from PIL import Image
    from scipy.ndimage import binary_erosion

    low, high = float(image.min()), float(image.max())
    grey = ((image - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
    extent = np.array(image.shape) * np.asarray(spacing_mm, dtype=float)
    height, width = np.maximum(1, np.round(extent / extent.max() * size)).astype(int)
    picture = np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    picture = np.repeat(picture[..., None], 3, axis=-1)
    if label_map is not None:
        shown = np.asarray(
            Image.fromarray(label_map.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        )
        for structure in STRUCTURES:
            mask = shown == structure.class_index
            edge = mask & ~binary_erosion(mask, iterations=max(1, size // 128))
            picture[mask] = 0.78 * picture[mask] + 0.22 * np.array(structure.colour)
            picture[edge] = structure.colour
    return picture.astype(np.uint8)


def colour_label_map(
    label_map: NDArray[Any], spacing_mm: Sequence[float], size: int = PICTURE_SIZE
) -> NDArray[np.uint8]:
    """Label map as flat colours on dark, pixels square."""
    from PIL import Image

    palette = np.full((256, 3), 24, dtype=np.uint8)
    for structure in STRUCTURES:
        palette[structure.class_index] = structure.colour
    extent = np.array(label_map.shape) * np.asarray(spacing_mm, dtype=float)
    height, width = np.maximum(1, np.round(extent / extent.max() * size)).astype(int)
    shown = Image.fromarray(label_map.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    return palette[np.asarray(shown)]


# ---- what the page tells


def _table(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Rows of the table of results: mean over seeds, deviation over images and structures."""
    groups: dict[tuple[str, str, str], list[Evaluation]] = {}
    for e in evaluations:
        groups.setdefault((e.segmenter.model, e.segmenter.prompt, e.segmenter.strategy), []).append(e)
    places = {model: i for i, (model, _, _) in enumerate(groups)}
    order = lambda g: (places[g[0][0]], g[0][1], STRATEGIES.index(g[0][2]))  # noqa: E731
    rows = []
    for (model, prompt, strategy), group in sorted(groups.items(), key=order):
        overall = [e.summary["overall"] for e in group]
        real = groups.get((model, prompt, "real"))
        dice = _mean([o["dice_mean"] for o in overall])
        base = _mean([e.summary["overall"]["dice_mean"] for e in real]) if real and strategy != "real" else None
        rows.append(
            {
                "model": model,
                "prompt": prompt,
                "strategy": STRATEGY_TITLES[strategy],
                "structures": [
                    _mean([e.summary["structures"].get(s.name, {}).get("dice_mean") for e in group]) for s in STRUCTURES
                ],
                "dice": dice,
                "dice_std": _mean([o["dice_std"] for o in overall]),
                "difference": None if base is None or dice is None else dice - base,
                "iou": _mean([o["iou_mean"] for o in overall]),
                "hd95_mm": _mean([o["hd95_mm_mean"] for o in overall]),
                "num_empty": sum(o["num_empty_prediction"] for o in overall),
                "seeds": ", ".join(str(e.segmenter.seed) for e in group),
            }
        )
    return rows


def _data_name(study: Study) -> str:
    """What the real data are, in words."""
    data = study.settings["data"]
    return Path(data["dataset"]).name if data["dataset"] else "the phantom data set, which stands for real data"


def _facts(evaluations: Sequence[Evaluation], data_name: str) -> list[str]:
    """What stands under the table: which data the numbers are of."""
    facts = []
    for e in evaluations:
        s = e.summary
        of_patients = f" of {s['num_patients']} patients" if s.get("num_patients") else ""
        facts.append(f"{s['section']} section of {data_name}: {s['num_cases']} images{of_patients}")
    return list(dict.fromkeys(facts))


def _stages(run_dir: Path, study: Study) -> list[dict[str, Any]]:
    """Finished stages in the order in which they ended, without this report."""
    paths = [run_dir / "timing" / f"{name}.json" for name in study.stage_names if name != "report"]
    paths = sorted((p for p in paths if p.is_file()), key=lambda p: p.stat().st_mtime)
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def _synthetic_summary(run_dir: Path) -> str:
    """How many images were synthesised, and how."""
    datalist, provenance = run_dir / "synthetic" / DATALIST_NAME, run_dir / "synthetic" / "provenance.json"
    if not datalist.is_file():
        return ""
    content = json.loads(datalist.read_text(encoding="utf-8"))
    counts = [f"{len(content.get(s, []))} {s}" for s in ("training", "validation", "testing") if content.get(s)]
    text = f"{', '.join(counts)} images"
    if provenance.is_file():
        settings = json.loads(provenance.read_text(encoding="utf-8")).get("settings", {})
        told = {k: v for k, v in settings.items() if isinstance(v, (int, float, str)) and k != "checkpoint_sha256"}
        text += "; " + ", ".join(f"{k} {v}" for k, v in told.items())
    return text


def _synthetic_examples(run_dir: Path, study: Study) -> list[dict[str, Any]]:
    """Rows of pictures: label map, synthetic image, each model's masks of its prompts."""
    path = run_dir / "examples" / DATALIST_NAME
    if not path.is_file():
        return []
    evaluations = [Evaluation(s, run_dir / "examples" / s.model) for s in study.example_segmenters]
    rows = []
    for item in json.loads(path.read_text(encoding="utf-8"))["testing"]:
        image, label = read_plane(path.parent / item["image"]), read_plane(path.parent / item["label"])
        case = image_stem(item["image"])
        what = _describe(item)
        cells = [
            picture_cell(colour_label_map(label.pixels, image.spacing_mm), f"Label map, {what}", "label map"),
            picture_cell(overlay(image.pixels, None, image.spacing_mm), f"Synthetic image, {what}", "synthetic image"),
        ]
        for e in evaluations:
            label_map = e.label_map(case)
            text = f"Masks of {e.segmenter.model} on the synthetic image, {what}"
            caption = f"{e.segmenter.model}{_dice_of(e, case)}"
            cells.append(
                picture_cell(overlay(image.pixels, label_map, image.spacing_mm), text, caption, label_map is None)
            )
        prompts = _prompts(item, evaluations[0].segmenter.prompt, is_synthetic=True)
        rows.append({"title": what, "cells": cells, "prompts": prompts})
    return rows


def _shown(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """One evaluation for each model and strategy: the first prompt and seed."""
    first: dict[tuple[str, str], Evaluation] = {}
    models = list(dict.fromkeys(e.segmenter.model for e in evaluations))
    for e in sorted(
        evaluations, key=lambda e: (models.index(e.segmenter.model), STRATEGIES.index(e.segmenter.strategy))
    ):
        first.setdefault((e.segmenter.model, e.segmenter.strategy), e)
    return list(first.values())


def _real_examples(run_dir: Path, evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Rows of pictures of real test images: expert, then each model and strategy. The median case of each view and phase."""
    path = run_dir / "real" / DATALIST_NAME
    if not path.is_file():
        return []
    items = {image_stem(i["image"]): i for i in json.loads(path.read_text(encoding="utf-8")).get("testing", [])}
    shown = _shown(evaluations)
    dice = pd.concat([e.frame[["case", "dice"]] for e in shown]).groupby("case")["dice"].mean()
    kinds: dict[tuple, list[str]] = {}
    for case in dice.sort_values().index:
        if case in items:
            kinds.setdefault((items[case].get("view"), items[case].get("phase")), []).append(case)
    rows = []
    for _, cases in sorted(kinds.items(), key=lambda k: str(k[0])):
        case = cases[len(cases) // 2]
        item = items[case]
        image = read_plane(path.parent / item["image"])
        what = f"{item.get('patient', case)}, {_describe(item)}"
        cells = [picture_cell(overlay(image.pixels, None, image.spacing_mm), f"Image, {what}", "image")]
        if "label" in item:
            truth = read_plane(path.parent / item["label"]).pixels
            cells.append(
                picture_cell(overlay(image.pixels, truth, image.spacing_mm), f"Expert's label map, {what}", "expert")
            )
        for e in shown:
            label_map = e.label_map(case)
            text = f"Masks of {_title(e.segmenter)}, {what}"
            caption = f"{_title(e.segmenter)}{_dice_of(e, case)}"
            picture = overlay(image.pixels, label_map, image.spacing_mm)
            starts_line = e.segmenter.model != shown[0].segmenter.model and e is next(
                f for f in shown if f.segmenter.model == e.segmenter.model
            )
            cells.append(picture_cell(picture, text, caption, label_map is None, starts_line))
        prompts = _prompts(item, shown[0].segmenter.prompt, is_synthetic=False)
        rows.append({"title": what, "cells": cells, "prompts": prompts})
    return rows


def _prompts(item: Mapping[str, Any], level: str, *, is_synthetic: bool) -> list[dict[str, str]]:
    """The prompts that asked for the masks, with the structure's colour."""
    out = []
    for structure in STRUCTURES:
        prompt = prompt_text(structure, level, item, is_synthetic=is_synthetic)
        out.append({"text": prompt.text or "(empty prompt)", "colour": css_colour(structure.colour)})
    return out


def _dice_of(evaluation: Evaluation, case: str) -> str:
    """`, Dice 0.91` of one case, mean over its structures."""
    values = evaluation.frame.loc[evaluation.frame["case"] == case, "dice"]
    return f", Dice {values.mean():.3f}" if len(values) else ""


def _describe(item: Mapping[str, Any]) -> str:
    """`4CH, ED` of an item."""
    words = [SHORT.get(item.get(key, ""), "") for key in ("view", "phase")]
    return ", ".join(w for w in words if w) or image_stem(item["image"])


def _title(segmenter: Segmenter) -> str:
    return f"{segmenter.model}, {STRATEGY_TITLES[segmenter.strategy]}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def package_versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"synboost_monai": __version__, "python": platform.python_version()}
    for name in ("torch", "monai", "numpy", "snakemake"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# ---- pictures and page


def _dice_plot(evaluations: Sequence[Evaluation]) -> bytes:
    """Boxes of the mean Dice of each image, by model, prompt and strategy, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    groups: dict[tuple[str, str], dict[str, list[Evaluation]]] = {}
    for e in evaluations:
        by_strategy = groups.setdefault((e.segmenter.model, e.segmenter.prompt), {})
        by_strategy.setdefault(e.segmenter.strategy, []).append(e)
    figure = Figure(figsize=(max(4.5, 1.2 + 1.7 * len(groups)), 3.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    present = [s for s in STRATEGIES if any(s in g for g in groups.values())]
    for i, by_strategy in enumerate(groups.values()):
        for j, strategy in enumerate(present):
            if strategy not in by_strategy:
                continue
            frames = [e.frame.groupby("case")["dice"].mean() for e in by_strategy[strategy]]
            axes.boxplot(
                [pd.concat(frames).to_numpy()],
                positions=[i + (j - (len(present) - 1) / 2) * 0.26],
                widths=0.22,
                patch_artist=True,
                showmeans=True,
                boxprops={"facecolor": STRATEGY_COLOURS[strategy], "alpha": 0.75},
                medianprops={"color": "black"},
                meanprops={"marker": "D", "markerfacecolor": "white", "markeredgecolor": "black", "markersize": 4},
                flierprops={"markersize": 3},
            )
    axes.set_xticks(range(len(groups)), [f"{model}\n{prompt}" for model, prompt in groups])
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylabel("Dice of an image")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    handles = [Patch(facecolor=STRATEGY_COLOURS[s], alpha=0.75, label=STRATEGY_TITLES[s]) for s in present]
    figure.legend(handles=handles, ncols=len(handles), loc="outside upper center", frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def picture_cell(
    picture: NDArray[np.uint8], alt: str, caption: str, is_missing: bool = False, starts_line: bool = False
) -> dict[str, Any]:
    """One picture of a row."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    note = " (label map not kept)" if is_missing else ""
    height, width = picture.shape[:2]
    source = picture_source(buffer.getvalue())
    size = {"width": width, "height": height}
    return {"source": source, "alt": alt, "caption": caption + note, "starts_line": starts_line, **size}


def picture_source(png: bytes) -> str:
    """A PNG as the source of an HTML image."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def css_colour(colour: Sequence[int]) -> str:
    """A colour, 0..255 each, as CSS writes it."""
    return f"rgb({', '.join(str(c) for c in colour)})"


def _render(**content: Any) -> str:
    """Fill the template; everything is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["fixed"] = lambda value, digits=3: "–" if value is None else f"{value:.{digits}f}"
    environment.filters["signed"] = lambda value: "" if value is None else f"{value:+.3f}".replace("-", "−")
    environment.filters["duration"] = lambda s: f"{s:.0f} s" if s < 100 else f"{s / 60:.1f} min"
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**content)
